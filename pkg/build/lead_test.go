package build

import (
	"os"
	"path/filepath"
	"slices"
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

// Docker's own flags say which daemon is meant, before its environment does.
func TestACommandThatNamesItsDaemon(t *testing.T) {
	environ := map[string]string{"DOCKER_HOST": "unix:///here", "DOCKER_CONFIG": "/config"}
	for line, want := range map[string]string{
		"docker build .": "unix:///here  /config", "docker build -c 5 .": "unix:///here  /config", "docker buildx build --context x .": "unix:///here  /config",
		"docker -c far build .": " far /config", "docker --context=far build .": " far /config", "docker -cfar build .": " far /config",
		"docker --context default build .":          "unix:///here default /config",
		"docker -l debug -H tcp://far:1 build .":    "tcp://far:1  /config",
		"docker --host=tcp://far:1 build .":         "tcp://far:1  /config",
		"docker -Htcp://far:1 build .":              "tcp://far:1  /config",
		"docker --config /d compose -c far build":   "unix:///here  /d",
		"docker --tlsverify -H tcp://far:1 build .": "not known",
		"docker --context":                          "unix:///here  /config",
		"make -c far build":                         "unix:///here  /config",
	} {
		r := CommandRequest{Args: strings.Fields(line)}
		env, known := r.daemonEnv(func(name string) string { return environ[name] })
		got := "not known"
		if known {
			got = env("DOCKER_HOST") + " " + env("DOCKER_CONTEXT") + " " + env("DOCKER_CONFIG")
		}
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// A script sees no context of docker's but the one that it is in.
func TestOtherContexts(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"here", "other"} {
		for _, kind := range []string{"meta", "tls"} {
			if err := os.MkdirAll(filepath.Join(dir, "contexts", kind, contextID(name)), 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, x := range []struct {
		host, context string
		want          []string
	}{
		{"", "here", []string{"meta/other", "tls/other"}},
		{"", "", []string{"meta/here", "meta/other", "tls/here", "tls/other"}},
		{"unix:///here", "here", []string{"meta/here", "meta/other", "tls/here", "tls/other"}},
	} {
		env := map[string]string{"DOCKER_CONFIG": dir, "DOCKER_HOST": x.host, "DOCKER_CONTEXT": x.context}
		got := otherContexts(func(name string) string { return env[name] })
		var want []string
		for _, w := range x.want {
			kind, name, _ := strings.Cut(w, "/")
			want = append(want, filepath.Join(dir, "contexts", kind, contextID(name)))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q, %q: %q, want %q", x.host, x.context, got, want)
		}
	}
	if got := otherContexts(func(string) string { return filepath.Join(dir, "none") }); len(got) != 0 {
		t.Errorf("without a context: %q", got)
	}
}
