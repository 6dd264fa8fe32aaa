// SPDX-License-Identifier: Apache-2.0

//! The roots in force, as every proxy and agent is told them.
//!
//! Rule: Istio's `pilot/pkg/xds/pcds.go`; told always, for proxies that do not ask get nothing.

use crate::output::{Config, Output, Resource, Scope};
use crate::store::lookup::Lookup;

/// The resource of the roots; none where there is no authority, as for a folder without a mesh.
pub fn run(look: &mut Lookup<'_>) -> Vec<Output> {
    let roots = look.roots();
    if roots.is_empty() {
        return Vec::new();
    }
    vec![Config::output(Resource::Roots(roots.to_vec()), Scope::Everyone)]
}
