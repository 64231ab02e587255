package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

// folder writes files below a fresh folder: name to content, a trailing slash
// makes a folder, "-> target" a symbolic link.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		default:
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func walked(t *testing.T, dir, dockerfile string) *tree {
	t.Helper()
	raw, name, err := readIgnore(dir, dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := walkFolder(t.Context(), dir, raw, name, "")
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func paths(t *tree) string {
	var out []string
	for _, e := range t.entries {
		out = append(out, e.path)
	}
	return strings.Join(out, " ")
}

func TestIgnoreFiles(t *testing.T) {
	files := map[string]string{
		"Dockerfile": "FROM scratch", "a.go": "a", "a.log": "l", "src/b.go": "b", "src/b.log": "l",
		"vendor/x/y.go": "y", "vendor/x/keep.txt": "k", "vendor/z": "z", "empty/": "",
	}
	for name, c := range map[string]struct{ ignore, specific, want string }{
		"none":                      {"", "", "Dockerfile a.go a.log empty src src/b.go src/b.log vendor vendor/x vendor/x/keep.txt vendor/x/y.go vendor/z"},
		"pattern at root":           {"*.log", "", ".dockerignore Dockerfile a.go empty src src/b.go src/b.log vendor vendor/x vendor/x/keep.txt vendor/x/y.go vendor/z"},
		"pattern below":             {"**/*.log\n# a comment\n\nempty", "", ".dockerignore Dockerfile a.go src src/b.go vendor vendor/x vendor/x/keep.txt vendor/x/y.go vendor/z"},
		"exception":                 {"**\n!src/*.go\n!vendor/x/keep.txt", "", "src src/b.go vendor vendor/x vendor/x/keep.txt"},
		"the Dockerfile's own wins": {"*", "vendor\nempty\n*.dockerignore\nsrc", "Dockerfile a.go a.log"},
	} {
		t.Run(name, func(t *testing.T) {
			all := map[string]string{}
			for k, v := range files {
				all[k] = v
			}
			if c.ignore != "" {
				all[".dockerignore"] = c.ignore
			}
			if c.specific != "" {
				all["Dockerfile.dockerignore"] = c.specific
			}
			dir := folder(t, all)
			if got := paths(walked(t, dir, filepath.Join(dir, "Dockerfile"))); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
	dir := folder(t, map[string]string{".dockerignore": "[", "a": ""})
	if _, err := walkFolder(t.Context(), dir, []byte("["), ".dockerignore", ""); err == nil || !strings.Contains(err.Error(), ".dockerignore") {
		t.Errorf("a broken ignore file: %v", err)
	}
}

func packed(t *testing.T, dir string, epoch *time.Time) *layer {
	t.Helper()
	l, err := newLayer(t.Context(), walked(t, dir, ""), epoch, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestContextIsNamedByContent(t *testing.T) {
	files := map[string]string{"a": "one", "d/b": "two", "l": "-> d/b"}
	epoch := time.Unix(1700000000, 0)
	first, second := folder(t, files), folder(t, files)
	if err := os.Chtimes(filepath.Join(second, "a"), epoch, epoch); err != nil {
		t.Fatal(err)
	}
	x, y := packed(t, first, &epoch), packed(t, second, &epoch)
	if x.manifest != y.manifest || x.digest != y.digest {
		t.Error("the same content has two names")
	}
	if z := packed(t, second, nil); z.manifest != x.manifest {
		t.Error("times changed the name of the content")
	}
	for name, change := range map[string]func(dir string) error{
		"content": func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), []byte("eno"), 0o644) },
		"mode":    func(dir string) error { return os.Chmod(filepath.Join(dir, "a"), 0o755) },
		"name":    func(dir string) error { return os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "c")) },
		"link": func(dir string) error {
			return errors.Join(os.Remove(filepath.Join(dir, "l")), os.Symlink("a", filepath.Join(dir, "l")))
		},
		"folder": func(dir string) error { return os.Mkdir(filepath.Join(dir, "e"), 0o755) },
	} {
		dir := folder(t, files)
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if c := packed(t, dir, &epoch); c.manifest == x.manifest || c.digest == x.digest {
			t.Errorf("another %s has the same name", name)
		}
	}
	var manifest bytes.Buffer
	if err := x.tree.writeManifest(&manifest); err != nil {
		t.Fatal(err)
	}
	want := `{"path":"a","mode":"0100644","size":3,"sha256":"7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"}
{"path":"d","mode":"0040755","size":0}
{"path":"d/b","mode":"0100644","size":3,"sha256":"3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"}
{"path":"l","mode":"0120777","size":0,"link":"d/b"}
`
	if manifest.String() != want || attest.DigestOf(manifest.Bytes()) != x.manifest {
		t.Errorf("manifest:\n%s", manifest.String())
	}
}

func TestLayerIsATarArchiveFromAnyPlace(t *testing.T) {
	files := map[string]string{"empty": "", "d/": "", "l": "-> a", strings.Repeat("long/", 60) + "name": "x"}
	big := bytes.Repeat([]byte("0123456789abcdef"), 40000)
	files["a"], files["block"] = string(big), string(big[:512])
	dir := folder(t, files)
	if err := os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "second-name")); err != nil {
		t.Fatal(err)
	}
	l := packed(t, dir, nil)
	r := l.reader()
	defer r.Close()
	whole := make([]byte, l.size)
	if n, err := r.ReadAt(whole, 0); int64(n) != l.size || err != nil {
		t.Fatalf("read %d, %v", n, err)
	}
	if attest.DigestOf(whole) != l.digest {
		t.Error("the bytes do not have the layer's digest")
	}
	seen := map[string]string{}
	tr := tar.NewReader(bytes.NewReader(whole))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
		raw, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		seen[h.Name] = string(raw) + h.Linkname
	}
	if seen["a"] != string(big) || seen["second-name"] != string(big) || seen["l"] != "a" || seen["empty"] != "" {
		t.Error("the archive has other content than the folder")
	}
	if _, ok := seen["d/"]; !ok {
		t.Error("an empty folder is missing")
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		off := rnd.Int64N(l.size)
		buf := make([]byte, rnd.IntN(70000))
		n, err := r.ReadAt(buf, off)
		want := whole[off:min(l.size, off+int64(len(buf)))]
		if !bytes.Equal(buf[:n], want) || (err != nil) != (n < len(buf)) {
			t.Fatalf("at %d: %d bytes, %v", off, n, err)
		}
	}
}

