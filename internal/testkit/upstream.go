package testkit

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// UpstreamOptions configures NewUpstream.
type UpstreamOptions struct {
	// Names are the hosts it answers for. One that begins with "h2." speaks
	// HTTP/2 alone, with and without TLS.
	Names []string
	// Dir is served at /, git repositories (NAME.git) through git's own HTTP
	// program. Empty serves none.
	Dir string
	// CAFile is where the certificate of its authority is written.
	CAFile string
	// Faults, where set, sees every request first, as "METHOD scheme://host/uri".
	Faults *Faults
}

// Upstream is a piece of the internet on loopback. Beside the files of its
// folder and what Change put there, every one of its hosts serves:
//
//	/bytes/N       N bytes (with K, M or G), always the same; ranges, ETag
//	/link/N        the same at 1 Gbit/s, as from a mirror that is near
//	/random        other bytes every time
//	/small/N       a small file that says its number, and a cookie
//	/redirect/N    N redirects, then /small/0
//	/chunked       a body in chunks of no announced length
//	/gzip          a body with Content-Encoding: gzip
//	/drip/N        N bytes, one at a time
//	/echo          the request's method and body
//	/tick          a body that counts how often it was asked for
//	/status/N      that status
//	/simple/       a package index for pip that has waxtest 1.0
type Upstream struct {
	// Flags are what `waxseal build` needs to find it.
	Flags []string
	// HTTP, HTTPS, Proxy and ProxyTLS are addresses: of the server without and
	// with TLS, and of a company's proxy that knows its names, both ways too.
	HTTP, HTTPS, Proxy, ProxyTLS string

	dir     string
	faults  *Faults
	backend http.Handler
	ticks   atomic.Int64
	servers []*http.Server
	stop    context.CancelFunc
	serving sync.WaitGroup

	mu      sync.Mutex
	changed map[string][]byte
}

// NewUpstream starts one; Close ends it.
func NewUpstream(opts UpstreamOptions) (*Upstream, error) {
	ctx, stop := context.WithCancel(context.Background())
	u := &Upstream{dir: opts.Dir, faults: opts.Faults, changed: map[string][]byte{}, stop: stop}
	if u.faults == nil {
		u.faults = new(Faults)
	}
	libexec, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("asking git for its programs: %w", err)
	}
	u.backend = gitBackend(strings.TrimSpace(string(libexec)), opts.Dir)
	cert, authority, err := certify(opts.Names)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(opts.CAFile, authority, 0o644); err != nil {
		return nil, err
	}
	addrs, serve := map[string]string{}, []func(){}
	for _, s := range []struct {
		name    string
		tls, h2 bool
		handler http.Handler
	}{
		{"http", false, false, u}, {"https", true, false, u},
		{"h2c", false, true, u}, {"h2", true, true, u},
		{"proxy", false, false, http.HandlerFunc(u.proxy)}, {"proxytls", true, false, http.HandlerFunc(u.proxy)},
	} {
		server := &http.Server{
			Handler: s.handler, ReadHeaderTimeout: 10 * time.Second, Protocols: new(http.Protocols),
			BaseContext: func(net.Listener) context.Context { return ctx },
			ErrorLog:    log.New(io.Discard, "", 0),
		}
		server.Protocols.SetHTTP1(!s.h2)
		server.Protocols.SetHTTP2(s.tls)
		server.Protocols.SetUnencryptedHTTP2(s.h2 && !s.tls)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			u.Close()
			return nil, err
		}
		addrs[s.name] = ln.Addr().String()
		u.servers = append(u.servers, server)
		serve = append(serve, func() {
			if s.tls {
				server.TLSConfig = &tls.Config{Certificates: []tls.Certificate{cert}}
				if s.h2 {
					server.TLSConfig.GetConfigForClient = onlyHTTP2
				}
				server.ServeTLS(ln, "", "")
				return
			}
			server.Serve(ln)
		})
	}
	// Before anything is served: the proxies lead to the others.
	u.HTTP, u.HTTPS, u.Proxy, u.ProxyTLS = addrs["http"], addrs["https"], addrs["proxy"], addrs["proxytls"]
	for _, s := range serve {
		u.serving.Go(s)
	}
	u.Flags = []string{"--upstream-ca", opts.CAFile}
	for _, name := range opts.Names {
		plain, secure := addrs["http"], addrs["https"]
		if strings.HasPrefix(name, "h2.") {
			plain, secure = addrs["h2c"], addrs["h2"]
		}
		u.Flags = append(u.Flags, "--upstream", name+":80="+plain, "--upstream", name+":443="+secure)
	}
	return u, nil
}

