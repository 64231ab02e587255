// Package egress is the gateway: the only way out of a build step. Call New
// once a build and Open for each step; Open gives a network namespace with
// loopback alone, in which the gateway listens, and Close gives the record of
// what passed. Nothing is left of a step's namespace once the gateway is closed
// or the process has died.
//
// What reaches a step is what the record holds: status, body and the headers
// that a replay needs. Everything else of a response is left out, and
// everything that is not HTTP is refused and counted.
package egress

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// Options says what may pass and where it is kept. The zero value records and
// keeps no bodies.
type Options struct {
	Mode       string      // attestations.InputsRecord and so on; "" records
	AllowHosts []string    // patterns of hosts, "*.example.org"; none: all
	Lock       *lock.File  // for locked and offline, replay loaded where it can be
	Store      *lock.Store // nil keeps no bodies (record and none only)
	Redactor   *lock.Redactor
	// Roots are what upstream certificates are verified with; nil: the system's.
	Roots *x509.CertPool
	// Proxy is the company's, as http.ProxyFromEnvironment; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
	// Upstreams maps "name" or "name:port" to the address to dial instead,
	// "10.1.2.3" or "127.0.0.1:8443": the only way to reach a loopback,
	// link-local or metadata address, or one of this machine's own.
	Upstreams map[string]string
	Version   string
	// Unopened says why TLS cannot be opened: what steps cannot be given a
	// certificate. It is then handed on as it is to the server that is named, and
	// a gap of the step says so. "" opens it. Only for what is recorded: no lock
	// can hold what is not seen.
	Unopened string
	// Dial opens connections to upstream; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Gateway serves the steps of one build.
type Gateway struct {
	opts     Options
	mode     string
	redactor *lock.Redactor
	allow    []hostPattern
	ca       *authority
	up       *upstream
	dir      string       // of all Files; made when first needed
	requests atomic.Int64 // of all steps, bounded by attest.MaxInputs
	recorded atomic.Int64 // bytes of those in the record, bounded by attest.MaxInputBytes
	buffers  sync.Pool    // *[]byte of bufferSize, which bodies pass through
	batches  sync.Pool    // *[]byte, empty, for batchConn
	rings    sync.Pool    // *[]byte of ringSize, for flow

	closing sync.WaitGroup // watches that the kernel still lets go of

	mu      sync.Mutex
	dirErr  error
	bundles map[attest.Digest][]byte // by the files they are made of
	stores  map[attest.Digest][]byte // Java trust stores by the bundle they are made of
	open    map[*Step]bool
	closed  bool
}

// New makes the gateway and its certificate authority.
func New(opts Options) (*Gateway, error) {
	g := &Gateway{
		opts: opts, mode: opts.Mode, redactor: opts.Redactor,
		bundles: map[attest.Digest][]byte{}, stores: map[attest.Digest][]byte{}, open: map[*Step]bool{},
	}
	g.buffers.New = func() any { b := make([]byte, bufferSize); return &b }
	g.rings.New = func() any { b := make([]byte, ringSize); return &b }
	g.batches.New = func() any { b := make([]byte, 0, bufferSize+bufferSize/16); return &b }
	switch g.mode {
	case "":
		g.mode = attestations.InputsRecord
	case attestations.InputsRecord, attestations.InputsNone:
	case attestations.InputsLocked, attestations.InputsOffline:
		if opts.Lock == nil || opts.Store == nil {
			return nil, fmt.Errorf("making the gateway: mode %s needs a lock and a store", g.mode)
		}
	default:
		return nil, fmt.Errorf("making the gateway: unknown mode %q", g.mode)
	}
	if opts.Unopened != "" && g.mode != attestations.InputsRecord && g.mode != attestations.InputsNone {
		return nil, fmt.Errorf("making the gateway: mode %s needs TLS opened, and it cannot be: %s", g.mode, opts.Unopened)
	}
	for _, p := range opts.AllowHosts {
		pat, err := parseHostPattern(p)
		if err != nil {
			return nil, err
		}
		g.allow = append(g.allow, pat)
	}
	if g.redactor == nil {
		key := make([]byte, 32)
		rand.Read(key)
		g.redactor = lock.NewRedactor(key)
	}
	var err error
	if g.ca, err = newAuthority(); err != nil {
		return nil, err
	}
	if g.up, err = newUpstream(opts); err != nil {
		return nil, err
	}
	return g, nil
}

// Close ends all steps that are still open and the connections to upstream.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.closed = true
	var steps []*Step
	for s := range g.open {
		steps = append(steps, s)
	}
	dir := g.dir
	g.mu.Unlock()
	var errs []error
	for _, s := range steps {
		_, err := s.Close()
		errs = append(errs, err)
	}
	g.closing.Wait()
	g.up.close()
	if dir != "" {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// Describe is what the record says of this gateway.
func (g *Gateway) Describe() attestations.InputGateway {
	if g.opts.Unopened != "" {
		return attestations.InputGateway{Name: attestations.GatewayName, Version: g.opts.Version} // its authority has signed nothing
	}
	return attestations.InputGateway{
		Name: attestations.GatewayName, Version: g.opts.Version,
		CA: attest.DigestOf(g.ca.cert.Raw).String(), NotAfter: g.ca.cert.NotAfter,
	}
}

// The reasons of refusals by which a later build knows them again.
const (
	notAllowed = "the host is not allowed"
	notAsked   = "asking upstream: "
)

// Refuses reports in words why a recorded step must not be reused under this
// gateway's mode, lock and allowed hosts; none means it may.
func (g *Gateway) Refuses(st *attestations.InputStep) []string {
	var why []string
	for i := range st.Requests {
		r := &st.Requests[i]
		if g.mode == attestations.InputsNone {
			return []string{fmt.Sprintf("it fetched %s, and nothing may be fetched", r.URI)}
		}
		if len(g.allow) > 0 {
			u, err := url.Parse(r.URI)
			if err != nil || !g.allowed(u.Hostname(), portOf(u)) {
				why = append(why, fmt.Sprintf("%s is not of an allowed host", r.URI))
			}
		}
	}
	for i := range st.Refusals {
		if r := &st.Refusals[i]; g.mode != attestations.InputsNone && g.passesNow(r) {
			why = append(why, fmt.Sprintf("it was refused %s: %s", r.Destination, r.Reason))
		}
	}
	if g.held() {
		why = append(why, g.opts.Lock.Admits(st)...)
	}
	return why
}

// passesNow reports whether a step that runs again may get what this says it
// did not: another build did not allow the host, or nobody could be asked, where
// what a lock lists is given or fails the build.
func (g *Gateway) passesNow(r *attestations.InputRefusal) bool {
	switch {
	case strings.HasPrefix(r.Reason, notAsked):
		return g.held()
	case r.Kind != "policy":
		return false
	}
	host, port, err := splitHost(r.Destination)
	if err != nil {
		return false
	}
	if r.Reason == notAllowed {
		return g.allowed(host, port)
	}
	_, mapped := g.up.mapped(host, port)
	return mapped
}

// held reports whether a lock says what may come.
func (g *Gateway) held() bool {
	return g.mode == attestations.InputsLocked || g.mode == attestations.InputsOffline
}

// listens reports whether anything may pass at all.
func (g *Gateway) listens() bool { return g.mode != attestations.InputsNone }

// Allows reports whether the allowed hosts have this one: for what the engine
// fetches by other means than the gateway. port is 0 for the protocol's own.
func (g *Gateway) Allows(host string, port int) bool { return g.allowed(host, port) }

// allowed reports whether the allowed hosts have this one.
func (g *Gateway) allowed(host string, port int) bool {
	if len(g.allow) == 0 {
		return true
	}
	for _, p := range g.allow {
		if p.match(host, port) {
			return true
		}
	}
	return false
}

// folder returns the folder of this gateway's files, made at the first call.
func (g *Gateway) folder() (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dir == "" && g.dirErr == nil {
		g.dir, g.dirErr = os.MkdirTemp("", "waxseal-gateway-")
		if g.dirErr == nil {
			// Users without privileges in the step read the files through the mount.
			g.dirErr = os.Chmod(g.dir, 0o755)
		}
	}
	if g.dirErr != nil {
		return "", fmt.Errorf("making the gateway's folder: %w", g.dirErr)
	}
	return filepath.Clean(g.dir), nil
}
