// SPDX-License-Identifier: Apache-2.0

//! `istio.workload.zds`: the agent hands pods to the tunnel.
//!
//! Owns what a packet holds. Leaves the socket and the descriptor that rides on
//! an [`Request::Add`] to the tunnel.

use std::sync::Arc;

use prost::Message;

use super::error::WireError;
use super::messages::istio::workload::zds as wire;

/// Longest packet in bytes.
pub const MAX_PACKET: usize = 1024;

/// What the agent says; each is answered before the next one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Request {
    /// Serve this pod; its network namespace rides on the packet.
    Add(Pod),
    /// Go on serving the pod with this UID.
    Keep(Arc<str>),
    /// Stop serving the pod with this UID.
    Delete(Arc<str>),
    /// All pods were named.
    SnapshotSent,
}

/// A pod to serve.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pod {
    /// Kubernetes UID of the pod.
    pub uid: Arc<str>,
    /// Name, namespace and account, if the agent knows them.
    pub who: Option<PodName>,
}

/// Who a pod is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodName {
    /// Name of the pod.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

/// First packet, from the tunnel.
pub fn write_hello() -> Vec<u8> {
    wire::ZdsHello { version: wire::Version::V1.into() }.encode_to_vec()
}

/// Reads the first packet.
///
/// # Errors
///
/// [`WireError::Unknown`] for another version.
pub fn read_hello(packet: &[u8]) -> Result<(), WireError> {
    let hello = wire::ZdsHello::decode(packet).map_err(WireError::Message)?;
    match wire::Version::try_from(hello.version) {
        Ok(wire::Version::V1) => Ok(()),
        Ok(wire::Version::NotUsed) | Err(_) => Err(WireError::Unknown("version", hello.version)),
    }
}

impl Request {
    /// Reads a packet of the agent.
    ///
    /// # Errors
    ///
    /// See [`WireError`].
    pub fn read(packet: &[u8]) -> Result<Self, WireError> {
        use wire::workload_request::Payload;
        let request = wire::WorkloadRequest::decode(packet).map_err(WireError::Message)?;
        match request.payload.ok_or(WireError::Missing("payload"))? {
            Payload::Add(add) => Ok(Self::Add(Pod {
                uid: uid(&add.uid)?,
                who: add.workload_info.map(|info| PodName {
                    name: info.name.into(),
                    namespace: info.namespace.into(),
                    service_account: info.service_account.into(),
                }),
            })),
            Payload::Keep(keep) => Ok(Self::Keep(uid(&keep.uid)?)),
            Payload::Del(del) => Ok(Self::Delete(uid(&del.uid)?)),
            Payload::SnapshotSent(wire::SnapshotSent {}) => Ok(Self::SnapshotSent),
        }
    }

    /// Writes a packet of the agent.
    pub fn write(&self) -> Vec<u8> {
        use wire::workload_request::Payload;
        let payload = match self {
            Self::Add(pod) => Payload::Add(wire::AddWorkload {
                uid: pod.uid.to_string(),
                workload_info: pod.who.as_ref().map(|who| wire::WorkloadInfo {
                    name: who.name.to_string(),
                    namespace: who.namespace.to_string(),
                    service_account: who.service_account.to_string(),
                }),
            }),
            Self::Keep(uid) => Payload::Keep(wire::KeepWorkload { uid: uid.to_string() }),
            Self::Delete(uid) => Payload::Del(wire::DelWorkload { uid: uid.to_string() }),
            Self::SnapshotSent => Payload::SnapshotSent(wire::SnapshotSent {}),
        };
        wire::WorkloadRequest { payload: Some(payload) }.encode_to_vec()
    }
}

fn uid(text: &str) -> Result<Arc<str>, WireError> {
    if text.is_empty() { Err(WireError::Missing("uid")) } else { Ok(text.into()) }
}

/// Writes the tunnel's answer to one request: an empty error means that it was served.
pub fn write_ack(error: &str) -> Vec<u8> {
    use wire::workload_response::Payload;
    let ack = wire::Ack { error: error.to_owned() };
    wire::WorkloadResponse { payload: Some(Payload::Ack(ack)) }.encode_to_vec()
}

/// Reads the tunnel's answer: the error, or none if the request was served.
///
/// # Errors
///
/// See [`WireError`].
pub fn read_ack(packet: &[u8]) -> Result<Option<String>, WireError> {
    use wire::workload_response::Payload;
    let response = wire::WorkloadResponse::decode(packet).map_err(WireError::Message)?;
    match response.payload {
        Some(Payload::Ack(ack)) => Ok((!ack.error.is_empty()).then_some(ack.error)),
        None => Err(WireError::Missing("payload")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_those_of_istio_to_the_byte() {
        let who = PodName { name: "p".into(), namespace: "n".into(), service_account: "s".into() };
        let cases: [(Request, &[u8]); 5] = [
            (
                Request::Add(Pod { uid: "u".into(), who: Some(who) }),
                b"\x0a\x0e\x0a\x01u\x12\x09\x0a\x01p\x12\x01n\x1a\x01s",
            ),
            (Request::Add(Pod { uid: "u".into(), who: None }), b"\x0a\x03\x0a\x01u"),
            (Request::Keep("u".into()), b"\x2a\x03\x0a\x01u"),
            (Request::Delete("u".into()), b"\x12\x03\x12\x01u"),
            (Request::SnapshotSent, b"\x1a\x00"),
        ];
        for (request, bytes) in cases {
            assert_eq!(request.write(), bytes, "{request:?}");
            assert_eq!(Request::read(bytes), Ok(request));
        }
        assert_eq!(write_hello(), b"\x08\x01");
        assert_eq!(write_ack("no"), b"\x0a\x04\x0a\x02no");
    }

    #[test]
    fn answers_are_read_as_they_were_written() {
        assert_eq!(read_ack(&write_ack("")), Ok(None));
        assert_eq!(read_ack(&write_ack("no")), Ok(Some("no".into())));
        assert_eq!(read_ack(&[]), Err(WireError::Missing("payload")));
        assert_eq!(read_hello(&write_hello()), Ok(()));
        assert_eq!(read_hello(b"\x08\x02"), Err(WireError::Unknown("version", 2)));
        assert_eq!(read_hello(b""), Err(WireError::Unknown("version", 0)));
    }

    #[test]
    fn a_pod_without_uid_is_refused() {
        for packet in [&b"\x0a\x00"[..], b"\x2a\x00", b"\x12\x00"] {
            assert_eq!(Request::read(packet), Err(WireError::Missing("uid")), "{packet:?}");
        }
        assert_eq!(Request::read(b""), Err(WireError::Missing("payload")));
        assert!(matches!(Request::read(b"\x0a"), Err(WireError::Message(_))));
    }
}
