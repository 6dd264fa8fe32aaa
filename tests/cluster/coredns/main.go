// SPDX-License-Identifier: Apache-2.0

// CoreDNS with the plugins that the test cluster uses, and the backends of the conformance suite's
// UDP routes: log, forward, whoami. With all of its own, among them those of three clouds, it takes
// several times as long to build.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/whoami"
)

func init() {
	// The order in which they see a query.
	dnsserver.Directives = []string{"errors", "log", "cache", "kubernetes", "forward", "whoami"}
}

func main() {
	coremain.Run()
}
