package policy_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

var update = flag.Bool("update", false, "write the golden files")

func schema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(policy.Schema())))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("policy.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("policy.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// plainly reads YAML as an editor with a schema would.
func plainly(t testing.TB, raw []byte) (any, error) {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(raw, &v); err != nil {
		return nil, err
	}
	j, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return jsonschema.UnmarshalJSON(strings.NewReader(string(j)))
}

func TestGoodPolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/good/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	s := schema(t)
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			p, err := policy.Load(f)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if p.Digest() != attest.DigestOf(raw) || p.Path() != f || len(p.Trust().Builders)+len(p.Verifiers()) == 0 || p.Summary() == "" {
				t.Errorf("loaded as %+v", p)
			}
			doc, err := plainly(t, raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Validate(doc); err != nil {
				t.Errorf("the schema refuses what the parser takes: %v", err)
			}
		})
	}
}

// Every bad policy is refused with a message that names the file and the
// thing; the schema refuses it too, but for what a schema cannot say.
func TestBadPolicies(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no examples", err)
	}
	s := schema(t)
	beyond := []string{"anchor", "alias", "merge", "two-documents", "tag", "key-missing", "key-no-key", "builder-twice", "source-no-url", "unhosted-lookalike",
		"rule-not-bool", "rule-syntax", "rule-unknown-variable", "rule-unknown-field", "rule-wrong-type", "rule-costly", "rule-twice", "rule-regexp", "rule-time",
		"waiver-no-such-rule", "license-expression", "verifier-empty", "verifier-twice", "reviewers-one-signer", "reviewers-one-key", "revoked-elsewhere", "approvals-too-many", "approvals-nobody", "approvals-twice", "signatures-too-many", "signatures-nobody", "signatures-twice", "signatures-of-too-few", "builders-one-signer", "vsa-nobody", "vsa-stranger", "forbidden-no-purl", "forbidden-qualifier", "extends-other-digest", "extends-circle", "extends-missing",
		"san-begins-with-star", "san-regexp", "san-repo-prefix", "san-host", "issuer-pattern", "window-empty", "window-nonsense", "outages-empty", "root-missing", "root-nonsense", "root-mixed", "ca-nonsense", "crl-nonsense", "root-stamps-only",
		"use-level", "use-self-hosted", "use-no-san", "use-open-owner", "use-other-host", "use-branch", "use-open-workflow", "use-generator-main", "use-generator-star",
		"use-issuer", "use-key", "use-no-key", "use-event", "use-build-type", "use-twice", "id-pattern-host", "id-pattern-all", "id-from-key", "builder-type-pattern"}
	got := map[string]string{}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".yaml")
		p, err := policy.Load(f)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		if p != nil || !strings.Contains(err.Error(), f) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		got[name] = strings.ReplaceAll(err.Error(), f, "FILE")
		raw, rerr := os.ReadFile(f)
		if rerr != nil {
			t.Fatal(rerr)
		}
		doc, yerr := plainly(t, raw)
		if refused := yerr != nil || s.Validate(doc) != nil; refused == slices.Contains(beyond, name) {
			t.Errorf("%s: refused by the schema: %t", name, refused)
		}
	}
	var b strings.Builder
	for _, n := range slices.Sorted(maps.Keys(got)) {
		fmt.Fprintf(&b, "%s: %s\n", n, got[n])
	}
	golden(t, "testdata/bad.golden", b.String())
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it); got:\n%s", file, got)
	}
}

