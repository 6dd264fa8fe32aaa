// SPDX-License-Identifier: Apache-2.0

//! Policies over sessions and over requests.
#![no_main]

#[path = "../checks.rs"]
#[allow(dead_code, reason = "each target uses its own")]
mod checks;

use libfuzzer_sys::fuzz_target;
use routing::delta::Kind;

fuzz_target!(|bytes: &[u8]| {
    for kind in [Kind::Authorization, Kind::GatewayAuthorization] {
        checks::resource(kind, bytes);
        checks::response_of(kind, "ns/name", bytes);
    }
});
