// SPDX-License-Identifier: Apache-2.0

//! Certificates from the controller's authority.
//!
//! Rule: `istio.v1.auth.IstioCertificateService/CreateCertificate`,
//! Istio's `security/pkg/server/ca`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use policy::identity::Identity;
use routing::wire::ca::{
    CREATE_CERTIFICATE, CertificateRequest, IstioCertificateRequest, IstioCertificateResponse,
};
use routing::wire::chain;

use super::Controller;
use crate::credentials::trust::Trust;
use crate::credentials::{Authority, AuthorityError};

/// Longest wait for a certificate.
const PATIENCE: Duration = Duration::from_secs(10);

/// The authority at a controller.
#[derive(Clone, Debug)]
pub struct RemoteAuthority {
    /// Where it is asked.
    pub controller: Controller,
    /// Asks in the name of others, as a node's tunnel does for its pods.
    pub impersonate: bool,
    /// Life to ask for.
    pub life: Duration,
}

impl Authority for RemoteAuthority {
    fn sign<'a>(
        &'a self,
        identity: &'a Identity,
        csr: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>> {
        let request = CertificateRequest {
            csr: csr.to_owned(),
            life: self.life,
            impersonated: self.impersonate.then(|| identity.clone()),
        };
        Box::pin(async move {
            let failed = |error: super::ControlError| AuthorityError(chain(&error).into());
            let channel = self.controller.connect().await.map_err(failed)?;
            let answer = self.controller.call::<IstioCertificateRequest, IstioCertificateResponse>(
                channel,
                CREATE_CERTIFICATE,
                request.write(),
                PATIENCE,
            );
            Ok(answer.await.map_err(failed)?.cert_chain)
        })
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.controller.trust)
    }
}
