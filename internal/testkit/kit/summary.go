package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// event is one line of `go test -json`.
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string
	Elapsed                       float64
}

// excuse is how the reason of a test begins that reads foreign data in place.
const excuse = "no fixtures of "

// summary counts the tests that have no subtests: a parent passes and fails
// with its children and would count them twice.
type summary struct {
	passed, failed, skipped int
	excused                 int // of those skipped
	reasons                 []string
	output                  map[string][]string
	parents                 map[string]bool
}

// summarize prints a line a package, the output of what failed, what was
// skipped and why, and the counts. It fails when a test or a package failed,
// and where strict is set also when a test was skipped or none ran; but for
// what needs data that is not part of the repository, which CI does not have.
func summarize(in io.Reader, out io.Writer, strict bool) error {
	s := summary{output: map[string][]string{}, parents: map[string]bool{}}
	broken := false
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil {
				fmt.Fprint(out, line) // the go command's own words
			} else if s.take(e, out) {
				broken = true
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	if len(s.reasons) > 0 {
		fmt.Fprintln(out, "\nskipped:")
		for _, reason := range s.reasons {
			fmt.Fprintln(out, "  "+reason)
		}
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	switch {
	case broken || s.failed > 0:
		return errors.New("tests failed")
	case s.passed == 0:
		return errors.New("no test ran")
	case strict && s.skipped > s.excused:
		return errors.New("tests were skipped, and CI=true")
	}
	return nil
}

// take counts one event and says whether it is a failure.
func (s *summary) take(e event, out io.Writer) bool {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "run":
		if parent, _, sub := cutLast(e.Test, "/"); sub {
			s.parents[e.Package+" "+parent] = true
		}
	case "output", "build-output":
		if e.Action == "build-output" {
			fmt.Fprint(out, e.Output)
			return false
		}
		s.output[key] = append(s.output[key], e.Output)
	case "build-fail":
		return true
	case "pass", "fail", "skip":
		defer delete(s.output, key)
		if e.Test == "" {
			return s.finishPackage(e, out)
		}
		if s.parents[key] && e.Action != "fail" {
			return false
		}
		s.finishTest(e, out)
		return e.Action == "fail"
	}
	return false
}

func (s *summary) finishTest(e event, out io.Writer) {
	lines := s.output[e.Package+" "+e.Test]
	switch e.Action {
	case "pass":
		s.passed++
	case "fail":
		if !s.parents[e.Package+" "+e.Test] {
			s.failed++
		}
		fmt.Fprintf(out, "\n--- %s %s\n%s", e.Package, e.Test, strings.Join(lines, ""))
	case "skip":
		s.skipped++
		if strings.HasPrefix(reason(lines), excuse) {
			s.excused++
		}
		s.reasons = append(s.reasons, fmt.Sprintf("%s %s: %s", short(e.Package), e.Test, reason(lines)))
	}
}

// finishPackage prints the package's line, and what a package said that ended
// outside of any test.
func (s *summary) finishPackage(e event, out io.Writer) bool {
	if e.Action == "skip" {
		return false // no test files
	}
	fmt.Fprintf(out, "%-5s %7.1fs %s\n", e.Action, e.Elapsed, e.Package)
	if e.Action != "fail" {
		return false
	}
	for key, lines := range s.output {
		if strings.HasPrefix(key, e.Package+" ") {
			fmt.Fprint(out, strings.Join(lines, ""))
		}
	}
	return true
}

// reason is what a test said last before it was skipped, without the place.
func reason(lines []string) string {
	text := "no reason given"
	for _, line := range lines {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, after, ok := strings.Cut(line, ".go:"); ok {
			if _, said, ok := strings.Cut(after, ": "); ok {
				line = said
			}
		}
		text = line
	}
	return text
}

func short(pkg string) string {
	_, name, _ := strings.Cut(pkg, "/waxseal/waxseal/")
	return name
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
