// SPDX-License-Identifier: Apache-2.0

//! What the process listens on: as the snapshot asks, added and removed while running.

mod hello;
mod proxy_protocol;
mod rewound;
