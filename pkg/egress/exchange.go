package egress

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// maxDrain is how much of a body is still read for the record when the client
// has gone: what it got is then part of a whole that a lock can name.
const (
	maxDrain  = 64 << 20
	drainTime = 10 * time.Second

	maxMethod = 20  // bytes of a method
	maxRange  = 256 // bytes of a Range header

	smallBody = 64 << 10
	ringSize  = 512 << 10
)

// denial is an answer that the gateway gives instead of upstream's.
type denial struct {
	status int
	refusal
}

// exchange is one request of a step and its answer.
type exchange struct {
	s       *Step
	w       http.ResponseWriter
	r       *http.Request
	url     *url.URL
	uri     string // as it is written down
	ordinal int
	body    *requestBody
	sent    atomic.Bool // a connection to upstream was had: something may have left
	conn    net.Conn    // which, once it has answered by HTTP/1
}

// ServeHTTP answers a request of the step.
func (s *Step) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f, ok := r.Context().Value(frontKey{}).(*front)
	if !ok {
		http.Error(w, "waxseal: no connection of a step", http.StatusInternalServerError)
		return
	}
	// Its connection may be closed under it: net/http does so when a write fails.
	s.serving.Add(1)
	defer s.serving.Done()
	if f.conn != nil {
		f.conn.handled.Store(true)
	}
	if r.Method == http.MethodConnect && f.explicit && r.ProtoMajor == 1 {
		s.connect(w, r)
		return
	}
	u, d := s.target(r, f)
	if d != nil {
		s.deny(w, d)
		return
	}
	x := &exchange{s: s, w: w, r: r, url: u, uri: s.redact(u.String())}
	x.serve()
}

// connect opens a tunnel, in which HTTP must follow.
func (s *Step) connect(w http.ResponseWriter, r *http.Request) {
	host, port, err := splitHost(r.Host)
	if err == nil {
		host, err = cleanHost(host)
	}
	if err != nil || port == 0 {
		s.deny(w, &denial{400, refusal{kind: "http", dest: r.Host, reason: "CONNECT to what is no host and port"}})
		return
	}
	if a, err := netip.ParseAddr(host); err == nil {
		host = s.nameOf(a) // of a client that resolves itself
	}
	if d := s.permit(host, port); d != nil {
		s.deny(w, d)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.deny(w, &denial{500, refusal{kind: "http", dest: joinHost(host, port), reason: err.Error()}})
		return
	}
	err = c.SetDeadline(time.Time{})
	if err == nil {
		_, err = io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	}
	if err != nil {
		c.Close()
		return
	}
	in := s.stream(c, &front{scheme: "http", host: host, port: port})
	if n := rw.Reader.Buffered(); n > 0 {
		head, _ := rw.Peek(n)
		in.r.Reset(io.MultiReader(strings.NewReader(string(head)), c))
	}
	// The handler of net/http is done with the connection, and has to return.
	go s.serveTunnel(in)
}

// permit says whether a host may be asked at all.
func (s *Step) permit(host string, port int) *denial {
	dest := joinHost(host, port)
	if !s.listens() {
		return &denial{403, refusal{kind: "policy", dest: dest, reason: "the step has no network"}}
	}
	if !s.g.allowed(host, port) {
		return &denial{403, refusal{kind: "policy", dest: dest, reason: notAllowed}}
	}
	if _, ok := s.hosts[host]; ok {
		return nil
	}
	if err := s.g.up.check(host, port); err != nil {
		d := &denial{403, refusal{kind: "policy", dest: dest, reason: err.Error()}}
		if f := forbidden(err); f != nil {
			d.technique = f.technique
		}
		return d
	}
	return nil
}

