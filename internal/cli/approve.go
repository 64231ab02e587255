package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// approveFlags are what `waxseal approve` takes.
type approveFlags struct {
	judge    judgeFlags
	as       string
	sign     signFlags
	request  bool
	reject   bool
	since    string
	base     string
	checkout string
	authors  []string
	comment  string
	link     string
	output   string
}

func newApproveCmd(s *Streams) *cobra.Command {
	var flags approveFlags
	cmd := &cobra.Command{
		Use:   "approve [flags] --policy FILE REF",
		Short: "Sign that you reviewed what an image was built from",
		Long: `approve signs a review of the commit that an image's provenance names, made for
this image and its platforms, and attaches it. Two different people of the
policy's trust.reviewers, neither of them an author of the commit nor the
builder, within the policy's source.reviewMaxAge: that earns
SLSA_SOURCE_TWO_PARTY_REVIEWED. What would not count is not attached.

--request signs nothing: it prints what the reviewer is asked to look at, which
is the commits and the inputs that are new since the release before (--since),
and the verdict as it is.

Who wrote the commits is asked of the git work tree in --checkout, from the
commit of --since or --base on, else of the whole history; or say it with
--author. A review counts only where the authors are known.

A later review by the same person replaces the earlier: --reject withdraws an
approval, and nothing passes while one reviewer rejects.`,
		Example: `  waxseal approve --request --policy policy.yaml \
    --since registry.example/app:1.0 registry.example/app:1.1
  waxseal approve --policy policy.yaml --as Ann --key ann.key \
    --since registry.example/app:1.0 registry.example/app:1.1
  waxseal approve --policy policy.yaml --as Ann --key ann.key --reject \
    --comment "leaks a token" registry.example/app:1.1
  waxseal approve --policy policy.yaml --as Ann --keyless registry.example/app:1.1`,
		Args: cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	fl.StringVar(&flags.judge.policy, "policy", "", "policy `FILE`: whose provenance counts, and who reviews")
	fl.StringArrayVar(&flags.judge.policyKeys, "policy-key", nil, "public `KEY` that must have signed the policy; repeatable, one of them is enough")
	flags.judge.anchorFlags.register(cmd.Flags())
	completePublic(cmd)
	fl.StringArrayVar(&flags.judge.evidence, "evidence", nil, "look for evidence in `PATH` too, as verify does; repeatable")
	fl.BoolVar(&flags.judge.insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	fl.StringVar(&flags.as, "as", "", "sign as the reviewer of this `NAME` in the policy; the key or the identity must be theirs")
	flags.sign.register(fl, "key", "private `KEY` to sign with"+keyForms)
	fl.BoolVar(&flags.request, "request", false, "print what there is to review, and sign nothing")
	fl.BoolVar(&flags.reject, "reject", false, "sign that you reject it, or no longer approve it")
	fl.StringVar(&flags.since, "since", "", "`REF` of the release before, that was accepted: what is new since then is reviewed")
	fl.StringVar(&flags.base, "base", "", "commit `HEX` that was accepted before, in place of --since")
	fl.StringVar(&flags.checkout, "checkout", "", "git work tree `DIR` with the commits (default: the current folder, unless --author is given)")
	fl.StringArrayVar(&flags.authors, "author", nil, "`NAME` or mail address of somebody who wrote what is reviewed; repeatable")
	fl.StringVar(&flags.comment, "comment", "", "`TEXT` for people")
	fl.StringVar(&flags.link, "link", "", "`URL` of the discussion")
	_ = cmd.MarkFlagRequired("policy") // fails for flags that do not exist
	_ = cmd.RegisterFlagCompletionFunc("as", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		raw, err := readSmall(flags.judge.policy, attest.MaxPolicy)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		reviewers, _ := policy.Names(raw)
		return reviewers, cobra.ShellCompDirectiveNoFileComp
	})
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		flags.output = *output
		if err := flags.check(); err != nil {
			return err
		}
		if flags.request {
			return requestReview(cmd.Context(), s, &flags, args[0])
		}
		if err := flags.sign.hold(s); err != nil {
			return err
		}
		return approve(cmd.Context(), s, &flags, args[0])
	}
	return cmd
}

func (f *approveFlags) check() error {
	if err := checkOutput(f.output); err != nil {
		return err
	}
	switch {
	case f.since != "" && f.base != "":
		return usagef("--since and --base both say what was accepted before: give one")
	case f.base != "" && !attest.IsCommit(f.base):
		return usagef("--base %q: give the whole id of a git commit, in lower-case hex", f.base)
	case f.request && (f.sign.wanted() || f.as != "" || f.reject || f.comment != "" || f.link != ""):
		return usagef("--request signs nothing: it takes no --as, --key, --keyless, --reject, --comment or --link")
	case !f.request && (!f.sign.wanted() || f.as == ""):
		return usagef("give --as NAME and --key FILE or --keyless, or --request to see what there is to review")
	case slices.Contains(f.authors, ""):
		return usagef("--author is empty")
	}
	return f.sign.check(f.judge.anchorFlags)
}

