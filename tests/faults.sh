#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Faults on a real Kubernetes with load running, every request counted.
#
#   faults.sh [--name CLUSTER] [--again] [FAULT]...     all but `churn` when none is named
#
# Faults: controllers controller-gone apiserver agent tunnel waypoint ingress kubelet dns root
# waypoint-gone churn
# `churn` replaces 200 pods, which takes two cores a quarter of an hour.
# A cluster of that name that runs is used as it is, and left.
# --again: a fault that fails is repeated once; both are told, and the second counts.
#
# The load: from a pod in the mesh on each node through the waypoint, and from outside through
# the ingress; each with a connection for every request (`new`) and on kept connections
# (`kept`). Waypoint, ingress and backend have two replicas. No request may fail, but for kept
# connections while tunnels are rolled, where the number is told. While requests are served, no
# Gateway may be said to be down; after each fault `waymark status` must be content again.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=faults faults=() again=
while [ $# -gt 0 ]; do
  case "$1" in
    --name) name="$2"; shift 2 ;;
    --again) again=yes; shift ;;
    -*) sed -n '4,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
    *) faults+=("$1"); shift ;;
  esac
done
[ ${#faults[@]} -gt 0 ] ||
  faults=(controllers controller-gone apiserver agent tunnel waypoint ingress kubelet dns root waypoint-gone)
# So many addresses for pods has a node that replaced pods get those of others at once.
cluster_flags=(--addresses 126)
. tests/cluster/mesh.sh

passed=0 failed=0
ok() { passed=$((passed + 1)); printf 'ok   %s\n' "$*"; }
bad() { failed=$((failed + 1)); printf 'BAD  %s\n' "$*"; }
fail() {
  say "FAILED: $*"
  kubectl get pods -A -o wide >&2 || true
  kubectl get events -A --field-selector type=Warning --sort-by=.lastTimestamp | tail -n 40 >&2 || true
  exit 1
}
k() { kubectl -n faults "$@"; }
system() { kubectl -n istio-system "$@"; }
# await SECONDS WHAT COMMAND... — until the command succeeds.
await() {
  local until=$((SECONDS + $1)) what="$2"
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "$what: $*"
    sleep 0.2
  done
}

need_packages tcpdump:tcpdump
need_mesh
work="$(mktemp -d)"
# The capture runs in the cluster's world, and ends with it or here.
trap 'stop_capture; [ -z "${watching:-}" ] || kill "$watching" 2>/dev/null || true; rm -rf "$work"; [ -z "${brought_up:-}" ] || cluster down' EXIT

# ---- what the load goes through ---------------------------------------------------------------
load_load

# server NAME REPLICAS PERIOD — a Deployment that serves HTTP, probed so often, and its Service.
server() {
  cat <<Y
apiVersion: v1
kind: Service
metadata: {name: $1, namespace: faults}
spec: {selector: {app: $1}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: $1, namespace: faults}
spec:
  replicas: $2
  selector: {matchLabels: {app: $1}}
  # Pods go before others come, so that their addresses are free.
  strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 10%}}
  template:
    metadata: {labels: {app: $1}}
    spec:
      terminationGracePeriodSeconds: 10
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: $1}}}
      containers:
      - name: server
        image: $load
        imagePullPolicy: Never
        args: [serve-http, "8080", --name, \$(POD)]
        env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        # A busy machine gives those that ask for nothing next to nothing, and their probes fail.
        resources: {requests: {cpu: 10m}}
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: $3, timeoutSeconds: 5}
        # Clients that have not yet heard that the pod goes are still served.
        lifecycle: {preStop: {sleep: {seconds: 5}}}
---
Y
}

setup() {
  kubectl delete namespace faults --ignore-not-found >/dev/null
  kubectl create namespace faults >/dev/null
  { server backend 2 2; cat <<Y; } | kubectl apply -f - >/dev/null
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: client, namespace: faults}
spec:
  selector: {matchLabels: {app: client}}
  template:
    metadata: {labels: {app: client}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: client, image: "$load", imagePullPolicy: Never, command: [/busybox, sh, -c, "while true; do /busybox sleep 1; done"]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: faults, labels: {istio.io/waypoint-for: service}}
