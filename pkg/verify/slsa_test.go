package verify_test

import (
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	keyA = attest.Digest("sha256:1111111111111111111111111111111111111111111111111111111111111111")
	keyB = attest.Digest("sha256:2222222222222222222222222222222222222222222222222222222222222222")
	ci   = "https://ci.example.org/b"
)

func candidate(t *testing.T, kind, predicate string, signer attest.Digest) verify.Candidate {
	t.Helper()
	p, err := verify.ParseProvenance(parsed(t, kind, predicate))
	if err != nil {
		t.Fatal(err)
	}
	c := verify.Candidate{Bundle: attest.DigestOf([]byte(predicate + string(signer))), Where: "referrer", Provenance: p}
	if signer != "" {
		c.Signer = &verify.Signer{Key: signer, Name: "a.pub"}
	}
	return c
}

func policyTrust(level int) verify.Trust {
	return verify.Trust{Builders: []verify.Builder{{ID: ci, Key: keyA, MaxLevel: level}, {ID: attestations.UnhostedBuilderID, Key: keyA, MaxLevel: 3}}}
}

func TestAssess(t *testing.T) {
	v1 := attestations.ProvenanceV1
	keys := verify.Trust{}
	for _, c := range []struct {
		name      string
		trust     verify.Trust
		candidate verify.Candidate
		level     int
		rows      string // id=status, of those that are not met
	}{
		{"trusted to L3", policyTrust(3), candidate(t, v1, goodV1, keyA), 3, ""},
		{"trusted to L2", policyTrust(2), candidate(t, v1, goodV1, keyA), 2, "build.l3.provenance-unforgeable=cannot be told build.l3.isolated=cannot be told"},
		{"trusted to L1", policyTrust(1), candidate(t, v1, goodV1, keyA), 1,
			"build.l2.provenance-authentic=cannot be told build.l2.hosted=cannot be told build.l3.provenance-unforgeable=cannot be told build.l3.isolated=cannot be told"},
		{"a key alone", keys, candidate(t, v1, goodV1, keyA), 2, "build.l3.provenance-unforgeable=cannot be told build.l3.isolated=cannot be told"},
		{"a key alone, unhosted", keys, candidate(t, v1, ours, keyA), 1,
			"build.l2.provenance-authentic=not met build.l2.hosted=not met build.l3.provenance-unforgeable=not met build.l3.isolated=not met"},
		{"a key alone, unhosted but for a slash", keys, candidate(t, v1, strings.Replace(ours, "unhosted-local", "unhosted-local/", 1), keyA), 1,
			"build.l2.provenance-authentic=not met build.l2.hosted=not met build.l3.provenance-unforgeable=not met build.l3.isolated=not met"},
		{"unhosted, whatever the trust says", policyTrust(3), candidate(t, v1, ours, keyA), 1,
			"build.l2.provenance-authentic=not met build.l2.hosted=not met build.l3.provenance-unforgeable=not met build.l3.isolated=not met"},
		{"the builder's id under another key", policyTrust(3), candidate(t, v1, goodV1, keyB), 0,
			"build.l1.build-platform=not met build.l2.provenance-authentic=cannot be told build.l2.hosted=cannot be told build.l3.provenance-unforgeable=cannot be told build.l3.isolated=cannot be told"},
		{"an id with a slash more", policyTrust(3), candidate(t, v1, strings.Replace(goodV1, ci, ci+"/", 1), keyA), 0,
			"build.l1.build-platform=not met build.l2.provenance-authentic=cannot be told build.l2.hosted=cannot be told build.l3.provenance-unforgeable=cannot be told build.l3.isolated=cannot be told"},
		{"nobody's signature, L1 asked for", verify.Trust{Unsigned: true}, candidate(t, v1, goodV1, ""), 1,
			"build.l2.provenance-authentic=not met build.l2.hosted=cannot be told build.l3.provenance-unforgeable=not met build.l3.isolated=cannot be told"},
		{"nobody's signature", keys, candidate(t, v1, goodV1, ""), 0,
			"build.l1.build-platform=not met build.l2.provenance-authentic=not met build.l2.hosted=cannot be told build.l3.provenance-unforgeable=not met build.l3.isolated=cannot be told"},
		{"a build type that is no URI", policyTrust(3), candidate(t, v1, strings.Replace(goodV1, "https://example.org/build/v1", "make", 1), keyA), 0, "build.l1.consistent-process=not met"},
		{"v0.2, complete", policyTrust(3), candidate(t, attestations.ProvenanceV02, goodV02, keyA), 3, ""},
		{"v0.2, incomplete by its own words", policyTrust(3), candidate(t, attestations.ProvenanceV02, strings.Replace(goodV02, "true", "false", 1), keyA), 2, "build.l3.provenance-unforgeable=not met"},
		{"a cache from elsewhere", policyTrust(3), candidate(t, v1, strings.Replace(ours, attestations.UnhostedBuilderID, ci, 1), keyA), 2, "build.l3.isolated=not met"},
		{"not as expected", policyTrust(3), func() verify.Candidate {
			c := candidate(t, v1, goodV1, keyA)
			c.Expected, c.Problems = true, []verify.Problem{{Code: "source", Pointer: "/predicate/x", Message: "built from elsewhere"}}
			return c
		}(), 0, "build.l1.expectations=not met"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := verify.Assess(c.trust, verify.Findings{Candidates: []verify.Candidate{c.candidate}})
			if res.Build != c.level {
				t.Errorf("level %d, want %d", res.Build, c.level)
			}
			var open []string
			seen := map[string]bool{}
			for _, r := range res.Rows {
				if r.Status != verify.Met && r.Track == verify.TrackBuild {
					open = append(open, r.ID+"="+string(r.Status))
				}
				if r.Reason == "" || r.Title == "" || seen[r.ID] || (r.Hint == "") != (r.Status == verify.Met) {
					t.Errorf("row %+v", r)
				}
				seen[r.ID] = true
				for _, e := range r.Evidence {
					if e.Bundle != c.candidate.Bundle {
						t.Errorf("row %s rests on %s", r.ID, e.Bundle)
					}
				}
			}
			if got := strings.Join(open, " "); got != c.rows {
				t.Errorf("rows  %s\nwant  %s", got, c.rows)
			}
			if len(res.Rows) != len(verify.Requirements()) {
				t.Errorf("%d rows", len(res.Rows))
			}
		})
	}
}

