package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// The codes of a Finding. A waiver names one as its requirement.
const (
	CodeRule          = "rule"          // a rule of the policy says no
	CodePackage       = "package"       // a forbidden package
	CodeLicense       = "license"       // a licence that is not allowed
	CodeVulnerability = "vulnerability" // above a limit, or older than the SLA
	CodeScan          = "scan"          // no scan that counts
	CodeRoot          = "root-user"     // the image runs as root
	CodeSecret        = "secret"        // a secret in the configuration or history
	CodeSBOM          = "sbom"          // a demand rests on an SBOM and there is none
	CodeSummary       = "vsa"           // a verification summary is required and none counts
)

// Finding is one thing that a rule has against an image, or why a demand could
// not be judged.
type Finding struct {
	Code    string
	Rule    string // the rule's name, for CodeRule
	ID      string // the vulnerability's, for CodeVulnerability
	Alias   string // its one other name
	Message string
	Bundle  attest.Digest
	Pointer string
	// Undecided: the evidence is there and cannot be read, or a rule gave
	// neither yes nor no.
	Undecided bool
	// Effective, when it is later than the moment of the judgement, makes this
	// a warning until then.
	Effective time.Time
}

// Judgement is what a rule has against the facts.
type Judgement struct {
	Findings []Finding
	Used     []attest.Digest // bundles it rests on
	// Until is the next moment at which time alone makes another judgement of
	// the same facts: a scan or a vulnerability grows too old, a waiver ends.
	// Zero: never.
	Until time.Time
}

// demands is the part of an image's entry that is judged against facts.
type demands struct {
	rules     []rule
	packages  *packageDemand
	vulns     *vulnDemand
	hardening *hardening
	waivers   []Waiver
}

type rule struct {
	*expression
	effective time.Time
}

type packageDemand struct {
	forbidden []pattern
	licenses  *licenses
	formats   []string // that must be there, where the demand has a date
	effective time.Time
}

type vulnDemand struct {
	limits      map[Severity]int           // the most findings of each
	sla         map[Severity]time.Duration // the longest since it is known
	fixableOnly bool
	maxAge      time.Duration // of the scan; 0: any
	effective   time.Time
}

// silent is a severity that nothing is said of, although there is of a lesser one.
func (d *vulnDemand) silent() Severity {
	worse := Severity("")
	for _, s := range severities() {
		_, limited := d.limits[s]
		_, late := d.sla[s]
		switch {
		case s == SeverityUnknown: // counts as critical
		case (limited || late) && worse != "":
			return worse
		case !limited && !late && worse == "":
			worse = s
		}
	}
	return ""
}

type hardening struct {
	nonRoot   string // "", "true" or "numeric"
	secrets   *detector
	effective time.Time
}

// Waiver excuses an image from one demand, for a while.
type Waiver struct {
	Requirement   string // the id of a requirement, or the code of a finding
	Rule          string // or the name of a rule
	Vulnerability string // or the id of a vulnerability
	Reason        string
	Owner         string
	Expires       time.Time
}

// Name is what the waiver excuses from.
func (w Waiver) Name() string {
	switch {
	case w.Rule != "":
		return fmt.Sprintf("rule %q", w.Rule)
	case w.Vulnerability != "":
		return "vulnerability " + w.Vulnerability
	}
	return "requirement " + w.Requirement
}

// waivers lists those of every entry that matches the image.
func (r Rule) waivers() []Waiver {
	var out []Waiver
	for _, e := range r.entries {
		out = append(out, e.waivers...)
	}
	return out
}

// expired reports whether the waiver does nothing any more.
func (w Waiver) expired(at time.Time) bool { return !at.Before(w.Expires) }

// Waive returns the waiver that excuses from a requirement at a moment.
func (r Rule) Waive(requirement string, at time.Time) (Waiver, bool) {
	return r.waive(at, func(w Waiver) bool { return w.Requirement == requirement && requirement != "" })
}

// WaiveFinding returns the waiver that excuses from a finding at a moment, be
// it against the image or only undecided.
func (r Rule) WaiveFinding(f Finding, at time.Time) (Waiver, bool) {
	return r.waive(at, func(w Waiver) bool { return w.excuses(f) })
}

