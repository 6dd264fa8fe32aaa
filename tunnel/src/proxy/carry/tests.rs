// SPDX-License-Identifier: Apache-2.0

//! Bytes over real sockets: all of them, both ways, with their ends.

use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::{Metrics, Reporter, Traffic, WorkerMetrics};

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn counters() -> SessionCounters {
    let traffic = Traffic {
        reporter: Reporter::Source,
        source: None,
        source_identity: None,
        destination: None,
        destination_identity: None,
        service: None,
    };
    WorkerMetrics::new(Arc::new(Metrics::default())).opened(&traffic)
}

#[tokio::test]
async fn all_bytes_arrive_and_each_end_is_passed_on_alone() {
    let (mut client, near) = connected().await;
    let (far, mut server) = connected().await;
    let sent: Vec<u8> = (0..20_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
    let expected = sent.len();
    let session = async {
        let counters = counters();
        both(Side::Tcp(near), Side::Tcp(far), &counters).await.unwrap();
        counters.totals()
    };
    let talk = async {
        let (mut read, mut write) = client.split();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let serve = async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            // The other direction is still open.
            server.write_all(b"thanks").await.unwrap();
            server.shutdown().await.unwrap();
            got
        };
        let mut answer = Vec::new();
        let ((), got, count) = tokio::join!(send, serve, read.read_to_end(&mut answer));
        assert_eq!((count.unwrap(), answer.as_slice()), (6, b"thanks".as_slice()));
        got
    };
    let (totals, got) = tokio::join!(session, talk);
    assert!(got.len() == expected && got == sent);
    assert_eq!(totals, (expected as u64, 6));
}

#[tokio::test]
async fn a_session_that_is_dropped_looks_cut_to_both_peers() {
    let (mut client, near) = connected().await;
    let (far, mut server) = connected().await;
    client.write_all(b"x").await.unwrap();
    {
        let counters = counters();
        let session = both(Side::Tcp(near), Side::Tcp(far), &counters);
        let first = async { server.read_u8().await.unwrap() };
        tokio::select! {
            result = session => panic!("ended: {result:?}"),
            byte = first => assert_eq!(byte, b'x'),
        }
    }
    for (name, side) in [("client", &mut client), ("server", &mut server)] {
        let error = side.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{name}");
    }
}

#[test]
fn buffers_grow_with_a_bulk_stream_and_shrink_with_small_messages() {
    let mut size = SizeClass::default();
    assert_eq!(size.bytes(), 1 << 10);
    while size.passed < 11 << 20 {
        size.read(size.bytes());
    }
    assert_eq!(size.bytes(), 256 << 10);
    for _ in 0..QUIET_READS {
        size.read(100);
    }
    assert_eq!(size.bytes(), 1 << 10);
}
