package gate

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// maxParallel bounds how many digests are looked at together. The store bounds
// the requests below that.
const maxParallel = 4

// look says how closely to read.
type look struct {
	rule  policy.Rule
	level verify.Demand
	// source reads what is said of the source, which no predicate type but a
	// review's tells apart.
	source bool
	// all reads what no decision needs, too: for Inspect and for drafts.
	all bool
	// stapled reads OCSP responses about signers' certificates.
	stapled bool
	// says puts the content of each piece in a line.
	says bool
}

// needs reports whether anything depends on evidence of this type.
func (l look) needs(predicateType string) bool {
	if l.all || predicateType == "" || verify.IsProvenance(predicateType) {
		return true
	}
	if predicateType == attest.OCSPMediaType {
		return l.stapled
	}
	if l.rule.Needs(policy.FactOf(predicateType)) {
		return true
	}
	switch {
	case verify.IsVSA(predicateType) && (l.source || len(l.rule.Summary()) > 0),
		l.source && (verify.IsSourceProvenance(predicateType) || predicateType == attestations.ReviewV1):
		return true
	}
	switch predicateType {
	case attestations.InputsV1:
		return l.level.Records()
	case attestations.RebuildV1:
		return slices.Contains(l.level.Properties, verify.PropertyReproduced)
	}
	f := policy.SBOMFormat(predicateType)
	required, formats := l.rule.SBOM()
	return f != "" && required && (len(formats) == 0 || slices.Contains(formats, f))
}

// found is what there is about one digest.
type found struct {
	digest     attest.Digest
	platform   string
	index      bool
	platforms  int // below an index
	evidence   []Evidence
	candidates []verify.Candidate
	summaries  []verify.Summary // of the image, that count
	said       results          // by all of its summaries
	pending    []pending
	revisions  []*revised
	sboms      []sbom
	known      known
}

type sbom struct {
	format string
	bundle attest.Digest
}

// find resolves the reference, walks an index and reads the evidence of every
// digest. The image itself comes first. On an error the slice holds at most
// the image, without evidence.
func (g Gate) find(ctx context.Context, c *check, l look) ([]*found, error) {
	c.Store.Want = l.needs
	place, err := g.open(ctx, c)
	if err != nil {
		return nil, err
	}
	desc, err := place.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	top := &found{digest: attest.Digest(desc.Digest.String()), index: desc.MediaType.IsIndex()}
	platforms, err := store.Platforms(ctx, place, desc)
	if err != nil {
		return []*found{top}, err
	}
	top.platforms = len(platforms)
	all := []*found{top}
	for _, p := range platforms {
		all = append(all, &found{digest: attest.Digest(p.Descriptor.Digest.String()), platform: printable(cmp.Or(p.Name, "unknown"))})
	}
	if len(all) > attest.MaxPlatforms+1 {
		return all[:1], fmt.Errorf("the index has %d platforms, more than the %d allowed", len(platforms), attest.MaxPlatforms)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxParallel)
	for _, f := range all {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := contain(func() error { return f.gather(ctx, place, c, l) }); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return all[:1], err
	}
	top.borrow(all[1:], c)
	for _, f := range all[1:] {
		f.inherit(top)
	}
	if err := contain(func() error { return g.sources(ctx, place, c, l, all) }); err != nil {
		return all[:1], err
	}
	return all, nil
}

// borrow gives an index that holds BuildKit's unsigned attestations of each of
// its platforms theirs: BuildKit writes none for the index itself, but the
// index's digest covers them. Only where nobody's word is enough.
func (f *found) borrow(platforms []*found, c *check) {
	if !c.trust.Unsigned || !f.index || len(f.candidates) > 0 {
		return
	}
	var inside []verify.Candidate
	for _, p := range platforms {
		i := slices.IndexFunc(p.candidates, func(c verify.Candidate) bool { return c.Where == store.SourceIndex })
		if i < 0 {
			return
		}
		inside = append(inside, p.candidates[i])
	}
	if len(inside) > 0 {
		f.candidates = inside[:1]
		f.candidates[0].Where = "attestations inside the index, one for each platform"
	}
}

