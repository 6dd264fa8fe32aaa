// SPDX-License-Identifier: Apache-2.0

//! From an owner's template to a pod that is ready to live.
//!
//! Owns: the files of a pod (`/etc/resolv.conf`, `/etc/hosts`, tokens), its containers as
//! [`Unit`]s, its network. Leaves its life to [`super::pod`].
//!
//! Start at [`prepare`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::cni::PodNetwork;
use super::container::{Restart, Unit};
use super::pod::{self, Network};
use super::probe::{self, Prober};
use super::process::Dress;
use super::record::write_whole;
use super::system;
use crate::local::address::{self, Pair};
use crate::local::paths;
use crate::local::plan::environment::{Values, environment};
use crate::local::plan::image::Images;

/// Why a pod cannot run, in Kubernetes' words and at length.
pub(super) type Broken = (&'static str, String);

/// What pods are made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surroundings<'a> {
    /// Images and their commands.
    pub(super) images: &'a Images,
    /// ConfigMaps and Secrets.
    pub(super) values: Values<'a>,
    /// Folder of our own programs.
    pub(super) beside: &'a Path,
    /// Sends the probes of the pod's node.
    pub(super) prober: &'a Prober,
    /// Number of the pod's node, from 1.
    pub(super) number: u8,
    /// Whether the pod belongs to the mesh itself.
    pub(super) system: bool,
    /// Whether its containers wait for the proof of capture.
    pub(super) enrolled: bool,
}

/// Makes the files of `pod` and the plan of its life.
///
/// # Errors
///
/// Why it can never run as it is; the caller shows that in its status.
pub(super) fn prepare(
    pod: &Pod,
    pair: Pair,
    around: Surroundings<'_>,
) -> Result<pod::Plan, Broken> {
    let spec = pod.spec.clone().unwrap_or_default();
    let named = Named::of(pod);
    let host_network = spec.host_network == Some(true);
    let node = spec.node_name.clone().unwrap_or_default();
    let netns =
        if host_network { node.clone() } else { format!("{}_{}", named.namespace, named.name) };
    let dress = dress(&named, &spec, pair, &netns, around.system).map_err(|cause| {
        ("CreateContainerError", format!("its files cannot be written: {cause}"))
    })?;
    let build = Builder { pod, spec: &spec, named: &named, pair, dress, around };
    let units = |containers: &[Container]| {
        containers.iter().map(|container| build.unit(container)).collect()
    };
    let main: Vec<Unit> = Result::from_iter::<Vec<_>>(units(&spec.containers))?;
    let mut init: Vec<Unit> =
        Result::from_iter::<Vec<_>>(units(spec.init_containers.as_deref().unwrap_or_default()))?;
    for unit in &mut init {
        unit.restart =
            if unit.restart == Restart::Never { Restart::Never } else { Restart::OnFailure };
    }
    let network = (!host_network).then(|| Network {
        told: PodNetwork {
            netns: paths::netns(&netns).display().to_string(),
            pod_name: named.name.clone(),
            pod_namespace: named.namespace.clone(),
            pod_uid: named.uid.clone(),
            ips: pair.texts(),
        },
        agent: paths::node(&node).join("pluginevent.sock"),
        link: link_name(&named.uid),
        gateway: address::pod_gateway(around.number),
        enrolled: around.enrolled,
        netns,
        node,
        pair,
    });
    Ok(pod::Plan { uid: named.uid, network, init, main })
}

/// Name of the node's end of a pod's link: as many bytes as the kernel takes.
fn link_name(uid: &str) -> String {
    let letters: String = uid.chars().filter(char::is_ascii_alphanumeric).take(12).collect();
    format!("p-{letters}")
}

struct Named {
    namespace: String,
    name: String,
    uid: String,
}

impl Named {
    fn of(pod: &Pod) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self {
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
        }
    }
}

