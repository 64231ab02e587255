package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"golang.org/x/sys/unix"
)

// runcState is where runc keeps the state of its containers. A private tmpfs
// lies over it, so that the state goes with the engine's mounts.
const runcState = "/run/runc"

// shortTemporary is where the engine sees its temporary files, below the tmpfs
// over runcState: nothing of it is there outside.
const shortTemporary = runcState + "/tmp"

// isolate makes the mounts of the engine its own: nothing mounted from here on
// is seen outside or stays behind, and /proc shows the pid namespace that the
// engine is process 1 of.
func isolate() error {
	if os.Geteuid() != 0 {
		return &need{what: "builds need root", way: "run waxseal build with sudo, or use a running BuildKit with --engine buildkit:ADDRESS"}
	}
	if os.Getpid() != 1 {
		return errors.New("starting the engine: not process 1 of its own pid namespace; waxseal starts this program itself")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the engine's mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	if err := os.MkdirAll(runcState, 0o700); err != nil {
		return fmt.Errorf("making runc's state folder: %w", err)
	}
	if err := unix.Mount("tmpfs", runcState, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mounting %s: %w", runcState, err)
	}
	return nil
}

func closeOnExec(fd uintptr) { unix.CloseOnExec(int(fd)) }

// need is something the machine lacks, with the way to get it.
type need struct {
	what, way string
	cause     error
}

func (e *need) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s: %v", e.what, e.cause)
	}
	return e.what
}

func (e *need) Hint() string  { return e.way }
func (e *need) Unwrap() error { return e.cause }

// requirements names what is missing before anything fails half-way.
func requirements(root string) error {
	if _, err := exec.LookPath("runc"); err != nil {
		return &need{what: "runc is not on PATH", way: "apt-get install runc"}
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return fmt.Errorf("making the build cache: %w", err)
	}
	if err := overlayutils.Supported(root); err != nil {
		if errors.Is(err, unix.ENOSPC) {
			return err
		}
		// The mount's long list of options helps nobody.
		var errno unix.Errno
		if errors.As(err, &errno) {
			err = errno
		}
		return &need{
			what:  fmt.Sprintf("overlayfs cannot be used in the build cache %s", root),
			way:   "choose a folder on ext4, xfs or tmpfs with --cache-dir; a folder that is itself on an overlay (inside a container) will not do, and the kernel needs the overlay module (modprobe overlay)",
			cause: err,
		}
	}
	return nil
}

// explain turns what a start commonly fails of into words with a way out.
func explain(root string, err error) error {
	var n *need
	switch {
	case errors.As(err, &n):
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &need{what: fmt.Sprintf("the disk of the build cache %s is full", root), way: "free space there, remove the folder (it is only a cache), or choose another with --cache-dir", cause: err}
	case errors.Is(err, unix.EROFS), errors.Is(err, fs.ErrPermission):
		return &need{what: fmt.Sprintf("the build cache %s cannot be written", root), way: "choose another folder with --cache-dir", cause: err}
	}
	return err
}

// cgroupParent names the control group under which the steps of this cache run.
// It derives from the cache's folder, whose lock makes it ours alone.
func cgroupParent(root string) string {
	sum := sha256.Sum256([]byte(root))
	return "waxseal-" + hex.EncodeToString(sum[:6])
}

// removeCgroups removes the control groups below parent in every hierarchy.
// Only what is empty can be removed, so a live step is safe; what a killed
// engine left behind is empty, because its processes died with it. A group is
// busy until the kernel has put away the last process that was killed in it:
// patience is how long that may take.
func removeCgroups(parent string, patience time.Duration) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	var tops []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if strings.Contains(line, " - cgroup") && len(f) >= 5 {
			tops = append(tops, filepath.Join(f[4], parent))
		}
	}
	for deadline := time.Now().Add(patience); removeTrees(tops) && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// removeTrees removes trees of empty control groups, and says whether one was busy.
func removeTrees(tops []string) (busy bool) {
	for _, top := range tops {
		var dirs []string
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			busy = errors.Is(unix.Rmdir(dir), unix.EBUSY) || busy
		}
	}
	return busy
}

// moduleVersion is the version of a module that was linked in.
func moduleVersion(path string) string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, m := range bi.Deps {
		if m.Path != path {
			continue
		}
		if m.Replace != nil {
			m = m.Replace
		}
		return m.Version
	}
	return "unknown"
}
