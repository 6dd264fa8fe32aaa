// SPDX-License-Identifier: Apache-2.0

//! Nodes and pods as network namespaces, for tests.
//!
//! Owns: a topology like that of local mode: a fabric that joins the nodes, on
//! each node a bridge of pods, IPv4 and IPv6 throughout. Leaves processes and
//! rules to the test. Needs root.
//!
//! Keeps: every namespace carries the name of the process that made it, so no
//! two tests meet; dropping a [`Topology`] takes all of it away, and what a
//! killed test left behind goes when the next one starts.
//!
//! Start at [`Topology::new`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use tunnel::sys::NetworkNamespace;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// How the names of all test namespaces begin.
const PREFIX: &str = "wmtest-";

/// One network namespace, shared by whoever holds a clone.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    namespace: Arc<NetworkNamespace>,
}

impl Netns {
    /// Name as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// File that names the namespace, as a CNI plug-in is told.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&self.name)
    }

    /// The open namespace.
    #[must_use]
    pub fn namespace(&self) -> &NetworkNamespace {
        &self.namespace
    }

    /// Runs `work` inside; sockets and processes made there stay there.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn enter<T>(&self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        self.namespace.enter(work).with_context(|| format!("cannot enter {}", self.name))
    }

    /// Runs a program inside to its end and gives what it printed.
    ///
    /// # Errors
    ///
    /// When it cannot be run, or fails.
    pub fn run(&self, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.enter(|| Command::new(program).args(arguments).output())??;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr);
            bail!("in {}: {program} {}: {message}", self.name, arguments.join(" "));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A TCP listener inside; port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn listen(
        &self,
        address: impl Into<SocketAddr>,
    ) -> anyhow::Result<tokio::net::TcpListener> {
        let address = address.into();
        let listener = self.enter(|| std::net::TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        Ok(tokio::net::TcpListener::from_std(listener)?)
    }

    /// A UDP socket inside.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn udp(&self, address: impl Into<SocketAddr>) -> anyhow::Result<tokio::net::UdpSocket> {
        let address = address.into();
        let socket = self.enter(|| std::net::UdpSocket::bind(address))??;
        socket.set_nonblocking(true)?;
        Ok(tokio::net::UdpSocket::from_std(socket)?)
    }

    /// Connects from inside.
    ///
    /// # Errors
    ///
    /// Those of the connection.
    pub async fn connect(
        &self,
        target: impl Into<SocketAddr>,
    ) -> io::Result<tokio::net::TcpStream> {
        let target = target.into();
        let socket = self.namespace.enter(|| match target {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        })??;
        socket.connect(target).await
    }

    fn make(name: String) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let namespace = NetworkNamespace::open(&Path::new(NAMES).join(&name))?;
        let made = Self { name, namespace: Arc::new(namespace) };
        made.enter(|| {
            let settings = [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
            ];
            settings.iter().try_for_each(|(key, value)| {
                std::fs::write(Path::new("/proc/sys/net").join(key), value)
            })
        })?
        .context("cannot set up a namespace")?;
        made.ip(&["link", "set", "lo", "up"])?;
        Ok(made)
    }

    fn ip(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.run("ip", arguments).map(drop)
    }

    fn address(&self, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
        self.ip(&["addr", "add", &format!("{v4}/24"), "dev", device])?;
        self.ip(&["addr", "add", &format!("{v6}/64"), "dev", device, "nodad"])?;
        self.ip(&["link", "set", device, "up"])
    }

    fn bridge(&self, device: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
        // Given, so that it stays when ports come and go; else packets of neighbours are lost.
        let [a, b, c, d] = v4.octets();
        let mac = format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}");
        self.ip(&["link", "add", device, "address", &mac, "type", "bridge"])?;
        self.address(device, v4, v6)
    }

    /// Wires `eth0` of `other` to a bridge of this namespace.
    fn plug(&self, bridge: &str, port: &str, other: &Self) -> anyhow::Result<()> {
        let peer = ["type", "veth", "peer", "name", "eth0", "netns", &other.name];
        self.ip(&[&["link", "add", port][..], &peer[..]].concat())?;
        self.ip(&["link", "set", port, "master", bridge, "up"])
    }

    fn default_routes(&self, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
        self.ip(&["route", "add", "default", "via", &v4.to_string()])?;
        self.ip(&["-6", "route", "add", "default", "via", &v6.to_string()])
    }
}

/// A node: what runs on it in the tests lives in its namespace.
#[derive(Clone, Debug)]
pub struct Node {
    /// Counted from 1.
    pub index: u8,
    /// `node-INDEX`.
    pub name: String,
    /// Its address on the fabric.
    pub v4: Ipv4Addr,
    /// Its address on the fabric.
    pub v6: Ipv6Addr,
    /// Its namespace.
    pub netns: Netns,
    pods: u8,
}

/// A pod: a namespace on a node's bridge.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Index of its node.
    pub node: u8,
    host: u8,
    /// Its address.
    pub v4: Ipv4Addr,
    /// Its address.
    pub v6: Ipv6Addr,
    /// Its namespace.
    pub netns: Netns,
}

