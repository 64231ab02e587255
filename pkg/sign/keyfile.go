package sign

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"github.com/sigstore/sigstore/pkg/cryptoutils/goodkey"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/attest"
)

// The types of PEM block that hold a private key; cosign writes the first, and
// wrote the second. Its own package that names them is not linked: it brings
// fifty others, which every start would pay for.
const (
	sealedKey    = "ENCRYPTED SIGSTORE PRIVATE KEY"
	sealedKeyOld = "ENCRYPTED COSIGN PRIVATE KEY"
	plainKey     = "PRIVATE KEY"
	plainEC      = "EC PRIVATE KEY"
	plainRSA     = "RSA PRIVATE KEY"
)

// ErrPassword is wrapped by the error for a key that its password does not
// open.
var ErrPassword = errors.New("wrong password")

// GenerateKeyPair returns a fresh ECDSA P-256 pair as cosign writes it: the
// private half encrypted with password, the public half PKIX, both PEM.
func GenerateKeyPair(password []byte) (private, public []byte, err error) {
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generating key pair: %w", err)
	}
	defer forget(priv)
	if private, public, err = seal(priv, password); err != nil {
		return nil, nil, fmt.Errorf("generating key pair: %w", err)
	}
	return private, public, nil
}

// seal encrypts a private key in cosign's form, and returns its public half.
func seal(priv crypto.Signer, password []byte) (private, public []byte, err error) {
	plain, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		return nil, nil, err
	}
	defer clear(plain)
	strength := encrypted.Standard
	if len(password) == 0 {
		// Whoever has the file can open it: a slower guess would only make every
		// signature slow.
		strength = encrypted.Legacy
	}
	sealed, err := encrypted.EncryptWithCustomKDFParameters(plain, password, strength)
	if err != nil {
		return nil, nil, err
	}
	if public, err = cryptoutils.MarshalPublicKeyToPEM(priv.Public()); err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: sealedKey, Bytes: sealed}), public, nil
}

func openFile(path string, opts OpenOptions) (*keySigner, error) {
	raw, err := readKey(path)
	if err != nil {
		return nil, fmt.Errorf("opening key %q: %w", path, err)
	}
	return openPEM(path, raw, opts)
}

// variableScheme begins a reference to a variable.
const variableScheme = "env://"

// openVariable opens the key in an environment variable, which it empties.
func openVariable(ref string, opts OpenOptions) (*keySigner, error) {
	raw, err := takeVariable(ref, opts)
	if err != nil {
		return nil, fmt.Errorf("opening key %q: %w", ref, err)
	}
	return openPEM(ref, raw, opts)
}

func takeVariable(ref string, opts OpenOptions) ([]byte, error) {
	if opts.Take == nil {
		return nil, errors.New("no environment is looked at here")
	}
	raw, ok := opts.Take(strings.TrimPrefix(ref, variableScheme))
	switch {
	case !ok || len(raw) == 0:
		return nil, errors.New("the variable is not set; put the PEM of a private key into it")
	case len(raw) > attest.MaxKey:
		clear(raw)
		return nil, fmt.Errorf("larger than the %d bytes a key may have; not a key", attest.MaxKey)
	}
	return raw, nil
}

// openPEM opens the key in raw, which it overwrites.
func openPEM(name string, raw []byte, opts OpenOptions) (*keySigner, error) {
	defer clear(raw)
	priv, err := ParsePrivateKey(raw, opts.Password)
	if err != nil {
		return nil, fmt.Errorf("opening key %q: %w", name, err)
	}
	s, err := newKeySigner(priv)
	if err != nil {
		return nil, fmt.Errorf("opening key %q: %w", name, err)
	}
	return s, nil
}

func readKey(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait for who writes into it
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New(`no such file; make one with "waxseal key generate"`)
	}
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	if info.Size() > attest.MaxKey {
		return nil, fmt.Errorf("larger than the %d bytes a key file may have; not a key", attest.MaxKey)
	}
	// A buffer that grew would leave pieces of the key behind.
	raw := make([]byte, info.Size())
	if _, err := io.ReadFull(f, raw); err != nil {
		clear(raw)
		return nil, cause(err)
	}
	// A public key may be read by anybody; that it is none to sign with is
	// said later.
	if perm := info.Mode().Perm(); perm&0o077 != 0 && bytes.Contains(raw, []byte("PRIVATE KEY")) {
		clear(raw)
		return nil, fmt.Errorf("others may use this file (mode %04o); run: chmod 600 %s", perm, quote(path))
	}
	return raw, nil
}

