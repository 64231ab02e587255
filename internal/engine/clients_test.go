package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	controlapi "github.com/moby/buildkit/api/services/control"
	gwapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/grpc/metadata"
)

func clientsFor(allow ...string) *clients {
	return newClients(Config{Entitlements: allow}, InputsPlan{Clients: &ClientsPlan{}})
}

func export(kind string) []*controlapi.Exporter {
	return []*controlapi.Exporter{{Type: kind, Attrs: map[string]string{"name": "app:1", "push": "true"}}}
}

// with is a build whose output has an option more.
func with(option, value string) *controlapi.SolveRequest {
	e := export("image")
	e[0].Attrs[option] = value
	return &controlapi.SolveRequest{Ref: "r", Exporters: e}
}

// of is the context of a call that belongs to a build.
func of(t *testing.T, ref string) context.Context {
	return metadata.NewIncomingContext(t.Context(), metadata.Pairs("buildkit-controlapi-buildid", ref))
}

func TestWhatClientsMayAskFor(t *testing.T) {
	definition := &pb.Definition{Def: [][]byte{{1}}}
	for name, x := range map[string]struct {
		req *controlapi.SolveRequest
		why string // "" for let through
	}{
		"a Dockerfile":        {&controlapi.SolveRequest{Ref: "r", Exporters: export("image")}, ""},
		"in the older form":   {&controlapi.SolveRequest{Ref: "r", ExporterDeprecated: "docker"}, ""},
		"files":               {&controlapi.SolveRequest{Ref: "r", Exporters: export("local")}, ""},
		"to read only":        {&controlapi.SolveRequest{Ref: "r", Definition: definition, Internal: true}, ""},
		"a definition":        {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), Definition: definition}, "only Dockerfiles"},
		"another frontend":    {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), Frontend: "gateway.v0"}, "is not run"},
		"an entitlement":      {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), Entitlements: []string{"security.insecure"}}, "--allow security.insecure"},
		"an allowed one":      {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), Entitlements: []string{"network.host"}}, ""},
		"exports of sessions": {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), EnableSessionExporter: true}, "when the build begins"},
		"an unknown output":   {&controlapi.SolveRequest{Ref: "r", Exporters: export("moby")}, "output type"},
		"a configuration":     {with("containerimage.config", "{}"), `"containerimage.config" is not known`},
		"one of a platform":   {with("containerimage.config/linux/amd64", "{}"), "is not known"},
		"other platforms":     {with("refs.platforms", "{}"), `"refs.platforms" is not known`},
		"what is no option":   {with("annotations.a", "b"), "is not known"},
		"an annotation":       {with("annotation-manifest[linux/amd64].a", "b"), ""},
		"layers":              {with("prefer-nondist-layers", "true"), ""},
		"without a name":      {&controlapi.SolveRequest{Exporters: export("image")}, "name of its own"},
		"what is ours":        {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), FrontendAttrs: map[string]string{"waxseal:sbom": "none"}}, "waxseal's own"},
		"a hidden context":    {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), FrontendAttrs: map[string]string{"contextkey": "vcs:source"}}, `"contextkey" is not taken`},
		"too much":            {&controlapi.SolveRequest{Ref: "r", Exporters: export("image"), FrontendAttrs: map[string]string{"label:x": strings.Repeat("x", maxClientText)}}, "over the limit"},
	} {
		t.Run(name, func(t *testing.T) {
			c, ran := clientsFor("network.host"), false
			_, err := c.intercept(t.Context(), x.req, nil, func(context.Context, any) (any, error) {
				ran = true
				if len(x.req.Exporters) > 0 && x.req.Internal {
					t.Error("an image without a record")
				}
				return &controlapi.SolveResponse{}, nil
			})
			if ran != (x.why == "") || (err == nil) != ran || err != nil && !strings.Contains(err.Error(), x.why) {
				t.Errorf("ran %v, error %v", ran, err)
			}
			if _, err := c.intercept(t.Context(), x.req, nil, func(context.Context, any) (any, error) { return nil, nil }); err == nil {
				t.Error("the same name twice")
			}
		})
	}
}

