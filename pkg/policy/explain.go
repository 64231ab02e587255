package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/verify"
)

// Explained is a policy in words: sentences about whom it trusts, and what it
// demands of which images.
type Explained struct {
	Trusts []string         `json:"trusts"`
	Images []ExplainedImage `json:"images"`
}

// ExplainedImage is an entry of a policy in words.
type ExplainedImage struct {
	Match   string   `json:"match"`
	Demands []string `json:"demands"`
}

// Explained is what Explain says.
func (p *Policy) Explained(at time.Time) *Explained {
	out := &Explained{Images: []ExplainedImage{}}
	say := func(format string, args ...any) { out.Trusts = append(out.Trusts, fmt.Sprintf(format, args...)) }
	for _, d := range p.extends {
		say("It takes over all of the policy with digest %s.", d)
	}
	for _, l := range p.trusts() {
		say("It %s.", l)
	}
	for _, k := range []Fact{FactSBOM, FactScan, FactVEX} {
		for _, a := range p.attesters {
			if a.fact == k {
				say("It believes %s from the attester %s.", k.plural(), a.by)
			}
		}
	}
	if names := p.speaking(); len(names) > 0 {
		say("It believes SBOMs, vulnerability scans and records of inputs from the signer of %s.", list(names))
	}
	if slices.ContainsFunc(p.builders, func(b builder) bool { return !b.speaks() }) {
		say("It believes only the provenance of a builder that it trusts for some build types or events, for a pattern of ids, or for the id that is its signer's name.")
	}
	say("Nobody else is believed about these.")
	say("A build parameter that is set is refused unless the entry, the builder's or what is known of the build type allows it.")
	say("An image that no entry below matches is denied. All entries that match hold together.")
	for _, i := range p.images {
		out.Images = append(out.Images, ExplainedImage{i.match, i.sentences(at)})
	}
	return out
}

// Explain says in words, a sentence a line, whom the policy trusts and what it
// demands of whom, as of a moment.
func (p *Policy) Explain(at time.Time) string {
	e := p.Explained(at)
	var b strings.Builder
	for _, s := range e.Trusts {
		b.WriteString(s + "\n")
	}
	for _, i := range e.Images {
		fmt.Fprintf(&b, "\nImages %q:\n", i.Match)
		for _, s := range i.Demands {
			fmt.Fprintf(&b, "  - %s\n", s)
		}
	}
	return b.String()
}

// Sentences says in words what every entry that matches the image says of it, as
// of a moment.
func (r Rule) Sentences(at time.Time) []string {
	var out []string
	for _, e := range r.entries {
		for _, s := range e.sentences(at) {
			out = append(out, fmt.Sprintf("%q: it %s", e.match, s))
		}
	}
	return out
}

// summary names the demands, each with a comma before it.
func (d demands) summary() string {
	var b strings.Builder
	for _, s := range []struct {
		there bool
		text  string
	}{
		{d.packages != nil && (len(d.packages.forbidden) > 0 || d.packages.licenses != nil), "packages and licences"},
		{d.vulns != nil, "vulnerabilities"},
		{d.hardening != nil, "hardening"},
		{len(d.rules) > 0, count(len(d.rules), "rule")},
		{len(d.waivers) > 0, count(len(d.waivers), "waiver")},
	} {
		if s.there {
			b.WriteString(", " + s.text)
		}
	}
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// Says is a scan in one line.
func (s *Scan) Says() string {
	counts := map[Severity]int{}
	for _, v := range s.Findings {
		counts[v.Severity]++
	}
	var parts []string
	for _, sev := range severities() {
		if counts[sev] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[sev], sev))
		}
	}
	line := s.Format + ", " + count(len(s.Findings), "finding")
	if len(parts) > 0 {
		line += ": " + strings.Join(parts, ", ")
	}
	if !s.Finished.IsZero() {
		line += "; of " + s.Finished.UTC().Format(time.RFC3339)
	}
	return line
}

// Says is the document in one line.
func (v *VEX) Says() string { return "OpenVEX, " + count(len(v.statements), "statement") }

func (f Fact) plural() string {
	return map[Fact]string{FactSBOM: "SBOMs", FactScan: "vulnerability scans", FactVEX: "OpenVEX, which can excuse from vulnerabilities,", FactInputs: "records of inputs"}[f]
}

// lower makes a sentence a part of one.
func lower(s string) string {
	return strings.ToLower(s[:1]) + strings.TrimSuffix(s[1:], ".")
}

