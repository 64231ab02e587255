package gate

import (
	"context"
	"time"
)

// How long an answer may be kept, where nothing changes it before. A pass is
// worth keeping; a denial is often repaired soon, and no answer is none.
const (
	keepPass      = 10 * time.Minute
	keepDeny      = 30 * time.Second
	keepUndecided = time.Second
)

// grace is how long a judgement that was stopped has to say so itself.
const grace = 250 * time.Millisecond

// Workload says where an image is to run, as an admission controller knows it.
// No policy asks about it yet; the verdict shows it.
type Workload struct {
	Namespace string            `json:"namespace,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	// Use is what the image is for: one of the Use constants, or "".
	Use string `json:"use,omitempty"`
}

// What a pod uses an image for. The files of a volume are what somebody made as
// much as those of a container, and are judged alike.
const (
	UseContainer = "container"
	UseInit      = "initContainer"
	UseEphemeral = "ephemeralContainer"
	UseVolume    = "volume"
)

// Uses lists what an image can be used for.
func Uses() []string { return []string{UseContainer, UseInit, UseEphemeral, UseVolume} }

// changes notes a moment at which what was found of the subject can change, if
// it is still to come.
func (s *Subject) changes(at, when time.Time) { s.until = soonest(s.until, at, when) }

// soonest is the earlier of until and when, where when is after at. The zero
// time is never.
func soonest(until, at, when time.Time) time.Time {
	if when.IsZero() || !when.After(at) || !until.IsZero() && until.Before(when) {
		return until
	}
	return when
}

// validUntil is how long the verdict may be kept: for a time that depends on
// what it says, and never past the next moment at which time alone makes
// another of it, trust being the next such moment of the trust. A verdict as of
// another moment is not for keeping.
func (v *Verdict) validUntil(trust time.Time) time.Time {
	if !v.AsOf.IsZero() {
		return time.Time{}
	}
	keep := map[Decision]time.Duration{Pass: keepPass, Deny: keepDeny}[v.Decision]
	if keep == 0 {
		keep = keepUndecided
	}
	until := soonest(v.DecidedAt.Add(keep), v.DecidedAt, trust)
	return soonest(until, v.DecidedAt, v.turns(v.DecidedAt)).Truncate(time.Second)
}

// turns is the next moment after at when time alone changes what was found.
func (v *Verdict) turns(at time.Time) time.Time {
	var next time.Time
	for _, w := range v.Waived {
		next = soonest(next, at, w.Expires)
	}
	for _, r := range v.Warnings {
		next = soonest(next, at, r.Effective)
	}
	for _, s := range append([]Subject{v.Subject}, v.Platforms...) {
		next = soonest(next, at, s.until)
	}
	return next
}

// within judges, and gives an answer at the latest shortly after ctx has ended:
// what then still hangs, whatever it is, is left behind with its own verdict.
func (g Gate) within(ctx context.Context, c *check, v Verdict) *Verdict {
	done := make(chan *Verdict, 1)
	own := v
	go func() {
		if err := contain(func() error { return g.judge(ctx, c, &own) }); err != nil {
			own.undecided(err)
		}
		done <- &own
	}()
	select {
	case out := <-done:
		return out
	case <-ctx.Done():
	}
	late := time.NewTimer(grace)
	defer late.Stop()
	select {
	case out := <-done:
		return out
	case <-late.C:
		v.undecided(context.Cause(ctx))
		return &v
	}
}
