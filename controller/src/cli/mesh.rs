// SPDX-License-Identifier: Apache-2.0

//! Which mesh a reading verb asks: a world on this machine, or that of a cluster.
//!
//! Keeps: what is named wins. Else a world that runs here, and then it is said that a
//! cluster could have been asked; else the cluster of the kubeconfig.
//!
//! Start at [`Mesh::find`].

use serde_json::Value;

use super::cluster::{Cluster, ClusterArgs};
use super::world::{World, WorldArgs};
use super::{Failure, complain};
use crate::install::NAMESPACE;

/// Which mesh is meant.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct MeshArgs {
    #[command(flatten)]
    world: WorldArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Namespace of the mesh's own parts, in a cluster.
    #[arg(short = 'i', long, global = true, value_name = "NAMESPACE", default_value = NAMESPACE)]
    istio_namespace: String,
}

/// A mesh that can be asked.
#[derive(Debug)]
pub(super) enum Mesh {
    /// On this machine.
    World(World),
    /// In a cluster.
    Cluster(Box<Cluster>),
}

impl Mesh {
    /// The mesh that `args` means.
    pub(super) fn find(args: &MeshArgs) -> Result<Self, Failure> {
        if args.cluster.named() && args.world.named() {
            let message = "--world means this machine, --context and --kubeconfig a cluster";
            return Err(Failure { message: message.to_owned(), code: 2 });
        }
        let worlds = if args.cluster.named() { Vec::new() } else { World::all() };
        if args.world.named() || !worlds.is_empty() {
            let world = World::find(&args.world)?;
            if !args.world.named() && args.cluster.configured() {
                complain(&format!(
                    "asking the world of {}; to ask the cluster, say --context NAME",
                    world.folder.display()
                ));
            }
            return Ok(Self::World(world));
        }
        if args.cluster.configured() {
            let cluster = Cluster::find(&args.cluster, &args.istio_namespace)?;
            return Ok(Self::Cluster(Box::new(cluster)));
        }
        let message = "nothing to ask: no world runs here (start one: waymark up FOLDER), and no \
            cluster is configured (set KUBECONFIG or say --kubeconfig FILE)";
        Err(Failure { message: message.to_owned(), code: 3 })
    }

    /// What the controller answers at `path`.
    pub(super) fn ask(&self, path: &str) -> Result<Value, Failure> {
        match self {
            Self::World(world) => world.ask_controller(path),
            Self::Cluster(cluster) => cluster.ask(path),
        }
    }

    /// What each controller answers at `path`.
    pub(super) fn ask_all(&self, path: &str) -> Result<Vec<Value>, Failure> {
        match self {
            Self::World(world) => Ok(vec![world.ask_controller(path)?]),
            Self::Cluster(cluster) => cluster.ask_all(path),
        }
    }

    /// Which it is, for people.
    pub(super) fn name(&self) -> String {
        match self {
            Self::World(world) => world.folder.display().to_string(),
            Self::Cluster(cluster) => cluster.name.clone(),
        }
    }
}
