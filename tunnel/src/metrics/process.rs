// SPDX-License-Identifier: Apache-2.0

//! What this process uses, as every Prometheus client tells it.
//!
//! Rule: Prometheus, "Writing client libraries", process metrics; `proc(5)`.

use std::fmt::Error;
use std::path::Path;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use rustix::process::{Resource, getrlimit};

/// Ticks of a second in `/proc`: the same on all that Linux runs on here.
const TICKS: f64 = 100.0;

/// Looks at this process at each scrape.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process;

/// What was seen of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Use {
    cpu_seconds: f64,
    /// Since the epoch.
    start_seconds: f64,
    threads: f64,
    virtual_bytes: f64,
    resident_bytes: f64,
    open_files: f64,
    max_files: f64,
}

impl Use {
    /// Reads `proc`, such as `/proc`; what cannot be read is zero.
    fn read(proc: &Path) -> Self {
        let text = |name: &str| std::fs::read_to_string(proc.join(name)).unwrap_or_default();
        let files = std::fs::read_dir(proc.join("self/fd")).map_or(0, Iterator::count);
        let (stat, status, system) = (text("self/stat"), text("self/status"), text("stat"));
        // The name of the program, in parentheses, may hold spaces.
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
        let field = |number: usize| {
            let text = fields.split_whitespace().nth(number - 3);
            text.and_then(|text| text.parse::<f64>().ok()).unwrap_or_default()
        };
        let boot = number(&system, "btime ");
        Self {
            cpu_seconds: (field(14) + field(15)) / TICKS,
            start_seconds: boot + field(22) / TICKS,
            threads: field(20),
            virtual_bytes: number(&status, "VmSize:") * 1024.0,
            resident_bytes: number(&status, "VmRSS:") * 1024.0,
            open_files: u32::try_from(files).map_or(f64::MAX, f64::from),
            max_files: getrlimit(Resource::Nofile)
                .current
                .map_or(f64::INFINITY, |most| u32::try_from(most).map_or(f64::INFINITY, f64::from)),
        }
    }
}

/// The number behind `word` at the beginning of a line.
fn number(text: &str, word: &str) -> f64 {
    let rest = text.lines().find_map(|line| line.strip_prefix(word));
    let number = rest.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let seen = Use::read(Path::new("/proc"));
        let (name, help) = ("process_cpu_seconds", "CPU time spent, in seconds");
        let mut cpu = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        cpu.encode_counter::<NoLabelSet, _, f64>(&seen.cpu_seconds, None)?;
        let gauges = [
            ("process_open_fds", "Open file descriptors", seen.open_files),
            ("process_max_fds", "Most file descriptors that may be open", seen.max_files),
            ("process_virtual_memory_bytes", "Virtual memory, in bytes", seen.virtual_bytes),
            ("process_resident_memory_bytes", "Resident memory, in bytes", seen.resident_bytes),
            ("process_start_time_seconds", "Start, in seconds since the epoch", seen.start_seconds),
            ("process_threads", "Threads", seen.threads),
        ];
        for (name, help, value) in gauges {
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode_gauge(&value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir_all(folder.path().join("self/fd")).unwrap();
        for file in ["0", "1", "2"] {
            put(&format!("self/fd/{file}"), "");
        }
        put("stat", "cpu 1 2 3\nbtime 1700000000\n");
        put("self/status", "Name:\ta\nVmSize:\t  2048 kB\nVmRSS:\t    4 kB\n");
        put(
            "self/stat",
            "7 (a ) b) S 1 7 7 0 -1 4 10 0 0 0 250 50 0 0 20 0 9 0 1234 999 88 1 1 1\n",
        );
        let seen = Use::read(folder.path());
        let want = Use {
            cpu_seconds: 3.0,
            start_seconds: 1_700_000_012.34,
            threads: 9.0,
            virtual_bytes: 2_097_152.0,
            resident_bytes: 4096.0,
            open_files: 3.0,
            max_files: seen.max_files,
        };
        assert_eq!(seen, want);
        assert!(seen.max_files > 0.0);
    }
}
