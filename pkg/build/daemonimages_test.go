package build

import (
	"archive/tar"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/http2"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Which of the daemon's images a build begins with, and when a registry is asked.
func TestDaemonImagesThatAreMeant(t *testing.T) {
	const id, root = "sha256:1111111111111111111111111111111111111111111111111111111111111111", "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	asked := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Path
		name := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/images/"), "/json")
		more, ok := map[string]string{
			"built:1":                "",
			"pulled:1":               `,"RepoDigests":["pulled@` + root + `"]`,
			"renamed:1":              `,"RepoDigests":["elsewhere.test/other@` + root + `"]`,
			"stored:1":               `,"RepoDigests":["stored@` + root + `"],"Descriptor":{"digest":"` + root + `"}`,
			"reg.test:5000/a/b:late": "",
		}[name]
		if !ok {
			http.Error(w, `{"message":"No such image"}`, http.StatusNotFound)
			return
		}
		fmt.Fprintf(w, `{"Id":%q,"Os":"linux","Architecture":"arm64","Variant":"v8"%s}`, id, more)
	}))
	defer srv.Close()
	d := &daemonImages{daemon: newDockerDaemon("tcp", srv.Listener.Addr().String(), nil), saved: map[string]*savedImage{
		attest.Digest(id).Hex(): {root: ocispec.Descriptor{Digest: digest.Digest(root)}},
	}}
	for _, x := range []struct {
		ref, platform string
		found         bool
	}{
		{"docker.io/library/built:1", "linux/arm64", true},
		{"docker.io/library/built:1", "linux/arm64/v8", true},
		{"docker.io/library/built:1", "linux/amd64", false},
		{"docker.io/library/built:1", "windows/arm64", false},
		{"docker.io/library/built:1", "", false},
		{"docker.io/library/built:1@" + root, "linux/arm64", true},
		{"docker.io/library/built:1@" + id, "linux/arm64", false},
		{"docker.io/library/built@" + root, "linux/arm64", false},
		{"docker.io/library/built:2", "linux/arm64", false},
		{"docker.io/library/pulled:1", "linux/arm64", false},
		{"docker.io/library/renamed:1", "linux/arm64", true},
		{"docker.io/library/stored:1", "linux/arm64", true},
		{"reg.test:5000/a/b:late", "linux/arm64", true},
	} {
		got, err := d.find(t.Context(), x.ref, x.platform, "")
		if err != nil || (got == attest.Digest(id).Hex()) != x.found || !x.found && got != "" {
			t.Errorf("%s for %q: %q, %v", x.ref, x.platform, got, err)
		}
	}
	if want := "/images/reg.test:5000/a/b:late/json"; asked != want {
		t.Errorf("the daemon was asked for %s, not %s", asked, want)
	}
	if got := strings.Join(d.taken, " "); got != "built:1 renamed:1 stored:1 reg.test:5000/a/b:late" {
		t.Errorf("taken: %s", got)
	}
	if got, err := d.find(t.Context(), "docker.io/library/built:1", "linux/arm64", id); got != "" || err != nil {
		t.Errorf("of an image that a registry has: %q, %v", got, err)
	}
	d.daemon = newDockerDaemon("unix", t.TempDir()+"/nobody", nil)
	if got, err := d.find(t.Context(), "docker.io/library/built:1", "linux/arm64", ""); got != "" || err != nil {
		t.Errorf("without a daemon: %q, %v", got, err)
	}
}

// What the daemon gives is served as a registry serves it, and goes at the end.
func TestDaemonImagesAreServed(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/json"):
			fmt.Fprintf(w, `{"Id":"sha256:%s","Os":"linux","Architecture":"amd64"}`, strings.Repeat(map[bool]string{true: "a", false: "b"}[strings.Contains(r.URL.Path, "broken")], 64))
		case strings.Contains(r.URL.Path, "bbbb"):
			if err := writeSaved(w); err != nil {
				t.Error(err)
			}
		default:
			fmt.Fprint(w, "this is no archive")
		}
	}))
	defer srv.Close()
	d := &daemonImages{daemon: newDockerDaemon("tcp", srv.Listener.Addr().String(), nil), home: t.TempDir()}
	theirs, err := d.serve()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if _, err := d.find(t.Context(), "docker.io/library/broken:1", "linux/amd64", ""); err == nil || !strings.Contains(err.Error(), "image broken:1") {
		t.Errorf("no archive: %v", err)
	}
	repository, err := d.find(t.Context(), "docker.io/library/good:1", "linux/amd64", "")
	if err != nil || repository == "" {
		t.Fatalf("%q, %v", repository, err)
	}
	root := d.saved[repository].root.Digest.String()
	for path, want := range map[string]int{
		"manifests/1": 200, "manifests/" + root: 200, "blobs/" + root: 200, "tags/" + root: 404,
		"manifests/sha256:" + strings.Repeat("c", 64): 404, "blobs/" + url.PathEscape("sha256:../../etc/passwd"): 404, "blobs/1": 404,
	} {
		w, r := httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/v2/"+repository+"/"+path, nil)
		kind, what, _ := strings.Cut(path, "/")
		r.SetPathValue("repository", repository)
		r.SetPathValue("kind", kind)
		r.SetPathValue("what", what)
		if d.content(w, r); w.Code != want {
			t.Errorf("%s: status %d, want %d", path, w.Code, want)
		}
		if want == 200 && digest.FromBytes(w.Body.Bytes()).String() != root {
			t.Errorf("%s: other bytes", path)
		}
	}
	d.close()
	if left, err := os.ReadDir(d.home); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A server of HTTP/2 gives its client ten seconds to greet it. The engine greets
