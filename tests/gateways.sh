#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gateways on a real Kubernetes: parameters that change and add objects, parameters and objects
# that are refused, certificates by name, and the controller with no right to any other Secret.
#
#   gateways.sh [--name CLUSTER]      a cluster of that name that runs is used, and left
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=gateways
[ "${1:-}" = --name ] && name="$2"
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

k() { kubectl -n edges "$@"; }
# is OBJECT JSONPATH VALUE — whether that stands there.
is() { [ "$(k get "$1" -o jsonpath="$2" --ignore-not-found)" = "$3" ]; }
gone() { [ -z "$(k get "$1" -o name --ignore-not-found)" ]; }
may() { kubectl auth can-i "$@" --as=system:serviceaccount:istio-system:waymark-controller; }
may_not() { ! may "$@" >/dev/null; }
restart_controller() {
  kubectl -n istio-system rollout restart deployment waymark-controller >/dev/null
  kubectl -n istio-system rollout status deployment waymark-controller --timeout=120s >/dev/null
}

clean_up() {
  kubectl delete namespace edges --ignore-not-found --wait=false
  kubectl -n istio-system delete configmap edge-defaults --ignore-not-found
  cluster enter "$target/$profile/waymark" install
}
need_mesh
work="$(mktemp -d)"
# certificate FILE — a certificate with its key, for web.test.
certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=web.test \
    -addext subjectAltName=DNS:web.test -keyout "$work/$1.key" -out "$work/$1.crt" 2>/dev/null
}
for one in first second other; do certificate $one; done
secret() { # NAME FILE — made, or changed
  k create secret tls "$1" --cert="$work/$2.crt" --key="$work/$2.key" --dry-run=client -o yaml | k apply -f - >/dev/null
}
parameters() { # FLAGS... — the ConfigMap `edge`
  k create configmap edge --dry-run=client -o yaml "$@" | k apply -f - >/dev/null
}
kubectl delete namespace edges --ignore-not-found >/dev/null
kubectl create namespace edges >/dev/null

# ---- the right to two Secrets alone ----------------------------------------------------------
eventually 1 "the controller may get no Secret of another namespace" may_not get secrets -n edges
cluster enter "$target/$profile/waymark" install --set "pilot.secretNames=[web-tls, api-tls]" >/dev/null 2>&1
eventually 10 "with pilot.secretNames it may not list all" may_not list secrets --all-namespaces
may_not watch secrets/else -n edges || fail "it may watch another Secret"
may watch secrets/web-tls -n edges >/dev/null || fail "it may not watch the Secret of the list"
ok "it may watch those of the list, and no other"
restart_controller
ok "it starts with no more than that"

# ---- parameters --------------------------------------------------------------------------------
deployment='spec: {template: {spec: {containers: [{name: istio-proxy, resources: {requests: {cpu: 20m}}}]}}}'
scaler='spec: {minReplicas: 2, maxReplicas: 3}'
budget='spec: {minAvailable: 1}'
good() {
  parameters --from-literal=deployment="$deployment" --from-literal=horizontalPodAutoscaler="$scaler" \
    --from-literal=podDisruptionBudget="$budget"
}
k apply -f - >/dev/null <<'Y'
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: edges}
spec:
  gatewayClassName: waymark
  infrastructure: {parametersRef: {group: "", kind: ConfigMap, name: edge}}
  listeners:
    - {name: http, port: 80, protocol: HTTP}
    - {name: https, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: web-tls}]}}
Y
accepted='{.status.conditions[?(@.type=="Accepted")].reason}'
resolved='{.status.listeners[?(@.name=="https")].conditions[?(@.type=="ResolvedRefs")].reason}'
eventually 10 "parameters that do not exist are told of" is gtw/edge "$accepted" InvalidParameters
good
eventually 10 "with them the Gateway is accepted" is gtw/edge "$accepted" Accepted
cpu='{.spec.template.spec.containers[0].resources.requests.cpu}'
owner='{.metadata.ownerReferences[0].kind}/{.metadata.ownerReferences[0].name}'
eventually 10 "the Deployment is as the parameters say" is deployment/edge-waymark "$cpu" 20m
eventually 10 "there is an autoscaler, the Gateway's own" is hpa/edge-waymark "$owner" Gateway/edge
eventually 10 "there is a disruption budget, the Gateway's own" is pdb/edge-waymark "$owner" Gateway/edge
eventually 90 "the autoscaler scales to two" is deployment/edge-waymark '{.status.readyReplicas}' 2
eventually 30 "the budget sees both" is pdb/edge-waymark '{.status.currentHealthy}' 2

# ---- a certificate that comes later ------------------------------------------------------------
eventually 10 "a Secret that does not exist is told of" is gtw/edge "$resolved" InvalidCertificateRef
host="$(k get gtw edge -o jsonpath='{.status.addresses[0].value}')"
[ -n "$host" ] || fail "the Gateway has no address"
shown() { # FILE — whether that certificate is shown to clients
  local seen
  seen="$(cluster enter timeout 5 openssl s_client -connect "$host:443" -servername web.test </dev/null 2>/dev/null |
    openssl x509 -noout -fingerprint)"
  [ "$seen" = "$(openssl x509 -noout -fingerprint -in "$work/$1.crt")" ]
}
secret else other
secret web-tls first
eventually 20 "the Secret is followed once it is made" shown first
eventually 10 "its listener says so" is gtw/edge "$resolved" ResolvedRefs
secret web-tls second
eventually 20 "a new certificate is shown without a restart" shown second
k delete secret web-tls >/dev/null
eventually 10 "a Secret that goes is told of" is gtw/edge "$resolved" InvalidCertificateRef
secret web-tls first
eventually 20 "and taken when it comes again" shown first
k patch gtw edge --type=json -p '[{"op": "replace", "path": "/spec/listeners/1/tls/certificateRefs/0/name", "value": "else"}]' >/dev/null
eventually 20 "one that may not be read counts as missing" is gtw/edge "$resolved" InvalidCertificateRef
k patch gtw edge --type=json -p '[{"op": "replace", "path": "/spec/listeners/1/tls/certificateRefs/0/name", "value": "web-tls"}]' >/dev/null
eventually 20 "the one of the list is found again" is gtw/edge "$resolved" ResolvedRefs

