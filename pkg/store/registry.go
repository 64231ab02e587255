package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// registry is one repository of a registry.
type registry struct {
	ref    Reference
	opts   Options
	repo   name.Repository
	polite http.RoundTripper
	auth   authn.Keychain
	named  *named

	mu        sync.Mutex
	client    *http.Client   // logged in for reading; nil before the first use
	puller    *remote.Puller // over client
	pusher    *remote.Pusher
	resolved  *v1.Descriptor
	manifests map[attest.Digest]cached
}

type cached struct {
	raw  []byte
	desc v1.Descriptor
	doc  *document // of raw; nobody changes it
}

// keptManifest is a manifest as it was served, for places opened later.
type keptManifest struct {
	raw    []byte
	served types.MediaType
}

// login is the right to read a repository.
type login struct {
	puller *remote.Puller
	client *http.Client
}

// maxCached bounds how many manifests one place keeps: an index and its
// platforms, which several questions are asked about.
const maxCached = attest.MaxPlatforms + 2

func openRegistry(ref Reference, opts Options) (*registry, error) {
	var how []name.Option
	// The library would try TLS alone for what it does not know as loopback.
	if opts.Insecure || loopback(ref.host()) {
		how = append(how, name.Insecure)
	}
	repo, err := name.NewRepository(ref.Place, how...)
	if err != nil {
		return nil, &ReferenceError{Input: ref.String(), Cause: plain(err).Error()}
	}
	polite := newTransport(opts)
	if opts.Cache != nil {
		polite = opts.Cache.transport(opts)
	}
	return &registry{
		ref: ref, opts: opts, repo: repo, polite: polite,
		auth: keychain(opts), named: opts.evidenceNamed(), manifests: map[attest.Digest]cached{},
	}, nil
}

func (r *registry) Reference() Reference { return r.ref }

func (r *registry) userAgent() string {
	if r.opts.UserAgent != "" {
		return r.opts.UserAgent
	}
	return "waxseal"
}

// login pings the registry and returns clients with the right to read.
func (r *registry) login(ctx context.Context) (*remote.Puller, *http.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.puller != nil {
		return r.puller, r.client, nil
	}
	if l, ok := recall[login](r, "login", ""); ok {
		r.puller, r.client = l.puller, l.client
		return r.puller, r.client, nil
	}
	auth, err := authn.Resolve(ctx, r.auth, r.repo)
	if err != nil {
		return nil, nil, &Error{Place: r.ref.Place, Action: "finding docker's credentials", Cause: oneLine(err.Error()),
			Way: "check ~/.docker/config.json and the credential helper it names", Err: ErrUnavailable}
	}
	inner, err := transport.NewWithContext(ctx, r.repo.Registry, auth, transport.NewUserAgent(r.polite, r.userAgent()),
		[]string{r.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, nil, err
	}
	// A logged-in transport is taken as it is: no second ping, no second
	// layer of retries.
	puller, err := remote.NewPuller(remote.WithTransport(inner))
	if err != nil {
		return nil, nil, err
	}
	r.puller, r.client = puller, &http.Client{Transport: inner}
	r.keep("login", "", login{r.puller, r.client}, loginSize)
	return r.puller, r.client, nil
}

// writer returns a client that may push. It logs in by itself, because the
// rights it needs grow with the repositories that blobs are mounted from.
func (r *registry) writer() (*remote.Pusher, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pusher != nil {
		return r.pusher, nil
	}
	pusher, err := remote.NewPusher(
		remote.WithAuthFromKeychain(r.auth),
		remote.WithTransport(r.polite),
		remote.WithUserAgent(r.userAgent()),
		remote.WithRetryStatusCodes(), // polite has asked again already
		remote.WithRetryPredicate(uploadAgain),
		remote.WithRetryBackoff(remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.1, Steps: maxTries}),
	)
	if err != nil {
		return nil, err
	}
	r.pusher = pusher
	return pusher, nil
}

