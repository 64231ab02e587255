package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/buildid"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	gwapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/resolver"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	rpc "google.golang.org/grpc/status"

	"github.com/waxseal/waxseal/attestations"
)

// Bounds of what is kept of other programs' builds.
const (
	maxClientSolves = 4096
	maxClientText   = 4 << 20 // bytes of the attributes of one build
)

// builtIn is the one frontend there is.
const builtIn = "dockerfile.v0"

// attestProvenance is how a client asks for BuildKit's own provenance, and
// defaultProvenance how where its user says nothing of it.
const (
	attestProvenance  = "attest:provenance"
	defaultProvenance = "mode=min,inline-only=true"
)

// ClientsPlan is what goes for builds that other programs ask for, over the
// socket that waxseal hands over: docker buildx and what calls it.
type ClientsPlan struct {
	SBOM   []string `json:"sbom,omitempty"`   // formats of the SBOMs that every image gets
	Daemon bool     `json:"daemon,omitempty"` // waxseal answers for the images of the Docker daemon
}

// ClientSolve is one build that another program asked for, at GET /v1/solves.
type ClientSolve struct {
	Ref        string            `json:"ref"`
	Attrs      map[string]string `json:"attrs"`           // of the frontend, as it got them
	Given      []string          `json:"given,omitempty"` // names of contexts that came as a definition
	Exports    []ClientEntry     `json:"exports"`         // none where it leaves nothing: a question
	CacheFrom  []ClientEntry     `json:"cacheFrom,omitempty"`
	CacheTo    []ClientEntry     `json:"cacheTo,omitempty"`
	Allow      []string          `json:"allow,omitempty"`  // entitlements
	Policy     bool              `json:"policy,omitempty"` // the client rewrote or refused sources
	Docker     bool              `json:"docker,omitempty"` // docker's own builder is meant
	Error      string            `json:"error,omitempty"`
	StartedOn  time.Time         `json:"startedOn"`
	FinishedOn time.Time         `json:"finishedOn,omitzero"` // absent while it runs
	asked      int               // so many of the exports the client asked for
	results    *gwapi.Result     // what the frontend answered
	asking     bool              // it is being asked
	answered   bool              // a question about the build, such as a check
	mu         sync.Mutex
}

// ClientEntry is an export, or a cache, and its options.
type ClientEntry struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

// clients keeps what other programs ask for within what can be recorded, and
// remembers it.
type clients struct {
	plan  *ClientsPlan // nil where there are none
	mode  string       // of the inputs
	allow []string     // entitlements that may be asked for
	// daemon has the images of docker's own builder; nil for none.
	daemon *daemonImages

	mu     sync.Mutex
	order  []*ClientSolve
	solves map[string]*ClientSolve // by ref
}

func newClients(cfg Config, plan InputsPlan) *clients {
	return &clients{plan: plan.Clients, mode: plan.Mode, allow: cfg.Entitlements, solves: map[string]*ClientSolve{}}
}

// refused is an answer that the client shows to who called it.
func refused(format string, args ...any) error {
	return rpc.Errorf(codes.PermissionDenied, "waxseal: "+format, args...)
}

// dockersKey is of a context in which docker's own builder is meant.
type dockersKey struct{}

// meantAsDockers marks the calls of those who mean docker's own builder: it begins
// with what images its daemon has, unless it is told to pull.
func meantAsDockers(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	return handler(context.WithValue(ctx, dockersKey{}, true), req)
}

// begins says to a frontend where base images are looked for first.
func (c *clients) begins(ctx context.Context, r *gwapi.SolveRequest) {
	if ctx.Value(dockersKey{}) == nil || !c.plan.Daemon || r.FrontendOpt[resolveMode] != "" {
		return
	}
	if r.FrontendOpt == nil {
		r.FrontendOpt = map[string]string{}
	}
	r.FrontendOpt[resolveMode] = resolver.ResolveModePreferLocal.String()
}

// resolveMode is the frontend's attribute of where images are looked for.
const resolveMode = "image-resolve-mode"

// intercept is where a client's calls are let through.
func (c *clients) intercept(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	switch r := req.(type) {
	case *controlapi.SolveRequest:
		return c.solve(ctx, r, handler)
	case *gwapi.SolveRequest:
		return c.frontendSolve(ctx, r, handler)
	case *gwapi.ReturnRequest:
		if err := c.returned(buildid.FromIncomingContext(ctx), r); err != nil {
			return nil, err
		}
	case *gwapi.NewContainerRequest:
		return nil, refused("a container beside the build would not be recorded; it is not started")
	case *controlapi.UpdateBuildHistoryRequest:
		if r.Delete {
			return nil, refused("the record of a build is not removed while the command runs")
		}
	}
	return handler(ctx, req)
}

