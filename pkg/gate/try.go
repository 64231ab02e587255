package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Try gives the verdict on the facts of a case, as Judge would on an image with
// that configuration and that evidence, attached and well signed. Nothing is
// fetched. The error is of the case, not of the facts.
func (g Gate) Try(ctx context.Context, t *policy.Case) (*Verdict, error) {
	now, name := g.now(), t.Image
	if ref, err := store.Parse(t.Image); err == nil {
		name = Name(ref)
	}
	c := &check{
		Request: Request{Reference: t.Image, Policy: t.Policy, At: t.At},
		ref:     store.Reference{Kind: store.Registry, Place: t.Image}, name: name,
		trust: t.Policy.Trust(), trustedBy: TrustedByPolicy, at: now,
	}
	if !t.At.IsZero() {
		c.at = t.At
	}
	c.rule, c.matched = t.Policy.For(c.name)
	c.declared = c.rule.Level()
	v := &Verdict{
		Schema: VerdictSchema, Image: t.Image, Decision: Undecided, Declared: c.declared, TrustedBy: c.trustedBy,
		Subject: nothing(""), Properties: []string{},
		Platforms: []Subject{}, Reasons: []Reason{}, PolicyDigest: t.Policy.Digest(), TrustDigest: trustDigest(c),
		DecidedAt: now.UTC().Truncate(time.Second), AsOf: t.At.UTC(),
	}
	f := &found{digest: attest.DigestOf([]byte(t.Image)), platform: t.Platform, evidence: []Evidence{}}
	if err := contain(func() error { return c.try(ctx, t, f, v) }); err != nil {
		v.undecided(err)
	}
	return v, nil
}

func (c *check) try(ctx context.Context, t *policy.Case, f *found, v *Verdict) error {
	if t.Config != nil {
		if err := f.configured(t.Config); err != nil {
			return err
		}
	}
	// What only the statements themselves tell: the digest of the image, and of
	// the record of inputs.
	fill := []string{"$DIGEST", f.digest.Hex()}
	statement := func(e policy.CaseEvidence) (*attest.Statement, error) {
		predicate := json.RawMessage(strings.NewReplacer(fill...).Replace(string(e.Predicate)))
		subject := attest.Subject{Name: t.Image, Digest: map[string]string{"sha256": f.digest.Hex()}}
		if e.Commit != "" {
			refs, err := json.Marshal(map[string][]string{"sourceRefs": e.Refs})
			if err != nil {
				return nil, err
			}
			subject = attest.Subject{Digest: map[string]string{"gitCommit": e.Commit}, Annotations: refs}
		}
		return attest.NewStatement(e.Type, []attest.Subject{subject}, predicate)
	}
	for _, e := range t.Evidence {
		if policy.FactOf(e.Type) != policy.FactInputs {
			continue
		}
		if st, err := statement(e); err == nil {
			fill = append(fill, "$INPUTS", st.Digest().Hex())
		}
	}
	var later []func()
	for i, e := range t.Evidence {
		st, err := statement(e)
		if err != nil {
			f.evidence = append(f.evidence, Evidence{Source: store.SourceFile, Code: verify.CodeUnreadable, Message: printable(err.Error())})
			continue
		}
		piece := Evidence{Source: store.SourceFile, Where: fmt.Sprintf("evidence %d", i+1), Bundle: st.Digest(), PredicateType: printable(st.PredicateType)}
		if i := len(f.evidence); c.asksSource() && aboutSource(st, f.digest) {
			f.evidence = append(f.evidence, piece)
			later = append(later, func() { f.evidence[i] = f.supposeRevision(f.evidence[i], c, st, c.supposed(e.Signer)) })
			continue
		}
		f.evidence = append(f.evidence, f.accept(piece, c, st, c.supposed(e.Signer)))
	}
	f.findRevisions()
	for _, judge := range later {
		judge()
	}
	subject, used, err := c.decide(ctx, f, nil)
	if err != nil {
		return err
	}
	if c.rule.Dependencies().Demands() {
		v.lacking = untried(subject)
	}
	v.Subject, v.used = subject, [][]attest.Digest{used}
	v.conclude(c)
	return nil
}

// supposeRevision judges a statement about a revision, taken as well signed.
func (f *found) supposeRevision(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	r, why := f.revision(st)
	if r == nil {
		return rejected(e, &verify.Rejection{Code: verify.CodeSubject, Message: why})
	}
	return r.hear(e, c, st, signer)
}

// untried is what a case cannot say of what its image was built from.
func untried(s Subject) []Reason {
	if !s.listed {
		return []Reason{unlisted(s)}
	}
	for _, in := range s.inputs {
		if in.image {
			return []Reason{{Code: policy.CodeDependency, undecided: true,
				Message: printable(fmt.Sprintf("built from %s, whose evidence is not in the case: what is demanded of it was not tried", in.uri))}}
		}
	}
	return nil
}

// supposed is the signer as Check would give it. Somebody whom the policy does
// not name stays a stranger.
func (c *check) supposed(s verify.Signer) verify.Signer {
	s, _ = c.trust.Suppose(s, c.at)
	return s
}

// Differences says where a verdict is not what a case expects; none when it
// is.
func Differences(x policy.Expectation, v *Verdict) []string {
	var out []string
	if string(v.Decision) != x.Decision {
		out = append(out, fmt.Sprintf("- decision: %s", x.Decision), fmt.Sprintf("+ decision: %s", v.Decision))
	}
	if x.Level != nil && *x.Level != v.Reached.Build {
		out = append(out, fmt.Sprintf("- level: %d", *x.Level), fmt.Sprintf("+ level: %d", v.Reached.Build))
	}
	if x.Source != nil && *x.Source != v.Reached.Source {
		out = append(out, fmt.Sprintf("- source level: %d", *x.Source), fmt.Sprintf("+ source level: %d", v.Reached.Source))
	}
	if x.Properties != nil && !slices.Equal(x.Properties, v.Properties) {
		out = append(out, "- properties: "+strings.Join(x.Properties, ", "), "+ properties: "+strings.Join(v.Properties, ", "))
	}
	var reasons, warnings, waived []string
	for _, r := range v.Reasons {
		reasons = append(reasons, r.Code+": "+r.Message)
	}
	for _, r := range v.Warnings {
		warnings = append(warnings, r.Code+": "+r.Message)
	}
	for _, w := range v.Waived {
		waived = append(waived, fmt.Sprintf("%s%s%s: %s", w.Requirement, w.Rule, w.Vulnerability, w.Message))
	}
	out = append(out, compare("reason", x.Reasons, reasons)...)
	out = append(out, compare("warning", x.Warnings, warnings)...)
	return append(out, compare("waived", x.Waived, waived)...)
}

// compare pairs each text that is wanted with one that holds it. What is left
// on either side is a difference.
func compare(what string, want, got []string) []string {
	var out []string
	taken := make([]bool, len(got))
next:
	for _, w := range want {
		for i, g := range got {
			if !taken[i] && strings.Contains(g, w) {
				taken[i] = true
				continue next
			}
		}
		out = append(out, fmt.Sprintf("- %s: %s", what, w))
	}
	for i, g := range got {
		if !taken[i] {
			out = append(out, fmt.Sprintf("+ %s: %s", what, g))
		}
	}
	return out
}
