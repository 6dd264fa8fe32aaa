#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds what the test cluster is made of, from Go modules pinned beside this file, into
# the cache; what is there already is left alone. Prints the folder of the binaries.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/../setup.sh"

kubernetes=v1.34.4
out="$cache/cluster/$(cat "$here"/*/go.sum "$here"/*/*.go | sha256sum | cut -c1-16)"
mkdir -p "$out"
# Of two clusters that are started at once on an empty cache one builds, the other waits.
exec 9>"$out/.lock"
flock 9

need_go

# one MODULE PACKAGE NAME [LINK FLAGS]
one() {
  [ -x "$out/$3" ] && return 0
  local begun=$SECONDS
  say "building $3"
  (cd "$here/$1" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w ${4:-}" -o "$out/$3.part" "$2")
  mv "$out/$3.part" "$out/$3"
  say "built $3 in $((SECONDS - begun)) s"
}

version="-X k8s.io/component-base/version.gitVersion=$kubernetes"
version="$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34"
for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
  one kubernetes "k8s.io/kubernetes/cmd/$program" "$program" "$version"
done
one etcd go.etcd.io/etcd/server/v3 etcd
one coredns . coredns
one conformance sigs.k8s.io/gateway-api/conformance/echo-basic echo-basic
one echo istio.io/istio/pkg/test/echo/cmd/client echo-client
one echo istio.io/istio/pkg/test/echo/cmd/server echo-server
if [ ! -x "$out/conformance" ]; then
  begun=$SECONDS
  say "building the Gateway API conformance suite"
  (cd "$here/conformance" && CGO_ENABLED=0 go test -c -trimpath -o "$out/conformance.part" .)
  mv "$out/conformance.part" "$out/conformance"
  say "built the suite in $((SECONDS - begun)) s"
fi
if [ ! -d "$out/crds" ]; then
  module="$(cd "$here/conformance" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)"
  cp -r "$module/config/crd" "$out/crds.part"
  chmod -R u+w "$out/crds.part"
  mv "$out/crds.part" "$out/crds"
fi
echo "$out"
