package engine

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// packed is a folder by content: the digest of its context manifest, and that
// of the archive in which a replay gives it to the engine again.
type packed struct {
	manifest attest.Digest
	archive  attest.Digest
	size     int64 // bytes of the archive
	unkept   error // why the store does not have both; nil where it has
}

var (
	errNoStore  = errors.New("there is no store")
	errWhiteout = errors.New("a name that begins with .wh. means deletion in an image layer")
)

// packFolder hashes a folder, and keeps manifest and archive in the store,
// which may be nil. What the store has already is not written again.
func packFolder(dir string, keep *lock.Store) (packed, error) {
	var p packed
	manifest, archive := sha256.New(), &counted{w: sha256.New()}
	var err error
	if p.unkept, err = writeFolder(dir, manifest, archive); err != nil {
		return p, err
	}
	p.manifest = attest.Digest("sha256:" + hex.EncodeToString(manifest.Sum(nil)))
	p.archive = attest.Digest("sha256:" + hex.EncodeToString(archive.w.Sum(nil)))
	p.size = archive.n
	switch {
	case p.unkept != nil:
	case keep == nil:
		p.unkept = errNoStore
	case !keep.Has(p.manifest) || !keep.Has(p.archive):
		p.unkept = p.keep(dir, keep)
	}
	return p, nil
}

// keep packs the folder once more, into the store.
func (p packed) keep(dir string, store *lock.Store) error {
	manifest, err := store.NewWriter()
	if err != nil {
		return err
	}
	defer manifest.Abort()
	archive, err := store.NewWriter()
	if err != nil {
		return err
	}
	defer archive.Abort()
	if _, err := writeFolder(dir, manifest, archive); err != nil {
		return err
	}
	if manifest.Digest() != p.manifest || archive.Digest() != p.archive {
		return errors.New("the folder changed while it was packed")
	}
	if _, err := manifest.Commit(); err != nil {
		return err
	}
	_, err = archive.Commit()
	return err
}

// writeFolder writes the context manifest of a folder, and an archive of all
// that is in it: owners, times and links, too, which the manifest leaves out
// and a step can see. unfit says why no engine could be given the archive.
func writeFolder(dir string, manifest, archive io.Writer) (unfit, err error) {
	lines := bufio.NewWriterSize(manifest, 64<<10)
	whole := bufio.NewWriterSize(archive, 256<<10)
	enc := json.NewEncoder(lines)
	enc.SetEscapeHTML(false)
	p := &packer{tw: tar.NewWriter(whole), links: map[[2]uint64]string{}, buf: make([]byte, 128<<10)}
	files := 0
	err = filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
		if err != nil || name == dir { // no archive can say anything of its root
			return err
		}
		if files++; files > attest.MaxContextFiles {
			return fmt.Errorf("more than %d files", attest.MaxContextFiles)
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		if strings.HasPrefix(filepath.Base(rel), ".wh.") {
			unfit = fmt.Errorf("%q: %w", rel, errWhiteout)
		}
		e, err := readEntry(name, filepath.ToSlash(rel))
		if err != nil {
			return err
		}
		sum, err := p.write(&e, name)
		if err != nil {
			return err
		}
		line := e.line()
		line.SHA256 = sum
		return enc.Encode(line)
	})
	if err != nil {
		return nil, err
	}
	return unfit, errors.Join(p.tw.Close(), whole.Flush(), lines.Flush())
}

// sentEntry is one path of a folder.
type sentEntry struct {
	path   string
	stat   unix.Stat_t
	link   string
	xattrs map[string][]byte
}

func readEntry(name, path string) (e sentEntry, err error) {
	e.path = path
	if err := unix.Lstat(name, &e.stat); err != nil {
		return e, err
	}
	if e.kind() == unix.S_IFLNK {
		if e.link, err = os.Readlink(name); err != nil {
			return e, err
		}
	}
	e.xattrs, err = xattrsOf(name)
	return e, err
}

func (e *sentEntry) kind() uint32 { return e.stat.Mode & unix.S_IFMT }

// line is the entry in the context manifest, but for the digest of its bytes.
func (e *sentEntry) line() attestations.ContextFile {
	line := attestations.ContextFile{Path: e.path, Mode: fmt.Sprintf("%07o", e.stat.Mode), Link: e.link}
	switch e.kind() {
	case unix.S_IFREG:
		line.Size = e.stat.Size
	case unix.S_IFCHR, unix.S_IFBLK:
		line.Device = fmt.Sprintf("%d:%d", unix.Major(e.stat.Rdev), unix.Minor(e.stat.Rdev))
	}
	for k, v := range e.xattrs {
		if line.Xattrs == nil {
			line.Xattrs = map[string]string{}
		}
		line.Xattrs[k] = hex.EncodeToString(v)
	}
	return line
}

// packer writes an archive.
type packer struct {
	tw    *tar.Writer
	links map[[2]uint64]string // files that have further names, by device and inode
	buf   []byte
}

// write adds an entry to the archive and returns the digest of a file's bytes,
// in hex.
func (p *packer) write(e *sentEntry, name string) (string, error) {
	h := &tar.Header{
		Name: e.path, Linkname: e.link, Mode: int64(e.stat.Mode & 0o7777), Uid: int(e.stat.Uid), Gid: int(e.stat.Gid),
		ModTime: time.Unix(e.stat.Mtim.Unix()), Format: tar.FormatPAX,
	}
	for k, v := range e.xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = string(v)
	}
	switch e.kind() {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if e.kind() == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(e.stat.Rdev)), int64(unix.Minor(e.stat.Rdev))
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, e.stat.Size
	default:
		return "", fmt.Errorf("%q: a file of this kind cannot be sent", e.path)
	}
	to := io.Writer(p.tw)
	if e.kind() == unix.S_IFREG && e.stat.Nlink > 1 {
		id := [2]uint64{e.stat.Dev, e.stat.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			to = io.Discard
		} else {
			p.links[id] = e.path
		}
	}
	if err := p.tw.WriteHeader(h); err != nil || e.kind() != unix.S_IFREG {
		return "", err
	}
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(to, sum), struct{ io.Reader }{f}, p.buf)
	if err == nil && n != e.stat.Size {
		err = fmt.Errorf("%q has %d bytes, not %d", e.path, n, e.stat.Size)
	}
	return hex.EncodeToString(sum.Sum(nil)), err
}

// counted is a digest that knows how much it has seen.
type counted struct {
	w interface {
		io.Writer
		Sum([]byte) []byte
	}
	n int64
}

func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.w.Write(p)
}
