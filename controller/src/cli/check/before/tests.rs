// SPDX-License-Identifier: Apache-2.0

//! Clusters that fit and those that do not.

use serde_json::{Value, json};

use super::*;

fn definition(plural: &str, bundle: &str, channel: &str) -> CustomResourceDefinition {
    let value = json!({
        "metadata": {"name": format!("{plural}.{GATEWAY_GROUP}"),
            "annotations": {BUNDLE_VERSION: bundle, CHANNEL: channel}},
        "spec": {"group": GATEWAY_GROUP, "scope": "Namespaced", "versions": [],
            "names": {"kind": "K", "plural": plural}},
    });
    serde_json::from_value(value).unwrap()
}

fn all(bundle: &str, channel: &str) -> Vec<CustomResourceDefinition> {
    NEEDED.iter().chain(&SERVED).map(|plural| definition(plural, bundle, channel)).collect()
}

fn levels(findings: &[Finding]) -> Vec<Level> {
    findings.iter().map(|finding| finding.level).collect()
}

#[test]
fn versions_are_read_as_they_come() {
    for (text, want) in [
        ("v1.34.4", Some((1, 34))),
        ("v1.30.2-gke.1587003", Some((1, 30))),
        ("6.1.0-13-amd64", Some((6, 1))),
        ("5.4", Some((5, 4))),
        ("v1.28+", Some((1, 28))),
        ("v1", None),
        ("", None),
    ] {
        assert_eq!(version(text), want, "{text}");
    }
    assert_eq!(kubernetes("v1.30.0").level, Level::Ok);
    assert_eq!(kubernetes("v1.29.9").level, Level::Error);
    assert_eq!(kubernetes("next").level, Level::Warning);
}

#[test]
fn gateway_api_is_to_be_there_whole_and_of_one_release() {
    let missing = gateway_api(&all("v1.6.3", "experimental")[1..]);
    assert_eq!(levels(&missing), [Level::Error]);
    assert!(missing[0].message.contains("gatewayclasses") && missing[0].todo.contains(GATEWAY_API));
    assert_eq!(levels(&gateway_api(&[])), [Level::Error]);

    assert_eq!(levels(&gateway_api(&all("v1.6.3", "experimental"))), [Level::Ok]);
    assert_eq!(levels(&gateway_api(&all("v1.6.0", "standard"))), [Level::Ok, Level::Note]);
    assert_eq!(levels(&gateway_api(&all("v1.2.1", "experimental"))), [Level::Warning]);
    assert_eq!(levels(&gateway_api(&all("v1.9.0", "experimental"))), [Level::Note]);
    assert_eq!(levels(&gateway_api(&all("v2.0.0", "experimental"))), [Level::Error]);
    assert_eq!(levels(&gateway_api(&all("", "experimental"))), [Level::Warning]);

    let mut mixed = all("v1.6.3", "experimental");
    mixed[2] = definition("httproutes", "v1.4.0", "experimental");
    mixed.pop();
    let findings = gateway_api(&mixed);
    assert_eq!(levels(&findings), [Level::Warning, Level::Ok, Level::Warning, Level::Note]);
    assert!(findings[0].message.contains("httproutes"), "{findings:?}");
    assert!(findings[3].message.contains("listenersets"), "{findings:?}");
}

#[test]
fn nodes_are_judged_by_what_they_tell() {
    let node = |name: &str, system: &str, architecture: &str, kernel: &str| -> Node {
        let told = json!({"operatingSystem": system, "architecture": architecture,
            "kernelVersion": kernel, "bootID": "", "containerRuntimeVersion": "", "kubeProxyVersion": "",
            "kubeletVersion": "", "machineID": "", "osImage": "", "systemUUID": ""});
        let value = json!({"metadata": {"name": name}, "status": {"nodeInfo": told}});
        serde_json::from_value(value).unwrap()
    };
    let good = node("a", "linux", "amd64", "6.1.0");
    assert_eq!(levels(&nodes(std::slice::from_ref(&good))), [Level::Ok]);
    let findings = nodes(&[
        good,
        node("old", "linux", "amd64", "4.18.0-553.el8"),
        node("win", "windows", "amd64", "10.0.17763"),
        node("arm", "linux", "arm64", "5.2.0"),
    ]);
    assert_eq!(levels(&findings), [Level::Error, Level::Note, Level::Warning]);
    assert!(findings[0].message.contains("old (4.18.0-553.el8)"), "{findings:?}");
}

#[test]
fn what_another_mesh_holds_is_named_with_what_to_do() {
    assert_eq!(levels(&others(&Others::default(), "mesh")), [Level::Ok]);
    let set = |names: &[&str]| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    let config = |data: Value| serde_json::from_value(json!({"data": data})).unwrap();
    let crowded = Others {
        daemon_sets: set(&["istio-system/istio-cni-node", "x/fluentd", "linkerd-cni/linkerd-cni"]),
        controllers: set(&["mesh/istiod", "other/istiod-canary"]),
        webhooks: set(&["istio-sidecar-injector-canary", "cert-manager-webhook"]),
        classes: [("istio", "waymark.dev/x"), ("istio-waypoint", "istio.io/mesh-controller")]
            .map(|(name, controller)| (name.to_owned(), controller.to_owned()))
            .into(),
        cilium: Some(config(json!({"cni-exclusive": "true", "kube-proxy-replacement": "true"}))),
    };
    let findings = others(&crowded, "mesh");
    let found: Vec<_> = findings.iter().map(|one| (one.level, one.subject.as_str())).collect();
    assert_eq!(
        found,
        [
            (Level::Error, "DaemonSet istio-system/istio-cni-node"),
            (Level::Warning, "DaemonSet linkerd-cni/linkerd-cni"),
            (Level::Error, "Deployment mesh/istiod"),
            (Level::Warning, "Deployment other/istiod-canary"),
            (Level::Warning, "MutatingWebhookConfiguration istio-sidecar-injector-canary"),
            (Level::Error, "GatewayClass istio"),
            (Level::Error, "Cilium"),
            (Level::Error, "Cilium"),
        ]
    );
    assert!(findings.iter().all(|finding| !finding.todo.is_empty()));
    let fitting = Others {
        cilium: Some(config(json!({"cni-exclusive": "false", "kube-proxy-replacement": "true",
            "bpf-lb-sock-hostns-only": "true"}))),
        ..Others::default()
    };
    assert_eq!(levels(&others(&fitting, "mesh")), [Level::Ok]);
}

#[test]
fn a_namespace_that_takes_harmless_pods_only_takes_no_tunnel() {
    let namespace = |labels: Value| -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "mesh", "labels": labels}})).unwrap()
    };
    assert_eq!(pod_security(&namespace(json!({}))).level, Level::Ok);
    assert_eq!(pod_security(&namespace(json!({POD_SECURITY: "privileged"}))).level, Level::Ok);
    let refused = pod_security(&namespace(json!({POD_SECURITY: "restricted"})));
    assert_eq!(refused.level, Level::Error);
    assert!(refused.todo.contains("namespace mesh"), "{refused:?}");
}