func (i image) sentences(at time.Time) []string {
	var out []string
	say := func(effective time.Time, format string, args ...any) {
		s := fmt.Sprintf(format, args...)
		if at.Before(effective) {
			s += fmt.Sprintf(" (a warning until %s)", effective.UTC().Format(time.DateOnly))
		}
		out = append(out, s)
	}
	now := time.Time{}
	switch l := i.level.Levels; {
	case l.Build > 0 && l.Source > 0:
		say(now, "must carry SLSA Build L%d and Source L%d", l.Build, l.Source)
	case l.Build > 0:
		say(now, "must carry SLSA Build L%d", l.Build)
	case l.Source > 0:
		say(now, "must carry SLSA Source L%d", l.Source)
	default:
		say(now, "need not carry any SLSA level")
	}
	for _, q := range verify.Requirements() {
		if q.Property != "" && q.AskedBy(i.level) {
			say(now, "must have the verified property %s: %s", q.Property, lower(q.Asks))
		}
	}
	if i.repository != "" {
		tree := ", from a tree that is exactly a commit's"
		if i.allowChanges {
			tree = ""
		}
		say(now, "must be built from %q%s", i.repository, tree)
	}
	if i.ref != nil {
		say(now, "must be built from the branch or tag %q", i.ref)
	}
	if i.workflow != nil {
		say(now, "must be built by starting %q", i.workflow)
	}
	if i.reviewAge > 0 {
		say(now, "must have reviews of its source not older than %s, where they count", verify.Span(i.reviewAge))
	}
	if i.approvals != nil {
		say(now, "must have its source approved by %s, none of them an author or the builder", i.approvals)
	}
	if i.signatures != nil {
		say(now, "must have one and the same provenance signed by %s", i.signatures)
	}
	if i.vsa != nil {
		say(now, "%s", i.vsa.sentence())
	}
	if len(i.buildTypes) > 0 {
		say(now, "must have the build type %s", list(i.buildTypes))
	}
	for _, name := range keys(i.parameters) {
		if a := i.parameters[name]; a.any {
			say(now, "may have the build parameter %q set to anything", name)
		} else {
			say(now, "may have the build parameter %q set to %s", name, list(a.values))
		}
	}
	if i.dependencies != nil {
		say(now, "%s", i.dependencies.sentence())
	}
	if i.sbom {
		since := now
		if i.later() {
			since = i.packages.effective
		}
		formats := ""
		if len(i.formats) > 0 {
			formats = " (" + strings.Join(i.formats, " and ") + ")"
		}
		say(since, "must have a signed SBOM%s for every platform", formats)
	}
	if d := i.packages; d != nil {
		for _, p := range d.forbidden {
			say(d.effective, "must not contain a package %q", p.text)
		}
		if l := d.licenses; l != nil {
			if len(l.allow) > 0 {
				say(d.effective, "must contain only packages with a licence of %s", list(l.allow))
			}
			if len(l.deny) > 0 {
				say(d.effective, "must not contain a package with the licence %s", list(l.deny))
			}
			if l.allowUnknown {
				say(d.effective, "may contain packages whose licence is not stated")
			} else {
				say(d.effective, "must not contain a package whose licence is not stated")
			}
		}
	}
	if v := i.vulns; v != nil {
		age := ""
		if v.maxAge > 0 {
			age = ", not older than " + verify.Span(v.maxAge)
		}
		say(v.effective, "must have a signed vulnerability scan%s", age)
		what := "vulnerabilities"
		if v.fixableOnly {
			what = "vulnerabilities that there is a fix for (or nobody says)"
		}
		// What stands in for critical where nothing is said of unknown.
		too := func(s Severity, unknown bool) string {
			if s == Critical && !unknown {
				return ", of unknown severity counted in"
			}
			return ""
		}
		_, limited := v.limits[SeverityUnknown]
		_, timed := v.sla[SeverityUnknown]
		for _, s := range severities() {
			if n, ok := v.limits[s]; ok {
				say(v.effective, "must not have more than %d %s %s%s", n, s, what, too(s, limited))
			}
			if d, ok := v.sla[s]; ok {
				say(v.effective, "must not have %s %s known for longer than %s%s", s, what, verify.Span(d), too(s, timed))
			}
		}
	}
	if h := i.hardening; h != nil {
		switch h.nonRoot {
		case "numeric":
			say(h.effective, "must set a user by a number that is not root's")
		case "true":
			say(h.effective, "must set a user that is not root")
		}
		if h.secrets != nil {
			say(h.effective, "must have nothing that looks like a secret in variables, labels, commands and history")
		}
	}
	for _, r := range i.rules {
		text := fmt.Sprintf("must fulfil the rule %q: %s", r.name, oneLine(r.text))
		if r.message != "" {
			text += " (" + r.message + ")"
		}
		say(r.effective, "%s", text)
	}
	for _, w := range i.waivers {
		state := "is excused from"
		if w.expired(at) {
			state = "was excused, and is no more, from"
		}
		say(now, "%s %s until %s: %s (%s)", state, w.Name(), w.Expires.UTC().Format(time.RFC3339), w.Reason, w.Owner)
	}
	return out
}
