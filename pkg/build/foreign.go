package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// foreignEngine is a BuildKit that somebody else runs. Its own proxy network
// records some of what steps fetch; what that is worth is computed here, from
// its record and its progress, and never taken from what it claims.
type foreignEngine struct {
	address string
	client  *client.Client
	intake  *intake
	imports bool // of the results of another cache
	seen    trace
	version string
}

func (e *foreignEngine) catalogs() bool { return false }

func (e *foreignEngine) Dial(ctx context.Context) (*client.Client, error) {
	c, err := client.New(ctx, e.address)
	if err != nil {
		return nil, fmt.Errorf("connecting to BuildKit at %q: %w", e.address, err)
	}
	e.client = c
	info, err := c.Info(ctx)
	if err != nil {
		return nil, hinted(fmt.Errorf("connecting to BuildKit at %q: %w", e.address, lastCause(err)), "is buildkitd running there? Without --engine the engine that comes with waxseal is used")
	}
	e.version = info.BuildkitVersion.Version
	return c, nil
}

func (e *foreignEngine) describe(ctx context.Context) (attestations.ContainerEngine, error) {
	if e.client == nil {
		return attestations.ContainerEngine{}, errors.New("not connected")
	}
	d := attestations.ContainerEngine{Name: "buildkit", BuildKit: e.version}
	if workers, err := e.client.ListWorkers(ctx); err == nil && len(workers) > 0 {
		l := workers[0].Labels
		d.Snapshotter = l["org.mobyproject.buildkit.worker.snapshotter"]
		d.Isolation = l["org.mobyproject.buildkit.worker.executor"]
	}
	return d, nil
}

func (e *foreignEngine) sbom(ctx context.Context, q sbomQuery) (io.ReadCloser, error) {
	return catalogLayout(ctx, q)
}

func (e *foreignEngine) Explain(err error) error { return err }

func (e *foreignEngine) Close() error {
	if e.client == nil {
		return nil
	}
	return e.client.Close()
}

// adjust asks for BuildKit's proxy network, and restricts it to the lock, or
// with no network keeps ADD from fetching: its network is not the steps'. A
// BuildKit before 0.31 does not know of the proxy and does without; its record
// tells.
func (e *foreignEngine) adjust(opt *client.SolveOpt) (func(*client.SolveStatus), error) {
	opt.ProxyNetwork = e.intake.choice.mode() != attestations.InputsNone
	e.imports = len(opt.CacheImports) > 0
	switch held := e.intake.held; {
	case held != nil:
		opt.SourcePolicy = sourcePolicy(held)
	case e.intake.choice.mode() == attestations.InputsNone:
		opt.SourcePolicy = &spb.Policy{Version: 1, Rules: denials("http", "https", "git")}
	}
	return e.seen.add, nil
}

// denials are rules that let nothing of these schemes through.
func denials(schemes ...string) []*spb.Rule {
	var rules []*spb.Rule
	for _, s := range schemes {
		rules = append(rules, &spb.Rule{Action: spb.PolicyAction_DENY, Selector: &spb.Selector{Identifier: "^" + s + "://", MatchType: spb.MatchType_REGEX}})
	}
	return rules
}

