package store

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// GitPrefix marks one of Options.Evidence as a git repository, bare or not,
// whose notes are evidence about its commits.
const GitPrefix = "git:"

const (
	notesRefs    = "refs/notes"
	maxNotesRefs = 256
	maxRefDepth  = 8
	maxGitRef    = 1024 // bytes of a file with a reference
)

// gitNotes are the notes of one repository.
type gitNotes struct {
	dir  string // as it was named
	root *os.Root
}

// openGit opens the repository in dir, its folder or its .git.
func openGit(dir string) (*gitNotes, error) {
	fail := func(cause, way string) (*gitNotes, error) {
		return nil, &Error{Place: dir, Action: "opening the git repository", Cause: cause, Way: way}
	}
	inner := filepath.Join(dir, ".git")
	info, err := os.Lstat(inner)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		inner = dir
	case err != nil:
		return nil, pathError("opening the git repository", inner, err)
	case !info.IsDir():
		return fail("its .git is no folder: it leads to another place, which waxseal does not follow", "name the repository that it is a worktree or submodule of")
	}
	root, err := os.OpenRoot(inner)
	if err != nil {
		return nil, pathError("opening the git repository", dir, err)
	}
	if info, err := root.Stat("objects"); err != nil || !info.IsDir() {
		root.Close()
		return fail("it is no git repository: there is no folder objects in it", "give the folder of a repository, or its .git")
	}
	if _, err := root.Stat("reftable"); err == nil {
		root.Close()
		return fail("it keeps its references in tables, which waxseal does not read", "git refs migrate --ref-format=files changes that; or clone it")
	}
	return &gitNotes{dir: dir, root: root}, nil
}

// notesIn lists the references below refs/notes. A file counts before an entry
// in packed-refs, as with git; what is no object's name is left out, as a
// symbolic reference leads to one that is listed itself or to none that is.
func notesIn(root *os.Root) (map[string]gitID, error) {
	refs := map[string]gitID{}
	if err := packedRefs(root, refs); err != nil {
		return nil, err
	}
	return refs, looseRefs(root, notesRefs, 0, refs)
}

func looseRefs(root *os.Root, dir string, depth int, refs map[string]gitID) error {
	f, err := root.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(maxNotesRefs + 1)
	f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if len(entries) > maxNotesRefs || depth > maxRefDepth {
		return tooManyRefs()
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			if err := looseRefs(root, name, depth+1, refs); err != nil {
				return err
			}
			continue
		}
		if !e.Type().IsRegular() || strings.HasSuffix(name, ".lock") {
			continue
		}
		file, err := openRegular(root, name)
		if err != nil {
			return err
		}
		raw, err := io.ReadAll(io.LimitReader(file, maxGitRef))
		file.Close()
		if err != nil {
			return err
		}
		if id, err := parseGitID(strings.TrimSpace(string(raw))); err == nil {
			refs[name] = id
		}
		if len(refs) > maxNotesRefs {
			return tooManyRefs()
		}
	}
	return nil
}

func tooManyRefs() error {
	return fmt.Errorf("more than the %d references below %s that are read", maxNotesRefs, notesRefs)
}

// packedRefs reads the file that git keeps references in which seldom change.
func packedRefs(root *os.Root, refs map[string]gitID) error {
	f, err := openRegular(root, "packed-refs")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, attest.MaxEvidenceSum))
	lines.Buffer(nil, 2*maxGitRef)
	for lines.Scan() {
		name, ref, ok := strings.Cut(lines.Text(), " ")
		if !ok || !strings.HasPrefix(ref, notesRefs+"/") {
			continue
		}
		if id, err := parseGitID(name); err == nil {
			refs[ref] = id
		}
		if len(refs) > maxNotesRefs {
			return tooManyRefs()
		}
	}
	return lines.Err()
}

// about yields the documents of all notes on a commit. What cannot be read is a
// piece with the reason: whoever can write one reference must not hide what
// stands under the others.
func (n *gitNotes) about(ctx context.Context, commit gitID) ([]Piece, error) {
	g := &gitObjects{ctx: ctx, root: n.root, left: attest.MaxEvidenceSum}
	var out []Piece
	refs, err := notesIn(n.root)
	if err != nil {
		return nil, &Error{Place: n.dir, Action: "listing the notes", Cause: oneLine(err.Error()), Err: err}
	}
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		where := oneLine(ref) + ":" + string(commit)
		notes, err := g.notes(refs[ref], commit)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			out = append(out, Piece{Source: SourceNotes, Where: where, Skipped: oneLine(err.Error())})
		}
		for i, note := range notes {
			where := where
			if i > 0 {
				where += fmt.Sprintf("#%d", i+1)
			}
			out = append(out, notePieces(where, note)...)
		}
		if len(out) > attest.MaxEvidence {
			return nil, &Error{Place: n.dir, Action: "reading notes on " + string(commit), Cause: fmt.Sprintf("more than the %d pieces of evidence that are read", attest.MaxEvidence)}
		}
	}
	return out, nil
}

