// SPDX-License-Identifier: Apache-2.0

//! A whole response of the discovery stream.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target uses its own")]
mod checks;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    checks::delta_response(bytes);
});
