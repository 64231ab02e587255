package store

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

// asked counts the requests of a registry since the last Set, pings apart.
func asked(f *testkit.Faults) []string {
	return slices.DeleteFunc(f.Seen(), func(s string) bool { return s == "GET /v2/" })
}

// image puts an image of its own tagged tag into a repository.
func image(t testing.TB, w Writable, tag string) v1.Descriptor {
	t.Helper()
	ctx := context.Background()
	config := []byte(fmt.Sprintf(`{"os":"linux","architecture":"amd64","author":%q}`, tag))
	blob := bytesBlob(config, types.OCIConfigJSON)
	if err := w.PutBlob(ctx, blob); err != nil {
		t.Fatal(err)
	}
	raw := must(json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: blob.Descriptor, Layers: []v1.Descriptor{}}))(t)
	d := must(w.PutManifest(ctx, types.OCIManifestSchema1, raw))(t)
	if err := Tag(ctx, w, tag, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// read is what a verdict reads of an image: what it is, and its evidence.
func read(t testing.TB, ref string, opts Options) []Piece {
	t.Helper()
	ctx := context.Background()
	r := open(t, ref, opts)
	d := must(r.Resolve(ctx))(t)
	must(Platforms(ctx, r, d))(t)
	return evidence(t, r, d)
}

// TestRequests is the number of requests that an image costs with one piece of
// evidence that waxseal attached.
func TestRequests(t *testing.T) {
	for _, c := range []struct {
		name             string
		noAPI            bool
		alone, cold      int // of the first image without a cache, and of a batch
		warmTag, warmPin int
	}{
		{name: "referrers API", alone: 5, cold: 3, warmTag: 2, warmPin: 1},
		// One image finds out that there is no such API.
		{name: "fallback tag", noAPI: true, alone: 5, cold: 3, warmTag: 2, warmPin: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			const images = 20
			s, faults := newSigner(t), &testkit.Faults{}
			place := startRegistry(t, testkit.RegistryOptions{Faults: faults, NoReferrers: c.noAPI}) + "/a"
			w := openW(t, place)
			var all []v1.Descriptor
			for i := range images {
				d := image(t, w, fmt.Sprint("v", i))
				must(Attach(context.Background(), w, d, s.bundle(t, d, "https://example.com/p")))(t)
				all = append(all, d)
			}
			count := func(want int, what string, do func()) {
				t.Helper()
				must(0, faults.Set())(t)
				do()
				if seen := asked(faults); len(seen) > want {
					t.Errorf("%s: %d requests, want %d at most:\n%s", what, len(seen), want, strings.Join(seen, "\n"))
				}
			}
			one := func(ref string, opts Options) {
				t.Helper()
				if p := read(t, ref, opts); len(p) != 1 || p[0].Raw == nil {
					t.Fatalf("%s: %s", ref, summary(p))
				}
			}
			// As a verdict does, which needs no signatures that attest nothing.
			want := func(predicateType string) bool {
				return predicateType == "" || strings.HasPrefix(predicateType, "https://example.com/")
			}
			count(c.alone, "alone", func() { one(place+":v0", Options{Want: want}) })
			opts := Options{Cache: new(Cache), Since: time.Now(), Want: want}
			extra := 1 // the list of tags
			if c.noAPI {
				extra++
			}
			count(images*c.cold+extra, "cold", func() {
				for i := range all {
					one(fmt.Sprintf("%s:v%d", place, i), opts)
				}
			})
			count(images*c.warmTag, "warm, by tag", func() {
				for i := range all {
					one(fmt.Sprintf("%s:v%d", place, i), opts)
				}
			})
			count(images*c.warmPin, "warm, by digest", func() {
				for _, d := range all {
					one(place+"@"+d.Digest.String(), opts)
				}
			})
			pings := 0
			for range 3 {
				must(0, faults.Set())(t)
				one(place+":v0", opts)
				pings += len(faults.Seen()) - len(asked(faults))
			}
			if pings != 0 {
				t.Errorf("%d pings of a registry that is known", pings)
			}
		})
	}
}

