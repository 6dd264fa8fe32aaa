// SPDX-License-Identifier: Apache-2.0

//! What is followed by name, and for how long.

use std::path::Path;

use super::super::Apiserver;
use super::*;
use crate::discovery::Selectors;
use crate::source::document;

fn read(text: &str) -> Change {
    let parsed = document::parse_unchecked(Path::new("f"), text);
    Change::Put(parsed.objects.into_iter().next().unwrap().object)
}

fn gateway(name: &str, secrets: &[&str]) -> Change {
    let refs: Vec<String> = secrets.iter().map(|name| format!("{{name: {name}}}")).collect();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: n}}\nspec:\n  gatewayClassName: istio\n  listeners:\n  - {{name: a, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{}]}}}}\n",
        refs.join(", ")
    );
    read(&text)
}

/// Of an apiserver that nobody answers for: nothing is asked of it here.
fn named() -> Named {
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let nowhere = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
    let apiserver = Apiserver::new(nowhere).unwrap();
    let (out, _) = mpsc::channel(1);
    Named::new(Arc::new(Cluster::new(apiserver, Selectors::default())), out)
}

#[tokio::test]
async fn a_secret_is_followed_while_any_object_names_it() {
    let key = |kind, name: &str| Key { kind, name: Name::new("n", name) };
    let always = key(Kind::ConfigMap, "mesh");
    let mut named = named();
    named.add(&always);
    let secret = |name| key(Kind::Secret, name);
    assert!(named.note(&gateway("g1", &["a", "b"])).is_empty());
    assert!(named.note(&gateway("g2", &["b"])).is_empty());
    let waiting = [secret("a"), secret("b"), always].into();
    assert_eq!(*named.waiting(), waiting);
    named.told(&secret("b"));
    assert_eq!(named.note(&gateway("g1", &["c"])), [secret("a")]);
    assert!(!named.waiting().contains(&secret("a")), "nobody waits for it");
    assert!(!named.waiting().contains(&secret("b")), "it was told once");
    assert_eq!(named.note(&Change::Gone(key(Kind::Gateway, "g2"))), [secret("b")]);
    assert_eq!(named.note(&Change::Gone(key(Kind::Gateway, "g2"))), []);
    assert_eq!(named.followed.len(), 2, "the one that always is, and one that is named");
}

#[tokio::test]
async fn what_is_under_way_of_an_object_that_nobody_names_is_not_taken() {
    let mut named = named();
    let key = Key { kind: Kind::Secret, name: Name::new("n", "a") };
    assert!(!named.follows(&key), "nobody named it yet");
    named.note(&gateway("g", &["a"]));
    assert!(named.follows(&key));
    named.note(&gateway("g", &[]));
    assert!(!named.follows(&key));
    let whole = gateway("g", &[]).key();
    assert!(named.follows(&whole), "kinds that are followed whole are taken");
}

#[test]
fn defaults_of_classes_are_told_once_and_missed_after_a_new_list() {
    let map = |name: &str| {
        let meta = serde_json::json!({"metadata": {"name": name, "namespace": "root"}});
        serde_json::from_value::<PartialObjectMeta<ConfigMap>>(meta).unwrap()
    };
    let mut defaults = Defaults::default();
    let mut told = |event| {
        let seen = defaults.take(event).into_iter().map(|seen| match seen {
            Seen::Default(key, now) => format!("{key} {now}"),
            other @ (Seen::Change(_)
            | Seen::Unreadable(..)
            | Seen::Synced(_)
            | Seen::DefaultsSynced) => format!("{other:?}"),
        });
        seen.collect::<Vec<_>>()
    };
    assert!(told(Event::Init).is_empty());
    assert_eq!(told(Event::InitApply(map("a"))), ["ConfigMap root/a true"]);
    assert_eq!(told(Event::InitDone), ["DefaultsSynced"]);
    assert!(told(Event::Apply(map("a"))).is_empty(), "it is known");
    assert_eq!(told(Event::Apply(map("b"))), ["ConfigMap root/b true"]);
    assert_eq!(told(Event::Delete(map("b"))), ["ConfigMap root/b false"]);
    told(Event::Init);
    assert_eq!(told(Event::InitDone), ["ConfigMap root/a false", "DefaultsSynced"]);
}

