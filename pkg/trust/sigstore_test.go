package trust_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/trust"
)

// repository is a TUF repository that is served, with what was asked of it.
type repository struct {
	*testkit.TUF
	t     *testing.T
	url   string
	cache string

	mu     sync.Mutex
	asked  []string
	before func(http.ResponseWriter, *http.Request) bool // true: it has answered
}

func serve(t *testing.T) *repository {
	t.Helper()
	dir := t.TempDir()
	repo, err := testkit.NewTUF(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := &repository{TUF: repo, t: t, cache: t.TempDir()}
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		r.asked = append(r.asked, req.URL.Path)
		before := r.before
		r.mu.Unlock()
		if before == nil || !before(w, req) {
			files.ServeHTTP(w, req)
		}
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *repository) publish(o testkit.TUFOptions) {
	r.t.Helper()
	if err := r.Publish(o); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repository) fetch(o trust.FetchOptions) (*trust.Fetched, error) {
	r.t.Helper()
	s, err := trust.At(r.url, r.Root)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.asked = nil
	r.mu.Unlock()
	if o.Cache == "" {
		o.Cache = r.cache
	}
	return s.Fetch(r.t.Context(), o)
}

func (r *repository) good(o trust.FetchOptions, content string) *trust.Fetched {
	r.t.Helper()
	f, err := r.fetch(o)
	if err != nil {
		r.t.Fatal(err)
	}
	if string(f.Raw) != content {
		r.t.Fatalf("fetched %q, want %q", f.Raw, content)
	}
	return f
}

func (r *repository) bad(o trust.FetchOptions, message string) {
	r.t.Helper()
	f, err := r.fetch(o)
	if err == nil {
		r.t.Fatalf("fetched %q, want an error", f.Raw)
	}
	var unavailable *trust.UnavailableError
	if !errors.As(err, &unavailable) || unavailable.Hint() == "" || !strings.Contains(err.Error(), message) {
		r.t.Fatalf("error is %T %q, want an UnavailableError with a hint and %q", err, err, message)
	}
}

var always = trust.FetchOptions{MaxAge: -1}

func TestARootIsFetchedOnceAndThenKept(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("one")})
	first := r.good(trust.FetchOptions{}, "one")
	if first.Name != r.url || time.Since(first.FetchedAt) > time.Minute || time.Until(first.ValidUntil) > 8*24*time.Hour {
		t.Errorf("fetched %+v", first)
	}
	r.publish(testkit.TUFOptions{Content: []byte("two")})
	second := r.good(trust.FetchOptions{}, "one")
	if len(r.asked) != 0 {
		t.Errorf("a young copy asked for %q", r.asked)
	}
	if !second.FetchedAt.Equal(first.FetchedAt) {
		t.Errorf("the copy says it is of %s, fetched %s", second.FetchedAt, first.FetchedAt)
	}
	r.good(always, "two")
	r.good(trust.FetchOptions{Offline: true, Now: func() time.Time { return time.Now().Add(6 * 24 * time.Hour) }}, "two")
	if len(r.asked) != 0 {
		t.Errorf("offline asked for %q", r.asked)
	}
	r.publish(testkit.TUFOptions{Content: []byte("three")})
	r.good(trust.FetchOptions{Now: func() time.Time { return time.Now().Add(25 * time.Hour) }}, "three")
}

func TestTheCacheIsForItsOwnerAlone(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	r.good(trust.FetchOptions{}, "{}")
	folders, err := filepath.Glob(filepath.Join(r.cache, "sigstore", "*"))
	if err != nil || len(folders) != 1 {
		t.Fatalf("folders %q, %v", folders, err)
	}
	for _, path := range append(folders, filepath.Join(r.cache, "sigstore")) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v", path, info.Mode(), err)
		}
	}
	files, err := os.ReadDir(folders[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v, %v", f.Name(), info.Mode(), err)
		}
	}
}

