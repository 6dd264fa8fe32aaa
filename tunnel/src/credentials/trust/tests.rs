// SPDX-License-Identifier: Apache-2.0

//! A root is replaced while certificates are in use.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use policy::identity::Identity;
use routing::l4::Expected;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Handle;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::credentials::tests::{CLIENT, TestAuthority};
use crate::credentials::tls::Material;
use crate::credentials::{Authority, AuthorityError, Credential, Credentials, EARLY};

/// A leaf of `signer` for the same identity on all sides, with roots `own`, that goes by `trust`.
fn leaf(signer: &TestAuthority, own: &[&TestAuthority], trust: &Arc<Trust>) -> Credential {
    let identity: Identity = CLIENT.parse().unwrap();
    let material = Material::new(&identity).unwrap();
    let mut answer = signer.sign_now(&material.csr);
    *answer.last_mut().unwrap() = own.iter().map(|one| one.root_pem()).collect();
    let against = (Arc::clone(trust), Arc::default());
    Credential::checking(&identity, &answer, material.key, against).unwrap()
}

type Ends = (client::TlsStream<DuplexStream>, server::TlsStream<DuplexStream>);

/// Connects two certificates, and has each side take a word of the other.
async fn connect(client: &Credential, server: &Credential) -> std::io::Result<Ends> {
    let expected = Expected { identity: CLIENT.parse().unwrap(), alternatives: Arc::default() };
    let connector = TlsConnector::from(client.client(&expected).unwrap());
    let acceptor = TlsAcceptor::from(server.server());
    let (here, there) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("peer").unwrap();
    let (opened, accepted) = tokio::join!(connector.connect(name, here), acceptor.accept(there));
    let mut ends = (opened?, accepted?);
    talk(&mut ends).await?;
    Ok(ends)
}

async fn talk((client, server): &mut Ends) -> std::io::Result<()> {
    client.write_all(b"word").await?;
    server.read_exact(&mut [0; 4]).await?;
    server.write_all(b"word").await?;
    client.read_exact(&mut [0; 4]).await?;
    Ok(())
}

#[tokio::test]
async fn a_peer_of_the_next_root_is_taken_once_that_root_is_told_in_both_directions() {
    let (old, new) = (TestAuthority::new(), TestAuthority::new());
    let both = [old.root_pem(), new.root_pem()];
    let (here, there) = (Arc::<Trust>::default(), Arc::<Trust>::default());
    let ours = leaf(&old, &[&old], &here);
    let theirs = leaf(&new, &[&new, &old], &there);
    assert!(connect(&theirs, &ours).await.is_err(), "a client of an unknown root");
    assert!(connect(&ours, &theirs).await.is_err(), "a server of an unknown root");

    here.tell(&both).unwrap();
    let mut as_server = connect(&theirs, &ours).await.unwrap();
    let mut as_client = connect(&ours, &theirs).await.unwrap();
    assert_eq!(ours.roots().len(), 2);

    // The old root goes; what is open stays open, and the next certificate knows the new alone.
    here.tell(&both[1..]).unwrap();
    there.tell(&both[1..]).unwrap();
    talk(&mut as_server).await.unwrap();
    talk(&mut as_client).await.unwrap();
    let (renewed, of_old) = (leaf(&new, &[&new], &here), leaf(&old, &[&old, &new], &there));
    assert!(connect(&of_old, &renewed).await.is_err(), "a client of the root that went");
    assert!(connect(&renewed, &of_old).await.is_err(), "a server of the root that went");
    connect(&renewed, &theirs).await.unwrap();
}

#[test]
fn roots_that_cannot_be_read_change_nothing() {
    let root = TestAuthority::new().root_pem();
    let trust = Trust::default();
    trust.tell(std::slice::from_ref(&root)).unwrap();
    let cut: String = root.lines().take(3).collect::<Vec<_>>().join("\n");
    for bad in ["", "no certificate", cut.as_str()] {
        let refused = trust.tell(&[root.clone(), bad.to_owned()]);
        assert!(matches!(refused, Err(TrustError::Unreadable(2, _))), "{bad:?}: {refused:?}");
        assert_eq!(trust.with(&[]).len(), 1, "{bad:?}");
    }
    trust.tell(&[]).unwrap();
    assert!(trust.with(&[]).is_empty(), "taken back");
}

