package verify

import (
	"crypto/x509"
	"encoding/binary"
	"testing"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

func TestCacheIsBounded(t *testing.T) {
	var c cache[int]
	for i := range 3 * maxCached {
		c.put(cacheKey(binary.BigEndian.AppendUint64(nil, uint64(i))), i)
	}
	if len(c.all) != maxCached {
		t.Errorf("%d entries, want %d", len(c.all), maxCached)
	}
	last := cacheKey(binary.BigEndian.AppendUint64(nil, 3*maxCached-1))
	if v, ok := c.get(last); !ok || v != 3*maxCached-1 {
		t.Error("the newest entry is not there")
	}
	if cacheKey([]byte("ab"), []byte("c")) == cacheKey([]byte("a"), []byte("bc")) {
		t.Error("two lists of parts have one key")
	}
}

// TestARememberedChainExpires: what was proved for one moment must not be
// believed for a moment at which a part of the chain was not valid.
func TestARememberedChainExpires(t *testing.T) {
	now := time.Now()
	s, err := virtual.New()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := virtual.NewCA(virtual.CAOptions{Until: now.Add(5 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	issued := func() *x509.Certificate {
		b, err := s.Bundle([]byte("{}"), virtual.Options{SAN: "a@b.example", CA: issuer, Log: "none", From: now.Add(-time.Minute)})
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(b.GetVerificationMaterial().GetCertificate().GetRawBytes())
		if err != nil {
			t.Fatal(err)
		}
		return leaf
	}
	leaf := issued()
	ca, err := ParseCA("ca", CAOptions{Roots: first(issuer.PEM()), Intermediates: second(issuer.PEM())})
	if err != nil {
		t.Fatal(err)
	}
	a := ca.authorities[0]
	ended := *a.ca
	ended.ValidityPeriodEnd = now.Add(2 * time.Minute)
	for _, c := range []struct {
		name string
		a    *authority
		at   time.Time
		ok   bool
	}{
		{"valid", a, now, true},
		{"remembered", a, now.Add(time.Minute), true},
		{"before the leaf", a, now.Add(-time.Hour), false},
		{"after the intermediate, before the leaf's end", a, now.Add(6 * time.Minute), false},
		{"after the leaf", a, now.Add(time.Hour), false},
		{"valid again", a, now, true},
		{"in the authority's window", &authority{ca: &ended}, now, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := c.a.Verify(leaf, c.at); (err == nil) != c.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	w := &authority{ca: &ended}
	if _, err := w.Verify(leaf, now); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Verify(leaf, now.Add(3*time.Minute)); err == nil {
		t.Error("remembered past the authority's window")
	}

	// The issuing certificate is remembered, too, for others that it issued.
	if len(w.issuers.all) != 1 || len(a.issuers.all) != 1 {
		t.Fatalf("%d and %d issuing certificates are remembered, want 1", len(w.issuers.all), len(a.issuers.all))
	}
	if chains, err := w.Verify(issued(), now.Add(time.Minute)); err != nil || len(chains[0]) != 2 {
		t.Errorf("another of the same issuer: %v", err)
	}
	if _, err := w.Verify(issued(), now.Add(3*time.Minute)); err == nil {
		t.Error("the issuer was believed past the authority's window")
	}
	if _, err := a.Verify(issued(), now.Add(6*time.Minute)); err == nil {
		t.Error("the issuer was believed past its own end")
	}
	remembered := issued()
	if _, err := w.Verify(remembered, now); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Verify(remembered, now.Add(3*time.Minute)); err == nil {
		t.Error("what a remembered issuer proved was believed past the authority's window")
	}
	// A stranger with the same name and another key.
	other, err := virtual.NewCA(virtual.CAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	issuer = other
	if _, err := w.Verify(issued(), now); err == nil {
		t.Error("another issuer of the same name was believed")
	}
}

func first(a, _ []byte) []byte  { return a }
func second(_, b []byte) []byte { return b }

// TestARememberedStamper: the stamping certificate's chain is proved once, and
// the stamps of others still count for nothing.
func TestARememberedStamper(t *testing.T) {
	instances := make([]*virtual.Sigstore, 2)
	var stampers []*stamper
	for i := range instances {
		s, err := virtual.New()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := s.Root(virtual.RootOptions{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := ParseRoot("r", raw)
		if err != nil {
			t.Fatal(err)
		}
		instances[i], stampers = s, append(stampers, r.stampers[0])
	}
	stamp := func(s *virtual.Sigstore) (token, signature []byte) {
		b, err := s.Bundle([]byte("{}"), virtual.Options{SAN: "a@b.example", Log: "none", Stamp: true})
		if err != nil {
			t.Fatal(err)
		}
		return b.GetVerificationMaterial().GetTimestampVerificationData().GetRfc3161Timestamps()[0].GetSignedTimestamp(), b.GetDsseEnvelope().GetSignatures()[0].GetSig()
	}
	s := stampers[0]
	for range 2 {
		if _, err := s.Verify(stamp(instances[0])); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.short.all) != 1 || len(s.proved.all) != 2 {
		t.Errorf("%d chains and %d stamps are remembered, want 1 and 2", len(s.short.all), len(s.proved.all))
	}
	if _, err := s.Verify(stamp(instances[1])); err == nil {
		t.Error("another authority's stamp was believed")
	}
	token, _ := stamp(instances[0])
	_, signature := stamp(instances[0])
	if _, err := s.Verify(token, signature); err == nil {
		t.Error("a stamp of another signature was believed")
	}
	// Out of the window of what is above it, the whole chain is asked again.
	for key, short := range s.short.all {
		short.window.Until = short.window.From
		s.short.all[key] = short
	}
	if _, err := s.Verify(stamp(instances[0])); err != nil {
		t.Errorf("the whole chain was not asked: %v", err)
	}
}
