package build

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// entry is one path of a context. Owners are not part of it: like docker, a
// context belongs to root.
type entry struct {
	path   string // slash separated, relative, clean
	mode   fs.FileMode
	size   int64
	link   string // target of a symbolic link
	mtime  time.Time
	xattrs map[string][]byte
	major  int64
	minor  int64
	sum    [32]byte // of a regular file, once hashed
	origin int64    // where the content lies in a spool file
	offset int64    // where the entry begins in the layer
	header int32    // length of its tar header
}

// tree is a context: its entries in the order of a walk, and where the bytes
// of its files are.
type tree struct {
	entries []entry
	// open returns the content of a regular file, from its first byte.
	open func(e *entry) (io.ReadCloser, error)
	// skipped are sockets, which no context can carry.
	skipped []string
	// left are the files that were there and left out by name.
	left []string
	// ignore is the ignore file that was applied, nil for none.
	ignore     []byte
	ignoreName string
}

// readIgnore finds the ignore file of a folder as docker does: one named after
// the Dockerfile and beside it wins over .dockerignore.
func readIgnore(dir, dockerfile string) (raw []byte, name string, err error) {
	candidates := []string{filepath.Join(dir, ".dockerignore")}
	if dockerfile != "" {
		candidates = append([]string{dockerfile + ".dockerignore"}, candidates...)
	}
	for _, name := range candidates {
		raw, err := readSmall(name, maxDockerfile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, "", fmt.Errorf("reading ignore file: %w", err)
		}
		return raw, filepath.Base(name), nil
	}
	return nil, "", nil
}

// walkFolder lists dir as it stands after the patterns of ignore, and without
// the files except ("" for none): a lock that changed the context it belongs to
// would never hold, and a private key must not end in an image.
func walkFolder(ctx context.Context, dir string, ignore []byte, ignoreName string, except ...string) (*tree, error) {
	var patterns []string
	if len(ignore) > 0 {
		var err error
		if patterns, err = ignorefile.ReadAll(bytes.NewReader(ignore)); err != nil {
			return nil, fmt.Errorf("reading ignore file %q: %w", ignoreName, err)
		}
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("reading context %q: %w", dir, err)
	}
	all, err := fsutil.NewFS(root)
	if err != nil {
		return nil, fmt.Errorf("reading context %q: %w", dir, err)
	}
	kept, err := fsutil.NewFilterFS(all, &fsutil.FilterOpt{ExcludePatterns: patterns})
	if err != nil {
		return nil, fmt.Errorf("reading ignore file %q: %w", ignoreName, err)
	}
	t := &tree{ignore: ignore, ignoreName: ignoreName}
	t.open = func(e *entry) (io.ReadCloser, error) {
		return os.OpenFile(filepath.Join(root, filepath.FromSlash(e.path)), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	}
	out := map[string]bool{}
	for _, name := range except {
		out[below(root, name)] = true
	}
	delete(out, "")
	err = kept.Walk(ctx, "", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if out[p] {
			t.left = append(t.left, p)
			return nil
		}
		if len(t.entries) >= attest.MaxContextFiles {
			return fmt.Errorf("more than %d files; leave out what the build does not need in .dockerignore", attest.MaxContextFiles)
		}
		if d.Type()&fs.ModeSocket != 0 {
			t.skipped = append(t.skipped, filepath.ToSlash(p))
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*fstypes.Stat)
		if !ok {
			return fmt.Errorf("no file information for %q", p)
		}
		e := entry{
			path: filepath.ToSlash(p), mode: fs.FileMode(st.Mode), mtime: time.Unix(0, st.ModTime),
			xattrs: st.Xattrs, major: st.Devmajor, minor: st.Devminor,
		}
		switch {
		case e.mode.IsRegular():
			// A second name of a file is listed as a link of no size: a context
			// keeps both as files.
			if st.Linkname != "" {
				fi, err := os.Lstat(filepath.Join(root, p))
				if err != nil {
					return err
				}
				e.size = fi.Size()
			} else {
				e.size = st.Size
			}
		case e.mode&fs.ModeSymlink != 0:
			e.link = st.Linkname
		}
		return t.add(e)
	})
	if err != nil {
		return nil, fmt.Errorf("reading context %q: %w", dir, plainPathError(err))
	}
	return t, nil
}

// below is the path of name in root, which is free of links; "" where it is
// not in there.
func below(root, name string) string {
	if name == "" {
		return ""
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(name))
	if err != nil {
		return ""
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return ""
	}
	if root, err = filepath.Abs(root); err != nil {
		return ""
	}
	rel, err := filepath.Rel(root, filepath.Join(dir, filepath.Base(name)))
	if err != nil || !filepath.IsLocal(rel) {
		return ""
	}
	return rel
}

// add appends e, or refuses what an image layer would read as something else.
func (t *tree) add(e entry) error {
	if strings.HasPrefix(path.Base(e.path), ".wh.") {
		return fmt.Errorf("%q: a name that begins with .wh. means deletion in an image layer; leave it out in .dockerignore", e.path)
	}
	t.entries = append(t.entries, e)
	return nil
}

// sortTree brings entries into the order of a walk: by path, component by
// component, a folder before what is in it.
func (t *tree) sort() {
	key := func(p string) string { return strings.ReplaceAll(p, "/", "\x00") }
	sort.SliceStable(t.entries, func(i, j int) bool { return key(t.entries[i].path) < key(t.entries[j].path) })
}

// find returns the entry of a path, or nil.
func (t *tree) find(p string) *entry {
	for i := range t.entries {
		if t.entries[i].path == p {
			return &t.entries[i]
		}
	}
	return nil
}

// writeManifest writes the per-file manifest: JSON lines in walk order. It
// speaks of content only: times and owners are no part of what a context is.
func (t *tree) writeManifest(w io.Writer) error {
	buf := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	for i := range t.entries {
		e := &t.entries[i]
		line := attestations.ContextFile{Path: e.path, Mode: fmt.Sprintf("%07o", unixMode(e.mode)), Size: e.size, Link: e.link}
		if e.mode.IsRegular() {
			line.SHA256 = hex.EncodeToString(e.sum[:])
		}
		if e.mode&fs.ModeDevice != 0 {
			line.Device = fmt.Sprintf("%d:%d", e.major, e.minor)
		}
		for k, v := range e.xattrs {
			if line.Xattrs == nil {
				line.Xattrs = map[string]string{}
			}
			line.Xattrs[k] = hex.EncodeToString(v)
		}
		if err := enc.Encode(line); err != nil {
			return err
		}
	}
	return buf.Flush()
}

// unixMode is a file's mode as stat(2) gives it.
func unixMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for _, b := range []struct {
		is  fs.FileMode
		bit uint32
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&b.is != 0 {
			bits |= b.bit
		}
	}
	switch {
	case m.IsDir():
		return bits | 0o040000
	case m&fs.ModeSymlink != 0:
		return bits | 0o120000
	case m&fs.ModeNamedPipe != 0:
		return bits | 0o010000
	case m&fs.ModeCharDevice != 0:
		return bits | 0o020000
	case m&fs.ModeDevice != 0:
		return bits | 0o060000
	default:
		return bits | 0o100000
	}
}

// plainPathError drops the stack and doubled wrapping that the walk adds.
func plainPathError(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe
	}
	return err
}

// readSmall reads a whole file of at most limit bytes.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("reading %q: more than %d bytes", name, limit)
	}
	return raw, nil
}
