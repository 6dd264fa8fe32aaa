#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Bookinfo on a real Kubernetes, step by step as a user goes: deploy, ingress, into the mesh,
# policies, waypoint, traffic split, out again. Each step says what must be seen.
#
#   walkthrough.sh [--name CLUSTER]      a cluster of that name that runs is used, and left
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=walkthrough
[ "${1:-}" = --name ] && name="$2"
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

k() { kubectl -n bookinfo "$@"; }

# ---- images of ours under the names that the manifests use ----------------------------------
images() {
  local work program="$target/debug/bookinfo" files image_name entry
  work="$(mktemp -d)"
  mapfile -t files < <({ linked "$program"; linked "$(command -v curl)"; echo /bin/busybox=busybox; } | sort -u)
  make() { # NAME ENTRYPOINT
    image "$work/$1.tar" "docker.io/istio/examples-bookinfo-$1:1.20.3" "$2" "${files[@]}"
  }
  for image_name in productpage details ratings; do
    make "$image_name-v1" "[\"/usr/local/bin/bookinfo\",\"$image_name\"]"
  done
  entry='"/usr/local/bin/bookinfo","reviews"]'
  make reviews-v1 "[\"/busybox\",\"env\",\"SERVICE_VERSION=v1\",\"ENABLE_RATINGS=false\",$entry"
  make reviews-v2 "[\"/busybox\",\"env\",\"SERVICE_VERSION=v2\",\"ENABLE_RATINGS=true\",\"STAR_COLOR=black\",$entry"
  make reviews-v3 "[\"/busybox\",\"env\",\"SERVICE_VERSION=v3\",\"ENABLE_RATINGS=true\",\"STAR_COLOR=red\",$entry"
  cluster load-images "$work"/*.tar
  rm -rf "$work"
}

clean_up() { kubectl delete namespace bookinfo --ignore-not-found --timeout=60s; }
need_mesh
images
kubectl delete namespace bookinfo --ignore-not-found >/dev/null

# ---- the application, outside the mesh --------------------------------------------------------
kubectl create namespace bookinfo >/dev/null
k apply -f examples/bookinfo/bookinfo.yaml -f examples/bookinfo/bookinfo-versions.yaml >/dev/null
k wait --for=condition=Available deployment --all --timeout=90s >/dev/null
ok "six deployments are available"
k apply -f examples/bookinfo/bookinfo-gateway.yaml >/dev/null
k wait --for=condition=Programmed gtw/bookinfo-gateway --timeout=60s >/dev/null
[ "$(k get deployment bookinfo-gateway-istio -o jsonpath='{.status.readyReplicas}')" = 1 ] || fail "no gateway pod"
host="$(k get gtw bookinfo-gateway -o jsonpath='{.status.addresses[0].value}')"
port="$(k get gtw bookinfo-gateway -o jsonpath='{.spec.listeners[?(@.name=="http")].port}')"
url="http://$host:$port/productpage"
page() { cluster enter curl -sS --fail --max-time 10 "$url"; }
# seen PATTERN — whether any of thirty pages has it. Black stars are #000000, red ones #c5221f.
seen() { local pages; pages="$(for _ in $(seq 30); do page; done)"; grep -q "$1" <<<"$pages"; }
eventually 30 "the page is served at $url" page
eventually 30 "reviews with black stars" seen 'fill="#000000"'
eventually 30 "reviews with red stars" seen 'fill="#c5221f"'

# ---- into the mesh, while it runs -------------------------------------------------------------
# shown PROTOCOL — whether that is what `waymark workloads` shows of all six pods, without waypoint.
shown() {
  cluster enter "$target/debug/waymark" workloads -n bookinfo |
    awk -v wanted="$1" '$2 ~ /^(details|productpage|ratings|reviews)-/ { n++; if ($5 != "None" || $6 != wanted) exit 1 } END { exit n != 6 }'
}
eventually 20 "waymark workloads shows six pods with TCP" shown TCP
restarts() { k get pods -l app -o jsonpath='{range .items[*]}{.metadata.name}{" "}{.status.containerStatuses[0].restartCount}{"\n"}{end}' | sort; }
before="$(restarts)"
failures="$(mktemp)"
load() { while [ -e "$failures" ] && kill -0 $$ 2>/dev/null; do page >/dev/null 2>>"$failures" || echo failed >>"$failures"; done; }
load & loader=$!
enrolled() { # how many pods of the application are marked
  k get pods -l app -o jsonpath='{range .items[*]}{.metadata.annotations.ambient\.istio\.io/redirection}{"\n"}{end}' | grep -c enabled || true
}
has() { [ "$(enrolled)" -eq "$1" ]; }
kubectl label namespace bookinfo istio.io/dataplane-mode=ambient >/dev/null
eventually 60 "six pods are proven to be in the mesh" has 6
[ "$before" = "$(restarts)" ] || fail "pods were restarted"
ok "no pod was restarted or replaced"
eventually 20 "waymark workloads shows six pods with HBONE" shown HBONE
page >/dev/null
sockets="$(k exec deploy/productpage-v1 -- /busybox netstat -tuln)"
rows="$(awk '$4 ~ /:150(01|06|08|53)$/ { print $1 ($4 ~ /^(127\.0\.0\.1|::1):/ ? " lo " : " any ") substr($4, length($4) - 4) }' <<<"$sockets" | sed 's/tcp6/tcp/; s/udp6/udp/' | sort | uniq -c | awk '{ print $1, $2, $3, $4 }' | paste -sd,)"
[ "$rows" = "1 tcp any 15001,1 tcp any 15006,1 tcp any 15008,2 tcp lo 15053,2 udp lo 15053" ] || fail "sockets in the pod: $rows"
ok "the tunnel's sockets are in the pod's namespace: five TCP, two UDP"
# tables — those of nftables in the pod of productpage.
tables() {
  # shellcheck disable=SC2016
  cluster enter sh -c 'exec nsenter -t "$(pgrep -f "^/usr/local/bin/bookinfo productpage" | head -n1)" --net nft list tables'
}
captured() { local all; all="$(tables)" && grep -q istio-ambient-nat <<<"$all"; }
clean() { local all; all="$(tables)" && ! grep -q istio-ambient <<<"$all"; }
captured || fail "tables in the pod: $(tables)"
ok "and the capture rules"
logged() { local lines; lines="$(kubectl -n istio-system logs -l app=ztunnel --tail=400)"; grep -qE "$1" <<<"$lines"; }
who='src.identity="spiffe://cluster.local/ns/bookinfo/sa/bookinfo-productpage".*dst.identity="spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"'
eventually 20 "the tunnel logs productpage -> details with both identities" logged "$who.*direction=\"inbound\""
eventually 20 "and at its beginning with every field of the walk-through" logged \
  'access.connection complete.src.addr=[0-9.]+:[0-9]+ src.workload="productpage-v1-[^"]+" src.namespace="bookinfo" src.identity="[^"]+".*dst.addr=[0-9.]+:15008 dst.hbone_addr=[0-9.]+:9080 dst.service="details.bookinfo.svc.cluster.local" dst.workload="details-v1-[^"]+" dst.namespace="bookinfo" dst.identity="[^"]+".*direction="outbound" bytes_sent=[0-9]+ bytes_recv=[0-9]+ duration="[0-9]+ms"'

# ---- what lies outside of the cluster, by name ----------------------------------------------------
# The apiserver, once as an entry of its own and once by a name that the tunnel resolves.
outside="$(kubectl get endpointslice -n default kubernetes -o jsonpath='{.endpoints[0].addresses[0]} {.ports[0].port}')"
k apply -f - >/dev/null <<Y
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: bookinfo}
spec:
  hosts: [outside.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: STATIC
  workloadSelector: {labels: {app: outside}}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: outside, namespace: bookinfo}
spec:
  address: ${outside% *}
  ports: {tls: ${outside#* }}
  labels: {app: outside}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: named, namespace: bookinfo}
spec:
  hosts: [named.example.com]
  ports: [{number: 443, name: tls, protocol: TLS}]
  resolution: DNS
  endpoints: [{address: kubernetes.default.svc.cluster.local}]
Y
# answers HOST — whether a pod of the mesh gets an answer from it, whatever it is.
answers() {
  local code
  code="$(k exec deploy/productpage-v1 -- /usr/local/bin/curl -sk --max-time 5 -o /dev/null -w '%{http_code}' "https://$1/livez")" && [ "$code" != 000 ]
}
eventually 20 "a pod reaches a host outside through a ServiceEntry and a WorkloadEntry" answers outside.example.com
eventually 20 "and one whose name the tunnel resolves" answers named.example.com
has_address() { [ -n "$(k get serviceentry outside -o jsonpath='{.status.addresses[0].value}')" ]; }
eventually 20 "the ServiceEntry says which address it has" has_address
k delete serviceentry outside named >/dev/null
k delete workloadentry outside >/dev/null
eventually 20 "without them nobody is there" eval '! answers outside.example.com'

# ---- policies of the tunnel ---------------------------------------------------------------------
can() { # DEPLOYMENT URL — whether a pod of the application is answered
  k exec "deploy/$1" -- /usr/local/bin/curl -sS --fail --max-time 5 -o /dev/null "$2"
}
cannot() { ! can "$@"; }
eventually 20 "productpage reaches details" can productpage-v1 http://details:9080/details/0
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: details-l4, namespace: bookinfo}
spec:
  selector: {matchLabels: {app: details}}
  action: ALLOW
  rules: [{from: [{source: {principals: [cluster.local/ns/bookinfo/sa/bookinfo-productpage]}}]}]
Y
eventually 20 "ratings may not call details (L4)" cannot ratings-v1 http://details:9080/details/0
can productpage-v1 http://details:9080/details/0 >/dev/null || fail "productpage may call details"
ok "productpage still may"
k delete authorizationpolicy details-l4 >/dev/null
read -r node ip < <(k get pod -l app=details -o jsonpath='{.items[0].spec.nodeName} {.items[0].status.podIP}{"\n"}')
k exec deploy/details-v1 -- /busybox httpd -p 9081 -h /etc
from_outside() { cluster enter curl -sS --fail --max-time 3 -o /dev/null "http://$ip:9080/details/0"; }
# No probe of the kubelet goes to that port.
from_node() { on_node "$node" curl -sS --fail --max-time 3 -o /dev/null "http://$ip:9081/passwd"; }
eventually 10 "plain calls from outside and from the node reach the pod" eval "from_outside && from_node"
k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: bookinfo}
spec: {mtls: {mode: STRICT}}
Y
strict() { ! from_outside && ! from_node; }
eventually 20 "under STRICT they are refused, a root process of the pod's own node too" strict
k get pods -l app --no-headers | awk '$2 != "1/1" { exit 1 }' || fail "probes fail under STRICT"
ok "probes of the kubelet pass under STRICT"
k delete peerauthentication default >/dev/null

# ---- a waypoint, L7 policies and a split ----------------------------------------------------------
k apply -f examples/bookinfo/waypoint.yaml >/dev/null
k wait --for=condition=Programmed gtw/waypoint --timeout=60s >/dev/null
kubectl label namespace bookinfo istio.io/use-waypoint=waypoint >/dev/null
bound() { [ "$(k get service ratings -o jsonpath='{.status.conditions[?(@.type=="istio.io/WaypointBound")].status}')" = True ]; }
eventually 60 "Services say that they are bound to the waypoint" bound
page >/dev/null
k apply -f examples/bookinfo/policies.yaml >/dev/null
eventually 30 "productpage may not read ratings (L7)" cannot productpage-v1 http://ratings:9080/ratings/0
eventually 20 "reviews may" can reviews-v2 http://ratings:9080/ratings/0
accepted() { [ "$(k get authorizationpolicy ratings-readers -o jsonpath='{.status.conditions[?(@.type=="Accepted")].status}')" = True ]; }
eventually 20 "the policy says that it is accepted" accepted
k apply -f - >/dev/null <<Y
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: bookinfo}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]
  rules: [{backendRefs: [{name: reviews-v1, port: 9080}]}]
Y
plain() { ! seen 'fill="#'; }
eventually 30 "all reviews come from v1: no stars" plain
k patch httproute reviews --type=merge -p '{"spec": {"rules": [{"backendRefs": [
  {"name": "reviews-v1", "port": 9080, "weight": 50}, {"name": "reviews-v3", "port": 9080, "weight": 50}]}]}}' >/dev/null
halves() {
  local red=0 text
  for _ in $(seq 30); do
    text="$(page)" && ! grep -q 'fill="#000000"' <<<"$text" || return 1
    if grep -q 'fill="#c5221f"' <<<"$text"; then red=$((red + 1)); fi
  done
  [ $red -ge 5 ] && [ $red -le 25 ]
}
eventually 40 "split by halves: red stars on some of thirty pages, black on none" halves
k delete httproute reviews >/dev/null
eventually 30 "stars are back" seen 'fill="#'

# ---- out again ---------------------------------------------------------------------------------------
k delete -f examples/bookinfo/policies.yaml >/dev/null
kubectl label namespace bookinfo istio.io/use-waypoint- >/dev/null
unbound() { ! bound; }
eventually 60 "Services are bound to no waypoint" unbound
kubectl label namespace bookinfo istio.io/dataplane-mode- >/dev/null
eventually 60 "no pod is in the mesh" has 0
eventually 20 "waymark workloads shows six pods with TCP again" shown TCP
[ "$before" = "$(restarts)" ] || fail "pods were restarted"
released() { local sockets; sockets="$(k exec deploy/productpage-v1 -- /busybox netstat -tuln)"; ! grep -q ':15001 ' <<<"$sockets"; }
eventually 150 "the tunnel's sockets are gone once kept-alive connections ended" released
eventually 60 "and so are its rules" clean
page >/dev/null
lost="$(grep -c . "$failures" || true)"
rm -f "$failures"
wait "$loader" || true
ok "page under load all the while: $lost failed"
[ "$lost" -eq 0 ] || fail "$lost requests failed"
finish
