// SPDX-License-Identifier: Apache-2.0

//! BackendTLSPolicies by the cases of the Gateway API suite.

use super::super::Translator;
use super::super::testing::{Made, certificate, run, stores};

const BASE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: infra}
spec: {clusterIP: 10.96.0.1, ports: [{name: https, port: 443}, {name: other, port: 8443}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: infra}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: infra}
spec: {parentRefs: [{name: gw}], rules: [{backendRefs: [{name: web, port: 443}]}]}
";

fn policy(name: &str, created: u32, target: &str, ca: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\n\
         metadata: {{name: {name}, namespace: infra, creationTimestamp: '2026-01-01T00:00:{created:02}Z'}}\n\
         spec:\n  targetRefs: [{{group: '', kind: Service, name: web{target}}}]\n\
         \x20 validation: {{hostname: abc.example.com, caCertificateRefs: [{{group: '', {ca}}}]}}\n"
    )
}

fn made(policies: &[&str], name: &str) -> Made {
    let (pem, _) = certificate("ca");
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: infra}}\ndata:\n  ca.crt: |\n    {}\n",
        pem.trim().replace('\n', "\n    ")
    );
    let texts: Vec<&str> =
        [BASE, map.as_str()].into_iter().chain(policies.iter().copied()).collect();
    run(&stores(&texts), Translator::BackendTls, &format!("infra/{name}"))
}

const GOOD: &str = "kind: ConfigMap, name: ca";

#[test]
fn a_policy_names_server_roots_and_service() {
    let made = made(&[&policy("p", 1, "", GOOD)], "p");
    let told = &made.parents()[0];
    assert_eq!(told["Accepted"], (true, "Accepted"));
    assert_eq!(told["ResolvedRefs"], (true, "ResolvedRefs"));
    let tls = &made.backend_tls()[0];
    assert_eq!(tls.name.to_string(), "infra/web.infra.svc.cluster.local/*");
    assert_eq!(&*tls.sni, "abc.example.com");
    assert_eq!(tls.invalid, None);
}

#[test]
fn a_policy_without_roots_makes_requests_fail() {
    let cases = [
        ("kind: ConfigMap, name: gone", "InvalidCACertificateRef"),
        ("kind: Nope, name: ca", "InvalidKind"),
    ];
    for (ca, reason) in cases {
        let made = made(&[&policy("p", 1, "", ca)], "p");
        let told = &made.parents()[0];
        assert_eq!(told["Accepted"], (false, "NoValidCACertificate"), "{ca}");
        assert_eq!(told["ResolvedRefs"], (false, reason), "{ca}");
        assert!(made.backend_tls()[0].invalid.is_some(), "{ca}");
    }
}

#[test]
fn of_several_policies_the_oldest_counts_and_a_port_is_a_target_of_its_own() {
    let old = policy("z-old", 1, "", GOOD);
    let new = policy("a-new", 2, "", GOOD);
    let port = policy("port", 3, ", sectionName: https", GOOD);
    let all = [old.as_str(), &new, &port];
    assert_eq!(made(&all, "z-old").backend_tls().len(), 1);
    let lost = made(&all, "a-new");
    assert!(lost.backend_tls().is_empty());
    assert_eq!(lost.parents()[0]["Accepted"], (false, "Conflicted"));
    let own = made(&all, "port");
    assert_eq!(own.backend_tls()[0].name.port, Some(443));
    assert_eq!(own.parents()[0]["Accepted"], (true, "Accepted"));
}
