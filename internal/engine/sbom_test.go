package engine

import (
	"testing"
	"time"
)

// Syft does not stop when it is told to: an interrupt took as long as it read on,
// up to the engine's whole grace.
func TestCataloguingIsNotWaitedForLong(t *testing.T) {
	var s sboms
	let := make(chan struct{})
	s.jobs.Go(func() { <-let })
	if s.wait(time.Millisecond) {
		t.Error("cataloguing that goes on was taken as ended")
	}
	close(let)
	if !s.wait(time.Minute) {
		t.Error("cataloguing that has ended was taken as going on")
	}
}
