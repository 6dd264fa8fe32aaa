#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The chart as Helm itself fills it in and as `waymark manifest` does: the same objects.
#
#   helm.sh            builds `helm` from the Go module pinned in helm/ unless it is in the cache
#   helm.sh --path     only that, and prints where it is
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
helm="$cache/helm/$(sha256sum <tests/helm/go.sum | cut -c1-16)/helm"
if [ ! -x "$helm" ]; then
  need_go
  say "building helm"
  mkdir -p "$(dirname "$helm")"
  (cd tests/helm && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$helm.part" helm.sh/helm/v3/cmd/helm) >&2
  mv "$helm.part" "$helm"
fi
if [ "${1:-}" = --path ]; then
  echo "$helm"
  exit
fi
need_basics
"$helm" lint --quiet controller/deploy/waymark
# The packages of run.sh's stage `unit`: what it built serves here, too.
HELM="$helm" cargo test --locked -p waymark-policy -p waymark-routing -p waymark-tunnel \
  -p waymark-gateway -p waymark-controller -p waymark-examples --test helm -- --ignored
