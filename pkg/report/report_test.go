package report_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/verify"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it); got:\n%s", file, got)
	}
}

func hex(c string) attest.Digest { return attest.Digest("sha256:" + strings.Repeat(c, 64)) }

// subject is a part of an image with the rows that its provenance earns.
func subject(t *testing.T, digest attest.Digest, platform, builder string, declared int) (gate.Subject, []gate.Reason) {
	t.Helper()
	trust := verify.Trust{Builders: []verify.Builder{{ID: "https://ci.example.org/builder", Key: hex("1"), MaxLevel: 2}, {ID: attestations.UnhostedBuilderID, Key: hex("1"), MaxLevel: 1}}}
	var candidates []verify.Candidate
	s := gate.Subject{Digest: digest, Platform: platform, Decision: gate.Pass, Properties: []string{}, Evidence: []gate.Evidence{}}
	if builder != "" {
		p, err := verify.ParseProvenance(&attest.Statement{PredicateType: attestations.ProvenanceV1, Predicate: fmt.Appendf(nil,
			`{"buildDefinition":{"buildType":"https://example.org/t","externalParameters":{}},"runDetails":{"builder":{"id":%q}}}`, builder)})
		if err != nil {
			t.Fatal(err)
		}
		signer := verify.Signer{Key: hex("1"), Name: "release.pub"}
		candidates = append(candidates, verify.Candidate{Bundle: hex("e"), Where: "referrer", Provenance: p, Signer: &signer, Expected: true})
		s.Evidence = append(s.Evidence, gate.Evidence{Source: "referrer", Where: string(hex("f")), Bundle: hex("e"), PredicateType: attestations.ProvenanceV1, Accepted: true, Used: true, Signer: &signer})
	}
	res := verify.Assess(trust, verify.Findings{Candidates: candidates, Why: "no evidence is attached to this digest"})
	s.Requirements, s.Reached = res.Rows, res.Levels
	var reasons []gate.Reason
	for _, r := range res.Rows {
		if r.AskedBy(demand(declared)) && r.Status != verify.Met && (builder != "" || r.ID == verify.RowExists) {
			s.Decision = gate.Deny
			reason := gate.Reason{Code: gate.CodeLevel, Requirement: r.ID, Platform: platform, Digest: digest, Message: fmt.Sprintf("%s (Build L%d) %s: %s", r.Title, r.Level, r.Status, r.Reason), Hint: r.Hint}
			if len(r.Evidence) > 0 {
				reason.Bundle, reason.Pointer = r.Evidence[0].Bundle, r.Evidence[0].Pointer
			}
			reasons = append(reasons, reason)
		}
	}
	return s, reasons
}

func demand(build int) verify.Demand { return verify.Demand{Levels: verify.Levels{Build: build}} }