func (f *found) gather(ctx context.Context, place store.Repo, c *check, l look) error {
	pieces, err := place.Evidence(ctx, f.digest)
	if err != nil {
		return err
	}
	stapled := stapledIn(pieces)
	for i := range pieces {
		if err := ctx.Err(); err != nil {
			return err // nobody waits for the rest of them
		}
		e := f.read(&pieces[i], stapled, c, l)
		pieces[i].Raw = nil // an SBOM is large, and has been read
		f.evidence = append(f.evidence, e)
	}
	if f.evidence == nil {
		f.evidence = []Evidence{}
	}
	if !f.index && c.rule.Needs(policy.FactConfig) {
		return f.configure(ctx, place)
	}
	return nil
}

// stapledIn are the OCSP responses among pieces. Each speaks of one certificate,
// whatever was signed with that.
func stapledIn(pieces []store.Piece) [][]byte {
	var out [][]byte
	for _, p := range pieces {
		if p.Stapled && p.Raw != nil {
			out = append(out, p.Raw)
		}
	}
	return out
}

// isStapled is what the list of evidence says of an OCSP response.
const isStapled = "no evidence by itself: an OCSP response, which says whether a certificate was revoked"

// read judges one piece on its own, with what is stapled to it.
func (f *found) read(p *store.Piece, stapled [][]byte, c *check, l look) Evidence {
	e := Evidence{Source: p.Source, Where: p.Where, Bundle: p.Digest, PredicateType: printable(p.PredicateType)}
	reject := func(code verify.Code, message string) Evidence {
		e.Code, e.Message = code, printable(message)
		return e
	}
	if p.Raw == nil {
		if p.Unwanted {
			return reject(CodeNotNeeded, "not read: nothing that was asked depends on it")
		}
		return reject(CodeSkipped, p.Skipped)
	}
	if p.Stapled {
		return reject(CodeStapled, isStapled)
	}
	e.Bundle = attest.DigestOf(p.Raw)
	b, err := attest.ParseBundle(p.Raw)
	if err != nil {
		// BuildKit's own attestations are statements that nobody signed.
		st, serr := attest.ParseStatement(p.Raw)
		if serr != nil {
			return reject(verify.CodeUnreadable, err.Error())
		}
		e.PredicateType = printable(st.PredicateType)
		if l.all || l.says {
			e.Says = says(st)
		}
		if !st.Binds(f.digest) {
			return reject(verify.CodeSubject, "it is not signed, and its subject is not this digest")
		}
		if c.trust.Unsigned && verify.IsProvenance(st.PredicateType) {
			return f.unsigned(e, st, "it is not signed; Build L1 asks for no more")
		}
		return reject(verify.CodeUnsigned, "it is not signed: worth Build L1 at most, and only when no more is asked than --level 1")
	}
	b = b.Staple(stapled...)
	st := b.Statement()
	e.PredicateType, e.KeyHint = printable(st.PredicateType), printable(b.KeyHint())
	if l.all || l.says {
		e.Says = says(st)
	}
	if !l.needs(st.PredicateType) {
		return reject(CodeNotNeeded, "not checked: nothing that was asked depends on it")
	}
	if l.source && aboutSource(st, f.digest) {
		f.pending = append(f.pending, pending{len(f.evidence), b})
		return e
	}
	ok, err := c.checker.Check(b, f.digest)
	if err != nil {
		var r *verify.Rejection
		if !errors.As(err, &r) {
			return reject(verify.CodeUnreadable, err.Error())
		}
		if c.trust.Unsigned && (r.Code == verify.CodeNoKey || r.Code == verify.CodeCertificate) && verify.IsProvenance(st.PredicateType) && st.Binds(f.digest) {
			return f.unsigned(e, st, "its signature was not checked; Build L1 asks for no more")
		}
		return reject(r.Code, r.Message)
	}
	// From here on only what was verified is read.
	e.Bundle = ok.Bundle()
	return f.accept(e, c, ok.Statement(), ok.Signer())
}

// accept weighs a statement whose signature held.
func (f *found) accept(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	e.Signer = &signer
	if verify.IsProvenance(st.PredicateType) {
		return f.provenance(e, c, st, signer)
	}
	if verify.IsVSA(st.PredicateType) && len(c.rule.Summary()) > 0 {
		return f.summarise(e, c, st, signer)
	}
	if kind := policy.FactOf(st.PredicateType); kind != "" && c.Policy != nil && !c.Policy.Speaks(signer, kind) {
		e.Code, e.Message = CodeRole, printable(fmt.Sprintf("the policy trusts %s, but not for evidence of the kind %q", signer, kind))
		return e
	}
	if st.PredicateType == attestations.RebuildV1 {
		return f.rebuild(e, st, signer)
	}
	if err := f.fact(c, st, signer, e.Bundle); err != nil {
		e.Code, e.Message = verify.CodePredicate, printable(err.Error())
		return e
	}
	e.Accepted = true
	return e
}

