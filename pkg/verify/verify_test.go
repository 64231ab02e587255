package verify_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	image   = attest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	sibling = attest.Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
)

// pair is a key that signs and the half that verifies.
type pair struct {
	private crypto.Signer
	public  verify.Key
	pem     []byte
}

func newPair(t testing.TB, name string, private crypto.Signer) pair {
	t.Helper()
	if private == nil {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		private = k
	}
	der, err := x509.MarshalPKIXPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	public, err := verify.ParseKey(name, text)
	if err != nil {
		t.Fatal(err)
	}
	return pair{private, public, text}
}

// sign makes a DSSE signature by the protocol's text, not by the library that
// is under test.
func (p pair) sign(t testing.TB, payloadType string, payload []byte) []byte {
	t.Helper()
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
	hash, message := crypto.SHA256, sha256.Sum256(pae)
	digest := message[:]
	if _, ok := p.private.(ed25519.PrivateKey); ok {
		hash, digest = 0, pae
	}
	sig, err := p.private.Sign(rand.Reader, digest, hash)
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func statement(subject string, predicateType, predicate string) []byte {
	return fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[%s],"predicateType":%q,"predicate":%s}`, subject, predicateType, predicate)
}

func sha256Subject(d attest.Digest) string {
	return fmt.Sprintf(`{"name":"image","digest":{"sha256":%q}}`, d.Hex())
}

func envelope(payloadType string, payload []byte, sigs ...[]byte) []byte {
	type sig struct {
		KeyID string `json:"keyid"`
		Sig   []byte `json:"sig"`
	}
	e := struct {
		PayloadType string `json:"payloadType"`
		Payload     []byte `json:"payload"`
		Signatures  []sig  `json:"signatures"`
	}{payloadType, payload, []sig{}}
	for _, s := range sigs {
		e.Signatures = append(e.Signatures, sig{Sig: s})
	}
	out, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return out
}

func bundled(material string, env []byte) []byte {
	return fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{%s},"dsseEnvelope":%s}`, material, env)
}

// checked judges b about image, now.
func checked(t testing.TB, b *attest.Bundle, trust verify.Trust) (*verify.Accepted, error) {
	t.Helper()
	c, err := verify.NewChecker(trust, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return c.Check(b, image)
}

func TestCheck(t *testing.T) {
	ours, stranger := newPair(t, "ours.pub", nil), newPair(t, "stranger.pub", nil)
	st := statement(sha256Subject(image), "https://example.org/t", `{"a":1}`)
	sealed := func(payload []byte) []byte {
		return envelope(attest.PayloadType, payload, ours.sign(t, attest.PayloadType, payload))
	}
	key := func(hint string) string { return fmt.Sprintf(`"publicKey":{"hint":%q}`, hint) }
	good := sealed(st)
	about := func(subjects string) []byte { return sealed(statement(subjects, "https://example.org/t", `{}`)) }
	hex512 := strings.Repeat("a", 128)

	for _, c := range []struct {
		name string
		raw  []byte
		want verify.Code // "" accepted; "form": not even a bundle
	}{
		{"a bare envelope, as in .att", good, ""},
		{"a bundle", bundled(key(ours.public.Hint()), good), ""},
		{"a bundle without a hint", bundled(key(""), good), ""},
		{"a hint that names another key", bundled(key(stranger.public.Hint()), good), ""},
		{"a key id that nobody has", bytes.Replace(good, []byte(`"keyid":""`), []byte(`"keyid":"nobody's"`), 1), ""},
		{"a statement v0.1", sealed(bytes.Replace(st, []byte("Statement/v1"), []byte("Statement/v0.1"), 1)), ""},
		{"the image as second subject", about(sha256Subject(sibling) + "," + sha256Subject(image)), ""},
		{"base64url", bytes.ReplaceAll(good, []byte(base64.StdEncoding.EncodeToString(st)), []byte(base64.URLEncoding.EncodeToString(st))), ""},

		{"another key", envelope(attest.PayloadType, st, stranger.sign(t, attest.PayloadType, st)), verify.CodeSignature},
		{"another key under our hint", bundled(key(ours.public.Hint()), envelope(attest.PayloadType, st, stranger.sign(t, attest.PayloadType, st))), verify.CodeSignature},
		{"a payload changed by one byte", envelope(attest.PayloadType, bytes.Replace(st, []byte(`"a":1`), []byte(`"a":2`), 1), ours.sign(t, attest.PayloadType, st)), verify.CodeSignature},
		{"a signature under another payload type", envelope(attest.PayloadType, st, ours.sign(t, "text/plain", st)), verify.CodeSignature},
		{"a signature over the payload alone", envelope(attest.PayloadType, st, func() []byte {
			sum := sha256.Sum256(st)
			sig, err := ours.private.Sign(rand.Reader, sum[:], crypto.SHA256)
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}()), verify.CodeSignature},
		{"a signature cut short", envelope(attest.PayloadType, st, ours.sign(t, attest.PayloadType, st)[:10]), verify.CodeSignature},
		{"two signatures", envelope(attest.PayloadType, st, ours.sign(t, attest.PayloadType, st), stranger.sign(t, attest.PayloadType, st)), verify.CodeSignatures},
		{"the same signature twice", envelope(attest.PayloadType, st, ours.sign(t, attest.PayloadType, st), ours.sign(t, attest.PayloadType, st)), verify.CodeSignatures},
		{"a certificate", bundled(`"certificate":{"rawBytes":"MAA="}`, good), verify.CodeCertificate},

		{"another image", about(sha256Subject(sibling)), verify.CodeSubject},
		{"sha512 only", about(fmt.Sprintf(`{"digest":{"sha512":%q}}`, hex512)), verify.CodeSubject},
		{"the digest under another algorithm's name", about(fmt.Sprintf(`{"digest":{"blake3":%q}}`, image.Hex())), verify.CodeSubject},
		{"the digest as a name", about(fmt.Sprintf(`{"name":%q,"digest":{"sha256":%q}}`, image, sibling.Hex())), verify.CodeSubject},
		{"an upper-case digest", about(fmt.Sprintf(`{"digest":{"sha256":%q}}`, strings.ToUpper(image.Hex()))), "form"},

		{"another payload type", envelope("application/json", st, ours.sign(t, "application/json", st)), "form"},
		{"no signature", envelope(attest.PayloadType, st), "form"},
		{"no subject", about(""), "form"},
		{"a subject without digest", about(`{"name":"image","digest":{}}`), "form"},
		{"two statements in one payload", sealed(append(append([]byte{}, st...), st...)), "form"},
		{"data after the envelope", append(append([]byte{}, good...), '{', '}'), "form"},
		{"a byte order mark", append([]byte("\ufeff"), good...), "form"},
		{"a key twice in the statement", sealed(bytes.Replace(st, []byte(`"subject"`), []byte(`"subject":[],"subject"`), 1)), "form"},
		{"a key in two cases", sealed(bytes.Replace(st, []byte(`"subject"`), []byte(`"Subject":[],"subject"`), 1)), "form"},
		{"a key twice in the envelope", bytes.Replace(good, []byte(`"payloadType"`), []byte(`"payloadType":"x","payloadType"`), 1), "form"},
		{"neither key nor certificate", bundled("", good), "form"},
		{"text", []byte("hello"), "form"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, err := attest.ParseBundle(c.raw)
			if (err != nil) != (c.want == "form") {
				t.Fatalf("parsing: %v", err)
			}
			if err != nil {
				return
			}
			ok, err := checked(t, b, verify.Trust{Keys: []verify.Key{ours.public}})
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if ok.Signer().Key != ours.public.ID() || ok.Signer().Name != "ours.pub" || ok.Bundle() != attest.DigestOf(c.raw) || !ok.Statement().Binds(image) {
					t.Errorf("accepted as %+v of %s", ok.Signer(), ok.Bundle())
				}
				return
			}
			var r *verify.Rejection
			if !errors.As(err, &r) || r.Code != c.want {
				t.Errorf("got %v, want code %q", err, c.want)
			}
			if ok != nil {
				t.Error("a rejection came with a statement")
			}
		})
	}
}

