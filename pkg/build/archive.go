package build

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/pkg/attest"
)

// writeArchive writes the image root of an OCI layout as a tar archive: an OCI
// layout again, and with docker also the manifest.json that every docker load
// understands. The archive depends on the image and its names alone.
func writeArchive(w io.Writer, layout string, root ocispec.Descriptor, names []string, docker bool) error {
	tw := tar.NewWriter(w)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, n := range names {
		d := root
		d.Annotations = map[string]string{"io.containerd.image.name": fullName(n), ocispec.AnnotationRefName: tagOf(n)}
		index.Manifests = append(index.Manifests, d)
	}
	if len(names) == 0 {
		index.Manifests = []ocispec.Descriptor{root}
	}
	if err := addJSON(tw, "oci-layout", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := addJSON(tw, "index.json", index); err != nil {
		return err
	}
	if docker {
		m, err := readManifest(layout, root)
		if err != nil {
			return err
		}
		entry := dockerManifest{Config: blobPath(m.Config.Digest), RepoTags: []string{}}
		for _, n := range names {
			entry.RepoTags = append(entry.RepoTags, familiar(n))
		}
		for _, l := range m.Layers {
			entry.Layers = append(entry.Layers, blobPath(l.Digest))
		}
		if err := addJSON(tw, "manifest.json", []dockerManifest{entry}); err != nil {
			return err
		}
	}
	all, err := contentOf(layout, root)
	if err != nil {
		return err
	}
	for _, d := range all {
		if err := addBlob(tw, layout, d); err != nil {
			return fmt.Errorf("writing archive: blob %s: %w", d.Digest, err)
		}
	}
	return tw.Close()
}

type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

func addJSON(tw *tar.Writer, name string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(raw)), ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err = tw.Write(raw)
	return err
}

func addBlob(tw *tar.Writer, layout string, d ocispec.Descriptor) error {
	f, err := os.Open(filepath.Join(layout, filepath.FromSlash(blobPath(d.Digest))))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := tw.WriteHeader(&tar.Header{Name: blobPath(d.Digest), Mode: 0o644, Size: d.Size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	check := d.Digest.Verifier()
	n, err := io.Copy(io.MultiWriter(tw, check), io.LimitReader(f, d.Size))
	if err != nil {
		return err
	}
	if n != d.Size || !check.Verified() {
		return errors.New("its bytes do not have that digest")
	}
	return nil
}

// contentOf lists everything an image needs, each once, the root first. Every
// manifest is read and checked; other blobs must be there with their size.
func contentOf(layout string, root ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	var out []ocispec.Descriptor
	seen := map[digest.Digest]bool{}
	var walk func(d ocispec.Descriptor, depth int) error
	walk = func(d ocispec.Descriptor, depth int) error {
		if err := d.Digest.Validate(); err != nil {
			return err
		}
		if seen[d.Digest] {
			return nil
		}
		seen[d.Digest] = true
		out = append(out, d)
		switch d.MediaType {
		case ocispec.MediaTypeImageIndex, "application/vnd.docker.distribution.manifest.list.v2+json":
			if depth > 0 {
				return fmt.Errorf("index %s lies within an index", d.Digest)
			}
			var index ocispec.Index
			if err := readJSONBlob(layout, d, &index); err != nil {
				return err
			}
			if len(index.Manifests) > attest.MaxPlatforms {
				return fmt.Errorf("index %s has %d manifests, more than %d", d.Digest, len(index.Manifests), attest.MaxPlatforms)
			}
			for _, m := range index.Manifests {
				if err := walk(m, depth+1); err != nil {
					return err
				}
			}
		case ocispec.MediaTypeImageManifest, "application/vnd.docker.distribution.manifest.v2+json":
			m, err := readManifest(layout, d)
			if err != nil {
				return err
			}
			for _, l := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
				if err := walk(l, depth+1); err != nil {
					return err
				}
			}
		default:
			fi, err := os.Stat(filepath.Join(layout, filepath.FromSlash(blobPath(d.Digest))))
			if err != nil {
				return err
			}
			if fi.Size() != d.Size {
				return fmt.Errorf("blob %s has %d bytes, not %d", d.Digest, fi.Size(), d.Size)
			}
		}
		return nil
	}
	if err := walk(root, 0); err != nil {
		return nil, fmt.Errorf("reading the built image: %w", err)
	}
	return out, nil
}

func readManifest(layout string, d ocispec.Descriptor) (*ocispec.Manifest, error) {
	var m ocispec.Manifest
	return &m, readJSONBlob(layout, d, &m)
}

// readJSONBlob reads a manifest, index or config, checked by digest.
func readJSONBlob(layout string, d ocispec.Descriptor, v any) error {
	raw, err := readSmall(filepath.Join(layout, filepath.FromSlash(blobPath(d.Digest))), attest.MaxManifest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("blob %s is missing", d.Digest)
		}
		return err
	}
	if d.Digest.Algorithm().FromBytes(raw) != d.Digest {
		return fmt.Errorf("blob %s: its bytes do not have that digest", d.Digest)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("blob %s: %w", d.Digest, err)
	}
	return nil
}

func fullName(n string) string {
	named, err := reference.ParseNormalizedNamed(n)
	if err != nil {
		return n
	}
	return reference.TagNameOnly(named).String()
}

// tagOf is the tag of a name, "latest" when it has none.
func tagOf(n string) string {
	named, err := reference.ParseNormalizedNamed(n)
	if err != nil {
		return n
	}
	if t, ok := reference.TagNameOnly(named).(reference.Tagged); ok {
		return t.Tag()
	}
	return "latest"
}
