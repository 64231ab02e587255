package gate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// CodeRef is of evidence about a revision on another branch or tag than the
// policy expects.
const CodeRef verify.Code = "ref"

// maxRevisions bounds the different commits that one image's provenance is
// believed to name: each is asked about.
const maxRevisions = 16

// commitEvidence is a place, or what is given beside it, that knows what is
// said about git commits.
type commitEvidence interface {
	CommitEvidence(ctx context.Context, commit string) ([]store.Piece, error)
}

// pending is evidence about a revision: it can be judged once the provenance
// has said which revision the image is of.
type pending struct {
	at     int // in found.evidence
	bundle *attest.Bundle
}

// revised is what counts about one revision.
type revised struct {
	verify.Revision
	summaries []verify.SourceSummary
	said      results
	records   []verify.SourceRecord
	reviews   []verify.SourceReview
}

func (r *revised) is(o verify.Revision) bool {
	return r.Commit == o.Commit && verify.SameRepository(r.Repository, o.Repository)
}

// asksSource reports whether something that is declared or expected rests on
// evidence about the source.
func (c *check) asksSource() bool {
	return c.Policy != nil && (c.declared.Source > 0 || slices.Contains(c.declared.Properties, verify.PropertyTwoParty) || len(c.rule.Approvals()) > 0 || !c.rule.OnRef(nil))
}

// aboutSource reports whether a statement is evidence about a source revision:
// what speaks of a commit, or a review, which names one whatever its subject.
func aboutSource(st *attest.Statement, digest attest.Digest) bool {
	switch {
	case st.PredicateType == attestations.ReviewV1:
		return true
	case verify.IsVSA(st.PredicateType), verify.IsSourceProvenance(st.PredicateType):
		return !st.Binds(digest) && slices.ContainsFunc(st.Subject, func(s attest.Subject) bool { return s.Commit() != "" })
	}
	return false
}

// sources reads what is said of the revisions that accepted provenance names,
// and judges it. What is attached to an index counts for its platforms.
func (g Gate) sources(ctx context.Context, place store.Repo, c *check, l look, all []*found) error {
	if !l.source {
		return nil
	}
	lister, _ := place.(commitEvidence)
	asked := map[string][]store.Piece{}
	seen := commitChecks{}
	for _, f := range all {
		f.findRevisions()
		if f == all[0] {
			continue
		}
		for _, p := range all[0].pending {
			if r, _ := f.revision(p.bundle.Statement()); r != nil {
				f.lend(all[0].evidence[p.at], p.bundle)
			}
		}
	}
	for _, f := range all {
		for _, r := range f.revisions {
			if lister == nil || r.Commit == "" || r.Dirty {
				continue
			}
			pieces, ok := asked[r.Commit]
			if !ok {
				if len(asked) == maxRevisions {
					return fmt.Errorf("the provenance of the image names more than %d commits", maxRevisions)
				}
				var err error
				if pieces, err = lister.CommitEvidence(ctx, r.Commit); err != nil {
					return err
				}
				asked[r.Commit] = pieces
			}
			stapled := stapledIn(pieces)
			for _, p := range pieces {
				if f.has(p.Digest) {
					continue
				}
				f.evidence = append(f.evidence, f.read(&p, stapled, c, l))
			}
		}
		for _, p := range f.pending {
			f.evidence[p.at] = f.judgeRevision(f.evidence[p.at], c, p.bundle, seen)
		}
	}
	return nil
}

// commitChecks remembers the signatures over statements about commits: many
// platforms are of one.
type commitChecks map[commitCheck]func() (*verify.Accepted, error)

type commitCheck struct {
	bundle attest.Digest
	commit string
}

func (s commitChecks) check(c *check, b *attest.Bundle, commit string) (*verify.Accepted, error) {
	key := commitCheck{b.Digest(), commit}
	if s[key] == nil {
		s[key] = sync.OnceValues(func() (*verify.Accepted, error) { return c.checker.CheckCommit(b, commit) })
	}
	return s[key]()
}

// has reports whether content with that digest was read already. What was not,
// has the digest that whoever attached it wrote down, and keeps nothing out.
func (f *found) has(d attest.Digest) bool {
	return d != "" && slices.ContainsFunc(f.evidence, func(e Evidence) bool {
		return e.Bundle == d && e.Code != CodeSkipped && e.Code != CodeNotNeeded && e.Code != CodeStapled
	})
}

// lend shows evidence of the index with a platform.
func (f *found) lend(e Evidence, b *attest.Bundle) {
	if f.has(e.Bundle) {
		return
	}
	f.pending = append(f.pending, pending{len(f.evidence), b})
	f.evidence = append(f.evidence, e)
}

