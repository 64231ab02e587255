package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// CodeRole is of evidence whose signer is trusted, but not for its kind.
const CodeRole verify.Code = "role"

// Waived is a demand that the image was excused from.
type Waived struct {
	Requirement   string        `json:"requirement,omitempty"` // one of these three is set
	Rule          string        `json:"rule,omitempty"`
	Vulnerability string        `json:"vulnerability,omitempty"`
	Reason        string        `json:"reason"`
	Owner         string        `json:"owner"`
	Expires       time.Time     `json:"expires"`
	Message       string        `json:"message"` // what would have stood against the image
	Platform      string        `json:"platform,omitempty"`
	Digest        attest.Digest `json:"digest,omitempty"`
}

// known is what the demands of a policy rest on.
type known struct {
	config     *policy.ImageConfig
	sboms      []policy.SBOM
	scans      []policy.Scan
	vex        []policy.VEX
	inputs     []record
	rebuilds   []verify.Rebuild
	predicates map[attest.Digest]json.RawMessage // of provenance, by bundle
	unreadable map[policy.Fact]string
}

// record is a record of inputs that nobody has bound to a provenance yet.
type record struct {
	bundle, statement attest.Digest
	signer            verify.Signer
	predicate         json.RawMessage
}

func (k *known) cannot(fact policy.Fact, err error) error {
	if k.unreadable == nil {
		k.unreadable = map[policy.Fact]string{}
	}
	k.unreadable[fact] = err.Error()
	return err
}

// fact reads an accepted statement that is no provenance, as far as something
// is demanded of it. An error says that it cannot be read.
func (f *found) fact(c *check, st *attest.Statement, signer verify.Signer, bundle attest.Digest) error {
	kind := policy.FactOf(st.PredicateType)
	if kind == policy.FactSBOM {
		format := policy.SBOMFormat(st.PredicateType)
		if _, _, err := policy.SBOMContent(format, st.Predicate); err != nil {
			return f.known.cannot(kind, fmt.Errorf("its SBOM cannot be read: %w", err))
		}
		f.sboms = append(f.sboms, sbom{format: format, bundle: bundle})
	}
	if !c.rule.Needs(kind) && !(kind == policy.FactInputs && c.weighed().Records()) {
		return nil
	}
	switch kind {
	case policy.FactSBOM:
		format := policy.SBOMFormat(st.PredicateType)
		doc, err := policy.ReadSBOM(format, st.Predicate)
		if err != nil {
			return f.known.cannot(kind, err)
		}
		doc.Bundle = bundle
		f.known.sboms = append(f.known.sboms, doc)
	case policy.FactScan:
		scan, err := policy.ReadScan(st.Predicate)
		if scan == nil {
			return f.known.cannot(kind, err)
		}
		scan.Bundle = bundle
		f.known.scans = append(f.known.scans, *scan)
		return err // and the demand says it, unless a newer one can be read
	case policy.FactVEX:
		vex, err := policy.ReadVEX(st.Predicate)
		if err != nil {
			return f.known.cannot(kind, err)
		}
		vex.Bundle = bundle
		f.known.vex = append(f.known.vex, *vex)
	case policy.FactInputs:
		f.known.inputs = append(f.known.inputs, record{bundle: bundle, statement: st.Digest(), signer: signer, predicate: st.Predicate})
	}
	return nil
}

// keep holds on to a provenance's predicate where a rule asks about it.
func (f *found) keep(c *check, st *attest.Statement, bundle attest.Digest) {
	if c.rule.Needs(policy.FactProvenance) || c.rule.Needs(policy.FactInputs) || c.weighed().Records() {
		if f.known.predicates == nil {
			f.known.predicates = map[attest.Digest]json.RawMessage{}
		}
		f.known.predicates[bundle] = st.Predicate
	}
}

