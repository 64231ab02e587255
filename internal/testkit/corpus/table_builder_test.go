package corpus

import (
	"strings"

	"github.com/waxseal/waxseal/attestations"
)

// believed is a case of provenance whose signature holds: with the level that
// it reaches, and what stands against Build L3.
func believed(name, title, stands string, reached int, reasons []string, changes ...func(object)) entry {
	return entry{"builder/" + name, title, stands, func(d *draft) {
		d.c.Question.Repository = repository
		if reasons != nil {
			d.deny(reached, reasons...)
		}
		d.file("provenance.json", d.seal("ours", d.provenance(changes...)), Accepted)
	}}
}

// both of the reasons that stand for a level that the builder is not trusted to.
func short(level int) []string {
	switch level {
	case 2:
		return []string{"level " + reqUnforgeable, "level " + reqIsolated}
	case 1:
		return append([]string{"level " + reqAuthentic, "level " + reqHosted}, short(2)...)
	}
	return nil
}

func builderCases() []entry {
	unknown := func(name, title, stands, id string) entry {
		return entry{"builder/" + name, title, stands, func(d *draft) {
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.provenance(builder(id))), "builder")
		}}
	}
	malformed := func(name, title string, change func(object)) entry {
		return entry{"builder/" + name, title, "https://slsa.dev/spec/v1.2/build-provenance#schema", func(d *draft) {
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.provenance(change)), "predicate")
		}}
	}
	v02 := func(name, title, stands string, reached int, reasons []string, change func(object)) entry {
		return entry{"builder/" + name, title, stands, func(d *draft) {
			p := old()
			if change != nil {
				change(p)
			}
			d.more = "parameters: {configSource: any}"
			if reasons != nil {
				d.deny(reached, reasons...)
			}
			d.file("provenance.json", d.seal("ours", d.about(attestations.ProvenanceV02, p)), Accepted)
		}}
	}
	const expectations = "https://slsa.dev/spec/v1.2/verifying-artifacts#step-2-check-expectations"
	const roots = "https://slsa.dev/spec/v1.2/verifying-artifacts#step-1-check-slsa-build-level"
	wrong := func(code string) []string { return []string{code + " " + reqExpect} }
	return []entry{
		believed("as-expected", "The trusted builder, the expected source, no parameters.", "", 3, nil),
		unknown("not-trusted", "A builder.id that nobody trusts, under the trusted key.", roots, "https://other.example/builder"),
		unknown("id-with-slash", "The builder.id with a slash at its end.", "slsa#716", ciID+"/"),
		unknown("id-in-another-case", "The builder.id in another case.", "", strings.Replace(ciID, "ci.example", "CI.example", 1)),
		unknown("id-of-another-version", "The builder.id of another version.", "", strings.Replace(ciID, "v1", "v1.1", 1)),
		unknown("id-goes-on", "The builder.id with more behind it.", "", ciID+"@refs/heads/main"),
		{"builder/id-of-another-signer", "A builder.id that is trusted, under another signer than this one.", roots, func(d *draft) {
			d.trustKey("second", "https://second.example/builder", 3)
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.provenance(builder("https://second.example/builder"))), "builder")
		}},
		{"builder/two-signers", "One builder.id with two signers that are trusted to different levels: the signer decides.", roots, func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.trustKey("second", ciID, 3)
			d.deny(2, short(2)...)
			d.file("provenance.json", d.seal("ours", d.provenance()), Accepted)
		}},
		{"builder/two-signers-the-better", "The same, signed by the one that is trusted more.", roots, func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.trustKey("second", ciID, 3)
			d.file("provenance.json", d.seal("second", d.provenance()), Accepted)
		}},
		{"builder/two-modes", "One signer with a builder.id for each mode, trusted to different levels.", "slsa#716", func(d *draft) {
			d.trustKey("ours", ciID+"/shared-cache", 2)
			d.deny(2, short(2)...)
			d.file("provenance.json", d.seal("ours", d.provenance(builder(ciID+"/shared-cache"))), Accepted)
		}},
		{"builder/capped", "All that the evidence supports is Build L3; the builder is trusted to L2.", roots, func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.deny(2, short(2)...)
			d.good()
		}},
		{"builder/capped-and-enough", "The builder is trusted to Build L2, and no more is asked.", roots, func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.build(2)
			d.pass(2)
			d.good()
		}},
		{"builder/capped-at-one", "The builder is trusted to Build L1, and L2 is asked.", roots, func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 1
			d.build(2)
			d.deny(1, "level "+reqAuthentic, "level "+reqHosted)
			d.good()
		}},
		{"builder/unhosted", "A build on somebody's own machine, whatever the key is trusted for.", "", func(d *draft) {
			d.trustKey("ours", attestations.UnhostedBuilderID, 1)
			d.deny(1, short(1)...)
			d.file("provenance.json", d.seal("ours", d.provenance(builder(attestations.UnhostedBuilderID))), Accepted)
		}},
		{"builder/unhosted-enough", "A build on somebody's own machine, where Build L1 is asked.", "", func(d *draft) {
			d.trustKey("ours", attestations.UnhostedBuilderID, 1)
			d.build(1)
			d.pass(1)
			d.file("provenance.json", d.seal("ours", d.provenance(builder(attestations.UnhostedBuilderID))), Accepted)
		}},
		{"builder/unhosted-trusted-too-much", "A policy that trusts a build on somebody's own machine to Build L2.", "", func(d *draft) {
			d.trustKey("ours", attestations.UnhostedBuilderID, 2)
			d.usage("Build L1 at most")
			d.raw("provenance.json", d.seal("ours", d.provenance(builder(attestations.UnhostedBuilderID))))
		}},
		{"builder/key-alone", "A key and no policy: Build L2 is as far as a signature goes.", "", func(d *draft) {
			d.keysOnly(2)
			d.pass(2)
			d.good()
		}},
		{"builder/key-alone-level-3", "A key and no policy cannot carry Build L3.", roots, func(d *draft) {
			d.keysOnly(3)
			d.deny(2, short(2)...)
			d.good()
		}},
		{"builder/key-alone-unhosted", "A key and no policy, and a build on somebody's own machine.", "", func(d *draft) {
			d.keysOnly(2)
			d.deny(1, "level "+reqAuthentic, "level "+reqHosted)
			d.file("provenance.json", d.seal("ours", d.provenance(builder(attestations.UnhostedBuilderID))), Accepted)
		}},
		{"builder/nobody-trusted", "Provenance that nobody signed, where nobody is trusted and Build L1 is asked.", "", func(d *draft) {
			d.distrust()
			d.keysOnly(1)
			d.pass(1)
			d.file("provenance.json", d.provenance(), "unsigned")
		}},
		{"builder/nobody-trusted-level-2", "Nobody is trusted and Build L2 is asked: there is nothing to judge by.", "ampel pkg/verifier/implementation.go:514", func(d *draft) {
			d.distrust()
			d.keysOnly(2)
			d.usage("nothing to judge")
			d.raw("provenance.json", d.provenance())
		}},

		believed("another-source", "Built from another repository.", expectations, 0, wrong("source"), source("git+https://git.example/evil/app", object{"gitCommit": commit})),
		believed("fork", "Built from a fork of the repository.", "https://slsa.dev/spec/v1.2/threats", 0, wrong("source"), source("git+https://git.example/mallory/app", object{"gitCommit": commit})),
		believed("source-goes-on", "A repository whose name begins like the expected one.", "", 0, wrong("source"), source("git+"+repository+"-evil", object{"gitCommit": commit})),
		believed("source-by-http", "The expected repository by plain HTTP.", "", 0, wrong("source"), source("git+http://git.example/acme/app", object{"gitCommit": commit})),
		believed("source-with-query", "The expected repository with a query.", "", 0, wrong("source"), source("git+"+repository+"?x=1", object{"gitCommit": commit})),
		believed("source-with-git-suffix", "The expected repository written with .git at its end.", "", 3, nil, source("git+"+repository+".git", object{"gitCommit": commit})),
		believed("source-with-ref", "The expected repository with the ref that was built.", "", 3, nil, source("git+"+repository+"@refs/tags/v1", object{"gitCommit": commit})),
		believed("source-host-in-another-case", "The host's case makes no other repository.", "", 3, nil, source("git+https://GIT.example/acme/app", object{"gitCommit": commit})),
		believed("source-without-commit", "The expected repository, and no commit.", expectations, 0, wrong("source"), source("git+"+repository, nil)),
		believed("no-source", "The provenance names no source.", expectations, 0, wrong("source"), definition("resolvedDependencies", []any{})),
		believed("source-only-a-dependency", "The expected repository is a dependency, and not what was built.", expectations, 0, wrong("source"), definition("resolvedDependencies", []any{
			object{"name": "library", "uri": "git+" + repository, "digest": object{"gitCommit": commit}},
		})),
		believed("source-of-two-refs", "Two refs of the repository are said to be what was built.", "", 0, wrong("source"), definition("resolvedDependencies", []any{
			object{"name": attestations.DependencySource, "uri": "git+" + repository + "@refs/tags/v1", "digest": object{"gitCommit": commit}},
			object{"name": attestations.DependencySource, "uri": "git+" + repository + "@zz", "digest": object{"gitCommit": strings.Repeat("b", 40)}},
		})),
		believed("source-changed", "The built tree had files that are not the commit's.", "", 0, wrong("source"), definition("resolvedDependencies", []any{
			object{"name": attestations.DependencySource, "uri": "git+" + repository, "digest": object{"gitCommit": commit}, "annotations": object{"changedFiles": []string{"main.go"}}},
		})),

		believed("unknown-parameter", "An external parameter that nobody expected.", expectations, 0, wrong("parameter"), external("evil", "yes")),
		believed("unexpected-build-argument", "A build argument that nobody expected.", expectations, 0, wrong("parameter"), external("buildArgs", object{"BASE": "evil.example/base"})),
		{"builder/expected-parameter", "A build argument with one of the values that are expected.", expectations, func(d *draft) {
			d.more = `parameters: {"buildArgs/VERSION": ["1.0", "1.1"]}`
			d.file("provenance.json", d.seal("ours", d.provenance(external("buildArgs", object{"VERSION": "1.1"}))), Accepted)
		}},
		{"builder/unexpected-value", "A build argument with another value than those that are expected.", expectations, func(d *draft) {
			d.more = `parameters: {"buildArgs/VERSION": ["1.0", "1.1"]}`
			d.deny(0, "parameter "+reqExpect)
			d.file("provenance.json", d.seal("ours", d.provenance(external("buildArgs", object{"VERSION": "1.2"}))), Accepted)
		}},
		{"builder/build-type", "A build type other than the expected one.", expectations, func(d *draft) {
			d.more = "buildTypes: [\"" + attestations.ContainerBuildType + "\"]"
			d.deny(0, "build-type "+reqExpect)
			d.file("provenance.json", d.seal("ours", d.provenance(definition("buildType", "https://other.example/type/v1"))), Accepted)
		}},
		{"builder/build-type-no-uri", "A build type that is no URI: its parameters mean nothing to anybody.", "https://slsa.dev/spec/v1.2/build-provenance#buildType", func(d *draft) {
			d.deny(0, "level "+reqProcess)
			d.file("provenance.json", d.seal("ours", d.provenance(definition("buildType", "docker"))), Accepted)
		}},
		believed("foreign-cache", "The build took steps from a cache elsewhere, which anybody may have filled.", "https://slsa.dev/spec/v1.2/build-requirements#isolated", 0,
			[]string{"level " + reqIsolated, "parameter " + reqExpect}, external("cacheFrom", []any{object{"type": "registry", "ref": "r.example/cache"}})),
		{"builder/parameters-incomplete", "BuildKit's own word that its parameters are not complete.", "https://slsa.dev/spec/v1.2/build-requirements#provenance-unforgeable", func(d *draft) {
			d.deny(2, "level "+reqUnforgeable)
			d.file("provenance.json", d.seal("ours", d.provenance(func(p object) {
				p["runDetails"].(object)["metadata"] = object{"buildkit_completeness": object{"request": false}}
			})), Accepted)
		}},
		v02("v0.2", "SLSA provenance v0.2, complete in its parameters.", "", 3, nil, nil),
		v02("v0.2-incomplete", "SLSA provenance v0.2 that says that its parameters are not complete.", "", 2, []string{"level " + reqUnforgeable}, func(p object) {
			p["metadata"] = object{"completeness": object{"parameters": false}}
		}),

		malformed("no-builder-id", "No builder.id.", func(p object) { p["runDetails"] = object{"builder": object{}} }),
		malformed("no-build-type", "No build type.", definition("buildType", nil)),
		malformed("no-external-parameters", "No external parameters, not even none.", definition("externalParameters", nil)),
		malformed("builder-id-is-a-number", "builder.id is a number.", func(p object) { p["runDetails"] = object{"builder": object{"id": 7}} }),

		{"builder/best-of-two", "Two pieces of provenance by trusted builders: the better one decides.", "", func(d *draft) {
			d.trustKey("ours", attestations.UnhostedBuilderID, 1)
			d.good()
			d.file("unhosted.json", d.seal("ours", d.provenance(builder(attestations.UnhostedBuilderID))), Accepted)
		}},
		{"builder/not-added-up", "One piece has the level, the other the source: they are not added up.", "", func(d *draft) {
			d.c.Question.Repository = repository
			d.trustKey("ours", "https://ci.example/builder/v0", 2)
			d.deny(2, short(2)...)
			d.file("level.json", d.seal("ours", d.provenance(source("git+https://git.example/evil/app", object{"gitCommit": commit}))), Accepted)
			d.file("source.json", d.seal("ours", d.provenance(builder("https://ci.example/builder/v0"))), Accepted)
		}},
		{"builder/strangers-bad-evidence", "A stranger's broken, lying and unsigned attestations beside the good one take nothing away.", "https://slsa.dev/spec/v1.2/verifying-artifacts", func(d *draft) {
			d.c.Question.Repository = repository
			d.good()
			d.file("lying.json", d.seal("strange", d.provenance(source("git+https://git.example/evil/app", nil))), "signature")
			d.file("broken.json", []byte("{"), "unreadable")
			d.file("unsigned.json", d.provenance(builder("https://evil.example")), "unsigned")
			d.file("other.json", d.seal("strange", d.about("https://evil.example/predicate", object{"verdict": "bad"})), "not-needed")
		}},
		{"builder/strangers-good-evidence", "A stranger's perfect attestation beside one that is not enough adds nothing.", "", func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.deny(2, short(2)...)
			d.good()
			d.file("perfect.json", d.seal("strange", d.provenance(builder("https://evil.example/builder"))), "signature")
		}},
		{"builder/narrowed", "The policy trusts the signer, and the caller asked for another key as well.", "", func(d *draft) {
			d.nothing()
			d.c.Question.Flags = []string{"--key", d.key("second")}
			d.file("provenance.json", d.seal("ours", d.provenance()), "no-key")
		}},
		{"builder/asked-for-more", "The policy declares Build L2, and the caller asks for L3.", "", func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.build(2)
			d.c.Question.Flags = []string{"--level", "3"}
			d.deny(2, short(2)...)
			d.good()
		}},
		{"builder/asked-for-less", "The policy declares Build L3, and the caller asks for L1: that lowers nothing.", "", func(d *draft) {
			d.c.Trust.Builders[0].MaxLevel = 2
			d.c.Question.Flags = []string{"--level", "1"}
			d.deny(2, short(2)...)
			d.good()
		}},
	}
}
