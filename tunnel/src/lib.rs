// SPDX-License-Identifier: Apache-2.0

//! Node proxy of the mesh, and the parts that gateways share with it.
//!
//! Life of a connection:
//! 1. [`inpod`]: the agent hands over a pod's namespace; its ports are opened there.
//! 2. [`proxy::listen`] accepts, and gives the socket to the least loaded [`worker`].
//! 3. [`proxy::outbound`] asks `routing::l4` for the way to the original destination.
//! 4. [`hbone::pool`] opens a CONNECT as the pod, whose certificate [`credentials`] holds.
//! 5. [`proxy::inbound`], on the other node, checks it and asks `policy`.
//! 6. [`proxy::carry`] moves bytes until both ends have ended or the permit is withdrawn.
//!
//! What is where and who may do what comes over [`control`] into [`state`].
//! Gateways use `control`, `credentials`, `hbone`, `refused`, `state`, `trace` and
//! `worker` without the feature `node`.

#[cfg(feature = "node")]
pub mod access_log;
#[cfg(feature = "node")]
pub mod admin;
#[cfg(feature = "node")]
pub mod agent;
#[cfg(feature = "node")]
pub mod app;
pub mod control;
pub mod credentials;
#[cfg(feature = "node")]
pub mod dns;
#[cfg(feature = "node")]
pub mod drain;
pub mod hbone;
#[cfg(feature = "node")]
pub mod inpod;
#[cfg(feature = "node")]
pub mod metrics;
#[cfg(feature = "node")]
pub mod proxy;
pub mod refused;
#[cfg(feature = "node")]
pub mod settings;
#[cfg(feature = "node")]
pub mod share;
pub mod state;
pub mod sys;
pub mod trace;
pub mod worker;
