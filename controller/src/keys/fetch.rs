// SPDX-License-Identifier: Apache-2.0

//! One try to fetch the keys of an issuer: bounded in time and size.
//!
//! Rule: RFC 7517 §5 for key sets, OpenID Connect Discovery 1.0 §4 for an issuer that tells where
//! its set is.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::LOCATION;
use http::uri::Scheme;
use http::{StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use policy::jwt::{InvalidJwks, Jwk, Jwks};
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use tokio::time::timeout;

use crate::store::facts::KeySource;
use crate::translate::request_authentication::in_words;

/// The longest answer that is read, in bytes.
const BODY: usize = 1 << 20;
/// How often in a row it is followed elsewhere.
const REDIRECTS: usize = 5;

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The address is no URL.
    #[error("{0:?} is no URL")]
    Url(String),
    /// It took too long.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// There was no answer.
    #[error("cannot be reached")]
    Reach(#[source] legacy::Error),
    /// It sends elsewhere, where it is not followed.
    #[error(
        "answered with {status} to {to:?}, which is not followed: only to the same host, from http to https or as before, five times at most; write the URL where the keys are"
    )]
    Redirect {
        /// The status.
        status: StatusCode,
        /// Where it sends; may be empty.
        to: String,
    },
    /// It answered with another status than 200.
    #[error("answered with {0}, wanted 200")]
    Status(StatusCode),
    /// The answer broke off, or is longer than a megabyte.
    #[error("answer cannot be read, or is longer than a megabyte")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is no key set.
    #[error("answer holds no keys")]
    Keys(#[source] InvalidJwks),
    /// The answer is no description of an issuer.
    #[error("answer is no OpenID configuration")]
    Discovery(#[source] serde_json::Error),
    /// It describes another issuer.
    #[error("answer is about issuer {0:?}")]
    OtherIssuer(String),
}

/// Asks servers of issuers.
#[derive(Clone, Debug)]
pub struct Client(legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>);

impl Client {
    /// One that trusts the roots of the operating system; without any, only `http` works.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up at all.
    pub fn new() -> Result<Self, rustls::Error> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        // Systems carry roots that are out of use; those that do not parse are left out.
        let (taken, _) = roots.add_parsable_certificates(system.certs);
        if taken == 0 {
            let causes: Vec<String> = system.errors.iter().map(ToString::to_string).collect();
            tracing::warn!(?causes, "no roots of the system: keys cannot be fetched by https");
        }
        Self::trusting(roots)
    }

    /// One that trusts `roots`.
    ///
    /// # Errors
    ///
    /// As [`Client::new`].
    pub fn trusting(roots: RootCertStore) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let builder = HttpsConnectorBuilder::new().with_tls_config(config);
        let connector = builder.https_or_http().enable_http1().build();
        let mut client = legacy::Client::builder(TokioExecutor::new());
        // A set is fetched a few times an hour: no connection is worth keeping.
        Ok(Self(client.pool_max_idle_per_host(0).build(connector)))
    }
}

/// Fetches the keys at `source`, within `time`.
///
/// # Errors
///
/// See [`FetchError`].
pub async fn keys(
    client: &Client,
    source: &KeySource,
    time: Duration,
) -> Result<Vec<Jwk>, FetchError> {
    let work = async {
        let at = in_words(source);
        let body = match source {
            KeySource::Uri(_) => get(client, &at).await?,
            KeySource::Issuer(issuer) => {
                let told = get(client, &at).await?;
                let told: Discovered =
                    serde_json::from_slice(&told).map_err(FetchError::Discovery)?;
                if told.issuer != **issuer {
                    return Err(FetchError::OtherIssuer(told.issuer));
                }
                get(client, &told.jwks_uri).await?
            }
        };
        Ok(Jwks::parse(&body).map_err(FetchError::Keys)?.keys)
    };
    timeout(time, work).await.unwrap_or(Err(FetchError::Timeout(time)))
}

/// What an issuer tells about itself.
#[derive(Debug, Deserialize)]
struct Discovered {
    issuer: String,
    jwks_uri: String,
}

async fn get(client: &Client, uri: &str) -> Result<Bytes, FetchError> {
    let mut uri: Uri = uri.parse().map_err(|_| FetchError::Url(uri.to_owned()))?;
    let mut left = REDIRECTS;
    loop {
        let response = client.0.get(uri.clone()).await.map_err(FetchError::Reach)?;
        let status = response.status();
        if status == StatusCode::OK {
            let body = Limited::new(response.into_body(), BODY).collect().await;
            return Ok(body.map_err(FetchError::Body)?.to_bytes());
        }
        // Rule: RFC 9110 §15.4; all of these mean the same to a GET.
        if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
            return Err(FetchError::Status(status));
        }
        let to = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let to = to.unwrap_or_default();
        let next = followed(&uri, to).filter(|_| left > 0);
        uri = next.ok_or_else(|| FetchError::Redirect { status, to: to.to_owned() })?;
        left -= 1;
    }
}

/// Where a redirect from one URL to another leads; none if it is not followed: who named the
/// first trusts that host, and that nobody reads or changes what https brings.
fn followed(from: &Uri, to: &str) -> Option<Uri> {
    let to: Uri = to.parse().ok()?;
    let (scheme, authority) = (from.scheme()?, from.authority()?);
    let Some(other) = to.authority() else {
        // A path of the same host; one that is relative to the first path is no legal `Uri`.
        let path = to.path_and_query()?.clone();
        return Uri::builder()
            .scheme(scheme.clone())
            .authority(authority.clone())
            .path_and_query(path)
            .build()
            .ok();
    };
    let secured = *scheme == Scheme::HTTP && to.scheme() == Some(&Scheme::HTTPS);
    let same = to.scheme() == Some(scheme) && other.port_u16() == authority.port_u16();
    let host = other.host().eq_ignore_ascii_case(authority.host());
    (host && (secured || same)).then_some(to)
}
