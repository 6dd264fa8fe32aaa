// SPDX-License-Identifier: Apache-2.0

//! `waymark logs`: what a pod's containers have written.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

use super::Failure;
use super::world::{World, WorldArgs};
use crate::local::paths;

/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(200);

/// Arguments of `waymark logs`.
#[derive(clap::Args, Debug)]
pub(super) struct LogsArgs {
    /// Pod, or the beginning of its name; `controller` for the controller.
    pod: String,
    /// Namespace of the pod; any by default.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Container; the first by default.
    #[arg(short, long)]
    container: Option<String>,
    /// Go on as more is written.
    #[arg(short, long)]
    follow: bool,
    /// Show only so many lines of what is there.
    #[arg(long)]
    tail: Option<usize>,
    #[command(flatten)]
    world: WorldArgs,
}

/// Shows the log that `args` means.
pub(super) fn logs(args: &LogsArgs) -> Result<ExitCode, Failure> {
    let world = World::find(&args.world)?;
    let file = log_file(&world, args)?;
    let mut open = std::fs::File::open(&file).map_err(|cause| Failure {
        message: format!("nothing was written yet ({cause})"),
        code: 1,
    })?;
    let mut text = Vec::new();
    open.read_to_end(&mut text).map_err(Failure::from_error)?;
    write(last_lines(&text, args.tail))?;
    while args.follow && file.exists() {
        std::thread::sleep(FOLLOW);
        // A log that was cut is read from its new beginning.
        let length = open.metadata().map_err(Failure::from_error)?.len();
        if length < open.stream_position().map_err(Failure::from_error)? {
            open.seek(SeekFrom::Start(0)).map_err(Failure::from_error)?;
        }
        let mut more = Vec::new();
        open.read_to_end(&mut more).map_err(Failure::from_error)?;
        write(&more)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn log_file(world: &World, args: &LogsArgs) -> Result<PathBuf, Failure> {
    if args.pod == "controller" {
        let path = paths::log("istio-system", "waymark-controller", "controller");
        return Ok(outside(world, &path));
    }
    let pod = world.pod(&args.pod, args.namespace.as_deref())?;
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let containers =
        pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let init = pod.pointer("/spec/initContainers").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&str> = containers
        .chain(init)
        .filter_map(|container| container.get("name").and_then(Value::as_str))
        .collect();
    let container = match &args.container {
        None => names.first().copied().unwrap_or_default(),
        Some(name) => names.iter().find(|have| *have == name).copied().ok_or_else(|| Failure {
            message: format!("no container {name}; there are {}", names.join(", ")),
            code: 1,
        })?,
    };
    Ok(outside(world, &paths::log(text("/metadata/namespace"), text("/metadata/name"), container)))
}

fn outside(world: &World, path: &Path) -> PathBuf {
    world.path(&path.display().to_string())
}

/// The end of `text` that holds `lines` lines; all of it without a limit.
fn last_lines(text: &[u8], lines: Option<usize>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let ends = text.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    // The last line ends with a break of its own.
    let skip = usize::from(text.last() == Some(&b'\n'));
    let start = ends.skip(skip).nth(lines.saturating_sub(1)).map_or(0, |at| at + 1);
    if lines == 0 { &[] } else { text.get(start..).unwrap_or_default() }
}

fn write(text: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout();
    out.write_all(text).and_then(|()| out.flush()).map_err(Failure::from_error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_whole_lines() {
        let cases = [
            ("a\nb\nc\n", None, "a\nb\nc\n"),
            ("a\nb\nc\n", Some(2), "b\nc\n"),
            ("a\nb\nc", Some(2), "b\nc"),
            ("a\nb\n", Some(9), "a\nb\n"),
            ("a\n", Some(0), ""),
        ];
        for (text, lines, want) in cases {
            assert_eq!(last_lines(text.as_bytes(), lines), want.as_bytes(), "{text:?} {lines:?}");
        }
    }
}
