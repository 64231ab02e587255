package sandbox

import (
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// LegacySocket is where the process that holds a namespace finds ours, in its
// container.
const LegacySocket = "/waxseal.sock"

// fdHolders is the socket to which the processes come that hold a namespace.
const fdHolders = 4

const (
	maxLegacyID    = 64
	maxLegacyTalk  = 256 << 20 // bytes of what waxseal says in one run
	maxLegacyOrder = 4096      // orders of one build that wait
	helloTimeout   = 10 * time.Second
)

// LegacyOrder is what waxseal says about a build of docker's legacy builder: that a
// namespace for it will come, that its next step begins, or that it is over.
type LegacyOrder struct {
	Build string `json:"build"`
	// Closed: nothing may leave the namespace at all.
	Closed bool              `json:"closed,omitempty"`
	Hosts  map[string]net.IP `json:"hosts,omitempty"` // the build's own additions to /etc/hosts
	Step   *string           `json:"step,omitempty"`  // the name of the next one
	End    bool              `json:"end,omitempty"`
}

// LegacyMessage answers: the namespace of a build is watched, or what was seen
// in it. The first is about no build: all is ready, or an Error why not.
type LegacyMessage struct {
	Build string       `json:"build,omitempty"`
	Ready bool         `json:"ready,omitempty"`
	Error string       `json:"error,omitempty"`
	Seen  *LegacyInput `json:"seen,omitempty"`
	// Env is what leads a step's tools to the gateway on any port, by build
	// arguments that Docker knows of itself and keeps out of images.
	Env map[string]string `json:"env,omitempty"`
	// Libraries are the files that this program needs to run: a
	// container that runs it has no others.
	Libraries []string `json:"libraries,omitempty"`
}

// LegacyInput is what was seen of a build: a record for what came before its
// first step, and one for each step that was announced.
type LegacyInput struct {
	Steps   []attestations.InputStep  `json:"steps"`
	Gateway attestations.InputGateway `json:"gateway"`
}

// Hold holds the network namespace it runs in until the gateway's process lets
// go: it is the one process of a container in whose network others run.
func Hold(id string) error {
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return err
	}
	defer ns.Close()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: LegacySocket, Net: "unix"})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, _, err := c.WriteMsgUnix([]byte(id), unix.UnixRights(int(ns.Fd())), nil); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, c) // ends when the other side does
	return nil
}

// Legacy watches the steps of docker's legacy builder: for each build a process in a
// container of the daemon's hands over its network namespace, in which the gateway
// then listens. It ends with waxseal.
func Legacy(ctx context.Context, version string) error {
	f, err := inherited(fdTalk, "channel to waxseal")
	if err != nil {
		return err
	}
	defer f.Close()
	holders, err := inherited(fdHolders, "socket of the namespaces")
	if err != nil {
		return err
	}
	l, err := net.FileListener(holders)
	holders.Close()
	if err != nil {
		return fmt.Errorf("opening the socket of the namespaces: %w", err)
	}
	defer l.Close()
	t := newTalk(f, maxLegacyTalk)
	var plan egress.Plan
	if err := t.in.Decode(&plan); err != nil {
		return fmt.Errorf("reading the plan of the inputs: %w", err)
	}
	s := &legacyWatch{ctx: ctx, out: t.out, builds: map[string]*legacyBuild{}}
	if s.open, err = newLegacyGateway(plan, version); err != nil {
		return t.out.Encode(LegacyMessage{Error: err.Error()})
	}
	defer s.open.Close()
	s.closed = sync.OnceValues(func() (*legacyGateway, error) {
		return newLegacyGateway(egress.Plan{Mode: attestations.InputsNone, Unopened: plan.Unopened}, version)
	})
	libraries, err := ownLibraries()
	if err != nil {
		return t.out.Encode(LegacyMessage{Error: err.Error()})
	}
	if err := t.out.Encode(LegacyMessage{Ready: true, Libraries: libraries}); err != nil {
		return err
	}
	go s.accept(l.(*net.UnixListener))
	for {
		var o LegacyOrder
		switch err := t.in.Decode(&o); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("watching docker's legacy builder: %w", err)
		}
		s.order(o)
	}
}

// ownLibraries lists what this program was linked with, where it is not whole by
// itself: its loader, and what that has mapped.
func ownLibraries() ([]string, error) {
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("reading this program: %w", err)
	}
	defer self.Close()
	var out []string
	for _, p := range self.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(p.Open(), unix.PathMax))
		if err != nil {
			return nil, fmt.Errorf("reading this program: %w", err)
		}
		out = append(out, strings.TrimRight(string(raw), "\x00"))
	}
	if out == nil {
		return nil, nil
	}
	maps, err := readBounded("/proc/self/maps", maxSocketTable)
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) == 6 && strings.Contains(filepath.Base(f[5]), ".so") && !slices.Contains(out, f[5]) {
			out = append(out, f[5])
		}
	}
	return out, nil
}

type legacyWatch struct {
	ctx    context.Context
	open   *legacyGateway
	closed func() (*legacyGateway, error) // of builds that have no network

	saying sync.Mutex // over out: nobody who listens waits for it
	out    *json.Encoder

	mu     sync.Mutex
	builds map[string]*legacyBuild
}

// legacyGateway is a gateway with the store in which it keeps what passes.
type legacyGateway struct {
	*egress.Gateway
	store *lock.Store // nil keeps nothing
}