// sourcePolicy lets a BuildKit fetch what a lock lists, pinned where BuildKit
// can do that, and nothing else. It cannot pin what steps fetch; that is
// compared when the build is over.
func sourcePolicy(held *lock.File) *spb.Policy {
	// The last rule that matches wins.
	p := &spb.Policy{Version: 1, Rules: denials("http", "https", "docker-image", "git")}
	rule := func(action spb.PolicyAction, match spb.MatchType, id string, u *spb.Update) {
		p.Rules = append(p.Rules, &spb.Rule{Action: action, Selector: &spb.Selector{Identifier: id, MatchType: match}, Updates: u})
	}
	asked := map[string]bool{} // by steps
	for _, st := range held.Steps {
		for _, x := range st.Entries {
			asked[x.URI] = true
		}
	}
	for _, uri := range sortedKeys(asked) {
		rule(spb.PolicyAction_ALLOW, spb.MatchType_EXACT, uri, nil)
	}
	digests := map[string]map[string]bool{}
	for _, s := range held.Sources {
		if digests[s.Ref] == nil {
			digests[s.Ref] = map[string]bool{}
		}
		digests[s.Ref][s.Digest] = true
	}
	for _, s := range held.Sources {
		switch s.Kind {
		case "http":
			rule(spb.PolicyAction_ALLOW, spb.MatchType_EXACT, s.Ref, nil)
			// A rule with a checksum would have the proxy refuse the same URL
			// to a step.
			if !asked[s.Ref] {
				rule(spb.PolicyAction_CONVERT, spb.MatchType_EXACT, s.Ref, &spb.Update{Identifier: s.Ref, Attrs: map[string]string{pb.AttrHTTPChecksum: s.Digest}})
			}
		case "image":
			named, err := reference.ParseNormalizedNamed(s.Ref)
			if err != nil {
				continue
			}
			id := "docker-image://" + reference.TagNameOnly(named).String()
			rule(spb.PolicyAction_ALLOW, spb.MatchType_EXACT, id, nil)
			if _, pinned := named.(reference.Digested); !pinned && len(digests[s.Ref]) == 1 {
				rule(spb.PolicyAction_ALLOW, spb.MatchType_EXACT, id+"@"+s.Digest, nil)
				rule(spb.PolicyAction_CONVERT, spb.MatchType_EXACT, id, &spb.Update{Identifier: id + "@" + s.Digest})
			}
		case "git":
			// BuildKit's name for a repository is not the one that was asked
			// for: which commit came is compared afterwards.
			rule(spb.PolicyAction_ALLOW, spb.MatchType_REGEX, "^git://", nil)
		}
	}
	return p
}

// trace is what the progress of a build tells about its steps.
type trace struct {
	mu    sync.Mutex
	order []string
	steps map[string]*tracedStep // by vertex
	lines int
	reuse bool // something came from a cache, not a step perhaps
}

type tracedStep struct {
	name, stage, platform string
	isolated              bool // --network=none
	done, cached          bool
	clipped               bool // BuildKit has left out some of its log
	asked                 []tracedRequest
	listing               bool
	part                  string
}

type tracedRequest struct {
	method, uri string
	status      int
}

// stepTitle is how the Dockerfile frontend names the steps of RUN.
var stepTitle = regexp.MustCompile(`^\[(?:([a-z0-9]+/\S+) )?(?:(\S+) )?\d+/\d+\] (RUN[ \t].*)$`)

// maxTraceLine bounds what is kept of a line that has not ended.
const maxTraceLine = 2 * attest.MaxURI

func (t *trace) add(s *client.SolveStatus) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.steps == nil {
		t.steps = map[string]*tracedStep{}
	}
	for _, v := range s.Vertexes {
		t.reuse = t.reuse || v.Cached
		id := v.Digest.String()
		st := t.steps[id]
		if st == nil {
			m := stepTitle.FindStringSubmatch(v.Name)
			if m == nil || len(t.steps) >= attest.MaxInputSteps {
				continue
			}
			st = &tracedStep{platform: m[1], stage: m[2], name: m[3], isolated: hasFlag(m[3], "--network=none")}
			t.steps[id] = st
			t.order = append(t.order, id)
		}
		st.cached = st.cached || v.Cached
		st.done = st.done || v.Completed != nil
	}
	for _, l := range s.Logs {
		if st := t.steps[l.Vertex.String()]; st != nil {
			t.read(st, string(l.Data))
		}
	}
}

// hasFlag looks among the flags of a RUN, which stand before its command.
func hasFlag(run, flag string) bool {
	for _, f := range strings.Fields(run)[1:] {
		if !strings.HasPrefix(f, "--") {
			return false
		}
		if f == flag {
			return true
		}
	}
	return false
}

