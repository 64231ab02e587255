package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/worker"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/egress"
)

// maxSecrets bounds how many secret values a step's gateway looks for.
const maxSecrets = 256

// recordedOp is a step, a copy, a merge or a diff whose result gets a lineage.
type recordedOp struct {
	solver.Op
	node node
	rec  *recorder
	sm   *session.Manager
}

// recorded wraps what makes results. Sources stay as they are: BuildKit looks
// for their type when it writes its own provenance.
func (r *recorder) recorded(op solver.Op, v solver.Vertex, sm *session.Manager) solver.Op {
	n, ok := vertexNode(v)
	if !ok {
		return op
	}
	switch n.op.Op.(type) {
	case *pb.Op_Exec, *pb.Op_File, *pb.Op_Merge, *pb.Op_Diff, *pb.Op_Passthrough:
		return &recordedOp{Op: op, node: n, rec: r, sm: sm}
	}
	return op
}

func (o *recordedOp) Exec(ctx context.Context, jobCtx solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	exec := o.node.op.GetExec()
	if exec == nil {
		outputs, err := o.Op.Exec(ctx, jobCtx, inputs)
		if err == nil {
			o.remember(inputs, outputs, nil)
		}
		return outputs, err
	}
	run, err := o.begin(ctx, jobCtx, exec)
	if err != nil {
		return nil, err
	}
	outputs, err := o.Op.Exec(context.WithValue(ctx, stepKey{}, run), jobCtx, inputs)
	record, closed := run.end()
	if refused := violations(run); refused != nil {
		// Whatever the step made of its answer: this is no result.
		for _, res := range outputs {
			_ = res.Release(context.WithoutCancel(ctx))
		}
		refused.cause = err
		return nil, refused
	}
	if err == nil && closed != nil {
		for _, res := range outputs {
			_ = res.Release(context.WithoutCancel(ctx))
		}
		return nil, fmt.Errorf("recording what reached %q: %w", run.name, closed)
	}
	if err != nil {
		return outputs, withRefusals(err, record)
	}
	o.remember(inputs, outputs, record)
	return outputs, nil
}

// remember writes the lineage of outputs before anybody can use them.
func (o *recordedOp) remember(inputs, outputs []solver.Result, record *attestations.InputStep) {
	var r result
	seen := map[string]bool{}
	for i, in := range inputs {
		e := edge{Ref: refOf(in)}
		var below node
		if i < len(o.node.inputs) {
			if n, ok := o.node.inputs[i](); ok {
				below, e.Source = n, n.isSource()
			}
		}
		if e.Ref == "" || seen[e.key()] {
			continue
		}
		seen[e.key()] = true
		if known, ok := o.rec.lineage.get(e); !e.Source && (!ok || known.Imported) && below.op != nil {
			e.Missing = o.rec.execsBelow(below)
		}
		r.Inputs = append(r.Inputs, e)
	}
	for _, out := range outputs {
		e := edge{Ref: refOf(out)}
		if e.Ref == "" || seen[e.key()] {
			continue // nothing, or an input passed on: its own lineage holds
		}
		seen[e.key()] = true
		if record != nil {
			if r.Step == "" {
				r.Step = e.Ref
				o.rec.lineage.put(e, r, record)
				continue
			}
		}
		o.rec.lineage.put(e, r, nil)
	}
	for _, out := range outputs {
		if e := (edge{Ref: refOf(out)}); e.Ref != "" {
			o.rec.used(e)
		}
	}
}

// refOf is the id of a result in the build cache, "" for scratch.
func refOf(res solver.Result) string {
	if res == nil {
		return ""
	}
	w, ok := res.Sys().(*worker.WorkerRef)
	if !ok || w.ImmutableRef == nil {
		return ""
	}
	return w.ImmutableRef.ID()
}

