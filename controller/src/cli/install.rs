// SPDX-License-Identifier: Apache-2.0

//! `waymark install` and `upgrade`: the objects of an installation, in a cluster.
//!
//! Owns: what must hold before, and the order. Both apply the same objects; an upgrade waits
//! for each part before it writes the next, so that a version that does not start takes no
//! other part with it, and then removes what the version before had and this one has not.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use serde_json::Value;

use super::check::before::gateway_api;
use super::check::finding::Level;
use super::cluster::{ClusterArgs, runtime};
use super::manifest::Chosen;
use super::{Failure, complain};
use crate::install::cluster::{ClusterError, Target, name_of};
use crate::install::owned::{self, HELM, VALUES, VERSION};
use crate::install::{TAG, version};

/// Arguments of `waymark install` and `upgrade`.
#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Seconds that each part may take until it is ready; 0 does not wait.
    #[arg(long, default_value_t = 180)]
    wait: u64,
}

/// Applies everything and waits until it is ready.
pub(super) fn install(args: &InstallArgs) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        let target = target(args).await?;
        let namespace = &args.chosen.namespace;
        if let Some(found) = installed(&target, namespace).await? {
            not_of_helm(&found, "upgrade")?;
            let before = version_of(&found);
            if before != TAG {
                let message =
                    format!("{before} is installed: bring it to {TAG} with waymark upgrade");
                return Err(Failure { message, code: 1 });
            }
        }
        let objects = marked(&args.chosen, &args.chosen.sets()?)?;
        for object in &objects {
            apply(&target, object).await?;
        }
        for object in objects.iter().filter(|_| args.wait > 0) {
            wait(&target, object, args.wait).await?;
        }
        complain("installed; see whether every part works: waymark check");
        Ok(ExitCode::SUCCESS)
    })
}

/// Brings an installation to this version, part by part.
pub(super) fn upgrade(args: &InstallArgs) -> Result<ExitCode, Failure> {
    runtime()?.block_on(async {
        let target = target(args).await?;
        let namespace = &args.chosen.namespace;
        let Some(found) = installed(&target, namespace).await? else {
            let message = format!("nothing is installed in namespace {namespace}: waymark install");
            return Err(Failure { message, code: 1 });
        };
        not_of_helm(&found, "upgrade")?;
        let before = version_of(&found);
        version::may_follow(&before, TAG).map_err(|message| Failure { message, code: 1 })?;
        let sets = merged(values_of(&found), &args.chosen.sets()?);
        let objects = marked(&args.chosen, &sets)?;
        complain(&format!("{before} -> {TAG}"));
        for object in &objects {
            apply(&target, object).await?;
            if args.wait > 0 {
                wait(&target, object, args.wait).await?;
            }
        }
        let owned = target.owned(namespace).await.map_err(Failure::from_error)?;
        for object in owned::surplus(owned, &objects) {
            if target.delete(&object).await.map_err(Failure::from_error)? {
                complain(&format!("removed {}, which {TAG} does not have", name_of(&object)));
            }
        }
        complain("upgraded; see whether every part works: waymark check");
        Ok(ExitCode::SUCCESS)
    })
}

/// The cluster, if Gateway API is there as it must be.
async fn target(args: &InstallArgs) -> Result<Target, Failure> {
    let (client, _) = args.cluster.client().await?;
    let target = Target::new(client);
    let definitions = target.definitions().await.map_err(Failure::from_error)?;
    let unfit = gateway_api(&definitions).into_iter().find(|one| one.level == Level::Error);
    match unfit {
        Some(one) => {
            let message = format!("{} {}; {}", one.subject, one.message, one.todo);
            Err(Failure { message, code: 1 })
        }
        None => Ok(target),
    }
}

async fn installed(target: &Target, namespace: &str) -> Result<Option<Deployment>, Failure> {
    target.installed(namespace).await.map_err(Failure::from_error)
}

