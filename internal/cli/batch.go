package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
)

// lastWords is how long after an interrupt a batch may still print: the caller
// is promised an end within a second.
const lastWords = 700 * time.Millisecond

// maxJobs bounds how many images are judged at the same time.
const maxJobs = 64

// maxAhead bounds the requests of a stream that wait for their turn.
const maxAhead = 1024

// question is one image to judge.
type question struct {
	id, image string
	work      gate.Workload
	err       error  // why it cannot be judged
	code      string // of err; default report.CodeUsage
	asked     time.Time
}

// batch judges many images with one gate, each by itself, and prints a line for
// each as soon as it is there. Its memory is that of the images in flight.
type batch struct {
	gate     gate.Gate
	req      gate.Request // what all images have in common
	deadline time.Duration
	jobs     int
	// ahead is how many questions are taken in before anybody has time for them, so
	// that each has its deadline from when it was asked. 0: from when it is judged.
	ahead int
	// print writes one answer; it is called by one goroutine at a time.
	print func(question, report.Line) error
	// trailer writes the last line.
	trailer func(report.Trailer) error
	// earlier is what was answered before this run.
	earlier report.Tally
}

// newBatch checks what all images have in common, before the first is asked for.
func newBatch(req gate.Request, jobs int, deadline time.Duration) (*batch, error) {
	if jobs < 1 || jobs > maxJobs {
		return nil, usagef("--jobs %d: give a number from 1 to %d", jobs, maxJobs)
	}
	if err := gate.Check(req); err != nil {
		return nil, exitError{ExitUsage, err}
	}
	return &batch{req: req, jobs: jobs, deadline: deadline}, nil
}

// remember has the answers printed and noted in a journal.
func (b *batch) remember(j *journal, p *printer) {
	b.earlier = j.earlier
	b.trailer = func(t report.Trailer) error {
		if err := p.trailer(t); err != nil {
			return err
		}
		return j.end(t)
	}
	b.print = func(q question, l report.Line) error {
		// Printed before it is noted: what is lost between is answered twice,
		// and nothing is never answered.
		if err := p.print(q, l); err != nil {
			return err
		}
		return j.note(l)
	}
}

// run answers questions until there are no more, or ctx ends: then what is in
// flight is answered as undecided, and the trailer says that it is not all. The
// error carries the exit code; nil is: all passed.
func (b *batch) run(ctx context.Context, ask func(ctx context.Context, yield func(question) bool) error) error {
	done := make(chan error, 1)
	go func() { done <- b.answer(ctx, ask) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// Whoever stopped it may not be reading any more.
	late := time.NewTimer(lastWords)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return exitError{ExitUndecided, errors.New("interrupted, and the answers are not taken: no trailer was written")}
	}
}

func (b *batch) answer(ctx context.Context, ask func(context.Context, func(question) bool) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	questions, lines := make(chan question, b.ahead), make(chan answer)
	var asking error
	go func() {
		defer close(questions)
		asking = ask(ctx, func(q question) bool {
			if b.ahead > 0 {
				q.asked = time.Now()
			}
			select {
			case questions <- q:
				return true
			case <-ctx.Done():
				return false
			}
		})
	}()
	next := func() (q question, more bool) {
		select {
		case q, more = <-questions:
		case <-ctx.Done():
			select { // what was taken in is answered as well
			case q, more = <-questions:
			default:
			}
		}
		return q, more
	}
	var workers sync.WaitGroup
	for range b.jobs {
		workers.Go(func() {
			for q, more := next(); more; q, more = next() {
				lines <- answer{q, b.judge(ctx, q)}
			}
		})
	}
	go func() {
		workers.Wait()
		close(lines)
	}()
	trailer := report.Trailer{Schema: report.LineSchema}
	if b.earlier.Done > 0 {
		trailer.Earlier = &b.earlier
	}
	var failed error
	for a := range lines {
		if failed != nil {
			continue // what is in flight ends
		}
		if failed = b.print(a.question, a.line); failed != nil {
			cancel()
			continue
		}
		trailer.Count(a.line.Decision)
	}
	if failed != nil {
		return exitError{ExitUndecided, fmt.Errorf("writing the verdicts: %w", failed)}
	}
	interrupted := ctx.Err() != nil
	if !interrupted {
		// The channel was closed behind it.
		failed = asking
	}
	trailer.Complete = !interrupted && failed == nil
	if err := b.trailer(trailer); err != nil {
		return exitError{ExitUndecided, fmt.Errorf("writing the verdicts: %w", err)}
	}
	switch {
	case interrupted:
		return exitError{ExitUndecided, errors.New("interrupted: not everything was answered")}
	case failed != nil:
		return exitError{ExitUndecided, failed}
	case trailer.Denied+b.earlier.Denied > 0:
		return exitError{code: ExitDenied}
	case trailer.Undecided > 0:
		return exitError{code: ExitUndecided}
	}
	return nil
}

