package corpus

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

var update = flag.Bool("update", false, "mint the corpus anew")

// mintedWith is the Go whose use of randomness the committed bytes came from.
// Another may use it otherwise; then only what is not signed is compared.
const mintedWith = "go1.26"

// The moments and the names of the corpus.
const (
	ciID       = "https://ci.example/builder/v1"
	ciIssuer   = "https://token.ci.example"
	ciSAN      = "https://ci.example/acme/build/.github/workflows/seal.yml@refs/tags/v1"
	repository = "https://git.example/acme/app"
	commit     = "c0ffee0123456789c0ffee0123456789c0ffee01"
	imageName  = "registry.example/acme/app"
)

// minted is when everything is signed, unless a case says otherwise.
func minted() time.Time { return time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC) }

// entry is a case to mint: what it is called, what it stands for, and how it is
// made. A draft begins as an image of one platform that must pass at Build L3,
// judged by a policy that trusts the key "ours" for the builder ciID; make adds
// the evidence and what is otherwise.
type entry struct {
	name, title string
	stands      string // separated by ", "
	make        func(*draft)
}

// world is what all cases share: people with keys, and instances of Sigstore.
type world struct {
	people                 map[string]*person
	ours, theirs           *virtual.Sigstore
	private, ended         *virtual.CA
	large                  *rsa.PrivateKey // larger than a verifier should bear
	oursRoot, theirsRoot   []byte
	privatePEM, betweenPEM []byte
	image, other           *image
	multi                  *image
}

type person struct {
	key  crypto.Signer
	hash crypto.Hash // 0 for Ed25519
	pem  []byte
}

// image is the content of an OCI layout.
type image struct {
	blobs     map[string][]byte // by hex
	entries   []descriptor      // of index.json
	top       descriptor
	platforms []descriptor
}

// mintAll mints the cases in a world whose clock and whose chance are always
// the same, and returns the files of the corpus by path.
func mintAll(t *testing.T, entries []entry) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	synctest.Test(t, func(t *testing.T) {
		<-time.After(time.Until(minted()))
		w := newWorld(t)
		for _, e := range entries {
			seed(t, e.name) // so that one case's bytes do not depend on another's
			d := w.draft(t, e)
			e.make(d)
			for name, raw := range d.finish() {
				path := e.name + "/" + name
				if _, twice := out[path]; twice {
					t.Fatalf("%s is minted twice", path)
				}
				out[path] = raw
			}
		}
	})
	return out
}

func seed(t *testing.T, name string) {
	sum := sha256.Sum256([]byte(name))
	cryptotest.SetGlobalRandom(t, binary.LittleEndian.Uint64(sum[:]))
}

func newWorld(t *testing.T) *world {
	w := &world{people: map[string]*person{}}
	for _, name := range []string{"ours", "strange", "second", "reviewer", "verifier", "author"} {
		seed(t, "key "+name)
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		w.people[name] = newPerson(t, key, crypto.SHA256)
	}
	seed(t, "key p384")
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	must(t, err)
	w.people["p384"], w.people["p384-sha384"] = newPerson(t, key, crypto.SHA256), newPerson(t, key, crypto.SHA384)
	seed(t, "key ed25519")
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	w.people["ed25519"] = newPerson(t, edwards, 0)
	seed(t, "key rsa")
	modulus, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	w.people["rsa"] = newPerson(t, modulus, crypto.SHA256)

	seed(t, "key large")
	w.large, err = rsa.GenerateMultiPrimeKey(rand.Reader, 9, 9216) //nolint:staticcheck // of two primes it takes a minute
	must(t, err)

	seed(t, "instance ours")
	w.ours, err = virtual.New()
	must(t, err)
	seed(t, "instance theirs")
	w.theirs, err = virtual.New()
	must(t, err)
	seed(t, "authorities")
	w.private, err = virtual.NewCA(virtual.CAOptions{})
	must(t, err)
	w.ended, err = virtual.NewCA(virtual.CAOptions{Until: minted().Add(-time.Hour)})
	must(t, err)
	w.oursRoot = trustedRoot(t, w.ours, virtual.RootOptions{})
	w.theirsRoot = trustedRoot(t, w.theirs, virtual.RootOptions{})
	w.privatePEM, w.betweenPEM = w.private.PEM()

	w.image, w.other = single("app", nil), single("another app", nil)
	w.multi = several(single("app on amd64", nil), single("app on arm64", nil))
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newPerson(t *testing.T, key crypto.Signer, hash crypto.Hash) *person {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	return &person{key, hash, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})}
}

