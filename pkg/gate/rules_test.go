package gate_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/verify"
)

// configured is an image with a configuration, and provenance of ours.
func (w *world) configured(c v1.Config) *image {
	w.Helper()
	w.n++
	place, repo := w.open(fmt.Sprintf("app%d", w.n))
	img, err := random.Image(100, 1)
	w.must(err)
	img, err = mutate.Config(img, c)
	w.must(err)
	w.must(remote.Write(repo.Tag("v1"), img))
	i := w.pushed(place, repo)
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	return i
}

// attested is a policy that trusts ours as the builder and strange for VEX.
func (w *world) attested(images string) *policy.Policy {
	w.Helper()
	text := "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n  builders: [" + trusted(3) + "]\n  attesters: [{signer: {key: strange.pub}, for: [vex]}]\nimages:\n  - match: \"**\"\n    level: {build: 2}\n    " + images + "\n"
	p, err := policy.Parse([]byte(text), policy.ParseOptions{ReadKey: func(name string) ([]byte, error) {
		return map[string][]byte{"ours.pub": w.ours.pem, "strange.pub": w.strange.pem}[name], nil
	}})
	w.must(err)
	return p
}

func vuln(severity string) string {
	return fmt.Sprintf(`{"scanner":{"uri":"trivy","result":{"SchemaVersion":2,"ArtifactName":"a","Results":[{"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","PkgName":"a","Severity":%q}]}]}},"metadata":{"scanFinishedOn":"2026-01-02T00:00:00Z"}}`, severity)
}

const vex = `{"@context":"https://openvex.dev/ns/v0.2.0","timestamp":"2026-01-01T00:00:00Z","statements":[{"vulnerability":{"name":"CVE-2026-1"},"status":"not_affected","justification":"component_not_present"}]}`

func TestDemands(t *testing.T) {
	w := newWorld(t)
	root, user := w.configured(v1.Config{}), w.configured(v1.Config{User: "1000", Labels: map[string]string{"owner": "a"}})
	judge := func(i *image, images string) *gate.Verdict {
		t.Helper()
		return w.judge(gate.Request{Reference: i.ref, Policy: w.attested(images)})
	}
	w.want(judge(user, `hardening: {nonRoot: true, noSecrets: true}`), gate.Pass, 3)
	w.want(judge(root, `hardening: {nonRoot: true}`), gate.Deny, 3, "root-user")
	rule := `rules: [{name: owner, expr: "image.config.labels['owner'] == 'a'", message: say whose it is}]`
	w.want(judge(user, rule), gate.Pass, 3)
	// No such label is neither yes nor no, unless something else denies.
	w.want(judge(root, rule), gate.Undecided, 3, `rule "owner" gave neither yes nor no`)
	w.want(judge(root, rule+"\n    hardening: {nonRoot: true}"), gate.Deny, 3, "root-user", "neither yes nor no")
	if _, err := judge(root, rule).VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "x"}); err == nil {
		t.Error("a summary of what is not decided")
	}

	// Vulnerabilities: missing, there, excused by whom the policy names, and by
	// the builder, whom it does not.
	limit := `vulnerabilities: {limits: {critical: 0}}`
	w.want(judge(user, limit), gate.Deny, 3, "scan")
	user.attach(w.strange, user.desc, attestations.CosignVuln, vuln("LOW"))
	v := judge(user, limit)
	w.want(v, gate.Deny, 3, "scan")
	if got := w.codes(v.Evidence); !strings.Contains(got, string(gate.CodeRole)) {
		t.Errorf("a scan by who speaks for VEX only: %s", got)
	}
	user.attach(w.ours, user.desc, attestations.CosignVuln, vuln("CRITICAL"))
	w.want(judge(user, limit), gate.Deny, 3, "CVE-2026-1 (critical)")
	user.attach(w.ours, user.desc, attestations.OpenVEX, vex)
	w.want(judge(user, limit), gate.Deny, 3, "CVE-2026-1 (critical)")
	by := user.attach(w.strange, user.desc, attestations.OpenVEX, vex)
	v = judge(user, limit)
	w.want(v, gate.Pass, 3)
	used := false
	for _, e := range v.Evidence {
		used = used || e.Bundle == by && e.Used
	}
	if !used {
		t.Error("the VEX that excuses is not among what the verdict rests on")
	}
	w.want(judge(user, `vulnerabilities: {maxAge: 1d}`), gate.Deny, 3, "older than the 24h allowed")

	// A scan that somebody trusted signed and that cannot be read stands until the
	// same scanner made a newer one.
	torn := func(image *image, date string) {
		image.attach(w.ours, image.desc, attestations.CosignVuln, `{"scanner":{"uri":"trivy","result":{"odd":1}},"metadata":{"scanFinishedOn":"`+date+`T00:00:00Z"}}`)
	}
	torn(root, "2026-01-01")
	w.want(judge(root, limit), gate.Undecided, 3, "in no form that is known")
	root.attach(w.ours, root.desc, attestations.CosignVuln, vuln("LOW"))
	w.want(judge(root, limit), gate.Pass, 3)
	torn(root, "2026-01-03")
	w.want(judge(root, limit), gate.Undecided, 3, "in no form that is known")

	// What is not asked about is not fetched.
	w.must(w.faults.Set())
	judge(user, `sbom: {required: false}`)
	for _, r := range w.faults.Seen() {
		if strings.Contains(r, "/blobs/") && strings.Count(strings.Join(w.faults.Seen(), " "), "/blobs/") != 1 {
			t.Errorf("fetched %q", w.faults.Seen())
			break
		}
	}
	// A configuration that cannot be fetched is no answer.
	w.must(w.faults.Set(testkit.Fault{Kind: "500", Match: "GET .*/blobs/"}))
	if v := judge(user, `hardening: {nonRoot: true}`); v.Decision != gate.Undecided {
		t.Errorf("%s: %+v", v.Decision, v.Reasons)
	}
}

