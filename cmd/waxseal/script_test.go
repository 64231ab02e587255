package main_test

import (
	"flag"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

var update = flag.Bool("update", false, "let the scripts' cmp commands rewrite what they expect")

// TestScripts runs testdata/script over the real binary. One script alone:
// go test ./cmd/waxseal -run TestScripts/NAME
func TestScripts(t *testing.T) {
	testkit.Script(t, "../../testdata/script", *update)
}
