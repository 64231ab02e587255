package policy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

func person(t *testing.T) (sign.Signer, verify.Key) {
	t.Helper()
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := sign.Open(t.Context(), file, sign.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k, err := verify.ParseKey("k.pub", s.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return s, k
}

func TestSignedPolicy(t *testing.T) {
	raw, err := os.ReadFile("testdata/good/attesters.yaml")
	if err != nil {
		t.Fatal(err)
	}
	ours, key := person(t)
	theirs, other := person(t)
	load := func(t *testing.T, text []byte) *policy.Policy {
		t.Helper()
		file := filepath.Join(t.TempDir(), "p.yaml")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(text), "../", mustAbs(t)+"/")), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := policy.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	statement := func(t *testing.T, p *policy.Policy) *attest.Statement {
		t.Helper()
		st, err := p.Statement()
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for _, c := range []struct {
		name   string
		bundle func(*testing.T, *policy.Policy) []byte
		keys   []verify.Key
		want   string
	}{
		{"signed", func(t *testing.T, p *policy.Policy) []byte { return signed(t, ours, statement(t, p)) }, []verify.Key{key}, ""},
		{"by one of two", func(t *testing.T, p *policy.Policy) []byte { return signed(t, ours, statement(t, p)) }, []verify.Key{other, key}, ""},
		{"not signed", nil, []verify.Key{key}, "no such file"},
		{"by another", func(t *testing.T, p *policy.Policy) []byte { return signed(t, theirs, statement(t, p)) }, []verify.Key{key}, "no trusted key"},
		{"of another policy", func(t *testing.T, p *policy.Policy) []byte {
			return signed(t, ours, statement(t, load(t, append(raw, "# changed\n"...))))
		}, []verify.Key{key}, "not this digest"},
		{"of another kind", func(t *testing.T, p *policy.Policy) []byte {
			st, err := attest.NewStatement(attestations.VSAV1, statement(t, p).Subject, json.RawMessage(`{"apiVersion":"waxseal.dev/v1"}`))
			if err != nil {
				t.Fatal(err)
			}
			return signed(t, ours, st)
		}, []verify.Key{key}, "approves no policy"},
		{"before it covered the files that the policy names", func(t *testing.T, p *policy.Policy) []byte {
			st, err := attest.NewStatement(attestations.PolicyV1, statement(t, p).Subject, json.RawMessage(`{"apiVersion":"waxseal.dev/v1"}`))
			if err != nil {
				t.Fatal(err)
			}
			return signed(t, ours, st)
		}, []verify.Key{key}, `does not cover "` + mustAbs(t) + `/release.pub"`},
		{"nonsense", func(*testing.T, *policy.Policy) []byte { return []byte("{}") }, []verify.Key{key}, "p.yaml.sigstore.json"},
		{"the bare statement", func(t *testing.T, p *policy.Policy) []byte { return statement(t, p).Raw() }, []verify.Key{key}, "p.yaml.sigstore.json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := load(t, raw)
			if c.bundle != nil {
				if err := os.WriteFile(p.Path()+policy.SignatureSuffix, c.bundle(t, p), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s, err := p.CheckSigned(c.keys)
			switch {
			case c.want == "" && (err != nil || s.Key != key.ID()):
				t.Errorf("%+v, %v", s, err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

func signed(t *testing.T, by sign.Signer, st *attest.Statement) []byte {
	t.Helper()
	b, err := by.Sign(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	return b.Raw()
}
