// SPDX-License-Identifier: Apache-2.0

//! Layers that merge, and layers that are refused.

use serde_json::json;

use super::*;

fn read(data: Value) -> Result<Overlay, InvalidOverlay> {
    let map = json!({"metadata": {"name": "o", "namespace": "n"}, "data": data});
    Overlay::read(&serde_json::from_value(map).unwrap())
}

fn laid(layer: &str, mut base: Value) -> Result<Value, InvalidOverlay> {
    let overlay = read(json!({"deployment": layer}))?;
    overlay.lay(Kind::Deployment, &mut base)?;
    Ok(base)
}

const IMAGE: &str = "/spec/template/spec/containers/0/image";
const ENV: &str = "/spec/template/spec/containers/0/env";
const PORTS: &str = "/spec/template/spec/containers/0/ports";
const ARGS: &str = "/spec/template/spec/containers/0/args";
const RESOURCES: &str = "/spec/template/spec/containers/0/resources";

/// Layers over members: the layer, a place, and what is there then.
fn members() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("spec: {replicas: 3}", "/spec/replicas", json!(3)),
        ("metadata: {labels: {b: '2'}}", "/metadata/labels", json!({"a": "1", "b": "2"})),
        ("metadata: {annotations: {c: d}}", "/metadata/annotations", json!({"c": "d"})),
        (
            "spec: {template: {spec: {nodeSelector: {disk: ssd}}}}",
            "/spec/template/spec/nodeSelector",
            json!({"disk": "ssd"}),
        ),
        (
            "spec: {template: {spec: {terminationGracePeriodSeconds: null}}}",
            "/spec/template/spec/terminationGracePeriodSeconds",
            Value::Null,
        ),
        // What a whole object says again.
        ("apiVersion: apps/v1\nmetadata: {name: g}", "/metadata/name", json!("g")),
    ]
}

/// Layers over lists.
fn lists() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{name: B, value: '2'}]}]}}}",
            ENV,
            json!([{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{name: A, value: '3'}]}]}}}",
            ENV,
            json!([{"name": "A", "value": "3"}]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, ports: [{containerPort: 15020, hostPort: 1}]}]}}}",
            PORTS,
            json!([{"containerPort": 15020, "protocol": "TCP", "name": "metrics", "hostPort": 1}]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, args: [other]}]}}}",
            ARGS,
            json!(["other"]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: beside, image: b}]}}}",
            "/spec/template/spec/containers/1",
            json!({"name": "beside", "image": "b"}),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{name: A, $patch: delete}]}]}}}",
            ENV,
            json!([]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, env: [{$patch: replace}, {name: C, value: c}]}]}}}",
            ENV,
            json!([{"name": "C", "value": "c"}]),
        ),
        (
            "spec: {template: {spec: {containers: [{name: istio-proxy, resources: {requests: {cpu: 2, memory: 1Gi}, limits: null}}]}}}",
            RESOURCES,
            json!({"requests": {"cpu": "2", "memory": "1Gi"}}),
        ),
        (
            "spec: {template: {spec: {tolerations: [{key: a, operator: Exists, value: null}]}}}",
            "/spec/template/spec/tolerations",
            json!([{"key": "a", "operator": "Exists"}]),
        ),
    ]
}

/// What a Deployment is before layers.
fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "g", "labels": {"a": "1"}},
        "spec": {"selector": {}, "template": {"spec": {
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "istio-proxy", "image": "i", "args": ["proxy", "router"],
                "env": [{"name": "A", "value": "1"}],
                "ports": [{"containerPort": 15020, "protocol": "TCP", "name": "metrics"}],
            }],
        }}},
    })
}

#[test]
fn a_layer_merges_as_kubernetes_merges() {
    let cases = members().into_iter().chain(lists());
    for (layer, at, want) in cases {
        let made = laid(layer, deployment()).unwrap();
        assert_eq!(made.pointer(at).cloned().unwrap_or_default(), want, "{layer}");
        assert_eq!(made.pointer(IMAGE), Some(&json!("i")), "{layer}");
    }
}