// uploadAgain holds for an upload that broke off half-way: it is started over.
func uploadAgain(err error) bool {
	var te *transport.Error
	if errors.As(err, &te) {
		return te.Request != nil && te.Request.Method == http.MethodPatch && te.StatusCode >= 500
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

func (r *registry) Resolve(ctx context.Context) (v1.Descriptor, error) {
	r.mu.Lock()
	known := r.resolved
	r.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	var desc v1.Descriptor
	var err error
	if r.ref.Digest != "" {
		_, desc, err = r.Manifest(ctx, r.ref.Digest)
	} else {
		_, desc, err = r.tagged(ctx, r.ref.Tag)
	}
	if err != nil {
		return v1.Descriptor{}, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resolved == nil { // a second answer must not differ from the first
		r.resolved = &desc
	}
	return *r.resolved, nil
}

func (r *registry) Manifest(ctx context.Context, d attest.Digest) ([]byte, v1.Descriptor, error) {
	c, err := r.manifest(ctx, d)
	return c.raw, c.desc, err
}

// document is Manifest, parsed once.
func (r *registry) document(ctx context.Context, d attest.Digest) (*document, v1.Descriptor, error) {
	c, err := r.manifest(ctx, d)
	return c.doc, c.desc, err
}

func (r *registry) manifest(ctx context.Context, d attest.Digest) (cached, error) {
	r.mu.Lock()
	c, ok := r.manifests[d]
	r.mu.Unlock()
	if ok {
		return c, nil
	}
	if known, ok := recall[keptManifest](r, "manifest", string(d)); ok {
		return r.remember(known)
	}
	return r.get(ctx, "reading manifest "+string(d), r.repo.Digest(string(d)))
}

func (r *registry) tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error) {
	c, err := r.get(ctx, fmt.Sprintf("reading tag %q", tag), r.repo.Tag(tag))
	return c.raw, c.desc, err
}

func (r *registry) get(ctx context.Context, action string, ref name.Reference) (cached, error) {
	place := r.ref.Place
	if r.ref.Tag == ref.Identifier() {
		// The reference as it was typed says more than its parts.
		place, action = r.ref.String(), "reading manifest"
	}
	puller, _, err := r.login(ctx)
	if err != nil {
		return cached{}, r.explainAt(ctx, place, action, err)
	}
	got, err := puller.Get(ctx, ref)
	if err != nil {
		return cached{}, r.explainAt(ctx, place, action, err)
	}
	d := attest.DigestOf(got.Manifest)
	if by, ok := ref.(name.Digest); ok && by.DigestStr() != string(d) {
		return cached{}, r.explain(ctx, action, &mismatch{want: attest.Digest(by.DigestStr())})
	}
	m := keptManifest{got.Manifest, got.MediaType}
	c, err := r.remember(m)
	if err != nil {
		return cached{}, &Error{Place: place, Action: action, Cause: err.Error(), Err: err}
	}
	r.keep("manifest", string(d), m, len(m.raw))
	return c, nil
}

// remember parses a manifest that was checked against its digest.
func (r *registry) remember(m keptManifest) (cached, error) {
	doc, err := parseDocument(m.raw, m.served)
	if err != nil {
		return cached{}, err
	}
	c := cached{m.raw, describe(m.raw, doc.MediaType), doc}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.manifests) < maxCached {
		r.manifests[attest.Digest(c.desc.Digest.String())] = c
	}
	return c, nil
}

func (r *registry) Blob(ctx context.Context, d attest.Digest) (io.ReadCloser, error) {
	if raw, ok := recall[[]byte](r, "blob", string(d)); ok {
		return io.NopCloser(bytes.NewReader(raw)), nil
	}
	action := "reading blob " + string(d)
	puller, _, err := r.login(ctx)
	if err != nil {
		return nil, r.explain(ctx, action, err)
	}
	layer, err := puller.Layer(ctx, r.repo.Digest(string(d)))
	if err != nil {
		return nil, r.explain(ctx, action, err)
	}
	rc, err := layer.Compressed()
	if err != nil {
		return nil, r.explain(ctx, action, err)
	}
	rc = &explained{ReadCloser: rc, explain: func(err error) error { return r.explain(ctx, action, err) }}
	if r.opts.Cache != nil {
		rc = &keeping{ReadCloser: rc, most: r.opts.Cache.share(), keep: func(raw []byte) { r.keep("blob", string(d), raw, len(raw)) }}
	}
	return rc, nil
}

// explained turns the errors of a stream into errors of the place.
type explained struct {
	io.ReadCloser
	explain func(error) error
}

func (e *explained) Read(p []byte) (int, error) {
	n, err := e.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = e.explain(err)
	}
	return n, err
}

