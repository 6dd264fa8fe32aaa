// SPDX-License-Identifier: Apache-2.0

//! Where parameters come from, what they change, and what becomes of those that are refused.

use std::collections::BTreeMap;

use serde_json::json;

use super::super::Translator;
use super::super::testing::{Edited, Made, run, run_in, stores};
use crate::settings::Mesh;
use crate::status::{Body, Condition};
use crate::store::Kind;

/// A Gateway of class `edge` with its own parameters, as `reference` says.
fn gateway(reference: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: gw, namespace: infra, uid: u}}\n\
         spec:\n  gatewayClassName: edge\n  listeners: [{{name: http, port: 80, protocol: HTTP}}]\n  \
         infrastructure: {{{reference}}}\n"
    )
}

const OWN: &str = "parametersRef: {group: '', kind: ConfigMap, name: p}";

/// The class, with its parameters.
fn class(reference: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: edge}}\n\
         spec: {{controllerName: waymark.dev/gateway-controller{reference}}}\n"
    )
}

const OF_CLASS: &str = ", parametersRef: {group: '', kind: ConfigMap, namespace: classes, name: c}";

/// A ConfigMap.
fn map(name: &str, layers: &[(&str, &str)]) -> String {
    let (namespace, name) = name.split_once('/').unwrap();
    let data: BTreeMap<_, _> = layers.iter().copied().collect();
    let data = json!(data);
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata: {data}\n"
    )
}

/// A ConfigMap of the root namespace with the defaults of the class.
fn defaults(name: &str, layer: (&str, &str)) -> String {
    let label = "labels: {gateway.istio.io/defaults-for-class: edge}";
    map(&format!("istio-system/{name}"), &[layer])
        .replace("namespace: istio-system", &format!("namespace: istio-system, {label}"))
}

fn made(texts: &[String]) -> Made {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    run(&stores(&texts), Translator::Gateway, "infra/gw")
}

/// What the class's own condition says.
fn of_class(texts: &[String]) -> Condition {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let made = run(&stores(&texts), Translator::GatewayClass, "edge");
    let Body::Class { conditions, .. } = &made.status().body else { panic!("no class") };
    conditions[0].clone()
}

