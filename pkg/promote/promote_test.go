package promote_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/promote"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

var background = context.Background

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newSigner(t testing.TB) sign.Signer {
	t.Helper()
	// A plain key: opening an encrypted one is slow on purpose.
	der := must(x509.MarshalPKCS8PrivateKey(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)))(t)
	path := filepath.Join(t.TempDir(), "k.key")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := must(sign.Open(background(), path, sign.OpenOptions{}))(t)
	t.Cleanup(func() { s.Close() })
	return s
}

// sealed is an index of two platforms in a layout, with signed provenance for
// each digest.
type sealed struct {
	ref      store.Reference
	top      v1.Descriptor
	subjects []v1.Descriptor
	builder  sign.Signer
}

func seal(t testing.TB) sealed {
	t.Helper()
	var adds []mutate.IndexAddendum
	for _, arch := range []string{"amd64", "arm64"} {
		img := must(random.Image(1000, 1))(t)
		adds = append(adds, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	dir := t.TempDir()
	path := must(layout.Write(dir, empty.Index))(t)
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.OCIImageIndex), adds...)
	if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})); err != nil {
		t.Fatal(err)
	}
	s := sealed{ref: must(store.Parse("oci:" + dir + ":v1"))(t), builder: newSigner(t)}
	w := must(store.OpenWritable(background(), s.ref, store.Options{}))(t)
	s.top = must(w.Resolve(background()))(t)
	s.subjects = []v1.Descriptor{s.top}
	for _, p := range must(store.Platforms(background(), w, s.top))(t) {
		s.subjects = append(s.subjects, p.Descriptor)
	}
	for _, d := range s.subjects {
		st := must(attest.NewStatement(attestations.ProvenanceV1, []attest.Subject{{Digest: map[string]string{"sha256": d.Digest.Hex}}}, map[string]any{
			"buildDefinition": map[string]any{"buildType": "https://example.com/build/v1", "externalParameters": map[string]any{}},
			"runDetails":      map[string]any{"builder": map[string]any{"id": attestations.UnhostedBuilderID}},
		}))(t)
		if _, err := store.Attach(background(), w, d, must(s.builder.Sign(background(), st))(t)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s sealed) request(t testing.TB, destination string, signer sign.Signer) promote.Request {
	t.Helper()
	key := must(verify.ParseKey("k.pub", s.builder.PublicKey()))(t)
	return promote.Request{
		Source: s.ref, Destination: must(store.Parse(destination))(t),
		Judge: gate.Request{Keys: []verify.Key{key}}, Signer: signer,
	}
}

func summaries(t testing.TB, place string, d v1.Descriptor, signer sign.Signer) []attestations.VSA {
	t.Helper()
	ref := must(store.Parse(place))(t)
	r := must(store.Open(background(), ref.At(attest.Digest(d.Digest.String())), store.Options{}))(t)
	var out []attestations.VSA
	for _, p := range must(r.Evidence(background(), attest.Digest(d.Digest.String())))(t) {
		b := must(attest.ParseBundle(p.Raw))(t)
		if b.Statement().PredicateType != attestations.VSAV1 {
			continue
		}
		if !sign.Made(signer.PublicKey(), b) || !b.Statement().Binds(attest.Digest(d.Digest.String())) {
			t.Errorf("a VSA of another key, or about another digest: %s", b.Statement().Raw())
		}
		var v attestations.VSA
		if err := attest.UnmarshalStrict(b.Statement().Predicate, &v); err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

func TestRun(t *testing.T) {
	s, signer := seal(t), newSigner(t)
	for name, opts := range map[string]testkit.RegistryOptions{"registry": {}, "registry without API": {NoReferrers: true}, "layout": {}} {
		t.Run(name, func(t *testing.T) {
			place := "oci:" + filepath.Join(t.TempDir(), "image")
			if name != "layout" {
				r := must(testkit.NewRegistry(opts))(t)
				t.Cleanup(r.Close)
				place = r.Addr + "/prod/app"
			}
			req := s.request(t, place+":v1", signer)

			req.DryRun, req.Signer = true, nil
			res := must(promote.Run(background(), req))(t)
			if res.Promoted || !res.DryRun || len(res.Steps) == 0 {
				t.Errorf("dry run: %+v", res)
			}
			if got := plan(res); got != "copy index, copy evidence, copy manifest, copy evidence, copy manifest, copy evidence, sign vsa, sign vsa, sign vsa, tag "+place+":v1" {
				t.Errorf("plan %q", got)
			}
			if now := must(store.Current(background(), req.Destination, store.Options{}))(t); now != nil {
				t.Errorf("a dry run left %v", now)
			}
			req.DryRun, req.Signer = false, signer
			for range 2 { // repeating adds nothing
				res := must(promote.Run(background(), req))(t)
				if !res.Promoted || res.Digest != attest.Digest(s.top.Digest.String()) {
					t.Errorf("result %+v", res)
				}
				for i, d := range s.subjects {
					vsas := summaries(t, place, d, signer)
					if len(vsas) != 1 {
						t.Fatalf("subject %d has %d VSAs", i, len(vsas))
					}
					v := vsas[0]
					if v.VerificationResult != attestations.VSAPassed || v.ResourceURI != req.Destination.URI() ||
						!slices.Equal(v.VerifiedLevels, []string{"SLSA_BUILD_LEVEL_1"}) || v.Verifier.ID != attestations.UnhostedVerifierID || len(v.InputAttestations) == 0 {
						t.Errorf("subject %d: %+v", i, v)
					}
				}
			}
			// It passes there too, and can go on from there.
			next := s.request(t, place+"-next:v2", signer)
			next.Source = req.Destination
			if res := must(promote.Run(background(), next))(t); !res.Promoted {
				t.Errorf("from the destination on: %+v", res.Verdict.Reasons)
			}
			if now := must(store.Current(background(), next.Destination, store.Options{}))(t); now == nil || now.Digest != s.top.Digest {
				t.Errorf("the tag is at %v", now)
			}
		})
	}
}

func plan(res *promote.Result) string {
	var out []string
	for _, s := range res.Steps {
		out = append(out, s.Action+" "+s.What)
	}
	return strings.Join(out, ", ")
}

func TestRefused(t *testing.T) {
	s, signer := seal(t), newSigner(t)
	faults := &testkit.Faults{}
	r := must(testkit.NewRegistry(testkit.RegistryOptions{Faults: faults}))(t)
	t.Cleanup(r.Close)
	req := s.request(t, r.Addr+"/prod/app:v1", signer)
	req.Judge.Keys = []verify.Key{must(verify.ParseKey("other", signer.PublicKey()))(t)}
	if err := faults.Set(); err != nil {
		t.Fatal(err)
	}
	res := must(promote.Run(background(), req))(t)
	if res.Promoted || res.Verdict.Decision != gate.Deny || len(res.Steps) != 0 {
		t.Errorf("denied: %+v", res)
	}
	req.Source.Tag = "none"
	if res := must(promote.Run(background(), req))(t); res.Promoted || res.Verdict.Decision != gate.Undecided {
		t.Errorf("undecided: %+v", res)
	}
	if seen := faults.Seen(); len(seen) != 0 {
		t.Errorf("the destination was asked: %v", seen)
	}
	for name, change := range map[string]func(*promote.Request){
		"digest":  func(r *promote.Request) { r.Destination.Digest = attest.DigestOf(nil) },
		"daemon":  func(r *promote.Request) { r.Destination = store.Reference{Kind: store.Docker, Place: "x"} },
		"no key":  func(r *promote.Request) { r.Signer = nil },
		"no keys": func(r *promote.Request) { r.Judge = gate.Request{} },
	} {
		bad := s.request(t, r.Addr+"/prod/app:v1", signer)
		change(&bad)
		var usage *promote.UsageError
		if _, err := promote.Run(background(), bad); !errors.As(err, &usage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// killer is a registry that a promotion dies in front of: at request n the
// client is gone, and nothing arrives from then on.
type killer struct {
	inner http.Handler
	at    atomic.Int64 // 0: never
	count atomic.Int64
	kill  atomic.Pointer[context.CancelFunc]
}

func (k *killer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := k.count.Add(1)
	if at := k.at.Load(); at > 0 && n >= at {
		(*k.kill.Load())()
		panic(http.ErrAbortHandler)
	}
	k.inner.ServeHTTP(w, r)
}

// A promotion killed at any request has moved no tag, and repeating it ends
// well.
func TestKilledAnywhere(t *testing.T) {
	old, s, signer := seal(t), seal(t), newSigner(t)
	for _, referrers := range []bool{true, false} {
		k := &killer{inner: registry.New(registry.WithReferrersSupport(referrers), registry.Logger(log.New(io.Discard, "", 0)))}
		server := httptest.NewUnstartedServer(k)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.Start()
		defer server.Close()
		host := strings.TrimPrefix(server.URL, "http://")
		complete := false
		step := int64(1)
		if !referrers {
			step = 4 // most requests are the same as before
		}
		for n := int64(1); !complete; n += step {
			if n > 500 {
				t.Fatal("the promotion does not end")
			}
			// A repository of its own, with another image under the tag.
			place := fmt.Sprintf("%s/app%d", host, n)
			k.at.Store(0)
			before := must(store.OpenWritable(background(), must(store.Parse(place))(t), store.Options{}))(t)
			src := must(store.Open(background(), old.ref, store.Options{}))(t)
			if err := store.Copy(background(), src, before, old.top, store.CopyOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := store.Tag(background(), before, "v1", old.top); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(background())
			k.kill.Store(&cancel)
			k.count.Store(0)
			k.at.Store(n)
			req := s.request(t, place+":v1", signer)
			res, err := promote.Run(ctx, req)
			cancel()
			k.at.Store(0)
			complete = err == nil && res.Promoted
			now := must(store.Current(background(), req.Destination, store.Options{}))(t)
			switch {
			case complete || now != nil && now.Digest == old.top.Digest:
			case now == nil || now.Digest != s.top.Digest:
				t.Fatalf("killed at request %d: the tag is at %v", n, now)
			default:
				// Killed between the tag and its being read again: all else was
				// done before.
				for _, d := range s.subjects {
					if got := summaries(t, place, d, signer); len(got) != 1 {
						t.Fatalf("killed at request %d: the tag has moved, and %s has %d VSAs", n, d.Digest, len(got))
					}
				}
			}
			if err == nil && !res.Promoted && res.Verdict.Decision == gate.Pass {
				t.Fatalf("killed at request %d: neither an error nor a promotion", n)
			}
			if n%8 != 1 && !complete {
				continue
			}
			if res := must(promote.Run(background(), req))(t); !res.Promoted {
				t.Fatalf("repeated after request %d: %+v", n, res)
			}
			if now := must(store.Current(background(), req.Destination, store.Options{}))(t); now.Digest != s.top.Digest {
				t.Fatalf("repeated after request %d: the tag is at %v", n, now)
			}
			for _, d := range s.subjects {
				if got := summaries(t, place, d, signer); len(got) != 1 {
					t.Fatalf("repeated after request %d: %d VSAs for %s", n, len(got), d.Digest)
				}
			}
		}
	}
}
