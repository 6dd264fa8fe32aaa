// SPDX-License-Identifier: Apache-2.0

//! The control plane: objects in; config, certificates, more objects and status out.
//!
//! Life of a change: an object is written or a file saved, [`source::kubernetes`] or
//! [`source::folder`] gives the objects that changed, of the namespaces that [`discovery`] takes;
//! [`store`] takes them; [`graph`] names the translators whose outputs read them;
//! [`translate`] makes resources, statuses and objects, purely; [`output`] finds what differs
//! from before; [`serve`] sends each client what concerns it and records what was
//! acknowledged; [`status`] lets conditions out once the data plane follows them;
//! [`provision`] writes the objects that run gateways. On Kubernetes the one that holds the
//! Lease ([`lead`]) writes. One task owns stores and graph
//! ([`app`]); all others get finished outputs. [`keys`] fetches the keys of token issuers, [`ca`]
//! signs certificates, [`admin`] answers the command line.

pub mod admin;
pub mod api;
pub mod app;
pub mod ca;
pub mod cli;
pub mod discovery;
pub mod graph;
pub mod install;
pub mod keys;
pub mod lead;
pub mod local;
pub mod metrics;
pub mod output;
pub mod provision;
pub mod serve;
pub mod settings;
pub mod source;
pub mod status;
pub mod steps;
pub mod store;
pub mod translate;
