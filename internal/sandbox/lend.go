package sandbox

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/egress"
)

// lender gives what a command starts the variables of a step of ours where the
// command has dropped them. kaniko runs the steps of a Dockerfile as its own
// children, with the image's environment and no other: they would trust nothing
// that the gateway says. What lies in the image's files for them would come into
// the image, by COPY --from or a step's own cp, and could not be replaced by apt.
//
// So the command is traced until what it starts begins as another program, and
// that finds the variables on its stack. From then on nobody traces it: its
// children have them from it.
type lender struct {
	known map[int]bool // processes and threads that have stopped once
}

const (
	ptraceGetRegSet = 0x4204
	ptraceSetRegSet = 0x4205
	ntPRStatus      = 1 // the set of the general registers

	maxStack = 8 << 20  // bytes of arguments and environment: the kernel takes no more
	maxLent  = 96 << 10 // bytes of what is put below: the kernel makes 128 KiB ready
	wordSize = 8
)

// registers are the size of an architecture's general registers, and where among
// them the stack pointer is; zero where that is not known.
func registers(arch string) (size, stackPointer int) {
	switch arch {
	case "amd64":
		return 27 * wordSize, 19 * wordSize // struct user_regs_struct
	case "arm64":
		return 34 * wordSize, 31 * wordSize // struct user_pt_regs
	}
	return 0, 0
}

// canLend reports whether this program knows the machine's registers.
func canLend() bool {
	size, _ := registers(runtime.GOARCH)
	return size != 0
}

// stopped has a process go on that has stopped for its tracer. It must be called
// by the thread that started the command.
func (l *lender) stopped(pid int, st unix.WaitStatus) {
	const first = unix.PTRACE_O_EXITKILL | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACECLONE
	signal := 0
	switch event := int(st) >> 16; {
	case event == unix.PTRACE_EVENT_EXEC:
		if lent, err := lend(pid); lent || err != nil {
			// Whom nothing can be lent, nobody needs to watch either: it asks in vain.
			l.forget(pid)
			_ = unix.PtraceDetach(pid)
			return
		}
	case event != 0: // it has started somebody, who stops as well
	case len(l.known) == 0:
		_ = unix.PtraceSetOptions(pid, first)
		l.known[pid] = true
	case !l.known[pid]: // it begins
		l.known[pid] = true
	default:
		signal = int(st.StopSignal())
	}
	// It may have been killed meanwhile.
	_ = unix.PtraceCont(pid, signal)
}

func (l *lender) forget(pid int) { delete(l.known, pid) }

// lend gives a process that is about to begin a program the variables of a step,
// unless it has them from its parent.
func lend(pid int) (bool, error) {
	size, at := registers(runtime.GOARCH)
	regs := make([]byte, 1024)
	n, err := registerSet(ptraceGetRegSet, pid, regs)
	if err != nil {
		return false, fmt.Errorf("reading the registers of process %d: %w", pid, err)
	}
	if n != size { // a program of 32 bits
		return false, fmt.Errorf("reading the registers of process %d: they have %d bytes", pid, n)
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer mem.Close()
	sp := binary.NativeEndian.Uint64(regs[at:])
	stack := make([]byte, 256<<10)
	for {
		// To its upper end, where nothing more can be read.
		n, err := mem.ReadAt(stack, int64(sp))
		if err != nil {
			stack = stack[:n]
			break
		}
		if len(stack) >= maxStack {
			return false, fmt.Errorf("reading the stack of process %d: it is too large", pid)
		}
		stack = make([]byte, 2*len(stack))
	}
	top, err := lentStack(stack, sp)
	if err != nil || top == nil {
		return false, err
	}
	sp -= uint64(len(top))
	if _, err := mem.WriteAt(top, int64(sp)); err != nil {
		return false, err
	}
	binary.NativeEndian.PutUint64(regs[at:], sp)
	_, err = registerSet(ptraceSetRegSet, pid, regs[:size])
	return err == nil, err
}

func registerSet(request, pid int, regs []byte) (int, error) {
	v := unix.Iovec{Base: &regs[0]}
	v.SetLen(len(regs))
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), ntPRStatus, uintptr(unsafe.Pointer(&v)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(v.Len), nil
}

// lentStack is what must be put below a stack as a program finds it, at sp, for
// the program to begin there with the variables of a step; nil where it has
// them. On a stack are the number of the arguments, pointers to them and a zero,
// pointers to the variables and a zero, and pairs of numbers from the kernel, of
// which the last is zero.
func lentStack(stack []byte, sp uint64) ([]byte, error) {
	word := func(i int) (uint64, error) {
		if i < 0 || (i+1)*wordSize > len(stack) {
			return 0, fmt.Errorf("reading a stack: it ends after %d bytes", len(stack))
		}
		return binary.NativeEndian.Uint64(stack[i*wordSize:]), nil
	}
	count, err := word(0)
	if err != nil {
		return nil, err
	}
	if count > maxStack/wordSize {
		return nil, fmt.Errorf("reading a stack: %d arguments", count)
	}
	variables := 1 + int(count) + 1
	var env []string
	places := map[string]uint64{}
	i := variables
	for ; ; i++ {
		p, err := word(i)
		if err != nil {
			return nil, err
		}
		if p == 0 {
			break
		}
		if p < sp || p-sp >= uint64(len(stack)) {
			return nil, errors.New("reading a stack: a variable is elsewhere")
		}
		text, _, ended := bytes.Cut(stack[p-sp:], []byte{0})
		if !ended {
			return nil, errors.New("reading a stack: a variable has no end")
		}
		env = append(env, string(text))
		places[string(text)] = p
	}
	if slices.ContainsFunc(env, func(kv string) bool { return strings.Contains(kv, "="+egress.MountPoint+"/") }) {
		return nil, nil
	}
	rest := i + 1
	for i = rest; ; i += 2 {
		kind, err := word(i)
		if err == nil {
			_, err = word(i + 1)
		}
		if err != nil {
			return nil, err
		}
		if kind == 0 {
			break
		}
	}
	auxiliary := stack[rest*wordSize : (i+2)*wordSize]

	var texts []byte
	var offsets []int // into texts, -1 for what is there already
	env = egress.Environ(env)
	for _, kv := range env {
		if places[kv] != 0 {
			offsets = append(offsets, -1)
			continue
		}
		offsets = append(offsets, len(texts))
		texts = append(append(texts, kv...), 0)
	}
	pointers := variables + len(env) + 1
	size := (pointers*wordSize + len(auxiliary) + len(texts) + 15) &^ 15 // to which a stack is aligned
	if size > maxLent {
		return nil, fmt.Errorf("making a stack: %d bytes", size)
	}
	textsAt := pointers*wordSize + len(auxiliary)
	out := make([]byte, 0, size)
	out = append(out, stack[:variables*wordSize]...)
	for n, kv := range env {
		p := places[kv]
		if offsets[n] >= 0 {
			p = sp - uint64(size) + uint64(textsAt+offsets[n])
		}
		out = binary.NativeEndian.AppendUint64(out, p)
	}
	out = binary.NativeEndian.AppendUint64(out, 0)
	out = append(append(out, auxiliary...), texts...)
	return out[:size], nil
}
