package build

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
)

// helperCache makes this test program a control process that builds in the
// named cache until it is killed.
const helperCache = "WAXSEAL_TEST_CONTROL_CACHE"

// longStep is a build whose step never ends, and which no other test runs.
func longStep(base string) buildOf {
	return buildOf{dockerfile: "FROM base\nRUN echo started && sleep 31536001\n", base: base}
}

// TestControlProcess is no test: it is what the tests below kill.
func TestControlProcess(t *testing.T) {
	cache := os.Getenv(helperCache)
	if cache == "" {
		return
	}
	e := startEngine(t, EngineOptions{CacheDir: cache})
	fmt.Printf("engine %d\n", e.cmd.Process.Pid)
	b := longStep(tinyBase(t))
	b.status = func(st *client.SolveStatus) {
		for _, l := range st.Logs {
			if strings.Contains(string(l.Data), "started") {
				fmt.Println("started")
			}
		}
	}
	_, err := b.solve(t.Context(), t, dial(t, e))
	t.Fatalf("the endless build ended: %v", err)
}

// control starts TestControlProcess, returns it and the engine's process once
// its output has come to the given word.
func control(t *testing.T, cache, until string) (*exec.Cmd, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestControlProcess$")
	cmd.Env = append(os.Environ(), helperCache+"="+cache, helperEngine+"="+needEngine(t))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	engine := 0
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if word == "engine" {
			if engine, err = strconv.Atoi(rest); err != nil {
				t.Fatal(err)
			}
		}
		if word == until {
			return cmd, engine
		}
		t.Logf("control: %s", lines.Text())
	}
	t.Fatalf("the control process ended before %q", until)
	return nil, 0
}

// leftovers says what of the engine and its steps is still on the machine.
func leftovers(t *testing.T, engine int, cache string) []string {
	t.Helper()
	var left []string
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		words := strings.ReplaceAll(string(cmdline), "\x00", " ")
		if strings.Contains(words, "sleep 31536001") || strings.Contains(words, cache) || filepath.Base(p) == strconv.Itoa(engine) {
			left = append(left, "process "+filepath.Base(p)+": "+words)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, cache) {
			left = append(left, "mount "+line)
		}
	}
	states, _ := filepath.Glob("/run/runc/*")
	for _, s := range states {
		if raw, err := os.ReadFile(filepath.Join(s, "state.json")); err == nil && strings.Contains(string(raw), cache) {
			left = append(left, "runc state "+s)
		}
	}
	return append(left, controlGroups(cache)...)
}

// controlGroups lists the control groups of steps of a cache, whose folder the
// engine names their parent after.
func controlGroups(cache string) []string {
	sum := sha256.Sum256([]byte(cache))
	parent := "waxseal-" + hex.EncodeToString(sum[:6])
	var left []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + parent)
		for _, p := range found {
			left = append(left, "control group "+p)
		}
	}
	return left
}

// gone waits until nothing is left; within is generous, because a machine under
// test has other things to do.
func gone(t *testing.T, engine int, cache string) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		left := leftovers(t, engine, cache)
		if len(left) == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("still there:\n%s", strings.Join(left, "\n"))
		}
	}
}

func TestKilledControlLeavesNothing(t *testing.T) {
	for _, until := range []string{"engine", "started"} {
		t.Run(until, func(t *testing.T) {
			cache := t.TempDir()
			cmd, engine := control(t, cache, until)
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			cmd.Wait()
			gone(t, engine, cache)
		})
	}
}

func TestKilledTogetherLeavesNothingThatStays(t *testing.T) {
	cache := t.TempDir()
	cmd, engine := control(t, cache, "started")
	unix.Kill(engine, unix.SIGKILL)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// Nobody was left to remove the step's empty control group: the next
	// engine on this cache does.
	e := startEngine(t, EngineOptions{CacheDir: cache})
	dial(t, e)
	if left := controlGroups(cache); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, engine, cache)
}

// running starts an endless build and calls then once its step runs.
func running(t *testing.T, e *Engine, then func(cancel context.CancelFunc)) error {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	b := longStep(tinyBase(t))
	b.status = func(st *client.SolveStatus) {
		for _, l := range st.Logs {
			if strings.Contains(string(l.Data), "started") {
				then(cancel)
			}
		}
	}
	_, err := b.solve(ctx, t, dial(t, e))
	if err == nil {
		t.Fatal("the endless build ended well")
	}
	return err
}