// reviewed is what a review is made of.
type reviewed struct {
	of      *gate.Reviewable
	req     gate.Request
	since   *gate.Reviewable // nil: no release before
	before  gate.Request     // of since
	base    string           // commit; "": all of the tree
	history *build.History   // nil: not asked, or noHistory says why not
	missing error
}

// look finds what there is to review.
func (f *approveFlags) look(ctx context.Context, s *Streams, ref string) (*reviewed, error) {
	r := &reviewed{base: f.base}
	var err error
	if r.req, err = f.judge.request(ctx, s, ref); err != nil {
		return nil, err
	}
	if r.of, err = (gate.Gate{}).Reviewable(ctx, r.req); err != nil {
		return nil, gateError(err)
	}
	if f.since != "" {
		if r.before, err = f.judge.request(ctx, s, f.since); err != nil {
			return nil, err
		}
		if r.since, err = (gate.Gate{}).Reviewable(ctx, r.before); err != nil {
			return nil, gateError(err)
		}
		if !verify.SameRepository(r.since.Repository, r.of.Repository) {
			return nil, usagef("--since %q was built from %q, and this image from %q", f.since, r.since.Repository, r.of.Repository)
		}
		r.base = r.since.Commit
	}
	if f.checkout != "" || len(f.authors) == 0 {
		r.history, r.missing = build.ReadHistory(ctx, cmp.Or(f.checkout, "."), r.base, r.of.Commit)
	}
	return r, nil
}

// writers are the authors of what is reviewed.
func (f *approveFlags) writers(r *reviewed) ([]string, error) {
	out := slices.Clone(f.authors)
	if r.missing != nil {
		return nil, hinted{r.missing, "a review counts only where the authors are known: give a git work tree that has the commits with --checkout, or the authors with --author"}
	}
	if r.history != nil {
		out = append(out, r.history.Authors...)
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) == 0 {
		return nil, hinted{errors.New("nothing was committed since then, so there is no author"), "leave out --since and --base to review all of the tree, or give --author"}
	}
	return out, nil
}

// approval is what `waxseal approve` made; its JSON is the command's output.
type approval struct {
	Image      string        `json:"image"`
	Subject    attest.Digest `json:"subject"`
	Repository string        `json:"repository"`
	Commit     string        `json:"commit"`
	Base       string        `json:"base,omitempty"`
	Decision   string        `json:"decision"`
	Reviewer   string        `json:"reviewer"`
	Authors    []string      `json:"authors"`
	Bundle     attest.Digest `json:"bundle"`
	Attached   string        `json:"attached"` // digest of the referrer
	Reviewed   bool          `json:"reviewed"` // two people have approved it, with this
	Reason     string        `json:"reason"`
}

func approve(ctx context.Context, s *Streams, f *approveFlags, ref string) error {
	r, err := f.look(ctx, s, ref)
	if err != nil {
		return err
	}
	authors, err := f.writers(r)
	if err != nil {
		return err
	}
	place, desc, err := r.place(ctx)
	if err != nil {
		return err
	}
	review := attestations.Review{
		Repository: r.of.Repository, Commit: r.of.Commit, Base: r.base, Authors: authors,
		Decision: attestations.ReviewApproved, ReviewedOn: time.Now().UTC().Truncate(time.Millisecond),
		Comment: f.comment, Link: f.link,
	}
	if f.reject {
		review.Decision = attestations.ReviewRejected
	}
	bundle, who, err := f.seal(ctx, s, r, review)
	if err != nil {
		return err
	}
	referrer, err := store.Attach(ctx, place, desc, bundle)
	if err != nil {
		return err
	}
	out := &approval{
		Image: ref, Subject: r.of.Digest, Repository: review.Repository, Commit: review.Commit, Base: review.Base,
		Decision: review.Decision, Reviewer: who, Authors: authors, Bundle: bundle.Digest(), Attached: referrer.Digest.String(),
	}
	// What was read of the place before is from before the review was there.
	req, err := f.judge.request(ctx, s, ref)
	if err != nil {
		return err
	}
	_, row, err := twoParty(ctx, req)
	if err != nil {
		return err
	}
	out.Reviewed, out.Reason = row.Status == verify.Met, row.Reason
	if f.output == "json" {
		return printJSON(s, out)
	}
	_, err = fmt.Fprintf(s.Out, "%-9s %s\ncommit    %s of %s\nas        %s\nattached  %s\ntwo-party %s: %s\n",
		out.Decision, out.Subject, out.Commit, out.Repository, out.Reviewer, out.Attached, row.Status, printable(row.Reason))
	return err
}

