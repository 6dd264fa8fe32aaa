// SPDX-License-Identifier: Apache-2.0

//! A controller over a folder of the test's own, and clients that speak to it as proxies do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser as _;
use controller::app::{self, Hub, cluster};
use controller::ca::token::{Bound, Named, TokenKey};
use controller::lead::Leader;
use controller::serve::certificates::CREATE_CERTIFICATE;
use controller::settings::Settings;
use http::uri::PathAndQuery;
use prost_types::value::Kind::StringValue;
use prost_types::{Struct, Value};
use routing::stream::{DELTA_AGGREGATED_RESOURCES, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use routing::wire::messages::google::rpc::Status as RpcStatus;
use routing::wire::messages::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use routing::wire::messages::waymark::v1::Rejected;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A controller that ends with the value.
pub struct World {
    pub directory: Arc<tempfile::TempDir>,
    pub hub: Arc<Hub>,
    pub address: std::net::SocketAddr,
    /// Name among others over the same directory; empty: it is alone.
    name: String,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl World {
    /// Starts over `files`, name and text each.
    pub async fn start(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["folder", "objects", "provisioned", "ca"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        Self::resume(Arc::new(directory)).await
    }

    /// Starts over a directory of an earlier controller.
    pub async fn resume(directory: Arc<tempfile::TempDir>) -> Self {
        let settings = settings(directory.path(), "");
        Self::run(directory, "", app::start(settings).await.unwrap())
    }

    /// Starts beside others over the same directory, as the controller in the pod `name`; what
    /// is found out about leadership elsewhere is in `leader`.
    pub async fn beside(
        directory: Arc<tempfile::TempDir>,
        name: &str,
        leader: &watch::Sender<Leader>,
    ) -> Self {
        let who = pod("istio-system", name, "waymark-controller", "n1");
        let path = directory.path().join(format!("{name}-token"));
        std::fs::write(&path, token(directory.path(), &who)).unwrap();
        let settings = settings(directory.path(), name);
        let mut surroundings = cluster::surroundings(&settings).await.unwrap();
        surroundings.leader = leader.clone();
        Self::run(directory, name, app::start_in(settings, surroundings).await.unwrap())
    }

    fn run(directory: Arc<tempfile::TempDir>, name: &str, app: app::App) -> Self {
        let (hub, address) = (Arc::clone(&app.hub), app.address().unwrap());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            app.run(async { stopped.await.unwrap_or(()) }).await.unwrap();
        });
        let name = name.to_owned();
        Self { directory, hub, address, name, stop: Some(stop), task }
    }

    /// Ends the controller; its directory stays.
    pub async fn end(mut self) -> Arc<tempfile::TempDir> {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap();
        self.directory
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Puts a file in place as an editor does: whole, by rename.
    pub fn put(&self, name: &str, text: &str) {
        let next = self.path("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(&next, self.path(name)).unwrap();
    }

    async fn grpc(&self) -> Grpc<Channel> {
        let root = std::fs::read_to_string(self.path("ca/root-cert.pem")).unwrap();
        let mut grpc = Grpc::new(self.channel(&root).await.unwrap());
        grpc.ready().await.unwrap();
        grpc
    }

    /// A connection of who trusts `root` alone.
    pub async fn channel(&self, root: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(root))
            .domain_name("istiod.istio-system.svc");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }

    fn authorised<T>(&self, message: T, token: &str) -> Request<T> {
        let mut request = Request::new(message);
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
        request
    }

    /// A unary call as `who`.
    pub async fn call<Q, A>(&self, path: &'static str, message: Q, who: &Bound) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let request = self.authorised(message, &token(self.directory.path(), who));
        let codec = ProstCodec::<Q, A>::default();
        let path = PathAndQuery::from_static(path);
        let answer = self.grpc().await.unary(request, path, codec).await?;
        Ok(answer.into_inner())
    }

    /// A delta stream as `who`.
    pub async fn stream(&self, who: &Bound) -> Result<Client, Status> {
        self.stream_with(&token(self.directory.path(), who)).await
    }

    /// A delta stream with this token.
    pub async fn stream_with(&self, token: &str) -> Result<Client, Status> {
        let (requests, outgoing) = mpsc::channel(64);
        let request = self.authorised(ReceiverStream::new(outgoing), token);
        let codec = ProstCodec::<DeltaDiscoveryRequest, DeltaDiscoveryResponse>::default();
        let path = PathAndQuery::from_static(DELTA_AGGREGATED_RESOURCES);
        let answer = self.grpc().await.streaming(request, path, codec).await?;
        Ok(Client { requests, responses: answer.into_inner() })
    }
}

/// The settings of a controller called `name`, or of one that is alone if that is empty.
fn settings(directory: &Path, name: &str) -> Settings {
    let at = |name: &str| directory.join(name).display().to_string();
    let mut arguments = vec![
        "waymark-controller".to_owned(),
        format!("--silent-after={}", if name.is_empty() { 2 } else { 5 }),
        "--guard-drain=0".to_owned(),
        "--listen=127.0.0.1:0".to_owned(),
        format!("--folder={}", at("folder")),
        format!("--folder={}", at("objects")),
        format!("--ca-dir={}", at("ca")),
        format!("--admin-socket={}", at(&format!("{name}admin.sock"))),
    ];
    if name.is_empty() {
        arguments.push(format!("--provision-dir={}", at("provisioned")));
    } else {
        arguments.push(format!("--pod-name={name}"));
        arguments.push(format!("--token-file={}", at(&format!("{name}-token"))));
        arguments.push(format!("--state-file={}", at(&format!("{name}/enrolled.json"))));
        std::fs::create_dir_all(directory.join(name)).unwrap();
    }
    Settings::parse_from(arguments)
}

/// A token of a pod, as a kubelet brings it.
fn token(directory: &Path, who: &Bound) -> String {
    let key = TokenKey::load_or_make(&directory.join("ca")).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    key.issue(who, now, Duration::from_secs(600)).unwrap()
}

/// One delta stream.
pub struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Client {
    /// Asks for all of a kind.
    pub async fn subscribe(&self, type_url: &str) {
        let request = DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, not acknowledged yet.
    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        next.expect("a response in time").unwrap().expect("the stream is open")
    }

    /// Why the stream ended.
    pub async fn end(&mut self) -> Status {
        let next = tokio::time::timeout(PATIENCE, self.responses.message()).await;
        next.expect("an end in time").expect_err("the stream ends")
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Refuses one resource of a response.
    pub async fn nack(&self, response: &DeltaDiscoveryResponse, name: &str, reason: &str) {
        let rejected = Rejected { name: name.to_owned(), reason: reason.to_owned() };
        let detail = prost_types::Any {
            type_url: "type.googleapis.com/waymark.v1.Rejected".to_owned(),
            value: prost::Message::encode_to_vec(&rejected),
        };
        let status =
            RpcStatus { code: 3, message: format!("{name}: {reason}"), details: vec![detail] };
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(status),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response, acknowledged.
    pub async fn take(&mut self) -> DeltaDiscoveryResponse {
        let response = self.next().await;
        self.ack(&response).await;
        response
    }
}

/// A pod that holds a token.
pub fn pod(namespace: &str, name: &str, account: &str, node: &str) -> Bound {
    let named = |name: &str, uid: String| Named { name: name.to_owned(), uid };
    Bound {
        namespace: namespace.to_owned(),
        service_account: account.to_owned(),
        pod: named(name, uid(namespace, name)),
        node: named(node, format!("{node}-uid")),
    }
}

/// The UID of a pod of these tests.
pub fn uid(namespace: &str, name: &str) -> String {
    format!("{namespace}-{name}-uid")
}

/// A ready pod, as a kubelet reports it.
pub fn pod_yaml(who: &Bound, ip: &str, labels: &[(&str, &str)]) -> String {
    let labels: serde_json::Map<_, _> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    let object = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": who.pod.name, "namespace": who.namespace, "uid": who.pod.uid, "labels": labels,
        },
        "spec": {
            "nodeName": who.node.name, "serviceAccountName": who.service_account,
            "containers": [{
                "name": "app", "image": "app",
                "ports": [{"name": "web", "containerPort": 9080}],
                "readinessProbe": {"httpGet": {"path": "/", "port": "web"}},
            }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    format!("{object}\n---\n")
}

/// Waits until `test` gives something; revisions and acknowledgements wake it.
pub async fn eventually<T>(hub: &Hub, what: &str, test: impl Fn() -> Option<T>) -> T {
    let _ = hub;
    let wait = async {
        loop {
            if let Some(found) = test() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"))
}

/// GET over the admin socket, as JSON.
pub async fn admin(world: &World, path: &str) -> serde_json::Value {
    use http_body_util::{BodyExt as _, Empty};
    let stream = tokio::net::UnixStream::connect(world.path(&format!("{}admin.sock", world.name)))
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "controller")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

/// The identity of the pods of account `web` in namespace `app`.
pub const WEB: &str = "spiffe://cluster.local/ns/app/sa/web";

/// A certificate of [`WEB`] for `caller`: what the authority answers.
pub async fn certificate(world: &World, caller: &Bound) -> Vec<String> {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity = Value { kind: Some(StringValue(WEB.to_owned())) };
    let request = IstioCertificateRequest {
        csr,
        validity_duration: 3600,
        metadata: Some(Struct { fields: [("ImpersonatedIdentity".to_owned(), identity)].into() }),
    };
    let answer: IstioCertificateResponse =
        world.call(CREATE_CERTIFICATE, request, caller).await.unwrap();
    answer.cert_chain
}

/// The names of resources in a response.
pub fn names(response: &DeltaDiscoveryResponse) -> Vec<&str> {
    response.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// Whether a directory holds a file whose text has all of `parts`.
pub fn holds(directory: &Path, parts: &[&str]) -> bool {
    let files = std::fs::read_dir(directory).unwrap();
    files
        .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap_or_default())
        .any(|text| parts.iter().all(|part| text.contains(part)))
}
