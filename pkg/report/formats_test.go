package report_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/verify"
)

// hostile is text that means something in one of the formats.
const hostile = "\x1b[31m]]></testcase> &lt; | `x` ``y`` \\| [here](https://evil.example) <img src=x onerror=y> @team #1 {0} \u202e\n\n# title\n| a | b |\n- https://evil.example"

// rich is a denial with something of everything, all of it hostile.
func rich(t *testing.T) *gate.Verdict {
	t.Helper()
	v := verdict(t, 2, hosted, hosted, local)
	v.Image = "registry.example.org/prod/app" + hostile
	v.Reasons = append(v.Reasons, gate.Reason{Code: "rule", Rule: hostile, Message: hostile, Hint: hostile, Platform: "linux/arch1", Digest: v.Platforms[0].Digest, Bundle: hex("e"), Pointer: "/" + hostile})
	v.Warnings = []gate.Reason{{Code: "root-user", Message: hostile, Effective: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)}}
	v.Waived = []gate.Waived{{Requirement: "sbom", Reason: hostile, Owner: hostile, Message: hostile, Expires: time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)}}
	v.Platforms[1].Platform = hostile
	for i := range v.Reasons {
		if v.Reasons[i].Platform == "linux/arch2" {
			v.Reasons[i].Platform = hostile
		}
	}
	for i := range v.Platforms {
		s := &v.Platforms[i]
		s.Evidence = append(s.Evidence, gate.Evidence{Source: "file", Where: hostile, PredicateType: hostile, Code: verify.CodeSignature, Message: hostile, Says: hostile})
		for j := range s.Requirements {
			s.Requirements[j].Reason += " " + hostile
		}
	}
	v.Explanation = &gate.Explanation{Trust: []string{hostile}, Demands: []string{hostile}}
	return v
}

func undecided(t *testing.T) *gate.Verdict {
	t.Helper()
	v := verdict(t, 2, hosted)
	v.Decision, v.Subject, v.Reached = gate.Undecided, gate.Subject{Properties: []string{}, Requirements: []verify.Row{}, Evidence: []gate.Evidence{}}, gate.Levels{}
	v.Reasons = []gate.Reason{{Code: gate.CodeUnavailable, Message: "the registry answered 401", Hint: "log in"}}
	return v
}

// TestFormats: every rendering of every answer as it is, and of one that means
// ill with no character that a terminal would obey.
func TestFormats(t *testing.T) {
	for name, v := range map[string]*gate.Verdict{"pass": verdict(t, 2, hosted), "deny": verdict(t, 2, hosted, hosted, local), "undecided": undecided(t), "": rich(t)} {
		for format, write := range formats() {
			t.Run(format+"-"+name, func(t *testing.T) {
				var b bytes.Buffer
				if err := write(&b, v); err != nil {
					t.Fatal(err)
				}
				if name != "" {
					golden(t, format+"-"+name, b.String())
				}
				if i := strings.IndexFunc(b.String(), func(r rune) bool { return r < 0x20 && r != '\n' || r >= 0x7f && r < 0xa0 || r == 0x202e }); i >= 0 {
					t.Errorf("%q at %d", b.String()[i], i)
				}
				if err := write(closed{}, v); !errors.Is(err, os.ErrClosed) {
					t.Errorf("to a reader that went away: %v", err)
				}
			})
		}
	}
}

type writer = interface{ Write([]byte) (int, error) }

func formats() map[string]func(writer, *gate.Verdict) error {
	return map[string]func(writer, *gate.Verdict) error{
		"sarif":    func(w writer, v *gate.Verdict) error { return report.SARIF(w, v, "1.0") },
		"junit":    func(w writer, v *gate.Verdict) error { return report.JUnit(w, v) },
		"markdown": func(w writer, v *gate.Verdict) error { return report.Markdown(w, v) },
		"explain":  func(w writer, v *gate.Verdict) error { return report.Explain(w, v, report.TextOptions{}) },
	}
}

