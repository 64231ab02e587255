package egress

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Shared is a network namespace that somebody else made, in which steps run one
// after the other. Its sockets are open from Enter to Close: what a step says
// before Open was called for it waits.
type Shared struct{ ns *namespace }

// Enter opens the gateway's sockets in a network namespace, which must have
// nothing but loopback: another interface would be another way out.
func (g *Gateway) Enter(ns *os.File) (*Shared, error) {
	n, err := newNamespace(ns, g.listens())
	if err != nil {
		return nil, err
	}
	return &Shared{n}, nil
}

// Close closes the sockets, but for those of a step that is open.
func (sh *Shared) Close() { sh.ns.close() }

// enter moves the calling thread into a namespace, if there is nothing in it.
func enter(ns *os.File) error {
	var own, other unix.Stat_t
	if err := errors.Join(unix.Stat("/proc/thread-self/ns/net", &own), unix.Fstat(int(ns.Fd()), &other)); err != nil {
		return err
	}
	if own.Dev == other.Dev && own.Ino == other.Ino {
		return errors.New("it is the machine's own")
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering: %w", err)
	}
	all, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("listing its interfaces: %w", err)
	}
	for _, i := range all {
		// The kernel makes some tunnels in every namespace; they are down and
		// lead nowhere.
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			return fmt.Errorf("it has the interface %q", i.Name)
		}
	}
	return nil
}

// again is the namespace with sockets of its own, which are the same to the
// kernel: what waits at one waits at the other.
func (n *namespace) again() (_ *namespace, err error) {
	c := &namespace{}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	for _, l := range []struct{ from, to *net.Listener }{
		{&n.proxy, &c.proxy}, {&n.http, &c.http}, {&n.https, &c.https}, {&n.dnsTCP, &c.dnsTCP},
	} {
		if *l.from == nil {
			continue
		}
		f, err := (*l.from).(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		*l.to, err = net.FileListener(f)
		f.Close()
		if err != nil {
			return nil, err
		}
	}
	f, err := n.dnsUDP.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	udp, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	c.dnsUDP = udp.(*net.UDPConn)
	if c.packets, err = n.packets.again(); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(n.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c.ns = os.NewFile(uintptr(fd), "network namespace")
	return c, nil
}

func (p *packetSocket) again() (*packetSocket, error) {
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &packetSocket{file: os.NewFile(uintptr(fd), "packets"), fd: fd}, nil
}
