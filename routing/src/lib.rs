// SPDX-License-Identifier: Apache-2.0

//! What is where, and which way to go.
//!
//! Pure and deterministic: no IO, no clock, no lock; the caller gives time and
//! randomness. A [`snapshot::Snapshot`] holds all that a proxy knows,
//! [`discovery`] answers what is at an address. [`wire`] turns the
//! messages of the control plane into these types and back.

pub mod authorizations;
pub mod backend;
pub mod balance;
pub mod discovery;
pub mod edit;
pub mod filter;
pub mod gateway;
pub mod l4;
pub mod listener;
pub mod matching;
pub mod route;
pub mod snapshot;
pub mod split;
pub mod table;
#[cfg(feature = "wire")]
pub mod wire;
