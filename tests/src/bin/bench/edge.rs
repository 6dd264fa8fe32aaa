// SPDX-License-Identifier: Apache-2.0

//! The ingress gateway beside nginx, haproxy and Envoy: same client, same server, same
//! network, one after the other in each round; and how soon an edited route is in force.
//!
//! Owns: the order of the rounds, the other proxies' processes, the tables. The gateway runs
//! with a route, a filter and a policy; the others pass on what they get.
//!
//! Start at [`run`].

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use waymark_tests::load::Report;
use waymark_tests::world::World;

use crate::figures::{cpu_of, median, quantile, resident};
use crate::{Length, progress};

/// How long a proxy may take to start, and an edit to be in force.
const SOON: Duration = Duration::from_secs(10);

/// Clients at once.
const CLIENTS: &str = "16";

/// Where the other proxies and their configurations are.
#[derive(Debug)]
pub(crate) struct Peers {
    /// Folder of configurations.
    pub(crate) folder: PathBuf,
    /// Envoy's program.
    pub(crate) envoy: Option<PathBuf>,
}

/// One proxy: its name, where the client calls it, its process.
struct Proxy {
    name: &'static str,
    address: &'static str,
    pid: u32,
    /// The command that holds it, if it is not the world's own, and its scratch folder.
    held: Option<(Child, TempDir)>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some((child, _)) = &mut self.held {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Measures, and prints both tables.
///
/// # Errors
///
/// When the world or a proxy that is installed does not start, or a load cannot be run.
pub(crate) fn run(
    folder: &Path,
    peers: &Peers,
    edits: usize,
    length: Length,
) -> anyhow::Result<()> {
    let world = World::start(folder, &[])?;
    let proxies = start_all(&world, peers)?;
    let client = world.pod("edge", "client-")?;
    // rate, p99 in microseconds, CPU microseconds for each request
    let mut samples: BTreeMap<&str, Vec<[f64; 4]>> = BTreeMap::new();
    for round in 0..length.rounds.max(1) {
        for proxy in &proxies {
            let sample = measure(&world, &client, proxy, length.seconds)?;
            samples.entry(proxy.name).or_default().push(sample);
        }
        progress(&format!("round {} of {} done", round + 1, length.rounds.max(1)));
    }
    print(&proxies, &samples)?;
    drop(proxies);
    let waits = follow_edits(&world, edits)?;
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{} edits of a route, from the write to the first answer by it: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        waits.len(),
        quantile(waits.clone(), 0.5),
        quantile(waits.clone(), 0.99),
        quantile(waits, 1.0)
    )?;
    Ok(())
}

fn start_all(world: &World, peers: &Peers) -> anyhow::Result<Vec<Proxy>> {
    let own = waymark_tests::world::below(world.pid());
    let (pid, _) = own
        .into_iter()
        .find(|(_, name)| name.starts_with("waymark-gatewa"))
        .context("the world runs no gateway")?;
    let mut all =
        vec![Proxy { name: "waymark-gateway", address: "waymark.edge:80", pid, held: None }];
    let file = |name: &str| -> anyhow::Result<String> {
        let path = peers.folder.join(name).canonicalize()?;
        Ok(path.to_string_lossy().into_owned())
    };
    let nginx = vec!["nginx".to_owned(), "-c".to_owned(), file("nginx.conf")?];
    all.extend(start(world, "nginx", "nginx.edge:8080", nginx, Some("-p"))?);
    let haproxy =
        vec!["haproxy".to_owned(), "-db".to_owned(), "-f".to_owned(), file("haproxy.cfg")?];
    all.extend(start(world, "haproxy", "haproxy.edge:8080", haproxy, None)?);
    if let Some(envoy) = &peers.envoy {
        let program = envoy.canonicalize()?.to_string_lossy().into_owned();
        let flags = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "-c"];
        let mut envoy: Vec<String> =
            std::iter::once(program).chain(flags.map(str::to_owned)).collect();
        envoy.push(file("envoy.yaml")?);
        all.extend(start(world, "envoy", "envoy.edge:8080", envoy, None)?);
    }
    for proxy in &all {
        pin(proxy.pid)?;
    }
    Ok(all)
}

/// Starts a proxy in its pod; none if it is not installed here.
fn start(
    world: &World,
    name: &'static str,
    address: &'static str,
    mut command: Vec<String>,
    scratch: Option<&str>,
) -> anyhow::Result<Option<Proxy>> {
    let folder = TempDir::new()?;
    if let Some(flag) = scratch {
        command.extend([flag.to_owned(), folder.path().to_string_lossy().into_owned()]);
    }
    let program = command.first().cloned().unwrap_or_default();
    let found = std::process::Command::new("sh")
        .args(["-c", "command -v \"$0\"", &program])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()?;
    if !found.status.success() {
        progress(&format!("{name} is not installed here and left out"));
        return Ok(None);
    }
    let program = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let pod = world.pod("edge", &format!("{name}-"))?;
    let mut line = vec!["exec", "-n", "edge", &pod, "--", &program];
    line.extend(command.iter().skip(1).map(String::as_str));
    let known = named(name);
    let mut child = world.command(&line).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    let pid = loop {
        if let Some(pid) = named(name).into_iter().find(|pid| !known.contains(pid)) {
            break pid;
        }
        if let Some(status) = child.try_wait()? {
            bail!("{name} ended: {status}");
        }
        if began.elapsed() > SOON {
            bail!("{name} does not start");
        }
        std::thread::yield_now();
    };
    Ok(Some(Proxy { name, address, pid, held: Some((child, folder)) }))
}

