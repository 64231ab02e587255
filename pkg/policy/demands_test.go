package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

const image = attest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")

func now() time.Time { return time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) }

func config(t testing.TB, text string) *policy.ImageConfig {
	t.Helper()
	c, err := policy.ReadConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func facts(t testing.TB) policy.Facts {
	t.Helper()
	doc, err := policy.ReadSBOM("spdx", json.RawMessage(`{"spdxVersion":"SPDX-2.3","documentDescribes":["SPDXRef-i"],"packages":[
		{"SPDXID":"SPDXRef-i","name":"image"},
		{"SPDXID":"SPDXRef-a","name":"openssl","versionInfo":"1.1.1","licenseDeclared":"Apache-2.0","externalRefs":[{"referenceType":"purl","referenceLocator":"pkg:deb/debian/openssl@1.1.1?arch=amd64"}]},
		{"SPDXID":"SPDXRef-b","name":"left-pad","versionInfo":"1.0.0","licenseConcluded":"NOASSERTION","licenseDeclared":"WTFPL OR MIT","externalRefs":[{"referenceType":"purl","referenceLocator":"pkg:npm/left-pad@1.0.0"}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	return policy.Facts{
		Reference: "r.example/app:1", Name: "r.example/app", Digest: image, Platform: "linux/amd64",
		Config: config(t, `{"os":"linux","architecture":"amd64","config":{"User":"65532","Env":["PATH=/bin","MODE=x"],"Entrypoint":["/app"],"Labels":{"owner":"a"},"ExposedPorts":{"8080/tcp":{}}},"rootfs":{"diff_ids":["sha256:0"]},"history":[{"created_by":"COPY app /app"}]}`),
		Provenance: &policy.ProvenanceFacts{BuilderID: "https://ci.example.org/b", BuildType: "https://t.example/1",
			ExternalParameters: map[string]any{"target": "release", "n": 3.0}, Dependencies: []policy.Dependency{{URI: "pkg:docker/debian@12", Digest: map[string]string{"sha256": "00"}}}},
		Signer: &verify.Signer{Key: image, Name: "ci.pub"},
		SBOMs:  []policy.SBOM{{Format: "spdx", Bundle: image, Packages: doc.Packages}},
		Inputs: &attestations.Inputs{Mode: "locked", Verdict: "recorded", Hermetic: true, Steps: []attestations.InputStep{{Name: "RUN x", Names: []string{"deb.example.org"}, Requests: []attestations.InputRequest{{Method: "GET", Status: 200}}}}},
	}
}

func ask(t testing.TB, entry string, f policy.Facts) string {
	t.Helper()
	r, ok := parse(t, "  - match: \"**\"\n    level: {build: 1}\n    "+entry+"\n").For("r.example/app")
	if !ok {
		t.Fatal("no rule")
	}
	var out []string
	for _, x := range r.Judge(t.Context(), f, now()).Findings {
		s := x.Code
		if x.Undecided {
			s = "undecided " + s
		}
		if now().Before(x.Effective) {
			s = "later " + s
		}
		out = append(out, s+": "+x.Message)
	}
	return strings.Join(out, "; ")
}

// check compares what was found with a text that must be in it; "" for nothing
// found.
func checkFound(t *testing.T, got, want string) {
	t.Helper()
	if (want == "") != (got == "") || !strings.Contains(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestRules(t *testing.T) {
	without := func(change func(*policy.Facts)) policy.Facts {
		f := facts(t)
		change(&f)
		return f
	}
	all := facts(t)
	for _, c := range []struct {
		expr  string
		facts policy.Facts
		want  string
	}{
		{`image.reference == "r.example/app:1" && image.name == "r.example/app" && image.platform == "linux/amd64" && image.digest.startsWith("sha256:")`, all, ""},
		{`image.config.user == "65532" && image.config.env == ["PATH", "MODE"] && image.config.entrypoint[0] == "/app" && image.config.labels["owner"] == "a" && image.config.exposedPorts == ["8080/tcp"] && image.config.cmd.size() == 0 && image.config.history.size() == 1`, all, ""},
		{`provenance.builderId == "https://ci.example.org/b" && provenance.externalParameters["target"] == "release" && provenance.externalParameters.n == 3.0 && provenance.dependencies.all(d, d.digest.size() > 0)`, all, ""},
		{`sbom.format == "spdx" && sbom.packages.exists(p, p.name == "left-pad" && p.version == "1.0.0" && p.purl.startsWith("pkg:npm") && "WTFPL OR MIT" in p.licenses)`, all, ""},
		{`inputs.mode == "locked" && inputs.hermetic && inputs.verdict == "recorded" && inputs.gaps.size() == 0 && inputs.steps.all(s, s.requests.all(r, r.status == 200) && s.refusals.size() == 0)`, all, ""},
		{`signer.name == "ci.pub" && signer.key != ""`, all, ""},
		{`image.config.user == "0"`, all, `rule: rule "r" is not fulfilled`},
		{`sbom.packages.all(p, p.name != "left-pad")`, all, `rule: rule "r" is not fulfilled`},
		{`sbom.packages.all(p, p.name != "left-pad")`, without(func(f *policy.Facts) { f.SBOMs = nil }), `rule: rule "r" asks about a signed SBOM, and there is none`},
		// It must hold for each SBOM.
		{`sbom.packages.exists(p, p.name == "left-pad")`, without(func(f *policy.Facts) { f.SBOMs = append(f.SBOMs, policy.SBOM{Format: "cyclonedx"}) }), `rule: rule "r" is not fulfilled`},
		{`provenance.builderId != ""`, without(func(f *policy.Facts) { f.Provenance = nil }), `asks about signed provenance`},
		{`signer.name != "" || true`, without(func(f *policy.Facts) { f.Signer = nil }), `asks about signed provenance`},
		{`!inputs.hermetic`, without(func(f *policy.Facts) { f.Inputs = nil }), `asks about a signed record of inputs`},
		{`image.config.user == ""`, without(func(f *policy.Facts) { f.Config = nil }), `asks about the image's configuration`},
		{`[1].all(x, inputs.mode != "")`, without(func(f *policy.Facts) { f.Inputs = nil }), `asks about a signed record of inputs`},
		{`sbom.packages.size() > 0`, without(func(f *policy.Facts) { f.SBOMs, f.Unreadable = nil, map[policy.Fact]string{policy.FactSBOM: "torn"} }), `undecided rule: it cannot be decided: torn`},
		// Neither yes nor no.
		{`image.config.labels["none"] == "x"`, all, `undecided rule: rule "r" gave neither yes nor no: no such key: none`},
		{`provenance.externalParameters.target.size() / (image.config.cmd.size()) > 0`, all, "undecided rule"},
		{`provenance.externalParameters.none == 1`, all, "undecided rule"},
		{`image.config.entrypoint[4] == "x"`, all, "undecided rule"},
		{`provenance.externalParameters.target`, all, ""}, // dyn: refused at load, see below
	} {
		t.Run(c.expr, func(t *testing.T) {
			if c.expr == `provenance.externalParameters.target` {
				_, err := policy.Parse([]byte(head+"  - match: \"**\"\n    level: {build: 1}\n    rules: [{name: r, expr: "+c.expr+"}]\n"), options(t))
				if err == nil || !strings.Contains(err.Error(), "must give true or false") {
					t.Error(err)
				}
				return
			}
			expr, err := json.Marshal(c.expr)
			if err != nil {
				t.Fatal(err)
			}
			checkFound(t, ask(t, "rules: [{name: r, expr: "+string(expr)+"}]", c.facts), c.want)
		})
	}
}

const head = "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust: {builders: [{id: \"https://ci.example.org/b\", signer: {key: k.pub}, maxLevel: 3}]}\nimages:\n"

func options(t testing.TB) policy.ParseOptions {
	t.Helper()
	key, err := os.ReadFile("testdata/release.pub")
	if err != nil {
		t.Fatal(err)
	}
	return policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return key, nil }}
}

