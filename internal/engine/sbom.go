package engine

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	"google.golang.org/grpc"

	"github.com/waxseal/waxseal/pkg/catalog"
	"github.com/waxseal/waxseal/pkg/sbom"
)

// attrSBOM is the frontend attribute that asks for SBOMs: the formats, with
// commas between.
const attrSBOM = "waxseal:sbom"

// keptSBOMs is how many documents are kept in the cache.
const keptSBOMs = 512

// errNoSBOM is answered for a build or platform nobody asked an SBOM of.
var errNoSBOM = errors.New("no such SBOM")

type buildKey struct{}

// intercept puts the ref of a build where the frontend finds it, and ends the
// wait for SBOMs that cannot come any more once the build is over.
func (s *sboms) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	solve, ok := req.(*controlapi.SolveRequest)
	if !ok {
		return handler(ctx, req)
	}
	resp, err := handler(context.WithValue(ctx, buildKey{}, solve.Ref), req)
	s.over(solve.Ref, err)
	return resp, err
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
	if opts.Epoch == "context" {
		opts.Epoch = "" // the commit's time, which the frontend finds out
	}
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := c.sboms.begin(ref)
	c.sboms.wanted.Store(true)
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
		if !ok {
			b.end(fmt.Errorf("finding the result for %s: the frontend returned none", name))
			return res, nil
		}
		opts := opts
		for _, key := range []string{commonexptypes.ExporterEpochKey, commonexptypes.ExporterEpochKey + "/" + id} {
			if v, ok := res.Metadata[key]; ok {
				opts.Epoch = string(v)
			}
		}
		job := b.expect(name)
		if r == nil { // an image of settings alone
			job.started.Store(true)
			c.sboms.run(ctx, job, nil, opts, nil)
			continue
		}
		r = &cataloguedRef{ResultProxy: r, job: job, sboms: c.sboms, opts: opts, group: session.NewGroup(sid)}
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
		r.job.started.Store(true)
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
	ctx     context.Context // ends with the engine
	dir     string          // where documents are kept between builds
	version func() string   // of what writes them
	catalog catalog.Catalog
	wanted  atomic.Bool // some build of this engine asked for SBOMs

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
	started atomic.Bool
	done    chan struct{}
	once    sync.Once
	docs    map[string][]byte
	err     error
}

func newSBOMs(ctx context.Context, cfg Config) *sboms {
	return &sboms{ctx: ctx, version: sync.OnceValue(func() string { return cfg.Version + " " + ownBuild() }), dir: filepath.Join(cfg.Root, "sbom"), builds: map[string]*sbomBuild{}}
}

// ownBuild tells this very program from others of the same version: it is the
// digest that the linker left in it.
func ownBuild() string {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	note := f.Section(".note.go.buildid")
	if note == nil {
		return ""
	}
	id, err := note.Data()
	if err != nil {
		return ""
	}
	return string(id)
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

// over ends what a finished build has not begun.
func (s *sboms) over(ref string, err error) {
	s.mu.Lock()
	b := s.builds[ref]
	s.mu.Unlock()
	if b == nil {
		return
	}
	if err != nil {
		err = fmt.Errorf("cataloguing the image: the build failed: %w", err)
	} else {
		err = fmt.Errorf("%w: the build gave no such result", errNoSBOM)
	}
	b.end(err)
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, j := range b.jobs {
		if !j.started.Load() {
			j.finish(nil, err)
		}
	}
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
		empty, err := os.MkdirTemp("", "waxseal-empty-")
		if err != nil {
			return nil, fmt.Errorf("making a temporary folder: %w", err)
		}
		defer os.Remove(empty)
		return s.catalog.Rootfs(ctx, empty, opts)
	}
	keys := make(map[string]string, len(opts.Formats))
	for _, f := range opts.Formats {
		keys[f] = s.key(ref.ID(), f, opts)
	}
	if docs := s.kept(keys); docs != nil {
		return docs, nil
	}
	// The export commits the snapshot, too. Whoever comes first does it; to mount
	// it while the other one does would be a race.
	if err := ref.Finalize(ctx); err != nil {
		return nil, fmt.Errorf("committing the image for its SBOM: %w", err)
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
	docs, err := s.catalog.Rootfs(ctx, dir, opts)
	if uerr := lm.Unmount(); err == nil && uerr != nil {
		err = fmt.Errorf("unmounting the image: %w", uerr)
	}
	if err != nil {
		return nil, err
	}
	s.keep(keys, docs)
	return docs, nil
}

// key names a document by everything it depends on. A reference's id stands
// for its files: BuildKit never gives one to others.
func (s *sboms) key(ref, format string, opts catalog.Options) string {
	h := sha256.New()
	for _, part := range []string{s.version(), ref, format, opts.Epoch, opts.Architecture} {
		fmt.Fprintf(h, "%d:%s,", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)) + ".json"
}

// kept returns the documents of an earlier build, or nil.
func (s *sboms) kept(keys map[string]string) map[string][]byte {
	docs := make(map[string][]byte, len(keys))
	now := time.Now()
	for f, key := range keys {
		p := filepath.Join(s.dir, key)
		b, err := os.ReadFile(p)
		if err != nil {
			return nil
		}
		if _, err := sbom.Check(f, b); err != nil {
			return nil
		}
		_ = os.Chtimes(p, now, now) // keep drops the longest unused
		docs[f] = b
	}
	return docs
}

// keep stores documents for later builds. It is a cache: what goes wrong only
// costs time.
func (s *sboms) keep(keys map[string]string, docs map[string][]byte) {
	if os.MkdirAll(s.dir, 0o700) != nil {
		return
	}
	for f, key := range keys {
		tmp := filepath.Join(s.dir, "."+key)
		if os.WriteFile(tmp, docs[f], 0o600) != nil || os.Rename(tmp, filepath.Join(s.dir, key)) != nil {
			_ = os.Remove(tmp)
		}
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) <= keptSBOMs {
		return
	}
	age := func(e os.DirEntry) time.Time {
		i, err := e.Info()
		if err != nil {
			return time.Time{}
		}
		return i.ModTime()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return age(a).Compare(age(b)) })
	for _, e := range entries[:len(entries)-keptSBOMs/2] {
		_ = os.Remove(filepath.Join(s.dir, e.Name()))
	}
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

// wait reports whether all cataloguing has ended, within a time.
func (s *sboms) wait(most time.Duration) bool {
	ended := make(chan struct{})
	go func() {
		s.jobs.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return true
	case <-time.After(most):
		return false
	}
}

func wait(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
