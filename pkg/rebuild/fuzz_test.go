package rebuild

import (
	"archive/zip"
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// seeds are one file of every kind that is taken apart.
func seeds(t testing.TB) [][]byte {
	t.Helper()
	body := file{name: "a", body: "content", when: day1}
	tarball := layerOf(t, body, file{name: "b/", kind: '5', mode: 0o755}, file{name: "a", body: "x", pax: map[string]string{"SCHILY.xattr.user.x": "y"}})
	return [][]byte{
		nil, gzipped(t, []byte("content"), 6, day1), append(gzipped(t, []byte("a"), 1, 0), gzipped(t, []byte("b"), 9, day2)...),
		tarball, gzipped(t, tarball, 6, 0), []byte(arOf("1700000000", body, file{name: "odd", body: "x"})),
		[]byte(zipOf(t, day1, zip.Deflate, body, file{name: "b"})), []byte("#!/bin/sh\n" + zipShift(zipOf(t, day1, zip.Store, body), 10)),
		[]byte(pyc(day1, "code")), []byte("\xfd7zXZ\x00"), []byte("BZh9"), []byte("\x28\xb5\x2f\xfd"), []byte("\x7fELF\x02\x01\x01"),
		[]byte("line one\nline two 2026-01-02 03:04:05\n"), []byte("a:*:19000:0:99999:7:::\n"),
	}
}

// FuzzExplain: whatever two files are, one that differs is found to differ,
// nothing is found of one that does not, and no reader ends the program.
func FuzzExplain(f *testing.F) {
	all := seeds(f)
	for i := range all {
		f.Add("var/log/apt/history.log", all[i], all[(i+1)%len(all)])
		other := bytes.Clone(all[i])
		if len(other) > 8 {
			other[5]++
		}
		f.Add("etc/shadow", all[i], other)
	}
	f.Fuzz(func(t *testing.T, where string, a, b []byte) {
		beforeA, beforeB := bytes.Clone(a), bytes.Clone(b)
		left, same := int64(4<<20), int64(4<<20)
		found := explain(where, a, b, &left)
		if bytes.Equal(a, b) != (len(found) == 0) {
			t.Fatalf("equal %v, found %+v", bytes.Equal(a, b), found)
		}
		for _, f := range found {
			if f.cause == "" {
				t.Errorf("a difference without a cause: %+v", f)
			}
		}
		if !bytes.Equal(a, beforeA) || !bytes.Equal(b, beforeB) {
			t.Error("the files were changed")
		}
		// Which of the two is the original makes no difference to what is equal.
		covered := func(list []finding) bool {
			return !slices.ContainsFunc(list, func(f finding) bool { return len(f.normalisers) == 0 })
		}
		if again := explain(where, b, a, &same); covered(again) != covered(found) {
			t.Errorf("one way %+v, the other %+v", found, again)
		}
	})
}

// FuzzTakeApart: an archive taken apart with nothing left out holds its
// members' bytes, and leaving nothing out twice gives the same.
func FuzzTakeApart(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	none := func(normaliser) bool { return false }
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		x, y := takeApart(data, none, &budget{1 << 20}), takeApart(data, none, &budget{1 << 20})
		if !bytes.Equal(data, before) {
			t.Fatal("the file was changed")
		}
		if (x == nil) != (y == nil) || x != nil && !(sameShape(x, y) && between(x, y)) {
			t.Fatal("twice the same file, two results")
		}
		if z := takeApart(data, all, &budget{1 << 20}); x != nil && z != nil && len(members(x)) != len(members(z)) {
			t.Error("normalisers changed the members")
		}
	})
}

// held is a place with two layers and nothing else.
type held map[attest.Digest][]byte

func (h held) Resolve(context.Context) (store.Descriptor, error) {
	return store.Descriptor{}, store.ErrNotFound
}

func (h held) Manifest(context.Context, attest.Digest) ([]byte, store.Descriptor, error) {
	return nil, store.Descriptor{}, store.ErrNotFound
}

func (h held) Blob(_ context.Context, d attest.Digest) (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(h[d])), nil
}

// FuzzLayers: two layers of any bytes give an error, or a difference whenever
// they are not the same, and never a verdict that depends on their order.
func FuzzLayers(f *testing.F) {
	one := layerOf(f, file{name: "a", body: "x", when: day1}, file{name: "b", kind: '5'}, file{name: "c", kind: '2', link: "a"})
	for _, s := range [][]byte{one, layerOf(f, file{name: "a", body: "y", when: day2}), gzipped(f, one, 6, day1), append(bytes.Clone(one), one...), nil, []byte("junk")} {
		f.Add(one, s)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if len(a)+len(b) > 1<<20 {
			t.Skip("large")
		}
		verdict := func(a, b []byte) string {
			place, tl := held{}, newTally()
			layer := func(raw []byte) *tree {
				d := attest.DigestOf(raw)
				place[d] = raw
				return &tree{place: place, layers: []descriptor{{Digest: string(d), Size: int64(len(raw))}}, first: 1}
			}
			x, y := layer(a), layer(b)
			if err := compareTrees(t.Context(), x, y, t.TempDir(), tl); err != nil {
				return "error"
			}
			if !bytes.Equal(a, b) && tl.total == 0 {
				t.Fatal("other bytes, and no difference")
			}
			return tl.verdict(false)
		}
		if one, two := verdict(a, b), verdict(b, a); one != two {
			t.Errorf("one way %s, the other %s", one, two)
		}
	})
}