// begin prepares the watch over a step.
func (o *recordedOp) begin(ctx context.Context, jobCtx solver.JobContext, exec *pb.ExecOp) (*stepRun, error) {
	desc := o.rec.describe(o.node)
	run := &stepRun{rec: o.rec, name: desc.Name, desc: desc, net: exec.Network, insecure: exec.Security == pb.SecurityMode_INSECURE, began: time.Now()}
	if run.insecure {
		run.gap(attestations.GapInsecure, "the step ran with all privileges and could get round the gateway")
	}
	if exec.Network == pb.NetMode_HOST {
		run.gap(attestations.GapHostNetwork, "the step had the network of the machine")
	}
	for _, m := range exec.Mounts {
		switch m.MountType {
		case pb.MountType_CACHE:
			run.caches = append(run.caches, m)
		case pb.MountType_SSH:
			run.gap(attestations.GapSSH, fmt.Sprintf("the step could ask the ssh agent %q; its answers are not recorded", cmp.Or(m.GetSSHOpt().GetID(), "default")))
		}
	}
	values, err := o.secrets(ctx, jobCtx, exec)
	if err != nil {
		return nil, err
	}
	run.secrets = values
	return run, nil
}

// secrets fetches the values that must not be stored. A secret that is not
// there is the step's to complain of.
func (o *recordedOp) secrets(ctx context.Context, jobCtx solver.JobContext, exec *pb.ExecOp) ([][]byte, error) {
	ids := map[string]bool{}
	for _, m := range exec.Mounts {
		if m.MountType == pb.MountType_SECRET && m.SecretOpt != nil {
			ids[m.SecretOpt.ID] = true
		}
	}
	for _, e := range exec.Secretenv {
		ids[e.ID] = true
	}
	if len(ids) > maxSecrets {
		return nil, fmt.Errorf("reading the secrets of a step: more than %d", maxSecrets)
	}
	var out [][]byte
	for id := range ids {
		var value []byte
		err := o.sm.Any(ctx, jobCtx.Session(), func(ctx context.Context, _ string, caller session.Caller) error {
			var err error
			value, err = secrets.GetSecret(ctx, caller, id)
			return err
		})
		if err == nil && len(value) > 0 {
			out = append(out, value)
		} else if err != nil && !errors.Is(err, secrets.ErrNotFound) {
			return nil, fmt.Errorf("reading the secret %q: %w", id, err)
		}
	}
	return out, nil
}

type stepKey struct{}

// stepRun is a step while it runs. It travels in the context from the solver
// to the executor and to the network.
type stepRun struct {
	rec      *recorder
	name     string
	desc     attestations.InputStep
	net      pb.NetMode
	began    time.Time
	caches   []*pb.Mount
	secrets  [][]byte
	insecure bool

	mu     sync.Mutex
	hosts  map[string]net.IP
	rootfs string
	gaps   []attestations.InputGap
	step   *egress.Step
	ran    bool
	leave  []func()
}

func stepOf(ctx context.Context) *stepRun {
	run, _ := ctx.Value(stepKey{}).(*stepRun)
	return run
}

func (run *stepRun) gap(kind, detail string) {
	run.mu.Lock()
	defer run.mu.Unlock()
	g := attestations.InputGap{Kind: kind, Detail: detail}
	if !slices.Contains(run.gaps, g) {
		run.gaps = append(run.gaps, g)
	}
}

// end closes the step's network and returns its record.
func (run *stepRun) end() (*attestations.InputStep, error) {
	run.mu.Lock()
	step, leave, ran := run.step, run.leave, run.ran
	run.leave = nil
	run.mu.Unlock()
	for _, f := range leave {
		f()
	}
	finished := time.Now()
	rec := run.desc
	began := run.began.UTC()
	finished = finished.UTC()
	rec.StartedOn, rec.FinishedOn = &began, &finished
	switch {
	case step != nil:
		seen, err := step.Close()
		if err != nil {
			return nil, err
		}
		rec = *seen
		rec.ID = run.desc.ID
	case run.net == pb.NetMode_NONE && ran:
		rec.Verdict = attestations.VerdictIsolated
	default:
		rec.Verdict = attestations.VerdictUnobserved
		if run.net != pb.NetMode_HOST {
			run.gap(attestations.GapNoRecord, "the step did not pass the gateway")
		}
	}
	run.mu.Lock()
	rec.Gaps = append(slices.Clone(rec.Gaps), run.gaps...)
	run.mu.Unlock()
	rec.Verdict = attestations.WorstVerdict([]attestations.InputStep{rec}, nil)
	return &rec, nil
}