// onlyHTTP2 ends the handshake of a client that has no HTTP/2 as servers do;
// crypto/tls alone would go on without a protocol where it has HTTP/1.1.
func onlyHTTP2(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if slices.Contains(hello.SupportedProtos, "h2") {
		return nil, nil
	}
	return &tls.Config{NextProtos: []string{"none"}, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, errors.New("HTTP/2 alone")
	}}, nil
}

// Close ends it: from then on its addresses refuse.
func (u *Upstream) Close() {
	u.stop()
	for _, s := range u.servers {
		s.Close()
	}
	u.serving.Wait()
}

// Change gives a path another body, on every host.
func (u *Upstream) Change(path string, body []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.changed[path] = body
}

func (u *Upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	host := r.Host
	if name, port, err := net.SplitHostPort(host); err == nil && (port == "80" || port == "443") {
		host = name
	}
	kind := u.faults.next(r.Method + " " + scheme + "://" + host + r.URL.RequestURI())
	if kind != "" {
		answers()[kindName(kind)](w, r, http.HandlerFunc(u.answer), kind)
		return
	}
	u.answer(w, r)
}

func (u *Upstream) answer(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	body, changed := u.changed[r.URL.Path]
	u.mu.Unlock()
	if changed {
		content(w, r, bytes.NewReader(body), "changed")
		return
	}
	if strings.Contains(r.URL.Path, ".git/") {
		u.backend.ServeHTTP(w, r)
		return
	}
	root, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	n := sizeOf(rest)
	switch root {
	case "bytes":
		content(w, r, &pattern{size: n}, rest)
	case "link":
		content(w, r, &link{pattern: pattern{size: n}}, rest)
	case "random":
		w.Write([]byte(rand.Text()))
	case "small":
		w.Header().Set("Set-Cookie", "session=made-by-testkit")
		content(w, r, strings.NewReader("small file "+rest+"\n"), rest)
	case "redirect":
		to := "/small/0"
		if n > 0 {
			to = fmt.Sprintf("/redirect/%d", n-1)
		}
		http.Redirect(w, r, to, http.StatusFound)
	case "chunked", "drip":
		drip(w, root, n)
	case "gzip":
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Type", "text/plain")
		packed := gzip.NewWriter(w)
		io.WriteString(packed, strings.Repeat("packed on the wire\n", 100))
		packed.Close()
	case "echo":
		fmt.Fprintf(w, "%s ", r.Method)
		io.Copy(w, io.LimitReader(r.Body, 1<<20))
	case "tick":
		fmt.Fprintf(w, "tick %d\n", u.ticks.Add(1))
	case "status":
		http.Error(w, rest, int(max(n, 200)))
	case "simple", "wheels":
		index(w, r, rest)
	default:
		if u.dir == "" {
			http.NotFound(w, r)
			return
		}
		http.FileServer(http.Dir(u.dir)).ServeHTTP(w, r)
	}
}

// content answers with ranges and conditions, as a good server does.
func content(w http.ResponseWriter, r *http.Request, body io.ReadSeeker, tag string) {
	w.Header().Set("ETag", strconv.Quote(tag))
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(w, r, "", time.Unix(baseEpoch, 0), body)
}

// drip sends what must arrive in pieces: chunks of lines, or single bytes.
func drip(w http.ResponseWriter, root string, n int64) {
	piece, times := "x", n
	if root == "chunked" {
		piece, times = "a line in a chunk\n", 100
	}
	for range times {
		if _, err := io.WriteString(w, piece); err != nil {
			return
		}
		w.(http.Flusher).Flush()
	}
}

// index is a package index as pip reads it, with one wheel.
func index(w http.ResponseWriter, r *http.Request, rest string) {
	const file = "waxtest-1.0-py3-none-any.whl"
	wheel := makeWheel()
	switch rest {
	case file:
		content(w, r, bytes.NewReader(wheel), file)
	case "waxtest/":
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!DOCTYPE html><html><body><a href=\"/wheels/%s#sha256=%x\">%s</a></body></html>\n", file, sha256.Sum256(wheel), file)
	default:
		http.NotFound(w, r)
	}
}

