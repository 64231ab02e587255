package verify_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	commitID = "1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a"
	repo     = "https://git.example/acme/app"
)

// sourceProvenance is what source-tool writes, with controls in force since
// before the branch moved.
func sourceProvenance(activity string, controls ...string) string {
	var list []string
	for _, c := range controls {
		list = append(list, fmt.Sprintf(`{"name":%q,"since":"2025-01-01T00:00:00Z"}`, c))
	}
	return fmt.Sprintf(`{"activity_type":%q,"actor":"carol","branch":"refs/heads/main","controls":[%s],"created_on":"2026-01-01T00:00:00Z","prev_commit":"","repo_uri":%q}`,
		activity, strings.Join(list, ","), repo)
}

func TestParseSourceProvenance(t *testing.T) {
	good := sourceProvenance("push", "CONTINUITY_ENFORCED")
	for _, c := range []struct{ name, kind, predicate, bad string }{
		{"as it was first written", attestations.SourceProvenanceDraft, good, ""},
		{"as it is written now", attestations.SourceProvenanceV1, strings.NewReplacer("repo_uri", "repoUri", "created_on", "createdOn", "activity_type", "activityType", "prev_commit", "prevCommit").Replace(good), ""},
		{"without controls", attestations.SourceProvenanceV1, sourceProvenance("push"), ""},
		{"of a tag", attestations.TagProvenanceDraft, `{"actor":"carol","controls":[],"created_on":"2026-01-01T00:00:00Z","repo_uri":"` + repo + `","tag":"refs/tags/v1","vsa_summaries":[{"source_refs":["refs/heads/main"],"verifiedLevels":["SLSA_SOURCE_LEVEL_4"]}]}`, ""},
		{"two spellings", attestations.SourceProvenanceV1, strings.Replace(good, "{", `{"repoUri":"https://git.example/acme/evil",`, 1), "two spellings"},
		{"a key in another case", attestations.SourceProvenanceV1, strings.Replace(good, `"actor"`, `"Actor"`, 1), "spelled"},
		{"a key twice", attestations.SourceProvenanceV1, strings.Replace(good, "{", `{"actor":"a",`, 1), "duplicate"},
		{"no repository", attestations.SourceProvenanceV1, strings.Replace(good, `"repo_uri"`, `"repo"`, 1), "repo_uri"},
		{"a short branch", attestations.SourceProvenanceV1, strings.Replace(good, "refs/heads/main", "main", 1), "no full reference"},
		{"a tag's for a branch's", attestations.TagProvenanceV1, good, "no full reference"},
		{"no time", attestations.SourceProvenanceV1, strings.Replace(good, "2026-01-01T00:00:00Z", "", 1), "created_on"},
		{"a control without a time", attestations.SourceProvenanceV1, strings.Replace(good, "2025-01-01T00:00:00Z", "", 1), "controls/0"},
		{"a control twice", attestations.SourceProvenanceV1, sourceProvenance("push", "A", "B", "A"), "controls/2"},
		{"another type", attestations.ProvenanceV1, good, "not source provenance"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := verify.ParseSourceProvenance(&attest.Statement{PredicateType: c.kind, Predicate: json.RawMessage(c.predicate)})
			var r *verify.Rejection
			switch {
			case c.bad == "" && (err != nil || p.Repository != repo || p.Actor != "carol" || p.CreatedOn.IsZero() || !strings.HasPrefix(p.Ref, "refs/")):
				t.Errorf("%+v, %v", p, err)
			case c.bad != "" && (!errors.As(err, &r) || r.Code != verify.CodePredicate || !strings.Contains(r.Message, c.bad)):
				t.Errorf("%+v, %v; want %q", p, err, c.bad)
			}
		})
	}
}

func review(decision, when string, more ...string) string {
	return fmt.Sprintf(`{"repository":%q,"commit":%q,"decision":%q,"reviewedOn":%q%s}`, repo, commitID, decision, when, strings.Join(more, ""))
}