func (w Waiver) excuses(f Finding) bool {
	switch {
	case w.Rule != "":
		return f.Code == CodeRule && f.Rule == w.Rule
	case w.Vulnerability != "":
		return f.Code == CodeVulnerability && (f.ID == w.Vulnerability || f.Alias == w.Vulnerability)
	}
	return w.Requirement == f.Code && f.Code != CodeRule
}

// Lapsed returns the last waiver from a requirement that expired before the
// moment.
func (r Rule) Lapsed(requirement string, at time.Time) (Waiver, bool) {
	return r.lapsed(at, func(w Waiver) bool { return w.Requirement == requirement && requirement != "" })
}

// LapsedFinding returns the last waiver from a finding that expired before the
// moment.
func (r Rule) LapsedFinding(f Finding, at time.Time) (Waiver, bool) {
	return r.lapsed(at, func(w Waiver) bool { return w.excuses(f) })
}

func (r Rule) waive(at time.Time, fits func(Waiver) bool) (Waiver, bool) {
	var best Waiver
	for _, w := range r.waivers() {
		if fits(w) && !w.expired(at) && w.Expires.After(best.Expires) {
			best = w
		}
	}
	return best, !best.Expires.IsZero()
}

func (r Rule) lapsed(at time.Time, fits func(Waiver) bool) (Waiver, bool) {
	var last Waiver
	for _, w := range r.waivers() {
		if fits(w) && w.expired(at) && w.Expires.After(last.Expires) {
			last = w
		}
	}
	return last, !last.Expires.IsZero()
}

// Needs reports whether a demand of the rule rests on a kind of evidence. VEX
// is needed where vulnerabilities are.
func (r Rule) Needs(k Fact) bool {
	for _, e := range r.entries {
		if slices.ContainsFunc(e.rules, func(x rule) bool { return slices.Contains(x.needs, k) }) ||
			k == FactSBOM && e.packages != nil ||
			(k == FactScan || k == FactVEX) && e.vulns != nil ||
			k == FactInputs && e.level.Records() ||
			k == FactConfig && e.hardening != nil {
			return true
		}
	}
	return false
}

// Judge weighs the facts as of a moment. Missing evidence is a finding;
// evidence that cannot be read is one that is undecided.
func (r Rule) Judge(ctx context.Context, f Facts, at time.Time) Judgement {
	j := judge{facts: f, at: at}
	for _, e := range r.entries {
		for _, x := range e.rules {
			j.effective = x.effective
			j.rule(ctx, x.expression)
		}
		if e.packages != nil {
			j.effective = e.packages.effective
			j.packages(e.packages)
		}
		if e.vulns != nil {
			j.effective = e.vulns.effective
			j.vulnerabilities(r, e.vulns)
		}
		if e.hardening != nil {
			j.effective = e.hardening.effective
			j.hardening(e.hardening)
		}
	}
	return j.out
}

type judge struct {
	facts     Facts
	at        time.Time
	effective time.Time
	out       Judgement
}

func (j *judge) add(f Finding) {
	f.Effective = j.effective
	if !slices.Contains(j.out.Findings, f) {
		j.out.Findings = append(j.out.Findings, f)
	}
}

// until notes a moment that is still to come.
func (j *judge) until(when time.Time) {
	if when.After(j.at) && (j.out.Until.IsZero() || when.Before(j.out.Until)) {
		j.out.Until = when
	}
}

func (j *judge) use(bundle attest.Digest) {
	if bundle != "" && !slices.Contains(j.out.Used, bundle) {
		j.out.Used = append(j.out.Used, bundle)
	}
}

// missing says what is not there, or that it cannot be read.
func (j *judge) missing(k Fact, f Finding, message string) {
	if j.unread(k, f) {
		return
	}
	f.Message = message
	j.add(f)
}

// unread says that there is evidence of a kind that cannot be read, if there is:
// what it says could be worse than what the rest says.
func (j *judge) unread(k Fact, f Finding) bool {
	why, bad := j.facts.Unreadable[k]
	if bad {
		f.Undecided, f.Message = true, "it cannot be decided: "+why
		j.add(f)
	}
	return bad
}

func (f Facts) has(k Fact) bool {
	switch k {
	case FactConfig:
		return f.Config != nil
	case FactProvenance:
		return f.Provenance != nil && f.Signer != nil
	case FactSBOM:
		return len(f.SBOMs) > 0
	case FactInputs:
		return f.Inputs != nil
	}
	return false
}

