package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// snapLen is how much of a packet the watch looks at: the headers, and of an
// ICMP error the packet that it quotes.
const snapLen = 192

// packetSocket sees what a step sends on loopback. Its filter, in the kernel,
// lets through only what may be a refusal; the bytes of connections to the
// gateway or of the step with itself never come here.
type packetSocket struct {
	file *os.File
	fd   int
}

func openPacketSocket() (*packetSocket, error) {
	// Protocol 0: nothing arrives before the filter is in place.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*packetSocket, error) {
		unix.Close(fd)
		return nil, err
	}
	raw, err := bpf.Assemble(watchFilter())
	if err != nil {
		return fail(err)
	}
	prog := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		prog[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}); err != nil {
		return fail(err)
	}
	// Forced beyond rmem_max where that is allowed; a smaller buffer only
	// loses packets earlier, and loss is counted.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<20)
	}
	const all = unix.ETH_P_ALL
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all<<8 | all>>8}); err != nil {
		return fail(err)
	}
	return &packetSocket{file: os.NewFile(uintptr(fd), "packets"), fd: fd}, nil
}

// run hands every packet to see, until stop.
func (p *packetSocket) run(see func([]byte)) {
	buf := make([]byte, snapLen)
	for {
		n, err := p.file.Read(buf)
		if errors.Is(err, syscall.ENETDOWN) {
			continue // reported once, when the interface goes
		}
		if err != nil {
			return
		}
		see(buf[:n])
	}
}

// stop ends run.
// The socket does not block, so it has deadlines.
func (p *packetSocket) stop() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) }

// drain hands over what is still queued, once run has ended.
func (p *packetSocket) drain(see func([]byte)) (lost uint32) {
	buf := make([]byte, snapLen)
	if rc, err := p.file.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) {
			for range 1 << 18 { // more than the queue holds: it ends even if somebody still sends
				n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					break
				}
				see(buf[:n])
			}
			if st, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
				lost = st.Drops
			}
		})
	}
	return lost
}

func (p *packetSocket) close() { p.file.Close() }

// watchFilter is the classic BPF program of the watch. Offsets are from the
// Ethernet header, which loopback has too.
func watchFilter() []bpf.Instruction {
	const (
		l3 = 14
		v6 = l3 + 40
	)
	a := &asm{labels: map[string]int{}}
	a.op(bpf.LoadExtension{Num: bpf.ExtType})
	a.jump(bpf.JumpEqual, unix.PACKET_OUTGOING, "", "drop") // each packet once, as it leaves
	a.op(bpf.LoadAbsolute{Off: 12, Size: 2})
	a.jump(bpf.JumpEqual, unix.ETH_P_IPV6, "ipv6", "")
	a.jump(bpf.JumpEqual, unix.ETH_P_IP, "", "pass") // neither: pass

	a.op(bpf.LoadAbsolute{Off: l3 + 6, Size: 2})
	a.jump(bpf.JumpBitsSet, 0x1fff, "pass", "") // a later fragment has no ports
	a.op(bpf.LoadMemShift{Off: l3})             // X = length of the IP header
	a.op(bpf.LoadAbsolute{Off: l3 + 9, Size: 1})
	a.jump(bpf.JumpEqual, unix.IPPROTO_TCP, "tcp4", "")
	a.jump(bpf.JumpEqual, unix.IPPROTO_UDP, "", "pass")
	a.op(bpf.LoadAbsolute{Off: l3 + 16, Size: 1})
	a.jump(bpf.JumpEqual, 127, "drop", "") // its port-unreachable counts, not the packet
	a.op(bpf.LoadIndirect{Off: l3 + 2, Size: 2})
	a.jump(bpf.JumpEqual, portDNS, "drop", "pass")

	a.label("tcp4")
	a.op(bpf.LoadIndirect{Off: l3 + 13, Size: 1})
	a.jump(bpf.JumpBitsSet, tcpRST, "pass", "")
	a.jump(bpf.JumpBitsSet, tcpACK, "drop", "") // of a connection that exists
	a.op(bpf.LoadAbsolute{Off: l3 + 16, Size: 1})
	a.jump(bpf.JumpEqual, 127, "drop", "") // its reset counts, not the attempt
	a.op(bpf.LoadIndirect{Off: l3 + 2, Size: 2})
	a.jump(bpf.JumpEqual, portDNS, "drop", "pass")

	a.label("ipv6")
	a.op(bpf.LoadAbsolute{Off: l3 + 6, Size: 1})
	a.jump(bpf.JumpEqual, unix.IPPROTO_UDP, "own6", "")
	a.jump(bpf.JumpEqual, unix.IPPROTO_TCP, "", "pass")
	a.op(bpf.LoadAbsolute{Off: v6 + 13, Size: 1})
	a.jump(bpf.JumpBitsSet, tcpRST, "pass", "")
	a.jump(bpf.JumpBitsSet, tcpACK, "drop", "")
	a.label("own6") // to ::1: as to 127.0.0.1
	for i, want := range []uint32{0, 0, 0, 1} {
		a.op(bpf.LoadAbsolute{Off: uint32(l3 + 24 + 4*i), Size: 4})
		if i < 3 {
			a.jump(bpf.JumpEqual, want, "", "pass")
		} else {
			a.jump(bpf.JumpEqual, want, "drop", "pass")
		}
	}
	a.label("pass")
	a.op(bpf.RetConstant{Val: snapLen})
	a.label("drop")
	a.op(bpf.RetConstant{Val: 0})
	return a.assemble()
}

