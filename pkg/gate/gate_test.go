package gate_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

const ci = "https://ci.example.org/builder"

// world is a registry with images, and people who sign.
type world struct {
	testing.TB
	faults  *testkit.Faults
	addr    string
	ours    person
	strange person
	n       int
}

type person struct {
	sign.Signer
	key verify.Key
	pem []byte
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{TB: t, faults: new(testkit.Faults)}
	r, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: w.faults})
	w.must(err)
	t.Cleanup(r.Close)
	w.addr = r.Addr
	w.ours, w.strange = w.person("ours.pub"), w.person("strange.pub")
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) person(name string) person {
	w.Helper()
	// A plain key: deriving one from a password takes its time on purpose.
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	w.must(err)
	der, err := x509.MarshalPKCS8PrivateKey(pair)
	w.must(err)
	file := filepath.Join(w.TempDir(), "key")
	w.must(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	s, err := sign.Open(w.Context(), file, sign.OpenOptions{})
	w.must(err)
	public := s.PublicKey()
	k, err := verify.ParseKey(name, public)
	w.must(err)
	return person{s, k, public}
}

// image is one pushed image or index.
type image struct {
	w         *world
	ref       string // with its tag
	place     store.Writable
	desc      v1.Descriptor
	platforms []v1.Descriptor
}

func (w *world) open(repo string) (store.Writable, name.Repository) {
	w.Helper()
	ref, err := store.Parse(w.addr + "/" + repo + ":v1")
	w.must(err)
	place, err := store.OpenWritable(w.Context(), ref, store.Options{})
	w.must(err)
	r, err := name.NewRepository(w.addr+"/"+repo, name.Insecure)
	w.must(err)
	return place, r
}

func (w *world) single() *image {
	w.Helper()
	w.n++
	place, repo := w.open(fmt.Sprintf("app%d", w.n))
	img, err := random.Image(100, 1)
	w.must(err)
	w.must(remote.Write(repo.Tag("v1"), img))
	return w.pushed(place, repo)
}

func (w *world) pushed(place store.Writable, repo name.Repository) *image {
	w.Helper()
	desc, err := place.Resolve(w.Context())
	w.must(err)
	i := &image{w: w, ref: repo.Tag("v1").String(), place: place, desc: desc}
	platforms, err := store.Platforms(w.Context(), place, desc)
	w.must(err)
	for _, p := range platforms {
		i.platforms = append(i.platforms, p.Descriptor)
	}
	return i
}

// index pushes an index of two platforms; with buildkit it holds BuildKit's
// unsigned provenance of each.
func (w *world) index(buildkit bool) *image {
	w.Helper()
	w.n++
	place, repo := w.open(fmt.Sprintf("app%d", w.n))
	idx := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(100, 1)
		w.must(err)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
		if !buildkit {
			continue
		}
		h, err := img.Digest()
		w.must(err)
		st := w.statement(attest.Digest(h.String()), attestations.ProvenanceV1, provenance(ci))
		att, err := mutate.Append(mutate.MediaType(empty.Image, types.OCIManifestSchema1), mutate.Addendum{
			Layer:       static.NewLayer(st.Raw(), types.MediaType(attest.PayloadType)),
			Annotations: map[string]string{"in-toto.io/predicate-type": attestations.ProvenanceV1},
		})
		w.must(err)
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: att, Descriptor: v1.Descriptor{
			Platform:    &v1.Platform{OS: "unknown", Architecture: "unknown"},
			Annotations: map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": h.String()},
		}})
	}
	w.must(remote.WriteIndex(repo.Tag("v1"), idx))
	return w.pushed(place, repo)
}

func digestOf(d v1.Descriptor) attest.Digest { return attest.Digest(d.Digest.String()) }

func provenance(builder string) string { return provenanceWith(builder, `{}`) }

func provenanceWith(builder, external string) string {
	return fmt.Sprintf(`{"buildDefinition":{"buildType":%q,"externalParameters":%s,"resolvedDependencies":[{"name":"source","uri":"git+https://git.example.org/acme/app","digest":{"gitCommit":"c0ffee"}}]},"runDetails":{"builder":{"id":%q}}}`,
		attestations.ContainerBuildType, external, builder)
}

const (
	spdx      = `{"spdxVersion":"SPDX-2.3","packages":[{"name":"a"}]}`
	cyclonedx = `{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"name":"a"}]}`
)

func (w *world) statement(about attest.Digest, kind, predicate string) *attest.Statement {
	w.Helper()
	st, err := attest.NewStatement(kind, []attest.Subject{{Name: "image", Digest: map[string]string{"sha256": about.Hex()}}}, json.RawMessage(predicate))
	w.must(err)
	return st
}

