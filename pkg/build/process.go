package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Process is a wrapped command as it is started: its streams, its terminal and
// its signals are its own.
type Process struct {
	Args []string // the program, found on our PATH, and its arguments
	Env  []string // the whole environment
	Dir  string   // "" is the working directory
	// The streams are handed over as they are where they are an *os.File, and
	// copied where not.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Attr is what the child is started with besides a process group of its
	// own; nil for nothing.
	Attr *syscall.SysProcAttr
	// Files are handed over from file descriptor 3 on.
	Files []*os.File
	// Stops says that what the child runs was stopped, where the child itself
	// never is. Nobody closes it.
	Stops <-chan struct{}
	// Deliver takes signals to what the child runs; nil for to the child.
	Deliver func(syscall.Signal)
	// Started is told the process, which is a group of its own; nil for nobody.
	Started func(pid int)
}

// endTime is how long a command may take to end that was told to.
const endTime = 5 * time.Second

// StartError is a command that could not be started.
type StartError struct {
	cause error
	// Code is the exit code that shells give it: 127 for no such program, 126
	// for one that cannot be run.
	Code int
}

func (e *StartError) Error() string { return e.cause.Error() }
func (e *StartError) Unwrap() error { return e.cause }

// Run runs the command to its end and returns its exit code, 128 and the
// signal's number where one ended it. A signal to this process is passed on,
// once; one from the terminal reaches the command without our help, because
// while it runs the terminal is the command's. When ctx ends the command is told
// to end, and killed when it does not. It is killed, too, when this process is.
func (p *Process) Run(ctx context.Context) (code int, err error) {
	program, err := exec.LookPath(p.Args[0])
	if err != nil {
		code := 127
		if errors.Is(err, fs.ErrPermission) {
			code = 126
		}
		return 0, &StartError{fmt.Errorf("running %q: %w", p.Args[0], lastCause(err)), code}
	}
	args := p.Args
	if isNameless(program) {
		program, args = "/bin/sh", append([]string{"sh", program}, args[1:]...)
	}
	cmd := &exec.Cmd{
		Path: program, Args: args, Env: p.Env, Dir: p.Dir, Stdin: p.Stdin, Stdout: p.Stdout, Stderr: p.Stderr, ExtraFiles: p.Files,
		// Where a stream is copied, a child that the command left behind must
		// not hold us.
		WaitDelay: 5 * time.Second,
	}
	attr := syscall.SysProcAttr{}
	if p.Attr != nil {
		attr = *p.Attr
	}
	attr.Setpgid, attr.Pdeathsig = true, syscall.SIGKILL
	t := controlling(p.Stdin, p.Stdout, p.Stderr)
	if t != nil {
		attr.Foreground, attr.Ctty = true, int(t.Fd())
	}
	cmd.SysProcAttr = &attr

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	// The parent-death signal comes when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if err := startMapped(cmd); err != nil {
		return 0, &StartError{fmt.Errorf("running %q: %w", p.Args[0], lastCause(err)), 126}
	}
	pid := cmd.Process.Pid
	if p.Started != nil {
		p.Started(pid)
	}
	if t != nil {
		// To take the terminal back from the background stops us otherwise. Not
		// before the start: the command would inherit it.
		signal.Ignore(unix.SIGTTOU)
		defer signal.Reset(unix.SIGTTOU)
		defer func() {
			t.take()
			if code > 128 || err != nil { // a command that ended by itself has left it as it meant to
				t.restore()
			}
		}()
		go t.followStops(pid)
	}
	deliver := p.Deliver
	if deliver == nil {
		deliver = func(s syscall.Signal) { _ = unix.Kill(pid, s) }
	}
	ended := make(chan struct{})
	if t != nil && p.Stops != nil {
		go func() {
			for {
				select {
				case <-p.Stops:
					t.pause(pid)
				case <-ended:
					return
				}
			}
		}()
	}
	go func() {
		for {
			select {
			case s := <-signals:
				deliver(s.(syscall.Signal))
			case <-ctx.Done():
				if p.Deliver != nil {
					p.Deliver(unix.SIGTERM)
				} else {
					_ = unix.Kill(-pid, unix.SIGTERM)
				}
				select {
				case <-ended:
				case <-time.After(endTime):
					_ = unix.Kill(-pid, unix.SIGKILL)
				}
				return
			case <-ended:
				return
			}
		}
	}()
	err = cmd.Wait()
	close(ended)
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	var exit *exec.ExitError
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay):
		return cmd.ProcessState.ExitCode(), nil
	case errors.As(err, &exit):
		if st, ok := exit.Sys().(syscall.WaitStatus); ok && st.Signaled() {
			return 128 + int(st.Signal()), nil
		}
		return exit.ExitCode(), nil
	}
	return 0, fmt.Errorf("waiting for %q: %w", p.Args[0], err)
}

