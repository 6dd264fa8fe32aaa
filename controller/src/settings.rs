// SPDX-License-Identifier: Apache-2.0

//! What is fixed when the controller starts: the only reader of flags and environment.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use policy::duration::parse_duration;

use crate::discovery::Selectors;
use crate::provision::pods::Pods;

/// What holds for the whole mesh; translators read it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// Namespace whose policies hold everywhere.
    pub root_namespace: Arc<str>,
    /// Trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// Trust domains that policies may name it by too.
    pub trust_domain_aliases: Arc<[Arc<str>]>,
    /// Name of the cluster on the wire.
    pub cluster_id: Arc<str>,
    /// Namespaces that are looked at.
    pub discovery: Selectors,
    /// Namespaces whose pods never belong in the mesh, besides those for which that always holds.
    pub excluded: Arc<[Arc<str>]>,
    /// What the proxies of Gateways are told.
    pub proxies: Proxies,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            root_namespace: "istio-system".into(),
            trust_domain: "cluster.local".into(),
            trust_domain_aliases: Arc::default(),
            cluster_id: "Kubernetes".into(),
            discovery: Selectors::default(),
            excluded: Arc::default(),
            proxies: Proxies::default(),
        }
    }
}

/// Names, from a JSON list.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Names(Arc<[Arc<str>]>);

impl FromStr for Names {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, serde_json::Error> {
        let names: Vec<String> = serde_json::from_str(text)?;
        Ok(Self(names.into_iter().map(Arc::from).collect()))
    }
}

impl Mesh {
    /// The trust domain, then its aliases.
    pub fn trust_domains(&self) -> Vec<Arc<str>> {
        let own = std::iter::once(&self.trust_domain);
        own.chain(&*self.trust_domain_aliases).map(Arc::clone).collect()
    }
}

/// What the proxies of Gateways are told, and what their pods are made with.
#[derive(Clone, Debug, PartialEq)]
pub struct Proxies {
    /// Their image.
    pub image: Arc<str>,
    /// Where they find the controller.
    pub address: Arc<str>,
    /// File with the roots of the controller's certificate.
    pub root_file: Arc<str>,
    /// File with their token.
    pub token_file: Arc<str>,
    /// What their pods have, unless a Gateway or its class says otherwise.
    pub pods: Pods,
}

impl Proxies {
    /// Tells whether a kubelet brings token and roots, as volumes.
    pub fn in_cluster(&self) -> bool {
        *self.token_file == *TOKEN_FILE
    }
}

impl Default for Proxies {
    fn default() -> Self {
        Self {
            image: IMAGE.into(),
            address: ADDRESS.into(),
            root_file: ROOT_FILE.into(),
            token_file: TOKEN_FILE.into(),
            pods: Pods::default(),
        }
    }
}

/// Port of the admin endpoints on the loopback of a controller's pod.
pub const ADMIN_PORT: u16 = 15000;

const IMAGE: &str = concat!("waymark/gateway:", env!("CARGO_PKG_VERSION"));
const ADDRESS: &str = "https://istiod.istio-system.svc:15012";
const ROOT_FILE: &str = "/var/run/secrets/istio/root-cert.pem";
const TOKEN_FILE: &str = "/var/run/secrets/tokens/istio-token";

/// Flags of `waymark-controller`.
#[derive(Clone, Debug, Parser)]
#[command(name = "waymark-controller", about = "Control plane of Waymark", version)]
pub struct Settings {
    /// Folder with YAML objects; the last one that holds an object wins. The first is edited by
    /// people: a file of it may be away for a moment. Without one, objects come from Kubernetes.
    #[arg(long = "folder", requires = "ca_dir")]
    pub folders: Vec<PathBuf>,

    /// Directory that takes the objects made for Gateways; it is read like a folder.
    #[arg(long, requires = "folders")]
    pub provision_dir: Option<PathBuf>,

    /// Unix socket of the admin endpoints.
    #[arg(long)]
    pub admin_socket: Option<PathBuf>,

    /// Address of the admin endpoints, of this machine or pod alone: nobody is asked who he is.
    #[arg(long)]
    pub admin_address: Option<SocketAddr>,

    /// Address where anybody may ask for `/metrics` and `/version`.
    #[arg(long)]
    pub monitoring_address: Option<SocketAddr>,

