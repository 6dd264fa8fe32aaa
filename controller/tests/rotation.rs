// SPDX-License-Identifier: Apache-2.0

//! The root of the mesh is replaced while a controller serves: by the edits that README tells,
//! over real TLS and gRPC to a client that speaks as a tunnel does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    unreachable_pub,
    reason = "a test fails by panicking"
)]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use controller::ca::root;
use routing::stream::DeltaDiscoveryResponse;
use routing::wire::roots::{ROOTS_URL, read_roots};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::ParsedCertificate;
use support::{World, admin, eventually, pod, pod_yaml};

fn tunnel() -> controller::ca::token::Bound {
    pod("istio-system", "ztunnel-1", "ztunnel", "n1")
}

async fn world() -> World {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: app, labels: {istio.io/dataplane-mode: ambient}}\n";
    let pods = pod_yaml(&tunnel(), "10.0.0.1", &[])
        + &pod_yaml(&pod("app", "web-1", "web", "n1"), "10.244.1.2", &[("app", "web")]);
    World::start(&[("folder/base.yaml", namespace), ("objects/pods.yaml", &pods)]).await
}

/// A certificate for the pod of the node: what the authority answers.
async fn certificate(world: &World) -> Vec<String> {
    support::certificate(world, &tunnel()).await
}

/// Whether who trusts `root` alone takes the leaf of an answer.
fn is_of(answer: &[String], root: &str) -> bool {
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let mut store = rustls::RootCertStore::empty();
    store.add(der(root)).unwrap();
    let leaf = der(&answer[0]);
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(&leaf).unwrap();
    let above: Vec<_> = answer[1..answer.len() - 1].iter().map(|pem| der(pem)).collect();
    let now = UnixTime::now();
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed, &store, &above, now, algorithms,
    )
    .is_ok()
}

fn told(response: &DeltaDiscoveryResponse) -> Vec<String> {
    assert_eq!(response.type_url, ROOTS_URL);
    read_roots(response).unwrap().unwrap()
}

#[tokio::test]
async fn a_root_is_replaced_in_three_edits_and_each_acts_at_once() {
    let world = world().await;
    let old = std::fs::read_to_string(world.path("ca/root-cert.pem")).unwrap();
    let (new, new_key) = root::make("cluster.local").unwrap();
    let both = format!("{old}{new}");
    let mut stream = world.stream(&tunnel()).await.unwrap();
    stream.subscribe(ROOTS_URL).await;
    assert_eq!(told(&stream.take().await), std::slice::from_ref(&old));
    let first = certificate(&world).await;
    assert!(is_of(&first, &old) && first.last() == Some(&old));

    // 1. Both are trusted, the old one signs. Who has not acknowledged it is known.
    world.put("ca/root-cert.pem", &both);
    let response = stream.next().await;
    assert_eq!(told(&response), [old.clone(), new.clone()]);
    assert_eq!(admin(&world, "/ca").await["clients"][0]["trusts"], false);
    stream.ack(&response).await;
    let trusts = async {
        while admin(&world, "/ca").await["clients"][0]["trusts"] != true {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, trusts).await.unwrap();
    let second = certificate(&world).await;
    assert!(is_of(&second, &old) && second.last() == Some(&both));

    // 2. The new one signs, and is told first.
    world.put("ca/root-key.pem", &new_key);
    assert_eq!(told(&stream.take().await), [new.clone(), old.clone()]);
    let third = certificate(&world).await;
    assert!(is_of(&third, &new) && third.last() == Some(&format!("{new}{old}")));
    world.channel(&old).await.expect("who knows the old root alone reaches the controller");
    let authority = &admin(&world, "/ca").await;
    assert_eq!(authority["leaves"][0]["root"], authority["roots"][0]["fingerprint"]);

    // 3. The old one goes, from the certificate of the server too.
    world.put("ca/root-cert.pem", &new);
    assert_eq!(told(&stream.take().await), std::slice::from_ref(&new));
    let reached = async {
        while world.channel(&new).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, reached).await.unwrap();
    world.channel(&old).await.expect_err("the old root is gone");
    let fourth = certificate(&world).await;
    assert!(is_of(&fourth, &new) && fourth.last() == Some(&new));
    assert_eq!(admin(&world, "/status").await["ca"]["refused"], serde_json::Value::Null);
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_used_or_comes_too_early_is_refused_and_said() {
    let world = world().await;
    let old = std::fs::read_to_string(world.path("ca/root-cert.pem")).unwrap();
    let (new, new_key) = root::make("cluster.local").unwrap();
    let refused = |text: &'static str| {
        let hub = world.hub.clone();
        async move { eventually(&hub, text, || hub.ca.refused().filter(|why| why.contains(text))).await }
    };
    world.put("ca/root-cert.pem", "no certificate");
    refused("root-cert.pem").await;
    world.put("ca/root-cert.pem", &format!("{old}{new}"));
    eventually(&world.hub, "two roots", || (world.hub.ca.now().roots.len() == 2).then_some(()))
        .await;
    assert_eq!(world.hub.ca.refused(), None);
    world.put("ca/root-cert.pem", &format!("{new}{new}"));
    refused("another certificate").await;
    let status = admin(&world, "/status").await;
    assert!(status["ca"]["refused"].as_str().unwrap().contains("another certificate"));
    world.put("ca/root-cert.pem", &format!("{old}{new}\n"));
    eventually(&world.hub, "well again", || world.hub.ca.refused().is_none().then_some(())).await;
    assert!(is_of(&certificate(&world).await, &old));

    // Without the old root, whose leaves are in use.
    std::fs::write(world.path("ca/next"), &new_key).unwrap();
    let both = world.path("ca/root-cert.pem");
    std::fs::write(&both, &new).unwrap();
    std::fs::rename(world.path("ca/next"), world.path("ca/root-key.pem")).unwrap();
    refused("which signed until now").await;
    std::fs::write(&both, format!("{old}{new}")).unwrap();
    eventually(&world.hub, "the new root signs", || world.hub.ca.refused().is_none().then_some(()))
        .await;
    assert!(is_of(&certificate(&world).await, &new));
    world.end().await;
}
