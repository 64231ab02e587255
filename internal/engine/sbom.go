package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	"google.golang.org/grpc"

	"github.com/waxseal/waxseal/pkg/catalog"
)

// attrSBOM is the frontend attribute that asks for SBOMs: the formats, with
// commas between.
const attrSBOM = "waxseal:sbom"

// errNoSBOM is answered for a build or platform nobody asked an SBOM of.
var errNoSBOM = errors.New("no such SBOM")

type buildKey struct{}

// nameBuild puts the build's ref where the frontend finds it.
func nameBuild(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if s, ok := req.(*controlapi.SolveRequest); ok {
		ctx = context.WithValue(ctx, buildKey{}, s.Ref)
	}
	return handler(ctx, req)
}

// catalogued is a frontend whose results are catalogued as soon as they are
// there, which is while the export runs.
type catalogued struct {
	frontend.Frontend
	sboms *sboms
}

func (c *catalogued) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	formats, asked := opt[attrSBOM]
	if asked {
		opt = maps.Clone(opt)
		delete(opt, attrSBOM)
	}
	ref, _ := ctx.Value(buildKey{}).(string)
	if !asked || ref == "" {
		return c.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
	}
	opts := catalog.Options{
		Formats: strings.Split(formats, ","),
		Epoch:   opt["build-arg:SOURCE_DATE_EPOCH"],
	}
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := c.sboms.begin(ref)
	res, err := c.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
	if err != nil {
		b.end(err)
		return nil, err
	}
	names, err := platformNames(res)
	if err != nil {
		b.end(err)
		return nil, err
	}
	for id, name := range names {
		r, ok := res.FindRef(id)
		if !ok || r == nil {
			b.end(fmt.Errorf("finding the result for %s: the frontend returned none", name))
			return res, nil
		}
		r = &cataloguedRef{ResultProxy: r, job: b.expect(name), sboms: c.sboms, opts: opts, group: session.NewGroup(sid)}
		if res.Ref != nil && len(res.Refs) == 0 {
			res.Ref = r
		} else {
			res.Refs[id] = r
		}
	}
	b.end(nil)
	return res, nil
}

// platformNames maps the ids of a result's references to platform names.
func platformNames(res *frontend.Result) (map[string]string, error) {
	ps, err := exptypes.ParsePlatforms(res.Metadata)
	if err != nil {
		return nil, fmt.Errorf("reading the result's platforms: %w", err)
	}
	names := make(map[string]string, len(ps.Platforms))
	for _, p := range ps.Platforms {
		names[p.ID] = platforms.Format(platforms.Normalize(p.Platform))
	}
	return names, nil
}

// cataloguedRef starts its cataloguing when its result is first there.
type cataloguedRef struct {
	solver.ResultProxy
	job   *sbomJob
	sboms *sboms
	opts  catalog.Options
	group session.Group
	once  sync.Once
}

func (r *cataloguedRef) Result(ctx context.Context) (solver.CachedResult, error) {
	res, err := r.ResultProxy.Result(ctx)
	if err != nil {
		return nil, err
	}
	r.once.Do(func() {
		w, ok := res.Sys().(*worker.WorkerRef)
		if !ok {
			r.job.finish(nil, fmt.Errorf("cataloguing a result: unexpected type %T", res.Sys()))
			return
		}
		// Our own reference: the build may let go of its as soon as it is exported.
		var own cache.ImmutableRef
		if w.ImmutableRef != nil {
			own = w.ImmutableRef.Clone()
		}
		r.sboms.run(ctx, r.job, own, r.opts, r.group)
	})
	return res, nil
}

// sboms keeps the SBOMs of the builds of this engine, by build and platform.
type sboms struct {
	ctx  context.Context // ends with the engine
	root string          // where documents are kept between builds

	mu     sync.Mutex
	builds map[string]*sbomBuild
	jobs   sync.WaitGroup
}

