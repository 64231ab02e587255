package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/internal/testkit"
)

// The budgets: what `kit bench` holds the medians against.
const (
	buildRatio  = 1.05
	buildExtra  = 100 * time.Millisecond
	verifyRatio = 0.5
	memoryRatio = 1.0
	startCPU    = 20 * time.Millisecond
	helpCPU     = 2 * time.Millisecond // beyond startCPU's
	startRSS    = 35 << 20
)

// sample is one run of a program.
type sample struct {
	Wall, CPU time.Duration
	RSS       int64 // peak, bytes
}

// bench is one run of all measurements, in a folder of its own.
type bench struct {
	ctx                   context.Context
	out                   io.Writer
	bin, dir, base        string
	cosign, ctl, buildkit string
	buildx, crane         string
	work                  string // where programs run; "" for dir
	env                   []string
	over                  []string
	put                   int // folders put aside
}

// runBench measures everything, or the part that only names, over so many
// images ("" for the usual number).
func runBench(ctx context.Context, out io.Writer, only, images string) error {
	many := manyImages
	if images != "" {
		n, err := strconv.Atoi(images)
		if err != nil || n < perRepository {
			return fmt.Errorf("%q is no number of images from %d", images, perRepository)
		}
		many = n
	}
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "waxseal-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, out: out, dir: dir, bin: filepath.Join(root, "bin", "waxseal")}
	b.env = append(os.Environ(), "COSIGN_PASSWORD=bench", "HOME="+dir, "WAXSEAL_CACHE="+b.path("cache"), "WAXSEAL_HOME="+b.path("home"), "WAXSEAL_STORE="+b.path("store"))
	if _, err := b.run(b.bin, "key", "generate", "--output-prefix", b.path("waxseal")); err != nil {
		return err
	}
	for _, part := range []struct {
		name  string
		peers []string // whom it is compared with; with any, it builds images
		run   func() error
	}{
		{"start", nil, b.startUp}, {"bundles", nil, b.bundles}, {"images", nil, func() error { return b.images(many) }},
		{"kms", nil, b.kms}, {"keyless", nil, b.keyless}, {"verify", []string{"cosign"}, b.verify}, {"builds", []string{"buildctl", "buildkitd"}, b.builds}, {"inputs", []string{"buildctl", "buildkitd"}, b.inputs},
		{"run", []string{"buildctl", "buildkitd", "buildx", "crane"}, b.wrapped},
	} {
		if only != "" && only != part.name {
			continue
		}
		if len(part.peers) > 0 {
			if err := b.prepareBuilds(part.peers); err != nil {
				return err
			}
		}
		if err := part.run(); err != nil {
			return err
		}
	}
	if len(b.over) > 0 {
		return errors.New("over budget: " + strings.Join(b.over, ", "))
	}
	return nil
}

// prepareBuilds has everything that building takes, and those compared with.
func (b *bench) prepareBuilds(peers []string) (err error) {
	if err := testkit.CanBuild(); err != nil {
		return err
	}
	paths := map[string]*string{"cosign": &b.cosign, "buildctl": &b.ctl, "buildkitd": &b.buildkit, "buildx": &b.buildx, "crane": &b.crane}
	for _, name := range peers {
		if *paths[name], err = testkit.BuildPeer(b.ctx, name); err != nil {
			return err
		}
	}
	b.base, err = testkit.DebianBase(b.ctx)
	return err
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// run runs a program through `kit measure` and returns what it took.
func (b *bench) run(program string, args ...string) (sample, error) {
	return b.runWith(nil, program, args...)
}

// runWith is run with a standard input; nil is an empty one.
func (b *bench) runWith(in io.Reader, program string, args ...string) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	cmd := exec.CommandContext(b.ctx, self, append([]string{"measure", program}, args...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = b.env, cmp.Or(b.work, b.dir), in
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return sample{}, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, said.String())
	}
	var s sample
	return s, json.Unmarshal(out, &s)
}

// measure runs a program and prints a sample of it. It is a process of its own
// because Linux counts the memory of the process that starts a program to the
// program's peak: this one is small.
func measure(ctx context.Context, out io.Writer, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stderr, os.Stderr
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		return err
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	return json.NewEncoder(out).Encode(sample{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), usage.Maxrss << 10})
}

// runs takes n samples of each program in turn, so that a slow minute of the
// machine meets all of them, and returns the medians. The first round is not
// counted unless there is only a cold one to count.
func (b *bench) runs(n int, warmUp bool, programs ...func() (sample, error)) ([]sample, error) {
	taken := make([][]sample, len(programs))
	for round := range n {
		for i, program := range programs {
			s, err := program()
			if err != nil {
				return nil, err
			}
			if round > 0 || !warmUp {
				taken[i] = append(taken[i], s)
			}
		}
	}
	medians := make([]sample, len(programs))
	for i, t := range taken {
		medians[i] = sample{
			Wall: median(t, func(s sample) time.Duration { return s.Wall }),
			CPU:  median(t, func(s sample) time.Duration { return s.CPU }),
			RSS:  median(t, func(s sample) int64 { return s.RSS }),
		}
	}
	return medians, nil
}

