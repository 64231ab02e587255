// Package report renders what package gate found: a verdict or an inspection,
// for people (Verdict, Explain, Markdown, Tree) and for programs (JSON, SARIF,
// JUnit, and Line for streams). The renderings say the same; JSON leaves nothing
// out and has a schema.
package report

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

var (
	//go:embed verdict.schema.json
	verdictSchema string
	//go:embed inspection.schema.json
	inspectionSchema string
	//go:embed rebuild.schema.json
	rebuildSchema string
)

// VerdictSchema is the JSON Schema of a gate.Verdict as JSON writes it.
func VerdictSchema() []byte { return []byte(verdictSchema) }

// InspectionSchema is the JSON Schema of a gate.Inspection.
func InspectionSchema() []byte { return []byte(inspectionSchema) }

// RebuildSchema is the JSON Schema of what rebuild prints as JSON.
func RebuildSchema() []byte { return []byte(rebuildSchema) }

// TextOptions configures the renderings for people.
type TextOptions struct {
	Color bool
	// Width and Height of the screen; default 80 and 24. A verdict is cut to
	// fit, never in its first lines.
	Width, Height int
}

func (o TextOptions) sized() TextOptions {
	if o.Width < 40 {
		o.Width = 80
	}
	if o.Height < 12 {
		o.Height = 24
	}
	return o
}

// JSON writes a verdict or an inspection for programs.
func JSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("writing JSON: %w", err)
	}
	return nil
}

type color string

const (
	plain  color = ""
	red    color = "\x1b[31m"
	green  color = "\x1b[32m"
	yellow color = "\x1b[33m"
	bold   color = "\x1b[1m"
	dim    color = "\x1b[2m"
)

func (o TextOptions) paint(c color, s string) string {
	if !o.Color || c == plain {
		return s
	}
	return string(c) + s + "\x1b[0m"
}

// Verdict writes a verdict for people: the answer first, then why, then what
// to do next.
func Verdict(w io.Writer, v *gate.Verdict, opts TextOptions) error {
	o := opts.sized()
	head, next := o.head(v), o.next(v)
	parts, rows, reasons, notes := o.parts(v, 4), o.rows(v, each), o.reasons(v, 6), o.notes(v, 6)
	pieces, below := o.pieces(v, 8), o.dependencies(v, 3)
	// What gives way when the screen is full, in this order: the evidence, a
	// line for each row, then what is waived or to come, then reasons, then the
	// rows that are met, then platforms. All of it is in JSON.
	for _, shorter := range []func(){
		func() { pieces = o.pieces(v, 3) },
		func() { pieces = pieceCount(v) },
		func() { rows = o.rows(v, grouped) },
		func() { notes = o.notes(v, 2) },
		func() { below = o.dependencies(v, 0) },
		func() { reasons = o.reasons(v, 4) },
		func() { rows = o.rows(v, open) },
		func() { notes = o.notes(v, 1) },
		func() { reasons = o.reasons(v, 2) },
		func() { parts = o.parts(v, 2) },
		func() { reasons = o.reasons(v, 1) },
		func() { parts = o.parts(v, 0) },
		func() { notes = o.notes(v, 0) },
		func() { pieces = nil },
	} {
		if height(o, head)+height(o, parts)+height(o, below)+height(o, rows)+height(o, pieces)+height(o, reasons)+height(o, notes)+height(o, next) < o.Height {
			break
		}
		shorter()
	}
	var b strings.Builder
	for _, section := range [][]string{head, parts, below, rows, pieces, reasons, notes, next} {
		for _, line := range section {
			b.WriteString(line)
			b.WriteByte('\n')
		}
	}
	_, err := io.WriteString(w, Tame(b.String()))
	return err
}

// height is how many lines of the screen a section takes.
func height(o TextOptions, lines []string) int {
	n := 0
	for _, l := range lines {
		n += 1 + max(0, visible(l)-1)/o.Width
	}
	return n
}

