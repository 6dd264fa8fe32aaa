// SPDX-License-Identifier: Apache-2.0

//! `CreateCertificate`: asks [`crate::ca`] who may, signs, and logs every issue.

use std::sync::Arc;
use std::time::Duration;

use routing::wire::ca::CertificateRequest;
use routing::wire::chain;
use routing::wire::messages::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use tonic::{Request, Response, Status};

use crate::app::Hub;
use crate::ca::ledger::Leaf;
use crate::ca::{self, Rules, sign};

/// Path of the gRPC method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// Answers one request. Refusals are told apart in the log only.
///
/// # Errors
///
/// `Unauthenticated` for callers that may not have what they ask for, `InvalidArgument` for
/// requests that cannot be read.
pub async fn create(
    hub: &Arc<Hub>,
    request: &Request<IstioCertificateRequest>,
) -> Result<Response<IstioCertificateResponse>, Status> {
    let answer = issue(hub, request).await;
    hub.metrics.certificate(answer.is_ok());
    answer.map(Response::new)
}

async fn issue(
    hub: &Arc<Hub>,
    request: &Request<IstioCertificateRequest>,
) -> Result<IstioCertificateResponse, Status> {
    let caller = super::authenticate(hub, request.metadata()).await?;
    let asked = CertificateRequest::read(request.get_ref())
        .map_err(|error| Status::invalid_argument(chain(&error)))?;
    let rules = Rules {
        trust_domain: &hub.mesh.trust_domain,
        trusted: &hub.settings.trusted_node_accounts,
    };
    let identity = {
        let state = hub.read();
        ca::authorise(&caller, asked.impersonated.as_ref(), &state.stores, &rules)
    };
    let identity = identity.map_err(|refused| {
        tracing::warn!(pod = caller.pod_name(), node = caller.node.name, %refused, "certificate refused");
        Status::unauthenticated("the caller may not have this certificate")
    })?;
    let longest = Duration::from_secs(hub.settings.certificate_ttl);
    let life = if asked.life.is_zero() { longest } else { asked.life.min(longest) };
    let life = life.max(sign::MIN_LIFE.min(longest));
    let authority = hub.ca.now();
    let signed = sign::sign(&authority, &asked.csr, &identity, life).map_err(|error| {
        tracing::warn!(
            pod = caller.pod_name(),
            error = chain(&error),
            "certificate request refused"
        );
        Status::invalid_argument(chain(&error))
    })?;
    tracing::info!(
        %identity, pod = caller.pod_name(), node = caller.node.name, serial = signed.serial,
        not_after = %signed.not_after, "certificate issued"
    );
    let leaf = Leaf {
        root: authority.signs().to_owned(),
        trusted: authority.roots.iter().map(|root| root.fingerprint.clone()).collect(),
        given_at: time::OffsetDateTime::now_utc(),
        not_after: signed.not_after,
    };
    hub.ledger.note(caller, asked.impersonated, leaf);
    Ok(IstioCertificateResponse { cert_chain: signed.chain })
}
