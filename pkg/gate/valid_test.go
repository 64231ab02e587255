package gate_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

// An answer is kept until it grows old, or until time alone makes another one
// of it, whichever comes first.
func TestValidUntil(t *testing.T) {
	w := newWorld(t)
	scanned := w.configured(v1.Config{User: "1000"})
	scanned.attach(w.ours, scanned.desc, attestations.CosignVuln, fmt.Sprintf(
		`{"scanner":{"uri":"trivy","result":{"SchemaVersion":2,"ArtifactName":"a","Results":[{"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"a","Severity":"CRITICAL","PublishedDate":"2026-01-01T00:05:00Z"}]}]}},"metadata":{"scanFinishedOn":%q}}`,
		"2026-01-02T00:02:00Z"))
	root := w.configured(v1.Config{})
	windowed := w.ours.key.During(verify.Window{Until: time.Date(2026, 1, 2, 12, 3, 0, 0, time.UTC)})
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name     string
		image    *image
		policy   string
		keys     []verify.Key
		now      time.Time
		decision gate.Decision
		want     time.Duration
	}{
		{"a pass", scanned, "parameters: {}", nil, noon, gate.Pass, 10 * time.Minute},
		{"a denial", root, "hardening: {nonRoot: true}", nil, noon, gate.Deny, 30 * time.Second},
		{"a scan grows old", scanned, "vulnerabilities: {maxAge: 12h}", nil, noon, gate.Pass, 2 * time.Minute},
		{"a vulnerability grows old", scanned, "vulnerabilities: {sla: {critical: 36h}}", nil, noon, gate.Pass, 5 * time.Minute},
		{"a waiver ends", root, `hardening: {nonRoot: true}
    waivers: [{requirement: root-user, reason: r, owner: o@acme.example, expires: 2026-01-02T12:07:00Z}]`, nil, noon, gate.Pass, 7 * time.Minute},
		{"a demand comes into effect", root, `hardening: {nonRoot: true, effective: 2026-01-02T12:01:00Z}`, nil, noon, gate.Pass, time.Minute},
		{"a key ends", scanned, "", []verify.Key{windowed}, noon, gate.Pass, 3 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			req := gate.Request{Reference: c.image.ref, Keys: c.keys}
			if c.policy != "" {
				req.Policy = w.attested(c.policy)
			}
			v, err := gate.Gate{Now: func() time.Time { return c.now }}.Judge(t.Context(), req)
			w.must(err)
			if v.Decision != c.decision || v.ValidUntil.Sub(c.now) != c.want {
				t.Errorf("%s for %s, want %s for %s: %+v", v.Decision, v.ValidUntil.Sub(c.now), c.decision, c.want, v.Reasons)
			}
			req.At = c.now
			if v, err = (gate.Gate{}).Judge(t.Context(), req); err != nil || !v.ValidUntil.IsZero() {
				t.Errorf("as of another moment it is valid until %s, %v", v.ValidUntil, err)
			}
		})
	}
}

// What hangs whatever the context says does not keep the answer back.
func TestJudgeAnswersWhenItsTimeIsUp(t *testing.T) {
	w := newWorld(t)
	hang := make(chan struct{})
	defer close(hang)
	g := gate.Gate{Open: func(context.Context, store.Reference, store.Options) (store.Repo, error) {
		<-hang
		return nil, store.ErrUnavailable
	}}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	start := time.Now()
	v, err := g.Judge(ctx, gate.Request{Reference: "registry.example/app:1", Keys: []verify.Key{w.ours.key}, For: gate.Workload{Namespace: "prod", Use: gate.UseVolume}})
	w.must(err)
	if took := time.Since(start); v.Decision != gate.Undecided || v.Reasons[0].Code != gate.CodeTimeout || took > 5*time.Second {
		t.Errorf("after %s: %s %+v", took, v.Decision, v.Reasons)
	}
	if v.For == nil || v.For.Namespace != "prod" || v.Digest != attest.Digest("") {
		t.Errorf("for %+v, digest %q", v.For, v.Digest)
	}
}

// What others say grows old as well: a summary, a review, and what an answer
// about a base image rests on.
func TestValidUntilOthersWordGrowsOld(t *testing.T) {
	w := newWorld(t)
	verifier, ann, bob := w.person("verifier.pub"), w.person("ann.pub"), w.person("bob.pub")
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	before := func(d time.Duration) string { return noon.Add(-d).Format(time.RFC3339) }
	summed := w.sourced()
	summed.attach(verifier, summed.desc, attestations.VSAV1, fmt.Sprintf(
		`{"verifier":{"id":%q},"timeVerified":%q,"resourceUri":%q,"policy":{"uri":"p:1"},"verificationResult":"PASSED","verifiedLevels":["SLSA_BUILD_LEVEL_3"]}`,
		vid, before(time.Hour), summed.place.Reference().Place))
	reviewed := w.sourced()
	for who, age := range map[*person]time.Duration{&ann: time.Hour, &bob: time.Minute} {
		reviewed.attach(*who, reviewed.desc, attestations.ReviewV1, fmt.Sprintf(
			`{"repository":%q,"commit":%q,"authors":["carol"],"decision":"approved","reviewedOn":%q}`, repo, head, before(age)))
	}
	base := w.configured(v1.Config{})
	app := w.built(w.ours, purl(base))
	onBase := func(waiver string) string {
		return fmt.Sprintf("level: {build: 2}\n    dependencies: {depth: 1, registries: [%q], level: {build: 1}}\n  - match: %q\n    level: {build: 1}\n    hardening: {nonRoot: true}\n%s",
			w.addr+"/**", base.place.Reference().Place, waiver)
	}
	for _, c := range []struct {
		name   string
		image  *image
		policy string
		want   time.Duration
	}{
		{"a summary of any age", summed, "level: {build: 3}\n    vsa: {delegates: [build]}", 10 * time.Minute},
		{"a summary", summed, "level: {build: 3}\n    vsa: {delegates: [build], maxAge: 62m}", 2 * time.Minute},
		{"a summary that two entries ask for", summed, "level: {build: 3}\n    vsa: {delegates: [build], maxAge: 2h}\n  - match: \"*/**\"\n    level: {build: 3}\n    vsa: {delegates: [build], maxAge: 63m}", 3 * time.Minute},
		{"a review", reviewed, "level: {build: 2}\n    properties: [SLSA_SOURCE_TWO_PARTY_REVIEWED]\n    source: {repository: \"" + repo + "\", reviewMaxAge: 61m}", time.Minute},
		{"a waiver of the base image", app, onBase("    waivers: [{requirement: root-user, reason: r, owner: o, expires: 2026-01-02T12:04:00Z}]"), 4 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := gate.Gate{Now: func() time.Time { return noon }}
			v, err := g.Judge(t.Context(), gate.Request{Reference: c.image.ref, Policy: w.aware(c.policy, verifier, ann, bob)})
			w.must(err)
			if v.Decision != gate.Pass || v.ValidUntil.Sub(noon) != c.want {
				t.Fatalf("%s for %s, want pass for %s: %+v %+v", v.Decision, v.ValidUntil.Sub(noon), c.want, v.Reasons, v.Dependencies)
			}
			if c.want == 10*time.Minute {
				return
			}
			// So it is: a moment later it is another answer.
			noon := v.ValidUntil.Add(time.Second)
			v, err = gate.Gate{Now: func() time.Time { return noon }}.Judge(t.Context(), gate.Request{Reference: c.image.ref, Policy: w.aware(c.policy, verifier, ann, bob)})
			w.must(err)
			if v.Decision == gate.Pass {
				t.Error("it passes still")
			}
		})
	}
}
