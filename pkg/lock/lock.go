// Package lock keeps what a build took in: the lock file, which names every
// input by digest and is committed beside the Dockerfile, and the store, which
// holds the bytes by digest. Call OpenStore for the store, Parse or FromInputs
// for a lock file.
package lock

import (
	"context"
	"io"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Store is a folder of bytes by sha256 digest. Safe for concurrent use, also by
// several processes.
type Store struct{}

// OpenStore opens the store in dir, which is made if it is not there.
func OpenStore(dir string) (*Store, error) { panic("contract") }

// NewWriter begins a blob whose digest is not known yet. The caller calls
// Commit or Abort.
func (s *Store) NewWriter() (*Writer, error) { panic("contract") }

// Open returns a blob for reading, fs.ErrNotExist if the store has it not. A
// blob that Commit returned is there at once, synced or not.
func (s *Store) Open(d attest.Digest) (*Blob, error) { panic("contract") }

// Has reports whether the store has a blob.
func (s *Store) Has(d attest.Digest) bool { panic("contract") }

// Put stores b.
func (s *Store) Put(b []byte) (attest.Digest, error) { panic("contract") }

// Take stores the file at path under d, by link where it can (and the file is
// never written again), else by copy; the bytes are checked.
func (s *Store) Take(path string, d attest.Digest) error { panic("contract") }

// Sync returns when everything committed so far is on the disk.
func (s *Store) Sync(ctx context.Context) error { panic("contract") }

// Redactor returns the redactor whose key this store keeps (0600, made once).
func (s *Store) Redactor() (*Redactor, error) { panic("contract") }

// Blob is an open blob.
type Blob struct {
	io.ReadSeekCloser
	Size int64
}

// Writer writes one blob, hashing as it goes.
type Writer struct{}

func (w *Writer) Write(p []byte) (int, error) { panic("contract") }

// Digest and Size are of what was written so far.
func (w *Writer) Digest() attest.Digest { panic("contract") }
func (w *Writer) Size() int64           { panic("contract") }

// Commit puts the blob in place under its digest. It is durable after Sync.
func (w *Writer) Commit() (attest.Digest, error) { panic("contract") }

// Reader reads the blob from its start before it is committed: in locked mode
// it is checked first and handed on after.
func (w *Writer) Reader() (io.Reader, error) { panic("contract") }

// Abort drops the blob; after Commit it does nothing.
func (w *Writer) Abort() { panic("contract") }

// Redactor replaces what can be a credential in a URL by a keyed hash.
type Redactor struct{}

// NewRedactor returns one with a key of at least 32 bytes.
func NewRedactor(key []byte) *Redactor { panic("contract") }

// URI returns u as it may be written down: no userinfo but its keyed hash, the
// values of parameters that carry tokens or signatures replaced by theirs, and
// every one of secrets wherever it stands, encoded or not.
func (r *Redactor) URI(u string, secrets ...string) string { panic("contract") }

// Hash returns "hmac-sha256:…" of b.
func (r *Redactor) Hash(b []byte) string { panic("contract") }

// Shape returns a recorded URI without its keyed hashes, so that two machines,
// or two signatures of one URL, agree.
func Shape(uri string) string { panic("contract") }

// File is a lock file.
type File struct {
	Sources []Source
	Steps   []Step
	// Replay is the digest of a blob in the store with what a replay needs
	// besides the bodies: the responses' headers.
	Replay attest.Digest
}

// Source is a base image, a git commit or a remote file.
type Source struct {
	Kind     string // "image", "git", "http"
	Ref      string // what the Dockerfile or command asks for, credentials removed
	Platform string
	Digest   string // "sha256:…" or "gitCommit:…"
	Tree     attest.Digest
	Size     int64
}

// Step is what one step may fetch. Steps are known by name, stage and platform,
// so that a change elsewhere does not unlock them.
type Step struct {
	Name, Stage, Platform string
	Entries               []Entry
}

// Entry is one exchange: asking this gives that. Several of one method and URI
// are answered in order, and the last of them from then on.
type Entry struct {
	Method        string
	URI           string
	RequestDigest attest.Digest
	Range         string
	Status        int
	Digest        attest.Digest
	Size          int64
	Cut           bool
	Headers       map[string]string // from the replay blob; absent before LoadReplay
}

// Parse reads a lock file.
func Parse(raw []byte) (*File, error) { panic("contract") }

// Marshal writes one: the same inputs give the same bytes.
func (f *File) Marshal() []byte { panic("contract") }

// FromInputs makes the lock of one or more records (one for each platform) and
// puts the replay blob into s, which may be nil: then Replay stays empty.
func FromInputs(s *Store, records ...*attestations.Inputs) (*File, error) { panic("contract") }

// LoadReplay fills in the headers of all entries from the store.
func (f *File) LoadReplay(s *Store) error { panic("contract") }

// Book answers what a lock expects, in order; one for each step of a build.
// Safe for concurrent use.
type Book struct{}

// Book opens the book of a step. A step that the lock does not name may ask
// for anything the lock lists anywhere.
func (f *File) Book(name, stage, platform string) *Book { panic("contract") }

// Expect returns what the next exchange of this kind must give, and whether
// the lock lists one: same method, URI (by Shape), request body and range.
// near is, where it does not, what the lock has for this URI, for the error.
func (b *Book) Expect(method, uri string, request attest.Digest, rang string) (e Entry, near []Entry, ok bool) {
	panic("contract")
}

// Admits reports in words what of a recorded step the lock does not list with
// its digest; none means all of it does.
func (f *File) Admits(st *attestations.InputStep) []string { panic("contract") }

// Change is one difference between two locks.
type Change struct {
	Kind    string // "added", "removed", "changed"
	Step    string // "" for a source
	Subject string // "package python3 3.11.2-1 (deb)", "base image debian:12", or the URI
	PURL    string
	Text    string // the whole in words
}

// Diff says what changed, in the order of the files.
func Diff(before, after *File) []Change { panic("contract") }

// PURL returns the package URL of what a recorded URI fetches, "" where it
// does not tell: Debian, PyPI, npm, Go, crates, Maven, gems.
func PURL(uri string) string { panic("contract") }
