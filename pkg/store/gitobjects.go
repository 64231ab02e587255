package store

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1" //nolint:gosec // git names its objects by it; nothing is believed for it
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Limits on what a git repository can make a reader do.
const (
	maxGitPacks  = 1024
	maxGitChain  = 512      // deltas upon one object; git's own default is 50
	maxGitCommit = 1 << 20  // bytes of a commit
	maxGitTree   = 16 << 20 // bytes of a tree: a quarter of a million notes without fan-out
	gitReadCost  = 64 << 10 // what looking for an object counts as, beside its bytes
)

// gitID names a git object: 40 hex digits, or 64 in a repository with sha256.
type gitID string

// parseGitID checks the form of an object's name.
func parseGitID(s string) (gitID, error) {
	if len(s) != 2*sha1.Size && len(s) != 2*sha256.Size || strings.Trim(s, "0123456789abcdef") != "" {
		return "", fmt.Errorf("%q is not the id of a git object: want 40 or 64 lower-case hex digits", oneLine(s))
	}
	return gitID(s), nil
}

func (id gitID) raw() []byte {
	b, _ := hex.DecodeString(string(id)) // parseGitID has looked at it
	return b
}

func (id gitID) hash() gohash.Hash {
	if len(id) == 2*sha1.Size {
		return sha1.New() //nolint:gosec // as above
	}
	return sha256.New()
}

// The kinds of object, by git's numbers.
// https://git-scm.com/docs/gitformat-pack
const (
	gitCommit   = 1
	gitTree     = 2
	gitBlob     = 3
	gitTag      = 4
	gitOfsDelta = 6
	gitRefDelta = 7
)

func gitKind(kind int) string {
	return []string{"object", "commit", "tree", "blob", "tag"}[min(max(kind, 0), gitTag)]
}

// errNoObject is an object that a repository does not have.
var errNoObject = errors.New("the repository does not have it")

// gitObjects reads the objects of a repository that nobody trusts, as files
// below its folder. No git runs and no configuration is read, so nothing that
// a repository can ask for is done: no hook, filter, alternate or fetch.
type gitObjects struct {
	ctx  context.Context // of the one question
	root *os.Root
	left int64 // bytes that may still be unpacked for it
}

// read returns the content of an object of at most limit bytes, checked
// against its name.
func (g *gitObjects) read(id gitID, want int, limit int64) ([]byte, error) {
	err := context.Cause(g.ctx)
	if err == nil {
		err = g.spend(gitReadCost)
	}
	if err != nil {
		return nil, err
	}
	kind, data, err := g.loose(id, limit)
	if errors.Is(err, fs.ErrNotExist) {
		kind, data, err = g.packed(id, limit, maxGitChain)
	}
	if err == nil && kind != want {
		err = fmt.Errorf("it is a %s, not a %s", gitKind(kind), gitKind(want))
	}
	if err == nil {
		sum := id.hash()
		fmt.Fprintf(sum, "%s %d\x00", gitKind(kind), len(data))
		sum.Write(data)
		if hex.EncodeToString(sum.Sum(nil)) != string(id) {
			err = errors.New("its content is not what its name says")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("reading git object %s: %w", id, err)
	}
	return data, nil
}

// spend takes n bytes off what may be unpacked.
func (g *gitObjects) spend(n int64) error {
	if g.left -= n; g.left < 0 {
		return fmt.Errorf("more than the %d MB that are unpacked for one question", attest.MaxEvidenceSum>>20)
	}
	return nil
}

// loose reads an object that has a file of its own.
func (g *gitObjects) loose(id gitID, limit int64) (int, []byte, error) {
	f, err := openRegular(g.root, path.Join("objects", string(id[:2]), string(id[2:])))
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	z, err := zlib.NewReader(f)
	if err != nil {
		return 0, nil, err
	}
	in := bufio.NewReaderSize(z, 512)
	var name string
	var size int64
	head, err := in.Peek(32) // "commit 4294967296\0" is no longer
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	end := bytes.IndexByte(head, 0)
	if end < 0 {
		return 0, nil, errors.New("it has no header")
	}
	if _, err := fmt.Sscanf(string(head[:end]), "%s %d", &name, &size); err != nil {
		return 0, nil, errors.New("its header cannot be read")
	}
	if _, err := in.Discard(end + 1); err != nil {
		return 0, nil, err
	}
	data, err := g.inflated(in, size, limit)
	return slices.Index([]string{"", "commit", "tree", "blob", "tag"}, name), data, err
}

// inflated reads size bytes, of at most limit, and no more must follow.
func (g *gitObjects) inflated(r io.Reader, size, limit int64) ([]byte, error) {
	if size < 0 || size > limit {
		return nil, &oversize{size, limit}
	}
	if err := g.spend(size); err != nil {
		return nil, err
	}
	// The size is somebody's word: memory is taken as bytes come.
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r, size+1))
	if err != nil {
		return nil, err
	}
	if n != size {
		return nil, errors.New("its size is not what its header says")
	}
	return buf.Bytes(), nil
}

