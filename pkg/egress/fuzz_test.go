package egress

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func FuzzSniff(f *testing.F) {
	for _, s := range []string{"GET / HTTP/1.1\r\n", "CONNECT a:443 HTTP/1.1\r\n", h2Preface, "\x16\x03\x01\x02\x00\x01", "SSH-2.0-x", "\x05\x01\x00", "\x13BitTorrent", "", " ", "A", "\x16", "0032git-upload-pack"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		seen, ok := sniff(b)
		n := 0
		for _, is := range []bool{seen.tls, seen.http1, seen.http2} {
			if is {
				n++
			}
		}
		if n > 1 || n == 1 && !ok || seen.what == "" {
			t.Errorf("%q is %+v, %v", b, seen, ok)
		}
		// More bytes do not change what has been decided.
		if ok {
			if more, ok := sniff(append(b[:len(b):len(b)], 'x')); !ok || more.http1 != seen.http1 || more.http2 != seen.http2 || more.tls != seen.tls {
				t.Errorf("%q is %+v and with one byte more %+v", b, seen, more)
			}
		}
		if len(b) > maxSniff && !ok {
			t.Errorf("%q is not decided", b)
		}
	})
}

func FuzzParsePacket(f *testing.F) {
	for _, s := range []string{
		"", "00000000000000000000000008004500002800010000400600007f000001cb00710704d2115c00000000000000005002ffff00000000",
		"0000000000000000000000000800450000200001000040110000c6120001cb00710704d2270f000c0000",
		"00000000000000000000000086dd6000000000141140000000000000000000000000000000012001",
		"00000000000000000000000086dd60000000000800400000000000000000000000000000000120010db8000000000000000000000007060000000000000004d201bb",
		"0000000000000000000000000800450000380001000040010000cb007107cb0071070303000000000000450000200001000040110000c6120001cb00710704d2270f000c0000",
		"00000000000000000000000088b5",
		"00000000000000000000000008004f",
	} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		at, ok := parsePacket(b, func(p int) bool { return p == 80 })
		if ok && (at.kind == "" || at.what == "") {
			t.Errorf("%x: %+v", b, at)
		}
	})
}

func FuzzHostPattern(f *testing.F) {
	for _, s := range []string{"example.com", "*.example.com", "*", "*:443", "a.b:8080", "[::1]:443", "::1", "10.0.0.1", "*.10.0.0.1", "a..b", "a*b", "*.*", "ex ample", "[", "a:", "2130706433", "0x7f.1"} {
		f.Add(s, "a.example.com")
	}
	f.Fuzz(func(t *testing.T, s, host string) {
		p, err := parseHostPattern(s)
		if err != nil || p.all || !p.match(host, max(p.port, 1)) {
			return
		}
		// What matches is anchored at both ends.
		clean, err := cleanHost(host)
		if err != nil {
			t.Fatalf("%q matches %q, which is no host", s, host)
		}
		if p.sub && (!strings.HasSuffix(clean, "."+p.host) || clean == p.host) || !p.sub && clean != p.host {
			t.Errorf("%q matches %q", s, host)
		}
	})
}

func TestHostPatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern string
		yes, no []string
	}{
		{"example.com", []string{"example.com:443", "EXAMPLE.com.:80"}, []string{"a.example.com:443", "example.com.evil.test:443", "notexample.com:443"}},
		{"*.example.com", []string{"a.example.com:443", "a.b.example.com:80"}, []string{"example.com:443", "aexample.com:80", "a.example.com.evil.test:80"}},
		{"example.com:8443", []string{"example.com:8443"}, []string{"example.com:443"}},
		{"*", []string{"anything:1"}, nil},
		{"10.0.0.1", []string{"10.0.0.1:80", "[::ffff:10.0.0.1]:80"}, []string{"10.0.0.10:80"}},
		{"[2001:db8::1]:443", []string{"[2001:DB8:0::1]:443"}, []string{"[2001:db8::1]:80"}},
	} {
		p, err := parseHostPattern(tt.pattern)
		if err != nil {
			t.Fatal(err)
		}
		for i, list := range [][]string{tt.yes, tt.no} {
			for _, hp := range list {
				host, port, err := splitHost(hp)
				if err != nil {
					t.Fatal(err)
				}
				if got := p.match(host, port); got != (i == 0) {
					t.Errorf("%q matches %q: %v", tt.pattern, hp, got)
				}
			}
		}
	}
	for _, bad := range []string{"", "a*b.com", "*.*.com", "*.10.0.0.1", "http://x", "a/b", "x:0", "x:99999", "user@x", "*."} {
		if _, err := parseHostPattern(bad); err == nil {
			t.Errorf("%q is taken for a pattern", bad)
		}
	}
}

func TestForbiddenAddresses(t *testing.T) {
	u, err := newUpstream(Options{Upstreams: map[string]string{"local.test": "127.0.0.1:99"}})
	if err != nil {
		t.Fatal(err)
	}
	u.own = append(u.own, netip.MustParseAddr("192.0.2.55"))
	for _, bad := range []string{"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.1.1", "fe80::1", "169.254.169.254", "168.63.129.16", "fd00:ec2::254",
		"224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "::127.0.0.1", "198.18.0.9", "192.0.2.55"} {
		if u.checkAddr(netip.MustParseAddr(bad)) == nil {
			t.Errorf("%s would be dialed", bad)
		}
	}
	for _, good := range []string{"203.0.113.7", "10.1.2.3", "192.168.1.1", "2001:db8::1", "64:ff9b::cb00:7107"} {
		if err := u.checkAddr(netip.MustParseAddr(good)); err != nil {
			t.Error(err)
		}
	}
	if u.check("localhost", 80) == nil || u.check("metadata.google.internal", 80) == nil {
		t.Error("a name of this machine would be asked for")
	}
	if err := u.check("local.test", 80); err != nil {
		t.Errorf("an upstream given on the command line is refused: %v", err)
	}
}

func TestNamesThatCarryData(t *testing.T) {
	for name, want := range map[string]bool{
		"files.test": false,
		"prod-registry-k8s-io-us-east-1.s3.dualstack.us-east-1.amazonaws.com": false,
		"d2lzqkxq2p9m3a.cloudfront.net":                                       false,
		"objects.githubusercontent.com":                                       false,
		"mzxw6ytboi2dcmrrgq3tonzxhe3demrsgmztgnbv.evil.test":                  true,
		"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.test":                       false,
		strings.Repeat("abcdefgh.", 18) + "test":                              true,
	} {
		if got := suspicion(name, dns.TypeA) != ""; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for typ, want := range map[uint16]bool{dns.TypeAAAA: false, dns.TypeSRV: false, dns.TypeHTTPS: false, dns.TypeTXT: true, dns.TypeNULL: true, dns.TypeMX: true, dns.TypeANY: true, 65399: true} {
		if got := suspicion("files.test", typ) != ""; got != want {
			t.Errorf("type %d: %v", typ, got)
		}
	}
}
