// SPDX-License-Identifier: Apache-2.0

//! What the agent is told at its start.
//!
//! Owns: names, defaults and reading of its environment variables; nothing else
//! in the agent reads the environment. All problems are reported together.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use super::install::Places;
use crate::sys;

/// Settings of one agent; they do not change while it runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// `NODE_NAME`: the node this agent serves.
    pub node: String,
    /// `POD_NAME`, `POD_NAMESPACE`, `SERVICE_ACCOUNT`, `INSTANCE_IP`, `CLUSTER_ID`.
    pub own: Own,
    /// `XDS_ADDRESS`: URL of the controller.
    pub controller: String,
    /// `XDS_ROOT_CA`: file of the certificates that the controller's must chain to.
    pub root_certificates: PathBuf,
    /// `TOKEN_FILE`: file of the token that the controller asks for; read again as it changes.
    pub token: PathBuf,
    /// `AGENT_RUN_DIR`: folder of the agent's socket and files.
    pub folder: PathBuf,
    /// `INPOD_UDS`: socket for the tunnel, by default `ztunnel.sock` in the folder.
    pub tunnel_socket: PathBuf,
    /// `AGENT_PROC`: where the node's processes are seen.
    pub proc: PathBuf,
    /// `AGENT_NODE_NETNS`: file of the node's network namespace, by default the agent's own.
    pub node_netns: PathBuf,
    /// `AGENT_KUBELET_UID`: user that the kubelet runs as.
    pub kubelet_user: u32,
    /// `AGENT_DRAIN_SECONDS`: longest wait for captured connections of a released pod.
    pub drain: Duration,
    /// `AGENT_CNI_BIN_DIR`, `AGENT_CNI_CONF_DIR`: where the container runtime looks for plug-ins
    /// and their configurations. Without both, nothing is put there.
    pub plugins: Option<Places>,
    /// `AGENT_LISTEN`: addresses for readiness and metrics, separated by commas.
    pub listen: Vec<SocketAddr>,
}

/// Who the agent itself is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Own {
    /// Its pod.
    pub name: String,
    /// Namespace of its pod.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Its address.
    pub ip: IpAddr,
    /// The cluster it is in.
    pub cluster: String,
}

/// What is wrong with the environment.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct SettingsError(Vec<String>);

/// Ports of readiness and metrics, those of Istio's node agent.
const PORTS: [u16; 2] = [8000, 15014];

impl Settings {
    /// Reads the settings; `variable` gives the value of an environment variable.
    ///
    /// # Errors
    ///
    /// Names every variable that is missing or cannot be read.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let mut reader = Reader { variable, problems: Vec::new() };
        let folder: PathBuf = reader.or("AGENT_RUN_DIR", "/var/run/istio-cni");
        let beside = folder.join("ztunnel.sock").display().to_string();
        let settings = Self {
            node: reader.required("NODE_NAME"),
            own: Own {
                name: reader.or("POD_NAME", "waymark-agent"),
                namespace: reader.or("POD_NAMESPACE", "istio-system"),
                service_account: reader.or("SERVICE_ACCOUNT", "waymark-agent"),
                ip: reader.or("INSTANCE_IP", "127.0.0.1"),
                cluster: reader.or("CLUSTER_ID", "Kubernetes"),
            },
            controller: reader.or("XDS_ADDRESS", "https://istiod.istio-system.svc:15012"),
            root_certificates: reader.or("XDS_ROOT_CA", "./var/run/secrets/istio/root-cert.pem"),
            token: reader.or("TOKEN_FILE", "./var/run/secrets/tokens/istio-token"),
            tunnel_socket: reader.or("INPOD_UDS", &beside),
            proc: reader.or("AGENT_PROC", "/proc"),
            node_netns: reader.or("AGENT_NODE_NETNS", "/proc/self/ns/net"),
            kubelet_user: reader.or("AGENT_KUBELET_UID", "0"),
            drain: Duration::from_secs(reader.or("AGENT_DRAIN_SECONDS", "600")),
            plugins: reader.plugins(&folder),
            listen: reader.addresses("AGENT_LISTEN"),
            folder,
        };
        match reader.problems.is_empty() {
            true => Ok(settings),
            false => Err(SettingsError(reader.problems)),
        }
    }
}