func (k Fact) words() string {
	switch k {
	case FactConfig:
		return "the image's configuration"
	case FactProvenance:
		return "signed provenance"
	case FactSBOM:
		return "a signed SBOM"
	case FactInputs:
		return "a signed record of inputs that its provenance names by digest"
	}
	return string(k)
}

func (j *judge) rule(ctx context.Context, x *expression) {
	f := Finding{Code: CodeRule, Rule: x.name}
	for _, k := range x.needs {
		if !j.facts.has(k) {
			j.missing(k, f, fmt.Sprintf("rule %q asks about %s, and there is none that counts", clip(x.name), k.words()))
			return
		}
	}
	vars := j.facts.variables()
	runs := []SBOM{{}}
	if slices.Contains(x.needs, FactSBOM) {
		j.unread(FactSBOM, f)
		runs = j.facts.SBOMs // it must hold for each of them
	}
	for _, s := range runs {
		vars["sbom"] = sbomVar{Format: s.Format, Packages: s.Packages}
		j.use(s.Bundle)
		yes, err := x.holds(ctx, vars)
		switch {
		case err != nil:
			f.Undecided, f.Bundle = true, s.Bundle
			f.Message = fmt.Sprintf("rule %q gave neither yes nor no: %s", clip(x.name), err)
			j.add(f)
			return
		case !yes:
			f.Bundle = s.Bundle
			f.Message = fmt.Sprintf("rule %q is not fulfilled", clip(x.name))
			if x.message != "" {
				f.Message += ": " + x.message
			}
			j.add(f)
			return
		}
	}
}

// packages judges what the SBOMs list. Every SBOM counts: a package that one
// of them leaves out is in the image all the same.
func (j *judge) packages(d *packageDemand) {
	if len(j.facts.SBOMs) == 0 {
		j.missing(FactSBOM, Finding{Code: CodeSBOM}, "the policy asks for an SBOM, and no signed one that counts is attached")
		return
	}
	for _, format := range d.formats {
		if !slices.ContainsFunc(j.facts.SBOMs, func(s SBOM) bool { return s.Format == format }) {
			j.missing(FactSBOM, Finding{Code: CodeSBOM}, fmt.Sprintf("no signed %s SBOM that counts is attached", format))
		}
	}
	if len(d.forbidden) == 0 && d.licenses == nil {
		return
	}
	j.unread(FactSBOM, Finding{Code: CodeSBOM})
	for _, s := range j.facts.SBOMs {
		j.use(s.Bundle)
		if len(s.Packages) == 0 {
			j.add(Finding{Code: CodeSBOM, Bundle: s.Bundle, Message: "the " + s.Format + " SBOM lists no package, so it tells nothing about them"})
		}
		if s.Unread != "" {
			j.add(Finding{Code: CodeSBOM, Bundle: s.Bundle, Message: "the " + s.Format + " SBOM says that it lacks the packages of " + clip(s.Unread)})
		}
		var forbidden, unlicensed []string
		for _, p := range s.Packages {
			for _, pat := range d.forbidden {
				if pat.covers(p) {
					forbidden = append(forbidden, fmt.Sprintf("%s (forbidden by %q)", p.words(), pat.text))
					break
				}
			}
			if d.licenses != nil {
				if why := d.licenses.refuses(p); why != "" {
					unlicensed = append(unlicensed, p.words()+" "+why)
				}
			}
		}
		j.listed(CodePackage, s.Bundle, forbidden, "it contains ")
		j.listed(CodeLicense, s.Bundle, unlicensed, "")
	}
}

// listed adds a finding for each, up to a few: what one image can make a
// verdict say is bounded.
func (j *judge) listed(code string, bundle attest.Digest, all []string, prefix string) {
	for i, text := range all {
		if i == maxProblems {
			j.add(Finding{Code: code, Bundle: bundle, Message: fmt.Sprintf("and %d more of these", len(all)-i)})
			return
		}
		j.add(Finding{Code: code, Bundle: bundle, Message: prefix + text})
	}
}

func (p Package) words() string {
	if p.Version == "" {
		return fmt.Sprintf("package %q", clip(p.Name))
	}
	return fmt.Sprintf("package %q %s", clip(p.Name), clip(oneLine(p.Version)))
}