// What of the SARIF 2.1.0 schema concerns what is written.
const sarifEssentials = `{
  "type": "object", "required": ["version", "runs"], "properties": {
    "$schema": {"type": "string", "format": "uri"}, "version": {"const": "2.1.0"},
    "runs": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["tool"], "additionalProperties": false, "properties": {
      "tool": {"type": "object", "required": ["driver"], "additionalProperties": false, "properties": {"driver": {"type": "object", "required": ["name"], "additionalProperties": false, "properties": {
        "name": {"type": "string"}, "version": {"type": "string"}, "informationUri": {"type": "string", "format": "uri"},
        "rules": {"type": "array", "uniqueItems": true, "items": {"type": "object", "required": ["id"], "additionalProperties": false, "properties": {
          "id": {"type": "string"}, "shortDescription": {"$ref": "#/$defs/message"}, "helpUri": {"type": "string", "format": "uri"}}}}}}}},
      "invocations": {"type": "array", "items": {"type": "object", "required": ["executionSuccessful"], "additionalProperties": false, "properties": {
        "executionSuccessful": {"type": "boolean"}, "endTimeUtc": {"type": "string", "format": "date-time"}}}},
      "properties": {"type": "object"},
      "results": {"type": "array", "items": {"type": "object", "required": ["message"], "additionalProperties": false, "properties": {
        "ruleId": {"type": "string"}, "ruleIndex": {"type": "integer", "minimum": -1}, "level": {"enum": ["none", "note", "warning", "error"]},
        "message": {"$ref": "#/$defs/message"}, "properties": {"type": "object"},
        "locations": {"type": "array", "items": {"type": "object", "additionalProperties": false, "properties": {
          "physicalLocation": {"type": "object", "required": ["artifactLocation"], "additionalProperties": false, "properties": {
            "artifactLocation": {"type": "object", "additionalProperties": false, "properties": {"uri": {"type": "string", "format": "uri-reference"}}}}},
          "logicalLocations": {"type": "array", "uniqueItems": true, "items": {"type": "object", "additionalProperties": false, "properties": {
            "name": {"type": "string"}, "fullyQualifiedName": {"type": "string"}, "kind": {"type": "string"}}}}}}},
        "suppressions": {"type": "array", "items": {"type": "object", "required": ["kind"], "additionalProperties": false, "properties": {
          "kind": {"enum": ["inSource", "external"]}, "status": {"enum": ["accepted", "underReview", "rejected"]}, "justification": {"type": "string"}}}}}}}}}}},
  "$defs": {"message": {"type": "object", "required": ["text"], "additionalProperties": false, "properties": {"text": {"type": "string"}}}}
}`

func validate(t *testing.T, schema string, raw []byte) {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("https://schema.example/s.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("https://schema.example/s.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(got); err != nil {
		t.Error(err)
	}
}

func TestSARIF(t *testing.T) {
	for _, v := range []*gate.Verdict{verdict(t, 2, hosted), rich(t), undecided(t)} {
		var b bytes.Buffer
		if err := report.SARIF(&b, v, "1.0"); err != nil {
			t.Fatal(err)
		}
		validate(t, sarifEssentials, b.Bytes())
		var log struct {
			Runs []struct {
				Tool struct {
					Driver struct {
						Rules []struct{ ID, HelpURI string }
					}
				}
				Invocations []struct{ ExecutionSuccessful bool }
				Results     []struct {
					RuleID    string
					RuleIndex int
					Level     string
					Message   struct{ Text string }
					Locations []struct {
						LogicalLocations []struct{ FullyQualifiedName string }
					}
				}
			}
		}
		if err := json.Unmarshal(b.Bytes(), &log); err != nil {
			t.Fatal(err)
		}
		run := log.Runs[0]
		if n := len(v.Reasons) + len(v.Warnings) + len(v.Waived); len(run.Results) != n {
			t.Errorf("%d results for %d reasons, warnings and waivers", len(run.Results), n)
		}
		if run.Invocations[0].ExecutionSuccessful != (v.Decision != gate.Undecided) {
			t.Errorf("%s: executionSuccessful %t", v.Decision, run.Invocations[0].ExecutionSuccessful)
		}
		for i, r := range run.Results {
			rule := run.Tool.Driver.Rules[r.RuleIndex]
			if rule.ID != r.RuleID {
				t.Errorf("result %d has rule %q, its index says %q", i, r.RuleID, rule.ID)
			}
			if i < len(v.Reasons) && v.Reasons[i].Code == gate.CodeLevel && !strings.HasPrefix(rule.HelpURI, "https://slsa.dev/spec/v1.2/") {
				t.Errorf("%s: no clause: %q", rule.ID, rule.HelpURI)
			}
			if regexp.MustCompile(`(^|[^\\])\[`).MatchString(r.Message.Text) {
				t.Errorf("a link: %s", r.Message.Text)
			}
			if v.Digest != "" && !strings.Contains(r.Locations[0].LogicalLocations[0].FullyQualifiedName, "@sha256:") {
				t.Errorf("no digest: %+v", r.Locations)
			}
		}
	}
}

