package egress

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// fetch asks like a step, through the transport of the engine's own requests:
// no namespace and no root is needed for what HTTP does.
func fetch(t testing.TB, s *Step, method, url, body string, header ...string) (int, http.Header, string, error) {
	t.Helper()
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	r, err := http.NewRequestWithContext(context.Background(), method, url, rd)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := s.Transport().RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

// site is an upstream with something of everything.
type site struct {
	asked   atomic.Int64
	counted atomic.Int64
	changed atomic.Bool
	down    atomic.Bool
	big     []byte
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	if s.down.Load() {
		panic(http.ErrAbortHandler)
	}
	switch r.URL.Path {
	case "/file":
		w.Header().Set("Etag", `"1"`)
		w.Header().Set("Set-Cookie", "who=me")
		w.Header().Set("X-Other", "never seen")
		text := s.text()
		http.ServeContent(w, r, "file.txt", time.Unix(1e9, 0), strings.NewReader(text))
	case "/gzip":
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, s.text())
		z.Close()
	case "/chunked":
		for i := range 3 {
			fmt.Fprintf(w, "part %d\n", i)
			w.(http.Flusher).Flush()
		}
	case "/redirect":
		http.Redirect(w, r, "/file", http.StatusFound)
	case "/signed":
		http.Redirect(w, r, fmt.Sprintf("https://files.test/file?X-Amz-Signature=sig%d", s.asked.Load()), http.StatusTemporaryRedirect)
	case "/missing":
		http.NotFound(w, r)
	case "/same":
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(http.StatusNotModified)
	case "/count":
		fmt.Fprintf(w, "answer %d", s.counted.Add(1))
	case "/post":
		b, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "you said %s", b)
	case "/echo":
		w.Header().Set("X-Checksum-Sha1", r.Header.Get("Authorization"))
		fmt.Fprintf(w, "%s %s", r.Header.Get("Authorization"), r.URL.Query().Get("x"))
	case "/cut":
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "only this")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	case "/big":
		w.Header().Set("Content-Length", fmt.Sprint(len(s.big)))
		w.Write(s.big)
	default:
		io.WriteString(w, "page "+r.URL.Path)
	}
}

func (s *site) text() string {
	if s.changed.Load() {
		return strings.Repeat("the new text\n", 100)
	}
	return strings.Repeat("the old text\n", 100)
}

// lockOf is what a build in mode record would write.
func lockOf(t testing.TB, st *lock.Store, recs ...*attestations.InputStep) *lock.File {
	t.Helper()
	in := &attestations.Inputs{Mode: attestations.InputsRecord}
	for _, r := range recs {
		in.Steps = append(in.Steps, *r)
	}
	f, err := lock.FromInputs(st, in)
	if err != nil {
		t.Fatal(err)
	}
	raw := f.Marshal()
	if f, err = lock.Parse(raw); err != nil {
		t.Fatalf("parsing the lock: %v\n%s", err, raw)
	}
	if err := f.LoadReplay(st); err != nil {
		t.Fatal(err)
	}
	return f
}

type ask struct {
	method, url, body string
	header            []string
	whole             bool // the body of the answer arrives whole
}

var asks = []ask{
	{"GET", "https://files.test/file", "", nil, true},
	{"GET", "http://files.test/gzip", "", []string{"Accept-Encoding", "gzip"}, true},
	{"GET", "http://files.test/chunked", "", nil, true},
	{"GET", "https://files.test/redirect", "", nil, true},
	{"GET", "https://files.test/signed", "", nil, true},
	{"GET", "https://files.test/missing", "", nil, true},
	{"HEAD", "https://files.test/file", "", nil, true},
	{"GET", "https://files.test/same", "", []string{"If-None-Match", `"1"`}, true},
	{"GET", "https://files.test/file", "", []string{"Range", "bytes=10-19"}, true},
	{"POST", "https://files.test/post", "hello", nil, true},
	{"POST", "https://files.test/post", strings.Repeat("long ", 1e5), nil, true},
	{"GET", "https://files.test/count", "", nil, true},
	{"GET", "https://files.test/count", "", nil, true},
	{"GET", "https://files.test/cut", "", nil, false},
	{"GET", "https://files.test/big", "", nil, true},
}

