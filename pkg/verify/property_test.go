package verify_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

const keyC = attest.Digest("sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc")

const other = "https://rebuild.example.org/b"

// twoBuilders trusts two builders with a key each, and a third with the first
// one's key.
func twoBuilders() verify.Trust {
	return verify.Trust{Builders: []verify.Builder{
		{ID: ci, Key: keyA, MaxLevel: 3}, {ID: other, Key: keyB, MaxLevel: 1}, {ID: other, Key: keyA, MaxLevel: 1}, {ID: ci + "/", Key: keyB, MaxLevel: 1},
	}}
}

func row(t *testing.T, res verify.Result, id string) verify.Row {
	t.Helper()
	i := slices.IndexFunc(res.Rows, func(r verify.Row) bool { return r.ID == id })
	if i < 0 {
		t.Fatalf("no row %s", id)
	}
	return res.Rows[i]
}

// inputs is a record that says of itself what it holds.
func inputs(mode string, steps ...attestations.InputStep) *attestations.Inputs {
	in := &attestations.Inputs{Mode: mode, Steps: steps, Gateway: attestations.InputGateway{Name: attestations.GatewayName}}
	if mode == attestations.InputsLocked || mode == attestations.InputsOffline {
		in.Lock = string(keyA)
	}
	for i := range in.Steps {
		in.Steps[i].ID, in.Steps[i].Name = string(keyB), "RUN x"
		in.Steps[i].Verdict = attestations.StepVerdict(&in.Steps[i])
	}
	in.Verdict, in.Hermetic = in.Judge()
	return in
}

