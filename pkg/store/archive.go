package store

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	cosigntypes "github.com/sigstore/cosign/v2/pkg/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// What marks the two manifests that an archive has beside the image's own, both
// without a subject: what else it holds, and whom to trust.
const (
	archiveType = "application/vnd.waxseal.archive.v1+json"
	trustType   = "application/vnd.waxseal.trust.v1+json"

	archiveImage  = "dev.waxseal.archive.image"  // the reference that was exported
	archiveLayers = "dev.waxseal.archive.layers" // "all" or "none"
	trustRole     = "dev.waxseal.trust.role"
	trustNamedBy  = "dev.waxseal.trust.named-by"
	fileTitle     = "org.opencontainers.image.title"

	trustMediaType = "application/octet-stream"
)

// TrustFile is one file of whom to trust, that an archive carries along.
type TrustFile struct {
	Role    string        // "policy", "extends", "key" or "root"
	Name    string        // as who names it does
	NamedBy attest.Digest // the policy that names it; "" where the command line did
	Raw     []byte
}

// ArchiveOptions configures WriteArchive; the zero value packs everything.
type ArchiveOptions struct {
	NoLayers    bool        // leave the layers out: enough for a verdict
	Trust       []TrustFile // carried along, believed only by who asks for it by digest
	Compression string      // "", "gzip" or "zstd"
	// Progress is called with the bytes of layers that have been written.
	Progress func(n int64)
}

// Archived is what WriteArchive has written, or what an archive says it is.
type Archived struct {
	Image     string        `json:"image"` // the reference that was exported, NOT verified
	Digest    attest.Digest `json:"digest"`
	Platforms []string      `json:"platforms"`
	Layers    string        `json:"layers"` // "all" or "none"
	// Evidence counts what is attached, and Files what so far is a file or a note
	// only, about the image or a commit.
	Evidence int `json:"evidence"`
	Files    int `json:"files"`
	// Trust is the digest by which the policy, keys and roots inside are asked
	// for; "" when there are none.
	Trust      attest.Digest `json:"trust,omitempty"`
	TrustFiles []string      `json:"trustFiles,omitempty"`
}

