// SPDX-License-Identifier: Apache-2.0

//! The processes behind pods, found by their environment, and what they cost.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::Instant;

use crate::figures::{cpu_of, proportional, resident};

/// A process that runs in a pod.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pid: u32,
    /// Name of the pod.
    pub(super) pod: String,
}

/// Megabytes of a process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Memory {
    /// Resident.
    pub(super) resident: f64,
    /// Its share of what is resident, where it shares.
    pub(super) proportional: f64,
}

impl Process {
    /// Every process that runs `program` in a pod of this world.
    pub(super) fn all(program: &str) -> Vec<Self> {
        // The kernel keeps 15 letters of a name.
        let wanted: String = program.chars().take(15).collect();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids =
            entries.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
        let of = |pid: u32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == wanted).then_some(())?;
            let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
            let pod = environment.split(|byte| *byte == 0).find_map(|one| {
                String::from_utf8_lossy(one).strip_prefix("POD_NAME=").map(ToOwned::to_owned)
            })?;
            Some(Self { pid, pod })
        };
        pids.filter_map(of).collect()
    }

    /// Seconds of CPU so far.
    ///
    /// # Errors
    ///
    /// When the process is gone: what was measured of it is worth nothing.
    pub(super) fn cpu(&self) -> anyhow::Result<f64> {
        cpu_of(self.pid).with_context(|| format!("the process of pod {} ended", self.pod))
    }

    /// What it holds.
    pub(super) fn memory(&self) -> Memory {
        Memory { resident: resident(self.pid), proportional: proportional(self.pid) }
    }

    /// Cores in use over some time.
    pub(super) async fn cores(&self, over: Duration) -> anyhow::Result<f64> {
        let (before, began) = (self.cpu()?, Instant::now());
        tokio::time::sleep(over).await;
        Ok((self.cpu()? - before) / began.elapsed().as_secs_f64())
    }
}

/// Waits until none of the processes has much to do any more.
pub(super) async fn quiet(processes: &[&Process], at_most: Duration) -> anyhow::Result<()> {
    const QUIET: f64 = 0.03;
    let began = Instant::now();
    loop {
        let mut busiest: f64 = 0.0;
        let before: Vec<f64> =
            processes.iter().map(|one| one.cpu()).collect::<anyhow::Result<_>>()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (one, before) in processes.iter().zip(before) {
            busiest = busiest.max(one.cpu()? - before);
        }
        if busiest <= QUIET {
            return Ok(());
        }
        if began.elapsed() > at_most {
            bail!("the mesh does not come to rest: {busiest:.2} cores after {at_most:?}");
        }
    }
}
