package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"

	httpsource "github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/worker/base"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// maxFileHeaders bounds what is kept of the headers of a remote file.
const maxFileHeaders = 64 << 10

// fileSlack is how many bytes more than the lock expects are read of a remote
// file, to say what came instead.
const fileSlack = 1 << 20

// keptHeaders are those of a remote file's answer on which the file's name and
// time in the image depend.
func keptHeaders() []string { return []string{"Last-Modified", "Content-Disposition", "Content-Type"} }

// remoteFiles is the transport of ADD with a URL. In mode record it goes
// through the gateway, which keeps the bytes. Under a lock a file is taken from
// the store, or fetched, compared, and taken from the store then.
type remoteFiles struct {
	rec  *recorder
	open func() (http.RoundTripper, error) // the gateway's

	mu   sync.Mutex
	seen map[string]remoteFile // by shape of the URL
}

// remoteFile is what is known of a file once it was fetched.
type remoteFile struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
	Tree   string `json:"tree,omitempty"` // of the headers, as the store keeps them
}

func (r *recorder) newRemoteFiles() *remoteFiles {
	return &remoteFiles{rec: r, open: sync.OnceValues(r.openFiles), seen: map[string]remoteFile{}}
}

// openFiles opens the gateway for the engine's own requests. Under a lock it
// is one that records: what came is compared here before anybody sees it.
func (r *recorder) openFiles() (http.RoundTripper, error) {
	w, err := r.watch()
	if err != nil {
		return nil, err
	}
	g := w.gateway
	if r.plan.Mode == attestations.InputsLocked {
		opts := w.options
		opts.Mode, opts.Lock = attestations.InputsRecord, nil
		if g, err = egress.New(opts); err != nil {
			return nil, err
		}
	}
	step, err := g.Open(context.Background(), egress.StepOptions{Name: "ADD", Fetch: true})
	if err != nil {
		return nil, fmt.Errorf("opening the gateway for remote files: %w", err)
	}
	r.mu.Lock()
	r.fileStep = step
	r.mu.Unlock()
	return step.Transport(), nil
}

// watchFiles puts our transport below the worker's source of remote files.
func (r *recorder) watchFiles(w *base.Worker) error {
	s, err := httpsource.NewSource(httpsource.Opt{CacheAccessor: w.CacheMgr, Transport: r.files})
	if err != nil {
		return err
	}
	w.HTTPSource = s
	return nil
}

func (t *remoteFiles) RoundTrip(req *http.Request) (*http.Response, error) {
	w, err := t.rec.watch()
	if err != nil {
		return nil, err
	}
	if t.rec.plan.Mode == attestations.InputsNone {
		return nil, &violationError{step: "ADD " + w.redactor.URI(req.URL.String()), texts: []string{"with --inputs none the build may not use the network"}}
	}
	if t.rec.plan.Locked() {
		return t.held(req, w)
	}
	shape := lock.Shape(w.redactor.URI(req.URL.String()))
	if req.Header.Get("If-None-Match") != "" {
		// BuildKit has the file of an earlier build and asks whether it is
		// still that. It may, where we know that one, too.
		if f, ok := t.known(shape); !ok || (w.store != nil && !w.has(f.Digest)) {
			if req.Method == http.MethodHead {
				return respond(req, http.Header{}, nopCloserSeeker{}, 0)
			}
			req = req.Clone(req.Context())
			req.Header.Del("If-None-Match")
		}
	}
	resp, err := t.fetch(req)
	if err != nil || resp.StatusCode != http.StatusOK || req.Method != http.MethodGet {
		return resp, err
	}
	return t.note(resp, shape, w)
}

// fetch follows redirects: where a file is in the end is not where it was asked for.
func (t *remoteFiles) fetch(req *http.Request) (*http.Response, error) {
	gateway, err := t.open()
	if err != nil {
		return nil, err
	}
	c := http.Client{Transport: gateway}
	req = req.Clone(req.Context())
	req.RequestURI = ""
	resp, err := c.Do(req)
	if vs := t.rec.fileViolations(); vs != nil {
		if err == nil {
			resp.Body.Close()
		}
		return nil, vs
	}
	if err == nil && resp.Header.Get("X-Waxseal") != "" {
		// The gateway's own answer says why, and BuildKit would not show it.
		defer resp.Body.Close()
		why, err := readBlob(resp.Body, maxFileHeaders)
		if err != nil {
			return nil, err
		}
		w, err := t.rec.watch()
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 500 {
			// Nobody refused it: upstream did not answer.
			return nil, errors.New(strings.TrimPrefix(strings.TrimSpace(string(why)), "waxseal: "))
		}
		return nil, &violationError{step: "ADD " + w.redactor.URI(req.URL.String()), texts: []string{strings.TrimPrefix(strings.TrimSpace(string(why)), "waxseal: ")}}
	}
	return resp, err
}

