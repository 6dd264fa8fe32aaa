// SPDX-License-Identifier: Apache-2.0

use super::*;
use routing::wire::zds::{write_ack, write_hello};

/// The tunnel's side of one connection.
struct Peer(PacketSocket);

impl Peer {
    async fn connect(path: &Path) -> Self {
        let peer = Self(PacketSocket::connect(path, MAX_PACKET).unwrap());
        peer.0.send(&write_hello(), None).await.unwrap();
        peer
    }

    /// The next request, as text, and how many descriptors came with it.
    async fn next(&self) -> (String, usize) {
        let packet = self.0.receive().await.unwrap().unwrap();
        let text = match Packet::read(&packet.bytes).unwrap() {
            Packet::Add(Pod { uid, who }) => {
                let who = who.unwrap();
                format!("add {uid} {}/{} {}", who.namespace, who.name, who.service_account)
            }
            Packet::Keep(uid) => format!("keep {uid}"),
            Packet::Delete(uid) => format!("del {uid}"),
            Packet::SnapshotSent => "snapshot".to_owned(),
        };
        (text, packet.descriptors.len())
    }

    async fn ack(&self, error: &str) {
        self.0.send(&write_ack(error), None).await.unwrap();
    }

    /// Answers requests until the snapshot is complete.
    async fn snapshot(&self) -> Vec<(String, usize)> {
        let mut all = Vec::new();
        loop {
            let next = self.next().await;
            self.ack("").await;
            if next.0 == "snapshot" {
                return all;
            }
            all.push(next);
        }
    }
}

fn pod(uid: &str, netns: bool) -> ServedPod {
    ServedPod {
        uid: uid.into(),
        who: PodName {
            name: format!("name-{uid}").into(),
            namespace: "shop".into(),
            service_account: "seller".into(),
        },
        netns: netns.then(|| Arc::new(NetworkNamespace::current().unwrap())),
    }
}

/// A server in a folder of its own.
fn server() -> (tempfile::TempDir, std::path::PathBuf, Zds) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ztunnel.sock");
    let zds = Zds::new();
    let (served, at) = (zds.clone(), path.clone());
    tokio::spawn(async move { serve(served, &at).await });
    (folder, path, zds)
}

async fn listening(path: &Path) {
    while !path.exists() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_new_tunnel_gets_every_pod_with_its_namespace() {
    let (_folder, path, zds) = server();
    zds.restore(pod("a", true));
    zds.restore(pod("b", false));
    listening(&path).await;
    let peer = Peer::connect(&path).await;
    let got = peer.snapshot().await;
    let want = [("add a shop/name-a seller".to_owned(), 1), ("keep b".to_owned(), 0)];
    assert_eq!(got, want);
    let mut connected = zds.connected();
    let state = connected.wait_for(|connected| connected.tunnels == 1).await.unwrap();
    assert_eq!(*state, Connected { tunnels: 1, generation: 1 });
}

#[tokio::test]
async fn additions_wait_for_the_newest_tunnel_and_removals_for_all() {
    let (_folder, path, zds) = server();
    listening(&path).await;
    let old = Peer::connect(&path).await;
    old.snapshot().await;
    let new = Peer::connect(&path).await;
    new.snapshot().await;

    let adding = tokio::spawn({
        let zds = zds.clone();
        async move { zds.add(pod("a", true)).await }
    });
    assert_eq!(new.next().await, ("add a shop/name-a seller".to_owned(), 1));
    assert!(!adding.is_finished(), "an addition is done when the tunnel says so");
    new.ack("").await;
    adding.await.unwrap().unwrap();

    let removing = tokio::spawn({
        let zds = zds.clone();
        async move { zds.delete(&"a".into()).await }
    });
    for peer in [&old, &new] {
        assert_eq!(peer.next().await, ("del a".to_owned(), 0));
        peer.ack("").await;
    }
    removing.await.unwrap().unwrap();
}

#[tokio::test]
async fn refusals_name_their_reason_and_leave_the_connection() {
    let (_folder, path, zds) = server();
    listening(&path).await;
    let peer = Peer::connect(&path).await;
    peer.snapshot().await;
    for reason in ["no such namespace", ""] {
        let adding = tokio::spawn({
            let zds = zds.clone();
            async move { zds.add(pod("a", true)).await }
        });
        peer.next().await;
        peer.ack(reason).await;
        match adding.await.unwrap() {
            Err(ZdsError::Refused(text)) => assert_eq!(text, reason),
            outcome => assert!(outcome.is_ok() && reason.is_empty(), "{outcome:?}"),
        }
    }
}

#[tokio::test]
async fn without_a_tunnel_an_addition_fails_and_is_made_up_for() {
    let (_folder, path, zds) = server();
    listening(&path).await;
    assert!(matches!(zds.add(pod("a", true)).await, Err(ZdsError::NoTunnel)));
    let peer = Peer::connect(&path).await;
    assert_eq!(peer.snapshot().await.len(), 1);
    drop(peer);
    let mut connected = zds.connected();
    connected.wait_for(|connected| connected.tunnels == 0).await.unwrap();
    assert!(matches!(zds.add(pod("b", true)).await, Err(ZdsError::NoTunnel)));
}

#[tokio::test]
async fn other_words_end_the_connection() {
    let (_folder, path, _zds) = server();
    listening(&path).await;
    // An empty packet cannot be told from the end, so version 0 is written out.
    for (name, bytes) in [("no hello", [0xff; 9].to_vec()), ("version 0", vec![8, 0])] {
        let peer = PacketSocket::connect(&path, MAX_PACKET).unwrap();
        peer.send(&bytes, None).await.unwrap();
        assert!(peer.receive().await.unwrap().is_none(), "{name}");
    }
}
