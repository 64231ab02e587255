package sign_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/sign"
)

// TestMain is the process apart, too, in which a key is tried.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "try-key" {
		if err := sign.TryKey(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// apart is this program as TestMain knows it.
func apart(t *testing.T) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return []string{self, "try-key"}
}

// ready calls the method that tells early.
func ready(t *testing.T, s sign.Signer) error {
	t.Helper()
	r, ok := s.(interface{ Ready(context.Context) error })
	if !ok {
		t.Fatalf("%T has no Ready", s)
	}
	return r.Ready(t.Context())
}

func password(text string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(text), nil }
}

func TestLateKinds(t *testing.T) {
	sealed, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string][]byte{
		"sealed": sealed, "Ed25519": pkcs8(t, ed), "RSA": pkcs8(t, rsaKey),
		"SEC1": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}),
	} {
		for _, c := range []struct {
			how      string
			apart    []string
			variable bool
			asked    bool
		}{{"in a file, tried apart", apart(t), false, true}, {"in a file, tried here", nil, false, true}, {"in a variable", apart(t), true, true}, {"not tried before", nil, false, false}} {
			t.Run(name+" "+c.how, func(t *testing.T) {
				ref, held := write(t, key, 0o600), bytes.Clone(key)
				opts := sign.OpenOptions{Password: password("secret"), Apart: c.apart}
				if c.variable {
					ref = "env://K"
					opts.Take = func(string) ([]byte, bool) { return held, true }
				}
				s, err := sign.OpenLate(t.Context(), ref, opts)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if c.asked {
					if err := ready(t, s); err != nil {
						t.Fatal(err)
					}
				}
				if c.variable && strings.Trim(string(held), "\x00") != "" {
					t.Error("the variable's value is still there")
				}
				for range 2 {
					b, err := s.Sign(t.Context(), testStatement(t))
					if err != nil {
						t.Fatal(err)
					}
					verify(t, s.PublicKey(), b)
				}
				s.Close()
				if _, err := s.Sign(t.Context(), testStatement(t)); err == nil {
					t.Error("signs after Close")
				}
			})
		}
	}
}

