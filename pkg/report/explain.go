package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Explain writes the whole chain of reasoning of a verdict for people: what was
// asked, who is believed, every piece of evidence and what became of it, every
// requirement with what its answer rests on, what else stands for or against
// the image, and how the decision follows. Nothing is cut.
func Explain(w io.Writer, v *gate.Verdict, opts TextOptions) error {
	o := opts.sized()
	var b strings.Builder
	title := func(s string) { b.WriteString("\n" + o.paint(bold, s) + "\n") }
	item := func(indent, format string, args ...any) {
		for _, l := range o.wrap(indent, oneLine(fmt.Sprintf(format, args...))) {
			b.WriteString(l + "\n")
		}
	}
	b.WriteString(strings.Join(o.head(v), "\n") + "\n")
	title("What was asked")
	item("- ", "does %s carry what is declared: %s", v.Image, v.Declared)
	if v.Digest != "" {
		item("- ", "the reference is the digest %s; everything below is about it and what is below it", v.Digest)
	}
	if v.PolicyDigest != "" {
		item("- ", "the policy is %s", v.PolicyDigest)
	}
	item("- ", "the trust is %s, given by %s", v.TrustDigest, trust(v))
	if !v.AsOf.IsZero() {
		item("- ", "it was judged as of %s", v.AsOf.UTC().Format(time.RFC3339))
	}
	if e := v.Explanation; e != nil {
		title("Who is believed")
		for _, s := range e.Trust {
			item("- ", "%s", s)
		}
		title("What is demanded")
		if len(e.Demands) == 0 {
			item("- ", "the declared level, and nothing else: there is no policy, or none of its entries is for this image")
		}
		for _, s := range e.Demands {
			item("- ", "%s", s)
		}
	}
	title("The evidence, each piece on its own")
	for _, p := range parts(v) {
		o.explainEvidence(item, p)
	}
	title("The requirements")
	for _, p := range parts(v) {
		o.explainRows(item, v, p)
	}
	if v.Dependencies != nil {
		title("What it was built from")
		item("- ", "%s", v.DependenciesByLevel())
		for _, d := range v.Dependencies {
			item("- ", "%s: %s %s", d.URI, d.Decision, d.Message)
		}
	}
	title("What stands against it, and what does not count")
	explainReasons(item, v)
	title("So the decision is")
	item("- ", "%s", conclusion(v))
	if !v.ValidUntil.IsZero() {
		item("- ", "the answer may be kept until %s, for this digest under this policy and trust", v.ValidUntil.UTC().Format(time.RFC3339))
	}
	if next := advice(v); next != "" {
		item("- ", "next: %s", next)
	}
	_, err := io.WriteString(w, Tame(b.String()))
	return err
}

// sayer writes one item, wrapped, behind its indent.
type sayer func(indent, format string, args ...any)

func (o TextOptions) explainEvidence(item sayer, p part) {
	item("- ", "%s %s:", p.name, p.Digest)
	if len(p.Evidence) == 0 {
		item("  - ", "nothing is known of any evidence")
	}
	for _, e := range p.Evidence {
		item("  - ", "%s, %s: %s", kind(e), where(e), became(e))
		if e.Bundle != "" {
			item("    ", "digest %s", e.Bundle)
		}
		if e.Says != "" && e.Accepted {
			item("    ", "it says: %s", e.Says)
		} else if e.Says != "" {
			item("    ", "it says, unverified: %s", e.Says)
		}
		if e.Signer != nil {
			item("    ", "signed by %s%s", signer(e.Signer), provedAt(e.Signer))
		}
		if e.Message != "" {
			item("    ", "because: %s (%s)", e.Message, e.Code)
		}
	}
}

func provedAt(s *verify.Signer) string {
	if s.Time.IsZero() {
		return ""
	}
	text := ", proved for " + s.Time.UTC().Format(time.RFC3339)
	if s.Unlogged != "" {
		text += fmt.Sprintf(", in no transparency log (%s)", oneLine(s.Unlogged))
	}
	return text
}

func (o TextOptions) explainRows(item sayer, v *gate.Verdict, p part) {
	item("- ", "%s reaches %s:", p.name, verify.Demand{Levels: p.Reached, Properties: p.Properties})
	for _, r := range rows(v, p.Subject) {
		need := "not asked"
		if r.AskedBy(v.Declared) {
			need = "asked"
		}
		item("  - ", "%s%s (%s, %s): %s", rung(r.Level), r.Title, r.ID, need, r.Status)
		item("    ", "%s", r.Reason)
		for _, e := range r.Evidence {
			item("    ", "rests on %s#%s", verify.Short(e.Bundle), e.Pointer)
		}
		item("    ", "%s", r.Clause)
		if r.Hint != "" {
			item("    ", "the shortest way: %s", r.Hint)
		}
	}
}

func explainReasons(item sayer, v *gate.Verdict) {
	for _, r := range v.Reasons {
		about := ruleOf(v, r)
		item("- ", "against it (%s): %s", about.id, said(r))
		if r.Bundle != "" {
			item("  ", "seen in %s#%s", verify.Short(r.Bundle), r.Pointer)
		}
		if about.clause != "" {
			item("  ", "%s", about.clause)
		}
	}
	for _, r := range v.Warnings {
		item("- ", "not yet against it (%s): %s", ruleOf(v, r).id, said(r))
	}
	for _, w := range v.Waived {
		item("- ", "%s: %s", waivedBy(w), on(w.Platform, w.Message))
	}
	if len(v.Reasons)+len(v.Warnings)+len(v.Waived) == 0 {
		item("- ", "nothing")
	}
}

// conclusion says how the decision follows from the rest.
func conclusion(v *gate.Verdict) string {
	switch {
	case v.Decision == gate.Undecided && len(v.Reasons) > 0 && len(v.Requirements) == 0:
		return "UNDECIDED: what is needed to decide could not be had, so nothing was decided, and that is no pass"
	case v.Decision == gate.Undecided:
		return "UNDECIDED: nothing stands against it, but a demand gave neither yes nor no, and that is no pass"
	case v.Decision == gate.Deny:
		return fmt.Sprintf("DENIED: one reason is enough, and there are %d; the level counted is that of the weakest part, %s", len(v.Reasons), carried(v))
	}
	if len(v.Waived) > 0 {
		return fmt.Sprintf("PASSED: the level is min(trust, evidence) of the weakest part, %s, declared is %s, and what is missing is waived", carried(v), v.Declared)
	}
	return fmt.Sprintf("PASSED: the level is min(trust, evidence) of the weakest part, %s, declared is %s, and nothing stands against it", carried(v), v.Declared)
}