// visible is the width of a line without its colours.
func visible(s string) int {
	n := 0
	for {
		i := strings.Index(s, "\x1b[")
		if i < 0 {
			return n + utf8.RuneCountInString(s)
		}
		n += utf8.RuneCountInString(s[:i])
		end := strings.IndexByte(s[i:], 'm')
		if end < 0 {
			return n
		}
		s = s[i+end+1:]
	}
}

func (o TextOptions) head(v *gate.Verdict) []string {
	word := map[gate.Decision]string{gate.Pass: "PASSED", gate.Deny: "DENIED", gate.Undecided: "UNDECIDED"}[v.Decision]
	c := map[gate.Decision]color{gate.Pass: green, gate.Deny: red, gate.Undecided: yellow}[v.Decision]
	declared := verify.Demand{Levels: v.Declared.Levels}.String()
	levels := "carries SLSA " + verify.Demand{Levels: v.Reached}.String() + ", declared " + declared
	if v.Decision == gate.Undecided {
		levels = "could not be decided; declared " + declared
	}
	lines := []string{o.paint(c, word) + "  " + o.paint(bold, levels) + " (trust: " + trust(v) + ")", "  " + oneLine(v.Image)}
	if !v.AsOf.IsZero() {
		lines[0] += o.paint(yellow, " as of "+v.AsOf.Format(time.RFC3339))
	}
	// Levels of both tracks leave no room for whose trust it is.
	if by := " (trust: " + trust(v) + ")"; visible(lines[0]) > o.Width {
		lines[0] = strings.Replace(lines[0], by, "", 1)
		lines = append(lines, "  trust: "+trust(v))
	}
	if v.Digest != "" {
		lines = append(lines, "  "+string(v.Digest))
	}
	if v.Decision != gate.Undecided {
		lines = append(lines, o.properties(v)...)
	}
	for _, name := range certified(v) {
		// The name alone can be as wide as the screen.
		at := strings.LastIndex(name, " (")
		lines = append(lines, "  signed by "+name[:at], "     under "+strings.Trim(name[at:], " ()"))
	}
	for _, why := range unlogged(v) {
		lines = append(lines, o.wrap("  in no transparency log, which the policy allows: ", why)...)
	}
	return lines
}

// properties names those that are verified, and those that are asked for and
// are not.
func (o TextOptions) properties(v *gate.Verdict) []string {
	var lines, without []string
	for _, name := range v.Declared.Properties {
		if !slices.Contains(v.Properties, name) {
			without = append(without, name)
		}
	}
	if len(v.Properties) > 0 {
		lines = o.wrap("  with ", strings.Join(v.Properties, ", "))
	}
	if len(without) > 0 {
		lines = append(lines, o.wrap("  without ", strings.Join(without, ", "))...)
	}
	return lines
}

func trust(v *gate.Verdict) string {
	switch v.TrustedBy {
	case gate.TrustedByPolicy:
		return "the policy"
	case gate.TrustedByKeys:
		return "the keys given"
	case gate.TrustedByIdentities:
		return "the identities given"
	}
	return "nobody's"
}

// dependencies says what it was built from, where that was looked at.
func (o TextOptions) dependencies(v *gate.Verdict, most int) []string {
	if v.Dependencies == nil || v.Decision == gate.Undecided {
		return nil
	}
	lines := append([]string{""}, o.wrap("", v.DependenciesByLevel())...)
	left := 0
	for _, d := range v.Dependencies {
		if d.Decision == gate.Pass {
			continue
		}
		if left++; left <= most {
			lines = append(lines, o.wrap("  ", d.URI+": "+d.Message)...)
		}
	}
	if left > most {
		lines = append(lines, fmt.Sprintf("  %s not passed (--output json)", more(left-most, "image")))
	}
	return lines
}

