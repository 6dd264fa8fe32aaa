// SPDX-License-Identifier: Apache-2.0

//! The life of one pod: its namespace, its place in the mesh, its containers, its end.
//!
//! Owns: the order of these steps, as a kubelet and a container runtime take them. Every
//! change is told to the supervisor as an [`Event`]; the state is read from the [`Handle`].
//!
//! Keeps: containers of a pod in the mesh start only after its agent has proven the capture;
//! a pod that goes is out of all Services before its processes are asked to end.
//!
//! Start at [`start`].

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::cni::{self, CallError, PodNetwork};
use super::container::{State, Unit};
use crate::local::address::Pair;
use crate::local::netns;

/// Head start of the news that a pod goes over the request to its processes.
const NOTICE: Duration = Duration::from_millis(300);

/// From one try of a failed step to the next.
const RETRY: Duration = Duration::from_secs(1);

/// While the agent is only starting, its socket is looked for this often.
const AGENT_POLL: Duration = Duration::from_millis(50);

/// Something happened to a pod.
#[derive(Debug)]
pub(super) enum Event {
    /// Its state changed.
    Changed(String),
    /// It is gone with all it had.
    Gone(String),
}

/// The network of a pod that has its own.
#[derive(Clone, Debug)]
pub(super) struct Network {
    /// Name of its namespace.
    pub(super) netns: String,
    /// Its node.
    pub(super) node: String,
    /// The node's end of its link.
    pub(super) link: String,
    /// Its addresses.
    pub(super) pair: Pair,
    /// Its node's addresses on the pod bridge.
    pub(super) gateway: Pair,
    /// Socket of the node's agent.
    pub(super) agent: PathBuf,
    /// What the agent is told.
    pub(super) told: PodNetwork,
    /// Whether containers wait for the agent's answer.
    pub(super) enrolled: bool,
}

/// All that a pod needs to live.
#[derive(Debug)]
pub(super) struct Plan {
    /// Its UID.
    pub(super) uid: String,
    /// Its own network; none if it uses its node's.
    pub(super) network: Option<Network>,
    /// Containers that run one after the other, before the rest.
    pub(super) init: Vec<Unit>,
    /// Its containers.
    pub(super) main: Vec<Unit>,
}

/// What holds the containers up, if anything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sandbox {
    /// The network is there, and the agent has answered.
    pub(super) ready: bool,
    /// Why not yet.
    pub(super) waiting: Option<String>,
}

/// The supervisor's side of a living pod.
#[derive(Debug)]
pub(super) struct Handle {
    stop: watch::Sender<Option<Duration>>,
    /// Its network.
    pub(super) sandbox: watch::Receiver<Sandbox>,
    /// Its containers, in order of the spec.
    pub(super) containers: Vec<watch::Receiver<State>>,
    /// Its init containers.
    pub(super) init: Vec<watch::Receiver<State>>,
    /// Its network, for an agent that starts anew.
    pub(super) network: Option<Network>,
}

impl Handle {
    /// Asks the pod to go within `grace`.
    pub(super) fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
    }
}

/// Lets the pod of `plan` live; news go to `told`.
pub(super) fn start(plan: Plan, told: mpsc::UnboundedSender<Event>) -> Handle {
    let (stop, stopped) = watch::channel(None);
    let (sandbox, sandbox_state) = watch::channel(Sandbox::default());
    let channels = |units: &[Unit]| -> Vec<_> {
        units.iter().map(|_| watch::channel(State::default())).collect()
    };
    let (init, main) = (channels(&plan.init), channels(&plan.main));
    let receivers = |pairs: &[(watch::Sender<State>, watch::Receiver<State>)]| -> Vec<_> {
        pairs.iter().map(|(_, receiver)| receiver.clone()).collect()
    };
    let handle = Handle {
        stop,
        sandbox: sandbox_state,
        containers: receivers(&main),
        init: receivers(&init),
        network: plan.network.clone(),
    };
    for receiver in handle.containers.iter().chain(&handle.init) {
        tokio::spawn(report(receiver.clone(), plan.uid.clone(), told.clone()));
    }
    let senders = |pairs: Vec<(watch::Sender<State>, watch::Receiver<State>)>| -> Vec<_> {
        pairs.into_iter().map(|(sender, _)| sender).collect()
    };
    let life = Life { plan, stopped, sandbox, told, init: senders(init), main: senders(main) };
    tokio::spawn(life.run());
    handle
}

async fn report(
    mut state: watch::Receiver<State>,
    uid: String,
    told: mpsc::UnboundedSender<Event>,
) {
    while state.changed().await.is_ok() {
        if told.send(Event::Changed(uid.clone())).is_err() {
            return;
        }
    }
}

struct Life {
    plan: Plan,
    stopped: watch::Receiver<Option<Duration>>,
    sandbox: watch::Sender<Sandbox>,
    told: mpsc::UnboundedSender<Event>,
    init: Vec<watch::Sender<State>>,
    main: Vec<watch::Sender<State>>,
}

