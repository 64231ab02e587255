package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Ports on which the gateway listens in a step's namespace.
const (
	portProxy = 3128
	portHTTP  = 80
	portHTTPS = 443
	portDNS   = 53
)

// ownAddr is the step's address that is not 127.0.0.1: glibc's AI_ADDRCONFIG
// asks for one before it resolves anything.
const ownAddr = "198.18.0.1"

// namespace is a network namespace with loopback alone and the sockets that
// were opened inside it. Every address is the namespace itself, so that a
// connection to anywhere ends at a listener or at the watch.
type namespace struct {
	ns                 *os.File
	proxy, http, https net.Listener // nil where nothing may pass
	dnsTCP             net.Listener
	dnsUDP             *net.UDPConn
	packets            *packetSocket
}

// newNamespace makes a namespace, or opens given where that is not nil; without
// listen only its name server listens. It is done on a thread of its own, which
// dies, so no other goroutine is ever in it.
func newNamespace(given *os.File, listen bool) (*namespace, error) {
	type result struct {
		n   *namespace
		err error
	}
	ch := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		n := &namespace{}
		err := n.open(given, listen)
		if err != nil {
			n.close()
			n = nil
		}
		ch <- result{n, err}
	}()
	r := <-ch
	if r.err != nil && given != nil {
		return nil, fmt.Errorf("opening a network namespace: %w", r.err)
	}
	if r.err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", r.err)
	}
	return r.n, nil
}

func (n *namespace) open(given *os.File, listen bool) error {
	if given != nil {
		if err := enter(given); err != nil {
			return err
		}
	} else if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unsharing: %w", err)
	}
	var err error
	if n.ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	// The watch is there before the interface is, so it misses nothing.
	if n.packets, err = openPacketSocket(); err != nil {
		return fmt.Errorf("opening the packet socket: %w", err)
	}
	if err := loopback(); err != nil {
		return err
	}
	if n.dnsUDP, err = listenUDP(fmt.Sprintf("0.0.0.0:%d", portDNS)); err != nil {
		return err
	}
	open := func(l *net.Listener, addr string, port int) {
		if err == nil {
			*l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp4", fmt.Sprintf("%s:%d", addr, port))
		}
	}
	open(&n.dnsTCP, "0.0.0.0", portDNS)
	if listen {
		open(&n.proxy, "127.0.0.1", portProxy)
		open(&n.http, "0.0.0.0", portHTTP)
		open(&n.https, "0.0.0.0", portHTTPS)
	}
	return err
}

// loopback brings lo up and makes every address one of the namespace itself.
// Nothing answers a ping, so that a host does not look as if it were there.
func loopback() error {
	for _, f := range []string{"ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"} {
		// Without IPv6 in the kernel there is no file and nothing to ignore.
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening netlink: %w", err)
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing lo up: %w", err)
	}
	own := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ownAddr).To4(), Mask: net.CIDRMask(15, 32)}}
	if err := h.AddrAdd(lo, own); err != nil {
		return fmt.Errorf("adding %s: %w", ownAddr, err)
	}
	for _, dst := range []*net.IPNet{
		{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	} {
		err := h.RouteAdd(&netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: dst,
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
		})
		if dst.IP.To4() == nil && (errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EACCES) || errors.Is(err, syscall.ENODEV)) {
			err = nil // no IPv6 here
		}
		if err != nil {
			return fmt.Errorf("adding the local route %s: %w", dst, err)
		}
	}
	return nil
}

func listenUDP(addr string) (*net.UDPConn, error) {
	c, err := (&net.ListenConfig{}).ListenPacket(context.Background(), "udp4", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

// path is where a child of this process finds the namespace.
func (n *namespace) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.ns.Fd())
}

// last lets what takes connections and questions take those that wait, and
// none that comes after.
func (n *namespace) last(d time.Duration) {
	at := time.Now().Add(d)
	for _, l := range []net.Listener{n.proxy, n.http, n.https, n.dnsTCP} {
		if t, ok := l.(*net.TCPListener); ok {
			_ = t.SetDeadline(at) // one that is closed takes no more
		}
	}
	_ = n.dnsUDP.SetReadDeadline(at)
}

// stop closes what takes connections and questions; the watch goes on.
func (n *namespace) stop() {
	for _, l := range []net.Listener{n.proxy, n.http, n.https, n.dnsTCP} {
		if l != nil {
			l.Close()
		}
	}
	if n.dnsUDP != nil {
		n.dnsUDP.Close()
	}
}

func (n *namespace) close() {
	n.stop()
	if n.packets != nil {
		n.packets.close()
	}
	if n.ns != nil {
		n.ns.Close()
	}
}
