#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# The life of an installation on a real Kubernetes, as its operator goes: does it fit, install,
# does it work, a node joins, upgrade, uninstall without a trace; and the same by Helm.
#
#   lifecycle.sh [--name CLUSTER]    a cluster of that name that runs, without a mesh, is used
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=lifecycle cluster_flags=() static_plugin=yes
[ "${1:-}" = --name ] && name="$2"
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

waymark() { cluster enter "$target/$profile/waymark" "$@"; }
k() { kubectl -n shop "$@"; }
# on_node NODE COMMAND... — in the namespaces of that node, as its kubelet.
on_node() {
  cluster enter sh -c 'pid="$(pgrep -f "hostname-override $0 " | head -n1)"; exec nsenter -t "$pid" --net --mount "$@"' "$@"
}
nodes() { kubectl get nodes -o 'jsonpath={.items[*].metadata.name}'; }
# finds CHECK LEVEL — whether `waymark check` finds something of that level there.
finds() {
  local check="$1" level="$2"
  shift 2
  { waymark check -o json "$@" || true; } | jq -e --arg c "$check" --arg l "$level" \
    'any(.findings[]; .check == $c and .level == $l)' >/dev/null
}

application() {
  load_tools
  kubectl create namespace shop >/dev/null
  kubectl label namespace shop istio.io/dataplane-mode=ambient >/dev/null
  k apply -f - >/dev/null <<Y
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: $tools
          args: [httpd, -f, -p, "8080", -h, /etc]
          readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: client, image: "$tools", args: [sleep, "100000"]}]
Y
  k wait --for=condition=Available deployment/web --timeout=90s >/dev/null
  k wait --for=condition=Ready pod/client --timeout=60s >/dev/null
}
marked() { # how many pods are marked as proven
  k get pods -o 'jsonpath={range .items[*]}{.metadata.annotations.ambient\.istio\.io/redirection}{"\n"}{end}' | grep -c enabled || true
}
has() { [ "$(marked)" -eq "$1" ]; }
called() { k exec client -- /usr/local/bin/curl -sS --fail --max-time 5 -o /dev/null http://web:8080/passwd; }

# plugin_of NODE — whether its runtime is given the plug-in that was built, and that one runs where
# there is nothing else.
plugin_of() {
  local built="$target/$profile/waymark-cni" empty
  on_node "$1" cmp "$built" /opt/cni/bin/waymark-cni || fail "$1: another plug-in than the one built"
  empty="$(mktemp -d)"
  cp "$built" "$empty"
  echo '{"cniVersion":"1.0.0"}' | CNI_COMMAND=VERSION chroot "$empty" /waymark-cni |
    jq -e '.supportedVersions | length > 0' >/dev/null || fail "the plug-in needs something of the node"
  rm -rf "$empty"
}
# What a node has before there is a mesh, to compare with.
before_of() { on_node "$1" sh -c 'cat /etc/cni/net.d/*' | jq -cS .; }
# untouched NODE BEFORE — whether nothing of the mesh is on the node.
untouched() {
  local node="$1" left
  [ "$(before_of "$node")" = "$2" ] || fail "$node: its CNI configuration differs: $(before_of "$node")"
  left="$(on_node "$node" sh -c 'ls -A /run/ztunnel /run/istio-cni; ls /opt/cni/bin /etc/cni/net.d | grep -i waymark' | grep -v ':$' | grep . || true)"
  [ -z "$left" ] || fail "$node: files are left: $left"
  left="$(on_node "$node" nft list tables | grep -i istio || true)"
  [ -z "$left" ] || fail "$node: rules are left: $left"
}
# no_rules_in_pods — whether no network namespace in the world has a rule of ours.
no_rules_in_pods() {
  local left
  left="$(cluster enter sh -c 'for ns in /run/netns/*; do nsenter --net="$ns" nft list tables 2>/dev/null; done' | grep -i istio || true)"
  [ -z "$left" ] || fail "rules are left in pods: $left"
}
# nothing_left — whether no node, pod or namespace tells that there was a mesh.
nothing_left() {
  local node left
  for node in $(nodes); do untouched "$node" "${before[$node]}"; done
  ok "nothing is left on the nodes: no rule, no file, CNI configurations as before"
  no_rules_in_pods
  ok "no rule is left in a pod"
  has 0 || fail "pods are marked"
  left="$(kubectl get configmaps -A --field-selector metadata.name=istio-ca-root-cert --no-headers 2>/dev/null)"
  [ -z "$left" ] || fail "ConfigMaps are left: $left"
  left="$(kubectl get clusterroles,clusterrolebindings,gatewayclasses,validatingadmissionpolicies,validatingadmissionpolicybindings -o name | grep -E 'waymark|istio' || true)"
  [ -z "$left" ] || fail "objects of the cluster are left: $left"
  left="$(kubectl -n istio-system get all,secrets,configmaps,leases,roles,rolebindings,serviceaccounts -o name |
    grep -vE '^(configmap/kube-root-ca.crt|serviceaccount/default)$' || true)"
  [ -z "$left" ] || fail "objects of the namespace are left: $left"
  ok "no mark, no ConfigMap and no object is left"
  k rollout restart deployment/web >/dev/null
  k rollout status deployment/web --timeout=90s >/dev/null
  eventually 20 "new pods start, and are reached" called
}

