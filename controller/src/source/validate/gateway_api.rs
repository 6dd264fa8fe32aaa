// SPDX-License-Identifier: Apache-2.0

//! Gateway API's kinds: the limits of their definitions, v1.6, experimental channel.

use super::{At, Check, Faults, PORT};
use crate::store::Kind;

const PARENTS: &[(&str, Check)] = &[
    ("parentRefs", Check::Items(0, 32)),
    ("parentRefs[].name", Check::Needed),
    ("parentRefs[].name", Check::Subdomain),
    ("parentRefs[].namespace", Check::Label),
    ("parentRefs[].port", PORT),
    ("parentRefs[].sectionName", Check::Subdomain),
];

const BACKEND: &[(&str, Check)] = &[
    ("name", Check::Needed),
    ("namespace", Check::Label),
    ("port", PORT),
    ("weight", Check::Range(0, 1_000_000)),
];

const HTTP_MATCH: &[(&str, Check)] = &[
    ("path.type", Check::OneOf(&["Exact", "PathPrefix", "RegularExpression"])),
    ("path.value", Check::Longest(1024)),
    ("headers", Check::Items(0, 16)),
    ("headers[].name", Check::Token),
    ("headers[].type", Check::OneOf(&["Exact", "RegularExpression"])),
    ("headers[].value", Check::HeaderValue),
    ("queryParams", Check::Items(0, 16)),
    ("queryParams[].name", Check::Token),
    ("queryParams[].type", Check::OneOf(&["Exact", "RegularExpression"])),
    ("queryParams[].value", Check::Longest(1024)),
    ("method", Check::OneOf(METHODS)),
];

const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

const GRPC_MATCH: &[(&str, Check)] = &[
    ("headers", Check::Items(0, 16)),
    ("headers[].name", Check::Token),
    ("headers[].type", Check::OneOf(&["Exact", "RegularExpression"])),
    ("headers[].value", Check::Longest(4096)),
    ("method.type", Check::OneOf(&["Exact", "RegularExpression"])),
    ("method.service", Check::Longest(1024)),
    ("method.method", Check::Longest(1024)),
];

const HTTP_RULE: &[(&str, Check)] = &[
    ("name", Check::Subdomain),
    ("matches", Check::Items(0, 64)),
    ("backendRefs", Check::Items(0, 16)),
    ("timeouts.request", Check::Duration),
    ("timeouts.backendRequest", Check::Duration),
    ("retry.codes[]", Check::Range(400, 599)),
    ("retry.attempts", Check::Range(1, i64::MAX)),
    ("retry.backoff", Check::Duration),
];

const FILTER: &[(&str, Check)] = &[
    ("requestRedirect.scheme", Check::OneOf(&["http", "https"])),
    ("requestRedirect.hostname", Check::Subdomain),
    ("requestRedirect.port", PORT),
    ("requestRedirect.statusCode", Check::Number(&[301, 302, 303, 307, 308])),
    ("urlRewrite.hostname", Check::Subdomain),
    ("requestMirror.percent", Check::Range(0, 100)),
    ("requestMirror.fraction.numerator", Check::Range(0, i64::MAX)),
    ("requestMirror.fraction.denominator", Check::Range(1, i64::MAX)),
    ("cors.allowOrigins", Check::Items(0, 64)),
    ("cors.allowMethods", Check::Items(0, 9)),
    ("cors.allowHeaders", Check::Items(0, 64)),
    ("cors.allowHeaders[]", Check::Token),
    ("cors.exposeHeaders", Check::Items(0, 64)),
    ("cors.exposeHeaders[]", Check::Token),
    ("cors.maxAge", Check::Range(1, i64::MAX)),
];

const HEADERS: &[(&str, Check)] = &[
    ("set", Check::Items(0, 16)),
    ("set[].name", Check::Token),
    ("set[].value", Check::HeaderValue),
    ("add", Check::Items(0, 16)),
    ("add[].name", Check::Token),
    ("add[].value", Check::HeaderValue),
    ("remove", Check::Items(0, 16)),
];

