// SPDX-License-Identifier: Apache-2.0

//! `waymark up`, whole: every program of the mesh, started by the one command that users type.
//!
//! Needs the programs built (`cargo build --workspace --bins`), and the right to make
//! namespaces. Worlds are made one after the other but for the test of several at once.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it saw"
)]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use waymark_tests::load::http::{Load, run};
use waymark_tests::load::{Report, Until};

/// How long something that must happen may take; the machine may be busy with a build.
const SOON: Duration = Duration::from_secs(60);

/// The programs of a world.
const PROGRAMS: [&str; 6] = [
    "waymark",
    "waymark-controller",
    "waymark-tunnel",
    "waymark-agent",
    "waymark-gateway",
    "bookinfo",
];

/// A user that nothing belongs to.
const NOBODY: u32 = 54_321;

/// One world at a time: each takes all cores while it starts.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where cargo puts programs.
fn programs() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folder = own.parent().unwrap().parent().unwrap().to_owned();
    for program in PROGRAMS {
        assert!(
            folder.join(program).is_file(),
            "{program} is not built; run: cargo build --workspace --bins"
        );
    }
    folder
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// A copy of an example, to be edited.
fn copy(name: &str) -> TempDir {
    let copied = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(example(name)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "yaml") {
            std::fs::copy(&path, copied.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    copied
}

/// Replaces `from` by `to` in a file of a folder, as an editor does: by rename.
fn edit(folder: &Path, file: &str, from: &str, to: &str) {
    let path = folder.join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from:?} is in {file}");
    let fresh = folder.join(".fresh");
    std::fs::write(&fresh, text.replacen(from, to, 1)).unwrap();
    std::fs::rename(fresh, path).unwrap();
}

/// A running `waymark up`.
struct World {
    launcher: Child,
    folder: PathBuf,
    programs: PathBuf,
    user: Option<u32>,
    port: u16,
    lines: Arc<Mutex<Vec<String>>>,
    news: mpsc::Receiver<()>,
}

impl World {
    /// Starts a world and waits until it says what runs where.
    fn start(folder: &Path, more: &[&str]) -> Self {
        Self::start_as(None, &programs(), folder, more)
    }

    fn start_as(user: Option<u32>, programs: &Path, folder: &Path, more: &[&str]) -> Self {
        let mut command = command(user, programs);
        command.arg("up").arg(folder).args(["--port", "0"]).args(more);
        let mut launcher = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (tell, news) = mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(launcher.stdout.take().unwrap()), Box::new(launcher.stderr.take().unwrap())];
        for output in outputs {
            let (lines, tell) = (Arc::clone(&lines), tell.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    lines.lock().unwrap().push(line);
                    if tell.send(()).is_err() {
                        return;
                    }
                }
            });
        }
        let folder = folder.canonicalize().unwrap();
        let mut world =
            Self { launcher, folder, programs: programs.to_owned(), user, port: 0, lines, news };
        let door = world.said("http://localhost:");
        world.said("All pods are ready");
        let port = door.trim_start_matches("http://localhost:").split(' ').next().unwrap();
        world.port = port.parse().unwrap();
        world
    }

    /// Waits for a line that holds `word`.
    fn said(&self, word: &str) -> String {
        let begun = Instant::now();
        loop {
            let found = self.lines.lock().unwrap().iter().find(|line| line.contains(word)).cloned();
            if let Some(line) = found {
                return line;
            }
            let left = SOON.checked_sub(begun.elapsed());
            let told = left.and_then(|left| self.news.recv_timeout(left).ok());
            assert!(told.is_some(), "{word:?} was never said: {:#?}", self.lines.lock().unwrap());
        }
    }

    /// Runs a verb of the command line against this world.
    fn ask(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = command(self.user, &self.programs);
        command.arg(verb).arg("--world").arg(&self.folder).args(rest).output().unwrap()
    }

    /// Runs a verb until `good` holds of its output.
    fn asked_until(&self, args: &[&str], good: impl Fn(&str) -> bool) -> String {
        eventually(&format!("{args:?}"), || {
            let output = self.ask(args);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if good(&text) {
                Ok(text)
            } else {
                Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
            }
        })
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// Status and body of a GET.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text)
    }

    /// Who served the reviews of one page.
    fn reviewer(&self) -> String {
        let (_, page) = self.get("/productpage");
        let version = |name: &&str| page.contains(name);
        ["reviews-v1", "reviews-v2", "reviews-v3"]
            .iter()
            .find(|name| version(name))
            .unwrap_or(&"none")
            .to_string()
    }

    /// Sends pages' worth of load while `work` runs.
    fn under_load<T>(&self, work: impl FnOnce() -> T) -> (Report, T) {
        let load = Load {
            clients: 2,
            limit: SOON,
            ..Load::get(self.address(), "localhost", "/api/v1/products/0")
        };
        let until = Until::after(SOON * 4);
        let stop = until.clone();
        let loader = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(run(&load, &until))
        });
        let done = work();
        stop.stop();
        (loader.join().unwrap(), done)
    }

    /// Process ids of everything inside, as seen from outside.
    fn processes(&self) -> BTreeSet<i32> {
        let inside = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let init = self.init();
        let namespace = inside(init).unwrap();
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| inside(*pid).as_ref() == Some(&namespace))
            .collect()
    }

    /// The world's first process, as seen from outside.
    fn init(&self) -> i32 {
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_ours = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            args.get(1) == Some(&&b"world"[..])
                && args.get(2) == Some(&self.folder.as_os_str().as_encoded_bytes())
        };
        pids.find(is_ours).expect("a world has an init")
    }

    /// Processes of a program by the start of its name, as seen from outside.
    fn processes_of(&self, program: &str) -> Vec<i32> {
        let is = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
            Path::new(std::str::from_utf8(first).unwrap_or_default())
                .file_name()
                .is_some_and(|name| name == program)
        };
        self.processes().into_iter().filter(is).collect()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.launcher.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Sends `signal` to the launcher and waits for its end.
    fn end_by(mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.launcher.wait().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.launcher.kill());
        drop(self.launcher.wait());
        if std::thread::panicking() {
            eprintln!("{:#?}", self.lines.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// The command `waymark` of `programs`, as `user`.
fn command(user: Option<u32>, programs: &Path) -> Command {
    let waymark = programs.join("waymark");
    match user {
        None => Command::new(waymark),
        Some(user) => {
            let mut command = Command::new("setpriv");
            let id = user.to_string();
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(waymark);
            command.env("HOME", "/nonexistent");
            command
        }
    }
}

/// Tries until it works; what is awaited here sends no event.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return value,
            Err(seen) => assert!(begun.elapsed() < SOON, "{what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_alive(pid: i32) -> bool {
    // A zombie has no open namespaces any more.
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok()
}

#[test]
fn the_page_is_up_and_every_pod_is_in_the_mesh() {
    let _turn = turn();
    let folder = copy("bookinfo");
    let world = World::start(folder.path(), &[]);

    let (status, page) = world.get("/productpage");
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("Book Details") && page.contains("Book Reviews"), "{page}");
    assert_eq!(world.get("/").0, 404, "no route");

    let workloads = world
        .asked_until(&["workloads", "-n", "bookinfo"], |text| text.matches("HBONE").count() == 6);
    assert!(
        workloads.contains("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"),
        "{workloads}"
    );
    world.asked_until(&["status"], |text| text.contains("All is well"));
    let gateways =
        world.asked_until(&["get", "gateways"], |text| text.matches("True").count() == 4);
    assert!(gateways.contains("10.97.0.1"), "{gateways}");

    // Who may not call ratings is refused by its waypoint, and told apart by `explain`.
    let url = "http://ratings:9080/ratings/0";
    let code = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url];
    for (pod, want) in [("reviews-v2", "200"), ("productpage", "403")] {
        let exec: Vec<&str> = ["exec", pod, "--"].into_iter().chain(code).collect();
        assert_eq!(String::from_utf8_lossy(&world.ask(&exec).stdout), want, "{pod}");
        let explained = world.ask(&["explain", "--from", pod, "--to", url]);
        assert_eq!(
            explained.status.success(),
            want == "200",
            "{}",
            String::from_utf8_lossy(&explained.stdout)
        );
    }
    let logs = world.ask(&["logs", "bookinfo-gateway"]);
    assert!(String::from_utf8_lossy(&logs.stdout).contains("GET /productpage"), "access log");
    assert_eq!(world.ask(&["get", "dreams"]).status.code(), Some(2));
}