func TestPropertiesOfInputs(t *testing.T) {
	fetch := attestations.InputStep{Requests: []attestations.InputRequest{{Ordinal: 1, Method: "GET", URI: "https://x.example/a", Status: 200, Digest: string(keyA)}}}
	gap := attestations.InputStep{Gaps: []attestations.InputGap{{Kind: attestations.GapCacheMount, Detail: "/root/.cache"}}}
	host := attestations.InputStep{Gaps: []attestations.InputGap{{Kind: attestations.GapHostNetwork, Detail: "all of it"}}}
	claims := strings.TrimSuffix(goodV1, "}}}") + `,"buildkit_hermetic":true,"buildkit_completeness":{"request":true,"resolvedDependencies":true}}}}`
	with := func(in *attestations.Inputs, signer attest.Digest) verify.Candidate {
		c := candidate(t, attestations.ProvenanceV1, goodV1, signer)
		if in != nil {
			c.Inputs = &verify.InputsRecord{Bundle: "sha256:3333333333333333333333333333333333333333333333333333333333333333", Inputs: in}
		}
		return c
	}
	overstated, foreign := inputs(attestations.InputsLocked, gap), inputs(attestations.InputsNone)
	overstated.Verdict, overstated.Hermetic = attestations.VerdictIsolated, true
	foreign.Gateway.Name = "buildkit-proxy"
	tagged := inputs(attestations.InputsNone)
	tagged.Sources = []attestations.InputSource{{Kind: "image", URI: "pkg:docker/debian@12", Ref: "docker.io/library/debian:12", Digest: string(keyC)}}
	tagged.Hermetic = false
	absent := with(nil, keyA)
	absent.NoInputs = "the record was signed by somebody else"
	for _, c := range []struct {
		name               string
		candidate          verify.Candidate
		complete, hermetic verify.Status
		says               string
	}{
		{"no network", with(inputs(attestations.InputsNone, attestations.InputStep{}), keyA), verify.Met, verify.Met, "no step had a network"},
		{"locked", with(inputs(attestations.InputsLocked, fetch), keyA), verify.Met, verify.Met, "held to the lock sha256:111111111111"},
		{"only recorded", with(inputs(attestations.InputsRecord, fetch), keyA), verify.Met, verify.NotMet, "the mode was record"},
		{"without a step", with(inputs(attestations.InputsNone), keyA), verify.Met, verify.Met, "no step"},
		{"a base image by its tag", with(tagged, keyA), verify.Met, verify.NotMet, "a base image by its tag"},
		{"a cache mount", with(inputs(attestations.InputsLocked, fetch, gap), keyA), verify.NotMet, verify.NotMet, `cache-mount in "RUN x"`},
		{"the machine's network", with(inputs(attestations.InputsLocked, host, gap), keyA), verify.NotMet, verify.NotMet, `host-network in "RUN x", and 1 more`},
		{"a record that says more than it holds", with(overstated, keyA), verify.Unknown, verify.Unknown, "does not hold together"},
		{"another's gateway", with(foreign, keyA), verify.NotMet, verify.NotMet, `watched by "buildkit-proxy"`},
		{"no record", with(nil, keyA), verify.Unknown, verify.Unknown, "names no record of inputs"},
		{"a record that does not count", absent, verify.Unknown, verify.Unknown, "signed by somebody else"},
		{"BuildKit's word for it", candidate(t, attestations.ProvenanceV1, claims, keyA), verify.Unknown, verify.Unknown, "that it says so itself does not count"},
		{"v0.2's word for it", candidate(t, attestations.ProvenanceV02, strings.Replace(goodV02, `"parameters":true`, `"parameters":true,"materials":true`, 1), keyA), verify.Unknown, verify.Unknown, "that it says so itself does not count"},
		{"nobody's signature", with(inputs(attestations.InputsNone), ""), verify.Unknown, verify.Unknown, "nobody vouches"},
		{"a stranger's signature", with(inputs(attestations.InputsNone), keyC), verify.Unknown, verify.Unknown, "is not the one trusted"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := verify.Assess(twoBuilders(), verify.Findings{Candidates: []verify.Candidate{c.candidate}})
			complete, hermetic := row(t, res, verify.RowInputsComplete), row(t, res, verify.RowHermetic)
			if complete.Status != c.complete || hermetic.Status != c.hermetic || !strings.Contains(hermetic.Reason, c.says) {
				t.Errorf("complete %q (%s), hermetic %q (%s)", complete.Status, complete.Reason, hermetic.Status, hermetic.Reason)
			}
			if slices.Contains(res.Properties, verify.PropertyInputsComplete) != (c.complete == verify.Met) || slices.Contains(res.Properties, verify.PropertyHermetic) != (c.hermetic == verify.Met) {
				t.Errorf("properties %v", res.Properties)
			}
			if c.complete == verify.Met && (len(complete.Evidence) != 1 || complete.Evidence[0].Bundle != c.candidate.Inputs.Bundle) {
				t.Errorf("it rests on %v", complete.Evidence)
			}
		})
	}
}

// An index has what the worst of its platforms has, whatever is said of itself.
func TestPropertiesOfAnIndex(t *testing.T) {
	platform := func(name string, in *attestations.Inputs) verify.Platform {
		c := candidate(t, attestations.ProvenanceV1, goodV1, keyA)
		c.Inputs = &verify.InputsRecord{Bundle: keyB, Inputs: in}
		return verify.Platform{Name: name, Rows: verify.Assess(twoBuilders(), verify.Findings{Candidates: []verify.Candidate{c}}).Rows}
	}
	good, bad := platform("linux/amd64", inputs(attestations.InputsNone)), platform("linux/arm64", inputs(attestations.InputsRecord))
	own := candidate(t, attestations.ProvenanceV1, goodV1, keyA)
	own.Inputs = &verify.InputsRecord{Bundle: keyB, Inputs: inputs(attestations.InputsNone)}
	for _, c := range []struct {
		platforms []verify.Platform
		want      []string
	}{
		{[]verify.Platform{good, good}, []string{verify.PropertyInputsComplete, verify.PropertyHermetic}},
		{[]verify.Platform{good, bad}, []string{verify.PropertyInputsComplete}},
		{[]verify.Platform{good, {Name: "linux/riscv64", Rows: verify.Assess(twoBuilders(), verify.Findings{}).Rows}}, nil},
		{[]verify.Platform{good, {Name: "linux/s390x"}}, nil},
	} {
		res := verify.Assess(twoBuilders(), verify.Findings{Candidates: []verify.Candidate{own}, Platforms: c.platforms})
		if !slices.Equal(res.Properties, c.want) {
			t.Errorf("%v, want %v", res.Properties, c.want)
		}
	}
}