// parts lists the platforms of an index.
func (o TextOptions) parts(v *gate.Verdict, most int) []string {
	if len(v.Platforms) == 0 || v.Decision == gate.Undecided {
		return nil
	}
	lines := []string{""}
	line := func(name string, s gate.Subject) string {
		return fmt.Sprintf("  %-16s %-26s Build L%d  %s", name, verify.Short(s.Digest), s.Reached.Build, o.decision(s.Decision))
	}
	lines = append(lines, line("index", v.Subject))
	// The worst first: that is the one to look at.
	sorted := slices.Clone(v.Platforms)
	slices.SortStableFunc(sorted, func(a, b gate.Subject) int { return rank(a) - rank(b) })
	for i, p := range sorted {
		if i == most && len(sorted) > most+1 {
			lines = append(lines, fmt.Sprintf("  and %s (--output json)", more(len(sorted)-most, "platform")))
			break
		}
		lines = append(lines, line(p.Platform, p))
	}
	return lines
}

func more(n int, what string) string {
	if n == 1 {
		return "1 more " + what
	}
	return fmt.Sprintf("%d more %ss", n, what)
}

func rank(s gate.Subject) int {
	n := s.Reached.Build
	if s.Decision == gate.Pass {
		n += 10
	}
	return n
}

func (o TextOptions) decision(d gate.Decision) string {
	switch d {
	case gate.Pass:
		return o.paint(green, "pass")
	case gate.Deny:
		return o.paint(red, "deny")
	}
	return o.paint(yellow, "undecided")
}

// weakest is the part whose rows are shown.
func weakest(v *gate.Verdict) (gate.Subject, string) {
	worst, name := v.Subject, "the image"
	if len(v.Platforms) > 0 {
		name = "the index"
	}
	worst.Decision = gate.Pass
	if slices.ContainsFunc(v.Reasons, func(r gate.Reason) bool { return r.Platform == "" && r.Digest == v.Digest }) {
		worst.Decision = gate.Deny
	}
	for _, p := range v.Platforms {
		if rank(p) < rank(worst) {
			worst, name = p, p.Platform
		}
	}
	return worst, name
}

// How rows are shown.
type detail int

const (
	each    detail = iota // a line for each
	grouped               // those with the same level and answer together
	open                  // the same, without those that are met
)

func (o TextOptions) rows(v *gate.Verdict, d detail) []string {
	s, name := weakest(v)
	if len(s.Requirements) == 0 {
		return nil
	}
	var lines []string
	for _, t := range []struct {
		track verify.Track
		title string
	}{{verify.TrackBuild, "SLSA v1.2 Build"}, {verify.TrackSource, "SLSA v1.2 Source"}, {verify.TrackProperty, "verified properties"}} {
		var rows []verify.Row
		for _, r := range s.Requirements {
			if r.Track == t.track && shown(r, v) && (d != open || r.Status != verify.Met) {
				rows = append(rows, r)
			}
		}
		if len(rows) == 0 {
			continue
		}
		title := t.title
		if len(lines) == 0 {
			lines = append(lines, "")
			if len(v.Platforms) > 0 {
				title += ", " + name
			}
			if d == each {
				title = fmt.Sprintf("%-31s %-15s %s", title, "answer", "rests on")
			}
		}
		lines = append(lines, o.paint(dim, title))
		if d != each {
			lines = append(lines, o.grouped(rows)...)
			continue
		}
		for _, r := range rows {
			lines = append(lines, strings.TrimRight(fmt.Sprintf("%s%-28s %s %s", rung(r.Level), r.Title, o.status(r.Status), restsOn(r, o.Width-48)), " "))
		}
	}
	return lines
}

// shown leaves out what nobody asked about and nothing is known of.
func shown(r verify.Row, v *gate.Verdict) bool {
	return r.Track == verify.TrackBuild || r.Status != verify.Unknown || r.AskedBy(v.Declared)
}

func rung(level int) string {
	if level == 0 {
		return "   "
	}
	return fmt.Sprintf("L%d ", level)
}

// grouped names the requirements with the same level and answer together.
func (o TextOptions) grouped(rows []verify.Row) []string {
	var lines []string
	for level := range verify.MaxSourceLevel + 1 {
		for _, status := range []verify.Status{verify.NotMet, verify.Unknown, verify.Met} {
			var titles []string
			for _, r := range rows {
				if r.Level == level && r.Status == status {
					titles = append(titles, r.Title)
				}
			}
			if len(titles) == 0 {
				continue
			}
			wrapped := o.wrap(fmt.Sprintf("%s%-15s ", rung(level), status), strings.Join(titles, ", "))
			wrapped[0] = rung(level) + o.status(status) + wrapped[0][3+15:]
			lines = append(lines, wrapped...)
		}
	}
	return lines
}

