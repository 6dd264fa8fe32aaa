// SPDX-License-Identifier: Apache-2.0

//! Who may do what: identities, requests, and the one decision about them.
//!
//! Pure: no clock, no socket, no lock, no file. Everything a decision needs is
//! given by the caller, so the same code answers for live traffic, for an
//! offline question and in tests.
//!
//! Start at [`authz::evaluate`]; [`identity::Identity`] is who,
//! [`request::Request`] is what, [`authz::Authorization`] is the rule.

#![forbid(unsafe_code)]

pub mod authz;
pub mod duration;
pub mod identity;
pub mod jwt;
pub mod mtls;
pub mod peer;
pub mod rate;
pub mod request;
pub mod retry;
pub mod timeout;
