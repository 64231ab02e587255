// Package sandbox runs one command with its files and its traffic watched: in
// namespaces of its own whose only way out is the gateway. Call Keep, once a
// process: it is the command's keeper, outside. First is the first process
// inside, which the keeper starts itself. Legacy watches steps that docker's own
// builder runs, in networks that processes calling Hold keep.
//
// The keeper is started by waxseal and speaks to nobody else: file descriptor 3
// is the socket on which it is told the Plan and says its Messages. It expects
// to be process 1 of its own pid namespace with its own mounts, as root or in a
// user namespace; with it goes everything that it started. The streams are the
// command's.
package sandbox

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/egress"
)

// fdTalk is the socket on which a confined command is spoken about: with
// waxseal in the keeper, and with the keeper in the first process inside.
const fdTalk = 3

// Plan is a command to run confined, and what it may have.
type Plan struct {
	Inputs egress.Plan `json:"inputs"`
	Name   string      `json:"name"` // of the step in the record
	Args   []string    `json:"args"`
	Env    []string    `json:"env"`
	Dir    string      `json:"dir"`  // the working folder: the top of what is recorded by waxseal
	User   int         `json:"user"` // whose command it is, and of what group
	Group  int         `json:"group"`
	// Hide are files and folders that the command must not see, and Expose
	// sockets, files and folders that it may.
	Hide    []string `json:"hide,omitempty"`
	Expose  []string `json:"expose,omitempty"`
	Secrets [][]byte `json:"secrets,omitempty"` // values that are never stored
	// Container: who listens at what is mounted here may be where nobody here
	// can look.
	Container bool `json:"container,omitempty"`
	// Unpacks: the command unpacks images over this machine's own files, as kaniko
	// does, and makes layers of what it finds changed where nothing is mounted.
	Unpacks bool `json:"unpacks,omitempty"`
	// Trace what is opened that is not in the working folder, or that waxseal
	// leaves out of its record of that.
	Trace      bool     `json:"trace,omitempty"`
	Unrecorded []string `json:"unrecorded,omitempty"`
}

// Message is what the keeper says, one after the other: that all is
// ready, that the command was stopped, what came of it. An Error ends it.
type Message struct {
	Ready   *Ready `json:"ready,omitempty"`
	Stopped bool   `json:"stopped,omitempty"`
	Done    *Done  `json:"done,omitempty"`
	Error   string `json:"error,omitempty"`
	Hint    string `json:"hint,omitempty"`
	// NoSandbox: the Error is that none can be had here.
	NoSandbox bool `json:"noSandbox,omitempty"`
}

// Start is waxseal's answer to that all is ready.
type Start struct {
	Go    bool   `json:"go"`              // else it does not want it so
	Known []Node `json:"known,omitempty"` // with Trace: the files of the working folder, which waxseal has recorded
}

// Ready says how well the command will be watched.
type Ready struct {
	// Blind are the file systems that are not traced, in words, and Open what
	// the sandbox cannot close.
	Blind []string `json:"blind,omitempty"`
	Open  []string `json:"open,omitempty"`
}

// Done is what came of a command.
type Done struct {
	Exit int `json:"exit"` // its exit code, or 128 and the signal
	// NotStarted says why there was nothing to run; Exit is then what shells
	// give.
	NotStarted string   `json:"notStarted,omitempty"`
	Inputs     *Inputs  `json:"inputs"`
	Violations []string `json:"violations,omitempty"`
	Trace      *Trace   `json:"trace,omitempty"`
}

// Inputs is what reached the command.
type Inputs struct {
	Steps   []attestations.InputStep  `json:"steps"` // one
	Gateway attestations.InputGateway `json:"gateway"`
}

// talk carries JSON values over a socket.
type talk struct {
	in  *json.Decoder
	out *json.Encoder
}

func newTalk(f *os.File, limit int64) talk {
	return talk{json.NewDecoder(io.LimitReader(f, limit)), json.NewEncoder(f)}
}

// inherited opens a socket that this process was started with.
func inherited(fd int, what string) (*os.File, error) {
	f := os.NewFile(uintptr(fd), what)
	if _, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("opening the %s: file descriptor %d is missing; waxseal starts this program itself", what, fd)
	}
	unix.CloseOnExec(fd)
	return f, nil
}

// passSignals hands the numbers that come in on to somebody, until none come.
func (t talk) passSignals(to talk) {
	for {
		var number int
		if t.in.Decode(&number) != nil || to.out.Encode(number) != nil {
			return
		}
	}
}

