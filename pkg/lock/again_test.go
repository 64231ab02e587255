package lock_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func changed(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// A blob that the store has is compared with its copy instead of being written,
// and whatever else comes, the store has what came.
func TestABlobThatComesAgain(t *testing.T) {
	var seed [32]byte
	had := make([]byte, 3<<20+17)
	_, _ = rand.NewChaCha8(seed).Read(had)
	for name, c := range map[string]struct {
		body   []byte
		writes bool
	}{
		"the same":                         {had, false},
		"another byte right after":         {changed(had, 64<<10), true},
		"another byte in the middle":       {changed(had, 1<<20), true},
		"another last byte":                {changed(had, len(had)-1), true},
		"another head":                     {changed(had, 7), true},
		"more":                             {append(bytes.Clone(had), "and more"...), true},
		"cut short":                        {had[:2<<20], false}, // until Commit
		"cut short after the head":         {had[:64<<10+1], false},
		"no more than what fits in memory": {had[:64<<10], false},
	} {
		for _, piece := range []int{1000, 128 << 10, len(c.body)} {
			t.Run(name, func(t *testing.T) {
				s := open(t)
				put(t, s, had)
				w, err := s.NewWriter()
				if err != nil {
					t.Fatal(err)
				}
				for b := c.body; len(b) > 0; b = b[min(piece, len(b)):] {
					if n, err := w.Write(b[:min(piece, len(b))]); err != nil || n != min(piece, len(b)) {
						t.Fatal(n, err)
					}
				}
				if n := len(temps(t, s)); (n > 0) != c.writes {
					t.Errorf("%d files are being written", n)
				}
				r, err := w.Reader()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, c.body) {
					t.Errorf("before Commit it reads as %d bytes, %v", len(got), err)
				}
				if d, err := w.Commit(); err != nil || d != attest.DigestOf(c.body) {
					t.Errorf("Commit: %s, %v", d, err)
				}
				for _, want := range [][]byte{had, c.body} {
					b, err := s.OpenVerified(attest.DigestOf(want))
					if err != nil {
						t.Fatal(err)
					}
					if got, err := io.ReadAll(b); err != nil || !bytes.Equal(got, want) {
						t.Errorf("the store has %d bytes, %v", len(got), err)
					}
					b.Close()
				}
			})
		}
	}
}

// A copy that is damaged is seen to be when the right bytes come, and they take
// its place. So is one that became a note's by mistake.
func TestADamagedCopyIsReplaced(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 20<<10)
	for name, damaged := range map[string][]byte{
		"another byte": changed(body, 200<<10),
		"too short":    body[:100<<10],
		"too long":     append(bytes.Clone(body), 0),
		"nothing":      nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			d := put(t, s, body)
			file := blobPath(s, d)
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damaged, 0o400); err != nil {
				t.Fatal(err)
			}
			if got := put(t, s, body); got != d {
				t.Errorf("it is stored as %s", got)
			}
			if err := s.Check(d); err != nil {
				t.Error(err)
			}
		})
	}
}

// What gc removes is not looked for any more, and what lies among the notes and
// is none stays.
func TestGCForgetsHeads(t *testing.T) {
	s := open(t)
	kept, gone := bytes.Repeat([]byte("kept"), 50<<10), bytes.Repeat([]byte("gone"), 50<<10)
	d := put(t, s, kept)
	put(t, s, gone)
	stranger := filepath.Join(s.Dir(), "heads", "README")
	if err := os.WriteFile(stranger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), lock.GCOptions{Digests: []attest.Digest{d}}); err != nil {
		t.Fatal(err)
	}
	notes, err := os.ReadDir(filepath.Join(s.Dir(), "heads"))
	if err != nil || len(notes) != 2 {
		t.Errorf("the notes are %v, %v", notes, err)
	}
	if got := put(t, s, gone); s.Check(got) != nil {
		t.Error("it could not be stored again")
	}
}
