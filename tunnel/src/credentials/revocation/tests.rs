// SPDX-License-Identifier: Apache-2.0

//! Lists signed by the root that signs the peers: refused in a handshake, cut when open.

use futures_util::future::LocalBoxFuture;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::io::DuplexStream;
use tokio::time::timeout;

use super::*;
use crate::credentials::tests::{CLIENT, TestAuthority};
use crate::credentials::{Credential, Material};
use crate::hbone::Limits;
use crate::hbone::client::{self, ConnectError};
use crate::hbone::server::{self, AcceptError, Connection, ConnectionError};

const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";
const SOON: Duration = Duration::from_secs(10);

/// One end, and the lists that it holds the other against.
struct End {
    credential: Credential,
    lists: Arc<Revocations>,
}

impl End {
    fn new(authority: &TestAuthority, name: &str) -> Self {
        let identity = name.parse().unwrap();
        let material = Material::new(&identity).unwrap();
        let (answer, lists) = (authority.sign_now(&material.csr), Arc::<Revocations>::default());
        let credential = Credential::checking(
            &identity,
            &answer,
            material.key,
            (Arc::default(), Arc::clone(&lists)),
        )
        .unwrap();
        Self { credential, lists }
    }

    fn leaf(&self) -> &CertificateDer<'static> {
        &self.credential.chain()[0]
    }
}

type Driven = LocalBoxFuture<'static, ()>;

type Ends = (Result<Driven, ConnectError>, Result<Connection<DuplexStream>, AcceptError>);

/// Both ends of a new connection, or why there is none.
fn connect<'a>(from: &'a End, to: &'a End) -> LocalBoxFuture<'a, Ends> {
    Box::pin(async {
        let (near, far) = tokio::io::duplex(64 << 10);
        let limits = Limits::default();
        let identity = SERVER.parse().unwrap();
        let expected = routing::l4::Expected { identity, alternatives: Arc::default() };
        let address = "192.0.2.7:1234".parse().unwrap();
        let (connected, accepted) = tokio::join!(
            client::connect(near, &from.credential, &expected, &limits),
            server::accept(far, address, &to.credential, &limits),
        );
        // The handle is kept with what moves the bytes: without one the connection ends itself.
        let connected = connected.map(|(send, drive)| -> Driven {
            let drive = Box::pin(drive);
            Box::pin(async move {
                drive.await;
                drop(send);
            })
        });
        (connected, accepted)
    })
}

fn scrape(lists: &Arc<Revocations>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(lists)));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test]
async fn revoked_peers_are_refused_by_the_end_that_knows() {
    let (authority, stranger) = (TestAuthority::new(), TestAuthority::new());
    let (from, to) = (End::new(&authority, CLIENT), End::new(&authority, SERVER));
    let both = [from.leaf(), to.leaf()];
    let rows = [
        // name, lists, is the client refused, is the server
        ("no list", String::new(), false, false),
        ("an empty list", authority.revoke(&[]), false, false),
        ("the client", authority.revoke(&both[..1]), true, false),
        ("the server", authority.revoke(&both[1..]), false, true),
        ("a list of another issuer", stranger.revoke(&both), false, false),
        ("behind that one", stranger.revoke(&[]) + &authority.revoke(&both), true, true),
    ];
    for (name, pem, client_out, server_out) in rows {
        to.lists.replace(Some(pem.as_bytes())).expect(name);
        from.lists.replace(None).unwrap();
        let (_, accepted) = connect(&from, &to).await;
        let refused = matches!(&accepted, Err(AcceptError::Tls(error)) if is_revoked(error));
        assert_eq!((refused, accepted.is_err()), (client_out, client_out), "{name}: the client");

        from.lists.replace(Some(pem.as_bytes())).expect(name);
        to.lists.replace(None).unwrap();
        let (connected, _) = connect(&from, &to).await;
        let refused = matches!(&connected, Err(ConnectError::Tls(error)) if is_revoked(error));
        assert_eq!((refused, connected.is_err()), (server_out, server_out), "{name}: the server");
    }
    for (lists, reporter) in [(&from.lists, "source"), (&to.lists, "destination")] {
        let text = scrape(lists);
        for (family, count) in [("policy_rejections", 2), ("untracked_connections", 1)] {
            let line = format!("istio_crl_{family}_total{{reporter=\"{reporter}\"}} {count}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}

#[tokio::test]
async fn open_connections_are_cut_when_a_list_names_the_peer() {
    let authority = TestAuthority::new();
    let (from, to) = (End::new(&authority, CLIENT), End::new(&authority, SERVER));
    let (client, server) = (authority.revoke(&[from.leaf()]), authority.revoke(&[to.leaf()]));

    let (connected, accepted) = connect(&from, &to).await;
    let (mut drive, mut connection) = (connected.unwrap(), accepted.unwrap());
    // Lists that name others leave it alone; both ends are driven while they are read.
    to.lists.replace(Some(server.as_bytes())).unwrap();
    from.lists.replace(Some(client.as_bytes())).unwrap();
    let calm = timeout(Duration::from_millis(100), async {
        tokio::select! {
            next = connection.next() => panic!("{next:?}"),
            () = &mut drive => panic!("the client has ended"),
        }
    });
    calm.await.unwrap_err();
    to.lists.replace(Some(client.as_bytes())).unwrap();
    let next = timeout(SOON, connection.next()).await.expect("the server cuts it");
    assert!(matches!(next, Err(ConnectionError::Revoked(_))), "{next:?}");

    to.lists.replace(None).unwrap();
    from.lists.replace(None).unwrap();
    let (connected, accepted) = connect(&from, &to).await;
    let (drive, mut connection) = (connected.unwrap(), accepted.unwrap());
    from.lists.replace(Some(server.as_bytes())).unwrap();
    timeout(SOON, drive).await.expect("the client cuts it");
    let next = timeout(SOON, connection.next()).await.expect("its end is seen");
    assert!(!matches!(next, Ok(Some(_))), "{next:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_leaves_the_last_good_lists_or_refuses() {
    let authority = TestAuthority::new();
    let (from, to) = (End::new(&authority, CLIENT), End::new(&authority, SERVER));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca-crl.pem");
    let mut file = ListFile::new(path.clone());
    let revoked = authority.revoke(&[from.leaf()]);
    let der = CertificateRevocationListDer::from_pem_slice(revoked.as_bytes()).unwrap();
    let states: [(&str, Option<&[u8]>, bool); 8] = [
        // name, what the file holds, is the client taken
        ("no file", None, true),
        ("garbage before any list", Some(b"garbage"), false),
        ("a good list", Some(authority.revoke(&[]).leak().as_bytes()), true),
        ("garbage after it", Some(b"garbage"), true),
        ("the client, as DER", Some(der.as_ref()), false),
        ("garbage after that", Some(b"-----BEGIN X509 CRL-----\nx"), false),
        ("an empty file", Some(b""), true),
        ("no file again", None, true),
    ];
    for (name, bytes, taken) in states {
        match bytes {
            Some(bytes) => std::fs::write(&path, bytes).unwrap(),
            None => drop(std::fs::remove_file(&path)),
        }
        file.look(&to.lists).await;
        let (_, accepted) = connect(&from, &to).await;
        assert_eq!(accepted.is_ok(), taken, "{name}: {accepted:?}");
    }
}
