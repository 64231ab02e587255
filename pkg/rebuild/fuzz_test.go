package rebuild

import (
	"archive/zip"
	"bytes"
	"slices"
	"testing"
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