func (j *judge) vulnerabilities(r Rule, d *vulnDemand) {
	scans := j.latest(d)
	if len(scans) == 0 {
		return
	}
	j.unread(FactScan, Finding{Code: CodeScan})
	words := indexVEX(j.facts.VEX, j.at)
	image := subject{j.facts.Digest, j.facts.Name}
	for _, s := range scans {
		j.use(s.Bundle)
		counts := map[Severity]int{}
		var over []Finding
		waived := map[Waiver]bool{}
		for _, v := range worstFirst(s.Findings) {
			if by, excused := words.excuse(v, image, j.at); excused {
				j.unread(FactVEX, Finding{Code: CodeScan}) // it may take that back
				for _, bundle := range by {
					j.use(bundle)
				}
				continue
			}
			if d.fixableOnly && v.Fix == FixNone {
				continue
			}
			f := Finding{Code: CodeVulnerability, ID: v.ID, Alias: v.alias(), Bundle: s.Bundle, Message: v.words() + j.late(d, v)}
			if w, ok := r.WaiveFinding(f, j.at); ok {
				if !waived[w] {
					waived[w] = true
					j.add(f) // so that the waiver shows, once
				}
				continue
			}
			if j.late(d, v) != "" {
				over = append(over, f)
				continue
			}
			counted := v.Severity
			limit, limited := d.limits[counted]
			if !limited && counted == SeverityUnknown {
				counted = Critical
				limit, limited = d.limits[counted]
			}
			if counts[counted]++; limited && counts[counted] > limit {
				f.Message += fmt.Sprintf(", over the limit of %d %s", limit, counted)
				over = append(over, f)
			}
		}
		for i, f := range over {
			if i == maxProblems {
				j.add(Finding{Code: CodeVulnerability, Bundle: s.Bundle, Message: fmt.Sprintf("and %d more of these", len(over)-i)})
				break
			}
			j.add(f)
		}
	}
}

func worstFirst(found []Vulnerability) []Vulnerability {
	rank := func(s Severity) int {
		if s == SeverityUnknown {
			return 0 // it may be critical
		}
		return slices.Index(severities(), s)
	}
	out := slices.Clone(found)
	slices.SortStableFunc(out, func(a, b Vulnerability) int { return rank(a.Severity) - rank(b.Severity) })
	return out
}

// latest is the last scan of each scanner that is not too old, or all of the last
// moment. None is a finding, and so is one that cannot be read where none of its
// scanner is newer.
func (j *judge) latest(d *vulnDemand) []Scan {
	last := map[string][]Scan{}
	var unread []Scan
	why := "no signed vulnerability scan that counts is attached"
	for _, s := range j.facts.Scans {
		switch {
		case later(s.Finished, j.at):
			why = fmt.Sprintf("the vulnerability scan is dated %s, which is in the future", s.Finished.UTC().Format(time.RFC3339))
			continue
		case d.maxAge > 0 && s.Finished.IsZero():
			why = "the vulnerability scan does not say when it was made"
			continue
		case d.maxAge > 0 && j.at.Sub(s.Finished) > d.maxAge:
			why = fmt.Sprintf("the vulnerability scan is of %s, older than the %s allowed", s.Finished.UTC().Format(time.RFC3339), verify.Span(d.maxAge))
			continue
		case s.Unread != "":
			unread = append(unread, s)
			continue
		}
		if d.maxAge > 0 {
			j.until(s.Finished.Add(d.maxAge))
		}
		key := s.scanner() + " " + s.Format
		switch before := last[key]; {
		case before == nil || s.Finished.After(before[0].Finished):
			last[key] = []Scan{s}
		case s.Finished.Equal(before[0].Finished):
			last[key] = append(before, s) // nobody can tell which is the later one
		}
	}
	var out []Scan
	for _, key := range slices.Sorted(maps.Keys(last)) {
		out = append(out, last[key]...)
	}
	for _, s := range unread {
		if !slices.ContainsFunc(out, func(o Scan) bool { return o.scanner() == s.scanner() && o.Finished.After(s.Finished) }) {
			j.add(Finding{Code: CodeScan, Undecided: true, Bundle: s.Bundle, Message: "it cannot be decided: " + s.Unread})
		}
	}
	if len(out) == 0 && len(unread) == 0 {
		j.missing(FactScan, Finding{Code: CodeScan}, why)
	}
	return out
}

