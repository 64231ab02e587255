package build

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

type tarEntry struct {
	name, content, link string
	kind                byte
}

func archive(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: 0o644}
		if e.kind == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func readTar(t testing.TB, raw []byte) (*tree, error) {
	t.Helper()
	spool, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spool.Close() })
	return readArchive(context.Background(), bytes.NewReader(raw), spool, nil)
}

func contentOfEntry(t *testing.T, tr *tree, name string) string {
	t.Helper()
	e := tr.find(name)
	if e == nil {
		t.Fatalf("%s is missing", name)
	}
	f, err := tr.open(e)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestReadArchive(t *testing.T) {
	raw := archive(t,
		tarEntry{name: "./", kind: tar.TypeDir}, tarEntry{name: "./z/deep/file", content: "deep"}, tarEntry{name: "/abs", content: "abs"},
		tarEntry{name: "twice", content: "first"}, tarEntry{name: "twice", content: "second"},
		tarEntry{name: "hard", link: "abs", kind: tar.TypeLink}, tarEntry{name: "soft", link: "../../etc", kind: tar.TypeSymlink},
	)
	var gz, zs bytes.Buffer
	g := gzip.NewWriter(&gz)
	_, _ = g.Write(raw)
	g.Close()
	z, _ := zstd.NewWriter(&zs)
	_, _ = z.Write(raw)
	z.Close()
	for name, in := range map[string][]byte{"plain": raw, "gzip": gz.Bytes(), "zstd": zs.Bytes()} {
		t.Run(name, func(t *testing.T) {
			if !isArchive(in[:min(len(in), 1024)]) {
				t.Error("not taken for an archive")
			}
			tr, err := readTar(t, in)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := paths(tr), "abs hard soft twice z z/deep z/deep/file"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			for name, want := range map[string]string{"twice": "second", "hard": "abs", "z/deep/file": "deep"} {
				if got := contentOfEntry(t, tr, name); got != want {
					t.Errorf("%s holds %q, want %q", name, got, want)
				}
			}
			l, err := newLayer(t.Context(), tr, nil, nil)
			if err != nil || l.files != 4 {
				t.Errorf("packed %+v, %v", l, err)
			}
		})
	}
	if isArchive([]byte("FROM scratch\nCOPY . /\n")) {
		t.Error("a Dockerfile was taken for an archive")
	}
}

func TestReadArchiveRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		raw  []byte
		sign string
	}{
		"a way out":           {archive(t, tarEntry{name: "a/../../b"}), "leaves the context"},
		"a link out":          {archive(t, tarEntry{name: "h", link: "../x", kind: tar.TypeLink}), "leaves the context"},
		"a link to nothing":   {archive(t, tarEntry{name: "h", link: "x", kind: tar.TypeLink}), "no earlier file"},
		"a file below a link": {archive(t, tarEntry{name: "etc", link: "/etc", kind: tar.TypeSymlink}, tarEntry{name: "etc/passwd", content: "x"}), "no folder"},
		"a whiteout":          {archive(t, tarEntry{name: "d/.wh.x"}), ".wh."},
		"a cut archive":       {archive(t, tarEntry{name: "a", content: strings.Repeat("x", 5000)})[:2000], "unexpected EOF"},
		"broken gzip":         {[]byte("\x1f\x8b\x08broken"), "context archive"},
	} {
		if _, err := readTar(t, c.raw); err == nil || !strings.Contains(err.Error(), c.sign) {
			t.Errorf("%s: error %v, want %q in it", name, err, c.sign)
		}
	}
}

func FuzzReadArchive(f *testing.F) {
	f.Add(archive(f, tarEntry{name: "a", content: "b"}, tarEntry{name: "l", link: "a", kind: tar.TypeLink}))
	f.Add(archive(f, tarEntry{name: "../a"}))
	f.Add(archive(f, tarEntry{name: "s", link: "/", kind: tar.TypeSymlink}, tarEntry{name: "s/a", content: "x"}))
	f.Add([]byte("\x1f\x8b\x08"))
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		tr, err := readTar(t, raw)
		if err != nil {
			return
		}
		folders := map[string]bool{".": true}
		for _, e := range tr.entries {
			if strings.HasPrefix(e.path, "/") || strings.Contains("/"+e.path+"/", "/../") || strings.Contains(e.path, "\x00") {
				t.Errorf("path %q", e.path)
			}
			if !folders[filepath.Dir(e.path)] {
				t.Errorf("path %q comes before its folder", e.path)
			}
			if e.mode.IsDir() {
				folders[e.path] = true
			}
		}
		if _, err := newLayer(t.Context(), tr, nil, nil); err != nil && !strings.Contains(err.Error(), "packing context file") {
			t.Errorf("packing what was read: %v", err)
		}
	})
}