// sign makes the bytes of a signature over a DSSE envelope.
// https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md
func (p *person) sign(t testing.TB, payloadType string, payload []byte) []byte {
	t.Helper()
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	digest := pae
	if p.hash != 0 {
		h := p.hash.New()
		h.Write(pae)
		digest = h.Sum(nil)
	}
	sig, err := p.key.Sign(rand.Reader, digest, p.hash)
	must(t, err)
	return sig
}

// single is an image of one platform whose one layer holds a text. config
// changes its configuration.
func single(text string, config map[string]any) *image {
	i := &image{blobs: map[string][]byte{}}
	layer := i.put("application/vnd.oci.image.layer.v1.tar", []byte(text+"\n"))
	c := i.put("application/vnd.oci.image.config.v1+json", compact(map[string]any{
		"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer.Digest}},
	}))
	i.top = i.putManifest(manifest{Config: &c, Layers: []descriptor{layer}})
	i.entries = []descriptor{i.top}
	return i
}

// several is an index of images, for amd64 and arm64.
func several(parts ...*image) *image {
	i := &image{blobs: map[string][]byte{}}
	var below []descriptor
	for n, p := range parts {
		maps.Copy(i.blobs, p.blobs)
		d := p.top
		d.Platform = &platform{[]string{"amd64", "arm64"}[n], "linux"}
		below = append(below, d)
	}
	i.platforms = below
	i.top = i.putManifest(manifest{MediaType: "application/vnd.oci.image.index.v1+json", Manifests: below})
	i.entries = []descriptor{i.top}
	return i
}

func (i *image) clone() *image {
	c := *i
	c.blobs, c.entries, c.platforms = maps.Clone(i.blobs), slices.Clone(i.entries), slices.Clone(i.platforms)
	return &c
}

func (i *image) put(mediaType string, raw []byte) descriptor {
	d := descriptor{MediaType: mediaType, Size: int64(len(raw)), Digest: digestOf(raw)}
	i.blobs[hexOf(d.Digest)] = raw
	return d
}

func (i *image) putManifest(m manifest) descriptor {
	m.SchemaVersion = 2
	if m.MediaType == "" {
		m.MediaType = "application/vnd.oci.image.manifest.v1+json"
	}
	return i.put(m.MediaType, compact(m))
}

func (i *image) tag(tag string, d descriptor) {
	d.Annotations = map[string]string{refName: tag}
	i.entries = append(i.entries, d)
}

func digestOf(raw []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(raw)) }

