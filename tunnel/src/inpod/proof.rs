// SPDX-License-Identifier: Apache-2.0

//! The tunnel's half of the proof of capture.
//!
//! The agent opens real connections through a pod's rules: to a reserved
//! address (outbound), to [`PORT`] of the pod (inbound), and name queries. Each
//! carries a nonce. Only the tunnel can answer: it knows the key that the agent
//! keeps beside the ZDS socket, and in which pod and on which listener it took
//! the connection. So a right answer proves that the rules led there.
//!
//! Owns: reserved addresses, the answer, and taking a probe connection. Leaves
//! asking to `agent::probe`, and listeners to the proxies, which call
//! [`Prover::take`] before any policy: a probe reaches nothing but the prover.
//!
//! Keeps: an answer tells nothing but itself; without a key there is none.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Port of every probe connection; no application of a pod is reached on it.
pub const PORT: u16 = 15007;

/// Where outbound probes go (IPv4); a link-local address that nobody has.
pub const ADDRESS_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 126);

/// Where outbound probes go (IPv6).
pub const ADDRESS_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7126, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// Names that prove capture of name queries end so; the label before is the nonce.
pub const NAME_SUFFIX: &str = ".proof.waymark.internal";

/// Name of the key file, in the folder of the ZDS socket.
pub const KEY_FILE: &str = "proof.key";

/// Bytes of a key.
pub const KEY_LEN: usize = 32;

/// Longest time a probe connection may last.
const TAKE_TIMEOUT: Duration = Duration::from_secs(2);

/// Random bytes that make each proof a new one.
pub type Nonce = [u8; 16];

/// What proves that a probe was taken.
pub type Answer = [u8; 32];

/// Which capture is being proven.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// Connections that the pod opens.
    Outbound,
    /// Plain connections that others open to the pod.
    Inbound,
    /// Name queries of the pod.
    Names,
}

impl Way {
    /// Tells whether a connection that was taken this way, on its way to `target`, is a probe.
    #[must_use]
    pub fn is_probe(self, target: SocketAddr) -> bool {
        let reserved = match target.ip().to_canonical() {
            IpAddr::V4(ip) => ip == ADDRESS_V4,
            IpAddr::V6(ip) => ip == ADDRESS_V6,
        };
        match self {
            Self::Outbound => target.port() == PORT && reserved,
            Self::Inbound => target.port() == PORT,
            Self::Names => false,
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Outbound => b'o',
            Self::Inbound => b'i',
            Self::Names => b'n',
        }
    }
}

/// What agent and tunnel of one node share.
#[derive(Clone)]
pub struct Key([u8; KEY_LEN]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_LEN]) -> Self {
        Self(bytes)
    }

    /// Reads a key file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, and `InvalidData` when it does not hold [`KEY_LEN`] bytes.
    pub fn read(path: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(path)?;
        bytes.try_into().map(Self).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The answer to `nonce`, taken in the pod `uid`.
    #[must_use]
    pub fn answer(&self, way: Way, uid: &str, nonce: &Nonce) -> Answer {
        // Everything before the uid has a fixed length, so no two questions collide.
        let mut hash = Sha256::new_with_prefix(b"waymark capture proof 1");
        hash.update(self.0);
        hash.update([way.byte()]);
        hash.update(nonce);
        hash.update(uid);
        hash.finalize().into()
    }
}

/// Answers the agent's probes on the tunnel's side.
#[derive(Clone, Debug)]
pub struct Prover {
    key_file: PathBuf,
}

impl Prover {
    /// A prover with the key that lies beside the ZDS socket at `socket`.
    ///
    /// The file is read at each probe: an agent that starts anew may make a new key.
    #[must_use]
    pub fn beside(socket: &Path) -> Self {
        Self { key_file: socket.with_file_name(KEY_FILE) }
    }

