// SPDX-License-Identifier: Apache-2.0

//! Spans of sessions: one at each end, in one trace, for those that are sampled.

use std::collections::BTreeMap;
use std::sync::Arc;

use tunnel::settings::Limits;
use tunnel::trace::{MILLION, Tracer};
use waymark_tests::collector::{Collector, Span};
use waymark_tests::node::World;

use super::talk::Talk;
use crate::{Pair, deny, soon};

fn tracer(collector: &Collector, sampled_per_million: u32) -> Arc<Tracer> {
    let endpoint = format!("http://{}", collector.address);
    Arc::new(Tracer::start(endpoint, "ztunnel".to_owned(), [], sampled_per_million).unwrap())
}

async fn next(collector: &mut Collector, count: usize) -> BTreeMap<String, Span> {
    let mut spans = BTreeMap::new();
    for number in 0..count {
        let span = soon(&format!("span {number}"), collector.next()).await.unwrap();
        spans.insert(span.name.clone(), span);
    }
    spans
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sampled_session_has_a_span_at_each_end_of_one_trace() {
    let mut collector = Collector::start().await.unwrap();
    // The other end begins no trace, and follows those that come.
    let traces = [tracer(&collector, MILLION), tracer(&collector, 0)];
    let mut world = World::traced(2, Limits::default(), &traces.map(Some)).unwrap();
    let pair = Pair::new(&mut world, "spans", (true, true), (1, 2)).await;
    let stream = pair.connect(Talk::Raw.port(), false).await.unwrap();
    soon("an exchange", Talk::Raw.exchange(stream, b"word")).await.unwrap();

    let spans = next(&mut collector, 2).await;
    let (out, into) = (&spans["outbound"], &spans["inbound"]);
    assert_eq!((out.parent.len(), out.trace.len()), (0, 16), "the first of its trace: {out:?}");
    assert_eq!((&into.parent, &into.trace), (&out.id, &out.trace), "{into:?}");
    let server = pair.server.v4;
    let wanted = [
        ("src.workload", "client-spans".to_owned()),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/client-spans".to_owned()),
        ("dst.workload", "server-spans".to_owned()),
        ("dst.hbone_addr", format!("{server}:8080")),
        ("bytes_sent", "8".to_owned()),
    ];
    for (key, value) in wanted {
        assert_eq!(out.attributes.get(key), Some(&value), "{key}: {out:?}");
    }
    assert_eq!(into.attributes["direction"], "inbound");

    // One that is refused says why, at both ends.
    let policy = [deny("no-client", "client-spans")];
    world.tell(routing::delta::Kind::Authorization, &policy, &[]).unwrap();
    let mut refuse = world.workload("server-spans", &pair.server, true).unwrap();
    refuse.authorization_policies = vec![policy::authz::PolicyName::new("shop", "no-client")];
    crate::put(&mut world, [refuse]);
    let stream = pair.connect(Talk::Raw.port(), true).await.unwrap();
    soon("a refusal", Talk::Raw.exchange(stream, b"word")).await.unwrap_err();
    let spans = next(&mut collector, 2).await;
    assert_eq!(spans["inbound"].parent, spans["outbound"].id);
    assert_eq!(spans["outbound"].attributes["error"], "http status: 401 Unauthorized");
    assert!(spans["inbound"].attributes["error"].contains("no-client"), "{spans:?}");
}
