package sign_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"github.com/sigstore/cosign/v2/pkg/cosign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

func testStatement(t *testing.T) *attest.Statement {
	t.Helper()
	st, err := attest.NewStatement("https://example.com/p", []attest.Subject{{
		Name: "img", Digest: map[string]string{"sha256": attest.DigestOf(nil).Hex()},
	}}, map[string]string{"a": "<b>"})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func write(t *testing.T, data []byte, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.key")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// verify is a stranger's check: the public key and the bundle's bytes.
func verify(t *testing.T, public []byte, b *attest.Bundle) {
	t.Helper()
	pub, err := cryptoutils.UnmarshalPEMToPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	v, err := signature.LoadVerifier(pub, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	env := b.Proto().GetDsseEnvelope()
	pae := dsse.PAE(env.GetPayloadType(), env.GetPayload())
	if err := v.VerifySignature(bytes.NewReader(env.GetSignatures()[0].GetSig()), bytes.NewReader(pae)); err != nil {
		t.Errorf("the signature does not verify: %v", err)
	}
	block, _ := pem.Decode(public)
	sum := sha256.Sum256(block.Bytes)
	if want := base64.StdEncoding.EncodeToString(sum[:]); b.KeyHint() != want {
		t.Errorf("hint %q, want %q", b.KeyHint(), want)
	}
}

func TestKinds(t *testing.T) {
	gen := func(k any, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return pkcs8(t, k)
	}
	private, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ecDER, err := x509.MarshalECPrivateKey(ecKey)
	if err != nil {
		t.Fatal(err)
	}
	sec1 := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})
	for name, key := range map[string][]byte{
		"generated":           private,
		"older cosign":        bytes.ReplaceAll(private, []byte("SIGSTORE"), []byte("COSIGN")),
		"P-256":               pkcs8(t, ecKey),
		"P-256 SEC1":          sec1,
		"P-256 openssl":       append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}}), sec1...),
		"P-384":               gen(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)),
		"P-521":               gen(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
		"Ed25519":             pkcs8(t, edKey),
		"RSA 2048 PKCS1":      pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}),
		"RSA 2048 PKCS8":      pkcs8(t, rsaKey),
		"with a last newline": append(pkcs8(t, ecKey), '\n', '\n'),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := sign.Open(context.Background(), write(t, key, 0o600), sign.OpenOptions{
				Password: func() ([]byte, error) { return []byte("secret"), nil },
			})
			if err != nil {
				t.Fatal(err)
			}
			st := testStatement(t)
			b, err := s.Sign(context.Background(), st)
			if err != nil {
				t.Fatal(err)
			}
			if b.Bare() || !bytes.Equal(b.Statement().Raw(), st.Raw()) {
				t.Errorf("the bundle holds %s", b.Statement().Raw())
			}
			if !bytes.HasPrefix(b.Raw(), []byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json",`)) {
				t.Errorf("bundle begins %.80s", b.Raw())
			}
			verify(t, s.PublicKey(), b)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Sign(context.Background(), st); err == nil {
				t.Error("signs after Close")
			}
		})
	}
}

// The pair is cosign's own form: its library opens it, and the halves fit. What
// no password protects is no dearer to open than that form allows.
func TestGenerateKeyPairIsCosigns(t *testing.T) {
	for password, cost := range map[string]string{"päss wörd": `"N":65536`, "": `"N":32768`} {
		private, public, err := sign.GenerateKeyPair([]byte(password))
		if err != nil {
			t.Fatal(err)
		}
		sv, err := cosign.LoadPrivateKey(private, []byte(password), nil)
		if err != nil {
			t.Fatal(err)
		}
		pub, err := sv.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		got, err := cryptoutils.MarshalPublicKeyToPEM(pub)
		if err != nil || !bytes.Equal(got, public) {
			t.Errorf("public halves differ: %v", err)
		}
		if block, _ := pem.Decode(private); !bytes.Contains(block.Bytes, []byte(cost)) {
			t.Errorf("password %q: sealed as %s", password, block.Bytes)
		}
	}
}