// What is no requirement has a rule with a title too, in SARIF and JUnit alike.
func TestRulesWithoutRequirement(t *testing.T) {
	for code, want := range map[string]string{
		policy.CodeDependency: "Built from images that are as the policy asks", gate.CodeTrust: "What is to be trusted can be fetched",
		policy.CodeSBOM: "Has an SBOM that counts", policy.CodeSummary: "Has a verification summary that counts", "of tomorrow": "of tomorrow",
	} {
		v := verdict(t, 1, hosted)
		v.Decision, v.Reasons = gate.Deny, []gate.Reason{{Code: code, Message: "it is not"}}
		var sarif, junit bytes.Buffer
		if err := errors.Join(report.SARIF(&sarif, v, "1"), report.JUnit(&junit, v)); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(sarif.String(), `"ruleId": "`+code+`"`) || !strings.Contains(sarif.String(), `"text": "`+want+`"`) {
			t.Errorf("%s: SARIF has no rule for it:\n%s", code, sarif.String())
		}
		if !strings.Contains(junit.String(), `name="`+code+`"`) {
			t.Errorf("%s: JUnit has no case for it", code)
		}
	}
}

func TestJUnit(t *testing.T) {
	type text struct {
		Message string `xml:"message,attr"`
	}
	type suites struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Errors   int `xml:"errors,attr"`
		Suites   []struct {
			Name  string `xml:"name,attr"`
			Cases []struct {
				Name    string `xml:"name,attr"`
				Failure *text  `xml:"failure"`
				Error   *text  `xml:"error"`
				Skipped *text  `xml:"skipped"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	read := func(v *gate.Verdict) suites {
		t.Helper()
		var b bytes.Buffer
		if err := report.JUnit(&b, v); err != nil {
			t.Fatal(err)
		}
		var out suites
		if err := xml.Unmarshal(b.Bytes(), &out); err != nil {
			t.Fatalf("%v in\n%s", err, b.String())
		}
		return out
	}
	if got := read(verdict(t, 2, hosted)); got.Failures+got.Errors != 0 || got.Tests != 10 {
		t.Errorf("a pass: %+v", got)
	}
	if got := read(undecided(t)); got.Errors != 1 || got.Suites[0].Cases[0].Error == nil {
		t.Errorf("no answer: %+v", got)
	}
	denied := read(rich(t))
	if len(denied.Suites) != 3 {
		t.Fatalf("%d suites", len(denied.Suites))
	}
	failed := map[string]int{}
	for i, s := range denied.Suites {
		for _, c := range s.Cases {
			if c.Failure != nil {
				failed[fmt.Sprint(i, " ", c.Name)]++
			}
		}
	}
	for _, want := range []string{"0 verdict", "2 " + verify.RowHosted + ": Hosted"} {
		if failed[want] != 1 {
			t.Errorf("%q is not among what failed: %v", want, failed)
		}
	}
	// A denial that has no row fails as well.
	v := verdict(t, 1, hosted)
	v.Decision, v.Reasons = gate.Deny, []gate.Reason{{Code: gate.CodeNoRule, Message: "no entry"}}
	if got := read(v); got.Failures != 2 {
		t.Errorf("no rule: %+v", got)
	}
}

// Outside of code spans, Markdown has nothing that came from elsewhere.
func TestMarkdownIsInert(t *testing.T) {
	var b bytes.Buffer
	if err := report.Markdown(&b, rich(t)); err != nil {
		t.Fatal(err)
	}
	span := regexp.MustCompile("(^|[^`])(`+)([^`]|[^`].*?[^`])(`+)($|[^`])")
	for _, line := range strings.Split(b.String(), "\n") {
		bare := line
		for {
			m := span.FindStringSubmatchIndex(bare)
			if m == nil {
				break
			}
			fence := bare[m[4]:m[5]]
			end := strings.Index(bare[m[5]:], fence)
			bare = bare[:m[4]] + bare[m[5]+end+len(fence):]
		}
		for _, bad := range []string{"evil.example", "<img", "@team", "{0}", "onerror"} {
			if strings.Contains(bare, bad) {
				t.Errorf("%q outside of code: %s", bad, line)
			}
		}
		if cells := strings.Count(line, "|"); strings.HasPrefix(line, "|") && cells != 5 && cells != 6 {
			t.Errorf("%d bars: %s", cells, line)
		}
	}
	if n := b.Len(); n > 60_000 {
		t.Errorf("%d bytes are too many for a comment", n)
	}
}

