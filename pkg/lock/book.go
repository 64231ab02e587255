package lock

import (
	"fmt"
	"net/http"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// asked is what tells two requests apart.
type asked struct {
	method, shape string
	request       attest.Digest
	rang          string
}

// ask names the empty request body as no body at all.
func ask(method, uri string, request attest.Digest, rang string) asked {
	if request.Hex() == emptyHex {
		request = ""
	}
	return asked{method, Shape(uri), request, rang}
}

// Book answers what a lock expects, in order; one for each step of a build.
// Safe for concurrent use.
type Book struct {
	file    *File
	entries map[asked][]Entry

	mu   sync.Mutex
	next map[asked]int
}

// Book opens the book of a step. A step that the lock does not name may ask
// for anything the lock lists anywhere.
func (f *File) Book(name, stage, platform string) *Book {
	b := &Book{file: f, entries: map[asked][]Entry{}, next: map[asked]int{}}
	own := f.step(name, stage, platform)
	for i := range f.Steps {
		if own != nil && own != &f.Steps[i] {
			continue
		}
		for _, e := range f.Steps[i].Entries {
			key := e.asked()
			b.entries[key] = append(b.entries[key], e)
		}
	}
	return b
}

// asked is ask for an entry, whose URI has its shape already.
func (e *Entry) asked() asked {
	request := e.RequestDigest
	if request.Hex() == emptyHex {
		request = ""
	}
	return asked{e.Method, e.URI, request, e.Range}
}

// near is what the whole lock has for a URI.
func (b *Book) near(shape string) []Entry {
	var near []Entry
	for i := range b.file.Steps {
		for _, e := range b.file.Steps[i].Entries {
			if e.URI == shape {
				near = append(near, e)
			}
		}
	}
	return near
}

func (f *File) step(name, stage, platform string) *Step {
	for i := range f.Steps {
		if s := &f.Steps[i]; s.Name == name && s.Stage == stage && s.Platform == platform {
			return s
		}
	}
	return nil
}

// Expect returns what the next exchange of this kind must give, and whether
// the lock lists one: same method, URI (by Shape), request body and range.
// near is, where it does not, what the lock has for this URI, for the error.
func (b *Book) Expect(method, uri string, request attest.Digest, rang string) (e Entry, near []Entry, ok bool) {
	key := ask(method, uri, request, rang)
	list := b.entries[key]
	if len(list) == 0 {
		return Entry{}, b.near(key.shape), false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i := min(b.next[key], len(list)-1)
	b.next[key]++
	return list[i], nil, true
}

// Lists returns the entry for exactly this exchange, wherever it stands in the
// order: clients that ask in parallel get their answers in any.
func (b *Book) Lists(method, uri string, request attest.Digest, rang string, status int, digest attest.Digest) (Entry, bool) {
	for _, e := range b.entries[ask(method, uri, request, rang)] {
		if e.Status == status && e.Digest == digest && !e.Cut {
			return e, true
		}
	}
	return Entry{}, false
}

const maxReasons = 20 // said of one step

// Admits reports in words what of a recorded step the lock does not list with
// its status and digest; none means all of it does. Order and number do not
// matter: clients ask in parallel, and ask again.
func (f *File) Admits(st *attestations.InputStep) []string {
	return f.admits(st, false)
}

// AdmitsRun is Admits for a step that ran under this very lock: a range or a
// HEAD that the gateway answered from the store is part of a body that the
// lock lists, and what was not answered failed the build or was given up. Of a
// step that ran under another nobody knows which body it was, or what it missed.
func (f *File) AdmitsRun(st *attestations.InputStep) []string {
	return f.admits(st, !st.Reused)
}

func (f *File) admits(st *attestations.InputStep, ran bool) []string {
	b := f.Book(st.Name, st.Stage, st.Platform)
	var why []string
	more := 0
	answered := sync.OnceValue(func() map[asked]bool { return answeredIn(st) })
	for i := range st.Requests {
		r := &st.Requests[i]
		reason := b.refuses(r)
		switch {
		case reason != "" && ran && b.isPart(r):
			continue
		case reason == "" && !ran && r.Unanswered != "" && !answered()[askedIn(r)]:
			reason = fmt.Sprintf("%s %s: expected an answer, got none", word(r.Method), word(r.URI))
		}
		switch {
		case reason == "":
		case len(why) < maxReasons:
			why = append(why, reason)
		default:
			more++
		}
	}
	if more > 0 {
		why = append(why, fmt.Sprintf("and %d more", more))
	}
	return why
}

// isPart reports whether an answer from the store can be a part of a body that
// is listed whole.
func (b *Book) isPart(r *attestations.InputRequest) bool {
	if !r.FromStore || r.Range == "" && r.Method != http.MethodHead {
		return false
	}
	for _, e := range b.entries[ask(http.MethodGet, r.URI, attest.Digest(r.RequestDigest), "")] {
		if e.Status == http.StatusOK && !e.Cut {
			return true
		}
	}
	return false
}

func askedIn(r *attestations.InputRequest) asked {
	return ask(r.Method, r.URI, attest.Digest(r.RequestDigest), r.Range)
}

// answeredIn is what a step got an answer to, at the first try or a later one.
func answeredIn(st *attestations.InputStep) map[asked]bool {
	all := map[asked]bool{}
	for i := range st.Requests {
		if r := &st.Requests[i]; r.Unanswered == "" {
			all[askedIn(r)] = true
		}
	}
	return all
}

func (b *Book) refuses(r *attestations.InputRequest) string {
	list := b.entries[askedIn(r)]
	got := Entry{Status: r.Status, Digest: attest.Digest(r.Digest), Cut: r.Cut}
	if r.Status/100 == 3 {
		got.Location = Shape(r.Headers["location"])
	}
	for _, e := range list {
		if r.Unanswered != "" {
			return "" // it may be sent, and nothing came in
		}
		if e.Status == got.Status && e.Digest == got.Digest && e.Cut == got.Cut && (e.Status/100 != 3 || Shape(e.Location) == got.Location) {
			return ""
		}
	}
	if len(list) == 0 {
		return fmt.Sprintf("%s %s: not in the lock", word(r.Method), word(r.URI))
	}
	return fmt.Sprintf("%s %s: expected %s, got %s", word(r.Method), word(r.URI), list[0].given(), got.given())
}

// given is an answer as an error says it.
func (e *Entry) given() string {
	text := fmt.Sprintf("%d %s", e.Status, e.Digest)
	if e.Location != "" {
		text += " -> " + word(e.Location)
	}
	return text
}
