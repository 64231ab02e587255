package build

import (
	"archive/tar"
	"bufio"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Bounds of a context on standard input.
const (
	maxDockerfile   = 4 << 20
	maxArchiveNames = 256 << 20 // bytes of all names, links and attributes together
)

// isArchive reports whether the first bytes of a stream are a tar archive or a
// compression that one can be in: what docker takes as a context rather than
// as a Dockerfile.
func isArchive(head []byte) bool {
	if compressionOf(head) != "" {
		return true
	}
	_, err := tar.NewReader(strings.NewReader(string(head))).Next()
	return err == nil
}

func compressionOf(head []byte) string {
	for _, c := range []struct{ name, magic string }{
		{"gzip", "\x1f\x8b\x08"}, {"bzip2", "BZh"}, {"xz", "\xfd7zXZ\x00"}, {"zstd", "\x28\xb5\x2f\xfd"},
	} {
		if strings.HasPrefix(string(head), c.magic) {
			return c.name
		}
	}
	return ""
}

func decompress(in *bufio.Reader) (io.Reader, error) {
	head, _ := in.Peek(8)
	switch compressionOf(head) {
	case "gzip":
		return gzip.NewReader(in)
	case "bzip2":
		return bzip2.NewReader(in), nil
	case "xz":
		return xz.ReaderConfig{DictCap: 64 << 20}.NewReader(in)
	case "zstd":
		d, err := zstd.NewReader(in, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	default:
		return in, nil
	}
}

// readArchive reads a tar archive, compressed or not, into a tree whose file
// content lies in spool. A later entry of a path replaces an earlier one, a
// hard link becomes a file of its own, and a path that leaves the context is
// an error.
func readArchive(ctx context.Context, in io.Reader, spool *os.File, report func(int64)) (*tree, error) {
	plain, err := decompress(bufio.NewReaderSize(in, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("reading context archive: %w", err)
	}
	t := &tree{}
	t.open = func(e *entry) (io.ReadCloser, error) {
		return sectionFile{io.NewSectionReader(spool, e.origin, e.size)}, nil
	}
	var (
		at     = map[string]int{}
		end    int64
		names  int
		reader = tar.NewReader(plain)
	)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading context archive: %w", err)
		}
		if names += headerSize(h); names > maxArchiveNames {
			return nil, fmt.Errorf("reading context archive: its names and attributes are larger than %d bytes", maxArchiveNames)
		}
		e, err := archiveEntry(h)
		if err != nil {
			return nil, fmt.Errorf("reading context archive: entry %q: %w", h.Name, err)
		}
		if e.path == "." {
			continue
		}
		if len(at) >= attest.MaxContextFiles {
			return nil, fmt.Errorf("reading context archive: more than %d files", attest.MaxContextFiles)
		}
		switch h.Typeflag {
		case tar.TypeLink:
			target, err := cleanName(h.Linkname)
			if err != nil {
				return nil, fmt.Errorf("reading context archive: entry %q: link to %w", h.Name, err)
			}
			i, ok := at[target]
			if !ok || !t.entries[i].mode.IsRegular() {
				return nil, fmt.Errorf("reading context archive: entry %q: hard link to %q, which is no earlier file", h.Name, h.Linkname)
			}
			e.mode, e.size, e.origin, e.mtime = t.entries[i].mode, t.entries[i].size, t.entries[i].origin, t.entries[i].mtime
		case tar.TypeReg:
			n, err := io.Copy(spool, countingReader{reader, report})
			if err != nil {
				return nil, fmt.Errorf("reading context archive: entry %q: %w", h.Name, err)
			}
			e.origin, e.size = end, n
			end += n
		}
		if i, ok := at[e.path]; ok {
			t.entries[i] = e
			continue
		}
		at[e.path] = len(t.entries)
		if err := t.add(e); err != nil {
			return nil, err
		}
	}
	if err := t.addFolders(at); err != nil {
		return nil, err
	}
	t.sort()
	return t, nil
}

// addFolders adds the folders that an archive left out, and refuses a path
// below something that is no folder.
func (t *tree) addFolders(at map[string]int) error {
	for i := range t.entries {
		for dir := path.Dir(t.entries[i].path); dir != "."; dir = path.Dir(dir) {
			if j, ok := at[dir]; ok {
				if !t.entries[j].mode.IsDir() {
					return fmt.Errorf("reading context archive: %q lies below %q, which is no folder", t.entries[i].path, dir)
				}
				continue
			}
			if len(at) >= attest.MaxContextFiles {
				return fmt.Errorf("reading context archive: more than %d files", attest.MaxContextFiles)
			}
			at[dir] = len(t.entries)
			if err := t.add(entry{path: dir, mode: fs.ModeDir | 0o755, mtime: t.entries[i].mtime}); err != nil {
				return err
			}
		}
	}
	return nil
}

func headerSize(h *tar.Header) int {
	n := len(h.Name) + len(h.Linkname)
	for k, v := range h.PAXRecords {
		n += len(k) + len(v)
	}
	return n
}

func archiveEntry(h *tar.Header) (entry, error) {
	name, err := cleanName(h.Name)
	if err != nil {
		return entry{}, err
	}
	e := entry{path: name, mtime: h.ModTime, mode: h.FileInfo().Mode()}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeLink:
		e.mode &^= fs.ModeType
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		e.link = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		e.major, e.minor = h.Devmajor, h.Devminor
	default:
		return entry{}, fmt.Errorf("an entry of type %q cannot be part of a context", string(h.Typeflag))
	}
	for k, v := range h.PAXRecords {
		if name, ok := strings.CutPrefix(k, xattrRecord); ok {
			if e.xattrs == nil {
				e.xattrs = map[string][]byte{}
			}
			e.xattrs[name] = []byte(v)
		}
	}
	return e, nil
}

// xattrRecord begins the name of a PAX record that holds an extended attribute.
const xattrRecord = "SCHILY.xattr."

// cleanName brings an archive's name into the form of a tree. A leading slash
// means the context's root, as it does for docker.
func cleanName(name string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", errors.New("a name with a zero byte")
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("%q, which leaves the context", name)
		}
	}
	c := strings.TrimPrefix(path.Clean("/"+name), "/")
	if c == "" {
		return ".", nil
	}
	return c, nil
}

type sectionFile struct{ *io.SectionReader }

func (sectionFile) Close() error { return nil }

type countingReader struct {
	r      io.Reader
	report func(int64)
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if n > 0 && c.report != nil {
		c.report(int64(n))
	}
	return n, err
}
