// SPDX-License-Identifier: Apache-2.0

//! Where the mesh's own root is kept, with what a rotation has begun.
//!
//! Owns: the Secret of a cluster, the files of a world, and what each step changes in them.
//!
//! Keeps: a step is one change; broken off anywhere, the next call goes on.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::ca::authority::{self, Authority, Texts};
use crate::ca::{files, root, secret};
use crate::cli::Failure;
use crate::cli::cluster::Cluster;
use crate::cli::mesh::Mesh;
use crate::local::paths;

/// The next root and its key, while all learn to trust it.
const NEXT_CERT: &str = "next-ca-cert.pem";
const NEXT_KEY: &str = "next-ca-key.pem";
/// The root that signed before, while its last leaves are renewed.
const PREVIOUS: &str = "previous-ca-cert.pem";

/// How far a rotation is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Phase {
    /// None is under way.
    Settled,
    /// All learn to trust the next root.
    Trusting,
    /// The next root signs, the previous one is trusted still.
    Signing,
}

/// What is kept: PEM texts by name.
#[derive(Clone, Default, Eq, PartialEq)]
pub(super) struct Held {
    texts: BTreeMap<String, String>,
    /// What the Secret was read as, so that a change of somebody else is not lost.
    version: Option<String>,
}

impl Held {
    fn text(&self, name: &str) -> String {
        self.texts.get(name).cloned().unwrap_or_default()
    }

    fn has(&self, name: &str) -> bool {
        self.texts.get(name).is_some_and(|text| !text.is_empty())
    }

    /// All roots; an absent list means the one that signs.
    fn roots(&self) -> String {
        let listed = self.text(authority::ROOTS);
        if listed.trim().is_empty() { self.text(authority::CERT) } else { listed }
    }

    /// How far a rotation is.
    pub(super) fn phase(&self) -> Phase {
        if self.has(NEXT_CERT) && self.has(NEXT_KEY) {
            Phase::Trusting
        } else if self.has(PREVIOUS) {
            Phase::Signing
        } else {
            Phase::Settled
        }
    }

    fn with(&self, changes: &[(&str, String)]) -> Self {
        let mut next = self.clone();
        for (name, text) in changes {
            if text.is_empty() {
                next.texts.remove(*name);
            } else {
                next.texts.insert((*name).to_owned(), text.clone());
            }
        }
        next
    }

    /// The next root is trusted beside the others.
    pub(super) fn begin(&self, certificate: String, key: String) -> Self {
        let roots = format!("{}\n{certificate}", self.roots().trim_end());
        self.with(&[(authority::ROOTS, roots), (NEXT_CERT, certificate), (NEXT_KEY, key)])
    }

    /// The next root signs.
    pub(super) fn sign(&self) -> Self {
        let (old, next) = (self.text(authority::CERT), self.text(NEXT_CERT));
        // Broken off before, the key was exchanged already.
        let previous = if old.trim() == next.trim() { self.text(PREVIOUS) } else { old };
        self.with(&[
            (authority::ROOTS, self.roots()),
            (PREVIOUS, previous),
            (authority::CERT, next),
            (authority::KEY, self.text(NEXT_KEY)),
            (NEXT_CERT, String::new()),
            (NEXT_KEY, String::new()),
        ])
    }

    /// The previous root is trusted no more.
    pub(super) fn end(&self) -> Self {
        let roots = without(&self.roots(), &self.text(PREVIOUS));
        self.with(&[(authority::ROOTS, roots), (PREVIOUS, String::new())])
    }

    /// What the controllers are to have in force.
    pub(super) fn authority(&self) -> Result<Authority, Failure> {
        let texts = Texts {
            origin: String::new(),
            certificate: self.text(authority::CERT),
            key: self.text(authority::KEY),
            chain: self.text(authority::CHAIN),
            roots: self.roots(),
        };
        Authority::read(&texts).map_err(Failure::from_error)
    }
}

