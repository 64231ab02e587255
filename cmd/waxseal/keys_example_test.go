package main_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl"
	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/verify"
)

// keysExample reads a file of examples/keys.
func keysExample(t *testing.T, name string) []byte {
	t.Helper()
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(root, "examples/keys", name))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func keysJSON(t *testing.T, name string, v any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(keysExample(t, name))))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// oneOrMore is a text, or a list of them, as AWS has it.
type oneOrMore []string

func (o *oneOrMore) UnmarshalJSON(raw []byte) error {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		*o = oneOrMore{one}
		return nil
	}
	return json.Unmarshal(raw, (*[]string)(o))
}

func same(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	got = slices.Sorted(slices.Values(got))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q and nothing else", what, got, want)
	}
}

// TestThePermissionsOfKeys: each service's files parse, and give what signing
// takes and nothing else, on one key, to one subject.
func TestThePermissionsOfKeys(t *testing.T) {
	const subject, issuer = "repo:acme/app:environment:release", "https://token.actions.githubusercontent.com"
	t.Run("aws", func(t *testing.T) {
		type policy struct {
			Version   string
			Statement []struct {
				Sid, Effect string
				Principal   map[string]string
				Action      oneOrMore
				Resource    string
				Condition   map[string]map[string]string
			}
		}
		var may, trust policy
		keysJSON(t, "aws/policy.json", &may)
		keysJSON(t, "aws/trust.json", &trust)
		var actions []string
		for _, s := range may.Statement {
			actions = append(actions, s.Action...)
			if s.Effect != "Allow" || !regexp.MustCompile(`^arn:aws:kms:[a-z0-9-]+:\d{12}:key/[0-9a-f-]{36}$`).MatchString(s.Resource) {
				t.Errorf("%s of %q", s.Effect, s.Resource)
			}
		}
		same(t, "actions", actions, "kms:Sign", "kms:GetPublicKey", "kms:DescribeKey")
		if c := may.Statement[0].Condition["StringEquals"]; c["kms:MessageType"] != "DIGEST" {
			t.Errorf("conditions %v", c)
		}
		one := trust.Statement[0]
		same(t, "trust", one.Action, "sts:AssumeRoleWithWebIdentity")
		host := strings.TrimPrefix(issuer, "https://")
		if c := one.Condition["StringEquals"]; len(one.Condition) != 1 || c[host+":sub"] != subject || c[host+":aud"] != "sts.amazonaws.com" || !strings.HasSuffix(one.Principal["Federated"], "/"+host) {
			t.Errorf("trust %+v", one)
		}
	})
	t.Run("google", func(t *testing.T) {
		var role struct {
			Title, Description, Stage string
			IncludedPermissions       []string `yaml:"includedPermissions"`
		}
		if err := yaml.Unmarshal(keysExample(t, "google/role.yaml"), &role); err != nil {
			t.Fatal(err)
		}
		same(t, "permissions", role.IncludedPermissions, "cloudkms.cryptoKeyVersions.useToSign", "cloudkms.cryptoKeyVersions.viewPublicKey",
			"cloudkms.cryptoKeyVersions.get", "cloudkms.cryptoKeyVersions.list", "cloudkms.cryptoKeys.get")
		var federation struct {
			Type             string
			Universe         string `json:"universe_domain"`
			Audience         string
			SubjectTokenType string `json:"subject_token_type"`
			TokenURL         string `json:"token_url"`
			Source           struct {
				File   string
				Format map[string]string
			} `json:"credential_source"`
		}
		keysJSON(t, "google/federation.json", &federation)
		if federation.Type != "external_account" || federation.TokenURL != "https://sts.googleapis.com/v1/token" || !strings.HasPrefix(federation.Audience, "//iam.googleapis.com/projects/") {
			t.Errorf("%+v", federation)
		}
		if setup := string(keysExample(t, "google/setup.sh")); !strings.Contains(setup, `assertion.sub == "`+subject+`"`) || !strings.Contains(setup, "/subject/"+subject) {
			t.Error("the provider is for more than one subject")
		}
	})
	t.Run("azure", func(t *testing.T) {
		var role struct {
			Name, Description                                                  string
			IsCustom                                                           bool
			Actions, NotActions, DataActions, NotDataActions, AssignableScopes []string
		}
		keysJSON(t, "azure/role.json", &role)
		same(t, "actions", role.Actions)
		same(t, "data actions", role.DataActions, "Microsoft.KeyVault/vaults/keys/sign/action", "Microsoft.KeyVault/vaults/keys/read")
		var federation struct {
			Name, Issuer, Subject string
			Audiences             []string
		}
		keysJSON(t, "azure/federation.json", &federation)
		same(t, "federation", append(federation.Audiences, federation.Issuer, federation.Subject), "api://AzureADTokenExchange", issuer, subject)
	})
	t.Run("vault", func(t *testing.T) {
		var policy struct {
			Path map[string]struct{ Capabilities []string } `hcl:"path"`
		}
		if err := hcl.Unmarshal(keysExample(t, "vault/policy.hcl"), &policy); err != nil {
			t.Fatal(err)
		}
		if len(policy.Path) != 3 {
			t.Errorf("paths %v", policy.Path)
		}
		same(t, "signing", policy.Path["transit/sign/release/*"].Capabilities, "update")
		same(t, "signing with Ed25519", policy.Path["transit/sign/release"].Capabilities, "update")
		same(t, "reading", policy.Path["transit/keys/release"].Capabilities, "read")
		var role struct {
			Type      string            `json:"role_type"`
			Claim     string            `json:"user_claim"`
			Audiences []string          `json:"bound_audiences"`
			Claims    map[string]string `json:"bound_claims"`
			Policies  []string          `json:"token_policies"`
			NoDefault bool              `json:"token_no_default_policy"`
			Token     string            `json:"token_type"`
			TTL       string            `json:"token_ttl"`
		}
		keysJSON(t, "vault/role.json", &role)
		if role.Type != "jwt" || role.Claims["sub"] != subject || len(role.Claims) != 1 || len(role.Audiences) != 1 || !role.NoDefault {
			t.Errorf("role %+v", role)
		}
		same(t, "policies", role.Policies, "waxseal-release")
	})
	t.Run("kubernetes", func(t *testing.T) {
		docs := yaml.NewDecoder(strings.NewReader(string(keysExample(t, "kubernetes/role.yaml"))))
		var role struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Metadata   map[string]string
			Rules      []struct {
				APIGroups     []string `yaml:"apiGroups"`
				Resources     []string
				ResourceNames []string `yaml:"resourceNames"`
				Verbs         []string
			}
		}
		docs.KnownFields(true)
		if err := docs.Decode(&role); err != nil {
			t.Fatal(err)
		}
		if role.Kind != "Role" || len(role.Rules) != 1 {
			t.Fatalf("%+v", role)
		}
		same(t, "rule", slices.Concat(role.Rules[0].APIGroups, role.Rules[0].Resources, role.Rules[0].ResourceNames, role.Rules[0].Verbs), "", "secrets", "waxseal", "get")
	})
}