func TestReproduced(t *testing.T) {
	v1 := attestations.ProvenanceV1
	by := func(id string, signer attest.Digest) verify.Candidate {
		return candidate(t, v1, strings.Replace(goodV1, ci, id, 1), signer)
	}
	certified := func(id, issuer, san string) verify.Candidate {
		c := by(id, keyA)
		c.Signer = &verify.Signer{SAN: san, Issuer: issuer}
		return c
	}
	rebuilt := func(signer attest.Digest, problem string) verify.Rebuild {
		return verify.Rebuild{Bundle: keyA, Signer: verify.Signer{Key: signer}, BuilderID: verify.Field{Value: other, Pointer: "/predicate/build/builder"}, Problem: problem}
	}
	elsewhere := func(old, new string) verify.Candidate {
		return candidate(t, v1, strings.ReplaceAll(strings.Replace(goodV1, ci, other, 1), old, new), keyB)
	}
	unmet := func(p ...verify.Problem) verify.Candidate {
		c := by(other, keyB)
		c.Expected, c.Problems = true, p
		return c
	}
	anybody := verify.Trust{}
	const github, flows = "https://token.actions.githubusercontent.com", "https://github.com/acme/app/.github/workflows/"
	const generator = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/generator_"
	// Both sign under a builder.id that is their name, as on GitHub.
	pair := func(a, issuerA, b, issuerB string) []verify.Candidate {
		return []verify.Candidate{certified(a, issuerA, a), certified(b, issuerB, b)}
	}
	named := twoBuilders()
	for i, name := range []string{"Acme CI", " acme ci"} {
		named.Builders[i].Name = name
	}
	for _, c := range []struct {
		name       string
		trust      verify.Trust
		candidates []verify.Candidate
		rebuilds   []verify.Rebuild
		want       verify.Status
		says       string
	}{
		{"two builders, two keys", twoBuilders(), []verify.Candidate{by(ci, keyA), by(other, keyB)}, nil, verify.Met, "built to the same digest by " + other},
		{"not as the policy expects", twoBuilders(), []verify.Candidate{by(ci, keyA), unmet(verify.Problem{Code: "source", Message: "built from evil/repo"})}, nil, verify.NotMet, "is not what is expected: built from evil/repo"},
		{"from a branch that it does not say", twoBuilders(), []verify.Candidate{by(ci, keyA), unmet(verify.Problem{Code: "source", Unsaid: true})}, nil, verify.Met, ""},
		{"from another repository", twoBuilders(), []verify.Candidate{by(ci, keyA), elsewhere("acme/app", "evil/app")}, nil, verify.NotMet, "from another source"},
		{"from another commit", twoBuilders(), []verify.Candidate{by(ci, keyA), elsewhere("c0ffee", "c0ffef")}, nil, verify.NotMet, "from another source"},
		{"from a source that it does not say", twoBuilders(), []verify.Candidate{by(ci, keyA), elsewhere("git+https", "x+https")}, nil, verify.Met, ""},
		{"one builder", twoBuilders(), []verify.Candidate{by(ci, keyA)}, nil, verify.Unknown, "only one builder says"},
		{"one builder, two provenances", twoBuilders(), []verify.Candidate{by(ci, keyA), candidate(t, v1, strings.Replace(goodV1, "2026-01-01", "2026-01-02", 1), keyA)}, nil, verify.Unknown, "only one builder says"},
		{"the same provenance twice", twoBuilders(), []verify.Candidate{by(ci, keyA), by(ci, keyA)}, nil, verify.Unknown, "only one builder says"},
		{"one key for both builders", twoBuilders(), []verify.Candidate{by(ci, keyA), by(other, keyA)}, nil, verify.NotMet, "one key signed for both"},
		{"one builder but for a slash", twoBuilders(), []verify.Candidate{by(ci, keyA), by(ci+"/", keyB)}, nil, verify.NotMet, "both have the builder.id"},
		{"a stranger's", twoBuilders(), []verify.Candidate{by(ci, keyA), by("https://evil.example/b", keyB)}, nil, verify.NotMet, "is not a trusted builder"},
		{"nobody's", twoBuilders(), []verify.Candidate{by(ci, keyA), by(other, "")}, nil, verify.Unknown, "only one builder says"},
		{"a rebuild", twoBuilders(), []verify.Candidate{by(ci, keyA)}, []verify.Rebuild{rebuilt(keyB, "")}, verify.Met, other},
		{"a rebuild by the builder itself", twoBuilders(), []verify.Candidate{by(ci, keyA)}, []verify.Rebuild{rebuilt(keyA, "")}, verify.NotMet, "one key signed for both"},
		{"a rebuild that came out different", twoBuilders(), []verify.Candidate{by(ci, keyA)}, []verify.Rebuild{rebuilt(keyB, "it came out different")}, verify.NotMet, "came out different"},
		{"one of two rebuilds", twoBuilders(), []verify.Candidate{by(ci, keyA)}, []verify.Rebuild{rebuilt(keyB, "it came out different"), rebuilt(keyB, "")}, verify.Met, other},
		{"two keys without a policy", anybody, []verify.Candidate{by(ci, keyA), by(other, keyB)}, nil, verify.Met, ""},
		{"two machines of somebody's own", anybody, []verify.Candidate{by(attestations.UnhostedBuilderID, keyA), by(attestations.UnhostedBuilderID, keyB)}, nil, verify.NotMet, "both have the builder.id"},
		{"two versions of one builder", anybody, []verify.Candidate{by("https://h.example/o/r/w.yml@refs/tags/v1", keyA), by("https://h.example/o/r/w.yml@refs/heads/main", keyB)}, nil, verify.NotMet, "both have the builder.id"},
		{"two identities of one issuer", anybody, []verify.Candidate{certified(ci, "https://i.example", "https://h.example/a"), certified(other, "https://i.example", "https://h.example/b")}, nil, verify.NotMet, "vouches for who signed for both"},
		{"two identities of two issuers", anybody, []verify.Candidate{certified(ci, "https://i.example", "https://h.example/a"), certified(other, "https://j.example", "https://h.example/b")}, nil, verify.Met, ""},
		{"one name under two issuers", anybody, []verify.Candidate{certified(ci, "https://i.example", "https://h.example/a@v1"), certified(other, "https://j.example", "https://h.example/a@v2")}, nil, verify.NotMet, "both are signed for"},
		{"two identities of one CA", anybody, []verify.Candidate{certified(ci, "", "https://h.example/a"), certified(other, "", "https://h.example/b")}, nil, verify.NotMet, "one authority issued"},
		{"a shared generator, twice", anybody, pair(generator+"generic_slsa3.yml@refs/tags/v2.0.0", github, generator+"generic_slsa3.yml@refs/tags/v2.1.0", github), nil, verify.NotMet, "both have the builder.id"},
		{"two of the shared generators", anybody, pair(generator+"generic_slsa3.yml@refs/tags/v2.1.0", github, generator+"container_slsa3.yml@refs/tags/v2.1.0", github), nil, verify.NotMet, "vouches for who signed for both"},
		{"two workflows of a platform", anybody, pair(flows+"build.yml@refs/tags/v1", github, flows+"again.yml@refs/tags/v1", github), nil, verify.NotMet, "vouches for who signed for both"},
		{"a workflow and a shared generator", anybody, pair(flows+"build.yml@refs/tags/v1", github, generator+"generic_slsa3.yml@refs/tags/v2.1.0", github), nil, verify.NotMet, "vouches for who signed for both"},
		{"a workflow and one of an enterprise of the platform", anybody, pair(flows+"build.yml@refs/tags/v1", github, flows+"again.yml@refs/tags/v1", github+"/acme"), nil, verify.NotMet, "vouches for who signed for both"},
		{"and the other way about", anybody, pair(flows+"build.yml@refs/tags/v1", github+"/acme", flows+"again.yml@refs/tags/v1", github), nil, verify.NotMet, "vouches for who signed for both"},
		{"two platforms whose issuers begin alike", anybody, pair("https://a.example/w", "https://i.example", "https://b.example/w", "https://i.example.org"), nil, verify.Met, ""},
		{"two entries of one name", named, []verify.Candidate{by(ci, keyA), by(other, keyB)}, nil, verify.NotMet, `"Acme CI" signs for both builders`},
		{"a rebuild under the same name", named, []verify.Candidate{by(ci, keyA)}, []verify.Rebuild{rebuilt(keyB, "")}, verify.NotMet, `"Acme CI" signs for both builders`},
		{"a key and an identity", anybody, []verify.Candidate{by(ci, keyA), certified(other, "https://i.example", "https://h.example/b")}, nil, verify.Met, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := verify.Assess(c.trust, verify.Findings{Candidates: c.candidates, Rebuilds: c.rebuilds})
			r := row(t, res, verify.RowReproduced)
			if r.Status != c.want || !strings.Contains(r.Reason, c.says) {
				t.Errorf("%q: %s", r.Status, r.Reason)
			}
			if slices.Contains(res.Properties, verify.PropertyReproduced) != (c.want == verify.Met) {
				t.Errorf("properties %v", res.Properties)
			}
			if c.want == verify.Met && len(r.Evidence) < 2 {
				t.Errorf("it rests on %v", r.Evidence)
			}
		})
	}
}

