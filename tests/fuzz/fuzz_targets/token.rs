// SPDX-License-Identifier: Apache-2.0

//! A token that a client sends, and a key set that an issuer answers with.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target uses its own")]
mod checks;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    checks::token(bytes);
    checks::key_set(bytes);
});