// TestTheMessagesNameThesePermissions: what waxseal says that somebody lacks
// stands in the example, and in its table.
func TestTheMessagesNameThesePermissions(t *testing.T) {
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	var files, readme strings.Builder
	readme.Write(keysExample(t, "README.md"))
	for _, name := range []string{"aws/policy.json", "google/role.yaml", "azure/role.json", "vault/policy.hcl", "kubernetes/role.yaml"} {
		files.Write(keysExample(t, name))
	}
	named := map[string]bool{}
	for _, dir := range []string{"pkg/trust", "pkg/keys"} {
		err := fs.WalkDir(os.DirFS(filepath.Join(root, dir)), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return nil // one of the two need not be there
			}
			raw, err := os.ReadFile(filepath.Join(root, dir, path))
			for _, m := range regexp.MustCompile(`\bkms:[A-Z]\w+|\bcloudkms\.\w+\.\w+|\btransit/(?:sign|keys)\b`).FindAllString(string(raw), -1) {
				named[m] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(named) < 5 {
		t.Errorf("the messages name %v only", named)
	}
	for n := range named {
		if !strings.Contains(files.String(), n) {
			t.Errorf("messages ask for %s, and no file gives it", n)
		}
	}
	for _, n := range []string{"kms:Sign", "kms:GetPublicKey", "cloudkms.cryptoKeyVersions.useToSign", "keys/sign/action", "transit/sign/KEY", "kubernetes/"} {
		if !strings.Contains(readme.String(), n) {
			t.Errorf("the README does not name %s", n)
		}
	}
}

func TestTheWorkflowOfKeys(t *testing.T) {
	root, err := testkit.Root()
	if err != nil {
		t.Fatal(err)
	}
	scripts, err := filepath.Glob(filepath.Join(root, "examples/keys/*/setup.sh"))
	if err != nil || len(scripts) != 5 {
		t.Fatalf("scripts %v, %v", scripts, err)
	}
	for _, s := range scripts {
		raw, err := os.ReadFile(s)
		if err != nil {
			t.Fatal(err)
		}
		checkShell(t, string(raw))
		for _, m := range regexp.MustCompile(`(?:file://|--file |--parameters |--role-definition |policy write \S+ |@)([a-z]+\.(?:json|yaml|hcl))`).FindAllStringSubmatch(string(raw), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(s), m[1])); err != nil && !strings.Contains(string(raw), "> "+m[1]) {
				t.Errorf("%s: %v", s, err)
			}
		}
	}
	actionlint := peer(t, "actionlint")
	workflow := filepath.Join(root, "examples/keys/github.yml")
	if out, err := exec.CommandContext(t.Context(), actionlint, "-shellcheck=", workflow).CombinedOutput(); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
	raw := keysExample(t, "github.yml")
	for _, uses := range regexp.MustCompile(`uses: (\S+)@(\S+)`).FindAllStringSubmatch(string(raw), -1) {
		if !regexp.MustCompile(`^[0-9a-f]{40}$`).MatchString(uses[2]) {
			t.Errorf("%s is not pinned by its commit", uses[0])
		}
	}
	// The environment in which each trust document lets the job in.
	if doc := yamlFile(t, workflow); doc["jobs"].(map[string]any)["image"].(map[string]any)["environment"] != "release" {
		t.Error("the job is of another environment")
	}
}

