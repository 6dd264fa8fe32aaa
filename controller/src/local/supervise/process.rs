// SPDX-License-Identifier: Apache-2.0

//! One process of a container: started in its pod's clothes, ended in good order.
//!
//! Owns: the command line of `waymark enter`, log files, signals to the process group.
//! Leaves when to start and end to [`super::container`].
//!
//! Start at [`Dress`] and [`Process::start`].

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

use crate::local::plan::image::Launch;

/// Where and in what a container runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Dress {
    /// Network namespace; that of the supervisor if none.
    pub(super) netns: Option<PathBuf>,
    /// Whether `/run` of the world is hidden.
    pub(super) own_run: bool,
    /// Source and target of each mount.
    pub(super) binds: Vec<(PathBuf, String)>,
    /// Folders that shall be empty.
    pub(super) scratch: Vec<String>,
    /// Host name.
    pub(super) hostname: Option<String>,
    /// Folder to start in.
    pub(super) workdir: Option<String>,
}

impl Dress {
    fn args(&self) -> Vec<std::ffi::OsString> {
        let mut args: Vec<std::ffi::OsString> = vec!["enter".into()];
        if let Some(netns) = &self.netns {
            args.extend(["--netns".into(), netns.into()]);
        }
        if self.own_run {
            args.push("--own-run".into());
        }
        for (source, target) in &self.binds {
            let mut pair = source.clone().into_os_string();
            pair.push(":");
            pair.push(target);
            args.extend(["--bind".into(), pair]);
        }
        for folder in &self.scratch {
            args.extend(["--scratch".into(), folder.into()]);
        }
        if let Some(name) = &self.hostname {
            args.extend(["--hostname".into(), name.into()]);
        }
        if let Some(folder) = &self.workdir {
            args.extend(["--workdir".into(), folder.into()]);
        }
        args.push("--".into());
        args
    }
}

/// A running process, the leader of its group.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    group: Pid,
}

impl Process {
    /// Starts `launch` in `dress` with exactly the variables `env`, its output to `log`.
    ///
    /// # Errors
    ///
    /// Those of starting our own helper; a command that cannot be run ends at once
    /// with its reason in the log.
    pub(super) fn start(
        dress: &Dress,
        launch: &Launch,
        env: &BTreeMap<String, String>,
        log: &Path,
    ) -> std::io::Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(log)?;
        let errors = output.try_clone()?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(dress.args())
            .args(&launch.command)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(env)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            // A key pressed at the terminal is for the launcher alone.
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn()?;
        let group = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .and_then(Pid::from_raw)
            .ok_or_else(|| std::io::Error::other("the process ended before it began"))?;
        Ok(Self { child, group })
    }

    /// Its process id inside the world.
    pub(super) fn id(&self) -> i32 {
        self.group.as_raw_nonzero().get()
    }

    /// Waits for its end. Cancel safe.
    pub(super) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end, and after `grace` makes it; leaves nothing of its group.
    pub(super) async fn stop(&mut self, grace: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(grace, self.child.wait()).await;
        self.signal(Signal::KILL);
        match ended {
            Ok(status) => status.ok(),
            Err(_) => self.child.wait().await.ok(),
        }
    }

    /// Signals the group; a group without members is fine.
    fn signal(&self, signal: Signal) {
        kill_process_group(self.group, signal).ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Children that outlived the leader go with it.
        self.signal(Signal::KILL);
    }
}

/// Runs `command` inside the namespaces of process `pid`; true if it ended well within `limit`.
pub(super) async fn run_inside(pid: i32, command: &[String], limit: Duration) -> bool {
    let Ok(own) = std::env::current_exe() else { return false };
    let child = Command::new(own)
        .args(["enter", "--pid", &pid.to_string(), "--"])
        .args(command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = child else { return false };
    matches!(tokio::time::timeout(limit, child.wait()).await, Ok(Ok(status)) if status.success())
}
