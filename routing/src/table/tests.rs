// SPDX-License-Identifier: Apache-2.0

//! Lookup by the cases of the Gateway API suite, and against the plain scan.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::matching::{GrpcMatch, HeaderMatch, PathMatch, Pattern, QueryMatch, TextMatch};
use crate::route::{Retry, RuleName, Timeouts};

fn rule(kind: RouteKind, name: &str, index: u32, matches: Vec<RequestMatch>) -> Arc<Rule> {
    Arc::new(Rule {
        name: RuleName { kind, namespace: "ns".into(), name: name.into(), index },
        rule_name: None,
        created: 7,
        parents: Vec::new(),
        matches,
        filters: Vec::new(),
        backends: Vec::new(),
        timeouts: Timeouts::default(),
        retry: Retry::default(),
    })
}

fn http(name: &str, matches: Vec<RequestMatch>) -> Arc<Rule> {
    rule(RouteKind::Http, name, 0, matches)
}

fn aged(rule: &Arc<Rule>, created: u64) -> Arc<Rule> {
    Arc::new(Rule { created, ..(**rule).clone() })
}

fn prefix(path: &str) -> RequestMatch {
    RequestMatch { path: PathMatch::Prefix(path.into()), ..RequestMatch::any() }
}

fn exact(path: &str) -> RequestMatch {
    RequestMatch { path: PathMatch::Exact(path.into()), ..RequestMatch::any() }
}

fn with_header(name: &'static str, value: &str, of: RequestMatch) -> RequestMatch {
    let header =
        HeaderMatch { name: HeaderName::from_static(name), value: TextMatch::Exact(value.into()) };
    let headers = of.headers.into_iter().chain([header]).collect();
    RequestMatch { headers, ..of }
}

fn with_query(name: &str, value: &str, of: RequestMatch) -> RequestMatch {
    let one = QueryMatch { name: name.into(), value: TextMatch::Exact(value.into()) };
    RequestMatch { query: of.query.into_iter().chain([one]).collect(), ..of }
}

fn with_method(method: Method, of: RequestMatch) -> RequestMatch {
    RequestMatch { method: Some(method), ..of }
}

fn hosts(patterns: &[&str]) -> Vec<HostPattern> {
    patterns.iter().map(|p| p.parse().unwrap()).collect()
}

fn table(rules: &[Arc<Rule>]) -> RouteTable {
    RouteTable::build(rules.iter().map(|rule| (rule, &[] as &[HostPattern])))
}

#[derive(Default)]
struct Ask {
    method: Method,
    host: &'static str,
    target: String,
    headers: HeaderMap,
}

impl Ask {
    fn get(target: &str) -> Self {
        Self { target: target.into(), ..Self::default() }
    }

    fn header(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.append(name, HeaderValue::from_static(value));
        self
    }

    fn head(&self) -> Head<'_> {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        Head { method: &self.method, host: self.host, path, query, headers: &self.headers }
    }

    fn of(&self, table: &RouteTable) -> Option<String> {
        table.find(&self.head()).map(|found| found.rule.name.name.to_string())
    }
}

#[test]
fn http_route_matching_by_prefix_and_header() {
    let table = table(&[
        http("v1", vec![prefix("/"), with_header("version", "one", prefix("/"))]),
        http("v2", vec![prefix("/v2"), with_header("version", "two", prefix("/"))]),
    ]);
    let cases = [
        (Ask::get("/"), "v1"),
        (Ask::get("/example"), "v1"),
        (Ask::get("/").header("version", "one"), "v1"),
        (Ask::get("/v2"), "v2"),
        (Ask::get("/v2/example"), "v2"),
        (Ask::get("/").header("version", "two"), "v2"),
        (Ask::get("/v2/"), "v2"),
        (Ask::get("/v2example"), "v1"),
        (Ask::get("/foo/v2/example"), "v1"),
    ];
    for (ask, want) in cases {
        assert_eq!(ask.of(&table).as_deref(), Some(want), "{}", ask.target);
    }
}