// What changes between two questions is seen by the second, whatever the cache
// holds.
func TestCacheHidesNoChange(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	for _, noAPI := range []bool{false, true} {
		place := startRegistry(t, testkit.RegistryOptions{NoReferrers: noAPI}) + "/a"
		w := openW(t, place)
		d := image(t, w, "v1")
		cache := new(Cache)
		// now is a question of its own: what it may rely on begins with it.
		now := func() Options { return Options{Cache: cache, Since: time.Now()} }
		expect := func(ref, want string) {
			t.Helper()
			if got := summary(read(t, ref, now())); got != want {
				t.Errorf("without the API %v: %q, want %q", noAPI, got, want)
			}
			if got := summary(read(t, ref, Options{Cache: cache})); got != want {
				t.Errorf("without the API %v, asked by itself: %q, want %q", noAPI, got, want)
			}
		}
		listed := SourceReferrer
		if noAPI {
			listed = SourceTag
		}
		expect(place+":v1", "")
		// Evidence is added, in both ways.
		must(Attach(ctx, w, d, s.bundle(t, d, "https://example.com/p")))(t)
		expect(place+":v1", listed)
		if err := AttachCosign(ctx, w, d, s.bundle(t, d, "https://example.com/q")); err != nil {
			t.Fatal(err)
		}
		expect(place+":v1", listed+", "+SourceAtt)
		expect(place+"@"+d.Digest.String(), listed+", "+SourceAtt)
		// The tag moves, to an image without evidence.
		other := image(t, w, "v2")
		if err := Tag(ctx, w, "v1", other); err != nil {
			t.Fatal(err)
		}
		expect(place+":v1", "")
		// Attestations are taken away again.
		none := must(mutate.MediaType(empty.Image, types.OCIManifestSchema1).RawManifest())(t)
		nd := must(w.PutManifest(ctx, types.OCIManifestSchema1, none))(t)
		if err := w.PutTag(ctx, fallbackTag(attest.Digest(d.Digest.String()))+".att", nd); err != nil {
			t.Fatal(err)
		}
		expect(place+"@"+d.Digest.String(), listed)
	}
}

// Within a batch what refers to an image is asked anew, too, and so is what a
// tag that is known points to.
func TestABatchSeesNewReferrers(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	place := startRegistry(t, testkit.RegistryOptions{}) + "/a"
	w := openW(t, place)
	d := image(t, w, "v1")
	opts := Options{Cache: new(Cache), Since: time.Now()}
	if got := summary(read(t, place+":v1", opts)); got != "" {
		t.Errorf("evidence of nothing: %q", got)
	}
	must(Attach(ctx, w, d, s.bundle(t, d, "https://example.com/p")))(t)
	if got := summary(read(t, place+":v1", opts)); got != SourceReferrer {
		t.Errorf("after it was attached: %q", got)
	}
}

