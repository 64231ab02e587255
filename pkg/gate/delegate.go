package gate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// summarise weighs a verification summary of the image whose signature held. It
// counts where it is what every entry of the policy wants.
func (f *found) summarise(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	v, err := verify.ParseVSA(st)
	if err != nil {
		return rejected(e, err)
	}
	var word *verify.Word
	for _, s := range c.rule.Summary() {
		want := s.Options
		want.Digest, want.At = f.digest, c.at
		if want.URIs = []string{s.ResourceURI}; s.ResourceURI == "" {
			want.URIs, want.Image = c.places()
		}
		w, err := verify.JudgeVSA(v, signer, c.Policy.Verifiers(), want)
		if err != nil {
			f.said.failed(e.Bundle, v, err)
			return rejected(e, err)
		}
		if word == nil {
			word = w
		}
		word.Until = soonest(word.Until, c.at, w.Until)
	}
	e.Accepted = true
	f.said.passed = append(f.said.passed, said{e.Bundle, v})
	if e.Says != "" && len(word.Notes) > 0 {
		e.Says += "; "
	}
	e.Says = printable(e.Says + strings.Join(word.Notes, "; "))
	f.summaries = append(f.summaries, verify.Summary{Bundle: e.Bundle, Word: *word})
	return e
}

// said is a verification summary and the bundle that it came in.
type said struct {
	bundle attest.Digest
	vsa    *verify.VSA
}

// results are the summaries of one image or revision that are what was wanted,
// but for what they say.
type results struct{ passed, takes []said }

// failed keeps a summary that was not taken because it says FAILED.
func (r *results) failed(bundle attest.Digest, v *verify.VSA, why error) {
	if x := (*verify.Rejection)(nil); errors.As(why, &x) && x.Code == verify.CodeFailed {
		r.takes = append(r.takes, said{bundle, v})
	}
}

// since is when the verifier of a summary said FAILED after it, the last time;
// zero where it has not.
func (r *results) since(bundle attest.Digest) time.Time {
	var at time.Time
	for _, p := range r.passed {
		for _, t := range r.takes {
			if p.bundle == bundle && t.vsa.TakesBack(p.vsa) && t.vsa.TimeVerified.After(at) {
				at = t.vsa.TimeVerified
			}
		}
	}
	return at
}

// takeBack drops the summaries whose verifier has said FAILED since.
func (f *found) takeBack() {
	gone := map[attest.Digest]time.Time{}
	drop := func(r *results, bundle attest.Digest) bool {
		at := r.since(bundle)
		if !at.IsZero() {
			gone[bundle] = at
		}
		return !at.IsZero()
	}
	f.summaries = slices.DeleteFunc(f.summaries, func(s verify.Summary) bool { return drop(&f.said, s.Bundle) })
	for _, r := range f.revisions {
		r.summaries = slices.DeleteFunc(r.summaries, func(s verify.SourceSummary) bool { return drop(&r.said, s.Bundle) })
	}
	for i, e := range f.evidence {
		if at, ok := gone[e.Bundle]; ok && e.Accepted {
			f.evidence[i].Accepted = false
			f.evidence[i] = rejected(f.evidence[i], &verify.Rejection{Code: verify.CodeFailed,
				Message: fmt.Sprintf("its verifier took it back: at %s it said that verification FAILED", at.UTC().Format(time.RFC3339))})
		}
	}
}

// places are the resourceUris by which verification summaries name the image:
// what the policy knows it as, what promote writes, and for an image in a
// registry its package URL.
func (c *check) places() (uris []string, image string) {
	uris = []string{c.name}
	if !slices.ContainsFunc([]store.Kind{store.Layout, store.Docker, store.File}, func(k store.Kind) bool { return strings.HasPrefix(c.name, string(k)+":") }) {
		return append(uris, "oci://"+c.name), c.name
	}
	if c.name == Name(c.ref) {
		uris = append(uris, c.ref.URI())
	}
	return uris, ""
}

// rejected is a piece of evidence that does not count, and why.
func rejected(e Evidence, err error) Evidence {
	e.Code = verify.CodePredicate
	if r := (*verify.Rejection)(nil); errors.As(err, &r) {
		e.Code = r.Code
	}
	e.Message = printable(err.Error())
	return e
}

// delegate lets a verification summary stand in for what the policy delegates,
// and says where one is required and there is none. It returns the bundles that
// the answer rests on.
func (c *check) delegate(f *found, res verify.Result, s *Subject) (verify.Result, []attest.Digest) {
	if c.Policy == nil || !c.matched {
		return res, nil
	}
	why := "no verification summary is attached to this digest"
	for _, e := range f.evidence {
		if verify.IsVSA(e.PredicateType) && e.Message != "" {
			why = "the verification summary does not count: " + e.Message
		}
	}
	for _, one := range f.summaries {
		s.changes(c.at, one.Word.Until)
	}
	res, bundle := res.Delegate(c.rule.Delegates(), f.summaries, c.declared, why)
	if required := slices.ContainsFunc(c.rule.Summary(), func(s policy.Summary) bool { return s.Required }); required {
		if len(f.summaries) == 0 {
			if r := (Reason{Code: policy.CodeSummary, Message: "a verification summary is required, and " + why}); !c.waived(s, policy.CodeSummary, &r) {
				s.reasons = append(s.reasons, r)
			}
		} else if bundle == "" {
			bundle = f.summaries[0].Bundle
		}
	}
	if bundle == "" {
		return res, nil
	}
	return res, []attest.Digest{bundle}
}
