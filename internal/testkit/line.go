package testkit

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

// NewLine starts a forward proxy for plain HTTP through which everything comes
// at so many bytes a second, all connections together: a mirror at the other end
// of a line, wherever it is. It asks as the environment says. Its address is
// what HTTP_PROXY is set to; stop ends it.
func NewLine(bytesPerSecond int64) (addr string, stop func(), err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	l := &line{rate: bytesPerSecond}
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0), Handler: &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.Out.Host = r.In.Host },
		Transport:     &http.Transport{Proxy: http.ProxyFromEnvironment, DisableCompression: true},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			r.Body = &paced{r.Body, l}
			return nil
		},
	}}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(ln) })
	return ln.Addr().String(), func() {
		server.Close() // whoever still reads is cut off
		serving.Wait()
	}, nil
}

// line is what several bodies share.
type line struct {
	rate int64 // bytes a second

	mu   sync.Mutex
	free time.Time // when all that was taken so far has passed
}

// take waits until n bytes have passed.
func (l *line) take(n int) {
	l.mu.Lock()
	if now := time.Now(); l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(int64(n) * int64(time.Second) / l.rate))
	passed := l.free
	l.mu.Unlock()
	time.Sleep(time.Until(passed))
}

// paced is a body that comes over a line.
type paced struct {
	io.ReadCloser
	line *line
}

func (p *paced) Read(b []byte) (int, error) {
	n, err := p.ReadCloser.Read(b)
	p.line.take(n)
	return n, err
}