func TestPackagesOfEveryPlatform(t *testing.T) {
	w := newWorld(t)
	i := w.index(false)
	for _, d := range append([]v1.Descriptor{i.desc}, i.platforms...) {
		i.attach(w.ours, d, attestations.ProvenanceV1, provenance(ci))
	}
	i.attach(w.ours, i.platforms[0], attestations.SPDX, spdx)
	p := w.policy(`  - {match: "**", level: {build: 1}, sbom: {required: true, forbidden: [evil]}, rules: [{name: r, expr: "sbom.packages.exists(p, p.name == 'a')"}]}`, trusted(3))
	req := gate.Request{Reference: i.ref, Policy: p}
	w.want(w.judge(req), gate.Deny, 3, "sbom linux/arm64", "rule linux/arm64")
	i.attach(w.ours, i.platforms[1], attestations.SPDX, `{"spdxVersion":"SPDX-2.3","packages":[{"name":"a"},{"name":"evil"}]}`)
	w.want(w.judge(req), gate.Deny, 3, "package linux/arm64 : it contains package \"evil\"")
}

// A record of inputs counts when the provenance names it and its signer made
// it.
func TestInputsAreBound(t *testing.T) {
	w := newWorld(t)
	p := w.policy(`  - {match: "**", level: {build: 2}, rules: [{name: r, expr: inputs.hermetic}]}`, trusted(3), `{id: "https://other.example", signer: {key: strange.pub}, maxLevel: 3}`)
	record := `{"mode":"locked","verdict":"recorded","hermetic":true,"sources":[],"steps":[],"gateway":{"name":"waxseal"},"engine":{}}`
	for _, c := range []struct {
		name  string
		by    func(*world) person
		named bool
		want  gate.Decision
	}{
		{"bound", func(w *world) person { return w.ours }, true, gate.Pass},
		{"not named", func(w *world) person { return w.ours }, false, gate.Deny},
		{"by another", func(w *world) person { return w.strange }, true, gate.Deny},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := w.single()
			st := w.statement(digestOf(i.desc), attestations.InputsV1, record)
			i.attach(c.by(w), i.desc, attestations.InputsV1, record)
			prov := provenance(ci)
			if c.named {
				prov = strings.TrimSuffix(prov, "}}") + fmt.Sprintf(`,"byproducts":[{"name":"inputs","digest":{"sha256":%q}}]}}`, st.Digest().Hex())
			}
			i.attach(w.ours, i.desc, attestations.ProvenanceV1, prov)
			if v := w.judge(gate.Request{Reference: i.ref, Policy: p}); v.Decision != c.want {
				t.Errorf("%s: %+v", v.Decision, v.Reasons)
			}
		})
	}
}

