package verify

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"

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

// Row is one requirement of the SLSA v1.2 Build track and its answer.
type Row struct {
	ID       string     `json:"id"`     // stable, for programs
	Level    int        `json:"level"`  // the lowest Build level that asks for it
	Title    string     `json:"title"`  // the specification's name for it
	Clause   string     `json:"clause"` // URL into the specification
	Status   Status     `json:"status"`
	Reason   string     `json:"reason"`
	Evidence []Evidence `json:"evidence,omitempty"`
}

// The IDs of the rows, in the order of the specification's table; the last is
// the verifier's own duty.
const (
	RowExists       = "provenance-exists"
	RowPlatform     = "build-platform"
	RowProcess      = "consistent-process"
	RowDistributed  = "provenance-distributed"
	RowExpectations = "expectations"
	RowAuthentic    = "provenance-authentic"
	RowHosted       = "hosted"
	RowUnforgeable  = "provenance-unforgeable"
	RowIsolated     = "isolated"
)

const (
	specRequirements = "https://slsa.dev/spec/v1.2/build-requirements#"
	specVerifying    = "https://slsa.dev/spec/v1.2/verifying-artifacts#"
)

type requirement struct {
	id     string
	level  int
	title  string
	clause string
}

// requirements lists what SLSA v1.2 asks for, lowest level first.
func requirements() []requirement {
	return []requirement{
		{RowExists, 1, "Provenance exists", specRequirements + "provenance-exists"},
		{RowPlatform, 1, "Appropriate build platform", specRequirements + "choose-an-appropriate-build-platform"},
		{RowProcess, 1, "Consistent build process", specRequirements + "follow-a-consistent-build-process"},
		{RowDistributed, 1, "Provenance distributed", specRequirements + "distribute-provenance"},
		{RowExpectations, 1, "Expectations match", specVerifying + "step-2-check-expectations"},
		{RowAuthentic, 2, "Provenance is authentic", specRequirements + "provenance-authentic"},
		{RowHosted, 2, "Hosted", specRequirements + "hosted"},
		{RowUnforgeable, 3, "Provenance is unforgeable", specRequirements + "provenance-unforgeable"},
		{RowIsolated, 3, "Isolated", specRequirements + "isolated"},
	}
}

// Candidate is one piece of provenance for the digest that is judged.
type Candidate struct {
	Bundle     attest.Digest
	Where      string // where it was found, in words
	Provenance *Provenance
	// Signer is nil for provenance whose signature nobody checked, or that has
	// none.
	Signer *Signer
	// Expected: a policy said what to expect. Problems is what was not so.
	Expected bool
	Problems []Problem
}

// Problem is one expectation that a piece of evidence does not meet.
type Problem struct {
	Code    string // stable, for programs
	Pointer string
	Message string
}

// Result is what one candidate carries.
type Result struct {
	Level     int // the highest level all of whose rows, and those below, are met
	Rows      []Row
	Candidate *Candidate // nil: there was none
}

// Assess computes the level of each candidate on its own and returns the best:
// pieces are never added up, so that a stranger's cannot lend or take away.
// Equal ones are told apart by digest, to give the same answer every time.
// Without any, why says what was found instead.
func Assess(t Trust, candidates []Candidate, why string) Result {
	best := Result{Rows: absent(why)}
	for i := range candidates {
		r := assess(t, &candidates[i])
		if best.Candidate == nil || better(r, best) {
			best = r
		}
	}
	return best
}

