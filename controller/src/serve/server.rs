// SPDX-License-Identifier: Apache-2.0

//! The listener: TLS under our own root, HTTP/2, and the way from a path to its handler.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use routing::stream::{DELTA_AGGREGATED_RESOURCES, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use routing::wire::chain;
use routing::wire::messages::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use routing::wire::messages::waymark::v1::{Followed, Leading, NodeReport, NodeReportAck};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::certificates::{self, CREATE_CERTIFICATE};
use super::clients::Client;
use super::followers::{self, FOLLOW, RELAY, Words};
use super::interest::Role;
use super::session::{QUEUE, Stream};
use crate::app::Hub;
use crate::ca::authority::Authority;
use crate::ca::sign::{self, SignError};

/// Path of the agents' method.
pub const REPORT: &str = "/waymark.v1.Node/Report";
/// Names that the server proves, besides those of the settings.
const NAMES: [&str; 6] = [
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "waymark-controller.istio-system.svc",
    "localhost",
    "127.0.0.1",
    "::1",
];
/// Longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How often a quiet connection is asked whether it is there, and how long it may take.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How often the own certificate is renewed; it lives for ninety days.
const RENEWAL: Duration = Duration::from_secs(3600 * 24 * 30);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Largest request, in bytes: the versions of everything that a client holds.
const MAX_REQUEST: usize = 64 << 20;

/// Why clients cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be bound.
    #[error("cannot listen on {0}")]
    Bind(SocketAddr, #[source] std::io::Error),
    /// There is no certificate for the server.
    #[error("no certificate for the server")]
    Certificate(#[source] SignError),
    /// The certificate cannot be used.
    #[error("certificate of the server cannot be used")]
    Tls(#[source] rustls::Error),
}

/// A bound listener.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    own: Arc<OwnCertificate>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

/// Binds the address of the settings.
///
/// # Errors
///
/// See [`ServeError`].
pub async fn bind(hub: &Hub) -> Result<Server, ServeError> {
    let address = hub.settings.listen;
    let mut names: Vec<String> = NAMES.map(str::to_owned).into();
    names.extend(hub.settings.server_names.iter().cloned());
    if !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    let own = Arc::new(OwnCertificate { names, current: ArcSwapOption::empty() });
    own.renew(hub)?;
    let resolver = Arc::clone(&own) as Arc<dyn ResolvesServerCert>;
    let mut config =
        rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener =
        TcpListener::bind(address).await.map_err(|error| ServeError::Bind(address, error))?;
    Ok(Server { listener, tls: TlsAcceptor::from(Arc::new(config)), own })
}

/// The server's own certificate, renewed long before its end.
struct OwnCertificate {
    names: Vec<String>,
    current: ArcSwapOption<(String, Arc<CertifiedKey>)>,
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

impl OwnCertificate {
    fn renew(&self, hub: &Hub) -> Result<(), ServeError> {
        let authority = hub.ca.now();
        let signed = sign::server(&authority, &self.names);
        let (chain, key) = signed.map_err(ServeError::Certificate)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let fresh = CertifiedKey::from_der(chain, key, &provider).map_err(ServeError::Tls)?;
        let root = authority.signs().to_owned();
        self.current.store(Some(Arc::new((root, Arc::new(fresh)))));
        Ok(())
    }

    /// Whether the root of the certificate is among those in force. While it is, clients whose
    /// file of roots is a little older than `authority` can still connect.
    fn is_trusted(&self, authority: &Authority) -> bool {
        let current = self.current.load();
        let root = current.as_ref().map(|current| current.0.as_str());
        authority.roots.iter().any(|one| Some(one.fingerprint.as_str()) == root)
    }

    async fn keep_fresh(&self, hub: &Hub) {
        let mut authorities = hub.ca.changes();
        let mut tick = tokio::time::interval_at(Instant::now() + RENEWAL, RENEWAL);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                Ok(()) = authorities.changed() => {
                    if self.is_trusted(&authorities.borrow_and_update()) {
                        continue;
                    }
                }
            }
            if let Err(error) = self.renew(hub) {
                tracing::error!(error = chain(&error), "own certificate not renewed");
            }
        }
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().map(|current| Arc::clone(&current.1))
    }
}

impl Server {
    /// Where it listens.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The same, on the threads of `runtime`: it is to [`run`](Self::run) there.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn moved_to(self, runtime: &Handle) -> std::io::Result<Self> {
        let listener = self.listener.into_std()?;
        let _inside = runtime.enter();
        Ok(Self { listener: TcpListener::from_std(listener)?, ..self })
    }

    /// Serves until the task is aborted.
    pub async fn run(self, hub: Arc<Hub>) {
        tokio::join!(self.own.keep_fresh(&hub), self.accept(&hub));
    }

    async fn accept(&self, hub: &Arc<Hub>) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // A change is one small message: it must not wait for the answer to the one before.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%peer, %error, "connection ended at once");
                continue;
            }
            let (tls, hub) = (self.tls.clone(), Arc::clone(hub));
            tokio::spawn(async move {
                let accepted = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await;
                drop(permit);
                match accepted {
                    Ok(Ok(stream)) => Box::pin(connection(hub, stream, peer)).await,
                    Ok(Err(error)) => tracing::debug!(%peer, %error, "handshake failed"),
                    Err(_) => tracing::debug!(%peer, "handshake took too long"),
                }
            });
        }
    }
}

