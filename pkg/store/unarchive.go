package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	// A compressed archive is unpacked into a file first. Layers are compressed
	// already, and evidence does not shrink like this.
	maxArchiveRatio = 100
	archiveSlack    = 64 << 20
)

// archive is an OCI layout in a tar, read where it lies.
type archive struct {
	layout *layout
	list   *document // of archiveType; nil where somebody else made the tar
	trust  []v1.Descriptor
	close  func() error
}

// tarFiles are the regular files of a tar, by name.
type tarFiles struct {
	f     *os.File
	files map[string]span
}

type span struct{ offset, size int64 }

func (t *tarFiles) open(name string) (*io.SectionReader, error) {
	s, ok := t.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NewSectionReader(t.f, s.offset, s.size), nil
}

func (t *tarFiles) read(name string, limit int64) ([]byte, error) {
	r, err := t.open(name)
	if err != nil {
		return nil, err
	}
	if r.Size() > limit {
		return nil, &oversize{r.Size(), limit}
	}
	return io.ReadAll(r)
}

// openArchive reads the list of an archive's files, and what it is.
func openArchive(ctx context.Context, ref Reference, opts Options) (*archive, error) {
	info, err := os.Stat(ref.Place)
	if err != nil {
		return nil, pathError("opening the archive", ref.Place, err)
	}
	fail := func(err error) (*archive, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &Error{Place: ref.String(), Action: "reading the archive", Cause: oneLine(err.Error()), Way: "give a file that \"waxseal bundle export\" wrote, as it was written", Err: err}
	}
	if !info.Mode().IsRegular() {
		return fail(errors.New("it is not a regular file"))
	}
	f, err := os.Open(ref.Place)
	if err != nil {
		return nil, pathError("opening the archive", ref.Place, err)
	}
	plain, err := unpacked(ctx, f, info.Size())
	if err != nil {
		f.Close()
		return fail(err)
	}
	files, err := listTar(ctx, plain)
	if err != nil {
		plain.Close()
		return fail(err)
	}
	l := &layout{ref: ref, opts: opts, named: newNamed(opts.Evidence), dir: ref.Place, tar: &tarFiles{plain, files}}
	a := &archive{layout: l, close: plain.Close}
	if err := a.read(ctx); err != nil {
		plain.Close()
		return fail(err)
	}
	return a, nil
}

// unpacked returns f itself, or what is compressed in it as a file that is gone
// once it is closed.
func unpacked(ctx context.Context, f *os.File, size int64) (*os.File, error) {
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	var z io.Reader
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(f)
		if err != nil {
			return nil, err
		}
		z = r
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
		if err != nil {
			return nil, err
		}
		defer r.Close()
		z = r
	default:
		return f, nil
	}
	spool, err := os.CreateTemp("", "waxseal-archive-")
	if err != nil {
		return nil, err
	}
	limit := min(maxArchiveRatio*size+archiveSlack, attest.MaxBlob)
	n, err := io.Copy(spool, io.LimitReader(&cancelled{ctx, z}, limit+1))
	if err == nil && n > limit {
		err = fmt.Errorf("unpacked it is larger than the %d bytes that a file of %d may become", limit, size)
	}
	if err == nil {
		_, err = spool.Seek(0, io.SeekStart)
	}
	if err := errors.Join(err, os.Remove(spool.Name())); err != nil {
		spool.Close()
		return nil, err
	}
	return spool, f.Close()
}

