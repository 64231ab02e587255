package build

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// daemonSays is a Docker daemon that answers builds and pushes with what it is
// given, and knows one image.
func daemonSays(t *testing.T, says string) (*legacyProxy, *http.Client) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "daemon"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/images/0123456789ab/") {
			_, _ = io.WriteString(w, `{"Id":"sha256:`+strings.Repeat("a", 64)+`","RepoTags":["base:1"],"RepoDigests":["base@sha256:`+strings.Repeat("b", 64)+`"]}`)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, says)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	return proxyBefore(t, dir)
}

// proxyBefore stands before the daemon of a folder.
func proxyBefore(t *testing.T, dir string) (*legacyProxy, *http.Client) {
	t.Helper()
	p, host, err := newLegacyProxy(dir, newDockerDaemon("unix", filepath.Join(dir, "daemon"), nil), InputsPlan{}, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", strings.TrimPrefix(host, "unix://"))
	}
	return p, &http.Client{Transport: &http.Transport{DialContext: dial}}
}

func post(t *testing.T, c *http.Client, where string, body io.Reader) string {
	t.Helper()
	resp, err := c.Post("http://docker"+where, "application/x-tar", body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestLegacyBuildIsSeenAsItPasses(t *testing.T) {
	id := "sha256:" + strings.Repeat("c", 64)
	says := `{"stream":"Step 1/3 : FROM base AS one"}` + "\r\n" + `{"stream":"\n"}` + "\r\n" + `{"stream":" ---\u003e 0123456789ab\n"}` + "\r\n" +
		`{"stream":"Step 2/3 : RUN wget http://files.example/"}` + "\r\n" + `{"stream":" ---\u003e 111111111111\n"}` + "\r\n" +
		`{"stream":"Step 3/3 : FROM one"}` + "\r\n" + `{"stream":" ---\u003e 222222222222\n"}` + "\r\n" + `{"aux":{"ID":"` + id + `"}}` + "\r\n"
	p, c := daemonSays(t, says)
	var sent bytes.Buffer
	w := tar.NewWriter(&sent)
	for _, f := range []string{"other", "sub/Dockerfile"} {
		if err := w.WriteHeader(&tar.Header{Name: f, Size: int64(len(f)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, f)
	}
	w.Close()
	whole := sent.Bytes()
	if got := post(t, c, `/v1.41/build?t=app:1&dockerfile=./sub/Dockerfile&buildargs={"A":"1"}`, bytes.NewReader(whole)); got != says {
		t.Errorf("the client got %q", got)
	}
	builds, notes := p.list()
	if len(builds) != 1 || len(notes) != 0 {
		t.Fatalf("%d builds, %q", len(builds), notes)
	}
	b := builds[0]
	if b.image != id || string(b.dockerfile) != "sub/Dockerfile" || b.digest() != attest.DigestOf(whole) || b.size != int64(len(whole)) {
		t.Errorf("seen: %s, %q, %s of %d bytes", b.image, b.dockerfile, b.digest(), b.size)
	}
	if s := b.solve(); s.Attrs["build-arg:A"] != "1" || s.Attrs["filename"] != "./sub/Dockerfile" || !slices.Equal(s.Exports[0].names(), []string{"app:1"}) {
		t.Errorf("as a solve: %+v", s)
	}
	seen, watched, err := p.observe(t.Context(), b)
	if err != nil || watched {
		t.Fatal(watched, err)
	}
	if len(seen.Sources) != 2 || seen.Sources[1].Digest != "sha256:"+strings.Repeat("b", 64) {
		t.Errorf("sources %+v", seen.Sources)
	}
	if len(seen.Steps) != 1 || seen.Steps[0].Verdict != attestations.VerdictUnobserved || len(seen.Gaps) == 0 {
		t.Errorf("steps %+v, gaps %+v", seen.Steps, seen.Gaps)
	}
}

func TestLegacyBuildThatIsNotSeen(t *testing.T) {
	id := "sha256:" + strings.Repeat("c", 64)
	for name, x := range map[string]struct {
		where, says string
		builds      int
		note        string
	}{
		"quiet":             {"/build?q=1", `{"stream":"` + id + `\n"}` + "\n", 1, ""},
		"failed":            {"/build", `{"errorDetail":{"code":1},"error":"no"}` + "\n", 0, "gave no image"},
		"BuildKit's own":    {"/v1.50/build?version=2", "", 0, "nothing was seen"},
		"an image in words": {"/build", `{"stream":"` + id + `\n"}` + "\n", 0, "gave no image"},
		"no JSON":           {"/build", strings.Repeat("x", 3<<20), 0, "gave no image"},
		"another call":      {"/images/create", "", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			p, c := daemonSays(t, x.says)
			if got := post(t, c, x.where, strings.NewReader("no archive")); got != x.says {
				t.Error("the client got something else")
			}
			builds, notes := p.list()
			if len(builds) != x.builds || (x.note == "") != (len(notes) == 0) || x.note != "" && !strings.Contains(notes[0], x.note) {
				t.Errorf("%d builds, %q", len(builds), notes)
			}
		})
	}
}

// A script in the sandbox gets no more of the daemon, which is root of the
// machine, than builds and images; docker itself gets all of it.
func TestLegacyProxyBeforeAConfinedCommand(t *testing.T) {
	const form = "application/x-www-form-urlencoded"
	for _, x := range []struct {
		method, where, kind string
		allowed             bool
		unseen              string
	}{
		{"HEAD", "/_ping", "", true, ""},
		{"GET", "/v1.41/info", "", true, ""},
		{"GET", "/v1.41/images/json", "", true, ""},
		{"GET", "/v1.41/images/reg.example:5000/team/app:1/json", "", true, ""},
		{"POST", "/v1.41/build?t=app", "application/x-tar", true, ""},
		{"POST", "/v1.41/images/app/push?tag=1", "text/plain", true, "push"},
		{"POST", "/v1.41/images/app/tag?repo=b", "", true, "tag"},
		{"POST", "/v1.41/images/create?fromImage=alpine", "text/plain", true, "pull"},
		{"POST", "/v1.41/images/load", "application/x-tar", true, "load"},
		{"GET", "/v1.41/images/app/get", "", true, "save"},
		{"POST", "/v1.41/auth", "application/json", true, "login"},
		{"POST", "/v1.41/containers/create", "application/json", false, ""},
		{"POST", "/v1.41/containers/x/exec", "application/json", false, ""},
		{"GET", "/v1.41/containers/x/archive?path=/", "", false, ""},
		{"PUT", "/v1.41/containers/x/archive?path=/", "", false, ""},
		{"POST", "/v1.41/commit?container=x", "", false, ""},
		{"POST", "/v1.41/images/create?fromSrc=http://169.254.169.254/", "", false, ""},
		{"POST", "/v1.41/images/create?fromImage=alpine", form, false, ""},
		{"POST", "/v1.41/images/create", "multipart/form-data; boundary=x", false, ""},
		{"GET", "/v1.41/images/search?term=x", "", false, ""},
		{"DELETE", "/v1.41/images/app", "", false, ""},
		{"POST", "/v1.41/images/prune", "", false, ""},
		{"POST", "/v1.41/images/%2e%2e/containers/x/push", "", false, ""},
		{"POST", "/v1.41/images/../plugins/x/push", "", false, ""},
		{"POST", "/grpc", "", false, ""},
		{"POST", "/session", "", false, ""},
		{"POST", "/v1.41/build?version=2", "application/x-tar", false, ""},
	} {
		t.Run(x.method+" "+x.where+" "+x.kind, func(t *testing.T) {
			for _, confined := range []bool{true, false} {
				p, c := daemonSays(t, "passed")
				p.confined = confined
				req, err := http.NewRequest(x.method, "http://docker"+x.where, strings.NewReader("body"))
				if err != nil {
					t.Fatal(err)
				}
				if x.kind != "" {
					req.Header.Set("Content-Type", x.kind)
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if passed := resp.StatusCode == http.StatusOK; passed != (x.allowed || !confined) {
					t.Errorf("confined %t: %s", confined, resp.Status)
				}
				_, notes := p.list()
				if told := strings.Contains(strings.Join(notes, "\n"), "was refused: "); told != (confined && !x.allowed) {
					t.Errorf("confined %t: %q", confined, notes)
				}
				if got := p.unseen(); got != "" && !strings.HasSuffix(got, ": "+x.unseen) || (got != "") != (confined && x.unseen != "") {
					t.Errorf("confined %t: not seen: %q", confined, got)
				}
			}
		})
	}
}

// TestLegacyPush: a daemon says what it pushed, in the way of its store.
func TestLegacyPush(t *testing.T) {
	d := "sha256:" + strings.Repeat("d", 64)
	for name, said := range map[string]string{
		"its own":       `{"status":"x"}` + "\n" + `{"progressDetail":{},"aux":{"Tag":"1","Digest":"` + d + `","Size":1}}` + "\n",
		"containerd's":  `{"status":"Pushed","id":"44136fa355b3"}` + "\n" + `{"status":"1: digest: ` + d + ` size: 855"}` + "\n",
		"both say both": `{"status":"1: digest: ` + d + ` size: 1"}` + "\n" + `{"aux":{"Tag":"1","Digest":"` + d + `","Size":1}}` + "\n",
	} {
		p, c := daemonSays(t, said)
		post(t, c, "/v1.41/images/registry.example/team/app/push", nil)
		post(t, c, "/v1.41/images/registry.example/team/app/push?tag=1", nil)
		if !slices.Equal(p.pushed, []legacyPush{{"registry.example/team/app:1", attest.Digest(d)}}) {
			t.Errorf("%s: pushed: %v", name, p.pushed)
		}
	}
}

// TestLegacyDockerfile: the daemon unpacks all of an archive and follows links,
// so that what stands first in it need not be what is built.
func TestLegacyDockerfile(t *testing.T) {
	file := func(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeReg} }
	link := func(name, to string) tar.Header {
		return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
	}
	for name, x := range map[string]struct {
		query string
		files []tar.Header
		want  string // "" for none
	}{
		"plain":                   {"", []tar.Header{file("a"), link("l", "a"), file("Dockerfile"), file("b")}, "2 Dockerfile"},
		"by another name":         {"dockerfile=./sub/D", []tar.Header{file("Dockerfile"), file("sub/D")}, "1 sub/D"},
		"none":                    {"", []tar.Header{file("a")}, ""},
		"two":                     {"", []tar.Header{file("Dockerfile"), file("./Dockerfile")}, ""},
		"a link":                  {"", []tar.Header{file("other"), link("Dockerfile", "other")}, ""},
		"a hard link":             {"", []tar.Header{file("other"), {Name: "Dockerfile", Typeflag: tar.TypeLink, Linkname: "other"}}, ""},
		"first a file, then link": {"", []tar.Header{file("Dockerfile"), file("other"), link("Dockerfile", "other")}, ""},
		"written through a link":  {"", []tar.Header{file("Dockerfile"), link("l", "."), file("l/Dockerfile")}, ""},
		"in a folder by a link":   {"dockerfile=sub/D", []tar.Header{link("sub", "other"), file("sub/D")}, ""},
		"not what is built":       {"remote=https://files.example/c.tar", []tar.Header{file("Dockerfile")}, ""},
		"begins as compressed":    {"", []tar.Header{file("BZh"), file("Dockerfile")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var sent bytes.Buffer
			w := tar.NewWriter(&sent)
			for i, h := range x.files {
				text := ""
				if h.Typeflag == tar.TypeReg {
					text = fmt.Sprintf("%d %s", i, h.Name)
				}
				h.Size, h.Mode = int64(len(text)), 0o644
				if err := w.WriteHeader(&h); err != nil {
					t.Fatal(err)
				}
				_, _ = io.WriteString(w, text)
			}
			w.Close()
			query, err := url.ParseQuery(x.query)
			if err != nil {
				t.Fatal(err)
			}
			got := (&legacyBuild{query: query}).dockerfileIn(&sent)
			if string(got) != x.want || (got == nil) != (x.want == "") {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestLegacyBuildThatIsRefused: a build that the daemon does not begin is over.
func TestLegacyBuildThatIsRefused(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "daemon"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"message":"no build stage in current context"}`, http.StatusBadRequest)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	p, c := proxyBefore(t, dir)
	if got := post(t, c, "/build", strings.NewReader("")); !strings.Contains(got, "no build stage") {
		t.Errorf("the client got %q", got)
	}
	srv.Close()
	if got := post(t, c, "/build", strings.NewReader("")); !strings.Contains(got, "asking the Docker daemon") {
		t.Errorf("without a daemon the client got %q", got)
	}
	builds, notes := p.list()
	if len(builds) != 0 || len(notes) != 2 || strings.Contains(notes[0]+notes[1], "had not ended") {
		t.Errorf("%d builds, %q", len(builds), notes)
	}
}

// TestLegacyBuildOfAForm: the daemon takes a build's parameters from a form
// before those of the query, of which alone anything is noted.
func TestLegacyBuildOfAForm(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "daemon"))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 1)
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got <- r.FormValue("version") + r.FormValue("remote")
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	_, c := proxyBefore(t, dir)
	resp, err := c.PostForm("http://docker/build?networkmode=host", url.Values{"version": {"2"}, "remote": {"https://files.example/c.git"}})
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if v := <-got; v != "" {
		t.Errorf("the daemon was given %q", v)
	}
}

func TestBuildArgumentsThatNameAProxy(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, x := range []struct {
		args map[string]*string
		want bool
	}{
		{nil, false},
		{map[string]*string{"A": text("1"), "NO_PROXY": text("localhost"), "no_proxy": text("*")}, false},
		{map[string]*string{"HTTP_PROXY": text(""), "http_proxy": nil}, false},
		{map[string]*string{"https_proxy": text("http://proxy.example")}, true},
		{map[string]*string{"ALL_PROXY": text("socks5://proxy.example")}, true},
	} {
		if got := namesProxy(x.args); got != x.want {
			t.Errorf("%v: %t", x.args, got)
		}
	}
}