// Hostile files end in one clear error, soon and in little memory.
func TestHostilePolicies(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'i'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 10), ","))
	}
	full := attest.MaxPolicy - 10
	for _, c := range []struct{ name, in, want string }{
		{"aliases to the ninth power", bomb, "anchors and aliases"},
		{"brackets", strings.Repeat("[", full), "nested"},
		{"braces", "a: " + strings.Repeat("{a: ", full/8), "nested"},
		{"dashes", strings.Repeat("- ", full/2), ""},
		{"indentation", func() string {
			var b strings.Builder
			for i := 0; b.Len() < full-2000; i++ {
				b.WriteString(strings.Repeat(" ", i) + "a:\n")
			}
			return b.String()
		}(), "nested"},
		{"many fields", func() string {
			var b strings.Builder
			for i := 0; b.Len() < full-20; i++ {
				fmt.Fprintf(&b, "a%d: 1\n", i)
			}
			return b.String()
		}(), "values"},
		{"anchors", strings.Repeat("- &a x\n", full/8), ""},
		{"one long word", "apiVersion: " + strings.Repeat("x", full-20), "apiVersion"},
		{"stars", "apiVersion: waxseal.dev/v1\nimages: [{match: \"" + strings.Repeat("*a", 400) + "\", level: {build: 1}}]", "longer than 512"},
		{"100 MB", strings.Repeat("# nothing\n", 10<<20), "larger"},
		{"nul bytes", strings.Repeat("\x00", 1000), ""},
		{"not UTF-8", "apiVersion: \xff\xfe", ""},
		{"escape sequences", "\"\\e[2J\": 1", "unknown field"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, err := policy.Parse([]byte(c.in), policy.ParseOptions{Name: "p.yaml"})
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), "p.yaml") || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v", err)
			}
			if len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("not one clear line: %q", err)
			}
			if took > 10*time.Second {
				t.Errorf("took %s", took)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 512<<20 {
				t.Errorf("allocated %d MiB", used>>20)
			}
		})
	}
}

func TestLoadReadsOnlyRegularFilesOfItsSize(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(big, 100<<20); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{big: "larger", "/dev/zero": "regular", dir: "regular", filepath.Join(dir, "none"): "no such file"} {
		if _, err := policy.Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// The same for the keys a policy names.
	text := strings.Replace(minimal, "k.pub", "/dev/zero", 1)
	file := filepath.Join(dir, "p.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.Load(file); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a device as key: %v", err)
	}
}

const minimal = `apiVersion: waxseal.dev/v1
kind: Policy
trust:
  builders:
    - {id: "https://ci.example.org/b", signer: {key: k.pub}, maxLevel: 3}
images:
`

func parse(t testing.TB, images string) *policy.Policy {
	t.Helper()
	key, err := os.ReadFile("testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse([]byte(minimal+images), policy.ParseOptions{ReadKey: func(name string) ([]byte, error) {
		if name != "k.pub" {
			return nil, errors.New("no such key")
		}
		return key, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"r.example/a/b", "r.example/a/b", true},
		{"r.example/a/b", "r.example/a/bc", false},
		{"r.example/a/b", "x.r.example/a/b", false},
		{"r.example/a/*", "r.example/a/b", true},
		{"r.example/a/*", "r.example/a/b/c", false},
		{"r.example/a/**", "r.example/a/b/c", true},
		{"r.example/a/**", "r.example/a-evil/b", false},
		{"r.example/*/app", "r.example/x/app", true},
		{"r.example/*/app", "r.example/x/y/app", false},
		{"**/app", "r.example/x/y/app", true},
		{"**/app", "r.example/x/y/app2", false},
		{"**/a*/x", "r.example/ab/y/ac/x", true},
		{"**", "anything/at:all", true},
		{"*", "oci:image", true},
		{"*", "a/b", false},
		{"oci:**", "oci:/tmp/x", true},
		{"r.example.a", "rxexample.a", false},
		{"r.example/A", "r.example/a", false},
		// One place has many names.
		{"R.example/a", "r.example/a", true},
		{"r.example/a", "R.Example:443/a", true},
		{"r.example:443/a", "r.example./a", true},
		{"r.example/a", "r.example:444/a", false},
		{"docker.io/acme/**", "index.docker.io/acme/app", true},
		{"docker.io/acme/**", "DOCKER.io/acme/app", true},
		{"index.docker.io/**", "registry-1.docker.io/acme/app", true},
		{"docker.io/acme/**", "x.docker.io/acme/app", false},
		{"docker:Docker.io/**", "docker:Docker.io/acme/app", true},
		{"oci:Dir/**", "oci:dir/app", false},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "aXbY", false},
		{"**a**b**", strings.Repeat("a", 300), false},
	} {
		_, got := parse(t, fmt.Sprintf("  - {match: %q, level: {build: 1}}\n", c.pattern)).For(c.name)
		if got != c.want {
			t.Errorf("%q on %q: %t", c.pattern, c.name, got)
		}
	}
}

