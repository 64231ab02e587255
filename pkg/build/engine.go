package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// engine runs the steps: waxseal's own, or a BuildKit that runs somewhere.
type engine interface {
	Dial(ctx context.Context) (*client.Client, error)
	// describe is what the provenance says about the engine.
	describe(ctx context.Context) (attestations.ContainerEngine, error)
	// sbom streams a document about one platform of the build. layout holds
	// the exported image.
	sbom(ctx context.Context, q sbomQuery) (io.ReadCloser, error)
	// catalogs reports whether SBOMs are made in the engine during the export.
	catalogs() bool
	// adjust changes what BuildKit is asked to what this engine needs for the
	// record of inputs. The function it returns, unless it is nil, is shown the
	// build's progress.
	adjust(opt *client.SolveOpt) (func(*client.SolveStatus), error)
	// inputs is what reached one platform of a build, as far as this engine can
	// tell; rec is what BuildKit wrote down about it.
	inputs(ctx context.Context, b *built, rec *record, platform string) (*EngineInputs, error)
	// Explain adds to an error what the engine knows about it.
	Explain(err error) error
	Close() error
}

type sbomQuery struct {
	build    string
	platform string
	format   string
	layout   string
	digest   attest.Digest
	epoch    string
}

// openEngine starts or reaches the engine of a choice.
func openEngine(ctx context.Context, c EngineChoice, opts EngineOptions, in *intake) (engine, error) {
	if c.BuildKit != "" {
		if !strings.Contains(c.BuildKit, "://") {
			return nil, UsageError{fmt.Errorf("engine address %q has no scheme, as unix:///run/buildkit/buildkitd.sock or tcp://HOST:PORT", c.BuildKit)}
		}
		return &foreignEngine{address: c.BuildKit, intake: in}, nil
	}
	opts.CacheDir = c.CacheDir
	e, err := StartEngine(ctx, opts)
	if err != nil {
		return nil, err
	}
	return &ownEngine{e}, nil
}

// ownEngine is the child that waxseal started.
type ownEngine struct{ *Engine }

func (e *ownEngine) catalogs() bool { return true }

func (e *ownEngine) describe(ctx context.Context) (attestations.ContainerEngine, error) {
	info, err := e.Info(ctx)
	if err != nil {
		return attestations.ContainerEngine{}, err
	}
	return attestations.ContainerEngine{
		Name: "embedded", Version: info.Engine, BuildKit: info.BuildKit, Runc: info.Runc, Kernel: info.Kernel,
		Snapshotter: info.Snapshotter, Isolation: "runc",
	}, nil
}

func (e *ownEngine) adjust(*client.SolveOpt) (func(*client.SolveStatus), error) { return nil, nil }

func (e *ownEngine) inputs(ctx context.Context, b *built, _ *record, platform string) (*EngineInputs, error) {
	return e.Inputs(ctx, b.ref, platform)
}

func (e *ownEngine) sbom(ctx context.Context, q sbomQuery) (io.ReadCloser, error) {
	return e.SBOM(ctx, q.build, q.platform, q.format)
}

// catalogLayout has the engine's program catalogue an exported image.
func catalogLayout(ctx context.Context, q sbomQuery) (io.ReadCloser, error) {
	program, err := engineProgram("")
	if err != nil {
		return nil, err
	}
	args := []string{"catalog", "--layout", q.layout, "--digest", string(q.digest), "--format", q.format}
	if q.epoch != "" {
		args = append(args, "--epoch", q.epoch)
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = engineEnv(os.Environ())
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &limitedBuffer{&out, attest.MaxSBOM}, &limitedBuffer{&said, 64 << 10}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("cataloguing %s: %s", q.platform, strings.TrimPrefix(firstLine(said.String(), err), engineName+": "))
	}
	return io.NopCloser(&out), nil
}