/// Layers that are refused, and why.
const REFUSED: &[(&str, &str)] = &[
    ("metadata: {name: other}", "metadata.name may not be changed"),
    ("metadata: {namespace: other}", "metadata.namespace may not be changed"),
    ("metadata: {ownerReferences: []}", "metadata.ownerReferences may not be changed"),
    ("metadata: {finalizers: [a/b]}", "metadata.finalizers may not be changed"),
    ("metadata: {labels: {gateway.istio.io/managed: x}}", "managed may not be changed"),
    ("metadata: {labels: {gateway.istio.io/managed: null}}", "managed may not be changed"),
    ("metadata: {labels: null}", "metadata.labels.gateway.istio.io/managed may not"),
    ("metadata: {labels: {istio.io/dataplane-mode: ambient}}", "dataplane-mode may not"),
    ("metadata: {labels: {gateway.networking.k8s.io/x: y}}", "k8s.io/x may not be changed"),
    ("metadata: {labels: {$patch: replace, c: d}}", "managed may not be changed"),
    ("metadata: null", "metadata.name may not be changed"),
    ("apiVersion: apps/v2", "apiVersion may not be changed"),
    ("kind: DaemonSet", "kind may not be changed"),
    ("spec: {selector: {matchLabels: {a: b}}}", "spec.selector may not be changed"),
    ("spec: {$patch: replace, replicas: 2}", "spec.selector may not be changed"),
    ("spec: null", "spec.selector may not be changed"),
    (
        "spec: {template: {metadata: {labels: {tier: edge}}}}",
        "spec.template.metadata.labels may not be changed; set spec.infrastructure.labels",
    ),
    ("spec: {template: {metadata: null}}", "spec.template.metadata.labels may not be changed"),
    (
        "spec: {template: {spec: {serviceAccountName: other}}}",
        "spec.template.spec.serviceAccountName may not be changed; set the annotation",
    ),
    ("spec: {template: {spec: {serviceAccount: other}}}", "serviceAccount may not be changed"),
    (
        "spec: {template: {spec: {containers: [{name: istio-proxy, $patch: delete}]}}}",
        "container istio-proxy may not be changed",
    ),
    ("status: {replicas: 1}", "status may not be changed"),
    ("spec: {template: [1]}", "spec.template has another form"),
    ("spec: {replicas: {a: 1}}", "spec.replicas: invalid type"),
    ("spec: {replicas: many}", "spec.replicas: invalid type"),
    ("spec: {replics: 3}", "spec.replics: there is no such field"),
    (
        "spec: {template: {spec: {containers: [{name: istio-proxy, resource: {}}]}}}",
        "spec.template.spec.containers.0.resource: there is no such field",
    ),
    ("spec: {template: {spec: {$patch: other}}}", "spec.template.spec.$patch: this directive"),
    ("spec: {strategy: {$retainKeys: [type]}}", "spec.strategy.$retainKeys: this directive"),
    ("spec: {template: {spec: {tolerations: [{$patch: delete}]}}}", "this directive"),
    ("$patch: delete", "$patch: this directive"),
    ("[1]", "members of an object"),
    ("", "members of an object"),
    ("a: b: c", "no YAML"),
];

#[test]
fn what_is_not_understood_or_not_allowed_is_refused() {
    let base = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {
            "name": "g", "namespace": "n",
            "labels": {"gateway.istio.io/managed": "c", "istio.io/dataplane-mode": "none", "a": "b"},
            "ownerReferences": [{"apiVersion": "g/v1", "kind": "Gateway", "name": "g", "uid": "u"}],
        },
        "spec": {
            "selector": {"matchLabels": {"g": "g"}},
            "template": {
                "metadata": {"labels": {"g": "g"}},
                "spec": {
                    "serviceAccountName": "g",
                    "containers": [{"name": "istio-proxy", "image": "i"}],
                },
            },
        },
    });
    for (layer, why) in REFUSED {
        let error = laid(layer, base.clone()).unwrap_err();
        assert_eq!(error.map, Name::new("n", "o"), "{layer}");
        let text = error.fault.to_string();
        assert!(text.starts_with("deployment: ") && text.contains(why), "{layer}: {text}");
    }
    let key = |key: &str| Fault::Key(key.into());
    assert_eq!(read(json!({"daemonSet": "{}"})).unwrap_err().fault, key("daemonSet"));
    let bytes = json!({"metadata": {}, "binaryData": {"deployment": "AA=="}});
    let bytes = Overlay::read(&serde_json::from_value(bytes).unwrap());
    assert_eq!(bytes.unwrap_err().fault, key("deployment"));
    assert!(read(json!({})).is_ok_and(|overlay| !overlay.has(Kind::Service)));
}

#[test]
fn a_service_loses_a_port_as_istio_documents_it() {
    let base = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "g"},
        "spec": {"ports": [
            {"name": "status-port", "port": 15021, "protocol": "TCP"},
            {"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"},
        ]},
    });
    let layer = "spec:\n  ports:\n  - \"$patch\": delete\n    port: 15021\n  - {port: 80, nodePort: 30080}\n";
    let mut service = base;
    read(json!({"service": layer})).unwrap().lay(Kind::Service, &mut service).unwrap();
    let want = json!([
        {"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30080},
    ]);
    assert_eq!(service["spec"]["ports"], want);
}

#[test]
fn an_account_takes_the_members_that_no_spec_holds() {
    let base = || json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "g"}});
    let laid = |layer: &str| {
        let mut account = base();
        read(json!({"serviceAccount": layer})).unwrap().lay(Kind::ServiceAccount, &mut account)?;
        Ok::<_, InvalidOverlay>(account)
    };
    let account = laid("imagePullSecrets: [{name: r}]\nautomountServiceAccountToken: false");
    assert_eq!(account.unwrap()["imagePullSecrets"], json!([{"name": "r"}]));
    assert!(laid("data: {a: b}").unwrap_err().fault.to_string().contains("data may not"));
}
