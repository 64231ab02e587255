package gate_test

import (
	"context"
	"errors"
	"testing"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

type hinted struct{ error }

func (hinted) Hint() string { return "ask again" }

// Trust that could not be had gives no answer, whatever else is trusted, and
// nothing is asked for.
func TestMissingTrustIsUndecided(t *testing.T) {
	w := newWorld(t)
	three := verify.Demand{Levels: verify.Levels{Build: 3}}
	missing := hinted{errors.New("no root to be had")}
	id, err := verify.NewIdentity(verify.IdentityOptions{Issuer: "https://token.example", SAN: "a@acme.example"})
	w.must(err)
	g := gate.Gate{Open: func(context.Context, store.Reference, store.Options) (store.Repo, error) {
		t.Error("the registry was asked")
		return nil, store.ErrUnavailable
	}}
	for name, req := range map[string]gate.Request{
		"nothing else":         {},
		"a key":                {Keys: []verify.Key{w.ours.key}},
		"an identity, no root": {Identities: []verify.Identity{id}},
		"a level":              {Level: &three},
	} {
		req.Reference, req.Missing = "registry.example/app:1", missing
		v, err := g.Judge(t.Context(), req)
		w.must(err)
		if v.Decision != gate.Undecided || len(v.Reasons) != 1 || v.Reasons[0].Code != gate.CodeTrust || v.Reasons[0].Message != "no root to be had" || v.Reasons[0].Hint != "ask again" {
			t.Errorf("%s: %s %+v", name, v.Decision, v.Reasons)
		}
		if _, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "pkg:oci/app"}); err == nil {
			t.Errorf("%s: it was summarised", name)
		}
		if _, err := g.Inspect(t.Context(), req); !errors.Is(err, missing) {
			t.Errorf("%s: inspected: %v", name, err)
		}
	}
	req := gate.Request{Reference: "https://bad", Missing: missing}
	if _, err := g.Judge(t.Context(), req); !errors.As(err, new(*gate.UsageError)) {
		t.Errorf("wrong usage: %v", err)
	}
}
