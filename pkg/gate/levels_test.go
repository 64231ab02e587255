package gate_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	elsewhere = "https://rebuild.example.org/builder"
	noNetwork = `{"mode":"none","verdict":"isolated","hermetic":true,"sources":[],"steps":[],"gateway":{"name":"waxseal"},"engine":{}}`
	recorded  = `{"mode":"record","verdict":"isolated","hermetic":false,"sources":[],"steps":[],"gateway":{"name":"waxseal"},"engine":{}}`
)

// seal attaches a record of inputs and provenance that names it, and returns
// the digests of both bundles.
func (i *image) seal(by person, d v1.Descriptor, builder, record string) []string {
	i.w.Helper()
	in := i.attach(by, d, attestations.InputsV1, record)
	named := i.w.statement(digestOf(d), attestations.InputsV1, record).Digest().Hex()
	prov := i.attach(by, d, attestations.ProvenanceV1, strings.TrimSuffix(provenance(builder), "}}")+fmt.Sprintf(`,"byproducts":[{"name":"inputs","digest":{"sha256":%q}}]}}`, named))
	return []string{in.Hex(), prov.Hex()}
}

func rebuild(digest attest.Digest) string {
	return fmt.Sprintf(`{"verdict":"reproduced","original":%q,"rebuilt":%q,"normalisers":[],"differences":[],"build":{"mode":"offline","lock":"x","builder":%q,"provenance":"x","engine":{},"evidence":[],"startedOn":"2026-01-01T00:00:00Z","finishedOn":"2026-01-01T00:00:00Z"}}`, digest, digest, elsewhere)
}

// two is a policy that trusts ours up to L3, and strange as another builder.
func (w *world) two(images string) gate.Request {
	w.Helper()
	return gate.Request{Policy: w.policy(`  - {match: "**", `+images+"}\n", trusted(3), fmt.Sprintf(`{id: %q, signer: {key: strange.pub}, maxLevel: 2}`, elsewhere))}
}

// levels are the verified levels of the VSAs, and sees that each rests on what
// it must.
func (w *world) levels(v *gate.Verdict, rests ...[]string) []string {
	w.Helper()
	vsas, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "oci://r.example/app"})
	w.must(err)
	var out []string
	for n, s := range vsas {
		p := s.Predicate
		out = append(out, strings.Join(p.VerifiedLevels, " "))
		if p.DependencyLevels != nil || p.Policy.URI == "" || p.ResourceURI != "oci://r.example/app" {
			w.Errorf("%+v", p)
		}
		tracks := map[string]int{}
		for _, l := range p.VerifiedLevels {
			track, _, level := strings.Cut(l, "_LEVEL_")
			if level {
				tracks[track]++
			}
			if !level && l != "FAILED" && !slices.Contains(verify.Properties(), l) || tracks[track] > 1 {
				w.Errorf("%v", p.VerifiedLevels)
			}
		}
		if n >= len(rests) {
			continue
		}
		var got []string
		for _, r := range p.InputAttestations {
			got = append(got, r.Digest["sha256"])
		}
		if want := slices.Sorted(slices.Values(rests[n])); !slices.Equal(got, want) {
			w.Errorf("%d rests on %v, want %v", n, got, want)
		}
	}
	return out
}