// scanner is the name of what scanned, whatever its version.
func (s Scan) scanner() string {
	if is, ok := parsePURL(s.Scanner); ok {
		return is.name
	}
	return s.Scanner
}

// late says by how much a vulnerability has outlived the time allowed for it,
// "" when it has not. One that nobody dates counts as old.
func (j *judge) late(d *vulnDemand, v Vulnerability) string {
	allowed, ok := d.sla[v.Severity]
	if !ok && v.Severity == SeverityUnknown {
		allowed, ok = d.sla[Critical]
	}
	switch {
	case !ok:
		return ""
	case v.Known.IsZero():
		return fmt.Sprintf(", and the scan does not say since when it is known, so the %s allowed count as over", verify.Span(allowed))
	case j.at.Sub(v.Known) > allowed:
		return fmt.Sprintf(", known since %s, longer than the %s allowed", v.Known.UTC().Format(time.DateOnly), verify.Span(allowed))
	}
	j.until(v.Known.Add(allowed))
	return ""
}

func (v Vulnerability) words() string {
	s := fmt.Sprintf("%s (%s)", clip(oneLine(v.ID)), v.Severity)
	if v.Package != "" {
		s += fmt.Sprintf(" in %q", clip(v.Package))
	}
	if v.Version != "" {
		s += " " + clip(oneLine(v.Version))
	}
	if v.FixedIn != "" {
		s += ", fixed in " + clip(oneLine(v.FixedIn))
	}
	return s
}

func (j *judge) hardening(h *hardening) {
	c := j.facts.Config
	if c == nil {
		code := CodeRoot
		if h.nonRoot == "" {
			code = CodeSecret
		}
		j.missing(FactConfig, Finding{Code: code}, "the image has no configuration that could be looked at")
		return
	}
	if h.nonRoot != "" {
		if why := rooted(c, h.nonRoot == "numeric"); why != "" {
			j.add(Finding{Code: CodeRoot, Message: why})
		}
	}
	if h.secrets != nil {
		j.listed(CodeSecret, "", h.secrets.search(c), "")
	}
}

// rooted says why an image is not known to run as somebody else than root.
func rooted(c *ImageConfig, numeric bool) string {
	user, _, _ := strings.Cut(c.User, ":")
	number := user != "" && strings.Trim(user, "0123456789") == ""
	id, err := strconv.Atoi(user) // as a runtime reads it: +0 and -0 are root too
	switch {
	case user == "":
		return "the image sets no user, so it runs as root"
	case number && strings.Trim(user, "0") == "", err == nil && id == 0,
		slices.ContainsFunc([]string{"root", "toor", "ContainerAdministrator", "Administrator"}, func(n string) bool { return strings.EqualFold(n, user) }):
		return fmt.Sprintf("the image runs as %q, which is root", clip(c.User))
	case errors.Is(err, strconv.ErrRange), err == nil && (id < 0 || id > math.MaxInt32):
		return fmt.Sprintf("the image runs as %q, which is no user's number: cut to 32 bits it can be root's (CVE-2024-40635)", clip(c.User))
	case numeric && !number:
		return fmt.Sprintf("the image runs as %q; only a number shows that this is not root", clip(c.User))
	}
	return ""
}

// waivable are the requirements that a waiver can name, beside rules and
// vulnerabilities.
func waivable() []string {
	var out []string
	for _, q := range verify.Requirements() {
		// What is not as expected is waived by what it is: see below.
		if q.ID != verify.RowExpectations {
			out = append(out, q.ID)
		}
	}
	return append(out,
		CodeSource, CodeBuildType, CodeParameter,
		CodeSBOM, CodeSummary, CodePackage, CodeLicense, CodeVulnerability, CodeScan, CodeRoot, CodeSecret, CodeDependency)
}

// meant says what somebody who named a requirement that is none can name.
func meant(requirement string) string {
	if near := verify.Nearest(requirement); slices.Contains(waivable(), near) {
		return fmt.Sprintf("it may be %q that is meant (\"waxseal levels\" lists all)", near)
	}
	var codes []string
	for _, name := range waivable() {
		if !strings.Contains(name, ".") {
			codes = append(codes, name)
		}
	}
	return "there are the requirements that \"waxseal levels\" lists, and " + strings.Join(codes, ", ")
}
