package build

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	"github.com/tonistiigi/fsutil"
)

// engineForTest builds the engine once for all tests of the package.
var engineForTest = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "waxseal-engine-test-")
	if err != nil {
		return "", err
	}
	p := filepath.Join(dir, engineName)
	out, err := exec.Command("go", "build", "-o", p, "github.com/waxseal/waxseal/cmd/waxseal-engine").CombinedOutput()
	if err != nil {
		return "", &EngineError{Text: string(out)}
	}
	return p, nil
})

// needEngine skips where an engine cannot run; on CI that is a failure.
func needEngine(t *testing.T) string {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "needs root"
	} else if _, err := exec.LookPath("runc"); err != nil {
		missing = "needs runc: apt-get install runc"
	}
	if missing != "" {
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	p, err := engineForTest()
	if err != nil {
		t.Fatal(err)
	}
	return p
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

func TestEngineBuildsFromScratch(t *testing.T) {
	e := startEngine(t, EngineOptions{})
	begin := time.Now()
	c, err := e.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %s", time.Since(begin))
	dir := t.TempDir()
	write(t, dir, "Dockerfile", "FROM scratch\nCOPY hello /hello\n")
	write(t, dir, "hello", "hello\n")
	out := t.TempDir()
	ref := identity.NewID()
	solve(t, c, ref, dir, map[string]string{"waxseal:sbom": "spdx,cyclonedx"}, client.ExportEntry{Type: client.ExporterLocal, OutputDir: out})
	if b, err := os.ReadFile(filepath.Join(out, "hello")); err != nil || string(b) != "hello\n" {
		t.Fatalf("the exported file is %q, %v", b, err)
	}
	info, err := e.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", info)
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func solve(t *testing.T, c *client.Client, ref, dir string, attrs map[string]string, export ...client.ExportEntry) error {
	t.Helper()
	_ = llb.Scratch
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := map[string]string{"cmdline": "docker/dockerfile:1"}
	for k, v := range attrs {
		a[k] = v
	}
	_, err = c.Solve(t.Context(), nil, client.SolveOpt{
		Ref:           ref,
		Frontend:      "dockerfile.v0",
		FrontendAttrs: a,
		LocalMounts:   map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		Exports:       export,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return err
}

var _ = context.Background
