package rebuild

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// TestWhatIsSignedFitsTheSchema: the three verdicts, as Compare gives them.
func TestWhatIsSignedFitsTheSchema(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(attestations.RebuildSchema()))
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
	d := string(attest.DigestOf(nil))
	build := attestations.RebuildBuild{
		Mode: attestations.InputsOffline, Lock: d, Builder: attestations.UnhostedBuilderID, Provenance: d,
		Engine:   attestations.ContainerEngine{Name: "embedded"},
		Evidence: []attestations.RebuildEvidence{{PredicateType: attestations.ProvenanceV1, Statement: d}},
		Changed:  []attestations.RebuildCircumstance{{Name: "waxseal", Rebuilt: "v2"}}, Unverified: true,
		StartedOn: time.Now().UTC(), FinishedOn: time.Now().UTC(),
	}
	base := file{name: "srv/x\x07\xff", body: "x", when: day1}
	other, later := base, base
	other.body, later.when = "y", day2
	for want, b := range map[string]file{
		attestations.RebuildReproduced: base, attestations.RebuildDifferent: other, attestations.RebuildEquivalent: later,
	} {
		r := attestations.Rebuild{RebuildComparison: *compare(t, image(t, nil, layerOf(t, base)), image(t, nil, layerOf(t, b))), Build: build}
		if r.Verdict != want {
			t.Errorf("%s, want %s", r.Verdict, want)
		}
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); err != nil {
			t.Errorf("%s: %v", want, err)
		}
	}
}
