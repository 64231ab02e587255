package lock

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Need is a blob that a replay of a lock needs.
type Need struct {
	Digest attest.Digest
	Size   int64  // as far as known
	For    string // "base image debian:12", "GET https://…", "the headers of answers"
	Has    bool   // the store has it
}

// Needs lists what replays of locks need, in the order of the digests, each
// once, and whether the store has it. A body that was withheld cannot be kept:
// it is listed, with its keyed digest, as one that the store has not.
func (s *Store) Needs(files ...*File) ([]Need, error) {
	n := needs{s: s, by: map[attest.Digest]*Need{}}
	for _, f := range files {
		if f.Replay != "" {
			n.add(f.Replay, 0, "the headers of answers")
		}
		for i := range f.Sources {
			if err := n.source(&f.Sources[i]); err != nil {
				return nil, err
			}
		}
		for i := range f.Steps {
			for _, e := range f.Steps[i].Entries {
				n.add(e.Digest, e.Size, word(e.Method)+" "+e.URI)
			}
		}
	}
	all := make([]Need, 0, len(n.by))
	for _, need := range n.by {
		all = append(all, *need)
	}
	slices.SortFunc(all, func(a, b Need) int { return cmp.Compare(a.Digest, b.Digest) })
	return all, nil
}

type needs struct {
	s  *Store
	by map[attest.Digest]*Need
}

// add notes a blob and reports whether it is new and there.
func (n *needs) add(d attest.Digest, size int64, what string) bool {
	if d == "" || d.Hex() == emptyHex || n.by[d] != nil {
		return false
	}
	need := &Need{Digest: d, Size: size, For: what, Has: n.s.Has(d)}
	n.by[d] = need
	return need.Has
}

func (n *needs) source(src *Source) error {
	what := src.subject()
	switch src.Kind {
	case KindGit:
		n.add(src.Tree, src.Size, what)
		return nil
	case KindHTTP:
		n.add(attest.Digest(src.Digest), src.Size, what)
		n.add(src.Tree, 0, what) // its name and time
		return nil
	}
	return n.manifest(attest.Digest(src.Digest), src.Platform, what, 0)
}

// manifest follows an image's manifest or index to its blobs. Of an index
// only the platform's image is needed.
func (n *needs) manifest(d attest.Digest, platform, what string, depth int) error {
	if !n.add(d, 0, what) {
		return nil
	}
	if depth > 2 {
		return fmt.Errorf("reading %s: %s: indexes too deep in each other", what, d)
	}
	raw, err := n.s.readAll(d, attest.MaxManifest)
	if errors.Is(err, ErrCorrupt) {
		n.by[d].Has = false
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	n.by[d].Size = int64(len(raw))
	type descriptor struct {
		Digest   string
		Size     int64
		Platform struct{ OS, Architecture, Variant string }
	}
	var m struct {
		Manifests, Layers []descriptor
		Config            *descriptor
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("reading %s: manifest %s: %w", what, d, err)
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, b := range blobs {
		bd, err := attest.ParseDigest(b.Digest)
		if err != nil {
			return fmt.Errorf("reading %s: manifest %s: %w", what, d, err)
		}
		n.add(bd, b.Size, what)
	}
	for _, b := range m.Manifests {
		bd, err := attest.ParseDigest(b.Digest)
		if err != nil {
			return fmt.Errorf("reading %s: index %s: %w", what, d, err)
		}
		if platform == "" && !n.s.Has(bd) || platform != "" && !samePlatform(platform, b.Platform.OS, b.Platform.Architecture, b.Platform.Variant) {
			continue
		}
		if err := n.manifest(bd, platform, what, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// samePlatform reports whether a platform, "linux/arm64/v8", is one; a
// variant that only one of them names does not matter.
func samePlatform(platform, os, arch, variant string) bool {
	p := strings.Split(platform, "/")
	return len(p) >= 2 && p[0] == os && p[1] == arch && (len(p) < 3 || variant == "" || p[2] == variant)
}

// readAll reads a whole blob, checked, of at most limit bytes.
func (s *Store) readAll(d attest.Digest, limit int64) ([]byte, error) {
	b, err := s.OpenVerified(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.Size > limit {
		return nil, fmt.Errorf("reading %s: it has %d bytes, and %d are allowed", d, b.Size, limit)
	}
	var buf bytes.Buffer
	_, err = io.Copy(&buf, io.LimitReader(b, limit))
	return buf.Bytes(), err
}
