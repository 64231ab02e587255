package verify_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const c40 = "c0ffee0000000000000000000000000000c0ffee"

// form is provenance as one platform writes it.
type form struct {
	name, kind, in string
	want           string // what summary says
}

func forms() []form {
	v1, v02, v01 := attestations.ProvenanceV1, attestations.ProvenanceV02, attestations.ProvenanceV01
	run := `"runDetails":{"builder":{"id":"https://b.example/1"},"metadata":{"invocationId":"run-1"}}`
	return []form{
		{"GitHub", v1, `{"buildDefinition":{"buildType":"https://actions.github.io/buildtypes/workflow/v1",
			"externalParameters":{"workflow":{"ref":"refs/heads/main","repository":"https://github.com/acme/app","path":".github/workflows/x.yml"}},
			"internalParameters":{"github":{"event_name":"push","runner_environment":"self-hosted"}},
			"resolvedDependencies":[{"uri":"git+https://github.com/acme/app@refs/heads/old","digest":{"gitCommit":"0ld"}},
				{"uri":"git+https://github.com/acme/app@refs/heads/main","digest":{"gitCommit":"` + c40 + `"}}]},` + run + `}`,
			`GitHub Actions: https://github.com/acme/app c0ffee refs/heads/main; entry .github/workflows/x.yml; runner self-hosted; event push; run run-1; 2 deps; echoes workflow/repository workflow/ref workflow/path`},
		{"GitHub, the runner among the external parameters", v1, `{"buildDefinition":{"buildType":"https://github.com/actions/buildtypes/workflow/v1",
			"externalParameters":{"runner_environment":"github-hosted","workflow":{"ref":"refs/tags/v1","repository":"https://github.com/acme/app","path":"x.yml"}}},` + run + `}`,
			`GitHub Actions: https://github.com/acme/app  refs/tags/v1; entry x.yml; runner github-hosted; run run-1; 0 deps; echoes workflow/repository workflow/ref workflow/path`},
		{"the generator", v02, `{"builder":{"id":"https://b.example/1"},"buildType":"https://github.com/slsa-framework/slsa-github-generator/generic@v1",
			"invocation":{"configSource":{"uri":"git+https://github.com/acme/app@refs/tags/v1","digest":{"sha1":"` + c40 + `"},"entryPoint":"r.yml"},
				"parameters":{},"environment":{"github_event_name":"release"}},
			"metadata":{"buildInvocationID":"7-1","completeness":{"parameters":true}},"materials":[{"uri":"git+https://github.com/acme/app@refs/tags/v1","digest":{"sha1":"` + c40 + `"}}]}`,
			`slsa-github-generator: https://github.com/acme/app c0ffee refs/tags/v1; entry r.yml; event release; run 7-1; 1 deps; echoes configSource/uri configSource/digest configSource/entryPoint`},
		{"Cloud Build, a tag written like a branch", v1, `{"buildDefinition":{"buildType":"https://cloud.google.com/build/gcb-buildtypes/google-worker/v1",
			"externalParameters":{"buildConfigSource":{"path":"cloudbuild.yaml","ref":"refs/heads/v1","repository":"git+https://github.com/acme/app"}},
			"internalParameters":{"systemSubstitutions":{"TAG_NAME":"v1"}},
			"resolvedDependencies":[{"uri":"git+https://github.com/acme/app@refs/heads/v1","digest":{"gitCommit":"` + c40 + `"}}]},` + run + `}`,
			`Google Cloud Build: https://github.com/acme/app c0ffee refs/tags/v1; entry cloudbuild.yaml; run run-1; 1 deps; echoes buildConfigSource/repository buildConfigSource/ref buildConfigSource/path`},
		{"Cloud Build, a source of its own", v1, `{"buildDefinition":{"buildType":"https://cloud.google.com/build/gcb-buildtypes/google-worker/v1",
			"externalParameters":{"buildConfigSource":{"path":"c.yaml","ref":"refs/heads/main","repository":"git+https://github.com/acme/config"},
				"sourceToBuild":{"ref":"refs/heads/next","repository":"git+https://github.com/acme/app"}},
			"resolvedDependencies":[{"uri":"git+https://github.com/acme/config@refs/heads/main","digest":{"gitCommit":"1"}},{"uri":"git+https://github.com/acme/app@refs/heads/next","digest":{"gitCommit":"` + c40 + `"}}]},` + run + `}`,
			`Google Cloud Build: https://github.com/acme/app c0ffee refs/heads/next; entry c.yaml; run run-1; 2 deps; echoes sourceToBuild/repository sourceToBuild/ref buildConfigSource/path`},
		{"Cloud Build, v0.1", v01, gcbV01("https://cloudbuild.googleapis.com/CloudBuildYaml@v0.1", `"entryPoint":"cloudbuild.yaml",`),
			`Google Cloud Build: https://github.com/acme/app c0ffee refs/heads/main; entry cloudbuild.yaml; run b-1; 1 deps; echoes entryPoint`},
		{"Cloud Build, v0.1 of before v0.3", v01, strings.Replace(strings.Replace(gcbV01("https://cloudbuild.googleapis.com/GoogleHostedWorker@v0.2", `"entryPoint":"cloudbuild.yaml",`),
			`"uri":"git+https://github.com/acme/app"`, `"uri":"https://github.com/acme/app/commit/`+c40+`"`, 1), `"digest":{"sha1":"`+c40+`"},`, "", 1),
			`Google Cloud Build: https://github.com/acme/app c0ffee refs/heads/main; entry cloudbuild.yaml; run b-1; 1 deps; echoes entryPoint`},
		{"GitLab's runner", v1, `{"buildDefinition":{"buildType":"https://gitlab.com/gitlab-org/gitlab-runner/-/blob/v17/PROVENANCE.md",
			"externalParameters":{"CI":"","entryPoint":"job","source":"https://gitlab.com/acme/app"},
			"resolvedDependencies":[{"uri":"https://gitlab.com/acme/app","digest":{"sha256":"` + c40 + `"}}]},
			"runDetails":{"builder":{"id":"https://gitlab.com/acme/app/-/runners/1"},"metadata":{"invocationID":412}}}`,
			`GitLab CI/CD: https://gitlab.com/acme/app c0ffee ; entry job; run 412; 1 deps; echoes source entryPoint`},
		{"Tekton, two inputs that differ", v1, `{"buildDefinition":{"buildType":"https://tekton.dev/chains/v2/slsa-tekton","externalParameters":{"runSpec":{}},
			"resolvedDependencies":[{"name":"inputs/result","uri":"git+https://github.com/acme/app","digest":{"sha1":"` + c40 + `"}},{"name":"inputs/result","uri":"git+https://github.com/acme/lib","digest":{"sha1":"1"}}]},` + run + `}`,
			`Tekton Chains: no source; run run-1; 2 deps; echoes`},
		{"Tekton, v0.2", v02, `{"builder":{"id":"https://tekton.dev/chains/v2"},"buildType":"tekton.dev/v1beta1/TaskRun","invocation":{"configSource":{},"parameters":{"HERMETIC":"true"}},
			"materials":[{"uri":"oci://registry.example/step","digest":{"sha256":"1"}},{"uri":"git+https://github.com/acme/app.git","digest":{"sha1":"` + c40 + `"}}]}`,
			`Tekton Chains: https://github.com/acme/app.git c0ffee ; 2 deps; echoes`},
		{"Witness", attestations.WitnessProvenance, witness("build_definition"),
			`Witness: https://github.com/acme/app c0ffee ; run run-1; 1 deps; echoes`},
		{"Witness, in a collection", attestations.WitnessCollection, `{"name":"build","attestations":[{"type":"https://witness.dev/attestations/git/v0.1","attestation":{}},
			{"type":"https://slsa.dev/provenance/v1.0","attestation":` + witness("build_definition") + `}]}`,
			`Witness: https://github.com/acme/app c0ffee ; run run-1; 1 deps; echoes`},
		{"Witness, with SLSA's own names", attestations.WitnessCollection, `{"name":"build","attestations":[{"type":"https://slsa.dev/provenance/v1","attestation":
			{"buildDefinition":{"buildType":"https://witness.dev/slsa-build@v0.1","externalParameters":{"command":"make"},"resolvedDependencies":[{"name":"https://github.com/acme/app","digest":{"sha1":"` + c40 + `"}}]},` + run + `}}]}`,
			`Witness: https://github.com/acme/app c0ffee ; run run-1; 1 deps; echoes`},
		{"BuildKit", v02, `{"builder":{"id":"https://b.example/1"},"buildType":"https://mobyproject.org/buildkit@v1",
			"invocation":{"configSource":{"uri":"https://github.com/acme/app.git#refs/heads/main:sub","digest":{"sha1":"` + c40 + `"},"entryPoint":"Dockerfile"}}}`,
			`BuildKit: https://github.com/acme/app.git c0ffee refs/heads/main; entry Dockerfile; 0 deps; echoes`},
	}
}

