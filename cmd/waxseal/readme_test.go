package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/waxseal/waxseal/internal/testkit"
)

// TestTheReadmeWorks runs the README's blocks that are marked for it, in their
// order, as one shell script, with its example registry replaced by a real one.
func TestTheReadmeWorks(t *testing.T) {
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	base, err := testkit.TinyBase(t.Context())
	if err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	bin, err := testkit.Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer reg.Close()
	dir := t.TempDir()
	dockerfile := "FROM " + push(t, base, reg.Addr+"/library/base:1") + "\nARG VERSION\nRUN echo $VERSION > /version\n"
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}

	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)<!-- run -->\n```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	if len(blocks) < 3 {
		t.Fatalf("the README has %d blocks to run, want one for each kind of user", len(blocks))
	}
	var script strings.Builder
	for _, block := range blocks {
		script.WriteString(strings.ReplaceAll(block[1], "registry.example.com", reg.Addr))
	}
	sh := exec.CommandContext(t.Context(), "sh", "-eux")
	sh.Dir, sh.Stdin = dir, strings.NewReader(script.String())
	// The time that the commit of a checkout would give.
	sh.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=1700000000", "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir,
		"WAXSEAL_CACHE="+filepath.Join(t.TempDir(), "cache"), "WAXSEAL_HOME="+filepath.Join(t.TempDir(), "home"))
	if out, err := sh.CombinedOutput(); err != nil {
		t.Errorf("the README's commands: %v\n%s", err, out)
	}
}

// push copies the only image of a layout and returns its reference.
func push(t *testing.T, from, to string) string {
	t.Helper()
	index, err := layout.ImageIndexFromPath(from)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	img, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	return to
}