func (w *world) bundle(by person, about attest.Digest, kind, predicate string) *attest.Bundle {
	w.Helper()
	b, err := by.Sign(w.Context(), w.statement(about, kind, predicate))
	w.must(err)
	return b
}

// attach signs a statement about d and attaches it there.
func (i *image) attach(by person, d v1.Descriptor, kind, predicate string) attest.Digest {
	i.w.Helper()
	b := i.w.bundle(by, digestOf(d), kind, predicate)
	_, err := store.Attach(i.w.Context(), i.place, d, b)
	i.w.must(err)
	return b.Digest()
}

// referrer attaches any bytes as a bundle of d, whatever they are about.
func (i *image) referrer(d v1.Descriptor, raw []byte, annotations map[string]string) {
	i.w.Helper()
	i.refer(d, raw, nil, annotations)
}

// layer attaches them with annotations of the layer alone.
func (i *image) layer(d v1.Descriptor, raw []byte, annotations map[string]string) {
	i.w.Helper()
	i.refer(d, raw, annotations, nil)
}

func (i *image) refer(d v1.Descriptor, raw []byte, ofLayer, annotations map[string]string) {
	i.w.Helper()
	config := []byte("{}")
	put := func(data []byte, mediaType types.MediaType) v1.Descriptor {
		sum := attest.DigestOf(data)
		desc := v1.Descriptor{MediaType: mediaType, Size: int64(len(data)), Digest: v1.Hash{Algorithm: "sha256", Hex: sum.Hex()}}
		repo, err := name.NewRepository(i.place.Reference().Place, name.Insecure)
		i.w.must(err)
		i.w.must(remote.WriteLayer(repo, static.NewLayer(data, mediaType)))
		return desc
	}
	content := put(raw, attest.BundleMediaType)
	content.Annotations = ofLayer
	m, err := json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: attest.BundleMediaType,
		Config: put(config, "application/vnd.oci.empty.v1+json"), Layers: []v1.Descriptor{content},
		Subject: &v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}, Annotations: annotations})
	i.w.must(err)
	_, err = i.place.PutManifest(i.w.Context(), types.OCIManifestSchema1, m)
	i.w.must(err)
}

func (w *world) policy(images string, builders ...string) *policy.Policy {
	w.Helper()
	text := "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n  builders:\n"
	for _, b := range builders {
		text += "    - " + b + "\n"
	}
	text += "images:\n" + images
	p, err := policy.Parse([]byte(text), policy.ParseOptions{ReadKey: func(name string) ([]byte, error) {
		return map[string][]byte{"ours.pub": w.ours.pem, "strange.pub": w.strange.pem}[name], nil
	}})
	w.must(err)
	return p
}

func trusted(level int) string {
	return fmt.Sprintf(`{id: %q, signer: {key: ours.pub}, maxLevel: %d}`, ci, level)
}

func level(n int) *verify.Demand { return &verify.Demand{Levels: verify.Levels{Build: n}} }

// judge judges and checks what holds for every verdict: its JSON is what the
// schema says, and its text fits the screen.
func (w *world) judge(req gate.Request) *gate.Verdict {
	w.Helper()
	v, err := gate.Gate{}.Judge(w.Context(), req)
	w.must(err)
	sound(w, v)
	return v
}

func sound(t testing.TB, v *gate.Verdict) {
	t.Helper()
	validate(t, report.VerdictSchema(), v)
	var text bytes.Buffer
	if err := report.Verdict(&text, v, report.TextOptions{}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")
	if len(lines) > 24 {
		t.Errorf("%d lines:\n%s", len(lines), text.String())
	}
	for _, l := range lines[3:] {
		if len([]rune(l)) > 80 && strings.Contains(strings.TrimSpace(l), " ") && !strings.Contains(l, "sha256:") {
			t.Errorf("a line of %d: %s", len([]rune(l)), l)
		}
	}
}

func validate(t testing.TB, schema []byte, v any) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := report.JSON(&out, v); err != nil {
		t.Fatal(err)
	}
	got, err := jsonschema.UnmarshalJSON(&out)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(got); err != nil {
		t.Errorf("JSON is not what the schema says: %v", err)
	}
}