func TestParseReview(t *testing.T) {
	good := review("approved", "2026-01-02T00:00:00Z", `,"authors":["carol"],"comment":"fine"`)
	for _, c := range []struct{ name, kind, predicate, bad string }{
		{"all of it", attestations.ReviewV1, good, ""},
		{"an unknown field", attestations.ReviewV1, strings.Replace(good, "{", `{"more":1,`, 1), "more"},
		{"a key in another case", attestations.ReviewV1, strings.Replace(good, `"decision"`, `"Decision"`, 1), "spelled"},
		{"a key twice", attestations.ReviewV1, strings.Replace(good, "{", `{"decision":"rejected",`, 1), "duplicate"},
		{"half a commit", attestations.ReviewV1, strings.Replace(good, commitID, commitID[:12], 1), "commit"},
		{"no decision", attestations.ReviewV1, review("", "2026-01-02T00:00:00Z"), "decision"},
		{"no time", attestations.ReviewV1, strings.Replace(good, `"reviewedOn":"2026-01-02T00:00:00Z",`, "", 1), "reviewedOn"},
		{"an author without a name", attestations.ReviewV1, strings.Replace(good, `"carol"`, `""`, 1), "authors"},
		{"another type", attestations.VSAV1, good, "not a review"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := verify.ParseReview(&attest.Statement{PredicateType: c.kind, Predicate: json.RawMessage(c.predicate)})
			if (err == nil) != (c.bad == "") || err != nil && !strings.Contains(err.Error(), c.bad) {
				t.Errorf("%+v, %v; want %q", r, err, c.bad)
			}
		})
	}
}

func TestSourceRefs(t *testing.T) {
	for annotations, want := range map[string]string{
		`{"sourceRefs":["refs/heads/main","refs/tags/v1"]}`: "refs/heads/main refs/tags/v1",
		`{"source_refs":["refs/heads/main"]}`:               "refs/heads/main",
		`{"sourceRefs":["a"],"source_refs":["a"]}`:          "a",
		`{"sourceRefs":["a"],"source_refs":["b"]}`:          "",
		`{"SourceRefs":["a"]}`:                              "",
		`{"sourceRefs":"a"}`:                                "",
		`{"sourceRefs":["a"],"sourceRefs":["b"]}`:           "",
		`{}`:   "",
		`null`: "",
	} {
		st := &attest.Statement{Subject: []attest.Subject{
			{Digest: map[string]string{"gitCommit": strings.Repeat("b", 40)}, Annotations: json.RawMessage(`{"sourceRefs":["refs/heads/other"]}`)},
			{Digest: map[string]string{"gitCommit": commitID}, Annotations: json.RawMessage(annotations)},
		}}
		if got := strings.Join(verify.SourceRefs(st, commitID), " "); got != want {
			t.Errorf("%s: %q", annotations, got)
		}
	}
}

// known is evidence about the revision that is judged.
type known struct {
	verify.SourceEvidence
	t *testing.T
}

func evidence(t *testing.T) *known {
	return &known{verify.SourceEvidence{
		Revision: verify.Revision{Repository: repo, Commit: commitID, Provenance: verify.Evidence{Bundle: "sha256:p", Pointer: "/p"}, Builder: verify.Signer{Key: k1}},
		At:       time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC), Why: "nothing is said",
	}, t}
}

func (k *known) summary(level int, properties ...string) *known {
	k.Summaries = append(k.Summaries, verify.SourceSummary{Bundle: "sha256:s", Word: verify.Word{VerifierID: "https://v.example/v", Source: level, Properties: properties}})
	return k
}

func (k *known) record(most int, activity string, controls ...string) *known {
	p, err := verify.ParseSourceProvenance(&attest.Statement{PredicateType: attestations.SourceProvenanceV1, Predicate: []byte(sourceProvenance(activity, controls...))})
	if err != nil {
		k.t.Fatal(err)
	}
	k.Records = append(k.Records, verify.SourceRecord{Bundle: "sha256:r", Provenance: p, MaxLevel: most, TwoParty: most == 4})
	return k
}