// place opens the image's place for writing, and makes sure that it is still
// the image that was looked at.
func (r *reviewed) place(ctx context.Context) (store.Writable, store.Descriptor, error) {
	ref, err := store.Parse(r.req.Reference)
	if err != nil {
		return nil, store.Descriptor{}, exitError{ExitUsage, err}
	}
	place, err := store.OpenWritable(ctx, ref, store.Options{Insecure: r.req.Store.Insecure, Images: r.req.Store.Images})
	if err != nil {
		return nil, store.Descriptor{}, err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return nil, store.Descriptor{}, err
	}
	if desc.Digest.String() != string(r.of.Digest) {
		return nil, desc, fmt.Errorf("%s is %s now, and was %s a moment ago: review it again", ref, desc.Digest, r.of.Digest)
	}
	return place, desc, nil
}

// seal signs the review, and returns nothing that a verdict would not count.
func (f *approveFlags) seal(ctx context.Context, s *Streams, r *reviewed, review attestations.Review) (*attest.Bundle, string, error) {
	var subjects []attest.Subject
	for _, d := range r.of.Subjects {
		subjects = append(subjects, attest.Subject{Digest: map[string]string{"sha256": d.Hex()}})
	}
	st, err := attest.NewStatement(attestations.ReviewV1, subjects, review)
	if err != nil {
		return nil, "", err
	}
	signer, err := f.sign.open(ctx, s, f.judge.anchorFlags)
	if err != nil {
		return nil, "", err
	}
	defer signer.Close()
	bundle, err := signer.Sign(ctx, st)
	if err != nil {
		return nil, "", err
	}
	who, err := r.of.Weigh(bundle)
	switch {
	case who.Name != "" && !called(who, f.as):
		return nil, "", hinted{fmt.Errorf("reviewing as %q: the policy knows the holder of %q as %q", f.as, cmp.Or(keys.Name(f.sign.key), "the identity token"), who.Name), "nothing was attached"}
	case err != nil:
		return nil, "", hinted{fmt.Errorf("this review by %q would not count: %w", f.as, err), "nothing was attached; trust.reviewers of the policy says who reviews, and with which key or identity"}
	}
	return bundle, who.Name, nil
}

// called reports whether the reviewer has the name.
func called(r verify.Reviewer, name string) bool {
	return slices.ContainsFunc(append([]string{r.Name}, r.Aliases...), func(n string) bool { return strings.EqualFold(n, name) })
}

// twoParty is the verdict with its row about the review by two people.
func twoParty(ctx context.Context, req gate.Request) (*gate.Verdict, verify.Row, error) {
	// The row is worked out only where it is asked for; the decision that is
	// shown is the policy's own.
	asked := req
	asked.Level = &verify.Demand{Properties: []string{verify.PropertyTwoParty}}
	v, err := gate.Gate{}.Judge(ctx, asked)
	if err != nil {
		return nil, verify.Row{}, gateError(err)
	}
	row := verify.Row{ID: verify.RowTwoParty, Status: verify.Unknown, Reason: "the verdict does not tell"}
	if len(v.Reasons) > 0 && v.Decision == gate.Undecided {
		row.Reason = v.Reasons[0].Message
	}
	for _, q := range v.Requirements {
		if q.ID == row.ID {
			row = q
		}
	}
	v, err = gate.Gate{}.Judge(ctx, req)
	if err != nil {
		return nil, row, gateError(err)
	}
	return v, row, nil
}

// reviewRequest is what a reviewer is asked to look at; its JSON is the output
// of --request.
type reviewRequest struct {
	Image      string         `json:"image"`
	Digest     attest.Digest  `json:"digest"`
	Repository string         `json:"repository"`
	Commit     string         `json:"commit"`
	Since      string         `json:"since,omitempty"`
	Base       string         `json:"base,omitempty"`
	History    *build.History `json:"history,omitempty"`
	NoHistory  string         `json:"noHistory,omitempty"` // why there is none
	Inputs     []lock.Change  `json:"inputs"`              // since the release before
	NoInputs   string         `json:"noInputs,omitempty"`  // why they are not compared
	TwoParty   string         `json:"twoParty"`            // "met", "not met", "cannot be told"
	Reviews    string         `json:"reviews"`             // and why
	Decision   gate.Decision  `json:"decision"`            // the verdict as it is
	Reasons    []gate.Reason  `json:"reasons"`
}

