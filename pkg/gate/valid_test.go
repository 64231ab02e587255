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
