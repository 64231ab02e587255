package store

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1" //nolint:gosec // git's
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
)

// gitRepo is a repository made by the real git.
type gitRepo struct {
	t   testing.TB
	dir string
}

func newGitRepo(t testing.TB, args ...string) gitRepo {
	t.Helper()
	r := gitRepo{t, filepath.Join(t.TempDir(), "repo")}
	r.git("", append([]string{"init", "-q", r.dir}, args...)...)
	r.git("", "-C", r.dir, "commit", "-q", "--allow-empty", "-m", "one")
	return r
}

func (r gitRepo) git(stdin string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1",
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@acme.example", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@acme.example")
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("git %s: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func (r gitRepo) in(args ...string) string {
	r.t.Helper()
	return r.git("", append([]string{"-C", r.dir}, args...)...)
}

func (r gitRepo) note(ref, text string) {
	r.t.Helper()
	r.git(text, "-C", r.dir, "notes", "--ref", ref, "append", "-F", "-")
}

func commitStatement(t testing.TB, commit, predicateType string) []byte {
	t.Helper()
	return must(attest.NewStatement(predicateType, []attest.Subject{{Name: "git", Digest: map[string]string{"gitCommit": commit}}}, map[string]int{}))(t).Raw()
}

func ofCommit(t testing.TB, dir, commit string, more ...string) []Piece {
	t.Helper()
	from, _ := testIndex(t)
	r := open(t, from, Options{Evidence: append([]string{GitPrefix + dir}, more...)})
	return must(r.(CommitEvidenceLister).CommitEvidence(context.Background(), commit))(t)
}

func wheres(ps []Piece) string {
	var out []string
	for _, p := range ps {
		s := p.Where
		if p.Raw == nil {
			s += " (" + p.Skipped + ")"
		}
		out = append(out, s)
	}
	return strings.Join(out, "\n")
}

func TestGitNotes(t *testing.T) {
	for name, args := range map[string][]string{"sha1": nil, "sha256": {"--object-format=sha256"}} {
		t.Run(name, func(t *testing.T) {
			r := newGitRepo(t, args...)
			commit := r.in("rev-parse", "HEAD")
			one, two := commitStatement(t, commit, "https://example.com/one"), commitStatement(t, commit, "https://example.com/two")
			r.note("slsa", string(one)+"\n"+string(two))
			r.note("deep/er", string(one)) // the same again
			r.note("text", "reviewed by hand\n")
			file := filepath.Join(t.TempDir(), "all.jsonl")
			if err := os.WriteFile(file, bytes.Join([][]byte{commitStatement(t, strings.Repeat("0", len(commit)), "x"), commitStatement(t, commit, "https://example.com/three")}, []byte("\n")), 0o644); err != nil {
				t.Fatal(err)
			}
			want := strings.Join([]string{
				file + ":2", "refs/notes/deep/er:" + commit, "refs/notes/slsa:" + commit + ":2",
				"refs/notes/text:" + commit + ` (reading JSON at "": invalid character 'r' at start of value at byte 0)`,
			}, "\n")
			check := func(dir string) {
				t.Helper()
				ps := ofCommit(t, dir, commit, file)
				if got := wheres(ps); got != want {
					t.Errorf("evidence in %s:\n%s\nwant\n%s", dir, got, want)
				}
				if len(ps) > 1 && (ps[1].Source != SourceNotes || !bytes.Equal(ps[1].Raw, one) || ps[1].PredicateType != "https://example.com/one") {
					t.Errorf("%+v", ps[1])
				}
			}
			check(r.dir)
			check(filepath.Join(r.dir, ".git"))
			r.in("gc", "-q") // packs and packed-refs
			if left := must(filepath.Glob(filepath.Join(r.dir, ".git/objects/??")))(t); len(left) != 0 {
				t.Fatalf("git left loose objects: %s", left)
			}
			check(r.dir)
			bare := filepath.Join(t.TempDir(), "bare.git")
			r.git("", "clone", "-q", "--mirror", r.dir, bare)
			check(bare)
			// A file counts before an entry in packed-refs.
			r.in("notes", "--ref", "text", "remove", "HEAD")
			want = strings.Join(strings.Split(want, "\n")[:3], "\n")
			check(r.dir)
			// Another commit has no notes.
			if ps := ofCommit(t, r.dir, strings.Repeat("1", len(commit))); len(ps) != 0 {
				t.Errorf("evidence about another commit: %+v", ps)
			}
		})
	}
}