    /// Address where anybody may ask whether this controller is ready: `/ready`.
    #[arg(long)]
    pub ready_address: Option<SocketAddr>,

    /// Where discovery, certificates and reports are served.
    #[arg(long, default_value = "[::]:15012")]
    pub listen: SocketAddr,

    /// Directory with `root-cert.pem` (all roots to trust), `root-key.pem` (the key of the one
    /// that signs) and `token-key.pem`; what is missing is made, and what changes acts at once.
    /// For folders only: on Kubernetes they are Secrets.
    #[arg(long)]
    pub ca_dir: Option<PathBuf>,

    /// File that is kept to hold the roots in force, for proxies of this machine.
    #[arg(long, requires = "ca_dir")]
    pub roots_file: Option<PathBuf>,

    /// Namespace of this controller on Kubernetes.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    pub namespace: String,

    /// Name of this controller among its replicas.
    #[arg(long, env = "POD_NAME", default_value = "waymark-controller")]
    pub pod_name: String,

    /// Address of this controller among its replicas; they find the leader by it.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,

    /// File with the token of this controller's pod, for the replica that leads.
    #[arg(long, default_value = TOKEN_FILE)]
    pub token_file: PathBuf,

    /// File that keeps the proven pods over a restart; beside the certificates when absent.
    #[arg(long)]
    pub state_file: Option<PathBuf>,

    /// More DNS names or IP addresses for the server's own certificate.
    #[arg(long = "server-name")]
    pub server_names: Vec<String>,

    /// Namespace whose policies hold everywhere.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,

    /// Trust domain of every identity.
    #[arg(long, default_value = "cluster.local")]
    pub trust_domain: String,

    /// Trust domains that principals in policies may name it by too, as a JSON list.
    #[arg(long, default_value = "[]")]
    pub trust_domain_aliases: Names,

    /// Label selectors of the namespaces that are looked at, as a JSON list; none takes all.
    #[arg(long, default_value = "[]")]
    pub discovery_selectors: Selectors,

    /// Namespaces whose pods never belong in the mesh, as a JSON list; kube-system and the root
    /// namespace always are such.
    #[arg(long, default_value = "[]")]
    pub exclude_namespaces: Names,

    /// Name of the cluster on the wire.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,

    /// Image of the proxies that are made for Gateways.
    #[arg(long, default_value = IMAGE)]
    pub gateway_image: String,

    /// What pods of Gateways have below all parameters, as a JSON object: imagePullPolicy,
    /// imagePullSecrets (names), logAsJson, and for `ingress` and `waypoint` each resources, affinity,
    /// topologySpreadConstraints, nodeSelector, tolerations.
    #[arg(long, default_value = "{}")]
    pub gateway_pods: Pods,

    /// Where proxies of Gateways find this controller.
    #[arg(long, default_value = ADDRESS)]
    pub gateway_xds_address: String,

    /// File with the roots of this controller's certificate, as proxies of Gateways see it.
    #[arg(long, default_value = ROOT_FILE)]
    pub gateway_root_file: String,

    /// File with the token of a proxy of a Gateway; may hold `$(POD_UID)`.
    #[arg(long, default_value = TOKEN_FILE)]
    pub gateway_token_file: String,

    /// Service accounts, `namespace/name`, that may ask for certificates of the pods on their node.
    #[arg(long = "trusted-node-account", default_value = "istio-system/ztunnel")]
    pub trusted_node_accounts: Vec<String>,

    /// Service accounts, `namespace/name`, that may report the pods of their node.
    #[arg(long = "agent-account", default_value = "istio-system/waymark-agent")]
    pub agent_accounts: Vec<String>,

    /// Service accounts, `namespace/name`, of controllers: they may follow the one that leads.
    #[arg(long = "controller-account", default_value = "istio-system/waymark-controller")]
    pub controller_accounts: Vec<String>,

    /// Key of a taint that is taken off a node once its agent and tunnel serve it.
    #[arg(long)]
    pub startup_taint: Option<String>,

    /// Time from one fetch of a token issuer's keys to the next, as `20m` or `1h30m`.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = interval)]
    pub jwt_keys_refresh: Duration,

    /// Longest life of a workload certificate, in seconds.
    #[arg(long, default_value_t = 86_400)]
    pub certificate_ttl: u64,