// packed looks for an object in every pack.
func (g *gitObjects) packed(id gitID, limit int64, chain int) (int, []byte, error) {
	dir, err := g.root.Open("objects/pack")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil, g.absent()
	}
	if err != nil {
		return 0, nil, err
	}
	names, err := dir.Readdirnames(4 * maxGitPacks)
	dir.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, nil, err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasSuffix(n, ".idx") })
	if len(names) > maxGitPacks {
		return 0, nil, fmt.Errorf("the repository has more than the %d packs that are looked into; repack it with: git gc", maxGitPacks)
	}
	slices.Sort(names)
	for _, n := range names {
		kind, data, err := g.inPack(path.Join("objects/pack", strings.TrimSuffix(n, ".idx")), id, limit, chain)
		if !errors.Is(err, errNoObject) {
			return kind, data, err
		}
	}
	return 0, nil, g.absent()
}

// absent is the error for an object that is nowhere, with what may be why.
func (g *gitObjects) absent() error {
	if info, err := g.root.Stat("objects/info/alternates"); err == nil && info.Size() > 0 {
		return fmt.Errorf("%w; it borrows objects from another one (objects/info/alternates), where waxseal does not look: git repack -a makes it whole", errNoObject)
	}
	return errNoObject
}

func (g *gitObjects) inPack(name string, id gitID, limit int64, chain int) (int, []byte, error) {
	idx, err := openRegular(g.root, name+".idx")
	if err != nil {
		return 0, nil, err
	}
	defer idx.Close()
	offset, err := findInIndex(idx, id)
	if err != nil {
		return 0, nil, err
	}
	f, err := openRegular(g.root, name+".pack")
	if err != nil {
		return 0, nil, err
	}
	defer f.Close()
	return g.entry(f, offset, id, limit, chain)
}

// findInIndex looks an object up in a pack's index, version 2.
func findInIndex(idx io.ReaderAt, id gitID) (int64, error) {
	const head, fanout = 8, 256 * 4
	at := func(offset int64, n int) ([]byte, error) {
		b := make([]byte, n)
		if got, err := idx.ReadAt(b, offset); got < n {
			return nil, fmt.Errorf("the pack's index ends early: %w", err)
		}
		return b, nil
	}
	table, err := at(0, head+fanout)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(table[:head], []byte("\xfftOc\x00\x00\x00\x02")) {
		return 0, errors.New("the pack's index is not of version 2; repack the repository with: git gc")
	}
	count := func(i byte) int64 {
		return int64(binary.BigEndian.Uint32(table[head+4*int(i):]))
	}
	want := id.raw()
	width, total := int64(len(want)), count(255)
	low, high := int64(0), count(want[0])
	if want[0] > 0 {
		low = count(want[0] - 1)
	}
	for low < high {
		mid := (low + high) / 2
		name, err := at(head+fanout+mid*width, len(want))
		if err != nil {
			return 0, err
		}
		switch c := bytes.Compare(want, name); {
		case c < 0:
			high = mid
		case c > 0:
			low = mid + 1
		default:
			// The names are followed by a CRC each, then the offsets.
			offsets := head + fanout + total*(width+4)
			b, err := at(offsets+4*mid, 4)
			if err != nil {
				return 0, err
			}
			offset := int64(binary.BigEndian.Uint32(b))
			if offset&(1<<31) == 0 {
				return offset, nil
			}
			if b, err = at(offsets+4*total+8*(offset&(1<<31-1)), 8); err != nil {
				return 0, err
			}
			if large := binary.BigEndian.Uint64(b); large < 1<<62 {
				return int64(large), nil
			}
			return 0, errors.New("the pack's index has an offset beyond any file")
		}
	}
	return 0, errNoObject
}

