package sandbox

import (
	"slices"

	"golang.org/x/sys/unix"
)

// audit architectures: linux/audit.h.
const (
	auditX86_64  = 0xc000003e
	auditI386    = 0x40000003
	auditAArch64 = 0xc00000b7

	x32Bit = 0x40000000 // of the numbers of x86-64's third ABI
)

// Offsets into struct seccomp_data; the low half of an argument comes first.
const (
	dataNumber = 0
	dataArch   = 4
	dataArg0   = 16
	dataArg1   = 24
)

const (
	tiocsti   = 0x5412 // puts bytes into the terminal, as if somebody had typed them
	tioclinux = 0x541c
)

// callNumbers are those of one architecture.
type callNumbers struct {
	socket, ioctl  uint32
	clone, unshare uint32
	denied         []uint32 // with EPERM
	absent         []uint32 // with ENOSYS: programs then do without
}

// commandFilter is the seccomp filter of a confined command: no socket of a
// family that no network namespace holds, none of the calls that get past a
// filter or to what namespaces do not part, no typing into the terminal, and no
// namespace of control groups: who has one can mount the machine's, and as root
// kill or hold there what waxseal runs beside. Nil where the architecture is not
// known.
func commandFilter(arch string) []unix.SockFilter {
	// The same on every architecture since Linux 5.1: io_uring opens sockets
	// that no filter sees, and what clone3 is asked for none sees either.
	unseen := []uint32{425, 426, 427, 435}
	switch arch {
	case "amd64":
		native := callNumbers{
			socket: 41, ioctl: 16, clone: 56, unshare: 272,
			// open_by_handle_at, bpf, perf_event_open, userfaultfd, kexec_load,
			// kexec_file_load, init_module, finit_module, delete_module, iopl, ioperm
			denied: []uint32{304, 321, 298, 323, 246, 320, 175, 313, 176, 172, 173},
			// add_key, request_key, keyctl: keyrings are shared with the machine
			absent: append([]uint32{248, 249, 250}, unseen...),
		}
		compat := callNumbers{
			socket: 359, ioctl: 54, clone: 120, unshare: 310,
			denied: []uint32{342, 357, 336, 374, 283, 128, 350, 129, 110, 101},
			// socketcall, which no filter can look into, too
			absent: append([]uint32{102, 286, 287, 288}, unseen...),
		}
		return slices.Concat(native.program(auditX86_64, true), compat.program(auditI386, false), answer32(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
	case "arm64":
		native := callNumbers{
			socket: 198, ioctl: 29, clone: 220, unshare: 97,
			denied: []uint32{265, 280, 241, 282, 104, 294, 105, 273, 106},
			absent: append([]uint32{217, 218, 219}, unseen...),
		}
		return slices.Concat(native.program(auditAArch64, false), answer32(unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS)))
	}
	return nil
}

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

// unless skips n instructions where the loaded word is not k.
func unless(k uint32, n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: uint8(n), K: k}
}

func answer32(verdict uint32) []unix.SockFilter {
	return []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: verdict}}
}

func deny(errno unix.Errno) []unix.SockFilter {
	return answer32(unix.SECCOMP_RET_ERRNO | uint32(errno))
}

// when does then where the loaded word is k. What it does must end with an
// answer.
func when(k uint32, then []unix.SockFilter) []unix.SockFilter {
	return append([]unix.SockFilter{unless(k, len(then))}, then...)
}

// program is the filter for calls of one architecture; those of others go on
// behind it.
func (c callNumbers) program(arch uint32, x32 bool) []unix.SockFilter {
	allow := answer32(unix.SECCOMP_RET_ALLOW)
	families := []unix.SockFilter{load(dataArg0)}
	for _, family := range []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6, unix.AF_NETLINK} {
		families = append(families, when(family, allow)...)
	}
	families = append(families, deny(unix.EAFNOSUPPORT)...)
	typing := []unix.SockFilter{load(dataArg1)}
	for _, request := range []uint32{tiocsti, tioclinux} {
		typing = append(typing, when(request, deny(unix.EPERM))...)
	}
	typing = append(typing, allow...)
	groups := []unix.SockFilter{load(dataArg0), {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, Jf: 1, K: unix.CLONE_NEWCGROUP}}
	groups = slices.Concat(groups, deny(unix.EPERM), allow)

	body := []unix.SockFilter{load(dataNumber)}
	if x32 {
		body = append(body, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32Bit})
		body = append(body, deny(unix.ENOSYS)...)
	}
	body = append(body, when(c.socket, families)...)
	body = append(body, when(c.ioctl, typing)...)
	body = append(body, when(c.clone, groups)...)
	body = append(body, when(c.unshare, groups)...)
	for _, n := range c.denied {
		body = append(body, when(n, deny(unix.EPERM))...)
	}
	for _, n := range c.absent {
		body = append(body, when(n, deny(unix.ENOSYS))...)
	}
	body = append(body, allow...)
	return slices.Concat(
		// A jump of eight bits would not do.
		[]unix.SockFilter{load(dataArch), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: arch},
			{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(body))}},
		body)
}
