package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/egress"
)

// TestMain is the keeper and the first process, too, and what tests want to
// have run: a listener, and somebody who tries to reach one.
func TestMain(m *testing.M) {
	code, err := 0, error(nil)
	switch args := append(os.Args[1:], "", ""); args[0] {
	case "keep":
		code, err = Keep(context.Background(), "(test)")
	case "first":
		err = First()
	case "listen":
		err = listenAt(args[1])
	case "dial":
		var c net.Conn
		if c, err = net.Dial("unix", args[1]); err == nil {
			c.Close()
		}
	case "variable":
		_, err = fmt.Println(os.Getenv(args[1]))
	default:
		code = m.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// listenAt listens until it is killed, and closes its stdout when it does.
func listenAt(name string) error {
	l, err := net.Listen("unix", name)
	if err != nil {
		return err
	}
	os.Stdout.Close()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
	}
}

// confine runs a shell script as a confined command. What before does, as a
// script too, it does to the machine as the keeper finds it: in mounts and with
// processes that end with it. $SELF is this program, $D is dir.
func confine(t *testing.T, dir, before, script string, plan Plan) (*Done, Ready, string) {
	t.Helper()
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "set -e\nmount --make-rprivate /\n"+before+"\nexec \"$SELF\" keep")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "SELF=" + self, "D=" + dir}
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &out, &out, []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	plan.Name, plan.Args, plan.Env = "test", []string{"sh", "-c", script}, cmd.Env
	if plan.Dir == "" {
		plan.Dir = dir
	}
	say := json.NewEncoder(ours)
	if err := say.Encode(plan); err != nil {
		t.Fatal(err)
	}
	var ready Ready
	var done *Done
	for in := json.NewDecoder(ours); ; {
		var m Message
		if err := in.Decode(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch {
		case m.Error != "":
			t.Errorf("the keeper: %s", m.Error)
		case m.Ready != nil:
			ready = *m.Ready
			if err := say.Encode(Start{Go: true}); err != nil {
				t.Fatal(err)
			}
		case m.Done != nil:
			done = m.Done
		}
	}
	err = cmd.Wait()
	if done == nil {
		t.Fatalf("nothing came of it: %v\n%s", err, out.String())
	}
	return done, ready, out.String()
}

// needRoot skips a test that makes namespaces, but for in CI.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("CI") != "true" {
		t.Skip("needs root: namespaces")
	}
}

func newDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// A socket is hidden by every name that it has here, whoever bound it and under
// which name.
func TestSocketsAreHidden(t *testing.T) {
	dir := newDir(t)
	const before = `
mkdir "$D/volume" "$D/linked" "$D/mnt"
listen() { : "$("$SELF" listen "$1" 2>/dev/null &)"; }
# One that is mounted, as /docker.sock in a container.
listen "$D/plain.sock"
touch "$D/mounted.sock"
mount --bind "$D/plain.sock" "$D/mounted.sock"
# One that was bound through a link below /run.
mount -t tmpfs none /run
ln -s "$D/linked" /run/linked
listen /run/linked/s
# One that a container bound, in a folder that is of this machine.
: "$(unshare -m -n sh -c 'mount --bind "$D/volume" "$D/mnt"; exec "$SELF" listen "$D/mnt/s"' 2>/dev/null &)"
# A working folder below /run.
mkdir /run/job
listen /run/job/s
`
	const script = `for s in "$D/plain.sock" "$D/mounted.sock" "$D/linked/s" "$D/volume/s" /run/job/s; do
	test -e "$s" || echo "no $s"
	"$SELF" dial "$s" 2>/dev/null && echo "reached $s"
done
true`
	_, ready, out := confine(t, dir, before, script, Plan{Dir: "/run/job"})
	if out != "" || len(ready.Open) != 0 {
		t.Errorf("open: %q\n%s", ready.Open, out)
	}
}

