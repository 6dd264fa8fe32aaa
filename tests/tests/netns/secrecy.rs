// SPDX-License-Identifier: Apache-2.0

//! No plaintext byte of the application crosses a link once both pods are in the mesh.

use std::net::SocketAddr;
use std::sync::Arc;

use routing::delta::{Kind, Resource};
use tunnel::settings::Limits;
use waymark_tests::netns::Netns;
use waymark_tests::node::World;
use waymark_tests::wire::{Capture, Seen};

use super::talk::Talk;
use crate::{Pair, behind, put, service_for_all, soon};

/// Length of the word that is looked for; nothing else has 32 bytes of it by chance.
const MARKER: usize = 32;

/// How often a request says it, and the answer again: in every segment of it, wherever cut.
const REPEATS: usize = 200;

/// Bytes that no other test of this machine sends.
fn marker() -> Vec<u8> {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new();
    let words = (0..MARKER / 8).map(|at| random.hash_one(at).to_le_bytes());
    words.flatten().collect()
}

/// All that is said between the pods of `pair`, by their addresses or by that of a service,
/// and what was heard of it on both ends of the link and between.
async fn overheard(
    world: &World,
    pair: &Pair,
    service: Option<[std::net::IpAddr; 2]>,
    row: &str,
) -> Vec<Seen> {
    let mut places: Vec<&Netns> = vec![&pair.client.netns, &pair.server.netns];
    let nodes = [pair.client.node, pair.server.node].map(|node| &world.topology.node(node).netns);
    places.extend(nodes);
    if service.is_some() {
        places.extend(world.gateways.iter().map(|gateway| &gateway.pod.netns));
    }
    let marker = marker();
    let capture = Capture::start(&places, &marker).unwrap();
    let word = marker.repeat(REPEATS);
    for v6 in [false, true] {
        for talk in Talk::ALL {
            let target = match service {
                Some(ips) => {
                    SocketAddr::new(ips[usize::from(v6)], talk.service_port().service_port)
                }
                None => SocketAddr::new(pair.server.ip(v6), talk.port()),
            };
            let cell = format!("{row} v6={v6} {talk:?}");
            let stream = soon(&cell, pair.client.netns.connect(target)).await.expect(&cell);
            soon(&cell, talk.exchange(stream, &word)).await.expect(&cell);
        }
    }
    capture.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_plaintext_byte_crosses_the_link_between_enrolled_pods() {
    let mut world = World::new(2, Limits::default()).unwrap();
    world.gateway("waypoint", 1, true).await.unwrap();
    for (number, (name, node)) in (1..).zip([("near", 1), ("far", 2)]) {
        let pair = Pair::new(&mut world, name, (false, false), (1, node)).await;

        // The listeners do hear what is not hidden: all of it, at every place.
        for seen in overheard(&world, &pair, None, &format!("{name}, plain")).await {
            // Each of ten exchanges says it at least once, and is answered.
            let least = 2 * 10 * REPEATS / 2;
            assert!(seen.markers >= least && seen.hbone == 0, "{name}, plain: {seen:?}");
        }

        let names = [format!("client-{name}"), format!("server-{name}")];
        let (mut service, addresses) = service_for_all(name, number);
        for (pod_name, pod) in names.iter().zip([&pair.client, &pair.server]) {
            world.enrol(pod_name, pod).await.unwrap();
            let workload = behind(world.workload(pod_name, pod, true).unwrap(), &service);
            put(&mut world, [workload]);
        }
        let ways = [(None, "direct"), (Some(addresses), "waypoint")];
        for (target, way) in ways {
            if target.is_some() {
                service.waypoint = Some(world.gateways[0].address());
                let service = Resource::Service(Arc::new(service.clone()));
                world.tell(Kind::Address, &[service], &[]).unwrap();
            }
            for seen in overheard(&world, &pair, target, &format!("{name}, {way}")).await {
                assert_eq!(seen.markers, 0, "{name}, {way}: plain bytes in {}", seen.namespace);
                assert!(seen.hbone > 0, "{name}, {way}: nothing was heard: {seen:?}");
            }
        }
    }
}
