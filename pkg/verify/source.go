package verify

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// IsSourceProvenance reports whether ParseSourceProvenance reads this predicate
// type.
func IsSourceProvenance(predicateType string) bool {
	return slices.Contains([]string{
		attestations.SourceProvenanceV1, attestations.SourceProvenanceDraft, attestations.TagProvenanceV1, attestations.TagProvenanceDraft,
	}, predicateType)
}

// SourceProvenance is what a source control system says of how a revision came
// to be on a branch, or of how a tag came to point to it.
type SourceProvenance struct {
	Repository string
	Ref        string // full: "refs/heads/main"
	Actor      string // who moved the branch, or made the tag
	Activity   string // how the branch moved: "push", "pr_merge"; "" for a tag
	CreatedOn  time.Time
	// Controls are those in force, with the time since which each has been
	// without a lapse.
	Controls map[string]time.Time
}

// sourceFields are the fields of the predicate as its first tool wrote them and
// as protobuf's JSON does; each stands in one spelling.
type sourceFields struct {
	Repo       string `json:"repo_uri"`
	RepoPB     string `json:"repoUri"`
	Activity   string `json:"activity_type"`
	ActivityPB string `json:"activityType"`
	Created    string `json:"created_on"`
	CreatedPB  string `json:"createdOn"`
	Actor      string `json:"actor"`
	Branch     string `json:"branch"`
	Tag        string `json:"tag"`
	Controls   []struct {
		Name  string `json:"name"`
		Since string `json:"since"`
	} `json:"controls"`
}

// ParseSourceProvenance reads the source or tag provenance of SLSA's
// source-tool strictly. An error is always a *Rejection.
// https://github.com/slsa-framework/source-tool/blob/main/docs/DESIGN.md#provenance
func ParseSourceProvenance(st *attest.Statement) (*SourceProvenance, error) {
	switch {
	case !IsSourceProvenance(st.PredicateType):
		return nil, rejectf(CodePredicate, "%q is not source provenance", clip(st.PredicateType))
	case len(st.Predicate) > attest.MaxSummary:
		return nil, rejectf(CodePredicate, "its source provenance has %d bytes, more than the %d allowed", len(st.Predicate), attest.MaxSummary)
	}
	p, err := parseSourceProvenance(st)
	if err != nil {
		return nil, rejectf(CodePredicate, "its source provenance cannot be read: %v", clip(err.Error()))
	}
	return p, nil
}

func parseSourceProvenance(st *attest.Statement) (*SourceProvenance, error) {
	var in sourceFields
	if err := attest.UnmarshalStrict(st.Predicate, &in); err != nil {
		return nil, err
	}
	p := &SourceProvenance{Actor: in.Actor, Controls: map[string]time.Time{}}
	var created string
	for _, f := range []struct {
		name     string
		to       *string
		old, new string
	}{
		{"repo_uri", &p.Repository, in.Repo, in.RepoPB},
		{"activity_type", &p.Activity, in.Activity, in.ActivityPB},
		{"created_on", &created, in.Created, in.CreatedPB},
	} {
		if f.old != "" && f.new != "" {
			return nil, fmt.Errorf(`"/predicate/%s" stands in two spellings`, f.name)
		}
		*f.to = f.old + f.new
	}
	tagged := st.PredicateType == attestations.TagProvenanceV1 || st.PredicateType == attestations.TagProvenanceDraft
	if p.Ref = in.Branch; tagged {
		p.Ref = in.Tag
	}
	switch {
	case p.Repository == "":
		return nil, errors.New(`"/predicate/repo_uri" is missing`)
	case !strings.HasPrefix(p.Ref, "refs/"):
		return nil, fmt.Errorf("the branch or tag %q is no full reference", clip(p.Ref))
	}
	var err error
	if p.CreatedOn, err = time.Parse(time.RFC3339, created); err != nil || p.CreatedOn.IsZero() {
		return nil, fmt.Errorf(`"/predicate/created_on" is %q, which is no time`, clip(created))
	}
	for i, c := range in.Controls {
		since, err := time.Parse(time.RFC3339, c.Since)
		if _, twice := p.Controls[c.Name]; c.Name == "" || twice || err != nil {
			return nil, fmt.Errorf(`"/predicate/controls/%d": %q since %q is no control, or stands twice`, i, clip(c.Name), clip(c.Since))
		}
		p.Controls[c.Name] = since
	}
	return p, nil
}