    /// Seconds after which a silent client is named and no longer waited for.
    #[arg(long, default_value_t = 10)]
    pub silent_after: u64,

    /// Seconds that sessions past a new waypoint may go on before the guard ends them.
    #[arg(long, default_value_t = 5)]
    pub guard_drain: u64,

    /// Most clients served at once.
    #[arg(long, default_value_t = 10_000)]
    pub max_clients: usize,
}

/// A duration with units, of a second at least: whoever is asked is asked by every mesh.
fn interval(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    if time < Duration::from_secs(1) {
        return Err(format!("{text} is too short, wanted a second or more"));
    }
    Ok(time)
}

impl Settings {
    /// What translators read.
    pub fn mesh(&self) -> Mesh {
        Mesh {
            root_namespace: self.root_namespace.as_str().into(),
            trust_domain: self.trust_domain.as_str().into(),
            trust_domain_aliases: Arc::clone(&self.trust_domain_aliases.0),
            cluster_id: self.cluster_id.as_str().into(),
            discovery: self.discovery(),
            excluded: Arc::clone(&self.exclude_namespaces.0),
            proxies: Proxies {
                image: self.gateway_image.as_str().into(),
                address: self.gateway_xds_address.as_str().into(),
                root_file: self.gateway_root_file.as_str().into(),
                token_file: self.gateway_token_file.as_str().into(),
                pods: self.gateway_pods.clone(),
            },
        }
    }

    /// Namespaces that are looked at; those of the mesh's own parts always are.
    pub fn discovery(&self) -> Selectors {
        let accounts = [&self.trusted_node_accounts, &self.agent_accounts];
        let accounts = accounts.into_iter().chain([&self.controller_accounts]).flatten();
        let parts = accounts.filter_map(|account| Some(account.split_once('/')?.0.to_owned()));
        let own = [self.root_namespace.clone(), self.namespace.clone()];
        self.discovery_selectors.clone().and_always(parts.chain(own))
    }

    /// Where other replicas find this controller, if its own address is known.
    pub fn own_address(&self) -> Option<SocketAddr> {
        self.pod_ip.map(|ip| SocketAddr::new(ip, self.listen.port()))
    }

    /// How long to wait for a silent client.
    pub fn silence(&self) -> Duration {
        Duration::from_secs(self.silent_after)
    }

    /// How long sessions past a new waypoint may go on.
    pub fn guard_drain(&self) -> Duration {
        Duration::from_secs(self.guard_drain)
    }

    /// The file that keeps the proven pods; on Kubernetes the pods themselves say it.
    pub fn state_path(&self) -> Option<PathBuf> {
        let beside = || self.ca_dir.as_ref().map(|directory| directory.join("enrolled.json"));
        self.state_file.clone().or_else(beside)
    }

    /// All folders; those of generated objects come first, so that any other overrides them.
    pub fn all_folders(&self) -> Vec<PathBuf> {
        self.provision_dir.iter().chain(&self.folders).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trust_domains_are_the_own_one_and_its_aliases() {
        let domains = |arguments: &[&str]| {
            let arguments = ["waymark-controller"].iter().chain(arguments);
            let settings = Settings::try_parse_from(arguments)?;
            Ok::<_, clap::Error>(settings.mesh().trust_domains())
        };
        assert_eq!(domains(&[]).unwrap(), ["cluster.local".into()]);
        let given = ["--trust-domain=new", r#"--trust-domain-aliases=["old","older"]"#];
        assert_eq!(domains(&given).unwrap(), ["new", "old", "older"].map(Arc::from));
        assert!(domains(&["--trust-domain-aliases=old"]).is_err(), "no JSON list");
    }

    #[test]
    fn the_time_between_fetches_of_keys_has_a_unit_and_a_lower_limit() {
        let of = |text: &str| {
            let flag = format!("--jwt-keys-refresh={text}");
            Settings::try_parse_from(["waymark-controller", &flag]).map(|one| one.jwt_keys_refresh)
        };
        assert_eq!(of("1h30m").unwrap(), Duration::from_secs(90 * 60));
        let unset = Settings::try_parse_from(["waymark-controller"]).unwrap();
        assert_eq!(unset.jwt_keys_refresh, Duration::from_secs(20 * 60));
        for wrong in ["20", "0s", "500ms", "-1m", "soon"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