// TestGitNotesFanOut has as many notes as make git keep them in folders, each a
// delta of another when packed.
func TestGitNotesFanOut(t *testing.T) {
	r := newGitRepo(t)
	var in strings.Builder
	commits := []string{}
	const many = 3000
	fmt.Fprintf(&in, "commit refs/notes/many\ncommitter a <a@acme.example> 0 +0000\ndata 0\n")
	for i := range many {
		id := fmt.Sprintf("%x", sha1.Sum([]byte{byte(i), byte(i >> 8)})) //nolint:gosec // git's
		text := fmt.Sprintf(`{"note": %d, "filler": %q}`, i, strings.Repeat("some text that is the same ", 20))
		commits = append(commits, id)
		// fast-import knows the object only when it is there: a mark-less form
		// with the path does the same.
		fmt.Fprintf(&in, "M 100644 inline %s/%s/%s\ndata %d\n%s\n", id[:2], id[2:4], id[4:], len(text), text)
	}
	r.git(in.String(), "-C", r.dir, "fast-import", "--quiet")
	r.in("repack", "-adfq", "--depth=200")
	for _, i := range []int{0, 17, many - 1} {
		ps := ofCommit(t, r.dir, commits[i])
		if len(ps) != 1 || !strings.HasPrefix(string(ps[0].Raw), fmt.Sprintf(`{"note": %d,`, i)) {
			t.Errorf("note %d: %+v", i, ps)
		}
	}
}

