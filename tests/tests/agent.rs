// SPDX-License-Identifier: Apache-2.0

//! The node agent in real namespaces: pods come and go while connections run,
//! rules are lost and put back, the agent itself is replaced.
//!
//! A stand-in for the tunnel speaks ZDS, takes what is captured and answers
//! probes as the tunnel does; the tunnel itself is tested elsewhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::type_complexity,
    clippy::too_many_arguments,
    reason = "a test fails by panicking, and talks to the one that started it"
)]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tunnel::agent::Agent;
use tunnel::agent::capture;
use tunnel::agent::enrol::Standing;
use tunnel::agent::node::{Node, PodReport};
use tunnel::agent::settings::Settings;
use tunnel::agent::spec::PodSpec;
use waymark_tests::netns::{Pod, Topology};

#[path = "agent/stand_in.rs"]
mod stand_in;

use stand_in::StandIn;

/// How long something that must happen may take.
const SOON: Duration = Duration::from_secs(20);

/// An agent with a runtime of its own, so that it can be killed.
struct Running {
    runtime: Option<Runtime>,
    node: Node,
}

impl Running {
    fn start(folder: &Path, topology: &Topology, extra: &[(&str, String)]) -> Self {
        let node_netns = topology.node(1).netns.path().display().to_string();
        let mut variables: BTreeMap<&str, String> = BTreeMap::from([
            ("NODE_NAME", "node-1".to_owned()),
            ("AGENT_RUN_DIR", folder.display().to_string()),
            ("AGENT_NODE_NETNS", node_netns),
            ("AGENT_LISTEN", String::new()),
            ("AGENT_DRAIN_SECONDS", "30".to_owned()),
        ]);
        variables.extend(extra.iter().cloned());
        let settings = Settings::read(|name| variables.get(name).cloned()).unwrap();
        let runtime = Runtime::new().unwrap();
        let agent = {
            let _inside = runtime.enter();
            Arc::new(Agent::open(settings).unwrap())
        };
        let node = agent.node().clone();
        runtime.spawn(async move { agent.serve().await });
        Self { runtime: Some(runtime), node }
    }

