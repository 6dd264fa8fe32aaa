// SPDX-License-Identifier: Apache-2.0

//! Allocations that one request costs the HTTP engine alone: no routes, no policy, no TLS.
//!
//! `cargo bench -p waymark-gateway --bench relay_allocations`. Exact and repeatable.

#[path = "relay/work.rs"]
mod work;

use std::alloc::System;

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() -> anyhow::Result<()> {
    let counts = || {
        let stats = ALLOCATOR.stats();
        Some((stats.allocations + stats.reallocations, stats.bytes_allocated))
    };
    work::main(counts, None)
}