/// Types of filters and the member that each needs.
const FILTERS: &[(&str, &str)] = &[
    ("RequestHeaderModifier", "requestHeaderModifier"),
    ("ResponseHeaderModifier", "responseHeaderModifier"),
    ("RequestMirror", "requestMirror"),
    ("RequestRedirect", "requestRedirect"),
    ("URLRewrite", "urlRewrite"),
    ("ExtensionRef", "extensionRef"),
    ("CORS", "cors"),
    ("ExternalAuth", "externalAuth"),
];

const GATEWAY: &[(&str, Check)] = &[
    ("gatewayClassName", Check::Needed),
    ("listeners", Check::Items(1, 64)),
    ("listeners[].name", Check::Needed),
    ("listeners[].name", Check::Subdomain),
    ("listeners[].hostname", Check::Host),
    ("listeners[].port", Check::Needed),
    ("listeners[].port", PORT),
    ("listeners[].protocol", Check::Needed),
    ("listeners[].tls.mode", Check::OneOf(&["Terminate", "Passthrough"])),
    ("listeners[].tls.certificateRefs", Check::Items(0, 64)),
    ("listeners[].tls.certificateRefs[].name", Check::Needed),
    ("listeners[].allowedRoutes.kinds", Check::Items(0, 8)),
    ("listeners[].allowedRoutes.namespaces.from", Check::OneOf(&["All", "Selector", "Same"])),
    ("addresses", Check::Items(0, 16)),
];

pub(super) fn http_route(spec: &At<'_>, faults: &mut Faults) {
    parents(spec, faults);
    faults.table(spec, &[("hostnames", Check::Items(0, 16)), ("hostnames[]", Check::Host)]);
    let rules = rules(spec, 16, faults);
    for rule in &rules {
        faults.table(rule, HTTP_RULE);
        for matched in rule.get("matches").items() {
            faults.table(&matched, HTTP_MATCH);
            path(&matched.get("path"), faults);
        }
        backends(rule, rule, faults);
        filters(&rule.get("filters"), rule, faults);
        let redirects = |filter: &At<'_>| filter.get("requestRedirect").is_set();
        if rule.get("backendRefs").len() > 0 && rule.get("filters").items().iter().any(redirects) {
            faults.add(&rule.get("backendRefs"), "a rule that redirects has no backends");
        }
        let limit = |name: &str| {
            let text = rule.get("timeouts").get(name).text()?;
            policy::duration::parse_duration(text).ok()
        };
        if let (Some(whole), Some(part)) = (limit("request"), limit("backendRequest"))
            && !whole.is_zero()
            && part > whole
        {
            let at = rule.get("timeouts").get("backendRequest");
            faults.add(&at, "must not be longer than the request's whole timeout");
        }
    }
}

pub(super) fn grpc_route(spec: &At<'_>, faults: &mut Faults) {
    parents(spec, faults);
    faults.table(spec, &[("hostnames", Check::Items(0, 16)), ("hostnames[]", Check::Host)]);
    for rule in &rules(spec, 16, faults) {
        faults.table(rule, HTTP_RULE);
        for matched in rule.get("matches").items() {
            faults.table(&matched, GRPC_MATCH);
            let method = matched.get("method");
            let named = method.get("service").is_set() || method.get("method").is_set();
            if method.is_set() && !named {
                faults.add(&method, "needs service, method, or both");
            }
        }
        backends(rule, rule, faults);
        filters(&rule.get("filters"), rule, faults);
    }
}

pub(super) fn l4_route(spec: &At<'_>, kind: Kind, faults: &mut Faults) {
    parents(spec, faults);
    if kind == Kind::TlsRoute {
        faults.table(spec, &[("hostnames", Check::Items(1, 1024)), ("hostnames[]", Check::Host)]);
    }
    faults.table(spec, &[("rules", Check::Items(1, 1))]);
    for rule in &rules(spec, 1, faults) {
        faults.table(rule, &[("name", Check::Subdomain), ("backendRefs", Check::Items(1, 16))]);
        backends(rule, rule, faults);
    }
}