// A registry's lie is an error every time, and never content for others.
func TestCacheKeepsNoLies(t *testing.T) {
	s, faults := newSigner(t), &testkit.Faults{}
	place := startRegistry(t, testkit.RegistryOptions{Faults: faults}) + "/a"
	w := openW(t, place)
	d := image(t, w, "v1")
	b := s.bundle(t, d, "https://example.com/p")
	must(putReferrer(context.Background(), w, attest.Digest(d.Digest.String()), referrerRaw(t, w, d, attest.BundleMediaType, b.Raw(), attest.BundleMediaType)))(t)
	opts := Options{Cache: new(Cache), Since: time.Now()}
	pinned := place + "@" + d.Digest.String()
	must(0, faults.Set(testkit.Fault{Kind: "corrupt", Match: "GET .*/manifests/sha256:"}))(t)
	for range 2 {
		if _, err := open(t, pinned, opts).Resolve(t.Context()); err == nil || !strings.Contains(err.Error(), "does not match requested digest") {
			t.Errorf("another manifest: %v", err)
		}
	}
	must(0, faults.Set(testkit.Fault{Kind: "corrupt", Match: "GET .*/blobs/"}))(t)
	for range 2 {
		if p, err := open(t, place+":v1", opts).Evidence(t.Context(), attest.Digest(d.Digest.String())); err == nil || !strings.Contains(err.Error(), "verifying sha256") {
			t.Errorf("another blob: %+v, %v", p, err)
		}
	}
	must(0, faults.Set())(t)
	if p := read(t, pinned, opts); len(p) != 1 || string(p[0].Raw) != string(b.Raw()) {
		t.Errorf("the truth, after the lies: %+v", p)
	}
	// And what was kept serves where the registry lies from now on, but only
	// in the repository that it was read from.
	must(0, faults.Set(testkit.Fault{Kind: "corrupt", Match: "GET .*/(manifests/sha256:|blobs/)"}))(t)
	if p := read(t, pinned, opts); len(p) != 1 || string(p[0].Raw) != string(b.Raw()) {
		t.Errorf("what is known: %+v", p)
	}
	if _, err := open(t, strings.Replace(pinned, "/a@", "/b@", 1), opts).Resolve(t.Context()); err == nil {
		t.Error("an image was found in a repository that does not have it")
	}
	opts.Insecure = true
	if _, err := open(t, pinned, opts).Resolve(t.Context()); err == nil {
		t.Error("what came over one kind of connection was taken over another")
	}
}

// A manifest that carries something else than its layer is read like one that
// carries nothing.
func TestEmbeddedEvidenceIsChecked(t *testing.T) {
	s := newSigner(t)
	place := startRegistry(t, testkit.RegistryOptions{}) + "/a"
	w := openW(t, place)
	d := image(t, w, "v1")
	b := s.bundle(t, d, "https://example.com/p")
	var m v1.Manifest
	if err := json.Unmarshal(referrerRaw(t, w, d, attest.BundleMediaType, b.Raw(), attest.BundleMediaType), &m); err != nil {
		t.Fatal(err)
	}
	m.Layers[0].Data = make([]byte, m.Layers[0].Size)
	must(putReferrer(context.Background(), w, attest.Digest(d.Digest.String()), must(json.Marshal(m))(t)))(t)
	if p := read(t, place+":v1", Options{}); len(p) != 1 || string(p[0].Raw) != string(b.Raw()) {
		t.Errorf("%+v", p)
	}
}