struct Reader<F> {
    variable: F,
    problems: Vec<String>,
}

impl<F: Fn(&str) -> Option<String>> Reader<F> {
    fn required(&mut self, name: &str) -> String {
        let value = (self.variable)(name).unwrap_or_default();
        if value.is_empty() {
            self.problems.push(format!("{name} is not set"));
        }
        value
    }

    fn or<T>(&mut self, name: &str, default: &str) -> T
    where
        T: FromStr + Fallback,
    {
        let text = (self.variable)(name).filter(|text| !text.is_empty());
        let text = text.as_deref().unwrap_or(default);
        text.parse().unwrap_or_else(|_| {
            self.problems.push(format!("{name}: {text:?} is not {}", T::WANTED));
            T::fallback()
        })
    }

    fn plugins(&mut self, folder: &Path) -> Option<Places> {
        let path = |name| (self.variable)(name).filter(|path| !path.is_empty());
        let (programs, configurations) = (path("AGENT_CNI_BIN_DIR"), path("AGENT_CNI_CONF_DIR"));
        let (programs, configurations) = programs.zip(configurations)?;
        Some(Places {
            programs: programs.into(),
            configurations: configurations.into(),
            plugin: self.or("AGENT_CNI_PLUGIN", "/usr/local/bin/waymark-cni"),
            agent: folder.to_owned(),
        })
    }

    fn addresses(&mut self, name: &str) -> Vec<SocketAddr> {
        let Some(text) = (self.variable)(name) else {
            return PORTS.map(sys::any_address).to_vec();
        };
        let parts = text.split(',').filter(|part| !part.trim().is_empty());
        let mut all = Vec::new();
        for part in parts {
            match part.trim().parse() {
                Ok(address) => all.push(address),
                Err(_) => self.problems.push(format!("{name}: {part:?} is not ADDRESS:PORT")),
            }
        }
        all
    }
}

/// What stands in for a value that cannot be read, until the problem is reported.
trait Fallback {
    const WANTED: &'static str;
    fn fallback() -> Self;
}

impl Fallback for String {
    const WANTED: &'static str = "text";
    fn fallback() -> Self {
        Self::new()
    }
}

impl Fallback for PathBuf {
    const WANTED: &'static str = "a path";
    fn fallback() -> Self {
        Self::new()
    }
}

impl Fallback for IpAddr {
    const WANTED: &'static str = "an IP address";
    fn fallback() -> Self {
        std::net::Ipv4Addr::LOCALHOST.into()
    }
}

impl Fallback for u32 {
    const WANTED: &'static str = "a number";
    fn fallback() -> Self {
        0
    }
}

impl Fallback for u64 {
    const WANTED: &'static str = "a number of seconds";
    fn fallback() -> Self {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, SettingsError> {
        let find =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, v)| v.to_string());
        Settings::read(find)
    }

    #[test]
    fn defaults_follow_the_folder() {
        let settings = read(&[("NODE_NAME", "node-1"), ("AGENT_RUN_DIR", "/run/x")]).unwrap();
        assert_eq!(settings.tunnel_socket, PathBuf::from("/run/x/ztunnel.sock"));
        assert_eq!(settings.listen.len(), 2);
        let none = read(&[("NODE_NAME", "node-1"), ("AGENT_LISTEN", "")]).unwrap();
        assert_eq!(none.listen, []);
        assert_eq!(none.plugins, None);
        let both = [("AGENT_CNI_BIN_DIR", "/b"), ("AGENT_CNI_CONF_DIR", "/c"), ("NODE_NAME", "n")];
        assert_eq!(read(&both).unwrap().plugins.unwrap().configurations, Path::new("/c"));
    }

    #[test]
    fn all_problems_are_reported_together() {
        let error = read(&[
            ("INSTANCE_IP", "10.1"),
            ("AGENT_KUBELET_UID", "root"),
            ("AGENT_LISTEN", "8000,[::1]:1"),
        ]);
        let text = error.unwrap_err().to_string();
        for want in ["NODE_NAME", "INSTANCE_IP", "AGENT_KUBELET_UID", "AGENT_LISTEN: \"8000\""] {
            assert!(text.contains(want), "{want} in {text}");
        }
    }
}
