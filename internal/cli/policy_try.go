package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
)

// maxCases bounds how many files one run of policy test reads.
const maxCases = 10_000

func newPolicyTestCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "test [flags] FILE...|DIR",
		Short: "Try a policy on cases, each a file with facts and the decision expected",
		Long: `test reads cases and judges the facts of each by its policy, on the very path
that verify takes. A case is a YAML file:

  apiVersion: waxseal.dev/v1
  kind: PolicyTest
  name: a critical vulnerability denies
  policy: ../policy.yaml          # the files are relative to this one
  image: registry.example/prod/app
  platform: linux/amd64           # optional
  at: 2026-11-22                  # optional: the moment to judge as of
  facts:
    config: {os: linux, config: {User: "1000"}}   # the OCI image configuration
    evidence:
      - type: provenance          # or spdx, cyclonedx, scan, vex, inputs, vsa,
                                  # review, or a URI; of a commit with
                                  # commit: HEX, refs: [refs/heads/main]
        signer: ../ci.pub         # or {kms: REFERENCE}, or {issuer: URL,
                                  # san: NAME}; taken as its signer at that
                                  # moment, nothing is signed
        predicate: {...}          # or file: FILE
  expect:
    decision: deny                # pass, deny or undecided
    level: 2                      # optional: the Build level reached, or
                                  # {build: 2, source: 1}
    properties: []                # optional: those verified, and no others
    reasons: ["CVE-2026-1"]       # each in one "CODE: MESSAGE", and no more
    warnings: ["..."]             # optional, as reasons
    waived: ["..."]

In a predicate $DIGEST stands for the digest of the image, and $INPUTS for that
of the record of inputs, both without "sha256:".

Of a folder, every such file in it and below is taken. "waxseal policy schema
--test" prints the schema of a case.

Exit codes: 0 all cases are as expected, 1 one is not or cannot be read, 64
wrong usage.`,
		Example: `  waxseal policy test policy-tests/
  waxseal policy test --output json cases/root.yaml`,
		Args: cobra.MinimumNArgs(1),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		files, err := caseFiles(args)
		if err != nil {
			return exitError{ExitUsage, err}
		}
		run, opts := tried{Cases: []triedCase{}}, loadOptions(cmd.Context(), s)
		for _, file := range files {
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			t := tryCase(cmd.Context(), file, opts)
			if run.Cases = append(run.Cases, t); t.OK {
				run.Passed++
			} else {
				run.Failed++
			}
			if *output == "text" {
				if err := t.print(s); err != nil {
					return err
				}
			}
		}
		if *output == "json" {
			enc := json.NewEncoder(s.Out)
			enc.SetEscapeHTML(false)
			enc.SetIndent("", "  ")
			err = enc.Encode(run)
		} else {
			_, err = fmt.Fprintf(s.Out, "%d as expected, %d not\n", run.Passed, run.Failed)
		}
		if err == nil && run.Failed > 0 {
			return exitError{code: 1}
		}
		return err
	}
	return cmd
}

// tried is the outcome of policy test; its JSON is the command's output.
type tried struct {
	Passed int         `json:"passed"`
	Failed int         `json:"failed"`
	Cases  []triedCase `json:"cases"`
}

type triedCase struct {
	File     string `json:"file"`
	Name     string `json:"name,omitempty"`
	OK       bool   `json:"ok"`
	Error    string `json:"error,omitempty"` // the case cannot be read
	Decision string `json:"decision,omitempty"`
	// Differences are lines of a diff: "-" was expected, "+" is.
	Differences []string `json:"differences,omitempty"`
}

func tryCase(ctx context.Context, file string, opts policy.LoadOptions) triedCase {
	t := triedCase{File: file}
	c, err := policy.LoadCaseWith(file, opts)
	if err != nil {
		t.Error = err.Error()
		return t
	}
	t.Name = c.Name
	v, err := gate.Gate{}.Try(ctx, c)
	if err != nil {
		t.Error = err.Error()
		return t
	}
	t.Decision = string(v.Decision)
	t.Differences = gate.Differences(c.Expect, v)
	t.OK = len(t.Differences) == 0
	return t
}

func (t triedCase) print(s *Streams) error {
	word, name := "ok  ", ""
	if !t.OK {
		word = "FAIL"
	}
	if t.Name != "" {
		name = ": " + t.Name
	}
	if _, err := fmt.Fprintf(s.Out, "%s  %s%s\n", word, t.File, name); err != nil {
		return err
	}
	lines := t.Differences
	if t.Error != "" {
		lines = []string{t.Error}
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(s.Out, "      %s\n", l); err != nil {
			return err
		}
	}
	return nil
}

// caseFiles lists the files that are named, and the cases in folders.
func caseFiles(args []string) ([]string, error) {
	var out []string
	for _, arg := range args {
		info, err := os.Stat(arg)
		if err != nil {
			return nil, fmt.Errorf("reading cases: %w", err)
		}
		if !info.IsDir() {
			out = append(out, arg)
			continue
		}
		err = filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || !slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(path)) {
				return err
			}
			if len(out) == maxCases {
				return fmt.Errorf("more than %d files", maxCases)
			}
			raw, err := readSmall(path, attest.MaxPolicy)
			if err == nil && policy.IsCase(raw) {
				out = append(out, path)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading cases in %q: %w", arg, err)
		}
	}
	if len(out) == 0 {
		return nil, errors.New(`reading cases: there is none (a case is a YAML file with "kind: PolicyTest")`)
	}
	return out, nil
}

func newPolicyExplainCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain FILE",
		Short: "Say in words what a policy demands",
		Long: `explain reads a policy, with those that it extends, and says in words whom it
trusts and what it demands of which images: what is in effect, what is a warning
until a date, and what is waived.`,
		Example: `  waxseal policy explain policy.yaml
  waxseal policy explain --at 2027-01-01 policy.yaml`,
		Args: cobra.ExactArgs(1),
	}
	at := cmd.Flags().String("at", "", "say it as of `TIME`: 2026-12-01 or 2026-12-01T12:00:00Z (default: now)")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		moment, err := parseMoment("--at", *at)
		if err != nil {
			return err
		}
		if moment.IsZero() {
			moment = time.Now()
		}
		p, err := loadPolicy(cmd.Context(), s, args[0])
		if err != nil {
			return policyError(err)
		}
		if *output == "json" {
			return printJSON(s, struct {
				Digest attest.Digest `json:"digest"`
				At     time.Time     `json:"at"`
				*policy.Explained
			}{p.Digest(), moment.UTC().Truncate(time.Second), p.Explained(moment)})
		}
		_, err = fmt.Fprint(s.Out, p.Explain(moment))
		return err
	}
	return cmd
}

// parseMoment reads the value of a flag; nothing gives the zero time.
func parseMoment(flag, s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && !t.IsZero() {
			return t, nil
		}
	}
	return time.Time{}, usagef("%s %q: give a day as 2026-12-01 or a time as 2026-12-01T12:00:00Z", flag, s)
}
