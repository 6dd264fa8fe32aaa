// SPDX-License-Identifier: Apache-2.0

//! Gateways by the cases of the Gateway API suite.

use routing::delta::Resource as Plane;
use routing::gateway::LogFormat;
use routing::listener::{ClientValidationMode, Protocol, TlsMode};

use super::super::Translator;
use super::super::testing::{Edited, Made, certificate, run, run_in, secret, stores, unrestricted};
use crate::output::{Family, Output, Resource};
use crate::settings::Mesh;
use crate::status::Body;
use crate::store::facts::{Objection, Objections};
use crate::store::{Key, Kind, Name};

const READY: &str = "
apiVersion: v1
kind: Service
metadata: {name: gw-waymark, namespace: infra}
spec: {type: LoadBalancer, clusterIP: 10.96.0.5, ports: [{port: 80}]}
status: {loadBalancer: {ingress: [{ip: 10.97.0.1}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: infra, labels: {gateway.networking.k8s.io/gateway-name: gw}}
spec: {containers: []}
status: {phase: Running, podIP: 10.244.1.9, conditions: [{type: Ready, status: 'True'}]}
";

fn gateway(spec: &str, more: &[&str]) -> Made {
    let object = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
         metadata: {{name: gw, namespace: infra, generation: 3}}\nspec:\n  gatewayClassName: waymark\n{spec}"
    );
    let texts: Vec<&str> = [object.as_str()].into_iter().chain(more.iter().copied()).collect();
    run(&stores(&texts), Translator::Gateway, "infra/gw")
}

#[test]
fn the_access_log_is_as_the_annotation_says() {
    let (text, json) = (Some(LogFormat::Text), Some(LogFormat::Json));
    let mut jsons = Mesh::default();
    jsons.proxies.pods = r#"{"logAsJson": true}"#.parse().unwrap();
    let cases = [
        // annotations, format, format where all logs are JSON
        ("", text, json),
        ("{gateway.waymark.dev/access-log: text}", text, text),
        ("{gateway.waymark.dev/access-log: json}", json, json),
        ("{gateway.waymark.dev/access-log: 'off'}", None, None),
    ];
    let cases = cases.into_iter().flat_map(|(annotations, want, want_of_jsons)| {
        [(annotations, Mesh::default(), want), (annotations, jsons.clone(), want_of_jsons)]
    });
    for (annotations, mesh, want) in cases {
        let object = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: gw, namespace: infra, annotations: {annotations}}}\n\
             spec:\n  gatewayClassName: waymark\n{HTTP}"
        );
        let made = run_in(&mesh, &stores(&[&object]), Translator::Gateway, "infra/gw");
        let logs = made.0.iter().find_map(|output| {
            let Output::Config(config) = output else { return None };
            let Resource::Plane(Plane::Gateway(settings)) = &config.resource else { return None };
            Some(settings.access_log)
        });
        assert_eq!(logs, Some(want), "{annotations}");
    }
}

const HTTP: &str = "  listeners: [{name: http, port: 80, protocol: HTTP}]\n";

#[test]
fn a_gateway_is_programmed_once_it_has_an_address_and_a_ready_proxy() {
    let (conditions, listeners) = gateway(HTTP, &[]).gateway();
    assert_eq!(conditions["Accepted"], (true, "Accepted"));
    assert_eq!(conditions["Programmed"], (false, "AddressNotAssigned"));
    assert_eq!(listeners["http"].1["Programmed"], (false, "Pending"));

    let made = gateway(HTTP, &[READY]);
    let (conditions, listeners) = made.gateway();
    assert_eq!(conditions["Programmed"], (true, "Programmed"));
    assert_eq!(listeners["http"].0, ["HTTPRoute", "GRPCRoute"]);
    let told = &listeners["http"].1;
    assert_eq!(told["Accepted"], (true, "Accepted"));
    assert_eq!(told["Programmed"], (true, "Programmed"));
    assert_eq!(told["ResolvedRefs"], (true, "ResolvedRefs"));
    assert_eq!(told["Conflicted"], (false, "NoConflicts"));
    let Body::Gateway { addresses, .. } = &made.status().body else { panic!() };
    assert_eq!(*addresses, [("IPAddress", "10.97.0.1".to_owned())]);
    assert_eq!(made.listeners()[0].name.as_str(), "infra/gw/http");
}