// believed lets the source provenance count for two-party review.
func (k *known) believed() *known {
	k.Records[0].TwoParty = true
	return k
}

// review is by somebody with a key of their own, two aliases to a name.
func (k *known) review(name, decision, when string, more ...string) *known {
	r, err := verify.ParseReview(&attest.Statement{PredicateType: attestations.ReviewV1, Predicate: []byte(review(decision, when, more...))})
	if err != nil {
		k.t.Fatal(err)
	}
	k.Reviews = append(k.Reviews, verify.SourceReview{
		Bundle: attest.Digest("sha256:" + name), Signer: verify.Signer{Key: attest.Digest("key of " + name)},
		Reviewer: verify.Reviewer{Name: name, Aliases: []string{name + "@acme.example", "the-" + name}}, Review: r,
	})
	return k
}

func TestAssessSource(t *testing.T) {
	all := []string{"CONTINUITY_ENFORCED", "TAG_HYGIENE", "PROVENANCE_AVAILABLE", "REVIEW_ENFORCED"}
	now := []string{"SLSA_SOURCE_ORG_ACCESS_CONTROL", "SLSA_SOURCE_SCS_HISTORY", "SLSA_SOURCE_SCS_CONTINUITY", "SLSA_SOURCE_ORG_CONTINUITY", "SLSA_SOURCE_SCS_PROTECTED_REFS", "SLSA_SOURCE_SCS_TWO_PARTY_REVIEW"}
	dirty := evidence(t).summary(4)
	dirty.Revision.Dirty = true
	unpinned := evidence(t).summary(4)
	unpinned.Revision.Commit = ""
	late := evidence(t).record(4, "push", all...)
	late.Records[0].Provenance.CreatedOn = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name  string
		known *known
		level int
		two   bool
		row   string // of a requirement
		says  string // its status and reason hold this
	}{
		{"nothing", evidence(t), 0, false, verify.RowSourceSystem, "cannot be told nothing is said"},
		{"a summary", evidence(t).summary(3), 3, false, verify.RowSourceProtected, "met by source VSA of https://v.example/v"},
		{"and no further", evidence(t).summary(3), 3, false, verify.RowSourceReview, "cannot be told the source VSA of https://v.example/v carries Source L3"},
		{"level 4 is two-party review", evidence(t).summary(4), 4, true, verify.RowTwoParty, "met by source VSA"},
		{"the property at level 1", evidence(t).summary(1, verify.PropertyTwoParty), 1, true, verify.RowTwoParty, "met by source VSA"},
		{"a summary that carries nothing", evidence(t).summary(0), 0, false, verify.RowSourceSystem, "cannot be told"},
		{"a dirty tree", dirty, 0, false, verify.RowSourceRevision, "not met the built tree was not the commit's"},
		{"no commit", unpinned, 0, false, verify.RowSourceRevision, "not met the provenance pins no commit"},
		{"source provenance", evidence(t).record(3, "push", all[:3]...), 3, false, verify.RowSourceContinuity, "met in force when the revision came to refs/heads/main: CONTINUITY_ENFORCED"},
		{"with its newer names", evidence(t).record(4, "pr_merge", now...), 4, true, verify.RowSourceReview, "met in force"},
		{"every control, of a system trusted to L3", evidence(t).record(3, "push", all...).believed(), 3, true, verify.RowSourceReview, "cannot be told trust in this source control system ends at Source L3"},
		{"and not believed about reviews", evidence(t).record(3, "push", all...), 3, false, verify.RowTwoParty, "cannot be told source provenance says so, but trust.sources lists no such property"},
		{"believed about reviews that it does not say", evidence(t).record(3, "push", all[:3]...).believed(), 3, false, verify.RowTwoParty, "cannot be told no source VSA or source provenance that counts"},
		{"of a system trusted to L1", evidence(t).record(1, "push", all...).believed(), 1, true, verify.RowSourceExpunging, "cannot be told trust in this source control system ends at Source L1, this asks for L2"},
		{"without protected tags", evidence(t).record(3, "push", "CONTINUITY_ENFORCED", "PROVENANCE_AVAILABLE"), 1, false, verify.RowSourceAccess, "not met source provenance lacks SLSA_SOURCE_ORG_ACCESS_CONTROL or TAG_HYGIENE"},
		{"without anything", evidence(t).record(4, "push"), 1, false, verify.RowSourceHistory, "not met source provenance lacks"},
		{"controls of after it moved", late, 1, false, verify.RowSourceHistory, "or it was not in force yet"},
		{"the better of both", evidence(t).record(4, "push").summary(2), 2, false, verify.RowSourceHistory, "met by source VSA"},
		{"not both added up", evidence(t).record(3, "push", "REVIEW_ENFORCED").summary(3), 3, false, verify.RowSourceReview, "cannot be told"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := verify.AssessSource(c.known.SourceEvidence)
			if res.Level != c.level || res.TwoParty != c.two {
				t.Errorf("level %d, two %t", res.Level, res.TwoParty)
			}
			i := slices.IndexFunc(res.Rows, func(r verify.Row) bool { return r.ID == c.row })
			if i < 0 {
				t.Fatalf("no row %s", c.row)
			}
			if got := string(res.Rows[i].Status) + " " + res.Rows[i].Reason; !strings.Contains(got, c.says) {
				t.Errorf("%s: %s; want %q", c.row, got, c.says)
			}
			seen, open := map[string]bool{}, false
			for _, r := range res.Rows {
				open = open || r.ID != verify.RowTwoParty && r.Status != verify.Met
				if seen[r.ID] || r.Reason == "" || r.Status == verify.Met && len(r.Evidence) == 0 {
					t.Errorf("row %+v", r)
				}
				seen[r.ID] = true
			}
			if !open && res.Level < verify.MaxSourceLevel {
				t.Error("every row is met, and the level is not the highest")
			}
		})
	}
}