func compact(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// draft is one case in the making.
type draft struct {
	testing.TB
	*world
	*image // of this case alone
	c      Case
	files  map[string][]byte
	// policy is the text of the policy file; "" writes the one that Trust and
	// Question mean, "none" none.
	policy string
	more   string // fields of the policy's entry for the image
	trusts string // fields of the policy's trust
}

func (w *world) draft(t testing.TB, e entry) *draft {
	d := &draft{TB: t, world: w, image: w.image.clone(), files: map[string][]byte{}}
	d.c = Case{Schema: CaseSchema, Title: e.title, Name: e.name}
	if e.stands != "" {
		d.c.StandsFor = strings.Split(e.stands, ", ")
	}
	d.c.Question = Question{Image: "image", At: usual(), Level: Levels{Build: 3}}
	d.c.Expect = Expect{Decision: Pass, Reached: Levels{Build: 3}}
	d.trustKey("ours", ciID, 3)
	return d
}

// distrust takes all trust away.
func (d *draft) distrust() { d.c.Trust = Trust{} }

func (d *draft) key(name string) string {
	file := "trust/" + name + ".pub"
	d.files[file] = d.people[name].pem
	return file
}

// trustKey trusts a person for a builder, up to a level.
func (d *draft) trustKey(name, id string, level int) *Key {
	file := d.key(name)
	i := slices.IndexFunc(d.c.Trust.Keys, func(k Key) bool { return k.File == file })
	if i < 0 {
		d.c.Trust.Keys = append(d.c.Trust.Keys, Key{File: file})
		i = len(d.c.Trust.Keys) - 1
	}
	d.c.Trust.Builders = append(d.c.Trust.Builders, Builder{ID: id, Key: file, MaxLevel: level})
	return &d.c.Trust.Keys[i]
}

// trustCertificate trusts ciSAN under our instance for ciID, and no key.
func (d *draft) trustCertificate() *Identity {
	return d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.oursRoot)
}

func (d *draft) trustIdentity(id Identity, root []byte) *Identity {
	d.distrust()
	delete(d.files, "trust/ours.pub")
	d.c.Trust.Identities = []Identity{id}
	if root != nil {
		d.files["trust/trusted_root.json"] = root
		d.c.Trust.Roots = []string{"trust/trusted_root.json"}
	}
	d.c.Trust.Builders = []Builder{{ID: ciID, Identity: &d.c.Trust.Identities[0], MaxLevel: 3}}
	return &d.c.Trust.Identities[0]
}

// keysOnly judges by the keys alone, without a policy, at a Build level.
func (d *draft) keysOnly(level int) {
	d.policy = "none"
	d.c.Trust.Builders = nil
	d.c.Question.Level = Levels{Build: level}
}

// build sets the level that is asked for.
func (d *draft) build(level int) { d.c.Question.Level.Build = level }

// deny expects a denial at a level, for reasons: CODE, CODE REQUIREMENT, or
// CODE REQUIREMENT PLATFORM.
func (d *draft) deny(reached int, reasons ...string) {
	d.c.Expect = Expect{Decision: Deny, Reached: Levels{Build: reached}, Evidence: d.c.Expect.Evidence, Reasons: reasonsOf(reasons)}
}

// nothing expects a denial because no provenance counts.
func (d *draft) nothing() { d.deny(0, "level "+reqExists) }

func (d *draft) pass(reached int) { d.c.Expect.Decision, d.c.Expect.Reached.Build = Pass, reached }

func (d *draft) undecided(code string) {
	d.c.Expect = Expect{Decision: Undecided, Reasons: reasonsOf([]string{code})}
}

// usage expects that the question is refused, in words that hold some text.
func (d *draft) usage(says string) { d.c.Expect = Expect{Decision: Usage, Says: says} }

func reasonsOf(list []string) []Reason {
	var out []Reason
	for _, s := range list {
		f := append(strings.Fields(s), "", "")
		r := Reason{Code: f[0], Requirement: f[1], Platform: f[2]}
		if rule, ok := strings.CutPrefix(f[1], "rule:"); ok {
			r.Requirement, r.Rule = "", strings.ReplaceAll(rule, "_", " ")
		}
		out = append(out, r)
	}
	return out
}

// seen expects what becomes of a piece, for the image or some platforms.
func (d *draft) seen(raw []byte, where, code string, platforms ...string) {
	if platforms == nil {
		platforms = []string{""}
	}
	e := Evidence{Where: where, Code: code}
	if raw != nil {
		e.Digest = digestOf(raw)
	}
	for _, p := range platforms {
		e.Platform = p
		d.c.Expect.Evidence = append(d.c.Expect.Evidence, e)
	}
}

// file adds a file of evidence with one piece, and expects a code of it.
func (d *draft) file(name string, raw []byte, code string, platforms ...string) {
	d.raw(name, raw)
	d.seen(raw, "evidence/"+name, code, platforms...)
}

