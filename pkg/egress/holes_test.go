package egress

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// rawUpstream answers every request on a new connection with the bytes of answer.
func rawUpstream(t *testing.T, w *world, name, answer string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					io.WriteString(c, answer)
				}
			}()
		}
	}()
	w.upstreams[name] = ln.Addr().String()
}

// Errors of the transport quote what upstream said; a step must not read there
// what no exchange of the record has.
func TestAnErrorCarriesNothingIn(t *testing.T) {
	w := newWorld(t, http.NotFoundHandler())
	const payload = "payload-that-nobody-recorded"
	long := strings.Repeat("x", 300) + payload
	rawUpstream(t, w, "status.test:80", "HTTP/1.1 abc "+long+"\r\n\r\n")
	rawUpstream(t, w, "header.test:80", "HTTP/1.1 200 OK\r\n"+long+"\r\n\r\n")
	rawUpstream(t, w, "length.test:80", "HTTP/1.1 200 OK\r\nContent-Length: "+long+"\r\n\r\n")
	rawUpstream(t, w, "coding.test:80", "HTTP/1.1 200 OK\r\nTransfer-Encoding: "+long+"\r\n\r\n")
	rawUpstream(t, w, "none.test:80", "HTTP/1.1 099 "+payload+"\r\nContent-Length: 2\r\n\r\nhi")
	s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{Fetch: true})
	for _, host := range []string{"status", "header", "length", "coding", "none"} {
		status, h, body, err := fetch(t, s, "GET", "http://"+host+".test/", "")
		if err != nil || status != http.StatusBadGateway || strings.Contains(body+fmt.Sprint(h), payload) {
			t.Errorf("%s: %d %v %q %v", host, status, h, body, err)
		}
	}
	rec := end(t, s)
	if len(rec.Requests) != 5 || len(rec.Refusals) != 0 {
		t.Fatalf("recorded %+v, refused %+v", rec.Requests, rec.Refusals)
	}
	for i, host := range []string{"status", "header", "length", "coding", "none"} {
		if q := rec.Requests[i]; q.URI != "http://"+host+".test/" || !strings.Contains(q.Unanswered, "asking upstream") {
			t.Errorf("%s: recorded %+v", host, q)
		}
	}
}

// What a lock pins of a redirect is all of it but the signature.
func TestARedirectIsHeldToItsLock(t *testing.T) {
	var changed atomic.Bool
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h["Date"] = nil
		word := "old"
		if changed.Load() {
			word = "new"
		}
		switch r.URL.Path {
		case "/signed":
			h.Set("ETag", `"`+word+`"`)
			h.Set("Location", "https://files.test/file?Signature="+word)
		case "/plain":
			h.Set("Location", "https://files.test/"+word)
		}
		rw.WriteHeader(http.StatusFound)
	}))
	st := newStore(t)
	red, err := st.Redactor()
	if err != nil {
		t.Fatal(err)
	}
	step := StepOptions{Name: "RUN fetch", Fetch: true}
	s := open(t, w.gateway(t, Options{Store: st, Redactor: red}), step)
	for _, p := range []string{"/signed", "/plain"} {
		if status, _, _, _ := fetch(t, s, "GET", "https://files.test"+p, ""); status != http.StatusFound {
			t.Fatal(status)
		}
	}
	file := lockOf(t, st, end(t, s))
	changed.Store(true)

	t.Run("signed", func(t *testing.T) {
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: st, Redactor: red}), step)
		status, h, _, _ := fetch(t, s, "GET", "https://files.test/signed", "")
		if status != http.StatusFound || h.Get("ETag") != `"old"` || !strings.HasSuffix(h.Get("Location"), "Signature=new") {
			t.Errorf("the step got %d %v", status, h)
		}
	})
	t.Run("without the headers of the lock", func(t *testing.T) {
		bare, err := lock.Parse(file.Marshal())
		if err != nil {
			t.Fatal(err)
		}
		s := open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: bare, Store: newStore(t), Redactor: red}), step)
		if status, h, _, _ := fetch(t, s, "GET", "https://files.test/plain", ""); status == http.StatusFound || len(s.Violations()) != 1 {
			t.Errorf("another redirect passed: %d %v %+v", status, h, s.Violations())
		}
		if status, _, _, _ := fetch(t, s, "GET", "https://files.test/signed", ""); status != http.StatusFound || len(s.Violations()) != 1 {
			t.Errorf("another signature did not pass: %d %+v", status, s.Violations())
		}
	})
}