/// Processes that run the program `name`.
fn named(name: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid: &u32| {
        let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim() == name
    })
    .collect()
}

/// All threads of a proxy on the last core; what loads it stays off that.
fn pin(pid: u32) -> anyhow::Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let status = std::process::Command::new("taskset")
        .args(["-acp", &last.to_string(), &pid.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if status.success() { Ok(()) } else { bail!("taskset: {status}") }
}

fn measure(world: &World, client: &str, proxy: &Proxy, seconds: f64) -> anyhow::Result<[f64; 4]> {
    let program = world.programs().join("waymark-load");
    let (program, seconds) = (program.to_string_lossy(), seconds.to_string());
    let load = |seconds: &str| -> anyhow::Result<Report> {
        let line = [
            "exec",
            "-n",
            "edge",
            client,
            "--",
            "taskset",
            "-c",
            "0",
            &program,
            "http",
            proxy.address,
            "--clients",
            CLIENTS,
            "--seconds",
            seconds,
        ];
        let output = world.waymark(&line)?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{}: {}", proxy.name, String::from_utf8_lossy(&output.stderr)))
    };
    // Connections and caches are warm after that.
    load("0.3")?;
    let before = cpu_of(proxy.pid).unwrap_or(0.0);
    let report = load(&seconds)?;
    let cpu = cpu_of(proxy.pid).unwrap_or(0.0) - before;
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    let (good, failed, p99) =
        (report.good as f64, report.failures() as f64, report.micros[2] as f64);
    Ok([good / report.seconds, p99, cpu * 1e6 / good.max(1.0), failed])
}

fn print(proxies: &[Proxy], samples: &BTreeMap<&str, Vec<[f64; 4]>>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{:<16} {:>12} {:>9} {:>12} {:>12} {:>13} {:>7}",
        "proxy, one core",
        "per second",
        "p99 us",
        "CPU us each",
        "beside nginx",
        "resident MiB",
        "failed"
    )?;
    let figure = |name: &str, at: usize| {
        let values = samples.get(name).into_iter().flatten();
        median(values.filter_map(|sample| sample.get(at).copied()).collect())
    };
    let nginx = figure("nginx", 2);
    for proxy in proxies {
        let cpu = figure(proxy.name, 2);
        let ratio = if nginx > 0.0 { format!("{:.2}", cpu / nginx) } else { "-".to_owned() };
        let failed: f64 = samples.get(proxy.name).into_iter().flatten().map(|s| s[3]).sum();
        writeln!(
            out,
            "{:<16} {:>12.0} {:>9.0} {cpu:>12.1} {ratio:>12} {:>13.1} {failed:>7.0}",
            proxy.name,
            figure(proxy.name, 0),
            figure(proxy.name, 1),
            resident(proxy.pid),
        )?;
    }
    Ok(())
}

/// Edits the route again and again; milliseconds from each write to the first answer by it.
fn follow_edits(world: &World, edits: usize) -> anyhow::Result<Vec<f64>> {
    let text = world.read("route.yaml")?;
    let mut stream = BufReader::new(TcpStream::connect(world.door())?);
    stream.get_ref().set_nodelay(true)?;
    stream.get_ref().set_read_timeout(Some(SOON))?;
    let mut waits = Vec::new();
    for edit in 1..=edits {
        let edited = text.replace("value: \"0\"", &format!("value: \"{edit}\""));
        let began = Instant::now();
        world.write("route.yaml", &edited)?;
        while ask(&mut stream)? != edit.to_string() {
            if began.elapsed() > SOON {
                bail!("edit {edit} is not in force");
            }
        }
        waits.push(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(waits)
}

/// One GET by a kept-alive connection; the header that the route sets.
fn ask(stream: &mut BufReader<TcpStream>) -> anyhow::Result<String> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    answer(stream, "x-edit")
}

/// Reads one answer whole; the value of its header `header`, empty if there is none.
pub(crate) fn answer(stream: &mut BufReader<TcpStream>, header: &str) -> anyhow::Result<String> {
    let (mut mark, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            bail!("the gateway closed");
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            name if name == header => value.trim().clone_into(&mut mark),
            "content-length" => length = value.trim().parse()?,
            _ => {}
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(mark)
}