// The line of a stream says what the verdict says, and keeps to its schema.
// Nothing that is foreign is a command to a CI system that shows the text.
func TestTextIsInert(t *testing.T) {
	v := rich(t)
	for n := range 80 {
		v.Reasons[0].Message = strings.Repeat("x", n) + " ::error::x ##[add-mask]x ##vso[task.setvariable variable=PATH]x ::stop-commands::x"
		v.Reasons[0].Hint = v.Reasons[0].Message
		line := func(w io.Writer, v *gate.Verdict, o report.TextOptions) error {
			_, err := io.WriteString(w, report.LineText(report.NewLine("", v.Image, v), o))
			return err
		}
		for name, write := range map[string]func(io.Writer, *gate.Verdict, report.TextOptions) error{"text": report.Verdict, "explained": report.Explain, "a line": line} {
			var b strings.Builder
			if err := write(&b, v, report.TextOptions{}); err != nil {
				t.Fatal(err)
			}
			if at := regexp.MustCompile(`(?m)^\s*::.*|##\[.*|##vso.*`).FindString(b.String()); at != "" {
				t.Fatalf("%s, after %d: %q", name, n, at)
			}
		}
	}
}

func TestLine(t *testing.T) {
	many := verdict(t, 2, hosted)
	many.Decision = gate.Deny
	for range 40 {
		many.Reasons = append(many.Reasons, gate.Reason{Code: "vulnerability", Message: "x"})
	}
	for _, v := range []*gate.Verdict{verdict(t, 2, hosted), rich(t), undecided(t), many} {
		v.For = &gate.Workload{Namespace: "prod", Labels: map[string]string{"a": "b"}, Use: gate.UseVolume}
		l := report.NewLine("7", "registry.example.org/prod/app:1", v)
		raw, err := report.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		validate(t, string(report.VerdictLineSchema()), raw)
		if l.Decision != v.Decision || len(l.Reasons)+l.MoreReasons != len(v.Reasons) || bytes.Count(raw, []byte("\n")) != 1 {
			t.Errorf("%s", raw)
		}
	}
	raw, err := report.Marshal(report.Unanswered("7", hostile, report.CodeUsage, errors.New(hostile), time.Now()))
	if err != nil {
		t.Fatal(err)
	}
	validate(t, string(report.VerdictLineSchema()), raw)
	trailer := report.Trailer{Schema: report.LineSchema, Earlier: &report.Tally{Done: 1, Denied: 1}}
	for _, d := range []gate.Decision{gate.Pass, gate.Deny, gate.Undecided, ""} {
		trailer.Count(d)
	}
	if trailer.Done != 4 || trailer.Undecided != 2 {
		t.Errorf("%+v", trailer)
	}
	if raw, err = report.Marshal(trailer); err != nil {
		t.Fatal(err)
	}
	validate(t, string(report.VerdictLineSchema()), raw)
	if _, err := url.Parse(report.LineSchema); err != nil || !bytes.Contains(report.VerdictLineSchema(), []byte(report.LineSchema)) {
		t.Error("the schema has another name")
	}
}
