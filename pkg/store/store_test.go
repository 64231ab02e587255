package store

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
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ggcrlayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

func mediaType(s string) types.MediaType { return types.MediaType(s) }

// noWait makes every wait for a registry end at once, and counts them.
type noWait struct {
	mu    sync.Mutex
	waits []time.Duration
}

func (n *noWait) options() Options {
	return Options{net: network{wait: func(ctx context.Context, d time.Duration) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.waits = append(n.waits, d)
		return ctx.Err()
	}}}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func startRegistry(t *testing.T, opts testkit.RegistryOptions) string {
	t.Helper()
	r := must(testkit.NewRegistry(opts))(t)
	t.Cleanup(r.Close)
	return r.Addr
}

func parse(t testing.TB, s string) Reference {
	t.Helper()
	return must(Parse(s))(t)
}

func open(t testing.TB, s string, opts Options) Repo {
	t.Helper()
	return must(Open(context.Background(), parse(t, s), opts))(t)
}

func openW(t testing.TB, s string) Writable {
	t.Helper()
	return must(OpenWritable(context.Background(), parse(t, s), new(noWait).options()))(t)
}

// testIndex is an index over two platforms, as an OCI layout in a new folder.
func testIndex(t testing.TB) (ref string, top v1.Descriptor) {
	t.Helper()
	var adds []mutate.IndexAddendum
	for _, arch := range []string{"amd64", "arm64"} {
		img := must(random.Image(2000, 2))(t)
		img = mutate.MediaType(mutate.ConfigMediaType(img, types.OCIConfigJSON), types.OCIManifestSchema1)
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)
	dir := t.TempDir()
	path := must(ggcrlayout.Write(dir, empty.Index))(t)
	if err := path.AppendIndex(index, ggcrlayout.WithAnnotations(map[string]string{refName: "v1"})); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir + ":v1", describe(must(index.RawManifest())(t), types.OCIImageIndex)
}

type signer struct{ sign.Signer }

