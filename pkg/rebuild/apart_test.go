package rebuild

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// program writes a script that stands for the process that compares.
func program(t *testing.T, script string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "compares")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func comparison(verdict string, one, two attest.Digest, differences ...attestations.RebuildDifference) *attestations.RebuildComparison {
	c := &attestations.RebuildComparison{
		Verdict: verdict, Original: string(one), Rebuilt: string(two),
		Normalisers: []attestations.RebuildNormaliser{}, Differences: []attestations.RebuildDifference{},
	}
	for _, d := range differences {
		c.Differences = append(c.Differences, d)
		for _, n := range d.Normalisers {
			c.Normalisers = append(c.Normalisers, attestations.RebuildNormaliser{Name: n, Reason: "mine", Uses: 1})
		}
	}
	return c
}

func TestApart(t *testing.T) {
	one, two := attest.DigestOf([]byte("1")), attest.DigestOf([]byte("2"))
	file := filepath.Join(t.TempDir(), "answer")
	covered := attestations.RebuildDifference{Kind: attestations.DifferentTime, Path: "/a\x1b[31m", Cause: "times", Normalisers: []string{string(fileTimesV1)}}
	open := attestations.RebuildDifference{Kind: attestations.DifferentContent, Path: "/a", Cause: "bytes"}
	answer := func(change func(*attestations.RebuildComparison)) string {
		c := comparison(attestations.RebuildEquivalent, one, two, covered)
		change(c)
		raw, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return "cat " + file
	}
	good := answer(func(*attestations.RebuildComparison) {})
	for name, c := range map[string]struct {
		change func(*attestations.RebuildComparison)
		script string
		want   string // of the error; "" for none
	}{
		"whole":            {},
		"killed":           {script: good + "; kill -9 $$", want: "the process that compares died: signal: killed"},
		"failed":           {script: good + "; echo waxseal: out of paper >&2; exit 4", want: "the process that compares failed: out of paper"},
		"silent":           {script: "exit 0", want: "reading what"},
		"cut":              {script: "head -c 100 " + file, want: "reading what"},
		"two answers":      {script: good + ";" + good, want: "reading what"},
		"endless":          {script: "yes", want: "wrote more than any answer has"},
		"another field":    {script: "sed 's/{/{\"more\":1,/' " + file, want: "unknown field"},
		"a field twice":    {script: "sed 's/{/{\"verdict\":\"different\",/' " + file, want: "reading what"},
		"other images":     {change: func(c *attestations.RebuildComparison) { c.Rebuilt = c.Original }, want: "other images"},
		"reproduced":       {change: func(c *attestations.RebuildComparison) { c.Verdict = attestations.RebuildReproduced }, want: "is not what is listed"},
		"a new verdict":    {change: func(c *attestations.RebuildComparison) { c.Verdict = "fine" }, want: "is not what is listed"},
		"nothing differs":  {change: func(c *attestations.RebuildComparison) { *c = *comparison(c.Verdict, one, two) }, want: "is not what is listed"},
		"something open":   {change: func(c *attestations.RebuildComparison) { *c = *comparison(c.Verdict, one, two, covered, open) }, want: "is not what is listed"},
		"no list":          {change: func(c *attestations.RebuildComparison) { c.Differences = nil }, want: "its lists"},
		"a new kind":       {change: func(c *attestations.RebuildComparison) { c.Differences[0].Kind = "odd" }, want: "difference 1 is none"},
		"a new normaliser": {change: func(c *attestations.RebuildComparison) { c.Normalisers[0].Name = "all/v1" }, want: "not known"},
		"not listed":       {change: func(c *attestations.RebuildComparison) { c.Normalisers = c.Normalisers[:0] }, want: "used and not listed"},
		"a platform": {change: func(c *attestations.RebuildComparison) {
			c.Platforms = []attestations.RebuildPlatform{{Name: "linux/amd64", Original: string(one), Rebuilt: string(two), Verdict: attestations.RebuildReproduced}}
		}, want: "platform linux/amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change == nil {
				c.change = func(*attestations.RebuildComparison) {}
			}
			script := answer(c.change)
			if c.script != "" {
				script = c.script
			}
			got, err := apart(t.Context(), program(t, script), "/layout", t.TempDir(), one, two)
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Verdict != attestations.RebuildEquivalent || got.Differences[0].Path != `/a\x1b[31m` || got.Normalisers[0].Reason != fileTimesV1.reason() {
				t.Errorf("%+v", got)
			}
		})
	}
}

