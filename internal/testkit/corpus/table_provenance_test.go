package corpus

import (
	"encoding/base64"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// The builders of the forms.
const (
	workflowID  = "https://github.com/acme/app/.github/workflows/release.yml@refs/tags/v1"
	generatorID = "https://github.com/slsa-framework/slsa-github-generator/.github/workflows/generator_container_slsa3.yml@refs/tags/v2.1.0"
	gcbID       = "https://cloudbuild.googleapis.com/GoogleHostedWorker"
	gitlabID    = "https://gitlab.com/acme/app/-/runners/1"
	tektonID    = "https://tekton.dev/chains/v2"
	witnessID   = "https://witness.dev/witness-default-builder@v0.1"
	githubApp   = "https://github.com/acme/app"
	githubToken = "https://token.actions.githubusercontent.com"
)

// v1 is a predicate of SLSA provenance v1.
func v1(id, buildType string, external object, deps ...any) object {
	return object{
		"buildDefinition": object{"buildType": buildType, "externalParameters": external, "resolvedDependencies": deps},
		"runDetails":      object{"builder": object{"id": id}, "metadata": object{"invocationId": "run-1"}},
	}
}

func dep(uri, algorithm string) object {
	return object{"uri": uri, "digest": object{algorithm: commit}}
}

func workflow(repository string) object {
	p := v1(workflowID, "https://actions.github.io/buildtypes/workflow/v1",
		object{"workflow": object{"ref": "refs/tags/v1", "repository": repository, "path": ".github/workflows/release.yml"}},
		dep("git+"+repository+"@refs/tags/v1", "gitCommit"))
	p["buildDefinition"].(object)["internalParameters"] = object{"github": object{"event_name": "push", "runner_environment": "github-hosted"}}
	return p
}

func generator() object {
	return object{
		"builder": object{"id": generatorID}, "buildType": "https://github.com/slsa-framework/slsa-github-generator/container@v1",
		"invocation": object{"configSource": object{"uri": "git+" + githubApp + "@refs/tags/v1", "digest": object{"sha1": commit}, "entryPoint": ".github/workflows/release.yml"},
			"parameters": object{}, "environment": object{"github_event_name": "push"}},
		"metadata":  object{"buildInvocationID": "1-1", "completeness": object{"parameters": true, "environment": false, "materials": false}},
		"materials": []any{dep("git+"+githubApp+"@refs/tags/v1", "sha1")},
	}
}

func cloudBuild() object {
	return v1(gcbID, "https://cloud.google.com/build/gcb-buildtypes/google-worker/v1",
		object{"buildConfigSource": object{"path": "cloudbuild.yaml", "ref": "refs/tags/v1", "repository": "git+" + githubApp}},
		dep("git+"+githubApp+"@refs/tags/v1", "gitCommit"))
}

// recipe is SLSA provenance v0.1 as Cloud Build wrote it.
func recipe() object {
	return object{
		"builder": object{"id": gcbID + "@v0.3"}, "materials": []any{dep("git+"+githubApp, "sha1")},
		"metadata": object{"buildInvocationId": "b-1", "buildStartedOn": "2026-06-01T11:00:00Z"},
		"recipe": object{"type": "https://cloudbuild.googleapis.com/CloudBuildYaml@v0.1", "entryPoint": "cloudbuild.yaml", "definedInMaterial": "0",
			"arguments": object{"@type": "type.googleapis.com/google.devtools.cloudbuild.v1.Build", "id": "b-1", "substitutions": object{"TAG_NAME": "v1"}}},
	}
}

func gitlab() object {
	return v1(gitlabID, "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/v17/PROVENANCE.md",
		object{"entryPoint": "job", "source": "https://gitlab.com/acme/app"}, object{"uri": "https://gitlab.com/acme/app", "digest": object{"sha256": commit}})
}

func tekton() object {
	return v1(tektonID, "https://tekton.dev/chains/v2/slsa-tekton", object{"runSpec": object{}},
		object{"name": "inputs/result", "uri": "git+" + githubApp, "digest": object{"sha1": commit}})
}

func witnessPredicate() object {
	return object{
		"build_definition": object{"build_type": "https://witness.dev/slsa-build@v0.1", "external_parameters": object{"command": "make"},
			"resolved_dependencies": []any{object{"name": githubApp, "digest": object{"sha1": commit}}}},
		"run_details": object{"builder": object{"id": witnessID}, "metadata": object{"invocation_id": "run-1", "started_on": object{"seconds": 1}}},
	}
}

func collection(provenance ...any) object {
	list := []any{object{"type": "https://witness.dev/attestations/git/v0.1", "attestation": object{}}}
	for _, p := range provenance {
		list = append(list, object{"type": "https://slsa.dev/provenance/v1.0", "attestation": p})
	}
	return object{"name": "build", "attestations": list}
}

// described is what Google Cloud says of an image, with signed envelopes.
func described(envelopes ...any) []byte {
	list := []any{}
	for _, e := range envelopes {
		list = append(list, object{"kind": "BUILD", "build": object{"intotoStatement": object{"text": "nobody signed this"}}, "envelope": e})
	}
	return compact(object{"image_summary": object{"digest": "sha256:0"}, "provenance_summary": object{"provenance": list}})
}

func (d *draft) gcbEnvelope(by string, st []byte) object {
	encoded := base64.URLEncoding.EncodeToString
	return object{"payload": encoded(st), "payloadType": payloadType, "signatures": []any{object{"keyid": "projects/verified-builder/x", "sig": encoded(d.people[by].sign(d, payloadType, st))}}}
}

func provenanceCases() []entry {
	// of is provenance of one platform, by a builder that is trusted with the
	// key, from the source that is expected.
	of := func(name, title, stands, id, kind, source string, p object, parameters string) entry {
		return entry{"provenance/" + name, title, stands, func(d *draft) {
			d.c.Trust.Builders[0].ID = id
			d.c.Question.Repository = source
			d.more = parameters
			d.file("provenance.json", d.seal("ours", d.about(kind, p)), Accepted)
		}}
	}
	refused := func(name, title, stands, id, kind, code string, p object) entry {
		return entry{"provenance/" + name, title, stands, func(d *draft) {
			d.c.Trust.Builders[0].ID = id
			d.nothing()
			d.file("provenance.json", d.seal("ours", d.about(kind, p)), code)
		}}
	}
	elsewhere := func(name, title, stands, id, kind, source string, p object, parameters string) entry {
		e := of(name, title, stands, id, kind, source, p, parameters)
		inner := e.make
		e.make = func(d *draft) {
			inner(d)
			d.deny(0, "source "+reqExpect)
		}
		return e
	}
	const v1Type, v02Type, v01Type = attestations.ProvenanceV1, attestations.ProvenanceV02, attestations.ProvenanceV01
	const workflowParameters = `parameters: {"workflow/path": [.github/workflows/release.yml], "workflow/ref": any}`
	const buildtypes = "https://actions.github.io/buildtypes/workflow/v1"
	// run is provenance of GitHub's, under a certificate that says of the run
	// what GitHub vouches for.
	run := func(name, title string, make func(*draft), p object, changes map[int]string) entry {
		return entry{"provenance/" + name, title, buildtypes, func(d *draft) {
			d.trustIdentity(Identity{Issuer: githubToken, SAN: workflowID}, d.oursRoot)
			d.c.Trust.Builders[0].ID, d.c.Trust.Builders[0].MaxLevel = workflowID, 2
			d.build(2)
			d.pass(2)
			d.c.Question.Repository = githubApp
			said := map[int]string{11: "github-hosted", 12: githubApp, 13: commit, 14: "refs/tags/v1", 18: workflowID, 20: "push", 21: githubApp + "/actions/runs/1"}
			for oid, value := range changes {
				said[oid] = value
				if value == "" {
					delete(said, oid)
				}
			}
			d.policy = strings.Replace(d.writePolicy(), "- id: "+workflowID+"\n      signer: {issuer: \""+githubToken+"\", san: \""+workflowID+"\", root: \"trusted_root.json\"}\n      maxLevel: 2",
				"- use: github-attestations\n      san: "+workflowID+"\n      root: trusted_root.json", 1)
			if !strings.Contains(d.policy, "use:") {
				d.Fatal("the policy does not use the library")
			}
			code := Accepted
			if make != nil {
				make(d)
			}
			if d.c.Expect.Says != "" {
				code, d.c.Expect.Says = d.c.Expect.Says, ""
			}
			d.file("provenance.json", d.certified(d.world.ours, d.about(v1Type, p), san(workflowID), issuer(githubToken), func(o *virtual.Options) { o.Run = said }), code)
		}}
	}
	differs := func(d *draft) { d.deny(0, "contradiction "+reqExpect) }
	return []entry{
		of("github", "GitHub's own attestation of a workflow's run.", buildtypes, workflowID, v1Type, githubApp, workflow(githubApp), workflowParameters),
		of("github-generator", "slsa-github-generator's provenance v0.2.", "https://github.com/slsa-framework/slsa-github-generator", generatorID, v02Type, githubApp, generator(), "parameters: {configSource/entryPoint: any}"),
		of("cloud-build", "Google Cloud Build's provenance v1.", "https://cloud.google.com/build/gcb-buildtypes/google-worker/v1", gcbID, v1Type, githubApp, cloudBuild(), "parameters: {\"buildConfigSource/path\": [cloudbuild.yaml], \"buildConfigSource/ref\": any}"),
		of("gitlab", "The provenance of GitLab's runner.", "slsa-verifier#734", gitlabID, v1Type, "https://gitlab.com/acme/app", gitlab(), "parameters: {entryPoint: any}"),
		of("tekton", "Tekton Chains' provenance v1.", "https://tekton.dev/docs/chains/slsa-provenance/", tektonID, v1Type, githubApp, tekton(), "parameters: {runSpec: any}"),
		of("witness", "Witness' provenance, under its own predicate type.", "go-witness#595", witnessID, attestations.WitnessProvenance, githubApp, witnessPredicate(), "parameters: {command: any}"),
		of("witness-collection", "Witness' collection, with provenance in it.", "go-witness#595", witnessID, attestations.WitnessCollection, githubApp, collection(witnessPredicate()), "parameters: {command: any}"),
		elsewhere("github-from-another-source", "GitHub's attestation of a run in a fork.", buildtypes, workflowID, v1Type, githubApp, workflow("https://github.com/mallory/app"), workflowParameters),
		elsewhere("tekton-two-sources", "Tekton Chains names two inputs that could be the source, and they differ.", "", tektonID, v1Type, githubApp, v1(tektonID, "https://tekton.dev/chains/v2/slsa-tekton", object{"runSpec": object{}},
			object{"name": "inputs/result", "uri": "git+" + githubApp, "digest": object{"sha1": commit}}, object{"name": "inputs/result", "uri": "git+https://github.com/acme/lib", "digest": object{"sha1": commit}}), "parameters: {runSpec: any}"),
		refused("witness-two-in-a-collection", "A collection with provenance twice, of which one is meant.", "in-toto/attestation#74", witnessID, attestations.WitnessCollection, "predicate", collection(witnessPredicate(), witnessPredicate())),
		refused("witness-none-in-a-collection", "A collection without provenance.", "", witnessID, attestations.WitnessCollection, "predicate", collection()),
		refused("v0.1-without-recipe", "SLSA provenance v0.1 without its recipe.", "", gcbID+"@v0.3", v01Type, "predicate", old()),

		{"provenance/cloud-build-v0.1", "SLSA provenance v0.1, in what Google Cloud says of the image.", "slsa-verifier GCB", func(d *draft) {
			d.c.Trust.Builders[0].ID = gcbID + "@v0.3"
			d.c.Question.Repository = githubApp
			d.more = "parameters: {entryPoint: any, arguments: any}"
			d.gcb("ours", d.about(v01Type, recipe()), Accepted)
		}},
		{"provenance/cloud-build-stranger", "The envelope in what Google Cloud says is signed by a stranger.", "slsa-verifier GCB", func(d *draft) {
			d.c.Trust.Builders[0].ID = gcbID + "@v0.3"
			d.nothing()
			d.gcb("strange", d.about(v01Type, recipe()), "signature")
		}},
		{"provenance/cloud-build-another-image", "The envelope in what Google Cloud says is of another image.", "slsa-verifier GCB", func(d *draft) {
			d.c.Trust.Builders[0].ID = gcbID + "@v0.3"
			d.nothing()
			d.gcb("ours", statement(d.other.top.Digest, v01Type, recipe()), "subject")
		}},

		run("github-run", "GitHub's attestation, and a certificate that says the same of the run.", nil, workflow(githubApp), nil),
		run("github-run-of-a-fork", "The certificate says that the run was in a fork; the provenance says that it was not.", differs, workflow(githubApp), map[int]string{12: "https://github.com/mallory/app"}),
		run("github-run-of-another-commit", "The certificate says another commit than the provenance.", differs, workflow(githubApp), map[int]string{13: strings.Repeat("1", 40)}),
		run("github-run-at-another-ref", "The certificate says another ref than the provenance.", differs, workflow(githubApp), map[int]string{14: "refs/heads/main"}),
		run("github-pull-request", "The run was started by a pull request.", func(d *draft) {
			d.nothing()
			d.c.Expect.Says = "builder"
		}, workflow(githubApp), map[int]string{20: "pull_request"}),
		run("github-self-hosted", "The run was on somebody's own runner, which carries Build L1.", func(d *draft) {
			d.deny(0, "contradiction "+reqExpect, "level "+reqAuthentic, "level "+reqHosted)
		}, workflow(githubApp), map[int]string{11: "self-hosted"}),
		run("github-runner-not-said", "The certificate does not say on whose runner it was.", func(d *draft) {
			d.deny(1, "level "+reqAuthentic, "level "+reqHosted)
		}, workflow(githubApp), map[int]string{11: ""}),
	}
}

// gcb adds what Google Cloud says of an image, with one envelope.
func (d *draft) gcb(by string, st []byte, code string) {
	d.raw("provenance.json", described(d.gcbEnvelope(by, st)))
	d.seen(nil, "evidence/provenance.json /provenance_summary/provenance/0/envelope/signatures/0", code)
}
