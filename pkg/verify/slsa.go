package verify

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Status is what the evidence says about one requirement.
type Status string

// The statuses of a Row. Only Met carries a level.
const (
	Met     Status = "met"
	NotMet  Status = "not met"
	Unknown Status = "cannot be told"
)

// Evidence is where a row's answer can be read: a bundle by digest, and the
// JSON pointer from the top of its statement. An empty pointer is the whole
// statement.
type Evidence struct {
	Bundle  attest.Digest `json:"bundle"`
	Pointer string        `json:"pointer"`
}

// Row is one requirement and its answer.
type Row struct {
	ID       string     `json:"id"` // of a Requirement, as the next five
	Track    Track      `json:"track"`
	Level    int        `json:"level,omitempty"`
	Property string     `json:"property,omitempty"`
	Title    string     `json:"title"`
	Clause   string     `json:"clause"`
	Status   Status     `json:"status"`
	Reason   string     `json:"reason"`
	Evidence []Evidence `json:"evidence,omitempty"`
	Hint     string     `json:"hint,omitempty"` // the shortest way to get it, where it is not met
}

// answer is what a check says. Without a reason it is the requirement's own
// words.
type answer struct {
	status   Status
	reason   string
	evidence []Evidence
	way      string // to get it, where there is a shorter one than the requirement's
}

func say(s Status, reason string, evidence ...Evidence) answer {
	return answer{status: s, reason: reason, evidence: evidence}
}

// by is the answer with a way to get what it lacks.
func (a answer) by(way string) answer {
	a.way = way
	return a
}

// row is the requirement with an answer.
func (q *Requirement) row(a answer) Row {
	r := Row{
		ID: q.ID, Track: q.Track, Level: q.Level, Property: q.Property, Title: q.Title, Clause: q.Clause,
		Status: a.status, Reason: a.reason, Evidence: a.evidence,
	}
	switch r.Status {
	case Met:
		r.Reason = cmp.Or(r.Reason, q.Met)
		return r
	case NotMet:
		r.Reason = cmp.Or(r.Reason, q.NotMet)
	default:
		r.Status, r.Reason = Unknown, cmp.Or(r.Reason, q.Unknown)
	}
	r.Hint = cmp.Or(a.way, q.Way)
	return r
}

// Candidate is one piece of provenance for the digest that is judged.
type Candidate struct {
	Bundle     attest.Digest
	Where      string // where it was found, in words
	Provenance *Provenance
	// Claim is the digest of what it says as JSON values, the same whoever signs
	// it and however it is spaced.
	Claim attest.Digest
	// Signer is nil for provenance whose signature nobody checked, or that has
	// none.
	Signer *Signer
	// Expected: a policy said what to expect. Problems is what was not so.
	Expected bool
	Problems []Problem
	// Inputs is the record of inputs that this provenance names by digest and
	// that the same signer made; nil without one, and NoInputs then says why,
	// where there is more to say than that.
	Inputs   *InputsRecord
	NoInputs string
	// Source is what the evidence about the commit it names says; nil when
	// there is none.
	Source *SourceResult
}

// InputsRecord is a record of inputs and the bundle it was found in.
type InputsRecord struct {
	Bundle attest.Digest
	Inputs *attestations.Inputs
}

// SourceResult is what verified evidence about a source revision says. A row
// needs no more than its ID, status, reason and evidence; a requirement of the
// Source track without a row cannot be told.
type SourceResult struct {
	Level    int  // the highest that the evidence supports: 0 to 4
	TwoParty bool // SLSA_SOURCE_TWO_PARTY_REVIEWED is verified
	Rows     []Row
	// Until is when the first of the reviews that it rests on grows too old;
	// zero: never.
	Until time.Time
	// Approvals are those that count, one for each person, by name; none where
	// somebody rejects the revision or its authors are not known. Why says why
	// others do not count.
	Approvals []Approval
	Why       string
}