func TestApartIsGivenNothing(t *testing.T) {
	t.Setenv("COSIGN_PASSWORD", "correct horse")
	d, tmp := attest.DigestOf(nil), t.TempDir()
	seen := filepath.Join(tmp, "seen")
	_, err := apart(t.Context(), program(t, "tr '\\0' '\\n' </proc/$$/environ >"+seen+"; echo \"$@\" >>"+seen+"; readlink /proc/$$/fd/0 >>"+seen+"; ls /proc/$$/fd >>"+seen), "/layout", tmp, d, d)
	if err == nil {
		t.Error("no answer is an answer")
	}
	raw, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	// A shell has its own files at 10 and above.
	want := "TMPDIR=" + tmp + "\n" + CompareCommand + " /layout " + string(d) + " /layout " + string(d) + "\n/dev/null\n0\n1\n"
	if got := string(raw); !strings.HasPrefix(got, want) || strings.Contains(got, "correct horse") {
		t.Errorf("the process sees\n%s, want first\n%s", got, want)
	}
	for _, fd := range strings.Fields(strings.TrimPrefix(string(raw), want)) {
		if fd != "2" && len(fd) == 1 {
			t.Errorf("the process has the open file %s", fd)
		}
	}
}

// lasting is a program that writes to a pipe for as long as it lives.
func lasting(t *testing.T) (path, pipe string) {
	t.Helper()
	pipe = filepath.Join(t.TempDir(), "alive")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	return program(t, "exec tail -f /dev/null >"+pipe), pipe
}

// untilGone calls end once the program runs, and waits for its end.
func untilGone(t *testing.T, pipe string, end func()) {
	t.Helper()
	alive, err := os.Open(pipe) // waits for the program to open it
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	end()
	if _, err := io.ReadAll(alive); err != nil {
		t.Error(err)
	}
}

func TestApartEndsWithItsContext(t *testing.T) {
	d := attest.DigestOf(nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p, pipe := lasting(t)
	done := make(chan error)
	go func() {
		_, err := apart(ctx, p, "/layout", t.TempDir(), d, d)
		done <- err
	}()
	untilGone(t, pipe, cancel)
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestApartEndsWithThisProcess(t *testing.T) {
	d := attest.DigestOf(nil)
	if p := os.Getenv("WAXSEAL_TEST_LASTING"); p != "" {
		_, err := apart(t.Context(), p, "/layout", t.TempDir(), d, d)
		t.Fatal(err)
	}
	p, pipe := lasting(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestApartEndsWithThisProcess$")
	cmd.Env = append(os.Environ(), "WAXSEAL_TEST_LASTING="+p)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	untilGone(t, pipe, func() { _ = cmd.Process.Kill() })
	_ = cmd.Wait()
}

// FuzzReadComparison: whatever comes is refused, or says no more than it shows.
func FuzzReadComparison(f *testing.F) {
	one, two := attest.DigestOf([]byte("1")), attest.DigestOf([]byte("2"))
	for _, c := range []*attestations.RebuildComparison{
		comparison(attestations.RebuildDifferent, one, two, attestations.RebuildDifference{Kind: attestations.DifferentContent, Cause: "bytes"}),
		comparison(attestations.RebuildEquivalent, one, two, attestations.RebuildDifference{Kind: attestations.DifferentTime, Cause: "times", Normalisers: []string{string(fileTimesV1)}}),
		comparison(attestations.RebuildReproduced, one, two),
	} {
		raw, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := readComparison(raw, one, two)
		if err != nil {
			return
		}
		if c.Verdict == attestations.RebuildReproduced {
			t.Error("two digests are one")
		}
		for _, d := range c.Differences {
			if strings.ContainsAny(d.Path+d.Cause+d.Original+d.Rebuilt+d.Platform, "\x1b\n\x00") {
				t.Errorf("%+q", d.Path+d.Cause)
			}
		}
	})
}
