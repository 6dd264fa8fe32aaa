// SPDX-License-Identifier: Apache-2.0

//! Workers: one thread, one runtime, one set of pools and counters each.
//!
//! Owns the threads and the hand-over of work to the least loaded of them.
//! Leaves to its users what state a worker keeps: it is made on the worker's
//! own thread and never leaves it, so it needs no lock.
//!
//! Keeps: a task that was handed over stays on its worker until it ends.
//!
//! Start at [`Workers::start`].

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Work for a worker's thread: given the worker's state, starts a task.
type Job<S> = Box<dyn FnOnce(Rc<S>) + Send>;

/// All workers of a process; cloning is cheap.
pub struct Workers<S> {
    handles: Arc<[Worker<S>]>,
}

impl<S> Clone for Workers<S> {
    fn clone(&self) -> Self {
        Self { handles: Arc::clone(&self.handles) }
    }
}

impl<S> std::fmt::Debug for Workers<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers").field("count", &self.handles.len()).finish_non_exhaustive()
    }
}

/// Threads to wait for once their [`Workers`] were told to stop.
#[derive(Debug)]
pub struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Waits until every worker has ended; blocks.
    pub fn join(self) {
        for thread in self.0 {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

/// One worker, as seen from any thread.
pub struct Worker<S> {
    index: usize,
    load: Arc<AtomicUsize>,
    jobs: mpsc::UnboundedSender<Option<Job<S>>>,
}

impl<S> std::fmt::Debug for Worker<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("index", &self.index).field("load", &self.load).finish()
    }
}

/// Counts as load of its worker until dropped.
#[derive(Debug)]
pub struct Load(Arc<AtomicUsize>);

impl Drop for Load {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<S: 'static> Workers<S> {
    /// Starts `count` workers, at least one; `make` builds the state of each,
    /// given its index, on its own thread and inside its runtime.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be made.
    pub fn start<F>(count: usize, name: &str, make: F) -> io::Result<(Self, Threads)>
    where
        F: Fn(usize) -> S + Clone + Send + 'static,
    {
        let mut handles = Vec::new();
        let mut threads = Vec::new();
        for index in 0..count.max(1) {
            let (jobs, queue) = mpsc::unbounded_channel();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let make = make.clone();
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .spawn(move || run(&runtime, index, &make, queue))?;
            handles.push(Worker { index, load: Arc::default(), jobs });
            threads.push(thread);
        }
        Ok((Self { handles: handles.into() }, Threads(threads)))
    }

    /// Number of workers.
    #[must_use]
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// All workers, by index.
    pub fn iter(&self) -> impl Iterator<Item = &Worker<S>> {
        self.handles.iter()
    }

    /// The worker that carries the least, the first of equals; none only if
    /// there are no workers at all, which [`Workers::start`] rules out.
    #[must_use]
    pub fn least_loaded(&self) -> Option<&Worker<S>> {
        self.handles.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed))
    }

    /// Ends all workers at once; their tasks are dropped.
    pub fn stop(&self) {
        for worker in self.handles.iter() {
            // A worker that has ended already needs no word.
            drop(worker.jobs.send(None));
        }
    }
}

impl<S: 'static> Worker<S> {
    /// Index among the workers.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Counts one more piece of work on this worker.
    #[must_use]
    pub fn load(&self) -> Load {
        self.load.fetch_add(1, Ordering::Relaxed);
        Load(Arc::clone(&self.load))
    }

    /// Starts a task on this worker; a worker that was stopped drops it.
    pub fn run<F, T>(&self, task: F)
    where
        F: FnOnce(Rc<S>) -> T + Send + 'static,
        T: Future<Output = ()> + 'static,
    {
        let job: Job<S> = Box::new(move |state| {
            tokio::task::spawn_local(task(state));
        });
        drop(self.jobs.send(Some(job)));
    }
}

fn run<S: 'static>(
    runtime: &tokio::runtime::Runtime,
    index: usize,
    make: &impl Fn(usize) -> S,
    mut queue: mpsc::UnboundedReceiver<Option<Job<S>>>,
) {
    let tasks = LocalSet::new();
    tasks.block_on(runtime, async move {
        let state = Rc::new(make(index));
        while let Some(Some(job)) = queue.recv().await {
            job(Rc::clone(&state));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn work_goes_to_the_least_loaded_worker_and_stays_there() {
        let (workers, threads) = Workers::start(2, "test", |_| Cell::new(0)).unwrap();
        let first = workers.least_loaded().unwrap();
        let load = first.load();
        let second = workers.least_loaded().unwrap();
        assert_ne!(first.index(), second.index());
        drop(load);
        assert_eq!(workers.least_loaded().unwrap().index(), first.index());

        let mut names = BTreeSet::new();
        for worker in workers.iter() {
            for round in 1..=2 {
                let (tell, told) = oneshot::channel();
                worker.run(move |state: Rc<Cell<u32>>| async move {
                    state.set(state.get() + 1);
                    let name = std::thread::current().name().unwrap().to_owned();
                    tell.send((name, state.get())).unwrap();
                });
                let (name, count) = told.await.unwrap();
                assert_eq!(count, round, "state of {name} is its own and lasts");
                names.insert(name);
            }
        }
        assert_eq!(names.len(), 2);
        workers.stop();
        threads.join();
    }
}
