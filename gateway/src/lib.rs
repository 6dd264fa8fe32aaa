// SPDX-License-Identifier: Apache-2.0

//! Waypoint and gateway at the edge: HTTP routing, authorization, TLS.
//!
//! # Life of a request
//!
//! 1. `listen.rs` accepts a connection on the main thread and hands it, once, to
//!    the least loaded core; `worker.rs` is what that core keeps.
//! 2. `listen/tcp.rs` reads what comes before the protocol: PROXY protocol, a
//!    ClientHello (`listen/hello.rs`), TLS (`tls/server.rs`). On the port of a
//!    waypoint `listen/hbone.rs` takes CONNECT streams with their proven peer
//!    and checks what they ask for.
//! 3. `http/serve.rs` reads a head through Pingora and calls `exchange.rs`, which
//!    loads the snapshot (`state.rs`) once and takes these steps:
//! 4. `exchange/authenticate.rs`: tokens of end users → claims, by `policy::jwt` with the keys of
//!    `jwt.rs`; a bad token: 401. `exchange/match_route.rs`: head → rule, by `routing::table`;
//!    none: 404.
//! 5. `exchange/admit.rs`: peer, head and claims → `Permit`, by `policy::authz`; no: 403.
//! 6. `exchange/edit.rs`: filters → edits, or an answer (redirect, preflight).
//!    `exchange/forwarded.rs` tells the backend where the request came from.
//! 7. `exchange/choose.rs`: permit → backend, then one endpoint after another.
//! 8. `exchange/carry.rs`: a connection of this core from `http/pool.rs`, or a
//!    new one by `dial.rs` (HBONE, TLS, plain); bodies both ways, deadlines,
//!    retries. `exchange/mirror.rs` sends copies beside it.
//! 9. `exchange/finish.rs`: metrics, access log, span. What went wrong on the
//!    way is a `Refusal`, and `reply.rs` says what each one looks like.
//!
//! TCP, TLS and UDP routes leave after step 2 for `l4.rs`.

#![forbid(unsafe_code)]

pub mod access_log;
mod admin;
pub mod app;
mod dial;
mod exchange;
pub mod http;
mod jwt;
mod l4;
mod listen;
pub mod metrics;
pub mod reply;
mod rewound;
pub mod settings;
mod state;
mod tls;
mod trace;
mod worker;
