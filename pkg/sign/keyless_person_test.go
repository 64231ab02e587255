package sign_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

// provider is an identity provider whose answers can be changed. The real flow,
// with Fulcio behind it, is in the script keyless_tokens.
type provider struct {
	*httptest.Server
	key    *ecdsa.PrivateKey
	change func(claims map[string]any)
	says   func(discovery map[string]any)
	nonce  string
}

func newProvider(t *testing.T) *provider {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key, change: func(map[string]any) {}, says: func(map[string]any) {}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	enc := base64.RawURLEncoding
	out := map[string]any{}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		out = map[string]any{"issuer": p.URL, "jwks_uri": p.URL + "/keys", "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token",
			"device_authorization_endpoint": p.URL + "/device", "id_token_signing_alg_values_supported": []string{"ES256"}, "code_challenge_methods_supported": []string{"S256"}}
		p.says(out)
	case "/keys":
		point, _ := p.key.PublicKey.Bytes() // of a curve that it knows
		out["keys"] = []any{map[string]string{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": enc.EncodeToString(point[1:33]), "y": enc.EncodeToString(point[33:])}}
	case "/token":
		claims := map[string]any{"iss": p.URL, "aud": "sigstore", "sub": "ann", "nonce": p.nonce, "exp": time.Now().Add(time.Hour).Unix()}
		p.change(claims)
		body, _ := json.Marshal(claims)
		text := enc.EncodeToString([]byte(`{"alg":"ES256"}`)) + "." + enc.EncodeToString(body)
		sum := sha256.Sum256([]byte(text))
		x, y, _ := ecdsa.Sign(rand.Reader, p.key, sum[:])
		sig := append(x.FillBytes(make([]byte, 32)), y.FillBytes(make([]byte, 32))...)
		out = map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": text + "." + enc.EncodeToString(sig)}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(out)
}

// browse sends the answer of a login that was approved.
func (p *provider) browse(t *testing.T) func(string) error {
	return func(address string) error {
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		p.nonce = u.Query().Get("nonce")
		back := u.Query().Get("redirect_uri") + "?code=c&state=" + url.QueryEscape(u.Query().Get("state"))
		go func() {
			resp, err := http.Get(back)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		}()
		return nil
	}
}

// withProvider is config with an identity provider.
func withProvider(address, issuer string) []byte {
	return []byte(strings.Replace(string(config(address)), `"caUrls"`,
		fmt.Sprintf(`"oidcUrls":[{"url":%q,"majorApiVersion":1,"validFor":{"start":"2020-01-01T00:00:00Z"},"operator":"o"}],"caUrls"`, issuer), 1))
}

func TestPerson(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*provider)
		none   bool // no provider in the signing config
		want   string
		asked  int // certificates
	}{
		"approved":             {want: "asking the time-stamping authority", asked: 1},
		"another login's":      {change: func(p *provider) { p.change = func(c map[string]any) { c["nonce"] = "x" } }, want: "is no answer to this login"},
		"for another audience": {change: func(p *provider) { p.change = func(c map[string]any) { c["aud"] = "vault" } }, want: "audience"},
		"of another issuer":    {change: func(p *provider) { p.change = func(c map[string]any) { c["iss"] = "https://evil.example" } }, want: "different provider"},
		"past":                 {change: func(p *provider) { p.change = func(c map[string]any) { c["exp"] = 1 } }, want: "expired"},
		"without PKCE": {change: func(p *provider) {
			p.says = func(d map[string]any) { d["code_challenge_methods_supported"] = []string{"plain"} }
		}, want: "does not speak PKCE"},
		"over the open network": {change: func(p *provider) {
			p.says = func(d map[string]any) { d["token_endpoint"] = "http://login.example/token" }
		}, want: `"http://login.example/token": only https is asked`},
		"of another name": {change: func(p *provider) {
			p.says = func(d map[string]any) { d["issuer"] = "https://evil.example" }
		}, want: "did not match"},
		"no provider": {none: true, want: "names no identity provider"},
	} {
		t.Run(name, func(t *testing.T) {
			p, s := newProvider(t), newServices(t)
			if c.change != nil {
				c.change(p)
			}
			config := config(s.URL)
			if !c.none {
				config = withProvider(s.URL, p.URL)
			}
			source, err := sign.FindToken(sign.TokenOptions{Env: func(string) string { return "" }, Person: &sign.Person{Browse: p.browse(t), Say: func(string) {}}})
			if err != nil {
				t.Fatal(err)
			}
			signer, err := sign.OpenKeyless(sign.KeylessOptions{Token: source, Config: config, Check: func(*attest.Bundle, sign.Identity) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			defer signer.Close()
			if _, err := signer.Sign(t.Context(), testStatement(t)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want it to hold %q", err, c.want)
			}
			if n := s.count("/api/v2/signingCert"); n != c.asked {
				t.Errorf("%d certificates were asked for, want %d", n, c.asked)
			}
		})
	}
}

// Whoever waits for a person can be interrupted.
func TestPersonInterrupted(t *testing.T) {
	for name, browse := range map[string]func(context.CancelFunc) func(string) error{
		"browser": func(cancel context.CancelFunc) func(string) error {
			return func(string) error { cancel(); return nil }
		},
		"code": func(context.CancelFunc) func(string) error { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			p, s := newProvider(t), newServices(t)
			say := func(text string) {
				if strings.Contains(text, "enter the code") {
					cancel()
				}
			}
			source, err := sign.FindToken(sign.TokenOptions{Env: func(string) string { return "" }, Person: &sign.Person{Browse: browse(cancel), Say: say}})
			if err != nil {
				t.Fatal(err)
			}
			signer, err := sign.OpenKeyless(sign.KeylessOptions{Token: source, Config: withProvider(s.URL, p.URL)})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := signer.Sign(ctx, testStatement(t)); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
				t.Errorf("error %v, want the interruption", err)
			}
		})
	}
}
