package gate

import (
	"errors"
	"slices"
	"strings"

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
			return rejected(e, err)
		}
		if word == nil {
			word = w
		}
		word.Until = soonest(word.Until, c.at, w.Until)
	}
	e.Accepted = true
	if e.Says != "" && len(word.Notes) > 0 {
		e.Says += "; "
	}
	e.Says = printable(e.Says + strings.Join(word.Notes, "; "))
	f.summaries = append(f.summaries, verify.Summary{Bundle: e.Bundle, Word: *word})
	return e
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
