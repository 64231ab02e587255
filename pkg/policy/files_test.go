package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
)

// TestFilesMakeTheSamePolicy takes a policy apart, with what it extends and
// names, and puts it together elsewhere.
func TestFilesMakeTheSamePolicy(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) attest.Digest {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return attest.DigestOf([]byte(text))
	}
	const text = "apiVersion: waxseal.dev/v1\nkind: Policy\n%strust:\n  builders:\n    - id: https://ci.acme.example/%s\n      signer: {key: k.pub}\n      maxLevel: 2\nimages:\n  - {match: a/%s, level: {build: 1}}\n"
	// Two keys under one name, each beside the policy that names it, and one that
	// no file has.
	put("k.pub", pemKey(t))
	put("base/k.pub", pemKey(t))
	kms := "    - {id: https://ci.acme.example/kms, signer: {kms: hashivault://release}, maxLevel: 1}\n"
	base := put("base/p.yaml", strings.Replace(fmt.Sprintf(text, "", "base", "base"), "images:\n", kms+"images:\n", 1))
	put("p.yaml", fmt.Sprintf(text, "extends: {file: base/p.yaml, digest: "+string(base)+"}\n", "top", "top"))
	service := pemKey(t)
	whole, files, err := policy.LoadFiles(filepath.Join(dir, "p.yaml"), policy.LoadOptions{ReadKMS: func(string) ([]byte, error) { return []byte(service), nil }})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Kind+" "+f.Name)
	}
	slices.Sort(names)
	if got, want := strings.Join(names, ", "), "extends base/p.yaml, key k.pub, key k.pub, kms hashivault://release, policy p.yaml"; got != want {
		t.Fatalf("files %s, want %s", got, want)
	}
	again, err := policy.ParseFiles("in the archive", files)
	if err != nil {
		t.Fatal(err)
	}
	if again.Digest() != whole.Digest() || again.Summary() != whole.Summary() {
		t.Errorf("another policy:\n%s\nwant\n%s", again.Summary(), whole.Summary())
	}
	if b := again.Trust().Builders; len(b) != 3 || b[0].Key == b[1].Key || b[1].Key == b[2].Key {
		t.Errorf("builders %+v, want three keys", b)
	}
	// Nothing but the files is read.
	for name, c := range map[string]struct {
		files []policy.File
		want  string
	}{
		"none":      {nil, "there is none"},
		"two":       {append(slices.Clone(files), files[0]), "there are two"},
		"no key":    {slices.DeleteFunc(slices.Clone(files), func(f policy.File) bool { return f.Kind == policy.FileKey }), "not among the files that came along"},
		"no kms":    {slices.DeleteFunc(slices.Clone(files), func(f policy.File) bool { return f.Kind == policy.FileKMS }), "not among the files that came along"},
		"no base":   {slices.DeleteFunc(slices.Clone(files), func(f policy.File) bool { return f.Kind == policy.FileExtends }), "not among the files that came along"},
		"other key": {renamed(files), "not among the files that came along"},
	} {
		if _, err := policy.ParseFiles("x", c.files); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// pemKey is a new public key.
func pemKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// renamed gives each key to another policy.
func renamed(files []policy.File) []policy.File {
	out := slices.Clone(files)
	for i := range out {
		if out[i].Kind == policy.FileKey {
			out[i].NamedBy = "sha256:other"
		}
	}
	return out
}
