package build

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestProcessExitCodes(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		var out, said bytes.Buffer
		p := Process{Args: []string{"sh", "-c", "read x; echo out $x; echo err >&2; " + script}, Env: []string{"PATH=" + os.Getenv("PATH")},
			Stdin: strings.NewReader("in\n"), Stdout: &out, Stderr: &said}
		code, err := p.Run(t.Context())
		if err != nil || code != want {
			t.Errorf("%s: %d, %v; want %d", script, code, err, want)
		}
		if out.String() != "out in\n" || said.String() != "err\n" {
			t.Errorf("%s: said %q and %q", script, out.String(), said.String())
		}
	}
	nameless := filepath.Join(t.TempDir(), "nameless")
	if err := os.WriteFile(nameless, []byte("exit $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if code, err := (&Process{Args: []string{nameless, "7"}}).Run(t.Context()); err != nil || code != 7 {
		t.Errorf("a script that does not say what runs it: %d, %v", code, err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("#!/bin/sh\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"no-such-program": 127, plain: 126} {
		_, err := (&Process{Args: []string{name}}).Run(t.Context())
		var start *StartError
		if !errors.As(err, &start) || start.Code != want {
			t.Errorf("%s: %v; want code %d", name, err, want)
		}
	}
}

// What was broken off before the command is not begun.
func TestProcessIsNotStartedAfterAnInterrupt(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := Process{Args: []string{"sh", "-c", ": >began"}, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: dir, Started: func(int) { t.Error("it was started") }}
	if _, err := p.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "began")); err == nil {
		t.Error("it ran")
	}
}

// A signal to us reaches the command once, and nobody else in its group; when
// it lives on so do we.
func TestProcessPassesSignalsOnOnce(t *testing.T) {
	dir := t.TempDir()
	ready := filepath.Join(dir, "ready")
	p := Process{
		Args: []string{"sh", "-c", `trap 'echo got' TERM; sh -c 'trap "echo child got" TERM; : >ready; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; done'; echo end; exit 7`},
		Env:  []string{"PATH=" + os.Getenv("PATH")}, Dir: dir,
	}
	var out bytes.Buffer
	p.Stdout = &out
	done := make(chan int, 1)
	go func() {
		code, err := p.Run(t.Context())
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	for _, err := os.Stat(ready); err != nil; _, err = os.Stat(ready) {
		time.Sleep(10 * time.Millisecond)
	}
	if err := unix.Kill(os.Getpid(), unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 7 {
		t.Errorf("exit code %d", code)
	}
	if got := out.String(); got != "got\nend\n" {
		t.Errorf("said %q", got)
	}
}

func TestProcessEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	p := Process{Args: []string{"sh", "-c", "sleep 600 & wait"}, Env: []string{"PATH=" + os.Getenv("PATH")}}
	group := make(chan int, 1)
	p.Started = func(pid int) { group <- pid; cancel(why) }
	if _, err := p.Run(ctx); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	pid := <-group
	for range 100 {
		if unix.Kill(-pid, 0) != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Error("the command's child is still there")
}

// A command that is told to end may tidy up first.
func TestProcessIsToldToEnd(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	read, written, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	go func() {
		line := make([]byte, 6)
		_, _ = read.Read(line)
		cancel(why)
	}()
	dir := t.TempDir()
	p := Process{
		Args: []string{"sh", "-c", "trap 'touch tidied; exit 3' TERM; echo ready; while :; do sleep 0.05; done"},
		Env:  []string{"PATH=" + os.Getenv("PATH")}, Dir: dir, Stdout: written,
	}
	if _, err := p.Run(ctx); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	written.Close()
	if _, err := os.Stat(filepath.Join(dir, "tidied")); err != nil {
		t.Error(err)
	}
}

func TestGuard(t *testing.T) {
	made := func() string {
		dir := filepath.Join(t.TempDir(), "waxseal-run-0", "run-1")
		if err := os.MkdirAll(filepath.Join(dir, "buildx"), 0o700); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	there := func(name string) bool { _, err := os.Stat(name); return err == nil }
	if dir := made(); Guard(strings.NewReader("done\n"), dir) != nil || !there(dir) {
		t.Error("removed what its owner has removed")
	}
	if dir := made(); Guard(strings.NewReader(""), dir) != nil || there(dir) {
		t.Error("the folder of a killed run is still there")
	}
	if dir := t.TempDir(); Guard(strings.NewReader(""), dir) == nil || !there(dir) {
		t.Error("removed any folder")
	}

	dir := made()
	p := Process{Args: []string{"sleep", "600"}, Env: []string{"PATH=" + os.Getenv("PATH")}}
	p.Started = func(pid int) {
		if err := Guard(strings.NewReader(strconv.Itoa(pid)+"\n"), dir); err != nil {
			t.Error(err)
		}
	}
	if code, err := p.Run(t.Context()); code != 137 || err != nil {
		t.Errorf("the command of a killed run ended with %d, %v", code, err)
	}
}

// A folder of temporary files is anybody's: ours must be ours.
func TestOwnFolder(t *testing.T) {
	dir := t.TempDir()
	ours := filepath.Join(dir, "ours")
	for range 2 {
		if err := ownFolder(ours); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(ours, 0o777); err != nil {
		t.Fatal(err)
	}
	if ownFolder(ours) == nil {
		t.Error("took a folder that others can write to")
	}
	link := filepath.Join(dir, "link")
	if err := os.Mkdir(filepath.Join(dir, "elsewhere"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dir, "elsewhere"), link); err != nil {
		t.Fatal(err)
	}
	if ownFolder(link) == nil {
		t.Error("followed a link")
	}
}
