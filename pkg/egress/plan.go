package egress

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// MaxPlan bounds a plan in JSON: a lock file in base64, and a little.
const MaxPlan = attest.MaxLock/3*4 + 1<<20

// Plan is what waxseal wants done with what reaches a build from outside, as it
// tells it to the process that has the gateway.
type Plan struct {
	Mode       string            `json:"mode,omitempty"`
	Lock       []byte            `json:"lock,omitempty"`
	Store      string            `json:"store,omitempty"`
	AllowHosts []string          `json:"allowHosts,omitempty"`
	UpstreamCA []byte            `json:"upstreamCA,omitempty"`
	Upstreams  map[string]string `json:"upstreams,omitempty"`
	Unopened   string            `json:"unopened,omitempty"` // see Options
}

// Check refuses a plan whose mode there is not.
func (p *Plan) Check() error {
	switch p.Mode {
	case "", attestations.InputsRecord, attestations.InputsLocked, attestations.InputsOffline, attestations.InputsNone:
		return nil
	}
	return fmt.Errorf("reading the plan of the inputs: unknown mode %q", p.Mode)
}

// Held reports whether the build may take only what a lock lists, or nothing.
func (p *Plan) Held() bool { return p.Locked() || p.Mode == attestations.InputsNone }

// Locked reports whether a lock says what may come.
func (p *Plan) Locked() bool {
	return p.Mode == attestations.InputsLocked || p.Offline()
}

// Offline reports whether nothing may be asked of anybody.
func (p *Plan) Offline() bool { return p.Mode == attestations.InputsOffline }

// Options opens what a gateway of this plan works with: New takes them. version
// is whose gateway it is.
func (p *Plan) Options(version string) (Options, error) {
	o := Options{Mode: p.Mode, AllowHosts: p.AllowHosts, Proxy: http.ProxyFromEnvironment, Upstreams: p.Upstreams, Version: version, Unopened: p.Unopened}
	var err error
	if p.Store != "" {
		if o.Store, err = lock.OpenStore(p.Store); err != nil {
			return o, err
		}
		if o.Redactor, err = o.Store.Redactor(); err != nil {
			return o, err
		}
	} else {
		key := make([]byte, 32)
		_, _ = rand.Read(key) // it never fails
		o.Redactor = lock.NewRedactor(key)
	}
	if p.Locked() {
		if o.Lock, err = lock.Parse(p.Lock); err != nil {
			return o, err
		}
		if o.Store == nil && p.Offline() {
			return o, errors.New("starting the gateway: an offline build needs a store")
		}
		if o.Store != nil {
			// Without its headers a locked build asks upstream, and says so at its end.
			if err := o.Lock.LoadReplay(o.Store); err != nil && p.Offline() {
				return o, err
			}
		}
	}
	if p.Offline() {
		o.Dial = refuseDial
	}
	o.Roots, err = upstreamRoots(p.UpstreamCA)
	return o, err
}

// ErrOffline is the answer to every attempt of ours to connect where a build is
// offline.
var ErrOffline = errors.New("this build is offline: no connection is opened")

func refuseDial(_ context.Context, _, address string) (net.Conn, error) {
	return nil, fmt.Errorf("connecting to %s: %w", address, ErrOffline)
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