const GROUP: &str = "gateway.networking.k8s.io";

/// Gateways, and what each names.
fn gateways() -> Vec<(String, Vec<&'static str>)> {
    let ca = |name: &str, kind: &str| {
        format!(
            "{{validation: {{caCertificateRefs: [{{group: '', kind: {kind}, name: {name}}}]}}}}"
        )
    };
    vec![
        (
            format!(
                "apiVersion: {GROUP}/v1\nkind: Gateway\nmetadata: {{name: g, namespace: n}}\nspec:\n  \
                 gatewayClassName: c\n  infrastructure: {{parametersRef: {{group: '', kind: ConfigMap, name: p}}}}\n  \
                 listeners: [{{name: l, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{{name: own}}, \
                 {{name: far, namespace: o}}]}}}}]\n  tls:\n    backend: {{clientCertificateRef: {{name: shown}}}}\n    \
                 frontend: {{default: {}, perPort: [{{port: 443, tls: {}}}]}}\n",
                ca("ca", "ConfigMap"),
                ca("ca-443", "ConfigMap"),
            ),
            vec![
                "ConfigMap n/ca",
                "ConfigMap n/ca-443",
                "ConfigMap n/p",
                "Secret n/own",
                "Secret n/shown",
                "Secret o/far",
            ],
        ),
        // Secrets are named as certificates with their key, never as CA or parameters.
        (
            format!(
                "apiVersion: {GROUP}/v1\nkind: Gateway\nmetadata: {{name: g, namespace: n}}\nspec:\n  \
                 gatewayClassName: c\n  infrastructure: {{parametersRef: {{group: '', kind: Secret, name: p}}}}\n  \
                 listeners: []\n  tls: {{frontend: {{default: {}}}}}\n",
                ca("ca", "Secret"),
            ),
            vec![],
        ),
    ]
}

/// Other objects, and what each names.
fn others() -> Vec<(String, Vec<&'static str>)> {
    vec![
        (
            format!(
                "apiVersion: {GROUP}/v1\nkind: GatewayClass\nmetadata: {{name: c}}\nspec: {{controllerName: a.b/c, \
                 parametersRef: {{group: '', kind: ConfigMap, namespace: r, name: p}}}}\n"
            ),
            vec!["ConfigMap r/p"],
        ),
        (
            format!(
                "apiVersion: {GROUP}/v1\nkind: ListenerSet\nmetadata: {{name: s, namespace: n}}\nspec:\n  \
                 parentRef: {{name: g}}\n  listeners: [{{name: l, port: 443, protocol: HTTPS, tls: \
                 {{certificateRefs: [{{name: own}}]}}}}]\n"
            ),
            vec!["Secret n/own"],
        ),
        (
            format!(
                "apiVersion: {GROUP}/v1\nkind: BackendTLSPolicy\nmetadata: {{name: b, namespace: n}}\nspec:\n  \
                 targetRefs: [{{group: '', kind: Service, name: s}}]\n  validation: {{hostname: h, \
                 caCertificateRefs: [{{group: '', kind: ConfigMap, name: ca}}]}}\n"
            ),
            vec!["ConfigMap n/ca"],
        ),
    ]
}

#[test]
fn every_object_that_is_named_as_holding_certificates_or_parameters_is_told() {
    for (text, want) in gateways().into_iter().chain(others()) {
        let Change::Put(object) = read(&text) else { panic!("no object: {text}") };
        let named: BTreeSet<String> = object.named().iter().map(ToString::to_string).collect();
        assert_eq!(named, want.iter().map(ToString::to_string).collect(), "{text}");
    }
}
