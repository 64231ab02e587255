package report

import (
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// summary is the verdict in one line.
func summary(v *gate.Verdict) string {
	switch v.Decision {
	case gate.Pass:
		return "PASSED: carries SLSA " + carried(v) + ", declared " + v.Declared.String()
	case gate.Deny:
		return "DENIED: carries SLSA " + carried(v) + ", declared " + v.Declared.String()
	}
	return "UNDECIDED: could not be decided; declared " + v.Declared.String()
}

// carried is what all parts of the image carry.
func carried(v *gate.Verdict) string {
	return verify.Demand{Levels: v.Reached, Properties: v.Properties}.String()
}

func levels(l gate.Levels) string { return verify.Demand{Levels: l}.String() }

// rows are those of a part that somebody asked about, or something is known of.
func rows(v *gate.Verdict, s gate.Subject) []verify.Row {
	var out []verify.Row
	for _, r := range s.Requirements {
		if shown(r, v) {
			out = append(out, r)
		}
	}
	return out
}

// Brief is a verdict in one line with its first reason, for a log.
func Brief(v *gate.Verdict) string {
	text := summary(v) + " (" + oneLine(v.Image) + ")"
	for i, r := range v.Reasons {
		if i == 0 {
			text += ": " + said(r)
		} else {
			text += "; and " + more(len(v.Reasons)-1, "reason")
			break
		}
	}
	return Clip(text)
}

// Clip makes text one printable line that fits a log.
func Clip(text string) string { return clip(oneLine(text), maxBrief) }
