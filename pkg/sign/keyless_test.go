package sign_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

// services is a Fulcio that issues to anybody; what it makes verifies nowhere.
// The real ones are in the scripts.
type services struct {
	*httptest.Server
	mu     sync.Mutex
	asked  map[string]int
	before func(w http.ResponseWriter, r *http.Request) bool // true: it answered
}

func newServices(t testing.TB) *services {
	s := &services{asked: map[string]int{}}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *services) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func (s *services) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked[r.URL.Path]++
	s.mu.Unlock()
	if s.before != nil && s.before(w, r) {
		return
	}
	switch r.URL.Path {
	case "/api/v2/signingCert":
		s.certificate(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (s *services) certificate(w http.ResponseWriter, r *http.Request) {
	var req struct {
		PublicKeyRequest struct{ PublicKey struct{ Content string } }
	}
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	block, _ := pem.Decode([]byte(req.PublicKeyRequest.PublicKey.Content))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader) // never fails
	issuer, _ := asn1.MarshalWithParams("https://issuer.example", "utf8")
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(10 * time.Minute), EmailAddresses: []string{"ann@acme.example"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, 8}, Value: issuer}},
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, public, key)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	json.NewEncoder(w).Encode(map[string]any{"signedCertificateEmbeddedSct": map[string]any{"chain": map[string]any{
		"certificates": []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))},
	}}})
}

// config is a signing config with the services at an address. The time-stamping
// authority is named for the config to be whole.
func config(address string) []byte {
	service := func(path string, version int) string {
		return fmt.Sprintf(`[{"url":%q,"majorApiVersion":%d,"validFor":{"start":"2020-01-01T00:00:00Z"},"operator":"o"}]`, address+path, version)
	}
	return fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json","caUrls":%s,"tsaUrls":%s,"tsaConfig":{"selector":"ANY"}}`,
		service("", 1), service("/tsa", 1))
}

func jwt(claims string) string {
	enc := base64.RawURLEncoding
	return enc.EncodeToString([]byte("{}")) + "." + enc.EncodeToString([]byte(claims)) + ".c2ln"
}

func tokenFile(t testing.TB, token string) sign.TokenSource {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	src, err := sign.FindToken(sign.TokenOptions{Ref: path})
	if err != nil {
		t.Fatal(err)
	}
	return src
}

const good = `{"iss":"https://issuer.example","aud":"sigstore","sub":"ann","email":"ann@acme.example","email_verified":true,"exp":99999999999}`

// Everything that signs at once shares one certificate, and one that is refused
// stops it all.
func TestKeylessAsksForOneCertificate(t *testing.T) {
	s := newServices(t)
	signer, err := sign.OpenKeyless(sign.KeylessOptions{
		Token: tokenFile(t, jwt(good)), Config: config(s.URL),
		Check: func(*attest.Bundle, sign.Identity) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer signer.Close()
	if n := s.count("/api/v2/signingCert"); n != 0 {
		t.Errorf("%d certificates before the first signature", n)
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			// The time-stamping authority is not there: 404 is a refusal.
			_, err := signer.Sign(t.Context(), testStatement(t))
			if err == nil || !strings.Contains(err.Error(), "asking the time-stamping authority at "+s.URL+": it refused (404)") {
				t.Errorf("Sign: %v", err)
			}
		})
	}
	wg.Wait()
	if n := s.count("/api/v2/signingCert"); n != 1 {
		t.Errorf("%d certificates for ten statements, want one", n)
	}
	if n := s.count("/tsa"); n != 10 {
		t.Errorf("%d time stamps asked for, want 10: a refusal is not asked again", n)
	}
}

