package rebuild

import (
	"archive/tar"
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// tree is one or more layers of one image, compared as if they were one.
type tree struct {
	place  store.Repository
	layers []descriptor
	first  int // number of the first layer, from 1
}

// entry is what a layer says of one file.
type entry struct {
	layer   int
	path    string // without a leading slash
	kind    string
	mode    int64
	uid     int
	gid     int
	names   string // of user and group
	times   string
	link    string
	device  string
	attrs   string
	size    int64
	content [sha256.Size]byte
}

// key stands for a path, sum for what is there: so little is kept of a layer
// with a million files.
type key [16]byte

type sum struct {
	meta    [16]byte
	content [sha256.Size]byte
}

func (e *entry) key() (k key) {
	s := sha256.Sum256([]byte(e.path))
	copy(k[:], s[:])
	return k
}

func (e *entry) sum() sum {
	s := sum{content: e.content}
	m := sha256.Sum256(fmt.Appendf(nil, "%q", []any{e.kind, e.mode, e.uid, e.gid, e.names, e.times, e.link, e.device, e.attrs}))
	copy(s.meta[:], m[:])
	return s
}

// passage is what reading a tree once told besides its entries.
type passage struct {
	entries     int
	order       [sha256.Size]byte
	bound       bool // an entry comes after one that leads to it or lies below it: the order tells what is unpacked
	compression []string
	diffIDs     []attest.Digest
}

// scan reads a tree from start to end and shows every entry to visit, with its
// content. visit may leave the content unread.
func (t *tree) scan(ctx context.Context, visit func(e *entry, content io.Reader) error) (*passage, error) {
	p := &passage{}
	order, after := sha256.New(), successors{map[key]bool{}, map[key]bool{}}
	for i, l := range t.layers {
		err := t.scanLayer(ctx, l, p, func(e *entry, content io.Reader) error {
			if p.entries++; p.entries > attest.MaxLayerFiles {
				return fmt.Errorf("more than the %d files that are read", attest.MaxLayerFiles)
			}
			e.layer = t.first + i
			_, _ = io.WriteString(order, e.path+"\x00")
			p.bound = p.bound || after.late(e)
			return visit(e, content)
		})
		if err != nil {
			return nil, fmt.Errorf("reading layer %s: %w", l.Digest, err)
		}
	}
	order.Sum(p.order[:0])
	return p, nil
}

// successors are the paths that earlier entries lead to by a hard link or lie
// below: what comes there later is not what they were made with.
type successors struct{ linked, above map[key]bool }

// late notes what e depends on, and reports whether it comes too late itself.
// A folder may come after its files.
func (s successors) late(e *entry) bool {
	own := e.key()
	if e.kind == "hard link" {
		s.linked[(&entry{path: e.link}).key()] = true
	}
	for dir := path.Dir(e.path); dir != "."; dir = path.Dir(dir) {
		k := (&entry{path: dir}).key()
		if s.above[k] {
			break
		}
		s.above[k] = true
	}
	return e.kind != "folder" && (s.linked[own] || s.above[own])
}

// errTooLarge is a layer that unpacks to more than is read.
var errTooLarge = errors.New("it unpacks to more than is read")

func (t *tree) scanLayer(ctx context.Context, l descriptor, p *passage, visit func(*entry, io.Reader) error) error {
	d, err := attest.ParseDigest(l.Digest)
	if err != nil {
		return err
	}
	blob, err := t.place.Blob(ctx, d)
	if err != nil {
		return err
	}
	defer blob.Close()
	raw := bufio.NewReaderSize(&checked{ctx: ctx, Reader: blob, left: l.Size}, 64<<10)
	unpacked, compression, err := decompress(raw)
	if err != nil {
		return err
	}
	defer unpacked.Close()
	diffID := sha256.New()
	in := io.TeeReader(&limited{Reader: unpacked, left: attest.MaxLayer}, diffID)
	files := tar.NewReader(in)
	var sum int64
	for {
		h, err := files.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		// A sparse file holds more than its archive does.
		if sum += h.Size; sum > attest.MaxLayer {
			return errTooLarge
		}
		e := entryOf(h)
		content := &hashing{ctx: ctx, Reader: files, sum: sha256.New()}
		if err := visit(e, content); err != nil {
			return err
		}
	}
	// The rest belongs to the digests.
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, raw); err != nil {
		return err
	}
	p.compression = append(p.compression, compression)
	p.diffIDs = append(p.diffIDs, attest.Digest("sha256:"+hex.EncodeToString(diffID.Sum(nil))))
	return nil
}

