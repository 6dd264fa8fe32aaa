#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Gives each LoadBalancer Service an address from the cluster's range, honouring one that
# is asked for inside it (spec.loadBalancerIP). What a cloud does, in a few lines. The upper
# fifth of the range is for those that are asked for.
set -uo pipefail
dual="$1"
next=10
declare -A given

address_of() { # ASKED
  if [ -n "$1" ]; then
    case "$1" in 172.30.1.*) ;; *) return 1 ;; esac
    [ "${given[$1]:-$key}" = "$key" ] || return 1
    echo "$1"
    return 0
  fi
  while [ -n "${given[172.30.1.$next]:-}" ]; do next=$((next + 1)); done
  [ "$next" -lt 200 ] || return 1
  echo "172.30.1.$next"
}

while true; do
  # All Services are listed anew: addresses of those that went are free again.
  given=() next=10
  while read -r namespace name asked has; do
    key="$namespace/$name"
    if [ -n "$has" ] && [ "$has" != null ]; then
      given[$has]="$key"
      case "$asked" in null | "$has") continue ;; esac
    fi
    [ "$asked" = null ] && asked=
    if ! address="$(address_of "$asked")"; then
      [ -n "$asked" ] && continue
      break
    fi
    given[$address]="$key"
    ingress="[{\"ip\":\"$address\",\"ipMode\":\"VIP\"}]"
    [ "$dual" = yes ] && ingress="[{\"ip\":\"$address\",\"ipMode\":\"VIP\"},{\"ip\":\"fd00:172:31::${address##*.}\",\"ipMode\":\"VIP\"}]"
    kubectl -n "$namespace" patch service "$name" --subresource=status --type=merge \
      -p "{\"status\":{\"loadBalancer\":{\"ingress\":$ingress}}}" >/dev/null
  done < <(kubectl get services -A --watch --output-watch-events=false -o json 2>/dev/null |
    jq --unbuffered -r 'if .kind == "List" then .items[] else . end | select(.spec.type == "LoadBalancer") |
      "\(.metadata.namespace) \(.metadata.name) \(.spec.loadBalancerIP) \(.status.loadBalancer.ingress[0].ip)"')
  sleep 0.2
done
