package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command's help fits a terminal of a hundred columns and shows how it is
// used.
func TestHelpFits(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(&Streams{Out: &out, Err: &out, LookupEnv: func(string) (string, bool) { return "", false }})
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		out.Reset()
		if err := cmd.Help(); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), cmd.CommandPath()) {
			t.Errorf("%s: its help does not name it", cmd.CommandPath())
		}
		for _, line := range strings.Split(out.String(), "\n") {
			if n := len([]rune(line)); n > 100 {
				t.Errorf("%s: a line of %d columns: %s", cmd.CommandPath(), n, line)
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(root)
}

// A shell is told what a flag can be.
func TestValuesComplete(t *testing.T) {
	for flag, want := range map[string]string{
		"inputs": "record\tlet everything through and write the lock\nlocked\t", "allow": "network.host\nsecurity.insecure\n:4",
		"progress": "\nrawjson\n:4", "engine": "embedded\nbuildkit:\n:4", "sbom": "spdx\ncyclonedx\nnone\n:4", "store": ":16",
	} {
		var out bytes.Buffer
		root := newRoot(&Streams{Out: &out, Err: &bytes.Buffer{}, LookupEnv: func(string) (string, bool) { return "", false }})
		root.SetArgs([]string{cobra.ShellCompRequestCmd, "build", "--" + flag, ""})
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("--%s completes to %q, %v", flag, out.String(), err)
		}
	}
}
