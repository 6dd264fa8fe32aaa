// SPDX-License-Identifier: Apache-2.0

//! The same load on several ways through one running world.
//!
//! Owns: which ways and loads there are, their order (forwards, then backwards, so that
//! drift hits both ends alike), and the table.
//!
//! Start at [`run`].

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use waymark_tests::load::Report;
use waymark_tests::world::{World, below};

use crate::figures::{cpu_of, median, resident};
use crate::{Length, progress};

/// One load: its name, its arguments to `waymark-load`, the Service it goes to.
const LOADS: [(&str, &str, &[&str]); 7] = [
    ("L4 1 x 128 B", "raw", &["tcp", "--shape", "exchange", "--connections", "1", "--size", "128"]),
    (
        "L4 64 x 1 KiB",
        "raw",
        &["tcp", "--shape", "exchange", "--connections", "64", "--size", "1024"],
    ),
    (
        "L4 connect, 16",
        "raw",
        &["tcp", "--shape", "connect", "--connections", "16", "--size", "128"],
    ),
    (
        "L4 bulk, 1",
        "swallow",
        &["tcp", "--shape", "bulk", "--connections", "1", "--size", "262144"],
    ),
    (
        "L4 bulk, 8",
        "swallow",
        &["tcp", "--shape", "bulk", "--connections", "8", "--size", "262144"],
    ),
    ("HTTP, 1 client", "server", &["http", "--clients", "1"]),
    ("HTTP, 64 clients", "server", &["http", "--clients", "64"]),
];

/// The ways: the namespace of client and servers, and what its traffic passes.
const WAYS: [(&str, &str); 3] = [
    ("direct", "no proxy"),
    ("tunnels", "tunnel, tunnel"),
    ("waypoints", "tunnel, waypoint, tunnel"),
];

/// One measurement.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Operations, or megabytes, each second.
    rate: f64,
    /// Median and 99th percentile in microseconds.
    p50: f64,
    p99: f64,
    /// Proxies' CPU, in microseconds for each operation or megabyte.
    cpu: f64,
    failed: f64,
}

/// Measures the ways through the world of `folder` and prints the table.
///
/// # Errors
///
/// When the world does not start, or a load cannot be run.
pub(crate) fn run(folder: &Path, length: Length) -> anyhow::Result<()> {
    let ways = Ways::start(folder)?;
    let mut samples: BTreeMap<(usize, usize), Vec<Sample>> = BTreeMap::new();
    for round in 0..length.rounds.max(1) {
        for (load, _) in LOADS.iter().enumerate() {
            let mut order: Vec<usize> = (0..WAYS.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for way in order {
                let sample = ways.measure(way, load, length.seconds)?;
                samples.entry((load, way)).or_default().push(sample);
            }
        }
        progress(&format!("round {} of {} done", round + 1, length.rounds.max(1)));
    }
    print(&samples, &ways.memory())
}

/// The running world, and the names of the clients by way.
struct Ways {
    world: World,
    clients: BTreeMap<usize, String>,
}

impl Ways {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let world = World::start(folder, &[])?;
        let mut clients = BTreeMap::new();
        for (way, (namespace, _)) in WAYS.iter().enumerate() {
            clients.insert(way, world.pod(namespace, "client-")?);
        }
        Ok(Self { world, clients })
    }

    /// Runs one load on one way.
    fn measure(&self, way: usize, load: usize, seconds: f64) -> anyhow::Result<Sample> {
        let (Some((namespace, _)), Some((name, service, args)), Some(client)) =
            (WAYS.get(way), LOADS.get(load), self.clients.get(&way))
        else {
            bail!("no such way or load");
        };
        let before = self.proxies_cpu();
        let program = self.world.programs().join("waymark-load");
        let program = program.to_string_lossy();
        let (target, seconds) = (format!("{service}.{namespace}:8080"), seconds.to_string());
        let mut command = vec!["exec", "-n", namespace, client.as_str(), "--", &program];
        command.extend(args.iter().take(1));
        command.push(&target);
        command.extend(args.iter().skip(1));
        command.extend(["--seconds", &seconds]);
        let output = self.world.waymark(&command)?;
        let cpu = self.proxies_cpu() - before;
        let report: Report = serde_json::from_slice(&output.stdout).with_context(|| {
            format!("{name} in {namespace}: {}", String::from_utf8_lossy(&output.stderr))
        })?;
        let bulk = args.contains(&"bulk");
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let (good, bytes, p50, p99, failed) = (
            report.good as f64,
            report.bytes as f64,
            report.micros[0] as f64,
            report.micros[2] as f64,
            report.failures() as f64,
        );
        let done = if bulk { bytes / 1e6 } else { good };
        Ok(Sample {
            rate: done / report.seconds,
            p50: if bulk { 0.0 } else { p50 },
            p99: if bulk { 0.0 } else { p99 },
            cpu: cpu * 1e6 / done.max(1.0),
            failed,
        })
    }

    /// Seconds of CPU that all proxies of this world have used.
    fn proxies_cpu(&self) -> f64 {
        self.proxies().iter().filter_map(|(pid, _)| cpu_of(*pid)).sum()
    }

    /// Resident MiB by program.
    fn memory(&self) -> BTreeMap<String, f64> {
        let mut memory = BTreeMap::new();
        for (pid, name) in self.proxies() {
            *memory.entry(name).or_insert(0.0) += resident(pid);
        }
        memory
    }

    /// Processes of this world that are proxies, with their names.
    fn proxies(&self) -> Vec<(u32, String)> {
        let proxy =
            |name: &str| name.starts_with("waymark-tunnel") || name.starts_with("waymark-gatewa");
        below(self.world.pid()).into_iter().filter(|(_, name)| proxy(name)).collect()
    }
}

fn print(
    samples: &BTreeMap<(usize, usize), Vec<Sample>>,
    memory: &BTreeMap<String, f64>,
) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<18} {:<26} {:>12} {:>8} {:>9} {:>9} {:>12} {:>7}",
        "load", "way", "per second", "ratio", "p50 us", "p99 us", "CPU us each", "failed"
    )?;
    for (load, (name, ..)) in LOADS.iter().enumerate() {
        let figure = |way: usize, of: fn(&Sample) -> f64| {
            median(samples.get(&(load, way)).into_iter().flatten().map(of).collect())
        };
        let base = figure(0, |s| s.rate);
        for (way, (_, passes)) in WAYS.iter().enumerate() {
            let rate = figure(way, |s| s.rate);
            writeln!(
                out,
                "{name:<18} {passes:<26} {rate:>12.0} {:>8.2} {:>9.0} {:>9.0} {:>12.1} {:>7.0}",
                rate / base.max(1e-9),
                figure(way, |s| s.p50),
                figure(way, |s| s.p99),
                figure(way, |s| s.cpu),
                samples.get(&(load, way)).into_iter().flatten().map(|s| s.failed).sum::<f64>(),
            )?;
        }
    }
    writeln!(out, "\nbulk counts megabytes. Resident memory after all loads:")?;
    for (name, mib) in memory {
        writeln!(out, "  {name:<18} {mib:.1} MiB")?;
    }
    Ok(())
}