func TestKeylessFailures(t *testing.T) {
	status := func(code int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			fmt.Fprint(w, body)
			return true
		}
	}
	for name, c := range map[string]struct {
		claims    string
		now       time.Duration // our clock, ahead
		fulcio    func(http.ResponseWriter, *http.Request) bool
		want, way string
		asked     int
	}{
		"down":         {claims: good, fulcio: status(503, "later"), want: "it failed 3 times, at last with 503 later", way: "when the service is up", asked: 3},
		"busy":         {claims: good, fulcio: status(429, ""), want: "it failed 3 times, at last with 429", way: "when the service is up", asked: 3},
		"refused":      {claims: good, fulcio: status(400, `{"message":"no such\nissuer"}`), want: "it refused (400): no such issuer", way: `Fulcio must know the issuer "https://issuer.example"`, asked: 1},
		"audience":     {claims: `{"iss":"i","aud":["vault","k8s"],"sub":"x","exp":99999999999}`, fulcio: status(401, "no"), want: "it refused (401): no", way: `for the audience "vault, k8s", and Fulcio takes "sigstore"`, asked: 1},
		"expired":      {claims: `{"iss":"i","aud":"sigstore","exp":1}`, want: "it expired at 1970-01-01T00:00:01Z", way: "get a fresh token"},
		"clock behind": {claims: good[:len(good)-1] + fmt.Sprintf(`,"iat":%d}`, time.Now().Add(time.Hour).Unix()), want: "after now", way: "set this machine's clock"},
		"clock ahead":  {claims: good, now: time.Hour, fulcio: status(400, "no"), want: "it refused (400)", way: "set this machine's clock: it is 1h0m", asked: 1},
		"elsewhere": {claims: good, fulcio: func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://evil.example", 307)
			return true
		}, want: "it refused (307)", asked: 1},
		"no certificate": {claims: good, fulcio: status(200, "{}"), want: "no certificates", asked: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServices(t)
			s.before = c.fulcio
			signer, err := sign.OpenKeyless(sign.KeylessOptions{
				Token: tokenFile(t, jwt(c.claims)), Config: config(s.URL),
				Check: func(*attest.Bundle, sign.Identity) error { return errors.New("not reached") },
				Now:   func() time.Time { return time.Now().Add(c.now) },
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = signer.Sign(t.Context(), testStatement(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want it to hold %q", err, c.want)
			}
			var known *sign.KeylessError
			if errors.As(err, &known) && !strings.Contains(known.Hint(), c.way) || known == nil && c.way != "" {
				t.Errorf("the way out is %q, want it to hold %q", known.Hint(), c.way)
			}
			if n := s.count("/api/v2/signingCert"); n != c.asked {
				t.Errorf("asked %d times, want %d", n, c.asked)
			}
			if strings.Contains(err.Error(), jwt(c.claims)) {
				t.Error("the error holds the token")
			}
		})
	}
}

// silent answers nothing until the asking ends.
type silent struct{ asked int }

func (s *silent) RoundTrip(req *http.Request) (*http.Response, error) {
	s.asked++
	<-req.Context().Done()
	return nil, req.Context().Err()
}