// WriteArchive writes the image that src was opened for into one file: an OCI
// layout in a tar, which other tools read as one, with the platforms, what is
// attached, and in two manifests more the evidence in files and notes and whom
// to trust. The same content gives the same bytes. Layers stream through;
// nothing else of the image is kept in memory whole.
func WriteArchive(ctx context.Context, src Repo, from Reference, w io.Writer, opts ArchiveOptions) (*Archived, error) {
	dir, err := os.MkdirTemp("", "waxseal-archive-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out, err := writeArchive(ctx, src, from, w, dir, opts)
	if err != nil {
		return nil, fmt.Errorf("archiving %q: %w", from, err)
	}
	return out, nil
}

func writeArchive(ctx context.Context, src Repo, from Reference, w io.Writer, dir string, opts ArchiveOptions) (*Archived, error) {
	top, err := src.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	l, err := openLayout(ctx, Reference{Kind: Layout, Place: filepath.Join(dir, "layout")}, Options{}, true)
	if err != nil {
		return nil, err
	}
	c := &copier{src: src, dst: l, opts: CopyOptions{Evidence: true}, archive: &layersAside{}}
	if err := c.copy(ctx, top); err != nil {
		return nil, err
	}
	if err := Tag(ctx, l, from.Tag, top); err != nil {
		return nil, err
	}
	out := &Archived{Image: from.String(), Digest: attest.Digest(top.Digest.String()), Layers: "all", Evidence: c.archive.evidence}
	if opts.NoLayers {
		out.Layers, c.archive.layers = "none", nil
	}
	platforms, err := Platforms(ctx, src, top)
	if err != nil {
		return nil, err
	}
	about := []attest.Digest{out.Digest}
	out.Platforms = []string{}
	for _, p := range platforms {
		out.Platforms = append(out.Platforms, p.Name)
		about = append(about, attest.Digest(p.Descriptor.Digest.String()))
	}
	if err := out.addTrust(ctx, l, opts.Trust); err != nil {
		return nil, err
	}
	files, err := looseEvidence(ctx, src, about)
	if err != nil {
		return nil, err
	}
	if err := out.addFiles(ctx, l, files); err != nil {
		return nil, err
	}
	return out, packed(ctx, src, l, c.archive.layers, w, opts)
}

// layersAside is what a copier leaves for later, and counts.
type layersAside struct {
	layers   []v1.Descriptor
	evidence int
}

// looseEvidence is what is said about the digests, and about the commits they
// name, in files and notes.
func looseEvidence(ctx context.Context, src Repo, about []attest.Digest) (map[attest.Digest][]byte, error) {
	out, sum := map[attest.Digest][]byte{}, 0
	commits := map[gitID]bool{}
	keep := func(p Piece, binds func(*attest.Statement) bool) error {
		if p.Raw == nil || p.Source != SourceFile && p.Source != SourceNotes {
			return nil
		}
		if st := statementOf(p.Raw); st != nil && !binds(st) {
			return nil
		}
		if out[p.Digest] == nil {
			out[p.Digest] = p.Raw
			sum += len(p.Raw)
		}
		if sum > attest.MaxEvidenceSum || len(out) > attest.MaxEvidence {
			return &tooMuch{string(about[0])}
		}
		return nil
	}
	for _, d := range about {
		pieces, err := src.Evidence(ctx, d)
		if err != nil {
			return nil, err
		}
		c := &collector{about: d, pieces: pieces}
		var ok bool
		if c.source, ok = src.(source); !ok {
			return nil, errors.New("the place cannot be searched")
		}
		named, _, err := c.commits(ctx)
		if err != nil {
			return nil, err
		}
		for _, commit := range named {
			commits[commit] = true
		}
		for _, found := range pieces {
			for _, p := range found.everywhere() {
				if err := keep(p, func(st *attest.Statement) bool { return st.Binds(d) }); err != nil {
					return nil, err
				}
			}
		}
	}
	lister, ok := src.(CommitEvidenceLister)
	if !ok {
		return out, nil
	}
	for commit := range commits {
		pieces, err := lister.CommitEvidence(ctx, string(commit))
		if err != nil {
			return nil, err
		}
		for _, p := range pieces {
			if err := keep(p, func(st *attest.Statement) bool { return bindsCommit(st, commit) }); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func bindsCommit(st *attest.Statement, commit gitID) bool {
	return slices.ContainsFunc(st.Subject, func(s attest.Subject) bool {
		return s.Digest["gitCommit"] == string(commit) || s.Digest["sha1"] == string(commit)
	})
}

// addTrust stores whom to trust, under a digest of its own.
func (a *Archived) addTrust(ctx context.Context, l *layout, files []TrustFile) error {
	if len(files) == 0 {
		return nil
	}
	var layers []v1.Descriptor
	for _, f := range files {
		b := bytesBlob(f.Raw, trustMediaType)
		if err := l.PutBlob(ctx, b); err != nil {
			return err
		}
		b.Descriptor.Annotations = map[string]string{trustRole: f.Role, fileTitle: f.Name}
		if f.NamedBy != "" {
			b.Descriptor.Annotations[trustNamedBy] = string(f.NamedBy)
		}
		layers = append(layers, b.Descriptor)
		a.TrustFiles = append(a.TrustFiles, f.Role+" "+f.Name)
	}
	desc, err := l.artifact(ctx, trustType, layers, nil)
	if err != nil {
		return err
	}
	a.Trust = attest.Digest(desc.Digest.String())
	return nil
}

// addFiles stores what else there is, and what the archive is.
func (a *Archived) addFiles(ctx context.Context, l *layout, files map[attest.Digest][]byte) error {
	layers := []v1.Descriptor{}
	for _, d := range sortedKeys(files) {
		mediaType := types.MediaType("application/json")
		if b, err := attest.ParseBundle(files[d]); err == nil {
			mediaType = attest.BundleMediaType
			if b.Bare() {
				mediaType = cosigntypes.DssePayloadType
			}
		}
		name := "evidence/" + d.Hex()[:16] + ".json"
		if _, err := attest.SplitOCSP(files[d]); err == nil {
			mediaType, name = attest.OCSPMediaType, StapleFile(name)
		}
		b := bytesBlob(files[d], mediaType)
		if err := l.PutBlob(ctx, b); err != nil {
			return err
		}
		b.Descriptor.Annotations = map[string]string{fileTitle: name}
		layers = append(layers, b.Descriptor)
	}
	a.Files = len(layers)
	_, err := l.artifact(ctx, archiveType, layers, map[string]string{archiveImage: a.Image, archiveLayers: a.Layers})
	return err
}

func sortedKeys[V any](m map[attest.Digest]V) []attest.Digest {
	keys := make([]attest.Digest, 0, len(m))
	for d := range m {
		keys = append(keys, d)
	}
	slices.Sort(keys)
	return keys
}

// artifact stores a manifest that is no image and has no subject.
func (l *layout) artifact(ctx context.Context, artifactType string, layers []v1.Descriptor, annotations map[string]string) (v1.Descriptor, error) {
	config := bytesBlob([]byte("{}"), emptyMediaType)
	if err := l.PutBlob(ctx, config); err != nil {
		return v1.Descriptor{}, err
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Config: config.Descriptor, Layers: layers, Annotations: annotations,
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	desc, err := l.PutManifest(ctx, types.OCIManifestSchema1, raw)
	if err != nil {
		return desc, err
	}
	entry := desc
	entry.ArtifactType = artifactType
	return desc, l.change(ctx, func(index *v1.IndexManifest) { index.Manifests = append(index.Manifests, entry) })
}

// packed writes the layout and the layers as a tar.
func packed(ctx context.Context, src Repo, l *layout, layers []v1.Descriptor, w io.Writer, opts ArchiveOptions) error {
	z, err := compressor(w, opts.Compression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	if err := packLayout(l, t); err != nil {
		return err
	}
	slices.SortFunc(layers, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	layers = slices.CompactFunc(layers, func(a, b v1.Descriptor) bool { return a.Digest == b.Digest })
	for _, d := range layers {
		if there, err := l.hasBlob(ctx, d); there || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		if err := packBlob(ctx, src, d, t, opts.Progress); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

func compressor(w io.Writer, how string) (io.WriteCloser, error) {
	switch how {
	case "":
		return nopCloser{w}, nil
	case "gzip":
		return gzip.NewWriter(w), nil
	case "zstd":
		// With several goroutines the bytes would depend on the machine.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	}
	return nil, fmt.Errorf("unknown compression %q", how)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// header is the same for every machine and moment.
func header(name string, size int64) *tar.Header {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}
	if strings.HasSuffix(name, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	return h
}

// packLayout writes what is small, first what leads to the rest.
func packLayout(l *layout, t *tar.Writer) error {
	blobs, err := os.ReadDir(l.blobDir())
	if err != nil {
		return err
	}
	names := []string{"oci-layout", "index.json", "blobs/", "blobs/sha256/"}
	for _, b := range blobs {
		names = append(names, path.Join("blobs/sha256", b.Name()))
	}
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			if err := t.WriteHeader(header(name, 0)); err != nil {
				return err
			}
			continue
		}
		raw, err := readFile(filepath.Join(l.dir, filepath.FromSlash(name)), attest.MaxBundle)
		if err != nil {
			return err
		}
		if err := t.WriteHeader(header(name, int64(len(raw)))); err != nil {
			return err
		}
		if _, err := t.Write(raw); err != nil {
			return err
		}
	}
	return nil
}

// packBlob streams a layer, whose digest must hold.
func packBlob(ctx context.Context, src Repo, d v1.Descriptor, t *tar.Writer, progress func(int64)) error {
	bd, err := digest(d)
	if err != nil {
		return err
	}
	rc, err := src.Blob(ctx, bd)
	if err != nil {
		return err
	}
	defer rc.Close()
	if err := t.WriteHeader(header(path.Join("blobs/sha256", bd.Hex()), d.Size)); err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, sum, counted(progress)), io.LimitReader(&cancelled{ctx, rc}, d.Size))
	if err != nil {
		return err
	}
	// The end of the stream is where a place says that it was cut.
	if extra, err := rc.Read(make([]byte, 1)); extra > 0 || err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(&mismatch{want: bd}, err)
	}
	if n != d.Size || hex.EncodeToString(sum.Sum(nil)) != bd.Hex() {
		return &mismatch{want: bd}
	}
	return nil
}

type counted func(int64)

func (c counted) Write(p []byte) (int, error) {
	if c != nil {
		c(int64(len(p)))
	}
	return len(p), nil
}
