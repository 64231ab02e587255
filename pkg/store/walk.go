package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Walk lists every tag of every repository at or below HOST[/PREFIX], but for
// those that hold evidence about others. Names come as they are listed, page by
// page, and nothing is kept. Where the registry does not list its repositories,
// PREFIX is taken for the only one.
//
// A repository that cannot be listed comes as a Reference without a tag with
// its error, and the walk goes on; an error with no Reference ends it.
func Walk(ctx context.Context, place string, opts Options) iter.Seq2[Reference, error] {
	return func(yield func(Reference, error) bool) {
		w, err := newWalk(place, opts)
		if err != nil {
			yield(Reference{}, err)
			return
		}
		if err := w.repositories(ctx, yield); err != nil && !errors.Is(err, errEnough) {
			yield(Reference{}, err)
		}
	}
}

// errEnough ends a walk whose caller wants no more.
var errEnough = errors.New("enough")

type walk struct {
	registry *registry // for its errors and clients; of no repository
	host     name.Registry
	prefix   string
	puller   *remote.Puller
}

func newWalk(place string, opts Options) (*walk, error) {
	bad := func(cause string) (*walk, error) {
		return nil, &ReferenceError{Input: place, Cause: cause, Way: "give HOST or HOST/PREFIX, as registry.example/prod"}
	}
	host, prefix, below := strings.Cut(place, "/")
	prefix = strings.TrimSuffix(prefix, "/")
	if !strings.ContainsAny(host, ".:") && host != "localhost" || strings.HasSuffix(host, ":") {
		return bad("it does not begin with the host of a registry")
	}
	var how []name.Option
	if opts.Insecure || loopback(host) {
		how = append(how, name.Insecure)
	}
	reg, err := name.NewRegistry(host, how...)
	if err != nil {
		return bad(plain(err).Error())
	}
	if below && prefix != "" {
		if _, err := name.NewRepository(host+"/"+prefix, how...); err != nil {
			return bad(plain(err).Error())
		}
	}
	w := &walk{host: reg, prefix: prefix,
		registry: &registry{ref: Reference{Kind: Registry, Place: strings.TrimSuffix(place, "/")}, opts: opts}}
	w.puller, err = remote.NewPuller(remote.WithAuthFromKeychain(keychain(opts)), remote.WithTransport(newTransport(opts)),
		remote.WithUserAgent(w.registry.userAgent()), remote.WithRetryStatusCodes())
	return w, err
}

func (w *walk) repositories(ctx context.Context, yield func(Reference, error) bool) error {
	const action = "listing the repositories"
	pages, err := w.puller.Catalogger(ctx, w.host)
	if w.unlisted(err) && w.prefix != "" {
		return w.tags(ctx, w.prefix, yield)
	}
	seen := 0
	for err == nil && pages.HasNext() {
		var page *remote.Catalogs
		if page, err = pages.Next(ctx); err != nil {
			break
		}
		for _, repo := range page.Repos {
			if repo != w.prefix && w.prefix != "" && !strings.HasPrefix(repo, w.prefix+"/") {
				continue
			}
			if err := w.tags(ctx, repo, yield); err != nil {
				return err
			}
		}
		// A page counts, too: an empty one can be followed by another for ever.
		if seen += len(page.Repos) + 1; seen > attest.MaxListed {
			return w.tooMany(action)
		}
	}
	return w.registry.explain(ctx, action, err)
}

// unlisted reports whether the registry has no list of its repositories for us.
func (w *walk) unlisted(err error) bool {
	var te *transport.Error
	if !errors.As(err, &te) {
		return false
	}
	switch te.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented, http.StatusBadRequest:
		return true
	}
	return false
}

// tags yields the images of one repository. Its error is errEnough or nil.
func (w *walk) tags(ctx context.Context, repo string, yield func(Reference, error) bool) error {
	at := Reference{Kind: Registry, Place: w.host.Name() + "/" + repo}
	say := func(r Reference, err error) error {
		if !yield(r, err) {
			return errEnough
		}
		return nil
	}
	// The name is the registry's word.
	if parsed, err := Parse(at.Place + ":x"); err != nil || parsed.Place != at.Place {
		return say(at, &Error{Place: w.registry.ref.Place, Action: "listing the repositories", Cause: fmt.Sprintf("%q is not the name of one", oneLine(repo))})
	}
	const action = "listing the tags"
	pages, err := w.puller.Lister(ctx, w.host.Repo(strings.Split(repo, "/")...))
	seen := 0
	for err == nil && pages.HasNext() {
		var page *remote.Tags
		if page, err = pages.Next(ctx); err != nil {
			break
		}
		for _, tag := range page.Tags {
			if evidenceTag(tag) {
				continue
			}
			image := at
			image.Tag = tag
			if !validTag(tag) {
				if err := say(at, &Error{Place: at.Place, Action: action, Cause: fmt.Sprintf("%q is not a tag", oneLine(tag))}); err != nil {
					return err
				}
				continue
			}
			if err := say(image, nil); err != nil {
				return err
			}
		}
		if seen += len(page.Tags) + 1; seen > attest.MaxListed {
			return say(at, w.tooMany(action))
		}
	}
	if err != nil {
		return say(at, w.registry.explainAt(ctx, at.Place, action, err))
	}
	return nil
}

func (w *walk) tooMany(action string) error {
	return &Error{Place: w.registry.ref.Place, Action: action, Cause: fmt.Sprintf("more than the %d names that are read", attest.MaxListed), Way: "give a longer prefix"}
}
