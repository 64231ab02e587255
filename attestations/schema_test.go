package attestations_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

func schemaOf(t *testing.T, raw []byte) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", document(t, raw)); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// document is JSON as schemas see it.
func document(t *testing.T, raw []byte) any {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// decode reads JSON into a struct that must have a field for all of it.
func decode(t *testing.T, raw []byte, into any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// predicateIn is the predicate of an example that is a whole statement.
func predicateIn(t *testing.T, name, predicateType string) json.RawMessage {
	t.Helper()
	var st struct {
		PredicateType string          `json:"predicateType"`
		Predicate     json.RawMessage `json:"predicate"`
	}
	if err := json.Unmarshal(read(t, name), &st); err != nil || st.PredicateType != predicateType {
		t.Fatalf("%s: %v, type %q", name, err, st.PredicateType)
	}
	return st.Predicate
}

// fit checks which texts a schema takes.
func fit(t *testing.T, schema []byte, good, bad []string) {
	t.Helper()
	s := schemaOf(t, schema)
	for _, text := range good {
		if err := s.Validate(document(t, []byte(text))); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range bad {
		if s.Validate(document(t, []byte(text))) == nil {
			t.Errorf("%s: taken", text)
		}
	}
}
