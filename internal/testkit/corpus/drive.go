package corpus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/waxseal/waxseal/internal/cli"
)

// ExitSkip is what a program says that cannot be asked such a case.
const ExitSkip = 69

// errSkip is that as an error.
var errSkip = errors.New("it cannot be asked this")

// Exit is the exit code of a decision, in the protocol as in waxseal.
func Exit(decision string) int {
	return map[string]int{Pass: cli.ExitOK, Deny: cli.ExitDenied, Undecided: cli.ExitUndecided, Usage: cli.ExitUsage}[decision]
}

// Entry is a program that speaks the protocol of testdata/corpus/README.md.
func Entry(path string) Verifier {
	return func(ctx context.Context, c *Case) (*Answer, error) {
		dir, err := filepath.Abs(c.Dir)
		if err != nil {
			return nil, err
		}
		cmd := exec.CommandContext(ctx, path, "verify", "--case", dir)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
		var ended *exec.ExitError
		if err != nil && (!errors.As(err, &ended) || !ended.Exited()) {
			return nil, err
		}
		code := cmd.ProcessState.ExitCode()
		if code == ExitSkip {
			return nil, errSkip
		}
		a := new(Answer)
		if err := json.Unmarshal(stdout.Bytes(), a); err != nil {
			return nil, fmt.Errorf("exit code %d and no answer: %s", code, clip(stderr.String()))
		}
		if want, known := map[string]int{Pass: 0, Deny: 3, Undecided: 4, Usage: 64}[a.Decision]; !known || want != code {
			return nil, fmt.Errorf("exit code %d with the decision %q", code, a.Decision)
		}
		return a, nil
	}
}

func clip(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return s
}

// tally is what came of a class of cases.
type tally struct {
	asked, skipped, right, passed, refused, otherwise int
}

// Report puts every case to a verifier and prints, class by class, how often it
// was right, and each case where it was not.
func Report(ctx context.Context, w io.Writer, cases []*Case, v Verifier) error {
	sum := map[string]*tally{}
	var classes, wrong []string
	for _, c := range cases {
		t := sum[c.Class()]
		if t == nil {
			t = new(tally)
			sum[c.Class()] = t
			classes = append(classes, c.Class())
		}
		t.asked++
		a, err := v(ctx, c)
		if errors.Is(err, errSkip) {
			t.skipped++
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err != nil {
			t.otherwise++
			wrong = append(wrong, fmt.Sprintf("%s: no answer: %v", c.Name, err))
			continue
		}
		differences := c.Compare(a)
		switch {
		case len(differences) == 0:
			t.right++
			continue
		case a.Decision == Pass && c.Expect.Decision != Pass:
			t.passed++
		case a.Decision != Pass && c.Expect.Decision == Pass:
			t.refused++
		default:
			t.otherwise++
		}
		wrong = append(wrong, c.Name+": "+strings.Join(differences, "; "))
	}
	return table(w, classes, sum, wrong)
}

func table(w io.Writer, classes []string, sum map[string]*tally, wrong []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %6s %8s %6s %15s %16s %10s\n", "class", "asked", "skipped", "right", "wrongly passed", "wrongly refused", "otherwise")
	all := new(tally)
	line := func(name string, t *tally) {
		fmt.Fprintf(&b, "%-14s %6d %8d %6d %15d %16d %10d\n", name, t.asked, t.skipped, t.right, t.passed, t.refused, t.otherwise)
	}
	for _, name := range classes {
		t := sum[name]
		line(name, t)
		*all = tally{all.asked + t.asked, all.skipped + t.skipped, all.right + t.right, all.passed + t.passed, all.refused + t.refused, all.otherwise + t.otherwise}
	}
	line("all", all)
	for _, l := range wrong {
		b.WriteString(l + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
