package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insidePlan is what the first process of a sandbox is told.
type insidePlan struct {
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	Maps idMaps   `json:"maps"`
	Lend bool     `json:"lend,omitempty"` // see lender
}

// idMaps are the users and groups of the command's user namespace.
type idMaps struct {
	Users  []syscall.SysProcIDMap `json:"users"`
	Groups []syscall.SysProcIDMap `json:"groups"`
}

// identityMaps gives the command's user namespace the ids that there are: as
// root those of this one, else the user's own, which is 0 here.
func identityMaps(user, group int) (idMaps, error) {
	if user != 0 {
		return idMaps{
			Users:  []syscall.SysProcIDMap{{ContainerID: user, HostID: 0, Size: 1}},
			Groups: []syscall.SysProcIDMap{{ContainerID: group, HostID: 0, Size: 1}},
		}, nil
	}
	users, err := ownMap("/proc/self/uid_map")
	if err != nil {
		return idMaps{}, err
	}
	groups, err := ownMap("/proc/self/gid_map")
	return idMaps{users, groups}, err
}

func ownMap(name string) ([]syscall.SysProcIDMap, error) {
	raw, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("reading the users of this namespace: %w", err)
	}
	var out []syscall.SysProcIDMap
	for line := range strings.Lines(string(raw)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		first, err1 := strconv.Atoi(f[0])
		size, err2 := strconv.Atoi(f[2])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("reading the users of this namespace: %w", err)
		}
		out = append(out, syscall.SysProcIDMap{ContainerID: first, HostID: first, Size: size})
	}
	return visible(out), nil
}

// visible says the same map in two lines where it has one. Programs that see all
// ids in one line take their root for the machine's, and fail at what a root in
// a user namespace may not do, as podman does at an image's device files.
func visible(m []syscall.SysProcIDMap) []syscall.SysProcIDMap {
	if len(m) != 1 || m[0].Size < 2 {
		return m
	}
	low, high := m[0], m[0]
	low.Size /= 2
	high.ContainerID, high.HostID, high.Size = high.ContainerID+low.Size, high.HostID+low.Size, high.Size-low.Size
	return []syscall.SysProcIDMap{low, high}
}

// First is the first process inside a sandbox: it closes what only a process
// in there can close, starts the command in a user namespace of its own, which
// keeps it from opening any of that again, waits for whatever ends, and ends
// with the command. The keeper starts it.
func First() error {
	f, err := inherited(fdTalk, "channel to the keeper")
	if err != nil {
		return err
	}
	keepSignals()
	runtime.LockOSThread() // what a thread has given up, what it starts does not have
	t := newTalk(f, 64<<20)
	fail := func(err error) error { return t.out.Encode(insideMessage{Error: err.Error()}) }
	var plan insidePlan
	if err := t.in.Decode(&plan); err != nil {
		return fail(fmt.Errorf("reading the plan of the command: %w", err))
	}
	open, err := closeInside()
	if err != nil {
		return fail(err)
	}
	if err := t.out.Encode(insideMessage{Ready: true, Open: open}); err != nil {
		return err
	}
	var goOn bool
	if err := t.in.Decode(&goOn); err != nil || !goOn {
		return nil
	}
	done, err := plan.run(t, func() { _ = t.out.Encode(insideMessage{Stopped: true}) })
	if err != nil {
		return fail(err)
	}
	if err := t.out.Encode(insideMessage{Done: done}); err != nil {
		return err
	}
	// The keeper ends us when it has read that.
	select {}
}

// closeInside shows the sandbox's own processes alone, makes what the kernel
// lets a root of the machine change unwritable, and takes the calls that lead
// out from all that follows. What stays open is returned in words.
func closeInside() ([]string, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("not process 1 of its own pid namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("making mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mounting /proc: %w", err)
	}
	for _, name := range []string{"sys", "sysrq-trigger", "irq", "bus", "fs"} {
		path := filepath.Join("/proc", name)
		if err := setMount(path, unix.MOUNT_ATTR_RDONLY); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, name := range []string{"kcore", "keys", "timer_list", "sched_debug"} {
		if err := unix.Mount("/dev/null", filepath.Join("/proc", name), "", unix.MS_BIND, ""); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("hiding /proc/%s: %w", name, err)
		}
	}
	// Whoever started waxseal may have left files open, and a folder or a socket
	// leads out of every namespace.
	if err := unix.CloseRange(fdTalk, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("closing what else is open: %w", err)
	}
	filter := commandFilter(runtime.GOARCH)
	if err := installFilter(filter); err != nil {
		return nil, err
	}
	if filter == nil {
		return []string{"on " + runtime.GOARCH + " no system call is filtered: sockets of all families (AF_VSOCK), typing into the terminal (TIOCSTI), keyrings and files by their handles are open to the command"}, nil
	}
	return nil, nil
}

