package build

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/sourcepolicy"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/opencontainers/go-digest"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

const (
	sumA = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	sumB = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// progressOf is the progress of steps that ran, one status each, with what
// BuildKit printed for them.
func progressOf(t *trace, name string, cached bool, log ...string) {
	now := time.Now()
	id := digest.FromString(name)
	t.add(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: id, Name: name, Started: &now}}})
	for _, l := range log {
		t.add(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: id, Stream: 2, Data: []byte(l)}}})
	}
	t.add(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: id, Name: name, Completed: &now, Cached: cached}}})
}

func foreign(t *testing.T, mode string) *foreignEngine {
	t.Helper()
	st, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return &foreignEngine{version: "v0.33.0", intake: &intake{choice: InputChoice{Mode: mode}, store: st, place: "waxseal.lock"}}
}

// Each of these is something that BuildKit's own record says nothing about, or
// the opposite of.
func TestForeignRecordIsJudged(t *testing.T) {
	const list, got = "proxy network requests:\n", "- GET https://a.example/x -> 200\n"
	kept := []recordedInput{{URI: "https://a.example/x", Digest: map[string]string{"sha256": sumA[7:]}}}
	open := []recordedExec{{Platform: "linux/amd64"}}
	shut := []recordedExec{{Platform: "linux/amd64", Network: int(pb.NetMode_NONE)}}
	step := func(cached bool, log ...string) func(*trace) {
		return func(t *trace) { progressOf(t, "[build 2/3] RUN curl", cached, log...) }
	}
	for _, c := range []struct {
		name    string
		rec     record
		seen    func(*trace)
		verdict string
		gap     string // of the step or the build
	}{
		{"recorded", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, list, got), "recorded", ""},
		{"recorded, in one piece", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, list+got), "recorded", ""},
		{"recorded, in small pieces", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, list[:9], list[9:]+got[:20], got[20:]), "recorded", ""},
		{"nothing asked", record{Proxy: true, Execs: open}, step(false), "isolated", ""},
		{"cached", record{Proxy: true, Execs: open, Dependencies: kept}, step(true), "unobserved", "cache"},
		{"no proxy", record{Execs: open}, step(false), "unobserved", "0.31"},
		{"no proxy, no network", record{Execs: shut}, step(true), "isolated", ""},
		{"not shown", record{Proxy: true, Execs: open}, func(*trace) {}, "unobserved", "did not show"},
		{"asked twice", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, list, got, got), "gaps", "more than once"},
		{"a POST", record{Proxy: true, Execs: open}, step(false, list, "- POST https://a.example/x -> 200\n"), "gaps", "POST https://a.example/x"},
		{"a 404", record{Proxy: true, Execs: open}, step(false, list, "- GET https://a.example/x -> 404\n"), "gaps", "404"},
		{"a redirect", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, list, "- GET https://a.example/x -> 302\n"), "gaps", "302"},
		{"no digest of it", record{Proxy: true, Execs: open}, step(false, list, got), "gaps", "no digest"},
		{"incomplete by its own word", record{Proxy: true, Execs: open, Incomplete: []recordedMiss{{"GET", "https://a.example/y", "read error"}}}, step(false), "gaps", "read error"},
		{"a long log", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, "[output clipped, log limit 2MiB reached]\n"), "gaps", "left out"},
		{"a line before the list", record{Proxy: true, Execs: open, Dependencies: kept}, step(false, "no end of line", list, got, got), "gaps", "more than once"},
		{"one URL in two steps", record{Proxy: true, Execs: []recordedExec{open[0], open[0]}, Dependencies: kept}, func(t *trace) {
			progressOf(t, "[build 2/3] RUN curl", false, list, got)
			progressOf(t, "[build 3/3] RUN curl again", false, list, got)
		}, "gaps", "more than once"},
		{"a name that says it had no network", record{Proxy: true, Execs: open}, func(t *trace) {
			progressOf(t, `[build 2/3] RUN --mount=type=tmpfs,target="/x --network=none y" curl`, true)
		}, "unobserved", "cache"},
		{"one without network, cached", record{Proxy: true, Execs: append(slices.Clone(shut), open...), Dependencies: kept}, func(t *trace) {
			progressOf(t, "[build 2/3] RUN --network=none make", true)
			progressOf(t, "[build 3/3] RUN curl", false, list, got)
		}, "recorded", ""},
		{"an unreadable list", record{Proxy: true, Execs: open}, step(false, list, "- GET https://a.example/x -> many\n"), "gaps", "left out"},
		{"a cache mount", record{Proxy: true, Execs: []recordedExec{{Platform: "linux/amd64", Caches: []string{"/c"}}}}, step(false), "gaps", "/c"},
		{"privileges", record{Proxy: true, Execs: []recordedExec{{Platform: "linux/amd64", Insecure: true}}}, step(false), "gaps", "--security=insecure"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := foreign(t, "")
			c.seen(&e.seen)
			in, err := e.inputs(t.Context(), nil, &c.rec, "linux/amd64")
			if err != nil {
				t.Fatal(err)
			}
			rec, err := e.intake.assemble(&inputs{ours: map[string]string{}}, &c.rec, in, attestations.ContainerEngine{Name: "buildkit"})
			if err != nil {
				t.Fatal(err)
			}
			if rec.Verdict != c.verdict || rec.Hermetic {
				t.Errorf("%s, hermetic %t; want %s", rec.Verdict, rec.Hermetic, c.verdict)
			}
			gaps := slices.Clone(rec.Gaps)
			for _, st := range rec.Steps {
				gaps = append(gaps, st.Gaps...)
				if !strings.HasPrefix(st.Name, "RUN ") || st.Stage != "build" || st.Platform != "linux/amd64" {
					t.Errorf("step %+v", st)
				}
			}
			found := slices.ContainsFunc(gaps, func(g attestations.InputGap) bool { return strings.Contains(g.Detail, c.gap) })
			if (c.gap == "") != (len(gaps) == 0) || c.gap != "" && !found {
				t.Errorf("gaps %+v, want %q", gaps, c.gap)
			}
		})
	}
}

