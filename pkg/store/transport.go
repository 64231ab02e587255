package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	maxTries = 3
	// maxWait bounds what a registry can make us wait for one request.
	maxWait = 30 * time.Second
)

// network is the outside world as the store sees it. The zero value is the
// real one.
type network struct {
	transport http.RoundTripper
	wait      func(context.Context, time.Duration) error
}

// polite asks again where a registry is busy or stumbles, within bounds, and
// keeps answers that are read whole within their limit. It refuses plain HTTP
// to anywhere but loopback, which the library below would try for private
// addresses.
type polite struct {
	inner    http.RoundTripper
	wait     func(context.Context, time.Duration) error
	insecure bool
}

func newTransport(opts Options) http.RoundTripper {
	p := &polite{inner: opts.net.transport, wait: opts.net.wait, insecure: opts.Insecure}
	if p.wait == nil {
		p.wait = sleep
	}
	if p.inner == nil {
		t := &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       60 * time.Second,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: 2 * time.Minute,
			ExpectContinueTimeout: time.Second,
		}
		if opts.Insecure {
			t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for by name
		}
		p.inner = t
	}
	return p
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// waitError is a registry that asks for a longer wait than we grant.
type waitError struct{ after time.Duration }

func (e *waitError) Error() string { return fmt.Sprintf("asked to wait %s", e.after) }

// plainHTTPError is a request that would have gone out without TLS.
type plainHTTPError struct{ host string }

func (e *plainHTTPError) Error() string {
	return fmt.Sprintf("%s offers plain HTTP only, which anybody on the way can change", e.host)
}

func (p *polite) RoundTrip(req *http.Request) (*http.Response, error) {
	// Nor may a registry elsewhere send us to what listens on this machine.
	if req.URL.Scheme == "http" && !p.insecure && !(loopback(req.URL.Host) && loopback(began(req).URL.Host)) {
		return nil, &plainHTTPError{req.URL.Host}
	}
	waited := time.Duration(0)
	for try := 1; ; try++ {
		if try > 1 && req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
		resp, err := p.inner.RoundTrip(req)
		again, pause := p.again(req, resp, err, try)
		if !again || try == maxTries {
			return p.bound(req, resp), err
		}
		waited += pause
		if resp != nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection is used again
			resp.Body.Close()
		}
		if waited > maxWait {
			return nil, &waitError{pause}
		}
		if err := p.wait(req.Context(), pause); err != nil {
			return nil, err
		}
	}
}

// again decides whether a request is worth another try, and after how long.
func (p *polite) again(req *http.Request, resp *http.Response, err error, try int) (bool, time.Duration) {
	if !repeatable(req) || req.Context().Err() != nil {
		return false, 0
	}
	backoff := time.Duration(try*try) * 200 * time.Millisecond
	if err != nil {
		return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET), backoff
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		if after, ok := retryAfter(resp.Header.Get("Retry-After")); ok {
			return true, after
		}
		return true, 5 * backoff
	case http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusGatewayTimeout:
		return true, backoff
	}
	return false, 0
}

// repeatable holds for requests that may be sent twice. Parts of an upload are
// not among them: whoever uploads starts over.
func repeatable(req *http.Request) bool {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return false
	}
	switch req.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodPut:
		return strings.Contains(req.URL.Path, "/manifests/")
	case http.MethodPost:
		return strings.HasSuffix(req.URL.Path, "/blobs/uploads/")
	}
	return false
}

// retryAfter reads both forms of the header.
// https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
func retryAfter(v string) (time.Duration, bool) {
	if n, err := strconv.Atoi(v); err == nil && n >= 0 {
		return time.Duration(min(n, 1<<20)) * time.Second, true
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(0, time.Until(t)), true
	}
	return 0, false
}

// began is what was asked of the registry, which may have sent us elsewhere.
func began(req *http.Request) *http.Request {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return req
}

// bound ends the body of an answer that is read whole at its limit.
func (p *polite) bound(req *http.Request, resp *http.Response) *http.Response {
	if resp == nil || resp.Body == nil {
		return resp
	}
	path := began(req).URL.Path
	if strings.Contains(path, "/manifests/") || strings.Contains(path, "/referrers/") || !strings.Contains(path, "/blobs/") && strings.HasPrefix(path, "/v2/") {
		resp.Body = &bounded{ReadCloser: resp.Body, left: attest.MaxManifest}
	}
	return resp
}

type bounded struct {
	io.ReadCloser
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, &answerTooLong{}
	}
	return n, err
}

type answerTooLong struct{}

func (*answerTooLong) Error() string {
	return fmt.Sprintf("the answer is larger than the limit of %d bytes", attest.MaxManifest)
}
