// SPDX-License-Identifier: Apache-2.0

//! The chart, filled in.

use super::*;

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let same = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    objects.iter().find(same).unwrap_or_else(|| panic!("{kind} {name}"))
}

#[test]
fn the_chart_is_filled_in_with_its_own_values() {
    let objects = objects("mesh", &[]).unwrap();
    assert_eq!(objects[0]["kind"], "Namespace", "the namespace comes first");
    let controller = find(&objects, "Deployment", "waymark-controller");
    let container = &controller["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["image"],
        format!("{HUB}/controller:{TAG}"),
        "the chart's tag is this version"
    );
    assert_eq!(controller["metadata"]["namespace"], "mesh");
    assert_eq!(controller["spec"]["replicas"], 2);
    let budget = find(&objects, "PodDisruptionBudget", "waymark-controller");
    assert_eq!(
        budget["spec"]["selector"], controller["spec"]["selector"],
        "one of the two always stays"
    );
    let accounts = json!("--controller-account=mesh/waymark-controller");
    assert!(container["args"].as_array().unwrap().contains(&accounts), "they know each other");
    assert!(container["resources"]["requests"].is_object());
    let admin = json!(format!("--admin-address=127.0.0.1:{}", crate::settings::ADMIN_PORT));
    assert!(container["args"].as_array().unwrap().contains(&admin), "the CLI finds it there");
    for (kind, name) in
        [("DaemonSet", "ztunnel"), ("DaemonSet", "waymark-agent"), ("Service", "istiod")]
    {
        assert_eq!(find(&objects, kind, name)["metadata"]["namespace"], "mesh");
    }
    let classes = objects.iter().filter(|object| object["kind"] == "GatewayClass");
    let mut served: Vec<_> = classes
        .map(|class| {
            let name = class["metadata"]["name"].as_str().unwrap();
            (name, class["spec"]["controllerName"].as_str().unwrap())
        })
        .collect();
    let mut known = crate::api::CLASSES.map(|class| (class.name, class.controller));
    served.sort_unstable();
    known.sort_unstable();
    assert_eq!(served, known);
    let text = serde_json::to_string(&objects).unwrap();
    assert!(!text.contains("{{"), "nothing is left open");
}

#[test]
fn values_are_set_by_path_and_unknown_ones_refused() {
    let set = [
        "pilot.replicaCount=3",
        "global.hub=registry.example/w",
        "meshConfig.trustDomainAliases=[old]",
    ];
    let objects = objects(NAMESPACE, &set.map(str::to_owned)).unwrap();
    let controller = find(&objects, "Deployment", "waymark-controller");
    assert_eq!(controller["spec"]["replicas"], 3);
    let image = &controller["spec"]["template"]["spec"]["containers"][0]["image"];
    assert_eq!(*image, format!("registry.example/w/controller:{TAG}"));
    let arguments = &controller["spec"]["template"]["spec"]["containers"][0]["args"];
    let alias = json!(r#"--trust-domain-aliases=["old"]"#);
    assert!(arguments.as_array().unwrap().contains(&alias), "{arguments}");
    let refused = |set: &str| super::objects(NAMESPACE, &[set.to_owned()]).unwrap_err();
    assert_eq!(refused("pilot.replicas=2"), InstallError::NoValue("pilot.replicas".into()));
    assert_eq!(refused("pilot"), InstallError::Set("pilot".into()));
}

/// Verbs and names of the rules for a kind.
fn rules<'a>(role: &'a Value, kind: &str) -> Vec<(&'a Value, &'a Value)> {
    let has = |rule: &&Value| rule["resources"].as_array().unwrap().contains(&json!(kind));
    let rules = role["rules"].as_array().unwrap().iter().filter(has);
    rules.map(|rule| (&rule["verbs"], &rule["resourceNames"])).collect()
}

#[test]
fn secrets_may_be_watched_by_name_and_those_of_the_authority_read() {
    let of = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        objects(NAMESPACE, &sets).unwrap()
    };
    let (watch, none) = (json!(["list", "watch"]), Value::Null);
    let all = of(&[]);
    let role = find(&all, "ClusterRole", "waymark-controller");
    assert_eq!(rules(role, "secrets"), [(&watch, &json!([]))]);
    let maps = [
        (&watch, &none),
        (&json!(["create"]), &none),
        (&json!(["patch"]), &json!(["istio-ca-root-cert"])),
    ];
    assert_eq!(rules(role, "configmaps"), maps);
    let own = find(&all, "Role", "waymark-controller");
    let authority = json!([crate::ca::secret::OWN, crate::ca::secret::PLUGGED]);
    let read = json!(["get", "list", "watch"]);
    assert_eq!(rules(own, "secrets"), [(&json!(["create"]), &none), (&read, &authority)]);

    let few = of(&["pilot.secretNames=[web-tls, api-tls]"]);
    let role = find(&few, "ClusterRole", "waymark-controller");
    assert_eq!(rules(role, "secrets"), [(&watch, &json!(["web-tls", "api-tls"]))]);
}

#[test]
fn words_that_are_not_understood_are_refused() {
    let values = json!({"a": {"b": 1, "c": [1]}});
    let fill = |text| fill("t", text, "ns", &values);
    assert_eq!(fill("x: {{ .Values.a.b }} {{ .Release.Namespace }}").unwrap(), "x: 1 ns");
    assert_eq!(fill("x: {{ toJson .Values.a }}").unwrap(), r#"x: {"b":1,"c":[1]}"#);
    for bad in ["{{ if .Values.a }}", "{{ .Values.a.c }}", "{{ .Values.a.b"] {
        assert!(matches!(fill(bad), Err(InstallError::Word { .. })), "{bad}");
    }
    assert_eq!(fill("{{ .Values.z }}"), Err(InstallError::NoValue("z".into())));
}
