package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/waxseal/waxseal/internal/testkit"
)

// The budgets of what passes the gateway.
const (
	directRatio = 1.10
	proxyRatio  = 1.0
	replayRatio = 0.8
	memoryExtra = 64 << 20
)

// fetchDockerfile takes the time of the command alone, inside the step, and
// leaves an image of one small file: what is compared is the way of the bytes,
// not the export of a base image.
const fetchDockerfile = `FROM base AS fetch
ARG RUN VIA URL COMMAND
COPY ca.pem /ca.pem
RUN cat /ca.pem /etc/ssl/certs/ca-certificates.crt > /bundle.pem 2>/dev/null; start=$(date +%s%N); eval "$COMMAND" && echo "step took $(( ($(date +%s%N) - start) / 1000 )) us" && echo done > /done
FROM scratch
COPY --from=fetch /done /done
`

// fetched is one build: all of it, and the step alone.
type fetched struct{ build, step time.Duration }

// inputs measures what recording costs and what replaying saves: record against
// the host's network in the same engine, and against BuildKit's own proxy.
//
// Large bodies come over a link of 1 Gbit/s, where nobody can be ahead of the
// link, and over loopback, where server, gateway and client share the processors.
func (b *bench) inputs() error {
	tools, err := testkit.Base(b.ctx, "tools")
	if err != nil {
		return err
	}
	up, err := testkit.NewUpstream(testkit.UpstreamOptions{Names: []string{"bench.test"}, CAFile: b.path("ca.pem")})
	if err != nil {
		return err
	}
	defer up.Close()
	stop, addr, err := b.startProxyBuildKit()
	if err != nil {
		return err
	}
	defer stop()
	if err := os.MkdirAll(b.path("fetch"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(b.path("fetch/Dockerfile"), []byte(fetchDockerfile), 0o644); err != nil {
		return err
	}
	ca, err := os.ReadFile(b.path("ca.pem"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.path("fetch/ca.pem"), ca, 0o644); err != nil {
		return err
	}
	if err := b.memory(tools, up.Flags); err != nil {
		return err
	}
	if err := b.replay(tools, up.Flags); err != nil {
		return err
	}
	port := func(addr string) string { return addr[strings.LastIndex(addr, ":"):] }
	for _, c := range []struct {
		name, base, command, url string
		rounds                   int
		empty                    bool    // the store has nothing of it
		direct, proxy            float64 // the goals; 0 for none: of a link, which nobody is ahead of, and of a client that looks at nothing, which takes less than hashing
	}{
		{"400 MiB over HTTPS, first time", tools, linked, "https://bench.test", 4, true, directRatio, 0},
		{"400 MiB over HTTP, first time", tools, linked, "http://bench.test", 4, true, directRatio, 0},
		{"400 MiB over HTTPS", tools, linked, "https://bench.test", 4, false, directRatio, 0},
		{"400 MiB over HTTP", tools, linked, "http://bench.test", 4, false, directRatio, 0},
		{"loopback, HTTPS, first time", tools, download, "https://bench.test", 6, true, directRatio, proxyRatio},
		{"loopback, HTTP, first time", tools, download, "http://bench.test", 6, true, directRatio, proxyRatio},
		{"loopback, HTTPS", tools, download, "https://bench.test", 6, false, directRatio, proxyRatio},
		{"loopback, HTTP", tools, download, "http://bench.test", 6, false, directRatio, proxyRatio},
		{"loopback, HTTPS, thrown away", tools, thrown, "https://bench.test", 4, false, 0, proxyRatio},
		{"loopback, HTTP, thrown away", tools, thrown, "http://bench.test", 4, false, 0, proxyRatio},
		{"300 small GETs", tools, "curl -fsS $VIA -o /dev/null $URL/small/[1-300]", "https://bench.test", 6, false, directRatio, proxyRatio},
		{"300 GETs, a process each", tools, "for i in $(seq 300); do curl -fsS $VIA -o /dev/null $URL/small/$i || exit 1; done", "http://bench.test", 6, false, directRatio, proxyRatio},
		{"apt-get", b.base, aptCommand, "", 6, false, directRatio, proxyRatio},
	} {
		server, reach := up.HTTP, c.url
		if strings.HasPrefix(c.url, "https:") {
			server = up.HTTPS
		}
		if c.url != "" {
			reach = c.url + port(server)
		}
		direct := "--cacert /bundle.pem --connect-to ::" + server
		three := []func() (fetched, error){
			func() (fetched, error) {
				flags := up.Flags
				if c.empty {
					store := b.path("new-store")
					defer os.RemoveAll(store)
					flags = append(slices.Clone(flags), "--store", store)
				}
				return b.waxsealFetch(c.base, c.command, c.url, flags)
			},
			func() (fetched, error) {
				return b.waxsealFetch(c.base, c.command, c.url, []string{"--network", "host", "--allow", "network.host", "--build-arg", "VIA=" + direct})
			},
			func() (fetched, error) { return b.buildkitFetch(addr, c.base, c.command, reach) },
		}
		taken := make([][]fetched, len(three))
		for round := range c.rounds {
			for i, f := range three {
				one, err := f()
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				// The first round fills caches of files, and of TLS.
				if round > 0 {
					taken[i] = append(taken[i], one)
				}
			}
		}
		m := make([]fetched, len(three))
		for i := range taken {
			m[i] = fetched{middle(taken[i], func(f fetched) time.Duration { return f.build }), middle(taken[i], func(f fetched) time.Duration { return f.step })}
		}
		build, step, proxy := float64(m[0].build)/float64(m[1].build), float64(m[0].step)/float64(m[1].step), float64(m[0].step)/float64(m[2].step)
		b.report(c.name+", build", fmt.Sprintf("direct (%v : %v)", ms(m[0].build), ms(m[1].build)), c.direct, build)
		b.report(c.name+", step alone", fmt.Sprintf("direct (%v : %v)", ms(m[0].step), ms(m[1].step)), 0, step)
		b.report(c.name+", step", fmt.Sprintf("BuildKit's proxy (%v : %v; build %v : %v)", ms(m[0].step), ms(m[2].step), ms(m[0].build), ms(m[2].build)), c.proxy, proxy)
	}
	return nil
}

// A download as an install does it, from this machine and over a link, and one
// that nobody looks at.
const (
	download = "curl -fsS $VIA -o /big $URL/bytes/400M && rm /big"
	linked   = "curl -fsS $VIA -o /big $URL/link/400M && rm /big"
	thrown   = "curl -fsS $VIA -o /dev/null $URL/bytes/400M"
)

// aptCommand installs some thirty packages from the machine's own mirror.
const aptCommand = "apt-get update -qq && apt-get install -qq --no-install-recommends --yes python3 git curl >/dev/null"

func middle(all []fetched, of func(fetched) time.Duration) time.Duration {
	samples := make([]sample, len(all))
	for i, f := range all {
		samples[i].Wall = of(f)
	}
	return median(samples, func(s sample) time.Duration { return s.Wall })
}

// fetch runs a build and reads the step's own time from its progress.
func (b *bench) fetch(program string, args ...string) (fetched, error) {
	start := time.Now()
	cmd := exec.CommandContext(b.ctx, program, args...)
	cmd.Env, cmd.Dir = b.env, b.dir
	out, err := cmd.CombinedOutput()
	wall := time.Since(start)
	if err != nil {
		return fetched{}, fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), strings.Join(args, " "), err, out)
	}
	took := regexp.MustCompile(`step took (\d+) us`).FindSubmatch(out)
	if took == nil {
		return fetched{}, fmt.Errorf("%s: the step did not run\n%s", filepath.Base(program), out)
	}
	us, err := strconv.Atoi(string(took[1]))
	return fetched{wall, time.Duration(us) * time.Microsecond}, err
}

func (b *bench) waxsealFetch(base, command, url string, flags []string) (fetched, error) {
	return b.fetch(b.bin, append([]string{
		"build", "--unsigned", "--sbom", "none", "--progress", "plain", "--no-cache", "--lock", b.path("fetch.lock"), "--build-context", "base=oci:" + base,
		"--build-arg", "COMMAND=" + command, "--build-arg", "URL=" + url, "--output", "type=oci,tar=false,dest=" + b.path("fetched"), b.path("fetch"),
	}, flags...)...)
}

func (b *bench) buildkitFetch(addr, base, command, url string) (fetched, error) {
	digest, err := onlyDigest(base)
	if err != nil {
		return fetched{}, err
	}
	return b.fetch(b.ctl, "--addr", addr, "build", "--progress", "plain", "--no-cache", "--proxy-network", "--frontend", "dockerfile.v0",
		"--local", "context="+b.path("fetch"), "--local", "dockerfile="+b.path("fetch"),
		"--oci-layout", "base="+base, "--opt", "context:base=oci-layout://base@"+digest,
		"--opt", "build-arg:COMMAND="+command, "--opt", "build-arg:URL="+url, "--output", "type=oci,tar=false,dest="+b.path("fetched-buildkit"))
}

// startProxyBuildKit starts a BuildKit that finds bench.test and trusts it.
func (b *bench) startProxyBuildKit() (stop func(), addr string, err error) {
	hosts := b.path("hosts")
	if err := os.WriteFile(hosts, []byte("127.0.0.1 localhost bench.test\n"), 0o644); err != nil {
		return nil, "", err
	}
	// It reads the bundle and the file of hosts when it first needs them.
	system, err := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	if err != nil {
		return nil, "", err
	}
	ours, err := os.ReadFile(b.path("ca.pem"))
	if err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(b.path("bundle.pem"), append(system, ours...), 0o644); err != nil {
		return nil, "", err
	}
	return b.startBuildKit("proxy", []string{"SSL_CERT_FILE=" + b.path("bundle.pem")},
		"unshare", "--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts)
}

// memory holds the engine's peak while large bodies pass against its peak when
// a small one does.
func (b *bench) memory(base string, flags []string) error {
	peak := func(size string) (int64, error) {
		done := make(chan struct{})
		var most int64
		var watching sync.WaitGroup
		watching.Go(func() { most = b.watchEngine(done) })
		_, err := b.waxsealFetch(base, "curl -fsS -o /dev/null $URL/bytes/"+size, "https://bench.test", flags)
		close(done)
		watching.Wait()
		if err == nil && most == 0 {
			err = fmt.Errorf("no engine was seen")
		}
		return most, err
	}
	idle, err := peak("1K")
	if err != nil {
		return err
	}
	for _, size := range []string{"400M", "1G"} {
		most, err := peak(size)
		if err != nil {
			return err
		}
		b.judge("engine memory, body of "+size, fmt.Sprintf("%+.1f MiB over a body of 1K (%s : %s, budget %s)", float64(most-idle)/(1<<20), mib(most), mib(idle), mib(memoryExtra)), most-idle <= memoryExtra)
	}
	return nil
}

// watchEngine returns the largest peak of memory of a waxseal-engine that works
// on this bench's cache, until done.
func (b *bench) watchEngine(done <-chan struct{}) (most int64) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-done:
			return most
		case <-tick.C:
		}
		processes, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, exe := range processes {
			if to, _ := os.Readlink(exe); filepath.Base(to) != "waxseal-engine" {
				continue
			}
			dir := filepath.Dir(exe)
			env, _ := os.ReadFile(dir + "/cmdline")
			status, _ := os.ReadFile(dir + "/status")
			if !strings.Contains(string(env), b.dir) {
				continue
			}
			if m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status); m != nil {
				kib, _ := strconv.ParseInt(string(m[1]), 10, 64)
				most = max(most, kib<<10)
			}
		}
	}
}

