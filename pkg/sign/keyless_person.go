package sign

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

const (
	// patience is how long a person may take to log in.
	patience = 5 * time.Minute

	callback = "/auth/callback"
)

// Person is somebody in front of this process who can log in. Sigstore's own
// flow is not taken: it knows no context and bounds no answer.
type Person struct {
	// Browse opens an address in their browser; nil: there is none here, and they
	// are given a code to enter elsewhere.
	Browse func(address string) error
	// Say shows them a line.
	Say func(text string)
}

// source asks the person when the token is needed.
func (p *Person) source(base http.RoundTripper) TokenSource {
	t := TokenSource{from: "you, at the identity provider", way: "log in, or give --identity-token FILE, env:NAME or -"}
	t.ask = func(ctx context.Context, issuer string) (string, error) {
		if issuer == "" {
			return "", errors.New("the signing config names no identity provider (oidcUrls)")
		}
		inTime, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		w := &wire{ctx: inTime, base: base, now: time.Now}
		token, err := p.login(oidc.ClientContext(inTime, &http.Client{Transport: once{&line{w, "the identity provider"}}}), issuer)
		var refused *oauth2.RetrieveError
		switch {
		case err == nil:
			return token, nil
		case ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
			return "", fmt.Errorf("nobody logged in within %s", patience)
		case errors.As(err, &refused) && refused.ErrorCode != "":
			return "", refusal(refused.ErrorCode, refused.ErrorDescription)
		}
		return "", errors.New(clip(err.Error()))
	}
	return t
}

func refusal(code, description string) error {
	if description != "" {
		code += ": " + description
	}
	return fmt.Errorf("it refused (%s)", clip(code))
}

// once asks once: a login is not repeated without the person.
type once struct{ *line }

func (o once) RoundTrip(req *http.Request) (*http.Response, error) { return o.line.once(req) }

// login is the authorization code flow with PKCE (RFC 7636) through a browser
// on this machine (RFC 8252, section 7.3), or the device flow (RFC 8628) without
// one.
func (p *Person) login(ctx context.Context, issuer string) (string, error) {
	provider, err := oidc.NewProvider(ctx, issuer)
	if err != nil {
		return "", err
	}
	var says struct {
		Methods []string `json:"code_challenge_methods_supported"`
	}
	if err := provider.Claims(&says); err != nil {
		return "", err
	}
	if !slices.Contains(says.Methods, "S256") {
		return "", errors.New("it does not speak PKCE (S256), so another program here could take the answer")
	}
	config := oauth2.Config{ClientID: audience, Endpoint: provider.Endpoint(), Scopes: []string{oidc.ScopeOpenID, "email"}}
	config.Endpoint.AuthStyle = oauth2.AuthStyleInParams // a client without a secret
	endpoints := []string{config.Endpoint.AuthURL, config.Endpoint.TokenURL}
	ask := p.browser
	if p.Browse == nil {
		endpoints[0], ask = config.Endpoint.DeviceAuthURL, p.device
	}
	for _, address := range endpoints {
		if err := checkAddress(address); err != nil {
			return "", fmt.Errorf("an address of the identity provider: %w", err)
		}
	}
	verifier := oauth2.GenerateVerifier()
	token, nonce, err := ask(ctx, config, verifier)
	if err != nil {
		return "", err
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return "", errors.New("it answered without an identity token")
	}
	id, err := provider.VerifierContext(ctx, &oidc.Config{ClientID: audience}).Verify(ctx, raw)
	if err != nil {
		return "", err
	}
	if nonce != "" && subtle.ConstantTimeCompare([]byte(id.Nonce), []byte(nonce)) != 1 {
		return "", errors.New("its identity token is no answer to this login")
	}
	return raw, nil
}

// browser waits on a port of loopback for what the provider sends the browser
// back with.
func (p *Person) browser(ctx context.Context, config oauth2.Config, verifier string) (_ *oauth2.Token, nonce string, err error) {
	ln, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return nil, "", err
	}
	state, nonce := rand.Text(), rand.Text()
	answers := make(chan url.Values, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		// Anybody on this machine can ask this port: one goes on waiting.
		if r.URL.Path != callback || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "this is no answer to a login of waxseal's", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		io.WriteString(w, "waxseal has its answer; close this page and go back to the terminal.\n")
		select {
		case answers <- q:
		default:
		}
	})}
	go server.Serve(ln)
	// The page is sent whole before its server goes.
	defer server.Shutdown(context.WithoutCancel(ctx))
	config.RedirectURL = fmt.Sprintf("http://localhost:%d%s", ln.Addr().(*net.TCPAddr).Port, callback)
	address := config.AuthCodeURL(state, oauth2.S256ChallengeOption(verifier), oidc.Nonce(nonce))
	p.Say("log in to sign: your browser opens " + address)
	p.Say("whoever you log in as stands in the certificate and, for good, in its logs")
	if err := p.Browse(address); err != nil {
		p.Say("opening the browser: " + clip(err.Error()) + "; open that address yourself")
	}
	select {
	case <-ctx.Done():
		return nil, "", ctx.Err()
	case q := <-answers:
		if code := q.Get("error"); code != "" {
			return nil, "", refusal(code, q.Get("error_description"))
		}
		token, err := config.Exchange(ctx, q.Get("code"), oauth2.VerifierOption(verifier))
		return token, nonce, err
	}
}

// device has the person enter a code in any browser. The flow has no nonce.
func (p *Person) device(ctx context.Context, config oauth2.Config, verifier string) (_ *oauth2.Token, nonce string, err error) {
	d, err := config.DeviceAuth(ctx, oauth2.S256ChallengeOption(verifier))
	if err != nil {
		return nil, "", err
	}
	p.Say(fmt.Sprintf("log in to sign: enter the code %s at %s, in a browser on any machine", clip(d.UserCode), clip(d.VerificationURI)))
	p.Say("whoever you log in as stands in the certificate and, for good, in its logs")
	token, err := config.DeviceAccessToken(ctx, d, oauth2.VerifierOption(verifier))
	return token, "", err
}
