package testkit

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/waxseal/waxseal/attestations"
)

// TestAttacks builds every hostile Dockerfile of testdata/attack and holds what
// came of it against the file expect beside it, whose lines are "KEY: VALUE":
//
//	base: NAME            the base image, tools without it
//	record: yes           a build in mode record goes first, of record.Dockerfile where there is one
//	flags: TEXT           more flags for the build; files are in its working folder
//	tmpfs: SIZE           the engine's cache is a disk of that size
//	exit: N               the exit code
//	verdict: RE           the image's
//	refusal: KIND RE [T]  a refusal of that kind (* for any), destination and technique
//	request: RE           some "METHOD URI STATUS" of a step
//	withheld: RE          some "METHOD URI" of a step whose answer was not kept
//	name: RE              some name that a step asked for
//	upstream: RE          some request that the upstream saw
//	stderr: RE            a line of the output
//	last: RE              its line about the inputs
//	recorded: RE N        N different bodies of such requests in the first build
//	absent: PATH          is not in the image
//	most: SIZE            the record is no larger
//	hidden: yes           the secret is in nothing that was written
//
// With a "!" before the key it must not be so. HOST and PORT stand for the
// canary's. Whatever a Dockerfile tries, no byte may have reached the canary,
// every request that reached the upstream must stand in the record, nothing may
// be left running or mounted, the host must be as it was, and the store whole. A
// step that gets through says BREACH.
func TestAttacks(t *testing.T) {
	if testing.Short() {
		t.Skip("left out of a short run")
	}
	if err := CanBuild(); err != nil {
		Unavailable(t, "%v", err)
	}
	dirs, err := filepath.Glob("../../testdata/attack/*/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	if len(dirs) < 25 {
		t.Fatalf("%d hostile Dockerfiles, want at least 25", len(dirs))
	}
	f := newField(t)
	for _, dockerfile := range dirs {
		t.Run(filepath.Base(filepath.Dir(dockerfile)), func(t *testing.T) { f.attack(t, filepath.Dir(dockerfile)) })
	}
}

// field is what all attacks share: the programs, one cache, one store, and what
// watches.
type field struct {
	dir, bin, host string
	token, secret  string
	bases          map[string]string
	flags          []string
	upstream       *Upstream
	faults         *Faults
	canary         *canary // nothing may reach it
	tunnel         *canary // the gateway may, the token may not
	before         string  // the host
}

func newField(t *testing.T) *field {
	bin, err := Shipped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := &field{dir: t.TempDir(), bin: filepath.Join(bin, "waxseal"), faults: new(Faults), bases: map[string]string{}}
	f.token, f.secret = strings.ToLower(rand.Text()), "canary-secret-"+rand.Text()
	for _, name := range []string{"tools", "tiny"} {
		if f.bases[name], err = Base(t.Context(), name); err != nil {
			Unavailable(t, "%v", err)
		}
	}
	ca := filepath.Join(f.dir, "ca.pem")
	f.upstream, err = NewUpstream(UpstreamOptions{Names: []string{"good.test", "evil.test"}, CAFile: ca, Faults: f.faults})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.upstream.Close)
	f.canary, f.tunnel = new(canary), new(canary)
	f.canary.listen(t, "tcp4", "0.0.0.0:0", nil)
	port := f.canary.port
	if probe, err := net.Listen("tcp6", "[::1]:0"); err == nil { // a machine may have no IPv6
		probe.Close()
		f.canary.listen(t, "tcp6", "[::1]:"+port, nil)
	}
	f.canary.listen(t, "unix", "@waxseal-canary", nil)
	f.canary.receive(t, "0.0.0.0:"+port)
	cert, authority, err := certify([]string{"tunnel.test"})
	if err != nil {
		t.Fatal(err)
	}
	more, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ca, append(more, authority...), 0o644); err != nil {
		t.Fatal(err)
	}
	f.tunnel.listen(t, "tcp", "127.0.0.1:0", nil)
	plain := f.tunnel.port
	f.tunnel.listen(t, "tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	f.flags = append(slices.Clone(f.upstream.Flags), "--upstream", "tunnel.test:80=127.0.0.1:"+plain, "--upstream", "tunnel.test:443=127.0.0.1:"+f.tunnel.port)
	if f.host, err = ownAddress(); err != nil {
		t.Fatal(err)
	}
	f.before = hostState(t)
	return f
}