// Every entry that matches counts, not only the first.
func TestEntriesHoldTogether(t *testing.T) {
	p := parse(t, `
  - {match: "**", level: {build: 1, source: 2}, properties: [WAXSEAL_HERMETIC], sbom: {required: true, formats: [spdx]}}
  - {match: "r.example/prod/**", level: {build: 3}, buildTypes: ["https://other.example/type"], sbom: {required: true, formats: [cyclonedx]}}
  - {match: "r.example/prod/app", level: {build: 2, source: 1}, properties: [WAXSEAL_HERMETIC, SLSA_BUILD_REPRODUCED], source: {repository: "https://other.example/repo"}}
`)
	r, ok := p.For("r.example/prod/app")
	if want := "Build L3, Source L2, SLSA_BUILD_REPRODUCED, WAXSEAL_HERMETIC"; !ok || r.Level().String() != want {
		t.Errorf("level %s", r.Level())
	}
	if required, formats := r.SBOM(); !required || !slices.Equal(formats, []string{"cyclonedx", "spdx"}) {
		t.Errorf("sbom %v", formats)
	}
	var codes []string
	for _, b := range r.Expect(provenance(t, `{"context":{"kind":"directory"}}`, ""), verify.Signer{}) {
		codes = append(codes, b.Code)
	}
	slices.Sort(codes)
	if !slices.Equal(codes, []string{policy.CodeBuildType, policy.CodeSource}) {
		t.Errorf("problems %v", codes)
	}
	if _, ok := parse(t, `  - {match: "r.example/**", level: {build: 1}}`).For("other.example/app"); ok {
		t.Error("an image that nothing matches has a rule")
	}
}

func provenance(t testing.TB, external, deps string) *verify.Provenance {
	t.Helper()
	return provenanceOf(t, attestations.ContainerBuildType, external, deps)
}

