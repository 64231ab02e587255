package build

import (
	"archive/tar"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// sent is a context in the store, as an engine keeps what a client sent.
func sent(t *testing.T, st *lock.Store, files map[string]string) attestations.InputSource {
	t.Helper()
	w, err := st.NewWriter()
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(w)
	for _, name := range sortedKeys(files) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(files[name])), Mode: 0o644}
		if target, ok := strings.CutPrefix(files[name], "-> "); ok {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
		}
		if strings.HasSuffix(name, ".sh") {
			h.Mode = 0o755
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := tw.Write([]byte(files[name])); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := w.Commit()
	if err != nil {
		t.Fatal(err)
	}
	return attestations.InputSource{Kind: "context", URI: "context", Digest: string(d), Tree: string(d), Stored: true}
}

func TestSourceOfWhatWasSent(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) { testSourceOf(t, format) })
	}
}

func testSourceOf(t *testing.T, format string) {
	if _, err := exec.LookPath("git"); err != nil {
		testkit.Unavailable(t, "git is not installed")
	}
	committed := map[string]string{"Dockerfile": "FROM scratch\n", "f": "f\n", "sub/g": "g\n", "run.sh": "run\n", "eol.txt": "one\r\ntwo\r\n"}
	dir := folder(t, map[string]string{"README": "r", ".gitattributes": "eol.txt text eol=crlf\n"})
	app := filepath.Join(dir, "app")
	for name, text := range committed {
		write(t, filepath.Join(app, name), text)
	}
	if err := os.Chmod(filepath.Join(app, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("f", filepath.Join(app, "link")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(app, "plain.sh"), "p\n")
	// A submodule of which git was told to say nothing.
	module := filepath.Join(app, "mod")
	write(t, filepath.Join(module, "m"), "m\n")
	write(t, filepath.Join(module, "eol.txt"), "one\r\ntwo\r\n")
	write(t, filepath.Join(module, ".gitattributes"), "eol.txt text eol=crlf\n")
	write(t, filepath.Join(dir, ".gitmodules"), "[submodule \"mod\"]\n\tpath = app/mod\n\turl = ./mod\n\tignore = all\n")
	for _, d := range []string{module, dir} {
		git(t, d, "init", "-q", "--object-format="+format)
		git(t, d, "add", "-A")
		git(t, d, "commit", "-qm", "x")
	}
	config, err := os.ReadFile(filepath.Join(dir, ".git/config"))
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := folder(t, map[string]string{"x": "x"})
	st, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	with := func(changes map[string]string) map[string]string {
		out := maps.Clone(committed)
		out["link"] = "-> f"
		maps.Copy(out, changes)
		maps.DeleteFunc(out, func(_, v string) bool { return v == "" })
		return out
	}
	hint := map[string]string{"vcs:localdir:context": "app", "vcs:localdir:dockerfile": "app"}
	for _, c := range []struct {
		name       string
		at         string // a folder that the command names
		files      map[string]string
		dockerfile string
		attrs      map[string]string
		prepare    func() // done to the folder, and undone afterwards
		changed    []string
		none       bool
		note       string
	}{
		{name: "all of it", at: app, files: with(nil)},
		{name: "found by the hint", at: dir, files: with(nil), attrs: hint},
		{name: "found in the root's place", at: dir, files: map[string]string{"README": "r"}, dockerfile: "none", none: true},
		{name: "a part of it", at: app, files: map[string]string{"sub/g": "g\n"}},
		{name: "nothing but the Dockerfile", at: app},
		{name: "changed in the folder and sent", at: app, files: with(map[string]string{"f": "other"}), changed: []string{"f"},
			prepare: func() { write(t, filepath.Join(app, "f"), "other") }},
		{name: "changed only in what was sent", at: app, files: with(map[string]string{"f": "other"}), changed: []string{"f"}},
		{name: "changed only in the folder, afterwards", at: app, files: with(nil),
			prepare: func() { write(t, filepath.Join(app, "f"), "other") }},
		{name: "removed from the folder, afterwards", at: app, files: with(nil),
			prepare: func() { os.Remove(filepath.Join(app, "f")) }},
		{name: "not in the commit", at: app, files: with(map[string]string{"new": "n"}), changed: []string{"new"}},
		{name: "a link elsewhere", at: app, files: with(map[string]string{"link": "-> /etc/passwd"}), changed: []string{"link"}},
		{name: "missing from the folder", at: app, files: with(map[string]string{"f": ""}), changed: []string{"f"},
			prepare: func() { os.Remove(filepath.Join(app, "f")) }},
		{name: "told not to look", at: app, files: with(map[string]string{"f": "other"}), changed: []string{"f"},
			prepare: func() {
				git(t, dir, "update-index", "--assume-unchanged", "app/f")
				write(t, filepath.Join(app, "f"), "other")
			}},
		{name: "changed at the old time", at: app, files: with(map[string]string{"f": "o\n"}), changed: []string{"f"},
			prepare: func() {
				git(t, dir, "config", "core.trustctime", "false")
				git(t, dir, "config", "core.checkStat", "minimal")
				old := time.Unix(1e9, 0)
				if err := os.Chtimes(filepath.Join(app, "f"), old, old); err != nil {
					t.Fatal(err)
				}
				git(t, dir, "status")
				write(t, filepath.Join(app, "f"), "o\n")
				if err := os.Chtimes(filepath.Join(app, "f"), old, old); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "the bit that git was told not to see", at: app, files: map[string]string{"plain.sh": "p\n", "f": "f\n"}, changed: []string{"plain.sh"},
			prepare: func() {
				git(t, dir, "config", "core.fileMode", "false")
				if err := os.Chmod(filepath.Join(app, "plain.sh"), 0o755); err != nil {
					t.Fatal(err)
				}
			}},
		{name: "git's own files", at: app, files: with(map[string]string{"mod/.git/HEAD": "ref: " + gitOut(t, module, "", "symbolic-ref", "HEAD")})},
		{name: "what only looks like git's own", at: app, files: with(map[string]string{"sub/.git/x": "x"}), changed: []string{"sub/.git/x"},
			prepare: func() { write(t, filepath.Join(app, "sub/.git/x"), "x") }},
		{name: "a submodule", at: app, files: with(map[string]string{"mod/m": "m\n", "mod/eol.txt": "one\r\ntwo\r\n"})},
		{name: "changed in a submodule", at: app, files: with(map[string]string{"mod/m": "other"}), changed: []string{"mod/m"},
			prepare: func() { write(t, filepath.Join(module, "m"), "other") }},
		{name: "new in a submodule", at: app, files: with(map[string]string{"mod/n": "n"}), changed: []string{"mod/n"},
			prepare: func() { write(t, filepath.Join(module, "n"), "n") }},
		{name: "another Dockerfile", at: app, files: map[string]string{"f": "f\n"}, dockerfile: "FROM other\n", attrs: hint, changed: []string{"Dockerfile"}},
		{name: "the hint leads out", at: app, files: with(nil), attrs: map[string]string{"vcs:localdir:context": "../app", "vcs:localdir:dockerfile": "/app"}},
		{name: "no repository", at: elsewhere, files: with(nil), none: true},
		{name: "one that is not looked at", at: elsewhere, files: with(nil), attrs: map[string]string{"vcs:revision": "1234"}, none: true, note: "is not from the repository"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(elsewhere)
			if c.prepare != nil {
				c.prepare()
				defer func() {
					git(t, dir, "update-index", "--no-assume-unchanged", "app/f")
					write(t, filepath.Join(dir, ".git/config"), string(config))
					git(t, dir, "checkout", "-q", ".")
					git(t, module, "checkout", "-q", ".")
					git(t, module, "clean", "-qfd")
					os.RemoveAll(filepath.Join(app, "sub/.git"))
				}()
			}
			if c.dockerfile == "" {
				c.dockerfile = committed["Dockerfile"]
			}
			rec := &record{Dockerfiles: []recordedFile{{Filename: "Dockerfile", Data: []byte(c.dockerfile)}}}
			w := &sealedImage{
				run: &run{notes: &notes{}}, in: &inputs{described: attestations.ContainerContext{Kind: "directory"}},
				sealed: &sealed{platforms: []PlatformResult{{}}, records: &records{platforms: map[string]*record{"": rec}}, taken: []taken{{record: &attestations.Inputs{}}}},
			}
			if c.files != nil {
				w.sealed.taken[0].record.Sources = []attestations.InputSource{sent(t, st, c.files)}
			}
			s := &sealer{intake: &intake{store: st}, repos: sync.OnceValue(func() *repositories {
				return findRepositories(t.Context(), []string{"docker", "build", "--file=" + filepath.Join(c.at, "x"), c.at})
			})}
			g := s.beginSource(t.Context(), &clientImage{solve: &clientSolve{Attrs: c.attrs}}, w)()
			if notes := strings.Join(w.run.notes.list, "; "); (c.note == "") != (notes == "") || !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
			if c.none {
				if g != nil {
					t.Errorf("got %+v", g)
				}
				return
			}
			if g == nil {
				t.Fatal("no commit")
			}
			if g.Subdir != "app" || len(g.Commit) != map[string]int{"sha1": 40, "sha256": 64}[format] || !reflect.DeepEqual(g.Changed, c.changed) && len(g.Changed)+len(c.changed) > 0 {
				t.Errorf("got %+v, want the changes %q", g, c.changed)
			}
		})
	}
}

func TestSourceOfRefusesWhatIsNotWhatItsDigestSays(t *testing.T) {
	st, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	src := sent(t, st, map[string]string{"f": "f\n"})
	if err := st.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(st.Dir(), func(name string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(name, attest.Digest(src.Tree).Hex()) {
			raw, _ := os.ReadFile(name)
			os.Chmod(name, 0o644)
			return os.WriteFile(name, []byte(strings.Replace(string(raw), "f\n", "g\n", 1)), 0o644)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	f := &sentFiles{context: map[string]gitFile{}, folders: map[string]bool{}, buf: make([]byte, 1024)}
	if err := f.read(t.Context(), st, attest.Digest(src.Tree), 40); err == nil || !strings.Contains(err.Error(), "its bytes are") {
		t.Errorf("got %v", err)
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