/// The certificates of `roots` but those of `out`, however their texts are laid out.
fn without(roots: &str, out: &str) -> String {
    let read = |text: &str| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(text.as_bytes()).flatten().collect()
    };
    let out = read(out);
    read(roots).iter().filter(|one| !out.contains(one)).map(authority::pem).collect()
}

/// Where it is kept.
pub(super) enum Keep<'a> {
    /// In the Secret of a cluster.
    Secret(&'a Cluster),
    /// In files of this directory.
    Files(PathBuf),
}

impl<'a> Keep<'a> {
    /// Where `mesh` keeps its root.
    pub(super) fn of(mesh: &'a Mesh) -> Result<Self, Failure> {
        match mesh {
            Mesh::World(world) => Ok(Self::Files(world.path(paths::CA))),
            Mesh::Cluster(cluster) => {
                if cluster.secret(secret::PLUGGED)?.is_none() {
                    return Ok(Self::Secret(cluster));
                }
                let message = format!(
                    "the authority is your own, Secret {}/{}; rotate its root by editing that \
                     Secret, in the steps of README",
                    cluster.namespace(),
                    secret::PLUGGED
                );
                Err(Failure { message, code: 1 })
            }
        }
    }

    /// What is kept now.
    pub(super) fn read(&self) -> Result<Held, Failure> {
        match self {
            Self::Secret(cluster) => Ok(of_secret(&own(cluster)?)),
            Self::Files(directory) => of_files(directory).map_err(Failure::from_error),
        }
    }

    /// Writes `held`; gives what is kept now.
    pub(super) fn write(&self, held: &Held) -> Result<Held, Failure> {
        match self {
            Self::Secret(cluster) => {
                let mut object = own(cluster)?;
                object.metadata.resource_version.clone_from(&held.version);
                let data = object.data.get_or_insert_default();
                for (name, _, _) in FILES.iter().chain([&(authority::CERT, "", false)]) {
                    let text = held.text(name);
                    if text.is_empty() {
                        data.remove(*name);
                    } else {
                        data.insert((*name).to_owned(), ByteString(text.into_bytes()));
                    }
                }
                Ok(of_secret(&cluster.replace_secret(secret::OWN, &object)?))
            }
            Self::Files(directory) => {
                to_files(directory, held).map_err(Failure::from_error)?;
                self.read()
            }
        }
    }
}

/// The authority that the controllers of `mesh` are to have in force, whoever wrote it.
pub(super) fn in_effect(mesh: &Mesh) -> Result<Held, Failure> {
    match mesh {
        Mesh::World(world) => of_files(&world.path(paths::CA)).map_err(Failure::from_error),
        Mesh::Cluster(cluster) => match cluster.secret(secret::PLUGGED)? {
            Some(plugged) => Ok(of_secret(&plugged)),
            None => Ok(of_secret(&own(cluster)?)),
        },
    }
}

fn own(cluster: &Cluster) -> Result<Secret, Failure> {
    cluster.secret(secret::OWN)?.ok_or_else(|| Failure {
        message: format!("there is no Secret {}/{}", cluster.namespace(), secret::OWN),
        code: 1,
    })
}

fn of_secret(object: &Secret) -> Held {
    let data = object.data.iter().flatten();
    let texts = data
        .filter_map(|(name, bytes)| Some((name.clone(), String::from_utf8(bytes.0.clone()).ok()?)));
    Held { texts: texts.collect(), version: object.metadata.resource_version.clone() }
}

/// What the parts are called in files: there the roots are a file of their own, and the key
/// tells which of them signs.
const FILES: [(&str, &str, bool); 5] = [
    (NEXT_KEY, "next-root-key.pem", true),
    (NEXT_CERT, "next-root-cert.pem", false),
    (PREVIOUS, "previous-root-cert.pem", false),
    (authority::ROOTS, root::CERT_FILE, false),
    (authority::KEY, root::KEY_FILE, true),
];

