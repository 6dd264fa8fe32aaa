// SPDX-License-Identifier: Apache-2.0

//! A running `waymark up`, as a user starts it: the real programs, the real namespaces.
//!
//! Owns: a copy of the folder, so that a test may edit it; the process, ended when
//! dropped (the world dies with it), and what it prints; questions by the same command
//! line that users have.
//!
//! Start at [`World::start`].

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

/// How long a world may take until all it runs is ready.
const READY: Duration = Duration::from_secs(60);

/// How often something is asked that cannot tell by itself.
const ASK: Duration = Duration::from_millis(20);

/// How a world is started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Launch<'a> {
    /// More options for `waymark up`.
    pub options: &'a [&'a str],
    /// Changes of the folder's copy before the start: file, what it holds, what instead.
    pub edits: &'a [(&'a str, &'a str, &'a str)],
    /// The user who starts it, if not the one of the test.
    pub user: Option<u32>,
    /// Where the programs lie, if not beside the test.
    pub programs: Option<&'a Path>,
}

/// A world with its folder.
#[derive(Debug)]
pub struct World {
    child: Child,
    folder: TempDir,
    programs: PathBuf,
    user: Option<u32>,
    said: Arc<Said>,
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
        Self::launch(folder, &Launch { options, ..Launch::default() })
    }

    /// The same, in the way that `launch` says.
    ///
    /// # Errors
    ///
    /// Those of [`World::start`], and when a file does not hold what is to be replaced.
    pub fn launch(folder: &Path, launch: &Launch<'_>) -> anyhow::Result<Self> {
        let copy = TempDir::new()?;
        // Another user must be able to read it.
        std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755))?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
        for (file, from, to) in launch.edits {
            edit(&copy.path().join(file), from, to)?;
        }
        let programs = launch.programs.map_or_else(programs, |given| Ok(given.to_owned()))?;
        let mut child = waymark(&programs, launch.user)
            .args(["up", "--port", "0"])
            .args(launch.options)
            .arg(copy.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start waymark; build it first: cargo build --workspace --bins")?;
        let said = Arc::<Said>::default();
        said.listen(child.stdout.take());
        said.listen(child.stderr.take());
        let (user, door) = (launch.user, SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut world = Self { child, folder: copy, programs, user, said, door };
        world.door.set_port(door_of(&world.said("localhost", READY)?)?);
        world.wait_ready()?;
        Ok(world)
    }

    /// Where the world's first ingress Gateway is reached from this machine; port 0 if there
    /// is none.
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
        edit(&self.folder.path().join(file), from, to)
    }

    /// Replaces `from` by `to` in a file that is removed and made anew, as git does.
    ///
    /// # Errors
    ///
    /// When there is no such file or text.
    pub fn remake(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.folder.path().join(file);
        let text = std::fs::read_to_string(&path)?;
        anyhow::ensure!(text.contains(from), "{from:?} is not in {file}");
        std::fs::remove_file(&path)?;
        Ok(std::fs::write(&path, text.replace(from, to))?)
    }

    /// Waits until the world has printed a line that holds `word`, and gives it.
    ///
    /// # Errors
    ///
    /// When it did not within `limit`.
    pub fn said(&self, word: &str, limit: Duration) -> anyhow::Result<String> {
        self.said.wait(word, limit)
    }

    /// Asks the world by its command line.
    ///
    /// # Errors
    ///
    /// When the program cannot be started; its exit code is part of the answer.
    pub fn waymark(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(arguments).stdin(Stdio::null()).output()?)
    }

    /// The command line of this world with `arguments`, ready to be started.
    pub fn command(&self, arguments: &[&str]) -> Command {
        // Before `--`, behind which everything belongs to the pod's command.
        let at = arguments.iter().position(|&one| one == "--").unwrap_or(arguments.len());
        let (before, after) = arguments.split_at(at);
        let mut command = waymark(&self.programs, self.user);
        command.args(before).arg("--world").arg(self.folder.path()).args(after);
        command
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
        let yes = |world: &Self| if done(world) { Ok(()) } else { Err(String::new()) };
        self.eventually(what, limit, yes)?;
        Ok(begun.elapsed())
    }

    /// Tries until it works.
    ///
    /// # Errors
    ///
    /// When it did not within `limit`, with what was seen last.
    pub fn eventually<T>(
        &self,
        what: &str,
        limit: Duration,
        mut attempt: impl FnMut(&Self) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let begun = Instant::now();
        loop {
            match attempt(self) {
                Ok(value) => return Ok(value),
                Err(seen) if begun.elapsed() > limit => {
                    bail!("{what}: not within {limit:?}: {seen}");
                }
                Err(_) => std::thread::sleep(ASK),
            }
        }
    }

    /// All processes of this world: process ids here, outside.
    pub fn all_processes(&self) -> Vec<u32> {
        below(self.pid()).into_iter().map(|(pid, _)| pid).collect()
    }

    /// Processes of this world that run `program`: process ids here, outside.
    pub fn processes(&self, program: &str) -> Vec<u32> {
        // The kernel keeps 15 bytes of a name.
        let name = program.get(..15).unwrap_or(program);
        below(self.pid()).into_iter().filter(|(_, own)| own == name).map(|(pid, _)| pid).collect()
    }

    /// Kills a process of this world at once, as an operator or the kernel would.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn kill(&self, pid: u32) -> anyhow::Result<()> {
        signal(pid, Signal::KILL)
    }

    /// Sends `word` to the process that the user started, and waits for its end.
    ///
    /// # Errors
    ///
    /// When it is gone already.
    pub fn end_by(&mut self, word: Signal) -> anyhow::Result<ExitStatus> {
        signal(self.pid(), word)?;
        Ok(self.child.wait()?)
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
        if std::thread::panicking() {
            tell(&self.said.all());
        }
    }
}

