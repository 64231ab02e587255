package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

// pipelines is examples/pipelines.
func pipelines(t *testing.T) string {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(root, "examples/pipelines")
}

func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := testkit.BuildPeer(t.Context(), name)
	if err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	return path
}

// TestThePoliciesOfThePipelines judges, for each pipeline, what waxseal writes
// there: its own image passes at the level that the policy declares, and the
// same of a fork's branch, of another signer or another builder does not.
func TestThePoliciesOfThePipelines(t *testing.T) {
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waxseal := filepath.Join(bin, "waxseal")
	const commit = "0796f27d68a0ac9a0067e220c1d2bee893403784"
	for _, p := range []struct {
		folder, image, builder, repository, ref, runner string
		issuer, san                                     string // "": a key
		level                                           int
	}{
		{
			folder: "github-reusable", image: "ghcr.io/acme/app", level: 3, builder: "https://github.com/acme/ci/.github/workflows/seal.yml",
			repository: "https://github.com/acme/app", ref: "refs/tags/v1.2.3", runner: "github-hosted",
			issuer: "https://token.actions.githubusercontent.com", san: "https://github.com/acme/ci/.github/workflows/seal.yml@refs/tags/v1",
		},
		{
			folder: "github", image: "ghcr.io/acme/app", level: 2, builder: "https://github.com/acme/app/.github/workflows/build.yml@refs/heads/main",
			repository: "https://github.com/acme/app", ref: "refs/heads/main", runner: "github-hosted",
			issuer: "https://token.actions.githubusercontent.com", san: "https://github.com/acme/app/.github/workflows/build.yml@refs/heads/main",
		},
		{
			folder: "gitlab", image: "registry.gitlab.com/acme/app", level: 2, builder: "https://gitlab.com/acme/app//.gitlab-ci.yml",
			repository: "https://gitlab.com/acme/app", ref: "refs/tags/v1", runner: "self-hosted",
			issuer: "https://gitlab.com", san: "https://gitlab.com/acme/app//.gitlab-ci.yml@refs/tags/v1",
		},
		{folder: "jenkins", image: "registry.acme.example/app", level: 2, builder: "https://jenkins.acme.example/job/app", repository: "https://git.acme.example/acme/app"},
		{folder: "tekton", image: "registry.acme.example/app", level: 2, builder: "https://tekton.acme.example/waxseal-build", repository: "https://git.acme.example/acme/app"},
	} {
		t.Run(p.folder, func(t *testing.T) {
			dir := t.TempDir()
			run := func(args ...string) string {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), waxseal, args...)
				cmd.Dir, cmd.Env = dir, append(os.Environ(), "COSIGN_PASSWORD=x")
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("waxseal %s: %v\n%s", strings.Join(args, " "), err, out)
				}
				return string(out)
			}
			run("key", "generate", "--output-prefix", "waxseal")
			run("key", "generate", "--output-prefix", "stranger")
			policy, err := os.ReadFile(filepath.Join(pipelines(t), p.folder, "policy.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			// Here is no AWS: the file stands in for the key that is there.
			policy = regexp.MustCompile(`\{kms: "[^"]+"\}`).ReplaceAll(policy, []byte("{key: waxseal.pub}"))
			if err := os.WriteFile(filepath.Join(dir, "policy.yaml"), policy, 0o644); err != nil {
				t.Fatal(err)
			}
			run("policy", "check", "policy.yaml")

			job := map[string]any{"repository": p.repository, "commit": commit, "event": "push"}
			if p.ref != "" {
				job["ref"], job["runner"] = p.ref, p.runner
			}
			write := func(name, reason string, change func(provenance, signer map[string]any)) {
				signer := map[string]any{"issuer": p.issuer, "san": p.san}
				if p.ref != "" {
					// What Fulcio writes into the certificate of such a job.
					signer["run"] = map[string]any{"repository": p.repository, "commit": commit, "ref": p.ref, "runner": p.runner, "event": "push"}
				}
				predicate := map[string]any{
					"buildDefinition": map[string]any{
						"buildType":          "https://waxseal.dev/attestations/container-build/v1",
						"externalParameters": map[string]any{"context": map[string]any{"kind": "directory"}, "inputs": map[string]any{"mode": "locked", "lock": "sha256:" + strings.Repeat("0", 64)}},
						"internalParameters": map[string]any{
							"engine": map[string]any{"name": "embedded"}, "network": "recorded", "frontend": "dockerfile.v0",
							"ci": map[string]any{"platform": p.folder, "verified": job},
						},
						"resolvedDependencies": []any{map[string]any{"name": "source", "uri": "git+" + p.repository, "digest": map[string]any{"gitCommit": commit}}},
					},
					"runDetails": map[string]any{
						"builder": map[string]any{"id": p.builder}, "metadata": map[string]any{"invocationId": "1"},
						"byproducts": []any{map[string]any{"name": "inputs", "digest": map[string]any{"sha256": "$INPUTS"}, "mediaType": "application/vnd.in-toto+json"}},
					},
				}
				change(predicate, signer)
				var by any = signer
				if p.issuer == "" {
					by = "../waxseal.pub"
					if signer["san"] != "" {
						by = "../stranger.pub"
					}
				}
				inputs := map[string]any{"mode": "locked", "verdict": "isolated", "hermetic": true, "lock": "sha256:" + strings.Repeat("0", 64), "sources": []any{}, "steps": []any{}}
				doc := map[string]any{
					"apiVersion": "waxseal.dev/v1", "kind": "PolicyTest", "name": name, "policy": "../policy.yaml", "image": p.image,
					"facts": map[string]any{
						"config": map[string]any{"os": "linux"},
						"evidence": []any{
							map[string]any{"type": "provenance", "signer": by, "predicate": predicate},
							map[string]any{"type": "inputs", "signer": by, "predicate": inputs},
						},
					},
					"expect": map[string]any{"decision": "pass", "level": p.level},
				}
				if reason != "" {
					doc["expect"] = map[string]any{"decision": "deny", "reasons": []any{reason}}
				}
				raw, err := yaml.Marshal(doc)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.MkdirAll(filepath.Join(dir, "cases"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "cases", name+".yaml"), raw, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			write("its own", "", func(_, _ map[string]any) {})
			write("another signer", "is not the one trusted for builder.id", func(_, signer map[string]any) {
				signer["san"] = "https://github.com/eve/app/.github/workflows/x.yml@refs/heads/main"
			})
			write("another builder", "is not a trusted builder", func(p, _ map[string]any) {
				p["runDetails"].(map[string]any)["builder"] = map[string]any{"id": "https://eve.example/builder"}
			})
			if p.ref != "" {
				write("another repository", "built from \"https://github.com/eve/app\"", func(p, signer map[string]any) {
					signer["run"].(map[string]any)["repository"] = "https://github.com/eve/app"
					p["buildDefinition"].(map[string]any)["resolvedDependencies"].([]any)[0].(map[string]any)["uri"] = "git+https://github.com/eve/app"
				})
			}
			run("policy", "test", "cases")
		})
	}
}

// TestThePipelinesThatWrap runs those that wrap a command as their user would,
// with the real make, buildx and compose: by another builder, by another signer,
// and as they stand. The last alone passes, at the level that the policy has.
func TestThePipelinesThatWrap(t *testing.T) {
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		folder   string
		tools    []string // on PATH
		plugins  []string // of docker
		evidence []string // flags of verify
		images   []string
	}{
		{"make", []string{"make", "cc"}, nil, []string{"--evidence", "evidence"}, []string{"file:dist/words"}},
		{"compose", []string{"docker"}, []string{"buildx", "compose"}, nil, []string{"REGISTRY/web:v1", "REGISTRY/worker:v1"}},
		{"bake", []string{"docker"}, []string{"buildx"}, nil, []string{"REGISTRY/app:v1", "REGISTRY/app-debug:v1"}},
	} {
		t.Run(p.folder, func(t *testing.T) {
			for _, name := range p.tools {
				if _, err := exec.LookPath(name); err != nil {
					testkit.Unavailable(t, "%v", err)
				}
			}
			dir := t.TempDir()
			place := filepath.Join(dir, "pipeline")
			if err := os.CopyFS(place, os.DirFS(filepath.Join(pipelines(t), p.folder))); err != nil {
				t.Fatal(err)
			}
			plugins, data := filepath.Join(dir, "docker/cli-plugins"), filepath.Join(dir, "registry")
			for _, name := range []string{plugins, data} {
				if err := os.MkdirAll(name, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range p.plugins {
				if err := os.Symlink(peer(t, name), filepath.Join(plugins, "docker-"+name)); err != nil {
					t.Fatal(err)
				}
			}
			env := append(os.Environ(), "COSIGN_PASSWORD=x", "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir, "DOCKER_CONFIG="+filepath.Join(dir, "docker"),
				"WAXSEAL_HOME="+filepath.Join(dir, "home"), "WAXSEAL_CACHE="+filepath.Join(dir, "cache"), "WAXSEAL_STORE="+filepath.Join(dir, "store"))
			run := func(program string, args ...string) (string, int) {
				t.Helper()
				cmd := exec.CommandContext(t.Context(), program, args...)
				cmd.Dir, cmd.Env = place, env
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if err != nil && !errors.As(err, &exit) {
					t.Fatal(err)
				}
				return string(out), cmd.ProcessState.ExitCode()
			}
			must := func(program string, args ...string) {
				t.Helper()
				if out, code := run(program, args...); code != 0 {
					t.Fatalf("%s %s: exit code %d\n%s", filepath.Base(program), strings.Join(args, " "), code, out)
				}
			}
			waxseal := filepath.Join(bin, "waxseal")
			must(waxseal, "key", "generate", "--output-prefix", "waxseal")
			must(waxseal, "key", "generate", "--output-prefix", "stranger")

			registry := ""
			if len(p.plugins) > 0 {
				reg, err := testkit.StartDistribution(peer(t, "registry"), data)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(reg.Close)
				registry = reg.Addr
				base, err := testkit.TinyBase(t.Context())
				if err != nil {
					testkit.Unavailable(t, "%v", err)
				}
				must(peer(t, "crane"), "push", base, registry+"/base:v1")
			}
			edit := func(name, old, by string) {
				t.Helper()
				raw, err := os.ReadFile(filepath.Join(place, name))
				if err == nil {
					err = os.WriteFile(filepath.Join(place, name), bytes.ReplaceAll(raw, []byte(old), []byte(by)), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			edit("policy.yaml", "registry.acme.example", registry)
			must(waxseal, "policy", "check", "policy.yaml")

			build := func(key, want string, code int) {
				t.Helper()
				for _, made := range []string{"dist", "evidence"} {
					if err := os.RemoveAll(filepath.Join(place, made)); err != nil {
						t.Fatal(err)
					}
				}
				must("sh", "run.sh", key, registry+"/base:v1", registry)
				for _, image := range p.images {
					args := append([]string{"verify", "--policy", "policy.yaml"}, append(p.evidence, strings.Replace(image, "REGISTRY", registry, 1))...)
					out, got := run(waxseal, args...)
					if got != code || !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
						t.Errorf("%s by %s: exit code %d, want %d and %q\n%s", image, key, got, code, want, out)
					}
				}
			}
			// What they push is the same image each time, and its own evidence comes last.
			edit("run.sh", "https://ci.acme.example/", "https://ci.eve.example/")
			build("waxseal.key", "is not a trusted builder", 3)
			edit("run.sh", "https://ci.eve.example/", "https://ci.acme.example/")
			build("stranger.key", "no trusted key made its signature", 3)
			build("waxseal.key", "PASSED carries SLSA Build L2, declared Build L2", 0)
		})
	}
}

// TestTheWorkflowsOfThePipelines has actionlint read GitHub's, with the shell
// scripts in them.
func TestTheWorkflowsOfThePipelines(t *testing.T) {
	actionlint := peer(t, "actionlint")
	files, err := filepath.Glob(filepath.Join(pipelines(t), "github*", "*.yml"))
	if err != nil || len(files) < 3 {
		t.Fatalf("workflows %v, %v", files, err)
	}
	lint := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), actionlint, append([]string{"-shellcheck="}, args...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := lint(files...); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, uses := range regexp.MustCompile(`uses: (\S+)@(\S+)`).FindAllStringSubmatch(string(raw), -1) {
			if !strings.HasPrefix(uses[1], "acme/") && !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(uses[2]) {
				t.Errorf("%s: %s is not pinned by its commit", filepath.Base(file), uses[0])
			}
		}
		for _, script := range regexp.MustCompile(`(?s)run: .*?\n\s+- |run: .*$`).FindAllString(string(raw), -1) {
			if strings.Contains(script, "${{") {
				t.Errorf("%s: text of others is pasted into a script:\n%s", filepath.Base(file), script)
			}
		}
	}
	// It can fail.
	bad := filepath.Join(t.TempDir(), "bad.yml")
	if err := os.WriteFile(bad, []byte("on: push\njobs: {a: {runs-on: ubuntu-24.04, steps: [{runs: x}]}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := lint(bad); err == nil {
		t.Errorf("actionlint takes a bad workflow:\n%s", out)
	}
}

// TestTheTektonTask holds the task to the schema of Tekton's own definition.
func TestTheTektonTask(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", "github.com/tektoncd/pipeline@v1.9.0").Output()
	var module struct{ Dir string }
	if err != nil || json.Unmarshal(out, &module) != nil || module.Dir == "" {
		testkit.Unavailable(t, "Tekton's definitions could not be had: %v", err)
	}
	raw, err := os.ReadFile(filepath.Join(module.Dir, "config/300-crds/300-task.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var definition struct {
		Spec struct {
			Versions []struct {
				Name   string
				Schema struct {
					OpenAPI map[string]any `yaml:"openAPIV3Schema"`
				}
			}
		}
	}
	if err := yaml.Unmarshal(raw, &definition); err != nil {
		t.Fatal(err)
	}
	var schema *jsonschema.Schema
	for _, v := range definition.Spec.Versions {
		if v.Name == "v1" {
			schema = compile(t, v.Schema.OpenAPI)
		}
	}
	if schema == nil {
		t.Fatal("no version v1 of a Task")
	}
	task := asJSON(t, yamlFile(t, filepath.Join(pipelines(t), "tekton/task.yaml")))
	if err := schema.Validate(task); err != nil {
		t.Error(err)
	}
	step := task.(map[string]any)["spec"].(map[string]any)["steps"].([]any)[0].(map[string]any)
	checkShell(t, step["script"].(string))
	step["image"] = 1.0
	if schema.Validate(task) == nil {
		t.Error("the schema takes a number for an image")
	}
}

// gitLabSchema is GitLab's own schema of .gitlab-ci.yml, as one version of
// gitlab-ci-local on npm has it: an object of JavaScript that is YAML, too.
func gitLabSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	const (
		name = "gitlab-ci-local-4.58.0"
		sum  = "ad42eac5b9c372675771c718e1dbccf98069cee47cd9c1f89c3f670496d1b7e1"
	)
	dir := t.TempDir()
	pack := exec.CommandContext(t.Context(), "npm", "pack", "--silent", "gitlab-ci-local@4.58.0")
	pack.Dir = dir
	if out, err := pack.CombinedOutput(); err != nil {
		testkit.Unavailable(t, "GitLab's schema could not be had: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, name+".tgz"))
	if err != nil {
		t.Fatal(err)
	}
	if got := attest.DigestOf(raw).Hex(); got != sum {
		t.Fatalf("%s is %s", name, got)
	}
	text, err := exec.CommandContext(t.Context(), "tar", "-xzOf", filepath.Join(dir, name+".tgz"), "package/src/schema/schema.js").Output()
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ = bytes.Cut(text, []byte("export const schema = "))
	text, _, _ = bytes.Cut(text, []byte("\n};"))
	var schema map[string]any
	if err := yaml.Unmarshal(append(text, "\n}"...), &schema); err != nil {
		t.Fatal(err)
	}
	return compile(t, schema)
}

// TestTheGitLabPipeline holds the pipeline to GitLab's schema.
func TestTheGitLabPipeline(t *testing.T) {
	schema := gitLabSchema(t)
	doc := yamlFile(t, filepath.Join(pipelines(t), "gitlab/.gitlab-ci.yml"))
	if err := schema.Validate(asJSON(t, doc)); err != nil {
		t.Error(err)
	}
	job := doc["build-image"].(map[string]any)
	for name, bad := range map[string]any{"id_tokens": map[string]any{"X": map[string]any{"audience": "x"}}, "scripts": []any{"true"}, "timeout": []any{"1h"}} {
		good := job[name]
		job[name] = bad
		if schema.Validate(asJSON(t, doc)) == nil {
			t.Errorf("the schema takes %s: %v", name, bad)
		}
		delete(job, name)
		if good != nil {
			job[name] = good
		}
	}
}

// TestTheShellOfThePipelines: what GitLab hands to a shell is one.
func TestTheShellOfThePipelines(t *testing.T) {
	doc := yamlFile(t, filepath.Join(pipelines(t), "gitlab/.gitlab-ci.yml"))
	job := doc["build-image"].(map[string]any)
	for _, line := range job["script"].([]any) {
		checkShell(t, line.(string))
	}
	for _, name := range []string{"SIGSTORE_ID_TOKEN", "WAXSEAL_ID_TOKEN"} {
		if job["id_tokens"].(map[string]any)[name].(map[string]any)["aud"] == "" {
			t.Errorf("%s has no audience", name)
		}
	}
}

// TestTheJenkinsfile has Groovy run the pipeline, and holds what it hands to a
// shell to be one.
func TestTheJenkinsfile(t *testing.T) {
	if _, err := exec.LookPath("groovy"); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	run := func(file string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "groovy", filepath.Join(root, "testdata/declarative.groovy"), file)
		// Debian's Groovy is for Debian's Java.
		cmd.Env = slices.DeleteFunc(os.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "JAVA_HOME=") })
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, said.Bytes())
		}
		return string(out), err
	}
	name := filepath.Join(pipelines(t), "jenkins/Jenkinsfile")
	out, err := run(name)
	if err != nil {
		t.Fatalf("groovy: %v", err)
	}
	scripts := strings.Split(strings.TrimSuffix(out, "\x00"), "\x00")
	if !strings.Contains(out, "waxseal run ") {
		t.Errorf("the Jenkinsfile seals nothing:\n%s", out)
	}
	for _, s := range scripts {
		checkShell(t, s)
	}
	// It can fail: a directive in a wrong place, and no Groovy.
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "Jenkinsfile")
	for old, by := range map[string]string{"stages {": "steps {", "usernameVariable:": "userVariable:", "stage('Image') {": "stage('Image {"} {
		if err := os.WriteFile(bad, bytes.ReplaceAll(raw, []byte(old), []byte(by)), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := run(bad); err == nil {
			t.Errorf("with %q it is taken:\n%s", by, out)
		}
	}
}

func checkShell(t *testing.T, script string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-n")
	cmd.Stdin = strings.NewReader(script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("sh -n: %v\n%s\n%s", err, out, script)
	}
}

func yamlFile(t *testing.T, path string) map[string]any {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var doc map[string]any
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return doc
}

// asJSON is a document as schemas see it.
func asJSON(t *testing.T, v any) any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func compile(t *testing.T, schema map[string]any) *jsonschema.Schema {
	t.Helper()
	c := jsonschema.NewCompiler()
	const name = "schema.json"
	if err := c.AddResource(name, asJSON(t, schema)); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile(name)
	if err != nil {
		t.Fatal(fmt.Errorf("compiling the schema: %w", err))
	}
	return s
}
