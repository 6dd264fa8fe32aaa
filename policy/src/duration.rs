// SPDX-License-Identifier: Apache-2.0

//! Durations as Gateway API writes them: `1h30m`, `250ms`.
//!
//! Owns the grammar of GEP-2257, both ways. What zero means is up to the field.

use std::time::Duration;

/// Units in milliseconds, from long to short.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Why a text is no duration.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// Empty, or more than four parts.
    #[error("{0:?} is no duration, wanted one to four parts such as 1h30m")]
    Parts(String),
    /// A part is not one to five digits and one of `h`, `m`, `s`, `ms`.
    #[error("part {0:?} is not one to five digits and a unit of h, m, s or ms")]
    Part(String),
}

/// Parses a Gateway API duration such as `1h30m` or `250ms`.
///
/// Resolution is one millisecond; the longest value is four parts of `99999h`.
/// Zero is a legal value; what it means is up to the field (a timeout of zero is no timeout).
///
/// # Errors
///
/// [`DurationError::Parts`] for empty text or more than four parts, and
/// [`DurationError::Part`] for the first part out of grammar. Nothing is rounded or clamped.
///
/// # Rule
///
/// GEP-2257; pattern on `Duration` in Gateway API `apis/v1/shared_types.go`.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut total = 0;
    let mut rest = text;
    for _ in 0..4 {
        let (millis, after) = take_part(rest)?;
        total += millis;
        rest = after;
        if rest.is_empty() {
            return Ok(Duration::from_millis(total));
        }
    }
    Err(DurationError::Parts(text.to_owned()))
}

fn take_part(text: &str) -> Result<(u64, &str), DurationError> {
    if text.is_empty() {
        return Err(DurationError::Parts(String::new()));
    }
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, tail) = text.split_at(unit_at);
    let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
    let (unit, after) = tail.split_at(unit_len);
    let part = || DurationError::Part(format!("{digits}{unit}"));
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(part)?;
    if !(1..=5).contains(&digits.len()) {
        return Err(part());
    }
    let count: u64 = digits.parse().map_err(|_| part())?;
    Ok((count * millis, after))
}

/// Prints a duration in the same grammar, the part below a millisecond cut off.
pub fn format_duration(duration: Duration) -> String {
    let mut millis = duration.as_millis();
    let mut text = String::new();
    for (unit, size) in UNITS {
        let count = millis / u128::from(size);
        if count > 0 {
            text.push_str(&count.to_string());
            text.push_str(unit);
            millis %= u128::from(size);
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_follow_the_grammar() {
        let cases = [
            ("0s", Some(0)),
            ("0h0m0s0ms", Some(0)),
            ("1h", Some(3_600_000)),
            ("1h30m", Some(5_400_000)),
            ("250ms", Some(250)),
            ("10s30m1h", Some(5_410_000)),
            ("99999h99999h99999h99999h", Some(4 * 99_999 * 3_600_000)),
            ("", None),
            ("1", None),
            ("s", None),
            ("-1s", None),
            ("1.5s", None),
            ("100000s", None),
            ("1d", None),
            ("1us", None),
            ("1h1h1h1h1h", None),
            ("1h 1m", None),
            ("1H", None),
            ("١s", None),
        ];
        for (text, want) in cases {
            let read = parse_duration(text);
            let millis = read.as_ref().map_or(None, |d| Some(d.as_millis()));
            assert_eq!(millis, want, "{text:?}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn printed_durations_read_back(millis in 0_u64..99_999 * 3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,12}|[0-9hms]{0,12}") {
            drop(parse_duration(&text));
        }
    }
}
