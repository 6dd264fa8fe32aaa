// SPDX-License-Identifier: Apache-2.0

//! `istio.mesh.v1alpha1.ProxyConfig`: the roots of the mesh, told as they change.
//!
//! Owns the name on the discovery stream and the one resource of it. Leaves certificates to
//! the tunnel and the controller.
//!
//! Rule: Istio's `pilot/pkg/xds/pcds.go`, which tells all roots that its proxies are to trust.

use prost::Message as _;

use super::error::WireError;
pub use super::messages::istio::mesh::v1alpha1::ProxyConfig;
use crate::stream::DeltaDiscoveryResponse;

/// Name of [`ProxyConfig`] on the discovery stream.
pub const ROOTS_URL: &str = "type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig";

/// Name of the resource; there is one for the whole mesh.
pub const ROOTS: &str = "mesh";

/// The roots that a response tells, in PEM; none if it says nothing of them.
///
/// No PEM text at all takes back what was told before.
///
/// # Errors
///
/// For bytes that are no such message.
pub fn read_roots(response: &DeltaDiscoveryResponse) -> Result<Option<Vec<String>>, WireError> {
    let Some(resource) = response.resources.last() else {
        return Ok((!response.removed_resources.is_empty()).then(Vec::new));
    };
    let body = resource.resource.as_ref().ok_or(WireError::Missing("resource"))?;
    let told = ProxyConfig::decode(body.value.as_slice()).map_err(WireError::Message)?;
    Ok(Some(told.ca_certificates_pem))
}

/// Writes the resource that tells `roots`, each in PEM.
pub fn write_roots(roots: &[String]) -> Vec<u8> {
    ProxyConfig { ca_certificates_pem: roots.to_vec() }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Resource;
    use crate::wire::messages::Any;

    fn response(value: Vec<u8>) -> DeltaDiscoveryResponse {
        let body = Any { type_url: ROOTS_URL.to_owned(), value };
        let resource =
            Resource { name: ROOTS.to_owned(), resource: Some(body), ..Resource::default() };
        DeltaDiscoveryResponse { resources: vec![resource], ..DeltaDiscoveryResponse::default() }
    }

    #[test]
    fn roots_are_read_as_they_were_written() {
        let roots = ["one".to_owned(), "two".to_owned()];
        assert_eq!(read_roots(&response(write_roots(&roots))), Ok(Some(roots.to_vec())));
        assert!(read_roots(&response(vec![0xff])).is_err());
        let none = DeltaDiscoveryResponse::default();
        assert_eq!(read_roots(&none), Ok(None), "an empty answer says nothing");
        let gone = DeltaDiscoveryResponse { removed_resources: vec![ROOTS.to_owned()], ..none };
        assert_eq!(read_roots(&gone), Ok(Some(Vec::new())));
    }
}