func gcbV01(recipe, entry string) string {
	return `{"builder":{"id":"https://cloudbuild.googleapis.com/GoogleHostedWorker@v0.3"},"materials":[{"digest":{"sha1":"` + c40 + `"},"uri":"git+https://github.com/acme/app"}],
		"metadata":{"buildInvocationId":"b-1","buildStartedOn":"2026-01-01T00:00:00Z"},
		"recipe":{` + entry + `"type":"` + recipe + `","definedInMaterial":"0","arguments":{"@type":"type.googleapis.com/google.devtools.cloudbuild.v1.Build","id":"b-1",
		"steps":[{"name":"docker","args":["build"]}],"substitutions":{"BRANCH_NAME":"main","_TIER":"gold"}}}}`
}

func witness(definition string) string {
	return `{"` + definition + `":{"build_type":"https://witness.dev/slsa-build@v0.1","external_parameters":{"command":"make"},
		"resolved_dependencies":[{"name":"https://github.com/acme/app","digest":{"sha1":"` + c40 + `"}}]},
		"run_details":{"builder":{"id":"https://witness.dev/witness-default-builder@v0.1"},"metadata":{"invocation_id":"run-1","started_on":{"seconds":1}}}}`
}

// summary says what a provenance came out as.
func summary(p *verify.Provenance) string {
	var parts []string
	source := "no source"
	if len(p.Sources) > 0 {
		s := p.Sources[0]
		source = s.Repository + " " + s.Commit[:min(6, len(s.Commit))] + " " + s.Ref.Value
	}
	parts = append(parts, fmt.Sprintf("%s: %s", p.Form, source))
	for _, f := range []struct {
		name string
		verify.Field
	}{{"entry", p.EntryPoint}, {"runner", p.Runner}, {"event", p.Event}, {"run", p.Invocation}} {
		if f.Value != "" {
			parts = append(parts, f.name+" "+f.Value)
		}
	}
	echoes := strings.Join(slices.Concat([]string{"echoes"}, p.Echoes.Repository, p.Echoes.Ref, p.Echoes.EntryPoint), " ")
	return strings.Join(append(parts, fmt.Sprintf("%d deps", len(p.Dependencies)), echoes), "; ")
}