impl Pod {
    /// Its address of one family.
    #[must_use]
    pub fn ip(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

/// All namespaces of one test; dropping it removes them.
#[derive(Debug)]
pub struct Topology {
    id: String,
    /// Where the nodes meet; a control plane may live here.
    pub fabric: Netns,
    nodes: Vec<Node>,
}

impl Topology {
    /// A fabric with `nodes` nodes (1 to 200) and no pods yet.
    ///
    /// # Errors
    ///
    /// Without root, or when a step of the set-up fails.
    pub fn new(nodes: u8) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces of tests need root");
        }
        remove_leftovers();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{count}", owner(std::process::id()).unwrap_or_default());
        let fabric = Netns::make(format!("{id}-fabric"))?;
        let mut made = Self { id, fabric, nodes: Vec::new() };
        let gateway =
            (Ipv4Addr::new(10, 254, 0, 1), Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, 1));
        made.fabric.bridge("fabric", gateway.0, gateway.1)?;
        for index in 1..=nodes {
            made.add_node(index)?;
        }
        Ok(made)
    }

    /// The node with this index, counted from 1.
    ///
    /// # Panics
    ///
    /// When the topology has no such node.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "a test that names a missing node is wrong")]
    pub fn node(&self, index: u8) -> &Node {
        &self.nodes[usize::from(index) - 1]
    }

    /// Adds a pod to a node, at an address that no pod of it had.
    ///
    /// # Errors
    ///
    /// When a step of the set-up fails.
    pub fn pod(&mut self, node: u8) -> anyhow::Result<Pod> {
        let index = usize::from(node).checked_sub(1).context("nodes count from 1")?;
        let pods = &mut self.nodes.get_mut(index).context("no such node")?.pods;
        *pods += 1;
        let host = *pods + 1;
        self.make_pod(node, host)
    }

    /// Takes a pod away and makes another one at its address.
    ///
    /// # Errors
    ///
    /// When a step of the set-up fails.
    pub fn replace(&mut self, pod: Pod) -> anyhow::Result<Pod> {
        let Pod { node, host, .. } = pod;
        self.remove(pod)?;
        self.make_pod(node, host)
    }

    /// Takes a pod away: its link first, then its namespace.
    ///
    /// # Errors
    ///
    /// When either cannot be removed.
    pub fn remove(&self, pod: Pod) -> anyhow::Result<()> {
        self.node(pod.node).netns.ip(&["link", "del", &format!("pod{}", pod.host)])?;
        ip(&["netns", "del", &pod.netns.name])
    }

    fn make_pod(&self, node: u8, host: u8) -> anyhow::Result<Pod> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::make(format!("{}-n{node}p{host}-{count}", self.id))?;
        let (v4, v6) = pod_address(node, host);
        self.node(node).netns.plug("pods", &format!("pod{host}"), &netns)?;
        netns.address("eth0", v4, v6)?;
        let gateway = pod_address(node, 1);
        netns.default_routes(gateway.0, gateway.1)?;
        Ok(Pod { node, host, v4, v6, netns })
    }

    fn add_node(&mut self, index: u8) -> anyhow::Result<()> {
        let netns = Netns::make(format!("{}-node{index}", self.id))?;
        let v4 = Ipv4Addr::new(10, 254, 0, 10 + index);
        let v6 = Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, u16::from(10 + index));
        self.fabric.plug("fabric", &format!("node{index}"), &netns)?;
        netns.address("eth0", v4, v6)?;
        let gateway = Ipv6Addr::new(0xfd00, 0x254, 0, 0, 0, 0, 0, 1);
        netns.default_routes(Ipv4Addr::new(10, 254, 0, 1), gateway)?;
        let bridge = pod_address(index, 1);
        netns.bridge("pods", bridge.0, bridge.1)?;
        self.route_to_pods(&self.fabric, index, v4, v6)?;
        for other in &self.nodes {
            self.route_to_pods(&other.netns, index, v4, v6)?;
            self.route_to_pods(&netns, other.index, other.v4, other.v6)?;
        }
        let name = format!("node-{index}");
        self.nodes.push(Node { index, name, v4, v6, netns, pods: 0 });
        Ok(())
    }

    fn route_to_pods(
        &self,
        from: &Netns,
        node: u8,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> anyhow::Result<()> {
        let v4 = v4.to_string();
        let v6 = v6.to_string();
        from.ip(&["route", "add", &format!("10.244.{node}.0/24"), "via", &v4])?;
        from.ip(&["-6", "route", "add", &format!("fd00:10:244:{node:x}::/64"), "via", &v6])
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        remove_all(&format!("{}-", self.id));
    }
}

fn pod_address(node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, node.into(), 0, 0, 0, host.into());
    (Ipv4Addr::new(10, 244, node, host), v6)
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A process by number and start time, so that a number used again is another one.
fn owner(process: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let after_name = stat.rsplit(')').next()?;
    let started = after_name.split_whitespace().nth(19)?;
    Some(format!("{process}.{started}"))
}

/// Removes the namespaces of tests whose process is gone.
fn remove_leftovers() {
    for name in names() {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let made_by = rest.split('-').next().unwrap_or_default();
        let process = made_by.split('.').next().and_then(|number| number.parse().ok());
        if process.and_then(owner).as_deref() != Some(made_by) {
            remove_name(&name);
        }
    }
}

fn remove_all(prefix: &str) {
    names().iter().filter(|name| name.starts_with(prefix)).for_each(|name| remove_name(name));
}

/// Ends the processes that still run in a test's namespace, then takes its name away.
fn remove_name(name: &str) {
    let path = Path::new(NAMES).join(name);
    if let Ok(namespace) = NetworkNamespace::open(&path) {
        for process in processes_in(&namespace) {
            let _gone = rustix::process::kill_process(process, rustix::process::Signal::KILL);
        }
    }
    // A leftover that another test removes at the same moment is no failure.
    let _gone = ip(&["netns", "del", name]);
}

fn processes_in(namespace: &NetworkNamespace) -> Vec<rustix::process::Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|number| *number != std::process::id().cast_signed())
        else {
            continue;
        };
        let lives_there = NetworkNamespace::open(&entry.path().join("ns/net"))
            .is_ok_and(|other| other.id() == namespace.id());
        if lives_there {
            found.extend(rustix::process::Pid::from_raw(number));
        }
    }
    found
}

fn names() -> Vec<String> {
    let entries = std::fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
