// Package sign turns a statement into a signed bundle. Call Open with a
// reference to a key, or OpenLate where there is nothing to sign yet, then
// Signer.Sign. A Signer verifies what it signed before it returns it. Close
// forgets the key.
package sign

import (
	"context"
	"fmt"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// Signer signs statements. It is safe for concurrent use until Close.
type Signer interface {
	// Sign returns a Sigstore bundle around st: v0.3, but see Stamp.
	Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error)
	// PublicKey is the verifying half, PEM, PKIX.
	PublicKey() []byte
	// Close forgets the key; Sign fails from then on. What the Go runtime and
	// its crypto packages copied is beyond its reach.
	Close() error
}

// OpenOptions configures Open; the zero value asks for no password, and takes
// nothing from the environment.
type OpenOptions struct {
	// Password is called once, and only for an encrypted key. Open overwrites
	// the bytes it returns.
	Password func() ([]byte, error)
	// Take returns the value of an environment variable, and takes it out of the
	// environment, so that no child has it. Open overwrites the bytes.
	Take func(name string) (value []byte, ok bool)
	// Apart is the command line of a program that calls TryKey. OpenLate's signer
	// tries a key there, so that no copy of it stays in this process; without one
	// it is tried here.
	Apart []string
	// Keys is how a key is asked for that something else holds.
	Keys keys.Options
}

// Open returns the signer that ref names: the path of a private key file
// (cosign's or waxseal's encrypted PEM, or a plain PEM with ECDSA, Ed25519 or RSA
// of 2048 bits and more; a file that others may read is refused), env://NAME for
// the same in an environment variable, or a key that something else holds, see
// keys.Open. Such a key never comes here, and what it signs is checked like the
// rest.
func Open(ctx context.Context, ref string, opts OpenOptions) (Signer, error) {
	s, err := openKey(ctx, ref, opts)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func openKey(ctx context.Context, ref string, opts OpenOptions) (*keySigner, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(ref, variableScheme):
		return openVariable(ref, opts)
	case keys.IsRef(ref):
		opts.Keys.Sign = true
		k, err := keys.Open(ctx, ref, opts.Keys)
		if err != nil {
			return nil, err
		}
		s, err := newHeldSigner(k)
		if err != nil {
			k.Close()
			return nil, fmt.Errorf("opening key %q: %w", keys.Name(ref), err)
		}
		return s, nil
	}
	return openFile(ref, opts)
}
