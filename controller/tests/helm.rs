// SPDX-License-Identifier: Apache-2.0

//! Helm makes of the chart what `waymark manifest` makes of it.
//!
//! Takes the program that the variable `HELM` names; `tests/helm.sh` brings it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The objects that Helm makes with these values.
fn by_helm(sets: &[String], more: &[&str]) -> Vec<Value> {
    let helm = std::env::var_os("HELM").unwrap();
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/waymark");
    let mut command = Command::new(helm);
    command.args(["template", "release"]).arg(chart).args(["--namespace", "mesh"]).args(more);
    // A Helm that was built from its module takes itself for one of v1.20.
    command.args(["--kube-version", "1.30.0"]);
    for set in sets {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let documents = text.split("---\n").filter(|text| !text.trim().is_empty());
    documents.filter_map(|text| serde_saphyr::from_str::<Option<Value>>(text).unwrap()).collect()
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
    let rows: [&[&str]; 3] = [
        &[],
        &["pilot.taint.enabled=true"],
        &["global.hub=registry.example/w", "pilot.logLevel=debug", "pilot.replicaCount=3"],
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
