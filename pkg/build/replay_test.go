package build

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func replayStatement(t *testing.T, predicateType string, predicate any) *attest.Statement {
	t.Helper()
	st, err := attest.NewStatement(predicateType, []attest.Subject{{Name: "app:1", Digest: map[string]string{"sha256": zeros64}}}, predicate)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// evidenceOf is provenance of a build that was asked for r, and its record.
func evidenceOf(t *testing.T, r *Request, rec *attestations.Inputs, change func(*provenance)) (prov *attest.Statement, inputs []*attest.Statement) {
	t.Helper()
	st := replayStatement(t, attestations.InputsV1, rec)
	p := &provenance{}
	p.BuildDefinition.BuildType = attestations.ContainerBuildType
	p.BuildDefinition.ExternalParameters = r.external(attestations.ContainerContext{Kind: "git", URI: cleanURL(r.Source.Context)})
	p.BuildDefinition.ExternalParameters.Inputs = &attestations.ContainerInputs{Mode: rec.Mode}
	p.BuildDefinition.InternalParameters = attestations.ContainerBuildInternal{SourceDateEpoch: "1700000000", EpochFrom: "build-arg", BuilderPlatform: "linux/riscv64"}
	p.RunDetails.Builder.ID = "https://ci.example/builder"
	p.RunDetails.Byproducts = []dependency{{Name: attestations.ByproductInputs, Digest: map[string]string{"sha256": st.Digest().Hex()}}}
	if change != nil {
		change(p)
	}
	return replayStatement(t, attestations.ProvenanceV1, p), []*attest.Statement{st}
}

func recorded(sources ...attestations.InputSource) *attestations.Inputs {
	return &attestations.Inputs{Mode: attestations.InputsRecord, Verdict: attestations.VerdictRecorded, Sources: sources, Steps: []attestations.InputStep{}}
}

func openTestStore(t *testing.T) *lock.Store {
	t.Helper()
	st, err := lock.OpenStore(filepath.Join(t.TempDir(), "store"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func TestReplayAsksForTheSameBuild(t *testing.T) {
	first := everything()
	prov, inputs := evidenceOf(t, first, recorded(), nil)
	r, err := ReadReplay(prov, inputs)
	if err != nil {
		t.Fatal(err)
	}
	o := ReplayOptions{
		Store: openTestStore(t), Lock: "l", Image: "i", Out: "o", CacheDir: "c", BuilderID: "https://other.example", Name: "app:1",
		Secrets: []Secret{{ID: "token", File: "again"}}, SSH: []SSH{{ID: "default", Paths: []string{"again"}}},
		Allow: []string{entitlementHost, entitlementInsecure},
	}
	second, err := r.Request(o)
	if err != nil {
		t.Fatal(err)
	}
	a, b := first.external(attestations.ContainerContext{}), second.external(attestations.ContainerContext{})
	// Where a base image was looked for, and what a cache gave, is not repeated.
	a.Pull, a.CacheFrom, a.CacheTo = false, nil, nil
	if !reflect.DeepEqual(a, b) {
		t.Errorf("asked for\n%+v\nand then for\n%+v", a, b)
	}
	if err := second.check(true); err != nil {
		t.Error(err)
	}
	if second.Inputs.Mode != attestations.InputsOffline || second.Inputs.Lock != "l" || second.Engine.CacheDir != "c" || second.Engine.BuildKit != "" || len(second.Cache.From)+len(second.Cache.To) > 0 {
		t.Errorf("%+v", second)
	}
	if !slices.Contains(r.Doubts(), "results came from the caches type=registry,ref=r.example/c; the second build runs every step") {
		t.Errorf("doubts %q", r.Doubts())
	}
	o.Secrets, o.SSH = nil, nil
	if _, err := r.Request(o); err == nil || !strings.Contains(err.Error(), "--secret id=token, --ssh default") {
		t.Errorf("without secrets: %v", err)
	}
	// The platform that was the machine's own is asked for by name elsewhere.
	first.Source.Platforms = nil
	first.Image.Annotations = nil
	prov, inputs = evidenceOf(t, first, recorded(), nil)
	if r, err = ReadReplay(prov, inputs); err != nil {
		t.Fatal(err)
	}
	o.Secrets, o.SSH = []Secret{{ID: "token"}}, []SSH{{ID: "default"}}
	if second, err = r.Request(o); err != nil || !slices.Equal(second.Source.Platforms, []string{"linux/riscv64"}) {
		t.Errorf("platforms %q, %v", second.Source.Platforms, err)
	}
}

func TestReplayRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*provenance)
		inputs func([]*attest.Statement) []*attest.Statement
		want   string
	}{
		"another build type":    {func(p *provenance) { p.BuildDefinition.BuildType = "https://example.com/other" }, nil, "only images that waxseal built"},
		"no record":             {func(p *provenance) { p.RunDetails.Byproducts = nil }, nil, "it names no record of inputs"},
		"a record not attached": {nil, func([]*attest.Statement) []*attest.Statement { return nil }, "is not attached, or not believed"},
		"another record": {nil, func([]*attest.Statement) []*attest.Statement {
			return []*attest.Statement{replayStatement(t, attestations.InputsV1, recorded(attestations.InputSource{Kind: "http"}))}
		}, "is not attached, or not believed"},
	} {
		t.Run(name, func(t *testing.T) {
			prov, inputs := evidenceOf(t, everything(), recorded(), tt.change)
			if tt.inputs != nil {
				inputs = tt.inputs(inputs)
			}
			if _, err := ReadReplay(prov, inputs); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	prov, inputs := evidenceOf(t, everything(), recorded(), nil)
	var doc map[string]any
	if err := json.Unmarshal(prov.Predicate, &doc); err != nil {
		t.Fatal(err)
	}
	doc["buildDefinition"].(map[string]any)["externalParameters"].(map[string]any)["later"] = true
	if _, err := ReadReplay(replayStatement(t, attestations.ProvenanceV1, doc), inputs); err == nil || !strings.Contains(err.Error(), `unknown field "later"`) {
		t.Errorf("a parameter of a later version: %v", err)
	}
	if _, err := ReadReplay(inputs[0], inputs); err == nil {
		t.Error("a record of inputs was read as provenance")
	}
}

func TestReplayListsWhatIsMissing(t *testing.T) {
	st := openTestStore(t)
	put := func(b []byte) string {
		d, err := st.Put(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(d)
	}
	absent := func(s string) string { return string(attest.DigestOf([]byte(s))) }
	layer, config := absent("layer"), put([]byte("{}"))
	manifest := put([]byte(`{"schemaVersion":2,"config":{"digest":"` + config + `","size":2},"layers":[{"digest":"` + layer + `","size":5}]}`))
	index := put([]byte(`{"schemaVersion":2,"manifests":[
		{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + manifest + `","size":1,"platform":{"os":"linux","architecture":"amd64"}},
		{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + absent("other") + `","size":1,"platform":{"os":"linux","architecture":"arm64"}}]}`))
	rec := recorded(
		attestations.InputSource{Kind: "image", URI: "pkg:docker/base", Ref: "base:1", Digest: index, Platform: "linux/amd64"},
		attestations.InputSource{Kind: "image", URI: "pkg:docker/gone", Ref: "gone:1", Digest: absent("gone"), Platform: "linux/amd64"},
		attestations.InputSource{Kind: "context", URI: "context", Digest: put([]byte("list")), Tree: absent("packed"), Size: 6},
		attestations.InputSource{Kind: "git", URI: "https://git.example/a", Digest: "gitCommit:" + strings.Repeat("1", 40), Tree: absent("tree")},
		attestations.InputSource{Kind: "dockerfile", URI: "dockerfile", Digest: put([]byte("FROM base"))},
	)
	rec.Steps = []attestations.InputStep{{Name: "RUN a", Requests: []attestations.InputRequest{
		{Method: "GET", URI: "https://a.example/x", Digest: absent("body"), Size: 4},
		{Method: "GET", URI: "https://a.example/again", Digest: absent("body"), Size: 4},
		{Method: "GET", URI: "https://a.example/none", Digest: absent(""), Size: 0},
		{Method: "GET", URI: "https://a.example/hidden", Digest: "hmac-sha256:" + zeros64, Size: 4, Withheld: true},
	}, Gaps: []attestations.InputGap{{Kind: "withheld", Detail: "https://a.example/hidden"}}}}
	prov, inputs := evidenceOf(t, everything(), rec, nil)
	r, err := ReadReplay(prov, inputs)
	if err != nil {
		t.Fatal(err)
	}
	missing, err := r.Missing(st)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range missing {
		got = append(got, string(m.Digest)+" "+m.What)
	}
	slices.Sort(got)
	want := []string{layer + " image base:1", absent("gone") + " image gone:1", absent("packed") + " context context", absent("tree") + " git https://git.example/a", absent("body") + " GET https://a.example/x"}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("missing\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	n, err := needs(st, rec)
	if err != nil {
		t.Fatal(err)
	}
	for d, place := range map[string]string{config: "index.docker.io/library/base", manifest: "", absent("gone"): "", absent("packed"): ""} {
		if from := n.from(attest.Digest(d)); from.Place != place {
			t.Errorf("%s is from %q, want %q", d, from.Place, place)
		}
	}
	if w := r.Withheld(); !slices.Equal(w, []string{"RUN a: GET https://a.example/hidden"}) {
		t.Errorf("withheld %q", w)
	}
	if doubts := r.Doubts(); len(doubts) == 0 || !strings.Contains(doubts[0], "RUN a: a body that held a secret was not stored") {
		t.Errorf("doubts %q", doubts)
	}
}

func TestReplayTakesNothingOfThisMachine(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM scratch"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	dockerfile := "FROM scratch\nCOPY . /\n"
	st := openTestStore(t)
	if _, err := st.Put([]byte(dockerfile)); err != nil {
		t.Fatal(err)
	}
	file := attestations.InputSource{Kind: "dockerfile", URI: "dockerfile", Digest: string(attest.DigestOf([]byte(dockerfile)))}
	remote := attestations.ContainerContext{Kind: "git", URI: "https://git.example/a.git"}
	for name, tt := range map[string]struct {
		context attestations.ContainerContext
		named   map[string]string
		sources []attestations.InputSource
		fetched bool
	}{
		"a git context":             {context: remote, fetched: true},
		"a folder":                  {context: attestations.ContainerContext{Kind: "directory", URI: dir}},
		"a folder and a Dockerfile": {context: attestations.ContainerContext{Kind: "directory", URI: dir}, sources: []attestations.InputSource{file}},
		"the working folder":        {context: attestations.ContainerContext{Kind: "directory"}},
		"standard input":            {context: attestations.ContainerContext{Kind: "none", URI: "-"}},
		"a fetched named context":   {context: remote, named: map[string]string{"n": "docker-image://r.example/base"}, fetched: true},
		"a named folder":            {context: remote, named: map[string]string{"n": dir}},
		"a named layout":            {context: remote, named: map[string]string{"n": "oci:" + dir}},
		"an image of the daemon":    {context: remote, named: map[string]string{"n": "docker:base"}},
	} {
		t.Run(name, func(t *testing.T) {
			prov, inputs := evidenceOf(t, &Request{Source: Source{Named: tt.named, Dockerfile: "-"}}, recorded(tt.sources...), func(p *provenance) {
				p.BuildDefinition.ExternalParameters.Context = tt.context
				p.BuildDefinition.ExternalParameters.BuildContexts = tt.named
			})
			r, err := ReadReplay(prov, inputs)
			if err != nil {
				t.Fatal(err)
			}
			req, err := r.Request(ReplayOptions{Store: st, Lock: "l", Image: "i", CacheDir: "c"})
			if err != nil {
				t.Fatal(err)
			}
			p := &preparer{req: &req, deps: &Deps{Stdin: strings.NewReader(dockerfile)}, notes: &notes{}, tmpDir: t.TempDir()}
			in, err := p.prepare(context.Background())
			if err == nil {
				in.close()
			}
			if (err == nil) != tt.fetched || err != nil && !errors.Is(err, ErrNotKept) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestReplayGrantsNothingThatWasNotGiven(t *testing.T) {
	for name, steps := range map[string]Steps{
		"--allow security.insecure": {Allow: []string{entitlementInsecure}},
		"--allow network.host":      {Network: "host"},
	} {
		prov, inputs := evidenceOf(t, &Request{Steps: steps}, recorded(), nil)
		r, err := ReadReplay(prov, inputs)
		if err != nil {
			t.Fatal(err)
		}
		o := ReplayOptions{Store: openTestStore(t)}
		if _, err := r.Request(o); err == nil || !strings.Contains(err.Error(), "not repeated without "+name) {
			t.Errorf("%s: %v", name, err)
		}
		o.Allow = []string{entitlementHost, entitlementInsecure}
		if second, err := r.Request(o); err != nil || !slices.Equal(second.Steps.Allow, steps.Allow) {
			t.Errorf("%s given: %v, %v", name, second.Steps, err)
		}
	}
}

func TestReplayTakesTheContextFromTheVeryFolderOnly(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("Dockerfile", "FROM scratch\nCOPY a /\n")
	write("a", "content")
	write("waxseal.lock", "not part of it")
	tree, err := walkFolder(context.Background(), dir, nil, "", filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	l, err := newLayer(context.Background(), tree, epoch{value: "1700000000"}.time(), nil)
	if err != nil {
		t.Fatal(err)
	}
	rec := recorded(
		attestations.InputSource{Kind: "context", URI: "context", Digest: string(l.manifest), Tree: string(l.digest), Size: l.size},
		attestations.InputSource{Kind: "dockerfile", URI: "dockerfile", Ref: "Dockerfile", Digest: string(attest.DigestOf([]byte("FROM scratch\nCOPY a /\n")))},
	)
	prov, inputs := evidenceOf(t, &Request{}, rec, nil)
	r, err := ReadReplay(prov, inputs)
	if err != nil {
		t.Fatal(err)
	}
	st := openTestStore(t)
	write("waxseal.lock", "another lock")
	write("a", "CONTENT")
	if err := r.ImportContext(context.Background(), st, dir); err == nil || !strings.Contains(err.Error(), "is not the context of the build") {
		t.Errorf("another content: %v", err)
	}
	if missing, _ := r.Missing(st); len(missing) != 3 {
		t.Errorf("after a refusal %d are missing", len(missing))
	}
	write("a", "content")
	if err := r.ImportContext(context.Background(), st, dir); err != nil {
		t.Error(err)
	}
	if missing, err := r.Missing(st); err != nil || len(missing) > 0 {
		t.Errorf("missing %v, %v", missing, err)
	}
}

func TestReplayLeavesTheLockOfTheBuildOutOfItsContext(t *testing.T) {
	for dockerfile, left := range map[string]string{
		"Dockerfile":     "waxseal.lock",
		"app.Dockerfile": "app.Dockerfile.waxseal.lock",
		"-":              "",
	} {
		dir := t.TempDir()
		for _, name := range []string{"Dockerfile", "app.Dockerfile", "waxseal.lock", "app.Dockerfile.waxseal.lock"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("FROM scratch"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		tree, err := walkFolder(context.Background(), dir, nil, "", filepath.Join(dir, left))
		if err != nil {
			t.Fatal(err)
		}
		l, err := newLayer(context.Background(), tree, epoch{value: "1700000000"}.time(), nil)
		if err != nil {
			t.Fatal(err)
		}
		prov, inputs := evidenceOf(t, &Request{Source: Source{Dockerfile: dockerfile}}, recorded(
			attestations.InputSource{Kind: "context", URI: "context", Digest: string(l.manifest), Tree: string(l.digest), Size: l.size},
			attestations.InputSource{Kind: "dockerfile", URI: "dockerfile", Digest: string(attest.DigestOf([]byte("FROM scratch")))},
		), nil)
		r, err := ReadReplay(prov, inputs)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.ImportContext(context.Background(), openTestStore(t), dir); err != nil {
			t.Errorf("-f %s: %v", dockerfile, err)
		}
	}
}