// A text that is clipped in the middle of a secret holds its first half.
func TestNoHalfOfASecretIsKept(t *testing.T) {
	const secret = "s3cr3t-value-of-the-step"
	n := newNeedles([][]byte{[]byte(secret)})
	for pad := 170; pad < 205; pad++ {
		r := newRecord(n.scrub)
		long := strings.Repeat("a", pad) + secret
		r.refuse(refusal{kind: "http", dest: long, reason: long})
		var st attestations.InputStep
		r.fill(&st)
		if got := st.Refusals[0]; strings.Contains(got.Destination+got.Reason, "s3cr") {
			t.Fatalf("after %d bytes: %+v", pad, got)
		}
	}
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{Fetch: true, Secrets: [][]byte{[]byte(secret)}})
	for _, host := range []string{strings.Repeat("!", 190) + secret, strings.Repeat("a.", 95) + secret + "!"} {
		var q strings.Builder
		for range 3 {
			q.WriteString(host)
		}
		r, err := http.NewRequest(http.MethodGet, "http://files.test/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Host = q.String()
		if resp, err := s.Transport().RoundTrip(r); err == nil {
			resp.Body.Close()
		}
	}
	for _, got := range end(t, s).Refusals {
		if strings.Contains(got.Destination+got.Reason, "s3cr") {
			t.Errorf("kept %+v", got)
		}
	}
}

// Upstream's words can be the secret that it was sent, and a violation is printed.
func TestNoViolationSaysASecret(t *testing.T) {
	const secret = "s3cr3t-value-of-the-step"
	w := newWorld(t, http.NotFoundHandler())
	rawUpstream(t, w, "echo.test:80", "HTTP/1.1 200 OK\r\n"+secret+"\r\n\r\n")
	file := &lock.File{Steps: []lock.Step{{Name: "RUN test", Entries: []lock.Entry{{Method: "GET", URI: "http://echo.test/", Status: 200, Digest: attest.DigestOf([]byte("a")), Size: 1}}}}}
	g := w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: newStore(t)})
	s := open(t, g, StepOptions{Fetch: true, Secrets: [][]byte{[]byte(secret)}})
	_, _, _, _ = fetch(t, s, "GET", "http://echo.test/", "")
	v := s.Violations()
	if len(v) != 1 || !strings.Contains(v[0].Text, "no answer from upstream") || strings.Contains(fmt.Sprint(v), secret) {
		t.Errorf("violations %+v", v)
	}
}

// What another build did not let a step have, it is not kept from by the cache.
func TestARefusedStepIsRunAgainWhereItMayAsk(t *testing.T) {
	w, st := newWorld(t, &site{}), newStore(t)
	step := StepOptions{Name: "RUN fetch", Fetch: true}
	get := func(opts Options) *attestations.InputStep {
		s := open(t, w.gateway(t, opts), step)
		_, _, _, _ = fetch(t, s, "GET", "https://files.test/a", "")
		return end(t, s)
	}
	file := lockOf(t, st, get(Options{Store: st}))
	narrow := Options{Store: st, AllowHosts: []string{"other.test"}}
	refused := get(narrow)
	lost := get(Options{Store: st, Dial: func(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }})
	locked := Options{Mode: attestations.InputsLocked, Lock: file, Store: st}
	for _, c := range []struct {
		name string
		opts Options
		rec  *attestations.InputStep
		why  int
	}{
		{"refused, under the same hosts", narrow, refused, 0},
		{"refused, under all hosts", Options{Store: st}, refused, 1},
		{"refused, under a lock", locked, refused, 1},
		{"not answered, in mode record", Options{Store: st}, lost, 0},
		{"not answered, under a lock", locked, lost, 1},
	} {
		if why := w.gateway(t, c.opts).Refuses(c.rec); len(c.rec.Refusals) != 1 || len(why) != c.why {
			t.Errorf("%s: %+v: not reused for %q", c.name, c.rec.Refusals, why)
		}
	}
}

