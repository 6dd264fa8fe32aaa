// SPDX-License-Identifier: Apache-2.0

//! Who gets a policy, in which form.

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::authz::{Action, Authorization, Scope, Target};
use routing::delta::Resource as Plane;

use super::super::Translator;
use super::super::testing::{Made, Told, run, stores, told};
use crate::output::{self, Output, Resource};
use crate::status::Body;
use crate::store::Name;

const GATEWAYS: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: shop}
spec:
  gatewayClassName: istio
  infrastructure: {labels: {istio: ingressgateway}}
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  infrastructure: {labels: {istio: ingressgateway}}
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: other, namespace: far}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: foreign, namespace: far}
spec: {gatewayClassName: nginx, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: edge-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: edge, istio: ingressgateway, canary: 'yes'}}
spec: {containers: []}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web, tier: front}}
spec: {containers: []}
";

fn made(namespace: &str, spec: &str, more: &[&str]) -> Made {
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: p, namespace: {namespace}}}\nspec: {spec}"
    );
    let texts: Vec<&str> =
        [GATEWAYS, policy.as_str()].into_iter().chain(more.iter().copied()).collect();
    run(&stores(&texts), Translator::Authorization, &format!("{namespace}/p"))
}

fn plane(output: &Output) -> Option<(&Plane, &output::Scope)> {
    let Output::Config(config) = output else { return None };
    let Resource::Plane(plane) = &config.resource else { return None };
    Some((plane, &config.scope))
}

/// The form for gateways, and who gets it.
fn at_gateways(made: &Made) -> Option<(Arc<Authorization>, output::Scope)> {
    made.0.iter().filter_map(plane).find_map(|(plane, scope)| {
        let Plane::GatewayAuthorization(policy) = plane else { return None };
        Some((Arc::clone(policy), scope.clone()))
    })
}

/// The form for tunnels.
fn at_tunnels(made: &Made) -> Option<Arc<Authorization>> {
    made.0.iter().filter_map(plane).find_map(|(plane, _)| {
        let Plane::Authorization(policy) = plane else { return None };
        Some(Arc::clone(policy))
    })
}

fn conditions(made: &Made) -> Told {
    let Body::Conditions(conditions) = &made.status().body else { panic!("no conditions") };
    told(conditions)
}

#[test]
fn a_policy_without_targets_goes_to_the_ingress_gateways_that_it_selects() {
    let cases: [(&str, &str, &[&str]); 11] = [
        // namespace, spec, gateways
        ("shop", "{rules: [{}]}", &["shop/edge"]),
        ("shop", "{selector: {matchLabels: {}}, rules: [{}]}", &["shop/edge"]),
        ("shop", "{selector: {matchLabels: {istio: ingressgateway}}}", &["shop/edge"]),
        (
            "shop",
            "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: edge}}}",
            &["shop/edge"],
        ),
        // Of a pod that there is, by a label that no template gives it.
        ("shop", "{selector: {matchLabels: {canary: 'yes'}}}", &["shop/edge"]),
        ("shop", "{selector: {matchLabels: {app: web}}}", &[]),
        ("shop", "{selector: {matchLabels: {gateway.networking.k8s.io/gateway-name: wp}}}", &[]),
        ("far", "{}", &["far/other"]),
        ("empty", "{}", &[]),
        ("istio-system", "{action: DENY, rules: [{}]}", &["far/other", "shop/edge"]),
        ("istio-system", "{selector: {matchLabels: {istio: ingressgateway}}}", &["shop/edge"]),
    ];
    for (namespace, spec, want) in cases {
        let made = made(namespace, spec, &[]);
        let names = |name: &&str| {
            let (namespace, name) = name.split_once('/').unwrap();
            Name::new(namespace, name)
        };
        let want: BTreeSet<Name> = want.iter().map(names).collect();
        let got = at_gateways(&made);
        assert!(at_tunnels(&made).is_some(), "tunnels get it too: {namespace} {spec}");
        let Some((policy, scope)) = got else {
            assert!(want.is_empty(), "{namespace} {spec}: no gateway, wanted {want:?}");
            continue;
        };
        let gateways = want.iter().cloned().collect();
        assert_eq!(scope, output::Scope::Gateways(gateways), "{namespace} {spec}");
        let targets: Vec<_> =
            want.iter().map(|name| Target::Gateway(name.to_string().into())).collect();
        assert_eq!(policy.scope, Scope::Targets(targets), "{namespace} {spec}");
    }
}

#[test]
fn a_gateway_gets_the_fields_that_no_tunnel_can_ask() {
    let rules = "rules: [{to: [{operation: {paths: [/admin]}}]}]";
    let only = made(
        "shop",
        &format!("{{selector: {{matchLabels: {{istio: ingressgateway}}}}, action: DENY, {rules}}}"),
        &[],
    );
    let (policy, _) = at_gateways(&only).unwrap();
    assert_eq!(policy.unsupported, None, "a gateway reads paths");
    assert_eq!(policy.action, Action::Deny);
    assert!(policy.asks_http());
    assert_eq!(
        conditions(&only),
        Told::from([("Accepted", (true, "Accepted")), ("WaypointAccepted", (true, "Accepted"))]),
        "nothing but the gateway is selected"
    );

    let all = made("shop", &format!("{{action: DENY, {rules}}}"), &[]);
    let (policy, _) = at_gateways(&all).unwrap();
    assert_eq!(policy.unsupported, None);
    let session = at_tunnels(&all).unwrap();
    assert!(session.unsupported.is_some(), "the tunnels of the other pods refuse");
    assert_eq!(conditions(&all)["ZtunnelAccepted"], (false, "UnsupportedValue"));

    let sharing = "
apiVersion: v1
kind: Pod
metadata: {name: x, namespace: shop, labels: {istio: ingressgateway}}
spec: {containers: []}
";
    let shared = made(
        "shop",
        &format!("{{selector: {{matchLabels: {{istio: ingressgateway}}}}, {rules}}}"),
        &[sharing],
    );
    assert_eq!(conditions(&shared)["ZtunnelAccepted"], (false, "UnsupportedValue"));
}

#[test]
fn what_a_gateway_cannot_serve_refuses_there() {
    let cases = [
        "{action: CUSTOM, provider: {name: x}, rules: [{}]}",
        "{action: PERHAPS, rules: [{}]}",
        "{rules: [{when: [{key: request.auth.claims, values: [x]}]}]}",
    ];
    for spec in cases {
        let made = made("shop", spec, &[]);
        let (policy, _) = at_gateways(&made).unwrap();
        assert!(policy.unsupported.is_some(), "{spec}");
        assert!(!conditions(&made)["Accepted"].0, "{spec}");
    }
    let audit = made("shop", "{action: AUDIT, rules: [{}]}", &[]);
    assert_eq!(at_gateways(&audit).unwrap().0.action, Action::Audit, "gateways record");
    assert!(at_tunnels(&audit).is_none(), "tunnels do not");
}