// checked ends a read when the context does, and when a blob is larger than
// its descriptor says.
type checked struct {
	ctx context.Context
	io.Reader
	left int64
}

func (c *checked) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	n, err := c.Reader.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, errors.New("it is larger than the manifest says")
	}
	return n, err
}

// limited fails at a bound, where io.LimitReader would end.
type limited struct {
	io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errTooLarge
	}
	return n, err
}

// hashing hashes what is read of a file's content.
type hashing struct {
	ctx context.Context // of the one scan that made it
	io.Reader
	sum hash.Hash
}

func (h *hashing) Read(p []byte) (int, error) {
	if err := context.Cause(h.ctx); err != nil {
		return 0, err
	}
	n, err := h.Reader.Read(p)
	h.sum.Write(p[:n])
	return n, err
}

// finish reads what is left of the content and notes its digest. content is
// what scan gave.
func (e *entry) finish(content io.Reader) error {
	h := content.(*hashing)
	if _, err := io.Copy(io.Discard, h); err != nil {
		return err
	}
	h.sum.Sum(e.content[:0])
	return nil
}

func decompress(r *bufio.Reader) (io.ReadCloser, string, error) {
	magic, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return nil, "", err
	}
	switch {
	case bytes.HasPrefix(magic, []byte("\x1f\x8b")):
		z, err := gzip.NewReader(r)
		return z, "gzip", err
	case bytes.Equal(magic, []byte("\x28\xb5\x2f\xfd")):
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(256<<20), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, "", err
		}
		return d.IOReadCloser(), "zstd", nil
	}
	return io.NopCloser(r), "none", nil
}

func entryOf(h *tar.Header) *entry {
	e := &entry{
		path: strings.TrimPrefix(path.Clean("/"+h.Name), "/"),
		mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, names: h.Uname + ":" + h.Gname,
		times: times(h), attrs: attributes(h), size: h.Size,
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		e.kind = "file"
		if strings.HasPrefix(path.Base(e.path), ".wh.") {
			e.kind = "whiteout"
		}
	case tar.TypeDir:
		e.kind = "folder"
	case tar.TypeSymlink:
		e.kind, e.link = "symbolic link", h.Linkname
	case tar.TypeLink:
		e.kind, e.link = "hard link", strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
	case tar.TypeChar, tar.TypeBlock:
		e.kind, e.device = "device", fmt.Sprintf("%c %d:%d", h.Typeflag, h.Devmajor, h.Devminor)
	case tar.TypeFifo:
		e.kind = "named pipe"
	default:
		e.kind = fmt.Sprintf("entry of type %q", h.Typeflag)
	}
	return e
}

func times(h *tar.Header) string {
	out := h.ModTime.UTC().Format(time.RFC3339Nano)
	for _, t := range []time.Time{h.AccessTime, h.ChangeTime} {
		if !t.IsZero() {
			out += " " + t.UTC().Format(time.RFC3339Nano)
		}
	}
	return out
}

// attributes are the records of a header that no field stands for: extended
// attributes above all.
func attributes(h *tar.Header) string {
	var out strings.Builder
	for _, k := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		switch k {
		case "path", "linkpath", "size", "uid", "gid", "uname", "gname", "mtime", "atime", "ctime":
			continue
		}
		fmt.Fprintf(&out, "%s=%x ", strings.TrimPrefix(k, "SCHILY.xattr."), h.PAXRecords[k])
	}
	return strings.TrimSuffix(out.String(), " ")
}

// side is what the second reading found of the entries that differ.
type side struct {
	entries map[key]*entry
	spool   string // folder for contents
}

// known is what the first reading keeps of a path.
type known struct {
	sum
	seen bool // in the other tree
}