// raw adds a file of evidence.
func (d *draft) raw(name string, raw []byte) {
	d.files["evidence/"+name] = raw
	d.c.Question.Evidence = append(d.c.Question.Evidence, "evidence/"+name)
}

// good adds provenance that counts.
func (d *draft) good() { d.file("provenance.json", d.seal("ours", d.provenance()), Accepted) }

// statement is an in-toto statement about a digest.
func statement(digest, kind string, predicate any) []byte {
	return compact(struct {
		Type          string `json:"_type"`
		Subject       any    `json:"subject"`
		PredicateType string `json:"predicateType"`
		Predicate     any    `json:"predicate"`
	}{"https://in-toto.io/Statement/v1", []any{subject(digest)}, kind, predicate})
}

type object = map[string]any

func subject(digest string) object {
	return object{"name": imageName, "digest": object{"sha256": hexOf(digest)}}
}

// about is a statement about the case's image.
func (d *draft) about(kind string, predicate any) []byte {
	return statement(d.top.Digest, kind, predicate)
}

// provenance is SLSA v1 provenance by ciID from repository. Each change gets
// the predicate.
func (d *draft) provenance(changes ...func(object)) []byte {
	return d.provenanceOf(d.top.Digest, changes...)
}

func (d *draft) provenanceOf(digest string, changes ...func(object)) []byte {
	p := predicate()
	for _, change := range changes {
		change(p)
	}
	return statement(digest, attestations.ProvenanceV1, p)
}

func predicate() object {
	return object{
		"buildDefinition": object{
			"buildType":          attestations.ContainerBuildType,
			"externalParameters": object{},
			"resolvedDependencies": []any{
				object{"name": attestations.DependencySource, "uri": "git+" + repository, "digest": object{"gitCommit": commit}},
			},
		},
		"runDetails": object{"builder": object{"id": ciID}},
	}
}

// builder changes builder.id; external and definition set members.
func builder(id string) func(object) {
	return func(p object) { p["runDetails"].(object)["builder"] = object{"id": id} }
}

func external(name string, value any) func(object) {
	return func(p object) { p["buildDefinition"].(object)["externalParameters"].(object)[name] = value }
}

func definition(name string, value any) func(object) {
	return func(p object) {
		if value == nil {
			delete(p["buildDefinition"].(object), name)
			return
		}
		p["buildDefinition"].(object)[name] = value
	}
}

func source(uri string, digest object) func(object) {
	dep := object{"name": attestations.DependencySource, "uri": uri}
	if digest != nil {
		dep["digest"] = digest
	}
	return definition("resolvedDependencies", []any{dep})
}

const payloadType = "application/vnd.in-toto+json"

// seal signs a statement with a person's key, as a bundle.
func (d *draft) seal(name string, st []byte) []byte {
	return bundleOf(d.people[name], payloadType, st, d.people[name].sign(d, payloadType, st))
}

func bundleOf(p *person, payloadType string, payload []byte, sigs ...[]byte) []byte {
	return compact(bundleObject(p, payloadType, payload, sigs...))
}

// bundleObject is a bundle v0.3 with a hint of the key.
func bundleObject(p *person, payloadType string, payload []byte, sigs ...[]byte) object {
	block, _ := pem.Decode(p.pem)
	sum := sha256.Sum256(block.Bytes)
	list := []any{}
	for _, s := range sigs {
		list = append(list, object{"sig": s})
	}
	return object{
		"mediaType":            "application/vnd.dev.sigstore.bundle.v0.3+json",
		"verificationMaterial": object{"publicKey": object{"hint": base64.StdEncoding.EncodeToString(sum[:])}},
		"dsseEnvelope":         object{"payload": payload, "payloadType": payloadType, "signatures": list},
	}
}

