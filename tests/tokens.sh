#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Tokens of end users on a real Kubernetes, at the ingress and at a waypoint: keys that stand in
# the object, and keys that are fetched in the cluster, change there, and go away.
#
#   tokens.sh [--name CLUSTER]      a cluster of that name that runs is used, and left
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/setup.sh
. tests/cluster/image.sh
name=tokens
[ "${1:-}" = --name ] && name="$2"
. tests/cluster/mesh.sh
. tests/cluster/steps.sh

k() { kubectl -n tokens "$@"; }
issuer=https://inline.test other=https://fetched.test

clean_up() { kubectl delete namespace tokens --ignore-not-found --wait=false; }
need_mesh
load_tools
work="$(mktemp -d)"

# ---- keys and tokens ---------------------------------------------------------------------------
base64url() { basenc --base64url --wrap=0 | tr -d =; }
for key in one two three wrong; do openssl genrsa -out "$work/$key.key" 2048 2>/dev/null; done
jwks() { # KEY — a set with its public half
  local modulus
  modulus="$(openssl rsa -in "$work/$1.key" -noout -modulus)"
  jq -cn --arg kid "$1" --arg n "$(basenc --base16 --decode <<<"${modulus#*=}" | base64url)" \
    '{keys: [{kty: "RSA", use: "sig", alg: "RS256", kid: $kid, n: $n, e: "AQAB"}]}'
}
token() { # KEY ISSUER SUBJECT [SECONDS TO LIVE] [NAME OF THE KEY, UNLESS ITS OWN]
  local signed
  signed="$(printf '{"alg":"RS256","kid":"%s"}' "${5:-$1}" | base64url)"
  signed+=".$(printf '{"iss":"%s","sub":"%s","exp":%d}' "$2" "$3" $(($(date +%s) + ${4:-3600})) | base64url)"
  printf '%s.%s' "$signed" "$(printf %s "$signed" | openssl dgst -sha256 -sign "$work/$1.key" -binary | base64url)"
}

# ---- what is called ------------------------------------------------------------------------------
server() { # NAME FOLDER — a pod that serves the files of a folder, and its Service
  cat <<Y
apiVersion: v1
kind: Pod
metadata: {name: $1, namespace: tokens, labels: {app: $1}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: server
      image: $tools
      args: [httpd, -f, -p, "8080", -h, $2]
      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: $1, namespace: tokens}
spec: {selector: {app: $1}, ports: [{name: http, port: 8080}]}
---
Y
}
kubectl delete namespace tokens --ignore-not-found >/dev/null
kubectl create namespace tokens >/dev/null
kubectl label namespace tokens istio.io/dataplane-mode=ambient >/dev/null
{ server web /etc; server inner /etc; server keys /tmp; server client /etc; cat <<Y; } | k apply -f - >/dev/null
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge, namespace: tokens}
spec: {gatewayClassName: waymark, listeners: [{name: http, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: tokens}
spec: {parentRefs: [{name: edge}], rules: [{backendRefs: [{name: web, port: 8080}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: tokens, labels: {istio.io/waypoint-for: service}}
spec: {gatewayClassName: waymark-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
Y
k label service inner istio.io/use-waypoint=waypoint >/dev/null
k wait --for=condition=Ready pod --all --timeout=90s >/dev/null
k wait --for=condition=Programmed gtw --all --timeout=60s >/dev/null
host="$(k get gtw edge -o jsonpath='{.status.addresses[0].value}')"
call=(curl -s -o /dev/null -w '%{http_code}' --max-time 5)
bearer() { [ -z "${1:-}" ] || printf 'authorization: Bearer %s' "$1"; }
# edge|inner CODE [TOKEN] — whether the ingress, or the Service behind the waypoint, answers so.
edge() { [ "$(cluster enter "${call[@]}" -H "$(bearer "${2:-}")" "http://$host/passwd")" = "$1" ]; }
inner() { [ "$(k exec client -- "/usr/local/bin/${call[0]}" "${call[@]:1}" -H "$(bearer "${2:-}")" http://inner:8080/passwd)" = "$1" ]; }
# at_once WHAT COMMAND... — what needs no time, as the step before it showed.
at_once() {
  local what="$1"
  shift
  "$@" || fail "$what: $*"
  ok "$what"
}

# ---- at the ingress, keys in the object -----------------------------------------------------------
eventually 30 "without a rule the ingress takes what looks like a token" edge 200 "$(token wrong $issuer alice)"
authentication() { # NAME TARGET RULE
  k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: $1, namespace: tokens}
spec: {targetRefs: [$2], jwtRules: [$3]}
Y
}
policy() { # NAME TARGET PRINCIPAL...
  k apply -f - >/dev/null <<Y
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: $1, namespace: tokens}
spec:
  targetRefs: [$2]
  action: ALLOW
  rules: [{from: [{source: {requestPrincipals: [$(printf '"%s",' "${@:3}")]}}]}]
Y
}
gateway='{group: gateway.networking.k8s.io, kind: Gateway, name: edge}'
service='{group: "", kind: Service, name: inner}'
authentication inline "$gateway" "{issuer: $issuer, jwks: '$(jwks one)'}"
good="$(token one $issuer alice)"
eventually 20 "with one, a token that another key signed gets 401" edge 401 "$(token wrong $issuer alice 3600 one)"
at_once "so does one that is over" edge 401 "$(token one $issuer alice -100)"
at_once "and one of an issuer that nobody named" edge 401 "$(token one https://unknown.test alice)"
at_once "and what is no token" edge 401 abc
at_once "a good one passes" edge 200 "$good"
at_once "and nobody, as no policy asks who it is" edge 200
policy known "$gateway" "$issuer/*" "$other/alice"
eventually 20 "with a policy that asks, nobody gets 403" edge 403
at_once "a good token passes" edge 200 "$good"
at_once "a bad one gets 401 as before" edge 401 "$(token wrong $issuer alice 3600 one)"

# ---- keys that are fetched -------------------------------------------------------------------------
rule() { # SECONDS — a rule whose keys a pod of the cluster serves; another time asks for them anew
  authentication fetched "$gateway" "{issuer: $other, jwksUri: 'http://keys.tokens.svc.cluster.local:8080/jwks.json', timeout: $1s}"
}
serve() { jwks "$1" | k exec -i keys -- /busybox sh -c 'cat >/tmp/next && mv /tmp/next /tmp/jwks.json'; }
told() { # FIELD PATTERN — what the object's condition says
  local said
  said="$(k get requestauthentication fetched -o jsonpath="{.status.conditions[*].$1}")"
  grep -q "$2" <<<"$said"
}
rule 5
eventually 20 "keys that are not there are told of" told reason KeysNotFetched
eventually 10 "without them a token of their issuer gets 401" edge 401 "$(token one $other alice)"
at_once "tokens of the other issuer pass" edge 200 "$good"
serve one
eventually 40 "once they are there it passes" edge 200 "$(token one $other alice)"
at_once "whom the policy does not name gets 403" edge 403 "$(token one $other bob)"
at_once "what another key signed gets 401" edge 401 "$(token wrong $other alice 3600 one)"
serve two
rule 4
eventually 20 "keys that were changed are followed when they are asked for anew" edge 200 "$(token two $other alice)"
at_once "what the old key signed gets 401" edge 401 "$(token one $other alice)"
serve three
kubectl -n istio-system rollout restart deployment waymark-controller >/dev/null
kubectl -n istio-system rollout status deployment waymark-controller --timeout=120s >/dev/null
eventually 60 "the next controller follows them, too" edge 200 "$(token three $other alice)"
at_once "what the old key signed gets 401" edge 401 "$(token two $other alice)"
k delete pod keys >/dev/null
rule 3
eventually 20 "that no newer ones can be had is told of" told message 'last good keys'
at_once "and the last good ones serve on" edge 200 "$(token three $other alice)"

# ---- at a waypoint ------------------------------------------------------------------------------------
eventually 30 "a Service behind a waypoint is reached" inner 200
authentication inner "$service" "{issuer: $issuer, jwks: '$(jwks one)'}"
policy inner "$service" "$issuer/alice"
eventually 20 "nobody gets 403 there, too" inner 403
eventually 20 "a bad token gets 401" inner 401 "$(token wrong $issuer alice 3600 one)"
at_once "a good one passes" inner 200 "$good"
at_once "of another subject it gets 403" inner 403 "$(token one $issuer bob)"

finish
