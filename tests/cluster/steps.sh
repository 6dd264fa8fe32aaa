# SPDX-License-Identifier: Apache-2.0
#
# Steps of a script, each a line once it is passed; the first that is not ends the script.
# Sourced, not run; expects setup.sh.
#
# Gives: ok, fail, eventually, finish (the line that run.sh counts by), and an end: clean_up, which
# a script replaces by what takes its own things out of the cluster, runs also after a failure.

passed=0
ok() { passed=$((passed + 1)); printf 'ok   %s\n' "$*"; }
fail() { say "FAILED: $*"; exit 1; }
# eventually SECONDS WHAT COMMAND... — until the command succeeds.
eventually() {
  local until=$((SECONDS + $1)) what="$2"
  shift 2
  while ! "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || fail "$what: $*"
    sleep 0.2
  done
  ok "$what"
}
finish() { echo "test result: ok. $passed passed; 0 failed; 0 ignored"; }

clean_up() { :; }
# A cluster that was brought up for this script goes whole.
at_end() {
  if [ -n "${brought_up:-}" ]; then cluster down; else clean_up >/dev/null 2>&1 || true; fi
  [ -z "${work:-}" ] || rm -rf "$work"
}
trap at_end EXIT