func (o TextOptions) status(s verify.Status) string {
	c := map[verify.Status]color{verify.Met: green, verify.NotMet: red, verify.Unknown: yellow}[s]
	return o.paint(c, string(s)) + strings.Repeat(" ", 15-len(s))
}

// restsOn names the field that a row rests on first of all, as much of its end
// as fits.
func restsOn(r verify.Row, width int) string {
	if len(r.Evidence) == 0 {
		return ""
	}
	p := strings.TrimPrefix(strings.TrimPrefix(r.Evidence[0].Pointer, "/predicate"), "/")
	if p == "" {
		return "the statement"
	}
	for utf8.RuneCountInString(p) > width {
		_, rest, ok := strings.Cut(p, "/")
		if !ok {
			return clip(p, width)
		}
		p = rest
	}
	return p
}

func (o TextOptions) reasons(v *gate.Verdict, most int) []string {
	if len(v.Reasons) == 0 {
		return nil
	}
	lines := []string{""}
	hint := ""
	for i, r := range v.Reasons {
		if i == most {
			lines = append(lines, fmt.Sprintf("  and %s (--output json)", more(len(v.Reasons)-most, "reason")))
			break
		}
		text := r.Message
		if r.Platform != "" {
			text = r.Platform + ": " + text
		}
		if r.Pointer != "" && !strings.Contains(text, r.Pointer) {
			text += " [" + r.Pointer + "]"
		}
		lines = append(lines, o.wrap("- ", text)...)
		// One way can lead out of several.
		if r.Hint != "" && r.Hint != hint {
			lines = append(lines, o.wrap("  hint: ", r.Hint)...)
		}
		hint = r.Hint
	}
	return lines
}

// notes names the demands that the image is excused from, and those that are
// not in effect yet. With none to show it says how many there are.
func (o TextOptions) notes(v *gate.Verdict, most int) []string {
	var all []string
	for _, w := range v.Waived {
		all = append(all, fmt.Sprintf("waived until %s by %s (%s): %s", w.Expires.Format(time.DateOnly), w.Owner, w.Reason, on(w.Platform, w.Message)))
	}
	for _, r := range v.Warnings {
		all = append(all, fmt.Sprintf("warning, denied from %s on: %s", r.Effective.UTC().Format(time.DateOnly), on(r.Platform, r.Message)))
	}
	if len(all) == 0 {
		return nil
	}
	lines := []string{""}
	if most == 0 {
		return append(lines, o.paint(yellow, fmt.Sprintf("%d waived, %d to come into effect (--output json)", len(v.Waived), len(v.Warnings))))
	}
	for i, text := range all {
		if i == most {
			return append(lines, fmt.Sprintf("  and %s (--output json)", more(len(all)-most, "note")))
		}
		lines = append(lines, o.wrap("* ", text)...)
	}
	return lines
}

func on(platform, text string) string {
	if platform == "" {
		return text
	}
	return platform + ": " + text
}

// next says what to do now.
func (o TextOptions) next(v *gate.Verdict) []string {
	text := advice(v)
	if text == "" {
		return nil
	}
	return append([]string{""}, o.wrap("next: ", text)...)
}