type reply struct {
	status int
	header http.Header
	body   string
}

func askAll(t *testing.T, s *Step) []reply {
	t.Helper()
	var out []reply
	for _, a := range asks {
		status, h, body, err := fetch(t, s, a.method, a.url, a.body, a.header...)
		if (err == nil) != a.whole {
			t.Errorf("%s %s: %v", a.method, a.url, err)
		}
		out = append(out, reply{status, h, body})
	}
	return out
}

func TestRecordLockedOffline(t *testing.T) {
	up := &site{big: make([]byte, 3<<20)}
	rand.Read(up.big)
	w := newWorld(t, up)
	st := newStore(t)
	red, err := st.Redactor()
	if err != nil {
		t.Fatal(err)
	}
	step := StepOptions{Name: "RUN fetch", Fetch: true}
	s := open(t, w.gateway(t, Options{Store: st, Redactor: red}), step)
	first := askAll(t, s)
	if v := s.Violations(); len(v) != 0 {
		t.Fatalf("violations %+v", v)
	}
	rec := end(t, s)
	if len(rec.Requests) != len(asks) {
		t.Fatalf("recorded %d of %d", len(rec.Requests), len(asks))
	}
	for i, r := range rec.Requests {
		if r.Ordinal != i+1 || r.Status != first[i].status || r.Digest != attest.DigestOf([]byte(first[i].body)).String() || r.Cut == asks[i].whole {
			t.Errorf("%+v: recorded %+v", asks[i], r)
		}
		if r.Headers["set-cookie"] != "" || r.Headers["x-other"] != "" || first[i].header.Get("X-Other") != "" {
			t.Errorf("a header that is not recorded reached the step: %v", first[i].header)
		}
	}
	if first[0].body != up.text() || first[14].body != string(up.big) {
		t.Error("a body was changed")
	}
	if got := first[4].header.Get("Location"); !strings.Contains(got, "Signature=sig") {
		t.Errorf("the step got the redirect %q", got)
	}
	if got := rec.Requests[4].Headers["location"]; strings.Contains(got, "Signature=sig") {
		t.Errorf("a signature was recorded: %q", got)
	}
	file := lockOf(t, st, rec)

	check := func(t *testing.T, got []reply, mode string) {
		t.Helper()
		for i := range got {
			same := got[i].status == first[i].status && got[i].body == first[i].body
			for k := range first[i].header {
				if k == "Date" || k == "Location" && i == 4 {
					continue
				}
				same = same && got[i].header.Get(k) == first[i].header.Get(k)
			}
			if !same {
				t.Errorf("%s: %+v gave %d %v %.60q, recorded %d %v %.60q", mode, asks[i], got[i].status, got[i].header, got[i].body, first[i].status, first[i].header, first[i].body)
			}
		}
	}
	t.Run("locked from the store", func(t *testing.T) {
		before := up.asked.Load()
		g := w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: st, Redactor: red})
		s := open(t, g, step)
		check(t, askAll(t, s), "locked")
		rec := end(t, s)
		if v := s.Violations(); len(v) != 0 {
			t.Errorf("violations %+v", v)
		}
		if n := up.asked.Load() - before; n != 1 {
			t.Errorf("upstream was asked %d times, want once, for the signed redirect", n)
		}
		if why := g.Refuses(rec); len(why) != 0 {
			t.Errorf("the lock does not admit what it allowed: %v", why)
		}
	})
	t.Run("locked with an empty store", func(t *testing.T) {
		up.counted.Store(0)
		empty := newStore(t)
		f := *file
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: &f, Store: empty, Redactor: red}), step)
		check(t, askAll(t, s), "locked")
		if v := s.Violations(); len(v) != 0 {
			t.Errorf("violations %+v", v)
		}
	})
	t.Run("offline", func(t *testing.T) {
		up.down.Store(true)
		defer up.down.Store(false)
		before := up.asked.Load()
		g := w.gateway(t, Options{Mode: attestations.InputsOffline, Lock: file, Store: st, Redactor: red, Dial: func(context.Context, string, string) (net.Conn, error) {
			t.Error("a connection was opened")
			return nil, errors.New("offline")
		}})
		s := open(t, g, step)
		check(t, askAll(t, s), "offline")
		// What was not recorded but follows from what was.
		if status, h, body, _ := fetch(t, s, "GET", "https://files.test/big", "", "Range", "bytes=100-"); status != 206 || body != string(up.big[100:]) {
			t.Errorf("resuming gave %d %v and %d bytes", status, h, len(body))
		}
		if status, h, _, _ := fetch(t, s, "HEAD", "https://files.test/big", ""); status != 200 || h.Get("Content-Length") != fmt.Sprint(len(up.big)) {
			t.Errorf("HEAD gave %d %v", status, h)
		}
		if v := s.Violations(); len(v) != 0 {
			t.Errorf("violations %+v", v)
		}
		for _, r := range end(t, s).Requests {
			if !r.FromStore {
				t.Errorf("not from the store: %+v", r)
			}
		}
		if up.asked.Load() != before {
			t.Error("upstream was asked")
		}
	})
	t.Run("offline with an empty store", func(t *testing.T) {
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsOffline, Lock: file, Store: newStore(t), Redactor: red}), step)
		status, _, _, _ := fetch(t, s, "GET", "https://files.test/file", "")
		v := s.Violations()
		if status != 403 || len(v) != 1 || !strings.Contains(v[0].Text, rec.Requests[0].Digest) || !strings.Contains(v[0].Text, "the store lacks it") {
			t.Errorf("got %d and %+v", status, v)
		}
	})
	t.Run("locked, changed upstream", func(t *testing.T) {
		up.changed.Store(true)
		defer up.changed.Store(false)
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: newStore(t), Redactor: red}), step)
		status, _, body, _ := fetch(t, s, "GET", "https://files.test/file", "")
		v := s.Violations()
		if status != 403 || strings.Contains(body, "the new text") || len(v) != 1 {
			t.Fatalf("got %d %q %+v", status, body, v)
		}
		for _, want := range []string{"GET https://files.test/file: expected 200 " + rec.Requests[0].Digest, "got 200 " + attest.DigestOf([]byte(up.text())).String()} {
			if !strings.Contains(v[0].Text, want) {
				t.Errorf("the violation does not say %q: %s", want, v[0].Text)
			}
		}
		if r := end(t, s); len(r.Requests) != 0 || !hasRefusal(r, "lock", "files.test:443", "", "") {
			t.Errorf("recorded %+v", r)
		}
	})
	t.Run("locked, unknown", func(t *testing.T) {
		before := up.asked.Load()
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: st, Redactor: red}), step)
		for _, a := range []ask{{"GET", "https://files.test/new", "", nil, true}, {"POST", "https://files.test/post", "third", nil, true}, {"GET", "https://other.test/file", "", nil, true}, {"DELETE", "https://files.test/file", "", nil, true}} {
			n := len(s.Violations())
			if status, _, _, _ := fetch(t, s, a.method, a.url, a.body); status != 403 || len(s.Violations()) != n+1 {
				t.Errorf("%+v gave %d and %+v", a, status, s.Violations())
			}
		}
		if up.asked.Load() != before {
			t.Error("upstream was asked")
		}
	})
	t.Run("locked, an upstream that fails and comes back", func(t *testing.T) {
		up.down.Store(true)
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: newStore(t), Redactor: red}), step)
		if status, _, _, _ := fetch(t, s, "GET", "https://files.test/file", ""); status != 502 || len(s.Violations()) != 1 {
			t.Errorf("got %d %+v", status, s.Violations())
		}
		up.down.Store(false)
		if status, _, _, _ := fetch(t, s, "GET", "https://files.test/file", ""); status != 200 || len(s.Violations()) != 0 {
			t.Errorf("got %d %+v", status, s.Violations())
		}
	})
}

