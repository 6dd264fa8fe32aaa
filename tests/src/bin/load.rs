// SPDX-License-Identifier: Apache-2.0

//! Binary `waymark-load`: the harness's servers and generators as a process, to be
//! started inside a namespace. Reports are one line of JSON.

use std::io::Write as _;
use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::net::TcpListener;
use waymark_tests::load::serve::Talk;
use waymark_tests::load::tcp::Shape;
use waymark_tests::load::{Until, http, serve, tcp};

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve HTTP on all addresses.
    ServeHttp {
        /// Port to listen on.
        port: u16,
        /// What the answers say they come from.
        #[arg(long, default_value = "server")]
        name: String,
        /// Bytes of each answer.
        #[arg(long, default_value_t = 1024)]
        size: usize,
    },
    /// Serve raw TCP on all addresses.
    ServeTcp {
        /// Port to listen on.
        port: u16,
        /// What to do with a connection.
        #[arg(long, default_value = "exchange")]
        talk: TalkName,
    },
    /// Send HTTP requests.
    Http {
        /// Where to connect: `address:port` or `name:port`.
        address: String,
        /// `Host` header.
        #[arg(long, default_value = "load")]
        host: String,
        /// Path and query.
        #[arg(long, default_value = "/")]
        path: String,
        /// Clients at once.
        #[arg(long, default_value_t = 1)]
        clients: usize,
        /// A new connection for each request.
        #[arg(long)]
        fresh: bool,
        /// Look the name up anew for each connection.
        #[arg(long)]
        look_up: bool,
        /// Requests each second, over all clients.
        #[arg(long)]
        rate: Option<u32>,
        /// Length of the run.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
        /// Response header to count answers by.
        #[arg(long)]
        count_by: Option<String>,
    },
    /// Send raw TCP.
    Tcp {
        /// Where to connect: `address:port` or `name:port`.
        address: String,
        /// What the connections do.
        #[arg(long, default_value = "exchange")]
        shape: ShapeName,
        /// Connections at once.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Bytes of each message.
        #[arg(long, default_value_t = 128)]
        size: usize,
        /// Length of the run.
        #[arg(long, default_value_t = 5.0)]
        seconds: f64,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum TalkName {
    Echo,
    Exchange,
    SpeakFirst,
    Swallow,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ShapeName {
    Exchange,
    Connect,
    Bulk,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let report = match Arguments::parse().verb {
        Verb::ServeHttp { port, name, size } => {
            tokio::select! {
                () = serve::http(listener(port).await?, name, size) => {}
                // The first process of a container gets no default action of a signal.
                () = terminated() => {}
            }
            return Ok(());
        }
        Verb::ServeTcp { port, talk } => {
            let talk = match talk {
                TalkName::Echo => Talk::Echo,
                TalkName::Exchange => Talk::Exchange,
                TalkName::SpeakFirst => Talk::SpeakFirst,
                TalkName::Swallow => Talk::Swallow,
            };
            tokio::select! {
                () = serve::tcp(listener(port).await?, talk) => {}
                () = terminated() => {}
            }
            return Ok(());
        }
        Verb::Http { address, host, path, clients, fresh, look_up, rate, seconds, count_by } => {
            let mut load = http::Load::get(resolve(&address).await?, &host, &path);
            load.name = look_up.then_some(address);
            (load.clients, load.fresh, load.rate, load.count_by) = (clients, fresh, rate, count_by);
            http::run(&load, &until(seconds)).await
        }
        Verb::Tcp { address, shape, connections, size, seconds } => {
            let shape = match shape {
                ShapeName::Exchange => Shape::Exchange,
                ShapeName::Connect => Shape::Connect,
                ShapeName::Bulk => Shape::Bulk,
            };
            tcp::run(resolve(&address).await?, shape, connections, size, &until(seconds)).await
        }
    };
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

/// Ends the run after `seconds`, or when the process is asked to end: a run that is
/// stopped still reports.
fn until(seconds: f64) -> Until {
    let until = Until::after(Duration::from_secs_f64(seconds.clamp(0.0, 3600.0)));
    let stop = until.clone();
    tokio::spawn(async move {
        terminated().await;
        stop.stop();
    });
    until
}

/// Waits until the process is asked to end; for ever when that cannot be told.
async fn terminated() {
    let kind = tokio::signal::unix::SignalKind::terminate();
    match tokio::signal::unix::signal(kind) {
        Ok(mut terminate) => drop(terminate.recv().await),
        Err(_) => std::future::pending().await,
    }
}

/// The first address behind `target`.
async fn resolve(target: &str) -> anyhow::Result<SocketAddr> {
    let found = tokio::net::lookup_host(target).await?.next();
    found.ok_or_else(|| anyhow::anyhow!("{target} has no address"))
}

async fn listener(port: u16) -> anyhow::Result<TcpListener> {
    Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await?)
}
