package rebuild

import (
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// part is a piece of an archive or compressed file. Together the parts hold
// everything that the bytes say, but for what follows from it: sizes, offsets
// and checksums of members, and what a normaliser leaves out.
type part struct {
	name   string // of a member, for people
	member bool
	data   []byte // a member's content; else the bytes that stand there
	packed []byte // a member's content as it is compressed in the archive; nil if it is not
}

// archive is a file taken apart.
type archive struct {
	kind  string // "gzip file", "zip archive"
	parts []part
	uses  []normaliser // that could have been used on what stands between the members
}

// budget bounds what is unpacked of one file.
type budget struct{ left int64 }

var errBudget = errors.New("more than is unpacked")

// read unpacks r.
func (b *budget) read(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, b.left+1))
	tooMuch := int64(len(data)) > b.left
	b.left -= min(int64(len(data)), b.left) // work that was in vain counts, too
	switch {
	case err != nil:
		return nil, err
	case tooMuch:
		return nil, errBudget
	}
	return data, nil
}

// maxMembers bounds the members of one archive.
const maxMembers = 200_000

// takeApart opens an archive or a compressed file, leaving out what the
// normalisers in on leave out. Nil means that it is none, or one that cannot
// be read whole: such bytes are compared as they are.
func takeApart(data []byte, on func(normaliser) bool, b *budget) *archive {
	switch {
	case bytes.HasPrefix(data, []byte("\x1f\x8b\x08")):
		return openGzip(data, on, b)
	case bytes.HasPrefix(data, []byte("\xfd7zXZ\x00")):
		return openStream("xz file", data, b, func(r io.Reader) (io.Reader, error) {
			return xz.ReaderConfig{DictCap: 64 << 20}.NewReader(r)
		})
	case bytes.HasPrefix(data, []byte("BZh")):
		return openStream("bzip2 file", data, b, func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil })
	case bytes.HasPrefix(data, []byte("\x28\xb5\x2f\xfd")):
		return openStream("zstd file", data, b, func(r io.Reader) (io.Reader, error) {
			d, err := zstd.NewReader(r, zstd.WithDecoderMaxMemory(128<<20), zstd.WithDecoderConcurrency(1))
			if err != nil {
				return nil, err
			}
			return d.IOReadCloser(), nil
		})
	case bytes.HasPrefix(data, []byte(arMagic)):
		return openAr(data, on)
	case len(data) >= 2*tarBlock && bytes.HasPrefix(data[257:], []byte("ustar")):
		return openTar(data, on)
	case len(data) >= zipEndSize && (bytes.HasPrefix(data, []byte("PK\x03\x04")) || bytes.HasPrefix(data, []byte("#!"))):
		return openZip(data, on, b)
	}
	return nil
}

