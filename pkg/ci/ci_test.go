package ci_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/ci"
)

// issuer publishes a key and signs with it, or with another.
type issuer struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newIssuer(t *testing.T) *issuer {
	i := &issuer{key: newKey(t)}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]any{
				"issuer": i.URL, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"},
			})
		case "/keys":
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
		case "/token":
			if r.Header.Get("Authorization") != "Bearer of the job" {
				http.Error(w, "no", http.StatusForbidden)
				return
			}
			json.NewEncoder(w).Encode(map[string]string{"value": i.token(t, i.key, map[string]any{
				"aud": r.URL.Query().Get("audience"), "sub": "repo:acme/app:ref:refs/heads/main", "repository": "acme/app", "sha": strings.Repeat("a", 40),
				"ref": "refs/heads/main", "event_name": "push", "job_workflow_ref": "acme/ci/.github/workflows/seal.yml@refs/tags/v1",
				"workflow_ref": "acme/app/.github/workflows/ci.yml@refs/heads/main", "run_id": "7", "run_attempt": "2", "runner_environment": "github-hosted",
			})})
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(i.Close)
	return i
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (i *issuer) token(t *testing.T, key *ecdsa.PrivateKey, change map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": i.URL, "aud": ci.Audience, "sub": "job", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix()}
	maps.Copy(all, change)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "1"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(raw)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func variables(m map[string]string) func(string) string {
	return func(name string) string { return m[name] }
}

func find(t *testing.T, o ci.Options) *attestations.CI {
	t.Helper()
	got, err := ci.Find(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// elsewhere leads every host to a server of the test, as that host.
type elsewhere struct{ to string }

func (e elsewhere) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.URL.Scheme, req.URL.Host = "http", strings.TrimPrefix(e.to, "http://")
	return http.DefaultTransport.RoundTrip(req)
}

func TestNoPlatform(t *testing.T) {
	if got := find(t, ci.Options{Env: variables(nil), Tekton: filepath.Join(t.TempDir(), "none")}); got != nil {
		t.Errorf("found %+v where nothing is", got)
	}
}

// What variables say is declared, never verified, and carries no password.
func TestDeclared(t *testing.T) {
	commit := strings.Repeat("0123456789", 4)
	tekton := t.TempDir()
	if err := os.Mkdir(filepath.Join(tekton, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env    map[string]string
		tekton string
		want   *attestations.CIJob
		way    string
	}{
		"github-actions": {
			env: map[string]string{
				"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "acme/app", "GITHUB_SHA": commit, "GITHUB_REF": "refs/tags/v1",
				"GITHUB_EVENT_NAME": "push", "GITHUB_WORKFLOW_REF": "acme/app/.github/workflows/ci.yml@refs/tags/v1", "GITHUB_RUN_ID": "5", "GITHUB_RUN_ATTEMPT": "1", "RUNNER_ENVIRONMENT": "self-hosted",
			},
			want: &attestations.CIJob{
				Repository: "https://github.com/acme/app", Commit: commit, Ref: "refs/tags/v1", Event: "push", Runner: "self-hosted",
				Workflow: "https://github.com/acme/app/.github/workflows/ci.yml@refs/tags/v1", Run: "https://github.com/acme/app/actions/runs/5/attempts/1",
			},
			way: "id-token: write",
		},
		"gitlab": {
			env: map[string]string{
				"GITLAB_CI": "true", "CI_PROJECT_URL": "https://user:secret@gitlab.example/acme/app", "CI_COMMIT_SHA": commit, "CI_COMMIT_BRANCH": "main",
				"CI_PIPELINE_SOURCE": "push", "CI_JOB_URL": "https://gitlab.example/acme/app/-/jobs/9",
			},
			want: &attestations.CIJob{Repository: "https://gitlab.example/acme/app", Commit: commit, Ref: "refs/heads/main", Event: "push", Run: "https://gitlab.example/acme/app/-/jobs/9"},
			way:  "id_tokens",
		},
		"buildkite": {
			env:  map[string]string{"BUILDKITE": "true", "BUILDKITE_REPO": "git@git.example:acme/app.git", "BUILDKITE_COMMIT": "HEAD", "BUILDKITE_BRANCH": "main"},
			want: &attestations.CIJob{Repository: "git@git.example:acme/app.git", Ref: "refs/heads/main"},
			way:  "BUILDKITE_AGENT_ACCESS_TOKEN",
		},
		"circleci":        {env: map[string]string{"CIRCLECI": "true", "CIRCLE_TAG": "v2"}, want: &attestations.CIJob{Ref: "refs/tags/v2"}, way: "CIRCLE_OIDC_TOKEN_V2"},
		"azure-pipelines": {env: map[string]string{"TF_BUILD": "True", "BUILD_REASON": "PullRequest"}, want: &attestations.CIJob{Event: "PullRequest"}, way: "SYSTEM_ACCESSTOKEN"},
		"codebuild":       {env: map[string]string{"CODEBUILD_BUILD_ARN": "arn:aws:codebuild:eu-central-1:1:build/app:2"}, want: &attestations.CIJob{Run: "arn:aws:codebuild:eu-central-1:1:build/app:2"}, way: "KMS"},
		"jenkins": {
			env:  map[string]string{"JENKINS_URL": "https://jenkins.example/", "BUILD_URL": "https://jenkins.example/job/app/3/", "GIT_BRANCH": "origin/feature/x"},
			want: &attestations.CIJob{Run: "https://jenkins.example/job/app/3/", Ref: "refs/heads/feature/x"},
			way:  "--ci-token",
		},
		"tekton": {tekton: tekton, way: "--ci-token"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.tekton == "" {
				c.tekton = filepath.Join(tekton, "none")
			}
			got := find(t, ci.Options{Env: variables(c.env), Tekton: c.tekton})
			if got == nil || got.Platform != name || got.Verified != nil || !reflect.DeepEqual(got.Declared, c.want) {
				t.Fatalf("found %+v\n%+v, want %+v", got, got.Declared, c.want)
			}
			if !strings.Contains(got.Unverified, c.way) {
				t.Errorf("unverified %q, want a way with %q", got.Unverified, c.way)
			}
		})
	}
}

// GitHub's own token, asked for by the job, verified with GitHub's keys: all
// that is said of the job comes from it, not from the variables.
func TestVerifiedGitHub(t *testing.T) {
	i := newIssuer(t)
	got := find(t, ci.Options{Env: variables(map[string]string{
		"GITHUB_ACTIONS": "true", "GITHUB_SERVER_URL": "https://evil.example", "GITHUB_REPOSITORY": "evil/app",
		"ACTIONS_ID_TOKEN_REQUEST_URL": i.URL + "/token", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of the job",
	})})
	want := &attestations.CIIdentity{Issuer: i.URL, Subject: "repo:acme/app:ref:refs/heads/main", CIJob: attestations.CIJob{
		Repository: "https://github.com/acme/app", Commit: strings.Repeat("a", 40), Ref: "refs/heads/main", Event: "push", // the issuer is not GitHub's: no runner
		Workflow: "https://github.com/acme/ci/.github/workflows/seal.yml@refs/tags/v1", Run: "https://github.com/acme/app/actions/runs/7/attempts/2",
	}}
	if got.Verified == nil || !reflect.DeepEqual(got.Verified, want) {
		t.Errorf("verified %+v (%s)\nwant %+v", got.Verified, got.Unverified, want)
	}
	if got.Declared == nil || got.Declared.Repository != "https://evil.example/evil/app" {
		t.Errorf("declared %+v, want it apart", got.Declared)
	}
}

// A well-known issuer names the platform, whatever the variables say.
func TestIssuerNamesThePlatform(t *testing.T) {
	i := newIssuer(t)
	i.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		const gitlab = "https://gitlab.com"
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]any{"issuer": gitlab, "jwks_uri": gitlab + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
		case "/keys":
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
		}
	})
	token := i.token(t, i.key, map[string]any{
		"iss": "https://gitlab.com", "project_path": "acme/app", "job_id": json.Number("12"), "sha": strings.Repeat("b", 40), "ref_path": "refs/heads/main",
		"ci_config_ref_uri": "gitlab.com/acme/app//.gitlab-ci.yml@refs/heads/main", "runner_environment": "gitlab-hosted", "pipeline_source": "web",
	})
	got := find(t, ci.Options{
		Env:       variables(map[string]string{"GITHUB_ACTIONS": "true", "MINE": token}),
		Token:     "env:MINE",
		Transport: elsewhere{i.URL},
	})
	want := attestations.CIJob{
		Repository: "https://gitlab.com/acme/app", Commit: strings.Repeat("b", 40), Ref: "refs/heads/main", Event: "web", Runner: "gitlab-hosted",
		Workflow: "https://gitlab.com/acme/app//.gitlab-ci.yml@refs/heads/main", Run: "https://gitlab.com/acme/app/-/jobs/12",
	}
	if got.Platform != "gitlab" || got.Verified == nil || got.Verified.CIJob != want {
		t.Errorf("found %+v, verified %+v", got, got.Verified)
	}
}

