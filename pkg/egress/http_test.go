package egress

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// zeros is a body of n zero bytes that nobody holds in memory.
type zeros struct{ n int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.n == 0 {
		return 0, io.EOF
	}
	p = p[:min(int64(len(p)), z.n)]
	clear(p)
	z.n -= int64(len(p))
	return len(p), nil
}

func TestHTTPAsItIs(t *testing.T) {
	release := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/trailers":
			w.Header().Set("Trailer", "X-Checksum-Sha256")
			io.WriteString(w, "body")
			w.Header().Set("X-Checksum-Sha256", "abc")
		case "/stream":
			io.WriteString(w, "first")
			w.(http.Flusher).Flush()
			<-release
			io.WriteString(w, " second")
		case "/upload":
			n, _ := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %s %v", n, r.Header.Get("Expect"), r.TransferEncoding)
		case "/refuse-upload":
			http.Error(w, "no", http.StatusUnauthorized)
		case "/headers":
			fmt.Fprintf(w, "%q", r.Header)
		case "/hints":
			w.Header().Set("Link", "</x>")
			w.WriteHeader(http.StatusEarlyHints)
			io.WriteString(w, "after the hints")
		case "/gzip":
			w.Header().Set("Content-Encoding", r.Header.Get("Accept-Encoding"))
			io.WriteString(w, "\x1f\x8b not touched")
		case "/empty":
			w.WriteHeader(http.StatusNoContent)
		default:
			fmt.Fprintf(w, "%s %s", r.Proto, r.URL.RequestURI())
		}
	}))
	g := w.gateway(t, Options{Store: newStore(t)})

	t.Run("trailers", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		resp, err := client(t, s, true).Get("http://files.test/trailers")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		if string(b) != "body" || resp.Trailer.Get("X-Checksum-Sha256") != "abc" {
			t.Errorf("got %q %v", b, resp.Trailer)
		}
		if r := end(t, s).Requests; r[0].Headers["trailer:x-checksum-sha256"] != "abc" {
			t.Errorf("recorded %+v", r)
		}
	})
	t.Run("a body that comes slowly is not held back", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		resp, err := client(t, s, true).Get("https://files.test/stream")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		// All but the last byte, which waits for the store.
		if b := make([]byte, 4); true {
			if _, err := io.ReadFull(resp.Body, b); err != nil || string(b) != "firs" {
				t.Errorf("got %q %v", b, err)
			}
		}
		close(release)
		if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "t second" {
			t.Errorf("got %q %v", b, err)
		}
	})
	t.Run("uploads", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		c := client(t, s, true)
		body := bytes.Repeat([]byte("x"), 3<<20)
		r, _ := http.NewRequest(http.MethodPut, "https://files.test/upload", struct{ io.Reader }{bytes.NewReader(body)})
		r.Header.Set("Expect", "100-continue")
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.HasPrefix(string(b), fmt.Sprint(len(body))) {
			t.Errorf("got %q", b)
		}
		rec := end(t, s).Requests[0]
		if rec.RequestSize != int64(len(body)) || rec.RequestDigest != attest.DigestOf(body).String() {
			t.Errorf("recorded %+v", rec)
		}
	})
	t.Run("an upload that upstream does not want", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		answer := say(s, "files.test:80", "POST /refuse-upload HTTP/1.1\r\nHost: files.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n")
		if !strings.Contains(answer, "401") {
			t.Errorf("got %q", answer)
		}
	})
	t.Run("headers between neighbours stay there", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		answer := say(s, "127.0.0.1:3128", "GET http://files.test/headers HTTP/1.1\r\nHost: files.test\r\nProxy-Authorization: Basic eDp5\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nX-Other: 2\r\nAccept-Encoding: br, zstd\r\n\r\n")
		for _, bad := range []string{"Proxy", "X-Mine", "Via", "Forwarded", "User-Agent"} {
			if strings.Contains(answer, bad) {
				t.Errorf("upstream got %s: %s", bad, answer)
			}
		}
		if !strings.Contains(answer, `"Accept-Encoding":["br, zstd"]`) || !strings.Contains(answer, `"X-Other":["2"]`) {
			t.Errorf("got %s", answer)
		}
	})
	t.Run("HTTP/1.0", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		if a := say(s, "files.test:80", "GET /x HTTP/1.0\r\n\r\n"); !strings.HasPrefix(a, "HTTP/1.0 200 OK\r\n") || !strings.HasSuffix(a, "HTTP/1.1 /x") {
			t.Errorf("got %q", a)
		}
		if a := say(s, "files.test:80", "GET /hints HTTP/1.0\r\nHost: files.test\r\n\r\n"); !strings.HasSuffix(a, "after the hints") {
			t.Errorf("got %q", a)
		}
	})
	t.Run("encodings pass untouched", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		a := say(s, "files.test:80", "GET /gzip HTTP/1.1\r\nHost: files.test\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n")
		if !strings.Contains(a, "Content-Encoding: gzip\r\n") || !strings.HasSuffix(a, "\x1f\x8b not touched") {
			t.Errorf("got %q", a)
		}
	})
	t.Run("an upgrade that may be ignored", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		a := say(s, "files.test:80", "GET /x HTTP/1.1\r\nHost: files.test\r\nConnection: Upgrade, HTTP2-Settings, close\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")
		if !strings.HasPrefix(a, "HTTP/1.1 200") {
			t.Errorf("got %q", a)
		}
	})
	t.Run("HTTP/2 alone", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		tr := client(t, s, false).Transport.(*http.Transport)
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetHTTP2(true)
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				resp, err := (&http.Client{Transport: tr}).Get(fmt.Sprintf("https://files.test/%d", i))
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if b, err := io.ReadAll(resp.Body); err != nil || resp.ProtoMajor != 2 || string(b) != fmt.Sprintf("HTTP/2.0 /%d", i) {
					t.Errorf("got %s %q %v", resp.Proto, b, err)
				}
			})
		}
		wg.Wait()
		if n := len(end(t, s).Requests); n != 20 {
			t.Errorf("recorded %d", n)
		}
	})
	t.Run("no content", func(t *testing.T) {
		s := open(t, g, StepOptions{})
		if a := say(s, "files.test:80", "GET /empty HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(a, "HTTP/1.1 204") || strings.Contains(a, "Content-Length") {
			t.Errorf("got %q", a)
		}
	})
	t.Run("a name of the step's own", func(t *testing.T) {
		s := open(t, g, StepOptions{Hosts: map[string]net.IP{"db.internal": net.IPv4(10, 9, 8, 7), "files.test": net.IPv4(10, 9, 8, 6)}})
		if a := say(s, "10.9.8.6:80", "GET /x HTTP/1.0\r\n\r\n"); !strings.HasSuffix(a, "/x") {
			t.Errorf("got %q", a)
		}
	})
}

