package gate_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

// builtFrom is provenance with images and other things as resolved dependencies.
func builtFrom(builder string, inputs ...map[string]any) string {
	raw, err := json.Marshal(map[string]any{
		"buildDefinition": map[string]any{
			"buildType": attestations.ContainerBuildType, "externalParameters": map[string]any{},
			"resolvedDependencies": append([]map[string]any{{"name": "source", "uri": "git+https://git.example.org/acme/app", "digest": map[string]string{"gitCommit": "c0ffee"}}}, inputs...),
		},
		"runDetails": map[string]any{"builder": map[string]any{"id": builder}},
	})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func pinned(uri string, d attest.Digest) map[string]any {
	return map[string]any{"uri": uri, "digest": map[string]string{"sha256": d.Hex()}}
}

// purl is an image as BuildKit's provenance names it.
func purl(i *image) map[string]any {
	name, _, _ := strings.Cut(strings.TrimPrefix(i.ref, i.w.addr), ":v1")
	return pinned("pkg:docker/"+strings.ReplaceAll(i.w.addr, ":", "%3A")+name+"@v1?platform=linux%2Famd64", digestOf(i.desc))
}

func (w *world) built(by person, from ...map[string]any) *image {
	w.Helper()
	i := w.single()
	i.attach(by, i.desc, attestations.ProvenanceV1, builtFrom(ci, from...))
	return i
}

func summary(v *gate.Verdict) string {
	var out []string
	for _, d := range v.Dependencies {
		out = append(out, fmt.Sprintf("%d:%s:L%d", d.Depth, d.Decision, d.Reached.Build))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestDependencies(t *testing.T) {
	w := newWorld(t)
	root := w.built(w.ours)
	base := w.built(w.ours, purl(root))
	bare := w.single()
	foreign := w.built(w.strange)
	unsound := w.single()
	unsound.attach(w.strange, unsound.desc, attestations.ProvenanceV1, builtFrom(ci, purl(root)))
	npm := pinned("https://registry.npmjs.example/left-pad.tgz", attest.DigestOf([]byte("npm")))

	for _, c := range []struct {
		name   string
		image  *image
		depth  int
		want   string
		levels map[string]uint64
	}{
		{"not looked at", w.built(w.ours, purl(base)), 0, "", nil},
		{"none", w.built(w.ours), 1, "", map[string]uint64{}},
		{"one", w.built(w.ours, purl(root)), 1, "1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 1}},
		{"deeper than was looked", w.built(w.ours, purl(base)), 1, "1:pass:L2", nil},
		{"as deep as it is", w.built(w.ours, purl(base)), 2, "1:pass:L2 2:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 2}},
		{"deeper than it is", w.built(w.ours, purl(base)), 5, "1:pass:L2 2:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 2}},
		{"twice", w.built(w.ours, purl(root), purl(base), purl(root)), 3, "1:pass:L2 1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 2}},
		{"without evidence", w.built(w.ours, purl(bare)), 1, "1:deny:L0", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"signed by a stranger", w.built(w.ours, purl(foreign)), 1, "1:deny:L0", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"a stranger's dependencies are not followed", w.built(w.ours, purl(unsound)), 2, "1:deny:L0", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"what is no image counts for nothing", w.built(w.ours, purl(root), npm), 1, "1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 1, "SLSA_BUILD_LEVEL_0": 1}},
		{"an index", func() *image {
			i := w.index(false)
			i.attach(w.ours, i.desc, attestations.ProvenanceV1, builtFrom(ci, purl(root)))
			for _, p := range i.platforms {
				i.attach(w.ours, p, attestations.ProvenanceV1, builtFrom(ci, purl(root)))
			}
			return i
		}(), 1, "1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := w.judge(gate.Request{Reference: c.image.ref, Keys: []verify.Key{w.ours.key}, Dependencies: c.depth})
			if v.Decision != gate.Pass || summary(v) != c.want || !maps.Equal(v.DependencyLevels, c.levels) || (v.DependencyLevels == nil) != (c.levels == nil) {
				t.Errorf("%s, dependencies %q, levels %v; want %q, %v", v.Decision, summary(v), v.DependencyLevels, c.want, c.levels)
			}
			sums, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "pkg:oci/app"})
			w.must(err)
			for _, s := range sums {
				if !maps.Equal(s.Predicate.DependencyLevels, c.levels) || (s.Predicate.DependencyLevels == nil) != (c.levels == nil) {
					t.Errorf("summarised as %v", s.Predicate.DependencyLevels)
				}
			}
		})
	}
}

// A base image of several platforms is judged whole where its index is pinned,
// and alone where one platform is; each summary lists what its own count rests
// on.
func TestABaseOfSeveralPlatforms(t *testing.T) {
	w := newWorld(t)
	attach := func(i *image, d v1.Descriptor, from ...map[string]any) string {
		return i.attach(w.ours, d, attestations.ProvenanceV1, builtFrom(ci, from...)).Hex()
	}
	whole, half := w.index(false), w.index(false)
	var rests []string
	for _, d := range append([]v1.Descriptor{whole.desc}, whole.platforms...) {
		rests = append(rests, attach(whole, d))
	}
	attach(half, half.desc)
	attach(half, half.platforms[0])
	of := func(i *image, d v1.Descriptor) map[string]any {
		dep := purl(i)
		dep["digest"] = map[string]string{"sha256": d.Digest.Hex}
		return dep
	}
	for _, c := range []struct {
		name string
		dep  map[string]any
		want string
	}{
		{"all of it has evidence", of(whole, whole.desc), "1:pass:L2"},
		{"one platform has none", of(half, half.desc), "1:deny:L0"},
		{"the platform that has some", of(half, half.platforms[0]), "1:pass:L2"},
		{"the platform that has none", of(half, half.platforms[1]), "1:deny:L0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := w.judge(gate.Request{Reference: w.built(w.ours, c.dep).ref, Keys: []verify.Key{w.ours.key}, Dependencies: 1})
			if v.Decision != gate.Pass || summary(v) != c.want || len(v.DependencyLevels) != 1 {
				t.Errorf("%s %q %v, want %q", v.Decision, summary(v), v.DependencyLevels, c.want)
			}
		})
	}

	app := w.index(false)
	own := []string{attach(app, app.desc, of(whole, whole.desc)), attach(app, app.platforms[0], of(whole, whole.desc)), attach(app, app.platforms[1])}
	v := w.judge(gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 1})
	sums, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "pkg:oci/app"})
	w.must(err)
	for n, want := range [][]string{append(rests, own...), append(rests, own[1]), own[2:]} {
		var got []string
		for _, r := range sums[n].Predicate.InputAttestations {
			got = append(got, r.Digest["sha256"])
		}
		if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
			t.Errorf("%q rests on %v, want %v", sums[n].Platform, got, want)
		}
	}
}