#[test]
fn edits_take_effect_and_lose_no_request() {
    let _turn = turn();
    let folder = copy("bookinfo");
    let path = folder.path();
    let world = World::start(path, &[]);
    let (report, ()) = world.under_load(|| {
        edit(path, "route-reviews.yaml", "weight: 34", "weight: 0");
        edit(path, "route-reviews.yaml", "weight: 33", "weight: 0");
        eventually("all reviews by v3", || {
            let seen: BTreeSet<String> = (0..4).map(|_| world.reviewer()).collect();
            if seen == ["reviews-v3".to_owned()].into() { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    });
    assert!(report.good > 10, "{report:?}");
    assert_eq!(report.failures(), 0, "{report:?}");
    edit(path, "00-namespace.yaml", "dataplane-mode: ambient", "dataplane-mode: none");
    world.asked_until(&["workloads", "-n", "bookinfo"], |text| !text.contains("HBONE"));
    edit(path, "00-namespace.yaml", "dataplane-mode: none", "dataplane-mode: ambient");
    world.asked_until(&["workloads", "-n", "bookinfo"], |text| text.matches("HBONE").count() == 6);
}

#[test]
fn a_bad_file_is_named_and_the_last_good_state_stays() {
    let _turn = turn();
    let folder = copy("bookinfo");
    let world = World::start(folder.path(), &[]);
    edit(folder.path(), "route-reviews.yaml", "- backendRefs:", "- backendRefs: [");
    let said = world.said("route-reviews.yaml:");
    assert!(said.contains("last good state"), "{said}");
    assert_eq!(world.ask(&["status"]).status.code(), Some(1), "status tells");
    assert_eq!(world.get("/productpage").0, 200, "all goes on");
    assert_ne!(world.reviewer(), "none");
    edit(folder.path(), "route-reviews.yaml", "- backendRefs: [", "- backendRefs:");
    world.said("in force again");
}

#[test]
fn killed_parts_come_back_and_the_controller_is_not_missed() {
    let _turn = turn();
    let folder = copy("bookinfo");
    let world = World::start(folder.path(), &[]);
    let kill = |program: &str| {
        let old = world.processes_of(program);
        for pid in &old {
            kill_process(Pid::from_raw(*pid).unwrap(), Signal::KILL).unwrap();
        }
        eventually(program, || {
            let new: Vec<i32> =
                world.processes_of(program).into_iter().filter(|pid| !old.contains(pid)).collect();
            if new.len() == old.len() { Ok(()) } else { Err(format!("{new:?}")) }
        });
    };
    let (report, ()) = world.under_load(|| {
        kill("waymark-controller");
        world.asked_until(&["status"], |text| text.contains("All is well"));
    });
    assert_eq!(report.failures(), 0, "{report:?}");
    for program in ["waymark-tunnel", "waymark-agent", "waymark-gateway"] {
        kill(program);
        world.asked_until(&["status"], |text| text.contains("All is well"));
        let page = || match world.get("/productpage").1 {
            page if page.contains("Reviewer1") => Ok(()),
            page => Err(page),
        };
        eventually(program, page);
    }
}

#[test]
fn nothing_outlives_a_world() {
    let _turn = turn();
    let folder = copy("bookinfo");
    // Other tests of this machine come and go meanwhile; their names begin with `wmtest-`.
    let others = |text: String| {
        text.lines().filter(|line| !line.contains("wmtest-")).map(str::to_owned).collect()
    };
    let namespaces = || -> Vec<String> {
        others(String::from_utf8(Command::new("ip").arg("netns").output().unwrap().stdout).unwrap())
    };
    let mounts =
        || -> Vec<String> { others(std::fs::read_to_string("/proc/self/mounts").unwrap()) };
    let before = (namespaces(), mounts());
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        let world = World::start(folder.path(), &[]);
        let inside = world.processes();
        assert!(inside.len() > 10, "{inside:?}");
        let port = world.address();
        let status = world.end_by(signal);
        assert_eq!(status.success(), signal != Signal::KILL, "{signal:?}: {status}");
        eventually("all processes end", || {
            let left: Vec<i32> = inside.iter().copied().filter(|pid| is_alive(*pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} after {signal:?}")) }
        });
        assert!(TcpStream::connect(port).is_err(), "the door is closed");
        assert_eq!((namespaces(), mounts()), before, "{signal:?}");
    }
}

#[test]
fn several_worlds_and_an_ordinary_user() {
    let _turn = turn();
    let (one, other) = (copy("bookinfo"), copy("bookinfo"));
    let mine = World::start(one.path(), &[]);
    // The other user may read neither our programs nor our folder where they lie.
    use std::os::unix::fs::PermissionsExt as _;
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap()
    };
    let shared = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let (from, to) = (programs().join(program), shared.path().join(program));
        std::fs::hard_link(&from, &to)
            .or_else(|_| std::fs::copy(&from, &to).map(|_bytes| ()))
            .unwrap();
    }
    open(shared.path());
    open(other.path());
    let user = rustix::process::geteuid().is_root().then_some(NOBODY);
    let theirs = World::start_as(user, shared.path(), other.path(), &["--nodes", "1"]);
    for world in [&mine, &theirs] {
        assert_eq!(world.get("/productpage").0, 200);
        world.asked_until(&["status"], |text| text.contains("All is well"));
    }
    assert!(!String::from_utf8_lossy(&theirs.ask(&["get", "nodes"]).stdout).contains("node-2"));
    let id = theirs.ask(&["exec", "details", "--", "hostname"]);
    assert!(String::from_utf8_lossy(&id.stdout).starts_with("details-v1-"), "{id:?}");
}

#[test]
fn a_deleted_pod_is_replaced_at_the_same_address_and_no_request_is_lost() {
    let _turn = turn();
    let folder = copy("bookinfo");
    edit(
        folder.path(),
        "bookinfo.yaml",
        "name: details-v1\n  namespace: bookinfo\n  labels:\n    app: details\n    version: v1\nspec:\n  replicas: 1",
        "name: details-v1\n  namespace: bookinfo\n  labels:\n    app: details\n    version: v1\nspec:\n  replicas: 2",
    );
    let world = World::start(folder.path(), &["--nodes", "1", "--reuse-addresses"]);
    // Name and address of each pod of details.
    let pods = |text: &str| -> Vec<(String, String)> {
        let lines =
            text.lines().filter(|line| line.contains("details-v1-") && line.contains("HBONE"));
        let words =
            lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| (words[1].clone(), words[2].clone())).collect()
    };
    let list = ["workloads", "-n", "bookinfo"];
    let before = pods(&world.asked_until(&list, |text| pods(text).len() == 2));
    let (old, address) = before[0].clone();
    let (report, after) = world.under_load(|| {
        let deleted = world.ask(&["delete", "pod", &old]);
        assert!(deleted.status.success(), "{deleted:?}");
        let new = |text: &str| pods(text).len() == 2 && !text.contains(&old);
        let after = pods(&world.asked_until(&list, new));
        world.asked_until(&["status"], |text| text.contains("All is well"));
        after
    });
    assert!(
        after.iter().any(|(name, at)| *at == address && *name != old),
        "{before:?} then {after:?}"
    );
    assert!(report.good > 10, "{report:?}");
    assert_eq!(report.failures(), 0, "{report:?}");
}
