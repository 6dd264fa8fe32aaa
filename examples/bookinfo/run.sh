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
# The same set of packages everywhere: another set has other features, and builds much anew.
cargo build --release --locked --workspace --bins
exec "$target/release/waymark" up examples/bookinfo "$@"