    /// What of it runs ends in the middle of whatever it does.
    fn kill(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn report(&self, uid: &str) -> Option<PodReport> {
        self.node.report().into_iter().find(|pod| &*pod.uid == uid)
    }

    async fn until(&self, uid: &str, what: &str, wanted: impl Fn(&PodReport) -> bool) -> PodReport {
        let begun = Instant::now();
        loop {
            let report = self.report(uid);
            match report {
                Some(report) if wanted(&report) => return report,
                report => assert!(begun.elapsed() < SOON, "{what}: {report:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn enrolled(&self, uid: &str) -> PodReport {
        let proven = |pod: &PodReport| pod.standing == Standing::Enrolled && pod.reason.is_empty();
        self.until(uid, "enrolled", proven).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn spec(uid: &str, pod: &Pod) -> PodSpec {
    PodSpec {
        uid: uid.into(),
        name: format!("name-{uid}"),
        namespace: "shop".to_owned(),
        service_account: "seller".to_owned(),
        addresses: vec![pod.v4.into(), pod.v6.into()],
        probes: vec![(None, 8080)],
        dns: true,
        bypass_inbound: false,
        strict: false,
        generation: 1,
    }
}

/// Everything that the tests share: two pods on a node, a stand-in, an agent.
struct World {
    agent: Running,
    tunnel: StandIn,
    folder: tempfile::TempDir,
    client: Pod,
    server: Pod,
    topology: Topology,
}

impl World {
    fn new() -> Self {
        let mut topology = Topology::new(1).unwrap();
        let (client, server) = (topology.pod(1).unwrap(), topology.pod(1).unwrap());
        let folder = tempfile::tempdir().unwrap();
        let agent = Running::start(folder.path(), &topology, &[]);
        let tunnel = StandIn::start(&folder.path().join("ztunnel.sock"));
        Self { agent, tunnel, folder, client, server, topology }
    }

    /// Places a pod as a plug-in does, and enrols it as the controller does.
    async fn enrol(&self, uid: &str, pod: &Pod) {
        self.agent.node.put(spec(uid, pod));
        self.place(uid, pod).await.unwrap();
        self.agent.enrolled(uid).await;
    }

    async fn place(
        &self,
        uid: &str,
        pod: &Pod,
    ) -> Result<Standing, tunnel::agent::node::PlaceError> {
        let addresses = vec![pod.v4.into(), pod.v6.into()];
        self.agent.node.place(uid, &pod.netns.path(), addresses, SOON).await
    }

    async fn not_served(&self, uid: &str) {
        let begun = Instant::now();
        while self.tunnel.serves(uid) {
            assert!(begun.elapsed() < SOON, "the tunnel still serves a pod that is gone");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn target(&self, v6: bool) -> SocketAddr {
        SocketAddr::new(self.server.ip(v6), 8080)
    }

    fn echo(&self) {
        for v6 in [false, true] {
            let listener = self.server.netns.listen(self.target(v6)).unwrap();
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    tokio::spawn(async move {
                        let (mut read, mut write) = stream.split();
                        let _ended = tokio::io::copy(&mut read, &mut write).await;
                    });
                }
            });
        }
    }
}

async fn ping(stream: &mut TcpStream) -> io::Result<()> {
    let exchange = async {
        stream.write_all(b"ping").await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map(drop)
    };
    timeout(Duration::from_secs(2), exchange).await?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_enrolled_and_released_while_its_connections_go_on() {
    let world = World::new();
    world.echo();
    let mut older = world.client.netns.connect(world.target(false)).await.unwrap();
    ping(&mut older).await.unwrap();

    world.enrol("server", &world.server).await;
    world.enrol("client", &world.client).await;
    assert_eq!(world.agent.report("server").unwrap().older, 1, "the one older connection");
    ping(&mut older).await.expect("a connection older than enrolment");
    let mut captured = world.client.netns.connect(world.target(true)).await.unwrap();
    ping(&mut captured).await.expect("a captured connection");

    for uid in ["client", "server"] {
        world.agent.node.let_go(uid);
    }
    let draining = |pod: &PodReport| pod.reason.contains("drain");
    world.agent.until("client", "draining", draining).await;
    let until = Instant::now() + Duration::from_millis(600);
    while Instant::now() < until {
        ping(&mut captured).await.expect("a captured connection after release");
    }
    assert!(draining(&world.agent.report("client").unwrap()), "it is still open");
    assert!(world.tunnel.serves("client"), "the tunnel carries it");
    ping(&mut older).await.expect("the older connection after release");
    drop(captured);
    for uid in ["client", "server"] {
        world.agent.until(uid, "released", |pod| pod.standing == Standing::Released).await;
        assert!(!world.tunnel.serves(uid), "the tunnel was told");
    }
    let left = capture::in_force(world.client.netns.namespace()).await.unwrap();
    assert!(!left.to_string().contains("istio"), "rules are gone: {left}");
    ping(&mut older).await.expect("the older connection without rules");
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_closes_older_connections_into_the_pod() {
    let world = World::new();
    world.echo();
    let mut older = world.client.netns.connect(world.target(false)).await.unwrap();
    ping(&mut older).await.unwrap();
    world.enrol("server", &world.server).await;
    assert_eq!(world.agent.report("server").unwrap().older, 1);
    ping(&mut older).await.unwrap();
    world.agent.node.put(PodSpec { strict: true, ..spec("server", &world.server) });
    world.agent.until("server", "closed", |pod| pod.older == 0).await;
    assert!(ping(&mut older).await.is_err(), "plain text into a STRICT pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_inbound_is_captured_and_let_past_while_connections_go_on() {
    let world = World::new();
    world.echo();
    let bypass = |bypass_inbound| PodSpec { bypass_inbound, ..spec("server", &world.server) };
    world.agent.node.put(bypass(true));
    world.place("server", &world.server).await.unwrap();
    assert!(world.agent.enrolled("server").await.plain_inbound);
    let mut plain = world.client.netns.connect(world.target(false)).await.unwrap();
    ping(&mut plain).await.unwrap();

    world.agent.node.put(bypass(false));
    let captured = |pod: &PodReport| !pod.plain_inbound && pod.reason.is_empty();
    let report = world.agent.until("server", "captured whole", captured).await;
    assert_eq!(report.older, 1, "the plain connection is counted");
    ping(&mut plain).await.expect("a plain connection from before");
    let mut taken = world.client.netns.connect(world.target(false)).await.unwrap();
    ping(&mut taken).await.expect("a captured connection");

    world.agent.node.put(bypass(true));
    world.agent.until("server", "let past", |pod| pod.plain_inbound).await;
    for stream in [&mut plain, &mut taken] {
        ping(stream).await.expect("a connection from before");
    }
    let report = world.agent.enrolled("server").await;
    assert_eq!((report.older, report.repairs), (1, 0), "what the tunnel carries is not older");
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_rules_are_put_back_within_two_seconds() {
    let world = World::new();
    world.enrol("client", &world.client).await;
    let losses: [(&str, &[&str]); 6] = [
        ("nft", &["flush", "ruleset"]),
        ("nft", &["delete", "table", "inet", "istio-ambient-nat"]),
        ("nft", &["flush", "chain", "inet", "istio-ambient-nat", "istio-prerouting"]),
        ("nft", &["flush", "chain", "inet", "istio-ambient-mangle", "istio-output"]),
        ("ip", &["rule", "del", "pref", "32764"]),
        ("ip", &["-6", "route", "flush", "table", "100"]),
    ];
    let intact = capture::in_force(world.client.netns.namespace()).await.unwrap();
    for (count, (program, arguments)) in losses.into_iter().enumerate() {
        let before = u32::try_from(count).unwrap();
        assert_eq!(world.agent.report("client").unwrap().repairs, before, "{arguments:?}");
        world.client.netns.run(program, arguments).unwrap();
        let begun = Instant::now();
        let repaired = |pod: &PodReport| pod.repairs == before + 1 && pod.reason.is_empty();
        world.agent.until("client", &format!("repair of {arguments:?}"), repaired).await;
        assert!(begun.elapsed() < Duration::from_secs(2), "{arguments:?}: {:?}", begun.elapsed());
        let now = capture::in_force(world.client.netns.namespace()).await.unwrap();
        assert!(now == intact, "{arguments:?} left its marks");
        world.agent.enrolled("client").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_taken_down_is_not_repaired() {
    let world = World::new();
    world.enrol("client", &world.client).await;
    // What container runtimes do first.
    world.client.netns.run("ip", &["link", "set", "lo", "down"]).unwrap();
    let told = |pod: &PodReport| pod.reason.contains("loopback");
    world.agent.until("client", "word of its loopback", told).await;
    assert_eq!(world.agent.report("client").unwrap().repairs, 0);
    world.client.netns.run("ip", &["link", "set", "lo", "up"]).unwrap();
    let repaired = |pod: &PodReport| pod.repairs == 1 && pod.reason.is_empty();
    world.agent.until("client", "repair once it is up", repaired).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_starts_anew_interrupts_nothing() {
    let mut world = World::new();
    world.echo();
    world.enrol("server", &world.server).await;
    world.enrol("client", &world.client).await;
    let mut captured = world.client.netns.connect(world.target(false)).await.unwrap();
    ping(&mut captured).await.unwrap();

    let successor = |world: &World| Running::start(world.folder.path(), &world.topology, &[]);
    let next = successor(&world);
    std::mem::replace(&mut world.agent, next).kill();
    // Nobody has told the new agent anything: it knows by itself.
    for uid in ["client", "server"] {
        world.agent.enrolled(uid).await;
        assert!(world.tunnel.serves(uid), "{uid}");
    }
    ping(&mut captured).await.expect("captured before the restart");
    let mut fresh = world.client.netns.connect(world.target(true)).await.unwrap();
    ping(&mut fresh).await.expect("captured after the restart");

    world.agent.node.complete(&["client".to_owned()].into());
    drop((captured, fresh));
    world.agent.until("server", "released", |pod| pod.standing == Standing::Released).await;
    assert_eq!(world.agent.report("client").unwrap().standing, Standing::Enrolled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_tunnel_is_not_enrolled_until_there_is_one() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let agent = Running::start(folder.path(), &topology, &[]);
    agent.node.put(spec("pod", &pod));
    let path = pod.netns.path();
    let early = agent.node.place("pod", &path, Vec::new(), Duration::from_millis(300));
    assert!(early.await.is_err());
    let report = agent.report("pod").unwrap();
    assert!(report.reason.contains("no tunnel"), "{report:?}");
    let untouched = capture::in_force(pod.netns.namespace()).await.unwrap();
    assert!(!untouched.to_string().contains("istio"), "nothing is captured without a tunnel");
    let _tunnel = StandIn::start(&folder.path().join("ztunnel.sock"));
    agent.enrolled("pod").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_tunnel_is_gone_says_so_and_stays_captured() {
    let mut world = World::new();
    world.enrol("client", &world.client).await;
    let socket = world.folder.path().join("ztunnel.sock");
    let idle = StandIn::start(Path::new("/nonexistent"));
    drop(std::mem::replace(&mut world.tunnel, idle));
    let complains = |pod: &PodReport| pod.reason.contains("not proven");
    let report = world.agent.until("client", "unproven", complains).await;
    assert_eq!(report.standing, Standing::Enrolled, "nothing goes past the mesh");
    world.tunnel = StandIn::start(&socket);
    assert_eq!(world.agent.enrolled("client").await.repairs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn plug_ins_wait_for_pods_of_the_mesh_alone() {
    let world = World::new();
    let waiting = world.place("client", &world.client);
    let deciding = async {
        while !world.agent.node.undecided() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.agent.node.let_go("client");
    };
    let (outside, ()) = tokio::join!(waiting, deciding);
    assert_eq!(outside.unwrap(), Standing::Released);
    world.agent.node.put(spec("server", &world.server));
    assert_eq!(world.place("server", &world.server).await.unwrap(), Standing::Enrolled);
    world.agent.node.vacated("server", &world.server.netns.path());
    world.agent.node.let_go("server");
    world.not_served("server").await;
}

/// Runtimes make a sandbox anew when the first could not be set up or has died; of the old one
/// they may tell at any time.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_gets_another_sandbox_is_enrolled_there() {
    let world = World::new();
    world.enrol("pod", &world.client).await;
    world.agent.node.vacated("pod", Path::new("/run/netns/of-an-older-sandbox"));
    assert_eq!(world.agent.report("pod").unwrap().standing, Standing::Enrolled);
    assert!(world.tunnel.serves("pod"));

    world.agent.node.vacated("pod", &world.client.netns.path());
    world.not_served("pod").await;
    let waits = |pod: &PodReport| pod.standing == Standing::Pending;
    world.agent.until("pod", "waiting for a namespace", waits).await;
    assert_eq!(world.place("pod", &world.client).await.unwrap(), Standing::Enrolled);
    assert!(world.tunnel.serves("pod"));

    // The next one is known before the end of the last is told.
    world.agent.node.put(spec("pod", &world.server));
    assert_eq!(world.place("pod", &world.server).await.unwrap(), Standing::Enrolled);
    world.agent.node.vacated("pod", &world.client.netns.path());
    assert_eq!(world.agent.report("pod").unwrap().standing, Standing::Enrolled);
    assert!(world.tunnel.serves("pod"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pods_namespace_is_refused() {
    let world = World::new();
    world.agent.node.put(spec("client", &world.client));
    let server = world.server.netns.path();
    let wrong = world.agent.node.place("client", &server, Vec::new(), Duration::from_millis(300));
    assert!(wrong.await.is_err());
    let report = world.agent.report("client").unwrap();
    assert!(report.reason.contains("none of the pod's addresses"), "{report:?}");
    let own = world.topology.node(1).netns.path();
    let own = world.agent.node.place("other", &own, Vec::new(), SOON).await;
    assert!(own.unwrap_err().to_string().contains("node's own"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_nobody_told_of_is_found_by_the_pods_processes() {
    let mut topology = Topology::new(1).unwrap();
    let pod = topology.pod(1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let proc = folder.path().join("proc");
    process(&proc, 40, "0::/kubepods/podu-1/x", 7, &pod.netns.path());
    // A younger process of the pod in the node's namespace, and one of another pod.
    process(&proc, 41, "0::/kubepods/podu-1/y", 9, &topology.node(1).netns.path());
    process(&proc, 42, "0::/kubepods/podu-2/x", 1, &topology.fabric.path());
    let extra = [("AGENT_PROC", proc.display().to_string())];
    let run = folder.path().join("run");
    let agent = Running::start(&run, &topology, &extra);
    let _tunnel = StandIn::start(&run.join("ztunnel.sock"));
    agent.node.put(spec("u-1", &pod));
    agent.enrolled("u-1").await;
}

fn process(proc: &Path, pid: u32, cgroup: &str, started: u64, netns: &PathBuf) {
    let folder = proc.join(pid.to_string());
    std::fs::create_dir_all(folder.join("ns")).unwrap();
    std::fs::write(folder.join("cgroup"), cgroup).unwrap();
    let zeros = "0 ".repeat(18);
    std::fs::write(folder.join("stat"), format!("{pid} (app) S {zeros}{started} 0")).unwrap();
    std::os::unix::fs::symlink(netns, folder.join("ns/net")).unwrap();
}
