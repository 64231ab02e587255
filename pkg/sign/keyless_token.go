package sign

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// audience is whom an identity token must be made for to be taken by Fulcio,
// where it is not configured otherwise.
const audience = "sigstore"

// TokenOptions configures FindToken.
type TokenOptions struct {
	// Ref is where the token is: a file, env:NAME, or - for Stdin. "" looks at
	// where this process runs.
	Ref   string
	Stdin io.Reader
	// Env is the environment.
	Env func(string) string
	// Person, where set, is asked where nothing else gives a token.
	Person *Person
	// Transport reaches the platform; default: the usual one.
	Transport http.RoundTripper
	// Audience is whom a platform is asked to make the token for; default:
	// "sigstore".
	Audience string
}

// TokenSource is where an identity token comes from. Make one with FindToken.
// It tells nobody the token but Fulcio.
type TokenSource struct {
	from string // "GitHub Actions"
	way  string // how the platform gives a good one
	get  func(context.Context) (string, error)
	// ask, in place of get, is told the issuer that the signing config names.
	ask func(ctx context.Context, issuer string) (string, error)
}

// String says where the token comes from.
func (t TokenSource) String() string { return t.from }

// FindToken finds the source of the identity token, and fails where there is
// none. A platform is asked when the token is needed: it lasts minutes.
func FindToken(o TokenOptions) (TokenSource, error) {
	if o.Transport == nil {
		o.Transport = usualTransport()
	}
	if o.Audience == "" {
		o.Audience = audience
	}
	if o.Ref != "" {
		return o.named()
	}
	for _, platform := range []func() (TokenSource, error){o.github, o.gitlab, o.buildkite, o.spiffe, o.google} {
		if t, err := platform(); err != nil || t.get != nil {
			return t, err
		}
	}
	if o.Person != nil {
		return o.Person.source(o.Transport), nil
	}
	return TokenSource{}, noToken(errors.New("nothing here gives one"),
		"run it where a platform does (GitHub Actions, GitLab, Buildkite, a SPIFFE agent, Google Cloud) or at a terminal, or give --identity-token FILE, env:NAME or -")
}

func noToken(err error, way string) error {
	return &KeylessError{"looking for an identity token", err, way}
}

func (o TokenOptions) named() (TokenSource, error) {
	t := TokenSource{from: o.Ref, way: "get a fresh token for the audience " + o.Audience + " right before, and give that"}
	name, isEnv := strings.CutPrefix(o.Ref, "env:")
	switch {
	case o.Ref == "-":
		t.from = "standard input"
		raw, err := readToken(o.Stdin)
		if err != nil {
			return t, noToken(err, t.way)
		}
		t.get = func(context.Context) (string, error) { return raw, nil }
	case isEnv:
		t.from = "the variable " + name
		raw := o.Env(name)
		if raw == "" {
			return t, noToken(fmt.Errorf("the variable %s is not set", name), "set it to the token, or name another variable")
		}
		t.get = func(context.Context) (string, error) { return raw, nil }
	default:
		// Read anew each time: whoever puts it there renews it.
		t.get = func(context.Context) (string, error) {
			f, err := os.Open(o.Ref)
			if err != nil {
				return "", cause(err)
			}
			defer f.Close()
			return readToken(f)
		}
	}
	// What cannot work later is better known now.
	raw, err := t.get(context.Background())
	if err != nil {
		return t, noToken(fmt.Errorf("reading %s: %w", t.from, err), t.way)
	}
	if _, err := readClaims(raw); err != nil {
		return t, noToken(fmt.Errorf("reading %s: %w", t.from, err), t.way)
	}
	return t, nil
}

func readToken(r io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(r, attest.MaxKey+1))
	if err == nil && len(raw) > attest.MaxKey {
		err = fmt.Errorf("larger than the %d bytes a token may have", attest.MaxKey)
	}
	return strings.TrimSpace(string(raw)), err
}

