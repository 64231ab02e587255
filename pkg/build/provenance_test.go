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
	"github.com/waxseal/waxseal/pkg/lock"
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
			Network: "host", Allow: []string{"security.insecure"}, AddHosts: []string{"a=10.0.0.1"}, ShmSize: 64 << 20, Ulimits: []string{"nofile=1:2"},
		},
		Cache: Cache{
			Except: []string{"build"}, Pull: true,
			From: []CacheEntry{{Type: "registry", Attrs: map[string]string{"ref": "r.example/c", "password": "hunter2"}}},
			To:   []CacheEntry{{Type: "local", Attrs: map[string]string{"dest": "c", "mode": "max"}}},
		},
		Outputs: []Output{{Kind: OutputImage, Layers: map[string]string{"compression": "zstd", "rewrite-timestamp": "false"}}},
		Seal:    Seal{SBOM: []string{"spdx", "cyclonedx"}, BuilderID: "https://ci.example/builder"},
		Inputs: InputChoice{
			Mode: attestations.InputsLocked, Lock: "/home/me/waxseal.lock", Store: "/home/me/store", UpstreamCA: "/home/me/ca.pem",
			AllowHosts: []string{"*.example.org"}, Upstreams: map[string]string{"deb.example.org": "10.0.0.1:8080"},
		},
	}
}

