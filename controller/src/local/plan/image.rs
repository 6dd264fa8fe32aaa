// SPDX-License-Identifier: Apache-2.0

//! What to run for a container: its image, mapped to a command of this machine.
//!
//! Owns: the format of `local.yaml`, the rule of which image it means, and how a
//! container's own `command` and `args` fit in.
//!
//! Start at [`Images::launch`].

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::Container;
use serde::Deserialize;

/// Images that need no entry: programs of this project.
const OWN: [(&str, &str); 3] = [
    ("waymark/gateway", "waymark-gateway"),
    ("waymark/tunnel", "waymark-tunnel"),
    ("waymark/agent", "waymark-agent"),
];

/// The file `local.yaml`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// By image name, with or without tag.
    #[serde(default)]
    images: BTreeMap<String, Image>,
}

/// What stands for one image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Program and arguments, as an image's entry point.
    command: Vec<String>,
    /// Variables that the image would set; the container's own win.
    #[serde(default)]
    env: BTreeMap<String, String>,
}

/// A command that is ready to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Launch {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Variables of the image.
    pub env: BTreeMap<String, String>,
}

/// Why there is nothing to run for a container.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// No entry and no command.
    #[error("image {0:?} stands for no command; add it to images in local.yaml")]
    Unmapped(String),

    /// The entry has an empty command.
    #[error("image {0:?} has an empty command in local.yaml")]
    Empty(String),
}

impl Images {
    /// Reads the text of `local.yaml`.
    ///
    /// # Errors
    ///
    /// Line and message of what is wrong.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| crate::local::manifest::yaml_error(&error))
    }

    /// What to run for `container`; programs named without a slash are looked for in `beside` first.
    ///
    /// As in Kubernetes, the container's `command` takes the place of the image's, and its
    /// `args` follow.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn launch(&self, container: &Container, beside: &Path) -> Result<Launch, ImageError> {
        let name = container.image.as_deref().unwrap_or_default();
        let mapped = self.find(name);
        let mut command = match container.command.as_deref().unwrap_or_default() {
            [] => match &mapped {
                Some(image) if image.command.is_empty() => {
                    return Err(ImageError::Empty(name.to_owned()));
                }
                Some(image) => image.command.clone(),
                None => return Err(ImageError::Unmapped(name.to_owned())),
            },
            own => own.to_vec(),
        };
        command.extend(container.args.iter().flatten().cloned());
        if let Some(program) = command.first_mut().filter(|program| !program.contains('/')) {
            let neighbour = beside.join(&*program);
            if neighbour.is_file() {
                *program = neighbour.display().to_string();
            }
        }
        Ok(Launch { command, env: mapped.map(|image| image.env).unwrap_or_default() })
    }

    /// The entry of an image: as written, else without digest, else without tag.
    fn find(&self, image: &str) -> Option<Image> {
        let no_digest = image.split_once('@').map_or(image, |(name, _)| name);
        let no_tag = match no_digest.rsplit_once(':') {
            // A colon before the last slash is a registry's port.
            Some((name, tag)) if !tag.contains('/') => name,
            _ => no_digest,
        };
        let listed = [image, no_digest, no_tag].iter().find_map(|name| self.images.get(*name));
        listed.cloned().or_else(|| {
            let (_, program) = OWN.iter().find(|(name, _)| *name == no_tag)?;
            Some(Image { command: vec![(*program).to_owned()], env: BTreeMap::new() })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "images:\n  reg:5000/a/web: {command: [web, --x], env: {A: '1'}}\n  b:2: {command: [/bin/two]}\n  c: {command: []}\n";

    #[test]
    fn a_container_runs_what_its_image_stands_for() {
        let images = Images::parse(FILE).unwrap();
        let none: &[&str] = &[];
        type Row<'a> = (&'a str, &'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>);
        let cases: [Row<'_>; 9] = [
            ("reg:5000/a/web", none, none, Some(&["web", "--x"])),
            ("reg:5000/a/web:1.2", none, none, Some(&["web", "--x"])),
            ("reg:5000/a/web:1.2@sha256:00", none, &["y"], Some(&["web", "--x", "y"])),
            ("reg:5000/a/web", &["sh"], &["-c"], Some(&["sh", "-c"])),
            ("b:2", none, none, Some(&["/bin/two"])),
            ("b:3", none, none, None),
            ("c", none, none, None),
            ("curl", &["sleep", "9"], none, Some(&["sleep", "9"])),
            ("waymark/gateway:0.1.0", none, none, Some(&["waymark-gateway"])),
        ];
        for (image, command, args, want) in cases {
            let texts = |texts: &[&str]| Some(texts.iter().map(ToString::to_string).collect());
            let container = Container {
                image: Some(image.into()),
                command: texts(command),
                args: texts(args),
                ..Container::default()
            };
            let have =
                images.launch(&container, Path::new("/nowhere")).ok().map(|launch| launch.command);
            let want = want.map(|want| want.iter().map(ToString::to_string).collect::<Vec<_>>());
            assert_eq!(have, want, "{image} {command:?} {args:?}");
        }
    }

    #[test]
    fn a_program_beside_ours_is_preferred() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("web"), "").unwrap();
        let images = Images::parse(FILE).unwrap();
        let container = Container { image: Some("reg:5000/a/web".into()), ..Container::default() };
        let launch = images.launch(&container, folder.path()).unwrap();
        assert_eq!(launch.command[0], folder.path().join("web").display().to_string());
        assert_eq!(launch.env["A"], "1");
    }

    #[test]
    fn a_misspelt_field_is_refused_with_its_line() {
        let (line, message) = Images::parse("images:\n  a:\n    comand: [x]\n").unwrap_err();
        assert!(line >= 2 && message.contains("comand"), "{line}: {message}");
        assert_eq!(Images::parse("# nothing\n"), Ok(Images::default()));
    }
}