// github is
// https://docs.github.com/en/actions/reference/security/oidc#methods-for-requesting-the-oidc-token.
func (o TokenOptions) github() (TokenSource, error) {
	t := TokenSource{from: "GitHub Actions", way: "give the job \"permissions: id-token: write\""}
	address, bearer := o.Env("ACTIONS_ID_TOKEN_REQUEST_URL"), o.Env("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
	switch {
	case address != "" && bearer != "":
	case o.Env("GITHUB_ACTIONS") == "true":
		return t, noToken(errors.New("GitHub Actions gives this job none"), t.way+" in the workflow (a pull request from a fork gets none)")
	default:
		return TokenSource{}, nil
	}
	u, err := url.Parse(address)
	if err == nil {
		err = checkAddress(address)
	}
	if err != nil {
		return t, noToken(fmt.Errorf("ACTIONS_ID_TOKEN_REQUEST_URL: %w", err), t.way)
	}
	q := u.Query()
	q.Set("audience", o.Audience)
	u.RawQuery = q.Encode()
	t.get = func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Bearer "+bearer)
		return fetchToken(req, o.Transport, "value")
	}
	return t, nil
}

// gitlab is https://docs.gitlab.com/ci/secrets/id_token_authentication/.
func (o TokenOptions) gitlab() (TokenSource, error) {
	t := TokenSource{from: "GitLab (SIGSTORE_ID_TOKEN)", way: "give the job \"id_tokens: SIGSTORE_ID_TOKEN: aud: " + o.Audience + "\"; the token lasts as long as the job's timeout"}
	raw := o.Env("SIGSTORE_ID_TOKEN")
	switch {
	case raw != "":
		t.get = func(context.Context) (string, error) { return raw, nil }
		return t, nil
	case o.Env("GITLAB_CI") == "true":
		return t, noToken(errors.New("GitLab gives this job none in SIGSTORE_ID_TOKEN"), t.way)
	}
	return TokenSource{}, nil
}

// buildkite asks the agent's API, as "buildkite-agent oidc request-token" does.
func (o TokenOptions) buildkite() (TokenSource, error) {
	t := TokenSource{from: "Buildkite", way: "see whether \"buildkite-agent oidc request-token --audience " + o.Audience + "\" gives one in this job"}
	bearer, job, endpoint := o.Env("BUILDKITE_AGENT_ACCESS_TOKEN"), o.Env("BUILDKITE_JOB_ID"), o.Env("BUILDKITE_AGENT_ENDPOINT")
	switch {
	case bearer != "" && job != "":
	case o.Env("BUILDKITE") == "true":
		return t, noToken(errors.New("the job has no BUILDKITE_AGENT_ACCESS_TOKEN and BUILDKITE_JOB_ID"), "pass both into the container or the shell that this runs in")
	default:
		return TokenSource{}, nil
	}
	if endpoint == "" {
		endpoint = "https://agent.buildkite.com/v3"
	}
	if err := checkAddress(endpoint); err != nil {
		return t, noToken(fmt.Errorf("BUILDKITE_AGENT_ENDPOINT: %w", err), t.way)
	}
	t.get = func(ctx context.Context) (string, error) {
		address := strings.TrimRight(endpoint, "/") + "/jobs/" + url.PathEscape(job) + "/oidc/tokens"
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(`{"audience":"`+o.Audience+`"}`))
		if err != nil {
			return "", err
		}
		req.Header.Set("Authorization", "Token "+bearer)
		req.Header.Set("Content-Type", "application/json")
		return fetchToken(req, o.Transport, "token")
	}
	return t, nil
}

