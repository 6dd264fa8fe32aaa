// SPDX-License-Identifier: Apache-2.0

//! Network namespaces of a local world: the fabric, its nodes and their pods.
//!
//! Owns: the commands that make and remove them, given to `ip -batch`, and the
//! kernel settings of each. Leaves addresses to [`super::address`] and translation
//! of Service addresses to [`super::vip`].
//!
//! Layout: a bridge `fabric` in the world's root namespace; each node hangs on it by
//! a link `eth0` and has a bridge `pods` of its own. A pod has a host route to its
//! gateway and sends everything there, so even pods of one node meet at the node's
//! router and translation of Service addresses sees every connection.
//!
//! Start at [`make_fabric`], [`make_node`] and [`make_pod`].

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::address::{self, Pair};
use super::paths;

/// Why a namespace could not be made or entered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// A tool could not be run at all.
    #[error("cannot run {tool}")]
    Run {
        /// The program.
        tool: &'static str,
        /// What the system answered.
        #[source]
        cause: std::io::Error,
    },

    /// A tool refused what it was given.
    #[error("{tool} refused: {message}")]
    Refused {
        /// The program.
        tool: &'static str,
        /// Its own words.
        message: String,
    },

    /// The namespace could not be entered.
    #[error("cannot enter the network namespace {name:?}")]
    Enter {
        /// Its name.
        name: String,
        /// What the system answered.
        #[source]
        cause: std::io::Error,
    },

    /// A kernel setting could not be made.
    #[error("cannot set {path}")]
    Sysctl {
        /// The file below `/proc/sys`.
        path: &'static str,
        /// What the system answered.
        #[source]
        cause: std::io::Error,
    },
}

/// Settings of the root namespace and of every node: they pass packets on.
const ROUTER: [(&str, &str); 11] = [
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/all/send_redirects", "0"),
    ("/proc/sys/net/ipv4/conf/default/send_redirects", "0"),
    ("/proc/sys/net/ipv4/conf/all/accept_local", "1"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_ra", "0"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "1"),
    ("/proc/sys/net/ipv6/conf/default/forwarding", "1"),
];

/// Settings of a pod. Redirects are not taken: every packet shall pass the node.
const POD: [(&str, &str); 8] = [
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/default/rp_filter", "0"),
    ("/proc/sys/net/ipv4/conf/all/accept_redirects", "0"),
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_dad", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_ra", "0"),
    ("/proc/sys/net/ipv6/conf/default/accept_redirects", "0"),
    ("/proc/sys/net/ipv6/conf/all/accept_redirects", "0"),
];

/// Keeps bridged packets out of the router's rules, which see them one layer up; the
/// settings exist only where the kernel has that module.
const BRIDGE: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

/// Makes the fabric in the namespace of this process.
///
/// # Errors
///
/// See [`NetnsError`].
pub fn make_fabric() -> Result<(), NetnsError> {
    router_settings()?;
    batch(&fabric_commands())
}

/// Makes node `number` (from 1), called `name`, and hangs it on the fabric.
///
/// `nodes` is how many there are in all: each gets routes to the pods of the others.
///
/// # Errors
///
/// See [`NetnsError`].
pub fn make_node(name: &str, number: u8, nodes: u8) -> Result<(), NetnsError> {
    batch(&format!("netns add {name}\n"))?;
    inside(name, router_settings)??;
    batch(&node_link_commands(name, number))?;
    let inner = node_commands(number, nodes);
    inside(name, move || batch(&inner))?
}

/// Makes the namespace `netns` of a pod on node `node`, with `pair` as its addresses.
///
/// `link` is the name of the node's end, at most 15 bytes and unique on the node.
///
/// # Errors
///
/// See [`NetnsError`].
pub fn make_pod(
    netns: &str,
    node: &str,
    link: &str,
    pair: Pair,
    gateway: Pair,
) -> Result<(), NetnsError> {
    batch(&format!("netns add {netns}\n"))?;
    inside(netns, || settings(&POD))??;
    batch(&format!(
        "link add {link} netns {node} type veth peer name eth0 address {} netns {netns}\n",
        address::pod_mac(pair.v4)
    ))?;
    // Hairpin, should bridged packets be translated all the same: a pod may reach itself.
    let outer =
        format!("link set {link} master pods up\nlink set {link} type bridge_slave hairpin on\n");
    inside(node, move || batch(&outer))??;
    let inner = pod_commands(pair, gateway);
    inside(netns, move || batch(&inner))?
}

/// Removes the namespace called `netns`; its links go with it.
///
/// # Errors
///
/// See [`NetnsError`].
pub fn remove(netns: &str) -> Result<(), NetnsError> {
    batch(&format!("netns del {netns}\n"))
}

/// Runs `work` on a thread of its own inside the network namespace called `name`.
///
/// Programs that `work` starts live there too.
///
/// # Errors
///
/// [`NetnsError::Enter`] if there is no such namespace or it may not be entered.
pub fn inside<T, F>(name: &str, work: F) -> Result<T, NetnsError>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    let path = paths::netns(name);
    let failed = |cause| NetnsError::Enter { name: name.to_owned(), cause };
    std::thread::scope(|scope| {
        scope
            .spawn(|| join(&path).map(|()| work()))
            .join()
            .map_err(|_panic| failed(std::io::Error::other("the thread inside it failed")))?
            .map_err(failed)
    })
}

/// Moves the calling thread into the network namespace at `path`.
///
/// # Errors
///
/// What the system answers; the thread then stays where it is.
pub fn join(path: &Path) -> std::io::Result<()> {
    let namespace = std::fs::File::open(path)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// Gives `commands`, one per line, to `ip` in the namespace of this thread.
fn batch(commands: &str) -> Result<(), NetnsError> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    feed("ip", command, commands)
}

/// Runs `command`, writes `input` to it and turns what it complains of into an error.
///
/// # Errors
///
/// [`NetnsError::Run`] or [`NetnsError::Refused`].
pub(super) fn feed(
    tool: &'static str,
    mut command: Command,
    input: &str,
) -> Result<(), NetnsError> {
    let run = |cause| NetnsError::Run { tool, cause };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(run)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends early says why on its error output, read below.
        match stdin.write_all(input.as_bytes()) {
            Err(cause) if cause.kind() != std::io::ErrorKind::BrokenPipe => return Err(run(cause)),
            Ok(()) | Err(_) => {}
        }
    }
    let output = child.wait_with_output().map_err(run)?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(NetnsError::Refused { tool, message })
}

fn settings(values: &[(&'static str, &str)]) -> Result<(), NetnsError> {
    for (path, value) in values {
        std::fs::write(path, value).map_err(|cause| NetnsError::Sysctl { path, cause })?;
    }
    Ok(())
}

fn router_settings() -> Result<(), NetnsError> {
    settings(&ROUTER)?;
    for path in BRIDGE.into_iter().filter(|path| Path::new(path).exists()) {
        settings(&[(path, "0")])?;
    }
    Ok(())
}

fn fabric_commands() -> String {
    let Pair { v4, v6 } = address::FABRIC;
    let (services4, length4) = address::SERVICES_V4;
    let (services6, length6) = address::SERVICES_V6;
    let (balancers4, balancers_length4) = address::BALANCERS_V4;
    let (balancers6, balancers_length6) = address::BALANCERS_V6;
    let mac = address::pod_mac(v4);
    // Of its own, a bridge takes the lowest address of its ports, and takes another when a
    // port comes or goes: what its neighbours remember is wrong then, and their packets are
    // lost until they ask again. One that was given stays.
    //
    // The routes to Service addresses let a connection of this namespace begin; where
    // it really goes is decided by translation before the packet leaves.
    format!(
        "link set lo up\n\
         link add fabric address {mac} type bridge mcast_snooping 0\n\
         addr add {v4}/24 dev fabric\n\
         addr add {v6}/64 dev fabric nodad\n\
         link set fabric up\n\
         route add {services4}/{length4} dev fabric src {v4}\n\
         route add {services6}/{length6} dev fabric src {v6}\n\
         route add {balancers4}/{balancers_length4} dev fabric src {v4}\n\
         route add {balancers6}/{balancers_length6} dev fabric src {v6}\n"
    )
}

fn node_link_commands(name: &str, number: u8) -> String {
    let Pair { v4, v6 } = address::node(number);
    let pods = address::pod(number, 0);
    format!(
        "link add {name} type veth peer name eth0 netns {name}\n\
         link set {name} master fabric up\n\
         route add {}/24 via {v4}\n\
         route add {}/64 via {v6}\n",
        pods.v4, pods.v6
    )
}

fn node_commands(number: u8, nodes: u8) -> String {
    let own = address::node(number);
    let gateway = address::pod_gateway(number);
    let mut text = format!(
        "link set lo up\n\
         addr add {}/24 dev eth0\n\
         addr add {}/64 dev eth0 nodad\n\
         link set eth0 up\n\
         route add default via {}\n\
         route add default via {}\n\
         link add pods address {} type bridge mcast_snooping 0\n\
         addr add {}/24 dev pods\n\
         addr add {}/64 dev pods nodad\n\
         link set pods up\n",
        own.v4,
        own.v6,
        address::FABRIC.v4,
        address::FABRIC.v6,
        // Given, so that it stays; see the fabric.
        address::pod_mac(gateway.v4),
        gateway.v4,
        gateway.v6
    );
    for other in (1..=nodes).filter(|other| *other != number) {
        let via = address::node(other);
        let pods = address::pod(other, 0);
        text += &format!(
            "route add {}/24 via {}\nroute add {}/64 via {}\n",
            pods.v4, via.v4, pods.v6, via.v6
        );
    }
    text
}

fn pod_commands(pair: Pair, gateway: Pair) -> String {
    format!(
        "link set lo up\n\
         addr add {}/32 dev eth0\n\
         addr add {}/128 dev eth0 nodad\n\
         link set eth0 up\n\
         route add {} dev eth0 scope link\n\
         route add default via {} src {}\n\
         route add {} dev eth0\n\
         route add default via {} src {}\n",
        pair.v4, pair.v6, gateway.v4, gateway.v4, pair.v4, gateway.v6, gateway.v6, pair.v6
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_knows_the_way_to_the_pods_of_every_other_node() {
        let text = node_commands(2, 3);
        for line in [
            "route add 10.244.1.0/24 via 10.254.0.11",
            "route add fd00:10:244:3::/64 via fd00:254::13",
            "addr add 10.244.2.1/24 dev pods",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        assert!(!text.contains("10.244.2.0/24"), "no route to itself");
    }

    #[test]
    fn bridges_keep_their_address_when_ports_come_and_go() {
        let given = |text: &str, bridge: &str, mac: &str| {
            let line = format!("link add {bridge} address {mac} type bridge");
            assert!(text.lines().any(|have| have.starts_with(&line)), "{line} in {text}");
        };
        given(&node_commands(2, 3), "pods", "0a:58:0a:f4:02:01");
        given(&fabric_commands(), "fabric", "0a:58:0a:fe:00:01");
    }

    #[test]
    fn a_pod_sends_everything_to_its_node() {
        let text = pod_commands(address::pod(1, 7), address::pod_gateway(1));
        for line in [
            "addr add 10.244.1.7/32 dev eth0",
            "addr add fd00:10:244:1::7/128 dev eth0 nodad",
            "route add default via 10.244.1.1 src 10.244.1.7",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
    }
}