func TestAssessWithoutProvenance(t *testing.T) {
	res := verify.Assess(policyTrust(3), verify.Findings{Why: "nothing is attached"})
	if res.Build != 0 || res.Candidate != nil || res.Rows[0].Status != verify.NotMet || res.Rows[0].Reason != "nothing is attached" {
		t.Errorf("%+v", res)
	}
	for _, r := range res.Rows {
		if r.Status == verify.Met {
			t.Errorf("%s is met by nothing", r.ID)
		}
	}
}

// Each piece counts on its own: the best one decides, in whatever order they
// come, and two halves do not make a whole.
func TestAssessTakesTheBestPiece(t *testing.T) {
	v1 := attestations.ProvenanceV1
	good := candidate(t, v1, goodV1, keyA)
	strange := candidate(t, v1, goodV1, keyB)
	cached := candidate(t, v1, strings.Replace(ours, attestations.UnhostedBuilderID, ci, 1), keyA)
	unexpected := candidate(t, v1, goodV1, keyA)
	unexpected.Problems = []verify.Problem{{Code: "source", Message: "elsewhere"}}
	for _, order := range [][]verify.Candidate{{good, strange, cached, unexpected}, {unexpected, cached, strange, good}} {
		if res := verify.Assess(policyTrust(3), verify.Findings{Candidates: order}); res.Build != 3 || res.Candidate.Bundle != good.Bundle || len(res.Candidate.Problems) > 0 {
			t.Errorf("level %d by %+v", res.Build, res.Candidate)
		}
	}
	if res := verify.Assess(policyTrust(3), verify.Findings{Candidates: []verify.Candidate{strange, unexpected}}); res.Build != 0 {
		t.Errorf("two halves give L%d", res.Build)
	}
	twin := good
	twin.Bundle = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
	for _, order := range [][]verify.Candidate{{good, twin}, {twin, good}} {
		if res := verify.Assess(policyTrust(3), verify.Findings{Candidates: order}); res.Candidate.Bundle != twin.Bundle {
			t.Error("equal pieces are told apart by their order")
		}
	}
}
