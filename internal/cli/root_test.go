package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command's help fits a terminal of a hundred columns and shows how it is
// used.
func TestHelpFits(t *testing.T) {
	var out bytes.Buffer
	root := newRoot(&Streams{Out: &out, Err: &out, LookupEnv: func(string) (string, bool) { return "", false }}, "")
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

// Help beside anything else is no answer: what comes from elsewhere, as the name
// of an image does, may be a flag.
func TestHelpIsNoAnswer(t *testing.T) {
	for line, want := range map[string]int{
		"--help": ExitOK, "-h": ExitOK, "help verify": ExitOK, "verify --help": ExitOK, "verify -h": ExitOK, "policy": ExitOK,
		"policy check --help":               ExitOK,
		"verify --policy p.yaml --help":     ExitUsage,
		"verify --policy p.yaml -h":         ExitUsage,
		"verify --policy p.yaml --help=1":   ExitUsage,
		"verify --help registry.example/a":  ExitUsage,
		"audit --policy p.yaml --help":      ExitUsage,
		"promote --policy p.yaml --help a":  ExitUsage,
		"policy test --policy p.yaml -h":    ExitUsage,
		"verify --policy p.yaml -- --help":  ExitUsage,
		"verify --policy --help":            ExitUsage,
		"--help verify":                     ExitUsage, // of waxseal, beside a word
		"verify registry.example/a --help=": ExitUsage,
	} {
		var out, told bytes.Buffer
		code := Main(t.Context(), strings.Fields(line), Streams{In: strings.NewReader(""), Out: &out, Err: &told, LookupEnv: func(string) (string, bool) { return "", false }})
		if code != want || (out.Len() > 0) != (want == ExitOK) || (told.Len() > 0) == (want == ExitOK) {
			t.Errorf("%s: exit code %d, want %d; printed %q, told %q", line, code, want, out.String(), told.String())
		}
	}
}

// A command that is made alone is the one that stands among all.
func TestCommandAlone(t *testing.T) {
	s := &Streams{LookupEnv: func(string) (string, bool) { return "", false }}
	for _, want := range newRoot(s, "").Commands() {
		if want.Name() == "man" || want.Hidden {
			continue // they need the others, or are no command of a user's
		}
		got := newRoot(s, want.Name()).Commands()
		if len(got) != 1 || got[0].UsageString() != want.UsageString() || got[0].GroupID != want.GroupID {
			t.Errorf("%s alone makes %d commands, or another", want.Name(), len(got))
		}
	}
	if got, all := len(newRoot(s, "seal").Commands()), len(newRoot(s, "").Commands()); got != all {
		t.Errorf("an unknown word has %d of %d commands to be told of", got, all)
	}
}

// The manual says what the help says, and troff takes none of it for a request.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	if err := writeManuals(newRoot(&Streams{LookupEnv: func(string) (string, bool) { return "", false }}, ""), dir); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "waxseal-verify.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		".TH WAXSEAL\\-VERIFY 1\n", "\n.SH SYNOPSIS\n.B waxseal verify [flags] REF|\\-\n", "\n.TP\n\\fB\\-\\-deadline\\fR \\fITIME\\fR\n",
		"\n.SH EXAMPLES\n.nf\n  waxseal verify \\-\\-key waxseal.pub registry.example/app:1.0\n", "\n.BR waxseal (1)\n",
	} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("the page of verify has no %q", want)
		}
	}
	if got, want := roff(".so\n'x a-b\\"), "\\&.so\n\\&'x a\\-b\\e"; got != want {
		t.Errorf("roff gives %q, want %q", got, want)
	}
}

// A shell is told what a flag can be.
func TestValuesComplete(t *testing.T) {
	for flag, want := range map[string]string{
		"inputs": "record\tlet everything through and write the lock\nlocked\t", "allow": "network.host\nsecurity.insecure\n:4",
		"progress": "\nrawjson\n:4", "engine": "embedded\nbuildkit:\n:4", "sbom": "spdx\ncyclonedx\nnone\n:4", "store": ":16",
	} {
		var out bytes.Buffer
		root := newRoot(&Streams{Out: &out, Err: &bytes.Buffer{}, LookupEnv: func(string) (string, bool) { return "", false }}, "")
		root.SetArgs([]string{cobra.ShellCompRequestCmd, "build", "--" + flag, ""})
		if err := root.Execute(); err != nil || !strings.Contains(out.String(), want) {
			t.Errorf("--%s completes to %q, %v", flag, out.String(), err)
		}
	}
}

// An error after an interrupt is told, and ends with the code of an interrupt:
// callers may take 1 for something that was found out.
func TestInterruptedWithAnotherError(t *testing.T) {
	var out, told bytes.Buffer
	streams := Streams{In: strings.NewReader(""), Out: &out, Err: &told, LookupEnv: func(string) (string, bool) { return "", false }}
	line := []string{"key", "show", filepath.Join(t.TempDir(), "none.pub")}
	if code := Main(t.Context(), line, streams); code != ExitFailed {
		t.Fatalf("%d, want %d: %s", code, ExitFailed, told.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	told.Reset()
	if code := Main(ctx, line, streams); code != 130 || !strings.Contains(told.String(), "none.pub") {
		t.Errorf("%d, %s", code, told.String())
	}
}