func provenanceOf(t testing.TB, buildType, external, deps string) *verify.Provenance {
	t.Helper()
	p, err := verify.ParseProvenance(&attest.Statement{PredicateType: attestations.ProvenanceV1, Predicate: fmt.Appendf(nil,
		`{"buildDefinition":{"buildType":%q,"externalParameters":%s,"resolvedDependencies":[%s]},"runDetails":{"builder":{"id":"https://ci.example.org/b"}}}`,
		buildType, external, deps)})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const app = `{"name":"source","uri":"git+https://git.example.org/acme/app","digest":{"gitCommit":"c0ffee"}}`

func TestExpect(t *testing.T) {
	changed := strings.Replace(app, `"digest"`, `"annotations":{"changedFiles":["a","b"]},"digest"`, 1)
	for _, c := range []struct{ name, image, external, deps, want string }{
		{"nothing set", ``, `{"context":{"kind":"directory"}}`, "", ""},
		{"a fetched context", ``, `{"context":{"kind":"git","uri":"https://x.example/y"}}`, "", "parameter /predicate/buildDefinition/externalParameters/context/kind; parameter /predicate/buildDefinition/externalParameters/context/uri"},
		{"a listed fetched context", `parameters: {context/kind: [git], context/uri: ["https://x.example/y"]}`, `{"context":{"kind":"git","uri":"https://x.example/y"}}`, "", ""},
		{"another than the listed context", `parameters: {context/kind: [git], context/uri: ["https://x.example/y"]}`, `{"context":{"kind":"git","uri":"https://x.example/z"}}`, "", "parameter /predicate/buildDefinition/externalParameters/context/uri"},
		{"what cannot hurt", ``, `{"context":{"kind":"directory"},"platforms":["linux/amd64"],"sbom":["spdx"],"pull":true,"noCache":true,"sourceDateEpoch":"1","network":"none"}`, "", ""},
		{"defaults written out", ``, `{"context":{},"buildArgs":{},"labels":null,"secrets":[],"target":"","pull":false}`, "", ""},
		{"a build argument", ``, `{"buildArgs":{"VERSION":"1"}}`, "", "parameter /predicate/buildDefinition/externalParameters/buildArgs/VERSION"},
		{"a listed build argument", `parameters: {buildArgs: [VERSION]}`, `{"buildArgs":{"VERSION":"1"}}`, "", ""},
		{"one listed, one not", `parameters: {buildArgs: [VERSION]}`, `{"buildArgs":{"VERSION":"1","EVIL":"1"}}`, "", "parameter /predicate/buildDefinition/externalParameters/buildArgs/EVIL"},
		{"a listed name in another case", `parameters: {buildArgs: [VERSION]}`, `{"buildArgs":{"version":"1"}}`, "", "parameter /predicate/buildDefinition/externalParameters/buildArgs/version"},
		{"a pinned value", `parameters: {buildArgs: ["CHANNEL=stable"]}`, `{"buildArgs":{"CHANNEL":"stable"}}`, "", ""},
		{"another value than the pinned", `parameters: {buildArgs: ["CHANNEL=stable"]}`, `{"buildArgs":{"CHANNEL":"edge"}}`, "", "parameter /predicate/buildDefinition/externalParameters/buildArgs/CHANNEL"},
		{"a pair as a name", `parameters: {buildArgs: ["A=B"]}`, `{"buildArgs":{"A=B":"C"}}`, "", ""},
		{"any", `parameters: {buildArgs: any}`, `{"buildArgs":{"X":"1"}}`, "", ""},
		{"a target", ``, `{"target":"debug"}`, "", "parameter /predicate/buildDefinition/externalParameters/target"},
		{"a listed target", `parameters: {target: [release]}`, `{"target":"release"}`, "", ""},
		{"a build's own inputs", ``, `{"inputs":{"mode":"record","allowHosts":["*.example.org"]}}`, "", ""},
		{"inputs held to a lock", ``, `{"inputs":{"mode":"locked","lock":"sha256:00"}}`, "", ""},
		{"a mode of inputs that nobody knows", ``, `{"inputs":{"mode":"trusting"}}`, "", "parameter /predicate/buildDefinition/externalParameters/inputs/mode"},
		{"another upstream", ``, `{"inputs":{"mode":"record","upstreams":["deb.example.org"]}}`, "", "parameter /predicate/buildDefinition/externalParameters/inputs/upstreams/0"},
		{"a listed upstream", `parameters: {inputs/upstreams: [deb.example.org]}`, `{"inputs":{"mode":"record","upstreams":["deb.example.org"]}}`, "", ""},
		{"only locked inputs wanted", `parameters: {inputs/mode: [locked, offline]}`, `{"inputs":{"mode":"record"}}`, "", "parameter /predicate/buildDefinition/externalParameters/inputs/mode"},
		{"only locked inputs wanted, and given", `parameters: {inputs/mode: [locked, offline]}`, `{"inputs":{"mode":"offline","lock":"sha256:00"}}`, "", ""},
		{"an entitlement", ``, `{"allow":["network.host"]}`, "", "parameter /predicate/buildDefinition/externalParameters/allow/0"},
		{"a number", `parameters: {shmSize: [67108864]}`, `{"shmSize":67108864}`, "", ""},
		{"a secret", ``, `{"secrets":["token"]}`, "", "parameter /predicate/buildDefinition/externalParameters/secrets/0"},
		{"another Dockerfile", ``, `{"dockerfile":"../evil"}`, "", "parameter /predicate/buildDefinition/externalParameters/dockerfile"},
		{"the host's network", ``, `{"network":"host"}`, "", "parameter /predicate/buildDefinition/externalParameters/network"},
		{"a parameter from the future", ``, `{"entitlements":["security.insecure"]}`, "", "parameter /predicate/buildDefinition/externalParameters/entitlements/0"},
		{"a key with a slash", ``, `{"a/b~c":"x"}`, "", "parameter /predicate/buildDefinition/externalParameters/a~1b~0c"},

		{"the source", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, app, ""},
		{"a fork", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, strings.Replace(app, "acme", "evil", 1), "source /predicate/buildDefinition/resolvedDependencies/0"},
		{"a name that goes on", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, strings.Replace(app, "acme/app", "acme/app-evil", 1), "source /predicate/buildDefinition/resolvedDependencies/0"},
		{"no source", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, "", "source /predicate/buildDefinition/externalParameters"},
		{"the source as a mere dependency", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, strings.Replace(app, `"name":"source",`, "", 1), "source /predicate/buildDefinition/externalParameters"},
		{"no commit", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, strings.Replace(app, "c0ffee", "", 1), "source /predicate/buildDefinition/resolvedDependencies/0"},
		{"changed files", `source: {repository: "https://git.example.org/acme/app"}`, `{}`, changed, "source /predicate/buildDefinition/resolvedDependencies/0"},
		{"changed files, allowed", `source: {repository: "https://git.example.org/acme/app", allowChanges: true}`, `{}`, changed, ""},
		{"another build type", `buildTypes: ["https://other.example/t"]`, `{}`, "", "build-type /predicate/buildDefinition/buildType"},
	} {
		t.Run(c.name, func(t *testing.T) {
			images := "  - match: \"**\"\n    level: {build: 1}\n"
			if c.image != "" {
				images += "    " + c.image + "\n"
			}
			r, _ := parse(t, images).For("x")
			var got []string
			for _, b := range r.Expect(provenance(t, c.external, c.deps), verify.Signer{}) {
				got = append(got, b.Code+" "+b.Pointer)
				if b.Message == "" {
					t.Error("no message")
				}
			}
			if s := strings.Join(got, "; "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
		})
	}
}

// A command is expected whole; what waxseal run's every command has is not asked
// for.
func TestExpectOfACommand(t *testing.T) {
	const at = "parameter /predicate/buildDefinition/externalParameters/"
	for _, c := range []struct{ name, parameters, external, want, hint string }{
		{"nothing listed", `{}`, `{"command":["sh","-c","make all"],"variables":["PATH","GITHUB_SHA"],"artifacts":["dist/*"],"trace":true,"inputs":{"mode":"record"}}`,
			at + "command", `if it is meant, add to the image's entry: parameters: {command: ["sh -c \"make all\""]}`},
		{"the command", `{command: ['sh -c "make all"', make]}`, `{"command":["sh","-c","make all"],"variables":["PATH"],"inputs":{"mode":"locked","lock":"sha256:00"}}`, "", ""},
		{"the same words apart", `{command: [sh, -c, make all]}`, `{"command":["sh","-c","make all"],"inputs":{"mode":"record"}}`, at + "command", ""},
		{"more words", `{command: [make]}`, `{"command":["make","evil"],"inputs":{"mode":"record"}}`, at + "command", ""},
		{"another variable", `{command: any}`, `{"command":["make"],"variables":["CFLAGS","HOME"],"inputs":{"mode":"record"}}`,
			at + "variables/0", "if it is meant, add to the image's entry: parameters: {variables: [CFLAGS]}"},
		{"a listed variable", `{command: any, variables: [CFLAGS]}`, `{"command":["make"],"variables":["CFLAGS","HOME"],"inputs":{"mode":"record"}}`, "", ""},
		{"another upstream", `{command: any}`, `{"command":["make"],"inputs":{"mode":"record","upstreams":["up.example"]}}`, at + "inputs/upstreams/0", ""},
		{"a folder of no known source", `{command: any}`, `{"command":["make"],"folder":"sub","inputs":{"mode":"record"}}`, at + "folder", ""},
		{"no words", `{command: [make]}`, `{"command":[{"name":"make"}],"inputs":{"mode":"record"}}`, at + "command", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := parse(t, "  - {match: \"**\", level: {build: 1}, parameters: "+c.parameters+"}\n").For("x")
			var got []string
			hints := ""
			for _, b := range r.Expect(provenanceOf(t, attestations.CommandType, c.external, ""), verify.Signer{}) {
				got, hints = append(got, b.Code+" "+b.Pointer), hints+b.Hint
			}
			if s := strings.Join(got, "; "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
			if c.hint != "" && hints != c.hint {
				t.Errorf("hint %q, want %q", hints, c.hint)
			}
		})
	}
}

// A build type that waxseal does not know has no parameters that may be set
// without being listed.
func TestUnknownBuildTypeMustListAll(t *testing.T) {
	p := provenanceOf(t, "https://other.example/t", `{"source":"git+https://git.example.org/a","request":{"args":{"build-arg:V":"1"},"frontend":"f"}}`, "")
	r, _ := parse(t, "  - {match: \"**\", level: {build: 1}}\n").For("x")
	if n := len(r.Expect(p, verify.Signer{})); n != 3 {
		t.Errorf("%d problems: %+v", n, r.Expect(p, verify.Signer{}))
	}
	r, _ = parse(t, `  - {match: "**", level: {build: 1}, parameters: {source: ["git+https://git.example.org/a"], request/frontend: any, request/args: ["build-arg:V"]}}`).For("x")
	if b := r.Expect(p, verify.Signer{}); len(b) > 0 {
		t.Errorf("%+v", b)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	args := map[string]string{}
	for i := range 10_000 {
		args[fmt.Sprintf("A%d", i)] = strings.Repeat("x", 10)
	}
	raw, err := json.Marshal(map[string]any{"buildArgs": args})
	if err != nil {
		t.Fatal(err)
	}
	r, _ := parse(t, "  - {match: \"**\", level: {build: 1}}\n").For("x")
	if n := len(r.Expect(provenance(t, string(raw), ""), verify.Signer{})); n == 0 || n > 100 {
		t.Errorf("%d problems", n)
	}
}

// What Draft writes is taken by Parse and fulfilled by what it was made from.
func TestDraft(t *testing.T) {
	key, err := os.ReadFile("testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	build := provenance(t, `{"context":{"kind":"directory"},"dockerfile":"docker/Dockerfile","target":"release","buildArgs":{"VERSION":"1","weird: [key]":"x","null":"y"},
		"labels":{"org.example/a":"b"},"secrets":["token"],"shmSize":67108864,"platforms":["linux/amd64"],"addHosts":["h=127.0.0.1"],"cacheFrom":["type=registry,ref=\"x\""],
		"allow":["network.host"],"inputs":{"mode":"record","allowHosts":["*.example.org"],"upstreams":["deb.example.org"]}}`,
		strings.Replace(app, `"digest"`, `"annotations":{"changedFiles":["a"]},"digest"`, 1))
	foreign := provenanceOf(t, "https://other.example/t", `{"request":{"args":{"build-arg:V":"1"},"deep":{"a":{"b":["x",{"id":"y"}]}},"odd":[{"no":"name"}]},"flag":true}`, "")
	for _, c := range []struct {
		name string
		in   policy.DraftInput
	}{
		{"build", policy.DraftInput{Image: "r.example/app:1\nkind: Evil", Match: []string{"r.example/app"}, Level: verify.Demand{Levels: verify.Levels{Build: 1}}, SBOM: []string{"spdx", "cyclonedx"},
			Builders:   []policy.DraftBuilder{{ID: attestations.UnhostedBuilderID, KeyFile: "keys/release.pub", PEM: key}},
			Provenance: []*verify.Provenance{build, build}}},
		{"foreign", policy.DraftInput{Image: "r.example/app:1", Match: []string{"r.example/app", "oci:**"}, Level: verify.Demand{Levels: verify.Levels{Build: 2, Source: 3}, Properties: []string{verify.PropertyReproduced}},
			Builders:   []policy.DraftBuilder{{ID: "https://ci.example.org/b", PEM: key}},
			Provenance: []*verify.Provenance{foreign}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			raw, err := policy.Draft(c.in)
			if err != nil {
				t.Fatal(err)
			}
			p, err := policy.Parse(raw, policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return key, nil }})
			if err != nil {
				t.Fatalf("%v in:\n%s", err, raw)
			}
			r, ok := p.For("r.example/app")
			if !ok || r.Level().String() != c.in.Level.String() {
				t.Errorf("level %s", r.Level())
			}
			for _, prov := range c.in.Provenance {
				if b := r.Expect(prov, verify.Signer{}); len(b) > 0 {
					t.Errorf("its own evidence does not fulfil it: %+v", b)
				}
			}
			doc, err := plainly(t, raw)
			if err != nil {
				t.Fatal(err)
			}
			if err := schema(t).Validate(doc); err != nil {
				t.Error(err)
			}
			golden(t, "testdata/draft-"+c.name+".golden", string(raw))
		})
	}
	if _, err := policy.Draft(policy.DraftInput{}); err == nil {
		t.Error("drafted from nothing")
	}
}

func TestSBOMContent(t *testing.T) {
	for _, c := range []struct {
		format, in, version string
		n                   int
	}{
		{"spdx", `{"spdxVersion":"SPDX-2.3","packages":[{"a":[1,2]},{}],"files":[]}`, "SPDX-2.3", 2},
		{"cyclonedx", `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{}]}`, "1.6", 1},
		{"cyclonedx", `{"bomFormat":"CycloneDX","specVersion":"1.6"}`, "1.6", 0},
		{"spdx", `{}`, "", 0},
		{"spdx", `{"bomFormat":"CycloneDX","specVersion":"1.6"}`, "", 0},
		{"cyclonedx", `{"bomFormat":"CycloneDX"}`, "", 0},
		{"spdx", `{"spdxVersion":"SPDX-2.3","packages":{}}`, "", 0},
		{"spdx", `{"spdxVersion":2.3}`, "", 0},
		{"spdx", `[]`, "", 0},
		{"spdx", ``, "", 0},
		{"spdx", `{"spdxVersion":"SPDX-2.3","packages":[`, "", 0},
	} {
		version, n, err := policy.SBOMContent(c.format, []byte(c.in))
		if version != c.version || n != c.n || (err == nil) != (c.version != "") {
			t.Errorf("%s %s: %q, %d, %v", c.format, c.in, version, n, err)
		}
	}
	for kind, want := range map[string]string{attestations.SPDX: "spdx", attestations.CycloneDX: "cyclonedx", attestations.CycloneDX + "/v1.6": "cyclonedx", attestations.SPDX + "evil": "", "": ""} {
		if got := policy.SBOMFormat(kind); got != want {
			t.Errorf("%q is %q", kind, got)
		}
	}
}

// FuzzParse: no input panics; what is accepted has somebody to trust and
// something to expect, and can be asked.
func FuzzParse(f *testing.F) {
	for _, glob := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml"} {
		files, err := filepath.Glob(glob)
		if err != nil {
			f.Fatal(err)
		}
		for _, file := range files {
			raw, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	key, err := os.ReadFile("testdata/release.pub")
	if err != nil {
		f.Fatal(err)
	}
	prov := provenance(f, `{"buildArgs":{"A":"b"}}`, app)
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := policy.Parse(raw, policy.ParseOptions{Name: "p", ReadKey: func(string) ([]byte, error) { return key, nil }})
		if err != nil {
			return
		}
		if len(p.Trust().Builders)+len(p.Verifiers()) == 0 || len(p.Trust().Keys)+len(p.Trust().Identities) == 0 || len(p.Patterns()) == 0 {
			t.Fatal("accepted a policy that says nothing")
		}
		for _, b := range p.Trust().Builders {
			if verify.Unhosted(b.ID) && b.MaxLevel > 1 {
				t.Fatal("the unhosted builder above L1")
			}
		}
		if r, ok := p.For("r.example/app"); ok {
			r.Expect(prov, verify.Signer{})
		}
		p.Summary()
	})
}
