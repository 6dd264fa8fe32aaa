// SPDX-License-Identifier: Apache-2.0

//! `waymark manifest`: prints the objects of an installation.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::{Failure, out};
use crate::install::{self, NAMESPACE, crds};

/// What an installation is made of.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// Namespace of the parts.
    #[arg(long, short, default_value = NAMESPACE)]
    pub(super) namespace: String,
    /// A file with values of the chart, YAML as for Helm; a later one goes over it.
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A value of the chart, as PATH=VALUE; it goes over those of files.
    #[arg(long = "set", value_name = "PATH=VALUE")]
    sets: Vec<String>,
}

impl Chosen {
    /// The objects, in order.
    pub(super) fn objects(&self) -> Result<Vec<Value>, Failure> {
        install::objects(&self.namespace, &self.sets()?).map_err(Failure::from_error)
    }

    /// The values that are set, each as `path=value`, the last over the first.
    pub(super) fn sets(&self) -> Result<Vec<String>, Failure> {
        let mut sets = Vec::new();
        for file in &self.files {
            let wrong = |message: String| {
                let message = format!("{}: {message}", file.display());
                Failure { message, code: 1 }
            };
            let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            sets.extend(install::sets_of_file(&text).map_err(|error| wrong(error.to_string()))?);
        }
        sets.extend(self.sets.iter().cloned());
        Ok(sets)
    }
}

/// Arguments of `waymark manifest`.
#[derive(Debug, Args)]
pub(super) struct ManifestArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Only the definitions of Istio's kinds.
    #[arg(long)]
    crds: bool,
}

/// Prints the objects as YAML.
pub(super) fn manifest(args: &ManifestArgs) -> Result<ExitCode, Failure> {
    let objects = if args.crds { crds::all() } else { args.chosen.objects()? };
    let mut texts = Vec::new();
    for object in &objects {
        texts.push(serde_saphyr::to_string(object).map_err(Failure::from_error)?);
    }
    out(&texts.join("---\n"));
    Ok(ExitCode::SUCCESS)
}
