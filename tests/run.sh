#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# All tests, cheap ones first; one progress line a stage, counts at the end.
# Names of stages as arguments run only those: ./tests/run.sh fmt clippy
# helm takes Go. On a real Kubernetes, which takes Go and root: clusters, which starts two of its
# own, and lifecycle, walkthrough, pods, gateways, tokens, faults, conformance, which one cluster
# serves.
# Without Go or root they are skipped, and told.
set -uo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
need_basics || exit 1

passed=0 failed=0 skipped=0
logs="$(mktemp -d)"
trap 'rm -rf "$logs"' EXIT
only=("$@")
begun_all=$SECONDS

# named STAGE... — whether one of them is to run.
named() {
  local one
  [ ${#only[@]} -gt 0 ] || return 0
  for one in "$@"; do [[ " ${only[*]} " != *" $one "* ]] || return 0; done
  return 1
}

# stage NAME COMMAND... — runs it, counts what a test runner in it counted, else itself.
stage() {
  local name="$1" log begun status=ok ok bad skip
  shift
  named "$name" || return 0
  log="$logs/$name.log"
  begun=$SECONDS
  "$@" >"$log" 2>&1 || status=failed
  read -r ok bad skip < <(awk '/^test result: / {
      for (i = 1; i <= NF; i++) {
        if ($i ~ /^passed/) ok += $(i-1); if ($i ~ /^failed/) bad += $(i-1)
        if ($i ~ /^ignored/) skip += $(i-1)
      } } END { print ok + 0, bad + 0, skip + 0 }' "$log")
  if [ $((ok + bad)) -eq 0 ]; then
    if [ "$status" = ok ]; then ok=1; else bad=1; fi
  elif [ "$status" = failed ] && [ "$bad" -eq 0 ]; then
    bad=1
  fi
  passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
  printf '%-12s %-6s %4d passed %3d failed  %4d s\n' "$name" "$status" "$ok" "$bad" $((SECONDS - begun))
  grep '^AGAIN ' "$log"
  if [ "$status" = failed ]; then
    grep -nE '^(error|warning)|panicked|FAILED|failures:|^test .* FAILED' "$log" | head -n 60
    tail -n 60 "$log"
  fi
}

each_crate_alone() {
  local crate
  for crate in policy routing tunnel gateway controller; do
    echo "waymark-$crate" && cargo check --quiet --locked -p "waymark-$crate" || return 1
  done
  cargo check --quiet --locked -p waymark-routing --no-default-features &&
    cargo check --quiet --locked -p waymark-tunnel --no-default-features
}

deny() {
  local bin="$cache/tools/bin/cargo-deny"
  if [ ! -x "$bin" ]; then
    # Unoptimized it is there in half the time, and takes seconds more.
    CARGO_TARGET_DIR="$cache/tools/target" cargo install --quiet --locked --debug cargo-deny \
      --version 0.20.2 --root "$cache/tools" || return 1
    rm -rf "$cache/tools/target"
  fi
  "$bin" --all-features --config .deny.toml check licenses bans sources || return 1
  # The advisory database is a git repository that not every machine reaches.
  if timeout 60 "$bin" --config .deny.toml fetch db >/dev/null 2>&1; then
    "$bin" --all-features --config .deny.toml check advisories
  else
    echo "advisories: their database cannot be reached from here, not checked"
  fi
}

stage fmt cargo fmt --all --check
stage clippy cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
stage alone each_crate_alone
stage build cargo build --locked --workspace --bins
stage unit cargo test --locked --no-fail-fast -p waymark-policy -p waymark-routing -p waymark-tunnel \
  -p waymark-gateway -p waymark-controller -p waymark-examples
stage whole cargo test --locked --no-fail-fast -p waymark-tests
stage doc env RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links" cargo doc --quiet --locked --workspace --no-deps \
  --document-private-items
stage deny deny
# takes WHAT STAGE... — tells what is missing for these stages, and counts them as skipped.
takes() {
  local what="$1" one
  shift
  for one in "$@"; do
    named "$one" || continue
    printf '%-12s skipped: it takes %s\n' "$one" "$what"
    skipped=$((skipped + 1))
  done
}
if need_go 2>/dev/null; then stage helm tests/helm.sh; else takes Go helm; fi

on_cluster() {
  local stages=(lifecycle walkthrough pods gateways tokens faults conformance) cluster="tests-$$"
  named clusters "${stages[@]}" || return 0
  if [ "$(id -u)" -ne 0 ] || ! need_go 2>/dev/null; then
    takes "root and Go" clusters "${stages[@]}"
    return
  fi
  stage clusters timeout 30m tests/clusters.sh
  named "${stages[@]}" || return 0
  # shellcheck disable=SC2064
  trap "tests/cluster.sh down --name '$cluster'; rm -rf '$logs'" EXIT
  [ ${#only[@]} -eq 0 ] || only+=(cluster)
  stage cluster tests/cluster.sh up --name "$cluster" --addresses 126
  # None takes half of that time; what hangs is to be told, too.
  # First: it takes a cluster that has had no mesh, and leaves it without one.
  stage lifecycle timeout 30m tests/lifecycle.sh --name "$cluster"
  stage walkthrough timeout 30m tests/walkthrough.sh --name "$cluster"
  stage pods timeout 30m tests/pods.sh --name "$cluster"
  stage gateways timeout 30m tests/gateways.sh --name "$cluster"
  stage tokens timeout 30m tests/tokens.sh --name "$cluster"
  # One lost request counts, on a machine that may be busy with others: each has a second try.
  stage faults timeout 30m tests/faults.sh --name "$cluster" --again
  stage conformance timeout 30m tests/conformance.sh --name "$cluster"
  tests/cluster.sh down --name "$cluster"
}
on_cluster

echo
echo "took $(((SECONDS - begun_all) / 60)) min $(((SECONDS - begun_all) % 60)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
