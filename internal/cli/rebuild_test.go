package cli

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/report"
)

// TestRebuildPrintsWhatItsSchemaSays: with a build, and comparing alone.
func TestRebuildPrintsWhatItsSchemaSays(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(report.RebuildSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("rebuild.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("rebuild.json")
	if err != nil {
		t.Fatal(err)
	}
	one, two := attest.DigestOf([]byte("1")), attest.DigestOf([]byte("2"))
	found := attestations.RebuildComparison{
		Verdict: attestations.RebuildEquivalent, Original: string(one), Rebuilt: string(two),
		Normalisers: []attestations.RebuildNormaliser{{Name: "file-times/v1", Reason: "times", Uses: 1}},
		Differences: []attestations.RebuildDifference{{Kind: attestations.DifferentTime, Layer: 1, Path: "/a", Cause: "times", Normalisers: []string{"file-times/v1"}}},
	}
	build := &attestations.RebuildBuild{
		Mode: attestations.InputsOffline, Lock: string(one), Builder: attestations.UnhostedBuilderID, Provenance: string(one),
		Engine:    attestations.ContainerEngine{Name: "embedded"},
		Evidence:  []attestations.RebuildEvidence{{PredicateType: attestations.ProvenanceV1, Statement: string(one)}},
		StartedOn: time.Now().UTC(), FinishedOn: time.Now().UTC(),
	}
	for name, c := range map[string]struct {
		r   rebuilt
		bad bool
	}{
		"compared":           {r: rebuilt{Attached: []string{}}},
		"built":              {r: rebuilt{Build: build, Statement: one, Signed: true, Attached: []string{string(two)}, Doubts: []string{"a step"}}},
		"without statement":  {r: rebuilt{Build: build, Attached: []string{}}, bad: true},
		"signed by no build": {r: rebuilt{Signed: true, Attached: []string{}}, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			c.r.Image, c.r.RebuildComparison = "oci:app", found
			var out bytes.Buffer
			err := (&rebuildFlags{output: "json", acceptEquivalent: true}).print(&Streams{Out: &out}, &c.r, "")
			if err != nil {
				t.Fatal(err)
			}
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(out.String()))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema.Validate(v); (err != nil) != c.bad {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
}
