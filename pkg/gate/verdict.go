package gate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// VerdictSchema names the form of a Verdict in JSON; package report has its
// JSON Schema.
const VerdictSchema = "https://waxseal.dev/schemas/verdict/v1.json"

// Decision is the answer.
type Decision string

// The decisions.
const (
	Pass      Decision = "pass"
	Deny      Decision = "deny"
	Undecided Decision = "undecided"
)

// Who the trust came from.
const (
	TrustedByPolicy     = "policy"
	TrustedByKeys       = "keys"
	TrustedByIdentities = "identities"
	TrustedByNobody     = "nobody"
)

// The codes of a Reason, beside those of packages verify and policy.
const (
	CodeLevel       = "level"       // a requirement of the declared level is not met
	CodeApprovals   = "approvals"   // fewer people approved its source than the policy asks for
	CodeSignatures  = "signatures"  // fewer signed its provenance than the policy asks for
	CodeNoRule      = "no-rule"     // no entry of the policy matches the image
	CodePlatforms   = "platforms"   // the index has no platforms
	CodeNotFound    = "not-found"   // there is no such image
	CodeUnavailable = "unavailable" // the place could not be asked
	CodeUnreadable  = "unreadable"  // what is there is more, or other, than can be judged
	CodeTimeout     = "timeout"
	CodeCanceled    = "canceled"
	CodeInternal    = "internal" // a bug
	CodeTrust       = "trust"    // something that is to be trusted could not be fetched
)

// Levels holds one level for each SLSA track.
type Levels = verify.Levels

// Verdict is the answer about one image. In JSON the fields of Subject, about
// the reference's own digest, stand beside the others.
type Verdict struct {
	Schema   string   `json:"schema"`
	Image    string   `json:"image"` // the reference that was asked about
	Decision Decision `json:"decision"`
	// Declared is what it must carry: what the policy declares, and what was
	// asked for.
	Declared  verify.Demand `json:"declared"`
	Reached   Levels        `json:"reached"` // the lowest of all parts
	TrustedBy string        `json:"trustedBy"`
	// Properties are the verified ones that every part has.
	Properties []string `json:"properties"`
	// Subject is the image's own part. Its decision, level and properties are
	// not shown: those above stand for the image with all its platforms.
	Subject
	Platforms []Subject `json:"platforms"`
	Reasons   []Reason  `json:"reasons"` // why it is not a pass; empty for one
	// Warnings are demands that are not fulfilled and not in effect yet.
	Warnings []Reason `json:"warnings,omitempty"`
	// Waived are demands that are not fulfilled and that a waiver excuses from.
	Waived       []Waived      `json:"waived,omitempty"`
	PolicyDigest attest.Digest `json:"policyDigest,omitempty"`
	TrustDigest  attest.Digest `json:"trustDigest"`
	Roots        []Root        `json:"roots,omitempty"` // the Sigstore instances it was given under
	// Dependencies are the images that it was built from, as far as they were
	// looked at; nil: not at all.
	Dependencies []Dependency `json:"dependencies,omitzero"`
	// DependencyLevels counts all that it was built from by level, as a VSA has
	// it; nil: no claim.
	DependencyLevels map[string]uint64 `json:"dependencyLevels,omitzero"`
	DecidedAt        time.Time         `json:"decidedAt"`
	// AsOf is the moment it was judged as of, where that was not DecidedAt.
	AsOf time.Time `json:"asOf,omitzero"`
	// ValidUntil is how long the answer may be kept, for the same digest under
	// the same policy and trust. Zero: not at all.
	ValidUntil time.Time `json:"validUntil,omitzero"`
	// For is where the image is to run, where the request said so.
	For *Workload `json:"for,omitempty"`
	// Explanation is there where the request asked for it.
	Explanation *Explanation `json:"explanation,omitempty"`

	request Request
	used    [][]attest.Digest // bundles each subject's answer rests on; the image first
	lacking []Reason          // what its dependencies lack
}

// Root is a trusted root that a verdict was given under.
type Root struct {
	Name   string        `json:"name"`
	Digest attest.Digest `json:"digest"`
	// Of one that was fetched: when, and until when it may be used.
	FetchedAt  time.Time `json:"fetchedAt,omitzero"`
	ValidUntil time.Time `json:"validUntil,omitzero"`
}

