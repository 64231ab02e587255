package gate_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/store"
)

// BenchmarkJudge judges images of one registry by a policy: "alone" as one
// command after the other would, "cold" as a batch that meets each image for
// the first time, "warm" as one that knows them, by digest.
func BenchmarkJudge(b *testing.B) {
	w := newWorld(b)
	var dependencies []string
	for i := range 100 {
		dependencies = append(dependencies, fmt.Sprintf(`{"uri":"https://example.org/pool/main/p/package-%d.deb","digest":{"sha256":"%064x"}}`, i, i))
	}
	predicate := strings.Replace(provenance(ci), `"resolvedDependencies":[`, `"resolvedDependencies":[`+strings.Join(dependencies, ",")+",", 1)
	var refs, pinned []string
	for range 64 {
		i := w.single()
		i.attach(w.ours, i.desc, attestations.ProvenanceV1, predicate)
		refs = append(refs, i.ref)
		pinned = append(pinned, i.place.Reference().Place+"@"+i.desc.Digest.String())
	}
	p := w.policy(`  - {match: "**", level: {build: 3}}`, trusted(3))
	run := func(name string, refs []string, opts func() store.Options) {
		b.Run(name, func(b *testing.B) {
			shared := opts()
			w.must(w.faults.Set())
			var asked int
			for i := 0; b.Loop(); i++ {
				if i%len(refs) == 0 && name == "cold" {
					shared = opts()
				}
				v, err := gate.Gate{}.Judge(b.Context(), gate.Request{Reference: refs[i%len(refs)], Policy: p, Store: shared})
				if err != nil || v.Decision != gate.Pass {
					b.Fatalf("%v %+v", err, v)
				}
			}
			asked = len(w.faults.Seen())
			b.ReportMetric(float64(asked)/float64(b.N), "requests/op")
			b.ReportAllocs()
		})
	}
	cached := func() store.Options { return store.Options{Cache: new(store.Cache), Since: time.Now()} }
	run("alone", refs, func() store.Options { return store.Options{} })
	run("cold", refs, cached)
	run("warm", pinned, cached)
}

// TestJudgeTogether judges the same images many times at once through one
// cache, while evidence is added: every verdict is right as of when it was
// asked for.
func TestJudgeTogether(t *testing.T) {
	w := newWorld(t)
	p := w.policy(`  - {match: "**", level: {build: 3}}`, trusted(3))
	good, bad, later := w.single(), w.single(), w.single()
	good.attach(w.ours, good.desc, attestations.ProvenanceV1, provenance(ci))
	bad.attach(w.strange, bad.desc, attestations.ProvenanceV1, provenance(ci))
	cache := new(store.Cache)
	judge := func(i *image, since time.Time) gate.Decision {
		v, err := gate.Gate{}.Judge(t.Context(), gate.Request{Reference: i.ref, Policy: p, Store: store.Options{Cache: cache, Since: since}})
		if err != nil {
			t.Error(err)
			return gate.Undecided
		}
		return v.Decision
	}
	start := time.Now()
	round := func(want gate.Decision) {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				if d := judge(good, start); d != gate.Pass {
					t.Errorf("what is good: %s", d)
				}
				if d := judge(bad, start); d != gate.Deny {
					t.Errorf("what a stranger signed: %s", d)
				}
				if d := judge(later, start); d != want {
					t.Errorf("what comes later: %s, want %s", d, want)
				}
			})
		}
		all.Wait()
	}
	round(gate.Deny)
	later.attach(w.ours, later.desc, attestations.ProvenanceV1, provenance(ci))
	round(gate.Pass)
	// Trust is no part of what is cached: another policy answers for itself.
	stranger := w.policy(`  - {match: "**", level: {build: 3}}`, strings.Replace(trusted(3), "ours.pub", "strange.pub", 1))
	p = stranger
	if a, b := judge(good, start), judge(bad, start); a != gate.Deny || b != gate.Pass {
		t.Errorf("by the other policy: %s, %s", a, b)
	}
}
