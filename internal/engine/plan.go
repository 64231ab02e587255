package engine

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// maxPlan bounds the plan on its pipe: a lock file in base64, and a little.
const maxPlan = attest.MaxLock/3*4 + 1<<20

// InputsPlan is what waxseal wants done with what reaches a build from
// outside. It comes over a pipe, because a lock file is no argument.
type InputsPlan struct {
	Mode       string            `json:"mode,omitempty"`
	Lock       []byte            `json:"lock,omitempty"`
	Store      string            `json:"store,omitempty"`
	AllowHosts []string          `json:"allowHosts,omitempty"`
	UpstreamCA []byte            `json:"upstreamCA,omitempty"`
	Upstreams  map[string]string `json:"upstreams,omitempty"`
	// Clients is set where other programs ask for the builds.
	Clients *ClientsPlan `json:"clients,omitempty"`
	// PlainLayers is set where a build of another program is repeated.
	PlainLayers bool `json:"plainLayers,omitempty"`
}

// readPlan reads the plan to its end; an empty pipe is the zero plan.
func readPlan(r io.Reader) (InputsPlan, error) {
	var p InputsPlan
	raw, err := io.ReadAll(io.LimitReader(r, maxPlan+1))
	if err != nil {
		return p, fmt.Errorf("reading the plan of the inputs: %w", err)
	}
	if len(raw) > maxPlan {
		return p, fmt.Errorf("reading the plan of the inputs: over the limit of %d bytes", maxPlan)
	}
	if len(raw) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, fmt.Errorf("reading the plan of the inputs: %w", err)
	}
	switch p.Mode {
	case "", attestations.InputsRecord, attestations.InputsLocked, attestations.InputsOffline, attestations.InputsNone:
	default:
		return p, fmt.Errorf("reading the plan of the inputs: unknown mode %q", p.Mode)
	}
	return p, nil
}

// held reports whether the build may take only what a lock lists, or nothing.
func (p *InputsPlan) held() bool { return p.locked() || p.Mode == attestations.InputsNone }

// locked reports whether a lock says what may come.
func (p *InputsPlan) locked() bool {
	return p.Mode == attestations.InputsLocked || p.Mode == attestations.InputsOffline
}

// plainLayers reports whether layers are clamped and compressed as BuildKit does
// it, byte for byte: other programs expect that.
func (p *InputsPlan) plainLayers() bool { return p.Clients != nil || p.PlainLayers }

// offline reports whether nothing may be asked of anybody.
func (p *InputsPlan) offline() bool { return p.Mode == attestations.InputsOffline }

// errOffline is the answer to every attempt of the engine's own to connect.
var errOffline = errors.New("this build is offline: no connection is opened")

// refuseDial is the dialer of a build that is offline.
func refuseDial(_ context.Context, _, address string) (net.Conn, error) {
	return nil, fmt.Errorf("connecting to %s: %w", address, errOffline)
}

// watch is the gateway with what it works with.
type watch struct {
	gateway  *egress.Gateway
	store    *lock.Store // nil keeps nothing
	lock     *lock.File  // nil in mode record
	redactor *lock.Redactor
	options  egress.Options // that the gateway was made with
}

// newWatch makes the gateway of a plan.
func newWatch(p InputsPlan, version string) (*watch, error) {
	w := &watch{}
	var err error
	if p.Store != "" {
		if w.store, err = lock.OpenStore(p.Store); err != nil {
			return nil, err
		}
		if w.redactor, err = w.store.Redactor(); err != nil {
			return nil, err
		}
	} else {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // it never fails
		w.redactor = lock.NewRedactor(key)
	}
	if p.locked() {
		if w.lock, err = lock.Parse(p.Lock); err != nil {
			return nil, err
		}
		if w.store == nil && p.Mode == attestations.InputsOffline {
			return nil, errors.New("starting the gateway: an offline build needs a store")
		}
		if w.store != nil {
			if err := w.lock.LoadReplay(w.store); err != nil && p.Mode == attestations.InputsOffline {
				return nil, err
			}
		}
	}
	roots, err := upstreamRoots(p.UpstreamCA)
	if err != nil {
		return nil, err
	}
	opts := egress.Options{
		Mode: p.Mode, AllowHosts: p.AllowHosts, Lock: w.lock, Store: w.store, Redactor: w.redactor,
		Roots: roots, Proxy: http.ProxyFromEnvironment, Upstreams: p.Upstreams, Version: version,
	}
	if p.offline() {
		opts.Dial = refuseDial
	}
	w.options = opts
	w.gateway, err = egress.New(opts)
	return w, err
}

// upstreamRoots are the system's and one more. Without one there is none to
// read: nil means the system's, read when somebody first asks a server, which
// many a build never does.
func upstreamRoots(more []byte) (*x509.CertPool, error) {
	if len(more) == 0 {
		return nil, nil
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(more) {
		return nil, errors.New("reading the upstream's certificate authority: no certificate in PEM")
	}
	return roots, nil
}

// lazyWatch makes the gateway when it is first asked for. What goes wrong is
// the answer to the first build.
func lazyWatch(p InputsPlan, version string) func() (*watch, error) {
	return sync.OnceValues(func() (*watch, error) { return newWatch(p, version) })
}

// openPlan reads the plan that waxseal hands over.
func openPlan() (InputsPlan, error) {
	f, err := inherited(fdPlan, "pipe of the plan")
	if err != nil {
		return InputsPlan{}, err
	}
	defer f.Close()
	return readPlan(f)
}
