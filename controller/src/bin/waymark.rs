// SPDX-License-Identifier: Apache-2.0

//! Binary `waymark`: the command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    controller::cli::run()
}
