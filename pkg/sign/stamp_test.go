package sign_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/digitorus/timestamp"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

// issued is a certificate with its key.
type issued struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate by an authority, or a root for none.
func issue(t *testing.T, name string, by *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
	}
	change(template)
	if by == nil {
		by = &issued{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, key.Public(), by.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{cert, key}
}

func (i *issued) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

func authority(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

func signerOf(c *x509.Certificate) {
	c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	c.URIs = []*url.URL{{Scheme: "https", Host: "ci.acme.example"}}
}

// stamper is a time-stamping authority. The real one is in the scripts.
type stamper struct {
	*issued
	change func(*timestamp.Timestamp)
}

func (s *stamper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), 400)
		return
	}
	req, err := timestamp.ParseRequest(raw)
	if err != nil || r.Header.Get("Content-Type") != "application/timestamp-query" {
		http.Error(w, "not a query", 400)
		return
	}
	stamp := &timestamp.Timestamp{
		HashAlgorithm: req.HashAlgorithm, HashedMessage: req.HashedMessage, Nonce: req.Nonce, AddTSACertificate: req.Certificates,
		Time: time.Now(), Policy: []int{1, 2, 3}, Accuracy: time.Second,
	}
	if s.change != nil {
		s.change(stamp)
	}
	out, err := stamp.CreateResponseWithOpts(s.cert, s.key, crypto.SHA256)
	if err != nil {
		http.Error(w, err.Error(), 500)
		return
	}
	w.Write(out)
}

func newStamper(t *testing.T) *stamper {
	return &stamper{issued: issue(t, "stamps", nil, func(c *x509.Certificate) {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageDigitalSignature, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}
	})}
}

