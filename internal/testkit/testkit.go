// Package testkit is what the tests and the demo run waxseal against: real
// registries, with and without faults, base images made from Debian's own
// packages, other people's programs at pinned versions, and a runner for
// scripts over the real binary.
//
// Call Script in a test to run a folder of scripts. Call NewRegistry,
// StartDistribution, NewUpstream, Base or Peer where a Go test needs one
// thing of those alone. What cannot be had on a machine is said through
// Unavailable: a skip for a developer, a failure where CI=true.
package testkit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// Root returns the folder of the checkout: the one with go.mod, found upward
// from the working folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("finding the checkout: no go.mod in the working folder or above it")
		}
		dir = parent
	}
}

// OnCI says whether a skip counts as a failure.
func OnCI() bool { return os.Getenv("CI") == "true" }

// Unavailable ends a test that needs what this machine has not: it skips, and
// where CI=true it fails.
func Unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if OnCI() {
		t.Fatalf("needed on CI: "+format, args...)
	}
	t.Skipf(format, args...)
}

// CanBuild returns nil where a container build can run as it is: root, runc on
// PATH and an overlay file system.
func CanBuild() error {
	if err := isRoot(); err != nil {
		return err
	}
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("building needs runc on PATH")
	}
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if !strings.Contains(string(known), "\toverlay\n") {
		return errors.New("building needs the overlay file system")
	}
	return nil
}

func isRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root")
	}
	return nil
}

// canPKCS11 reports why no PKCS#11 token can be had here.
func canPKCS11() error {
	for _, program := range []string{"softhsm2-util", "gcc"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("PKCS#11 needs %s on PATH", program)
		}
	}
	return nil
}

// Binaries builds the programs and returns the folder they are in. Under the
// race detector they are built with it too, but for waxseal-kms, which is all
// but other people's code: for a test of what goes on side by side in a program,
// since each then takes ten times as long to start.
func Binaries(ctx context.Context) (string, error) { return binaries(ctx, raceEnabled) }

// Shipped builds the programs as they are shipped and returns the folder they
// are in.
func Shipped(ctx context.Context) (string, error) { return binaries(ctx, false) }

func binaries(ctx context.Context, race bool) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".cache", "test")
	args := []string{"build"}
	if race {
		dir += "-race"
		args = append(args, "-race")
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	args = append(args, "-o", dir+"/", "./cmd/waxseal", "./cmd/waxseal-engine", "./cmd/waxseal-sandbox")
	build := exec.CommandContext(ctx, "go", args...)
	build.Dir = root
	if !race { // as they are shipped, which run where there is nothing else
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
	}
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the binaries under test: %w\n%s", err, out)
	}
	build = exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/waxseal-kms")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building waxseal-kms: %w\n%s", err, out)
	}
	return dir, nil
}

// Peer returns the path of somebody else's program at its pinned version,
// built on first use by peers.sh. It ends the test as Unavailable does where
// the program cannot be had.
func Peer(t testing.TB, name string) string {
	t.Helper()
	path, err := BuildPeer(t.Context(), name)
	if err != nil {
		Unavailable(t, "%v", err)
	}
	return path
}

// BuildPeer builds the program if it is not there yet and returns its path.
func BuildPeer(ctx context.Context, name string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	build := exec.CommandContext(ctx, filepath.Join(root, "internal/testkit/peers.sh"), name)
	var stderr strings.Builder
	build.Stderr = &stderr
	out, err := build.Output()
	if err != nil {
		return "", fmt.Errorf("building %s, which this is tested against: %w\n%s", name, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// lock makes dir and holds an exclusive lock on it, across processes.
func lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %q: %w", dir, err)
	}
	return func() { f.Close() }, nil
}