// What is wrong with a key is said by OpenLate, or by Ready; at the latest by
// Sign.
func TestLateErrors(t *testing.T) {
	sealed, public, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	weak, _ := pem.Decode([]byte(weakRSA))
	weakPEM := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: weak.Bytes})
	for _, command := range [][]string{nil, apart(t)} {
		for name, c := range map[string]struct {
			data []byte
			mode os.FileMode
			pass string
			at   string
			want string
		}{
			"readable by others": {sealed, 0o644, "secret", "open", "chmod 600"},
			"a public key":       {public, 0o600, "", "open", "this is a public key"},
			"no key":             {[]byte("x"), 0o600, "", "open", "not a PEM private key"},
			"wrong password":     {sealed, 0o600, "other", "ready", "wrong password; the password is asked for"},
			"weak":               {weakPEM, 0o600, "", "ready", "use ECDSA P-256"},
			"damaged":            {pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}), 0o600, "", "ready", "damaged"},
		} {
			path := write(t, c.data, c.mode)
			at := "open"
			s, err := sign.OpenLate(t.Context(), path, sign.OpenOptions{Password: password(c.pass), Apart: command})
			if err == nil {
				at, err = "ready", ready(t, s)
				if _, again := s.Sign(t.Context(), testStatement(t)); again == nil || err == nil || again.Error() != err.Error() {
					t.Errorf("%s: signing says %v", name, again)
				}
				if s.PublicKey() != nil {
					t.Errorf("%s: it has a public half", name)
				}
				s.Close()
			}
			if err == nil || at != c.at || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: said at %s: %v, want %q at %s", name, at, err, c.want, c.at)
			}
			if errors.Is(err, sign.ErrPassword) != (name == "wrong password") {
				t.Errorf("%s: errors.Is(ErrPassword) is wrong", name)
			}
		}
	}
	if _, err := sign.OpenLate(t.Context(), write(t, sealed, 0o600), sign.OpenOptions{}); err == nil || !strings.Contains(err.Error(), "no password was given") {
		t.Errorf("without a password: %v", err)
	}
	s, err := sign.OpenLate(t.Context(), write(t, sealed, 0o600), sign.OpenOptions{Password: password("secret"), Apart: []string{"/bin/true"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := ready(t, s); err == nil || !strings.Contains(err.Error(), "it said nothing of use") {
		t.Errorf("with a program that says nothing: %v", err)
	}
}

// A key that was tried is the one that signs, or none does.
func TestLateKeyIsTheOneThatWasTried(t *testing.T) {
	sealed, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed2, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2][]byte{
		"encrypted": {sealed, other}, "plain": {pkcs8(t, ed), pkcs8(t, ed2)}, "then plain": {sealed, pkcs8(t, ed)}, "then encrypted": {pkcs8(t, ed), sealed},
	} {
		path := write(t, c[0], 0o600)
		s, err := sign.OpenLate(t.Context(), path, sign.OpenOptions{Password: password("secret")})
		if err != nil {
			t.Fatal(err)
		}
		if err := ready(t, s); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, c[1], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Sign(t.Context(), testStatement(t)); err == nil || !strings.Contains(err.Error(), "it is not the key that was there when this began") {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

// So it is with a secret, which is read anew.
func TestLateSecretIsTheOneThatWasTried(t *testing.T) {
	for _, changes := range []bool{false, true} {
		dir := t.TempDir()
		for i := range 2 {
			_, public, err := sign.GenerateKeyPair(nil)
			if err != nil {
				t.Fatal(err)
			}
			answer, err := json.Marshal(map[string]string{"publicKey": string(public), "hash": "sha256"})
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)), append(answer, '\n'), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		program := filepath.Join(dir, "helper")
		script := "#!/bin/sh\nread l; cat " + dir + "/0; read l && echo '{\"class\":\"permission\",\"message\":\"it was asked to sign\"}'\n"
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		s, err := sign.OpenLate(t.Context(), "k8s://ci/release", sign.OpenOptions{Keys: keys.Options{Program: program, Environ: []string{"PATH=" + os.Getenv("PATH")}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := ready(t, s); err != nil {
			t.Fatal(err)
		}
		want := "it was asked to sign"
		if changes {
			want = "it is not the key that was there when this began"
			if err := os.Rename(filepath.Join(dir, "1"), filepath.Join(dir, "0")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Sign(t.Context(), testStatement(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		s.Close()
	}
}

// The certificate is held against the key before anything is signed.
func TestLateStamp(t *testing.T) {
	root := issue(t, "root", nil, authority)
	leaf, other := issue(t, "signer", root, signerOf), issue(t, "other", root, signerOf)
	chain, err := sign.ParseChain(leaf.pem(), root.pem())
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []*issued{leaf, other} {
		key, err := sign.OpenLate(t.Context(), write(t, pkcs8(t, of.key), 0o600), sign.OpenOptions{Apart: apart(t)})
		if err != nil {
			t.Fatal(err)
		}
		s, err := sign.Stamp(key, sign.StampOptions{Chain: chain, Stampers: []string{"http://127.0.0.1:1"}, Check: func(*attest.Bundle) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		switch err := ready(t, s); {
		case of == leaf && err != nil:
			t.Error(err)
		case of == other && (err == nil || !strings.Contains(err.Error(), "is another key's")):
			t.Errorf("another key's certificate: %v", err)
		}
		if of == other {
			if _, err := s.Sign(t.Context(), testStatement(t)); err == nil || !strings.Contains(err.Error(), "is another key's") {
				t.Errorf("signing with another key's certificate: %v", err)
			}
		}
	}
}

func TestHidden(t *testing.T) {
	for _, text := range []string{"secret", ""} {
		given := []byte(text)
		h := sign.Hide(given)
		if strings.Trim(string(given), "\x00") != "" {
			t.Error("what was hidden is still where it was")
		}
		for range 2 {
			if got := h.Reveal(); got == nil || string(got) != text {
				t.Errorf("%q became %q", text, got)
			}
		}
		h.Forget()
		h.Forget()
		if got := h.Reveal(); got != nil {
			t.Errorf("forgotten, it is %q", got)
		}
	}
	(*sign.Hidden)(nil).Forget()
}

func FuzzParseTried(f *testing.F) {
	sealed, _, err := sign.GenerateKeyPair([]byte("x"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{1, 'x'}, bytes.ReplaceAll(sealed, []byte("A"), []byte("B"))...))
	f.Add([]byte{0})
	f.Add(slices.Repeat([]byte{0xff}, 11))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		if err := sign.TryKey(bytes.NewReader(data), &out); err == nil && out.Len() == 0 {
			t.Fatal("it says nothing")
		}
	})
}
