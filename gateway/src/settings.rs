// SPDX-License-Identifier: Apache-2.0

//! What the process is told at its start, and every limit by name.
//!
//! The only reader of environment and arguments. Names are those of Istio's
//! proxies where they have the thing. All problems are reported together.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use policy::identity::{Identity, Namespace, ServiceAccount, TrustDomain};
use routing::gateway::GatewayKind;
use routing::listener::GatewayName;

use crate::http::Limits;

/// What a gateway is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// At the edge.
    Router,
    /// In front of services of the mesh.
    Waypoint,
}

impl Role {
    /// The same in words of routing.
    pub(crate) fn kind(self) -> GatewayKind {
        match self {
            Self::Router => GatewayKind::Ingress,
            Self::Waypoint => GatewayKind::Waypoint,
        }
    }
}

/// Values of the process; they never change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the gateway is for; first argument or `proxy <role>`.
    pub role: Role,
    /// The Gateway that it serves: `POD_NAMESPACE` and `GATEWAY_NAME`.
    pub gateway: GatewayName,
    /// Its namespace: `POD_NAMESPACE`.
    pub namespace: Namespace,
    /// Its own identity: `TRUST_DOMAIN` (cluster.local), `POD_NAMESPACE`, `SERVICE_ACCOUNT`.
    pub identity: Identity,
    /// Trust domains of the mesh, whose names only its own roots prove: its identity's, and those
    /// of `TRUST_DOMAIN_ALIASES`, separated by commas.
    pub trust_domains: Vec<TrustDomain>,
    /// Name of its pod: `POD_NAME`.
    pub pod: String,
    /// Name of its node: `NODE_NAME`.
    pub node: String,
    /// Its addresses: `INSTANCE_IP` and `INSTANCE_IPS`, separated by commas.
    pub addresses: Vec<IpAddr>,
    /// Cluster: `CLUSTER_ID` (Kubernetes).
    pub cluster: String,
    /// Network: `NETWORK` (the default one).
    pub network: String,
    /// The controller: `XDS_ADDRESS` (`https://istiod.istio-system.svc:15012`).
    pub xds_address: String,
    /// Who signs certificates: `CA_ADDRESS` (the controller).
    pub ca_address: String,
    /// Roots that the controller's certificate chains to: file `XDS_ROOT_CA`.
    pub xds_root: PathBuf,
    /// Roots that the authority's certificate chains to: file `CA_ROOT_CA`.
    pub ca_root: PathBuf,
    /// Token that proves the pod: file `TOKEN_FILE`.
    pub token: PathBuf,
    /// Workers: `GATEWAY_WORKER_THREADS` (the CPU limit, else all cores).
    pub workers: usize,
    /// Where listeners bind: all addresses, IPv6 and IPv4.
    pub bind: IpAddr,
    /// Admin: `127.0.0.1:15000`.
    pub admin: SocketAddr,
    /// Readiness: port 15021 of all addresses.
    pub readiness: SocketAddr,
    /// Metrics: port 15020 of all addresses.
    pub stats: SocketAddr,
    /// Limits.
    pub limits: GatewayLimits,
}

/// Limits beyond those of HTTP.
#[derive(Clone, Debug)]
pub struct GatewayLimits {
    /// Of HTTP connections and messages.
    pub http: Limits,
    /// From accept to the end of TLS, or of a PROXY protocol header: 10 s.
    pub handshake: Duration,
    /// Handshakes at once on one worker: 1,000. Beyond it connections are closed at once.
    pub handshakes: usize,
    /// To make a connection to a backend, TLS included: 5 s.
    pub connect: Duration,
    /// Requests at once on one worker: 20,000. Beyond it: 503.
    pub requests: usize,
    /// A TCP connection of which nothing comes either way is closed after this: 1 h.
    pub tcp_idle: Duration,
    /// A UDP session without datagrams ends after this: 60 s.
    pub udp_idle: Duration,
    /// UDP sessions of one port: 4,096. Beyond it datagrams of new clients are dropped.
    pub udp_sessions: usize,
    /// Bytes of a mirrored request that may wait for a slow mirror: 64 pieces.
    pub mirror_queue: usize,
    /// Mirrored requests at once on one worker: 256. Beyond it copies are not sent.
    pub mirrors: usize,
    /// A mirrored request is dropped after this: 30 s.
    pub mirror_time: Duration,
    /// From SIGTERM to the end: `TERMINATION_DRAIN_DURATION_SECONDS` (5 s).
    pub drain: Duration,
}