func TestTwoPartyReview(t *testing.T) {
	const by = `,"authors":["carol"]`
	const day, later = "2026-01-02T00:00:00Z", "2026-01-03T00:00:00Z"
	both := func(more ...string) *known {
		return evidence(t).review("ann", "approved", day, more...).review("bob", "approved", day, more...)
	}
	builder := both(by)
	builder.Revision.Builder = verify.Signer{Key: "key of ann"}
	renamed := both(by)
	renamed.Reviews[1].Signer = renamed.Reviews[0].Signer
	old := both(by)
	old.MaxAge = 24 * time.Hour
	for _, c := range []struct {
		name  string
		known *known
		says  string // status and reason of the property's row
	}{
		{"two", both(by), "met approved by ann and bob"},
		{"one", evidence(t).review("ann", "approved", day, by), "not met 1 of the two reviewers that it takes approved it"},
		{"one, twice", evidence(t).review("ann", "approved", day, by).review("ann", "approved", later, by), "not met 1 of the two"},
		{"one, in another case", evidence(t).review("ann", "approved", day, by).review("Ann", "approved", later, by), "not met 1 of the two"},
		{"none", evidence(t), "cannot be told no source VSA or source provenance that counts shows it"},
		{"nobody says who wrote it", both(), "cannot be told who wrote it is not known"},
		{"one does not say who wrote it", evidence(t).review("ann", "approved", day, by).review("bob", "approved", day), "cannot be told who wrote it is not known"},
		{"source provenance says it", both().record(1, "push"), "met approved by ann and bob"},
		{"source provenance of a merge does not", both().record(1, "pr_merge"), "cannot be told who wrote it is not known"},
		{"whoever merged may have reviewed", both(`,"authors":["dave"]`).record(1, "pr_merge").review("carol", "approved", day, by), "met approved by ann and bob"},
		{"by the author, by name", both(`,"authors":["ANN"]`), "not met 1 of the two reviewers that it takes approved it: ann is an author of it"},
		{"by the author, by an alias", both(`,"authors":["Bob@acme.example "]`), "not met 1 of the two reviewers that it takes approved it: bob is an author of it"},
		{"an author that only the other names", evidence(t).review("ann", "approved", day, by).review("bob", "approved", day, `,"authors":["the-ann"]`), "ann is an author of it"},
		{"by who pushed it", evidence(t).record(1, "push").review("carol", "approved", day, by).review("bob", "approved", day, by), "carol is an author of it"},
		{"by the builder", builder, "not met 1 of the two reviewers that it takes approved it: ann also signs for the builder"},
		{"by one key under two names", renamed, "not met 1 of the two reviewers that it takes approved it: bob is who signed for another of them"},
		{"too long ago", old, "not met 0 of the two reviewers that it takes approved it: the review by ann is older than the 24h allowed"},
		{"still to come", evidence(t).review("ann", "approved", "2027-01-01T00:00:00Z", by).review("bob", "approved", day, by), "the review by ann is still to come"},
		{"a part of it", both(by, `,"scope":["a.go"]`), "ann looked at a part of it only"},
		{"rejected", both(by).review("dave", "rejected", day, by), "not met dave rejected it"},
		{"rejected, and approved later", both(by).review("ann", "rejected", "2026-01-01T00:00:00Z", by), "met approved by ann and bob"},
		{"approved, and rejected later", both(by).review("ann", "rejected", later, by), "not met ann rejected it"},
		{"rejected, and approved at a time still to come", both(by).review("dave", "rejected", day, by).review("dave", "approved", "2027-01-01T00:00:00Z", by), "not met dave rejected it"},
		{"rejected, and a part approved later", both(by).review("dave", "rejected", day, by).review("dave", "approved", later, by, `,"scope":["a.go"]`), "not met dave rejected it"},
		{"approved, and a part again later", both(by).review("ann", "approved", later, by, `,"scope":["a.go"]`), "met approved by ann and bob"},
		{"both at once", both(by).review("ann", "rejected", day, by), "not met ann rejected it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := verify.AssessSource(c.known.SourceEvidence)
			i := slices.IndexFunc(res.Rows, func(r verify.Row) bool { return r.ID == verify.RowTwoParty })
			if i < 0 {
				t.Fatal("no row")
			}
			got := string(res.Rows[i].Status) + " " + res.Rows[i].Reason
			if !strings.Contains(got, c.says) || res.TwoParty != strings.HasPrefix(got, "met ") {
				t.Errorf("%t: %s; want %q", res.TwoParty, got, c.says)
			}
			if res.Level > 1 {
				t.Errorf("reviews carry level %d", res.Level)
			}
		})
	}
}

