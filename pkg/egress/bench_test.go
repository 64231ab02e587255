package egress

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// BenchmarkThroughTheGateway compares a client that asks upstream itself with
// one in a step: the metric "x-direct" is the ratio of the times.
func BenchmarkThroughTheGateway(b *testing.B) {
	needRoot(b)
	large := make([]byte, 64<<20)
	rand.Read(large)
	small := large[:2000]
	w := newWorld(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := small
		if r.URL.Path == "/large" {
			body = large
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body)
	}))
	direct := func(h2 bool) *http.Client {
		addr := map[string]string{"files.test:80": w.http.Listener.Addr().String(), "files.test:443": w.https.Listener.Addr().String()}
		tr := &http.Transport{
			DialContext: func(ctx context.Context, network, a string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr[a])
			},
			TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: h2, DisableCompression: true, ReadBufferSize: 64 << 10}
		b.Cleanup(tr.CloseIdleConnections)
		return &http.Client{Transport: tr}
	}
	inStep := func(b *testing.B, h2 bool) *http.Client {
		s := open(b, w.gateway(b, Options{Store: newStore(b)}), StepOptions{})
		c := client(b, s, true)
		c.Transport.(*http.Transport).Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:3128"})
		c.Transport.(*http.Transport).ForceAttemptHTTP2 = h2
		c.Transport.(*http.Transport).ReadBufferSize = 64 << 10
		return c
	}
	for _, bb := range []struct {
		name, url string
		times     int
		h2        bool
	}{
		{"64MiB/http", "http://files.test/large", 1, false},
		{"64MiB/https", "https://files.test/large", 1, false},
		{"64MiB/https-h2", "https://files.test/large", 1, true},
		{"300small/http", "http://files.test/small", 300, false},
		{"300small/https", "https://files.test/small", 300, false},
	} {
		b.Run(bb.name, func(b *testing.B) {
			d, g := direct(bb.h2), inStep(b, bb.h2)
			timeOf(b, d, bb.url, 1) // connections and certificates are made once
			timeOf(b, g, bb.url, 1)
			var td, tg time.Duration
			for b.Loop() {
				td += timeOf(b, d, bb.url, bb.times)
				tg += timeOf(b, g, bb.url, bb.times)
			}
			b.ReportMetric(float64(tg)/float64(td), "x-direct")
			b.ReportMetric(float64(td.Microseconds())/float64(b.N)/1000, "ms-direct")
			b.ReportMetric(float64(tg.Microseconds())/float64(b.N)/1000, "ms-gateway")
		})
	}
}

func timeOf(b *testing.B, c *http.Client, u string, times int) time.Duration {
	start := time.Now()
	for range times {
		resp, err := c.Get(u)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			b.Fatal(resp.Status, err)
		}
		resp.Body.Close()
	}
	return time.Since(start)
}

// BenchmarkCurl does the same with a program that writes to the disk.
func BenchmarkCurl(b *testing.B) {
	needRoot(b)
	large := make([]byte, 256<<20)
	rand.Read(large)
	w := newWorld(b, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(large)))
		w.Write(large)
	}))
	for _, bb := range []struct{ name, scheme, flag string }{
		{"http", "http", ""}, {"https1", "https", "--http1.1"}, {"https2", "https", ""},
	} {
		b.Run(bb.name, func(b *testing.B) {
			s := open(b, w.gateway(b, Options{Store: newStore(b)}), StepOptions{})
			var td, tg time.Duration
			for b.Loop() {
				const script = "curl -sSfk -w '%{time_total}' -o out "
				addr := w.http.Listener.Addr().String()
				if bb.scheme == "https" {
					addr = w.https.Listener.Addr().String()
				}
				start := time.Now()
				cmd := exec.Command("sh", "-c", script+bb.flag+" --resolve files.test:"+port2(addr)+":127.0.0.1 "+bb.scheme+"://files.test:"+port2(addr)+"/")
				cmd.Dir = b.TempDir()
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatal(err, string(out))
				}
				td += time.Since(start)
				out, err := runInside(b, s, script+bb.flag+" "+bb.scheme+"://files.test/")
				if err != nil {
					b.Fatal(err, out)
				}
				n, _ := strconv.ParseFloat(out, 64)
				tg += time.Duration(n * 1e9)
			}
			b.ReportMetric(float64(tg)/float64(td), "x-direct")
			b.ReportMetric(float64(td.Microseconds())/float64(b.N)/1000, "ms-direct")
			b.ReportMetric(float64(tg.Microseconds())/float64(b.N)/1000, "ms-gateway")
		})
	}
}

func port2(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// BenchmarkOpenClose is what a step costs that asks for nothing.
func BenchmarkOpenClose(b *testing.B) {
	needRoot(b)
	g := newWorld(b, http.NotFoundHandler()).gateway(b, Options{})
	root, err := os.OpenRoot("/")
	if err != nil {
		b.Fatal(err)
	}
	defer root.Close()
	var opening, files, closing time.Duration
	for b.Loop() {
		t0 := time.Now()
		s, err := g.Open(b.Context(), StepOptions{Name: "RUN true"})
		if err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if _, err := s.Files(root, nil); err != nil {
			b.Fatal(err)
		}
		t2 := time.Now()
		if _, err := s.Close(); err != nil {
			b.Fatal(err)
		}
		opening, files, closing = opening+t1.Sub(t0), files+t2.Sub(t1), closing+time.Since(t2)
	}
	for name, d := range map[string]time.Duration{"ms-open": opening, "ms-files": files, "ms-close": closing} {
		b.ReportMetric(float64(d.Microseconds())/float64(b.N)/1000, name)
	}
}