func TestAllowedHosts(t *testing.T) {
	up := &site{}
	w := newWorld(t, up, "a.files.test")
	g := w.gateway(t, Options{AllowHosts: []string{"*.files.test", "other.test:443"}})
	s := open(t, g, StepOptions{Fetch: true})
	for url, want := range map[string]int{
		"http://a.files.test/x": 200, "https://other.test/x": 200, "http://other.test/x": 403, "https://files.test/x": 403, "https://evilfiles.test/": 403,
	} {
		if got, _, body, _ := fetch(t, s, "GET", url, ""); got != want {
			t.Errorf("%s: %d %s", url, got, body)
		}
	}
	rec := end(t, s)
	if !hasRefusal(rec, "policy", "other.test:80", "", "not allowed") || len(s.Violations()) != 0 {
		t.Errorf("recorded %+v %+v", rec.Refusals, s.Violations())
	}
	if why := g.Refuses(rec); len(why) != 0 {
		t.Errorf("refuses its own record: %v", why)
	}
	rec.Requests[0].URI = "http://elsewhere.test/"
	if why := g.Refuses(rec); len(why) != 1 {
		t.Errorf("does not refuse another host's: %v", why)
	}
}

func TestUpstreamThatFails(t *testing.T) {
	up := &site{}
	w := newWorld(t, up)
	w.upstreams["gone.test"] = "127.0.0.1:1"
	g := w.gateway(t, Options{Store: newStore(t)})
	s := open(t, g, StepOptions{Fetch: true})
	if status, _, body, _ := fetch(t, s, "GET", "https://gone.test/?token=hunter2hunter2", ""); status != 502 || !strings.Contains(body, "refused") {
		t.Errorf("got %d %q", status, body)
	}
	if status, _, body, err := fetch(t, s, "GET", "http://files.test/cut", ""); status != 200 || err == nil || body != "only this" {
		t.Errorf("got %d %q %v", status, body, err)
	}
	rec := end(t, s)
	if len(rec.Requests) != 1 || !rec.Requests[0].Cut || rec.Requests[0].Size != 9 || !hasRefusal(rec, "http", "gone.test:443", "", "refused") {
		t.Errorf("recorded %+v", rec)
	}
	if strings.Contains(fmt.Sprintf("%+v", rec), "hunter2") {
		t.Error("a token was recorded")
	}

	// Without the test's root the certificate is not good.
	g2, err := New(Options{Upstreams: w.upstreams})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	s = open(t, g2, StepOptions{Fetch: true})
	if status, _, body, _ := fetch(t, s, "GET", "https://files.test/file", ""); status != 502 || !strings.Contains(body, "--upstream-ca") {
		t.Errorf("an upstream that cannot be verified gave %d %q", status, body)
	}
}

