package ci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

// patience is how long the platform and the issuer may take, each.
const patience = 15 * time.Second

// token gets an identity token: the one that was named, or the platform's.
func (o Options) token(ctx context.Context, p *platform) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	find := sign.TokenOptions{Ref: o.Token, Env: o.Env, Transport: o.Transport, Audience: Audience}
	if o.Token == "" {
		switch p.name {
		case "github-actions", "buildkite":
		case "gitlab":
			name := "WAXSEAL_ID_TOKEN"
			if o.Env(name) == "" {
				name = "SIGSTORE_ID_TOKEN"
			}
			if o.Env(name) == "" {
				return "", fmt.Errorf("GitLab gives this job no identity token: %s", p.way)
			}
			find.Ref = "env:" + name
		case "circleci":
			find.Ref = "env:CIRCLE_OIDC_TOKEN_V2"
		case "azure-pipelines":
			return o.azure(ctx, p)
		default:
			return "", errors.New(p.way)
		}
	}
	src, err := sign.FindToken(find)
	var token string
	if err == nil {
		token, err = src.Token(ctx)
	}
	if err != nil && p != nil {
		return "", fmt.Errorf("%w: %s", err, p.way)
	}
	return token, err
}

// azure is
// https://learn.microsoft.com/en-us/rest/api/azure/devops/distributedtask/oidctoken/create.
func (o Options) azure(ctx context.Context, p *platform) (string, error) {
	address, bearer := o.Env("SYSTEM_OIDCREQUESTURI"), o.Env("SYSTEM_ACCESSTOKEN")
	if address == "" || bearer == "" {
		return "", fmt.Errorf("Azure Pipelines gives this step no token to ask with: %s", p.way)
	}
	u, err := url.Parse(address)
	if err == nil {
		err = checkIssuer(address)
	}
	if err != nil {
		return "", fmt.Errorf("SYSTEM_OIDCREQUESTURI: %w", err)
	}
	q := u.Query()
	q.Set("api-version", "7.1")
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+bearer)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: o.Transport, CheckRedirect: noRedirect}).Do(req)
	if err != nil {
		return "", fmt.Errorf("asking Azure Pipelines for an identity token: %w", withoutAddress(err))
	}
	defer resp.Body.Close()
	var answer struct {
		Token string `json:"oidcToken"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, attest.MaxKey)).Decode(&answer)
	if err != nil || resp.StatusCode != http.StatusOK || answer.Token == "" {
		return "", fmt.Errorf("asking Azure Pipelines for an identity token: it answers %s: %s", resp.Status, p.way)
	}
	return answer.Token, nil
}

// claims are those of a verified token.
type claims map[string]any

// text is a claim that is a text or a number, as text; "" where it is neither.
func (c claims) text(name string) string {
	switch v := c[name].(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	case bool:
		return strconv.FormatBool(v)
	}
	return ""
}

// verified is a token that was checked.
type verified struct {
	issuer, subject string
	platform        string // whose issuer it is, "" where anybody could run it
	read            func(claims) attestations.CIJob
	claims          claims
}

func (v *verified) job() attestations.CIJob {
	if v.read == nil {
		return attestations.CIJob{}
	}
	j := v.read(v.claims)
	if v.platform == "" && j.Runner != "self-hosted" {
		j.Runner = "" // whose runner it was is the platform's own issuer's to say
	}
	return clean(j)
}

// verify checks a token's signature, time and audience (OpenID Connect Core
// 1.0, section 3.1.3.7) with the keys that its issuer publishes (Discovery 1.0,
// section 4).
func (o Options) verify(ctx context.Context, token string, here *platform) (*verified, error) {
	claimed, err := sign.Issuer(token)
	if err != nil {
		return nil, err
	}
	if err := checkIssuer(claimed); err != nil {
		return nil, fmt.Errorf("the identity token's issuer: %w", err)
	}
	client := &http.Client{Transport: bounded{o.Transport}, Timeout: patience, CheckRedirect: noRedirect}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, claimed)
	if err != nil {
		return nil, fmt.Errorf("reading the keys of %s: %w", clip(claimed), withoutAddress(err))
	}
	got, err := provider.VerifierContext(ctx, &oidc.Config{SkipClientIDCheck: true, Now: o.Now}).Verify(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("verifying the identity token of %s: %w", clip(claimed), withoutAddress(err))
	}
	if !slices.ContainsFunc(got.Audience, func(a string) bool { return ours(a, claimed) }) {
		return nil, fmt.Errorf("verifying the identity token of %s: it is for %q, not for %s", clip(claimed), clip(strings.Join(got.Audience, ", ")), Audience)
	}
	if got.IssuedAt.After(o.Now().Add(5 * time.Minute)) {
		return nil, fmt.Errorf("verifying the identity token of %s: it was issued after now: set this machine's clock", clip(claimed))
	}
	v := &verified{issuer: got.Issuer, subject: got.Subject}
	var raw json.RawMessage
	if err := got.Claims(&raw); err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&v.claims); err != nil {
		return nil, fmt.Errorf("reading the identity token of %s: %w", clip(claimed), err)
	}
	for _, p := range o.platforms() {
		if p.issued != nil && p.issued(got.Issuer) {
			v.platform, v.read = p.name, p.job
			return v, nil
		}
	}
	// An issuer that anybody can run says what it likes, and stands there by its
	// own name: the variables only tell how to read its claims.
	if here != nil {
		v.read = here.job
	}
	return v, nil
}

// ours reports whether a token for the audience can be for us: made on our
// asking, for Sigstore, which the same job may have, or for what the platform
// always writes.
func ours(audience, issuer string) bool {
	org, isCircle := strings.CutPrefix(issuer, "https://oidc.circleci.com/org/")
	return audience == Audience || audience == "sigstore" || isCircle && audience == org ||
		audience == "api://AzureADTokenExchange" && strings.HasPrefix(issuer, "https://vstoken.dev.azure.com/")
}

// checkIssuer refuses an address over which keys could be changed on their way.
func checkIssuer(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.User != nil {
		return fmt.Errorf("%q is no address", clip(address))
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "https" || u.Scheme == "http" && (u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()) {
		return nil
	}
	return fmt.Errorf("%q: only https is asked, or http on this machine", clip(address))
}

func noRedirect(*http.Request, []*http.Request) error {
	return errors.New("it sends elsewhere")
}

// withoutAddress takes the address out of an error of net/http: it may hold
// what is nobody's business.
func withoutAddress(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// bounded ends bodies at what an issuer's answer may have.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, attest.MaxTrustedRoot), resp.Body}
	}
	return resp, err
}

func usualTransport() http.RoundTripper {
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: patience}).DialContext,
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: patience, ResponseHeaderTimeout: patience,
	}
}
