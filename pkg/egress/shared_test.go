package egress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
)

// strangers makes a namespace as somebody else would, and runs f in it.
func strangers(t *testing.T, f func() error) *os.File {
	t.Helper()
	needRoot(t)
	type made struct {
		ns  *os.File
		err error
	}
	ch := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // the thread dies with the goroutine
		var m made
		if m.err = unix.Unshare(unix.CLONE_NEWNET); m.err == nil {
			m.ns, m.err = os.Open("/proc/thread-self/ns/net")
		}
		if m.err == nil {
			m.err = f()
		}
		ch <- m
	}()
	m := <-ch
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() { m.ns.Close() })
	return m.ns
}

func TestStepsShareANamespace(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL) }))
	g := w.gateway(t, Options{Store: newStore(t)})
	sh, err := g.Enter(strangers(t, func() error { return nil }))
	if err != nil {
		t.Fatal(err)
	}
	defer sh.Close()
	// What is said while no step is open waits for the next.
	between := make(chan string, 1)
	for i := range 3 {
		s := open(t, g, StepOptions{Name: fmt.Sprint("RUN ", i), In: sh})
		if i > 0 {
			if got := <-between; got != fmt.Sprintf("/between/%d", i) {
				t.Errorf("between the steps: %q", got)
			}
		}
		if _, body := get(t, client(t, s, false), fmt.Sprintf("http://files.test/%d", i)); body != fmt.Sprintf("/%d", i) {
			t.Errorf("step %d: %q", i, body)
		}
		if _, err := dialer(s)(t.Context(), "tcp", "10.1.2.3:22"); err == nil {
			t.Error("port 22 was open")
		}
		rec := end(t, s)
		want := []string{fmt.Sprintf("http://files.test/%d", i)}
		if i > 0 {
			want = append([]string{fmt.Sprintf("http://files.test/between/%d", i)}, want...)
		}
		var got []string
		for _, r := range rec.Requests {
			got = append(got, r.URI)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") || len(rec.Refusals) != 1 || rec.Refusals[0].Destination != "10.1.2.3:22" || rec.Refusals[0].Count != 1 {
			t.Errorf("step %d: %q, %+v", i, got, rec.Refusals)
		}
		if i == 2 {
			break
		}
		held := &Step{ns: sh.ns} // inside needs no more
		var c net.Conn
		if err := inside(held, func() (err error) {
			c, err = net.Dial("tcp", "198.18.0.1:80")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET /between/%d HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\n\r\n", i+1); err != nil {
			t.Fatal(err)
		}
		go func() {
			raw, _ := io.ReadAll(c)
			_, body, _ := strings.Cut(string(raw), "\r\n\r\n")
			_, body, _ = strings.Cut(body, "/")
			between <- "/" + strings.TrimSpace(strings.Split(body, "\r\n")[0])
		}()
	}
}

func TestNamespacesThatAreNotShared(t *testing.T) {
	needRoot(t)
	g := newWorld(t, http.NotFoundHandler()).gateway(t, Options{})
	own, err := os.Open("/proc/thread-self/ns/net") // the first thread may be in another
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if _, err := g.Enter(own); err == nil || !strings.Contains(err.Error(), "the machine's own") {
		t.Errorf("our own: %v", err)
	}
	another := strangers(t, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "out"}, PeerName: "in"}
		if err := h.LinkAdd(pair); err != nil {
			return err
		}
		return h.LinkSetUp(pair)
	})
	if _, err := g.Enter(another); err == nil || !strings.Contains(err.Error(), `it has the interface "out"`) {
		t.Errorf("with an interface: %v", err)
	}
	file, err := os.Open("shared_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := g.Enter(file); err == nil {
		t.Error("a file was taken for a namespace")
	}
}

// trusting is a client in a step that trusts the world and not the gateway.
func trusting(t *testing.T, w *world, s *Step, explicit bool) *http.Client {
	c := client(t, s, explicit)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: w.roots}
	return c
}

