package corpus

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/internal/testkit"
)

func corpusDir(t testing.TB) string {
	t.Helper()
	root, err := testkit.Root()
	must(t, err)
	return filepath.Join(root, "testdata", "corpus")
}

func cases(t testing.TB) []*Case {
	t.Helper()
	list, err := List(corpusDir(t))
	must(t, err)
	return list
}

// TestVerdicts judges every case, by the code of the command and in this
// process.
func TestVerdicts(t *testing.T) {
	for _, c := range cases(t) {
		t.Run(c.Name, func(t *testing.T) {
			t.Chdir(c.Dir)
			wantExpected(t, c, Waxseal(InProcess))
		})
	}
}

func wantExpected(t *testing.T, c *Case, v Verifier) {
	t.Helper()
	a, err := v(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range c.Compare(a) {
		t.Error(d)
	}
	if t.Failed() {
		t.Logf("%s\nanswer: %+v", c.Title, *a)
	}
}

// TestProgram asks the program itself: all cases whose environment or exit code
// matters, and some of the others.
func TestProgram(t *testing.T) {
	dir, err := testkit.Shipped(t.Context())
	must(t, err)
	waxseal := Waxseal(Program(filepath.Join(dir, "waxseal")))
	for i, c := range cases(t) {
		if i%10 != 0 && c.Question.Environment == nil && c.Expect.Decision != Undecided {
			continue
		}
		t.Run(c.Name, func(t *testing.T) {
			wantExpected(t, c, waxseal)
		})
	}
}

// TestForm holds the cases to their schema, and the corpus to what makes one
// worth running: a verifier that always says the same fails most of it.
func TestForm(t *testing.T) {
	dir := corpusDir(t)
	raw, err := os.ReadFile(filepath.Join(dir, "case.schema.json"))
	must(t, err)
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	must(t, err)
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	must(t, compiler.AddResource("schema.json", doc))
	schema, err := compiler.Compile("schema.json")
	must(t, err)

	list := cases(t)
	passed, coded := 0, 0
	for _, c := range list {
		raw, err := os.ReadFile(c.path("case.json"))
		must(t, err)
		value, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		must(t, err)
		if err := schema.Validate(value); err != nil {
			t.Errorf("%s: %v", c.Name, err)
		}
		if c.Expect.Decision == Pass {
			passed++
		}
		if len(c.Expect.Evidence) > 0 {
			coded++
		}
		for _, name := range append([]string{c.Question.Image + "/oci-layout"}, c.Question.Evidence...) {
			if _, err := os.Stat(c.path(strings.TrimPrefix(name, "git:"))); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
	}
	if len(list) < 150 || 3*passed < len(list) || 2*coded < len(list) {
		t.Errorf("%d cases, of which %d pass and %d say what becomes of each piece: too few", len(list), passed, coded)
	}
}

// TestEveryVulnerabilityHasACase holds the list of vulnerabilities in the
// README to the cases: each line names one, or says why there is none.
func TestEveryVulnerabilityHasACase(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(corpusDir(t), "README.md"))
	must(t, err)
	stands := map[string]string{}
	names := map[string]bool{}
	for _, c := range cases(t) {
		names[c.Name] = true
		for _, s := range c.StandsFor {
			stands[s] = c.Name
		}
	}
	id := regexp.MustCompile(`^\| ((?:CVE|GHSA)-[0-9A-Za-z-]+) \| (.*) \|$`)
	listed := map[string]bool{}
	for _, line := range strings.Split(string(raw), "\n") {
		m := id.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		listed[m[1]] = true
		name := strings.Trim(m[2], "`")
		switch {
		case strings.HasPrefix(m[2], "none: "):
			if stands[m[1]] != "" {
				t.Errorf("%s has a case, %s", m[1], stands[m[1]])
			}
		case !names[name]:
			t.Errorf("%s: there is no case %q", m[1], name)
		case stands[m[1]] == "":
			t.Errorf("%s: no case says that it stands for it", m[1])
		}
	}
	for s, name := range stands {
		if strings.HasPrefix(s, "CVE-") && !listed[s] {
			t.Errorf("%s, for which %s stands, is not in the list", s, name)
		}
	}
	if len(listed) < 60 {
		t.Errorf("%d vulnerabilities are listed, too few", len(listed))
	}
}

// TestProtocol asks this test's own program, which answers as any driver does.
func TestProtocol(t *testing.T) {
	c := cases(t)[0]
	line := func(a Answer) string { return string(must1(json.Marshal(a))(t)) }
	for _, s := range []struct {
		name, script, want string
	}{
		{"right", "echo '" + line(Answer{Decision: c.Expect.Decision}) + "'; exit $RIGHT", ""},
		{"skips", "exit 69", errSkip.Error()},
		{"dies", "exit 2", "no answer"},
		{"code and line disagree", "echo '" + line(Answer{Decision: Deny}) + "'", `decision "deny"`},
		{"nothing but a code", "exit 0", "no answer"},
	} {
		t.Run(s.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "entry")
			exit := map[string]string{Pass: "0", Deny: "3", Undecided: "4", Usage: "64"}[c.Expect.Decision]
			text := "#!/bin/sh\ntest \"$1 $2\" = 'verify --case' && test -f \"$3/case.json\" || exit 1\n" + strings.ReplaceAll(s.script, "$RIGHT", exit) + "\n"
			must(t, os.WriteFile(program, []byte(text), 0o700))
			a, err := Entry(program)(t.Context(), c)
			switch {
			case s.want == "" && (err != nil || len(c.Compare(a)) > 0):
				t.Errorf("%+v, %v", a, err)
			case s.want != "" && (err == nil || !strings.Contains(err.Error(), s.want)):
				t.Errorf("%+v, %v, want an error with %q", a, err, s.want)
			}
		})
	}
}

// TestCompare: every part of an answer is held against what is expected, and
// what a verifier does not say is not.
func TestCompare(t *testing.T) {
	c := &Case{Question: Question{Digest: "sha256:a"}, Expect: Expect{Decision: Deny, Reached: Levels{Build: 1}, Reasons: []Reason{{Code: "level"}}, Evidence: []Evidence{{Digest: "sha256:e", Code: "log"}}}}
	same := func() *Answer {
		return &Answer{Decision: Deny, Digest: "sha256:a", Reached: &Levels{Build: 1}, Reasons: []Reason{{Code: "level"}}, Evidence: []Evidence{{Digest: "sha256:e", Code: "log"}}, Properties: []string{}}
	}
	if d := c.Compare(same()); d != nil {
		t.Errorf("the same: %q", d)
	}
	if d := c.Compare(&Answer{Decision: Deny}); d != nil {
		t.Errorf("nothing but the decision: %q", d)
	}
	for what, change := range map[string]func(*Answer){
		"decision":   func(a *Answer) { a.Decision = Pass },
		"reached":    func(a *Answer) { a.Reached.Build = 2 },
		"digest":     func(a *Answer) { a.Digest = "sha256:b" },
		"properties": func(a *Answer) { a.Properties = []string{"X"} },
		"reasons":    func(a *Answer) { a.Reasons = []Reason{} },
		"warnings":   func(a *Answer) { a.Warnings = []Reason{{Code: "rule"}} },
		"waived":     func(a *Answer) { a.Waived = []Reason{{Code: "rule"}} },
		"evidence":   func(a *Answer) { a.Evidence[0].Code = "time" },
	} {
		a := same()
		change(a)
		if d := c.Compare(a); len(d) == 0 || !strings.HasPrefix(d[0], what) {
			t.Errorf("another %s: %q", what, d)
		}
	}
}
