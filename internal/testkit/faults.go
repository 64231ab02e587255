package testkit

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Fault is one way in which a registry goes wrong.
type Fault struct {
	// Kind is one of:
	//
	//	401 403 404 429 500 502 503   that status, as a registry says it
	//	cut       half of the answer, then the connection ends
	//	corrupt   the answer with its last byte changed
	//	hang      no answer until the client goes away
	//	long      the answer, and then a byte more for as long as it is read
	//	referrers=N   N referrers of nothing, a hundred a page
	Kind string
	// Match is a regular expression on "METHOD /path"; empty means every request.
	Match string
	// Times bounds how often the fault happens; 0 means always.
	Times int
}

// Faults breaks a registry. The zero value breaks nothing. Safe for concurrent
// use.
type Faults struct {
	mu      sync.Mutex
	rules   []*rule
	seen    []string
	changed chan struct{} // closed with the next request; made by who waits
}

type rule struct {
	Fault
	match *regexp.Regexp
	left  int
}

// Set replaces all faults.
func (f *Faults) Set(faults ...Fault) error {
	var rules []*rule
	for _, fault := range faults {
		match, err := regexp.Compile(fault.Match)
		if err != nil {
			return err
		}
		if _, known := answers()[kindName(fault.Kind)]; !known {
			return fmt.Errorf("unknown fault %q", fault.Kind)
		}
		rules = append(rules, &rule{Fault: fault, match: match, left: fault.Times})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules, f.seen = rules, nil
	return nil
}

// Seen returns the requests since the last Set, as "METHOD /path".
func (f *Faults) Seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.seen...)
}

// Await returns when a request that matches has been seen since the last Set,
// or with ctx.
func (f *Faults) Await(ctx context.Context, match *regexp.Regexp) error {
	for {
		f.mu.Lock()
		if slices.ContainsFunc(f.seen, match.MatchString) {
			f.mu.Unlock()
			return nil
		}
		if f.changed == nil {
			f.changed = make(chan struct{})
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for a request %q: %w", match, ctx.Err())
		}
	}
}

// Around returns a handler that asks f before inner.
func (f *Faults) Around(inner http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		kind := f.next(r.Method + " " + r.URL.Path)
		if kind == "" {
			inner.ServeHTTP(w, r)
			return
		}
		answers()[kindName(kind)](w, r, inner, kind)
	})
}

func (f *Faults) next(request string) (kind string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen = append(f.seen, request)
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
	for _, r := range f.rules {
		if !r.match.MatchString(request) || (r.Times > 0 && r.left == 0) {
			continue
		}
		r.left--
		return r.Kind
	}
	return ""
}

func kindName(kind string) string {
	name, _, _ := strings.Cut(kind, "=")
	return name
}

type answer func(w http.ResponseWriter, r *http.Request, inner http.Handler, kind string)

func answers() map[string]answer {
	return map[string]answer{
		"401": status("UNAUTHORIZED"), "403": status("DENIED"), "404": status("NAME_UNKNOWN"),
		"429": status("TOOMANYREQUESTS"), "500": status("UNKNOWN"), "502": status("UNKNOWN"), "503": status("UNAVAILABLE"),
		"cut": cut, "corrupt": corrupt, "hang": hang, "long": long, "referrers": referrers,
	}
}

func status(code string) answer {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler, kind string) {
		switch kind {
		case "401":
			w.Header().Set("WWW-Authenticate", `Basic realm="testkit"`)
		case "429":
			w.Header().Set("Retry-After", "1")
		}
		w.Header().Set("Content-Type", "application/json")
		n, _ := strconv.Atoi(kind)
		w.WriteHeader(n)
		fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"injected by the test"}]}`, code)
	}
}

// whole runs inner and keeps its answer.
func whole(r *http.Request, inner http.Handler) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	inner.ServeHTTP(rec, r)
	return rec
}

func send(w http.ResponseWriter, rec *httptest.ResponseRecorder, length int) {
	for name, values := range rec.Header() {
		w.Header()[name] = values
	}
	if length >= 0 {
		w.Header().Set("Content-Length", strconv.Itoa(length))
	}
	w.WriteHeader(rec.Code)
}

func cut(w http.ResponseWriter, r *http.Request, inner http.Handler, _ string) {
	rec := whole(r, inner)
	body := rec.Body.Bytes()
	send(w, rec, len(body))
	w.Write(body[:len(body)/2])
	panic(http.ErrAbortHandler)
}

func corrupt(w http.ResponseWriter, r *http.Request, inner http.Handler, _ string) {
	rec := whole(r, inner)
	body := rec.Body.Bytes()
	if len(body) > 0 {
		body[len(body)-1] ^= 1
	}
	send(w, rec, len(body))
	w.Write(body)
}

func hang(_ http.ResponseWriter, r *http.Request, _ http.Handler, _ string) {
	<-r.Context().Done()
	panic(http.ErrAbortHandler)
}

func long(w http.ResponseWriter, r *http.Request, inner http.Handler, _ string) {
	rec := whole(r, inner)
	rec.Header().Del("Content-Length")
	send(w, rec, -1)
	w.Write(rec.Body.Bytes())
	for filler := make([]byte, 64<<10); r.Context().Err() == nil; {
		if _, err := w.Write(filler); err != nil {
			return
		}
	}
}

// referrers answers GET /v2/NAME/referrers/DIGEST with pages of descriptors
// that lead nowhere.
func referrers(w http.ResponseWriter, r *http.Request, _ http.Handler, kind string) {
	const page = 100
	_, count, _ := strings.Cut(kind, "=")
	total, _ := strconv.Atoi(count)
	from, _ := strconv.Atoi(r.URL.Query().Get("last"))
	type descriptor struct {
		MediaType    string `json:"mediaType"`
		Size         int    `json:"size"`
		Digest       string `json:"digest"`
		ArtifactType string `json:"artifactType"`
	}
	index := struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []descriptor `json:"manifests"`
	}{2, "application/vnd.oci.image.index.v1+json", []descriptor{}}
	to := min(from+page, total)
	for i := from; i < to; i++ {
		index.Manifests = append(index.Manifests, descriptor{
			"application/vnd.oci.image.manifest.v1+json", 700,
			fmt.Sprintf("sha256:%064x", i), "application/vnd.dev.sigstore.bundle.v0.3+json",
		})
	}
	if to < total {
		w.Header().Set("Link", fmt.Sprintf(`<%s?last=%d>; rel="next"`, r.URL.Path, to))
	}
	w.Header().Set("Content-Type", index.MediaType)
	json.NewEncoder(w).Encode(index)
}