func rootsOf(t verify.Trust) []Root {
	var out []Root
	for _, r := range t.Roots {
		o := r.Origin()
		out = append(out, Root{Name: printable(r.Name()), Digest: r.ID(), FetchedAt: o.FetchedAt.UTC().Truncate(time.Second), ValidUntil: o.ValidUntil.UTC()})
	}
	return out
}

// Subject is what was found about one digest.
type Subject struct {
	Digest       attest.Digest `json:"digest,omitempty"`
	Platform     string        `json:"platform,omitempty"` // "" for the image itself
	Decision     Decision      `json:"decision"`
	Reached      Levels        `json:"reached"`
	Properties   []string      `json:"properties"` // the verified ones, by their names in a VSA
	Requirements []verify.Row  `json:"requirements"`
	Evidence     []Evidence    `json:"evidence"`

	reasons  []Reason
	warnings []Reason
	waived   []Waived
	// excused: a waiver stands in for a requirement of the level.
	excused bool
	// until is the next moment at which time alone changes what was found.
	until time.Time
	// inputs are what it was built from, where that is looked at.
	inputs           []input
	listed           bool
	dependencyLevels map[string]uint64
}

// Reason is one thing that stands against the image, or in the way of an
// answer.
type Reason struct {
	Code        string        `json:"code"`
	Platform    string        `json:"platform,omitempty"`
	Digest      attest.Digest `json:"digest,omitempty"`      // of the image or platform it is about
	Requirement string        `json:"requirement,omitempty"` // the id of a row
	Message     string        `json:"message"`
	Bundle      attest.Digest `json:"bundle,omitempty"` // the evidence that shows it
	Pointer     string        `json:"pointer,omitempty"`
	Hint        string        `json:"hint,omitempty"`
	Rule        string        `json:"rule,omitempty"`     // the name of a rule of the policy
	Effective   time.Time     `json:"effective,omitzero"` // of a warning: from when on it denies

	undecided bool // it stands in the way of an answer, not against the image
}

// Evidence is one piece that was seen, and what became of it.
type Evidence struct {
	Source        string         `json:"source"`           // where such things are found, in words
	Where         string         `json:"where,omitempty"`  // the manifest's digest or the file
	Bundle        attest.Digest  `json:"bundle,omitempty"` // digest of the piece as found
	PredicateType string         `json:"predicateType,omitempty"`
	Accepted      bool           `json:"accepted"`
	Used          bool           `json:"used"` // the verdict rests on it
	Signer        *verify.Signer `json:"signer,omitempty"`
	KeyHint       string         `json:"keyHint,omitempty"` // what it says of its key; not verified
	Code          verify.Code    `json:"code,omitempty"`    // why it was not accepted
	Message       string         `json:"message,omitempty"`
	Says          string         `json:"says,omitempty"` // its content in one line
}

// The codes of evidence that was not weighed, beside those of package verify.
const (
	CodeSkipped   verify.Code = "skipped"    // the store did not read it
	CodeNotNeeded verify.Code = "not-needed" // nothing that was asked depends on it
	CodeStapled   verify.Code = "stapled"    // an OCSP response, which is no evidence by itself
)

// conclude draws the decision from the subjects.
func (v *Verdict) conclude(c *check) {
	v.Reached = v.Subject.Reached
	v.Reasons = []Reason{}
	if c.Policy != nil && !c.matched {
		v.Reasons = append(v.Reasons, Reason{Code: CodeNoRule,
			Message: fmt.Sprintf("no entry of the policy matches the image %q (it has %s)", c.name, patterns(c.Policy.Patterns())), Hint: c.nameHint()})
	}
	excused := false
	for _, r := range v.lacking {
		if !c.waived(&v.Subject, policy.CodeDependency, &r) {
			v.Reasons = append(v.Reasons, r)
		}
	}
	v.Properties = slices.Clone(v.Subject.Properties)
	all := append([]Subject{v.Subject}, v.Platforms...)
	for _, s := range all {
		v.Reached.Build = min(v.Reached.Build, s.Reached.Build)
		v.Reached.Source = min(v.Reached.Source, s.Reached.Source)
		v.Properties = slices.DeleteFunc(v.Properties, func(name string) bool { return !slices.Contains(s.Properties, name) })
		v.Reasons = append(v.Reasons, s.reasons...)
		v.Warnings = append(v.Warnings, s.warnings...)
		v.Waived = append(v.Waived, s.waived...)
		excused = excused || s.excused
	}
	v.Decision = Deny
	if len(v.Reasons) > 0 && !slices.ContainsFunc(v.Reasons, func(r Reason) bool { return !r.undecided }) {
		v.Decision = Undecided
		return
	}
	// Pass is the one that needs a proof: no reason against, every part
	// decided for, and the level there.
	passed := len(v.Reasons) == 0 && (v.Declared.Fulfilled(v.Reached, v.Properties) || excused)
	for _, s := range all {
		passed = passed && s.Decision == Pass
	}
	if passed {
		v.Decision = Pass
	}
}

