package store

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
)

// cosignRun runs the real cosign in dir.
func cosignRun(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), testkit.Peer(t, "cosign"), args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "COSIGN_PASSWORD=secret", "HOME="+dir)
	out, err := c.CombinedOutput()
	return string(out), err
}

// cosign accepts what is attached here, in both forms and with every kind of
// key; and the other way round.
func TestCosign(t *testing.T) {
	if testing.Short() {
		t.Skip("runs cosign")
	}
	ctx := context.Background()
	generated, _, err := sign.GenerateKeyPair([]byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	pkcs8 := func(key crypto.PrivateKey) []byte {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]byte{
		"generated": generated,
		"rsa":       pkcs8(must(rsa.GenerateKey(rand.Reader, 2048))(t)),
		"p384":      pkcs8(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))(t)),
		"ed25519":   pkcs8(ed),
	}
	from, top := testIndex(t)
	for name, place := range places(t) {
		if name == "layout" {
			continue // cosign writes none
		}
		place := strings.TrimSuffix(place, "/a/b")
		for kind, key := range keys {
			t.Run(name+", "+kind, func(t *testing.T) {
				dir := t.TempDir()
				path := filepath.Join(dir, "k.key")
				if err := os.WriteFile(path, key, 0o600); err != nil {
					t.Fatal(err)
				}
				s := must(sign.Open(ctx, path, sign.OpenOptions{Password: func() ([]byte, error) { return []byte("secret"), nil }}))(t)
				defer s.Close()
				if err := os.WriteFile(filepath.Join(dir, "k.pub"), s.PublicKey(), 0o600); err != nil {
					t.Fatal(err)
				}
				// For bundles cosign asks for a trusted root even where a key
				// decides alone; without one it would go and fetch it.
				root := []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`)
				if err := os.WriteFile(filepath.Join(dir, "root.json"), root, 0o600); err != nil {
					t.Fatal(err)
				}
				bundleRepo, attRepo := place+"/bundle-"+kind, place+"/att-"+kind
				b := signer{s}.bundle(t, top, "https://example.com/p")
				w := openW(t, bundleRepo)
				if err := Copy(ctx, open(t, from, Options{}), w, top, CopyOptions{}); err != nil {
					t.Fatal(err)
				}
				if _, err := Attach(ctx, w, top, b); err != nil {
					t.Fatal(err)
				}
				wa := openW(t, attRepo)
				if err := Copy(ctx, open(t, from, Options{}), wa, top, CopyOptions{}); err != nil {
					t.Fatal(err)
				}
				if err := AttachCosign(ctx, wa, top, b); err != nil {
					t.Fatal(err)
				}
				verify := func(repo string, more ...string) (string, error) {
					args := append([]string{"verify-attestation", "--key", "k.pub", "--insecure-ignore-tlog", "--type", "https://example.com/p"}, more...)
					return cosignRun(t, dir, append(args, repo+"@"+top.Digest.String())...)
				}
				if out, err := verify(bundleRepo, "--new-bundle-format", "--trusted-root", "root.json"); err != nil {
					t.Errorf("as a referrer: %v\n%s", err, out)
				}
				if out, err := verify(attRepo); err != nil {
					t.Errorf("as .att: %v\n%s", err, out)
				}
				if kind == "generated" {
					readsCosigns(t, place, from, dir)
				}
			})
		}
	}
}

func readsCosigns(t *testing.T, place, from, dir string) {
	ctx := context.Background()
	src := open(t, from, Options{})
	top := must(src.Resolve(ctx))(t)
	if err := os.WriteFile(filepath.Join(dir, "p.json"), []byte(`{"x":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for form, flag := range map[string]string{SourceAtt: "--new-bundle-format=false", SourceReferrer: "--new-bundle-format=true"} {
		repo := place + "/theirs"
		w := openW(t, repo)
		if err := Copy(ctx, src, w, top, CopyOptions{}); err != nil {
			t.Fatal(err)
		}
		out, err := cosignRun(t, dir, "attest", flag, "--key", "k.key", "--yes", "--tlog-upload=false", "--predicate", "p.json", "--type", "https://example.com/theirs", repo+"@"+top.Digest.String())
		if err != nil {
			t.Fatalf("%s: cosign attest: %v\n%s", form, err, out)
		}
		var found bool
		for _, p := range evidence(t, openW(t, repo), top) {
			if p.Source != form && !(form == SourceReferrer && p.Source == SourceTag) {
				continue
			}
			b, err := attest.ParseBundle(p.Raw)
			if err != nil {
				t.Errorf("%s: %v", form, err)
				continue
			}
			found = b.Statement().PredicateType == "https://example.com/theirs" && b.Statement().Binds(attest.Digest(top.Digest.String()))
		}
		if !found {
			t.Errorf("%s: cosign's attestation was not found", form)
		}
	}
}
