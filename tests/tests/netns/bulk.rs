// SPDX-License-Identifier: Apache-2.0

//! A GiB each way at once, whole and in order, in bounded time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use routing::delta::{Kind, Resource};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tunnel::settings::Limits;
use waymark_tests::node::World;

use crate::{Pair, behind, put, service, soon};

/// Bytes of one direction.
const SIZE: u64 = 1 << 30;

/// Bytes of one block; a block says its place, so none can be missing, twice or moved.
const BLOCK: usize = 256 << 10;

/// Longest time for both directions on a machine that builds something else meanwhile.
const LIMIT: Duration = Duration::from_secs(240);

const PORT: u16 = 9000;

/// The checksum of everything that one end has sent or received.
type Sum = crc32fast::Hasher;

fn block() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(BLOCK / 8).flatten().collect()
}

async fn send(mut to: impl AsyncWrite + Unpin) -> anyhow::Result<u32> {
    let (mut block, mut sum) = (block(), Sum::new());
    for place in 0..SIZE / BLOCK as u64 {
        block[..8].copy_from_slice(&place.to_le_bytes());
        sum.update(&block);
        to.write_all(&block).await?;
    }
    to.shutdown().await?;
    Ok(sum.finalize())
}

async fn receive(mut from: impl AsyncRead + Unpin) -> anyhow::Result<u32> {
    let (mut want, mut got, mut sum) = (block(), vec![0; BLOCK], Sum::new());
    for place in 0..SIZE / BLOCK as u64 {
        want[..8].copy_from_slice(&place.to_le_bytes());
        from.read_exact(&mut got).await?;
        ensure!(got == want, "block {place} has changed");
        sum.update(&got);
    }
    ensure!(from.read(&mut got).await? == 0, "more than was sent");
    Ok(sum.finalize())
}

/// Both directions of one connection at once: what was sent, and what has come.
async fn both(stream: TcpStream) -> anyhow::Result<(u32, u32)> {
    let (read, write) = stream.into_split();
    let (sent, got) = (tokio::spawn(send(write)), tokio::spawn(receive(read)));
    Ok((sent.await??, got.await??))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gib_each_way_arrives_whole_through_tunnels_and_waypoint() {
    let mut world = World::new(2, Limits::default()).unwrap();
    world.gateway("waypoint", 1, true).await.unwrap();
    let pair = Pair::new(&mut world, "bulk", (true, true), (1, 2)).await;
    let mut bulk = service("bulk", "10.96.0.9", 80, PORT);
    bulk.waypoint = Some(world.gateways[0].address());
    let server = behind(world.workload("server-bulk", &pair.server, true).unwrap(), &bulk);
    world.tell(Kind::Address, &[Resource::Service(Arc::new(bulk))], &[]).unwrap();
    put(&mut world, [server]);
    let pod = SocketAddr::new(pair.server.ip(true), PORT);
    let listeners = [pod, SocketAddr::new(pair.server.ip(false), PORT)]
        .map(|at| pair.server.netns.listen(at).unwrap());
    let ways: [(&str, SocketAddr); 2] =
        [("two tunnels", pod), ("tunnel, waypoint, tunnel", "10.96.0.9:80".parse().unwrap())];
    for (name, target) in ways {
        let client = soon(name, pair.client.netns.connect(target)).await.unwrap();
        let (server, _) = soon(name, async {
            tokio::select! {
                accepted = listeners[0].accept() => accepted,
                accepted = listeners[1].accept() => accepted,
            }
        })
        .await
        .unwrap();
        let all = async { tokio::try_join!(both(client), both(server)) };
        let carried = timeout(LIMIT, all).await.unwrap_or_else(|_| panic!("{name}: too slow"));
        let carried = carried.unwrap_or_else(|error| panic!("{name}: {error:#}"));
        let ((up, down), (down_sent, up_got)) = carried;
        assert_eq!((up, down), (up_got, down_sent), "{name}: checksums");
    }
}
