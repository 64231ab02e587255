package testkit

import (
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
	usage(ts, len(args) == 2 && !neg, "serve VAR DIR")
	dir := ts.MkAbs(args[1])
	libexec, err := exec.Command("git", "--exec-path").Output()
	ts.Check(err)
	backend := gitBackend(strings.TrimSpace(string(libexec)), dir)
	files := http.FileServer(http.Dir(dir))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, ".git/") {
			backend.ServeHTTP(w, r)
			return
		}
		files.ServeHTTP(w, r)
	}))
	ts.Defer(server.Close)
	ts.Setenv(args[0], server.URL)
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
// VAR_HTTP its address and VAR_PROXY that of the proxy before it.
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