#[test]
fn parameters_are_laid_over_the_objects() {
    let with =
        |key: &str, text: &str| made(&[gateway(OWN), class(""), map("infra/p", &[(key, text)])]);
    let made = with("deployment", "spec: {replicas: 3}");
    assert_eq!(made.gateway().0["Accepted"], (true, "Accepted"));
    assert_eq!(made.object(Kind::Deployment).unwrap()["spec"]["replicas"], 3);
    assert_eq!(made.object(Kind::HorizontalPodAutoscaler), None, "nobody asked for one");
    assert_eq!(made.object(Kind::PodDisruptionBudget), None, "nobody asked for one");

    let made = with("horizontalPodAutoscaler", "spec: {minReplicas: 2, maxReplicas: 9}");
    let scaler = made.object(Kind::HorizontalPodAutoscaler).unwrap();
    assert_eq!(scaler["spec"]["scaleTargetRef"]["name"], "gw-edge");
    assert_eq!(
        (&scaler["spec"]["minReplicas"], &scaler["spec"]["maxReplicas"]),
        (&json!(2), &json!(9))
    );
    assert_eq!(scaler["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"], "gw");
    let owner = &scaler["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["uid"]), (&json!("Gateway"), &json!("u")));

    let made = with("podDisruptionBudget", "spec: {minAvailable: 1}");
    let budget = made.object(Kind::PodDisruptionBudget).unwrap();
    assert_eq!(budget["spec"]["minAvailable"], 1);
    let deployment = made.object(Kind::Deployment).unwrap();
    assert_eq!(budget["spec"]["selector"], deployment["spec"]["selector"]);
    assert_eq!(budget["metadata"]["ownerReferences"][0]["name"], "gw");
}

#[test]
fn what_holds_for_all_gateways_lies_below_every_parameter() {
    let mut mesh = Mesh::default();
    let settings = r#"{
        "imagePullPolicy": "Always",
        "imagePullSecrets": ["registry"],
        "logAsJson": true,
        "ingress": {"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                    "nodeSelector": {"disk": "ssd"}},
        "waypoint": {"resources": {"requests": {"cpu": 1}},
                     "tolerations": [{"key": "mesh", "operator": "Exists"}]}
    }"#;
    mesh.proxies.pods = settings.parse().unwrap();
    let pod = |texts: &[String]| {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let made = run_in(&mesh, &stores(&texts), Translator::Gateway, "infra/gw");
        assert_eq!(made.gateway().0["Accepted"], (true, "Accepted"));
        made.object(Kind::Deployment).unwrap()["spec"]["template"]["spec"].clone()
    };
    let edge = pod(&[gateway(""), class("")]);
    let proxy = &edge["containers"][0];
    assert_eq!(proxy["resources"], json!({"requests": {"cpu": "100m", "memory": "64Mi"}}));
    assert_eq!(proxy["imagePullPolicy"], "Always");
    let format = json!({"name": "LOG_FORMAT", "value": "json"});
    assert!(proxy["env"].as_array().unwrap().contains(&format), "{proxy}");
    assert_eq!(edge["imagePullSecrets"], json!([{"name": "registry"}]));
    assert_eq!(
        (&edge["nodeSelector"], &edge["tolerations"]),
        (&json!({"disk": "ssd"}), &json!(null))
    );

    let waypoint = gateway("")
        .replace("gatewayClassName: edge", "gatewayClassName: waymark-waypoint")
        .replace("port: 80, protocol: HTTP", "port: 15008, protocol: HBONE");
    let waypoint = pod(&[waypoint]);
    assert_eq!(waypoint["containers"][0]["resources"], json!({"requests": {"cpu": "1"}}));
    assert_eq!(waypoint["tolerations"], json!([{"key": "mesh", "operator": "Exists"}]));
    assert_eq!(waypoint["nodeSelector"], json!(null));

    let layer = |members: &str| {
        format!("spec: {{template: {{spec: {{containers: [{{name: istio-proxy, {members}}}]}}}}}}")
    };
    let texts = [
        gateway(OWN),
        class(""),
        defaults("d", ("deployment", &layer("resources: {requests: {cpu: 200m, memory: 1Gi}}"))),
        map(
            "infra/p",
            &[("deployment", &layer("imagePullPolicy: Never, resources: {requests: {cpu: 300m}}"))],
        ),
    ];
    let proxy = &pod(&texts)["containers"][0];
    assert_eq!(proxy["resources"], json!({"requests": {"cpu": "300m", "memory": "1Gi"}}));
    assert_eq!(proxy["imagePullPolicy"], "Never");
}

#[test]
fn those_of_the_gateway_lie_over_those_of_its_class_and_these_over_its_defaults() {
    let layer = |text: &str| format!("spec: {{{text}}}");
    let texts = [
        gateway(OWN),
        class(OF_CLASS),
        defaults("d", ("deployment", &layer("replicas: 2, minReadySeconds: 2, paused: true"))),
        map("classes/c", &[("deployment", &layer("replicas: 3, minReadySeconds: 3"))]),
        map("infra/p", &[("deployment", &layer("replicas: 4"))]),
    ];
    let made = made(&texts);
    assert_eq!(made.gateway().0["Accepted"], (true, "Accepted"));
    let spec = &made.object(Kind::Deployment).unwrap()["spec"];
    let three = (&spec["replicas"], &spec["minReadySeconds"], &spec["paused"]);
    assert_eq!(three, (&json!(4), &json!(3), &json!(true)));
    assert_eq!(of_class(&texts).reason, "Accepted");

    // Defaults are for one class, and of the root namespace.
    let other = texts[2].replace("for-class: edge", "for-class: other");
    let elsewhere = texts[2].replace("namespace: istio-system", "namespace: infra");
    for text in [other, elsewhere] {
        let made = self::made(&[gateway(""), class(""), text.clone()]);
        assert_eq!(made.object(Kind::Deployment).unwrap()["spec"]["paused"], json!(null), "{text}");
    }
}

#[test]
fn parameters_that_cannot_be_used_are_told_of() {
    let own = |key: &str, text: &str| vec![gateway(OWN), class(""), map("infra/p", &[(key, text)])];
    let of = |group: &str, kind: &str| {
        let reference = format!("parametersRef: {{group: '{group}', kind: {kind}, name: p}}");
        vec![gateway(&reference), class("")]
    };
    let cases = [
        (vec![gateway(OWN), class("")], "ConfigMap infra/p of the parameters does not exist"),
        (of("", "Secret"), "parameters of kind Secret are not served; wanted a ConfigMap"),
        (
            of("example.com", "Widget"),
            "parameters of kind example.com/Widget are not served; wanted a ConfigMap",
        ),
        (
            own("deployments", "{}"),
            "ConfigMap infra/p is refused: key \"deployments\" is not known",
        ),
        (own("deployment", "a: b: c"), "infra/p is refused: deployment: no YAML"),
        (own("service", "metadata: {name: x}"), "service: metadata.name may not be changed"),
        (
            own("podDisruptionBudget", "spec: {selector: {matchLabels: {a: b}}}"),
            "podDisruptionBudget: spec.selector may not be changed",
        ),
        (
            own("horizontalPodAutoscaler", "spec: {scaleTargetRef: {name: other}}"),
            "horizontalPodAutoscaler: spec.scaleTargetRef may not be changed",
        ),
        (own("horizontalPodAutoscaler", "spec: {maxReplica: 3}"), "spec.maxReplica: there is no"),
    ];
    for (texts, why) in cases {
        let made = made(&texts);
        let (told, _) = made.gateway();
        assert_eq!(told["Accepted"], (false, "InvalidParameters"), "{why}");
        assert_eq!(told["Programmed"], (false, "Invalid"), "{why}");
        let told = made.status().conditions();
        assert!(told.iter().any(|told| told.message.contains(why)), "{why}: {told:?}");
        assert_eq!(made.object(Kind::Deployment), None, "what was made before is kept: {why}");
    }
}

#[test]
fn parameters_of_a_class_that_cannot_be_used_are_told_of_there_too() {
    let (first, second) = (defaults("d1", ("service", "{}")), defaults("d2", ("service", "{}")));
    let cases = [
        (vec![class(OF_CLASS)], "ConfigMap classes/c of the parameters does not exist"),
        (vec![class(&OF_CLASS.replace("namespace: classes, ", ""))], "namespace is missing"),
        (vec![class(&OF_CLASS.replace("kind: ConfigMap", "kind: Secret"))], "kind Secret are not"),
        (
            vec![class(OF_CLASS), map("classes/c", &[("deployment", "spec: {replics: 1}")])],
            "ConfigMap classes/c is refused: deployment: spec.replics: there is no such field",
        ),
        (vec![class(""), defaults("d", ("x", "{}"))], "istio-system/d is refused: key \"x\""),
        (vec![class(""), first, second], "d1, d2 of namespace istio-system do"),
    ];
    for (texts, why) in cases {
        let told = of_class(&texts);
        assert_eq!((told.status, told.reason), (false, "InvalidParameters"), "{why}");
        assert!(told.message.contains(why), "{why}: {}", told.message);
        let texts: Vec<String> = texts.into_iter().chain([gateway("")]).collect();
        let made = made(&texts);
        assert_eq!(made.gateway().0["Accepted"], (false, "InvalidParameters"), "{why}");
        let message = &made.status().conditions()[0].message;
        assert!(message.contains(why), "{why}: {message}");
        assert_eq!(made.object(Kind::Deployment), None, "{why}");
    }
}

#[test]
fn the_last_good_objects_stay_until_parameters_can_be_used_again() {
    let replicas = |edited: &Edited| {
        edited.object(Kind::Deployment, "infra/gw-edge").map(|one| one["spec"]["replicas"].clone())
    };
    let scaler =
        |edited: &Edited| edited.object(Kind::HorizontalPodAutoscaler, "infra/gw-edge").is_some();
    let both = map(
        "infra/p",
        &[
            ("deployment", "spec: {replicas: 3}"),
            ("horizontalPodAutoscaler", "spec: {maxReplicas: 2}"),
        ],
    );
    let mut edited = Edited::default();
    for text in [gateway(OWN), class(""), both.clone()] {
        edited.put(&text);
    }
    assert_eq!((replicas(&edited), scaler(&edited)), (Some(json!(3)), true));
    edited.put(&map("infra/p", &[("deployment", "spec: {replics: 5}")]));
    assert_eq!((replicas(&edited), scaler(&edited)), (Some(json!(3)), true), "they are refused");
    edited.put(&map("infra/p", &[("deployment", "spec: {replicas: 5}")]));
    assert_eq!(
        (replicas(&edited), scaler(&edited)),
        (Some(json!(5)), false),
        "no layer, no object"
    );
    edited.put(&both);
    edited.put(&gateway(&OWN.replace("name: p", "name: gone")));
    assert_eq!((replicas(&edited), scaler(&edited)), (Some(json!(3)), true), "it does not exist");
    edited.put(&gateway(""));
    assert_eq!((replicas(&edited), scaler(&edited)), (Some(json!(null)), false));
}
