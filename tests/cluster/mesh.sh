# SPDX-License-Identifier: Apache-2.0
#
# A cluster with the mesh of this tree in it. Sourced, not run; expects setup.sh, image.sh and
# the name of the cluster in `name`; cargo's profile in `profile`, unless it is `debug`.
#
# Gives: binaries (folder of the cluster's programs), cluster, kubectl, need_cluster, load_mesh,
# gateway_api, need_mesh (all of them, and `install`), load_tools, load_load, on_node, and
# brought_up when the cluster is to be taken down at the end. Takes: cluster_flags for `up`.

profile="${profile:-debug}"

cluster() { local verb="$1"; shift; tests/cluster.sh "$verb" --name "$name" "$@"; }
kubectl() { cluster kubectl "$@"; }

# linked PROGRAM — what `image` copies of a program: itself and its libraries, as SOURCE=TARGET.
linked() {
  echo "$1=usr/local/bin/$(basename "$1")"
  ldd "$1" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do echo "$library=${library#/}"; done
}

# need_cluster — brings it up unless it runs; then it is taken down at the end, by the script's
# own trap if it has set one.
need_cluster() {
  need_basics
  need_packages jq:jq openssl:openssl curl:curl
  binaries="$(tests/cluster/build.sh)"
  cluster status >/dev/null 2>&1 && return 0
  [ -n "$(trap -p EXIT)" ] || trap 'cluster down' EXIT
  brought_up=yes
  cluster up "${cluster_flags[@]}"
}

# load_mesh — builds the mesh and brings its images to the nodes; with a plug-in that needs no
# library of theirs if `static_plugin` is set, as README tells.
load_mesh() {
  local work flags=()
  [ "$profile" = debug ] || flags=(--profile "$profile")
  say "building and loading the mesh"
  cargo build -q --locked --workspace --bins "${flags[@]}"
  [ -z "${static_plugin:-}" ] || cargo rustc -q --locked -p waymark-tunnel --bin waymark-cni \
    "${flags[@]}" -- -C target-feature=+crt-static
  work="$(mktemp -d)"
  "$target/$profile/waymark" images --output "$work" >/dev/null
  cluster load-images "$work"/*.tar
  rm -rf "$work"
}

# gateway_api — its definitions, those of the experimental channel.
gateway_api() {
  local file definitions=()
  for file in "$binaries"/crds/experimental/gateway.networking.k8s.io_*s.yaml; do
    [[ "$file" == *_vap_* ]] || definitions+=(-f "$file")
  done
  kubectl apply --server-side "${definitions[@]}" >/dev/null
}

# need_mesh — builds, loads and installs the mesh unless it is there.
need_mesh() {
  need_cluster
  kubectl get deployment -n istio-system waymark-controller >/dev/null 2>&1 && return 0
  load_mesh
  gateway_api
  cluster enter "$target/$profile/waymark" install
}

# What tests run in pods: busybox, and curl as /usr/local/bin/curl; and what makes and answers load.
tools=localhost/waymark/tools:test load=localhost/waymark/load:test
load_tools() { load_program "$tools" '["/busybox"]' "$(command -v curl)"; }
load_load() { load_program "$load" '["/usr/local/bin/waymark-load"]' "$target/$profile/waymark-load"; }
# load_program NAME ENTRYPOINT-JSON PROGRAM — brings an image with it, and busybox, to the nodes.
load_program() {
  local work files
  work="$(mktemp -d)"
  mapfile -t files < <({ linked "$3"; echo /bin/busybox=busybox; } | sort -u)
  image "$work/image.tar" "$1" "$2" "${files[@]}"
  cluster load-images "$work/image.tar"
  rm -rf "$work"
}

# on_node NODE COMMAND... — as a root process of that node, in its network.
on_node() {
  # shellcheck disable=SC2016
  cluster enter sh -c 'pid="$(pgrep -f "hostname-override $0 " | head -n1)"; exec nsenter -t "$pid" --net "$@"' "$@"
}