// listTar finds the files of a layout in a tar. Anything else in it is refused:
// who unpacks it with another tool gets what was looked at here.
func listTar(ctx context.Context, f *os.File) (map[string]span, error) {
	known := regexp.MustCompile(`^(index\.json|oci-layout|blobs/sha256/[0-9a-f]{64})$`)
	files := map[string]span{}
	r := tar.NewReader(f)
	for entries := 0; ; entries++ {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(h.Name, "./")
		_, twice := files[name]
		sparse := false
		for key := range h.PAXRecords {
			sparse = sparse || strings.HasPrefix(key, "GNU.sparse.")
		}
		switch {
		case entries == attest.MaxBlobs:
			return nil, fmt.Errorf("more than the %d files allowed", attest.MaxBlobs)
		case h.Typeflag == tar.TypeDir && (name == "" || name == "blobs/" || name == "blobs/sha256/"):
			continue
		case h.Typeflag != tar.TypeReg || sparse:
			return nil, fmt.Errorf("%q is not a plain file", oneLine(h.Name))
		case !known.MatchString(name):
			return nil, fmt.Errorf("%q is no part of an OCI layout", oneLine(h.Name))
		case twice:
			return nil, fmt.Errorf("%q stands twice in it", name)
		}
		// The reader takes whole blocks and no more, so this is where the
		// content starts.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		files[name] = span{offset, h.Size}
	}
}

// read finds the two manifests that are ours, each at most once.
func (a *archive) read(ctx context.Context) error {
	version, err := a.layout.read("oci-layout", attest.MaxKey)
	if err != nil {
		return fmt.Errorf("it has no file oci-layout: %w", err)
	}
	if err := layoutVersion(a.layout.ref, version); err != nil {
		return err
	}
	index, err := a.layout.index()
	if err != nil {
		return err
	}
	for _, m := range index.Manifests {
		d, err := digest(m)
		if err != nil {
			return err
		}
		// What was cut off might have counted against the image.
		if _, ok := a.layout.tar.files["blobs/sha256/"+d.Hex()]; !ok {
			return fmt.Errorf("it is not whole: %s is listed, and not there", d)
		}
		if m.ArtifactType != archiveType && m.ArtifactType != trustType {
			continue
		}
		doc, _, err := readDocument(ctx, a.layout, d)
		if err != nil {
			return err
		}
		switch {
		case doc.ArtifactType != m.ArtifactType:
			return fmt.Errorf("index.json says %q of %s, which says %q", m.ArtifactType, d, oneLine(doc.ArtifactType))
		case doc.ArtifactType == trustType:
			a.trust = append(a.trust, m)
		case a.list != nil:
			return errors.New("it says twice what it holds")
		default:
			a.list = doc
		}
	}
	if a.list == nil {
		return nil
	}
	for _, f := range a.list.Layers {
		d, err := digest(f)
		if err != nil {
			return err
		}
		at, ok := a.layout.tar.files["blobs/sha256/"+d.Hex()]
		if !ok || at.size != f.Size || at.size > attest.MaxBundle {
			return fmt.Errorf("its evidence %s is not there, or not as large as stated", d)
		}
		a.layout.named.more = append(a.layout.named.more, fileDoc{
			path: a.layout.dir + ":" + oneLine(f.Annotations[fileTitle]), from: a.layout.tar.f, offset: at.offset, size: at.size, digest: d,
			beside: a.layout.dir, stapled: f.MediaType == attest.OCSPMediaType,
		})
	}
	return nil
}

func (a *archive) Resolve(ctx context.Context) (v1.Descriptor, error) { return a.layout.Resolve(ctx) }

func (a *archive) Manifest(ctx context.Context, d attest.Digest) ([]byte, v1.Descriptor, error) {
	return a.layout.Manifest(ctx, d)
}

func (a *archive) Blob(ctx context.Context, d attest.Digest) (io.ReadCloser, error) {
	rc, err := a.layout.Blob(ctx, d)
	if errors.Is(err, ErrNotFound) && a.list != nil && a.list.Annotations[archiveLayers] == "none" {
		return nil, &Error{Place: a.layout.ref.String(), Action: "reading blob " + string(d), Cause: "not found: the archive was made without layers",
			Way: "export it again without --no-layers", Err: ErrNotFound}
	}
	return rc, err
}

