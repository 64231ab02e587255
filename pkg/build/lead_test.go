package build

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A builder that a command makes leads to the engine, and whatever the command
// puts in its place nothing else is written to.
func TestRedirect(t *testing.T) {
	users := t.TempDir()
	l, err := newLead(func(name string) string { return map[string]string{"BUILDX_CONFIG": users}[name] })
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(kept, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	instances := filepath.Join(l.dir, "buildx", "instances")
	if err := os.WriteFile(filepath.Join(instances, "mine"), []byte(`{"Name":"mine","Driver":"docker-container"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kept, filepath.Join(instances, "link")); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(l.dir, "buildx", "moved")
	if err := os.Rename(instances, moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(kept), instances); err != nil {
		t.Fatal(err)
	}
	if err := l.redirect(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"mine", "link"} {
		raw, err := os.ReadFile(filepath.Join(moved, name))
		if err != nil || !strings.Contains(string(raw), l.theirs.address()) {
			t.Errorf("%s: %s, %v", name, raw, err)
		}
	}
	if raw, err := os.ReadFile(kept); err != nil || string(raw) != "as it was" {
		t.Errorf("%s, %v", raw, err)
	}
	if there, err := os.ReadDir(filepath.Dir(kept)); err != nil || len(there) != 1 {
		t.Errorf("%v, %v", there, err)
	}
}
