package build

import (
	"fmt"
	"slices"
)

// Grade says how much was seen of a command that somebody else wrote. It is
// computed from what was watched, and no flag raises it.
type Grade string

// The grades, best first.
const (
	GradeFull       Grade = "full"        // all traffic, and all files by digest
	GradePartial    Grade = "partial"     // but for the parts that are named
	GradeRecordOnly Grade = "record-only" // what was asked for and what came of it: nothing was watched
)

// Observed is how much was seen of something, and what was not.
type Observed struct {
	Grade Grade `json:"grade"`
	// Unobserved names in words what was not seen; empty only where Grade is
	// GradeFull.
	Unobserved []string `json:"unobserved,omitempty"`
}

// rank orders grades; what is none counts as the worst.
func (g Grade) rank() int {
	return slices.Index([]Grade{GradeRecordOnly, GradePartial, GradeFull}, g)
}

// Reaches reports whether g is at least want; want may be "" for any.
func (g Grade) Reaches(want Grade) bool {
	return want == "" || g.rank() >= 0 && g.rank() >= want.rank()
}

// Together is how much was seen of several things: the worst grade, and all
// that was not seen. Of nothing, nothing was seen.
func Together(parts ...Observed) Observed {
	if len(parts) == 0 {
		return Observed{Grade: GradeRecordOnly}
	}
	all := Observed{Grade: GradeFull}
	for _, p := range parts {
		if p.Grade.rank() < all.Grade.rank() {
			all.Grade = p.Grade
		}
		for _, u := range p.Unobserved {
			if !slices.Contains(all.Unobserved, u) {
				all.Unobserved = append(all.Unobserved, u)
			}
		}
	}
	return all
}

// ParseGrade reads what --require takes; "" is no demand.
func ParseGrade(s string) (Grade, error) {
	switch g := Grade(s); g {
	case "", GradeFull, GradePartial:
		return g, nil
	}
	return "", fmt.Errorf("%q is neither full nor partial", s)
}
