package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"sort"
	"sync"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

const tarBlock = 512

// layer is a context as one tar archive that exists only as it is read: an
// index of where every entry lies, and the files themselves. Nothing is
// spooled, whatever the size of the context.
type layer struct {
	tree   *tree
	epoch  *time.Time // every file's time when set
	size   int64
	digest attest.Digest
	// manifest is the digest of the per-file manifest: the context's name.
	manifest attest.Digest
	files    int
	bytes    int64
}

// newLayer reads every file of t once and fixes the digests of files,
// manifest and archive. When epoch is set it is the time of every entry, so
// that the archive depends on content alone. report is told bytes as they pass.
func newLayer(ctx context.Context, t *tree, epoch *time.Time, report func(n int64)) (*layer, error) {
	l := &layer{tree: t, epoch: epoch}
	whole := newTee()
	defer whole.close()
	for i := range t.entries {
		e := &t.entries[i]
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		head, err := l.head(e)
		if err != nil {
			return nil, fmt.Errorf("packing context file %q: %w", e.path, err)
		}
		e.offset, e.header = l.size, int32(len(head))
		whole.write(head)
		l.size += int64(len(head))
		if !e.mode.IsRegular() {
			continue
		}
		if err := l.hashFile(e, whole, report); err != nil {
			return nil, fmt.Errorf("reading context file %q: %w", e.path, err)
		}
		l.size += padded(e.size)
		l.files++
		l.bytes += e.size
	}
	whole.write(make([]byte, 2*tarBlock))
	l.size += 2 * tarBlock
	l.digest = attest.Digest("sha256:" + hex.EncodeToString(whole.sum()))
	names := sha256.New()
	if err := t.writeManifest(names); err != nil {
		return nil, fmt.Errorf("listing context: %w", err)
	}
	l.manifest = attest.Digest("sha256:" + hex.EncodeToString(names.Sum(nil)))
	return l, nil
}

var errChanged = errors.New("changed while it was read; build again when nothing writes to the context")