// keyOf writes the key of a certificate to a file and opens it.
func keyOf(t *testing.T, i *issued) sign.Signer {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	s, err := sign.Open(t.Context(), path, sign.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStampBringsAllAlong(t *testing.T) {
	root := issue(t, "root", nil, authority)
	between := issue(t, "between", root, authority)
	leaf := issue(t, "signer", between, signerOf)
	direct := issue(t, "direct", root, signerOf)
	tsa := newStamper(t)
	server := httptest.NewServer(tsa)
	defer server.Close()
	for name, c := range map[string]struct {
		of    *issued
		chain bool
		above []byte
		media string
		along int
	}{
		"a chain":          {leaf, true, append(between.pem(), root.pem()...), attest.BundleV02MediaType, 2},
		"below the root":   {direct, true, root.pem(), attest.BundleMediaType, 1},
		"a key alone":      {leaf, false, nil, attest.BundleMediaType, 0},
		"its chain hidden": {leaf, true, nil, attest.BundleMediaType, 1},
	} {
		t.Run(name, func(t *testing.T) {
			checked := 0
			o := sign.StampOptions{Stampers: []string{server.URL, server.URL}, Check: func(*attest.Bundle) error { checked++; return nil }}
			if c.chain {
				chain, err := sign.ParseChain(c.of.pem(), c.above)
				if err != nil {
					t.Fatal(err)
				}
				o.Chain = chain
			}
			key := keyOf(t, c.of)
			s, err := sign.Stamp(key, o)
			if err != nil {
				t.Fatal(err)
			}
			b, err := s.Sign(t.Context(), testStatement(t))
			if err != nil {
				t.Fatal(err)
			}
			m := b.Proto().GetVerificationMaterial()
			along := len(m.GetX509CertificateChain().GetCertificates())
			if m.GetCertificate() != nil {
				along = 1
			}
			if b.Proto().GetMediaType() != c.media || along != c.along || checked != 1 || (b.KeyHint() == "") != c.chain {
				t.Errorf("%s with %d certificates, checked %d times, hint %q", b.Proto().GetMediaType(), along, checked, b.KeyHint())
			}
			if !bytes.Equal(s.PublicKey(), key.PublicKey()) || !sign.Made(key.PublicKey(), b) {
				t.Error("it is not the key's signature")
			}
			stamps := m.GetTimestampVerificationData().GetRfc3161Timestamps()
			if len(stamps) != 2 {
				t.Fatalf("%d time stamps", len(stamps))
			}
			stamp, err := timestamp.ParseResponse(stamps[0].GetSignedTimestamp())
			if err != nil || len(stamp.Certificates) == 0 {
				t.Errorf("the time stamp brings no certificate: %v", err)
			}
		})
	}
}

func TestStampFailures(t *testing.T) {
	root := issue(t, "root", nil, authority)
	leaf := issue(t, "signer", root, signerOf)
	chain, err := sign.ParseChain(leaf.pem(), root.pem())
	if err != nil {
		t.Fatal(err)
	}
	status := func(code int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code); io.WriteString(w, body) }
	}
	rejected, err := timestamp.CreateErrorResponse(timestamp.Rejection, timestamp.BadRequest)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(change func(*timestamp.Timestamp)) http.Handler {
		s := newStamper(t)
		s.change = change
		return s
	}
	no := errors.New("nothing that is trusted proves when it was signed")
	for name, c := range map[string]struct {
		server    http.Handler
		check     error
		want, way string
	}{
		"down":             {status(503, "later"), nil, "it failed 3 times, at last with 503 later", "when the service is up, or name another with --timestamp-server-url"},
		"elsewhere":        {http.RedirectHandler("https://evil.example", 307), nil, "it refused (307)", "RFC 3161"},
		"not there":        {http.NotFoundHandler(), nil, "it refused (404): 404 page not found", "the address that its operator names"},
		"a web page":       {status(200, "<html>hello"), nil, "its answer is no time stamp", "the address that its operator names"},
		"nothing":          {status(200, ""), nil, "its answer is no time stamp", "the address that its operator names"},
		"endless":          {status(200, strings.Repeat("x", 5<<20)), nil, "larger than", "when the service is up"},
		"rejected":         {status(200, string(rejected)), nil, "its answer is no time stamp: the request is rejected", "the address that its operator names"},
		"of another":       {changed(func(s *timestamp.Timestamp) { s.HashedMessage = make([]byte, 32) }), nil, "its time stamp is of something else", "the address"},
		"played again":     {changed(func(s *timestamp.Timestamp) { s.Nonce = big.NewInt(1) }), nil, "its time stamp was made for another request", "the address"},
		"without a nonce":  {changed(func(s *timestamp.Timestamp) { s.Nonce = nil }), nil, "its time stamp was made for another request", "the address"},
		"not trusted":      {newStamper(t), no, "checking what was just signed: nothing that is trusted", "of this time-stamping authority; nothing was written"},
		"our clock is off": {changed(func(s *timestamp.Timestamp) { s.Time = time.Now().Add(-time.Hour) }), no, "checking what was just signed", "set this machine's clock: it is 1h0m"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(c.server)
			defer server.Close()
			s, err := sign.Stamp(keyOf(t, leaf), sign.StampOptions{Chain: chain, Stampers: []string{server.URL}, Check: func(*attest.Bundle) error { return c.check }})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Sign(t.Context(), testStatement(t))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want it to hold %q", err, c.want)
			}
			var known *sign.KeylessError
			if !errors.As(err, &known) {
				t.Errorf("error %T has no way out", err)
			} else if !strings.Contains(known.Hint(), c.way) {
				t.Errorf("the way out is %q, want it to hold %q", known.Hint(), c.way)
			}
		})
	}

	// Whoever waits can stop it.
	ctx, stop := context.WithCancel(t.Context())
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		stop()
		<-r.Context().Done()
	}))
	defer silent.Close()
	s, err := sign.Stamp(keyOf(t, leaf), sign.StampOptions{Chain: chain, Stampers: []string{silent.URL}, Check: func(*attest.Bundle) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(ctx, testStatement(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}

	// What could never sign is refused at once.
	for want, o := range map[string]sign.StampOptions{
		"no time-stamping authority": {Chain: chain},
		"is no address":              {Chain: chain, Stampers: []string{"ftp://tsa.example"}},
		"is another key's":           {Chain: &sign.Chain{Leaf: root.cert}, Stampers: []string{"http://tsa.example"}},
	} {
		if _, err := sign.Stamp(keyOf(t, leaf), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestParseChain(t *testing.T) {
	root := issue(t, "root", nil, authority)
	upper := issue(t, "upper", root, authority)
	lower := issue(t, "lower", upper, authority)
	leaf := issue(t, "signer", lower, signerOf)
	stranger := issue(t, "lower", root, authority) // of the same name
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	for name, c := range map[string]struct {
		leaf, above []byte
		between     []*issued
		roots       int
	}{
		"in order":                  {leaf.pem(), join(lower.pem(), upper.pem(), root.pem()), []*issued{lower, upper}, 1},
		"in another order":          {leaf.pem(), join(root.pem(), upper.pem(), lower.pem()), []*issued{lower, upper}, 1},
		"in one file":               {join(leaf.pem(), lower.pem(), upper.pem()), nil, []*issued{lower, upper}, 0},
		"one is missing":            {leaf.pem(), join(lower.pem(), root.pem()), []*issued{lower}, 1},
		"one of the same name":      {leaf.pem(), join(stranger.pem(), lower.pem(), upper.pem()), []*issued{lower, upper}, 0},
		"others that do not belong": {leaf.pem(), join(stranger.pem(), root.pem()), nil, 1},
	} {
		chain, err := sign.ParseChain(c.leaf, c.above)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same := len(chain.Between) == len(c.between) && bytes.Count(chain.Roots, []byte("BEGIN")) == c.roots && chain.Leaf.Equal(leaf.cert)
		for i := range c.between {
			same = same && chain.Between[i].Equal(c.between[i].cert)
		}
		if !same {
			t.Errorf("%s: %d between, roots %s", name, len(chain.Between), chain.Roots)
		}
	}
	for want, c := range map[string][2][]byte{
		"it has no certificate":              {nil, nil},
		"openssl x509 -inform DER":           {leaf.cert.Raw, nil},
		"is an authority's certificate":      {join(lower.pem(), leaf.pem()), nil},
		"data that is not PEM":               {join(leaf.pem(), []byte("x")), nil},
		"its chain: it has no certificate":   {leaf.pem(), []byte{}},
		"its chain: more than 100":           {leaf.pem(), bytes.Repeat(root.pem(), 101)},
		`PEM block is "PRIVATE KEY", want "`: {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte{1}}), nil},
		"larger than":                        {make([]byte, attest.MaxTrustedRoot+1), nil},
	} {
		if _, err := sign.ParseChain(c[0], c[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, leaf, above []byte) {
		if c, err := sign.ParseChain(leaf, above); err == nil && (c.Leaf == nil || c.Leaf.IsCA) {
			t.Error("a chain without a signer")
		}
	})
}
