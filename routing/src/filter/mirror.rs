// SPDX-License-Identifier: Apache-2.0

//! Mirrors: which share of requests is copied.

use crate::route::BackendTarget;

/// A copy of a share of the requests.
///
/// Rule: `HTTPRequestMirrorFilter` in Gateway API `apis/v1/httproute_types.go`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mirror {
    /// Where copies go; to an invalid one none go.
    pub backend: BackendTarget,
    /// How many requests of all are copied.
    pub share: Fraction,
}

/// A share of requests.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fraction {
    /// Out of `denominator`; at most that.
    pub numerator: u32,
    /// Above zero.
    pub denominator: u32,
}

impl Fraction {
    /// All requests.
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };
}

impl Mirror {
    /// Tells whether this request is copied; asks `roll` only for a real share.
    pub(super) fn takes(&self, roll: &mut impl FnMut() -> u64) -> bool {
        let Fraction { numerator, denominator } = self.share;
        let mut chosen = || {
            let place = (u128::from(roll()) * u128::from(denominator)) >> 64;
            place < u128::from(numerator)
        };
        let resolved = matches!(self.backend, BackendTarget::Service { .. });
        resolved && numerator > 0 && (numerator >= denominator || chosen())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirror(numerator: u32, denominator: u32) -> Mirror {
        let backend = BackendTarget::Service { key: "ns/mirror".parse().unwrap(), port: 80 };
        Mirror { backend, share: Fraction { numerator, denominator } }
    }

    #[test]
    fn the_share_of_even_rolls_is_copied() {
        for (numerator, denominator, want) in
            [(20, 100, 200), (25, 50, 500), (0, 100, 0), (1, 1, 1000), (350, 1000, 350)]
        {
            let mirror = mirror(numerator, denominator);
            let rolls = (0..1000_u64).map(|step| step * (u64::MAX / 1000));
            let taken = rolls.filter(|&roll| mirror.takes(&mut || roll)).count();
            assert!(taken.abs_diff(want) <= 1, "{numerator}/{denominator}: {taken}");
        }
    }

    #[test]
    fn an_invalid_backend_gets_no_copies() {
        let backend = BackendTarget::Invalid { reason: "gone".into() };
        assert!(!Mirror { backend, share: Fraction::ALL }.takes(&mut || 0));
    }
}