func TestPropertiesOfAnImage(t *testing.T) {
	w := newWorld(t)
	both := w.two(`level: {build: 2}, properties: [WAXSEAL_HERMETIC, WAXSEAL_INPUTS_COMPLETE]`)
	judge := func(req gate.Request, i *image) *gate.Verdict {
		t.Helper()
		req.Reference = i.ref
		return w.judge(req)
	}
	i := w.single()
	bundles := i.seal(w.ours, i.desc, ci, noNetwork)
	v := judge(both, i)
	w.want(v, gate.Pass, 3)
	if !slices.Equal(v.Properties, []string{verify.PropertyInputsComplete, verify.PropertyHermetic}) {
		t.Errorf("properties %v", v.Properties)
	}
	if got := w.levels(v, bundles); got[0] != "SLSA_BUILD_LEVEL_3 WAXSEAL_INPUTS_COMPLETE WAXSEAL_HERMETIC" {
		t.Errorf("verified %s", got)
	}

	// What nobody asks about is not read, and so not said.
	v = judge(w.two(`level: {build: 2}`), i)
	w.want(v, gate.Pass, 3)
	if got := w.levels(v, bundles[1:]); got[0] != "SLSA_BUILD_LEVEL_3" || !strings.Contains(w.codes(v.Evidence), string(gate.CodeNotNeeded)) {
		t.Errorf("verified %s", got)
	}
	if r := v.Requirements[len(v.Requirements)-1]; r.Status != verify.Unknown || !strings.Contains(r.Reason, "was not read") {
		t.Errorf("%+v", r)
	}
	// With a key alone people see what there is.
	v = judge(gate.Request{Keys: []verify.Key{w.ours.key}}, i)
	w.want(v, gate.Pass, 2)
	if len(v.Properties) != 2 {
		t.Errorf("properties %v", v.Properties)
	}

	// Known, and not decided on before.
	open := w.single()
	open.seal(w.ours, open.desc, ci, recorded)
	v = judge(both, open)
	w.want(v, gate.Deny, 3, "level  property.hermetic: Hermetic (WAXSEAL_HERMETIC) not met: all that came in is known")
	if got := w.levels(v); got[0] != "FAILED" || v.Reasons[0].Hint == "" {
		t.Errorf("verified %s, %+v", got, v.Reasons)
	}
	if got := w.levels(judge(w.two(`level: {build: 2}, properties: [WAXSEAL_INPUTS_COMPLETE]`), open)); got[0] != "SLSA_BUILD_LEVEL_3 WAXSEAL_INPUTS_COMPLETE" {
		t.Errorf("verified %s", got)
	}
	// A waiver lets it pass, and makes it no more true.
	v = judge(w.two(`level: {build: 2}, properties: [WAXSEAL_HERMETIC], waivers: [{requirement: property.hermetic, reason: a, owner: b, expires: 2999-01-01}]`), open)
	w.want(v, gate.Pass, 3)
	if got := w.levels(v); strings.Contains(got[0], "HERMETIC") || len(v.Waived) != 1 {
		t.Errorf("verified %s, waived %v", got, v.Waived)
	}
	// What the caller asks for beyond the policy is not the policy's to waive.
	ladder := verify.Ladder()
	req := w.two(`level: {build: 2}, waivers: [{requirement: property.hermetic, reason: a, owner: b, expires: 2999-01-01}]`)
	req.Level = &ladder
	v = judge(req, open)
	w.want(v, gate.Deny, 3, "property.hermetic", "level  property.two-party-reviewed: Source reviewed by two (SLSA_SOURCE_TWO_PARTY_REVIEWED) cannot be told: the provenance pins no commit")
	if v.Declared.String() != ladder.String() || len(v.Reasons) != 2 {
		t.Errorf("declared %s, %d reasons", v.Declared, len(v.Reasons))
	}

	// The record of another signer, and one that no provenance names.
	forged := w.single()
	forged.attach(w.ours, forged.desc, attestations.ProvenanceV1, strings.TrimSuffix(provenance(ci), "}}")+
		fmt.Sprintf(`,"byproducts":[{"name":"inputs","digest":{"sha256":%q}}]}}`, w.statement(digestOf(forged.desc), attestations.InputsV1, noNetwork).Digest().Hex()))
	w.want(judge(both, forged), gate.Deny, 3, "is not there, or nobody trusted signed it")
	forged.attach(w.strange, forged.desc, attestations.InputsV1, noNetwork)
	w.want(judge(both, forged), gate.Deny, 3, "and not by the provenance's signer")
	loose := w.single()
	loose.attach(w.ours, loose.desc, attestations.ProvenanceV1, provenance(ci))
	loose.attach(w.ours, loose.desc, attestations.InputsV1, noNetwork)
	w.want(judge(both, loose), gate.Deny, 3, "names no record of inputs")
}

func TestPropertiesOfPlatforms(t *testing.T) {
	w := newWorld(t)
	req := w.two(`level: {build: 2}, properties: [WAXSEAL_HERMETIC]`)
	i := w.index(false)
	rests := [][]string{{i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci)).Hex()}}
	for _, d := range i.platforms {
		rests = append(rests, i.seal(w.ours, d, ci, noNetwork))
	}
	rests[0] = slices.Concat(rests...)
	req.Reference = i.ref
	v := w.judge(req)
	w.want(v, gate.Pass, 3)
	for n, got := range w.levels(v, rests...) {
		if got != "SLSA_BUILD_LEVEL_3 WAXSEAL_INPUTS_COMPLETE WAXSEAL_HERMETIC" {
			t.Errorf("%d: verified %s", n, got)
		}
	}
	worse := w.index(false)
	worse.attach(w.ours, worse.desc, attestations.ProvenanceV1, provenance(ci))
	worse.seal(w.ours, worse.platforms[0], ci, noNetwork)
	worse.seal(w.ours, worse.platforms[1], ci, recorded)
	req.Reference = worse.ref
	v = w.judge(req)
	w.want(v, gate.Deny, 3, "level linux/arm64 property.hermetic", "level  property.hermetic: Hermetic (WAXSEAL_HERMETIC) not met: linux/arm64: all that came in is known")
	if v.Platforms[0].Decision != gate.Pass || len(v.Properties) != 1 {
		t.Errorf("%s, %v", v.Platforms[0].Decision, v.Properties)
	}
}

