package build

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// savedEntry is a file in an archive, or with to a link.
type savedEntry struct{ name, content, to string }

func archiveOf(entries ...savedEntry) []byte {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		h := tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.content))}
		if e.to != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.to
		}
		// Writing to memory fails only for a header that this test got wrong.
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func hexOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// oldArchive is what Docker before 25 saves: two layers of the same bytes are
// one file and a link.
func oldArchive() (config string, entries []savedEntry) {
	first, second := strings.Repeat("1", 64), strings.Repeat("2", 64)
	config = fmt.Sprintf(`{"os":"linux","architecture":"arm64","rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%[1]s"]}}`, hexOf("layer"))
	return config, []savedEntry{
		{name: first + "/VERSION", content: "1.0"},
		{name: first + "/json", content: "{}"},
		{name: first + "/layer.tar", content: "layer"},
		{name: second + "/layer.tar", to: "../" + first + "/layer.tar"},
		{name: hexOf(config) + ".json", content: config},
		{name: "manifest.json", content: fmt.Sprintf(`[{"Config":"%s.json","RepoTags":["app:1"],"Layers":["%s/layer.tar","%s/layer.tar"]}]`, hexOf(config), first, second)},
		{name: "repositories", content: "{}"},
	}
}

func TestUnpackSavedOfOlderDocker(t *testing.T) {
	config, entries := oldArchive()
	var digests []digest.Digest
	for range 2 {
		dir := t.TempDir()
		if err := unpackSaved(bytes.NewReader(archiveOf(entries...)), dir); err != nil {
			t.Fatal(err)
		}
		root, err := layoutRoot(dir, "")
		if err != nil {
			t.Fatal(err)
		}
		m, err := readManifest(dir, root)
		if err != nil {
			t.Fatal(err)
		}
		if m.Config.Digest.Encoded() != hexOf(config) || len(m.Layers) != 2 || m.Layers[1].Digest.Encoded() != hexOf("layer") || m.Layers[1].MediaType != ocispec.MediaTypeImageLayer {
			t.Errorf("manifest %+v", m)
		}
		if root.Platform == nil || root.Platform.Architecture != "arm64" {
			t.Errorf("platform %+v", root.Platform)
		}
		if _, err := contentOf(dir, root); err != nil {
			t.Error(err)
		}
		digests = append(digests, root.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("the same archive is %s and %s", digests[0], digests[1])
	}
}

func TestUnpackSavedRefuses(t *testing.T) {
	_, whole := oldArchive()
	const layer, link, config, manifest = 2, 3, 4, 5
	change := func(i int, f func(*savedEntry)) []savedEntry {
		out := append([]savedEntry{}, whole...)
		f(&out[i])
		return out
	}
	for name, c := range map[string]struct {
		entries []savedEntry
		want    string
	}{
		"nothing":          {nil, "neither an index.json nor a manifest.json"},
		"another layer":    {change(layer, func(e *savedEntry) { e.content = "other" }), "the image's configuration says sha256:" + hexOf("layer")},
		"another config":   {change(config, func(e *savedEntry) { e.content += " " }), "has the digest sha256:"},
		"no config":        {change(config, func(e *savedEntry) { e.name = "x" }), "configuration"},
		"a link outward":   {change(link, func(e *savedEntry) { e.to = "../../../etc/passwd" }), "is not in the archive"},
		"several images":   {change(manifest, func(e *savedEntry) { e.content = "[{},{}]" }), "2 images"},
		"no JSON":          {change(manifest, func(e *savedEntry) { e.content = "[" }), "reading manifest.json"},
		"too few layers":   {change(manifest, func(e *savedEntry) { e.content = fmt.Sprintf(`[{"Config":%q}]`, whole[config].name) }), "has 0 layers"},
		"endless manifest": {change(manifest, func(e *savedEntry) { e.content = strings.Repeat(" ", 64<<20) }), "more than"},
	} {
		err := unpackSaved(bytes.NewReader(archiveOf(c.entries...)), t.TempDir())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestDockerPURL(t *testing.T) {
	for in, want := range map[string]string{
		"app":                     "pkg:docker/app@latest",
		"reg.example:5000/a/b:v1": "pkg:docker/reg.example:5000/a/b@v1",
		"app@sha256:" + zeros64:   "pkg:docker/app@sha256%3A" + zeros64,
		"sha256:" + zeros64:       "pkg:docker/sha256@" + zeros64,
	} {
		if got := dockerPURL(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// What an archive holds ends up below the folder, or nowhere, and what is made
// of it is whole.
func FuzzUnpackSaved(f *testing.F) {
	_, whole := oldArchive()
	f.Add(archiveOf(whole...))
	f.Add(archiveOf(savedEntry{name: "index.json", content: `{"schemaVersion":2,"manifests":[]}`}, savedEntry{name: "../x", content: "x"}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := unpackSaved(bytes.NewReader(raw), dir); err != nil {
			return
		}
		root, err := layoutRoot(dir, "")
		if err != nil || bytes.Contains(raw, []byte("index.json")) {
			return
		}
		if _, err := contentOf(dir, root); err != nil {
			t.Error(err)
		}
	})
}
