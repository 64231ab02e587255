package build

import (
	"slices"
	"strings"
	"testing"
)

func TestCommandEnv(t *testing.T) {
	signing := []string{
		"COSIGN_PASSWORD", "SIGSTORE_ID_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL",
		"VAULT_TOKEN", "VAULT_ADDR", "BAO_TOKEN", "WAXSEAL_KEY", "PKCS11_PIN", "BUILDKITE_AGENT_ACCESS_TOKEN",
		"CIRCLE_OIDC_TOKEN", "CIRCLE_OIDC_TOKEN_V2", "SYSTEM_OIDCREQUESTURI",
	}
	credentials := []string{
		"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_SECRET",
		"GITHUB_TOKEN", "ACTIONS_RUNTIME_TOKEN", "CI_JOB_TOKEN", "CI_REPOSITORY_URL", "CI_REGISTRY_PASSWORD", "SYSTEM_ACCESSTOKEN",
		"DOCKER_AUTH_CONFIG", "NPM_TOKEN", "SSH_AUTH_SOCK",
		"DOCKER_CONTENT_TRUST_ROOT_PASSPHRASE", "GITHUB_ENV", "GITHUB_PATH", "BUILDX_BUILDER", "BUILDX_CONFIG", "BUILDAH_ISOLATION", "MY_OWN",
	}
	plain := []string{
		"PATH", "HOME", "TERM", "LANG", "LC_ALL", "TZ", "DOCKER_HOST", "DOCKER_CONFIG", "BUILDKIT_PROGRESS", "BUILDX_NO_DEFAULT_ATTESTATIONS",
		"CI", "GITHUB_SHA", "GITHUB_OUTPUT", "RUNNER_OS", "CI_COMMIT_SHA", "SOURCE_DATE_EPOCH", "COMPOSE_FILE", "http_proxy", "KO_DOCKER_REPO", "STORAGE_DRIVER",
	}
	var environ []string
	for _, n := range slices.Concat(signing, credentials, plain) {
		environ = append(environ, n+"=the value of "+n)
	}
	env, err := CommandEnv(environ, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Concat(signing, credentials) {
		if slices.Contains(env, n+"=the value of "+n) {
			t.Errorf("the command sees %s", n)
		}
	}
	for _, n := range plain {
		if !slices.Contains(env, n+"=the value of "+n) {
			t.Errorf("the command does not see %s", n)
		}
	}

	env, err = CommandEnv(environ, []string{"AWS_SESSION_TOKEN", "MY_OWN=another=one", "UNSET"}, "waxseal.key")
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range []string{"AWS_SESSION_TOKEN=the value of AWS_SESSION_TOKEN", "MY_OWN=another=one"} {
		if !slices.Contains(env, kv) {
			t.Errorf("named, and not there: %s", kv)
		}
	}
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "UNSET") || kv == "MY_OWN=the value of MY_OWN" }) {
		t.Errorf("too much: %q", env)
	}
	// Where an identity token is, which has a name like any other.
	environ = append(environ, "BUILD_IDENTITY=a.b.c")
	if env, err := CommandEnv(environ, nil, ""); err != nil || !slices.Contains(env, "BUILD_IDENTITY=a.b.c") {
		t.Errorf("what is no token: %q, %v", env, err)
	}
	if env, err := CommandEnv(environ, nil, "", "", "token.jwt", "env:BUILD_IDENTITY"); err != nil || slices.Contains(env, "BUILD_IDENTITY=a.b.c") {
		t.Errorf("an identity token: %q, %v", env, err)
	}
	if _, err := CommandEnv(environ, []string{"BUILD_IDENTITY"}, "", "env:BUILD_IDENTITY"); err == nil {
		t.Error("an identity token that was named: accepted")
	}
	if env := helperEnv(slices.Clone(environ)); slices.ContainsFunc(env, func(kv string) bool {
		return strings.HasPrefix(kv, "VAULT_") || strings.HasPrefix(kv, "AWS_") || strings.HasPrefix(kv, "ACTIONS_ID_TOKEN")
	}) || !slices.Contains(env, "SSH_AUTH_SOCK=the value of SSH_AUTH_SOCK") {
		t.Errorf("git sees %q", env)
	}
	for _, x := range []struct{ name, key string }{
		{"COSIGN_PASSWORD", ""}, {"ACTIONS_ID_TOKEN_REQUEST_TOKEN", ""}, {"VAULT_TOKEN=x", ""},
		{"CIRCLE_OIDC_TOKEN", ""}, {"CIRCLE_OIDC_TOKEN_V2", ""}, {"SYSTEM_OIDCREQUESTURI", ""}, {"SYSTEM_ACCESSTOKEN", ""},
		{"AWS_SESSION_TOKEN", "awskms:///alias/release"}, {"GOOGLE_APPLICATION_CREDENTIALS", "gcpkms://projects/p"},
		{"AZURE_CLIENT_SECRET", "azurekms://vault/key"}, {"RELEASE_PEM", "env://RELEASE_PEM"}, {"", ""}, {"A*", ""},
	} {
		if _, err := CommandEnv(environ, []string{x.name}, x.key); err == nil {
			t.Errorf("--env %q with the key %q: accepted", x.name, x.key)
		}
	}
}

// A job of GitHub Actions has the token that asks for its identity twice.
func TestCommandEnvByAnotherName(t *testing.T) {
	environ := []string{"ACTIONS_ID_TOKEN_REQUEST_TOKEN=the.jobs.token", "ACTIONS_RUNTIME_TOKEN=the.jobs.token", "CI_NOTE=the.jobs.token", "MINE=a.b.c.d.e.f", "CI_TEXT=a.b.c.d.e.f", "COSIGN_PASSWORD=true", "CI=true"}
	for _, names := range [][]string{{"ACTIONS_RUNTIME_TOKEN"}, {"X=the.jobs.token"}, {"CI_TEXT"}} {
		if _, err := CommandEnv(environ, names, "env://MINE"); err == nil || !strings.Contains(err.Error(), "by another name") {
			t.Errorf("%q: %v", names, err)
		}
	}
	env, err := CommandEnv(environ, nil, "env://MINE")
	if err != nil || !slices.Equal(env, []string{"CI=true"}) {
		t.Errorf("%q, %v", env, err)
	}
	// Without the permission id-token there is but one.
	if env, err = CommandEnv(environ[1:2], []string{"ACTIONS_RUNTIME_TOKEN"}, ""); err != nil || len(env) != 1 {
		t.Errorf("%q, %v", env, err)
	}
}

func TestGrades(t *testing.T) {
	for _, x := range []struct {
		have, want Grade
		ok         bool
	}{
		{GradeFull, GradeFull, true}, {GradePartial, GradeFull, false}, {GradeRecordOnly, GradePartial, false},
		{GradePartial, GradePartial, true}, {GradeRecordOnly, "", true}, {"", GradePartial, false}, {"excellent", GradePartial, false},
	} {
		if got := x.have.Reaches(x.want); got != x.ok {
			t.Errorf("%q reaches %q: %v", x.have, x.want, got)
		}
	}
	all := Together(Observed{Grade: GradeFull}, Observed{GradePartial, []string{"a", "b"}}, Observed{GradePartial, []string{"b"}})
	if all.Grade != GradePartial || !slices.Equal(all.Unobserved, []string{"a", "b"}) {
		t.Errorf("together: %+v", all)
	}
	if Together().Grade != GradeRecordOnly {
		t.Error("of nothing something was seen")
	}
	if Together(Observed{Grade: GradeFull}, Observed{Grade: "?"}).Grade.Reaches(GradePartial) {
		t.Error("an unknown grade counts")
	}
}