spec:
  gatewayClassName: waymark-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: faults}
spec:
  gatewayClassName: waymark
  listeners: [{name: http, port: 80, protocol: HTTP}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: backend, namespace: faults}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: backend, port: 8080}]}]
Y
  k wait --for=condition=Programmed gtw --all --timeout=90s >/dev/null
  waypoint="$(k get deployment -l gateway.networking.k8s.io/gateway-name=waypoint -o name)"
  ingress="$(k get deployment -l gateway.networking.k8s.io/gateway-name=edge -o name)"
  k scale "$waypoint" "$ingress" --replicas=2 >/dev/null
  for each in "$waypoint" "$ingress" deployment/backend daemonset/client; do rolled faults "$each"; done
  edge="$(k get gtw edge -o jsonpath='{.status.addresses[0].value}'):80"
  mapfile -t clients < <(k get pods -l app=client -o name)
}
# rolled NAMESPACE OBJECT [SECONDS] — waits until all its pods are new and ready.
rolled() { kubectl -n "$1" rollout status "$2" --timeout="${3:-300}s" >/dev/null || fail "$2 does not get ready"; }

# ---- capture: what crosses the link between nodes, from pod to pod, in the clear --------------
payload='(ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2)) != 0'
plain="tcp port 8080 and src net 10.244.0.0/16 and dst net 10.244.0.0/16 and $payload"
capture() {
  cluster enter tcpdump -i fabric -nn -s 200 -w "$work/plain.pcap" --immediate-mode -U "$plain" >/dev/null 2>"$work/tcpdump" &
  await 10 "capture" grep -q listening "$work/tcpdump"
}
stop_capture() {
  # shellcheck disable=SC2016
  [ ! -e "$work/tcpdump" ] || cluster enter sh -c 'pkill -INT -f "^tcpdump.*$0"' "$work/plain.pcap" 2>/dev/null || true
}
captured() { tcpdump -nn -r "$work/plain.pcap" 2>/dev/null | wc -l; }

