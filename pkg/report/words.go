package report

import (
	"fmt"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// summary is the verdict in one line.
func summary(v *gate.Verdict) string {
	switch v.Decision {
	case gate.Pass:
		return fmt.Sprintf("PASSED: carries SLSA %s, declared %s", levels(v.Reached), levels(v.Declared))
	case gate.Deny:
		return fmt.Sprintf("DENIED: carries SLSA %s, declared %s", levels(v.Reached), levels(v.Declared))
	}
	return fmt.Sprintf("UNDECIDED: could not be decided; declared %s", levels(v.Declared))
}

func levels(l gate.Levels) string { return fmt.Sprintf("Build L%d", l.Build) }

// asked reports whether the declared level includes a requirement.
func asked(v *gate.Verdict, r verify.Row) bool { return r.Level <= v.Declared.Build }
