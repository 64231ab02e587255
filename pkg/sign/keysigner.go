package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"sync"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	sgsign "github.com/sigstore/sigstore-go/pkg/sign"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/signature"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// keySigner signs with a key in memory, or one that something else holds.
// SHA-256 whatever the curve, and plain Ed25519: what a verifier that was given
// nothing but the public key assumes. A service that insists on the hash of its
// key's size has its way.
type keySigner struct {
	mu     sync.RWMutex
	priv   crypto.Signer    // nil once closed
	signer signature.Signer // around priv; nil where it is held
	pub    []byte           // PEM
	hint   []byte           // base64 of the sha256 of the PKIX form
	alg    protocommon.PublicKeyDetails
}

var errClosed = errors.New("the key is closed")

func newKeySigner(priv crypto.Signer) (*keySigner, error) {
	signer, err := signature.LoadSigner(priv, crypto.SHA256)
	if err != nil {
		return nil, err
	}
	pub, err := cryptoutils.MarshalPublicKeyToPEM(priv.Public())
	if err != nil {
		return nil, err
	}
	return keySignerOf(priv, signer, pub), nil
}

// newHeldSigner signs with a key that something else holds.
func newHeldSigner(k *keys.Key) (*keySigner, error) {
	if err := goodKey(k.Public()); err != nil {
		return nil, err
	}
	return keySignerOf(heldKey{k}, nil, k.PEM()), nil
}

func keySignerOf(priv crypto.Signer, signer signature.Signer, pub []byte) *keySigner {
	block, _ := pem.Decode(pub)
	sum := sha256.Sum256(block.Bytes)
	alg := protocommon.PublicKeyDetails_PUBLIC_KEY_DETAILS_UNSPECIFIED
	if details, err := signature.GetDefaultAlgorithmDetails(priv.Public()); err == nil {
		alg = details.GetSignatureAlgorithm()
	}
	return &keySigner{
		priv: priv, signer: signer, pub: pub, alg: alg,
		hint: []byte(base64.StdEncoding.EncodeToString(sum[:])),
	}
}

// heldKey is how the rest of this package sees a key that something else holds.
// What signs messages with it calls sign.
type heldKey struct{ *keys.Key }

func (h heldKey) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("a key that something else holds signs messages only")
}

func (h heldKey) sign(ctx context.Context, message []byte) (sig, digest []byte, err error) {
	return h.Key.Sign(ctx, message)
}

func (s *keySigner) PublicKey() []byte { return bytes.Clone(s.pub) }

func (s *keySigner) Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error) {
	b, err := s.sign(ctx, st)
	if err != nil {
		return nil, fmt.Errorf("signing statement %q: %w", st.PredicateType, err)
	}
	return b, nil
}

func (s *keySigner) sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.priv == nil {
		return nil, errClosed
	}
	content := &sgsign.DSSEData{Data: st.Raw(), PayloadType: attest.PayloadType}
	pb, err := sgsign.Bundle(content, keypair{s}, sgsign.BundleOptions{Context: ctx})
	if err != nil {
		return nil, err
	}
	b, err := parseMade(pb)
	if err != nil {
		return nil, err
	}
	return b, s.verify(b, st)
}

// parseMade is a fresh bundle as everybody will read it.
func parseMade(pb *protobundle.Bundle) (*attest.Bundle, error) {
	spaced, err := protojson.Marshal(pb)
	if err != nil {
		return nil, err
	}
	// protojson varies its spaces from build to build on purpose; one bundle
	// must have one digest.
	var raw bytes.Buffer
	if err := json.Compact(&raw, spaced); err != nil {
		return nil, err
	}
	return attest.ParseAnyBundle(raw.Bytes())
}

// verify checks the bytes that will leave the process, as a stranger with the
// public key would.
func (s *keySigner) verify(b *attest.Bundle, st *attest.Statement) error {
	if !bytes.Equal(b.Statement().Raw(), st.Raw()) {
		return errors.New("the bundle does not hold the statement")
	}
	if !Made(s.pub, b) {
		if _, ok := s.priv.(heldKey); ok {
			return errors.New("the fresh signature does not verify with the key that the service shows: the key was rotated just now, or signs in another way (of RSA only PKCS #1 v1.5 is used, not PSS); nothing was written")
		}
		return errors.New("the fresh signature does not verify")
	}
	return nil
}

func (s *keySigner) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	forget(s.priv)
	s.priv, s.signer = nil, nil
	return nil
}

// forget overwrites a private key. Copies that Go's crypto packages made of it,
// and what the garbage collector has not used again, it cannot reach.
func forget(priv crypto.Signer) {
	switch k := priv.(type) {
	case heldKey:
		k.Close()
	case ed25519.PrivateKey:
		clear(k)
	case *ecdsa.PrivateKey:
		clear(k.D.Bits()) //nolint:staticcheck // deprecated for setting it, and nothing else overwrites it
	case *rsa.PrivateKey:
		clear(k.D.Bits())
		for _, p := range append(k.Primes, k.Precomputed.Dp, k.Precomputed.Dq, k.Precomputed.Qinv) {
			if p != nil {
				clear(p.Bits())
			}
		}
	}
}

// keypair is how sigstore-go sees a keySigner.
type keypair struct{ s *keySigner }

func (k keypair) GetHashAlgorithm() protocommon.HashAlgorithm {
	if h, ok := k.s.priv.(heldKey); ok {
		switch h.Hash() {
		case crypto.SHA384:
			return protocommon.HashAlgorithm_SHA2_384
		case crypto.SHA512:
			return protocommon.HashAlgorithm_SHA2_512
		}
	}
	return protocommon.HashAlgorithm_SHA2_256
}
func (k keypair) GetSigningAlgorithm() protocommon.PublicKeyDetails { return k.s.alg }
func (k keypair) GetHint() []byte                                   { return k.s.hint }
func (k keypair) GetPublicKey() crypto.PublicKey                    { return k.s.priv.Public() }
func (k keypair) GetPublicKeyPem() (string, error)                  { return string(k.s.pub), nil }

func (k keypair) GetKeyAlgorithm() string {
	switch k.s.priv.Public().(type) {
	case *ecdsa.PublicKey:
		return "ECDSA"
	case *rsa.PublicKey:
		return "RSA"
	}
	return "ED25519"
}

// SignData gives the same signature for the same data, whatever the key: an
// SBOM that is signed again on every build of an unchanged image is then the
// same bundle, and is attached once. Without a source of randomness Go's ECDSA
// signs as RFC 6979 says; the other kinds are deterministic by nature.
// A service has a mind of its own.
func (k keypair) SignData(ctx context.Context, data []byte) (sig, digest []byte, err error) {
	if h, ok := k.s.priv.(heldKey); ok {
		return h.sign(ctx, data)
	}
	sum := sha256.Sum256(data)
	if key, ok := k.s.priv.(*ecdsa.PrivateKey); ok {
		sig, err = key.Sign(nil, sum[:], crypto.SHA256)
	} else {
		sig, err = k.s.signer.SignMessage(bytes.NewReader(data))
	}
	return sig, sum[:], err
}
