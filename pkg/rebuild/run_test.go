package rebuild

import (
	"slices"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// Whatever order they are found in, what can be repeated is chosen first, and of
// that what was built from the network.
func TestChooseEvidence(t *testing.T) {
	image := []attest.Subject{{Name: "app", Digest: map[string]string{"sha256": attest.DigestOf([]byte("image")).Hex()}}}
	statement := func(kind string, predicate any) *attest.Statement {
		st, err := attest.NewStatement(kind, image, predicate)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	var inputs, found []Claim
	for _, c := range []struct{ mode, engine string }{
		{attestations.InputsRecord, "docker"}, {attestations.InputsOffline, "docker"},
		{attestations.InputsOffline, "embedded"}, {attestations.InputsRecord, "embedded"},
	} {
		in := statement(attestations.InputsV1, attestations.Inputs{Mode: c.mode})
		inputs = append(inputs, Claim{Statement: in})
		found = append(found, Claim{Statement: statement(attestations.ProvenanceV1, map[string]any{
			"buildDefinition": map[string]any{
				"buildType": attestations.ContainerBuildType, "externalParameters": map[string]any{},
				"internalParameters": map[string]any{"engine": map[string]any{"name": c.engine}},
			},
			"runDetails": map[string]any{
				"builder":    map[string]any{"id": c.mode + " by " + c.engine},
				"byproducts": []any{map[string]any{"name": attestations.ByproductInputs, "digest": map[string]any{"sha256": in.Digest().Hex()}}},
			},
		})})
	}
	for n := 1; n <= len(found); n++ {
		for _, prov := range [][]Claim{found[:n], reversed(found[:n])} {
			r := rebuilding{req: &Request{Image: Image{Digest: attest.DigestOf([]byte("image"))}, Provenance: prov, Inputs: inputs}}
			if err := r.chooseEvidence(); err != nil {
				t.Fatal(err)
			}
			want := []string{"record by docker", "record by docker", "offline by embedded", "record by embedded"}[n-1]
			if r.replay.Builder != want {
				t.Errorf("of %d: chose %s, want %s", n, r.replay.Builder, want)
			}
		}
	}
}

func reversed(c []Claim) []Claim {
	c = slices.Clone(c)
	slices.Reverse(c)
	return c
}
