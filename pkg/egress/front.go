package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// front is what a connection said before its first request.
type front struct {
	explicit bool   // it came to the proxy's port
	scheme   string // of what is inside
	host     string // by CONNECT or SNI; "" leaves it to the Host header
	fallback string // where no Host header is: the name or address connected to
	port     int
	conn     *streamConn // nil for requests from this process
}

type frontKey struct{}

func (f *front) dest() string {
	switch {
	case f.host != "":
		return joinHost(f.host, f.port)
	case f.fallback != "":
		return joinHost(f.fallback, f.port)
	}
	return "the proxy"
}

// streamConn is a connection whose first bytes have been looked at.
type streamConn struct {
	net.Conn
	r       *bufio.Reader
	front   *front
	s       *Step
	handled atomic.Bool // the request that is being answered reached a handler
}

func (s *Step) stream(c net.Conn, f *front) *streamConn {
	f.conn = &streamConn{Conn: c, r: bufio.NewReaderSize(c, 4096), front: f, s: s}
	return f.conn
}

func (c *streamConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// Write notes the answers that net/http gives on its own to what it takes for
// no request.
func (c *streamConn) Write(p []byte) (int, error) {
	if !c.handled.Load() && len(p) > 12 && string(p[:9]) == "HTTP/1.1 " && (p[9] == '4' || p[9] == '5') {
		line, _, _ := strings.Cut(string(p[9:min(len(p), 80)]), "\r")
		c.s.rec.refuse(refusal{kind: "http", dest: c.front.dest(), reason: "malformed request: " + line})
	}
	return c.Conn.Write(p)
}

// handedListener gives net/http the connections that were found to be of one HTTP.
type handedListener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newHandedListener() *handedListener {
	return &handedListener{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (l *handedListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *handedListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *handedListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *handedListener) hand(c net.Conn) {
	select {
	case l.ch <- c:
	case <-l.done:
		c.Close()
	}
}

// quiet drops what net/http would print: the record has it.
func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// serveProxy serves a connection to the explicit proxy.
func (s *Step) serveProxy(c net.Conn) {
	sc := s.stream(c, &front{explicit: true, scheme: "http", port: portProxy})
	s.serveHTTP(sc)
}

// servePlain serves a connection to port 80 of any address.
func (s *Step) servePlain(c net.Conn) {
	s.serveHTTP(s.stream(c, &front{scheme: "http", fallback: s.destination(c), port: portHTTP}))
}

// serveSecure serves a connection to port 443 of any address.
func (s *Step) serveSecure(c net.Conn) {
	sc := s.stream(c, &front{scheme: "https", fallback: s.destination(c), port: portHTTPS})
	switch seen, err := sc.peek(); {
	case err != nil:
		s.silent(sc, err)
	case seen.tls:
		s.serveTLS(sc)
	default:
		s.refuseConn(sc, refusal{kind: "tls", dest: sc.front.dest(), reason: "no TLS on port 443 but " + seen.what, technique: "T1572"})
	}
}

// destination is what the step connected to: the name that was given the
// address, else the address.
func (s *Step) destination(c net.Conn) string {
	ap, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return ""
	}
	return s.nameOf(ap.Addr().Unmap())
}

func (s *Step) nameOf(a netip.Addr) string {
	if n := s.names.nameOf(a); n != "" {
		return n
	}
	for name, ip := range s.hosts {
		if ip == a {
			return name
		}
	}
	return a.String()
}

// peek looks at the first bytes without taking them.
func (c *streamConn) peek() (sighting, error) {
	if err := c.SetReadDeadline(time.Now().Add(headTimeout)); err != nil {
		return sighting{}, err
	}
	defer func() { _ = c.SetReadDeadline(time.Time{}) }() // fails on what is closed, as reading then does
	for n := 1; ; n = max(n+1, c.r.Buffered()) {
		b, err := c.r.Peek(n)
		b, _ = c.r.Peek(max(len(b), min(c.r.Buffered(), maxSniff))) // all that came with it
		if seen, ok := sniff(b); ok || len(b) > 0 && err != nil || n >= maxSniff {
			return seen, nil
		}
		if err != nil {
			return sighting{}, err
		}
	}
}

// silent ends a connection that said nothing. Closing at once is what clients
// do that connect ahead of need; waiting for the other side to speak is not
// HTTP.
func (s *Step) silent(c *streamConn, err error) {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.rec.refuse(refusal{kind: kindOf(c.front), dest: c.front.dest(), reason: fmt.Sprintf("nothing was said for %s: a protocol in which the server speaks first", headTimeout), technique: "T1572"})
	}
	c.Close()
}

func kindOf(f *front) string {
	if f.scheme == "https" {
		return "tls"
	}
	return "http"
}

func (s *Step) refuseConn(c net.Conn, x refusal) {
	s.rec.refuse(x)
	c.Close()
}

// serveHTTP serves a connection in which HTTP must come next.
func (s *Step) serveHTTP(c *streamConn) {
	seen, err := c.peek()
	switch {
	case err != nil:
		s.silent(c, err)
	case seen.http1:
		s.inner.hand(c)
	case seen.http2 && !c.front.explicit:
		s.inner2.hand(c)
	default:
		where := fmt.Sprintf("on port %d", c.front.port)
		if c.front.scheme == "https" {
			where = "inside TLS"
		}
		s.refuseConn(c, refusal{kind: "http", dest: c.front.dest(), reason: "no HTTP " + where + " but " + seen.what, technique: "T1572"})
	}
}

// serveTunnel serves what is inside a CONNECT: TLS, or HTTP in clear.
func (s *Step) serveTunnel(c *streamConn) {
	switch seen, err := c.peek(); {
	case err != nil:
		s.silent(c, err)
	case seen.tls:
		c.front.scheme = "https"
		s.serveTLS(c)
	case seen.http1 || seen.http2:
		s.serveHTTP(c)
	default:
		s.refuseConn(c, refusal{kind: "http", dest: c.front.dest(), reason: "a tunnel that carries " + seen.what, technique: "T1572"})
	}
}

// errRefused ends a handshake whose refusal has been counted.
var errRefused = errors.New("refused")

// serveTLS ends the step's TLS with a certificate of the gateway's authority
// and serves what is inside, where TLS can be opened.
func (s *Step) serveTLS(c *streamConn) {
	if s.g.opts.Unopened != "" {
		s.pass(c)
		return
	}
	f := &front{scheme: "https", host: c.front.host, fallback: c.front.fallback, port: c.front.port}
	cfg := s.g.ca.config.Clone()
	cfg.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := s.nameTLS(f, hello); err != nil {
			return nil, err
		}
		leaf, err := s.g.ca.leaf(f.host)
		if err != nil {
			return nil, err
		}
		mine := s.g.ca.config.Clone()
		mine.Certificates = []tls.Certificate{*leaf}
		return mine, nil
	}
	batch := &batchConn{Conn: c, pool: &s.g.batches}
	tc := tls.Server(batch, cfg)
	err := c.SetDeadline(time.Now().Add(headTimeout))
	if err == nil {
		err = tc.HandshakeContext(s.ctx)
	}
	if err != nil {
		if !errors.Is(err, errRefused) && s.ctx.Err() == nil {
			s.rec.refuse(refusal{kind: "tls", dest: f.dest(), reason: handshakeReason(err)})
		}
		c.Close()
		return
	}
	if err := c.SetDeadline(time.Time{}); err != nil {
		c.Close()
		return
	}
	in := s.stream(&tlsConn{Conn: tc, batch: batch}, f)
	if tc.ConnectionState().NegotiatedProtocol == "h2" {
		s.inner2.hand(in)
		return
	}
	s.serveHTTP(in)
}