// Approval is one person's approval of a revision.
type Approval struct {
	Name     string
	Evidence Evidence
}

// Rebuild is somebody's word, signed and of a type that was read, that they
// built the digest that is judged as well.
type Rebuild struct {
	Bundle    attest.Digest
	Signer    Signer
	BuilderID Field
	// Problem is why it does not show that; empty: it does.
	Problem string
}

// Problem is one expectation that a piece of evidence does not meet.
type Problem struct {
	Code    string // stable, for programs
	Pointer string
	Message string
	Hint    string // what to do; "" for what goes for all
	// Unsaid: the provenance does not say the branch or tag. Evidence about the
	// commit that counts says it as well.
	Unsaid bool
}

// Findings are what Assess weighs.
type Findings struct {
	Candidates []Candidate
	// Why says what was found instead, where there is no candidate.
	Why string
	// Rebuilds are what others say who built the same digest, beside the
	// candidates.
	Rebuilds []Rebuild
	// Platforms are the rows of what an index holds. Steps are theirs, so the
	// index has of the properties of steps what the worst of them has.
	Platforms []Platform
	// Asked is what the image must carry. It changes no answer: of several
	// candidates, one that carries all of it is taken.
	Asked Demand
	// Unread are the properties whose evidence was not looked at, because nothing
	// asks for them.
	Unread []string
}

func (f Findings) unread(property string) bool { return slices.Contains(f.Unread, property) }

// Platform is what was found of one platform of an index.
type Platform struct {
	Name string
	Rows []Row
}

// Result is what one candidate carries.
type Result struct {
	// Levels are the highest whose rows, and those below, are all met.
	Levels
	Properties []string   // those that are verified, by their names in a VSA
	Rows       []Row      // one for each of Requirements, in that order
	Candidate  *Candidate // nil: there was none
}

// Assess computes what each candidate carries on its own and returns the best:
// pieces are never added up, so that a stranger's cannot lend or take away.
// Equal ones are told apart by digest, to give the same answer every time.
func Assess(t Trust, f Findings) Result {
	qs := Requirements()
	best := Result{Rows: absent(qs, f.Why)}
	for i := range f.Candidates {
		r := assess(qs, t, f, &f.Candidates[i])
		if best.Candidate == nil || better(r, best, f.Asked) {
			best = r
		}
	}
	return best
}

func better(a, b Result, asked Demand) bool {
	if fa, fb := asked.Fulfilled(a.Levels, a.Properties), asked.Fulfilled(b.Levels, b.Properties); fa != fb {
		return fa
	}
	if a.Build != b.Build {
		return a.Build > b.Build
	}
	if na, nb := len(a.Candidate.Problems), len(b.Candidate.Problems); na != nb {
		return na < nb
	}
	if ma, mb := met(a.Rows), met(b.Rows); ma != mb {
		return ma > mb
	}
	return a.Candidate.Bundle < b.Candidate.Bundle
}

func met(rows []Row) int {
	n := 0
	for _, r := range rows {
		if r.Status == Met {
			n++
		}
	}
	return n
}

func absent(qs []Requirement, why string) []Row {
	var rows []Row
	for i := range qs {
		q := &qs[i]
		a := answer{status: Unknown, reason: "there is no provenance to tell it from"}
		switch q.ID {
		case RowExists:
			a = answer{status: NotMet, reason: why}
		case RowDistributed:
			a = answer{status: NotMet}
		}
		rows = append(rows, q.row(a))
	}
	return rows
}

// weighing is one candidate under one trust.
type weighing struct {
	*Candidate
	trust    Trust
	limit    Cap
	findings Findings
	inputs   *attestations.Inputs // see record
	without  answer
}

