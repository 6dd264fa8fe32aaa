// SPDX-License-Identifier: Apache-2.0

//! The hidden verb `waymark enter`: puts on the clothes of a pod, then becomes its command.
//!
//! Owns: joining namespaces, the pod's own view of `/run` and `/etc`, the exec.
//! It runs single-threaded and keeps its process id, so the supervisor waits for the
//! command itself.
//!
//! Start at [`run`].

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// What to join, what to put where, and what to become.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct EnterArgs {
    /// Network namespace to join.
    #[arg(long)]
    netns: Option<PathBuf>,

    /// Process whose mounts, host name and network to join.
    #[arg(long, conflicts_with_all = ["netns", "own_run", "bind", "hostname"])]
    pid: Option<i32>,

    /// Take over the variables of that process.
    #[arg(long, requires = "pid")]
    environment: bool,

    /// Hide the world's `/run` behind an empty one.
    #[arg(long)]
    own_run: bool,

    /// `SOURCE:TARGET`: show SOURCE at TARGET, read-only.
    #[arg(long)]
    bind: Vec<String>,

    /// Folder that shall be empty and private.
    #[arg(long)]
    scratch: Vec<PathBuf>,

    /// Host name to carry.
    #[arg(long)]
    hostname: Option<String>,

    /// Folder to start in.
    #[arg(long)]
    workdir: Option<PathBuf>,

    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Why a command could not be started in its pod.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnterError {
    /// A namespace could not be joined or made.
    #[error("cannot join the namespace {0}")]
    Namespace(String, #[source] std::io::Error),

    /// A mount failed.
    #[error("cannot mount over {0:?}")]
    Mount(PathBuf, #[source] std::io::Error),

    /// A `--bind` is not of the form `SOURCE:TARGET`.
    #[error("{0:?} is not SOURCE:TARGET")]
    Bind(String),

    /// There is nothing to run.
    #[error("no command given")]
    Empty,

    /// The command could not be run.
    #[error("cannot run {0:?}")]
    Exec(OsString, #[source] std::io::Error),
}

/// Becomes the command of `args`; returns only on failure.
///
/// # Errors
///
/// See [`EnterError`].
pub fn run(args: &EnterArgs) -> Result<std::convert::Infallible, EnterError> {
    let mut environment = Vec::new();
    if let Some(pid) = args.pid {
        if args.environment {
            environment = variables(pid)?;
        }
        join_process(pid)?;
    }
    if let Some(netns) = &args.netns {
        super::netns::join(netns)
            .map_err(|cause| EnterError::Namespace(netns.display().to_string(), cause))?;
    }
    let dressed = args.own_run
        || args.hostname.is_some()
        || !args.bind.is_empty()
        || !args.scratch.is_empty();
    if dressed {
        dress(args)?;
    }
    let (program, rest) = args.command.split_first().ok_or(EnterError::Empty)?;
    let mut command = Command::new(program);
    command.args(rest);
    if args.environment {
        // The caller's variables stay outside, but for what a terminal needs.
        let terminal = std::env::var_os("TERM").map(|value| (OsString::from("TERM"), value));
        command.env_clear().envs(terminal).envs(environment);
    }
    if let Some(folder) = &args.workdir {
        command.current_dir(folder);
    }
    Err(EnterError::Exec(program.clone(), command.exec()))
}

/// The variables of process `pid`.
fn variables(pid: i32) -> Result<Vec<(OsString, OsString)>, EnterError> {
    use std::os::unix::ffi::OsStringExt as _;
    let path = format!("/proc/{pid}/environ");
    let text = std::fs::read(&path).map_err(|cause| EnterError::Namespace(path, cause))?;
    let pair = |entry: &[u8]| {
        let at = entry.iter().position(|byte| *byte == b'=')?;
        let (name, value) = entry.split_at_checked(at)?;
        let value = value.get(1..)?.to_vec();
        Some((OsString::from_vec(name.to_vec()), OsString::from_vec(value)))
    };
    Ok(text.split(|byte| *byte == 0).filter_map(pair).collect())
}

/// Joins the network, host name and mounts of process `pid`, mounts last: `/proc` goes with them.
fn join_process(pid: i32) -> Result<(), EnterError> {
    let kinds = [
        ("net", LinkNameSpaceType::Network),
        ("uts", LinkNameSpaceType::HostNameAndNISDomainName),
        ("mnt", LinkNameSpaceType::Mount),
    ];
    let mut open = Vec::new();
    for (name, kind) in kinds {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = File::open(&path).map_err(|cause| EnterError::Namespace(path.clone(), cause))?;
        open.push((path, file, kind));
    }
    for (path, file, kind) in open {
        move_into_link_name_space(file.as_fd(), Some(kind))
            .map_err(|cause| EnterError::Namespace(path, cause.into()))?;
    }
    Ok(())
}

/// Gives the process mounts and a host name of its own.
fn dress(args: &EnterArgs) -> Result<(), EnterError> {
    let own =
        |cause: rustix::io::Errno| EnterError::Namespace("of its own".to_owned(), cause.into());
    #[expect(
        deprecated,
        reason = "the replacement is unsafe because of shared descriptors; these flags share none"
    )]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWUTS).map_err(own)?;
    // Parts of the world itself see namespaces that are made later; pods have no need to.
    let news = if args.own_run {
        MountPropagationFlags::PRIVATE
    } else {
        MountPropagationFlags::DOWNSTREAM
    };
    mount_change("/", news | MountPropagationFlags::REC).map_err(own)?;
    if let Some(name) = &args.hostname {
        rustix::system::sethostname(name.as_bytes()).map_err(own)?;
    }
    // Sources are held open before `/run` hides the place where they lie.
    let mut binds = Vec::new();
    for text in &args.bind {
        let (source, target) =
            text.split_once(':').ok_or_else(|| EnterError::Bind(text.clone()))?;
        let held = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|cause| EnterError::Mount(PathBuf::from(source), cause.into()))?;
        binds.push((held, PathBuf::from(target)));
    }
    check_visible(args)?;
    if args.own_run {
        empty(Path::new("/run"))?;
    }
    for folder in &args.scratch {
        empty(folder)?;
    }
    for (source, target) in &binds {
        bind(source, target)?;
    }
    Ok(())
}