// replay compares builds that fill a store with the same ones offline.
func (b *bench) replay(tools string, flags []string) error {
	// apt-get's own work takes most of its time: over a line of 100 Mbit/s, as
	// an office has, and as fast as the mirror is.
	line, stop, err := testkit.NewLine(100e6 / 8)
	if err != nil {
		return err
	}
	defer stop()
	for _, c := range []struct {
		name, base, command, url string
		env                      []string
	}{
		{"400 MiB over HTTPS, offline", tools, linked, "https://bench.test", nil},
		{"400 MiB over HTTP, offline", tools, linked, "http://bench.test", nil},
		{"apt-get at 100 Mbit/s, offline", b.base, aptCommand, "", []string{"http_proxy=http://" + line}},
		{"apt-get, offline", b.base, aptCommand, "", nil},
		{"loopback, HTTPS, offline", tools, download, "https://bench.test", nil},
		{"loopback, HTTP, offline", tools, download, "http://bench.test", nil},
	} {
		env := b.env
		b.env = append(slices.Clip(env), c.env...)
		m := make([][]fetched, 2)
		for round := range 4 {
			store := b.path("replayed-store")
			for i, mode := range []string{"record", "offline"} {
				one, err := b.waxsealFetch(c.base, c.command, c.url, append([]string{"--inputs", mode, "--store", store}, flags...))
				if err != nil {
					return fmt.Errorf("%s: %w", c.name, err)
				}
				if round > 0 {
					m[i] = append(m[i], one)
				}
			}
			if err := os.RemoveAll(store); err != nil {
				return err
			}
		}
		b.env = env
		of := func(f fetched) time.Duration { return f.build }
		recorded, offline := middle(m[0], of), middle(m[1], of)
		b.report(c.name, fmt.Sprintf("the recorded build (%v : %v)", ms(offline), ms(recorded)), replayRatio, float64(offline)/float64(recorded))
	}
	return nil
}