// dsse signs a statement with a person's key, as a bare envelope.
func (d *draft) dsse(name string, st []byte) []byte {
	return compact(object{"payload": st, "payloadType": payloadType, "signatures": []any{
		object{"keyid": "", "sig": d.people[name].sign(d, payloadType, st)},
	}})
}

// certified signs a statement under a certificate for ciSAN.
func (d *draft) certified(by *virtual.Sigstore, st []byte, changes ...func(*virtual.Options)) []byte {
	return d.bent(by, st, nil, changes...)
}

// bent is certified, and changes the bundle as nobody should.
func (d *draft) bent(by *virtual.Sigstore, st []byte, bend func(*protobundle.Bundle), changes ...func(*virtual.Options)) []byte {
	d.Helper()
	o := virtual.Options{SAN: ciSAN, Issuer: ciIssuer}
	for _, change := range changes {
		change(&o)
	}
	b, err := by.Bundle(st, o)
	must(d, err)
	if bend != nil {
		bend(b)
	}
	raw, err := protojson.Marshal(b)
	must(d, err)
	return unspaced(d, raw)
}

// unspaced is JSON that always has the same bytes: protojson spaces its output
// differently in every program, on purpose.
func unspaced(t testing.TB, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	must(t, json.Compact(&out, raw))
	return out.Bytes()
}

func trustedRoot(t testing.TB, s *virtual.Sigstore, o virtual.RootOptions) []byte {
	t.Helper()
	raw, err := s.Root(o)
	must(t, err)
	return unspaced(t, raw)
}

// refer attaches a piece in the layout as a referrer of something. change may
// bend its manifest.
func (d *draft) refer(of descriptor, raw []byte, changes ...func(*manifest)) descriptor {
	config := d.put("application/vnd.oci.empty.v1+json", []byte("{}"))
	m := manifest{
		ArtifactType: "application/vnd.dev.sigstore.bundle.v0.3+json", Config: &config,
		Layers:  []descriptor{d.put("application/vnd.dev.sigstore.bundle.v0.3+json", raw)},
		Subject: &descriptor{MediaType: of.MediaType, Size: of.Size, Digest: of.Digest},
	}
	for _, change := range changes {
		change(&m)
	}
	out := d.putManifest(m)
	d.entries = append(d.entries, out)
	return out
}

