// SPDX-License-Identifier: Apache-2.0

//! Node proxy of the mesh, and the parts that gateways share with it.

#[cfg(feature = "node")]
pub mod agent;
pub mod control;
pub mod credentials;
pub mod hbone;
#[cfg(feature = "node")]
pub mod inpod;
pub mod state;
pub mod sys;
pub mod worker;
