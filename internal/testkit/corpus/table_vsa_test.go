package corpus

import (
	"maps"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	verifierID  = "https://verifier.example/v1"
	resourceURI = "pkg:oci/app?repository_url=registry.example%2Facme%2Fapp"
	policyURI   = "https://policy.example/prod"
)

// summary is a verification summary that says PASSED at Build L3.
func summary(levels ...string) object {
	if levels == nil {
		levels = []string{"SLSA_BUILD_LEVEL_3"}
	}
	return object{
		"verifier": object{"id": verifierID}, "timeVerified": minted().Format(time.RFC3339), "resourceUri": resourceURI,
		"policy":             object{"uri": policyURI, "digest": object{"sha256": hexOf(digestOf([]byte("policy")))}},
		"inputAttestations":  []any{object{"digest": object{"sha256": hexOf(digestOf([]byte("provenance")))}}},
		"verificationResult": "PASSED", "verifiedLevels": levels, "slsaVersion": "1.2",
	}
}

// failed is one that says FAILED, made so long after.
func failed(later time.Duration) object {
	p := at(summary("FAILED"), later)
	p["verificationResult"] = "FAILED"
	return p
}

// at is a summary made so long after the usual time.
func at(p object, later time.Duration) object {
	p = maps.Clone(p)
	p["timeVerified"] = minted().Add(later).Format(time.RFC3339)
	return p
}

// summarised trusts the verifier and delegates the Build level to it. There is
// no provenance.
func (d *draft) summarised() {
	d.c.Trust.Verifiers = []VSAVerifier{{ID: verifierID, Key: d.key("verifier"), Levels: Levels{Build: 3, Source: 4},
		Properties: []string{verify.PropertyReproduced, verify.PropertyTwoParty}}}
	d.c.Question.Summary = &Summary{ResourceURI: resourceURI, Delegates: []string{"build"}}
}

// vsa adds a summary as a bare envelope.
func (d *draft) vsa(by string, st []byte, code string) { d.file("vsa.json", d.dsse(by, st), code) }

func (d *draft) summaryOf(p object) []byte { return d.about(attestations.VSAV1, p) }

