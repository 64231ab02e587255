package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// bundlesDir is where a folder as `waxseal build --out` writes it keeps its
// bundles, and imageDir its image.
const (
	bundlesDir = "bundles"
	imageDir   = "image"
)

const (
	maxFolderDepth = 16
	// What is about none of the image's digests is shown, so that its owner sees
	// why it does not count; of a file for a thousand images only so much.
	maxAside      = 64
	maxAsideBytes = 16 << 20
)

// named is what Options.Evidence names. It is read through once, and again when
// it has changed.
type named struct {
	paths []string
	more  []fileDoc // beside the files: what an archive carries along

	mu      sync.Mutex
	now     *reading // nil before the first question
	checked time.Time
}

// recheck is how long what was read is taken as it was.
const recheck = time.Second

// reading is what named has read: where the documents lie and what they are
// about, so that memory grows with their number and not with their size. It is
// not changed once load has returned it.
type reading struct {
	docs  []fileDoc
	about map[string][]int // imageKey or commitKey -> docs
	// stapled are OCSP responses, by fileDoc.beside of what they are stapled to.
	stapled map[string][]fileDoc
	notes   []*gitNotes
	stamp   attest.Digest // of the files' names, sizes and times
}

// fileDoc is one document in a file.
type fileDoc struct {
	path         string
	from         io.ReaderAt // nil: the file at path
	line         int         // 0: the file is this document
	offset, size int64
	digest       attest.Digest
	skipped      string // why it is not read
	commits      bool   // it is about commits only
	beside       string // what it shares with the OCSP responses that are stapled to it
	stapled      bool   // it is one of those
	// part counts the signatures in what Google Cloud says of an image, from 1,
	// and at is where this one stands; 0: the whole document.
	part int
	at   string
}

func (d *fileDoc) where() string {
	where := d.path
	if d.line > 0 {
		where = fmt.Sprintf("%s:%d", d.path, d.line)
	}
	if d.part > 0 {
		where += " " + d.at
	}
	return where
}

func imageKey(d attest.Digest) string { return "image " + d.Hex() }
func commitKey(commit gitID) string   { return "commit " + string(commit) }

func newNamed(evidence []string) *named { return &named{paths: evidence} }

// tooMany is more than is read of what the caller named.
func tooMany(path string, limit int, what string) error {
	return &Error{Place: path, Action: "reading evidence", Cause: fmt.Sprintf("more than the %d %s that are read", limit, what),
		Way: "name only what holds evidence of these images"}
}

// load returns what there is now. What went wrong is not kept: whoever asks next
// may have more time.
func (n *named) load(ctx context.Context) (*reading, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.now != nil && time.Since(n.checked) < recheck {
		return n.now, nil
	}
	var files, repositories []string
	for _, p := range n.paths {
		if dir, ok := strings.CutPrefix(p, GitPrefix); ok {
			repositories = append(repositories, dir)
			continue
		}
		paths, err := evidenceFiles(p)
		if err != nil {
			return nil, err
		}
		if files = append(files, paths...); len(files) > attest.MaxEvidenceFiles {
			return nil, tooMany(p, attest.MaxEvidenceFiles, "files")
		}
	}
	stamp := stampOf(files)
	if n.now == nil || n.now.stamp != stamp {
		fresh := &reading{about: map[string][]int{}, stapled: map[string][]fileDoc{}, stamp: stamp}
		if err := fresh.all(ctx, n.more, files, repositories); err != nil {
			return nil, err
		}
		n.now = fresh
	}
	n.checked = time.Now()
	return n.now, nil
}

// stampOf changes when a file does.
func stampOf(files []string) attest.Digest {
	var b bytes.Buffer
	for _, path := range files {
		fmt.Fprintf(&b, "%q", path)
		if info, err := os.Stat(path); err == nil {
			fmt.Fprintln(&b, info.Size(), info.ModTime().UnixNano())
		}
	}
	return attest.DigestOf(b.Bytes())
}

func (n *reading) all(ctx context.Context, more []fileDoc, files, repositories []string) error {
	for _, d := range more {
		raw, err := d.bytes()
		if err != nil {
			return pathError("reading evidence", d.path, err)
		}
		if attest.DigestOf(raw) != d.digest {
			return &Error{Place: d.path, Action: "reading evidence", Cause: (&mismatch{want: d.digest}).Error(), Way: "the archive was changed; do not use it"}
		}
		if d.stapled {
			n.stapled[d.beside] = append(n.stapled[d.beside], d)
			continue
		}
		if err := n.add(d, raw); err != nil {
			return err
		}
	}
	for _, path := range files {
		if err := n.file(ctx, path); err != nil {
			return err
		}
	}
	for _, dir := range repositories {
		notes, err := openGit(dir)
		if err != nil {
			return err
		}
		n.notes = append(n.notes, notes)
	}
	return nil
}

