package verify_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// provenanceOf is a predicate of about the size that a real build has.
func provenanceOf(dependencies int) string {
	var b strings.Builder
	b.WriteString(`{"buildDefinition":{"buildType":"https://example.org/build/v1","externalParameters":{},"resolvedDependencies":[`)
	for i := range dependencies {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"uri":"https://example.org/pool/main/p/package-%d.deb","digest":{"sha256":"%064x"}}`, i, i)
	}
	b.WriteString(`]},"runDetails":{"builder":{"id":"https://ci.example.org/builder"}}}`)
	return b.String()
}

// bundles seals n bundles, each under a certificate of its own.
func bundles(b *testing.B, s *virtual.Sigstore, n int) [][]byte {
	b.Helper()
	st := statement(sha256Subject(image), "https://slsa.dev/provenance/v1", provenanceOf(100))
	var out [][]byte
	for range n {
		raw, err := s.Seal(st, virtual.Options{SAN: san, Issuer: issuer, Stamp: true})
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, raw)
	}
	return out
}

// measured reports bundles for each second of processor time, which other work
// on the machine does not change as it does the clock's.
func measured(b *testing.B) func() {
	spent := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	runtime.GC()
	before := spent()
	return func() { b.ReportMetric(float64(b.N)/(spent()-before).Seconds(), "bundles/cpu-s") }
}

// BenchmarkBundles verifies the same bundles through sigstore-go alone and
// through waxseal, policy of trust and levels included: "again" goes round 64
// bundles, "fresh" sees no bundle twice.
func BenchmarkBundles(b *testing.B) {
	s := newSigstore(b)
	rootJSON := must(s.Root(virtual.RootOptions{}))(b)
	again := bundles(b, s, 64)
	fresh := bundles(b, s, 2000)

	sigstore := func(b *testing.B, all [][]byte) {
		tr := must(root.NewTrustedRootFromJSON(rootJSON))(b)
		v := must(sigverify.NewVerifier(tr, sigverify.WithTransparencyLog(1), sigverify.WithObserverTimestamps(1), sigverify.WithoutStatementPredicate()))(b)
		id := must(sigverify.NewShortCertificateIdentity(issuer, "", san, ""))(b)
		digest := must(hex.DecodeString(image.Hex()))(b)
		defer measured(b)()
		for i := 0; b.Loop(); i++ {
			var parsed bundle.Bundle
			if err := parsed.UnmarshalJSON(all[i%len(all)]); err != nil {
				b.Fatal(err)
			}
			if _, err := v.Verify(&parsed, sigverify.NewPolicy(sigverify.WithArtifactDigest("sha256", digest), sigverify.WithCertificateIdentity(id))); err != nil {
				b.Fatal(err)
			}
		}
	}
	waxseal := func(b *testing.B, all [][]byte) {
		id := identity(b, verify.IdentityOptions{Issuer: issuer, SAN: san})
		trust := verify.Trust{
			Roots: []*verify.Root{must(verify.ParseRoot("root.json", rootJSON))(b)}, Identities: []verify.Identity{id},
			Builders: []verify.Builder{{ID: "https://ci.example.org/builder", Identity: &id, MaxLevel: 3}},
		}
		defer measured(b)()
		for i := 0; b.Loop(); i++ {
			parsed, err := attest.ParseBundle(all[i%len(all)])
			if err != nil {
				b.Fatal(err)
			}
			c := must(verify.NewChecker(trust, time.Now()))(b)
			ok, err := c.Check(parsed, image)
			if err != nil {
				b.Fatal(err)
			}
			signer := ok.Signer()
			p := must(verify.ParseProvenance(ok.Statement()))(b)
			if res := verify.Assess(trust, verify.Findings{Candidates: []verify.Candidate{{Provenance: p, Signer: &signer, Where: "a file"}}}); res.Build != 3 {
				b.Fatalf("level %d", res.Build)
			}
		}
	}
	b.Run("again/sigstore-go", func(b *testing.B) { sigstore(b, again) })
	b.Run("again/waxseal", func(b *testing.B) { waxseal(b, again) })
	b.Run("fresh/sigstore-go", func(b *testing.B) { sigstore(b, fresh) })
	b.Run("fresh/waxseal", func(b *testing.B) { waxseal(b, fresh) })
}

// BenchmarkPublicGood is the same for a bundle of Sigstore's public instance,
// with its longer keys and its certificate transparency log.
func BenchmarkPublicGood(b *testing.B) {
	dir := os.Getenv("WAXSEAL_FIXTURES")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "fixtures")
	}
	folder := filepath.Join(dir, "sigstore-conformance", "happy-path-intoto-in-dsse-v3")
	raw, err := os.ReadFile(filepath.Join(folder, "bundle.sigstore.json"))
	if err != nil {
		b.Skipf("no fixtures of sigstore-conformance: set WAXSEAL_FIXTURES (%v)", err)
	}
	rootJSON := must(os.ReadFile(filepath.Join(dir, "sigstore-public-good", "trusted_root.json")))(b)
	st := must(attest.ParseBundle(raw))(b).Statement()
	digest := st.Subject[0].Digest["sha256"]
	b.Run("sigstore-go", func(b *testing.B) {
		v := must(sigverify.NewVerifier(must(root.NewTrustedRootFromJSON(rootJSON))(b), sigverify.WithTransparencyLog(1), sigverify.WithObserverTimestamps(1),
			sigverify.WithSignedCertificateTimestamps(1), sigverify.WithoutStatementPredicate()))(b)
		id := must(sigverify.NewShortCertificateIdentity(beaconIssuer, "", beacon, ""))(b)
		sum := must(hex.DecodeString(digest))(b)
		defer measured(b)()
		for b.Loop() {
			var parsed bundle.Bundle
			if err := parsed.UnmarshalJSON(raw); err != nil {
				b.Fatal(err)
			}
			if _, err := v.Verify(&parsed, sigverify.NewPolicy(sigverify.WithArtifactDigest("sha256", sum), sigverify.WithCertificateIdentity(id))); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("waxseal", func(b *testing.B) {
		c := must(verify.NewChecker(verify.Trust{
			Roots:      []*verify.Root{must(verify.ParseRoot("root.json", rootJSON))(b)},
			Identities: []verify.Identity{identity(b, verify.IdentityOptions{Issuer: beaconIssuer, SAN: beacon})},
		}, time.Now()))(b)
		defer measured(b)()
		for b.Loop() {
			if _, err := c.Check(must(attest.ParseBundle(raw))(b), attest.Digest("sha256:"+digest)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Who signed the conformance suite's bundles.
const (
	beacon       = "https://github.com/sigstore-conformance/extremely-dangerous-public-oidc-beacon/.github/workflows/extremely-dangerous-oidc-beacon.yml@refs/heads/main"
	beaconIssuer = "https://token.actions.githubusercontent.com"
)