func TestEmptyPassword(t *testing.T) {
	private, public, err := sign.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sign.Open(context.Background(), write(t, private, 0o400), sign.OpenOptions{
		Password: func() ([]byte, error) { return nil, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !bytes.Equal(s.PublicKey(), public) {
		t.Error("another public key")
	}
}

func TestAKeyInAVariable(t *testing.T) {
	private, public, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	held := bytes.Clone(private)
	opts := sign.OpenOptions{
		Password: func() ([]byte, error) { return []byte("secret"), nil },
		Take:     func(name string) ([]byte, bool) { return held, name == "SIGN_KEY" },
	}
	s, err := sign.Open(t.Context(), "env://SIGN_KEY", opts)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if !bytes.Equal(s.PublicKey(), public) || !bytes.Equal(held, make([]byte, len(held))) {
		t.Error("another public key, or the value is still there")
	}
	held = bytes.Repeat([]byte("a"), attest.MaxKey+1)
	for ref, want := range map[string]string{"env://SIGN_KEY": "not a key", "env://OTHER": "is not set"} {
		if _, err := sign.Open(t.Context(), ref, opts); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v, want %q", ref, err, want)
		}
	}
}

func TestPasswordIsWiped(t *testing.T) {
	private, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	pass, calls := []byte("secret"), 0
	s, err := sign.Open(context.Background(), write(t, private, 0o600), sign.OpenOptions{
		Password: func() ([]byte, error) { calls++; return pass, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if calls != 1 || !bytes.Equal(pass, make([]byte, 6)) {
		t.Errorf("asked %d times, password is now %q", calls, pass)
	}
}

func TestOpenErrors(t *testing.T) {
	private, public, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	weak, _ := pem.Decode([]byte(weakRSA))
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := func(typ string) []byte { return pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: []byte("x")}) }
	for name, c := range map[string]struct {
		data []byte
		mode os.FileMode
		pass string
		want string
	}{
		"wrong password":      {data: private, pass: "other", want: "wrong password; the password is asked for on a terminal or taken from COSIGN_PASSWORD"},
		"no key":              {data: []byte("hello"), want: "not a PEM private key"},
		"empty":               {data: nil, want: "not a PEM private key"},
		"public half":         {data: public, want: "the .key file"},
		"public, readable":    {data: public, mode: 0o644, want: "the .key file"},
		"certificate":         {data: block("CERTIFICATE"), want: "certificate"},
		"SSH key":             {data: block("OPENSSH PRIVATE KEY"), want: "ssh-keygen -p -m PKCS8"},
		"openssl's own":       {data: block("ENCRYPTED PRIVATE KEY"), want: "openssl pkey"},
		"openssl's old":       {data: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"DEK-Info": "x", "Proc-Type": "4,ENCRYPTED"}, Bytes: []byte("x")}), want: "openssl pkey"},
		"another block":       {data: block("CANDY"), want: `"CANDY"`},
		"damaged":             {data: block("PRIVATE KEY"), want: "damaged"},
		"damaged box":         {data: block("ENCRYPTED SIGSTORE PRIVATE KEY"), pass: "secret", want: "damaged"},
		"two keys":            {data: append(pkcs8(t, ed), pkcs8(t, ed)...), want: "one file holds one key"},
		"parameters only":     {data: block("EC PARAMETERS"), want: "without a key"},
		"weak RSA":            {data: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: weak.Bytes}), want: "use ECDSA P-256"},
		"weak curve":          {data: pkcs8(t, p224), want: "use ECDSA P-256"},
		"readable by others":  {data: private, mode: 0o644, want: "(mode 0644); run: chmod 600 /"},
		"writable by a group": {data: private, mode: 0o620, want: "(mode 0620); run: chmod 600 /"},
		"too large":           {data: bytes.Repeat([]byte("a"), attest.MaxKey+1), want: "not a key"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.mode == 0 {
				c.mode = 0o600
			}
			path := write(t, c.data, c.mode)
			_, err := sign.Open(context.Background(), path, sign.OpenOptions{
				Password: func() ([]byte, error) { return []byte(c.pass), nil },
			})
			if err == nil {
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %q, want it to hold %q and the path", err, c.want)
			}
			if got := errors.Is(err, sign.ErrPassword); got != (name == "wrong password") {
				t.Errorf("errors.Is(ErrPassword) = %v", got)
			}
		})
	}
	for ref, want := range map[string]string{
		"awskms:///alias/x":                    "waxseal-kms is not beside waxseal",
		"env://X":                              "no environment is looked at",
		filepath.Join(t.TempDir(), "none.key"): `no such file; make one with "waxseal key generate"`,
		t.TempDir():                            "others may use",
	} {
		if want == "others may use" {
			if err := os.Chmod(ref, 0o700); err != nil {
				t.Fatal(err)
			}
			want = "not a regular file"
		}
		if _, err := sign.Open(context.Background(), ref, sign.OpenOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v, want %q", ref, err, want)
		}
	}
	if _, err := sign.Open(context.Background(), write(t, private, 0o600), sign.OpenOptions{}); err == nil || !strings.Contains(err.Error(), "no password was given") {
		t.Errorf("without a password function: %v", err)
	}
}

