package build

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func archiveOf(t *testing.T, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Uname // of a file
		h.Uname = ""
		if h.Size = int64(len(content)); h.ModTime.IsZero() {
			h.ModTime = time.Unix(1e9, 0)
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	w := newUnpacker(dir)
	_, err := w.Write(archiveOf(t,
		tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o555},
		tar.Header{Name: "bin/su", Typeflag: tar.TypeReg, Mode: 0o4755, Uname: "content", PAXRecords: map[string]string{"SCHILY.xattr.user.note": "x"}},
		tar.Header{Name: "bin/tmp/", Typeflag: tar.TypeDir, Mode: 0o1777},
		tar.Header{Name: "bin/twin", Typeflag: tar.TypeLink, Linkname: "bin/su"},
		tar.Header{Name: "bin/gone", Typeflag: tar.TypeSymlink, Linkname: "/etc/nowhere"},
		tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o640},
		tar.Header{Name: "empty", Typeflag: tar.TypeReg},
	))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{
		"bin": fs.ModeDir | 0o555, "bin/su": fs.ModeSetuid | 0o755, "bin/tmp": fs.ModeDir | fs.ModeSticky | 0o777,
		"bin/gone": fs.ModeSymlink | 0o777, "pipe": fs.ModeNamedPipe | 0o640, "empty": 0,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want || !info.ModTime().Equal(time.Unix(1e9, 0)) {
			t.Errorf("%s: %v, %v, want %v", name, info, err, want)
		}
	}
	one, two := new(unix.Stat_t), new(unix.Stat_t)
	if err := errors.Join(unix.Lstat(filepath.Join(dir, "bin/su"), one), unix.Lstat(filepath.Join(dir, "bin/twin"), two)); err != nil || one.Ino != two.Ino {
		t.Errorf("the hard link is another file: %v", err)
	}
	if got, err := os.Readlink(filepath.Join(dir, "bin/gone")); err != nil || got != "/etc/nowhere" {
		t.Errorf("%q, %v", got, err)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "bin/su")); err != nil || string(raw) != "content" {
		t.Errorf("%q, %v", raw, err)
	}
	note := make([]byte, 8)
	if n, err := unix.Getxattr(filepath.Join(dir, "bin/su"), "user.note", note); err != nil && !errors.Is(err, unix.ENOTSUP) || err == nil && string(note[:n]) != "x" {
		t.Errorf("%q, %v", note[:max(n, 0)], err)
	}
	if err := os.Chmod(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err) // or it cannot be removed
	}
}

// TestUnpackStaysInside: what a foreign engine sends writes nowhere else.
func TestUnpackStaysInside(t *testing.T) {
	file := tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Uname: "x"}
	named := func(name string) tar.Header { h := file; h.Name = name; return h }
	up := tar.Header{Name: "up", Typeflag: tar.TypeSymlink, Linkname: ".."}
	for what, headers := range map[string][]tar.Header{
		"above":              {named("../x")},
		"absolute":           {named("/x")},
		"through a link":     {up, named("up/x")},
		"a link as folder":   {up, {Name: "up/", Typeflag: tar.TypeDir, Mode: 0o700}},
		"a hard link above":  {{Name: "l", Typeflag: tar.TypeLink, Linkname: "../secret"}},
		"over what is there": {named("a"), named("a")},
		"of an odd kind":     {{Name: "odd", Typeflag: tar.TypeCont}},
	} {
		t.Run(what, func(t *testing.T) {
			around := t.TempDir()
			dir := filepath.Join(around, "dir")
			if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(around, "secret"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
			if err := unpack(bytes.NewReader(archiveOf(t, headers...)), dir); err == nil {
				t.Error("it was taken")
			}
			if left, err := os.ReadDir(around); err != nil || len(left) != 2 {
				t.Errorf("%v, %v", left, err)
			}
		})
	}
	if err := unpack(strings.NewReader("no archive, but longer than one block of it would have to be"), t.TempDir()); err == nil {
		t.Error("no archive was taken for one")
	}
}

// TestUnpackerEnds: who writes is told why it went wrong, and waits for nobody.
func TestUnpackerEnds(t *testing.T) {
	w := newUnpacker(filepath.Join(t.TempDir(), "missing"))
	if _, err := w.Write(make([]byte, 4<<20)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Close: %v", err)
	}
}
