package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/provenance"
	provenancetypes "github.com/moby/buildkit/solver/llbsolver/provenance/types"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// InputsAnswer is what reached one platform of a build, at GET /v1/inputs.
type InputsAnswer struct {
	Steps   []attestations.InputStep   `json:"steps"`
	Gaps    []attestations.InputGap    `json:"gaps,omitempty"`
	Sources []attestations.InputSource `json:"sources"`
	Gateway attestations.InputGateway  `json:"gateway"`
	Unkept  []string                   `json:"unkept,omitempty"` // what the store could not be given, and why
}

// errNoInputs is answered for a build or platform that nobody solved.
var errNoInputs = errors.New("no such record of inputs")

// recorder sees to it that everything that reaches a build is recorded, and
// that no result is reused of which there is no record.
type recorder struct {
	plan    InputsPlan
	lineage *lineage
	watch   func() (*watch, error)
	limits  func() limits
	caches  cacheMounts
	folders sentFolders
	// exists reports whether the cache has a reference; nil before it is open.
	exists func(ref string) bool
	blobs  string // folder of BuildKit's blobs
	files  *remoteFiles
	git    *gitSource // nil where git is not on PATH
	daemon *daemonImages

	idsMu sync.Mutex
	ids   stepIDs

	mu      sync.Mutex
	builds  map[string]*inputsBuild
	solving int  // builds that run
	imports bool // one of them brought a cache along
	// fileStep is the gateway's side of remote files, once there was one.
	fileStep *egress.Step
}

// inputsBuild is one build: over is closed when its solve has returned.
type inputsBuild struct {
	began time.Time
	over  chan struct{}
	err   error // set before over is closed

	mu      sync.Mutex
	results map[string]*inputsResult // by platform
	// used are the results that were made or taken from the cache on the way. A
	// step's result can be taken by its content where another build made the
	// same: then that other's steps are below the image, and these beside it.
	used []edge
}

// inputsResult is one platform's result.
type inputsResult struct {
	ref     solver.ResultProxy // nil for an image of settings alone
	final   edge
	solved  bool
	capture *provenance.Capture
}

func newRecorder(cfg Config, plan InputsPlan) *recorder {
	r := &recorder{
		plan:    plan,
		lineage: newLineage(cfg.Root),
		watch:   lazyWatch(plan, cfg.Version),
		limits:  lazyLimits(),
		caches:  cacheMounts{active: map[string][]*stepRun{}},
		ids:     stepIDs{},
		builds:  map[string]*inputsBuild{},
	}
	r.files = r.newRemoteFiles()
	return r
}

// intercept begins and ends the record of a build.
func (r *recorder) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	solve, ok := req.(*controlapi.SolveRequest)
	if !ok {
		return handler(ctx, req)
	}
	imports := solve.Cache != nil && (len(solve.Cache.Imports) > 0 || len(solve.Cache.ImportRefsDeprecated) > 0)
	if imports && r.plan.Held() {
		return nil, fmt.Errorf("%s: results of an imported build cache have no record of what went into them: leave out --cache-from with --inputs %s", violationPrefix, r.plan.Mode)
	}
	if _, err := r.watch(); err != nil {
		return nil, err
	}
	b := &inputsBuild{began: time.Now(), over: make(chan struct{}), results: map[string]*inputsResult{}}
	r.mu.Lock()
	r.builds[solve.Ref] = b
	r.solving++
	r.imports = r.imports || imports
	r.mu.Unlock()
	resp, err := handler(ctx, req)
	r.mu.Lock()
	r.solving--
	r.mu.Unlock()
	b.err = err
	close(b.over)
	return resp, err
}

// offered reports whether a result of the cache may be offered to a build.
func (r *recorder) offered(ref string, root bool) bool {
	r.mu.Lock()
	solving, imports := r.solving > 0, r.imports
	r.mu.Unlock()
	if !solving || ref == "" {
		return true
	}
	if root {
		if _, ok := r.lineage.get(edge{Ref: ref, Source: true}); ok {
			return true
		}
	}
	return r.lineage.complete(edge{Ref: ref}, imports, r.allowed)
}

// allowed reports whether a recorded step may be reused in this build.
func (r *recorder) allowed(st *attestations.InputStep) bool {
	w, err := r.watch()
	return err == nil && len(w.gateway.Refuses(st)) == 0
}

// kept is told of every result that is put into the cache. What we know
// nothing of came from a cache that was imported.
func (r *recorder) kept(ref string, root bool) {
	if ref == "" {
		return
	}
	if _, ok := r.lineage.get(edge{Ref: ref}); ok {
		return
	}
	if root {
		if _, ok := r.lineage.get(edge{Ref: ref, Source: true}); ok {
			return
		}
	}
	r.lineage.put(edge{Ref: ref}, result{Imported: true}, nil)
}

