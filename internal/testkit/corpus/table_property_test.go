package corpus

import (
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	hermetic   = verify.PropertyHermetic
	complete   = verify.PropertyInputsComplete
	reproduced = verify.PropertyReproduced

	reqHermetic   = verify.RowHermetic
	reqComplete   = verify.RowInputsComplete
	reqReproduced = verify.RowReproduced

	secondID = "https://rebuild.example/builder"
)

// record is a record of the inputs of a build in which one step fetched one
// thing, held to a lock.
func record() object {
	return object{
		"mode": "locked", "verdict": "recorded", "hermetic": true, "lock": digestOf([]byte("lock")), "sources": []any{},
		"steps": []any{object{
			"id": digestOf([]byte("step")), "name": "RUN fetch", "verdict": "recorded",
			"requests": []any{object{"ordinal": 1, "method": "GET", "uri": "https://files.example/a", "status": 200, "digest": digestOf([]byte("a")), "size": 1}},
		}},
		"gateway": object{"name": "waxseal"}, "engine": object{"name": "embedded"},
	}
}

// naming has the provenance name a record of inputs.
func naming(statement []byte) func(object) {
	return func(p object) {
		p["runDetails"].(object)["byproducts"] = []any{object{"name": attestations.ByproductInputs, "digest": object{"sha256": hexOf(digestOf(statement))}}}
	}
}

// recorded adds provenance, and the record that it names, signed by somebody.
func (d *draft) recorded(by string, in object, code string, changes ...func(object)) {
	st := d.about(attestations.InputsV1, in)
	d.file("provenance.json", d.seal("ours", d.provenance(append(changes, naming(st))...)), Accepted)
	d.file("inputs.json", d.seal(by, st), code)
}

// want asks for properties.
func (d *draft) want(properties ...string) { d.c.Question.Properties = properties }

// missing expects a denial for want of a property, and what there is of others.
func (d *draft) missing(requirement string, properties ...string) {
	d.deny(3, "level "+requirement)
	d.c.Expect.Properties = properties
}

// withStep gives the record another step.
func withStep(step object, verdict string, isHermetic bool) object {
	in := record()
	in["steps"], in["verdict"], in["hermetic"] = []any{step}, verdict, isHermetic
	return in
}

