package main_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

// images lists what the lines are about, by their paths, with the decisions.
func (g *gatehouse) images(lines []verdictLine) string {
	var all []string
	for _, l := range lines {
		all = append(all, strings.TrimPrefix(l.Image, g.addr+"/")+"="+l.Decision)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestAudit(t *testing.T) {
	g := newGatehouse(t)
	g.must(g.faults.Set())
	for i := range 6 {
		g.push(fmt.Sprintf("team/app%d", i))
	}
	audit := func(code int, args ...string) ([]verdictLine, *verdictLine) {
		t.Helper()
		return readLines(t, g.run(code, append([]string{"audit", "--key", g.key}, args...)...))
	}

	t.Run("everything", func(t *testing.T) {
		lines, trailer := audit(3, g.addr)
		if got := g.images(lines); got != "deny:v1=deny hang:v1=deny pass:v1=pass team/app0:v1=deny team/app1:v1=deny team/app2:v1=deny team/app3:v1=deny team/app4:v1=deny team/app5:v1=deny" {
			t.Error(got)
		}
		if trailer == nil || !trailer.Complete || *trailer.Done != 9 || trailer.Passed != 1 || trailer.Denied != 8 {
			t.Errorf("%+v", trailer)
		}
	})
	t.Run("below a prefix", func(t *testing.T) {
		if lines, _ := audit(0, g.addr+"/pass"); g.images(lines) != "pass:v1=pass" {
			t.Error(g.images(lines))
		}
		if lines, trailer := audit(4, g.addr+"/nobody"); len(lines) != 0 || *trailer.Done != 0 {
			t.Errorf("%v %+v", lines, trailer)
		}
	})
	t.Run("text", func(t *testing.T) {
		out := g.run(0, "audit", "--key", g.key, "--output", "text", g.addr+"/pass")
		if !strings.HasPrefix(out, "pass ") || !strings.Contains(out, g.pass+"@sha256:") || !strings.HasSuffix(out, "1 judged: 1 passed, 0 denied, 0 undecided\n") {
			t.Error(out)
		}
	})
	t.Run("no catalog", func(t *testing.T) {
		g.must(g.faults.Set(testkit.Fault{Kind: "403", Match: "_catalog"}))
		defer g.faults.Set()
		if lines, _ := audit(0, g.addr+"/pass"); g.images(lines) != "pass:v1=pass" {
			t.Error(g.images(lines))
		}
		if _, trailer := audit(4, g.addr); trailer.Complete {
			t.Errorf("%+v", trailer)
		}
	})
	t.Run("a repository that cannot be listed", func(t *testing.T) {
		g.must(g.faults.Set(testkit.Fault{Kind: "403", Match: "app1/tags"}))
		defer g.faults.Set()
		lines, trailer := audit(3, g.addr+"/team")
		if got := g.images(lines); !strings.Contains(got, "team/app1=undecided") || !trailer.Complete || trailer.Undecided != 1 {
			t.Errorf("%s %+v", got, trailer)
		}
	})
	t.Run("usage", func(t *testing.T) {
		for _, args := range [][]string{{}, {"nowhere"}, {"--jobs", "1000", g.addr}, {"--output", "sarif", g.addr}} {
			if lines, trailer := audit(64, args...); len(lines) > 0 || trailer != nil && trailer.Complete {
				t.Errorf("%v: %v %+v", args, lines, trailer)
			}
		}
	})
}

// TestAuditResumes: after a kill at any moment, the same command answers the
// rest and says what came before.
func TestAuditResumes(t *testing.T) {
	g := newGatehouse(t)
	for i := range 6 {
		g.push(fmt.Sprintf("team/app%d", i))
	}
	journal := filepath.Join(g.dir, "audit.journal")
	args := []string{"audit", "--key", g.key, "--resume", journal, "--jobs", "1", g.addr}
	// It stands still at one image, and is killed there.
	g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/team/app3/manifests"}))
	cmd := g.command(args...)
	var out bytes.Buffer
	cmd.Stdout = &out
	g.must(cmd.Start())
	g.must(g.faults.Await(t.Context(), regexp.MustCompile("/team/app3/manifests")))
	// Another audit may not write the same journal meanwhile.
	g.run(64, args...)
	g.must(cmd.Process.Kill())
	cmd.Wait()
	// A line is printed before it is noted. The kill leaves half of one.
	seen := strings.Count(out.String(), "\n")
	raw, err := os.ReadFile(journal)
	g.must(err)
	noted := strings.Count(string(raw), "\n") - 1
	if noted != seen && noted != seen-1 {
		t.Fatalf("%d are noted of %d:\n%s", noted, seen, raw)
	}
	g.must(os.WriteFile(journal, append(raw, []byte(`{"image":"`+g.addr+`/team/ap`)...), 0o600))
	// What is undecided is asked again.
	g.must(g.faults.Set(testkit.Fault{Kind: "403", Match: "/team/app3/manifests"}))
	rest, trailer := readLines(t, g.run(3, args...))
	if got := g.images(rest); len(rest) != 9-noted || !strings.Contains(got, "team/app3:v1=undecided") {
		t.Errorf("%d of %d: %s", len(rest), noted, got)
	}
	if trailer == nil || !trailer.Complete || *trailer.Done != len(rest) || trailer.Earlier.Done != noted {
		t.Errorf("%+v", trailer)
	}
	g.must(g.faults.Set())
	rest, trailer = readLines(t, g.run(3, args...))
	if got := g.images(rest); got != "team/app3:v1=deny" || trailer.Earlier.Done != 8 || trailer.Earlier.Passed != 1 || trailer.Earlier.Denied != 7 {
		t.Errorf("%s %+v", got, trailer)
	}
	// It came to its end, so the same command is tonight's audit.
	rest, trailer = readLines(t, g.run(3, args...))
	if len(rest) != 9 || trailer.Earlier.Done != 0 {
		t.Errorf("%v %+v", rest, trailer)
	}

	for name, text := range map[string]string{
		"another audit":   `{"schema":"https://waxseal.dev/schemas/audit-journal/v1.json","audit":"sha256:` + strings.Repeat("0", 64) + `"}` + "\n",
		"no journal":      "registry.example/a\n",
		"a broken middle": string(raw) + "what\n" + `{"image":"x","decision":"pass"}` + "\n",
		"a line too long": string(raw) + strings.Repeat("x", 100_000) + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			g.must(os.WriteFile(journal, []byte(text), 0o600))
			if out := g.run(64, args...); out != "" {
				t.Error(out)
			}
			if now, _ := os.ReadFile(journal); string(now) != text {
				t.Error("it was changed")
			}
		})
	}
	other := append(slices.Clone(args), "--level", "1")
	g.must(os.WriteFile(journal, raw, 0o600))
	g.run(64, other...)
}

