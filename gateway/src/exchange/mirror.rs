// SPDX-License-Identifier: Apache-2.0

//! Copies of requests; what comes back is dropped.
//!
//! A mirror never slows the request: its pieces wait in a bounded queue, a
//! queue that is full ends the copy, and copies beyond the limit are not made.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use routing::route::BackendTarget;
use tokio::sync::mpsc;

use super::Asked;
use super::choose::{Chosen, of_target};
use super::edit::Plan;
use crate::http::{Body, Carry, Downstream, Protocol, RequestHead, mirror};
use crate::state::OfCore;
use crate::worker::Worker;

/// Starts the copies that `plan` asks for; their bodies come by `bodies`.
pub(super) fn send(
    asked: &Asked<'_>,
    plan: &Plan<'_>,
    head: &RequestHead,
    down: &Downstream,
    bodies: &mut Carry,
) {
    for target in plan.mirrors() {
        let Some(place) = asked.worker.admit_mirror() else {
            tracing::debug!("too many mirrored requests at once");
            continue;
        };
        let limit = asked.worker.shared.settings.limits.mirror_queue;
        let (queue, pieces) = mpsc::channel(limit);
        let body = down.body();
        if body != Body::None {
            bodies.mirror(queue);
        }
        let mut head = head.clone();
        head.without_upgrade();
        let (worker, loaded) = (Rc::clone(asked.worker), Rc::clone(asked.loaded));
        let (target, grpc) = (target.clone(), asked.grpc);
        let visited = (asked.remote, asked.arrival.visited.clone());
        tokio::task::spawn_local(async move {
            let copied = copy(&worker, &loaded, &target, grpc, visited);
            let limit = worker.shared.settings.limits.mirror_time;
            let result = Box::pin(tokio::time::timeout(limit, async {
                let up = copied.await?;
                mirror(up, head, body, pieces).await.map_err(|error| error.to_string())
            }));
            match result.await {
                Ok(Ok(status)) => tracing::debug!(status = status.as_u16(), "mirrored"),
                Ok(Err(error)) => tracing::debug!(error, "mirror failed"),
                Err(_) => tracing::debug!("mirror took too long"),
            }
            drop(place);
        });
    }
}

/// A place at an endpoint of the mirror.
async fn copy(
    worker: &Rc<Worker>,
    loaded: &Rc<OfCore>,
    target: &BackendTarget,
    grpc: bool,
    (client, visited): (IpAddr, Option<Arc<str>>),
) -> Result<crate::http::Upstream, String> {
    let backend = of_target(loaded, target, &[]).map_err(|refusal| refusal.to_string())?;
    let protocol: Protocol = backend.protocol(grpc, false);
    let chosen = Chosen::new(worker, loaded, &backend, protocol, (client, visited.as_ref()));
    let mut chosen = chosen.map_err(|refusal| refusal.to_string())?;
    let target = chosen.next().await.ok_or("no endpoint")?;
    let target = target.map_err(|error| error.to_string())?;
    let upstream =
        worker.upstreams.get(target.key(), target.protocol(), async || target.dial(worker).await);
    upstream.await.map_err(|error| error.to_string())
}
