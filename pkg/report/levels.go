package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/waxseal/waxseal/pkg/verify"
)

// LevelTable is every requirement that there is, and what the ladder of SLSA
// v0.1 asks for of them.
type LevelTable struct {
	Requirements []verify.Requirement `json:"requirements"`
	Ladder       verify.Demand        `json:"ladder"`
}

// Levels writes the table of requirements for people.
func Levels(w io.Writer, t LevelTable, opts TextOptions) error {
	o := opts.sized()
	var b strings.Builder
	var track verify.Track
	for _, q := range t.Requirements {
		if q.Track != track {
			if track != "" {
				b.WriteByte('\n')
			}
			track = q.Track
			fmt.Fprintln(&b, o.paint(bold, map[verify.Track]string{
				verify.TrackBuild: "SLSA v1.2 Build", verify.TrackSource: "SLSA v1.2 Source", verify.TrackProperty: "verified properties",
			}[track]))
		}
		title := q.Title
		if q.Property != "" {
			title = q.Property
		}
		fmt.Fprintf(&b, "%s%-34s %s\n", rung(q.Level), q.ID, title)
	}
	b.WriteByte('\n')
	for _, line := range o.wrap("--level 4  ", "the fourth level of SLSA v0.1: "+t.Ladder.String()) {
		fmt.Fprintln(&b, line)
	}
	b.WriteString("\n\"waxseal levels explain ID\" says what one asks for and what satisfies it.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// Requirement writes one requirement for people: what it asks for, what
// evidence would satisfy it, and where that is written.
func Requirement(w io.Writer, q verify.Requirement, opts TextOptions) error {
	o := opts.sized()
	of := map[verify.Track]string{
		verify.TrackBuild: fmt.Sprintf("SLSA v1.2 Build L%d", q.Level), verify.TrackSource: fmt.Sprintf("SLSA v1.2 Source L%d", q.Level),
		verify.TrackProperty: "the verified property " + q.Property,
	}[q.Track]
	lines := []string{o.paint(bold, q.ID) + "  " + q.Title, "  asked for by " + of, "  " + q.Clause}
	if q.Ladder != "" {
		lines = append(lines, "  and by --level 4", "  "+q.Ladder)
	}
	for _, part := range []struct{ name, text string }{
		{"asks for", q.Asks}, {"satisfied by", q.Evidence},
		{string(verify.Met), q.Met}, {string(verify.NotMet), q.NotMet}, {string(verify.Unknown), q.Unknown}, {"way there", q.Way},
	} {
		if part.name == "asks for" || part.name == string(verify.Met) {
			lines = append(lines, "")
		}
		lines = append(lines, o.wrap(fmt.Sprintf("%-15s ", part.name), part.text)...)
	}
	_, err := io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}