// entry reads the object at an offset of a pack: what it is a delta of first,
// then the deltas upon it. id is the object's name, whose length is that of
// the pack's.
func (g *gitObjects) entry(pack io.ReaderAt, offset int64, id gitID, limit int64, chain int) (int, []byte, error) {
	var deltas [][]byte
	for {
		if len(deltas) > chain {
			return 0, nil, fmt.Errorf("it is a delta upon more than %d deltas", maxGitChain)
		}
		h, err := readEntryHead(pack, offset, len(id)/2)
		if err != nil {
			return 0, nil, err
		}
		z, err := zlib.NewReader(io.NewSectionReader(pack, h.data, 1<<62-h.data))
		if err != nil {
			return 0, nil, err
		}
		// A delta is bounded as what it makes is; so is what it is made of.
		data, err := g.inflated(z, h.size, max(limit, attest.MaxBundle))
		if err != nil {
			return 0, nil, err
		}
		kind := h.kind
		switch kind {
		case gitCommit, gitTree, gitBlob, gitTag:
		case gitOfsDelta:
			deltas, offset = append(deltas, data), h.base
			continue
		case gitRefDelta:
			deltas = append(deltas, data)
			if kind, data, err = g.packed(h.baseID, max(limit, attest.MaxBundle), chain-len(deltas)); err != nil {
				return 0, nil, fmt.Errorf("what it is a delta of, %s: %w", h.baseID, err)
			}
		default:
			return 0, nil, fmt.Errorf("the pack has an entry of the unknown kind %d", kind)
		}
		for _, d := range slices.Backward(deltas) {
			if data, err = g.patched(data, d, max(limit, attest.MaxBundle)); err != nil {
				return 0, nil, err
			}
		}
		if int64(len(data)) > limit {
			return 0, nil, &oversize{int64(len(data)), limit}
		}
		return kind, data, nil
	}
}

// entryHead is what stands before the compressed bytes of an entry.
type entryHead struct {
	kind   int
	size   int64
	base   int64 // of an offset delta
	baseID gitID // of a reference delta
	data   int64 // where the compressed bytes start
}

func readEntryHead(pack io.ReaderAt, offset int64, width int) (entryHead, error) {
	var h entryHead
	buf := make([]byte, 64)
	n, err := pack.ReadAt(buf, offset)
	if n == 0 && err != nil {
		return h, fmt.Errorf("the pack ends early: %w", err)
	}
	in := bytes.NewReader(buf[:n])
	cut := errors.New("the pack has an entry that cannot be read")
	first, err := in.ReadByte()
	if err != nil {
		return h, cut
	}
	h.kind, h.size = int(first>>4&7), int64(first&15)
	for shift, more := 4, first&0x80 != 0; more; shift += 7 {
		b, err := in.ReadByte()
		if err != nil || shift > 50 {
			return h, cut
		}
		h.size |= int64(b&0x7f) << shift
		more = b&0x80 != 0
	}
	switch h.kind {
	case gitOfsDelta:
		back := int64(-1)
		for more := true; more; {
			b, err := in.ReadByte()
			if err != nil || back > 1<<50 {
				return h, cut
			}
			back = (back+1)<<7 | int64(b&0x7f)
			more = b&0x80 != 0
		}
		// Always towards the front, so that no chain leads in a circle.
		if h.base = offset - back; back < 1 || h.base < 0 {
			return h, cut
		}
	case gitRefDelta:
		id := make([]byte, width)
		if _, err := io.ReadFull(in, id); err != nil {
			return h, cut
		}
		h.baseID = gitID(hex.EncodeToString(id))
	}
	h.data = offset + int64(n-in.Len())
	return h, nil
}

// patched applies a delta.
// https://git-scm.com/docs/gitformat-pack#_deltified_representation
func (g *gitObjects) patched(base, delta []byte, limit int64) ([]byte, error) {
	bad := errors.New("it is a delta that cannot be applied")
	from, n := binary.Uvarint(delta)
	if n <= 0 || from != uint64(len(base)) {
		return nil, bad
	}
	delta = delta[n:]
	size, n := binary.Uvarint(delta)
	if n <= 0 {
		return nil, bad
	}
	if size > uint64(limit) {
		return nil, &oversize{int64(min(size, 1<<62)), limit}
	}
	if err := g.spend(int64(size)); err != nil {
		return nil, err
	}
	delta = delta[n:]
	var out []byte
	for len(delta) > 0 {
		op := delta[0]
		delta = delta[1:]
		var part []byte
		if op&0x80 == 0 {
			if op == 0 || int(op) > len(delta) {
				return nil, bad
			}
			part, delta = delta[:op], delta[op:]
		} else {
			var at, length int
			for i := range 7 {
				if op&(1<<i) == 0 {
					continue
				}
				if len(delta) == 0 {
					return nil, bad
				}
				if i < 4 {
					at |= int(delta[0]) << (8 * i)
				} else {
					length |= int(delta[0]) << (8 * (i - 4))
				}
				delta = delta[1:]
			}
			if length == 0 {
				length = 1 << 16
			}
			if at > len(base) || length > len(base)-at {
				return nil, bad
			}
			part = base[at : at+length]
		}
		if uint64(len(out)+len(part)) > size {
			return nil, bad
		}
		out = append(out, part...)
	}
	if uint64(len(out)) != size {
		return nil, bad
	}
	return out, nil
}

// openRegular opens a file below root: a link that leads out of it, a device or
// a pipe is refused.
func openRegular(root *os.Root, name string) (*os.File, error) {
	info, err := root.Stat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is not a regular file", name)
	}
	return root.Open(name)
}
