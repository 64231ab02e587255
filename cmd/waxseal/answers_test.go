package main_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/waxseal/waxseal/internal/testkit"
)

// gatehouse is the real binary, and a registry with an image for each answer.
type gatehouse struct {
	*testing.T
	bin, dir, key        string
	faults               *testkit.Faults
	addr                 string
	pass, deny, no, hang string
}

func newGatehouse(t *testing.T) *gatehouse {
	t.Helper()
	g := &gatehouse{T: t, dir: t.TempDir(), faults: new(testkit.Faults)}
	bin, err := testkit.Binaries(t.Context())
	g.must(err)
	g.bin = filepath.Join(bin, "waxseal")
	reg, err := testkit.NewRegistry(testkit.RegistryOptions{Faults: g.faults})
	g.must(err)
	t.Cleanup(reg.Close)
	g.addr = reg.Addr
	g.pass, g.deny, g.hang = g.push("pass"), g.push("deny"), g.push("hang")
	g.no = g.addr + "/none:v1"
	g.key = filepath.Join(g.dir, "k.pub")
	prov := filepath.Join(g.dir, "prov.json")
	g.must(os.WriteFile(prov, []byte(`{"buildDefinition":{"buildType":"https://ci.example.org/t","externalParameters":{}},"runDetails":{"builder":{"id":"https://ci.example.org/builder"}}}`), 0o644))
	g.run(0, "key", "generate", "--output-prefix", filepath.Join(g.dir, "k"))
	g.run(0, "attest", "--key", filepath.Join(g.dir, "k.key"), "--type", "https://slsa.dev/provenance/v1", "--predicate", prov, g.pass)
	g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/hang/"}))
	return g
}

func (g *gatehouse) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g *gatehouse) push(repo string) string {
	g.Helper()
	img, err := random.Image(100, 1)
	g.must(err)
	ref, err := name.ParseReference(g.addr + "/" + repo + ":v1")
	g.must(err)
	g.must(remote.Write(ref, img, remote.WithContext(g.Context())))
	return ref.String()
}

// env is a home of its own, without anybody's credentials.
func (g *gatehouse) env() []string {
	return append(os.Environ(), "HOME="+g.dir, "COSIGN_PASSWORD=", "WAXSEAL_HOME="+g.dir, "PATH="+filepath.Dir(g.bin)+":"+os.Getenv("PATH"))
}

func (g *gatehouse) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(g.Context(), g.bin, args...)
	cmd.Env = g.env()
	return cmd
}

// run returns what a command prints; it must exit with code.
func (g *gatehouse) run(code int, args ...string) string {
	g.Helper()
	var stderr bytes.Buffer
	cmd := g.command(args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if got := exitCode(err); got != code {
		g.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, out, stderr.String())
	}
	return string(out)
}

// exitCode is -1 for a signal.
func exitCode(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		return -2
	}
	return 0
}

// verdictLine is a line of a stream or its trailer.
type verdictLine struct {
	ID, Image, Digest, Decision string
	Reasons                     []struct{ Code, Message string }
	For                         struct{ Namespace, Use string }
	Done                        *int
	Passed, Denied, Undecided   int
	Complete                    bool
	Earlier                     struct{ Done, Passed, Denied int }
}

func readLines(t *testing.T, out string) (lines []verdictLine, trailer *verdictLine) {
	t.Helper()
	for _, raw := range strings.SplitAfter(out, "\n") {
		if raw == "" {
			continue
		}
		var l verdictLine
		if err := json.Unmarshal([]byte(raw), &l); err != nil || !strings.HasSuffix(raw, "\n") || trailer != nil {
			t.Errorf("a bad line, %v: %q", err, raw)
		}
		if l.Done != nil {
			trailer = &l
			continue
		}
		lines = append(lines, l)
	}
	return lines, trailer
}

