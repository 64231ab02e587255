package policy_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

func wordsPolicy(t *testing.T) (*policy.Policy, verify.Key, verify.Key) {
	t.Helper()
	p, err := policy.Load("testdata/good/words.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var keys []verify.Key
	for _, name := range []string{"release.pub", "security.pub"} {
		raw, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		k, err := verify.ParseKey(name, raw)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	return p, keys[0], keys[1]
}

func TestWordsAreExplained(t *testing.T) {
	p, _, _ := wordsPolicy(t)
	text := p.Summary() + p.Explain(time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC))
	for _, want := range []string{
		`trusts verifier "https://v.example/v", signed by "../security.pub" (sha256:`,
		`until 2030-01-01T00:00:00Z, about Build up to L3, Source up to L4, SLSA_SOURCE_TWO_PARTY_REVIEWED, under the policy "https://v.example/all" with digest sha256:2222222222222222222222222222222222222222222222222222222222222222, not older than 30d`,
		`about the source of "https://git.example/acme/**", up to Source L3` + "\n",
		`about the source of "https://git.example/acme/reviewed/**", up to Source L1, and about SLSA_SOURCE_TWO_PARTY_REVIEWED at any level`,
		`about the source of "https://git.example/acme/strict", up to Source L4, and about SLSA_SOURCE_TWO_PARTY_REVIEWED at any level`,
		`trusts the reviews of "Ann", signed by "../release.pub"`, `who is also ann@acme.example`,
		`source "https://git.example/acme/app" at "refs/tags/v*", a VSA, which can show build and properties`,
		`expects of "registry.example/mirror/**": Build L3, build by VSA`,
		`must be built from the branch or tag "refs/tags/v*"`,
		`must have reviews of its source not older than 30d`,
		`must have a verification summary by "https://v.example/v", under the policy "https://v.example/policy" with digest sha256:1111`,
		`made for "oci://registry.example/staging/app", not older than 7d, that says ACME_SCANNED; it may show its Build level and properties`,
		`may have its Build level shown by a verification summary by a trusted verifier`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "warning") {
		t.Errorf("a warning about what can be fulfilled:\n%s", text)
	}
	for text, want := range map[string]string{
		"level: {build: 3}": "no builder is trusted up to Build L3",
		"level: {build: 2, source: 2}, vsa: {delegates: [build]}":         "nobody is trusted about the source up to Source L2",
		"level: {build: 0}, properties: [SLSA_SOURCE_TWO_PARTY_REVIEWED]": "nobody is believed about SLSA_SOURCE_TWO_PARTY_REVIEWED, so nothing can fulfil this: name two reviewers",
		"level: {build: 0}, sbom: {required: true}":                       "nobody is believed about SBOMs, so nothing can fulfil this",
		"level: {build: 0}, vulnerabilities: {maxAge: 1d}":                "nobody is believed about vulnerability scans, so nothing can fulfil this",
		"level: {build: 0}, properties: [WAXSEAL_HERMETIC]":               "nobody is believed about records of inputs, so nothing can fulfil this",
	} {
		p, err := policy.Parse([]byte(`{apiVersion: waxseal.dev/v1, kind: Policy, trust: {verifiers: [{id: "https://v.example/v", signer: {key: k}, levels: {build: 2, source: 1}}]}, images: [{match: "**", `+text+`}]}`),
			policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return os.ReadFile("testdata/release.pub") }})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(p.Summary(), want) {
			t.Errorf("%s: %s", text, p.Summary())
		}
	}
}

