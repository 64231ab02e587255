package gate

import (
	"context"
	"fmt"
	"slices"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Reviewable is what a review of an image is about, as the evidence that a
// policy believes has it.
type Reviewable struct {
	Digest attest.Digest
	// Subjects are the image, and every platform of an index.
	Subjects []attest.Digest
	verify.Revision

	check *check
}

// Reviewable finds the one revision that the provenance of an image and of its
// platforms names. The request needs a policy: it says whose provenance counts,
// and who reviews.
func (g Gate) Reviewable(ctx context.Context, req Request) (*Reviewable, error) {
	if req.Policy == nil {
		return nil, usagef("a policy says whose reviews count: give --policy FILE")
	}
	c, all, err := g.inspect(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &Reviewable{Digest: all[0].digest, check: c}
	for _, f := range all {
		r.Subjects = append(r.Subjects, f.digest)
		f.findRevisions()
		for _, v := range f.revisions {
			switch {
			case v.Dirty:
				return nil, fmt.Errorf("%s was built from a tree that was not exactly a commit's, so no review of a commit holds of it", subjectName(f))
			case v.Commit == "" || v.Repository == "":
				return nil, fmt.Errorf("the provenance of %s does not say which commit of which repository it was built from", subjectName(f))
			case r.Commit == "":
				r.Revision = v.Revision
			case !v.is(r.Revision):
				return nil, fmt.Errorf("the provenance of %s names the commit %s of %q, and other provenance %s of %q", subjectName(f), v.Commit, v.Repository, r.Commit, r.Repository)
			}
		}
	}
	if r.Commit == "" {
		return nil, fmt.Errorf("no commit to review is known: %s", all[0].whyNoRevision())
	}
	return r, nil
}

// whyNoRevision says what there is instead of provenance that names a revision.
func (f *found) whyNoRevision() string {
	for _, c := range f.candidates {
		if len(c.Problems) > 0 {
			return c.Problems[0].Message
		}
	}
	if len(f.candidates) > 0 {
		return "the provenance names no source repository and commit"
	}
	return f.why()
}

// Weigh says which reviewer of the policy signed a review of the image, by the
// very checks that Judge makes. The error says why it would not count.
func (r *Reviewable) Weigh(b *attest.Bundle) (verify.Reviewer, error) {
	ok, err := r.check.checker.Check(b, r.Digest)
	if err != nil {
		return verify.Reviewer{}, err
	}
	v := &revised{Revision: r.Revision}
	if e := v.hear(Evidence{Bundle: ok.Bundle()}, r.check, ok.Statement(), ok.Signer()); !e.Accepted {
		return verify.Reviewer{}, &verify.Rejection{Code: e.Code, Message: e.Message}
	}
	i := slices.IndexFunc(v.reviews, func(o verify.SourceReview) bool { return o.Bundle == ok.Bundle() })
	if i < 0 {
		return verify.Reviewer{}, &verify.Rejection{Code: verify.CodePredicate, Message: "it is not a review"}
	}
	in := verify.SourceEvidence{Revision: r.Revision, Reviews: v.reviews, MaxAge: r.check.rule.ReviewAge(), At: r.check.at}
	if doubt := in.Doubt(v.reviews[i]); doubt != "" {
		return v.reviews[i].Reviewer, &verify.Rejection{Code: CodeRole, Message: doubt}
	}
	return v.reviews[i].Reviewer, nil
}
