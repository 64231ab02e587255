package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/lock"
)

const (
	maxConns     = 512              // of one step at a time
	maxRunning   = 64               // exchanges of one step at a time; others wait. It bounds the memory for bodies
	maxStreams   = 16               // of one HTTP/2 connection at a time
	headTimeout  = 30 * time.Second // to say what a connection is for, and for each request's headers
	idleTimeout  = 5 * time.Minute
	maxHead      = 64 << 10               // bytes of a request's line and headers
	lastWord     = 2 * time.Millisecond   // to connections that wait to be accepted when a step ends
	lastWait     = 250 * time.Millisecond // to those that are being served
	closeTimeout = 10 * time.Second
)

// StepOptions describes a step.
type StepOptions struct {
	Name, Stage, Platform string
	Secrets               [][]byte          // values that are never stored
	Hosts                 map[string]net.IP // the step's own additions to /etc/hosts
	// Fetch makes no namespace: only Transport is used.
	Fetch bool
	// In is the namespace that the step runs in, after others: the last of them
	// is closed. nil makes one for it.
	In *Shared
}

// Step is an open step.
type Step struct {
	g       *Gateway
	opts    StepOptions
	started time.Time
	ctx     context.Context
	cancel  context.CancelFunc

	rec     *record
	names   *names
	needles *needles
	book    *lock.Book // nil but in locked and offline
	hosts   map[string]netip.Addr
	http1   *http.Transport
	http2   *http.Transport

	ns     *namespace // nil with Fetch
	watch  *watch
	srv    *http.Server
	h2     *http.Server
	inner  *handedListener // to srv
	inner2 *handedListener // to h2

	serving sync.WaitGroup // listeners, connections, requests of this process
	slots   chan struct{}  // one for each connection
	running chan struct{}  // one for each exchange

	draining atomic.Int64 // bodies read to their end after the client left

	mu      sync.Mutex
	conns   map[net.Conn]bool
	closing bool // no more requests of this process
	ending  bool // no more connections
	files   string

	closeOnce sync.Once
	result    *attestations.InputStep
	closeErr  error
}

// Open makes the namespace and listens in it.
func (g *Gateway) Open(ctx context.Context, opts StepOptions) (*Step, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Step{
		g: g, opts: opts, started: time.Now().UTC(),
		names: newNames(), needles: newNeedles(opts.Secrets), hosts: map[string]netip.Addr{},
		http1: g.up.http1, http2: g.up.http2, slots: make(chan struct{}, maxConns), running: make(chan struct{}, maxRunning), conns: map[net.Conn]bool{},
	}
	// The step outlives the call that opens it; Close ends it.
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.rec = newRecord(s.needles.scrub)
	s.rec.unopened = g.opts.Unopened
	for name, ip := range opts.Hosts {
		host, err := cleanHost(name)
		addr, ok := netip.AddrFromSlice(ip)
		if err == nil && ok {
			s.hosts[host] = addr.Unmap()
		}
	}
	if len(s.hosts) > 0 {
		s.http1, s.http2 = g.up.newTransport(s.hosts, false), g.up.newTransport(s.hosts, true)
	}
	if g.mode == attestations.InputsLocked || g.mode == attestations.InputsOffline {
		s.book = g.opts.Lock.Book(opts.Name, opts.Stage, opts.Platform)
	}
	if !opts.Fetch {
		var err error
		if opts.In != nil {
			s.ns, err = opts.In.ns.again()
		} else {
			s.ns, err = newNamespace(nil, s.listens())
		}
		if err != nil {
			s.cancel()
			return nil, fmt.Errorf("opening step %q: %w", opts.Name, err)
		}
		s.serve()
	}
	g.mu.Lock()
	closed := g.closed
	g.open[s] = true
	g.mu.Unlock()
	if closed {
		s.Close()
		return nil, fmt.Errorf("opening step %q: the gateway is closed", opts.Name)
	}
	return s, nil
}

func (s *Step) listens() bool { return s.g.listens() }

// serve starts everything that listens.
func (s *Step) serve() {
	s.watch = startWatch(s.ns.packets, s.seePacket)
	s.goServe(func() { s.serveUDP(s.ns.dnsUDP) })
	s.goServe(func() { s.accept(s.ns.dnsTCP, s.serveDNSConn) })
	if !s.listens() {
		return
	}
	s.inner = newHandedListener()
	s.srv = &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHead,
		ErrorLog:          quiet(),
		ConnContext:       withFront,
		ConnState: func(c net.Conn, st http.ConnState) {
			if st == http.StateIdle {
				c.(*streamConn).handled.Store(false)
			}
		},
	}
	// Where there was TLS, it has been taken off.
	s.inner2 = newHandedListener()
	s.h2 = &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHead,
		ErrorLog:                     quiet(),
		BaseContext:                  func(net.Listener) context.Context { return s.ctx },
		ConnContext:                  withFront,
		Protocols:                    new(http.Protocols),
		// Each stream has its headers in memory, and the connection its bodies, while
		// they wait to be among those that run.
		HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 1 << 20,
			MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 1 << 20},
	}
	s.h2.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = s.srv.Serve(s.inner) }()
	go func() { _ = s.h2.Serve(s.inner2) }()
	s.goServe(func() { s.accept(s.ns.proxy, s.serveProxy) })
	s.goServe(func() { s.accept(s.ns.http, s.servePlain) })
	s.goServe(func() { s.accept(s.ns.https, s.serveSecure) })
}