// interceptStream refuses what runs commands beside a build.
func (c *clients) interceptStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if strings.HasSuffix(info.FullMethod, "/ExecProcess") {
		return refused("a process beside the build would not be recorded; it is not started")
	}
	return handler(srv, ss)
}

func (c *clients) solve(ctx context.Context, r *controlapi.SolveRequest, handler grpc.UnaryHandler) (any, error) {
	s := &ClientSolve{Ref: r.Ref, Attrs: map[string]string{}, Allow: slices.Clone(r.Entitlements), Policy: r.SourcePolicy != nil || r.SourcePolicySession != "", StartedOn: time.Now().UTC()}
	s.Docker = ctx.Value(dockersKey{}) != nil
	if len(r.Exporters) == 0 && r.ExporterDeprecated != "" { //nolint:staticcheck // older clients
		r.Exporters = []*controlapi.Exporter{{Type: r.ExporterDeprecated, Attrs: r.ExporterAttrsDeprecated}} //nolint:staticcheck // the same
	}
	for _, e := range r.Exporters {
		s.Exports = append(s.Exports, ClientEntry{e.Type, maps.Clone(e.Attrs)})
	}
	if r.Cache != nil {
		for _, e := range r.Cache.Imports {
			s.CacheFrom = append(s.CacheFrom, ClientEntry{e.Type, maps.Clone(e.Attrs)})
		}
		for _, e := range r.Cache.Exports {
			s.CacheTo = append(s.CacheTo, ClientEntry{e.Type, maps.Clone(e.Attrs)})
		}
	}
	s.asked = len(s.Exports)
	if s.Docker && r.FrontendAttrs[attestProvenance] == defaultProvenance && c.daemon.keepsNoIndex(ctx) {
		// The client would not ask docker's own builder for it there.
		delete(r.FrontendAttrs, attestProvenance)
	}
	if err := c.check(s, r); err != nil {
		return nil, err
	}
	if len(s.Exports) > 0 {
		r.Internal = false // what leaves something has a record
	}
	if err := c.add(s); err != nil {
		return nil, err
	}
	added := !slices.ContainsFunc(s.Exports, func(e ClientEntry) bool { return isImage(e.Type) }) && len(s.Exports) > 0
	if added {
		// Files alone have no digest that evidence could be about: the image that
		// they are the files of has one.
		s.Exports = append(s.Exports, ClientEntry{Type: client.ExporterImage})
		r.Exporters = append(r.Exporters, &controlapi.Exporter{Type: client.ExporterImage})
	}
	resp, err := handler(ctx, r)
	if ok, is := resp.(*controlapi.SolveResponse); added && is && err == nil { // with an error it is a nil of that type
		maps.DeleteFunc(ok.ExporterResponse, func(k, _ string) bool { return strings.HasPrefix(k, "containerimage.") })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.FinishedOn = time.Now().UTC()
	if err != nil {
		s.Error = err.Error()
	}
	return resp, err
}

// isImage reports whether an output holds an image.
func isImage(kind string) bool {
	return kind == client.ExporterImage || kind == client.ExporterOCI || kind == client.ExporterDocker
}

// knownOption reports whether an output that is an image has an option of that
// name. BuildKit takes any other for a part of the result, in place of the
// frontend's: "containerimage.config" for the image's configuration.
func knownOption(name string) bool {
	switch exptypes.ImageExporterOptKey(name) {
	case exptypes.OptKeyName, exptypes.OptKeyPush, exptypes.OptKeyPushByDigest, exptypes.OptKeyInsecure, exptypes.OptKeyUnpack,
		exptypes.OptKeyDanglingPrefix, exptypes.OptKeyDanglingEmptyOnly, exptypes.OptKeyNameCanonical, exptypes.OptKeyStore,
		exptypes.OptKeyOCITypes, exptypes.OptKeyOCIArtifact, exptypes.OptKeyForceInlineAttestations, exptypes.OptKeyPreferNondistLayers,
		exptypes.OptKeySourceDateEpoch, exptypes.OptKeyLayerCompression, exptypes.OptKeyForceCompression, exptypes.OptKeyCompressionLevel,
		exptypes.OptKeyRewriteTimestamp:
		return true
	case "tar", "dest", // of an archive
		"context", "prefer-image-digest", "buildinfo-attrs": // buildx's own, which nothing reads
		return true
	}
	_, annotation, err := exptypes.ParseAnnotationKey(name)
	return annotation && err == nil
}

// check refuses what could not be recorded or was not allowed.
func (c *clients) check(s *ClientSolve, r *controlapi.SolveRequest) error {
	for _, e := range r.Entitlements {
		if !slices.Contains(c.allow, e) {
			return refused("this build asks for %q, and what a step does with that nobody sees: give waxseal run --allow %s", e, e)
		}
	}
	if len(s.Exports) == 0 {
		return nil
	}
	if r.Ref == "" || len(r.Ref) > 256 {
		return refused("a build needs a short name of its own")
	}
	if r.EnableSessionExporter {
		return refused("what is exported must be asked for when the build begins")
	}
	for _, e := range s.Exports {
		switch e.Type {
		case client.ExporterImage, client.ExporterOCI, client.ExporterDocker, client.ExporterLocal, client.ExporterTar:
		default:
			return refused("output type %q is not supported: image, registry, docker, oci, local or tar", e.Type)
		}
		for _, k := range slices.Sorted(maps.Keys(e.Attrs)) {
			if isImage(e.Type) && !knownOption(k) {
				return refused("output option %q is not known: it could change the image, and nothing would say so", k)
			}
		}
	}
	if r.Definition != nil && len(r.Definition.Def) > 0 {
		return refused("only Dockerfiles are built here: a definition of another kind has no record that provenance could be written from")
	}
	return c.checkFrontend(r.Frontend, r.FrontendAttrs)
}

func (c *clients) checkFrontend(name string, attrs map[string]string) error {
	size := 0
	for k, v := range attrs {
		size += len(k) + len(v)
		if strings.HasPrefix(k, "waxseal:") {
			return refused("attribute %q is waxseal's own", k)
		}
	}
	if _, given := attrs["contextkey"]; given {
		return refused("attribute %q is not taken: the context would be another than the record names", "contextkey")
	}
	if size > maxClientText {
		return refused("the parameters of the build are over the limit of %d bytes", maxClientText)
	}
	if name != "" && name != builtIn {
		return refused("frontend %q (%s) is not run: only the Dockerfile frontend that is built in, and nothing is pulled for it; leave out BUILDKIT_SYNTAX", name, attrs["source"])
	}
	return nil
}

func (c *clients) add(s *ClientSolve) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, there := c.solves[s.Ref]; there {
		return refused("a build named %q was there already", s.Ref)
	}
	if len(c.solves) >= maxClientSolves {
		return refused("more than %d builds in one command", maxClientSolves)
	}
	c.solves[s.Ref] = s
	c.order = append(c.order, s)
	return nil
}