// Files have no digest: the image that they are the files of is made as well,
// and the client does not see that.
func TestFilesHaveAnImage(t *testing.T) {
	c := clientsFor()
	resp, err := c.intercept(t.Context(), &controlapi.SolveRequest{Ref: "r", Exporters: export("tar")}, nil, func(_ context.Context, req any) (any, error) {
		e := req.(*controlapi.SolveRequest).Exporters
		if len(e) != 2 || e[1].Type != "image" || len(e[1].Attrs) != 0 {
			t.Errorf("exports %v", e)
		}
		return &controlapi.SolveResponse{ExporterResponse: map[string]string{"containerimage.digest": "d", "other": "o"}}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.(*controlapi.SolveResponse).ExporterResponse; len(got) != 1 || got["other"] != "o" {
		t.Errorf("the client sees %v", got)
	}
	if l := c.list(); len(l) != 1 || len(l[0].Exports) != 2 || l[0].FinishedOn.IsZero() {
		t.Errorf("listed %+v", l)
	}
}

// A build of files that fails takes nobody else's with it.
func TestFilesThatFail(t *testing.T) {
	c := clientsFor()
	failed := errors.New("the step failed")
	_, err := c.intercept(t.Context(), &controlapi.SolveRequest{Ref: "r", Exporters: export("local")}, nil, func(context.Context, any) (any, error) {
		var none *controlapi.SolveResponse
		return none, failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("the client gets %v", err)
	}
	if l := c.list(); len(l) != 1 || l[0].Error != failed.Error() {
		t.Errorf("listed %+v", l)
	}
}

// A record speaks of the frontend's result; what a client makes of it is
// refused.
func TestTheResultIsTheFrontends(t *testing.T) {
	made := func() *gwapi.Result {
		return &gwapi.Result{
			Result:   &gwapi.Result_Refs{Refs: &gwapi.RefMap{Refs: map[string]*gwapi.Ref{"linux/amd64": {Id: "a"}, "linux/arm64": {Id: "b"}}}},
			Metadata: map[string][]byte{"containerimage.config": []byte("{}")},
		}
	}
	for name, x := range map[string]struct {
		change func(*gwapi.Result) *gwapi.Result
		ok     bool
	}{
		"as it is": {func(r *gwapi.Result) *gwapi.Result { return r }, true},
		"another configuration": {func(r *gwapi.Result) *gwapi.Result {
			r.Metadata["containerimage.config"] = []byte(`{"config":{"User":"0"}}`)
			return r
		}, false},
		"more metadata": {func(r *gwapi.Result) *gwapi.Result { r.Metadata["x"] = nil; return r }, false},
		"swapped platforms": {func(r *gwapi.Result) *gwapi.Result {
			refs := r.GetRefs().Refs
			refs["linux/amd64"], refs["linux/arm64"] = refs["linux/arm64"], refs["linux/amd64"]
			return r
		}, false},
		"an attestation": {func(r *gwapi.Result) *gwapi.Result {
			r.Attestations = map[string]*gwapi.Attestations{"linux/amd64": {}}
			return r
		}, false},
		"none": {func(*gwapi.Result) *gwapi.Result { return nil }, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := clientsFor()
			_, err := c.intercept(t.Context(), &controlapi.SolveRequest{Ref: "r", Exporters: export("image")}, nil, func(context.Context, any) (any, error) {
				ask := &gwapi.SolveRequest{Frontend: builtIn}
				frontend := func(ctx context.Context, _ any) (any, error) {
					if ctx.Value(buildKey{}) != "r" {
						t.Error("the frontend does not know whose build it is")
					}
					return &gwapi.SolveResponse{Result: made()}, nil
				}
				if _, err := c.intercept(of(t, "r"), ask, nil, frontend); err != nil {
					t.Fatal(err)
				}
				if _, err := c.intercept(of(t, "r"), ask, nil, frontend); err == nil {
					t.Error("a second result")
				}
				ran := false
				_, err := c.intercept(of(t, "r"), &gwapi.ReturnRequest{Result: x.change(made())}, nil, func(context.Context, any) (any, error) { ran = true; return nil, nil })
				if ran != x.ok || (err == nil) != x.ok {
					t.Errorf("returned: %v, %v", ran, err)
				}
				return &controlapi.SolveResponse{}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
	c := clientsFor()
	for name, req := range map[string]any{
		"a container":            &gwapi.NewContainerRequest{},
		"the end of a record":    &controlapi.UpdateBuildHistoryRequest{Ref: "r", Delete: true},
		"a frontend of no build": &gwapi.SolveRequest{Frontend: builtIn},
		"the result of no build": &gwapi.ReturnRequest{},
	} {
		if _, err := c.intercept(of(t, "other"), req, nil, func(context.Context, any) (any, error) { return nil, nil }); err == nil {
			t.Errorf("%s: let through", name)
		}
	}
}

// While the frontend is asked for a build it is asked for nothing else: the
// record would have the arguments of the one, and the image of the other.
func TestTheFrontendIsAskedOnceAtATime(t *testing.T) {
	c := clientsFor()
	_, err := c.intercept(t.Context(), &controlapi.SolveRequest{Ref: "r", Exporters: export("image")}, nil, func(context.Context, any) (any, error) {
		ask := func(opt map[string]string, handler func() error) error {
			_, err := c.intercept(of(t, "r"), &gwapi.SolveRequest{Frontend: builtIn, FrontendOpt: opt}, nil, func(context.Context, any) (any, error) {
				return &gwapi.SolveResponse{Result: &gwapi.Result{}}, handler()
			})
			return err
		}
		nothing := func() error { return nil }
		outline := map[string]string{"requestid": "frontend.outline"}
		if err := ask(outline, nothing); err != nil {
			t.Errorf("to be told of the Dockerfile first: %v", err)
		}
		failed := errors.New("it failed")
		if err := ask(nil, func() error { return failed }); !errors.Is(err, failed) {
			t.Errorf("a failure: %v", err)
		}
		err := ask(nil, func() error {
			for name, opt := range map[string]map[string]string{"a second build": nil, "another question": outline} {
				if err := ask(opt, nothing); err == nil {
					t.Errorf("%s beside the first was let through", name)
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("after a failure: %v", err)
		}
		if err := ask(nil, nothing); err == nil {
			t.Error("a second result")
		}
		return &controlapi.SolveResponse{}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What built-in syntax is called by is not pulled.
func TestBuiltInSyntax(t *testing.T) {
	for source, ok := range map[string]bool{
		"docker/dockerfile:1": true, "docker.io/docker/dockerfile:1.7-labs": true, "docker/dockerfile@sha256:00": true,
		"docker/dockerfile-upstream:master": true, "evil.example/docker/dockerfile:1": false, "docker/dockerfiles": false, "": false,
	} {
		if isDockerfile(source) != ok {
			t.Errorf("%q: %v", source, !ok)
		}
	}
}

// Only who means docker's own builder begins with its daemon's images, and not
// where they are told to pull.
func TestWhereBaseImagesAreLookedForFirst(t *testing.T) {
	for _, x := range []struct {
		dockers, daemon bool
		given           map[string]string
		want            string
	}{
		{true, true, map[string]string{}, "local"},
		{true, true, nil, "local"},
		{true, true, map[string]string{resolveMode: "pull"}, "pull"},
		{true, false, map[string]string{}, ""},
		{false, true, map[string]string{}, ""},
		{false, true, nil, ""},
	} {
		c := newClients(Config{}, InputsPlan{Clients: &ClientsPlan{Daemon: x.daemon}})
		r := &gwapi.SolveRequest{FrontendOpt: x.given}
		begins := func(ctx context.Context, _ any) (any, error) {
			c.begins(ctx, r)
			return nil, nil
		}
		var err error
		if x.dockers {
			_, err = meantAsDockers(t.Context(), r, nil, begins)
		} else {
			_, err = begins(t.Context(), r)
		}
		if err != nil || r.FrontendOpt[resolveMode] != x.want {
			t.Errorf("%+v: %q, %v", x, r.FrontendOpt[resolveMode], err)
		}
	}
}

// What another program asks first is answered while the engine starts; its build
// waits until it is known that the engine can build.
func TestBuildsWaitForTheStart(t *testing.T) {
	broken := errors.New("overlayfs cannot be used")
	for name, end := range map[string]error{"that went well": nil, "that failed": broken} {
		t.Run(name, func(t *testing.T) {
			s := newSideService(Config{}, nil, nil, nil)
			handler := func(context.Context, any) (any, error) { return "answered", nil }
			if got, err := s.holdBuilds(t.Context(), &controlapi.ListWorkersRequest{}, nil, handler); got != "answered" || err != nil {
				t.Errorf("a question before the end of the start: %v, %v", got, err)
			}
			gone, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := s.holdBuilds(gone, &controlapi.SolveRequest{}, nil, handler); !errors.Is(err, context.Canceled) {
				t.Errorf("a build before the end of the start, by a client that went: %v", err)
			}
			if end == nil {
				s.setReady()
			} else {
				_ = s.fail(gone, end)
			}
			got, err := s.holdBuilds(t.Context(), &controlapi.SolveRequest{}, nil, handler)
			if !errors.Is(err, end) || (err == nil) != (got == "answered") {
				t.Errorf("a build after it: %v, %v, want %v", got, err, end)
			}
		})
	}
}
