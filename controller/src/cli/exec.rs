// SPDX-License-Identifier: Apache-2.0

//! `waymark exec`: runs a command in a pod, with its network, files and variables.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use serde_json::Value;

use super::Failure;
use super::world::{World, WorldArgs};

/// Arguments of `waymark exec`.
#[derive(clap::Args, Debug)]
pub(super) struct ExecArgs {
    /// Pod, or the beginning of its name.
    pod: String,
    /// Namespace of the pod; any by default.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Container; the first by default.
    #[arg(short, long)]
    container: Option<String>,
    #[command(flatten)]
    world: WorldArgs,
    /// The command, after `--`.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command.
pub(super) fn exec(args: &ExecArgs) -> Result<ExitCode, Failure> {
    let world = World::find(&args.world)?;
    let pod = world.pod(&args.pod, args.namespace.as_deref())?;
    let pid = process_of(&pod, args.container.as_deref())?;
    let own = std::env::current_exe().map_err(Failure::from_error)?;
    let mut command = Command::new("nsenter");
    command.args(["--target", &world.init.to_string(), "--mount", "--net", "--pid", "--uts"]);
    if other_user_namespace(world.init) {
        command.args(["--user", "--preserve-credentials"]);
    }
    command
        .arg("--")
        .arg(own)
        .args(["enter", "--pid", &pid.to_string(), "--environment", "--"])
        .args(&args.command);
    Err(Failure::from_error(command.exec()))
}

/// Process id, inside the world, of the container meant.
fn process_of(pod: &Value, container: Option<&str>) -> Result<i32, Failure> {
    let statuses =
        pod.pointer("/status/containerStatuses").and_then(Value::as_array).into_iter().flatten();
    let name =
        |status: &Value| status.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let found =
        statuses.into_iter().find(|status| container.is_none_or(|wanted| name(status) == wanted));
    let running = found.and_then(|status| status.get("containerID").and_then(Value::as_str));
    running
        .and_then(|id| id.strip_prefix("process://"))
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(|| Failure {
            message: "no such container runs; see: waymark get pods".to_owned(),
            code: 1,
        })
}

fn other_user_namespace(init: i32) -> bool {
    let link = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
    link("self") != link(&init.to_string())
}