func TestReadRebuild(t *testing.T) {
	record := func(edit ...string) string {
		return strings.NewReplacer(edit...).Replace(fmt.Sprintf(`{"verdict":"reproduced","original":%q,"rebuilt":%q,"normalisers":[],"differences":[],"build":{"mode":"offline","builder":%q}}`, image, image, other))
	}
	alike := func(first, second string) string {
		return fmt.Sprintf(`{"buildDefinition":{"buildType":"https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1","externalParameters":{},"resolvedDependencies":[{"name":"rebuild/a","digest":{"sha256":%q}},{"name":"a","digest":{"sha256":%q}}]},"runDetails":{"builder":{"id":%q}}}`, first, second, other)
	}
	for _, c := range []struct {
		name, kind, predicate string
		problem               string // "-": it cannot be read
	}{
		{"reproduced", attestations.RebuildV1, record(), ""},
		{"equivalent", attestations.RebuildV1, record("reproduced", "equivalent"), "came out"},
		{"different", attestations.RebuildV1, record("reproduced", "different"), "came out"},
		{"of another image", attestations.RebuildV1, record(string(image), string(keyA)), "another digest"},
		{"to another digest", attestations.RebuildV1, record(`"rebuilt":"`+string(image), `"rebuilt":"`+string(keyA)), "another digest"},
		{"with a difference", attestations.RebuildV1, record(`"differences":[]`, `"differences":[{"kind":"content"}]`), "or differences"},
		{"from unverified evidence", attestations.RebuildV1, record(`"mode"`, `"unverified":true,"mode"`), "nobody checked"},
		{"in two ways", attestations.RebuildV1, record(`"verdict"`, `"Verdict":"different","verdict"`), "-"},
		{"no text", attestations.RebuildV1, `{"verdict":1}`, "-"},
		{"equal artifacts", attestations.ProvenanceV1, alike(image.Hex(), "sha256:"+image.Hex()), ""},
		{"alike artifacts", attestations.ProvenanceV1, alike(keyA.Hex(), image.Hex()), "is alike"},
		{"alike artifacts, the other first", attestations.ProvenanceV1, alike(image.Hex(), keyA.Hex()), "is alike"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := verify.ReadRebuild(parsed(t, c.kind, c.predicate), image)
			if (err != nil) != (c.problem == "-") {
				t.Fatal(err)
			}
			if err == nil && (r.Problem == "") != (c.problem == "") || !strings.Contains(r.Problem, strings.Trim(c.problem, "-")) || err == nil && r.BuilderID.Value != other {
				t.Errorf("%+v", r)
			}
		})
	}
	// Artifacts that are alike were not said to be built at all.
	res := verify.Assess(verify.Trust{}, verify.Findings{Candidates: []verify.Candidate{candidate(t, attestations.ProvenanceV1, alike(image.Hex(), image.Hex()), keyA)}})
	if res.Build != 0 || row(t, res, verify.RowExists).Status != verify.NotMet {
		t.Errorf("a comparison carries L%d", res.Build)
	}
}

