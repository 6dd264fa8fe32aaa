// SPDX-License-Identifier: Apache-2.0

//! Futures that are polled only when they were woken.
//!
//! The task of a connection is woken several times per request, by bytes. Its timer and the
//! signal to drain are ready once in its life, yet each poll of them takes locks, some shared
//! by all cores. Here a poll in between costs one load of a flag of the connection's own.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// Remembers that it was woken, and wakes the task.
struct Flag {
    woken: AtomicBool,
    task: Waker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

/// Stands between a task and a future that is rarely ready.
pub(super) struct Seldom {
    flag: Option<(Arc<Flag>, Waker)>,
}

impl Seldom {
    pub(super) fn new() -> Self {
        Self { flag: None }
    }

    /// Polls `future`, always the same one, if it may have become ready since the last poll.
    pub(super) fn poll<F: Future + ?Sized>(
        &mut self,
        cx: &mut Context<'_>,
        future: Pin<&mut F>,
    ) -> Poll<F::Output> {
        let (flag, waker) = match &mut self.flag {
            Some((flag, waker)) if flag.task.will_wake(cx.waker()) => (flag, waker),
            stale => {
                let flag =
                    Arc::new(Flag { woken: AtomicBool::new(true), task: cx.waker().clone() });
                let waker = Waker::from(Arc::clone(&flag));
                let (flag, waker) = stale.insert((flag, waker));
                (flag, waker)
            }
        };
        // Reset before the poll: a wake during it must not be lost.
        if !flag.woken.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        flag.woken.store(false, Ordering::Release);
        let polled = future.poll(&mut Context::from_waker(waker));
        if polled.is_ready() {
            self.flag = None;
        }
        polled
    }

    /// The future was changed from outside and must be polled again.
    pub(super) fn changed(&mut self) {
        self.flag = None;
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::time::Duration;

    use tokio::time::{Instant, sleep, sleep_until};
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wake_is_never_lost_and_polls_between_cost_nothing() {
        let signal = CancellationToken::new();
        let other = signal.clone();
        let waiting = tokio::spawn(async move {
            let mut future = pin!(signal.cancelled());
            let mut real = 0;
            let mut seldom = Seldom::new();
            let mut ticks = pin!(sleep(Duration::from_millis(1)));
            let mut all = 0;
            poll_fn(|cx| {
                all += 1;
                let counted = poll_fn(|cx| {
                    real += 1;
                    future.as_mut().poll(cx)
                });
                if seldom.poll(cx, pin!(counted)).is_ready() {
                    return Poll::Ready(());
                }
                while ticks.as_mut().poll(cx).is_ready() {
                    ticks.as_mut().reset(Instant::now() + Duration::from_millis(1));
                }
                Poll::Pending
            })
            .await;
            (real, all)
        });
        sleep(Duration::from_millis(100)).await;
        other.cancel();
        let (real, all) = waiting.await.expect("ends");
        assert!(real <= 3 && all > 50, "{real} of {all}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_wound_again_goes_off() {
        let mut timer = pin!(sleep_until(Instant::now() + Duration::from_secs(60)));
        let mut seldom = Seldom::new();
        let began = Instant::now();
        let mut first = true;
        poll_fn(|cx| {
            let polled = seldom.poll(cx, timer.as_mut());
            if std::mem::take(&mut first) {
                timer.as_mut().reset(began + Duration::from_secs(1));
                seldom.changed();
                return seldom.poll(cx, timer.as_mut());
            }
            polled
        })
        .await;
        assert_eq!(began.elapsed().as_secs(), 1);
    }
}