impl Life {
    async fn run(self) {
        let mut stop = self.stopped.clone();
        let begun = tokio::select! {
            () = self.make_sandbox() => true,
            _ = stop.wait_for(Option::is_some) => false,
        };
        if begun && self.run_init().await {
            self.run_main().await;
        }
        // A pod stays, ended or not, until it is told to go.
        drop(stop.wait_for(Option::is_some).await);
        self.remove_network().await;
        // A supervisor that is going needs no news.
        drop(self.told.send(Event::Gone(self.plan.uid.clone())));
    }

    async fn make_sandbox(&self) {
        self.make_network().await;
        self.set_sandbox(Sandbox { ready: true, waiting: None });
    }

    /// Runs the init containers in order; true if all succeeded.
    async fn run_init(&self) -> bool {
        for (unit, state) in self.plan.init.iter().zip(&self.init) {
            unit.run(state, self.notice()).await;
            let ended_well = state.borrow().exit_code == Some(0);
            if !ended_well {
                return false;
            }
        }
        true
    }

    /// Runs the containers to the end of all.
    async fn run_main(&self) {
        let mut running = JoinSet::new();
        for (unit, state) in self.plan.main.iter().zip(&self.main) {
            let (unit, state, stop) = (unit.clone(), state.clone(), self.notice());
            running.spawn(async move { unit.run(&state, stop).await });
        }
        while running.join_next().await.is_some() {}
    }

    /// The wish to stop, as containers see it: a moment after the world was told.
    fn notice(&self) -> watch::Receiver<Option<Duration>> {
        let mut stop = self.stopped.clone();
        let (tell, told) = watch::channel(None);
        tokio::spawn(async move {
            let wanted =
                stop.wait_for(Option::is_some).await.map(|grace| grace.unwrap_or_default());
            let grace = wanted.unwrap_or_default();
            sleep(NOTICE.min(grace)).await;
            tell.send_replace(Some(grace));
            // The channel must outlive its readers, who would take its end for haste.
            tell.closed().await;
        });
        told
    }

    async fn remove_network(&self) {
        let Some(network) = &self.plan.network else { return };
        if let Err(CallError::Refused(_) | CallError::Away(_)) =
            cni::call(&network.agent, "/cmddel", &network.told).await
        {
            // The agent sees by itself that the namespace is gone.
        }
        let name = network.netns.clone();
        drop(tokio::task::spawn_blocking(move || netns::remove(&name)).await);
    }

    async fn make_network(&self) {
        let Some(network) = self.plan.network.clone() else { return };
        loop {
            let wanted = network.clone();
            let made = tokio::task::spawn_blocking(move || {
                netns::make_pod(
                    &wanted.netns,
                    &wanted.node,
                    &wanted.link,
                    wanted.pair,
                    wanted.gateway,
                )
            })
            .await;
            match made {
                Ok(Ok(())) => break,
                Ok(Err(error)) => self.wait(describe(&error)).await,
                Err(error) => self.wait(error.to_string()).await,
            }
            let name = network.netns.clone();
            // Half of it may be there.
            drop(tokio::task::spawn_blocking(move || netns::remove(&name)).await);
        }
        if network.enrolled {
            self.enrol(&network).await;
        } else {
            // Pods outside the mesh wait for nobody; the agent still learns of them.
            let network = network.clone();
            tokio::spawn(async move { introduce(&network).await });
        }
    }

    async fn enrol(&self, network: &Network) {
        loop {
            match cni::call(&network.agent, "/cmdadd", &network.told).await {
                Ok(()) => return,
                Err(CallError::Away(_)) => {
                    self.set_sandbox(Sandbox {
                        ready: false,
                        waiting: Some("waiting for the node's agent".into()),
                    });
                    sleep(AGENT_POLL).await;
                }
                Err(error) => self.wait(describe(&error)).await,
            }
        }
    }

    async fn wait(&self, why: String) {
        self.set_sandbox(Sandbox { ready: false, waiting: Some(why) });
        sleep(RETRY).await;
    }

    fn set_sandbox(&self, state: Sandbox) {
        let changed =
            self.sandbox.send_if_modified(|old| std::mem::replace(old, state.clone()) != state);
        if changed {
            drop(self.told.send(Event::Changed(self.plan.uid.clone())));
        }
    }
}

/// Tells the agent of a pod, again until it listens.
pub(super) async fn introduce(network: &Network) {
    let path = crate::local::paths::netns(&network.netns);
    while path.exists() {
        match cni::call(&network.agent, "/cmdadd", &network.told).await {
            Ok(()) => return,
            Err(CallError::Away(_) | CallError::Refused(_)) => sleep(RETRY).await,
        }
    }
}

/// An error with its causes, in one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}
