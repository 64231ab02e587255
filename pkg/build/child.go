package build

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// engineName is the engine's program, found beside our own or on PATH.
const engineName = "waxseal-engine"

// maxTail is how much of the engine's last words an error text can hold.
const maxTail = 4 << 10

// window is how many bytes may be on their way between us and the engine: the
// context goes there and the image comes back through one socket pair.
const window = 8 << 20

// closeGrace is how long a closing engine may take before it is killed.
const closeGrace = 10 * time.Second

// EngineOptions configures StartEngine; CacheDir must be given.
type EngineOptions struct {
	// CacheDir is the build cache. One engine at a time uses it; others wait.
	CacheDir string
	// Stderr gets what the engine logs, line by line; nil drops it.
	Stderr io.Writer
	// Notify is told in words when there is something to wait for.
	Notify func(string)
	// Entitlements that builds may ask for: network.host, security.insecure.
	Entitlements []string
	// InsecureRegistries are hosts from which base images may come over plain
	// HTTP or unverified TLS.
	InsecureRegistries []string
	// Program is the engine's program; default the one beside our own, else
	// the one on PATH.
	Program string
	// Inputs is what the engine's gateway lets through and keeps. The zero
	// value records everything and keeps no bytes.
	Inputs InputsPlan

	clients []*os.File // the two sockets that Inputs.Clients come to, and with its Daemon where we answer for that
}

// InputsPlan tells the engine how to treat what reaches a build from outside.
type InputsPlan struct {
	Mode       string   `json:"mode,omitempty"`       // attestations.InputsRecord and so on; "" records
	Lock       []byte   `json:"lock,omitempty"`       // the lock file in use, for locked and offline
	Store      string   `json:"store,omitempty"`      // folder of the bytes; "" keeps none
	AllowHosts []string `json:"allowHosts,omitempty"` // patterns of hosts that steps may reach; none: all
	UpstreamCA []byte   `json:"upstreamCA,omitempty"` // PEM, trusted besides the system's roots
	// Upstreams maps "name" or "name:port" to the address to dial instead.
	Upstreams map[string]string `json:"upstreams,omitempty"`
	Clients   *clientsPlan      `json:"clients,omitempty"`
	// PlainLayers has layers clamped and compressed as BuildKit does it.
	PlainLayers bool `json:"plainLayers,omitempty"`
	// Unopened says why steps cannot be given the gateway's certificate: TLS is
	// then passed on unopened, which leaves a gap. "" opens it.
	Unopened string `json:"unopened,omitempty"`
}

// clientsPlan is what goes for builds that other programs ask for.
type clientsPlan struct {
	SBOM   []string `json:"sbom,omitempty"`
	Daemon bool     `json:"daemon,omitempty"`
}

// EngineInputs is what the engine saw reach one image of a build.
type EngineInputs struct {
	Steps   []attestations.InputStep   `json:"steps"`
	Gaps    []attestations.InputGap    `json:"gaps,omitempty"`
	Sources []attestations.InputSource `json:"sources"`
	Gateway attestations.InputGateway  `json:"gateway"`
	Unkept  []string                   `json:"unkept,omitempty"` // what the store could not be given, and why
}

// Engine is a running engine child. Close ends it; nothing it started
// outlives it, nor it us.
type Engine struct {
	cmd   *exec.Cmd
	cache string
	lock  *os.File // the cache's lock; the child holds it too

	control  net.Conn
	sideConn net.Conn
	side     *http.Client
	lifetime *os.File
	tail     *tail

	done   chan struct{} // closed when the process is gone
	exit   error         // set before done is closed
	closed sync.Once
	asked  chan struct{} // closed when we asked it to end
}

// EngineInfo is what the engine says about itself.
type EngineInfo struct {
	Engine      string `json:"engine"`
	BuildKit    string `json:"buildkit"`
	Dockerfile  string `json:"dockerfile,omitempty"`
	Runc        string `json:"runc"`
	Kernel      string `json:"kernel"`
	Snapshotter string `json:"snapshotter"`
	Network     string `json:"network"`
	Syft        string `json:"syft"`
}