// configure reads the image's configuration.
func (f *found) configure(ctx context.Context, place store.Repo) error {
	raw, _, err := place.Manifest(ctx, f.digest)
	if err != nil {
		return err
	}
	var manifest struct {
		Config *struct {
			Digest string `json:"digest"`
			Size   int64  `json:"size"`
		} `json:"config"`
	}
	if err := attest.UnmarshalStrict(raw, &manifest); err != nil {
		return fmt.Errorf("reading manifest %s: %w", f.digest, err)
	}
	if manifest.Config == nil {
		return nil
	}
	digest, err := attest.ParseDigest(manifest.Config.Digest)
	if err != nil {
		return fmt.Errorf("reading manifest %s: %w", f.digest, err)
	}
	blob, err := place.Blob(ctx, digest)
	if err != nil {
		return err
	}
	defer blob.Close()
	// One byte more than may be, so that what is larger is seen to be.
	data, err := io.ReadAll(io.LimitReader(blob, attest.MaxConfig+1))
	if err != nil {
		return err
	}
	if attest.DigestOf(data) != digest && len(data) <= attest.MaxConfig {
		return fmt.Errorf("the configuration of %s is not what its manifest says", f.digest)
	}
	return f.configured(data)
}

func (f *found) configured(data []byte) error {
	config, err := policy.ReadConfig(data)
	if err != nil {
		_ = f.known.cannot(policy.FactConfig, err) // the demand says it
		return nil
	}
	f.known.config = config
	return nil
}

// facts are what is known of a digest whose provenance has been chosen.
func (c *check) facts(f *found, chosen *verify.Candidate) policy.Facts {
	out := policy.Facts{
		Reference: c.ref.String(), Name: c.name, Digest: f.digest, Platform: f.platform, Config: f.known.config,
		SBOMs: f.known.sboms, Scans: f.known.scans, VEX: f.known.vex, Unreadable: f.known.unreadable,
	}
	if chosen == nil || chosen.Signer == nil {
		return out
	}
	predicate := f.known.predicates[chosen.Bundle]
	if predicate == nil {
		return out
	}
	var err error
	if out.Provenance, err = policy.ReadProvenance(chosen.Provenance); err != nil {
		_ = f.known.cannot(policy.FactProvenance, err) // a rule that asks says it
		out.Unreadable = f.known.unreadable
	}
	out.Signer = chosen.Signer
	if chosen.Inputs != nil {
		out.Inputs = chosen.Inputs.Inputs
	} else if r, _ := f.named(chosen); r != nil {
		if out.Inputs, err = policy.ReadInputs(r.predicate); err != nil {
			_ = f.known.cannot(policy.FactInputs, err) // a rule that asks says it
			out.Unreadable = f.known.unreadable
		}
	}
	return out
}

// named is the record of inputs that counts for a provenance: this provenance
// names it and the same signer made it, for anybody could write a clean one.
// Without one it says why, where there is more to say than that none is named.
func (f *found) named(c *verify.Candidate) (*record, string) {
	if c.Signer == nil || f.index {
		return nil, ""
	}
	digest := policy.InputsDigest(f.known.predicates[c.Bundle])
	if digest == "" {
		return nil, ""
	}
	why := "the record of inputs that the provenance names is not there, or nobody trusted signed it"
	for i := range f.known.inputs {
		r := &f.known.inputs[i]
		switch {
		case r.statement != digest:
		case same(r.signer, *c.Signer):
			return r, ""
		default:
			why = "the record of inputs that the provenance names was signed by " + r.signer.String() + ", and not by the provenance's signer"
		}
	}
	return nil, why
}

// weighed is the demand whose evidence is read. Without a policy that is the
// evidence of every property, so that people see what there is; a policy says
// what is worth the reading.
func (c *check) weighed() verify.Demand {
	if c.Policy == nil && !c.trust.Unsigned {
		return c.declared.And(verify.Demand{Properties: verify.Properties()})
	}
	return c.declared
}

