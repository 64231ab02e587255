package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// needRoot skips a test that makes namespaces, but for in CI.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 && os.Getenv("CI") != "true" {
		t.Skip("needs root: network namespaces")
	}
}

// world is the outside: an HTTP and an HTTPS server on this machine's loopback,
// known to the gateway as every name below "test".
type world struct {
	http, https *httptest.Server
	ca          *x509.Certificate
	roots       *x509.CertPool
	upstreams   map[string]string
}

func newWorld(t testing.TB, h http.Handler, names ...string) *world {
	w := &world{http: httptest.NewServer(h), https: httptest.NewUnstartedServer(h), roots: x509.NewCertPool(), upstreams: map[string]string{}}
	ca, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	w.ca = ca.cert
	w.roots.AddCert(ca.cert)
	w.https.EnableHTTP2 = true
	w.https.TLS = &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return ca.leaf(hello.ServerName)
	}}
	w.https.Config.ErrorLog = quiet()
	w.https.StartTLS()
	t.Cleanup(w.http.Close)
	t.Cleanup(w.https.Close)
	for _, n := range append(names, "files.test", "other.test") {
		w.upstreams[n+":80"] = w.http.Listener.Addr().String()
		w.upstreams[n+":443"] = w.https.Listener.Addr().String()
		w.upstreams[n+":8080"] = w.http.Listener.Addr().String()
		w.upstreams[n+":8443"] = w.https.Listener.Addr().String()
	}
	return w
}

func newStore(t testing.TB) *lock.Store {
	st, err := lock.OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}

func (w *world) gateway(t testing.TB, opts Options) *Gateway {
	t.Helper()
	opts.Roots, opts.Upstreams = w.roots, w.upstreams
	g, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func open(t testing.TB, g *Gateway, opts StepOptions) *Step {
	t.Helper()
	if !opts.Fetch {
		needRoot(t)
	}
	if opts.Name == "" {
		opts.Name = "RUN test"
	}
	s, err := g.Open(context.Background(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func end(t testing.TB, s *Step) *attestations.InputStep {
	t.Helper()
	st, err := s.Close()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// inside runs f on a thread in the step's namespace.
func inside(s *Step, f func() error) error {
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread dies with the goroutine
		ns, err := os.Open(s.NetNS())
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		ch <- err
	}()
	return <-ch
}

// dialer connects from inside a step, resolving with its name server.
func dialer(s *Step) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = inside(s, func() error {
			d := net.Dialer{Resolver: &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
				var c net.Conn
				err := inside(s, func() (err error) {
					c, err = (&net.Dialer{}).DialContext(ctx, network, Resolver+":53")
					return err
				})
				return c, err
			}}}
			if host, port, _ := net.SplitHostPort(addr); net.ParseIP(host) == nil {
				ips, err := d.Resolver.LookupIP(ctx, "ip", host)
				if err != nil {
					return err
				}
				addr = net.JoinHostPort(ips[0].String(), port)
			}
			c, err = d.DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}
}

// client is a Go client inside a step: through the explicit proxy or not.
func client(t testing.TB, s *Step, explicit bool) *http.Client {
	roots := x509.NewCertPool()
	roots.AddCert(s.g.ca.cert)
	tr := &http.Transport{DialContext: dialer(s), TLSClientConfig: &tls.Config{RootCAs: roots}, DisableCompression: true, ForceAttemptHTTP2: true}
	if explicit {
		tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: "127.0.0.1:3128"})
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func get(t testing.TB, c *http.Client, u string) (int, string) {
	t.Helper()
	resp, err := c.Get(u)
	if err != nil {
		t.Fatalf("GET %s: %v", u, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("GET %s: %v", u, err)
	}
	return resp.StatusCode, string(b)
}

// An upstream that speaks HTTP/2 alone, asked by HTTP/1: what it sends is read by
// the transport's own goroutine, which under the race detector must stay alone.
func TestLargeFromHTTP2Alone(t *testing.T) {
	body := strings.Repeat("0123456789abcdef", 1<<18)
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Errorf("asked by %s", r.Proto)
		}
		io.WriteString(w, body)
	}))
	alone := httptest.NewUnstartedServer(w.https.Config.Handler)
	alone.EnableHTTP2 = true
	certificate := w.https.TLS.GetCertificate
	alone.TLS = &tls.Config{GetCertificate: certificate, GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.Contains(hello.SupportedProtos, "h2") {
			return nil, nil
		}
		return &tls.Config{GetCertificate: certificate, NextProtos: []string{"none"}}, nil // Go would take it as one without ALPN
	}}
	alone.Config.ErrorLog = quiet()
	alone.StartTLS()
	t.Cleanup(alone.Close)
	w.upstreams["files.test:443"] = alone.Listener.Addr().String()
	s := open(t, w.gateway(t, Options{Store: newStore(t)}), StepOptions{})
	c := client(t, s, true)
	c.Transport.(*http.Transport).ForceAttemptHTTP2 = false
	if code, got := get(t, c, "https://files.test/a"); code != 200 || got != body {
		t.Errorf("%d, %d bytes", code, len(got))
	}
	if st := end(t, s); len(st.Requests) != 1 || st.Requests[0].Size != int64(len(body)) {
		t.Errorf("recorded %+v", st.Requests)
	}
}

func TestRecordsEveryWayIn(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s says %s", r.Host, r.URL)
	}))
	st := newStore(t)
	for _, way := range []struct {
		explicit bool
		url      string
	}{
		{true, "http://files.test/a?b=1"}, {true, "https://files.test/a?b=1"},
		{false, "http://files.test/a?b=1"}, {false, "https://files.test/a?b=1"},
		{true, "http://files.test:8080/a"}, {true, "https://files.test:8443/a"},
	} {
		t.Run(fmt.Sprint(way), func(t *testing.T) {
			g := w.gateway(t, Options{Store: st})
			s := open(t, g, StepOptions{})
			code, body := get(t, client(t, s, way.explicit), way.url)
			u, _ := url.Parse(way.url)
			if want := u.Host + " says " + u.RequestURI(); code != 200 || body != want {
				t.Fatalf("got %d %q, want %q", code, body, want)
			}
			rec := end(t, s)
			if len(rec.Requests) != 1 {
				t.Fatalf("recorded %+v", rec)
			}
			r := rec.Requests[0]
			if r.URI != way.url || r.Method != http.MethodGet || r.Status != 200 || r.Digest != attest.DigestOf([]byte(body)).String() || r.Size != int64(len(body)) {
				t.Errorf("recorded %+v", r)
			}
			if !strings.HasPrefix(r.Headers["content-type"], "text/plain") {
				t.Errorf("recorded headers %v", r.Headers)
			}
			if rec.Verdict != attestations.VerdictRecorded || len(rec.Refusals) > 0 || len(rec.Gaps) > 0 {
				t.Errorf("recorded %+v", rec)
			}
			if !st.Has(attest.Digest(r.Digest)) {
				t.Error("the store has it not")
			}
		})
	}
}

// readAll reads every file below dir.
func readAll(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		out[name], err = os.ReadFile(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// makeUnwritable takes away the folder in which the store writes.
func makeUnwritable(t testing.TB, st *lock.Store) {
	t.Helper()
	tmp := filepath.Join(st.Dir(), "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(tmp, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
