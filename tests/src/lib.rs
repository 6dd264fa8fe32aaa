// SPDX-License-Identifier: Apache-2.0

//! Harness for tests of the whole: load, peers, topologies.
//!
//! Owns: generators that count every request they send, servers that answer them, and
//! what builds the places in which both run. Used by the tests and benchmarks of this
//! package alone; nothing that ships depends on it.

#![allow(
    clippy::missing_errors_doc,
    clippy::large_futures,
    clippy::too_many_arguments,
    reason = "a failure of the harness ends the test that met it, and says where"
)]

pub mod backend;
pub mod certs;
pub mod collector;
pub mod load;
pub mod mesh;
pub mod netns;
pub mod node;
pub mod tokens;
pub mod waypoint;
pub mod wire;
pub mod world;
