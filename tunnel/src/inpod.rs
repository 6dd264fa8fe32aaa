// SPDX-License-Identifier: Apache-2.0

//! Pods on this node, as the agent hands them over.

pub mod proof;
