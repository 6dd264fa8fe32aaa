#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Pods on a real Kubernetes: the kubelet's probes of each kind under STRICT, a pod's first packet,
# a waypoint for pods alone, one of another namespace, and namespaces that are not looked at.
#
#   pods.sh [--name CLUSTER]      a cluster of that name that runs is used, and left
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=pods
[ "${1:-}" = --name ] && name="$2"
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

k() { kubectl -n pods "$@"; }
waymark() { cluster enter "$target/$profile/waymark" "$@"; }
selected=
clean_up() {
  kubectl delete namespace pods pods-ways pods-aside --ignore-not-found --wait=false
  [ -z "$selected" ] || waymark install
}
need_mesh
load_tools
load_load
kubectl delete namespace pods pods-ways pods-aside --ignore-not-found >/dev/null
for one in pods pods-ways; do
  kubectl create namespace $one >/dev/null
  kubectl label namespace $one istio.io/dataplane-mode=ambient >/dev/null
done
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: pods}
spec: {mtls: {mode: STRICT}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: pods}
spec: {selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: pods, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - &container
      name: http
      image: $load
      imagePullPolicy: Never
      args: [serve-http, "8080"]
      readinessProbe: &http {httpGet: {path: /, port: 8080}, periodSeconds: 1}
      livenessProbe: *http
    - <<: *container
      name: tcp
      args: [serve-tcp, "8081"]
      readinessProbe: &tcp {tcpSocket: {port: 8081}, periodSeconds: 1}
      livenessProbe: *tcp
    - <<: *container
      name: grpc
      args: [serve-http, "8082"]
      readinessProbe: &grpc {grpc: {port: 8082}, periodSeconds: 1}
      livenessProbe: *grpc
    - {name: unprobed, image: $load, imagePullPolicy: Never, args: [serve-http, "8083"]}
Y

# ---- probes ----------------------------------------------------------------------------------------
k wait --for=condition=Ready pod/web --timeout=60s >/dev/null || fail "web is not ready: $(k get pod web -o jsonpath='{.status}')"
ok "a STRICT pod with probes by HTTP, TCP and gRPC is ready"
read -r node ip < <(k get pod web -o jsonpath='{.spec.nodeName} {.status.podIP}{"\n"}')
from_node() { on_node "$node" curl -sS --fail --max-time 3 -o /dev/null "http://$ip:8083/" 2>/dev/null; }
if from_node; then fail "a root process of the node reaches port 8083"; fi
ok "a root process of its node does not reach a port without a probe"
sleep 4
[ "$(k get pod web -o jsonpath='{.status.containerStatuses[*].restartCount}')" = "0 0 0 0" ] || fail "containers were restarted"
k wait --for=condition=Ready pod/web --timeout=1s >/dev/null || fail "web is ready no more"
ok "and no container was restarted"

# ---- the first packet --------------------------------------------------------------------------------
# caller NAMESPACE NAME — a pod whose first act is one call.
caller() {
  kubectl -n "$1" apply -f - >/dev/null <<Y
apiVersion: v1
kind: Pod
metadata: {name: $2}
spec:
  restartPolicy: Never
  containers: [{name: call, image: $tools, imagePullPolicy: Never, command: [/usr/local/bin/curl, -sS, --fail, --max-time, "5", -o, /dev/null, "http://web.pods.svc.cluster.local:8080/"]}]
Y
}
# ended NAMESPACE NAME PHASE — whether it has come to that.
ended() { [ "$(kubectl -n "$1" get pod "$2" -o jsonpath='{.status.phase}')" = "$3" ]; }
for one in 1 2 3 4 5; do caller pods "first-$one"; done
for one in 1 2 3 4 5; do
  eventually 60 "the first packet of a new pod is in the mesh: STRICT takes it ($one)" ended pods "first-$one" Succeeded
done
kubectl create namespace pods-aside >/dev/null
caller pods-aside plain
eventually 60 "STRICT does not take that of a pod outside" ended pods-aside plain Failed

# ---- waypoints ---------------------------------------------------------------------------------------
# waypoint NAMESPACE KIND — one for that kind of traffic, which refuses /secret.
waypoint() {
  kubectl apply -f - >/dev/null <<Y
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: $2, namespace: $1, labels: {istio.io/waypoint-for: $2}}
spec:
  gatewayClassName: waymark-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: $2, namespace: $1}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: $2}]
  action: DENY
  rules: [{to: [{operation: {paths: [/secret]}}]}]
Y
  kubectl -n "$1" wait --for=condition=Programmed "gtw/$2" --timeout=60s >/dev/null
}
k run client --image="$tools" --image-pull-policy=Never --restart=Never --command -- /busybox sleep 3600 >/dev/null
k wait --for=condition=Ready pod/client --timeout=60s >/dev/null
# code URL — how a call of the client is answered.
code() { k exec client -- /usr/local/bin/curl -sS --max-time 5 -o /dev/null -w '%{http_code}' "$1"; }
answered() { [ "$(code "$1")" = "$2" ]; }
answered "http://$ip:8080/secret" 200 || fail "the pod does not answer"
waypoint pods workload
k label pod web istio.io/use-waypoint=workload >/dev/null
eventually 30 "a waypoint for a pod refuses what is sent to its address" answered "http://$ip:8080/secret" 403
eventually 10 "and lets the rest pass" answered "http://$ip:8080/" 200
eventually 10 "nothing walks around it: what is sent to the Service is refused" answered http://web:8080/ 000
k label pod web istio.io/use-waypoint- >/dev/null
eventually 30 "without the label it is answered" answered http://web:8080/secret 200
waypoint pods-ways service
k label service web istio.io/use-waypoint=service istio.io/use-waypoint-namespace=pods-ways >/dev/null
eventually 30 "one of another namespace serves the Service" answered http://web:8080/secret 403
eventually 10 "and lets the rest pass" answered http://web:8080/ 200
bound() { [[ "$(k get service web -o jsonpath='{.status.conditions[?(@.type=="istio.io/WaypointBound")].message}')" == *pods-ways/service* ]]; }
eventually 10 "the Service says to which it is bound" bound

# ---- namespaces that are not looked at -----------------------------------------------------------------
selected=yes
waymark install --set 'meshConfig.discoverySelectors=[{matchExpressions: [{key: aside, operator: DoesNotExist}]}]' >/dev/null 2>&1
kubectl label namespace pods-aside istio.io/dataplane-mode=ambient aside=yes >/dev/null
in_mesh() { [ "$(kubectl -n pods-aside get pod "$1" -o jsonpath='{.metadata.annotations.ambient\.istio\.io/redirection}')" = enabled ]; }
kubectl -n pods-aside run idle --image="$tools" --image-pull-policy=Never --restart=Never --command -- /busybox sleep 3600 >/dev/null
kubectl -n pods-aside wait --for=condition=Ready pod/idle --timeout=30s >/dev/null || fail "a pod of a namespace that is not looked at does not start"
ok "a pod of a namespace that discoverySelectors leave out starts"
! in_mesh idle || fail "it is in the mesh"
listed() { waymark workloads -n pods-aside | grep -q ' idle '; }
if listed; then fail "it is known to the mesh"; fi
ok "and the mesh knows nothing of it"
kubectl label namespace pods-aside aside- >/dev/null
eventually 60 "once it is looked at, it comes in as it runs" in_mesh idle
eventually 10 "and is listed" listed
finish