// TestAHugeBodyPassesInLittleMemory carries 1 GB and watches the heap.
func TestAHugeBodyPassesInLittleMemory(t *testing.T) {
	const size = 1 << 30
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		io.CopyBuffer(struct{ io.Writer }{w}, &zeros{size}, make([]byte, 256<<10))
	}))
	s := open(t, w.gateway(t, Options{}), StepOptions{})
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	resp, err := client(t, s, true).Get("http://files.test/huge")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var most uint64
	buf := make([]byte, 256<<10)
	var n int64
	for {
		m, err := resp.Body.Read(buf)
		if n>>27 != (n+int64(m))>>27 {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapSys)
		}
		n += int64(m)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if most > before.HeapSys+32<<20 {
		t.Errorf("the heap grew from %d to %d bytes", before.HeapSys, most)
	}
	if r := end(t, s).Requests[0]; r.Size != size || n != size {
		t.Errorf("recorded %+v", r)
	}
}

func TestManySmallRequests(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.URL.Path) }))
	s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{})
	c := client(t, s, false)
	var wg sync.WaitGroup
	for k := range 20 {
		wg.Go(func() {
			for i := range 100 {
				path := fmt.Sprintf("/%d/%d", k, i)
				resp, err := c.Get("https://files.test" + path)
				if err != nil {
					t.Error(err)
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || string(b) != path {
					t.Errorf("got %q %v", b, err)
				}
			}
		})
	}
	wg.Wait()
	rec := end(t, s)
	if len(rec.Requests) != 2000 || rec.Verdict != attestations.VerdictRecorded {
		t.Errorf("recorded %d, %s", len(rec.Requests), rec.Verdict)
	}
}