// want checks decision and level, and that the reasons hold each text.
func (w *world) want(v *gate.Verdict, d gate.Decision, build int, reasons ...string) {
	w.Helper()
	var all []string
	for _, r := range v.Reasons {
		all = append(all, fmt.Sprintf("%s %s %s: %s", r.Code, r.Platform, r.Requirement, r.Message))
	}
	if v.Decision != d || v.Reached.Build != build {
		w.Errorf("%s at L%d, want %s at L%d; because %q", v.Decision, v.Reached.Build, d, build, all)
	}
	for _, r := range reasons {
		if !strings.Contains(strings.Join(all, "\n"), r) {
			w.Errorf("no reason says %q: %q", r, all)
		}
	}
	if len(reasons) == 0 && d == gate.Pass && len(all) > 0 {
		w.Errorf("passed with reasons %q", all)
	}
}

func (w *world) codes(evidence []gate.Evidence) string {
	var out []string
	for _, e := range evidence {
		code := string(e.Code)
		if e.Accepted {
			code = "accepted"
		}
		out = append(out, code)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestKeysAlone(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	req := gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}}
	w.want(w.judge(req), gate.Deny, 0, "no evidence is attached")

	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(attestations.UnhostedBuilderID))
	v := w.judge(req)
	w.want(v, gate.Pass, 1)
	if v.Digest != digestOf(i.desc) || v.TrustedBy != gate.TrustedByKeys || v.Declared.Build != 1 || !v.Evidence[0].Used || v.Evidence[0].Signer.Name != "ours.pub" {
		t.Errorf("%+v", v)
	}
	req.Level = level(2)
	w.want(w.judge(req), gate.Deny, 1, "Hosted (Build L2) not met", "Provenance is authentic (Build L2) not met")

	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	w.want(w.judge(req), gate.Pass, 2)
	req.Level = level(3)
	w.want(w.judge(req), gate.Deny, 2, "cannot be told")
	req.Level, req.Keys = nil, []verify.Key{w.strange.key}
	w.want(w.judge(req), gate.Deny, 0, "no trusted key made its signature")
}

func TestNothingToJudgeAgainst(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	for _, req := range []gate.Request{
		{Reference: i.ref},
		{Reference: i.ref, Level: level(2)},
		{Reference: i.ref, Level: level(0), Keys: []verify.Key{w.ours.key}},
		{Reference: i.ref, Level: level(4), Keys: []verify.Key{w.ours.key}},
		{Reference: "UPPER case", Keys: []verify.Key{w.ours.key}},
	} {
		var usage *gate.UsageError
		if v, err := (gate.Gate{}).Judge(t.Context(), req); !errors.As(err, &usage) || v != nil {
			t.Errorf("%+v: %v", req, err)
		}
	}
}

// BuildKit's own attestations carry no signature: they count for Build L1, and
// only for who asked for no more.
func TestUnsigned(t *testing.T) {
	w := newWorld(t)
	i := w.index(true)
	v := w.judge(gate.Request{Reference: i.ref, Level: level(1)})
	w.want(v, gate.Pass, 1)
	if v.TrustedBy != gate.TrustedByNobody || v.Platforms[0].Evidence[0].Accepted {
		t.Errorf("%+v", v)
	}
	w.want(w.judge(gate.Request{Reference: i.ref, Level: level(1), Keys: []verify.Key{w.ours.key}}), gate.Deny, 0, "not signed")
	p := w.policy(`  - {match: "**", level: {build: 1}}`, trusted(3))
	w.want(w.judge(gate.Request{Reference: i.ref, Policy: p}), gate.Deny, 0, "not signed")
	w.want(w.judge(gate.Request{Reference: w.index(false).ref, Level: level(1)}), gate.Deny, 0, "no evidence")
}

