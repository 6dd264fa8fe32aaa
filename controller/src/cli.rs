// SPDX-License-Identifier: Apache-2.0

//! The verbs of `waymark`, one file each.
//!
//! Owns: the command line, exit codes, and how errors are shown. Exit codes: 0 all well;
//! 1 it failed; 2 the command line was wrong; 3 nothing is running to ask.
//!
//! Start at [`run`].

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::local::{UpOptions, enter::EnterArgs};

mod ask;
mod check;
mod cluster;
mod delete;
mod exec;
mod explain;
mod format;
mod get;
mod images;
mod install;
mod logs;
mod manifest;
mod mesh;
mod policies;
mod rotate;
mod status;
pub(crate) mod table;
mod uninstall;
mod up;
mod workloads;
mod world;

/// A service mesh and gateway without sidecars.
#[derive(Debug, Parser)]
#[command(name = "waymark", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a folder of Kubernetes YAML as a whole mesh on this machine.
    Up(UpOptions),
    /// Show whether the mesh is well, and what was refused and why.
    Status(status::StatusArgs),
    /// List workloads: address, node, waypoint, protocol, identity.
    #[command(alias = "workload")]
    Workloads(workloads::WorkloadsArgs),
    /// List policies in force.
    #[command(alias = "policy")]
    Policies(policies::PoliciesArgs),
    /// Follow a connection or request: every step, and what decides.
    Explain(explain::ExplainArgs),
    /// List objects with their status.
    Get(get::GetArgs),
    /// Show what a pod has written.
    Logs(logs::LogsArgs),
    /// Run a command in a pod.
    Exec(exec::ExecArgs),
    /// Let a pod go; its owner makes another.
    Delete(delete::DeleteArgs),
    /// Replace the mesh's own root certificate while everything runs.
    RotateRoot(rotate::RotateArgs),
    /// Look whether the mesh fits into a cluster, and whether every part of it works there.
    Check(check::CheckArgs),
    /// Install the mesh into a cluster.
    Install(install::InstallArgs),
    /// Bring an installation to the version of this program, part by part.
    Upgrade(install::InstallArgs),
    /// Take the mesh out of a cluster: pods leave it first, then everything goes.
    Uninstall(uninstall::UninstallArgs),
    /// Print the objects of an installation.
    Manifest(manifest::ManifestArgs),
    /// Write container images of these programs, as OCI archives.
    Images(images::ImagesArgs),
    /// Print the completion script of a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the version.
    Version,
    /// First process of a world.
    #[command(hide = true)]
    World(UpOptions),
    /// Supervisor of a world.
    #[command(hide = true)]
    Supervise(UpOptions),
    /// Run a command inside a pod's namespaces.
    #[command(hide = true)]
    Enter(EnterArgs),
}

/// Runs the command line of this process.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.verb {
        Verb::Up(options) => up::up(options),
        Verb::Status(args) => status::status(&args),
        Verb::Workloads(args) => workloads::workloads(&args),
        Verb::Policies(args) => policies::policies(&args),
        Verb::Explain(args) => explain::explain(&args),
        Verb::Get(args) => get::get(&args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Exec(args) => exec::exec(&args),
        Verb::Delete(args) => delete::delete(&args),
        Verb::RotateRoot(args) => rotate::rotate(&args),
        Verb::Check(args) => check::check(&args),
        Verb::Install(args) => install::install(&args),
        Verb::Upgrade(args) => install::upgrade(&args),
        Verb::Uninstall(args) => uninstall::uninstall(&args),
        Verb::Manifest(args) => manifest::manifest(&args),
        Verb::Images(args) => images::images(&args),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "waymark", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Version => {
            out(concat!("waymark ", env!("CARGO_PKG_VERSION"), "\n"));
            Ok(ExitCode::SUCCESS)
        }
        Verb::World(options) => crate::local::world::init(&options).map_err(Failure::from_error),
        Verb::Supervise(options) => {
            crate::local::supervise::run(options).map_err(Failure::from_error)
        }
        Verb::Enter(args) => match crate::local::enter::run(&args) {
            Ok(never) => match never {},
            Err(error) => Err(Failure::from_error(error)),
        },
    };
    done.unwrap_or_else(|failure| {
        complain(&failure.message);
        ExitCode::from(failure.code)
    })
}

/// What went wrong, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// An ordinary failure, with all its causes in one line.
    fn from_error(error: impl std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            message += &format!(": {inner}");
            cause = inner.source();
        }
        Self { message, code: 1 }
    }
}

/// Writes one line to the error output; a reader that is gone does not matter.
fn complain(message: &str) {
    drop(writeln!(std::io::stderr(), "waymark: {message}"));
}

/// Writes a result; a reader that is gone does not matter.
fn out(text: &str) {
    drop(std::io::stdout().write_all(text.as_bytes()));
}
