// SPDX-License-Identifier: Apache-2.0

//! The chart, filled in.

use std::collections::BTreeMap;

use clap::Parser as _;

use super::*;
use crate::api::Role;
use crate::provision::pods::Pods;
use crate::settings::Settings;
use crate::translate::testing::unrestricted;

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
fn controllers_meet_restricted_pod_security_and_parts_of_nodes_give_their_reasons() {
    let objects = objects("mesh", &[]).unwrap();
    let of = |kind: &str, name: &str| &find(&objects, kind, name)["spec"]["template"]["spec"];
    assert_eq!(unrestricted(of("Deployment", "waymark-controller")), [""; 0]);
    for (name, want) in [("ztunnel", 3), ("waymark-agent", 5)] {
        let added = &of("DaemonSet", name)["containers"][0]["securityContext"]["capabilities"];
        assert_eq!(added["drop"], json!(["ALL"]), "{name}");
        assert_eq!(added["add"].as_array().unwrap().len(), want, "{name}");
    }
    // A reason stands above each host path and each list of capabilities.
    let (_, text) = TEMPLATES.iter().find(|(file, _)| *file == "node.yaml").unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for (at, line) in lines.iter().enumerate() {
        let above = if line.starts_with("hostPath:") { 2 } else { 1 };
        let needs = ["hostPath:", "add: [", "hostNetwork:", "hostPID:"];
        if needs.iter().any(|need| line.starts_with(need)) {
            let reason = at.checked_sub(above).and_then(|at| lines.get(at));
            assert!(
                reason.is_some_and(|reason| reason.starts_with('#')),
                "line {}: {line}",
                at + 1
            );
        }
    }
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
    assert_eq!(rules(role, "events"), [(&json!(["create"]), &none)]);
    let own = find(&all, "Role", "waymark-controller");
    let authority = json!([crate::ca::secret::OWN, crate::ca::secret::PLUGGED]);
    let read = json!(["get", "list", "watch"]);
    assert_eq!(rules(own, "secrets"), [(&json!(["create"]), &none), (&read, &authority)]);

    let few = of(&["pilot.secretNames=[web-tls, api-tls]"]);
    let role = find(&few, "ClusterRole", "waymark-controller");
    assert_eq!(rules(role, "secrets"), [(&watch, &json!(["web-tls", "api-tls"]))]);
}

