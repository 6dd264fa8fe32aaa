// SPDX-License-Identifier: Apache-2.0

//! `waymark images`: container images from the programs beside this one.
//!
//! Owns: which files each image holds, and the form of an OCI archive of one layer. Programs
//! bring the libraries that they are linked with, nothing else; the agent's image has `nft` and
//! `ss` of this machine, too, and those that call servers outside the roots it trusts.
//!
//! Rule: OCI image layout 1.0 and image manifest 1.0; the name is where containerd looks for it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::{Failure, complain, out};
use crate::install::{HUB, TAG};

/// Arguments of `waymark images`.
#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// Directory that takes the archives.
    #[arg(long, short, default_value = ".")]
    output: PathBuf,
    /// Registry and path that the names begin with.
    #[arg(long, default_value = HUB)]
    registry: String,
    /// Tag of the images.
    #[arg(long, default_value = TAG)]
    tag: String,
}

/// One image.
struct Image {
    name: &'static str,
    /// Programs of ours; the first is the entry point.
    own: &'static [&'static str],
    /// Programs of this machine, by name.
    tools: &'static [&'static str],
    /// It calls servers outside: it has the roots that this machine trusts.
    roots: bool,
}

const IMAGES: [Image; 4] = [
    // `waymark` is what Helm's hook runs before it deletes anything.
    Image { name: "controller", own: &["waymark-controller", "waymark"], tools: &[], roots: true },
    Image { name: "gateway", own: &["waymark-gateway"], tools: &[], roots: true },
    Image { name: "tunnel", own: &["waymark-tunnel"], tools: &[], roots: false },
    Image { name: "agent", own: &["waymark-agent", PLUGIN], tools: &["nft", "ss"], roots: false },
];
/// The program that nodes run outside any image.
const PLUGIN: &str = "waymark-cni";
/// Where our programs lie in an image.
const PROGRAMS: &str = "usr/local/bin";
/// Where programs of this machine are.
const TOOLS: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Where a machine keeps the roots it trusts; in an image they are at the first of these.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
/// Where programs are looked for in an image.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
enum ImageError {
    #[error("cannot read or write {0}")]
    File(PathBuf, #[source] io::Error),
    #[error("libraries of {0} cannot be found with ldd")]
    Libraries(PathBuf, #[source] io::Error),
    #[error("program {0} is linked with {1}, which is not on this machine")]
    Lacks(PathBuf, String),
}

/// Writes all images and prints the name of each archive.
pub(super) fn images(args: &ImagesArgs) -> Result<ExitCode, Failure> {
    let own = std::env::current_exe().map_err(Failure::from_error)?;
    let beside = own.parent().unwrap_or(Path::new(".")).to_owned();
    std::fs::create_dir_all(&args.output).map_err(Failure::from_error)?;
    let needs = libraries(&beside.join(PLUGIN)).map_err(Failure::from_error)?;
    if !needs.is_empty() {
        complain(&format!(
            "{PLUGIN} runs on the node and needs the C library of this machine there, or a newer \
             one; to need none: cargo rustc --release -p waymark-tunnel --bin {PLUGIN} -- \
             -C target-feature=+crt-static"
        ));
    }
    for image in &IMAGES {
        let archive = args.output.join(format!("waymark-{}.tar", image.name));
        let reference = format!("{}/{}:{}", args.registry, image.name, args.tag);
        write(image, &beside, &archive, &reference).map_err(Failure::from_error)?;
        out(&format!("{} {reference}\n", archive.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn at(path: &Path) -> impl Fn(io::Error) -> ImageError {
    let path = path.to_owned();
    move |error| ImageError::File(path.clone(), error)
}

fn write(image: &Image, beside: &Path, archive: &Path, reference: &str) -> Result<(), ImageError> {
    let layer_file = archive.with_extension("layer");
    let layer = layer(image, beside, &layer_file)?;
    let entry = image.own.first().map(|name| format!("/{PROGRAMS}/{name}"));
    let config = json!({
        "architecture": architecture(), "os": "linux",
        "config": {"Entrypoint": [entry], "Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
    });
    let config = Blob::of(config.to_string().into_bytes());
    let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": oci("manifest.v1+json"),
        "config": config.descriptor(&oci("config.v1+json")),
        "layers": [layer.descriptor(&oci("layer.v1.tar"))],
    });
    let manifest = Blob::of(manifest.to_string().into_bytes());
    let mut listed = manifest.descriptor(&oci("manifest.v1+json"));
    if let Some(fields) = listed.as_object_mut() {
        let platform = json!({"architecture": architecture(), "os": "linux"});
        let tag = reference.rsplit(':').next().unwrap_or_default();
        let names = json!({
            "io.containerd.image.name": reference, "org.opencontainers.image.ref.name": tag,
        });
        fields.insert("platform".to_owned(), platform);
        fields.insert("annotations".to_owned(), names);
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": oci("index.v1+json"), "manifests": [listed],
    });
    let written = (|| {
        let mut all = Builder::new(File::create(archive)?);
        add(&mut all, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add(&mut all, "index.json", index.to_string().as_bytes())?;
        for blob in [&config, &manifest] {
            add(&mut all, &format!("blobs/sha256/{}", blob.sum), &blob.bytes)?;
        }
        let mut file = File::open(&layer_file)?;
        all.append_file(format!("blobs/sha256/{}", layer.sum), &mut file)?;
        all.into_inner()?.flush()
    })();
    written.map_err(at(archive))?;
    std::fs::remove_file(&layer_file).map_err(at(&layer_file))
}

/// A part of an image, by digest.
struct Blob {
    sum: String,
    size: u64,
    /// The content, unless it lies in a file.
    bytes: Vec<u8>,
}

impl Blob {
    fn of(bytes: Vec<u8>) -> Self {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { sum: hex(&Sha256::digest(&bytes)), size, bytes }
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.sum)
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest(), "size": self.size})
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn add(to: &mut Builder<File>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
    header.set_mode(0o644);
    to.append_data(&mut header, name, content)
}

/// Writes the layer into `file`: the same programs give the same bytes.
fn layer(image: &Image, beside: &Path, file: &Path) -> Result<Blob, ImageError> {
    let mut files: BTreeSet<(PathBuf, PathBuf)> = BTreeSet::new();
    let own = image.own.iter().map(|name| (beside.join(name), Path::new(PROGRAMS).join(name)));
    let tools = image.tools.iter().map(|name| {
        let places = TOOLS.map(|place| Path::new(place).join(name));
        let found = places.iter().find(|path| path.exists()).or(places.first());
        let path = found.cloned().unwrap_or_default();
        let inside = path.strip_prefix("/").unwrap_or(&path).to_owned();
        (path, inside)
    });
    for (program, inside) in own.chain(tools) {
        for library in libraries(&program)? {
            let inside = library.strip_prefix("/").unwrap_or(&library).to_owned();
            files.insert((inside, library));
        }
        files.insert((inside, program));
    }
    let known = ROOTS.map(Path::new).into_iter().find(|path| path.exists());
    if let (true, Some(known)) = (image.roots, known) {
        let [inside, ..] = ROOTS;
        files.insert((inside.trim_start_matches('/').into(), known.to_owned()));
    }
    let users = "root:x:0:0:root:/:/bin/false\nwaymark:x:1337:1337:waymark:/:/bin/false\n";
    let written = (|| {
        let mut layer = Builder::new(File::create(file)?);
        add(&mut layer, "etc/passwd", users.as_bytes())?;
        let mut folder = Header::new_gnu();
        folder.set_entry_type(tar::EntryType::Directory);
        folder.set_mode(0o1777);
        folder.set_size(0);
        layer.append_data(&mut folder, "tmp/", io::empty())?;
        for (inside, source) in &files {
            let mut source = File::open(source)?;
            let mut header = Header::new_gnu();
            header.set_size(source.metadata()?.len());
            header.set_mode(0o755);
            layer.append_data(&mut header, inside, &mut source)?;
        }
        layer.into_inner()?.flush()
    })();
    written.map_err(at(file))?;
    digest(file).map_err(at(file))
}

fn digest(path: &Path) -> io::Result<Blob> {
    let mut file = File::open(path)?;
    let (mut hash, mut buffer, mut size) = (Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        hash.update(chunk);
        size += u64::try_from(read).unwrap_or(0);
    }
    Ok(Blob { sum: hex(&hash.finalize()), size, bytes: Vec::new() })
}

/// The libraries that a program is linked with; none for a static one.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, ImageError> {
    if !program.exists() {
        return Err(at(program)(io::ErrorKind::NotFound.into()));
    }
    let output = Command::new("ldd").arg(program).output();
    let output = output.map_err(|error| ImageError::Libraries(program.to_owned(), error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    named(&text).map_err(|lacks| ImageError::Lacks(program.to_owned(), lacks))
}

/// The files that `ldd` names, or the one that it does not find.
fn named(text: &str) -> Result<Vec<PathBuf>, String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some((name, "not found")) = line.split_once(" => ") {
            return Err(name.to_owned());
        }
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        found.extend(path.map(PathBuf::from));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_names() {
        let text = "\tlinux-vdso.so.1 (0x00007fe04fc83000)\n\
            \tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007fe04af00000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007fe04fc85000)\n";
        let want = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(named(text), Ok(want.map(PathBuf::from).into()));
        assert_eq!(named("\tnot a dynamic executable\n"), Ok(Vec::new()));
        assert_eq!(named("\tlibx.so.1 => not found\n"), Err("libx.so.1".to_owned()));
    }

    #[test]
    fn an_archive_holds_what_its_index_names() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("waymark-gateway");
        std::fs::copy("/bin/true", &program).unwrap();
        let archive = folder.path().join("gateway.tar");
        let image = IMAGES.iter().find(|image| image.name == "gateway").unwrap();
        write(image, folder.path(), &archive, "registry.example/w/gateway:1").unwrap();
        let mut entries = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(File::open(&archive).unwrap()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            entries.insert(entry.path().unwrap().display().to_string(), content);
        }
        let blob = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = entries[&format!("blobs/sha256/{digest}")].clone();
            assert_eq!(hex(&Sha256::digest(&content)), digest);
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let listed = &index["manifests"][0];
        assert_eq!(
            listed["annotations"]["io.containerd.image.name"],
            "registry.example/w/gateway:1"
        );
        let manifest: Value = serde_json::from_slice(&blob(listed)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/waymark-gateway");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = blob(&manifest["layers"][0]);
        let mut layer = tar::Archive::new(layer.as_slice());
        let names: Vec<_> = layer
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert!(names.contains(&"usr/local/bin/waymark-gateway".to_owned()), "{names:?}");
    }
}