func TestIndexIsAsGoodAsItsWorstPart(t *testing.T) {
	w := newWorld(t)
	keys := []verify.Key{w.ours.key}
	all := func(i *image) []v1.Descriptor { return append([]v1.Descriptor{i.desc}, i.platforms...) }

	good := w.index(false)
	for _, d := range all(good) {
		good.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	v := w.judge(gate.Request{Reference: good.ref, Keys: keys, Level: level(2)})
	w.want(v, gate.Pass, 2)
	if len(v.Platforms) != 2 || v.Platforms[0].Platform != "linux/amd64" || v.Platforms[0].Digest != digestOf(good.platforms[0]) {
		t.Errorf("platforms %+v", v.Platforms)
	}

	worse := w.index(false)
	for n, d := range all(worse) {
		worse.attach(w.ours, d, attestations.ProvenanceV1, provenance([]string{ci, ci, attestations.UnhostedBuilderID}[n]))
	}
	v = w.judge(gate.Request{Reference: worse.ref, Keys: keys, Level: level(2)})
	w.want(v, gate.Deny, 1, "level linux/arm64 build.l2.hosted")
	if v.Platforms[0].Decision != gate.Pass || v.Platforms[1].Decision != gate.Deny {
		t.Errorf("platforms %+v", v.Platforms)
	}

	onlyIndex := w.index(false)
	onlyIndex.attach(w.ours, onlyIndex.desc, attestations.ProvenanceV1, provenance(ci))
	w.want(w.judge(gate.Request{Reference: onlyIndex.ref, Keys: keys}), gate.Deny, 0, "level linux/amd64 build.l1.provenance-exists")

	onlyPlatforms := w.index(false)
	for _, d := range onlyPlatforms.platforms {
		onlyPlatforms.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	w.want(w.judge(gate.Request{Reference: onlyPlatforms.ref, Keys: keys}), gate.Deny, 0, "level  build.l1.provenance-exists")
	// A platform by its own digest is an image of its own.
	w.want(w.judge(gate.Request{Reference: onlyPlatforms.place.Reference().Place + "@" + string(digestOf(onlyPlatforms.platforms[0])), Keys: keys}), gate.Pass, 2)

	// The sibling's signed provenance attached to a platform proves nothing,
	// whatever the referrer's own subject field says.
	sibling := w.index(false)
	for _, d := range all(sibling)[:2] {
		sibling.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	sibling.referrer(sibling.platforms[1], w.bundle(w.ours, digestOf(sibling.platforms[0]), attestations.ProvenanceV1, provenance(ci)).Raw(), nil)
	w.want(w.judge(gate.Request{Reference: sibling.ref, Keys: keys}), gate.Deny, 0, "level linux/arm64 build.l1.provenance-exists", "not this digest")
}

// Strangers may attach what they like: the bad does not deny, the good does
// not admit.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	i.referrer(i.desc, []byte("not a bundle"), nil)
	i.referrer(i.desc, []byte(`{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AAAA"}]}`), nil)
	i.referrer(i.desc, append(w.bundle(w.strange, digestOf(i.desc), "https://example.org/t", `{}`).Raw(), "{}"...), nil)
	i.attach(w.strange, i.desc, attestations.ProvenanceV1, provenance(ci))
	i.attach(w.strange, i.desc, attestations.ProvenanceV1, `{"buildDefinition":null}`)
	i.attach(w.strange, i.desc, attestations.ProvenanceV02, provenance(ci))
	req := gate.Request{Reference: i.ref, Policy: w.policy(`  - {match: "**", level: {build: 3}}`, trusted(3))}
	w.want(w.judge(req), gate.Deny, 0, "provenance-exists")

	// Larger than anything that is read: not fetched, and said.
	i.referrer(i.desc, make([]byte, attest.MaxBundle+1), nil)
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	v := w.judge(req)
	w.want(v, gate.Pass, 3)
	if got := w.codes(v.Evidence); got != "accepted signature signature signature skipped unreadable unreadable unreadable" {
		t.Errorf("evidence %s", got)
	}

	// A trusted key for an id it does not speak for is a stranger's.
	other := w.single()
	other.attach(w.ours, other.desc, attestations.ProvenanceV1, provenance(ci+"/"))
	req.Reference = other.ref
	v = w.judge(req)
	w.want(v, gate.Deny, 0, "compared byte by byte")
	if got := w.codes(v.Evidence); got != "builder" {
		t.Errorf("evidence %s", got)
	}

	// A v1 body under the v0.2 type, signed by us: rejected, not repaired.
	wrong := w.single()
	wrong.attach(w.ours, wrong.desc, attestations.ProvenanceV02, provenance(ci))
	req.Reference = wrong.ref
	w.want(w.judge(req), gate.Deny, 0, "body is v1")
}

// Evidence in cosign's .att is found beside any number of other referrers.
func TestAttIsNotHiddenByReferrers(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	w.must(store.AttachCosign(t.Context(), i.place, i.desc, w.bundle(w.ours, digestOf(i.desc), attestations.ProvenanceV1, provenance(ci))))
	for n := range 20 {
		i.attach(w.strange, i.desc, "https://example.org/t", fmt.Sprintf(`{"n":%d}`, n))
	}
	v := w.judge(gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}, Level: level(2)})
	w.want(v, gate.Pass, 2)
	used := slices.IndexFunc(v.Evidence, func(e gate.Evidence) bool { return e.Used })
	if used < 0 || v.Evidence[used].Source != store.SourceAtt {
		t.Errorf("rests on %+v", v.Evidence)
	}
}

