package gate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/verify"
)

const (
	head = "1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a"
	repo = "https://git.example.org/acme/app"
	vid  = "https://v.example/v"
)

// vsa is a summary by vid for a place.
func vsa(place string, levels ...string) string {
	list, _ := json.Marshal(append([]string{}, levels...))
	return fmt.Sprintf(`{"verifier":{"id":%q},"timeVerified":%q,"resourceUri":%q,"policy":{"uri":"https://v.example/policy"},"verificationResult":"PASSED","verifiedLevels":%s}`,
		vid, time.Now().UTC().Add(-time.Hour).Format(time.RFC3339), place, list)
}

// aware is a policy that trusts ours as builder, verifier and source control
// system; strange, ann and bob as reviewers, as far as they are there.
func (w *world) aware(images string, people ...person) *policy.Policy {
	w.Helper()
	text := "apiVersion: waxseal.dev/v1\nkind: Policy\ntrust:\n  builders: [" + trusted(2) + "]\n" +
		"  verifiers: [{id: " + vid + ", signer: {key: verifier.pub}, levels: {build: 3, source: 4}, properties: [SLSA_SOURCE_TWO_PARTY_REVIEWED, WAXSEAL_HERMETIC]}]\n" +
		"  sources: [{repository: \"https://git.example.org/acme/**\", signer: {key: verifier.pub}, maxLevel: 3}]\n"
	keys := map[string][]byte{"ours.pub": w.ours.pem, "verifier.pub": people[0].pem}
	for i, p := range people[1:] {
		if i == 0 {
			text += "  reviewers:\n"
		}
		text += fmt.Sprintf("    - {name: r%d, signer: {key: r%d.pub}, aliases: [r%d@acme.example]}\n", i, i, i)
		keys[fmt.Sprintf("r%d.pub", i)] = p.pem
	}
	p, err := policy.Parse([]byte(text+"images:\n  - match: \"**\"\n    "+images+"\n"), policy.ParseOptions{ReadKey: func(name string) ([]byte, error) { return keys[name], nil }})
	w.must(err)
	return p
}

// sourced is an image with provenance of ours that names head.
func (w *world) sourced() *image {
	w.Helper()
	i := w.single()
	i.attach(w.ours, i.desc, attestations.ProvenanceV1, ofCommit(repo, head))
	return i
}

func ofCommit(repo, commit string) string {
	return fmt.Sprintf(`{"buildDefinition":{"buildType":%q,"externalParameters":{},"resolvedDependencies":[{"name":"source","uri":"git+%s","digest":{"gitCommit":%q}}]},"runDetails":{"builder":{"id":%q}}}`,
		attestations.ContainerBuildType, repo, commit, ci)
}

// about signs a statement about a commit.
func (w *world) about(by person, commit, annotations, kind, predicate string) []byte {
	w.Helper()
	s := attest.Subject{Digest: map[string]string{"gitCommit": commit}}
	if annotations != "" {
		s.Annotations = json.RawMessage(annotations)
	}
	st, err := attest.NewStatement(kind, []attest.Subject{s}, json.RawMessage(predicate))
	w.must(err)
	b, err := by.Sign(w.Context(), st)
	w.must(err)
	return b.Raw()
}

