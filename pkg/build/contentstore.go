package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/waxseal/waxseal/pkg/attest"
)

// blob is one piece of content that the engine may ask for.
type blob interface {
	open() (content.ReaderAt, error)
	length() (int64, error)
}

// blobs is what the engine may read of the client: content by digest, and
// nothing else. It cannot be written to.
type blobs struct {
	content.IngestManager // nil: never asked for on a read-only store
	known                 map[digest.Digest]blob
	layout                string // an OCI layout to look into as well
}

func (b *blobs) find(d digest.Digest) (blob, error) {
	if k, ok := b.known[d]; ok {
		return k, nil
	}
	if b.layout != "" && d.Validate() == nil {
		return fileBlob(filepath.Join(b.layout, "blobs", d.Algorithm().String(), d.Encoded())), nil
	}
	return nil, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
}

// Info says how large a blob is.
func (b *blobs) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	k, err := b.find(d)
	if err != nil {
		return content.Info{}, err
	}
	n, err := k.length()
	if errors.Is(err, fs.ErrNotExist) {
		return content.Info{}, fmt.Errorf("content %s: %w", d, errdefs.ErrNotFound)
	}
	return content.Info{Digest: d, Size: n}, err
}

// ReaderAt opens a blob.
func (b *blobs) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	k, err := b.find(desc.Digest)
	if err != nil {
		return nil, err
	}
	r, err := k.open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("content %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return r, err
}

var errReadOnly = fmt.Errorf("build inputs are read-only: %w", errdefs.ErrPermissionDenied)

// The rest of content.Store changes things, and is refused.

func (b *blobs) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, errReadOnly
}
func (b *blobs) Walk(context.Context, content.WalkFunc, ...string) error { return nil }
func (b *blobs) Delete(context.Context, digest.Digest) error             { return errReadOnly }
func (b *blobs) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, errReadOnly
}
func (b *blobs) Status(context.Context, string) (content.Status, error) {
	return content.Status{}, errReadOnly
}
func (b *blobs) ListStatuses(context.Context, ...string) ([]content.Status, error) { return nil, nil }
func (b *blobs) Abort(context.Context, string) error                               { return errReadOnly }

type memoryBlob []byte

func (m memoryBlob) length() (int64, error) { return int64(len(m)), nil }
func (m memoryBlob) open() (content.ReaderAt, error) {
	return memoryReader{bytes.NewReader(m)}, nil
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

type layerBlob struct{ *layer }

func (l layerBlob) length() (int64, error)          { return l.size, nil }
func (l layerBlob) open() (content.ReaderAt, error) { return l.reader(), nil }

type fileBlob string

func (f fileBlob) length() (int64, error) {
	fi, err := os.Stat(string(f))
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f fileBlob) open() (content.ReaderAt, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, err
	}
	fi, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, err
	}
	return fileReader{file, fi.Size()}, nil
}

type fileReader struct {
	*os.File
	size int64
}

func (f fileReader) Size() int64 { return f.size }

// The platform a packed context claims. A context has none, but the engine
// takes an image only for a platform; one fixed name keeps the digest the same
// on every machine.
const contextOS, contextArch = "linux", "amd64"

// imageOf wraps a context's layer into the smallest image that an engine
// accepts as an OCI layout source, and returns that image's digest.
func (b *blobs) imageOf(l *layer) (digest.Digest, error) {
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: contextOS, Architecture: contextArch},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.Digest(l.digest)}},
	})
	if err != nil {
		return "", err
	}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.Digest(l.digest), Size: l.size}},
	})
	if err != nil {
		return "", err
	}
	if b.known == nil {
		b.known = map[digest.Digest]blob{}
	}
	d := digest.FromBytes(manifest)
	b.known[d] = memoryBlob(manifest)
	b.known[digest.FromBytes(config)] = memoryBlob(config)
	b.known[digest.Digest(l.digest)] = layerBlob{l}
	return d, nil
}

// layoutRoot reads index.json of an OCI layout and returns the one entry that
// tag names; with no tag, the only one or the one tagged "latest".
func layoutRoot(dir, tag string) (ocispec.Descriptor, error) {
	raw, err := readSmall(filepath.Join(dir, "index.json"), attest.MaxManifest)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: there is no index.json in it", dir)
		}
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: %w", dir, err)
	}
	return pickRoot(raw, dir, tag)
}

// pickRoot chooses from the bytes of an index.json.
func pickRoot(raw []byte, dir, tag string) (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := attest.UnmarshalStrict(raw, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: index.json: %w", dir, err)
	}
	var images, tagged []ocispec.Descriptor
	for _, d := range index.Manifests {
		if (d.ArtifactType != "" && d.ArtifactType != ocispec.MediaTypeImageConfig && !strings.Contains(d.ArtifactType, "vnd.docker.container.image")) || d.Annotations["vnd.docker.reference.type"] != "" {
			continue // evidence, not an image
		}
		images = append(images, d)
		want := tag
		if want == "" {
			want = "latest"
		}
		name := d.Annotations[ocispec.AnnotationRefName]
		if name == want || d.Annotations["io.containerd.image.name"] == want {
			tagged = append(tagged, d)
		}
	}
	switch {
	case len(tagged) == 1:
		return checkRoot(tagged[0], dir)
	case tag != "" && len(tagged) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: no image is tagged %q in it", dir, tag)
	case tag == "" && len(images) == 1:
		return checkRoot(images[0], dir)
	case len(images) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: there is no image in it", dir)
	default:
		return ocispec.Descriptor{}, fmt.Errorf("reading OCI layout %q: %d images are in it; name one by tag or digest, as oci:%s:TAG", dir, len(images), dir)
	}
}

func checkRoot(d ocispec.Descriptor, dir string) (ocispec.Descriptor, error) {
	if err := d.Digest.Validate(); err != nil {
		return d, fmt.Errorf("reading OCI layout %q: index.json: digest %q: %w", dir, d.Digest, err)
	}
	return d, nil
}