func TestKilledEngineIsExplained(t *testing.T) {
	cache := t.TempDir()
	e := startEngine(t, EngineOptions{CacheDir: cache})
	err := running(t, e, func(context.CancelFunc) { e.cmd.Process.Kill() })
	wantError(t, e.Explain(err), "the engine ended unexpectedly", "signal: killed", "somebody killed it")
	if _, err := e.Info(t.Context()); err == nil {
		t.Error("a dead engine answers")
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	next := startEngine(t, EngineOptions{CacheDir: cache})
	dial(t, next)
	if err := next.Close(); err != nil {
		t.Fatal(err)
	}
	gone(t, e.cmd.Process.Pid, cache)
}

func TestCancelledBuildLeavesNothing(t *testing.T) {
	cache := t.TempDir()
	e := startEngine(t, EngineOptions{CacheDir: cache})
	err := running(t, e, func(cancel context.CancelFunc) { cancel() })
	if err := e.Explain(err); !strings.Contains(err.Error(), "canceled") {
		t.Errorf("the error is %q, want one of a cancelled context", err)
	}
	begin := time.Now()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > closeGrace/2 {
		t.Errorf("closing took %s", took)
	}
	gone(t, e.cmd.Process.Pid, cache)
}

func TestClosedWhileBuilding(t *testing.T) {
	cache := t.TempDir()
	e := startEngine(t, EngineOptions{CacheDir: cache})
	closed := make(chan error, 1)
	_ = running(t, e, func(context.CancelFunc) { go func() { closed <- e.Close() }() })
	if err := <-closed; err != nil {
		t.Fatal(err)
	}
	gone(t, e.cmd.Process.Pid, cache)
}

func TestSecondBuildWaits(t *testing.T) {
	cache := t.TempDir()
	first := startEngine(t, EngineOptions{CacheDir: cache})
	told := make(chan string, 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := StartEngine(ctx, EngineOptions{CacheDir: cache, Program: needEngine(t), Notify: func(string) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was cancelled ends with %v", err)
	}
	started := make(chan *Engine, 1)
	go func() {
		second, err := StartEngine(t.Context(), EngineOptions{CacheDir: cache, Program: needEngine(t), Notify: func(s string) { told <- s }})
		if err != nil {
			t.Error(err)
		}
		started <- second
	}()
	want := fmt.Sprintf("waiting for another build that uses the cache %s (process %d, since ", cache, os.Getpid())
	if got := <-told; !strings.HasPrefix(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second := <-started
	if second == nil {
		t.FailNow()
	}
	dial(t, second)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	program := needEngine(t)
	t.Run("program", func(t *testing.T) {
		t.Setenv("PATH", "/nonexistent")
		_, err := StartEngine(t.Context(), EngineOptions{CacheDir: t.TempDir()})
		wantError(t, err, "waxseal-engine is neither beside waxseal nor on PATH", "--engine buildkit:ADDRESS")
	})
	t.Run("runc", func(t *testing.T) {
		t.Setenv("PATH", "/nonexistent")
		e, err := StartEngine(t.Context(), EngineOptions{CacheDir: t.TempDir(), Program: program})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		_, err = e.Dial(t.Context())
		wantError(t, err, "runc is not on PATH", "apt-get install runc")
	})
	t.Run("overlay", func(t *testing.T) {
		dir := mountForTest(t, "overlay", "")
		_, err := startEngine(t, EngineOptions{CacheDir: filepath.Join(dir, "cache")}).Dial(t.Context())
		wantError(t, err, "overlayfs cannot be used in the build cache", "--cache-dir")
	})
	t.Run("space to start", func(t *testing.T) {
		dir := mountForTest(t, "tmpfs", "size=64k")
		_, err := startEngine(t, EngineOptions{CacheDir: dir}).Dial(t.Context())
		wantError(t, err, "disk of the build cache", "is full", "--cache-dir")
	})
	t.Run("space to build", func(t *testing.T) {
		dir := mountForTest(t, "tmpfs", "size=2m")
		e := startEngine(t, EngineOptions{CacheDir: dir})
		b := buildOf{dockerfile: "FROM base\nRUN true\n", base: tinyBase(t)}
		_, err := b.solve(t.Context(), t, dial(t, e))
		wantError(t, e.Explain(err), "no space left on device", "the build cache is "+dir, "--cache-dir")
	})
	t.Run("space in the store", func(t *testing.T) {
		e := startEngine(t, EngineOptions{CacheDir: t.TempDir()})
		full := errors.New("failed to solve: inputs refused: \"RUN true\"\n  GET http://a.test/ could not be stored: writing to the store \"s\": its disk is full: make room: no space left on device")
		var other interface{ Hint() string }
		err := explainSolve(e.Explain(full), &Request{}, attestations.ContainerContext{})
		if errors.As(err, &other) || !strings.HasPrefix(err.Error(), "building: inputs refused: ") {
			t.Errorf("beside the store's own way out there is another one: %v", err)
		}
	})
	t.Run("a folder", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := StartEngine(t.Context(), EngineOptions{CacheDir: f, Program: program})
		wantError(t, err, "making the build cache", "--cache-dir")
	})
}

// mountForTest mounts a file system of the kind for the time of the test.
func mountForTest(t *testing.T, kind, data string) string {
	t.Helper()
	top := t.TempDir()
	for _, d := range []string{"lower", "upper", "work", "mnt"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if kind == "overlay" {
		data = fmt.Sprintf("lowerdir=%[1]s/lower,upperdir=%[1]s/upper,workdir=%[1]s/work", top)
	}
	mnt := filepath.Join(top, "mnt")
	if err := syscall.Mount(kind, mnt, kind, 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	return mnt
}

// An engine that was told to end does so by itself, and closing it then only waits.
func TestEngineEndsWhenTold(t *testing.T) {
	e := startEngine(t, EngineOptions{CacheDir: t.TempDir()})
	dial(t, e)
	e.end()
	select {
	case <-e.done:
	case <-time.After(closeGrace):
		t.Fatal("it is still there")
	}
	e.end()
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}

// The engine's side channel is greeted before anybody asks for something there.
func TestEngineIsGreetedAtOnce(t *testing.T) {
	ours, file, err := socketPair("side channel")
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	theirs, err := net.FileConn(file)
	file.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	client, err := sideClient(ours)
	if err != nil {
		t.Fatal(err)
	}
	greeting := make([]byte, len(http2.ClientPreface))
	if err := theirs.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(theirs, greeting); err != nil || string(greeting) != http2.ClientPreface {
		t.Errorf("%q, %v", greeting, err)
	}
	theirs.Close()
	for range 2 {
		if _, err := client.Get("http://engine/v1/ready"); err == nil || !connectionLost(err) {
			t.Errorf("of an engine that is gone: %v", err)
		}
	}
}
