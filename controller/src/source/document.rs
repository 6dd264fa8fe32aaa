// SPDX-License-Identifier: Apache-2.0

//! Reads the text of one YAML file into objects, document by document.
//!
//! Owns: splitting at `---`, typed reading with the line and field of each error, and the
//! defaults an apiserver would fill in; what it would refuse is [`validate`]'s. One broken document does not hide its neighbours.
//!
//! Start at [`parse`].

use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::lines::line_of;
use super::{Problem, validate};
use crate::store::{Key, Kind, Name, Object};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// One object and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Line of its document, from 1.
    pub line: u64,
    /// The object.
    pub object: Object,
}

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// Objects in order.
    pub objects: Vec<Placed>,
    /// What could not be read.
    pub problems: Vec<Problem>,
    /// Keys of documents that could not be read: their last good version stays.
    pub broken: Vec<Key>,
    /// A document without a readable key is broken: nothing of this file may be forgotten.
    pub keep_all: bool,
}

/// The part of an object that says which it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: HeadMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HeadMeta {
    name: Option<String>,
    namespace: Option<String>,
}

/// Reads all documents of `text`; `file` is named in problems only.
pub fn parse(file: &Path, text: &str) -> Parsed {
    parse_as(file, text, validate::faults)
}

/// Reads objects that no apiserver would take too: what is behind it must bear them.
#[cfg(test)]
pub fn parse_unchecked(file: &Path, text: &str) -> Parsed {
    parse_as(file, text, |_, _| Vec::new())
}

fn parse_as(file: &Path, text: &str, check: Check) -> Parsed {
    let mut parsed = Parsed::default();
    for (offset, document) in split(text) {
        let blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
        if document.lines().all(blank) {
            continue;
        }
        read(Place { file, offset, text: document, check }, &mut parsed);
    }
    parsed
}

/// The documents of `text`, each with the number of lines before it.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (line, content) in (0..).zip(text.split_inclusive('\n')) {
        let bare = content.trim_end();
        let marks = bare == "---" || bare.starts_with("--- ") || bare == "...";
        if marks {
            documents.push((start_line, text.get(start..at).unwrap_or_default()));
            start = at + content.len();
            start_line = line + 1;
        }
        at += content.len();
    }
    documents.push((start_line, text.get(start..).unwrap_or_default()));
    documents
}

#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a Path,
    offset: u64,
    text: &'a str,
    check: Check,
}

/// What is wrong with an object that could be read.
type Check = fn(&Key, &Object) -> Vec<validate::Fault>;

impl Place<'_> {
    fn problem(self, line: u64, object: Option<String>, message: String) -> Problem {
        Problem {
            file: self.file.to_owned(),
            line: self.offset + line,
            object,
            field: None,
            message,
            in_force: false,
        }
    }

    /// The first line of the document that holds something.
    fn first_line(self) -> u64 {
        let skip = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        u64::try_from(self.text.lines().take_while(skip).count()).unwrap_or(0) + 1
    }
}

fn read(place: Place<'_>, parsed: &mut Parsed) {
    let head = match serde_saphyr::from_str::<Head>(place.text) {
        Ok(head) => head,
        Err(error) => {
            let line = error.location().map_or(1, |location| location.line());
            parsed.problems.push(place.problem(line, None, message(&error)));
            parsed.keep_all = true;
            return;
        }
    };
    let (Some(api_version), Some(kind)) = (&head.api_version, &head.kind) else {
        let text = "a Kubernetes object needs apiVersion and kind".to_owned();
        parsed.problems.push(place.problem(place.first_line(), None, text));
        parsed.keep_all = true;
        return;
    };
    if api_version == "v1" && kind == "List" {
        return read_list(place, parsed);
    }
    let Some(known) = Kind::of(api_version, kind) else {
        let object = describe(kind, &head.metadata);
        let text = format!("kind {kind} of {api_version} is not read; it has no effect here");
        parsed.problems.push(place.problem(place.first_line(), Some(object), text));
        return;
    };
    let Some(name) = head.metadata.name.clone() else {
        let text = "metadata.name is missing".to_owned();
        parsed.problems.push(place.problem(place.first_line(), Some(kind.clone()), text));
        parsed.keep_all = true;
        return;
    };
    let namespace = match head.metadata.namespace {
        _ if known.is_cluster_wide() => String::new(),
        Some(namespace) => namespace,
        None => DEFAULT_NAMESPACE.to_owned(),
    };
    let key = Key { kind: known, name: Name::new(&namespace, &name) };
    read_typed(place, &key, parsed);
}