// nameHint is the way out for an image that lies where no policy knows it.
func (c *check) nameHint() string {
	if c.ref.Kind == store.Archive && c.Name == "" {
		return "say which image the archive holds: --as HOST/REPO"
	}
	return ""
}

func patterns(list []string) string {
	const most = 3
	var b strings.Builder
	for i, p := range list {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(list)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", p)
	}
	return b.String()
}

// decide judges one digest, an index with the rows of its platforms, and
// returns the bundles the answer rests on.
func (c *check) decide(ctx context.Context, f *found, below []verify.Platform) (Subject, []attest.Digest, error) {
	f.takeBack()
	s := Subject{Digest: f.digest, Platform: f.platform, Evidence: f.evidence, Properties: []string{}}
	c.assessSources(f)
	c.countersigned(f)
	res, stood := c.delegate(f, verify.Assess(c.trust, f.findings(c, below)), &s)
	s.Reached, s.Requirements = res.Levels, res.Rows
	s.Properties = append(s.Properties, res.Properties...)
	used := append(c.rests(res), stood...)
	if res.Candidate != nil {
		if source := res.Candidate.Source; source != nil {
			s.changes(c.at, source.Until)
		}
		for _, p := range res.Candidate.Problems {
			if p.Code == CodeNoRule {
				continue // said once for the whole image
			}
			r := Reason{Code: p.Code, Requirement: verify.RowExpectations, Message: p.Message,
				Bundle: res.Candidate.Bundle, Pointer: p.Pointer, Hint: p.Hint}
			if c.waived(&s, p.Code, &r) {
				s.excused = true
				continue
			}
			s.reasons = append(s.reasons, r)
		}
	}
	s.inputs, s.listed = c.inputs(f, res.Candidate)
	f.ways(res.Rows, c.declared)
	c.short(f, &s, res)
	used = append(used, c.approved(f, res.Candidate, &s)...)
	used = append(used, c.signed(f, res.Candidate, &s)...)
	if required, formats := c.rule.SBOM(); required && !f.index {
		bundles, missing := f.sbom(formats)
		used = append(used, bundles...)
		if missing != "" {
			if r := (Reason{Code: policy.CodeSBOM, Message: missing, undecided: f.untold()}); !c.waived(&s, policy.CodeSBOM, &r) {
				s.reasons = append(s.reasons, r)
			}
		}
	}
	rests, err := c.demand(ctx, f, res.Candidate, &s)
	if err != nil {
		return s, nil, err
	}
	used = append(used, rests...)
	if f.index && f.platforms == 0 {
		s.reasons = append(s.reasons, Reason{Code: CodePlatforms, Message: "the index has no platform that could run"})
	}
	for i := range s.Evidence {
		s.Evidence[i].Used = slices.Contains(used, s.Evidence[i].Bundle) && (s.Evidence[i].Accepted || c.trust.Unsigned)
	}
	for i := range s.reasons {
		s.reasons[i].Platform, s.reasons[i].Digest = s.Platform, s.Digest
		s.reasons[i].Message = printable(s.reasons[i].Message)
	}
	for i := range s.warnings {
		s.warnings[i].Platform, s.warnings[i].Digest = s.Platform, s.Digest
		s.warnings[i].Message = printable(s.warnings[i].Message)
	}
	s.Decision = Deny
	switch {
	case len(s.reasons) > 0 && !slices.ContainsFunc(s.reasons, func(r Reason) bool { return !r.undecided }):
		s.Decision = Undecided
	case len(s.reasons) == 0 && (c.declared.Fulfilled(s.Reached, s.Properties) || s.excused) && (c.Policy == nil || c.matched):
		s.Decision = Pass
	}
	return s, used, nil
}