func newSigner(t testing.TB) signer {
	t.Helper()
	// A plain key: opening an encrypted one is slow on purpose.
	der := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
	path := filepath.Join(t.TempDir(), "k.key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := must(sign.Open(context.Background(), path, sign.OpenOptions{}))(t)
	t.Cleanup(func() { s.Close() })
	return signer{s}
}

func (s signer) bundle(t testing.TB, d v1.Descriptor, predicateType string) *attest.Bundle {
	t.Helper()
	st := must(attest.NewStatement(predicateType, []attest.Subject{{Name: "x", Digest: map[string]string{"sha256": d.Digest.Hex}}}, map[string]int{"n": 1}))(t)
	return must(s.Sign(context.Background(), st))(t)
}

func evidence(t testing.TB, r EvidenceLister, d v1.Descriptor) []Piece {
	t.Helper()
	return must(r.Evidence(context.Background(), attest.Digest(d.Digest.String())))(t)
}

func summary(ps []Piece) string {
	var out []string
	for _, p := range ps {
		s := p.Source
		if p.Skipped != "" {
			s += " skipped"
		}
		if p.Unwanted {
			s += " unwanted"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

// places are the kinds of place that a thing must work in.
func places(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{
		"registry":             startRegistry(t, testkit.RegistryOptions{}) + "/a/b",
		"registry without API": startRegistry(t, testkit.RegistryOptions{NoReferrers: true}) + "/a/b",
		"layout":               "oci:" + filepath.Join(t.TempDir(), "new", "layout"),
	}
	if !testing.Short() {
		dist := must(testkit.StartDistribution(testkit.Peer(t, "registry"), t.TempDir()))(t)
		t.Cleanup(dist.Close)
		all["distribution"] = dist.Addr + "/a/b"
	}
	return all
}

func TestCopyAndAttach(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	from, top := testIndex(t)
	src := openW(t, from)
	platforms := must(Platforms(ctx, src, top))(t)
	if len(platforms) != 2 || platforms[1].Name != "linux/arm64" {
		t.Fatalf("platforms %+v", platforms)
	}
	about := platforms[0].Descriptor
	if _, err := Attach(ctx, src, about, s.bundle(t, about, "https://example.com/in-source")); err != nil {
		t.Fatal(err)
	}
	for name, place := range places(t) {
		t.Run(name, func(t *testing.T) {
			dst := openW(t, place)
			var moved, kept int
			var mu sync.Mutex
			count := func(c Copied) {
				mu.Lock()
				defer mu.Unlock()
				if c.What == "blob" && c.Moved {
					moved++
				} else if c.What == "blob" {
					kept++
				}
			}
			for range 2 {
				if err := Copy(ctx, src, dst, top, CopyOptions{Evidence: true, Progress: count}); err != nil {
					t.Fatal(err)
				}
			}
			if moved != kept {
				t.Errorf("%d blobs travelled, %d were there the second time", moved, kept)
			}
			if now, err := Current(ctx, parse(t, place+":v1"), Options{}); now != nil || err != nil {
				t.Errorf("Copy left a tag: %v, %v", now, err)
			}
			// The referrer came along, and is listed once.
			want := SourceReferrer
			if name == "registry without API" || name == "distribution" {
				want = SourceTag
			}
			if got := summary(evidence(t, openW(t, place), about)); got != want {
				t.Errorf("evidence %q, want %q", got, want)
			}
			// Attached twice, there once; bundle and .att side by side.
			b := s.bundle(t, about, "https://example.com/p")
			for range 2 {
				if _, err := Attach(ctx, dst, about, b); err != nil {
					t.Fatal(err)
				}
				if err := AttachCosign(ctx, dst, about, b); err != nil {
					t.Fatal(err)
				}
			}
			if err := AttachCosign(ctx, dst, about, s.bundle(t, about, "https://example.com/q")); err != nil {
				t.Fatal(err)
			}
			pieces := evidence(t, openW(t, place), about)
			if got, want := summary(pieces), want+", "+want+", cosign .att, cosign .att"; got != want {
				t.Errorf("evidence %q, want %q", got, want)
			}
			for _, p := range pieces {
				if got := must(attest.ParseBundle(p.Raw))(t); p.PredicateType != got.Statement().PredicateType || p.Digest != attest.DigestOf(p.Raw) {
					t.Errorf("piece %+v does not describe its content", p)
				}
			}
			if err := Tag(ctx, dst, "v1", top); err != nil {
				t.Fatal(err)
			}
			if err := Tag(ctx, dst, "v1", top); err != nil {
				t.Fatal(err)
			}
			tagged := place + ":v1"
			if got := must(open(t, tagged, Options{}).Resolve(ctx))(t); got.Digest != top.Digest || got.Size != top.Size || got.MediaType != top.MediaType {
				t.Errorf("resolved %+v, want %+v", got, top)
			}
			// And on to another repository, with all of it.
			next := openW(t, strings.Replace(place, "/a/b", "/c", 1)+"next")
			if err := Copy(ctx, dst, next, top, CopyOptions{Evidence: true}); err != nil {
				t.Fatal(err)
			}
			if got, want := summary(evidence(t, next, about)), summary(pieces); got != want {
				t.Errorf("evidence after another copy %q, want %q", got, want)
			}
			// What one place has under .att is kept when more arrives.
			if err := AttachCosign(ctx, dst, about, s.bundle(t, about, "https://example.com/r")); err != nil {
				t.Fatal(err)
			}
			if err := AttachCosign(ctx, next, about, s.bundle(t, about, "https://example.com/s")); err != nil {
				t.Fatal(err)
			}
			if err := Copy(ctx, dst, next, top, CopyOptions{Evidence: true}); err != nil {
				t.Fatal(err)
			}
			if got := strings.Count(summary(evidence(t, next, about)), SourceAtt); got != 4 {
				t.Errorf("%d pieces under .att, want 4", got)
			}
		})
	}
}

// Within a registry no blob travels: neither down nor up.
func TestCopyMounts(t *testing.T) {
	ctx := context.Background()
	dist := must(testkit.StartDistribution(testkit.Peer(t, "registry"), t.TempDir()))(t)
	t.Cleanup(dist.Close)
	from, top := testIndex(t)
	first := openW(t, dist.Addr+"/staging/app")
	if err := Copy(ctx, open(t, from, Options{}), first, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Tag(ctx, first, "v1", top); err != nil {
		t.Fatal(err)
	}
	blobs := 0
	err := Copy(ctx, open(t, dist.Addr+"/staging/app:v1", Options{}), openW(t, dist.Addr+"/prod/app"), top, CopyOptions{Progress: func(c Copied) {
		if c.What == "blob" {
			blobs++
			if c.Moved {
				t.Errorf("blob %s travelled", c.Digest)
			}
		}
	}})
	if err != nil || blobs != 6 {
		t.Errorf("%d blobs, %v", blobs, err)
	}
}

func TestEvidenceIsJudgedPieceByPiece(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	faults := &testkit.Faults{}
	place := startRegistry(t, testkit.RegistryOptions{Faults: faults}) + "/a"
	from, top := testIndex(t)
	dst := openW(t, place)
	if err := Copy(ctx, open(t, from, Options{}), dst, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Tag(ctx, dst, "v1", top); err != nil {
		t.Fatal(err)
	}
	platforms := must(Platforms(ctx, dst, top))(t)
	good := must(Attach(ctx, dst, top, s.bundle(t, top, "https://example.com/good")))(t)

	// A referrer of the image whose statement is about a sibling is listed
	// like any other: what it proves is not for the store to say.
	sibling := s.bundle(t, platforms[0].Descriptor, "https://example.com/sibling")
	must(putReferrer(ctx, dst, attest.Digest(top.Digest.String()), referrerRaw(t, dst, top, attest.BundleMediaType, sibling.Raw(), attest.BundleMediaType)))(t)
	// An artifact of a kind that is no evidence, one with rubbish in it, one
	// that claims to be huge.
	must(putReferrer(ctx, dst, attest.Digest(top.Digest.String()), referrerRaw(t, dst, top, "application/x-picture", []byte("x"), "image/png")))(t)
	must(putReferrer(ctx, dst, attest.Digest(top.Digest.String()), referrerRaw(t, dst, top, attest.BundleMediaType, []byte("rubbish"), "text/plain")))(t)
	huge := bytes.Replace(referrerRaw(t, dst, top, attest.BundleMediaType, []byte("{}"), attest.BundleMediaType),
		[]byte(`"layers":[{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","size":2,`), []byte(`"layers":[{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","size":104857600,`), 1)
	must(putReferrer(ctx, dst, attest.Digest(top.Digest.String()), huge))(t)

	pieces := evidence(t, open(t, place+":v1", Options{}), top)
	var text []string
	read := 0
	for _, p := range pieces {
		text = append(text, p.Skipped)
		if p.Raw != nil {
			read++
		}
	}
	joined := strings.Join(text, "\n")
	if read != 2 || len(pieces) != 5 {
		t.Errorf("%d pieces, %d read: %s", len(pieces), read, summary(pieces))
	}
	for _, want := range []string{`artifact type "application/x-picture" is no evidence`, `a layer of type "text/plain"`, "104857600 bytes, larger than"} {
		if !strings.Contains(joined, want) {
			t.Errorf("nothing says %q in\n%s", want, joined)
		}
	}
	// Only what is wanted is fetched.
	want := open(t, place+":v1", Options{Want: func(p string) bool { return p == "https://example.com/good" || p == "" }})
	if err := faults.Set(); err != nil {
		t.Fatal(err)
	}
	for _, p := range evidence(t, want, top) {
		if p.Where == good.Digest.String() && p.Raw == nil {
			t.Error("what is wanted was not read")
		}
	}
	// A place that fails is an error, whatever was asked for.
	for _, fault := range []testkit.Fault{{Kind: "500", Match: "referrers"}, {Kind: "401", Match: "referrers"}, {Kind: "500", Match: "manifests/sha256-"}, {Kind: "429", Match: "blobs"}, {Kind: "500", Match: "GET .*/blobs/"}} {
		if err := faults.Set(fault); err != nil {
			t.Fatal(err)
		}
		r := open(t, place+":v1", new(noWait).options())
		if _, err := r.Evidence(ctx, attest.Digest(top.Digest.String())); !errors.Is(err, ErrUnavailable) {
			t.Errorf("fault %+v: %v, want ErrUnavailable", fault, err)
		}
	}
	// A missing blob is one piece's trouble, and none where the manifest carries it.
	if err := faults.Set(testkit.Fault{Kind: "404", Match: "GET .*/blobs/"}); err != nil {
		t.Fatal(err)
	}
	for _, p := range evidence(t, open(t, place+":v1", Options{}), top) {
		if (p.Raw == nil) != (p.Skipped != "") || (p.Raw != nil) != (p.Where == good.Digest.String()) {
			t.Errorf("piece %+v without its blob", p)
		}
	}
}

// referrerRaw stores a layer and returns a manifest about subject with it.
func referrerRaw(t testing.TB, w Writable, subject v1.Descriptor, artifactType string, layer []byte, layerType string) []byte {
	t.Helper()
	for _, b := range []Blob{bytesBlob([]byte("{}"), emptyMediaType), bytesBlob(layer, types.MediaType(layerType))} {
		if err := w.PutBlob(context.Background(), b); err != nil {
			t.Fatal(err)
		}
	}
	subject.Platform, subject.Annotations = nil, nil
	return must(json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Config:  bytesBlob([]byte("{}"), emptyMediaType).Descriptor,
		Layers:  []v1.Descriptor{bytesBlob(layer, types.MediaType(layerType)).Descriptor},
		Subject: &subject,
	}))(t)
}

// What a stranger attaches again as something else hides nothing: it is listed
// as what both say that it is, and a copy brings both.
func TestTheSameContentTwice(t *testing.T) {
	ctx := t.Context()
	s := newSigner(t)
	for name, place := range map[string]struct{ artifactType, layerType, annotations, listed string }{
		"as an OCSP response":    {attest.OCSPMediaType, attest.OCSPMediaType, "", "referrer, referrer stapled"},
		"as something else":      {bundleMediaPrefix + ".v0.3+json", bundleMediaPrefix + ".v0.3+json", `"` + bundlePredicateType + `":"https://x.example/y",`, "referrer"},
		"as a layer that is one": {bundleMediaPrefix + ".v0.3+json", attest.OCSPMediaType, "", "referrer, referrer stapled"},
	} {
		t.Run(name, func(t *testing.T) {
			from, top := testIndex(t)
			src := openW(t, from)
			b := s.bundle(t, top, "https://example.com/good")
			good := must(Attach(ctx, src, top, b))(t)
			// The stranger tries until their manifest comes first.
			for n := 0; ; n++ {
				raw := fmt.Appendf(nil, `{"schemaVersion":2,"mediaType":%q,"artifactType":%q,"config":{"mediaType":%q,"size":2,"digest":%q},"layers":[{"mediaType":%q,"size":%d,"digest":%q}],"subject":{"mediaType":%q,"size":%d,"digest":%q},"annotations":{%s"nonce":"%d"}}`,
					types.OCIManifestSchema1, place.artifactType, emptyMediaType, attest.DigestOf([]byte("{}")),
					place.layerType, len(b.Raw()), attest.DigestOf(b.Raw()), top.MediaType, top.Size, top.Digest, place.annotations, n)
				if string(attest.DigestOf(raw)) < good.Digest.String() {
					must(putReferrer(ctx, src, attest.Digest(top.Digest.String()), raw))(t)
					break
				}
			}
			var got []string
			for _, p := range evidence(t, open(t, from, Options{}), top) {
				s := p.Source
				if p.Stapled {
					s += " stapled"
				}
				got = append(got, s)
			}
			slices.Sort(got)
			if list := strings.Join(got, ", "); list != place.listed {
				t.Errorf("listed: %s", list)
			}
			dst := openW(t, "oci:"+filepath.Join(t.TempDir(), "copy"))
			if err := Copy(ctx, src, dst, top, CopyOptions{Evidence: true}); err != nil {
				t.Fatal(err)
			}
			list := must(dst.referrers(ctx, attest.Digest(top.Digest.String())))(t)
			if len(list) != 2 || !slices.ContainsFunc(list, func(d v1.Descriptor) bool { return d.Digest == good.Digest }) {
				t.Errorf("copied: %v", list)
			}
		})
	}
}

func TestReferrersArePaged(t *testing.T) {
	ctx := context.Background()
	faults := &testkit.Faults{}
	place := startRegistry(t, testkit.RegistryOptions{Faults: faults}) + "/a"
	r := must(openRegistry(parse(t, place), Options{}))(t)
	if err := faults.Set(testkit.Fault{Kind: "referrers=1234", Match: "GET .*/referrers/"}); err != nil {
		t.Fatal(err)
	}
	if list := must(r.referrers(ctx, someDigest))(t); len(list) != 1234 {
		t.Errorf("%d referrers", len(list))
	}
	if err := faults.Set(testkit.Fault{Kind: "referrers=10000", Match: "GET .*/referrers/"}); err != nil {
		t.Fatal(err)
	}
	_, err := r.referrers(ctx, someDigest)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "more than the 2048 referrers") || e.Hint() == "" {
		t.Errorf("ten thousand referrers: %v", err)
	}
	if n := len(faults.Seen()); n > 30 {
		t.Errorf("%d requests for what is refused", n)
	}
	// Fewer, but more than are read.
	if err := faults.Set(testkit.Fault{Kind: "referrers=1500", Match: "GET .*/referrers/"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Evidence(ctx, someDigest); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("more than the %d pieces", attest.MaxEvidence)) {
		t.Errorf("fifteen hundred bundles: %v", err)
	}
}

func TestRegistryErrors(t *testing.T) {
	ctx := context.Background()
	faults := &testkit.Faults{}
	addr := startRegistry(t, testkit.RegistryOptions{Faults: faults})
	from, top := testIndex(t)
	dst := openW(t, addr+"/a")
	if err := Copy(ctx, open(t, from, Options{}), dst, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := Tag(ctx, dst, "v1", top); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		fault testkit.Fault
		ref   string
		class error
		want  string // in the error
		way   string // in the hint
		tries int    // requests for the manifest; 0 for any
	}{
		"401":            {fault: testkit.Fault{Kind: "401"}, class: ErrUnavailable, want: "401 Unauthorized", way: "docker login " + addr},
		"403":            {fault: testkit.Fault{Kind: "403", Match: "manifests"}, class: ErrUnavailable, want: "403 Forbidden: injected by the test", way: "credentials", tries: 1},
		"404":            {fault: testkit.Fault{Kind: "404", Match: "manifests"}, class: ErrNotFound, want: "not found", way: "check", tries: 1},
		"429 for ever":   {fault: testkit.Fault{Kind: "429", Match: "manifests"}, class: ErrUnavailable, want: "429 Too Many Requests", way: "wait", tries: 3},
		"429 once":       {fault: testkit.Fault{Kind: "429", Match: "manifests", Times: 1}},
		"500 for ever":   {fault: testkit.Fault{Kind: "500", Match: "manifests"}, class: ErrUnavailable, want: "tried 3 times: 500", way: "later", tries: 3},
		"503 twice":      {fault: testkit.Fault{Kind: "503", Match: "manifests", Times: 2}},
		"ping 500":       {fault: testkit.Fault{Kind: "500", Match: "/v2/$"}, class: ErrUnavailable, want: "500", way: "later"},
		"cut":            {fault: testkit.Fault{Kind: "cut", Match: "manifests"}, class: ErrUnavailable, want: "broke off", way: "try again"},
		"long":           {fault: testkit.Fault{Kind: "long", Match: "manifests"}, class: ErrUnavailable, want: "larger than the limit"},
		"corrupt":        {fault: testkit.Fault{Kind: "corrupt", Match: "manifests"}, want: "manifest cannot be read"},
		"corrupt digest": {fault: testkit.Fault{Kind: "corrupt", Match: "manifests"}, ref: addr + "/a@" + top.Digest.String(), class: ErrUnavailable, want: "digest"},
		"no tag":         {ref: addr + "/a:v2", class: ErrNotFound, want: "/a:v2\": not found"},
		"no repository":  {ref: addr + "/b:v2", class: ErrNotFound, want: "not found"},
		"nobody there":   {ref: "127.0.0.1:1/a:v1", class: ErrUnavailable, want: "connection refused: nothing listens at 127.0.0.1:1", way: "runs"},
		"no such host":   {ref: "registry.invalid/a:v1", class: ErrUnavailable, want: "registry.invalid", way: "network"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := faults.Set(c.fault); c.fault.Kind != "" && err != nil {
				t.Fatal(err)
			}
			if c.fault.Kind == "" {
				if err := faults.Set(); err != nil {
					t.Fatal(err)
				}
			}
			if c.ref == "" {
				c.ref = addr + "/a:v1"
			}
			_, err := open(t, c.ref, new(noWait).options()).Resolve(ctx)
			if c.want == "" {
				if err != nil {
					t.Errorf("not tried again: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %v, want %q on one line", err, c.want)
			}
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(e.Hint(), c.way) {
				t.Errorf("hint %q, want %q", e.Hint(), c.way)
			}
			host, _, _ := strings.Cut(c.ref, "/")
			if !strings.Contains(err.Error(), host+"/") {
				t.Errorf("error %q does not name the repository", err)
			}
			for _, class := range []error{ErrNotFound, ErrUnavailable} {
				if got := errors.Is(err, class); got != errors.Is(c.class, class) {
					t.Errorf("errors.Is(%v) = %v: %v", class, got, err)
				}
			}
			seen := slices.DeleteFunc(faults.Seen(), func(s string) bool { return !strings.Contains(s, "manifests") })
			if c.tries > 0 && len(seen) != c.tries {
				t.Errorf("%d requests, want %d", len(seen), c.tries)
			}
		})
	}
}

// A registry says how long to wait, and is believed within bounds.
func TestRetryAfter(t *testing.T) {
	for header, want := range map[string]string{
		"7":    "[7s 7s]",
		"0":    "[0s 0s]",
		"3600": "[]",
		"":     "[1s 4s]",
		"soon": "[1s 4s]",
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/v2/" {
				return
			}
			w.Header()["Retry-After"] = []string{header}
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		n := new(noWait)
		_, err := open(t, strings.TrimPrefix(server.URL, "http://")+"/a", n.options()).Resolve(context.Background())
		server.Close()
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("Retry-After %q: %v", header, err)
		}
		if got := fmt.Sprint(n.waits); got != want {
			t.Errorf("Retry-After %q: waited %v, want %s", header, n.waits, want)
		}
		if header == "3600" && !strings.Contains(err.Error(), "asks to wait 1h0m0s") {
			t.Errorf("a long wait is not named: %v", err)
		}
	}
}

func TestTLS(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
	})
	secure := newTLS(handler)
	defer secure.Close()
	ref := strings.TrimPrefix(secure.URL, "https://") + "/a"
	// A loopback registry may speak TLS; its certificate counts then unless
	// plain HTTP works.
	_, err := open(t, ref, new(noWait).options()).Resolve(context.Background())
	if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown authority: %v", err)
	}
	if _, err := open(t, ref, Options{Insecure: true}).Resolve(context.Background()); err != nil {
		t.Errorf("with Insecure: %v", err)
	}
	// Beyond loopback a certificate problem is named, and plain HTTP refused:
	// requests are led to the test's own servers.
	through := func(target string) network {
		return network{transport: redirect(strings.TrimPrefix(strings.TrimPrefix(target, "https://"), "http://"))}
	}
	_, err = open(t, "reg.example/a", Options{net: through(secure.URL)}).Resolve(context.Background())
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Cause, "certificate") || !strings.Contains(e.Way, "--insecure") {
		t.Errorf("a wrong certificate: %v", err)
	}
	plain := httptest.NewServer(handler)
	defer plain.Close()
	for _, host := range []string{"reg.example", "10.1.2.3:5000"} {
		_, err = open(t, host+"/a", Options{net: through(plain.URL)}).Resolve(context.Background())
		if !errors.As(err, &e) || !strings.Contains(e.Cause, "plain HTTP") || !strings.Contains(e.Way, "--insecure") {
			t.Errorf("plain HTTP at %s: %v", host, err)
		}
		if _, err := open(t, host+"/a", Options{Insecure: true, net: through(plain.URL)}).Resolve(context.Background()); err != nil {
			t.Errorf("plain HTTP at %s with Insecure: %v", host, err)
		}
	}
}

