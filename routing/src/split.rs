// SPDX-License-Identifier: Apache-2.0

//! The choice among a rule's backends, by weight.

use std::sync::Arc;

use crate::route::{BackendRef, BackendTarget};

/// Why a rule has no backend for a request; the answer is a 500.
///
/// Rule: `HTTPRouteRule.backendRefs` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoBackend {
    /// The rule names no backend.
    #[error("the rule has no backends")]
    None,
    /// All weights are zero.
    #[error("all backends have weight zero")]
    AllZero,
    /// The backend whose turn it was does not resolve.
    #[error("the backend is invalid: {0}")]
    Invalid(Arc<str>),
}

/// Chooses a backend; `roll` is uniform over all 64 bit numbers.
///
/// Each backend gets its weight's share of the rolls, an invalid one too: its share fails.
///
/// # Errors
///
/// See [`NoBackend`].
pub fn choose(backends: &[BackendRef], roll: u64) -> Result<&BackendRef, NoBackend> {
    let total: u128 = backends.iter().map(|backend| u128::from(backend.weight)).sum();
    if backends.is_empty() {
        return Err(NoBackend::None);
    }
    // Below `total`, without the bias of a remainder.
    let mut place = (u128::from(roll) * total) >> 64;
    for backend in backends {
        let weight = u128::from(backend.weight);
        if place < weight {
            return match &backend.target {
                BackendTarget::Service { .. } => Ok(backend),
                BackendTarget::Invalid { reason } => Err(NoBackend::Invalid(Arc::clone(reason))),
            };
        }
        place -= weight;
    }
    Err(NoBackend::AllZero)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, weight: u32) -> BackendRef {
        let target = match name {
            "invalid" => BackendTarget::Invalid { reason: "gone".into() },
            _ => BackendTarget::Service { key: format!("ns/{name}").parse().unwrap(), port: 80 },
        };
        BackendRef { target, weight, filters: Vec::new() }
    }

    #[test]
    fn shares_follow_weights_exactly_over_even_rolls() {
        let backends = [backend("a", 70), backend("none", 0), backend("b", 30)];
        let mut counts = [0_u32; 3];
        for step in 0..1000_u64 {
            let chosen = choose(&backends, step * (u64::MAX / 1000)).unwrap();
            let index = backends.iter().position(|b| b.target == chosen.target).unwrap();
            counts[index] += 1;
        }
        assert!((699..=701).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[1], 0, "weight zero gets none");
        assert_eq!(counts.iter().sum::<u32>(), 1000);
    }

    #[test]
    fn the_last_roll_still_hits_a_backend() {
        assert!(choose(&[backend("a", 1), backend("b", 0)], u64::MAX).is_ok());
        assert!(choose(&vec![backend("a", u32::MAX); 16], u64::MAX).is_ok());
    }

    #[test]
    fn without_a_backend_the_reason_is_named() {
        assert_eq!(choose(&[], 7), Err(NoBackend::None));
        assert_eq!(choose(&[backend("a", 0), backend("b", 0)], 7), Err(NoBackend::AllZero));
        let half = [backend("a", 1), backend("invalid", 1)];
        assert!(choose(&half, 0).is_ok());
        assert_eq!(choose(&half, u64::MAX), Err(NoBackend::Invalid("gone".into())));
    }
}
