package engine

import (
	"context"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerblob"
	"github.com/moby/buildkit/source/local"
	"github.com/moby/buildkit/util/purl"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// watchedSource notes what the results of a source are, so that the cache can
// tell them from what has no record.
type watchedSource struct {
	source.Source
	rec *recorder
}

func (s *watchedSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	i, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	return &watchedInstance{i, s.rec, v}, nil
}

type watchedInstance struct {
	source.SourceInstance
	rec    *recorder
	vertex solver.Vertex
}

func (i *watchedInstance) Snapshot(ctx context.Context, jobCtx solver.JobContext) (cache.ImmutableRef, error) {
	ref, err := i.SourceInstance.Snapshot(ctx, jobCtx)
	if err != nil || ref == nil {
		return ref, err
	}
	e := edge{Ref: ref.ID(), Source: true}
	if _, ok := i.rec.lineage.get(e); !ok {
		i.rec.lineage.put(e, result{}, nil)
	}
	if i.rec.plan.Clients != nil && i.vertex != nil {
		i.rec.folders.received(ctx, i.vertex, ref, jobCtx.Session(), i.rec.keeper)
	}
	return ref, nil
}

// watchSources puts ours in the place of the worker's sources. The worker
// keeps some of its own, which resolve names for the frontend.
func (r *recorder) watchSources(w *base.Worker) error {
	if err := r.watchFiles(w); err != nil {
		return err
	}
	blobs, err := containerblob.NewSource(containerblob.SourceOpt{
		ContentStore: w.WorkerOpt.ContentStore, CacheAccessor: w.CacheMgr, RegistryHosts: w.RegistryHosts,
	})
	if err != nil {
		return err
	}
	files, err := local.NewSource(local.Opt{CacheAccessor: w.CacheMgr})
	if err != nil {
		return err
	}
	if r.daemon, err = newDaemonImages(r.plan.Clients, w); err != nil {
		return err
	}
	all := []source.Source{&daemonSource{w.ImageSource, r.daemon}, w.OCILayoutSource, w.HTTPSource, blobs, files}
	if w.GitSource != nil {
		all = append(all, r.newGitSource(w.GitSource, w.CacheMgr))
	}
	for _, s := range all {
		w.SourceManager.Register(&watchedSource{s, r})
	}
	return nil
}

// imageURI names a base image as BuildKit's provenance does.
func imageURI(ref string, p *ocispecs.Platform) string {
	uri, err := purl.RefToPURL("docker", ref, p)
	if err != nil {
		return "docker-image://" + ref
	}
	return uri
}

// imageRef is what was asked for: the tag, where there was one.
func imageRef(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	if t, ok := named.(reference.Tagged); ok {
		if tagged, err := reference.WithTag(reference.TrimNamed(named), t.Tag()); err == nil {
			return tagged.String()
		}
	}
	return named.String()
}

// layoutName is the name under which a client offers an OCI layout: that of the
// build context.
func layoutName(ref string) string {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref
	}
	return reference.FamiliarName(named)
}
