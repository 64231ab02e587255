package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/pkg/gate"
)

// pieces is the table of the weakest part's evidence, what counts first.
func (o TextOptions) pieces(v *gate.Verdict, most int) []string {
	s, name := weakest(v)
	if len(s.Evidence) == 0 {
		return nil
	}
	title := "Evidence"
	if len(v.Platforms) > 0 {
		title += ", " + clip(clean(name), 20)
	}
	lines := []string{"", o.paint(dim, fmt.Sprintf("%-31s %-15s %s", title, "answer", "found as"))}
	sorted := slices.Clone(s.Evidence)
	slices.SortStableFunc(sorted, func(a, b gate.Evidence) int { return worth(b) - worth(a) })
	for i, e := range sorted {
		if i == most && len(sorted) > most+1 {
			lines = append(lines, fmt.Sprintf("and %s (--explain)", more(len(sorted)-most, "piece")))
			break
		}
		c := plain
		switch {
		case e.Used:
			c = green
		case became(e) == "rejected":
			c = yellow
		}
		word := became(e)
		line := fmt.Sprintf("%-31s ", clip(clean(kind(e)), 31)) + o.paint(c, word) + strings.Repeat(" ", max(0, 16-len(word))) + clip(clean(where(e)), max(10, o.Width-48))
		lines = append(lines, line)
		if became(e) == "rejected" {
			lines = append(lines, o.wrap("  because: ", clean(e.Message))...)
		}
	}
	return lines
}

// pieceCount stands for the evidence where the screen has no room for it.
func pieceCount(v *gate.Verdict) []string {
	s, _ := weakest(v)
	rejected := 0
	for _, e := range s.Evidence {
		if became(e) == "rejected" {
			rejected++
		}
	}
	if rejected == 0 {
		return nil
	}
	return []string{"", fmt.Sprintf("%d of %d pieces of evidence do not count (--explain says why)", rejected, len(s.Evidence))}
}

func worth(e gate.Evidence) int {
	switch {
	case e.Used:
		return 2
	case e.Accepted:
		return 1
	}
	return 0
}
