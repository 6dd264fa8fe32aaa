# SPDX-License-Identifier: Apache-2.0
#
# What the project's scripts need of the machine, in one place. Sourced, not run.
#
# Gives: cache (folder for everything that is built once), say, need_packages, need_rust, need_go.

cache="${XDG_CACHE_HOME:-$HOME/.cache}/waymark"
mkdir -p "$cache"

# In CI the clone is thrown away, so what cargo builds is kept outside it.
if [ "${CI:-}" = true ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR="$cache/target"
  # Of one clone no other makes use: it would only fill the disk.
  export CARGO_INCREMENTAL=0
fi
target="${CARGO_TARGET_DIR:-$(git rev-parse --show-toplevel 2>/dev/null || pwd)/target}"

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }

# need_packages COMMAND:PACKAGE ... — installs the Debian packages whose command is missing.
need_packages() {
  local missing=() pair
  for pair in "$@"; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if ! command -v apt-get >/dev/null 2>&1; then
    say "missing: ${missing[*]}. Install them with this system's package manager, then run this again."
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    say "missing Debian packages. Run this, then this script again:"
    printf '    sudo apt-get install -y %s\n' "${missing[*]}" >&2
    return 1
  fi
  say "installing Debian packages: ${missing[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get update -qq >/dev/null &&
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

need_rust() {
  [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
  command -v cargo >/dev/null 2>&1 && return 0
  say "cargo is missing. Install Rust (https://rustup.rs), then run this again."
  return 1
}

need_go() {
  [ -d /usr/local/go/bin ] && PATH="$PATH:/usr/local/go/bin"
  command -v go >/dev/null 2>&1 && return 0
  say "go is missing. Install Go 1.26 or newer (https://go.dev/dl), then run this again."
  return 1
}

# What every build and every world needs.
need_basics() {
  need_rust && need_packages cc:build-essential cmake:cmake nft:nftables ip:iproute2 \
    unshare:util-linux git:git
}
