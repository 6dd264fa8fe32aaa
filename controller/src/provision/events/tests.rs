// SPDX-License-Identifier: Apache-2.0

//! Events over loopback, to a server that keeps them as an apiserver does: by namespace and name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::store::Name;

/// What is kept by path and name; how many times something was asked for.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<(BTreeMap<String, Value>, usize)>>);

impl Kept {
    /// Rule: 409 for a name that is taken, 403 in a namespace that is going.
    fn answer(&self, method: &Method, path: &str, body: &[u8]) -> (u16, Value) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.1 += 1;
        let status = |code: u16, reason: &str, message: &str| {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "reason": reason, "message": message});
            (code, status)
        };
        if method != Method::POST || !path.starts_with("/apis/events.k8s.io/v1/namespaces/") {
            return status(405, "MethodNotAllowed", "only events are made");
        }
        if path.contains("/going/") {
            let message =
                "unable to create new content in namespace going because it is being terminated";
            return status(403, "Forbidden", message);
        }
        if path.contains("/closed/") {
            return status(403, "Forbidden", "events is forbidden");
        }
        let event: Value = serde_json::from_slice(body).unwrap();
        let at = format!("{path}/{}", event["metadata"]["name"].as_str().unwrap());
        if all.0.contains_key(&at) {
            return status(409, "AlreadyExists", "already exists");
        }
        all.0.insert(at, event.clone());
        (201, event)
    }

    async fn start(&self) -> Client {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = kept.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let kept = kept.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        let (code, value) = kept.answer(&head.method, head.uri.path(), &body);
                        let body = Full::<Bytes>::from(value.to_string());
                        Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
                    }
                });
                let server = hyper::server::conn::http1::Builder::new();
                tokio::spawn(server.serve_connection(TokioIo::new(stream), answer));
            }
        });
        let uri = format!("http://{address}").parse().unwrap();
        Client::try_from(kube::Config::new(uri)).unwrap()
    }

    fn take(&self) -> (Vec<(String, Value)>, usize) {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        (all.0.into_iter().collect(), all.1)
    }
}

fn told(kind: Kind, namespace: &str, uid: &str) -> NotServed {
    NotServed {
        key: Key { kind, name: Name::new(namespace, "x") },
        uid: Some(uid.into()),
        notes: vec!["label a=1 is not served: b".to_owned()],
    }
}

fn event_of(told: &NotServed) -> Event {
    event(told, &told.notes[0], "g/v1", "controller-1")
}

#[tokio::test]
async fn an_event_is_made_once_and_is_that_of_its_object() {
    let kept = Kept::default();
    let client = kept.start().await;
    let first = told(Kind::Gateway, "app", "u1");
    for _ in 0..2 {
        create(&client, &event_of(&first)).await.unwrap();
    }
    let (events, asked) = kept.take();
    assert_eq!(asked, 2, "a name that is taken is no failure");
    let [(at, event)] = events.as_slice() else { panic!("{events:?}") };
    assert!(at.starts_with("/apis/events.k8s.io/v1/namespaces/app/events/waymark-"), "{at}");
    let regarding = json!({"apiVersion": "g/v1", "kind": "Gateway", "name": "x", "namespace": "app", "uid": "u1"});
    assert_eq!(event["regarding"], regarding);
    let fields = ["type", "reason", "note", "reportingController", "reportingInstance", "action"];
    let want = [
        "Warning",
        "NotServed",
        "label a=1 is not served: b",
        "waymark.dev/controller",
        "controller-1",
        "Translate",
    ];
    assert_eq!(fields.map(|field| event[field].as_str().unwrap_or_default()), want);
    // An apiserver takes microseconds and nothing else: 2026-01-01T00:00:00.000000Z.
    let time = event["eventTime"].as_str().unwrap();
    assert_eq!((time.len(), time.as_bytes()[19], time.ends_with('Z')), (27, b'.', true), "{time}");
}

#[tokio::test]
async fn another_object_or_thing_is_another_event() {
    let kept = Kept::default();
    let client = kept.start().await;
    let other = NotServed { notes: vec!["other".to_owned()], ..told(Kind::Pod, "app", "u1") };
    for one in [told(Kind::Pod, "app", "u1"), told(Kind::Pod, "app", "u2"), other] {
        create(&client, &event_of(&one)).await.unwrap();
    }
    assert_eq!(kept.take().0.len(), 3);
}

#[tokio::test]
async fn a_namespace_that_goes_is_left_and_a_refusal_is_told() {
    let kept = Kept::default();
    let client = kept.start().await;
    create(&client, &event_of(&told(Kind::Pod, "going", "u"))).await.unwrap();
    let refused = create(&client, &event_of(&told(Kind::Pod, "closed", "u"))).await;
    assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 403));
    assert!(kept.take().0.is_empty());
}

/// Rule: the apiserver takes an Event in the namespace of its object alone; one of an object
/// without a namespace in `default`.
#[test]
fn events_lie_where_those_look_whom_they_concern() {
    let place = |told: &NotServed| {
        let event = event_of(told);
        (event.metadata.namespace.unwrap(), event.regarding.unwrap().namespace)
    };
    let of = |name: &str| (name.to_owned(), Some(name.to_owned()));
    assert_eq!(place(&told(Kind::Service, "app", "u")), of("app"));
    assert_eq!(place(&told(Kind::Namespace, "", "u")), of("x"), "the namespace itself");
    assert_eq!(place(&told(Kind::GatewayClass, "", "u")), ("default".to_owned(), None));
}
