package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/util/tracing"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// registryHosts puts our transport between BuildKit and the registries. In
// modes locked and offline it knows what a tag was when the lock was made, and
// answers from the store what the store has; offline it answers nothing else.
func (r *recorder) registryHosts(hosts docker.RegistryHosts) docker.RegistryHosts {
	if !r.plan.Locked() {
		return hosts
	}
	return func(host string) ([]docker.RegistryHost, error) {
		out, err := hosts(host)
		if err != nil {
			return nil, err
		}
		for i := range out {
			inner := tracing.DefaultTransport
			if out[i].Client != nil && out[i].Client.Transport != nil {
				inner = out[i].Client.Transport
			}
			out[i].Client = &http.Client{Transport: &lockedRegistry{name: host, rec: r, inner: inner}}
		}
		return out, nil
	}
}

// lockedRegistry is the transport to one registry under a lock.
type lockedRegistry struct {
	name  string // as in references: "docker.io"
	rec   *recorder
	inner http.RoundTripper
}

func (t *lockedRegistry) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		defer req.Body.Close()
	}
	w, err := t.rec.watch()
	if err != nil {
		return nil, err
	}
	name, kind, what, ok := parseRegistryPath(req.URL.Path)
	if !ok || (req.Method != http.MethodGet && req.Method != http.MethodHead) {
		return t.upstream(req)
	}
	d, err := attest.ParseDigest(what)
	switch {
	case err != nil && kind != "manifests":
		return t.upstream(req)
	case err != nil:
		d, err = w.lockedTag(t.name + "/" + name + ":" + what)
	case kind == "manifests" || req.Method == http.MethodHead: // what is no manifest is looked for among the blobs
		err = w.lockedDigest(t.name+"/"+name, d, t.rec.blobs)
	}
	if err != nil {
		return nil, err
	}
	if resp, err := w.stored(req, kind, d); resp != nil || err != nil {
		return resp, err
	}
	if t.rec.plan.Offline() {
		return nil, fmt.Errorf("%s: the store does not have %s of image %s/%s, and the build is offline", violationPrefix, d, t.name, name)
	}
	if what != string(d) {
		req = req.Clone(req.Context())
		req.URL.Path = strings.TrimSuffix(req.URL.Path, what) + string(d)
		req.URL.RawPath = ""
	}
	resp, err := t.inner.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusOK && kind == "manifests" {
		// What came is checked against it, whatever the registry calls it.
		resp.Header.Set("Docker-Content-Digest", string(d))
	}
	return resp, err
}

// upstream passes on what is no content: greetings and tokens.
func (t *lockedRegistry) upstream(req *http.Request) (*http.Response, error) {
	if t.rec.plan.Offline() {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Redacted(), egress.ErrOffline)
	}
	return t.inner.RoundTrip(req)
}

// parseRegistryPath splits /v2/NAME/(manifests|blobs)/WHAT.
func parseRegistryPath(path string) (name, kind, what string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return "", "", "", false
	}
	i := strings.LastIndexByte(rest, '/')
	if i < 0 {
		return "", "", "", false
	}
	rest, what = rest[:i], rest[i+1:]
	i = strings.LastIndexByte(rest, '/')
	if i <= 0 || what == "" {
		return "", "", "", false
	}
	name, kind = rest[:i], rest[i+1:]
	return name, kind, what, kind == "manifests" || kind == "blobs"
}

// lockedTag is what the lock has for an image.
func (w *watch) lockedTag(ref string) (attest.Digest, error) {
	want := normalImage(ref)
	for _, s := range w.lock.Sources {
		if s.Kind == lock.KindImage && normalImage(s.Ref) == want {
			return attest.ParseDigest(s.Digest)
		}
	}
	return "", lockViolation("FROM "+want, "", "")
}

// lockedDigest refuses a manifest of an image that the lock does not list. What
// a listed index consists of is listed with it: blobs is where BuildKit keeps
// the index by the time it asks for a part.
func (w *watch) lockedDigest(name string, d attest.Digest, blobs string) error {
	for _, s := range w.lock.Sources {
		named, err := reference.ParseNormalizedNamed(s.Ref)
		if s.Kind == lock.KindImage && err == nil && named.Name() == name && w.consistsOf(attest.Digest(s.Digest), d, blobs, 2) {
			return nil
		}
	}
	return lockViolation("FROM "+name+"@"+string(d), "", "")
}

// consistsOf reports whether a manifest is d, or an index that leads to it.
func (w *watch) consistsOf(top, d attest.Digest, blobs string, depth int) bool {
	if top == d {
		return true
	}
	if depth == 0 {
		return false
	}
	var raw []byte
	if f, err := os.Open(filepath.Join(blobs, "sha256", top.Hex())); err == nil {
		raw, _ = readBlob(f, attest.MaxManifest)
		f.Close()
	} else if w.store != nil {
		if b, err := w.store.OpenVerified(top); err == nil {
			raw, _ = readBlob(b, attest.MaxManifest)
			b.Close()
		}
	}
	var ix ocispecs.Index
	if json.Unmarshal(raw, &ix) != nil {
		return false
	}
	return slices.ContainsFunc(ix.Manifests, func(m ocispecs.Descriptor) bool {
		part, err := attest.ParseDigest(string(m.Digest))
		return err == nil && w.consistsOf(part, d, blobs, depth-1)
	})
}

func normalImage(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.TagNameOnly(named).String()
}