/// Reads a document whose key is known: errors name the field, unknown fields are reported.
fn read_typed(place: Place<'_>, key: &Key, parsed: &mut Parsed) {
    let mut unknown = Vec::new();
    let mut field = None;
    let read = serde_saphyr::with_deserializer_from_str(place.text, |deserializer| {
        let mut track = serde_path_to_error::Track::new();
        let read = {
            let mut note =
                |path: serde_ignored::Path<'_>| unknown.push(path.to_string().replace("?.", ""));
            let ignored = serde_ignored::Deserializer::new(deserializer, &mut note);
            key.kind.read(serde_path_to_error::Deserializer::new(ignored, &mut track))
        };
        if read.is_err() {
            field = Some(track.path().to_string()).filter(|path| path != ".");
        }
        read
    });
    match read {
        Ok(object) => {
            let line = place.offset + place.first_line();
            // Some types do not carry the two; they were read already, to know the type.
            unknown.retain(|path| path != "apiVersion" && path != "kind");
            for path in unknown {
                let line = line_of(place.text, &path).unwrap_or(place.first_line());
                let mut problem = place.problem(
                    line,
                    Some(key.to_string()),
                    "no such field; it has no effect".into(),
                );
                problem.field = Some(path);
                problem.in_force = true;
                parsed.problems.push(problem);
            }
            let object = fill_in(object, key);
            let faults = (place.check)(key, &object);
            if faults.is_empty() {
                parsed.objects.push(Placed { line, object });
            } else {
                parsed.broken.push(key.clone());
            }
            for fault in faults {
                let line = line_of(place.text, &fault.field).unwrap_or(place.first_line());
                let mut problem = place.problem(line, Some(key.to_string()), fault.message);
                problem.field = Some(fault.field);
                parsed.problems.push(problem);
            }
        }
        Err(error) => {
            let line = error.location().map_or(1, |location| location.line());
            let mut problem = place.problem(line, Some(key.to_string()), message(&error));
            problem.field = field;
            parsed.problems.push(problem);
            parsed.broken.push(key.clone());
        }
    }
}

/// Reads the items of a `List`, as `kubectl get -o yaml` prints them.
fn read_list(place: Place<'_>, parsed: &mut Parsed) {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        items: Vec<serde_json::Value>,
    }
    let list = match serde_saphyr::from_str::<List>(place.text) {
        Ok(list) => list,
        Err(error) => {
            let line = error.location().map_or(1, |location| location.line());
            parsed.problems.push(place.problem(line, Some("List".into()), message(&error)));
            parsed.keep_all = true;
            return;
        }
    };
    for item in list.items {
        let text = item.to_string();
        let line = place.first_line().saturating_sub(1);
        let item = Place { offset: place.offset + line, text: &text, ..place };
        read(item, parsed);
    }
}

/// The object with what an apiserver would fill in: namespace, `data` from `stringData`.
fn fill_in(mut object: Object, key: &Key) -> Object {
    let meta = object.meta_mut();
    meta.namespace = (!key.kind.is_cluster_wide()).then(|| key.name.namespace.to_string());
    if let Object::Secret(secret) = &mut object {
        let secret = Arc::make_mut(secret);
        for (name, value) in secret.string_data.take().unwrap_or_default() {
            let value = k8s_openapi::ByteString(value.into_bytes());
            secret.data.get_or_insert_default().insert(name, value);
        }
    }
    object
}

