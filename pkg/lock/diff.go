package lock

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Change is one difference between two locks.
type Change struct {
	Kind    string `json:"kind"`           // "added", "removed", "changed"
	Step    string `json:"step,omitempty"` // "" for a source
	Subject string `json:"subject"`        // "package python3 3.11.2-1 (deb)", "base image debian:12", or the URI
	PURL    string `json:"purl,omitempty"` // of what is there after, or of what was removed
	Text    string `json:"text"`           // the whole in words, one line
}

const (
	added   = "added"
	removed = "removed"
	changed = "changed"
)

// Diff says what changed, in the order of the files: sources, then step by
// step, packages first. None means that the two are the same.
func Diff(before, after *File) []Change {
	before, after = before.clone(), after.clone()
	before.sort()
	after.sort()
	changes := diffSources(before.Sources, after.Sources)
	for _, pair := range pairSteps(before.Steps, after.Steps) {
		changes = append(changes, pair.diff()...)
	}
	if len(changes) == 0 && !bytes.Equal(before.Marshal(), after.Marshal()) {
		text := fmt.Sprintf("changed headers of answers: replay %s to %s", orNone(before.Replay), orNone(after.Replay))
		changes = append(changes, Change{Kind: changed, Subject: "headers", Text: text})
	}
	return changes
}

func orNone(d attest.Digest) string { return cmp.Or(string(d), "none") }

func kindTitle(kind string) string {
	switch kind {
	case KindImage:
		return "base image"
	case KindGit:
		return "git source"
	}
	return "remote file"
}

func (s *Source) subject() string { return kindTitle(s.Kind) + " " + word(s.Ref) }

func (s *Source) on() string {
	if s.Platform == "" {
		return ""
	}
	return " (" + word(s.Platform) + ")"
}

func diffSources(before, after []Source) []Change {
	find := func(in []Source, s Source) (Source, bool) {
		i, ok := slices.BinarySearchFunc(in, s, compareSources)
		if !ok {
			return Source{}, false
		}
		return in[i], true
	}
	var changes []Change
	var gone, come []Source
	for _, b := range before {
		a, ok := find(after, b)
		switch {
		case !ok:
			gone = append(gone, b)
		case a.Digest != b.Digest:
			changes = append(changes, Change{Kind: changed, Subject: a.subject(),
				Text: fmt.Sprintf("changed %s%s from %s to %s", a.subject(), a.on(), b.Digest, a.Digest)})
		case a.Tree != b.Tree:
			changes = append(changes, Change{Kind: changed, Subject: a.subject(),
				Text: fmt.Sprintf("changed %s%s from tree %s to %s, with the same commit", a.subject(), a.on(), orNone(b.Tree), orNone(a.Tree))})
		case a.Size != b.Size:
			changes = append(changes, Change{Kind: changed, Subject: a.subject(),
				Text: fmt.Sprintf("changed %s%s from %d to %d bytes, with the same digest", a.subject(), a.on(), b.Size, a.Size)})
		}
	}
	for _, a := range after {
		if _, ok := find(before, a); !ok {
			come = append(come, a)
		}
	}
	// Another tag of the same repository is a change of base image.
	type origin struct{ kind, platform, repository string }
	of := func(s Source) origin { return origin{s.Kind, s.Platform, repository(s)} }
	went, came := map[origin]int{}, map[origin][]Source{}
	for _, b := range gone {
		went[of(b)]++
	}
	for _, a := range come {
		came[of(a)] = append(came[of(a)], a)
	}
	moved := map[origin]bool{}
	for _, b := range gone {
		if went[of(b)] != 1 || len(came[of(b)]) != 1 {
			changes = append(changes, Change{Kind: removed, Subject: b.subject(),
				Text: fmt.Sprintf("removed %s%s %s", b.subject(), b.on(), b.Digest)})
			continue
		}
		a := came[of(b)][0]
		moved[of(b)] = true
		changes = append(changes, Change{Kind: changed, Subject: a.subject(),
			Text: fmt.Sprintf("changed %s%s from %s to %s %s", b.subject(), b.on(), b.Digest, word(a.Ref), a.Digest)})
	}
	for _, a := range come {
		if moved[of(a)] {
			continue
		}
		changes = append(changes, Change{Kind: added, Subject: a.subject(),
			Text: fmt.Sprintf("added %s%s %s", a.subject(), a.on(), a.Digest)})
	}
	return changes
}

// repository is a reference without its tag, digest, branch or query.
func repository(s Source) string {
	ref := s.Ref
	if s.Kind != KindImage {
		return ref[:strings.IndexAny(ref+"#", "#?")]
	}
	if strings.HasPrefix(ref, "named-context:") {
		return ref
	}
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	return ref
}

// stepPair is a step before and after; one may be nil.
type stepPair struct{ before, after *Step }

