package attestations_test

import (
	"encoding/json"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func TestCommandExampleFitsItsSchemaAndStructs(t *testing.T) {
	raw, schema := read(t, "command/v1/example.json"), schemaOf(t, attestations.CommandSchema())
	if err := schema.Validate(document(t, raw)); err != nil {
		t.Fatal(err)
	}
	var p struct {
		BuildDefinition struct {
			BuildType          string                       `json:"buildType"`
			ExternalParameters attestations.Command         `json:"externalParameters"`
			InternalParameters attestations.CommandInternal `json:"internalParameters"`
			ResolvedDependency json.RawMessage              `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails json.RawMessage `json:"runDetails"`
	}
	decode(t, raw, &p)
	if p.BuildDefinition.BuildType != attestations.CommandType || p.BuildDefinition.ExternalParameters.Command[0] != "make" {
		t.Errorf("%+v", p)
	}
	// What the structs write is the same document.
	again, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(document(t, again)); err != nil {
		t.Error(err)
	}
}

func TestCommandSchemaRefuses(t *testing.T) {
	raw, schema := read(t, "command/v1/example.json"), schemaOf(t, attestations.CommandSchema())
	part := func(doc map[string]any, name string) map[string]any {
		return doc["buildDefinition"].(map[string]any)[name].(map[string]any)
	}
	for name, change := range map[string]func(doc map[string]any){
		"another build type": func(doc map[string]any) {
			doc["buildDefinition"].(map[string]any)["buildType"] = "https://example.com/x"
		},
		"no command":                func(doc map[string]any) { part(doc, "externalParameters")["command"] = []any{} },
		"values of variables":       func(doc map[string]any) { part(doc, "externalParameters")["environment"] = map[string]any{"A": "b"} },
		"no record of inputs' mode": func(doc map[string]any) { delete(part(doc, "externalParameters"), "inputs") },
		"an unknown grade":          func(doc map[string]any) { part(doc, "internalParameters")["grade"] = "good" },
		"partial of nothing":        func(doc map[string]any) { part(doc, "internalParameters")["grade"] = "partial" },
		"full without a trace":      func(doc map[string]any) { delete(part(doc, "internalParameters"), "traced") },
		"full but for something": func(doc map[string]any) {
			part(doc, "internalParameters")["unobserved"] = []any{"x"}
		},
		"a job that says only what it is": func(doc map[string]any) {
			delete(part(doc, "internalParameters")["ci"].(map[string]any), "verified")
		},
		"an engine of no isolation": func(doc map[string]any) {
			delete(part(doc, "internalParameters")["engine"].(map[string]any), "isolation")
		},
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

func TestCommandLine(t *testing.T) {
	if got, want := attestations.CommandLine([]string{"sh", "-c", "a b\n", ""}), `sh -c "a b\n" ""`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestUsualVariable(t *testing.T) {
	for name, want := range map[string]bool{
		"PATH": true, "LC_ALL": true, "GITHUB_SHA": true, "CI": true,
		"CFLAGS": false, "NPM_TOKEN": false, "CI_COMMIT_SHA": false, "BUILD_FLAGS": false, "LD_PRELOAD": false, "": false,
	} {
		if attestations.UsualVariable(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}