func propertyCases() []entry {
	const spec = "https://waxseal.dev/attestations/inputs/v1"
	const recorders = "slsa#1279, chains#278"
	const twice = "https://slsa.dev/spec/v1.2/verified-properties#slsa_build_reproduced"
	claim := func(name, title, stands string, changes ...func(object)) entry {
		return entry{"property/" + name, title, stands, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.file("provenance.json", d.seal("ours", d.provenance(changes...)), Accepted)
		}}
	}
	metadata := func(m object) func(object) { return func(p object) { p["runDetails"].(object)["metadata"] = m } }
	second := func(d *draft) {
		d.want(reproduced)
		d.trustKey("second", secondID, 2)
	}
	again := func(d *draft, change func(object)) []byte {
		r := object{
			"verdict": "reproduced", "original": d.top.Digest, "rebuilt": d.top.Digest, "normalisers": []any{}, "differences": []any{},
			"build": object{"mode": "offline", "lock": digestOf([]byte("lock")), "builder": secondID, "provenance": digestOf([]byte("p")), "engine": object{"name": "embedded"},
				"evidence": []any{}, "startedOn": minted().Format(time.RFC3339), "finishedOn": minted().Format(time.RFC3339)},
		}
		if change != nil {
			change(r)
		}
		return d.about(attestations.RebuildV1, r)
	}
	rebuilt := func(name, title, stands string, change func(object)) entry {
		return entry{"property/" + name, title, stands, func(d *draft) {
			second(d)
			d.missing(reqReproduced)
			d.good()
			d.file("rebuild.json", d.seal("second", again(d, change)), Accepted)
		}}
	}
	alike := func(d *draft, digests ...string) []byte {
		var deps []any
		for _, x := range digests {
			deps = append(deps, object{"uri": "https://x.example", "digest": object{"sha256": hexOf(x)}})
		}
		return d.seal("second", d.provenance(builder(secondID), definition("buildType", "https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1"), definition("resolvedDependencies", deps)))
	}
	return []entry{
		{"property/hermetic", "Every step was held to a lock, as a record says that the provenance names and its signer signed.", spec, func(d *draft) {
			d.want(hermetic)
			d.c.Expect.Properties = []string{complete, hermetic}
			d.recorded("ours", record(), Accepted)
		}},
		{"property/hermetic-without-network", "No step had a network.", spec, func(d *draft) {
			d.want(hermetic, complete)
			d.c.Expect.Properties = []string{complete, hermetic}
			in := withStep(object{"id": digestOf([]byte("step")), "name": "RUN make", "verdict": "isolated"}, "isolated", true)
			in["mode"] = "none"
			delete(in, "lock")
			d.recorded("ours", in, Accepted)
		}},
		{"property/hermetic-offline", "Every byte came from the store of a lock.", spec, func(d *draft) {
			d.want(hermetic)
			d.c.Expect.Properties = []string{complete, hermetic}
			in := record()
			in["mode"] = "offline"
			d.recorded("ours", in, Accepted)
		}},
		{"property/hermetic-index", "Every platform of an index was built hermetically.", spec, func(d *draft) {
			d.index()
			d.want(hermetic)
			d.c.Expect.Properties = []string{complete, hermetic}
			d.each("")
			for i, of := range d.platforms {
				name, platform := []string{"amd64", "arm64"}[i], []string{amd64, arm64}[i]
				st := statement(of.Digest, attestations.InputsV1, record())
				d.file(name+".json", d.seal("ours", d.provenanceOf(of.Digest, naming(st))), Accepted, platform)
				d.file(name+"-inputs.json", d.seal("ours", st), Accepted, platform)
			}
		}},
		{"property/refusals", "A step tried what it may not, and was refused: the record is complete, and says so.", spec, func(d *draft) {
			d.want(complete, hermetic)
			d.c.Expect.Properties = []string{complete, hermetic}
			in := record()
			in["steps"].([]any)[0].(object)["refusals"] = []any{object{"kind": "tcp", "destination": "192.0.2.7:443", "reason": "no route", "count": 2}}
			d.recorded("ours", in, Accepted)
		}},
		{"property/inputs-complete", "All that came in is in the record; nothing had decided on it before.", spec, func(d *draft) {
			d.want(complete)
			d.c.Expect.Properties = []string{complete}
			in := record()
			in["mode"], in["hermetic"] = "record", false
			delete(in, "lock")
			d.recorded("ours", in, Accepted)
		}},
		{"property/recorded-not-hermetic", "The same, where a hermetic build is asked for.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic, complete)
			in := record()
			in["mode"], in["hermetic"] = "record", false
			delete(in, "lock")
			d.recorded("ours", in, Accepted)
		}},
		{"property/flag-forged", "The record says hermetic, and its own mode says that nothing was held.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			in := record()
			in["mode"] = "record"
			delete(in, "lock")
			d.recorded("ours", in, Accepted)
		}},
		{"property/verdict-forged", "The record's verdict is better than its gaps allow.", spec, func(d *draft) {
			d.want(complete)
			d.missing(reqComplete)
			in := record()
			in["gaps"] = []any{object{"kind": "no-record", "detail": "a step"}}
			d.recorded("ours", in, Accepted)
		}},
		{"property/gap", "A step could use what earlier builds had left in a cache mount.", spec, func(d *draft) {
			d.want(complete)
			d.missing(reqComplete)
			d.recorded("ours", withStep(object{"id": digestOf([]byte("step")), "name": "RUN make", "verdict": "recorded with gaps",
				"gaps": []any{object{"kind": "cache-mount", "detail": "/root/.cache"}}}, "recorded with gaps", false), Accepted)
		}},
		{"property/host-network", "A step had the machine's own network.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.recorded("ours", withStep(object{"id": digestOf([]byte("step")), "name": "RUN make", "verdict": "unobserved",
				"gaps": []any{object{"kind": "host-network", "detail": "asked for"}}}, "unobserved", false), Accepted)
		}},
		{"property/another-gateway", "What watched is BuildKit's own proxy, which does not see everything.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			in := record()
			in["gateway"] = object{"name": "buildkit-proxy"}
			d.recorded("ours", in, Accepted)
		}},
		{"property/record-of-a-stranger", "The record that the provenance names is signed by a stranger.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.recorded("strange", record(), "signature")
		}},
		{"property/record-of-another-signer", "The record that the provenance names is signed by another trusted builder.", spec, func(d *draft) {
			d.trustKey("second", secondID, 3)
			d.want(hermetic)
			d.missing(reqHermetic)
			d.recorded("second", record(), Accepted)
		}},
		{"property/record-not-named", "A clean record by the same signer, which the provenance does not name.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.good()
			d.file("inputs.json", d.seal("ours", d.about(attestations.InputsV1, record())), Accepted)
		}},
		{"property/another-record-named", "The provenance names a record that is not there; a clean one is.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.file("provenance.json", d.seal("ours", d.provenance(naming([]byte("another")))), Accepted)
			d.file("inputs.json", d.seal("ours", d.about(attestations.InputsV1, record())), Accepted)
		}},
		{"property/record-of-another-image", "The record that the provenance names is about another image.", spec, func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			st := statement(d.other.top.Digest, attestations.InputsV1, record())
			d.file("provenance.json", d.seal("ours", d.provenance(naming(st))), Accepted)
			d.file("inputs.json", d.seal("ours", st), "subject")
		}},
		{"property/hermetic-on-one-platform", "One platform of two was built hermetically.", spec, func(d *draft) {
			d.index()
			d.want(hermetic)
			d.deny(3, "level "+reqHermetic, "level "+reqHermetic+" "+arm64)
			d.each("", arm64)
			st := statement(d.platforms[0].Digest, attestations.InputsV1, record())
			d.file("amd64.json", d.seal("ours", d.provenanceOf(d.platforms[0].Digest, naming(st))), Accepted, amd64)
			d.file("inputs.json", d.seal("ours", st), Accepted, amd64)
		}},
		claim("claimed-by-buildkit", "BuildKit's flag that the build was hermetic says what was asked for, not what was seen.", recorders, metadata(object{"buildkit_hermetic": true})),
		claim("claimed-complete", "BuildKit's flag that its dependencies are complete.", recorders, metadata(object{"buildkit_completeness": object{"request": true, "resolvedDependencies": true}})),
		{"property/claimed-by-parameter", "A parameter called HERMETIC is true.", "Conforma hermetic_task", func(d *draft) {
			d.want(hermetic)
			d.more = "parameters: {HERMETIC: any}"
			d.missing(reqHermetic)
			d.file("provenance.json", d.seal("ours", d.provenance(external("HERMETIC", "true"))), Accepted)
		}},
		{"property/claimed-by-predicate", "A predicate that nobody defines says that the build was hermetic.", "nri-supply-chain requiredProperties", func(d *draft) {
			d.want(hermetic)
			d.missing(reqHermetic)
			d.good()
			d.file("claim.json", d.seal("ours", d.about("https://nri.example/build-env/v1", object{"properties": []string{"HERMETIC", "REPRODUCIBLE"}})), "not-needed")
		}},

		{"property/reproduced", "Two builders that are trusted, with keys of their own, built the same digest.", twice, func(d *draft) {
			second(d)
			d.c.Expect.Properties = []string{reproduced}
			d.good()
			d.file("second.json", d.seal("second", d.provenance(builder(secondID))), Accepted)
		}},
		{"property/reproduced-index", "Two builders built an index and each of its platforms to the same digests.", twice, func(d *draft) {
			d.index()
			second(d)
			d.c.Expect.Properties = []string{reproduced}
			d.each("", amd64, arm64)
			for i, of := range append([]descriptor{d.top}, d.platforms...) {
				d.file([]string{"index2.json", "amd642.json", "arm642.json"}[i], d.seal("second", d.provenanceOf(of.Digest, builder(secondID))), Accepted, []string{"", amd64, arm64}[i])
			}
		}},
		{"property/reproduced-by-rebuild", "Another trusted builder says that it built the image again, to the same digest.", twice, func(d *draft) {
			second(d)
			d.c.Expect.Properties = []string{reproduced}
			d.good()
			d.file("rebuild.json", d.seal("second", again(d, nil)), Accepted)
		}},
		{"property/reproduced-by-oss-rebuild", "Another trusted builder compared what it built with the image: the digests are one.", "https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1", func(d *draft) {
			second(d)
			d.c.Expect.Properties = []string{reproduced}
			d.good()
			d.file("equal.json", alike(d, d.top.Digest, d.top.Digest), Accepted)
		}},
		{"property/alike-is-not-reproduced", "Another trusted builder found the two alike once some bytes are left out.", "https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1", func(d *draft) {
			second(d)
			d.missing(reqReproduced)
			d.good()
			d.file("alike.json", alike(d, d.top.Digest, d.other.top.Digest), Accepted)
		}},
		{"property/one-builder-twice", "The same builder, twice.", twice, func(d *draft) {
			second(d)
			d.missing(reqReproduced)
			d.good()
			d.file("again.json", d.seal("ours", d.provenance(external("noCache", true))), Accepted)
		}},
		{"property/one-key-for-two-builders", "Two builders, and one key that signs for both.", twice, func(d *draft) {
			d.want(reproduced)
			d.trustKey("ours", secondID, 3)
			d.missing(reqReproduced)
			d.good()
			d.file("second.json", d.seal("ours", d.provenance(builder(secondID))), Accepted)
		}},
		{"property/two-keys-of-one-builder", "One builder with two keys.", twice, func(d *draft) {
			d.want(reproduced)
			d.trustKey("second", ciID, 3)
			d.missing(reqReproduced)
			d.good()
			d.file("again.json", d.seal("second", d.provenance()), Accepted)
		}},
		{"property/one-name-for-two-builders", "Two builders with keys of their own, both of which the policy says are one signer's.", twice, func(d *draft) {
			second(d)
			for i := range d.c.Trust.Builders {
				d.c.Trust.Builders[i].Name = "acme"
			}
			d.missing(reqReproduced)
			d.good()
			d.file("second.json", d.seal("second", d.provenance(builder(secondID))), Accepted)
		}},
		{"property/two-workflows-of-one-platform", "Two workflows that one platform vouches for, each of which signs as a builder of its own.", twice, func(d *draft) {
			d.trustCertificate()
			again := strings.Replace(ciSAN, "seal.yml", "again.yml", 1)
			d.c.Trust.Identities = append(d.c.Trust.Identities, Identity{Issuer: ciIssuer, SAN: again})
			d.c.Trust.Builders = append(d.c.Trust.Builders, Builder{ID: secondID, Identity: &Identity{Issuer: ciIssuer, SAN: again}, MaxLevel: 3})
			d.want(reproduced)
			d.missing(reqReproduced)
			d.file("provenance.json", d.certified(d.world.ours, d.provenance()), Accepted)
			d.file("second.json", d.certified(d.world.ours, d.provenance(builder(secondID)), san(again)), Accepted)
		}},
		{"property/second-builder-not-trusted", "The second builder is one that nobody trusts.", twice, func(d *draft) {
			d.want(reproduced)
			d.missing(reqReproduced)
			d.good()
			d.file("second.json", d.seal("strange", d.provenance(builder(secondID))), "signature")
		}},
		{"property/second-builder-of-another-source", "The second builder is trusted, and says that it built the image from a stranger's repository: some builders attest any digest that they are handed.", twice, func(d *draft) {
			second(d)
			d.missing(reqReproduced)
			d.good()
			d.file("second.json", d.seal("second", d.provenance(builder(secondID), source("git+https://git.example/mallory/app", object{"gitCommit": commit}))), Accepted)
		}},
		{"property/second-builder-of-another-commit", "The two builders say that they built it from different commits.", twice, func(d *draft) {
			second(d)
			d.missing(reqReproduced)
			d.good()
			d.file("second.json", d.seal("second", d.provenance(builder(secondID), source("git+"+repository, object{"gitCommit": strings.Repeat("d", 40)}))), Accepted)
		}},
		{"property/provenance-of-the-index-alone", "Two builders attest an index, and one of them its platforms: the other may have put it together only.", twice, func(d *draft) {
			d.index()
			second(d)
			d.deny(3, "level "+reqReproduced+" "+amd64, "level "+reqReproduced+" "+arm64)
			d.each("", amd64, arm64)
			d.file("second.json", d.seal("second", d.provenanceOf(d.top.Digest, builder(secondID))), Accepted)
		}},
		rebuilt("rebuild-equivalent", "The rebuild came out equivalent, and not the same.", twice, func(r object) { r["verdict"], r["rebuilt"] = "equivalent", digestOf([]byte("other")) }),
		rebuilt("rebuild-of-another-digest", "The rebuild says that it reproduced the image, and names another digest.", twice, func(r object) { r["rebuilt"] = digestOf([]byte("other")) }),
		rebuilt("rebuild-with-differences", "The rebuild says that it reproduced the image, and lists a difference.", twice, func(r object) {
			r["differences"] = []any{object{"kind": "content", "path": "/a", "cause": "other bytes"}}
		}),
		rebuilt("rebuild-unverified", "The rebuild rests on evidence that nobody checked.", twice, func(r object) { r["build"].(object)["unverified"] = true }),
		rebuilt("rebuild-by-the-same-builder", "The rebuild was made by the builder itself, under the second one's key.", twice, func(r object) { r["build"].(object)["builder"] = ciID }),
		{"property/rebuild-by-stranger", "A stranger's word that the image was built again.", twice, func(d *draft) {
			d.want(reproduced)
			d.missing(reqReproduced)
			d.good()
			d.file("rebuild.json", d.seal("strange", again(d, nil)), "signature")
		}},
		{"property/not-asked", "A hermetic build where no property is asked for: nothing is said of it.", "", func(d *draft) {
			d.recorded("ours", record(), "not-needed")
		}},
		{"property/unknown-name", "A policy that asks for a property which does not exist.", "", func(d *draft) {
			d.policy = strings.Replace(d.writePolicy(), "level:", "properties: [SLSA_BUILD_HERMETIC]\n    level:", 1)
			d.usage("SLSA_BUILD_HERMETIC")
			d.raw("provenance.json", d.seal("ours", d.provenance()))
		}},
	}
}
