// SPDX-License-Identifier: Apache-2.0

//! What is where, and which way to go.
//!
//! Pure and deterministic: no IO, no clock, no lock; the caller gives time and
//! randomness. A [`snapshot::Snapshot`] holds all that a proxy knows,
//! [`delta::apply`] makes the next one, [`l4::resolve`] says where a connection
//! goes. [`wire`] turns the messages of the control plane into these types and
//! back; [`stream`] is the protocol that carries them, as state machines.

pub mod authentications;
pub mod authorizations;
pub mod backend;
pub mod balance;
pub mod delta;
pub mod discovery;
pub mod edit;
pub mod explain;
pub mod filter;
pub mod gateway;
pub mod l4;
pub mod listener;
pub mod matching;
pub mod node;
pub mod ports;
pub mod route;
pub mod serving;
pub mod snapshot;
pub mod split;
#[cfg(feature = "wire")]
pub mod stream;
pub mod table;
#[cfg(feature = "wire")]
pub mod wire;