// findRevisions lists the revisions that the accepted provenance names. What is
// said of the commit of one that is not as expected could help nothing, and some
// builders sign for anybody.
func (f *found) findRevisions() {
	for i := range f.candidates {
		if slices.ContainsFunc(f.candidates[i].Problems, func(p verify.Problem) bool { return !p.Unsaid }) {
			continue
		}
		r, ok := verify.RevisionOf(&f.candidates[i])
		if ok && !slices.ContainsFunc(f.revisions, func(o *revised) bool { return o.is(r) && o.Dirty == r.Dirty }) {
			f.revisions = append(f.revisions, &revised{Revision: r})
		}
	}
}

// judgeRevision judges one bundle about a revision on its own.
func (f *found) judgeRevision(e Evidence, c *check, b *attest.Bundle, seen commitChecks) Evidence {
	st := b.Statement()
	r, why := f.revision(st)
	if r == nil {
		return rejected(e, &verify.Rejection{Code: verify.CodeSubject, Message: why})
	}
	var ok *verify.Accepted
	var err error
	if st.Binds(f.digest) {
		ok, err = c.checker.Check(b, f.digest)
	} else {
		ok, err = seen.check(c, b, r.Commit)
	}
	if err != nil {
		return rejected(e, err)
	}
	// From here on only what was verified is read.
	e.Bundle = ok.Bundle()
	return r.hear(e, c, ok.Statement(), ok.Signer())
}

// revision is the one that a statement is about: by its subject, or for a
// review of the image by what it says.
func (f *found) revision(st *attest.Statement) (*revised, string) {
	commit := ""
	if st.Binds(f.digest) {
		review, err := verify.ParseReview(st)
		if err != nil {
			return nil, err.Error()
		}
		commit = review.Commit
	}
	for _, r := range f.revisions {
		if r.Commit != "" && !r.Dirty && (r.Commit == commit || commit == "" && len(st.Commits(r.Commit)) > 0) {
			return r, ""
		}
	}
	for _, s := range st.Subject {
		commit = cmp.Or(commit, s.Commit())
	}
	for _, r := range f.revisions {
		switch {
		case r.Dirty:
			return nil, "it speaks of a commit, and the built tree was not exactly a commit's"
		case r.Commit != "":
			return nil, fmt.Sprintf("it speaks of the commit %s, and the provenance names %s", commit, r.Commit)
		}
	}
	return nil, "it speaks of a commit, and no provenance that counts names one"
}

// hear weighs a statement about the revision whose signature held.
func (r *revised) hear(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	e.Signer = &signer
	switch {
	case verify.IsVSA(st.PredicateType):
		return r.summary(e, c, st, signer)
	case verify.IsSourceProvenance(st.PredicateType):
		return r.record(e, c, st, signer)
	}
	return r.review(e, c, st, signer)
}

// summary takes a source VSA.
// https://slsa.dev/spec/v1.2/verifying-source#how-to-verify-a-source-revision
func (r *revised) summary(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	v, err := verify.ParseVSA(st)
	if err != nil {
		return rejected(e, err)
	}
	word, err := verify.JudgeVSA(v, signer, c.Policy.Verifiers(), verify.VSAOptions{Repository: r.Repository, At: c.at})
	if err != nil {
		r.said.failed(e.Bundle, v, err)
		return rejected(e, err)
	}
	if refs := verify.SourceRefs(st, r.Commit); !c.rule.OnRef(refs) {
		return rejected(e, offRef(refs))
	}
	e.Accepted = true
	r.said.passed = append(r.said.passed, said{e.Bundle, v})
	r.summaries = append(r.summaries, verify.SourceSummary{Bundle: e.Bundle, Word: *word})
	return e
}

func (r *revised) record(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	p, err := verify.ParseSourceProvenance(st)
	if err != nil {
		return rejected(e, err)
	}
	level, twoParty, why := c.Policy.Sources(signer, r.Repository)
	switch {
	case !verify.SameRepository(p.Repository, r.Repository):
		return rejected(e, &verify.Rejection{Code: verify.CodeResource, Message: fmt.Sprintf("it is of the repository %q, and the image was built from %q", p.Repository, r.Repository)})
	case level < 1:
		return rejected(e, &verify.Rejection{Code: CodeRole, Message: why})
	case !c.rule.OnRef([]string{p.Ref}):
		return rejected(e, offRef([]string{p.Ref}))
	}
	e.Accepted = true
	r.records = append(r.records, verify.SourceRecord{Bundle: e.Bundle, Provenance: p, MaxLevel: level, TwoParty: twoParty})
	return e
}

