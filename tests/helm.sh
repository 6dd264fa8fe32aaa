#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The chart as Helm itself fills it in and as `waymark manifest` does: the same objects.
#
#   helm.sh            builds `helm` from its Go module when it is not in the cache
#   helm.sh --path     only that, and prints where it is
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
helm="$cache/tools/bin/helm"
version=v3.19.0
if [ ! -x "$helm" ]; then
  command -v go >/dev/null 2>&1 || {
    say "go is missing. Install Go 1.26 or newer (https://go.dev/dl), then run this again."
    exit 1
  }
  say "building helm $version"
  GOBIN="$(dirname "$helm")" CGO_ENABLED=0 go install -trimpath "helm.sh/helm/v3/cmd/helm@$version" >&2
fi
if [ "${1:-}" = --path ]; then
  echo "$helm"
  exit
fi
need_rust
"$helm" lint --quiet controller/deploy/waymark
HELM="$helm" cargo test --locked -p waymark-controller --test helm -- --ignored
