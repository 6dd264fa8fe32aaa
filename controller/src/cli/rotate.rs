// SPDX-License-Identifier: Apache-2.0

//! `waymark rotate-root`: the mesh's own root is replaced while everything runs.
//!
//! Owns the order: the next root is trusted by all, then it signs, then the old one goes; and
//! what is waited for between. What was begun is written where the root is kept ([`keep`]), so
//! a rotation that was broken off goes on with the next call. Each step is one change that the
//! controllers would refuse if it came too early.
//!
//! Start at [`rotate`].

mod keep;
mod wait;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use self::keep::{Held, Keep, Phase};
use super::mesh::{Mesh, MeshArgs};
use super::{Failure, complain};
use crate::ca::root;

/// Time between looks.
const LOOK: Duration = Duration::from_millis(500);
/// Time between words about what is waited for.
const WORD: Duration = Duration::from_secs(10);

/// Arguments of `waymark rotate-root`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Exit code: 0 done, 1 not done; call it again to go on. A root of your own \
    (Secret cacerts) is rotated by editing its Secret, see README; --wait tells when its next step may come."
)]
pub(super) struct RotateArgs {
    /// Seconds that each step may wait for proxies.
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// Change nothing: wait for what a step by hand waits for.
    #[arg(long, value_name = "WHAT")]
    wait: Option<Waited>,
    /// Trust domain, for the name of the next root.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// What a step of a rotation waits for.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Waited {
    /// The authority as it is written now is in force, and all trust all of its roots.
    Trusted,
    /// The same, and all certificates are of the root that signs.
    Renewed,
}

/// Replaces the root of the mesh that `args` means.
pub(super) fn rotate(args: &RotateArgs) -> Result<ExitCode, Failure> {
    let mesh = Mesh::find(&args.mesh)?;
    let patience = Duration::from_secs(args.timeout);
    if let Some(what) = args.wait {
        let held = keep::in_effect(&mesh)?;
        until(&mesh, &held, patience, wait::distrusting)?;
        if matches!(what, Waited::Renewed) {
            until(&mesh, &held, patience, wait::of_old_root)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let keep = Keep::of(&mesh)?;
    let mut held = keep.read()?;
    if held.phase() == Phase::Settled {
        let (certificate, key) = root::make(&args.trust_domain).map_err(Failure::from_error)?;
        held = keep.write(&held.begin(certificate, key))?;
        complain("step 1 of 3: the next root is told to all; both are trusted");
    }
    if held.phase() == Phase::Trusting {
        until(&mesh, &held, patience, wait::distrusting)?;
        held = keep.write(&held.sign())?;
        complain("step 2 of 3: every proxy trusts the next root; it signs from now on");
    }
    if held.phase() == Phase::Signing {
        until(&mesh, &held, patience, wait::of_old_root)?;
        held = keep.write(&held.end())?;
        complain("step 3 of 3: no certificate of the old root is in use; it is taken away");
    }
    until(&mesh, &held, patience, wait::distrusting)?;
    complain("the root is rotated");
    Ok(ExitCode::SUCCESS)
}

/// Waits until every controller has `held` in force, and `missing` names nobody any more.
fn until(
    mesh: &Mesh,
    held: &Held,
    patience: Duration,
    missing: fn(&[Value]) -> Vec<String>,
) -> Result<(), Failure> {
    let wanted = held.authority()?;
    let (begun, mut said) = (Instant::now(), Instant::now());
    loop {
        let lacks = match mesh.ask_all("/ca") {
            Ok(answers) => {
                if let Some(why) = wait::refused(&answers) {
                    let message = format!("the controller refuses: {why}");
                    return Err(Failure { message, code: 1 });
                }
                let mut lacks = wait::not_in_force(&answers, &wanted);
                if lacks.is_empty() {
                    lacks = wait::unheard(&answers);
                }
                if lacks.is_empty() {
                    lacks = missing(&answers);
                }
                lacks
            }
            // One of them may have gone since they were listed; another takes over.
            Err(failure) => vec![failure.message],
        };
        if lacks.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > patience {
            let message =
                format!("not yet, nothing is lost, call it again to go on: {}", lacks.join("; "));
            return Err(Failure { message, code: 1 });
        }
        if said.elapsed() > WORD {
            complain(&format!("waiting: {}", lacks.join("; ")));
            said = Instant::now();
        }
        std::thread::sleep(LOOK);
    }
}
