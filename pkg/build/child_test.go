package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"

	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sbom"
)

// helperEngine tells a helper process of these tests where the engine is.
const helperEngine = "WAXSEAL_TEST_ENGINE"

// needEngine returns the engine's program, built from this checkout.
func needEngine(t testing.TB) string {
	t.Helper()
	if p := os.Getenv(helperEngine); p != "" {
		return p
	}
	if err := testkit.CanBuild(); err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	dir, err := testkit.Binaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, engineName)
}

func startEngine(t *testing.T, opts EngineOptions) *Engine {
	t.Helper()
	opts.Program = needEngine(t)
	if opts.CacheDir == "" {
		opts.CacheDir = t.TempDir()
	}
	if opts.Stderr == nil {
		opts.Stderr = testWriter{t}
	}
	e, err := StartEngine(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("engine: %s", bytes.TrimSpace(p))
	return len(p), nil
}

// buildOf is one build through an engine; base, when given, is an OCI layout
// that the Dockerfile calls "base".
type buildOf struct {
	dockerfile string
	files      map[string]string // of the context
	base       string
	attrs      map[string]string
	export     []client.ExportEntry
	ref        string
	cacheFrom  []client.CacheOptionsEntry
	cacheTo    []client.CacheOptionsEntry
	secrets    map[string][]byte
	allow      string // an entitlement
	status     func(*client.SolveStatus)
}

func (b buildOf) solve(ctx context.Context, t testing.TB, c *client.Client) (*client.SolveResponse, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(b.dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, content := range b.files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	opt := client.SolveOpt{
		Ref:           b.ref,
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"cmdline": "docker/dockerfile:1"},
		LocalMounts:   map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		Exports:       b.export,
		CacheImports:  b.cacheFrom,
		CacheExports:  b.cacheTo,
	}
	if b.allow != "" {
		opt.AllowedEntitlements = []string{b.allow}
	}
	if b.secrets != nil {
		opt.Session = append(opt.Session, secretsprovider.FromMap(b.secrets))
	}
	if b.base != "" {
		store, d := layoutStore(t, b.base)
		opt.OCIStores = map[string]content.Store{"base": store}
		opt.FrontendAttrs["context:base"] = "oci-layout://base@" + d
	}
	maps.Copy(opt.FrontendAttrs, b.attrs)
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for st := range ch {
			if b.status != nil {
				b.status(st)
			}
		}
	}()
	resp, err := c.Solve(ctx, nil, opt, ch)
	<-done
	return resp, err
}

func layoutStore(t testing.TB, dir string) (content.Store, string) {
	t.Helper()
	store, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var ix ocispecs.Index
	if err := json.Unmarshal(raw, &ix); err != nil {
		t.Fatal(err)
	}
	return store, string(ix.Manifests[0].Digest)
}

func tinyBase(t testing.TB) string {
	t.Helper()
	base, err := testkit.TinyBase(t.Context())
	if err != nil {
		testkit.Unavailable(t, "%v", err)
	}
	return base
}

func dial(t testing.TB, e *Engine) *client.Client {
	t.Helper()
	c, err := e.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestEngineBuildsAndCatalogues(t *testing.T) {
	t.Setenv(helperEngine, needEngine(t)) // one program for both
	cache := t.TempDir()
	docs := map[string]string{}
	// The second engine finds the build, and its SBOMs, in the cache.
	for i := range 2 {
		e := startEngine(t, EngineOptions{CacheDir: cache})
		c := dial(t, e)
		out := t.TempDir()
		b := buildOf{
			dockerfile: "FROM base\nRUN echo built > /built\n",
			base:       tinyBase(t),
			attrs:      map[string]string{"waxseal:sbom": "spdx,cyclonedx", "build-arg:SOURCE_DATE_EPOCH": "1700000000"},
			export:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
			ref:        identity.NewID(),
		}
		if _, err := b.solve(t.Context(), t, c); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(out, "built")); err != nil || string(got) != "built\n" {
			t.Errorf("the built file is %q, %v", got, err)
		}
		for _, format := range sbom.Formats() {
			doc := readSBOM(t, e, b.ref, "linux/amd64", format)
			s, err := sbom.Check(format, []byte(doc))
			if err != nil {
				t.Fatal(err)
			}
			if s.Packages == 0 || !strings.Contains(doc, "pkg:deb/debian/busybox-static@") {
				t.Errorf("the %s document has %d packages and no busybox-static", format, s.Packages)
			}
			if !strings.Contains(doc, "2023-11-14T22:13:20Z") {
				t.Errorf("the %s document does not have the time of SOURCE_DATE_EPOCH", format)
			}
			if i == 0 {
				docs[format] = doc
			} else if docs[format] != doc {
				t.Errorf("the %s document of the second build differs", format)
			}
		}
		_, err := e.SBOM(t.Context(), b.ref, "linux/s390x", sbom.SPDX)
		wantError(t, err, "linux/s390x", "linux/amd64")
		_, err = e.SBOM(t.Context(), "another", "linux/amd64", sbom.SPDX)
		wantError(t, err, `build "another" did not ask`)
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := filepath.Glob(filepath.Join(cache, "sbom", "*.json"))
	if err != nil || len(kept) != 2 {
		t.Errorf("the cache holds %q, %v; want two documents", kept, err)
	}
}

func TestSBOMOfEveryPlatform(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	c := dial(t, e)
	for _, dockerfile := range []string{"FROM scratch\nCOPY Dockerfile /\n", "FROM scratch\nLABEL only=settings\n"} {
		b := buildOf{
			dockerfile: dockerfile,
			attrs:      map[string]string{"waxseal:sbom": "spdx", "platform": "linux/amd64,linux/arm64"},
			export:     []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"tar": "false"}, OutputDir: t.TempDir()}},
			ref:        identity.NewID(),
		}
		if _, err := b.solve(t.Context(), t, c); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{"linux/amd64", "linux/arm64"} {
			s, err := sbom.Check(sbom.SPDX, []byte(readSBOM(t, e, b.ref, p, sbom.SPDX)))
			if err != nil || s.Packages != 0 {
				t.Errorf("%q for %s: %+v, %v", dockerfile, p, s, err)
			}
		}
		_, err := e.SBOM(t.Context(), b.ref, "linux/amd64", sbom.CycloneDX)
		wantError(t, err, `did not ask for format "cyclonedx"`)
	}
	b := buildOf{dockerfile: "FROM scratch\nCOPY Dockerfile /\n", attrs: map[string]string{"waxseal:sbom": "other"}, ref: identity.NewID()}
	_, err := b.solve(t.Context(), t, c)
	wantError(t, err, `"other" is unknown`)
}