// terminal is the one that this process is in the foreground of.
type terminal struct {
	*os.File
	was *unix.Termios // its settings when it was found; nil where it does not say
}

// controlling finds the terminal among streams; nil where there is none, or
// where somebody else has it.
func controlling(streams ...any) *terminal {
	for _, s := range streams {
		f, ok := s.(*os.File)
		if !ok || !term.IsTerminal(int(f.Fd())) {
			continue
		}
		t := &terminal{File: f}
		if front, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPGRP); err == nil && front == unix.Getpgrp() {
			t.was, _ = unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
			return t
		}
	}
	return nil
}

// restore gives the terminal the settings that it had, which a program that was
// killed could not.
func (t *terminal) restore() {
	if t.was != nil {
		// The terminal may be gone; then there is nothing to restore.
		_ = unix.IoctlSetTermios(int(t.Fd()), unix.TCSETSW, t.was)
	}
}

// take puts this process in the foreground.
func (t *terminal) take() { t.give(unix.Getpgrp()) }

func (t *terminal) give(group int) {
	// The terminal may be gone; then there is nothing to give.
	_ = unix.IoctlSetPointerInt(int(t.Fd()), unix.TIOCSPGRP, group)
}

// followStops stops this process where the command stops (Ctrl-Z), so that the
// shell gets its prompt, and has the command go on when the shell says so. It
// returns when the command has ended.
func (t *terminal) followStops(pid int) {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WSTOPPED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // the command has ended
		}
		t.pause(pid)
	}
}

// pause stops this process for a command that has been stopped, and has both
// go on together.
func (t *terminal) pause(pid int) {
	again := make(chan os.Signal, 1)
	signal.Notify(again, unix.SIGCONT)
	defer signal.Stop(again)
	t.take()
	// Another thread may be the first to stop: this one would run on for a moment.
	if unix.Kill(0, unix.SIGSTOP) == nil {
		<-again
	}
	// We are running again. Where that is in the foreground, so is the command.
	if front, err := unix.IoctlGetInt(int(t.Fd()), unix.TIOCGPGRP); err == nil && front == unix.Getpgrp() {
		t.give(pid)
	}
	_ = unix.Kill(-pid, unix.SIGCONT)
}

// giveWay lets others go before a child that leads a process group of its own:
// nobody waits for what it does.
func giveWay(pid int) {
	// Without it the child is in the way, and that is all.
	_ = unix.Setpriority(unix.PRIO_PGRP, pid, 10)
}

// isNameless reports whether a program is a text that does not begin with what
// it is run by: every shell and execvp(3) let sh run it.
func isNameless(program string) bool {
	f, err := os.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, 128)
	n, err := io.ReadFull(f, head)
	head = head[:n]
	return (err == nil || errors.Is(err, io.ErrUnexpectedEOF)) && !bytes.HasPrefix(head, []byte("#!")) && !bytes.Contains(head, []byte{0})
}

// startMapped starts a child. One that gets a user namespace shares our memory
// until it is another program, and while that is closed to others, as that of who
// holds a key is, nobody but root may write its maps: it is opened for the moment
// that this takes, when nothing of the command runs yet.
func startMapped(cmd *exec.Cmd) error {
	if cmd.SysProcAttr.Cloneflags&unix.CLONE_NEWUSER != 0 {
		if open, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err == nil && open == 0 {
			if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
				return err
			}
			// What could be set a moment ago can be set back.
			defer func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0) }()
		}
	}
	return cmd.Start()
}
