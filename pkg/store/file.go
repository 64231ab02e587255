package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// file is a plain file as the subject of evidence: its digest is that of its
// bytes, and what is said about it lies in Options.Evidence alone.
type file struct {
	ref     Reference
	opts    Options
	named   *named
	resolve func() (v1.Descriptor, error)
}

func openFile(ref Reference, opts Options) *file {
	f := &file{ref: ref, opts: opts, named: opts.evidenceNamed()}
	f.resolve = sync.OnceValues(f.hash)
	return f
}

// hash reads the file once. A digest in the reference must be the file's.
func (f *file) hash() (v1.Descriptor, error) {
	fail := func(err error) (v1.Descriptor, error) {
		return v1.Descriptor{}, pathError("reading the file", f.ref.Place, err)
	}
	in, err := os.Open(f.ref.Place)
	if err != nil {
		return fail(err)
	}
	defer in.Close()
	if info, err := in.Stat(); err != nil {
		return fail(err)
	} else if !info.Mode().IsRegular() {
		return v1.Descriptor{}, &Error{Place: f.ref.Place, Action: "reading the file", Cause: "it is no regular file"}
	}
	sum := sha256.New()
	n, err := io.Copy(sum, in)
	if err != nil {
		return fail(err)
	}
	h := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}
	if want := f.ref.Digest; want != "" && want != attest.Digest(h.String()) {
		return v1.Descriptor{}, &Error{Place: f.ref.Place, Action: "reading the file", Cause: (&mismatch{want: want}).Error()}
	}
	return v1.Descriptor{MediaType: types.MediaType("application/octet-stream"), Digest: h, Size: n}, nil
}

func (f *file) Resolve(ctx context.Context) (v1.Descriptor, error) {
	if err := context.Cause(ctx); err != nil {
		return v1.Descriptor{}, err
	}
	return f.resolve()
}

func (f *file) Manifest(context.Context, attest.Digest) ([]byte, v1.Descriptor, error) {
	return nil, v1.Descriptor{}, f.noImage()
}

func (f *file) Blob(context.Context, attest.Digest) (io.ReadCloser, error) { return nil, f.noImage() }

func (f *file) noImage() error {
	return &Error{Place: f.ref.String(), Action: "reading the image", Cause: "it is a plain file, and no image", Way: "give a registry reference or oci:PATH[:TAG]"}
}

func (f *file) Evidence(ctx context.Context, d attest.Digest) ([]Piece, error) {
	c := &collector{source: f, opts: f.opts, named: f.named, about: d}
	if err := c.readFiles(ctx); err != nil {
		return nil, err
	}
	return c.sorted(), nil
}

func (f *file) CommitEvidence(ctx context.Context, commit string) ([]Piece, error) {
	return f.named.commit(ctx, commit)
}

func (f *file) tagged(context.Context, string) ([]byte, v1.Descriptor, error) {
	return nil, v1.Descriptor{}, f.noImage()
}

func (f *file) referrers(context.Context, attest.Digest) ([]v1.Descriptor, error) { return nil, nil }
