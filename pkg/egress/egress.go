// Package egress is the gateway: the only way out of a build step. Call New
// once a build and Open for each step; Open gives a network namespace with
// loopback alone, in which the gateway listens, and Close gives the record of
// what passed. Nothing is left of a step's namespace once Close has returned or
// the process has died.
package egress

import (
	"context"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"os"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/lock"
)

// Options says what may pass and where it is kept. The zero value records and
// keeps no bodies.
type Options struct {
	Mode       string      // attestations.InputsRecord and so on; "" records
	AllowHosts []string    // patterns of hosts, "*.debian.org"; none: all
	Lock       *lock.File  // for locked and offline, replay loaded where the store has it
	Store      *lock.Store // nil keeps no bodies (record and none only)
	Redactor   *lock.Redactor
	// Roots are what upstream certificates are verified with; nil: the system's.
	Roots *x509.CertPool
	// Proxy is the company's, as http.ProxyFromEnvironment; nil: none.
	Proxy func(*http.Request) (*url.URL, error)
	// Upstreams maps "name" or "name:port" to the address to dial instead,
	// "10.1.2.3" or "127.0.0.1:8443": the only way to reach a loopback,
	// link-local or metadata address.
	Upstreams map[string]string
	Version   string
	// Dial opens connections to upstream; nil: net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Gateway serves the steps of one build.
type Gateway struct{}

// New makes the gateway and its certificate authority.
func New(opts Options) (*Gateway, error) { panic("contract") }

// Describe is what the record says of this gateway.
func (g *Gateway) Describe() attestations.InputGateway { panic("contract") }

// Refuses reports in words why a recorded step must not be reused under this
// gateway's mode, lock and allowed hosts; none means it may.
func (g *Gateway) Refuses(st *attestations.InputStep) []string { panic("contract") }

// StepOptions describes a step.
type StepOptions struct {
	Name, Stage, Platform string
	Secrets               [][]byte          // values that are never stored
	Hosts                 map[string]net.IP // the step's own additions to /etc/hosts
}

// Step is an open step.
type Step struct{}

// Open makes the namespace and listens in it.
func (g *Gateway) Open(ctx context.Context, opts StepOptions) (*Step, error) { panic("contract") }

// NetNS is the path of the network namespace, for the runtime's spec.
func (s *Step) NetNS() string { panic("contract") }

// MountPoint is where Files must be mounted in the step, read-only.
const MountPoint = "/dev/waxseal"

// Resolver is the address of the step's name server.
const Resolver = "127.0.0.1"

// Files returns a folder with the trust bundles and configuration files for
// the step, made of the image's own and the gateway's CA; rootfs is the step's
// root, which is only read, and env its variables.
func (s *Step) Files(rootfs *os.Root, env []string) (string, error) { panic("contract") }

// Env returns env with the variables that make tools use the gateway and trust
// it. What the image or Dockerfile set of them is overridden.
func (s *Step) Env(env []string) []string { panic("contract") }

// Close ends the step: its listeners, its connections, its files. The record
// it returns has everything but ID, Reused and what only the engine knows.
// Called again it returns the same.
func (s *Step) Close() (*attestations.InputStep, error) { panic("contract") }

// Violation is something that must fail the build, whatever the step made of
// its answer.
type Violation struct {
	Step, Method, URI string
	Expected, Got     string // digests, or what the lock lists and what came, in words
	Text              string // the whole in words
}

// Violations are those of the step so far.
func (s *Step) Violations() []Violation { panic("contract") }

// Transport carries the engine's own requests (ADD URL) through the gateway:
// recorded, checked and replayed like a step's. The step is closed as any.
func (s *Step) Transport() http.RoundTripper { panic("contract") }
