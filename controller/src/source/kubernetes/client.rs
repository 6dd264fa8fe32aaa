// SPDX-License-Identifier: Apache-2.0

//! The ways to the apiserver.
//!
//! Owns: HTTP/2, as Kubernetes' own clients speak it. All watches of kinds and all writes share one
//! connection, so that what comes at the same time is read and written at once. An apiserver
//! takes 100 streams on one: watches of single objects, of which there may be any number,
//! have connections of their own. Pings, or the kernel's probes, find out when nobody is at the
//! other end any more: a watch would wait there for ever, since only the apiserver ends one.

use std::time::Duration;

use hyper_rustls::HttpsConnectorBuilder;
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::retry::RetryPolicy;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use kube::{Client, Config};
use tower::retry::RetryLayer;
use tower::{BoxError, ServiceBuilder};

/// How the other end is asked whether it is there.
#[derive(Clone, Copy)]
struct Pings {
    every: Duration,
    /// How long it may take to answer.
    within: Duration,
}

/// It may take longer than a busy apiserver does.
const PINGS: Pings = Pings { every: Duration::from_secs(10), within: Duration::from_secs(15) };

/// An apiserver, by the ways to it.
#[derive(Clone)]
pub struct Apiserver {
    /// For everything of which there is a limited number.
    pub shared: Client,
    /// For watches of single objects: each has a connection.
    pub apart: Client,
}

impl std::fmt::Debug for Apiserver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Apiserver").finish_non_exhaustive()
    }
}

impl Apiserver {
    /// The apiserver that `config` names.
    ///
    /// # Errors
    ///
    /// When a certificate, a key or a token of it cannot be used.
    pub fn new(config: Config) -> kube::Result<Self> {
        let plain = config.cluster_url.scheme_str() != Some("https");
        // Of these kube alone knows what to do. A pod needs none of them.
        let other = config.proxy_url.is_some()
            || config.tls_server_name.is_some()
            || config.auth_info.exec.is_some();
        if plain || other {
            let client = Client::try_from(config)?;
            return Ok(Self { shared: client.clone(), apart: client });
        }
        Ok(Self { shared: client(&config, true, PINGS)?, apart: client(&config, false, PINGS)? })
    }
}

fn client(config: &Config, shared: bool, pings: Pings) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // The end of a longer request would wait until its beginning is acknowledged.
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(pings.every));
    tcp.set_keepalive_interval(Some(pings.every));
    let tls = config.rustls_client_config()?;
    let tls = HttpsConnectorBuilder::new().with_tls_config(tls).https_only();
    let tls = match shared {
        true => tls.enable_all_versions().wrap_connector(tcp),
        false => tls.enable_http1().wrap_connector(tcp),
    };
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let connections = legacy::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(pings.every)
        .http2_keep_alive_timeout(pings.within)
        .http2_keep_alive_while_idle(true)
        .build::<_, Body>(connector);
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(connections);
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Request, Response, Version};
    use http_body_util::Full;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    use hyper_util::server::conn::auto;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use rustls::ServerConfig;
    use tokio::net::TcpListener;
    use tokio::sync::Barrier;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    /// A listener on loopback, what speaks TLS on it, and how it is reached.
    async fn apiserver() -> (TcpListener, TlsAcceptor, Config) {
        let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = own.signing_key.serialize_der().try_into().unwrap();
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut config = Config::new(format!("https://{address}").parse().unwrap());
        config.root_cert = Some(vec![own.cert.der().to_vec()]);
        (listener, TlsAcceptor::from(Arc::new(tls)), config)
    }

    #[tokio::test]
    async fn a_connection_on_which_nobody_answers_any_more_is_given_up() {
        let (listener, tls, config) = apiserver().await;
        let silent = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            // Nobody reads from it, and it stays open.
            let _open = tls.accept(stream).await.unwrap();
            std::future::pending::<()>().await;
        });
        let soon = Duration::from_millis(20);
        let client = client(&config, true, Pings { every: soon, within: soon }).unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client, "n");
        let error = maps.get("m").await.unwrap_err();
        assert!(matches!(error, kube::Error::Service(_) | kube::Error::HyperError(_)), "{error:?}");
        assert!(!silent.is_finished());
    }

    #[tokio::test]
    async fn what_is_limited_in_number_shares_one_connection() {
        let (listener, tls, config) = apiserver().await;
        // Connections that were used: apart, shared.
        let used = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let seen = Arc::clone(&used);
        // None is answered before all are asked.
        let all = Arc::new(Barrier::new(20));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = tls.accept(stream).await else { continue };
                let (seen, all, first) = (Arc::clone(&seen), Arc::clone(&all), AtomicUsize::new(0));
                let answer = service_fn(move |request: Request<Incoming>| {
                    let shared = request.version() == Version::HTTP_2;
                    if first.fetch_add(1, Ordering::Relaxed) == 0 {
                        seen[usize::from(shared)].fetch_add(1, Ordering::Relaxed);
                    }
                    let name = request.uri().path().rsplit('/').next().unwrap_or_default();
                    let body = format!(r#"{{"metadata": {{"name": "{name}"}}}}"#);
                    let all = (name != "first").then(|| Arc::clone(&all));
                    async move {
                        if let Some(all) = all {
                            all.wait().await;
                        }
                        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(body))))
                    }
                });
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    server.serve_connection(TokioIo::new(stream), answer).await
                });
            }
        });
        let reached = Apiserver::new(config).unwrap();
        let used = || used.each_ref().map(|count| count.load(Ordering::Relaxed));
        for (client, connections) in [(reached.shared, [0, 1]), (reached.apart, [20, 1])] {
            let maps: Api<ConfigMap> = Api::namespaced(client, "n");
            maps.get("first").await.unwrap();
            let all = (0..20).map(|at| {
                let maps = maps.clone();
                async move { maps.get(&format!("m-{at}")).await.unwrap().metadata.name }
            });
            let names = futures_util::future::join_all(all).await;
            let wanted = (0..20).map(|at| Some(format!("m-{at}")));
            assert_eq!(names, wanted.collect::<Vec<_>>());
            assert_eq!(used(), connections);
        }
    }
}
