package report

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Bounds of the renderings that other programs show. JSON has everything.
const (
	maxRenderedText = 400  // runes of one message or name
	maxRendered     = 50   // reasons, notes or pieces of evidence
	maxBrief        = 1000 // runes of a verdict in one line
)

// clean makes foreign text one line of printable characters, of a length to show.
func clean(s string) string { return clip(oneLine(s), maxRenderedText) }

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// Tame keeps foreign text in finished lines from being taken for a command by
// what runs the job: GitHub's runner takes what begins a line with "::", and, as
// Azure's agent does with "##vso[", what has "##[" anywhere.
func Tame(text string) string {
	lines := strings.Split(strings.ReplaceAll(text, "##", "# #"), "\n")
	for i, l := range lines {
		if rest := strings.TrimLeft(l, " "); strings.HasPrefix(rest, "::") {
			lines[i] = l[:len(l)-len(rest)] + ": :" + rest[2:]
		}
	}
	return strings.Join(lines, "\n")
}

// part is one digest of a verdict, with its name and its own answer.
type part struct {
	gate.Subject
	name string
}

// parts lists the image's own part and its platforms.
func parts(v *gate.Verdict) []part {
	own := part{v.Subject, "image"}
	if len(v.Platforms) > 0 {
		own.name = "index"
	}
	// The verdict's own decision stands for all; this is the part's.
	own.Decision = v.Decision
	if len(v.Platforms) > 0 && v.Decision != gate.Undecided {
		own.Decision = gate.Pass
		if slices.ContainsFunc(v.Reasons, func(r gate.Reason) bool { return r.Platform == "" }) {
			own.Decision = gate.Deny
		}
	}
	out := []part{own}
	for _, p := range v.Platforms {
		out = append(out, part{p, clean(p.Platform)})
	}
	return out
}

// of reports whether something that names a platform is about the part.
func (p part) of(platform string) bool { return clean(platform) == clean(p.Platform) }

// at names the digest that a reason is about: the image, by digest where it is
// known.
func at(v *gate.Verdict, r gate.Reason) string {
	d := r.Digest
	if d == "" {
		d = v.Digest
	}
	name := v.Image
	if d != "" {
		name, _, _ = strings.Cut(name, "@")
		name += "@" + string(d)
	}
	return clean(name)
}

// rule is the requirement, or the rule of a policy, that a reason stands on.
type rule struct {
	id, title, clause string
}

// ruleOf finds it. Requirements have their clause in the specification; what a
// policy demands of itself has none.
func ruleOf(v *gate.Verdict, r gate.Reason) rule {
	switch {
	case r.Rule != "":
		return rule{id: "rule/" + clean(r.Rule), title: "the policy's rule " + clean(r.Rule)}
	case r.Requirement == "":
		return rule{id: clean(r.Code), title: titleOf(r.Code)}
	}
	out := rule{id: clean(r.Requirement), title: clean(r.Requirement)}
	for _, p := range parts(v) {
		for _, row := range p.Requirements {
			if row.ID == r.Requirement {
				out.title, out.clause = row.Title, row.Clause
			}
		}
	}
	if r.Code != gate.CodeLevel && r.Code != r.Requirement {
		out.id += "/" + clean(r.Code)
	}
	return out
}

// titleOf says in words what a code that is no requirement stands for. Another
// stands for itself.
func titleOf(code string) string {
	switch code {
	case policy.CodeSource, policy.CodeBuildType, policy.CodeParameter:
		return "Built from what the policy expects"
	case policy.CodeSBOM:
		return "Has an SBOM that counts"
	case policy.CodePackage:
		return "Holds no forbidden package"
	case policy.CodeLicense:
		return "Holds allowed licences only"
	case policy.CodeScan:
		return "Has a scan that counts"
	case policy.CodeVulnerability:
		return "Has no vulnerability above the limit"
	case policy.CodeRoot:
		return "Does not run as root"
	case policy.CodeSecret:
		return "Holds no secret"
	case policy.CodeSummary:
		return "Has a verification summary that counts"
	case policy.CodeDependency:
		return "Built from images that are as the policy asks"
	case gate.CodeNoRule:
		return "The policy has an entry for the image"
	case gate.CodeTrust:
		return "What is to be trusted can be fetched"
	case gate.CodeNotFound, gate.CodeUnavailable, gate.CodeUnreadable:
		return "The image and its evidence can be read"
	}
	return clean(code)
}

// waivedReason is a waiver as the reason that it excuses from.
func waivedReason(w gate.Waived) gate.Reason {
	code := w.Requirement
	switch {
	case w.Rule != "":
		code = "rule"
	case w.Vulnerability != "":
		code = "vulnerability"
	}
	return gate.Reason{Code: code, Requirement: w.Requirement, Rule: w.Rule, Message: w.Message, Platform: w.Platform, Digest: w.Digest}
}

func waivedBy(w gate.Waived) string {
	return fmt.Sprintf("waived until %s by %s: %s", w.Expires.UTC().Format("2006-01-02"), clean(w.Owner), clean(w.Reason))
}

// became says in a word what became of a piece of evidence.
func became(e gate.Evidence) string {
	switch {
	case e.Used:
		return "used"
	case e.Accepted:
		return "accepted"
	case e.Code == gate.CodeNotNeeded:
		return "not needed"
	case e.Code == gate.CodeSkipped:
		return "not read"
	case e.Code == gate.CodeStapled:
		return "stapled"
	case e.Code == verify.CodeUnsigned:
		return "not signed"
	}
	return "rejected"
}

// because says why, or who signed it.
func because(e gate.Evidence) string {
	switch {
	case e.Accepted && e.Signer != nil:
		return "signed by " + signer(e.Signer)
	case e.Message != "":
		return clean(e.Message)
	}
	return clean(string(e.Code))
}