#[test]
fn http_route_exact_path_matching() {
    let table = table(&[http("one", vec![exact("/one")]), http("two", vec![exact("/two")])]);
    let cases = [
        ("/one", Some("one")),
        ("/two", Some("two")),
        ("/", None),
        ("/one/example", None),
        ("/two/", None),
        ("/Two", None),
    ];
    for (target, want) in cases {
        assert_eq!(Ask::get(target).of(&table).as_deref(), want, "{target}");
    }
}

#[test]
fn http_route_path_match_order() {
    let table = table(&[
        http("v3", vec![prefix("/match/prefix/one")]),
        http("v2", vec![prefix("/match/"), prefix("/match/prefix/one/any")]),
        http("v1", vec![exact("/match/exact/one"), prefix("/match/prefix/two/")]),
        http("v4", vec![prefix("/match/exact"), exact("/match/prefix/two")]),
    ]);
    let cases = [
        ("/match/exact/one", "v1"),
        ("/match/exact", "v4"),
        ("/match", "v2"),
        ("/match/prefix/one/any", "v2"),
        ("/match/prefix/one", "v3"),
        ("/match/prefix/two", "v4"),
        ("/match/prefix/two/", "v1"),
        ("/match/prefix/two/any", "v1"),
        ("/match/other", "v2"),
    ];
    for (target, want) in cases {
        assert_eq!(Ask::get(target).of(&table).as_deref(), Some(want), "{target}");
    }
}

#[test]
fn http_route_header_matching() {
    let table = table(&[
        http("v1", vec![with_header("version", "one", prefix("/"))]),
        http("v2", vec![with_header("version", "two", prefix("/"))]),
        http(
            "v1-orange",
            vec![
                with_header("version", "two", with_header("color", "orange", prefix("/"))),
                with_header("color", "yellow", prefix("/")),
            ],
        ),
    ]);
    let cases = [
        (Ask::get("/").header("version", "one"), Some("v1")),
        (Ask::get("/").header("version", "two"), Some("v2")),
        (Ask::get("/").header("version", "two").header("color", "orange"), Some("v1-orange")),
        (Ask::get("/").header("color", "yellow"), Some("v1-orange")),
        (Ask::get("/").header("color", "orange"), None),
        (Ask::get("/").header("some-other-header", "one"), None),
    ];
    for (ask, want) in cases {
        assert_eq!(ask.of(&table).as_deref(), want, "{:?}", ask.headers);
    }
}

#[test]
fn http_route_query_param_matching() {
    let table = table(&[
        http("whale", vec![with_query("animal", "whale", prefix("/"))]),
        http("dolphin", vec![with_query("animal", "dolphin", prefix("/"))]),
        http(
            "both",
            vec![with_query("animal", "dolphin", with_query("color", "blue", prefix("/")))],
        ),
        http("path", vec![with_query("animal", "whale", prefix("/path"))]),
        http("header", vec![with_header("version", "one", prefix("/path"))]),
    ]);
    let cases = [
        ("/?animal=whale", Some("whale")),
        ("/?animal=dolphin", Some("dolphin")),
        ("/?animal=dolphin&color=blue", Some("both")),
        ("/?color=blue&animal=dolphin", Some("both")),
        ("/?animal=whaledolphin", None),
        ("/?ANIMAL=whale", None),
        ("/", None),
        ("/path?animal=whale", Some("path")),
    ];
    for (target, want) in cases {
        assert_eq!(Ask::get(target).of(&table).as_deref(), want, "{target}");
    }
    let both = Ask::get("/path?animal=whale").header("version", "one");
    assert_eq!(both.of(&table).as_deref(), Some("header"), "headers go before query");
}