// asm gives jumps of a filter names instead of counts.
type asm struct {
	ins    []bpf.Instruction
	jumps  map[int][2]string
	labels map[string]int
}

func (a *asm) op(i bpf.Instruction) { a.ins = append(a.ins, i) }
func (a *asm) label(name string)    { a.labels[name] = len(a.ins) }
func (a *asm) jump(cond bpf.JumpTest, val uint32, yes, no string) {
	if a.jumps == nil {
		a.jumps = map[int][2]string{}
	}
	a.jumps[len(a.ins)] = [2]string{yes, no}
	a.op(bpf.JumpIf{Cond: cond, Val: val})
}

func (a *asm) assemble() []bpf.Instruction {
	for at, to := range a.jumps {
		skip := func(name string) uint8 {
			if name == "" {
				return 0
			}
			return uint8(a.labels[name] - at - 1)
		}
		j := a.ins[at].(bpf.JumpIf)
		j.SkipTrue, j.SkipFalse = skip(to[0]), skip(to[1])
		a.ins[at] = j
	}
	return a.ins
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// attempt is what one packet says was tried and led nowhere.
type attempt struct {
	kind      string // of attestations.InputRefusal
	addr      netip.Addr
	port      int // 0: none
	what      string
	technique string
}

// parsePacket reads one packet that the filter let through, as it left on
// loopback; ok is false where it tells of no refusal. listening says which
// ports of the step's addresses the gateway serves.
func parsePacket(b []byte, listening func(port int) bool) (at attempt, ok bool) {
	if len(b) < 14 {
		return at, false
	}
	switch et := binary.BigEndian.Uint16(b[12:]); et {
	case unix.ETH_P_IP:
		return parseIPv4(b[14:], listening)
	case unix.ETH_P_IPV6:
		return parseIPv6(b[14:])
	default:
		return attempt{kind: "ip", what: fmt.Sprintf("a frame of ethertype %#04x", et), technique: "T1095"}, true
	}
}

func parseIPv4(b []byte, listening func(int) bool) (at attempt, ok bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return attempt{kind: "ip", what: "a malformed IPv4 packet", technique: "T1095"}, true
	}
	hl := int(b[0]&15) * 4
	if hl < 20 || hl > len(b) {
		return attempt{kind: "ip", what: "a malformed IPv4 packet", technique: "T1095"}, true
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	proto := int(b[9])
	if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		if isOwn(dst) {
			return at, false
		}
		return attempt{kind: "ip", addr: dst, what: "a fragment of " + protocolName(proto)}, true
	}
	return parseTransport(b[hl:], proto, src, dst, listening)
}

