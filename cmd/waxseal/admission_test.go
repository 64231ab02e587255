package main_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/internal/testkit"
)

// TestTheCallersOfTheExamples: both admit what the real waxseal passes, and
// nothing on the word of one that lies, breaks off or dies.
func TestTheCallersOfTheExamples(t *testing.T) {
	g := newGatehouse(t)
	root, err := testkit.Root()
	g.must(err)
	examples := filepath.Join(root, "examples/admission")
	caller := filepath.Join(g.dir, "admission")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", caller, ".")
	build.Dir = examples
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the example: %v\n%s", err, out)
	}
	run := func(path string, args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Env = append(g.env(), "PATH="+path+":"+os.Getenv("PATH"))
		out, err := cmd.Output()
		return string(out), exitCode(err)
	}
	script := filepath.Join(examples, "admit.sh")

	t.Run("the real one", func(t *testing.T) {
		for image, want := range map[string]int{g.pass: 0, g.deny: 3, g.no: 4} {
			out, code := run(filepath.Dir(g.bin), script, image, "--key", g.key)
			if code != want || (code == 0) != strings.HasPrefix(out, g.pass+"@sha256:") || code != 0 && out != "" {
				t.Errorf("admit.sh %s: %d %q", image, code, out)
			}
		}
		out, code := run(filepath.Dir(g.bin), caller, g.pass, g.deny, g.pass, "--", "--key", g.key)
		if code != 3 || strings.Count(out, g.pass+"@sha256:") != 2 || strings.Count(out, "\n") != 2 {
			t.Errorf("admission: %d %q", code, out)
		}
		if out, code = run(filepath.Dir(g.bin), caller, g.pass, g.no, "--", "--key", g.key); code != 4 || strings.Count(out, "\n") != 1 {
			t.Errorf("admission: %d %q", code, out)
		}
	})

	const (
		digest  = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		schema  = `"schema":"https://waxseal.dev/schemas/verdict-line/v1.json"`
		pass    = `{` + schema + `,"id":"0","image":"x","digest":"` + digest + `","decision":"pass"}` + "\n"
		deny    = `{` + schema + `,"id":"0","image":"x","decision":"deny"}` + "\n"
		passed  = `{` + schema + `,"done":1,"passed":1,"denied":0,"undecided":0,"complete":true}` + "\n"
		denied  = `{` + schema + `,"done":1,"passed":0,"denied":1,"undecided":0,"complete":true}` + "\n"
		nothing = `{` + schema + `,"done":0,"passed":0,"denied":0,"undecided":0,"complete":true}` + "\n"
	)
	// fake is a waxseal that prints text and ends so.
	fake := func(t *testing.T, text, end string) string {
		dir := t.TempDir()
		g.must(os.WriteFile(filepath.Join(dir, "text"), []byte(text), 0o644))
		g.must(os.WriteFile(filepath.Join(dir, "waxseal"), fmt.Appendf(nil, "#!/bin/sh\ncat '%s/text'\n%s\n", dir, end), 0o755))
		return dir
	}
	for _, c := range []struct {
		name, text, end string
		want            int
	}{
		{"pass", pass + passed, "exit 0", 0},
		{"deny", deny + denied, "exit 3", 3},
		{"pass without a trailer", pass, "exit 0", 4},
		{"pass with half a trailer", pass + passed[:40], "exit 0", 4},
		{"pass with the code of a denial", pass + passed, "exit 3", 4},
		{"pass with the code of no answer", pass + passed, "exit 4", 4},
		{"pass and a panic", pass + passed, "exit 2", 4},
		{"pass and a kill", pass + passed, "kill -9 $$", 4},
		{"pass and a pipe that broke", pass + passed, "kill -13 $$", 4},
		{"deny with the code of a pass", deny + denied, "exit 0", 4},
		{"deny that counts as a pass", deny + passed, "exit 0", 4},
		{"nothing with the code of a pass", "", "exit 0", 4},
		{"a trailer alone", passed, "exit 0", 4},
		{"nothing was done", nothing, "exit 0", 4},
		{"it broke off", pass + strings.Replace(passed, "true", "false", 1), "exit 0", 4},
		{"an image that nobody asked about", strings.Replace(pass, `"0"`, `"7"`, 1) + passed, "exit 0", 4},
		{"the same twice", pass + pass + passed, "exit 0", 4},
		{"pass of nothing", strings.Replace(pass, digest, "", 1) + passed, "exit 0", 4},
		{"another schema", strings.ReplaceAll(pass+passed, "v1.json", "v2.json"), "exit 0", 4},
		{"more after the trailer", pass + passed + pass, "exit 0", 4},
		{"usage", "", "exit 64", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, code := run(fake(t, c.text, c.end), caller, "x"); code != c.want || (out != "") != (code == 0) {
				t.Errorf("exit code %d, %q; want %d", code, out, c.want)
			}
		})
	}

	const (
		one    = "{\n  \"schema\": \"https://waxseal.dev/schemas/verdict/v1.json\",\n  \"image\": \"x\",\n  \"decision\": \"pass\",\n  \"digest\": \"" + digest + "\",\n  \"reasons\": []\n}\n"
		oneNot = "{\n  \"schema\": \"https://waxseal.dev/schemas/verdict/v1.json\",\n  \"image\": \"x\",\n  \"decision\": \"deny\",\n  \"reasons\": [\n    {\n      \"message\": \"\\n  \\\"decision\\\": \\\"pass\\\",\"\n    }\n  ]\n}\n"
	)
	for _, c := range []struct {
		name, text, end string
		want            int
	}{
		{"one pass", one, "exit 0", 0},
		{"one denial", oneNot, "exit 3", 3},
		{"one denial with the code of a pass", oneNot, "exit 0", 4},
		{"one pass with the code of a denial", one, "exit 3", 4},
		{"one pass, cut", strings.TrimSuffix(one, "}\n"), "exit 0", 4},
		{"one pass and a panic", one, "exit 2", 4},
		{"one pass and a kill", one, "kill -9 $$", 4},
		{"no answer", "", "exit 0", 4},
		{"one pass without a digest", strings.Replace(one, "digest", "other", 1), "exit 0", 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			if out, code := run(fake(t, c.text, c.end), script, "x"); code != c.want || (out != "") != (code == 0) {
				t.Errorf("exit code %d, %q; want %d", code, out, c.want)
			}
		})
	}
}
