// SPDX-License-Identifier: Apache-2.0

// Package conformance runs the Gateway API suite's own tests as a binary.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}