// A signer's word that images were built from each other is followed once.
func TestACircleOfDependencies(t *testing.T) {
	w := newWorld(t)
	a, b := w.single(), w.single()
	a.attach(w.ours, a.desc, attestations.ProvenanceV1, builtFrom(ci, purl(b), purl(a)))
	b.attach(w.ours, b.desc, attestations.ProvenanceV1, builtFrom(ci, purl(a), purl(b)))
	v := w.judge(gate.Request{Reference: a.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 5})
	if v.Decision != gate.Pass || summary(v) != "1:pass:L2" {
		t.Errorf("%s, dependencies %q", v.Decision, summary(v))
	}
	// Once each: the image, and the one other.
	n := 0
	w.must(w.faults.Set())
	w.judge(gate.Request{Reference: a.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 5})
	for _, r := range w.faults.Seen() {
		if strings.Contains(r, "/referrers/") {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d lists of referrers: %q", n, w.faults.Seen())
	}
}

// Whoever writes provenance must not choose whom we ask.
func TestWhoseRegistryIsAsked(t *testing.T) {
	w := newWorld(t)
	faults := new(testkit.Faults)
	elsewhere, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: faults})
	w.must(err)
	t.Cleanup(elsewhere.Close)
	there := &world{TB: t, addr: elsewhere.Addr, faults: faults, ours: w.ours, strange: w.strange}
	outside := there.built(w.ours)
	forms := []map[string]any{
		purl(outside),
		pinned("docker-image://"+strings.TrimSuffix(outside.ref, ":v1"), digestOf(outside.desc)),
		pinned("oci://"+outside.ref, digestOf(outside.desc)),
		pinned("pkg:oci/app1?repository_url="+strings.TrimSuffix(outside.ref, ":v1"), digestOf(outside.desc)),
	}
	const wants = "\n    dependencies: {depth: 1, registries: [%q], level: {build: 2}}\n"
	entry := func(list string) string {
		return fmt.Sprintf("  - match: '%s/**'\n    level: {build: 2}"+wants+"  - {match: '%s/**', level: {build: 0}}\n", w.addr, list, elsewhere.Addr)
	}
	for i, form := range forms {
		app := w.built(w.ours, form)
		w.must(faults.Set())
		v := w.judge(gate.Request{Reference: app.ref, Policy: w.policy(entry(w.addr+"/**"), trusted(2))})
		w.want(v, gate.Deny, 2, policy.CodeDependency)
		if len(v.Dependencies) != 1 || v.Dependencies[0].Looked || !strings.Contains(v.Dependencies[0].Message, "no registry that may be asked") {
			t.Errorf("form %d: %+v", i, v.Dependencies)
		}
		// Without a policy too: only the image's own registry.
		v = w.judge(gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 2})
		w.want(v, gate.Pass, 2)
		if got := faults.Seen(); len(got) != 0 {
			t.Fatalf("form %d: asked %q", i, got)
		}
		v = w.judge(gate.Request{Reference: app.ref, Policy: w.policy(entry(elsewhere.Addr+"/**"), trusted(2))})
		w.want(v, gate.Pass, 2)
		v = w.judge(gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 2, DependencyRegistries: []string{elsewhere.Addr + "/**"}})
		if summary(v) != "1:pass:L2" || len(faults.Seen()) == 0 {
			t.Errorf("form %d: %q", i, summary(v))
		}
	}
}