# ---- parameters that are refused ---------------------------------------------------------------
standing() { k get deployment,hpa,pdb,svc -l gateway.networking.k8s.io/gateway-name=edge -o jsonpath='{range .items[*]}{.kind} {.metadata.uid} {.metadata.generation}{"\n"}{end}'; }
before="$(standing)"
[ "$(wc -l <<<"$before")" -eq 4 ] || fail "four objects: $before"
refused() { # WHAT KEY LAYER PATTERN — whether that is told of and nothing changes
  parameters --from-literal="$2=$3"
  eventually 10 "$1 is refused" is gtw/edge "$accepted" InvalidParameters
  message="$(k get gtw edge -o jsonpath='{.status.conditions[?(@.type=="Accepted")].message}')"
  grep -q "$4" <<<"$message" || fail "the message says nothing of it: $message"
  [ "$(standing)" = "$before" ] || fail "objects changed: $(standing)"
  good
  eventually 10 "and accepted once it is right" is gtw/edge "$accepted" Accepted
}
refused "a value that is no YAML" deployment 'a: b: c' 'deployment: no YAML'
refused "a selector" deployment 'spec: {selector: {matchLabels: {a: b}}}' 'spec.selector may not be changed'
refused "a field that Kubernetes does not know" horizontalPodAutoscaler 'spec: {maxReplica: 3}' 'spec.maxReplica: there is no such field'
parameters --from-literal='daemonSet={}'
eventually 10 "a key that is not served is refused" is gtw/edge "$accepted" InvalidParameters
restart_controller
eventually 20 "the next controller refuses it too" is gtw/edge "$accepted" InvalidParameters
[ "$(standing)" = "$before" ] || fail "objects changed with the controller: $(standing)"
shown first || fail "the Gateway does not serve any more"
ok "and leaves the objects as they were, serving"

# ---- objects that are refused ------------------------------------------------------------------
programmed='{.status.conditions[?(@.type=="Programmed")].reason}'
told_of() { # GATEWAY PATTERN — whether its message says that
  k get gtw "$1" -o jsonpath='{.status.conditions[?(@.type=="Programmed")].message}' | grep -q "$2"
}
type='networking.istio.io/service-type'
good
eventually 30 "with good parameters the Gateway is programmed" is gtw/edge "$programmed" Programmed
k annotate gtw edge "$type=Wrong" >/dev/null
eventually 10 "a Service that the apiserver refuses is told of" is gtw/edge "$programmed" Invalid
told_of edge 'Service edges/edge-waymark.*Unsupported value: "Wrong".*service-type' || fail "the message: $(k get gtw edge -o jsonpath='{.status.conditions}')"
shown first || fail "the Gateway does not serve any more"
ok "by its name, what it is, and where to put it right; it serves on"
restart_controller
for _ in 1 2 3 4 5 6 7 8; do
  told_of edge 'Unsupported value: "Wrong"' || fail "the next controller said otherwise"
  sleep 1
done
ok "the next controller tells so too, all the while"
k annotate --overwrite gtw edge "$type=ClusterIP" >/dev/null
eventually 10 "which is taken back once it works" is gtw/edge "$programmed" Programmed
is svc/edge-waymark '{.spec.type}' ClusterIP || fail "the Service is not of the type asked for"
k annotate gtw edge "$type-" >/dev/null
eventually 20 "without the annotation it has an address of the load balancer" is svc/edge-waymark '{.spec.type}' LoadBalancer
k create service clusterip strange-waymark --tcp=80 >/dev/null
k apply -f - >/dev/null <<'Y'
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: strange, namespace: edges}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
Y
eventually 10 "a Service of its name that is not its own is told of" is gtw/strange "$programmed" NoResources
told_of strange 'Service edges/strange-waymark is there already' || fail "the message: $(k get gtw strange -o jsonpath='{.status.conditions}')"
is svc/strange-waymark '{.metadata.ownerReferences}' '' || fail "the Service was changed"
k delete svc strange-waymark >/dev/null
eventually 60 "once that is gone the Gateway gets its own, and is programmed" is gtw/strange "$programmed" Programmed
k delete gtw strange >/dev/null

# ---- layers that go --------------------------------------------------------------------------
parameters --from-literal=deployment="$deployment"
# The one that leads may only just have begun.
eventually 30 "without their layers the autoscaler goes" gone hpa/edge-waymark
eventually 10 "and the budget" gone pdb/edge-waymark
kubectl -n istio-system create configmap edge-defaults --from-literal=podDisruptionBudget="$budget" >/dev/null
kubectl -n istio-system label configmap edge-defaults gateway.istio.io/defaults-for-class=waymark >/dev/null
eventually 10 "defaults of the class give a budget" is pdb/edge-waymark '{.spec.minAvailable}' 1
kubectl -n istio-system delete configmap edge-defaults >/dev/null
eventually 10 "which goes with them" gone pdb/edge-waymark
good
eventually 10 "a budget again" is pdb/edge-waymark "$owner" Gateway/edge
k delete gtw edge >/dev/null
for one in hpa pdb deployment svc serviceaccount; do
  eventually 60 "the $one goes with the Gateway" gone "$one/edge-waymark"
done

finish
