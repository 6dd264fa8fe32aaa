// SPDX-License-Identifier: Apache-2.0

//! The mesh leaves the node: everything that was put there goes.
//!
//! Owns: what the controller says of the mesh as a whole, and when it is carried out: the
//! plug-in is out of the chain ([`super::install`]), every pod is out of the mesh (each by its
//! own [`super::enrol`] course, as the controller lets it go), then the node's own rules and
//! the agent's files go. Says which order was carried out.
//!
//! Keeps: an agent that ends for any other reason takes nothing away. An order that is taken
//! back ends the agent: the next one begins anew.
//!
//! Start at [`follow`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use super::Agent;
use super::install::Standing;

/// How often it is looked whether everything is out.
const PERIOD: Duration = Duration::from_secs(1);

/// What the controller says of the mesh as a whole.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Order {
    /// Nothing yet: what is there stays as it is.
    #[default]
    Unknown,
    /// It stays.
    Stay,
    /// It leaves the node; the order's name.
    Leave(Arc<str>),
}

/// Carries out the order to leave; ends when one that was carried out is taken back.
pub async fn follow(agent: &Arc<Agent>) {
    let mut order = agent.order.subscribe();
    let mut changed = agent.changed();
    let mut plugin = agent.plugin.subscribe();
    loop {
        let now = order.borrow_and_update().clone();
        let _count = *changed.borrow_and_update();
        let gone = matches!(*plugin.borrow_and_update(), Standing::Removed | Standing::NotOurs);
        if let Order::Leave(id) = now
            && gone
            && agent.node().is_out()
        {
            match clear(agent).await {
                Ok(()) => return left(agent, &id, order).await,
                Err(reason) => warn!(reason, "node cannot be cleared; it is tried again"),
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            Ok(()) = order.changed() => {}
            Ok(()) = changed.changed() => {}
            Ok(()) = plugin.changed() => {}
        }
    }
}

/// Takes the node's rules and the agent's files away.
async fn clear(agent: &Agent) -> Result<(), String> {
    agent.host.remove().await.map_err(super::text)?;
    // From here on nothing is written there.
    agent.cleared.send_replace(true);
    agent.state.clear().map_err(super::text)?;
    for file in agent.own_files() {
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", file.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

/// Reports, until the mesh is to stay after all.
async fn left(agent: &Agent, id: &Arc<str>, mut order: watch::Receiver<Order>) {
    info!("nothing of the mesh is left on this node");
    agent.left.send_replace(Arc::clone(id));
    agent.report_again();
    loop {
        match &*order.borrow_and_update() {
            Order::Stay => break,
            Order::Leave(next) if next != id => {
                agent.left.send_replace(Arc::clone(next));
                agent.report_again();
            }
            Order::Leave(_) | Order::Unknown => {}
        }
        if order.changed().await.is_err() {
            break;
        }
    }
    info!("the mesh stays after all; the agent begins anew");
}