pub(super) fn gateway(spec: &At<'_>, faults: &mut Faults) {
    faults.table(spec, GATEWAY);
    let listeners = spec.get("listeners").items();
    faults.unique(listeners.iter().map(|listener| listener.get("name")), "listener");
    let mut seen = std::collections::BTreeSet::new();
    for listener in &listeners {
        let protocol = listener.get("protocol").text().unwrap_or_default();
        let tls = listener.get("tls");
        if tls.is_set() && matches!(protocol, "HTTP" | "TCP" | "UDP") {
            faults.add(&tls, format!("a listener of protocol {protocol} has no TLS"));
        }
        let mode = tls.get("mode").text();
        if protocol == "HTTPS" && mode.is_some_and(|mode| mode != "Terminate") {
            faults.add(&tls.get("mode"), "must be Terminate where the protocol is HTTPS");
        }
        let hostname = listener.get("hostname");
        if hostname.text().is_some_and(|host| !host.is_empty()) && matches!(protocol, "TCP" | "UDP")
        {
            faults.add(&hostname, format!("a listener of protocol {protocol} has no hostname"));
        }
        let port = listener.get("port").number();
        let host = hostname.text().unwrap_or_default();
        if !seen.insert((port, protocol, host)) {
            faults.add(listener, "another listener has the same port, protocol and hostname");
        }
    }
}

fn parents(spec: &At<'_>, faults: &mut Faults) {
    faults.table(spec, PARENTS);
}

/// The rules, their names and the number of their matches.
fn rules<'a>(spec: &At<'a>, most: usize, faults: &mut Faults) -> Vec<At<'a>> {
    let list = spec.get("rules");
    let rules = list.items();
    if list.is_set() {
        faults.hold(&list, Check::Items(0, most));
    }
    faults.unique(rules.iter().map(|rule| rule.get("name")), "rule");
    let matches: usize = rules.iter().map(|rule| rule.get("matches").len()).sum();
    if matches > 128 {
        faults.add(&list, format!("must have 128 matches at most over all rules, not {matches}"));
    }
    rules
}

