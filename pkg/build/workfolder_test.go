package build

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
)

func writeFiles(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func reading(t *testing.T, dir string, earlier *workFolder, except ...string) *workFolder {
	t.Helper()
	w, err := readWorkFolder(t.Context(), dir, earlier, except)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestWorkFolderBeforeAndAfter(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a.c": "a", "sub/b.c": "b", "sub/gone": "x", ".git/config": "c", "key": "k", "old": "o"})
	if err := os.Symlink("a.c", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	before := reading(t, dir, nil, filepath.Join(dir, "key"))
	var names strings.Builder
	if err := before.tree.writeManifest(&names); err != nil {
		t.Fatal(err)
	}
	for _, not := range []string{".git", `"key"`} {
		if strings.Contains(names.String(), not) {
			t.Errorf("%s is part of it:\n%s", not, names.String())
		}
	}
	if before.files != 4 || !strings.Contains(names.String(), `{"path":"link","mode":"0120777","size":0,"link":"a.c"}`) {
		t.Errorf("%d files:\n%s", before.files, names.String())
	}
	writeFiles(t, dir, map[string]string{"a.c": "A", "out/app": "1", "out/deep/lib": "2"})
	if err := os.Remove(filepath.Join(dir, "sub/gone")); err != nil {
		t.Fatal(err)
	}
	after := reading(t, dir, before, filepath.Join(dir, "key"))
	if got := compareFolders(before, after); !slices.Equal(got.Changed, []string{"a.c"}) || !slices.Equal(got.Removed, []string{"sub/gone"}) || got.Before != 4 || got.After != 5 {
		t.Errorf("%+v", got)
	}
	if before.manifest == after.manifest {
		t.Error("another folder has the same name")
	}

	for _, test := range []struct {
		patterns []string
		want     string // the paths, or the error
	}{
		{[]string{"out/*"}, "out/app out/deep/lib"},
		{[]string{"out/app", "**/lib", "out"}, "out/app out/deep/lib"},
		{[]string{"a.c"}, "a.c"},
		{[]string{"old"}, "was there before"},
		{[]string{"none/*"}, "no such file"},
		{[]string{"link"}, "no such file"},
		{[]string{"../x"}, "below the working folder"},
		{[]string{"/etc/passwd"}, "below the working folder"},
		{[]string{"!out"}, "below the working folder"},
	} {
		made, err := artifacts(before, after, test.patterns)
		var got []string
		for _, a := range made {
			got = append(got, a.path)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, " "); text != test.want && (err == nil || !strings.Contains(text, test.want)) {
			t.Errorf("%q: %s, want %s", test.patterns, text, test.want)
		}
	}
}

// What a command leaves behind a link of the working folder is what it made where
// the pattern spells the link, and the command has written there.
func TestArtifactsThroughALink(t *testing.T) {
	dir, beyond := t.TempDir(), t.TempDir()
	writeFiles(t, beyond, map[string]string{"old": "o", "pkg/stale": "s"})
	before := reading(t, dir, nil)
	before.taken = tick(t, filepath.Join(beyond, "probe"))
	writeFiles(t, beyond, map[string]string{"pkg/app": "1", "pkg/app.d": "2", "lib/libapp": "3"})
	for name, to := range map[string]string{"bin": beyond, "one": filepath.Join(beyond, "pkg/app"), "none": filepath.Join(beyond, "none")} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/", filepath.Join(beyond, "lib/all")); err != nil {
		t.Fatal(err)
	}
	after := reading(t, dir, before)
	for pattern, want := range map[string]string{
		"bin/pkg/app": "bin/pkg/app",
		"bin/*/app*":  "bin/pkg/app bin/pkg/app.d",
		"bin/lib":     "bin/lib/libapp",
		"bin/lib/**":  "bin/lib/libapp",
		"bin/pkg":     `"bin/pkg/stale" was there before`,
		"bin/old":     `"bin/old" was there before`,
		"**/app":      "no such file",
		"b*/pkg/app":  "no such file",
		"one":         "no such file",
		"none/x":      "no such file",
		"bin/none":    "no such file",
		"bin/lib/all": "no such file",
	} {
		made, err := artifacts(before, after, []string{pattern})
		var got []string
		for _, a := range made {
			got = append(got, a.path)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, " "); text != want && (err == nil || !strings.Contains(text, want)) {
			t.Errorf("%q: %s, want %s", pattern, text, want)
		}
	}
}

// tick is a time that files written before it are older than, and those written
// after it are not: their times are as fine as the kernel's clock tick.
func tick(t *testing.T, probe string) time.Time {
	t.Helper()
	for now := time.Now(); ; {
		if err := os.WriteFile(probe, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		m := markOf(probe)
		if changed := time.Unix(m.changed.Unix()); changed.After(now) {
			return changed
		}
	}
}

// A digest is taken from an earlier reading only where nothing can have changed
// since: a file that was written within the clock's grain is read again.
func TestWorkFolderReadsAgainWhatMayHaveChanged(t *testing.T) {
	dir := t.TempDir()
	writeFiles(t, dir, map[string]string{"a": "a"})
	before := reading(t, dir, nil)
	if _, ok := before.known("a", before.stamps["a"]); ok {
		t.Error("a fresh file counts as unchanged")
	}
	before.taken, before.blind = before.taken.Add(time.Hour), nil
	if sum, ok := before.known("a", before.stamps["a"]); !ok || sum != before.tree.entries[0].sum {
		t.Error("an old file is read again")
	}
	other := before.stamps["a"]
	other.ino++
	if _, ok := before.known("a", other); ok {
		t.Error("another file of the name counts as the same")
	}
}

// In memory a file can change without a time of its own.
func TestWorkFolderInMemoryIsReadAgain(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "waxseal-test-")
	if err != nil {
		testkit.Unavailable(t, "a folder in memory: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if !inMemory(dir) {
		testkit.Unavailable(t, "/dev/shm is not in memory")
	}
	writeFiles(t, dir, map[string]string{"a": "a"})
	f, err := os.OpenFile(filepath.Join(dir, "a"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, 1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(mapped) }()
	was := mapped[0]
	before := reading(t, dir, nil)
	before.taken = before.taken.Add(time.Hour)
	mapped[0] = was + 1
	if after := reading(t, dir, before); after.stamps["a"] != before.stamps["a"] || after.manifest == before.manifest {
		t.Errorf("stamps %v and %v, manifests %s and %s", before.stamps["a"], after.stamps["a"], before.manifest, after.manifest)
	}
}

func TestParseImageFile(t *testing.T) {
	const hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	for _, test := range []struct{ flag, raw, want string }{
		{"--iidfile", "sha256:" + hex, "image-id"},
		{"--iidfile", hex + "\n", "image-id"},
		{"--digestfile", "sha256:" + hex + "\n", "image"},
		{"--image-refs", "reg.example/a@sha256:" + hex + "\nreg.example/b:v1@sha256:" + hex + "\n", "reg.example/a reg.example/b:v1"},
		{"--metadata-file", `{"containerimage.digest":"sha256:` + hex + `","image.name":"reg.example/a:1,b"}`, "reg.example/a:1"},
		{"--metadata-file", `{"web":{"containerimage.digest":"sha256:` + hex + `"},"api":{"containerimage.digest":"sha256:` + hex + `","image.name":"x"}}`, "x web"},
		{"--metadata-file", `{}`, ""},
		{"--metadata-file", `[`, ""},
		{"--iidfile", "", ""},
		{"--iidfile", "latest", ""},
	} {
		got, err := parseImageFile(test.flag, []byte(test.raw))
		var names []string
		for _, s := range got {
			names = append(names, s.Name)
			if s.Digest["sha256"] != hex {
				t.Errorf("%s %q: %v", test.flag, test.raw, s)
			}
		}
		if (err != nil) != (test.want == "") || strings.Join(names, " ") != test.want {
			t.Errorf("%s %q: %q, %v", test.flag, test.raw, names, err)
		}
	}
}

func FuzzParseImageFile(f *testing.F) {
	f.Add("--metadata-file", []byte(`{"web":{"containerimage.digest":"sha256:00"}}`))
	f.Add("--iidfile", []byte("sha256:00\n"))
	f.Add("--image-refs", []byte("a@sha256:00\n@"))
	f.Fuzz(func(t *testing.T, flag string, raw []byte) {
		got, err := parseImageFile(flag, raw)
		if err == nil && len(got) == 0 {
			t.Error("nothing, and no error")
		}
	})
}

func TestImageFiles(t *testing.T) {
	got := imageFiles([]string{"buildah", "bud", "--iidfile", "iid", "--digestfile=/d", "--iidfile"}, "/src")
	if want := []imageFile{{flag: "--iidfile", path: "/src/iid"}, {flag: "--digestfile", path: "/d"}}; !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// Every tool has its own words for what it writes down.
func TestImageFilesOfTools(t *testing.T) {
	const hex = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	for args, wrote := range map[string][2]string{ // what, and the subject it is
		"/kaniko/executor --digest-file f":                                  {"sha256:" + hex, "image"},
		"/kaniko/executor --digest-file=f --destination reg.example/a:v1":   {"sha256:" + hex, "image"},
		"/kaniko/executor --image-name-with-digest-file f":                  {"reg.example/a@sha256:" + hex + "\n", "reg.example/a"},
		"/kaniko/executor --image-name-tag-with-digest-file=f --no-push":    {"reg.example/a:v1@sha256:" + hex + "\n", "reg.example/a:v1"},
		"apko publish --image-refs f apko.yaml reg.example/a:v1":            {"reg.example/a@sha256:" + hex, "reg.example/a"},
		"ko build --bare --image-refs=f .":                                  {"reg.example/a@sha256:" + hex + "\n", "reg.example/a"},
		"podman push --digestfile f reg.example/a:v1":                       {"sha256:" + hex, "image"},
		"buildah bud --iidfile f .":                                         {"sha256:" + hex, "image-id"},
		"/kaniko/executor --oci-layout-path f --tar-path image.tar -d a:v1": {},
	} {
		dir := t.TempDir()
		files := imageFiles(strings.Fields(args), dir)
		if wrote[0] == "" {
			if len(files) != 0 {
				t.Errorf("%s: %v", args, files)
			}
			continue
		}
		if len(files) != 1 {
			t.Errorf("%s: %v", args, files)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "f"), []byte(wrote[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := files[0].subjects()
		if err != nil || len(got) != 1 || got[0].Name != wrote[1] || got[0].Digest["sha256"] != hex {
			t.Errorf("%s: %v, %v", args, got, err)
		}
	}
}

// Kubernetes mounts a file for what a container has to say at its end.
func TestImageFilesThatAreMounted(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "waxseal-test-")
	if err != nil {
		t.Skipf("needs a folder below /dev: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	said := filepath.Join(dir, "termination-log")
	if err := os.WriteFile(said, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"/kaniko/executor", "--digest-file", said, "--image-name-with-digest-file", filepath.Join(dir, "none"), "--iidfile", "/dev/null"}
	w := &watched{dir: "/src", images: imageFiles(args, "/src")}
	if got := w.mountedImageFiles(); !slices.Equal(got, []string{said}) {
		t.Errorf("%q", got)
	}
	w.dir = dir
	if got := w.mountedImageFiles(); len(got) != 0 {
		t.Errorf("of the working folder: %q", got)
	}
}

// TestImagesMadeElsewhere: an image that docker wrote down may be another
// machine's, and so may one of podman's where a daemon was asked for a build.
func TestImagesMadeElsewhere(t *testing.T) {
	asked := func(method, uri string) *confineDone {
		return &confineDone{Inputs: &EngineInputs{Steps: []attestations.InputStep{{Requests: []attestations.InputRequest{{Method: method, URI: uri}}}}}}
	}
	for name, x := range map[string]struct {
		args string
		done *confineDone
		want int
	}{
		"podman":              {"podman build --iidfile iid .", asked("GET", "http://files.example/build"), 0},
		"buildah, by another": {"timeout 9 /usr/bin/buildah bud --iidfile iid .", nil, 1}, // or another that writes a digest
		"a word":              {"sh -c true podman --iidfile iid", nil, 1},
		"docker, by another":  {"timeout 9 docker build --iidfile iid .", nil, 1},
		"buildctl":            {"buildctl build --metadata-file m", nil, 1},
		"podman's daemon":     {"podman build --iidfile iid .", asked("POST", "http://far.example:8080/v4.0.0/libpod/build?t=x"), 1},
		"pushed":              {"kaniko --digest-file d", nil, 0},
	} {
		args := strings.Fields(x.args)
		w := &watched{req: &CommandRequest{Args: args}, images: imageFiles(args, "/src"), done: x.done}
		if got := w.elsewhere(); len(got) != x.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// Another run beside this one makes and removes files in the folder as well.
func TestFilesThatGoAwayWhileTheFolderIsRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if f, err := os.CreateTemp(dir, ".waxseal-*"); err == nil {
				f.Close()
				os.Remove(f.Name())
			}
		}
	})
	for range 300 {
		w, err := readWorkFolder(t.Context(), dir, nil, nil)
		if err != nil {
			t.Error(err)
			break
		}
		if i, ok := w.at["a"]; !ok || w.tree.entries[i].path != "a" || w.files < 1 || len(w.stamps) != w.files {
			t.Errorf("%d files, stamps of %d", w.files, len(w.stamps))
			break
		}
	}
	close(stop)
	busy.Wait()
}
