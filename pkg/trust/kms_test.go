package trust

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

// TestOwnMemory: a key that nothing proves is kept only where nobody else can
// write, and nothing outlives the machine.
func TestOwnMemory(t *testing.T) {
	shared := func(t *testing.T) string {
		dir, err := os.MkdirTemp("/dev/shm", "waxseal-test-")
		if err != nil {
			testkit.Unavailable(t, "%v", err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		var on unix.Statfs_t
		if err := unix.Statfs(dir, &on); err != nil || on.Type != unix.TMPFS_MAGIC {
			testkit.Unavailable(t, "/dev/shm is not in memory")
		}
		return dir
	}
	name := fmt.Sprintf("waxseal-%d", os.Geteuid())
	dir := shared(t)
	if got := OwnMemory(dir); got != filepath.Join(dir, name) || OwnMemory(dir) != got {
		t.Errorf("a folder of our own: %q, then %q", got, OwnMemory(dir))
	}
	for what, spoil := range map[string]func(own string) error{
		"open to others":      func(own string) error { return os.Chmod(own, 0o755) },
		"open to a group":     func(own string) error { return os.Chmod(own, 0o770) },
		"with a sticky bit":   func(own string) error { return os.Chmod(own, 0o700|os.ModeSticky) },
		"somebody else's":     func(own string) error { return os.Chown(own, 12345, -1) },
		"a link":              func(own string) error { return os.Rename(own, own+"-") },
		"a file in its place": func(own string) error { return os.Remove(own) },
		"easily replaced":     func(own string) error { return os.Chmod(filepath.Dir(own), 0o777) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := shared(t)
			own := OwnMemory(dir)
			if err := spoil(own); err != nil {
				testkit.Unavailable(t, "%v", err)
			}
			switch what {
			case "a link":
				if err := os.Symlink(own+"-", own); err != nil {
					t.Fatal(err)
				}
			case "a file in its place":
				if err := os.WriteFile(own, nil, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if got := OwnMemory(dir); got != "" {
				t.Errorf("it was taken: %s", got)
			}
		})
	}
	t.Run("on a disk", func(t *testing.T) {
		var on unix.Statfs_t
		dir := t.TempDir()
		if err := unix.Statfs(dir, &on); err != nil || on.Type == unix.TMPFS_MAGIC {
			testkit.Unavailable(t, "the temporary folder is in memory itself")
		}
		if got := OwnMemory(dir); got != "" {
			t.Errorf("it was taken: %s", got)
		}
	})
	if got := OwnMemory(filepath.Join(dir, "missing")); got != "" {
		t.Errorf("made below what is not there: %s", got)
	}
}

// TestReadKept: what was kept is a key of a bounded size, or nothing.
func TestReadKept(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"empty": "", "none": "no key", "large": string(make([]byte, 1<<20))} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if raw := readKept(path); raw != nil {
			t.Errorf("%s: %q", name, raw)
		}
	}
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if raw := readKept(pipe); raw != nil || readKept(dir) != nil || readKept("") != nil {
		t.Error("what is no file was read")
	}
}
