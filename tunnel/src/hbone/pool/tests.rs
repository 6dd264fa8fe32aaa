// SPDX-License-Identifier: Apache-2.0

//! Client and server over in-memory streams: real TLS, real HTTP/2.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::*;
use crate::credentials::tests::{CLIENT, TestAuthority};
use crate::hbone::POD_UID;
use crate::hbone::server;

const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// A mesh of one client and one kind of server.
struct World {
    authority: TestAuthority,
    pool: Pool,
    dialled: Rc<std::cell::Cell<usize>>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let (authority, pool) = (TestAuthority::new(), Pool::new(limits));
        Self { authority, pool, dialled: Rc::default() }
    }

    fn key(&self, credential: &Credential, expected: &str) -> Key {
        Key {
            source: credential.identity().clone(),
            epoch: credential.epoch(),
            source_pod: "source".into(),
            workload: "workload".into(),
            pod_uid: None,
            address: "192.0.2.1:15008".parse().unwrap(),
            expected: expected_of(expected),
        }
    }

    /// Opens a stream to `authority`, dialling servers that `serve` runs.
    async fn open(
        &self,
        credential: &Arc<Credential>,
        expected: &str,
        authority: &str,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let key = self.key(credential, expected);
        let ask = Ask::new(&authority.parse().unwrap(), HeaderMap::new()).unwrap();
        let server = self.authority.credential(SERVER);
        let dialled = Rc::clone(&self.dialled);
        let dial = || {
            let (server, dialled) = (Arc::clone(&server), Rc::clone(&dialled));
            async move {
                dialled.set(dialled.get() + 1);
                let (near, far) = tokio::io::duplex(64 << 10);
                tokio::task::spawn_local(serve(far, server));
                Ok(near)
            }
        };
        self.pool.open(&key, credential, &ask, dial).await
    }
}

fn expected_of(identity: &str) -> Expected {
    Expected { identity: identity.parse().unwrap(), alternatives: Arc::default() }
}

/// Echoes every stream; port 1 refuses by policy, port 2 is another pod's.
async fn serve(stream: DuplexStream, credential: Arc<Credential>) {
    let address = "192.0.2.7:1234".parse().unwrap();
    let limits = Limits::default();
    let Ok(mut connection) = server::accept(stream, address, &credential, &limits).await else {
        return;
    };
    assert_eq!(connection.peer().identity.as_ref().unwrap().as_str(), CLIENT);
    while let Ok(Some(connect)) = connection.next().await {
        assert!(connect.head().headers.get(POD_UID).is_none());
        match connect.authority() {
            "192.0.2.1:1" => connect.refuse(StatusCode::UNAUTHORIZED, None),
            "192.0.2.1:2" => connect.refuse(StatusCode::SERVICE_UNAVAILABLE, Some(REFUSED_UID)),
            "192.0.2.1:3" => {
                connection.drain();
                connect.refuse(StatusCode::SERVICE_UNAVAILABLE, None);
            }
            _ => {
                let stream = connect.accept(HeaderMap::new()).unwrap();
                tokio::task::spawn_local(async move {
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await.unwrap();
                    write.shutdown().await.unwrap();
                });
            }
        }
    }
}

async fn in_worker(test: impl Future<Output = ()>) {
    LocalSet::new().run_until(Box::pin(test)).await;
}

