// SPDX-License-Identifier: Apache-2.0

//! When a Lease is taken, and how it is renewed: over loopback, at a server that keeps one.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use super::*;

/// Keeps one Lease as an apiserver does: a write must name the version that it changes.
#[derive(Clone, Default)]
struct Keeper(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lease: Option<Lease>,
    version: u64,
    asked: Vec<Method>,
}

impl Keeper {
    /// A candidate that asks here.
    async fn candidate(&self, me: &str) -> Candidate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let keeper = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let keeper = keeper.clone();
                let answer = service_fn(move |request| {
                    let keeper = keeper.clone();
                    async move { Ok::<_, Infallible>(keeper.answer(request).await) }
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        Candidate::new(Client::try_from(config).unwrap(), "n", me, None)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let method = request.method().clone();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.asked.push(method.clone());
        let version = |lease: &Lease| lease.metadata.resource_version.clone();
        let status = if method != Method::POST && kept.lease.is_none() {
            StatusCode::NOT_FOUND
        } else if method == Method::GET {
            StatusCode::OK
        } else {
            let mut written: Lease = serde_json::from_slice(&body).unwrap();
            if kept.lease.as_ref().and_then(version) == version(&written) {
                kept.version += 1;
                written.metadata.resource_version = Some(kept.version.to_string());
                kept.lease = Some(written);
                StatusCode::OK
            } else {
                StatusCode::CONFLICT
            }
        };
        let body = match (&kept.lease, status) {
            (Some(lease), StatusCode::OK) => serde_json::to_vec(lease).unwrap(),
            (_, status) => {
                let missing = status == StatusCode::NOT_FOUND;
                let reason = if missing { "NotFound" } else { "Conflict" };
                let code = status.as_u16();
                format!(r#"{{"kind": "Status", "status": "Failure", "message": "", "reason": "{reason}", "code": {code}}}"#)
                    .into_bytes()
            }
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response
    }

    /// What was asked since this was called last.
    fn asked(&self) -> Vec<Method> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).asked)
    }

    fn remove(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).lease = None;
    }
}

#[tokio::test]
async fn a_lease_that_is_held_is_renewed_by_one_request() {
    let keeper = Keeper::default();
    let (mut a, mut b) = (keeper.candidate("a").await, keeper.candidate("b").await);
    assert_eq!(a.attempt().await.unwrap(), Leader::Me);
    assert_eq!(keeper.asked(), [Method::GET, Method::POST]);
    assert_eq!(a.attempt().await.unwrap(), Leader::Me);
    assert_eq!(a.attempt().await.unwrap(), Leader::Me);
    assert_eq!(keeper.asked(), [Method::PUT, Method::PUT]);
    let other = |name: &str| Leader::Other { name: name.into(), address: None };
    assert_eq!(b.attempt().await.unwrap(), other("a"));
    assert_eq!(keeper.asked(), [Method::GET]);

    // Another has it meanwhile: what was written last holds no more.
    a.release().await;
    assert_eq!(b.attempt().await.unwrap(), Leader::Me);
    keeper.asked();
    assert_eq!(a.attempt().await.unwrap(), other("b"));
    assert_eq!(keeper.asked(), [Method::PUT, Method::GET]);

    // Somebody removed it.
    keeper.remove();
    assert_eq!(b.attempt().await.unwrap(), Leader::Me);
    assert_eq!(keeper.asked(), [Method::PUT, Method::GET, Method::POST]);
    assert_eq!(b.attempt().await.unwrap(), Leader::Me);
}

fn held(by: &str, transitions: i32) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(by.into()),
        lease_duration_seconds: Some(15),
        lease_transitions: Some(transitions),
        ..LeaseSpec::default()
    }
}

#[test]
fn a_lease_is_taken_only_when_its_holder_is_silent_for_its_duration() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut observed = Observed::default();
    assert_eq!(observed.next(&held("a", 1), "b", at(0)), Next::Wait);
    assert_eq!(observed.next(&held("a", 1), "b", at(15)), Next::Wait);
    // It was renewed meanwhile: the wait begins anew.
    assert_eq!(observed.next(&held("a", 2), "b", at(16)), Next::Wait);
    assert_eq!(observed.next(&held("a", 2), "b", at(31)), Next::Wait);
    assert_eq!(observed.next(&held("a", 2), "b", at(32)), Next::Take);
    assert_eq!(observed.next(&held("b", 3), "b", at(33)), Next::Renew);
    assert_eq!(observed.next(&held("", 3), "b", at(34)), Next::Take, "it was let go");
    assert_eq!(observed.next(&held("a", 4), "b", at(90)), Next::Wait, "first seen now");
}

#[test]
fn a_lease_says_where_its_holder_serves() {
    let meta = |address: &str| ObjectMeta {
        annotations: Some([(ADDRESS.to_owned(), address.to_owned())].into()),
        ..ObjectMeta::default()
    };
    let at = |meta: &ObjectMeta| match holder(meta, &held("a", 1)) {
        Leader::Other { name, address } => (name, address),
        other @ (Leader::Me | Leader::Nobody) => panic!("{other:?}"),
    };
    let known = at(&meta("[fd00::7]:15012"));
    assert_eq!(known, ("a".to_owned(), Some("[fd00::7]:15012".parse().unwrap())));
    assert_eq!(at(&meta("somewhere")).1, None);
    assert_eq!(at(&ObjectMeta::default()).1, None, "an older controller");
}

#[test]
fn who_leads_and_cannot_renew_stops_and_who_follows_goes_on() {
    let other = || Leader::Other { name: "a".into(), address: None };
    assert_eq!(without_answer(Leader::Me, DEADLINE / 2), Leader::Me);
    assert_eq!(without_answer(Leader::Me, DEADLINE), Leader::Nobody);
    assert_eq!(without_answer(other(), DEADLINE), other());
}