#[test]
fn the_objects_of_a_gateway_are_named_and_labelled_as_users_know_them() {
    let spec = format!("{HTTP}  infrastructure: {{labels: {{a: b}}, annotations: {{c: d}}}}\n");
    let made = gateway(&spec, &[]);
    let objects: Vec<_> = made
        .0
        .iter()
        .filter_map(|output| match output {
            Output::Object(object) => Some(object),
            Output::Config(_) | Output::Status(_) | Output::Attached(_) | Output::NotServed(_) => {
                None
            }
        })
        .collect();
    let kinds: Vec<_> = objects.iter().map(|o| (o.key.kind, o.key.name.to_string())).collect();
    let name = || "infra/gw-waymark".to_owned();
    let want = [Kind::ServiceAccount, Kind::Deployment, Kind::Service].map(|kind| (kind, name()));
    assert_eq!(kinds, want);
    for object in &objects {
        let meta = &object.value["metadata"];
        assert_eq!(meta["labels"]["gateway.networking.k8s.io/gateway-name"], "gw");
        assert_eq!(meta["labels"]["a"], "b");
        assert_eq!(meta["annotations"]["c"], "d");
    }
    let service = &objects[2].value["spec"];
    assert_eq!(service["type"], "LoadBalancer");
    assert_eq!(service["ports"][1]["port"], 80);
    let pod = &objects[1].value["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "gw-waymark");
    assert_eq!(pod["containers"][0]["args"], serde_json::json!(["proxy", "router"]));
}

#[test]
fn ports_of_the_service_have_names_that_a_service_takes() {
    let long = "l".repeat(62) + ".tail";
    let named =
        |name: &str, port: u16| format!("  - {{name: {name}, port: {port}, protocol: HTTP}}\n");
    let listeners: String = [("a.b", 80), ("a-b", 81), ("status-port", 82), (&long, 83)]
        .map(|(name, port)| named(name, port))
        .concat();
    let made = gateway(&format!("  listeners:\n{listeners}"), &[]);
    let service = made.object(Kind::Service).unwrap();
    let ports = service["spec"]["ports"].as_array().unwrap();
    let names: Vec<&str> = ports.iter().map(|port| port["name"].as_str().unwrap()).collect();
    let short = "l".repeat(62);
    assert_eq!(names, ["status-port", "a-b", "a-b-81", "status-port-82", short.as_str()]);
}

#[test]
fn the_pods_of_gateways_meet_restricted_pod_security() {
    for class in ["waymark", "istio-waypoint"] {
        let object = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\n\
             metadata: {{name: gw, namespace: infra}}\nspec:\n  gatewayClassName: {class}\n{HTTP}"
        );
        let made = run(&stores(&[&object]), Translator::Gateway, "infra/gw");
        let pod = &made.object(Kind::Deployment).unwrap()["spec"]["template"]["spec"];
        assert!(pod["volumes"].is_array(), "as on a cluster");
        assert_eq!(unrestricted(pod), [""; 0], "{class}");
    }
}

