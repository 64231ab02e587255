package build

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/pkg/attest"
)

// unpackSaved makes an OCI layout in dir of what docker save wrote. Docker 25
// and later write one already; of an older archive the same image is made: its
// configuration as it is, which keeps the image's ID, and its layers, which are
// compared with what that configuration says of them.
func unpackSaved(in io.Reader, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	s := savedImage{dir: dir, blobs: map[string]ocispec.Descriptor{}, links: map[string]string{}}
	r := tar.NewReader(in)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := s.take(h, r); err != nil {
			return err
		}
	}
	if s.layout {
		return nil
	}
	return s.complete()
}

// savedImage is an archive on its way into a layout.
type savedImage struct {
	dir      string
	layout   bool // the archive is a layout
	manifest []byte
	blobs    map[string]ocispec.Descriptor // by name in the archive
	links    map[string]string             // a layer that is there under another name
}

// take keeps the parts that make an image, and nothing else of the archive.
func (s *savedImage) take(h *tar.Header, r io.Reader) error {
	const (
		ofLayout = `^(index\.json|oci-layout|blobs/sha256/[0-9a-f]{64})$`
		layer    = `^[0-9a-f]{64}(/layer)?\.tar$`
		config   = `^[0-9a-f]{64}\.json$`
	)
	is := func(pattern string) bool { return regexp.MustCompile(pattern).MatchString(path.Clean(h.Name)) }
	name := path.Clean(h.Name)
	switch {
	case (h.Typeflag == tar.TypeSymlink || h.Typeflag == tar.TypeLink) && is(layer):
		s.links[name] = path.Join(path.Dir(name), h.Linkname)
		if h.Typeflag == tar.TypeLink {
			s.links[name] = path.Clean(h.Linkname)
		}
	case h.Typeflag != tar.TypeReg:
	case is(ofLayout):
		s.layout = s.layout || name == "index.json"
		return writeNew(filepath.Join(s.dir, filepath.FromSlash(name)), r)
	case name == "manifest.json":
		var err error
		s.manifest, err = readAtMost(r, attest.MaxManifest)
		return err
	case is(layer), is(config):
		d, err := s.addBlob(r)
		s.blobs[name] = d
		return err
	}
	return nil
}

func writeNew(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// addBlob stores what r gives under its digest.
func (s *savedImage) addBlob(r io.Reader) (ocispec.Descriptor, error) {
	partial := filepath.Join(s.dir, "partial")
	sum, size := sha256.New(), counter{}
	if err := writeNew(partial, io.TeeReader(r, io.MultiWriter(sum, &size))); err != nil {
		return ocispec.Descriptor{}, err
	}
	d := digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum.Sum(nil)))
	return ocispec.Descriptor{Digest: d, Size: size.n}, os.Rename(partial, filepath.Join(s.dir, filepath.FromSlash(blobPath(d))))
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// complete writes the manifest and the index of an archive that has neither.
func (s *savedImage) complete() error {
	var saved []dockerManifest
	if s.manifest == nil {
		return errors.New("the archive has neither an index.json nor a manifest.json")
	}
	if err := json.Unmarshal(s.manifest, &saved); err != nil {
		return fmt.Errorf("reading manifest.json: %w", err)
	}
	if len(saved) != 1 {
		return fmt.Errorf("the archive has %d images, not one", len(saved))
	}
	config, ok := s.blobs[path.Clean(saved[0].Config)]
	if !ok {
		return fmt.Errorf("the image's configuration %q is not in the archive", saved[0].Config)
	}
	if id := strings.TrimSuffix(path.Base(saved[0].Config), ".json"); id != config.Digest.Encoded() {
		return fmt.Errorf("the image's configuration %s has the digest %s", id, config.Digest)
	}
	config.MediaType = ocispec.MediaTypeImageConfig
	var image ocispec.Image
	if err := readJSONBlob(s.dir, config, &image); err != nil {
		return err
	}
	layers, err := s.layers(saved[0].Layers, image.RootFS.DiffIDs)
	if err != nil {
		return err
	}
	manifest, err := s.addDocument(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: layers,
	})
	if err != nil {
		return err
	}
	manifest.MediaType, manifest.Platform = ocispec.MediaTypeImageManifest, &image.Platform
	index, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(s.dir, ocispec.ImageLayoutFile), version, 0o600),
		os.WriteFile(filepath.Join(s.dir, ocispec.ImageIndexFile), index, 0o600),
	)
}

// layers finds the layers by name. Each must be what the configuration, and so
// the image's ID, says.
func (s *savedImage) layers(names []string, diffIDs []digest.Digest) ([]ocispec.Descriptor, error) {
	if len(names) != len(diffIDs) {
		return nil, fmt.Errorf("the archive has %d layers, the image's configuration %d", len(names), len(diffIDs))
	}
	out := make([]ocispec.Descriptor, 0, len(names))
	for i, n := range names {
		n = path.Clean(n)
		if to, ok := s.links[n]; ok {
			n = to
		}
		d, ok := s.blobs[n]
		if !ok {
			return nil, fmt.Errorf("layer %q is not in the archive", n)
		}
		if d.Digest != diffIDs[i] {
			return nil, fmt.Errorf("layer %q has the digest %s, the image's configuration says %s", n, d.Digest, diffIDs[i])
		}
		d.MediaType = ocispec.MediaTypeImageLayer
		out = append(out, d)
	}
	return out, nil
}

func (s *savedImage) addDocument(v any) (ocispec.Descriptor, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return s.addBlob(strings.NewReader(string(raw)))
}