func parseIPv6(b []byte) (at attempt, ok bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return attempt{kind: "ip", what: "a malformed IPv6 packet", technique: "T1095"}, true
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	next, rest := int(b[6]), b[40:]
	for range 8 {
		switch next {
		case 0, 43, 60: // hop-by-hop, routing, destination options
			if len(rest) < 8 || len(rest) < (int(rest[1])+1)*8 {
				return attempt{kind: "ip", addr: dst, what: "a malformed IPv6 packet", technique: "T1095"}, true
			}
			next, rest = int(rest[0]), rest[(int(rest[1])+1)*8:]
			continue
		case 44: // fragment
			if len(rest) < 8 {
				return attempt{kind: "ip", addr: dst, what: "a malformed IPv6 packet", technique: "T1095"}, true
			}
			if binary.BigEndian.Uint16(rest[2:])&^7 != 0 {
				if isOwn(dst) {
					return at, false
				}
				return attempt{kind: "ip", addr: dst, what: "a fragment of " + protocolName(int(rest[0]))}, true
			}
			next, rest = int(rest[0]), rest[8:]
			continue
		}
		break
	}
	// The gateway does not listen on IPv6.
	return parseTransport(rest, next, src, dst, func(int) bool { return false })
}

func parseTransport(b []byte, proto int, src, dst netip.Addr, listening func(int) bool) (at attempt, ok bool) {
	short := attempt{kind: "ip", addr: dst, what: "a malformed " + protocolName(proto) + " packet", technique: "T1095"}
	switch proto {
	case unix.IPPROTO_TCP:
		if len(b) < 20 {
			return short, true
		}
		sport, dport := int(binary.BigEndian.Uint16(b)), int(binary.BigEndian.Uint16(b[2:]))
		flags, seq := b[13], binary.BigEndian.Uint32(b[4:])
		switch {
		case flags&tcpRST != 0 && flags&tcpACK != 0:
			// The kernel's answer to a SYN that nobody listens for has sequence 0.
			if seq == 0 && isOwn(src) {
				return tcpAttempt(src, sport, "nobody listens there in the step"), true
			}
			return at, false
		case flags&tcpRST != 0:
			// The kernel's answer to a segment of no connection. One of the
			// gateway's ports may have been closed while the step still sent.
			if isOwn(src) || listening(sport) {
				return at, false
			}
			a := tcpAttempt(src, sport, "a TCP segment of no connection")
			a.technique = "T1095"
			return a, true
		case flags&tcpSYN == 0:
			if flags&tcpACK != 0 || isOwn(dst) {
				return at, false
			}
			a := tcpAttempt(dst, dport, "a TCP segment of no connection")
			a.technique = "T1095"
			return a, true
		case flags&tcpACK != 0 || isOwn(dst) || listening(dport):
			return at, false
		}
		return tcpAttempt(dst, dport, ""), true
	case unix.IPPROTO_UDP:
		if len(b) < 8 {
			return short, true
		}
		if isOwn(dst) {
			return at, false // a port-unreachable follows where nobody listens
		}
		return udpAttempt(dst, int(binary.BigEndian.Uint16(b[2:])), ""), true
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return parseICMP(b, proto, src, dst)
	}
	if isOwn(dst) {
		return at, false
	}
	a := attempt{kind: "ip", addr: dst, what: protocolName(proto), technique: "T1095"}
	switch proto {
	case unix.IPPROTO_GRE, unix.IPPROTO_IPIP, unix.IPPROTO_IPV6, unix.IPPROTO_ESP, unix.IPPROTO_AH:
		a.technique = "T1572"
	}
	return a, true
}