func requestReview(ctx context.Context, s *Streams, f *approveFlags, ref string) error {
	r, err := f.look(ctx, s, ref)
	if err != nil {
		return err
	}
	out := &reviewRequest{
		Image: ref, Digest: r.of.Digest, Repository: r.of.Repository, Commit: r.of.Commit,
		Since: f.since, Base: r.base, History: r.history, Inputs: []lock.Change{},
	}
	if r.missing != nil {
		out.NoHistory = r.missing.Error()
	}
	if out.Inputs, out.NoInputs, err = r.inputs(ctx); err != nil {
		return err
	}
	v, row, err := twoParty(ctx, r.req)
	if err != nil {
		return err
	}
	out.Decision, out.Reasons = v.Decision, v.Reasons
	out.TwoParty, out.Reviews = string(row.Status), row.Reason
	if f.output == "json" {
		return printJSON(s, out)
	}
	return out.print(s)
}

// inputs says what the image takes in that the release before did not.
func (r *reviewed) inputs(ctx context.Context) ([]lock.Change, string, error) {
	if r.since == nil {
		return []lock.Change{}, "no release before to compare with: give --since REF", nil
	}
	var files []*lock.File
	for _, req := range []gate.Request{r.before, r.req} {
		f, err := inputsOf(ctx, req)
		if err != nil {
			return nil, "", err
		}
		if f == nil {
			return []lock.Change{}, req.Reference + " has no record of inputs that counts", nil
		}
		files = append(files, f)
	}
	changes := lock.Diff(files[0], files[1])
	if changes == nil {
		changes = []lock.Change{}
	}
	return changes, "", nil
}

// inputsOf makes a lock of the records of inputs that are believed; nil: there
// is none.
func inputsOf(ctx context.Context, req gate.Request) (*lock.File, error) {
	found, err := gate.Gate{}.Statements(ctx, req, false, attestations.InputsV1)
	if err != nil {
		return nil, gateError(err)
	}
	var records []*attestations.Inputs
	for _, b := range found.Believed {
		in := new(attestations.Inputs)
		if err := attest.UnmarshalStrict(b.Statement.Predicate, in); err != nil {
			return nil, fmt.Errorf("reading the inputs of %q: %w", req.Reference, err)
		}
		if err := attest.CheckInputs(in); err != nil {
			return nil, fmt.Errorf("reading the inputs of %q: %w", req.Reference, err)
		}
		records = append(records, in)
	}
	if len(records) == 0 {
		return nil, nil
	}
	f, err := lock.FromInputs(nil, records...)
	if err != nil {
		return nil, fmt.Errorf("reading the inputs of %q: %w", req.Reference, err)
	}
	return f, nil
}

// oneLine makes what others wrote safe for a terminal and a line.
func oneLine(s string) string {
	if s = printable(s); len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// printable is oneLine for what is read to its end.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

func (r *reviewRequest) print(s *Streams) error {
	var b strings.Builder
	fmt.Fprintf(&b, "image     %s\ndigest    %s\nsource    %s\n", r.Image, r.Digest, oneLine(r.Repository))
	if r.Base != "" {
		fmt.Fprintf(&b, "range     %s..%s\n", r.Base, r.Commit)
	} else {
		fmt.Fprintf(&b, "commit    %s, all of the tree: no release before was given (--since)\n", r.Commit)
	}
	if h := r.History; h != nil {
		fmt.Fprintf(&b, "commits   %s, %s by %s\n", countOf(len(h.Commits)+h.More, "commit"), countOf(h.Files, "file"), oneLine(strings.Join(h.Authors, ", ")))
		for i, c := range h.Commits {
			if i == maxShown {
				break
			}
			fmt.Fprintf(&b, "  %s %s (%s)\n", c.ID[:12], oneLine(c.Subject), oneLine(c.Author))
		}
		if n := len(h.Commits) + h.More - maxShown; n > 0 {
			fmt.Fprintf(&b, "  and %d more\n", n)
		}
	} else {
		fmt.Fprintf(&b, "commits   not known: %s\n", cmp.Or(oneLine(r.NoHistory), "no git work tree was asked (--checkout)"))
	}
	switch {
	case r.NoInputs != "":
		fmt.Fprintf(&b, "inputs    not compared: %s\n", r.NoInputs)
	case len(r.Inputs) == 0:
		b.WriteString("inputs    the same as before\n")
	default:
		fmt.Fprintf(&b, "inputs    %s\n", countOf(len(r.Inputs), "change"))
		for i, c := range r.Inputs {
			if i == maxShown {
				fmt.Fprintf(&b, "  and %d more\n", len(r.Inputs)-i)
				break
			}
			fmt.Fprintf(&b, "  %s\n", oneLine(c.Text))
		}
	}
	fmt.Fprintf(&b, "verdict   %s\n", r.Decision)
	for _, why := range r.Reasons {
		fmt.Fprintf(&b, "  %s\n", printable(why.Message))
	}
	fmt.Fprintf(&b, "two-party %s: %s\n", r.TwoParty, printable(r.Reviews))
	_, err := io.WriteString(s.Out, report.Tame(b.String()))
	return err
}