// What counts about the source comes out of the assessment of the image.
func TestSourceOfACandidate(t *testing.T) {
	c := candidate(t, attestations.ProvenanceV1, goodV1, k1)
	c.Provenance.Sources = []verify.Source{{Repository: repo, Commit: commitID, Pointer: "/s"}}
	rev, ok := verify.RevisionOf(&c)
	if !ok || rev.Commit != commitID || rev.Builder.Key != k1 {
		t.Fatalf("%+v, %t", rev, ok)
	}
	in := evidence(t).summary(4)
	c.Source = verify.AssessSource(in.SourceEvidence)
	res := verify.Assess(policyTrust(3), verify.Findings{Candidates: []verify.Candidate{c}})
	if res.Source != 4 || !slices.Contains(res.Properties, verify.PropertyTwoParty) {
		t.Errorf("%+v %v", res.Levels, res.Properties)
	}
	short := c
	short.Provenance.Sources[0].Commit = commitID[:12]
	if rev, _ := verify.RevisionOf(&short); rev.Commit != "" {
		t.Errorf("half a commit is %q", rev.Commit)
	}
	short.Signer = nil
	if _, ok := verify.RevisionOf(&short); ok {
		t.Error("nobody vouches for the commit, and it is believed")
	}
}

func TestDelegate(t *testing.T) {
	summaries := func(words ...verify.Word) []verify.Summary {
		var out []verify.Summary
		for i, w := range words {
			w.VerifierID = "https://v.example/v"
			out = append(out, verify.Summary{Bundle: attest.Digest(fmt.Sprintf("sha256:%d", i)), Word: w})
		}
		return out
	}
	nothing := verify.Findings{Why: "nothing is attached"}
	poor := verify.Findings{Candidates: []verify.Candidate{candidate(t, attestations.ProvenanceV1, goodV1, k1)}}
	off := candidate(t, attestations.ProvenanceV1, goodV1, k1)
	off.Expected, off.Problems = true, []verify.Problem{{Code: "source", Message: "built from elsewhere"}}
	unexpected := verify.Findings{Candidates: []verify.Candidate{off}}
	ask := func(build, source int, properties ...string) verify.Demand {
		return verify.Demand{Levels: verify.Levels{Build: build, Source: source}, Properties: properties}
	}
	full := verify.Word{Build: 3, Source: 4, Properties: verify.Properties()}
	for _, c := range []struct {
		name      string
		findings  verify.Findings
		delegates verify.Delegates
		words     []verify.Word
		asked     verify.Demand
		want      string // levels and properties
		rests     attest.Digest
	}{
		{"nothing delegated", nothing, verify.Delegates{}, []verify.Word{full}, ask(3, 4), "0 0 []", ""},
		{"build", nothing, verify.Delegates{Build: true}, []verify.Word{full}, ask(3, 0), "3 0 []", "sha256:0"},
		{"build, up to the summary's level", nothing, verify.Delegates{Build: true}, []verify.Word{{Build: 2}}, ask(3, 0), "2 0 []", "sha256:0"},
		{"source", nothing, verify.Delegates{Source: true}, []verify.Word{full}, ask(0, 3), "0 4 []", "sha256:0"},
		{"properties", nothing, verify.Delegates{Properties: true}, []verify.Word{{Properties: []string{verify.PropertyHermetic}}}, ask(0, 0, verify.PropertyHermetic), "0 0 [WAXSEAL_HERMETIC]", "sha256:0"},
		{"Source L4 is two-party review", nothing, verify.Delegates{Properties: true}, []verify.Word{{Source: 4}}, ask(0, 0, verify.PropertyTwoParty), "0 0 [SLSA_SOURCE_TWO_PARTY_REVIEWED]", "sha256:0"},
		{"two are not added up", nothing, verify.Delegates{Build: true, Source: true}, []verify.Word{{Build: 3}, {Source: 4}}, ask(3, 1), "3 0 []", "sha256:0"},
		{"the one that leaves least open", nothing, verify.Delegates{Build: true}, []verify.Word{{Build: 1}, {Build: 3}}, ask(3, 0), "3 0 []", "sha256:1"},
		{"expectations without provenance", nothing, verify.Delegates{Build: true, Expects: true}, []verify.Word{full}, ask(3, 0), "0 0 []", "sha256:0"},
		{"beside provenance that is as expected", poor, verify.Delegates{Build: true, Expects: true}, []verify.Word{full}, ask(3, 0), "3 0 []", "sha256:0"},
		{"beside provenance that is not", unexpected, verify.Delegates{Build: true, Expects: true}, []verify.Word{full}, ask(3, 0), "0 0 []", "sha256:0"},
		{"where the evidence is enough", poor, verify.Delegates{Build: true}, []verify.Word{full}, ask(1, 0), "1 0 []", ""},
		{"no summary", nothing, verify.Delegates{Build: true}, nil, ask(1, 0), "0 0 []", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			trust := policyTrust(1)
			before := verify.Assess(trust, c.findings)
			rows := slices.Clone(before.Rows)
			res, rests := before.Delegate(c.delegates, summaries(c.words...), c.asked, "none counts")
			if got := fmt.Sprint(res.Build, res.Source, res.Properties); got != c.want || rests != c.rests {
				t.Errorf("%s on %q; want %s on %q", got, rests, c.want, c.rests)
			}
			for i, r := range res.Rows {
				if r.Status == verify.Met && rows[i].Status != verify.Met && (!strings.HasPrefix(r.Reason, "by VSA of https://v.example/v") || r.Evidence[0].Bundle != rests || r.Hint != "") {
					t.Errorf("row %+v", r)
				}
				if rows[i].Status != before.Rows[i].Status || rows[i].Reason != before.Rows[i].Reason {
					t.Errorf("the row %s changed under somebody else", r.ID)
				}
			}
			if c.words == nil && !strings.Contains(res.Rows[0].Reason, "nothing is attached; none counts") {
				t.Error(res.Rows[0].Reason)
			}
		})
	}
}

