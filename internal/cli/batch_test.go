package cli

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Progress appears when there is something to wait for, and is gone before a
// line is printed and at the end.
func TestProgress(t *testing.T) {
	var out, screen bytes.Buffer
	p := newPrinter(&Streams{Out: &out, Err: &screen, LookupEnv: func(string) (string, bool) { return "", false }}, true, true)
	p.watch = &screen
	line := report.Line{Image: "registry.example/a:1", Decision: gate.Pass}
	for _, step := range []struct {
		next time.Time
		want string
	}{
		{time.Now().Add(time.Hour), ""},
		{time.Time{}, "\r\x1b[K2 judged: 2 passed, 0 denied, 0 undecided"},
		{time.Now().Add(time.Hour), "\r\x1b[K"},
	} {
		screen.Reset()
		p.next = step.next
		if err := p.print(question{}, line); err != nil || screen.String() != step.want {
			t.Errorf("%q, %v; want %q", screen.String(), err, step.want)
		}
	}
	if err := p.trailer(report.Trailer{Tally: p.counted, Earlier: &report.Tally{Done: 2, Denied: 2}}); err != nil {
		t.Error(err)
	}
	if got := out.String(); !strings.HasSuffix(got, "3 judged: 3 passed, 0 denied, 0 undecided; before: 2 judged: 0 passed, 2 denied, 0 undecided; not complete\n") {
		t.Error(got)
	}
}

// What a stream has taken in is answered when it is told to end, what has been
// waiting too long when its time is over, and neither is looked at.
func TestStreamAnswersWhatWaits(t *testing.T) {
	for _, c := range []struct {
		name, code string
		deadline   time.Duration
	}{{"told to end", gate.CodeCanceled, 0}, {"out of time", gate.CodeTimeout, 50 * time.Millisecond}} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opened := 0
			b := &batch{jobs: 1, ahead: 10, deadline: c.deadline, req: gate.Request{Level: &verify.Demand{Levels: verify.Levels{Build: 1}}}, gate: gate.Gate{
				Open: func(ctx context.Context, _ store.Reference, _ store.Options) (store.Repo, error) {
					opened++
					<-ctx.Done()
					return nil, context.Cause(ctx)
				},
			}}
			var lines []report.Line
			b.print = func(_ question, l report.Line) error { lines = append(lines, l); return nil }
			b.trailer = func(report.Trailer) error { return nil }
			_ = b.run(ctx, func(_ context.Context, yield func(question) bool) error {
				for i := range 4 {
					yield(question{id: fmt.Sprint(i), image: "registry.example/a:1"})
				}
				if c.deadline == 0 {
					cancel()
				}
				return nil
			})
			if len(lines) != 4 || c.deadline == 0 && opened > 1 {
				t.Errorf("%d lines, %d looked at", len(lines), opened)
			}
			for _, l := range lines {
				if l.Decision != gate.Undecided || l.Reasons[0].Code != c.code {
					t.Errorf("%+v", l)
				}
			}
		})
	}
}

// A batch holds no more than it judges at a time, whatever is asked, and a
// panic is the end of one answer alone.
func TestBatchIsBounded(t *testing.T) {
	const jobs, images = 4, 1000
	pair, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pair.Public())
	if err != nil {
		t.Fatal(err)
	}
	key, err := verify.ParseKey("k", pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	if err != nil {
		t.Fatal(err)
	}
	slots := make(chan struct{}, jobs)
	b := &batch{jobs: jobs, req: gate.Request{Keys: []verify.Key{key}}, gate: gate.Gate{Open: func(_ context.Context, ref store.Reference, _ store.Options) (store.Repo, error) {
		select {
		case slots <- struct{}{}:
		default:
			t.Error("more at a time than jobs")
		}
		defer func() { <-slots }()
		if strings.HasSuffix(ref.Tag, "7") {
			panic("a bug")
		}
		return nil, store.ErrUnavailable
	}}}
	codes := map[string]int{}
	b.print = func(_ question, l report.Line) error { codes[l.Reasons[0].Code]++; return nil }
	var trailer report.Trailer
	b.trailer = func(tr report.Trailer) error { trailer = tr; return nil }
	err = b.run(t.Context(), func(_ context.Context, yield func(question) bool) error {
		for i := range images {
			if !yield(question{image: fmt.Sprintf("registry.example/a:%d", i)}) {
				return nil
			}
		}
		return nil
	})
	var coded exitError
	if !errors.As(err, &coded) || coded.code != ExitUndecided || !trailer.Complete || trailer.Done != images || codes[gate.CodeInternal] != images/10 || codes[gate.CodeUnavailable] != images-images/10 {
		t.Errorf("%v, %+v, %v", err, trailer, codes)
	}
	// A line that cannot be printed ends it; so does a source that breaks off.
	b.print = func(question, report.Line) error { return errors.New("no room") }
	err = b.run(t.Context(), func(_ context.Context, yield func(question) bool) error {
		for yield(question{image: "registry.example/a:1"}) {
		}
		return nil
	})
	if !errors.As(err, &coded) || coded.code != ExitUndecided || !strings.Contains(err.Error(), "no room") {
		t.Error(err)
	}
	err = b.run(t.Context(), func(context.Context, func(question) bool) error { return errors.New("gone") })
	if !errors.As(err, &coded) || coded.code != ExitUndecided || trailer.Complete {
		t.Error(err, trailer)
	}
}