// installFilter gives all threads of this process a filter that no child loses;
// nil for none. New privileges are given up all the same.
func installFilter(filter []unix.SockFilter) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("giving up new privileges: %w", err)
	}
	if filter == nil {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("filtering system calls: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("filtering system calls: thread %d has another filter", r)
	}
	return nil
}

// run starts the command and returns when it has ended; what it has left
// running goes with the namespace.
func (p *insidePlan) run(t talk, stopped func()) (*Done, error) {
	program, why, code := p.find()
	if why != "" {
		return &Done{NotStarted: why, Exit: code}, nil
	}
	pid, err := p.start(program, p.Args)
	if p.Lend && errors.Is(err, unix.EPERM) { // who runs this machine lets nobody trace
		p.Lend = false
		pid, err = p.start(program, p.Args)
	}
	if errors.Is(err, unix.ENOEXEC) && isScript(program) {
		name := p.Args[0]
		if !strings.Contains(name, "/") {
			name = program
		}
		pid, err = p.start("/bin/sh", append([]string{"sh", name}, p.Args[1:]...))
	}
	switch {
	case errors.Is(err, unix.ENOENT) && isScript(program):
		return &Done{NotStarted: fmt.Sprintf("running %q: what its first line names is not there", p.Args[0]), Exit: 126}, nil
	case errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOENT):
		return &Done{NotStarted: fmt.Sprintf("running %q: %v", p.Args[0], err), Exit: 126}, nil
	case err != nil:
		return nil, fmt.Errorf("starting the command in its own user namespace: %w", err)
	}
	go func() {
		for number := 0; t.in.Decode(&number) == nil; {
			_ = unix.Kill(pid, syscall.Signal(number))
		}
	}()
	l := lender{known: map[int]bool{}}
	for {
		var st unix.WaitStatus
		got, err := unix.Wait4(-1, &st, unix.WUNTRACED|unix.WALL, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("waiting for the command: %w", err)
		case p.Lend && st.Stopped():
			l.stopped(got, st)
		case got != pid: // an orphan
			l.forget(got)
		case st.Stopped():
			stopped()
		case st.Signaled():
			return &Done{Exit: 128 + int(st.Signal())}, nil
		case st.Exited():
			return &Done{Exit: st.ExitStatus()}, nil
		}
	}
}

// start starts a program as the command.
func (p *insidePlan) start(program string, args []string) (int, error) {
	return syscall.ForkExec(program, args, &syscall.ProcAttr{
		Dir: p.Dir, Env: p.Env, Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, Ptrace: p.Lend,
			UidMappings: p.Maps.Users, GidMappings: p.Maps.Groups, GidMappingsEnableSetgroups: !p.single(),
		},
	})
}

// isScript reports whether a program is a text. Where it does not begin with
// what it is run by, every shell and execvp(3) let sh run it.
func isScript(program string) bool {
	f, err := os.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 128)
	n, err := io.ReadFull(f, head)
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && !bytes.Contains(head[:n], []byte{0})
}

// single reports whether the command has one user only: the kernel then lets
// nobody set groups.
func (p *insidePlan) single() bool {
	return len(p.Maps.Users) == 1 && p.Maps.Users[0].Size == 1
}

// find looks for the program on the command's own PATH, as a shell would.
func (p *insidePlan) find() (program, why string, code int) {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(p.Dir, name)
		}
		return name, p.unusable(name, name), 127
	}
	path := ""
	for _, kv := range p.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	code = 127
	why = fmt.Sprintf("running %q: no such program on PATH", name)
	for _, dir := range filepath.SplitList(path) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(p.Dir, dir)
		}
		full := filepath.Join(dir, name)
		_, err := exec.LookPath(full)
		if err == nil {
			return full, "", 0
		}
		if errors.Is(err, fs.ErrPermission) {
			why, code = fmt.Sprintf("running %q: %v", full, fs.ErrPermission), 126
		}
	}
	return "", why, code
}

func (p *insidePlan) unusable(name, shown string) string {
	if _, err := os.Stat(name); err != nil {
		return fmt.Sprintf("running %q: no such program", shown)
	}
	return ""
}