// ParseReview reads a review, strictly: no field may be there that its schema
// does not have. An error is always a *Rejection.
func ParseReview(st *attest.Statement) (*attestations.Review, error) {
	if len(st.Predicate) > attest.MaxSummary {
		return nil, rejectf(CodePredicate, "its review has %d bytes, more than the %d allowed", len(st.Predicate), attest.MaxSummary)
	}
	var r attestations.Review
	err := attest.UnmarshalStrict(st.Predicate, nil)
	if err == nil {
		err = attest.UnmarshalStrict(st.Predicate, &r)
	}
	if err == nil {
		dec := json.NewDecoder(bytes.NewReader(st.Predicate))
		dec.DisallowUnknownFields()
		err = dec.Decode(&attestations.Review{})
	}
	switch {
	case st.PredicateType != attestations.ReviewV1:
		err = fmt.Errorf("%q is not a review", clip(st.PredicateType))
	case err != nil:
	case !attest.IsCommit(r.Commit):
		err = fmt.Errorf(`"/predicate/commit" is %q, not the whole id of a commit`, clip(r.Commit))
	case r.Base != "" && !attest.IsCommit(r.Base):
		err = fmt.Errorf(`"/predicate/base" is %q, not the whole id of a commit`, clip(r.Base))
	case r.Repository == "":
		err = errors.New(`"/predicate/repository" is missing`)
	case r.Decision != attestations.ReviewApproved && r.Decision != attestations.ReviewRejected:
		err = fmt.Errorf(`"/predicate/decision" is %q, neither approved nor rejected`, clip(r.Decision))
	case r.ReviewedOn.IsZero():
		err = errors.New(`"/predicate/reviewedOn" is missing`)
	case slices.Contains(r.Authors, ""):
		err = errors.New(`"/predicate/authors" has an empty name`)
	}
	if err != nil {
		return nil, rejectf(CodePredicate, "its review cannot be read: %v", clip(err.Error()))
	}
	return &r, nil
}

// SourceRefs are the named references that a summary of a revision says it was
// on: the annotation of the subject that is the commit, in SLSA's spelling or
// in source-tool's. Two that differ are none.
// https://slsa.dev/spec/v1.2/verifying-source#step-2-check-expectations
func SourceRefs(st *attest.Statement, commit string) []string {
	var out []string
	for _, s := range st.Commits(commit) {
		var in struct {
			Refs  []string `json:"sourceRefs"`
			Older []string `json:"source_refs"`
		}
		if len(s.Annotations) == 0 {
			continue
		}
		if attest.UnmarshalStrict(s.Annotations, &in) != nil || in.Refs != nil && in.Older != nil && !slices.Equal(in.Refs, in.Older) {
			return nil
		}
		if in.Refs == nil {
			in.Refs = in.Older
		}
		out = append(out, in.Refs...)
	}
	return out
}

// Revision is the source that an accepted provenance names.
type Revision struct {
	Repository string
	Commit     string // "" where the provenance pins none, or not all of it
	Dirty      bool   // the built tree was not the commit's
	Provenance Evidence
	Builder    Signer // who signed the provenance
}

// RevisionOf is the source that a candidate was built from; false where its
// signature was not verified, or it names none.
func RevisionOf(c *Candidate) (Revision, bool) {
	if c.Signer == nil || len(c.Provenance.Sources) == 0 {
		return Revision{}, false
	}
	s := c.Provenance.Sources[0]
	r := Revision{Repository: s.Repository, Commit: s.Commit, Dirty: s.Dirty, Provenance: Evidence{c.Bundle, s.Pointer}, Builder: *c.Signer}
	if !attest.IsCommit(r.Commit) {
		r.Commit = ""
	}
	return r, true
}

// SourceSummary is a verification summary of the revision that counts.
type SourceSummary struct {
	Bundle attest.Digest
	Word   Word
}

// SourceRecord is source provenance of the revision that counts.
type SourceRecord struct {
	Bundle     attest.Digest
	Provenance *SourceProvenance
	MaxLevel   int  // what its signer is trusted for
	TwoParty   bool // its signer is believed about two-party review, at any level
}

