package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// cmdAlone runs a command in a network namespace of its own, where nobody can be
// reached but the registry that VAR names, under the address that it has
// outside. The kernel counts there what the command tries besides. With ! it
// must have tried something. Whatever the command's own exit code is, is for
// the next lines of the script to look at.
func cmdAlone(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 2, "[!] alone VAR|- COMMAND...")
	addr := ""
	if args[0] != "-" {
		addr = ts.Getenv(args[0])
	}
	type result struct {
		tried []string
		err   error
	}
	done := make(chan result)
	go func() {
		// Never unlocked: a thread that has left the machine's network ends with
		// its goroutine.
		runtime.LockOSThread()
		tried, err := alone(addr, func() error {
			var exit interface{ ExitCode() int }
			if err := ts.Exec(args[1], args[2:]...); err != nil && !errors.As(err, &exit) {
				return err
			}
			return nil
		})
		done <- result{tried, err}
	}()
	r := <-done
	ts.Check(r.err)
	if neg == (len(r.tried) == 0) {
		ts.Fatalf("asked besides the registry: %v", r.tried)
	}
}

// alone moves this thread into a network of its own, runs work there and says
// what was tried in it but connecting to addr.
func alone(addr string, work func() error) (tried []string, err error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("making a network: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("making a network: %w", err)
	}
	if addr != "" {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		go forward(ln, addr)
	}
	if err := work(); err != nil {
		return nil, err
	}
	counted, err := netCounters()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"Ip OutNoRoutes", "Ip6OutNoRoutes", "Udp OutDatagrams", "Udp6OutDatagrams"} {
		if counted[name] > 0 {
			tried = append(tried, fmt.Sprintf("%s %d", name, counted[name]))
		}
	}
	if opened, served := counted["Tcp ActiveOpens"], counted["Tcp PassiveOpens"]; opened != served {
		tried = append(tried, fmt.Sprintf("%d connections to elsewhere", opened-served))
	}
	return tried, nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// forward carries each connection of ln to addr outside: a goroutine of another
// thread, it dials in the machine's own network.
func forward(ln net.Listener, addr string) {
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", addr)
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				io.Copy(out, in)
				out.(*net.TCPConn).CloseWrite()
			}()
			io.Copy(in, out)
		}()
	}
}

// netCounters reads what the kernel counts in this thread's network.
func netCounters() (map[string]int, error) {
	out := map[string]int{}
	old, err := os.ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		return nil, err
	}
	// Two lines each: the names, and the numbers.
	lines := slices.Collect(strings.Lines(string(old)))
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for j := 1; j < min(len(names), len(values)); j++ {
			out[strings.TrimSuffix(names[0], ":")+" "+names[j]], _ = strconv.Atoi(values[j])
		}
	}
	six, err := os.ReadFile("/proc/thread-self/net/snmp6")
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(six) {
		if f := strings.Fields(string(line)); len(f) == 2 {
			out[f[0]], _ = strconv.Atoi(f[1])
		}
	}
	return out, nil
}
