// SPDX-License-Identifier: Apache-2.0

//! What the tunnel is told at its start, and every limit by name.
//!
//! The only reader of the environment (the agent has its own). Names are those
//! of Istio's ztunnel where it has the thing. All problems are reported together.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::control::Controller;
use crate::credentials::trust::Trust;
use crate::hbone;
use crate::sys::Keepalive;
use crate::trace::MILLION;

/// Values of the process; they never change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where configuration comes from: `XDS_ADDRESS`, `XDS_ROOT_CA`, `ALT_XDS_HOSTNAME`.
    pub discovery: Controller,
    /// Who signs certificates: `CA_ADDRESS`, `CA_ROOT_CA`, `ALT_CA_HOSTNAME`.
    pub authority: Controller,
    /// Life asked for certificates: `SECRET_TTL`, 24 h.
    pub certificate_life: Duration,
    /// File of lists of revoked certificates, if there is one to follow: `CRL_PATH`.
    pub revocations: Option<PathBuf>,
    /// Our own pod: `POD_NAME`, `POD_NAMESPACE`, `INSTANCE_IP`.
    pub own: OwnPod,
    /// Node that we serve: `NODE_NAME`.
    pub node: String,
    /// Cluster: `CLUSTER_ID` or `ISTIO_META_CLUSTER_ID`, `Kubernetes`.
    pub cluster: String,
    /// Network: `NETWORK`, the default one.
    pub network: String,
    /// Trust domain of pods whose workload is not known yet: `TRUST_DOMAIN`, cluster.local.
    pub trust_domain: String,
    /// Socket of the agent: `INPOD_UDS`.
    pub agent: PathBuf,
    /// Workers: `ZTUNNEL_WORKER_THREADS`, capped by `ZTUNNEL_CPU_LIMIT`.
    pub workers: usize,
    /// Mark of our sockets: `PACKET_MARK`, 1337.
    pub mark: u32,
    /// Keeps the caller's address towards the application: `ENABLE_ORIG_SRC`, yes.
    pub keep_source: bool,
    /// Old and new process may listen side by side: `INPOD_PORT_REUSE`, yes.
    pub reuse_port: bool,
    /// Answers name queries: `DNS_PROXY`, yes.
    pub names: bool,
    /// Domain of the cluster: `CLUSTER_DOMAIN`, `cluster.local`.
    pub cluster_domain: String,
    /// Who answers names outside the mesh: `RESOLV_CONF`, /etc/resolv.conf.
    pub resolver: PathBuf,
    /// Admin: `ADMIN_ADDR`, 127.0.0.1:15000.
    pub admin: SocketAddr,
    /// Metrics: `STATS_ADDR`, port 15020 of all addresses.
    pub stats: SocketAddr,
    /// Readiness: `READINESS_ADDR`, port 15021 of all addresses.
    pub readiness: SocketAddr,
    /// Collector of spans, a URL: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, else
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`; none, and there are no spans.
    pub collector: Option<String>,
    /// Connections whose trace begins here and is sampled, out of a million:
    /// `OTEL_TRACES_SAMPLER_ARG`, a fraction, 1.
    pub sampled_per_million: u32,
    /// Log lines are JSON: `LOG_FORMAT=json`.
    pub log_json: bool,
    /// Limits.
    pub limits: Limits,
}

/// Who we are ourselves.
#[derive(Clone, Debug)]
pub struct OwnPod {
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its address.
    pub address: IpAddr,
}

/// Every bound of the tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of HBONE connections.
    pub hbone: hbone::Limits,
    /// Time to reach an application or an endpoint: 10 s.
    pub connect: Duration,
    /// How long a connection waits for its workload, a policy or a certificate
    /// that has not arrived: 5 s.
    pub patience: Duration,
    /// Sessions and connections of one pod at once: 20,000; beyond it new ones are closed.
    pub pod_sessions: usize,
    /// Set-ups of one pod under way on all workers: 1,000; beyond it new ones are closed.
    pub pod_handshakes: usize,
    /// Name queries of one pod at once: 500; beyond it they get no answer.
    pub pod_queries: usize,
    /// TCP keep-alive.
    pub keepalive: Keepalive,
    /// From the word to end until sessions are cut: a little less than the grace period.
    pub drain: Duration,
    /// From the end of one pod until its sessions are cut: `POD_DRAIN_SECONDS`, 1 h. Those
    /// of a pod that is gone end by themselves, for its application is gone too.
    pub pod_drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let probe = Duration::from_secs(180);
        Self {
            hbone: hbone::Limits::default(),
            connect: Duration::from_secs(10),
            patience: Duration::from_secs(5),
            pod_sessions: 20_000,
            pod_handshakes: 1_000,
            pod_queries: 500,
            keepalive: Keepalive { idle: probe, interval: probe, probes: 9 },
            drain: Duration::from_secs(5),
            pod_drain: Duration::from_secs(3_600),
        }
    }
}

/// What is wrong with the environment, one line per variable.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct InvalidSettings(pub Vec<String>);

impl Settings {
    /// Reads the environment through `variable`.
    ///
    /// # Errors
    ///
    /// Names every variable that is missing or cannot be read.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, InvalidSettings> {
        let mut reader =
            Reader { variable: &variable, problems: Vec::new(), trust: Arc::default() };
        let settings = reader.settings();
        if reader.problems.is_empty() {
            Ok(settings)
        } else {
            Err(InvalidSettings(reader.problems))
        }
    }
}

struct Reader<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
    /// Of the whole process.
    trust: Arc<Trust>,
}

impl Reader<'_> {
    fn get<T>(&mut self, name: &str, default: T) -> T
    where
        T: FromStr,
        T::Err: Display,
    {
        let Some(text) = (self.variable)(name).filter(|text| !text.is_empty()) else {
            return default;
        };
        text.parse().unwrap_or_else(|error| {
            self.problems.push(format!("{name}: {error}"));
            default
        })
    }

    fn required(&mut self, name: &str) -> String {
        let value = self.get(name, String::new());
        if value.is_empty() {
            self.problems.push(format!("{name}: is not set"));
        }
        value
    }

    /// Seconds, or with units, as Istio writes them: `24h`, `1m30s`.
    fn seconds(&mut self, name: &str, default: u64) -> Duration {
        let default = Duration::from_secs(default);
        let Some(text) = (self.variable)(name).filter(|text| !text.is_empty()) else {
            return default;
        };
        let bare = text.parse().ok().map(Duration::from_secs);
        bare.map_or_else(|| policy::duration::parse_duration(&text), Ok).unwrap_or_else(|error| {
            self.problems.push(format!("{name}: {error}"));
            default
        })
    }

    fn settings(&mut self) -> Settings {
        let named = self.get("ISTIO_META_CLUSTER_ID", "Kubernetes".to_owned());
        let cluster = self.get("CLUSTER_ID", named);
        let discovery = self.controller("XDS", "https://istiod.istio-system.svc:15012", &cluster);
        let authority = self.controller("CA", &discovery.address, &cluster);
        let any = |port| SocketAddr::new(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED), port);
        Settings {
            discovery,
            authority,
            certificate_life: self.seconds("SECRET_TTL", 86_400),
            revocations: Some(self.get("CRL_PATH", PathBuf::new()))
                .filter(|path| !path.as_os_str().is_empty()),
            own: OwnPod {
                name: self.required("POD_NAME"),
                namespace: self.required("POD_NAMESPACE"),
                address: self.get("INSTANCE_IP", IpAddr::V4(Ipv4Addr::LOCALHOST)),
            },
            node: self.required("NODE_NAME"),
            cluster,
            network: self.get("NETWORK", String::new()),
            trust_domain: self.get("TRUST_DOMAIN", "cluster.local".to_owned()),
            agent: self.get("INPOD_UDS", PathBuf::from("/var/run/ztunnel/ztunnel.sock")),
            workers: self.workers(),
            mark: self.get("PACKET_MARK", 1337),
            keep_source: self.get("ENABLE_ORIG_SRC", true),
            reuse_port: self.get("INPOD_PORT_REUSE", true),
            names: self.get("DNS_PROXY", true),
            cluster_domain: self.get("CLUSTER_DOMAIN", "cluster.local".to_owned()),
            resolver: self.get("RESOLV_CONF", PathBuf::from("/etc/resolv.conf")),
            admin: self.get("ADMIN_ADDR", SocketAddr::from((Ipv4Addr::LOCALHOST, 15000))),
            stats: self.get("STATS_ADDR", any(15020)),
            readiness: self.get("READINESS_ADDR", any(15021)),
            collector: self.collector(),
            sampled_per_million: self.sampled(),
            log_json: self.get("LOG_FORMAT", String::new()) == "json",
            limits: self.limits(),
        }
    }

    fn controller(&mut self, prefix: &str, address: &str, cluster: &str) -> Controller {
        let root = format!("{prefix}_ROOT_CA");
        let own = PathBuf::from("./var/run/secrets/istio/root-cert.pem");
        let name = self.get(&format!("ALT_{prefix}_HOSTNAME"), String::new());
        Controller {
            address: self.get(&format!("{prefix}_ADDRESS"), address.to_owned()),
            roots: self.get(&root, own),
            name: (!name.is_empty()).then_some(name),
            token: self.get("TOKEN_FILE", PathBuf::from("./var/run/secrets/tokens/istio-token")),
            cluster: cluster.to_owned(),
            trust: Arc::clone(&self.trust),
        }
    }

    /// Istio's rule: told, in numbers or percent; else the most of two, a quarter
    /// of the cores and the CPU request; never more than the limit.
    fn workers(&mut self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let limit = self.get("ZTUNNEL_CPU_LIMIT", cores).clamp(1, cores);
        let told = self.get("ZTUNNEL_WORKER_THREADS", String::new());
        let request = self.get("RESOURCE_CPU_REQUEST", 0_usize);
        let count = match told.strip_suffix('%') {
            Some(share) => share.parse::<usize>().ok().map(|share| (cores * share).div_ceil(100)),
            None if told.is_empty() => Some(request.max(cores.div_ceil(4)).max(2)),
            None => told.parse().ok().map(|count| if count == 0 { cores } else { count }),
        };
        if count.is_none() {
            self.problems.push(format!("ZTUNNEL_WORKER_THREADS: {told:?} is no number"));
        }
        count.unwrap_or(1).clamp(1, limit.max(1))
    }

    fn collector(&mut self) -> Option<String> {
        let names = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
        names.into_iter().find_map(|name| {
            let url: String = self.get(name, String::new());
            let known = url.is_empty() || url.starts_with("http://");
            if !known {
                self.problems.push(format!("{name}: {url:?} is no URL that begins with http://"));
            }
            (known && !url.is_empty()).then_some(url)
        })
    }

    fn sampled(&mut self) -> u32 {
        let share: f64 = self.get("OTEL_TRACES_SAMPLER_ARG", 1.0);
        if !(0.0..=1.0).contains(&share) {
            self.problems.push(format!("OTEL_TRACES_SAMPLER_ARG: {share} is not from 0 to 1"));
            return 0;
        }
        // Counted rather than cast: the fraction is rounded to the next part of a million.
        let parts = (share * f64::from(MILLION)).round();
        format!("{parts:.0}").parse().unwrap_or(MILLION)
    }

    fn limits(&mut self) -> Limits {
        let standard = Limits::default();
        let hbone = hbone::Limits {
            stream_window: self.get("HTTP2_STREAM_WINDOW_SIZE", standard.hbone.stream_window),
            connection_window: self
                .get("HTTP2_CONNECTION_WINDOW_SIZE", standard.hbone.connection_window),
            frame: self.get("HTTP2_FRAME_SIZE", standard.hbone.frame),
            client_streams: self
                .get("POOL_MAX_STREAMS_PER_CONNECTION", standard.hbone.client_streams),
            idle: self.seconds("POOL_UNUSED_RELEASE_TIMEOUT", 300),
            ..standard.hbone
        };
        Limits {
            hbone,
            keepalive: Keepalive {
                idle: self.seconds("KEEPALIVE_TIME", 180),
                interval: self.seconds("KEEPALIVE_INTERVAL", 180),
                probes: self.get("KEEPALIVE_RETRIES", 9),
            },
            drain: self.drain(),
            pod_drain: self.seconds("POD_DRAIN_SECONDS", standard.pod_drain.as_secs()),
            pod_sessions: self.get("POD_MAX_SESSIONS", standard.pod_sessions),
            ..standard
        }
    }

    /// Istio's rule: told, else a little less than the pod's grace period.
    fn drain(&mut self) -> Duration {
        let grace: u64 = self.get("TERMINATION_GRACE_PERIOD_SECONDS", 0);
        let derived = match grace {
            0 => 5,
            1..=10 => grace.saturating_sub(1).max(1),
            _ => grace - 5,
        };
        self.seconds("CONNECTION_TERMINATION_DEADLINE", derived)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEEDED: [(&str, &str); 3] =
        [("POD_NAME", "ztunnel-x"), ("POD_NAMESPACE", "istio-system"), ("NODE_NAME", "node-1")];

    fn read(more: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
        let all: Vec<_> = more.iter().chain(&NEEDED).collect();
        let find = |name: &str| all.iter().find(|(key, _)| *key == name);
        Settings::read(|name| find(name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn defaults_are_those_of_the_protocol() {
        let settings = read(&[("XDS_ADDRESS", "https://example.test:15012")]).unwrap();
        assert_eq!(settings.authority.address, "https://example.test:15012");
        assert_eq!((settings.mark, settings.limits.drain.as_secs()), (1337, 5));
        assert_eq!(settings.admin.to_string(), "127.0.0.1:15000");
        assert!(settings.workers >= 1 && settings.keep_source && settings.names);
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let bad = [("PACKET_MARK", "x"), ("ADMIN_ADDR", "y"), ("ZTUNNEL_WORKER_THREADS", "z")];
        let InvalidSettings(problems) = read(&bad).map(|_| ()).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn spans_go_where_opentelemetrys_own_variables_say() {
        let url = "http://collector.test:4317";
        type Row<'a> = (&'a [(&'a str, &'a str)], Option<&'a str>, u32);
        let rows: [Row<'_>; 4] = [
            (&[], None, MILLION),
            (&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)], Some(url), MILLION),
            (
                &[
                    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url),
                    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://other.test"),
                    ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
                ],
                Some(url),
                MILLION / 4,
            ),
            (&[("OTEL_TRACES_SAMPLER_ARG", "0")], None, 0),
        ];
        for (variables, collector, sampled) in rows {
            let settings = read(variables).unwrap();
            let got = (settings.collector.as_deref(), settings.sampled_per_million);
            assert_eq!(got, (collector, sampled), "{variables:?}");
        }
        let bad = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector.test"),
            ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ];
        let InvalidSettings(problems) = read(&bad).map(|_| ()).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn what_istios_chart_sets_is_taken() {
        let settings = read(&[
            ("CA_ADDRESS", "https://istiod.mesh.svc:15012"),
            ("XDS_ADDRESS", "https://istiod.mesh.svc:15012"),
            ("NETWORK", "far"),
            ("RUST_LOG", "info"),
            ("LOG_FORMAT", "json"),
            ("ISTIO_META_CLUSTER_ID", "east"),
            ("ISTIO_META_ENABLE_HBONE", "true"),
            ("INPOD_ENABLED", "true"),
            ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
            ("INSTANCE_IP", "10.244.1.7"),
            ("SERVICE_ACCOUNT", "ztunnel"),
            ("ZTUNNEL_CPU_LIMIT", "1"),
            ("RESOURCE_CPU_REQUEST", "4"),
            ("SECRET_TTL", "12h"),
            ("POOL_UNUSED_RELEASE_TIMEOUT", "1m30s"),
            ("KEEPALIVE_TIME", "90"),
        ])
        .unwrap();
        assert_eq!((settings.cluster.as_str(), settings.network.as_str()), ("east", "far"));
        assert_eq!((settings.workers, settings.limits.drain.as_secs()), (1, 25));
        assert!(settings.log_json && settings.own.address.is_ipv4());
        assert_eq!(settings.certificate_life, Duration::from_secs(12 * 3_600));
        assert_eq!(settings.limits.hbone.idle, Duration::from_secs(90));
        assert_eq!(settings.limits.keepalive.idle, Duration::from_secs(90));
        let InvalidSettings(problems) = read(&[("SECRET_TTL", "long")]).map(|_| ()).unwrap_err();
        assert!(problems[0].starts_with("SECRET_TTL: "), "{problems:?}");
    }

    #[test]
    fn drain_time_follows_the_grace_period() {
        for (grace, want) in [("30", 25), ("10", 9), ("1", 1), ("0", 5)] {
            let settings = read(&[("TERMINATION_GRACE_PERIOD_SECONDS", grace)]).unwrap();
            assert_eq!(settings.limits.drain.as_secs(), want, "{grace}");
        }
    }
}
