// Package sign turns a statement into a signed bundle. Call Open with a
// reference to a key, then Signer.Sign. A Signer verifies what it signed
// before it returns it. Close wipes the key from memory.
package sign

import (
	"context"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Signer signs statements.
type Signer interface {
	// Sign returns a Sigstore bundle v0.3 around st.
	Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error)
	// PublicKey is the verifying half, PEM, PKIX.
	PublicKey() []byte
	Close() error
}

// OpenOptions configures Open; the zero value asks for no password.
type OpenOptions struct {
	// Password is called once, and only for an encrypted key.
	Password func() ([]byte, error)
}

// Open returns the signer that ref names: in this version the path of a
// private key file (cosign's or waxseal's encrypted PEM, or a plain PEM).
func Open(ctx context.Context, ref string, opts OpenOptions) (Signer, error) { panic("contract") }

// GenerateKeyPair returns a fresh ECDSA P-256 pair as cosign writes it: the
// private half encrypted with password, the public half PKIX, both PEM.
func GenerateKeyPair(password []byte) (private, public []byte, err error) { panic("contract") }