func (l *layer) hashFile(e *entry, whole *tee, report func(int64)) error {
	f, err := l.tree.open(e)
	if err != nil {
		return err
	}
	defer f.Close()
	own := sha256.New()
	var n int64
	for {
		chunk := whole.chunk()
		k, err := io.ReadFull(f, chunk)
		if k > 0 {
			n += int64(k)
			if n > e.size {
				return errChanged
			}
			whole.writeChunk(chunk[:k])
			own.Write(chunk[:k])
			if report != nil {
				report(int64(k))
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if n != e.size {
		return errChanged
	}
	own.Sum(e.sum[:0])
	whole.write(make([]byte, padded(n)-n))
	return nil
}

// head is the tar header of e, the same bytes every time.
func (l *layer) head(e *entry) ([]byte, error) {
	h := &tar.Header{Name: e.path, Mode: int64(unixMode(e.mode) & 0o7777), Linkname: e.link, Format: tar.FormatPAX}
	h.ModTime = e.mtime
	if l.epoch != nil {
		h.ModTime = *l.epoch
	}
	switch {
	case e.mode.IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, e.size
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
	case e.mode&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
	case e.mode&fs.ModeNamedPipe != 0:
		h.Typeflag = tar.TypeFifo
	case e.mode&fs.ModeCharDevice != 0:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, e.major, e.minor
	case e.mode&fs.ModeDevice != 0:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, e.major, e.minor
	default:
		return nil, fmt.Errorf("a file of mode %s cannot be part of a context", e.mode)
	}
	for k, v := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+k] = string(v)
	}
	var out bytes.Buffer
	if err := tar.NewWriter(&out).WriteHeader(h); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func padded(n int64) int64 { return (n + tarBlock - 1) / tarBlock * tarBlock }

// reader gives the archive's bytes from any place. A reader is for one
// goroutine; a layer has as many readers as are asked for.
func (l *layer) reader() *layerReader { return &layerReader{layer: l} }

type layerReader struct {
	layer *layer
	mu    sync.Mutex
	file  io.ReadCloser // of entry at, read up to next
	at    int
	next  int64
}

func (r *layerReader) Size() int64 { return r.layer.size }

func (r *layerReader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.drop()
}

func (r *layerReader) drop() error {
	if r.file == nil {
		return nil
	}
	err := r.file.Close()
	r.file = nil
	return err
}

// ReadAt fills p from the archive at off. A file that has become shorter since
// it was hashed is an error; one that kept its size but changed is caught by
// the digest of whoever reads the whole.
func (r *layerReader) ReadAt(p []byte, off int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for n < len(p) && off < r.layer.size {
		k, err := r.some(p[n:], off)
		n += k
		off += int64(k)
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// some reads within the one part of the archive that off falls into.
func (r *layerReader) some(p []byte, off int64) (int, error) {
	entries := r.layer.tree.entries
	i := sort.Search(len(entries), func(i int) bool { return entries[i].offset > off }) - 1
	if i < 0 {
		return zeros(p, r.layer.size-off), nil
	}
	e := &entries[i]
	in := off - e.offset
	if in < int64(e.header) {
		head, err := r.layer.head(e)
		if err != nil {
			return 0, err
		}
		return copy(p, head[in:]), nil
	}
	in -= int64(e.header)
	switch {
	case !e.mode.IsRegular():
		return zeros(p, r.layer.size-off), nil
	case in < e.size:
		return r.content(p[:min(int64(len(p)), e.size-in)], i, in)
	case in < padded(e.size):
		return zeros(p, padded(e.size)-in), nil
	default:
		return zeros(p, r.layer.size-off), nil
	}
}

func (r *layerReader) content(p []byte, i int, in int64) (int, error) {
	e := &r.layer.tree.entries[i]
	if r.file == nil || r.at != i || r.next > in {
		if err := r.drop(); err != nil {
			return 0, err
		}
		f, err := r.layer.tree.open(e)
		if err != nil {
			return 0, fmt.Errorf("reading context file %q: %w", e.path, err)
		}
		r.file, r.at, r.next = f, i, 0
	}
	if skip := in - r.next; skip > 0 {
		if s, ok := r.file.(io.Seeker); ok {
			if _, err := s.Seek(in, io.SeekStart); err != nil {
				return 0, err
			}
		} else if _, err := io.CopyN(io.Discard, r.file, skip); err != nil {
			return 0, fmt.Errorf("reading context file %q: %w", e.path, errChanged)
		}
		r.next = in
	}
	n, err := io.ReadFull(r.file, p)
	r.next += int64(n)
	if err != nil {
		return n, fmt.Errorf("reading context file %q: %w", e.path, errChanged)
	}
	return n, nil
}

func zeros(p []byte, most int64) int {
	n := int(min(int64(len(p)), most))
	clear(p[:n])
	return n
}

// tee hashes one stream while its caller hashes parts of it: large chunks are
// hashed on a second processor.
type tee struct {
	h    hash.Hash
	work chan []byte
	done chan struct{}
	bufs [2][]byte
	turn int
	busy bool
}

func newTee() *tee {
	t := &tee{h: sha256.New(), work: make(chan []byte), done: make(chan struct{}, 1)}
	t.bufs[0], t.bufs[1] = make([]byte, 256<<10), make([]byte, 256<<10)
	go func() {
		for b := range t.work {
			t.h.Write(b)
			t.done <- struct{}{}
		}
	}()
	return t
}

// chunk is a buffer that no write in progress uses.
func (t *tee) chunk() []byte {
	t.turn = 1 - t.turn
	return t.bufs[t.turn]
}

// writeChunk hashes a buffer from chunk, which must not change before the
// next but one call of chunk.
func (t *tee) writeChunk(b []byte) {
	if len(b) < 16<<10 {
		t.write(b)
		return
	}
	t.wait()
	t.busy = true
	t.work <- b
}

// write hashes b and is done with it on return.
func (t *tee) write(b []byte) {
	t.wait()
	t.h.Write(b)
}

func (t *tee) wait() {
	if t.busy {
		<-t.done
		t.busy = false
	}
}

func (t *tee) sum() []byte {
	t.wait()
	return t.h.Sum(nil)
}

func (t *tee) close() {
	t.wait()
	close(t.work)
}
