// SPDX-License-Identifier: Apache-2.0

//! Helm makes of the chart what `waymark manifest` makes of it.
//!
//! Takes the program that the variable `HELM` names; `tests/helm.sh` brings it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The objects that Helm makes with these values.
fn by_helm(sets: &[String], more: &[&str]) -> Vec<Value> {
    let output = asked(sets, more);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = text.split("---\n").filter(|text| !text.trim().is_empty());
    documents.filter_map(|text| serde_saphyr::from_str::<Option<Value>>(text).unwrap()).collect()
}

/// What Helm says to these values.
fn asked(sets: &[String], more: &[&str]) -> Output {
    let helm = std::env::var_os("HELM").unwrap();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/waymark");
    let mut command = Command::new(helm);
    command.args(["template", "release"]).arg(chart).args(["--namespace", "mesh"]).args(more);
    // A Helm that was built from its module takes itself for one of v1.20.
    command.args(["--kube-version", "1.30.0"]);
    for set in sets {
        command.args(["--set", set]);
    }
    command.output().unwrap()
}

fn sorted(mut objects: Vec<Value>) -> Vec<Value> {
    // Helm makes no namespace: it is there, or `--create-namespace` makes it.
    objects.retain(|object| object.get("kind").is_none_or(|kind| kind != "Namespace"));
    objects.sort_by_key(|object| {
        format!("{:?} {:?}", object.get("kind"), object.pointer("/metadata/name"))
    });
    objects
}

#[test]
#[ignore = "takes Helm: tests/helm.sh"]
fn helm_makes_the_same_objects_of_the_same_values() {
    let rows: [&[&str]; 6] = [
        &[],
        &["pilot.taint.enabled=true"],
        &["global.hub=registry.example/w", "pilot.logLevel=debug", "pilot.replicaCount=3"],
        &[
            "global.imagePullPolicy=Always",
            "global.waypoint.resources.requests.cpu=2",
            "global.proxy.resources.requests.memory=1Gi",
        ],
        &[
            r"global.waypoint.nodeSelector.kubernetes\.io/arch=arm64",
            "global.waypoint.resources.limits.memory=1Gi",
            "global.proxy.affinity=null",
            "global.tag=7",
        ],
        &[
            "global.logAsJson=true",
            "pilot.env.EXTRA=5",
            "ztunnel.env.SECRET_TTL=1h",
            r"cni.podAnnotations.example\.com/a=b",
            "cni.nodeSelector.disk=ssd",
            "pilot.tolerations=null",
        ],
    ];
    for sets in rows {
        let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
        let own = sorted(controller::install::objects("mesh", &sets).unwrap());
        let helms = sorted(by_helm(&sets, &["--include-crds", "--no-hooks"]));
        let names = |all: &[Value]| -> Vec<String> {
            all.iter().map(|one| format!("{} {}", one["kind"], one["metadata"]["name"])).collect()
        };
        assert_eq!(names(&own), names(&helms), "{sets:?}");
        for (own, helms) in own.iter().zip(&helms) {
            assert_eq!(own, helms, "{sets:?}");
        }
    }
}

#[test]
#[ignore = "takes Helm: tests/helm.sh"]
fn helm_knows_the_hook_that_runs_before_it_deletes() {
    let all = by_helm(&[], &["--show-only", "templates/uninstall.yaml"]);
    assert_eq!(all.iter().filter(|one| one["kind"] == "Job").count(), 1);
    for object in all {
        assert_eq!(object["metadata"]["annotations"]["helm.sh/hook"], "pre-delete");
    }
}

#[test]
#[ignore = "takes Helm: tests/helm.sh"]
fn helm_refuses_the_same_values() {
    for set in [
        "pilot.replicas=2",
        "pilots.replicaCount=2",
        "global.waypoint.afinity.nodeAffinity=x",
        "global.proxy.resources.request.cpu=1",
        "meshConfig.accessLogFile=/dev/stdout",
        "pilot.replicaCount=many",
        "pilot.replicaCount=-1",
        "cni.healthPort=70000",
        "global.imagePullPolicy=Sometimes",
        "pilot.taint=true",
        "global.hub=null",
    ] {
        let sets = [set.to_owned()];
        let own = controller::install::objects("mesh", &sets);
        assert!(own.is_err(), "{set}");
        let helms = asked(&sets, &[]);
        let text = String::from_utf8_lossy(&helms.stderr);
        assert!(!helms.status.success() && text.contains("schema"), "{set}: {text}");
    }
}