#[test]
fn http_route_method_matching() {
    let table = table(&[
        http("get", vec![with_method(Method::GET, prefix("/"))]),
        http("path", vec![prefix("/path1")]),
        http("post", vec![with_method(Method::POST, prefix("/path1"))]),
        http("header", vec![with_header("version", "four", prefix("/path1"))]),
    ]);
    let ask = |method: Method, target: &str| Ask { method, ..Ask::get(target) };
    let cases = [
        (ask(Method::GET, "/"), Some("get")),
        (ask(Method::HEAD, "/"), None),
        (ask(Method::GET, "/path1"), Some("path")),
        (ask(Method::POST, "/path1"), Some("post")),
        (ask(Method::POST, "/path1").header("version", "four"), Some("post")),
        (ask(Method::PUT, "/path1").header("version", "four"), Some("header")),
    ];
    for (ask, want) in cases {
        assert_eq!(ask.of(&table).as_deref(), want, "{} {}", ask.method, ask.target);
    }
}

#[test]
fn a_failed_header_falls_back_to_a_shorter_prefix() {
    let table = table(&[
        http("deep", vec![with_header("x", "1", prefix("/a/b/c/d"))]),
        http("middle", vec![with_method(Method::POST, prefix("/a/b"))]),
        http("shallow", vec![prefix("/a")]),
    ]);
    assert_eq!(Ask::get("/a/b/c/d/e").of(&table).as_deref(), Some("shallow"));
    let post = Ask { method: Method::POST, ..Ask::get("/a/b/c/d/e") };
    assert_eq!(post.of(&table).as_deref(), Some("middle"));
    assert_eq!(Ask::get("/a/b/c/d").header("x", "1").of(&table).as_deref(), Some("deep"));
    assert_eq!(Ask::get("/b").of(&table), None);
}

#[test]
fn ties_go_to_the_oldest_then_by_name_then_to_the_first_rule() {
    let same = |name: &str, index, created| {
        aged(&rule(RouteKind::Http, name, index, vec![prefix("/")]), created)
    };
    let rows = [
        (vec![same("a", 0, 9), same("b", 0, 8)], "b", 0, "older"),
        (vec![same("b", 0, 8), same("a", 0, 8)], "a", 0, "name"),
        (vec![same("a", 10, 8), same("a", 9, 8)], "a", 9, "rule order is a number"),
    ];
    for (rules, name, index, why) in rows {
        let table = table(&rules);
        let found = table.find(&Ask::get("/").head()).unwrap().rule.name.clone();
        assert_eq!((&*found.name, found.index), (name, index), "{why}");
    }
}

#[test]
fn http_route_hostname_intersection_and_precedence() {
    let rows = [
        ("exact", vec!["very.specific.com"]),
        ("wildcard", vec!["*.wildcard.io", "*.specific.com"]),
        ("deep", vec!["*.deep.wildcard.io"]),
    ];
    let rules: Vec<_> = rows.iter().map(|(name, _)| http(name, vec![prefix("/s1")])).collect();
    let patterns: Vec<_> = rows.iter().map(|(_, patterns)| hosts(patterns)).collect();
    let table =
        RouteTable::build(rules.iter().zip(&patterns).map(|(rule, p)| (rule, p.as_slice())));
    let cases = [
        ("very.specific.com", Some("exact")),
        ("very.specific.com:1234", Some("exact")),
        ("VERY.specific.com", Some("exact")),
        ("other.specific.com", Some("wildcard")),
        ("foo.wildcard.io", Some("wildcard")),
        ("foo.bar.wildcard.io", Some("wildcard")),
        ("a.deep.wildcard.io", Some("deep")),
        ("deep.wildcard.io", Some("wildcard")),
        ("wildcard.io", None),
        ("specific.com", None),
        ("", None),
    ];
    for (host, want) in cases {
        let ask = Ask { host, ..Ask::get("/s1") };
        assert_eq!(ask.of(&table).as_deref(), want, "{host}");
        assert_eq!(Ask { host, ..Ask::get("/other") }.of(&table), None, "{host}");
    }
}