// ownAddress is the address by which others know this machine; a machine
// without one has loopback alone.
func ownAddress() (string, error) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() && ip.IP.To4() != nil {
			return ip.IP.String(), nil
		}
	}
	return "127.0.0.1", nil
}

// hostState is what an escape would change.
func hostState(t *testing.T) string {
	var b strings.Builder
	for _, file := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/self/net/route", "/proc/sys/net/ipv4/ip_forward", "/etc/resolv.conf", "/etc/hosts"} {
		raw, err := os.ReadFile(file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s: %s\n", file, raw)
	}
	return b.String()
}

// canary listens and keeps what it hears.
type canary struct {
	port  string
	mu    sync.Mutex
	heard []string
}

func (c *canary) hear(from string, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.heard) < 1000 {
		c.heard = append(c.heard, from+": "+string(b))
	}
}

// take returns what it heard since it was last asked.
func (c *canary) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.heard
	c.heard = nil
	return heard
}

// listen answers an upgrade with 101 and everything else with itself.
func (c *canary) listen(t *testing.T, network, addr string, secure *tls.Config) {
	t.Helper()
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	if _, port, err := net.SplitHostPort(ln.Addr().String()); err == nil {
		c.port = port
	}
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			c.hear(addr, []byte("a connection"))
			go c.talk(&tapped{conn, c, addr}, addr, secure)
		}
	}()
}

func (c *canary) talk(conn net.Conn, addr string, secure *tls.Config) {
	defer conn.Close()
	if secure != nil {
		conn = tls.Server(conn, secure)
	}
	for b := make([]byte, 64<<10); ; {
		n, err := conn.Read(b)
		if err != nil {
			return
		}
		c.hear(addr+" inside", b[:n])
		if bytes.Contains(bytes.ToLower(b[:n]), []byte("upgrade: websocket")) {
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			continue
		}
		conn.Write(append([]byte("canary "), b[:n]...))
	}
}

func (c *canary) receive(t *testing.T, addr string) {
	t.Helper()
	socket, err := net.ListenPacket("udp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	go func() {
		for b := make([]byte, 64<<10); ; {
			n, from, err := socket.ReadFrom(b)
			if err != nil {
				return
			}
			c.hear(addr, b[:n])
			socket.WriteTo([]byte("canary"), from)
		}
	}()
}

// tapped keeps what comes before TLS makes sense of it.
type tapped struct {
	net.Conn
	canary *canary
	addr   string
}

func (t *tapped) Read(b []byte) (int, error) {
	n, err := t.Conn.Read(b)
	t.canary.hear(t.addr, b[:n])
	return n, err
}

// expectation is one line of a file expect.
type expectation struct {
	key, value string
	not        bool
}

func readExpect(path string, replace *strings.Replacer) (all []expectation, single map[string]string, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	single = map[string]string{"base": "tools", "exit": "0"}
	for line := range strings.Lines(string(raw)) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			return nil, nil, fmt.Errorf("%s: no KEY: VALUE in %q", path, line)
		}
		name, not := strings.CutPrefix(key, "!")
		switch name {
		case "base", "record", "flags", "tmpfs", "exit", "hidden", "most", "absent":
			single[name] = value
		case "verdict", "refusal", "request", "withheld", "name", "upstream", "stderr", "last", "recorded":
			all = append(all, expectation{name, replace.Replace(value), not})
		default:
			return nil, nil, fmt.Errorf("%s: unknown key %q", path, key)
		}
	}
	return all, single, nil
}

