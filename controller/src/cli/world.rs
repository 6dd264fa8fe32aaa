// SPDX-License-Identifier: Apache-2.0

//! Finding a running world from outside, and asking it.
//!
//! Owns: the look through `/proc` for the init of a world, the choice among several, HTTP
//! over the Unix sockets inside, reading the objects that the supervisor wrote.
//!
//! Start at [`World::find`].

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use http::Method;
use serde_json::Value;
use tokio::net::UnixStream;

use super::Failure;
use super::ask::{Answer, exchange};
use super::cluster::runtime;
use crate::local::paths;

/// Exit code when there is no world to ask.
const NOTHING_RUNS: u8 = 3;

/// Which world is meant.
#[derive(clap::Args, Clone, Debug, Default)]
pub(super) struct WorldArgs {
    /// Folder of the world to ask, when several run.
    #[arg(long, global = true, value_name = "FOLDER")]
    world: Option<PathBuf>,
}

/// A world that runs.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// Process id of its init, as seen from here.
    pub(super) init: i32,
    /// Its folder.
    pub(super) folder: PathBuf,
}

impl WorldArgs {
    /// Whether a world is asked for in so many words.
    pub(super) fn named(&self) -> bool {
        self.world.is_some()
    }
}

impl World {
    /// The world that `args` means: the only one that runs, or the one of that folder.
    pub(super) fn find(args: &WorldArgs) -> Result<Self, Failure> {
        let wanted = args
            .world
            .as_ref()
            .map(|folder| std::fs::canonicalize(folder).unwrap_or_else(|_| folder.clone()));
        let mut found = Self::all();
        if let Some(folder) = &wanted {
            found.retain(|world| world.folder == *folder);
        }
        match found.len() {
            1 => found.pop().ok_or_else(none_runs),
            0 => Err(none_runs()),
            _ => {
                let folders: Vec<String> =
                    found.iter().map(|world| world.folder.display().to_string()).collect();
                Err(Failure {
                    message: format!(
                        "several worlds run; choose with --world: {}",
                        folders.join(", ")
                    ),
                    code: 1,
                })
            }
        }
    }

    /// All worlds that this user may enter.
    pub(super) fn all() -> Vec<Self> {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::of(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// The world whose init is process `pid`, if it is one.
    fn of(pid: i32) -> Option<Self> {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let args: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let [program, b"world", folder, ..] = args.as_slice() else { return None };
        let named_so = Path::new(std::ffi::OsStr::from_bytes(program)).file_name()? == "waymark";
        let inside = paths::from_outside(pid, paths::ROOT).is_dir();
        let folder = PathBuf::from(std::ffi::OsStr::from_bytes(folder));
        (named_so && inside).then_some(Self { init: pid, folder })
    }

    /// A path of the world, as seen from here.
    pub(super) fn path(&self, path: &str) -> PathBuf {
        paths::from_outside(self.init, path)
    }

    /// Sends `method path` to the socket at `socket`, a path of the world.
    pub(super) fn ask(&self, socket: &str, method: Method, path: &str) -> Result<Answer, Failure> {
        let asked = async {
            let stream = UnixStream::connect(self.path(socket)).await?;
            exchange(stream, method, path).await
        };
        runtime()?.block_on(asked).map_err(|cause| Failure {
            message: format!("the world of {} does not answer: {cause}", self.folder.display()),
            code: NOTHING_RUNS,
        })
    }

    /// What its controller answers at `path`.
    pub(super) fn ask_controller(&self, path: &str) -> Result<Value, Failure> {
        self.ask(paths::CONTROLLER_SOCKET, Method::GET, path)?.json()
    }

    /// The objects of `kind` that the supervisor wrote, by file name.
    pub(super) fn runtime_objects(&self, kind: &str) -> Vec<Value> {
        let folder = self.path(paths::OBJECTS);
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        files.sort();
        let wanted = |path: &&PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(&format!("{kind}_"))
        };
        files
            .iter()
            .filter(wanted)
            .filter_map(|path| serde_json::from_slice(&std::fs::read(path).ok()?).ok())
            .collect()
    }

    /// The pod that `name` means, in `namespace` or in any.
    ///
    /// A name is a pod's own, or the beginning of one that no other pod has: so
    /// `productpage` finds `productpage-v1-...`. `deploy/NAME` and `pod/NAME` work too.
    pub(super) fn pod(&self, name: &str, namespace: Option<&str>) -> Result<Value, Failure> {
        let pods = self.runtime_objects("Pod");
        let name = name.rsplit('/').next().unwrap_or(name);
        let text = |pod: &Value, pointer: &str| {
            pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let here: Vec<&Value> = pods
            .iter()
            .filter(|pod| {
                namespace.is_none_or(|namespace| text(pod, "/metadata/namespace") == namespace)
            })
            .collect();
        let exact: Vec<&&Value> =
            here.iter().filter(|pod| text(pod, "/metadata/name") == name).collect();
        let likely: Vec<&&Value> =
            here.iter().filter(|pod| text(pod, "/metadata/name").starts_with(name)).collect();
        let found = if exact.is_empty() { likely } else { exact };
        let names: Vec<String> = found
            .iter()
            .map(|pod| {
                format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"))
            })
            .collect();
        match found.as_slice() {
            [one] => Ok((**one).clone()),
            [] => {
                Err(Failure { message: format!("no pod {name}; see: waymark get pods"), code: 1 })
            }
            _ => Err(Failure {
                message: format!("{name} may be any of {}", names.join(", ")),
                code: 1,
            }),
        }
    }
}

fn none_runs() -> Failure {
    Failure {
        message:
            "no world runs here; start one: waymark up FOLDER (pods of a cluster are kubectl's)"
                .to_owned(),
        code: NOTHING_RUNS,
    }
}