func TestSource(t *testing.T) {
	met := func(level int) []verify.Row {
		var out []verify.Row
		for _, q := range verify.Requirements() {
			if q.Track == verify.TrackSource && q.Level <= level {
				out = append(out, verify.Row{ID: q.ID, Status: verify.Met, Reason: "a source VSA says so", Evidence: []verify.Evidence{{Bundle: keyB}}})
			}
		}
		return out
	}
	hole := met(4)
	hole[6].Status = verify.Unknown
	for _, c := range []struct {
		name   string
		source *verify.SourceResult
		level  int
		two    verify.Status
	}{
		{"nothing", nil, 0, verify.Unknown},
		{"nothing said", &verify.SourceResult{Level: 4}, 0, verify.Unknown},
		{"L2", &verify.SourceResult{Level: 2, Rows: met(2)}, 2, verify.Unknown},
		{"L4", &verify.SourceResult{Level: 4, TwoParty: true, Rows: met(4)}, 4, verify.Met},
		{"no more than was found", &verify.SourceResult{Level: 3, TwoParty: true, Rows: met(4)}, 3, verify.Met},
		{"a hole at L2", &verify.SourceResult{Level: 4, TwoParty: true, Rows: hole}, 1, verify.Met},
		{"reviewed at L1", &verify.SourceResult{Level: 1, TwoParty: true, Rows: met(1)}, 1, verify.Met},
		{"L4, and not two", &verify.SourceResult{Level: 4, Rows: met(4)}, 4, verify.Unknown},
		{"said not to be", &verify.SourceResult{Level: 1, Rows: append(met(1), verify.Row{ID: verify.RowTwoParty, Status: verify.NotMet, Reason: "one reviewer is the author"})}, 1, verify.NotMet},
		{"unknown rows", &verify.SourceResult{Level: 1, Rows: append(met(1), verify.Row{ID: "source.l9.x", Status: verify.NotMet})}, 1, verify.Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := candidate(t, attestations.ProvenanceV1, goodV1, keyA)
			k.Source = c.source
			res := verify.Assess(policyTrust(3), verify.Findings{Candidates: []verify.Candidate{k}})
			if res.Source != c.level || res.Build != 3 {
				t.Errorf("Source L%d, Build L%d", res.Source, res.Build)
			}
			r := row(t, res, verify.RowTwoParty)
			if r.Status != c.two || r.Reason == "" || slices.Contains(res.Properties, verify.PropertyTwoParty) != (c.two == verify.Met) {
				t.Errorf("two parties: %q %s, %v", r.Status, r.Reason, res.Properties)
			}
			if len(res.Rows) != len(verify.Requirements()) {
				t.Errorf("%d rows", len(res.Rows))
			}
			for i, q := range verify.Requirements() {
				if res.Rows[i].ID != q.ID || res.Rows[i].Level != q.Level || res.Rows[i].Clause != q.Clause {
					t.Errorf("row %d is %+v", i, res.Rows[i])
				}
			}
		})
	}
}