// nameTLS finds out whom a client means: by SNI, else by what it connected to.
func (s *Step) nameTLS(f *front, hello *tls.ClientHelloInfo) error {
	deny := func(reason, technique string) error {
		s.rec.refuse(refusal{kind: "tls", dest: f.dest(), reason: reason, technique: technique})
		return errRefused
	}
	if len(hello.SupportedProtos) > 0 {
		known := false
		for _, p := range hello.SupportedProtos {
			known = known || p == "h2" || p == "http/1.1" || p == "http/1.0"
		}
		if !known {
			return deny(fmt.Sprintf("TLS for %q, which is not HTTP", strings.Join(hello.SupportedProtos, ", ")), "T1572")
		}
	}
	if hello.ServerName == "" {
		if f.host == "" {
			f.host = f.fallback
		}
		if a, err := netip.ParseAddr(f.host); err == nil {
			f.host = s.nameOf(a.Unmap())
		}
		return nil
	}
	sni, err := cleanHost(hello.ServerName)
	if err != nil {
		return deny("the server name of the TLS handshake is no host name", "")
	}
	if f.host != "" && f.host != sni {
		// A client that resolves itself asks the proxy for an address.
		if a, err := netip.ParseAddr(f.host); err != nil || s.names.nameOf(a) != "" && s.names.nameOf(a) != sni {
			return deny(fmt.Sprintf("the TLS handshake names %s inside a tunnel to %s", sni, f.host), "T1090.004")
		}
	}
	f.host = sni
	return nil
}

// handshakeReason says why a client's handshake failed, with what helps.
func handshakeReason(err error) string {
	const hint = "; it does not trust the gateway's authority: let it read $SSL_CERT_FILE, or its Java take $JAVA_TOOL_OPTIONS"
	msg := err.Error()
	var alert tls.AlertError
	switch {
	case strings.Contains(msg, "unknown certificate authority"), strings.Contains(msg, "bad certificate"),
		strings.Contains(msg, "unknown certificate"), strings.Contains(msg, "certificate unknown"), strings.Contains(msg, "unsupported certificate"):
		return "the client broke off the TLS handshake: " + msg + hint
	case errors.As(err, &alert):
		return "the client broke off the TLS handshake: " + msg
	case errors.Is(err, io.EOF), errors.Is(err, net.ErrClosed), strings.Contains(msg, "connection reset"):
		return "the client closed the connection during the TLS handshake" + hint
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return "the TLS handshake did not end in time"
	}
	return "the TLS handshake failed: " + clip(msg)
}

// batchConn gathers the records of one large write, so that they go out in one
// system call instead of one for each 16 KiB.
type batchConn struct {
	net.Conn
	pool *sync.Pool
	mu   sync.Mutex
	held *[]byte
}

func (b *batchConn) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held == nil {
		return b.Conn.Write(p)
	}
	*b.held = append(*b.held, p...)
	return len(p), nil
}

func (b *batchConn) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = b.pool.Get().(*[]byte)
}

func (b *batchConn) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	held := b.held
	b.held = nil
	_, err := b.Conn.Write(*held)
	*held = (*held)[:0]
	b.pool.Put(held)
	return err
}

// tlsConn is the inside of a TLS connection.
type tlsConn struct {
	*tls.Conn
	batch *batchConn
}

func (c *tlsConn) Write(p []byte) (int, error) {
	if len(p) <= 16<<10 {
		return c.Conn.Write(p)
	}
	c.batch.hold()
	n, err := c.Conn.Write(p)
	if ferr := c.batch.flush(); err == nil {
		err = ferr
	}
	return n, err
}

var _ http.Handler = (*Step)(nil)