// What somebody puts into the cache is verified like anything else.
func TestACopyThatWasChangedIsNotBelieved(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("one"), Rotate: true})
	r.good(trust.FetchOptions{}, "one")
	for _, name := range []string{"trusted_root.json", "timestamp.json", "snapshot.json", "targets.json", "2.root.json"} {
		path := filepath.Join(r.cache, "sigstore", "*", name)
		found, err := filepath.Glob(path)
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: %q, %v", name, found, err)
		}
		if err := os.WriteFile(found[0], []byte(`{"evil": true}`), 0o600); err != nil {
			t.Fatal(err)
		}
		r.bad(trust.FetchOptions{Offline: true}, "")
		r.good(trust.FetchOptions{}, "one") // and mended
		r.good(trust.FetchOptions{Offline: true}, "one")
	}
}

func TestOfflineNeedsACopyThatHasNotExpired(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	r.bad(trust.FetchOptions{Offline: true}, "never fetched")
	if len(r.asked) != 0 {
		t.Errorf("offline asked for %q", r.asked)
	}
	r.good(trust.FetchOptions{}, "{}")
	late := func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	r.bad(trust.FetchOptions{Offline: true, Now: late}, "has expired")
	// A young copy that has expired does not count either, and the repository
	// has nothing newer.
	r.bad(trust.FetchOptions{Now: late}, "has expired")
}

func TestExpiredMetadataIsRefused(t *testing.T) {
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		t.Run(role, func(t *testing.T) {
			r := serve(t)
			r.publish(testkit.TUFOptions{Content: []byte("one")})
			r.good(always, "one")
			r.publish(testkit.TUFOptions{Content: []byte("two"), Expires: map[string]time.Time{role: time.Now().Add(-time.Minute)}})
			r.bad(always, "has expired")
		})
	}
}

func TestRotatedKeysAreFollowed(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("one")})
	r.good(always, "one")
	for _, content := range []string{"two", "three"} {
		r.publish(testkit.TUFOptions{Content: []byte(content), Rotate: true})
		r.good(always, content)
		r.good(trust.FetchOptions{Offline: true}, content)
	}
	r.good(trust.FetchOptions{Cache: t.TempDir()}, "three")
}

func TestARepositoryCannotGoBack(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("one"), Version: 5})
	r.good(always, "one")
	r.publish(testkit.TUFOptions{Content: []byte("old"), Version: 4})
	r.bad(always, "went backwards")
	r.good(trust.FetchOptions{Offline: true}, "one")
}

// A mirror that hides the newest root cannot bring back a key that was retired.
func TestARootCannotBeHidden(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("old")})
	old := map[string][]byte{}
	s, err := trust.At(r.url, r.Root)
	if err != nil {
		t.Fatal(err)
	}
	// What the mirror kept of the time before.
	transport := roundTrip(func(req *http.Request) (*http.Response, error) {
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil && resp.StatusCode == http.StatusOK {
			raw, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			old[req.URL.Path] = raw
			resp.Body = io.NopCloser(bytes.NewReader(raw))
			return resp, err
		}
		return resp, err
	})
	if _, err := s.Fetch(t.Context(), trust.FetchOptions{Cache: t.TempDir(), Transport: transport}); err != nil {
		t.Fatal(err)
	}
	r.publish(testkit.TUFOptions{Content: []byte("new"), Rotate: true})
	r.good(always, "new")
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		raw, ok := old[req.URL.Path]
		if !ok {
			http.NotFound(w, req)
			return true
		}
		_, err := w.Write(raw)
		return err == nil
	}
	r.bad(always, "not signed")
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func TestWrongSignaturesAreRefused(t *testing.T) {
	for _, role := range []string{metadata.TIMESTAMP, metadata.SNAPSHOT, metadata.TARGETS} {
		t.Run(role, func(t *testing.T) {
			r := serve(t)
			r.publish(testkit.TUFOptions{Forge: role})
			r.bad(always, "not signed")
		})
	}
	t.Run("another root", func(t *testing.T) {
		r, other := serve(t), serve(t)
		r.publish(testkit.TUFOptions{})
		r.Root = other.Root
		r.bad(always, "not signed")
	})
}

func TestAnotherTargetIsRefused(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Content: []byte("one"), Swap: []byte("two")})
	r.bad(always, "")
	if _, err := r.fetch(trust.FetchOptions{Offline: true}); err == nil {
		t.Error("what was refused was kept")
	}
}

