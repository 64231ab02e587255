package build

import "testing"

// BenchmarkEngineStartStop is what a build pays for having an engine of its
// own: from the fork to the first answer, and to the last process gone.
func BenchmarkEngineStartStop(b *testing.B) {
	program := needEngine(b)
	cache := b.TempDir()
	for b.Loop() {
		e, err := StartEngine(b.Context(), EngineOptions{CacheDir: cache, Program: program})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Dial(b.Context()); err != nil {
			b.Fatal(err)
		}
		if err := e.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