// What is said of a source says nothing of an image when nobody trusted says
// that it was built from it.
func TestSourceThatNobodyVouchesFor(t *testing.T) {
	var rows []verify.Row
	for _, q := range verify.Requirements() {
		if q.Track == verify.TrackSource {
			rows = append(rows, verify.Row{ID: q.ID, Status: verify.Met})
		}
	}
	for _, signer := range []attest.Digest{"", keyC} {
		for _, trust := range []verify.Trust{policyTrust(3), {Unsigned: true, Builders: []verify.Builder{}}} {
			k := candidate(t, attestations.ProvenanceV1, goodV1, signer)
			k.Source = &verify.SourceResult{Level: 4, TwoParty: true, Rows: rows}
			res := verify.Assess(trust, verify.Findings{Candidates: []verify.Candidate{k}})
			if res.Source != 0 || len(res.Properties) > 0 {
				t.Errorf("signed by %q: Source L%d, %v", signer, res.Source, res.Properties)
			}
		}
	}
}

// Of several pieces one that carries all that is asked for counts; it is still
// judged alone.
func TestAssessTakesWhatIsAskedFor(t *testing.T) {
	plain := candidate(t, attestations.ProvenanceV1, goodV1, keyA)
	sealed := candidate(t, attestations.ProvenanceV1, strings.Replace(goodV1, ci, other, 1), keyB)
	sealed.Inputs = &verify.InputsRecord{Bundle: keyA, Inputs: inputs(attestations.InputsNone)}
	pieces := []verify.Candidate{plain, sealed}
	if res := verify.Assess(twoBuilders(), verify.Findings{Candidates: pieces}); res.Build != 3 || slices.Contains(res.Properties, verify.PropertyHermetic) {
		t.Errorf("%s %v", verify.Demand{Levels: res.Levels}, res.Properties)
	}
	asked := verify.Demand{Levels: verify.Levels{Build: 1}, Properties: []string{verify.PropertyHermetic}}
	if res := verify.Assess(twoBuilders(), verify.Findings{Candidates: pieces, Asked: asked}); res.Build != 1 || !slices.Contains(res.Properties, verify.PropertyHermetic) {
		t.Errorf("%s %v", verify.Demand{Levels: res.Levels}, res.Properties)
	}
	// Two halves do not make a whole.
	asked.Build = 3
	if res := verify.Assess(twoBuilders(), verify.Findings{Candidates: pieces, Asked: asked}); asked.Fulfilled(res.Levels, res.Properties) {
		t.Errorf("two halves give %s %v", verify.Demand{Levels: res.Levels}, res.Properties)
	}
}

func FuzzReadRebuild(f *testing.F) {
	f.Add(`{"verdict":"reproduced","original":"` + string(image) + `","rebuilt":"` + string(image) + `","build":{"builder":"b"}}`)
	f.Add(`{"buildDefinition":{"resolvedDependencies":[{"digest":{"sha256":"` + image.Hex() + `"}},{"digest":{"sha256":"00"}}]},"runDetails":{"builder":{"id":"b"}}}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, predicate string) {
		for _, kind := range []string{attestations.RebuildV1, attestations.ProvenanceV1} {
			st := &attest.Statement{PredicateType: kind, Predicate: []byte(predicate)}
			// Only the image's own digest can be what was built again.
			if r, err := verify.ReadRebuild(st, image); err == nil && r.Problem == "" && !strings.Contains(predicate, image.Hex()) && !strings.Contains(predicate, `\u`) {
				t.Errorf("%s: %+v", predicate, r)
			}
		}
	})
}
