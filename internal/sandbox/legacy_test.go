package sandbox

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestANamespaceIsHandedOver(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	for name, x := range map[string]struct {
		rights []byte
		ok     bool
	}{
		"one":      {unix.UnixRights(int(ns.Fd())), true},
		"none":     {nil, false},
		"too many": {unix.UnixRights(int(ns.Fd()), int(ns.Fd()), int(ns.Fd())), false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, _, err := c.WriteMsgUnix([]byte("build"), x.rights, nil); err != nil {
				t.Fatal(err)
			}
			in, err := l.AcceptUnix()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			id, n, err := receiveNetwork(in)
			if (err == nil) != x.ok {
				t.Fatalf("got %v", err)
			}
			if !x.ok {
				return
			}
			defer n.close()
			var sent, got unix.Stat_t
			if unix.Fstat(int(ns.Fd()), &sent) != nil || unix.Fstat(int(n.ns.Fd()), &got) != nil || sent.Ino != got.Ino || id != "build" {
				t.Errorf("%q came with another namespace", id)
			}
		})
	}
}

func TestOwnLibrariesAreThere(t *testing.T) {
	libraries, err := ownLibraries()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range libraries {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}
