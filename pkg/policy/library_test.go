package policy_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

// inPolicy is a policy with entries below trust.builders and below images.
func inPolicy(t testing.TB, builders, image string) *policy.Policy {
	t.Helper()
	text := around(builders, image)
	p, err := policy.Parse([]byte(text), policy.ParseOptions{ReadKey: func(name string) ([]byte, error) {
		if strings.HasSuffix(name, ".json") {
			return os.ReadFile("testdata/root.json")
		}
		return os.ReadFile("testdata/release.pub")
	}})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return p
}

func around(builders, image string) string {
	return "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n  builders:\n    " + strings.ReplaceAll(builders, "\n", "\n    ") + "\nimages:\n  - " + image + "\n"
}

const everything = `{match: "**", level: {build: 1}}`

// Every builder of the library can be used as it says itself, and is worth what
// it is credited.
func TestLibraryCanBeUsed(t *testing.T) {
	for _, w := range policy.Library() {
		t.Run(w.Name, func(t *testing.T) {
			text := w.Explain()
			for _, part := range slices.Concat([]string{w.Name, w.Title, fmt.Sprintf("Build L%d at most", w.Level)}, w.BuildTypes, w.Events, w.IDs) {
				if !strings.Contains(text, part) {
					t.Errorf("it does not say %q:\n%s", part, text)
				}
			}
			if w.Why == "" || len(w.Lowers) == 0 || len(w.Specs) == 0 || w.Level < 1 || w.Level > verify.MaxLevel {
				t.Errorf("%+v", w)
			}
			if w.Policy == "" {
				return
			}
			if strings.Contains(w.SAN, "^") {
				if _, err := verify.NewIdentity(verify.IdentityOptions{Issuer: w.Issuer, Regexp: w.SAN}); err != nil {
					t.Error(err)
				}
			}
			p := inPolicy(t, w.Policy, everything)
			doc, err := plainly(t, []byte(around(w.Policy, everything)))
			if err != nil {
				t.Fatal(err)
			}
			if err := schema(t).Validate(doc); err != nil {
				t.Errorf("the schema refuses it: %v", err)
			}
			trust := p.Trust()
			if len(trust.Builders) != max(1, len(w.IDs)) {
				t.Errorf("%d builders", len(trust.Builders))
			}
			for _, b := range trust.Builders {
				if b.MaxLevel != w.Level || b.Hosted != w.Hosted || b.Called != w.Reusable || len(b.BuildTypes) != len(w.BuildTypes) || b.SelfHosted {
					t.Errorf("%+v", b)
				}
			}
			lines := strings.Join(trust.Lines(), "\n")
			for name := range w.Parameters {
				if !strings.Contains(lines, name) {
					t.Errorf("the trust's lines do not hold the parameter %s: %s", name, lines)
				}
			}
			if !strings.Contains(p.Summary(), fmt.Sprintf("trusts %q", w.Name)) {
				t.Error(p.Summary())
			}
		})
	}
	if _, err := policy.Known("slsa"); err == nil {
		t.Error("slsa is known")
	}
}

// The generator counts at a release alone.
func TestOnlyReleasesOfTheGenerator(t *testing.T) {
	w, err := policy.Known("slsa-github-generator")
	if err != nil {
		t.Fatal(err)
	}
	const flow = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/generator_container_slsa3.yml@"
	matches := regexp.MustCompile(w.SAN).MatchString
	for ref, ok := range map[string]bool{
		"refs/tags/v2.1.0": true, "refs/tags/v10.0.11": true,
		"refs/tags/v2": false, "refs/tags/v2.1": false, "refs/tags/v2.1.0-rc.1": false, "refs/tags/v2.1.0+x": false, "refs/tags/2.1.0": false,
		"refs/heads/v2.1.0": false, "refs/heads/main": false, "refs/tags/v2.1.0/x": false, "refs/tags/v2.1.0\n": false, c40: false,
	} {
		if matches(flow+ref) != ok {
			t.Errorf("%q: %t", ref, !ok)
		}
	}
	for _, other := range []string{
		strings.Replace(flow, "slsa-framework/", "fork/", 1), strings.Replace(flow, "container", "delegator", 1), strings.Replace(flow, ".yml", "xyml", 1),
		strings.Replace(flow, "github.com", "github-com", 1), "x" + flow,
	} {
		if matches(other + "refs/tags/v2.1.0") {
			t.Errorf("%q counts", other)
		}
	}
}