// weakRSA is a throw-away key of 1024 bits.
const weakRSA = `-----BEGIN RSA TESTING KEY-----
MIICXAIBAAKBgQDeZMcYydwRDKiicVXrNLMyOEawmnCnUfsrJ+aF4/z0ScrPz6EZ
hojdh7ptd+9HWhh2fnUhrc5oNNh7OgO0FhE5kyELmyVpcQxj0yyijUJxwHIlVz9m
74yFTLIZ7s2SPXgRhm3Z2VR1KrNY65EiA1lV+Ug6BJMfL+zqvS7AdGV1qwIDAQAB
AoGAH3eQ+D/vpHXvEnUI3CvrwwpVbj2b/QDLkjKmGoHE0+fxC3BscgkoKng+96hF
sgncdj+0YRyPnQ0FKIJv7bZFn2VGknbEysmFHBujhRQZlfDr4LQHSDiUlCUNuWkB
lpl+uO+oE+Wi/877N5/ovdI/3CmgNHTIurk9bCzQ/oc7JikCQQD7HIuYwqmmUYgb
NlR171BMz/dXhBiFBDy0OlOMGrUtFAoDpfOh8tuuBIlDAR6ho+HBcSZ0tk9cjUdQ
eFeToiM9AkEA4rkcx73IJfJGnrZDuKtjo6y8ZgsxtWh85LjcCXH4ZIcwVMmDR9aA
x39IYWi8YGuJ4FDSN2eM/WpBcNJBcuxrBwJAeN8iquN4ueAg/chHG4WYR4ELdArX
qp+BgNdag+QPNaWhtGPbRCcca0UvtRsC3Zd/AZgvhJqE1O4EV821ihDPmQJBAKEY
1UlcIWZNIz7M1YvXREJdj7SWSajT6MKAU+DmOY/8uyvTz9NwqCqY125XhFqiruJT
qzsw+e5q3Lr0uwqU0GsCQHwXxc6CyjRvWA6BKuODbi+fcG94z9TG84alIi2XWc3r
XqwGy8dO4NrKF7w0ctRmiDEaJ6MvAzzsLJLVE6AlvGE=
-----END RSA TESTING KEY-----
`

func FuzzOpen(f *testing.F) {
	private, public, err := sign.GenerateKeyPair([]byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(private)
	f.Add(public)
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\n-----END EC PARAMETERS-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "k")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		// Without a password: scrypt would make every try slow.
		s, err := sign.Open(context.Background(), path, sign.OpenOptions{})
		if err == nil && len(s.PublicKey()) == 0 {
			t.Fatal("opened a key without a public half")
		}
	})
}

// Signing the same statement again must give the same bundle: attaching it
// twice then changes nothing.
func TestSameStatementSameBundle(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"ECDSA": ec, "Ed25519": ed} {
		s, err := sign.Open(t.Context(), write(t, pkcs8(t, key), 0o600), sign.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var first attest.Digest
		for range 3 {
			b, err := s.Sign(t.Context(), testStatement(t))
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = b.Digest()
			}
			if b.Digest() != first {
				t.Errorf("%s: signed again, it is another bundle", name)
			}
		}
	}
}
