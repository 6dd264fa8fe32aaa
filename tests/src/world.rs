// SPDX-License-Identifier: Apache-2.0

//! A running `waymark up`, as a user starts it: the real programs, the real namespaces.
//!
//! Owns: a copy of the folder, so that a test may edit it; the process, ended when
//! dropped (the world dies with it); questions by the same command line that users have.
//!
//! Start at [`World::start`].

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// How long a world may take until all it runs is ready.
const READY: Duration = Duration::from_secs(60);

/// How often something is asked that cannot tell by itself.
const ASK: Duration = Duration::from_millis(20);

/// A world with its folder.
#[derive(Debug)]
pub struct World {
    child: Child,
    folder: TempDir,
    programs: PathBuf,
    door: SocketAddr,
}

impl World {
    /// Starts a copy of `folder` with more `options` for `waymark up`, and waits until
    /// every pod is ready and every pod that belongs in the mesh is proven to be in it.
    ///
    /// # Errors
    ///
    /// When the programs are not built, the world ends, or it is not ready in a minute.
    pub fn start(folder: &Path, options: &[&str]) -> anyhow::Result<Self> {
        let copy = TempDir::new()?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
        let programs = programs()?;
        let mut child = Command::new(programs.join("waymark"))
            .args(["up", "--port", "0"])
            .args(options)
            .arg(copy.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("cannot start waymark; build it first: cargo build --workspace --bins")?;
        let door = match door_of(&mut child) {
            Ok(door) => door,
            Err(error) => {
                drop(child.kill());
                drop(child.wait());
                return Err(error);
            }
        };
        let mut world = Self { child, folder: copy, programs, door };
        world.wait_ready()?;
        Ok(world)
    }

    /// Where the world's first ingress Gateway is reached from this machine.
    pub fn door(&self) -> SocketAddr {
        self.door
    }

    /// The process that a user would kill.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Folder of the programs under test.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// Reads a file of the world's folder.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn read(&self, file: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.folder.path().join(file))?)
    }

    /// Writes a file of the world's folder, as an editor does.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.path().join(file), text)?)
    }

    /// Replaces `from`, which must be there, in a file of the folder.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written, or does not hold `from`.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let text = self.read(file)?;
        if !text.contains(from) {
            bail!("{file} does not hold {from:?}");
        }
        self.write(file, &text.replace(from, to))
    }

    /// Asks the world by its command line.
    ///
    /// # Errors
    ///
    /// When the program cannot be started; its exit code is part of the answer.
    pub fn waymark(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        // Before `--`, behind which everything belongs to the pod's command.
        let at = arguments.iter().position(|&one| one == "--").unwrap_or(arguments.len());
        let (before, after) = arguments.split_at(at);
        let output = Command::new(self.programs.join("waymark"))
            .args(before)
            .arg("--world")
            .arg(self.folder.path())
            .args(after)
            .stdin(Stdio::null())
            .output()?;
        Ok(output)
    }

    /// Asks for JSON.
    ///
    /// # Errors
    ///
    /// When the answer is none.
    pub fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let output = self.waymark(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Name of the first pod of `namespace` whose name begins with `prefix`.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn pod(&self, namespace: &str, prefix: &str) -> anyhow::Result<String> {
        let list = self.json(&["get", "pods", "-n", namespace])?;
        items(&list)
            .iter()
            .filter_map(|pod| pod.pointer("/metadata/name")?.as_str())
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .with_context(|| format!("no pod {prefix}* in {namespace}"))
    }

    /// Asks until `done` says yes.
    ///
    /// # Errors
    ///
    /// When it did not within `limit`, with `what` was awaited.
    pub fn until(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        loop {
            if done(self) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > limit {
                bail!("{what}: not within {limit:?}");
            }
            std::thread::sleep(ASK);
        }
    }

    /// Processes of this world whose name begins with `name`: process ids here, outside.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        below(self.pid())
            .into_iter()
            .filter(|(_, own)| own.starts_with(name))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// Kills a process of this world at once, as an operator or the kernel would.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn kill(&self, pid: u32) -> anyhow::Result<()> {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let pid = pid.context("no process id")?;
        Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
    }

    /// Kills the process that the user started, and waits for it.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn kill_all(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("waymark up ended: {status}");
            }
            if self.all_ready() {
                return Ok(());
            }
            if begun.elapsed() > READY {
                let status = self.waymark(&["status"])?;
                bail!("not ready after {READY:?}:\n{}", String::from_utf8_lossy(&status.stdout));
            }
            std::thread::sleep(ASK);
        }
    }

    /// Whether every pod is ready and the mesh says that all is well.
    pub fn all_ready(&self) -> bool {
        let Ok(list) = self.json(&["get", "pods"]) else { return false };
        let pods = items(&list);
        let ready = |pod: &serde_json::Value| {
            pod.pointer("/status/conditions").and_then(|all| all.as_array()).is_some_and(|all| {
                all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
            })
        };
        let going = |pod: &serde_json::Value| pod.pointer("/metadata/deletionTimestamp").is_some();
        !pods.is_empty()
            && pods.iter().all(|pod| ready(pod) && !going(pod))
            && self.waymark(&["status"]).is_ok_and(|output| output.status.success())
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The world dies with the process that made it; already ended is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The items of a list, or none.
pub fn items(list: &serde_json::Value) -> Vec<serde_json::Value> {
    list.get("items").and_then(serde_json::Value::as_array).cloned().unwrap_or_default()
}

/// Where cargo has put the programs under test: beside the folder of the test itself.
fn programs() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().context("this program lies in no folder")?;
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    Ok(folder.to_owned())
}

/// Reads the output of the world until it names its address; the rest is read and
/// dropped, so that the world never stalls on a full pipe.
fn door_of(child: &mut Child) -> anyhow::Result<SocketAddr> {
    let output = child.stdout.take().context("no output")?;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let port = line
                .split_once("http://localhost:")
                .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
                .and_then(|digits| digits.parse::<u16>().ok());
            if let Some(port) = port {
                // Told once is enough; nobody listens for the others.
                let _heard = tell.send(port);
            }
        }
    });
    let port = told.recv_timeout(READY).context("waymark up named no address")?;
    Ok(SocketAddr::from(([127, 0, 0, 1], port)))
}

/// All processes below `root`, with their names.
pub fn below(root: u32) -> Vec<(u32, String)> {
    let mut known = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let name = name.split_once('(').map_or("", |(_, name)| name).to_owned();
        let parent = rest.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
        known.insert(pid, (name, parent.unwrap_or(0)));
    }
    let is_below = |pid: u32| {
        let mut at = pid;
        while let Some(&(_, parent)) = known.get(&at) {
            if parent == root {
                return true;
            }
            at = parent;
        }
        false
    };
    known
        .iter()
        .filter(|(pid, _)| is_below(**pid))
        .map(|(pid, (name, _))| (*pid, name.clone()))
        .collect()
}