// google asks the metadata server
// (https://docs.cloud.google.com/compute/docs/instances/verifying-instance-identity)
// of a machine, a Cloud Run job or a Cloud Build step.
func (o TokenOptions) google() (TokenSource, error) {
	t := TokenSource{from: "Google Cloud's metadata server", way: "run it as a service account; the default one of the machine will do"}
	host := o.Env("GCE_METADATA_HOST")
	if host == "" {
		product, _ := os.ReadFile("/sys/class/dmi/id/product_name") // not there: not on a machine of Google's
		if !bytes.HasPrefix(product, []byte("Google")) && o.Env("K_SERVICE") == "" && o.Env("CLOUD_RUN_JOB") == "" {
			return TokenSource{}, nil
		}
		host = "metadata.google.internal"
	}
	t.get = func(ctx context.Context) (string, error) {
		address := "http://" + host + "/computeMetadata/v1/instance/service-accounts/default/identity?format=full&audience=" + o.Audience
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("Metadata-Flavor", "Google")
		return fetchToken(req, o.Transport, "")
	}
	return t, nil
}

// claims is what a token says of itself. Nothing rests on it: Fulcio alone
// verifies the token.
type claims struct {
	Issuer   string          `json:"iss"`
	Audience json.RawMessage `json:"aud"`
	Expires  float64         `json:"exp"`
	Issued   float64         `json:"iat"`
}

func readClaims(token string) (claims, error) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, errors.New("it is no identity token (want a JWT: three parts with dots between them)")
	}
	raw, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err == nil {
		err = json.Unmarshal(raw, &c)
	}
	if err != nil {
		return c, errors.New("it is no identity token: its middle part is not JSON in base64url")
	}
	return c, nil
}

// audiences is one text or a list of them (RFC 7519, section 4.1.3).
func (c claims) audiences() []string {
	var one string
	if json.Unmarshal(c.Audience, &one) == nil {
		return []string{one}
	}
	var all []string
	_ = json.Unmarshal(c.Audience, &all) // anything else names nobody
	return all
}

func (c claims) expires() time.Time { return time.Unix(int64(c.Expires), 0).UTC() }

// Token gets the token, and refuses one that its own words make useless. It is
// verified by nobody yet.
func (t TokenSource) Token(ctx context.Context) (string, error) {
	token, _, err := t.fetch(ctx, "", time.Now())
	return token, err
}

// Issuer is who an identity token says made it. It is verified by nobody yet.
func Issuer(token string) (string, error) {
	c, err := readClaims(token)
	if err == nil && c.Issuer == "" {
		err = errors.New("it names no issuer")
	}
	if err != nil {
		return "", fmt.Errorf("reading an identity token: %w", err)
	}
	return c.Issuer, nil
}

// fetch gets a token, and refuses one that its own words make useless.
func (t TokenSource) fetch(ctx context.Context, issuer string, now time.Time) (token string, _ claims, err error) {
	if t.ask != nil {
		token, err = t.ask(ctx, issuer)
	} else {
		token, err = t.get(ctx)
	}
	if ctx.Err() != nil {
		return "", claims{}, ctx.Err()
	}
	fail := func(err error, way string) (string, claims, error) {
		return "", claims{}, &KeylessError{"getting an identity token from " + t.from, err, way}
	}
	if err != nil {
		return fail(err, t.way)
	}
	c, err := readClaims(token)
	if err != nil {
		return fail(err, t.way)
	}
	if c.Expires > 0 && now.After(c.expires()) {
		return fail(fmt.Errorf("it expired at %s, %s ago by this machine's clock", c.expires().Format(time.RFC3339), now.Sub(c.expires()).Round(time.Second)), t.way)
	}
	if issued := time.Unix(int64(c.Issued), 0); c.Issued > 0 && issued.After(now.Add(clockOff)) {
		return fail(fmt.Errorf("it was issued %s after now", issued.Sub(now).Round(time.Second)), "set this machine's clock, which is behind")
	}
	return token, c, nil
}

// refused is the way out where Fulcio would not take the token.
func (t TokenSource) refused(c claims) string {
	for _, a := range c.audiences() {
		if a == audience {
			return fmt.Sprintf("Fulcio must know the issuer %q and find in the token what it puts into the certificate; the token is from %s", clip(c.Issuer), t.from)
		}
	}
	return fmt.Sprintf("the token is for the audience %q, and Fulcio takes %q unless it is configured otherwise: %s", clip(strings.Join(c.audiences(), ", ")), audience, t.way)
}