// aStep is the record of a step that asked for one thing twice, was sent
// elsewhere, and had a body withheld.
func aStep() attestations.InputStep {
	python := attestations.InputRequest{
		Ordinal: 1, Method: "GET", URI: "http://deb.example.org/debian/pool/main/p/python3/python3_3.11_amd64.deb", Status: 200,
		Digest: "sha256:" + zeros64, Size: 3, Headers: map[string]string{"content-type": "application/vnd.debian.binary-package"},
	}
	again, other := python, python
	again.Ordinal, other.Ordinal = 2, 3
	other.Digest = "sha256:" + strings.Repeat("1", 64)
	return attestations.InputStep{
		ID: "sha256:" + zeros64, Name: "RUN apt-get install python3", Verdict: attestations.VerdictGaps,
		Requests: []attestations.InputRequest{
			python, again, other,
			{Ordinal: 4, Method: "POST", URI: "https://api.example/audit?token=hmac:00", Status: 404, Digest: "hmac-sha256:" + zeros64, Withheld: true},
		},
		Refusals: []attestations.InputRefusal{{Kind: "tcp", Destination: "10.0.0.1:22", Reason: "only 80 and 443", Count: 2}},
		Gaps:     []attestations.InputGap{{Kind: "withheld"}},
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
		attrs: map[string]string{"hostname": "builder"}, observed: &Observed{Grade: GradePartial, Unobserved: []string{"files"}},
		ci: &attestations.CI{Platform: "gitlab", Unverified: "no token", Declared: &attestations.CIJob{Ref: "refs/heads/main"}},
	}
	a.intake = &intake{choice: a.req.Inputs, held: &lock.File{}, raw: []byte("lock"), authority: []byte("ca")}
	took := &attestations.Inputs{Steps: []attestations.InputStep{aStep()}}
	took.Verdict, took.Hermetic = took.Judge()
	p := a.provenance(subject{
		[]*record{rec}, []taken{{platform: "linux/amd64", record: took, digest: attest.DigestOf([]byte("y"))}},
		[]document{{platform: "linux/amd64", format: "spdx", digest: attest.DigestOf([]byte("x"))}},
	})
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

// The source is the revision that the context names, whatever else of the
// repository the build took.
func TestProvenanceNamesTheContextsRevision(t *testing.T) {
	const app = "https://git.example/acme/app.git"
	for _, c := range []struct{ context, took, want string }{
		{app + "#zz", app + "#refs/tags/v1 " + app + "#zz " + app + " https://git.example/other.git#zz", "@zz"},
		{app + "#refs/heads/zz:sub", app + "#refs/heads/main " + app + "#refs/heads/zz", "@refs/heads/zz"},
		{app, app + "#main " + app, ""},
		{app + "?tag=v1&subdir=x", app + "#refs/heads/main " + app + "#refs/tags/v1", "@refs/tags/v1"},
		{app + "?branch=zz", app + "#refs/tags/v1 " + app + "#refs/heads/zz", "@refs/heads/zz"},
		{app + "?commit=" + zeros64[:40], app + "#refs/tags/v1 " + app + "#" + zeros64[:40], "@" + zeros64[:40]},
		{app + "#main%23x", app + "#main " + app + "#main#x", "@main%23x"},
		{"git@git.example:acme/app.git#zz", "git@git.example:acme/app.git#refs/tags/v1 git@git.example:acme/app.git#zz", "@zz"},
		{"git@git.example:acme/app.git#main#x", "git@git.example:acme/app.git#main#x", "@main%23x"},
		{app + "#x@refs/tags/v1", app + "#x@refs/tags/v1", "@x@refs/tags/v1"},
	} {
		a := &account{in: &inputs{described: attestations.ContainerContext{Kind: "git", URI: cleanURL(c.context)}}}
		var got []string
		for uri := range strings.FieldsSeq(c.took) {
			d := a.resolved(recordedInput{URI: uri, Digest: map[string]string{"sha1": zeros64[:40]}})
			if d.Name == attestations.DependencySource {
				_, rev, _ := strings.Cut(d.URI, "app.git")
				got = append(got, rev)
			}
		}
		if strings.Join(got, " ") != c.want || len(got) == 0 {
			t.Errorf("%s: the source is %q, want %q", c.context, got, c.want)
		}
	}
}

// Every content that a step was given is there once, under its URI.
func TestProvenanceListsWhatStepsAskedFor(t *testing.T) {
	p, _ := provenanceOf(t)
	var got []dependency
	for _, d := range p.BuildDefinition.ResolvedDependencies {
		if d.Annotations["step"] != nil {
			got = append(got, d)
		}
	}
	if len(got) != 3 {
		t.Fatalf("%d dependencies of steps: %+v", len(got), got)
	}
	if d := got[0]; d.Digest["sha256"] != zeros64 || d.MediaType != "application/vnd.debian.binary-package" || d.Annotations["step"] != "RUN apt-get install python3" || len(d.Annotations) != 1 {
		t.Errorf("package %+v", d)
	}
	if got[1].Digest["sha256"] != strings.Repeat("1", 64) || got[1].URI != got[0].URI {
		t.Errorf("the other content of that URI: %+v", got[1])
	}
	if d := got[2]; d.Digest["hmac-sha256"] == "" || d.Annotations["method"] != "POST" || d.Annotations["status"] != 404 {
		t.Errorf("request %+v", d)
	}
	bound := p.RunDetails.Byproducts[0]
	if bound.Name != attestations.ByproductInputs || bound.Digest["sha256"] != attest.DigestOf([]byte("y")).Hex() || bound.Annotations != nil {
		t.Errorf("byproduct %+v", bound)
	}
	if in := p.BuildDefinition.ExternalParameters.Inputs; in.Mode != "locked" || in.Lock != string(attest.DigestOf([]byte("lock"))) || in.Upstreams[0] != "deb.example.org" {
		t.Errorf("parameters %+v", in)
	}
	if got := p.BuildDefinition.InternalParameters.NetworkObserved; got != attestations.VerdictGaps {
		t.Errorf("network %s", got)
	}
}

// A file of ADD says what the server said of it.
func TestProvenanceOfRemoteFiles(t *testing.T) {
	s, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	tree, err := s.Put([]byte(`{"content-type":"application/gzip","etag":"x"}`))
	if err != nil {
		t.Fatal(err)
	}
	a := &account{intake: &intake{store: s}}
	file := func(name string) dependency {
		return dependency{Name: name, URI: "https://dl.example/x.tgz", Digest: map[string]string{"sha256": zeros64}}
	}
	source := func(digest, tree string) taken {
		return taken{record: &attestations.Inputs{Sources: []attestations.InputSource{{Kind: "http", URI: "https://dl.example/x.tgz", Digest: digest, Tree: tree}}}}
	}
	for name, c := range map[string]struct {
		dep             dependency
		all             []taken
		mediaType, step string
	}{
		"with headers":   {file(""), []taken{source("sha256:"+zeros64, string(tree))}, "application/gzip", "ADD https://dl.example/x.tgz"},
		"two platforms":  {file(""), []taken{source("sha256:"+zeros64, ""), source("sha256:"+zeros64, string(tree))}, "application/gzip", "ADD https://dl.example/x.tgz"},
		"without":        {file(""), []taken{source("sha256:"+zeros64, "")}, "", "ADD https://dl.example/x.tgz"},
		"not in store":   {file(""), []taken{source("sha256:"+zeros64, "sha256:"+strings.Repeat("2", 64))}, "", "ADD https://dl.example/x.tgz"},
		"another body":   {file(""), []taken{source("sha256:"+strings.Repeat("1", 64), string(tree))}, "", ""},
		"the context":    {file(attestations.DependencyContext), []taken{source("sha256:"+zeros64, string(tree))}, "", ""},
		"another engine": {file(""), nil, "", ""},
	} {
		got := a.fetched([]dependency{c.dep}, c.all)[0]
		if step, _ := got.Annotations["step"].(string); got.MediaType != c.mediaType || step != c.step {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// The verdict of several images is that of the worst, and no record at all is
// no good one.
func TestNetworkIsTheWorstVerdict(t *testing.T) {
	of := func(verdicts ...string) (out []taken) {
		for _, v := range verdicts {
			out = append(out, taken{record: &attestations.Inputs{Verdict: v}})
		}
		return out
	}
	for want, c := range map[string][]taken{
		"isolated":   of("isolated", "isolated"),
		"recorded":   of("isolated", "recorded"),
		"gaps":       of("gaps", "recorded"),
		"unobserved": of("recorded", "marvellous"),
	} {
		if got := worstOf(c); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := worstOf(nil); got != attestations.VerdictUnobserved {
		t.Errorf("without a record: %s", got)
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
