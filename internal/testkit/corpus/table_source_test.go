package corpus

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	twoParty    = verify.PropertyTwoParty
	reqTwoParty = verify.RowTwoParty
	mainBranch  = "refs/heads/main"
)

// revision is a statement about a commit of the repository.
func revision(sha, kind string, p object, refs ...string) []byte {
	s := object{"uri": "git+" + repository, "digest": object{"gitCommit": sha}}
	if refs != nil {
		s["annotations"] = object{"sourceRefs": refs}
	}
	return compact(struct {
		Type          string `json:"_type"`
		Subject       any    `json:"subject"`
		PredicateType string `json:"predicateType"`
		Predicate     any    `json:"predicate"`
	}{"https://in-toto.io/Statement/v1", []any{s}, kind, p})
}

// sourceSummary is a verification summary of the repository's revision.
func sourceSummary(levels ...string) object {
	p := summary(levels...)
	p["resourceUri"] = "git+" + repository
	return p
}

// ofSource asks for a Source level, of an image with good provenance, and trusts
// the verifier.
func (d *draft) ofSource(level int) {
	d.summarised()
	d.c.Question.Summary = nil
	d.c.Question.Level.Source = level
	d.c.Expect.Reached.Source = level
	d.good()
}

// controls is source provenance of source-tool's, with what was in force.
func controls(since time.Time, names ...string) object {
	list := []any{}
	for _, n := range names {
		list = append(list, object{"name": n, "since": since.Format(time.RFC3339)})
	}
	return object{"repo_uri": repository, "activity_type": "pr_merge", "created_on": minted().Format(time.RFC3339), "actor": "carol", "branch": mainBranch, "controls": list}
}

// system trusts "second" about the source of the repository.
func (d *draft) system(level int) {
	d.c.Trust.Sources = []SourceSystem{{Repository: "https://git.example/acme/**", Key: d.key("second"), MaxLevel: level}}
}

// reviewers trusts two people, and asks for two-party review.
func (d *draft) reviewers() {
	d.c.Trust.Reviewers = []Reviewer{
		{Name: "ann", Key: d.key("reviewer"), Aliases: []string{"ann@acme.example"}},
		{Name: "bob", Key: d.key("second")},
	}
	d.want(twoParty)
	d.c.Expect.Properties = []string{twoParty}
	d.good()
}

func review(changes ...func(object)) object {
	p := object{"repository": repository, "commit": commit, "authors": []string{"carol@acme.example"}, "decision": "approved", "reviewedOn": minted().Format(time.RFC3339)}
	for _, change := range changes {
		change(p)
	}
	return p
}

func (d *draft) reviewed(file, by, code string, changes ...func(object)) {
	d.file(file, d.seal(by, revision(commit, attestations.ReviewV1, review(changes...))), code)
}

// unreviewed expects a denial for want of two-party review.
func (d *draft) unreviewed() { d.missing(reqTwoParty) }