func TestWaivedAndWarned(t *testing.T) {
	w := newWorld(t)
	i := w.configured(v1.Config{})
	day := func(s string) time.Time {
		d, err := time.Parse(time.DateOnly, s)
		w.must(err)
		return d
	}
	p := w.policy(`  - match: "**"
    level: {build: 3}
    rules:
      - {name: r, expr: "false"}
      - {name: later, expr: "false", effective: 2030-06-01}
    waivers:
      - {rule: r, reason: it is old, owner: o@example.org, expires: 2030-01-01}
      - {requirement: build.l3.isolated, reason: moving, owner: o@example.org, expires: 2030-01-01}
      - {requirement: build.l3.provenance-unforgeable, reason: moving, owner: o@example.org, expires: 2030-01-01}`, trusted(2))
	at := func(s string) *gate.Verdict { return w.judge(gate.Request{Reference: i.ref, Policy: p, At: day(s)}) }

	v := at("2029-12-31")
	w.want(v, gate.Pass, 2)
	if len(v.Waived) != 3 || v.Waived[0].Owner != "o@example.org" || len(v.Warnings) != 1 || !v.Warnings[0].Effective.Equal(day("2030-06-01")) || !v.AsOf.Equal(day("2029-12-31")) {
		t.Errorf("waived %+v, warnings %+v", v.Waived, v.Warnings)
	}
	var text strings.Builder
	w.must(report.Verdict(&text, v, report.TextOptions{Height: 60}))
	for _, want := range []string{"as of 2029-12-31", "waived until 2030-01-01 by o@example.org (it is old)", "warning, denied from 2030-06-01 on"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text does not say %q:\n%s", want, text.String())
		}
	}
	if _, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "x"}); err == nil {
		t.Error("a summary as of another moment")
	}
	// An expired waiver does nothing, and says so.
	v = at("2030-01-01")
	w.want(v, gate.Deny, 2, `rule "r" is not fulfilled`, "Isolated")
	if !strings.Contains(fmt.Sprintf("%+v", v.Reasons), "the waiver of o@example.org for rule \"r\" expired on 2030-01-01") || len(v.Waived) > 0 {
		t.Errorf("%+v", v.Reasons)
	}
	w.want(at("2030-07-01"), gate.Deny, 2, `rule "later"`)

	// Now: the summary says the level that was reached, not the one declared.
	v = w.judge(gate.Request{Reference: i.ref, Policy: p})
	w.want(v, gate.Pass, 2)
	vsas, err := v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "x"})
	w.must(err)
	if got := vsas[0].Predicate; got.VerificationResult != "PASSED" || strings.Join(got.VerifiedLevels, " ") != "SLSA_BUILD_LEVEL_2" {
		t.Errorf("%+v", got)
	}
	// What the caller asks for beyond the policy, the policy cannot waive.
	p = w.policy(`  - {match: "**", level: {build: 2}, waivers: [{requirement: build.l3.isolated, reason: a, owner: b, expires: 2030-01-01}, {requirement: build.l3.provenance-unforgeable, reason: a, owner: b, expires: 2030-01-01}]}`, trusted(2))
	w.want(w.judge(gate.Request{Reference: i.ref, Policy: p, Level: level(3)}), gate.Deny, 2, "Isolated")

	// No provenance at all: one waiver does not let everything through.
	bare := w.single()
	p = w.policy(`  - {match: "**", level: {build: 2}, waivers: [{requirement: build.l1.provenance-exists, reason: a, owner: b, expires: 2030-01-01}]}`, trusted(2))
	w.want(w.judge(gate.Request{Reference: bare.ref, Policy: p}), gate.Deny, 0, "Hosted")

	// A parameter, a source: waived by what they are.
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, provenance(ci))
	set := w.single()
	set.attach(w.ours, set.desc, attestations.ProvenanceV1, provenanceWith(ci, `{"target":"debug"}`))
	w.want(w.judge(gate.Request{Reference: set.ref, Policy: w.policy(`  - {match: "**", level: {build: 1}}`, trusted(2))}), gate.Deny, 0, "parameter")
	p = w.policy(`  - {match: "**", level: {build: 1}, waivers: [{requirement: parameter, reason: a, owner: b, expires: 2030-01-01}]}`, trusted(2))
	v = w.judge(gate.Request{Reference: set.ref, Policy: p})
	w.want(v, gate.Pass, 0)
	vsas, err = v.VSA(gate.VSAOptions{VerifierID: "https://v.example", ResourceURI: "x"})
	w.must(err)
	if got := strings.Join(vsas[0].Predicate.VerifiedLevels, " "); got != "SLSA_BUILD_LEVEL_0" {
		t.Errorf("verified %s", got)
	}
}