func TestCheckWithoutKeysAcceptsNothing(t *testing.T) {
	ours := newPair(t, "ours.pub", nil)
	st := statement(sha256Subject(image), "https://example.org/t", `{}`)
	b, err := attest.ParseBundle(envelope(attest.PayloadType, st, ours.sign(t, attest.PayloadType, st)))
	if err != nil {
		t.Fatal(err)
	}
	var r *verify.Rejection
	if _, err := checked(t, b, verify.Trust{}); !errors.As(err, &r) || r.Code != verify.CodeNoKey {
		t.Errorf("no keys: %v", err)
	}
	if _, err := checked(t, b, verify.Trust{Keys: []verify.Key{{}}}); !errors.As(err, &r) || r.Code != verify.CodeSignature {
		t.Errorf("the zero key: %v", err)
	}
}

func TestKeyTypes(t *testing.T) {
	ec := func(c elliptic.Curve) crypto.Signer {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, private := range map[string]crypto.Signer{"P-256": ec(elliptic.P256()), "P-384": ec(elliptic.P384()), "P-521": ec(elliptic.P521()), "Ed25519": ed, "RSA": r} {
		t.Run(name, func(t *testing.T) {
			p, other := newPair(t, name, private), newPair(t, "other", nil)
			st := statement(sha256Subject(image), "https://example.org/t", `{}`)
			b, err := attest.ParseBundle(envelope(attest.PayloadType, st, p.sign(t, attest.PayloadType, st)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := checked(t, b, verify.Trust{Keys: []verify.Key{other.public, p.public}}); err != nil {
				t.Error(err)
			}
			if _, err := checked(t, b, verify.Trust{Keys: []verify.Key{other.public}}); err == nil {
				t.Error("accepted under another key")
			}
		})
	}
}

func TestParseKeyRefuses(t *testing.T) {
	good := string(newPair(t, "k", nil).pem)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weakDER, err := x509.MarshalPKIXPublicKey(weak.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "PEM"},
		{"text", "hello", "PEM"},
		{"private", strings.ReplaceAll(good, "PUBLIC", "PRIVATE"), "private key"},
		{"cosign's private", strings.ReplaceAll(good, "PUBLIC KEY", "ENCRYPTED SIGSTORE PRIVATE KEY"), "private key"},
		{"certificate", strings.ReplaceAll(good, "PUBLIC KEY", "CERTIFICATE"), "trust the CA that issued it with --ca-roots"},
		{"another block", strings.ReplaceAll(good, "PUBLIC KEY", "NONSENSE"), "NONSENSE"},
		{"two keys", good + good, "one key"},
		{"cut", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "PKIX"},
		{"weak", string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: weakDER})), "too weak"},
		{"large", strings.Repeat("x", attest.MaxKey+1), "larger"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := verify.ParseKey("k.pub", []byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "k.pub") {
				t.Errorf("got %v, want it to name k.pub and say %q", err, c.want)
			}
		})
	}
}