// violationError says what of a step's requests fails the build.
type violationError struct {
	step  string
	texts []string
	cause error
}

// lockViolation is one about what the engine fetches itself; expected is ""
// for what the lock does not list.
func lockViolation(step, expected, got string) *violationError {
	text := "not in the lock"
	if expected != "" {
		text = "expected " + expected + ", got " + got
	}
	return &violationError{step: step, texts: []string{text}}
}

func violations(run *stepRun) *violationError {
	run.mu.Lock()
	step := run.step
	run.mu.Unlock()
	if step == nil {
		return nil
	}
	vs := step.Violations()
	if len(vs) == 0 {
		return nil
	}
	e := &violationError{step: run.name}
	for _, v := range vs {
		e.texts = append(e.texts, v.Text)
	}
	return e
}

// withRefusals adds to the error of a step what it was denied and what nobody
// answered: its own tools show no more than a status.
func withRefusals(err error, record *attestations.InputStep) error {
	if record == nil {
		return err
	}
	var lines []string
	for _, r := range record.Refusals {
		lines = append(lines, fmt.Sprintf("denied by the gateway: %s: %s", r.Destination, r.Reason))
	}
	for i := range record.Requests {
		q := &record.Requests[i]
		if line := fmt.Sprintf("not answered: %s %s: %s", q.Method, q.URI, q.Unanswered); q.Unanswered != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	if more := len(lines) - maxRefusalsTold; more > 0 {
		lines = append(lines[:maxRefusalsTold], fmt.Sprintf("and %d more", more))
	}
	if len(lines) == 0 {
		return err
	}
	return fmt.Errorf("%w\n  %s", err, strings.Join(lines, "\n  "))
}

const maxRefusalsTold = 5

// maxViolations is how many are told in words.
const maxViolations = 20

func (e *violationError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %q", violationPrefix, e.step)
	for i, t := range e.texts {
		if i == maxViolations {
			fmt.Fprintf(&b, "\n  and %d more", len(e.texts)-i)
			break
		}
		b.WriteString("\n  " + strings.ReplaceAll(t, "\n", "\n  "))
	}
	return b.String()
}

func (e *violationError) Unwrap() error { return e.cause }

// violationPrefix begins the text of an error for inputs that may not come in:
// waxseal finds it by that.
const violationPrefix = "inputs refused"

// stepExecutor runs steps. It gives each the id by which its root is found,
// looks into cache mounts before the step does, and gets ready to catalogue
// when the first step runs: then the result is a new one. A build with nothing
// changed finds its documents in the cache, and needs the time for itself.
type stepExecutor struct {
	executor.Executor
	host           executor.Executor // for steps with the machine's network
	root, hostRoot string            // of the two
	sboms          *sboms
}

func (e *stepExecutor) Run(ctx context.Context, id string, rootfs executor.Mount, mounts []executor.Mount, process executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	run := stepOf(ctx)
	if run == nil {
		return nil, errors.New("starting a container: only the steps of a build are run")
	}
	if e.sboms.wanted.Load() {
		go func() { _ = e.sboms.catalog.Prepare() }()
	}
	if id == "" {
		id = identity.NewID()
	}
	exec, root := e.Executor, e.root
	if process.Meta.NetMode == pb.NetMode_HOST {
		exec, root = e.host, e.hostRoot
	}
	run.mu.Lock()
	run.rootfs = filepath.Join(root, id, "rootfs")
	run.hosts = make(map[string]net.IP, len(process.Meta.ExtraHosts))
	for _, h := range process.Meta.ExtraHosts {
		run.hosts[h.Host] = h.IP
	}
	run.ran = true
	run.mu.Unlock()
	for _, c := range run.caches {
		if err := run.enterCache(ctx, c, mounts); err != nil {
			return nil, err
		}
	}
	return exec.Run(ctx, id, rootfs, mounts, process, started)
}

// Exec is never called in a build: it would start a second process in a step.
func (e *stepExecutor) Exec(context.Context, string, executor.ProcessInfo) error {
	return errors.New("starting a process in a container: only the steps of a build are run")
}

// enterCache looks whether a cache mount brings anything into the step. What
// is empty when the step starts and no other step writes to meanwhile does not.
func (run *stepRun) enterCache(ctx context.Context, c *pb.Mount, mounts []executor.Mount) error {
	id := c.GetCacheOpt().GetID()
	alone, leave := run.rec.caches.enter(id, run)
	run.mu.Lock()
	run.leave = append(run.leave, leave)
	run.mu.Unlock()
	if !alone && c.GetCacheOpt().GetSharing() == pb.CacheSharingOpt_SHARED {
		run.gap(attestations.GapCacheMount, c.Dest)
		return nil
	}
	for _, m := range mounts {
		if m.Dest != c.Dest {
			continue
		}
		empty, err := isEmpty(ctx, m)
		if err != nil {
			return fmt.Errorf("looking into the cache mount %q: %w", c.Dest, err)
		}
		if !empty {
			run.gap(attestations.GapCacheMount, c.Dest)
		}
		return nil
	}
	run.gap(attestations.GapCacheMount, c.Dest)
	return nil
}

func isEmpty(ctx context.Context, m executor.Mount) (_ bool, err error) {
	src, err := m.Src.Mount(ctx, true)
	if err != nil {
		return false, err
	}
	list, release, err := src.Mount()
	if err != nil {
		return false, err
	}
	if release != nil {
		defer func() { err = errors.Join(err, release()) }()
	}
	lm := snapshot.LocalMounterWithMounts(list)
	dir, err := lm.Mount()
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, lm.Unmount()) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer root.Close()
	sub := strings.TrimPrefix(filepath.Clean("/"+m.Selector), "/")
	if sub == "" {
		sub = "."
	}
	d, err := root.Open(sub)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer d.Close()
	return isBare(d)
}

