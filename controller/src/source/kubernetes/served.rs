// SPDX-License-Identifier: Apache-2.0

//! Which of our kinds the apiserver serves, and in which version.

use std::collections::HashMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::core::discovery::ApiResource;

use crate::store::Kind;

/// The kinds that the apiserver serves now, each in the version that it ranks highest.
///
/// # Errors
///
/// Those of the apiserver.
pub(super) async fn kinds(client: &Client) -> kube::Result<HashMap<Kind, ApiResource>> {
    let mut found = HashMap::new();
    take(&mut found, "", "v1", client.list_core_api_resources("v1").await?.resources);
    let groups = client.list_api_groups().await?.groups;
    let ours = |name: &str| Kind::ALL.iter().any(|kind| kind.group() == name);
    for group in groups.into_iter().filter(|group| ours(&group.name)) {
        for version in group.versions {
            let listed = client.list_api_group_resources(&version.group_version).await?;
            take(&mut found, &group.name, &version.version, listed.resources);
        }
    }
    Ok(found)
}

/// Takes what is served of a group in one version, unless a better version was taken before.
fn take(
    found: &mut HashMap<Kind, ApiResource>,
    group: &str,
    version: &str,
    resources: Vec<APIResource>,
) {
    let api_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    for resource in resources.into_iter().filter(|resource| !resource.name.contains('/')) {
        let Some(kind) = Kind::of(&api_version, &resource.kind) else { continue };
        if !resource.verbs.iter().any(|verb| verb == "watch") {
            continue;
        }
        found.entry(kind).or_insert_with(|| ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.clone(),
            kind: resource.kind,
            plural: resource.name,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_version_that_serves_a_kind_counts() {
        let resource = |name: &str, kind: &str, verbs: &[&str]| APIResource {
            name: name.into(),
            kind: kind.into(),
            verbs: verbs.iter().map(ToString::to_string).collect(),
            ..APIResource::default()
        };
        let group = "gateway.networking.k8s.io";
        let mut found = HashMap::new();
        let watched = ["list", "watch"];
        let v1 = vec![
            resource("httproutes", "HTTPRoute", &watched),
            resource("httproutes/status", "HTTPRoute", &["get"]),
            resource("widgets", "Widget", &watched),
        ];
        take(&mut found, group, "v1", v1);
        let older = vec![
            resource("httproutes", "HTTPRoute", &watched),
            resource("tcproutes", "TCPRoute", &watched),
            resource("udproutes", "UDPRoute", &["list"]),
        ];
        take(&mut found, group, "v1alpha2", older);
        let version = |kind: Kind| found.get(&kind).map(|resource| resource.version.as_str());
        assert_eq!(version(Kind::HttpRoute), Some("v1"));
        assert_eq!(version(Kind::TcpRoute), Some("v1alpha2"));
        assert_eq!(version(Kind::UdpRoute), None, "it cannot be watched");
        assert_eq!(found.len(), 2);
    }
}
