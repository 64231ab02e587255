package corpus

import (
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// attached is good provenance in the layout itself, as a referrer.
func (d *draft) attached(changes ...func(*manifest)) []byte {
	raw := d.seal("ours", d.provenance())
	d.refer(d.top, raw, changes...)
	return raw
}

// att puts pieces under cosign's tag for attestations.
func (d *draft) att(pieces ...[]byte) {
	config := d.put("application/vnd.oci.image.config.v1+json", []byte(`{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]}}`))
	m := manifest{Config: &config}
	for _, p := range pieces {
		l := d.put("application/vnd.dsse.envelope.v1+json", p)
		l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": "", "predicateType": attestations.ProvenanceV1}
		m.Layers = append(m.Layers, l)
	}
	d.tag("sha256-"+hexOf(d.top.Digest)+".att", d.putManifest(m))
}

// registry asks for the image through a registry, by its tag v1.
func (d *draft) registry(r Registry) {
	d.c.Question.Registry = &r
	d.c.Question.Reference = ":v1"
	top := d.top
	top.Annotations = map[string]string{refName: "v1"}
	d.entries[0] = top
}

func faulty(name, title, stands, code, request, kind string) entry {
	return entry{"registry/" + name, title, stands, func(d *draft) {
		d.registry(Registry{Faults: []Fault{{Request: request, Kind: kind}}})
		d.attached()
		d.undecided(code)
	}}
}

func discoveryCases() []entry {
	// referred is a case of evidence in the layout that is not what it seems.
	referred := func(name, title, stands, code string, change func(*draft, *manifest)) entry {
		return entry{"discovery/" + name, title, stands, func(d *draft) {
			raw := d.attached(func(m *manifest) { change(d, m) })
			if code != Accepted {
				d.nothing()
			}
			d.seen(raw, "", code)
		}}
	}
	return []entry{
		{"discovery/referrer", "The provenance is an OCI 1.1 referrer of the image.", "", func(d *draft) { d.seen(d.attached(), "", Accepted) }},
		{"discovery/fallback-tag", "The provenance is listed under the fallback tag only.", "", func(d *draft) {
			raw := d.attached()
			d.seen(raw, "", Accepted)
			referrer := d.entries[1]
			referrer.ArtifactType = "application/vnd.dev.sigstore.bundle.v0.3+json"
			list := d.putManifest(manifest{MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []descriptor{referrer}})
			d.entries = d.entries[:1]
			d.tag("sha256-"+hexOf(d.top.Digest), list)
		}},
		{"discovery/att-tag", "The provenance is a bare envelope under cosign's tag for attestations.", "", func(d *draft) {
			raw := d.dsse("ours", d.provenance())
			d.att(raw)
			d.seen(raw, "", Accepted)
		}},
		{"discovery/att-tag-grown", "Others have added to cosign's tag for attestations.", "", func(d *draft) {
			good, lying, broken := d.dsse("ours", d.provenance()), d.dsse("strange", d.provenance()), []byte("none")
			d.att(lying, broken, good)
			d.seen(good, "", Accepted)
			d.seen(lying, "", "signature")
			d.seen(broken, "", "unreadable")
		}},
		{"discovery/referrer-hides-att-tag", "A referrer that is of no use, and the provenance under cosign's tag.", "conforma#3185", func(d *draft) {
			scan := d.seal("strange", d.about("https://scan.example/v1", object{}))
			d.refer(d.top, scan)
			raw := d.dsse("ours", d.provenance())
			d.att(raw)
			d.seen(raw, "", Accepted)
			d.seen(scan, "", "not-needed")
		}},
		{"discovery/several-places", "A stranger's provenance is a referrer, the good one a file.", "", func(d *draft) {
			raw := d.seal("strange", d.provenance())
			d.refer(d.top, raw)
			d.seen(raw, "", "signature")
			d.good()
		}},
		{"discovery/same-piece-twice", "The same bundle as a referrer and as a file.", "", func(d *draft) {
			raw := d.attached()
			d.seen(raw, "", Accepted)
			d.raw("provenance.json", raw)
		}},
		referred("artifact-type-of-a-configuration", "The referrer's artifact type is what some registries report: its configuration's.", "aicr#1957", Accepted, func(d *draft, m *manifest) {
			config := d.put("application/vnd.oci.image.config.v1+json", []byte("{}"))
			m.ArtifactType, m.Config = "", &config
		}),
		referred("predicate-type-misstated", "The referrer's annotation names the predicate type that cosign puts on anything.", "", Accepted, func(_ *draft, m *manifest) {
			m.Annotations = map[string]string{"dev.sigstore.bundle.content": "dsse-envelope", "dev.sigstore.bundle.predicateType": "https://sigstore.dev/cosign/sign/v1"}
		}),
		{"discovery/artifact-type-irrelevant", "The referrer says that it is a Helm chart.", "", func(d *draft) {
			raw := d.seal("ours", d.provenance())
			of := d.refer(d.top, raw, func(m *manifest) { m.ArtifactType = "application/vnd.cncf.helm.chart" })
			d.nothing()
			d.c.Expect.Evidence = []Evidence{{Digest: of.Digest, Code: "unreadable"}}
		}},
		referred("layer-is-not-its-digest", "The layer's bytes are not those of its digest.", "CVE-2023-33959", "unreadable", func(d *draft, m *manifest) {
			sum := hexOf(m.Layers[0].Digest)
			d.blobs[sum] = append([]byte(" "), d.blobs[sum]...)
		}),
		referred("huge", "The layer is said to have 64 GB.", "CVE-2024-29902", "unreadable", func(_ *draft, m *manifest) { m.Layers[0].Size = 64 << 30 }),
		referred("longer-than-said", "The layer has more bytes than its descriptor says.", "CVE-2024-29902", "unreadable", func(_ *draft, m *manifest) { m.Layers[0].Size = 10 }),
		{"discovery/manifest-huge", "The referrer's manifest is said to have 4 GB.", "CVE-2024-29903", func(d *draft) {
			good := d.attached()
			d.refer(d.top, d.seal("strange", d.provenance()))
			d.entries[2].Size = 4 << 30
			d.seen(good, "", Accepted)
			d.c.Expect.Evidence = append(d.c.Expect.Evidence, Evidence{Digest: d.entries[2].Digest, Code: "unreadable"})
		}},
		{"discovery/thousand-layers", "One referrer with 1,100 layers.", "CVE-2023-46737, CVE-2024-45395", func(d *draft) {
			layers := d.put("application/vnd.dev.sigstore.bundle.v0.3+json", []byte("{}"))
			d.attached(func(m *manifest) { m.Layers = repeat(layers, 1100) })
			d.undecided("unreadable")
		}},
		{"discovery/lines", "Several bundles in one file, a line each; the last line has no newline.", "slsa-verifier#454, gh: last line without a newline is ignored", func(d *draft) {
			lines := [][]byte{d.seal("strange", d.provenance()), d.seal("ours", d.provenanceOf(d.other.top.Digest)), d.seal("ours", d.provenance())}
			d.raw("all.jsonl", []byte(string(lines[0])+"\n"+string(lines[1])+"\n\n"+string(lines[2])))
			d.seen(lines[0], "evidence/all.jsonl:1", "signature")
			d.seen(lines[1], "evidence/all.jsonl:2", "subject")
			d.seen(lines[2], "evidence/all.jsonl:4", Accepted)
		}},
		{"discovery/lines-with-a-bad-one", "One of the lines is no JSON.", "", func(d *draft) {
			good := d.seal("ours", d.provenance())
			d.raw("all.jsonl", []byte("{\"a\":\n"+string(good)+"\n"))
			d.seen([]byte(`{"a":`), "evidence/all.jsonl:1", "unreadable")
			d.seen(good, "evidence/all.jsonl:2", Accepted)
		}},
		{"discovery/image-is-not-its-digest", "The manifest in the layout is not that of the digest that was asked for.", "CVE-2022-47633, CVE-2023-33958", func(d *draft) {
			d.c.Question.Reference = "@" + d.top.Digest
			d.blobs[hexOf(d.top.Digest)] = append([]byte(" "), d.blobs[hexOf(d.top.Digest)]...)
			d.undecided("unreadable")
			d.raw("provenance.json", d.seal("ours", d.provenance()))
		}},
		{"discovery/tag", "Asked by its tag, beside another image: the digest that comes back is the one to run.", "CVE-2022-47633", func(d *draft) {
			addOther(d)
			d.c.Question.Reference = ":v1"
			d.good()
		}},
		{"discovery/tag-and-digest", "Asked by a tag and the digest of another image: the digest holds.", "CVE-2023-47630", func(d *draft) {
			addOther(d)
			d.c.Question.Reference, d.c.Question.Digest, d.c.Question.MediaType = ":v1@"+d.other.top.Digest, d.other.top.Digest, d.other.top.MediaType
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.provenance()), "subject")
		}},
		{"discovery/no-such-tag", "There is no such tag.", "", func(d *draft) {
			addOther(d)
			d.c.Question.Reference = ":v9"
			d.undecided("not-found")
		}},
		{"discovery/which-image", "The layout holds two images, and none was named.", "", func(d *draft) {
			addOther(d)
			d.undecided("not-found")
		}},

		{"registry/referrers", "A registry with the referrers API.", "", func(d *draft) {
			d.registry(Registry{})
			d.seen(d.attached(), "", Accepted)
		}},
		{"registry/pages", "A registry that gives one referrer a page; the good one is among five.", "", func(d *draft) {
			d.registry(Registry{PageSize: 1})
			for _, text := range []string{"a", "b", "c", "d"} {
				raw := d.seal("strange", d.provenance(external("buildArgs", object{"TEXT": text})))
				d.refer(d.top, raw)
				d.seen(raw, "", "signature")
			}
			d.seen(d.attached(), "", Accepted)
		}},
		{"registry/no-referrers-api", "A registry without the referrers API, where the fallback tag lists them.", "ghcr has no referrers endpoint", func(d *draft) {
			d.registry(Registry{NoReferrers: true})
			raw := d.attached()
			d.seen(raw, "", Accepted)
			list := d.putManifest(manifest{MediaType: "application/vnd.oci.image.index.v1+json", Manifests: []descriptor{d.entries[1]}})
			d.tag("sha256-"+hexOf(d.top.Digest), list)
		}},
		{"registry/no-referrers-api-and-no-tag", "A registry without the referrers API, and no fallback tag: there is no evidence, and that is no pass.", "kpromo: 404 counts as verified", func(d *draft) {
			d.registry(Registry{NoReferrers: true})
			d.nothing()
		}},
		faulty("referrers-500", "The registry fails when it is asked for referrers.", "", "unavailable", "GET .*/referrers/", "500"),
		faulty("unauthorized", "The registry wants to know who asks.", "", "unavailable", "", "401"),
		faulty("manifest-404", "The registry does not have the image.", "kpromo: 404 counts as verified", "not-found", "GET .*/manifests/v1", "404"),
		faulty("blob-503", "The registry lists the evidence and does not give it.", "", "unavailable", "GET .*/blobs/", "503"),
		faulty("blob-cut", "The connection ends in the middle of the evidence.", "", "unavailable", "GET .*/blobs/", "cut"),
		faulty("endless-referrers", "Ten thousand referrers that lead nowhere.", "CVE-2023-46737, CVE-2023-42813, CVE-2023-42814, CVE-2023-42815, CVE-2023-42816", "unreadable", "GET .*/referrers/", "referrers=10000"),
	}
}

