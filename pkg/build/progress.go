package build

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/opencontainers/go-digest"
)

// Display says where and how a build is shown; the zero value shows nothing.
type Display struct {
	// Out is the terminal or file; nil shows nothing. A terminal must be given
	// as the *os.File it is.
	Out io.Writer
	// Mode is "auto", "plain", "tty", "quiet" or "rawjson"; "" is "auto".
	Mode string
}

// CheckProgress accepts the display modes.
func CheckProgress(mode string) error {
	switch mode {
	case "", "auto", "plain", "tty", "quiet", "rawjson":
		return nil
	}
	return fmt.Errorf("%q is not supported: auto, plain, tty, quiet or rawjson", mode)
}

// progress shows one build: the engine's steps and our own before and after
// them, in one display, and in plain lines in the build's log.
type progress struct {
	mu     sync.Mutex
	screen *sink
	log    *sink // nil once the build's log is closed
	n      int
	redact *strings.Replacer
}

// newProgress starts the displays. The log gets everything as plain lines.
// Names of steps pass through redact: the engine puts whole URLs there.
func newProgress(d Display, log io.Writer, redact *strings.Replacer) (*progress, error) {
	p := &progress{redact: redact}
	mode := progressui.DisplayMode(d.Mode)
	var shown progressui.Display
	var err error
	if d.Out == nil {
		d.Out, mode = io.Discard, progressui.QuietMode
	}
	shown, err = progressui.NewDisplay(d.Out, mode)
	if err != nil {
		return nil, UsageError{fmt.Errorf("showing progress as %q: %w", d.Mode, err)}
	}
	p.screen = attach(shown)
	if log != nil {
		plain, err := progressui.NewDisplay(log, progressui.PlainMode)
		if err != nil {
			p.close()
			return nil, err
		}
		p.log = attach(plain)
	}
	return p, nil
}

// sink is one display that is being drawn.
type sink struct {
	ch   chan *client.SolveStatus
	done chan struct{}
}

func attach(d progressui.Display) *sink {
	s := &sink{make(chan *client.SolveStatus, 64), make(chan struct{})}
	go func() {
		defer close(s.done)
		// The display ends when its channel does, so that the last words of a
		// cancelled build are still shown. A display that cannot be drawn must
		// not stop the build.
		_, _ = d.UpdateFrom(context.Background(), s.ch)
		for range s.ch {
		}
	}()
	return s
}

// end draws what is left; a nil sink has nothing to draw.
func (s *sink) end() {
	if s != nil {
		close(s.ch)
		<-s.done
	}
}

func (p *progress) send(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		v.Name, v.Error = p.redact.Replace(v.Name), p.redact.Replace(v.Error)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, k := range []*sink{p.screen, p.log} {
		if k != nil {
			k.ch <- s
		}
	}
}

// forward returns a channel for the engine's status; wait for done after it
// has been closed. watch, unless it is nil, sees all of it.
func (p *progress) forward(watch func(*client.SolveStatus)) (ch chan *client.SolveStatus, done chan struct{}) {
	ch, done = make(chan *client.SolveStatus, 64), make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			p.send(s)
			if watch != nil {
				watch(s)
			}
		}
	}()
	return ch, done
}

// endLog closes the log; the display goes on.
func (p *progress) endLog() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log.end()
	p.log = nil
}

// close ends the displays and waits until everything is drawn. What is sent
// later is dropped.
func (p *progress) close() {
	p.endLog()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.screen.end()
	p.screen = nil
}

// step is one thing of our own that a build does.
type step struct {
	p      *progress
	vertex client.Vertex
	mu     sync.Mutex
	n      int64
	shown  time.Time
}

// begin shows a step as running.
func (p *progress) begin(name string) *step {
	p.mu.Lock()
	p.n++
	id := sha256.Sum256(fmt.Appendf(nil, "waxseal %d %s", p.n, name))
	p.mu.Unlock()
	now := time.Now()
	s := &step{p: p, vertex: client.Vertex{Digest: digest.NewDigestFromBytes(digest.SHA256, id[:]), Name: name, Started: &now}}
	s.send()
	return s
}

func (s *step) send() {
	v := s.vertex
	s.p.send(&client.SolveStatus{Vertexes: []*client.Vertex{&v}})
}

// count adds n bytes to what the step has done, shown now and then.
func (s *step) count(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n += n
	if now := time.Now(); now.Sub(s.shown) > 500*time.Millisecond {
		s.shown = now
		s.status("hashing", s.n, nil)
	}
}

// say shows one finished line below the step.
func (s *step) say(format string, args ...any) {
	now := time.Now()
	s.status(fmt.Sprintf(format, args...), 0, &now)
}

func (s *step) status(id string, current int64, completed *time.Time) {
	s.p.send(&client.SolveStatus{Statuses: []*client.VertexStatus{{
		ID: id, Vertex: s.vertex.Digest, Current: current, Timestamp: time.Now(), Started: s.vertex.Started, Completed: completed,
	}}})
}

// end shows the step as done, or as failed with err, and returns err.
func (s *step) end(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n > 0 {
		now := time.Now()
		s.status("hashing", s.n, &now)
	}
	now := time.Now()
	s.vertex.Completed = &now
	if err != nil {
		s.vertex.Error = err.Error()
	}
	s.send()
	return err
}