func TestPolicy(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenanceWith(ci, `{"buildArgs":{"VERSION":"1"}}`))
	match := fmt.Sprintf("match: %q", i.place.Reference().Place)
	for _, c := range []struct {
		name, images string
		level        *verify.Demand
		keys         []verify.Key
		as           string
		builders     []string
		decision     gate.Decision
		build        int
		reasons      []string
	}{
		{name: "fulfilled", images: `{` + match + `, level: {build: 3}, parameters: {buildArgs: [VERSION]}, source: {repository: "https://git.example.org/acme/app"}}`, decision: gate.Pass, build: 3},
		{name: "a parameter not allowed", images: `{` + match + `, level: {build: 1}}`, decision: gate.Deny, build: 0, reasons: []string{"parameter  build.l1.expectations", "buildArgs/VERSION"}},
		{name: "another source", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}, source: {repository: "https://git.example.org/acme/other"}}`, decision: gate.Deny, build: 0, reasons: []string{"source  build.l1.expectations"}},
		{name: "another build type", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}, buildTypes: ["https://other.example/t"]}`, decision: gate.Deny, build: 0, reasons: []string{"build-type"}},
		{name: "no entry for the image", images: `{match: "other.example/**", level: {build: 1}}`, decision: gate.Deny, build: 0, reasons: []string{"no-rule"}},
		{name: "judged under another name", images: `{match: "other.example/**", level: {build: 1}, parameters: {buildArgs: any}}`, as: "other.example/app", decision: gate.Pass, build: 3},
		{name: "the flag raises", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}}`, builders: []string{trusted(2)}, level: level(3), decision: gate.Deny, build: 2, reasons: []string{"Build L3"}},
		{name: "the flag does not lower", images: `{` + match + `, level: {build: 3}, parameters: {buildArgs: any}}`, builders: []string{trusted(2)}, level: level(1), decision: gate.Deny, build: 2, reasons: []string{"Build L3"}},
		{name: "the builder under another key", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}}`, builders: []string{
			fmt.Sprintf(`{id: %q, signer: {key: strange.pub}, maxLevel: 3}`, ci), `{id: "https://other.example/b", signer: {key: ours.pub}, maxLevel: 3}`},
			decision: gate.Deny, build: 0, reasons: []string{"is not the one trusted"}},
		{name: "narrowed to the key", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}}`, keys: []verify.Key{w.ours.key}, decision: gate.Pass, build: 3},
		{name: "narrowed to another key", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}}`, keys: []verify.Key{w.strange.key}, decision: gate.Deny, build: 0},
		{name: "an SBOM is required", images: `{` + match + `, level: {build: 1}, parameters: {buildArgs: any}, sbom: {required: true}}`, decision: gate.Deny, build: 3, reasons: []string{"sbom"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{TB: t, faults: w.faults, addr: w.addr, ours: w.ours, strange: w.strange}
			if c.builders == nil {
				c.builders = []string{trusted(3)}
			}
			p := w.policy("  - "+c.images+"\n", c.builders...)
			v := w.judge(gate.Request{Reference: i.ref, Name: c.as, Policy: p, Level: c.level, Keys: c.keys})
			w.want(v, c.decision, c.build, c.reasons...)
			if v.PolicyDigest != p.Digest() || v.TrustedBy != gate.TrustedByPolicy {
				t.Errorf("%+v", v)
			}
		})
	}
}

func TestRequiredSBOM(t *testing.T) {
	w := newWorld(t)
	i := w.index(false)
	for _, d := range append([]v1.Descriptor{i.desc}, i.platforms...) {
		i.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	req := gate.Request{Reference: i.ref, Policy: w.policy(`  - {match: "**", level: {build: 1}, sbom: {required: true, formats: [spdx, cyclonedx]}}`, trusted(3))}
	w.want(w.judge(req), gate.Deny, 3, "sbom linux/amd64", "sbom linux/arm64")
	i.attach(w.ours, i.platforms[0], attestations.SPDX, spdx)
	i.attach(w.ours, i.platforms[0], attestations.CycloneDX, cyclonedx)
	i.attach(w.ours, i.platforms[1], attestations.SPDX, spdx)
	i.attach(w.strange, i.platforms[1], attestations.CycloneDX, cyclonedx)
	i.attach(w.ours, i.platforms[1], attestations.CycloneDX, `{"bomFormat":"other"}`)
	// One about the index is about no platform.
	i.attach(w.ours, i.desc, attestations.CycloneDX, cyclonedx)
	w.want(w.judge(req), gate.Deny, 3, "sbom linux/arm64 : no signed cyclonedx SBOM")
	i.attach(w.ours, i.platforms[1], attestations.CycloneDX, cyclonedx)
	v := w.judge(req)
	w.want(v, gate.Pass, 3)

	// What nobody asked for is not even fetched.
	w.must(w.faults.Set())
	w.want(w.judge(gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}}), gate.Pass, 2)
	fetched := 0
	for _, r := range w.faults.Seen() {
		if strings.Contains(r, "/blobs/") || strings.Contains(r, "/manifests/sha256:") {
			fetched++
		}
	}
	// Each manifest carries its statement with it.
	if fetched != 3 {
		t.Errorf("%d fetched for three statements of provenance: %q", fetched, w.faults.Seen())
	}
}