# ---- load ---------------------------------------------------------------------------------------
shapes=(mesh-new mesh-kept edge-new edge-kept)
load() { # SERVICE
  local pod n=0 to="$1.faults.svc.cluster.local:8080"
  rm -f "$work"/*.json
  for pod in "${clients[@]}"; do
    k exec "$pod" -- /busybox sh -c "rm -f /tmp/*.json
      waymark-load http $to --fresh --look-up --clients 2 --rate 8 --seconds 900 >/tmp/new.json 2>/tmp/new.err &
      waymark-load http $to --clients 2 --rate 8 --seconds 900 >/tmp/kept.json 2>/tmp/kept.err &"
  done
  cluster enter "$target/$profile/waymark-load" http "$edge" --fresh --clients 2 --rate 8 --seconds 900 >"$work/edge-new.0.json" &
  cluster enter "$target/$profile/waymark-load" http "$edge" --clients 2 --rate 8 --seconds 900 >"$work/edge-kept.0.json" &
}
# counted FAULT — ends the load, tells what became of it.
counted() {
  local pod n=0 shape sent lost causes slowest tolerated line
  for pod in "${clients[@]}"; do
    await 60 "the load in $pod can be stopped" k exec "$pod" -- /busybox sh -c 'killall -TERM waymark-load; while pgrep -x waymark-load >/dev/null; do sleep 0.1; done'
    for shape in new kept; do await 20 "report of $shape in $pod" fetch "$pod" "/tmp/$shape.json" "$work/mesh-$shape.$n.json"; done
    n=$((n + 1))
  done
  cluster enter sh -c 'pkill -TERM -f "^[^ ]*waymark-load http '"$edge"'"' || true
  for shape in new kept; do await 20 "report of edge-$shape" test -s "$work/edge-$shape.0.json"; done
  for shape in "${shapes[@]}"; do
    line="$(jq -sr '[(map(.sent) | add), (map(.failed | add // 0) | add), (map(.micros[4]) | max),
      (map(.failed | to_entries) | add | group_by(.key) | map("\(map(.value) | add) x \(.[0].key)") | join(", "))] | @tsv' "$work/$shape".*.json)"
    IFS=$'\t' read -r sent lost slowest causes <<<"$line"
    tolerated=no
    [[ "$1" == tunnel && "$shape" == *-kept ]] && tolerated=yes
    line="$(printf '%-16s %-10s %6d sent %4d failed  slowest %5d ms  %s' "$1" "$shape" "$sent" "$lost" $((slowest / 1000)) "$causes")"
    # A load that never ran has lost nothing, and shows nothing.
    if [ "$sent" -gt 50 ] && { [ "$lost" -eq 0 ] || [ "$tolerated" = yes ]; }; then ok "$line"; else bad "$line"; fi
  done
}
# What an exec prints can be cut off.
fetch() { k exec "$1" -- /busybox cat "$2" >"$3" && [ -s "$3" ] && jq -e .sent "$3"; }

# ---- what is said meanwhile ----------------------------------------------------------------------
# watch_status — notes every second whether each Gateway is said to be programmed.
watch_status() {
  (
    while [ ! -e "$work/watched" ]; do
      # No answer is no lie: the apiserver may be what is gone.
      k get gtw --request-timeout=2s -o json 2>/dev/null |
        jq -r '.items[] | select(.metadata.name != "later") | [.metadata.name, (.status.conditions[] | select(.type == "Programmed") | .status, .message)] | @tsv' || true
      sleep 1
    done >"$work/said"
  ) &
  watching=$!
}
# told FAULT — ends that, and tells what was said while all requests were served.
told() {
  local lies looks
  touch "$work/watched"
  wait "$watching" && rm -f "$work/watched"
  looks="$(wc -l <"$work/said")"
  lies="$(awk -F'\t' '$2 != "True"' "$work/said" | sort | uniq -c | head -n 5)"
  if [ "$looks" -gt 4 ] && [ -z "$lies" ]; then ok "$1: Gateways are programmed, in $looks looks"; else bad "$1: of $looks looks some say that a Gateway which serves is down: $lies"; fi
  if content "$1"; then ok "$1: waymark status is content"; else bad "$1: waymark status says: $(jq -r '.ills | join("; ")' "$work/status.json")"; fi
}
status() { cluster enter "$target/$profile/waymark" status -o json >"$work/status.json" 2>"$work/status.err"; }
content() {
  local until=$((SECONDS + 45))
  while ! status; do
    [ $SECONDS -lt $until ] || return 1
    sleep 1
  done
}

# ---- the faults -----------------------------------------------------------------------------------
# revive PATTERN SECONDS — kills a process of the cluster's world, starts the same after a while.
revive() {
  # shellcheck disable=SC2016
  cluster enter env PATH="$binaries:$PATH" bash -c '
    pid="$(pgrep -f "$0" | head -n 1)"
    mapfile -d "" -t command <"/proc/$pid/cmdline"
    folder="$(readlink "/proc/$pid/cwd")" log="$(readlink "/proc/$pid/fd/1")"
    exec 8<"/proc/$pid/ns/net" 9<"/proc/$pid/ns/mnt"
    kill -KILL "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
    sleep "$1"
    setsid nsenter --net=/proc/self/fd/8 --mount=/proc/self/fd/9 --wd="$folder" "${command[@]}" >>"$log" 2>&1 </dev/null &' "$@"
}
served() { kubectl get --raw /readyz; }
all_controllers() { system get pods -l app=istiod -o name; }

leader() { system get lease waymark-controller-leader -o jsonpath='{.spec.holderIdentity}'; }
# goes_on — what only a controller that leads and hears all proxies can do is done: `later`.
goes_on() {
  local begun=$SECONDS
  k apply -f - >/dev/null <<Y
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: later, namespace: faults}
spec:
  gatewayClassName: waymark-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
Y
  if k wait --for=condition=Programmed gtw/later --timeout=120s >/dev/null; then
    ok "a Gateway that is made then is programmed within $((SECONDS - begun)) s"
  else
    bad "a Gateway that is made then is not programmed: $(k get gtw later -o jsonpath='{.status}')"
  fi
  k delete gtw later >/dev/null
}
fault_controllers() {
  local pod first
  first="pod/$(leader)"
  # A deployment with one of them has nothing to take over.
  if [ "$(all_controllers | wc -l)" -ge 2 ]; then ok "controllers: $(all_controllers | wc -l)"; else bad "there is no second controller"; fi
  for pod in "$first" $(all_controllers | grep -vx "$first"); do
    system delete "$pod" >/dev/null
    if [ "$pod" = "$first" ]; then goes_on; fi
    rolled istio-system deployment/waymark-controller
  done
  goes_on
}
fault_controller-gone() {
  system delete pods -l app=istiod --grace-period=0 --force >/dev/null 2>&1
  rolled istio-system deployment/waymark-controller
  goes_on
}
fault_apiserver() {
  revive '^kube-apiserver ' 60
  await 60 "the apiserver is back" served
  # Kubernetes takes nodes that could not report for lost, and starts nothing there till they do.
  reported() { kubectl wait node --all --for=condition=Ready --timeout=1s && [ "$(k get pods -o json | jq '[.items[].status.conditions[] | select(.type == "Ready" and .status != "True")] | length')" -eq 0 ]; }
  sleep 10
  await 150 "the nodes report again" reported
  goes_on
}
fault_agent() {
  system delete pods -l app=waymark-agent >/dev/null
  rolled istio-system daemonset/waymark-agent
}
fault_tunnel() {
  system rollout restart daemonset/ztunnel >/dev/null
  rolled istio-system daemonset/ztunnel
}
fault_waypoint() {
  k rollout restart "$waypoint" >/dev/null
  rolled faults "$waypoint"
}
fault_ingress() {
  k rollout restart "$ingress" >/dev/null
  rolled faults "$ingress"
}
fault_kubelet() {
  revive '^kubelet .*--hostname-override node1 ' 5
  # A lease that is newer than the restart tells that it reports again.
  local begun
  begun="$(date -u +%FT%TZ)"
  # shellcheck disable=SC2016
  await 60 "the kubelet reports" bash -c '[[ "$(tests/cluster.sh kubectl --name "$0" get lease -n kube-node-lease node1 -o jsonpath="{.spec.renewTime}")" > "$1" ]]' "$name" "$begun"
}
fault_dns() {
  kubectl -n kube-system scale deployment/coredns --replicas=0 >/dev/null
  kubectl -n kube-system wait --for=delete pod -l k8s-app=kube-dns --timeout=60s >/dev/null
  sleep 30
  kubectl -n kube-system scale deployment/coredns --replicas=1 >/dev/null
  rolled kube-system deployment/coredns
}
fault_root() {
  cluster enter "$target/$profile/waymark" rotate-root >"$work/root" || fail "the root is not rotated: $(cat "$work/root")"
}
# No load: all of it has to be refused. What is declared and absent is never walked around.
fault_waypoint-gone() {
  local passed_by
  k scale "$waypoint" --replicas=0 >/dev/null
  k wait --for=delete pod -l gateway.networking.k8s.io/gateway-name=waypoint --timeout=60s >/dev/null
  k exec "$client" -- waymark-load http backend.faults.svc.cluster.local:8080 --fresh --look-up --clients 2 --rate 20 --seconds 5 >"$work/gone.json" || true
  passed_by="$(jq .good "$work/gone.json")"
  if [ "$passed_by" -eq 0 ]; then ok "waypoint-gone: $(jq .sent "$work/gone.json") requests, none walked around it"; else bad "waypoint-gone: $passed_by requests walked around it"; fi
  down() { [ "$(k get gtw waypoint -o jsonpath='{.status.conditions[?(@.type=="Programmed")].status}')" = False ]; }
  await 30 "the waypoint is said to be down" down
  if status; then bad "waypoint-gone: waymark status is content"; else ok "waypoint-gone: $(k get gtw waypoint -o jsonpath='{.status.conditions[?(@.type=="Programmed")].message}')"; fi
  k scale "$waypoint" --replicas=2 >/dev/null
  rolled faults "$waypoint"
  k wait --for=condition=Programmed gtw/waypoint --timeout=60s >/dev/null
  content || bad "waypoint-gone: waymark status says: $(jq -r '.ills | join("; ")' "$work/status.json")"
}
fault_churn() {
  local before after again
  before="$(k get pods -l app=many -o jsonpath='{range .items[*]}{.status.podIP}{"\n"}{end}' | sort)"
  k rollout restart deployment/many >/dev/null
  rolled faults deployment/many 840
  after="$(k get pods -l app=many -o jsonpath='{range .items[*]}{.status.podIP}{"\n"}{end}' | sort)"
  again="$(comm -12 <(echo "$before") <(echo "$after") | wc -l)"
  if [ "$again" -gt 100 ]; then ok "$again of 200 new pods have addresses that others had before"; else bad "only $again of 200 new pods have an address of another"; fi
}

# ---- all of it ---------------------------------------------------------------------------------------
setup
capture
client="${clients[0]}"
other="$(k get pods -l app=backend -o json | jq -r --arg node "$(k get "$client" -o jsonpath='{.spec.nodeName}')" '[.items[] | select(.spec.nodeName != $node) | .status.podIP][0]')"
k exec "$client" -- waymark-load http "$other:8080" --fresh --seconds 0.2 >/dev/null
sees() { [ "$(captured)" -gt 0 ]; }
await 10 "the capture sees plain bytes before the pods are in the mesh" sees
stop_capture
ok "bytes between nodes are plain outside the mesh: the capture sees them"
kubectl label namespace faults istio.io/dataplane-mode=ambient istio.io/use-waypoint=waypoint >/dev/null
in_mesh() { [ "$(k get pods -l 'app in (backend, client)' -o json | jq '[.items[] | select(.metadata.annotations["ambient.istio.io/redirection"] == "enabled")] | length')" -eq 4 ]; }
await 60 "pods are in the mesh" in_mesh
bound() { [ "$(k get service backend -o jsonpath='{.status.conditions[?(@.type=="istio.io/WaypointBound")].status}')" = True ]; }
await 60 "the Service is bound to the waypoint" bound
rm -f "$work/plain.pcap"
capture

run_fault() {
  local fault="$1" begun=$SECONDS service=backend
  if [ "$fault" = churn ]; then
    server many 200 10 | kubectl apply -f - >/dev/null
    rolled faults deployment/many 600
    say "200 pods run after $((SECONDS - begun)) s"
    service=many
  fi
  if [ "$fault" = waypoint-gone ]; then
    fault_waypoint-gone
  else
    load "$service"
    watch_status
    sleep 2
    "fault_$fault"
    # What breaks late, breaks within the time in which everything has settled.
    sleep 3
    counted "$fault"
    told "$fault"
  fi
  say "$fault: $((SECONDS - begun)) s"
}
for fault in "${faults[@]}"; do
  before=$failed
  run_fault "$fault"
  if [ -n "$again" ] && [ "$failed" -gt "$before" ]; then
    echo "AGAIN $fault: $((failed - before)) failed, see above"
    failed=$before
    run_fault "$fault"
  fi
done
stop_capture
bytes="$(captured)"
if [ "$bytes" -eq 0 ]; then ok "no packet with plain bytes crossed the link"; else bad "$bytes packets with plain bytes crossed the link"; fi
kubectl delete namespace faults --timeout=300s >/dev/null
echo "test result: $([ $failed -eq 0 ] && echo ok || echo FAILED). $passed passed; $failed failed; 0 ignored"
[ "$failed" -eq 0 ]