need_cluster
declare -A before
for node in $(nodes); do before[$node]="$(before_of "$node")"; done
load_mesh

# ---- does it fit ------------------------------------------------------------------------------
finds gateway-api error || fail "check does not say that Gateway API is missing"
waymark check >/dev/null && fail "check succeeds without Gateway API"
waymark install >/dev/null 2>&1 && fail "install goes on without Gateway API"
ok "without Gateway API check fails, and install does"
gateway_api
waymark check >/dev/null || fail "check: $(waymark check)"
ok "check finds that the mesh fits"

# ---- install, and does it work ----------------------------------------------------------------
waymark install 2>/dev/null
ok "installed"
application
eventually 60 "five pods are proven to be in the mesh" has 5
eventually 30 "the application is reached" called
for node in $(nodes); do plugin_of "$node"; done
ok "the plug-in of each node is the static one"
works() { waymark check; }
eventually 30 "check finds that every part works" works
for check in controller root node certificates capture; do
  finds "$check" ok || fail "check did not look at: $check"
done
ok "controllers, root, nodes, certificates and capture were looked at"
k apply -f - >/dev/null <<Y
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}
Y
finds network-policy error || fail "check does not see a NetworkPolicy that closes port 15008"
k delete networkpolicy closed >/dev/null
ok "check names a NetworkPolicy that closes port 15008"

# ---- admission ----------------------------------------------------------------------------------
refused() { ! k apply -f - >/dev/null 2>&1; }
refused <<Y || fail "an action that is none was taken"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: bad}
spec: {action: PERMIT}
Y
refused <<Y || fail "a waypoint for nothing known was taken"
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: bad, labels: {istio.io/waypoint-for: everything}}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
Y
k apply -f - 2>&1 >/dev/null <<Y | grep -q CUSTOM || fail "no warning of an action that is not served"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: custom}
spec: {action: CUSTOM, provider: {name: x}, selector: {matchLabels: {app: none}}}
Y
k delete authorizationpolicy custom >/dev/null
ok "what is invalid is refused at once, what is not served warned of"

# ---- a node joins -------------------------------------------------------------------------------
waymark upgrade --set pilot.taint.enabled=true 2>/dev/null
kubectl taint node node2 cni.istio.io/not-ready=:NoSchedule >/dev/null
tainted() { kubectl get node node2 -o 'jsonpath={.spec.taints[*].key}' | grep -q cni.istio.io/not-ready; }
untainted() { ! tainted; }
eventually 30 "the startup taint is taken off a node that serves" untainted