#[test]
fn a_wider_host_answers_what_the_narrower_one_does_not() {
    let (narrow, wide) = (http("narrow", vec![prefix("/a")]), http("wide", vec![exact("/a/b")]));
    let (one, any) = (hosts(&["foo.example.com"]), hosts(&["*.example.com"]));
    let table = RouteTable::build([(&narrow, one.as_slice()), (&wide, any.as_slice())]);
    let of = |target: &str| Ask { host: "foo.example.com", ..Ask::get(target) }.of(&table);
    assert_eq!(of("/a/b").as_deref(), Some("narrow"), "the host goes before the path");
    assert_eq!(of("/b"), None);
    let wide = RouteTable::build([(&narrow, one.as_slice()), (&wide, &[])]);
    let other = Ask { host: "other", ..Ask::get("/a/b") };
    assert_eq!(other.of(&wide).as_deref(), Some("wide"));
}

#[test]
fn grpc_exact_method_matching() {
    let grpc = |service: Option<&str>, method: Option<&str>| RequestMatch {
        path: PathMatch::Grpc(GrpcMatch {
            service: service.map(|s| TextMatch::Exact(s.into())),
            method: method.map(|m| TextMatch::Exact(m.into())),
        }),
        ..RequestMatch::any()
    };
    let table = table(&[
        rule(RouteKind::Grpc, "any", 0, vec![with_header("x", "1", grpc(None, None))]),
        rule(RouteKind::Grpc, "method", 0, vec![grpc(None, Some("Ping"))]),
        rule(RouteKind::Grpc, "service", 0, vec![grpc(Some("a.Echo"), None)]),
        rule(RouteKind::Grpc, "both", 0, vec![grpc(Some("a.Echo"), Some("EchoTwo"))]),
    ]);
    let cases = [
        ("/a.Echo/EchoTwo", Some("both")),
        ("/a.Echo/EchoThree", Some("service")),
        ("/a.Echo/Ping", Some("service")),
        ("/b.Echo/Ping", Some("method")),
        ("/b.Echo/EchoTwo", None),
        ("/a.Echo", None),
    ];
    for (path, want) in cases {
        assert_eq!(Ask::get(path).of(&table).as_deref(), want, "{path}");
    }
    let ask = Ask::get("/b.Echo/EchoTwo").header("x", "1");
    assert_eq!(ask.of(&table).as_deref(), Some("any"));
}

#[test]
fn tcp_route_multiple_routes_attachment_serves_the_oldest() {
    let (old, new) =
        (rule(RouteKind::Tcp, "z", 0, vec![]), aged(&rule(RouteKind::Tcp, "a", 0, vec![]), 8));
    let mut table = ParentTable::default();
    table.insert(&new, &[]);
    table.insert(&old, &[]);
    assert_eq!(&*table.tcp().unwrap().name.name, "z");
    table.remove(&old, &[]);
    assert_eq!(&*table.tcp().unwrap().name.name, "a");
    table.remove(&new, &[]);
    assert!(table.is_empty());
}

#[test]
fn tls_route_hostname_intersection() {
    let mut table = ParentTable::default();
    let rows = [("exact", "abc.example.com"), ("wildcard", "*.example.com"), ("com", "*.com")];
    for (name, host) in rows {
        table.insert(&rule(RouteKind::Tls, name, 0, vec![]), &hosts(&[host]));
    }
    let cases = [
        (Some("abc.example.com"), Some("exact")),
        (Some("ABC.example.com"), Some("exact")),
        (Some("x.example.com"), Some("wildcard")),
        (Some("example.com"), Some("com")),
        (Some("example.org"), None),
        (None, None),
    ];
    for (sni, want) in cases {
        assert_eq!(table.tls(sni).map(|rule| &*rule.name.name), want, "{sni:?}");
    }
}