// target finds out what a request asks for, and refuses what is no plain HTTP.
func (s *Step) target(r *http.Request, f *front) (*url.URL, *denial) {
	no := func(status int, reason, technique string) *denial {
		dest := f.dest()
		if h, p, err := splitHost(r.Host); err == nil && f.host == "" {
			dest = r.Host
			if p == 0 && !f.explicit {
				dest = joinHost(h, f.port)
			}
		}
		return &denial{status, refusal{kind: "http", dest: dest, reason: reason, technique: technique}}
	}
	if len(r.RequestURI)+len(r.Host) > attest.MaxURI-64 {
		return nil, no(http.StatusRequestURITooLong, "a URL of more than the record holds", "")
	}
	if len(r.Method) > maxMethod || len(r.Header.Get("Range")) > maxRange {
		return nil, no(http.StatusBadRequest, "a method or range of more than the record holds", "")
	}
	if s.needles.in([]byte(r.Method)) || s.needles.in([]byte(r.Header.Get("Range"))) {
		return nil, no(http.StatusBadRequest, "a secret of the step where none belongs", "")
	}
	if r.Method == http.MethodConnect {
		return nil, no(http.StatusMethodNotAllowed, "CONNECT where no proxy is", "T1572")
	}
	for v := range strings.SplitSeq(strings.Join(r.Header.Values("Upgrade"), ","), ",") {
		// Offers to change to another HTTP or to TLS may be ignored.
		if p, _, _ := strings.Cut(strings.TrimSpace(strings.ToLower(v)), "/"); p != "" && p != "h2c" && p != "tls" && p != "http" {
			return nil, no(http.StatusNotImplemented, fmt.Sprintf("an upgrade to %s, which is not HTTP", p), "T1572")
		}
	}
	u := &url.URL{Scheme: f.scheme, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, ForceQuery: r.URL.ForceQuery}
	authority, port := r.Host, f.port
	if r.URL.IsAbs() {
		if f.scheme == "https" {
			return nil, no(http.StatusBadRequest, "a request to a proxy inside TLS", "")
		}
		// A client that takes port 80 of some host for its proxy means what it
		// says too.
		u.Scheme = strings.ToLower(r.URL.Scheme)
		if u.Scheme != "http" && u.Scheme != "https" || r.URL.Opaque != "" {
			return nil, no(http.StatusNotImplemented, fmt.Sprintf("a URL of scheme %q through the proxy", u.Scheme), "")
		}
		port = 0
		authority = r.URL.Host
	} else if f.explicit {
		return nil, no(http.StatusBadRequest, "a request to the proxy itself", "")
	}
	if authority == "" {
		authority = f.host
		if authority == "" {
			authority = f.fallback
		}
	}
	host, p, err := splitHost(authority)
	if err == nil {
		host, err = cleanHost(host)
	}
	if err != nil {
		return nil, no(http.StatusBadRequest, "a Host that is neither a name nor an address", "")
	}
	switch {
	case port == 0 && p == 0:
		port = 80
		if u.Scheme == "https" {
			port = 443
		}
	case port == 0:
		port = p
	case p != 0 && p != port:
		return nil, no(http.StatusMisdirectedRequest, fmt.Sprintf("the Host header names port %d on a connection to port %d", p, port), "T1090.004")
	}
	// The name under which the step knows an address of its own is meant.
	if a, err := netip.ParseAddr(host); err == nil {
		host = s.nameOf(a)
	}
	if f.host != "" && host != f.host {
		fh := f.host
		if a, err := netip.ParseAddr(fh); err == nil {
			fh = s.nameOf(a)
		}
		if host != fh {
			return nil, no(http.StatusMisdirectedRequest, fmt.Sprintf("the Host header names %s on a connection to %s", host, f.host), "T1090.004")
		}
	}
	if u.Path == "" {
		u.Path = "/"
	}
	if u.Path[0] != '/' {
		return nil, no(http.StatusBadRequest, "a request target that is no path", "")
	}
	u.Host = host
	if strings.Contains(host, ":") {
		u.Host = "[" + host + "]"
	}
	if def := map[string]int{"http": 80, "https": 443}[u.Scheme]; port != def {
		u.Host = joinHost(host, port)
	}
	if d := s.permit(host, port); d != nil {
		return nil, d
	}
	return u, nil
}

// deny answers for the gateway and counts it.
func (s *Step) deny(w http.ResponseWriter, d *denial) {
	s.rec.refuse(d.refusal)
	s.explain(w, d.status, d.dest+": "+d.reason)
}

// explain answers with a text that says who answers and why.
func (s *Step) explain(w http.ResponseWriter, status int, text string) {
	body := "waxseal: " + printable(text) + "\n"
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("X-Waxseal", "refused")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) //nolint:gosec // plain text, and says so
}

