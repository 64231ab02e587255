package egress

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

const (
	maxSpool = 16 << 20 // bytes of a request body that must be known before it is answered
	slack    = 64 << 20 // read beyond what the lock expects, to say what came instead
)

// conditional headers are answered with the body: that is always right.
func conditional() []string {
	return []string{"If-None-Match", "If-Modified-Since", "If-Match", "If-Unmodified-Since"}
}

// replay answers a request with what the lock expects and nothing else.
func (x *exchange) replay() {
	sent, err := x.spool()
	if sent != nil {
		defer sent.close()
	}
	if errors.Is(err, errSpool) {
		x.storeFailed(err)
	}
	if err != nil {
		x.s.rec.refuse(refusal{kind: "http", dest: x.dest(), reason: "the request's body ended early"})
		panic(http.ErrAbortHandler)
	}
	if sent.size > maxSpool {
		x.violate("", "a request body of more than "+strconv.Itoa(maxSpool)+" bytes", http.StatusRequestEntityTooLarge, "no request this large can be held to a lock")
		return
	}
	digest, _ := x.body.digest(x.s.g.redactor)
	rang := x.r.Header.Get("Range")
	e, near, ok := x.s.book.Expect(x.r.Method, x.uri, digest, rang)
	switch {
	case ok:
		x.give(e, sent, digest)
	case rang != "" || x.r.Method == http.MethodHead:
		// What a whole body says, its parts and its headers say too.
		if whole, _, ok := x.s.book.Expect(http.MethodGet, x.uri, digest, ""); ok && whole.Status == http.StatusOK && !whole.Cut && x.part(whole) {
			return
		}
		x.unlisted(near)
	default:
		x.unlisted(near)
	}
}

// spooled is a request's body that had to be known whole before it was
// answered: a little of it in memory, the rest in a file without a name.
type spooled struct {
	head []byte
	tail *os.File // nil for a small one
	size int64
}

const spoolHead = 64 << 10

var errSpool = errors.New("keeping the request's body")

func (x *exchange) spool() (*spooled, error) {
	var err error
	sp := &spooled{}
	if sp.head, err = io.ReadAll(io.LimitReader(x.body, spoolHead)); err != nil {
		return nil, err
	}
	sp.size = int64(len(sp.head))
	if sp.size < spoolHead {
		return sp, nil
	}
	dir, err := x.s.g.folder()
	if err == nil {
		sp.tail, err = os.CreateTemp(dir, "request-")
	}
	if err == nil {
		err = os.Remove(sp.tail.Name())
	}
	if err != nil {
		return sp, fmt.Errorf("%w: %w", errSpool, err)
	}
	n, err := io.Copy(sp.tail, io.LimitReader(x.body, maxSpool+1-sp.size))
	sp.size += n
	return sp, err
}

// reader reads the body from its start.
func (sp *spooled) reader() io.ReadCloser {
	head := bytes.NewReader(sp.head)
	if sp.tail == nil {
		return io.NopCloser(head)
	}
	return io.NopCloser(io.MultiReader(head, io.NewSectionReader(sp.tail, 0, sp.size-int64(len(sp.head)))))
}

func (sp *spooled) close() {
	if sp.tail != nil {
		sp.tail.Close()
	}
}

// unlisted refuses what the lock does not have.
func (x *exchange) unlisted(near []lock.Entry) {
	got := "not in the lock"
	if len(near) > 0 {
		got += ", which lists of this URL " + describeEntries(near)
	}
	x.violate("", got, http.StatusForbidden, "not in the lock")
}

// violate fails the build and answers the step.
func (x *exchange) violate(expected, got string, status int, reason string) {
	x.s.rec.violate(x.violation(expected, got))
	x.refuse(status, "lock", fmt.Sprintf("%s %s: %s", x.r.Method, x.path(), reason))
}

func (x *exchange) violation(expected, got string) Violation {
	got = x.s.needles.scrub(got) // upstream's words, which can be anything
	text := fmt.Sprintf("%s %s: ", x.r.Method, x.uri)
	if expected != "" {
		text += "expected " + expected + ", got "
	}
	return Violation{Step: x.s.opts.Name, Method: x.r.Method, URI: x.uri, Expected: expected, Got: got, Text: text + got}
}

// entryOf is the record of an answer that the lock prescribes.
func (x *exchange) entryOf(e lock.Entry) attestations.InputRequest {
	h := map[string]string{}
	for k, v := range e.Headers {
		h[k] = v
	}
	return attestations.InputRequest{
		Ordinal: x.ordinal, Method: x.r.Method, URI: x.uri, Range: x.r.Header.Get("Range"),
		Status: e.Status, Digest: string(e.Digest), Size: e.Size, Cut: e.Cut, Headers: h,
	}
}