func (f *field) attack(t *testing.T, from string) {
	replace := strings.NewReplacer("HOST", regexp.QuoteMeta(f.host), "PORT", f.canary.port)
	wants, conf, err := readExpect(filepath.Join(from, "expect"), replace)
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	context := filepath.Join(work, "context")
	if err := os.CopyFS(context, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := f.faults.Set(Fault{Kind: "cut", Match: "/cut$"}, Fault{Kind: "hang", Match: "/hang$"}); err != nil {
		t.Fatal(err)
	}
	var first *attestations.Inputs
	if conf["record"] == "yes" {
		file := filepath.Join(context, "record.Dockerfile")
		if _, err := os.Stat(file); err != nil {
			file = filepath.Join(context, "Dockerfile")
		}
		code, out := f.build(t, work, conf, "--file", file, "--out", filepath.Join(work, "first"))
		if code != 0 {
			t.Fatalf("the build that records: exit code %d\n%s", code, out)
		}
		first = f.record(t, filepath.Join(work, "first"))
		if err := f.faults.Set(); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(work, "out")
	args := append([]string{"--file", filepath.Join(context, "Dockerfile"), "--out", out}, strings.Fields(conf["flags"])...)
	code, said := f.build(t, work, conf, args...)
	if strconv.Itoa(code) != conf["exit"] {
		t.Errorf("exit code %d, want %s", code, conf["exit"])
	}
	if strings.Contains(said, "BREACH") {
		t.Error("a step got through")
	}
	var record *attestations.Inputs
	if code == 0 {
		record = f.record(t, out)
	}
	for _, want := range wants {
		if problem := f.check(want, record, first, said); problem != "" {
			t.Errorf("%s: %s: %s", want.key, want.value, problem)
		}
	}
	if record != nil && conf["hidden"] == "" {
		// What the upstream saw and the record does not have came another way. A
		// request that was never answered is a refusal, by its host.
		recorded, refused := of(record, "request", "", ""), of(record, "refusal", "http", "")
		for _, seen := range f.faults.Seen() {
			host := strings.Split(seen, "/")[2]
			if !slices.ContainsFunc(recorded, func(r string) bool { return strings.HasPrefix(r, seen+" ") }) &&
				!slices.ContainsFunc(refused, func(r string) bool { return strings.HasPrefix(r, host+":") }) {
				t.Errorf("the upstream saw %q, which is not in the record", seen)
			}
		}
	}
	f.checkRest(t, conf, work, out)
	f.checkHost(t, work)
	if t.Failed() {
		t.Logf("the build said:\n%s", said)
		if record != nil {
			raw, err := json.MarshalIndent(record.Steps, "", " ")
			t.Logf("its record, %v:\n%.8000s", err, raw)
		}
		t.Logf("the upstream saw:\n%s", strings.Join(f.faults.Seen(), "\n"))
	}
}

// build runs waxseal on the context in work, with a disk of its own for the
// cache where the attack asks for it.
func (f *field) build(t *testing.T, work string, conf map[string]string, args ...string) (code int, said string) {
	t.Helper()
	args = append([]string{
		f.bin, "build", "--unsigned", "--progress", "plain", "--sbom", "none", "--tag", "attack:1",
		"--build-context", "base=oci:" + f.bases[conf["base"]], "--lock", filepath.Join(work, "waxseal.lock"), "--store", filepath.Join(f.dir, "store"),
		"--build-arg", "HOST=" + f.host, "--build-arg", "PORT=" + f.canary.port, "--build-arg", "TOKEN=" + f.token,
	}, slices.Concat(f.flags, args, []string{filepath.Join(work, "context")})...)
	cache := filepath.Join(f.dir, "cache")
	if size := conf["tmpfs"]; size != "" {
		cache = filepath.Join(work, "cache")
		if err := os.Mkdir(cache, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append([]string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs -o size="$0" none "$1" && shift && exec "$@"`, size, cache}, args...)
	}
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Dir = work
	cmd.Env = append(os.Environ(), "HOME="+f.dir, "WAXSEAL_HOME="+filepath.Join(f.dir, "home"), "WAXSEAL_CACHE="+cache, "COSIGN_PASSWORD="+f.secret, "SECRET="+f.secret)
	out, err := cmd.CombinedOutput()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// record reads the inputs statement of a build.
func (f *field) record(t *testing.T, out string) *attestations.Inputs {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(out, "statements", "inputs-*.json"))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d inputs statements in %q, want one", len(found), out)
	}
	var statement struct{ Predicate attestations.Inputs }
	if err := readJSON(found[0], &statement); err != nil {
		t.Fatal(err)
	}
	return &statement.Predicate
}

// check returns what is wrong, "" for nothing.
func (f *field) check(want expectation, record, first *attestations.Inputs, said string) string {
	kind, pattern := "", want.value
	technique := ""
	switch fields := strings.Fields(want.value); want.key {
	case "refusal":
		kind, pattern = fields[0], fields[1]
		if len(fields) == 3 {
			technique = fields[2]
		}
	case "recorded":
		kind = fields[len(fields)-1]
		pattern = strings.TrimSuffix(want.value, " "+kind)
	}
	re, err := regexp.Compile("(?m)" + pattern)
	if err != nil {
		return err.Error()
	}
	var found []string
	switch want.key {
	case "stderr":
		found = []string{said}
	case "last":
		if i := strings.LastIndex(said, "\ninputs"); i >= 0 {
			found = []string{said[i:]}
		}
	case "upstream":
		found = f.faults.Seen()
	case "recorded":
		bodies := map[string]bool{}
		for _, step := range first.Steps {
			for _, r := range step.Requests {
				if re.MatchString(fmt.Sprintf("%s %s %d", r.Method, r.URI, r.Status)) {
					bodies[r.Digest] = true
				}
			}
		}
		if strconv.Itoa(len(bodies)) != kind {
			return fmt.Sprintf("there are %d", len(bodies))
		}
		return ""
	default:
		if record == nil {
			return "there is no record"
		}
		found = of(record, want.key, kind, technique)
	}
	if slices.ContainsFunc(found, re.MatchString) == want.not {
		return fmt.Sprintf("not so in %.2000q", found)
	}
	return ""
}

// of lists what of a record an expectation is about.
func of(record *attestations.Inputs, key, kind, technique string) (found []string) {
	if key == "verdict" {
		return []string{record.Verdict}
	}
	for _, step := range record.Steps {
		switch key {
		case "name":
			found = append(found, step.Names...)
		case "request":
			for _, r := range step.Requests {
				found = append(found, fmt.Sprintf("%s %s %d", r.Method, r.URI, r.Status))
			}
		case "withheld":
			for _, r := range step.Requests {
				if r.Withheld {
					found = append(found, r.Method+" "+r.URI)
				}
			}
		case "refusal":
			for _, r := range step.Refusals {
				if (kind == "*" || kind == r.Kind) && (technique == "" || technique == r.Technique) && r.Count > 0 {
					found = append(found, r.Destination)
				}
			}
		}
	}
	return found
}

func (f *field) checkRest(t *testing.T, conf map[string]string, work, out string) {
	t.Helper()
	if most := conf["most"]; most != "" {
		for _, file := range []string{"statements/inputs-linux-*.json", "statements/provenance-linux-*.json"} {
			found, _ := filepath.Glob(filepath.Join(out, file))
			for _, path := range found {
				info, err := os.Stat(path)
				if err != nil || info.Size() > sizeOf(most) {
					t.Errorf("%s: %v, %d bytes, at most %s", path, err, info.Size(), most)
				}
			}
		}
	}
	if path := conf["absent"]; path != "" {
		img, err := taggedImage(filepath.Join(out, "image"), "1")
		if err != nil {
			t.Fatal(err)
		}
		files := mutate.Extract(img)
		defer files.Close()
		raw, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(raw, []byte(path)) {
			t.Errorf("%s is in the image", path)
		}
	}
	if conf["hidden"] == "yes" {
		grep := exec.Command("grep", "--recursive", "--files-with-matches", "--binary-files=text", "--fixed-strings", f.secret, work, filepath.Join(f.dir, "store"))
		// Its exit code says whether it found something.
		if found, _ := grep.Output(); len(found) > 0 {
			t.Errorf("the secret is in\n%s", found)
		}
	}
}

// checkHost looks at everything that no attack may have touched.
func (f *field) checkHost(t *testing.T, work string) {
	t.Helper()
	if heard := f.canary.take(); len(heard) > 0 {
		t.Errorf("the canary heard %q", heard)
	}
	for _, text := range f.tunnel.take() {
		if strings.Contains(text, f.token) || strings.Contains(text, "SSH-") {
			t.Errorf("through the tunnel came %q", text)
		}
	}
	for _, text := range []string{f.token, work, filepath.Join(f.dir, "cache")} {
		if left := awaitGone(text); len(left) > 0 {
			t.Errorf("still there: %s", strings.Join(left, "\n"))
		}
	}
	if now := hostState(t); now != f.before {
		t.Errorf("the host changed:\n%s\nwas\n%s", now, f.before)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "store")); err != nil {
		return
	}
	verify := exec.Command(f.bin, "store", "verify", "--store", filepath.Join(f.dir, "store"))
	if out, err := verify.CombinedOutput(); err != nil {
		t.Errorf("the store: %v\n%s", err, out)
	}
}
