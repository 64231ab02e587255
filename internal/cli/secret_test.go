package cli

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/internal/testkit"
)

func echoes(t *testing.T, tty *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func TestAskSecret(t *testing.T) {
	for name, c := range map[string]struct {
		keys string
		want string
		err  string
	}{
		"typed": {"correct horse\n", "correct horse", ""}, "empty": {"\n", "", ""}, "corrected": {"ab\x7fc\n", "ac", ""},
		"end of input": {"\x04", "", "nothing was typed"}, "interrupted": {"", "", "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			person, its := testkit.Terminal(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var asked bytes.Buffer
			s := &Streams{In: its, Err: &asked}
			type answer struct {
				secret []byte
				err    error
			}
			got := make(chan answer, 1)
			go func() {
				secret, err := askSecret(ctx, s, "the word", "Word: ", "say it")
				got <- answer{secret, err}
			}()
			for range 500 {
				if !echoes(t, its) {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			if c.keys == "" {
				cancel()
			} else if _, err := person.WriteString(c.keys); err != nil {
				t.Fatal(err)
			}
			a := <-got
			if string(a.secret) != c.want || (a.err == nil) != (c.err == "") || a.err != nil && !strings.Contains(a.err.Error(), c.err) {
				t.Errorf("%q, %v", a.secret, a.err)
			}
			if name == "interrupted" && !errors.Is(a.err, context.Canceled) {
				t.Errorf("%v is no interrupt", a.err)
			}
			if asked.String() != "Word: \n" {
				t.Errorf("asked %q", asked.String())
			}
			if !echoes(t, its) {
				t.Error("the terminal was left without an echo")
			}
			// What the terminal shows comes out at the person's end.
			if _, err := its.WriteString("end"); err != nil {
				t.Fatal(err)
			}
			shown := make([]byte, 100)
			n, err := person.Read(shown)
			if err != nil || strings.Contains(string(shown[:n]), "o") {
				t.Errorf("the terminal showed %q, %v", shown[:n], err)
			}
		})
	}
	_, err := askSecret(t.Context(), &Streams{In: strings.NewReader("x\n")}, "the word", "Word: ", "say it")
	var way hinter
	if err == nil || !errors.As(err, &way) || way.Hint() != "say it" {
		t.Errorf("without a terminal: %v", err)
	}
}

// A variable that was taken is nowhere in the environment, and overwritten where
// it was.
func TestTakeEnv(t *testing.T) {
	t.Setenv("TAKEN", "the secret")
	value := os.Getenv("TAKEN") // what Go has of it
	got, ok := takeEnv("TAKEN")
	if !ok || string(got) != "the secret" {
		t.Errorf("%q, %t", got, ok)
	}
	if _, there := os.LookupEnv("TAKEN"); there || value != "**********" {
		t.Errorf("it is still there: %t, %q", there, value)
	}
	if _, ok := takeEnv("TAKEN"); ok {
		t.Error("taken twice")
	}
	from, until := environBlock()
	if until <= from {
		t.Error("the kernel's copy was not found")
	}
}

// A key is tried when nothing waits for it yet: others go first. Nobody else of the
// process does.
func TestGiveWay(t *testing.T) {
	before, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	var after int
	done := make(chan struct{})
	go func() { // whose thread ends with it
		defer close(done)
		giveWay()
		after, err = unix.Getpriority(unix.PRIO_PROCESS, 0)
	}()
	<-done
	if err != nil || after >= before {
		t.Errorf("the system call says %d before and %d after (%v), want less", before, after, err)
	}
	if now, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err != nil || now != before {
		t.Errorf("another thread has %d, want %d as before (%v)", now, before, err)
	}
}