// A step that runs another platform's tools is part of that platform's image;
// one of an image that is built beside it is not.
func TestForeignStepsOfPlatforms(t *testing.T) {
	e := foreign(t, "")
	progressOf(&e.seen, "[linux/amd64 build 2/2] RUN go build", false)
	progressOf(&e.seen, "[linux/arm64 stage-1 2/2] RUN true", false)
	progressOf(&e.seen, "[linux/amd64 stage-1 2/2] RUN true", false)
	progressOf(&e.seen, "[linux/arm64 stage-1 1/2] COPY RUN x", false)
	rec := &record{Proxy: true, Execs: []recordedExec{{Platform: "linux/arm64"}}}
	in, err := e.inputs(t.Context(), nil, rec, "linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Steps) != 1 || in.Steps[0].Platform != "linux/arm64" || in.Steps[0].Stage != "stage-1" {
		t.Errorf("%+v", in.Steps)
	}
	rec.Execs = append(rec.Execs, recordedExec{Platform: "linux/amd64"})
	if in, err = e.inputs(t.Context(), nil, rec, "linux/arm64"); err != nil || len(in.Steps) != 3 {
		t.Errorf("%v, %+v", err, in.Steps)
	}
}

func TestForeignBuildIsHeldToTheLock(t *testing.T) {
	e := foreign(t, attestations.InputsLocked)
	e.intake.held = &lock.File{Steps: []lock.Step{{Name: "RUN curl", Entries: []lock.Entry{
		{Method: "GET", URI: "https://a.example/x", Status: 200, Digest: attest.Digest(sumA)},
	}}}}
	e.intake.raw = []byte("lock")
	of := func(sum string) ([]taken, error) {
		rec := &record{Proxy: true, Execs: []recordedExec{{}}, Dependencies: []recordedInput{{URI: "https://a.example/x", Digest: map[string]string{"sha256": sum[7:]}}}}
		in, err := e.inputs(t.Context(), nil, rec, "linux/amd64")
		if err != nil {
			return nil, err
		}
		r, err := e.intake.assemble(&inputs{ours: map[string]string{}}, rec, in, attestations.ContainerEngine{Name: "buildkit"})
		return []taken{{platform: "linux/amd64", record: r}}, err
	}
	progressOf(&e.seen, "[2/2] RUN curl", false, "proxy network requests:\n- GET https://a.example/x -> 200\n")
	all, err := of(sumA)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.intake.holdToLock(all); err != nil || !all[0].record.Hermetic {
		t.Errorf("%v, %+v", err, all[0].record)
	}
	if all, err = of(sumB); err != nil {
		t.Fatal(err)
	}
	err = e.intake.holdToLock(all)
	if err == nil || !strings.Contains(err.Error(), sumB) || !strings.Contains(err.Error(), sumA) || !strings.Contains(err.Error(), "RUN curl") {
		t.Errorf("another body: %v", err)
	}
	// What BuildKit denied is no input, and still not what the lock allows.
	progressOf(&e.seen, "[2/2] RUN evil", false, "proxy network requests:\n- GET https://b.example/y -> 403\n")
	if _, err := of(sumA); err == nil || !strings.Contains(err.Error(), "https://b.example/y") {
		t.Errorf("an URL that is not listed: %v", err)
	}
}

