// SPDX-License-Identifier: Apache-2.0

//! What is read of processes, and what is made of several rounds.

/// User and system time of a process, in seconds.
pub(crate) fn cpu_of(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    // The kernel counts in hundredths of a second on every machine of today.
    Some(ticks / 100.0)
}

/// Resident memory of a process, in MiB.
pub(crate) fn resident(pid: u32) -> f64 {
    mebibytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Resident memory of a process, in MiB; of what it shares, its share.
pub(crate) fn proportional(pid: u32) -> f64 {
    mebibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// The number of KiB in the line of a file that begins with `field`, as MiB.
fn mebibytes(file: &str, field: &str) -> f64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<f64>().ok());
    kib.unwrap_or(0.0) / 1024.0
}

/// The middle one; of none, 0.
pub(crate) fn median(values: Vec<f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the share `at` of all lies; of none, 0.
pub(crate) fn quantile(mut values: Vec<f64>, at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index among few values"
    )]
    let index = (values.len() as f64 * at) as usize;
    values.get(index.min(values.len().saturating_sub(1))).copied().unwrap_or(0.0)
}