// Keep keeps one command: it opens the gateway, starts the command in a sandbox
// whose only way out that is, and tells what came in. The exit code is the
// command's.
func Keep(ctx context.Context, version string) (int, error) {
	f, err := inherited(fdTalk, "channel to waxseal")
	if err != nil {
		return 1, err
	}
	defer f.Close()
	t := newTalk(f, 2*egress.MaxPlan)
	code, err := keep(ctx, t, version)
	if err == nil {
		return code, nil
	}
	m := Message{Error: err.Error()}
	var h interface{ Hint() string }
	if errors.As(err, &h) {
		m.Hint = h.Hint()
	}
	var none *sandboxError
	m.NoSandbox = errors.As(err, &none)
	// Said to waxseal alone: the streams are the command's.
	if t.out.Encode(m) != nil {
		return 1, err
	}
	return 1, nil
}

// keepSignals lets nobody but waxseal end this process: the terminal's signals
// reach all of the command's process group, and waxseal says which others are
// for the command. They are caught and not ignored, because a command would
// inherit that.
func keepSignals() {
	dropped := make(chan os.Signal, 1)
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU, unix.SIGPIPE} {
		if !signal.Ignored(s) {
			signal.Notify(dropped, s)
		}
	}
	go func() {
		for range dropped {
		}
	}()
}

func keep(ctx context.Context, t talk, version string) (int, error) {
	keepSignals()
	var plan Plan
	if err := t.in.Decode(&plan); err != nil {
		return 0, fmt.Errorf("reading the plan of the command: %w", err)
	}
	if len(plan.Args) == 0 || !filepath.IsAbs(plan.Dir) {
		return 0, errors.New("reading the plan of the command: it names no command or no folder")
	}
	sockets, unknown, err := boundSockets() // while /proc is still the machine's
	if err != nil {
		return 0, err
	}
	if plan.Container {
		more, left, err := mountedSockets()
		if err != nil {
			return 0, err
		}
		sockets, unknown = append(sockets, more...), append(unknown, left...)
	}
	if err := ownMounts(plan.Dir); err != nil {
		return 0, err
	}
	opts, err := plan.Inputs.Options(version)
	if err != nil {
		return 0, err
	}
	gateway, err := egress.New(opts)
	if err != nil {
		return 0, err
	}
	defer gateway.Close()
	step, files, err := open(ctx, gateway, &plan)
	if err != nil {
		return 0, err
	}
	var tr *tracer
	if plan.Trace {
		if tr, err = startTrace(plan.Dir, plan.Unrecorded); err != nil {
			return 0, err
		}
		defer tr.close()
	}
	env := step.Env(plan.Env)
	if plan.User == 0 {
		if env, err = lendRuntime(files, env); err != nil {
			return 0, err
		}
	}
	in := inside{plan: plan, sockets: sockets, files: files, netns: step.NetNS(), env: env}
	first, err := in.start()
	if err != nil {
		return 0, err
	}
	defer first.end()
	left, err := first.ready()
	if err != nil {
		return 0, err
	}
	ready := Ready{Open: append(left, unknown...)}
	if tr != nil {
		ready.Blind = tr.blind
	}
	if err := t.out.Encode(Message{Ready: &ready}); err != nil {
		return 0, err
	}
	var start Start
	if err := t.in.Decode(&start); err != nil || !start.Go {
		return 0, nil
	}
	debug.SetGCPercent(100)
	if tr != nil {
		goFirst()
		tr.follow(first.pid, start.Known)
	}
	if err := first.begin(); err != nil {
		return 0, err
	}
	go t.passSignals(first.talk) // what is said before that is not read as a signal
	done, err := first.wait(func() { _ = t.out.Encode(Message{Stopped: true}) })
	if err != nil {
		return 0, err
	}
	first.end()
	seen, err := step.Close()
	if err != nil {
		return 0, fmt.Errorf("recording what reached the command: %w", err)
	}
	for _, v := range step.Violations() {
		done.Violations = append(done.Violations, v.Text)
	}
	done.Inputs = &Inputs{Steps: []attestations.InputStep{*seen}, Gateway: gateway.Describe()}
	if tr != nil {
		done.Trace = tr.finish()
	}
	if opts.Store != nil {
		if err := opts.Store.Sync(ctx); err != nil {
			return 0, err
		}
	}
	if err := t.out.Encode(Message{Done: done}); err != nil {
		return 0, err
	}
	return done.Exit, nil
}

