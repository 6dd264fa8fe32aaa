// SPDX-License-Identifier: Apache-2.0

use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    explain: ExplainArgs,
}

fn bookinfo() -> Known {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/bookinfo");
    let (known, problems) = folder::known(&example).map_err(|failure| failure.message).unwrap();
    assert_eq!(problems, [], "the example is read whole");
    known
}

/// What `waymark explain LINE` says of `known`: the answer, and whether it is let through.
fn ask(known: &Known, line: &[&str]) -> (String, bool) {
    let args = Line::try_parse_from([&["explain"], line].concat()).unwrap().explain;
    let asked = question::read(&args, known).map_err(|failure| failure.message).unwrap();
    let explanation = engine::ask(&asked.question(args.roll), &known.snapshot);
    let permitted = !matches!(explanation.verdict, Verdict::Refused(_));
    let value = value(&asked, &explanation, permitted);
    assert_eq!(value["permitted"], permitted);
    assert_eq!(value["steps"].as_array().unwrap().len(), explanation.steps.len());
    (story(known, &asked, &explanation), permitted)
}

#[test]
fn a_folder_alone_tells_who_may_call_whom() {
    const RATINGS: &str = "http://ratings:9080/ratings/0";
    let cases: [(&[&str], bool, &str); 10] = [
        (
            &["--from", "bookinfo/reviews-v2", "--to", RATINGS],
            true,
            "policy bookinfo/ratings-readers rule",
        ),
        (
            &["--from", "productpage-v1", "--to", RATINGS],
            false,
            "Refused with 403 by policy bookinfo/ratings-readers",
        ),
        (&["--from", "reviews-v2", "--to", RATINGS, "--method", "POST"], false, "Refused with 403"),
        (
            &["--from", "reviews-v2", "--to", "bookinfo/reviews:9080"],
            true,
            "for a request: --to http://reviews.bookinfo:9080/PATH",
        ),
        (
            &["--from", "reviews-v2", "--to", "http://reviews:9080/reviews/0"],
            true,
            "it arrives at pod bookinfo/reviews-v",
        ),
        (
            &["--from", "outside", "--to", "http://localhost:8080/productpage"],
            true,
            "leads to port 80 of gateway bookinfo/bookinfo-gateway",
        ),
        (&["--from", "outside", "--to", "http://localhost/nothing"], false, "Refused with 404"),
        (&["--from", "outside", "--to", "http://example.com:81/productpage"], false, "no listener"),
        (
            &[
                "--from",
                "outside",
                "--to",
                "http://localhost/static/x.css",
                "--gateway",
                "bookinfo-gateway",
            ],
            true,
            "HTTPRoute/bookinfo/bookinfo",
        ),
        (
            &["--from", "reviews-v2", "--to", "192.0.2.1:443"],
            true,
            "it leaves the mesh for 192.0.2.1:443",
        ),
    ];
    let known = bookinfo();
    for (line, permitted, words) in cases {
        let (text, got) = ask(&known, line);
        assert_eq!(got, permitted, "{line:?}\n{text}");
        assert!(text.contains(words), "{line:?}\n{text}");
        assert!(!text.contains("//Pod/"), "{text}");
    }
}

#[test]
fn the_address_of_a_guarded_pod_leads_past_no_policy() {
    let known = bookinfo();
    let mut pods = known.snapshot.discovery.workloads();
    let ratings = pods.find(|pod| *pod.workload_name == *"ratings-v1").unwrap();
    let to = format!("{}:9080", ratings.addresses[0]);
    let (text, permitted) = ask(&known, &["--from", "reviews-v2", "--to", &to]);
    assert!(!permitted, "{text}");
    assert!(text.contains("session policy"), "{text}");
}

#[test]
fn questions_that_cannot_be_asked_say_what_to_do() {
    let cases: [(&[&str], &str); 3] = [
        (&["--from", "outside", "--to", "bookinfo/ratings:9080"], "only gateways are reached"),
        (
            &["--from", "outside", "--to", "http://x/", "--gateway", "no"],
            "there are bookinfo/bookinfo-gateway",
        ),
        (&["--from", "reviews-v2", "--to", "a/b/c"], "expected a URL"),
    ];
    let known = bookinfo();
    for (line, words) in cases {
        let args = Line::try_parse_from([&["explain"], line].concat()).unwrap().explain;
        let failure = question::read(&args, &known).err().unwrap();
        assert!(failure.message.contains(words), "{line:?}: {}", failure.message);
        assert_eq!(failure.code, 2, "{line:?}");
    }
}
