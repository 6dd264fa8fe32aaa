// SPDX-License-Identifier: Apache-2.0

//! The session with the controller.
//!
//! Owns where it is, how its certificate is checked, and the token that says
//! who we are. [`client`] keeps the discovery stream, [`authority`] has
//! certificates signed, [`call`](Controller::call) asks single questions.
//!
//! Keeps: the token and the roots are read anew for each connection and call,
//! for both are rotated while we run.
//!
//! Start at [`Controller`].

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic_prost::ProstCodec;

use crate::credentials::trust::Trust;

pub mod authority;
pub mod backoff;
pub mod client;
pub mod metrics;
pub mod snapshots;

/// Largest message taken from the controller, in bytes.
const MAX_MESSAGE: usize = 200 << 20;

/// Where the controller is, and how both sides prove who they are.
#[derive(Clone, Debug)]
pub struct Controller {
    /// URL, such as `https://istiod.istio-system.svc:15012`.
    pub address: String,
    /// File of the PEM certificates that its certificate must chain to.
    pub roots: PathBuf,
    /// Name its certificate must have, if not the one in `address`.
    pub name: Option<String>,
    /// File of the token that proves who we are.
    pub token: PathBuf,
    /// Cluster we run in.
    pub cluster: String,
    /// Roots that the controller told: its certificate may be of them before the file is.
    pub trust: Arc<Trust>,
}

/// Why the controller could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The URL cannot be used.
    #[error("controller address cannot be used")]
    Address(#[source] tonic::transport::Error),
    /// The file of roots cannot be used.
    #[error("file of roots {0:?} cannot be used: {1}")]
    Roots(PathBuf, Arc<str>),
    /// The token cannot be read.
    #[error("token {0:?} cannot be read")]
    Token(PathBuf, #[source] std::io::Error),
    /// The token is no text for a header.
    #[error("token {0:?} is no token")]
    TokenText(PathBuf),
    /// There is no connection.
    #[error("no connection to the controller")]
    Connect(#[source] tonic::transport::Error),
    /// The controller refused or broke off.
    #[error("controller answered {:?}: {}", .0.code(), .0.message())]
    Status(Box<tonic::Status>),
    /// The stream ended without a word.
    #[error("the stream ended")]
    Ended,
}

impl From<tonic::Status> for ControlError {
    fn from(status: tonic::Status) -> Self {
        Self::Status(Box::new(status))
    }
}

impl Controller {
    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// When the controller cannot be reached or is not who it should be.
    pub async fn connect(&self) -> Result<Channel, ControlError> {
        let mut endpoint = Endpoint::from_shared(self.address.clone())
            .map_err(ControlError::Address)?
            .connect_timeout(Duration::from_secs(5))
            .tcp_keepalive(Some(Duration::from_secs(300)))
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .initial_connection_window_size(16 << 20)
            .initial_stream_window_size(4 << 20);
        if self.address.starts_with("https") {
            let unusable = |why: String| ControlError::Roots(self.roots.clone(), why.into());
            let roots = std::fs::read(&self.roots).map_err(|error| unusable(error.to_string()))?;
            let first = CertificateDer::pem_slice_iter(&roots).next();
            first
                .transpose()
                .map_err(|error| unusable(error.to_string()))?
                .ok_or_else(|| unusable("it holds no certificate".to_owned()))?;
            let roots = [roots, self.trust.pem().into_bytes()].map(Certificate::from_pem);
            let mut tls = ClientTlsConfig::new().ca_certificates(roots);
            if let Some(name) = &self.name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls).map_err(ControlError::Address)?;
        }
        endpoint.connect().await.map_err(ControlError::Connect)
    }

    /// A request with our token.
    ///
    /// # Errors
    ///
    /// When the token cannot be read.
    pub fn request<T>(&self, message: T) -> Result<tonic::Request<T>, ControlError> {
        let token = std::fs::read_to_string(&self.token)
            .map_err(|error| ControlError::Token(self.token.clone(), error))?;
        let text = |_| ControlError::TokenText(self.token.clone());
        let mut bearer: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(text)?;
        bearer.set_sensitive(true);
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert("authorization", bearer);
        if let Ok(cluster) = self.cluster.parse() {
            request.metadata_mut().insert("clusterid", cluster);
        }
        Ok(request)
    }

    /// Asks one question at `path`, such as `/waymark.v1.Node/Report`, over `channel`.
    ///
    /// # Errors
    ///
    /// When the controller refuses or does not answer in time.
    pub async fn call<Q, A>(
        &self,
        channel: Channel,
        path: &'static str,
        question: Q,
        patience: Duration,
    ) -> Result<A, ControlError>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut request = self.request(question)?;
        request.set_timeout(patience);
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let ask = async {
            grpc.ready().await.map_err(ControlError::Connect)?;
            let path = PathAndQuery::from_static(path);
            let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default()).await?;
            Ok(answer.into_inner())
        };
        let late = |_| ControlError::from(tonic::Status::deadline_exceeded("no answer in time"));
        tokio::time::timeout(patience, ask).await.map_err(late)?
    }
}
