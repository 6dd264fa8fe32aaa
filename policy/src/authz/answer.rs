// SPDX-License-Identifier: Apache-2.0

//! Yes, no, or no answer: what a matcher says, and how answers combine.
//!
//! Some questions cannot be answered: a path, of a session below HTTP. Such an
//! answer stays unknown through any-of, all-of and not (Kleene's logic), and
//! only the policy's action decides what it means.

/// What a matcher says about a request.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Answer {
    // The order makes any-of the maximum and all-of the minimum.
    No,
    Unknown,
    Yes,
}

impl From<bool> for Answer {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

impl Answer {
    pub(super) fn not(self) -> Self {
        match self {
            Self::No => Self::Yes,
            Self::Unknown => Self::Unknown,
            Self::Yes => Self::No,
        }
    }

    /// Yes if one is; no if there is none.
    pub(super) fn any_of(answers: impl IntoIterator<Item = Self>) -> Self {
        let mut best = Self::No;
        for answer in answers {
            best = best.max(answer);
            if best == Self::Yes {
                break;
            }
        }
        best
    }

    /// Yes if all are; yes if there is none.
    pub(super) fn all_of(answers: impl IntoIterator<Item = Self>) -> Self {
        Self::any_of(answers.into_iter().map(Self::not)).not()
    }
}

#[cfg(test)]
mod tests {
    use super::Answer::{self, No, Unknown, Yes};

    #[test]
    fn unknown_yields_to_what_decides_and_to_nothing_else() {
        let cases: [(&[Answer], Answer, Answer); 7] = [
            // answers, any-of, all-of
            (&[], No, Yes),
            (&[Yes], Yes, Yes),
            (&[No], No, No),
            (&[Unknown], Unknown, Unknown),
            (&[Unknown, Yes], Yes, Unknown),
            (&[Unknown, No], Unknown, No),
            (&[Yes, No], Yes, No),
        ];
        for (answers, any, all) in cases {
            assert_eq!(Answer::any_of(answers.iter().copied()), any, "any of {answers:?}");
            assert_eq!(Answer::all_of(answers.iter().copied()), all, "all of {answers:?}");
        }
    }
}