// Reviewer is a person whose reviews count.
type Reviewer struct {
	Name    string
	Aliases []string // what else they are called, as the author of a commit
	// Builds: another signer that they are signed the build's provenance.
	Builds bool
}

// SourceReview is a review by a reviewer who is trusted.
type SourceReview struct {
	Bundle   attest.Digest
	Signer   Signer
	Reviewer Reviewer
	Review   *attestations.Review
}

// SourceEvidence is all that counts about one revision. Who may speak was asked
// before; what AssessSource sees is believed.
type SourceEvidence struct {
	Revision  Revision
	Summaries []SourceSummary
	Records   []SourceRecord
	Reviews   []SourceReview
	// Why says what was found instead, where there is nothing.
	Why string
	// MaxAge is how old a review may be; 0: any age. At is the moment of the
	// decision.
	MaxAge time.Duration
	At     time.Time
}

// AssessSource computes what the evidence about a revision shows. A level rests
// on one summary or one source provenance, never on several added up: on the
// one that carries most.
// https://slsa.dev/spec/v1.2/source-requirements
func AssessSource(e SourceEvidence) *SourceResult {
	r := e.Revision
	switch {
	case r.Dirty:
		return nowhere(r, "the built tree was not the commit's, so nothing that is said of the commit holds of it")
	case r.Commit == "":
		return nowhere(r, "the provenance pins no commit")
	}
	best := &SourceResult{Rows: []Row{}}
	var bundle attest.Digest
	for _, s := range e.Summaries {
		best, bundle = carriesMore(best, bundle, s.result(), s.Bundle)
	}
	for _, p := range e.Records {
		best, bundle = carriesMore(best, bundle, p.result(r), p.Bundle)
	}
	if !best.has(RowSourceRevision) {
		best.set(Row{ID: RowSourceRevision, Status: Met, Reason: "the provenance pins the commit " + r.Commit, Evidence: []Evidence{r.Provenance}})
	}
	best.twoParty(e)
	if bundle == "" && e.Why != "" {
		for _, q := range sourceRequirements() {
			if !best.has(q.ID) {
				best.Rows = append(best.Rows, Row{ID: q.ID, Status: Unknown, Reason: e.Why})
			}
		}
	}
	return best
}

// nowhere is the result for source that nothing can be said of.
func nowhere(r Revision, reason string) *SourceResult {
	out := &SourceResult{Why: reason}
	for _, q := range sourceRequirements() {
		out.Rows = append(out.Rows, Row{ID: q.ID, Status: Unknown, Reason: reason})
	}
	out.set(Row{ID: RowSourceRevision, Status: NotMet, Reason: reason, Evidence: []Evidence{r.Provenance}})
	out.set(Row{ID: RowTwoParty, Status: Unknown, Reason: reason})
	return out
}

func (s *SourceResult) has(id string) bool {
	return slices.ContainsFunc(s.Rows, func(r Row) bool { return r.ID == id })
}

// set puts a row in the place of the one with its id.
func (s *SourceResult) set(r Row) {
	s.Rows = append(slices.DeleteFunc(s.Rows, func(o Row) bool { return o.ID == r.ID }), r)
}

// carriesMore returns the better of two results, told apart by the bundle where
// they are equal.
func carriesMore(a *SourceResult, from attest.Digest, b *SourceResult, bundle attest.Digest) (*SourceResult, attest.Digest) {
	weigh := func(s *SourceResult) int {
		n := 1000*s.Level + met(s.Rows)
		if s.TwoParty {
			n += 100
		}
		return n
	}
	if wa, wb := weigh(a), weigh(b); from == "" || wb > wa || wb == wa && bundle < from {
		return b, bundle
	}
	return a, from
}