// parseICMP tells the kernel's own errors, which quote a packet of the step,
// from what the step sends.
func parseICMP(b []byte, proto int, src, dst netip.Addr) (at attempt, ok bool) {
	if len(b) < 8 {
		return attempt{kind: "icmp", addr: dst, what: "malformed ICMP", technique: "T1095"}, true
	}
	typ, code := b[0], b[1]
	v6 := proto == unix.IPPROTO_ICMPV6
	if v6 && (typ >= 130 && typ <= 137 || typ == 143) {
		return at, false // multicast listeners and neighbours: the kernel's
	}
	if v6 && typ == 1 || !v6 && typ == 3 {
		if q, qdst, qport, ok := quoted(b[8:], v6); ok && qdst == src {
			if q == unix.IPPROTO_UDP && isOwn(qdst) && (v6 && code == 4 || !v6 && code == 3) {
				return udpAttempt(qdst, qport, "nobody listens there in the step"), true
			}
			return at, false // the packet itself has been counted
		}
	}
	if isOwn(dst) {
		return at, false
	}
	name := fmt.Sprintf("ICMP type %d", typ)
	if v6 {
		name = fmt.Sprintf("ICMPv6 type %d", typ)
	}
	if v6 && typ == 128 || !v6 && typ == 8 {
		name = "ping"
	}
	return attempt{kind: "icmp", addr: dst, what: name, technique: "T1095"}, true
}

// quoted reads the packet inside an ICMP error.
func quoted(b []byte, v6 bool) (proto int, dst netip.Addr, port int, ok bool) {
	if v6 {
		if len(b) < 40 || b[0]>>4 != 6 {
			return 0, dst, 0, false
		}
		proto, dst = int(b[6]), netip.AddrFrom16([16]byte(b[24:40]))
		b = b[40:]
	} else {
		if len(b) < 20 || b[0]>>4 != 4 {
			return 0, dst, 0, false
		}
		hl := int(b[0]&15) * 4
		if hl < 20 || hl > len(b) {
			return 0, dst, 0, false
		}
		proto, dst = int(b[9]), netip.AddrFrom4([4]byte(b[16:20]))
		b = b[hl:]
	}
	if len(b) >= 4 {
		port = int(binary.BigEndian.Uint16(b[2:]))
	}
	return proto, dst, port, true
}

func tcpAttempt(addr netip.Addr, port int, what string) attempt {
	a := attempt{kind: "tcp", addr: addr, port: port, what: what}
	if what == "" {
		a.what = "only HTTP and HTTPS through the gateway may leave a step"
		if addr.Is6() {
			a.what = "IPv6 does not leave a step"
		}
	}
	if port == 853 {
		a.technique = "T1071.004"
	}
	return a
}

func udpAttempt(addr netip.Addr, port int, what string) attempt {
	a := attempt{kind: "udp", addr: addr, port: port, what: what}
	if what == "" {
		a.what = "UDP does not leave a step"
		if port == 443 {
			a.what = "QUIC does not leave a step; HTTPS over TCP does"
		}
	}
	switch port {
	case 500, 1194, 1701, 4500, 51820: // IPsec, OpenVPN, L2TP, WireGuard
		a.technique = "T1572"
	case 53, 853, 5353:
		a.technique = "T1071.004"
	}
	return a
}

func protocolName(proto int) string {
	names := map[int]string{1: "ICMP", 2: "IGMP", 4: "IPIP", 6: "TCP", 17: "UDP", 41: "IPv6 in IP", 47: "GRE", 50: "ESP", 51: "AH", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite"}
	if n := names[proto]; n != "" {
		return n
	}
	return fmt.Sprintf("IP protocol %d", proto)
}

// isOwn reports whether an address is the step itself by any reading, not just
// because every address is.
func isOwn(a netip.Addr) bool {
	return a.IsLoopback() || a == netip.MustParseAddr(ownAddr)
}

// watch counts refusals of the packets of a namespace.
type watch struct {
	sock *packetSocket
	done chan struct{}
}

func startWatch(sock *packetSocket, see func([]byte)) *watch {
	w := &watch{sock: sock, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		sock.run(see)
	}()
	return w
}

// end stops counting once all that was sent so far is counted, and returns how
// many packets were lost.
func (w *watch) end(see func([]byte)) uint32 {
	w.sock.stop()
	<-w.done
	return w.sock.drain(see)
}