// used is told of every result that a build made or took from the cache.
func (r *recorder) used(e edge) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, b := range r.builds {
		select {
		case <-b.over:
			continue
		default:
		}
		b.mu.Lock()
		if !slices.ContainsFunc(b.used, func(u edge) bool { return u.key() == e.key() }) {
			b.used = append(b.used, e)
		}
		b.mu.Unlock()
	}
}

// recordedResults is a frontend whose results are remembered, so that their
// inputs can be told.
type recordedResults struct {
	frontend.Frontend
	rec *recorder
}

func (f *recordedResults) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	res, err := f.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
	if err != nil {
		return nil, err
	}
	ref, _ := ctx.Value(buildKey{}).(string)
	f.rec.mu.Lock()
	b := f.rec.builds[ref]
	f.rec.mu.Unlock()
	if b == nil {
		return res, nil
	}
	names, err := platformNames(res)
	if err != nil {
		return nil, err
	}
	for id, name := range names {
		r, ok := res.FindRef(id)
		if !ok {
			continue
		}
		out := &inputsResult{ref: r}
		b.mu.Lock()
		b.results[name] = out
		b.mu.Unlock()
		if r == nil {
			out.solved = true
			continue
		}
		ours := &recordedRef{ResultProxy: r, out: out, mu: &b.mu}
		if res.Ref != nil && len(res.Refs) == 0 {
			res.Ref = ours
		} else {
			res.Refs[id] = ours
		}
	}
	return res, nil
}

// recordedRef remembers which result it had in the end, and completes what
// BuildKit's own provenance says of it.
type recordedRef struct {
	solver.ResultProxy
	out *inputsResult
	mu  *sync.Mutex
}

func (r *recordedRef) Result(ctx context.Context) (solver.CachedResult, error) {
	res, err := r.ResultProxy.Result(ctx)
	if err != nil {
		return nil, err
	}
	final := edge{Ref: refOf(res)}
	if n, ok := definitionNode(r.Definition()); ok {
		final.Source = n.isSource()
	}
	capture, _ := r.Provenance().(*provenance.Capture)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out.final, r.out.solved, r.out.capture = final, true, capture
	return res, nil
}

// Provenance adds what BuildKit would have seen of the steps had we not
// wrapped them: that they had a network, secrets, agents. Without it BuildKit
// would call every build hermetic.
func (r *recordedRef) Provenance() any {
	c, ok := r.ResultProxy.Provenance().(*provenance.Capture)
	if !ok || c == nil {
		return r.ResultProxy.Provenance()
	}
	c = c.Clone()
	def := r.Definition()
	if def == nil {
		return c
	}
	for _, raw := range def.Def {
		op := &pb.Op{}
		if op.UnmarshalVT(raw) != nil {
			c.IncompleteMaterials = true
			continue
		}
		e := op.GetExec()
		if e == nil {
			continue
		}
		for _, m := range e.Mounts {
			if m.MountType == pb.MountType_SECRET {
				c.AddSecret(provenancetypes.Secret{ID: m.SecretOpt.GetID(), Optional: m.SecretOpt.GetOptional()})
			}
			if m.MountType == pb.MountType_SSH {
				c.AddSSH(provenancetypes.SSH{ID: m.SSHOpt.GetID(), Optional: m.SSHOpt.GetOptional()})
			}
		}
		for _, s := range e.Secretenv {
			c.AddSecret(provenancetypes.Secret{ID: s.GetID(), Optional: s.GetOptional()})
		}
		if e.Network != pb.NetMode_NONE {
			c.NetworkAccess = true
		}
	}
	return c
}

