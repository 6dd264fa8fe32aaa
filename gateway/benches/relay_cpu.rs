// SPDX-License-Identifier: Apache-2.0

//! CPU that one request costs the HTTP engine alone: no routes, no policy, no TLS.
//!
//! `taskset -c 0,1 cargo bench -p waymark-gateway --bench relay_cpu`, beside nginx if it is there.

#[path = "relay/work.rs"]
mod work;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> anyhow::Result<()> {
    work::main(|| None, None)
}
