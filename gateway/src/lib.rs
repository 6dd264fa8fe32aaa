// SPDX-License-Identifier: Apache-2.0

//! Waypoint and gateway at the edge: HTTP routing, authorization, TLS.

#![forbid(unsafe_code)]

pub mod access_log;
mod admin;
pub mod app;
mod dial;
mod exchange;
pub mod http;
mod l4;
mod listen;
pub mod metrics;
pub mod reply;
pub mod settings;
mod state;
mod tls;
mod trace;
mod worker;