// answer tells what reached one platform of a build, once its solve is over and
// what was kept is on the disk.
func (r *recorder) answer(ctx context.Context, ref, platform string) (*InputsAnswer, error) {
	r.mu.Lock()
	b := r.builds[ref]
	r.mu.Unlock()
	if b == nil {
		return nil, fmt.Errorf("%w: build %q was not solved here", errNoInputs, ref)
	}
	if err := wait(ctx, b.over); err != nil {
		return nil, err
	}
	if b.err != nil {
		return nil, fmt.Errorf("telling what reached the image: the build failed: %w", b.err)
	}
	b.mu.Lock()
	names := slices.Sorted(maps.Keys(b.results))
	if platform == "" && len(names) == 1 {
		platform = names[0]
	}
	out := b.results[platform]
	b.mu.Unlock()
	if out == nil {
		return nil, fmt.Errorf("%w: build %q has no platform %q, only %s", errNoInputs, ref, platform, strings.Join(names, ", "))
	}
	if !out.solved {
		return nil, fmt.Errorf("%w: the build gave no such result", errNoInputs)
	}
	w, err := r.watch()
	if err != nil {
		return nil, err
	}
	a := &InputsAnswer{Steps: []attestations.InputStep{}, Sources: []attestations.InputSource{}, Gateway: w.gateway.Describe()}
	if r.plan.Clients != nil {
		if err := r.contexts(ctx, a, out); err != nil {
			return nil, err
		}
	}
	listed := r.steps(a, out, b.began)
	r.stepsBeside(a, b, platform, listed)
	if err := r.sources(ctx, a, out, w); err != nil {
		return nil, err
	}
	if w.store != nil {
		if err := w.store.Sync(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// keeper is the store of what came in; nil where nothing is kept.
func (r *recorder) keeper() *lock.Store {
	w, err := r.watch()
	if err != nil {
		return nil
	}
	return w.store
}

// contexts lists the folders that a client sent for the result.
func (r *recorder) contexts(ctx context.Context, a *InputsAnswer, out *inputsResult) error {
	if out.ref == nil {
		return nil
	}
	sent, missing, err := r.folders.of(ctx, out.ref.Definition())
	if err != nil {
		return err
	}
	for _, s := range sent {
		src := attestations.InputSource{Kind: "context", URI: s.name, Digest: string(s.manifest), Tree: string(s.archive), Size: s.size}
		if s.name != attestations.DependencyContext {
			src.Kind, src.URI = "named-context", attestations.DependencyNamedContext+":"+s.name
		}
		if src.Stored = s.unkept == nil; !src.Stored {
			a.Unkept = append(a.Unkept, fmt.Sprintf("the %s: %v", src.URI, s.unkept))
		}
		a.Sources = append(a.Sources, src)
	}
	for _, name := range missing {
		a.Gaps = append(a.Gaps, attestations.InputGap{Kind: attestations.GapSource, Detail: "no digest of the context " + name})
	}
	return nil
}

// steps lists the records of what the result was made of, and returns which.
func (r *recorder) steps(a *InputsAnswer, out *inputsResult, began time.Time) (listed map[string]bool) {
	listed = map[string]bool{}
	if out.ref == nil {
		return listed
	}
	missing := func(steps []attestations.InputStep) {
		for _, st := range steps {
			if !listed["missing "+st.ID] {
				listed["missing "+st.ID] = true
				a.Steps = append(a.Steps, st)
			}
		}
	}
	unknown := func(detail string) {
		g := attestations.InputGap{Kind: attestations.GapCacheImport, Detail: detail}
		if !slices.Contains(a.Gaps, g) {
			a.Gaps = append(a.Gaps, g)
		}
	}
	r.lineage.walk(out.final, func(e edge, res result, ok bool) {
		for _, in := range res.Inputs {
			missing(in.Missing)
		}
		switch {
		case e.Source:
		case !ok || res.Imported:
			unknown("results came from an imported build cache, without a record of what went into them")
			if e.key() != out.final.key() {
				return
			}
			if n, ok := definitionNode(out.ref.Definition()); ok {
				missing(r.execsBelow(n))
			}
		case res.Step != "" && !listed[res.Step]:
			listed[res.Step] = true
			st := r.lineage.step(res.Step)
			if st == nil {
				a.Gaps = append(a.Gaps, attestations.InputGap{Kind: attestations.GapNoRecord, Detail: "the record of a step is gone"})
				a.Steps = append(a.Steps, attestations.InputStep{ID: idOf(res.Step), Name: "unknown", Verdict: attestations.VerdictUnobserved, Reused: true})
				return
			}
			own := *st
			own.Reused = !r.lineage.ranSince(res.Step, began)
			a.Steps = append(a.Steps, own)
		}
	})
	// Nothing below an imported result is known, even where it ran nothing.
	if len(a.Gaps) > 0 && !slices.ContainsFunc(a.Steps, func(st attestations.InputStep) bool { return st.Verdict == attestations.VerdictUnobserved }) {
		a.Steps = append(a.Steps, attestations.InputStep{
			ID: idOf(out.final.Ref), Name: "imported from a build cache", Verdict: attestations.VerdictUnobserved, Reused: true, Gaps: slices.Clone(a.Gaps),
		})
	}
	return listed
}

// idOf stands for the definition of a step that nobody knows.
func idOf(ref string) string { return string(attest.DigestOf([]byte("unknown " + ref))) }

// stepsBeside adds the steps of what the build made or took on the way that are
// not below the image: see inputsBuild.used. Of a build for several platforms
// each has its own and those of none of them.
func (r *recorder) stepsBeside(a *InputsAnswer, b *inputsBuild, platform string, listed map[string]bool) {
	b.mu.Lock()
	used, others := slices.Clone(b.used), maps.Clone(b.results)
	b.mu.Unlock()
	own, foreign := r.stepsOf(b), r.stepsOfOthers(b)
	delete(others, platform)
	for _, e := range used {
		r.lineage.walk(e, func(_ edge, res result, ok bool) {
			if !ok || res.Step == "" || listed[res.Step] {
				return
			}
			st := r.lineage.step(res.Step)
			if st == nil {
				return
			}
			if _, elsewhere := others[st.Platform]; elsewhere {
				return
			}
			if !own[st.ID] && foreign[st.ID] {
				return // of a build that ran at the same time
			}
			listed[res.Step] = true
			own := *st
			own.Reused = !r.lineage.ranSince(res.Step, b.began)
			a.Steps = append(a.Steps, own)
		})
	}
}

// stepsOf are the ids of the steps in the definitions of a build's results.
func (r *recorder) stepsOf(b *inputsBuild) map[string]bool {
	b.mu.Lock()
	var nodes []node
	for _, out := range b.results {
		if out.ref == nil {
			continue
		}
		if n, ok := definitionNode(out.ref.Definition()); ok {
			nodes = append(nodes, n)
		}
	}
	b.mu.Unlock()
	ids := map[string]bool{}
	for _, n := range nodes {
		for _, st := range r.execsBelow(n) {
			ids[st.ID] = true
		}
	}
	return ids
}

// stepsOfOthers are those of all builds but b.
func (r *recorder) stepsOfOthers(b *inputsBuild) map[string]bool {
	r.mu.Lock()
	others := slices.DeleteFunc(slices.Collect(maps.Values(r.builds)), func(o *inputsBuild) bool { return o == b })
	r.mu.Unlock()
	ids := map[string]bool{}
	for _, o := range others {
		maps.Copy(ids, r.stepsOf(o))
	}
	return ids
}

// sources lists what the engine fetched itself for the result, as BuildKit
// resolved it in this very build.
func (r *recorder) sources(ctx context.Context, a *InputsAnswer, out *inputsResult, w *watch) error {
	if out.capture == nil {
		return nil
	}
	src := out.capture.Sources
	for _, img := range src.Images {
		if img.Local && r.plan.Clients == nil {
			continue // waxseal's own content: the context
		}
		s := attestations.InputSource{Kind: "image", URI: imageURI(img.Ref, img.Platform), Ref: imageRef(img.Ref), Digest: img.Digest.String()}
		if img.Local {
			s.Kind, s.URI, s.Ref = "named-context", attestations.DependencyNamedContext+":"+layoutName(img.Ref), ""
		}
		if r.daemon.has(img.Ref, img.Digest) {
			s.URI = daemonURI(s.Ref)
		}
		if img.Platform != nil {
			s.Platform = platforms.Format(platforms.Normalize(*img.Platform))
		}
		if w.store != nil {
			var err error
			keeper := imageKeeper{blobs: r.blobs, store: w.store}
			if s.Stored, err = keeper.keep(ctx, &s); err != nil {
				return fmt.Errorf("keeping base image %s: %w", img.Ref, err)
			}
		}
		a.Sources = append(a.Sources, s)
	}
	for _, h := range src.HTTP {
		s := attestations.InputSource{Kind: "http", URI: w.redactor.URI(h.URL), Digest: h.Digest.String()}
		r.files.source(&s, w)
		a.Sources = append(a.Sources, s)
	}
	var checkouts []attestations.InputSource
	if r.git != nil {
		checkouts = r.git.sources(out.ref.Definition(), w)
	}
	a.Sources = append(a.Sources, checkouts...)
	for _, g := range src.Git {
		s := attestations.InputSource{Kind: "git", URI: w.redactor.URI(g.URL), Digest: "gitCommit:" + g.Commit}
		if !slices.ContainsFunc(checkouts, func(c attestations.InputSource) bool { return c.Digest == s.Digest }) {
			a.Sources = append(a.Sources, s)
		}
	}
	return nil
}

// close prunes the records by what the cache still has.
func (r *recorder) close() {
	r.mu.Lock()
	step := r.fileStep
	r.mu.Unlock()
	if step != nil {
		_, _ = step.Close()
	}
	r.folders.tasks.Wait()
	if w, err := r.watch(); err == nil {
		_ = w.gateway.Close()
	}
	if r.exists != nil {
		r.lineage.close(r.exists)
	}
}
