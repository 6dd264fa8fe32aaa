// SPDX-License-Identifier: Apache-2.0

//! Binary `waymark-bench`: figures as ratios taken in one run.
//!
//! Leaves the ways through tunnels and waypoints to [`mesh`], the gateway beside other
//! proxies and the time of an edit to [`edge`], the mesh of a cluster to [`cluster`], load to `waymark-load`, the world to
//! `waymark up`. A figure is the median of its rounds; CPU is user and system time of the
//! proxies' processes, so it does not depend on how busy the machine is.
//!
//! Start at [`main`].

use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser};

mod cluster;
mod edge;
mod figures;
mod mesh;

/// Measures Waymark.
#[derive(Debug, Parser)]
enum Arguments {
    /// The same load direct, through two tunnels, and through tunnel, waypoint, tunnel
    Mesh {
        /// Folder that the world runs
        folder: PathBuf,
        #[command(flatten)]
        length: Length,
    },
    /// The gateway beside nginx, haproxy and Envoy, and how soon an edited route is in force
    Edge {
        /// Folder that the world runs
        folder: PathBuf,
        /// Folder with the configurations of the other proxies
        #[arg(long)]
        peers: PathBuf,
        /// Envoy's program; without it Envoy is left out
        #[arg(long)]
        envoy: Option<PathBuf>,
        /// How often the route is edited
        #[arg(long, default_value_t = 100)]
        edits: usize,
        #[command(flatten)]
        length: Length,
    },
    /// The mesh of a cluster, from inside its world: how soon it follows, and what it costs
    Cluster {
        #[command(flatten)]
        size: cluster::Size,
    },
}

/// How long to measure.
#[derive(Clone, Copy, Debug, Args)]
struct Length {
    /// Rounds over all ways; odd numbers give a clear median
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of one measurement, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse() {
        Arguments::Mesh { folder, length } => mesh::run(&folder, length),
        Arguments::Edge { folder, peers, envoy, edits, length } => {
            edge::run(&folder, &edge::Peers { folder: peers, envoy }, edits, length)
        }
        Arguments::Cluster { size } => cluster::run(&size),
    }
}

fn progress(text: &str) {
    drop(writeln!(std::io::stderr(), "{text}"));
}