// of returns a client's build; nil for waxseal's own.
func (c *clients) of(ref string) *ClientSolve {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.solves[ref]
}

// frontendSolve is the call in which buildx asks for the frontend.
func (c *clients) frontendSolve(ctx context.Context, r *gwapi.SolveRequest, handler grpc.UnaryHandler) (any, error) {
	ref := buildid.FromIncomingContext(ctx)
	s := c.of(ref)
	if s == nil {
		return nil, refused("there is no build %q", ref)
	}
	if len(s.Exports) == 0 {
		return handler(ctx, r) // it leaves nothing
	}
	if r.Definition != nil && len(r.Definition.Def) > 0 || r.Frontend == "" {
		return nil, refused("only Dockerfiles are built here: a definition of another kind has no record that provenance could be written from")
	}
	if r.Frontend == "gateway.v0" && isDockerfile(r.FrontendOpt["source"]) {
		// BUILDKIT_SYNTAX names the frontend that is built in.
		r.Frontend = builtIn
		delete(r.FrontendOpt, "source")
	}
	if err := c.checkFrontend(r.Frontend, r.FrontendOpt); err != nil {
		return nil, err
	}
	if !s.begin() {
		return nil, refused("one build has one result")
	}
	c.begins(ctx, r)
	resp, err := handler(context.WithValue(ctx, buildKey{}, ref), r)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = false
	if ok, is := resp.(*gwapi.SolveResponse); err == nil && is && ok.Result != nil {
		if r.FrontendOpt["requestid"] == "" {
			s.results = ok.Result
		} else {
			s.answered = true
		}
	}
	return resp, err
}

