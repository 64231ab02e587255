package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	gohash "hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// refName is the annotation that carries a tag in a layout.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/annotations.md
const refName = "org.opencontainers.image.ref.name"

// layout is an OCI image layout, a folder.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/image-layout.md
type layout struct {
	ref   Reference
	opts  Options
	named *named
	dir   string
	tar   *tarFiles // where the layout is in an archive
}

func openLayout(ctx context.Context, ref Reference, opts Options, create bool) (*layout, error) {
	l := &layout{ref: ref, opts: opts, named: opts.evidenceNamed(), dir: ref.Place}
	marker := filepath.Join(l.dir, "oci-layout")
	raw, err := readFile(marker, attest.MaxKey)
	if errors.Is(err, os.ErrNotExist) && create {
		return l, l.create(ctx, marker)
	}
	if errors.Is(err, os.ErrNotExist) {
		if _, err := os.Stat(l.dir); err == nil {
			return nil, &Error{Place: ref.String(), Cause: "not found: the folder is no OCI layout, it has no file oci-layout", Err: ErrNotFound}
		}
		return nil, &Error{Place: ref.String(), Cause: "not found: no such folder", Err: ErrNotFound}
	}
	if errors.Is(err, syscall.ENOTDIR) {
		return nil, &Error{Place: ref.String(), Cause: "an OCI layout is a folder, and this is a file", Way: "a layout in a tar file is archive:" + l.dir}
	}
	if err != nil {
		return nil, pathError("", marker, err)
	}
	return l, layoutVersion(ref, raw)
}

func layoutVersion(ref Reference, raw []byte) error {
	var version struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := attest.UnmarshalStrict(raw, &version); err != nil || version.Version != "1.0.0" {
		return &Error{Place: ref.String(), Cause: fmt.Sprintf("the layout has version %q, want 1.0.0", version.Version)}
	}
	return nil
}

// read reads a file of the layout of at most limit bytes, by its name with
// slashes.
func (l *layout) read(name string, limit int64) ([]byte, error) {
	if l.tar != nil {
		return l.tar.read(name, limit)
	}
	return readFile(filepath.Join(l.dir, filepath.FromSlash(name)), limit)
}

func (l *layout) create(ctx context.Context, marker string) (err error) {
	if _, absent := os.Stat(l.dir); errors.Is(absent, os.ErrNotExist) {
		defer func() {
			if err == nil {
				return
			}
			// Only empty folders go: somebody else may have been quicker.
			for _, path := range []string{"index.json.lock", "blobs/sha256", "blobs", "."} {
				os.Remove(filepath.Join(l.dir, path))
			}
		}()
	}
	if err := os.MkdirAll(l.blobDir(), 0o755); err != nil {
		return pathError("making the folder", l.blobDir(), err)
	}
	err = l.locked(ctx, func() error {
		index := filepath.Join(l.dir, "index.json")
		if _, err := os.Stat(index); errors.Is(err, os.ErrNotExist) {
			if err := writeFile(index, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)); err != nil {
				return err
			}
		}
		return writeFile(marker, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	})
	if err != nil {
		return pathError("making the layout", l.dir, err)
	}
	return nil
}

func (l *layout) Reference() Reference { return l.ref }

func (l *layout) blobDir() string { return filepath.Join(l.dir, "blobs", "sha256") }

func (l *layout) blobPath(d attest.Digest) string { return filepath.Join(l.blobDir(), d.Hex()) }

// index reads index.json.
func (l *layout) index() (*v1.IndexManifest, error) {
	path := filepath.Join(l.dir, "index.json")
	raw, err := l.read("index.json", attest.MaxManifest)
	if err != nil {
		return nil, pathError("reading the index", path, err)
	}
	var index v1.IndexManifest
	if err := attest.UnmarshalStrict(raw, &index); err != nil {
		return nil, &Error{Place: l.ref.String(), Action: "reading index.json", Cause: err.Error()}
	}
	return &index, nil
}