func newLegacyGateway(plan egress.Plan, version string) (*legacyGateway, error) {
	opts, err := plan.Options(version)
	if err != nil {
		return nil, err
	}
	g, err := egress.New(opts)
	return &legacyGateway{g, opts.Store}, err
}

// legacyBuild is one build while it is watched.
type legacyBuild struct {
	orders chan LegacyOrder
	held   chan heldNetwork
	hosts  map[string]net.IP
	closed bool
}

// heldNetwork is a namespace and the connection that keeps it.
type heldNetwork struct {
	ns   *os.File
	conn net.Conn
}

func (n heldNetwork) close() {
	n.ns.Close()
	n.conn.Close()
}

func (s *legacyWatch) say(m LegacyMessage) {
	s.saying.Lock()
	defer s.saying.Unlock()
	_ = s.out.Encode(m) // without waxseal there is nobody to tell, and we end
}

func (s *legacyWatch) order(o LegacyOrder) {
	s.mu.Lock()
	b := s.builds[o.Build]
	fresh := b == nil && !o.End && o.Step == nil
	if fresh {
		b = &legacyBuild{orders: make(chan LegacyOrder, maxLegacyOrder), held: make(chan heldNetwork, 1), hosts: o.Hosts, closed: o.Closed}
		s.builds[o.Build] = b
	}
	s.mu.Unlock()
	switch {
	case fresh:
		go s.follow(o.Build, b)
	case b != nil:
		b.orders <- o
	}
}

// accept takes the namespaces in, each once and only for a build that waits.
func (s *legacyWatch) accept(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		go func() {
			id, n, err := receiveNetwork(c)
			if err != nil {
				c.Close()
				return
			}
			s.mu.Lock()
			b := s.builds[id]
			s.mu.Unlock()
			if b != nil {
				select {
				case b.held <- n:
					return
				default: // it has one
				}
			}
			n.close()
		}()
	}
}

func receiveNetwork(c *net.UnixConn) (string, heldNetwork, error) {
	if err := c.SetReadDeadline(time.Now().Add(helloTimeout)); err != nil {
		return "", heldNetwork{}, err
	}
	id, rights := make([]byte, maxLegacyID), make([]byte, unix.CmsgSpace(4))
	n, more, _, _, err := c.ReadMsgUnix(id, rights)
	if err != nil {
		return "", heldNetwork{}, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:more])
	if err != nil || len(messages) != 1 {
		return "", heldNetwork{}, errors.New("receiving a namespace: none came")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return "", heldNetwork{}, errors.New("receiving a namespace: none came")
	}
	unix.CloseOnExec(fds[0])
	return string(id[:n]), heldNetwork{os.NewFile(uintptr(fds[0]), "network namespace"), c}, c.SetReadDeadline(time.Time{})
}

// follow watches one build from its namespace to its end.
func (s *legacyWatch) follow(id string, b *legacyBuild) {
	seen, err := s.see(id, b)
	s.mu.Lock()
	delete(s.builds, id)
	s.mu.Unlock()
	if err != nil {
		s.say(LegacyMessage{Build: id, Error: err.Error()})
		return
	}
	s.say(LegacyMessage{Build: id, Seen: seen})
}

func (s *legacyWatch) see(id string, b *legacyBuild) (*LegacyInput, error) {
	n, err := b.network()
	if err != nil {
		return nil, err
	}
	defer n.close()
	g := s.open
	if b.closed {
		if g, err = s.closed(); err != nil {
			return nil, err
		}
	}
	sh, err := g.Enter(n.ns)
	if err != nil {
		return nil, err
	}
	defer sh.Close()
	steps := &legacySteps{gateway: g.Gateway, in: sh, hosts: b.hosts}
	if err := steps.next(s.ctx, "before the first step"); err != nil {
		return nil, err
	}
	s.say(LegacyMessage{Build: id, Ready: true, Env: proxies(steps.open.Env(nil))})
	for o := range b.orders {
		if o.End {
			break
		}
		if o.Step != nil {
			if err := steps.next(s.ctx, *o.Step); err != nil {
				return nil, err
			}
		}
	}
	if err := steps.end(); err != nil {
		return nil, err
	}
	seen := &LegacyInput{Steps: steps.seen, Gateway: g.Describe()}
	if g.store != nil {
		return seen, g.store.Sync(s.ctx)
	}
	return seen, nil
}

// proxies are those of a step's variables that name the gateway.
func proxies(env []string) map[string]string {
	out := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			out[name] = value
		}
	}
	return out
}

// network waits for the namespace of the build.
func (b *legacyBuild) network() (heldNetwork, error) {
	for {
		select {
		case n := <-b.held:
			return n, nil
		case o := <-b.orders:
			if o.End {
				return heldNetwork{}, errors.New("no namespace came")
			}
		}
	}
}

// legacySteps are the steps of one build, one after the other in its
// namespace.
type legacySteps struct {
	gateway *egress.Gateway
	in      *egress.Shared
	hosts   map[string]net.IP
	open    *egress.Step
	seen    []attestations.InputStep
}

// next ends the step that is open and begins another.
func (l *legacySteps) next(ctx context.Context, name string) error {
	if err := l.end(); err != nil {
		return err
	}
	var err error
	l.open, err = l.gateway.Open(ctx, egress.StepOptions{Name: name, Hosts: l.hosts, In: l.in})
	return err
}

func (l *legacySteps) end() error {
	if l.open == nil {
		return nil
	}
	st, err := l.open.Close()
	l.open = nil
	if err != nil {
		return fmt.Errorf("recording what reached the step: %w", err)
	}
	l.seen = append(l.seen, *st)
	return nil
}
