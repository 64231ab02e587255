package start_test

import (
	"runtime"
	"runtime/debug"
	"testing"

	_ "github.com/waxseal/waxseal/internal/start"
)

// After the first collection the usual share is back.
func TestOnlyTheFirst(t *testing.T) {
	for range 1000 {
		runtime.GC()
		runtime.Gosched() // the cleanup has a goroutine of its own
		if was := debug.SetGCPercent(100); was == 100 {
			return
		} else {
			debug.SetGCPercent(was)
		}
	}
	t.Error("the share of the first collection is that of all")
}
