package build

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// exported builds and returns the manifest in the layout that came of it.
func exported(t *testing.T, c *client.Client, b buildOf, attrs map[string]string) (string, digest.Digest, ocispecs.Manifest) {
	t.Helper()
	dir := t.TempDir()
	attrs["tar"] = "false"
	b.export = []client.ExportEntry{{Type: client.ExporterOCI, Attrs: attrs, OutputDir: dir}}
	if _, err := b.solve(t.Context(), t, c); err != nil {
		t.Fatal(err)
	}
	var ix ocispecs.Index
	readJSON(t, filepath.Join(dir, "index.json"), &ix)
	d := ix.Manifests[0].Digest
	var m ocispecs.Manifest
	readJSON(t, blobIn(dir, d), &m)
	return dir, d, m
}

func blobIn(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", "sha256", d.Encoded())
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

// entries reads a gzipped layer, checking its digest and its diff ID.
func entries(t *testing.T, dir string, d, diffID digest.Digest) map[string]*tar.Header {
	t.Helper()
	raw, err := os.Open(blobIn(dir, d))
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	whole, plain := d.Verifier(), diffID.Verifier()
	blob := io.TeeReader(raw, whole)
	z, err := gzip.NewReader(blob)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]*tar.Header{}
	content := io.TeeReader(z, plain)
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found[strings.TrimSuffix(h.Name, "/")] = h
	}
	for _, r := range []io.Reader{content, blob} {
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Fatal(err)
		}
	}
	if !whole.Verified() || !plain.Verified() {
		t.Errorf("layer %s has another digest or diff ID", d)
	}
	return found
}

func TestLayersAreClampedOnceAndKept(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	base := tinyBase(t)
	b := buildOf{
		dockerfile: "FROM base\nRUN echo new > /new && touch -d '2001-01-01 00:00:00' /old && touch -d '2020-01-01 00:00:00' /late\nRUN mkdir /more\n",
		base:       base,
		attrs:      map[string]string{"build-arg:SOURCE_DATE_EPOCH": "1100000000"},
	}
	clamp := func() map[string]string { return map[string]string{"rewrite-timestamp": "true"} }
	cache := t.TempDir()
	var first digest.Digest
	for i, prepare := range []func(){
		func() {},
		func() {}, // nothing changed
		func() { // what is remembered is spoilt
			if err := os.WriteFile(filepath.Join(cache, "layers.json"), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		func() { cache = t.TempDir() }, // another cache
	} {
		prepare()
		e := startEngine(t, EngineOptions{CacheDir: cache})
		dir, d, m := exported(t, dial(t, e), b, clamp())
		if i == 0 {
			first = d
		} else if d != first {
			t.Errorf("build %d gives %s, the first gave %s", i, d, first)
		}
		var config ocispecs.Image
		readJSON(t, blobIn(dir, m.Config.Digest), &config)
		if len(m.Layers) != 3 || len(config.RootFS.DiffIDs) != 3 {
			t.Fatalf("the image has %d layers", len(m.Layers))
		}
		var of ocispecs.Manifest
		_, baseDigest := layoutStore(t, base)
		readJSON(t, blobIn(base, digest.Digest(baseDigest)), &of)
		if m.Layers[0].Digest != of.Layers[0].Digest {
			t.Error("the base image's layer was changed")
		}
		files := entries(t, dir, m.Layers[1].Digest, config.RootFS.DiffIDs[1])
		for name, want := range map[string]int64{"new": 1100000000, "late": 1100000000, "old": time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC).Unix()} {
			if h := files[name]; h == nil || h.ModTime.Unix() != want {
				t.Errorf("%s is %+v, want it at %d", name, h, want)
			}
		}
		if h := entries(t, dir, m.Layers[2].Digest, config.RootFS.DiffIDs[2])["more"]; h == nil || h.ModTime.Unix() != 1100000000 {
			t.Errorf("more is %+v", h)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}

	// The same cache serves exports of other kinds.
	e := startEngine(t, EngineOptions{CacheDir: cache})
	c := dial(t, e)
	for _, tc := range []struct {
		attrs map[string]string
		want  string
	}{
		{map[string]string{}, ocispecs.MediaTypeImageLayerGzip},
		{map[string]string{"compression": "zstd", "rewrite-timestamp": "true"}, ocispecs.MediaTypeImageLayerZstd},
		{map[string]string{"compression": "gzip", "compression-level": "1", "rewrite-timestamp": "true"}, ocispecs.MediaTypeImageLayerGzip},
		{map[string]string{"compression": "uncompressed", "force-compression": "true"}, ocispecs.MediaTypeImageLayer},
	} {
		_, _, m := exported(t, c, b, tc.attrs)
		kinds := []string{m.Layers[1].MediaType, m.Layers[2].MediaType}
		if !slices.Equal(kinds, []string{tc.want, tc.want}) {
			t.Errorf("with %v the layers are %q, want %q", tc.attrs, kinds, tc.want)
		}
	}
	// Another time is another layer.
	b.attrs = map[string]string{"build-arg:SOURCE_DATE_EPOCH": "1200000000"}
	if _, d, _ := exported(t, c, b, clamp()); d == first {
		t.Error("another SOURCE_DATE_EPOCH gives the same image")
	}
}
