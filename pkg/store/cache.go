package store

import (
	"bytes"
	"container/list"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Cache is what places opened for reading share: connections and logins,
// content by repository and digest, and which tags of attachments a repository
// has. The zero Cache is ready, and safe for concurrent use.
//
// It answers only what cannot have changed: content that was checked against
// its digest before it was kept, and a list of tags that was asked for at
// Options.Since or later. What a tag points to and what refers to a digest is
// asked anew every time. Who shares one shares the right to read, too.
type Cache struct {
	// Max bounds the bytes of what is kept; default DefaultCache. What was not used
	// longest goes first.
	Max int64

	mu      sync.Mutex
	bytes   int64
	kept    map[string]*list.Element
	recent  list.List                  // of *keptValue, the last used first
	listing map[string]chan struct{}   // places whose tags are being listed
	outside map[bool]http.RoundTripper // by Options.Insecure
}

type keptValue struct {
	key   string
	value any
	size  int64
}

// DefaultCache is how many bytes a Cache keeps when Max says nothing.
const DefaultCache = 64 << 20

const (
	// maxShare is the part of a Cache that one value may take: a large SBOM
	// must not push out the provenance of a thousand images.
	maxShare = 16
	// overhead is what a value takes beside its bytes, rather too much.
	overhead = 512
	// loginSize is what a login takes.
	loginSize = 8 << 10
	// maxPingAge is how long a registry is taken to ask for the same kind of
	// login.
	maxPingAge = 10 * time.Minute
	// maxTagsAge bounds the age of a list of tags, however long a batch runs.
	maxTagsAge = time.Minute
	// tagsPage and maxTagsPages bound a list of tags. In a repository with more
	// every tag is asked for by itself.
	tagsPage     = 1000
	maxTagsPages = 10
	// attachedPrefix begins the tags of attachments: the fallback tag, .att.
	attachedPrefix = "sha256-"
)

func (c *Cache) get(key string) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.kept[key]
	if !ok {
		return nil
	}
	c.recent.MoveToFront(e)
	return e.Value.(*keptValue).value
}

func (c *Cache) limit() int64 {
	if c.Max > 0 {
		return c.Max
	}
	return DefaultCache
}

// share is the most that one value may take.
func (c *Cache) share() int64 { return c.limit() / maxShare }

func (c *Cache) put(key string, value any, size int) {
	v := &keptValue{key, value, int64(size+len(key)) + overhead}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.kept[key]; ok {
		c.drop(e)
	}
	if v.size > c.share() {
		return
	}
	if c.kept == nil {
		c.kept = map[string]*list.Element{}
	}
	c.kept[key] = c.recent.PushFront(v)
	for c.bytes += v.size; c.bytes > c.limit(); {
		c.drop(c.recent.Back())
	}
}

func (c *Cache) drop(e *list.Element) {
	v := c.recent.Remove(e).(*keptValue)
	delete(c.kept, v.key)
	c.bytes -= v.size
}

// transport is the one way out of all places that share the cache.
func (c *Cache) transport(opts Options) http.RoundTripper {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.outside == nil {
		c.outside = map[bool]http.RoundTripper{}
	}
	t := c.outside[opts.Insecure]
	if t == nil {
		t = &pings{inner: newTransport(opts), cache: c}
		c.outside[opts.Insecure] = t
	}
	return t
}

// pings asks a registry once how it wants a login, and not for every
// repository.
type pings struct {
	inner http.RoundTripper
	cache *Cache
}

type ping struct {
	at     time.Time
	status int
	header http.Header
}

func (p *pings) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method != http.MethodGet || req.URL.Path != "/v2/" || req.Header.Get("Authorization") != "" {
		return p.inner.RoundTrip(req)
	}
	key := "ping " + req.URL.Scheme + " " + req.URL.Host
	if known, ok := p.cache.get(key).(ping); ok && time.Since(known.at) < maxPingAge {
		return &http.Response{
			Status: http.StatusText(known.status), StatusCode: known.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
			Header: known.header.Clone(), Body: http.NoBody, Request: req,
		}, nil
	}
	resp, err := p.inner.RoundTrip(req)
	if err == nil && (resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized) {
		header := http.Header{"Www-Authenticate": resp.Header.Values("WWW-Authenticate")}
		p.cache.put(key, ping{time.Now(), resp.StatusCode, header}, len(strings.Join(header["Www-Authenticate"], "")))
	}
	return resp, err
}

// key names a value of this repository. What came without a certificate that
// holds is nothing for who asks for one.
func (r *registry) key(kind, id string) string {
	return fmt.Sprintf("%s %t %s %s", kind, r.opts.Insecure, r.ref.Place, id)
}

// recall looks a value of this repository up in the shared cache.
func recall[V any](r *registry, kind, id string) (v V, ok bool) {
	if r.opts.Cache == nil {
		return v, false
	}
	v, ok = r.opts.Cache.get(r.key(kind, id)).(V)
	return v, ok
}

