package testkit

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// cmdServe starts a web server over a folder: files as they are, and git
// repositories (names that end in .git) through git's own HTTP program.
func cmdServe(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, (len(args) == 2 || len(args) == 3 && args[2] == "outside") && !neg, "serve VAR DIR [outside]")
	dir := ts.MkAbs(args[1])
	libexec, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	backend := gitBackend(strings.TrimSpace(string(libexec)), dir)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, ".git/") {
			backend.ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	if len(args) == 3 {
		server.Listener.Close()
		server.Listener, err = net.Listen("tcp", net.JoinHostPort(outside(ts), "0"))
		ts.Check(err)
	}
	server.Start()
	ts.Defer(server.Close)
	ts.Setenv(args[0], server.URL)
}

// outside is an address of this machine that is not its loopback, which some
// programs refuse to go to.
func outside(ts *testscript.TestScript) string {
	all, err := net.InterfaceAddrs()
	ts.Check(err)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	ts.Fatalf("this machine has no address but its loopback's")
	return ""
}

type upstreamsKey struct{}

func upstreamOf(ts *testscript.TestScript, variable string) *Upstream {
	u := ts.Value(upstreamsKey{}).(map[string]*Upstream)[variable]
	if u == nil {
		ts.Fatalf("no upstream %s", variable)
	}
	return u
}

// cmdUpstream starts an Upstream. VAR is its flags, to be split by a shell,
// VAR_HTTP its address, VAR_PROXY that of the proxy before it and VAR_PROXYTLS
// that of the same behind TLS, as localhost if that is among the names.
func cmdUpstream(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) >= 3 && !neg, "upstream VAR DIR NAME...")
	faults := new(Faults)
	u, err := NewUpstream(UpstreamOptions{
		Dir: ts.MkAbs(args[1]), Names: args[2:], Faults: faults, CAFile: ts.MkAbs(".ca-" + args[0] + ".pem"),
	})
	ts.Check(err)
	ts.Defer(u.Close)
	ts.Value(faultsKey{}).(map[string]*Faults)[args[0]] = faults
	ts.Value(upstreamsKey{}).(map[string]*Upstream)[args[0]] = u
	ts.Setenv(args[0], strings.Join(u.Flags, " "))
	ts.Setenv(args[0]+"_HTTP", u.HTTP)
	ts.Setenv(args[0]+"_PROXY", u.Proxy)
	ts.Setenv(args[0]+"_PROXYTLS", strings.Replace(u.ProxyTLS, "127.0.0.1", "localhost", 1))
}

// cmdChange gives a path of an upstream another body: the text, or what is in
// the file of that name.
func cmdChange(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 3 && !neg, "change VAR PATH TEXT|FILE")
	body := []byte(args[2])
	if raw, err := os.ReadFile(filepath.Join(ts.MkAbs("."), args[2])); err == nil {
		body = raw
	}
	upstreamOf(ts, args[0]).Change(args[1], body)
}

func cmdOff(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 1 && !neg, "off VAR")
	upstreamOf(ts, args[0]).Close()
}

// cmdMachine lets a script reach package registries as this machine does: its
// proxies and authorities, and the registries that its own tools are set to.
func cmdMachine(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, len(args) == 0 && !neg, "machine")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if value := os.Getenv(name); value != "" {
			ts.Setenv(name, value)
		}
	}
	for name, ask := range map[string][]string{"GOPROXY": {"go", "env", "GOPROXY"}, "NPM_CONFIG_REGISTRY": {"npm", "config", "get", "registry"}} {
		// Without the tool, the step's own default holds.
		said, _ := exec.Command(ask[0], ask[1:]...).Output()
		ts.Setenv(name, strings.TrimSpace(string(said)))
	}
}