func median[N ~int64](samples []sample, of func(sample) N) N {
	values := make([]N, len(samples))
	for i, s := range samples {
		values[i] = of(s)
	}
	slices.Sort(values)
	return values[len(values)/2]
}

// judge prints one row and keeps the name of one that is over its budget.
func (b *bench) judge(name, figures string, ok bool) {
	verdict := "within"
	if !ok {
		verdict = "OVER"
		b.over = append(b.over, name)
	}
	fmt.Fprintf(b.out, "%-32s %-72s %s\n", name, figures, verdict)
}

// report is judge for a row that has a goal, and shows one that has none.
func (b *bench) report(name, figures string, goal float64, ratio float64) {
	if goal == 0 {
		fmt.Fprintf(b.out, "%-32s %.2f of %s\n", name, ratio, figures)
		return
	}
	b.judge(name, fmt.Sprintf("%.2f of %s, at most %.2f", ratio, figures, goal), ratio <= goal)
}

func (b *bench) startUp() error {
	// What verify does before it looks at anything it does for its help, too, which
	// it prints besides.
	m, err := b.runs(21, true,
		func() (sample, error) { return b.run(b.bin, "version") },
		func() (sample, error) { return b.run(b.bin, "verify", "--help") })
	if err != nil {
		return err
	}
	b.judge("version, CPU", fmt.Sprintf("%v (budget %v)", ms(m[0].CPU), ms(startCPU)), m[0].CPU <= startCPU)
	b.judge("version, peak memory", fmt.Sprintf("%s (budget %s)", mib(m[0].RSS), mib(startRSS)), m[0].RSS <= startRSS)
	more := m[1].CPU - m[0].CPU
	b.judge("verify --help, CPU", fmt.Sprintf("%v more than version (%v, budget %v more)", ms(more), ms(m[1].CPU), ms(helpCPU)), more <= helpCPU)
	b.judge("verify --help, peak memory", fmt.Sprintf("%s (budget %s)", mib(m[1].RSS), mib(startRSS)), m[1].RSS <= startRSS)
	return nil
}

// builds compares `waxseal build` with buildctl against a running daemon, on
// the example's Dockerfile.
func (b *bench) builds() error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	context := filepath.Join(root, "examples", "webapp")
	digest, err := onlyDigest(b.base)
	if err != nil {
		return err
	}
	stop, addr, err := b.startBuildKit("buildkitd", nil)
	if err != nil {
		return err
	}
	defer func() { stop() }()
	outputs := 0
	output := func() string {
		outputs++
		return fmt.Sprintf("type=oci,tar=false,dest=%s", b.path(fmt.Sprintf("out-%d", outputs)))
	}
	buildctl := func() (sample, error) {
		return b.run(b.ctl, "--addr", addr, "build", "--frontend", "dockerfile.v0", "--local", "context="+context, "--local", "dockerfile="+context,
			"--oci-layout", "base="+b.base, "--opt", "context:base=oci-layout://base@"+digest, "--output", output())
	}
	waxseal := func(sbom string) func() (sample, error) {
		return func() (sample, error) {
			return b.run(b.bin, "build", "--lock", b.path("waxseal.lock"), "--build-context", "base=oci:"+b.base, "--sbom="+sbom, "--key", b.path("waxseal.key"), "--output", output(), context)
		}
	}
	for _, c := range []struct {
		name   string
		rounds int
		wrap   func(func() (sample, error)) func() (sample, error)
	}{
		{"build, cold", 3, b.cold("buildkitd", &stop)},
		{"build, nothing changed", 9, func(p func() (sample, error)) func() (sample, error) { return p }},
	} {
		m, err := b.runs(c.rounds, c.rounds > 3, c.wrap(buildctl), c.wrap(waxseal("none")), c.wrap(waxseal("spdx,cyclonedx")))
		if err != nil {
			return err
		}
		budget := time.Duration(float64(m[0].Wall)*buildRatio) + buildExtra
		b.judge(c.name+", signed", fmt.Sprintf("%.2f of buildctl (%v : %v, budget %v)", float64(m[1].Wall)/float64(m[0].Wall), ms(m[1].Wall), ms(m[0].Wall), ms(budget)), m[1].Wall <= budget)
		fmt.Fprintf(b.out, "%-32s the SBOMs add %v (%v)\n", c.name+", SBOMs", ms(m[2].Wall-m[1].Wall), ms(m[2].Wall))
	}
	return nil
}

