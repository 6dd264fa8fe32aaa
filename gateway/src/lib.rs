// SPDX-License-Identifier: Apache-2.0

//! Waypoint and gateway at the edge: HTTP routing, authorization, TLS.

#![forbid(unsafe_code)]

pub mod access_log;
pub mod http;
mod listen;
pub mod metrics;
pub mod reply;
pub mod settings;
mod tls;