// A place that cannot be asked gives no answer: never a pass, never a denial.
func TestUndecided(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	// And one whose bytes do not come along with its manifest.
	i.referrer(i.desc, w.bundle(w.ours, digestOf(i.desc), attestations.ProvenanceV1, provenance(ci)).Raw(), nil)
	req := gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}}
	for _, c := range []struct{ kind, match, code string }{
		{"401", "", gate.CodeUnavailable},
		{"429", "referrers", gate.CodeUnavailable},
		{"500", "referrers", gate.CodeUnavailable},
		{"500", `GET .*/blobs/`, gate.CodeUnavailable},
		{"500", `GET .*/manifests/sha256:`, gate.CodeUnavailable},
		{"404", `manifests/v1`, gate.CodeNotFound},
		{"referrers=10000", "referrers", gate.CodeUnreadable},
	} {
		w.must(w.faults.Set(testkit.Fault{Kind: c.kind, Match: c.match}))
		v := w.judge(req)
		if v.Decision != gate.Undecided || len(v.Reasons) != 1 || v.Reasons[0].Code != c.code || len(v.Evidence) > 0 || v.Reached.Build != 0 {
			t.Errorf("%s on %q: %s, %+v", c.kind, c.match, v.Decision, v.Reasons)
		}
		if _, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "x"}); err == nil {
			t.Error("a summary of no verdict")
		}
	}
	w.must(w.faults.Set())
	w.want(w.judge(req), gate.Pass, 2)
	req.Reference = "127.0.0.1:1/app:v1"
	w.want(w.judge(req), gate.Undecided, 0, gate.CodeUnavailable)
	req.Reference = "oci:" + filepath.Join(t.TempDir(), "none")
	w.want(w.judge(req), gate.Undecided, 0, gate.CodeNotFound)
}

func TestDeadline(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	w.must(w.faults.Set(testkit.Fault{Kind: "hang", Match: "referrers"}))
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		if err := w.faults.Await(t.Context(), regexp.MustCompile("referrers")); err == nil {
			cancel(context.DeadlineExceeded)
		}
	}()
	v, err := gate.Gate{}.Judge(ctx, gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}})
	w.must(err)
	sound(t, v)
	w.want(v, gate.Undecided, 0, gate.CodeTimeout)
}

// panics is a place that finds a bug wherever it is asked.
type panics struct {
	store.Repo
	at string
}

func (p panics) Resolve(ctx context.Context) (v1.Descriptor, error) {
	if p.at == "resolve" {
		panic("resolving")
	}
	return p.Repo.Resolve(ctx)
}

func (p panics) Evidence(context.Context, attest.Digest) ([]store.Piece, error) {
	panic(errors.New("gathering\x1b[2J"))
}

func TestPanicIsUndecided(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	for _, at := range []string{"open", "resolve", "evidence"} {
		g := gate.Gate{Open: func(context.Context, store.Reference, store.Options) (store.Repo, error) {
			if at == "open" {
				panic("opening")
			}
			return panics{i.place, at}, nil
		}}
		v, err := g.Judge(t.Context(), gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}})
		w.must(err)
		sound(t, v)
		w.want(v, gate.Undecided, 0, "internal error")
		if strings.ContainsRune(v.Reasons[0].Message, '\x1b') {
			t.Error("the message carries control characters")
		}
		if _, err := g.Inspect(t.Context(), gate.Request{Reference: i.ref}); err == nil {
			t.Error("inspected through a panic")
		}
	}
}

// The tag is asked for once: a registry cannot show one image and deliver
// another.
func TestResolvesOnce(t *testing.T) {
	w := newWorld(t)
	i := w.index(false)
	for _, d := range append([]v1.Descriptor{i.desc}, i.platforms...) {
		i.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	w.must(w.faults.Set())
	w.want(w.judge(gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}}), gate.Pass, 2)
	seen := map[string]int{}
	for _, r := range w.faults.Seen() {
		seen[r]++
	}
	for r, n := range seen {
		if n > 1 && !strings.HasSuffix(r, "/v2/") {
			t.Errorf("%d times %s", n, r)
		}
	}
}