#[tokio::test]
async fn bytes_and_ends_pass_both_ways_over_one_connection() {
    in_worker(async {
        let world = World::new(Limits::default());
        let credential = world.authority.credential(CLIENT);
        for round in 0..3_u8 {
            let (mut stream, _) = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
            let sent: Vec<u8> = vec![round; 6 << 20];
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let send = async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(send, read.read_to_end(&mut got));
            assert_eq!((read.unwrap(), got == sent), (sent.len(), true), "more than all windows");
        }
        assert_eq!(world.dialled.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn many_streams_wait_for_one_connection_and_busy_ones_get_a_second() {
    in_worker(async {
        let world = World::new(Limits { busy_streams: 4, connections: 2, ..Limits::default() });
        let credential = world.authority.credential(CLIENT);
        let opens = (0..16).map(|_| world.open(&credential, SERVER, "192.0.2.1:80"));
        let streams = futures_util::future::join_all(opens).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!(world.dialled.get(), 1, "all waited for the first one");
        let more = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        while world.pool.connections() < 2 {
            tokio::task::yield_now().await;
        }
        drop((streams, more));
        let _again = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        assert_eq!(world.dialled.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn unexpected_server_and_foreign_roots_never_see_a_stream() {
    in_worker(async {
        let world = World::new(Limits::default());
        let ours = world.authority.credential(CLIENT);
        let foreign = TestAuthority::new().credential(CLIENT);
        let expired = world.authority.expired(CLIENT);
        let stranger = "spiffe://other.domain/ns/shop/sa/client";
        let cases = [
            ("another server", ours, "spiffe://cluster.local/ns/shop/sa/else"),
            ("foreign roots", foreign, SERVER),
            ("expired", expired, SERVER),
            ("another trust domain", world.authority.credential(stranger), SERVER),
        ];
        for (row, credential, expected) in cases {
            let result = world.open(&credential, expected, "192.0.2.1:80").await;
            let error = result.map(|_| ()).unwrap_err();
            // In TLS 1.3 a client learns only later that the server refused it.
            let refused = matches!(&error, OpenError::Connect(_) | OpenError::Broken(_));
            assert!(refused, "{row}: {error}");
        }
    })
    .await;
}

#[tokio::test]
async fn refusals_say_whether_to_try_elsewhere() {
    in_worker(async {
        let world = World::new(Limits::default());
        let credential = world.authority.credential(CLIENT);
        let cases = [
            // authority, status, another pod, try elsewhere
            ("192.0.2.1:1", 401, false, false),
            ("192.0.2.1:2", 503, true, true),
        ];
        for (authority, want_status, want_other, elsewhere) in cases {
            let error = world.open(&credential, SERVER, authority).await.map(|_| ()).unwrap_err();
            assert_eq!(error.try_elsewhere(), elsewhere, "{authority}");
            let OpenError::Refused { status, other_pod } = error else {
                panic!("{authority}: {error}")
            };
            assert_eq!((status.as_u16(), other_pod), (want_status, want_other), "{authority}");
        }
    })
    .await;
}

#[tokio::test]
async fn drained_and_removed_connections_take_no_new_stream() {
    in_worker(async {
        let world = World::new(Limits::default());
        let credential = world.authority.credential(CLIENT);
        let (mut open, _) = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        world.open(&credential, SERVER, "192.0.2.1:3").await.map(|_| ()).unwrap_err();
        world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        assert_eq!(world.dialled.get(), 2, "the server said GOAWAY");

        open.write_all(b"still").await.unwrap();
        let mut got = [0; 5];
        open.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still", "a drained connection finishes what it carries");

        world.pool.remove(|key| &*key.workload == "workload");
        world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        assert_eq!(world.dialled.get(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_cut_stream_is_not_an_end() {
    in_worker(async {
        let world = World::new(Limits::default());
        let credential = world.authority.credential(CLIENT);
        let (mut stream, _) = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        let (_receive, mut transmit) = {
            stream.write_all(b"x").await.unwrap();
            stream.split()
        };
        transmit.reset();
        let (near, mut told) = mpsc::channel::<()>(1);
        drop(near);
        assert!(told.recv().await.is_none());
        assert!(transmit.finish().is_ok(), "ending after a reset sends nothing more");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_and_used_ones_kept() {
    in_worker(async {
        let world = World::new(Limits { idle: Duration::from_secs(60), ..Limits::default() });
        let credential = world.authority.credential(CLIENT);
        tokio::task::spawn_local(world.pool.clone().close_idle());
        let (stream, _) = world.open(&credential, SERVER, "192.0.2.1:80").await.unwrap();
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(world.pool.connections(), 1);
        drop(stream);
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(world.pool.connections(), 0);
    })
    .await;
}