func repeat(d descriptor, n int) []descriptor {
	out := make([]descriptor, n)
	for i := range out {
		out[i] = d
	}
	return out
}

// addOther puts a second image into the layout, as v2, and tags the first v1.
func addOther(d *draft) {
	for sum, raw := range d.other.blobs {
		d.blobs[sum] = raw
	}
	top := d.top
	d.entries = nil
	d.tag("v1", top)
	d.tag("v2", d.other.top)
}

func gateCases() []entry {
	ask := func(name, title, stands, more string, make func(*draft)) entry {
		return entry{"gate/" + name, title, stands, func(d *draft) {
			d.more = more
			make(d)
		}}
	}
	sbom := object{"spdxVersion": "SPDX-2.3", "packages": []any{object{"name": "a", "SPDXID": "SPDXRef-a", "versionInfo": "1"}}}
	bom := object{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []any{object{"type": "library", "name": "a", "version": "1"}}}
	refused := func(name, title, stands, says, policy string) entry {
		return entry{"gate/policy-" + name, title, stands, func(d *draft) {
			d.policy = strings.ReplaceAll(policy, "KEY", "{key: ours.pub}")
			d.usage(says)
			d.raw("provenance.json", d.seal("ours", d.provenance()))
		}}
	}
	// signed is a policy that "reviewer" must have signed, and what somebody did.
	signed := func(name, title, says, by, kind string, change func(string) string) entry {
		return entry{"gate/policy-" + name, title, "", func(d *draft) {
			d.c.Question.Flags = []string{"--policy-key", d.key("reviewer")}
			d.policy = d.writePolicy()
			d.signPolicy(by, kind)
			if change != nil {
				d.policy = change(d.policy)
			}
			if says == "" {
				d.good()
				return
			}
			d.usage(says)
			d.raw("provenance.json", d.seal("ours", d.provenance()))
		}}
	}
	const head = "apiVersion: waxseal.dev/v1\nkind: Policy\n"
	const trust = "trust:\n  builders:\n    - {id: " + ciID + ", signer: KEY, maxLevel: 3}\n"
	return []entry{
		{"gate/no-evidence", "Nothing at all is attached.", "kpromo: missing provenance counts as verified", func(d *draft) { d.nothing() }},
		{"gate/only-an-sbom", "A good SBOM by the trusted key, and no provenance: evidence of another type is no evidence.", "CVE-2022-35929, CVE-2022-35930, CVE-2025-25204", func(d *draft) {
			d.nothing()
			d.file("sbom.json", d.seal("ours", d.about(attestations.SPDX, sbom)), "not-needed")
		}},
		{"gate/empty-list", "The file of evidence is an empty list.", "", func(d *draft) {
			d.nothing()
			d.file("provenance.json", []byte("[]"), "unreadable")
		}},
		ask("sbom", "An SBOM is required, and there.", "", "sbom: {required: true}", func(d *draft) {
			d.good()
			d.file("sbom.json", d.seal("ours", d.about(attestations.SPDX, sbom)), Accepted)
		}),
		ask("sbom-missing", "An SBOM is required, and none is there.", "", "sbom: {required: true}", func(d *draft) {
			d.deny(3, "sbom")
			d.good()
		}),
		ask("sbom-of-a-stranger", "An SBOM is required; the only one is a stranger's.", "GHSA-r2xv-vpr2-42m9", "sbom: {required: true}", func(d *draft) {
			d.deny(3, "sbom")
			d.good()
			d.file("sbom.json", d.seal("strange", d.about(attestations.SPDX, sbom)), "signature")
		}),
		ask("sbom-of-another-image", "An SBOM is required; the only one is another image's.", "", "sbom: {required: true}", func(d *draft) {
			d.deny(3, "sbom")
			d.good()
			d.file("sbom.json", d.seal("ours", statement(d.other.top.Digest, attestations.SPDX, sbom)), "subject")
		}),
		ask("sbom-second-format", "Two formats of SBOM are required, and one is there: the second demand counts too.", "kyverno#18349a6", "sbom: {required: true, formats: [spdx, cyclonedx]}", func(d *draft) {
			d.deny(3, "sbom")
			d.good()
			d.file("sbom.json", d.seal("ours", d.about(attestations.SPDX, sbom)), Accepted)
		}),
		ask("sbom-two-formats", "Two formats of SBOM are required, and both are there.", "kyverno#e94d3bc", "sbom: {required: true, formats: [spdx, cyclonedx]}", func(d *draft) {
			d.good()
			d.file("spdx.json", d.seal("ours", d.about(attestations.SPDX, sbom)), Accepted)
			d.file("cyclonedx.json", d.seal("ours", d.about(attestations.CycloneDX, bom)), Accepted)
		}),
		ask("sbom-not-what-it-says", "The SBOM's predicate type says CycloneDX; its content is none.", "CVE-2026-39395", "sbom: {required: true}", func(d *draft) {
			d.deny(3, "sbom")
			d.good()
			d.file("sbom.json", d.seal("ours", d.about(attestations.CycloneDX, object{"bomFormat": "other"})), "predicate")
		}),
		ask("forbidden-package", "The SBOM lists a package that is forbidden.", "", "sbom: {required: true, forbidden: [\"pkg:generic/evil\"]}", func(d *draft) {
			d.deny(3, "package")
			d.good()
			d.file("sbom.json", d.seal("ours", d.about(attestations.CycloneDX, object{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []any{
				object{"type": "library", "name": "evil", "version": "1", "purl": "pkg:generic/evil@1"},
			}})), Accepted)
		}),
		ask("rule", "A rule of the policy's own that holds.", "", "rules:\n  - {name: from main, expr: 'provenance.builderId == \""+ciID+"\"'}", func(d *draft) { d.good() }),
		ask("second-rule", "Two rules, of which the second does not hold.", "kyverno#18349a6", "rules:\n  - {name: first, expr: 'true || image.digest == \"\"'}\n  - {name: second, expr: 'image.digest == \"\"'}", func(d *draft) {
			d.deny(3, "rule rule:second")
			d.good()
		}),
		ask("rule-to-come", "A rule that does not hold, and is not in effect yet: a warning, and visible.", "Conforma effective_on", "rules:\n  - {name: later, expr: 'image.digest == \"\"', effective: 2026-12-01}", func(d *draft) {
			d.c.Expect.Warnings = reasonsOf([]string{"rule rule:later"})
			d.good()
		}),
		ask("rule-come-into-effect", "The same rule, judged as of a later day.", "Conforma effective_on", "rules:\n  - {name: later, expr: 'image.digest == \"\"', effective: 2026-12-01}", func(d *draft) {
			d.c.Question.At = usual().AddDate(1, 0, 0)
			d.deny(3, "rule rule:later")
			d.good()
		}),
		ask("waived", "A requirement of the level is waived until a later day.", "", "waivers:\n  - {requirement: ISOLATED, reason: moving to the new pool, owner: kim, expires: 2026-09-01}", func(d *draft) {
			d.waive()
			d.pass(2)
			d.c.Expect.Waived = []Reason{{Requirement: reqIsolated}}
		}),
		ask("waiver-lapsed", "The waiver's day has come.", "", "waivers:\n  - {requirement: ISOLATED, reason: moving to the new pool, owner: kim, expires: 2026-06-15}", func(d *draft) {
			d.waive()
			d.deny(2, "level "+reqIsolated)
		}),
		ask("waiver-of-another", "The waiver is for another requirement.", "CVE-2024-48921", "waivers:\n  - {requirement: sbom, reason: none yet, owner: kim, expires: 2026-09-01}", func(d *draft) {
			d.waive()
			d.deny(2, "level "+reqIsolated)
		}),
		{"gate/two-entries", "Two entries match the image: both hold, and the stricter level.", "kyverno#18349a6, GHSA-gg4x-fgg2-h9w9", func(d *draft) {
			d.build(1)
			d.c.Trust.Builders[0].MaxLevel = 2
			d.policy = d.writePolicy() + "  - match: \"oci:image\"\n    level: {build: 3}\n"
			d.build(3)
			d.deny(2, short(2)...)
			d.good()
		}},
		{"gate/no-entry", "No entry of the policy matches the image.", "policy-controller no-match-policy", func(d *draft) {
			d.policy = strings.Replace(d.writePolicy(), `"**"`, `"registry.example/other/**"`, 1)
			d.c.Question.Level = Levels{}
			d.deny(0, "no-rule")
			d.good()
		}},
		{"gate/entry-goes-on", "The policy's entry is for an image whose name begins like this one.", "CVE-2025-46342", func(d *draft) {
			d.policy = strings.Replace(d.writePolicy(), `"**"`, `"oci:ima"`, 1)
			d.c.Question.Level = Levels{}
			d.deny(0, "no-rule")
			d.good()
		}},
		{"gate/role", "A key that is trusted for scans, and signs provenance.", "", func(d *draft) {
			d.key("second")
			d.trusts = "attesters:\n  - {signer: {key: second.pub}, for: [scan]}"
			d.nothing()
			d.file("provenance.json", d.seal("second", d.provenance()), "builder")
		}},
		{"gate/hardening", "The image must not run as root, and does not.", "", func(d *draft) {
			d.image = single("app", object{"User": "1000"})
			d.more = "hardening: {nonRoot: true}"
			d.good()
		}},
		{"gate/hardening-root", "The image must not run as root, and does.", "", func(d *draft) {
			d.more = "hardening: {nonRoot: true}"
			d.deny(3, "root-user")
			d.good()
		}},
		{"gate/vulnerabilities-no-scan", "A limit on vulnerabilities, and no scan to tell.", "", func(d *draft) {
			d.more = "vulnerabilities: {limits: {critical: 0}, maxAge: 60d}"
			d.deny(3, "scan")
			d.good()
		}},
		{"gate/annotation-says-verified", "The image's own manifest says in its annotations that it was verified.", "kyverno: forged kyverno.io/verify-images", func(d *draft) {
			m := manifest{Config: &descriptor{MediaType: "application/vnd.oci.image.config.v1+json"}, Annotations: map[string]string{"kyverno.io/verify-images": `{"registry.example/acme/app":"pass"}`}}
			*m.Config = d.put(m.Config.MediaType, []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}`))
			d.top = d.putManifest(m)
			d.entries = []descriptor{d.top}
			d.nothing()
		}},
		{"gate/environment", "Variables that make other verifiers weaker make no difference.", "slsa-verifier SLSA_VERIFIER_TESTING, cosign COSIGN_EXPERIMENTAL", func(d *draft) {
			d.c.Question.Environment = map[string]string{
				"SLSA_VERIFIER_TESTING": "1", "SLSA_VERIFIER_EXPERIMENTAL": "1", "COSIGN_EXPERIMENTAL": "1", "SIGSTORE_NO_CACHE": "true",
				"SIGSTORE_ROOT_FILE": "trust/ours.pub", "SIGSTORE_REKOR_PUBLIC_KEY": "trust/ours.pub", "TUF_ROOT": ".", "WAXSEAL_INSECURE": "1",
			}
			d.nothing()
			d.file("provenance.json", d.seal("strange", d.provenance()), "signature")
		}},

		signed("signed", "The policy must be signed, and is.", "", "reviewer", attestations.PolicyV1, nil),
		signed("signed-by-stranger", "The policy must be signed; a stranger did.", "no trusted key", "strange", attestations.PolicyV1, nil),
		signed("signed-for-another-purpose", "The key that must sign policies has signed something else about the same bytes.", "approves no policy", "reviewer", attestations.SPDX, nil),
		signed("changed-after-signing", "The policy was changed after it was signed.", "not this digest", "reviewer", attestations.PolicyV1, func(policy string) string {
			return strings.Replace(policy, "build: 3", "build: 1", 1)
		}),
		{"gate/policy-key-swapped", "The policy must be signed, and is; the key that it names was swapped afterwards.", "", func(d *draft) {
			d.c.Question.Flags = []string{"--policy-key", d.key("reviewer")}
			d.policy = d.writePolicy()
			d.signPolicy("reviewer", attestations.PolicyV1)
			d.usage("does not cover \"ours.pub\"")
			d.files["trust/ours.pub"] = d.files[d.key("second")]
			delete(d.files, "trust/second.pub")
			d.raw("provenance.json", d.seal("second", d.provenance()))
		}},
		{"gate/policy-not-signed", "The policy must be signed, and is not.", "", func(d *draft) {
			d.c.Question.Flags = []string{"--policy-key", d.key("reviewer")}
			d.usage("who signed")
			d.raw("provenance.json", d.seal("ours", d.provenance()))
		}},

		refused("unknown-field", "A policy with a field that does not exist.", "", "unknown field", head+trust+"images:\n  - {match: \"**\", level: {build: 3}, sources: {}}\n"),
		refused("without-builders", "A policy that trusts no builder.", "witness policy constraints", "builders", head+"trust: {}\nimages:\n  - {match: \"**\", level: {build: 3}}\n"),
		refused("without-signer", "A builder without a signer.", "ampel: no identity in the policy", "signer", head+"trust:\n  builders:\n    - {id: "+ciID+", maxLevel: 3}\nimages:\n  - {match: \"**\", level: {build: 3}}\n"),
		refused("level-4", "A policy that declares Build L4.", "", "level.build", head+trust+"images:\n  - {match: \"**\", level: {build: 4}}\n"),
		refused("rule-broken", "A rule that does not compile.", "CVE-2026-4789, CVE-2026-40868", "rule", head+trust+"images:\n  - {match: \"**\", level: {build: 3}, rules: [{name: x, expr: 'http.Get(\"https://evil.example\") == 1'}]}\n"),
		refused("base-changed", "The policy that this one extends is not that of its digest.", "", "digest", "apiVersion: waxseal.dev/v1\nkind: Policy\nextends: {file: base.yaml, digest: \"sha256:"+strings.Repeat("0", 64)+"\"}\n"+trust+"images:\n  - {match: \"**\", level: {build: 3}}\n").with("trust/base.yaml", head),
	}
}

// with adds a file to a case.
func (e entry) with(name, text string) entry {
	inner := e.make
	e.make = func(d *draft) {
		inner(d)
		d.files[name] = []byte(text)
	}
	return e
}

// waive adds provenance that is not isolated.
func (d *draft) waive() {
	d.more = strings.ReplaceAll(d.more, "ISOLATED", reqIsolated) + "\nparameters: {cacheFrom: any}"
	d.file("provenance.json", d.seal("ours", d.provenance(external("cacheFrom", []any{object{"ref": "r.example/cache"}}))), Accepted)
}

func trustCases() []entry {
	refused := func(name, title, stands, says, file, text string, make func(*draft)) entry {
		return entry{"trust/" + name, title, stands, func(d *draft) {
			make(d)
			d.usage(says)
			d.files[file] = []byte(text)
		}}
	}
	byKey := func(d *draft) { d.raw("provenance.json", d.seal("ours", d.provenance())) }
	byCertificate := func(d *draft) {
		d.trustCertificate()
		d.raw("provenance.json", d.certified(d.world.ours, d.provenance()))
	}
	const weak = "-----BEGIN PUBLIC KEY-----\nMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQC7JHoJfg6yNzLMOWet8Z49a4KD\n0dCspMAYvo2YAMB7/wdEycocujbhJ2n/seONi+5XqTqqFkM5VBl8rmkkFPZk/7x0\nxmdsTPECSWnHK+HhoaNDFPR3j8jQhVo1laxiqcEhAHegi5cwtFosuJAvSKAFKEvy\nD43si00DQnXWrYHAEQIDAQAB\n-----END PUBLIC KEY-----\n"
	return []entry{
		{"trust/root-without-the-log", "The trusted root does not have the log that the entry is in.", "sigstore-go root lacking the log", func(d *draft) {
			d.trustCertificate()
			d.nothing()
			d.files["trust/trusted_root.json"] = d.root(rootOptions(true, false))
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "time")
		}},
		{"trust/root-of-another-instance", "The trusted root is another instance's.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.theirsRoot)
			d.nothing()
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "log")
		}},
		{"trust/two-roots", "Two trusted roots, and evidence that leads to the second.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.theirsRoot)
			d.keysOnly(2)
			d.pass(2)
			d.files["trust/second_root.json"] = d.oursRoot
			d.c.Trust.Roots = append(d.c.Trust.Roots, "trust/second_root.json")
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
		}},
		{"trust/two-roots-mixed", "Two trusted roots: the certificate is of one and the log entry of the other.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.theirsRoot)
			d.keysOnly(2)
			d.nothing()
			d.files["trust/second_root.json"] = d.oursRoot
			d.c.Trust.Roots = append(d.c.Trust.Roots, "trust/second_root.json")
			d.file("provenance.json", d.certified(d.world.theirs, d.provenance(), func(o *virtualOptions) { o.CA = d.world.ours.CA }), "chain")
		}},
		{"trust/identity-of-one-root", "The policy says which root an identity leads to; another root that the caller gave issued the certificate.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, d.theirsRoot)
			d.nothing()
			d.files["trust/second_root.json"] = d.oursRoot
			d.c.Question.Flags = []string{"--trusted-root", "trust/second_root.json"}
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), "identity")
		}},
		{"trust/no-root", "An identity, and no trusted root to check its certificate with.", "", func(d *draft) {
			d.trustIdentity(Identity{Issuer: ciIssuer, SAN: ciSAN}, nil)
			d.keysOnly(2)
			d.usage("no trusted root")
			d.raw("provenance.json", d.certified(d.world.ours, d.provenance()))
		}},
		refused("root-with-a-key-twice", "A trusted root one of whose keys stands twice.", "in-toto/attestation#74", "duplicate", "trust/trusted_root.json", `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1","tlogs":[],"tlogs":[]}`, byCertificate),
		refused("root-empty", "A trusted root that could prove nothing.", "", "neither a log nor a time-stamping authority", "trust/trusted_root.json", `{"mediaType":"application/vnd.dev.sigstore.trustedroot+json;version=0.1"}`, byCertificate),
		refused("private-key", "A private key where the public one is wanted.", "", "private key", "trust/ours.pub", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", byKey),
		refused("weak-key", "An RSA key of 1024 bits.", "", "too weak", "trust/ours.pub", weak, byKey),
	}
}
