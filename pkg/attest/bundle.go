package attest

// Bundle is a DSSE envelope with what is needed to verify it: a Sigstore
// bundle (v0.1 to v0.3), or a bare DSSE envelope as cosign keeps in ".att".
// Immutable; the raw bytes are kept as received.
type Bundle struct {
	raw []byte
	// the owner of this package fills in the rest
}

// ParseBundle reads a Sigstore bundle or a bare DSSE envelope. It checks the
// form only: whose signature it is, and whether it holds, is for package
// verify. A bundle that carries no in-toto statement is an error.
func ParseBundle(raw []byte) (*Bundle, error) { panic("contract") }

// Raw returns the bytes as received.
func (b *Bundle) Raw() []byte { return b.raw }

// Digest is the sha256 of Raw.
func (b *Bundle) Digest() Digest { panic("contract") }

// Statement is what the envelope says, NOT verified.
func (b *Bundle) Statement() *Statement { panic("contract") }
