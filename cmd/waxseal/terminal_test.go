package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

// person sits at a terminal, where a shell runs.
type person struct {
	t      *testing.T
	screen *os.File
	said   chan []byte
	seen   string
}

// sitDown starts a shell on a terminal of its own.
func sitDown(t *testing.T, shell *exec.Cmd) *person {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shell.Stdin, shell.Stdout, shell.Stderr = line, line, line
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	line.Close()
	p := &person{t: t, screen: screen, said: make(chan []byte, 64)}
	go func() {
		defer close(p.said)
		for {
			b := make([]byte, 4096)
			n, err := screen.Read(b)
			if err != nil {
				return
			}
			p.said <- b[:n]
		}
	}()
	t.Cleanup(func() {
		shell.Process.Kill()
		shell.Wait()
		screen.Close()
	})
	return p
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := p.screen.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// sees waits for what matches to appear, after what was seen before.
func (p *person) sees(pattern string) {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for {
		if at := re.FindStringIndex(p.seen); at != nil {
			p.seen = p.seen[at[1]:]
			return
		}
		select {
		case b, ok := <-p.said:
			if !ok {
				p.t.Fatalf("the shell has ended, and %q was not there: %q", pattern, p.seen)
			}
			p.seen += string(b)
		case <-late.C:
			p.t.Fatalf("%q does not appear; there is %q", pattern, p.seen)
		}
	}
}

// At a terminal a wrapped command is what it is without waxseal: Ctrl-Z gives
// the shell its prompt, fg has it go on, it hears of another size, Ctrl-C ends
// it, and a terminal that it has left in disorder is put in order.
func TestRunAtATerminal(t *testing.T) {
	bin, err := testkit.Binaries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// They wait without a child: a shell that is stopped while it starts one is not
	// stopped before that one is another program, which the stopped one never is.
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"job.sh":   "exec 3<>" + gate + "\ntrap 'echo on again' CONT\ntrap 'echo resized to $(stty size)' WINCH\necho ready\nuntil read -r line <&3; do :; done\necho on >made\nexit 7\n",
		"raw.sh":   "stty -echo -icanon\necho disordered\nkill -KILL $$\n",
		"quiet.sh": "stty -echo\necho quiet >made\n",
		"long.sh":  "echo long\nexec sleep 600\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	shell := exec.CommandContext(t.Context(), "sh", "-i")
	shell.Dir = dir
	shell.Env = []string{"PATH=" + bin + ":" + os.Getenv("PATH"), "HOME=" + filepath.Join(dir, "home"), "PS1=prompt> ", "TERM=dumb", "TMPDIR=/tmp"}
	p := sitDown(t, shell)
	const run = "waxseal run --unsigned --out evidence --artifact made -- sh "
	p.sees("prompt> ")

	p.types(run + "job.sh\n")
	p.sees(`ready\r`)
	p.types("\x1a")
	p.sees(`(?s)Stopped.*prompt> `)
	p.types("echo free\n")
	p.sees(`\nfree`)
	p.types("fg\n")
	p.sees(`\non again`)
	if err := unix.IoctlSetWinsize(int(p.screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 31, Col: 117}); err != nil {
		t.Fatal(err)
	}
	p.sees("resized to 31 117")
	pass, err := os.OpenFile(gate, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err == nil {
		_, err = pass.WriteString("go\n")
		pass.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.sees("exit code 7")
	p.sees("prompt> ")
	p.types("echo code=$?\n")
	p.sees("code=7")

	p.types(run + "long.sh\n")
	p.sees(`long\r`)
	p.types("\x03")
	p.sees("prompt> ")
	p.types("echo code=$?\n")
	p.sees("code=130")

	settings := func() unix.Termios {
		got, err := unix.IoctlGetTermios(int(p.screen.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		return *got
	}
	before := settings()
	p.types(run + "raw.sh\n")
	p.sees(`disordered\r`)
	p.sees("prompt> ")
	if after := settings(); after != before {
		t.Errorf("a killed command leaves the terminal with %+v, before %+v", after, before)
	}
	// What a command has set on purpose stays.
	p.types(run + "quiet.sh\n")
	p.sees(`sealed made`)
	p.sees("prompt> ")
	if settings().Lflag&unix.ECHO != 0 {
		t.Error("what a command has set is not kept")
	}
}