// isBare reports whether a folder holds nothing: no file, and no text of an
// earlier build in its extended attributes. Those of the kernel's own are the
// machine's.
func isBare(d *os.File) (bool, error) {
	names, err := d.Readdirnames(1)
	if len(names) > 0 || ignoreEOF(err) != nil {
		return false, ignoreEOF(err)
	}
	var list [64 << 10]byte
	n, err := unix.Flistxattr(int(d.Fd()), list[:])
	if errors.Is(err, unix.ENOTSUP) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("listing the attributes of %q: %w", d.Name(), err)
	}
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		if name != "" && name != "security.selinux" && !strings.HasPrefix(name, "trusted.overlay.") {
			return false, nil
		}
	}
	return true, nil
}

// cacheMounts knows which steps have a cache mount at the moment.
type cacheMounts struct {
	mu     sync.Mutex
	active map[string][]*stepRun
}

// enter reports whether run is the only one with the mount id. The others
// learn that they are not alone any more.
func (c *cacheMounts) enter(id string, run *stepRun) (alone bool, leave func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	others := c.active[id]
	for _, o := range others {
		o.gap(attestations.GapCacheMount, fmt.Sprintf("cache mount %s: another step wrote to it meanwhile", id))
	}
	c.active[id] = append(slices.Clone(others), run)
	return len(others) == 0, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.active[id] = slices.DeleteFunc(slices.Clone(c.active[id]), func(o *stepRun) bool { return o == run })
	}
}

// describe and execsBelow share the ids of what they went through.
func (r *recorder) describe(n node) attestations.InputStep {
	r.idsMu.Lock()
	defer r.idsMu.Unlock()
	return n.step(r.ids)
}

func (r *recorder) execsBelow(n node) []attestations.InputStep {
	r.idsMu.Lock()
	defer r.idsMu.Unlock()
	out := execsBelow(n, r.ids)
	for i := range out {
		out[i].Verdict = attestations.VerdictUnobserved
		out[i].Reused = true
		out[i].Gaps = []attestations.InputGap{{Kind: attestations.GapCacheImport, Detail: "the result came from an imported build cache, without a record"}}
	}
	return out
}

type stepIDs = map[digest.Digest]string
