package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/sign"
)

// Environment is os.LookupEnv for a process that starts others, and apart from
// it the password of a key and the PIN of a token: no child inherits them,
// whichever way it is started, and they do not lie about in memory. The bytes are
// the caller's to overwrite.
func Environment() (lookup func(name string) (string, bool), secret func(name string) ([]byte, bool)) {
	held := map[string]*sign.Hidden{}
	for _, name := range []string{passwordVariable, pinVariable} {
		if value, set := takeEnv(name); set {
			held[name] = sign.Hide(value)
		}
	}
	if len(held) > 0 {
		// openSigner says so where it fails.
		_ = guard()
	}
	return os.LookupEnv, func(name string) ([]byte, bool) {
		h, ok := held[name]
		if !ok {
			return nil, false
		}
		return h.Reveal(), true
	}
}

// takeEnv takes a variable out of this process's environment, and overwrites it
// where it was: in Go's own copy, and where the kernel put it, which is what
// /proc shows.
func takeEnv(name string) ([]byte, bool) {
	value, set := os.LookupEnv(name)
	if !set {
		return nil, false
	}
	held := sign.Hide([]byte(value))
	defer held.Forget()
	// It fails for a name that is none.
	_ = os.Unsetenv(name)
	overwrite(uintptr(unsafe.Pointer(unsafe.StringData(value))), len(value)) //nolint:gosec // an address for the kernel, and nobody else has the string
	if from, until := environBlock(); until > from {
		block := make([]byte, 1+until-from) // what comes before an entry is a zero
		defer clear(block)
		local := []unix.Iovec{{Base: &block[1], Len: uint64(len(block) - 1)}}
		if _, err := unix.ProcessVMReadv(os.Getpid(), local, []unix.RemoteIovec{{Base: from, Len: len(block) - 1}}, 0); err != nil {
			return held.Reveal(), true
		}
		if at := bytes.Index(block, []byte("\x00"+name+"=")); at >= 0 {
			overwrite(from+uintptr(at+len(name)+1), len(value))
		}
	}
	return held.Reveal(), true
}

// overwrite writes asterisks over memory of this process. What cannot be written
// stays as it is, and guard keeps it to ourselves.
func overwrite(at uintptr, size int) {
	if size == 0 {
		return
	}
	stars := bytes.Repeat([]byte("*"), size)
	local := []unix.Iovec{{Base: &stars[0], Len: uint64(size)}}
	_, _ = unix.ProcessVMWritev(os.Getpid(), local, []unix.RemoteIovec{{Base: at, Len: size}}, 0)
}

// environBlock is where the kernel put the environment: proc_pid_stat(5), fields
// 50 and 51.
func environBlock() (from, until uintptr) {
	raw, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		return 0, 0
	}
	// The second field is a name in parentheses, with anything in it.
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) < 49 {
		return 0, 0
	}
	start, errStart := strconv.ParseUint(fields[47], 10, 64)
	end, errEnd := strconv.ParseUint(fields[48], 10, 64)
	if errors.Join(errStart, errEnd) != nil || end-start > 8<<20 {
		return 0, 0
	}
	return uintptr(start), uintptr(end)
}

// hold takes a key in a variable out of the environment, and keeps it until it is
// opened, which takes it: a command calls it first that starts other programs, as
// git or what has a registry's login, before it opens the key.
func (f *signFlags) hold(s *Streams) error {
	name, ok := strings.CutPrefix(f.key, "env://")
	if !ok {
		return nil
	}
	if err := guard(); err != nil {
		return err
	}
	if value, set := takeEnv(name); set {
		s.taken = map[string]*sign.Hidden{name: sign.Hide(value)}
	}
	return nil
}

// take is the value of a variable, which is taken out of the environment, so that
// nothing that this process starts has it.
func (s *Streams) take(name string) ([]byte, bool) {
	if held, ok := s.taken[name]; ok {
		defer held.Forget()
		delete(s.taken, name)
		return held.Reveal(), true
	}
	if value, ok := takeEnv(name); ok {
		return value, true
	}
	v, ok := s.LookupEnv(name)
	return []byte(v), ok
}

// secret is the value of a variable that opens a key or a token.
func (s *Streams) secret(name string) ([]byte, bool) {
	if s.Secret == nil {
		v, ok := s.LookupEnv(name)
		return []byte(v), ok
	}
	return s.Secret(name)
}

func (s *Streams) hasSecret(name string) bool {
	v, ok := s.secret(name)
	clear(v)
	return ok
}

// guard closes this process to all others but root's, before it holds a key: its
// memory and environment in /proc, a debugger, a core dump. It stays so; what
// Close of a key cannot reach is still there. A child that runs another program
// is a process like any other, and keeps what limit of cores the user set.
func guard() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("closing this process to others before it holds a key: %w", err)
	}
	return nil
}

// tryKeyName is the command by which waxseal starts itself to try a key, see
// sign.TryKey.
const tryKeyName = "try-key"

func newTryKeyCmd(s *Streams) *cobra.Command {
	return &cobra.Command{
		Use:    tryKeyName,
		Short:  "Try a key on its password",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := guard(); err != nil {
				return err
			}
			giveWay()
			return sign.TryKey(s.In, s.Out)
		},
	}
}

// giveWay lets others go before the goroutine that calls it. To try a password
// takes a processor a tenth of a second by design, while what somebody waits for
// begins.
func giveWay() {
	runtime.LockOSThread() // the priority is a thread's, and there are several already
	// Without it we are in the way, and that is all.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 10)
}

// ready is how to tell early whether a signer will open; nil for one that is open.
func ready(signer sign.Signer) func(context.Context) error {
	if r, ok := signer.(interface{ Ready(context.Context) error }); ok {
		return r.Ready
	}
	return nil
}

// askSecret reads at a terminal what is not shown there.
func askSecret(ctx context.Context, s *Streams, what, prompt, otherwise string) ([]byte, error) {
	in, ok := s.terminal()
	if !ok {
		return nil, hinted{fmt.Errorf("reading %s: there is no terminal to ask at", what), otherwise}
	}
	fd := int(in.Fd())
	shown, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	silent := *shown
	silent.Lflag = silent.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	silent.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &silent); err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	fmt.Fprint(s.Err, prompt)
	// A terminal gives a whole line at once, and no more than this.
	line, size := make([]byte, 4096), make(chan int, 1)
	go func() {
		n, err := unix.Read(fd, line)
		for errors.Is(err, unix.EINTR) {
			n, err = unix.Read(fd, line)
		}
		size <- n
	}()
	n := 0
	select {
	case n = <-size:
	case <-ctx.Done(): // that read goes on, and this process ends
	}
	_ = unix.IoctlSetTermios(fd, unix.TCSETS, shown) // it was set a moment ago
	fmt.Fprintln(s.Err)
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case n <= 0:
		return nil, fmt.Errorf("reading %s: nothing was typed", what)
	}
	return bytes.TrimRight(line[:n], "\r\n"), nil
}

// terminal is where a person can be asked.
func (s *Streams) terminal() (*os.File, bool) {
	in, ok := s.In.(*os.File)
	return in, ok && term.IsTerminal(int(in.Fd()))
}