func (s SourceSummary) result() *SourceResult {
	out := &SourceResult{Level: s.Word.Source, Until: s.Word.Until}
	at := []Evidence{{Bundle: s.Bundle, Pointer: "/predicate/verifiedLevels"}}
	by := "by source VSA of " + clip(s.Word.VerifierID)
	for _, q := range sourceRequirements() {
		if q.Level <= s.Word.Source {
			out.Rows = append(out.Rows, Row{ID: q.ID, Status: Met, Reason: by, Evidence: at})
			continue
		}
		reason := fmt.Sprintf("the source VSA of %s carries Source L%d", clip(s.Word.VerifierID), s.Word.Source)
		if len(s.Word.Notes) > 0 {
			reason += ": " + strings.Join(s.Word.Notes, "; ")
		}
		out.Rows = append(out.Rows, Row{ID: q.ID, Status: Unknown, Reason: reason, Evidence: at})
	}
	// Source L4 is two-party review, for all that goes into a branch.
	if out.TwoParty = s.Word.Source >= 4 || slices.Contains(s.Word.Properties, PropertyTwoParty); out.TwoParty {
		out.set(Row{ID: RowTwoParty, Status: Met, Reason: by, Evidence: at})
	}
	return out
}

// shows says by which controls source provenance shows a requirement: all of
// one of the lists. No list: nothing in a revision could show it, and that the
// system does so is what it is trusted for.
func shows(id string) [][]string {
	switch id {
	case RowSourceAccess:
		return [][]string{{"SLSA_SOURCE_ORG_ACCESS_CONTROL"}, {"TAG_HYGIENE"}}
	case RowSourceHistory:
		return [][]string{{"SLSA_SOURCE_SCS_HISTORY"}, {"CONTINUITY_ENFORCED"}}
	case RowSourceContinuity:
		return [][]string{{"SLSA_SOURCE_SCS_CONTINUITY"}, {"CONTINUITY_ENFORCED"}}
	case RowSourceProvenance:
		return [][]string{{}} // it is
	case RowSourceControls:
		return [][]string{{"SLSA_SOURCE_ORG_CONTINUITY"}, {"CONTINUITY_ENFORCED", "PROVENANCE_AVAILABLE"}}
	case RowSourceProtected:
		return [][]string{{"SLSA_SOURCE_SCS_PROTECTED_REFS"}, {"CONTINUITY_ENFORCED", "TAG_HYGIENE"}}
	case RowSourceReview:
		return [][]string{{"SLSA_SOURCE_SCS_TWO_PARTY_REVIEW"}, {"REVIEW_ENFORCED"}}
	}
	return nil
}

// missing is the first of some controls that was not in force before the branch
// moved.
func (p SourceRecord) missing(names []string) string {
	for _, n := range names {
		if since, ok := p.Provenance.Controls[n]; !ok || since.After(p.Provenance.CreatedOn) {
			return n
		}
	}
	return ""
}

// unbelieved reports whether it says that two people reviewed, and is not
// believed about that.
func (p SourceRecord) unbelieved() bool {
	return !p.TwoParty && slices.ContainsFunc(shows(RowSourceReview), func(list []string) bool { return p.missing(list) == "" })
}

func (p SourceRecord) result(r Revision) *SourceResult {
	out := &SourceResult{}
	var two Row
	at := func(pointer string) []Evidence { return []Evidence{{Bundle: p.Bundle, Pointer: pointer}} }
	for _, q := range sourceRequirements() {
		row := Row{ID: q.ID, Evidence: at("/predicate/controls")}
		lists := shows(q.ID)
		var missing []string
		for _, list := range lists {
			m := p.missing(list)
			if m == "" {
				row.Status, row.Reason = Met, "in force when the revision came to "+clip(p.Provenance.Ref)+": "+strings.Join(list, ", ")
				break
			}
			missing = append(missing, m)
		}
		// The property may be claimed at any level:
		// https://slsa.dev/spec/v1.2/verified-properties#slsa_source_two_party_reviewed
		if q.ID == RowSourceReview && row.Status == Met && p.TwoParty {
			out.TwoParty = true
			two = Row{ID: RowTwoParty, Status: Met, Reason: row.Reason, Evidence: row.Evidence}
		}
		switch {
		case q.Level > p.MaxLevel:
			row.Status, row.Evidence = Unknown, nil
			row.Reason = fmt.Sprintf("trust in this source control system ends at Source L%d, this asks for L%d", p.MaxLevel, q.Level)
		case q.ID == RowSourceRevision:
			row.Status, row.Reason, row.Evidence = Met, "the provenance pins the commit "+r.Commit, []Evidence{r.Provenance}
		case q.ID == RowSourceRepository:
			row.Status, row.Reason, row.Evidence = Met, "source provenance and the build's name "+clip(p.Provenance.Repository), append(at("/predicate/repo_uri"), r.Provenance)
		case q.ID == RowSourceProvenance:
			row.Status, row.Reason, row.Evidence = Met, "this is source provenance", at("")
		case lists == nil:
			row.Status, row.Reason, row.Evidence = Met, fmt.Sprintf("the policy trusts this source control system up to Source L%d", p.MaxLevel), at("")
		case row.Status != Met:
			row.Status, row.Reason = NotMet, "source provenance lacks "+strings.Join(slices.Compact(missing), " or ")+", or it was not in force yet"
		}
		out.Rows = append(out.Rows, row)
	}
	var rows []Row
	for i, q := range sourceRequirements() {
		rows = append(rows, q.row(answer{status: out.Rows[i].Status}))
	}
	if out.Level = reached(rows, TrackSource, MaxSourceLevel); out.TwoParty {
		out.set(two)
	}
	return out
}