// read looks for the list of requests that BuildKit puts at the end of a
// step's log. A step can print such a list as well; it can only add to what it
// is said to have asked for.
func (t *trace) read(st *tracedStep, text string) {
	for line := range strings.Lines(st.part + text) {
		whole, ended := strings.CutSuffix(line, "\n")
		if !ended {
			st.part = line[max(0, len(line)-maxTraceLine):]
			return
		}
		switch {
		case strings.Contains(whole, "[output clipped, log"):
			st.clipped = true
		case strings.HasSuffix(whole, "proxy network requests:"): // the step's last line may have had no end
			st.listing = true
		case st.listing && strings.HasPrefix(whole, "- "):
			r, ok := parseTraced(whole[2:])
			if t.lines++; !ok || t.lines > attest.MaxInputs {
				st.clipped = true
				continue
			}
			st.asked = append(st.asked, r)
		}
	}
	st.part = ""
}

// parseTraced reads "GET https://example.com/ -> 200", or without a status.
func parseTraced(s string) (tracedRequest, bool) {
	method, rest, ok := strings.Cut(s, " ")
	uri, status, answered := strings.Cut(rest, " -> ")
	r := tracedRequest{method: method, uri: uri}
	if answered {
		n, err := strconv.Atoi(status)
		if err != nil {
			return r, false
		}
		r.status = n
	}
	return r, ok && method != "" && uri != "" && len(uri) <= attest.MaxURI
}

// inputs computes what a BuildKit's record is worth.
func (e *foreignEngine) inputs(_ context.Context, _ *built, rec *record, platform string) (*EngineInputs, error) {
	redactor, err := e.intake.store.Redactor()
	if err != nil {
		return nil, fmt.Errorf("opening the store of inputs: %w", err)
	}
	e.seen.mu.Lock()
	defer e.seen.mu.Unlock()
	j := &foreignJudge{rec: rec, redact: redactor.URI, kept: map[string]string{}, asked: map[string]int{}}
	j.out.Gateway.Name = "buildkit-proxy"
	j.out.Gateway.Version = e.version
	for _, d := range rec.Dependencies {
		if sum := d.Digest["sha256"]; sum != "" {
			j.kept[d.URI] = "sha256:" + sum
		}
	}
	if e.imports && e.seen.reuse {
		j.gap(attestations.GapCacheImport, "BuildKit does not say which results came from there")
	}
	open := false // a step had a network
	shut := 0     // steps that had none
	ran := map[string]bool{"": true, platform: true}
	for _, x := range rec.Execs {
		if x.Network != int(pb.NetMode_NONE) {
			open = true
		} else {
			shut++
		}
		ran[x.Platform] = true
		for _, c := range x.Caches {
			j.gap(attestations.GapCacheMount, c)
		}
		if x.Insecure {
			j.gap(attestations.GapInsecure, "a RUN with --security=insecure")
		}
	}
	if !rec.Proxy && open {
		j.out.Gateway = attestations.InputGateway{}
		j.gap(attestations.GapForeignEngine, fmt.Sprintf("BuildKit %s gave steps a network of its own and watched none of it; 0.31 or newer has a proxy network", e.version))
	}
	// A name is what the Dockerfile's author wrote. More of them that say they
	// had no network than there were such steps: none of them is believed.
	for _, st := range e.seen.steps {
		if ran[st.platform] && st.isolated {
			shut--
		}
	}
	j.named = shut >= 0
	for _, id := range e.seen.order {
		if st := e.seen.steps[id]; ran[st.platform] {
			j.step(id, st, open, platform)
		}
	}
	if len(j.out.Steps) < len(rec.Execs) && open {
		j.gap(attestations.GapNoRecord, "BuildKit's progress did not show all of the steps that its record has")
	}
	for _, m := range rec.Incomplete {
		if !j.missed[m.Method+" "+redactor.URI(m.URI)] {
			j.gap(attestations.GapSource, fmt.Sprintf("%s %s: BuildKit's proxy kept no digest: %s", m.Method, redactor.URI(m.URI), m.Reason))
		}
	}
	if held := e.intake.held; held != nil {
		if problems := e.unlisted(held, redactor); len(problems) > 0 {
			return nil, &LockError{Lock: e.intake.place, Problems: problems}
		}
	}
	if j.out.Gateway.Name == "" || !open {
		j.out.Gateway = attestations.InputGateway{}
	}
	return &j.out, nil
}