// A list of tags that cannot be had, or that may be cut, costs requests and
// hides nothing.
func TestTagsThatCannotBeListed(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	many := func(n int) string {
		tags := make([]string, n)
		for i := range tags {
			tags[i] = fmt.Sprint("t", i)
		}
		return string(must(json.Marshal(map[string]any{"name": "a", "tags": tags}))(t))
	}
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"forbidden":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
		"no JSON":    func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "tags") },
		"a cut page": func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, many(tagsPage)) },
		"endless": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", fmt.Sprintf(`<%s?last=x>; rel="next"`, r.URL.Path))
			fmt.Fprint(w, many(3))
		},
		"too large": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"tags":[%q]}`, strings.Repeat("x", attest.MaxManifest))
		},
	} {
		t.Run(name, func(t *testing.T) {
			place := startRegistry(t, testkit.RegistryOptions{Around: func(inner http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasSuffix(r.URL.Path, "/tags/list") {
						answer(w, r)
						return
					}
					inner.ServeHTTP(w, r)
				})
			}}) + "/a"
			w := openW(t, place)
			d := image(t, w, "v1")
			if err := AttachCosign(ctx, w, d, s.bundle(t, d, "https://example.com/q")); err != nil {
				t.Fatal(err)
			}
			if got := summary(read(t, place+":v1", Options{Cache: new(Cache), Since: time.Now()})); got != SourceAtt {
				t.Errorf("%q", got)
			}
		})
	}
}

// The bound on memory holds, and what goes first is what nobody asked for.
func TestCacheIsBounded(t *testing.T) {
	c := &Cache{Max: 64 << 10}
	for i := range 1000 {
		c.put(fmt.Sprint(i), make([]byte, 1000), 1000)
		if c.get("0") == nil {
			t.Fatalf("what is asked for all the time went with %d", i)
		}
		if c.bytes > c.Max {
			t.Fatalf("%d bytes, more than %d", c.bytes, c.Max)
		}
	}
	if n := len(c.kept); n < 20 || n > 64 || c.recent.Len() != n {
		t.Errorf("%d values of 1000 bytes in 64 KiB, %d in order", n, c.recent.Len())
	}
	c.put("large", make([]byte, 1<<20), 1<<20)
	if c.get("large") != nil {
		t.Error("one value filled the cache")
	}
	for range 100 {
		c.put("same", 1, 2000)
	}
	sum := int64(0)
	for e := c.recent.Front(); e != nil; e = e.Next() {
		sum += e.Value.(*keptValue).size
	}
	if sum != c.bytes {
		t.Errorf("%d bytes counted, %d there", c.bytes, sum)
	}
}

// Many that ask at once get the same as one, for one list of tags; one that
// leaves does not take the others along.
func TestCacheTogether(t *testing.T) {
	s, faults := newSigner(t), &testkit.Faults{}
	place := startRegistry(t, testkit.RegistryOptions{Faults: faults}) + "/a"
	w := openW(t, place)
	d := image(t, w, "v1")
	must(Attach(context.Background(), w, d, s.bundle(t, d, "https://example.com/p")))(t)
	if err := AttachCosign(context.Background(), w, d, s.bundle(t, d, "https://example.com/q")); err != nil {
		t.Fatal(err)
	}
	// The first to list hangs until it gives up.
	must(0, faults.Set(testkit.Fault{Kind: "hang", Match: "/tags/list", Times: 1}))(t)
	opts := Options{Cache: new(Cache), Since: time.Now()}
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := must(openRegistry(parse(t, place+":v1"), opts))(t).Evidence(ctx, attest.Digest(d.Digest.String()))
		gone <- err
	}()
	must(0, faults.Await(t.Context(), regexp.MustCompile(`/tags/list$`)))(t)
	var together sync.WaitGroup
	for range 16 {
		together.Go(func() {
			r, err := Open(t.Context(), parse(t, place+":v1"), opts)
			if err != nil {
				t.Error(err)
				return
			}
			p, err := r.Evidence(t.Context(), attest.Digest(d.Digest.String()))
			if err != nil || summary(p) != SourceReferrer+", "+SourceAtt {
				t.Errorf("%q %v", summary(p), err)
			}
		})
	}
	leave()
	together.Wait()
	if err := <-gone; err == nil {
		t.Error("who left got an answer")
	}
	lists := 0
	for _, r := range faults.Seen() {
		if strings.HasSuffix(r, "/tags/list") {
			lists++
		}
	}
	if lists != 2 {
		t.Errorf("%d lists of tags, want the one that hung and one more", lists)
	}
}

// A token is asked for once for each repository, and the registry's way of
// asking for one once for all.
func TestCacheLogsInOnce(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", filepath.Join(t.TempDir(), "none"))
	var mu sync.Mutex
	var pings, tokens int
	place := startRegistry(t, testkit.RegistryOptions{Around: func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			switch {
			case r.URL.Path == "/token":
				tokens++
				fmt.Fprint(w, `{"token":"t"}`)
				return
			case r.Header.Get("Authorization") != "Bearer t":
				if r.URL.Path == "/v2/" {
					pings++
				}
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="r"`, r.Host))
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			inner.ServeHTTP(w, r)
		})
	}})
	image(t, openW(t, place+"/a"), "v1")
	image(t, openW(t, place+"/b"), "v1")
	mu.Lock()
	pings, tokens = 0, 0
	mu.Unlock()
	opts := Options{Cache: new(Cache)}
	for range 5 {
		read(t, place+"/a:v1", opts)
		read(t, place+"/b:v1", opts)
	}
	if pings != 1 || tokens != 2 {
		t.Errorf("%d pings and %d tokens for ten questions about two repositories", pings, tokens)
	}
}