// openStream is a compressed file whose own header says nothing of interest.
func openStream(kind string, data []byte, b *budget, open func(io.Reader) (io.Reader, error)) *archive {
	r, err := open(bytes.NewReader(data))
	if err != nil {
		return nil
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	content, err := b.read(r)
	if err != nil {
		return nil
	}
	return &archive{kind: kind, parts: []part{{member: true, data: content, packed: data}}}
}

// openGzip takes one or more gzip members apart.
// https://www.rfc-editor.org/rfc/rfc1952#section-2.3
func openGzip(data []byte, on func(normaliser) bool, b *budget) *archive {
	a := &archive{kind: "gzip file", uses: []normaliser{gzipHeaderV1}}
	in := bytes.NewReader(data)
	var z *gzip.Reader
	for in.Len() > 0 {
		start := len(data) - in.Len()
		var err error
		if z == nil {
			z, err = gzip.NewReader(in)
		} else {
			err = z.Reset(in)
		}
		if err != nil {
			if start == 0 {
				return nil
			}
			a.parts = append(a.parts, part{data: data[start:]})
			return a
		}
		z.Multistream(false)
		body := len(data) - in.Len()
		header := data[start:body]
		if on(gzipHeaderV1) {
			// What is left is the text flag, extra fields and the comment.
			header = []byte(strconv.Itoa(int(header[3]&^(flagName|flagCRC))) + "\x00" + string(z.Extra) + "\x00" + z.Comment)
		}
		content, err := b.read(z)
		if err != nil {
			return nil
		}
		end := len(data) - in.Len()
		if end-8 < body {
			return nil
		}
		a.parts = append(a.parts, part{data: header}, part{member: true, data: content, packed: data[body : end-8]})
		if len(a.parts) > maxMembers {
			return nil
		}
	}
	return a
}

const (
	flagCRC  = 1 << 1
	flagName = 1 << 3
)

const arMagic = "!<arch>\n"

// openAr takes an ar archive apart: a Debian package or a static library.
func openAr(data []byte, on func(normaliser) bool) *archive {
	a := &archive{kind: "ar archive", uses: []normaliser{arHeadersV1}}
	at := len(arMagic)
	for at < len(data) {
		if at+60 > len(data) || string(data[at+58:at+60]) != "`\n" || len(a.parts) > maxMembers {
			return nil
		}
		header := bytes.Clone(data[at : at+60])
		size, err := strconv.ParseInt(strings.TrimRight(string(header[48:58]), " "), 10, 64)
		if err != nil || size < 0 || size > int64(len(data)-at-60) {
			return nil
		}
		copy(header[48:58], strings.Repeat(" ", 10)) // the size follows from the content
		if on(arHeadersV1) {
			copy(header[16:40], strings.Repeat(" ", 24)) // time, owner, group
		}
		name := strings.TrimRight(string(header[:16]), " /")
		body := at + 60
		a.parts = append(a.parts, part{data: header}, part{name: name, member: true, data: data[body : body+int(size)]})
		at = body + int(size)
		if size%2 == 1 && at < len(data) {
			a.parts = append(a.parts, part{data: data[at : at+1]})
			at++
		}
	}
	return a
}

const tarBlock = 512

// openTar takes a tar archive apart block by block, so that nothing of it is
// left out of the comparison, padding included.
func openTar(data []byte, on func(normaliser) bool) *archive {
	a := &archive{kind: "tar archive", uses: []normaliser{tarTimesV1}}
	at, long := 0, ""
	for at+tarBlock <= len(data) && len(bytes.TrimLeft(data[at:at+tarBlock], "\x00")) > 0 {
		if len(a.parts) > maxMembers {
			return nil
		}
		header := bytes.Clone(data[at : at+tarBlock])
		if !bytes.HasPrefix(header[257:], []byte("ustar")) {
			return nil
		}
		size, ok := tarNumber(header[124:136])
		kind := header[156]
		if kind >= '1' && kind <= '6' {
			size = 0 // such entries have no content, whatever they say
		}
		if !ok || size > int64(len(data)-at-tarBlock) {
			return nil
		}
		body := data[at+tarBlock : at+tarBlock+int(size)]
		end := at + tarBlock + int(size+tarBlock-1)/tarBlock*tarBlock
		padding := data[at+tarBlock+int(size) : min(end, len(data))]
		clear(header[148:156]) // the checksum of the header
		clear(header[124:136]) // the size follows from the content
		gnu := string(header[257:265]) == "ustar  \x00"
		if on(tarTimesV1) {
			clear(header[136:148])
			if gnu {
				clear(header[345:369]) // times of access and change
			}
		}
		switch kind {
		case 'x', 'g':
			records, name := paxRecords(body, on(tarTimesV1))
			if name != "" {
				long = name
			}
			a.parts = append(a.parts, part{data: header}, part{data: records})
		case 'L':
			long = strings.TrimRight(string(body), "\x00")
			a.parts = append(a.parts, part{data: header}, part{data: body})
		case 'K':
			a.parts = append(a.parts, part{data: header}, part{data: body})
		default:
			name := long
			if name == "" {
				name = cString(header[:100])
				if prefix := cString(header[345:500]); prefix != "" && !gnu {
					name = prefix + "/" + name
				}
			}
			long = ""
			a.parts = append(a.parts, part{name: name, data: header}, part{name: name, member: true, data: body})
		}
		// Only padding that holds something is a part: its length follows.
		if len(bytes.TrimLeft(padding, "\x00")) > 0 {
			a.parts = append(a.parts, part{data: padding})
		}
		at = min(end, len(data))
	}
	a.parts = append(a.parts, part{data: data[at:]})
	return a
}

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}