#[test]
fn index_answers_as_the_scan_does() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let rules: Vec<_> = (0..random.below(24)).map(|n| random.rule(n)).collect();
        let mut kept = Vec::new();
        let mut table = RouteTable::default();
        for (rule, hosts) in &rules {
            table.insert(rule, hosts);
        }
        // Half of them leave again, so that removal is held to the same judge.
        for (rule, hosts) in &rules {
            if random.below(2) == 0 {
                table.remove(rule, hosts);
            } else {
                kept.push((rule, hosts.as_slice()));
            }
        }
        assert_eq!(table.is_empty(), kept.iter().all(|(rule, _)| rule.matches.is_empty()));
        for _ in 0..40 {
            let ask = random.ask();
            let name = |found: Found<'_>| (found.rule.name.clone(), found.matched.clone());
            let want = scan::find(kept.iter().copied(), &ask.head()).map(name);
            let got = table.find(&ask.head()).map(name);
            assert_eq!(got, want, "seed {seed}, {:?} {} {}", ask.method, ask.host, ask.target);
        }
    }
}

/// SplitMix64: a stream of numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Few words, so that rules meet; among them what could upset a radix tree.
    fn path(&mut self) -> String {
        let words = ["a", "b", "ab", "", "{x}", "{*y}", "a{", "}", "é"];
        let mut path = String::new();
        for _ in 0..self.below(5) {
            path.push('/');
            path.push_str(self.pick(&words));
        }
        if path.is_empty() { self.pick(&["/", "*", "", "x"]).into() } else { path }
    }

    fn text(&mut self) -> TextMatch {
        match self.below(3) {
            0 => TextMatch::Regex(Pattern::new(self.pick(&["a.*", "b|ab", ".*"])).unwrap()),
            _ => TextMatch::Exact(self.pick(&["a", "b", "ab", "a/b", ""]).into()),
        }
    }

    fn entry(&mut self) -> RequestMatch {
        let some = |random: &mut Self| (random.below(2) == 0).then(|| random.text());
        let path = match self.below(6) {
            0 => PathMatch::Exact(self.path().into()),
            1 => PathMatch::Regex(Pattern::new(self.pick(&["/a.*", "/.*", "/(a|b)/?"])).unwrap()),
            2 => PathMatch::Grpc(GrpcMatch { service: some(self), method: some(self) }),
            _ => PathMatch::Prefix(self.path().into()),
        };
        let mut entry = RequestMatch { path, ..RequestMatch::any() };
        if self.below(4) == 0 {
            entry.method = Some(Method::POST);
        }
        if self.below(4) == 0 {
            entry = with_header("x-a", self.pick(&["1", "2"]), entry);
        }
        if self.below(4) == 0 {
            entry = with_query("q", self.pick(&["1", "2"]), entry);
        }
        entry
    }

    fn rule(&mut self, number: usize) -> (Arc<Rule>, Vec<HostPattern>) {
        let matches = (0..self.below(4)).map(|_| self.entry()).collect();
        let (route, index) = (number / 3, u32::try_from(number % 3).unwrap());
        let rule = rule(RouteKind::Http, &format!("r{route}"), index, matches);
        // All rules of a route share its hosts and its age.
        let mut of_route = Self(u64::try_from(route).unwrap().wrapping_add(self.0 >> 60));
        let all = ["a.com", "*.com", "*.a.com", "b.a.com"];
        let mut hosts: Vec<HostPattern> =
            all.iter().filter(|_| of_route.below(3) == 0).map(|h| h.parse().unwrap()).collect();
        if of_route.below(4) == 0 {
            hosts.push(HostPattern::Any);
        }
        (aged(&rule, u64::try_from(of_route.below(3)).unwrap()), hosts)
    }

    fn ask(&mut self) -> Ask {
        let query = self.pick(&["", "?q=1", "?q=2", "?p=1&q=%31"]);
        let ask = Ask {
            method: if self.below(3) == 0 { Method::POST } else { Method::GET },
            host: self.pick(&["a.com", "b.a.com", "c.a.com", "c.com", "com", "", "B.a.com:80"]),
            ..Ask::get(&format!("{}{query}", self.path()))
        };
        if self.below(2) == 0 { ask.header("x-a", "1") } else { ask }
    }
}