// In a container nobody sees who listens at what is mounted into it.
func TestSocketsThatAreMountedIntoAContainer(t *testing.T) {
	needRoot(t)
	dir := newDir(t)
	const before = `
mount -t proc proc /proc
mkdir -p "$D/container/folder"
touch "$D/container/docker.sock"
mount --bind "$D/host/docker/s" "$D/container/docker.sock"
mount --bind "$D/host/folder" "$D/container/folder"
mount -t tmpfs none "$D/host"
`
	for _, of := range []string{"docker", "folder"} {
		folder := filepath.Join(dir, "host", of)
		if err := os.MkdirAll(folder, 0o755); err != nil {
			t.Fatal(err)
		}
		listener := exec.Command(os.Args[0], "listen", filepath.Join(folder, "s"))
		listener.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
		up, err := listener.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := listener.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = listener.Process.Kill()
			_ = listener.Wait()
		})
		_, _ = io.Copy(io.Discard, up)
	}
	const script = `for s in "$D/container/docker.sock" "$D/container/folder/s"; do
	test -e "$s" || echo "no $s"
	"$SELF" dial "$s" 2>/dev/null && echo "reached $s"
done
true`
	if _, ready, out := confine(t, dir, before, script, Plan{Container: true}); out != "" || len(ready.Open) != 0 {
		t.Errorf("open: %q\n%s", ready.Open, out)
	}
}

// What is to be hidden is not seen by another name either.
func TestTheKeyIsHiddenWhereverItIsMounted(t *testing.T) {
	dir := newDir(t)
	const before = `
mkdir -p "$D/home/store/inner" "$D/second" "$D/third"
for f in home/key home/store/inner/kept; do echo secret >"$D/$f"; done
echo plain >"$D/home/plain"
mount --bind "$D/home" "$D/second"
mount --bind "$D/home/store/inner" "$D/third"
mount -t tmpfs none /run
mkdir -p /run/job/store
echo secret >/run/job/key
echo secret >/run/job/store/kept
echo plain >/run/job/plain
`
	const script = `cat "$D/home/key" "$D/second/key" "$D/third/kept" "$D"/home/store/* "$D"/second/store/* key store/* 2>/dev/null
cat plain "$D/home/plain" "$D/second/plain"`
	_, _, out := confine(t, dir, before, script, Plan{Dir: "/run/job", Hide: []string{
		"/run/job/key", "/run/job/store", filepath.Join(dir, "home/key"), filepath.Join(dir, "home/store"),
	}})
	if out != strings.Repeat("plain\n", 3) {
		t.Errorf("the command saw %q", out)
	}
}

// Root of the machine could have the kernel run a program by a second /proc.
func TestTheKernelsFilesAreReadOnlyEverywhere(t *testing.T) {
	dir := newDir(t)
	const before = `
mkdir "$D/proc" "$D/sys"
mount -t proc proc "$D/proc"
mount -t sysfs sysfs "$D/sys"
`
	const script = `for f in sys/kernel/core_pattern sys/kernel/modprobe sys/vm/drop_caches; do
	for p in /proc "$D/proc"; do
		test -e "$p/$f" && (: >>"$p/$f") 2>/dev/null && echo "could write $p/$f"
	done
done
for p in /sys "$D/sys"; do
	find "$p" -maxdepth 4 -type f -writable 2>/dev/null | head -n 1
	test -e "$p/kernel/uevent_seqnum" || echo "nothing at $p"
	(: >>"$p/kernel/uevent_helper") 2>/dev/null && echo "could write $p/kernel/uevent_helper"
done
mkdir "$D/another"
unshare -p -f -m sh -c 'mount -t proc proc "$D/another" && : >>"$D/another/sys/kernel/core_pattern"' 2>/dev/null && echo "could write another /proc"
true`
	if _, _, out := confine(t, dir, before, script, Plan{}); out != "" {
		t.Error(out)
	}
}

// Where the keeper has its own files says nothing about where a command works.
func TestAWorkingFolderInSharedMemory(t *testing.T) {
	const before = `
mount -t tmpfs none /dev/shm
mkdir /dev/shm/job
echo here >/dev/shm/job/f
echo other >/dev/shm/other
`
	const script = `cat f
test -e /dev/shm/other && echo "others' memory"
test -e /sys/kernel || echo "no /sys"
ls /sys | grep -x -e empty -e none -e resolv.conf
grep -q 'nameserver ` + egress.Resolver + `' /etc/resolv.conf || echo "another name server"
(: >>/sys/kernel/uevent_helper) 2>/dev/null && echo "could write /sys"
echo new >g`
	if _, _, out := confine(t, newDir(t), before, script, Plan{Dir: "/dev/shm/job"}); out != "here\n" {
		t.Error(out)
	}
}

func TestACommandGetsNoNewPrivileges(t *testing.T) {
	const script = `grep NoNewPrivs: /proc/self/status | tr -d '\t'`
	done, _, out := confine(t, newDir(t), "", script+"; exit 3", Plan{})
	if out != "NoNewPrivs:1\n" || done.Exit != 3 {
		t.Errorf("%d: %s", done.Exit, out)
	}
}
