// Package keys speaks with keys that something else holds: a key management
// service, a Kubernetes secret, a PKCS#11 token. A child does the speaking,
// waxseal-kms: it has the clients, the credentials and the token's library, and
// none of waxseal's own keys. Call Open, then Key.Sign; a Key that only verifies
// is its public half.
//
// A public half is asked for once by version of its key, and then kept: on disk
// under the digest that a reference pins it by, for such a copy proves itself;
// in memory, until the machine ends, under the name of a version that its service
// can give to no other key (see OneVersion), and of what says who is asked (see
// Asked). A name that can come to mean another key, as an alias or a key in Vault,
// is asked for by each process. See trust.PublicKey.
package keys

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/pkg/attest"
)

// The schemes of references.
const (
	aws        = "awskms"
	azure      = "azurekms"
	google     = "gcpkms"
	vault      = "hashivault"
	openbao    = "openbao"
	kubernetes = "k8s"
	token      = "pkcs11"
)

// Forms is how references look, for help texts.
const Forms = "awskms://, azurekms://, gcpkms://, hashivault://, openbao://, k8s://NAMESPACE/SECRET, pkcs11:"

// IsRef reports whether a key is named by a reference, and not by a file.
func IsRef(name string) bool {
	scheme, _, ok := strings.Cut(name, "://")
	return ok && scheme != "file" || strings.HasPrefix(name, token+":")
}

// Options configures Open.
type Options struct {
	// Sign is to be able to sign: a token is logged into, a secret's private
	// half is read. Without it only the public half is asked for.
	Sign bool
	// Program is the helper; default: waxseal-kms beside this program, wherever
	// PATH leads: what it says is believed.
	Program string
	// Environ is the environment that the clients find their credentials in, as
	// os.Environ gives it. Each gets what its own service needs of it, and
	// nothing that would have it accept any certificate, or ask elsewhere.
	Environ []string
	// Module is the PKCS#11 library where a URI has no module-path.
	Module string
	// PIN is called at most once, for a token that wants one which its URI does
	// not have. The bytes are overwritten.
	PIN func(token string) ([]byte, error)
	// Tell is told what is tried again. Nil: nobody.
	Tell func(string)
}

// Key is a key that something else holds. It is safe for concurrent use; one
// signature is made at a time.
type Key struct {
	name   string
	public crypto.PublicKey
	pem    []byte
	hash   crypto.Hash

	mu     sync.Mutex
	helper *helper // nil once closed
	opts   Options
}

