// SPDX-License-Identifier: Apache-2.0

//! Keys over loopback, from a server whose answers the test chooses.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const SET: &str = r#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;
const TIME: Duration = Duration::from_secs(5);

/// A server of answers by path, `to URL` is one that sends there; others are 404.
#[derive(Clone, Default)]
struct Issuer(Arc<Mutex<Vec<(String, String)>>>);

impl Issuer {
    fn answer(&self, path: &str, body: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(known, _)| known != path);
        if !body.is_empty() {
            all.push((path.to_owned(), body.to_owned()));
        }
    }

    fn response(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().find(|(path, _)| path == request.uri().path());
        let (status, body) = match found {
            Some((_, body)) if body.starts_with("to ") => (StatusCode::FOUND, body.clone()),
            Some((_, body)) => (StatusCode::OK, body.clone()),
            None => (StatusCode::NOT_FOUND, String::new()),
        };
        let to = body.strip_prefix("to ").map(|to| to.parse().unwrap());
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        if let Some(to) = to {
            response.headers_mut().insert(http::header::LOCATION, to);
        }
        response
    }

    async fn start(&self, tls: Option<Arc<ServerConfig>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, issuer) = (listener.local_addr().unwrap(), self.clone());
        let acceptor = tls.map(TlsAcceptor::from);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (issuer, acceptor) = (issuer.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request| {
                        let response = issuer.response(&request);
                        async move { Ok::<_, std::convert::Infallible>(response) }
                    });
                    let server = hyper::server::conn::http1::Builder::new();
                    match acceptor {
                        None => drop(server.serve_connection(TokioIo::new(stream), answer).await),
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                drop(server.serve_connection(TokioIo::new(stream), answer).await);
                            }
                        }
                    }
                });
            }
        });
        address
    }
}

fn uri(address: SocketAddr, path: &str) -> KeySource {
    KeySource::Uri(format!("http://{address}{path}").into())
}

fn client() -> Client {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    Client::new().unwrap()
}

#[tokio::test]
async fn a_try_gives_the_keys_or_says_what_was_wrong() {
    let issuer = Issuer::default();
    let address = issuer.start(None).await;
    issuer.answer("/good", SET);
    issuer.answer("/text", "no keys here");
    issuer.answer("/empty", r#"{"keys": []}"#);
    issuer.answer("/long", &" ".repeat((1 << 20) + 1));
    let of = |path: &str| format!("http://{address}{path}");
    let told = |issuer: &str| format!(r#"{{"issuer": "{issuer}", "jwks_uri": "{}"}}"#, of("/good"));
    issuer.answer("/one/.well-known/openid-configuration", &told(&of("/one")));
    issuer.answer("/two/.well-known/openid-configuration", &told(&of("/one")));
    issuer.answer("/moved", "to /good?again=1");
    issuer.answer("/whole", &format!("to {}", of("/moved")));
    issuer.answer("/round", "to /round");
    issuer.answer("/away", "to http://elsewhere.example/good");
    issuer.answer("/port", "to http://127.0.0.1:1/good");
    issuer.answer("/beside", "to good");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let cases = [
        (uri(address, "/good"), ""),
        (KeySource::Issuer(of("/one").into()), ""),
        (KeySource::Issuer(of("/two").into()), "answer is about issuer"),
        (KeySource::Issuer(of("/three").into()), "answered with 404"),
        (uri(address, "/none"), "answered with 404"),
        (uri(address, "/moved"), ""),
        (uri(address, "/whole"), ""),
        (uri(address, "/round"), "/round\", which is not followed"),
        (uri(address, "/away"), "answered with 302 Found to \"http://elsewhere.example/good\""),
        (uri(address, "/port"), "which is not followed"),
        (uri(address, "/beside"), "\"good\", which is not followed"),
        (uri(address, "/text"), "answer holds no keys"),
        (uri(address, "/empty"), "answer holds no keys"),
        (uri(address, "/long"), "longer than a megabyte"),
        (uri(closed, "/"), "cannot be reached"),
        (KeySource::Uri("http://a b".into()), "is no URL"),
    ];
    let client = client();
    for (source, want) in cases {
        let got = fetch::keys(&client, &source, TIME).await;
        let text = got.as_ref().err().map(ToString::to_string).unwrap_or_default();
        assert!(text.contains(want) && got.is_ok() == want.is_empty(), "{source:?}: {got:?}");
    }
}

#[tokio::test]
async fn a_server_that_does_not_answer_ends_the_try_in_time() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = uri(silent.local_addr().unwrap(), "/");
    let time = Duration::from_millis(50);
    let got = fetch::keys(&client(), &source, time).await;
    assert!(matches!(got, Err(fetch::FetchError::Timeout(limit)) if limit == time), "{got:?}");
}

#[tokio::test]
async fn https_is_believed_only_with_a_known_root() {
    let unknown = client();
    let pair = KeyPair::generate().unwrap();
    let made = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let made = made.self_signed(&pair).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    let server = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.der().clone()], key)
        .unwrap();
    let issuer = Issuer::default();
    let address = issuer.start(Some(Arc::new(server))).await;
    issuer.answer("/keys", SET);
    let mut roots = RootCertStore::empty();
    roots.add(made.der().clone()).unwrap();
    let source = KeySource::Uri(format!("https://{address}/keys").into());
    let got = fetch::keys(&Client::trusting(roots).unwrap(), &source, TIME).await;
    assert_eq!(got.unwrap().len(), 1);
    let got = fetch::keys(&unknown, &source, TIME).await;
    assert!(matches!(got, Err(fetch::FetchError::Reach(_))), "{got:?}");
}

#[tokio::test]
async fn keys_are_fetched_again_and_failures_are_told() {
    let issuer = Issuer::default();
    let address = issuer.start(None).await;
    issuer.answer("/keys", SET);
    let millis = Duration::from_millis;
    let pace = Pace { refresh: millis(20), retry: millis(10), retry_max: millis(20) };
    let mut keeper = Keeper::new(client(), pace);
    let source = uri(address, "/keys");
    keeper.want(&Wanted::from([(source.clone(), TIME)]));
    let first = keeper.first(TIME).await;
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].result.as_ref().map(Vec::len), Ok(1));
    issuer.answer("/keys", "");
    while keeper.next().await.unwrap().result.is_ok() {}
    issuer.answer("/keys", SET);
    while keeper.next().await.unwrap().result.is_err() {}
    keeper.want(&Wanted::new());
    // What was under way may still come; then it is quiet.
    while tokio::time::timeout(millis(100), keeper.next()).await.is_ok() {}
    assert!(keeper.first(TIME).await.is_empty());
}

#[test]
fn failures_wait_ever_longer_up_to_a_limit() {
    let pace = Pace::default();
    let near = |time: Duration, want: u64| {
        let want = Duration::from_secs(want);
        time >= want.mul_f64(0.9) && time <= want.mul_f64(1.1)
    };
    for (failures, want) in [(0, 1200), (1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (40, 300)] {
        let time = pace.after(failures);
        assert!(near(time, want), "{failures}: {time:?}");
    }
}
