#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Figures, as ratios taken in one run. Not a test: nothing passes or fails here.
#   bench.sh [mesh] [--rounds 3] [--seconds 2]
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
need_basics
[ "${1:-}" = mesh ] && shift
say "building (release)"
cargo build --release --locked -p waymark-tunnel -p waymark-gateway -p waymark-controller -p waymark-tests
"$target/release/waymark-bench" tests/bench/mesh "$@"
