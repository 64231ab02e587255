package engine

import (
	"slices"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// A process of 64 bits can make calls of 32, among them one that opens sockets
// without the filter being able to see of what family.
func TestNoSocketGetsRoundTheFilter(t *testing.T) {
	spec := func() *specs.Spec {
		s := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}, Linux: &specs.Linux{}}
		var err error
		if s.Linux.Seccomp, err = seccomp.GetDefaultProfile(s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	allows := func(s *specs.Spec, name string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(r specs.LinuxSyscall) bool { return r.Action == specs.ActAllow && slices.Contains(r.Names, name) })
	}
	s := spec()
	if !allows(s, "socketcall") {
		t.Fatal("the profile does not allow socketcall any more: closeSockets is not needed")
	}
	if why := closeSockets(s, "linux/amd64"); why != "" || allows(s, "socketcall") || !allows(s, "socket") || !allows(s, "connect") {
		t.Errorf("left open: %q, socketcall %t, socket %t", why, allows(s, "socketcall"), allows(s, "socket"))
	}
	if again := spec(); !allows(again, "socketcall") {
		t.Error("the profile of others was changed")
	}
	for _, platform := range []string{"linux/386", "linux/s390x"} {
		if s := spec(); closeSockets(s, platform) == "" || !allows(s, "socketcall") {
			t.Errorf("%s needs socketcall, and has no gap or not it", platform)
		}
	}
	if why := closeSockets(&specs.Spec{}, "linux/amd64"); why == "" {
		t.Error("a step without a filter has no gap")
	}
}