func TestContextThatChangesIsAnError(t *testing.T) {
	dir := folder(t, map[string]string{"a": "1234567890"})
	l := packed(t, dir, nil)
	if err := os.Truncate(filepath.Join(dir, "a"), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := l.reader().ReadAt(make([]byte, l.size), 0); !errors.Is(err, errChanged) {
		t.Errorf("a file that became shorter: %v", err)
	}
	tr := walked(t, dir, "")
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("longer than it was"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := newLayer(t.Context(), tr, nil, nil); !errors.Is(err, errChanged) {
		t.Errorf("a file that became longer: %v", err)
	}
	tr = walked(t, folder(t, map[string]string{"x/a": "1"}), "")
	tr.open = func(*entry) (io.ReadCloser, error) { return nil, fs.ErrPermission }
	if _, err := newLayer(t.Context(), tr, nil, nil); err == nil || !strings.Contains(err.Error(), `"x/a"`) {
		t.Errorf("a file that cannot be read: %v", err)
	}
}

func TestContextRefusesWhiteouts(t *testing.T) {
	dir := folder(t, map[string]string{"d/.wh.a": ""})
	if _, err := walkFolder(t.Context(), dir, nil, "", ""); err == nil || !strings.Contains(err.Error(), "d/.wh.a") {
		t.Errorf("got %v", err)
	}
	if _, err := walkFolder(t.Context(), dir, []byte("**/.wh.*"), ".dockerignore", ""); err != nil {
		t.Errorf("left out, and still %v", err)
	}
}

// TestPrivateKeyIsPartOfNoContext: neither under its name nor behind a link, in
// the files or in the list of them.
func TestPrivateKeyIsPartOfNoContext(t *testing.T) {
	dir := folder(t, map[string]string{"a": "x", "keys/real.key": "secret", "waxseal.lock": "lock", "keys/waxseal.pub": "public"})
	link := filepath.Join(dir, "waxseal.key")
	if err := os.Symlink("keys/real.key", link); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{link, filepath.Join(dir, "keys", "real.key")} {
		p := &preparer{req: &Request{Seal: Seal{KeyFiles: []string{key}}}, notes: &notes{}, lock: filepath.Join(dir, "waxseal.lock")}
		tr, err := p.walk(t.Context(), dir, "")
		if err != nil {
			t.Fatal(err)
		}
		got := paths(tr)
		if strings.Contains(got, "real.key") || strings.Contains(got, "waxseal.lock") || !strings.Contains(got, "keys/waxseal.pub") {
			t.Errorf("with the key %q the context is %q", key, got)
		}
		if said := strings.Join(p.notes.list, "\n"); !strings.Contains(said, "keys/real.key") || strings.Contains(said, "waxseal.lock") {
			t.Errorf("the notes are %q", said)
		}
		var names bytes.Buffer
		l, err := newLayer(t.Context(), tr, nil, nil)
		if err == nil {
			err = l.tree.writeManifest(&names)
		}
		if err != nil || strings.Contains(names.String(), `"path":"keys/real.key"`) {
			t.Errorf("the list of files is %q, %v", names.String(), err)
		}
	}
	// One that is no file, and one elsewhere.
	for _, key := range []string{"awskms:///alias/x", "/nowhere/waxseal.key"} {
		p := &preparer{req: &Request{Seal: Seal{KeyFiles: []string{key}}}, notes: &notes{}}
		if tr, err := p.walk(t.Context(), dir, ""); err != nil || len(p.notes.list) > 0 || !strings.Contains(paths(tr), "real.key") {
			t.Errorf("with the key %q: %v, %q", key, err, p.notes.list)
		}
	}
}
