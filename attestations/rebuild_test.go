package attestations_test

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
)

func rebuildSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(attestations.RebuildSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("rebuild.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("rebuild.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rebuildExample(t *testing.T) (raw []byte, doc map[string]any) {
	t.Helper()
	raw, err := os.ReadFile("rebuild/v1/example.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return raw, v.(map[string]any)
}

func TestRebuildExampleFitsItsSchemaAndStructs(t *testing.T) {
	raw, doc := rebuildExample(t)
	if err := rebuildSchema(t).Validate(doc); err != nil {
		t.Fatal(err)
	}
	var p attestations.Rebuild
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		t.Fatal(err)
	}
	// What the structs write is the same document.
	again, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(again))
	if err != nil {
		t.Fatal(err)
	}
	if err := rebuildSchema(t).Validate(v); err != nil {
		t.Error(err)
	}
	if p.Verdict != attestations.RebuildEquivalent || len(p.Differences) != 2 || p.Build.Engine.Runc == "" {
		t.Errorf("%+v", p)
	}
}

func TestRebuildSchemaRefuses(t *testing.T) {
	build := func(doc map[string]any) map[string]any { return doc["build"].(map[string]any) }
	for name, change := range map[string]func(doc map[string]any){
		"an unknown field":              func(doc map[string]any) { doc["ok"] = true },
		"an unknown verdict":            func(doc map[string]any) { doc["verdict"] = "fine" },
		"reproduced with differences":   func(doc map[string]any) { doc["verdict"] = "reproduced" },
		"equivalent without normaliser": func(doc map[string]any) { doc["normalisers"] = []any{} },
		"equivalent with an unexplained difference": func(doc map[string]any) {
			delete(doc["differences"].([]any)[0].(map[string]any), "normalisers")
		},
		"different without a difference": func(doc map[string]any) {
			doc["verdict"], doc["differences"] = "different", []any{}
		},
		"a normaliser without a version": func(doc map[string]any) {
			doc["normalisers"].([]any)[0].(map[string]any)["name"] = "gzip-header"
		},
		"a build with a network":  func(doc map[string]any) { build(doc)["mode"] = "record" },
		"no lock":                 func(doc map[string]any) { delete(build(doc), "lock") },
		"no evidence":             func(doc map[string]any) { build(doc)["evidence"] = []any{} },
		"unverified said as no":   func(doc map[string]any) { build(doc)["unverified"] = false },
		"a digest that is none":   func(doc map[string]any) { doc["rebuilt"] = "sha256:XYZ" },
		"an engine's secret":      func(doc map[string]any) { build(doc)["engine"].(map[string]any)["key"] = "x" },
		"a time that is no time":  func(doc map[string]any) { build(doc)["startedOn"] = "yesterday" },
		"a difference of no kind": func(doc map[string]any) { doc["differences"].([]any)[0].(map[string]any)["kind"] = "odd" },
	} {
		t.Run(name, func(t *testing.T) {
			_, doc := rebuildExample(t)
			change(doc)
			if rebuildSchema(t).Validate(doc) == nil {
				t.Error("accepted")
			}
		})
	}
}