// Parts of a locked body are what the lock lists, too.
func TestALockAdmitsPartsOfWhatItLists(t *testing.T) {
	up := &site{big: make([]byte, 1<<20)}
	w, st := newWorld(t, up), newStore(t)
	step := StepOptions{Name: "RUN fetch", Fetch: true}
	s := open(t, w.gateway(t, Options{Store: st}), step)
	if status, _, _, _ := fetch(t, s, "GET", "https://files.test/big", ""); status != 200 {
		t.Fatal(status)
	}
	file := lockOf(t, st, end(t, s))
	g := w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: st})
	s = open(t, g, step)
	fetch(t, s, "GET", "https://files.test/big", "", "Range", "bytes=100-")
	fetch(t, s, "HEAD", "https://files.test/big", "")
	rec := end(t, s)
	if why := file.AdmitsRun(rec); len(rec.Requests) != 2 || len(why) != 0 {
		t.Errorf("%d recorded; refused: %v", len(rec.Requests), why)
	}
	// A step of an earlier build may have had a part of what the lock listed then.
	if why := g.Refuses(rec); len(why) != 2 {
		t.Errorf("parts of nobody knows what are admitted: %v", why)
	}
	reused := *rec
	reused.Reused = true
	if why := file.AdmitsRun(&reused); len(why) != 2 {
		t.Errorf("parts in a reused step are admitted: %v", why)
	}
	rec.Requests[0].FromStore = false
	if why := file.AdmitsRun(rec); len(why) != 1 {
		t.Errorf("a part that upstream gave was admitted: %v", why)
	}
}

// A lock that git merged of two names the headers of one. The steps of the
// other have none, and their answers are upstream's.
func TestAMergedLockHasNoHeaders(t *testing.T) {
	w, st := newWorld(t, &site{}), newStore(t)
	red, err := st.Redactor()
	if err != nil {
		t.Fatal(err)
	}
	var steps []*attestations.InputStep
	for _, name := range []string{"RUN a", "RUN b"} {
		s := open(t, w.gateway(t, Options{Store: st, Redactor: red}), StepOptions{Name: name, Fetch: true})
		if status, _, _, _ := fetch(t, s, "GET", "https://files.test/redirect", ""); status != http.StatusFound {
			t.Fatal(status)
		}
		steps = append(steps, end(t, s))
	}
	merged := lockOf(t, st, steps...)
	merged.Replay = lockOf(t, st, steps[0]).Replay
	if err := st.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	plan := Plan{Mode: attestations.InputsLocked, Lock: merged.Marshal(), Store: st.Dir()}
	opts, err := plan.Options("test")
	if err != nil {
		t.Fatal(err)
	}
	g := w.gateway(t, opts)
	for _, name := range []string{"RUN a", "RUN b"} {
		s := open(t, g, StepOptions{Name: name, Fetch: true})
		if status, h, body, _ := fetch(t, s, "GET", "https://files.test/redirect", ""); status != http.StatusFound || h.Get("Location") == "" || len(s.Violations()) != 0 {
			t.Errorf("%s: %d %v %q %+v", name, status, h, body, s.Violations())
		}
	}
	plan.Mode = attestations.InputsOffline
	if _, err := plan.Options("test"); err == nil {
		t.Error("a build offline begins without its headers")
	}
}

