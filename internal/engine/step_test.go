package engine

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

// An empty folder can still hold what an earlier build wrote.
func TestAnEmptyCacheMountHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	bare := func() bool {
		t.Helper()
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		ok, err := isBare(d)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	if !bare() {
		t.Error("a new folder is not empty")
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if bare() {
		t.Error("a folder with a file is empty")
	}
	if err := os.Remove(filepath.Join(dir, "x")); err != nil {
		t.Fatal(err)
	}
	err := unix.Setxattr(dir, "user.waxseal", []byte("from an earlier build"), 0)
	if errors.Is(err, unix.ENOTSUP) {
		testkit.Unavailable(t, "no extended attributes here")
	}
	if err != nil {
		t.Fatal(err)
	}
	if bare() {
		t.Error("a folder with an attribute is empty")
	}
}
