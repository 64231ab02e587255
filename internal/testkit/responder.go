package testkit

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"
)

type respondersKey struct{}

// responder is the address of an OCSP responder that may not run yet.
type responder struct{ port atomic.Value }

// cmdResponder starts openssl's OCSP responder with arguments beside that of its
// port. Its address, VAR, is known before, so that certificates can name it:
// without arguments there is nothing yet, and with others later it reads its index
// anew. VAR can be broken.
func cmdResponder(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 1 && !neg, "responder VAR [ARGUMENT...]")
	all := ts.Value(respondersKey{}).(map[string]*responder)
	r := all[args[0]]
	if r == nil {
		r = &responder{}
		all[args[0]] = r
		faults := new(Faults)
		ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = faults
		server := httptest.NewServer(faults.Around(&httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				port, _ := r.port.Load().(string)
				p.Out.URL.Scheme, p.Out.URL.Host = "http", net.JoinHostPort("127.0.0.1", port)
			},
			Transport: &http.Transport{DisableKeepAlives: true}, // openssl serves one connection at a time
		}))
		ts.Defer(server.Close)
		ts.Setenv(args[0], server.URL)
	}
	if len(args) == 1 {
		return
	}
	ports, err := freePorts(1)
	ts.Check(err)
	child := exec.Command("openssl", append([]string{"ocsp", "-port", ports[0]}, args[1:]...)...)
	child.Dir = ts.MkAbs(".")
	out, in, err := os.Pipe()
	ts.Check(err)
	child.Stdout, child.Stderr = in, in
	err = startLeashed(child)
	in.Close()
	ts.Check(err)
	ended := make(chan struct{})
	ts.Defer(func() {
		child.Process.Kill()
		<-ended
	})
	// It says when it listens. A connection to see that for oneself, without a
	// request, would keep it waiting for one.
	said := bufio.NewScanner(out)
	for said.Scan() && !strings.HasPrefix(said.Text(), "ACCEPT") {
	}
	listens := strings.HasPrefix(said.Text(), "ACCEPT")
	go func() {
		defer close(ended)
		io.Copy(io.Discard, out)
		child.Wait()
		out.Close()
	}()
	if !listens {
		ts.Fatalf("openssl ocsp does not listen: %v", args[1:])
	}
	r.port.Store(ports[0])
}