// twoParty weighs the reviews, where nothing else has shown that two people
// reviewed the revision.
// https://slsa.dev/spec/v1.2/source-requirements#two-party-review
func (s *SourceResult) twoParty(e SourceEvidence) {
	row := s.reviewed(e)
	if s.TwoParty {
		return
	}
	row.ID = RowTwoParty
	s.set(row)
	if row.Status != Met {
		return
	}
	s.TwoParty = true
	// Reviews do not show that the system demands them, so they carry no level.
	// The one who asks for Source L4 has to trust somebody for that.
}

// reviewed says whether two people other than the authors approved.
func (s *SourceResult) reviewed(e SourceEvidence) Row {
	approved, doubts, rejected := e.approvals()
	_, known := e.authors()
	because := ""
	if len(doubts) > 0 {
		because = ": " + strings.Join(doubts, "; ")
	}
	var at []Evidence
	var names []string
	for _, a := range approved {
		at, names = append(at, a.Evidence), append(names, a.Name)
	}
	row := Row{Status: Met, Evidence: at}
	switch {
	case rejected != nil:
		row = *rejected
	case len(e.Reviews) == 0:
		s.Why = "there is no review by somebody trusted"
		reason := "no source VSA or source provenance that counts shows it, and there is no review by somebody trusted"
		if slices.ContainsFunc(e.Records, SourceRecord.unbelieved) {
			reason = "source provenance says so, but trust.sources lists no such property of who signed it; and there is no review by somebody trusted"
		}
		return Row{Status: Unknown, Reason: reason}
	case !known && len(approved) >= 2:
		row.Status, row.Reason = Unknown, "who wrote it is not known, so nobody can tell that they did not review their own work"
	case len(approved) < 2:
		row.Status, row.Reason = NotMet, fmt.Sprintf("%d of the two reviewers that it takes approved it%s", len(approved), because)
	default:
		row.Reason = "approved by " + strings.Join(names[:2], " and ")
	}
	switch {
	case rejected != nil:
		s.Why = rejected.Reason
	case !known:
		s.Why = "who wrote it is not known, so nobody can tell that they did not review their own work"
	default:
		s.Approvals, s.Why = approved, strings.Join(doubts, "; ")
		for _, v := range e.Reviews {
			if until := v.Review.ReviewedOn.Add(e.MaxAge); e.MaxAge > 0 && !until.Before(e.At) && (s.Until.IsZero() || until.Before(s.Until)) {
				s.Until = until
			}
		}
	}
	return row
}

