package attestations_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
)

func TestPolicyExampleFitsItsSchemaAndStruct(t *testing.T) {
	raw, err := os.ReadFile("policy/v1/example.json")
	if err != nil {
		t.Fatal(err)
	}
	var st struct {
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal(raw, &st); err != nil || st.PredicateType != attestations.PolicyV1 {
		t.Fatal(err, st.PredicateType)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(attestations.PolicySchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		text string
		ok   bool
	}{
		{string(st.Predicate), true},
		{`{"apiVersion":"waxseal.dev/v1"}`, true},
		{`{}`, false},
		{`{"apiVersion":"waxseal.dev/v2"}`, false},
		{`{"apiVersion":"waxseal.dev/v1","extends":["md5:00"]}`, false},
		{`{"apiVersion":"waxseal.dev/v1","more":1}`, false},
	} {
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader([]byte(p.text)))
		if err != nil {
			t.Fatal(err)
		}
		if err := schema.Validate(v); (err == nil) != p.ok {
			t.Errorf("%s: %v", p.text, err)
		}
	}
	var p attestations.Policy
	d := json.NewDecoder(bytes.NewReader(st.Predicate))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil || len(p.Extends) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}