func verdict(t *testing.T, declared int, builders ...string) *gate.Verdict {
	t.Helper()
	v := &gate.Verdict{Schema: gate.VerdictSchema, Image: "registry.example.org/prod/app:1.2.0", Declared: demand(declared), TrustedBy: gate.TrustedByPolicy, Properties: []string{},
		Platforms: []gate.Subject{}, Reasons: []gate.Reason{}, TrustDigest: hex("2"), PolicyDigest: hex("3"), DecidedAt: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	v.Decision, v.Reached.Build = gate.Pass, 3
	for i, b := range builders {
		platform := ""
		if i > 0 {
			platform = fmt.Sprintf("linux/arch%d", i)
		}
		s, reasons := subject(t, hex(string("abcdef0123456789"[i%16])), platform, b, declared)
		v.Reasons = append(v.Reasons, reasons...)
		v.Reached.Build = min(v.Reached.Build, s.Reached.Build)
		if s.Decision == gate.Deny {
			v.Decision = gate.Deny
		}
		if i == 0 {
			v.Subject = s
		} else {
			v.Platforms = append(v.Platforms, s)
		}
	}
	return v
}

const hosted, local = "https://ci.example.org/builder", attestations.UnhostedBuilderID

func TestVerdict(t *testing.T) {
	many := []string{hosted}
	for range 12 {
		many = append(many, hosted, local)
	}
	file := verdict(t, 2, hosted)
	file.Image = "file:dist/app"
	unavailable := verdict(t, 2, hosted)
	unavailable.Decision, unavailable.Subject = gate.Undecided, gate.Subject{Properties: []string{}, Requirements: []verify.Row{}, Evidence: []gate.Evidence{}}
	unavailable.Reached = gate.Levels{}
	unavailable.Reasons = []gate.Reason{{Code: gate.CodeUnavailable, Message: `listing referrers of "registry.example.org/prod/app": the registry answered 401 Unauthorized`, Hint: "log in with: docker login registry.example.org"}}
	expected := verdict(t, 1, hosted)
	expected.Decision = gate.Deny
	expected.Reasons = []gate.Reason{
		{Code: "parameter", Requirement: verify.RowExpectations, Message: `build parameter "buildArgs/DEBUG" is set to "1", which the policy does not allow`, Bundle: hex("e"), Pointer: "/predicate/buildDefinition/externalParameters/buildArgs/DEBUG"},
		{Code: "sbom", Message: "no signed spdx SBOM that counts is attached"},
	}
	certified := verdict(t, 2, hosted)
	certified.Evidence[0].Signer = &verify.Signer{SAN: "https://ci.example/acme/app/seal.yml@refs/tags/v1\x1b[2J", Issuer: "https://token.ci.example", Root: "root.json"}
	// All that can be asked for, and one property of it is there.
	ladder := verdict(t, 2, hosted)
	ladder.Decision, ladder.Declared = gate.Deny, verify.Ladder().And(verify.Demand{Levels: verify.Levels{Source: 2}})
	ladder.Properties = []string{verify.PropertyInputsComplete}
	for i, r := range ladder.Requirements {
		if r.Property == verify.PropertyInputsComplete {
			ladder.Requirements[i].Status = verify.Met
		} else if r.AskedBy(ladder.Declared) && r.Status != verify.Met {
			ladder.Reasons = append(ladder.Reasons, gate.Reason{Code: gate.CodeLevel, Requirement: r.ID, Digest: ladder.Digest, Message: r.Title + " " + string(r.Status) + ": " + r.Reason, Hint: r.Hint})
		}
	}
	sealed := verdict(t, 2, hosted)
	sealed.Properties, sealed.Reached.Source, sealed.Declared.Source = verify.Properties(), 1, 1
	for i, r := range sealed.Requirements {
		if r.AskedBy(verify.Demand{Levels: sealed.Reached, Properties: sealed.Properties}) {
			sealed.Requirements[i].Status = verify.Met
		}
	}
	for _, c := range []struct {
		name string
		v    *gate.Verdict
	}{
		{"deny-ladder", ladder},
		{"pass-properties", sealed},
		{"pass-certificate", certified},
		{"pass", verdict(t, 2, hosted)},
		{"pass-file", file},
		{"pass-index", verdict(t, 1, hosted, local, hosted)},
		{"deny-unhosted", verdict(t, 2, local)},
		{"deny-nothing", verdict(t, 1, "")},
		{"deny-index", verdict(t, 2, hosted, hosted, local)},
		{"deny-index-nothing", verdict(t, 3, "", "", "")},
		{"deny-many-platforms", verdict(t, 2, many...)},
		{"deny-expectations", expected},
		{"undecided", unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := report.Verdict(&b, c.v, report.TextOptions{}); err != nil {
				t.Fatal(err)
			}
			golden(t, c.name, b.String())
			lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
			if len(lines) > 24 {
				t.Errorf("%d lines do not fit a screen", len(lines))
			}
			for _, l := range lines {
				if n := len([]rune(l)); n > 80 {
					t.Errorf("%d columns: %s", n, l)
				}
			}
			word := map[gate.Decision]string{gate.Pass: "PASSED ", gate.Deny: "DENIED ", gate.Undecided: "UNDECIDED "}[c.v.Decision]
			if !strings.HasPrefix(b.String(), word) {
				t.Errorf("does not start with %q", word)
			}
			// Colour changes nothing but colour.
			var colored bytes.Buffer
			if err := report.Verdict(&colored, c.v, report.TextOptions{Color: true}); err != nil {
				t.Fatal(err)
			}
			stripped := colored.String()
			for _, code := range []string{"\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m"} {
				stripped = strings.ReplaceAll(stripped, code, "")
			}
			if stripped != b.String() || colored.String() == b.String() {
				t.Errorf("in colour it says something else:\n%s", colored.String())
			}
		})
	}
}