// waxseal when it has started, however long that takes: until then there is no
// server, and nothing comes from it.
func TestDaemonImagesWaitForTheEngine(t *testing.T) {
	ours, theirs := net.Pipe()
	first := &firstRead{Conn: ours, asked: make(chan int), goOn: make(chan struct{})}
	var served sync.WaitGroup
	served.Go(func() {
		serveGreeted(t.Context(), first, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "here") }))
	})
	if n := <-first.asked; n != 1 {
		t.Errorf("the greeting is read by %d bytes at once, and so by a server", n)
	}
	close(first.goOn)
	client, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(theirs)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: client}).Get("http://docker-daemon.invalid/store")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "here" {
		t.Errorf("%q, %v", body, err)
	}
	theirs.Close()
	served.Wait()
}

// firstRead says how much the first read of a connection asks for, and holds it.
type firstRead struct {
	net.Conn
	asked chan int
	goOn  chan struct{}
	once  sync.Once
}

func (f *firstRead) Read(p []byte) (int, error) {
	f.once.Do(func() {
		f.asked <- len(p)
		<-f.goOn
	})
	return f.Conn.Read(p)
}

// writeSaved writes what Docker 29 saves of an image without a layer that has two
// names, and an attestation that refers to it.
func writeSaved(w io.Writer) error {
	blob := func(form, content string) (name, descriptor string) {
		d := digest.FromString(content)
		return "blobs/sha256/" + d.Encoded(), fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, form, d, len(content))
	}
	config := `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]}}`
	configName, configAt := blob(ocispec.MediaTypeImageConfig, config)
	manifest := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":` + configAt + `,"layers":[]}`
	manifestName, manifestAt := blob(ocispec.MediaTypeImageManifest, manifest)
	referrerName, referrerAt := blob(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"subject":`+manifestAt+`}`)
	referrerAt = strings.TrimSuffix(referrerAt, "}") + `,"annotations":{"io.containerd.manifest.subject":"it"}}`
	out := tar.NewWriter(w)
	for _, f := range [][2]string{
		{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, {"index.json", `{"schemaVersion":2,"manifests":[` + manifestAt + "," + manifestAt + "," + referrerAt + `]}`},
		{configName, config}, {manifestName, manifest}, {referrerName, `{"schemaVersion":2,"subject":` + manifestAt + `}`},
	} {
		if err := out.WriteHeader(&tar.Header{Name: f[0], Mode: 0o644, Size: int64(len(f[1]))}); err != nil {
			return err
		}
		if _, err := io.WriteString(out, f[1]); err != nil {
			return err
		}
	}
	return out.Close()
}

// What docker's own builder leaves in the daemon is given to it; what it says of
// that is the build's end, and where there is none that is noted.
func TestDaemonIsGivenAnImage(t *testing.T) {
	var got, answer string
	status, info := http.StatusOK, `{"DriverStatus":[["Backing Filesystem","extfs"]]}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/info" {
			fmt.Fprint(w, info)
			return
		}
		raw, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		got = string(raw)
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}))
	defer srv.Close()
	d := &daemonImages{daemon: newDockerDaemon("tcp", srv.Listener.Addr().String(), nil)}
	give := func() string {
		w := httptest.NewRecorder()
		d.load(w, httptest.NewRequest(http.MethodPost, "/load?name=docker.io/library/app:1", strings.NewReader("archive")))
		return strings.TrimSpace(w.Body.String())
	}
	for _, x := range []struct {
		status       int
		answer, said string
	}{
		{200, "", `{}`},
		{200, `{"stream":"Loaded image: app:1\n"}`, `{}`},
		{200, `{"stream":"1"}` + "\n" + `{"errorDetail":{"message":"no space"},"error":"no space"}` + "\n" + `{"stream":"2"}`, `{"error":"no space"}`},
		{500, `{"message":"it is broken"}`, `{"error":"it is broken"}`},
		{500, ``, `{"error":"500 Internal Server Error"}`},
		{200, `<html>`, `{"error":"reading the daemon's answer: invalid character '\u003c' looking for beginning of value"}`},
	} {
		got, status, answer = "", x.status, x.answer
		if said := give(); said != x.said || got != "archive" {
			t.Errorf("%d %q: said %s, the daemon got %q", x.status, x.answer, said, got)
		}
	}
	status, answer, info = 200, "", `{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}`
	if said := give(); said != `{"index":true}` {
		t.Errorf("with the store of containerd: %s", said)
	}
	w := httptest.NewRecorder()
	if d.store(w, httptest.NewRequest(http.MethodGet, "/store", nil)); strings.TrimSpace(w.Body.String()) != `{"index":true}` {
		t.Errorf("the store: %s", w.Body)
	}
	if notes := d.notes(); len(notes) != 0 {
		t.Errorf("notes: %q", notes)
	}
	srv.Close()
	if said := give() + give(); said != `{"absent":true}{"absent":true}` {
		t.Errorf("without a daemon: %s", said)
	}
	if notes := d.notes(); len(notes) != 1 || !strings.HasPrefix(notes[0], `the image "app:1" is not in Docker`) {
		t.Errorf("notes: %q", notes)
	}
}
