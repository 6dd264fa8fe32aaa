// SPDX-License-Identifier: Apache-2.0

//! Small services that the example folders run.
//!
//! Owns: the four Bookinfo services, an HTTP server and client just large enough for
//! them. Leaves everything about the mesh to the mesh: the services speak plain HTTP,
//! open a new connection for each call, and know nothing of identities or routes.
//!
//! Start at [`bookinfo::run`].

pub mod bookinfo;
pub mod http_call;
pub mod http_serve;