// open opens the command's network, and makes the files by which it trusts the
// gateway out of the machine's own.
func open(ctx context.Context, gateway *egress.Gateway, plan *Plan) (*egress.Step, string, error) {
	root, err := os.OpenRoot("/")
	if err != nil {
		return nil, "", err
	}
	defer root.Close()
	trusted, known := make(chan error, 1), make(chan struct{})
	go func() { trusted <- gateway.Trust(root, plan.Env) }()
	go func() {
		defer close(known)
		if plan.Unpacks {
			// Read once: whom the gateway trusts is not for a base image to say.
			_, _ = x509.SystemCertPool() // without one, nobody is trusted
		}
	}()
	step, err := gateway.Open(ctx, egress.StepOptions{Name: plan.Name, Secrets: plan.Secrets})
	<-known
	if err := <-trusted; err != nil {
		return nil, "", err
	}
	if err != nil {
		return nil, "", fmt.Errorf("opening the command's network: %w", err)
	}
	files, err := step.Files(root, plan.Env)
	return step, files, err
}

// keeperTemporary are folders that every machine has and the keeper has no use
// for. A file system in memory over the first that is there, and not where the
// command works, takes its temporary files: seen by nobody else, and gone with
// it however it ends.
func keeperTemporary() []string { return []string{"/dev/shm", "/sys"} }

// ownMounts makes the keeper's mounts its own. The command works in dir.
func ownMounts(dir string) error {
	if os.Getpid() != 1 {
		return errors.New("confining a command: not process 1 of its own pid namespace; waxseal starts this program itself")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return noSandbox("making mounts private", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return noSandbox("mounting /proc", err)
	}
	for _, own := range keeperTemporary() {
		if below(dir, own) {
			continue
		}
		err := unix.Mount("tmpfs", own, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755")
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return noSandbox("mounting "+own, err)
		}
		return os.Setenv("TMPDIR", own)
	}
	return errors.New("confining a command: neither /dev/shm nor /sys is there")
}

// sandboxError is a kernel, or somebody who runs this machine, that does not
// let a sandbox be made.
type sandboxError struct {
	doing string
	cause error
}

func noSandbox(doing string, err error) error { return &sandboxError{doing, err} }

func (e *sandboxError) Error() string {
	if e.cause == nil {
		return e.doing
	}
	return fmt.Sprintf("%s: %v", e.doing, e.cause)
}

func (e *sandboxError) Unwrap() error { return e.cause }

func (e *sandboxError) Hint() string {
	return "run waxseal as root, or where user namespaces are allowed (on Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0; in a container: a privileged one)"
}

// inside is what the first process of a sandbox is made of.
type inside struct {
	plan    Plan
	sockets []string
	files   string // the folder that comes to egress.MountPoint
	netns   string
	env     []string
}

// firstProcess is process 1 of a command's own pid namespace, while it runs.
type firstProcess struct {
	pid   int
	talk  talk
	file  *os.File
	ended bool
}

// start makes the command's view of the machine and starts the first process in
// it. Both happen on a thread of its own, which dies: nothing else of the
// keeper is ever in there.
func (in *inside) start() (*firstProcess, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a channel: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "channel inside"), os.NewFile(uintptr(fds[1]), "channel out")
	defer theirs.Close()
	type result struct {
		pid int
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		pid, err := in.enter(theirs)
		made <- result{pid, err}
	}()
	r := <-made
	if r.err != nil {
		ours.Close()
		return nil, r.err
	}
	p := &firstProcess{pid: r.pid, talk: newTalk(ours, 1<<20), file: ours}
	maps, err := identityMaps(in.plan.User, in.plan.Group)
	if err == nil {
		err = p.talk.out.Encode(insidePlan{
			Args: in.plan.Args, Env: in.env, Dir: in.plan.Dir, Maps: maps, Lend: in.plan.Unpacks && in.plan.User == 0 && canLend(),
		})
	}
	if err != nil {
		p.end()
		return nil, err
	}
	return p, nil
}