// at is the value at a JSON pointer of a statement's predicate.
func at(t *testing.T, predicate, pointer string) string {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(`{"predicate":`+predicate+`}`), &v); err != nil {
		t.Fatal(err)
	}
	for _, step := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		switch now := v.(type) {
		case map[string]any:
			v = now[step]
		case []any:
			i := 0
			if _, err := fmt.Sscan(step, &i); err != nil || i >= len(now) {
				return "nothing"
			}
			v = now[i]
		default:
			return "nothing"
		}
	}
	return fmt.Sprint(v)
}

func TestForms(t *testing.T) {
	for _, f := range forms() {
		t.Run(f.name, func(t *testing.T) {
			p, err := verify.ParseProvenance(parsed(t, f.kind, f.in))
			if err != nil {
				t.Fatal(err)
			}
			if got := summary(p); got != f.want {
				t.Errorf("\ngot  %s\nwant %s", got, f.want)
			}
			if !verify.IsProvenance(f.kind) || p.PredicateType != f.kind {
				t.Errorf("its type is %q", p.PredicateType)
			}
			// Each pointer leads to what it is said to.
			for _, field := range []verify.Field{p.BuilderID, p.BuildType, p.EntryPoint, p.Runner, p.Event, p.Invocation} {
				if got := at(t, f.in, field.Pointer); field.Value != "" && got != field.Value {
					t.Errorf("%s is %q, said to be %q", field.Pointer, got, field.Value)
				}
			}
			for _, s := range p.Sources {
				for _, pointer := range []string{s.Pointer, s.Ref.Pointer} {
					if got := at(t, f.in, pointer); pointer != "" && (got == "nothing" || got == "<nil>") {
						t.Errorf("%s leads nowhere", pointer)
					}
				}
			}
			for _, d := range p.Dependencies {
				if got := at(t, f.in, d.Pointer); !strings.Contains(got, d.URI) || !strings.Contains(got, d.Name) {
					t.Errorf("%s is %s, not %s", d.Pointer, got, d.URI)
				}
			}
		})
	}
}

