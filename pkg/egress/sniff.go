package egress

import (
	"fmt"
	"strings"
)

// maxSniff is how many bytes are looked at before a connection is what it is.
const maxSniff = 32

// sighting is what the first bytes of a connection are.
type sighting struct {
	tls, http1, http2 bool
	what              string // of anything else, in words
}

const h2Preface = "PRI * HTTP/2.0\r\n"

// sniff tells TLS and HTTP from everything else; ok is false while b is too
// short to say.
func sniff(b []byte) (seen sighting, ok bool) {
	if len(b) == 0 {
		return sighting{what: "nothing"}, false
	}
	if b[0] == 0x16 { // a handshake record of TLS 1.x or SSL 3
		switch {
		case len(b) < 3:
			return sighting{what: other(b)}, false
		case b[1] == 3 && b[2] <= 4:
			return sighting{tls: true, what: "TLS"}, true
		}
		return sighting{what: other(b)}, true
	}
	if strings.HasPrefix(h2Preface, string(b[:min(len(b), len(h2Preface))])) {
		if len(b) < len(h2Preface) {
			return sighting{what: other(b)}, false
		}
		return sighting{http2: true, what: "HTTP/2"}, true
	}
	// A method, a space and the beginning of a target.
	for i, c := range b {
		switch {
		case c == ' ' && i > 0:
			if i+1 == len(b) {
				return sighting{what: other(b)}, false
			}
			if t := b[i+1]; t == '/' || t == '*' || t == '[' || t >= 'a' && t <= 'z' || t >= 'A' && t <= 'Z' || t >= '0' && t <= '9' {
				return sighting{http1: true, what: "HTTP"}, true
			}
			return sighting{what: other(b)}, true
		case c >= 'A' && c <= 'Z' || i > 0 && (c == '-' || c == '_'):
			if i >= 20 {
				return sighting{what: other(b)}, true
			}
		default:
			return sighting{what: other(b)}, true
		}
	}
	return sighting{what: other(b)}, false
}

// other says in words what is neither TLS nor HTTP.
func other(b []byte) string {
	s := string(b)
	switch {
	case strings.HasPrefix(s, "SSH-"):
		return "SSH"
	case b[0] == 0x05 && len(b) > 1 && b[1] > 0 && b[1] < 10:
		return "SOCKS5"
	case b[0] == 0x04 && len(b) > 1 && (b[1] == 1 || b[1] == 2):
		return "SOCKS4"
	case strings.HasPrefix(s, "\x13BitTorrent"):
		return "BitTorrent"
	case strings.HasPrefix(s, "EHLO "), strings.HasPrefix(s, "HELO "):
		return "SMTP"
	case strings.HasPrefix(s, "git-"), len(b) > 8 && strings.HasPrefix(s[4:], "git-"):
		return "the git protocol"
	}
	return fmt.Sprintf("something that begins with the bytes %x", b[:min(len(b), 4)])
}