// On a small screen the answer and the next step stay.
func TestVerdictOnASmallScreen(t *testing.T) {
	var b bytes.Buffer
	if err := report.Verdict(&b, verdict(t, 2, hosted, local, local), report.TextOptions{Width: 50, Height: 14}); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), "DENIED") || !strings.Contains(b.String(), "next:") || !strings.Contains(b.String(), "more reason") {
		t.Errorf("got:\n%s", b.String())
	}
}

// What does not count is said with its reason where there is room, and counted
// where there is none.
func TestVerdictSaysWhatDoesNotCount(t *testing.T) {
	v := verdict(t, 2, local)
	v.Evidence = append(v.Evidence, gate.Evidence{Source: "referrer", Where: string(hex("9")), PredicateType: attestations.ProvenanceV1, Code: verify.CodeSignature,
		Message: "none of the trusted keys made its signature,\x1b[2J or it was changed after it was signed"})
	var whole bytes.Buffer
	if err := report.Verdict(&whole, v, report.TextOptions{Height: math.MaxInt}); err != nil {
		t.Fatal(err)
	}
	golden(t, "deny-whole", whole.String())
	for screen, want := range map[int]string{24: "1 of 2 pieces of evidence do not count (--explain says why)", 14: ""} {
		var b bytes.Buffer
		if err := report.Verdict(&b, v, report.TextOptions{Height: screen}); err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(b.String(), "\n"); n > 24 || strings.Contains(b.String(), "do not count") != (want != "") || !strings.Contains(b.String(), want) {
			t.Errorf("%d lines:\n%s", n, b.String())
		}
	}
}

// The JSON of a verdict keeps its field names: programs depend on them.
func TestJSON(t *testing.T) {
	var b bytes.Buffer
	if err := report.JSON(&b, verdict(t, 2, hosted, local)); err != nil {
		t.Fatal(err)
	}
	golden(t, "verdict.json", b.String())
	if !json.Valid(report.VerdictSchema()) || !json.Valid(report.InspectionSchema()) {
		t.Error("the schemas are not JSON")
	}
}

func TestTree(t *testing.T) {
	signer := &verify.Signer{Key: hex("1"), Name: "release.pub"}
	in := &gate.Inspection{Schema: gate.InspectionSchema, Image: "oci:out/image:app", Digest: hex("a"), Kind: "index", TrustedBy: gate.TrustedByKeys,
		Evidence: []gate.Evidence{{Source: "referrer", Where: string(hex("f")), PredicateType: attestations.ProvenanceV1, Accepted: true, Signer: signer, Says: "built by x, 3 dependencies"}},
		Platforms: []gate.Attached{
			{Platform: "linux/amd64", Digest: hex("b"), Evidence: []gate.Evidence{
				{Source: "cosign .att", Where: string(hex("f")), PredicateType: attestations.SPDX, Code: verify.CodeSignature, Message: "no trusted key made its signature", Says: "SPDX-2.3, 4 packages"},
				{Source: "index attestation (unsigned)", Where: string(hex("f")), PredicateType: attestations.ProvenanceV02, Code: verify.CodeUnsigned, Message: "it is not signed"},
				{Source: "file", Where: "big.json", Code: gate.CodeSkipped, Message: "104857600 bytes, larger than the 33554432 allowed"},
			}},
			{Platform: "linux/arm64", Digest: hex("c"), Evidence: []gate.Evidence{}},
		}}
	var b bytes.Buffer
	if err := report.Tree(&b, in, report.TextOptions{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "tree", b.String())
	in.TrustedBy, in.Platforms = gate.TrustedByNobody, nil
	in.Evidence = []gate.Evidence{{Source: "referrer", Where: string(hex("f")), PredicateType: attestations.VSAV1, Code: verify.CodeNoKey, KeyHint: "aGludA==", Message: "no key was given"}}
	b.Reset()
	if err := report.Tree(&b, in, report.TextOptions{}); err != nil {
		t.Fatal(err)
	}
	golden(t, "tree-no-key", b.String())
}

// A reader that went away is an error: a verdict that nobody got whole is no
// answer.
func TestWriteErrors(t *testing.T) {
	v := verdict(t, 1, hosted)
	for name, write := range map[string]func() error{
		"text": func() error { return report.Verdict(closed{}, v, report.TextOptions{}) },
		"json": func() error { return report.JSON(closed{}, v) },
		"tree": func() error { return report.Tree(closed{}, &gate.Inspection{}, report.TextOptions{}) },
	} {
		if err := write(); !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type closed struct{}

func (closed) Write([]byte) (int, error) { return 0, os.ErrClosed }