// compareTrees adds to t what differs between two trees.
func compareTrees(ctx context.Context, a, b *tree, tmp string, t *tally) error {
	before := map[key]known{}
	twice := false // a path stands more than once in a tree
	pa, err := a.scan(ctx, func(e *entry, content io.Reader) error {
		if err := e.finish(content); err != nil {
			return err
		}
		k := e.key()
		_, again := before[k]
		twice = twice || again
		before[k] = known{sum: e.sum()}
		return nil
	})
	if err != nil {
		return err
	}
	// wanted are the paths that differ, and whether their contents do.
	wanted, more, uneven := map[key]bool{}, 0, false
	want := func(k key, content bool) {
		if _, ok := wanted[k]; !ok && len(wanted) >= attest.MaxDiffering {
			more++
			return
		}
		wanted[k] = wanted[k] || content
	}
	pb, err := b.scan(ctx, func(e *entry, content io.Reader) error {
		if err := e.finish(content); err != nil {
			return err
		}
		k, s := e.key(), e.sum()
		old, ok := before[k]
		uneven = uneven || !ok
		twice = twice || old.seen
		if !ok || old.sum != s || old.seen {
			want(k, ok && old.content != s.content)
		}
		if ok {
			old.seen = true
			before[k] = old
		}
		return nil
	})
	if err != nil {
		return err
	}
	for k, old := range before {
		if !old.seen {
			uneven = true
			want(k, false)
		}
	}
	if len(wanted) == 0 || twice || !uneven && pa.order != pb.order {
		sameFiles(t, a, pa, pb, twice, len(wanted) == 0)
	}
	if len(wanted) == 0 {
		return nil
	}
	left, err := a.collect(ctx, wanted, filepath.Join(tmp, "original"))
	if err != nil {
		return err
	}
	defer os.RemoveAll(left.spool)
	right, err := b.collect(ctx, wanted, filepath.Join(tmp, "rebuilt"))
	if err != nil {
		return err
	}
	defer os.RemoveAll(right.spool)
	if more > 0 {
		t.add(attestations.RebuildDifference{Kind: attestations.DifferentUnread, Layer: a.first,
			Cause: fmt.Sprintf("%d more files differ than the %d that are looked into", more, attest.MaxDiffering)})
	}
	return compareEntries(ctx, left, right, t)
}

// sameFiles says how two trees are other bytes beside the files that differ,
// of which there may be none. What a path that stands in a tree more than once
// stands for depends on who unpacks it.
func sameFiles(t *tally, a *tree, pa, pb *passage, twice, none bool) {
	d := attestations.RebuildDifference{Layer: a.first, Kind: attestations.DifferentArchive, Original: clip(joined(pa.diffIDs)), Rebuilt: clip(joined(pb.diffIDs))}
	switch {
	case slices.Equal(pa.diffIDs, pb.diffIDs):
		d.Kind, d.Cause = attestations.DifferentCompression, "the layer holds the same archive, compressed differently"
		d.Original, d.Rebuilt = clip(strings.Join(pa.compression, ", ")), clip(strings.Join(pb.compression, ", "))
		d.Normalisers = []string{string(compressionV1)}
	case twice:
		d.Cause = "the layer holds a path more than once"
	case pa.order != pb.order && (pa.bound || pb.bound):
		d.Cause = "the layer holds its files in another order, by which they unpack to something else"
	case pa.order != pb.order:
		d.Cause, d.Normalisers = "the layer holds its files in another order", []string{string(layerFormV1)}
	case none:
		d.Cause, d.Normalisers = "the layer holds the same files, with headers of another form", []string{string(layerFormV1)}
	}
	t.add(d)
}

func joined(list []attest.Digest) string {
	var out []string
	for _, d := range list {
		out = append(out, string(d))
	}
	return strings.Join(out, " ")
}

// collect reads a tree again and keeps what is wanted, contents on disk.
func (t *tree) collect(ctx context.Context, wanted map[key]bool, spool string) (*side, error) {
	if err := os.MkdirAll(spool, 0o700); err != nil {
		return nil, err
	}
	s := &side{entries: map[key]*entry{}, spool: spool}
	left := int64(attest.MaxSpool)
	_, err := t.scan(ctx, func(e *entry, content io.Reader) error {
		k := e.key()
		withContent, ok := wanted[k]
		if !ok {
			return nil
		}
		s.entries[k] = e
		name := s.file(k)
		_ = os.Remove(name) // a second entry of the path takes the place of the first
		if withContent && e.kind == "file" && e.size <= attest.MaxLookInto && e.size <= left {
			left -= e.size
			if err := writeAll(name, content); err != nil {
				return err
			}
		}
		return e.finish(content)
	})
	if err != nil {
		os.RemoveAll(spool)
		return nil, err
	}
	return s, nil
}

func (s *side) file(k key) string { return filepath.Join(s.spool, hex.EncodeToString(k[:])) }

func writeAll(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(r, attest.MaxLookInto))
	return errors.Join(err, f.Close())
}