func readSBOM(t *testing.T, e *Engine, ref, platform, format string) string {
	t.Helper()
	r, err := e.SBOM(t.Context(), ref, platform, format)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	doc, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(doc)
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", parts)
		return
	}
	text := err.Error()
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		text += "\n" + h.Hint()
	}
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("the error %q does not say %q", text, p)
		}
	}
}

func TestEngineInfo(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	info, err := e.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]string{"buildkit": info.BuildKit, "syft": info.Syft, "kernel": info.Kernel, "runc": info.Runc, "snapshotter": info.Snapshotter} {
		if v == "" || v == "unknown" {
			t.Errorf("%s is %q", name, v)
		}
	}
}

func TestBuildErrorsKeepTheirText(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	c := dial(t, e)
	for _, tc := range []struct{ name, dockerfile, want string }{
		{"syntax", "FROM scratch\nCOPPY a b\n", "unknown instruction: COPPY"},
		{"step", "FROM base\nRUN echo gone; exit 7\n", "exit code: 7"},
		{"entitlement", "FROM base\nRUN --network=host true\n", "network.host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := buildOf{dockerfile: tc.dockerfile, base: tinyBase(t), attrs: map[string]string{"waxseal:sbom": "spdx"}, ref: identity.NewID()}
			_, err := b.solve(t.Context(), t, c)
			wantError(t, e.Explain(err), tc.want)
			// Nobody must wait for the SBOM of a build that failed.
			if _, err := e.SBOM(t.Context(), b.ref, "linux/amd64", "spdx"); err == nil {
				t.Error("an SBOM came of a failed build")
			}
		})
	}
}

func TestStepsSeeOnlyLoopback(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	out := t.TempDir()
	b := buildOf{
		dockerfile: "FROM base\nRUN --network=none ls /sys/class/net > /none\nRUN ls /sys/class/net > /default\n",
		base:       tinyBase(t),
		export:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}
	if _, err := b.solve(t.Context(), t, dial(t, e)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "default"} {
		got, err := os.ReadFile(filepath.Join(out, name))
		if err != nil || strings.TrimSpace(string(got)) != "lo" {
			t.Errorf("a step of network %s sees %q, %v", name, got, err)
		}
	}
}

func TestEngineEnvironmentHoldsNoSecrets(t *testing.T) {
	got := engineEnv([]string{"PATH=/bin", "COSIGN_PASSWORD=x", "AWS_SECRET_ACCESS_KEY=x", "HOME=/root", "https_proxy=http://p", "GITHUB_TOKEN=x", "PATHX=y", "SSH_AUTH_SOCK=/s"})
	want := []string{"PATH=/bin", "HOME=/root", "https_proxy=http://p"}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("the engine's environment is %q, want %q", got, want)
	}
}

func TestBoundedSBOM(t *testing.T) {
	r := &bounded{r: io.NopCloser(io.LimitReader(zeroes{}, attest.MaxSBOM+1)), left: attest.MaxSBOM}
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Error("a document over the limit was read")
	}
	r = &bounded{r: io.NopCloser(io.LimitReader(zeroes{}, attest.MaxSBOM)), left: attest.MaxSBOM}
	if n, err := io.Copy(io.Discard, r); err != nil || n != attest.MaxSBOM {
		t.Errorf("read %d, %v", n, err)
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }
