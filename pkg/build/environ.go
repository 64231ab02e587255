package build

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// The environment of a wrapped command is made here and nowhere else: what
// stands in the tables, and what was named.

// signingSecrets are variables that only signing reads, or that prove whose job
// it is. No command gets them, whatever is named. A name that ends in * stands
// for all that begin so.
func signingSecrets() []string {
	return []string{
		"COSIGN_*", "SIGSTORE_*", "WAXSEAL_*", "ACTIONS_ID_TOKEN_REQUEST_*", "VAULT_*", "BAO_*", "TUF_ROOT",
		"FULCIO_*", "REKOR_*", "BUILDKITE_AGENT_ACCESS_TOKEN", "CIRCLE_OIDC_TOKEN*", "SYSTEM_OIDCREQUESTURI", "SYSTEM_ACCESSTOKEN", "SPIFFE_ENDPOINT_SOCKET",
		"PKCS11_*", "SOFTHSM2_CONF", "GOOGLE_SERVICE_ACCOUNT_NAME",
	}
}

// cloudSecrets are credentials that may be the signer's, or the command's own
// for a registry or a bucket: they are passed where they are named, unless the
// key that signs lies with that provider.
func cloudSecrets() map[string][]string {
	return map[string][]string{
		"awskms://":   {"AWS_*"},
		"gcpkms://":   {"GOOGLE_*", "GCLOUD_*", "CLOUDSDK_*", "GCE_*"},
		"azurekms://": {"AZURE_*", "ARM_*", "MSI_*", "IDENTITY_*"},
		"k8s://":      {"KUBECONFIG", "KUBERNETES_*"},
	}
}

// keyFileVariables name the files and folders by which a service knows who wants
// its key to sign. KUBECONFIG is a list of such.
func keyFileVariables() []string {
	return []string{
		"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
		"GOOGLE_APPLICATION_CREDENTIALS", "CLOUDSDK_CONFIG",
		"AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_CERTIFICATE_PATH", "AZURE_CONFIG_DIR",
		"VAULT_CLIENT_KEY", "BAO_CLIENT_KEY", "KUBECONFIG", "SOFTHSM2_CONF",
	}
}

// commandVariables are what every command gets where it is set: where things
// are, how to talk to people, how to reach Docker and the network, and what CI
// says of the job in plain words.
func commandVariables() []string {
	return []string{
		"PATH", "HOME", "USER", "LOGNAME", "SHELL", "PWD", "OLDPWD", "HOSTNAME", "TMPDIR", "XDG_*",
		"TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE",
		"LANG", "LANGUAGE", "LC_*", "TZ", "SOURCE_DATE_EPOCH",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE",
		"DOCKER_*", "BUILDKIT_*", "BUILDX_*", "COMPOSE_*", "MOBY_*",
		"BUILDAH_*", "CONTAINERS_*", "STORAGE_DRIVER", "STORAGE_OPTS", "KO_*", "KANIKO_*", "FF_KANIKO_*",
		"CC", "CXX", "AR", "LD", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "PKG_CONFIG_PATH",
		"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "GOROOT", "GOPATH", "GOBIN", "GOCACHE", "GOMODCACHE", "GOFLAGS", "GOPROXY",
		"GOPRIVATE", "GONOSUMDB", "GOOS", "GOARCH", "GOTOOLCHAIN", "CGO_ENABLED", "JAVA_HOME", "NODE_ENV", "NODE_OPTIONS",
		"PYTHONPATH", "VIRTUAL_ENV", "DEBIAN_FRONTEND", "DEB_BUILD_OPTIONS",
		"CI", "CONTINUOUS_INTEGRATION", "BUILD_NUMBER", "BUILD_ID", "BUILD_TAG", "BUILD_URL", "JOB_*", "JENKINS_URL",
		"NODE_NAME", "WORKSPACE", "BRANCH_NAME", "TAG_NAME", "CHANGE_*", "GIT_COMMIT", "GIT_BRANCH",
		"GITHUB_*", "RUNNER_*", "GITLAB_CI", "CI_*", "BUILDKITE", "BUILDKITE_*", "CIRCLECI", "CIRCLE_*",
		"TF_BUILD", "BUILD_*", "SYSTEM_*", "AGENT_*", "CODEBUILD_*",
	}
}

