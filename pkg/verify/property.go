package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// unread is why nothing is known of a property that nobody asked for.
const unread = "nothing that was asked depends on it, so its evidence was not read"

// equivalence is the build type by which oss-rebuild says that two artifacts
// are alike, once what it takes for unimportant is left out. It comes as
// provenance, and says of neither how it was built.
// https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1
const equivalence = "https://docs.oss-rebuild.dev/builds/ArtifactEquivalence@v0.1"

// Compares reports whether it is provenance by its type alone: it says that
// artifacts are alike, and is for ReadRebuild.
func (p *Provenance) Compares() bool { return p.BuildType.Value == equivalence }

// ReadRebuild reads what somebody says building a digest again came to: a
// predicate of the type attestations.RebuildV1, or provenance that Compares.
// Only equal digests show that it was built again; what is merely alike, or
// rests on evidence that nobody checked, has a Problem. Bundle and Signer are
// for the caller to add. An error is always a *Rejection.
func ReadRebuild(st *attest.Statement, digest attest.Digest) (Rebuild, error) {
	if len(st.Predicate) > MaxProvenance {
		return Rebuild{}, rejectf(CodePredicate, "it has %d bytes, more than the %d allowed", len(st.Predicate), MaxProvenance)
	}
	if st.PredicateType == attestations.RebuildV1 {
		return readRebuild(st, digest)
	}
	return readEquivalence(st, digest)
}

func readRebuild(st *attest.Statement, digest attest.Digest) (Rebuild, error) {
	var in attestations.Rebuild
	if err := attest.UnmarshalStrict(st.Predicate, &in); err != nil {
		return Rebuild{}, rejectf(CodePredicate, "its result of a rebuild cannot be read: %v", clip(err.Error()))
	}
	out := Rebuild{BuilderID: Field{in.Build.Builder, "/predicate/build/builder"}}
	switch {
	case in.Verdict != attestations.RebuildReproduced:
		out.Problem = fmt.Sprintf("the rebuild by %s came out %q", clip(in.Build.Builder), clip(in.Verdict))
	case in.Original != string(digest) || in.Rebuilt != in.Original || len(in.Differences)+in.MoreDifferences > 0:
		out.Problem = "a rebuild that says it reproduced the image names another digest, or differences"
	case in.Build.Unverified:
		out.Problem = "the rebuild by " + clip(in.Build.Builder) + " rests on evidence that nobody checked"
	}
	return out, nil
}

