// SPDX-License-Identifier: Apache-2.0

//! `waymark-cni`: the CNI plug-in. Asks the agent, or its file when the agent is away.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use tunnel::agent::plugin::{Invocation, run};

fn main() -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let invocation = Invocation {
        command: variable("CNI_COMMAND"),
        netns: variable("CNI_NETNS"),
        args: variable("CNI_ARGS"),
    };
    let mut input = String::new();
    // Input that cannot be read is refused as configuration that cannot be.
    let _len = std::io::stdin().read_to_string(&mut input);
    let output = run(&invocation, &input);
    if let Some(text) = output.text {
        let written = writeln!(std::io::stdout(), "{text}");
        if written.is_err() {
            return ExitCode::FAILURE;
        }
    }
    if output.success { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