/// Refuses a command that lies in a folder which shall be empty: it would vanish unseen.
fn check_visible(args: &EnterArgs) -> Result<(), EnterError> {
    let Some(program) = args.command.first() else { return Err(EnterError::Empty) };
    let path = Path::new(program);
    if path.is_absolute() && args.scratch.iter().any(|folder| path.starts_with(folder)) {
        let cause = std::io::Error::other("it lies in a folder that shall be empty");
        return Err(EnterError::Exec(program.clone(), cause));
    }
    Ok(())
}

fn empty(folder: &Path) -> Result<(), EnterError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount("tmpfs", folder, "tmpfs", flags, Some(c"mode=0755"))
        .map_err(|cause| EnterError::Mount(folder.to_owned(), cause.into()))
}

/// Shows the file or folder that `source` holds open at `target`.
fn bind(source: &OwnedFd, target: &Path) -> Result<(), EnterError> {
    let failed = |cause: std::io::Error| EnterError::Mount(target.to_owned(), cause);
    let held = format!("/proc/self/fd/{}", source.as_raw_fd());
    let is_folder = std::fs::metadata(&held).map_err(failed)?.is_dir();
    let place = place(target, is_folder).map_err(failed)?;
    mount_bind(held.as_str(), &place).map_err(|cause| failed(cause.into()))
}

/// Where to mount for `target`: behind links, and made if it may be made.
///
/// Only below `/run`, which is the pod's own by then, is anything created.
fn place(target: &Path, is_folder: bool) -> std::io::Result<PathBuf> {
    let mut path = target.to_owned();
    // As many links as the kernel follows.
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(next) => path = path.parent().unwrap_or(Path::new("/")).join(next),
            Err(_) => break,
        }
    }
    let path = match path.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => path,
    };
    if !path.exists() && path.starts_with("/run") {
        if is_folder {
            std::fs::create_dir_all(&path)?;
        } else {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/run")))?;
            File::create(&path)?;
        }
    }
    Ok(path)
}