func (l *layout) Resolve(ctx context.Context) (v1.Descriptor, error) {
	if l.ref.Digest != "" {
		_, desc, err := l.Manifest(ctx, l.ref.Digest)
		return desc, err
	}
	if l.ref.Tag != "" {
		_, desc, err := l.tagged(ctx, l.ref.Tag)
		return desc, err
	}
	index, err := l.index()
	if err != nil {
		return v1.Descriptor{}, err
	}
	found := map[attest.Digest]bool{}
	var names []string
	for _, m := range index.Manifests {
		d, err := digest(m)
		if err != nil || (m.ArtifactType != "" && !types.MediaType(m.ArtifactType).IsConfig()) || found[d] || evidenceTag(m.Annotations[refName]) {
			continue
		}
		doc, _, err := readDocument(ctx, l, d)
		if err != nil {
			return v1.Descriptor{}, err
		}
		if doc.Subject != nil {
			continue // it speaks of an image, and is none
		}
		found[d] = true
		if n := m.Annotations[refName]; n != "" {
			names = append(names, ":"+n)
		} else {
			names = append(names, "@"+string(d))
		}
	}
	switch len(found) {
	case 0:
		return v1.Descriptor{}, &Error{Place: l.ref.String(), Action: "choosing the image", Cause: "not found: the layout holds no image", Err: ErrNotFound}
	case 1:
		for d := range found {
			_, desc, err := l.Manifest(ctx, d)
			return desc, err
		}
	}
	return v1.Descriptor{}, &Error{Place: l.ref.String(), Action: "choosing the image",
		Cause: fmt.Sprintf("the layout holds %d images: %s", len(found), oneLine(strings.Join(names, " "))),
		Way:   "name one of them: oci:" + l.dir + names[0], Err: ErrNotFound}
}

func (l *layout) tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	for _, m := range index.Manifests {
		if m.Annotations[refName] != tag {
			continue
		}
		d, err := digest(m)
		if err != nil {
			return nil, v1.Descriptor{}, &Error{Place: l.ref.String(), Action: "reading index.json", Cause: err.Error()}
		}
		return l.Manifest(ctx, d)
	}
	return nil, v1.Descriptor{}, &Error{Place: l.ref.String(), Action: "reading manifest", Cause: fmt.Sprintf("not found: the layout has no tag %q", tag), Err: ErrNotFound}
}

func (l *layout) Manifest(_ context.Context, d attest.Digest) ([]byte, v1.Descriptor, error) {
	action := "reading manifest " + string(d)
	raw, err := l.read("blobs/sha256/"+d.Hex(), attest.MaxManifest)
	if errors.Is(err, os.ErrNotExist) {
		return nil, v1.Descriptor{}, &Error{Place: l.ref.String(), Action: action, Cause: "not found: the layout does not have it", Err: ErrNotFound}
	}
	if err != nil {
		return nil, v1.Descriptor{}, pathError(action, l.blobPath(d), err)
	}
	if attest.DigestOf(raw) != d {
		err := &mismatch{want: d}
		return nil, v1.Descriptor{}, &Error{Place: l.ref.String(), Action: action, Cause: err.Error(), Way: "the layout was changed; do not use it", Err: err}
	}
	doc, err := parseDocument(raw, "")
	if err != nil {
		return nil, v1.Descriptor{}, &Error{Place: l.ref.String(), Action: action, Cause: err.Error(), Err: err}
	}
	return raw, describe(raw, doc.MediaType), nil
}

func (l *layout) Blob(_ context.Context, d attest.Digest) (io.ReadCloser, error) {
	f, err := l.openBlob(d)
	if errors.Is(err, os.ErrNotExist) {
		return nil, &Error{Place: l.ref.String(), Action: "reading blob " + string(d), Cause: "not found: the layout does not have it", Err: ErrNotFound}
	}
	if err != nil {
		return nil, pathError("reading blob", l.blobPath(d), err)
	}
	return &hashed{ReadCloser: f, sum: sha256.New(), want: d}, nil
}

func (l *layout) openBlob(d attest.Digest) (io.ReadCloser, error) {
	if l.tar == nil {
		return os.Open(l.blobPath(d))
	}
	r, err := l.tar.open("blobs/sha256/" + d.Hex())
	if err != nil {
		return nil, err
	}
	return io.NopCloser(r), nil
}

// hashed fails at the end of a stream whose digest does not hold.
type hashed struct {
	io.ReadCloser
	sum  gohash.Hash
	want attest.Digest
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.ReadCloser.Read(p)
	h.sum.Write(p[:n])
	if err == io.EOF && hex.EncodeToString(h.sum.Sum(nil)) != h.want.Hex() {
		return n, &mismatch{want: h.want}
	}
	return n, err
}

