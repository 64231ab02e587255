package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/waxseal/waxseal/internal/testkit"
)

// What wrapping a command may take of the time that the command takes alone.
const (
	runRatio   = 1.05
	traceRatio = 1.15
)

// wrapped compares commands under `waxseal run` with the same alone: make on
// the source of Debian's hello, and docker buildx build with a BuildKit of the
// engine's version.
func (b *bench) wrapped() error {
	b.env = append(b.env, "DOCKER_CONFIG="+b.path("docker"), "BUILDX_NO_DEFAULT_ATTESTATIONS=1")
	if err := b.wrappedMake(); err != nil {
		return err
	}
	return b.wrappedBuildx()
}

// wrappedMake has make build hello anew each time, without its configure: of
// that nobody would say that it is a fair share of a build.
func (b *bench) wrappedMake() error {
	for _, name := range []string{"make", "gcc", "dpkg-source"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Fprintf(b.out, "%-32s not measured: there is no %s here\n", "run, make", name)
			return nil //nolint:nilerr // the row says so
		}
	}
	src, err := testkit.DebianSource(b.ctx, "hello", b.path("source"))
	if err != nil {
		fmt.Fprintf(b.out, "%-32s not measured: %v\n", "run, make", err)
		return nil //nolint:nilerr // the row says so
	}
	b.work = src
	defer func() { b.work = "" }()
	if _, err := b.run("./configure", "--quiet"); err != nil {
		return err
	}
	made := func(program string, args ...string) func() (sample, error) {
		return func() (sample, error) {
			if _, err := b.run("make", "-s", "clean"); err != nil {
				return sample{}, err
			}
			return b.run(program, append(args, "make", "-s")...)
		}
	}
	sealed := func(more ...string) func() (sample, error) {
		return made(b.bin, append(append([]string{"run", "--key", b.path("waxseal.key"), "--artifact", "hello", "--out", b.path("evidence")}, more...), "--")...)
	}
	programs := []func() (sample, error){made("env"), sealed(), sealed("--trace")}
	strace, err := exec.LookPath("strace")
	if err == nil {
		programs = append(programs, made(strace, "-f", "-o", b.path("strace.out"), "-e", "trace=open,openat,execve"))
		programs = append(programs, made(strace, "-f", "-o", b.path("strace.out")))
	}
	m, err := b.runs(6, true, programs...)
	if err != nil {
		return err
	}
	b.judgeRun("run, make", "make", m[1], m[0], runRatio)
	b.judgeRun("run --trace, make", "make", m[2], m[0], traceRatio)
	if strace == "" {
		fmt.Fprintf(b.out, "%-32s there is no strace here: not compared\n", "strace -f, make")
		return nil
	}
	for i, name := range []string{"strace -f of opened files, make", "strace -f, make"} {
		fmt.Fprintf(b.out, "%-32s %.2f of make (%v : %v)\n", name, float64(m[3+i].Wall)/float64(m[0].Wall), ms(m[3+i].Wall), ms(m[0].Wall))
	}
	return nil
}

// judgeRun holds one sample against the command alone.
func (b *bench) judgeRun(name, alone string, ours, theirs sample, budget float64) {
	ratio := float64(ours.Wall) / float64(theirs.Wall)
	b.judge(name, fmt.Sprintf("%.2f of %s (%v : %v, budget %.2f)", ratio, alone, ms(ours.Wall), ms(theirs.Wall), budget), ratio <= budget)
}

// wrappedBuildx builds the example with docker buildx, by a remote BuildKit and
// under `waxseal run`, which signs. The base is in a registry for both.
func (b *bench) wrappedBuildx() error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	reg, base, err := b.servedBase()
	if err != nil {
		return err
	}
	defer reg.Close()
	if err := os.CopyFS(b.path("webapp"), os.DirFS(filepath.Join(root, "examples", "webapp"))); err != nil {
		return err
	}
	stop, addr, err := b.startBuildKit("buildx", nil)
	if err != nil {
		return err
	}
	running := true
	defer func() {
		if running {
			stop()
		}
	}()
	if _, err := b.run("docker", "buildx", "create", "--name", "bench", "--driver", "remote", addr); err != nil {
		return err
	}
	buildx := []string{"docker", "buildx", "build", "--quiet", "--builder", "bench", "--build-context", "base=docker-image://" + base}
	built := 0
	output := func() []string {
		built++
		return []string{"--push", "--tag", fmt.Sprintf("%s/bench/webapp:v%d", reg.Addr, built), b.path("webapp")}
	}
	alone := func() (sample, error) {
		return b.run(buildx[0], append(buildx[1:len(buildx):len(buildx)], output()...)...)
	}
	sealed := func(sbom string) func() (sample, error) {
		return func() (sample, error) {
			args := append([]string{"run", "--key", b.path("waxseal.key"), "--sbom", sbom, "--"}, buildx...)
			return b.run(b.bin, append(args, output()...)...)
		}
	}
	as := func(p func() (sample, error)) func() (sample, error) { return p }
	for _, c := range []struct {
		name   string
		rounds int
		wrap   func(func() (sample, error)) func() (sample, error)
	}{
		{"run, buildx, cold", 5, b.cold(addr)},
		{"run, buildx, a page changed", 7, b.changed},
		{"run, buildx, nothing changed", 9, as},
	} {
		m, err := b.runs(c.rounds, true, c.wrap(alone), c.wrap(sealed("none")), c.wrap(sealed("spdx,cyclonedx")))
		if err != nil {
			return err
		}
		b.judgeRun(c.name, "buildx", m[1], m[0], runRatio)
		fmt.Fprintf(b.out, "%-32s the SBOMs add %v (%v)\n", c.name+", SBOMs", ms(m[2].Wall-m[1].Wall), ms(m[2].Wall))
	}
	// A job of a pipeline starts its builder, as waxseal does; so far there was
	// one that ran already.
	running = false
	stop()
	started := func() (sample, error) {
		began := time.Now()
		stop, _, err := b.startBuildKit("buildx", nil)
		if err != nil {
			return sample{}, err
		}
		defer stop()
		m, err := alone()
		m.Wall = time.Since(began)
		return m, err
	}
	m, err := b.runs(9, true, started, sealed("none"))
	if err != nil {
		return err
	}
	b.judgeRun("run, buildx, the job's builder", "buildx and the start of its BuildKit", m[1], m[0], runRatio)
	return nil
}

// changed builds after somebody has edited a page of the example.
func (b *bench) changed(program func() (sample, error)) func() (sample, error) {
	return func() (sample, error) {
		page := fmt.Sprintf("<p>%d</p>\n", time.Now().UnixNano())
		if err := os.WriteFile(b.path("webapp/notes/page.html"), []byte(page), 0o644); err != nil {
			return sample{}, err
		}
		return program()
	}
}

// servedBase starts a registry with the base image in it, and gives docker the
// plugin.
func (b *bench) servedBase() (reg *testkit.Registry, base string, err error) {
	plugins, blobs := b.path("docker/cli-plugins"), b.path("registry")
	for _, dir := range []string{plugins, blobs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, "", err
		}
	}
	if err := os.Symlink(b.buildx, filepath.Join(plugins, "docker-buildx")); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, "", err
	}
	if reg, err = testkit.NewRegistry(testkit.RegistryOptions{Dir: blobs}); err != nil {
		return nil, "", err
	}
	base = reg.Addr + "/base:v1"
	if _, err := b.run(b.crane, "push", b.base, base); err != nil {
		reg.Close()
		return nil, "", err
	}
	return reg, base, nil
}