// What our gateway gave of a listed body is held to the lock already.
func TestPartsOfWhatALockLists(t *testing.T) {
	it := &intake{held: &lock.File{Steps: []lock.Step{{Name: "RUN curl", Entries: []lock.Entry{
		{Method: "GET", URI: "https://a.example/x", Status: 200, Digest: attest.Digest(sumA)},
	}}}}}
	part := attestations.InputRequest{Ordinal: 1, Method: "GET", URI: "https://a.example/x", Range: "bytes=1-2", Status: 206, Digest: sumB, FromStore: true}
	step := attestations.InputStep{Name: "RUN curl", Requests: []attestations.InputRequest{part}}
	all := []taken{{record: &attestations.Inputs{Steps: []attestations.InputStep{step}}}}
	if err := it.holdToLock(all); err != nil {
		t.Error(err)
	}
	all[0].record.Steps[0].Reused = true
	if err := it.holdToLock(all); err == nil {
		t.Error("a part in a reused step passes, of nobody knows what")
	}
}

// The policy is judged by BuildKit's own engine for them.
func TestSourcePolicyOfALock(t *testing.T) {
	held := &lock.File{
		Sources: []lock.Source{
			{Kind: "image", Ref: "docker.io/library/debian:12", Platform: "linux/amd64", Digest: sumA},
			{Kind: "image", Ref: "docker.io/library/both:1", Platform: "linux/amd64", Digest: sumA},
			{Kind: "image", Ref: "docker.io/library/both:1", Platform: "linux/arm64", Digest: sumB},
			{Kind: "http", Ref: "https://a.example/added", Digest: sumA},
			{Kind: "http", Ref: "https://a.example/both", Digest: sumA},
		},
		Steps: []lock.Step{{Name: "RUN x", Entries: []lock.Entry{{Method: "GET", URI: "https://a.example/x"}, {Method: "GET", URI: "https://a.example/both"}}}},
	}
	for _, c := range []struct{ id, becomes, checksum string }{
		{"https://a.example/x", "https://a.example/x", ""},
		{"https://a.example/both", "https://a.example/both", ""},
		{"https://a.example/added", "https://a.example/added", sumA},
		{"https://a.example/x?y", "", ""},
		{"http://a.example/x", "", ""},
		{"docker-image://docker.io/library/debian:12", "docker-image://docker.io/library/debian:12@" + sumA, ""},
		{"docker-image://docker.io/library/both:1", "docker-image://docker.io/library/both:1", ""},
		{"docker-image://docker.io/library/debian:13", "", ""},
		{"docker-image://docker.io/library/debian@" + sumA, "", ""},
		{"git://git.example/a.git", "", ""},
		{"oci-layout://waxseal/context@" + sumA, "oci-layout://waxseal/context@" + sumA, ""},
		{"local://dockerfile", "local://dockerfile", ""},
	} {
		op := &pb.SourceOp{Identifier: c.id, Attrs: map[string]string{}}
		_, err := sourcepolicy.NewEngine([]*spb.Policy{sourcePolicy(held)}).Evaluate(context.Background(), op)
		switch {
		case c.becomes == "" && err == nil:
			t.Errorf("%s is let through", c.id)
		case c.becomes != "" && (err != nil || op.Identifier != c.becomes || op.Attrs[pb.AttrHTTPChecksum] != c.checksum):
			t.Errorf("%s: %v, became %s %v", c.id, err, op.Identifier, op.Attrs)
		}
	}
}