impl Default for GatewayLimits {
    fn default() -> Self {
        let second = Duration::from_secs;
        Self {
            http: Limits::default(),
            handshake: second(10),
            handshakes: 1_000,
            connect: second(5),
            requests: 20_000,
            tcp_idle: second(3_600),
            udp_idle: second(60),
            udp_sessions: 4_096,
            mirror_queue: 64,
            mirrors: 256,
            mirror_time: second(30),
            drain: second(5),
        }
    }
}

/// All that is wrong with the environment.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("settings: {}", .0.join("; "))]
pub struct SettingsError(pub Vec<String>);

const XDS_ADDRESS: &str = "https://istiod.istio-system.svc:15012";
const ROOT: &str = "/var/run/secrets/istio/root-cert.pem";
const TOKEN: &str = "/var/run/secrets/tokens/istio-token";

impl Settings {
    /// Reads the process's own arguments and environment.
    ///
    /// # Errors
    ///
    /// Everything that is missing or malformed, at once.
    pub fn from_process() -> Result<Self, SettingsError> {
        Self::read(std::env::args().skip(1), |name| std::env::var(name).ok())
    }

    /// Reads `arguments` and the variables that `look` finds.
    ///
    /// # Errors
    ///
    /// Everything that is missing or malformed, at once.
    pub fn read(
        mut arguments: impl Iterator<Item = String>,
        look: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, SettingsError> {
        let waypoint = arguments.any(|argument| argument == "waypoint");
        let mut read = Reader { look, problems: Vec::new() };
        let namespace: Option<Namespace> = read.parsed("POD_NAMESPACE", None);
        let account: Option<ServiceAccount> = read.parsed("SERVICE_ACCOUNT", None);
        let trust_domain: Option<TrustDomain> = read.parsed("TRUST_DOMAIN", Some("cluster.local"));
        let gateway = read.text("GATEWAY_NAME", None);
        let xds_address = read.text("XDS_ADDRESS", Some(XDS_ADDRESS));
        let xds_root = read.text("XDS_ROOT_CA", Some(ROOT));
        let cores = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let drain = read.parsed("TERMINATION_DRAIN_DURATION_SECONDS", Some("5"));
        let workers = read.parsed("GATEWAY_WORKER_THREADS", Some(&cores));
        let aliases: Vec<TrustDomain> = read.list("TRUST_DOMAIN_ALIASES");
        let mut addresses: Vec<IpAddr> = read.list("INSTANCE_IP");
        addresses.extend(read.list::<IpAddr>("INSTANCE_IPS"));
        addresses.dedup();
        let name = |ns: &Namespace| format!("{ns}/{gateway}").parse::<GatewayName>();
        let gateway = namespace.as_ref().map(name).transpose();
        let gateway = gateway.map_err(|error| read.problems.push(error.to_string()));
        let bind: IpAddr =
            if ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let limits = GatewayLimits {
            drain: Duration::from_secs(drain.unwrap_or_default()),
            ..GatewayLimits::default()
        };
        let ca_address = read.text("CA_ADDRESS", Some(&xds_address));
        let ca_root = read.text("CA_ROOT_CA", Some(&xds_root)).into();
        let (pod, node) = (read.text("POD_NAME", None), read.text("NODE_NAME", Some("")));
        let cluster = read.text("CLUSTER_ID", Some("Kubernetes"));
        let network = read.text("NETWORK", Some(""));
        let token = read.text("TOKEN_FILE", Some(TOKEN)).into();
        let parts = (trust_domain, namespace, account, gateway.ok().flatten());
        let (Some(trust_domain), Some(namespace), Some(account), Some(gateway)) = parts else {
            return Err(SettingsError(read.problems));
        };
        if !read.problems.is_empty() {
            return Err(SettingsError(read.problems));
        }
        Ok(Self {
            role: if waypoint { Role::Waypoint } else { Role::Router },
            gateway,
            identity: Identity::new(&trust_domain, &namespace, &account),
            trust_domains: std::iter::once(trust_domain).chain(aliases).collect(),
            namespace,
            pod,
            node,
            addresses,
            cluster,
            network,
            xds_address,
            ca_address,
            xds_root: xds_root.into(),
            ca_root,
            token,
            workers: workers.unwrap_or(1),
            bind,
            admin: (Ipv4Addr::LOCALHOST, 15000).into(),
            readiness: (bind, 15021).into(),
            stats: (bind, 15020).into(),
            limits,
        })
    }
}

/// True if this network namespace has IPv6.
fn ipv6() -> bool {
    std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Reads variables and collects what is wrong with them.
struct Reader<L> {
    look: L,
    problems: Vec<String>,
}

impl<L: Fn(&str) -> Option<String>> Reader<L> {
    fn text(&mut self, name: &str, default: Option<&str>) -> String {
        match (self.look)(name).filter(|text| !text.is_empty()) {
            Some(text) => text,
            None => default.map(str::to_owned).unwrap_or_else(|| {
                self.problems.push(format!("{name} is not set"));
                String::new()
            }),
        }
    }

    fn parsed<T>(&mut self, name: &str, default: Option<&str>) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let before = self.problems.len();
        let text = self.text(name, default);
        if self.problems.len() > before {
            return None;
        }
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(format!("{name}: {error}"));
                None
            }
        }
    }

    /// Values separated by commas.
    fn list<T>(&mut self, name: &str) -> Vec<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        let text = self.text(name, Some(""));
        let mut values = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.parse() {
                Ok(value) => values.push(value),
                Err(error) => self.problems.push(format!("{name}: {part:?}: {error}")),
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn read(arguments: &[&str], extra: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let mut all = HashMap::from([
            ("POD_NAMESPACE", "shop"),
            ("SERVICE_ACCOUNT", "waypoint"),
            ("GATEWAY_NAME", "waypoint"),
            ("POD_NAME", "waypoint-1"),
        ]);
        all.extend(extra.iter().copied());
        let look = |name: &str| all.get(name).map(|text| (*text).to_owned());
        Settings::read(arguments.iter().map(|text| (*text).to_owned()), look)
    }

    #[test]
    fn istio_names_are_read_and_the_rest_has_defaults() {
        let extra = [
            ("INSTANCE_IP", "10.244.1.9"),
            ("INSTANCE_IPS", "10.244.1.9,fd00::9"),
            ("XDS_ADDRESS", "https://10.254.0.1:15012"),
            ("TERMINATION_DRAIN_DURATION_SECONDS", "7"),
            ("TRUST_DOMAIN_ALIASES", "old.example,older.example"),
        ];
        let settings = read(&["proxy", "waypoint"], &extra).unwrap();
        assert_eq!(settings.role, Role::Waypoint);
        assert_eq!(settings.gateway.as_str(), "shop/waypoint");
        assert_eq!(settings.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/waypoint");
        assert_eq!(settings.addresses.len(), 2);
        let domains = ["cluster.local", "old.example", "older.example"];
        assert_eq!(settings.trust_domains, domains.map(|name| name.parse().unwrap()));
        assert_eq!(settings.ca_address, "https://10.254.0.1:15012");
        assert_eq!(settings.limits.drain, Duration::from_secs(7));
        assert_eq!(read(&["proxy", "router"], &[]).unwrap().role, Role::Router);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let extra = [("POD_NAMESPACE", "No"), ("SERVICE_ACCOUNT", ""), ("INSTANCE_IP", "x")];
        let SettingsError(problems) = read(&[], &extra).unwrap_err();
        for name in ["POD_NAMESPACE", "SERVICE_ACCOUNT", "INSTANCE_IP"] {
            assert!(problems.iter().any(|p| p.starts_with(name)), "{name} in {problems:?}");
        }
    }
}