func TestSecretsAreNotKept(t *testing.T) {
	up := &site{}
	w := newWorld(t, up)
	dir := t.TempDir()
	st, err := lock.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	const secret = "s3cr3t/Value+with=signs"
	enc := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
	red, err := st.Redactor()
	if err != nil {
		t.Fatal(err)
	}
	g := w.gateway(t, Options{Store: st, Redactor: red})
	s := open(t, g, StepOptions{Fetch: true, Secrets: [][]byte{[]byte(secret + "\n")}})
	_, _, body, err := fetch(t, s, "GET", "https://files.test/echo", "", "Authorization", "Basic "+enc)
	if err != nil || !strings.Contains(body, enc) {
		t.Fatalf("the step did not get its answer: %q %v", body, err)
	}
	fetch(t, s, "GET", "https://files.test/echo?x=s3cr3t%2FValue%2Bwith%3Dsigns", "")
	fetch(t, s, "POST", "https://files.test/post", "a body with "+secret)
	fetch(t, s, "GET", "https://files.test/file", "")
	rec := end(t, s)
	text := fmt.Sprintf("%+v", rec)
	for _, bad := range []string{secret, enc, "s3cr3t"} {
		if strings.Contains(text, bad) {
			t.Errorf("the record has %q: %s", bad, text)
		}
	}
	for i, want := range []bool{true, true, true, false} {
		if r := rec.Requests[i]; r.Withheld != want || strings.HasPrefix(r.Digest, "hmac-sha256:") != want {
			t.Errorf("recorded %+v", r)
		}
	}
	if !strings.HasPrefix(rec.Requests[2].RequestDigest, "hmac-sha256:") {
		t.Errorf("a digest of the secret: %+v", rec.Requests[2])
	}
	if rec.Verdict != attestations.VerdictGaps || len(rec.Gaps) == 0 {
		t.Errorf("recorded %+v", rec)
	}
	// A lock holds the keyed digest, and upstream's answer to it.
	file := lockOf(t, st, rec)
	for mode, want := range map[string]int{attestations.InputsLocked: 200, attestations.InputsOffline: 403} {
		s := open(t, w.gateway(t, Options{Mode: mode, Lock: file, Store: st, Redactor: red}), StepOptions{Fetch: true, Secrets: [][]byte{[]byte(secret + "\n")}})
		if status, _, body, _ := fetch(t, s, "GET", "https://files.test/echo", "", "Authorization", "Basic "+enc); status != want || len(s.Violations()) != (want-200)/203 {
			t.Errorf("%s: %d %q %+v", mode, status, body, s.Violations())
		}
	}
	if err := st.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for name, b := range readAll(t, dir) {
		if bytes.Contains(b, []byte("s3cr3t")) || bytes.Contains(b, []byte(enc)) {
			t.Errorf("the store's %s holds the secret", name)
		}
	}
}