// Open asks for the key that ref names: in AWS KMS (awskms://), Azure Key Vault
// (azurekms://), Google Cloud KMS (gcpkms://), HashiCorp Vault (hashivault://)
// or OpenBao (openbao://), in sigstore's spelling; in a Kubernetes secret as
// cosign writes it (k8s://NAMESPACE/SECRET); or on a PKCS#11 token (RFC 7512). A
// reference that ends in @sha256:DIGEST takes no other key, see CutPin.
// What does not answer is asked again, a bounded number of times. Any error but
// the context's is an *Error.
func Open(ctx context.Context, ref string, o Options) (*Key, error) {
	k := &Key{name: Name(ref), opts: o}
	uri, pin, err := CutPin(ref)
	if err != nil {
		return nil, k.fail(err)
	}
	request, err := parse(uri, o)
	if err != nil {
		return nil, k.fail(err)
	}
	defer clear(request.PIN)
	if !o.Sign {
		request.ID = string(pin)
	}
	if k.helper, err = k.start(request.Ref); err != nil {
		return nil, err
	}
	err = k.open(ctx, request)
	if is := k.ID(); err == nil && pin != "" && is != pin {
		err = k.fail(fmt.Errorf("the service has %s there", is))
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

// CutPin takes the @sha256:DIGEST off a reference that pins its key: to the
// sha256 of its PKIX form, which is how waxseal names a key.
func CutPin(ref string) (uri string, pin attest.Digest, err error) {
	i := strings.LastIndex(ref, "@sha256:")
	if i <= 0 {
		return ref, "", nil
	}
	pin, err = attest.ParseDigest(ref[i+1:])
	return ref[:i], pin, err
}

// OneVersion reports whether a reference names a version that its service never
// gives to another key, whoever asks: an AWS key by its ARN, a version in Google
// Cloud KMS, a version in Azure Key Vault. One in Vault may be deleted and made
// anew by the same name and number; an alias moves; a key of AWS without its
// account is whatever the credentials say.
func OneVersion(ref string) bool { return regexp.MustCompile(oneVersion).MatchString(ref) }

const oneVersion = `^(?:` +
	`awskms://[^/]*/arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+` +
	`|gcpkms://projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+/(?:cryptoKeyVersions|versions)/[0-9]+` +
	`|azurekms://[^/]+/[^/]+/[0-9a-f]{32}` +
	`)$`

// Name is ref as it may be shown: without a PIN.
func Name(ref string) string {
	uri, _ := cutPIN(ref)
	return uri
}

func parse(ref string, o Options) (Request, error) {
	uri, pin := cutPIN(ref)
	r := Request{Ref: uri, Sign: o.Sign, PIN: pin}
	scheme, _, _ := strings.Cut(uri, ":")
	switch {
	case len(uri) > attest.MaxURI || strings.ContainsFunc(uri, func(r rune) bool { return r < ' ' || r > '~' }):
		return r, errors.New("it is no reference to a key")
	case scheme == token:
		t, err := parseToken(uri)
		if err != nil {
			return r, err
		}
		if r.Module = o.Module; r.Module == "" && t.module == "" {
			return r, errors.New("it names no module-path, the library that speaks with the token (as pkcs11:token=T;object=O?module-path=/usr/lib/softhsm/libsofthsm2.so); to sign, and for a key that is pinned as in a policy, COSIGN_PKCS11_MODULE_PATH says it, too")
		}
		if t.pinFile != "" && o.Sign {
			r.PIN, err = readPIN(t.pinFile)
		}
		return r, err
	case scheme == "env":
		return r, errors.New("a key in a variable is read where it signs, and with --key where it verifies; nowhere else")
	case !slices.Contains([]string{aws, azure, google, vault, openbao, kubernetes}, scheme):
		return r, fmt.Errorf("no key management service is called %q; known are %s", scheme, Forms)
	}
	return r, nil
}

func (k *Key) open(ctx context.Context, r Request) error {
	reply, err := k.ask(ctx, r)
	var refused *Error
	if errors.As(err, &refused) && refused.Class == ClassPIN && len(r.PIN) == 0 && k.opts.PIN != nil {
		// The message is the token's label.
		if r.PIN, err = k.opts.PIN(refused.err.Error()); err != nil {
			return err
		}
		if len(r.PIN) == 0 {
			return &Error{ClassPINRefused, k.doing(false), fmt.Errorf("the PIN of the token %s is empty", refused.err), "give the PIN: a CI secret that a job does not get is empty, too"}
		}
		defer clear(r.PIN)
		reply, err = k.ask(ctx, r)
	}
	if err != nil {
		return err
	}
	block, rest := pem.Decode([]byte(reply.PublicKey))
	if block == nil || block.Type != "PUBLIC KEY" || len(rest) > 0 {
		return k.fail(errors.New("what came back is no public key"))
	}
	if k.public, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
		return k.fail(err)
	}
	k.pem = []byte(reply.PublicKey)
	switch _, whole := k.public.(ed25519.PublicKey); {
	case !k.opts.Sign || whole && reply.Hash == "":
		return nil
	case whole:
		return k.fail(errors.New("an Ed25519 key signs messages, not hashes"))
	}
	var ok bool
	if k.hash, ok = hashes()[reply.Hash]; !ok {
		return k.fail(fmt.Errorf("it signs hashes of the kind %q, which is none that waxseal knows", reply.Hash))
	}
	return nil
}

func hashes() map[string]crypto.Hash {
	return map[string]crypto.Hash{"sha256": crypto.SHA256, "sha384": crypto.SHA384, "sha512": crypto.SHA512}
}

// ID is the sha256 of the verifying half's PKIX form.
func (k *Key) ID() attest.Digest {
	block, _ := pem.Decode(k.pem)
	if block == nil {
		return ""
	}
	return attest.DigestOf(block.Bytes)
}

// Public is the verifying half: an *ecdsa.PublicKey, *rsa.PublicKey or
// ed25519.PublicKey.
func (k *Key) Public() crypto.PublicKey { return k.public }

// PEM is the verifying half, PKIX.
func (k *Key) PEM() []byte { return slices.Clone(k.pem) }

// Hash is what messages are hashed with; 0 for Ed25519, and without
// Options.Sign.
func (k *Key) Hash() crypto.Hash { return k.hash }

// Sign signs the message, and returns the digest that was signed: ASN.1 of
// ECDSA, PKCS #1 v1.5 of RSA, and plain Ed25519, whose digest is the message's
// sha256 all the same.
func (k *Key) Sign(ctx context.Context, message []byte) (sig, digest []byte, err error) {
	if !k.opts.Sign {
		return nil, nil, k.fail(errors.New("it was opened to verify"))
	}
	var h hash.Hash
	request := Request{Message: message}
	if k.hash == 0 {
		h = crypto.SHA256.New()
	} else {
		h = k.hash.New()
	}
	h.Write(message)
	digest = h.Sum(nil)
	if k.hash != 0 {
		request = Request{Digest: digest}
	}
	reply, err := k.ask(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	if len(reply.Signature) == 0 {
		return nil, nil, k.fail(errors.New("no signature came back"))
	}
	if pub, ok := k.public.(*rsa.PublicKey); ok && len(reply.Signature) != pub.Size() {
		return nil, nil, k.fail(errors.New("the signature has another length than the key"))
	}
	return reply.Signature, digest, nil
}

// Close ends the helper, which logs out; Sign fails from then on.
func (k *Key) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.helper != nil {
		k.helper.end()
		k.helper = nil
	}
	return nil
}

func (k *Key) fail(err error) error {
	return &Error{Class: ClassReference, what: fmt.Sprintf("reading the key %q", k.name), err: err}
}
