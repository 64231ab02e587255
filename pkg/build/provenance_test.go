package build

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/util/urlutil"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// everything is a request with every parameter set.
func everything() *Request {
	return &Request{
		Source: Source{
			Context: "https://user:hunter2@git.example/acme/app.git#main", Dockerfile: "/home/me/deploy/Dockerfile.prod",
			Named:  map[string]string{"base": "oci:/home/me/base:v1", "src": "/home/me/src", "up": "https://tok:hunter2@dl.example/up.tgz?sig=hunter2"},
			Target: "final", Platforms: []string{"linux/amd64", "linux/arm64"},
			Args: map[string]string{"VERSION": "1", "SOURCE_DATE_EPOCH": "1700000000"},
		},
		Image: Image{
			Tags: []string{"app:1"}, Labels: map[string]string{"l": "v"},
			Annotations: []Annotation{{Key: "k", Value: "v"}, {Level: "manifest", Platform: "linux/arm64", Key: "k", Value: "w"}},
		},
		Steps: Steps{
			Secrets: []Secret{{ID: "token", File: "/home/me/hunter2"}}, SSH: []SSH{{ID: "default", Paths: []string{"/home/me/hunter2"}}},
			Network: "host", AddHosts: []string{"a=10.0.0.1"}, ShmSize: 64 << 20, Ulimits: []string{"nofile=1:2"},
		},
		Cache: Cache{
			Except: []string{"build"}, Pull: true,
			From: []CacheEntry{{Type: "registry", Attrs: map[string]string{"ref": "r.example/c", "password": "hunter2"}}},
			To:   []CacheEntry{{Type: "local", Attrs: map[string]string{"dest": "c", "mode": "max"}}},
		},
		Outputs: []Output{{Kind: OutputImage, Layers: map[string]string{"compression": "zstd", "rewrite-timestamp": "false"}}},
		Seal:    Seal{SBOM: []string{"spdx", "cyclonedx"}, BuilderID: "https://ci.example/builder"},
	}
}

func provenanceOf(t *testing.T) (*provenance, []byte) {
	t.Helper()
	rec, err := parseRecord([]byte(aRecord))
	if err != nil {
		t.Fatal(err)
	}
	in := &inputs{
		described:    attestations.ContainerContext{Kind: "directory"},
		epoch:        epoch{"1700000000", "build-arg"},
		syntax:       "docker/dockerfile:1",
		dependencies: []dependency{{Name: attestations.DependencyContext, Digest: map[string]string{"sha256": zeros64}}},
		git: &GitState{
			Remote: cleanURL("https://user:hunter2@git.example/acme/app.git"), Commit: strings.Repeat("a", 40),
			Subdir: "deploy", Changed: []string{"a.go"}, More: 3,
		},
		ours: map[string]string{},
	}
	a := &account{
		req: everything(), in: in, engine: attestations.ContainerEngine{Name: "embedded"}, records: &records{cached: 1, total: 4},
		epoch: "1700000000", id: "id", started: time.Unix(1, 0), finished: time.Unix(2, 0),
		log: attest.DigestOf(nil), version: "v1",
	}
	p := a.provenance([]*record{rec}, []document{{platform: "linux/amd64", format: "spdx", digest: attest.DigestOf([]byte("x"))}})
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return p, raw
}

func TestProvenanceFitsItsSchema(t *testing.T) {
	_, raw := provenanceOf(t)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(attestations.ContainerBuildSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(value); err != nil {
		t.Error(err)
	}
	// Every parameter that the schema knows was set: none is forgotten here.
	known := doc.(map[string]any)["$defs"].(map[string]any)["external"].(map[string]any)["properties"].(map[string]any)
	set := value.(map[string]any)["buildDefinition"].(map[string]any)["externalParameters"].(map[string]any)
	for name := range known {
		if _, ok := set[name]; !ok && name != "noCache" {
			t.Errorf("parameter %q is in the schema and never written", name)
		}
	}
}

func TestProvenanceHoldsNoSecretAndNoPath(t *testing.T) {
	_, raw := provenanceOf(t)
	for _, never := range []string{"hunter2", "/home/me", "secret=", "token=secret", "user:pass"} {
		if bytes.Contains(raw, []byte(never)) {
			t.Errorf("%q is in the provenance:\n%s", never, raw)
		}
	}
}

func TestProvenanceDependencies(t *testing.T) {
	p, _ := provenanceOf(t)
	got := map[string]dependency{}
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		got[d.Name+" "+d.URI] = d
	}
	for key, digest := range map[string]string{
		"context ": "sha256",
		"source git+https://git.example/acme/app.git":        "gitCommit",
		" git+https://git.example/a/b.git@main#sub":          "gitCommit",
		" https://dl.example/x.tgz?token=REMOVED":            "sha256",
		" pkg:docker/debian@bookworm?platform=linux%2Famd64": "sha256",
	} {
		if got[key].Digest[digest] == "" {
			t.Errorf("%q has no %s: %+v", key, digest, got)
		}
	}
	changed := got["source git+https://git.example/acme/app.git"].Annotations
	if changed["moreChangedFiles"] != 3 || changed["subdir"] != "deploy" {
		t.Errorf("git state %+v", changed)
	}
}

func TestNetworkIsNeverClaimedObserved(t *testing.T) {
	a := &account{req: &Request{}, in: &inputs{}, records: &records{}}
	open, shut := &record{}, &record{Hermetic: true}
	for name, c := range map[string]struct {
		network string
		recs    []*record
		want    string
	}{
		"default":             {"", []*record{open}, attestations.NetworkUnobserved},
		"none":                {"none", []*record{open}, attestations.NetworkNone},
		"no step had one":     {"", []*record{shut}, attestations.NetworkNone},
		"one platform did":    {"", []*record{shut, open}, attestations.NetworkUnobserved},
		"nothing is recorded": {"", nil, attestations.NetworkUnobserved},
	} {
		a.req.Steps.Network = c.network
		if got := a.internal(c.recs).NetworkObserved; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// A proxy's password is no build argument's business, nor are other arguments
// changed.
func TestProxyCredentialsAreRemoved(t *testing.T) {
	const proxy = "http://user:hunter2@proxy.example:3128"
	r := &Request{Source: Source{Args: map[string]string{"HTTP_PROXY": proxy, "https_proxy": proxy, "NO_PROXY": "localhost", "URL": proxy}}}
	args := r.external(attestations.ContainerContext{Kind: "directory"}).BuildArgs
	want := map[string]string{"HTTP_PROXY": "http://proxy.example:3128", "https_proxy": "http://proxy.example:3128", "NO_PROXY": "localhost", "URL": proxy}
	if !maps.Equal(args, want) {
		t.Errorf("build arguments %v, want %v", args, want)
	}
	if r.Source.Args["HTTP_PROXY"] != proxy {
		t.Error("the build itself lost its proxy")
	}
	for _, wrote := range []string{proxy, urlutil.RedactCredentials(proxy)} {
		if got := r.redact().Replace("via " + wrote); got != "via http://proxy.example:3128" {
			t.Errorf("%q became %q", wrote, got)
		}
	}
}
