// SPDX-License-Identifier: Apache-2.0

//! All that a proxy knows, as of one revision.
//!
//! A snapshot never changes; [`crate::delta::apply`] makes the next one, which
//! shares all that stayed the same. A connection or request takes one and
//! keeps it.

use crate::authorizations::Authorizations;
use crate::discovery::Discovery;
use crate::serving::Serving;

/// All that a proxy knows; immutable, and cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What is where.
    pub discovery: Discovery,
    /// Who may open which session.
    pub authorizations: Authorizations,
    /// What a gateway serves; empty in a tunnel.
    pub serving: Serving,
    /// Counts the applied batches; zero is the empty snapshot.
    pub revision: u64,
}
