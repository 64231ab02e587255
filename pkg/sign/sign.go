// Package sign turns a statement into a signed bundle. Call Open with a
// reference to a key, then Signer.Sign. A Signer verifies what it signed
// before it returns it. Close forgets the key.
package sign

import (
	"context"

	"github.com/waxseal/waxseal/pkg/attest"
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

// OpenOptions configures Open; the zero value asks for no password.
type OpenOptions struct {
	// Password is called once, and only for an encrypted key. Open overwrites
	// the bytes it returns.
	Password func() ([]byte, error)
}

// Open returns the signer that ref names: in this version the path of a
// private key file (cosign's or waxseal's encrypted PEM, or a plain PEM with
// ECDSA, Ed25519 or RSA of 2048 bits and more). A file that others may read is
// refused.
func Open(ctx context.Context, ref string, opts OpenOptions) (Signer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return openFile(ref, opts)
}
