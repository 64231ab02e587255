package testkit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

func TestUpstream(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello.txt"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var faults testkit.Faults
	u, err := testkit.NewUpstream(testkit.UpstreamOptions{
		Names: []string{"a.test", "h2.a.test"}, Dir: dir, CAFile: filepath.Join(dir, "ca.pem"), Faults: &faults,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority)
	client := func(addr, via string, h1 bool) *http.Client {
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(h1)
		tr.Protocols.SetHTTP2(!h1)
		if via != "" {
			tr.Proxy = http.ProxyURL(&url.URL{Scheme: "http", Host: via})
		} else {
			tr.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		}
		return &http.Client{Transport: tr}
	}
	of := func(prefix string) string {
		i := slices.IndexFunc(u.Flags, func(f string) bool { return strings.HasPrefix(f, prefix+"=") })
		if i < 0 {
			t.Fatalf("no %s in %q", prefix, u.Flags)
		}
		return strings.TrimPrefix(u.Flags[i], prefix+"=")
	}
	get := func(c *http.Client, url string, header ...string) (status int, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Errorf("%s: %v", url, err)
			return 0, nil
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("%s: %v", url, err)
		}
		return resp.StatusCode, body
	}
	plain, secure := client(of("a.test:80"), "", true), client(of("a.test:443"), "", true)
	_, whole := get(plain, "http://a.test/bytes/200K")
	_, again := get(secure, "https://a.test/bytes/200K")
	if len(whole) != 200<<10 || sha256.Sum256(whole) != sha256.Sum256(again) {
		t.Errorf("%d and %d bytes, want the same 200 KiB twice", len(whole), len(again))
	}
	if _, linked := get(plain, "http://a.test/link/200K"); !bytes.Equal(linked, whole) {
		t.Errorf("at 1 Gbit/s: %d other bytes", len(linked))
	}
	line, stop, err := testkit.NewLine(100 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if _, lined := get(client("", line, true), "http://"+u.HTTP+"/bytes/200K"); !bytes.Equal(lined, whole) {
		t.Errorf("over a line: %d other bytes", len(lined))
	}
	if status, part := get(plain, "http://a.test/bytes/200K", "Range", "bytes=70000-70009"); status != 206 || !bytes.Equal(part, whole[70000:70010]) {
		t.Errorf("a range: status %d, %x, want %x", status, part, whole[70000:70010])
	}
	for path, want := range map[string]string{
		"/hello.txt": "hello\n", "/small/3": "small file 3\n", "/redirect/2": "small file 0\n", "/tick": "tick 1\n",
	} {
		if status, body := get(secure, "https://a.test"+path); status != 200 || string(body) != want {
			t.Errorf("%s: status %d, %q, want %q", path, status, body, want)
		}
	}
	if _, body := get(client(of("h2.a.test:443"), "", false), "https://h2.a.test/small/1"); string(body) != "small file 1\n" {
		t.Errorf("by HTTP/2: %q", body)
	}
	if _, body := get(client("", u.Proxy, true), "https://a.test/small/2"); string(body) != "small file 2\n" {
		t.Errorf("through the proxy: %q", body)
	}
	if resp, err := client(of("h2.a.test:443"), "", true).Get("https://h2.a.test/small/1"); err == nil {
		resp.Body.Close()
		t.Error("the host that speaks HTTP/2 alone answered HTTP/1.1")
	}
	u.Change("/hello.txt", []byte("changed\n"))
	if _, body := get(plain, "http://a.test/hello.txt"); string(body) != "changed\n" {
		t.Errorf("after a change: %q", body)
	}
	if !slices.Contains(faults.Seen(), "GET https://a.test/redirect/2") {
		t.Errorf("a request is not in the log:\n%s", strings.Join(faults.Seen(), "\n"))
	}
}
