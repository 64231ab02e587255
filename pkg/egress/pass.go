package egress

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"
)

// maxHello bounds the first message of a TLS client.
const maxHello = 64 << 10

// passage is what went through connections to one place that were not opened.
type passage struct {
	conns         int
	toStep, toAll int64 // bytes
}

// pass hands a TLS connection on as it is, to whom its handshake names. Who is
// asked and how much comes back is all that is known of it.
func (s *Step) pass(c *streamConn) {
	// What passed is counted when the connection is closed already.
	s.serving.Add(1)
	defer s.serving.Done()
	f := &front{scheme: "https", host: c.front.host, fallback: c.front.fallback, port: c.front.port}
	hello, said, err := readHello(s.ctx, c)
	if err != nil {
		if s.ctx.Err() == nil {
			s.rec.refuse(refusal{kind: "tls", dest: f.dest(), reason: handshakeReason(err)})
		}
		c.Close()
		return
	}
	if err := s.nameTLS(f, hello); err != nil {
		c.Close() // it is counted
		return
	}
	host, err := cleanHost(f.host)
	if err != nil {
		s.refuseConn(c, refusal{kind: "tls", dest: f.dest(), reason: "the TLS handshake names no host"})
		return
	}
	if d := s.permit(host, f.port); d != nil {
		s.refuseConn(c, d.refusal)
		return
	}
	up, err := s.g.up.tunnel(s.ctx, host, f.port, s)
	if err != nil {
		x := refusal{kind: "tls", dest: joinHost(host, f.port), reason: notAsked + upstreamReason(err)}
		if no := forbidden(err); no != nil {
			x = refusal{kind: "policy", dest: x.dest, reason: no.Error(), technique: no.technique}
		}
		s.refuseConn(c, x)
		return
	}
	defer c.Close()
	defer up.Close()
	defer context.AfterFunc(s.ctx, func() { up.Close() })()
	p := passage{conns: 1}
	sent := make(chan int64, 1)
	go func() {
		n, _ := io.Copy(up, io.MultiReader(bytes.NewReader(said), c))
		closeWrite(up)
		sent <- n
	}()
	p.toStep, _ = io.Copy(c, up)
	c.Close() // it has all there is, and what it says now is for nobody
	p.toAll = <-sent
	s.rec.pass(joinHost(host, f.port), p)
}

func closeWrite(c net.Conn) {
	b, ok := c.(*bufferedConn)
	if !ok {
		return
	}
	if t, ok := b.Conn.(*net.TCPConn); ok {
		_ = t.CloseWrite() // one that is closed says no more either
	}
}

// readHello reads a TLS client's first message, and returns its bytes as well.
func readHello(ctx context.Context, c net.Conn) (*tls.ClientHelloInfo, []byte, error) {
	if err := c.SetReadDeadline(time.Now().Add(headTimeout)); err != nil {
		return nil, nil, err
	}
	defer func() { _ = c.SetReadDeadline(time.Time{}) }() // fails on what is closed, as reading then does
	var said bytes.Buffer
	var hello *tls.ClientHelloInfo
	err := tls.Server(&mute{c, io.TeeReader(io.LimitReader(c, maxHello), &said)}, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, errRefused // more than the hello is not for us
		},
	}).HandshakeContext(ctx)
	if hello == nil {
		if err == nil {
			err = os.ErrDeadlineExceeded
		}
		return nil, nil, err
	}
	return hello, said.Bytes(), nil
}

// mute is a connection on which our side of TLS says nothing.
type mute struct {
	net.Conn
	r io.Reader
}

func (m *mute) Read(p []byte) (int, error)  { return m.r.Read(p) }
func (m *mute) Write(p []byte) (int, error) { return len(p), nil }
func (m *mute) Close() error                { return nil }

// tunnel connects to a host, through the company's proxy where there is one.
func (u *upstream) tunnel(ctx context.Context, host string, port int, s *Step) (net.Conn, error) {
	to := joinHost(host, port)
	proxy, err := u.proxyFor(&http.Request{URL: &url.URL{Scheme: "https", Host: to}})
	switch {
	case err != nil:
		return nil, err
	case proxy == nil:
		return u.dial(ctx, "tcp", to, s.hosts)
	case proxy.Scheme != "http":
		return nil, fmt.Errorf("TLS that is not opened goes through no proxy of the kind %q", proxy.Scheme)
	}
	c, err := u.dial(ctx, "tcp", joinHost(proxy.Hostname(), portOf(proxy)), nil)
	if err != nil {
		return nil, err
	}
	if err := connect(ctx, c.(*bufferedConn), proxy, to); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// connect asks a proxy for a tunnel, in which the client speaks first.
func connect(ctx context.Context, c *bufferedConn, proxy *url.URL, to string) error {
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.SetDeadline(time.Now().Add(headTimeout)); err != nil {
		return err
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: to}, Host: to, Header: http.Header{}}
	if user := proxy.User; user != nil {
		password, _ := user.Password()
		basic := &http.Request{Header: http.Header{}}
		basic.SetBasicAuth(user.Username(), password)
		req.Header.Set("Proxy-Authorization", basic.Header.Get("Authorization"))
	}
	if err := req.Write(c); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.r, req)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New("the proxy answered " + resp.Status)
	}
	return c.SetDeadline(time.Time{})
}
