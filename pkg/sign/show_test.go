package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is forgotten is zeros where it lay.
func TestForget(t *testing.T) {
	curve, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	modulus, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	numbers := append([]*big.Int{curve.D, modulus.D, modulus.Precomputed.Dp, modulus.Precomputed.Qinv}, modulus.Primes...)
	for _, priv := range []crypto.Signer{curve, modulus, edwards} {
		forget(priv)
	}
	for i, n := range numbers {
		for _, word := range n.Bits() {
			if word != 0 {
				t.Errorf("number %d is %x", i, n)
				break
			}
		}
	}
	if strings.Trim(string(edwards), "\x00") != "" {
		t.Errorf("the Ed25519 key is %x", edwards)
	}
}

func TestReadKeyFile(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, raw []byte, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	sealed, public, err := GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	plain := pem.EncodeToMemory(&pem.Block{Type: plainKey, Bytes: der})
	for _, c := range []struct {
		path string
		want KeyFile
		err  string
	}{
		{put("sealed", sealed, 0o600), KeyFile{Mode: 0o600, Private: true, Encrypted: true}, ""},
		{put("plain", plain, 0o400), KeyFile{Mode: 0o400, Private: true, Public: []byte("-----BEGIN PUBLIC KEY")}, ""},
		{put("public", public, 0o644), KeyFile{Mode: 0o644, Public: public}, ""},
		{put("open", plain, 0o644), KeyFile{}, "others may use this file (mode 0644)"},
		{put("nothing", []byte("x"), 0o600), KeyFile{}, "not a PEM private key"},
		{filepath.Join(dir, "missing"), KeyFile{}, "no such file"},
	} {
		k, err := ReadKeyFile(c.path)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), c.path) {
				t.Errorf("%s: %v, want %q", c.path, err, c.err)
			}
		} else if err != nil || k.Mode != c.want.Mode || k.Private != c.want.Private || k.Encrypted != c.want.Encrypted || !strings.HasPrefix(string(k.Public), string(c.want.Public)) || k.Encrypted != (k.Public == nil) {
			t.Errorf("%s: %+v, %v", c.path, k, err)
		}
	}
}