func withFront(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, frontKey{}, c.(*streamConn).front)
}

func (s *Step) goServe(f func()) {
	s.serving.Add(1)
	go func() {
		defer s.serving.Done()
		f()
	}()
}

// accept hands each connection to serve, a bounded number at a time.
func (s *Step) accept(l net.Listener, serve func(net.Conn)) {
	for {
		select {
		case s.slots <- struct{}{}:
		case <-s.ctx.Done():
			return
		}
		c, err := l.Accept()
		if err != nil {
			<-s.slots
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || s.ctx.Err() != nil {
				return
			}
			// Out of files or memory: the next one may fare better.
			select {
			case <-time.After(10 * time.Millisecond):
			case <-s.ctx.Done():
			}
			continue
		}
		t := &tracked{Conn: c, s: s}
		if !s.track(t) {
			c.Close()
			<-s.slots
			return
		}
		go serve(t)
	}
}

// tracked is a connection of the step; closing it frees its slot.
type tracked struct {
	net.Conn
	s    *Step
	once sync.Once
}

func (t *tracked) Close() error {
	err := t.Conn.Close()
	t.once.Do(func() {
		t.s.mu.Lock()
		delete(t.s.conns, t)
		t.s.mu.Unlock()
		<-t.s.slots
		t.s.serving.Done()
	})
	return err
}

func (s *Step) track(c net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending {
		return false
	}
	s.conns[c] = true
	s.serving.Add(1)
	return true
}

// seePacket counts what a packet says was tried.
func (s *Step) seePacket(b []byte) {
	at, ok := parsePacket(b, func(port int) bool {
		return s.listens() && (port == portHTTP || port == portHTTPS) || port == portDNS
	})
	if !ok {
		return
	}
	dest := "?"
	if at.addr.IsValid() {
		a := at.addr.Unmap()
		dest = a.String()
		if n := s.names.nameOf(a); n != "" {
			dest = n
		}
		if at.port != 0 {
			dest = joinHost(dest, at.port)
		}
		if at.technique == "" && isMetadata(a) {
			at.technique = "T1552.005"
		}
	}
	s.rec.refuse(refusal{kind: at.kind, dest: dest, reason: at.what, technique: at.technique})
}

// NetNS is the path of the network namespace, for the runtime's spec.
func (s *Step) NetNS() string {
	if s.ns == nil {
		return ""
	}
	return s.ns.path()
}

// Close ends the step: its listeners, its connections, its files. The record
// it returns has everything but ID, Reused and what only the engine knows.
// Called again it returns the same.
func (s *Step) Close() (*attestations.InputStep, error) {
	s.closeOnce.Do(s.close)
	return s.result, s.closeErr
}

func (s *Step) close() {
	done := make(chan struct{})
	// The step's processes are dead and their connections closed: what they
	// said before is still read, so that a last word is in the record.
	if s.ns != nil {
		s.ns.last(lastWord)
	}
	if s.srv != nil {
		s.srv.SetKeepAlivesEnabled(false)
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	go func() {
		s.serving.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(lastWait):
		if s.draining.Load() > 0 {
			select {
			case <-done:
			case <-time.After(drainTime):
			}
		}
	}
	s.cancel()
	if s.ns != nil {
		s.ns.stop()
	}
	if s.srv != nil {
		s.srv.Close()
		s.h2.Close()
	}
	s.mu.Lock()
	s.ending = true
	var conns []net.Conn
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
	select {
	case <-done:
	case <-time.After(closeTimeout):
		// An exchange hangs in the file system or in the caller's dialer.
		s.rec.gap("overflow", "an exchange had not ended %s after the step", closeTimeout)
	}
	if len(s.hosts) > 0 {
		s.http1.CloseIdleConnections()
		s.http2.CloseIdleConnections()
	}
	if s.watch != nil {
		if lost := s.watch.end(s.seePacket); lost > 0 {
			s.rec.gap("watch-loss", "%d packets that went nowhere were not looked at", lost)
		}
		// The kernel takes its time to let go of a packet socket: some ten
		// milliseconds, which no step needs to wait for.
		s.g.closing.Go(s.ns.close)
	}
	s.mu.Lock()
	files := s.files
	s.mu.Unlock()
	if files != "" {
		s.closeErr = os.RemoveAll(files)
	}
	s.g.mu.Lock()
	delete(s.g.open, s)
	s.g.mu.Unlock()

	ended := time.Now().UTC()
	st := &attestations.InputStep{Name: s.opts.Name, Stage: s.opts.Stage, Platform: s.opts.Platform, StartedOn: &s.started, FinishedOn: &ended}
	var full bool
	if st.Names, full = s.names.all(); full {
		s.rec.gap("overflow", "the step asked for more than %d host names", len(st.Names))
	}
	for i, n := range st.Names {
		st.Names[i] = s.needles.scrub(n)
	}
	s.rec.fill(st)
	switch {
	case len(st.Gaps) > 0:
		st.Verdict = attestations.VerdictGaps
	case !s.listens():
		st.Verdict = attestations.VerdictIsolated
	default:
		st.Verdict = attestations.VerdictRecorded
	}
	s.result = st
}

// Violation is something that must fail the build, whatever the step made of
// its answer.
type Violation struct {
	Step, Method, URI string
	Expected, Got     string // digests, or what the lock lists and what came, in words
	Text              string // in words of one line, without the step
}

// Violations are those of the step so far.
func (s *Step) Violations() []Violation { return s.rec.allViolations() }