// tarNumber reads an octal or base-256 number of a header.
func tarNumber(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		var n uint64
		if b[0] != 0x80 {
			return 0, false
		}
		for _, c := range b[1:] {
			if n > 1<<54 {
				return 0, false
			}
			n = n<<8 | uint64(c)
		}
		return int64(n), true
	}
	s := strings.Trim(string(b), " \x00")
	if s == "" {
		return 0, true
	}
	n, err := strconv.ParseUint(s, 8, 62)
	return int64(n), err == nil
}

// paxRecords is the body of a PAX header, without times where they are left
// out, and the path it gives. What cannot be read is left as it is.
func paxRecords(body []byte, dropTimes bool) (out []byte, name string) {
	rest := body
	for len(rest) > 0 {
		length, _, ok := bytes.Cut(rest, []byte(" "))
		n, err := strconv.Atoi(string(length))
		if !ok || err != nil || n <= len(length)+1 || n > len(rest) {
			return body, name
		}
		key, value, _ := bytes.Cut(rest[len(length)+1:n], []byte("="))
		switch string(key) {
		case "path":
			name = strings.TrimSuffix(string(value), "\n")
		case "mtime", "atime", "ctime":
			if dropTimes {
				rest = rest[n:]
				continue
			}
		}
		out = append(out, rest[:n]...)
		rest = rest[n:]
	}
	return out, name
}

const (
	zipEndSize     = 22
	zipLocalSize   = 30
	zipCentralSize = 46
)

// zipEntry is one file of a zip archive: where its local header is, and the
// sizes that its central header states.
type zipEntry struct {
	name             string
	central          []byte // the header, fixed fields and what follows
	method, flags    uint16
	packed, unpacked uint32
	crc              uint32
	local            uint32
}

// openZip takes a zip archive apart. Every byte of it becomes a part, but for
// checksums, sizes and offsets that agree with the content.
// https://pkware.cachefly.net/webdocs/APPNOTE/APPNOTE-6.3.10.TXT
func openZip(data []byte, on func(normaliser) bool, b *budget) *archive {
	end, entries, start := zipDirectory(data)
	if end < 0 {
		return nil
	}
	a := &archive{kind: "zip archive", uses: []normaliser{zipTimesV1}}
	byPlace := slices.Clone(entries)
	slices.SortStableFunc(byPlace, func(x, y zipEntry) int { return cmp.Compare(x.local, y.local) })
	at := 0
	for _, e := range byPlace {
		next := openZipEntry(a, data, at, start, e, on, b)
		if next < 0 {
			return nil
		}
		at = next
	}
	a.parts = append(a.parts, part{data: data[at:start]})
	for _, e := range entries {
		h := bytes.Clone(e.central)
		clear(h[16:28]) // checksum and sizes
		clear(h[42:46]) // offset
		if on(zipTimesV1) {
			clear(h[12:16])
			n := int(binary.LittleEndian.Uint16(h[28:]))
			dropZipTimes(h[zipCentralSize+n : zipCentralSize+n+int(binary.LittleEndian.Uint16(h[30:]))])
		}
		a.parts = append(a.parts, part{name: e.name, data: h})
	}
	tail := bytes.Clone(data[end:])
	clear(tail[12:20]) // size and offset of the directory
	a.parts = append(a.parts, part{data: tail})
	return a
}