// What the user of Cloud Build set is told from what Cloud Build wrote down.
func TestCloudBuildParameters(t *testing.T) {
	for _, c := range []struct{ recipe, entry, want string }{
		{"https://cloudbuild.googleapis.com/CloudBuildYaml@v0.1", `"entryPoint":"c.yaml",`, `{"arguments":{"substitutions":{"_TIER":"gold"}},"entryPoint":"c.yaml"}`},
		{"https://cloudbuild.googleapis.com/CloudBuildSteps@v0.1", "", `{"arguments":{"steps":[{"args":["build"],"name":"docker"}],"substitutions":{"_TIER":"gold"}}}`},
		{"https://cloudbuild.googleapis.com/CloudBuildSteps@v0.1", `"entryPoint":"c.yaml",`, `{"arguments":{"steps":[{"args":["build"],"name":"docker"}],"substitutions":{"_TIER":"gold"}},"entryPoint":"c.yaml"}`},
	} {
		p, err := verify.ParseProvenance(parsed(t, attestations.ProvenanceV01, gcbV01(c.recipe, c.entry)))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(p.External)
		if err != nil {
			t.Fatal(err)
		}
		var sorted any
		if err := json.Unmarshal(raw, &sorted); err != nil {
			t.Fatal(err)
		}
		if raw, err = json.Marshal(sorted); err != nil || string(raw) != c.want {
			t.Errorf("%s: set are %s, want %s", c.recipe, raw, c.want)
		}
	}
	// Arguments of a form we do not know were all set by somebody.
	p, err := verify.ParseProvenance(parsed(t, attestations.ProvenanceV01, strings.Replace(gcbV01("https://cloudbuild.googleapis.com/CloudBuildYaml@v0.1", `"entryPoint":"c.yaml",`), "v1.Build", "v2.Build", 1)))
	if err != nil || !strings.Contains(string(p.External["arguments"]), "steps") {
		t.Errorf("%s, %v", p.External["arguments"], err)
	}
}