// file takes in the documents of one file: one, or with JSON lines one a line.
// The last line counts with or without its newline.
func (n *reading) file(ctx context.Context, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return pathError("reading evidence", path, err)
	}
	skip := func(cause string) error { return n.add(fileDoc{path: path, skipped: cause}, nil) }
	if !info.Mode().IsRegular() {
		return skip("not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return skip(oneLine(err.Error()))
	}
	defer f.Close()
	switch ext := filepath.Ext(path); ext {
	case stapleExt:
		if err := n.staple(path, f); err != nil {
			return skip(oneLine(err.Error()))
		}
		return nil
	case ".jsonl", ".ndjson":
	default:
		head := make([]byte, min(info.Size(), attest.MaxBundle))
		if _, err := io.ReadFull(f, head); err != nil {
			return skip(oneLine(err.Error()))
		}
		first, _, several := bytes.Cut(bytes.TrimSpace(head), []byte("\n"))
		switch lines := several && attest.UnmarshalStrict(first, nil) == nil; {
		case lines: // no document over several lines has one in its first
		case info.Size() > attest.MaxBundle:
			return skip((&oversize{info.Size(), attest.MaxBundle}).Error())
		default:
			return n.add(fileDoc{path: path, beside: besideFile(path), size: info.Size()}, head)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return skip(oneLine(err.Error()))
		}
	}
	return n.lines(ctx, path, f)
}

// stapleExt is what a file of OCSP responses has for the extensions of the file of
// what they are stapled to.
const stapleExt = ".ocsp"

// besideFile is a file's name without what says its form.
func besideFile(path string) string {
	for _, form := range append([]string{stapleExt}, evidenceExts()...) {
		path = strings.TrimSuffix(path, form)
	}
	return path
}

// evidenceExts are the extensions of files of evidence, the outermost first.
func evidenceExts() []string {
	return []string{".json", ".jsonl", ".ndjson", ".sigstore", ".intoto", ".dsse"}
}

// StapleFile is the name of the file for what is stapled to the bundle in a file
// of that name: OCSP responses in DER, one after the other.
func StapleFile(bundle string) string { return besideFile(bundle) + stapleExt }

// staple takes in a file of OCSP responses.
func (n *reading) staple(path string, f io.Reader) error {
	raw, err := io.ReadAll(io.LimitReader(f, attest.MaxStapled*attest.MaxOCSP+1))
	if err != nil {
		return err
	}
	answers, err := attest.SplitOCSP(raw)
	if err != nil {
		return err
	}
	offset, key := int64(0), besideFile(path)
	n.stapled[key] = nil // the file may have been named twice
	for _, a := range answers {
		n.stapled[key] = append(n.stapled[key], fileDoc{path: path, offset: offset, size: int64(len(a)), digest: attest.DigestOf(a), stapled: true})
		offset += int64(len(a))
	}
	return nil
}

func (n *reading) lines(ctx context.Context, path string, f io.Reader) error {
	in := bufio.NewReaderSize(f, 64<<10)
	var line []byte
	var offset, size int64
	for number := 1; ; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		part, err := in.ReadSlice('\n')
		size += int64(len(part))
		if size <= attest.MaxBundle {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return n.add(fileDoc{path: path, line: number, skipped: oneLine(err.Error())}, nil)
		}
		d := fileDoc{path: path, beside: besideFile(path), line: number, offset: offset, size: size}
		var bad error
		switch {
		case size > attest.MaxBundle:
			d.skipped = (&oversize{size, attest.MaxBundle}).Error()
			bad = n.add(d, nil)
		case len(bytes.TrimSpace(line)) > 0:
			bad = n.add(d, line)
		}
		if bad != nil || err != nil {
			return bad
		}
		offset, size, line, number = offset+size, 0, line[:0], number+1
	}
}

// add enters a document, with what it is about.
func (n *reading) add(d fileDoc, raw []byte) error {
	trimmed := bytes.TrimSpace(raw)
	if len(raw) > 0 {
		d.offset += int64(len(raw) - len(bytes.TrimLeft(raw, " \t\r\n")))
		d.size = int64(len(trimmed))
	} else if d.skipped == "" {
		d.skipped = "it is empty"
	}
	st := statementOf(trimmed)
	if st != nil || d.skipped != "" || !attest.LooksLikeGCB(trimmed) {
		return n.put(d, trimmed, st)
	}
	envelopes, err := attest.ParseGCB(trimmed)
	if err != nil {
		d.skipped = oneLine(err.Error())
		return n.put(d, nil, nil)
	}
	for i, e := range envelopes {
		one := d
		one.part, one.at, one.skipped = i+1, e.Pointer, e.Problem
		if err := n.put(one, e.DSSE, statementOf(e.DSSE)); err != nil {
			return err
		}
	}
	return nil
}

