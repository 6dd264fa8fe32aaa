// SPDX-License-Identifier: Apache-2.0

//! Protobuf to domain and back.
//!
//! Owns the generated messages and the conversions, one resource family per
//! file. A resource is taken whole or refused whole, with the exact reason.

pub mod authentication;
pub mod authorization;
pub mod backend;
pub mod ca;
pub mod discovery;
mod error;
pub mod gateway;
pub mod listener;
pub mod messages;
pub mod node;
pub mod roots;
pub mod route;
pub mod workload;
pub mod zds;

pub use error::{Names, WireError, chain, each};