// give answers with an entry: from the store if its bytes are there, else from
// upstream once they have been checked.
func (x *exchange) give(e lock.Entry, sent *spooled, digest attest.Digest) {
	// A redirect to a signed URL has its signature from upstream only.
	signed := strings.Contains(e.Headers["location"], "{hmac")
	if x.s.g.mode == attestations.InputsLocked && signed {
		if x.fetch(e, sent, digest, true) {
			return
		}
	}
	if x.fromStore(e) {
		return
	}
	if x.s.g.mode == attestations.InputsOffline {
		got := "nothing: the store lacks it"
		if strings.HasPrefix(string(e.Digest), "hmac-") {
			got = "a body that held a secret when it was recorded, and is not kept"
		}
		x.violate(fmt.Sprintf("%d %s from the store", e.Status, e.Digest), got,
			http.StatusForbidden, "the store does not have "+e.Digest.String())
		return
	}
	x.fetch(e, sent, digest, false)
}

// fromStore answers from the store, whose bytes are hashed before the first of
// them goes out; false if it cannot.
func (x *exchange) fromStore(e lock.Entry) bool {
	if e.Headers == nil && x.s.g.mode == attestations.InputsLocked {
		// Without its headers a body may be read wrongly: upstream has them. Loaded
		// headers are never nil, even where there are none.
		return false
	}
	if strings.HasPrefix(string(e.Digest), "hmac-") {
		return false
	}
	b, err := x.s.g.opts.Store.OpenVerified(e.Digest)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) && x.s.g.mode == attestations.InputsOffline {
			x.violate(fmt.Sprintf("%d %s from the store", e.Status, e.Digest), err.Error(), http.StatusForbidden, "the store's copy cannot be used")
			return true
		}
		return false
	}
	defer b.Close()
	a := &answer{entry: x.entryOf(e), pass: e.Headers, length: b.Size}
	a.entry.FromStore = true
	x.release(a, b)
	return true
}

// release sends an answer whose bytes are what they should be.
func (x *exchange) release(a *answer, body io.Reader) {
	if a.entry.Cut {
		a.length = -1
		if n, err := strconv.ParseInt(a.pass["content-length"], 10, 64); err == nil {
			a.length = n
		}
	}
	if !hasBody(x.r.Method, a.entry.Status) {
		x.head(a)
		x.finish(a)
		return
	}
	pass := map[string]string{}
	for k, v := range a.pass {
		if k != "content-length" {
			pass[k] = v
		}
	}
	a.pass = pass
	x.head(a)
	x.finish(a)
	bufp := x.s.g.buffers.Get().(*[]byte)
	defer x.s.g.buffers.Put(bufp)
	_, err := io.CopyBuffer(struct{ io.Writer }{x.w}, struct{ io.Reader }{body}, *bufp)
	if err != nil || a.entry.Cut {
		_ = http.NewResponseController(x.w).Flush()
		panic(http.ErrAbortHandler)
	}
	for k, v := range a.pass {
		if name, ok := strings.CutPrefix(k, trailerPrefix); ok {
			x.w.Header().Set(http.TrailerPrefix+name, v)
		}
	}
}

// part answers a HEAD or a range from a whole body in the store.
func (x *exchange) part(whole lock.Entry) bool {
	if whole.Headers == nil {
		return false // it may be read wrongly without them
	}
	b, err := x.s.g.opts.Store.OpenVerified(whole.Digest)
	if err != nil {
		return false
	}
	defer b.Close()
	for k, v := range whole.Headers {
		x.w.Header().Set(k, v)
	}
	if whole.Headers["content-type"] == "" {
		x.w.Header()["Content-Type"] = nil
	}
	for _, name := range conditional() {
		x.r.Header.Del(name)
	}
	modified, _ := http.ParseTime(whole.Headers["last-modified"])
	w := &partWriter{ResponseWriter: x.w, k: &sink{s: x.s, sum: sha256.New()}}
	http.ServeContent(w, x.r, "", modified, b)
	e := x.entryOf(whole)
	e.Status, e.FromStore = w.status, true
	if v := w.Header().Get("Content-Range"); v != "" {
		e.Headers["content-range"] = v
	}
	if x.r.Method == http.MethodHead {
		e.Headers["content-length"] = strconv.FormatInt(b.Size, 10)
	}
	_ = w.k.commit(&e)
	x.finish(&answer{entry: e})
	return true
}

// partWriter takes the digest of what a step gets of a body.
type partWriter struct {
	http.ResponseWriter
	k      *sink
	status int
}

func (w *partWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *partWriter) Write(p []byte) (int, error) {
	_ = w.k.write(p)
	return w.ResponseWriter.Write(p)
}