// files writes evidence into a folder.
func (w *world) files(bundles ...[]byte) store.Options {
	w.Helper()
	dir := w.TempDir()
	for i, raw := range bundles {
		w.must(os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.json", i)), raw, 0o600))
	}
	if len(bundles) == 0 {
		return store.Options{}
	}
	return store.Options{Evidence: []string{dir}}
}

func row(v *gate.Verdict, id string) verify.Row {
	i := slices.IndexFunc(v.Requirements, func(r verify.Row) bool { return r.ID == id })
	return v.Requirements[i]
}

// used lists the types of the evidence that the verdict rests on.
func used(v *gate.Verdict) string {
	var out []string
	for _, e := range v.Evidence {
		if e.Used {
			out = append(out, e.PredicateType[strings.LastIndexByte(strings.TrimSuffix(e.PredicateType, "/v1"), '/')+1:])
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestDelegation(t *testing.T) {
	w := newWorld(t)
	verifier := w.person("verifier.pub")
	const delegated = "level: {build: 3}\n    vsa: {delegates: [build]}"
	judge := func(i *image, images string) *gate.Verdict {
		t.Helper()
		return w.judge(gate.Request{Reference: i.ref, Policy: w.aware(images, verifier)})
	}
	place := func(i *image) string { return i.place.Reference().Place }

	// Provenance to L2 alone; the summary shows the third level.
	i := w.sourced()
	w.want(judge(i, delegated), gate.Deny, 2, "build.l3.isolated", "no verification summary is attached")
	b := i.attach(verifier, i.desc, attestations.VSAV1, vsa(place(i), "SLSA_BUILD_LEVEL_3"))
	v := judge(i, delegated)
	w.want(v, gate.Pass, 3)
	if r := row(v, verify.RowIsolated); r.Reason != "by VSA of "+vid || r.Evidence[0].Bundle != b || used(v) != "provenance/v1 verification_summary/v1" {
		t.Errorf("%+v, used %q", r, used(v))
	}
	summaries, err := v.VSA(gate.VSAOptions{VerifierID: "https://me.example", ResourceURI: "oci://x.example/y"})
	w.must(err)
	if got := fmt.Sprint(summaries[0].Predicate.InputAttestations); !strings.Contains(got, b.Hex()) || !slices.Contains(summaries[0].Predicate.VerifiedLevels, "SLSA_BUILD_LEVEL_3") {
		t.Errorf("a summary of it rests on %s", got)
	}
	// It is not asked where nothing is delegated.
	w.want(judge(i, "level: {build: 3}"), gate.Deny, 2, "build.l3.isolated")
	// Nothing else is skipped.
	w.want(judge(i, delegated+"\n    sbom: {required: true}"), gate.Deny, 3, "sbom")
	w.want(judge(i, delegated+"\n    source: {repository: \"https://git.example.org/acme/other\"}"), gate.Deny, 0, "source  build.l1.expectations")
	w.want(judge(i, delegated+"\n    hardening: {nonRoot: true}"), gate.Deny, 3, "root-user")
	w.want(judge(i, "level: {build: 3, source: 1}\n    vsa: {delegates: [build]}"), gate.Deny, 3, "source.l1.")
	w.want(judge(i, "level: {build: 3}\n    properties: [WAXSEAL_HERMETIC]\n    vsa: {delegates: [build]}"), gate.Deny, 3, "property.hermetic")

	// By nothing else: no provenance at all.
	alone := w.single()
	alone.attach(verifier, alone.desc, attestations.VSAV1, vsa("oci://"+place(alone), "SLSA_BUILD_LEVEL_3", "SLSA_SOURCE_LEVEL_3", "WAXSEAL_HERMETIC"))
	w.want(judge(alone, delegated), gate.Pass, 3)
	v = judge(alone, "level: {build: 2, source: 3}\n    properties: [WAXSEAL_HERMETIC]\n    vsa: {delegates: [build, source, properties], required: true}")
	w.want(v, gate.Pass, 3)
	if v.Reached.Source != 3 || !slices.Equal(v.Properties, []string{verify.PropertyHermetic}) {
		t.Errorf("%+v %v", v.Reached, v.Properties)
	}
	w.want(judge(alone, delegated+"\n    source: {repository: \""+repo+"\"}"), gate.Deny, 0, "build.l1.expectations", "no summary can show that source")

	// One that does not count is as good as none, and says why.
	for _, c := range []struct {
		name, predicate, images string
		by                      person
		code                    verify.Code
		message                 string
	}{
		{"a stranger's", vsa("HERE", "SLSA_BUILD_LEVEL_3"), delegated, w.strange, verify.CodeSignature, ""},
		{"the builder's, in the verifier's name", vsa("HERE", "SLSA_BUILD_LEVEL_3"), delegated, w.ours, verify.CodeVerifier, "is not the one trusted for verifier"},
		{"for another place", vsa("registry.example/other", "SLSA_BUILD_LEVEL_3"), delegated, verifier, verify.CodeResource, "it was made for"},
		{"too old", vsa("HERE", "SLSA_BUILD_LEVEL_3"), "level: {build: 3}\n    vsa: {delegates: [build], maxAge: 30m}", verifier, verify.CodeAge, "longer ago than"},
		{"under another policy", vsa("HERE", "SLSA_BUILD_LEVEL_3"), "level: {build: 3}\n    vsa: {delegates: [build], policy: {uri: x}}", verifier, verify.CodePolicy, "under the policy"},
		{"without a name", vsa("HERE", "SLSA_BUILD_LEVEL_3"), "level: {build: 3}\n    vsa: {delegates: [build], names: [ACME_OK]}", verifier, verify.CodeName, "ACME_OK"},
		{"FAILED", strings.Replace(vsa("HERE", "FAILED"), "PASSED", "FAILED", 1), delegated, verifier, verify.CodeFailed, "FAILED"},
		{"two levels", vsa("HERE", "SLSA_BUILD_LEVEL_1", "SLSA_BUILD_LEVEL_3"), delegated, verifier, verify.CodePredicate, "more than one level"},
		{"a level that is too low", vsa("HERE", "SLSA_BUILD_LEVEL_1"), delegated, verifier, "", ""},
		{"unevaluated", vsa("HERE", "SLSA_BUILD_LEVEL_UNEVALUATED"), delegated, verifier, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := w.sourced()
			i.attach(c.by, i.desc, attestations.VSAV1, strings.Replace(c.predicate, "HERE", place(i), 1))
			v := judge(i, c.images)
			w.want(v, gate.Deny, 2, "build.l3.isolated")
			for _, e := range v.Evidence {
				if e.PredicateType == attestations.VSAV1 && (e.Code != c.code || e.Accepted != (c.code == "") || !strings.Contains(e.Message, c.message)) {
					t.Errorf("%+v", e)
				}
			}
			required := judge(i, c.images[:len(c.images)-1]+", required: true}")
			if got := slices.ContainsFunc(required.Reasons, func(r gate.Reason) bool { return r.Code == policy.CodeSummary }); got != (c.code != "") {
				t.Errorf("required: %+v", required.Reasons)
			}
		})
	}

	// The place that the policy says, in place of the image's own.
	staged := w.sourced()
	staged.attach(verifier, staged.desc, attestations.VSAV1, vsa("oci://registry.example/staging/app", "SLSA_BUILD_LEVEL_3"))
	w.want(judge(staged, "level: {build: 3}\n    vsa: {delegates: [build], resourceUri: \"oci://registry.example/staging/app\"}"), gate.Pass, 3)
	w.want(judge(staged, delegated), gate.Deny, 2, "it was made for")
	// About another image, attached here.
	other := w.sourced()
	other.referrer(other.desc, w.bundle(verifier, digestOf(i.desc), attestations.VSAV1, vsa(place(other), "SLSA_BUILD_LEVEL_3")).Raw(), nil)
	w.want(judge(other, delegated), gate.Deny, 2, "build.l3.isolated")
	// Narrowed to a key that is not the verifier's.
	w.want(w.judge(gate.Request{Reference: i.ref, Policy: w.aware(delegated, verifier), Keys: []verify.Key{w.ours.key}}), gate.Deny, 2)

	// An index and each of its platforms need their own.
	idx := w.index(false)
	for _, d := range append([]v1.Descriptor{idx.desc}, idx.platforms...) {
		w.want(judge(idx, delegated), gate.Deny, 0)
		idx.attach(verifier, d, attestations.VSAV1, vsa(place(idx), "SLSA_BUILD_LEVEL_3"))
	}
	w.want(judge(idx, delegated), gate.Pass, 3)
}

func sourceProvenance(repo, ref string, controls ...string) string {
	var list []string
	for _, c := range controls {
		list = append(list, fmt.Sprintf(`{"name":%q,"since":"2025-01-01T00:00:00Z"}`, c))
	}
	return fmt.Sprintf(`{"activity_type":"push","actor":"carol","branch":%q,"controls":[%s],"created_on":"2026-01-01T00:00:00Z","repo_uri":%q}`, ref, strings.Join(list, ","), repo)
}

func TestSourceTrack(t *testing.T) {
	w := newWorld(t)
	verifier, ann, bob := w.person("verifier.pub"), w.person("ann.pub"), w.person("bob.pub")
	i := w.sourced()
	judge := func(i *image, level int, more string, bundles ...[]byte) *gate.Verdict {
		t.Helper()
		return w.judge(gate.Request{Reference: i.ref, Store: w.files(bundles...), Policy: w.aware(fmt.Sprintf("level: {build: 2, source: %d}\n    %s", level, more), verifier, ann, bob)})
	}
	source := func(v *gate.Verdict, d gate.Decision, level int, reasons ...string) {
		t.Helper()
		w.want(v, d, 2, reasons...)
		if v.Reached.Source != level {
			t.Errorf("Source L%d, want L%d; %+v", v.Reached.Source, level, v.Evidence)
		}
	}
	const main = `{"sourceRefs":["refs/heads/main"]}`
	summary := w.about(verifier, head, main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3"))

	source(judge(i, 1, ""), gate.Deny, 0, "source.l1.", "nothing that counts is said of the commit "+head)
	v := judge(i, 3, "", summary)
	source(v, gate.Pass, 3)
	if r := row(v, verify.RowSourceProtected); r.Reason != "by source VSA of "+vid || used(v) != "provenance/v1 verification_summary/v1" {
		t.Errorf("%+v, used %q", r, used(v))
	}
	source(judge(i, 4, "", summary), gate.Deny, 3, "carries Source L3")
	// Attached to the image by a tool that does not mind what it attaches.
	attached := w.sourced()
	attached.referrer(attached.desc, summary, nil)
	source(judge(attached, 3, ""), gate.Pass, 3)
	// Nobody asks: it is not read.
	if v := judge(attached, 0, ""); v.Decision != gate.Pass || !strings.Contains(w.codes(v.Evidence), string(gate.CodeNotNeeded)) {
		t.Errorf("%+v", v.Evidence)
	}
	// sha1 is an older name of the same.
	older := w.single()
	older.attach(w.ours, older.desc, attestations.ProvenanceV1, strings.Replace(ofCommit(repo, head), "gitCommit", "sha1", 1))
	source(judge(older, 3, "", summary), gate.Pass, 3)

	system := w.about(verifier, head, "", attestations.SourceProvenanceDraft, sourceProvenance(repo, "refs/heads/main", "CONTINUITY_ENFORCED", "TAG_HYGIENE", "PROVENANCE_AVAILABLE"))
	source(judge(i, 3, "", system), gate.Pass, 3)
	source(judge(i, 2, "source: {repository: \""+repo+"\", ref: refs/heads/main}", system), gate.Pass, 3)

	for _, c := range []struct {
		name   string
		raw    []byte
		more   string
		code   verify.Code
		reason string
	}{
		{"another repository", w.about(verifier, head, main, attestations.VSAV1, vsa("git+"+repo+"-evil", "SLSA_SOURCE_LEVEL_3")), "", verify.CodeResource, "it was made for"},
		{"a stranger's", w.about(w.strange, head, main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3")), "", verify.CodeSignature, ""},
		{"a reviewer's", w.about(ann, head, main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3")), "", verify.CodeVerifier, ""},
		{"the builder's", w.about(w.ours, head, main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3")), "", verify.CodeVerifier, ""},
		{"another branch", summary, "source: {repository: \"" + repo + "\", ref: refs/tags/v*}", gate.CodeRef, "not where the policy expects it"},
		{"no branch", w.about(verifier, head, "", attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3")), "source: {repository: \"" + repo + "\", ref: refs/heads/main}", gate.CodeRef, "does not say which branch"},
		{"two levels", w.about(verifier, head, main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3", "SLSA_SOURCE_LEVEL_4")), "", verify.CodePredicate, "more than one level"},
		{"source provenance of another repository", w.about(verifier, head, "", attestations.SourceProvenanceV1, sourceProvenance(repo+"2", "refs/heads/main", "CONTINUITY_ENFORCED", "TAG_HYGIENE")), "", verify.CodeResource, "it is of the repository"},
		{"source provenance by a reviewer", w.about(bob, head, "", attestations.SourceProvenanceV1, sourceProvenance(repo, "refs/heads/main", "CONTINUITY_ENFORCED", "TAG_HYGIENE")), "", gate.CodeRole, "not the one trusted about the source"},
		{"source provenance of another branch", system, "source: {repository: \"" + repo + "\", ref: refs/tags/v*}", gate.CodeRef, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := judge(i, 2, c.more, c.raw)
			// Without it nothing says which branch it was.
			build := 2
			if c.code == gate.CodeRef {
				build = 0
			}
			if w.want(v, gate.Deny, build, "source.l1."); v.Reached.Source != 0 {
				t.Errorf("Source L%d", v.Reached.Source)
			}
			found := false
			for _, e := range v.Evidence {
				found = found || e.Source == store.SourceFile && e.Code == c.code && strings.Contains(e.Message, c.reason) && !e.Accepted
			}
			if !found {
				t.Errorf("%+v", v.Evidence)
			}
		})
	}

	// About another commit, attached to the image.
	stray := w.sourced()
	stray.referrer(stray.desc, w.about(verifier, strings.Repeat("b", 40), main, attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_3")), nil)
	v = judge(stray, 2, "")
	source(v, gate.Deny, 0, "the provenance names "+head)
	if !strings.Contains(w.codes(v.Evidence), string(verify.CodeSubject)) {
		t.Errorf("%+v", v.Evidence)
	}

	// The commit is that of provenance that counts, from a tree that is its own.
	forged := w.single()
	forged.attach(w.strange, forged.desc, attestations.ProvenanceV1, ofCommit(repo, head))
	w.want(judge(forged, 3, "", summary), gate.Deny, 0, "build.l1.provenance-exists")
	moved := w.single()
	moved.attach(w.ours, moved.desc, attestations.ProvenanceV1, ofCommit(repo, strings.Repeat("c", 40)))
	moved.attach(w.strange, moved.desc, attestations.ProvenanceV1, ofCommit(repo, head))
	source(judge(moved, 3, "", summary), gate.Deny, 0, "source.l1.")
	dirty := w.single()
	dirty.attach(w.ours, dirty.desc, attestations.ProvenanceV1, strings.Replace(ofCommit(repo, head), `"digest"`, `"annotations":{"changedFiles":["a"]},"digest"`, 1))
	source(judge(dirty, 1, "source: {repository: \""+repo+"\", allowChanges: true}", summary), gate.Deny, 0, "the built tree was not the commit's")
	half := w.single()
	half.attach(w.ours, half.desc, attestations.ProvenanceV1, ofCommit(repo, head[:12]))
	source(judge(half, 1, "", summary), gate.Deny, 0, "pins no commit")
}

func TestReviews(t *testing.T) {
	w := newWorld(t)
	verifier, ann, bob := w.person("verifier.pub"), w.person("ann.pub"), w.person("bob.pub")
	review := func(commit, authors string) string {
		return fmt.Sprintf(`{"repository":%q,"commit":%q,"authors":[%q],"decision":"approved","reviewedOn":"2026-01-02T00:00:00Z"}`, repo, commit, authors)
	}
	judge := func(i *image, bundles ...[]byte) *gate.Verdict {
		t.Helper()
		return w.judge(gate.Request{Reference: i.ref, Store: w.files(bundles...), Policy: w.aware("level: {build: 1}\n    properties: [SLSA_SOURCE_TWO_PARTY_REVIEWED]", verifier, ann, bob)})
	}
	i := w.sourced()
	w.want(judge(i), gate.Deny, 2, "property.two-party-reviewed", "no review by somebody trusted")
	one := w.about(ann, head, "", attestations.ReviewV1, review(head, "carol"))
	w.want(judge(i, one), gate.Deny, 2, "1 of the two reviewers")
	two := w.about(bob, head, "", attestations.ReviewV1, review(head, "carol"))
	v := judge(i, one, two)
	w.want(v, gate.Pass, 2)
	if used(v) != "provenance/v1 review/v1 review/v1" || v.Reached.Source != 0 {
		t.Errorf("used %q, Source L%d", used(v), v.Reached.Source)
	}
	w.want(judge(i, one, w.about(bob, head, "", attestations.ReviewV1, review(head, "r1@acme.example"))), gate.Deny, 2, "r1 is an author of it")
	w.want(judge(i, one, w.about(w.strange, head, "", attestations.ReviewV1, review(head, "carol"))), gate.Deny, 2, "1 of the two")
	w.want(judge(i, one, w.about(w.ours, head, "", attestations.ReviewV1, review(head, "carol"))), gate.Deny, 2, "1 of the two")
	w.want(judge(i, one, w.about(verifier, head, "", attestations.ReviewV1, review(head, "carol"))), gate.Deny, 2, "1 of the two")
	// What the subject and the predicate name must be one.
	w.want(judge(i, one, w.about(bob, head, "", attestations.ReviewV1, review(strings.Repeat("d", 40), "carol"))), gate.Deny, 2, "1 of the two")
	w.want(judge(i, one, w.about(bob, head, "", attestations.ReviewV1, strings.Replace(review(head, "carol"), repo, repo+"2", 1))), gate.Deny, 2, "1 of the two")
	w.want(judge(i, one, w.about(bob, strings.Repeat("d", 40), "", attestations.ReviewV1, review(head, "carol"))), gate.Deny, 2, "1 of the two")

	// Of the image, attached to it.
	i.attach(bob, i.desc, attestations.ReviewV1, review(head, "carol"))
	w.want(judge(i, one), gate.Pass, 2)
	other := w.sourced()
	other.attach(bob, other.desc, attestations.ReviewV1, review(strings.Repeat("d", 40), "carol"))
	w.want(judge(other, one), gate.Deny, 2, "1 of the two")

	// To an index, for its platforms as well.
	idx := w.index(false)
	for _, d := range append([]v1.Descriptor{idx.desc}, idx.platforms...) {
		idx.attach(w.ours, d, attestations.ProvenanceV1, ofCommit(repo, head))
	}
	idx.referrer(idx.desc, one, nil)
	idx.referrer(idx.desc, two, nil)
	w.want(judge(idx), gate.Pass, 2)

	// By who signs for the builder.
	p := w.aware("level: {build: 1}\n    properties: [SLSA_SOURCE_TWO_PARTY_REVIEWED]", verifier, ann, w.ours)
	mine := w.about(w.ours, head, "", attestations.ReviewV1, review(head, "carol"))
	w.want(w.judge(gate.Request{Reference: i.ref, Policy: p, Store: w.files(one, mine)}), gate.Deny, 2, "r1 also signs for the builder")
}

// notes is a place that knows what is said about commits.
type notes struct {
	store.Repo
	pieces map[string][]store.Piece
	asked  []string
}

func (n *notes) CommitEvidence(_ context.Context, commit string) ([]store.Piece, error) {
	n.asked = append(n.asked, commit)
	return n.pieces[commit], nil
}

func TestCommitEvidence(t *testing.T) {
	w := newWorld(t)
	verifier := w.person("verifier.pub")
	idx := w.index(false)
	for _, d := range append([]v1.Descriptor{idx.desc}, idx.platforms...) {
		idx.attach(w.ours, d, attestations.ProvenanceV1, ofCommit(repo, head))
	}
	raw := w.about(verifier, head, "", attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_2"))
	place := &notes{pieces: map[string][]store.Piece{head: {
		{Source: "git notes", Where: "refs/notes/commits:" + head, Digest: attest.DigestOf(raw), Raw: raw, PredicateType: attestations.VSAV1},
		{Source: "git notes", Where: "refs/notes/x:" + head, Skipped: "unknown form"},
	}}}
	g := gate.Gate{Open: func(ctx context.Context, ref store.Reference, opts store.Options) (store.Repo, error) {
		r, err := store.Open(ctx, ref, opts)
		place.Repo = r
		return place, err
	}}
	v, err := g.Judge(w.Context(), gate.Request{Reference: idx.ref, Policy: w.aware("level: {build: 2, source: 2}", verifier)})
	w.must(err)
	sound(w, v)
	w.want(v, gate.Pass, 2)
	if v.Reached.Source != 2 || len(place.asked) != 1 || !strings.Contains(w.codes(v.Evidence), string(gate.CodeSkipped)) {
		t.Errorf("Source L%d, asked %q, %s", v.Reached.Source, place.asked, w.codes(v.Evidence))
	}
	// A stranger attaches something unread that is said to be the same.
	for _, d := range idx.platforms {
		idx.layer(d, raw, map[string]string{"predicateType": "https://x.example/y"})
	}
	v, err = g.Judge(w.Context(), gate.Request{Reference: idx.ref, Policy: w.aware("level: {build: 2, source: 2}", verifier)})
	w.must(err)
	w.want(v, gate.Pass, 2)
	place.asked = nil
	if _, err := g.Judge(w.Context(), gate.Request{Reference: idx.ref, Policy: w.aware("level: {build: 2}", verifier)}); err != nil || len(place.asked) > 0 {
		t.Errorf("asked %q, though nothing depends on it; %v", place.asked, err)
	}
}

// A builder that signs for anybody gives a stranger no say in which commits are
// asked about.
func TestManyCommitsOfAStranger(t *testing.T) {
	w := newWorld(t)
	verifier := w.person("verifier.pub")
	i := w.sourced()
	for n := range 17 {
		i.attach(w.ours, i.desc, attestations.ProvenanceV1, ofCommit("https://git.example.org/mallory/app", fmt.Sprintf("%040x", n)))
	}
	raw := w.about(verifier, head, "", attestations.VSAV1, vsa("git+"+repo, "SLSA_SOURCE_LEVEL_2"))
	v := w.judge(gate.Request{Reference: i.ref, Policy: w.aware("level: {build: 2, source: 2}\n    source: {repository: "+repo+"}", verifier), Store: w.files(raw)})
	w.want(v, gate.Pass, 2)
}
