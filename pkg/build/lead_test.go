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

// docker's own builder leads to a socket of its own, by the names of its contexts;
// those that are no builder's name are left alone.
func TestBuildersOfDockersOwn(t *testing.T) {
	for context, own := range map[string]string{"": "waxseal default", "desktop": "waxseal default desktop", "1st": "waxseal default", "../../x": "waxseal default"} {
		users := t.TempDir()
		if err := os.MkdirAll(filepath.Join(users, "instances"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(users, "instances", "mine"), []byte(`{"Name":"mine","Driver":"docker-container"}`), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := newLead(func(name string) string {
			return map[string]string{"BUILDX_CONFIG": users, "DOCKER_CONTEXT": context, "DOCKER_CONFIG": users}[name]
		})
		if err != nil {
			t.Fatal(err)
		}
		var there []string
		for _, name := range l.known {
			raw, err := os.ReadFile(filepath.Join(l.dir, "buildx", "instances", name))
			if err != nil {
				t.Error(err)
			}
			if strings.Contains(string(raw), l.own.address()) {
				there = append(there, name)
			} else if name != "mine" || !strings.Contains(string(raw), l.theirs.address()) {
				t.Errorf("%q is led elsewhere: %s", name, raw)
			}
		}
		if got := strings.Join(there, " "); got != own {
			t.Errorf("in context %q docker's own are %q, want %q", context, got, own)
		}
		l.close()
	}
}

func TestACommandThatNamesItsDaemon(t *testing.T) {
	for line, want := range map[string]bool{
		"docker build .": false, "docker build -c 5 .": false, "docker buildx build --context x .": false,
		"docker -c far build .": true, "docker --context=far build .": true, "docker -l debug -H tcp://far:1 build .": true, "docker --config /d compose build": true,
	} {
		r := CommandRequest{Args: strings.Fields(line)}
		if got := r.namesDaemon(); got != want {
			t.Errorf("%s: %v", line, got)
		}
	}
}
