package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Key is a public key that evidence may be signed with. Make one with
// ParseKey; the zero Key verifies nothing.
type Key struct {
	name      string
	id        attest.Digest
	window    Window
	verifiers []signature.Verifier
}

// During is the key as one whose signatures count in a window only: as a log
// or a time-stamping authority proves, or where nothing is proved, as of now.
func (k Key) During(w Window) Key {
	k.window = w
	return k
}

// Window is when the key's signatures count.
func (k Key) Window() Window { return k.window }

// ID is the sha256 of the key's PKIX (DER) form, the same for every PEM
// spelling of one key.
func (k Key) ID() attest.Digest { return k.id }

// Name is what the user called the key, usually its file.
func (k Key) Name() string { return k.name }

// Type names the kind of key: "ECDSA P-256", "Ed25519", "RSA 3072".
func (k Key) Type() string {
	if len(k.verifiers) == 0 {
		return ""
	}
	pub, err := k.verifiers[0].PublicKey()
	if err != nil {
		return ""
	}
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return "ECDSA " + pub.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", pub.N.BitLen())
	}
	return "Ed25519"
}

// Hint is how bundles made by cosign and waxseal name the key: base64 of the
// bytes of ID.
func (k Key) Hint() string {
	sum, err := hex.DecodeString(k.id.Hex())
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(sum)
}

// ParseKey reads one PEM public key: ECDSA (P-256, P-384, P-521), Ed25519, or
// RSA of 2048 bits or more. name is used in messages only.
func ParseKey(name string, raw []byte) (Key, error) {
	k, err := parseKey(raw)
	if err != nil {
		return Key{}, fmt.Errorf("reading public key %q: %w", name, err)
	}
	k.name = name
	return k, nil
}

func parseKey(raw []byte) (Key, error) {
	if len(raw) > attest.MaxKey {
		return Key{}, fmt.Errorf("it is larger than the %d bytes a key file may have", attest.MaxKey)
	}
	block, rest := pem.Decode(raw)
	switch {
	case block == nil:
		return Key{}, errors.New(`not a PEM public key (want a file that starts with "-----BEGIN PUBLIC KEY-----", as "waxseal key generate" and cosign write it)`)
	case strings.Contains(block.Type, "PRIVATE KEY"):
		return Key{}, errors.New("this is a private key; give the public half, the .pub file")
	case block.Type == "CERTIFICATE":
		return Key{}, errors.New("this is a certificate, not a public key; trust the CA that issued it with --ca-roots FILE and --certificate-identity NAME, in a policy with ca and san")
	case block.Type != "PUBLIC KEY":
		return Key{}, fmt.Errorf("PEM block is %q, want \"PUBLIC KEY\"", block.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return Key{}, errors.New("data after the key; one file holds one key")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return Key{}, fmt.Errorf("not a PKIX public key: %w", err)
	}
	vs, err := verifiersFor(pub)
	if err != nil {
		return Key{}, err
	}
	// Marshalled again, so that one key has one ID whatever its encoding was.
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return Key{}, err
	}
	return Key{id: attest.DigestOf(der), verifiers: vs}, nil
}

// verifiersFor returns what a signature by pub may be checked with: more than
// one where clients disagree on the hash. cosign signs with SHA-256 whatever
// the curve, Sigstore's registry of algorithms pairs P-384 with SHA-384.
func verifiersFor(pub crypto.PublicKey) ([]signature.Verifier, error) {
	hashes := []crypto.Hash{crypto.SHA256}
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
		case elliptic.P384():
			hashes = append(hashes, crypto.SHA384)
		case elliptic.P521():
			hashes = append(hashes, crypto.SHA512)
		default:
			return nil, fmt.Errorf("curve %s is not supported; use P-256", k.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if k.N.BitLen() < 2048 {
			return nil, fmt.Errorf("RSA of %d bits is too weak; use 2048 or more", k.N.BitLen())
		}
		if k.N.BitLen() > maxRSA {
			return nil, fmt.Errorf("RSA of %d bits is not supported; use %d or fewer", k.N.BitLen(), maxRSA)
		}
		// A service has one of them by the key's size.
		hashes = append(hashes, crypto.SHA384, crypto.SHA512)
	default:
		return nil, fmt.Errorf("key type %T is not supported; use ECDSA P-256", pub)
	}
	var out []signature.Verifier
	for _, h := range hashes {
		v, err := signature.LoadVerifier(pub, h)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}