// neverMeant are variables among the above that hold a credential, let a command
// change what runs after it, or are for a machine without our sandbox.
func neverMeant() []string {
	return []string{
		"GITHUB_ENV", "GITHUB_PATH", "CI_REPOSITORY_URL", "CI_JOB_JWT*", "CI_JOB_TOKEN", "DOCKER_AUTH_CONFIG",
		"BUILDX_BUILDER", "BUILDX_CONFIG", "BUILDAH_ISOLATION", "CODEBUILD_WEBHOOK_*",
	}
}

// credentialWords in the name of a variable keep it from a command that did
// not name it.
func credentialWords() []string {
	return []string{"TOKEN", "PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "CREDENTIAL", "_KEY", "JWT", "AUTH", "OIDC", "_PIN"}
}

// CommandEnv is the environment of a wrapped command: of environ, in the form
// of os.Environ, what every command gets and what names lists. A name may be
// NAME=VALUE. key is the reference of the key that signs, "" for none: its
// provider's credentials are the signer's. tokens are where identity tokens are,
// as env:NAME or a file. To name what belongs to signing is an error, by another
// name too: one token can stand in two variables.
func CommandEnv(environ, names []string, key string, tokens ...string) ([]string, error) {
	var own []string // that we were told of
	for _, t := range tokens {
		if name, ok := strings.CutPrefix(t, "env:"); ok {
			own = append(own, name)
		}
	}
	if name, ok := strings.CutPrefix(key, "env://"); ok {
		own = append(own, name)
	}
	never := append(signingSecrets(), own...)
	for scheme, list := range cloudSecrets() {
		if strings.HasPrefix(key, scheme) {
			never = append(never, list...)
		}
	}
	values, signs := map[string]string{}, map[string]string{} // by name, and names by value
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		values[name] = value
		if matches(never, name) && (isCredential(name) || slices.Contains(own, name)) && len(value) >= minSecret {
			signs[value] = name
		}
	}
	given := map[string]string{}
	for _, n := range names {
		name, value, set := strings.Cut(n, "=")
		if name == "" || strings.ContainsAny(name, "\x00\n*") {
			return nil, fmt.Errorf("%q is no name of a variable", n)
		}
		if matches(never, name) {
			return nil, fmt.Errorf("%s: what signs is not shown to the command", name)
		}
		if set {
			given[name] = value
		} else {
			value = values[name]
		}
		if other := signs[value]; other != "" {
			return nil, hinted(fmt.Errorf("%s: it is %s by another name, and what signs is not shown to the command", name, other),
				"leave it out, or have nothing here that signs by it: a job of GitHub Actions has one token for its caches and for its identity, unless it has no permission id-token")
		}
	}
	var env []string
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if _, set := given[name]; set || matches(never, name) || signs[value] != "" {
			continue
		}
		if slices.Contains(names, name) || usual(name) {
			env = append(env, kv)
		}
	}
	for _, name := range sortedKeys(given) {
		env = append(env, name+"="+given[name])
	}
	return env, nil
}

// withoutJobserver is the environment of a make that has no descriptors of the
// one that started it: it shares out its jobs itself, instead of doing one at a
// time.
func withoutJobserver(env []string) []string {
	out := slices.Clone(env)
	for i, kv := range out {
		if name, flags, _ := strings.Cut(kv, "="); name == "MAKEFLAGS" || name == "MFLAGS" {
			out[i] = name + "=" + regexp.MustCompile(` ?--jobserver-(auth|fds)=-?\d+,-?\d+`).ReplaceAllString(flags, "")
		}
	}
	return out
}

// helperEnv is the environment of a program that helps here, as docker: ours without
// what signs.
func helperEnv(environ []string) []string {
	secrets := signingSecrets()
	for _, list := range cloudSecrets() {
		secrets = append(secrets, list...)
	}
	return slices.DeleteFunc(environ, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return matches(secrets, name)
	})
}

// usual reports whether every command gets the variable.
func usual(name string) bool {
	if matches(neverMeant(), name) || !matches(commandVariables(), name) {
		return false
	}
	return !isCredential(name)
}

func isCredential(name string) bool {
	upper := strings.ToUpper(name)
	return slices.ContainsFunc(credentialWords(), func(w string) bool { return strings.Contains(upper, w) })
}

// matches reports whether name is in the table.
func matches(table []string, name string) bool {
	return slices.ContainsFunc(table, func(p string) bool {
		start, open := strings.CutSuffix(p, "*")
		return name == p || open && strings.HasPrefix(name, start)
	})
}
