package build

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Who holds a key can start a child in a user namespace, and is closed again.
func TestStartMapped(t *testing.T) {
	if os.Getenv("WAXSEAL_TEST_MAPPED") == "" {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command(self, "-test.run", "^TestStartMapped$")
		child.Env = append(os.Environ(), "WAXSEAL_TEST_MAPPED=1")
		if os.Geteuid() == 0 {
			child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			child.Path, child.Dir = forAnybody(t, self), "/"
		}
		if out, err := child.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	apart := func() *exec.Cmd {
		cmd := exec.Command("true")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}}
		return cmd
	}
	// By its exec it is open; a machine may have no such namespaces for it.
	if err := apart().Run(); err != nil {
		t.Skipf("no user namespace here: %v", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	cmd := apart()
	if err := startMapped(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if open, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || open != 0 {
		t.Errorf("it stays open: %d, %v", open, err)
	}
}

// forAnybody is a program where anybody may run it.
func forAnybody(t *testing.T, program string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "waxseal-mapped-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	raw, err := os.ReadFile(program)
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = os.WriteFile(dir+"/test", raw, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/test"
}
