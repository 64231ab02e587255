package build

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/pkg/store"

	"github.com/waxseal/waxseal/pkg/attest"
)

func emptyLayout(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func put(t *testing.T, dir string, raw []byte, mediaType string) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := os.WriteFile(filepath.Join(dir, blobPath(d.Digest)), raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestExportStoreNamesOnlyWhatHasItsDigest(t *testing.T) {
	dir := emptyLayout(t)
	s := newExportStore(dir, true)
	raw := []byte("layer")
	d := digest.FromBytes(raw)
	open := func(d digest.Digest) content.Writer {
		t.Helper()
		w, err := s.Writer(t.Context(), content.WithRef("ref"), content.WithDescriptor(ocispec.Descriptor{Digest: d, Size: int64(len(raw))}))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	for name, commit := range map[string]func(w content.Writer) error{
		"another digest": func(w content.Writer) error { return w.Commit(t.Context(), 5, digest.FromString("other")) },
		"another size":   func(w content.Writer) error { return w.Commit(t.Context(), 6, d) },
		"closed early":   func(w content.Writer) error { return errors.Join(w.Close(), errors.New("not committed")) },
		"aborted": func(w content.Writer) error {
			return errors.Join(s.Abort(t.Context(), "ref"), errors.New("not committed"))
		},
	} {
		w := open(d)
		if _, err := w.Write(raw); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Writer(t.Context(), content.WithRef("ref")); !errdefs.IsUnavailable(err) {
			t.Errorf("%s: a second writer: %v", name, err)
		}
		if commit(w) == nil {
			t.Errorf("%s: accepted", name)
		}
		left, err := os.ReadDir(filepath.Join(dir, "blobs", "sha256"))
		if err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", name, left, err)
		}
	}
	w := open(d)
	if _, err := w.Write([]byte("wrong")); err != nil {
		t.Fatal(err)
	}
	if err := w.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(t.Context(), 5, d); err != nil {
		t.Fatal(err)
	}
	if info, err := s.Info(t.Context(), d); err != nil || info.Size != 5 {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := s.Writer(t.Context(), content.WithRef("again"), content.WithDescriptor(ocispec.Descriptor{Digest: d})); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same blob again: %v", err)
	}
}

func TestInputsAreReadOnly(t *testing.T) {
	b := &blobs{layout: emptyLayout(t)}
	ctx := t.Context()
	d := digest.FromString("x")
	if _, err := b.Info(ctx, d); !errdefs.IsNotFound(err) {
		t.Errorf("info: %v", err)
	}
	if _, err := b.ReaderAt(ctx, ocispec.Descriptor{Digest: "sha256:../../../etc/passwd"}); !errdefs.IsNotFound(err) {
		t.Errorf("a digest that is a path: %v", err)
	}
	_, writeErr := b.Writer(ctx)
	_, updateErr := b.Update(ctx, content.Info{})
	for _, err := range []error{writeErr, updateErr, b.Delete(ctx, d), b.Abort(ctx, "r")} {
		if !errdefs.IsPermissionDenied(err) {
			t.Errorf("changing an input: %v", err)
		}
	}
}

func TestPickRoot(t *testing.T) {
	entry := func(tag, artifact string) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(tag), ArtifactType: artifact}
		if tag != "" {
			d.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		}
		return d
	}
	evidence := entry("e", "application/vnd.dev.sigstore.bundle.v0.3+json")
	for name, c := range map[string]struct {
		entries []ocispec.Descriptor
		tag     string
		want    string // a tag, or a part of the error after "!"
	}{
		"the only one":         {[]ocispec.Descriptor{entry("v1", ""), evidence}, "", "v1"},
		"by tag":               {[]ocispec.Descriptor{entry("v1", ""), entry("v2", "")}, "v2", "v2"},
		"latest of several":    {[]ocispec.Descriptor{entry("v1", ""), entry("latest", "")}, "", "latest"},
		"a config is no proof": {[]ocispec.Descriptor{entry("v1", ocispec.MediaTypeImageConfig)}, "", "v1"},
		"several":              {[]ocispec.Descriptor{entry("v1", ""), entry("v2", "")}, "", "!2 images"},
		"no such tag":          {[]ocispec.Descriptor{entry("v1", "")}, "v9", `!"v9"`},
		"none":                 {[]ocispec.Descriptor{evidence}, "", "!no image"},
	} {
		raw, err := json.Marshal(ocispec.Index{Manifests: c.entries})
		if err != nil {
			t.Fatal(err)
		}
		got, err := pickRoot(raw, "dir", c.tag)
		if sign, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), sign) {
				t.Errorf("%s: %v, want %q in it", name, err, sign)
			}
		} else if err != nil || got.Digest != digest.FromString(c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzPickRoot(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:`+zeros64+`","size":1}]}`), "latest")
	f.Add([]byte(`{"manifests":[{"digest":"sha256:../x"}]}`), "")
	f.Fuzz(func(t *testing.T, raw []byte, tag string) {
		if d, err := pickRoot(raw, "dir", tag); err == nil && d.Digest.Validate() != nil {
			t.Errorf("digest %q", d.Digest)
		}
	})
}

// image puts an image of one layer into a layout.
func image(t *testing.T, dir string) ocispec.Descriptor {
	t.Helper()
	layer := put(t, dir, []byte("layer"), ocispec.MediaTypeImageLayerGzip)
	config := put(t, dir, []byte(`{"os":"linux","architecture":"amd64"}`), ocispec.MediaTypeImageConfig)
	raw, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	return put(t, dir, raw, ocispec.MediaTypeImageManifest)
}

func TestArchiveIsALayoutAgain(t *testing.T) {
	dir := emptyLayout(t)
	root := image(t, dir)
	var first, second bytes.Buffer
	for _, b := range []*bytes.Buffer{&first, &second} {
		if err := writeArchive(b, dir, root, []string{"app:1"}, true); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same image gives two archives")
	}
	out := t.TempDir()
	if err := store.UnpackSaved(t.Context(), bytes.NewReader(first.Bytes()), out); err != nil {
		t.Fatal(err)
	}
	got, err := layoutRoot(out, "1")
	if err != nil || got.Digest != root.Digest {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := contentOf(out, got); err != nil {
		t.Error(err)
	}
	tr, err := readTar(t, first.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if m := contentOfEntry(t, tr, "manifest.json"); !strings.Contains(m, `"RepoTags":["app:1"]`) {
		t.Errorf("manifest.json: %s", m)
	}
}

func TestContentOfChecksWhatItReads(t *testing.T) {
	dir := emptyLayout(t)
	root := image(t, dir)
	m, err := readManifest(dir, root)
	if err != nil {
		t.Fatal(err)
	}
	layer := filepath.Join(dir, blobPath(m.Layers[0].Digest))
	if err := os.WriteFile(layer, []byte("lay"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := contentOf(dir, root); err == nil || !strings.Contains(err.Error(), "3 bytes, not 5") {
		t.Errorf("a cut layer: %v", err)
	}
	if err := os.WriteFile(layer, []byte("LAYER"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeArchive(io.Discard, dir, root, nil, false); err == nil || !strings.Contains(err.Error(), "do not have that digest") {
		t.Errorf("a changed layer: %v", err)
	}
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	if _, err := contentOf(dir, root); err == nil {
		t.Error("a missing layer: accepted")
	}
	manifest := filepath.Join(dir, blobPath(root.Digest))
	if err := os.WriteFile(manifest, []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := contentOf(dir, root); err == nil || !strings.Contains(err.Error(), "do not have that digest") {
		t.Errorf("a changed manifest: %v", err)
	}
}

func TestOutFolderIsWholeOrNotThere(t *testing.T) {
	parent := t.TempDir()
	name := filepath.Join(parent, "out")
	o, err := newOutFolder(name)
	if err != nil {
		t.Fatal(err)
	}
	o.abandon()
	if left, _ := os.ReadDir(parent); len(left) != 0 {
		t.Errorf("abandoned, and left %v", left)
	}
	for _, content := range []string{"first", "second"} {
		o, err := newOutFolder(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(o.write([]byte(content), "file"), o.write([]byte(`{"waxseal.schema":"`+folderSchema+`"}`), "metadata.json"), o.finish()); err != nil {
			t.Fatal(err)
		}
		if raw, err := os.ReadFile(filepath.Join(name, "file")); err != nil || string(raw) != content {
			t.Errorf("got %q, %v", raw, err)
		}
		o.abandon()
	}
	if left, _ := os.ReadDir(parent); len(left) != 1 {
		t.Errorf("left %v", left)
	}
	somebodys := folder(t, map[string]string{"thesis.txt": "years of work"})
	if _, err := newOutFolder(somebodys); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("somebody's folder: %v", err)
	}
}

func TestLocalOutputJoinsWhatIsThere(t *testing.T) {
	dir := folder(t, map[string]string{"dst/a": "old", "dst/d/kept": "kept", "dst/was-file": "f", "src/a": "new", "src/d/b": "b", "src/was-file/x": "x"})
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	if err := (move{src, dst, true}).do(); err != nil {
		t.Fatal(err)
	}
	tr := walked(t, dst, "")
	if got, want := paths(tr), "a d d/b d/kept was-file was-file/x"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if contentOfEntry(t, tr, "a") != "new" {
		t.Error("an old file was kept")
	}
	if _, err := os.Stat(src); err == nil {
		t.Error("the temporary folder is still there")
	}
}

func TestPlacesOfAnImage(t *testing.T) {
	for name, c := range map[string]struct {
		req  Request
		want string
	}{
		"nothing asked for": {Request{Image: Image{Tags: []string{"web", "r.example:5000/a/b:2", "web:2"}}},
			"oci:home/web [latest 2] oci:home/r.example~5000+a+b [2]"},
		"no tag":     {Request{}, "oci:home/untagged []"},
		"push":       {Request{Image: Image{Tags: []string{"r.example/a:1"}}, Outputs: []Output{{Kind: OutputImage, Push: true}}}, "r.example/a [1]"},
		"digest":     {Request{Outputs: []Output{{Kind: OutputImage, Push: true, PushByDigest: true, Names: []string{"r.example/a"}}}}, "r.example/a []"},
		"folder":     {Request{Image: Image{Tags: []string{"a:1"}}, Outputs: []Output{{Kind: OutputOCI, Dest: "out"}}}, "oci:out [1]"},
		"docker":     {Request{Image: Image{Tags: []string{"a:1"}}, Outputs: []Output{{Kind: OutputDocker, Tar: true}}}, "oci:home/a [1]"},
		"unsigned":   {Request{Image: Image{Tags: []string{"a:1"}}, Seal: Seal{Unsigned: true}, Outputs: []Output{{Kind: OutputDocker, Tar: true}}}, ""},
		"files only": {Request{Outputs: []Output{{Kind: OutputLocal, Dest: "d"}}}, "oci:home/untagged []"},
		"local name": {Request{Outputs: []Output{{Kind: OutputImage, Names: []string{"x:3"}}}}, "oci:home/x [3]"},
	} {
		places, err := publications(&c.req, "home")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got []string
		for _, p := range places {
			got = append(got, p.to.String()+" ["+strings.Join(p.tags, " ")+"]")
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: got %s, want %s", name, s, c.want)
		}
	}
}

func TestCheckSyntax(t *testing.T) {
	for in, ok := range map[string]bool{
		"": true, "docker/dockerfile:1": true, "docker.io/docker/dockerfile:1.7-labs": true,
		"docker/dockerfile@" + string(attest.DigestOf(nil)): true, "docker/dockerfile-upstream:master": true,
		"docker/dockerfile-x": false, "evil.example/docker/dockerfile:1": false, "tonistiigi/hlb": false, "::": false,
	} {
		if err := checkSyntax(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
	if got := syntaxOf([]byte("# syntax = docker/dockerfile:1\nFROM scratch")); got != "docker/dockerfile:1" {
		t.Errorf("got %q", got)
	}
}