// TestARoleOfSomebodyElseGivesNoRoot: the repository's own role of targets says
// which root is trusted, and not whomever it delegates to.
func TestARoleOfSomebodyElseGivesNoRoot(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{Lent: true})
	r.bad(always, "has no trusted_root.json")
}

func TestSlowAndEndlessAnswersAreBounded(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	s, err := trust.At(r.url, r.Root)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path != "/timestamp.json" {
			return false
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		select {
		case <-req.Context().Done():
		case <-ended:
		}
		return true
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err = s.Fetch(ctx, trust.FetchOptions{Cache: r.cache})
	if err == nil || !strings.Contains(err.Error(), "did not answer whole in time") {
		t.Errorf("a slow answer: %v", err)
	}
	sent := 0
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		if req.URL.Path != "/timestamp.json" {
			return false
		}
		for block := make([]byte, 64<<10); ; {
			n, err := w.Write(block)
			if sent += n; err != nil {
				return true
			}
		}
	}
	r.bad(always, "larger than")
	if _, err := s.Fetch(t.Context(), trust.FetchOptions{Cache: r.cache, Offline: true}); err == nil {
		t.Error("what was refused was kept")
	}
}

func TestARepositoryThatDoesNotAnswer(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	r.good(trust.FetchOptions{}, "{}")
	r.before = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	r.bad(always, "answers 503")
	_, err := r.fetch(always)
	var unavailable *trust.UnavailableError
	if !errors.As(err, &unavailable) || !strings.Contains(unavailable.Hint(), "--offline uses the copy of") {
		t.Errorf("hint of %v", err)
	}
	r.before = func(w http.ResponseWriter, req *http.Request) bool {
		http.Redirect(w, req, "http://elsewhere.example/", http.StatusFound)
		return true
	}
	r.bad(always, "sends elsewhere")
}

// https://www.cve.org/CVERecord?id=CVE-2026-48501: a token was sent to the mirror.
func TestNoCredentialsAreSent(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	t.Setenv("GITHUB_TOKEN", "secret")
	t.Setenv("GH_TOKEN", "secret")
	r.before = func(_ http.ResponseWriter, req *http.Request) bool {
		for name, values := range req.Header {
			if name != "User-Agent" && name != "Accept-Encoding" {
				t.Errorf("header %s: %q", name, values)
			}
		}
		return false
	}
	r.good(always, "{}")
}

func TestAddressesThatAreRefused(t *testing.T) {
	r := serve(t)
	for _, address := range []string{
		"", "tuf.example", "http://tuf.example/", "ftp://tuf.example", "https://user:pass@tuf.example", "https://tuf.example/?a", "https://tuf.example/#a", "file:///etc", "https:///../../x",
	} {
		if _, err := trust.At(address, r.Root); err == nil {
			t.Errorf("%q was taken", address)
		}
	}
	for name, root := range map[string]string{"nothing": "", "no root": `{"signed": {"_type": "timestamp"}}`, "long": strings.Repeat(" ", 3<<20)} {
		if _, err := trust.At(r.url, []byte(root)); err == nil {
			t.Errorf("a root of %s was taken", name)
		}
	}
	if s := trust.Public(); s.Name() == "" {
		t.Error("the public instance has no name")
	}
}

// https://www.cve.org/CVERecord?id=CVE-2026-24137: a repository's name was a
// path of the cache.
func TestNoNameLeavesTheCache(t *testing.T) {
	r := serve(t)
	r.publish(testkit.TUFOptions{})
	base := r.url
	for _, path := range []string{"/../../outside", "/%2e%2e/%2e%2e/outside", "/..\\..\\outside"} {
		r.url = base + path
		_, _ = r.fetch(trust.FetchOptions{}) // whether it is there does not matter
	}
	r.url = base
	r.good(trust.FetchOptions{}, "{}")
	entries, err := os.ReadDir(r.cache)
	if err != nil || len(entries) != 1 || entries[0].Name() != "sigstore" {
		t.Fatalf("in the cache %v, %v", entries, err)
	}
	folders, err := os.ReadDir(filepath.Join(r.cache, "sigstore"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		if strings.Trim(f.Name(), "0123456789abcdef") != "" {
			t.Errorf("folder %q", f.Name())
		}
	}
}
