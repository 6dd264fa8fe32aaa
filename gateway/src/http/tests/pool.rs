// SPDX-License-Identifier: Apache-2.0

//! Who may use which upstream connection, and for how long.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use http::uri::PathAndQuery;
use policy::identity::Identity;
use tokio::time::sleep;

use super::*;

fn key() -> PoolKey {
    PoolKey {
        address: SocketAddr::from(([10, 0, 0, 1], 80)),
        source: Some("spiffe://td/ns/a/sa/b".parse::<Identity>().expect("an identity")),
        epoch: 1,
        workload: Some("uid-1".into()),
        identity: Some("spiffe://td/ns/a/sa/c".parse::<Identity>().expect("an identity")),
        via: None,
        tls: None,
        protocol: Protocol::Http1,
    }
}

/// Gets a place; tells whether a connection had to be made for it.
async fn get<K: Clone + Eq + std::hash::Hash>(pool: &Pool<K>, key: &K) -> Upstream {
    let dial = async || {
        let (ours, theirs) = duplex(1 << 16);
        scripted(&["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"; 9])(theirs);
        Ok::<_, Infallible>(Dialed { io: Box::new(ours), protocol: Protocol::Http1 })
    };
    pool.get(key, Protocol::Http1, dial).await.expect("a connection")
}

/// One whole exchange, so that the connection goes back.
async fn use_once(mut up: Upstream) -> bool {
    let reused = up.reused();
    let head = RequestHead::new(Method::GET, PathAndQuery::from_static("/"), "a").expect("legal");
    up.put_head(head, Body::None).expect("sent");
    up.put_end(None).expect("sent");
    poll_fn(|cx| up.poll_push(cx)).await.expect("sent");
    poll_fn(|cx| up.poll_head(cx)).await.expect("a response");
    poll_fn(|cx| up.poll_event(cx)).await.expect("its end");
    up.finish();
    reused
}

#[tokio::test]
async fn connections_are_shared_by_equal_keys_only() {
    type Change = fn(&mut PoolKey);
    let others: [(&str, Change); 8] = [
        ("address", |key| key.address.set_port(81)),
        ("source", |key| key.source = "spiffe://td/ns/a/sa/x".parse().ok()),
        ("plain source", |key| key.source = None),
        ("epoch", |key| key.epoch = 2),
        ("workload", |key| key.workload = Some("uid-2".into())),
        ("identity", |key| key.identity = "spiffe://td/ns/b/sa/c".parse().ok()),
        ("via", |key| key.via = Some(SocketAddr::from(([10, 0, 0, 9], 15008)))),
        ("tls", |key| key.tls = Some("ca=1".into())),
    ];
    on_core(async {
        let pool = Pool::new(Arc::new(Limits::default()));
        assert!(!use_once(get(&pool, &key()).await).await);
        assert!(use_once(get(&pool, &key()).await).await);
        for (name, change) in others {
            let mut other = key();
            change(&mut other);
            assert!(!use_once(get(&pool, &other).await).await, "{name}");
        }
        assert!(use_once(get(&pool, &key()).await).await);
    })
    .await;
}

/// Equal hashes, never equal keys.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Colliding(u8);

impl std::hash::Hash for Colliding {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u8(0);
    }
}

#[tokio::test]
async fn equal_hashes_share_nothing() {
    on_core(async {
        let pool = Pool::new(Arc::new(Limits::default()));
        for number in 0..50 {
            assert!(!use_once(get(&pool, &Colliding(number)).await).await, "{number}");
        }
        assert!(use_once(get(&pool, &Colliding(7)).await).await);
    })
    .await;
}

#[tokio::test]
async fn a_dropped_key_gets_nothing_back() {
    on_core(async {
        let pool = Pool::new(Arc::new(Limits::default()));
        use_once(get(&pool, &1).await).await;
        let running = get(&pool, &2).await;
        assert_eq!(pool.held(), 1);
        pool.retain(|_| false);
        assert_eq!(pool.held(), 0);
        use_once(running).await;
        assert_eq!(pool.held(), 0, "a running exchange finishes, its connection is not kept");
        assert!(!use_once(get(&pool, &1).await).await);
    })
    .await;
}

#[tokio::test]
async fn a_connection_with_unasked_bytes_or_closed_is_not_used() {
    on_core(async {
        for extra in [
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 408 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        ] {
            let closes = !extra.contains("408");
            let rig = Rig::new(Protocol::Http1, move |mut io: DuplexStream| {
                tokio::task::spawn_local(async move {
                    read_request(&mut io).await.expect("a request");
                    io.write_all(extra.as_bytes()).await.expect("written");
                    if !closes {
                        std::future::pending::<()>().await;
                    }
                });
            });
            assert!(!use_once(rig.upstream().await.expect("a connection")).await);
            tokio::task::yield_now().await;
            assert!(!use_once(rig.upstream().await.expect("a connection")).await, "{extra}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unused_connections_are_swept() {
    on_core(async {
        let pool = Pool::new(Arc::new(Limits::default()));
        let sweeper = pool.clone();
        let sweep = tokio::task::spawn_local(async move { sweeper.sweep().await });
        use_once(get(&pool, &1).await).await;
        sleep(Duration::from_secs(40)).await;
        assert_eq!(pool.held(), 1);
        sleep(Duration::from_secs(40)).await;
        assert_eq!(pool.held(), 0);
        sweep.abort();
    })
    .await;
}

#[tokio::test]
async fn no_more_are_kept_than_the_limit() {
    on_core(async {
        let pool = Pool::new(Arc::new(Limits { pooled: 3, ..Limits::default() }));
        let mut all = Vec::new();
        for _ in 0..5 {
            all.push(get(&pool, &1).await);
        }
        for up in all {
            use_once(up).await;
        }
        assert_eq!(pool.held(), 3);
    })
    .await;
}