/// Refuses what Helm has made: its record of the release would be wrong from then on.
pub(super) fn not_of_helm(found: &Deployment, verb: &str) -> Result<(), Failure> {
    match found.annotations().get(HELM) {
        Some(release) => {
            let namespace = found.namespace().unwrap_or_default();
            let message = format!(
                "Helm installed this as release {release}: helm {verb} {release} -n {namespace}"
            );
            Err(Failure { message, code: 1 })
        }
        None => Ok(()),
    }
}

/// The version of an installation: what it is marked with, else the tag of its image.
fn version_of(found: &Deployment) -> String {
    let label = found.labels().get(VERSION).cloned();
    let image = || {
        let pod = found.spec.as_ref()?.template.spec.as_ref()?;
        let image = pod.containers.first()?.image.as_deref()?;
        image.rsplit_once(':').map(|(_, tag)| tag.to_owned())
    };
    label.or_else(image).unwrap_or_default()
}

/// The values that an installation was made with.
fn values_of(found: &Deployment) -> Vec<String> {
    let told = found.annotations().get(VALUES);
    told.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
}

/// Values of before and now; of one path the newest counts. Those of the images' tag are not
/// taken over: the new version has its own.
fn merged(before: Vec<String>, now: &[String]) -> Vec<String> {
    let path = |set: &str| set.split('=').next().unwrap_or_default().to_owned();
    let given: Vec<String> = now.iter().map(|set| path(set)).collect();
    let kept = before.into_iter().filter(|set| {
        let path = path(set);
        path != "global.tag" && !given.contains(&path)
    });
    kept.chain(now.iter().cloned()).collect()
}

fn marked(chosen: &Chosen, sets: &[String]) -> Result<Vec<Value>, Failure> {
    let namespace = &chosen.namespace;
    let objects = crate::install::objects(namespace, sets).map_err(Failure::from_error)?;
    let mark = |mut object: Value| {
        owned::mark(&mut object, namespace, TAG, sets);
        object
    };
    Ok(objects.into_iter().map(mark).collect())
}

async fn apply(target: &Target, object: &Value) -> Result<(), Failure> {
    if target.apply(object).await.map_err(Failure::from_error)? {
        complain(&format!("applied {}", name_of(object)));
    } else {
        complain(&format!("{} is there already, and not ours: left as it is", name_of(object)));
    }
    Ok(())
}

async fn wait(target: &Target, object: &Value, seconds: u64) -> Result<(), Failure> {
    let ready = target.ready(object, Duration::from_secs(seconds), complain).await;
    ready.map_err(|error| {
        let hint = matches!(error, ClusterError::NotReady { .. });
        let mut failure = Failure::from_error(error);
        if hint {
            failure.message += "; see why: waymark check. Running this again goes on from here";
        }
        failure
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_before_stay_unless_they_are_given_anew() {
        let before =
            ["global.hub=a", "global.tag=0.1.0", "pilot.replicaCount=2"].map(str::to_owned);
        let now = ["global.hub=b".to_owned()];
        assert_eq!(merged(before.into(), &now), ["pilot.replicaCount=2", "global.hub=b"]);
        assert_eq!(merged(Vec::new(), &now), now);
    }

    #[test]
    fn an_installation_tells_its_version_values_and_whether_helm_made_it() {
        let deployment = |labels: Value, annotations: Value| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"name": "c", "namespace": "mesh", "labels": labels, "annotations": annotations},
                "spec": {"selector": {}, "template": {"spec": {"containers":
                    [{"name": "c", "image": "registry:5000/w/controller:0.1.7"}]}}},
            }))
            .unwrap()
        };
        let ours = deployment(json!({VERSION: "0.2.0"}), json!({VALUES: r#"["a=b"]"#}));
        assert_eq!(
            (version_of(&ours).as_str(), values_of(&ours)),
            ("0.2.0", vec!["a=b".to_owned()])
        );
        assert!(not_of_helm(&ours, "upgrade").is_ok());
        let helms = deployment(json!({}), json!({HELM: "wm"}));
        assert_eq!(version_of(&helms), "0.1.7", "the image tells");
        let refused = not_of_helm(&helms, "uninstall").unwrap_err();
        assert!(refused.message.ends_with("helm uninstall wm -n mesh"), "{}", refused.message);
    }
}