// openZipEntry adds the parts of one entry, and what stands before it from at
// on; it returns where the entry ends, or -1.
func openZipEntry(a *archive, data []byte, at, limit int, e zipEntry, on func(normaliser) bool, b *budget) int {
	local := int(e.local)
	if local < at || local+zipLocalSize > limit {
		return -1
	}
	h := bytes.Clone(data[local : local+zipLocalSize])
	if !bytes.HasPrefix(h, []byte("PK\x03\x04")) || binary.LittleEndian.Uint16(h[6:]) != e.flags || binary.LittleEndian.Uint16(h[8:]) != e.method {
		return -1
	}
	nameSize, extraSize := int(binary.LittleEndian.Uint16(h[26:])), int(binary.LittleEndian.Uint16(h[28:]))
	body := local + zipLocalSize + nameSize + extraSize
	if body > limit || int64(e.packed) > int64(limit-body) {
		return -1
	}
	done := body + int(e.packed)
	packed := data[body:done]
	content := packed
	compressed := []byte(nil)
	if e.method == 8 {
		r := flate.NewReader(bytes.NewReader(packed))
		var err error
		if content, err = b.read(r); err != nil {
			return -1
		}
		compressed = packed
	} else if e.method != 0 {
		return -1
	}
	if uint32(len(content)) != e.unpacked || crc32.ChecksumIEEE(content) != e.crc {
		return -1
	}
	if at < local {
		a.parts = append(a.parts, part{data: data[at:local]})
	}
	if e.flags&8 != 0 {
		// A data descriptor follows, with or without its mark.
		n := 12
		if bytes.HasPrefix(data[done:limit], []byte("PK\x07\x08")) {
			n = 16
		}
		if done+n > limit || binary.LittleEndian.Uint32(data[done+n-12:]) != e.crc {
			return -1
		}
		done += n
	} else if binary.LittleEndian.Uint32(h[14:]) != e.crc || binary.LittleEndian.Uint32(h[18:]) != e.packed || binary.LittleEndian.Uint32(h[22:]) != e.unpacked {
		return -1
	}
	clear(h[14:26])
	rest := bytes.Clone(data[local+zipLocalSize : body])
	if on(zipTimesV1) {
		clear(h[10:14])
		dropZipTimes(rest[nameSize:])
	}
	a.parts = append(a.parts, part{name: e.name, data: append(h, rest...)}, part{name: e.name, member: true, data: content, packed: compressed})
	return done
}

// zipDirectory reads the central directory: where the end record is (-1 for no
// zip archive that can be read), the entries, and where the directory begins.
func zipDirectory(data []byte) (end int, entries []zipEntry, start int) {
	end = bytes.LastIndex(data, []byte("PK\x05\x06"))
	if end < 0 || end+zipEndSize > len(data) {
		return -1, nil, 0
	}
	e := data[end:]
	count, size, offset := int(binary.LittleEndian.Uint16(e[10:])), int64(binary.LittleEndian.Uint32(e[12:])), int64(binary.LittleEndian.Uint32(e[16:]))
	if end+zipEndSize+int(binary.LittleEndian.Uint16(e[20:])) != len(data) || offset+size != int64(end) || count == 0xffff {
		return -1, nil, 0
	}
	dir := data[offset:end]
	for range count {
		if len(dir) < zipCentralSize || !bytes.HasPrefix(dir, []byte("PK\x01\x02")) {
			return -1, nil, 0
		}
		name, extra, comment := int(binary.LittleEndian.Uint16(dir[28:])), int(binary.LittleEndian.Uint16(dir[30:])), int(binary.LittleEndian.Uint16(dir[32:]))
		n := zipCentralSize + name + extra + comment
		if n > len(dir) {
			return -1, nil, 0
		}
		entries = append(entries, zipEntry{
			name: string(dir[zipCentralSize : zipCentralSize+name]), central: dir[:n],
			flags: binary.LittleEndian.Uint16(dir[8:]), method: binary.LittleEndian.Uint16(dir[10:]),
			crc: binary.LittleEndian.Uint32(dir[16:]), packed: binary.LittleEndian.Uint32(dir[20:]),
			unpacked: binary.LittleEndian.Uint32(dir[24:]), local: binary.LittleEndian.Uint32(dir[42:]),
		})
		dir = dir[n:]
	}
	if len(dir) > 0 {
		return -1, nil, 0
	}
	return end, entries, int(offset)
}

// dropZipTimes zeroes the extra fields that hold times, in place.
func dropZipTimes(extra []byte) {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		if 4+n > len(extra) {
			return
		}
		if id == 0x5455 || id == 0x000a || id == 0x5855 { // Unix, NTFS, old Unix times
			clear(extra[4 : 4+n])
		}
		extra = extra[4+n:]
	}
}
