// Package kms speaks with what holds keys for others: key management services,
// the secrets of a Kubernetes cluster, PKCS#11 tokens. It is for waxseal-kms, a
// program of its own: the clients would double what waxseal takes to start, and
// a token's library is somebody else's machine code. Call Serve; package keys
// has the protocol and its other end.
package kms

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	vault "github.com/hashicorp/vault/api"
	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/kms"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/aws"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/azure"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/gcp"
	_ "github.com/sigstore/sigstore/pkg/signature/kms/hashivault"
	"github.com/sigstore/sigstore/pkg/signature/options"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// key is an open key.
type key interface {
	Public() crypto.PublicKey
	// Hash is what it signs hashes of: sha256, sha384 or sha512; "": messages.
	Hash() string
	// Sign signs a digest, or a message where Hash is "".
	Sign(ctx context.Context, input []byte) ([]byte, error)
	Close()
}

// Serve answers the requests in in, a line each, until it ends.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	keepMemory()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 2*attest.MaxStatement) // a message in base64
	answers := json.NewEncoder(out)
	var k key
	defer func() {
		if k != nil {
			k.Close()
		}
	}()
	for lines.Scan() {
		var r keys.Request
		if err := attest.UnmarshalStrict(lines.Bytes(), &r); err != nil {
			return err
		}
		clear(lines.Bytes())
		var reply keys.Reply
		if k == nil {
			k, reply = open(ctx, r)
		} else {
			reply = sign(ctx, k, r)
		}
		clear(r.PIN)
		if err := answers.Encode(reply); err != nil {
			return err
		}
	}
	return lines.Err()
}

// PublicKey is the answer for the public half of the key that ref names, for
// who asks by hand.
func PublicKey(ctx context.Context, ref string) keys.Reply {
	k, reply := open(ctx, keys.Request{Ref: ref})
	if k != nil {
		k.Close()
	}
	return reply
}

func open(ctx context.Context, r keys.Request) (k key, reply keys.Reply) {
	defer survive(&reply)
	k, err := openKey(ctx, r)
	if err != nil {
		return nil, refusal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		k.Close()
		return nil, refusal(&refused{keys.ClassReference, fmt.Errorf("it is no public key that signatures are checked with: %w", err)})
	}
	return k, keys.Reply{PublicKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), Hash: k.Hash()}
}

func openKey(ctx context.Context, r keys.Request) (key, error) {
	switch scheme, _, _ := strings.Cut(r.Ref, ":"); scheme {
	case "pkcs11":
		return openToken(r)
	case "k8s":
		return openSecret(ctx, r)
	case "awskms", "azurekms", "gcpkms", "hashivault", "openbao":
		return openService(ctx, r)
	}
	return nil, &refused{keys.ClassReference, fmt.Errorf("%q is no reference to a key", r.Ref)}
}

func sign(ctx context.Context, k key, r keys.Request) (reply keys.Reply) {
	defer survive(&reply)
	input := r.Digest
	if k.Hash() == "" {
		input = r.Message
	}
	if want, hashed := map[string]int{"sha256": 32, "sha384": 48, "sha512": 64}[k.Hash()]; len(input) == 0 || hashed && len(input) != want {
		return refusal(&refused{keys.ClassReference, errors.New("that is nothing that this key signs")})
	}
	sig, err := k.Sign(ctx, input)
	if err != nil {
		return refusal(err)
	}
	return keys.Reply{Signature: sig}
}

// survive makes an answer of a panic: the clients are other people's, and some
// take what a service says for granted.
func survive(reply *keys.Reply) {
	if p := recover(); p != nil {
		*reply = keys.Reply{Class: keys.ClassUnanswered, Message: fmt.Sprintf("the client failed: %v", p)}
	}
}

func refusal(err error) keys.Reply {
	err = understood(err)
	return keys.Reply{Class: classOf(err), Message: said(err)}
}

// refused is an error whose class is known where it is made.
type refused struct {
	class keys.Class
	error
}

func (r *refused) Unwrap() error { return r.error }

// service is a key of a key management service, through sigstore's clients.
type service struct {
	ref    string
	client kms.SignerVerifier
	public crypto.PublicKey
	hash   crypto.Hash
}

func openService(ctx context.Context, r keys.Request) (key, error) {
	if err := onTheWire(r.Ref); err != nil {
		return nil, &refused{keys.ClassReference, err}
	}
	s := &service{ref: r.Ref}
	var err error
	if s.client, err = load(ctx, r.Ref, crypto.SHA256); err != nil {
		return nil, err
	}
	if s.public, err = s.client.PublicKey(options.WithContext(ctx)); err != nil {
		if strings.Contains(err.Error(), "could not parse transit key keys data") {
			err = &refused{keys.ClassReference, errors.New("the key is symmetric: it has no public half, and makes no signatures")}
		}
		return nil, err
	}
	if older := olderVersion(ctx, r, s.public); older != nil {
		s.public = older
	}
	if _, ok := s.public.(ed25519.PublicKey); ok {
		s.client, err = load(ctx, r.Ref, crypto.Hash(0))
		return s, err
	}
	s.hash = crypto.SHA256
	if !r.Sign {
		return s, nil
	}
	// What a service signs is its own choice: a P-384 key of most signs SHA-384.
	_, opts, err := s.client.CryptoSigner(ctx, func(error) {})
	if err != nil {
		return nil, err
	}
	s.hash = opts.HashFunc()
	if s.Hash() == "" {
		return nil, &refused{keys.ClassUnsupported, fmt.Errorf("it signs with %v, which is not supported; use ECDSA P-256", s.hash)}
	}
	return s, nil
}