// TestAClientThatLeaves: what it was given before is in the record.
func TestAClientThatLeaves(t *testing.T) {
	const size = 8 << 20
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		io.Copy(w, &zeros{size})
		if r.URL.Path == "/endless" {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}
	}))
	for path, cut := range map[string]bool{"/sized": false, "/endless": true} {
		s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{})
		resp, err := client(t, s, true).Get("http://files.test" + path)
		if err != nil {
			t.Fatal(err)
		}
		io.ReadFull(resp.Body, make([]byte, 1<<20))
		resp.Body.Close()
		rec := end(t, s)
		if len(rec.Requests) != 1 || rec.Requests[0].Cut != cut || !cut && rec.Requests[0].Size != size {
			t.Errorf("%s: recorded %+v", path, rec.Requests)
		}
	}
}

func TestThroughTheCompanysProxy(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the outside") }))
	asked := make(chan string, 10)
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host + " " + r.Header.Get("Proxy-Authorization")
		if r.Method != http.MethodConnect {
			resp, err := http.Get(w.http.URL)
			if err != nil {
				rw.WriteHeader(http.StatusBadGateway)
				return
			}
			defer resp.Body.Close()
			io.Copy(rw, resp.Body)
			return
		}
		up, err := net.Dial("tcp", w.https.Listener.Addr().String())
		if err != nil {
			rw.WriteHeader(http.StatusBadGateway)
			return
		}
		defer up.Close()
		c, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		go io.Copy(up, c)
		io.Copy(c, up)
	}))
	defer proxy.Close()
	pu, _ := url.Parse(proxy.URL)
	pu.User = url.UserPassword("me", "pass")
	g, err := New(Options{Roots: w.roots, Proxy: http.ProxyURL(pu)})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s := open(t, g, StepOptions{Fetch: true})
	for _, u := range []string{"http://files.test/x", "https://files.test/x"} {
		if status, _, body, _ := fetch(t, s, "GET", u, ""); status != 200 || body != "the outside" {
			t.Errorf("%s: %d %q", u, status, body)
		}
	}
	close(asked)
	var got []string
	for a := range asked {
		got = append(got, a)
	}
	if want := []string{"GET files.test Basic bWU6cGFzcw==", "CONNECT files.test:443 Basic bWU6cGFzcw=="}; !slices.Equal(got, want) {
		t.Errorf("the proxy was asked %q", got)
	}
	// The proxy is no way to what the gateway itself does not dial.
	for _, u := range []string{"http://127.0.0.1:1/", "http://169.254.169.254/", proxy.URL + "/", "http://localhost/"} {
		if status, _, body, _ := fetch(t, s, "GET", u, ""); status != 403 {
			t.Errorf("%s: %d %q", u, status, body)
		}
	}
}

// carry answers a CONNECT with what is at an address.
func carry(t *testing.T, w http.ResponseWriter, to net.Addr) {
	up, err := net.Dial("tcp", to.String())
	if err != nil {
		t.Error(err)
		return
	}
	defer up.Close()
	c, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(up, buf) }()
	_, _ = io.Copy(c, up)
}