# ---- Gateway API goes, and comes again ------------------------------------------------------------
restarts() { kubectl -n istio-system get pods -l app=istiod -o 'jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
started="$(restarts)"
kubectl get crd -o name | grep 'gateway.networking.k8s.io$' | xargs tests/cluster.sh kubectl --name "$name" delete --timeout=60s >/dev/null ||
  fail "definitions of Gateway API do not go"
for _ in $(seq 5); do called || fail "calls fail without Gateway API"; sleep 1; done
[ "$(restarts)" = "$started" ] || fail "a controller does not survive without Gateway API: $(restarts)"
gateway_api
waymark upgrade 2>/dev/null
eventually 60 "controllers survive Gateway API, and go on once it is there again" works

# ---- upgrade --------------------------------------------------------------------------------------
kubectl -n istio-system create configmap of-before >/dev/null
kubectl -n istio-system label configmap of-before waymark.dev/installation=istio-system >/dev/null
waymark upgrade 2>/dev/null
kubectl -n istio-system get deployment waymark-controller -o jsonpath='{.spec.template.spec.containers[0].args}' |
  grep -q startup-taint || fail "an upgrade forgot a value"
kubectl -n istio-system get configmap of-before >/dev/null 2>&1 && fail "an upgrade left what is not in it"
ok "an upgrade keeps values and removes what it does not have"
eventually 60 "check finds that every part works" works

# ---- uninstall ----------------------------------------------------------------------------------
k exec client -- /busybox sh -c 'n=0; f=0; while [ ! -e /tmp/stop ]; do n=$((n+1)); /usr/local/bin/curl -s --fail --max-time 5 -o /dev/null http://web:8080/passwd || f=$((f+1)); done; echo "$n $f"' >/tmp/lifecycle.$$ & loader=$!
sleep 2
waymark uninstall --drain 10 2>&1 | sed 's/^/     /'
k exec client -- /busybox touch /tmp/stop
wait "$loader"
read -r calls lost </tmp/lifecycle.$$
rm -f /tmp/lifecycle.$$
ok "load all the while: $calls calls, $lost failed"
[ "$calls" -gt 20 ] && [ "$lost" -eq 0 ] || fail "$lost of $calls calls failed"
nothing_left
finds kubernetes ok && waymark check >/dev/null || fail "check after an uninstall: $(waymark check)"
ok "the mesh fits again"

# ---- a node that is gone ------------------------------------------------------------------------
waymark install 2>/dev/null
eventually 60 "five pods that are older than the mesh are proven to be in it" has 5
kubectl -n istio-system patch daemonset waymark-agent --type merge -p '{"spec":{"updateStrategy":{"type":"OnDelete","rollingUpdate":null},"template":{"spec":{"containers":[{"name":"install-cni","image":"docker.io/waymark/nowhere:1"}]}}}}' >/dev/null
kubectl -n istio-system delete pod -l app=waymark-agent --field-selector spec.nodeName=node2 --wait=true >/dev/null
said="$(waymark uninstall --drain 5 --timeout 20 2>&1)" && fail "uninstall goes on without node2"
grep -q 'node2: its agent is not connected' <<<"$said" || fail "uninstall does not name node2: $said"
kubectl -n istio-system get deployment waymark-controller >/dev/null || fail "it removed something"
ok "a node that does not report stops an uninstall, and is named"
kubectl -n istio-system delete configmap waymark-uninstall >/dev/null
eventually 60 "called off: the other node is in the mesh again" finds node ok
kubectl -n istio-system patch daemonset waymark-agent --type merge -p '{"spec":{"updateStrategy":{"type":"RollingUpdate"}}}' >/dev/null
waymark install 2>/dev/null
eventually 90 "five pods are proven to be in the mesh again" has 5

# ---- the same by Helm -----------------------------------------------------------------------------
waymark uninstall --drain 10 2>/dev/null
nothing_left
program="$(tests/helm.sh --path)"
helm() { cluster enter "$program" "$@"; }
# Definitions are there already: those that `waymark install` brought.
helm install wm controller/deploy/waymark -n istio-system --skip-crds --wait --timeout 180s >/dev/null
eventually 60 "five pods are proven to be in the mesh by Helm" has 5
waymark uninstall >/dev/null 2>&1 && fail "what Helm made was removed behind its back"
ok "what Helm made is Helm's to remove"
helm uninstall wm -n istio-system --timeout 300s >/dev/null
nothing_left

kubectl delete namespace shop --timeout=60s >/dev/null
finish