func (l *layout) hasBlob(_ context.Context, d v1.Descriptor) (bool, error) {
	bd, err := digest(d)
	if err != nil {
		return false, err
	}
	info, err := os.Stat(l.blobPath(bd))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, pathError("looking for blob", l.blobPath(bd), err)
	}
	return info.Mode().IsRegular() && info.Size() == d.Size, nil
}

// referrers lists the entries of index.json whose manifests have d as their
// subject.
func (l *layout) referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	seen := map[attest.Digest]bool{}
	for _, m := range index.Manifests {
		md, err := digest(m)
		if err != nil || md == d || seen[md] {
			continue
		}
		seen[md] = true
		doc, _, err := readDocument(ctx, l, md)
		if err != nil || doc.Subject == nil || doc.Subject.Digest != hash(d) {
			continue // a stranger's broken entry is not about d
		}
		if len(out) == attest.MaxReferrers {
			return nil, &Error{Place: l.ref.String(), Action: "listing referrers of " + string(d),
				Cause: fmt.Sprintf("more than the %d referrers that are read", attest.MaxReferrers)}
		}
		m.ArtifactType, m.Annotations = doc.ArtifactType, doc.Annotations
		out = append(out, m)
	}
	return out, nil
}

func (l *layout) PutBlob(ctx context.Context, b Blob) error {
	d, err := digest(b.Descriptor)
	if err != nil {
		return err
	}
	if ok, err := l.hasBlob(ctx, b.Descriptor); ok || err != nil {
		return err
	}
	rc, err := b.Open()
	if err != nil {
		return err
	}
	defer rc.Close()
	sum, n := sha256.New(), int64(0)
	err = WriteWhole(l.blobPath(d), func(w io.Writer) error {
		// One byte more than stated is enough to know.
		n, err = io.Copy(io.MultiWriter(w, sum), io.LimitReader(&cancelled{ctx, rc}, b.Descriptor.Size+1))
		if err == nil && (n != b.Descriptor.Size || hex.EncodeToString(sum.Sum(nil)) != d.Hex()) {
			err = &mismatch{want: d}
		}
		return err
	})
	if err == nil {
		return nil
	}
	var known *Error
	if errors.As(err, &known) || ctx.Err() != nil {
		return err
	}
	return pathError("writing blob", l.blobPath(d), err)
}

// cancelled ends a copy when its context does.
type cancelled struct {
	ctx context.Context
	io.Reader
}

func (c *cancelled) Read(p []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.Reader.Read(p)
}

// PutManifest stores the manifest as a blob; what nothing else leads to, a
// referrer, is entered in index.json.
func (l *layout) PutManifest(ctx context.Context, mediaType types.MediaType, raw []byte) (v1.Descriptor, error) {
	doc, err := parseDocument(raw, mediaType)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("writing manifest: %w", err)
	}
	desc := describe(raw, doc.MediaType)
	path := l.blobPath(attest.DigestOf(raw))
	if _, err := os.Stat(path); err != nil {
		if err := writeFile(path, raw); err != nil {
			return v1.Descriptor{}, pathError("writing manifest", path, err)
		}
	}
	if doc.Subject == nil {
		return desc, nil
	}
	entry := desc
	entry.ArtifactType, entry.Annotations = doc.ArtifactType, doc.Annotations
	return desc, l.change(ctx, func(index *v1.IndexManifest) {
		has := slices.ContainsFunc(index.Manifests, func(m v1.Descriptor) bool {
			return m.Digest == desc.Digest
		})
		if !has {
			index.Manifests = append(index.Manifests, entry)
		}
	})
}

func (l *layout) PutTag(ctx context.Context, tag string, d v1.Descriptor) error {
	if tag != "" && !validTag(tag) {
		return fmt.Errorf("writing tag %q: not a tag", tag)
	}
	md, err := digest(d)
	if err != nil {
		return err
	}
	_, desc, err := l.Manifest(ctx, md)
	if err != nil {
		return err
	}
	if tag == "" {
		return l.list(ctx, desc)
	}
	return l.change(ctx, func(index *v1.IndexManifest) {
		entry, out := desc, index.Manifests[:0]
		for _, m := range index.Manifests {
			// Where the entry was for this tag, what else it says is kept.
			if m.Annotations[refName] == tag {
				if m.Digest == desc.Digest {
					entry = m
				}
				continue
			}
			out = append(out, m)
		}
		// An unnamed entry of the same manifest becomes the named one.
		out = slices.DeleteFunc(out, func(m v1.Descriptor) bool {
			return m.Digest == desc.Digest && m.Annotations[refName] == ""
		})
		if entry.Annotations == nil {
			entry.Annotations = map[string]string{}
		}
		entry.Annotations[refName] = tag
		index.Manifests = append(out, entry)
	})
}

