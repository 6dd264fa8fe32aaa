// SPDX-License-Identifier: Apache-2.0

//! `waymark up`: a whole mesh on this machine, made of the same programs as in a cluster.
//!
//! What is made, in which order: [`world`] makes fresh namespaces and an init in them;
//! its supervisor ([`supervise`]) makes the fabric and nodes ([`netns`]), starts the
//! controller and, on each node, tunnel and agent, then the pods that [`plan`] asks for;
//! [`vip`] gives Services their addresses, [`dns`] their names, [`relay`] lets the user in.
//!
//! How it is undone: nothing is. All of it belongs to the namespaces of the world, and the
//! kernel takes them away with their init, which dies with `waymark up`.

pub mod address;
pub mod dns;
pub mod enter;
pub mod manifest;
pub mod netns;
pub mod paths;
pub mod plan;
pub mod relay;
pub mod supervise;
pub mod vip;
pub mod world;

use std::ffi::OsString;
use std::path::PathBuf;

/// What the user asked for.
#[derive(clap::Args, Clone, Debug)]
pub struct UpOptions {
    /// Folder of Kubernetes YAML; edits take effect while it runs.
    pub folder: PathBuf,

    /// Port on localhost that leads to the first ingress Gateway; 0 takes any.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,

    /// Number of nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(address::MAX_NODES)))]
    pub nodes: u8,

    /// Give the address of a pod that is gone to the next pod of its node.
    #[arg(long)]
    pub reuse_addresses: bool,
}

impl UpOptions {
    /// The arguments that say the same to another process.
    fn to_args(&self) -> Vec<OsString> {
        let mut args = vec![
            self.folder.clone().into_os_string(),
            "--port".into(),
            self.port.to_string().into(),
            "--nodes".into(),
            self.nodes.to_string().into(),
        ];
        if self.reuse_addresses {
            args.push("--reuse-addresses".into());
        }
        args
    }
}

/// Why a world could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// Tools are missing; the text lists their packages.
    #[error("missing programs; run: apt-get install {0}")]
    Packages(String),

    /// A kernel setting forbids user namespaces.
    #[error(
        "this host forbids user namespaces ({name}={bad}); \
         run as root, or allow them: sudo sysctl -w {name}={good}"
    )]
    UserNamespaces {
        /// The setting.
        name: &'static str,
        /// Its value.
        bad: &'static str,
        /// A value that allows them.
        good: &'static str,
    },

    /// User namespaces are refused, and no setting says why.
    #[error(
        "this host refuses user namespaces to ordinary users, and no sysctl says why \
         (inside a container, its security profile does); run as root"
    )]
    NoUserNamespaces,

    /// The folder cannot be read.
    #[error("cannot read the folder {0:?}")]
    Folder(PathBuf, #[source] std::io::Error),

    /// The user's port is taken or forbidden.
    #[error("cannot listen on localhost:{port}; choose another with --port")]
    Listen {
        /// The port.
        port: u16,
        /// What the system answered.
        #[source]
        cause: std::io::Error,
    },

    /// The folder or the program would be hidden by the world's own `/run`.
    #[error("{0:?} lies below /run, which a world replaces; move it")]
    Hidden(PathBuf),

    /// Init was started outside a world.
    #[error("this verb is for the first process of a world; use `waymark up`")]
    NotInit,

    /// A process could not be started or watched.
    #[error("cannot start the world")]
    Launch(#[source] std::io::Error),

    /// A mount or folder of the world could not be made.
    #[error("cannot prepare the world's files")]
    Mount(#[source] std::io::Error),

    /// The network of the world could not be made.
    #[error("cannot make the world's network")]
    Network(#[from] netns::NetnsError),

    /// A key or token could not be made.
    #[error("cannot make keys: {0}")]
    Keys(String),
}

/// A runtime of one thread, as all parts of local mode use.
fn runtime() -> Result<tokio::runtime::Runtime, LocalError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LocalError::Launch)
}
