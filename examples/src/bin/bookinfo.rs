// SPDX-License-Identifier: Apache-2.0

//! Binary `bookinfo`: one of the four Bookinfo services, named by the first argument.

use clap::Parser;
use examples::bookinfo::{PORT, Role, run};

/// One of the four Bookinfo services.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which service to be.
    role: Role,
    /// The port to listen on, for IPv4 and IPv6.
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    run(arguments.role, arguments.port).await
}