func advice(v *gate.Verdict) string {
	inspect := fmt.Sprintf("\"waxseal inspect %s\" shows all that is attached", oneLine(v.Image))
	if v.Decision == gate.Pass && strings.HasPrefix(v.Image, "file:") {
		return "use it: these very bytes have passed"
	}
	if v.Decision == gate.Pass {
		return "use it by this digest; \"waxseal promote SRC DST\" ships it with a signed summary of this verdict"
	}
	codes := map[string]bool{}
	for _, r := range v.Reasons {
		codes[r.Code] = true
	}
	switch {
	case v.Decision == gate.Undecided && codes[gate.CodeNotFound]:
		return "check the name and the tag, and ask again"
	case v.Decision == gate.Undecided && codes[gate.CodeInternal]:
		return "nothing was decided; please report this with the reference and the version"
	case v.Decision == gate.Undecided && codes[gate.CodeUnreadable]:
		return "nothing was decided, and asking again gives the same: what is there must change first"
	case v.Decision == gate.Undecided:
		return "nothing was decided; ask again when the cause is gone"
	case codes[gate.CodeNoRule]:
		return "add an entry for this image to the policy, or ask about the name that the policy has"
	case codes["parameter"] || codes["source"] || codes["build-type"]:
		return "if this is meant, say so in the policy (parameters, source, buildTypes); if not, build it again as expected"
	case codes[policy.CodeScan]:
		return "scan the image and sign the result: \"waxseal attest --type vuln\" (cosign's predicate around the scanner's JSON)"
	case codes[policy.CodeVulnerability]:
		return "build with the fixed versions; what does not affect the image, an attester of the policy can say in OpenVEX"
	case codes[policy.CodePackage] || codes[policy.CodeLicense] || codes[policy.CodeRoot] || codes[policy.CodeSecret] || codes[policy.CodeRule]:
		return "build the image as the policy asks (\"waxseal policy explain\" says it in words); a waiver in the policy excuses for a while"
	case codes[policy.CodeDependency]:
		return "build it from images that are as the policy asks; \"waxseal verify\" of the one named says what that one lacks"
	case codes[policy.CodeSBOM]:
		return "\"waxseal build\" attaches signed SBOMs; for another image, \"waxseal sbom\" writes one and \"waxseal attest\" signs it"
	}
	return inspect
}

// wrap breaks text at spaces; the second line on stands under the first word.
func (o TextOptions) wrap(prefix, text string) []string {
	indent := strings.Repeat(" ", len(prefix))
	line, lead := prefix, true
	var lines []string
	for _, word := range strings.Fields(text) {
		if !lead && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > o.Width {
			lines = append(lines, line)
			line, lead = indent, true
		}
		if !lead {
			line += " "
		}
		line += word
		lead = false
	}
	return append(lines, line)
}

func clip(s string, width int) string {
	r := []rune(s)
	if len(r) <= width || width < 2 {
		return s
	}
	return string(r[:width-1]) + "…"
}

// Tree writes an inspection as a tree: what is attached, by whom signed,
// verified or not, and what it says.
func Tree(w io.Writer, in *gate.Inspection, opts TextOptions) error {
	o := opts.sized()
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", o.paint(bold, in.Image))
	fmt.Fprintf(&b, "%s %s\n", in.Kind, in.Digest)
	if in.TrustedBy == gate.TrustedByNobody {
		b.WriteString("No key and no policy given: nothing below is verified.\n")
	}
	o.evidence(&b, "", in.Evidence, len(in.Platforms) == 0)
	for i, p := range in.Platforms {
		branch, stem := "├─ ", "│  "
		if i == len(in.Platforms)-1 {
			branch, stem = "└─ ", "   "
		}
		fmt.Fprintf(&b, "%s%s %s\n", branch, o.paint(bold, p.Platform), p.Digest)
		o.evidence(&b, stem, p.Evidence, true)
	}
	_, err := io.WriteString(w, Tame(b.String()))
	return err
}

func (o TextOptions) evidence(b *strings.Builder, stem string, all []gate.Evidence, last bool) {
	if len(all) == 0 {
		branch := "├─ "
		if last {
			branch = "└─ "
		}
		fmt.Fprintf(b, "%s%sno evidence attached\n", stem, branch)
	}
	for i, e := range all {
		branch, below := "├─ ", "│  "
		if last && i == len(all)-1 {
			branch, below = "└─ ", "   "
		}
		fmt.Fprintf(b, "%s%s%s  %s\n", stem, branch, kind(e), o.verified(e))
		if e.Says != "" {
			fmt.Fprintf(b, "%s%s  %s\n", stem, below, e.Says)
		}
		if !e.Accepted && e.Message != "" {
			fmt.Fprintf(b, "%s%s  %s\n", stem, below, o.paint(dim, e.Message))
		}
		fmt.Fprintf(b, "%s%s  %s\n", stem, below, o.paint(dim, where(e)))
	}
}