#[test]
fn annotations_name_the_objects_of_a_gateway_and_the_type_of_its_service() {
    let object = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata:\n  name: gw\n  \
         namespace: infra\n  annotations:\n    networking.istio.io/service-type: ClusterIP\n    \
         gateway.istio.io/name-override: edge\n    gateway.istio.io/service-account: door\n\
         spec:\n  gatewayClassName: waymark\n{HTTP}"
    );
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: edge, namespace: infra}\n\
                   spec: {type: ClusterIP, clusterIP: 10.96.0.7, ports: [{port: 80}]}\n";
    let made = run(&stores(&[&object, service]), Translator::Gateway, "infra/gw");
    let named = |kind: Kind| made.object(kind).unwrap()["metadata"]["name"].clone();
    assert_eq!(named(Kind::Deployment), "edge");
    assert_eq!(named(Kind::ServiceAccount), "door");
    assert_eq!(made.object(Kind::Service).unwrap()["spec"]["type"], "ClusterIP");
    let pod = &made.object(Kind::Deployment).unwrap()["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "door");
    // The way out without a load balancer: an address is there, only a proxy is waited for.
    assert_eq!(made.gateway().0["Programmed"], (false, "Pending"));
    let Body::Gateway { addresses, .. } = &made.status().body else { panic!() };
    let host = ("Hostname", "edge.infra.svc.cluster.local".to_owned());
    assert_eq!(*addresses, [("IPAddress", "10.96.0.7".to_owned()), host]);
}

#[test]
fn what_stands_against_its_objects_is_told_on_the_gateway_until_it_passes() {
    let object = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: gw, namespace: infra}}\n\
         spec:\n  gatewayClassName: waymark\n{HTTP}"
    );
    let mut stores = stores(&[&object, READY]);
    let key = |kind, name| Key { kind, name: Name::new("infra", name) };
    let said =
        |reason, message: &str| Objection { reason, message: format!("{message} is refused") };
    let mut with = |objections: Objections| {
        stores.facts.take_objections(Some(objections));
        let made = run(&stores, Translator::Gateway, "infra/gw");
        let Body::Gateway { conditions, .. } = &made.status().body else { panic!() };
        let programmed = conditions.iter().find(|one| one.kind == "Programmed").unwrap();
        (made.gateway().0["Accepted"], programmed.clone())
    };
    let service = (key(Kind::Service, "gw-waymark"), said("Invalid", "Service"));
    let budget = (key(Kind::PodDisruptionBudget, "gw-waymark"), said("NoResources", "budget"));
    let others = (key(Kind::Service, "other-waymark"), said("Invalid", "another"));

    let (accepted, programmed) = with(Objections::from([service, budget, others.clone()]));
    assert_eq!(accepted, (true, "Accepted"));
    assert_eq!((programmed.status, programmed.reason), (false, "Invalid"));
    assert_eq!(programmed.message, "Service is refused; budget is refused");
    assert!(!programmed.waits, "it waits for no proxy");
    let (_, programmed) = with(Objections::from([others]));
    assert!(programmed.status, "{programmed:?}");
}

#[test]
fn a_gateway_without_an_address_is_told_the_way_out() {
    let made = gateway(HTTP, &[]);
    let Body::Gateway { conditions, .. } = &made.status().body else { panic!() };
    let programmed = conditions.iter().find(|one| one.kind == "Programmed").unwrap();
    for part in [crate::api::SERVICE_TYPE, "ClusterIP", "NodePort"] {
        assert!(programmed.message.contains(part), "{part} in {}", programmed.message);
    }
}

#[test]
fn gateway_invalid_route_kind() {
    let with = |kinds: &str| {
        let spec = format!(
            "  listeners: [{{name: l, port: 80, protocol: HTTP, allowedRoutes: {{kinds: [{kinds}]}}}}]\n"
        );
        let made = gateway(&spec, &[READY]);
        let (_, listeners) = made.gateway();
        (listeners["l"].clone(), made.listeners().len())
    };
    let ((kinds, told), served) = with("{kind: InvalidRoute}");
    assert!(kinds.is_empty(), "not the default kinds");
    assert_eq!(told["ResolvedRefs"], (false, "InvalidRouteKinds"));
    assert_eq!(served, 0);
    let ((kinds, told), served) = with("{kind: InvalidRoute}, {kind: HTTPRoute}");
    assert_eq!(kinds, ["HTTPRoute"]);
    assert_eq!(told["ResolvedRefs"], (false, "InvalidRouteKinds"));
    assert_eq!(served, 1, "the good kind is served");
    let ((kinds, told), _) = with("{kind: HTTPRoute, group: other.io}");
    assert!(kinds.is_empty());
    assert_eq!(told["ResolvedRefs"], (false, "InvalidRouteKinds"));
}