// TestThroughAProxyBehindTLS asks one that would rather speak HTTP/2, in which
// no tunnel is asked for as in HTTP/1.
func TestThroughAProxyBehindTLS(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }))
	asked := make(chan string, 10)
	proxy := newWorld(t, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host + " " + r.Proto
		if r.Method != http.MethodConnect {
			io.WriteString(rw, "forwarded")
			return
		}
		carry(t, rw, w.https.Listener.Addr())
	}))
	_, port, err := net.SplitHostPort(proxy.https.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	roots := w.roots.Clone()
	roots.AddCert(proxy.ca)
	through := func(r *http.Request) (*url.URL, error) {
		if r.URL.Hostname() == "direct.test" {
			return nil, nil
		}
		return &url.URL{Scheme: "https", Host: "localhost:" + port}, nil
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		if addr == "direct.test:80" {
			return nil, errors.New("no proxy was asked")
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}
	g, err := New(Options{Roots: roots, Proxy: through, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	s := open(t, g, StepOptions{})
	for _, tt := range []struct {
		http2            bool
		url, body, asked string
	}{
		{false, "http://files.test/x", "forwarded", "GET files.test HTTP/1.1"},
		{false, "https://files.test/x", "HTTP/1.1", "CONNECT files.test:443 HTTP/1.1"},
		{true, "https://other.test/x", "HTTP/2.0", "CONNECT other.test:443 HTTP/1.1"},
	} {
		c := client(t, s, false)
		c.Timeout = 20 * time.Second
		if tt.http2 {
			protocols := new(http.Protocols)
			protocols.SetHTTP2(true)
			c.Transport.(*http.Transport).Protocols = protocols
		}
		if status, body := get(t, c, tt.url); status != 200 || body != tt.body {
			t.Errorf("%s: %d %q", tt.url, status, body)
		}
		if got := <-asked; got != tt.asked {
			t.Errorf("%s: the proxy was asked %q", tt.url, got)
		}
	}
	// What it is not for does not go there; nor may a step go to the proxy itself.
	for _, u := range []string{"http://direct.test/", "http://localhost:" + port + "/"} {
		if status, body := get(t, client(t, s, true), u); status < 400 {
			t.Errorf("%s: %d %q", u, status, body)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the proxy was asked %q", <-asked)
	}
	rec := fmt.Sprintf("%+v", end(t, s))
	for _, why := range []string{"no proxy was asked", "it is the proxy"} {
		if !strings.Contains(rec, why) {
			t.Errorf("no %q in %s", why, rec)
		}
	}
}

// TestNothingIsLeft opens and closes steps and counts what they held.
func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, &zeros{1 << 20}) }))
	g := w.gateway(t, Options{Store: newStore(t)})
	once := func() {
		s := open(t, g, StepOptions{})
		c := client(t, s, true)
		get(t, c, "https://files.test/")
		// Connections that idle, that say nothing and that are half a request.
		for _, text := range []string{"", "GET / HTTP/1.1\r\nHost", "CONNECT files.test:443 HTTP/1.1\r\n\r\n"} {
			conn, err := dialer(s)(context.Background(), "tcp", "127.0.0.1:3128")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, text)
		}
		end(t, s)
		c.CloseIdleConnections()
	}
	once()
	g.up.close()
	count := func() (fds, goroutines int) {
		es, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(es), runtime.NumGoroutine()
	}
	fds, gor := count()
	for range 5 {
		once()
	}
	g.up.close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		f, n := count()
		if f <= fds+2 && n <= gor+4 {
			break
		}
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d files and %d goroutines, before %d and %d\n%s", f, n, fds, gor, buf[:runtime.Stack(buf, true)])
		}
		runtime.Gosched()
	}
}

// TestConnectionsAreBounded: a step cannot have more than its share open, and
// the gateway serves again when it lets go.
func TestConnectionsAreBounded(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "ok") }))
	s := open(t, w.gateway(t, Options{}), StepOptions{})
	var conns []net.Conn
	for range maxConns + 50 {
		c, err := dialer(s)(context.Background(), "tcp", "127.0.0.1:3128")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	if n > maxConns {
		t.Errorf("%d connections are served", n)
	}
	for _, c := range conns {
		c.Close()
	}
	c, err := dialer(s)(context.Background(), "tcp", "127.0.0.1:3128")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET http://files.test/ HTTP/1.0\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("got %v %v", resp, err)
	}
}