// path is that of the URL as it may be written down.
func (x *exchange) path() string {
	_, rest, _ := strings.Cut(x.uri, "://")
	_, path, _ := strings.Cut(rest, "/")
	path, _, _ = strings.Cut(path, "?")
	return "/" + path
}

func (x *exchange) dest() string { return joinHost(x.url.Hostname(), portOf(x.url)) }

// refuse answers for the gateway.
func (x *exchange) refuse(status int, kind, reason string) {
	x.s.deny(x.w, &denial{status, refusal{kind: kind, dest: x.dest(), reason: reason}})
}

func (x *exchange) serve() {
	if x.s.g.requests.Add(1) > attest.MaxInputs {
		x.s.rec.gap("overflow", "the build made more than %d requests; the others were refused", attest.MaxInputs)
		x.refuse(http.StatusServiceUnavailable, "http", "more requests than a build may make")
		return
	}
	if x.s.g.recorded.Load() >= attest.MaxInputBytes {
		x.s.rec.gap("overflow", "the record of the build's requests reached %d bytes; the others were refused", attest.MaxInputBytes)
		x.refuse(http.StatusServiceUnavailable, "http", "more than the record of a build may hold")
		return
	}
	x.ordinal = x.s.rec.next()
	select {
	case x.s.running <- struct{}{}:
		defer func() { <-x.s.running }()
	case <-x.r.Context().Done():
		panic(http.ErrAbortHandler)
	case <-x.s.ctx.Done():
		panic(http.ErrAbortHandler)
	}
	x.body = newRequestBody(x.r, x.s.needles)
	if x.s.book != nil {
		x.replay()
		return
	}
	x.record()
}

// requestBody passes a request's body on and takes its digest.
type requestBody struct {
	io.ReadCloser
	mu   sync.Mutex
	sum  hash.Hash
	size int64
	scan *scanner
}

func newRequestBody(r *http.Request, n *needles) *requestBody {
	b := &requestBody{ReadCloser: r.Body, sum: sha256.New(), scan: newScanner(n, r.Header.Get("Content-Encoding"))}
	if b.ReadCloser == nil {
		b.ReadCloser = http.NoBody
	}
	return b
}

func (b *requestBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sum.Write(p[:n])
	b.size += int64(n)
	b.scan.write(p[:n])
	return n, err
}

// digest is that of what was sent, "" for nothing; keyed if it held a secret,
// so that nobody can try values against it.
func (b *requestBody) digest(red *lock.Redactor) (attest.Digest, int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.size == 0 {
		return "", 0
	}
	sum := b.sum.Sum(nil)
	if b.scan.end() {
		return attest.Digest(red.Hash(sum)), b.size
	}
	return attest.Digest("sha256:" + hex.EncodeToString(sum)), b.size
}

// hopHeaders are between two neighbours and not passed on.
func hopHeaders() []string {
	return []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}
}

// outgoing is the request as it goes to upstream.
func (x *exchange) outgoing(ctx context.Context, body io.ReadCloser, length int64) *http.Request {
	h := x.r.Header.Clone()
	for _, list := range h.Values("Connection") {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" {
				h.Del(name)
			}
		}
	}
	trailers := strings.Contains(strings.ToLower(strings.Join(h.Values("Te"), ",")), "trailers")
	for _, name := range hopHeaders() {
		h.Del(name)
	}
	if trailers {
		h.Set("Te", "trailers")
	}
	if h.Get("User-Agent") == "" {
		h.Set("User-Agent", "") // none, rather than Go's
	}
	if !x.s.needles.none() && h.Get("Accept-Encoding") != "" {
		h.Set("Accept-Encoding", searchable(h.Get("Accept-Encoding")))
	}
	host := x.url.Host
	out := &http.Request{Method: x.r.Method, URL: x.url, Host: host, Header: h, Body: body, ContentLength: length, Trailer: x.r.Trailer, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
	if length == 0 {
		out.Body = http.NoBody
	}
	return out.WithContext(ctx)
}