func (r *registry) hasBlob(ctx context.Context, d v1.Descriptor) (bool, error) {
	action := "looking for blob " + d.Digest.String()
	puller, _, err := r.login(ctx)
	if err != nil {
		return false, r.explain(ctx, action, err)
	}
	layer, err := puller.Layer(ctx, r.repo.Digest(d.Digest.String()))
	if err != nil {
		return false, r.explain(ctx, action, err)
	}
	size, err := layer.Size()
	err = r.explain(ctx, action, err)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil && size == d.Size, err
}

// fallbackTag is where referrers are listed in a registry without the API.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#referrers-tag-schema
func fallbackTag(d attest.Digest) string { return "sha256-" + d.Hex() }

// linkPattern finds the address in a Link header that leads on.
const linkPattern = `<([^>]*)>\s*;[^,]*rel="?next"?`

// maxReferrerPages bounds the pages of one list of referrers.
const maxReferrerPages = 256

// referrers asks the referrers API, page after page. A registry without it
// answers 404, which is an empty list: the fallback tag is asked for apart.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-referrers
func (r *registry) referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error) {
	found, _, err := r.listReferrers(ctx, d)
	return found, err
}

// listReferrers also says that the registry has not heard of the API.
func (r *registry) listReferrers(ctx context.Context, d attest.Digest) (out []v1.Descriptor, missing bool, err error) {
	action := "listing referrers of " + string(d)
	_, client, err := r.login(ctx)
	if err != nil {
		return nil, false, r.explain(ctx, action, err)
	}
	next := &url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/referrers/%s", r.repo.RepositoryStr(), d)}
	seen := map[string]bool{}
	for next != nil {
		// A list may lead on for ever, or in a circle.
		if len(seen) == maxReferrerPages {
			return nil, false, r.tooMany(action)
		}
		if seen[next.RawQuery] {
			return nil, false, &Error{Place: r.ref.Place, Action: action, Cause: "the registry's list of referrers leads back to a page that has been read"}
		}
		seen[next.RawQuery] = true
		list, following, none, err := r.referrersPage(ctx, client, next)
		if err != nil {
			return nil, false, r.explain(ctx, action, err)
		}
		if out = append(out, list...); len(out) > attest.MaxReferrers {
			return nil, false, r.tooMany(action)
		}
		next, missing = following, none
	}
	return out, missing, nil
}

func (r *registry) tooMany(action string) error {
	return &Error{Place: r.ref.Place, Action: action, Cause: fmt.Sprintf("more than the %d referrers that are read", attest.MaxReferrers),
		Way: "delete referrers that nobody needs, or promote the image to a clean repository"}
}

func (r *registry) referrersPage(ctx context.Context, client *http.Client, page *url.URL) (list []v1.Descriptor, following *url.URL, missing bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page.String(), nil)
	if err != nil {
		return nil, nil, false, err
	}
	req.Header.Set("Accept", string(types.OCIImageIndex))
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, false, err
	}
	defer resp.Body.Close()
	// Registries from before the API answer in one of these ways.
	if err := transport.CheckError(resp, http.StatusOK, http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable); err != nil {
		return nil, nil, false, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, nil, hasNoReferrers(resp), nil
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), string(types.OCIImageIndex)) {
		return nil, nil, false, nil
	}
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil, false, err
	}
	var index v1.IndexManifest
	if err := attest.UnmarshalStrict(raw, &index); err != nil {
		return nil, nil, false, fmt.Errorf("the list of referrers cannot be read: %w", err)
	}
	following, err = nextPage(page, resp)
	if err != nil {
		return nil, nil, false, fmt.Errorf("the next page of referrers has no address: %w", err)
	}
	return index.Manifests, following, false, nil
}

// hasNoReferrers reports whether a refusal is about the API, and not about the
// repository or the digest.
func hasNoReferrers(resp *http.Response) bool {
	var te *transport.Error
	return resp.StatusCode == http.StatusNotFound && errors.As(transport.CheckError(resp), &te) &&
		!slices.ContainsFunc(te.Errors, func(d transport.Diagnostic) bool {
			return d.Code == transport.NameUnknownErrorCode || d.Code == transport.ManifestUnknownErrorCode
		})
}