// A rule that the estimate let through is stopped when it runs too long, and a
// cancelled context stops it too; neither is an answer.
func TestRulesAreBounded(t *testing.T) {
	f := facts(t)
	long := strings.Repeat("x", 100_000)
	for i := range 50_000 {
		f.SBOMs[0].Packages = append(f.SBOMs[0].Packages, policy.Package{Name: fmt.Sprintf("p%d", i), PURL: long})
	}
	start := time.Now()
	got := ask(t, `rules: [{name: r, expr: "sbom.packages.all(p, !p.purl.contains('y'))"}]`, f)
	if !strings.Contains(got, "undecided rule") || !strings.Contains(got, "cost limit") {
		t.Errorf("found %q", got)
	}
	if d := time.Since(start); d > 2*time.Minute { // on a busy machine, with the race detector
		t.Errorf("it took %s", d)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, _ := parse(t, `  - {match: "**", level: {build: 1}, rules: [{name: r, expr: "sbom.packages.all(p, p.name != 'x')"}]}`).For("r.example/app")
	if j := r.Judge(ctx, f, now()); len(j.Findings) != 1 || !j.Findings[0].Undecided {
		t.Errorf("%+v", j.Findings)
	}
}

func TestPackageDemands(t *testing.T) {
	for _, c := range []struct{ sbom, want string }{
		{`{required: true, forbidden: [pkg:npm/right-pad, "pkg:deb/debian/openssl@3.*", telnetd]}`, ""},
		{`{required: true, forbidden: [pkg:npm/left-pad]}`, `package: it contains package "left-pad" 1.0.0 (forbidden by "pkg:npm/left-pad")`},
		{`{required: true, forbidden: ["pkg:deb/*/openssl@1.*"]}`, `package: it contains package "openssl"`},
		{`{required: true, forbidden: ["left-*"]}`, `package: it contains package "left-pad"`},
		{`{required: true, forbidden: ["pkg:npm/left"]}`, ""},
		{`{required: false, forbidden: ["pkg:npm/**"]}`, `package: it contains`},
		{`{required: true, licenses: {allow: [MIT, Apache-2.0]}}`, ""},
		{`{required: true, licenses: {allow: [Apache-2.0]}}`, `license: package "left-pad" 1.0.0 has the licence "WTFPL OR MIT", which is not allowed`},
		{`{required: true, licenses: {deny: [WTFPL]}}`, ""}, // MIT can be chosen
		{`{required: true, licenses: {deny: [WTFPL, mit]}}`, "license: "},
		{`{required: true, forbidden: [left-pad], effective: 2027-01-01}`, "later package: "},
	} {
		t.Run(c.sbom, func(t *testing.T) { checkFound(t, ask(t, "sbom: "+c.sbom, facts(t)), c.want) })
	}
	f := facts(t)
	// What an SBOM says that it lacks may be what is forbidden.
	f.SBOMs[0].Unread = "/var/lib/dpkg/status: cut short"
	checkFound(t, ask(t, "sbom: {required: true, forbidden: [telnetd]}", f), "sbom: the spdx SBOM says that it lacks the packages of /var/lib/dpkg/status: cut short")
	checkFound(t, ask(t, "sbom: {required: true}", f), "")
	f = facts(t)
	// A component has its name with its group and without, and a package URL of
	// some types one in any letter case.
	doc, err := policy.ReadSBOM("cyclonedx", json.RawMessage(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[
		{"type":"library","group":"org.apache.logging.log4j","name":"log4j-core","version":"2.14.1","purl":"pkg:maven/org.apache.logging.log4j/log4j-core@2.14.1"},
		{"type":"library","name":"yaml","version":"5.1","purl":"pkg:pypi/pyyaml-include@5.1"},
		{"type":"library","name":"x","version":"1","purl":"pkg://npm/right-pad@1"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	f.SBOMs = []policy.SBOM{doc}
	for pattern, found := range map[string]bool{
		"log4j-core": true, "org.apache.logging.log4j/log4j-core": true, "log4j*": true, "*/log4j-core": true, "core": false,
		"pkg:maven/*/log4j-core": true, "pkg:maven/*/Log4j-core": false, "pkg:pypi/PyYAML_include@5.*": true,
		"pkg:npm/right-pad": true,
	} {
		if got := ask(t, fmt.Sprintf("sbom: {required: true, forbidden: [%q]}", pattern), f); (got != "") != found {
			t.Errorf("%s: found %q", pattern, got)
		}
	}
	f.SBOMs = nil
	checkFound(t, ask(t, "sbom: {required: true, forbidden: [x]}", f), "sbom: the policy asks for an SBOM")
	checkFound(t, ask(t, "sbom: {required: true, formats: [cyclonedx], effective: 2027-01-01}", facts(t)), "later sbom: no signed cyclonedx SBOM")
	f.Unreadable = map[policy.Fact]string{policy.FactSBOM: "torn"}
	checkFound(t, ask(t, "sbom: {required: true, forbidden: [x]}", f), "undecided sbom")
	f.SBOMs = []policy.SBOM{{Format: "spdx"}}
	checkFound(t, ask(t, "sbom: {required: true, forbidden: [x]}", f), "lists no package")
	// Another that says nothing bad does not make up for it.
	f.SBOMs = facts(t).SBOMs
	checkFound(t, ask(t, "sbom: {required: true, forbidden: [x]}", f), "undecided sbom: it cannot be decided: torn")
	checkFound(t, ask(t, "rules: [{name: a, expr: 'sbom.packages.size() > 0'}]", f), "undecided rule: it cannot be decided: torn")
	checkFound(t, ask(t, "sbom: {required: true}", f), "")
	f = facts(t)
	for i := range 1000 {
		f.SBOMs[0].Packages = append(f.SBOMs[0].Packages, policy.Package{Name: fmt.Sprint("bad", i)})
	}
	if got := ask(t, `sbom: {required: true, forbidden: ["bad*"]}`, f); strings.Count(got, ";") != 20 || !strings.Contains(got, "and 980 more") {
		t.Errorf("%d: %s", strings.Count(got, ";"), got)
	}
}

func TestLicenses(t *testing.T) {
	for _, c := range []struct {
		license, demand string
		ok              bool
	}{
		{"MIT", "allow: [MIT]", true},
		{"mit", "allow: [MIT]", true},
		{"MIT AND GPL-3.0-only", "allow: [MIT]", false},
		{"(MIT OR GPL-3.0-only) AND MIT", "allow: [MIT]", true},
		{"GPL-2.0-only WITH Classpath-exception-2.0", "allow: [GPL-2.0-only]", true},
		{"GPL-2.0-only WITH Classpath-exception-2.0", "deny: [GPL-2.0-*]", false},
		{"GPL-2.0-only WITH Classpath-exception-2.0", "allow: [GPL-2.0-only WITH Classpath-exception-2.0]", true},
		{"GPL-2.0-only", "allow: [GPL-2.0-only WITH Classpath-exception-2.0]", false},
		{"AGPL-3.0-only", "deny: [AGPL-*]", false},
		// The names that SPDX gave up for others.
		{"GPL-2.0", "deny: [GPL-2.0-only]", false},
		{"GPL-2.0-only", "allow: [GPL-2.0]", true},
		{"LGPL-2.1+ OR GPL-2.0", "deny: [LGPL-2.1-or-later, GPL-2.0-only]", false},
		{"GPL-2.0+ WITH Bison-exception-2.2", "allow: [GPL-2.0-or-later]", true},
		{"GPL-2.0+", "allow: [GPL-2.0-only]", false},
		// What a document calls a licence of its own.
		{"LicenseRef-7c9f", "deny: [AGPL-*]", false},
		{"LicenseRef-7c9f", "deny: [GPL-*]", true},
		{"LicenseRef-7c9f", "allow: [AGPL-3.0 with a smile]", true},
		{"LicenseRef-7c9f OR MIT", "deny: [AGPL-*]", true},
		{"LicenseRef-other", "deny: [AGPL-*]", true},
		{"AGPL-3.0-only OR MIT", "deny: [AGPL-*]", true},
		{"AGPL-3.0-only MIT", "deny: [AGPL-*]", false}, // no expression: whatever is in it
		{"MIT (AGPL-3.0-only)", "deny: [AGPL-*]", false},
		{"((MIT", "allow: [MIT]", false},
		{"The Apache License", "allow: [The Apache License]", true},
		{"", "allow: [MIT]", false},
		{"NOASSERTION", "deny: [MIT]", false},
		{"NOASSERTION", "deny: [MIT], unknown: allow", true},
		{"MIT OR NOASSERTION", "allow: [MIT]", true},
		{strings.Repeat("(", 5000) + "MIT", "allow: [MIT]", false},
	} {
		t.Run(c.license[:min(len(c.license), 60)]+" "+c.demand, func(t *testing.T) {
			doc, err := json.Marshal(map[string]any{"spdxVersion": "SPDX-2.3", "packages": []any{map[string]any{"name": "p", "licenseDeclared": c.license}},
				"hasExtractedLicensingInfos": []any{map[string]any{"licenseId": "LicenseRef-7c9f", "name": "AGPL-3.0 with a smile"}, map[string]any{"licenseId": "LicenseRef-other"}}})
			if err != nil {
				t.Fatal(err)
			}
			f := facts(t)
			read, err := policy.ReadSBOM("spdx", doc)
			if err != nil {
				t.Fatal(err)
			}
			f.SBOMs[0].Packages = read.Packages
			if got := ask(t, "sbom: {required: true, licenses: {"+c.demand+"}}", f); (got == "") != c.ok {
				t.Errorf("found %q", got)
			}
		})
	}
}

func TestReadSBOM(t *testing.T) {
	cdx := `{"bomFormat":"CycloneDX","specVersion":"1.5","components":[{"type":"library","group":"org.x","name":"y","version":"1","purl":"pkg:maven/org.x/y@1","licenses":[{"license":{"id":"MIT"}},{"expression":"A OR B"},{"license":{"name":"My own"}}],
		"components":[{"type":"library","name":"inner"}]},{"type":"operating-system","name":"debian"},{"type":"file","name":"/bin/x"}]}`
	doc, err := policy.ReadSBOM("cyclonedx", json.RawMessage(cdx))
	got := doc.Packages
	if err != nil || len(got) != 3 || got[0].Name != "org.x/y" || strings.Join(got[0].Licenses, "|") != "MIT|A OR B|My own" || got[2].Name != "inner" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		``, `{}`, `[]`, `{"bomFormat":"CycloneDX","specVersion":"1.5","components":{}}`,
		`{"bomFormat":"CycloneDX","specVersion":"1.5","components":[{"name":"a","Name":"b"}]}`,
		`{"bomFormat":"CycloneDX","specVersion":"1.5","components":[],"components":[]}`,
		`{"bomFormat":"CycloneDX","specVersion":"1.5","components":[]} x`,
		`{"bomFormat":"CycloneDX","specVersion":"1.5","components":[` + strings.TrimSuffix(strings.Repeat(`{"name":"a"},`, attest.MaxPackages+1), ",") + `]}`,
	} {
		if _, err := policy.ReadSBOM("cyclonedx", json.RawMessage(bad)); err == nil {
			t.Errorf("accepted %.80s", bad)
		}
	}
	if _, err := policy.ReadSBOM("spdx", json.RawMessage(`{"spdxVersion":"SPDX-2.3","packages":[{"name":3}]}`)); err == nil {
		t.Error("accepted a name that is a number")
	}
}

// scan wraps a scanner's result as cosign does.
func scanned(finished, result string) string {
	return fmt.Sprintf(`{"invocation":{"uri":""},"scanner":{"uri":"pkg:github/x/scanner","version":"1","db":{},"result":%s},"metadata":{"scanStartedOn":"2026-11-21T00:00:00Z","scanFinishedOn":%q}}`, result, finished)
}

const (
	trivy = `{"SchemaVersion":2,"ArtifactName":"app","Results":[{"Target":"app","Class":"os-pkgs","Vulnerabilities":[
		{"VulnerabilityID":"CVE-2026-1","PkgName":"openssl","PkgIdentifier":{"PURL":"pkg:deb/debian/openssl@1.1.1?arch=amd64"},"InstalledVersion":"1.1.1","FixedVersion":"1.1.2","Severity":"CRITICAL","PublishedDate":"2026-11-20T00:00:00Z"},
		{"VulnerabilityID":"CVE-2026-2","PkgName":"zlib","InstalledVersion":"1","Severity":"HIGH","PublishedDate":"2026-11-21T00:00:00Z"},
		{"VulnerabilityID":"CVE-2026-3","PkgName":"zlib","InstalledVersion":"1","FixedVersion":"2","Severity":"UNKNOWN"}]},{"Target":"none"}]}`
	grype = `{"matches":[{"vulnerability":{"id":"GHSA-1","severity":"High","fix":{"versions":["2"],"state":"fixed","available":[{"version":"2","date":"2026-11-01","kind":"first-observed"}]}},"relatedVulnerabilities":[{"id":"CVE-2026-9"}],"artifact":{"name":"x","version":"1","purl":"pkg:npm/x@1"}},
		{"vulnerability":{"id":"CVE-2026-8","severity":"Negligible","fix":{"versions":[],"state":"wont-fix"}},"artifact":{"name":"y","version":"1"}}],"descriptor":{"name":"grype","version":"0.1"}}`
	snyk = `{"ok":false,"packageManager":"deb","vulnerabilities":[
		{"id":"SNYK-1","severity":"high","packageName":"curl","version":"1","nearestFixedInVersion":"2","publicationTime":"2026-11-02T00:00:00.5Z","disclosureTime":"2026-11-01T00:00:00Z","identifiers":{"CVE":["CVE-2026-7"],"CWE":[]}},
		{"id":"SNYK-1","severity":"high","packageName":"curl","version":"1","nearestFixedInVersion":"2"}],
		"applications":[{"ok":true,"vulnerabilities":[]}]}`
	sarif = `{"version":"2.1.0","$schema":"x","runs":[{"invocations":[{"executionSuccessful":true},{}],"tool":{"driver":{"name":"Trivy","rules":[{"id":"CVE-2026-1","properties":{"security-severity":"9.8"}},{"id":"CVE-2026-2","properties":{"security-severity":5.5}},{"id":"CVE-2026-4"}]}},
		"results":[{"ruleId":"CVE-2026-1","level":"error","locations":[{"physicalLocation":{"artifactLocation":{"uri":"lib/x"}}}]},{"ruleIndex":1},{"ruleId":"CVE-2026-4"},{"ruleId":"CVE-2026-5","kind":"pass"}]}]}`
	// Trivy has one rule for what it finds in several packages, as it is in the last.
	trivySARIF = `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"Trivy","rules":[{"id":"CVE-2026-1","properties":{"security-severity":"2.0","tags":["vulnerability","security","LOW"]}}]}},"results":[
		{"ruleId":"CVE-2026-1","ruleIndex":0,"level":"error","message":{"text":"Package: openssl\nInstalled Version: 1.1.1\nVulnerability CVE-2026-1\nSeverity: CRITICAL\nFixed Version: 1.1.2\nLink: [CVE-2026-1](https://avd.aquasec.com/nvd/cve-2026-1)"},"locations":[{"physicalLocation":{"artifactLocation":{"uri":"app"}}}]},
		{"ruleId":"CVE-2026-1","ruleIndex":0,"level":"note","message":{"text":"Package: libssl-doc\nInstalled Version: 1.1.1\nVulnerability CVE-2026-1\nSeverity: LOW\nFixed Version: \nLink: [CVE-2026-1](https://avd.aquasec.com/nvd/cve-2026-1)"}}]}]}`
	// Grype names a rule by the vulnerability and the package.
	grypeSARIF = `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"grype","rules":[{"id":"CVE-2026-1-openssl","properties":{"purls":["pkg:deb/debian/openssl@1.1.1?arch=amd64&distro=debian-12"],"security-severity":"7.5"}},
		{"id":"GHSA-jfh8-c2jp-5v3q-log4j-core","properties":{"security-severity":"10.0"}}]}},
		"results":[{"ruleId":"CVE-2026-1-openssl","locations":[{"physicalLocation":{"artifactLocation":{"uri":"app//var/lib/dpkg/status"}}}]},{"ruleId":"GHSA-jfh8-c2jp-5v3q-log4j-core"}]}]}`
)

func TestReadScan(t *testing.T) {
	for _, c := range []struct{ name, result, want string }{
		{"trivy", trivy, "CVE-2026-1 critical openssl 1.1.1 fix 1 known 2026-11-20; CVE-2026-2 high zlib 1 fix 2 known 2026-11-21; CVE-2026-3 unknown zlib 1 fix 1 known 0001-01-01"},
		{"trivy", `{"SchemaVersion":2,"ArtifactName":"app"}`, ""},
		{"grype", grype, "GHSA-1 high x 1 fix 1 known 2026-11-01; CVE-2026-8 negligible y 1 fix 2 known 0001-01-01"},
		{"snyk", snyk, "SNYK-1 high curl 1 fix 1 known 2026-11-01"},
		{"snyk", "[" + snyk + "]", "SNYK-1 high curl 1 fix 1 known 2026-11-01"},
		// An organisation without the fourth severity has it in another field.
		{"snyk", `{"ok":false,"vulnerabilities":[{"id":"SNYK-2","severity":"high","severityWithCritical":"critical","packageName":"curl","version":"1"}]}`, "SNYK-2 critical curl 1 fix 2 known 0001-01-01"},
		{"sarif", sarif, "CVE-2026-1 critical lib/x  fix 0 known 0001-01-01; CVE-2026-2 medium   fix 0 known 0001-01-01; CVE-2026-4 unknown   fix 0 known 0001-01-01"},
		{"snyk", `{"ok":true,"vulnerabilities":[],"error":null}`, ""},
		{"sarif", `{"version":"2.1.0","runs":[{"tool":{"driver":{"name":"x","rules":[{"id":"a","properties":{"purls":"pkg:a/b","security-severity":"9.1"}}]}},"results":[{"ruleId":"a"}]}]}`, "a critical   fix 0 known 0001-01-01"},
		// Trivy and Grype write 0.0 for a severity that they do not know.
		{"sarif", `{"version":"2.1.0","runs":[{"tool":{"driver":{"rules":[{"id":"CVE-2026-1","properties":{"security-severity":"0.0"}}]}},"results":[{"ruleId":"CVE-2026-1"}]}]}`, "CVE-2026-1 unknown   fix 0 known 0001-01-01"},
		{"sarif", trivySARIF, "CVE-2026-1 critical openssl 1.1.1 fix 1 known 0001-01-01; CVE-2026-1 low libssl-doc 1.1.1 fix 2 known 0001-01-01"},
		{"sarif", grypeSARIF, "CVE-2026-1 high openssl  fix 0 known 0001-01-01; GHSA-jfh8-c2jp-5v3q critical log4j-core  fix 0 known 0001-01-01"},
	} {
		s, err := policy.ReadScan(json.RawMessage(scanned("2026-11-22T00:00:00Z", c.result)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var got []string
		for _, v := range s.Findings {
			got = append(got, fmt.Sprintf("%s %s %s %s fix %d known %s", v.ID, v.Severity, v.Package, v.Version, v.Fix, v.Known.Format(time.DateOnly)))
		}
		if s.Format != c.name || strings.Join(got, "; ") != c.want {
			t.Errorf("%s: %s %q", c.name, s.Format, strings.Join(got, "; "))
		}
	}
	for _, bad := range []string{
		`{}`, `[]`, `null`, `"clean"`, `{"SchemaVersion":1,"ArtifactName":"x"}`, `{"SchemaVersion":2}`, `{"matches":[]}`, `{"ok":true}`, `{"vulnerabilities":[]}`,
		`{"version":"2.1.0","runs":[]}`, `{"version":"2.1.0","runs":[{"tool":{}}]}`, `{"version":"2.0.0","runs":[{"results":[]}]}`,
		`{"SchemaVersion":2,"ArtifactName":"x","Results":[],"results":[]}`, `{"SchemaVersion":2,"ArtifactName":"x","Results":[],"Results":[]}`,
		`{"SchemaVersion":2,"ArtifactName":"x","Results":[{"Vulnerabilities":[{"Severity":"LOW"}]}]}`, `{"SchemaVersion":2,"ArtifactName":"x","Results":{}}`,
		`{"matches":[{"vulnerability":{"id":7}}],"descriptor":{}}`, `[{"vulnerabilities":[]}]`,
		`{"version":"2.1.0","runs":[{"tool":{},"results":[]},{"tool":{},"invocations":[{"executionSuccessful":false}],"results":[]}]}`,
		// Snyk could not look.
		`[{"ok":true,"vulnerabilities":[]},{"ok":false,"error":"Authentication failed","path":"app"}]`, `{"ok":true,"vulnerabilities":[],"error":"x"}`,
		`{"ok":true,"vulnerabilities":[],"applications":[{"ok":false,"error":"x"}]}`,
	} {
		if s, err := policy.ReadScan(json.RawMessage(scanned("2026-11-22T00:00:00Z", bad))); err == nil {
			t.Errorf("accepted %s as %s", bad, s.Format)
		}
	}
	for _, bad := range []string{``, `{}`, `{"scanner":{"result":null}}`, `{"scanner":{"result":{}},"scanner":{}}`, scanned("yesterday", trivy), scanned("2026-11-22T00:00:00Z", trivy) + "x"} {
		if _, err := policy.ReadScan(json.RawMessage(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func scan(t testing.TB, finished, result string) policy.Scan {
	t.Helper()
	s, err := policy.ReadScan(json.RawMessage(scanned(finished, result)))
	if err != nil {
		t.Fatal(err)
	}
	return *s
}

func by(scanner string, s policy.Scan) policy.Scan {
	s.Scanner = scanner
	return s
}

func TestVulnerabilities(t *testing.T) {
	const fresh, old = "2026-11-22T00:00:00Z", "2026-11-01T00:00:00Z"
	clean := `{"SchemaVersion":2,"ArtifactName":"app","Results":[]}`
	one := `{"SchemaVersion":2,"ArtifactName":"app","Results":[{"Vulnerabilities":[{"VulnerabilityID":"CVE-2026-1","Severity":"CRITICAL"}]}]}`
	low := strings.Replace(one, "CRITICAL", "LOW", 1)
	for _, c := range []struct {
		name, demand string
		scans        []policy.Scan
		want         string
	}{
		{"none", "limits: {critical: 0}", nil, "scan: no signed vulnerability scan"},
		{"clean", "limits: {critical: 0}, maxAge: 1d", []policy.Scan{scan(t, fresh, clean)}, ""},
		{"stale", "maxAge: 7d", []policy.Scan{scan(t, old, clean)}, "scan: the vulnerability scan is of 2026-11-01T00:00:00Z, older than the 7d allowed"},
		{"stale, but age is not asked", "limits: {critical: 0}", []policy.Scan{scan(t, old, clean)}, ""},
		{"from the future", "limits: {critical: 0}", []policy.Scan{scan(t, "2026-12-22T00:00:00Z", clean)}, "in the future"},
		{"without a time", "maxAge: 7d", []policy.Scan{{Scanner: "x"}}, "does not say when"},
		{"over a limit", "limits: {critical: 1}", []policy.Scan{scan(t, fresh, trivy)}, "over the limit of 1 critical"},
		{"unknown counts as critical", "limits: {critical: 1}", []policy.Scan{scan(t, fresh, trivy)}, `CVE-2026-1 (critical)`},
		{"unknown has its own limit", "limits: {critical: 1, unknown: 1}", []policy.Scan{scan(t, fresh, trivy)}, ""},
		{"no fix, and only fixable count", "limits: {high: 0}, fixableOnly: true", []policy.Scan{scan(t, fresh, trivy)}, ""},
		{"no fix", "limits: {high: 0}", []policy.Scan{scan(t, fresh, trivy)}, "CVE-2026-2 (high)"},
		{"SARIF does not say of fixes", "limits: {medium: 0}, fixableOnly: true", []policy.Scan{scan(t, fresh, sarif)}, "CVE-2026-2 (medium)"},
		{"within the SLA", "sla: {high: 7d}", []policy.Scan{scan(t, fresh, trivy)}, ""},
		{"beyond the SLA", "sla: {critical: 24h}", []policy.Scan{scan(t, fresh, trivy)}, "CVE-2026-1 (critical) in \"openssl\" 1.1.1, fixed in 1.1.2, known since 2026-11-20, longer than the 24h allowed"},
		{"not dated", "sla: {critical: 30d}", []policy.Scan{scan(t, fresh, trivy)}, "CVE-2026-3 (unknown)"},
		{"the date of the fix", "sla: {high: 7d}", []policy.Scan{scan(t, fresh, grype)}, "GHSA-1 (high)"},
		{"the latest of a scanner", "limits: {critical: 0}", []policy.Scan{scan(t, old, trivy), scan(t, fresh, clean)}, ""},
		{"the latest of a scanner in two versions", "limits: {critical: 0}", []policy.Scan{by("pkg:github/aquasecurity/trivy@0.69.1", scan(t, old, trivy)), by("pkg:github/aquasecurity/trivy@0.70.0", scan(t, fresh, clean))}, ""},
		{"two of one moment", "limits: {critical: 0}", []policy.Scan{scan(t, fresh, low), scan(t, fresh, one)}, "CVE-2026-1 (critical)"},
		{"two of one moment, the other way round", "limits: {critical: 0}", []policy.Scan{scan(t, fresh, one), scan(t, fresh, low)}, "CVE-2026-1 (critical)"},
		{"two that do not say when", "limits: {critical: 0}", []policy.Scan{{Scanner: "x", Findings: scan(t, fresh, low).Findings}, {Scanner: "x", Findings: scan(t, fresh, one).Findings}}, "CVE-2026-1 (critical)"},
		{"each scanner", "limits: {high: 0}", []policy.Scan{scan(t, fresh, clean), scan(t, fresh, snyk)}, "SNYK-1 (high)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := facts(t)
			f.Scans = c.scans
			got := ask(t, "vulnerabilities: {"+c.demand+"}", f)
			if c.name == "unknown counts as critical" {
				got = strings.ReplaceAll(got, "CVE-2026-3", "CVE-2026-1 (critical)")
			}
			checkFound(t, got, c.want)
		})
	}
	// A waiver names what the scanner names, or what everybody else calls it.
	for _, c := range []struct{ result, name, want string }{
		{grype, "GHSA-1", ""},
		{grype, "CVE-2026-9", ""},
		{snyk, "CVE-2026-7", ""},
		{snyk, "CVE-2026-8", "SNYK-1 (high)"},
		{strings.Replace(snyk, `["CVE-2026-7"]`, `["CVE-2026-7","CVE-2026-8"]`, 1), "CVE-2026-8", "SNYK-1 (high)"}, // only one of two
	} {
		f := facts(t)
		f.Scans = []policy.Scan{scan(t, fresh, c.result)}
		r, _ := parse(t, fmt.Sprintf("  - match: \"**\"\n    level: {build: 1}\n    vulnerabilities: {limits: {high: 0}}\n    waivers: [{vulnerability: %s, reason: a, owner: b, expires: 2026-12-01}]\n", c.name)).For("r.example/app")
		got := ""
		for _, x := range r.Judge(t.Context(), f, now()).Findings {
			if _, ok := r.WaiveFinding(x, now()); !ok {
				got += x.Message
			}
		}
		checkFound(t, got, c.want)
	}

	f := facts(t)
	f.Unreadable = map[policy.Fact]string{policy.FactScan: "torn"}
	checkFound(t, ask(t, "vulnerabilities: {limits: {critical: 0}}", f), "undecided scan: it cannot be decided: torn")
	// Another that says nothing bad does not make up for it.
	f.Scans = []policy.Scan{scan(t, fresh, clean)}
	checkFound(t, ask(t, "vulnerabilities: {limits: {critical: 0}}", f), "undecided scan: it cannot be decided: torn")

	// One whose result is in no known form stands for its scanner until a newer
	// one does.
	f.Unreadable = nil
	for _, c := range []struct{ name, scanner, torn, demand, want string }{
		{"the newest", "x", "2026-11-22T06:00:00Z", "limits: {critical: 0}", "undecided scan: it cannot be decided: reading a vulnerability scan: "},
		{"of the same moment", "x", fresh, "limits: {critical: 0}", "undecided scan: "},
		{"an older one", "x", old, "limits: {critical: 0}", ""},
		{"an older one of an older version", "x@0.1", old, "limits: {critical: 0}", ""},
		{"an older one of another scanner", "y", old, "limits: {critical: 0}", "undecided scan: "},
		{"one of another scanner that is too old", "y", old, "maxAge: 7d", ""},
	} {
		t.Run("not readable: "+c.name, func(t *testing.T) {
			of, version, _ := strings.Cut(c.scanner, "@")
			scanner := of + "/scanner"
			if version != "" {
				scanner += "@" + version
			}
			torn, err := policy.ReadScan(json.RawMessage(strings.Replace(scanned(c.torn, `{"SchemaVersion":3,"ArtifactName":"x"}`), `github/x/scanner`, `github/`+scanner, 1)))
			if err == nil || torn == nil || torn.Scanner != "pkg:github/"+scanner {
				t.Fatalf("%+v, %v", torn, err)
			}
			f.Scans = []policy.Scan{*torn, scan(t, fresh, clean)}
			checkFound(t, ask(t, "vulnerabilities: {"+c.demand+"}", f), c.want)
			f.Scans = []policy.Scan{*torn}
			if got := ask(t, "vulnerabilities: {limits: {critical: 0}}", f); !strings.HasPrefix(got, "undecided scan: ") {
				t.Errorf("alone: found %q", got)
			}
		})
	}
}

func TestVEX(t *testing.T) {
	doc := func(statements string) string {
		return `{"@context":"https://openvex.dev/ns/v0.2.0","@id":"x","author":"a","timestamp":"2026-11-21T00:00:00Z","version":1,"statements":[` + statements + `]}`
	}
	ours := `"products":[{"@id":"pkg:oci/app@sha256%3A` + image.Hex() + `"}]`
	good := `"status":"not_affected","justification":"component_not_present"`
	for _, c := range []struct {
		name, statements string
		excused          bool
	}{
		{"of this image", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `}`, true},
		{"by an alias", `{"vulnerability":{"name":"X","aliases":["CVE-2026-1"]},` + ours + `,` + good + `}`, true},
		{"in the old form", `{"vulnerability":"CVE-2026-1","products":["pkg:oci/app@sha256:` + image.Hex() + `"],` + good + `}`, true},
		{"by hash", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"hashes":{"sha-256":"` + image.Hex() + `"}}],` + good + `}`, true},
		{"of the statement's subject", `{"vulnerability":{"name":"CVE-2026-1"},` + good + `}`, true},
		{"of the package", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:deb/debian/openssl@1.1.1"}],` + good + `}`, true},
		{"of the package on this architecture", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:deb/debian/openssl?arch=amd64"}],` + good + `}`, true},
		{"of the package on another architecture", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:deb/debian/openssl@1.1.1?arch=arm64"}],` + good + `}`, false},
		{"of the package in a distribution that is not told", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:deb/debian/openssl?arch=amd64&distro=debian-11"}],` + good + `}`, false},
		{"of a part of the package", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:deb/debian/openssl#doc"}],` + good + `}`, false},
		{"of a part", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app@sha256:` + image.Hex() + `","subcomponents":[{"@id":"pkg:deb/debian/openssl"}]}],` + good + `}`, true},
		{"of another part", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app@sha256:` + image.Hex() + `","subcomponents":[{"@id":"pkg:deb/debian/zlib"}]}],` + good + `}`, false},
		{"of another image", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app@sha256:` + strings.Repeat("b", 64) + `"}],` + good + `}`, false},
		{"of the image by its name", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app?repository_url=r.example/app"}],` + good + `}`, true},
		{"of the image by its reference", `{"vulnerability":{"name":"CVE-2026-1"},"products":["r.example/app:1"],` + good + `}`, true},
		{"of another image by its name", `{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app?repository_url=r.example/other/app"},"r.example/app2","pkg:oci/ap","pkg:oci/app@1"],` + good + `}`, false},
		{"taken back later, of the image by its name", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-1"},"products":[{"@id":"pkg:oci/app"}],"status":"affected","timestamp":"2026-11-22T00:00:00Z"}`, false},
		{"of another vulnerability", `{"vulnerability":{"name":"CVE-2026-11"},` + ours + `,` + good + `}`, false},
		{"without a reason", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"not_affected"}`, false},
		{"with an impact statement", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"not_affected","impact_statement":"x"}`, true},
		{"under investigation", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"under_investigation"}`, false},
		{"taken back later", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"affected","timestamp":"2026-11-22T00:00:00Z"}`, false},
		{"affected before", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"affected","timestamp":"2026-11-01T00:00:00Z"}`, true},
		{"both at once", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,"status":"affected"},{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `}`, false},
		{"from the future", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `,"timestamp":"2027-01-01T00:00:00Z"}`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := policy.ReadVEX(json.RawMessage(doc(c.statements)))
			if err != nil {
				t.Fatal(err)
			}
			f := facts(t)
			f.Scans, f.VEX = []policy.Scan{scan(t, "2026-11-22T00:00:00Z", trivy)}, []policy.VEX{*v}
			if got := ask(t, "vulnerabilities: {limits: {critical: 0, unknown: 1}}", f); (got == "") != c.excused {
				t.Errorf("found %q", got)
			}
		})
	}

	// The next version of a document stands in its place: what it leaves out
	// excuses nothing any more. What the last one had against the image stays.
	read := func(version, timestamp, statements string) policy.VEX {
		v, err := policy.ReadVEX(json.RawMessage(strings.NewReplacer(`"version":1`, `"version":`+version, "2026-11-21", timestamp).Replace(doc(statements))))
		if err != nil {
			t.Fatal(err)
		}
		return *v
	}
	fine, other := `{"vulnerability":{"name":"CVE-2026-1"},`+ours+`,`+good+`}`, `{"vulnerability":{"name":"CVE-2026-2"},`+ours+`,`+good+`}`
	for _, c := range []struct {
		name    string
		docs    []policy.VEX
		excused bool
	}{
		{"left out later", []policy.VEX{read("2", "2026-11-22", other), read("1", "2026-11-21", fine)}, false},
		{"left out later, in the old form", []policy.VEX{read(`"1"`, "2026-11-21", fine), read(`"2"`, "2026-11-22", other)}, false},
		{"left out before", []policy.VEX{read("1", "2026-11-20", other), read("2", "2026-11-21", fine)}, true},
		{"left out in what is still to come", []policy.VEX{read("1", "2026-11-21", fine), read("2", "2026-12-21", other)}, true},
		{"said of the same version", []policy.VEX{read("1", "2026-11-21", fine), read("1", "2026-11-22", other)}, true},
	} {
		t.Run("of two versions: "+c.name, func(t *testing.T) {
			f := facts(t)
			f.Scans, f.VEX = []policy.Scan{scan(t, "2026-11-22T00:00:00Z", trivy)}, c.docs
			if got := ask(t, "vulnerabilities: {limits: {critical: 0, unknown: 1}}", f); (got == "") != c.excused {
				t.Errorf("found %q", got)
			}
		})
	}

	// An advisory of several is excused when each of them is, or the whole.
	for _, c := range []struct {
		name, statements string
		excused          bool
	}{
		{"one of two", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `}`, false},
		{"both", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-9"},` + ours + `,` + good + `}`, true},
		{"the advisory", `{"vulnerability":{"name":"ELSA-1"},` + ours + `,` + good + `}`, true},
		{"the advisory, and one taken back later", `{"vulnerability":{"name":"ELSA-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-9"},` + ours + `,"status":"affected","timestamp":"2026-11-22T00:00:00Z"}`, false},
		{"one, and of the other a word that is none", `{"vulnerability":{"name":"CVE-2026-1"},` + ours + `,` + good + `},{"vulnerability":{"name":"CVE-2026-9"},` + ours + `,"status":"under_investigation"}`, false},
	} {
		t.Run("of several: "+c.name, func(t *testing.T) {
			v, err := policy.ReadVEX(json.RawMessage(doc(c.statements)))
			if err != nil {
				t.Fatal(err)
			}
			f := facts(t)
			f.VEX = []policy.VEX{*v}
			f.Scans = []policy.Scan{{Scanner: "x", Format: "grype", Finished: now(), Findings: []policy.Vulnerability{
				{ID: "ELSA-1", Aliases: []string{"ELSA-1", "CVE-2026-1", "CVE-2026-9"}, Severity: policy.Critical}}}}
			if got := ask(t, "vulnerabilities: {limits: {critical: 0}}", f); (got == "") != c.excused {
				t.Errorf("found %q", got)
			}
			// What cannot be read may take the excuse back.
			f.Unreadable = map[policy.Fact]string{policy.FactVEX: "torn"}
			if got := ask(t, "vulnerabilities: {limits: {critical: 0}}", f); strings.Contains(got, "undecided scan: it cannot be decided: torn") != c.excused {
				t.Errorf("with one that cannot be read, found %q", got)
			}
		})
	}
	for _, bad := range []string{``, `{}`, `{"@context":"https://cyclonedx.org"}`, doc(`{}`), doc(`{"vulnerability":{"name":"x"},"status":"fine"}`), doc(`{"vulnerability":{},"status":"fixed"}`), doc(`{"vulnerability":"x","status":"fixed","products":[3]}`), doc(`{"vulnerability":"x","vulnerability":"y","status":"fixed"}`), doc(`{"vulnerability":"x","status":"fixed","products":[{"subcomponents":[{}]}]}`)} {
		if _, err := policy.ReadVEX(json.RawMessage(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func TestHardening(t *testing.T) {
	for _, c := range []struct{ demand, config, want string }{
		{"nonRoot: true", `{"config":{"User":"65532"}}`, ""},
		{"nonRoot: true", `{"config":{"User":"app"}}`, ""},
		{"nonRoot: numeric", `{"config":{"User":"app"}}`, `root-user: the image runs as "app"; only a number`},
		{"nonRoot: numeric", `{"config":{"User":"1000:0"}}`, ""},
		{"nonRoot: true", `{"config":{}}`, "root-user: the image sets no user"},
		{"nonRoot: true", `{"os":"linux"}`, "root-user: the image sets no user"},
		{"nonRoot: true", `{"config":{"User":"0"}}`, "which is root"},
		{"nonRoot: true", `{"config":{"User":"000"}}`, "which is root"},
		{"nonRoot: true", `{"config":{"User":"+0"}}`, "which is root"},
		{"nonRoot: true", `{"config":{"User":"-00:app"}}`, "which is root"},
		{"nonRoot: numeric", `{"config":{"User":"+0"}}`, "which is root"},
		{"nonRoot: true", `{"config":{"User":"root"}}`, "which is root"},
		{"nonRoot: numeric", `{"config":{"User":"2147483647"}}`, ""},
		{"nonRoot: numeric", `{"config":{"User":"4294967296:1000"}}`, "cut to 32 bits it can be root's"},
		{"nonRoot: true", `{"config":{"User":"-4294967296"}}`, "cut to 32 bits it can be root's"},
		{"nonRoot: numeric", `{"config":{"User":"18446744073709551616"}}`, "cut to 32 bits it can be root's"},
		{"nonRoot: true", `{"config":{"User":"ROOT:app"}}`, "which is root"},
		{"nonRoot: true", `{"config":{"User":":1000"}}`, "sets no user"},
		{"noSecrets: true", `{"config":{"Env":["PATH=/bin","TOKEN_FILE=/run/x","PASSWORD=","DB_PASSWORD=$OTHER","SECRET=/run/secrets/x","USE_TOKEN=true"]}}`, ""},
		{"noSecrets: true", `{"config":{"Env":["DB_PASSWORD=hunter2"]}}`, `secret: the variable "DB_PASSWORD" of the image has a value`},
		{"noSecrets: true", `{"config":{"Env":["X=AKIAIOSFODNN7EXAMPLE"]}}`, `the variable "X" of the image holds an AWS access key`},
		{"noSecrets: true", `{"config":{"Env":["URL=postgres://u:pw@h/db"]}}`, "a password in a URL"},
		{"noSecrets: true", `{"config":{"Env":["URL=redis://:pw@h:6379/0"]}}`, "a password in a URL"},
		{"noSecrets: true", `{"config":{"Labels":{"l":"ghp_` + strings.Repeat("a", 36) + `"}}}`, `the label "l" of the image holds a GitHub token`},
		{"noSecrets: true", `{"config":{"Cmd":["x","--token","glpat-` + strings.Repeat("a", 20) + `"]}}`, "the command of the image holds a GitLab token"},
		{"noSecrets: true", `{"os":"linux","history":[{"created_by":"COPY x"},{"created_by":"|1 NPM_TOKEN=abc123 /bin/sh -c npm ci"}]}`, `entry 2 of the image's history sets "NPM_TOKEN"`},
		{"noSecrets: true", `{"os":"linux","history":[{"created_by":"RUN echo -----BEGIN RSA PRIVATE KEY-----"}]}`, "entry 1 of the image's history holds a private key"},
		{"noSecrets: true", `{"os":"linux","history":[{"created_by":"RUN --mount=type=secret,id=token TOKEN=$(cat /run/secrets/token) make"}]}`, ""},
	} {
		t.Run(c.demand+" "+c.config, func(t *testing.T) {
			f := facts(t)
			f.Config = config(t, c.config)
			got := ask(t, "hardening: {"+c.demand+"}", f)
			checkFound(t, got, c.want)
			for _, secret := range []string{"hunter2", "AKIAIOSFODNN7EXAMPLE", "abc123", "u:pw"} {
				if strings.Contains(got, secret) {
					t.Errorf("it says the secret: %s", got)
				}
			}
		})
	}
	f := facts(t)
	f.Config = nil
	checkFound(t, ask(t, "hardening: {nonRoot: true}", f), "root-user: the image has no configuration")
	f.Unreadable = map[policy.Fact]string{policy.FactConfig: "torn"}
	checkFound(t, ask(t, "hardening: {noSecrets: true}", f), "undecided secret: ")
	for _, bad := range []string{``, `{}`, `[]`, `{"os":"linux","os":"x"}`, `{"os":"linux","config":{"User":1}}`, `{"config":{"User":"1","user":"0"}}`, `{"os":"linux"} {}`} {
		if _, err := policy.ReadConfig([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func TestWaivers(t *testing.T) {
	r, _ := parse(t, `  - match: "**"
    level: {build: 1}
    rules: [{name: r, expr: "false"}, {name: s, expr: "false"}]
    waivers:
      - {rule: r, reason: a, owner: b, expires: 2026-12-01}
      - {rule: s, reason: a, owner: b, expires: 2026-11-01}
      - {vulnerability: CVE-1, reason: a, owner: b, expires: 2026-12-01}
      - {requirement: build.l2.hosted, reason: a, owner: b, expires: 2026-12-01}
      - {requirement: scan, reason: a, owner: b, expires: 2026-11-22T12:00:00Z}`).For("x")
	day := func(d int) time.Time { return time.Date(2026, 11, d, 0, 0, 0, 0, time.UTC) }
	for _, c := range []struct {
		f    policy.Finding
		at   time.Time
		want string
	}{
		{policy.Finding{Code: policy.CodeRule, Rule: "r"}, day(22), "waived"},
		{policy.Finding{Code: policy.CodeRule, Rule: "r", Undecided: true}, day(22), "waived"},
		{policy.Finding{Code: policy.CodeRule, Rule: "r"}, day(31), "lapsed"},
		{policy.Finding{Code: policy.CodeRule, Rule: "s"}, day(22), "lapsed"},
		{policy.Finding{Code: policy.CodeRule, Rule: "t"}, day(22), ""},
		{policy.Finding{Code: policy.CodeVulnerability, ID: "CVE-1"}, day(22), "waived"},
		{policy.Finding{Code: policy.CodeVulnerability, ID: "CVE-11"}, day(22), ""},
		{policy.Finding{Code: policy.CodeVulnerability}, day(22), ""},
		{policy.Finding{Code: policy.CodeScan}, now(), "lapsed"},
		{policy.Finding{Code: policy.CodeScan}, now().Add(-time.Second), "waived"},
		{policy.Finding{Code: policy.CodeRoot}, day(22), ""},
	} {
		got := ""
		if _, ok := r.WaiveFinding(c.f, c.at); ok {
			got = "waived"
		} else if _, ok := r.LapsedFinding(c.f, c.at); ok {
			got = "lapsed"
		}
		if got != c.want {
			t.Errorf("%+v at %s: %q, want %q", c.f, c.at, got, c.want)
		}
	}
	if _, ok := r.Waive(verify.RowHosted, day(22)); !ok {
		t.Error("hosted is not waived")
	}
	if _, ok := r.Waive(verify.RowIsolated, day(22)); ok {
		t.Error("isolated is waived")
	}
	if _, ok := r.Waive("", day(22)); ok {
		t.Error("nothing is waived by a waiver of a rule")
	}
}

// Whose word counts for what.
func TestSpeaks(t *testing.T) {
	p, err := policy.Load("testdata/good/attesters.yaml")
	if err != nil {
		t.Fatal(err)
	}
	builder := verify.Signer{Key: p.Trust().Builders[0].Key}
	var attester verify.Signer
	for _, k := range p.Trust().Keys {
		if k.ID() != builder.Key {
			attester.Key = k.ID()
		}
	}
	for _, c := range []struct {
		s    verify.Signer
		k    policy.Fact
		want bool
	}{
		{builder, policy.FactSBOM, true}, {builder, policy.FactScan, true}, {builder, policy.FactInputs, true}, {builder, policy.FactVEX, false},
		{attester, policy.FactVEX, true}, {attester, policy.FactScan, true}, {attester, policy.FactSBOM, false}, {attester, policy.FactInputs, false},
		{verify.Signer{Key: image}, policy.FactSBOM, false}, {verify.Signer{}, policy.FactVEX, false},
	} {
		if got := p.Speaks(c.s, c.k); got != c.want {
			t.Errorf("%s for %s: %t", c.s, c.k, got)
		}
	}
	// One that is trusted for a part of what it signs speaks of nothing else, and
	// the words say whose word counts.
	for more, want := range map[string]bool{
		`id: "https://ci.example/b", maxLevel: 2`:                                      true,
		`id: "https://ci.example/b", maxLevel: 2, buildTypes: ["https://t.example/1"]`: false,
		`idPattern: "https://ci.example/*", maxLevel: 2`:                               false,
		`id: "https://ci.example/b", maxLevel: 1`:                                      true,
	} {
		p, err := policy.Parse([]byte(`{apiVersion: waxseal.dev/v1, kind: Policy, trust: {builders: [{`+more+`, signer: {key: k}}]}, images: [{match: "**", level: {build: 1}, sbom: {required: true}}]}`),
			policy.ParseOptions{ReadKey: func(string) ([]byte, error) { return os.ReadFile("testdata/release.pub") }})
		if err != nil {
			t.Fatal(err)
		}
		got := p.Speaks(verify.Signer{Key: p.Trust().Builders[0].Key}, policy.FactSBOM)
		said := strings.Contains(p.Explain(now()), `from the signer of "https://ci.example/b".`)
		warned := strings.Contains(p.Summary(), "nobody is believed about SBOMs")
		if got != want || said != want || warned == want {
			t.Errorf("%s: speaks %t, said %t, warned %t\n%s", more, got, said, warned, p.Explain(now()))
		}
		if words := p.BuilderWords(p.Trust().Builders[0]); !strings.Contains(words, `"https://ci.example/`) || !strings.Contains(words, "up to Build L") || strings.Contains(more, "buildTypes") != strings.Contains(words, "for 1 build type") {
			t.Errorf("%s is in words %s", more, words)
		}
	}
	// An attester builds nothing.
	if c := p.Trust().Cap(attester, p.Trust().Builders[0].ID); c.Level != 0 {
		t.Errorf("an attester is trusted as a builder: %+v", c)
	}
}

func TestExtends(t *testing.T) {
	p, err := policy.Load("testdata/good/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Extends()) != 1 || len(p.Patterns()) != 2 {
		t.Errorf("%v %v", p.Extends(), p.Patterns())
	}
	r, _ := p.For("registry.example.org/prod/app")
	if r.Level().Build != 3 { // the base asks for more, and it holds
		t.Errorf("level %s", r.Level())
	}
	text := p.Explain(now())
	for _, want := range []string{"takes over all of the policy", "a warning until 2026-12-01", `is excused from rule "no telnet"`, "24h", "believes OpenVEX"} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not explain %q:\n%s", want, text)
		}
	}
	if later := p.Explain(now().AddDate(1, 0, 0)); strings.Contains(later, "a warning until") || !strings.Contains(later, "was excused, and is no more") {
		t.Errorf("a year later:\n%s", later)
	}
	// Depth, and a policy without a folder.
	files := map[string]string{}
	last := "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust: {builders: [{id: \"https://b.example\", signer: {key: k}, maxLevel: 1}]}\nimages: [{match: a, level: {build: 1}}]\n"
	name := "p0"
	files[name] = last
	for i := 1; i < 8; i++ {
		next := fmt.Sprintf("p%d", i)
		files[next] = fmt.Sprintf("apiVersion: waxseal.dev/v1\nkind: Policy\nextends: {file: %s, digest: %q}\n", name, attest.DigestOf([]byte(files[name])))
		name = next
	}
	var open func(string) policy.ParseOptions
	open = func(name string) policy.ParseOptions {
		o := options(t)
		o.Name = name
		o.ReadPolicy = func(n string) ([]byte, policy.ParseOptions, error) { return []byte(files[n]), open(n), nil }
		return o
	}
	if _, err := policy.Parse([]byte(files["p4"]), open("p4")); err != nil {
		t.Error(err)
	}
	if _, err := policy.Parse([]byte(files["p7"]), open("p7")); err == nil || !strings.Contains(err.Error(), "more than 5 policies") {
		t.Error(err)
	}
	if _, err := policy.Parse([]byte(files["p1"]), options(t)); err == nil || !strings.Contains(err.Error(), "no folder") {
		t.Error(err)
	}
}

func TestLoadCase(t *testing.T) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(policy.CaseSchema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("case.json", doc); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("case.json")
	if err != nil {
		t.Fatal(err)
	}
	fits := func(raw []byte) bool {
		v, err := plainly(t, raw)
		return err == nil && schema.Validate(v) == nil
	}
	c, err := policy.LoadCase("testdata/cases/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c.Name == "" || c.Image == "" || len(c.Evidence) != 2 || c.Evidence[0].Type != attestations.ProvenanceV1 || c.Expect.Decision != "deny" || *c.Expect.Level != 2 {
		t.Errorf("%+v", c)
	}
	if !json.Valid(c.Config) || !strings.Contains(string(c.Config), `"when":"2026-01-01"`) || !strings.Contains(string(c.Config), `"n":7`) {
		t.Errorf("config %s", c.Config)
	}
	identity, err := policy.LoadCase("testdata/cases/identity.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if s := identity.Evidence[0].Signer; s.Issuer != "https://token.ci.example" || !strings.HasSuffix(s.SAN, "@refs/tags/v1") {
		t.Errorf("%+v", s)
	}
	levels, err := policy.LoadCase("testdata/cases/levels.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if x := levels.Expect; *x.Level != 2 || *x.Source != 3 || x.Properties == nil || len(x.Properties) > 0 || c.Expect.Properties != nil || c.Expect.Source != nil {
		t.Errorf("%+v", x)
	}
	words, err := policy.LoadCase("testdata/cases/words.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if e := words.Evidence; len(e) != 4 || e[0].Commit != "" || e[1].Type != attestations.VSAV1 || e[1].Commit == "" || e[1].Refs[0] != "refs/tags/v1" ||
		e[2].Type != attestations.ReviewV1 || e[3].Type != attestations.SourceProvenanceV1 {
		t.Errorf("%+v", e)
	}
	good, err := os.ReadFile("testdata/cases/good.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"identity", "levels", "words", "good"} {
		if raw, err := os.ReadFile("testdata/cases/" + name + ".yaml"); err != nil || !fits(raw) {
			t.Error("the schema refuses a good case", name, err)
		}
	}
	for _, change := range [][2]string{
		{"kind: PolicyTest", "kind: Policy"}, {"decision: deny", "decision: maybe"}, {"policy: ", "policy: no/"}, {"signer: ", "signer: no/"},
		{"expect:", "expected:"}, {"type: spdx", "kind: spdx"}, {"predicate: {spdx", "predicates: {spdx"}, {"level: 2", "level: 9"}, {"level: 2", "level: {build: 2, source: 5}"},
		{"level: 2", "level: {sourc: 1}"}, {"level: 2", "properties: [SLSA_FAST]"}, {"level: 2", "properties: [WAXSEAL_HERMETIC, WAXSEAL_HERMETIC]"}, {"level: 2", "properties: WAXSEAL_HERMETIC"}, {"name: ", "nam: "}, {"image: ", "image: &a "},
	} {
		text := strings.Replace(string(good), change[0], change[1], 1)
		if named := strings.Contains(change[1], "no/") || strings.Contains(change[1], "&"); fits([]byte(text)) != named {
			t.Errorf("the schema and %q", change[1])
		}
		dir := t.TempDir()
		text = strings.ReplaceAll(text, "../", mustAbs(t)+"/")
		if err := os.WriteFile(dir+"/c.yaml", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := policy.LoadCase(dir + "/c.yaml"); err == nil {
			t.Errorf("accepted with %q", change[1])
		}
	}
	if policy.IsCase([]byte("kind: Policy")) || policy.IsCase([]byte("[")) || !policy.IsCase(good) {
		t.Error("cases are not told from other files")
	}
}

func mustAbs(t *testing.T) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return dir + "/testdata"
}

// FuzzRule: what compiles gives an answer or says that it has none, in time.
func FuzzRule(f *testing.F) {
	for _, s := range []string{
		`image.config.user != ""`, `sbom.packages.all(p, p.name.matches("^a*$"))`, `provenance.externalParameters["x"] == [1, {"a": null}]`,
		`inputs.steps.exists(s, s.names.size() > 1) || signer.name == 'x'`, `timestamp("2026-01-01T00:00:00Z") > timestamp(0)`, `[1,2].map(x, x * 2).size() == 2`,
		`has(image.config.labels.a) ? true : 1/0 == 1`, `dyn(image) == image`, `type(sbom) == type(inputs)`,
	} {
		f.Add(s)
	}
	all := facts(f)
	f.Fuzz(func(t *testing.T, expr string) {
		quoted, err := json.Marshal(expr)
		if err != nil {
			return
		}
		p, err := policy.Parse([]byte(head+"  - match: \"**\"\n    level: {build: 1}\n    rules: [{name: r, expr: "+string(quoted)+"}]\n"), options(t))
		if err != nil {
			return
		}
		r, _ := p.For("x")
		start := time.Now()
		r.Judge(t.Context(), all, now())
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("it took %s", d)
		}
	})
}

func FuzzScan(f *testing.F) {
	for _, s := range []string{trivy, grype, snyk, "[" + snyk + "]", sarif, "{}", "[]"} {
		f.Add([]byte(scanned("2026-11-22T00:00:00Z", s)))
	}
	r, _ := parse(f, `  - {match: "**", level: {build: 1}, vulnerabilities: {limits: {critical: 0}, sla: {high: 7d}, maxAge: 7d}}`).For("x")
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := policy.ReadScan(raw)
		if err != nil {
			return
		}
		for _, v := range s.Findings {
			if v.ID == "" || v.Severity == "" {
				t.Fatalf("%+v", v)
			}
		}
		r.Judge(t.Context(), policy.Facts{Digest: image, Scans: []policy.Scan{*s}}, now())
	})
}

func FuzzVEX(f *testing.F) {
	f.Add([]byte(`{"@context":"https://openvex.dev/ns/v0.2.0","timestamp":"2026-11-21T00:00:00Z","statements":[{"vulnerability":{"name":"CVE-2026-1","aliases":["x"]},"products":[{"@id":"pkg:oci/a@sha256:00","subcomponents":[{"@id":"pkg:deb/a"}]}],"status":"not_affected","justification":"x"}]}`))
	f.Add([]byte(`{"@context":"https://openvex.dev/ns","statements":[{"vulnerability":"CVE-2026-1","products":["x"],"status":"fixed"}]}`))
	s := scan(f, "2026-11-22T00:00:00Z", trivy)
	r, _ := parse(f, `  - {match: "**", level: {build: 1}, vulnerabilities: {limits: {critical: 0}}}`).For("x")
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := policy.ReadVEX(raw)
		if err != nil {
			return
		}
		r.Judge(t.Context(), policy.Facts{Digest: image, Scans: []policy.Scan{s}, VEX: []policy.VEX{*v}}, now())
	})
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte(`{"spdxVersion":"SPDX-2.3","packages":[{"name":"a","licenseDeclared":"(MIT OR A) AND B WITH c","externalRefs":[{"referenceType":"purl","referenceLocator":"pkg:npm/%40a/b@1?x#y"}]}]}`))
	f.Add([]byte(`{"bomFormat":"CycloneDX","specVersion":"1.6","components":[{"type":"library","name":"a","purl":"pkg:npm/a@1","licenses":[{"expression":"MIT"}],"components":[{"name":"b"}]}]}`))
	r, _ := parse(f, `  - {match: "**", level: {build: 1}, sbom: {required: true, forbidden: ["pkg:npm/*@1.*", "a*"], licenses: {allow: [MIT], deny: [A]}}, rules: [{name: r, expr: "sbom.packages.all(p, p.licenses.all(l, l != 'x'))"}]}`).For("x")
	f.Fuzz(func(t *testing.T, raw []byte) {
		for _, format := range []string{"spdx", "cyclonedx"} {
			if doc, err := policy.ReadSBOM(format, raw); err == nil {
				r.Judge(t.Context(), policy.Facts{Digest: image, SBOMs: []policy.SBOM{doc}}, now())
			}
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"os":"linux","config":{"User":"1","Env":["A=b","TOKEN=x"],"Labels":{"a":"b"},"Cmd":["x"]},"history":[{"created_by":"ARG PASSWORD=x"}],"rootfs":{"diff_ids":[]}}`))
	r, _ := parse(f, `  - {match: "**", level: {build: 1}, hardening: {nonRoot: numeric, noSecrets: true}, rules: [{name: r, expr: "image.config.env.size() >= 0 && image.config.labels.size() >= 0"}]}`).For("x")
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := policy.ReadConfig(raw); err == nil {
			r.Judge(t.Context(), policy.Facts{Digest: image, Config: c}, now())
		}
	})
}