// searchable keeps of an Accept-Encoding what can be unpacked to look for
// secrets.
func searchable(accept string) string {
	var keep []string
	for e := range strings.SplitSeq(accept, ",") {
		e = strings.TrimSpace(e)
		name, _, _ := strings.Cut(strings.ToLower(e), ";")
		switch strings.TrimSpace(name) {
		case "gzip", "x-gzip", "deflate", "identity":
			keep = append(keep, e)
		}
	}
	if len(keep) == 0 {
		return "identity"
	}
	return strings.Join(keep, ", ")
}

// ask sends the request to upstream. Cancelling is for the caller, who must.
func (x *exchange) ask(ctx context.Context, body io.ReadCloser, length int64) (*http.Response, error) {
	t := x.s.http1
	if x.r.ProtoMajor == 2 {
		t = x.s.http2
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		x.sent.Store(true)
		x.conn = info.Conn
	}})
	out := x.outgoing(ctx, body, length)
	resp, err := t.RoundTrip(out)
	if err != nil && t == x.s.http1 && length == 0 && strings.Contains(err.Error(), "no application protocol") {
		resp, err = x.s.http2.RoundTrip(out) // an upstream of HTTP/2 alone
	}
	if err != nil {
		return nil, err
	}
	if resp.ProtoMajor == 2 {
		x.conn = nil // other streams read it, too
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		resp.Body.Close()
		return nil, errors.New("upstream changed to another protocol, unasked")
	}
	if resp.StatusCode < 200 || resp.StatusCode > 999 {
		resp.Body.Close()
		return nil, fmt.Errorf("upstream answered with status %d, which there is not", resp.StatusCode)
	}
	return resp, nil
}

// more reports, between two reads of an HTTP/1 body, whether TLS has another
// record at hand.
func (x *exchange) more() bool {
	t, ok := x.conn.(*tls.Conn)
	if !ok {
		return false
	}
	c, ok := t.NetConn().(*bufferedConn)
	return ok && c.r.Buffered() > 17<<10
}

// failed answers for an upstream that could not be asked.
func (x *exchange) failed(err error) {
	if f := forbidden(err); f != nil {
		x.unheard(refusal{kind: "policy", dest: x.dest(), reason: f.Error(), technique: f.technique})
		x.s.explain(x.w, http.StatusForbidden, x.dest()+": the gateway does not connect to it: "+f.why+" (--upstream NAME=ADDRESS allows it)")
		return
	}
	if x.s.ctx.Err() != nil || x.r.Context().Err() != nil {
		x.unheard(refusal{kind: "http", dest: x.dest(), reason: "the client went away before upstream answered"})
		panic(http.ErrAbortHandler)
	}
	x.unanswered(err)
}

// unanswered says to the record why upstream gave no answer, and to the step
// what kind of reason it was: the words of some are upstream's own, and what
// reaches a step from there is in the record whole or does not reach it.
func (x *exchange) unanswered(err error) {
	x.unheard(refusal{kind: "http", dest: x.dest(), reason: notAsked + upstreamReason(err)})
	x.s.explain(x.w, http.StatusBadGateway, x.dest()+": asking upstream: "+stepReason(err))
}

// unheard writes down an exchange that came to nothing: an attempt where
// nothing left, else what was sent, and that no answer reached the step.
func (x *exchange) unheard(r refusal) {
	if !x.sent.Load() {
		x.s.rec.refuse(r)
		return
	}
	d, n := x.body.digest(x.s.g.redactor)
	x.s.add(attestations.InputRequest{
		Ordinal: x.ordinal, Method: x.r.Method, URI: x.uri, Range: x.r.Header.Get("Range"), RequestDigest: string(d), RequestSize: n,
		Digest: string(attest.DigestOf(nil)), Unanswered: x.s.rec.text(r.reason),
	})
}

func stepReason(err error) string {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var invalid *tls.CertificateVerificationError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return "its name cannot be resolved"
	case errors.As(err, &unknown):
		return "its certificate is signed by an unknown authority (--upstream-ca FILE adds one)"
	case errors.As(err, &invalid):
		return "its certificate is not valid"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	}
	return "it failed; the record of the build says why"
}