func (r *recorder) fileViolations() error {
	r.mu.Lock()
	step := r.fileStep
	r.mu.Unlock()
	if step == nil {
		return nil
	}
	vs := step.Violations()
	if len(vs) == 0 {
		return nil
	}
	e := &violationError{step: "ADD"}
	for _, v := range vs {
		e.texts = append(e.texts, v.Text)
	}
	return e
}

// note keeps the file's bytes and headers as BuildKit reads it.
func (t *remoteFiles) note(resp *http.Response, shape string, w *watch) (*http.Response, error) {
	f := remoteFile{}
	if w.store == nil {
		return resp, nil
	}
	raw, err := json.Marshal(fileHeaders(resp.Header))
	if err != nil {
		return nil, err
	}
	tree, err := w.store.Put(raw)
	if err != nil {
		return nil, err
	}
	f.Tree = string(tree)
	out, err := w.store.NewWriter()
	if err != nil {
		return nil, err
	}
	resp.Body = &notedBody{ReadCloser: resp.Body, out: out, done: func() error {
		d, err := out.Commit()
		if err != nil {
			return err
		}
		f.Digest, f.Size = string(d), out.Size()
		t.remember(shape, f)
		return nil
	}}
	return resp, nil
}

// fileHeaders are those of an answer that are kept.
func fileHeaders(h http.Header) map[string]string {
	kept := map[string]string{}
	for _, k := range keptHeaders() {
		if v := h.Get(k); v != "" && len(v) < 4<<10 {
			kept[k] = v
		}
	}
	return kept
}

type notedBody struct {
	io.ReadCloser
	out  *lock.Writer
	done func() error
}

func (b *notedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.out == nil {
		return n, err
	}
	if _, werr := b.out.Write(p[:n]); werr != nil {
		return 0, werr
	}
	if errors.Is(err, io.EOF) {
		b.out = nil
		if derr := b.done(); derr != nil {
			return 0, derr
		}
	}
	return n, err
}

func (b *notedBody) Close() error {
	if b.out != nil {
		b.out.Abort()
		b.out = nil
	}
	return b.ReadCloser.Close()
}

func (t *remoteFiles) remember(shape string, f remoteFile) {
	t.mu.Lock()
	t.seen[shape] = f
	t.mu.Unlock()
	t.rec.lineage.keepNote("file "+shape, f)
}

func (t *remoteFiles) known(shape string) (remoteFile, bool) {
	t.mu.Lock()
	f, ok := t.seen[shape]
	t.mu.Unlock()
	if ok {
		return f, true
	}
	ok = t.rec.lineage.note("file "+shape, &f)
	return f, ok
}

