package engine

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"

	"github.com/waxseal/waxseal/pkg/egress"
	"github.com/waxseal/waxseal/pkg/lock"
)

// InputsPlan is what waxseal wants done with what reaches a build from
// outside. It comes over a pipe, because a lock file is no argument.
type InputsPlan struct {
	egress.Plan
	// Clients is set where other programs ask for the builds.
	Clients *ClientsPlan `json:"clients,omitempty"`
	// PlainLayers is set where a build of another program is repeated.
	PlainLayers bool `json:"plainLayers,omitempty"`
}

// readPlan reads the plan to its end; an empty pipe is the zero plan.
func readPlan(r io.Reader) (InputsPlan, error) {
	var p InputsPlan
	raw, err := io.ReadAll(io.LimitReader(r, egress.MaxPlan+1))
	if err != nil {
		return p, fmt.Errorf("reading the plan of the inputs: %w", err)
	}
	if len(raw) > egress.MaxPlan {
		return p, fmt.Errorf("reading the plan of the inputs: over the limit of %d bytes", egress.MaxPlan)
	}
	if len(raw) == 0 {
		return p, nil
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, fmt.Errorf("reading the plan of the inputs: %w", err)
	}
	return p, p.Check()
}

// plainLayers reports whether layers are clamped and compressed as BuildKit does
// it, byte for byte: other programs expect that.
func (p *InputsPlan) plainLayers() bool { return p.Clients != nil || p.PlainLayers }

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
	opts, err := p.Options(version)
	if err != nil {
		return nil, err
	}
	w := &watch{store: opts.Store, lock: opts.Lock, redactor: opts.Redactor, options: opts}
	w.gateway, err = egress.New(opts)
	return w, err
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
