package store

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
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

// savedImage is the layout of what was unpacked, its only image, read whole.
func savedImage(t *testing.T, dir string) (v1.Descriptor, *v1.Manifest) {
	t.Helper()
	ctx := t.Context()
	l := must(openLayout(ctx, parse(t, "oci:"+dir), Options{}, false))(t)
	index := must(l.index())(t)
	if len(index.Manifests) != 1 {
		t.Fatalf("the index has %d entries", len(index.Manifests))
	}
	d := index.Manifests[0]
	raw, _, err := l.Manifest(ctx, must(digest(d))(t))
	if err != nil {
		t.Fatal(err)
	}
	m := must(v1.ParseManifest(bytes.NewReader(raw)))(t)
	for _, b := range append(m.Layers, m.Config) {
		rc := must(l.Blob(ctx, must(digest(b))(t)))(t)
		if content := must(io.ReadAll(rc))(t); int64(len(content)) != b.Size || attest.DigestOf(content).Hex() != b.Digest.Hex {
			t.Errorf("blob %s has %d bytes of another digest", b.Digest, len(content))
		}
		if err := rc.Close(); err != nil {
			t.Error(err)
		}
	}
	return d, m
}

func TestUnpackSavedOfOlderDocker(t *testing.T) {
	config, entries := oldArchive()
	var digests []v1.Hash
	for range 2 {
		dir := t.TempDir()
		if err := UnpackSaved(t.Context(), bytes.NewReader(archiveOf(entries...)), dir); err != nil {
			t.Fatal(err)
		}
		root, m := savedImage(t, dir)
		if m.Config.Digest.Hex != hexOf(config) || len(m.Layers) != 2 || m.Layers[1].Digest.Hex != hexOf("layer") || m.Layers[1].MediaType != types.OCIUncompressedLayer {
			t.Errorf("manifest %+v", m)
		}
		if root.Platform == nil || root.Platform.Architecture != "arm64" {
			t.Errorf("platform %+v", root.Platform)
		}
		if left := must(filepath.Glob(filepath.Join(dir, ".saved-*")))(t); len(left) != 0 {
			t.Errorf("left behind: %s", left)
		}
		digests = append(digests, root.Digest)
	}
	if digests[0] != digests[1] {
		t.Errorf("the same archive is %s and %s", digests[0], digests[1])
	}
}

// A layer that is a link to another's file is that layer; an image may have
// none at all.
func TestUnpackSavedLinksAndNothing(t *testing.T) {
	_, entries := oldArchive()
	linked := slices.Clone(entries)
	linked[2], linked[3] = savedEntry{name: linked[2].name, to: "../" + linked[3].name}, savedEntry{name: linked[3].name, content: "layer"}
	const bare = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`
	for name, c := range map[string]struct {
		entries []savedEntry
		layers  int
	}{
		"linked": {linked, 2},
		"bare":   {[]savedEntry{{name: hexOf(bare) + ".json", content: bare}, {name: "manifest.json", content: `[{"Config":"` + hexOf(bare) + `.json"}]`}}, 0},
		// What a layout would have is not taken for a layer.
		"false blob": {append([]savedEntry{{name: "blobs/sha256/" + hexOf("layer"), content: "LAYER"}}, entries...), 2},
	} {
		dir := t.TempDir()
		if err := UnpackSaved(t.Context(), bytes.NewReader(archiveOf(c.entries...)), dir); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, m := savedImage(t, dir); len(m.Layers) != c.layers {
			t.Errorf("%s: %d layers, want %d", name, len(m.Layers), c.layers)
		}
	}
}

// A layout comes out as it went in, and nothing beside it.
func TestUnpackSavedLayout(t *testing.T) {
	dir := t.TempDir()
	index := `{"schemaVersion":2,"manifests":[]}`
	in := archiveOf(savedEntry{name: "blobs/sha256/" + hexOf("a"), content: "a"}, savedEntry{name: "../x", content: "x"}, savedEntry{name: "index.json", content: index}, savedEntry{name: "manifest.json", content: "["})
	if err := UnpackSaved(t.Context(), bytes.NewReader(in), dir); err != nil {
		t.Fatal(err)
	}
	if got := must(os.ReadFile(filepath.Join(dir, "index.json")))(t); string(got) != index {
		t.Errorf("index.json: %s", got)
	}
	if got := must(os.ReadFile(filepath.Join(dir, "blobs", "sha256", hexOf("a"))))(t); string(got) != "a" {
		t.Errorf("blob: %s", got)
	}
	if all := must(os.ReadDir(dir))(t); len(all) != 2 {
		t.Errorf("it made %s", all)
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
		"nothing":          {nil, "manifest.json not found"},
		"another layer":    {change(layer, func(e *savedEntry) { e.content = "other" }), "the image's configuration says sha256:" + hexOf("layer")},
		"another config":   {change(config, func(e *savedEntry) { e.content += " " }), "has the digest sha256:"},
		"no config":        {change(config, func(e *savedEntry) { e.name = "x" }), "configuration"},
		"a link outward":   {change(layer, func(e *savedEntry) { e.content, e.to = "", "../../../etc/passwd" }), "not found in tar"},
		"links in a ring":  {change(layer, func(e *savedEntry) { e.content, e.to = "", "../"+whole[link].name }), "link cycle"},
		"no layer":         {change(layer, func(e *savedEntry) { e.name = "x" }), "not found in tar"},
		"no such config":   {change(manifest, func(e *savedEntry) { e.content = fmt.Sprintf(`[{"Config":%q}]`, whole[layer].name) }), "configuration is not"},
		"several images":   {change(manifest, func(e *savedEntry) { e.content = "[{},{}]" }), "2 images"},
		"no JSON":          {change(manifest, func(e *savedEntry) { e.content = "[" }), "reading manifest.json"},
		"too few layers":   {change(manifest, func(e *savedEntry) { e.content = fmt.Sprintf(`[{"Config":%q}]`, whole[config].name) }), "has 0 layers"},
		"endless manifest": {change(manifest, func(e *savedEntry) { e.content = strings.Repeat(" ", 64<<20) }), "more than"},
	} {
		err := UnpackSaved(t.Context(), bytes.NewReader(archiveOf(c.entries...)), t.TempDir())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
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
		if err := UnpackSaved(t.Context(), bytes.NewReader(raw), dir); err != nil {
			return
		}
		if !bytes.Contains(raw, []byte("index.json")) {
			savedImage(t, dir)
		}
	})
}
