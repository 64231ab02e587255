package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// auditFlags are what `waxseal audit` takes beside the judge's flags.
type auditFlags struct {
	judge    judgeFlags
	output   string
	resume   string
	deadline time.Duration
	jobs     int
}

func newAuditCmd(s *Streams) *cobra.Command {
	var flags auditFlags
	cmd := &cobra.Command{
		Use:   "audit [flags] REGISTRY[/PREFIX]",
		Short: "Judge every image of a registry, a line each",
		Long: `audit walks the repositories of a registry at or below PREFIX, and judges every
tag as verify does. Each image has one line as soon as it is decided, in any
order; the last line counts them. A registry that does not list its repositories
is asked for the tags of the one named PREFIX. Images without a tag are not
listed by registries, and not seen; nor are those under a tag that evidence has:
sha256-DIGEST, alone or with .att, .sig or .sbom behind it.

With --resume, what was answered is kept in FILE, and the same command goes on
from there after it was broken off, however. What could not be decided is asked
again, and so is what was answered more than 12 hours before. Once everything was
decided, the same command begins anew.

Exit codes: 0 all passed, 3 at least one denied, 4 at least one undecided and
none denied, or the walk broke off, 64 wrong usage.`,
		Example: `  waxseal audit --policy policy.yaml registry.example/prod
  waxseal audit --policy policy.yaml --resume audit.journal registry.example > audit.jsonl`,
		Args: cobra.ExactArgs(1),
	}
	flags.judge.register(cmd, true)
	fl := cmd.Flags()
	fl.StringVar(&flags.output, "output", "", "`FORMAT` of the answers: text or json (default: text on a terminal, else json)")
	completeValues(cmd, map[string][]string{"output": {"text", "json"}})
	fl.StringVar(&flags.resume, "resume", "", "journal `FILE` of what was answered: made where there is none, else gone on from")
	fl.DurationVar(&flags.deadline, "deadline", 2*time.Minute, "give up on an image after `TIME`, as 30s, and say undecided")
	fl.IntVar(&flags.jobs, "jobs", 8, "judge `N` images at the same time")
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return flags.audit(cmd.Context(), s, args[0]) }
	return cmd
}

func (f *auditFlags) audit(ctx context.Context, s *Streams, place string) error {
	if f.output == "" {
		f.output = "json"
		if out, ok := s.Out.(*os.File); ok && term.IsTerminal(int(out.Fd())) {
			f.output = "text"
		}
	}
	if err := checkOutput(f.output); err != nil {
		return err
	}
	req, err := f.judge.request(ctx, s, "registry.invalid/any")
	if err != nil {
		return err
	}
	req.Store.Cache, req.Store.Since = new(store.Cache), time.Now()
	b, err := newBatch(req, f.jobs, f.deadline)
	if err != nil {
		return err
	}
	j := &journal{}
	if f.resume != "" {
		if j, err = openJournal(f.resume, auditOf(place, req), time.Now()); err != nil {
			return err
		}
		defer j.close()
	}
	p := newPrinter(s, f.output == "text", true)
	b.remember(j, p)
	var usage *store.ReferenceError
	var wrong error
	found := false
	err = b.run(ctx, func(ctx context.Context, yield func(question) bool) error {
		for ref, err := range store.Walk(ctx, place, req.Store) {
			if errors.As(err, &usage) {
				wrong = err
			}
			if err != nil && ref.Place == "" {
				return err
			}
			found = true
			q := question{image: ref.String(), err: err, code: gate.CodeUnavailable}
			if err == nil && j.has(q) {
				continue
			}
			if !yield(q) {
				return nil
			}
		}
		return nil
	})
	switch {
	case wrong != nil:
		return exitError{ExitUsage, wrong}
	case err == nil && !found:
		return exitError{ExitUndecided, fmt.Errorf("there is no image below %q", place)}
	}
	return err
}

// auditOf tells one audit from another by all that its verdicts depend on beside
// the images: the place, what is asked, the policy with the files that it names,
// and the trust.
func auditOf(place string, req gate.Request) attest.Digest {
	lines := []string{
		"place " + strings.TrimSuffix(place, "/"),
		fmt.Sprintf("dependencies %d %q", req.Dependencies, req.DependencyRegistries),
		fmt.Sprintf("evidence %q", req.Store.Evidence),
	}
	if req.Level != nil {
		lines = append(lines, "level "+req.Level.String())
	}
	if !req.At.IsZero() {
		lines = append(lines, "at "+req.At.UTC().Format(time.RFC3339Nano))
	}
	if req.Store.Insecure {
		lines = append(lines, "insecure")
	}
	trust := verify.Trust{Keys: req.Keys, Identities: req.Identities, Roots: req.Roots, CAs: req.CAs}.Lines()
	if req.Policy != nil {
		lines = append(lines, "policy "+string(req.Policy.Digest()))
		for _, l := range req.Policy.Trust().Lines() {
			trust = append(trust, "policy's "+l)
		}
	}
	slices.Sort(trust)
	return attest.DigestOf([]byte(strings.Join(append(lines, trust...), "\n")))
}
