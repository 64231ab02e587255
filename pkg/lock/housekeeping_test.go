package lock_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// stored is a store that has all that a lock needs, and the lock.
func stored(t *testing.T) (*lock.Store, *lock.File) {
	t.Helper()
	s := open(t)
	rec := record()
	config, layer := put(t, s, []byte("config")), put(t, s, []byte("layer"))
	manifest := fmt.Appendf(nil, `{"schemaVersion":2,"config":{"digest":%q,"size":6},"layers":[{"digest":%q,"size":5}]}`, config, layer)
	index := fmt.Appendf(nil, `{"schemaVersion":2,"manifests":[
		{"digest":%q,"size":%d,"platform":{"os":"linux","architecture":"amd64"}},
		{"digest":%q,"size":7,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}},
		{"digest":%q,"size":7,"platform":{"os":"unknown","architecture":"unknown"}}]}`, put(t, s, manifest), len(manifest), of("arm64"), of("attestation"))
	rec.Sources[0].Digest = string(put(t, s, index))
	for _, body := range []string{"tree", "x", "one", "two", "pack 1", "pack 2", "tail", "he", "q"} {
		put(t, s, []byte(body))
	}
	f, err := lock.FromInputs(s, rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s, f
}

func missing(t *testing.T, s *lock.Store, f *lock.File) []string {
	t.Helper()
	needs, err := s.Needs(f)
	if err != nil {
		t.Fatal(err)
	}
	var lacks []string
	for _, n := range needs {
		if !n.Has {
			lacks = append(lacks, n.For)
		}
	}
	return lacks
}

func digests(t *testing.T, s *lock.Store, f *lock.File) []attest.Digest {
	t.Helper()
	needs, err := s.Needs(f)
	if err != nil {
		t.Fatal(err)
	}
	var all []attest.Digest
	for _, n := range needs {
		all = append(all, n.Digest)
	}
	return all
}

func TestNeeds(t *testing.T) {
	s, f := stored(t)
	needs, err := s.Needs(f, f)
	if err != nil {
		t.Fatal(err)
	}
	// The index, one manifest, config, layer, nine bodies and the headers.
	if len(needs) != 14 || len(missing(t, s, f)) != 0 {
		t.Errorf("%d needed, missing %v", len(needs), missing(t, s, f))
	}
	for _, body := range []string{"layer", "tail"} {
		if err := os.Remove(blobPath(s, attest.Digest(of(body)))); err != nil {
			t.Fatal(err)
		}
	}
	got := strings.Join(missing(t, s, f), "\n")
	if !strings.Contains(got, "base image registry.example/debian:12") || !strings.Contains(got, "GET https://files.example/big") {
		t.Errorf("missing %q", got)
	}
	// An index whose file was changed names nothing.
	if err := os.WriteFile(blobPath(s, attest.Digest(f.Sources[0].Digest)), []byte(`{"layers":[{"digest":"x"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := len(missing(t, s, f)); got != 2 {
		t.Errorf("%d missing", got)
	}
	other := put(t, s, []byte(`{"layers":[{"digest":"../../etc/passwd"}]}`))
	if _, err := s.Needs(&lock.File{Sources: []lock.Source{{Kind: "image", Ref: "a", Digest: string(other)}}}); err == nil || !strings.Contains(err.Error(), "reading digest") {
		t.Error(err)
	}
	withheld := record()
	withheld.Steps[0].Requests[0].Digest = "hmac-" + of("secret")
	g, err := lock.FromInputs(nil, withheld)
	if err != nil {
		t.Fatal(err)
	}
	if got := missing(t, s, g); !strings.Contains(strings.Join(got, "\n"), "https://files.example/a") {
		t.Errorf("missing %q: a body that was withheld cannot be there", got)
	}
}

func TestGC(t *testing.T) {
	s, f := stored(t)
	junk, young := put(t, s, []byte("junk")), put(t, s, []byte("young"))
	old := time.Now().Add(-48 * time.Hour)
	err := s.List(context.Background(), func(it lock.Item) error {
		if it.Digest == young {
			return it.Bad
		}
		return os.Chtimes(filepath.Join(s.Dir(), it.Path), old, old)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir(), "blobs", "sha256", "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	opts := lock.GCOptions{Keep: []*lock.File{f}, Before: time.Now().Add(-24 * time.Hour), DryRun: true}
	report, err := s.GC(context.Background(), opts)
	if err != nil || report.Removed != 2 || report.RemovedBytes != 4 || report.Kept != 15 || !s.Has(junk) {
		t.Errorf("would: %+v, %v", report, err)
	}
	opts.DryRun = false
	if report, err = s.GC(context.Background(), opts); err != nil || report.Removed != 2 || s.Has(junk) || !s.Has(young) || len(missing(t, s, f)) != 0 {
		t.Errorf("did: %+v, %v; missing %v", report, err, missing(t, s, f))
	}
	// What a build commits again is as good as new.
	if err := os.Chtimes(blobPath(s, young), old, old); err != nil {
		t.Fatal(err)
	}
	put(t, s, []byte("young"))
	if report, err = s.GC(context.Background(), lock.GCOptions{Before: opts.Before}); err != nil || report.Kept != 1 || !s.Has(young) {
		t.Errorf("did: %+v, %v", report, err)
	}
	// And others can open the store again.
	if other, err := lock.OpenStore(s.Dir()); err != nil {
		t.Error(err)
	} else if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func TestExportImport(t *testing.T) {
	s, f := stored(t)
	var archive, again bytes.Buffer
	if err := s.Export(context.Background(), &archive, digests(t, s, f)); err != nil {
		t.Fatal(err)
	}
	to := open(t)
	report, err := to.Import(context.Background(), bytes.NewReader(archive.Bytes()))
	if err != nil || report.Blobs != 14 || report.New != 14 {
		t.Fatalf("%+v, %v", report, err)
	}
	if m := missing(t, to, f); len(m) != 0 {
		t.Errorf("missing %v", m)
	}
	if err := f.LoadReplay(to); err != nil {
		t.Error(err)
	}
	if err := to.Export(context.Background(), &again, digests(t, to, f)); err != nil || !bytes.Equal(archive.Bytes(), again.Bytes()) {
		t.Errorf("exported again it is another archive (%v)", err)
	}
	if report, err = to.Import(context.Background(), &archive); err != nil || report.Blobs != 14 || report.New != 0 || report.NewBytes != 0 {
		t.Errorf("the second time: %+v, %v", report, err)
	}
	if err := to.Export(context.Background(), io.Discard, []attest.Digest{attest.Digest(of("never seen"))}); err == nil {
		t.Error("what is not there was exported")
	}
}

type member struct {
	head tar.Header
	body string
}

func file(name, body string) member {
	return member{tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(body)), Mode: 0o444}, body}
}

func archive(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestImportRefuses(t *testing.T) {
	mark := file("waxseal-store", "waxseal store, version 1\n")
	hex := attest.DigestOf([]byte("good")).Hex()
	good := file("blobs/sha256/"+hex, "good")
	link := func(kind byte, target string) member {
		return member{tar.Header{Typeflag: kind, Name: "blobs/sha256/" + hex, Linkname: target}, ""}
	}
	whole := archive(t, mark, good)
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"nothing":             {nil, "no archive of a store"},
		"no tar":              {bytes.Repeat([]byte("waxseal"), 1000), "no archive of a store"},
		"an empty tar":        {archive(t), "no archive of a store"},
		"another tar":         {archive(t, file("etc/passwd", "root")), "no archive that waxseal store export wrote"},
		"another version":     {archive(t, file("waxseal-store", "waxseal store, version 2\n"), good), "another version"},
		"other bytes":         {archive(t, mark, file("blobs/sha256/"+hex, "evil")), "its bytes are sha256:"},
		"too few bytes":       {archive(t, mark, file("blobs/sha256/"+hex, "goo")), "its bytes are sha256:"},
		"a path":              {archive(t, mark, file("blobs/sha256/../../../../tmp/"+hex, "good")), "is not a blob"},
		"an absolute path":    {archive(t, mark, file("/blobs/sha256/"+hex, "good")), "is not a blob"},
		"a key":               {archive(t, mark, file("key", strings.Repeat("k", 32))), "is not a blob"},
		"upper case":          {archive(t, mark, file("blobs/sha256/"+strings.ToUpper(hex), "good")), "is not a blob"},
		"a symbolic link":     {archive(t, mark, link(tar.TypeSymlink, "/etc/passwd")), "not a plain file"},
		"a hard link":         {archive(t, mark, link(tar.TypeLink, "key")), "not a plain file"},
		"a folder":            {archive(t, mark, link(tar.TypeDir, "")), "not a plain file"},
		"a device":            {archive(t, mark, link(tar.TypeChar, "")), "not a plain file"},
		"a pipe":              {archive(t, mark, link(tar.TypeFifo, "")), "not a plain file"},
		"cut in a blob":       {whole[:len(whole)-1024-512+2], "unexpected EOF"},
		"cut before its blob": {whole[:len(whole)-1024-512], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			_, err := s.Import(context.Background(), bytes.NewReader(c.raw))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err := s.List(context.Background(), func(it lock.Item) error { return fmt.Errorf("%s was taken", it.Path) }); err != nil {
				t.Error(err)
			}
			if left := temps(t, s); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// TestImportTakesNoHoles: a small archive does not become a large blob.
func TestImportTakesNoHoles(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	mark := file("waxseal-store", "waxseal store, version 1\n")
	if err := w.WriteHeader(&mark.head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, mark.body); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	// A GNU sparse file of a terabyte without a byte of data, which Go does
	// not write but reads.
	b.Write(sparse("blobs/sha256/"+attest.DigestOf(nil).Hex(), 1<<40))
	b.Write(make([]byte, 1024))
	s := open(t)
	_, err := s.Import(context.Background(), &b)
	if err == nil || !strings.Contains(err.Error(), "not a plain file") && !strings.Contains(err.Error(), "has holes") {
		t.Error(err)
	}
}

func sparse(name string, size int64) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000444\x000000000\x000000000\x0000000000000\x0000000000000\x00        S")
	copy(h[257:], "ustar  \x00")
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 0))
	h[483] = 0x80 // the real size, in base 256
	for i := range 8 {
		h[483+11-i] = byte(size >> (8 * i))
	}
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return h
}

func FuzzImport(f *testing.F) {
	mark := file("waxseal-store", "waxseal store, version 1\n")
	good := file("blobs/sha256/"+attest.DigestOf([]byte("good")).Hex(), "good")
	f.Add(archive(f, mark, good))
	f.Add(archive(f, mark, file("blobs/sha256/x", "bad")))
	f.Add(archive(f, good))
	f.Add(append(archive(f, mark)[:1024], sparse(good.head.Name, 1<<30)...))
	s, err := lock.OpenStore(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := s.Import(context.Background(), bytes.NewReader(raw)); err != nil {
			return
		}
		if err := s.Verify(context.Background(), func(it lock.Item) error { return it.Bad }); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzReplay: the headers' blob is content that a lock names, and nobody
// vouches for.
func FuzzReplay(f *testing.F) {
	f.Add([]byte(`{"steps":[{"name":"s","headers":[{"etag":"1"}]}]}`))
	f.Add([]byte(`{"steps":[{"name":"s","headers":[]}]}`))
	f.Add([]byte(`{"steps":null}`))
	f.Add([]byte(`[`))
	s, err := lock.OpenStore(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := s.Close(); err != nil {
			f.Error(err)
		}
	})
	in := &attestations.Inputs{Steps: []attestations.InputStep{{Name: "s", Requests: []attestations.InputRequest{get(1, "https://a.example/", "a")}}}}
	made, err := lock.FromInputs(s, in)
	if err != nil {
		f.Fatal(err)
	}
	b, err := s.Open(made.Replay)
	if err != nil {
		f.Fatal(err)
	}
	defer b.Close()
	good, err := io.ReadAll(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := s.Put(raw)
		if err != nil {
			t.Fatal(err)
		}
		l, err := lock.FromInputs(nil, in)
		if err != nil {
			t.Fatal(err)
		}
		l.Replay = d
		before := string(l.Marshal())
		_ = l.LoadReplay(s)
		if string(l.Marshal()) != before {
			t.Errorf("%q changes the lock", raw)
		}
	})
}

func TestSummary(t *testing.T) {
	f, err := lock.FromInputs(nil, record())
	if err != nil {
		t.Fatal(err)
	}
	got := f.Summary()
	if got.Images != 1 || got.Git != 1 || got.Files != 1 || got.Steps != 2 || got.Exchanges != 8 || len(got.Packages) != 0 {
		t.Errorf("%+v", got)
	}
	f = parse(t, `step "s"`,
		"  GET http://deb.example/debian/pool/main/j/jq/jq_1.6_amd64.deb 200 "+of("a")+" 5", "  GET http://deb2.example/debian/pool/main/j/jq/jq_1.6_amd64.deb 200 "+of("a")+" 5",
		"  GET http://deb.example/debian/pool/main/j/jq/jq_1.7_amd64.deb 404 "+of("b")+" 2",
		"  GET https://go.example/example.org/a/@v/v1.0.0.mod 200 "+of("c")+" 1", "  GET https://go.example/example.org/b/@v/v1.0.0.mod 200 "+of("d")+" 1",
		"  GET https://go.example/example.org/b/@v/v1.0.0.zip 200 "+of("e")+" 1")
	if got := f.Summary(); got.Packages["deb"] != 1 || got.Packages["golang"] != 1 || got.Bytes != 10 {
		t.Errorf("%+v", got)
	}
}

// What a remote file is called in the image stands in a blob of its own.
func TestNeedsTheHeadersOfRemoteFiles(t *testing.T) {
	s, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	body, err := s.Put([]byte("body"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := s.Put([]byte(`{"Content-Disposition":"a"}`))
	if err != nil {
		t.Fatal(err)
	}
	needs, err := s.Needs(&lock.File{Sources: []lock.Source{{Kind: lock.KindHTTP, Ref: "https://files.test/a", Digest: string(body), Tree: tree}}})
	if err != nil || len(needs) != 2 || !needs[0].Has || !needs[1].Has {
		t.Errorf("%+v %v", needs, err)
	}
}
