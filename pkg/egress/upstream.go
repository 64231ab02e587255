package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bufferSize is that of everything a body passes through.
const bufferSize = 256 << 10

// upstream opens the connections to the outside.
type upstream struct {
	opts      Options
	upstreams map[string]string // cleaned
	http1     *http.Transport   // for requests that came by HTTP/1
	http2     *http.Transport   // for those that came by HTTP/2
	proxies   sync.Map          // "host:port" of the company's proxies, and whether they are behind TLS: they may be anywhere
	own       []netip.Addr
}

// errForbidden is why an address is not dialed.
type errForbidden struct {
	addr      string
	why       string
	technique string
}

func (e *errForbidden) Error() string {
	return fmt.Sprintf("the gateway does not connect to %s: %s (--upstream NAME=ADDRESS allows it)", e.addr, e.why)
}

func newUpstream(opts Options) (*upstream, error) {
	u := &upstream{opts: opts, upstreams: map[string]string{}}
	for name, addr := range opts.Upstreams {
		host, port, err := splitHost(name)
		if err != nil {
			return nil, fmt.Errorf("reading upstream %q: %w", name, err)
		}
		if host, err = cleanHost(host); err != nil {
			return nil, fmt.Errorf("reading upstream %q: %w", name, err)
		}
		if port != 0 {
			host = joinHost(host, port)
		}
		if _, _, err := splitHost(addr); err != nil {
			return nil, fmt.Errorf("reading address %q of upstream %q: %w", addr, name, err)
		}
		u.upstreams[host] = addr
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("reading this machine's addresses: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				u.own = append(u.own, ip.Unmap())
			}
		}
	}
	u.http1, u.http2 = u.newTransport(nil, false), u.newTransport(nil, true)
	return u, nil
}

// newTransport makes a transport; hosts are a step's own names. HTTP/1 is all
// that is offered to upstream unless the step came by HTTP/2: it costs half.
func (u *upstream) newTransport(hosts map[string]netip.Addr, h2 bool) *http.Transport {
	protos := []string{"http/1.1"}
	if h2 {
		protos = nil // net/http fills in both
	}
	return &http.Transport{
		Proxy: func(r *http.Request) (*url.URL, error) { return u.proxyFor(r) },
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return u.dial(ctx, network, addr, hosts)
		},
		TLSClientConfig: &tls.Config{
			RootCAs: u.opts.Roots, MinVersion: tls.VersionTLS12,
			ClientSessionCache: tls.NewLRUClientSessionCache(512), NextProtos: protos,
		},
		ForceAttemptHTTP2:      h2,
		DisableCompression:     true,
		MaxIdleConns:           1024,
		MaxIdleConnsPerHost:    256,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    30 * time.Second,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
		ReadBufferSize:         64 << 10,
		WriteBufferSize:        16 << 10,
	}
}

func (u *upstream) close() {
	u.http1.CloseIdleConnections()
	u.http2.CloseIdleConnections()
}

// mapped returns the address that stands for a host by --upstream.
func (u *upstream) mapped(host string, port int) (string, bool) {
	addr, ok := u.upstreams[joinHost(host, port)]
	if !ok {
		addr, ok = u.upstreams[host]
	}
	if !ok {
		return "", false
	}
	h, p, err := splitHost(addr)
	if err != nil {
		return "", false
	}
	if p == 0 {
		p = port
	}
	return joinHost(h, p), true
}

// proxyFor returns the company's proxy for a request, nil for none.
func (u *upstream) proxyFor(r *http.Request) (*url.URL, error) {
	if u.opts.Proxy == nil {
		return nil, nil
	}
	if _, ok := u.mapped(r.URL.Hostname(), portOf(r.URL)); ok {
		return nil, nil
	}
	p, err := u.opts.Proxy(r)
	if err != nil || p == nil {
		return nil, err
	}
	port := portOf(p)
	if p.Port() == "" && strings.HasPrefix(p.Scheme, "socks") {
		port = 1080
	}
	at := joinHost(p.Hostname(), port)
	secure := p.Scheme == "https"
	u.proxies.Store(at, secure)
	if secure {
		// net/http might agree on HTTP/2 with it, and then still speak HTTP/1: dial does the TLS.
		p = &url.URL{Scheme: "http", Host: at, User: p.User}
	}
	return p, nil
}