// pairSteps pairs steps of one name, and then, within a stage, those whose name
// changed, in their order.
func pairSteps(before, after []Step) []stepPair {
	var pairs []stepPair
	where := func(s *Step) [2]string { return [2]string{s.Platform, s.Stage} }
	left := map[[2]string][]*Step{}
	paired := map[*Step]*Step{}
	for i := range before {
		b := &before[i]
		if j, ok := slices.BinarySearchFunc(after, *b, compareSteps); ok {
			paired[&after[j]] = b
		} else {
			left[where(b)] = append(left[where(b)], b)
		}
	}
	for i := range after {
		a := &after[i]
		if paired[a] == nil && len(left[where(a)]) > 0 {
			paired[a] = left[where(a)][0]
			left[where(a)] = left[where(a)][1:]
		}
		pairs = append(pairs, stepPair{paired[a], a})
	}
	gone := map[*Step]bool{}
	for _, steps := range left {
		for _, b := range steps {
			gone[b] = true
		}
	}
	for i := range before {
		if gone[&before[i]] {
			pairs = append(pairs, stepPair{&before[i], nil})
		}
	}
	return pairs
}

// Title is the step's name, stage and platform in one line.
func (s *Step) Title() string {
	name := strings.Join(strings.Fields(s.Name), " ")
	if r := []rune(name); len(r) > 80 {
		name = string(r[:80]) + "…"
	}
	where := strings.TrimSpace(s.Stage + " " + s.Platform)
	title := visible(name)
	if where != "" {
		title += " [" + visible(where) + "]"
	}
	return title
}

// rewritten shows where two commands differ, with a few words around it.
func rewritten(before, after string) string {
	const around = 3
	b, a := strings.Fields(before), strings.Fields(after)
	head := 0
	for head < min(len(a), len(b)) && a[head] == b[head] {
		head++
	}
	tail := 0
	for tail < min(len(a), len(b))-head && a[len(a)-1-tail] == b[len(b)-1-tail] {
		tail++
	}
	show := func(w []string) string {
		from, to := max(0, head-around), min(len(w), len(w)-tail+around)
		text := strings.Join(w[from:to], " ")
		if from > 0 {
			text = "… " + text
		}
		if to < len(w) {
			text += " …"
		}
		if r := []rune(text); len(r) > 160 {
			text = string(r[:160]) + "…"
		}
		return strconv.Quote(text)
	}
	return show(b) + " is now " + show(a)
}

// visible shows what would act on a terminal or cannot be seen.
func visible(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	quoted := strconv.Quote(s)
	return quoted[1 : len(quoted)-1]
}

func (p stepPair) diff() []Change {
	var changes []Change
	var b, a []Entry
	var title string
	switch {
	case p.before == nil:
		title, a = p.after.Title(), p.after.Entries
		changes = append(changes, Change{Kind: added, Step: title, Subject: "step", Text: "added step " + title})
	case p.after == nil:
		title, b = p.before.Title(), p.before.Entries
		changes = append(changes, Change{Kind: removed, Step: title, Subject: "step", Text: "removed step " + title})
	default:
		title, b, a = p.after.Title(), p.before.Entries, p.after.Entries
		if p.before.Name != p.after.Name {
			changes = append(changes, Change{Kind: changed, Step: title, Subject: "step",
				Text: "changed the step's command: " + rewritten(p.before.Name, p.after.Name)})
		}
	}
	d := entryDiff{before: byAsked(b), after: byAsked(a), was: versions(b), is: versions(a)}
	for _, c := range d.changes() {
		c.Step = title
		changes = append(changes, c)
	}
	return changes
}

func byAsked(entries []Entry) map[asked][]Entry {
	m := map[asked][]Entry{}
	for _, e := range entries {
		key := e.asked()
		m[key] = append(m[key], e)
	}
	return m
}

// release is a package at a version, whatever file of it is fetched.
func (p pkg) release() pkg { return pkg{p.kind, p.namespace, p.name, p.version, ""} }

// versions are the releases that entries fetch.
func versions(entries []Entry) map[pkg]bool {
	m := map[pkg]bool{}
	for _, e := range entries {
		if p, ok := packageOf(e.URI); ok && e.Status < 300 {
			m[p.release()] = true
		}
	}
	return m
}

type entryDiff struct {
	before, after map[asked][]Entry
	was, is       map[pkg]bool // all releases before and after
}

func (d entryDiff) changes() []Change {
	var packages, others []Change
	gone, come := map[pkg][]Entry{}, map[pkg][]Entry{} // by release
	for _, key := range d.keys() {
		b, a := d.before[key], d.after[key]
		if slices.EqualFunc(b, a, func(x, y Entry) bool { return x.same(&y) }) {
			continue
		}
		p, isPackage := packageOf(key.shape)
		isPackage = isPackage && answered(b) && answered(a)
		switch {
		case isPackage && len(b) == 0:
			come[p.release()] = append(come[p.release()], a...)
		case isPackage && len(a) == 0:
			gone[p.release()] = append(gone[p.release()], b...)
		case isPackage:
			packages = append(packages, packageChange(changed, p, "changed package %s: "+difference(b, a)))
		default:
			others = append(others, plainChange(key, b, a))
		}
	}
	packages = append(packages, d.releases(gone, come)...)
	slices.SortStableFunc(packages, func(a, b Change) int { return cmp.Compare(a.Subject, b.Subject) })
	return append(packages, others...)
}

