// Package lock keeps what a build took in: the lock file, which names every
// input by digest and is committed beside the Dockerfile, and the store, which
// holds the bytes by digest. Call OpenStore for the store, Parse or FromInputs
// for a lock file. Nothing here opens a connection, and nothing that was read
// from a lock, an archive or the store's folder is believed before it is
// checked.
package lock

import (
	"cmp"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// File is a lock file.
type File struct {
	Sources []Source
	Steps   []Step
	// Replay is the digest of a blob in the store with what a replay needs
	// besides the bodies: the responses' headers.
	Replay attest.Digest
}

// The kinds of Source.
const (
	KindImage = "image"
	KindGit   = "git"
	KindHTTP  = "http"
)

// Source is a base image, a git commit or a remote file.
type Source struct {
	Kind     string // KindImage, KindGit, KindHTTP
	Ref      string // what the Dockerfile or command asks for, credentials removed
	Platform string
	Digest   string // "sha256:…" or "gitCommit:…"
	Tree     attest.Digest
	Size     int64
}

// Step is what one step may fetch. Steps are known by name, stage and platform,
// so that a change elsewhere does not unlock them. A step without entries may
// fetch nothing.
type Step struct {
	Name, Stage, Platform string
	Entries               []Entry
}

// Entry is one exchange: asking this gives that. Several of one method and URI
// are answered in order, and the last of them from then on.
type Entry struct {
	Method        string
	URI           string // by Shape: no keyed hashes, which differ from machine to machine
	RequestDigest attest.Digest
	Range         string
	Status        int
	Digest        attest.Digest // "hmac-sha256:…" for a body that held a secret and was withheld
	Size          int64
	Cut           bool
	Location      string            // where a redirect leads, by Shape
	Headers       map[string]string // from the replay blob; absent before LoadReplay
}

// sortKey orders a step's entries; those that are equal in it keep the order
// in which they were seen.
func (e *Entry) compare(o *Entry) int {
	return cmp.Or(
		cmp.Compare(e.URI, o.URI),
		cmp.Compare(e.Method, o.Method),
		cmp.Compare(e.RequestDigest, o.RequestDigest),
		cmp.Compare(e.Range, o.Range),
	)
}

// same reports whether two exchanges gave the same answer.
func (e *Entry) same(o *Entry) bool {
	return e.Status == o.Status && e.Digest == o.Digest && e.Size == o.Size && e.Cut == o.Cut && e.Location == o.Location
}

func compareSources(a, b Source) int {
	return cmp.Or(
		cmp.Compare(sourceRank(a.Kind), sourceRank(b.Kind)),
		cmp.Compare(a.Ref, b.Ref),
		cmp.Compare(a.Platform, b.Platform),
	)
}

func sourceRank(kind string) int {
	return slices.Index([]string{KindImage, KindGit, KindHTTP}, kind)
}

func compareSteps(a, b Step) int {
	return cmp.Or(cmp.Compare(a.Platform, b.Platform), cmp.Compare(a.Stage, b.Stage), cmp.Compare(a.Name, b.Name))
}

// sort puts a lock in its one order.
func (f *File) sort() {
	slices.SortFunc(f.Sources, compareSources)
	slices.SortFunc(f.Steps, compareSteps)
	for i := range f.Steps {
		slices.SortStableFunc(f.Steps[i].Entries, func(a, b Entry) int { return a.compare(&b) })
	}
}

// Summary counts what a lock lists.
type Summary struct {
	Images    int            `json:"images"`
	Git       int            `json:"gitSources"`
	Files     int            `json:"remoteFiles"`
	Steps     int            `json:"steps"`
	Exchanges int            `json:"exchanges"`
	Packages  map[string]int `json:"packages"` // by type, "deb"; each release once
	Bytes     int64          `json:"bytes"`    // of different answers, without base images
}

// Summary counts what the lock lists.
func (f *File) Summary() Summary {
	s := Summary{Packages: map[string]int{}, Steps: len(f.Steps)}
	for _, src := range f.Sources {
		switch src.Kind {
		case KindImage:
			s.Images++
		case KindGit:
			s.Git++
		case KindHTTP:
			s.Files++
			s.Bytes += src.Size
		}
	}
	seen := map[attest.Digest]bool{}
	releases := map[pkg]bool{}
	for _, st := range f.Steps {
		s.Exchanges += len(st.Entries)
		for _, e := range st.Entries {
			if !seen[e.Digest] {
				seen[e.Digest] = true
				s.Bytes += e.Size
			}
			p, ok := packageOf(e.URI)
			// A module whose go.mod alone was read is not in the build.
			if ok && e.Status < 300 && (p.kind != "golang" || strings.HasSuffix(e.URI, ".zip")) {
				releases[p.release()] = true
			}
		}
	}
	for p := range releases {
		s.Packages[p.kind]++
	}
	return s
}