/// Writes the pod's own `/etc` files and says how all its containers are dressed.
fn dress(
    named: &Named,
    spec: &PodSpec,
    pair: Pair,
    netns: &str,
    system: bool,
) -> std::io::Result<Dress> {
    let folder = Path::new(paths::ETC).join(&named.uid);
    std::fs::create_dir_all(&folder)?;
    let hostname = spec.hostname.clone().unwrap_or_else(|| named.name.clone());
    let (resolv, hosts) = (folder.join("resolv.conf"), folder.join("hosts"));
    write_whole(&resolv, system::resolv_conf(&named.namespace).as_bytes())?;
    let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n".to_owned();
    for address in pair.texts() {
        text += &format!("{address} {hostname}\n");
    }
    write_whole(&hosts, text.as_bytes())?;
    let mut binds = vec![(resolv, "/etc/resolv.conf".to_owned()), (hosts, "/etc/hosts".to_owned())];
    if !system {
        let tokens = Path::new(paths::TOKENS).join(&named.uid);
        binds.push((tokens, "/var/run/secrets/tokens".to_owned()));
        binds.push((PathBuf::from(paths::TRUST), "/var/run/secrets/istio".to_owned()));
    }
    Ok(Dress {
        netns: Some(paths::netns(netns)),
        own_run: !system,
        binds,
        scratch: Vec::new(),
        hostname: Some(hostname.get(..hostname.len().min(63)).unwrap_or_default().to_owned()),
        workdir: None,
    })
}

struct Builder<'a> {
    pod: &'a Pod,
    spec: &'a PodSpec,
    named: &'a Named,
    pair: Pair,
    dress: Dress,
    around: Surroundings<'a>,
}

impl Builder<'_> {
    fn unit(&self, container: &Container) -> Result<Unit, Broken> {
        let around = &self.around;
        let launch = around
            .images
            .launch(container, around.beside)
            .map_err(|error| ("ErrImageNeverPull", error.to_string()))?;
        let mut env = environment(container, self.pod, &launch.env, around.values)
            .map_err(|error| ("CreateContainerConfigError", error.to_string()))?;
        env.insert("HOSTNAME".into(), self.dress.hostname.clone().unwrap_or_default());
        env.entry("HOME".into()).or_insert_with(|| "/".into());
        let address = std::net::IpAddr::V4(self.pair.v4);
        let plan = |probe: &Option<_>| {
            probe.as_ref().and_then(|probe| probe::Plan::of(probe, container, address))
        };
        let pre_stop =
            container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let seconds = |value: i64| Duration::from_secs(u64::try_from(value).unwrap_or(0));
        Ok(Unit {
            dress: Dress { workdir: container.working_dir.clone(), ..self.dress.clone() },
            launch,
            env,
            log: paths::log(&self.named.namespace, &self.named.name, &container.name),
            restart: self.restart(),
            startup: plan(&container.startup_probe),
            liveness: plan(&container.liveness_probe),
            readiness: plan(&container.readiness_probe),
            pre_stop: pre_stop
                .and_then(|hook| hook.exec.as_ref())
                .and_then(|exec| exec.command.clone()),
            pre_stop_sleep: pre_stop
                .and_then(|hook| hook.sleep.as_ref())
                .map_or(Duration::ZERO, |sleep| seconds(sleep.seconds)),
            grace: seconds(self.spec.termination_grace_period_seconds.unwrap_or(30)),
            prober: Some(around.prober.clone()),
        })
    }

    fn restart(&self) -> Restart {
        let gateway = self
            .pod
            .metadata
            .labels
            .as_ref()
            .is_some_and(|labels| labels.contains_key(crate::api::GATEWAY_NAME));
        match self.spec.restart_policy.as_deref() {
            Some("Never") => Restart::Never,
            Some("OnFailure") => Restart::OnFailure,
            _ if self.around.system || gateway => Restart::AtOnce,
            _ => Restart::Always,
        }
    }
}