fn describe(kind: &str, meta: &HeadMeta) -> String {
    let name = meta.name.as_deref().unwrap_or("(no name)");
    match &meta.namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// The error without the excerpt of the file: the line is told apart.
pub(crate) fn message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let first = text.lines().next().unwrap_or_default();
    first.split(" at line ").next().unwrap_or(first).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SERVICE: &str =
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  ports:\n  - port: 80\n";

    #[test]
    fn a_broken_document_does_not_hide_its_neighbours() {
        let text = format!(
            "{SERVICE}---\napiVersion: v1\nkind: [\n---\n{}",
            SERVICE.replace("web", "two")
        );
        let parsed = parse(Path::new("f.yaml"), &text);
        let names: Vec<_> =
            parsed.objects.iter().map(|placed| placed.object.key().to_string()).collect();
        assert_eq!(names, ["Service default/web", "Service default/two"]);
        assert!(parsed.keep_all, "a document without a key keeps what the file held");
        assert_eq!(parsed.problems.len(), 1);
        assert!((10..=11).contains(&parsed.problems[0].line), "{:?}", parsed.problems);
    }

    #[test]
    fn a_wrong_value_is_told_with_line_object_field_and_what_was_expected() {
        let text = format!("# first\n---\n{}", SERVICE.replace("port: 80", "port: eighty"));
        let parsed = parse(Path::new("f.yaml"), &text);
        let [problem] = parsed.problems.as_slice() else { panic!("{:?}", parsed.problems) };
        assert_eq!(problem.line, 9, "{problem:?}");
        assert_eq!(problem.object.as_deref(), Some("Service default/web"));
        assert_eq!(problem.field.as_deref(), Some("spec.ports[0].port"));
        assert!(
            problem.message.contains("i32") || problem.message.contains("integer"),
            "{problem:?}"
        );
        assert_eq!(parsed.broken, [Key { kind: Kind::Service, name: Name::new("default", "web") }]);
    }

    #[test]
    fn what_no_apiserver_would_take_is_refused_with_its_line() {
        let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  rules:\n  - backendRefs:\n    - {name: a, port: 80, weight: 1}\n    - {name: b, port: 80, weight: -3}\n";
        let parsed = parse(Path::new("f.yaml"), text);
        assert!(parsed.objects.is_empty(), "the last good version stays");
        assert_eq!(parsed.broken.len(), 1);
        assert_eq!(
            parsed.problems[0].to_string(),
            "f.yaml:8: HTTPRoute default/r: spec.rules[0].backendRefs[1].weight: must be 0 to 1000000, not -3"
        );
    }

    #[test]
    fn an_unknown_field_is_reported_and_the_object_is_in_force() {
        let text = SERVICE.replace("  ports:", "  port: 1\n  ports:");
        let parsed = parse(Path::new("f.yaml"), &text);
        assert_eq!(parsed.objects.len(), 1);
        let [problem] = parsed.problems.as_slice() else { panic!("{:?}", parsed.problems) };
        assert_eq!(
            (problem.field.as_deref(), problem.line, problem.in_force),
            (Some("spec.port"), 6, true)
        );
    }

    #[test]
    fn an_unknown_field_of_a_policy_is_an_error() {
        let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: p\nspec:\n  rules:\n  - form:\n    - source: {}\n";
        let parsed = parse(Path::new("f.yaml"), text);
        assert!(parsed.objects.is_empty());
        assert!(parsed.problems[0].message.contains("form"), "{:?}", parsed.problems);
    }

    #[test]
    fn string_data_becomes_data_and_lists_are_read() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: s, namespace: n}\n  stringData: {a: b}\n";
        let parsed = parse(Path::new("f.yaml"), text);
        let Some(Object::Secret(secret)) = parsed.objects.first().map(|placed| &placed.object)
        else {
            panic!("{parsed:?}")
        };
        assert_eq!(secret.data.as_ref().unwrap()["a"].0, b"b");
    }

    #[test]
    fn routes_of_every_version_are_the_same_kind() {
        for version in ["v1", "v1beta1", "v1alpha2"] {
            let text = format!(
                "apiVersion: gateway.networking.k8s.io/{version}\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec: {{}}\n"
            );
            assert_eq!(parse(Path::new("f"), &text).objects.len(), 1, "{version}");
        }
    }

    /// Text made of the pieces that objects are made of, in any order.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "apiVersion: v1\n",
            "kind: Service\n",
            "kind: List\n",
            "metadata:\n",
            "  name: web\n",
            "spec:\n",
            "  ports:\n",
            "  - port: 80\n",
            "---\n",
            "...\n",
            "items:\n",
            "- ",
            ": ",
            "{",
            "}",
            "[",
            "]",
            "&a ",
            "*a",
            "|\n",
            "\"",
            "'",
            "#",
            "\t",
            "\r\n",
            "é",
            "\u{0}",
            "!!binary ",
            "%YAML 1.2\n",
        ]);
        prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_text_gives_objects_or_problems_inside_it(text in pieces()) {
            let parsed = parse(Path::new("f"), &text);
            let lines = u64::try_from(text.lines().count()).unwrap() + 1;
            for problem in &parsed.problems {
                prop_assert!(problem.line <= lines, "{:?} in {:?}", problem, text);
            }
            for placed in &parsed.objects {
                prop_assert!((1..=lines).contains(&placed.line));
                prop_assert!(!placed.object.key().name.name.is_empty());
            }
            let says_something = text.contains("kind: Service");
            prop_assert!(says_something || parsed.objects.is_empty());
        }
    }
}