/// Signs under the first of its roots, and answers with all of them.
struct Rotating {
    roots: Mutex<Vec<Arc<TestAuthority>>>,
    asked: AtomicUsize,
    trust: Arc<Trust>,
}

impl Rotating {
    fn new(root: &Arc<TestAuthority>) -> Arc<Self> {
        let (asked, trust) = Default::default();
        Arc::new(Self { roots: Mutex::new(vec![Arc::clone(root)]), asked, trust })
    }

    fn set(&self, roots: &[&Arc<TestAuthority>]) {
        *self.roots.lock().unwrap() = roots.iter().map(|root| Arc::clone(root)).collect();
    }

    fn tell(&self, roots: &[&Arc<TestAuthority>]) {
        let roots: Vec<String> = roots.iter().map(|root| root.root_pem()).collect();
        self.trust.tell(&roots).unwrap();
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Authority for Rotating {
    fn sign<'a>(
        &'a self,
        _: &'a Identity,
        csr: &'a str,
    ) -> BoxFuture<'a, Result<Vec<String>, AuthorityError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let roots = self.roots.lock().unwrap();
        let mut answer = roots.first().unwrap().sign_now(csr);
        *answer.last_mut().unwrap() = roots.iter().map(|root| root.root_pem()).collect();
        Box::pin(std::future::ready(Ok(answer)))
    }

    fn trust(&self) -> Arc<Trust> {
        Arc::clone(&self.trust)
    }
}

#[tokio::test(start_paused = true)]
async fn news_of_roots_sets_off_the_renewals_that_they_need_and_no_others() {
    let (old, new) = (Arc::new(TestAuthority::new()), Arc::new(TestAuthority::new()));
    let authority = Rotating::new(&old);
    let credentials = Credentials::new(authority.clone(), Handle::current());
    let held = credentials.hold(&CLIENT.parse().unwrap());
    let first = held.wait(Duration::from_secs(5)).await.unwrap();
    let pass = || tokio::time::sleep(Duration::from_secs(60));

    authority.tell(&[&old]);
    authority.set(&[&old, &new]);
    authority.tell(&[&old, &new]);
    pass().await;
    assert_eq!(authority.asked(), 1, "a root more is trusted without a renewal");
    assert_eq!(first.roots().len(), 2);

    authority.set(&[&new, &old]);
    authority.tell(&[&new, &old]);
    pass().await;
    let second = held.current().unwrap();
    assert_eq!(authority.asked(), 2, "one renewal under the new root");
    assert!(second.epoch() > first.epoch());

    authority.set(&[&new]);
    authority.tell(&[&new]);
    pass().await;
    assert_eq!((authority.asked(), held.current().unwrap().roots().len()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_hears_of_it_late_is_asked_again_but_not_for_ever() {
    let (old, new) = (Arc::new(TestAuthority::new()), Arc::new(TestAuthority::new()));
    let authority = Rotating::new(&old);
    let credentials = Credentials::new(authority.clone(), Handle::current());
    let held = credentials.hold(&CLIENT.parse().unwrap());
    held.wait(Duration::from_secs(5)).await.unwrap();
    authority.tell(&[&new, &old]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let late = authority.asked();
    assert!((3..=5).contains(&late), "{late}");
    authority.set(&[&new, &old]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let settled = authority.asked();
    assert!(held.current().unwrap().is_of_told_roots());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(authority.asked(), settled);

    // One that never agrees is asked no more after a while.
    authority.tell(&[&old, &new]);
    tokio::time::sleep(Duration::from_secs(1000)).await;
    let given_up = authority.asked() - settled;
    assert!(given_up <= 1 + EARLY, "{given_up}");
}