// EngineError is an error with the way out of it, where one is known.
type EngineError struct {
	Text string
	Way  string

	cause error
}

func (e *EngineError) Error() string { return e.Text }
func (e *EngineError) Unwrap() error { return e.cause }

// Hint returns the way out, or "".
func (e *EngineError) Hint() string { return e.Way }

// StartEngine starts the engine and returns at once, while it gets ready; Dial
// waits for that. It waits only for another engine that uses the same cache,
// and says so through Notify. Cancelling ctx after StartEngine has returned
// does not end the engine: Close does, and so does the death of this process,
// whatever its cause.
func StartEngine(ctx context.Context, opts EngineOptions) (_ *Engine, err error) {
	if opts.CacheDir == "" {
		return nil, errors.New("starting the engine: no cache folder given")
	}
	if os.Geteuid() != 0 {
		return nil, &EngineError{
			Text: "starting the engine: builds need root",
			Way:  "run waxseal build with sudo, or use a running BuildKit with --engine buildkit:ADDRESS",
		}
	}
	program, err := engineProgram(opts.Program)
	if err != nil {
		return nil, err
	}
	cache, err := filepath.Abs(opts.CacheDir)
	if err != nil {
		return nil, fmt.Errorf("finding the build cache: %w", err)
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, &EngineError{Text: fmt.Sprintf("making the build cache: %v", err), Way: "choose another folder with --cache-dir"}
	}
	// The engine knows the folder by one name, whatever links lead there.
	if cache, err = filepath.EvalSymlinks(cache); err != nil {
		return nil, fmt.Errorf("finding the build cache: %w", err)
	}
	lock, err := lockCache(ctx, cache, opts.Notify)
	if err != nil {
		return nil, err
	}
	defer closeOnError(&err, lock)

	control, controlFile, err := socketPair("control channel")
	if err != nil {
		return nil, err
	}
	defer controlFile.Close()
	defer closeOnError(&err, control)
	side, sideFile, err := socketPair("side channel")
	if err != nil {
		return nil, err
	}
	defer sideFile.Close()
	defer closeOnError(&err, side)
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("opening the lifetime pipe: %w", err)
	}
	defer lifeR.Close()
	defer closeOnError(&err, lifeW)
	plan, err := json.Marshal(opts.Inputs)
	if err != nil {
		return nil, fmt.Errorf("writing the plan of the inputs: %w", err)
	}
	planR, planW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("opening the pipe of the plan: %w", err)
	}
	defer planR.Close()
	defer closeOnError(&err, planW)

	args := []string{"serve", "-root", cache}
	if len(opts.Entitlements) > 0 {
		args = append(args, "-allow", strings.Join(opts.Entitlements, ","))
	}
	if len(opts.InsecureRegistries) > 0 {
		args = append(args, "-insecure-registry", strings.Join(opts.InsecureRegistries, ","))
	}
	e := &Engine{
		cache: cache, lock: lock, control: control, sideConn: side, lifetime: lifeW,
		tail:  &tail{next: opts.Stderr},
		done:  make(chan struct{}),
		asked: make(chan struct{}),
	}
	if e.side, err = sideClient(side); err != nil {
		return nil, err
	}
	e.cmd = exec.Command(program, args...)
	// Half of a start is the engine's packages filling their tables: no time to
	// collect garbage. The engine sets the usual value when it is ready.
	e.cmd.Env = append(engineEnv(os.Environ()), "GOGC=400")
	e.cmd.Dir = "/"
	e.cmd.Stderr = e.tail
	e.cmd.Stdout = e.tail
	e.cmd.ExtraFiles = []*os.File{controlFile, sideFile, lifeR, lock, planR} // 3, 4, 5, 6, 7
	e.cmd.ExtraFiles = append(e.cmd.ExtraFiles, opts.clients...)             // 8, 9, 10
	e.cmd.WaitDelay = time.Second
	e.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		// Its own process group: a Ctrl-C on the terminal is ours to answer.
		// No parent-death signal: that one fires when the thread ends that
		// started the child, and it would kill before the steps are undone.
		// The lifetime pipe has neither fault.
		Setpgid: true,
	}
	if err := e.cmd.Start(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return nil, &EngineError{
				Text: fmt.Sprintf("starting the engine: no permission to make namespaces: %v", err),
				Way:  "inside a container, run it privileged; or use a running BuildKit with --engine buildkit:ADDRESS",
			}
		}
		return nil, fmt.Errorf("starting the engine: %w", err)
	}
	go func() {
		// The engine reads it first of all; if it died, that is told elsewhere.
		_, _ = planW.Write(plan)
		planW.Close()
	}()
	go func() {
		e.exit = e.cmd.Wait()
		close(e.done)
	}()
	return e, nil
}

