package corpus

import (
	"strings"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// acceptedCases are things out of the ordinary that a verifier must take: a
// strict reader that refuses them is wrong.
func acceptedCases() []entry {
	seal := func(name, title, stands string, make func(*draft) []byte) entry {
		return entry{name, title, stands, func(d *draft) { d.file("provenance.json", make(d), Accepted) }}
	}
	changed := func(name, title, stands string, changes ...func(object)) entry {
		return seal(name, title, stands, func(d *draft) []byte { return d.seal("ours", d.provenance(changes...)) })
	}
	const fields = "https://github.com/in-toto/attestation/blob/v1.2.0/spec/v1/README.md#parsing-rules"
	day := 24 * time.Hour
	return []entry{
		seal("binding/subject-with-more", "The subject has a URI and annotations beside its digest.", fields, func(d *draft) []byte {
			s := subject(d.top.Digest)
			s["uri"], s["annotations"], s["downloadLocation"] = "oci://"+imageName, object{"a": "b"}, "https://registry.example"
			return d.seal("ours", d.subjects(s))
		}),
		seal("binding/subject-with-another-name", "The subject is named as somebody else calls the image; the digest is what binds.", "", func(d *draft) []byte {
			s := subject(d.top.Digest)
			s["name"] = "pkg:oci/other@sha256:0?repository_url=mirror.example"
			return d.seal("ours", d.subjects(s))
		}),
		seal("envelope/no-hint", "The bundle gives no hint of its key.", "", func(d *draft) []byte {
			o := d.envelopeObject()
			o["verificationMaterial"] = object{"publicKey": object{}}
			return compact(o)
		}),
		seal("envelope/dsse-with-more", "The bare envelope has a member that DSSE does not know.", "https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md", func(d *draft) []byte {
			return []byte(strings.Replace(string(d.dsse("ours", d.provenance())), `{"payload"`, `{"later":1,"payload"`, 1))
		}),
		seal("envelope/payload-indented", "The payload is written over several lines; it was signed so.", "", func(d *draft) []byte {
			return d.seal("ours", []byte(strings.ReplaceAll(string(d.provenance()), `,"`, ",\n\t\"")))
		}),
		seal("envelope/payload-escaped", "The payload spells a key with an escape, which every reader decodes alike.", "", func(d *draft) []byte {
			return d.seal("ours", []byte(strings.Replace(string(d.provenance()), `"predicateType"`, `"predicate\u0054ype"`, 1)))
		}),
		changed("envelope/names-that-differ-in-case", "Two names of a map differ in case only, as http_proxy and HTTP_PROXY do: they are data.", "", definition("internalParameters", object{"env": object{"http_proxy": "a", "HTTP_PROXY": "b"}})),
		changed("envelope/predicate-with-more", "The predicate has an extension field, which readers must ignore.", fields, definition("x_acme", object{"ticket": 7})),
		changed("envelope/text-of-the-world", "Text of the predicate that is not ASCII, and numbers beyond 2^53.", "", definition("internalParameters", object{"author": "Zoë 久美子 🦭", "large": 1 << 60})),

		certificate("time/log-ended-that-moment", "The log's window ends with the very moment of the entry.", "sigstore-conformance trust-root-tlog-validity-end-inclusive", Accepted, nil).under(virtual.RootOptions{LogUntil: minted()}),
		certificate("time/log-began-that-moment", "The log's window begins with the very moment of the entry.", "", Accepted, nil).under(virtual.RootOptions{LogFrom: minted()}),
		certificate("time/certificate-began-that-moment", "The certificate's life begins with the moment of the entry.", "", Accepted, nil, from(0)),
		certificate("time/certificate-ended-that-moment", "The certificate's life ends with the moment of the entry.", "", Accepted, nil, from(-10*time.Minute)),
		certificate("time/stamp-instead-of-promise", "A Rekor v1 entry without its promise; the time stamp proves the time.", "", Accepted, nil, noPromise, stamped),
		certificate("time/second-stamp-good", "Two time stamps: one of a stranger, and a good one.", "", Accepted, func(d *draft, b *protobundle.Bundle) {
			alien, err := d.world.theirs.Bundle(d.provenance(), virtual.Options{SAN: ciSAN, Issuer: ciIssuer, Log: "none", Stamp: true})
			must(d, err)
			data := b.VerificationMaterial.TimestampVerificationData
			data.Rfc3161Timestamps = append([]*protocommon.RFC3161SignedTimestamp{alien.VerificationMaterial.TimestampVerificationData.Rfc3161Timestamps[0]}, data.Rfc3161Timestamps...)
		}, unlogged, stamped).under(virtual.RootOptions{NoLogs: true}),
		certificate("time/entry-in-another-log-too", "A good log entry, and one of a log that nobody trusts, which is passed over.", "sigstore-go: entries of unknown logs are skipped", Accepted, func(d *draft, b *protobundle.Bundle) {
			alien, err := d.world.theirs.Bundle(d.provenance(), virtual.Options{SAN: ciSAN, Issuer: ciIssuer})
			must(d, err)
			b.VerificationMaterial.TlogEntries = append(b.VerificationMaterial.TlogEntries, alien.VerificationMaterial.TlogEntries[0])
		}),
		windowed("time/key-ended-that-moment", "The key's window ends with the very moment of the stamp.", "", Accepted, time.Time{}, minted(), true),
		windowed("time/key-began-that-moment", "The key's window begins with the very moment of the stamp.", "", Accepted, minted(), time.Time{}, true),
		{"time/judged-years-later", "The same evidence, judged as of ten years later: nothing of it has an end that matters.", "", func(d *draft) {
			d.trustCertificate()
			d.c.Question.At = usual().AddDate(10, 0, 0)
			d.file("provenance.json", d.certified(d.world.ours, d.provenance(), rekor2), Accepted)
		}},

		{"identity/any-below", "Two stars reach over slashes.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, Pattern: "https://ci.example/acme/**"}, d.oursRoot)
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
		}},
		{"identity/expression-with-alternatives", "An expression with alternatives in parentheses.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, Regexp: `^https://ci\.example/acme/(build|release)/\.github/workflows/seal\.yml@refs/tags/v[0-9]+$`}, d.oursRoot)
			d.keysOnly(2)
			d.pass(2)
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
		}},
		{"identity/two-identities", "One builder.id, and two identities that may sign for it.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: "https://old.example/seal"}, d.oursRoot)
			second := Identity{Issuer: ciIssuer, SAN: ciSAN}
			d.c.Trust.Identities = append(d.c.Trust.Identities, second)
			d.c.Trust.Builders = append(d.c.Trust.Builders, Builder{ID: ciID, Identity: &second, MaxLevel: 3})
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
		}},
		{"identity/narrowed-to-it", "The caller asks for the very identity that the policy's pattern trusts.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, Pattern: "https://ci.example/acme/**"}, d.oursRoot)
			d.c.Question.Flags = []string{"--certificate-identity", ciSAN, "--certificate-oidc-issuer", ciIssuer}
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
		}},

		believed("harmless-parameters", "Parameters that can bring nothing into the image.", "", 3, nil, external("noCache", true), external("platforms", []any{"linux/amd64"}), external("network", "none")),
		believed("source-twice", "The expected source, and dependencies from elsewhere.", "", 3, nil, definition("resolvedDependencies", []any{
			object{"name": attestations.DependencySource, "uri": "git+" + repository, "digest": object{"gitCommit": commit}},
			object{"uri": "pkg:docker/alpine@3?digest=sha256:" + strings.Repeat("a", 64), "digest": object{"sha256": strings.Repeat("a", 64)}},
			object{"uri": "git+https://git.example/other/lib", "digest": object{"gitCommit": commit}},
		})),
		{"builder/second-build-type", "The second of the build types that are expected.", "", func(d *draft) {
			d.more = "buildTypes: [\"https://other.example/type/v1\", \"" + attestations.ContainerBuildType + "\"]"
			d.good()
		}},
		{"builder/any-value", "A build argument whose value may be any.", "", func(d *draft) {
			d.more = `parameters: {"buildArgs/VERSION": any}`
			d.file("provenance.json", d.seal("ours", d.provenance(external("buildArgs", object{"VERSION": "x"}))), Accepted)
		}},
		{"builder/narrowed-to-it", "The caller asks for one of the policy's keys, and it signed.", "", func(d *draft) {
			d.trustKey("second", ciID, 3)
			d.c.Question.Flags = []string{"--key", d.key("second")}
			d.file("provenance.json", d.seal("second", d.provenance()), Accepted)
		}},
		{"builder/level-zero", "An image that no level is asked for, with provenance that carries one.", "", func(d *draft) {
			d.build(0)
			d.good()
		}},

		{"discovery/folder", "The evidence is a folder with two files.", "", func(d *draft) {
			d.good()
			d.file("second.json", d.seal("strange", d.provenance()), "signature")
			d.c.Question.Evidence = []string{"evidence"}
		}},
		{"discovery/folder-with-lines", "The evidence is a folder with a file of lines in it.", "", func(d *draft) {
			lying, good := d.seal("strange", d.provenance()), d.seal("ours", d.provenance())
			d.raw("all.jsonl", []byte(string(lying)+"\n"+string(good)+"\n"))
			d.c.Question.Evidence = []string{"evidence"}
			d.seen(lying, "evidence/all.jsonl:1", "signature")
			d.seen(good, "evidence/all.jsonl:2", Accepted)
		}},
		{"trust/key-with-carriage-returns", "The key's file has the line endings of Windows.", "", func(d *draft) {
			d.files["trust/ours.pub"] = []byte(strings.ReplaceAll(string(d.files["trust/ours.pub"]), "\n", "\r\n"))
			d.good()
		}},
		{"discovery/envelope-as-referrer", "The referrer is a bare envelope, as some attach it.", "", func(d *draft) {
			const kind = "application/vnd.dsse.envelope.v1+json"
			raw := d.dsse("ours", d.provenance())
			d.refer(d.top, raw, func(m *manifest) {
				m.ArtifactType = kind
				m.Layers = []descriptor{d.put(kind, raw)}
			})
			d.seen(raw, "", Accepted)
		}},
		{"registry/index", "An index and its platforms, each with a referrer, through a registry.", "", func(d *draft) {
			d.index()
			d.registry(Registry{PageSize: 1})
			for i, of := range append([]descriptor{d.top}, d.platforms...) {
				raw := d.seal("ours", d.provenanceOf(of.Digest))
				d.refer(of, raw)
				d.seen(raw, "", Accepted, []string{"", amd64, arm64}[i])
			}
		}},
		{"registry/by-digest", "Asked by digest through a registry.", "", func(d *draft) {
			d.registry(Registry{})
			d.c.Question.Reference = "@" + d.top.Digest
			d.seen(d.attached(), "", Accepted)
		}},

		{"gate/extends", "A policy that extends another of the right digest.", "", func(d *draft) {
			base := strings.Replace(d.writePolicy(), `"**"`, `"registry.example/**"`, 1)
			d.files["trust/base.yaml"] = []byte(base)
			d.policy = "apiVersion: waxseal.dev/v1\nkind: Policy\nextends: {file: base.yaml, digest: \"" + digestOf([]byte(base)) + "\"}\nimages:\n  - {match: \"**\", level: {build: 3}}\n"
			d.good()
		}},
		{"gate/package-not-forbidden", "A package is forbidden, and the SBOM does not list it.", "", func(d *draft) {
			d.more = "sbom: {required: true, forbidden: [\"pkg:generic/evil\"], licenses: {deny: [AGPL-3.0-only]}}"
			d.good()
			d.file("sbom.json", d.seal("ours", d.about(attestations.CycloneDX, object{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []any{
				object{"type": "library", "name": "good", "version": "1", "purl": "pkg:generic/good@1", "licenses": []any{object{"license": object{"id": "MIT"}}}},
			}})), Accepted)
		}},
		{"gate/vulnerabilities-none", "No critical vulnerability is allowed, and a fresh scan found one that is low.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
			d.good()
			d.file("scan.json", d.scan("ours", "LOW", minted()), Accepted)
		}},
		{"gate/vulnerabilities-critical", "No critical vulnerability is allowed, and there is one.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
			d.deny(3, "vulnerability")
			d.good()
			d.file("scan.json", d.scan("ours", "CRITICAL", minted()), Accepted)
		}},
		{"gate/vulnerabilities-unknown", "No critical vulnerability is allowed, and one is of a severity that nobody knows: not told is not none.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
			d.deny(3, "vulnerability")
			d.good()
			d.file("scan.json", d.scan("ours", "GHASTLY", minted()), Accepted)
		}},
		{"gate/vulnerabilities-stale", "The scan is older than is allowed.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 10d}"
			d.deny(3, "scan")
			d.good()
			d.file("scan.json", d.scan("ours", "LOW", minted()), Accepted)
		}},
		{"gate/vulnerabilities-scan-to-come", "The scan says that it will be made tomorrow.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 10d}"
			d.deny(3, "scan")
			d.good()
			d.file("scan.json", d.scan("ours", "LOW", usual().Add(day)), Accepted)
		}},
		{"gate/vulnerabilities-not-affected", "A critical vulnerability that somebody who may say so says does not affect the image.", "", func(d *draft) {
			d.vex("ours")
			d.file("vex.json", d.notAffected("ours"), Accepted)
		}},
		{"gate/vulnerabilities-stranger-says-not-affected", "The same, said by a stranger.", "", func(d *draft) {
			d.vex("ours")
			d.deny(3, "vulnerability")
			d.file("vex.json", d.notAffected("strange"), "signature")
		}},
		{"gate/vulnerabilities-builder-says-not-affected", "The same, said by the builder, who may not excuse.", "", func(d *draft) {
			d.vex("second")
			d.deny(3, "vulnerability")
			d.file("vex.json", d.notAffected("ours"), "role")
		}},
		{"gate/scan-by-attester", "The scan is by a key that is trusted for scans and for nothing else.", "", func(d *draft) {
			d.key("second")
			d.trusts = "attesters:\n  - {signer: {key: second.pub}, for: [scan]}"
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
			d.good()
			d.file("scan.json", d.scan("second", "LOW", minted()), Accepted)
		}},
		{"gate/no-secrets", "No secrets may stand in the environment, and none do.", "", func(d *draft) {
			d.image = single("app", object{"User": "1000", "Env": []string{"PATH=/bin"}})
			d.more = "hardening: {nonRoot: numeric, noSecrets: true}"
			d.good()
		}},
		{"gate/sbom-waived", "A missing SBOM, which a waiver excuses.", "", func(d *draft) {
			d.more = "sbom: {required: true}\nwaivers:\n  - {requirement: sbom, reason: being written, owner: kim, expires: 2026-09-01}"
			d.c.Expect.Waived = []Reason{{Requirement: "sbom"}}
			d.good()
		}},
		{"gate/rule-about-the-image", "A rule about the image's own configuration.", "", func(d *draft) {
			d.image = single("app", object{"User": "1000"})
			d.more = "rules:\n  - {name: not root, expr: 'image.config.user != \"\"'}"
			d.good()
		}},
	}
}

