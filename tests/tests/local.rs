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
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use waymark_tests::load::http::{Load, run};
use waymark_tests::load::{Report, Until};
use waymark_tests::world::{Launch, World};

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

fn bookinfo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookinfo")
}

fn start(options: &[&str]) -> World {
    World::start(&bookinfo(), options).unwrap()
}

/// Runs a verb of the command line against a world.
fn ask(world: &World, args: &[&str]) -> Output {
    world.waymark(args).unwrap()
}

/// Tries until it works; what is awaited here sends no event.
fn eventually<T>(world: &World, what: &str, attempt: impl FnMut(&World) -> Result<T, String>) -> T {
    world.eventually(what, SOON, attempt).unwrap()
}

/// Runs a verb until `good` holds of its output.
fn asked_until(world: &World, args: &[&str], good: impl Fn(&str) -> bool) -> String {
    eventually(world, &format!("{args:?}"), |world| {
        let output = ask(world, args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if good(&text) {
            Ok(text)
        } else {
            Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
        }
    })
}

/// Status and text of a GET at the world's door.
fn get(world: &World, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(world.door()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, text)
}

/// Who served the reviews of one page.
fn reviewer(world: &World) -> String {
    let (_, page) = get(world, "/productpage");
    let names = ["reviews-v1", "reviews-v2", "reviews-v3"];
    names.iter().find(|name| page.contains(**name)).unwrap_or(&"none").to_string()
}

/// Sends pages' worth of load while `work` runs.
fn under_load<T>(world: &World, work: impl FnOnce() -> T) -> (Report, T) {
    let load = Load {
        clients: 2,
        limit: SOON,
        ..Load::get(world.door(), "localhost", "/api/v1/products/0")
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

fn is_alive(pid: u32) -> bool {
    // A zombie has no open namespaces any more.
    std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok()
}

#[test]
fn the_page_is_up_and_every_pod_is_in_the_mesh() {
    let _turn = turn();
    let world = start(&[]);

    let (status, page) = get(&world, "/productpage");
    assert_eq!(status, 200, "{page}");
    assert!(page.contains("Book Details") && page.contains("Book Reviews"), "{page}");
    assert_eq!(get(&world, "/").0, 404, "no route");

    let workloads = asked_until(&world, &["workloads", "-n", "bookinfo"], |text| {
        text.matches("HBONE").count() == 6
    });
    assert!(
        workloads.contains("spiffe://cluster.local/ns/bookinfo/sa/bookinfo-ratings"),
        "{workloads}"
    );
    asked_until(&world, &["status"], |text| text.contains("All is well"));
    let gateways =
        asked_until(&world, &["get", "gateways"], |text| text.matches("True").count() == 4);
    assert!(gateways.contains("10.97.0.1"), "{gateways}");

    // Who may not call ratings is refused by its waypoint, and told apart by `explain`.
    let url = "http://ratings:9080/ratings/0";
    let code = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url];
    for (pod, want) in [("reviews-v2", "200"), ("productpage", "403")] {
        let exec: Vec<&str> = ["exec", pod, "--"].into_iter().chain(code).collect();
        assert_eq!(String::from_utf8_lossy(&ask(&world, &exec).stdout), want, "{pod}");
        let explained = ask(&world, &["explain", "--from", pod, "--to", url]);
        assert_eq!(
            explained.status.success(),
            want == "200",
            "{}",
            String::from_utf8_lossy(&explained.stdout)
        );
    }
    let logs = ask(&world, &["logs", "bookinfo-gateway"]);
    assert!(String::from_utf8_lossy(&logs.stdout).contains("GET /productpage"), "access log");
    assert_eq!(ask(&world, &["get", "dreams"]).status.code(), Some(2));
}

#[test]
fn edits_take_effect_and_lose_no_request() {
    let _turn = turn();
    let world = start(&[]);
    let (report, ()) = under_load(&world, || {
        let second = "weight: 33\n        - name: reviews-v3";
        world.edit("route-reviews.yaml", "weight: 34", "weight: 0").unwrap();
        world.edit("route-reviews.yaml", second, &second.replace("33", "0")).unwrap();
        eventually(&world, "all reviews by v3", |world| {
            let seen: BTreeSet<String> = (0..4).map(|_| reviewer(world)).collect();
            if seen == ["reviews-v3".to_owned()].into() { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        // A file that is replaced by removing and making it keeps what it does not change.
        let page = world.pod("bookinfo", "productpage").unwrap();
        let one = "name: ratings-v1\n  namespace: bookinfo\n  labels:\n    app: ratings\n    version: v1\nspec:\n  replicas: 1";
        world.remake("bookinfo.yaml", one, &one.replace("replicas: 1", "replicas: 2")).unwrap();
        asked_until(&world, &["workloads", "-n", "bookinfo"], |text| {
            text.matches("ratings-v1-").count() == 2
        });
        assert_eq!(world.pod("bookinfo", "productpage").unwrap(), page);
    });
    assert!(report.good > 10, "{report:?}");
    assert_eq!(report.failures(), 0, "{report:?}");
    world.edit("00-namespace.yaml", "dataplane-mode: ambient", "dataplane-mode: none").unwrap();
    asked_until(&world, &["workloads", "-n", "bookinfo"], |text| !text.contains("HBONE"));
    world.edit("00-namespace.yaml", "dataplane-mode: none", "dataplane-mode: ambient").unwrap();
    asked_until(&world, &["workloads", "-n", "bookinfo"], |text| {
        text.matches("HBONE").count() == 7
    });
}

#[test]
fn a_bad_file_is_named_and_the_last_good_state_stays() {
    let _turn = turn();
    let world = start(&[]);
    world.edit("route-reviews.yaml", "- backendRefs:", "- backendRefs: [").unwrap();
    let said = world.said("route-reviews.yaml:", SOON).unwrap();
    assert!(said.contains("last good state"), "{said}");
    assert_eq!(ask(&world, &["status"]).status.code(), Some(1), "status tells");
    assert_eq!(get(&world, "/productpage").0, 200, "all goes on");
    assert_ne!(reviewer(&world), "none");
    world.edit("route-reviews.yaml", "- backendRefs: [", "- backendRefs:").unwrap();
    world.said("in force again", SOON).unwrap();
}

#[test]
fn killed_parts_come_back_and_the_controller_is_not_missed() {
    let _turn = turn();
    let world = start(&[]);
    let kill = |program: &str| {
        let old = world.processes(program);
        for pid in &old {
            world.kill(*pid).unwrap();
        }
        eventually(&world, program, |world| {
            let new = world.processes(program);
            let fresh = new.iter().filter(|pid| !old.contains(pid)).count();
            if fresh == old.len() { Ok(()) } else { Err(format!("{new:?}")) }
        });
    };
    let (report, ()) = under_load(&world, || {
        kill("waymark-controller");
        asked_until(&world, &["status"], |text| text.contains("All is well"));
    });
    assert_eq!(report.failures(), 0, "{report:?}");
    for program in ["waymark-tunnel", "waymark-agent", "waymark-gateway"] {
        kill(program);
        asked_until(&world, &["status"], |text| text.contains("All is well"));
        eventually(&world, program, |world| match get(world, "/productpage").1 {
            page if page.contains("Reviewer1") => Ok(()),
            page => Err(page),
        });
    }
}

#[test]
fn nothing_outlives_a_world() {
    let _turn = turn();
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
        let mut world = start(&[]);
        let inside = world.all_processes();
        assert!(inside.len() > 10, "{inside:?}");
        let status = world.end_by(signal).unwrap();
        assert_eq!(status.success(), signal != Signal::KILL, "{signal:?}: {status}");
        eventually(&world, "all processes end", |_| {
            let left: Vec<u32> = inside.iter().copied().filter(|pid| is_alive(*pid)).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?} after {signal:?}")) }
        });
        assert!(TcpStream::connect(world.door()).is_err(), "the door is closed");
        assert_eq!((namespaces(), mounts()), before, "{signal:?}");
    }
}

#[test]
fn several_worlds_and_an_ordinary_user() {
    let _turn = turn();
    let mine = start(&[]);
    // The other user may not read our programs where they lie.
    use std::os::unix::fs::PermissionsExt as _;
    let shared = tempfile::tempdir().unwrap();
    let all = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(shared.path(), all).unwrap();
    for program in PROGRAMS {
        let (from, to) = (mine.programs().join(program), shared.path().join(program));
        std::fs::hard_link(&from, &to)
            .or_else(|_| std::fs::copy(&from, &to).map(|_bytes| ()))
            .unwrap();
    }
    let launch = Launch {
        options: &["--nodes", "1"],
        user: rustix::process::geteuid().is_root().then_some(NOBODY),
        programs: Some(shared.path()),
        ..Launch::default()
    };
    let theirs = World::launch(&bookinfo(), &launch).unwrap();
    for world in [&mine, &theirs] {
        assert_eq!(get(world, "/productpage").0, 200);
        asked_until(world, &["status"], |text| text.contains("All is well"));
    }
    assert!(!String::from_utf8_lossy(&ask(&theirs, &["get", "nodes"]).stdout).contains("node-2"));
    let id = ask(&theirs, &["exec", "details", "--", "hostname"]);
    assert!(String::from_utf8_lossy(&id.stdout).starts_with("details-v1-"), "{id:?}");
}

#[test]
fn a_deleted_pod_is_replaced_at_the_same_address_and_no_request_is_lost() {
    let _turn = turn();
    let one = "name: details-v1\n  namespace: bookinfo\n  labels:\n    app: details\n    version: v1\nspec:\n  replicas: 1";
    let two = one.replace("replicas: 1", "replicas: 2");
    let launch = Launch {
        options: &["--nodes", "1", "--reuse-addresses"],
        edits: &[("bookinfo.yaml", one, &two)],
        ..Launch::default()
    };
    let world = World::launch(&bookinfo(), &launch).unwrap();
    // Name and address of each pod of details.
    let pods = |text: &str| -> Vec<(String, String)> {
        let lines =
            text.lines().filter(|line| line.contains("details-v1-") && line.contains("HBONE"));
        let words =
            lines.map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        words.map(|words| (words[1].clone(), words[2].clone())).collect()
    };
    let list = ["workloads", "-n", "bookinfo"];
    let before = pods(&asked_until(&world, &list, |text| pods(text).len() == 2));
    let (old, address) = before[0].clone();
    let (report, after) = under_load(&world, || {
        let deleted = ask(&world, &["delete", "pod", &old]);
        assert!(deleted.status.success(), "{deleted:?}");
        let new = |text: &str| pods(text).len() == 2 && !text.contains(&old);
        let after = pods(&asked_until(&world, &list, new));
        asked_until(&world, &["status"], |text| text.contains("All is well"));
        after
    });
    assert!(
        after.iter().any(|(name, at)| *at == address && *name != old),
        "{before:?} then {after:?}"
    );
    assert!(report.good > 10, "{report:?}");
    assert_eq!(report.failures(), 0, "{report:?}");
}