// startBuildKit starts a buildkitd named name, by the command wrap where there
// is one, and returns how to end it and its address.
func (b *bench) startBuildKit(name string, env []string, wrap ...string) (stop func(), addr string, err error) {
	addr = "unix://" + b.path(name+".sock")
	log, err := os.Create(b.path(name + ".log"))
	if err != nil {
		return nil, "", err
	}
	args := append(wrap, b.buildkit, "--addr", addr, "--root", b.path(name), "--containerd-worker=false")
	daemon := exec.Command(args[0], args[1:]...)
	daemon.Env = append(os.Environ(), env...)
	daemon.Stdout, daemon.Stderr = log, log
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := daemon.Start(); err != nil {
		return nil, "", err
	}
	stop = func() {
		daemon.Process.Signal(syscall.SIGTERM)
		daemon.Wait()
		log.Close()
	}
	// It listens once it can build.
	for ready := time.Now().Add(20 * time.Second); time.Now().Before(ready); time.Sleep(2 * time.Millisecond) {
		var c net.Conn
		if c, err = net.Dial("unix", b.path(name+".sock")); err == nil {
			c.Close()
			return stop, addr, nil
		}
	}
	stop()
	return nil, "", fmt.Errorf("starting buildkitd: %w", err)
}

// verify compares `waxseal verify` with `cosign verify-attestation` on the same
// image, key and registry.
func (b *bench) verify() error {
	root, err := testkit.Root()
	if err != nil {
		return err
	}
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{})
	if err != nil {
		return err
	}
	defer reg.Close()
	image := reg.Addr + "/bench/webapp:v1"
	if _, err := b.run(b.bin, "build", "--lock", b.path("waxseal.lock"), "--build-context", "base=oci:"+b.base, "--key", b.path("waxseal.key"), "--tag", image, "--push", filepath.Join(root, "examples", "webapp")); err != nil {
		return err
	}
	// cosign asks for a trusted root even where a key is all it needs.
	trusted := b.path("root.json")
	if err := os.WriteFile(trusted, []byte(`{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`), 0o644); err != nil {
		return err
	}
	m, err := b.runs(15, true,
		func() (sample, error) {
			return b.run(b.cosign, "verify-attestation", "--new-bundle-format", "--trusted-root", trusted, "--key", b.path("waxseal.pub"), "--insecure-ignore-tlog", "--type", "slsaprovenance1", image)
		},
		func() (sample, error) {
			return b.run(b.bin, "verify", "--key", b.path("waxseal.pub"), "--level", "1", image)
		})
	if err != nil {
		return err
	}
	wall, rss := float64(m[1].Wall)/float64(m[0].Wall), float64(m[1].RSS)/float64(m[0].RSS)
	b.judge("verify, wall", fmt.Sprintf("%.2f of cosign (%v : %v, budget %.2f)", wall, ms(m[1].Wall), ms(m[0].Wall), verifyRatio), wall <= verifyRatio)
	b.judge("verify, peak memory", fmt.Sprintf("%.2f of cosign (%s : %s, budget %.2f)", rss, mib(m[1].RSS), mib(m[0].RSS), memoryRatio), rss <= memoryRatio)
	return nil
}

// onlyDigest is the digest of the only image in the layout.
func onlyDigest(layout string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return "", err
	}
	var index struct{ Manifests []struct{ Digest string } }
	if err := json.Unmarshal(raw, &index); err != nil {
		return "", err
	}
	if len(index.Manifests) != 1 {
		return "", fmt.Errorf("the layout %q has %d images, want one", layout, len(index.Manifests))
	}
	return index.Manifests[0].Digest, nil
}

func ms(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func mib(bytes int64) string { return fmt.Sprintf("%.1f MiB", float64(bytes)/(1<<20)) }

// cold runs a program where neither waxseal nor the BuildKit of that name, which
// is started anew, has built anything. What they had is put aside and not
// removed: ext4 gives out no inode again for minutes, and looking for others
// would take seconds of the next build.
func (b *bench) cold(name string, stop *func()) func(func() (sample, error)) func() (sample, error) {
	return func(program func() (sample, error)) func() (sample, error) {
		return func() (sample, error) {
			(*stop)()
			*stop = func() {}
			for _, had := range []string{name, "cache"} {
				b.put++
				if err := os.Rename(b.path(had), b.path(fmt.Sprintf("%s-%d", had, b.put))); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return sample{}, err
				}
			}
			again, _, err := b.startBuildKit(name, nil)
			if err != nil {
				return sample{}, err
			}
			*stop = again
			return program()
		}
	}
}