async fn connection(
    hub: Arc<Hub>,
    stream: tokio_rustls::server::TlsStream<TcpStream>,
    peer: SocketAddr,
) {
    let service = service_fn(move |request| {
        let hub = Arc::clone(&hub);
        async move { Ok::<_, Infallible>(route(hub, peer, request).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

/// From a path to its handler.
async fn route(
    hub: Arc<Hub>,
    peer: SocketAddr,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    match request.uri().path() {
        DELTA_AGGREGATED_RESOURCES => {
            let codec = ProstCodec::<DeltaDiscoveryResponse, DeltaDiscoveryRequest>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST), None);
            grpc.streaming(Delta { hub, peer }, request).await
        }
        CREATE_CERTIFICATE => {
            let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
            Grpc::new(codec).unary(Create { hub }, request).await
        }
        REPORT => {
            let codec = ProstCodec::<NodeReportAck, NodeReport>::default();
            Grpc::new(codec).unary(ReportPods { hub }, request).await
        }
        FOLLOW => {
            let codec = ProstCodec::<Leading, Followed>::default();
            let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(MAX_REQUEST), None);
            grpc.streaming(Follow { hub }, request).await
        }
        RELAY => {
            let codec = ProstCodec::<NodeReportAck, NodeReport>::default();
            Grpc::new(codec).unary(Relay { hub }, request).await
        }
        _ => Status::unimplemented("no such method").into_http(),
    }
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

struct Create {
    hub: Arc<Hub>,
}

impl UnaryService<IstioCertificateRequest> for Create {
    type Response = IstioCertificateResponse;
    type Future = Answer<IstioCertificateResponse>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let hub = Arc::clone(&self.hub);
        Box::pin(async move { certificates::create(&hub, &request).await })
    }
}

struct ReportPods {
    hub: Arc<Hub>,
}

impl UnaryService<NodeReport> for ReportPods {
    type Response = NodeReportAck;
    type Future = Answer<NodeReportAck>;

    fn call(&mut self, request: Request<NodeReport>) -> Self::Future {
        let hub = Arc::clone(&self.hub);
        Box::pin(report(hub, request))
    }
}

struct Relay {
    hub: Arc<Hub>,
}

impl UnaryService<NodeReport> for Relay {
    type Response = NodeReportAck;
    type Future = Answer<NodeReportAck>;

    fn call(&mut self, request: Request<NodeReport>) -> Self::Future {
        let hub = Arc::clone(&self.hub);
        Box::pin(followers::relay(hub, request))
    }
}

struct Follow {
    hub: Arc<Hub>,
}

impl StreamingService<Followed> for Follow {
    type Response = Leading;
    type ResponseStream = Words;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<Streaming<Followed>>) -> Self::Future {
        let hub = Arc::clone(&self.hub);
        Box::pin(async move { followers::follow(&hub, request).await })
    }
}

async fn report(
    hub: Arc<Hub>,
    request: Request<NodeReport>,
) -> Result<Response<NodeReportAck>, Status> {
    let caller = super::authenticate(&hub, request.metadata()).await?;
    if !hub.accounts.agents.contains(&caller.account()) {
        tracing::warn!(pod = caller.pod_name(), "report of a pod that is no agent refused");
        return Err(Status::permission_denied("only agents report"));
    }
    let said = request.into_inner();
    if said.node != caller.node.name {
        tracing::warn!(
            pod = caller.pod_name(),
            node = said.node,
            "report about another node refused"
        );
        return Err(Status::permission_denied("an agent reports its own node"));
    }
    if hub.read().part.leads() {
        followers::take_report(&hub, said).await
    } else {
        hub.link.relay(&hub, said).await.map(Response::new)
    }
}

struct Delta {
    hub: Arc<Hub>,
    peer: SocketAddr,
}

impl StreamingService<DeltaDiscoveryRequest> for Delta {
    type Response = DeltaDiscoveryResponse;
    type ResponseStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let (hub, peer) = (Arc::clone(&self.hub), self.peer);
        Box::pin(async move { delta(&hub, peer, request).await })
    }
}

/// Starts the stream of a client whose token gives it a role.
async fn delta(
    hub: &Arc<Hub>,
    peer: SocketAddr,
    request: Request<Streaming<DeltaDiscoveryRequest>>,
) -> Result<Response<ReceiverStream<Result<DeltaDiscoveryResponse, Status>>>, Status> {
    let caller = super::authenticate(hub, request.metadata()).await?;
    let role = Role::of(&caller, &hub.read(), &hub.accounts);
    let Some(role) = role else {
        tracing::warn!(pod = caller.pod_name(), "config asked for by a pod that is no proxy");
        return Err(Status::permission_denied("the caller is no proxy of this mesh"));
    };
    let ready = crate::ca::own_pod(&caller, &hub.read().stores)
        .is_some_and(crate::translate::pod::is_ready);
    let client = Client {
        role: role.as_str(),
        pod: caller.pod_name(),
        node: caller.node.name.clone(),
        address: Some(peer),
        acked: 0,
        owes_since: Some(std::time::Instant::now()),
        gone: false,
        fresh: !ready,
        follows_roots: false,
        refused: Vec::new(),
        via: None,
    };
    let id = hub.clients.connect(client).ok_or_else(|| {
        tracing::warn!(%peer, "too many clients: one refused");
        Status::resource_exhausted("too many clients")
    })?;
    tracing::info!(pod = caller.pod_name(), role = role.as_str(), %peer, "client connected");
    let (sender, responses) = mpsc::channel(QUEUE);
    let stream = Stream::new(Arc::clone(hub), caller, role, id, sender);
    tokio::spawn(stream.run(request.into_inner()));
    Ok(Response::new(ReceiverStream::new(responses)))
}
