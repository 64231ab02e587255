package engine

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func sentFolderOf(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"a.txt": "a", "b/c": "c", "b/d": "d", "b.txt": "b"} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Unix(1600000000, 123456789)
	err := errors.Join(os.Link(filepath.Join(dir, "b/c"), filepath.Join(dir, "twin")), os.Symlink("b/c", filepath.Join(dir, "link")),
		os.Chmod(filepath.Join(dir, "b/d"), 0o750|os.ModeSetuid), os.Chtimes(filepath.Join(dir, "a.txt"), old, old))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestPackFolderKeepsWhatAStepCanSee(t *testing.T) {
	store, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	dir := sentFolderOf(t)
	p, err := packFolder(dir, store)
	if err != nil || p.unkept != nil {
		t.Fatal(err, p.unkept)
	}
	list := storedText(t, store, p.manifest)
	if want := `{"path":"b/d","mode":"0104750","size":1,"sha256":"18ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4"}` + "\n"; !strings.Contains(list, want) {
		t.Errorf("the manifest has no line %s in\n%s", want, list)
	}
	raw := storedText(t, store, p.archive)
	if int64(len(raw)) != p.size {
		t.Errorf("%d bytes, said to be %d", len(raw), p.size)
	}
	var got []string
	for in := tar.NewReader(strings.NewReader(raw)); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s %o", h.Typeflag, h.Name, h.Mode)
		if h.Linkname != "" {
			line += " " + h.Linkname
		}
		if h.Name == "a.txt" {
			line += fmt.Sprint(" ", h.ModTime.UnixNano())
		}
		got = append(got, line)
	}
	want := []string{"0 a.txt 644 1600000000123456789", "5 b/ 755", "0 b/c 644", "0 b/d 4750", "0 b.txt 644", "2 link 777 b/c", "1 twin 644 b/c"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if again, err := packFolder(dir, store); err != nil || again != p {
		t.Errorf("packed again: %+v (%v), first %+v", again, err, p)
	}
	// Times are part of the archive, and not of the manifest.
	if err := os.Chtimes(filepath.Join(dir, "a.txt"), time.Now(), time.Now()); err != nil {
		t.Fatal(err)
	}
	if later, err := packFolder(dir, store); err != nil || later.manifest != p.manifest || later.archive == p.archive {
		t.Errorf("with another time: %+v (%v), first %+v", later, err, p)
	}
}

func TestPackFolderSaysWhatIsNotKept(t *testing.T) {
	store, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	dir := sentFolderOf(t)
	if p, err := packFolder(dir, nil); err != nil || !errors.Is(p.unkept, errNoStore) || p.manifest == "" {
		t.Errorf("without a store: %+v, %v", p, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b", ".wh.d"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p, err := packFolder(dir, store)
	if err != nil || !errors.Is(p.unkept, errWhiteout) {
		t.Errorf("with a whiteout: %+v, %v", p, err)
	}
	if store.Has(p.manifest) || store.Has(p.archive) {
		t.Error("a folder that no engine can be given was kept")
	}
}

func TestPackFolderDoesNotSitInMemory(t *testing.T) {
	store, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	dir := t.TempDir()
	const size = 300 << 20
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "big"), nil, 0o644), os.Truncate(filepath.Join(dir, "big"), size)); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	p, err := packFolder(dir, store)
	runtime.ReadMemStats(&after)
	if err != nil || p.unkept != nil || p.size < size {
		t.Fatal(p, err)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 16<<20 {
		t.Errorf("%d bytes allocated for a folder of %d", grown, size)
	}
}

func storedText(t *testing.T, store *lock.Store, d attest.Digest) string {
	t.Helper()
	b, err := store.OpenVerified(d)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	raw, err := io.ReadAll(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