// list enters a manifest without a name, if it is not in index.json at all.
func (l *layout) list(ctx context.Context, desc v1.Descriptor) error {
	return l.change(ctx, func(index *v1.IndexManifest) {
		if !slices.ContainsFunc(index.Manifests, func(m v1.Descriptor) bool { return m.Digest == desc.Digest }) {
			index.Manifests = append(index.Manifests, desc)
		}
	})
}

// change rewrites index.json, one process at a time.
func (l *layout) change(ctx context.Context, edit func(*v1.IndexManifest)) error {
	path := filepath.Join(l.dir, "index.json")
	err := l.locked(ctx, func() error {
		index, err := l.index()
		if err != nil {
			return err
		}
		before, err := json.Marshal(index)
		if err != nil {
			return err
		}
		edit(index)
		index.SchemaVersion, index.MediaType = 2, types.OCIImageIndex
		sort.SliceStable(index.Manifests, func(i, j int) bool { return rank(index.Manifests[i]) < rank(index.Manifests[j]) })
		raw, err := json.Marshal(index)
		if err != nil {
			return err
		}
		if string(raw) == string(before) {
			return nil
		}
		if len(raw) > attest.MaxManifest {
			return &Error{Place: l.ref.String(), Action: "writing index.json", Cause: fmt.Sprintf("it would be larger than the %d bytes allowed", attest.MaxManifest)}
		}
		return writeFile(path, raw)
	})
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return pathError("writing the index", path, err)
}

// rank puts images before what is said about them: tools that know nothing of
// referrers take the first entry.
func rank(m v1.Descriptor) int {
	if strings.HasPrefix(m.ArtifactType, bundleMediaPrefix) || evidenceTag(m.Annotations[refName]) {
		return 1
	}
	return 0
}

// evidenceTag reports whether a tag is one that evidence is kept under.
func evidenceTag(tag string) bool {
	rest, ok := strings.CutPrefix(tag, "sha256-")
	if !ok {
		return false
	}
	hexPart, suffix, _ := strings.Cut(rest, ".")
	return len(hexPart) == 64 && strings.Trim(hexPart, "0123456789abcdef") == "" && (suffix == "" || suffix == "att" || suffix == "sig" || suffix == "sbom")
}

// locked runs f while this process alone writes to the layout. The lock file
// is the one that BuildKit's client uses.
func (l *layout) locked(ctx context.Context, f func() error) error {
	lock := flock.New(filepath.Join(l.dir, "index.json.lock"))
	wait, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("another process holds index.json.lock for more than a minute"))
	defer cancel()
	if _, err := lock.TryLockContext(wait, 20*time.Millisecond); err != nil {
		if wait.Err() != nil {
			return context.Cause(wait)
		}
		return err
	}
	defer func() { _ = lock.Unlock() }()
	return f()
}

// readFile reads a regular file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %q: not a regular file", path)
	}
	if info.Size() > limit {
		return nil, &oversize{size: info.Size(), limit: limit}
	}
	raw := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(raw[len(raw):cap(raw)])
		raw = raw[:len(raw)+n]
		if err == io.EOF {
			return raw, nil
		}
		if err != nil {
			return nil, err
		}
		if len(raw) == cap(raw) {
			if int64(len(raw)) > limit {
				return nil, &oversize{size: int64(len(raw)), limit: limit}
			}
			raw = append(raw, 0)[:len(raw)]
		}
	}
}

func writeFile(path string, data []byte) error {
	return WriteWhole(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// WriteWhole makes a file that all may read appear under path, whole and on the
// disk, or not at all.
func WriteWhole(path string, write func(io.Writer) error) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".waxseal-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Chmod(0o644); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil //nolint:nilerr // the file is in place; some systems cannot sync folders
	}
	defer d.Close()
	_ = d.Sync()
	return nil
}