func sourceCases() []entry {
	const spec = "https://slsa.dev/spec/v1.2/verifying-source"
	const party = "https://slsa.dev/spec/v1.2/source-requirements#two-party-review"
	const tool = "https://github.com/slsa-framework/source-tool"
	const other = "1111111111111111111111111111111111111111"
	all := []string{"CONTINUITY_ENFORCED", "PROVENANCE_AVAILABLE", "TAG_HYGIENE"}
	vsa := func(name, title, stands string, level int, st []byte, code string, expect func(*draft)) entry {
		return entry{"source/" + name, title, stands, func(d *draft) {
			d.ofSource(level)
			if expect != nil {
				expect(d)
			}
			d.file("source.json", d.dsse("verifier", st), code)
		}}
	}
	levels := func(reached int, requirements ...string) func(*draft) {
		return func(d *draft) {
			var reasons []string
			for _, r := range requirements {
				reasons = append(reasons, "level "+r)
			}
			d.deny(3, reasons...)
			d.c.Expect.Reached.Source = reached
		}
	}
	// What has one cause is said once.
	none := levels(0, verify.RowSourceSystem)
	// Nothing that counts says that it was on the branch: that is not as expected
	// of the build either.
	offBranch := func(d *draft) { d.deny(0, "source "+reqExpect, "level "+verify.RowSourceSystem) }
	reviewedByTwo := func(d *draft) { d.c.Expect.Properties = []string{twoParty} }
	told := func(name, title, stands, code string, level int, p object, expect func(*draft)) entry {
		return entry{"source/" + name, title, stands, func(d *draft) {
			d.ofSource(level)
			d.system(3)
			if expect != nil {
				expect(d)
			}
			d.file("source.json", d.seal("second", revision(commit, attestations.SourceProvenanceV1, p)), code)
		}}
	}
	reviews := func(name, title, stands string, make func(*draft)) entry {
		return entry{"source/" + name, title, stands, func(d *draft) {
			d.reviewers()
			make(d)
		}}
	}
	// ladder asks for level 4 of SLSA v0.1, beyond what the policy declares.
	ladder := func(name, title string, reasons []string, make func(*draft), properties ...string) entry {
		return entry{"source/" + name, title, "https://slsa.dev/spec/v0.1/levels", func(d *draft) {
			d.reviewers()
			d.c.Question.Evidence, d.c.Expect.Evidence = nil, nil
			d.policy = strings.Replace(d.writePolicy(), "    properties: ["+twoParty+"]\n", "", 1)
			d.c.Question.Flags = []string{"--level", "4"}
			d.want(complete, hermetic, twoParty)
			if reasons != nil {
				d.deny(3, reasons...)
			}
			d.c.Expect.Properties = properties
			make(d)
		}}
	}
	onMain := func(e entry) entry {
		inner := e.make
		e.make = func(d *draft) {
			d.c.Question.Repository, d.c.Question.Ref = repository, mainBranch
			inner(d)
		}
		return e
	}
	ofVSA := func(p object, refs ...string) []byte { return revision(commit, attestations.VSAV1, p, refs...) }
	failed := sourceSummary("FAILED")
	failed["verificationResult"] = "FAILED"
	elsewhere := sourceSummary("SLSA_SOURCE_LEVEL_3")
	elsewhere["resourceUri"] = "git+https://git.example/mallory/app"
	foreign := controls(minted().AddDate(0, -1, 0), all...)
	enforced := controls(minted().AddDate(0, -1, 0), append(all, "REVIEW_ENFORCED")...)
	foreign["repo_uri"] = "https://git.example/mallory/app"
	return []entry{
		vsa("summary", "A verification summary of the very revision that the provenance names, at Source L3.", spec, 3, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")), Accepted, nil),
		{"source/summary-attached-unread", "A stranger attached the summary, too, as of a type that nobody needs.", "", func(d *draft) {
			d.ofSource(3)
			raw := d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")))
			d.file("source.json", raw, Accepted)
			d.refer(d.top, raw, func(m *manifest) { m.Layers[0].Annotations = map[string]string{"predicateType": "https://x.example/y"} })
			d.seen(raw, "", "not-needed")
		}},
		vsa("commits-of-a-stranger", "A builder that signs for anybody says of the image that it is of seventeen commits of a stranger's.", "", 3, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")), Accepted, func(d *draft) {
			d.c.Question.Repository = repository
			d.trustKey("second", secondID, 2)
			for n := range 17 {
				d.file(fmt.Sprintf("stranger-%d.json", n), d.seal("second", d.provenance(builder(secondID),
					source("git+https://git.example/mallory/app", object{"gitCommit": fmt.Sprintf("%040x", n+1)}))), Accepted)
			}
		}),
		vsa("summary-level-1", "The same at Source L1, where that is asked.", spec, 1, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_1")), Accepted, nil),
		vsa("summary-level-4", "The same at Source L4, which is two-party review for all that goes into a branch.", spec, 4, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_4")), Accepted, reviewedByTwo),
		vsa("summary-with-property", "The same with a verified property.", spec, 2, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_2", "SLSA_SOURCE_TWO_PARTY_REVIEWED")), Accepted, reviewedByTwo),
		onMain(vsa("on-the-branch", "The summary says that the revision was on the branch that is expected.", spec, 3, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"), "refs/heads/old", mainBranch), Accepted, nil)),
		onMain(vsa("on-another-branch", "The summary says that the revision was on another branch than is expected.", spec, 1, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"), "refs/heads/mainline"), "ref", offBranch)),
		onMain(vsa("on-no-branch", "The summary does not say where the revision was, and a branch is expected.", spec, 1, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")), "ref", offBranch)),
		vsa("lower-level", "A summary at Source L2, where L3 is asked.", spec, 3, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_2")), Accepted, levels(2, verify.RowSourceControls)),
		vsa("level-zero", "A summary at a Source level that does not exist.", spec, 1, ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_0")), "predicate", none),
		vsa("build-level-is-no-source-level", "A summary of the revision that has a Build level only.", spec, 1, ofVSA(sourceSummary("SLSA_BUILD_LEVEL_3")), Accepted, none),
		vsa("another-repository", "A summary of the same commit in a fork.", spec, 1, ofVSA(elsewhere), "resource", none),
		vsa("failed", "A summary that says FAILED.", spec, 1, ofVSA(failed), "failed", none),
		{"source/failed-since", "A summary of the revision, and a newer one by the same verifier that says FAILED.", "", func(d *draft) {
			d.ofSource(1)
			none(d)
			d.file("since.json", d.dsse("verifier", ofVSA(at(failed, time.Hour))), "failed")
			d.file("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), "failed")
		}},
		{"source/bundle", "The summary is in a Sigstore bundle.", spec, func(d *draft) {
			d.ofSource(3)
			d.file("source.json", d.seal("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), Accepted)
		}},
		{"source/index", "An index whose parts were all built from one revision, of which there is a summary.", spec, func(d *draft) {
			d.index()
			d.ofSource(3)
			d.c.Question.Evidence, d.c.Expect.Evidence = nil, nil
			delete(d.files, "evidence/provenance.json")
			d.each("", amd64, arm64)
			d.file("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), Accepted, "", amd64, arm64)
		}},
		{"source/strangers-and-good", "A stranger's summary that says FAILED, and a good one.", spec, func(d *draft) {
			d.ofSource(3)
			d.file("failed.json", d.dsse("strange", ofVSA(failed)), "signature")
			d.file("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), Accepted)
		}},
		{"source/stranger", "A summary of the revision by a stranger.", spec, func(d *draft) {
			d.ofSource(1)
			none(d)
			d.file("source.json", d.dsse("strange", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), "signature")
		}},
		{"source/verifier-capped", "A summary at Source L3 by a verifier that is trusted to L1.", spec, func(d *draft) {
			d.ofSource(2)
			d.c.Trust.Verifiers[0].Levels.Source = 1
			levels(1, verify.RowSourceAccess)(d)
			d.file("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))), Accepted)
		}},
		{"source/another-commit", "A summary of another commit than the one that was built.", spec, func(d *draft) {
			d.ofSource(1)
			none(d)
			d.raw("source.json", d.dsse("verifier", revision(other, attestations.VSAV1, sourceSummary("SLSA_SOURCE_LEVEL_3"))))
		}},
		{"source/no-evidence", "A Source level is asked for, and nothing is said of the source.", spec, func(d *draft) {
			d.ofSource(1)
			none(d)
		}},
		{"source/changed-tree", "The built tree had files that are not the commit's: what is said of the commit says nothing of the image.", spec, func(d *draft) {
			d.ofSource(1)
			d.c.Question.Evidence, d.c.Expect.Evidence = nil, nil
			levels(0, verify.RowSourceSystem, verify.RowSourceRevision, verify.RowSourceDiff)(d)
			d.file("provenance.json", d.seal("ours", d.provenance(definition("resolvedDependencies", []any{
				object{"name": attestations.DependencySource, "uri": "git+" + repository, "digest": object{"gitCommit": commit}, "annotations": object{"changedFiles": []string{"main.go"}}},
			}))), Accepted)
			d.raw("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))))
		}},
		{"source/git-notes", "The summary is a note of the commit, in a git repository.", "slsa-framework/source-tool git notes", func(d *draft) {
			d.ofSource(3)
			raw := d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")))
			d.notes(commit, raw)
			d.seen(raw, "", Accepted)
		}},
		{"source/git-notes-of-another-commit", "The note is of another commit.", "slsa-framework/source-tool git notes", func(d *draft) {
			d.ofSource(1)
			none(d)
			d.notes(other, d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3"))))
		}},
		{"source/git-notes-lines", "The note has several bundles, a line each, one of them a stranger's.", "slsa-framework/source-tool git notes", func(d *draft) {
			d.ofSource(3)
			lying, good := d.dsse("strange", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_4"))), d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_3")))
			d.notes(commit, append(append(lying, '\n'), good...))
			d.seen(lying, "", "signature")
			d.seen(good, "", Accepted)
		}},

		told("provenance", "Source provenance by a system that is trusted about this repository, with all controls of Source L3.", tool, Accepted, 3, controls(minted().AddDate(0, -1, 0), all...), nil),
		told("provenance-level-1", "Source provenance without any control: Source L1.", tool, Accepted, 1, controls(minted()), nil),
		told("provenance-of-a-push", "Source provenance of a push, under the names of its first draft.", tool, Accepted, 2, object{
			"repoUri": repository, "activityType": "push", "createdOn": minted().Format(time.RFC3339), "actor": "carol", "branch": mainBranch,
			"controls": []any{object{"name": "CONTINUITY_ENFORCED", "since": minted().AddDate(0, -1, 0).Format(time.RFC3339)}, object{"name": "TAG_HYGIENE", "since": minted().AddDate(0, -1, 0).Format(time.RFC3339)}},
		}, nil),
		told("control-missing", "A control that Source L2 takes is missing.", tool, Accepted, 2, controls(minted().AddDate(0, -1, 0), "PROVENANCE_AVAILABLE", "TAG_HYGIENE"),
			levels(1, verify.RowSourceHistory, verify.RowSourceContinuity)),
		told("control-came-later", "The controls came into force after the revision.", tool, Accepted, 2, controls(minted().Add(time.Hour), all...),
			levels(1, verify.RowSourceAccess, verify.RowSourceHistory, verify.RowSourceContinuity)),
		told("provenance-of-another-repository", "Source provenance of the same commit in a fork.", tool, "resource", 1, foreign, none),
		{"source/system-not-trusted", "Source provenance by a key that is trusted about other repositories.", tool, func(d *draft) {
			d.ofSource(1)
			d.system(3)
			d.c.Trust.Sources[0].Repository = "https://git.example/other/**"
			none(d)
			d.file("source.json", d.seal("second", revision(commit, attestations.SourceProvenanceV1, controls(minted().AddDate(0, -1, 0), all...))), "role")
		}},
		{"source/provenance-by-builder", "Source provenance by the builder, whom nobody trusts about source.", tool, func(d *draft) {
			d.ofSource(1)
			d.system(3)
			none(d)
			d.file("source.json", d.seal("ours", revision(commit, attestations.SourceProvenanceV1, controls(minted().AddDate(0, -1, 0), all...))), "role")
		}},
		{"source/system-capped", "Source provenance with all controls of L3, by a system that is trusted to L1.", tool, func(d *draft) {
			d.ofSource(2)
			d.system(1)
			levels(1, verify.RowSourceAccess)(d)
			d.file("source.json", d.seal("second", revision(commit, attestations.SourceProvenanceV1, controls(minted().AddDate(0, -1, 0), all...))), Accepted)
		}},
		{"source/system-not-believed-about-reviews", "Source provenance says that two people reviewed, by a system that is trusted to L3 and not about that.", tool, func(d *draft) {
			d.ofSource(3)
			d.system(3)
			d.want(twoParty)
			d.unreviewed()
			d.c.Expect.Reached.Source = 3
			d.file("source.json", d.seal("second", revision(commit, attestations.SourceProvenanceV1, enforced)), Accepted)
		}},
		{"source/system-believed-about-reviews", "The same, by a system whose word counts about that at any level.", tool, func(d *draft) {
			d.ofSource(3)
			d.system(3)
			d.c.Trust.Sources[0].Properties = []string{twoParty}
			d.want(twoParty)
			reviewedByTwo(d)
			d.file("source.json", d.seal("second", revision(commit, attestations.SourceProvenanceV1, enforced)), Accepted)
		}},

		reviews("two-reviews", "Two people who may review, neither of them the author, approved the revision.", party, func(d *draft) {
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted)
		}),
		reviews("reviews-of-the-image", "The same reviews, as statements about the image that name the revision.", party, func(d *draft) {
			d.file("ann.json", d.seal("reviewer", d.about(attestations.ReviewV1, review())), Accepted)
			d.file("bob.json", d.seal("second", d.about(attestations.ReviewV1, review())), Accepted)
		}),
		reviews("one-review", "One person approved.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
		}),
		reviews("one-person-twice", "One person approved twice.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("again.json", "reviewer", Accepted, func(p object) { p["comment"] = "still good" })
		}),
		reviews("author-reviews", "One of the two is the author, under an alias.", party, func(d *draft) {
			d.unreviewed()
			authors := func(p object) { p["authors"] = []string{"Ann@ACME.example"} }
			d.reviewed("ann.json", "reviewer", Accepted, authors)
			d.reviewed("bob.json", "second", Accepted, authors)
		}),
		reviews("author-said-by-one-only", "One of the reviews names another author than the other does: the reviewer is one of them.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted, func(p object) { p["authors"] = []string{"ann"} })
		}),
		reviews("author-not-known", "Nobody says who the author is.", party, func(d *draft) {
			d.unreviewed()
			nobody := func(p object) { delete(p, "authors") }
			d.reviewed("ann.json", "reviewer", Accepted, nobody)
			d.reviewed("bob.json", "second", Accepted, nobody)
		}),
		reviews("one-rejects", "One approved, and one rejected it.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted, func(p object) { p["decision"] = "rejected" })
		}),
		reviews("rejected-and-then-approved", "One rejected it, and approved it the day after.", party, func(d *draft) {
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted, func(p object) { p["decision"] = "rejected" })
			d.reviewed("later.json", "second", Accepted, func(p object) { p["reviewedOn"] = minted().AddDate(0, 0, 1).Format(time.RFC3339) })
		}),
		reviews("a-part-only", "One of the two looked at a part of it only.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted, func(p object) { p["scope"] = []string{"docs/**"} })
		}),
		reviews("review-to-come", "One of the two reviews is of a day to come.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted, func(p object) { p["reviewedOn"] = usual().AddDate(0, 1, 0).Format(time.RFC3339) })
		}),
		reviews("stranger-reviews", "The second review is a stranger's.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "strange", "signature")
		}),
		reviews("builder-reviews", "The second review is by the key of the builder, who is no reviewer.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "ours", "role")
		}),
		reviews("review-of-another-commit", "The second review says another commit than its subject.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", "subject", func(p object) { p["commit"] = other })
		}),
		reviews("review-of-another-repository", "The second review is of the same commit in a fork.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", "resource", func(p object) { p["repository"] = "https://git.example/mallory/app" })
		}),
		reviews("review-with-more", "The second review has a field that its schema does not have.", party, func(d *draft) {
			d.unreviewed()
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", "predicate", func(p object) { p["except"] = "all of it" })
		}),
		reviews("summary-instead-of-reviews", "No reviews, and a summary at Source L4 by a trusted verifier.", party, func(d *draft) {
			d.c.Trust.Verifiers = []VSAVerifier{{ID: verifierID, Key: d.key("verifier"), Levels: Levels{Source: 4}, Properties: []string{twoParty}}}
			d.c.Expect.Reached.Source = 4
			d.file("source.json", d.dsse("verifier", ofVSA(sourceSummary("SLSA_SOURCE_LEVEL_4"))), Accepted)
		}),
		ladder("level-4", "All that level 4 of SLSA v0.1 asks for: Build L3, hermetic, complete inputs, and two reviews.", nil, func(d *draft) {
			d.recorded("ours", record(), Accepted)
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted)
		}, hermetic, complete, twoParty),
		ladder("level-4-without-review", "All that level 4 of SLSA v0.1 asks for, but the second review.", []string{"level " + reqTwoParty}, func(d *draft) {
			d.recorded("ours", record(), Accepted)
			d.reviewed("ann.json", "reviewer", Accepted)
		}, hermetic, complete),
		ladder("level-4-not-hermetic", "All that level 4 of SLSA v0.1 asks for, but that the build was held to what was decided before.", []string{"level " + reqHermetic}, func(d *draft) {
			in := record()
			in["mode"], in["hermetic"] = "record", false
			delete(in, "lock")
			d.recorded("ours", in, Accepted)
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted)
		}, complete, twoParty),
		reviews("reviews-are-no-level", "Two reviews, where a Source level is asked: they do not show that the system demands them.", party, func(d *draft) {
			d.c.Question.Properties = nil
			d.c.Question.Level.Source = 1
			none(d)
			d.c.Expect.Properties = []string{twoParty}
			d.reviewed("ann.json", "reviewer", Accepted)
			d.reviewed("bob.json", "second", Accepted)
		}),
	}
}

// notes puts a note of a commit into a git repository beside the image.
// https://git-scm.com/docs/git-notes
func (d *draft) notes(sha string, note []byte) {
	const dir = "evidence/repository.git/"
	object := func(kind string, content []byte) []byte {
		raw := append(fmt.Appendf(nil, "%s %d\x00", kind, len(content)), content...)
		sum := sha1.Sum(raw)
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		w.Write(raw)
		must(d, w.Close())
		name := hex.EncodeToString(sum[:])
		d.files[dir+"objects/"+name[:2]+"/"+name[2:]] = packed.Bytes()
		return sum[:]
	}
	blob := object("blob", note)
	tree := object("tree", append(fmt.Appendf(nil, "100644 %s\x00", sha), blob...))
	who := fmt.Sprintf("ci <ci@acme.example> %d +0000", minted().Unix())
	note = fmt.Appendf(nil, "tree %x\nauthor %s\ncommitter %s\n\nNotes\n", tree, who, who)
	head := object("commit", note)
	d.files[dir+"refs/notes/commits"] = fmt.Appendf(nil, "%x\n", head)
	d.files[dir+"refs/heads/main"] = fmt.Appendf(nil, "%x\n", head)
	d.files[dir+"HEAD"] = []byte("ref: refs/heads/main\n")
	d.files[dir+"config"] = []byte("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
	d.c.Question.Evidence = append(d.c.Question.Evidence, "git:evidence/repository.git")
}