func TestGitIsNotTrusted(t *testing.T) {
	from, _ := testIndex(t)
	list := func(dir, commit string) ([]Piece, error) {
		r := open(t, from, Options{Evidence: []string{GitPrefix + dir}})
		return r.(CommitEvidenceLister).CommitEvidence(context.Background(), commit)
	}
	fresh := func() (gitRepo, string) {
		r := newGitRepo(t)
		commit := r.in("rev-parse", "HEAD")
		r.note("slsa", string(commitStatement(t, commit, "https://example.com/one")))
		return r, commit
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, r gitRepo)
		err    string // of the whole
		piece  string // why a note is not read
	}{
		"objects from elsewhere": {change: func(t *testing.T, r gitRepo) {
			other := filepath.Join(t.TempDir(), "objects")
			rename(t, filepath.Join(r.dir, ".git/objects"), other)
			for _, d := range []string{"info", "pack"} {
				if err := os.MkdirAll(filepath.Join(r.dir, ".git/objects", d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			write(t, filepath.Join(r.dir, ".git/objects/info/alternates"), other+"\n")
		}, piece: "it borrows objects from another one"},
		"objects behind a link": {change: func(t *testing.T, r gitRepo) {
			other := filepath.Join(t.TempDir(), "objects")
			rename(t, filepath.Join(r.dir, ".git/objects"), other)
			if err := os.Symlink(other, filepath.Join(r.dir, ".git/objects")); err != nil {
				t.Fatal(err)
			}
		}, err: "no folder objects"},
		"a note behind a link": {change: func(t *testing.T, r gitRepo) {
			ref := filepath.Join(r.dir, ".git/refs/notes/slsa")
			rename(t, ref, filepath.Join(r.dir, "elsewhere"))
			if err := os.Symlink(filepath.Join(r.dir, "elsewhere"), ref); err != nil {
				t.Fatal(err)
			}
		}},
		"a .git that leads elsewhere": {change: func(t *testing.T, r gitRepo) {
			rename(t, filepath.Join(r.dir, ".git"), filepath.Join(r.dir, "real"))
			write(t, filepath.Join(r.dir, ".git"), "gitdir: real\n")
		}, err: "leads to another place"},
		"no repository": {change: func(t *testing.T, r gitRepo) {
			rename(t, filepath.Join(r.dir, ".git"), filepath.Join(r.dir, "real"))
		}, err: "it is no git repository"},
		"references in tables": {change: func(t *testing.T, r gitRepo) {
			if err := os.Mkdir(filepath.Join(r.dir, ".git/reftable"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, err: "in tables"},
		"another content": {change: func(t *testing.T, r gitRepo) {
			blob := r.in("rev-parse", "refs/notes/slsa^{tree}")
			path := filepath.Join(r.dir, ".git/objects", blob[:2], blob[2:])
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			write(t, path, string(deflate([]byte("tree 0\x00"))))
		}, piece: "its content is not what its name says"},
		"a bomb": {change: func(t *testing.T, r gitRepo) {
			plant(t, r, "blob", make([]byte, attest.MaxBundle+1))
		}, piece: "larger than the"},
		"a size that lies": {change: func(t *testing.T, r gitRepo) {
			tip := r.in("rev-parse", "refs/notes/slsa")
			path := filepath.Join(r.dir, ".git/objects", tip[:2], tip[2:])
			if err := os.Chmod(path, 0o644); err != nil {
				t.Fatal(err)
			}
			write(t, path, string(deflate(append([]byte("commit 10\x00"), make([]byte, 1<<20)...))))
		}, piece: "its size is not what its header says"},
		"a tag in place of a commit": {change: func(t *testing.T, r gitRepo) {
			r.in("tag", "-a", "-m", "x", "t", "HEAD")
			write(t, filepath.Join(r.dir, ".git/refs/notes/slsa"), r.in("rev-parse", "t")+"\n")
		}, piece: "it is a tag, not a commit"},
		"too many references": {change: func(t *testing.T, r gitRepo) {
			tip := r.in("rev-parse", "refs/notes/slsa")
			var b strings.Builder
			for i := range maxNotesRefs + 1 {
				fmt.Fprintf(&b, "%s refs/notes/n%d\n", tip, i)
			}
			write(t, filepath.Join(r.dir, ".git/packed-refs"), b.String())
		}, err: "more than the 256 references"},
	} {
		t.Run(name, func(t *testing.T) {
			r, commit := fresh()
			c.change(t, r)
			ps, err := list(r.dir, commit)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.piece == "" && len(ps) > 0 {
				t.Errorf("read %+v", ps)
			}
			if c.piece != "" && (len(ps) != 1 || ps[0].Raw != nil || !strings.Contains(ps[0].Skipped, c.piece)) {
				t.Errorf("%s, want %q", wheres(ps), c.piece)
			}
		})
	}
	if _, err := list(t.TempDir(), "HEAD"); err == nil || !strings.Contains(err.Error(), "not the id of a git object") {
		t.Errorf("a name in place of an id: %v", err)
	}
}

// TestGitPacksAreBounded reads packs that nobody's git has written.
func TestGitPacksAreBounded(t *testing.T) {
	id := gitID(strings.Repeat("ab", 20))
	entry := func(kind, size int, base []byte, data []byte) []byte {
		var out []byte
		b := byte(kind<<4 | size&15)
		for size >>= 4; size > 0; size >>= 7 {
			out = append(out, b|0x80)
			b = byte(size & 0x7f)
		}
		return slices.Concat(append(out, b), base, deflate(data))
	}
	blob := entry(gitBlob, 5, nil, []byte("hello"))
	delta := func(from, to uint64, ops ...byte) []byte {
		return append(binary.AppendUvarint(binary.AppendUvarint(nil, from), to), ops...)
	}
	upon := func(d []byte, back int) []byte {
		return slices.Concat(blob, entry(gitOfsDelta, len(d), []byte{byte(back)}, d))
	}
	for name, c := range map[string]struct {
		pack []byte
		at   int
		want string // the content, or "error: …"
	}{
		"a blob":               {blob, 0, "hello"},
		"a delta":              {upon(delta(5, 7, 0x90, 5, 2, '!', '?'), len(blob)), len(blob), "hello!?"},
		"beyond the base":      {upon(delta(5, 7, 0x91, 4, 5), len(blob)), len(blob), "error: cannot be applied"},
		"another base":         {upon(delta(6, 5, 0x90, 5), len(blob)), len(blob), "error: cannot be applied"},
		"longer than it says":  {upon(delta(5, 3, 0x90, 5), len(blob)), len(blob), "error: cannot be applied"},
		"shorter than it says": {upon(delta(5, 9, 0x90, 5), len(blob)), len(blob), "error: cannot be applied"},
		"a bomb":               {upon(delta(5, 1<<40, 0x90, 5), len(blob)), len(blob), "error: larger than"},
		"no operation":         {upon(delta(5, 5, 0), len(blob)), len(blob), "error: cannot be applied"},
		"of itself":            {upon(delta(5, 5, 0x90, 5), 0), len(blob), "error: cannot be read"},
		"of what comes before": {upon(delta(5, 5, 0x90, 5), 127), len(blob), "error: cannot be read"},
		"of nobody":            {entry(gitRefDelta, 3, bytes.Repeat([]byte{1}, 20), delta(5, 5, 0)), 0, "error: does not have it"},
		"an unknown kind":      {entry(5, 5, nil, []byte("hello")), 0, "error: unknown kind"},
		"a size that is huge":  {entry(gitBlob, 1<<40, nil, []byte("hello")), 0, "error: larger than"},
		"a size that lies":     {entry(gitBlob, 9, nil, []byte("hello")), 0, "error: not what its header says"},
		"beyond the end":       {blob, 1000, "error: ends early"},
		"not compressed":       {[]byte{0x35, 'h', 'e', 'l', 'l', 'o'}, 0, "error: zlib"},
	} {
		g := &gitObjects{ctx: context.Background(), root: must(os.OpenRoot(t.TempDir()))(t), left: attest.MaxEvidenceSum}
		_, got, err := g.entry(bytes.NewReader(c.pack), int64(c.at), id, attest.MaxBundle, 4)
		if msg, bad := strings.CutPrefix(c.want, "error: "); bad {
			if err == nil || !strings.Contains(err.Error(), msg) {
				t.Errorf("%s: %q, %v, want %q", name, got, err, msg)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
	// A chain of deltas ends somewhere, and so do all of them together.
	long := blob
	at := 0
	for range 6 {
		d := delta(5, 5, 0x90, 5)
		e := entry(gitOfsDelta, len(d), []byte{byte(len(long) - at)}, d)
		at = len(long)
		long = append(long, e...)
	}
	g := &gitObjects{ctx: context.Background(), root: must(os.OpenRoot(t.TempDir()))(t), left: attest.MaxEvidenceSum}
	if _, _, err := g.entry(bytes.NewReader(long), int64(at), id, 100, 4); err == nil || !strings.Contains(err.Error(), "a delta upon more than") {
		t.Errorf("a long chain: %v", err)
	}
	g.left = 12
	if _, _, err := g.entry(bytes.NewReader(long), int64(at), id, 100, 100); err == nil || !strings.Contains(err.Error(), "unpacked for one question") {
		t.Errorf("more than is left: %v", err)
	}
}

func TestNotesAboutAnImage(t *testing.T) {
	s := newSigner(t)
	from, top := testIndex(t)
	r := newGitRepo(t)
	commit := r.in("rev-parse", "HEAD")
	about := s.bundle(t, top, "https://example.com/about-the-image")
	r.note("images", string(about.Raw())+"\n"+string(commitStatement(t, commit, "https://example.com/source")))

	// Nothing says that the image is of that commit.
	if ps := evidence(t, open(t, from, Options{Evidence: []string{GitPrefix + r.dir}}), top); len(ps) != 0 {
		t.Errorf("without a commit: %s", wheres(ps))
	}
	// A statement about the image does.
	for name, predicate := range map[string]any{
		"v1":   map[string]any{"buildDefinition": map[string]any{"resolvedDependencies": []any{map[string]any{"digest": map[string]string{"gitCommit": commit}}}}},
		"v0.2": map[string]any{"materials": []any{map[string]any{"digest": map[string]string{"sha1": commit}}}},
	} {
		st := must(attest.NewStatement("https://slsa.dev/provenance/"+name, []attest.Subject{{Digest: map[string]string{"sha256": top.Digest.Hex}}}, predicate))(t)
		path := filepath.Join(t.TempDir(), "p.json")
		write(t, path, string(st.Raw()))
		ps := evidence(t, open(t, from, Options{Evidence: []string{path, GitPrefix + r.dir}}), top)
		if summary(ps) != SourceFile+", "+SourceNotes || ps[1].Where != "refs/notes/images:"+commit+":1" || !bytes.Equal(ps[1].Raw, about.Raw()) {
			t.Errorf("%s: %s", name, wheres(ps))
		}
	}
}

// Who floods an image with commits keeps out the notes on none that somebody else
// names.
func TestNotesAboutAFloodedImage(t *testing.T) {
	s := newSigner(t)
	from, top := testIndex(t)
	r := newGitRepo(t)
	about := s.bundle(t, top, "https://example.com/about-the-image")
	r.note("images", string(about.Raw()))
	names := func(commits ...string) string {
		var deps []any
		for _, c := range commits {
			deps = append(deps, map[string]any{"digest": map[string]string{"gitCommit": c}})
		}
		st := must(attest.NewStatement("https://slsa.dev/provenance/v1", []attest.Subject{{Digest: map[string]string{"sha256": top.Digest.Hex}}},
			map[string]any{"buildDefinition": map[string]any{"resolvedDependencies": deps}}))(t)
		return string(st.Raw())
	}
	var few, many []string
	for n := range 2 * maxCommits {
		many = append(many, fmt.Sprintf("%040x", n))
	}
	few = many[:16]
	own := names(r.in("rev-parse", "HEAD"))
	for name, c := range map[string]struct{ flood, want string }{
		"few":  {names(few...), SourceFile + ", " + SourceFile + ", " + SourceNotes},
		"many": {names(many...), SourceFile + ", " + SourceFile + ", " + SourceNotes + " skipped, " + SourceNotes},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "p.jsonl")
			write(t, path, c.flood+"\n"+own+"\n")
			ps := evidence(t, open(t, from, Options{Evidence: []string{path, GitPrefix + r.dir}}), top)
			if summary(ps) != c.want || !bytes.Equal(ps[len(ps)-1].Raw, about.Raw()) {
				t.Errorf("%s: %s", summary(ps), wheres(ps))
			}
		})
	}
}

func TestDocuments(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"\n \n":                            "",
		"{}":                               "0:{}",
		"{\n \"a\":\n 1}\n":                "0:{\n \"a\":\n 1}",
		"{}\n{}":                           "1:{} 2:{}",
		"\n{}\n\nbad\n{}\n":                "2:{} 4:bad 5:{}",
		"{\n\"a\":1}\n\n{\n\"b\":2}\n":     "1:{\n\"a\":1} 4:{\n\"b\":2}",
		"words\nand more\n\nand the end\n": "1:words\nand more 4:and the end",
	} {
		var got []string
		for line, doc := range documents([]byte(in)) {
			got = append(got, fmt.Sprintf("%d:%s", line, doc))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzGitEntry(f *testing.F) {
	f.Add([]byte("\x35"+string(deflate([]byte("hello")))), 0)
	f.Add([]byte("\x65\x01"+string(deflate([]byte("\x05\x05\x90\x05")))), 0)
	f.Add([]byte("\x75aaaaaaaaaaaaaaaaaaaa"+string(deflate([]byte("x")))), 0)
	root, err := os.OpenRoot(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, pack []byte, at int) {
		g := &gitObjects{ctx: context.Background(), root: root, left: 1 << 20}
		_, data, err := g.entry(bytes.NewReader(pack), int64(max(at, 0)), gitID(strings.Repeat("ab", 20)), 1<<16, 8)
		if err == nil && len(data) > 1<<16 {
			t.Errorf("%d bytes of at most %d", len(data), 1<<16)
		}
		_, _ = findInIndex(bytes.NewReader(pack), gitID(strings.Repeat("ab", 20)))
	})
}

func FuzzGitNotes(f *testing.F) {
	f.Add([]byte("40000 ab\x00aaaaaaaaaaaaaaaaaaaa100644 cd\x00bbbbbbbbbbbbbbbbbbbb"))
	f.Add([]byte("{}\n{}\n\n{\"a\":\n1}"))
	f.Add([]byte("160000 x\x00aaaaaaaaaaaaaaaaaaaa"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for e, err := range treeEntries(raw, 20) {
			if err == nil && len(e.id) != 40 {
				t.Errorf("an entry with the id %q", e.id)
			}
		}
		sum := 0
		for _, p := range notePieces("refs/notes/x:y", raw) {
			sum += len(p.Raw)
			if (p.Raw == nil) == (p.Skipped == "") {
				t.Errorf("a piece that is neither read nor skipped: %+v", p)
			}
		}
		if sum > len(raw) {
			t.Errorf("%d bytes of pieces in %d", sum, len(raw))
		}
	})
}

func deflate(data []byte) []byte {
	var buf bytes.Buffer
	z := zlib.NewWriter(&buf)
	if _, err := z.Write(data); err != nil {
		panic(err)
	}
	z.Close()
	return buf.Bytes()
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// plant makes the note of HEAD below refs/notes/slsa another object.
func plant(t testing.TB, r gitRepo, kind string, data []byte) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "planted")
	write(t, path, string(data))
	id := r.in("hash-object", "-w", "-t", kind, path)
	tree := r.git(fmt.Sprintf("100644 blob %s\t%s\n", id, r.in("rev-parse", "HEAD")), "-C", r.dir, "mktree")
	r.in("update-ref", "refs/notes/slsa", r.in("commit-tree", "-m", "x", tree))
}

func mkdir(t testing.TB, path string) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
}