// engineProgram finds the engine.
func engineProgram(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	if p, ok := program(engineName); ok {
		return p, nil
	}
	return "", &EngineError{
		Text: fmt.Sprintf("finding the engine: %s is neither beside waxseal nor on PATH", engineName),
		Way:  "install all programs into one folder (make install), or use a running BuildKit with --engine buildkit:ADDRESS",
	}
}

// program finds one of our own: the one that was built with us comes first.
func program(name string) (string, bool) {
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), name)
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, true
		}
	}
	p, err := exec.LookPath(name)
	return p, err == nil
}

// engineEnv is the engine's whole environment: where programs are, where
// temporary files go, and how to reach the network and whom to trust there.
// Keys, passwords and tokens in ours do not get there.
func engineEnv(environ []string) []string {
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "PATH", "HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR",
			"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "FTP_PROXY",
			"http_proxy", "https_proxy", "no_proxy", "all_proxy", "ftp_proxy":
			env = append(env, kv)
		}
	}
	return env
}

// socketPair returns our end as a connection and the child's as a file.
func socketPair(what string) (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the %s: %w", what, err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), what), os.NewFile(uintptr(fds[1]), what)
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		theirs.Close()
		return nil, nil, fmt.Errorf("opening the %s: %w", what, err)
	}
	return c, theirs, nil
}

func closeOnError(err *error, c io.Closer) {
	if *err != nil {
		c.Close()
	}
}

// errGone is what a second connection gets: there is one, and it is over.
var errGone = errors.New("the engine's connection is closed")

// once hands out c the first time and errGone from then on.
func once(c net.Conn) func() (net.Conn, error) {
	var mu sync.Mutex
	return func() (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if c == nil {
			return nil, errGone
		}
		got := c
		c = nil
		return got, nil
	}
}

// sideClient speaks HTTP/2 without TLS over the one connection: a request that
// is given up does not end it for the others. It greets at once: the other side
// hangs up on who has not within ten seconds of its start.
func sideClient(c net.Conn) (*http.Client, error) {
	one, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(c)
	if err != nil {
		return nil, fmt.Errorf("opening the side channel: %w", err)
	}
	return &http.Client{Transport: one}, nil
}

// Dial waits until the engine is ready and returns a client on its control
// channel. There is one channel: call Dial once, and leave closing the client
// to Close.
func (e *Engine) Dial(ctx context.Context) (*client.Client, error) {
	resp, err := e.get(ctx, "/v1/ready", nil)
	if err != nil {
		return nil, fmt.Errorf("starting the engine: %w", err)
	}
	resp.Body.Close()
	dial := once(e.control)
	c, err := client.New(ctx, "unix:///engine",
		client.WithContextDialer(func(context.Context, string) (net.Conn, error) { return dial() }),
		// An idle client would drop its connection, and there is no second.
		client.WithGRPCDialOption(grpc.WithIdleTimeout(0)),
		client.WithGRPCDialOption(grpc.WithInitialWindowSize(window)),
		client.WithGRPCDialOption(grpc.WithInitialConnWindowSize(window)),
		client.WithGRPCDialOption(grpc.WithWriteBufferSize(256<<10)),
		client.WithGRPCDialOption(grpc.WithReadBufferSize(256<<10)),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to the engine: %w", e.Explain(err))
	}
	return c, nil
}

