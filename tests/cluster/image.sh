# SPDX-License-Identifier: Apache-2.0
#
# OCI archives of one layer, from files of this machine. Sourced, not run.

# image ARCHIVE NAME ENTRYPOINT-JSON SOURCE=TARGET ... — writes ARCHIVE for image NAME.
image() {
  local archive="$1" name="$2" entrypoint="$3" work layer diff config manifest pair
  shift 3
  work="$(mktemp -d)"
  mkdir -p "$work/root/tmp" "$work/root/etc" "$work/oci/blobs/sha256"
  chmod 1777 "$work/root/tmp"
  printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$work/root/etc/passwd"
  for pair in "$@"; do
    mkdir -p "$work/root/$(dirname "${pair#*=}")"
    cp -L "${pair%%=*}" "$work/root/${pair#*=}"
  done
  tar -C "$work/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/layer" .
  blob() { # FILE — stores it by digest, prints digest and size
    local sum size
    sum="$(sha256sum "$1" | cut -d' ' -f1)" size="$(stat -c %s "$1")"
    mv "$1" "$work/oci/blobs/sha256/$sum"
    echo "$sum $size"
  }
  read -r layer layer_size < <(blob "$work/layer")
  diff="sha256:$layer"
  jq -cn --argjson entrypoint "$entrypoint" --arg diff "$diff" '{architecture: "amd64", os: "linux",
    config: {Entrypoint: $entrypoint, Env: ["PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin:/"]},
    rootfs: {type: "layers", diff_ids: [$diff]}}' >"$work/config"
  read -r config config_size < <(blob "$work/config")
  jq -cn --arg c "sha256:$config" --argjson cs "$config_size" --arg l "sha256:$layer" --argjson ls "$layer_size" \
    '{schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json",
      config: {mediaType: "application/vnd.oci.image.config.v1+json", digest: $c, size: $cs},
      layers: [{mediaType: "application/vnd.oci.image.layer.v1.tar", digest: $l, size: $ls}]}' >"$work/manifest"
  read -r manifest manifest_size < <(blob "$work/manifest")
  jq -cn --arg m "sha256:$manifest" --argjson ms "$manifest_size" --arg name "$name" \
    '{schemaVersion: 2, manifests: [{mediaType: "application/vnd.oci.image.manifest.v1+json", digest: $m, size: $ms,
      platform: {architecture: "amd64", os: "linux"},
      annotations: {"io.containerd.image.name": $name, "org.opencontainers.image.ref.name": ($name | split(":") | last)}}]}' \
    >"$work/oci/index.json"
  echo '{"imageLayoutVersion":"1.0.0"}' >"$work/oci/oci-layout"
  tar -C "$work/oci" -cf "$archive" oci-layout index.json blobs
  rm -rf "$work"
}