// enter turns the calling thread into one that sees what the command will see,
// and starts the first process from there.
func (in *inside) enter(theirs *os.File) (int, error) {
	ns, err := os.Open(in.netns)
	if err != nil {
		return 0, fmt.Errorf("entering the command's network: %w", err)
	}
	defer ns.Close()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return 0, noSandbox("making mounts", err)
	}
	v := view{dir: in.plan.Dir, files: in.files, sockets: in.sockets, hide: in.plan.Hide, expose: in.plan.Expose, unpacks: in.plan.Unpacks, user: in.plan.User, group: in.plan.Group}
	if err := v.make(); err != nil {
		return 0, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return 0, fmt.Errorf("entering the command's network: %w", err)
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"waxseal-sandbox", "first"}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"GOGC=400"},
		Files: []uintptr{0, 1, 2, theirs.Fd()},
		Sys:   &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC},
	})
	if err != nil {
		return 0, noSandbox("starting the first process", err)
	}
	return pid, nil
}

// insideMessage is what the first process says.
type insideMessage struct {
	Ready   bool     `json:"ready,omitempty"`
	Open    []string `json:"open,omitempty"`
	Stopped bool     `json:"stopped,omitempty"`
	Done    *Done    `json:"done,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func (p *firstProcess) next() (insideMessage, error) {
	var m insideMessage
	if err := p.talk.in.Decode(&m); err != nil {
		return m, fmt.Errorf("confining the command: its first process died: %w", err)
	}
	if m.Error != "" {
		return m, noSandbox(m.Error, nil)
	}
	return m, nil
}

// ready waits until the sandbox stands, and returns what it leaves open.
func (p *firstProcess) ready() ([]string, error) {
	m, err := p.next()
	return m.Open, err
}

// begin starts the command.
func (p *firstProcess) begin() error {
	if err := p.talk.out.Encode(true); err != nil {
		return fmt.Errorf("starting the command: %w", err)
	}
	return nil
}

// wait waits for the command's end.
func (p *firstProcess) wait(stopped func()) (*Done, error) {
	for {
		m, err := p.next()
		if err != nil {
			return nil, err
		}
		if m.Stopped {
			stopped()
		}
		if m.Done != nil {
			return m.Done, nil
		}
	}
}

// end ends the first process and with it whatever the command has left behind,
// and returns when all of it is gone.
func (p *firstProcess) end() {
	if p.ended {
		return
	}
	p.ended = true
	p.file.Close()
	_ = unix.Kill(p.pid, unix.SIGKILL)
	for {
		_, err := unix.Wait4(p.pid, nil, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// boundSockets lists the paths at which somebody on this machine listens: a
// socket of that kind leads out of every network namespace. Of those whose path
// cannot be told, the second list says so in words.
func boundSockets() (paths, unknown []string, err error) {
	here, err := mountsOf("/proc/self")
	if err != nil {
		return nil, nil, err
	}
	for _, m := range here {
		// Whoever listens there may be where we cannot look: a machine whose
		// socket is mounted into this container.
		if isSocket(m.at) {
			paths = append(paths, m.at)
		}
	}
	tables := map[uint64]socketTable{}
	read := func(proc string) error {
		var st unix.Stat_t
		if err := unix.Stat(proc+"/ns/net", &st); err != nil || tables[st.Ino] != nil {
			return err
		}
		raw, err := readBounded(filepath.Join(proc, "net/unix"), maxSocketTable)
		if err == nil {
			tables[st.Ino] = parseSocketTable(raw)
		}
		return err
	}
	if err := read("/proc/self"); err != nil {
		return nil, nil, fmt.Errorf("listing the machine's sockets: %w", err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range procs {
		_ = read(proc) // what cannot be looked at belongs to others, or is gone by now
	}
	paths = append(paths, fromElsewhere(procs, tables, here)...)
	byFolder := map[string]string{} // names by number
	for _, t := range tables {
		for name, number := range t {
			if filepath.IsAbs(name) {
				paths = append(paths, name)
			} else {
				byFolder[number] = name
			}
		}
	}
	if len(paths)+len(byFolder) > maxSockets {
		return nil, nil, fmt.Errorf("listing the machine's sockets: more than %d", maxSockets)
	}
	var holders map[string][]string
	for number, name := range byFolder {
		// Bound by a name in the folder where its process was.
		if holders == nil {
			holders = socketHolders(procs)
		}
		at := len(paths)
		for _, proc := range holders[number] {
			cwd, err := os.Readlink(proc + "/cwd")
			if path := filepath.Join(cwd, name); err == nil && isSocket(path) {
				paths = append(paths, path)
			}
		}
		if at == len(paths) {
			unknown = append(unknown, fmt.Sprintf("the socket %q of another process, in a folder that cannot be told, was open to the command", name))
		}
	}
	slices.Sort(paths)
	slices.Sort(unknown)
	return slices.Compact(paths), unknown, nil
}

// mountedSockets looks for sockets in the folders that are mounted into a
// container, which it may share with others. What was not looked through is said
// in words.
func mountedSockets() (paths, unknown []string, err error) {
	mounts, err := mountsOf("/proc/self")
	if err != nil {
		return nil, nil, err
	}
	passing := append(covered(), "/dev", "/proc", "/sys") // of which the command has its own
	left := maxLooked
	for _, m := range mounts {
		if m.at == "/" || slices.Contains(kernelKinds(), m.kind) || slices.ContainsFunc(passing, func(p string) bool { return below(m.at, p) }) || !isFolder(m.at) {
			continue
		}
		_ = filepath.WalkDir(m.at, func(name string, d fs.DirEntry, err error) error {
			if left--; left < 0 {
				return fs.SkipAll
			}
			if err == nil && d.Type()&fs.ModeSocket != 0 {
				paths = append(paths, name)
			}
			return nil // where we may not look the command gets nowhere
		})
		if left < 0 || len(paths) > maxSockets {
			return paths, []string{fmt.Sprintf("sockets in %q, which others may listen at as well, were not all looked for", m.at)}, nil
		}
	}
	return paths, nil, nil
}

func isSocket(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// fromElsewhere are the places of ours at which sockets are that processes with
// another root, or other mounts, have bound under a name of theirs: a
// container's, seen from the machine.
func fromElsewhere(procs []string, tables map[uint64]socketTable, here []mount) []string {
	type surroundings struct{ net, mounts, dev, root uint64 }
	look := func(proc string) (s surroundings, ok bool) {
		var network, mounts, root unix.Stat_t
		ok = unix.Stat(proc+"/ns/net", &network) == nil && unix.Stat(proc+"/ns/mnt", &mounts) == nil && unix.Stat(proc+"/root", &root) == nil
		return surroundings{network.Ino, mounts.Ino, root.Dev, root.Ino}, ok
	}
	ours, _ := look("/proc/self")
	seen := map[surroundings]bool{ours: true}
	var out []string
	for _, proc := range procs {
		s, ok := look(proc)
		if !ok || seen[s] {
			continue
		}
		root, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			continue // it has ended; another may have the same
		}
		there, err := mountsOf(proc)
		if seen[s] = err == nil; seen[s] {
			for name := range tables[s.net] {
				if filepath.IsAbs(name) {
					out = append(out, oursOf(root, name, there, here)...)
				}
			}
		}
		unix.Close(root)
	}
	return out
}

// oursOf are the places of here that show what has a name below a root of
// elsewhere.
func oursOf(root int, name string, there, here []mount) []string {
	fd, err := unix.Openat2(root, name, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil
	}
	if _, ok := mountOf(fd, here); ok {
		return []string{path}
	}
	on, ok := mountOf(fd, there)
	if !ok {
		return nil
	}
	return aliases(on, path, here)
}

// socketTable has names as they were bound, and the sockets' numbers.
type socketTable map[string]string

// parseSocketTable takes from /proc/net/unix what can be connected to by a
// path: Num RefCount Protocol Flags Type St Inode Path.
func parseSocketTable(raw []byte) socketTable {
	const accepts = "00010000"
	out := socketTable{}
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) < 8 || strings.HasPrefix(f[7], "@") || f[3] != accepts && f[4] != "0002" {
			continue
		}
		// The name is the rest of the line, whatever it holds.
		if _, name, ok := strings.Cut(line, " "+f[6]+" "); ok {
			out[strings.TrimSuffix(name, "\n")] = f[6]
		}
	}
	return out
}

// socketHolders says which processes have which sockets.
func socketHolders(procs []string) map[string][]string {
	out := map[string][]string{}
	for _, proc := range procs {
		fds, _ := filepath.Glob(proc + "/fd/*")
		for _, fd := range fds {
			to, err := os.Readlink(fd)
			if number, ok := strings.CutPrefix(to, "socket:["); err == nil && ok {
				number = strings.TrimSuffix(number, "]")
				out[number] = append(out[number], proc)
			}
		}
	}
	return out
}

const (
	maxSocketTable = 64 << 20
	maxSockets     = 4096
	maxLooked      = 200_000 // files among which sockets are looked for
)

// readBounded reads a file of at most limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(raw)) > limit {
		err = fmt.Errorf("reading %q: more than %d bytes", name, limit)
	}
	return raw, err
}
