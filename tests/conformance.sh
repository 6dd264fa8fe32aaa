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

. tests/cluster/mesh.sh
need_mesh

# ---- what the suite's manifests name ---------------------------------------------------------
images() {
  local work tag
  work="$(mktemp -d)"
  for tag in v1.5.1 v1.6.0-dev.2 v1.6.0-dev.3; do
    image "$work/echo-$tag.tar" "registry.k8s.io/gateway-api/echo-basic:$tag" '["/echo-basic"]' \
      "$binaries/echo-basic=echo-basic"
  done
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=echo \
    -keyout "$work/cert.key" -out "$work/cert.crt" 2>/dev/null
  image "$work/echo-advanced.tar" registry.k8s.io/gateway-api/echo-advanced:v1.5.1 '["/usr/local/bin/server"]' \
    "$binaries/echo-server=usr/local/bin/server" "$binaries/echo-client=usr/local/bin/client" \
    "$work/cert.crt=cert.crt" "$work/cert.key=cert.key"
  cluster load-images "$work"/*.tar
  rm -rf "$work"
}
images

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
reports="$(cd "$reports" && pwd)"
failed=0 tests_passed=0 tests_failed=0
# run NAME PROFILES FLAGS... — one run of the suite; a line for each profile, then what failed.
run() {
  local run="$1" chosen="$2" report="$reports/$1.yaml" log="$reports/$1.log" status=0 begun=$SECONDS
  shift 2
  [ -n "$chosen" ] || return 0
  [ -z "$test" ] || set -- "$@" --run-test="$test"
  rm -f "$report"
  # The run before may still be taking its namespaces away.
  kubectl wait --for=delete --timeout=120s namespace/gateway-conformance-{infra,mesh,mesh-consumer,app-backend,web-backend} >/dev/null 2>&1 || true
  # A run takes a few minutes; one that hangs names what it hangs in, before anybody ends it.
  cluster enter "$binaries/conformance" -test.timeout=14m -test.v --conformance-profiles="$chosen" \
    --report-output="$report" --organization=waymark --project=waymark --version="$(git rev-parse --short HEAD)" \
    --url=https://waymark.dev --contact=@waymark "$@" >"$log" 2>&1 || status=1
  failed=$((failed + status))
  [ ! -f "$report" ] || awk '
    $1 == "-" && $2 ~ /^(core|extended):$/ { part = $2 }
    $1 ~ /^(core|extended):$/ { part = $1 }
    $1 ~ /^(Failed|Passed|Skipped):$/ { count[part $1] = $2 }
    $1 == "name:" && $2 ~ /^(GATEWAY|MESH)-/ {
      printf "%-13s core: passed %3d failed %3d   extended: passed %3d failed %3d\n", $2, count["core:Passed:"],
        count["core:Failed:"], count["extended:Passed:"], count["extended:Failed:"]
      delete count }' "$report"
  sed -n 's|^    --- FAIL: TestConformance/\([^/ ]*\) .*|    failed: \1|p' "$log"
  sed -n '/^panic: test timed out/,/^$/s/^/    /p' "$log"
  local ok bad
  ok="$(grep -c '^    --- PASS: TestConformance/' "$log" || true)"
  bad="$(grep -c '^    --- FAIL: TestConformance/' "$log" || true)"
  tests_passed=$((tests_passed + ok)) tests_failed=$((tests_failed + bad))
  echo "$run: $ok tests passed, $bad failed, in $((SECONDS - begun)) s; log and report in $reports"
  if [ "$status" -ne 0 ] && ! grep -q '^    --- ' "$log"; then tail -n 20 "$log" >&2; fi
}
chosen() { # PATTERN — the profiles that match, separated by commas
  printf '%s\n' "${profiles[@]}" | grep "$1" | paste -sd, || true
}
for round in $(seq "$repeat"); do
  [ "$repeat" -eq 1 ] || say "round $round"
  # One address inside the cluster's range for load balancers, one outside.
  run gateway "$(chosen ^GATEWAY)" --gateway-class=waymark \
    --usable-address=172.30.1.200 --unusable-address=198.51.100.7
  [ -z "$(chosen ^MESH)" ] || mesh
  run mesh "$(chosen ^MESH)" --mesh-name=waymark --supported-features="$mesh_features" \
    --namespace-labels=istio.io/dataplane-mode=ambient,istio.io/use-waypoint=waypoint,istio.io/use-waypoint-namespace=mesh-waypoint
done
echo "test result: $([ "$failed" -eq 0 ] && echo ok || echo FAILED). $tests_passed passed; $tests_failed failed; 0 ignored"
[ "$failed" -eq 0 ]