func TestTry(t *testing.T) {
	w := newWorld(t)
	signer := verify.Signer{Key: w.ours.key.ID(), Name: "ours.pub"}
	c := &policy.Case{
		Policy: w.attested(`hardening: {nonRoot: true}`), Image: "r.example/app", Config: []byte(`{"os":"linux","config":{"User":"1"}}`),
		Evidence: []policy.CaseEvidence{{Type: attestations.ProvenanceV1, Signer: signer, Predicate: []byte(provenance(ci))}},
		Expect:   policy.Expectation{Decision: "pass"},
	}
	try := func() *gate.Verdict {
		t.Helper()
		v, err := gate.Gate{}.Try(t.Context(), c)
		w.must(err)
		sound(t, v)
		return v
	}
	v := try()
	w.want(v, gate.Pass, 3)
	if d := gate.Differences(c.Expect, v); len(d) > 0 {
		t.Errorf("%q", d)
	}
	c.Config = []byte(`{"os":"linux"}`)
	v = try()
	if d := strings.Join(gate.Differences(c.Expect, v), "\n"); d != "- decision: pass\n+ decision: deny\n+ reason: root-user: the image sets no user, so it runs as root" {
		t.Errorf("%s", d)
	}
	three := 3
	if d := gate.Differences(policy.Expectation{Decision: "deny", Level: &three, Reasons: []string{"root-user"}}, v); len(d) > 0 {
		t.Errorf("%q", d)
	}
	if d := gate.Differences(policy.Expectation{Decision: "deny", Reasons: []string{"root-user", "root-user"}, Warnings: []string{"x"}}, v); len(d) != 2 {
		t.Errorf("%q", d)
	}
	// An unsigned-looking stranger and a broken piece do not count.
	c.Evidence[0].Signer = verify.Signer{Key: attest.DigestOf(nil)}
	w.want(try(), gate.Deny, 0, "provenance")
	c.Evidence[0] = policy.CaseEvidence{Type: attestations.ProvenanceV1, Signer: signer, Predicate: []byte(`[]`)}
	w.want(try(), gate.Deny, 0, "provenance")
}

// A case may say that somebody with a certificate signed, or a key in its
// time.
func TestTryWithAnIdentity(t *testing.T) {
	p, err := policy.Load("../policy/testdata/good/certificates.yaml")
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile("../policy/testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	key, err := verify.ParseKey("release.pub", raw)
	if err != nil {
		t.Fatal(err)
	}
	const release = "https://ci.example/acme/app/.github/workflows/release.yml@refs/tags/v1"
	certificate := func(issuer, san string) verify.Signer { return verify.Signer{Issuer: issuer, SAN: san} }
	for _, c := range []struct {
		builder string
		by      verify.Signer
		month   time.Month
		want    bool
	}{
		{"b", certificate("https://token.ci.example", release), 6, true},
		{"b", certificate("https://token.ci.example", release+"/evil"), 6, false},
		{"b", certificate("https://token.other.example", release), 6, false},
		{"b", certificate("https://token.ci.example", ""), 6, false},
		{"b2", certificate("https://token.ci.example", release), 6, false},
		{"b1", certificate("https://token.ci.example", "https://ci.example/acme/x@refs/heads/main"), 6, true},
		{"b3", verify.Signer{Key: key.ID()}, 6, true},
		{"b3", verify.Signer{Key: key.ID()}, 8, false},
		{"b4", verify.Signer{Key: key.ID()}, 6, false},
		{"b4", verify.Signer{Key: key.ID()}, 8, true},
	} {
		v, err := gate.Gate{}.Try(t.Context(), &policy.Case{
			Policy: p, Image: "registry.example.org/prod/app", At: time.Date(2026, c.month, 1, 0, 0, 0, 0, time.UTC),
			Evidence: []policy.CaseEvidence{{Type: attestations.ProvenanceV1, Predicate: []byte(provenance("https://ci.example.org/" + c.builder)), Signer: c.by}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if accepted := len(v.Evidence) == 1 && v.Evidence[0].Accepted; accepted != c.want {
			t.Errorf("%+v: accepted %t: %+v", c, accepted, v.Evidence)
		}
	}
}

// A case names its image as anybody does, and it is known as when it is judged.
func TestTryKnowsTheImage(t *testing.T) {
	c, err := policy.LoadCase("../policy/testdata/cases/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile("../policy/testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	c.Policy, err = policy.Parse([]byte(`{apiVersion: waxseal.dev/v1, kind: Policy, trust: {builders: [{id: "https://ci.example.org/b", signer: {key: k}, maxLevel: 3}]}, images: [
		{match: "docker.io/library/app", level: {build: 3}}, {match: "**", level: {build: 1}}]}`),
		policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return pem, nil }})
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"docker.io/library/app", "docker.io/library/app:1.0", "app"} {
		c.Image = image
		v, err := gate.Gate{}.Try(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if v.Declared.Build != 3 {
			t.Errorf("%s: declared %s", image, v.Declared)
		}
	}
}

// A case can say of which run a certificate was, and the library judges it.
func TestTryARunOfTheLibrary(t *testing.T) {
	c, err := policy.LoadCase("../policy/testdata/cases/library.yaml")
	if err != nil {
		t.Fatal(err)
	}
	v, err := gate.Gate{}.Try(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if d := gate.Differences(c.Expect, v); len(d) > 0 {
		t.Error(d)
	}
	c.Evidence[0].Signer.Run.Runner = "github-hosted"
	if v, err = (gate.Gate{}).Try(t.Context(), c); err != nil || v.Decision != gate.Pass || v.Reached.Build != 2 {
		t.Errorf("%v %+v", err, v)
	}
}
