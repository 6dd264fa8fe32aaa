// SPDX-License-Identifier: Apache-2.0

//! The arrows between the crates, read from `cargo metadata`.
//!
//! Cargo keeps cycles out; this keeps the layers: what may know what, and which
//! third-party crates stay behind which wall.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Direct dependencies that ship (not those of tests), by package.
fn edges() -> Edges {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut edges = Edges::new();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap().to_owned();
        let needs = package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .map(|dependency| dependency["name"].as_str().unwrap().to_owned())
            .collect();
        edges.insert(name, needs);
    }
    edges
}

fn own(needs: &BTreeSet<String>) -> BTreeSet<&str> {
    needs.iter().map(String::as_str).filter(|name| name.starts_with("waymark-")).collect()
}

#[test]
fn crates_know_only_what_is_below_them() {
    let cases: [(&str, &[&str]); 5] = [
        ("waymark-policy", &[]),
        ("waymark-routing", &["waymark-policy"]),
        ("waymark-tunnel", &["waymark-policy", "waymark-routing"]),
        ("waymark-gateway", &["waymark-policy", "waymark-routing", "waymark-tunnel"]),
        ("waymark-controller", &["waymark-policy", "waymark-routing"]),
    ];
    let edges = edges();
    for (package, want) in cases {
        let want: BTreeSet<&str> = want.iter().copied().collect();
        assert_eq!(own(&edges[package]), want, "{package}");
    }
}

#[test]
fn third_party_walls_hold() {
    let walls: [(&str, &[&str]); 4] = [
        ("kube", &["waymark-controller", "waymark-tests"]),
        ("k8s-openapi", &["waymark-controller", "waymark-tests"]),
        ("gateway-api", &["waymark-controller", "waymark-tests"]),
        ("pingora", &["waymark-gateway"]),
    ];
    for (package, needs) in edges() {
        for (wall, inside) in walls {
            let beyond = needs
                .iter()
                .any(|need| need == wall || (wall == "pingora" && need.starts_with(wall)));
            assert!(!beyond || inside.contains(&package.as_str()), "{package} must not use {wall}");
        }
    }
}

#[test]
fn pure_crates_have_no_runtime() {
    let edges = edges();
    for package in ["waymark-policy", "waymark-routing"] {
        for runtime in ["tokio", "tokio-util", "hyper", "tonic", "rustls", "async-trait", "rand"] {
            assert!(!edges[package].contains(runtime), "{package} must not use {runtime}");
        }
    }
}

#[test]
fn nothing_uses_the_tests_or_the_examples() {
    for (package, needs) in edges() {
        for need in ["waymark-tests", "waymark-examples"] {
            let tests_may = package == "waymark-tests";
            assert!(!needs.contains(need) || tests_may, "{package} must not use {need}");
        }
    }
}
