package cli

import (
	"context"
	"errors"
	"testing"
)

// What only reads ends with the first signal, however long it reads; and what
// breaks in it is still told by main.
func TestUntilInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	forever := make(chan struct{})
	defer close(forever)
	err := untilInterrupted(ctx, func() error {
		cancel()
		<-forever
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted, it ends with %v", err)
	}
	want := errors.New("its own")
	if err := untilInterrupted(t.Context(), func() error { return want }); err != want {
		t.Errorf("it ends with %v", err)
	}
	defer func() {
		if p := recover(); p != "broken" {
			t.Errorf("recovered %v", p)
		}
	}()
	_ = untilInterrupted(t.Context(), func() error { panic("broken") })
}
