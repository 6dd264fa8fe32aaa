// SPDX-License-Identifier: Apache-2.0

//! Headers of a CONNECT and of its answer.
//!
//! Rule: ztunnel's `src/proxy`.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderValue};
use rand::Rng as _;
use routing::discovery::{Service, Workload, WorkloadType};

use crate::hbone::{BAGGAGE, FORWARDED, POD_UID};
use crate::trace::TRACEPARENT;

/// Who `workload` is, for the other side's telemetry.
pub(super) fn baggage(workload: &Workload) -> Option<HeaderValue> {
    let kind = match workload.workload_type {
        WorkloadType::Deployment => "k8s.deployment.name",
        WorkloadType::CronJob => "k8s.cronjob.name",
        WorkloadType::Pod => "k8s.pod.name",
        WorkloadType::Job => "k8s.job.name",
    };
    let pairs = [
        ("k8s.cluster.name", &*workload.cluster),
        ("k8s.namespace.name", workload.namespace.as_str()),
        (kind, &*workload.workload_name),
        ("service.name", &*workload.canonical_name),
        ("service.version", &*workload.canonical_revision),
        ("cloud.region", &*workload.locality.region),
        ("cloud.availability_zone", &*workload.locality.zone),
    ];
    let pairs: Vec<String> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    HeaderValue::try_from(pairs.join(",")).ok()
}

/// Headers of a CONNECT from `source`, which asked for `service` if it asked for one.
pub(super) fn connect(
    source: &Workload,
    client: SocketAddr,
    service: Option<&Service>,
    pod_uid: Option<&str>,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let host = service.map(|service| format!(";host={}", service.key.hostname));
    let forwarded = format!("for=\"{client}\"{}", host.unwrap_or_default());
    let mut rng = rand::rng();
    let trace = format!("00-{:032x}-{:016x}-00", rng.random::<u128>(), rng.random::<u64>());
    let values = [
        (BAGGAGE, baggage(source)),
        (FORWARDED, HeaderValue::try_from(forwarded).ok()),
        (TRACEPARENT, HeaderValue::try_from(trace).ok()),
        (POD_UID, pod_uid.and_then(|uid| HeaderValue::try_from(uid).ok())),
    ];
    for (name, value) in values {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_says_who_asks_for_what() {
        let identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        let mut source = Workload::new("uid", identity, "shop".parse().unwrap());
        source.workload_name = "a-v1".into();
        source.canonical_name = "a".into();
        let service = Service::new("shop/b.shop.svc.cluster.local".parse().unwrap());
        let client = "10.0.0.1:4000".parse().unwrap();
        let headers = connect(&source, client, Some(&service), Some("1234"));
        let want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,\
                    k8s.deployment.name=a-v1,service.name=a";
        assert_eq!(headers[BAGGAGE], want);
        let want = "for=\"10.0.0.1:4000\";host=b.shop.svc.cluster.local";
        assert_eq!(headers[FORWARDED], want);
        assert_eq!(headers[POD_UID], "1234");
        assert_eq!(headers[TRACEPARENT].len(), 55);
    }
}
