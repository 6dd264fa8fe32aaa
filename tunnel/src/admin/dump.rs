// SPDX-License-Identifier: Apache-2.0

//! What the tunnel knows, as ztunnel's `config_dump` prints it.
//!
//! Keys are Istio's, for `istioctl ztunnel-config` and Kiali read them.
//! Rule: ztunnel's `src/admin.rs`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use routing::discovery::{
    GatewayAddress, Health, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode,
    LocalityScope, NetworkMode, Service, TunnelProtocol, Visibility, Workload, WorkloadType,
};
use routing::snapshot::Snapshot;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Admin;
use crate::credentials::State;
use crate::inpod::sessions::OpenSession;

mod policies;

/// Everything.
pub(super) fn dump(admin: &Admin) -> Value {
    let snapshot = admin.shared.snapshot_full();
    let mut workloads: Vec<_> = snapshot.discovery.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    let mut services: Vec<_> = snapshot.discovery.services().collect();
    services.sort_by(|a, b| a.key.cmp(&b.key));
    let mut all: Vec<_> = snapshot.authorizations.policies().collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    json!({
        "workloads": workloads.into_iter().map(|one| workload(one)).collect::<Vec<_>>(),
        "services": services.into_iter().map(|one| service(one, &snapshot)).collect::<Vec<_>>(),
        "policies": all.into_iter().map(|one| policies::authorization(one)).collect::<Vec<_>>(),
        "certificates": certificates(admin),
        "workloadState": pods(admin),
        "stagedServices": {},
        "staticConfig": {},
        "revision": snapshot.revision,
        "version": {
            "version": env!("CARGO_PKG_VERSION"),
            "gitRevision": "",
            "rustVersion": env!("CARGO_PKG_RUST_VERSION"),
            "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
            "buildStatus": "",
            "gitTag": "",
            "istioVersion": "",
        },
        "config": config(admin),
    })
}

fn workload(one: &Workload) -> Value {
    let mut map = Map::new();
    let ips: Vec<String> = one.addresses.iter().map(ToString::to_string).collect();
    let services: Vec<String> = one.services.keys().map(ToString::to_string).collect();
    let policies: Vec<&str> = one.authorization_policies.iter().map(|name| name.as_str()).collect();
    let kind = match one.workload_type {
        WorkloadType::Deployment => "deployment",
        WorkloadType::CronJob => "cronjob",
        WorkloadType::Pod => "pod",
        WorkloadType::Job => "job",
    };
    let locality = json!({
        "region": *one.locality.region,
        "zone": *one.locality.zone,
        "subzone": *one.locality.subzone,
    });
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("uid", json!(*one.uid));
    put("name", json!(*one.name));
    put("namespace", json!(one.namespace.as_str()));
    put("workloadIps", json!(ips));
    put("hostname", json!(one.hostname.as_deref().unwrap_or_default()));
    put("network", json!(*one.network));
    put("protocol", json!(if one.tunnel == TunnelProtocol::Hbone { "HBONE" } else { "TCP" }));
    put("trustDomain", json!(one.identity.trust_domain()));
    put("serviceAccount", json!(one.identity.service_account()));
    if let Some(waypoint) = &one.waypoint {
        put("waypoint", gateway(waypoint));
    }
    if let Some(network) = &one.network_gateway {
        put("networkGateway", gateway(network));
    }
    put("node", json!(*one.node));
    put("canonicalName", json!(*one.canonical_name));
    put("canonicalRevision", json!(*one.canonical_revision));
    put("workloadType", json!(kind));
    put("workloadName", json!(*one.workload_name));
    put("nativeTunnel", json!(one.native_tunnel));
    put("services", json!(services));
    put("authorizationPolicies", json!(policies));
    put("status", json!(if one.health == Health::Healthy { "Healthy" } else { "Unhealthy" }));
    put("clusterId", json!(*one.cluster));
    put("locality", locality);
    let standard = one.network_mode == NetworkMode::Standard;
    put("networkMode", json!(if standard { "Standard" } else { "HostNetwork" }));
    put("capacity", json!(one.capacity));
    if let Some(uid) = &one.pod_uid {
        put("podUid", json!(**uid));
    }
    Value::Object(map)
}