// put enters a document that was read: its bytes, and the statement in them.
func (n *reading) put(d fileDoc, raw []byte, st *attest.Statement) error {
	if len(n.docs) == attest.MaxEvidenceDocs {
		return tooMany(d.path, attest.MaxEvidenceDocs, "documents")
	}
	if len(raw) > 0 {
		d.digest = attest.DigestOf(raw)
	}
	if st != nil {
		d.commits = true
		for _, s := range st.Subject {
			for alg, value := range s.Digest {
				switch alg {
				case "gitCommit", "sha1":
					if id, err := parseGitID(value); err == nil {
						n.enter(commitKey(id))
					}
				case "sha256":
					d.commits = false
					n.enter(imageKey(attest.Digest("sha256:" + value)))
				default:
					d.commits = false
				}
			}
		}
	} else if len(raw) > 0 {
		if err := attest.UnmarshalStrict(raw, nil); err != nil {
			d.skipped = oneLine(err.Error())
		}
	}
	n.docs = append(n.docs, d)
	if len(n.about) > attest.MaxEvidenceDocs*4 {
		return tooMany(d.path, 4*attest.MaxEvidenceDocs, "different subjects")
	}
	return nil
}

// enter notes that the document that comes next is about key.
func (n *reading) enter(key string) {
	if list := n.about[key]; len(list) == 0 || list[len(list)-1] != len(n.docs) {
		n.about[key] = append(list, len(n.docs))
	}
}

// piece reads a document again, and checks that it is the same still.
func (d *fileDoc) piece() Piece {
	p := Piece{Source: SourceFile, Where: d.where(), Digest: d.digest, Skipped: d.skipped, Stapled: d.stapled}
	if p.Skipped != "" {
		return p
	}
	raw, err := d.bytes()
	switch {
	case err != nil:
		p.Skipped = oneLine(err.Error())
	case attest.DigestOf(raw) != d.digest:
		p.Skipped = "the file was changed while it was read"
	default:
		p.Raw = raw
		if p.Stapled {
			p.PredicateType = attest.OCSPMediaType
		} else if st := statementOf(raw); st != nil {
			p.PredicateType = st.PredicateType
		}
	}
	return p
}