func TestFormsAreRefused(t *testing.T) {
	two := `{"type":"https://slsa.dev/provenance/v1.0","attestation":` + witness("build_definition") + `}`
	for _, c := range []struct{ name, kind, in, want string }{
		{"v0.1 without a recipe", attestations.ProvenanceV01, `{"builder":{"id":"x:y"}}`, "recipe/type"},
		{"v0.1 with a body of v0.2", attestations.ProvenanceV01, goodV02, "recipe/type"},
		{"v0.1 without a builder", attestations.ProvenanceV01, `{"recipe":{"type":"x:y"}}`, "builder/id"},
		{"v0.1, a recipe in another case", attestations.ProvenanceV01, `{"builder":{"id":"x:y"},"Recipe":{"type":"x:y"}}`, "spelled"},
		{"v0.1, arguments twice", attestations.ProvenanceV01, `{"builder":{"id":"x:y"},"recipe":{"type":"x:y","arguments":1,"arguments":2}}`, "duplicate"},
		{"a collection without provenance", attestations.WitnessCollection, `{"name":"build","attestations":[{"type":"x:y","attestation":{}}]}`, "was not asked for"},
		{"a collection with two", attestations.WitnessCollection, `{"name":"build","attestations":[` + two + `,` + two + `]}`, "twice, at 0 and 1"},
		{"Witness without a builder", attestations.WitnessProvenance, strings.Replace(witness("build_definition"), `"id"`, `"x"`, 1), "run_details/builder/id"},
		{"Witness without parameters", attestations.WitnessProvenance, strings.Replace(witness("build_definition"), `"external_parameters"`, `"x"`, 1), "external_parameters"},
		{"Witness with half a name", attestations.WitnessProvenance, witness("buildDefinition"), "buildType"},
	} {
		t.Run(c.name, func(t *testing.T) {
			// Made here and not parsed: a statement's own scan would see the doubled key.
			_, err := verify.ParseProvenance(&attest.Statement{PredicateType: c.kind, Predicate: []byte(c.in)})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

// A certificate's word on its run comes from the certificate alone, in both of
// the ways that Fulcio has written it.
func TestRunOfACertificate(t *testing.T) {
	s := newSigstore(t)
	trust := verify.Trust{Roots: []*verify.Root{trustedRoot(t, s, virtual.RootOptions{})}, Identities: []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})}}
	for name, c := range map[string]struct {
		run  map[int]string
		want verify.Run
	}{
		"nothing": {nil, verify.Run{}},
		"all": {map[int]string{11: "github-hosted", 12: "https://github.com/acme/app", 13: c40, 14: "refs/heads/main", 18: "https://github.com/acme/app/w.yml@refs/heads/main", 20: "push", 21: "https://github.com/acme/app/runs/1"},
			verify.Run{Runner: "github-hosted", Repository: "https://github.com/acme/app", Commit: c40, Ref: "refs/heads/main", Workflow: "https://github.com/acme/app/w.yml@refs/heads/main", Event: "push", Invocation: "https://github.com/acme/app/runs/1"}},
		"the old ones": {map[int]string{2: "push", 3: c40, 5: "acme/app", 6: "refs/heads/main"},
			verify.Run{Repository: "https://github.com/acme/app", Commit: c40, Ref: "refs/heads/main", Event: "push"}},
		"both": {map[int]string{2: "release", 5: "acme/old", 12: "https://github.com/acme/app", 20: "push"},
			verify.Run{Repository: "https://github.com/acme/app", Event: "push"}},
	} {
		ok, err := checked(t, seal(t, s, virtual.Options{SAN: san, Issuer: issuer, Run: c.run}), trust)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := ok.Signer().Run; got != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestContradictions(t *testing.T) {
	github := forms()[0]
	p, err := verify.ParseProvenance(parsed(t, github.kind, strings.Replace(github.in, "https://b.example/1", san, 1)))
	if err != nil {
		t.Fatal(err)
	}
	good := verify.Run{Repository: "https://github.com/acme/app", Commit: c40, Ref: "refs/heads/main", Runner: "self-hosted", Event: "push"}
	with := func(change func(*verify.Run)) verify.Run {
		r := good
		change(&r)
		return r
	}
	for _, c := range []struct {
		name    string
		run     verify.Run
		san     string
		pointer string // of the one problem
	}{
		{"the same", good, san, ""},
		{"nothing said", verify.Run{}, san, ""},
		{"the repository with .git", with(func(r *verify.Run) { r.Repository += ".git" }), san, ""},
		{"another repository", with(func(r *verify.Run) { r.Repository = "https://github.com/fork/app" }), san, "/predicate/buildDefinition/externalParameters/workflow/repository"},
		{"another ref", with(func(r *verify.Run) { r.Ref = "refs/tags/main" }), san, "/predicate/buildDefinition/externalParameters/workflow/ref"},
		{"another commit", with(func(r *verify.Run) { r.Commit = "1" }), san, "/predicate/buildDefinition/externalParameters/workflow/repository"},
		{"another runner", with(func(r *verify.Run) { r.Runner = "github-hosted" }), san, "/predicate/buildDefinition/internalParameters/github/runner_environment"},
		{"another event", with(func(r *verify.Run) { r.Event = "pull_request" }), san, "/predicate/buildDefinition/internalParameters/github/event_name"},
		{"another workflow", good, san + "2", "/predicate/runDetails/builder/id"},
	} {
		got := verify.Contradictions(p, verify.Signer{SAN: c.san, Run: c.run})
		if len(got) > 1 || (len(got) == 1) != (c.pointer != "") || len(got) == 1 && (got[0].Pointer != c.pointer || got[0].Code != verify.CodeContradiction) {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
	// A key says nothing of a run.
	if got := verify.Contradictions(p, verify.Signer{Key: keyA}); len(got) > 0 {
		t.Errorf("%+v", got)
	}
}