// stored answers from the store, or nothing where it has not got it.
func (w *watch) stored(req *http.Request, kind string, d attest.Digest) (*http.Response, error) {
	if w.store == nil {
		return nil, nil
	}
	blob, err := w.store.Open(d)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	h := http.Header{"Docker-Content-Digest": {string(d)}, "Content-Type": {"application/octet-stream"}}
	if kind == "manifests" {
		raw, err := readBlob(blob, attest.MaxManifest)
		blob.Close()
		if err != nil {
			return nil, fmt.Errorf("reading manifest %s: %w", d, err)
		}
		h.Set("Content-Type", manifestType(raw))
		return respond(req, h, nopCloserSeeker{bytes.NewReader(raw)}, int64(len(raw)))
	}
	return respond(req, h, blob, blob.Size)
}

type nopCloserSeeker struct{ *bytes.Reader }

func (nopCloserSeeker) Close() error { return nil }

// respond makes the answer to a GET, whole or from an offset, or a HEAD.
func respond(req *http.Request, h http.Header, body io.ReadSeekCloser, size int64) (*http.Response, error) {
	resp := &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, ContentLength: size, Request: req, Body: body,
	}
	if from, ok := rangeFrom(req.Header.Get("Range")); ok && from < size && req.Method == http.MethodGet {
		if _, err := body.Seek(from, io.SeekStart); err != nil {
			body.Close()
			return nil, err
		}
		resp.Status, resp.StatusCode = "206 Partial Content", http.StatusPartialContent
		resp.ContentLength = size - from
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, size-1, size))
	}
	h.Set("Content-Length", strconv.FormatInt(resp.ContentLength, 10))
	if req.Method == http.MethodHead {
		body.Close()
		resp.Body = http.NoBody
	}
	return resp, nil
}

// rangeFrom reads "bytes=N-", the only form that resumes.
func rangeFrom(s string) (int64, bool) {
	s, ok := strings.CutPrefix(s, "bytes=")
	if !ok || !strings.HasSuffix(s, "-") {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSuffix(s, "-"), 10, 64)
	return n, err == nil && n > 0
}

// manifestType is the media type of a manifest or index.
func manifestType(raw []byte) string {
	var m struct {
		MediaType string            `json:"mediaType"`
		Manifests []json.RawMessage `json:"manifests"`
	}
	_ = json.Unmarshal(raw, &m)
	switch {
	case m.MediaType != "":
		return m.MediaType
	case m.Manifests != nil:
		return ocispecs.MediaTypeImageIndex
	default:
		return ocispecs.MediaTypeImageManifest
	}
}

func readBlob(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("over the limit of %d bytes", limit)
	}
	return raw, err
}

// imageKeeper puts base images into the store: the bytes of the platform that
// was used, from BuildKit's own store of contents.
type imageKeeper struct {
	blobs string // folder of BuildKit's blobs
	store *lock.Store
}

// keep reports whether the store has all of an image's platform afterwards.
func (k *imageKeeper) keep(ctx context.Context, s *attestations.InputSource) (bool, error) {
	top, err := attest.ParseDigest(s.Digest)
	if err != nil {
		return false, nil
	}
	p := platforms.DefaultSpec()
	if s.Platform != "" {
		if p, err = platforms.Parse(s.Platform); err != nil {
			return false, nil
		}
	}
	raw, err := k.manifest(top)
	if err != nil || raw == nil {
		return false, err
	}
	if images.IsIndexType(manifestType(raw)) {
		var ix ocispecs.Index
		if err := json.Unmarshal(raw, &ix); err != nil {
			return false, nil
		}
		d, ok := choose(ix, p)
		if !ok {
			return false, nil
		}
		if raw, err = k.manifest(d); err != nil || raw == nil {
			return false, err
		}
	}
	var m ocispecs.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return false, nil
	}
	all := true
	for _, desc := range append([]ocispecs.Descriptor{m.Config}, m.Layers...) {
		d, err := attest.ParseDigest(string(desc.Digest))
		if err != nil {
			return false, nil
		}
		has, err := k.take(d)
		if err != nil || ctx.Err() != nil {
			return false, errors.Join(err, ctx.Err())
		}
		all = all && has
	}
	return all, nil
}

// manifest returns a manifest's bytes once the store has them.
func (k *imageKeeper) manifest(d attest.Digest) ([]byte, error) {
	has, err := k.take(d)
	if err != nil || !has {
		return nil, err
	}
	b, err := k.store.Open(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return readBlob(b, attest.MaxManifest)
}

func (k *imageKeeper) take(d attest.Digest) (bool, error) {
	if k.store.Has(d) {
		return true, nil
	}
	err := k.store.Take(filepath.Join(k.blobs, "sha256", strings.TrimPrefix(string(d), "sha256:")), d)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// choose finds the manifest of a platform as containerd does.
func choose(ix ocispecs.Index, p ocispecs.Platform) (attest.Digest, bool) {
	match := platforms.Only(p)
	var fit []ocispecs.Descriptor
	for _, d := range ix.Manifests {
		if d.Platform == nil || match.Match(*d.Platform) {
			fit = append(fit, d)
		}
	}
	slices.SortStableFunc(fit, func(a, b ocispecs.Descriptor) int {
		switch {
		case a.Platform == nil || b.Platform == nil:
			return 0
		case match.Less(*a.Platform, *b.Platform):
			return -1
		case match.Less(*b.Platform, *a.Platform):
			return 1
		}
		return 0
	})
	if len(fit) == 0 {
		return "", false
	}
	d, err := attest.ParseDigest(string(fit[0].Digest))
	return d, err == nil
}