func (r *revised) review(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	v, err := verify.ParseReview(st)
	if err != nil {
		return rejected(e, err)
	}
	reviewer, ok := c.Policy.Reviewer(signer, r.Builder)
	switch {
	case !ok:
		return rejected(e, &verify.Rejection{Code: CodeRole, Message: fmt.Sprintf("%s is nobody whose reviews the policy trusts", signer)})
	case v.Commit != r.Commit:
		return rejected(e, &verify.Rejection{Code: verify.CodeSubject, Message: fmt.Sprintf("it reviews the commit %s, and the provenance names %s", v.Commit, r.Commit)})
	case !verify.SameRepository(v.Repository, r.Repository):
		return rejected(e, &verify.Rejection{Code: verify.CodeResource, Message: fmt.Sprintf("it reviews the repository %q, and the image was built from %q", v.Repository, r.Repository)})
	}
	e.Accepted = true
	r.reviews = append(r.reviews, verify.SourceReview{Bundle: e.Bundle, Signer: signer, Reviewer: reviewer, Review: v})
	return e
}

func offRef(refs []string) error {
	if len(refs) == 0 {
		return &verify.Rejection{Code: CodeRef, Message: "it does not say which branch or tag the revision was on, and the policy expects one"}
	}
	return &verify.Rejection{Code: CodeRef, Message: fmt.Sprintf("the revision was on %q, and not where the policy expects it", refs)}
}

// assessSources gives each candidate what is known of its source.
func (c *check) assessSources(f *found) {
	if !c.asksSource() {
		return
	}
	for i := range f.candidates {
		rev, ok := verify.RevisionOf(&f.candidates[i])
		if !ok {
			continue
		}
		in := verify.SourceEvidence{Revision: rev, MaxAge: c.rule.ReviewAge(), At: c.at, Why: f.whySource(rev.Commit)}
		for _, r := range f.revisions {
			if r.is(rev) && !rev.Dirty {
				in.Summaries, in.Records, in.Reviews = r.summaries, r.records, slices.Clone(r.reviews)
				for j := range in.Reviews {
					// Several may have built the revision, each of them with another key.
					in.Reviews[j].Reviewer, _ = c.Policy.Reviewer(in.Reviews[j].Signer, rev.Builder)
				}
			}
		}
		f.candidates[i].Source = verify.AssessSource(in)
		// What counts was on the branch or tag that is expected, or would not.
		if len(in.Records) > 0 || slices.ContainsFunc(in.Summaries, func(s verify.SourceSummary) bool { return s.Word.Source > 0 }) {
			f.candidates[i].Problems = slices.DeleteFunc(slices.Clone(f.candidates[i].Problems), func(p verify.Problem) bool { return p.Unsaid })
		}
	}
}

// approved says which approvals that the policy asks for are missing, and
// returns the bundles of those that are there. An index is approved with each of
// its platforms.
func (c *check) approved(f *found, chosen *verify.Candidate, s *Subject) []attest.Digest {
	if f.index {
		return nil
	}
	var out []attest.Digest
	for _, ask := range c.rule.Approvals() {
		var names []string
		why := "nothing that counts says which commit it was built from"
		if chosen != nil && chosen.Source != nil {
			why = cmp.Or(chosen.Source.Why, "there is no other review by somebody trusted")
			for _, a := range chosen.Source.Approvals {
				if ask.Counts(a.Name) {
					names, out = append(names, a.Name), append(out, a.Evidence.Bundle)
				}
			}
		}
		if len(names) >= ask.AtLeast {
			continue
		}
		message := fmt.Sprintf("the policy asks for approval by %s, and %d approved it: %s", ask, len(names), why)
		s.reasons = append(s.reasons, Reason{Code: CodeApprovals, Message: message, Hint: "\"waxseal approve --request\" prints what there is to review"})
	}
	return out
}

// whySource says what there is instead of evidence about the source that
// counts.
func (f *found) whySource(commit string) string {
	why := "nothing that counts is said of the commit " + commit
	for _, p := range f.pending {
		if e := f.evidence[p.at]; !e.Accepted {
			return why + ": " + e.Message
		}
	}
	return why
}

// saysSource is a review or source provenance in one line.
func saysSource(st *attest.Statement) string {
	if st.PredicateType == attestations.ReviewV1 {
		r, err := verify.ParseReview(st)
		if err != nil {
			return printable(err.Error())
		}
		return printable(fmt.Sprintf("%s: %s@%s", r.Decision, r.Repository, r.Commit[:12]))
	}
	p, err := verify.ParseSourceProvenance(st)
	if err != nil {
		return printable(err.Error())
	}
	return printable(fmt.Sprintf("%s on %s by %s, %s", p.Repository, p.Ref, cmp.Or(p.Actor, "nobody named"), plural(len(p.Controls), "control", "controls")))
}