// newTLS is httptest's server without its log.
func newTLS(handler http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(handler)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	return s
}

// redirect sends every connection to one address, whatever the host.
func redirect(addr string) http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, network, addr) }
	return t
}

func TestCutBlob(t *testing.T) {
	ctx := context.Background()
	faults := &testkit.Faults{}
	addr := startRegistry(t, testkit.RegistryOptions{Faults: faults})
	from, top := testIndex(t)
	dst := openW(t, addr+"/a")
	if err := Copy(ctx, open(t, from, Options{}), dst, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"cut", "corrupt"} {
		if err := faults.Set(testkit.Fault{Kind: kind, Match: "GET .*/blobs/"}); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		into := openW(t, "oci:"+dir)
		err := Copy(ctx, open(t, addr+"/a@"+top.Digest.String(), Options{}), into, top, CopyOptions{})
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), addr+"/a") {
			t.Errorf("%s: %v", kind, err)
		}
		// Nothing half-written stays.
		for _, f := range must(os.ReadDir(filepath.Join(dir, "blobs", "sha256")))(t) {
			raw := must(os.ReadFile(filepath.Join(dir, "blobs", "sha256", f.Name())))(t)
			if attest.DigestOf(raw).Hex() != f.Name() {
				t.Errorf("%s: %q is left behind", kind, f.Name())
			}
		}
	}
	// An upload that breaks off is started over.
	if err := faults.Set(testkit.Fault{Kind: "500", Match: "PATCH", Times: 1}); err != nil {
		t.Fatal(err)
	}
	if err := Copy(ctx, open(t, from, Options{}), openW(t, addr+"/b"), top, CopyOptions{}); err != nil {
		t.Errorf("an upload was not repeated: %v", err)
	}
}