func assess(qs []Requirement, t Trust, f Findings, c *Candidate) Result {
	w := weighing{Candidate: c, trust: t, findings: f}
	w.limit = Cap{Reason: "no signature on it was verified, so nobody vouches for its builder"}
	switch {
	case c.Signer != nil:
		w.limit = t.CapOf(*c.Signer, c.Provenance)
	case t.Unsigned:
		w.limit = t.Cap(Signer{}, c.Provenance.BuilderID.Value)
		w.limit.Level = 1
	}
	w.inputs, w.without = w.record()
	res := Result{Candidate: c, Rows: make([]Row, 0, len(qs))}
	for i := range qs {
		q := &qs[i]
		var r Row
		if q.check != nil {
			r = q.row(q.check(&w))
		} else {
			r = q.row(w.source(q.ID))
		}
		res.Rows = append(res.Rows, r)
		if r.Property != "" && r.Status == Met {
			res.Properties = append(res.Properties, r.Property)
		}
	}
	// The rows of a level already ask for a cap that high. This says the rule
	// itself: min(cap, evidence), whatever the rows become.
	res.Build = min(reached(res.Rows, TrackBuild, MaxLevel), w.limit.Level)
	if c.Source != nil {
		res.Source = min(reached(res.Rows, TrackSource, MaxSourceLevel), c.Source.Level)
	}
	return res
}

// reached is the highest level of a track with all rows met up to it.
func reached(rows []Row, track Track, most int) int {
	for _, r := range rows {
		if r.Track == track && r.Status != Met {
			most = min(most, r.Level-1)
		}
	}
	return most
}

// in is where in the candidate's own statement an answer can be read.
func (w *weighing) in(pointers ...string) []Evidence {
	var out []Evidence
	for _, p := range pointers {
		out = append(out, Evidence{Bundle: w.Bundle, Pointer: p})
	}
	return out
}

func checkExists(w *weighing) answer {
	p := w.Provenance
	if p.Compares() {
		return say(NotMet, "it says that artifacts are alike, and not how one was built", w.in(p.BuildType.Pointer)...)
	}
	return say(Met, "it names this digest and says how it was built", w.in("/subject", p.BuildType.Pointer, p.ExternalPointer)...)
}

func checkPlatform(w *weighing) answer {
	at := w.in(w.Provenance.BuilderID.Pointer)
	switch {
	case w.limit.Level < 1:
		return say(NotMet, w.limit.Reason, at...)
	case w.Signer == nil:
		return say(Met, "it names a builder; nobody vouches for it", at...)
	}
	return say(Met, "built by "+clip(w.Provenance.BuilderID.Value), at...)
}

func checkProcess(w *weighing) answer {
	kind := w.Provenance.BuildType
	// Tekton's build types before v1 are no URIs, and known all the same.
	if u, err := url.Parse(kind.Value); w.Provenance.Form == "" && (err != nil || u.Scheme == "") {
		return say(NotMet, fmt.Sprintf("buildType %q is not a URI, so its parameters mean nothing to a verifier", clip(kind.Value)), w.in(kind.Pointer)...)
	}
	return say(Met, "its buildType says what the parameters mean", w.in(kind.Pointer, w.Provenance.ExternalPointer)...)
}

func checkDistributed(w *weighing) answer {
	return say(Met, "found as "+w.Where, w.in("")...)
}

func checkExpectations(w *weighing) answer {
	switch {
	case len(w.Problems) > 0:
		var pointers []string
		for _, b := range w.Problems {
			pointers = append(pointers, b.Pointer)
		}
		more := ""
		if n := len(w.Problems) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more)", n)
		}
		return say(NotMet, w.Problems[0].Message+more, w.in(pointers...)...)
	case !w.Expected:
		return say(Met, "no policy was given, so nothing was expected")
	}
	return say(Met, "source, build type and parameters are those the policy expects", w.in(w.Provenance.ExternalPointer, w.Provenance.BuildType.Pointer)...)
}