#[test]
fn gateway_listener_unsupported_protocol() {
    let bad = "{name: bad, port: 1111, protocol: INVALID}";
    let (alone, listeners) = gateway(&format!("  listeners: [{bad}]\n"), &[READY]).gateway();
    assert_eq!(alone["Accepted"], (false, "ListenersNotValid"));
    assert_eq!(listeners["bad"].1["Accepted"], (false, "UnsupportedProtocol"));
    assert!(listeners["bad"].0.is_empty());
    let both = format!("  listeners: [{bad}, {{name: http, port: 80, protocol: HTTP}}]\n");
    let (both, listeners) = gateway(&both, &[READY]).gateway();
    assert_eq!(both["Accepted"], (true, "ListenersNotValid"));
    assert_eq!(listeners["http"].1["Accepted"], (true, "Accepted"));
}

#[test]
fn gateway_invalid_tls_configuration_and_reference_grants() {
    let (pem, key) = certificate("example.org");
    let own = secret("infra", "good", &pem, &key);
    let broken = secret("infra", "broken", "Hello world", &key);
    let far = secret("certs", "far", &pem, &key);
    let grant = "
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: g, namespace: certs}
spec:
  from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}]
  to: [{group: '', kind: Secret}]
";
    let cases: [(&str, &[&str], Option<&str>); 7] = [
        ("{name: good}", &[], None),
        ("{name: gone}", &[], Some("InvalidCertificateRef")),
        ("{name: good, group: wrong.io}", &[], Some("InvalidCertificateRef")),
        ("{name: good, kind: WrongKind}", &[], Some("InvalidCertificateRef")),
        ("{name: broken}", &[], Some("InvalidCertificateRef")),
        ("{name: far, namespace: certs}", &[], Some("RefNotPermitted")),
        ("{name: far, namespace: certs}", &[grant], None),
    ];
    for (reference, more, want) in cases {
        let spec = format!(
            "  listeners: [{{name: l, port: 443, protocol: HTTPS, tls: {{certificateRefs: [{reference}]}}}}]\n"
        );
        let objects: Vec<&str> =
            [READY, &own, &broken, &far].into_iter().chain(more.iter().copied()).collect();
        let made = gateway(&spec, &objects);
        let (_, listeners) = made.gateway();
        let expected = want.map_or((true, "ResolvedRefs"), |reason| (false, reason));
        let (kinds, told) = &listeners["l"];
        assert_eq!(told["ResolvedRefs"], expected, "{reference}");
        assert_eq!(told["Accepted"], (true, "Accepted"), "{reference}");
        assert_eq!(told["Programmed"].0, want.is_none(), "{reference}");
        assert!(kinds.contains(&"HTTPRoute"), "{reference}");
        assert_eq!(made.listeners().len(), usize::from(want.is_none()), "{reference}");
    }
}

#[test]
fn a_secret_goes_to_the_gateways_that_name_it_and_may() {
    let (pem, key) = certificate("example.org");
    let own = secret("infra", "good", &pem, &key);
    let naming = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, namespace: NAMESPACE}
spec:
  gatewayClassName: waymark
  listeners: [{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: good, namespace: infra}]}}]
";
    let near = naming.replace("NAMESPACE", "infra").replace("NAME", "near");
    let stranger = naming.replace("NAMESPACE", "other").replace("NAME", "stranger");
    let made = run(&stores(&[&own, &near, &stranger]), Translator::Secret, "infra/good");
    let [Output::Config(config)] = made.0.as_slice() else { panic!("{} outputs", made.0.len()) };
    let near = crate::output::Scope::Gateways([Name::new("infra", "near")].into());
    assert_eq!(config.scope, near);
    assert!(run(&stores(&[&own]), Translator::Secret, "infra/good").0.is_empty());
}