fn gateway(address: &GatewayAddress) -> Value {
    json!({ "destination": address.to_string(), "hboneMtlsPort": address.hbone_port })
}

fn service(one: &Service, snapshot: &Snapshot) -> Value {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for address in &one.addresses {
        match address.address() {
            Some(ip) => vips.push(format!("{}/{ip}", address.network)),
            None => ranges.push(format!("{}/{}", address.network, address.range)),
        }
    }
    let ports: BTreeMap<String, u16> =
        one.ports.iter().map(|port| (port.service_port.to_string(), port.target_port)).collect();
    let endpoints: BTreeMap<String, Value> = snapshot
        .discovery
        .endpoints(&one.key)
        .iter()
        .map(|endpoint| {
            let ports: BTreeMap<String, u16> = endpoint
                .ports
                .iter()
                .map(|port| (port.service_port.to_string(), port.target_port))
                .collect();
            let healthy = endpoint.workload.health == Health::Healthy;
            let status = if healthy { "Healthy" } else { "Unhealthy" };
            let uid = endpoint.workload.uid.to_string();
            (uid.clone(), json!({ "workloadUid": uid, "port": ports, "status": status }))
        })
        .collect();
    let visible = one.visibility == Visibility::Public;
    let weighted: Vec<Value> = one
        .weighted_waypoints
        .iter()
        .map(|one| json!({ "destination": gateway(&one.destination), "weight": one.weight }))
        .collect();
    json!({
        "name": *one.name,
        "namespace": one.key.namespace.as_str(),
        "hostname": *one.key.hostname,
        "vips": vips,
        "cidrVips": ranges,
        "ports": ports,
        "endpoints": endpoints,
        "subjectAltNames": one.subject_alt_names.iter().map(|name| &**name).collect::<Vec<_>>(),
        "waypoint": one.waypoint.as_ref().map(gateway),
        "weightedWaypoints": weighted,
        "loadBalancer": one.load_balancing.as_ref().map(balancing),
        "ipFamilies": match one.ip_families {
            IpFamilies::Automatic => Value::Null,
            IpFamilies::V4 => json!("IPv4"),
            IpFamilies::V6 => json!("IPv6"),
            IpFamilies::Dual => json!("Dual"),
        },
        "canonical": one.canonical,
        "visibility": if visible { "Public" } else { "Namespace" },
    })
}

fn balancing(one: &LoadBalancing) -> Value {
    let scope = |scope: &LocalityScope| match scope {
        LocalityScope::Region => "Region",
        LocalityScope::Zone => "Zone",
        LocalityScope::Subzone => "Subzone",
        LocalityScope::Node => "Node",
        LocalityScope::Cluster => "Cluster",
        LocalityScope::Network => "Network",
    };
    let mode = match one.mode {
        LoadBalancingMode::Any => "Standard",
        LoadBalancingMode::Strict => "Strict",
        LoadBalancingMode::Failover => "Failover",
        LoadBalancingMode::Passthrough => "Passthrough",
    };
    let health = match one.health {
        HealthPolicy::OnlyHealthy => "OnlyHealthy",
        HealthPolicy::AllowAll => "AllowAll",
    };
    let preferences: Vec<_> = one.preference.iter().map(scope).collect();
    json!({ "routingPreferences": preferences, "mode": mode, "healthPolicy": health })
}

