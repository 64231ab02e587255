package policy_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/policy"
)

const kmsPolicy = `apiVersion: waxseal.dev/v1
kind: Policy
trust:
  builders:
    - id: https://ci.example/b
      signer: {kms: "hashivault://release"}
      maxLevel: 2
images: [{match: registry.example/app, level: {build: 2}}]
`

func TestAKeyOfAKMS(t *testing.T) {
	key, err := os.ReadFile("testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	p, err := policy.Parse([]byte(kmsPolicy), policy.ParseOptions{ReadKMS: func(ref string) ([]byte, error) {
		if ref != "hashivault://release" {
			t.Errorf("asked for %q", ref)
		}
		return key, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if keys := p.Trust().Keys; len(keys) != 1 || keys[0].Name() != "hashivault://release" {
		t.Errorf("keys %+v", keys)
	}
	silent := errors.New("no answer")
	for name, c := range map[string]struct {
		text string
		read func(string) ([]byte, error)
		want string
	}{
		"nobody to ask":  {kmsPolicy, nil, "policy:6: kms"},
		"no answer":      {kmsPolicy, func(string) ([]byte, error) { return nil, silent }, "policy:6: no answer"},
		"no key":         {kmsPolicy, func(string) ([]byte, error) { return []byte("x"), nil }, "policy:6: reading public key"},
		"two signers":    {strings.Replace(kmsPolicy, "{kms:", "{key: release.pub, kms:", 1), func(string) ([]byte, error) { return key, nil }, "policy:6"},
		"and a san":      {strings.Replace(kmsPolicy, "{kms:", "{san: a@acme.example, issuer: https://t.example, kms:", 1), func(string) ([]byte, error) { return key, nil }, "policy:6"},
		"an empty value": {strings.Replace(kmsPolicy, `"hashivault://release"`, `""`, 1), func(string) ([]byte, error) { return key, nil }, "policy:6: kms must be text"},
	} {
		_, err := policy.Parse([]byte(c.text), policy.ParseOptions{ReadKMS: c.read})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if name == "no answer" && !errors.Is(err, silent) {
			t.Errorf("%s: the cause is lost: %v", name, err)
		}
	}
}