func TestSecretsAcrossChunksAndCompressed(t *testing.T) {
	n := newNeedles([][]byte{[]byte("correct horse battery")})
	for cut := 1; cut < 20; cut++ {
		sc := newScanner(n, "")
		for rest := []byte("xx correct horse battery yy"); len(rest) > 0; {
			k := min(cut, len(rest))
			sc.write(rest[:k])
			rest = rest[k:]
		}
		if !sc.end() {
			t.Errorf("not found in chunks of %d", cut)
		}
	}
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	io.WriteString(zw, strings.Repeat("padding ", 1e5)+"correct horse battery")
	zw.Close()
	sc := newScanner(n, "gzip")
	sc.write(z.Bytes())
	if !sc.end() {
		t.Error("not found in gzip")
	}
	sc = newScanner(n, "br")
	sc.write([]byte("anything"))
	if !sc.end() {
		t.Error("what cannot be searched passes for clean")
	}
	sc = newScanner(n, "")
	sc.write([]byte("correct horse batterx"))
	if sc.end() {
		t.Error("found what is not there")
	}
}

// A secret is found in the lines that base64 and xxd write, and in what a form
// or JSON makes of its base64, however the body is cut.
func TestSecretsInFoldedBodies(t *testing.T) {
	secret := "a key of more than\xff\xfe57 bytes, so that base64 breaks its line: " + strings.Repeat("\xfb\xef?>", 20)
	n := newNeedles([][]byte{[]byte(secret)})
	plain := base64.StdEncoding.EncodeToString([]byte("user:" + secret))
	if !strings.Contains(plain, "+") || !strings.Contains(plain, "/") {
		t.Fatalf("%s has no + and /", plain)
	}
	fold := func(s, with string, at int) string {
		var lines []string
		for part := range slices.Chunk([]byte(s), at) {
			lines = append(lines, string(part))
		}
		return strings.Join(lines, with)
	}
	for name, body := range map[string]string{
		"lines":           fold(plain, "\n", 76),
		"lines of a mail": fold(plain, "\r\n", 64),
		"hex":             fold(hex.EncodeToString([]byte(secret)), "\n", 60),
		"a form":          "x=" + url.QueryEscape(plain),
		"lines in a form": "x=" + url.QueryEscape(fold(plain, "\n", 76)),
		"JSON":            `{"x": "` + strings.ReplaceAll(plain, "/", `\/`) + `"}`,
		"lines in JSON":   `{"x": "` + fold(plain, `\n`, 76) + `"}`,
		"escapes":         "%" + fold(strings.ToUpper(hex.EncodeToString([]byte(secret))), "%", 2),
	} {
		for _, cut := range []int{1, 2, 7, 1000} {
			sc := newScanner(n, "")
			for part := range slices.Chunk([]byte("before\n"+body+"\nafter"), cut) {
				sc.write(part)
			}
			if !sc.end() {
				t.Errorf("%s: not found in chunks of %d", name, cut)
			}
		}
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		io.WriteString(zw, body)
		zw.Close()
		sc := newScanner(n, "gzip")
		sc.write(z.Bytes())
		if !sc.end() {
			t.Errorf("%s: not found in gzip", name)
		}
	}
	sc := newScanner(newNeedles([][]byte{[]byte("secret")}), "")
	sc.write([]byte("in sec\nret lines a short one is not looked for"))
	if sc.end() {
		t.Error("found what two lines have by chance")
	}
}