func TestEvidenceFromFiles(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	dir := t.TempDir()
	good := filepath.Join(dir, "good.sigstore.json")
	w.must(os.WriteFile(good, w.bundle(w.ours, digestOf(i.desc), attestations.ProvenanceV1, provenance(ci)).Raw(), 0o600))
	huge := filepath.Join(dir, "huge.sigstore.json")
	w.must(os.WriteFile(huge, nil, 0o600))
	w.must(os.Truncate(huge, 100<<20))
	deep := filepath.Join(dir, "deep.sigstore.json")
	w.must(os.WriteFile(deep, []byte(strings.Repeat("[", 1<<20)), 0o600))
	req := gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}, Store: store.Options{Evidence: []string{huge, deep}}}
	w.want(w.judge(req), gate.Deny, 0)
	req.Store.Evidence = append(req.Store.Evidence, good)
	w.want(w.judge(req), gate.Pass, 2)
}

func TestVSA(t *testing.T) {
	w := newWorld(t)
	i := w.index(false)
	var inputs []string
	for _, d := range append([]v1.Descriptor{i.desc}, i.platforms...) {
		inputs = append(inputs, i.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci)).Hex())
		i.attach(w.strange, d, attestations.ProvenanceV1, provenance(ci))
	}
	p := w.policy(`  - {match: "**", level: {build: 2}}`, trusted(2))
	opts := gate.VSAOptions{VerifierID: "https://v.example/waxseal", ResourceURI: "oci://r.example/prod/app"}
	v := w.judge(gate.Request{Reference: i.ref, Policy: p})
	w.want(v, gate.Pass, 2)
	vsas, err := v.VSA(opts)
	w.must(err)
	if len(vsas) != 3 {
		t.Fatalf("%d summaries", len(vsas))
	}
	for n, s := range vsas {
		got := s.Predicate
		if s.Digest != digestOf(append([]v1.Descriptor{i.desc}, i.platforms...)[n]) || got.VerificationResult != "PASSED" || !slices.Equal(got.VerifiedLevels, []string{"SLSA_BUILD_LEVEL_2"}) ||
			got.ResourceURI != opts.ResourceURI || got.Verifier.ID != opts.VerifierID || got.Policy.Digest["sha256"] != p.Digest().Hex() || got.Policy.URI == "" ||
			got.SLSAVersion != "1.2" || got.DependencyLevels != nil || !got.TimeVerified.Equal(v.DecidedAt) {
			t.Errorf("%d: %+v", n, got)
		}
		var rests []string
		for _, r := range got.InputAttestations {
			rests = append(rests, r.Digest["sha256"])
		}
		want := inputs[n : n+1]
		if n == 0 { // the index rests on what its platforms rest on
			want = slices.Sorted(slices.Values(inputs))
		}
		if !slices.Equal(rests, want) {
			t.Errorf("%d rests on %v, want %v", n, rests, want)
		}
	}
	for _, bad := range []gate.VSAOptions{{}, {VerifierID: "no uri", ResourceURI: "x"}, {VerifierID: "https://v.example"}} {
		if _, err := v.VSA(bad); err == nil {
			t.Errorf("%+v: accepted", bad)
		}
	}

	// A denied image has passed at nothing, its better platforms neither.
	v = w.judge(gate.Request{Reference: i.ref, Policy: p, Level: level(3)})
	vsas, err = v.VSA(opts)
	w.must(err)
	for _, s := range vsas {
		if s.Predicate.VerificationResult != "FAILED" || !slices.Equal(s.Predicate.VerifiedLevels, []string{"FAILED"}) {
			t.Errorf("%+v", s.Predicate)
		}
	}
	v = w.judge(gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}})
	vsas, err = v.VSA(opts)
	w.must(err)
	if vsas[0].Predicate.Policy.URI == "" {
		t.Error("no policy URI without a policy")
	}
	if _, err := new(gate.Verdict).VSA(opts); err == nil {
		t.Error("a summary of a verdict that no gate gave")
	}
}