// scan is a result of Trivy's with one vulnerability.
func (d *draft) scan(by, severity string, at time.Time) []byte {
	return d.seal(by, d.about(attestations.CosignVuln, object{
		"scanner": object{"uri": "https://scanner.example", "result": object{"SchemaVersion": 2, "ArtifactName": "a", "Results": []any{
			object{"Vulnerabilities": []any{object{"VulnerabilityID": "CVE-2026-1", "PkgName": "a", "InstalledVersion": "1", "Severity": severity}}},
		}}},
		"metadata": object{"scanFinishedOn": at.Format(time.RFC3339)},
	}))
}

// vex asks for no critical vulnerability, gives one, and lets a person excuse.
func (d *draft) vex(excuser string) {
	d.key(excuser)
	d.trusts = "attesters:\n  - {signer: {key: " + excuser + ".pub}, for: [vex]}"
	d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
	d.good()
	d.file("scan.json", d.scan("ours", "CRITICAL", minted()), Accepted)
}

func (d *draft) notAffected(by string) []byte {
	return d.seal(by, d.about(attestations.OpenVEX, object{
		"@context": "https://openvex.dev/ns/v0.2.0", "@id": "https://acme.example/vex/1", "author": "acme", "timestamp": minted().Format(time.RFC3339), "version": 1,
		"statements": []any{object{
			"vulnerability": object{"name": "CVE-2026-1"}, "status": "not_affected", "justification": "vulnerable_code_not_in_execute_path",
			"products": []any{object{"@id": "pkg:oci/app@" + strings.Replace(d.top.Digest, ":", "%3A", 1)}},
		}},
	}))
}