// findings are what is to be weighed about a digest.
func (f *found) findings(c *check, below []verify.Platform) verify.Findings {
	out := verify.Findings{Candidates: f.candidates, Why: f.why(), Rebuilds: f.known.rebuilds, Asked: c.declared}
	for _, name := range verify.Properties() {
		if !slices.Contains(c.weighed().Properties, name) {
			out.Unread = append(out.Unread, name)
		}
	}
	if f.index {
		out.Platforms = below
	}
	for i := range out.Candidates {
		k := &out.Candidates[i]
		r, why := f.named(k)
		if r == nil {
			k.NoInputs = why
			continue
		}
		in, err := policy.ReadInputs(r.predicate)
		if err != nil {
			k.NoInputs = printable(err.Error())
			continue
		}
		k.Inputs = &verify.InputsRecord{Bundle: r.bundle, Inputs: in}
	}
	return out
}

// inherit gives a platform what is said of having built its index again: the
// digest of the index covers it. Provenance of an index does not count: it may be
// of putting the platforms together only.
func (f *found) inherit(top *found) {
	f.known.rebuilds = append(f.known.rebuilds, top.known.rebuilds...)
}

func same(a, b verify.Signer) bool {
	return a.Key == b.Key && a.SAN == b.SAN && a.Issuer == b.Issuer && a.Root == b.Root
}

// demand judges the facts and adds what came of it to the subject. It returns
// the bundles that this rests on.
func (c *check) demand(ctx context.Context, f *found, chosen *verify.Candidate, s *Subject) ([]attest.Digest, error) {
	if f.index || c.Policy == nil || !c.matched {
		return nil, nil
	}
	j := c.rule.Judge(ctx, c.facts(f, chosen), c.at)
	if err := ctx.Err(); err != nil {
		return nil, err // a rule that was stopped has said nothing
	}
	s.changes(c.at, j.Until)
	for _, x := range j.Findings {
		// That there is no SBOM is said once.
		if x.Code == policy.CodeSBOM && !x.Undecided && x.Bundle == "" && s.saysSBOM() {
			continue
		}
		r := Reason{Code: x.Code, Rule: printable(x.Rule), Message: x.Message, Bundle: x.Bundle, Pointer: x.Pointer}
		if x.Undecided {
			r.Code, r.undecided = CodeUnreadable, true
		}
		if w, ok := c.rule.WaiveFinding(x, c.at); ok {
			s.excuse(w, r)
			continue
		}
		if c.at.Before(x.Effective) {
			r.Effective = x.Effective
			s.warnings = append(s.warnings, r)
			continue
		}
		if w, ok := c.rule.LapsedFinding(x, c.at); ok {
			r.Hint = lapsed(w)
		}
		s.reasons = append(s.reasons, r)
	}
	return j.Used, nil
}

func (s *Subject) saysSBOM() bool {
	return slices.ContainsFunc(s.reasons, func(r Reason) bool { return r.Code == policy.CodeSBOM }) ||
		slices.ContainsFunc(s.waived, func(w Waived) bool { return w.Requirement == policy.CodeSBOM })
}

// waived excuses from a requirement of the policy's own, if a waiver says so. A
// level that only the caller asked for is not the policy's to waive.
func (c *check) waived(s *Subject, requirement string, r *Reason) bool {
	if c.Policy == nil {
		return false
	}
	if w, ok := c.rule.Waive(requirement, c.at); ok {
		s.excuse(w, *r)
		return true
	}
	if w, ok := c.rule.Lapsed(requirement, c.at); ok {
		r.Hint = lapsed(w)
	}
	return false
}

func lapsed(w policy.Waiver) string {
	return printable(fmt.Sprintf("the waiver of %s for %s expired on %s and does nothing any more", w.Owner, w.Name(), w.Expires.UTC().Format(time.RFC3339)))
}

func (s *Subject) excuse(w policy.Waiver, r Reason) {
	s.waived = append(s.waived, Waived{
		Requirement: w.Requirement, Rule: printable(w.Rule), Vulnerability: printable(w.Vulnerability),
		Reason: printable(w.Reason), Owner: printable(w.Owner), Expires: w.Expires.UTC(),
		Message: printable(r.Message), Platform: s.Platform, Digest: s.Digest,
	})
}

// errAsOf is why a verdict as of another moment is not summarised.
var errAsOf = errors.New("summarising a verdict: it was given as of another moment than now, and a summary would say that it holds now")