// TestTruthTable: an exit code is believed only with lines and a trailer that
// say the same, so every way to end is one of these, and no death looks like an
// answer.
func TestTruthTable(t *testing.T) {
	g := newGatehouse(t)
	for _, c := range []struct {
		name  string
		stdin []string
		args  []string
		code  int
		want  string // decisions in the order of their ids
	}{
		{"all passed", []string{g.pass, g.pass}, nil, 0, "pass pass"},
		{"one denied", []string{g.pass, g.deny, g.no}, nil, 3, "pass deny undecided"},
		{"one undecided", []string{g.no, g.pass}, nil, 4, "undecided pass"},
		{"out of time", []string{g.hang, g.pass}, []string{"--deadline", "400ms"}, 4, "undecided pass"},
		{"a reference that is none", []string{"Not A Reference", g.pass}, nil, 4, "undecided pass"},
		{"one job", []string{g.pass, g.deny}, []string{"--jobs", "1"}, 3, "pass deny"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var in strings.Builder
			for i, image := range c.stdin {
				fmt.Fprintf(&in, "{\"id\":\"%d\",\"image\":%q,\"namespace\":\"prod\",\"use\":\"volume\"}\n\n", i, image)
			}
			cmd := g.command(append(append([]string{"verify", "--stream", "--key", g.key}, c.args...), "-")...)
			cmd.Stdin = strings.NewReader(in.String())
			out, err := cmd.Output()
			lines, trailer := readLines(t, string(out))
			decisions := make([]string, len(c.stdin))
			counts := map[string]int{}
			for _, l := range lines {
				i, _ := strconv.Atoi(l.ID)
				decisions[i] = l.Decision
				counts[l.Decision]++
				if l.Image != c.stdin[i] || (l.Decision == "pass") != (len(l.Reasons) == 0) || l.Decision == "pass" && l.Digest == "" {
					t.Errorf("%+v", l)
				}
				if l.Decision == "pass" && (l.For.Namespace != "prod" || l.For.Use != "volume") {
					t.Errorf("the workload is %+v", l.For)
				}
			}
			if got := strings.Join(decisions, " "); got != c.want || exitCode(err) != c.code {
				t.Errorf("%s, exit code %d; want %s, %d", got, exitCode(err), c.want, c.code)
			}
			if trailer == nil || !trailer.Complete || *trailer.Done != len(lines) || trailer.Passed != counts["pass"] || trailer.Denied != counts["deny"] || trailer.Undecided != counts["undecided"] {
				t.Errorf("trailer %+v", trailer)
			}
		})
	}

	t.Run("one image", func(t *testing.T) {
		for ref, want := range map[string]struct {
			code     int
			decision string
		}{g.pass: {0, "pass"}, g.deny: {3, "deny"}, g.no: {4, "undecided"}} {
			out := g.run(want.code, "verify", "--key", g.key, "--output", "json", ref)
			var l verdictLine
			if err := json.Unmarshal([]byte(out), &l); err != nil || l.Decision != want.decision {
				t.Errorf("%s: %q, %v", ref, l.Decision, err)
			}
		}
	})
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{{"verify", "-"}, {"verify", "--key", g.key, "--jobs", "0", "-"}, {"verify", "--key", g.key, "--stream", g.pass},
			{"verify", "--key", g.key, "--output", "junit", "-"}, {"verify", "--key", g.key, "--explain", "-"}, {"verify", "--nonsense", "-"}} {
			if out := g.run(64, args...); out != "" {
				t.Errorf("%v: %s", args, out)
			}
		}
		// Nothing asked is no pass.
		lines, trailer := readLines(t, g.run(64, "verify", "--key", g.key, "-"))
		if len(lines) != 0 || trailer == nil || *trailer.Done != 0 {
			t.Errorf("%v %+v", lines, trailer)
		}
	})
	t.Run("a full disk", func(t *testing.T) {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		if err != nil {
			testkit.Unavailable(t, "no /dev/full: %v", err)
		}
		defer full.Close()
		for _, args := range [][]string{{"-"}, {"--output", "json", g.pass}, {"--output", "sarif", g.pass}, {g.pass}} {
			cmd := g.command(append([]string{"verify", "--key", g.key}, args...)...)
			cmd.Stdin, cmd.Stdout = strings.NewReader(g.pass+"\n"), full
			if code := exitCode(cmd.Run()); code != 4 {
				t.Errorf("%v: exit code %d", args, code)
			}
		}
	})
	t.Run("no memory", func(t *testing.T) {
		sh := exec.CommandContext(t.Context(), "sh", "-c", `ulimit -v 60000; exec "$0" verify --key "$1" -`, g.bin, g.key)
		sh.Stdin, sh.Env = strings.NewReader(g.pass+"\n"), g.env()
		out, err := sh.Output()
		if _, trailer := readLines(t, string(out)); trailer != nil || exitCode(err) == 0 || exitCode(err) == 3 || exitCode(err) == 64 {
			t.Errorf("exit code %d, trailer %+v", exitCode(err), trailer)
		}
	})
}