/// Rule: paths that are compared as text must be in normal form.
fn path(path: &At<'_>, faults: &mut Faults) {
    let Some(value) = path.get("value").text() else { return };
    if path.get("type").text() == Some("RegularExpression") {
        return;
    }
    let at = path.get("value");
    if !value.starts_with('/') {
        faults.add(&at, format!("must begin with '/', not \"{value}\""));
    }
    for part in ["//", "/./", "/../", "%2f", "%2F", "#"] {
        if value.contains(part) {
            faults.add(&at, format!("must not hold \"{part}\": \"{value}\""));
        }
    }
    for end in ["/.", "/.."] {
        if value.ends_with(end) {
            faults.add(&at, format!("must not end with \"{end}\": \"{value}\""));
        }
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%#".contains(&byte);
    if !value.bytes().all(plain) {
        faults.add(&at, format!("holds characters that a path has only as %XX: \"{value}\""));
    }
}

fn backends(holder: &At<'_>, rule: &At<'_>, faults: &mut Faults) {
    for backend in holder.get("backendRefs").items() {
        one_backend(&backend, faults);
        filters(&backend.get("filters"), rule, faults);
    }
}

fn one_backend(backend: &At<'_>, faults: &mut Faults) {
    faults.table(backend, BACKEND);
    let group = backend.get("group").text().unwrap_or_default();
    let kind = backend.get("kind").text().unwrap_or("Service");
    if group.is_empty() && kind == "Service" && !backend.get("port").is_set() {
        faults.add(&backend.get("port"), "is missing: a Service needs one");
    }
}

fn filters(list: &At<'_>, rule: &At<'_>, faults: &mut Faults) {
    faults.hold(list, Check::Items(0, 16));
    let mut seen = std::collections::BTreeSet::new();
    for filter in list.items() {
        let kind = filter.get("type").text().unwrap_or_default();
        let Some((_, member)) = FILTERS.iter().find(|(name, _)| *name == kind) else {
            let names: Vec<&str> = FILTERS.iter().map(|(name, _)| *name).collect();
            let text = format!("must be one of {}, not \"{kind}\"", names.join(", "));
            faults.add(&filter.get("type"), text);
            continue;
        };
        for (_, other) in FILTERS {
            let (set, meant) = (filter.get(other).is_set(), other == member);
            if meant && !set {
                faults.add(&filter.get(other), format!("is missing: the type is {kind}"));
            }
            if set && !meant {
                faults.add(&filter.get(other), format!("does not belong to type {kind}"));
            }
        }
        let repeats = matches!(kind, "RequestMirror" | "ExtensionRef" | "ExternalAuth");
        if !seen.insert(kind) && !repeats {
            faults.add(&filter, format!("{kind} may be there once"));
        }
        one_filter(&filter, rule, faults);
    }
    if seen.contains("RequestRedirect") && seen.contains("URLRewrite") {
        faults.add(list, "a redirect and a rewrite exclude each other");
    }
}

fn one_filter(filter: &At<'_>, rule: &At<'_>, faults: &mut Faults) {
    faults.table(filter, FILTER);
    for name in ["requestHeaderModifier", "responseHeaderModifier"] {
        faults.table(&filter.get(name), HEADERS);
    }
    let mirror = filter.get("requestMirror");
    if mirror.is_set() {
        one_backend(&mirror.get("backendRef"), faults);
        let fraction = mirror.get("fraction");
        if mirror.get("percent").is_set() && fraction.is_set() {
            faults.add(&mirror, "percent and fraction exclude each other");
        }
        let denominator = fraction.get("denominator").number().unwrap_or(100);
        if fraction.get("numerator").number().is_some_and(|number| number > denominator) {
            faults.add(&fraction, format!("must not be more than {denominator}/{denominator}"));
        }
    }
    for name in ["requestRedirect", "urlRewrite"] {
        let path = filter.get(name).get("path");
        let kind = path.get("type").text();
        for (wanted, member) in
            [("ReplaceFullPath", "replaceFullPath"), ("ReplacePrefixMatch", "replacePrefixMatch")]
        {
            let at = path.get(member);
            faults.hold(&at, Check::Longest(1024));
            match (kind == Some(wanted), at.is_set()) {
                (true, false) => faults.add(&at, format!("is missing: the type is {wanted}")),
                (false, true) => faults.add(&at, format!("belongs to type {wanted} only")),
                (true, true) | (false, false) => {}
            }
        }
        if path.is_set() {
            let types = ["ReplaceFullPath", "ReplacePrefixMatch"];
            if !kind.is_some_and(|kind| types.contains(&kind)) {
                faults.add(&path.get("type"), "must be ReplaceFullPath or ReplacePrefixMatch");
            }
        }
        if kind == Some("ReplacePrefixMatch") {
            prefix_only(rule, &path, faults);
        }
    }
}

/// Rule: a prefix can be replaced only where the rule's one match is by a prefix.
fn prefix_only(rule: &At<'_>, path: &At<'_>, faults: &mut Faults) {
    let matches = rule.get("matches").items();
    let by_prefix = |matched: &At<'_>| {
        let kind = matched.get("path").get("type").text();
        kind.is_none_or(|kind| kind == "PathPrefix")
    };
    // None at all is the default: prefix "/".
    if matches.len() > 1 || !matches.iter().all(by_prefix) {
        let text = "needs exactly one match in the rule, of type PathPrefix";
        faults.add(&path.get("type"), text);
    }
}
