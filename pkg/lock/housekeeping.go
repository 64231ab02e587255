package lock

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Item is a blob, or what lies where one should.
type Item struct {
	Digest attest.Digest // "" where the name is none
	Path   string        // below the store's folder
	Size   int64
	Used   time.Time // when it was last committed, roughly
	Bad    error     // why it cannot be used, as far as was looked
}

// List calls f for everything in the store, in the order of the digests. It
// reads no contents: Bad is set only for what is no blob at all.
func (s *Store) List(ctx context.Context, f func(Item) error) error {
	top := filepath.Join(s.dir, "blobs", "sha256")
	folders, err := os.ReadDir(top)
	if err != nil {
		return fmt.Errorf("listing the store %q: %w", s.dir, bare(err))
	}
	for _, folder := range folders {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join("blobs", "sha256", folder.Name())
		if !folder.IsDir() || len(folder.Name()) != 2 {
			if err := f(Item{Path: path, Bad: fmt.Errorf("%w: it is no folder of blobs", ErrCorrupt)}); err != nil {
				return err
			}
			continue
		}
		blobs, err := os.ReadDir(filepath.Join(top, folder.Name()))
		if err != nil {
			return fmt.Errorf("listing the store %q: %w", s.dir, bare(err))
		}
		for _, b := range blobs {
			item, ok := s.item(filepath.Join(path, b.Name()))
			if !ok {
				continue // removed since
			}
			if err := f(item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) item(path string) (Item, bool) {
	it := Item{Path: path}
	info, err := os.Lstat(filepath.Join(s.dir, path))
	if errors.Is(err, fs.ErrNotExist) {
		return it, false
	}
	if err != nil {
		it.Bad = bare(err)
		return it, true
	}
	it.Size, it.Used = info.Size(), info.ModTime()
	d, err := attest.ParseDigest("sha256:" + filepath.Base(path))
	if err != nil || s.path(d) != filepath.Join(s.dir, path) {
		it.Bad = fmt.Errorf("%w: its name is not that of a blob", ErrCorrupt)
		return it, true
	}
	it.Digest = d
	f, _, err := s.open(d)
	if err != nil {
		it.Bad = err
		return it, true
	}
	f.Close()
	return it, true
}

// Verify hashes every blob anew and calls f for each; Bad says what is wrong.
func (s *Store) Verify(ctx context.Context, f func(Item) error) error {
	return s.List(ctx, func(it Item) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if it.Bad == nil {
			file, _, err := s.open(it.Digest)
			if err == nil {
				err = hashes(file, it.Digest)
				file.Close()
			}
			it.Bad = err
		}
		return f(it)
	})
}

// Alone waits until no other process has the store open and keeps it so until
// release is called. waiting, if not nil, is called once when it must wait.
func (s *Store) Alone(ctx context.Context, waiting func()) (release func(), err error) {
	if s.use == nil {
		return nil, fmt.Errorf("changing the store %q: it cannot be written", s.dir)
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := flock(s.use, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = flock(s.use, unix.LOCK_SH) }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("changing the store %q: locking it: %w", s.dir, err)
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		select {
		case <-ctx.Done():
			_ = flock(s.use, unix.LOCK_SH|unix.LOCK_NB) // asking for more gave it up
			return nil, fmt.Errorf("changing the store %q: waiting for those who use it: %w", s.dir, ctx.Err())
		case <-tick.C:
		}
	}
}

// Remove removes what List or Verify named. Only who is Alone may.
func (s *Store) Remove(it Item) error {
	if rel, err := filepath.Rel(filepath.Join("blobs", "sha256"), it.Path); err != nil || rel == "." || strings.HasPrefix(rel, "..") {
		return fmt.Errorf("removing %q from the store %q: it is no blob", it.Path, s.dir)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, it.Path)); err != nil {
		return fmt.Errorf("removing from the store %q: %w", s.dir, err)
	}
	return nil
}

// GCOptions says what to keep: what Keep's replays need, what Digests names,
// and what was used after Before. The zero value keeps nothing.
type GCOptions struct {
	Keep    []*File
	Digests []attest.Digest
	Before  time.Time // remove only what was last used before this; zero: whatever its age
	DryRun  bool      // say what would go, and remove nothing
	Waiting func()    // called when others must be waited for
}

// GCReport counts blobs and their bytes.
type GCReport struct {
	Kept         int   `json:"kept"`
	KeptBytes    int64 `json:"keptBytes"`
	Removed      int   `json:"removed"`
	RemovedBytes int64 `json:"removedBytes"`
}

// GC removes what nothing keeps, and what dead processes left. It waits until
// it is alone with the store, so that a running build loses nothing.
func (s *Store) GC(ctx context.Context, opts GCOptions) (GCReport, error) {
	var report GCReport
	if !opts.DryRun {
		release, err := s.Alone(ctx, opts.Waiting)
		if err != nil {
			return report, err
		}
		defer release()
		s.sweepTemps(time.Now().Add(time.Second))
	}
	needed, err := s.Needs(opts.Keep...)
	if err != nil {
		return report, err
	}
	keep := make(map[attest.Digest]bool, len(needed)+len(opts.Digests))
	for _, n := range needed {
		keep[n.Digest] = true
	}
	for _, d := range opts.Digests {
		keep[d] = true
	}
	err = s.List(ctx, func(it Item) error {
		if keep[it.Digest] && it.Bad == nil || !opts.Before.IsZero() && it.Used.After(opts.Before) && it.Bad == nil {
			report.Kept++
			report.KeptBytes += it.Size
			return nil
		}
		report.Removed++
		report.RemovedBytes += it.Size
		if opts.DryRun {
			return nil
		}
		return s.Remove(it)
	})
	if err == nil && !opts.DryRun {
		err = s.forget()
	}
	return report, err
}

// The form of an archive: this member first, then the blobs in the order of
// their digests, all with the same mode, owner and time.
const (
	archiveMark   = "waxseal-store"
	archiveText   = "waxseal store, version 1\n"
	archivePrefix = "blobs/sha256/"
	archiveEnd    = 1024 // bytes of zeros
)

// Export writes blobs to an archive, the same blobs always as the same bytes.
// Each is checked as it is written. All must be there.
func (s *Store) Export(ctx context.Context, w io.Writer, digests []attest.Digest) error {
	digests = slices.Clone(digests)
	slices.Sort(digests)
	digests = slices.Compact(digests)
	tw := tar.NewWriter(w)
	if err := tw.WriteHeader(archiveHeader(archiveMark, int64(len(archiveText)))); err != nil {
		return fmt.Errorf("exporting from the store: %w", err)
	}
	if _, err := io.WriteString(tw, archiveText); err != nil {
		return fmt.Errorf("exporting from the store: %w", err)
	}
	buf := make([]byte, 256<<10)
	for _, d := range digests {
		if d.Hex() == emptyHex {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		b, err := s.OpenVerified(d)
		if err != nil {
			return err
		}
		err = tw.WriteHeader(archiveHeader(archivePrefix+d.Hex(), b.Size))
		if err == nil {
			_, err = io.CopyBuffer(struct{ io.Writer }{tw}, struct{ io.Reader }{b}, buf)
		}
		b.Close()
		if err != nil {
			return fmt.Errorf("exporting %s from the store: %w", d, err)
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("exporting from the store: %w", err)
	}
	return nil
}

func archiveHeader(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444, ModTime: time.Unix(0, 0)}
}

// ImportReport counts what an archive held and the store had not.
type ImportReport struct {
	Blobs    int   `json:"blobs"`
	New      int   `json:"new"`
	NewBytes int64 `json:"newBytes"`
}

// Import takes the blobs of an archive, each only if its bytes are those of its
// digest. The archive is not trusted: anything but plain files of the form that
// Export writes is refused, where it stands; blobs before it have been taken.
func (s *Store) Import(ctx context.Context, r io.Reader) (ImportReport, error) {
	var report ImportReport
	err := s.importAll(ctx, r, &report)
	if err := errors.Join(err, s.Sync(ctx)); err != nil {
		return report, fmt.Errorf("importing into the store: %w", err)
	}
	return report, nil
}

func (s *Store) importAll(ctx context.Context, r io.Reader, report *ImportReport) error {
	in := &counted{r: r}
	tr := tar.NewReader(in)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		in.n = 0
		h, err := tr.Next()
		if errors.Is(err, io.EOF) && n > 0 {
			// The reader takes the end of what is there for the end of the
			// archive, for which two blocks of zeros stand.
			if in.n < archiveEnd {
				return fmt.Errorf("the archive was cut short, after %d of its blobs: bring it again: %w", report.Blobs, io.ErrUnexpectedEOF)
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("this is no archive of a store: %w", noEOF(err))
		}
		if err := checkMember(h); err != nil {
			return err
		}
		if n == 0 {
			text, err := io.ReadAll(io.LimitReader(tr, int64(len(archiveText))+1))
			if err != nil || h.Name != archiveMark || string(text) != archiveText {
				return errors.New("this is no archive that waxseal store export wrote, or of another version")
			}
			continue
		}
		hex, ok := strings.CutPrefix(h.Name, archivePrefix)
		d, err := attest.ParseDigest("sha256:" + hex)
		if !ok || err != nil {
			return fmt.Errorf("member %q is not a blob", clip(h.Name))
		}
		if n > attest.MaxBlobs {
			return fmt.Errorf("it has more than %d blobs", attest.MaxBlobs)
		}
		known := s.holds(d, h.Size)
		if err := s.Fill(d, tr); err != nil {
			return noEOF(err)
		}
		report.Blobs++
		if !known {
			report.New++
			report.NewBytes += h.Size
		}
	}
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

func checkMember(h *tar.Header) error {
	if h.Typeflag != tar.TypeReg {
		return fmt.Errorf("member %q is not a plain file", clip(h.Name))
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse") {
			return fmt.Errorf("member %q has holes", clip(h.Name))
		}
	}
	if h.Size < 0 || h.Size > attest.MaxBlob {
		return fmt.Errorf("member %q has %d bytes, and %d are allowed", clip(h.Name), h.Size, int64(attest.MaxBlob))
	}
	return nil
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