// makeWheel is a Python package of one module, the same bytes every time.
func makeWheel() []byte {
	var out bytes.Buffer
	z := zip.NewWriter(&out)
	var record strings.Builder
	for _, f := range [][2]string{
		{"waxtest.py", "SAYS = 'sealed'\n"},
		{"waxtest-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: waxtest\nVersion: 1.0\n"},
		{"waxtest-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: testkit\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
		{"waxtest-1.0.dist-info/RECORD", ""},
	} {
		body := f[1]
		if body == "" {
			body = record.String() + f[0] + ",,\n"
		}
		fmt.Fprintf(&record, "%s,,\n", f[0])
		// Writing to memory does not fail.
		entry, err := z.CreateHeader(&zip.FileHeader{Name: f[0], Method: zip.Deflate, Modified: time.Unix(baseEpoch, 0).UTC()})
		if err != nil {
			panic(err)
		}
		io.WriteString(entry, body)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

// sizeOf reads "7", "64K", "400M", "1G"; what is no size is 0.
func sizeOf(text string) int64 {
	shift := 0
	if i := strings.IndexAny(text, "KMG"); i >= 0 {
		shift = map[byte]int{'K': 10, 'M': 20, 'G': 30}[text[i]]
		text = text[:i]
	}
	n, err := strconv.ParseInt(text, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return n << shift
}

// pattern is a body of any size that stands nowhere: blocks of the same noise,
// each with its number at the front.
type pattern struct {
	size, at int64
	block    []byte
}

const patternBlock = 64 << 10

func (p *pattern) Read(b []byte) (int, error) {
	if p.at >= p.size {
		return 0, io.EOF
	}
	within := p.at % patternBlock
	if p.block == nil {
		p.block = make([]byte, patternBlock)
		x := uint64(baseEpoch)
		for i := 0; i < len(p.block); i += 8 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
			binary.LittleEndian.PutUint64(p.block[i:], x)
		}
	}
	binary.BigEndian.PutUint64(p.block, uint64(p.at/patternBlock))
	n := copy(b[:min(int64(len(b)), p.size-p.at)], p.block[within:])
	p.at += int64(n)
	return n, nil
}

func (p *pattern) Seek(offset int64, whence int) (int64, error) {
	from := map[int]int64{io.SeekStart: 0, io.SeekCurrent: p.at, io.SeekEnd: p.size}[whence]
	if from+offset < 0 {
		return 0, errors.New("seeking before the start")
	}
	p.at = from + offset
	return p.at, nil
}

// link is a pattern that comes at 1 Gbit/s, counted from the first read.
type link struct {
	pattern
	began time.Time
	read  int64
}

func (l *link) Read(b []byte) (int, error) {
	if l.began.IsZero() {
		l.began = time.Now()
	}
	n, err := l.pattern.Read(b)
	l.read += int64(n)
	time.Sleep(time.Until(l.began.Add(time.Duration(l.read) * 8)))
	return n, err
}

// proxy is a company's proxy: it tunnels and forwards to the names it knows.
func (u *Upstream) proxy(w http.ResponseWriter, r *http.Request) {
	u.faults.next("PROXY " + r.Method + " " + r.RequestURI)
	if r.Method != http.MethodConnect {
		// The plain server behind it answers by Host, as it does without a proxy.
		r.URL.Scheme, r.URL.Host = "", ""
		u.ServeHTTP(w, r)
		return
	}
	there, err := net.Dial("tcp", u.HTTPS)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, buffered, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(there, buffered)
		there.(*net.TCPConn).CloseWrite()
	}()
	io.Copy(here, there)
	here.Close()
	<-done
}

func gitBackend(libexec, dir string) http.Handler {
	return &cgi.Handler{
		Path: filepath.Join(libexec, "git-http-backend"),
		Env: []string{
			"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		},
		Stderr: io.Discard,
	}
}

// certify makes an authority and a certificate of it for the names.
func certify(names []string) (cert tls.Certificate, authority []byte, err error) {
	now := time.Now()
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, error) {
		template.SerialNumber = new(big.Int).SetBytes([]byte(rand.Text()[:8]))
		template.NotBefore, template.NotAfter = now.Add(-time.Hour), now.Add(24*time.Hour)
		return x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	ca := &x509.Certificate{
		Subject: pkix.Name{CommonName: "testkit upstream " + hex.EncodeToString([]byte(rand.Text()[:4]))},
		IsCA:    true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := sign(ca, ca, caKey, caKey)
	if err != nil {
		return cert, nil, err
	}
	if ca, err = x509.ParseCertificate(caDER); err != nil {
		return cert, nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return cert, nil, err
	}
	leaf := &x509.Certificate{
		Subject: pkix.Name{CommonName: "testkit"}, DNSNames: slices.Clone(names),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := sign(leaf, ca, key, caKey)
	if err != nil {
		return cert, nil, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}