#[test]
fn a_certificate_gone_bad_leaves_the_last_good_one_and_a_lost_grant_does_not() {
    let (pem, key) = certificate("example.org");
    let gateway = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: gw, namespace: infra}
spec:
  gatewayClassName: waymark
  listeners: [{name: l, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: far, namespace: certs}]}}]
";
    let grant = |to: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: certs}}\n\
             spec:\n  from: [{{group: gateway.networking.k8s.io, kind: Gateway, namespace: infra}}]\n  \
             to: [{{group: '', kind: Secret, name: {to}}}]\n"
        )
    };
    let mut edited = Edited::default();
    for text in [gateway, READY, &grant("far"), &secret("certs", "far", &pem, &key)] {
        edited.put(text);
    }
    let holds = |edited: &Edited| {
        let listener = edited.holds(Family::Listener, "infra/gw/l");
        (listener, edited.holds(Family::Secret, "certs/far"))
    };
    assert_eq!(holds(&edited), (true, true));
    assert!(edited.put(&secret("certs", "far", "garbage", &key)).is_empty());
    assert_eq!(holds(&edited), (true, true));
    edited.put(&grant("other"));
    assert_eq!(holds(&edited), (false, false));
}

#[test]
fn listeners_that_conflict_stand_in_order() {
    let spec = "  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: a.com}
  - {name: other-host, port: 80, protocol: HTTP, hostname: b.com}
  - {name: same-host, port: 80, protocol: HTTP, hostname: a.com}
  - {name: tcp, port: 80, protocol: TCP}
  - {name: udp, port: 80, protocol: UDP}
";
    let made = gateway(spec, &[READY]);
    let (conditions, listeners) = made.gateway();
    assert_eq!(conditions["Accepted"], (true, "ListenersNotValid"));
    let conflicted = |name: &str| listeners[name].1["Conflicted"];
    assert_eq!(conflicted("same-host"), (true, "HostnameConflict"));
    assert_eq!(conflicted("tcp"), (true, "ProtocolConflict"));
    assert_eq!(listeners["tcp"].1["Accepted"], (false, "ProtocolConflict"));
    assert_eq!(listeners["tcp"].1["Programmed"], (false, "ProtocolConflict"));
    for good in ["http", "other-host", "udp"] {
        assert_eq!(conflicted(good), (false, "NoConflicts"), "{good}");
    }
    assert_eq!(made.listeners().len(), 3);
}

#[test]
fn gateway_addresses_and_parameters() {
    let with = |addresses: &str| {
        gateway(&format!("{HTTP}  addresses: [{addresses}]\n"), &[READY]).gateway().0
    };
    let good = "{type: IPAddress, value: 10.97.0.1}";
    let unusable = "{type: IPAddress, value: 10.1.2.3}";
    assert_eq!(with(good)["Programmed"], (true, "Programmed"));
    assert_eq!(with("{type: IPAddress}")["Programmed"], (true, "Programmed"));
    let told = with(&format!("{good}, {unusable}"));
    assert_eq!(told["Accepted"], (true, "Accepted"));
    assert_eq!(told["Programmed"], (false, "AddressNotUsable"));
    let told = with(&format!("{good}, {{type: example.com/named, value: x}}"));
    assert_eq!(told["Accepted"], (false, "UnsupportedAddress"));

    let parameters = "  infrastructure: {parametersRef: {group: a.b, kind: C, name: d}}\n";
    let (told, _) = gateway(&format!("{HTTP}{parameters}"), &[READY]).gateway();
    assert_eq!(told["Accepted"], (false, "InvalidParameters"));
}

#[test]
fn gateway_frontend_client_certificate_validation() {
    let (pem, key) = certificate("example.org");
    let own = secret("infra", "good", &pem, &key);
    let map = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: ca, namespace: infra}}\ndata:\n  ca.crt: |\n    {}\n",
        pem.trim().replace('\n', "\n    ")
    );
    let spec = "  listeners:
  - {name: default, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: good}]}}
  - {name: broken, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: good}]}}
  - {name: kind, port: 8444, protocol: HTTPS, tls: {certificateRefs: [{name: good}]}}
  - {name: http, port: 80, protocol: HTTP}
  tls:
    frontend:
      default: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: ca}], mode: AllowInsecureFallback}}
      perPort:
      - {port: 8443, tls: {validation: {caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}]}}}
      - {port: 8444, tls: {validation: {caCertificateRefs: [{group: '', kind: Secret, name: ca}]}}}
