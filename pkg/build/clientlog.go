package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxClientLog bounds the log of another program's build: all of it is looked
// through for secrets at once.
const maxClientLog = 8 << 20

// clientLog is what the engine told another program of its build, in plain
// lines. It is nil where there is none.
type clientLog struct {
	text []byte
	full bool // there was more than is kept of one
}

func (l *clientLog) Write(p []byte) (int, error) {
	if len(l.text)+len(p) > maxClientLog {
		l.full = true
		return len(p), nil
	}
	l.text = append(l.text, p...)
	return len(p), nil
}

// beginLog gets the log of a build while other things happen; the function that
// it returns waits for it.
func (s *sealer) beginLog(ctx context.Context, img *clientImage, w *sealedImage) func() *clientLog {
	if img.legacy() {
		return func() *clientLog { return nil }
	}
	answer := make(chan answerOf[clientLog], 1)
	go func() {
		l := &clientLog{}
		err := s.fetchLog(ctx, img.solve.Ref, w.run, l)
		answer <- answerOf[clientLog]{l, err}
	}()
	return func() *clientLog {
		a := <-answer
		switch {
		case a.err != nil:
			w.run.notes.add("the build's log is not in its provenance: %v", a.err)
			return nil
		case a.value.full:
			w.run.notes.add("the build's log is not in its provenance: it is over the limit of %d bytes", maxClientLog)
			return nil
		}
		a.value.text = bytes.ToValidUTF8(a.value.text, []byte("?"))
		return a.value
	}
}

// fetchLog writes the plain lines of a build that has ended.
func (s *sealer) fetchLog(ctx context.Context, ref string, r *run, to io.Writer) error {
	stream, err := s.client.ControlClient().Status(ctx, &controlapi.StatusRequest{Ref: ref})
	if err != nil {
		return fmt.Errorf("reading the engine's log: %w", err)
	}
	shown, err := newProgress(Display{}, to, r.req.redact())
	if err != nil {
		return err
	}
	defer shown.close()
	for {
		some, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			shown.endLog()
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the engine's log: %w", err)
		}
		shown.send(client.NewSolveStatus(some))
	}
}

// texts is the log for those who look for secrets.
func (l *clientLog) texts(s *clientSolve) []placed {
	if l == nil {
		return nil
	}
	return []placed{{where: "the output of the build " + s.label(), text: string(l.text)}}
}

// clean takes secrets out of the log, writes it to the --out folder, unless
// that is nil, and returns its digest; "" where there is no log.
func (l *clientLog) clean(c *cleaner, out *outFolder) (attest.Digest, error) {
	if l == nil {
		return "", nil
	}
	text := []byte(c.hide(string(l.text)))
	if out != nil {
		if err := out.write(text, "build.log"); err != nil {
			return "", err
		}
	}
	return attest.DigestOf(text), nil
}