// answered is false where an answer is an error page.
func answered(entries []Entry) bool {
	return !slices.ContainsFunc(entries, func(e Entry) bool { return e.Status >= 300 })
}

func (d entryDiff) keys() []asked {
	var keys []asked
	for k := range d.before {
		keys = append(keys, k)
	}
	for k := range d.after {
		if _, both := d.before[k]; !both {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b asked) int {
		return cmp.Or(cmp.Compare(a.shape, b.shape), cmp.Compare(a.method, b.method), cmp.Compare(a.request, b.request), cmp.Compare(a.rang, b.rang))
	})
	return keys
}

// releases says which packages came, went, or have another version.
func (d entryDiff) releases(gone, come map[pkg][]Entry) []Change {
	var changes []Change
	byPackage := map[pkg][2][]pkg{} // without version: what went, what came
	for side, m := range []map[pkg][]Entry{gone, come} {
		other := []map[pkg]bool{d.is, d.was}[side]
		for p, entries := range m {
			if !other[p] {
				id := p
				id.version = ""
				pair := byPackage[id]
				pair[side] = append(pair[side], p)
				byPackage[id] = pair
				continue
			}
			// The release is on both sides: its files, or where they come
			// from, changed. Said once where one file took another's place.
			if old, now := gone[p], come[p]; len(old) == 1 && len(now) == 1 {
				if side == 1 {
					changes = append(changes, packageChange(changed, p, "changed package %s: "+difference(old, now)+fmt.Sprintf(", from %s, not %s", now[0].URI, old[0].URI)))
				}
				continue
			}
			for _, e := range entries {
				kind := []string{removed, added}[side]
				changes = append(changes, packageChange(kind, p, fmt.Sprintf("%s file of package %%s: %s %s", kind, e.URI, e.Digest)))
			}
		}
	}
	for _, pair := range byPackage {
		for i := range pair {
			slices.SortFunc(pair[i], func(a, b pkg) int { return cmp.Compare(a.version, b.version) })
		}
		if len(pair[0]) == 1 && len(pair[1]) == 1 {
			b, a := pair[0][0], pair[1][0]
			c := packageChange(changed, a, "")
			c.Text = fmt.Sprintf("changed package %s %s -> %s (%s)", a.title(), b.version, a.version, a.kind)
			changes = append(changes, c)
			continue
		}
		for i, kind := range []string{removed, added} {
			for _, p := range pair[i] {
				changes = append(changes, packageChange(kind, p, kind+" package %s"))
			}
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return cmp.Or(cmp.Compare(a.Subject, b.Subject), cmp.Compare(a.Text, b.Text)) })
	return changes
}

// packageChange puts the package where format has its %s.
func packageChange(kind string, p pkg, format string) Change {
	title := fmt.Sprintf("%s %s (%s)", p.title(), p.version, p.kind)
	return Change{Kind: kind, Subject: "package " + title, PURL: p.purl(), Text: strings.Replace(format, "%s", title, 1)}
}

func plainChange(key asked, b, a []Entry) Change {
	c := Change{Kind: changed, Subject: key.shape}
	what := word(key.method) + " " + key.shape
	if key.rang != "" {
		what += " (" + word(key.rang) + ")"
	}
	switch {
	case len(b) == 0:
		c.Kind, c.Text = added, fmt.Sprintf("added %s, %s", what, a[0].answer())
	case len(a) == 0:
		c.Kind, c.Text = removed, fmt.Sprintf("removed %s, %s", what, b[0].answer())
	default:
		c.Text = fmt.Sprintf("changed %s: %s", what, difference(b, a))
	}
	return c
}

func (e *Entry) answer() string {
	text := fmt.Sprintf("%s, %d bytes", e.Digest, e.Size)
	if e.Status != 200 {
		text = fmt.Sprintf("%d %s", e.Status, text)
	}
	if e.Cut {
		text += ", cut"
	}
	if e.Location != "" {
		text += " -> " + word(e.Location)
	}
	return text
}

// difference says where two sequences of answers part.
func difference(b, a []Entry) string {
	for i := range min(len(b), len(a)) {
		if b[i].same(&a[i]) {
			continue
		}
		if b[i].Digest == a[i].Digest && b[i].Status == a[i].Status && b[i].Location == a[i].Location && b[i].Cut == a[i].Cut {
			return fmt.Sprintf("was %d bytes, is %d, with the same digest", b[i].Size, a[i].Size)
		}
		return fmt.Sprintf("was %s, is %s", b[i].answer(), a[i].answer())
	}
	if len(b) != len(a) {
		return fmt.Sprintf("was answered in %d ways one after the other, is in %d", len(b), len(a))
	}
	return "same bytes"
}