// check refuses a target before anything is resolved: literals, and names that
// mean this machine or a metadata service. With a company's proxy in front it
// is the only look that is had.
func (u *upstream) check(host string, port int) error {
	if _, ok := u.mapped(host, port); ok {
		return nil
	}
	if _, ok := u.proxies.Load(joinHost(host, port)); ok {
		return &errForbidden{joinHost(host, port), "it is the proxy", "T1090"}
	}
	switch {
	case isLocalName(host):
		return &errForbidden{host, "it means this machine", ""}
	case host == "metadata.google.internal" || host == "metadata" || host == "instance-data" || host == "instance-data.ec2.internal":
		return &errForbidden{host, "it is a cloud's metadata service", "T1552.005"}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return u.checkAddr(a)
	}
	return nil
}

// checkAddr refuses addresses that are not the outside.
func (u *upstream) checkAddr(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	no := func(why, technique string) error { return &errForbidden{a.String(), why, technique} }
	b := a.As16()
	switch {
	case a.Is6() && netip.MustParsePrefix("64:ff9b::/96").Contains(a):
		return u.checkAddr(netip.AddrFrom4([4]byte(b[12:])))
	case a.Is6() && netip.MustParsePrefix("2002::/16").Contains(a):
		return u.checkAddr(netip.AddrFrom4([4]byte(b[2:6])))
	case a.Is6() && netip.MustParsePrefix("::/96").Contains(a) && !a.IsLoopback() && !a.IsUnspecified():
		return no("no such addresses are in use", "")
	case a.IsLoopback():
		return no("it is this machine's loopback", "")
	case a.IsUnspecified() || a.Is4() && a.As4()[0] == 0:
		return no("it is unspecified", "")
	case isMetadata(a):
		return no("it is a cloud's metadata service", "T1552.005")
	case a.IsLinkLocalUnicast():
		return no("it is link-local", "")
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return no("it is no address of one host", "")
	case isNameAddr(a):
		return no("it is an address of a step, which no name was given", "")
	}
	for _, o := range u.own {
		if o == a {
			return no("it is this machine's own", "")
		}
	}
	return nil
}

// isMetadata knows the metadata services of the clouds by address.
func isMetadata(a netip.Addr) bool {
	switch a.String() {
	case "169.254.169.254", "169.254.170.2", "169.254.170.23", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254":
		return true
	}
	return false
}

// dial connects to "host:port". Addresses are checked after they are resolved,
// when they are about to be connected to.
func (u *upstream) dial(ctx context.Context, network, addr string, hosts map[string]netip.Addr) (net.Conn, error) {
	host, port, err := splitHost(addr)
	if err != nil {
		return nil, err
	}
	behindTLS, free := u.proxies.Load(addr)
	secure, _ := behindTLS.(bool)
	if to, ok := u.mapped(host, port); ok {
		addr, free = to, true
	} else if ip, ok := hosts[host]; ok && !free {
		addr = joinHost(ip.String(), port)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var c net.Conn
	if u.opts.Dial != nil {
		c, err = u.opts.Dial(ctx, network, addr)
		if err == nil && !free {
			if ap, perr := netip.ParseAddrPort(c.RemoteAddr().String()); perr == nil {
				if cerr := u.checkAddr(ap.Addr()); cerr != nil {
					c.Close()
					return nil, cerr
				}
			}
		}
	} else {
		d := &net.Dialer{KeepAlive: 30 * time.Second}
		if !free {
			d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
				ap, err := netip.ParseAddrPort(address)
				if err != nil {
					return err
				}
				return u.checkAddr(ap.Addr())
			}
		}
		c, err = d.DialContext(ctx, network, addr)
	}
	if err != nil {
		return nil, err
	}
	if secure {
		over := tls.Client(c, &tls.Config{RootCAs: u.opts.Roots, MinVersion: tls.VersionTLS12, ServerName: host})
		if err := over.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, fmt.Errorf("speaking TLS with the proxy %s: %w", addr, err)
		}
		c = over
	}
	return &bufferedConn{Conn: c, r: bufio.NewReaderSize(c, 64<<10)}, nil
}

// bufferedConn reads much at once: TLS above asks for a record at a time.
type bufferedConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// forbidden returns why an address was not dialed, nil if that is not the cause.
func forbidden(err error) *errForbidden {
	var f *errForbidden
	if errors.As(err, &f) {
		return f
	}
	return nil
}