func TestCancel(t *testing.T) {
	faults := &testkit.Faults{}
	addr := startRegistry(t, testkit.RegistryOptions{Faults: faults})
	if err := faults.Set(testkit.Fault{Kind: "hang", Match: "manifests"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		_, err := must(Open(ctx, parse(t, addr+"/a:v1"), Options{}))(t).Resolve(ctx)
		done <- err
	}()
	if err := faults.Await(context.Background(), regexp.MustCompile("manifests")); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnavailable) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestPlatforms(t *testing.T) {
	ctx := context.Background()
	w := openW(t, "oci:"+t.TempDir())
	img := must(mutate.ConfigFile(must(random.Image(100, 1))(t), &v1.ConfigFile{OS: "linux", Architecture: "amd64"}))(t)
	raw := must(img.RawManifest())(t)
	config := must(img.RawConfigFile())(t)
	if err := w.PutBlob(ctx, bytesBlob(config, types.DockerConfigJSON)); err != nil {
		t.Fatal(err)
	}
	child := must(w.PutManifest(ctx, types.DockerManifestSchema2, raw))(t)
	entry := func(platform, rest string) string {
		return fmt.Sprintf(`{"mediaType":%q,"size":%d,"digest":%q%s%s}`, child.MediaType, child.Size, child.Digest, platform, rest)
	}
	const amd64, none = `,"platform":{"os":"linux","architecture":"amd64","variant":"v2"}`, `,"platform":{"os":"unknown","architecture":"unknown"}`
	attestation := `,"annotations":{"vnd.docker.reference.type":"attestation-manifest","vnd.docker.reference.digest":"` + child.Digest.String() + `"}`
	for name, c := range map[string]struct{ entries, want string }{
		"one":                               {entry(amd64, ""), "linux/amd64/v2"},
		"the same twice":                    {entry(amd64, "") + "," + entry(amd64, ""), "linux/amd64/v2"},
		"an attestation is none":            {entry(none, attestation), ""},
		"a platform posing as attestation":  {entry(amd64, attestation), "linux/amd64/v2"},
		"no platform posing as attestation": {entry("", attestation), "linux/amd64"},
		"from the configuration":            {entry("", ""), "linux/amd64"},
		"an index within":                   {strings.Replace(entry(amd64, ""), string(child.MediaType), string(types.OCIImageIndex), 1), "error: is an index again"},
		"no image":                          {strings.Replace(entry(amd64, ""), string(child.MediaType), "text/html", 1), "error: is no image"},
		"none at all":                       {"", ""},
	} {
		top := must(w.PutManifest(ctx, types.OCIImageIndex, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[`+c.entries+`]}`)))(t)
		ps, err := Platforms(ctx, w, top)
		var names []string
		for _, p := range ps {
			names = append(names, p.Name)
		}
		if msg, ok := strings.CutPrefix(c.want, "error: "); ok {
			if err == nil || !strings.Contains(err.Error(), msg) {
				t.Errorf("%s: %v, want %q", name, err, msg)
			}
		} else if err != nil || strings.Join(names, " ") != c.want {
			t.Errorf("%s: %v, %v, want %q", name, names, err, c.want)
		}
	}
	if ps, err := Platforms(ctx, w, child); err != nil || ps != nil {
		t.Errorf("a manifest has no platforms below it: %v, %v", ps, err)
	}
	many := ""
	for i := range attest.MaxPlatforms + 1 {
		many += strings.Replace(entry(amd64, ""), child.Digest.Hex, fmt.Sprintf("%064x", i), 1) + ","
	}
	top := must(w.PutManifest(ctx, types.OCIImageIndex, []byte(`{"schemaVersion":2,"manifests":[`+strings.TrimSuffix(many, ",")+`]}`)))(t)
	if _, err := Platforms(ctx, w, top); err == nil || !strings.Contains(err.Error(), "more than the 64 platforms") {
		t.Errorf("too many platforms: %v", err)
	}
}

// BuildKit's attestation manifests are listed for the platform they name.
func TestIndexAttestations(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	w := openW(t, from)
	platforms := must(Platforms(ctx, w, top))(t)
	statement := must(attest.NewStatement("https://slsa.dev/provenance/v1", []attest.Subject{{Digest: map[string]string{"sha256": platforms[0].Descriptor.Digest.Hex}}}, struct{}{}))(t)
	layer := bytesBlob(statement.Raw(), "application/vnd.in-toto+json")
	layer.Descriptor.Annotations = map[string]string{buildkitPredicateType: statement.PredicateType}
	config := bytesBlob([]byte("{}"), types.OCIConfigJSON)
	for _, b := range []Blob{layer, config} {
		if err := w.PutBlob(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	att := must(w.PutManifest(ctx, types.OCIManifestSchema1, must(json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config.Descriptor, Layers: []v1.Descriptor{layer.Descriptor},
	}))(t)))(t)
	att.Platform = &v1.Platform{OS: "unknown", Architecture: "unknown"}
	att.Annotations = map[string]string{dockerReferenceType: dockerAttestation, dockerReferenceDigest: platforms[0].Descriptor.Digest.String()}
	index := must(v1.ParseIndexManifest(bytes.NewReader(first(w.Manifest(ctx, attest.Digest(top.Digest.String()))))))(t)
	index.Manifests = append(index.Manifests, att)
	whole := must(w.PutManifest(ctx, types.OCIImageIndex, must(json.Marshal(index))(t)))(t)
	if err := Tag(ctx, w, "with", whole); err != nil {
		t.Fatal(err)
	}
	r := open(t, strings.TrimSuffix(from, ":v1")+":with", Options{})
	ps := evidence(t, r, platforms[0].Descriptor)
	if summary(ps) != SourceIndex || !bytes.Equal(ps[0].Raw, statement.Raw()) || ps[0].PredicateType != statement.PredicateType {
		t.Errorf("evidence %+v", ps)
	}
	for _, d := range []v1.Descriptor{whole, platforms[1].Descriptor} {
		if got := evidence(t, r, d); len(got) != 0 {
			t.Errorf("evidence for %s: %+v", d.Digest, got)
		}
	}
	if ps := must(Platforms(ctx, r, whole))(t); len(ps) != 2 {
		t.Errorf("%d platforms", len(ps))
	}
}

func first[T any](v T, _ v1.Descriptor, _ error) T { return v }

func TestEvidenceFiles(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	from, top := testIndex(t)
	platforms := must(Platforms(ctx, open(t, from, Options{}), top))(t)
	one, two := s.bundle(t, top, "https://example.com/one"), s.bundle(t, platforms[0].Descriptor, "https://example.com/two")
	stranger := s.bundle(t, v1.Descriptor{Digest: hash(someDigest)}, "https://example.com/stranger")
	dir := t.TempDir()
	write := func(name string, parts ...[]byte) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.Join(parts, []byte("\n")), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, one.Raw(), "", "  "); err != nil {
		t.Fatal(err)
	}
	write("out/bundles/a.sigstore.json", one.Raw())
	write("out/bundles/b.sigstore.json", two.Raw())
	write("out/metadata.json", []byte("{}"))
	big := write("big.json")
	if err := os.Truncate(big, 100<<20); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path, top, platform string // what is found, or "error: …"
	}{
		"folder":           {filepath.Join(dir, "out"), "file", "file"},
		"file":             {write("one.json", one.Raw()), "file", ""},
		"indented":         {write("indented.json", indented.Bytes()), "file", ""},
		"lines":            {write("all.jsonl", one.Raw(), two.Raw()), "file", "file"},
		"lines by name":    {write("all.json", one.Raw(), two.Raw(), nil), "file", "file"},
		"envelope":         {write("dsse.json", must(one.DSSE())(t)), "file", ""},
		"bare statement":   {write("st.json", one.Statement().Raw()), "file", ""},
		"about a stranger": {write("stranger.json", stranger.Raw()), "file", "file"},
		"rubbish":          {write("rubbish.txt", []byte("hello")), "file skipped", "file skipped"},
		"too large":        {big, "file skipped", "file skipped"},
		"missing":          {filepath.Join(dir, "none"), "error: no such file", "error: no such file"},
		"empty folder":     {t.TempDir(), "error: no .json", "error: no .json"},
	} {
		r := open(t, from, Options{Evidence: []string{c.path}})
		for want, about := range map[string]v1.Descriptor{c.top: top, c.platform: platforms[0].Descriptor} {
			if c.top == c.platform {
				about = top
			}
			ps, err := r.Evidence(ctx, attest.Digest(about.Digest.String()))
			if msg, ok := strings.CutPrefix(want, "error: "); ok {
				if err == nil || !strings.Contains(err.Error(), msg) {
					t.Errorf("%s: %v, want %q", name, err, msg)
				}
			} else if got := summary(ps); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", name, got, err, want)
			}
		}
	}
	// Copied along, files become attachments of what they speak of.
	dst := openW(t, startRegistry(t, testkit.RegistryOptions{})+"/a")
	src := open(t, from, Options{Evidence: []string{filepath.Join(dir, "out"), filepath.Join(dir, "stranger.json"), filepath.Join(dir, "rubbish.txt")}})
	if err := Copy(ctx, src, dst, top, CopyOptions{Evidence: true}); err != nil {
		t.Fatal(err)
	}
	for _, d := range []v1.Descriptor{top, platforms[0].Descriptor} {
		if got := summary(evidence(t, dst, d)); got != SourceReferrer {
			t.Errorf("attached to %s: %q", d.Digest, got)
		}
	}
}

func TestAttachRefusesWhatIsAboutSomethingElse(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	w := openW(t, from)
	b := newSigner(t).bundle(t, v1.Descriptor{Digest: hash(someDigest)}, "https://example.com/p")
	if _, err := Attach(ctx, w, top, b); err == nil {
		t.Error("attached")
	}
	if err := AttachCosign(ctx, w, top, b); err == nil {
		t.Error("attached as .att")
	}
}

// Two that attach at the same time both stay: neither the fallback tag nor
// .att has a lock.
func TestAttachRaces(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	for name, place := range map[string]string{
		"layout":   "oci:" + t.TempDir(),
		"registry": startRegistry(t, testkit.RegistryOptions{}) + "/a",
	} {
		from, top := testIndex(t)
		if err := Copy(ctx, open(t, from, Options{}), openW(t, place), top, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 6 {
			b := s.bundle(t, top, fmt.Sprintf("https://example.com/%d", i))
			wg.Go(func() {
				if _, err := Attach(ctx, openW(t, place), top, b); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if got := evidence(t, openW(t, place), top); len(got) != 6 {
			t.Errorf("%s: %d pieces, want 6", name, len(got))
		}
	}
}

// Several go together: with fewer requests than one by one, each to what it is
// about, and none where one is about something else.
func TestAttachAll(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	from, top := testIndex(t)
	for name, noReferrers := range map[string]bool{"API": false, "fallback tag": true} {
		taken := map[bool]int64{}
		for _, together := range []bool{true, false} {
			var requests atomic.Int64
			place := startRegistry(t, testkit.RegistryOptions{NoReferrers: noReferrers, Around: func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					requests.Add(1)
					h.ServeHTTP(w, r)
				})
			}}) + "/a"
			if err := Copy(ctx, open(t, from, Options{}), openW(t, place), top, CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			platform := must(Platforms(ctx, openW(t, place), top))(t)[0].Descriptor
			all := []Attachment{{platform, s.bundle(t, platform, "https://example.com/p")}}
			for i := range 4 {
				all = append(all, Attachment{top, s.bundle(t, top, fmt.Sprintf("https://example.com/%d", i))})
			}
			w := openW(t, place)
			requests.Store(0)
			var descs []v1.Descriptor
			if together {
				descs = must(AttachAll(ctx, w, all))(t)
			} else {
				for _, a := range all {
					descs = append(descs, must(Attach(ctx, w, a.Subject, a.Bundle))(t))
				}
			}
			taken[together] = requests.Load()
			for i, d := range descs {
				if again := must(Attach(ctx, openW(t, place), all[i].Subject, all[i].Bundle))(t); again.Digest != d.Digest {
					t.Errorf("%s: the %dth is %s, and then %s", name, i, d.Digest, again.Digest)
				}
			}
			mixed := []Attachment{{top, s.bundle(t, top, "https://example.com/new")}, {platform, all[1].Bundle}}
			if _, err := AttachAll(ctx, w, mixed); err == nil || !strings.Contains(err.Error(), "about something else") {
				t.Errorf("%s: about something else: %v", name, err)
			}
			if index, one := evidence(t, openW(t, place), top), evidence(t, openW(t, place), platform); len(index) != 4 || len(one) != 1 {
				t.Errorf("%s: %d pieces of the index, want 4, and %d of the platform, want 1", name, len(index), len(one))
			}
		}
		if taken[true] == 0 || taken[true] >= taken[false] {
			t.Errorf("%s: %d requests together, %d one by one", name, taken[true], taken[false])
		}
		t.Logf("%s: %d requests together, %d one by one", name, taken[true], taken[false])
	}
}

// What does not rest on each other goes side by side: the registry answers no
// question for a subject before something is uploaded, and takes no manifest before
// there are those of two subjects.
func TestAttachSideBySide(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	from, top := testIndex(t)
	uploading, second := make(chan struct{}), make(chan struct{})
	var attaching atomic.Bool
	var puts atomic.Int32
	var once sync.Once
	wait := func(c chan struct{}) {
		select {
		case <-c:
		case <-ctx.Done():
		}
	}
	place := startRegistry(t, testkit.RegistryOptions{NoReferrers: true, Around: func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			manifest := strings.Contains(r.URL.Path, "/manifests/sha256:")
			switch {
			case !attaching.Load():
			case r.Method == http.MethodPost:
				once.Do(func() { close(uploading) })
			case manifest && r.Method == http.MethodGet:
				wait(uploading)
			case manifest && r.Method == http.MethodPut:
				if puts.Add(1) == 2 {
					close(second)
				}
				wait(second)
			}
			h.ServeHTTP(w, r)
		})
	}}) + "/a"
	if err := Copy(ctx, open(t, from, Options{}), openW(t, place), top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	s := newSigner(t)
	platform := must(Platforms(ctx, openW(t, place), top))(t)[0].Descriptor
	var all []Attachment
	for i, d := range []v1.Descriptor{top, top, platform, platform} {
		all = append(all, Attachment{ByDigest(attest.Digest(d.Digest.String())), s.bundle(t, d, fmt.Sprintf("https://example.com/%d", i))})
	}
	w := openW(t, place)
	attaching.Store(true)
	descs, err := AttachAll(ctx, w, all)
	attaching.Store(false)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range []v1.Descriptor{top, top, platform, platform} {
		if again := must(Attach(ctx, openW(t, place), d, all[i].Bundle))(t); again.Digest != descs[i].Digest {
			t.Errorf("the %dth is %s, and of a whole subject %s", i, descs[i].Digest, again.Digest)
		}
		if got := evidence(t, openW(t, place), d); len(got) != 2 {
			t.Errorf("%d pieces of %s, want 2", len(got), d.Digest)
		}
	}
}

// A subject that is not there is said to be missing, whatever else fails.
func TestAttachToNothing(t *testing.T) {
	for _, place := range []string{startRegistry(t, testkit.RegistryOptions{}) + "/a", "oci:" + t.TempDir()} {
		d := v1.Descriptor{Digest: hash(someDigest)}
		_, err := Attach(context.Background(), openW(t, place), d, newSigner(t).bundle(t, d, "https://example.com/p"))
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", place, err)
		}
	}
}

func TestLayoutResolve(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	dir := strings.TrimSuffix(strings.TrimPrefix(from, "oci:"), ":v1")
	w := openW(t, from)
	if _, err := Attach(ctx, w, top, newSigner(t).bundle(t, top, "https://example.com/p")); err != nil {
		t.Fatal(err)
	}
	if got := must(open(t, "oci:"+dir, Options{}).Resolve(ctx))(t); got.Digest != top.Digest {
		t.Errorf("the only image is %s, got %s", top.Digest, got.Digest)
	}
	platforms := must(Platforms(ctx, w, top))(t)
	if err := Tag(ctx, w, "amd64", platforms[0].Descriptor); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"oci:" + dir:                    "holds 2 images",
		"oci:" + dir + ":none":          `no tag "none"`,
		"oci:" + dir + "@" + someDigest: "does not have it",
	} {
		_, err := open(t, ref, Options{}).Resolve(ctx)
		if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", ref, err, want)
		}
	}
	for path, want := range map[string]string{filepath.Join(dir, "none"): "no such folder", t.TempDir(): "no OCI layout"} {
		if _, err := Open(ctx, parse(t, "oci:"+path), Options{}); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	file := filepath.Join(dir, "index.json")
	var way *Error
	if _, err := Open(ctx, parse(t, "oci:"+file), Options{}); !errors.As(err, &way) || !strings.Contains(err.Error(), "this is a file") || !strings.Contains(way.Hint(), "archive:"+file) {
		t.Errorf("a file: %v", err)
	}
	// One byte changed is noticed.
	path := filepath.Join(dir, "blobs", "sha256", top.Digest.Hex)
	raw := must(os.ReadFile(path))(t)
	if err := os.WriteFile(path, bytes.Replace(raw, []byte("arm64"), []byte("arm65"), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, from, Options{}).Resolve(ctx); err == nil || !strings.Contains(err.Error(), "not what the digest") {
		t.Errorf("a changed manifest: %v", err)
	}
}

func TestLayoutBlobIsChecked(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := openW(t, "oci:"+dir)
	b := bytesBlob([]byte("content"), "text/plain")
	for name, data := range map[string]string{"short": "conten", "long": "content!", "other": "Content"} {
		b.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(data)), nil }
		if err := w.PutBlob(ctx, b); err == nil {
			t.Errorf("%s: stored", name)
		}
	}
	if left := must(os.ReadDir(filepath.Join(dir, "blobs", "sha256")))(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := w.PutBlob(ctx, bytesBlob([]byte("content"), "text/plain")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blobs", "sha256", b.Descriptor.Digest.Hex), []byte("Content"), 0o644); err != nil {
		t.Fatal(err)
	}
	rc := must(w.Blob(ctx, attest.Digest(b.Descriptor.Digest.String())))(t)
	defer rc.Close()
	if _, err := io.ReadAll(rc); err == nil {
		t.Error("a changed blob was read")
	}
	if _, err := w.Blob(ctx, someDigest); !errors.Is(err, ErrNotFound) {
		t.Errorf("a missing blob: %v", err)
	}
}

// Whoever waits for a layout that another process writes to stops when told to.
func TestALockedLayoutIsWaitedForOnlySoLong(t *testing.T) {
	dir := t.TempDir()
	w := openW(t, "oci:"+dir)
	other := flock.New(filepath.Join(dir, "index.json.lock"))
	if err := other.Lock(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Unlock() }()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	subject := `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"` + string(someDigest) + `","size":2},"layers":[],"subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"` + string(someDigest) + `","size":2}}`
	if _, err := w.PutManifest(ctx, types.OCIManifestSchema1, []byte(subject)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("written into a locked layout: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	err := pathError("writing blob", "/x", &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC})
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "no space left on device") || !strings.Contains(e.Way, "make room") {
		t.Errorf("full disk: %v", err)
	}
}

func TestDocker(t *testing.T) {
	ctx := context.Background()
	from, top := testIndex(t)
	dir := strings.TrimSuffix(strings.TrimPrefix(from, "oci:"), ":v1")
	w := openW(t, from)
	platform := must(Platforms(ctx, w, top))(t)[0].Descriptor
	doc, _, err := readDocument(ctx, w, attest.Digest(platform.Digest.String()))
	if err != nil {
		t.Fatal(err)
	}
	addr := startRegistry(t, testkit.RegistryOptions{})
	reg := openW(t, addr+"/web")
	if err := Copy(ctx, w, reg, top, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	images := map[string]any{
		"web:v1":   map[string]any{"Id": doc.Config.Digest.String(), "RepoDigests": []string{}},
		"stored":   map[string]any{"Id": top.Digest.String(), "RepoDigests": []string{}},
		"pulled":   map[string]any{"Id": someDigest, "RepoDigests": []string{addr + "/web@" + top.Digest.String()}},
		"twice":    map[string]any{"Id": someDigest, "RepoDigests": []string{addr + "/web@" + top.Digest.String(), addr + "/b@" + top.Digest.String()}},
		"unpushed": map[string]any{"Id": someDigest, "RepoDigests": nil},
	}
	// The store of containerd has a digest for every name.
	descriptor := map[string]any{"digest": top.Digest.String()}
	images[addr+"/web:v1"] = map[string]any{"Id": someDigest, "RepoDigests": []string{"web@" + top.Digest.String(), addr + "/web@" + top.Digest.String()}, "Descriptor": descriptor}
	images[addr+"/web:here"] = map[string]any{"Id": someDigest, "RepoDigests": []string{addr + "/web@" + someDigest}, "Descriptor": descriptor}
	images[addr+"/web"] = images["twice"]
	daemon := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.50")
		_, rest, _ := strings.Cut(r.URL.Path, "/images/")
		image, ok := images[strings.TrimSuffix(rest, "/json")]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"message":"No such image"}`)
			return
		}
		json.NewEncoder(w).Encode(image)
	}))
	defer daemon.Close()
	t.Setenv("DOCKER_HOST", "tcp://"+strings.TrimPrefix(daemon.URL, "http://"))
	for ref, c := range map[string]struct {
		want  v1.Hash
		error string
		class error
	}{
		"docker:web:v1":                {want: platform.Digest},
		"docker:stored":                {want: top.Digest},
		"docker:pulled":                {want: top.Digest},
		"docker:" + addr + "/web":      {want: top.Digest},
		"docker:twice":                 {error: "from 2 places"},
		"docker:unpushed":              {error: "was never pulled or pushed", class: ErrNotFound},
		"docker:" + addr + "/web:v1":   {want: top.Digest},
		"docker:" + addr + "/web:here": {error: "waxseal did not build it here, and if it is in " + addr + "/web, nobody can tell: ", class: ErrNotFound},
		"docker:none":                  {error: "not found: the daemon has no such image", class: ErrNotFound},
	} {
		r, err := Open(ctx, parse(t, ref), Options{Evidence: []string{dir}})
		if c.error != "" {
			if err == nil || !strings.Contains(err.Error(), c.error) || c.class != nil && !errors.Is(err, c.class) {
				t.Errorf("%s: %v, want %q", ref, err, c.error)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", ref, err)
			continue
		}
		if got := must(r.Resolve(ctx))(t); got.Digest != c.want {
			t.Errorf("%s is %s, want %s", ref, got.Digest, c.want)
		}
	}
	// Built here, it needs no word about where: its ID leads to it, past what is
	// no image and what cannot be read.
	kept := t.TempDir()
	for name, index := range map[string]string{"broken": "{", ".tmp-1": "{"} {
		if err := os.Mkdir(filepath.Join(kept, name), 0o755); err != nil {
			t.Fatal(err)
		}
		for file, content := range map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": index} {
			if err := os.WriteFile(filepath.Join(kept, name, file), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Symlink(dir, filepath.Join(kept, "web")); err != nil {
		t.Fatal(err)
	}
	r := must(Open(ctx, parse(t, "docker:web:v1"), Options{Images: kept}))(t)
	if got := must(r.Resolve(ctx))(t); got.Digest != platform.Digest {
		t.Errorf("built here: %s, want %s", got.Digest, platform.Digest)
	}
	for _, images := range []string{kept, filepath.Join(kept, "none")} {
		if _, err := Open(ctx, parse(t, "docker:unpushed"), Options{Images: images}); !errors.Is(err, ErrNotFound) {
			t.Errorf("built elsewhere: %v", err)
		}
	}
	t.Setenv("DOCKER_HOST", "unix://"+filepath.Join(t.TempDir(), "none.sock"))
	if _, err := Open(ctx, parse(t, "docker:web"), Options{}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("no daemon: %v", err)
	}
	if _, err := OpenWritable(ctx, parse(t, "docker:web"), Options{}); err == nil {
		t.Error("opened the daemon for writing")
	}
}

// A disk that is full says so, and leaves nothing half-written.
func TestFullDiskForReal(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		testkit.Unavailable(t, "mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	w := openW(t, "oci:"+filepath.Join(dir, "image"))
	err := w.PutBlob(context.Background(), bytesBlob(make([]byte, 1<<20), "text/plain"))
	var e *Error
	if !errors.As(err, &e) || !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) || e.Hint() == "" {
		t.Errorf("full disk: %v", err)
	}
	if left := must(os.ReadDir(filepath.Join(dir, "image", "blobs", "sha256")))(t); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDockerContext(t *testing.T) {
	dir := t.TempDir()
	write := func(content string, name ...string) {
		path := filepath.Join(append([]string{dir}, name...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	meta := func(name, content string) {
		write(content, "contexts", "meta", strings.TrimPrefix(string(attest.DigestOf([]byte(name))), "sha256:"), "meta.json")
	}
	meta("far", `{"Name":"far","Endpoints":{"docker":{"Host":"tcp://192.0.2.1:2376"}}}`)
	meta("shell", `{"Endpoints":{"docker":{"Host":"ssh://me@192.0.2.1"}}}`)
	meta("broken", `{`)
	t.Setenv("DOCKER_CONFIG", dir)
	for _, c := range []struct{ config, variable, want, error string }{
		{},
		{config: `{}`},
		{config: `{"currentContext":"default"}`},
		{config: `{"currentContext":"far"}`, want: "tcp://192.0.2.1:2376"},
		{config: `{"currentContext":"far"}`, variable: "default"},
		{variable: "far", want: "tcp://192.0.2.1:2376"},
		{variable: "shell", error: "over ssh://"},
		{variable: "broken", error: `docker context "broken"`},
		{variable: "none", error: `docker context "none"`},
		{config: `{"currentContext":`, error: "config.json"},
	} {
		t.Setenv("DOCKER_CONTEXT", c.variable)
		if c.config == "" {
			os.Remove(filepath.Join(dir, "config.json"))
		} else {
			write(c.config, "config.json")
		}
		got, err := contextHost()
		if got != c.want || (c.error == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.error) {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
