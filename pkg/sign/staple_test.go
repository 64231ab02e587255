package sign_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/waxseal/waxseal/pkg/sign"
)

// answering is a responder's handler that gives each of answers in turn, and the
// last one from then on; openssl's real one is in the scripts.
func answering(t *testing.T, asked *int, answers ...[]byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		// RFC 6960, appendix A.1.
		if _, err := ocsp.ParseRequest(raw); err != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/ocsp-request" {
			t.Errorf("%s of %q: %v", r.Method, r.Header.Get("Content-Type"), err)
		}
		n := min(*asked, len(answers)-1)
		*asked++
		w.Header().Set("Content-Type", "application/ocsp-response")
		w.Write(answers[n])
	})
}

// says is what an authority's responder says: that the certificate is good.
func (i *issued) says(t *testing.T, of *issued, until time.Time) []byte {
	t.Helper()
	raw, err := ocsp.CreateResponse(i.cert, i.cert, ocsp.Response{Status: ocsp.Good, SerialNumber: of.cert.SerialNumber, ThisUpdate: time.Now(), NextUpdate: until}, i.key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestStaplerSaysWhatIsWrong(t *testing.T) {
	root := issue(t, "root", nil, authority)
	var asked int
	later := time.Now().Add(time.Hour)
	status := func(code int, body string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, body) })
	}
	answer := func(raw []byte) http.Handler { return answering(t, &asked, raw) }
	no := errors.New("it would not count")
	for name, c := range map[string]struct {
		server    func(leaf *issued) http.Handler
		check     error
		want, way string
	}{
		"down":         {func(*issued) http.Handler { return status(503, "later") }, nil, "it failed 3 times, at last with 503 later", "when the responder is up"},
		"try later":    {func(*issued) http.Handler { return answer(ocsp.TryLaterErrorResponse) }, nil, "it failed 3 times, at last with 503 try later", "when the responder is up"},
		"not there":    {func(*issued) http.Handler { return http.NotFoundHandler() }, nil, "it refused (404)", "the address in the certificate"},
		"elsewhere":    {func(*issued) http.Handler { return http.RedirectHandler("https://evil.example", 307) }, nil, "it refused (307)", "the address in the certificate"},
		"unauthorized": {func(*issued) http.Handler { return answer(ocsp.UnauthorizedErrorResponse) }, nil, "it refused: unauthorized", "the responder of the CA that issued"},
		"a web page":   {func(*issued) http.Handler { return status(200, "<html>hello") }, nil, "its answer is no OCSP response", "the address in the certificate"},
		"large":        {func(*issued) http.Handler { return status(200, strings.Repeat("x", 1<<20)) }, nil, "larger than the 65536 bytes", "the address in the certificate"},
		"no good":      {func(leaf *issued) http.Handler { return answer(root.says(t, leaf, later)) }, no, "it would not count", "nothing was signed"},
	} {
		t.Run(name, func(t *testing.T) {
			var handler http.Handler
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
			defer server.Close()
			leaf := issue(t, "leaf", root, func(c *x509.Certificate) { signerOf(c); c.OCSPServer = []string{server.URL} })
			handler = c.server(leaf)
			s, err := sign.NewStapler(sign.StapleOptions{Chain: []*x509.Certificate{leaf.cert, root.cert}, Ask: true, Check: func([]byte) error { return c.check }})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Answers(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want it to hold %q", err, c.want)
			}
			var known *sign.KeylessError
			if !errors.As(err, &known) || !strings.Contains(known.Hint(), c.way) {
				t.Errorf("%T: the way out is not %q: %+v", err, c.way, known)
			}
		})
	}
}

func TestStaplerAsks(t *testing.T) {
	root := issue(t, "root", nil, authority)
	var asked, above int
	now := time.Now()
	var handler http.Handler
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handler.ServeHTTP(w, r) }))
	defer server.Close()
	var upper http.Handler
	roots := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { upper.ServeHTTP(w, r) }))
	defer roots.Close()
	between := issue(t, "between", root, func(c *x509.Certificate) { authority(c); c.OCSPServer = []string{roots.URL} })
	// The first that is named is not there, and one cannot be asked.
	leaf := issue(t, "leaf", between, func(c *x509.Certificate) {
		signerOf(c)
		c.OCSPServer = []string{"ldap://dir.example", roots.URL + "/gone", server.URL}
	})
	first, second := between.says(t, leaf, now.Add(time.Hour)), between.says(t, leaf, now.Add(3*time.Hour))
	handler = answering(t, &asked, ocsp.TryLaterErrorResponse, first, second)
	whole := root.says(t, between, now.Add(24*time.Hour))
	upper = http.NewServeMux()
	upper.(*http.ServeMux).Handle("/gone", http.NotFoundHandler())
	upper.(*http.ServeMux).Handle("/{$}", answering(t, &above, whole))
	var told []string
	given := []byte("given")
	s, err := sign.NewStapler(sign.StapleOptions{
		Chain: []*x509.Certificate{leaf.cert, between.cert, root.cert}, Ask: true, Given: [][]byte{given},
		Check: func([]byte) error { return nil }, Now: func() time.Time { return now }, Tell: func(text string) { told = append(told, text) },
	})
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want ...[]byte) {
		t.Helper()
		got, err := s.Answers(t.Context())
		if err != nil || len(got) != 3 || !bytes.Equal(bytes.Join(got, nil), bytes.Join(want, nil)) {
			t.Errorf("%d answers, %v", len(got), err)
		}
	}
	expect(given, first, whole)
	expect(given, first, whole)
	if asked != 2 || above != 1 || len(told) != 1 || !strings.Contains(told[0], "try later") {
		t.Errorf("asked %d and %d times, told %q", asked, above, told)
	}
	// What it said runs out.
	now = now.Add(time.Hour)
	expect(given, second, whole)
	if asked != 3 || above != 1 {
		t.Errorf("asked %d and %d times", asked, above)
	}

	// Whoever waits can stop it.
	ctx, stop := context.WithCancel(t.Context())
	handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		stop()
		<-r.Context().Done()
	})
	now = now.Add(24 * time.Hour)
	if _, err := s.Answers(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

// What could never staple anything is refused at once, and what was given before it
// is used.
func TestStaplerRefuses(t *testing.T) {
	root := issue(t, "root", nil, authority)
	leaf := issue(t, "leaf", root, signerOf)
	for want, o := range map[string]sign.StapleOptions{
		"that is not there":  {Chain: []*x509.Certificate{leaf.cert}},
		"names no responder": {Chain: []*x509.Certificate{leaf.cert, root.cert}, Ask: true},
	} {
		if _, err := sign.NewStapler(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	s, err := sign.NewStapler(sign.StapleOptions{Chain: []*x509.Certificate{leaf.cert, root.cert}, Given: [][]byte{{1}}, Check: func([]byte) error { return errors.New("too old") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Answers(t.Context()); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("%v", err)
	}
}