func readEquivalence(st *attest.Statement, digest attest.Digest) (Rebuild, error) {
	var in struct {
		Definition struct {
			Dependencies []descriptor `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		Run struct {
			Builder struct {
				ID string `json:"id"`
			} `json:"builder"`
		} `json:"runDetails"`
	}
	if err := attest.UnmarshalStrict(st.Predicate, &in); err != nil {
		return Rebuild{}, rejectf(CodePredicate, "its comparison of two artifacts cannot be read: %v", clip(err.Error()))
	}
	out := Rebuild{BuilderID: Field{in.Run.Builder.ID, "/predicate/runDetails/builder/id"}}
	if len(in.Definition.Dependencies) != 2 {
		out.Problem = "a comparison of artifacts does not name the two that it compares"
	}
	for _, d := range in.Definition.Dependencies {
		if strings.TrimPrefix(d.Digest["sha256"], "sha256:") != digest.Hex() {
			out.Problem = "what " + clip(in.Run.Builder.ID) + " built is alike, and does not have the same digest"
		}
	}
	return out, nil
}

// claims points to where a provenance says of itself that its inputs are
// complete or that it is hermetic. Nothing is believed of it: BuildKit sets its
// flags from what was asked for, not from what was seen.
func claims(predicate []byte) []string {
	// Most have none, and need no second reading. It is only said, not believed.
	if !bytes.Contains(predicate, []byte("hermetic")) && !bytes.Contains(predicate, []byte("ompleteness")) {
		return nil
	}
	var in struct {
		Run struct {
			Metadata map[string]json.RawMessage `json:"metadata"`
		} `json:"runDetails"`
		Metadata map[string]json.RawMessage `json:"metadata"`
	}
	if json.Unmarshal(predicate, &in) != nil {
		return nil
	}
	var out []string
	for _, at := range []struct {
		pointer string
		fields  map[string]json.RawMessage
	}{{"/predicate/runDetails/metadata/", in.Run.Metadata}, {"/predicate/metadata/", in.Metadata}} {
		for _, name := range []string{"buildkit_hermetic", "https://mobyproject.org/buildkit@v1#hermetic"} {
			if set(at.fields[name]) {
				out = append(out, at.pointer+strings.ReplaceAll(name, "/", "~1"))
			}
		}
		for name, member := range map[string]string{"buildkit_completeness": "resolvedDependencies", "completeness": "materials"} {
			var flags map[string]json.RawMessage
			if json.Unmarshal(at.fields[name], &flags) == nil && set(flags[member]) {
				out = append(out, at.pointer+name+"/"+member)
			}
		}
	}
	slices.Sort(out)
	return out
}

// checkInputsComplete computes the answer from the record's steps, and believes
// no flag.
func checkInputsComplete(w *weighing) answer {
	if len(w.findings.Platforms) > 0 {
		return w.worst(RowInputsComplete)
	}
	in := w.inputs
	if in == nil {
		return w.without
	}
	switch verdict, _ := in.Judge(); verdict {
	case attestations.VerdictIsolated:
		return w.recorded(Met, "nothing reached a step from outside"+w.word())
	case attestations.VerdictRecorded:
		return w.recorded(Met, "every byte that reached a step from outside is in the record"+w.word())
	case attestations.VerdictGaps:
		return w.recorded(NotMet, "the record has gaps"+gap(in))
	}
	return w.recorded(NotMet, "nobody watched all steps"+gap(in))
}

func checkHermetic(w *weighing) answer {
	if len(w.findings.Platforms) > 0 {
		return w.worst(RowHermetic)
	}
	in := w.inputs
	if in == nil {
		return w.without
	}
	verdict, hermetic := in.Judge()
	switch {
	case hermetic && in.Mode == attestations.InputsNone:
		return w.recorded(Met, "no step had a network, and no base image was taken by a tag"+w.word())
	case hermetic:
		return w.recorded(Met, "every step was held to the lock "+Short(attest.Digest(in.Lock))+w.word())
	case in.Mode == attestations.InputsNone && verdict == attestations.VerdictIsolated:
		return w.recorded(NotMet, "no step had a network, but nothing had decided on what the engine fetched: a base image by its tag, a file or a repository")
	case verdict == attestations.VerdictIsolated || verdict == attestations.VerdictRecorded:
		return w.recorded(NotMet, "all that came in is known, but nothing had decided on it before: the mode was "+in.Mode)
	}
	return w.recorded(NotMet, "something could come in that is not in the record"+gap(in))
}

// worst is an index's answer: that of its platforms, if it is the same for all,
// else that of the first for which it is not met.
func (w *weighing) worst(id string) answer {
	var evidence []Evidence
	for _, p := range w.findings.Platforms {
		i := slices.IndexFunc(p.Rows, func(r Row) bool { return r.ID == id })
		if i < 0 {
			return say(Unknown, p.Name+" was not judged")
		}
		r := p.Rows[i]
		if r.Status != Met {
			return say(r.Status, p.Name+": "+r.Reason, r.Evidence...)
		}
		evidence = append(evidence, r.Evidence...)
	}
	return say(Met, "so it is for every platform", evidence...)
}

// record is the record of inputs, when there is one that may be judged, else
// the answer that there is without.
func (w *weighing) record() (*attestations.Inputs, answer) {
	if why := w.unvouched(); why != "" {
		return nil, say(Unknown, why)
	}
	if w.Inputs == nil {
		reason := w.NoInputs
		if w.findings.unread(PropertyInputsComplete) && w.findings.unread(PropertyHermetic) {
			reason = unread
		} else if reason == "" {
			reason = "the provenance names no record of inputs"
		}
		var at []Evidence
		if p := w.Provenance.Claims; len(p) > 0 {
			reason += "; that it says so itself does not count"
			at = w.in(p...)
		}
		return nil, say(Unknown, reason, at...)
	}
	in := w.Inputs.Inputs
	if err := attest.CheckInputs(in); err != nil {
		return nil, w.recorded(Unknown, "its record of inputs does not hold together: "+clip(err.Error()))
	}
	if in.Gateway.Name != "" && in.Gateway.Name != attestations.GatewayName {
		return nil, w.recorded(NotMet, fmt.Sprintf("it was watched by %q, which does not see everything", clip(in.Gateway.Name)))
	}
	return in, answer{}
}

func (w *weighing) recorded(s Status, reason string) answer {
	return say(s, reason, Evidence{Bundle: w.Inputs.Bundle, Pointer: "/predicate/steps"})
}

// word says how much the word of the one who made the record is worth.
func (w *weighing) word() string {
	if w.limit.Unhosted {
		return ", as the machine of somebody's own says that wrote it"
	}
	return ""
}

// gap names the first thing that is not in a record, and how many there are.
func gap(in *attestations.Inputs) string {
	var first string
	n := 0
	add := func(where string, gaps []attestations.InputGap) {
		for _, g := range gaps {
			if n++; n == 1 {
				first = clip(g.Kind) + where
			}
		}
	}
	add("", in.Gaps)
	for i := range in.Steps {
		if st := &in.Steps[i]; len(st.Gaps) > 0 {
			add(fmt.Sprintf(" in %q", clip(st.Name)), st.Gaps)
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return ": " + first
	}
	return fmt.Sprintf(": %s, and %d more", first, n-1)
}

func checkTwoParty(w *weighing) answer {
	a := w.source(RowTwoParty)
	if w.Source == nil {
		return a
	}
	if a.reason == silent {
		a = w.source(RowSourceReview)
	}
	switch {
	case w.unvouched() != "":
		return a
	case w.Source.TwoParty && a.status != Met:
		// The word for it stands elsewhere than in a row of its own.
		out := answer{status: Met}
		for _, r := range w.Source.Rows {
			out.evidence = append(out.evidence, r.Evidence...)
		}
		return out
	case !w.Source.TwoParty && a.status == Met:
		// One of the two is wrong, and doubt does not pass.
		return answer{status: Unknown, reason: "the evidence about the source does not say by whom it was reviewed", evidence: a.evidence}
	}
	return a
}

// party is one who says that they built the digest.
type party struct {
	bundle  attest.Digest
	signer  Signer
	builder Field
	made    *Provenance // nil: it says no more than who built it
}

// limit is what the trust believes the party up to.
func (p party) limit(t Trust) Cap {
	if p.made != nil {
		return t.CapOf(p.signer, p.made)
	}
	return t.Cap(p.signer, p.builder.Value)
}

// says reports whether another's word is the party's own: the same signer for
// the same builder.
func (p party) says(o party) bool {
	return p.builder.Value == o.builder.Value && p.signer.Key == o.signer.Key && p.signer.SAN == o.signer.SAN && p.signer.Issuer == o.signer.Issuer
}

// stands says why another's provenance is none of the same build, "" when it
// may be. Some builders attest any digest that they are handed, so that the same
// bytes alone are nobody's second build.
func (w *weighing) stands(o *Candidate) string {
	name := clip(o.Provenance.BuilderID.Value)
	for _, p := range o.Problems {
		// What evidence about the commit says as well is not held against it.
		if !p.Unsaid {
			return fmt.Sprintf("what %s says is not what is expected: %s", name, p.Message)
		}
	}
	if len(w.Provenance.Sources) == 0 || len(o.Provenance.Sources) == 0 {
		return ""
	}
	a, b := w.Provenance.Sources[0], o.Provenance.Sources[0]
	if a.Repository != "" && b.Repository != "" && !SameRepository(a.Repository, b.Repository) || a.Commit != "" && b.Commit != "" && a.Commit != b.Commit {
		return name + " says that it built this digest from another source"
	}
	return ""
}

// checkReproduced counts the parties, independent of the candidate's own, who
// built the same digest.
func checkReproduced(w *weighing) answer {
	if why := w.unvouched(); why != "" {
		return say(Unknown, why)
	}
	own := party{w.Bundle, *w.Signer, w.Provenance.BuilderID, w.Provenance}
	var others []party
	var doubts []string
	for i := range w.findings.Candidates {
		c := &w.findings.Candidates[i]
		if c.Signer == nil || c.Bundle == w.Bundle {
			continue
		}
		o := party{c.Bundle, *c.Signer, c.Provenance.BuilderID, c.Provenance}
		if why := w.stands(c); why != "" && !own.says(o) {
			doubts = append(doubts, why)
			continue
		}
		others = append(others, o)
	}
	for _, r := range w.findings.Rebuilds {
		if r.Problem != "" {
			doubts = append(doubts, r.Problem)
			continue
		}
		others = append(others, party{r.Bundle, r.Signer, r.BuilderID, nil})
	}
	agree := w.in(own.builder.Pointer)
	var names []string
	for _, o := range others {
		if limit := o.limit(w.trust); limit.Level < 1 {
			doubts = append(doubts, limit.Reason)
			continue
		}
		if own.says(o) {
			continue // the builder itself, once more
		}
		if one := w.trust.together(own, o); one != "" {
			doubts = append(doubts, one)
			continue
		}
		agree = append(agree, Evidence{Bundle: o.bundle, Pointer: o.builder.Pointer})
		names = append(names, clip(o.builder.Value))
	}
	switch {
	case len(names) > 0:
		return say(Met, "built to the same digest by "+strings.Join(names[:min(len(names), 3)], ", ")+", independently of "+clip(own.builder.Value), agree...)
	case len(doubts) > 0:
		return say(NotMet, "only one builder that counts says that it built this digest: "+doubts[0], agree...)
	case w.findings.unread(PropertyReproduced):
		return say(Unknown, unread)
	}
	return say(Unknown, "", agree...)
}

// together says why two parties count once: the platform, or who signs for it,
// is the same. That two who differ in all of this are operated independently is
// the word of whoever trusts both.
// https://slsa.dev/spec/v1.2/verified-properties#slsa_build_reproduced
func (t Trust) together(a, b party) string {
	switch {
	case platform(a.builder.Value) == platform(b.builder.Value):
		return "both have the builder.id " + clip(a.builder.Value)
	case a.signer.Key != "" && a.signer.Key == b.signer.Key:
		return "one key signed for both builders"
	case t.called(a.signer) != "" && fold(t.called(a.signer)) == fold(t.called(b.signer)):
		return fmt.Sprintf("%q signs for both builders", clip(strings.TrimSpace(t.called(a.signer))))
	case a.signer.SAN == "" || b.signer.SAN == "":
		return ""
	case oneIssuer(a.signer.Issuer, b.signer.Issuer):
		return fmt.Sprintf("%q vouches for who signed for both builders", clip(min(a.signer.Issuer, b.signer.Issuer)))
	case a.signer.Issuer == "" && b.signer.Issuer == "" && a.signer.anchor == b.signer.anchor:
		return "one authority issued the certificates of both builders"
	case platform(a.signer.SAN) == platform(b.signer.SAN):
		return "both are signed for by " + clip(a.signer.SAN)
	}
	for _, id := range t.Identities {
		if id.names(a.signer) && id.names(b.signer) {
			return "one identity of the trust stands for the signers of both builders"
		}
	}
	return ""
}

// called is the name that the policy gives a signer; "" for none.
func (t Trust) called(s Signer) string {
	i := slices.IndexFunc(t.Builders, func(b Builder) bool { return b.Name != "" && b.Signs(s) })
	if i < 0 {
		return ""
	}
	return t.Builders[i].Name
}

// oneIssuer reports whether two issuers are one platform's: they are the same,
// or one has the other's path below its own, as those of GitHub's enterprises.
func oneIssuer(a, b string) bool {
	return a != "" && b != "" && (a == b || strings.HasPrefix(a, strings.TrimSuffix(b, "/")+"/") || strings.HasPrefix(b, strings.TrimSuffix(a, "/")+"/"))
}

// Unversioned is the certificate's name without the revision that it ran in, in
// lower case.
func (s Signer) Unversioned() string { return platform(s.SAN) }

// platform is an id or name without the revision that it runs in: what follows
// an "@" in the path of a URL.
func platform(id string) string {
	if _, rest, ok := strings.Cut(id, "://"); ok {
		if path := strings.IndexByte(rest, '/'); path >= 0 {
			if at := strings.IndexByte(rest[path:], '@'); at >= 0 {
				id = strings.TrimSuffix(id, rest[path+at:])
			}
		}
	}
	return canonicalID(id)
}