// Info asks the engine for its versions and what it runs steps with.
func (e *Engine) Info(ctx context.Context) (EngineInfo, error) {
	var info EngineInfo
	resp, err := e.get(ctx, "/v1/info", nil)
	if err != nil {
		return info, fmt.Errorf("asking the engine about itself: %w", err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&info); err != nil {
		return info, fmt.Errorf("asking the engine about itself: %w", e.Explain(err))
	}
	return info, nil
}

// SBOM returns the document of one platform of a build, which must have been
// solved with the frontend attribute "waxseal:sbom" naming the format. It waits
// until the document is there. The reader ends with an error beyond
// attest.MaxSBOM bytes.
func (e *Engine) SBOM(ctx context.Context, buildRef, platform, format string) (io.ReadCloser, error) {
	resp, err := e.get(ctx, "/v1/sbom", url.Values{"ref": {buildRef}, "platform": {platform}, "format": {format}})
	if err != nil {
		return nil, fmt.Errorf("getting the %s SBOM of %s: %w", format, platform, err)
	}
	return &bounded{r: resp.Body, left: attest.MaxSBOM}, nil
}

// Inputs returns what reached one platform of a build that was solved under
// buildRef. It waits until the solve is over and all bytes that were kept are
// on the disk. platform may be empty where the build has one.
func (e *Engine) Inputs(ctx context.Context, buildRef, platform string) (*EngineInputs, error) {
	resp, err := e.get(ctx, "/v1/inputs", url.Values{"ref": {buildRef}, "platform": {platform}})
	if err != nil {
		return nil, fmt.Errorf("getting the inputs of %s: %w", platform, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, attest.MaxStatement+1))
	if err != nil {
		return nil, fmt.Errorf("getting the inputs of %s: %w", platform, e.Explain(err))
	}
	if len(raw) > attest.MaxStatement {
		return nil, fmt.Errorf("getting the inputs of %s: over the limit of %d bytes", platform, attest.MaxStatement)
	}
	in := &EngineInputs{}
	if err := json.Unmarshal(raw, in); err != nil {
		return nil, fmt.Errorf("reading the inputs of %s: %w", platform, err)
	}
	return in, nil
}

// solves returns the builds that other programs asked for, in the order in
// which they began.
func (e *Engine) solves(ctx context.Context) ([]clientSolve, error) {
	resp, err := e.get(ctx, "/v1/solves", nil)
	if err != nil {
		return nil, fmt.Errorf("asking the engine for the command's builds: %w", err)
	}
	defer resp.Body.Close()
	raw, err := readAtMost(resp.Body, attest.MaxStatement)
	if err != nil {
		return nil, fmt.Errorf("asking the engine for the command's builds: %w", e.Explain(err))
	}
	var all []clientSolve
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, fmt.Errorf("reading the command's builds: %w", err)
	}
	return all, nil
}

func (e *Engine) get(ctx context.Context, path string, q url.Values) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "engine", Path: path, RawQuery: q.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.side.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, e.Explain(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	var p struct{ Error, Hint string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&p); err != nil || p.Error == "" {
		return nil, fmt.Errorf("the engine answered %s", resp.Status)
	}
	return nil, &EngineError{Text: p.Error, Way: p.Hint}
}