// CircleCI's token is for the organization, and names the project by its id.
func TestVerifiedCircleCI(t *testing.T) {
	const org = "https://oidc.circleci.com/org/acme"
	i := newIssuer(t)
	i.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/org/acme/.well-known/openid-configuration":
			json.NewEncoder(w).Encode(map[string]any{"issuer": org, "jwks_uri": org + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
		case "/org/acme/keys":
			json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: i.key.Public(), KeyID: "1", Algorithm: "ES256", Use: "sig"}}})
		}
	})
	got := find(t, ci.Options{
		Env: variables(map[string]string{"CIRCLECI": "true", "CIRCLE_OIDC_TOKEN_V2": i.token(t, i.key, map[string]any{
			"iss": org, "aud": "acme", "oidc.circleci.com/project-id": "app", "oidc.circleci.com/vcs-origin": "github.com/acme/app", "oidc.circleci.com/vcs-ref": "refs/heads/main",
		})}),
		Transport: elsewhere{i.URL},
	})
	want := attestations.CIJob{Repository: "https://github.com/acme/app", Ref: "refs/heads/main", Workflow: org + "/project/app"}
	if got.Platform != "circleci" || got.Verified == nil || got.Verified.CIJob != want {
		t.Errorf("found %+v, verified %+v", got, got.Verified)
	}
}