// TestTheCertificateOfKeys has openssl, in place of the company's CA, certify
// what request.cnf asks for: it is one that signatures count with.
func TestTheCertificateOfKeys(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		testkit.Unavailable(t, "openssl: %v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "request.cnf"), keysExample(t, "certificate/request.cnf"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=Acme",
		"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out release.key",
		"req -new -key release.key -config request.cnf -out release.csr",
		"x509 -req -in release.csr -CA ca.pem -CAkey ca.key -CAcreateserial -copy_extensions copy -days 1 -out release.pem",
	} {
		cmd := exec.CommandContext(t.Context(), "openssl", strings.Fields(line)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("openssl %s: %v\n%s", line, err, out)
		}
	}
	read := func(name string) []byte {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	ca, err := verify.ParseCA("ca.pem", verify.CAOptions{Roots: read("ca.pem")})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(read("release.pem"))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := ca.Examine(leaf, nil, nil, time.Now()); err != nil || who.SAN != "https://ci.acme.example/release" {
		t.Errorf("%+v, %v", who, err)
	}
	var role struct {
		Type    string   `json:"key_type"`
		Bits    int      `json:"key_bits"`
		AnyName bool     `json:"allow_any_name"`
		CN      bool     `json:"require_cn"`
		SANs    []string `json:"allowed_uri_sans"`
		Server  bool     `json:"server_flag"`
		Client  bool     `json:"client_flag"`
		Code    bool     `json:"code_signing_flag"`
		Usage   []string `json:"key_usage"`
		Ext     []string `json:"ext_key_usage"`
		TTL     string   `json:"max_ttl"`
	}
	keysJSON(t, "certificate/role.json", &role)
	same(t, "Vault's role", slices.Concat(role.SANs, role.Usage, role.Ext), leaf.URIs[0].String(), "DigitalSignature", "CodeSigning")
	if role.AnyName || role.Server || role.Client || !role.Code {
		t.Errorf("Vault's role %+v", role)
	}
}