// stream is a co-process that has answered one request.
type stream struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (g *gatehouse) stream(args ...string) *stream {
	g.Helper()
	s := &stream{Cmd: g.command(append(append([]string{"verify", "--stream", "--key", g.key}, args...), "-")...)}
	var err error
	s.in, err = s.StdinPipe()
	g.must(err)
	out, err := s.StdoutPipe()
	g.must(err)
	s.out = bufio.NewReader(out)
	g.must(s.Start())
	g.Cleanup(func() { s.Process.Kill(); s.Wait() })
	// It answers while its input stays open.
	s.ask(g, `{"id":"first","image":"`+g.pass+`"}`)
	if l := s.line(g); l.ID != "first" || l.Decision != "pass" {
		g.Fatalf("%+v", l)
	}
	return s
}

func (s *stream) ask(g *gatehouse, line string) {
	g.Helper()
	_, err := io.WriteString(s.in, line+"\n")
	g.must(err)
}

func (s *stream) line(g *gatehouse) verdictLine {
	g.Helper()
	raw, err := s.out.ReadString('\n')
	g.must(err)
	var l verdictLine
	g.must(json.Unmarshal([]byte(raw), &l))
	return l
}

// hangs asks what is not answered, and waits until it is being asked.
func (s *stream) hangs(g *gatehouse) {
	g.Helper()
	g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/hang/"})) // forgets what was seen
	s.ask(g, `{"id":"hangs","image":"`+g.hang+`"}`)
	g.must(g.faults.Await(g.Context(), regexp.MustCompile("/hang/")))
}