// A service account's token names the pod, where Tekton runs the step.
func TestVerifiedTekton(t *testing.T) {
	tekton := t.TempDir()
	if err := os.Mkdir(filepath.Join(tekton, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	i := newIssuer(t)
	file := filepath.Join(tekton, "token")
	token := i.token(t, i.key, map[string]any{
		"sub": "system:serviceaccount:ci:builder", "kubernetes.io": map[string]any{"namespace": "ci", "pod": map[string]any{"name": "image-pod"}},
	})
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	got := find(t, ci.Options{Env: variables(nil), Tekton: tekton, Token: file})
	want := &attestations.CIIdentity{Issuer: i.URL, Subject: "system:serviceaccount:ci:builder", CIJob: attestations.CIJob{Run: "ci/image-pod"}}
	if got.Platform != "tekton" || !reflect.DeepEqual(got.Verified, want) {
		t.Errorf("found %+v, verified %+v", got, got.Verified)
	}
}

// Each of these tokens is worth nothing: the job is the job's own word.
func TestNotVerified(t *testing.T) {
	i, other := newIssuer(t), newIssuer(t)
	for name, c := range map[string]struct {
		token string
		want  string
	}{
		"another key":      {i.token(t, other.key, nil), "verify signature"},
		"another issuer":   {i.token(t, i.key, map[string]any{"iss": other.URL}), "verify signature"},
		"expired":          {i.token(t, i.key, map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}), "expired"},
		"not yet":          {i.token(t, i.key, map[string]any{"iat": time.Now().Add(time.Hour).Unix()}), "after now"},
		"for somebody":     {i.token(t, i.key, map[string]any{"aud": "https://vault.example"}), "not for waxseal"},
		"azure's audience": {i.token(t, i.key, map[string]any{"aud": "api://AzureADTokenExchange"}), "not for waxseal"},
		"plain http":       {i.token(t, i.key, map[string]any{"iss": "http://issuer.example"}), "only https"},
		"no issuer there":  {i.token(t, i.key, map[string]any{"iss": i.URL + "/none"}), "reading the keys"},
		"no token":         {"text", "no identity token"},
		"alg none": {
			"eyJhbGciOiJub25lIn0." + strings.Split(i.token(t, i.key, nil), ".")[1] + ".", "signature",
		},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"GITLAB_CI": "true", "WAXSEAL_ID_TOKEN": c.token}
			got := find(t, ci.Options{Env: variables(env)})
			if got.Verified != nil || !strings.Contains(got.Unverified, c.want) {
				t.Errorf("verified %+v, unverified %q, want %q", got.Verified, got.Unverified, c.want)
			}
			if strings.Contains(got.Unverified, c.token) {
				t.Error("the reason tells the token")
			}
			if _, err := ci.Find(t.Context(), ci.Options{Env: variables(env), Token: "env:WAXSEAL_ID_TOKEN"}); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("named: %v, want %q", err, c.want)
			}
		})
	}
	// The token that is right is taken.
	got := find(t, ci.Options{Env: variables(map[string]string{"GITLAB_CI": "true", "WAXSEAL_ID_TOKEN": i.token(t, i.key, nil)})})
	if got.Verified == nil || got.Verified.Subject != "job" {
		t.Errorf("a good token: %+v (%s)", got.Verified, got.Unverified)
	}
}

func TestCancelled(t *testing.T) {
	i := newIssuer(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := ci.Find(ctx, ci.Options{Env: variables(map[string]string{"GITLAB_CI": "true", "WAXSEAL_ID_TOKEN": i.token(t, i.key, nil)})})
	if err != context.Canceled {
		t.Errorf("got %v", err)
	}
}