// begin reports whether the frontend may be asked now: not at the same time for
// anything else, so that what it was asked is what the result came of, and not
// once it has answered.
func (s *ClientSolve) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asking || s.results != nil {
		return false
	}
	s.asking = true
	return true
}

// isDockerfile reports whether an image is the Dockerfile frontend.
func isDockerfile(source string) bool {
	name, _, _ := strings.Cut(strings.TrimPrefix(source, "docker.io/"), "@")
	name, _, _ = strings.Cut(name, ":")
	return name == "docker/dockerfile" || name == "docker/dockerfile-upstream"
}

// returned holds a client to the result that the frontend gave: the record
// speaks of that one.
func (c *clients) returned(ref string, r *gwapi.ReturnRequest) error {
	s := c.of(ref)
	if s == nil {
		return refused("there is no build %q", ref)
	}
	if r.Error != nil || len(s.Exports) == 0 {
		return nil
	}
	s.mu.Lock()
	given, answered := s.results, s.answered
	s.mu.Unlock()
	got := r.Result
	if given == nil && answered {
		return refused("a check and its like leave nothing, and an image without layers would get the name: leave out --push and outputs with them")
	}
	if given == nil || got == nil {
		return refused("the result of a build is the frontend's, and there is none")
	}
	same := maps.Equal(refsOf(given), refsOf(got)) && len(given.Attestations) == len(got.Attestations) &&
		maps.EqualFunc(given.Metadata, got.Metadata, bytes.Equal)
	if !same {
		return refused("the result of the build was changed after it was made; it would not be what its record says")
	}
	return nil
}

// refsOf maps the platforms of a result to the names of its references.
func refsOf(r *gwapi.Result) map[string]string {
	out := map[string]string{}
	switch x := r.Result.(type) {
	case *gwapi.Result_RefDeprecated:
		out[""] = x.RefDeprecated
	case *gwapi.Result_RefsDeprecated:
		maps.Copy(out, x.RefsDeprecated.GetRefs())
	case *gwapi.Result_Ref:
		out[""] = x.Ref.GetId()
	case *gwapi.Result_Refs:
		for k, v := range x.Refs.GetRefs() {
			out[k] = v.GetId()
		}
	}
	maps.DeleteFunc(out, func(_, id string) bool { return id == "" })
	return out
}

// list is what GET /v1/solves answers: in the order in which they began.
func (c *clients) list() []*ClientSolve {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := []*ClientSolve{}
	for _, s := range c.order {
		s.mu.Lock()
		out = append(out, &ClientSolve{
			Ref: s.Ref, Attrs: s.Attrs, Given: s.Given, Exports: s.Exports, CacheFrom: s.CacheFrom, CacheTo: s.CacheTo,
			Allow: s.Allow, Policy: s.Policy, Docker: s.Docker, Error: s.Error, StartedOn: s.StartedOn, FinishedOn: s.FinishedOn,
		})
		s.mu.Unlock()
	}
	return out
}

// clientFrontend gives the frontend what waxseal's own builds give it, and
// remembers what it was asked.
type clientFrontend struct {
	frontend.Frontend
	clients *clients
}

func (f *clientFrontend) Solve(ctx context.Context, llb frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	ref, _ := ctx.Value(buildKey{}).(string)
	s := f.clients.of(ref)
	if s == nil {
		return f.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
	}
	s.mu.Lock()
	s.Attrs, s.Given = maps.Clone(opt), slices.Sorted(maps.Keys(inputs))
	s.mu.Unlock()
	opt = maps.Clone(opt)
	// The frontend takes this for a sign that it was called by a "# syntax="
	// line already, and pulls none.
	opt["cmdline"] = builtIn
	if f.clients.mode == attestations.InputsNone {
		opt["force-network-mode"] = "none"
	}
	if formats := f.clients.plan.SBOM; len(formats) > 0 && opt["requestid"] == "" {
		opt[attrSBOM] = strings.Join(formats, ",")
	}
	return f.Frontend.Solve(ctx, llb, exec, opt, inputs, sid, sm)
}

// serveClients serves the control API to other programs until the listener is
// closed.
func serveClients(l net.Listener, server *grpc.Server) {
	// What goes wrong here the clients see: their calls end.
	if err := server.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
		l.Close()
	}
}

// clientsListener is a socket that waxseal hands over.
func clientsListener(fd uintptr) (net.Listener, error) {
	f, err := inherited(fd, "socket of the clients")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("opening the socket of the clients: %w", err)
	}
	return l, nil
}
