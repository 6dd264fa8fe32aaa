// SPDX-License-Identifier: Apache-2.0

//! Many routes made at once: when the Gateway's count is right, and what is written for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use kube::ResourceExt as _;

use super::apiserver::{self, GATEWAYS, Kind, ROUTES, Watch};
use super::objects::{self, EDGE};
use super::{Place, Task};

/// The longest that the count may take to be right.
const LIMIT: Duration = Duration::from_secs(60);
/// How long late writes are waited for.
const AFTERMATH: Duration = Duration::from_secs(2);

/// What became of routes made at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burst {
    /// Seconds from the first request to the last answer.
    pub(super) took: f64,
    /// Seconds after that until the Gateway counts them all; zero: it did before.
    pub(super) counted_after: f64,
    /// Writes of the Gateway meanwhile.
    pub(super) gateway_writes: usize,
    /// Times that the count went down.
    pub(super) wrong_counts: usize,
    /// Writes of the routes besides making them.
    pub(super) route_writes: usize,
    /// Milliseconds of the controller's CPU for each route, statuses written.
    pub(super) cpu: f64,
}

/// Every change of a Gateway or a route that a watch brought.
#[derive(Clone, Debug, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Instant,
    made: bool,
    /// Routes that the first listener counts, if it is a Gateway.
    attached: usize,
}

impl Log {
    async fn follow(place: &Place, kind: Kind) -> anyhow::Result<(Self, Task)> {
        let (log, watch) = (Self::default(), place.api.watch(kind, EDGE).await?);
        let task = tokio::spawn(log.clone().take(watch));
        Ok((log, Task(task.abort_handle())))
    }

    async fn take(self, mut watch: Watch) {
        while let Ok((object, made)) = apiserver::next(&mut watch).await {
            let seen = Seen { at: Instant::now(), made, attached: attached(&object.data) };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Routes that the first listener of a Gateway counts.
fn attached(gateway: &serde_json::Value) -> usize {
    let count = gateway.pointer("/status/listeners/0/attachedRoutes");
    count.and_then(serde_json::Value::as_u64).and_then(|n| usize::try_from(n).ok()).unwrap_or(0)
}

/// Waits until the Gateway counts so many routes.
pub(super) async fn counted(place: &Place, routes: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let gateway = place.api.objects(GATEWAYS, EDGE).get(objects::GATEWAY).await?;
        let count = attached(&gateway.data);
        if count == routes {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            bail!("{} counts {count} routes after {LIMIT:?}, wanted {routes}", gateway.name_any());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Makes the routes of `range`, evenly over `within` if the apiserver keeps up.
pub(super) async fn make(
    place: &Place,
    range: std::ops::Range<usize>,
    within: Duration,
) -> anyhow::Result<()> {
    let make = |api: apiserver::Apiserver, at| async move {
        api.make(ROUTES, EDGE, objects::route(at)).await
    };
    apiserver::share(&place.clients, range, within, make).await
}

/// Makes `count` routes within that time on a Gateway that has none.
pub(super) async fn measure(
    place: &Place,
    count: usize,
    within: Duration,
) -> anyhow::Result<Burst> {
    let (gateways, _following) = Log::follow(place, GATEWAYS).await?;
    let (routes, _following_too) = Log::follow(place, ROUTES).await?;
    let (cpu, began) = (place.leader.cpu()?, Instant::now());
    make(place, 0..count, within).await?;
    let last = Instant::now();
    while gateways.seen().last().is_none_or(|seen| seen.attached != count) {
        if last.elapsed() > LIMIT {
            bail!("the Gateway does not count {count} routes after {LIMIT:?}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(AFTERMATH).await;
    place.rest().await?;
    let seen = gateways.seen();
    let right = seen.iter().rev().take_while(|seen| seen.attached == count).last();
    let counted_after =
        right.map_or(Duration::ZERO, |seen| seen.at.saturating_duration_since(last));
    let falls = seen.iter().zip(seen.iter().skip(1)).filter(|(a, b)| b.attached < a.attached);
    Ok(Burst {
        took: (last - began).as_secs_f64(),
        counted_after: counted_after.as_secs_f64(),
        gateway_writes: seen.len(),
        wrong_counts: falls.count(),
        route_writes: routes.seen().iter().filter(|seen| !seen.made).count(),
        cpu: (place.leader.cpu()? - cpu) * 1e3 / f64::from(u32::try_from(count.max(1))?),
    })
}
