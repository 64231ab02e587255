package attestations_test

import (
	"encoding/json"
	"testing"

	"github.com/waxseal/waxseal/attestations"
)

func example(t *testing.T) map[string]any {
	t.Helper()
	return document(t, read(t, "container-build/v1/example.json")).(map[string]any)
}

func TestContainerBuildExampleFitsItsSchemaAndStructs(t *testing.T) {
	if err := schemaOf(t, attestations.ContainerBuildSchema()).Validate(example(t)); err != nil {
		t.Fatal(err)
	}
	var p struct {
		BuildDefinition struct {
			BuildType            string
			ExternalParameters   attestations.ContainerBuild
			InternalParameters   attestations.ContainerBuildInternal
			ResolvedDependencies []json.RawMessage
		}
		RunDetails json.RawMessage
	}
	decode(t, read(t, "container-build/v1/example.json"), &p)
	if p.BuildDefinition.BuildType != attestations.ContainerBuildType {
		t.Errorf("buildType %q", p.BuildDefinition.BuildType)
	}
	if p.BuildDefinition.ExternalParameters.Context.Kind != "directory" {
		t.Errorf("context %+v", p.BuildDefinition.ExternalParameters.Context)
	}
}

func TestContainerBuildSchemaRefuses(t *testing.T) {
	for name, change := range map[string]func(def, run map[string]any){
		"an unknown external parameter": func(def, _ map[string]any) {
			def["externalParameters"].(map[string]any)["privileged"] = true
		},
		"a secret with more than an id": func(def, _ map[string]any) {
			def["externalParameters"].(map[string]any)["secrets"] = []any{map[string]any{"id": "token", "value": "x"}}
		},
		"another build type": func(def, _ map[string]any) { def["buildType"] = "https://example.com/other" },
		"no builder":         func(_, run map[string]any) { delete(run, "builder") },
		"no dependencies":    func(def, _ map[string]any) { def["resolvedDependencies"] = []any{} },
		"an unknown mode of inputs": func(def, _ map[string]any) {
			def["externalParameters"].(map[string]any)["inputs"].(map[string]any)["mode"] = "trusting"
		},
		"a lock without a digest": func(def, _ map[string]any) {
			def["externalParameters"].(map[string]any)["inputs"].(map[string]any)["lock"] = "waxseal.lock"
		},
		"an unknown network":    func(def, _ map[string]any) { def["internalParameters"].(map[string]any)["network"] = "observed" },
		"a digest that is none": func(def, _ map[string]any) { dep(def)["digest"] = map[string]any{"sha256": "XYZ"} },
		"a time that is none":   func(_, run map[string]any) { run["metadata"].(map[string]any)["startedOn"] = "yesterday" },
	} {
		t.Run(name, func(t *testing.T) {
			doc := example(t)
			change(doc["buildDefinition"].(map[string]any), doc["runDetails"].(map[string]any))
			if schemaOf(t, attestations.ContainerBuildSchema()).Validate(doc) == nil {
				t.Error("accepted")
			}
		})
	}
}

// What was written before builds kept a record of inputs stays valid.
func TestContainerBuildSchemaTakesOlderProvenance(t *testing.T) {
	for _, network := range []string{attestations.NetworkNone, attestations.NetworkUnobserved} {
		doc := example(t)
		def := doc["buildDefinition"].(map[string]any)
		delete(def["externalParameters"].(map[string]any), "inputs")
		def["internalParameters"].(map[string]any)["network"] = network
		if err := schemaOf(t, attestations.ContainerBuildSchema()).Validate(doc); err != nil {
			t.Errorf("network %s: %v", network, err)
		}
	}
}

func dep(def map[string]any) map[string]any {
	return def["resolvedDependencies"].([]any)[0].(map[string]any)
}
