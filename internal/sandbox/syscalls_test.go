package sandbox

import (
	"encoding/binary"
	"maps"
	"syscall"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// answers runs the filter over one call.
func answers(t *testing.T, filter []unix.SockFilter, arch, number, arg0, arg1 uint32) uint32 {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(filter))
	for i, f := range filter {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("there is an instruction that is none")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	// The machine here reads words as packets have them.
	data := make([]byte, 64)
	for at, word := range map[int]uint32{dataNumber: number, dataArch: arch, dataArg0: arg0, dataArg1: arg1} {
		binary.BigEndian.PutUint32(data[at:], word)
	}
	n, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

func TestCommandFilter(t *testing.T) {
	const allow = unix.SECCOMP_RET_ALLOW
	no := func(errno unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(errno) }
	for _, test := range []struct {
		name               string
		goarch             string
		arch, number, a, b uint32
		want               uint32
	}{
		{"read", "amd64", auditX86_64, 0, 0, 0, allow},
		{"a unix socket", "amd64", auditX86_64, 41, unix.AF_UNIX, 0, allow},
		{"an IPv6 socket", "amd64", auditX86_64, 41, unix.AF_INET6, 0, allow},
		{"a netlink socket", "amd64", auditX86_64, 41, unix.AF_NETLINK, 0, allow},
		{"vsock", "amd64", auditX86_64, 41, unix.AF_VSOCK, 0, no(unix.EAFNOSUPPORT)},
		{"packet", "amd64", auditX86_64, 41, unix.AF_PACKET, 0, no(unix.EAFNOSUPPORT)},
		{"a terminal's size", "amd64", auditX86_64, 16, 0, unix.TIOCGWINSZ, allow},
		{"typing", "amd64", auditX86_64, 16, 0, unix.TIOCSTI, no(unix.EPERM)},
		{"a console's selection", "amd64", auditX86_64, 16, 0, unix.TIOCLINUX, no(unix.EPERM)},
		{"bpf", "amd64", auditX86_64, 321, 0, 0, no(unix.EPERM)},
		{"a handle", "amd64", auditX86_64, 304, 0, 0, no(unix.EPERM)},
		{"io_uring", "amd64", auditX86_64, 425, 0, 0, no(unix.ENOSYS)},
		{"a keyring", "amd64", auditX86_64, 250, 0, 0, no(unix.ENOSYS)},
		{"a user namespace", "amd64", auditX86_64, 272, unix.CLONE_NEWUSER | unix.CLONE_NEWNS, 0, allow},
		{"a thread", "amd64", auditX86_64, 56, unix.CLONE_VM | unix.CLONE_FILES, 0, allow},
		{"control groups", "amd64", auditX86_64, 272, unix.CLONE_NEWUSER | unix.CLONE_NEWCGROUP, 0, no(unix.EPERM)},
		{"control groups of a child", "amd64", auditX86_64, 56, unix.CLONE_NEWCGROUP, 0, no(unix.EPERM)},
		{"control groups, unseen", "amd64", auditX86_64, 435, 0, 0, no(unix.ENOSYS)},
		{"control groups of 32 bits", "amd64", auditI386, 310, unix.CLONE_NEWCGROUP, 0, no(unix.EPERM)},
		{"control groups on arm64", "arm64", auditAArch64, 97, unix.CLONE_NEWCGROUP, 0, no(unix.EPERM)},
		{"x32", "amd64", auditX86_64, x32Bit | 41, unix.AF_VSOCK, 0, no(unix.ENOSYS)},
		{"mount", "amd64", auditX86_64, 165, 0, 0, allow},
		{"32 bits", "amd64", auditI386, 4, 0, 0, allow},
		{"socketcall", "amd64", auditI386, 102, 1, 0, no(unix.ENOSYS)},
		{"vsock of 32 bits", "amd64", auditI386, 359, unix.AF_VSOCK, 0, no(unix.EAFNOSUPPORT)},
		{"another machine", "amd64", auditAArch64, 0, 0, 0, no(unix.ENOSYS)},
		{"arm64", "arm64", auditAArch64, 63, 0, 0, allow},
		{"vsock on arm64", "arm64", auditAArch64, 198, unix.AF_VSOCK, 0, no(unix.EAFNOSUPPORT)},
		{"32 bits on arm64", "arm64", auditI386, 4, 0, 0, no(unix.ENOSYS)},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := answers(t, commandFilter(test.goarch), test.arch, test.number, test.a, test.b); got != test.want {
				t.Errorf("%#x, want %#x", got, test.want)
			}
		})
	}
	if commandFilter("riscv64") != nil {
		t.Error("an architecture whose calls nobody has looked up has a filter")
	}
}

func TestParseSocketTable(t *testing.T) {
	const table = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01 16163 /run/docker.sock
0000000000000000: 00000003 00000000 00000000 0001 03 16164 /run/connected.sock
0000000000000000: 00000002 00000000 00000000 0002 01 16165 /dev/log
0000000000000000: 00000002 00000000 00010000 0001 01 16166 @abstract
0000000000000000: 00000002 00000000 00010000 0005 01 16167 a folder/with  spaces
0000000000000000: 00000002 00000000 00010000 0001 01 16168
`
	got := parseSocketTable([]byte(table))
	want := socketTable{"/run/docker.sock": "16163", "/dev/log": "16165", "a folder/with  spaces": "16167"}
	if !maps.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

func FuzzParseSocketTable(f *testing.F) {
	f.Add([]byte("0: 2 0 00010000 0001 01 16163 /run/docker.sock\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		for name := range parseSocketTable(raw) {
			if name == "" || name[0] == '@' {
				t.Errorf("%q", name)
			}
		}
	})
}

func TestIdentityMaps(t *testing.T) {
	m, err := identityMaps(1000, 100)
	if err != nil || len(m.Users) != 1 || m.Users[0].ContainerID != 1000 || m.Users[0].HostID != 0 || m.Groups[0].ContainerID != 100 {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err = identityMaps(0, 0); err != nil || len(m.Users) == 0 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, r := range m.Users {
		if r.ContainerID != r.HostID {
			t.Errorf("root's users are others inside: %+v", r)
		}
	}
}

// No map is the one by which programs know the machine's own root.
func TestVisibleMaps(t *testing.T) {
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1<<32 - 1}}
	got := visible(all)
	if len(got) != 2 || got[0].ContainerID != 0 || got[1].ContainerID != got[0].Size || got[0].Size+got[1].Size != all[0].Size {
		t.Errorf("%+v", got)
	}
	for _, m := range got {
		if m.ContainerID != m.HostID {
			t.Errorf("ids are others inside: %+v", m)
		}
	}
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	if got := visible(one); len(got) != 1 || got[0] != one[0] {
		t.Errorf("%+v", got)
	}
}

func TestUnescape(t *testing.T) {
	if got := unescape(`/a\040b\134040`); got != `/a b\040` {
		t.Errorf("%q", got)
	}
}
