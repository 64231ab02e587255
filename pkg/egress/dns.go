package egress

import (
	"encoding/binary"
	"errors"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/ipv4"

	"github.com/waxseal/waxseal/pkg/attest"
)

// names is the step's phone book: every name has an address of its own in
// 198.18.0.0/15, so that a connection or a refused packet can be called by the
// name that the step meant.
type names struct {
	mu     sync.Mutex
	byName map[string]netip.Addr
	byAddr map[netip.Addr]string
	full   bool
}

const (
	firstName = 198<<24 | 18<<16 | 2            // 198.18.0.2
	sharedOne = 198<<24 | 19<<16 | 255<<8 | 254 // of all names beyond the bound
)

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, n)))
}

// isNameAddr reports whether an address is one that stands for names.
func isNameAddr(a netip.Addr) bool {
	return netip.PrefixFrom(addr4(firstName), 15).Masked().Contains(a)
}

func newNames() *names {
	return &names{byName: map[string]netip.Addr{}, byAddr: map[netip.Addr]string{}}
}

// addrOf gives a name its address.
func (n *names) addrOf(name string) netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a, ok := n.byName[name]; ok {
		return a
	}
	if len(n.byName) >= attest.MaxNames {
		n.full = true
		return addr4(sharedOne)
	}
	a := addr4(firstName + uint32(len(n.byName)))
	n.byName[name], n.byAddr[a] = a, name
	return a
}

// nameOf returns the name that was given an address, "" if none was.
func (n *names) nameOf(a netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byAddr[a]
}

// all returns the names asked for, sorted, and whether there were more.
func (n *names) all() ([]string, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []string
	for name := range n.byName {
		out = append(out, name)
	}
	slices.Sort(out)
	return out, n.full
}

// isLocalName reports whether a name means the step itself.
func isLocalName(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || name == "localhost.localdomain"
}

// suspicion is what a DNS question shows of a tunnel: "" is none. Types that
// no build tool asks for but tunnels do, and labels that hold data.
func suspicion(name string, qtype uint16) string {
	switch qtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeHTTPS, dns.TypeSVCB, dns.TypePTR, dns.TypeSOA, dns.TypeNS:
	default:
		return "no such record leaves the step's own name server"
	}
	if strings.HasSuffix(name, ".arpa") {
		return ""
	}
	if len(name) > 150 {
		return "a name as long as this carries data"
	}
	for label := range strings.SplitSeq(name, ".") {
		if len(label) >= 30 && !strings.Contains(label, "-") && entropy(label) > 3.4 {
			return "a label like this carries data"
		}
	}
	return ""
}

// entropy is of the bytes of s, in bits.
func entropy(s string) float64 {
	var count [256]int
	for i := range len(s) {
		count[s[i]]++
	}
	h := 0.0
	for _, c := range count {
		if c > 0 {
			p := float64(c) / float64(len(s))
			h -= p * math.Log2(p)
		}
	}
	return h
}

// answerDNS answers one message; nil answers nothing.
func (s *Step) answerDNS(raw []byte) []byte {
	var q dns.Msg
	if err := q.Unpack(raw); err != nil || q.Response || len(q.Question) == 0 {
		s.rec.refuse(refusal{kind: "dns", dest: "port 53", reason: "what was sent to the name server is no question", technique: "T1071.004"})
		return nil
	}
	var r dns.Msg
	r.SetReply(&q)
	r.RecursionAvailable = true
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		r.Rcode = dns.RcodeNotImplemented
	} else {
		s.question(q.Question[0], &r)
	}
	if o := q.IsEdns0(); o != nil {
		r.SetEdns0(1232, false)
	}
	out, err := r.Pack()
	if err != nil {
		return nil
	}
	return out
}

func (s *Step) question(q dns.Question, r *dns.Msg) {
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	hdr := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
	if isLocalName(name) {
		if q.Qtype == dns.TypeA {
			r.Answer = append(r.Answer, &dns.A{Hdr: hdr, A: net.IPv4(127, 0, 0, 1)})
		}
		return
	}
	typ := dns.TypeToString[q.Qtype]
	if typ == "" {
		typ = dns.Type(q.Qtype).String()
	}
	if why := suspicion(name, q.Qtype); why != "" {
		s.rec.refuse(refusal{kind: "dns", dest: name + " " + typ, reason: why, technique: "T1071.004"})
	} else if !s.listens() {
		s.rec.refuse(refusal{kind: "dns", dest: name + " " + typ, reason: "the step has no network"})
	}
	clean, err := cleanHost(name)
	if err != nil {
		s.names.addrOf(printable(clip(s.needles.scrub(name)))) // no host, and logged all the same
		return
	}
	if ip, ok := s.hosts[clean]; ok && q.Qtype == dns.TypeA {
		if ip.Is4() {
			r.Answer = append(r.Answer, &dns.A{Hdr: hdr, A: ip.AsSlice()})
		}
		return
	}
	a := s.names.addrOf(clean)
	if strings.HasSuffix(clean, ".arpa") {
		if q.Qtype == dns.TypePTR {
			r.Rcode = dns.RcodeNameError
		}
		return
	}
	if q.Qtype == dns.TypeA && q.Qclass == dns.ClassINET {
		r.Answer = append(r.Answer, &dns.A{Hdr: hdr, A: a.AsSlice()})
	}
}

// serveUDP answers questions until the socket is closed. Any address is the
// name server's, so the answer leaves from the one that was asked.
func (s *Step) serveUDP(c *net.UDPConn) {
	p := ipv4.NewPacketConn(c)
	_ = p.SetControlMessage(ipv4.FlagDst, true)
	buf := make([]byte, 4096)
	for {
		n, cm, from, err := p.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
			continue
		}
		out := s.answerDNS(buf[:n])
		if out == nil {
			continue
		}
		var via *ipv4.ControlMessage
		if cm != nil {
			via = &ipv4.ControlMessage{Src: cm.Dst}
		}
		_, _ = p.WriteTo(out, via, from)
	}
}

// serveDNSConn answers the questions of one TCP connection.
func (s *Step) serveDNSConn(c net.Conn) {
	defer c.Close()
	var size [2]byte
	for {
		if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			return
		}
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		msg := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, msg); err != nil {
			s.rec.refuse(refusal{kind: "dns", dest: "port 53", reason: "what was sent to the name server is no question", technique: "T1071.004"})
			return
		}
		out := s.answerDNS(msg)
		if out == nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
	}
}
