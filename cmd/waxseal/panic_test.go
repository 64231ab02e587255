package main

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/cli"
)

// bug is a stream with one: whoever reads, writes or looks up meets it.
type bug struct{ where string }

func (b bug) Write([]byte) (int, error)       { panic(errors.New("writing " + b.where)) }
func (b bug) LookupEnv(string) (string, bool) { panic("looking up " + b.where) }

func streams(out, err io.Writer) cli.Streams {
	return cli.Streams{In: strings.NewReader(""), Out: out, Err: err, LookupEnv: func(string) (string, bool) { return "", false }}
}

// TestAPanicIsNoAnswer brings a bug into everything that a command touches. In
// the command's own goroutine the end is "not decided"; elsewhere, where nobody
// can catch it, it is a death. It is never a pass and never a denial.
func TestAPanicIsNoAnswer(t *testing.T) {
	layout := filepath.Join(t.TempDir(), "layout")
	for name, c := range map[string]struct {
		args []string
		bug  func(*cli.Streams)
	}{
		"printing the version":  {[]string{"version"}, func(s *cli.Streams) { s.Out = bug{"out"} }},
		"printing a verdict":    {[]string{"verify", "--level", "1", "--output", "json", "oci:" + layout}, func(s *cli.Streams) { s.Out = bug{"out"} }},
		"looking up a variable": {[]string{"verify", "--level", "1", "oci:" + layout}, func(s *cli.Streams) { s.LookupEnv = bug{"env"}.LookupEnv }},
	} {
		t.Run(name, func(t *testing.T) {
			var out, said strings.Builder
			s := streams(&out, &said)
			c.bug(&s)
			if code := run(append([]string{"waxseal"}, c.args...), s); code != cli.ExitUndecided {
				t.Errorf("exit code %d, want %d\n%s", code, cli.ExitUndecided, said.String())
			}
			if !strings.Contains(said.String(), "internal error") || !strings.Contains(said.String(), "please report it") {
				t.Errorf("it says %q", said.String())
			}
			if out.Len() > 0 {
				t.Errorf("it printed %q", out.String())
			}
		})
	}
	// Standard error itself may be what panics.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range []string{"goroutine", "stderr", "exit"} {
		child := exec.CommandContext(t.Context(), exe, "-test.run", "^TestDie$")
		child.Env = append(os.Environ(), "WAXSEAL_TEST_DIE="+how)
		out, err := child.CombinedOutput()
		if code := child.ProcessState.ExitCode(); err == nil || code == cli.ExitOK || code == cli.ExitDenied {
			t.Errorf("a panic in %s ended with %d\n%s", how, code, out)
		}
	}
}

// TestDie is no test: TestAPanicIsNoAnswer runs it as a process of its own.
func TestDie(*testing.T) {
	switch os.Getenv("WAXSEAL_TEST_DIE") {
	case "goroutine":
		go func() { panic("elsewhere") }()
		<-make(chan struct{}) // the panic ends all of it
	case "stderr":
		os.Exit(run([]string{"waxseal", "version"}, streams(bug{"out"}, bug{"err"})))
	case "exit":
		os.Exit(run([]string{"waxseal", "version"}, streams(bug{"out"}, os.Stderr)))
	}
}
