package attestations_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
)

func TestReviewExampleFitsItsSchemaAndStruct(t *testing.T) {
	raw, err := os.ReadFile("review/v1/example.json")
	if err != nil {
		t.Fatal(err)
	}
	var st struct {
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal(raw, &st); err != nil || st.PredicateType != attestations.ReviewV1 {
		t.Fatal(err, st.PredicateType)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(attestations.ReviewSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("review.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("review.json")
	if err != nil {
		t.Fatal(err)
	}
	const commit = `"commit":"1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a"`
	const rest = `"repository":"https://git.example/a","reviewedOn":"2026-03-01T12:00:00Z"`
	for _, p := range []struct {
		text string
		ok   bool
	}{
		{string(st.Predicate), true},
		{`{` + rest + `,` + commit + `,"decision":"rejected"}`, true},
		{`{` + rest + `,` + commit + `}`, false},
		{`{` + rest + `,` + commit + `,"decision":"maybe"}`, false},
		{`{` + rest + `,"commit":"1a1a1a1","decision":"approved"}`, false},
		{`{` + rest + `,` + commit + `,"decision":"approved","authors":[]}`, false},
		{`{` + rest + `,` + commit + `,"decision":"approved","more":1}`, false},
	} {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(p.text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); (err == nil) != p.ok {
			t.Errorf("%s: %v", p.text, err)
		}
	}
	var r attestations.Review
	d := json.NewDecoder(bytes.NewReader(st.Predicate))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil || len(r.Authors) != 1 || r.ReviewedOn.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
}