func TestDemandsOfDependencies(t *testing.T) {
	w := newWorld(t)
	root := w.built(w.ours)
	base := w.built(w.ours, purl(root))
	bare := w.single()
	onBare := w.built(w.ours, purl(bare))
	unpinned := map[string]any{"uri": purl(root)["uri"]}
	pol := func(depth, build int, more string) *policy.Policy {
		return w.policy(fmt.Sprintf("  - match: '%s/**'\n    level: {build: 0}\n%s  - match: '%s/app*'\n    level: {build: 0}\n    dependencies: {depth: %d, registries: [%q], level: {build: %d}}\n", w.addr, more, w.addr, depth, w.addr+"/**", build), trusted(2))
	}
	for _, c := range []struct {
		name     string
		image    *image
		policy   *policy.Policy
		decision gate.Decision
		says     string
	}{
		{"a base with the level", w.built(w.ours, purl(root)), pol(1, 2, ""), gate.Pass, ""},
		{"no base", w.built(w.ours), pol(1, 2, ""), gate.Pass, ""},
		{"a base below it", w.built(w.ours, purl(root)), pol(1, 3, ""), gate.Deny, "carries Build L2; each image must carry Build L3"},
		{"a base without evidence", w.built(w.ours, purl(bare)), pol(1, 1, ""), gate.Deny, "is denied: no provenance that counts"},
		{"the base of a base", w.built(w.ours, purl(base)), pol(2, 2, ""), gate.Pass, ""},
		{"the base of a base, without evidence", w.built(w.ours, purl(onBare)), pol(2, 1, ""), gate.Deny, "is denied: built from"},
		// Its own entry demands what lies deeper than the image's says.
		{"a base whose own demand lies deeper", w.built(w.ours, purl(base)), pol(1, 2, ""), gate.Undecided, "deeper than was asked"},
		{"no provenance", w.single(), pol(1, 1, ""), gate.Deny, "no provenance that counts lists what it was built from"},
		{"a list that means nothing", func() *image {
			i := w.single()
			i.attach(w.ours, i.desc, attestations.ProvenanceV1, strings.Replace(builtFrom(ci), attestations.ContainerBuildType, "https://other.example/build/v1", 1))
			return i
		}(), pol(1, 1, ""), gate.Deny, "no provenance that counts lists what it was built from"},
		{"a base that nothing pins", w.built(w.ours, unpinned), pol(1, 1, ""), gate.Deny, "does not pin it by digest"},
		{"waived", w.built(w.ours, purl(bare)), pol(1, 1, "    waivers: [{requirement: dependency, reason: r, owner: o, expires: 2099-01-01}]\n"), gate.Pass, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := w.judge(gate.Request{Reference: c.image.ref, Policy: c.policy})
			said := ""
			for _, r := range v.Reasons {
				said += r.Message + "\n"
			}
			if v.Decision != c.decision || !strings.Contains(said, c.says) {
				t.Errorf("%s %q, want %s %q; %+v", v.Decision, said, c.decision, c.says, v.Dependencies)
			}
		})
	}

	t.Run("a registry that does not answer", func(t *testing.T) {
		app := w.built(w.ours, purl(root))
		defer w.faults.Set()
		w.must(w.faults.Set(testkit.Fault{Kind: "500", Match: strings.TrimPrefix(strings.TrimSuffix(root.ref, ":v1"), w.addr) + "/"}))
		v := w.judge(gate.Request{Reference: app.ref, Policy: pol(1, 2, "")})
		w.want(v, gate.Undecided, 2, policy.CodeDependency)
		// Where nothing rests on it, it is said, and no more.
		v = w.judge(gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 1})
		if v.Decision != gate.Pass || summary(v) != "1:undecided:L0" || v.DependencyLevels != nil {
			t.Errorf("%s %q %v", v.Decision, summary(v), v.DependencyLevels)
		}
	})
}