func (r *registry) keep(kind, id string, v any, size int) {
	if r.opts.Cache != nil {
		r.opts.Cache.put(r.key(kind, id), v, size)
	}
}

// keeping is a blob on its way to the reader that is kept when it ends well.
type keeping struct {
	io.ReadCloser
	buf  bytes.Buffer
	most int64
	keep func([]byte)
}

func (k *keeping) Read(p []byte) (int, error) {
	n, err := k.ReadCloser.Read(p)
	switch {
	case k.keep == nil:
	case int64(k.buf.Len()+n) > k.most:
		k.keep, k.buf = nil, bytes.Buffer{}
	default:
		k.buf.Write(p[:n])
		if err == io.EOF { // the digest held
			k.keep(bytes.Clone(k.buf.Bytes()))
			k.keep, k.buf = nil, bytes.Buffer{}
		}
	}
	return n, err
}

// sharing is a registry asked for evidence with the help of a Cache.
type sharing struct{ *registry }

func (s sharing) tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error) {
	if strings.HasPrefix(tag, attachedPrefix) {
		have, err := s.attachedTags(ctx)
		if err != nil {
			return nil, v1.Descriptor{}, err
		}
		if have != nil && !have[tag] {
			return nil, v1.Descriptor{}, &Error{Place: s.ref.Place, Action: fmt.Sprintf("reading tag %q", tag), Cause: "not in the list of tags", Err: ErrNotFound}
		}
	}
	return s.registry.tagged(ctx, tag)
}

// referrers leaves a repository alone that has answered as one without the
// referrers API.
func (s sharing) referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error) {
	if at, ok := recall[time.Time](s.registry, "no referrers", ""); ok && s.current(at) {
		return nil, nil
	}
	start := time.Now()
	found, missing, err := s.listReferrers(ctx, d)
	if err == nil && missing {
		s.keep("no referrers", "", start, 0)
	}
	return found, err
}

// current reports whether what was asked at a moment is new enough.
func (s sharing) current(at time.Time) bool {
	return !s.opts.Since.IsZero() && !at.Before(s.opts.Since) && time.Since(at) < maxTagsAge
}

// tagList is which attachment tags a repository had. Nil tags: it could not be
// told.
type tagList struct {
	at   time.Time // when it was asked for
	tags map[string]bool
}

// attachedTags returns which attachment tags the repository has. Nil: nobody
// may say, so each must be asked for. Several that ask at once share one list.
func (s sharing) attachedTags(ctx context.Context) (map[string]bool, error) {
	if s.opts.Since.IsZero() {
		return nil, nil
	}
	c, key := s.opts.Cache, s.key("tags", "")
	for {
		if l, ok := c.get(key).(tagList); ok && s.current(l.at) {
			return l.tags, nil
		}
		busy, done := c.begin(key)
		if busy == nil {
			defer done()
			l, size := tagList{at: time.Now()}, 0
			l.tags, size = s.listTags(ctx)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			c.put(key, l, size)
			return l.tags, nil
		}
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// begin says that the caller lists now, until done; busy is the end of somebody
// else's listing.
func (c *Cache) begin(key string) (busy <-chan struct{}, done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other, ok := c.listing[key]; ok {
		return other, nil
	}
	if c.listing == nil {
		c.listing = map[string]chan struct{}{}
	}
	ended := make(chan struct{})
	c.listing[key] = ended
	return nil, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.listing, key)
		close(ended)
	}
}

// listTags lists the repository's tags and keeps those of attachments. A list
// that is too long, or that the registry does not give, is nil.
// https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md#listing-tags
func (s sharing) listTags(ctx context.Context) (tags map[string]bool, size int) {
	_, client, err := s.login(ctx)
	if err != nil {
		return nil, 0
	}
	tags = map[string]bool{}
	next := &url.URL{
		Scheme: s.repo.Scheme(), Host: s.repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/tags/list", s.repo.RepositoryStr()),
		RawQuery: fmt.Sprintf("n=%d", tagsPage),
	}
	for range maxTagsPages {
		page, following, err := s.tagsPage(ctx, client, next)
		// A full page that leads nowhere may have been cut.
		if err != nil || following == nil && len(page) == tagsPage {
			return nil, 0
		}
		for _, tag := range page {
			if strings.HasPrefix(tag, attachedPrefix) && !tags[tag] {
				tags[strings.Clone(tag)] = true
				size += len(tag) + 64
			}
		}
		if following == nil {
			return tags, size
		}
		next = following
	}
	return nil, 0
}

func (s sharing) tagsPage(ctx context.Context, client *http.Client, page *url.URL) ([]string, *url.URL, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return nil, nil, err
	}
	var list struct {
		Tags []string `json:"tags"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, nil, err
	}
	following, err := nextPage(page, resp)
	return list.Tags, following, err
}