// sbomBuild is one build: until known is closed more platforms may appear.
type sbomBuild struct {
	known chan struct{}
	once  sync.Once
	err   error // set before known is closed

	mu   sync.Mutex
	jobs map[string]*sbomJob
}

// sbomJob is one platform: docs and err are set before done is closed.
type sbomJob struct {
	done chan struct{}
	once sync.Once
	docs map[string][]byte
	err  error
}

func newSBOMs(ctx context.Context, root string) *sboms {
	return &sboms{ctx: ctx, root: root, builds: map[string]*sbomBuild{}}
}

func (s *sboms) begin(ref string) *sbomBuild {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &sbomBuild{known: make(chan struct{}), jobs: map[string]*sbomJob{}}
	s.builds[ref] = b
	return b
}

func (b *sbomBuild) expect(platform string) *sbomJob {
	b.mu.Lock()
	defer b.mu.Unlock()
	j := &sbomJob{done: make(chan struct{})}
	b.jobs[platform] = j
	return j
}

func (b *sbomBuild) end(err error) {
	b.once.Do(func() {
		b.err = err
		close(b.known)
	})
}

func (j *sbomJob) finish(docs map[string][]byte, err error) {
	j.once.Do(func() {
		j.docs, j.err = docs, err
		close(j.done)
	})
}

// run catalogues ref, which it releases. A nil ref is an empty image.
func (s *sboms) run(ctx context.Context, j *sbomJob, ref cache.ImmutableRef, opts catalog.Options, g session.Group) {
	s.jobs.Go(func() {
		// The build's values (its progress, its session), the engine's life.
		ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		defer cancel()
		defer context.AfterFunc(s.ctx, cancel)()
		docs, err := s.catalogue(ctx, ref, opts, g)
		if ref != nil {
			_ = ref.Release(context.WithoutCancel(ctx))
		}
		j.finish(docs, err)
	})
}

func (s *sboms) catalogue(ctx context.Context, ref cache.ImmutableRef, opts catalog.Options, g session.Group) (map[string][]byte, error) {
	if ref == nil {
		return nil, errors.New("cataloguing an image without files: not supported")
	}
	m, err := ref.Mount(ctx, true, g)
	if err != nil {
		return nil, fmt.Errorf("mounting the image for its SBOM: %w", err)
	}
	lm := snapshot.LocalMounter(m)
	dir, err := lm.Mount()
	if err != nil {
		return nil, fmt.Errorf("mounting the image for its SBOM: %w", err)
	}
	docs, err := catalog.Rootfs(ctx, dir, opts)
	if uerr := lm.Unmount(); err == nil && uerr != nil {
		err = fmt.Errorf("unmounting the image: %w", uerr)
	}
	return docs, err
}

// get waits for one document.
func (s *sboms) get(ctx context.Context, ref, platform, format string) ([]byte, error) {
	s.mu.Lock()
	b := s.builds[ref]
	s.mu.Unlock()
	if b == nil {
		return nil, fmt.Errorf("%w: build %q did not ask for one", errNoSBOM, ref)
	}
	if err := wait(ctx, b.known); err != nil {
		return nil, err
	}
	if b.err != nil {
		return nil, b.err
	}
	b.mu.Lock()
	j, names := b.jobs[platform], slices.Sorted(maps.Keys(b.jobs))
	b.mu.Unlock()
	if j == nil {
		return nil, fmt.Errorf("%w: build %q has no platform %q, only %s", errNoSBOM, ref, platform, strings.Join(names, ", "))
	}
	if err := wait(ctx, j.done); err != nil {
		return nil, err
	}
	if j.err != nil {
		return nil, j.err
	}
	doc, ok := j.docs[format]
	if !ok {
		return nil, fmt.Errorf("%w: build %q did not ask for format %q", errNoSBOM, ref, format)
	}
	return doc, nil
}

// wait returns once all cataloguing has ended.
func (s *sboms) wait() { s.jobs.Wait() }

func wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