// unlisted names what steps asked for and the lock does not list: BuildKit
// denied it, and a step can make nothing of that.
func (e *foreignEngine) unlisted(held *lock.File, redactor *lock.Redactor) []string {
	listed := map[string]bool{}
	for _, st := range held.Steps {
		for _, x := range st.Entries {
			listed[x.Method+" "+lock.Shape(x.URI)] = true
		}
	}
	var out []string
	for _, id := range e.seen.order {
		st := e.seen.steps[id]
		for _, r := range st.asked {
			uri := redactor.URI(r.uri)
			if listed[r.method+" "+lock.Shape(uri)] {
				continue
			}
			p := fmt.Sprintf("step %s: %s %s: not in the lock; it was answered with %d", clipLine(st.name), r.method, uri, r.status)
			if !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// foreignJudge puts together the record of one platform.
type foreignJudge struct {
	rec    *record
	redact func(string, ...string) string
	kept   map[string]string // URI to digest, as BuildKit's proxy kept them
	asked  map[string]int    // by steps, so far
	named  bool              // steps whose name says that they had no network had none
	missed map[string]bool
	out    EngineInputs
}

func (j *foreignJudge) gap(kind, detail string) {
	if g := (attestations.InputGap{Kind: kind, Detail: detail}); !slices.Contains(j.out.Gaps, g) {
		j.out.Gaps = append(j.out.Gaps, g)
	}
}

func (j *foreignJudge) step(id string, t *tracedStep, open bool, platform string) {
	st := attestations.InputStep{ID: id, Name: t.name, Stage: t.stage, Platform: t.platform, Reused: t.cached}
	if st.Platform == "" {
		st.Platform = platform
	}
	miss := func(kind, format string, args ...any) {
		if g := (attestations.InputGap{Kind: kind, Detail: fmt.Sprintf(format, args...)}); !slices.Contains(st.Gaps, g) {
			st.Gaps = append(st.Gaps, g)
		}
	}
	switch {
	case !open || t.isolated && j.named:
	case !j.rec.Proxy:
		miss(attestations.GapForeignEngine, "it had a network, and nobody watched")
	case t.cached:
		// A result of the cache matches whether or not a proxy was in use, and
		// what was fetched for it is forgotten.
		miss(attestations.GapForeignEngine, "its result came from BuildKit's cache, which keeps no record of what was fetched for it")
	case !t.done:
		miss(attestations.GapNoRecord, "BuildKit did not say that it ran")
	default:
		j.requests(&st, t, miss)
	}
	st.Verdict = attestations.StepVerdict(&st)
	j.out.Steps = append(j.out.Steps, st)
}

// requests takes what a step is said to have asked for together with the
// digests that BuildKit kept.
func (j *foreignJudge) requests(st *attestations.InputStep, t *tracedStep, miss func(kind, format string, args ...any)) {
	if t.clipped {
		miss(attestations.GapOverflow, "BuildKit left out some of its log, and what it asked for may be among it")
	}
	for _, r := range t.asked {
		uri := j.redact(r.uri)
		digest := j.kept[r.uri]
		what := r.method + " " + uri
		j.asked[what]++
		switch {
		case r.method == http.MethodGet && r.status/100 == 2 && digest != "" && j.asked[what] == 1:
			st.Requests = append(st.Requests, attestations.InputRequest{Ordinal: len(st.Requests) + 1, Method: r.method, URI: uri, Status: r.status, Digest: digest})
		case r.method == http.MethodGet && r.status/100 == 2 && digest != "":
			miss(attestations.GapSource, "%s was asked for more than once, and BuildKit keeps one digest of it", what)
		default:
			if j.missed == nil {
				j.missed = map[string]bool{}
			}
			j.missed[what] = true
			miss(attestations.GapSource, "%s was answered with %d, of which BuildKit keeps no digest", what, r.status)
		}
	}
}
