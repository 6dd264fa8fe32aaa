#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds Waymark and runs Bookinfo on this machine: the whole mesh, no cluster.
# Arguments go to `waymark up` (for example --port 9000, --nodes 3).
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/setup.sh

need_basics
say "building Waymark (release); the first build takes some minutes"
cargo build --release --locked -p waymark-tunnel -p waymark-gateway -p waymark-controller -p waymark-examples
exec "$target/release/waymark" up examples/bookinfo "$@"
