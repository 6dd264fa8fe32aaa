// SPDX-License-Identifier: Apache-2.0

//! How soon an edited route is in force, and what an edit costs.
//!
//! Owns: the requests by which an edit is seen. They go on, one after the other on one
//! connection, from before the edit until an answer shows it; between two of them lies
//! [`PAUSE`], so that they leave the machine to those that are measured.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc as threads;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::json;
use tokio::sync::mpsc;

use super::Place;
use super::apiserver::{self, ROUTES};
use super::objects::{self, EDGE, MARK, MARK_AT};
use crate::edge::answer;
use crate::figures::quantile;

/// Between two requests. Shorter ones would be told sooner, and take more of the machine from what
/// is measured.
const PAUSE: Duration = Duration::from_millis(1);
/// Between two edits.
const REST: Duration = Duration::from_millis(30);
/// The longest that an edit may take to be in force.
const LIMIT: Duration = Duration::from_secs(20);

/// Milliseconds from an edit to the first answer that shows it.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits {
    /// From the watch event that an own watcher saw.
    pub(super) after_event: Vec<f64>,
    /// From the return of the write.
    pub(super) after_write: Vec<f64>,
}

impl Waits {
    /// Median and 99th percentile after the event.
    pub(super) fn event(&self) -> (f64, f64) {
        both(&self.after_event)
    }

    /// Median and 99th percentile after the write.
    pub(super) fn write(&self) -> (f64, f64) {
        both(&self.after_write)
    }
}

fn both(values: &[f64]) -> (f64, f64) {
    (quantile(values.to_vec(), 0.5), quantile(values.to_vec(), 0.99))
}

/// CPU of one edit, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cost {
    pub(super) controller: f64,
    pub(super) gateway: f64,
}

/// What is asked until the answer bears the mark.
struct Question {
    host: String,
    path: String,
    mark: String,
}

/// The number of the route that an edit changes: all over the place, in no order.
fn chosen(edit: usize, routes: usize) -> usize {
    edit.wrapping_mul(7919) % routes.max(1)
}

fn patch(route: usize, mark: &str) -> serde_json::Value {
    json!({"spec": {"rules": objects::rules(route, mark)}})
}

/// Edits one of `routes` routes again and again, and watches when it is in force.
pub(super) async fn follow(place: &Place, routes: usize, edits: usize) -> anyhow::Result<Waits> {
    let (ask, questions) = threads::channel::<Question>();
    let (tell, mut answers) = mpsc::unbounded_channel();
    let address = place.address;
    let asking = std::thread::spawn(move || {
        let asked = ask_all(address, &questions, &tell);
        if let Err(error) = asked {
            drop(tell.send(Err(error)));
        }
    });
    let mut events = place.api.watch(ROUTES, EDGE).await?;
    let (seen, mut marks) = mpsc::unbounded_channel();
    let watching = tokio::spawn(async move {
        loop {
            let event = apiserver::next(&mut events).await;
            let now = Instant::now();
            let mark = event.map(|(route, _)| {
                let mark = route.data.pointer(MARK_AT).and_then(|mark| mark.as_str());
                (now, mark.unwrap_or_default().to_owned())
            });
            if seen.send(mark).is_err() {
                return;
            }
        }
    });
    let mut waits = Waits::default();
    for edit in 0..edits {
        let route = chosen(edit, routes);
        let mark = place.mark();
        let (host, path) = objects::reached(route);
        ask.send(Question { host, path, mark: mark.clone() })?;
        tokio::time::sleep(REST).await;
        let name = objects::route_name(route);
        place.api.patch(ROUTES, EDGE, &name, &patch(route, &mark)).await?;
        let written = Instant::now();
        let event = loop {
            let (at, seen) = marks.recv().await.context("the watch of routes ended")??;
            if seen == mark {
                break at;
            }
        };
        let shown: Instant = answers.recv().await.context("nobody asks any more")??;
        let millis = |since: Instant| shown.saturating_duration_since(since).as_secs_f64() * 1e3;
        waits.after_event.push(millis(event));
        waits.after_write.push(millis(written));
    }
    watching.abort();
    drop(ask);
    asking.join().map_err(|_| anyhow::anyhow!("the thread that asks ended in disorder"))?;
    Ok(waits)
}

/// Connects, as soon as that works: what leads to a Gateway is there some moments after it is.
fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let began = Instant::now();
    loop {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Err(_) if began.elapsed() < LIMIT => std::thread::sleep(PAUSE * 50),
            done => return done,
        }
    }
}

/// Asks each question until it is answered as wanted, and tells when that was.
fn ask_all(
    address: SocketAddr,
    questions: &threads::Receiver<Question>,
    tell: &mpsc::UnboundedSender<anyhow::Result<Instant>>,
) -> anyhow::Result<()> {
    let stream = connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let mut stream = BufReader::new(stream);
    while let Ok(Question { host, path, mark }) = questions.recv() {
        let began = Instant::now();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        loop {
            stream.get_mut().write_all(request.as_bytes())?;
            if answer(&mut stream, MARK)? == mark {
                break;
            }
            if began.elapsed() > LIMIT {
                bail!("an edit is not in force after {LIMIT:?}: {host}{path}");
            }
            std::thread::sleep(PAUSE);
        }
        if tell.send(Ok(Instant::now())).is_err() {
            break;
        }
    }
    Ok(())
}

/// Edits routes, nobody asking meanwhile, and tells what one edit costs.
pub(super) async fn cost(place: &Place, routes: usize, edits: usize) -> anyhow::Result<Cost> {
    let before = (place.leader.cpu()?, place.gateway.cpu()?);
    for edit in 0..edits {
        let (route, mark) = (chosen(edit, routes), place.mark());
        let name = objects::route_name(route);
        place.api.patch(ROUTES, EDGE, &name, &patch(route, &mark)).await?;
        tokio::time::sleep(REST / 2).await;
    }
    // The last statuses are written by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let edits = f64::from(u32::try_from(edits.max(1))?);
    let each = |now: f64, before: f64| (now - before) * 1e3 / edits;
    Ok(Cost {
        controller: each(place.leader.cpu()?, before.0),
        gateway: each(place.gateway.cpu()?, before.1),
    })
}