func TestTLSThatIsNotOpened(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s says %s", r.Host, r.URL) }))
	for _, explicit := range []bool{true, false} {
		g := w.gateway(t, Options{Unopened: "for a test", AllowHosts: []string{"files.test"}})
		s := open(t, g, StepOptions{})
		c := trusting(t, w, s, explicit)
		// A connection that is idle may be taken for the next request, or closed
		// under it: whoever keeps some makes one to three for two requests.
		c.Transport.(*http.Transport).DisableKeepAlives = true
		for range 2 {
			if code, body := get(t, c, "https://files.test/a"); code != 200 || body != "files.test says /a" {
				t.Errorf("got %d %q", code, body)
			}
		}
		if _, body := get(t, c, "http://files.test/plain"); body != "files.test says /plain" {
			t.Errorf("plain: %q", body)
		}
		for _, no := range []string{"https://other.test/", "https://169.254.169.254/"} {
			if resp, err := c.Get(no); err == nil {
				resp.Body.Close()
				t.Errorf("%s: %s", no, resp.Status)
			}
		}
		c.CloseIdleConnections()
		rec := end(t, s)
		if len(rec.Requests) != 1 || rec.Requests[0].URI != "http://files.test/plain" || rec.Verdict != attestations.VerdictGaps {
			t.Errorf("recorded %+v", rec)
		}
		if len(rec.Gaps) != 1 || rec.Gaps[0].Kind != attestations.GapTLS || !strings.HasPrefix(rec.Gaps[0].Detail, "TLS to files.test:443 was not opened: for a test; connections: 2, bytes in: ") {
			t.Errorf("gaps %+v", rec.Gaps)
		}
		for _, dest := range []string{"other.test:443", "169.254.169.254:443"} {
			found := false
			for _, r := range rec.Refusals {
				found = found || r.Kind == "policy" && r.Destination == dest
			}
			if !found {
				t.Errorf("no refusal of %s: %+v", dest, rec.Refusals)
			}
		}
		if d := g.Describe(); d.CA != "" || d.Name != attestations.GatewayName {
			t.Errorf("described as %+v", d)
		}
	}
}

func TestTLSThatIsNotOpenedGoesThroughAProxy(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("behind TLS: %t", secure), func(t *testing.T) { throughAProxy(t, secure) })
	}
}

func throughAProxy(t *testing.T, secure bool) {
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "through") }))
	asked := make(chan string, 8)
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		user, _, _ := strings.Cut(r.Header.Get("Proxy-Authorization"), " ")
		asked <- r.Method + " " + r.Host + " " + user
		if r.Host != "far.test:443" {
			rw.WriteHeader(http.StatusForbidden)
			return
		}
		carry(t, rw, w.https.Listener.Addr())
	}))
	if secure {
		proxy.StartTLS()
		w.roots.AddCert(proxy.Certificate())
	} else {
		proxy.Start()
	}
	defer proxy.Close()
	at, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	at.User = url.UserPassword("user", "word")
	g := w.gateway(t, Options{Unopened: "for a test", Proxy: http.ProxyURL(at)})
	s := open(t, g, StepOptions{})
	c := trusting(t, w, s, false)
	if code, body := get(t, c, "https://far.test/"); code != 200 || body != "through" {
		t.Errorf("got %d %q", code, body)
	}
	if got := <-asked; got != "CONNECT far.test:443 Basic" {
		t.Errorf("the proxy was asked %q", got)
	}
	if resp, err := c.Get("https://barred.test/"); err == nil {
		resp.Body.Close()
		t.Error("it went past the proxy's refusal")
	}
	c.CloseIdleConnections()
	rec := end(t, s)
	if len(rec.Gaps) != 1 || len(rec.Refusals) != 1 || !strings.Contains(rec.Refusals[0].Reason, "the proxy answered 403") {
		t.Errorf("recorded %+v", rec)
	}
}

func TestNoLockHoldsWhatIsNotOpened(t *testing.T) {
	st := newStore(t)
	_, err := New(Options{Mode: attestations.InputsLocked, Unopened: "for a test", Store: st, Lock: lockOf(t, st)})
	if err == nil || !strings.Contains(err.Error(), "needs TLS opened") {
		t.Errorf("got %v", err)
	}
}

func TestHelloIsReadWhole(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		c := tls.Client(theirs, &tls.Config{ServerName: "files.test", RootCAs: x509.NewCertPool()})
		_ = c.HandshakeContext(context.Background())
	}()
	hello, said, err := readHello(t.Context(), ours)
	if err != nil || hello.ServerName != "files.test" || len(said) < 100 || said[0] != 22 {
		t.Errorf("%+v, %d bytes, %v", hello, len(said), err)
	}
	theirs.Close()
	if _, _, err := readHello(t.Context(), ours); err == nil {
		t.Error("nothing was said, and it was a hello")
	}
}
