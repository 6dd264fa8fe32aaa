#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The Gateway API conformance suite, run by its own binary against this mesh on a real cluster.
#
#   conformance.sh [--profile P]... [--test NAME] [--repeat N] [--name CLUSTER] [--report DIR]
#
# Profiles: GATEWAY-HTTP GATEWAY-GRPC GATEWAY-TLS GATEWAY-TCP GATEWAY-UDP MESH-HTTP MESH-GRPC;
# all of them when none is named. A cluster of that name that runs is used as it is, and left.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh

profiles=() name=conformance repeat=1 test= reports="$target/conformance"
while [ $# -gt 0 ]; do
  case "$1" in
    --profile) profiles+=("$2"); shift 2 ;;
    --test) test="$2"; shift 2 ;;
    --repeat) repeat="$2"; shift 2 ;;
    --name) name="$2"; shift 2 ;;
    --report) reports="$2"; shift 2 ;;
    *) sed -n '3,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
  esac
done
[ ${#profiles[@]} -gt 0 ] ||
  profiles=(GATEWAY-HTTP GATEWAY-GRPC GATEWAY-TLS GATEWAY-TCP GATEWAY-UDP MESH-HTTP MESH-GRPC)

cluster() { local verb="$1"; shift; tests/cluster.sh "$verb" --name "$name" "$@"; }
kubectl() { cluster kubectl "$@"; }

need_basics
need_packages jq:jq openssl:openssl
binaries="$(tests/cluster/build.sh)"
if ! cluster status >/dev/null 2>&1; then
  trap 'cluster down' EXIT
  cluster up
fi

# ---- what the suite's manifests name, and the mesh ---------------------------------------
work="$(mktemp -d)"
images() {
  local tag
  for tag in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do
    image "$work/echo-$tag.tar" "registry.k8s.io/gateway-api/echo-basic:$tag" '["/echo-basic"]' \
      "$binaries/echo-basic=echo-basic"
  done
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=echo \
    -keyout "$work/cert.key" -out "$work/cert.crt" 2>/dev/null
  image "$work/echo-advanced.tar" registry.k8s.io/gateway-api/echo-advanced:v1.5.1 '["/usr/local/bin/server"]' \
    "$binaries/echo-server=usr/local/bin/server" "$binaries/echo-client=usr/local/bin/client" \
    "$work/cert.crt=cert.crt" "$work/cert.key=cert.key"
  "$target/debug/waymark" images --output "$work" >/dev/null
  cluster load-images "$work"/*.tar
}
if ! kubectl get deployment -n istio-system waymark-controller >/dev/null 2>&1; then
  say "building, loading and installing the mesh"
  cargo build -q -p waymark-controller -p waymark-gateway -p waymark-tunnel --bins
  images
  definitions=()
  for file in "$binaries"/crds/experimental/gateway.networking.k8s.io_*s.yaml; do
    [[ "$file" == *_vap_* ]] || definitions+=(-f "$file")
  done
  kubectl apply --server-side "${definitions[@]}" >/dev/null
  cluster enter "$target/debug/waymark" install
fi
rm -rf "$work"

# ---- the waypoint of the mesh profiles ------------------------------------------------------
mesh() {
  kubectl apply -f - >/dev/null <<Y
apiVersion: v1
kind: Namespace
metadata: {name: mesh-waypoint}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: mesh-waypoint, labels: {istio.io/waypoint-for: all}}
spec:
  gatewayClassName: waymark-waypoint
  listeners:
  - {name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}
Y
  kubectl wait -n mesh-waypoint --for=condition=Programmed gateway/waypoint --timeout=60s >/dev/null
}

mesh_features=Mesh,MeshHTTPRouteBackendRequestHeaderModification,MeshHTTPRouteNamedRouteRule
mesh_features+=,MeshHTTPRouteQueryParamMatching,MeshHTTPRouteRedirectPath,MeshHTTPRouteRedirectPort
mesh_features+=,MeshHTTPRouteRewritePath,MeshHTTPRouteSchemeRedirect

# ---- the suite -------------------------------------------------------------------------------
mkdir -p "$reports"
failed=0
run() { # PROFILE
  local profile="$1" report log flags=()
  report="$(cd "$reports" && pwd)/$profile.yaml" log="$(cd "$reports" && pwd)/$profile.log"
  rm -f "$report"
  if [[ "$profile" == MESH-* ]]; then
    mesh
    flags+=(--namespace-labels=istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint,istio.io/use-waypoint-namespace=mesh-waypoint
      --supported-features="$mesh_features" --mesh-name=waymark)
  else
    # One address inside the cluster's range for load balancers, one outside.
    flags+=(--gateway-class=waymark --usable-address=172.30.1.200 --unusable-address=198.51.100.7)
  fi
  [ -n "$test" ] && flags+=(--run-test="$test")
  # 60 minutes is the suite's own advice; a run takes a few.
  cluster enter "$binaries/conformance" -test.timeout=60m -test.v --conformance-profiles="$profile" \
    --report-output="$report" --organization=waymark --project=waymark --version="$(git rev-parse --short HEAD)" \
    --url=https://waymark.dev --contact=@waymark "${flags[@]}" >"$log" 2>&1 || failed=$((failed + 1))
  awk -v profile="$profile" '
    /^    --- (PASS|FAIL|SKIP): TestConformance\/[^\/]* / {
      count[$2]++; if ($2 == "FAIL:") names = names "\n    failed: " substr($3, index($3, "/") + 1) }
    END { printf "%-13s passed %3d  failed %3d  not run %3d%s\n", profile, count["PASS:"], count["FAIL:"], count["SKIP:"], names }' "$log"
  if [ -f "$report" ]; then
    awk '/^  (core|extended):/ { part = $1 } /^    statistics:/ { s = 1 } /^      (Failed|Passed|Skipped):/ && s { printf "    %s %s %s\n", part, $1, $2 }' "$report"
  fi
}
for round in $(seq "$repeat"); do
  [ "$repeat" -gt 1 ] && say "round $round"
  for profile in "${profiles[@]}"; do run "$profile"; done
done
[ "$failed" -eq 0 ]