// A text without its secrets says "(secret)", whatever the secrets are.
func TestScrub(t *testing.T) {
	for _, c := range []struct{ secrets, text, want string }{
		{"secret", "the body holds a secret of the step", "the body holds a (secret) of the step"},
		{"secr", "secrets", "(secret)ets"},
		{"(secret)", "a (secret) b", "a (secret) b"},
		{"SECRET|cret", "a Secret", "a (secret)"},
		{"hunter2|secret", "hunter2 and secret", "(secret) and (secret)"},
		{"abcdef|defghi", "xabcdefghix", "x(secret)x"},
		{"hunter2", "\u023a\u212a HUNTER2 \u023a", "\u023a\u212a (secret) \u023a"},
		{"hunter2", "\xff\xfehUnter2\xff", "\xff\xfe(secret)\xff"},
		{"hunter2", "nothing", "nothing"},
	} {
		var secrets [][]byte
		for s := range strings.SplitSeq(c.secrets, "|") {
			secrets = append(secrets, []byte(s))
		}
		if got := newNeedles(secrets).scrub(c.text); got != c.want {
			t.Errorf("%q without %q is %q, want %q", c.text, c.secrets, got, c.want)
		}
	}
}

// A file that is a secret holds values that are: they are what its tool sends.
func TestSecretsOfFilesAreNotKept(t *testing.T) {
	for _, c := range []struct{ file, value string }{
		{"//npm.example/:_authToken=npm-token-77\nregistry=https://npm.example/\n", "npm-token-77"},
		{"machine a.example\n  login me\n  password s3same-open\n", "s3same-open"},
		{"[global]\nindex-url = https://pypi.example/\npassword = p1p-pass\n", "p1p-pass"},
		{`{"registry": {"token": "in-some-json"}}`, "in-some-json"},
		{"Authorization: Bearer of-a-header\nAccept: text/plain\n", "of-a-header"},
	} {
		dir := t.TempDir()
		st, err := lock.OpenStore(dir)
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, newWorld(t, &site{}).gateway(t, Options{Store: st}), StepOptions{Fetch: true, Secrets: [][]byte{[]byte(c.file)}})
		if _, _, body, _ := fetch(t, s, "GET", "https://files.test/echo", "", "Authorization", "Bearer "+c.value); !strings.Contains(body, "Bearer "+c.value) {
			t.Errorf("%q: the step got %q", c.file, body)
		}
		fetch(t, s, "POST", "https://files.test/post", c.value)
		fetch(t, s, "GET", "https://"+c.value+".unknown.test:1/", "")
		if _, _, body, _ := fetch(t, s, "GET", "https://files.test/Bearer", ""); body != "page /Bearer" {
			t.Errorf("%q: the step got %q", c.file, body)
		}
		rec := end(t, s)
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(fmt.Sprintf("%+v", rec), c.value) {
			t.Errorf("%q: recorded %+v", c.file, rec)
		}
		if len(rec.Requests) != 3 || !rec.Requests[0].Withheld || !strings.HasPrefix(rec.Requests[1].RequestDigest, "hmac-") || rec.Requests[2].Withheld {
			t.Errorf("%q: recorded %+v", c.file, rec.Requests)
		}
		for name, b := range readAll(t, dir) {
			if bytes.Contains(b, []byte(c.value)) {
				t.Errorf("%q: the store's %s holds the value", c.file, name)
			}
		}
	}
}

// TestAFullStoreCutsTheAnswer: what cannot be kept does not reach the step.
func TestAFullStoreCutsTheAnswer(t *testing.T) {
	up := &site{big: make([]byte, 3<<20)}
	w := newWorld(t, up)
	st := newStore(t)
	g := w.gateway(t, Options{Store: st})
	s := open(t, g, StepOptions{Fetch: true})
	makeUnwritable(t, st)
	_, _, body, err := fetch(t, s, "GET", "https://files.test/big", "")
	if err == nil || len(body) >= len(up.big) {
		t.Errorf("the step got %d bytes, %v", len(body), err)
	}
	rec := end(t, s)
	if len(s.Violations()) != 1 || len(rec.Gaps) != 1 {
		t.Errorf("violations %+v, gaps %+v", s.Violations(), rec.Gaps)
	}
}
