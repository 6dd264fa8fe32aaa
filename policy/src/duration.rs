// SPDX-License-Identifier: Apache-2.0

//! Durations as Gateway API writes them.
