package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	containerdoci "github.com/containerd/containerd/v2/pkg/oci"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/egress"
)

// Limits of a step, so that one that runs wild does not take the machine: how
// many processes it may have, how much of the machine's memory (in percent),
// and how much sooner than others it is killed when memory runs out.
const (
	maxStepPids   = 8192
	stepMemory    = 90
	stepOOMAdjust = 500
)

// watched is the network of a step that asks for none in particular: a
// namespace in which nothing but the gateway is.
type watched struct{ rec *recorder }

func (p *watched) Close() error { return nil }

func (p *watched) New(ctx context.Context, _ string, _ network.NamespaceOptions) (network.Namespace, error) {
	run := stepOf(ctx)
	if run == nil {
		return nil, errors.New("making a network: only the steps of a build have one")
	}
	w, err := p.rec.watch()
	if err != nil {
		return nil, err
	}
	run.mu.Lock()
	hosts := run.hosts
	run.mu.Unlock()
	step, err := w.gateway.Open(ctx, egress.StepOptions{
		Name: run.desc.Name, Stage: run.desc.Stage, Platform: run.desc.Platform,
		Secrets: run.secrets, Hosts: hosts,
	})
	if err != nil {
		return nil, fmt.Errorf("opening the network of %q: %w", run.name, err)
	}
	run.mu.Lock()
	run.step = step
	run.mu.Unlock()
	return &watchedNamespace{run: run, step: step, limits: p.rec.limits()}, nil
}

type watchedNamespace struct {
	run    *stepRun
	step   *egress.Step
	limits limits
}

// Set puts the step into the namespace and its trust beside its files. It is
// called when the root is mounted and before the step's own mounts are listed.
func (n *watchedNamespace) Set(s *specs.Spec) error {
	n.limits.set(s)
	n.run.closeSockets(s)
	if err := containerdoci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: n.step.NetNS()})(nil, nil, nil, s); err != nil {
		return err
	}
	n.run.mu.Lock()
	path := n.run.rootfs
	n.run.mu.Unlock()
	root, err := os.OpenRoot(path)
	if err != nil {
		return fmt.Errorf("opening the step's root: %w", err)
	}
	defer root.Close()
	files, err := n.step.Files(root, s.Process.Env)
	if err != nil {
		return err
	}
	s.Process.Env = n.step.Env(s.Process.Env)
	s.Mounts = append(s.Mounts, specs.Mount{
		Destination: egress.MountPoint, Type: "bind", Source: files,
		Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"},
	})
	return nil
}

// Close may come late, when the container is taken down: the step is closed
// and its record taken as soon as its processes are gone.
func (n *watchedNamespace) Close() error {
	_, err := n.step.Close()
	return err
}

func (n *watchedNamespace) Sample() (*resourcestypes.NetworkSample, error) { return nil, nil }

// bridled is a provider of BuildKit's own whose steps get our limits.
type bridled struct {
	network.Provider
	rec *recorder
}

func (p *bridled) New(ctx context.Context, hostname string, opt network.NamespaceOptions) (network.Namespace, error) {
	ns, err := p.Provider.New(ctx, hostname, opt)
	if err != nil {
		return nil, err
	}
	run := stepOf(ctx)
	if run == nil {
		return nil, errors.Join(errors.New("making a network: only the steps of a build have one"), ns.Close())
	}
	return &bridledNamespace{ns, run, p.rec.limits()}, nil
}

type bridledNamespace struct {
	network.Namespace
	run    *stepRun
	limits limits
}

func (n *bridledNamespace) Set(s *specs.Spec) error {
	n.limits.set(s)
	n.run.closeSockets(s)
	return n.Namespace.Set(s)
}

// closeSockets closes them to a step, or says that they were open.
func (run *stepRun) closeSockets(s *specs.Spec) {
	if run.insecure {
		return // which is a gap, and has no filter
	}
	if why := closeSockets(s, run.desc.Platform); why != "" {
		run.gap(attestations.GapInsecure, why)
	}
}

// closeSockets takes from a step the one call by which a process of 32 bits,
// and any process of an x86 machine can be one, opens sockets past the filter
// of their families: AF_VSOCK leads to the machine's hypervisor out of every
// network namespace. What is left open is returned in words.
func closeSockets(s *specs.Spec, platform string) string {
	if s.Linux == nil || s.Linux.Seccomp == nil {
		return "the kernel has no seccomp: the step could open sockets that no network namespace holds (AF_VSOCK)"
	}
	if platform == "linux/386" || platform == "linux/s390x" {
		return "programs of " + platform + " have sockets by socketcall alone, which no filter can look into: AF_VSOCK was open to the step"
	}
	for i := range s.Linux.Seccomp.Syscalls {
		r := &s.Linux.Seccomp.Syscalls[i]
		r.Names = slices.DeleteFunc(slices.Clone(r.Names), func(name string) bool { return name == "socketcall" })
	}
	s.Linux.Seccomp.Syscalls = slices.DeleteFunc(s.Linux.Seccomp.Syscalls, func(r specs.LinuxSyscall) bool { return len(r.Names) == 0 })
	// libseccomp makes of every rule for socket(2) one for socketcall, too; a
	// rule for all of it comes before those, if its answer is not the default.
	none := uint(unix.ENOSYS)
	s.Linux.Seccomp.Syscalls = append(s.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &none})
	return ""
}

// networks are the networks that steps can have.
func (r *recorder) networks() map[pb.NetMode]network.Provider {
	return map[pb.NetMode]network.Provider{
		pb.NetMode_UNSET: &watched{r},
		pb.NetMode_HOST:  &bridled{network.NewHostProvider(), r},
		pb.NetMode_NONE:  &bridled{network.NewNoneProvider(), r},
	}
}

// limits are what the kernel here can hold a step to; zero is no limit.
type limits struct{ pids, memory int64 }

func (l limits) set(s *specs.Spec) {
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	res := s.Linux.Resources
	if l.pids > 0 && res.Pids == nil {
		res.Pids = &specs.LinuxPids{Limit: &l.pids}
	}
	if l.memory > 0 && (res.Memory == nil || res.Memory.Limit == nil) {
		if res.Memory == nil {
			res.Memory = &specs.LinuxMemory{}
		}
		res.Memory.Limit = &l.memory
	}
}

// findLimits looks which controllers there are, of either version of control
// groups, and how much memory the machine has.
func findLimits() limits {
	var l limits
	controllers := cgroupControllers()
	if slices.Contains(controllers, "pids") {
		l.pids = maxStepPids
	}
	if slices.Contains(controllers, "memory") {
		l.memory = memoryTotal() / 100 * stepMemory
	}
	return l
}

func cgroupControllers() []string {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var v1, v2 []string
	for line := range strings.Lines(string(mounts)) {
		head, tail, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 5 || len(t) < 3 {
			continue
		}
		switch t[0] {
		case "cgroup":
			v1 = append(v1, strings.Split(t[2], ",")...)
		case "cgroup2":
			raw, err := os.ReadFile(filepath.Join(f[4], "cgroup.controllers"))
			if err == nil && f[4] == "/sys/fs/cgroup" {
				v2 = strings.Fields(string(raw))
			}
		}
	}
	return append(v1, v2...)
}

func memoryTotal() int64 {
	raw, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func lazyLimits() func() limits { return sync.OnceValue(findLimits) }
