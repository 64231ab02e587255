package build

import (
	"bufio"
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
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// builderName is what buildx calls the engine that it is led to.
const builderName = "waxseal"

// maxSocket is how long the path of a socket may be.
const maxSocket = 107

// maxBuilders is how many builders a command may make.
const maxBuilders = 1000

// maxCaches is how many build caches there are for commands that run at the
// same time.
const maxCaches = 16

// lead leads the builds of a command to an engine of ours: a throw-away
// configuration of buildx with one builder, a socket, and behind it an engine,
// which starts when somebody first connects. Call close in any case.
type lead struct {
	dir    string
	lock   *os.File // of dir; whoever finds it free may remove dir
	theirs socket   // for who means a builder of their own
	own    socket   // for who means docker's

	start func() error // starts the engine, once

	builders *os.File // the folder of builders, wherever the command moves it

	guard *exec.Cmd // nil for none
	leash *os.File  // the guard's standard input

	legacy *legacyProxy  // before the Docker daemon; nil where docker has buildx
	images *daemonImages // that builds may begin with; nil for none
	given  *os.File      // the engine's end of images

	mu     sync.Mutex
	known  []string // the builders that lead here
	engine *ownEngine
	client *client.Client
	wake   *os.File
	done   chan struct{}

	refusing []*grpc.Server // where the engine could not be started
}

// newLead makes the configuration, and removes what killed commands left.
func newLead(env func(string) string) (_ *lead, err error) {
	runs, err := runsFolder()
	if err != nil {
		return nil, fmt.Errorf("making a folder for the command: %w", err)
	}
	sweep(runs)
	l := &lead{done: make(chan struct{})}
	if l.dir, err = os.MkdirTemp(runs, "run-"); err != nil {
		return nil, fmt.Errorf("making a folder for the command: %w", err)
	}
	defer func() {
		if err != nil {
			l.remove()
		}
	}()
	if l.lock, err = os.OpenFile(filepath.Join(l.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("locking the command's folder: %w", err)
	}
	for name, s := range map[string]*socket{"sock": &l.theirs, "own": &l.own} {
		if *s, err = listen(filepath.Join(l.dir, name)); err != nil {
			return nil, err
		}
	}
	return l, l.configure(env)
}

// runsFolder makes the folder of what commands are led by. It is below /run, which
// every confined command has for itself, so that none finds the socket of a
// later one; where nobody can write there, it is among the temporary files, whose
// names are short.
func runsFolder() (string, error) {
	name := fmt.Sprintf("waxseal-run-%d", os.Geteuid())
	if runs := filepath.Join("/run", name); ownFolder(runs) == nil && unix.Access(runs, unix.W_OK) == nil {
		return runs, nil
	}
	runs := filepath.Join(os.TempDir(), name)
	if len(runs)+len("/run-0123456789/sock") > maxSocket {
		runs = filepath.Join("/tmp", name)
	}
	return runs, ownFolder(runs)
}

// ownFolder makes a folder that is ours alone, in one where anybody may make
// some.
func ownFolder(name string) error {
	if err := os.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 {
		return hinted(fmt.Errorf("%q is there, and it is somebody else's or open to others", name), "remove it, or set TMPDIR to a folder of your own")
	}
	return nil
}

// sweep removes the folders whose owner is gone. What cannot be removed stays
// for the next.
func sweep(runs string) {
	entries, _ := os.ReadDir(runs)
	for _, e := range entries {
		dir := filepath.Join(runs, e.Name())
		f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0)
		if err != nil {
			continue // in the making, or gone already
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			forgetDaemon(dir, true)
			_ = removeRun(dir)
		}
		f.Close()
	}
}

// socket is one that the engine will serve.
type socket struct {
	*os.File
	name string
}

func listen(name string) (socket, error) {
	s, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return socket{}, fmt.Errorf("opening the engine's socket: %w", err)
	}
	defer s.Close()
	s.SetUnlinkOnClose(false)
	if err := os.Chmod(name, 0o600); err != nil {
		return socket{}, err
	}
	f, err := s.File()
	return socket{f, name}, err
}

