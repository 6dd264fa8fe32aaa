// SPDX-License-Identifier: Apache-2.0

//! Workloads and services: read, written and read again is the same.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target uses its own")]
mod checks;

use libfuzzer_sys::fuzz_target;
use routing::delta::Kind;

fuzz_target!(|bytes: &[u8]| {
    checks::resource(Kind::Address, bytes);
    checks::response_of(Kind::Address, "ns/name", bytes);
});