const c40 = "c0ffee0000000000000000000000000000c0ffee"

// github is provenance of GitHub, with more external parameters beside the
// workflow's.
func github(t testing.TB, ref, more string) *verify.Provenance {
	t.Helper()
	body := `{"buildDefinition":{"buildType":"https://actions.github.io/buildtypes/workflow/v1",
		"externalParameters":{"workflow":{"ref":"` + ref + `","repository":"https://github.com/acme/app","path":".github/workflows/release.yml"}` + more + `},
		"resolvedDependencies":[{"uri":"git+https://github.com/acme/app@` + ref + `","digest":{"gitCommit":"` + c40 + `"}}]},
		"runDetails":{"builder":{"id":"https://ci.example/b"}}}`
	p, err := verify.ParseProvenance(&attest.Statement{PredicateType: attestations.ProvenanceV1, Predicate: []byte(body)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What a builder's entry knows of parameters holds for what the builder vouches
// for, and an image's own entry before it.
func TestBuildersKnowParameters(t *testing.T) {
	const (
		id     = `id: "https://ci.example/b", signer: {key: k.pub}, maxLevel: 2`
		knows  = `{` + id + `, parameters: {workflow/ref: any, workflow/path: any, inputs: [TIER]}}`
		source = `source: {repository: "https://github.com/acme/app"`
		image  = `{match: "**", level: {build: 1}, `
	)
	const onlyPush = `{` + id + `, events: [push]}`
	signer := verify.Signer{Key: inPolicy(t, "- "+knows, everything).Trust().Keys[0].ID()}
	for _, c := range []struct {
		name, builders, image string
		p                     *verify.Provenance
		by                    verify.Signer
		want                  []string // of each problem, a part
	}{
		{"known and expected", "- " + knows, image + source + `}}`, github(t, "refs/tags/v1", `,"inputs":{"TIER":"gold"}`), signer, nil},
		{"known to somebody else's builder", "- " + knows, image + source + `}}`, github(t, "refs/tags/v1", ""), verify.Signer{}, []string{"workflow/path", "workflow/ref"}},
		{"no source is expected", "- " + knows, everything, github(t, "refs/tags/v1", ""), signer, []string{"workflow/repository"}},
		{"the source is expected by another entry", "- " + knows, everything + "\n  - " + image + source + `}}`, github(t, "refs/tags/v1", ""), signer, nil},
		{"unknown", "- " + knows, image + source + `}}`, github(t, "refs/tags/v1", `,"inputs":{"DEBUG":"1"}`), signer, []string{"inputs/DEBUG"}},
		{"the image allows less", "- " + knows, image + source + `}, parameters: {workflow/ref: [refs/heads/main]}}`, github(t, "refs/tags/v1", ""), signer, []string{"workflow/ref"}},
		{"the image allows more", "- " + knows, image + source + `}, parameters: {inputs: any}}`, github(t, "refs/tags/v1", `,"inputs":{"DEBUG":"1"}`), signer, nil},
		{"two builders, one of which knows less", "- " + knows + "\n- {idPattern: \"https://ci.example/*\", signer: {key: k.pub}, maxLevel: 1}", image + source + `}}`,
			github(t, "refs/tags/v1", ""), signer, []string{"workflow/path", "workflow/ref"}},
		{"ref and workflow are expected", "- {" + id + "}", image + source + `, ref: refs/tags/v*, workflow: .github/workflows/*.yml}}`, github(t, "refs/tags/v1", ""), signer, nil},
		{"a branch like a tag", "- {" + id + "}", image + source + `, ref: refs/tags/v*, workflow: .github/workflows/*.yml}}`, github(t, "refs/heads/v1", ""), signer, []string{`built from "refs/heads/v1", expected "refs/tags/v*"`}},
		{"a tag with more after it", "- {" + id + "}", image + source + `, ref: refs/tags/v*, workflow: .github/workflows/*.yml}}`, github(t, "refs/tags/v1/x", ""), signer, []string{`built from "refs/tags/v1/x"`}},
		{"another workflow", "- " + knows, image + source + `, workflow: .github/workflows/build.yml}}`, github(t, "refs/tags/v1", ""), signer, []string{`".github/workflows/release.yml" was started`}},
		{"an event that is not trusted leaves nobody who knows", "- " + onlyPush, image + source + `, ref: refs/tags/v1}}`, github(t, "refs/tags/v1", ""), signer, []string{"workflow/path"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rule, ok := inPolicy(t, c.builders, c.image).For("registry.example/app")
			if !ok {
				t.Fatal("no rule")
			}
			got := rule.Expect(c.p, c.by)
			for i, problem := range got {
				if i >= len(c.want) || !strings.Contains(problem.Message, c.want[i]) || problem.Pointer == "" {
					t.Errorf("problem %d: %+v", i, problem)
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%d problems, want %d", len(got), len(c.want))
			}
		})
	}
}

// A ref that the provenance does not state is the certificate's, where that
// proves it for the same commit, and nobody's guess otherwise.
func TestRefOfTheCertificate(t *testing.T) {
	p := github(t, "refs/tags/v1", "")
	p.Sources[0].Ref = verify.Field{}
	rule, _ := inPolicy(t, `- {id: "https://ci.example/b", signer: {key: k.pub}, maxLevel: 2}`,
		`{match: "**", level: {build: 1}, parameters: {workflow: any}, source: {repository: "https://github.com/acme/app", ref: refs/tags/v1}}`).For("x")
	for name, c := range map[string]struct {
		run verify.Run
		bad string
	}{
		"proved":             {verify.Run{Repository: "https://github.com/acme/app", Commit: c40, Ref: "refs/tags/v1"}, ""},
		"proved another":     {verify.Run{Repository: "https://github.com/acme/app", Commit: c40, Ref: "refs/heads/v1"}, `built from "refs/heads/v1"`},
		"another commit":     {verify.Run{Repository: "https://github.com/acme/app", Commit: "1", Ref: "refs/tags/v1"}, "nothing says"},
		"another repository": {verify.Run{Repository: "https://github.com/fork/app", Commit: c40, Ref: "refs/tags/v1"}, "nothing says"},
		"nothing":            {verify.Run{}, "nothing says"},
	} {
		got := rule.Expect(p, verify.Signer{Run: c.run})
		if (len(got) == 0) != (c.bad == "") || len(got) > 0 && !strings.Contains(got[0].Message, c.bad) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

func TestCaseOfACertificatesRun(t *testing.T) {
	c, err := policy.LoadCase("testdata/cases/library.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := c.Evidence[0].Signer.Run; got != (verify.Run{Repository: "https://github.com/acme/app", Runner: "self-hosted", Event: "push"}) {
		t.Errorf("%+v", got)
	}
	raw, err := os.ReadFile("testdata/cases/library.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := strings.ReplaceAll(strings.Replace(string(raw), "runner:", "runers:", 1), "../", mustAbs(t)+"/")
	if err := os.WriteFile(dir+"/c.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.LoadCase(dir + "/c.yaml"); err == nil || errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), `unknown field "runers"`) {
		t.Errorf("got %v", err)
	}
}