// address is what buildx calls it.
func (s socket) address() string { return "unix://" + s.name }

// node and group are how buildx stores a builder.
type group struct {
	Name, Driver string
	Nodes        []node
	Dynamic      bool
}

type node struct {
	Name, Endpoint string
	Platforms      []string
	DriverOpts     map[string]string
	Flags          []string
	Files          map[string][]byte
}

// configure writes buildx's configuration. The user's own builders keep their
// names, and all lead here: --builder works as it did.
func (l *lead) configure(env func(string) string) error {
	instances := filepath.Join(l.dir, "buildx", "instances")
	err := os.MkdirAll(instances, 0o700)
	if err == nil {
		l.builders, err = os.Open(instances)
	}
	if err != nil {
		return fmt.Errorf("writing the configuration of buildx: %w", err)
	}
	users := env("BUILDX_CONFIG")
	if users == "" {
		users = filepath.Join(dockerFolder(env), "buildx")
	}
	// docker's own builder goes by the names of its contexts. Of one that docker has
	// no name for it says so itself.
	docker := []string{"default"}
	if name, err := dockerContext(env); err == nil && isBuilderName(name) && name != builderName {
		docker = append(docker, name)
	}
	names := append([]string{builderName}, docker...)
	entries, err := os.ReadDir(filepath.Join(users, "instances"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading the builders of buildx: %w", err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() && !slices.Contains(names, e.Name()) {
			names = append(names, e.Name())
		}
	}
	l.known = names
	isOwn, loads := chosenBuilder(users, env("BUILDX_BUILDER"))
	for _, name := range names {
		at, load := l.theirs, loads
		if slices.Contains(docker, name) {
			at, load = l.own, true
		} else if name == builderName && isOwn {
			at = l.own
		}
		if err := l.writeBuilder(name, at, load); err != nil {
			return err
		}
	}
	return nil
}

