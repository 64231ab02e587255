package egress

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// hostPattern is one pattern of --allow-host: a name, an address, "*.name" for
// everything below a name, each with or without a port, or "*" for all.
type hostPattern struct {
	host string // lower case, without the "*."
	sub  bool   // what is below host, not host itself
	all  bool
	port int // 0: any
}

// parseHostPattern reads a pattern. A star stands for whole labels at the
// start and nowhere else, so that a pattern is anchored at both ends.
func parseHostPattern(s string) (hostPattern, error) {
	bad := func(why string) (hostPattern, error) {
		return hostPattern{}, fmt.Errorf("reading host pattern %q: %s", s, why)
	}
	var p hostPattern
	host, port, err := splitHost(s)
	if err != nil {
		return bad(err.Error())
	}
	p.port = port
	if host == "*" {
		p.all = true
		return p, nil
	}
	if rest, ok := strings.CutPrefix(host, "*."); ok {
		p.sub = true
		host = rest
		if _, err := netip.ParseAddr(host); err == nil {
			return bad("no star before an address")
		}
	}
	if p.host, err = cleanHost(host); err != nil {
		return bad(err.Error())
	}
	return p, nil
}

func (p hostPattern) match(host string, port int) bool {
	if p.port != 0 && p.port != port {
		return false
	}
	if p.all {
		return true
	}
	host, err := cleanHost(host)
	if err != nil {
		return false
	}
	if p.sub {
		return strings.HasSuffix(host, "."+p.host)
	}
	return host == p.host
}

// splitHost takes "host", "host:port", "[v6]", "[v6]:port" or a bare v6
// address apart; port is 0 where there is none.
func splitHost(s string) (host string, port int, err error) {
	if s == "" {
		return "", 0, fmt.Errorf("no host")
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		return s, 0, nil
	}
	rest := ""
	if s[0] == '[' {
		i := strings.IndexByte(s, ']')
		if i < 0 {
			return "", 0, fmt.Errorf("no closing bracket")
		}
		host, rest = s[1:i], s[i+1:]
		if a, err := netip.ParseAddr(host); err != nil || !a.Is6() {
			return "", 0, fmt.Errorf("no IPv6 address in brackets")
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	} else {
		host = s
	}
	if host == "" {
		return "", 0, fmt.Errorf("no host")
	}
	if rest == "" {
		return host, 0, nil
	}
	if rest[0] != ':' {
		return "", 0, fmt.Errorf("unexpected text after the host")
	}
	n, err := strconv.ParseUint(rest[1:], 10, 16)
	if err != nil || n == 0 {
		return "", 0, fmt.Errorf("no port %q", rest[1:])
	}
	return host, int(n), nil
}

// cleanHost returns a host name or address in the one form in which hosts are
// compared: lower case, no final dot, addresses as netip writes them. What is
// neither is refused, so that no host can smuggle a slash or an at sign.
func cleanHost(s string) (string, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return "", fmt.Errorf("host %q has a zone", clip(s))
		}
		return a.Unmap().String(), nil
	}
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return "", fmt.Errorf("host %q is no host name", clip(s))
	}
	digits := true // an "address" that only some parsers take for one: 0x7f.1, 2130706433
	for _, label := range strings.Split(s, ".") {
		if label == "" || len(label) > 63 {
			return "", fmt.Errorf("host %q is no host name", clip(s))
		}
		for i := range len(label) {
			c := label[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return "", fmt.Errorf("host %q is no host name", clip(s))
			}
		}
		digits = isNumber(label)
	}
	if digits {
		return "", fmt.Errorf("host %q is neither a name nor an address", clip(s))
	}
	return s, nil
}

// isNumber reports whether some resolver may read a label as a number; a host
// whose last label is one is an address in disguise.
func isNumber(label string) bool {
	if rest, ok := strings.CutPrefix(label, "0x"); ok {
		label = rest
		for i := range len(label) {
			if c := label[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return false
			}
		}
		return true
	}
	for i := range len(label) {
		if label[i] < '0' || label[i] > '9' {
			return false
		}
	}
	return true
}

// joinHost is "host:port" with brackets where they belong.
func joinHost(host string, port int) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + strconv.Itoa(port)
}

// portOf returns the port that a URL means.
func portOf(u *url.URL) int {
	if n, err := strconv.Atoi(u.Port()); err == nil {
		return n
	}
	if u.Scheme == "https" {
		return 443
	}
	return 80
}

// clip keeps foreign text to a readable length.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
