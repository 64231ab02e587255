package store

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
)

// exported is the archive of a reference, in a file.
func exported(t testing.TB, ref string, store Options, opts ArchiveOptions) (string, *Archived) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.tar")
	f := must(os.Create(path))(t)
	defer f.Close()
	r := parse(t, ref)
	return path, must(WriteArchive(context.Background(), must(Open(context.Background(), r, store))(t), r, f, opts))(t)
}

func TestArchive(t *testing.T) {
	ctx := context.Background()
	s := newSigner(t)
	from, top := testIndex(t)
	w := openW(t, from)
	platforms := must(Platforms(ctx, w, top))(t)
	must(Attach(ctx, w, top, s.bundle(t, top, "https://example.com/attached")))(t)
	if err := AttachCosign(ctx, w, platforms[0].Descriptor, s.bundle(t, platforms[0].Descriptor, "https://example.com/att")); err != nil {
		t.Fatal(err)
	}
	repo := newGitRepo(t)
	commit := repo.in("rev-parse", "HEAD")
	source := commitStatement(t, commit, "https://example.com/source")
	repo.note("x", string(source))
	provenance := must(attest.NewStatement("https://slsa.dev/provenance/v1", []attest.Subject{{Digest: map[string]string{"sha256": top.Digest.Hex}}},
		map[string]any{"buildDefinition": map[string]any{"resolvedDependencies": []any{map[string]any{"digest": map[string]string{"gitCommit": commit}}}}}))(t)
	bundle := must(s.Sign(ctx, provenance))(t)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "p.json"), string(bundle.Raw()))
	write(t, filepath.Join(dir, "stranger.json"), string(s.bundle(t, v1.Descriptor{Digest: hash(someDigest)}, "https://example.com/stranger").Raw()))
	more := Options{Evidence: []string{dir, GitPrefix + repo.dir}}
	trust := []TrustFile{{Role: "policy", Name: "p.yaml", Raw: []byte("policy")}, {Role: "key", Name: "../k.pub", NamedBy: attest.DigestOf([]byte("policy")), Raw: []byte("key")}}

	path, said := exported(t, from, more, ArchiveOptions{Trust: trust})
	again, _ := exported(t, from, more, ArchiveOptions{Trust: trust})
	if a, b := must(os.ReadFile(path))(t), must(os.ReadFile(again))(t); !bytes.Equal(a, b) {
		t.Error("the same content gives other bytes")
	}
	if said.Evidence != 2 || said.Files != 2 || said.Layers != "all" || strings.Join(said.Platforms, " ") != "linux/amd64 linux/arm64" {
		t.Errorf("archived %+v", said)
	}
	ref := Reference{Kind: Archive, Place: path}
	if read := must(ReadArchive(ctx, ref))(t); fmt.Sprint(read) != fmt.Sprint(said) {
		t.Errorf("read %+v, want %+v", read, said)
	}
	// Trust comes out under its digest, and under no other.
	if files := must(ArchiveTrust(ctx, ref, said.Trust))(t); fmt.Sprint(files) != fmt.Sprint(trust) {
		t.Errorf("trust %+v", files)
	}
	for _, d := range []attest.Digest{someDigest, said.Digest} {
		if files, err := ArchiveTrust(ctx, ref, d); err == nil || files != nil {
			t.Errorf("trust by the digest %s: %+v", d, files)
		}
	}
	// All of it is found again, and nothing else.
	a := must(Open(ctx, ref, Options{}))(t)
	if got, want := summary(evidence(t, a, top)), SourceReferrer+", "+SourceFile; got != want {
		t.Errorf("evidence %q, want %q", got, want)
	}
	if got := summary(evidence(t, a, platforms[0].Descriptor)); got != SourceAtt {
		t.Errorf("evidence of the platform %q", got)
	}
	ps := must(a.(CommitEvidenceLister).CommitEvidence(ctx, commit))(t)
	if len(ps) != 1 || !bytes.Equal(ps[0].Raw, source) {
		t.Errorf("evidence of the commit %s", wheres(ps))
	}
	// Into a registry, every byte of it.
	place := startRegistry(t, testkit.RegistryOptions{}) + "/a"
	dst := openW(t, place)
	if err := Copy(ctx, a, dst, must(a.Resolve(ctx))(t), CopyOptions{Evidence: true}); err != nil {
		t.Fatal(err)
	}
	if got, want := summary(evidence(t, dst, top)), SourceReferrer+", "+SourceReferrer; got != want {
		t.Errorf("imported %q, want %q", got, want)
	}
	for _, p := range platforms {
		doc, _, err := readDocument(ctx, dst, attest.Digest(p.Descriptor.Digest.String()))
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range doc.Layers {
			must(readBlob(ctx, dst, l, 1<<20))(t)
		}
	}
	// From there again, it is the same image; without layers it is small.
	light, said := exported(t, place+"@"+top.Digest.String(), Options{}, ArchiveOptions{NoLayers: true})
	if said.Layers != "none" {
		t.Errorf("archived %+v", said)
	}
	err := Copy(ctx, must(Open(ctx, Reference{Kind: Archive, Place: light}, Options{}))(t), openW(t, "oci:"+t.TempDir()+"/l"), top, CopyOptions{})
	if !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "without layers") {
		t.Errorf("layers of an archive without: %v", err)
	}
}