// The policy drafted from an image's evidence is fulfilled by that image.
func TestDraft(t *testing.T) {
	w := newWorld(t)
	i := w.index(false)
	for _, d := range append([]v1.Descriptor{i.desc}, i.platforms...) {
		i.attach(w.ours, d, attestations.ProvenanceV1, provenanceWith(attestations.UnhostedBuilderID, `{"buildArgs":{"VERSION":"1"},"target":"x","secrets":["s"]}`))
		i.attach(w.strange, d, attestations.ProvenanceV1, provenance(ci))
	}
	for _, d := range i.platforms {
		i.attach(w.ours, d, attestations.SPDX, spdx)
	}
	req := gate.DraftRequest{Request: gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}},
		KeyFiles: map[attest.Digest]string{w.ours.key.ID(): "ours.pub"}, KeyPEM: map[attest.Digest][]byte{w.ours.key.ID(): w.ours.pem}}
	raw, err := gate.Gate{}.Draft(t.Context(), req)
	w.must(err)
	p, err := policy.Parse(raw, policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return w.ours.pem, nil }})
	w.must(err)
	w.want(w.judge(gate.Request{Reference: i.ref, Policy: p}), gate.Pass, 1)
	if rule, ok := p.For(i.place.Reference().Place); !ok || rule.Level().String() != "Build L1" {
		t.Errorf("level %s in\n%s", rule.Level(), raw)
	} else if required, formats := rule.SBOM(); !required || !slices.Equal(formats, []string{"spdx"}) {
		t.Errorf("sbom %v in\n%s", formats, raw)
	}

	if _, err := (gate.Gate{}).Draft(t.Context(), gate.DraftRequest{Request: gate.Request{Reference: i.ref}}); err == nil {
		t.Error("drafted from evidence that nobody checked")
	}
	req.Keys = []verify.Key{w.person("third.pub").key}
	if _, err := (gate.Gate{}).Draft(t.Context(), req); err == nil || !strings.Contains(err.Error(), "index") {
		t.Errorf("drafted from strangers' evidence: %v", err)
	}
}

func TestInspect(t *testing.T) {
	w := newWorld(t)
	i := w.index(true)
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	i.attach(w.strange, i.platforms[0], attestations.SPDX, spdx)
	i.attach(w.ours, i.platforms[1], attestations.CycloneDX, cyclonedx)
	i.attach(w.ours, i.platforms[1], attestations.VSAV1, `{"verifier":{"id":"https://v.example"},"timeVerified":"2026-01-01T00:00:00Z","resourceUri":"oci://r.example/a","policy":{"uri":"x"},"verificationResult":"PASSED","verifiedLevels":["SLSA_BUILD_LEVEL_2"]}`)
	i.attach(w.ours, i.platforms[1], "https://example.org/t", `{"text":"\u001b[2J"}`)
	in, err := gate.Gate{}.Inspect(t.Context(), gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}})
	w.must(err)
	validate(t, report.InspectionSchema(), in)
	var text bytes.Buffer
	w.must(report.Tree(&text, in, report.TextOptions{}))
	for _, want := range []string{
		"index sha256:", "SLSA provenance v1  verified, signed by ours.pub", "built by " + ci + ", from https://git.example.org/acme/app@c0ffee, 1 dependency",
		"linux/amd64 sha256:", "SPDX SBOM  rejected", "SPDX-2.3, 1 entry", "not signed", "CycloneDX SBOM  verified", "CycloneDX 1.6, 1 entry",
		`PASSED ["SLSA_BUILD_LEVEL_2"] by https://v.example for oci://r.example/a`, "https://example.org/t  verified",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	// Without a key nothing is called verified.
	in, err = gate.Gate{}.Inspect(t.Context(), gate.Request{Reference: i.ref})
	w.must(err)
	validate(t, report.InspectionSchema(), in)
	text.Reset()
	w.must(report.Tree(&text, in, report.TextOptions{}))
	if strings.Contains(strings.ReplaceAll(strings.ReplaceAll(text.String(), "not verified", ""), "nothing below is verified", ""), "verified") {
		t.Errorf("verified without a key:\n%s", text.String())
	}
	if _, err := (gate.Gate{}).Inspect(t.Context(), gate.Request{Reference: w.addr + "/none:v1"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("an image that is not there: %v", err)
	}
}

func TestName(t *testing.T) {
	for in, want := range map[string]string{
		"r.example/a/b:v1": "r.example/a/b", "r.example:5000/a": "r.example:5000/a", "oci:out/image:app": "oci:out/image",
		"docker:app:v1": "docker:app", "docker:r.example:5000/app": "docker:r.example:5000/app",
	} {
		ref, err := store.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if got := gate.Name(ref); got != want {
			t.Errorf("%s is %s, want %s", in, got, want)
		}
	}
}

func TestClock(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	v, err := gate.Gate{Now: func() time.Time { return at }}.Judge(t.Context(), gate.Request{Reference: i.ref, Keys: []verify.Key{w.ours.key}})
	w.must(err)
	if got := v.DecidedAt.Format(time.RFC3339Nano); got != "2026-01-02T02:04:05Z" {
		t.Errorf("decided at %s", got)
	}
}
