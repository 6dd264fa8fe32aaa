// SPDX-License-Identifier: Apache-2.0

//! Node proxy of the mesh, and the parts that gateways share with it.

#[cfg(feature = "node")]
pub mod agent;
#[cfg(feature = "node")]
pub mod inpod;
pub mod sys;