// TestArchiveStreams: what an archive takes in memory is not what its layers
// have.
func TestArchiveStreams(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	w := openW(t, "oci:"+dir)
	const size = 64 << 20
	layer := Blob{Descriptor: v1.Descriptor{MediaType: types.OCILayer, Size: size, Digest: must(v1.NewHash("sha256:3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"))(t)},
		Open: func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, size)), nil }}
	config := bytesBlob([]byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`), types.OCIConfigJSON)
	for _, b := range []Blob{layer, config} {
		if err := w.PutBlob(ctx, b); err != nil {
			t.Fatal(err)
		}
	}
	desc := must(w.PutManifest(ctx, types.OCIManifestSchema1, must(json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: config.Descriptor, Layers: []v1.Descriptor{layer.Descriptor}}))(t)))(t)
	if err := Tag(ctx, w, "v1", desc); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	moved := int64(0)
	path, _ := exported(t, "oci:"+dir+":v1", Options{}, ArchiveOptions{Progress: func(n int64) { moved += n }})
	dst := openW(t, "oci:"+t.TempDir()+"/l")
	if err := Copy(ctx, must(Open(ctx, Reference{Kind: Archive, Place: path}, Options{}))(t), dst, desc, CopyOptions{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > size/4 {
		t.Errorf("%d bytes allocated for a layer of %d", grown, size)
	}
	if moved != size {
		t.Errorf("%d bytes moved", moved)
	}
	// A layer that is not what it should be breaks the export off.
	write(t, filepath.Join(dir, "blobs/sha256", layer.Descriptor.Digest.Hex), strings.Repeat("x", 10))
	r := parse(t, "oci:"+dir+":v1")
	if _, err := WriteArchive(ctx, open(t, r.String(), Options{}), r, io.Discard, ArchiveOptions{}); err == nil || !strings.Contains(err.Error(), "not what the digest") {
		t.Errorf("a layer that was changed: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// entry is one file of a tar that a test makes.
type tarEntry struct {
	name string
	data []byte
	kind byte // 0: a regular file
}

func tarOf(t testing.TB, entries ...tarEntry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Size: int64(len(e.data)), Mode: 0o644, Typeflag: tar.TypeReg}
		if e.kind != 0 {
			h.Typeflag, h.Linkname = e.kind, "oci-layout"
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestHostileArchives(t *testing.T) {
	ctx := context.Background()
	img := must(random.Image(10, 1))(t)
	manifest, config := must(img.RawManifest())(t), must(img.RawConfigFile())(t)
	blob := func(data []byte) tarEntry {
		return tarEntry{name: "blobs/sha256/" + attest.DigestOf(data).Hex(), data: data}
	}
	index := func(entries ...v1.Descriptor) tarEntry {
		return tarEntry{name: "index.json", data: must(json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: entries}))(t)}
	}
	of := func(data []byte, artifactType string) v1.Descriptor {
		d := describe(data, types.OCIManifestSchema1)
		d.ArtifactType = artifactType
		return d
	}
	marker := tarEntry{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	image := describe(manifest, types.DockerManifestSchema2)
	base := []tarEntry{marker, index(image), blob(manifest), blob(config)}
	with := func(more ...tarEntry) []byte { return tarOf(t, append(append([]tarEntry{}, base...), more...)...) }
	list := func(layers ...v1.Descriptor) []byte {
		return must(json.Marshal(v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: archiveType, Config: bytesBlob([]byte("{}"), emptyMediaType).Descriptor, Layers: layers}))(t)
	}
	absent := list(describe([]byte("x"), "application/json"))
	empty := list()
	huge := list(v1.Descriptor{MediaType: "application/json", Size: 1 << 40, Digest: hash(attest.DigestOf(config))})
	for name, c := range map[string]struct {
		data []byte
		want string // of opening it, or of reading the image; "" is neither
	}{
		"as it should be":        {with(), ""},
		"with ./ before names":   {tarOf(t, tarEntry{name: "./", kind: tar.TypeDir}, tarEntry{name: "./oci-layout", data: marker.data}, tarEntry{name: "./index.json", data: base[1].data}, blob(manifest), blob(config)), ""},
		"a path outside":         {with(tarEntry{name: "../evil", data: []byte("x")}), "no part of an OCI layout"},
		"an absolute path":       {with(tarEntry{name: "/etc/passwd", data: []byte("x")}), "no part of an OCI layout"},
		"a path within, outside": {with(tarEntry{name: "blobs/sha256/../../../evil", data: []byte("x")}), "no part of an OCI layout"},
		"a blob's name too long": {with(tarEntry{name: "blobs/sha256/" + strings.Repeat("a", 65), data: []byte("x")}), "no part of an OCI layout"},
		"a link":                 {with(tarEntry{name: "blobs/sha256/" + strings.Repeat("a", 64), kind: tar.TypeSymlink}), "not a plain file"},
		"a hard link":            {with(tarEntry{name: "blobs/sha256/" + strings.Repeat("a", 64), kind: tar.TypeLink}), "not a plain file"},
		"a device":               {with(tarEntry{name: "oci-layout", kind: tar.TypeChar}), "not a plain file"},
		"a file twice":           {with(marker), "stands twice"},
		"a blob twice":           {with(blob(config)), "stands twice"},
		"a file twice, by ./":    {with(tarEntry{name: "./index.json", data: []byte("{}")}), "stands twice"},
		"no index":               {tarOf(t, marker), "no such file"},
		"no marker":              {tarOf(t, base[1:]...), "no file oci-layout"},
		"another version":        {tarOf(t, append([]tarEntry{{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"9"}`)}}, base[1:]...)...), "want 1.0.0"},
		"an index over limits":   {tarOf(t, marker, tarEntry{name: "index.json", data: make([]byte, attest.MaxManifest+1)}), "larger than"},
		"an index not strict":    {tarOf(t, marker, tarEntry{name: "index.json", data: []byte(`{"schemaVersion":2,"manifests":[],"Manifests":[]}`)}), "spelled"},
		"no image":               {tarOf(t, marker, base[1], blob(config)), "is listed, and not there"},
		"an image that lies":     {tarOf(t, marker, base[1], tarEntry{name: blob(manifest).name, data: append(manifest, ' ')}, blob(config)), "not what the digest"},
		"two lists":              {tarOf(t, marker, index(image, of(empty, archiveType), of(absent, archiveType)), blob(manifest), blob(config), blob(empty), blob(absent)), "says twice"},
		"two lists that hold":    {tarOf(t, marker, index(image, of(empty, archiveType), of(empty, archiveType)), blob(manifest), blob(config), blob(empty)), "says twice"},
		"a list of what is not":  {tarOf(t, marker, index(image, of(absent, archiveType)), blob(manifest), blob(config), blob(absent)), "not there"},
		"a list that lies":       {tarOf(t, marker, index(image, of(huge, archiveType)), blob(manifest), blob(config), blob(huge)), "not as large as stated"},
		"a type that lies":       {tarOf(t, marker, index(image, of(empty, trustType)), blob(manifest), blob(config), blob(empty)), "index.json says"},
		"cut":                    {with()[:700], "no such file"},
		"nothing":                {nil, "no file oci-layout"},
		"no tar":                 {[]byte(strings.Repeat("hello", 500)), "tar"},
		"gzip of no tar":         {gz(t, []byte("hello")), "EOF"},
		"gzip, cut":              {gz(t, with())[:100], "EOF"},
		"zstd of nothing":        {[]byte{0x28, 0xb5, 0x2f, 0xfd}, "EOF"},
	} {
		path := filepath.Join(t.TempDir(), "a")
		write(t, path, string(c.data))
		r, err := Open(ctx, Reference{Kind: Archive, Place: path}, Options{})
		if err == nil {
			_, err = r.Resolve(ctx)
		}
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	bomb := gz(t, make([]byte, archiveSlack+maxArchiveRatio<<20))
	path := filepath.Join(t.TempDir(), "bomb")
	write(t, path, string(bomb))
	before := must(filepath.Glob(filepath.Join(os.TempDir(), "waxseal-archive-*")))(t)
	if _, err := Open(ctx, Reference{Kind: Archive, Place: path}, Options{}); err == nil || !strings.Contains(err.Error(), "unpacked it is larger than") {
		t.Errorf("a bomb: %v", err)
	}
	if after := must(filepath.Glob(filepath.Join(os.TempDir(), "waxseal-archive-*")))(t); len(after) > len(before) {
		t.Errorf("left behind: %s", after)
	}
	// Evidence whose bytes are others is not read.
	st := must(attest.NewStatement("https://example.com/p", []attest.Subject{{Digest: map[string]string{"sha256": image.Digest.Hex}}}, struct{}{}))(t).Raw()
	lying := list(describe(st, "application/json"))
	other := tarEntry{name: blob(st).name, data: bytes.Replace(st, []byte("/p"), []byte("/q"), 1)}
	write(t, path, string(tarOf(t, marker, index(image, of(lying, archiveType)), blob(manifest), blob(config), blob(lying), other)))
	if r, err := Open(ctx, Reference{Kind: Archive, Place: path}, Options{}); err != nil {
		t.Error(err)
	} else if ps, err := r.Evidence(ctx, attest.Digest(image.Digest.String())); err == nil || !strings.Contains(err.Error(), "not what the digest") {
		t.Errorf("evidence that is not what its digest says: %s, %v", wheres(ps), err)
	}
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func FuzzOpenArchive(f *testing.F) {
	marker := tarEntry{name: "oci-layout", data: []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	f.Add(tarOf(f, marker, tarEntry{name: "index.json", data: []byte(`{"schemaVersion":2,"manifests":[]}`)}))
	f.Add(tarOf(f, marker, tarEntry{name: "index.json", data: []byte(`{"schemaVersion":2,"manifests":[{"artifactType":"` + archiveType + `","digest":"sha256:` + strings.Repeat("a", 64) + `"}]}`)}))
	f.Add(gz(f, tarOf(f, marker)))
	f.Add([]byte{0x28, 0xb5, 0x2f, 0xfd})
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, "a")
		write(t, path, string(data))
		ref := Reference{Kind: Archive, Place: path}
		a, err := openArchive(context.Background(), ref, Options{})
		if err != nil {
			return
		}
		defer a.close()
		for name, s := range a.layout.tar.files {
			if s.size < 0 || s.offset < 0 {
				t.Errorf("%q at %d, %d bytes", name, s.offset, s.size)
			}
		}
		_, _ = ReadArchive(context.Background(), ref)
	})
}
