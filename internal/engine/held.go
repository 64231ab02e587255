package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/progress"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// heldExporter keeps what an image consists of for as long as the engine runs:
// it is read once the command has ended, and layers whose times were clamped are
// otherwise nobody's as soon as the build is done. The next engine on the cache
// lets go of it.
//
// What docker's own builder would leave in the Docker daemon is loaded there, before
// anything is pushed.
type heldExporter struct {
	exporter.Exporter
	store   content.Store
	leases  leases.Manager
	clients *clients
}

func (e *heldExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return &heldInstance{i, e}, nil
}

type heldInstance struct {
	exporter.ExporterInstance
	*heldExporter
}

func (i *heldInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	// The build's own lease ends with it, and BuildKit's run out after an hour.
	l, err := i.leases.Create(ctx, leases.WithRandomID(), leaseutil.MakeTemporary)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("keeping the image: %w", err)
	}
	ctx = leases.WithLease(ctx, l.ID)
	resp, finalize, ref, err := i.ExporterInstance.Export(ctx, src, info)
	if err != nil || i.clients.daemon == nil || !i.clients.leaves(info.Ref, i.ID()) {
		return resp, finalize, ref, err
	}
	names, err := namesOf(resp[exptypes.ExporterImageNameKey])
	var id digest.Digest
	if err == nil {
		id, err = i.load(ctx, src, info, ref.Descriptor(), names)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, ref.Release())
	}
	// The client tells the image's ID and names from this.
	switch id {
	case "":
		return resp, finalize, ref, nil
	case ref.Descriptor().Digest:
		delete(resp, exptypes.ExporterImageConfigDigestKey)
	default:
		resp[exptypes.ExporterImageConfigDigestKey] = id.String()
	}
	if len(names) > 0 {
		resp[exptypes.ExporterImageNameKey] = strings.Join(names, ",")
	}
	if finalize == nil {
		return resp, nil, ref, nil
	}
	return resp, func(ctx context.Context) error {
		err := finalize(ctx)
		if err == nil {
			i.clients.daemon.pushed(names, id)
		}
		return err
	}, ref, nil
}

// load has the Docker daemon take an image, with the layers of its base, and returns
// its ID there.
func (i *heldInstance) load(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo, image ocispecs.Descriptor, names []string) (digest.Digest, error) {
	refs := slices.Collect(maps.Values(src.Refs))
	if src.Ref != nil {
		refs = append(refs, src.Ref)
	}
	blobs := contentutil.NewMultiProvider(i.store)
	for _, ref := range refs {
		if ref == nil {
			continue
		}
		remotes, err := ref.GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: i.Config().Compression()}, false, session.NewGroup(info.SessionID))
		if err != nil {
			return "", err
		}
		if lazy, ok := remotes[0].Provider.(cache.Unlazier); ok {
			if err := lazy.Unlazy(ctx); err != nil {
				return "", err
			}
		}
		for _, d := range remotes[0].Descriptors {
			blobs.Add(d.Digest, remotes[0].Provider)
		}
	}
	done := progress.OneOff(ctx, "loading into the Docker daemon")
	id, err := i.clients.daemon.load(ctx, blobs, image, names)
	return id, done(err)
}

// namesOf are the names of an output, in full.
func namesOf(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	var out []string
	for name := range strings.SplitSeq(list, ",") {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, fmt.Errorf("reading the image's name %q: %w", name, err)
		}
		if _, pinned := named.(reference.Digested); pinned {
			return nil, fmt.Errorf("reading the image's name %q: it has a digest", name)
		}
		out = append(out, reference.TagNameOnly(named).String())
	}
	return out, nil
}

// leaves reports whether an output is an image that docker's own builder would
// leave in the Docker daemon, and that the client does not load itself.
func (c *clients) leaves(ref string, export int) bool {
	s := c.of(ref)
	if s == nil || !s.Docker || export >= s.asked || s.Exports[export].Type != client.ExporterImage {
		return false
	}
	attrs := s.Exports[export].Attrs
	loads := func(e ClientEntry) bool {
		return e.Type != client.ExporterImage && e.Attrs["prefer-image-digest"] == "true"
	}
	if slices.ContainsFunc(s.Exports, loads) {
		return false
	}
	store, err := strconv.ParseBool(cmp.Or(attrs[string(exptypes.OptKeyStore)], "true"))
	byDigest, _ := strconv.ParseBool(attrs[string(exptypes.OptKeyPushByDigest)]) // which docker's own cannot do
	return err == nil && store && !byDigest
}