// A service that keeps one waiting is given up, in a bounded time.
func TestKeylessSlow(t *testing.T) {
	token := tokenFile(t, jwt(good))
	synctest.Test(t, func(t *testing.T) {
		slow := &silent{}
		var told []string
		signer, err := sign.OpenKeyless(sign.KeylessOptions{
			Token: token, Config: config("https://fulcio.example"), Transport: slow, Now: func() time.Time { return time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC) },
			Tell: func(text string) { told = append(told, text) },
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		_, err = signer.Sign(t.Context(), testStatement(t))
		if err == nil || !strings.Contains(err.Error(), "asking the certificate authority at https://fulcio.example: no answer in 3 tries, at last: nothing came within 20s") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(start); took < time.Minute || took > 65*time.Second || slow.asked != 3 || len(told) != 2 {
			t.Errorf("given up after %s and %d tries, told %q", took, slow.asked, told)
		}
	})
}

func TestKeylessConfig(t *testing.T) {
	for name, c := range map[string]struct{ config, want string }{
		"plain HTTP":   {string(config("http://fulcio.example")), "only https is asked"},
		"nothing":      {"", "reading the signing config"},
		"twice":        {`{"mediaType":"a","mediaType":"b"}`, "mediaType"},
		"old":          {`{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.1+json"}`, "media type"},
		"no authority": {`{"mediaType":"application/vnd.dev.sigstore.signingconfig.v0.2+json"}`, "certificate authorities"},
		"no selector":  {strings.ReplaceAll(string(config("https://x.example")), "tsaUrls", "rekorTlogUrls"), "does not say how many of its logs"},
	} {
		_, err := sign.OpenKeyless(sign.KeylessOptions{Config: []byte(c.config)})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	// A log that proves the time cannot be left out.
	logged := strings.ReplaceAll(strings.ReplaceAll(string(config("https://x.example")), "tsaUrls", "rekorTlogUrls"), "tsaConfig", "rekorTlogConfig")
	if _, err := sign.OpenKeyless(sign.KeylessOptions{Config: []byte(logged)}); err != nil {
		t.Errorf("with the log: %v", err)
	}
	if _, err := sign.OpenKeyless(sign.KeylessOptions{Config: []byte(logged), Unlogged: true}); err == nil || !strings.Contains(err.Error(), "without a log nothing would prove when was signed") {
		t.Errorf("without it: %v", err)
	}
}

func TestFindToken(t *testing.T) {
	platform := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == "POST" && r.URL.Path == "/jobs/7/oidc/tokens" && r.Header.Get("Authorization") == "Token agent":
			fmt.Fprintf(w, `{"token":%q}`, jwt(good))
		case r.URL.Path == "/github" && r.URL.Query().Get("audience") == "sigstore" && r.Header.Get("Authorization") == "Bearer job":
			fmt.Fprintf(w, `{"value":%q}`, jwt(good))
		case strings.HasSuffix(r.URL.Path, "/service-accounts/default/identity") && r.Header.Get("Metadata-Flavor") == "Google":
			fmt.Fprintln(w, jwt(good))
		default:
			http.Error(w, "not for you", 403)
		}
	}))
	defer platform.Close()
	for name, c := range map[string]struct {
		env  map[string]string
		ref  string
		want string // of the error; "": it signs
	}{
		"GitHub":             {env: map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": platform.URL + "/github?x=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "job"}},
		"GitHub, plain":      {env: map[string]string{"ACTIONS_ID_TOKEN_REQUEST_URL": "http://x.example", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "job"}, want: "only https is asked"},
		"GitHub, no right":   {env: map[string]string{"GITHUB_ACTIONS": "true"}, want: "GitHub Actions gives this job none"},
		"GitLab":             {env: map[string]string{"SIGSTORE_ID_TOKEN": jwt(good)}},
		"GitLab, none":       {env: map[string]string{"GITLAB_CI": "true"}, want: "GitLab gives this job none"},
		"Buildkite":          {env: map[string]string{"BUILDKITE_AGENT_ACCESS_TOKEN": "agent", "BUILDKITE_JOB_ID": "7", "BUILDKITE_AGENT_ENDPOINT": platform.URL}},
		"Buildkite, outside": {env: map[string]string{"BUILDKITE": "true"}, want: "no BUILDKITE_AGENT_ACCESS_TOKEN"},
		"Google":             {env: map[string]string{"GCE_METADATA_HOST": strings.TrimPrefix(platform.URL, "http://")}},
		"variable":           {env: map[string]string{"T": jwt(good)}, ref: "env:T"},
		"no variable":        {ref: "env:T", want: "the variable T is not set"},
		"standard input":     {ref: "-"},
		"no file":            {ref: "/none/such", want: "reading /none/such: no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			src, err := sign.FindToken(sign.TokenOptions{Ref: c.ref, Stdin: strings.NewReader(jwt(good) + "\n"), Env: func(n string) string { return c.env[n] }})
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("error %v, want it to hold %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s := newServices(t)
			s.before = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") != "Bearer "+jwt(good) {
					t.Errorf("Fulcio was shown %q", r.Header.Get("Authorization"))
				}
				w.WriteHeader(400)
				return true
			}
			signer, err := sign.OpenKeyless(sign.KeylessOptions{Token: src, Config: config(s.URL)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := signer.Sign(t.Context(), testStatement(t)); err == nil || s.count("/api/v2/signingCert") != 1 {
				t.Errorf("Fulcio was not asked: %v", err)
			}
		})
	}
}

func FuzzIdentityToken(f *testing.F) {
	f.Add(jwt(good))
	f.Add(jwt(`{"aud":[1],"exp":1e400}`))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		src, err := sign.FindToken(sign.TokenOptions{Ref: "-", Stdin: strings.NewReader(token)})
		if err == nil && strings.Count(strings.TrimSpace(token), ".") != 2 {
			t.Errorf("%q is taken for a token of %s", token, src)
		}
	})
}