// isBuilderName reports whether buildx takes a name for a builder's.
func isBuilderName(name string) bool {
	return regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9._-]*$`).MatchString(name)
}

// writeBuilder has a builder of buildx's lead here. The folder is the command's
// to write: nothing there is followed.
func (l *lead) writeBuilder(name string, at socket, load bool) error {
	raw, err := json.Marshal(group{Name: name, Driver: "remote", Nodes: []node{{
		Name: name + "0", Endpoint: at.address(), DriverOpts: map[string]string{"default-load": strconv.FormatBool(load)},
	}}})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(l.dir, "builder-")
	if err == nil {
		_, err = f.Write(raw)
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = unix.Renameat(unix.AT_FDCWD, f.Name(), int(l.builders.Fd()), name)
	}
	if err != nil {
		return fmt.Errorf("writing the configuration of buildx: %w", err)
	}
	return nil
}

// redirect has the builders lead here that the command has made since.
func (l *lead) redirect() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, err := l.builders.Seek(0, io.SeekStart); err != nil {
		return err
	}
	names, err := l.builders.Readdirnames(maxBuilders)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		if slices.Contains(l.known, name) {
			continue
		}
		if err := l.writeBuilder(name, l.theirs, false); err != nil {
			return err
		}
		l.known = append(l.known, name)
	}
	return nil
}

// chosenBuilder reads which builder builds where none is named: whether it is
// docker's own, and whether a build without an output ends in the Docker daemon:
// that of docker's own does, and that of another only where it says so.
func chosenBuilder(users, chosen string) (own, loads bool) {
	name := chosen
	if name == "" {
		raw, err := os.ReadFile(filepath.Join(users, "current"))
		var current struct{ Name string }
		if err != nil || json.Unmarshal(raw, &current) != nil || current.Name == "" {
			return true, true
		}
		name = current.Name
	}
	raw, err := os.ReadFile(filepath.Join(users, "instances", filepath.Base(name)))
	var g group
	if err != nil || json.Unmarshal(raw, &g) != nil {
		return true, true // a name of Docker's own
	}
	return false, len(g.Nodes) > 0 && g.Nodes[0].DriverOpts["default-load"] == "true"
}

// built reports whether somebody asked for a build here. What became of it is
// not known yet.
func (l *lead) built() bool {
	if e, _ := l.running(); e != nil {
		return true
	}
	return l.legacy != nil && l.legacy.built()
}

// env is what leads buildx here, added to the environment of the command.
func (l *lead) env(environ []string) []string {
	ours := map[string]string{
		"BUILDX_CONFIG":  filepath.Join(l.dir, "buildx"),
		"BUILDX_BUILDER": builderName,
	}
	if hasBuildx(environ) {
		// Without the plugin docker would refuse to build at all.
		ours["DOCKER_BUILDKIT"] = "1"
	}
	environ = slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		_, ok := ours[name]
		return ok
	})
	for _, k := range sortedKeys(ours) {
		environ = append(environ, k+"="+ours[k])
	}
	return environ
}

// hasBuildx reports whether docker has its plugin buildx, in a place where
// docker looks.
func hasBuildx(environ []string) bool {
	folder := config.Dir()
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, "DOCKER_CONFIG="); ok && v != "" {
			folder = v
		}
	}
	dirs := []string{
		filepath.Join(folder, "cli-plugins"), "/usr/local/lib/docker/cli-plugins", "/usr/local/libexec/docker/cli-plugins",
		"/usr/lib/docker/cli-plugins", "/usr/libexec/docker/cli-plugins",
	}
	if c, err := config.Load(folder); err == nil {
		dirs = append(dirs, c.CLIPluginsExtraDirs...)
	}
	return slices.ContainsFunc(dirs, func(d string) bool {
		st, err := os.Stat(filepath.Join(d, "docker-buildx"))
		return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
	})
}

// watch starts the engine when somebody connects, or at once where the command
// is sure to. tell is told why an engine could not be started: to those who
// connected the socket is just closed.
func (l *lead) watch(opts EngineOptions, atOnce bool, tell func(error)) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	l.wake = w
	// It outlives no close, and is told by the pipe and not by a context: an
	// interrupted command ends its builds itself.
	l.start = sync.OnceValue(func() error { return l.startEngine(opts) })
	go func() {
		defer close(l.done)
		defer r.Close()
		if !atOnce && !connected(r, l.theirs.File, l.own.File) {
			return
		}
		if err := l.start(); err != nil {
			tell(err)
			l.refuse(err)
		}
	}()
	return nil
}

// refuse answers whatever is asked of the engine with why there is none: where
// nobody answered, buildx would wait for twenty seconds.
func (l *lead) refuse(why error) {
	answer := status.Error(codes.FailedPrecondition, "waxseal: "+why.Error())
	for _, s := range []socket{l.theirs, l.own} {
		listener, err := net.FileListener(s.File)
		if err != nil {
			os.Remove(s.name)
			continue
		}
		server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return answer }))
		l.refusing = append(l.refusing, server)
		go func() { _ = server.Serve(listener) }() // its end is that of the listener
	}
}

// connected waits for a connection, and returns false when wake is closed
// before there is one.
func connected(wake *os.File, sockets ...*os.File) bool {
	fds := []unix.PollFd{{Fd: int32(wake.Fd()), Events: unix.POLLIN}}
	for _, s := range sockets {
		fds = append(fds, unix.PollFd{Fd: int32(s.Fd()), Events: unix.POLLIN})
	}
	for {
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && slices.ContainsFunc(fds[1:], func(fd unix.PollFd) bool { return fd.Revents&unix.POLLIN != 0 })
	}
}

func (l *lead) startEngine(opts EngineOptions) error {
	opts.CacheDir = freeCache(opts.CacheDir)
	opts.clients = []*os.File{l.theirs.File, l.own.File}
	if l.given != nil {
		opts.clients = append(opts.clients, l.given)
	}
	ctx := context.Background()
	e, err := StartEngine(ctx, opts)
	if err != nil {
		return err
	}
	c, err := e.Dial(ctx)
	if err != nil {
		return errors.Join(err, e.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engine, l.client = &ownEngine{e}, c
	return nil
}

// caches are the build cache of dir and those for whoever comes while it is
// used. They lie in it: what hides it from a command hides them all.
func caches(dir string) []string {
	out := []string{dir}
	for i := 2; i <= maxCaches; i++ {
		out = append(out, filepath.Join(dir, "more", strconv.Itoa(i)))
	}
	return out
}

// freeCache is the build cache of dir, or where another command has it, the
// next: buildx does not wait until a whole pipeline is through.
func freeCache(dir string) string {
	for _, name := range caches(dir) {
		f, err := os.OpenFile(filepath.Join(name, "lock"), os.O_RDWR, 0)
		if err != nil {
			return name // nobody uses what is not there
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		f.Close()
		if err == nil {
			return name
		}
	}
	return dir
}

// running returns the engine, once it is started; nil where nobody connected.
func (l *lead) running() (*ownEngine, *client.Client) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.engine, l.client
}

// stopWatching ends the wait for connections; an engine that is starting is
// waited for.
func (l *lead) stopWatching() {
	if l.wake == nil {
		return
	}
	l.wake.Close()
	l.wake = nil
	<-l.done
}

// guarded starts a process that outlives ours: where we are killed it kills the
// command's process group and removes the folder. Its command line ends with
// the folder's name; see Guard.
func (l *lead) guarded(command []string) error {
	if len(command) == 0 {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	l.guard = exec.Command(command[0], append(slices.Clone(command[1:]), l.dir)...)
	l.guard.Env, l.guard.Dir, l.guard.Stdin = []string{}, "/", r
	l.guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.guard.Start(); err != nil {
		l.guard = nil
		w.Close()
		return fmt.Errorf("starting the command's guard: %w", err)
	}
	giveWay(l.guard.Process.Pid)
	l.leash = w
	return nil
}

// started tells the guard which process group the command has.
func (l *lead) started(pid int) {
	if l.leash != nil {
		_, _ = fmt.Fprintf(l.leash, "%d\n", pid)
	}
}

// release ends the guard, which has nothing to do.
func (l *lead) release() {
	if l.guard == nil {
		return
	}
	_, _ = io.WriteString(l.leash, "done\n")
	l.leash.Close()
	_ = l.guard.Wait()
	l.guard = nil
}

// Guard waits for the end of the process that started it: in is the pipe that
// ends then. Where that process did not say that it is done, the process group
// that it named is killed and dir, which must be one that RunCommand made, is
// removed.
func Guard(in io.Reader, dir string) error {
	if !strings.HasPrefix(filepath.Base(dir), "run-") || !strings.HasPrefix(filepath.Base(filepath.Dir(dir)), "waxseal-run-") {
		return fmt.Errorf("guarding %q: it is no command's folder", dir)
	}
	group := 0
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if lines.Text() == "done" {
			return nil
		}
		group, _ = strconv.Atoi(lines.Text())
	}
	if group > 1 {
		_ = unix.Kill(-group, unix.SIGKILL)
	}
	forgetDaemon(dir, true)
	return removeRun(dir)
}

// removeRun removes the folder of a run, and the one that it leads to.
func removeRun(dir string) error {
	if to, err := os.Readlink(filepath.Join(dir, "n")); err == nil && strings.HasPrefix(filepath.Base(to), holderFolder) {
		os.RemoveAll(to)
	}
	return os.RemoveAll(dir)
}

// close ends the engine and removes everything.
func (l *lead) close() error {
	l.stopWatching()
	defer l.release()
	for _, server := range l.refusing {
		server.Stop()
	}
	var err error
	if e, _ := l.running(); e != nil {
		err = e.Close()
	}
	l.images.close()
	l.remove()
	return err
}

func (l *lead) remove() {
	for _, s := range []socket{l.theirs, l.own} {
		if s.File != nil {
			s.Close()
		}
	}
	if l.builders != nil {
		l.builders.Close()
	}
	if l.given != nil {
		l.given.Close()
	}
	_ = removeRun(l.dir)
	if l.lock != nil {
		l.lock.Close()
	}
}