// kind is a predicate type as people say it.
func kind(e gate.Evidence) string {
	t := e.PredicateType
	switch {
	case t == "":
		return "unknown"
	case strings.HasPrefix(t, "https://slsa.dev/provenance/"):
		return "SLSA provenance " + strings.TrimPrefix(t, "https://slsa.dev/provenance/")
	case strings.HasPrefix(t, "https://slsa.dev/verification_summary/"):
		return "verification summary"
	case strings.HasPrefix(t, "https://waxseal.dev/attestations/inputs/"):
		return "record of inputs"
	case strings.HasPrefix(t, "https://spdx.dev/Document"):
		return "SPDX SBOM"
	case strings.HasPrefix(t, "https://cyclonedx.org/bom"):
		return "CycloneDX SBOM"
	case policy.FactOf(t) == policy.FactScan:
		return "vulnerability scan"
	case policy.FactOf(t) == policy.FactVEX:
		return "OpenVEX"
	case policy.FactOf(t) == policy.FactInputs:
		return "record of inputs"
	}
	return oneLine(t)
}

func (o TextOptions) verified(e gate.Evidence) string {
	switch {
	case e.Accepted:
		return o.paint(green, "verified") + ", signed by " + signer(e.Signer)
	case e.Code == gate.CodeSkipped:
		return o.paint(yellow, "not read")
	case e.Code == verify.CodeUnsigned:
		return o.paint(yellow, "not signed")
	case e.Code == verify.CodeCertificate:
		return o.paint(yellow, "not verified") + ", signed with a certificate"
	case e.Code == verify.CodeNoKey:
		if e.KeyHint != "" {
			return o.paint(yellow, "not verified") + ", says it is signed by key " + clip(e.KeyHint, 20)
		}
		return o.paint(yellow, "not verified") + ", signed"
	case e.Signer != nil:
		return o.paint(red, "rejected") + ", signed by " + signer(e.Signer)
	}
	return o.paint(red, "rejected")
}

// certified lists whose certificates the verdict rests on, three at most: a key
// says its name itself, in the policy or on the command line.
func certified(v *gate.Verdict) []string {
	var out []string
	for _, s := range append([]gate.Subject{v.Subject}, v.Platforms...) {
		for _, e := range s.Evidence {
			if !e.Used || e.Signer == nil || e.Signer.SAN == "" {
				continue
			}
			if name := signer(e.Signer); !slices.Contains(out, name) && len(out) < 3 {
				out = append(out, name)
			}
		}
	}
	return out
}

// unlogged lists why the policy accepts what the verdict rests on without an
// entry in a log.
func unlogged(v *gate.Verdict) []string {
	var out []string
	for _, s := range append([]gate.Subject{v.Subject}, v.Platforms...) {
		for _, e := range s.Evidence {
			if e.Used && e.Signer != nil && e.Signer.Unlogged != "" && !slices.Contains(out, e.Signer.Unlogged) {
				out = append(out, e.Signer.Unlogged)
			}
		}
	}
	return out
}

// signer is who signed, as the user calls the key, or as the certificate does.
func signer(s *verify.Signer) string {
	// Whoever issued the certificate chose these letters.
	plain := func(text string, width int) string {
		return clip(strings.Map(func(r rune) rune {
			if !unicode.IsPrint(r) {
				return '?'
			}
			return r
		}, text), width)
	}
	switch {
	case s.SAN != "" && s.Issuer != "":
		return plain(s.SAN, 200) + " (issuer " + plain(s.Issuer, 100) + ")"
	case s.SAN != "":
		return plain(s.SAN, 200) + " (CA " + s.Root + ")"
	case s.Name != "":
		return s.Name
	}
	return verify.Short(s.Key)
}

func where(e gate.Evidence) string {
	s := e.Source
	if e.Where != "" {
		if d, err := attest.ParseDigest(e.Where); err == nil {
			return s + " " + verify.Short(d)
		}
		s += " " + oneLine(e.Where) // a stranger may have named the file
	}
	return s
}