    /// Takes a probe connection: reads its nonce and answers it, within 2 s.
    ///
    /// # Errors
    ///
    /// Those of the stream and of the key file; the caller closes the connection.
    pub async fn take<S>(&self, stream: &mut S, way: Way, uid: &str) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let exchange = async {
            let mut nonce = Nonce::default();
            stream.read_exact(&mut nonce).await?;
            let answer = Key::read(&self.key_file)?.answer(way, uid, &nonce);
            stream.write_all(&answer).await?;
            stream.shutdown().await
        };
        tokio::time::timeout(TAKE_TIMEOUT, exchange).await?
    }

    /// The text record for `name`, queried in the pod `uid`, if the name is a probe's.
    ///
    /// The name is compared without regard to case or a last dot.
    #[must_use]
    pub fn text_record(&self, name: &str, uid: &str) -> Option<String> {
        let nonce = nonce_of(name)?;
        let answer = Key::read(&self.key_file).ok()?.answer(Way::Names, uid, &nonce);
        Some(hex(&answer))
    }
}

/// The name whose query carries `nonce`.
#[must_use]
pub fn name_of(nonce: &Nonce) -> String {
    format!("{}{NAME_SUFFIX}", hex(nonce))
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn nonce_of(name: &str) -> Option<Nonce> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let digits = name.strip_suffix(NAME_SUFFIX)?;
    let mut nonce = Nonce::default();
    if digits.len() != nonce.len() * 2 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in nonce.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prover() -> (tempfile::TempDir, Prover) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(KEY_FILE), [7; KEY_LEN]).unwrap();
        let prover = Prover::beside(&folder.path().join("ztunnel.sock"));
        (folder, prover)
    }

    #[test]
    fn probes_are_known_by_way_and_target() {
        let cases = [
            // way, target, probe
            (Way::Outbound, "169.254.7.126:15007", true),
            (Way::Outbound, "[::ffff:169.254.7.126]:15007", true),
            (Way::Outbound, "[fd16:9254:7126:1337:ffff:ffff:ffff:ffff]:15007", true),
            (Way::Outbound, "[fe80::7126:1337]:15007", false),
            (Way::Outbound, "169.254.7.126:80", false),
            (Way::Outbound, "10.244.1.5:15007", false),
            (Way::Inbound, "10.244.1.5:15007", true),
            (Way::Inbound, "10.244.1.5:8080", false),
            (Way::Names, "169.254.7.126:15007", false),
        ];
        for (way, target, want) in cases {
            assert_eq!(way.is_probe(target.parse().unwrap()), want, "{way:?} {target}");
        }
    }

    #[test]
    fn each_way_pod_nonce_and_key_has_its_own_answer() {
        let key = Key::new([1; KEY_LEN]);
        let answers = [
            key.answer(Way::Outbound, "a", &[0; 16]),
            key.answer(Way::Inbound, "a", &[0; 16]),
            key.answer(Way::Names, "a", &[0; 16]),
            key.answer(Way::Outbound, "b", &[0; 16]),
            key.answer(Way::Outbound, "a", &[1; 16]),
            Key::new([2; KEY_LEN]).answer(Way::Outbound, "a", &[0; 16]),
        ];
        for (index, one) in answers.iter().enumerate() {
            assert!(!answers[index + 1..].contains(one), "answer {index} is given twice");
        }
    }

    #[tokio::test]
    async fn a_taken_probe_gets_the_answer_of_its_pod() {
        let (_folder, prover) = prover();
        let (mut agent, mut tunnel) = tokio::io::duplex(64);
        agent.write_all(&[9; 16]).await.unwrap();
        prover.take(&mut tunnel, Way::Inbound, "uid-1").await.unwrap();
        let mut answer = Answer::default();
        agent.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, Key::new([7; KEY_LEN]).answer(Way::Inbound, "uid-1", &[9; 16]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_probe_ends() {
        let (_folder, prover) = prover();
        let (_agent, mut tunnel) = tokio::io::duplex(64);
        let error = prover.take(&mut tunnel, Way::Inbound, "uid-1").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn names_of_probes_are_answered_and_no_others() {
        let (_folder, prover) = prover();
        let nonce = [0xab; 16];
        let want = hex(&Key::new([7; KEY_LEN]).answer(Way::Names, "uid-1", &nonce));
        let name = name_of(&nonce);
        for asked in [name.clone(), format!("{name}."), name.to_ascii_uppercase()] {
            assert_eq!(prover.text_record(&asked, "uid-1"), Some(want.clone()), "{asked}");
        }
        for asked in ["proof.waymark.internal", "ab.proof.waymark.internal", "example.com", ""] {
            assert_eq!(prover.text_record(asked, "uid-1"), None, "{asked:?}");
        }
    }
}