// rebuild takes somebody's word that they built the digest again. Whether it
// counts is for the assessment to say: it depends on who built it first.
func (f *found) rebuild(e Evidence, st *attest.Statement, signer verify.Signer) Evidence {
	r, err := verify.ReadRebuild(st, f.digest)
	if err != nil {
		e.Code, e.Message = verify.CodePredicate, printable(err.Error())
		return e
	}
	e.Accepted = true
	r.Bundle, r.Signer = e.Bundle, signer
	f.known.rebuilds = append(f.known.rebuilds, r)
	return e
}

func (f *found) provenance(e Evidence, c *check, st *attest.Statement, signer verify.Signer) Evidence {
	p, err := verify.ParseProvenance(st)
	if err != nil {
		e.Code, e.Message = verify.CodePredicate, printable(err.Error())
		return e
	}
	if limit := c.trust.CapOf(signer, p); limit.Level < 1 {
		e.Code, e.Message = verify.CodeBuilder, printable(limit.Reason)
		return e
	}
	if p.Compares() {
		e.Message = "it says that artifacts are alike, and not how one was built"
		return f.rebuild(e, st, signer)
	}
	e.Accepted = true
	f.keep(c, st, e.Bundle)
	f.candidates = append(f.candidates, verify.Candidate{
		Bundle: e.Bundle, Where: e.Source, Provenance: p, Claim: claimOf(st), Signer: &signer,
		Expected: c.Policy != nil, Problems: c.expect(p, signer),
	})
	return e
}

// unsigned takes provenance that nobody vouches for, where the caller asked
// for no more than Build L1.
func (f *found) unsigned(e Evidence, st *attest.Statement, message string) Evidence {
	p, err := verify.ParseProvenance(st)
	if err != nil {
		e.Code, e.Message = verify.CodePredicate, printable(err.Error())
		return e
	}
	e.Code, e.Message = verify.CodeUnsigned, message
	f.candidates = append(f.candidates, verify.Candidate{Bundle: e.Bundle, Where: e.Source, Provenance: p})
	return e
}

// expect compares provenance with the certificate that signed it and with the
// policy. An image that the policy does not know meets no expectation.
func (c *check) expect(p *verify.Provenance, signer verify.Signer) []verify.Problem {
	if c.Policy != nil && !c.matched {
		return []verify.Problem{{Code: CodeNoRule, Pointer: "/subject", Message: "the policy has no entry for this image"}}
	}
	return append(verify.Contradictions(p, signer), c.rule.Expect(p, signer)...)
}

// why says what there is instead of provenance that counts.
func (f *found) why() string {
	var provenance, unread []Evidence
	for _, e := range f.evidence {
		switch {
		case verify.IsProvenance(e.PredicateType):
			provenance = append(provenance, e)
		case e.PredicateType == "":
			unread = append(unread, e)
		}
	}
	switch {
	case len(f.evidence) == 0:
		return "no evidence is attached to this digest"
	case len(provenance) == 0 && len(unread) > 0:
		return fmt.Sprintf("no provenance among the %s, of which %d could not be read: %s",
			plural(len(f.evidence), "piece of evidence", "pieces of evidence"), len(unread), unread[0].Message)
	case len(provenance) == 0:
		return fmt.Sprintf("no provenance among the %s attached to this digest", plural(len(f.evidence), "piece of evidence", "pieces of evidence"))
	}
	// What comes closest to counting tells most.
	telling := slices.MaxFunc(provenance, func(a, b Evidence) int { return closeness(a) - closeness(b) })
	if len(provenance) == 1 {
		return "the one piece of provenance does not count: " + telling.Message
	}
	return fmt.Sprintf("none of %d pieces of provenance counts: %s", len(provenance), telling.Message)
}

// closeness orders rejections by how far the evidence got.
func closeness(e Evidence) int {
	return slices.Index([]verify.Code{verify.CodeSubject, verify.CodeUnsigned, verify.CodeCertificate, verify.CodeLog, verify.CodeTime, verify.CodeChain, verify.CodeSignature, verify.CodeIdentity, verify.CodeRevoked, verify.CodeRevocation, verify.CodePredicate, verify.CodeBuilder}, e.Code)
}