// notePieces makes a piece of each document in a note.
func notePieces(where string, note []byte) []Piece {
	var out []Piece
	for line, doc := range documents(note) {
		p := Piece{Source: SourceNotes, Where: where, Digest: attest.DigestOf(doc)}
		if line > 0 {
			p.Where += fmt.Sprintf(":%d", line)
		}
		if len(out) == attest.MaxEvidence {
			p.Skipped = fmt.Sprintf("the note has more than the %d documents that are read", attest.MaxEvidence)
			return append(out, p)
		}
		switch err := attest.UnmarshalStrict(doc, nil); {
		case len(doc) > attest.MaxBundle:
			p.Skipped = (&oversize{int64(len(doc)), attest.MaxBundle}).Error()
		case err != nil:
			p.Skipped = oneLine(err.Error())
		default:
			p.Raw = doc
			if st := statementOf(doc); st != nil {
				p.PredicateType = st.PredicateType
			}
		}
		out = append(out, p)
	}
	return out
}

// documents yields what a note or file holds, with the line where it starts: 0
// for one document alone. With JSON lines it is one a line; else what
// "git notes append" has put together, with an empty line between.
func documents(raw []byte) iter.Seq2[int, []byte] {
	return func(yield func(int, []byte) bool) {
		raw := bytes.TrimRight(raw, " \t\r\n")
		first, _, several := bytes.Cut(bytes.TrimLeft(raw, " \t\r\n"), []byte("\n"))
		if !several || attest.UnmarshalStrict(raw, nil) == nil {
			if len(raw) > 0 {
				yield(0, raw)
			}
			return
		}
		perLine := attest.UnmarshalStrict(first, nil) == nil
		n, at, from, start := 0, 0, -1, 0
		for line := range bytes.Lines(raw) {
			n++
			blank := len(bytes.TrimSpace(line)) == 0
			if !blank && from < 0 {
				from, start = at, n
			}
			at += len(line)
			if from >= 0 && (perLine || blank) {
				if !yield(start, bytes.TrimSpace(raw[from:at])) {
					return
				}
				from = -1
			}
		}
		if from >= 0 {
			yield(start, bytes.TrimSpace(raw[from:]))
		}
	}
}