func checkAuthentic(w *weighing) answer {
	builder := w.Provenance.BuilderID.Pointer
	switch {
	case w.Signer == nil:
		return say(NotMet, "no signature on it was verified")
	case w.limit.Unhosted:
		return say(NotMet, "the signature holds, but whoever ran the build also wrote the record", w.in(builder)...)
	case w.limit.Level >= 2:
		return say(Met, "signed by "+signerName(*w.Signer)+", trusted for this builder.id", w.in(builder, "")...)
	}
	return say(Unknown, notVouched(w.limit, 2), w.in(builder)...)
}

func checkHosted(w *weighing) answer {
	at := w.in(w.Provenance.BuilderID.Pointer)
	switch {
	case w.limit.Unhosted:
		return say(NotMet, "builder.id says the build ran on a machine of somebody's own", at...)
	case w.limit.SelfHosted:
		return say(NotMet, onSelfHosted, w.in(cmp.Or(w.Provenance.Runner.Pointer, w.Provenance.BuilderID.Pointer))...)
	case w.limit.Level >= 2:
		return say(Met, w.limit.Reason, at...)
	}
	return say(Unknown, notVouched(w.limit, 2), at...)
}

func checkUnforgeable(w *weighing) answer {
	builder := w.Provenance.BuilderID.Pointer
	switch {
	case w.Signer == nil:
		return say(NotMet, "no signature on it was verified")
	case w.limit.Unhosted:
		return say(NotMet, "the signing key is in the hands of whoever runs the build", w.in(builder)...)
	case w.Provenance.Incomplete != "":
		return say(NotMet, "it says itself that its external parameters are not complete", w.in(w.Provenance.Incomplete)...).by("have the builder write down all external parameters, and say so")
	case w.limit.Level >= 3:
		return say(Met, w.limit.Reason, w.in(builder, w.Provenance.ExternalPointer)...)
	}
	return say(Unknown, notVouched(w.limit, 3), w.in(builder)...)
}

func checkIsolated(w *weighing) answer {
	at := w.in(w.Provenance.BuilderID.Pointer)
	switch {
	case w.Provenance.CacheImports != "":
		return say(NotMet, "a build cache from elsewhere was used, and may have been poisoned", w.in(w.Provenance.CacheImports)...).by("build it without --cache-from")
	case w.limit.Level >= 3:
		return say(Met, w.limit.Reason, at...)
	}
	return say(Unknown, notVouched(w.limit, 3), at...)
}

// unvouched says why what the provenance names says nothing of the image: nobody
// trusted says that it names the right things.
func (w *weighing) unvouched() string {
	switch {
	case w.Signer == nil:
		return "no signature on the provenance was verified, so nobody vouches for what it names"
	case w.limit.Level < 1:
		return w.limit.Reason
	}
	return ""
}

// source is the answer that came with the candidate for a requirement of the
// Source track.
func (w *weighing) source(id string) answer {
	if w.Source == nil {
		if w.findings.unread(PropertyTwoParty) && w.findings.Asked.Source == 0 {
			return say(Unknown, unread)
		}
		return say(Unknown, "no evidence about the source")
	}
	if why := w.unvouched(); why != "" {
		return say(Unknown, why)
	}
	for _, r := range w.Source.Rows {
		if r.ID == id {
			return say(r.Status, r.Reason, r.Evidence...).by(r.Hint)
		}
	}
	return answer{status: Unknown, reason: silent}
}

const silent = "the evidence about the source does not say"

func notVouched(limit Cap, level int) string {
	if limit.Level < 1 && limit.Reason != "" {
		return limit.Reason
	}
	if limit.Lowered != "" {
		return limit.Lowered
	}
	return fmt.Sprintf("evidence cannot show it: trust in this builder ends at Build L%d, this asks for L%d", limit.Level, level)
}

func signerName(s Signer) string {
	switch {
	case s.SAN != "":
		return s.String()
	case s.Name != "":
		return clip(s.Name)
	}
	return Short(s.Key)
}

// canonicalID is what two ids have in common that a person takes for equal.
func canonicalID(id string) string {
	return strings.ToLower(strings.TrimRight(id, "/"))
}
