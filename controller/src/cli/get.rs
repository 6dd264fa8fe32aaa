// SPDX-License-Identifier: Apache-2.0

//! `waymark get`: objects with their status, as `kubectl get` shows them.
//!
//! Owns: short names of kinds, what the words of a user mean. [`mod@columns`] has what is shown.

mod columns;
mod replicas;

use std::process::ExitCode;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::format::{Format, FormatArgs, items, or_none, show};
use super::mesh::{Mesh, MeshArgs};
use super::{Failure, complain, out, table};
use crate::store::Kind;
pub(super) use columns::condition;
use columns::{Column, NAME, columns};

/// Short names, as in Kubernetes.
const SHORT: [(&str, &str); 16] = [
    ("po", "Pod"),
    ("svc", "Service"),
    ("no", "Node"),
    ("ns", "Namespace"),
    ("sa", "ServiceAccount"),
    ("cm", "ConfigMap"),
    ("deploy", "Deployment"),
    ("gc", "GatewayClass"),
    ("gtw", "Gateway"),
    ("refgrant", "ReferenceGrant"),
    ("btlspolicy", "BackendTLSPolicy"),
    ("ap", "AuthorizationPolicy"),
    ("pa", "PeerAuthentication"),
    ("ra", "RequestAuthentication"),
    ("se", "ServiceEntry"),
    ("we", "WorkloadEntry"),
];

/// Arguments of `waymark get`.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:\n  waymark get pods -n bookinfo -o wide\n  \
    waymark get gateways,httproutes\n  waymark get httproute/reviews -o yaml")]
pub(super) struct GetArgs {
    /// Kind, in the singular, plural or short: `pods`, `gateway`, `httproutes`, `svc`; or
    /// `KIND/NAME`, or several kinds with commas between.
    kind: String,
    /// Name of one object.
    name: Option<String>,
    /// Namespace; all by default.
    #[arg(short, long)]
    namespace: Option<String>,
    /// All namespaces, as by default.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    mesh: MeshArgs,
}

/// Shows the objects that `args` means.
pub(super) fn get(args: &GetArgs) -> Result<ExitCode, Failure> {
    let (kinds, name) = meant(&args.kind, args.name.as_deref())?;
    let mesh = Mesh::find(&args.mesh)?;
    let mut found: Vec<(&'static str, Vec<Value>)> = Vec::new();
    for kind in kinds {
        found.push((kind, ask(&mesh, kind, args.namespace.as_deref(), name.as_deref())?));
    }
    let all = || found.iter().flat_map(|(_, objects)| objects);
    let nothing = all().next().is_none();
    let within = args.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}"));
    let within = within.unwrap_or_default();
    if let (Some(name), true) = (&name, nothing) {
        let kind = found.first().map(|(kind, _)| *kind).unwrap_or_default();
        let message = format!("no {kind} {name}{within}; see: waymark get {kind}");
        return Err(Failure { message, code: 1 });
    }
    if !matches!(args.format.output, Format::Table | Format::Wide) {
        let listed: Vec<&Value> = all().collect();
        let shown = match (&name, listed.as_slice()) {
            (Some(_), [one]) => (*one).clone(),
            _ => json!({"apiVersion": "v1", "kind": "List", "items": listed}),
        };
        show(args.format, &shown, Vec::new())?;
    } else if nothing {
        let kinds: Vec<&str> = found.iter().map(|(kind, _)| *kind).collect();
        complain(&format!("no {}{within}", kinds.join(" and no ")));
    } else {
        out(&tables(&found, args.format.wide()));
    }
    Ok(ExitCode::SUCCESS)
}

