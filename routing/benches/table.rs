// SPDX-License-Identifier: Apache-2.0

//! Cost of finding a rule among many under one host, and of changing one of them.

use std::sync::Arc;

use divan::{Bencher, black_box};
use http::{HeaderMap, Method};
use routing::matching::{Head, HostPattern, PathMatch, RequestMatch};
use routing::route::{Retry, RouteKind, Rule, RuleName, Timeouts};
use routing::table::{RouteTable, scan};

fn main() {
    divan::main();
}

const SIZES: [u32; 3] = [10, 1_000, 10_000];

fn rules(count: u32) -> Vec<(Arc<Rule>, Vec<HostPattern>)> {
    let hosts: Vec<HostPattern> = ["shop.example.com".parse()].into_iter().flatten().collect();
    let rule = |index| {
        Arc::new(Rule {
            name: RuleName {
                kind: RouteKind::Http,
                namespace: "shop".into(),
                name: format!("route-{index}").into(),
                index: 0,
            },
            rule_name: None,
            created: u64::from(index),
            parents: Vec::new(),
            matches: vec![RequestMatch {
                path: PathMatch::Prefix(format!("/api/service-{index}").into()),
                ..RequestMatch::any()
            }],
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts::default(),
            retry: Retry::default(),
        })
    };
    (0..count).map(|index| (rule(index), hosts.clone())).collect()
}

fn table(rules: &[(Arc<Rule>, Vec<HostPattern>)]) -> RouteTable {
    RouteTable::build(rules.iter().map(|(rule, hosts)| (rule, hosts.as_slice())))
}

fn ask<'a>(path: &'a str, headers: &'a HeaderMap) -> Head<'a> {
    Head { method: &Method::GET, host: "shop.example.com", path, query: "", headers }
}

#[divan::bench(args = SIZES)]
fn hit(bencher: Bencher<'_, '_>, count: u32) {
    let table = table(&rules(count));
    let (headers, path) = (HeaderMap::new(), format!("/api/service-{}/items/7", count / 2));
    bencher.bench(|| table.find(black_box(&ask(&path, &headers))).is_some());
}

#[divan::bench(args = SIZES)]
fn miss(bencher: Bencher<'_, '_>, count: u32) {
    let table = table(&rules(count));
    let headers = HeaderMap::new();
    bencher.bench(|| table.find(black_box(&ask("/api/none/items/7", &headers))).is_some());
}

#[divan::bench(args = SIZES)]
fn hit_by_scan(bencher: Bencher<'_, '_>, count: u32) {
    let rules = rules(count);
    let (headers, path) = (HeaderMap::new(), format!("/api/service-{}/items/7", count / 2));
    bencher.bench(|| {
        let all = rules.iter().map(|(rule, hosts)| (rule, hosts.as_slice()));
        scan::find(all, black_box(&ask(&path, &headers))).is_some()
    });
}

#[divan::bench(args = SIZES)]
fn build(bencher: Bencher<'_, '_>, count: u32) {
    let rules = rules(count);
    bencher.bench(|| table(black_box(&rules)));
}

/// A new version of a rule, its path the same.
#[divan::bench(args = SIZES)]
fn change_one(bencher: Bencher<'_, '_>, count: u32) {
    let rules = rules(count);
    let table = table(&rules);
    let Some((rule, hosts)) = rules.first() else { return };
    let newer = Arc::new((**rule).clone());
    bencher.bench(|| {
        let mut next = table.clone();
        next.insert(&newer, hosts);
        next.remove(rule, hosts);
        next
    });
}

/// A rule with a path that was not there.
#[divan::bench(args = SIZES)]
fn add_one(bencher: Bencher<'_, '_>, count: u32) {
    let mut rules = rules(count + 1);
    let Some((rule, hosts)) = rules.pop() else { return };
    let table = table(&rules);
    bencher.bench(|| {
        let mut next = table.clone();
        next.insert(&rule, &hosts);
        next
    });
}