func vsaCases() []entry {
	const fields = "https://slsa.dev/spec/v1.2/verification_summary#fields"
	const steps = "https://slsa.dev/spec/v1.2/verification_summary#how-to-verify"
	const result = "https://slsa.dev/spec/v1.2/verification_summary#slsaresult"
	const measured = "slsa-verifier verify-vsa"
	set := func(name string, value any) func(object) {
		return func(p object) {
			if value == nil {
				delete(p, name)
				return
			}
			p[name] = value
		}
	}
	// vector is a summary changed, and what becomes of it.
	vector := func(name, title, stands, code string, changes ...func(object)) entry {
		return entry{"vsa/" + name, title, stands, func(d *draft) {
			d.summarised()
			if code != Accepted {
				d.nothing()
			}
			p := summary()
			for _, change := range changes {
				change(p)
			}
			d.vsa("verifier", d.summaryOf(p), code)
		}}
	}
	levels := func(list ...string) func(object) { return set("verifiedLevels", list) }
	text := func(name, title, stands, code, old, new string) entry {
		return entry{"vsa/" + name, title, stands, func(d *draft) {
			d.summarised()
			d.nothing()
			st := strings.Replace(string(d.summaryOf(summary())), old, new, 1)
			d.vsa("verifier", []byte(st), code)
		}}
	}
	// wanted is a summary under other wants.
	wanted := func(name, title, stands, code string, want func(*draft), changes ...func(object)) entry {
		e := vector(name, title, stands, code, changes...)
		inner := e.make
		e.make = func(d *draft) {
			inner(d)
			want(d)
		}
		return e
	}
	maxAge := func(days int) func(*draft) { return func(d *draft) { d.c.Question.Summary.MaxAge = days } }
	return []entry{
		vector("passed", "A summary that says PASSED at Build L3 stands in for provenance, where a policy delegates that.", measured+" v_ok", Accepted),
		vector("with-reproduced", "The same, with a verified property.", measured+" v_repro", Accepted, levels("SLSA_BUILD_LEVEL_3", "SLSA_BUILD_REPRODUCED")),
		vector("with-two-party", "The same, with a verified property of the source.", measured+" v_2p", Accepted, levels("SLSA_BUILD_LEVEL_3", "SLSA_SOURCE_TWO_PARTY_REVIEWED")),
		{"vsa/unevaluated", "A summary that did not look at the Build track: valid, and no level.", measured + " v_uneval", func(d *draft) {
			d.summarised()
			d.nothing()
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_UNEVALUATED")), Accepted)
		}},
		vector("unknown-track", "A level of a track that SLSA v1.2 does not have, which is ignored.", measured+" v_env", Accepted, levels("SLSA_BUILD_LEVEL_3", "SLSA_BUILD_ENV_LEVEL_1")),
		text("duplicate-levels", "verifiedLevels stands twice, L1 and then L3.", measured+" v_dup", "unreadable", `"verifiedLevels"`, `"verifiedLevels":["SLSA_BUILD_LEVEL_1"],"verifiedLevels"`),
		text("case-of-levels", "The key is spelled VerifiedLevels.", measured+" v_case", "predicate", `"verifiedLevels"`, `"VerifiedLevels"`),
		vector("two-levels", "Two levels of one track.", measured+" v_two", "predicate", levels("SLSA_BUILD_LEVEL_1", "SLSA_BUILD_LEVEL_3")),
		vector("level-99", "A level that does not exist.", measured+" v_99", "predicate", levels("SLSA_BUILD_LEVEL_99")),
		vector("level-below-zero", "A level below zero.", measured+" v_99", "predicate", levels("SLSA_BUILD_LEVEL_-5")),
		vector("level-03", "A level with a zero before it.", measured+" v_03", "predicate", levels("SLSA_BUILD_LEVEL_03")),
		{"vsa/trailing-object", "A second JSON object follows the statement.", measured + " v_trail", func(d *draft) {
			d.summarised()
			d.nothing()
			d.vsa("verifier", append(d.summaryOf(summary()), '{', '}'), "unreadable")
		}},

		vector("failed", "A summary that says FAILED.", steps, "failed", set("verificationResult", "FAILED"), levels("FAILED")),
		vector("failed-with-levels", "A summary that says FAILED, and gives a level.", fields, "predicate", set("verificationResult", "FAILED")),
		vector("passed-and-failed", "A summary that says PASSED, and FAILED among its levels.", fields, "predicate", levels("SLSA_BUILD_LEVEL_3", "FAILED")),
		vector("another-result", "A result that is neither PASSED nor FAILED.", fields, "predicate", set("verificationResult", "OK")),
		vector("no-result", "No result.", fields, "predicate", set("verificationResult", nil)),
		{"vsa/no-levels", "PASSED, with no level: it was checked against something, and carries nothing.", fields, func(d *draft) {
			d.summarised()
			d.nothing()
			p := summary()
			p["verifiedLevels"] = []string{}
			d.vsa("verifier", d.summaryOf(p), Accepted)
		}},
		vector("no-verifier", "No verifier.", fields, "predicate", set("verifier", nil)),
		vector("verifier-id-no-uri", "The verifier's id is no URI.", fields, "predicate", set("verifier", object{"id": "me"})),
		vector("no-resource", "No resourceUri.", fields, "predicate", set("resourceUri", nil)),
		vector("no-policy", "No policy.", fields, "predicate", set("policy", nil)),
		vector("policy-without-uri", "A policy without its URI.", fields, "predicate", set("policy", object{"digest": object{"sha256": strings.Repeat("a", 64)}})),
		vector("input-without-digest", "An input attestation without a digest.", fields, "predicate", set("inputAttestations", []any{object{"uri": "https://x.example"}})),
		vector("time-is-none", "timeVerified is no time.", fields, "predicate", set("timeVerified", "yesterday")),
		vector("version-to-come", "A version of SLSA that is not out yet.", fields, "predicate", set("slsaVersion", "9.1")),
		vector("reserved-name", "A name of the verifier's own that begins with SLSA_.", result, "predicate", levels("SLSA_BUILD_LEVEL_3", "SLSA_ACME_GOOD")),
		vector("reserved-name-of-source-tool", "A name that source-tool gave: of its own, and beginning with SLSA_.", "source-tool pkg/slsa/controls.go", "predicate", levels("SLSA_BUILD_LEVEL_3", "SLSA_SOURCE_SCS_CONTINUITY")),
		vector("empty-name", "An empty name among the levels.", result, "predicate", levels("SLSA_BUILD_LEVEL_3", "")),
		vector("level-in-lower-case", "The level in lower case is a name of the verifier's own, and no level.", result, Accepted, levels("SLSA_BUILD_LEVEL_3", "slsa_build_level_3")),
		vector("own-name", "A name of the verifier's own, which is ignored.", result, Accepted, levels("SLSA_BUILD_LEVEL_3", "ACME_REVIEWED")),
		vector("more-fields", "A field that v1.2 does not have, which is ignored.", fields, Accepted, set("later", object{"a": 1})),
		vector("minimal", "Nothing but what is required.", fields, Accepted, set("timeVerified", nil), set("inputAttestations", nil), set("slsaVersion", nil), set("policy", object{"uri": policyURI})),
		vector("version-1.0", "A summary under SLSA v1.0.", fields, Accepted, set("slsaVersion", "1.0")),
		vector("dependencies", "It says of how many dependencies it verified which level.", fields, Accepted, set("dependencyLevels", object{"SLSA_BUILD_LEVEL_3": 4, "SLSA_BUILD_LEVEL_0": 1})),
		vector("dependencies-below-zero", "A number of dependencies below zero.", fields, "predicate", set("dependencyLevels", object{"SLSA_BUILD_LEVEL_3": -1})),

		vector("another-verifier", "A verifier that nobody trusts, under the trusted key.", steps, "verifier", set("verifier", object{"id": "https://other.example/v1"})),
		vector("verifier-with-slash", "The verifier's id with a slash at its end.", steps, "verifier", set("verifier", object{"id": verifierID + "/"})),
		{"vsa/another-signer", "The verifier's id, signed by a key that is trusted to build.", steps, func(d *draft) {
			d.summarised()
			d.nothing()
			d.vsa("ours", d.summaryOf(summary()), "verifier")
		}},
		{"vsa/stranger", "The verifier's id, signed by a stranger.", steps, func(d *draft) {
			d.summarised()
			d.nothing()
			d.vsa("strange", d.summaryOf(summary()), "signature")
		}},
		{"vsa/another-image", "A summary of another image.", "ratify-v1 SLSA plugin", func(d *draft) {
			d.summarised()
			d.nothing()
			d.vsa("verifier", statement(d.other.top.Digest, attestations.VSAV1, summary()), "subject")
		}},
		vector("another-resource", "It was made for another place.", steps, "resource", set("resourceUri", "pkg:oci/app?repository_url=registry.example%2Fstaging%2Fapp")),
		vector("resource-goes-on", "The place only begins like the one that is expected.", steps, "resource", set("resourceUri", resourceURI+"-evil")),
		wanted("policy", "It was made under the policy that is wanted, of the digest that is wanted.", fields, Accepted, func(d *draft) {
			d.c.Question.Summary.PolicyURI, d.c.Question.Summary.PolicyDigest = policyURI, digestOf([]byte("policy"))
		}),
		wanted("another-policy", "It was made under another policy than the one that is wanted.", fields, "policy", func(d *draft) { d.c.Question.Summary.PolicyURI = policyURI }, set("policy", object{"uri": "https://policy.example/staging"})),
		wanted("another-policy-digest", "It was made under another version of the policy.", fields, "policy", func(d *draft) {
			d.c.Question.Summary.PolicyURI, d.c.Question.Summary.PolicyDigest = policyURI, digestOf([]byte("stricter policy"))
		}),
		wanted("policy-without-digest", "It does not say which version of the policy it was made under, and one is wanted.", fields, "policy", func(d *draft) {
			d.c.Question.Summary.PolicyURI, d.c.Question.Summary.PolicyDigest = policyURI, digestOf([]byte("policy"))
		}, set("policy", object{"uri": policyURI})),
		wanted("young-enough", "A month old, where 60 days are allowed.", fields, Accepted, maxAge(60)),
		wanted("too-old", "A month old, where 7 days are allowed.", fields, "age", maxAge(7)),
		wanted("no-time", "It does not say when it was made, and may not be older than a week.", fields, "age", maxAge(7), set("timeVerified", nil)),
		vector("to-come", "It says that it was made a year from now.", fields, "age", set("timeVerified", usual().AddDate(1, 0, 0).Format(time.RFC3339))),
		wanted("name-wanted", "A name of the verifier's own is wanted, and there.", steps, Accepted, func(d *draft) { d.c.Question.Summary.Names = []string{"ACME_REVIEWED"} }, levels("SLSA_BUILD_LEVEL_3", "ACME_REVIEWED")),
		wanted("name-missing", "A name of the verifier's own is wanted, and is not there.", steps, "name", func(d *draft) { d.c.Question.Summary.Names = []string{"ACME_REVIEWED"} }),

		{"vsa/bundle", "The summary is in a Sigstore bundle.", "cosign#2661", func(d *draft) {
			d.summarised()
			d.file("vsa.json", d.seal("verifier", d.summaryOf(summary())), Accepted)
		}},
		{"vsa/referrer", "The summary is a referrer of the image.", "", func(d *draft) {
			d.summarised()
			raw := d.seal("verifier", d.summaryOf(summary()))
			d.refer(d.top, raw)
			d.seen(raw, "", Accepted)
		}},
		{"vsa/index", "Each part of an index has its summary.", "promo-tools#1954", func(d *draft) {
			d.index()
			d.summarised()
			for i, of := range append([]descriptor{d.top}, d.platforms...) {
				d.file([]string{"index.json", "amd64.json", "arm64.json"}[i], d.dsse("verifier", statement(of.Digest, attestations.VSAV1, summary())), Accepted, []string{"", amd64, arm64}[i])
			}
		}},
		{"vsa/index-only", "The index has a summary, and its platforms have none.", "promo-tools#1954", func(d *draft) {
			d.index()
			d.summarised()
			d.deny(0, "level "+reqExists+" "+amd64, "level "+reqExists+" "+arm64)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/lower-level", "A summary at Build L2, where L3 is asked.", steps, func(d *draft) {
			d.summarised()
			d.deny(2, short(2)...)
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_2")), Accepted)
		}},
		{"vsa/verifier-capped", "A summary at Build L3 by a verifier that is trusted to L2.", steps, func(d *draft) {
			d.summarised()
			d.c.Trust.Verifiers[0].Levels.Build = 2
			d.deny(2, short(2)...)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/higher-level", "A summary at Build L3, where L1 is asked.", steps, func(d *draft) {
			d.summarised()
			d.build(1)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/stands-above-provenance", "Provenance by a builder that is trusted to Build L1, and a summary at L3.", "", func(d *draft) {
			d.summarised()
			d.c.Trust.Builders[0].MaxLevel = 1
			d.good()
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/expectations-not-delegated", "The policy expects a source, and only provenance could show it.", "nri-supply-chain: a PASSED summary skips every other check", func(d *draft) {
			d.summarised()
			d.c.Question.Repository = repository
			d.deny(0, "level "+reqExpect)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/another-source", "A summary at Build L3, and provenance from another source than the policy expects.", "nri-supply-chain: a PASSED summary skips every other check", func(d *draft) {
			d.summarised()
			d.c.Question.Repository = repository
			d.deny(0, "source "+reqExpect)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
			d.file("provenance.json", d.seal("ours", d.provenance(source("git+https://git.example/evil/app", object{"gitCommit": commit}))), Accepted)
		}},
		{"vsa/rule-not-skipped", "A summary at Build L3, and a rule of the policy that does not hold.", "nri-supply-chain: a PASSED summary skips every other check", func(d *draft) {
			d.summarised()
			d.more = "rules:\n  - {name: never, expr: 'image.digest == \"\"'}"
			d.deny(3, "rule rule:never")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/sbom-not-skipped", "A summary at Build L3, and an SBOM that is required and missing.", "nri-supply-chain: a PASSED summary skips every other check", func(d *draft) {
			d.summarised()
			d.more = "sbom: {required: true}"
			d.deny(3, "sbom")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/not-delegated", "A good summary, where the policy delegates nothing to one and only requires it.", "", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates, d.c.Question.Summary.Required = nil, true
			d.nothing()
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/required", "Good provenance, and the summary that the policy requires as well.", "CRI-O#9766", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates, d.c.Question.Summary.Required = nil, true
			d.good()
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/required-and-missing", "Good provenance, and no summary where the policy requires one.", "CRI-O#9766", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates, d.c.Question.Summary.Required = nil, true
			d.deny(3, "vsa")
			d.good()
		}},
		{"vsa/required-and-failed", "Good provenance, and a summary that says FAILED where the policy requires one.", "", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates, d.c.Question.Summary.Required = nil, true
			d.deny(3, "vsa")
			d.good()
			d.vsa("verifier", d.summaryOf(failed(0)), "failed")
		}},
		{"vsa/stranger-says-failed", "A stranger's summary that says FAILED, beside a good one.", "", func(d *draft) {
			d.summarised()
			p := summary("FAILED")
			p["verificationResult"] = "FAILED"
			d.file("failed.json", d.dsse("strange", d.summaryOf(p)), "signature")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/not-added-up", "Two summaries, of which one has the level and the other the property: they are not added up.", "", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates = []string{"build", "properties"}
			d.want(reproduced)
			d.deny(3, "level "+reqReproduced)
			d.file("level.json", d.dsse("verifier", d.summaryOf(summary())), Accepted)
			d.file("property.json", d.dsse("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_1", "SLSA_BUILD_REPRODUCED"))), Accepted)
		}},
		{"vsa/property", "A property is asked for, and the summary has it.", "", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates = []string{"build", "properties"}
			d.want(reproduced)
			d.c.Expect.Properties = []string{reproduced}
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_3", "SLSA_BUILD_REPRODUCED")), Accepted)
		}},
		{"vsa/source-delegated", "A summary of the image that has a Source level too, where both are delegated.", steps, func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates = []string{"build", "source"}
			d.c.Question.Level.Source, d.c.Expect.Reached.Source = 3, 3
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_3", "SLSA_SOURCE_LEVEL_3")), Accepted)
		}},
		{"vsa/two-verifiers", "Two verifiers are trusted, to different levels; the better one's summary is there.", steps, func(d *draft) {
			d.summarised()
			d.c.Trust.Verifiers[0].Levels.Build = 3
			d.c.Trust.Verifiers = append(d.c.Trust.Verifiers, VSAVerifier{ID: "https://other.example/v1", Key: d.key("second"), Levels: Levels{Build: 1}})
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/one-of-two-counts", "Two summaries by trusted verifiers; the one that carries the level stands.", steps, func(d *draft) {
			d.summarised()
			d.file("lower.json", d.dsse("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_1"))), Accepted)
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/failed-before", "An older summary that says FAILED, and a newer one that says PASSED.", steps, func(d *draft) {
			d.summarised()
			d.file("before.json", d.dsse("verifier", d.summaryOf(failed(-time.Hour))), "failed")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/failed-since", "A summary that says PASSED, and a newer one by the same verifier, under the same policy, that says FAILED.", "", func(d *draft) {
			d.summarised()
			d.nothing()
			d.file("since.json", d.dsse("verifier", d.summaryOf(failed(time.Hour))), "failed")
			d.vsa("verifier", d.summaryOf(summary()), "failed")
		}},
		{"vsa/failed-since-and-passed-again", "A summary that says FAILED, and by the same verifier an older and a newer one that say PASSED.", "", func(d *draft) {
			d.summarised()
			d.file("since.json", d.dsse("verifier", d.summaryOf(failed(time.Hour))), "failed")
			d.file("again.json", d.dsse("verifier", d.summaryOf(at(summary(), 2*time.Hour))), Accepted)
			d.vsa("verifier", d.summaryOf(summary()), "failed")
		}},
		{"vsa/failed-since-by-a-stranger", "A summary that says PASSED, and a newer one in its verifier's name that a stranger signed and that says FAILED.", "", func(d *draft) {
			d.summarised()
			d.file("since.json", d.dsse("strange", d.summaryOf(failed(time.Hour))), "signature")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/failed-since-elsewhere", "A summary that says PASSED, and newer ones that say FAILED: for another place, under another policy, and of a time to come.", "", func(d *draft) {
			d.summarised()
			other, place := failed(time.Hour), failed(time.Hour)
			other["policy"] = object{"uri": "https://policy.example/strict"}
			place["resourceUri"] = "pkg:oci/app?repository_url=registry.example%2Facme%2Fstage"
			d.file("other.json", d.dsse("verifier", d.summaryOf(other)), "failed")
			d.file("place.json", d.dsse("verifier", d.summaryOf(place)), "resource")
			d.file("later.json", d.dsse("verifier", d.summaryOf(failed(400*24*time.Hour))), "age")
			d.vsa("verifier", d.summaryOf(summary()), Accepted)
		}},
		{"vsa/property-not-trusted", "A property that the verifier is not believed about.", "", func(d *draft) {
			d.summarised()
			d.c.Question.Summary.Delegates = []string{"build", "properties"}
			d.c.Trust.Verifiers[0].Properties = nil
			d.want(reproduced)
			d.deny(3, "level "+reqReproduced)
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_3", "SLSA_BUILD_REPRODUCED")), Accepted)
		}},
		{"vsa/property-not-delegated", "A property is asked for, the summary has it, and only the build is delegated.", "", func(d *draft) {
			d.summarised()
			d.want(reproduced)
			d.deny(3, "level "+reqReproduced)
			d.vsa("verifier", d.summaryOf(summary("SLSA_BUILD_LEVEL_3", "SLSA_BUILD_REPRODUCED")), Accepted)
		}},
		{"vsa/nothing-else-asked", "A summary where the policy does not speak of any.", "", func(d *draft) {
			d.good()
			d.vsa("strange", d.summaryOf(summary()), "not-needed")
		}},
	}
}