// What the summary leaves open, the evidence may show: the level is that of
// all rows, so none is left that says why it is not higher.
func TestDelegateBesideEvidence(t *testing.T) {
	c := candidate(t, attestations.ProvenanceV1, strings.Replace(goodV1, "https://example.org/build/v1", "make", 1), k1)
	before := verify.Assess(policyTrust(3), verify.Findings{Candidates: []verify.Candidate{c}})
	asked := verify.Demand{Levels: verify.Levels{Build: 3}}
	res, _ := before.Delegate(verify.Delegates{Build: true}, []verify.Summary{{Bundle: "sha256:s", Word: verify.Word{Build: 1}}}, asked, "")
	if before.Build != 0 || res.Build != 3 {
		t.Errorf("L%d, and with a summary L%d", before.Build, res.Build)
	}
	for _, r := range res.Rows {
		if r.Track == verify.TrackBuild && r.Status != verify.Met {
			t.Errorf("row %+v", r)
		}
	}
}

func FuzzParseReview(f *testing.F) {
	f.Add(review("approved", "2026-01-02T00:00:00Z", `,"authors":["carol"],"scope":["a"]`))
	f.Add(review("rejected", "2026-01-02T00:00:00Z"))
	f.Fuzz(func(t *testing.T, predicate string) {
		r, err := verify.ParseReview(&attest.Statement{PredicateType: attestations.ReviewV1, Predicate: json.RawMessage(predicate)})
		if err == nil && (!attest.IsCommit(r.Commit) || r.ReviewedOn.IsZero() || r.Repository == "") {
			t.Errorf("%+v", r)
		}
	})
}

func FuzzParseSourceProvenance(f *testing.F) {
	f.Add(attestations.SourceProvenanceV1, sourceProvenance("push", "CONTINUITY_ENFORCED", "TAG_HYGIENE"))
	f.Add(attestations.TagProvenanceDraft, `{"actor":"carol","controls":[],"created_on":"2026-01-01T00:00:00Z","repo_uri":"`+repo+`","tag":"refs/tags/v1"}`)
	f.Fuzz(func(t *testing.T, kind, predicate string) {
		p, err := verify.ParseSourceProvenance(&attest.Statement{PredicateType: kind, Predicate: json.RawMessage(predicate)})
		if err != nil {
			return
		}
		if p.Repository == "" || !strings.HasPrefix(p.Ref, "refs/") || p.CreatedOn.IsZero() {
			t.Errorf("%+v", p)
		}
		rev := verify.Revision{Repository: p.Repository, Commit: commitID}
		if res := verify.AssessSource(verify.SourceEvidence{Revision: rev, Records: []verify.SourceRecord{{Bundle: "b", Provenance: p, MaxLevel: 2}}}); res.Level > 2 {
			t.Errorf("level %d of a system trusted to 2", res.Level)
		}
	})
}