// cause takes the path out of an error whose text names it already.
func cause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// quote makes path safe to paste into a shell.
func quote(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@") == "" && !strings.HasPrefix(path, "-") {
		return path
	}
	return "-- '" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// ParsePrivateKey reads a private key as it is in a file, see Open. password is
// that of OpenOptions. What it returns is an *ecdsa.PrivateKey, *rsa.PrivateKey or
// ed25519.PrivateKey.
func ParsePrivateKey(raw []byte, password func() ([]byte, error)) (crypto.Signer, error) {
	block, err := privateBlock(raw)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	if !isSealed(block) {
		return parseDER(block.Type, block.Bytes)
	}
	der, err := decrypt(block.Bytes, password)
	if err != nil {
		return nil, err
	}
	defer clear(der)
	return parseDER(plainKey, der)
}

// privateBlock is the one private key in raw, encrypted or plain. The caller
// overwrites its bytes.
func privateBlock(raw []byte) (*pem.Block, error) {
	block, rest := pem.Decode(raw)
	if block != nil && block.Type == "EC PARAMETERS" { // openssl ecparam puts it before the key
		if block, rest = pem.Decode(rest); block == nil {
			return nil, errors.New("curve parameters without a key")
		}
	}
	if block == nil {
		return nil, errors.New(`not a PEM private key (want a file that starts with "-----BEGIN …PRIVATE KEY-----", as "waxseal key generate" and cosign write it)`)
	}
	err := checkBlock(block)
	if len(bytes.TrimSpace(rest)) > 0 {
		err = errors.New("data after the key; one file holds one key")
	}
	if err != nil {
		clear(block.Bytes)
		return nil, err
	}
	return block, nil
}

func checkBlock(block *pem.Block) error {
	switch block.Type {
	case sealedKey, sealedKeyOld:
	case plainKey, plainEC, plainRSA:
		if block.Headers["DEK-Info"] != "" {
			return errors.New("encrypted in openssl's old way; rewrite it with: openssl pkey -in KEY -out PLAIN.pem")
		}
	case "PUBLIC KEY", "RSA PUBLIC KEY":
		return errors.New("this is a public key; signing needs the private half, the .key file")
	case "ENCRYPTED PRIVATE KEY":
		return errors.New("encrypted in openssl's way, which cosign cannot read either; rewrite it with: openssl pkey -in KEY -out PLAIN.pem")
	case "OPENSSH PRIVATE KEY":
		return errors.New("this is an SSH key; rewrite a copy of it with: ssh-keygen -p -m PKCS8 -f COPY")
	case "CERTIFICATE":
		return errors.New("this is a certificate; signing needs a private key")
	default:
		return fmt.Errorf("PEM block %q is not a private key", clip(block.Type))
	}
	return nil
}

func isSealed(block *pem.Block) bool {
	return block.Type == sealedKey || block.Type == sealedKeyOld
}

var errNoPassword = errors.New("the key is encrypted and no password was given")

func decrypt(raw []byte, password func() ([]byte, error)) ([]byte, error) {
	b, err := parseBox(raw)
	switch {
	case err != nil:
		return nil, err
	case password == nil:
		return nil, errNoPassword
	}
	pass, err := password()
	if err != nil {
		return nil, err
	}
	defer clear(pass)
	opener, err := b.opener(pass)
	if err != nil {
		return nil, err
	}
	defer clear(opener)
	return b.open(opener)
}

func parseDER(typ string, der []byte) (crypto.Signer, error) {
	var key any
	var err error
	switch typ {
	case plainEC:
		key, err = x509.ParseECPrivateKey(der)
	case plainRSA:
		key, err = x509.ParsePKCS1PrivateKey(der)
	default:
		key, err = x509.ParsePKCS8PrivateKey(der)
	}
	if err != nil {
		return nil, fmt.Errorf("the key inside is damaged or of a kind that does not sign here: %w; use ECDSA P-256, as \"waxseal key generate\" makes it", err)
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k, goodKey(k.Public())
	case *rsa.PrivateKey:
		return k, goodKey(k.Public())
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("key type %T cannot sign; use ECDSA P-256", key)
}

// goodKey refuses weak keys: Sigstore's rule, which asks for 2048 bits of RSA
// and a NIST curve.
func goodKey(pub crypto.PublicKey) error {
	if err := goodkey.ValidatePubKey(pub); err != nil {
		return fmt.Errorf("%w; use ECDSA P-256, as \"waxseal key generate\" makes it", err)
	}
	return nil
}
