// SPDX-License-Identifier: Apache-2.0

//! What a gateway serves; the first byte chooses the kind.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target uses its own")]
mod checks;

use libfuzzer_sys::fuzz_target;
use routing::delta::Kind;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let kind = Kind::ALL[usize::from(*first) % Kind::ALL.len()];
    checks::resource(kind, bytes);
    checks::response_of(kind, "ns/name", bytes);
});