// A policy that may ask for less than it seems to says so.
func TestSilent(t *testing.T) {
	for text, want := range map[string]string{
		`{match: "acme/**", level: {build: 1}}`:                                                          `no image is called "acme/**"`,
		`{match: "nginx", level: {build: 1}}`:                                                            `no image is called "nginx"`,
		`{match: "registry.example", level: {build: 1}}`:                                                 `no image is called "registry.example"`,
		`{match: "registry/**", level: {build: 1}}`:                                                      `no image is called "registry/**"`,
		`{match: "docker.io/acme/**", level: {build: 1}}`:                                                "",
		`{match: "localhost/acme", level: {build: 1}}`:                                                   "",
		`{match: "registry:5000/acme/*", level: {build: 1}}`:                                             "",
		`{match: "*.example/**", level: {build: 1}}`:                                                     "",
		`{match: "oci:image", level: {build: 1}}`:                                                        "",
		`{match: "**", level: {build: 1}, vulnerabilities: {limits: {high: 0}}}`:                         "nothing is said of critical vulnerabilities",
		`{match: "**", level: {build: 1}, vulnerabilities: {limits: {critical: 0}, sla: {medium: 30d}}}`: "nothing is said of high vulnerabilities",
		`{match: "**", level: {build: 1}, vulnerabilities: {limits: {critical: 0}, sla: {high: 30d}}}`:   "",
		`{match: "**", level: {build: 1}, vulnerabilities: {limits: {unknown: 0}}}`:                      "",
		`{match: "**", level: {build: 1}, vulnerabilities: {maxAge: 1d}}`:                                "",
	} {
		got := parse(t, "  - "+text+"\n").Brief().Images[0].Warnings
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.Contains(got[0], want)) {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// Who may speak about what: the strictest of all entries, and nobody by being
// somebody else.
func TestWords(t *testing.T) {
	p, release, security := wordsPolicy(t)
	at := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	signer := func(k verify.Key) verify.Signer {
		s, ok := p.Trust().Suppose(verify.Signer{Key: k.ID()}, at)
		if !ok {
			t.Fatal("a key that the policy names is a stranger")
		}
		return s
	}
	for _, c := range []struct {
		key        verify.Key
		repository string
		level      int
		twoParty   bool
	}{
		{security, "git+https://git.example/acme/app.git", 3, false},
		{security, "https://GIT.example/acme/deep/app", 3, false},
		{security, "https://git.example/acme/reviewed/app", 3, true},
		{security, "https://git.example/acme/strict", 4, true},
		{security, "https://git.example/acme-evil/app", 0, false},
		{security, "https://git.example.evil/acme/app", 0, false},
		{security, "ssh://git@git.example/acme/app", 0, false},
		{release, "https://git.example/acme/reviewed/app", 0, false},
	} {
		if level, twoParty, why := p.Sources(signer(c.key), c.repository); level != c.level || twoParty != c.twoParty || (why == "") != (level > 0) {
			t.Errorf("%s about %s: %d, %t, %q", c.key.Name(), c.repository, level, twoParty, why)
		}
	}
	if r, ok := p.Reviewer(signer(release), verify.Signer{}); !ok || r.Name != "Ann" || len(r.Aliases) != 1 {
		t.Errorf("%+v, %t", r, ok)
	}
	if r, ok := p.Reviewer(verify.Signer{Key: "sha256:" + verify.Signer{}.Key}, verify.Signer{}); ok {
		t.Errorf("a stranger is %+v", r)
	}
	// A reviewer is no builder, and no attester.
	if cap := p.Trust().Cap(signer(security), "https://ci.example.org/b"); cap.Level != 0 || p.Speaks(signer(security), policy.FactSBOM) {
		t.Errorf("%+v", cap)
	}
	if v := p.Verifiers(); len(v) != 1 || v[0].PolicyURI != "https://v.example/all" || v[0].PolicyDigest.Hex() != strings.Repeat("2", 64) || v[0].MaxAge != 30*24*time.Hour {
		t.Errorf("verifiers %+v", v)
	}
	rule, _ := p.For("registry.example/prod/app")
	if d := rule.Delegates(); !d.Build || d.Source || !d.Properties || !d.Expects {
		t.Errorf("%+v", d)
	}
	for refs, want := range map[string]bool{"refs/tags/v1": true, "refs/heads/v1": false, "refs/heads/refs/tags/v1": false, "refs/tags/v1/x": false, "": false, "refs/heads/main refs/tags/v2": true} {
		if got := rule.OnRef(strings.Fields(refs)); got != want {
			t.Errorf("on %q: %t", refs, got)
		}
	}
	// An entry that asks and does not delegate keeps what it asks for.
	both, err := policy.Parse([]byte(`{apiVersion: waxseal.dev/v1, kind: Policy, trust: {verifiers: [{id: "https://v.example/v", signer: {key: k}, levels: {build: 2}}]}, images: [
		{match: "a/**", level: {build: 0}}, {match: "b/**", level: {build: 1}}, {match: "**", level: {build: 2}, vsa: {delegates: [build]}}]}`),
		policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return os.ReadFile("testdata/release.pub") }})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"a/x": true, "b/x": false, "c": true} {
		rule, _ := both.For(name)
		if rule.Delegates().Build != want {
			t.Errorf("%s: delegated %t", name, !want)
		}
	}
}

// Signers are told apart by name, else by key or certificate.
func TestSignatory(t *testing.T) {
	p, err := policy.Load("testdata/good/signatures.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, release, security := wordsPolicy(t)
	const issuer = "https://accounts.example"
	ids := map[string]string{}
	for name, by := range map[string]verify.Signer{
		"CI": {Key: release.ID()}, "Ann": {Key: security.ID()}, "Ann's certificate": {Issuer: issuer, SAN: "ann@acme.example"},
		"Bob": {Issuer: issuer, SAN: "bob@acme.example"}, "Bob elsewhere": {Issuer: "https://other.example", SAN: "bob@acme.example"},
	} {
		ids[name], _ = p.Signatory(by)
	}
	if ids["Ann"] != "ann" || ids["Ann"] != ids["Ann's certificate"] {
		t.Errorf("Ann is %q and %q", ids["Ann"], ids["Ann's certificate"])
	}
	delete(ids, "Ann")
	seen := map[string]string{}
	for name, id := range ids {
		if seen[id] != "" {
			t.Errorf("%s and %s are one: %q", name, seen[id], id)
		}
		seen[id] = name
	}
	for _, want := range []string{
		`signed by "../release.pub" (sha256:`, `until 2030-01-01T00:00:00Z, who is "CI", up to Build L3`,
		`must have one and the same provenance signed by 2 of "Ann", "CI"`, `signed by 4 different trusted signers`,
	} {
		if text := p.Summary() + p.Explain(time.Now()); !strings.Contains(text, want) {
			t.Errorf("lacks %q:\n%s", want, text)
		}
	}
}