fn certificates(admin: &Admin) -> Vec<Value> {
    let time = |time: SystemTime| OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default();
    let one = |der: &[u8]| {
        let parsed = x509_parser::parse_x509_certificate(der).ok().map(|(_, parsed)| parsed);
        let serial = parsed.as_ref().map(|one| one.tbs_certificate.raw_serial_as_string());
        let at = |seconds: i64| {
            OffsetDateTime::from_unix_timestamp(seconds)
                .ok()
                .and_then(|time| time.format(&Rfc3339).ok())
                .unwrap_or_default()
        };
        let validity = parsed.as_ref().map(|one| one.validity());
        json!({
            "pem": base64_pem(der),
            "serialNumber": serial.unwrap_or_default(),
            "validFrom": validity.map(|one| at(one.not_before.timestamp())),
            "expirationTime": validity.map(|one| at(one.not_after.timestamp())),
        })
    };
    let states = admin.credentials.states();
    let print = |(identity, state): &(policy::identity::Identity, State)| {
        let mut value = json!({ "identity": identity.as_str() });
        let Some(map) = value.as_object_mut() else { return value };
        let said = match state {
            State::Initializing => "Initializing".to_owned(),
            State::Unavailable(error) => format!("Unavailable: {}", routing::wire::chain(error)),
            State::Available(credential) => {
                let chain: Vec<_> = credential.chain().iter().map(|der| one(der)).collect();
                let roots: Vec<_> = credential.roots().iter().map(|der| one(der)).collect();
                map.insert("certChain".to_owned(), json!(chain));
                map.insert("rootCerts".to_owned(), json!(roots));
                map.insert("expirationTime".to_owned(), json!(time(credential.not_after())));
                "Available".to_owned()
            }
        };
        map.insert("state".to_owned(), json!(said));
        value
    };
    states.iter().map(print).collect()
}

fn pods(admin: &Admin) -> Map<String, Value> {
    let pod = |pod: std::sync::Arc<crate::inpod::pods::Pod>| {
        let info = pod.who.as_ref().map(|who| {
            json!({
                "name": *who.name,
                "namespace": *who.namespace,
                "serviceAccount": *who.service_account,
            })
        });
        let (outbound, inbound): (Vec<_>, Vec<_>) =
            pod.sessions.all().into_iter().partition(|session| session.outbound);
        let print = |all: Vec<OpenSession>| all.iter().map(session).collect::<Vec<_>>();
        let connections = json!({ "inbound": print(inbound), "outbound": print(outbound) });
        let value = json!({ "state": "Up", "connections": connections, "info": info });
        (pod.uid.to_string(), value)
    };
    admin.pods.all().into_iter().map(pod).collect()
}

fn session(one: &OpenSession) -> Value {
    json!({
        "src": one.source.to_string(),
        "originalDst": one.asked,
        "actualDst": one.dialled.map(|address| address.to_string()).unwrap_or_default(),
        "protocol": if one.hbone { "HBONE" } else { "TCP" },
    })
}

/// The certificate's PEM text, in base64 once more.
fn base64_pem(der: &[u8]) -> String {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    let text: Vec<char> = STANDARD.encode(der).chars().collect();
    for line in text.chunks(64) {
        pem.extend(line);
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    STANDARD.encode(pem)
}

fn config(admin: &Admin) -> Value {
    let settings = &admin.settings;
    let limits = &settings.limits;
    json!({
        "proxyMode": "Shared",
        "localNode": settings.node,
        "clusterId": settings.cluster,
        "network": settings.network,
        "clusterDomain": settings.cluster_domain,
        "xdsAddress": settings.discovery.address,
        "caAddress": settings.authority.address,
        "adminAddr": settings.admin.to_string(),
        "statsAddr": settings.stats.to_string(),
        "readinessAddr": settings.readiness.to_string(),
        "numWorkerThreads": settings.workers,
        "dnsProxy": settings.names,
        "packetMark": settings.mark,
        "secretTtl": format!("{}s", settings.certificate_life.as_secs()),
        "selfTerminationDeadline": format!("{}s", limits.drain.as_secs()),
        "windowSize": limits.hbone.stream_window,
        "connectionWindowSize": limits.hbone.connection_window,
        "frameSize": limits.hbone.frame,
        "poolMaxStreamsPerConn": limits.hbone.client_streams,
        "poolUnusedReleaseTimeout": format!("{}s", limits.hbone.idle.as_secs()),
    })
}
