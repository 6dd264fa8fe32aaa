// SPDX-License-Identifier: Apache-2.0

//! What plaintext a workload takes.
