// SPDX-License-Identifier: Apache-2.0

//! Node proxy of the mesh, and the parts that gateways share with it.

pub mod sys;