// short adds what the rows lack of what is declared to the subject's reasons.
func (c *check) short(f *found, s *Subject, res verify.Result) {
	nothing := false
	var last verify.Row
	for _, r := range res.Rows {
		if !r.AskedBy(c.declared) || r.Status == verify.Met || (r.ID == verify.RowExpectations && res.Candidate != nil) {
			continue
		}
		// One reason is enough where there is nothing to judge.
		if nothing {
			continue
		}
		reason := Reason{Code: CodeLevel, Requirement: r.ID, Message: fmt.Sprintf("%s (%s) %s: %s", r.Title, part(r), r.Status, r.Reason), Hint: r.Hint, undecided: f.untold()}
		if len(r.Evidence) > 0 {
			reason.Bundle, reason.Pointer = r.Evidence[0].Bundle, r.Evidence[0].Pointer
		}
		if r.AskedBy(c.rule.Level()) && c.waived(s, r.ID, &reason) {
			s.excused = true
			continue
		}
		// Nor do all the requirements of the source need saying one by one
		// where there is one cause.
		if r.Track == verify.TrackSource && last.Track == r.Track && last.Status == r.Status && last.Reason == r.Reason {
			continue
		}
		last = r
		nothing = res.Candidate == nil && r.ID == verify.RowExists
		s.reasons = append(s.reasons, reason)
	}
}

// ways leaves the way out where it is asked for, and makes it say what to do
// about evidence that is there and does not count.
func (f *found) ways(rows []verify.Row, declared verify.Demand) {
	for i := range rows {
		if !rows[i].AskedBy(declared) {
			rows[i].Hint = ""
		}
	}
	i := slices.IndexFunc(rows, func(r verify.Row) bool { return r.ID == verify.RowExists })
	if i < 0 || rows[i].Hint == "" {
		return
	}
	for _, e := range f.evidence {
		switch {
		case !verify.IsProvenance(e.PredicateType) || e.Accepted:
		case e.Code == verify.CodeBuilder:
			rows[i].Hint = "if this builder is to be trusted, add it to the policy"
			return
		case e.Code == verify.CodeRevocation:
			rows[i].Hint = "give the CA's newest certificate revocation list, or an OCSP response, for each certificate of the chain; or sign with --ocsp, which staples answers"
			return
		case e.Code == verify.CodeSignature:
			rows[i].Hint = "give the key that signed it, or have it built by a trusted builder"
		}
	}
}

// part names what a row is part of.
func part(r verify.Row) string {
	switch r.Track {
	case verify.TrackBuild:
		return fmt.Sprintf("Build L%d", r.Level)
	case verify.TrackSource:
		return fmt.Sprintf("Source L%d", r.Level)
	}
	return r.Property
}

// rests lists the bundles that levels and properties rest on.
func (c *check) rests(res verify.Result) []attest.Digest {
	var out []attest.Digest
	if res.Candidate != nil {
		out = append(out, res.Candidate.Bundle)
	}
	for _, r := range res.Rows {
		if r.Track == verify.TrackBuild || r.Status != verify.Met && !r.AskedBy(c.declared) {
			continue
		}
		for _, e := range r.Evidence {
			out = append(out, e.Bundle)
		}
	}
	return out
}

// trustDigest names the trust that a verdict was given under, whatever file it
// stood in: for caches, and to tell two verdicts apart.
func trustDigest(c *check) attest.Digest {
	lines := c.trust.Lines()
	slices.Sort(lines)
	lines = append(lines, fmt.Sprintf("builders %t unsigned %t declared %s", c.trust.Builders != nil, c.trust.Unsigned, c.declared))
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	return attest.Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// printable makes foreign text safe for a terminal and a line.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 600 {
		return strings.ToValidUTF8(s[:600], "") + "…"
	}
	return s
}
