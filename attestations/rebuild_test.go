package attestations_test

import (
	"encoding/json"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestRebuildExampleFitsItsSchemaAndStructs(t *testing.T) {
	raw, schema := read(t, "rebuild/v1/example.json"), schemaOf(t, attestations.RebuildSchema())
	if err := schema.Validate(document(t, raw)); err != nil {
		t.Fatal(err)
	}
	var p attestations.Rebuild
	decode(t, raw, &p)
	// What the structs write is the same document.
	again, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document(t, again)); err != nil {
		t.Error(err)
	}
	if p.Verdict != attestations.RebuildEquivalent || len(p.Differences) != 2 || p.Build.Engine.Runc == "" {
		t.Errorf("%+v", p)
	}
}

func TestRebuildSchemaRefuses(t *testing.T) {
	raw, schema := read(t, "rebuild/v1/example.json"), schemaOf(t, attestations.RebuildSchema())
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
			doc := document(t, raw).(map[string]any)
			change(doc)
			if schema.Validate(doc) == nil {
				t.Error("accepted")
			}
		})
	}
}