// fetch gets an entry from upstream, whole, checks it, and only then lets it
// go. With optional a failure is left to the caller, who gets false.
func (x *exchange) fetch(e lock.Entry, sent *spooled, digest attest.Digest, optional bool) bool {
	key := x.r.Method + " " + x.uri + " " + string(digest) + " " + x.r.Header.Get("Range")
	expected := fmt.Sprintf("%d %s (%d bytes)", e.Status, e.Digest, e.Size)
	ctx, cancel := context.WithCancel(x.s.ctx)
	defer cancel()
	stop := context.AfterFunc(x.r.Context(), cancel)
	defer stop()
	for _, name := range conditional() {
		if e.Status != http.StatusNotModified {
			x.r.Header.Del(name)
		}
	}
	resp, err := x.ask(ctx, sent.reader(), sent.size)
	if err != nil && x.r.Context().Err() != nil {
		x.failed(err) // the client left; nothing has reached it
		return true
	}
	if err != nil {
		if !optional {
			x.s.rec.unsettle(key, x.violation(expected, "no answer from upstream: "+upstreamReason(err)))
			x.failed(err)
		}
		return false
	}
	defer resp.Body.Close()
	a := x.begin(resp)
	w, err := x.s.g.opts.Store.NewWriter()
	if err != nil {
		x.storeFailed(err)
	}
	defer w.Abort()
	var body io.Reader = resp.Body
	switch {
	case !hasBody(x.r.Method, resp.StatusCode) || a.signed:
		body = http.NoBody
	case e.Cut:
		body = io.LimitReader(body, e.Size)
	default:
		body = io.LimitReader(body, e.Size+slack)
	}
	scan := newScanner(x.s.needles, resp.Header.Get("Content-Encoding"))
	store := &storing{w: w, scan: scan}
	bufp := x.s.g.buffers.Get().(*[]byte)
	_, err = io.CopyBuffer(store, struct{ io.Reader }{body}, *bufp)
	x.s.g.buffers.Put(bufp)
	if store.err != nil {
		x.storeFailed(store.err)
	}
	if err != nil && !e.Cut {
		if !optional {
			x.s.rec.unsettle(key, x.violation(expected, fmt.Sprintf("a body that broke off after %d bytes: %s", w.Size(), upstreamReason(err))))
			x.unanswered(fmt.Errorf("the body broke off: %w", err))
		}
		return false
	}
	got := w.Digest()
	withheld := w.Size() > 0 && scan.end()
	if withheld {
		got = attest.Digest(x.s.g.redactor.Hash([]byte(got)))
	}
	if resp.StatusCode != e.Status || got != e.Digest {
		// Clients that ask in parallel get the answers of one URL in any order.
		other, ok := x.s.book.Lists(x.r.Method, x.uri, digest, x.r.Header.Get("Range"), resp.StatusCode, got)
		if !ok {
			if !optional {
				x.s.rec.violate(x.violation(expected, fmt.Sprintf("%d %s (%d bytes)", resp.StatusCode, got, w.Size())))
				x.refuse(http.StatusForbidden, "lock", fmt.Sprintf("%s %s: upstream's answer is not what the lock lists", x.r.Method, x.path()))
			}
			return false
		}
		e = other
	}
	location := e.Location // the lock has it even where the store has no headers
	if e.Headers != nil {
		location = e.Headers["location"]
	}
	if resp.StatusCode/100 == 3 && (a.signed || e.Headers == nil) && lock.Shape(a.entry.Headers["location"]) != lock.Shape(location) {
		if !optional {
			x.s.rec.violate(x.violation("a redirect to "+location, "one to "+a.entry.Headers["location"]))
			x.refuse(http.StatusForbidden, "lock", x.path()+": upstream's redirect is not what the lock lists")
		}
		return false
	}
	x.s.rec.settle(key)
	entry := x.entryOf(e)
	if e.Headers == nil {
		entry.Headers = a.entry.Headers
	}
	entry.Withheld = withheld
	out := &answer{entry: entry, pass: e.Headers, length: w.Size(), signed: a.signed}
	switch {
	case e.Headers == nil:
		out.pass = a.pass
	case a.signed: // upstream's is the signature, and nothing else
		out.pass = map[string]string{}
		maps.Copy(out.pass, e.Headers)
		out.pass["location"] = a.pass["location"]
	}
	if withheld {
		x.s.rec.gap("withheld", "the body of %s %s holds a secret of the step and is not kept", x.r.Method, x.uri)
		r, err := w.Reader()
		if err != nil {
			x.storeFailed(err)
		}
		x.release(out, r)
		return true
	}
	// What the store has under this name already may be other bytes. Looking finds
	// out, and Commit replaces what was found to be damaged.
	_ = x.s.g.opts.Store.Check(w.Digest())
	d, err := w.Commit()
	if err != nil {
		x.storeFailed(err)
	}
	b, err := x.s.g.opts.Store.OpenVerified(d)
	if err != nil {
		x.storeFailed(err)
	}
	defer b.Close()
	x.release(out, b)
	return true
}

// storing writes to the store and keeps its error apart from upstream's.
type storing struct {
	w    *lock.Writer
	scan *scanner
	err  error
}

func (s *storing) Write(p []byte) (int, error) {
	s.scan.write(p)
	n, err := s.w.Write(p)
	if err != nil {
		s.err = err
	}
	return n, err
}
