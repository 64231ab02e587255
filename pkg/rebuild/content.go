package rebuild

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

// finding is one difference within a file.
type finding struct {
	inside      string // "!/a/b" of an archive's member, "" for the file itself
	cause       string
	original    string
	rebuilt     string
	normalisers []normaliser // none: nothing makes it equal
}

// maxFindings bounds what is said of one file.
const maxFindings = 200

// looker compares the contents of one file.
type looker struct {
	where string // in the image, without the leading slash
	left  *int64 // bytes that may still be unpacked of the whole image
	out   []finding
	more  int
}

// explain says what differs between two contents of the file at where, and
// why. It finds something whenever they are not the same bytes; they are equal
// after normalising when every finding has normalisers. left is how many bytes
// may be unpacked of this file and all that follow; beyond it archives are
// compared as they are.
func explain(where string, a, b []byte, left *int64) []finding {
	l := &looker{where: where, left: left}
	l.compare("", a, b, 0)
	if l.more > 0 {
		l.out = append(l.out, finding{cause: fmt.Sprintf("%d more differences within this file are not listed", l.more)})
	}
	return l.out
}

func (l *looker) add(f finding) {
	if len(l.out) >= maxFindings {
		l.more++
		return
	}
	l.out = append(l.out, f)
}

func (l *looker) compare(inside string, a, b []byte, depth int) {
	if bytes.Equal(a, b) {
		return
	}
	if depth < attest.MaxArchiveDepth && l.archives(inside, a, b, depth) {
		return
	}
	l.leaves(inside, a, b)
}

func (l *looker) open(data []byte, on func(normaliser) bool) *archive {
	b := &budget{left: min(attest.MaxUnpacked, *l.left)}
	before := b.left
	a := takeApart(data, on, b)
	*l.left -= before - b.left
	return a
}

// archives compares two archives of one kind part by part; false for anything
// else.
func (l *looker) archives(inside string, a, b []byte, depth int) bool {
	x, y := l.open(a, all), l.open(b, all)
	if x == nil || y == nil || x.kind != y.kind {
		return false
	}
	if !sameShape(x, y) {
		l.shapes(inside, x, y)
		l.commonMembers(inside, x, y, depth)
		return true
	}
	if between(x, y) {
		list := needed(x.uses, func(on func(normaliser) bool) bool {
			x, y := l.open(a, on), l.open(b, on)
			return x != nil && y != nil && sameShape(x, y) && between(x, y)
		})
		if len(list) > 0 {
			l.add(finding{inside: inside, cause: archiveCause(list[0], a, b), original: archiveSample(list[0], a), rebuilt: archiveSample(list[0], b), normalisers: list})
		}
	} else {
		l.add(finding{inside: inside, cause: "what the " + x.kind + " says of its members differs" + memberOf(x, y)})
	}
	repacked := false
	for i, p := range x.parts {
		if !p.member {
			continue
		}
		q := y.parts[i]
		// The compressed bytes count only where the content is the same: other
		// content could not give the same.
		repacked = repacked || bytes.Equal(p.data, q.data) && !bytes.Equal(p.packed, q.packed)
		l.compare(memberPath(inside, p.name), p.data, q.data, depth+1)
	}
	if repacked {
		l.add(finding{inside: inside, cause: "the same content, compressed differently", normalisers: []normaliser{compressionV1}})
	}
	return true
}

// memberPath leads into an archive. A compressed file has one member without
// a name, which needs no step of its own.
func memberPath(inside, name string) string {
	if name == "" {
		return inside
	}
	return inside + "!/" + strings.TrimPrefix(name, "./")
}

// sameShape reports whether two archives have the same members in the same
// places.
func sameShape(x, y *archive) bool {
	return slices.EqualFunc(x.parts, y.parts, func(p, q part) bool { return p.member == q.member && p.name == q.name })
}

// between reports whether what stands between the members is the same.
func between(x, y *archive) bool {
	return slices.EqualFunc(x.parts, y.parts, func(p, q part) bool { return p.member || bytes.Equal(p.data, q.data) })
}

// memberOf names the first member whose header differs.
func memberOf(x, y *archive) string {
	for i, p := range x.parts {
		if !p.member && p.name != "" && !bytes.Equal(p.data, y.parts[i].data) {
			return fmt.Sprintf(" (first at %q)", clip(p.name))
		}
	}
	return ""
}

func members(a *archive) map[string][]byte {
	out := map[string][]byte{}
	for _, p := range a.parts {
		if _, ok := out[p.name]; p.member && !ok {
			out[p.name] = p.data
		}
	}
	return out
}

// shapes says how the members of two archives differ.
func (l *looker) shapes(inside string, x, y *archive) {
	before, after := members(x), members(y)
	var missing, added []string
	for name := range before {
		if _, ok := after[name]; !ok {
			missing = append(missing, name)
		}
	}
	for name := range after {
		if _, ok := before[name]; !ok {
			added = append(added, name)
		}
	}
	if len(missing)+len(added) == 0 {
		l.add(finding{inside: inside, cause: "the " + x.kind + " has its members in another order, or headers of another form"})
		return
	}
	f := finding{inside: inside, cause: "the " + x.kind + " has other members"}
	if len(missing) > 0 {
		f.original = "also holds " + listed(missing)
	}
	if len(added) > 0 {
		f.rebuilt = "also holds " + listed(added)
	}
	l.add(f)
}

func (l *looker) commonMembers(inside string, x, y *archive, depth int) {
	after := members(y)
	seen := map[string]bool{}
	for _, p := range x.parts {
		if other, ok := after[p.name]; p.member && ok && !seen[p.name] {
			seen[p.name] = true
			l.compare(memberPath(inside, p.name), p.data, other, depth+1)
		}
	}
}

// listed is a few of some names.
func listed(names []string) string {
	slices.Sort(names)
	more := ""
	if n := len(names) - 3; n > 0 {
		names, more = names[:3], fmt.Sprintf(" and %d more", n)
	}
	for i, n := range names {
		names[i] = clip(n)
	}
	return strings.Join(names, ", ") + more
}

// leaves compares two contents that are no archives of one kind.
func (l *looker) leaves(inside string, a, b []byte) {
	where := l.where
	if inside != "" {
		where = "" // only the image's own files are known by their path
	}
	list := slices.Concat(leafNormalisers(where, a), leafNormalisers(where, b))
	equal := func(on func(normaliser) bool) bool { return bytes.Equal(leaf(where, a, on), leaf(where, b, on)) }
	f := finding{inside: inside, original: sizeAndDigest(a), rebuilt: sizeAndDigest(b)}
	if equal(onlyThese(list)) {
		f.normalisers = needed(list, equal)
		f.cause = leafCause(f.normalisers[0], where)
		if f.normalisers[0] == pycMtimeV1 {
			f.original, f.rebuilt = seconds(a[8:12]), seconds(b[8:12])
		}
		l.add(f)
		return
	}
	d := describe(where, a, b)
	f.cause = d.cause
	if d.original != "" || d.rebuilt != "" {
		f.original, f.rebuilt = d.original, d.rebuilt
	}
	l.add(f)
}

func sizeAndDigest(b []byte) string {
	return fmt.Sprintf("%d bytes, %s", len(b), attest.DigestOf(b))
}

// clip makes foreign text fit to be shown and signed: printable and short.
func clip(s string) string { return clipTo(s, 240) }

func clipTo(s string, most int) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(s, "\uFFFD") {
		if b.Len() > most {
			return b.String() + "…"
		}
		if printable(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "\\x%02x", r)
		}
	}
	return b.String()
}
