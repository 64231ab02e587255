package build

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// exportStore takes the exported image into an OCI layout. What is there
// already is not sent again; everything else is hashed as it arrives, and gets
// its name only when the digest holds.
type exportStore struct {
	blobs
	durable bool // the layout stays: bytes are on disk before they have a name

	mu      sync.Mutex
	writing map[string]*blobWriter
}

func newExportStore(layout string, durable bool) *exportStore {
	return &exportStore{blobs: blobs{layout: layout}, durable: durable, writing: map[string]*blobWriter{}}
}

// Writer starts a blob.
func (s *exportStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	if d := o.Desc.Digest; d != "" {
		if _, err := s.Info(ctx, d); err == nil {
			return nil, fmt.Errorf("content %s: %w", d, errdefs.ErrAlreadyExists)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing[o.Ref] != nil {
		return nil, fmt.Errorf("writing %q: %w", o.Ref, errdefs.ErrUnavailable)
	}
	f, err := os.CreateTemp(filepath.Join(s.layout, "blobs", "sha256"), ".tmp-")
	if err != nil {
		return nil, err
	}
	w := &blobWriter{store: s, file: f, sum: digest.SHA256.Hash(), status: content.Status{
		Ref: o.Ref, Total: o.Desc.Size, Expected: o.Desc.Digest, StartedAt: time.Now(),
	}}
	s.writing[o.Ref] = w
	return w, nil
}

func (s *exportStore) forget(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.writing, ref)
}

// Status tells how far a blob is.
func (s *exportStore) Status(_ context.Context, ref string) (content.Status, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.writing[ref]; w != nil {
		return w.Status()
	}
	return content.Status{}, fmt.Errorf("writing %q: %w", ref, errdefs.ErrNotFound)
}

// Abort drops a blob that is being written.
func (s *exportStore) Abort(_ context.Context, ref string) error {
	s.mu.Lock()
	w := s.writing[ref]
	s.mu.Unlock()
	if w == nil {
		return fmt.Errorf("writing %q: %w", ref, errdefs.ErrNotFound)
	}
	return w.Close()
}

type blobWriter struct {
	store *exportStore
	sum   hash.Hash

	mu     sync.Mutex
	file   *os.File // nil once closed
	status content.Status
	final  digest.Digest
}

func (w *blobWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return 0, os.ErrClosed
	}
	n, err := w.file.Write(p)
	w.sum.Write(p[:n])
	w.status.Offset += int64(n)
	w.status.UpdatedAt = time.Now()
	return n, err
}

func (w *blobWriter) Status() (content.Status, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status, nil
}

func (w *blobWriter) Digest() digest.Digest {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.final != "" {
		return w.final
	}
	return digest.NewDigest(digest.SHA256, w.sum)
}

// Truncate starts over; that is the only size the engine asks for.
func (w *blobWriter) Truncate(size int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if size != 0 || w.file == nil {
		return fmt.Errorf("truncating to %d: %w", size, errdefs.ErrNotImplemented)
	}
	if err := w.file.Truncate(0); err != nil {
		return err
	}
	if _, err := w.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w.sum.Reset()
	w.status.Offset = 0
	return nil
}

// Close drops the blob unless it was committed.
func (w *blobWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.drop()
}

func (w *blobWriter) drop() error {
	if w.file == nil {
		return nil
	}
	name := w.file.Name()
	err := errors.Join(w.file.Close(), os.Remove(name))
	w.file = nil
	w.store.forget(w.status.Ref)
	return err
}

// Commit checks size and digest and gives the blob its name.
func (w *blobWriter) Commit(_ context.Context, size int64, expected digest.Digest, _ ...content.Opt) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.file == nil {
		return os.ErrClosed
	}
	got := digest.NewDigest(digest.SHA256, w.sum)
	var err error
	switch {
	case size > 0 && size != w.status.Offset:
		err = fmt.Errorf("receiving blob %s: %d bytes, not %d: %w", expected, w.status.Offset, size, errdefs.ErrFailedPrecondition)
	case expected != "" && expected != got:
		err = fmt.Errorf("receiving blob %s: its bytes have the digest %s: %w", expected, got, errdefs.ErrFailedPrecondition)
	}
	if err == nil && w.store.durable {
		err = w.file.Sync()
	}
	if err == nil {
		err = w.file.Chmod(0o644)
	}
	if err == nil {
		err = os.Rename(w.file.Name(), filepath.Join(w.store.layout, filepath.FromSlash(blobPath(got))))
	}
	if err != nil {
		return errors.Join(err, w.drop())
	}
	w.final = got
	err = w.file.Close()
	w.file = nil
	w.store.forget(w.status.Ref)
	return err
}
