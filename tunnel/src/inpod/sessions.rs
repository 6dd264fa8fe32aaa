// SPDX-License-Identifier: Apache-2.0

//! The open sessions of one pod, to be shown.
//!
//! Keeps: a session is listed from its permit to its end; nothing on the way
//! of its bytes touches the list.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// One open session.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenSession {
    /// The pod opened it.
    pub outbound: bool,
    /// Address of the client.
    pub source: SocketAddr,
    /// What the client asked for.
    pub asked: String,
    /// What was dialled.
    pub dialled: Option<SocketAddr>,
    /// It runs inside HBONE on this side of the pod.
    pub hbone: bool,
}

/// All open sessions of a pod; cloning gives the same list.
#[derive(Clone, Debug, Default)]
pub struct OpenSessions(Arc<Mutex<(u64, BTreeMap<u64, OpenSession>)>>);

/// Lists a session until dropped.
#[derive(Debug)]
pub struct Listed {
    all: OpenSessions,
    number: u64,
}

impl OpenSessions {
    /// Lists a session.
    #[must_use]
    pub fn list(&self, session: OpenSession) -> Listed {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, all) = &mut *guard;
        let number = *next;
        *next += 1;
        all.insert(number, session);
        Listed { all: self.clone(), number }
    }

    /// All that are open, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<OpenSession> {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1.values().cloned().collect()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut guard = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        guard.1.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_listed_until_its_end() {
        let sessions = OpenSessions::default();
        let source = "10.0.0.1:1000".parse().unwrap();
        let one = OpenSession {
            outbound: true,
            source,
            asked: "10.0.0.2:80".to_owned(),
            dialled: None,
            hbone: true,
        };
        let listed = sessions.list(one.clone());
        let second = sessions.list(OpenSession { outbound: false, ..one.clone() });
        assert_eq!(sessions.all().len(), 2);
        drop(second);
        assert_eq!(sessions.all(), [one]);
        drop(listed);
        assert!(sessions.all().is_empty());
    }
}