// approvals are those that count, one for each person, and why others do not;
// or the rejection by one of them.
func (e SourceEvidence) approvals() (approved []Approval, doubts []string, rejected *Row) {
	latest := map[string]SourceReview{}
	for _, v := range e.Reviews {
		name := fold(v.Reviewer.Name)
		old, ok := latest[name]
		if lesser, before := e.lesser(v), e.lesser(old); ok && lesser != before {
			if before {
				latest[name] = v
			}
			continue
		}
		if !ok || v.Review.ReviewedOn.After(old.Review.ReviewedOn) ||
			v.Review.ReviewedOn.Equal(old.Review.ReviewedOn) && v.Review.Decision == attestations.ReviewRejected {
			latest[name] = v
		}
	}
	authors, _ := e.authors()
	var by []Signer
	for _, name := range slices.Sorted(maps.Keys(latest)) {
		v := latest[name]
		who := clip(v.Reviewer.Name)
		here := Evidence{Bundle: v.Bundle, Pointer: "/predicate/decision"}
		if v.Review.Decision == attestations.ReviewRejected {
			return nil, nil, &Row{Status: NotMet, Reason: who + " rejected it", Evidence: []Evidence{here}}
		}
		if doubt := e.doubt(v, authors); doubt != "" {
			doubts = append(doubts, doubt)
			continue
		}
		if slices.ContainsFunc(by, func(s Signer) bool { return sameSigner(s, v.Signer) }) {
			doubts = append(doubts, who+" is who signed for another of them")
			continue
		}
		by = append(by, v.Signer)
		approved = append(approved, Approval{Name: who, Evidence: here})
	}
	return approved, doubts, nil
}

// lesser reports an approval that takes back nothing its reviewer has said: it is
// of a part, or not given yet.
func (e SourceEvidence) lesser(v SourceReview) bool {
	return v.Review != nil && v.Review.Decision == attestations.ReviewApproved && (len(v.Review.Scope) > 0 || v.Review.ReviewedOn.After(e.At.Add(ahead)))
}

// Doubt says why an approval does not count as one of the two; empty: it does,
// or it is a rejection, which always does.
func (e SourceEvidence) Doubt(v SourceReview) string {
	if v.Review.Decision == attestations.ReviewRejected {
		return ""
	}
	authors, _ := e.authors()
	return e.doubt(v, authors)
}

// Span is a time span as a policy writes it.
func Span(d time.Duration) string {
	if d >= 48*time.Hour && d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%dd", d/(24*time.Hour))
	}
	return strings.TrimSuffix(strings.TrimSuffix(d.String(), "0s"), "0m")
}

func (e SourceEvidence) doubt(v SourceReview, authors []string) string {
	who := clip(v.Reviewer.Name)
	switch {
	case v.Review.ReviewedOn.After(e.At.Add(ahead)):
		return "the review by " + who + " is still to come"
	case e.MaxAge > 0 && e.At.Sub(v.Review.ReviewedOn) > e.MaxAge:
		return fmt.Sprintf("the review by %s is older than the %s allowed", who, Span(e.MaxAge))
	case len(v.Review.Scope) > 0:
		return who + " looked at a part of it only"
	case v.Reviewer.Builds || sameSigner(v.Signer, e.Revision.Builder):
		return who + " also signs for the builder"
	case v.wrote(authors):
		return who + " is an author of it"
	}
	return ""
}

// authors are all who are said to have written the revision. They are known
// where every approval says who they are, or source provenance does.
func (e SourceEvidence) authors() (names []string, known bool) {
	known = len(e.Reviews) > 0
	for _, v := range e.Reviews {
		names = append(names, v.Review.Authors...)
		known = known && len(v.Review.Authors) > 0
	}
	for _, p := range e.Records {
		switch p.Provenance.Activity {
		case "pr_merge", "merge_queue_merge", "":
			// Whoever merged or tagged may well be a reviewer.
		case "push", "force_push":
			names, known = append(names, p.Provenance.Actor), known || p.Provenance.Actor != ""
		default:
			names = append(names, p.Provenance.Actor)
		}
	}
	return names, known
}

// wrote reports whether the reviewer is one of the authors, under any of their
// names.
func (v SourceReview) wrote(authors []string) bool {
	mine := append([]string{v.Reviewer.Name, v.Signer.SAN}, v.Reviewer.Aliases...)
	for _, a := range authors {
		for _, m := range mine {
			if m != "" && fold(a) == fold(m) {
				return true
			}
		}
	}
	return false
}

// fold is what two spellings of a name have in common.
func fold(name string) string { return strings.ToLower(strings.TrimSpace(name)) }

func sameSigner(a, b Signer) bool {
	return a.Key == b.Key && a.SAN == b.SAN && a.Issuer == b.Issuer && a.anchor == b.anchor
}

// RepositoryURL is a repository's address without what says how or which
// revision: "https://host/owner/name". Empty: it is no address.
func RepositoryURL(s string) string { return canonicalRepository(s) }