func (d *fileDoc) bytes() ([]byte, error) {
	from := d.from
	if from == nil {
		f, err := os.Open(d.path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		from = f
	}
	raw := make([]byte, d.size)
	if _, err := from.ReadAt(raw, d.offset); err != nil || d.part == 0 {
		return raw, err
	}
	envelopes, err := attest.ParseGCB(raw)
	if err != nil || len(envelopes) < d.part {
		return nil, errors.New("the file was changed while it was read")
	}
	return envelopes[d.part-1].DSSE, nil
}

// readFiles takes the evidence that the caller named. A document speaks of
// c.about when its statement does. One about another manifest of this image is
// left out; others, and what cannot be read, are shown with every digest.
func (c *collector) readFiles(ctx context.Context) error {
	if len(c.named.paths)+len(c.named.more) == 0 {
		return nil
	}
	there, err := c.named.load(ctx)
	if err != nil || len(there.docs) == 0 {
		return err
	}
	family, err := c.family(ctx)
	if err != nil {
		return err
	}
	mine, others := map[int]bool{}, map[int]bool{}
	for _, i := range there.about[imageKey(c.about)] {
		mine[i] = true
	}
	for _, d := range family {
		for _, i := range there.about[imageKey(d)] {
			others[i] = !mine[i]
		}
	}
	if len(mine) > attest.MaxEvidence {
		return &tooMuch{string(c.about)}
	}
	stapled := map[string]bool{}
	unread, foreign := aside{what: "cannot be read"}, aside{what: "are about something else"}
	for i := range there.docs {
		d := &there.docs[i]
		switch {
		case mine[i]:
			if err := c.readFile(d); err != nil {
				return err
			}
			if stapled[d.beside] {
				continue
			}
			stapled[d.beside] = true
			for _, s := range there.stapled[d.beside] {
				if err := c.readFile(&s); err != nil {
					return err
				}
			}
		case others[i], d.commits:
		case d.skipped != "" && unread.room(d), d.skipped == "" && foreign.room(d):
			c.add(d.piece())
		}
	}
	for _, a := range []aside{unread, foreign} {
		if a.left > 0 {
			c.add(Piece{Source: SourceFile, Where: a.from, Skipped: fmt.Sprintf("from here on, %d more documents that %s", a.left, a.what)})
		}
	}
	return nil
}

func (c *collector) readFile(d *fileDoc) error {
	p := d.piece()
	if p.Raw != nil && c.unwanted(&p, p.PredicateType) {
		p.Raw = nil
	}
	if c.bytes.Add(int64(len(p.Raw))) > attest.MaxEvidenceSum {
		return &tooMuch{string(c.about)}
	}
	c.add(p)
	return nil
}

// aside counts what is shown though it is not about the image.
type aside struct {
	what   string
	pieces int
	bytes  int64
	left   int
	from   string // the first that is left out
}

func (a *aside) room(d *fileDoc) bool {
	size := d.size
	if d.skipped != "" {
		size = 0 // it is not read
	}
	if a.pieces == maxAside || a.pieces > 0 && a.bytes+size > maxAsideBytes {
		if a.left++; a.left == 1 {
			a.from = d.where()
		}
		return false
	}
	a.pieces++
	a.bytes += size
	return true
}

// commit lists what is said about a git commit.
func (n *named) commit(ctx context.Context, commit string) ([]Piece, error) {
	id, err := parseGitID(commit)
	if err != nil {
		return nil, fmt.Errorf("reading evidence about a commit: %w", err)
	}
	there, err := n.load(ctx)
	if err != nil {
		return nil, err
	}
	var out []Piece
	seen := map[attest.Digest]bool{}
	sum := 0
	take := func(p Piece) error {
		if p.Raw != nil && seen[p.Digest] {
			return nil
		}
		seen[p.Digest] = p.Raw != nil
		out = append(out, p)
		if sum += len(p.Raw); len(out) > attest.MaxEvidence || sum > attest.MaxEvidenceSum {
			return &tooMuch{commit}
		}
		return nil
	}
	for _, i := range there.about[commitKey(id)] {
		d := there.docs[i]
		for _, one := range append([]fileDoc{d}, there.stapled[d.beside]...) {
			if err := take(one.piece()); err != nil {
				return nil, err
			}
		}
	}
	for _, notes := range there.notes {
		pieces, err := notes.about(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, p := range pieces {
			if err := take(p); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func statementOf(raw []byte) *attest.Statement {
	if b, err := attest.ParseBundle(raw); err == nil {
		return b.Statement()
	}
	if st, err := attest.ParseStatement(raw); err == nil {
		return st
	}
	return nil
}

// family is the image that was asked for and its platforms.
func (c *collector) family(ctx context.Context) ([]attest.Digest, error) {
	top, err := c.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	out := []attest.Digest{attest.Digest(top.Digest.String())}
	platforms, err := Platforms(ctx, c, top)
	if err != nil {
		return nil, err
	}
	for _, p := range platforms {
		out = append(out, attest.Digest(p.Descriptor.Digest.String()))
	}
	return out, nil
}

// evidenceFiles lists the files that path means: itself, or what lies in the
// folder and below. Links are not followed there, and a layout is an image.
func evidenceFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, pathError("reading evidence", path, err)
	}
	if !info.IsDir() {
		if staple := StapleFile(path); staple != path {
			if info, err := os.Stat(staple); err == nil && info.Mode().IsRegular() {
				return []string{path, staple}, nil
			}
		}
		return []string{path}, nil
	}
	dir := path
	if sub, err := os.Stat(filepath.Join(path, bundlesDir)); err == nil && sub.IsDir() {
		dir = filepath.Join(path, bundlesDir)
	}
	var out []string
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		hidden := p != dir && strings.HasPrefix(e.Name(), ".")
		if e.IsDir() {
			_, layout := os.Stat(filepath.Join(p, "oci-layout"))
			if hidden || layout == nil || strings.Count(strings.TrimPrefix(p, dir), string(filepath.Separator)) > maxFolderDepth {
				return filepath.SkipDir
			}
			return nil
		}
		if e.Type().IsRegular() && !hidden && slices.Contains(append(evidenceExts(), stapleExt), filepath.Ext(p)) {
			out = append(out, p)
		}
		if len(out) > attest.MaxEvidenceFiles {
			return tooMany(path, attest.MaxEvidenceFiles, "files")
		}
		return nil
	})
	var many *Error
	if errors.As(err, &many) {
		return nil, err
	}
	if err != nil {
		return nil, pathError("reading evidence", dir, err)
	}
	if len(out) == 0 {
		return nil, &Error{Place: path, Action: "reading evidence", Cause: "the folder holds no .json or .jsonl file",
			Way: "give a folder as \"waxseal build --out\" writes it, or a file with a bundle"}
	}
	return out, nil
}
