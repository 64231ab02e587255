// Package store finds, reads and writes images and the evidence about them, in
// a registry, an OCI layout or a folder of files. Call Parse on what the user
// typed, Open the Reference, Resolve it once, and use the digest from then on.
// To write, OpenWritable, then Copy or Put, Attach the evidence, and Tag last.
// All sizes and counts are bounded by package attest's limits. Errors that tell
// nothing about the image wrap ErrNotFound or ErrUnavailable, and say the way
// out through a method Hint.
package store

import (
	"context"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Options configures Open; the zero value uses docker's credentials, TLS
// everywhere but loopback, and the default timeouts.
type Options struct {
	Insecure  bool   // plain HTTP or unverified TLS for this registry
	UserAgent string // default "waxseal"
	// Evidence is searched beside the place itself: a file with one document or
	// with JSON lines; a folder of such files, as `waxseal build --out` writes it
	// or deeper; or GitPrefix and the folder of a git repository, whose notes
	// count. All of it is read through once for an opened place.
	Evidence []string
	// Images is a folder of OCI layouts, as `waxseal build` keeps them. An image
	// of the Docker daemon that was built here is found there by its ID.
	Images string
	// Want says which evidence is worth fetching, by the predicate type that
	// its descriptor states ("" when it states none; it is not verified), or
	// attest.OCSPMediaType for what is stapled. Nil wants all. A piece that is not
	// wanted is listed with Unwanted set.
	Want func(predicateType string) bool
	// NoHelpers starts none of docker's credential helpers: credentials are
	// those that its configuration itself holds.
	NoHelpers bool

	// Cache is shared with other places that are opened for reading. Nil: this
	// place keeps to itself.
	Cache *Cache
	// Since lets a list of a repository's tags in Cache stand for asking for
	// each tag, when it was asked for at that moment or later: the start of a
	// batch, which judges what was there when it began or came since. Zero: each
	// tag is asked for.
	Since time.Time

	named *named  // what ReadOnce shares
	net   network // what tests replace
}

// ReadOnce returns the same options, with what Evidence names read through once
// for all places that are opened with them, and again only when it changes.
func (o Options) ReadOnce() Options {
	o.named = newNamed(o.Evidence)
	return o
}

// evidenceNamed is what Evidence names, shared or for one place.
func (o Options) evidenceNamed() *named {
	if o.named != nil {
		return o.named
	}
	return newNamed(o.Evidence)
}

// Descriptor names content in a place: media type, digest and size.
type Descriptor = v1.Descriptor

// Platform is one manifest below an index.
type Platform struct {
	Descriptor v1.Descriptor // its Platform field is set
	Name       string        // "linux/amd64"
}

// Piece is one piece of evidence found for a digest, as found.
type Piece struct {
	Source  string        // one of the Source constants
	Where   string        // manifest digest, path or "refs/notes/X:COMMIT": where to look at it
	Digest  attest.Digest // of Raw, or what the descriptor says when Raw is nil
	Raw     []byte        // a bundle, a DSSE envelope, or for an index attestation the bare statement
	Skipped string        // why it was not read (too large, unknown form …); Raw is then nil
	// PredicateType is what the descriptor or annotation says, NOT verified.
	PredicateType string
	Unwanted      bool // Options.Want declined it; Raw is nil
	// Stapled: Raw is an OCSP response (DER), about the certificate of whoever
	// signed other pieces, and PredicateType its media type. It is no evidence by
	// itself.
	Stapled bool

	// again are the same content in other places, without Raw.
	again []Piece
}

// everywhere is the piece, and the same content in other places.
func (p Piece) everywhere() []Piece {
	out := []Piece{p}
	for _, a := range p.again {
		a.Raw = p.Raw
		out = append(out, a)
	}
	return out
}

// Where pieces come from.
const (
	SourceReferrer = "referrer"
	SourceTag      = "referrers tag"
	SourceAtt      = "cosign .att"
	SourceIndex    = "index attestation (unsigned)"
	SourceFile     = "file"
	SourceNotes    = "git notes"
	SourceSig      = "cosign .sig"
)

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
// and Options.Evidence. cosign's .sig is listed, unread, where there is nothing
// else or Options.Want asks for it. An empty list is not an error; a place that
// could not be asked is.
type EvidenceLister interface {
	Evidence(ctx context.Context, d attest.Digest) ([]Piece, error)
}

// CommitEvidenceLister lists what is said about a git commit, by its id in
// lower-case hex: all git notes on it, and what among the files of
// Options.Evidence names it as a subject, by gitCommit or sha1. Options.Want is
// not asked. Whatever Open and OpenWritable return can do it.
type CommitEvidenceLister interface {
	CommitEvidence(ctx context.Context, commit string) ([]Piece, error)
}

// Repo is a repository that also lists evidence.
type Repo interface {
	Repository
	EvidenceLister
}

// Writable is a place that takes content. Put calls may be repeated: what is
// there already is left alone. Nothing is visible under a final name before it
// is whole.
type Writable interface {
	Repo
	// Reference is what the place was opened with.
	Reference() Reference
	// PutBlob stores a blob. The bytes are read only when the place has them
	// neither here nor at b.From.
	PutBlob(ctx context.Context, b Blob) error
	// PutManifest stores a manifest or index by digest. What it points to must
	// be there.
	PutManifest(ctx context.Context, mediaType types.MediaType, raw []byte) (v1.Descriptor, error)
	// PutTag points tag to a manifest that is there. Call Tag, which checks.
	PutTag(ctx context.Context, tag string, d v1.Descriptor) error

	// tagged returns what a tag points to.
	tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error)
	// referrers lists the manifests whose subject is d, as the place knows them.
	referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error)
	// hasBlob reports whether the place has the blob, with the size stated.
	hasBlob(ctx context.Context, d v1.Descriptor) (bool, error)
}

// Blob is content to store.
type Blob struct {
	Descriptor v1.Descriptor
	// Open starts a fresh reader over the bytes.
	Open func() (io.ReadCloser, error)
	// From is a place that has the blob already. When it is another repository
	// of the same registry the registry is asked to take it from there.
	From Reference
}

// Open opens the place that ref names for reading.
func Open(ctx context.Context, ref Reference, opts Options) (Repo, error) {
	switch ref.Kind {
	case Registry:
		return openRegistry(ref, opts)
	case Layout:
		return openLayout(ctx, ref, opts, false)
	case Docker:
		return openDocker(ctx, ref, opts)
	case Archive:
		return openArchive(ctx, ref, opts)
	case File:
		return openFile(ref, opts), nil
	}
	return nil, &Error{Place: ref.String(), Cause: "not a place that images are read from"}
}

// OpenWritable opens the place that ref names for reading and writing. A
// layout that does not exist is made.
func OpenWritable(ctx context.Context, ref Reference, opts Options) (Writable, error) {
	opts.Cache = nil // who writes must see what is there now
	switch ref.Kind {
	case Registry:
		return openRegistry(ref, opts)
	case Layout:
		return openLayout(ctx, ref, opts, true)
	}
	cause := "images are not written there"
	switch ref.Kind {
	case Archive:
		cause = "an archive is written by \"waxseal bundle export\" alone"
	case File:
		cause = "a plain file keeps no attachments"
	case Docker:
		cause = "the Docker daemon keeps no attachments, so waxseal writes nothing there"
	}
	return nil, &Error{Place: ref.String(), Cause: cause,
		Way: "give a registry reference or oci:PATH[:TAG]"}
}
