// SPDX-License-Identifier: Apache-2.0

//! Serves the data plane: config by delta ADS, certificates, and reports of agents.
//!
//! Owns who a caller is and what it may have: each call brings a token, the token names a pod,
//! the pod's account says whether it is a tunnel, an agent or a gateway, and [`interest`] what
//! follows from that. [`config`] holds what is published, [`session`] is one client's stream,
//! [`clients`] remembers what was acknowledged, [`followers`] are the other controllers while
//! this one leads, [`server`] is the listener.

pub mod certificates;
pub mod clients;
pub mod config;
pub mod followers;
pub mod interest;
pub mod reports;
pub mod server;
pub mod session;

use std::sync::Arc;

use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::app::Hub;
use crate::ca;
use crate::ca::token::Bound;

/// Who calls: the pod that the bearer token is bound to, if it runs.
///
/// # Errors
///
/// `Unauthenticated`, always with the same words; the reason is logged.
pub async fn authenticate(hub: &Arc<Hub>, metadata: &MetadataMap) -> Result<Bound, Status> {
    let refuse = || Status::unauthenticated("the caller is not known");
    let header = metadata.get("authorization").and_then(|value| value.to_str().ok());
    let token = header.and_then(|value| value.strip_prefix("Bearer ")).ok_or_else(|| {
        tracing::warn!("call without a bearer token refused");
        refuse()
    })?;
    let bound = hub.tokens.check(token.trim()).await.map_err(|error| {
        tracing::warn!(error = &error as &dyn std::error::Error, "token refused");
        refuse()
    })?;
    let state = hub.read();
    if ca::own_pod(&bound, &state.stores).is_none() {
        tracing::warn!(
            pod = bound.pod_name(),
            uid = bound.pod.uid,
            "token of a pod that is not there refused"
        );
        return Err(refuse());
    }
    Ok(bound)
}
