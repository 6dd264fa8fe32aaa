// SPDX-License-Identifier: Apache-2.0

//! Writes the objects that run gateways.

pub mod manifest;
