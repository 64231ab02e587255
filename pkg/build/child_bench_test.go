package build

import (
	"testing"

	"github.com/moby/buildkit/identity"
)

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

// BenchmarkUnchangedBuild is a build whose every result is in the cache.
func BenchmarkUnchangedBuild(b *testing.B) {
	program := needEngine(b)
	cache := b.TempDir()
	build := buildOf{base: tinyBase(b), dockerfile: "FROM base\nRUN echo 1 > /a\nRUN echo 2 > /b\nRUN echo 3 > /c\nWORKDIR /d\nRUN echo 4 > /e\n"}
	run := func() {
		e, err := StartEngine(b.Context(), EngineOptions{CacheDir: cache, Program: program})
		if err != nil {
			b.Fatal(err)
		}
		defer e.Close()
		c, err := e.Dial(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		build.ref = identity.NewID()
		if _, err := build.solve(b.Context(), b, c); err != nil {
			b.Fatal(err)
		}
		if _, err := e.Inputs(b.Context(), build.ref, ""); err != nil {
			b.Fatal(err)
		}
	}
	run()
	for b.Loop() {
		run()
	}
}