fn of_files(directory: &std::path::Path) -> std::io::Result<Held> {
    let mut texts = BTreeMap::new();
    for (name, file, _) in FILES {
        match std::fs::read_to_string(directory.join(file)) {
            Ok(text) => drop(texts.insert(name.to_owned(), text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    texts.insert(authority::CERT.to_owned(), root::read(directory)?.certificate);
    Ok(Held { texts, version: None })
}

fn to_files(directory: &std::path::Path, held: &Held) -> std::io::Result<()> {
    let now = of_files(directory)?;
    // What is new is written first, in the order of the table, which is that of the steps.
    for (name, file, is_secret) in FILES {
        let text = held.text(name);
        if !text.is_empty() && text != now.text(name) {
            files::replace(&directory.join(file), text.as_bytes(), is_secret)?;
        }
    }
    for (name, file, _) in FILES {
        if held.text(name).is_empty() && now.has(name) {
            std::fs::remove_file(directory.join(file))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(held: &Held) -> usize {
        held.authority().unwrap().roots.len()
    }

    #[test]
    fn the_steps_of_a_rotation_are_such_as_controllers_take() {
        let (certificate, key) = root::make("cluster.local").unwrap();
        let first = Held::default().with(&[(authority::CERT, certificate), (authority::KEY, key)]);
        let (next, next_key) = root::make("cluster.local").unwrap();
        let trusting = first.begin(next.clone(), next_key);
        let signing = trusting.sign();
        let ended = signing.end();
        let phases = [&first, &trusting, &signing, &ended].map(Held::phase);
        assert_eq!(phases, [Phase::Settled, Phase::Trusting, Phase::Signing, Phase::Settled]);
        assert_eq!([&first, &trusting, &signing, &ended].map(roots), [1, 2, 2, 1]);
        for (old, new) in [(&first, &trusting), (&trusting, &signing), (&signing, &ended)] {
            new.authority().unwrap().may_follow(&old.authority().unwrap()).unwrap();
        }
        assert_eq!(ended.text(authority::CERT), next);
        let spaced = signing.with(&[(PREVIOUS, format!("old:\n{}\n\n", signing.text(PREVIOUS)))]);
        assert_eq!(roots(&spaced.end()), 1, "texts may be laid out otherwise");
        assert_eq!(signing.authority().unwrap().signs(), ended.authority().unwrap().signs());
    }

    #[test]
    fn a_step_in_files_that_was_broken_off_is_done_again() {
        let directory = tempfile::tempdir().unwrap();
        let made = root::load_or_make(directory.path(), "cluster.local").unwrap();
        let keep = Keep::Files(directory.path().to_owned());
        let (next, next_key) = root::make("cluster.local").unwrap();
        let trusting = keep.write(&keep.read().unwrap().begin(next, next_key)).unwrap();
        assert_eq!((trusting.phase(), roots(&trusting)), (Phase::Trusting, 2));
        assert_eq!(trusting.authority().unwrap().signs(), made.signs());

        // The key was exchanged, and then the power went.
        let previous = trusting.text(authority::CERT);
        let at = |file: &str| directory.path().join(file);
        files::replace(&at("previous-root-cert.pem"), previous.as_bytes(), false).unwrap();
        let key = trusting.text(NEXT_KEY);
        files::replace(&at(root::KEY_FILE), key.as_bytes(), true).unwrap();
        let signing = keep.write(&keep.read().unwrap().sign()).unwrap();
        assert_eq!((signing.phase(), roots(&signing)), (Phase::Signing, 2));
        let ended = keep.write(&signing.end()).unwrap();
        assert_eq!((ended.phase(), roots(&ended)), (Phase::Settled, 1));
        assert_ne!(ended.authority().unwrap().signs(), made.signs());
        assert!(!at("next-root-key.pem").exists() && !at("previous-root-cert.pem").exists());
    }
}
