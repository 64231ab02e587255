package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// The XML that GitLab and Jenkins read as a report of tests.
type junitSuites struct {
	XMLName xml.Name     `xml:"testsuites"`
	Name    string       `xml:"name,attr"`
	Tests   int          `xml:"tests,attr"`
	Fails   int          `xml:"failures,attr"`
	Errors  int          `xml:"errors,attr"`
	Skipped int          `xml:"skipped,attr"`
	Suites  []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name      string      `xml:"name,attr"`
	Tests     int         `xml:"tests,attr"`
	Fails     int         `xml:"failures,attr"`
	Errors    int         `xml:"errors,attr"`
	Skipped   int         `xml:"skipped,attr"`
	Timestamp string      `xml:"timestamp,attr"`
	Cases     []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string     `xml:"classname,attr"`
	Name    string     `xml:"name,attr"`
	Failure *junitText `xml:"failure"`
	Error   *junitText `xml:"error"`
	Skipped *junitText `xml:"skipped"`
}

type junitText struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr,omitempty"`
	Text    string `xml:",chardata"`
}

// JUnit writes a verdict as JUnit's XML: a suite for the image and for each
// platform, a case for each requirement and for each other demand that is not
// fulfilled. The first case is the verdict itself, so that no file is green
// without one.
func JUnit(w io.Writer, v *gate.Verdict) error {
	out := junitSuites{Name: "waxseal"}
	for i, p := range parts(v) {
		s := junitSuite{Name: p.name, Timestamp: v.DecidedAt.UTC().Format("2006-01-02T15:04:05")}
		if d := p.Digest; d != "" {
			s.Name += " " + string(d)
		}
		class := clean(v.Image)
		if p.Platform != "" {
			class += " " + clean(p.Platform)
		}
		if i == 0 {
			s.Cases = append(s.Cases, junitVerdict(v))
		}
		s.Cases = append(s.Cases, junitRows(v, p)...)
		s.Cases = append(s.Cases, junitDemands(v, p)...)
		for i := range s.Cases {
			s.Cases[i].Class = class
		}
		s.count()
		out.Suites = append(out.Suites, s)
		out.Tests, out.Fails, out.Errors, out.Skipped = out.Tests+s.Tests, out.Fails+s.Fails, out.Errors+s.Errors, out.Skipped+s.Skipped
	}
	raw, err := xml.MarshalIndent(out, "", "  ")
	if err != nil {
		return fmt.Errorf("writing JUnit XML: %w", err)
	}
	_, err = io.WriteString(w, xml.Header+string(raw)+"\n")
	return err
}

func (s *junitSuite) count() {
	s.Tests = len(s.Cases)
	for _, c := range s.Cases {
		switch {
		case c.Failure != nil:
			s.Fails++
		case c.Error != nil:
			s.Errors++
		case c.Skipped != nil:
			s.Skipped++
		}
	}
}

func junitVerdict(v *gate.Verdict) junitCase {
	c := junitCase{Name: "verdict"}
	text := &junitText{Message: summary(v), Type: string(v.Decision), Text: strings.Join(texts(v.Reasons), "\n")}
	switch v.Decision {
	case gate.Pass:
	case gate.Deny:
		c.Failure = text
	default:
		c.Error = text
	}
	return c
}

func texts(reasons []gate.Reason) []string {
	var out []string
	for _, r := range reasons {
		out = append(out, said(r))
	}
	return out
}

func junitRows(v *gate.Verdict, p part) []junitCase {
	var out []junitCase
	for _, row := range rows(v, p.Subject) {
		c := junitCase{Name: row.ID + ": " + row.Title}
		text := &junitText{Message: clean(row.Reason), Type: string(row.Status), Text: row.Clause}
		switch {
		case row.Status == verify.Met:
		case p.Decision != gate.Pass && row.AskedBy(v.Declared):
			c.Failure = text
		default:
			c.Skipped = text // not asked, or waived
		}
		out = append(out, c)
	}
	return out
}

// junitDemands are the reasons that are no rows, and what is waived or to come.
func junitDemands(v *gate.Verdict, p part) []junitCase {
	var out []junitCase
	for _, r := range v.Reasons {
		if v.Decision != gate.Undecided && r.Code != gate.CodeLevel && p.of(r.Platform) {
			out = append(out, junitCase{Name: ruleOf(v, r).id, Failure: &junitText{Message: said(r), Type: r.Code}})
		}
	}
	for _, r := range v.Warnings {
		if p.of(r.Platform) {
			out = append(out, junitCase{Name: ruleOf(v, r).id, Skipped: &junitText{Message: "warning: " + said(r), Type: r.Code}})
		}
	}
	for _, w := range v.Waived {
		if p.of(w.Platform) {
			r := waivedReason(w)
			out = append(out, junitCase{Name: ruleOf(v, r).id, Skipped: &junitText{Message: waivedBy(w) + ": " + clean(w.Message), Type: "waived"}})
		}
	}
	return out
}
