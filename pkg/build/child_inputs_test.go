package build

import (
	"context"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/lock"
)

// recordedSteps builds in the cache of an engine of its own and returns the
// steps that the engine knows of.
func recordedSteps(t *testing.T, opts EngineOptions, b buildOf) *EngineInputs {
	t.Helper()
	e := startEngine(t, opts)
	in := inputsOf(t, e, dial(t, e), b)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	return in
}

func inputsOf(t *testing.T, e *Engine, c *client.Client, b buildOf) *EngineInputs {
	t.Helper()
	b.ref = identity.NewID()
	b.export = []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: t.TempDir()}}
	if _, err := b.solve(t.Context(), t, c); err != nil {
		t.Fatal(err)
	}
	in, err := e.Inputs(t.Context(), b.ref, "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// words are the steps in short: "name [stage] verdict (reused)".
func words(in *EngineInputs) []string {
	var out []string
	for _, st := range in.Steps {
		w := st.Name
		if st.Stage != "" {
			w += " [" + st.Stage + "]"
		}
		w += " " + st.Verdict
		if st.Reused {
			w += " (reused)"
		}
		for _, g := range st.Gaps {
			w += " " + g.Kind
		}
		out = append(out, w)
	}
	return out
}

func wantSteps(t *testing.T, what string, in *EngineInputs, want ...string) {
	t.Helper()
	if got := words(in); !slices.Equal(got, want) {
		t.Errorf("%s: the steps are\n  %s\nwant\n  %s", what, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestRecordSurvivesTheCache(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	opts := EngineOptions{CacheDir: t.TempDir()}
	b := buildOf{
		base:       tinyBase(t),
		files:      map[string]string{"package.json": "{}", "main": "1"},
		dockerfile: "FROM base\nRUN echo first\nCOPY package.json /\nRUN echo second\nCOPY . /app/\nRUN echo third\n",
	}
	first := recordedSteps(t, opts, b)
	wantSteps(t, "the first build", first, "RUN echo first recorded", "RUN echo second recorded", "RUN echo third recorded")
	for i, st := range first.Steps {
		if _, err := digest.Parse(st.ID); err != nil || st.Platform != "linux/amd64" || st.StartedOn == nil || st.FinishedOn == nil {
			t.Errorf("step %d is %+v", i, st)
		}
	}

	again := recordedSteps(t, opts, b)
	wantSteps(t, "nothing changed", again, "RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo third recorded (reused)")
	for i := range again.Steps {
		if !again.Steps[i].StartedOn.Equal(*first.Steps[i].StartedOn) || again.Steps[i].ID != first.Steps[i].ID {
			t.Errorf("the reused record of %s is not that of its run", again.Steps[i].Name)
		}
	}

	b.files["main"] = "2"
	wantSteps(t, "a late file changed", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo third recorded")

	b.files["other"] = "x"
	b.dockerfile = strings.Replace(b.dockerfile, "COPY . /app/", "COPY main /app/", 1)
	wantSteps(t, "another copy", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo third recorded")
	b.files["other"] = "y"
	wantSteps(t, "a file that no step sees changed", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo third recorded (reused)")

	b.dockerfile = strings.Replace(b.dockerfile, "third", "last", 1)
	wantSteps(t, "a late line changed", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo last recorded")

	b.attrs = map[string]string{"no-cache": ""}
	wantSteps(t, "without the cache", recordedSteps(t, opts, b),
		"RUN echo first recorded", "RUN echo second recorded", "RUN echo last recorded")
	b.attrs = nil
	b.dockerfile = strings.Replace(b.dockerfile, "FROM base\n", "FROM base AS early\n", 1)
	b.dockerfile = strings.Replace(b.dockerfile, "COPY main", "FROM early\nCOPY main", 1)
	recordedSteps(t, opts, b)
	b.attrs = map[string]string{"no-cache": "early"}
	// The stage ran again; BuildKit takes its earlier result for what follows,
	// and so both are there.
	wantSteps(t, "without the cache of one stage", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo last recorded (reused)",
		"RUN echo first [early] recorded", "RUN echo second [early] recorded")
	b.attrs = nil
	b.dockerfile = strings.Replace(strings.Replace(b.dockerfile, "FROM base AS early\n", "FROM base\n", 1), "FROM early\n", "", 1)

	// Without their records results are no use.
	if err := os.Remove(filepath.Join(opts.CacheDir, "steps.db")); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, "the records are gone", recordedSteps(t, opts, b),
		"RUN echo first recorded", "RUN echo second recorded", "RUN echo last recorded")
	wantSteps(t, "after that", recordedSteps(t, opts, b),
		"RUN echo first recorded (reused)", "RUN echo second recorded (reused)", "RUN echo last recorded (reused)")
	if err := os.WriteFile(filepath.Join(opts.CacheDir, "steps.db"), []byte(strings.Repeat("nonsense", 8000)), 0o600); err != nil {
		t.Fatal(err)
	}
	wantSteps(t, "the records are spoilt", recordedSteps(t, opts, b),
		"RUN echo first recorded", "RUN echo second recorded", "RUN echo last recorded")
	if moved, _ := filepath.Glob(filepath.Join(opts.CacheDir, "steps.db.*.bak")); len(moved) != 1 {
		t.Errorf("the spoilt records are at %q", moved)
	}
}

func TestRecordOfStagesMergesAndRepeats(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	opts := EngineOptions{CacheDir: t.TempDir()}
	b := buildOf{base: tinyBase(t), dockerfile: `FROM base AS one
RUN echo one > /one
FROM base AS two
RUN echo two > /two
FROM base AS unused
RUN echo unused
FROM base
RUN echo mine > /mine
COPY --from=one /one /
COPY --link --from=two /two /
`}
	want := []string{"RUN echo mine > /mine recorded", "RUN echo one > /one [one] recorded", "RUN echo two > /two [two] recorded"}
	in := recordedSteps(t, opts, b)
	got := words(in)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the steps are %q, want %q", got, want)
	}
	again := words(recordedSteps(t, opts, b))
	slices.Sort(again)
	for i := range want {
		want[i] += " (reused)"
	}
	if !slices.Equal(again, want) {
		t.Errorf("the reused steps are %q, want %q", again, want)
	}

	// The same step in two stages runs once; both results have its record.
	b.dockerfile = `FROM base AS one
RUN echo same > /same
RUN echo one
FROM base AS two
RUN echo same > /same
RUN echo two
FROM base
COPY --from=one /same /one
COPY --from=two /same /two
`
	for i := range 2 {
		in := recordedSteps(t, opts, b)
		var same int
		for _, st := range in.Steps {
			if st.Name == "RUN echo same > /same" {
				same++
			}
		}
		if same != 1 || len(in.Steps) != 3 {
			t.Errorf("build %d: the steps are %q", i, words(in))
		}
	}
}

func TestRecordAfterFailureCancelAndPrune(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	opts := EngineOptions{CacheDir: t.TempDir()}
	base := tinyBase(t)
	e := startEngine(t, opts)
	c := dial(t, e)
	failing := buildOf{base: base, dockerfile: "FROM base\nRUN echo first\nRUN exit 3\n", ref: identity.NewID()}
	if _, err := failing.solve(t.Context(), t, c); err == nil {
		t.Fatal("a failing step did not fail the build")
	}
	if _, err := e.Inputs(t.Context(), failing.ref, ""); err == nil {
		t.Error("a failed build has a record")
	}
	fixed := buildOf{base: base, dockerfile: "FROM base\nRUN echo first\nRUN echo fixed\n"}
	wantSteps(t, "fixed", inputsOf(t, e, c, fixed), "RUN echo first recorded (reused)", "RUN echo fixed recorded")

	ctx, cancel := context.WithCancel(t.Context())
	running := buildOf{base: base, dockerfile: "FROM base\nRUN echo first\nRUN echo running && sleep 600\nRUN echo after\n"}
	running.status = func(st *client.SolveStatus) {
		for _, l := range st.Logs {
			if strings.Contains(string(l.Data), "running") {
				cancel()
			}
		}
	}
	if _, err := running.solve(ctx, t, c); err == nil {
		t.Fatal("a cancelled build did not fail")
	}
	resumed := buildOf{base: base, dockerfile: "FROM base\nRUN echo first\nRUN echo running\nRUN echo after\n"}
	wantSteps(t, "after the cancelled build", inputsOf(t, e, c, resumed),
		"RUN echo first recorded (reused)", "RUN echo running recorded", "RUN echo after recorded")

	// What the cache drops in the middle is still in the record of what was
	// made of it.
	if err := c.Prune(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	in := recordedSteps(t, opts, resumed)
	if len(in.Steps) != 3 || in.Steps[0].Name != "RUN echo first" {
		t.Errorf("after pruning the steps are %q", words(in))
	}
}

func TestImportedCacheIsUnobserved(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	base := tinyBase(t)
	b := buildOf{base: base, dockerfile: "FROM base\nRUN echo first > /first\nRUN echo second > /second\n"}
	shared := t.TempDir()
	b.cacheTo = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": shared, "mode": "max"}}}
	recordedSteps(t, EngineOptions{}, b)
	b.cacheTo = nil
	b.cacheFrom = []client.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"src": shared}}}
	opts := EngineOptions{CacheDir: t.TempDir()}
	in := recordedSteps(t, opts, b)
	wantSteps(t, "imported", in,
		"RUN echo first > /first unobserved (reused) cache-import", "RUN echo second > /second unobserved (reused) cache-import")
	if len(in.Gaps) != 1 || in.Gaps[0].Kind != "cache-import" {
		t.Errorf("the gaps are %+v", in.Gaps)
	}
	b.dockerfile += "RUN echo third > /third\n"
	wantSteps(t, "on top of what was imported", recordedSteps(t, opts, b),
		"RUN echo first > /first unobserved (reused) cache-import", "RUN echo second > /second unobserved (reused) cache-import", "RUN echo third > /third recorded")
	// A build that imports nothing does not take what another imported.
	b.cacheFrom = nil
	wantSteps(t, "without the import", recordedSteps(t, opts, b),
		"RUN echo first > /first recorded", "RUN echo second > /second recorded", "RUN echo third > /third recorded")
}

func TestGapsOfSteps(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	opts := EngineOptions{CacheDir: t.TempDir(), Entitlements: []string{"network.host", "security.insecure"}}
	base := tinyBase(t)
	for _, tc := range []struct{ run, allow, want string }{
		{"--network=none true", "", "isolated"},
		{"--network=host true", "network.host", "unobserved host-network"},
		{"--security=insecure true", "security.insecure", "gaps insecure"},
		{"--mount=type=cache,target=/c echo x > /c/x", "", "recorded"},
		{"--mount=type=cache,target=/c cat /c/x", "", "gaps cache-mount"},
		{"--mount=type=secret,id=s cat /run/secrets/s", "", "recorded"},
	} {
		b := buildOf{base: base, allow: tc.allow, dockerfile: "FROM base\nRUN " + tc.run + "\n", secrets: map[string][]byte{"s": []byte("hush")}}
		wantSteps(t, tc.run, recordedSteps(t, opts, b), "RUN "+tc.run+" "+tc.want)
	}
}

// The gateway leaves nothing in layers, configuration and cache keys.
func TestGatewayLeavesNoTrace(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	digests := map[string]digest.Digest{}
	for _, network := range []string{"default", "none"} {
		e := startEngine(t, EngineOptions{})
		b := buildOf{
			base:       tinyBase(t),
			dockerfile: "FROM base\nRUN --network=" + network + " touch -d @0 /made && ls -A /etc /dev > /dev/null\nENV A=b\n",
			attrs:      map[string]string{"build-arg:SOURCE_DATE_EPOCH": "0"},
		}
		dir, _, m := exported(t, dial(t, e), b, map[string]string{"rewrite-timestamp": "true"})
		digests[network] = m.Layers[len(m.Layers)-1].Digest
		raw, err := os.ReadFile(blobIn(dir, m.Config.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(raw), "waxseal") || strings.Contains(string(raw), "CERT") {
			t.Errorf("the configuration shows the gateway: %s", raw)
		}
	}
	if digests["default"] != digests["none"] {
		t.Errorf("the layer is %s with the gateway and %s without", digests["default"], digests["none"])
	}
}

// A step that runs wild ends, and the machine goes on.
func TestStepsHaveLimits(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	c := dial(t, e)
	b := buildOf{base: tinyBase(t), dockerfile: "FROM base\nRUN cat /sys/fs/cgroup/pids*/pids.max /sys/fs/cgroup/pids.max /proc/self/oom_score_adj 2>/dev/null; mkfifo /wait; for i in $(seq 20000); do read x < /wait & done; echo started all\n"}
	var log strings.Builder
	b.status = func(st *client.SolveStatus) {
		for _, l := range st.Logs {
			log.Write(l.Data)
		}
	}
	began := time.Now()
	if _, err := b.solve(t.Context(), t, c); err == nil && !strings.Contains(log.String(), "fork") {
		t.Errorf("20000 processes were started in one step: %s", log.String())
	}
	t.Logf("after %v: %.300s", time.Since(began), log.String())
}

func TestEnvironmentOfEngineStaysOut(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://user:hush@127.0.0.1:1")
	e := startEngine(t, EngineOptions{})
	out := t.TempDir()
	b := buildOf{
		base:       tinyBase(t),
		dockerfile: "FROM base\nRUN (env; cat /proc/1/environ; ls -l /proc/self/fd /proc/1/fd; mount) > /seen 2>&1\n",
		export:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}
	if _, err := b.solve(t.Context(), t, dial(t, e)); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(out, "seen"))
	if err != nil {
		t.Fatal(err)
	}
	for _, hint := range []string{"hush", "socket:", "GOGC", e.cache + "/lock"} {
		if strings.Contains(string(raw), hint) {
			t.Errorf("a step sees %q of the engine:\n%s", hint, raw)
		}
	}
}

// upstream is a server that steps reach as files.test.
func upstream(t *testing.T, files map[string]string) (*httptest.Server, map[string]string) {
	t.Helper()
	var mu sync.Mutex
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		body, ok := files[r.URL.Path]
		mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Last-Modified", "Tue, 14 Nov 2023 22:13:20 GMT")
		w.Header().Set("ETag", strconv.Quote(body))
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(srv.Close)
	return srv, map[string]string{"files.test": strings.TrimPrefix(srv.URL, "http://")}
}

// pushBase puts the tiny base image into a registry, below an index.
func pushBase(t *testing.T, addr string) string {
	t.Helper()
	ix, err := layout.ImageIndexFromPath(tinyBase(t))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(addr + "/team/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, ix); err != nil {
		t.Fatal(err)
	}
	return ref.Name()
}

func lockOf(t *testing.T, store string, in *EngineInputs) []byte {
	t.Helper()
	s, err := lock.OpenStore(store)
	if err != nil {
		t.Fatal(err)
	}
	f, err := lock.FromInputs(s, &attestations.Inputs{Steps: in.Steps, Sources: in.Sources})
	if err != nil {
		t.Fatal(err)
	}
	return f.Marshal()
}

func TestRecordLockedOffline(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	files := map[string]string{"/a": "alpha", "/b": "beta", "/late": "late"}
	srv, upstreams := upstream(t, files)
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	image := pushBase(t, reg.Addr)
	b := buildOf{dockerfile: "FROM " + image + "\nADD http://files.test/b /b\nRUN wget -O /a http://files.test/a\n"}
	plan := InputsPlan{Store: filepath.Join(t.TempDir(), "store"), Upstreams: upstreams}
	opts := EngineOptions{CacheDir: t.TempDir(), Inputs: plan}
	in := recordedSteps(t, opts, b)
	wantSteps(t, "recorded", in, "RUN wget -O /a http://files.test/a recorded")
	req := in.Steps[0].Requests
	if len(req) != 1 || req[0].URI != "http://files.test/a" || req[0].Digest != string(digest.FromString("alpha")) {
		t.Fatalf("the requests are %+v", req)
	}
	kinds := map[string]attestations.InputSource{}
	for _, s := range in.Sources {
		kinds[s.Kind] = s
		if !s.Stored {
			t.Errorf("the store has not all of %+v", s)
		}
	}
	if f := kinds["http"]; f.Digest != string(digest.FromString("beta")) || f.Size != 4 || f.URI != "http://files.test/b" {
		t.Errorf("the remote file is %+v", f)
	}
	if f := kinds["image"]; f.Ref != image || f.Platform != "linux/amd64" {
		t.Errorf("the base image is %+v", f)
	}
	again := recordedSteps(t, opts, b)
	if got, want := lockOf(t, plan.Store, again), lockOf(t, plan.Store, in); string(got) != string(want) {
		t.Errorf("with nothing changed the lock is\n%s\nand was\n%s", got, want)
	}

	locked := opts
	locked.CacheDir = t.TempDir()
	locked.Inputs.Mode, locked.Inputs.Lock = attestations.InputsLocked, lockOf(t, plan.Store, in)
	wantSteps(t, "locked", recordedSteps(t, locked, b), "RUN wget -O /a http://files.test/a recorded")

	for _, tc := range []struct{ what, dockerfile, want string }{
		{"unknown", "FROM " + image + "\nRUN wget -O /late http://files.test/late || true\n", "files.test/late"},
		{"unknown file", "FROM " + image + "\nADD http://files.test/late /late\n", "files.test/late"},
		{"unknown image", "FROM " + image + "2\n", "2\"\n  not in the lock"},
	} {
		e := startEngine(t, locked)
		_, err := buildOf{dockerfile: tc.dockerfile}.solve(t.Context(), t, dial(t, e))
		if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "inputs refused") {
			t.Errorf("%s: the error is %v", tc.what, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}

	// What upstream has now is something else, and the store is empty.
	e := startEngine(t, opts)
	_, err = buildOf{dockerfile: "FROM " + image + "\nADD " + srv.URL + "/b /b\n"}.solve(t.Context(), t, dial(t, e))
	if err == nil || !strings.Contains(err.Error(), "inputs refused") || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("a file of this machine: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}

	files["/a"], files["/b"] = "ALPHA", "BETA"
	changed := locked
	changed.CacheDir, changed.Inputs.Store = t.TempDir(), filepath.Join(t.TempDir(), "empty")
	for what, dockerfile := range map[string]string{
		"changed":      "FROM " + image + "\nRUN wget -O /a http://files.test/a || true\n",
		"changed file": "FROM " + image + "\nADD http://files.test/b /b\n",
	} {
		e := startEngine(t, changed)
		_, err := buildOf{dockerfile: dockerfile}.solve(t.Context(), t, dial(t, e))
		if err == nil || !strings.Contains(err.Error(), "inputs refused") {
			t.Errorf("%s: the error is %v", what, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}

	// Offline everything comes from the store.
	srv.Close()
	reg.Close()
	offline := opts
	offline.CacheDir = t.TempDir()
	offline.Inputs.Mode, offline.Inputs.Lock = attestations.InputsOffline, locked.Inputs.Lock
	off := recordedSteps(t, offline, b)
	wantSteps(t, "offline", off, "RUN wget -O /a http://files.test/a recorded")
	if got := lockOf(t, plan.Store, off); string(got) != string(locked.Inputs.Lock) {
		t.Errorf("offline the lock is\n%s\nand was\n%s", got, locked.Inputs.Lock)
	}
	t.Run("network cut", func(t *testing.T) {
		// The engine inherits the network of the thread that starts it; the
		// thread ends with this goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		offline.CacheDir = t.TempDir()
		wantSteps(t, "offline without any network", recordedSteps(t, offline, b), "RUN wget -O /a http://files.test/a recorded")
	})
}

// gitServer serves a repository with one commit over HTTP.
func gitServer(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	execPath, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		testkit.Unavailable(t, "git: %v", err)
	}
	dir := t.TempDir()
	git := func(args ...string) string {
		cmd := exec.Command("git", args...)
		cmd.Dir = filepath.Join(dir, "repo.git")
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b", "GIT_CONFIG_GLOBAL=/dev/null")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v\n%s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	work := filepath.Join(dir, "repo.git")
	if err := os.MkdirAll(filepath.Join(work, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	git("init", "-q", "-b", "main")
	for name, content := range map[string]string{"file": "one\n", "sub/tool": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(work, name), []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("file", filepath.Join(work, "link")); err != nil {
		t.Fatal(err)
	}
	git("add", ".")
	git("commit", "-q", "-m", "one")
	srv := httptest.NewServer(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(execPath)), "git-http-backend"),
		Env:  []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1"},
	})
	t.Cleanup(srv.Close)
	return srv, git("rev-parse", "HEAD")
}

func TestGitIsKeptAndGivenBack(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t))
	srv, commit := gitServer(t)
	url := srv.URL + "/repo.git"
	store := filepath.Join(t.TempDir(), "store")
	b := buildOf{base: tinyBase(t), dockerfile: "FROM base\nADD " + url + "#main /src/\nADD " + url + "#main:sub /sub/\nRUN cat /src/file /sub/tool && test -L /src/link && test -x /sub/tool\n"}
	opts := EngineOptions{CacheDir: t.TempDir(), Inputs: InputsPlan{Store: store}}
	in := recordedSteps(t, opts, b)
	var uris []string
	for _, s := range in.Sources {
		if s.Kind != "git" || s.Digest != "gitCommit:"+commit || !s.Stored || s.Tree == "" {
			t.Errorf("the source is %+v", s)
		}
		uris = append(uris, s.URI)
	}
	slices.Sort(uris)
	if want := []string{url + "#main", url + "#main:sub"}; !slices.Equal(uris, want) {
		t.Errorf("the sources are %q, want %q", uris, want)
	}
	raw := lockOf(t, store, in)
	if again := lockOf(t, store, recordedSteps(t, opts, b)); string(again) != string(raw) {
		t.Errorf("from the cache the lock is\n%s\nand was\n%s", again, raw)
	}
	other := opts
	other.CacheDir = t.TempDir()
	if again := lockOf(t, store, recordedSteps(t, other, b)); string(again) != string(raw) {
		t.Errorf("from another checkout the lock is\n%s\nand was\n%s", again, raw)
	}

	srv.Close()
	for what, cache := range map[string]string{"with an empty cache": t.TempDir(), "with the recorded build's cache": opts.CacheDir} {
		offline := EngineOptions{CacheDir: cache, Inputs: InputsPlan{Store: store, Mode: attestations.InputsOffline, Lock: raw}}
		in := recordedSteps(t, offline, b)
		if got := lockOf(t, store, in); string(got) != string(raw) {
			t.Errorf("offline %s the lock is\n%s\nand was\n%s", what, got, raw)
		}
		if in.Steps[0].Reused != (cache == opts.CacheDir) {
			t.Errorf("offline %s the steps are %q", what, words(in))
		}
	}
	e := startEngine(t, EngineOptions{Inputs: InputsPlan{Store: store, Mode: attestations.InputsOffline, Lock: raw}})
	b.dockerfile = "FROM base\nADD " + url + "#other /src/\n"
	if _, err := b.solve(t.Context(), t, dial(t, e)); err == nil || !strings.Contains(err.Error(), "inputs refused") {
		t.Errorf("a repository that the lock does not list: %v", err)
	}
}

// An image of settings alone: nobody but the export needs its base's layers.
func TestBaseImageThatNoStepOpensIsKept(t *testing.T) {
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	e := startEngine(t, EngineOptions{Inputs: InputsPlan{Store: filepath.Join(t.TempDir(), "store")}})
	b := buildOf{dockerfile: "FROM " + pushBase(t, reg.Addr) + "\nENV A=b\n", ref: identity.NewID()}
	exported(t, dial(t, e), b, map[string]string{})
	in, err := e.Inputs(t.Context(), b.ref, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(in.Steps) != 0 || len(in.Sources) != 1 || !in.Sources[0].Stored {
		t.Errorf("the record is %+v", in)
	}
}
