#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# A real Kubernetes on this machine: one world of namespaces a cluster, two nodes in it.
#
#   cluster.sh up [--name N] [--nodes 2] [--dual-stack] [--addresses 253]
#                                          build what is missing, start, wait; so many
#                                          addresses has each node for pods
#   cluster.sh down|status [--name N]
#   cluster.sh kubectl [--name N] ARGUMENTS...            kubectl in the world of the cluster
#   cluster.sh enter [--name N] COMMAND...                any command there
#   cluster.sh load-images [--name N] ARCHIVE...          OCI archives into every node
#
# Everything lives in namespaces whose init dies with `down` or a kill; nothing is left.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/setup.sh"

verb="${1:-help}"
[ $# -gt 0 ] && shift
name=default nodes=2 dual= addresses=253
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name="$2"; shift 2 ;;
    --nodes) nodes="$2"; shift 2 ;;
    --dual-stack) dual=yes; shift ;;
    --addresses) addresses="$2"; shift 2 ;;
    *) break ;;
  esac
done
state="$cache/clusters/$name"

# The init of the cluster's world, if it runs: its own mark is in its command line, so
# a number that another process has by now is not taken for it.
world() {
  local pid
  [ -r "$state/init" ] && pid="$(cat "$state/init")" || return 1
  grep -qz "^waymark-cluster-$name\$" "/proc/$pid/cmdline" 2>/dev/null && echo "$pid"
}

inside() {
  local pid
  pid="$(world)" || { say "cluster '$name' is not running: start it with $0 up --name $name"; exit 1; }
  exec nsenter -t "$pid" -m -p -n --wd="$PWD" env KUBECONFIG="$state/kubeconfig" "$@"
}

# What a killed world cannot remove itself: its empty cgroups.
clear_cgroups() {
  local mark="waymark-cluster-$name"
  find /sys/fs/cgroup -depth -type d \( -name "$mark" -o -path "*/$mark/*" \) -exec rmdir {} + 2>/dev/null || true
}

up() {
  if world >/dev/null; then say "cluster '$name' runs already"; return 0; fi
  [ "$(id -u)" -eq 0 ] || { say "a cluster needs root"; exit 1; }
  need_packages containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins \
    nft:nftables iptables:iptables conntrack:conntrack busybox:busybox-static jq:jq openssl:openssl
  local binaries begun=$SECONDS log pid
  binaries="$("$here/cluster/build.sh")"
  rm -rf "$state" && mkdir -p "$state"
  log="$state/log"
  say "starting cluster '$name' with $nodes nodes"
  clear_cgroups
  setsid unshare --mount --pid --fork --kill-child --mount-proc --net \
    bash "$here/cluster/world.sh" "waymark-cluster-$name" "$state" "$binaries" "$nodes" "${dual:-no}" "$addresses" \
    >"$log" 2>&1 </dev/null &
  echo $! >"$state/outer"
  # The world says when it is up; its end before that is a failure.
  while [ ! -e "$state/ready" ]; do
    if ! kill -0 "$(cat "$state/outer")" 2>/dev/null; then
      say "the cluster did not start; its last words ($log):"
      tail -n 20 "$log" >&2
      exit 1
    fi
    sleep 0.1
  done
  pgrep -P "$(cat "$state/outer")" >"$state/init"
  say "cluster '$name' is up after $((SECONDS - begun)) s; kubeconfig: $state/kubeconfig"
}

down() {
  local pid
  if [ -r "$state/outer" ] && [ ! -e "$state/init" ]; then
    pgrep -P "$(cat "$state/outer")" >"$state/init" || true
  fi
  if pid="$(world)"; then
    kill -KILL "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
  fi
  clear_cgroups
  rm -rf "$state"
}

case "$verb" in
  up) up ;;
  down) down ;;
  status)
    if ! world >/dev/null; then echo "cluster '$name' is not running"; exit 1; fi
    (inside "$(cat "$state/binaries")/kubectl" get nodes,pods -A -o wide) ;;
  kubectl) inside "$(cat "$state/binaries")/kubectl" "$@" ;;
  enter) inside "$@" ;;
  load-images) inside bash "$here/cluster/load.sh" "$state" "$@" ;;
  *) sed -n '3,16s/^# \{0,1\}//p' "$0"; [ "$verb" = help ] ;;
esac