// The same image under two names is judged by the policy's entry of each.
func TestADependencyOfTwoNames(t *testing.T) {
	w := newWorld(t)
	base := w.built(w.ours)
	at := func(place string) map[string]any {
		return pinned("docker-image://"+place+"/base", digestOf(base.desc))
	}
	loose, strict := purl(base), at(w.addr+"/prod")
	place, repo := w.open("prod/base")
	tag, err := name.NewTag(base.ref, name.Insecure)
	w.must(err)
	img, err := remote.Image(tag)
	w.must(err)
	w.must(remote.Write(repo.Tag("v1"), img))
	w.pushed(place, repo).attach(w.ours, base.desc, attestations.ProvenanceV1, builtFrom(ci))
	elsewhere := at("elsewhere.example")
	pol := w.policy(fmt.Sprintf("  - match: '%[1]s/app*'\n    level: {build: 0}\n    dependencies: {depth: 1, registries: ['%[1]s/**'], level: {build: 1}}\n  - match: '%[1]s/prod/**'\n    level: {build: 3}\n", w.addr), trusted(2))
	for _, c := range []struct {
		name     string
		from     []map[string]any
		decision gate.Decision
		want     string
		levels   map[string]uint64
	}{
		{"the loose one", []map[string]any{loose}, gate.Pass, "1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_2": 1}},
		{"the strict one", []map[string]any{strict}, gate.Deny, "1:deny:L2", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"the loose one first", []map[string]any{loose, strict}, gate.Deny, "1:deny:L2 1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"the strict one first", []map[string]any{strict, loose, strict}, gate.Deny, "1:deny:L2 1:pass:L2", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
		{"where nobody may be asked, first", []map[string]any{elsewhere, loose}, gate.Deny, "1:pass:L2 1:undecided:L0", map[string]uint64{"SLSA_BUILD_LEVEL_0": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := w.judge(gate.Request{Reference: w.built(w.ours, c.from...).ref, Policy: pol})
			if v.Decision != c.decision || summary(v) != c.want || !maps.Equal(v.DependencyLevels, c.levels) {
				t.Errorf("%s, dependencies %q, levels %v; want %s, %q, %v", v.Decision, summary(v), v.DependencyLevels, c.decision, c.want, c.levels)
			}
		})
	}
}

func TestDependenciesAreBounded(t *testing.T) {
	w := newWorld(t)
	var many []map[string]any
	for i := range attest.MaxDependencies + 50 {
		many = append(many, pinned("pkg:docker/elsewhere.example/app@1", attest.DigestOf(fmt.Appendf(nil, "%d", i))))
	}
	app := w.built(w.ours, many...)
	v := w.judge(gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 5})
	if v.Decision != gate.Pass || len(v.Dependencies) != attest.MaxDependencies || v.DependencyLevels != nil {
		t.Errorf("%s, %d dependencies, %v", v.Decision, len(v.Dependencies), v.DependencyLevels)
	}
	_, err := gate.Gate{}.Judge(t.Context(), gate.Request{Reference: app.ref, Keys: []verify.Key{w.ours.key}, Dependencies: 6})
	if err == nil {
		t.Error("a depth of 6 was taken")
	}
}

// FuzzImageURIs: no URI of a dependency is asked for in a registry that is not
// the one it was allowed in.
func FuzzImageURIs(f *testing.F) {
	for _, uri := range []string{
		"pkg:docker/alpine@3.20", "pkg:docker/registry.example/base@1?platform=linux%2Famd64", "pkg:oci/a?repository_url=registry.example/b/a", "docker-image://a.example/b",
		"oci://127.0.0.1:5000/a", "pkg:docker/a%2F..%2Fb", "pkg:docker/%00", "pkg:npm/a@1", "pkg:docker/user@evil.example/a", "oci:layout", "docker-image://docker:x",
	} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		ref, image := gate.ImageURI(uri)
		if ref == "" {
			return
		}
		if !image || strings.ContainsAny(ref, "@\x00 ?#%\\") || strings.Contains(ref, "..") || !strings.Contains(ref, "/") {
			t.Errorf("%q is asked about as %q", uri, ref)
		}
	})
}
