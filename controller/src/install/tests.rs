// SPDX-License-Identifier: Apache-2.0

//! The chart, filled in.

use super::*;
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
fn lines_are_left_out_whose_condition_does_not_hold() {
    let values = json!({"on": true, "off": false, "none": [], "some": {"a": 1}, "empty": ""});
    let chosen = |text: &str| chosen("t", text, &values);
    let lines =
        |path: &str| format!("a: 1\n  {{{{- if .Values.{path} }}}}\nb: 2\n{{{{- end }}}}\nc: 3\n");
    for (path, holds) in
        [("on", true), ("off", false), ("none", false), ("some", true), ("empty", false)]
    {
        let want = if holds { "a: 1\nb: 2\nc: 3\n" } else { "a: 1\nc: 3\n" };
        assert_eq!(chosen(&lines(path)).unwrap(), want, "{path}");
    }
    assert_eq!(chosen(&lines("other")), Err(InstallError::NoValue("other".into())));
    for bad in [
        "{{- if .Values.on }}\n",
        "{{- end }}\n",
        "{{- if not .Values.on }}\n{{- end }}\n",
        "{{- if .Values.on }}\n{{- if .Values.on }}\n{{- end }}\n{{- end }}\n",
    ] {
        assert!(matches!(chosen(bad), Err(InstallError::Word { .. })), "{bad}");
    }
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
    let text = fill("uninstall.yaml", HOOK, "mesh", &values).unwrap();
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
