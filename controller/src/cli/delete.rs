// SPDX-License-Identifier: Apache-2.0

//! `waymark delete`: lets a pod go; its owner makes another.

use std::process::ExitCode;

use http::Method;
use serde_json::Value;

use super::world::{World, WorldArgs};
use super::{Failure, out};
use crate::local::paths;

/// Arguments of `waymark delete`.
#[derive(clap::Args, Debug)]
pub(super) struct DeleteArgs {
    /// Pod, or the beginning of its name; `pod NAME` is understood too.
    #[arg(required = true, num_args = 1..=2)]
    pod: Vec<String>,
    /// Namespace of the pod; any by default.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Seconds until its processes are made to end; its own by default.
    #[arg(long)]
    grace: Option<u64>,
    #[command(flatten)]
    world: WorldArgs,
}

/// Deletes the pod that `args` means.
pub(super) fn delete(args: &DeleteArgs) -> Result<ExitCode, Failure> {
    let name = match args.pod.as_slice() {
        [kind, name] if ["pod", "pods", "po"].contains(&kind.as_str()) => name,
        [name] => name,
        _ => {
            return Err(Failure {
                message: "only pods can be deleted; other objects live in files".into(),
                code: 2,
            });
        }
    };
    let world = World::find(&args.world)?;
    let pod = world.pod(name, args.namespace.as_deref())?;
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let grace = args.grace.map_or_else(String::new, |seconds| format!("?grace={seconds}"));
    let path = format!("/pods/{}/{}{grace}", text("/metadata/namespace"), text("/metadata/name"));
    let answer = world.ask(paths::SUPERVISOR_SOCKET, Method::DELETE, &path)?;
    if !answer.status.is_success() {
        let message = String::from_utf8_lossy(&answer.body).into_owned();
        return Err(Failure { message, code: 1 });
    }
    out(&format!("pod {}/{} deleted\n", text("/metadata/namespace"), text("/metadata/name")));
    Ok(ExitCode::SUCCESS)
}