/// What a failing test shows of its world.
#[expect(clippy::print_stderr, reason = "the test that fails has nothing else to tell it by")]
fn tell(lines: &[String]) {
    eprintln!("the world has said: {lines:#?}");
}

/// Lines that a world has printed, to both of its outputs.
#[derive(Debug, Default)]
struct Said {
    lines: Mutex<(Vec<String>, usize)>,
    news: Condvar,
}

impl Said {
    /// Reads all of `output`, so that the world never stalls on a full pipe.
    fn listen(self: &Arc<Self>, output: Option<impl Read + Send + 'static>) {
        let Some(output) = output else { return };
        let said = Arc::clone(self);
        said.change(|(_, open)| *open += 1);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                said.change(|(lines, _)| lines.push(line));
            }
            said.change(|(_, open)| *open -= 1);
        });
    }

    fn change(&self, change: impl FnOnce(&mut (Vec<String>, usize))) {
        change(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        self.news.notify_all();
    }

    fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn wait(&self, word: &str, limit: Duration) -> anyhow::Result<String> {
        let find = |lines: &[String]| lines.iter().find(|line| line.contains(word)).cloned();
        let guard = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |(lines, open): &mut (Vec<String>, usize)| *open > 0 && find(lines).is_none();
        let (guard, _) = self
            .news
            .wait_timeout_while(guard, limit, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        find(&guard.0).with_context(|| format!("{word:?} was never said: {:#?}", guard.0))
    }
}

/// The command line of `programs`, as `user`.
fn waymark(programs: &Path, user: Option<u32>) -> Command {
    let program = programs.join("waymark");
    let Some(user) = user else { return Command::new(program) };
    let id = user.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
    command.env("HOME", "/nonexistent");
    command
}

/// Replaces `from`, which must be there, in a file, as an editor does: by rename.
fn edit(file: &Path, from: &str, to: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file)?;
    if !text.contains(from) {
        bail!("{} does not hold {from:?}", file.display());
    }
    let fresh = file.with_file_name(".fresh");
    std::fs::write(&fresh, text.replace(from, to))?;
    Ok(std::fs::rename(fresh, file)?)
}

fn signal(pid: u32, word: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no process id")?;
    Ok(rustix::process::kill_process(pid, word)?)
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

/// The port that the world's line about its address names.
fn door_of(line: &str) -> anyhow::Result<u16> {
    if line.contains("localhost leads nowhere") {
        return Ok(0);
    }
    line.split_once("http://localhost:")
        .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .with_context(|| format!("no address in {line:?}"))
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
