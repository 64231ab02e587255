package engine

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	status    = "Package: NAME\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.0\nMaintainer: M <m@example.com>\n\n"
	osRelease = "ID=debian\nVERSION_ID=\"12\"\n"
)

func pkg(name string) string { return strings.Replace(status, "NAME", name, 1) }

func file(name, text string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))}, text}
}

func link(name, to string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}, ""}
}

type entry struct {
	tar.Header
	text string
}

// image is an OCI layout being made.
type image struct {
	t   *testing.T
	dir string
	m   ocispecs.Manifest
}

func newImage(t *testing.T, layers ...[]entry) *image {
	t.Helper()
	i := &image{t: t, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(i.dir, "blobs", "sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		w := tar.NewWriter(z)
		for _, e := range l {
			if err := w.WriteHeader(&e.Header); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write([]byte(e.text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		i.m.Layers = append(i.m.Layers, ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: i.blob(b.Bytes()), Size: int64(b.Len())})
	}
	return i
}

func (i *image) blob(b []byte) digest.Digest {
	d := digest.FromBytes(b)
	if err := os.WriteFile(i.path(d), b, 0o644); err != nil {
		i.t.Fatal(err)
	}
	return d
}

func (i *image) path(d digest.Digest) string {
	return filepath.Join(i.dir, "blobs", "sha256", d.Encoded())
}

func (i *image) json(v any) digest.Digest {
	b, err := json.Marshal(v)
	if err != nil {
		i.t.Fatal(err)
	}
	return i.blob(b)
}

// manifest finishes the image.
func (i *image) manifest() string {
	config := i.json(ocispecs.Image{Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"}})
	i.m.SchemaVersion = 2
	i.m.MediaType = ocispecs.MediaTypeImageManifest
	i.m.Config = ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageConfig, Digest: config}
	return string(i.json(i.m))
}

func catalogue(t *testing.T, i *image, d, format string) (string, error) {
	t.Helper()
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	var out bytes.Buffer
	err := Catalog(context.Background(), CatalogRequest{Layout: i.dir, Digest: d, Format: format}, &out)
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	return out.String(), err
}

// An SBOM of a Helm chart said that there was nothing in it.
func TestCatalogRefusesWhatIsNoImage(t *testing.T) {
	i := newImage(t, []entry{file("app/Chart.yaml", "name: app\n")})
	i.manifest()
	i.m.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
	doc, err := catalogue(t, i, string(i.json(i.m)), "spdx")
	if err == nil || !strings.Contains(err.Error(), "not a container image") || doc != "" {
		t.Errorf("got %v and %q", err, doc)
	}
	i.m.Config.MediaType = "application/vnd.docker.container.image.v1+json"
	if _, err := catalogue(t, i, string(i.json(i.m)), "spdx"); err != nil {
		t.Errorf("a Docker image: %v", err)
	}
}

func TestCatalogLaysLayersOverEachOther(t *testing.T) {
	i := newImage(t,
		[]entry{
			file("usr/lib/os-release", osRelease), link("etc/os-release", "../usr/lib/os-release"),
			file("var/lib/dpkg/status.d/one", pkg("one")), file("var/lib/dpkg/status.d/two", pkg("two")),
			file("srv/node_modules/p/package.json", `{"name":"p","version":"1.0.0"}`),
		},
		[]entry{
			file("var/lib/dpkg/status.d/.wh.one", ""),
			file("srv/.wh..wh..opq", ""),
			file("var/lib/dpkg/status.d/three", pkg("three")),
		},
	)
	doc, err := catalogue(t, i, i.manifest(), "spdx")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"pkg:deb/debian/one@": false, "pkg:deb/debian/two@": true, "pkg:deb/debian/three@": true, "pkg:npm/p@": false} {
		if got := strings.Contains(doc, name); got != want {
			t.Errorf("%s is in the document: %v, want %v", name, got, want)
		}
	}
	var both map[string]json.RawMessage
	all, err := catalogue(t, i, i.manifest(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(all), &both); err != nil {
		t.Fatal(err)
	}
	if string(both["spdx"]) != doc || len(both["cyclonedx"]) == 0 {
		t.Error("the document alone and the one among all differ")
	}
}

func TestCatalogUnpacksNothingOutside(t *testing.T) {
	out := t.TempDir()
	i := newImage(t, []entry{
		file("etc/os-release", osRelease),
		file("../../../../../../../../../.."+out+"/dots", "x"),
		file(out+"/absolute", "x"),
		link("way", out),
		file("way/through", "x"),
		link("up", "../../../../../../../../../.."+out),
		file("up/through", "x"),
		{tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "/etc/hostname"}, ""},
		{tar.Header{Typeflag: tar.TypeChar, Name: "dev/mem", Devmajor: 1, Devminor: 1, Mode: 0o666}, ""},
		{tar.Header{Typeflag: tar.TypeReg, Name: "bin/su", Mode: 0o4755, PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "x"}}, ""},
	})
	// A hard link to what is not in the image may be refused; nothing else.
	if _, err := catalogue(t, i, i.manifest(), "spdx"); err != nil && !strings.Contains(err.Error(), "hard") && !strings.Contains(err.Error(), "hostname") {
		t.Error(err)
	}
	left, err := os.ReadDir(out)
	if err != nil || len(left) > 0 {
		t.Errorf("unpacked outside: %v, %v", left, err)
	}
}

func TestCatalogRefuses(t *testing.T) {
	good := func() *image { return newImage(t, []entry{file("etc/os-release", osRelease)}) }
	for _, tc := range []struct {
		name, want string
		make       func() (*image, string)
	}{
		{"changed layer", "another digest", func() (*image, string) {
			i := good()
			other := newImage(t, []entry{file("etc/os-release", osRelease+"X=1\n")})
			raw, err := os.ReadFile(other.path(other.m.Layers[0].Digest))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(i.path(i.m.Layers[0].Digest), raw, 0o644); err != nil {
				t.Fatal(err)
			}
			return i, i.manifest()
		}},
		{"cut layer", "unpacking layer", func() (*image, string) {
			i := good()
			if err := os.Truncate(i.path(i.m.Layers[0].Digest), 20); err != nil {
				t.Fatal(err)
			}
			return i, i.manifest()
		}},
		{"missing layer", "no such file", func() (*image, string) {
			i := good()
			if err := os.Remove(i.path(i.m.Layers[0].Digest)); err != nil {
				t.Fatal(err)
			}
			return i, i.manifest()
		}},
		{"index", "not an image manifest", func() (*image, string) {
			i := good()
			return i, string(i.json(ocispecs.Index{Manifests: []ocispecs.Descriptor{{Digest: digest.Digest(i.manifest())}}}))
		}},
		{"changed manifest", "another digest", func() (*image, string) {
			i := good()
			d := i.manifest()
			if err := os.WriteFile(i.path(digest.Digest(d)), []byte("{}"), 0o644); err != nil {
				t.Fatal(err)
			}
			return i, d
		}},
		{"many layers", "over the limit of 1024", func() (*image, string) {
			i := good()
			for range maxLayers {
				i.m.Layers = append(i.m.Layers, i.m.Layers[0])
			}
			return i, i.manifest()
		}},
		{"path for a digest", "digest", func() (*image, string) { return good(), "sha256:../../../../etc/passwd" }},
		{"other algorithm", "reading", func() (*image, string) {
			i := good()
			i.m.Layers[0].Digest = "md5:../../../x"
			return i, i.manifest()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i, d := tc.make()
			doc, err := catalogue(t, i, d, "spdx")
			if err == nil || !strings.Contains(err.Error(), tc.want) || doc != "" {
				t.Errorf("got %d bytes, %v; want an error with %q", len(doc), err, tc.want)
			}
		})
	}
}

func TestUnpackerIsBounded(t *testing.T) {
	var used int64 = maxUnpacked - 10
	l := &limited{r: strings.NewReader("eleven bytes"), used: &used}
	if _, err := l.Read(make([]byte, 100)); err == nil {
		t.Error("read over the limit")
	}
	u := unpacker{files: maxFiles}
	if _, err := u.entry(&tar.Header{Typeflag: tar.TypeReg}); err == nil {
		t.Error("one file too many was accepted")
	}
}