// finish writes what is left and returns the files.
func (d *draft) finish() map[string][]byte {
	q := &d.c.Question
	if q.Digest == "" {
		q.Digest, q.MediaType = d.top.Digest, d.top.MediaType
	}
	if d.policy == "" {
		d.policy = d.writePolicy()
	}
	if d.policy != "none" {
		d.c.Trust.Policy = "trust/policy.yaml"
		d.files["trust/policy.yaml"] = []byte(d.policy)
	}
	slices.Sort(q.Evidence)
	raw, err := json.MarshalIndent(d.c, "", "  ")
	must(d, err)
	d.files["case.json"] = append(raw, '\n')
	d.files["image/oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	d.files["image/index.json"] = compact(manifest{SchemaVersion: 2, MediaType: "application/vnd.oci.image.index.v1+json", Manifests: d.entries})
	for sum, blob := range d.blobs {
		d.files["image/blobs/sha256/"+sum] = blob
	}
	return d.files
}

// writePolicy says the trust and the question as a policy.
func (d *draft) writePolicy() string {
	var b strings.Builder
	b.WriteString("apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n")
	if len(d.c.Trust.Builders) > 0 {
		b.WriteString("  builders:\n")
	}
	for _, r := range d.c.Trust.Builders {
		fmt.Fprintf(&b, "    - id: %s\n      signer: %s\n      maxLevel: %d\n", r.ID, d.signer(r), r.MaxLevel)
		if r.Name != "" {
			fmt.Fprintf(&b, "      name: %s\n", r.Name)
		}
	}
	d.writeSpeakers(&b)
	b.WriteString(indent(d.trusts, "  "))
	b.WriteString("images:\n  - match: \"**\"\n")
	q := d.c.Question
	level := fmt.Sprintf("build: %d", q.Level.Build)
	if q.Level.Source > 0 {
		level += fmt.Sprintf(", source: %d", q.Level.Source)
	}
	fmt.Fprintf(&b, "    level: {%s}\n", level)
	if len(q.Properties) > 0 {
		fmt.Fprintf(&b, "    properties: [%s]\n", strings.Join(q.Properties, ", "))
	}
	if q.Repository != "" {
		ref := ""
		if q.Ref != "" {
			ref = ", ref: " + q.Ref
		}
		fmt.Fprintf(&b, "    source: {repository: %s%s}\n", q.Repository, ref)
	}
	if q.Signatures > 0 {
		fmt.Fprintf(&b, "    signatures: {atLeast: %d}\n", q.Signatures)
	}
	q.Summary.write(&b)
	b.WriteString(indent(d.more, "    "))
	return b.String()
}

// signPolicy signs the policy, with the key that it names, as a statement of a kind.
func (d *draft) signPolicy(by, kind string) {
	digest := digestOf([]byte(d.policy))
	d.files["trust/policy.yaml.sigstore.json"] = d.seal(by, statement(digest, kind, object{
		"apiVersion": "waxseal.dev/v1",
		"files":      []any{object{"policy": digest, "name": "ours.pub", "digest": digestOf(d.files["trust/ours.pub"])}},
	}))
}

// writeSpeakers says whose word counts about the source, and whose summaries.
func (d *draft) writeSpeakers(b *strings.Builder) {
	list := func(name string, n int) {
		if n > 0 {
			fmt.Fprintf(b, "  %s:\n", name)
		}
	}
	key := func(file string) string { return "{key: " + strings.TrimPrefix(file, "trust/") + "}" }
	t := d.c.Trust
	list("verifiers", len(t.Verifiers))
	for _, v := range t.Verifiers {
		fmt.Fprintf(b, "    - id: %s\n      signer: %s\n      levels: {build: %d, source: %d}\n", v.ID, key(v.Key), v.Levels.Build, v.Levels.Source)
		if len(v.Properties) > 0 {
			fmt.Fprintf(b, "      properties: [%s]\n", strings.Join(v.Properties, ", "))
		}
	}
	list("sources", len(t.Sources))
	for _, s := range t.Sources {
		properties := ""
		if len(s.Properties) > 0 {
			properties = fmt.Sprintf(", properties: [%s]", strings.Join(s.Properties, ", "))
		}
		fmt.Fprintf(b, "    - {repository: %q, signer: %s, maxLevel: %d%s}\n", s.Repository, key(s.Key), s.MaxLevel, properties)
	}
	list("reviewers", len(t.Reviewers))
	for _, r := range t.Reviewers {
		fmt.Fprintf(b, "    - name: %s\n      signer: %s\n", r.Name, key(r.Key))
		if len(r.Aliases) > 0 {
			fmt.Fprintf(b, "      aliases: [%s]\n", strings.Join(r.Aliases, ", "))
		}
	}
}

func (s *Summary) write(b *strings.Builder) {
	if s == nil {
		return
	}
	fmt.Fprintf(b, "    vsa:\n      resourceUri: %q\n", s.ResourceURI)
	if s.PolicyURI != "" {
		fmt.Fprintf(b, "      policy: {uri: %q", s.PolicyURI)
		if s.PolicyDigest != "" {
			fmt.Fprintf(b, ", digest: %q", s.PolicyDigest)
		}
		b.WriteString("}\n")
	}
	if s.MaxAge > 0 {
		fmt.Fprintf(b, "      maxAge: %dd\n", s.MaxAge)
	}
	if len(s.Names) > 0 {
		fmt.Fprintf(b, "      names: [%s]\n", strings.Join(s.Names, ", "))
	}
	if s.Required {
		b.WriteString("      required: true\n")
	}
	if len(s.Delegates) > 0 {
		fmt.Fprintf(b, "      delegates: [%s]\n", strings.Join(s.Delegates, ", "))
	}
}

func indent(text, by string) string {
	if text == "" {
		return ""
	}
	return by + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n"+by) + "\n"
}

// signer is who signs for a builder, in a policy's words.
func (d *draft) signer(b Builder) string {
	var fields []string
	add := func(name, value string) {
		if value != "" {
			fields = append(fields, fmt.Sprintf("%s: %q", name, strings.TrimPrefix(value, "trust/")))
		}
	}
	moment := func(name string, t time.Time) {
		if !t.IsZero() {
			add(name, t.UTC().Format(time.RFC3339))
		}
	}
	lasts := func(l Life) {
		moment("from", l.From)
		moment("until", l.Until)
		if !l.Revoked.IsZero() {
			fields = append(fields, fmt.Sprintf("revoked: {at: %q, reason: stolen}", l.Revoked.UTC().Format(time.RFC3339)))
		}
	}
	if b.Identity == nil {
		add("key", b.Key)
		for _, k := range d.c.Trust.Keys {
			if k.File == b.Key {
				lasts(k.Life)
			}
		}
		return "{" + strings.Join(fields, ", ") + "}"
	}
	add("issuer", b.Identity.Issuer)
	add("san", b.Identity.SAN+b.Identity.Pattern)
	add("ca", d.c.Trust.CARoots)
	if len(d.c.Trust.Roots) > 0 {
		add("root", d.c.Trust.Roots[0])
	}
	lasts(b.Identity.Life)
	return "{" + strings.Join(fields, ", ") + "}"
}

func allEntries() []entry {
	return slices.Concat(bindingCases(), envelopeCases(), timeCases(), identityCases(), builderCases(), discoveryCases(), gateCases(), trustCases(), acceptedCases(), propertyCases(), vsaCases(), sourceCases(), dependencyCases(), provenanceCases(), lifeCases(), thresholdCases(), certificateCases())
}

// TestMint compares what the table says with what is committed, and with
// -update writes it.
func TestMint(t *testing.T) {
	dir := corpusDir(t)
	files := mintAll(t, allEntries())
	if *update {
		for _, e := range must1(os.ReadDir(dir))(t) {
			if e.IsDir() {
				must(t, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
		}
		for name, raw := range files {
			path := filepath.Join(dir, filepath.FromSlash(name))
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, raw, 0o644))
		}
	}
	same := strings.HasPrefix(runtime.Version(), mintedWith)
	committed := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if name = filepath.ToSlash(name); err != nil || !strings.Contains(name, "/") {
			return err // of the corpus itself
		}
		committed[name] = true
		raw, err := os.ReadFile(path)
		if want, ok := files[name]; err == nil && (!ok || same && !bytes.Equal(raw, want)) {
			t.Errorf("%s is not what the table says; mint it with -update", name)
		}
		return err
	})
	must(t, err)
	for name := range files {
		if !committed[name] && same {
			t.Errorf("%s is missing; mint it with -update", name)
		}
	}
}

func must1[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		must(t, err)
		return v
	}
}

// plain signs the payload alone, as DSSE does not.
func (p *person) plain(t testing.TB, payload []byte) []byte {
	t.Helper()
	digest := sha256.Sum256(payload)
	sig, err := p.key.Sign(rand.Reader, digest[:], p.hash)
	must(t, err)
	return sig
}

// flat is an ECDSA signature as its two numbers.
func (p *person) flat(t testing.TB, payload []byte) []byte {
	t.Helper()
	var numbers struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(p.sign(t, payloadType, payload), &numbers)
	must(t, err)
	return append(numbers.R.FillBytes(make([]byte, 32)), numbers.S.FillBytes(make([]byte, 32))...)
}

// ecdsa is a person's key as virtual.Options take it.
func (d *draft) ecdsa(name string) *ecdsa.PrivateKey {
	k, ok := d.people[name].key.(*ecdsa.PrivateKey)
	if !ok {
		d.Fatalf("%s has another kind of key", name)
	}
	return k
}