type answer struct {
	question
	line report.Line
}

// judge gives an answer whatever happens.
func (b *batch) judge(ctx context.Context, q question) (l report.Line) {
	defer func() {
		if p := recover(); p != nil {
			l = report.Unanswered(q.id, q.image, gate.CodeInternal, fmt.Errorf("internal error: %v (please report it)", p), time.Now())
		}
	}()
	if q.err != nil {
		return report.Unanswered(q.id, q.image, cmp.Or(q.code, report.CodeUsage), q.err, time.Now())
	}
	req := b.req
	req.Reference, req.For = q.image, q.work
	if b.deadline > 0 {
		from := q.asked
		if from.IsZero() {
			from = time.Now()
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, from.Add(b.deadline))
		defer cancel()
	}
	switch err := ctx.Err(); {
	case errors.Is(err, context.DeadlineExceeded):
		return report.Unanswered(q.id, q.image, gate.CodeTimeout, errors.New("no answer before the deadline: others were asked about before"), time.Now())
	case err != nil:
		return report.Unanswered(q.id, q.image, gate.CodeCanceled, err, time.Now())
	}
	v, err := b.gate.Judge(ctx, req)
	if err != nil {
		return report.Unanswered(q.id, q.image, report.CodeUsage, err, time.Now())
	}
	return report.NewLine(q.id, q.image, v)
}

// printer writes the lines of a batch in one of their two forms, and on a
// terminal how far it has come.
type printer struct {
	s       *Streams
	text    bool
	color   bool
	watch   io.Writer // nil: nobody watches
	next    time.Time
	drawn   bool
	counted report.Tally
}

// newPrinter shows progress, where watched, from the second second on.
func newPrinter(s *Streams, text, watched bool) *printer {
	p := &printer{s: s, text: text, color: textOptions(s).Color, next: time.Now().Add(time.Second)}
	if f, ok := s.Err.(*os.File); ok && watched && term.IsTerminal(int(f.Fd())) && s.Env("TERM") != "dumb" {
		p.watch = f
	}
	return p
}

func (p *printer) print(_ question, l report.Line) error {
	p.clear()
	raw, err := p.bytes(l)
	if err != nil {
		return err
	}
	if _, err := p.s.Out.Write(raw); err != nil {
		return err
	}
	p.counted.Count(l.Decision)
	if p.watch != nil && time.Now().After(p.next) {
		p.next, p.drawn = time.Now().Add(200*time.Millisecond), true
		fmt.Fprintf(p.watch, "\r\x1b[K%s", report.Counts(p.counted))
	}
	return nil
}

func (p *printer) bytes(l report.Line) ([]byte, error) {
	if p.text {
		return []byte(report.LineText(l, report.TextOptions{Color: p.color})), nil
	}
	return report.Marshal(l)
}

func (p *printer) trailer(t report.Trailer) error {
	p.clear()
	if p.text {
		text := report.Counts(t.Tally)
		if t.Earlier != nil {
			text += "; before: " + report.Counts(*t.Earlier)
		}
		if !t.Complete {
			text += "; not complete"
		}
		_, err := fmt.Fprintln(p.s.Out, text)
		return err
	}
	raw, err := report.Marshal(t)
	if err != nil {
		return err
	}
	_, err = p.s.Out.Write(raw)
	return err
}

// clear takes the progress off the screen.
func (p *printer) clear() {
	if p.drawn {
		fmt.Fprint(p.watch, "\r\x1b[K")
		p.drawn = false
	}
}