func TestStreamEnds(t *testing.T) {
	g := newGatehouse(t)

	t.Run("malformed requests are answered", func(t *testing.T) {
		s := g.stream()
		for _, c := range []struct{ line, id, want string }{
			{`{"id":"a","image":"x","policy":"other.yaml"}`, "a", "policy"},
			{`{"id":"b","image":"x","image":"y"}`, "b", "image"},
			{`{"id":"c","image":`, "c", "reading"},
			{`{"id":"d"}`, "d", "no image"},
			{`{"id":"e","image":"x","use":"sidecar"}`, "e", "sidecar"},
			{`{"id":"f","Image":"x"}`, "f", "Image"},
			{`{"id":"g","image":"` + strings.Repeat("x", 70_000) + `"}`, "g", "longer"},
			{g.pass, "", "JSON"},
			{`{"image":"oci:no/such/layout","id":"h"}`, "h", "not an image of a registry"},
		} {
			s.ask(g, c.line)
			if l := s.line(g); l.Decision != "undecided" || l.ID != c.id || len(l.Reasons) != 1 || !strings.Contains(l.Reasons[0].Message, c.want) {
				t.Errorf("%.60s: %+v", c.line, l)
			}
		}
		g.must(s.in.Close())
		if l := s.line(g); l.Done == nil || *l.Done != 10 || !l.Complete {
			t.Errorf("%+v", l)
		}
		if code := exitCode(s.Wait()); code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("a registry that hangs does not make others late", func(t *testing.T) {
		s := g.stream("--jobs", "1", "--deadline", "1s")
		start := time.Now()
		for i := range 6 {
			s.ask(g, fmt.Sprintf(`{"id":"%d","image":"%s"}`, i, g.hang))
		}
		s.ask(g, `{"id":"last","image":"`+g.pass+`"}`)
		for range 7 {
			if l := s.line(g); l.Decision != "undecided" || l.Reasons[0].Code != "timeout" {
				t.Errorf("%+v", l)
			}
		}
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("the last answer took %s", took)
		}
		g.must(s.in.Close())
		if l := s.line(g); l.Done == nil || *l.Done != 8 || !l.Complete {
			t.Errorf("%+v", l)
		}
		if code := exitCode(s.Wait()); code != 4 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("asked to end", func(t *testing.T) {
		s := g.stream()
		s.hangs(g)
		start := time.Now()
		g.must(s.Process.Signal(syscall.SIGTERM))
		if l := s.line(g); l.ID != "hangs" || l.Decision != "undecided" || l.Reasons[0].Code != "canceled" {
			t.Errorf("%+v", l)
		}
		if l := s.line(g); l.Done == nil || l.Complete || l.Passed != 1 || l.Undecided != 1 {
			t.Errorf("%+v", l)
		}
		if code, took := exitCode(s.Wait()), time.Since(start); code != 4 || took > time.Second {
			t.Errorf("exit code %d after %s", code, took)
		}
	})
	t.Run("one image, asked to end", func(t *testing.T) {
		g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/hang/"}))
		cmd := g.command("verify", "--key", g.key, "--output", "json", g.hang)
		var out bytes.Buffer
		cmd.Stdout = &out
		g.must(cmd.Start())
		g.must(g.faults.Await(t.Context(), regexp.MustCompile("/hang/")))
		g.must(cmd.Process.Signal(syscall.SIGTERM))
		code := exitCode(cmd.Wait())
		var l verdictLine
		if err := json.Unmarshal(out.Bytes(), &l); err != nil || code != 4 || l.Decision != "undecided" || l.Reasons[0].Code != "canceled" {
			t.Errorf("exit code %d, %v: %s", code, err, out.String())
		}
	})
	t.Run("asked to end while nobody reads", func(t *testing.T) {
		s := g.stream()
		go func() {
			for range 20_000 { // more than a pipe holds
				if _, err := io.WriteString(s.in, "{\"id\":\"x\"}\n"); err != nil {
					return
				}
			}
		}()
		s.line(g)
		start := time.Now()
		g.must(s.Process.Signal(syscall.SIGTERM))
		state, err := s.Process.Wait()
		g.must(err)
		if took := time.Since(start); state.ExitCode() != 4 || took > 2*time.Second {
			t.Errorf("exit code %d after %s", state.ExitCode(), took)
		}
	})
	// Deaths: no trailer, and no code that means something.
	for name, end := range map[string]func(*stream){
		"killed":       func(s *stream) { g.must(s.Process.Kill()) },
		"the runtime":  func(s *stream) { g.must(s.Process.Signal(syscall.SIGQUIT)) }, // as a panic ends: exit code 2
		"nobody reads": func(s *stream) { s.ask(g, `{"id":"more","image":"`+g.pass+`"}`) },
	} {
		t.Run(name, func(t *testing.T) {
			s := &stream{Cmd: g.command("verify", "--stream", "--key", g.key, "-")}
			r, w, err := os.Pipe()
			g.must(err)
			s.Stdout = w
			s.in, err = s.StdinPipe()
			g.must(err)
			g.must(s.Start())
			w.Close()
			s.hangs(g)
			if name == "nobody reads" {
				r.Close()
			}
			end(s)
			code := exitCode(s.Wait())
			if name == "the runtime" && code != 2 || name != "the runtime" && code != -1 {
				t.Errorf("exit code %d", code)
			}
			if name != "nobody reads" {
				if out, _ := io.ReadAll(r); len(out) > 0 {
					t.Errorf("%q", out)
				}
			}
		})
	}
}

// TestVerifyStartsNobody: a caller that reads until the end of our output would
// wait for a child that we leave behind. A stream starts none, not even a
// credential helper; verify starts that one, and waits for it.
func TestVerifyStartsNobody(t *testing.T) {
	g := newGatehouse(t)
	started := filepath.Join(g.dir, "started")
	g.must(os.MkdirAll(filepath.Join(g.dir, ".docker"), 0o755))
	g.must(os.WriteFile(filepath.Join(g.dir, ".docker/config.json"), fmt.Appendf(nil, `{"credHelpers":{%q:"trap"}}`, g.addr), 0o644))
	g.must(os.WriteFile(filepath.Join(g.dir, "docker-credential-trap"), []byte("#!/bin/sh\ntouch "+started+"\necho '{\"Username\":\"u\",\"Secret\":\"s\"}'\n"), 0o755))
	withTrap := func(cmd *exec.Cmd) *exec.Cmd {
		cmd.Env = append(cmd.Env, "PATH="+g.dir+":"+os.Getenv("PATH"))
		return cmd
	}
	s := withTrap(g.command("verify", "--stream", "--key", g.key, "-"))
	s.Stdin = strings.NewReader(`{"image":"` + g.pass + `"}`)
	if out, err := s.Output(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("a stream started a credential helper")
	}
	if out, err := withTrap(g.command("verify", "--key", g.key, g.pass)).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if _, err := os.Stat(started); err != nil {
		t.Error("verify did not start the credential helper")
	}

	co := g.stream()
	co.hangs(g)
	if kids := children(t, co.Process.Pid); len(kids) > 0 {
		t.Errorf("children: %v", kids)
	}
}

// children lists the processes whose parent is pid.
func children(t *testing.T, pid int) []string {
	t.Helper()
	var found []string
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		testkit.Unavailable(t, "no /proc")
	}
	for _, file := range stats {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// The name, in brackets, may hold anything.
		after := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
		if len(after) > 1 && after[1] == strconv.Itoa(pid) {
			found = append(found, file)
		}
	}
	return found
}
