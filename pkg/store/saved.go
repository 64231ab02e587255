package store

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// UnpackSaved makes an OCI layout in the empty folder dir of what docker save
// wrote. Docker 25 and later write one already: its blobs are checked by digest
// when they are used. Of an older archive the same image is made: its
// configuration as it is, which keeps the image's ID, and its layers, which are
// compared with what that configuration says of them. They stay uncompressed,
// so that the manifest depends on the image alone and not on a compressor.
func UnpackSaved(ctx context.Context, in io.Reader, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o700); err != nil {
		return err
	}
	spool, err := os.CreateTemp(dir, ".saved-*")
	if err != nil {
		return err
	}
	defer os.Remove(spool.Name())
	a := savedArchive{dir: dir, rest: tar.NewWriter(spool)}
	if err := errors.Join(a.sift(tar.NewReader(&cancelled{ctx, in})), spool.Close()); err != nil || a.layout {
		return err
	}
	// What an older archive has there is nobody's.
	if err := os.RemoveAll(filepath.Join(dir, "blobs")); err != nil {
		return err
	}
	return fromSaved(ctx, func() (io.ReadCloser, error) { return os.Open(spool.Name()) }, dir)
}

// savedArchive is an archive on its way: the parts of a layout go into dir, the
// rest into another archive.
type savedArchive struct {
	dir    string
	rest   *tar.Writer
	layout bool // there is an index.json
}

func (a *savedArchive) sift(r *tar.Reader) error {
	ofLayout := regexp.MustCompile(`^(index\.json|oci-layout|blobs/sha256/[0-9a-f]{64})$`)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return a.rest.Close()
		}
		if err != nil {
			return err
		}
		name := path.Clean(h.Name)
		switch regular := h.Typeflag == tar.TypeReg; {
		case regular && ofLayout.MatchString(name):
			a.layout = a.layout || name == "index.json"
			if err := a.keep(name, r); err != nil {
				return err
			}
			continue
		case regular && path.Ext(name) == ".json":
			if h.Size > attest.MaxManifest {
				return fmt.Errorf("reading %q: more than %d bytes", oneLine(name), attest.MaxManifest)
			}
		case !regular && h.Typeflag != tar.TypeSymlink:
			continue
		}
		if err := a.rest.WriteHeader(&tar.Header{Name: name, Typeflag: h.Typeflag, Linkname: h.Linkname, Size: h.Size, Mode: 0o600}); err != nil {
			return err
		}
		if _, err := io.Copy(a.rest, r); err != nil {
			return err
		}
	}
}

func (a *savedArchive) keep(name string, r io.Reader) error {
	f, err := os.Create(filepath.Join(a.dir, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// fromSaved puts the only image of an archive into a new layout.
func fromSaved(ctx context.Context, archive tarball.Opener, dir string) error {
	saved, err := tarball.LoadManifest(archive)
	if err != nil {
		return fmt.Errorf("reading manifest.json: %w", err)
	}
	if len(saved) != 1 {
		return fmt.Errorf("the archive has %d images, not one", len(saved))
	}
	id, ok := strings.CutSuffix(path.Base(saved[0].Config), ".json")
	if !ok {
		return fmt.Errorf("the image's configuration is not %q", oneLine(saved[0].Config))
	}
	img, err := tarball.Image(archive, nil)
	if err != nil {
		return fmt.Errorf("reading the image's configuration: %w", err)
	}
	raw, err := img.RawConfigFile()
	if err != nil {
		return err
	}
	config := describe(raw, types.OCIConfigJSON)
	if config.Digest.Hex != id {
		return fmt.Errorf("the image's configuration %s has the digest %s", oneLine(id), config.Digest)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("reading the image's configuration: %w", err)
	}
	if len(saved[0].Layers) != len(file.RootFS.DiffIDs) {
		return fmt.Errorf("the archive has %d layers, the image's configuration %d", len(saved[0].Layers), len(file.RootFS.DiffIDs))
	}
	l, err := openLayout(ctx, Reference{Kind: Layout, Place: dir}, Options{}, true)
	if err != nil {
		return err
	}
	manifest := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config, Layers: []v1.Descriptor{}}
	for _, id := range file.RootFS.DiffIDs {
		d, err := l.putLayer(ctx, img, id)
		if err != nil {
			return err
		}
		manifest.Layers = append(manifest.Layers, d)
	}
	if err := l.PutBlob(ctx, Blob{Descriptor: config, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(raw))), nil }}); err != nil {
		return err
	}
	made, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	d, err := l.PutManifest(ctx, manifest.MediaType, made)
	if err != nil {
		return err
	}
	d.Platform = file.Platform()
	return l.change(ctx, func(index *v1.IndexManifest) { index.Manifests = append(index.Manifests, d) })
}

// putLayer stores the layer with that diff ID as it is, uncompressed.
func (l *layout) putLayer(ctx context.Context, img v1.Image, id v1.Hash) (v1.Descriptor, error) {
	layer, err := img.LayerByDiffID(id)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading layer %s: %w", id, err)
	}
	r, err := layer.Uncompressed()
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading layer %s: %w", id, err)
	}
	defer r.Close()
	got, size, err := v1.SHA256(&cancelled{ctx, r})
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("reading layer %s: %w", id, err)
	}
	if got != id {
		return v1.Descriptor{}, fmt.Errorf("a layer has the digest %s, the image's configuration says %s", got, id)
	}
	d := v1.Descriptor{MediaType: types.OCIUncompressedLayer, Size: size, Digest: id}
	return d, l.PutBlob(ctx, Blob{Descriptor: d, Open: layer.Uncompressed})
}