// notes returns the notes on a commit in a tree of notes. There is one, but
// where two trees were merged by hand.
func (g *gitObjects) notes(ref, commit gitID) ([][]byte, error) {
	if len(ref) != len(commit) {
		return nil, nil // by another hash function
	}
	raw, err := g.read(ref, gitCommit, maxGitCommit)
	if err != nil {
		return nil, err
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	tree, err := parseGitID(strings.TrimPrefix(line, "tree "))
	if err != nil || len(tree) != len(ref) {
		return nil, fmt.Errorf("the commit %s names no tree", ref)
	}
	blobs, err := g.fanOut(tree, string(commit))
	var out [][]byte
	for _, b := range blobs {
		note, rerr := g.read(b, gitBlob, attest.MaxBundle)
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		out = append(out, note)
	}
	return out, err
}

// fanOut finds the blobs for a commit below a tree of notes, where a name is
// the rest of the commit's id, or two digits of it for a tree with the rest.
// Each step takes two digits, so the way down ends.
func (g *gitObjects) fanOut(tree gitID, rest string) ([]gitID, error) {
	raw, err := g.read(tree, gitTree, maxGitTree)
	if err != nil {
		return nil, err
	}
	var out []gitID
	for e, err := range treeEntries(raw, len(tree)/2) {
		if err != nil {
			return out, fmt.Errorf("reading git tree %s: %w", tree, err)
		}
		switch {
		case !e.dir && e.name == rest:
			out = append(out, e.id)
		case e.dir && len(rest) > 2 && e.name == rest[:2]:
			below, err := g.fanOut(e.id, rest[2:])
			out = append(out, below...)
			if err != nil {
				return out, err
			}
		}
	}
	return out, nil
}

type treeEntry struct {
	name string
	dir  bool
	id   gitID
}

// treeEntries yields the entries of a tree: "MODE NAME\0" and the raw id. Only
// trees and regular files are; a link or a submodule is no note.
func treeEntries(raw []byte, width int) iter.Seq2[treeEntry, error] {
	return func(yield func(treeEntry, error) bool) {
		for len(raw) > 0 {
			head, rest, ok := bytes.Cut(raw, []byte{0})
			mode, name, named := bytes.Cut(head, []byte(" "))
			if !ok || !named || len(rest) < width {
				yield(treeEntry{}, errors.New("it ends early"))
				return
			}
			e := treeEntry{name: string(name), dir: string(mode) == "40000", id: gitID(hex.EncodeToString(rest[:width]))}
			raw = rest[width:]
			if !e.dir && !bytes.HasPrefix(mode, []byte("100")) {
				continue
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

const (
	// revision names the commit that an image was built from, as an annotation
	// of its manifest or a label of its configuration.
	// https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
	revision = "org.opencontainers.image.revision"
	// maxCommits bounds the commits whose notes one image makes us look for: as
	// many as there may be statements that name one.
	maxCommits = attest.MaxEvidence
)

// readNotes takes from the notes what is about the image. A repository may have
// a million of them, so only those are read that are on a commit which the
// image names as its revision, or a statement about it as what it was built
// from. None of that is verified: it only says where to look.
func (c *collector) readNotes(ctx context.Context) error {
	if !slices.ContainsFunc(c.named.paths, func(p string) bool { return strings.HasPrefix(p, GitPrefix) }) {
		return nil
	}
	there, err := c.named.load(ctx)
	if err != nil {
		return err
	}
	commits, more, err := c.commits(ctx)
	if err != nil {
		return err
	}
	if more {
		c.add(Piece{Source: SourceNotes, Where: notesRefs, Skipped: fmt.Sprintf("what is said of the image names more than the %d commits whose notes are read", maxCommits)})
	}
	for _, commit := range commits {
		for _, n := range there.notes {
			pieces, err := n.about(ctx, commit)
			if err != nil {
				return err
			}
			for _, p := range pieces {
				if err := c.readNote(p); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (c *collector) readNote(p Piece) error {
	if p.Raw != nil {
		st := statementOf(p.Raw)
		if st == nil || !st.Binds(c.about) {
			return nil // it is about the commit, or about another image
		}
		if c.unwanted(&p, p.PredicateType) {
			p.Raw = nil
		}
	}
	if c.bytes.Add(int64(len(p.Raw))) > attest.MaxEvidenceSum {
		return &tooMuch{string(c.about)}
	}
	c.add(p)
	return nil
}

// commits are those whose notes may speak of the image, and whether there are
// more of them: first what the image itself names, then of what each statement
// names one in turn, so that no stranger's keeps out another's.
func (c *collector) commits(ctx context.Context) (ids []gitID, more bool, err error) {
	names, err := c.revisions(ctx)
	if err != nil {
		return nil, false, err
	}
	type dependency struct {
		Digest map[string]string `json:"digest"`
	}
	ofThem := func(names ...string) (out []gitID) {
		for _, s := range names {
			if id, err := parseGitID(s); err == nil {
				out = append(out, id)
			}
		}
		return out
	}
	own := ofThem(names...)
	var lists [][]gitID
	for _, p := range c.pieces {
		st := statementOf(p.Raw)
		if st == nil || !st.Binds(c.about) {
			continue
		}
		// SLSA provenance v1, and v0.2 or v0.1.
		var predicate struct {
			BuildDefinition struct {
				ResolvedDependencies []dependency `json:"resolvedDependencies"`
			} `json:"buildDefinition"`
			Materials []dependency `json:"materials"`
		}
		if attest.UnmarshalStrict(st.Predicate, &predicate) != nil {
			continue
		}
		var list []gitID
		for _, d := range slices.Concat(predicate.BuildDefinition.ResolvedDependencies, predicate.Materials) {
			list = append(list, ofThem(d.Digest["gitCommit"], d.Digest["sha1"])...)
		}
		lists = append(lists, list)
	}
	seen := map[gitID]bool{}
	// next takes the first of a list that is not there yet, and returns the rest.
	next := func(list []gitID) []gitID {
		for i, id := range list {
			if !seen[id] {
				seen[id] = true
				ids = append(ids, id)
				return list[i+1:]
			}
		}
		return nil
	}
	for len(own) > 0 {
		own = next(own)
	}
	for len(lists) > 0 {
		left := lists[:0]
		for _, list := range lists {
			if list = next(list); len(list) > 0 {
				left = append(left, list)
			}
			if len(ids) > maxCommits {
				return ids[:maxCommits], true, nil
			}
		}
		lists = left
	}
	return ids, false, nil
}

// revisions is what the image itself says it was built from. An image that
// cannot be read says nothing.
func (c *collector) revisions(ctx context.Context) ([]string, error) {
	nothing := func(err error) ([]string, error) {
		if ctx.Err() != nil || errors.Is(err, ErrUnavailable) {
			return nil, err
		}
		return nil, nil
	}
	doc, _, err := readDocument(ctx, c, c.about)
	if err != nil {
		return nothing(err)
	}
	out := []string{doc.Annotations[revision]}
	if doc.Config == nil {
		return out, nil
	}
	raw, err := readBlob(ctx, c, *doc.Config, attest.MaxConfig)
	if err != nil {
		if out[0] != "" {
			return out, nil
		}
		return nothing(err)
	}
	var config struct {
		Config struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if attest.UnmarshalStrict(raw, &config) == nil {
		out = append(out, config.Config.Labels[revision])
	}
	return out, nil
}
