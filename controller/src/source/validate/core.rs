// SPDX-License-Identifier: Apache-2.0

//! Kubernetes' own kinds, as far as local mode runs them.

use super::{At, Check, Faults, PORT};

const SERVICE: &[(&str, Check)] = &[
    ("ports[].port", PORT),
    ("ports[].nodePort", PORT),
    ("ports[].protocol", Check::OneOf(&["TCP", "UDP", "SCTP"])),
    ("ports[].name", Check::Label),
    ("type", Check::OneOf(&["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"])),
    ("sessionAffinity", Check::OneOf(&["None", "ClientIP"])),
];

const CONTAINER: &[(&str, Check)] = &[
    ("name", Check::Label),
    ("image", Check::Needed),
    ("ports[].containerPort", PORT),
    ("ports[].protocol", Check::OneOf(&["TCP", "UDP", "SCTP"])),
    ("imagePullPolicy", Check::OneOf(&["Always", "IfNotPresent", "Never"])),
];

/// Values of labels.
pub(super) fn labels(meta: &At<'_>, faults: &mut Faults) {
    let labels = meta.get("labels");
    for (key, value) in labels.value.as_object().into_iter().flatten() {
        let text = value.as_str().unwrap_or_default();
        let inner = |byte: u8| byte.is_ascii_alphanumeric();
        let ends = |byte: Option<u8>| byte.is_none_or(inner);
        let holds = text.len() <= 63
            && ends(text.bytes().next())
            && ends(text.bytes().next_back())
            && text.bytes().all(|byte| inner(byte) || b"-_.".contains(&byte));
        if !holds {
            let at = labels.get(key);
            faults.add(&at, format!("must be 63 letters, digits, '-', '_', '.' at most, with a letter or digit at either end, not \"{text}\""));
        }
    }
}

pub(super) fn service(spec: &At<'_>, faults: &mut Faults) {
    faults.table(spec, SERVICE);
    let ports = spec.get("ports").items();
    faults.unique(ports.iter().map(|port| port.get("name")), "port");
    let external = spec.get("type").text() == Some("ExternalName");
    let headless = spec.get("clusterIP").text() == Some("None");
    if ports.is_empty() && !external && !headless {
        faults.add(&spec.get("ports"), "needs at least one port");
    }
    if external && spec.get("externalName").text().unwrap_or_default().is_empty() {
        faults.add(&spec.get("externalName"), "is missing: the type is ExternalName");
    }
    if ports.len() > 1 {
        for port in ports.iter().filter(|port| !port.get("name").is_set()) {
            faults.add(&port.get("name"), "is missing: there is more than one port");
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    for port in &ports {
        let protocol = port.get("protocol").text().unwrap_or("TCP").to_owned();
        if !seen.insert((port.get("port").number(), protocol)) {
            faults.add(&port.get("port"), "another port has the same number and protocol");
        }
    }
}

pub(super) fn deployment(spec: &At<'_>, faults: &mut Faults) {
    faults.table(spec, &[("replicas", Check::Range(0, i64::MAX)), ("selector", Check::Needed)]);
    let pod = spec.get("template").get("spec");
    let containers = pod.get("containers").items();
    if containers.is_empty() {
        faults.add(&pod.get("containers"), "needs at least one container");
    }
    for container in &containers {
        faults.table(container, CONTAINER);
    }
    faults.unique(containers.iter().map(|container| container.get("name")), "container");
    let labels = spec.get("template").get("metadata").get("labels");
    let wanted = spec.get("selector").get("matchLabels");
    for (key, value) in wanted.value.as_object().into_iter().flatten() {
        if labels.value.get(key) != Some(value) {
            let at = wanted.get(key);
            faults.add(&at, "spec.template.metadata.labels does not have this label and value");
        }
    }
}