";
    let made = gateway(spec, &[READY, &own, &map]);
    let (conditions, listeners) = made.gateway();
    assert_eq!(conditions["InsecureFrontendValidationMode"], (true, "ConfigurationChanged"));
    let bad = [("broken", "InvalidCACertificateRef"), ("kind", "InvalidCACertificateKind")];
    for (name, reason) in bad {
        let told = &listeners[name].1;
        assert_eq!(told["ResolvedRefs"], (false, reason), "{name}");
        assert_eq!(told["Accepted"], (false, "NoValidCACertificate"), "{name}");
        assert!(!told["Programmed"].0, "{name}");
    }
    for name in ["default", "http"] {
        assert_eq!(listeners[name].1["Programmed"], (true, "Programmed"), "{name}");
    }
    let served = made.listeners();
    let default = served.iter().find(|one| one.name.section() == "default").unwrap();
    let validation = default.tls.as_ref().unwrap().client_validation.as_ref().unwrap();
    assert_eq!(validation.mode, ClientValidationMode::AllowInsecureFallback);
}

#[test]
fn tls_listeners_pass_through_or_end_here() {
    let spec = "  listeners:
  - {name: pass, port: 443, protocol: TLS, hostname: a.com, tls: {mode: Passthrough}}
  - {name: bad, port: 444, protocol: HTTPS, tls: {mode: Passthrough}}
";
    let made = gateway(spec, &[READY]);
    let served = made.listeners();
    assert_eq!(served.len(), 1);
    assert_eq!(served[0].protocol, Protocol::Tls);
    assert_eq!(served[0].tls.as_ref().unwrap().mode, TlsMode::Passthrough);
    let (_, listeners) = made.gateway();
    assert_eq!(listeners["pass"].0, ["TLSRoute"]);
    assert_eq!(listeners["bad"].1["Accepted"], (false, "UnsupportedValue"));
}

#[test]
fn gateway_client_certificate_for_backends() {
    let (pem, key) = certificate("client");
    let own = secret("infra", "client", &pem, &key);
    let with = |reference: &str| {
        let spec = format!("{HTTP}  tls: {{backend: {{clientCertificateRef: {reference}}}}}\n");
        gateway(&spec, &[READY, &own]).gateway().0
    };
    assert_eq!(with("{name: client}")["ResolvedRefs"], (true, "ResolvedRefs"));
    for (reference, reason) in [
        ("{name: gone}", "InvalidClientCertificateRef"),
        ("{name: client, kind: Nope}", "InvalidClientCertificateRef"),
        ("{name: client, namespace: other}", "RefNotPermitted"),
    ] {
        let told = with(reference);
        assert_eq!(told["ResolvedRefs"], (false, reason), "{reference}");
        assert_eq!(told["Accepted"], (true, "Accepted"), "{reference}");
    }
    assert!(!gateway(HTTP, &[READY]).gateway().0.contains_key("ResolvedRefs"));
}

#[test]
fn a_waypoint_has_one_listener() {
    let with = |listener: &str| {
        let text = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: infra}}\n\
             spec: {{gatewayClassName: waymark-waypoint, listeners: [{listener}]}}\n"
        );
        run(&stores(&[&text]), Translator::Gateway, "infra/wp")
    };
    let good = with("{name: mesh, port: 15008, protocol: HBONE}");
    assert_eq!(good.listeners()[0].protocol, Protocol::Hbone);
    let (_, listeners) = with("{name: http, port: 80, protocol: HTTP}").gateway();
    assert_eq!(listeners["http"].1["Accepted"], (false, "UnsupportedProtocol"));
}
