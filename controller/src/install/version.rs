// SPDX-License-Identifier: Apache-2.0

//! Which version may follow which. Pure.
//!
//! While an upgrade goes on, tunnels and agents of the version before are served by the new
//! controller; that is kept for one minor version either way.

/// Tells whether `next` may take the place of `installed`; else why not, for people.
///
/// # Errors
///
/// When they are more than one minor version apart, or one of them is no version.
pub fn may_follow(installed: &str, next: &str) -> Result<(), String> {
    let read = |text: &str| parse(text).ok_or_else(|| format!("{text:?} is no version"));
    let (old, new) = (read(installed)?, read(next)?);
    if old.0 == new.0 && old.1.abs_diff(new.1) <= 1 {
        return Ok(());
    }
    let way = if (new.0, new.1) > (old.0, old.1) { "after" } else { "before" };
    let step = if old.0 == new.0 {
        let minor = if new.1 > old.1 { old.1 + 1 } else { old.1.saturating_sub(1) };
        format!("go through {}.{minor} first", old.0)
    } else {
        "read the notes of the release: uninstall, then install".to_owned()
    };
    Err(format!(
        "{next} is more than one minor version {way} {installed}, which is installed: \
         its tunnels and agents could not be served while they are replaced; {step}"
    ))
}

/// Major and minor of `1.2.3`, `v1.2.3` or `1.2.3-rc.1`.
fn parse(text: &str) -> Option<(u64, u64)> {
    let mut parts = text.trim_start_matches('v').splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?.split('-').next()?.parse().ok()?;
    Some((major, minor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_either_way_may_follow() {
        for (installed, next) in
            [("0.1.0", "0.1.0"), ("0.1.9", "0.2.0"), ("0.2.0", "0.1.5"), ("v1.4.1", "1.5.0-rc.1")]
        {
            assert_eq!(may_follow(installed, next), Ok(()), "{installed} {next}");
        }
        for (installed, next, words) in [
            ("0.1.0", "0.3.0", "more than one minor version after 0.1.0"),
            ("0.1.0", "0.3.0", "go through 0.2 first"),
            ("0.4.0", "0.2.0", "go through 0.3 first"),
            ("0.9.0", "1.0.0", "uninstall, then install"),
            ("latest", "0.1.0", "\"latest\" is no version"),
            ("0.1.0", "", "\"\" is no version"),
        ] {
            let why = may_follow(installed, next).unwrap_err();
            assert!(why.contains(words), "{why}");
        }
    }
}
