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
// the sources of Debian's jq and hello, and docker buildx build with a BuildKit of the
// engine's version.
func (b *bench) wrapped() error {
	b.env = append(b.env, "DOCKER_CONFIG="+b.path("docker"), "BUILDX_NO_DEFAULT_ATTESTATIONS=1")
	if err := b.wrappedMake(); err != nil {
		return err
	}
	return b.wrappedBuildx()
}

// wrappedMake has make build the source of Debian's jq anew each time, without
// its configure: of that nobody would say that it is a fair share of a build. Of
// hello, which is built in two seconds, it says what wrapping adds.
func (b *bench) wrappedMake() error {
	for _, name := range []string{"make", "gcc", "dpkg-source", "autoreconf"} {
		if _, err := exec.LookPath(name); err != nil {
			fmt.Fprintf(b.out, "%-32s not measured: there is no %s here\n", "run, make", name)
			return nil //nolint:nilerr // the row says so
		}
	}
	m, err := b.madeOf("jq", 3, []string{"autoreconf", "-i"}, []string{"./configure", "--quiet", "--disable-docs", "--disable-maintainer-mode"})
	if err != nil || m == nil {
		return err
	}
	b.judgeRun("run, make of jq", "make", m[1], m[0], runRatio)
	b.judgeRun("run --trace, make of jq", "make", m[2], m[0], traceRatio)
	b.strace("make of jq", m)
	if m, err = b.madeOf("hello", 7, []string{"./configure", "--quiet"}); err != nil || m == nil {
		return err
	}
	fmt.Fprintf(b.out, "%-32s adds %v to %v, --trace %v\n", "run, make of hello", ms(m[1].Wall-m[0].Wall), ms(m[0].Wall), ms(m[2].Wall-m[0].Wall))
	b.strace("make of hello", m)
	return nil
}

func (b *bench) strace(name string, m []sample) {
	if len(m) < 4 {
		fmt.Fprintf(b.out, "%-32s there is no strace here: not compared\n", "strace -f, "+name)
		return
	}
	fmt.Fprintf(b.out, "%-32s %.2f of make (%v : %v)\n", "strace -f, "+name, float64(m[3].Wall)/float64(m[0].Wall), ms(m[3].Wall), ms(m[0].Wall))
}

// madeOf measures make of a Debian source by itself, under run, under run
// --trace and, where there is one, under strace -f; nil where there is no source.
func (b *bench) madeOf(name string, rounds int, prepare ...[]string) ([]sample, error) {
	src, err := testkit.DebianSource(b.ctx, name, b.path("source-"+name))
	if err != nil {
		fmt.Fprintf(b.out, "%-32s not measured: %v\n", "run, make of "+name, err)
		return nil, nil //nolint:nilerr // the row says so
	}
	b.work = src
	defer func() { b.work = "" }()
	for _, line := range prepare {
		if _, err := b.run(line[0], line[1:]...); err != nil {
			return nil, err
		}
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
		return made(b.bin, append(append([]string{"run", "--key", b.path("waxseal.key"), "--artifact", name, "--out", b.path("evidence")}, more...), "--")...)
	}
	programs := []func() (sample, error){made("env"), sealed(), sealed("--trace")}
	if strace, err := exec.LookPath("strace"); err == nil {
		programs = append(programs, made(strace, "-f", "-o", b.path("strace.out")))
	}
	return b.runs(rounds, rounds > 3, programs...)
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
	sealed := func(sbom string, env ...string) func() (sample, error) {
		key := b.path("waxseal.key")
		if len(env) > 0 {
			key = b.path("open.key")
		}
		return func() (sample, error) {
			args := append(append(env[:len(env):len(env)], b.bin, "run", "--key", key, "--sbom", sbom, "--"), buildx...)
			return b.run("env", append(args, output()...)...)
		}
	}
	// The password of a key takes its time by design, of one processor.
	open := []string{"COSIGN_PASSWORD="}
	if _, err := b.run("env", append(open, b.bin, "key", "generate", "--output-prefix", b.path("open"))...); err != nil {
		return err
	}
	as := func(p func() (sample, error)) func() (sample, error) { return p }
	for _, c := range []struct {
		name   string
		rounds int
		wrap   func(func() (sample, error)) func() (sample, error)
	}{
		{"run, buildx, cold", 5, b.cold("buildx", &stop)},
		{"run, buildx, a page changed", 7, b.changed},
		{"run, buildx, nothing changed", 9, as},
	} {
		m, err := b.runs(c.rounds, true, c.wrap(alone), c.wrap(sealed("none")), c.wrap(sealed("spdx,cyclonedx")), c.wrap(sealed("none", open...)))
		if err != nil {
			return err
		}
		b.judgeRun(c.name, "buildx", m[1], m[0], runRatio)
		fmt.Fprintf(b.out, "%-32s the SBOMs add %v (%v); a key without a password: %.2f of buildx (%v)\n", c.name+", SBOMs",
			ms(m[2].Wall-m[1].Wall), ms(m[2].Wall), float64(m[3].Wall)/float64(m[0].Wall), ms(m[3].Wall))
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