// nextPage is where an answer's Link header leads on to; nil at the end.
func nextPage(page *url.URL, resp *http.Response) (*url.URL, error) {
	link := resp.Header.Get("Link")
	if link == "" {
		return nil, nil
	}
	m := regexp.MustCompile(linkPattern).FindStringSubmatch(link)
	if m == nil {
		return nil, nil
	}
	following, err := page.Parse(m[1])
	if err != nil {
		return nil, err
	}
	// Another host would be sent this one's credentials; and behind a proxy a
	// registry may not know its own name, nor the path that it is reached under.
	// So only the question is taken from what it says.
	onward := *page
	onward.RawQuery = following.RawQuery
	return &onward, nil
}

func (r *registry) PutBlob(ctx context.Context, b Blob) error {
	action := "writing blob " + b.Descriptor.Digest.String()
	pusher, err := r.writer()
	if err != nil {
		return r.explain(ctx, action, err)
	}
	var layer v1.Layer = &blobLayer{b}
	if b.From.Kind == Registry && b.From.host() == r.ref.host() && b.From.Place != r.ref.Place {
		from, err := name.NewRepository(b.From.Place)
		if err != nil {
			return r.explain(ctx, action, err)
		}
		// The registry value must be the very same, or the library takes it
		// for another one.
		from.Registry = r.repo.Registry
		layer = &remote.MountableLayer{Layer: layer, Reference: from.Digest(b.Descriptor.Digest.String())}
	}
	return r.explain(ctx, action, pusher.Upload(ctx, r.repo, layer))
}

// blobLayer shows a Blob to the library.
type blobLayer struct{ b Blob }

func (l *blobLayer) Digest() (v1.Hash, error)             { return l.b.Descriptor.Digest, nil }
func (l *blobLayer) Size() (int64, error)                 { return l.b.Descriptor.Size, nil }
func (l *blobLayer) MediaType() (types.MediaType, error)  { return l.b.Descriptor.MediaType, nil }
func (l *blobLayer) Compressed() (io.ReadCloser, error)   { return l.b.Open() }
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) { return nil, errors.New("not unpacked") }

// DiffID is asked for attestations only, which are not compressed.
func (l *blobLayer) DiffID() (v1.Hash, error) { return l.b.Descriptor.Digest, nil }

func (r *registry) PutManifest(ctx context.Context, mediaType types.MediaType, raw []byte) (v1.Descriptor, error) {
	doc, err := parseDocument(raw, mediaType)
	if err != nil {
		return v1.Descriptor{}, fmt.Errorf("writing manifest: %w", err)
	}
	desc := describe(raw, doc.MediaType)
	return desc, r.put(ctx, "writing manifest "+desc.Digest.String(), r.repo.Digest(desc.Digest.String()), raw, doc.MediaType)
}

func (r *registry) PutTag(ctx context.Context, tag string, d v1.Descriptor) error {
	if !validTag(tag) {
		return fmt.Errorf("writing tag %q: not a tag", tag)
	}
	if _, now, err := r.tagged(ctx, tag); err == nil && now.Digest == d.Digest {
		return nil
	} else if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	md, err := digest(d)
	if err != nil {
		return err
	}
	raw, desc, err := r.Manifest(ctx, md)
	if err != nil {
		return err
	}
	return r.put(ctx, fmt.Sprintf("writing tag %q", tag), r.repo.Tag(tag), raw, desc.MediaType)
}

func (r *registry) put(ctx context.Context, action string, ref name.Reference, raw []byte, mediaType types.MediaType) error {
	pusher, err := r.writer()
	if err != nil {
		return r.explain(ctx, action, err)
	}
	return r.explain(ctx, action, pusher.Put(ctx, ref, &rawManifest{raw, mediaType}))
}

// rawManifest shows bytes to the library as they are.
type rawManifest struct {
	raw       []byte
	mediaType types.MediaType
}

func (m *rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m *rawManifest) MediaType() (types.MediaType, error) { return m.mediaType, nil }
