// SPDX-License-Identifier: Apache-2.0

//! The walls of a local world: its namespaces, its init, and the way in from `localhost`.
//!
//! Owns: [`launch`], which runs outside and makes the namespaces by `unshare`; [`init`],
//! which is PID 1 inside, prepares the mounts, starts the supervisor and reaps.
//! Leaves everything inside to [`super::supervise`].
//!
//! Keeps: the world ends when its launcher does, however that ends. The kernel kills
//! `unshare` with the launcher, init with `unshare`, and every process with init;
//! mounts, links, rules and namespaces go with their last process. A launcher that is
//! asked to stop closes the pipe that is init's standard input, and init then stops
//! the supervisor in good order.

use std::ffi::OsString;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process};
use tokio::signal::unix::{SignalKind, signal};

use super::{LocalError, UpOptions, paths};

/// How long init waits for the supervisor's good order before it ends the world anyway.
const STOP_LIMIT: Duration = Duration::from_secs(40);

/// Where the tools lie that an ordinary user's search path may leave out.
const TOOL_FOLDERS: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Tools that a world needs, with the Debian package of each.
const TOOLS: [(&str, &str); 4] =
    [("unshare", "util-linux"), ("setpriv", "util-linux"), ("ip", "iproute2"), ("nft", "nftables")];

/// Kernel settings that forbid user namespaces, with the value that does.
const FORBIDDERS: [(&str, &str, &str); 3] = [
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("user.max_user_namespaces", "0", "10000"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
];

/// Makes a world for `options` and waits for its end.
///
/// # Errors
///
/// See [`LocalError`]; nothing is left behind then.
pub fn launch(options: &UpOptions) -> Result<ExitCode, LocalError> {
    check_tools()?;
    let root = rustix::process::geteuid().is_root();
    if !root {
        check_user_namespaces()?;
    }
    let listeners = listen(options.port)?;
    // Port 0 let the system choose; inside, the choice is said.
    let chosen = listeners.first().and_then(|listener| listener.local_addr().ok());
    let options = &UpOptions {
        port: chosen.map_or(options.port, |address| address.port()),
        ..options.clone()
    };
    let passed = pass(&listeners).map_err(LocalError::Launch)?;
    let mut child = command(options, root, &passed)?.spawn().map_err(LocalError::Launch)?;
    // The world holds the listeners now; a second world on this port must be refused by it.
    drop((listeners, passed));
    super::runtime()?.block_on(wait(&mut child))
}

/// Opens the user's door on both loopback addresses, on one port.
fn listen(port: u16) -> Result<Vec<TcpListener>, LocalError> {
    let taken = |cause| LocalError::Listen { port, cause };
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(taken)?;
    let port = first.local_addr().map_err(taken)?.port();
    let mut listeners = vec![first];
    match TcpListener::bind((Ipv6Addr::LOCALHOST, port)) {
        Ok(second) => listeners.push(second),
        // A host without IPv6 still gets its door.
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrNotAvailable => {}
        Err(cause) if cause.raw_os_error() == Some(AF_NOT_SUPPORTED) => {}
        Err(cause) => return Err(taken(cause)),
    }
    Ok(listeners)
}

/// `EAFNOSUPPORT`: the kernel has no IPv6 at all.
const AF_NOT_SUPPORTED: i32 = 97;

/// Copies of `listeners` with descriptors in a row that outlive an exec.
fn pass(listeners: &[TcpListener]) -> std::io::Result<Vec<OwnedFd>> {
    let mut base = 64;
    loop {
        let mut copies: Vec<OwnedFd> = Vec::new();
        for listener in listeners {
            let lowest = copies.last().map_or(base, |last| last.as_raw_fd() + 1);
            copies.push(rustix::io::fcntl_dupfd_cloexec(listener, lowest)?);
        }
        let in_a_row = copies.windows(2).all(|pair| match pair {
            [one, two] => two.as_raw_fd() == one.as_raw_fd() + 1,
            _ => true,
        });
        if in_a_row {
            for copy in &copies {
                rustix::io::fcntl_setfd(copy, rustix::io::FdFlags::empty())?;
            }
            return Ok(copies);
        }
        base += 16;
    }
}

/// The command that makes the namespaces and runs init in them.
fn command(options: &UpOptions, root: bool, passed: &[OwnedFd]) -> Result<Command, LocalError> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "unshare", "--mount", "--pid", "--fork"]);
    command.args(["--kill-child", "--mount-proc", "--net", "--uts", "--ipc"]);
    if !root {
        command.args(["--user", "--map-root-user"]);
    }
    let own = std::env::current_exe().map_err(LocalError::Launch)?;
    command.arg("--").arg(own).arg("world").args(options.to_args());
    command.env("PATH", search_path());
    if let Some(first) = passed.first() {
        command.env("LISTEN_FDS", passed.len().to_string());
        command.env("LISTEN_FDS_FIRST_FD", first.as_raw_fd().to_string());
        command.env_remove("LISTEN_PID");
    }
    // A group of its own: a key pressed at the terminal reaches the launcher alone.
    command.process_group(0);
    command.stdin(Stdio::piped());
    Ok(command)
}

fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    if !path.is_empty() {
        path.push(":");
    }
    path.push(TOOL_FOLDERS);
    path
}

/// Waits for the world's end; the first wish to stop is passed on, the second ends it at once.
async fn wait(child: &mut Child) -> Result<ExitCode, LocalError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(LocalError::Launch)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(LocalError::Launch)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(LocalError::Launch)?;
    let mut ended = signal(SignalKind::child()).map_err(LocalError::Launch)?;
    loop {
        if let Some(status) = child.try_wait().map_err(LocalError::Launch)? {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            return Ok(ExitCode::from(code));
        }
        tokio::select! {
            _ = ended.recv() => continue,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
        if child.stdin.take().is_none() {
            child.kill().map_err(LocalError::Launch)?;
        }
    }
}

/// Names the packages of tools that are missing.
fn check_tools() -> Result<(), LocalError> {
    let path = search_path();
    let has = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !has(tool)).map(|(_, package)| *package).collect();
    packages.dedup();
    if packages.is_empty() { Ok(()) } else { Err(LocalError::Packages(packages.join(" "))) }
}

/// Tries a user namespace; on refusal names the setting that forbids it.
fn check_user_namespaces() -> Result<(), LocalError> {
    let tried = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--mount", "true"])
        .env("PATH", search_path())
        .stderr(Stdio::null())
        .status()
        .map_err(LocalError::Launch)?;
    if tried.success() {
        return Ok(());
    }
    let forbidden = FORBIDDERS.iter().find(|(name, bad, _)| {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        std::fs::read_to_string(file).is_ok_and(|value| value.trim() == *bad)
    });
    Err(match forbidden {
        Some((name, bad, good)) => LocalError::UserNamespaces { name, bad, good },
        None => LocalError::NoUserNamespaces,
    })
}

/// Runs as PID 1 of the world: mounts, supervisor, orphans, end.
///
/// # Errors
///
/// See [`LocalError`].
pub fn init(options: &UpOptions) -> Result<ExitCode, LocalError> {
    if rustix::process::getpid() != Pid::INIT {
        return Err(LocalError::NotInit);
    }
    prepare(&options.folder)?;
    // The listeners go through untouched to the supervisor, the only child.
    let own = std::env::current_exe().map_err(LocalError::Launch)?;
    let child = Command::new(own)
        .arg("supervise")
        .args(options.to_args())
        .stdin(Stdio::null())
        .spawn()
        .map_err(LocalError::Launch)?;
    let supervisor =
        i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(LocalError::NotInit)?;
    super::runtime()?.block_on(reap(supervisor))
}

/// Makes the mounts of the world: a fresh `/run` with the world's folders.
fn prepare(folder: &Path) -> Result<(), LocalError> {
    let own = std::env::current_exe().map_err(LocalError::Launch)?;
    if let Some(hidden) = [folder, &own].iter().find(|path| path.starts_with("/run")) {
        return Err(LocalError::Hidden(PathBuf::from(hidden)));
    }
    let options = Some(c"mode=0755");
    mount("tmpfs", "/run", "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options)
        .map_err(|cause| LocalError::Mount(cause.into()))?;
    for folder in paths::FOLDERS.iter().copied().chain([paths::NETNS]) {
        std::fs::create_dir_all(folder).map_err(LocalError::Mount)?;
    }
    // Only the owner of the world reads its keys, however open its umask is.
    use std::os::unix::fs::PermissionsExt as _;
    for secret in [paths::CA, paths::TOKENS] {
        let mode = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(secret, mode).map_err(LocalError::Mount)?;
    }
    Ok(())
}

/// Reaps until the supervisor is gone; passes on the wish to stop.
async fn reap(supervisor: Pid) -> Result<ExitCode, LocalError> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(LocalError::Launch)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(LocalError::Launch)?;
    let mut ended = signal(SignalKind::child()).map_err(LocalError::Launch)?;
    let mut launcher = launcher_gone();
    let mut limit: Option<tokio::time::Instant> = None;
    loop {
        while let Some((pid, status)) = reap_one() {
            if pid == supervisor {
                let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
                return Ok(ExitCode::from(code.unwrap_or(1)));
            }
        }
        let expired = async {
            match limit {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = ended.recv() => continue,
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = &mut launcher, if limit.is_none() => {}
            () = expired => return Ok(ExitCode::from(1)),
        }
        // The supervisor may just have ended by itself; the loop sees it then.
        if kill_process(supervisor, Signal::TERM).is_ok() {
            limit.get_or_insert_with(|| tokio::time::Instant::now() + STOP_LIMIT);
        }
    }
}

fn reap_one() -> Option<(Pid, rustix::process::WaitStatus)> {
    rustix::process::wait(WaitOptions::NOHANG).ok().flatten()
}

/// Resolves when the launcher has closed its end of our standard input.
fn launcher_gone() -> tokio::sync::oneshot::Receiver<()> {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut sink = [0; 64];
        loop {
            match rustix::io::read(std::io::stdin().as_fd(), &mut sink) {
                Ok(0) => break,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
        // Nobody listens any more when the world ends for another reason.
        tell.send(()).ok();
    });
    told
}
