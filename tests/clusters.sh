#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Two clusters side by side on this machine, with the same addresses inside. One has both address
# families and the mesh: what is called over IPv6 is captured, tunnelled and refused as over IPv4.
# The other one's init is killed, then the first is taken down: nothing is left of either.
#
#   clusters.sh      starts both, and takes both down
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name="clusters-$$" beside="clusters-$$-beside" cluster_flags=(--dual-stack)
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

other() { name="$beside" cluster "$@"; }
k() { kubectl -n twins "$@"; }
work="$(mktemp -d)"
at_end() {
  set +e
  rm -rf "$work"
  wait
  cluster down
  other down
}
trap at_end EXIT
other up --nodes 1 >"$work/beside" 2>&1 &
starting=$!
need_mesh
wait "$starting" || fail "the cluster beside does not start: $(cat "$work/beside")"
ok "two clusters run side by side"

# ---- one address, two clusters ------------------------------------------------------------------
load_tools
name="$beside" load_tools
# served WORD REPLICAS POLICY ADDRESSES — what answers with the word, and who calls it.
served() {
  cat <<Y
apiVersion: v1
kind: Service
metadata: {name: web, namespace: twins}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}], ipFamilyPolicy: $3, clusterIP: $v4, clusterIPs: [$4]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: twins}
spec:
  replicas: $2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
        - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
        - name: web
          image: $tools
          args: [sh, -c, "echo $1 >/tmp/index.html; exec /busybox httpd -f -p 8080 -h /tmp"]
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
---
Y
}
# caller NAME — a pod with an identity of its own, to call from.
caller() {
  cat <<Y
apiVersion: v1
kind: ServiceAccount
metadata: {name: $1, namespace: twins}
---
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: twins}
spec:
  serviceAccountName: $1
  terminationGracePeriodSeconds: 1
  containers: [{name: caller, image: "$tools", args: [sleep, "100000"]}]
---
Y
}
v4=10.96.77.77 v6=fd00:10:96::7777
kubectl create namespace twins >/dev/null
kubectl label namespace twins istio.io/dataplane-mode=ambient >/dev/null
{ served first 2 RequireDualStack "$v4, \"$v6\""; caller friend; caller stranger; cat <<Y; } | k apply -f - >/dev/null
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: twins}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: twins}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 8080}]}]}
Y
other kubectl create namespace twins >/dev/null
{ served second 1 SingleStack "$v4"; caller friend; } | other kubectl apply -f - >/dev/null
both_ready() {
  local each
  for each in cluster other; do
    $each kubectl -n twins wait --for=condition=Available deployment/web --timeout=90s >/dev/null
    $each kubectl -n twins wait --for=condition=Ready pod --all --timeout=60s >/dev/null
  done
}
both_ready
curl=(/usr/local/bin/curl -sS --fail --max-time 5)
# says WORD CALLER URL [FLAG] — whether that is answered.
says() { [ "$(k exec "$2" -- "${curl[@]}" "${@:4}" "$3")" = "$1" ]; }
other_says() { [ "$(other kubectl -n twins exec friend -- "${curl[@]}" "$2")" = "$1" ]; }
eventually 20 "$v4 is the first cluster's Service there" says first friend "http://$v4:8080/"
eventually 20 "and the other's in the other" other_says second "http://$v4:8080/"
names() { "$1" kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'; }
if [ "$(names cluster)" != "node1 node2" ] || [ "$(names other)" != node1 ]; then fail "nodes: $(names cluster); $(names other)"; fi
uid() { "$1" kubectl get node node1 -o 'jsonpath={.metadata.uid}'; }
[ "$(uid cluster)" != "$(uid other)" ] || fail "they share a node"
ok "each has its own nodes, two and one"

# ---- both families in the mesh --------------------------------------------------------------------
enrolled() { [ "$(k get pods -o json | jq '[.items[] | select(.metadata.annotations["ambient.istio.io/redirection"] == "enabled")] | length')" -eq 4 ]; }
eventually 60 "four pods are proven to be in the mesh" enrolled
families() { [ "$(k get service web -o 'jsonpath={.spec.ipFamilies[*]}')" = "IPv4 IPv6" ]; }
families || fail "the Service has one family alone"
# tunnelled ADDRESS — whether tunnels carried a call of the friend's to such an address of a pod by
# HBONE: the one end says where it went, the other whose it was.
tunnelled() {
  local lines friend='src.identity="spiffe://cluster.local/ns/twins/sa/friend"'
  lines="$(kubectl -n istio-system logs -l app=ztunnel --tail=-1 | grep "$friend")"
  grep 'direction="outbound"' <<<"$lines" | grep -q "dst.addr=$1[^ ]*:15008 dst.hbone_addr=$1[^ ]*:8080 " &&
    grep 'direction="inbound"' <<<"$lines" | grep -q "dst.hbone_addr=$1[^ ]*:8080 "
}
for at in "4 $v4 10\\.244\\." "6 [$v6] \\[fd00:10:244:"; do
  read -r family address pods <<<"$at"
  eventually 20 "IPv$family: the Service's address is reached" says first friend "http://$address:8080/"
  eventually 20 "IPv$family: and its name" says first friend http://web:8080/ "-$family"
  eventually 20 "IPv$family: tunnels carried it by HBONE, as the friend's" tunnelled "$pods"
done
mapfile -t pod < <(k get pod -l app=web -o 'jsonpath={range .items[0].status.podIPs[*]}{.ip}{"\n"}{end}')
# plain ADDRESS — whether one outside the mesh is answered.
plain() { [ "$(cluster enter curl -sS --fail --max-time 3 "http://$1:8080/")" = first ]; }
refused() { ! "$@"; }
eventually 10 "without a policy one outside is answered over IPv4" plain "${pod[0]}"
eventually 10 "and over IPv6" plain "[${pod[1]}]"
eventually 10 "a stranger, too" says first stranger "http://[$v6]:8080/"

# ---- a Gateway of both families ----------------------------------------------------------------------
k wait --for=condition=Programmed gtw/edge --timeout=60s >/dev/null
mapfile -t edge < <(k get gtw edge -o 'jsonpath={range .status.addresses[*]}{.value}{"\n"}{end}' | sort)
[[ "${edge[*]}" =~ ^172\.30\.1\.[0-9]+\ fd00:172:31::[0-9a-f]+$ ]] || fail "addresses of the Gateway: ${edge[*]}"
asked() { [ "$(cluster enter curl -sS --fail --max-time 5 "http://$1/")" = first ]; }
eventually 20 "the Gateway answers at ${edge[0]}" asked "${edge[0]}"
eventually 20 "and at ${edge[1]}" asked "[${edge[1]}]"

# ---- a policy --------------------------------------------------------------------------------------------
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: friends, namespace: twins}
spec:
  selector: {matchLabels: {app: web}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/twins/sa/friend, cluster.local/ns/twins/sa/edge-waymark]}}]}]