func TestReproducedByAnother(t *testing.T) {
	w := newWorld(t)
	req := w.two(`level: {build: 2}, properties: [SLSA_BUILD_REPRODUCED]`)
	judge := func(i *image) *gate.Verdict {
		t.Helper()
		req.Reference = i.ref
		return w.judge(req)
	}
	i := w.single()
	own := i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci)).Hex()
	v := judge(i)
	w.want(v, gate.Deny, 3, "SLSA_BUILD_REPRODUCED) cannot be told: only one builder says")
	if r := v.Requirements[len(v.Requirements)-1]; !strings.Contains(r.Reason, "was not read") {
		t.Errorf("%+v", r)
	}
	// The builder's own word, and that of a builder under another's key, are
	// no second.
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenanceWith(ci, `{"target":"x"}`))
	i.attach(w.ours, i.desc, attestations.RebuildV1, rebuild(digestOf(i.desc)))
	w.want(judge(i), gate.Deny, 3, "property.reproduced")
	// A stranger's neither.
	third := w.person("third.pub")
	i.attach(third, i.desc, attestations.RebuildV1, rebuild(digestOf(i.desc)))
	i.attach(third, i.desc, attestations.ProvenanceV1, provenance(elsewhere))
	w.want(judge(i), gate.Deny, 3, "property.reproduced")
	again := i.attach(w.strange, i.desc, attestations.RebuildV1, rebuild(digestOf(i.desc))).Hex()
	v = judge(i)
	w.want(v, gate.Pass, 3)
	if got := w.levels(v, []string{own, again}); got[0] != "SLSA_BUILD_LEVEL_3 SLSA_BUILD_REPRODUCED" {
		t.Errorf("verified %s", got)
	}

	both := w.single()
	rests := []string{both.attach(w.ours, both.desc, attestations.ProvenanceV1, provenance(ci)).Hex(), both.attach(w.strange, both.desc, attestations.ProvenanceV1, provenance(elsewhere)).Hex()}
	v = judge(both)
	w.want(v, gate.Pass, 3)
	w.levels(v, rests)

	// Who built the index again has built what is in it; who built one platform
	// has not built the other.
	index := w.index(false)
	for _, d := range append([]v1.Descriptor{index.desc}, index.platforms...) {
		index.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	index.attach(w.strange, index.platforms[0], attestations.ProvenanceV1, provenance(elsewhere))
	w.want(judge(index), gate.Deny, 3, "level linux/arm64 property.reproduced", "level  property.reproduced")
	// Provenance of the index may be of putting it together only.
	index.attach(w.strange, index.desc, attestations.ProvenanceV1, provenance(elsewhere))
	w.want(judge(index), gate.Deny, 3, "level linux/arm64 property.reproduced")
	index.attach(w.strange, index.desc, attestations.RebuildV1, rebuild(digestOf(index.desc)))
	v = judge(index)
	w.want(v, gate.Pass, 3)
	for n, got := range w.levels(v) {
		if got != "SLSA_BUILD_LEVEL_3 SLSA_BUILD_REPRODUCED" {
			t.Errorf("%d: verified %s", n, got)
		}
	}

	// That artifacts are alike is no provenance of one.
	alike := w.single()
	alike.attach(w.ours, alike.desc, attestations.ProvenanceV1, provenance(ci))
	same := digestOf(alike.desc).Hex()
	comparison := func(first string) string {
		return fmt.Sprintf(`{"buildDefinition":{"buildType":"https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1","externalParameters":{},"resolvedDependencies":[{"digest":{"sha256":%q}},{"digest":{"sha256":%q}}]},"runDetails":{"builder":{"id":%q}}}`, first, same, elsewhere)
	}
	alike.attach(w.strange, alike.desc, attestations.ProvenanceV1, comparison(strings.Repeat("0", 64)))
	w.want(judge(alike), gate.Deny, 3, "is alike, and does not have the same digest")
	alike.attach(w.strange, alike.desc, attestations.ProvenanceV1, comparison(same))
	w.want(judge(alike), gate.Pass, 3)
	only := w.single()
	same = digestOf(only.desc).Hex()
	only.attach(w.strange, only.desc, attestations.ProvenanceV1, comparison(same))
	w.want(judge(only), gate.Deny, 0, "the one piece of provenance does not count: it says that artifacts are alike")
}

func TestSourceWithoutEvidence(t *testing.T) {
	w := newWorld(t)
	i := w.single()
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	req := w.two(`level: {build: 2, source: 3}`)
	req.Reference = i.ref
	v := w.judge(req)
	w.want(v, gate.Deny, 3, "level  source.l1.source-control-system: Source control system (Source L1) cannot be told: the provenance pins no commit", "source.l1.revision-ids: Revisions are immutable (Source L1) not met")
	if v.Declared.Source != 3 || v.Reached.Source != 0 || len(v.Reasons) != 3 {
		t.Errorf("declared %s, reached %+v, %+v", v.Declared, v.Reached, v.Reasons)
	}
	if got := w.levels(v); got[0] != "FAILED" {
		t.Errorf("verified %s", got)
	}
	// A waiver of one row leaves the others.
	req = w.two(`level: {build: 2, source: 1}, waivers: [{requirement: source.l1.source-control-system, reason: a, owner: b, expires: 2999-01-01}]`)
	req.Reference = i.ref
	v = w.judge(req)
	w.want(v, gate.Deny, 3, "level  source.l1.repository-ids")
	if len(v.Waived) != 1 {
		t.Errorf("waived %v", v.Waived)
	}
}