func better(a, b Result) bool {
	if a.Level != b.Level {
		return a.Level > b.Level
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

func absent(why string) []Row {
	var rows []Row
	for _, q := range requirements() {
		r := Row{ID: q.id, Level: q.level, Title: q.title, Clause: q.clause, Status: Unknown, Reason: "there is no provenance to tell it from"}
		switch q.id {
		case RowExists:
			r.Status, r.Reason = NotMet, why
		case RowDistributed:
			r.Status, r.Reason = NotMet, "none that counts is attached to this digest"
		}
		rows = append(rows, r)
	}
	return rows
}

func assess(t Trust, c *Candidate) Result {
	p := c.Provenance
	limit := Cap{Reason: "no signature on it was verified, so nobody vouches for its builder"}
	switch {
	case c.Signer != nil:
		limit = t.CapOf(*c.Signer, p)
	case t.Unsigned:
		limit = t.Cap(Signer{}, p.BuilderID.Value)
		limit.Level = 1
	}
	res := Result{Candidate: c}
	for _, q := range requirements() {
		r := Row{ID: q.id, Level: q.level, Title: q.title, Clause: q.clause}
		var pointers []string
		r.Status, r.Reason, pointers = answer(q.id, c, limit)
		for _, ptr := range pointers {
			r.Evidence = append(r.Evidence, Evidence{Bundle: c.Bundle, Pointer: ptr})
		}
		res.Rows = append(res.Rows, r)
	}
	for l := 1; l <= MaxLevel && holds(res.Rows, l); l++ {
		res.Level = l
	}
	// The rows of a level already ask for a cap that high. This line says the
	// rule itself: min(cap, evidence), whatever the rows become.
	res.Level = min(res.Level, limit.Level)
	return res
}

func holds(rows []Row, level int) bool {
	for _, r := range rows {
		if r.Level == level && r.Status != Met {
			return false
		}
	}
	return true
}

func answer(id string, c *Candidate, limit Cap) (Status, string, []string) {
	p := c.Provenance
	builder, kind, external := p.BuilderID.Pointer, p.BuildType.Pointer, p.ExternalPointer
	switch id {
	case RowExists:
		return Met, "it names this digest and says how it was built", []string{"/subject", kind, external}

	case RowPlatform:
		if limit.Level < 1 {
			return NotMet, limit.Reason, []string{builder}
		}
		if c.Signer == nil {
			return Met, "it names a builder; nobody vouches for it", []string{builder}
		}
		return Met, "built by " + clip(p.BuilderID.Value), []string{builder}

	case RowProcess:
		// Tekton's build types before v1 are no URIs, and known all the same.
		if u, err := url.Parse(p.BuildType.Value); p.Form == "" && (err != nil || u.Scheme == "") {
			return NotMet, fmt.Sprintf("buildType %q is not a URI, so its parameters mean nothing to a verifier", clip(p.BuildType.Value)), []string{kind}
		}
		return Met, "its buildType says what the parameters mean", []string{kind, external}

	case RowDistributed:
		return Met, "found as " + c.Where, []string{""}

	case RowExpectations:
		if len(c.Problems) > 0 {
			var ptrs []string
			for _, b := range c.Problems {
				ptrs = append(ptrs, b.Pointer)
			}
			more := ""
			if n := len(c.Problems) - 1; n > 0 {
				more = fmt.Sprintf(" (and %d more)", n)
			}
			return NotMet, c.Problems[0].Message + more, ptrs
		}
		if !c.Expected {
			return Met, "no policy was given, so nothing was expected", nil
		}
		return Met, "source, build type and parameters are those the policy expects", []string{external, kind}

	case RowAuthentic:
		switch {
		case c.Signer == nil:
			return NotMet, "no signature on it was verified", nil
		case limit.Unhosted:
			return NotMet, "the signature holds, but whoever ran the build also wrote the record", []string{builder}
		case limit.Level >= 2:
			return Met, "signed by " + signerName(*c.Signer) + ", trusted for this builder.id", []string{builder, ""}
		}
		return Unknown, notVouched(limit, 2), []string{builder}

	case RowHosted:
		switch {
		case limit.Unhosted:
			return NotMet, "builder.id says the build ran on a machine of somebody's own", []string{builder}
		case limit.SelfHosted:
			return NotMet, onSelfHosted, []string{cmp.Or(p.Runner.Pointer, builder)}
		case limit.Level >= 2:
			return Met, limit.Reason, []string{builder}
		}
		return Unknown, notVouched(limit, 2), []string{builder}

	case RowUnforgeable:
		switch {
		case c.Signer == nil:
			return NotMet, "no signature on it was verified", nil
		case limit.Unhosted:
			return NotMet, "the signing key is in the hands of whoever runs the build", []string{builder}
		case p.Incomplete != "":
			return NotMet, "it says itself that its external parameters are not complete", []string{p.Incomplete}
		case limit.Level >= 3:
			return Met, limit.Reason, []string{builder, external}
		}
		return Unknown, notVouched(limit, 3), []string{builder}

	case RowIsolated:
		switch {
		case p.CacheImports != "":
			return NotMet, "a build cache from elsewhere was used, and may have been poisoned", []string{p.CacheImports}
		case limit.Level >= 3:
			return Met, limit.Reason, []string{builder}
		}
		return Unknown, notVouched(limit, 3), []string{builder}
	}
	return Unknown, "waxseal does not know how to tell", nil
}

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