// upstreamReason is an error of the transport without the URL, which may hold
// a credential, and with what helps.
func upstreamReason(err error) string {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	msg := err.Error()
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		msg = fmt.Sprintf("%s: %s", dns.Name, dns.Err)
	case strings.Contains(msg, "x509: certificate signed by unknown authority"):
		msg += " (--upstream-ca FILE adds one)"
	}
	return msg
}

// hasBody reports whether a response to this method and status has a body.
func hasBody(method string, status int) bool {
	return method != http.MethodHead && status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

// answer is a response as it reaches the step.
type answer struct {
	entry  attestations.InputRequest
	pass   map[string]string // headers, by lower-case name
	length int64             // of the body; -1 unknown
	signed bool              // a redirect to a URL that carries a credential
}

// begin makes the entry of a response, and finds the headers that pass.
func (x *exchange) begin(resp *http.Response) *answer {
	a := &answer{length: resp.ContentLength}
	var written map[string]string
	a.pass, written = x.s.keepHeaders(resp.Header)
	a.entry = attestations.InputRequest{
		Ordinal: x.ordinal, Method: x.r.Method, URI: x.uri, Range: x.r.Header.Get("Range"),
		Status: resp.StatusCode, Headers: written,
	}
	if !hasBody(x.r.Method, resp.StatusCode) {
		a.length = 0
		if v := resp.Header.Get("Content-Length"); v != "" && resp.StatusCode != http.StatusNoContent {
			a.pass["content-length"], written["content-length"] = v, v
		}
	}
	if resp.StatusCode/100 == 3 && a.pass["location"] != written["location"] {
		// Such a body says the URL again, with its credential, and nobody
		// reads it. What reaches the step is what the record has: nothing.
		a.signed = true
		a.length = 0
	}
	return a
}

// head sends status and headers.
func (x *exchange) head(a *answer) {
	h := x.w.Header()
	for name, v := range a.pass {
		if !strings.HasPrefix(name, trailerPrefix) {
			h.Set(name, v)
		}
	}
	if _, ok := a.pass["content-type"]; !ok {
		h["Content-Type"] = nil // not guessed
	}
	if hasBody(x.r.Method, a.entry.Status) && a.length >= 0 {
		h.Set("Content-Length", strconv.FormatInt(a.length, 10))
	}
	x.w.WriteHeader(a.entry.Status)
}

// trailerPrefix marks the headers that came after the body.
const trailerPrefix = "trailer:"

// trailers passes on what came after the body.
func (x *exchange) trailers(a *answer, t http.Header) {
	pass, written := x.s.keepHeaders(t)
	if len(pass) > 0 {
		// Or a short answer goes out with a length, and no trailers.
		_ = http.NewResponseController(x.w).Flush()
	}
	for name, v := range pass {
		a.pass[trailerPrefix+name] = v
		a.entry.Headers[trailerPrefix+name] = written[name]
		x.w.Header().Set(http.TrailerPrefix+name, v)
	}
}

// finish writes the entry down.
func (x *exchange) finish(a *answer) {
	d, n := x.body.digest(x.s.g.redactor)
	a.entry.RequestDigest, a.entry.RequestSize = string(d), n
	if len(a.entry.Headers) == 0 {
		a.entry.Headers = nil
	}
	x.s.add(a.entry)
}

// record lets an exchange through and writes it down.
func (x *exchange) record() {
	ctx, cancel := context.WithCancel(x.s.ctx)
	defer cancel()
	// A client that leaves takes its request with it, unless so little is
	// missing that the whole is better for the record.
	var worth atomic.Bool
	stop := context.AfterFunc(x.r.Context(), func() {
		if !worth.Load() {
			cancel()
		}
	})
	defer stop()

	length := x.r.ContentLength
	if x.r.Body == nil || x.r.Body == http.NoBody {
		length = 0
	}
	resp, err := x.ask(ctx, x.body, length)
	if err != nil {
		x.failed(err)
		return
	}
	defer resp.Body.Close()
	a := x.begin(resp)
	worth.Store(a.length >= 0 && a.length <= maxDrain)
	x.stream(cancel, a, resp)
}

// stream passes a body on, into the store and through the hash.
func (x *exchange) stream(cancel func(), a *answer, resp *http.Response) {
	sink, err := x.s.newSink(resp.Header.Get("Content-Encoding"))
	if err != nil {
		x.storeFailed(err)
		return
	}
	defer sink.abort()
	x.head(a)

	if !hasBody(x.r.Method, a.entry.Status) || a.signed {
		if err := sink.commit(&a.entry); err != nil {
			x.storeFailed(err)
			return
		}
		x.finish(a)
		return
	}
	if a.length >= 0 && a.length <= smallBody {
		x.small(a, resp, sink)
		return
	}
	ringp := x.s.g.rings.Get().(*[]byte)
	f := newFlow(*ringp)
	var work sync.WaitGroup
	work.Go(func() { f.read(resp.Body, x.more) })
	work.Go(func() { f.keep(sink.write) })
	defer func() {
		cancel() // a reader that still waits for upstream
		work.Wait()
		x.s.g.rings.Put(ringp)
	}()
	flush := func() { _ = http.NewResponseController(x.w).Flush() }
	gone, drains := false, false
	last, total, end, err := f.give(
		func(p []byte) error { _, err := x.w.Write(p); return err },
		flush,
		func() {
			gone = true
			if a.length < 0 || a.length > maxDrain {
				cancel()
				return
			}
			drains = true
			x.s.draining.Add(1)
			time.AfterFunc(drainTime, cancel)
		})
	if drains {
		defer x.s.draining.Add(-1)
	}
	if err != nil {
		x.storeFailed(err)
		return
	}
	x.complete(a, resp, sink, end)
	if !gone && total > 0 {
		_, _ = x.w.Write(last)
	}
	if a.entry.Cut {
		flush()
		panic(http.ErrAbortHandler)
	}
}

// small carries a body that is not worth three goroutines.
func (x *exchange) small(a *answer, resp *http.Response, sink *sink) {
	bufp := x.s.g.buffers.Get().(*[]byte)
	defer x.s.g.buffers.Put(bufp)
	n, end := io.ReadFull(resp.Body, (*bufp)[:a.length])
	if end == nil {
		// The end of the body brings the trailers.
		var one [1]byte
		if m, err := resp.Body.Read(one[:]); m == 0 && err == io.EOF {
			end = io.EOF
		} else {
			end = io.ErrUnexpectedEOF
		}
	}
	if err := sink.write((*bufp)[:n]); err != nil {
		x.storeFailed(err)
	}
	x.complete(a, resp, sink, end)
	_, _ = x.w.Write((*bufp)[:n])
	if a.entry.Cut {
		_ = http.NewResponseController(x.w).Flush()
		panic(http.ErrAbortHandler)
	}
}

// complete keeps a body that has ended and writes its entry down.
func (x *exchange) complete(a *answer, resp *http.Response, sink *sink, end error) {
	if end == io.EOF { //nolint:errorlint // a reader's end is io.EOF itself; an error that wraps it is a body cut short
		x.trailers(a, resp.Trailer)
	} else {
		a.entry.Cut = true
		if a.length >= 0 {
			a.entry.Headers["content-length"] = strconv.FormatInt(a.length, 10)
		}
	}
	if err := sink.commit(&a.entry); err != nil {
		x.storeFailed(err)
	}
	x.finish(a)
}

// storeFailed ends an exchange whose bytes could not be kept: they do not
// reach the step whole, and the build fails.
func (x *exchange) storeFailed(err error) {
	text := fmt.Sprintf("%s %s could not be stored: %v", x.r.Method, x.uri, err)
	x.s.rec.violate(Violation{Step: x.s.opts.Name, Method: x.r.Method, URI: x.uri, Expected: "the bytes in the store", Got: err.Error(), Text: text})
	x.s.rec.gap("overflow", "%s", text)
	panic(http.ErrAbortHandler)
}

// sink takes in a body: store, digest, search for secrets.
type sink struct {
	s    *Step
	w    *lock.Writer // nil: nothing is kept
	sum  hash.Hash    // without w
	size int64
	scan *scanner
}

func (s *Step) newSink(encoding string) (*sink, error) {
	k := &sink{s: s, scan: newScanner(s.needles, encoding)}
	if s.g.opts.Store == nil {
		k.sum = sha256.New()
		return k, nil
	}
	var err error
	k.w, err = s.g.opts.Store.NewWriter()
	return k, err
}

func (k *sink) write(p []byte) error {
	k.size += int64(len(p))
	k.scan.write(p)
	if k.w != nil {
		_, err := k.w.Write(p)
		return err
	}
	k.sum.Write(p)
	return nil
}

// commit keeps the body and puts its digest and size into the entry.
func (k *sink) commit(e *attestations.InputRequest) error {
	e.Size = k.size
	if k.size > 0 && k.scan.end() {
		e.Withheld = true
		e.Digest = k.s.g.redactor.Hash([]byte(k.digest()))
		k.abort()
		k.s.rec.gap("withheld", "the body of %s %s holds a secret of the step, or could not be searched for one, and is not kept", e.Method, e.URI)
		return nil
	}
	e.Digest = string(k.digest())
	if k.w != nil {
		_, err := k.w.Commit()
		return err
	}
	return nil
}

func (k *sink) digest() attest.Digest {
	if k.w != nil {
		return k.w.Digest()
	}
	return attest.Digest("sha256:" + hex.EncodeToString(k.sum.Sum(nil)))
}

// abort drops what was not committed.
func (k *sink) abort() {
	if k.scan != nil && k.scan.pipe != nil {
		k.scan.pipe.Close()
	}
	if k.w != nil {
		k.w.Abort()
	}
}

// Transport carries the engine's own requests (ADD URL) through the gateway:
// recorded, checked and replayed like a step's. The step is closed as any.
func (s *Step) Transport() http.RoundTripper { return innerTransport{s} }

// innerTransport answers requests in this process as if they had come to the
// explicit proxy.
type innerTransport struct{ s *Step }

func (t innerTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	host := r.URL.Host
	if r.Host != "" {
		host = r.Host
	}
	in := r.Clone(context.WithValue(r.Context(), frontKey{}, &front{explicit: true, scheme: "http", port: portProxy}))
	in.Host, in.RequestURI = host, r.URL.String()
	if in.Body == nil {
		in.Body = http.NoBody
	}
	pr, pw := io.Pipe()
	w := &pipeWriter{header: http.Header{}, body: pw, ready: make(chan struct{})}
	t.s.mu.Lock()
	closing := t.s.closing
	if !closing {
		t.s.serving.Add(1)
	}
	t.s.mu.Unlock()
	if closing {
		return nil, fmt.Errorf("asking for %s: the step is closed", t.s.redact(r.URL.String()))
	}
	go func() {
		defer t.s.serving.Done()
		defer in.Body.Close()
		defer func() {
			if p := recover(); p != nil {
				w.WriteHeader(http.StatusBadGateway)
				pw.CloseWithError(io.ErrUnexpectedEOF)
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
				return
			}
			w.WriteHeader(http.StatusOK)
			pw.Close()
		}()
		t.s.ServeHTTP(w, in)
	}()
	stop := context.AfterFunc(t.s.ctx, func() { pr.CloseWithError(net.ErrClosed) })
	select {
	case <-w.ready:
	case <-r.Context().Done():
		stop()
		pr.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	h := w.sent
	n := int64(-1)
	if v, err := strconv.ParseInt(h.Get("Content-Length"), 10, 64); err == nil {
		n = v
	}
	return &http.Response{
		Status: strconv.Itoa(w.status) + " " + http.StatusText(w.status), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: h, Body: &pipeBody{pr, stop}, ContentLength: n, Request: r,
	}, nil
}

// pipeWriter is a response that somebody in this process reads.
type pipeWriter struct {
	header http.Header
	sent   http.Header
	status int
	body   *io.PipeWriter
	ready  chan struct{}
	once   sync.Once
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	w.once.Do(func() {
		w.status, w.sent = status, http.Header{}
		maps.Copy(w.sent, w.header)
		maps.DeleteFunc(w.sent, func(_ string, v []string) bool { return v == nil })
		close(w.ready)
	})
}

func (w *pipeWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

type pipeBody struct {
	*io.PipeReader
	stop func() bool
}

func (b *pipeBody) Close() error {
	b.stop()
	return b.PipeReader.Close()
}