func (a *archive) Evidence(ctx context.Context, d attest.Digest) ([]Piece, error) {
	return a.layout.Evidence(ctx, d)
}

func (a *archive) CommitEvidence(ctx context.Context, commit string) ([]Piece, error) {
	return a.layout.CommitEvidence(ctx, commit)
}

func (a *archive) tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error) {
	return a.layout.tagged(ctx, tag)
}

func (a *archive) referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error) {
	return a.layout.referrers(ctx, d)
}

// ReadArchive says what is in an archive. Nothing of it is verified.
func ReadArchive(ctx context.Context, ref Reference) (*Archived, error) {
	a, err := openArchive(ctx, ref, Options{})
	if err != nil {
		return nil, err
	}
	defer a.close()
	out := &Archived{Platforms: []string{}, Layers: "all"}
	if a.list != nil {
		out.Image, out.Layers, out.Files = oneLine(a.list.Annotations[archiveImage]), oneLine(a.list.Annotations[archiveLayers]), len(a.list.Layers)
	}
	top, err := a.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	out.Digest = attest.Digest(top.Digest.String())
	platforms, err := Platforms(ctx, a, top)
	if err != nil {
		return nil, err
	}
	about := []attest.Digest{out.Digest}
	for _, p := range platforms {
		out.Platforms = append(out.Platforms, oneLine(p.Name))
		about = append(about, attest.Digest(p.Descriptor.Digest.String()))
	}
	for _, d := range about {
		pieces, err := a.Evidence(ctx, d)
		if err != nil {
			return nil, err
		}
		for _, p := range pieces {
			if p.Raw != nil && p.Source != SourceFile {
				out.Evidence++
			}
		}
	}
	for _, m := range a.trust {
		d := attest.Digest(m.Digest.String())
		files, err := a.trustFiles(ctx, d)
		if err != nil {
			return nil, err
		}
		out.Trust = d
		for _, f := range files {
			out.TrustFiles = append(out.TrustFiles, oneLine(f.Role+" "+f.Name))
		}
	}
	return out, nil
}

// ArchiveTrust returns whom the archive would have one trust, only under the
// digest that WriteArchive gave for it: an archive that speaks for itself must
// not choose who vouches for it. The digest covers every byte of every file.
func ArchiveTrust(ctx context.Context, ref Reference, want attest.Digest) ([]TrustFile, error) {
	a, err := openArchive(ctx, ref, Options{})
	if err != nil {
		return nil, err
	}
	defer a.close()
	for _, m := range a.trust {
		if m.Digest == hash(want) {
			return a.trustFiles(ctx, want)
		}
	}
	e := &Error{Place: ref.String(), Action: "looking for the trust " + string(want), Cause: "the archive carries none",
		Way: "give your own --policy, or export with --policy or --trusted-root"}
	if len(a.trust) > 0 {
		e.Cause = fmt.Sprintf("the archive carries another: %s", a.trust[0].Digest)
		e.Way = "take the digest from who made the archive, and not from the archive"
	}
	return nil, e
}

func (a *archive) trustFiles(ctx context.Context, d attest.Digest) ([]TrustFile, error) {
	doc, _, err := readDocument(ctx, a.layout, d)
	if err != nil {
		return nil, err
	}
	if len(doc.Layers) > attest.MaxTrustFiles {
		return nil, fmt.Errorf("reading the trust %s: %d files, more than the %d allowed", d, len(doc.Layers), attest.MaxTrustFiles)
	}
	var out []TrustFile
	for _, f := range doc.Layers {
		raw, err := readBlob(ctx, a.layout, f, attest.MaxCRL)
		if err != nil {
			return nil, fmt.Errorf("reading the trust %s: %w", d, err)
		}
		out = append(out, TrustFile{Role: f.Annotations[trustRole], Name: f.Annotations[fileTitle], NamedBy: attest.Digest(f.Annotations[trustNamedBy]), Raw: raw})
	}
	return out, nil
}
