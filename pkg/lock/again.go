package lock

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Most of what a build fetches it has fetched before. Of every blob larger than
// smallBlob the store notes which one began with its first smallBlob bytes,
//
//	heads/HEX -> HEX         sha256 of these bytes, and of the whole blob
//
// and a blob that begins so again is compared with that one, byte for byte, as
// long as they are the same: nothing is written that the store has. The notes
// are hints: a wrong one, or none, costs time and changes no digest.
const headsFolder = "heads"

// twin is a blob of the store that was so far the same as what is written.
type twin struct {
	f      *os.File
	digest attest.Digest
}

// twin finds the blob that begins with head, nil where there is none.
func (s *Store) twin(head []byte, d attest.Digest) *twin {
	to, err := os.Readlink(filepath.Join(s.dir, headsFolder, d.Hex()))
	if err != nil {
		return nil
	}
	t := &twin{digest: attest.Digest("sha256:" + to)}
	if t.f, _, err = s.open(t.digest); err != nil || t.f == nil {
		return nil
	}
	_ = unix.Fadvise(int(t.f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	if b := make([]byte, len(head)); !t.has(b, head, 0) {
		t.f.Close()
		return nil
	}
	return t
}

// has reports whether the twin has p at an offset, reading into buf, which is
// as long.
func (t *twin) has(buf, p []byte, at int64) bool {
	n, _ := t.f.ReadAt(buf, at)
	return n == len(p) && bytes.Equal(buf, p)
}

// follow hashes as much of p as the twin has too, and returns how much it was.
// What is hashed is the twin's copy, which saves making another.
func (w *Writer) follow(p []byte) (n int) {
	for part := range slices.Chunk(p, hasherBuffer) {
		b := slices.Grow((<-w.aside.free)[:0], hasherBuffer)[:len(part)]
		if !w.twin.has(b, part, w.size) {
			w.aside.free <- b
			return n
		}
		w.aside.full <- b
		w.size += int64(len(part))
		n += len(part)
	}
	return n
}

// part makes a file of what was the same until now.
func (w *Writer) part() error {
	t := w.twin
	w.twin, w.parted = nil, t.digest
	defer t.f.Close()
	if err := w.s.room(w.size); err != nil {
		return err
	}
	f, err := w.s.temp()
	if err == nil {
		w.f = f
		if _, err = t.f.Seek(0, io.SeekStart); err == nil {
			_, err = io.CopyN(f, t.f, w.size)
		}
	}
	if err != nil {
		return w.s.clear(err)
	}
	return nil
}

// note writes down that d begins with head. Where it cannot, the next such blob
// is written again.
func (s *Store) note(head, d attest.Digest) {
	name := filepath.Join(s.dir, headsFolder, head.Hex())
	to, err := os.Readlink(name)
	if err == nil && to == d.Hex() {
		return
	}
	if err == nil {
		_ = os.Remove(name)
	}
	if err := os.Symlink(d.Hex(), name); errors.Is(err, fs.ErrNotExist) && makeFolder(filepath.Dir(name), false) == nil {
		_ = os.Symlink(d.Hex(), name)
	}
}

// forget removes the notes of blobs that are gone. Only who is Alone may.
func (s *Store) forget() error {
	dir := filepath.Join(s.dir, headsFolder)
	heads, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, h := range heads {
		name := filepath.Join(dir, h.Name())
		to, err := os.Readlink(name)
		if _, other := attest.ParseDigest("sha256:" + h.Name()); err != nil || other != nil || s.Has(attest.Digest("sha256:"+to)) {
			continue
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	return nil
}
