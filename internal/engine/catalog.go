package engine

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/catalog"
)

// Bounds of what an image may unpack to. They are far beyond real images and
// keep a hostile one from filling a disk or running for ever.
const (
	maxLayers   = 1024
	maxUnpacked = 64 << 30 // bytes
	maxFiles    = 8 << 20
)

// CatalogRequest is what Catalog needs to know.
type CatalogRequest struct {
	Layout string // folder of an OCI layout
	Digest string // of an image manifest in it
	Format string // one document as it is; "" is all, in one JSON object
	Epoch  string // the documents' time; default the image's own
	Name   string // what the documents call the image
	// Lifetime: file descriptor 3 is a pipe that ends with who asked.
	Lifetime bool
}

// Catalog writes the SBOM documents of an image in an OCI layout. It unpacks
// the image into a temporary folder, needs no root, and runs nothing of it.
func Catalog(ctx context.Context, req CatalogRequest, out io.Writer) (err error) {
	if req.Lifetime {
		life, err := inherited(fdControl, "lifetime pipe")
		if err != nil {
			return err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		go func() {
			_, _ = io.Copy(io.Discard, life)
			cancel()
		}()
	}
	d, err := attest.ParseDigest(req.Digest)
	if err != nil {
		return err
	}
	l := layout(req.Layout)
	var m ocispecs.Manifest
	if err := l.readJSON(digest.Digest(d), &m); err != nil {
		return err
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("reading image %s: %d layers, over the limit of %d", d, len(m.Layers), maxLayers)
	}
	if m.Config.Digest == "" {
		return fmt.Errorf("reading image %s: not an image manifest (an index has one for each platform)", d)
	}
	// Of a chart or another artifact the answer would be that nothing is in it.
	if t := m.Config.MediaType; t != ocispecs.MediaTypeImageConfig && t != images.MediaTypeDockerSchema2Config {
		return fmt.Errorf("reading image %s: not a container image: its configuration is of type %q", d, t)
	}
	var config ocispecs.Image
	if err := l.readJSON(m.Config.Digest, &config); err != nil {
		return err
	}
	opts := catalog.Options{Epoch: req.Epoch, Name: req.Name, Digest: d, Architecture: config.Architecture}
	if req.Format != "" {
		opts.Formats = []string{req.Format}
	}
	if opts.Epoch == "" && config.Created != nil && config.Created.Unix() > 0 {
		opts.Epoch = strconv.FormatInt(config.Created.Unix(), 10)
	}
	if err := opts.Validate(); err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "waxseal-catalog-")
	if err != nil {
		return fmt.Errorf("making a temporary folder: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	u := unpacker{root: root}
	for _, layer := range m.Layers {
		if err := u.apply(ctx, l, layer.Digest); err != nil {
			return fmt.Errorf("unpacking layer %s: %w", layer.Digest, err)
		}
	}
	var c catalog.Catalog
	docs, err := c.Rootfs(ctx, root, opts)
	if err != nil {
		return err
	}
	if req.Format != "" {
		_, err = out.Write(docs[req.Format])
		return err
	}
	all := make(map[string]json.RawMessage, len(docs))
	for f, doc := range docs {
		all[f] = doc
	}
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false) // the documents come out byte for byte
	return enc.Encode(all)
}

// layout is the folder of an OCI layout.
type layout string

func (l layout) open(d digest.Digest) (*os.File, error) {
	if err := d.Validate(); err != nil {
		return nil, fmt.Errorf("reading a blob: %w", err)
	}
	return os.Open(filepath.Join(string(l), "blobs", d.Algorithm().String(), d.Encoded()))
}

func (l layout) readJSON(d digest.Digest, v any) error {
	f, err := l.open(d)
	if err != nil {
		return fmt.Errorf("reading image %s: %w", d, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, attest.MaxManifest+1))
	if err != nil {
		return fmt.Errorf("reading image %s: %w", d, err)
	}
	if len(b) > attest.MaxManifest {
		return fmt.Errorf("reading image %s: over the limit of %d bytes", d, attest.MaxManifest)
	}
	if d.Algorithm().FromBytes(b) != d {
		return fmt.Errorf("reading image %s: the content has another digest", d)
	}
	if err := attest.UnmarshalStrict(b, v); err != nil {
		return fmt.Errorf("reading image %s: %w", d, err)
	}
	return nil
}

// unpacker lays layers over each other within bounds.
type unpacker struct {
	root  string
	bytes int64
	files int
}

func (u *unpacker) apply(ctx context.Context, l layout, d digest.Digest) error {
	f, err := l.open(d)
	if err != nil {
		return err
	}
	defer f.Close()
	verifier := d.Verifier()
	blob := io.TeeReader(f, verifier)
	stream, err := compression.DecompressStream(blob)
	if err != nil {
		return err
	}
	defer stream.Close()
	if _, err := archive.Apply(ctx, u.root, &limited{r: stream, used: &u.bytes}, archive.WithNoSameOwner(), archive.WithFilter(u.entry)); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, blob); err != nil {
		return err
	}
	if !verifier.Verified() {
		return errors.New("the content has another digest")
	}
	return nil
}

// entry keeps what a catalog reads, readable for who unpacks it: no devices,
// no foreign owners, no capabilities.
func (u *unpacker) entry(h *tar.Header) (bool, error) {
	if u.files++; u.files > maxFiles {
		return false, fmt.Errorf("more than %d files", maxFiles)
	}
	h.PAXRecords = nil
	h.ModTime, h.AccessTime, h.ChangeTime = time.Unix(0, 0), time.Time{}, time.Time{}
	switch h.Typeflag {
	case tar.TypeDir:
		h.Mode = 0o700 | h.Mode&0o077
	case tar.TypeReg:
		h.Mode = 0o600 | h.Mode&0o177
	case tar.TypeSymlink, tar.TypeLink:
	default:
		return false, nil
	}
	return true, nil
}

// limited fails once more than maxUnpacked bytes came through all readers that
// share used.
type limited struct {
	r    io.Reader
	used *int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if *l.used += int64(n); *l.used > maxUnpacked {
		return 0, fmt.Errorf("more than %d bytes unpacked", int64(maxUnpacked))
	}
	return n, err
}