// Explain returns err with the way out where it knows one, or when the engine
// has died, why: callers pass what their client's calls return, because a dead
// engine looks like a connection that ended. The error it is given stays in
// the chain, and a cancelled context is left as it is.
func (e *Engine) Explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	select {
	case <-e.asked:
		return err
	default:
	}
	// It crossed a wire: only the text is left of the error. Of the store's disk it
	// says by itself what to do.
	if strings.Contains(err.Error(), unix.ENOSPC.Error()) && !strings.Contains(err.Error(), signRefused) {
		way := fmt.Sprintf("a disk is full: make room where the result goes, or for the steps; the build cache is %s (it is only a cache; --cache-dir chooses another)", e.cache)
		if strings.Contains(err.Error(), e.cache+"/") {
			way = fmt.Sprintf("the disk of the build cache is full; free space there or remove %s (it is only a cache), or choose another with --cache-dir", e.cache)
		}
		return &EngineError{Text: err.Error(), Way: way, cause: err}
	}
	// A connection ends a moment before the process is reaped.
	if connectionLost(err) {
		select {
		case <-e.done:
		case <-time.After(2 * time.Second):
		}
	}
	select {
	case <-e.done:
	default:
		return err
	}
	text := "the engine ended unexpectedly"
	if e.exit != nil {
		text += " (" + e.exit.Error() + ")"
	}
	way := ""
	if st, ok := e.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && st.Signaled() && st.Signal() == syscall.SIGKILL {
		way = "somebody killed it, or the kernel did for lack of memory (see dmesg); the build can be repeated, finished steps are cached"
	}
	if t := e.tail.text(); t != "" {
		text += "; its last words:\n" + t
	}
	return &EngineError{Text: text, Way: way, cause: err}
}

func connectionLost(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errGone) ||
		errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return true
	}
	// gRPC turns them into text.
	s := err.Error()
	for _, sign := range []string{"EOF", "connection reset", "broken pipe", "transport is closing", "connection is closed", "client conn ", "Unavailable", "error reading from server", "closing transport", "lost"} {
		if strings.Contains(s, sign) {
			return true
		}
	}
	return false
}

// end tells the engine to end, and does not wait for it: nothing is asked of it
// from now on.
func (e *Engine) end() {
	e.closed.Do(func() {
		close(e.asked)
		e.lifetime.Close()
	})
}

// Close ends the engine: running steps are killed and undone, and if that
// takes too long the engine is killed with everything it started. It returns
// when the process is gone, and may be called more than once.
func (e *Engine) Close() error {
	e.end()
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case <-e.done:
	case <-t.C:
		_ = e.cmd.Process.Kill()
		<-e.done
	}
	e.sideConn.Close()
	e.control.Close()
	e.lock.Close()
	var ee *exec.ExitError
	if e.exit != nil && !errors.As(e.exit, &ee) && !errors.Is(e.exit, exec.ErrWaitDelay) {
		return fmt.Errorf("ending the engine: %w", e.exit)
	}
	return nil
}

// lockCache takes the lock of a build cache, waiting for whoever holds it.
func lockCache(ctx context.Context, cache string, notify func(string)) (_ *os.File, err error) {
	f, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, &EngineError{Text: fmt.Sprintf("locking the build cache: %v", err), Way: "choose another folder with --cache-dir"}
	}
	defer closeOnError(&err, f)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	told := ""
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("locking the build cache %q: %w", cache, err)
		}
		holder := make([]byte, 256)
		n, _ := f.ReadAt(holder, 0)
		if h := string(bytes.TrimSpace(holder[:n])); notify != nil && (told == "" || h != told) {
			told = h
			notify(fmt.Sprintf("waiting for another build that uses the cache %s (%s)", cache, h))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for the build cache %q: %w", cache, context.Cause(ctx))
		}
	}
	// For those who wait; nothing depends on it.
	if err := f.Truncate(0); err == nil {
		_, _ = f.WriteAt(fmt.Appendf(nil, "process %d, since %s\n", os.Getpid(), time.Now().Format(time.TimeOnly)), 0)
	}
	return f, nil
}

// tail passes on what is written to it and remembers the end.
type tail struct {
	next io.Writer

	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - maxTail; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	t.mu.Unlock()
	if t.next != nil {
		// A log that cannot be written must not stop the engine.
		_, _ = t.next.Write(p)
	}
	return len(p), nil
}

func (t *tail) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.buf))
}

// bounded fails where more than left bytes come.
type bounded struct {
	r    io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("reading an SBOM: over the limit of %d bytes", attest.MaxSBOM)
	}
	return n, err
}

func (b *bounded) Close() error { return b.r.Close() }
