// SPDX-License-Identifier: Apache-2.0

//! `waymark install`: the objects of an installation, in a cluster.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::manifest::Chosen;
use super::{Failure, complain};
use crate::install::cluster::{ClusterError, Target, name_of};

/// Arguments of `waymark install`.
#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    chosen: Chosen,
    /// Seconds that each part may take until it is ready; 0 does not wait.
    #[arg(long, default_value_t = 180)]
    wait: u64,
}

/// Applies everything and waits until it is ready.
pub(super) fn install(args: &InstallArgs) -> Result<ExitCode, Failure> {
    let objects = args.chosen.objects()?;
    in_cluster(async {
        let target = Target::of_environment().await?;
        target.check().await?;
        for object in &objects {
            if target.apply(object).await? {
                complain(&format!("applied {}", name_of(object)));
            } else {
                complain(&format!("{} is there already", name_of(object)));
            }
        }
        for object in objects.iter().filter(|_| args.wait > 0) {
            target.ready(object, Duration::from_secs(args.wait)).await?;
        }
        complain("installed");
        Ok(())
    })
}

fn in_cluster(work: impl Future<Output = Result<(), ClusterError>>) -> Result<ExitCode, Failure> {
    // One provider for this process; a second try finds the first.
    let _installed_before = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::from_error)?.block_on(work).map_err(Failure::from_error)?;
    Ok(ExitCode::SUCCESS)
}
