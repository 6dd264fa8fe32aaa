// SPDX-License-Identifier: Apache-2.0

//! SPIFFE names of workloads: parse, hold, print.
//!
//! Owns the three parts of a workload's name and the name itself. Leaves
//! certificates to the tunnel. An [`Identity`] is one shared string with the
//! places of its parts, so cloning counts a reference, comparing compares one
//! string, and matching a principal allocates nothing.
//!
//! Start at [`Identity`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Text that is no legal name of its kind.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a legal {1}")]
pub struct InvalidName(pub String, pub &'static str);

/// Why a text does not name a workload.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidIdentity {
    /// The text does not begin with `spiffe://`.
    #[error("{0:?} is no SPIFFE name")]
    Scheme(String),
    /// The path is not exactly `/ns/<namespace>/sa/<service account>`.
    #[error("{0:?} names no workload, wanted spiffe://<trust domain>/ns/<namespace>/sa/<account>")]
    Path(String),
    /// One of the three parts is not legal.
    #[error("a part of the name is not legal")]
    Part(#[source] InvalidName),
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Longest legal name in bytes.
            pub const MAX_LEN: usize = $max;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            fn check(text: &str) -> Result<(), InvalidName> {
                let allowed: fn(u8) -> bool = $allowed;
                if (1..=Self::MAX_LEN).contains(&text.len()) && text.bytes().all(allowed) {
                    Ok(())
                } else {
                    Err(InvalidName(text.to_owned(), $kind))
                }
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// Root of trust that an identity belongs to, such as `cluster.local`.
    ///
    /// Always 1 to 255 bytes of `a-z`, `0-9`, `-`, `_` and `.` (SPIFFE-ID §2.1);
    /// parsing is the only way in.
    TrustDomain,
    "trust domain",
    255,
    |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.')
);

name_type!(
    /// Name of a Kubernetes namespace.
    ///
    /// Always 1 to 63 bytes of `a-z`, `0-9` and `-` (RFC 1123 label); parsing
    /// is the only way in.
    Namespace,
    "namespace",
    63,
    |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')
);

name_type!(
    /// Name of a service account inside one namespace.
    ///
    /// Always 1 to 253 bytes of `a-z`, `0-9`, `-` and `.` (RFC 1123 subdomain);
    /// parsing is the only way in.
    ServiceAccount,
    "service account",
    253,
    |b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.')
);

const SCHEME: &str = "spiffe://";
const NS: &str = "/ns/";
const SA: &str = "/sa/";

/// SPIFFE name of a workload: `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
///
/// Cheap to clone; two identities are equal if and only if their text is.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Identity {
    uri: Arc<str>,
    trust_domain_len: usize,
    namespace_len: usize,
}

impl Identity {
    /// Puts the three parts together.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &Namespace,
        account: &ServiceAccount,
    ) -> Self {
        Self {
            uri: format!("{SCHEME}{trust_domain}{NS}{namespace}{SA}{account}").into(),
            trust_domain_len: trust_domain.0.len(),
            namespace_len: namespace.0.len(),
        }
    }

    /// The whole name, `spiffe://` included.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    /// The name as Istio's principals write it: without `spiffe://`.
    pub fn principal(&self) -> &str {
        self.uri.strip_prefix(SCHEME).unwrap_or_default()
    }

    /// Trust domain part.
    pub fn trust_domain(&self) -> &str {
        self.part(SCHEME.len(), self.trust_domain_len)
    }

    /// Namespace part.
    pub fn namespace(&self) -> &str {
        self.part(self.namespace_start(), self.namespace_len)
    }

    /// Namespace part, to keep.
    pub fn to_namespace(&self) -> Namespace {
        Namespace(self.namespace().into())
    }

    /// Service account part.
    pub fn service_account(&self) -> &str {
        let start = self.namespace_start() + self.namespace_len + SA.len();
        self.uri.get(start..).unwrap_or_default()
    }

    fn namespace_start(&self) -> usize {
        SCHEME.len() + self.trust_domain_len + NS.len()
    }

    fn part(&self, start: usize, len: usize) -> &str {
        self.uri.get(start..start + len).unwrap_or_default()
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    /// Reads a SPIFFE URI; case counts, and nothing may follow the account.
    fn from_str(text: &str) -> Result<Self, InvalidIdentity> {
        let path = || InvalidIdentity::Path(text.to_owned());
        let rest =
            text.strip_prefix(SCHEME).ok_or_else(|| InvalidIdentity::Scheme(text.to_owned()))?;
        let mut segments = rest.split('/');
        let mut next = || segments.next().ok_or_else(path);
        let (trust_domain, ns, namespace, sa, account) =
            (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || segments.next().is_some() {
            return Err(path());
        }
        TrustDomain::check(trust_domain).map_err(InvalidIdentity::Part)?;
        Namespace::check(namespace).map_err(InvalidIdentity::Part)?;
        ServiceAccount::check(account).map_err(InvalidIdentity::Part)?;
        Ok(Self {
            uri: text.into(),
            trust_domain_len: trust_domain.len(),
            namespace_len: namespace.len(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.uri)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_read_from_the_uri() {
        let id: Identity = "spiffe://cluster.local/ns/bookinfo/sa/productpage".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.namespace(), "bookinfo");
        assert_eq!(id.to_namespace(), "bookinfo".parse().unwrap());
        assert_eq!(id.service_account(), "productpage");
        assert_eq!(id.principal(), "cluster.local/ns/bookinfo/sa/productpage");
        let parts = Identity::new(
            &"cluster.local".parse().unwrap(),
            &"bookinfo".parse().unwrap(),
            &"productpage".parse().unwrap(),
        );
        assert_eq!(id, parts);
    }

    #[test]
    fn other_shapes_are_refused() {
        let cases = [
            "",
            "cluster.local/ns/a/sa/b",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://",
            "spiffe://cluster.local",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/NS/a/sa/b",
            "spiffe://cluster.local/sa/a/ns/b",
            "spiffe://Cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a.b/sa/c",
            "spiffe://cluster.local/ns/a/sa/b?x",
            "spiffe://cluster.local/ns/a/sa/b%2f",
            " spiffe://cluster.local/ns/a/sa/b",
        ];
        for text in cases {
            assert!(text.parse::<Identity>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn printed_parts_read_back(td in "[a-z0-9._-]{1,20}", ns in "[a-z0-9-]{1,63}", sa in "[a-z0-9.-]{1,40}") {
            let id = Identity::new(&td.parse().unwrap(), &ns.parse().unwrap(), &sa.parse().unwrap());
            let read: Identity = id.to_string().parse().unwrap();
            prop_assert_eq!(&read, &id);
            prop_assert_eq!((read.trust_domain(), read.namespace(), read.service_account()), (&*td, &*ns, &*sa));
        }

        #[test]
        fn any_text_that_parses_prints_itself(text in "(spiffe://)?[a-zA-Z0-9/.]{0,40}") {
            if let Ok(id) = text.parse::<Identity>() {
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}