/// The kinds and the name that the words of a user mean.
fn meant(kind: &str, name: Option<&str>) -> Result<(Vec<&'static str>, Option<String>), Failure> {
    let (kind, name) = match (kind.split_once('/'), name) {
        (Some((kind, name)), None) => (kind, Some(name)),
        (None, name) => (kind, name),
        (Some(_), Some(_)) => {
            return Err(Failure { message: "say the name once".to_owned(), code: 2 });
        }
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || "-.:".contains(c);
    if let Some(name) = name.filter(|name| name.is_empty() || !name.chars().all(legal)) {
        return Err(Failure { message: format!("{name:?} is no name of an object"), code: 2 });
    }
    let kinds: Vec<&'static str> = kind.split(',').map(kind_of).collect::<Result<_, _>>()?;
    if name.is_some() && kinds.len() > 1 {
        return Err(Failure { message: "a name goes with one kind".to_owned(), code: 2 });
    }
    Ok((kinds, name.map(str::to_owned)))
}

/// The objects of a kind, as the controller tells them.
fn ask(
    mesh: &Mesh,
    kind: &str,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Vec<Value>, Failure> {
    let list = |path: &str| -> Result<Vec<Value>, Failure> {
        let answer = mesh.ask(path)?;
        Ok(items(&answer, "/items").cloned().collect())
    };
    let mut path = format!("/objects?kind={kind}");
    for (key, value) in [("ns", namespace), ("name", name)] {
        if let Some(value) = value {
            path += &format!("&{key}={value}");
        }
    }
    let mut found = list(&path)?;
    if kind == "Deployment" {
        let pods = list("/objects?kind=Pod")?;
        found.iter_mut().for_each(|deployment| replicas::count(deployment, &pods));
    }
    Ok(found)
}

/// One table a kind; names bear their kind when there are several.
fn tables(found: &[(&'static str, Vec<Value>)], wide: bool) -> String {
    let now = OffsetDateTime::now_utc();
    let several = found.len() > 1;
    let table = |(kind, objects): &(&'static str, Vec<Value>)| {
        let columns: Vec<Column> =
            columns(kind).into_iter().filter(|column| wide || !column.wide).collect();
        let head = columns.iter().map(|column| column.title.to_owned()).collect();
        let cell = |object: &Value, column: &Column| {
            let text = or_none((column.cell)(object, now));
            let bears = several && column.title == NAME.title;
            if bears { format!("{}/{text}", kind.to_ascii_lowercase()) } else { text }
        };
        let row =
            |object: &Value| columns.iter().map(|column| cell(object, column)).collect::<Vec<_>>();
        table::align([head].into_iter().chain(objects.iter().map(row)))
    };
    let some = found.iter().filter(|(_, objects)| !objects.is_empty());
    some.map(table).collect::<Vec<_>>().join("\n")
}

/// The kind that a user's word means.
fn kind_of(word: &str) -> Result<&'static str, Failure> {
    let lower = word.to_ascii_lowercase();
    if let Some((_, kind)) = SHORT.iter().find(|(short, _)| *short == lower) {
        return Ok(kind);
    }
    let fits = |kind: &&str| {
        let kind = kind.to_ascii_lowercase();
        let plural = match kind.strip_suffix('y').filter(|stem| !stem.ends_with(['a', 'e', 'o'])) {
            Some(stem) => format!("{stem}ies"),
            None if kind.ends_with('s') => format!("{kind}es"),
            None => format!("{kind}s"),
        };
        kind == lower || plural == lower
    };
    let mut kinds = Kind::ALL.iter().map(|kind| kind.as_str());
    kinds.find(fits).ok_or_else(|| {
        let known: Vec<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        Failure { message: format!("no kind {word}; there are {}", known.join(", ")), code: 2 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_kinds_are_those_of_kubectl() {
        let cases = [
            ("pods", Some("Pod")),
            ("po", Some("Pod")),
            ("HTTPRoute", Some("HTTPRoute")),
            ("httproutes", Some("HTTPRoute")),
            ("gatewayclasses", Some("GatewayClass")),
            ("authorizationpolicies", Some("AuthorizationPolicy")),
            ("svc", Some("Service")),
            ("dreams", None),
        ];
        for (word, want) in cases {
            assert_eq!(kind_of(word).ok(), want, "{word}");
        }
    }

    #[test]
    fn kinds_and_names_are_said_as_to_kubectl() {
        let cases = [
            (("pod/x", None), Ok((vec!["Pod"], Some("x")))),
            (("svc", Some("y")), Ok((vec!["Service"], Some("y")))),
            (("gtw,httproutes", None), Ok((vec!["Gateway", "HTTPRoute"], None))),
            (("pod/x", Some("y")), Err("once")),
            (("po,svc", Some("y")), Err("one kind")),
            (("po", Some("a b")), Err("no name")),
            (("po/", None), Err("no name")),
            (("dreams", None), Err("no kind dreams")),
        ];
        for ((kind, name), want) in cases {
            match (meant(kind, name), want) {
                (Ok((kinds, name)), Ok(want)) => {
                    assert_eq!((kinds, name.as_deref()), want, "{kind}");
                }
                (Err(failure), Err(words)) => {
                    assert!(failure.message.contains(words), "{}", failure.message);
                    assert_eq!(failure.code, 2);
                }
                (got, _) => panic!("{kind}: {got:?}"),
            }
        }
    }

    #[test]
    fn columns_are_those_of_kubectl() {
        let service = json!({
            "metadata": {"namespace": "n", "name": "s"},
            "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.20",
                     "ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]},
        });
        let deployment = json!({
            "metadata": {"namespace": "n", "name": "d"}, "spec": {"replicas": 3},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 2},
        });
        let text = tables(&[("Service", vec![service]), ("Deployment", vec![deployment])], false);
        assert_eq!(
            text,
            "NAMESPACE  NAME       TYPE       CLUSTER-IP  EXTERNAL-IP  PORT(S)        AGE\n\
             n          service/s  ClusterIP  10.96.0.20  <none>       80/TCP,53/UDP  <unknown>\n\
             \n\
             NAMESPACE  NAME          READY  UP-TO-DATE  AVAILABLE  AGE\n\
             n          deployment/d  2/3    3           2          <unknown>\n"
        );
    }
}
