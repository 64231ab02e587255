package report

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Markdown writes a verdict for a job's summary or a comment on a pull request
// (GitHub's and GitLab's dialect): the answer, why, then the tables. What
// comes from evidence, policies and command lines stands in code spans only,
// where no markup, link or mention of a person means anything.
func Markdown(w io.Writer, v *gate.Verdict) error {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("### %s", summary(v))
	line("")
	line("- image: %s", code(v.Image))
	if v.Digest != "" {
		line("- digest: %s", code(string(v.Digest)))
	}
	line("- trust: %s", trust(v))
	if v.PolicyDigest != "" {
		line("- policy: %s", code(string(v.PolicyDigest)))
	}
	if !v.AsOf.IsZero() {
		line("- as of: %s", v.AsOf.UTC().Format(time.RFC3339))
	}
	mdList(line, "Why not", texts(v.Reasons))
	mdList(line, "Not in effect yet", texts(v.Warnings))
	var waived []string
	for _, x := range v.Waived {
		waived = append(waived, waivedBy(x)+": "+on(clean(x.Platform), clean(x.Message)))
	}
	mdList(line, "Waived", waived)
	if next := advice(v); next != "" {
		line("\n**Next:** %s", code(next))
	}
	if v.Decision != gate.Undecided {
		mdTables(line, v)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func mdList(line func(string, ...any), title string, all []string) {
	if len(all) == 0 {
		return
	}
	line("\n**%s**\n", title)
	for i, text := range all {
		if i == maxRendered {
			line("- and %d more", len(all)-i)
			break
		}
		line("- %s", code(text))
	}
}

func mdTables(line func(string, ...any), v *gate.Verdict) {
	if len(v.Platforms) > 0 {
		line("\n| part | digest | level | answer |\n|---|---|---|---|")
		for _, p := range parts(v) {
			line("| %s | %s | %s | %s |", cell(p.name), cell(string(p.Digest)), levels(p.Reached), p.Decision)
		}
	}
	s, name := weakest(v)
	if all := rows(v, s); len(all) > 0 {
		title := ""
		if len(v.Platforms) > 0 {
			title = " (" + code(clean(name)) + ")"
		}
		line("\n**Requirements**%s\n\n| level | requirement | answer | why |\n|---|---|---|---|", title)
		for _, r := range all {
			line("| %s | [%s](%s) | %s | %s |", tier(r), r.Title, r.Clause, r.Status, cell(r.Reason))
		}
	}
	n := 0
	for _, p := range parts(v) {
		for _, e := range p.Evidence {
			if n++; n == 1 {
				line("\n**Evidence**\n\n| of | kind | found as | answer | why, or who signed |\n|---|---|---|---|---|")
			}
			if n <= maxRendered {
				line("| %s | %s | %s | %s | %s |", cell(p.name), cell(kind(e)), cell(where(e)), became(e), cell(because(e)))
			}
		}
	}
	if n > maxRendered {
		line("\n%d more pieces of evidence are in the JSON.", n-maxRendered)
	}
}

// code is foreign text in a code span whose fence the text cannot close.
func code(s string) string {
	s = strings.TrimSpace(clean(s))
	if s == "" {
		return ""
	}
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	if len(fence) > 1 {
		return fence + " " + s + " " + fence
	}
	return fence + s + fence
}

// cell is code in a table, where even in code a bar would end the cell.
func cell(s string) string { return code(strings.ReplaceAll(s, "|", "¦")) }

// tier is the level that asks for a row, or its property.
func tier(r verify.Row) string {
	switch r.Track {
	case verify.TrackBuild:
		return fmt.Sprintf("Build L%d", r.Level)
	case verify.TrackSource:
		return fmt.Sprintf("Source L%d", r.Level)
	}
	return "property"
}