// Upstream's bytes are checked, and those that the store has under their name
// may be others: what reaches the step is not what lies there unseen.
func TestADamagedBlobDoesNotReachAStep(t *testing.T) {
	up := &site{}
	w, st := newWorld(t, up), newStore(t)
	step := StepOptions{Name: "RUN fetch", Fetch: true}
	s := open(t, w.gateway(t, Options{Store: st}), step)
	if status, _, _, _ := fetch(t, s, "GET", "https://files.test/file", ""); status != 200 {
		t.Fatal(status)
	}
	file := lockOf(t, st, end(t, s))
	for i := range file.Steps[0].Entries {
		file.Steps[0].Entries[i].Headers = nil
	}
	dir := t.TempDir()
	planted, err := lock.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	d, err := planted.Put([]byte(up.text()))
	if err == nil {
		err = planted.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.Contains(path, d.Hex()) {
			return err
		}
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		return os.WriteFile(path, bytes.Repeat([]byte("E"), len(up.text())), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if planted, err = lock.OpenStore(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { planted.Close() })
	s = open(t, w.gateway(t, Options{Mode: attestations.InputsLocked, Lock: file, Store: planted}), step)
	status, _, body, err := fetch(t, s, "GET", "https://files.test/file", "")
	if status != 200 || body != up.text() || err != nil || len(s.Violations()) != 0 {
		t.Errorf("the step got %d %.40q %v %+v", status, body, err, s.Violations())
	}
	if err := planted.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := planted.Check(d); err != nil {
		t.Errorf("the store was not mended: %v", err)
	}
}

// What was sent has left, whether anybody answers or not.
func TestASentRequestStandsInTheRecord(t *testing.T) {
	const loot = "all that the step knows"
	heard := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || string(b) != loot {
			t.Errorf("upstream got %q, %v", b, err)
		}
		if r.URL.Path == "/hangs" {
			heard <- struct{}{}
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}))
	s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{Fetch: true})
	if status, _, _, _ := fetch(t, s, "POST", "https://files.test/hangs-up?token=hunter2hunter2", loot); status != http.StatusBadGateway {
		t.Errorf("got %d", status)
	}
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-heard; leave() }()
	r, err := http.NewRequestWithContext(ctx, "POST", "http://files.test/hangs", strings.NewReader(loot))
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := s.Transport().RoundTrip(r); err == nil {
		resp.Body.Close()
		t.Errorf("got %d", resp.StatusCode)
	}
	rec := end(t, s)
	if len(rec.Requests) != 2 || len(rec.Refusals) != 0 || rec.Verdict != attestations.VerdictRecorded {
		t.Fatalf("recorded %+v, refused %+v, verdict %s", rec.Requests, rec.Refusals, rec.Verdict)
	}
	for i, want := range []string{"https://files.test/hangs-up?token={hmac:", "http://files.test/hangs"} {
		q := rec.Requests[i]
		if q.Method != "POST" || q.Unanswered == "" || !strings.HasPrefix(q.URI, want) || q.RequestDigest != attest.DigestOf([]byte(loot)).String() || q.RequestSize != int64(len(loot)) {
			t.Errorf("recorded %+v", q)
		}
	}
}

// Some answers carry in a header what lets the client ask on.
func TestCredentialsInHeadersAreNotWrittenDown(t *testing.T) {
	const token = "a-bearer-token-of-nobody"
	sent := map[string]string{
		"X-Xet-Access-Token":     token,
		"X-Xet-Token-Expiration": "1700000000",
		"X-Xet-Cas-Url":          "https://cas.test/",
		"X-Xet-Refresh-Route":    "/api/refresh?token=" + token,
		"X-Terraform-Get":        "https://bucket.test/m.zip?X-Amz-Signature=" + token,
		"Content-Location":       "/file?sig=" + token,
		"Link":                   `<https://files.test/?page=2>; rel="next", <https://files.test/?page=9&token=` + token + `>; rel="last"`,
		"Refresh":                "5; url=/file?token=" + token,
	}
	w := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for k, v := range sent {
			rw.Header().Set(k, v)
		}
	}))
	dir := t.TempDir()
	st, err := lock.OpenStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, w.gateway(t, Options{Store: st}), StepOptions{Fetch: true})
	_, h, _, _ := fetch(t, s, "GET", "https://files.test/", "")
	for k, v := range sent {
		if h.Get(k) != v {
			t.Errorf("the step got %s: %q", k, h.Get(k))
		}
	}
	rec := end(t, s)
	got := rec.Requests[0].Headers
	if strings.Contains(fmt.Sprint(got), token) {
		t.Errorf("recorded %q", got)
	}
	for k, want := range map[string]string{
		"x-xet-token-expiration": "1700000000", "x-xet-cas-url": "https://cas.test/", "x-xet-access-token": "{hmac:",
		"x-terraform-get": "https://bucket.test/m.zip?X-Amz-Signature={hmac:", "link": `<https://files.test/?page=2>; rel="next", <https://files.test/?page=9&token={hmac:`,
	} {
		if !strings.HasPrefix(got[k], want) {
			t.Errorf("recorded %s: %q", k, got[k])
		}
	}
	lockOf(t, st, rec)
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	for name, b := range readAll(t, dir) {
		if bytes.Contains(b, []byte(token)) {
			t.Errorf("the store's %s holds the token", name)
		}
	}
}