#[test]
fn the_controller_may_change_nodes_only_where_it_takes_a_taint_off() {
    let of = |sets: &[&str]| {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let objects = objects("mesh", &sets).unwrap();
        let role = find(&objects, "ClusterRole", "waymark-controller")["rules"].to_string();
        let deployment = find(&objects, "Deployment", "waymark-controller");
        let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
        (
            role.contains(r#""resources":["nodes"],"verbs":["patch"]"#),
            arguments.contains("--startup-taint=cni.istio.io/not-ready"),
        )
    };
    assert_eq!(of(&[]), (false, false));
    assert_eq!(of(&["pilot.taint.enabled=true"]), (true, true));
}

#[test]
fn each_admission_policy_is_bound_and_says_which_field_is_wrong() {
    let objects = objects("mesh", &[]).unwrap();
    let of = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let bound: Vec<&Value> = of("ValidatingAdmissionPolicyBinding")
        .map(|binding| &binding["spec"]["policyName"])
        .collect();
    let policies: Vec<&Value> = of("ValidatingAdmissionPolicy").collect();
    assert_eq!(
        bound,
        policies.iter().map(|policy| &policy["metadata"]["name"]).collect::<Vec<_>>()
    );
    for validation in policies.iter().flat_map(|p| p["spec"]["validations"].as_array().unwrap()) {
        let message = validation["message"].as_str().unwrap();
        let names_a_field =
            ["spec", "label ", "annotation "].iter().any(|word| message.starts_with(word));
        assert!(names_a_field && message.contains(':'), "{message}");
    }
}

/// Helm's hook is not among the objects, and is made of the same words.
#[test]
fn the_hook_of_helm_may_remove_every_kind_that_is_installed() {
    const HOOK: &str = include_str!("../../deploy/waymark/templates/uninstall.yaml");
    let values: Value = parse("values.yaml", VALUES).unwrap();
    let text = template::render("uninstall.yaml", HOOK, "mesh", &values).unwrap();
    let hook: Vec<Value> =
        text.split("\n---\n").map(|text| parse("uninstall.yaml", text).unwrap()).collect();
    for object in &hook {
        assert_eq!(object["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    }
    let job = find(&hook, "Job", "waymark-uninstall");
    assert_eq!(unrestricted(&job["spec"]["template"]["spec"]), [""; 0]);
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    let command = container["command"].as_array().unwrap();
    let command: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(command, ["/usr/local/bin/waymark", "uninstall", "--helm-hook", "--namespace=mesh"]);
    let rules = find(&hook, "ClusterRole", "waymark-uninstall")["rules"].as_array().unwrap();
    let has = |list: &Value, word: &str| list.as_array().unwrap().iter().any(|one| one == word);
    for object in objects("mesh", &["pilot.taint.enabled=true".to_owned()]).unwrap() {
        if owned::outlives(&object) {
            continue;
        }
        let kind = object["kind"].as_str().unwrap();
        let api_version = object["apiVersion"].as_str().unwrap();
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let plural = match kind.to_lowercase() {
            kind if kind.ends_with('s') => format!("{kind}es"),
            kind => match kind.strip_suffix('y') {
                Some(stem) => format!("{stem}ies"),
                None => format!("{kind}s"),
            },
        };
        let may = rules.iter().any(|rule| {
            has(&rule["apiGroups"], group)
                && has(&rule["resources"], &plural)
                && has(&rule["verbs"], "delete")
        });
        assert!(may, "{group} {plural}");
    }
}

/// The arguments of the controller, as it reads them.
fn controllers(sets: &[&str]) -> Settings {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let objects = objects("mesh", &sets).unwrap();
    let pod = &find(&objects, "Deployment", "waymark-controller")["spec"]["template"]["spec"];
    let arguments: Vec<String> =
        serde_json::from_value(pod["containers"][0]["args"].clone()).unwrap();
    let given = ["waymark-controller".to_owned()].into_iter().chain(arguments.iter().cloned());
    let settings = Settings::try_parse_from(given);
    settings.unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

/// What pods of each role get; an empty member of the values says nothing.
fn members(pods: &Pods) -> [BTreeMap<String, Value>; 2] {
    [Role::Ingress, Role::Waypoint]
        .map(|role| pods.of_pod(role).chain(pods.of_container(role)).collect())
}

#[test]
fn pods_of_gateways_are_made_with_what_the_values_say() {
    let settings = controllers(&[]);
    let least = r#"{"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}"#;
    let want = format!(
        r#"{{"imagePullPolicy": "IfNotPresent", "imagePullSecrets": [], "ingress": {least}, "waypoint": {least}}}"#
    );
    let want: Pods = want.parse().unwrap();
    assert_eq!(members(&settings.mesh().proxies.pods), members(&want));

    let sets = [
        "global.waypoint.nodeSelector={disk: \"it's\"}",
        "global.waypoint.resources.requests.cpu=2",
        "global.proxy.resources=null",
        "global.imagePullSecrets=[registry]",
    ];
    let settings = controllers(&sets);
    let want = r#"{"imagePullPolicy": "IfNotPresent", "imagePullSecrets": ["registry"],
        "waypoint": {"resources": {"requests": {"cpu": "2", "memory": "64Mi"}}, "nodeSelector": {"disk": "it's"}}}"#;
    let want: Pods = want.parse().unwrap();
    assert_eq!(members(&settings.mesh().proxies.pods), members(&want));
}

#[test]
fn each_part_pulls_its_image_with_the_secrets_of_the_values() {
    let objects = objects("mesh", &["global.imagePullSecrets=[a, b]".to_owned()]).unwrap();
    for (kind, name) in [
        ("Deployment", "waymark-controller"),
        ("DaemonSet", "ztunnel"),
        ("DaemonSet", "waymark-agent"),
    ] {
        let pod = &find(&objects, kind, name)["spec"]["template"]["spec"];
        assert_eq!(pod["imagePullSecrets"], json!([{"name": "a"}, {"name": "b"}]), "{name}");
    }
}

#[test]
fn templates_ask_for_values_that_the_chart_has() {
    const HOOK: &str = include_str!("../../deploy/waymark/templates/uninstall.yaml");
    let values: Value = parse("values.yaml", VALUES).unwrap();
    let mut asked = 0;
    for (file, text) in TEMPLATES.into_iter().chain([("uninstall.yaml", HOOK)]) {
        for rest in text.split(".Values.").skip(1) {
            let path = rest.split([' ', '}']).next().unwrap();
            let pointer = format!("/{}", path.replace('.', "/"));
            assert!(values.pointer(&pointer).is_some(), "{file}: {path}");
            asked += 1;
        }
    }
    assert!(asked > 20, "{asked}");
}

#[test]
fn each_part_takes_what_its_values_say_of_its_pods() {
    let parts = [
        ("pilot", "Deployment", "waymark-controller"),
        ("ztunnel", "DaemonSet", "ztunnel"),
        ("cni", "DaemonSet", "waymark-agent"),
    ];
    for (values, _, name) in parts {
        let sets = [
            "global.logAsJson=true".to_owned(),
            format!(r"{values}.podAnnotations.example\.com/a=1"),
            format!("{values}.nodeSelector.disk=ssd"),
            format!("{values}.tolerations=[{{key: mesh, operator: Exists}}]"),
            format!("{values}.affinity={{nodeAffinity: {{}}}}"),
            format!("{values}.env.EXTRA=5"),
        ];
        let objects = objects("mesh", &sets).unwrap();
        for (_, kind, other) in parts {
            let template = &find(&objects, kind, other)["spec"]["template"];
            let pod = &template["spec"];
            let env = pod["containers"][0]["env"].as_array().unwrap();
            assert!(env.contains(&json!({"name": "LOG_FORMAT", "value": "json"})), "{other}");
            let told = other == name;
            let annotation = &template["metadata"]["annotations"]["example.com/a"];
            assert_eq!(annotation == "1", told, "{annotation} of {other}");
            assert_eq!(pod["nodeSelector"]["disk"] == "ssd", told, "{other}");
            assert_eq!(pod["tolerations"][0]["key"] == "mesh", told, "{other}");
            assert_eq!(pod["affinity"]["nodeAffinity"].is_object(), told, "{other}");
            assert_eq!(env.contains(&json!({"name": "EXTRA", "value": "5"})), told, "{other}");
        }
        let ztunnel = &find(&objects, "DaemonSet", "ztunnel")["spec"]["template"];
        assert_eq!(ztunnel["metadata"]["annotations"]["prometheus.io/port"], "15020");
    }
    let settings = controllers(&["global.logAsJson=true", "cni.excludeNamespaces=[a, b]"]);
    assert!(settings.mesh().proxies.pods.log_as_json());
    assert_eq!(*settings.mesh().excluded, ["a", "b"].map(std::sync::Arc::from));
}

#[test]
fn the_mesh_is_told_where_istios_tools_look_for_it() {
    let sets = [
        "meshConfig.trustDomain=one.example",
        "meshConfig.discoverySelectors=[{matchLabels: {a: b}}]",
    ];
    let objects = objects("mesh", &sets.map(str::to_owned)).unwrap();
    let told = find(&objects, "ConfigMap", "istio")["data"]["mesh"].as_str().unwrap();
    let told: Value = serde_saphyr::from_str(told).unwrap();
    assert_eq!(told["rootNamespace"], "mesh");
    assert_eq!(told["trustDomain"], "one.example");
    assert_eq!(told["discoverySelectors"], json!([{"matchLabels": {"a": "b"}}]));
    let ports = find(&objects, "Service", "istiod")["spec"]["ports"].as_array().unwrap();
    let ports: Vec<u64> = ports.iter().filter_map(|port| port["port"].as_u64()).collect();
    assert_eq!(ports, [15012, 15014, 8080]);
    let settings = controllers(&[]);
    let served = [Some(settings.listen), settings.monitoring_address, settings.ready_address];
    assert_eq!(served.map(|address| u64::from(address.unwrap().port())), ports[..]);
}