Y
for at in "4 $v4 ${pod[0]}" "6 [$v6] [${pod[1]}]"; do
  read -r family address direct <<<"$at"
  eventually 20 "IPv$family: a stranger is refused" refused says first stranger "http://$address:8080/"
  eventually 10 "IPv$family: so is one outside the mesh" refused plain "$direct"
  eventually 10 "IPv$family: a friend is not" says first friend "http://$address:8080/"
done
asked "[${edge[1]}]" || fail "nor is the Gateway"

# ---- the death of one --------------------------------------------------------------------------------------
# processes CLUSTER — of its world, all that is below its cgroups.
processes() { find /sys/fs/cgroup -path "*/waymark-cluster-$1/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un; }
# namespaces — all that processes of this machine are in, or that are mounted where they are.
namespaces() {
  { readlink /proc/[0-9]*/ns/{net,mnt,pid}; grep -oh '\(net\|mnt\|pid\):\[[0-9]*\]' /proc/[0-9]*/mountinfo; } 2>/dev/null | sort -u
}
# note CLUSTER — remembers what it has.
note() {
  local process
  processes "$1" >"$work/$1.processes"
  while read -r process; do readlink "/proc/$process"/ns/{net,mnt,pid}; done <"$work/$1.processes" 2>/dev/null |
    sort -u | comm -23 - <(readlink /proc/self/ns/{net,mnt,pid} | sort -u) >"$work/$1.namespaces"
  [ "$(wc -l <"$work/$1.processes")" -gt 10 ] && [ "$(grep -c net "$work/$1.namespaces")" -gt 3 ] || fail "$1 has too little"
}
dead() { [ -z "$(processes "$1")" ] && [ -z "$(namespaces | comm -12 - "$work/$1.namespaces")" ]; }
# gone CLUSTER — whether nothing tells that there was one.
gone() {
  local left
  left="$(ls -d "$cache/clusters/$1" 2>/dev/null; find /sys/fs/cgroup -name "waymark-cluster-$1"; grep -F "/$1" /proc/self/mountinfo || true)"
  [ -z "$left" ] || fail "$1 leaves: $left"
}
note "$name"
note "$beside"
[ -z "$(comm -12 "$work/$name.namespaces" "$work/$beside.namespaces")" ] || fail "they share namespaces"
ok "no process of one is in a namespace of the other"
touch "$work/load"
load() { while [ -e "$work/load" ]; do asked "${edge[0]}" && asked "[${edge[1]}]" && echo good || echo bad; done >"$work/answers" 2>&1; }
load & loader=$!
kill -KILL "$(cat "$cache/clusters/$beside/init")"
eventually 20 "of $(wc -l <"$work/$beside.processes") processes and $(wc -l <"$work/$beside.namespaces") namespaces of a killed cluster none is left" dead "$beside"
other status >/dev/null && fail "it is said to run"
other down
gone "$beside"
ok "once it is taken down, nor are cgroups, mounts and files"
eventually 5 "the other cluster serves over IPv4" says first friend "http://$v4:8080/"
eventually 5 "and over IPv6" says first friend "http://[$v6]:8080/"
sleep 1
rm "$work/load"
wait "$loader" || true
if grep -qv good "$work/answers" || [ "$(wc -l <"$work/answers")" -lt 5 ]; then fail "its Gateway meanwhile: $(sort "$work/answers" | uniq -c)"; fi
ok "its Gateway answered all the while: $(wc -l <"$work/answers") times over each"
cluster down
eventually 20 "of its $(wc -l <"$work/$name.processes") processes none is left when it is taken down" dead "$name"
gone "$name"
ok "and nothing else"
finish
