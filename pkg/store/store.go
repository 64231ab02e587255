// Package store finds, reads and writes images and the evidence about them, in
// a registry, an OCI layout or a folder of files. Call Parse on what the user
// typed, Open the Reference, Resolve it once, and use the digest from then on.
// All sizes and counts are bounded by package attest's limits.
package store

import (
	"context"
	"errors"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Kind is where a reference points.
type Kind string

// The kinds of place.
const (
	Registry Kind = "registry" // HOST/REPO[:TAG][@DIGEST]
	Layout   Kind = "oci"      // oci:PATH[:TAG][@DIGEST]
	Docker   Kind = "docker"   // docker:NAME, read-only
)

// Reference is a parsed image reference. String gives it back in the form
// that Parse takes.
type Reference struct {
	Kind   Kind
	Place  string // "host/repo", the layout's path, or the daemon's image name
	Tag    string
	Digest attest.Digest
}

// Parse reads REF: a registry reference, oci:PATH[:TAG][@DIGEST] or
// docker:NAME. Errors name what is wrong and show a right form.
func Parse(s string) (Reference, error) { panic("contract") }

func (r Reference) String() string { panic("contract") }

// Options configures Open; the zero value uses docker's credentials, TLS
// everywhere but loopback, and the default timeouts.
type Options struct {
	Insecure  bool   // plain HTTP or unverified TLS for this registry
	UserAgent string // default "waxseal"
	// Evidence is a folder as `waxseal build --out` writes it, or a file with
	// one bundle or JSON lines, searched beside the place itself.
	Evidence []string
	// Want says which evidence is worth fetching, by the predicate type that
	// its descriptor states ("" when it states none; it is not verified). Nil
	// wants all. A piece that is not wanted is listed with Unwanted set.
	Want func(predicateType string) bool
}

// Platform is one manifest below an index.
type Platform struct {
	Descriptor v1.Descriptor // its Platform field is set
	Name       string        // "linux/amd64"
}

// Piece is one piece of evidence found for a digest, as found.
type Piece struct {
	Source  string        // "referrer", "referrers tag", "cosign .att", "index attestation (unsigned)", "file"
	Where   string        // manifest digest or path: where to look at it
	Digest  attest.Digest // of Raw
	Raw     []byte        // a bundle, a DSSE envelope, or for an index attestation the bare statement
	Skipped string        // why it was not read (too large, unknown form …); Raw is then nil
	// PredicateType is what the descriptor or annotation says, NOT verified.
	PredicateType string
	Unwanted      bool // Options.Want declined it; Raw is nil
}

// What errors.Is can tell about a place. Both mean that nothing is known.
var (
	ErrNotFound    = errors.New("not found")
	ErrUnavailable = errors.New("unavailable")
)

// Repo is a repository that also lists evidence.
type Repo interface {
	Repository
	EvidenceLister
}

// Open opens the place that ref names.
func Open(ctx context.Context, ref Reference, opts Options) (Repo, error) { panic("contract") }

// Platforms lists the manifests below an index; none for a manifest.
func Platforms(ctx context.Context, r Repository, d v1.Descriptor) ([]Platform, error) {
	panic("contract")
}

// Repository is one opened place: a registry repository or an OCI layout.
// Safe for concurrent use.
type Repository interface {
	// Resolve turns the reference it was opened with into a descriptor, once.
	Resolve(ctx context.Context) (v1.Descriptor, error)
	// Manifest returns the raw manifest or index with that digest, checked.
	Manifest(ctx context.Context, d attest.Digest) ([]byte, v1.Descriptor, error)
	// Blob streams a blob; the reader fails at its end when the digest does not hold.
	Blob(ctx context.Context, d attest.Digest) (io.ReadCloser, error)
}

// EvidenceLister lists what is said about a digest: the union of OCI 1.1
// referrers, the fallback tag, cosign's .att, BuildKit's index attestations
// and Options.Evidence. An empty list is not an error; a place that could not
// be asked is.
type EvidenceLister interface {
	Evidence(ctx context.Context, d attest.Digest) ([]Piece, error)
}