// TestListResumes: a list that was broken off is gone on with, request by request.
func TestListResumes(t *testing.T) {
	g := newGatehouse(t)
	journal := filepath.Join(g.dir, "list.journal")
	list := g.pass + "\n" + `{"id":"1","image":"` + g.pass + `"}` + "\n" + g.deny + "\n" + g.hang + "\n" + `{"id":"2","image":"` + g.deny + `"}` + "\n"
	verify := func(code int, args ...string) ([]verdictLine, *verdictLine) {
		t.Helper()
		cmd := g.command(append([]string{"verify", "--key", g.key, "--resume", journal, "--jobs", "1"}, args...)...)
		cmd.Stdin = strings.NewReader(list)
		out, err := cmd.Output()
		if got := exitCode(err); got != code {
			t.Fatalf("exit code %d, want %d\n%s", got, code, out)
		}
		return readLines(t, string(out))
	}
	cmd := g.command("verify", "--key", g.key, "--resume", journal, "--jobs", "1", "-")
	cmd.Stdin = strings.NewReader(list)
	g.must(g.faults.Set(testkit.Fault{Kind: "hang", Match: "/hang/"}))
	g.must(cmd.Start())
	g.must(g.faults.Await(t.Context(), regexp.MustCompile("/hang/")))
	g.must(cmd.Process.Kill())
	cmd.Wait()

	g.must(g.faults.Set(testkit.Fault{Kind: "403", Match: "/hang/"}))
	lines, trailer := verify(3, "-")
	if got := g.images(lines); got != "deny:v1=deny hang:v1=undecided" || !trailer.Complete || trailer.Earlier.Done != 3 || trailer.Earlier.Passed != 2 {
		t.Errorf("%s %+v", got, trailer)
	}
	g.must(g.faults.Set())
	if lines, trailer = verify(3, "-"); g.images(lines) != "hang:v1=deny" || trailer.Earlier.Done != 4 {
		t.Errorf("%+v %+v", lines, trailer)
	}
	if lines, trailer = verify(3, "-"); len(lines) != 5 || trailer.Earlier.Done != 0 {
		t.Errorf("%+v %+v", lines, trailer)
	}
	// What is asked otherwise is another list.
	verify(64, "--at", "2030-01-01", "-")
	verify(64, "--stream", "-")
	verify(64, g.pass)
}
