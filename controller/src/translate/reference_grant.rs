// SPDX-License-Identifier: Apache-2.0

//! Whether an object may point into another namespace.
//!
//! Rule: `ReferenceGrant` in Gateway API `apis/v1beta1/referencegrant_types.go`.

use gateway_api::experimental::referencegrants::ReferenceGrant;

use crate::api::GATEWAY_GROUP;
use crate::store::index::Index;
use crate::store::lookup::Lookup;

/// Who points: kind and namespace; the group is that of Gateway API.
#[derive(Clone, Copy, Debug)]
pub struct From<'a> {
    /// Kind.
    pub kind: &'a str,
    /// Namespace.
    pub namespace: &'a str,
}

/// What is pointed at.
#[derive(Clone, Copy, Debug)]
pub struct To<'a> {
    /// Group; empty for core.
    pub group: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
}

/// Tells whether `from` may point at `to`: inside one namespace always, else by a grant there.
pub fn permits(from: From<'_>, to: To<'_>, look: &mut Lookup<'_>) -> bool {
    if from.namespace == to.namespace {
        return true;
    }
    look.list::<ReferenceGrant>(Index::Namespace, to.namespace).iter().any(|grant| {
        let from_fits = grant.spec.from.iter().any(|one| {
            one.group == GATEWAY_GROUP && one.kind == from.kind && one.namespace == from.namespace
        });
        from_fits
            && grant.spec.to.iter().any(|one| {
                let named = one.name.as_deref().filter(|name| !name.is_empty());
                one.group == to.group
                    && one.kind == to.kind
                    && named.is_none_or(|name| name == to.name)
            })
    })
}
