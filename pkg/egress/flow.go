package egress

import (
	"io"
	"sync"
)

// flow carries one body from upstream to the step and into the sink at the
// same time: three goroutines on one ring, each with its own place in it, so
// that neither decryption, hashing nor a slow client waits for the others
// longer than the ring is deep. Memory is the ring's, whatever the body's.
type flow struct {
	mu   sync.Mutex
	cond sync.Cond
	ring []byte

	in, out, kept int64 // bytes read from upstream, given to the step, kept
	end           error // why reading ended: io.EOF at the body's end
	keepErr       error
	gone          bool // the step takes no more
}

func newFlow(ring []byte) *flow {
	f := &flow{ring: ring}
	f.cond.L = &f.mu
	return f
}

// span returns the bytes from at on that lie together, at most n.
func (f *flow) span(at, n int64) []byte {
	size := int64(len(f.ring))
	from := at % size
	return f.ring[from:min(from+n, size)]
}

// read fills the ring until body ends. While more says that a read will not
// wait, what has come is not announced: each time costs two wake-ups.
func (f *flow) read(body io.Reader, more func() bool) {
	size := int64(len(f.ring))
	for {
		f.mu.Lock()
		for f.keepErr == nil && f.in-min(f.out, f.kept) == size {
			f.cond.Wait()
		}
		stop := f.keepErr != nil
		free := min(size-(f.in-min(f.out, f.kept)), bufferSize)
		p := f.span(f.in, free)
		f.mu.Unlock()
		if stop {
			return
		}
		n, err := body.Read(p)
		for err == nil && n < len(p) && more() {
			var m int
			m, err = body.Read(p[n:])
			n += m
		}
		f.mu.Lock()
		f.in += int64(n)
		if f.gone {
			f.out = f.in
		}
		f.end = err
		f.cond.Broadcast()
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// keep hands everything to write, until the body ends or write fails.
func (f *flow) keep(write func([]byte) error) {
	for {
		f.mu.Lock()
		for f.kept == f.in && f.end == nil {
			f.cond.Wait()
		}
		p := f.span(f.kept, min(f.in-f.kept, bufferSize))
		f.mu.Unlock()
		if len(p) == 0 {
			return
		}
		err := write(p)
		f.mu.Lock()
		f.kept += int64(len(p))
		f.keepErr = err
		f.cond.Broadcast()
		f.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// give hands all but the last byte to write, calling flush when there is no
// more for now, and returns the last byte and how the body ended once all of it
// is kept: what the step has whole, the store has whole. left is called once if
// the step takes no more.
func (f *flow) give(write func([]byte) error, flush func(), left func()) (last []byte, total int64, end, keepErr error) {
	dirty := false
	for {
		f.mu.Lock()
		for f.keepErr == nil && f.out >= f.in-1 && (f.end == nil || f.kept < f.in) {
			if dirty {
				f.mu.Unlock()
				flush()
				dirty = false
				f.mu.Lock()
				continue
			}
			f.cond.Wait()
		}
		if f.keepErr != nil || f.out >= f.in-1 {
			last, total, end, keepErr = f.span(f.out, f.in-f.out), f.in, f.end, f.keepErr
			f.mu.Unlock()
			return last, total, end, keepErr
		}
		p := f.span(f.out, min(f.in-1-f.out, bufferSize))
		f.mu.Unlock()
		err := write(p)
		dirty = true
		f.mu.Lock()
		f.out += int64(len(p))
		if err != nil {
			f.gone = true
			f.out = f.in
		}
		f.cond.Broadcast()
		f.mu.Unlock()
		if err != nil {
			left()
		}
	}
}
