package testkit

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"
)

// Registry is a registry, on loopback unless it was told another. Addr is its
// "127.0.0.1:port".
type Registry struct {
	Addr  string
	Close func()
}

// RegistryOptions configures NewRegistry; the zero value is a registry in
// memory that has the referrers API.
type RegistryOptions struct {
	// NoReferrers leaves the referrers API out, as registries before OCI 1.1 do.
	NoReferrers bool
	// Host is the address to listen at; "" is loopback.
	Host string
	// Dir keeps blobs in a folder and not in memory.
	Dir string
	// Faults, where set, is asked about every request first.
	Faults *Faults
	// Around, where set, is put around the registry, outside of Faults.
	Around func(http.Handler) http.Handler
	// Log receives one line a request; nil drops them.
	Log io.Writer
}

// NewRegistry starts go-containerregistry's registry.
func NewRegistry(opts RegistryOptions) (*Registry, error) {
	out := opts.Log
	if out == nil {
		out = io.Discard
	}
	with := []registry.Option{registry.WithReferrersSupport(!opts.NoReferrers), registry.Logger(log.New(out, "", 0))}
	if opts.Dir != "" {
		with = append(with, registry.WithBlobHandler(registry.NewDiskBlobHandler(opts.Dir)))
	}
	handler := registry.New(with...)
	if opts.Faults != nil {
		handler = opts.Faults.Around(handler)
	}
	if opts.Around != nil {
		handler = opts.Around(handler)
	}
	return serve(handler, cmp.Or(opts.Host, "127.0.0.1"))
}

// serve runs handler on a free port of host until Close.
func serve(handler http.Handler, host string) (*Registry, error) {
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(ln)
	}()
	return &Registry{Addr: ln.Addr().String(), Close: func() {
		cancel() // ends a handler that hangs on purpose
		server.Close()
		<-done
	}}, nil
}

// StartDistribution starts distribution's registry, the program at path, with
// its data in dir. It has no referrers API. Close ends it; so does the death of
// this process.
func StartDistribution(path, dir string) (*Registry, error) {
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: %q}\n  delete: {enabled: true}\nhttp: {addr: \"127.0.0.1:0\"}\n", filepath.Join(dir, "data"))
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return nil, err
	}
	child := exec.Command(path, "serve", config)
	child.Env = []string{"OTEL_TRACES_EXPORTER=none", "PATH=" + os.Getenv("PATH")}
	found, stop, err := startUntil(child, regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`))
	if err != nil {
		return nil, fmt.Errorf("starting distribution's registry: %w", err)
	}
	return &Registry{Addr: found[1], Close: stop}, nil
}

// startLeashed starts a child that ends with this process. The kernel sends the
// signal when the thread ends that started it, and threads that have been in
// another network do end: so that one is kept for as long as the child runs.
func startLeashed(child *exec.Cmd) error {
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := child.Start(); err != nil {
			started <- err
			return
		}
		pid := child.Process.Pid
		started <- nil
		// Not reaped: that is for whoever waits for it.
		for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		}
	}()
	return <-started
}

// startUntil starts child and waits until a line that it writes to standard
// error matches ready, whose submatches it returns. stop kills it; so does the
// death of this process.
func startUntil(child *exec.Cmd, ready *regexp.Regexp) (found []string, stop func(), err error) {
	stderr, err := child.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := startLeashed(child); err != nil {
		return nil, nil, err
	}
	match := make(chan []string, 1)
	drained := make(chan struct{})
	var said strings.Builder
	go func() {
		defer close(drained)
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if m := ready.FindStringSubmatch(lines.Text()); m != nil {
				match <- m
				break
			}
			said.WriteString(lines.Text() + "\n")
		}
		io.Copy(io.Discard, stderr)
	}()
	stop = func() {
		child.Process.Kill()
		<-drained
		child.Wait()
	}
	select {
	case m := <-match:
		return m, stop, nil
	case <-drained:
		child.Wait()
		return nil, nil, errors.New("it ended: " + said.String())
	case <-time.After(time.Minute):
		stop()
		return nil, nil, errors.New("not ready after a minute: " + said.String())
	}
}