func load(ctx context.Context, ref string, hash crypto.Hash) (kms.SignerVerifier, error) {
	client, err := kms.Get(ctx, ref, hash)
	if err != nil && strings.Contains(err.Error(), "kms specification should be in the format") {
		return nil, &refused{keys.ClassReference, err}
	}
	return client, err
}

func (s *service) Public() crypto.PublicKey { return s.public }
func (s *service) Close()                   {}

func (s *service) Hash() string {
	return map[crypto.Hash]string{crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512"}[s.hash]
}

func (s *service) Sign(ctx context.Context, input []byte) ([]byte, error) {
	opts := []signature.SignOption{options.WithContext(ctx), options.WithCryptoSignerOpts(s.hash)}
	if s.hash == 0 {
		return s.client.SignMessage(bytes.NewReader(input), opts...)
	}
	sig, err := s.client.SignMessage(nil, append(opts, options.WithDigest(input))...)
	pub, ok := s.public.(*rsa.PublicKey)
	switch {
	case err != nil || !ok:
		return sig, err
	case strings.HasPrefix(s.ref, "azurekms://"):
		return whole(sig, pub.Size())
	case rsa.VerifyPSS(pub, s.hash, input, sig, nil) == nil:
		// Google fixes the padding with the key, and the client does not say it.
		return nil, &refused{keys.ClassUnsupported, errors.New("it signs RSA-PSS, which who verifies bundles does not expect; use one for RSA_SIGN_PKCS1, or ECDSA")}
	}
	return sig, nil
}

// whole puts an RSA signature of Azure's together again: the client takes every
// signature for the two numbers of ECDSA.
func whole(sig []byte, size int) ([]byte, error) {
	var halves struct{ R, S *big.Int }
	if rest, err := asn1.Unmarshal(sig, &halves); err != nil || len(rest) > 0 {
		return sig, nil // a later client that does not
	}
	if halves.R.Sign() < 0 || halves.S.Sign() < 0 || halves.R.BitLen() > size*4 || halves.S.BitLen() > size*4 {
		return nil, errors.New("the signature has another length than the key")
	}
	out := make([]byte, size)
	halves.R.FillBytes(out[:size/2])
	halves.S.FillBytes(out[size/2:])
	return out, nil
}

// onTheWire refuses a Vault that anybody on the way could speak for.
func onTheWire(ref string) error {
	if !inVault(ref) {
		return nil
	}
	address := cmp.Or(os.Getenv("VAULT_ADDR"), os.Getenv("BAO_ADDR"))
	u, err := url.Parse(address)
	if err != nil || address == "" {
		return errors.New("VAULT_ADDR says where the Vault is; it is not set to an address")
	}
	if host := u.Hostname(); u.Scheme != "https" && host != "localhost" && host != "127.0.0.1" && host != "::1" {
		return fmt.Errorf("VAULT_ADDR is %q: a key is fetched over https only", u.Redacted())
	}
	return nil
}

func classOf(err error) keys.Class {
	var known *refused
	if errors.As(err, &known) {
		return known.class
	}
	var stranger *tls.CertificateVerificationError
	if errors.As(err, &stranger) {
		return keys.ClassUntrusted
	}
	// The AWS client's errors.
	var named interface{ ErrorCode() string }
	if errors.As(err, &named) {
		switch code := named.ErrorCode(); {
		case code == "NotFoundException":
			return keys.ClassNotFound
		case strings.HasPrefix(code, "AccessDenied"):
			return keys.ClassPermission
		case code == "UnrecognizedClientException", code == "InvalidSignatureException", code == "ExpiredTokenException":
			return keys.ClassLogin
		case code == "UnsupportedOperationException", code == "InvalidKeyUsageException", code == "InvalidArnException":
			return keys.ClassReference
		}
	}
	var fromVault *vault.ResponseError
	if errors.As(err, &fromVault) {
		return classOfStatus(fromVault.StatusCode)
	}
	var fromAzure *azcore.ResponseError
	if errors.As(err, &fromAzure) {
		return classOfStatus(fromAzure.StatusCode)
	}
	switch status.Code(err) {
	case codes.NotFound:
		return keys.ClassNotFound
	case codes.PermissionDenied:
		return keys.ClassPermission
	case codes.Unauthenticated:
		return keys.ClassLogin
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
		return keys.ClassReference
	}
	// Vault's client gives no error for a 404, and sigstore's says this.
	if strings.Contains(err.Error(), "could not read data from transit key path") {
		return keys.ClassNotFound
	}
	return keys.ClassUnanswered
}

func classOfStatus(code int) keys.Class {
	switch code {
	case http.StatusNotFound:
		return keys.ClassNotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		return keys.ClassPermission
	case http.StatusBadRequest:
		return keys.ClassReference
	}
	return keys.ClassUnanswered
}
