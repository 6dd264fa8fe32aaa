// SPDX-License-Identifier: Apache-2.0

//! How much of something one may do per second.