// untold reports whether a piece would count, were it known that its signer's
// certificate was not revoked: what it could show cannot be told either.
func (f *found) untold() bool {
	return slices.ContainsFunc(f.evidence, func(e Evidence) bool { return e.Code == verify.CodeRevocation })
}

// sbom returns the accepted SBOMs in the formats asked for, and what is
// missing.
func (f *found) sbom(formats []string) (bundles []attest.Digest, missing string) {
	if len(formats) == 0 && len(f.sboms) == 0 {
		return nil, "no signed SBOM that counts is attached"
	}
	have := map[string]bool{}
	for _, s := range f.sboms {
		if len(formats) == 0 || slices.Contains(formats, s.format) {
			have[s.format] = true
			bundles = append(bundles, s.bundle)
		}
	}
	for _, want := range formats {
		if !have[want] {
			return bundles, fmt.Sprintf("no signed %s SBOM that counts is attached", want)
		}
	}
	return bundles, ""
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// says is a statement's content in one line, whoever signed it.
func says(st *attest.Statement) string {
	switch {
	case verify.IsProvenance(st.PredicateType):
		p, err := verify.ParseProvenance(st)
		if err != nil {
			return printable(err.Error())
		}
		line := "built by " + p.BuilderID.Value
		if len(p.Sources) > 0 {
			s := p.Sources[0]
			line += ", from " + cmp.Or(s.Repository, "a repository without a remote")
			if s.Commit != "" {
				line += "@" + s.Commit[:min(12, len(s.Commit))]
			}
			if s.Dirty {
				line += " (changed)"
			}
		}
		if p.Runner.Value != "" {
			line += ", on a " + p.Runner.Value + " runner"
		}
		return printable(line + ", " + plural(len(p.Dependencies), "dependency", "dependencies"))
	case policy.SBOMFormat(st.PredicateType) != "":
		version, n, err := policy.SBOMContent(policy.SBOMFormat(st.PredicateType), st.Predicate)
		if err != nil {
			return printable(err.Error())
		}
		if policy.SBOMFormat(st.PredicateType) == policy.FormatCycloneDX {
			version = "CycloneDX " + version
		}
		return printable(fmt.Sprintf("%s, %s", version, plural(n, "entry", "entries")))
	case st.PredicateType == attestations.InputsV1:
		return saysInputs(st)
	case st.PredicateType == attestations.RebuildV1:
		return saysRebuild(st)
	case policy.FactOf(st.PredicateType) == policy.FactScan:
		s, err := policy.ReadScan(st.Predicate)
		if err != nil {
			return printable(err.Error())
		}
		return printable(s.Says())
	case policy.FactOf(st.PredicateType) == policy.FactVEX:
		v, err := policy.ReadVEX(st.Predicate)
		if err != nil {
			return printable(err.Error())
		}
		return printable(v.Says())
	case st.PredicateType == attestations.ReviewV1, verify.IsSourceProvenance(st.PredicateType):
		return saysSource(st)
	case st.PredicateType == attestations.VSAV1:
		var v attestations.VSA
		if err := attest.UnmarshalStrict(st.Predicate, &v); err != nil {
			return printable("a verification summary that cannot be read: " + err.Error())
		}
		levels, err := json.Marshal(v.VerifiedLevels)
		if err != nil {
			return ""
		}
		return printable(fmt.Sprintf("%s %s by %s for %s", v.VerificationResult, levels, v.Verifier.ID, v.ResourceURI))
	}
	return printable(plural(len(st.Predicate), "byte", "bytes") + " of predicate")
}

// saysInputs is a record of inputs in one line. It repeats what the record says
// of itself; nothing is judged by it.
func saysInputs(st *attest.Statement) string {
	var in attestations.Inputs
	if err := attest.UnmarshalStrict(st.Predicate, &in); err != nil {
		return printable("a record of inputs that cannot be read: " + err.Error())
	}
	if err := attest.CheckInputs(&in); err != nil {
		return printable("a record of inputs that does not hold together: " + err.Error())
	}
	recorded, gaps, refused := in.Count()
	hermetic := "not hermetic"
	if in.Hermetic {
		hermetic = "hermetic"
	}
	return printable(fmt.Sprintf("%s, %s (%s): %s by %s, %s, %d refused", in.Verdict, hermetic, in.Mode,
		plural(recorded, "request", "requests"), plural(len(in.Steps), "step", "steps"), plural(gaps, "gap", "gaps"), refused))
}
