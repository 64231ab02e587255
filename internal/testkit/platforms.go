package testkit

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// Platforms stands in for what CI platforms give a job's identity with, by the
// names that these have, for who runs under Within. They ask it as documented:
//
//	https://buildkite.com/docs/apis/agent-api/oidc
//	https://circleci.com/docs/openid-connect-tokens
//	https://learn.microsoft.com/en-us/rest/api/azure/devops/distributedtask/oidctoken/create
//
// Every name is an issuer too, and one key signs for all of them.
type Platforms struct {
	// Instance signs, for an issuer that anybody could run.
	Instance *Instance
	// Within is a program that runs its arguments with those names.
	Within string
	// CA is a file (PEM) with who certifies them.
	CA string

	server *httptest.Server
}

// The job that there is, by what asks for its token.
const (
	platformsAzure     = "/acme/_apis/distributedtask/hubs/build/plans/1/jobs/7/oidctoken"
	platformsBuildkite = "/v3/jobs/7/oidc/tokens"
)

// NewPlatforms starts them and keeps its files in dir.
func NewPlatforms(dir string) (*Platforms, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &Platforms{Instance: &Instance{Issuer: "https://issuer.example", key: key}, Within: filepath.Join(dir, "within"), CA: filepath.Join(dir, "ca.pem")}
	names := []string{"agent.buildkite.com", "oidc.circleci.com", "vstoken.dev.azure.com", "dev.azure.com", "issuer.example"}
	cert, ca, err := certifyNames(names)
	if err != nil {
		return nil, err
	}
	ln, err := privately()
	if err != nil {
		return nil, err
	}
	files, err := within(dir, ln.Addr(), ca, names)
	for name, raw := range files {
		if err == nil {
			err = os.WriteFile(name, raw, 0o700)
		}
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	p.server = httptest.NewUnstartedServer(http.HandlerFunc(p.serve))
	p.server.Listener.Close()
	p.server.Listener = ln
	p.server.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
	p.server.StartTLS()
	return p, nil
}

// Close ends them.
func (p *Platforms) Close() { p.server.Close() }

func (p *Platforms) serve(w http.ResponseWriter, r *http.Request) {
	issuer, isIssuer := strings.CutSuffix("https://"+r.Host+r.URL.Path, "/.well-known/openid-configuration")
	switch {
	case isIssuer:
		reply(w, http.StatusOK, map[string]any{"issuer": issuer, "jwks_uri": "https://" + r.Host + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
	case r.URL.Path == "/keys":
		p.Instance.serveOwn(w, r)
	case r.Host == "agent.buildkite.com" && r.URL.Path == platformsBuildkite:
		var asked struct{ Audience string }
		if json.NewDecoder(r.Body).Decode(&asked) != nil || r.Method != http.MethodPost || r.Header.Get("Authorization") != "Token job" {
			reply(w, http.StatusForbidden, map[string]string{"message": "not for this job"})
			return
		}
		p.sign(w, "token", map[string]any{
			"iss": "https://agent.buildkite.com", "sub": "organization:acme:pipeline:app:ref:refs/heads/main:commit:" + platformsCommit + ":step:image", "aud": asked.Audience,
			"organization_slug": "acme", "pipeline_slug": "app", "build_number": 12, "build_branch": "main", "build_commit": platformsCommit,
			"build_source": "webhook", "job_id": "7", "runner_environment": "buildkite-hosted",
		})
	case r.Host == "dev.azure.com" && r.URL.Path == platformsAzure:
		if r.Method != http.MethodPost || r.Header.Get("Authorization") != "Bearer job" || r.URL.Query().Get("api-version") == "" {
			reply(w, http.StatusUnauthorized, map[string]string{"message": "not for this job"})
			return
		}
		p.sign(w, "oidcToken", map[string]any{
			"iss": "https://vstoken.dev.azure.com/acme", "sub": "p://acme/app/image", "aud": "api://AzureADTokenExchange",
			"rpo_uri": "https://dev.azure.com/acme/app/_git/app", "rpo_ver": platformsCommit, "rpo_ref": "refs/heads/main", "run_id": "12",
		})
	default:
		http.NotFound(w, r)
	}
}

// platformsCommit is what the job builds.
const platformsCommit = "33322f7969e55622c7e1a941fadd1b5ff2ea18b9"

func (p *Platforms) sign(w http.ResponseWriter, field string, claims map[string]any) {
	token, err := p.Instance.Token("job@acme.example", claims)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	reply(w, http.StatusOK, map[string]string{field: token})
}

// cmdPlatforms starts them: VAR runs its arguments where they are, VAR_CA is who
// certifies them, and token takes VAR for their key.
func cmdPlatforms(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1 && !neg, "platforms VAR")
	dir := ts.MkAbs(".platforms-" + args[0])
	ts.Check(os.Mkdir(dir, 0o700))
	p, err := NewPlatforms(dir)
	ts.Check(err)
	ts.Defer(p.Close)
	ts.Value(instancesKey{}).(map[string]*Instance)[args[0]] = p.Instance
	ts.Setenv(args[0], p.Within)
	ts.Setenv(args[0]+"_CA", p.CA)
}