// compareEntries compares what was collected, path by path.
func compareEntries(ctx context.Context, left, right *side, t *tally) error {
	keys := slices.Collect(maps.Keys(left.entries))
	for k := range right.entries {
		if left.entries[k] == nil {
			keys = append(keys, k)
		}
	}
	name := func(k key) string {
		if e := left.entries[k]; e != nil {
			return e.path
		}
		return right.entries[k].path
	}
	slices.SortFunc(keys, func(x, y key) int { return cmp.Compare(name(x), name(y)) })
	for _, k := range keys {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		x, y := left.entries[k], right.entries[k]
		switch {
		case y == nil:
			t.add(attestations.RebuildDifference{Kind: attestations.DifferentMissing, Layer: x.layer, Path: "/" + clip(x.path), Cause: onlyOne("only the original has this ", x), Original: x.what()})
		case x == nil:
			t.add(attestations.RebuildDifference{Kind: attestations.DifferentAdded, Layer: y.layer, Path: "/" + clip(y.path), Cause: onlyOne("only the rebuilt image has this ", y), Rebuilt: y.what()})
		default:
			compareMeta(x, y, t)
			if x.content != y.content && x.kind == y.kind {
				if err := compareContent(k, left, right, t); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func onlyOne(words string, e *entry) string {
	known := knownCause(e.path)
	if strings.Contains("/"+e.path, "/__pycache__/") {
		known = "Python compiles a module when it is first imported"
	}
	if known != "" {
		known = ": " + known
	}
	return words + e.kind + known
}

// what is an entry in a few words.
func (e *entry) what() string {
	switch e.kind {
	case "file":
		return fmt.Sprintf("%d bytes, sha256:%x", e.size, e.content)
	case "symbolic link", "hard link":
		return e.kind + " to " + clip(e.link)
	case "device":
		return "device " + e.device
	}
	return e.kind
}

// compareMeta compares everything but the content.
func compareMeta(x, y *entry, t *tally) {
	add := func(kind, cause, original, rebuilt string, by ...string) {
		if original != rebuilt {
			t.add(attestations.RebuildDifference{Kind: kind, Layer: x.layer, Path: "/" + clip(x.path), Cause: cause, Original: clip(original), Rebuilt: clip(rebuilt), Normalisers: by})
		}
	}
	if x.kind != y.kind {
		add(attestations.DifferentType, "not the same kind of file", x.what(), y.what())
		return
	}
	add(attestations.DifferentMode, "other permissions", fmt.Sprintf("%04o", x.mode), fmt.Sprintf("%04o", y.mode))
	add(attestations.DifferentOwner, "another owner", fmt.Sprintf("%d:%d", x.uid, x.gid), fmt.Sprintf("%d:%d", y.uid, y.gid))
	add(attestations.DifferentOwner, "another name of the owner", x.names, y.names)
	add(attestations.DifferentTime, "the file's time is that of the build", x.times, y.times, string(fileTimesV1))
	add(attestations.DifferentLink, "the "+x.kind+" leads elsewhere", x.link, y.link)
	add(attestations.DifferentType, "another device", x.device, y.device)
	add(attestations.DifferentAttributes, "other extended attributes", x.attrs, y.attrs)
}

func compareContent(k key, left, right *side, t *tally) error {
	x, y := left.entries[k], right.entries[k]
	d := attestations.RebuildDifference{Kind: attestations.DifferentContent, Layer: x.layer}
	a, errA := os.ReadFile(left.file(k))
	b, errB := os.ReadFile(right.file(k))
	switch err := errors.Join(errA, errB); {
	case errors.Is(err, os.ErrNotExist):
		d.Path, d.Cause = "/"+clip(x.path), "the content differs; the file is too large to be looked into"
		d.Original, d.Rebuilt = x.what(), y.what()
		if known := knownCause(x.path); known != "" {
			d.Cause = known + "; " + d.Cause
		}
		t.add(d)
		return nil
	case err != nil:
		return err
	}
	for _, f := range explain(x.path, a, b, &t.unpack) {
		d.Path = clip("/" + x.path + f.inside)
		d.Cause, d.Original, d.Rebuilt, d.Normalisers = f.cause, f.original, f.rebuilt, nil
		for _, n := range f.normalisers {
			d.Normalisers = append(d.Normalisers, string(n))
		}
		t.add(d)
	}
	return nil
}