// held gives the file that the lock lists.
func (t *remoteFiles) held(req *http.Request, w *watch) (*http.Response, error) {
	uri := w.redactor.URI(req.URL.String())
	var want *lock.Source
	for i, s := range w.lock.Sources {
		if s.Kind == lock.KindHTTP && lock.Shape(s.Ref) == lock.Shape(uri) {
			want = &w.lock.Sources[i]
			break
		}
	}
	step := "ADD " + uri
	if want == nil {
		return nil, lockViolation(step, "", "")
	}
	if req.Method == http.MethodHead {
		// BuildKit looks whether what it has is current. It shall fetch it.
		return respond(req, http.Header{}, nopCloserSeeker{}, 0)
	}
	d, err := attest.ParseDigest(want.Digest)
	if err != nil {
		return nil, err
	}
	missing := d
	if w.store != nil && w.store.Has(d) {
		if missing = want.Tree; want.Tree == "" || w.store.Has(want.Tree) {
			return t.fromStore(req, w, want, d)
		}
	}
	if t.rec.plan.Offline() {
		return nil, fmt.Errorf("%s: %s: the store does not have %s, and the build is offline", violationPrefix, step, missing)
	}
	fresh := req.Clone(req.Context())
	fresh.Header.Del("If-None-Match")
	resp, err := t.fetch(fresh)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	limit := int64(attest.MaxBlob)
	if want.Size > 0 {
		limit = want.Size + fileSlack
	}
	spool, got, size, err := w.spool(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if size > limit {
		spool.Close()
		return nil, lockViolation(step, string(d), fmt.Sprintf("more than %d bytes", limit))
	}
	if got != d {
		spool.Close()
		return nil, lockViolation(step, string(d), string(got))
	}
	h, err := t.heldHeaders(w, want, resp.Header, step)
	if err != nil {
		spool.Close()
		return nil, err
	}
	return respond(req, h, spool, size)
}

// heldHeaders are those that the lock lists with a file, from which it gets its
// name and time: the store's, else upstream's if they are the same.
func (t *remoteFiles) heldHeaders(w *watch, want *lock.Source, got http.Header, step string) (http.Header, error) {
	kept := fileHeaders(got)
	raw, err := json.Marshal(kept)
	if err != nil {
		return nil, err
	}
	if want.Tree != "" && attest.DigestOf(raw) != want.Tree {
		if w.store == nil || !w.store.Has(want.Tree) {
			return nil, lockViolation(step, "its name, type and time to be those of "+string(want.Tree), string(raw))
		}
		return w.storedHeaders(want.Tree)
	}
	h := http.Header{}
	for k, v := range kept {
		h.Set(k, v)
	}
	return h, nil
}

// storedHeaders are those that the store keeps with a file.
func (w *watch) storedHeaders(tree attest.Digest) (http.Header, error) {
	b, err := w.store.OpenVerified(tree)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	raw, err := readBlob(b, maxFileHeaders)
	if err != nil {
		return nil, err
	}
	headers := map[string]string{}
	if err := json.Unmarshal(raw, &headers); err != nil {
		return nil, fmt.Errorf("reading the headers %s: %w", tree, err)
	}
	h := http.Header{}
	for _, k := range keptHeaders() {
		if v := headers[k]; v != "" {
			h.Set(k, v)
		}
	}
	return h, nil
}

func (t *remoteFiles) fromStore(req *http.Request, w *watch, want *lock.Source, d attest.Digest) (*http.Response, error) {
	h := http.Header{}
	if want.Tree != "" {
		// Without them the file has another name or time in the image.
		var err error
		if h, err = w.storedHeaders(want.Tree); err != nil {
			return nil, err
		}
	}
	b, err := w.store.OpenVerified(d)
	if err != nil {
		return nil, err
	}
	return respond(req, h, b, b.Size)
}

// spool reads all of a body before anybody sees any of it.
func (w *watch) spool(body io.Reader) (io.ReadSeekCloser, attest.Digest, int64, error) {
	f, err := os.CreateTemp("", "remote-file-")
	if err != nil {
		return nil, "", 0, fmt.Errorf("making a temporary file: %w", err)
	}
	_ = os.Remove(f.Name())
	h := sha256.New()
	size, err := io.Copy(io.MultiWriter(f, h), body)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, "", 0, fmt.Errorf("fetching a remote file: %w", err)
	}
	return f, attest.Digest("sha256:" + hex.EncodeToString(h.Sum(nil))), size, nil
}

func (w *watch) has(digest string) bool {
	d, err := attest.ParseDigest(digest)
	return err == nil && w.store.Has(d)
}

// source completes what is known of a remote file.
func (t *remoteFiles) source(s *attestations.InputSource, w *watch) {
	f, ok := t.known(lock.Shape(s.URI))
	if t.rec.plan.Locked() {
		for _, l := range w.lock.Sources {
			if l.Kind == lock.KindHTTP && lock.Shape(l.Ref) == lock.Shape(s.URI) && l.Digest == s.Digest {
				f, ok = remoteFile{Digest: l.Digest, Size: l.Size, Tree: string(l.Tree)}, true
			}
		}
	}
	if !ok || f.Digest != s.Digest {
		return
	}
	s.Size, s.Tree = f.Size, f.Tree
	s.Stored = w.store != nil && w.has(f.Digest)
}