// A reference by digest is one whichever way BuildKit writes it down.
func TestRecordedImages(t *testing.T) {
	for uri, ref := range map[string]string{
		"pkg:docker/debian@12?platform=linux%2Famd64":                             "debian:12",
		"pkg:docker/debian@12?digest=" + sumA + "&platform=linux%2Famd64":         "debian:12",
		"pkg:docker/debian?digest=" + sumA + "&platform=linux%2Famd64":            "debian@" + sumA,
		"pkg:docker/debian@" + strings.Replace(sumA, ":", "%3A", 1):               "debian@" + sumA,
		"pkg:docker/r.example/a/b?digest=" + strings.Replace(sumA, ":", "%3A", 1): "r.example/a/b@" + sumA,
	} {
		s, ok := recordedInput{URI: uri, Digest: map[string]string{"sha256": sumA[7:]}}.source()
		if !ok || s.Kind != "image" || s.Ref != ref || s.Digest != sumA {
			t.Errorf("%s: %+v", uri, s)
		}
	}
}

// ADD fetches without a step's network: with --inputs none it must not either.
func TestSourcePolicyOfNone(t *testing.T) {
	var opt client.SolveOpt
	if _, err := foreign(t, attestations.InputsNone).adjust(&opt); err != nil {
		t.Fatal(err)
	}
	for id, passes := range map[string]bool{
		"https://a.example/x":                        false,
		"http://a.example/x":                         false,
		"git://git.example/a.git":                    false,
		"docker-image://docker.io/library/debian:12": true,
		"oci-layout://waxseal/context@" + sumA:       true,
		"local://dockerfile":                         true,
	} {
		_, err := sourcepolicy.NewEngine([]*spb.Policy{opt.SourcePolicy}).Evaluate(t.Context(), &pb.SourceOp{Identifier: id, Attrs: map[string]string{}})
		if (err == nil) != passes {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// What an imported cache holds somebody else made, and with which network
// nobody knows. A COPY whose result comes from there is no step of the record.
func TestForeignCacheImport(t *testing.T) {
	rec := &record{Execs: []recordedExec{{Platform: "linux/amd64", Network: int(pb.NetMode_NONE)}}}
	for name, verdict := range map[string]string{"[2/2] RUN --network=none make": "unobserved", "[2/2] COPY a /a": "unobserved", "": "isolated"} {
		e := foreign(t, "")
		e.imports = true
		if name != "" {
			progressOf(&e.seen, name, true)
		}
		in, err := e.inputs(t.Context(), nil, rec, "linux/amd64")
		if err != nil {
			t.Fatal(err)
		}
		if got := attestations.WorstVerdict(in.Steps, in.Gaps); got != verdict {
			t.Errorf("%q out of the cache: %s, gaps %+v", name, got, in.Gaps)
		}
	}
	for _, mode := range []string{attestations.InputsLocked, attestations.InputsNone} {
		r := Request{Inputs: InputChoice{Mode: mode}, Engine: EngineChoice{BuildKit: "unix:///bk.sock"}, Cache: Cache{From: []CacheEntry{{Type: "registry"}}}}
		if err := r.checkInputs(); err == nil || !strings.Contains(err.Error(), "--cache-from") {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// What a step prints reaches this parser.
func FuzzTrace(f *testing.F) {
	for _, s := range []string{"proxy network requests:\n- GET https://a.example/ -> 200\n", "- \n", "proxy network requests:\n- GET  -> \n- x -> 1", "[output clipped, log limit 2MiB reached]\n", "\n\n\x00"} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, text string, cut int) {
		var whole, parts trace
		progressOf(&whole, "[1/1] RUN x", false, text)
		at := min(max(cut, 0), len(text))
		progressOf(&parts, "[1/1] RUN x", false, text[:at], text[at:])
		a, b := whole.steps[whole.order[0]], parts.steps[parts.order[0]]
		if len(text) < maxTraceLine && (!slices.Equal(a.asked, b.asked) || a.clipped != b.clipped) {
			t.Errorf("in parts: %+v, whole: %+v", b, a)
		}
		for _, r := range a.asked {
			if r.method == "" || r.uri == "" || len(r.uri) > attest.MaxURI {
				t.Errorf("request %+v", r)
			}
		}
	})
}
