package verify

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// The codes of a verification summary that does not count.
const (
	CodeVerifier Code = "verifier" // verifier.id is not one that this signer may speak for
	CodeResource Code = "resource" // made for another place
	CodePolicy   Code = "policy"   // made under another policy
	CodeFailed   Code = "failed"   // it says that the artifact failed, or its verifier has said so since
	CodeAge      Code = "age"      // too old, of the future, or without a time where one is needed
	CodeName     Code = "name"     // lacks a name that is demanded of verifiedLevels
)

// Unevaluated is the level of a track that a summary says it did not look at.
const Unevaluated = -1

// VSA is a SLSA verification summary as it was read. Nothing in it is believed
// before JudgeVSA has said so.
type VSA struct {
	VerifierID   string
	TimeVerified time.Time // zero: not stated
	ResourceURI  string
	PolicyURI    string
	PolicyDigest map[string]string
	// Inputs counts inputAttestations; the list is whole, or empty.
	Inputs int
	Passed bool
	// Levels maps a track of SLSA v1.2 to its level, or to Unevaluated.
	Levels     map[Track]int
	Properties []string
	// Custom are names that the verifier made up, Tracks the levels of tracks
	// that SLSA v1.2 does not have. Neither means anything by itself.
	Custom []string
	Tracks []string
	// Dependencies counts the transitive dependencies at each level. Nil: the
	// verifier claims nothing of them. Empty: there are none. A level that is
	// missing has none.
	Dependencies map[string]uint64
}

// IsVSA reports whether ParseVSA reads this predicate type.
// https://slsa.dev/spec/v1.2/verification_summary#how-to-verify, step 3
func IsVSA(predicateType string) bool { return predicateType == attestations.VSAV1 }

type summary struct {
	Verifier *struct {
		ID string `json:"id"`
	} `json:"verifier"`
	TimeVerified *string `json:"timeVerified"`
	ResourceURI  string  `json:"resourceUri"`
	Policy       *struct {
		URI    string            `json:"uri"`
		Digest map[string]string `json:"digest"`
	} `json:"policy"`
	InputAttestations []struct {
		Digest map[string]string `json:"digest"`
	} `json:"inputAttestations"`
	VerificationResult string              `json:"verificationResult"`
	VerifiedLevels     *[]string           `json:"verifiedLevels"`
	DependencyLevels   *map[string]*uint64 `json:"dependencyLevels"`
	SLSAVersion        *string             `json:"slsaVersion"`
}

// ParseVSA reads the predicate of a SLSA verification summary v1 strictly, and
// refuses what contradicts the specification or itself: a reader that takes
// the better half of such a thing can be told anything. Fields that v1.2 does
// not have are ignored, as it asks. An error is always a *Rejection that names
// the field.
func ParseVSA(st *attest.Statement) (*VSA, error) {
	switch {
	case !IsVSA(st.PredicateType):
		return nil, rejectf(CodePredicate, "%q is not a SLSA verification summary", clip(st.PredicateType))
	case len(st.Predicate) > attest.MaxSummary:
		return nil, rejectf(CodePredicate, "its verification summary has %d bytes, more than the %d allowed", len(st.Predicate), attest.MaxSummary)
	}
	v, err := parseVSA(st.Predicate)
	if err != nil {
		return nil, rejectf(CodePredicate, "its verification summary cannot be read: %v", clip(err.Error()))
	}
	return v, nil
}

func parseVSA(raw []byte) (*VSA, error) {
	var in summary
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	// https://slsa.dev/spec/v1.2/verification_summary#fields says which are
	// required. TypeURI: the id is a URI.
	switch {
	case in.Verifier == nil || in.Verifier.ID == "":
		return nil, errors.New(`"/predicate/verifier/id" is missing`)
	case !isURI(in.Verifier.ID):
		return nil, fmt.Errorf(`"/predicate/verifier/id" is %q, which is no URI`, clip(in.Verifier.ID))
	case in.ResourceURI == "":
		return nil, errors.New(`"/predicate/resourceUri" is missing`)
	case in.Policy == nil || in.Policy.URI == "":
		return nil, errors.New(`"/predicate/policy/uri" is missing`)
	case in.VerifiedLevels == nil:
		return nil, errors.New(`"/predicate/verifiedLevels" is missing`)
	}
	v := &VSA{
		VerifierID: in.Verifier.ID, ResourceURI: in.ResourceURI, Inputs: len(in.InputAttestations),
		PolicyURI: in.Policy.URI, PolicyDigest: in.Policy.Digest, Levels: map[Track]int{},
	}
	for alg, hex := range in.Policy.Digest {
		if err := checkDigest(alg, hex); err != nil {
			return nil, fmt.Errorf(`"/predicate/policy/digest": %w`, err)
		}
	}
	// #timeVerified: optional since v1.1; a Timestamp is RFC 3339.
	if in.TimeVerified != nil {
		t, err := time.Parse(time.RFC3339, *in.TimeVerified)
		if err != nil || t.IsZero() {
			return nil, fmt.Errorf(`"/predicate/timeVerified" is %q, which is no time`, clip(*in.TimeVerified))
		}
		v.TimeVerified = t
	}
	// #inputAttestations: "Each entry MUST contain a digest".
	for i, a := range in.InputAttestations {
		if len(a.Digest) == 0 {
			return nil, fmt.Errorf(`"/predicate/inputAttestations/%d/digest" is missing`, i)
		}
		for alg, hex := range a.Digest {
			if err := checkDigest(alg, hex); err != nil {
				return nil, fmt.Errorf(`"/predicate/inputAttestations/%d/digest": %w`, i, err)
			}
		}
	}
	// #slsaVersion: MAJOR.MINOR; unset is an unspecified 1.x. A version that is
	// not out yet could mean anything.
	if s := in.SLSAVersion; s != nil && !slices.Contains([]string{"1.0", "1.1", "1.2"}, *s) {
		return nil, fmt.Errorf(`"/predicate/slsaVersion" is %q; this version reads 1.0, 1.1 and 1.2`, clip(*s))
	}
	failed, err := v.results(*in.VerifiedLevels)
	if err != nil {
		return nil, err
	}
	switch in.VerificationResult {
	case attestations.VSAPassed:
		// #verifiedLevels: FAILED stands there if the policy was not fulfilled.
		if failed {
			return nil, errors.New(`"/predicate/verificationResult" is PASSED, and "/predicate/verifiedLevels" has FAILED`)
		}
		v.Passed = true
	case attestations.VSAFailed:
		for _, track := range slices.Sorted(maps.Keys(v.Levels)) {
			if v.Levels[track] != Unevaluated {
				return nil, fmt.Errorf(`"/predicate/verificationResult" is FAILED, and "/predicate/verifiedLevels" has a level of the %s track`, track)
			}
		}
		if len(v.Properties) > 0 {
			return nil, fmt.Errorf(`"/predicate/verificationResult" is FAILED, and "/predicate/verifiedLevels" has %s`, v.Properties[0])
		}
	case "":
		return nil, errors.New(`"/predicate/verificationResult" is missing`)
	default:
		return nil, fmt.Errorf(`"/predicate/verificationResult" is %q, neither PASSED nor FAILED`, clip(in.VerificationResult))
	}
	return v, v.dependencies(in.DependencyLevels)
}

// TakesBack reports whether v, which is all that was wanted but says FAILED, is
// what its verifier found since, under the policy that old passed. SLSA v1.2
// does not say which of two summaries stands; a verifier that looks again says
// FAILED so that the image is not used any more.
func (v *VSA) TakesBack(old *VSA) bool {
	return !v.Passed && old.Passed && v.VerifierID == old.VerifierID && v.PolicyURI == old.PolicyURI && v.TimeVerified.After(old.TimeVerified)
}

func isURI(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != ""
}

// checkDigest refuses a digest that is none, of the algorithms that are known.
func checkDigest(alg, hex string) error {
	n, known := map[string]int{"sha1": 40, "sha256": 64, "sha384": 96, "sha512": 128, "gitCommit": len(hex)}[alg]
	if hex == "" || known && (len(hex) != n || strings.Trim(hex, "0123456789abcdef") != "") {
		return fmt.Errorf("%s %q is no digest", clip(alg), clip(hex))
	}
	return nil
}

// results sorts the names of verifiedLevels.
// https://slsa.dev/spec/v1.2/verification_summary#slsaresult
func (v *VSA) results(names []string) (failed bool, err error) {
	seen := map[Track]string{}
	for i, name := range names {
		at := fmt.Sprintf(`"/predicate/verifiedLevels/%d"`, i)
		r, err := parseResult(name)
		if err != nil {
			return false, fmt.Errorf("%s: %w", at, err)
		}
		if r.track != "" {
			// #verifiedLevels: "Users MUST NOT include more than one level per
			// SLSA track."
			if before, twice := seen[r.track]; twice {
				return false, fmt.Errorf("%s is %q after %q: more than one level of a track", at, clip(name), clip(before))
			}
			seen[r.track] = name
		}
		switch {
		case name == attestations.VSAFailed:
			failed = true
		case r.track == TrackBuild || r.track == TrackSource:
			v.Levels[r.track] = r.level
		case r.track != "":
			v.Tracks = append(v.Tracks, name)
		case slices.Contains(Properties(), name):
			if !slices.Contains(v.Properties, name) {
				v.Properties = append(v.Properties, name)
			}
		default:
			v.Custom = append(v.Custom, name)
		}
	}
	return failed, nil
}

func (v *VSA) dependencies(counts *map[string]*uint64) error {
	if counts == nil {
		return nil // #dependencyLevels: unset or null claims nothing
	}
	v.Dependencies = map[string]uint64{}
	for _, name := range slices.Sorted(maps.Keys(*counts)) {
		n := (*counts)[name]
		if _, err := parseResult(name); err != nil {
			return fmt.Errorf(`"/predicate/dependencyLevels": %w`, err)
		}
		if n == nil {
			return fmt.Errorf(`"/predicate/dependencyLevels/%s" is null, not a number`, clip(name))
		}
		v.Dependencies[name] = *n
	}
	return nil
}

// result is one name of verifiedLevels. Only a level has a track.
type result struct {
	track Track
	level int // or Unevaluated
}

// parseResult reads SLSA_<TRACK>_LEVEL_<n>, SLSA_<TRACK>_LEVEL_UNEVALUATED, a
// verified property or a custom name. What begins with SLSA_ and is none of
// these is refused: custom names must not.
func parseResult(name string) (result, error) {
	rest, slsa := strings.CutPrefix(name, "SLSA_")
	switch {
	case name == "":
		return result{}, errors.New("an empty name")
	case !slsa || slices.Contains(Properties(), name):
		return result{}, nil
	}
	upper, level, ok := strings.Cut(rest, "_LEVEL_")
	if !ok || upper == "" || upper[0] < 'A' || upper[0] > 'Z' || strings.Trim(upper, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") != "" {
		return result{}, fmt.Errorf("%q is neither a level nor a property of SLSA v1.2, and no other name may begin with SLSA_", clip(name))
	}
	track := Track(strings.ToLower(upper))
	if level == "UNEVALUATED" {
		return result{track, Unevaluated}, nil
	}
	n, err := strconv.Atoi(level)
	if err != nil || strconv.Itoa(n) != level || n < 0 {
		return result{}, fmt.Errorf("%q: %q is no level", clip(name), clip(level))
	}
	low, high := 0, n // of a track that v1.2 does not have
	switch track {
	case TrackBuild:
		high = MaxLevel
	case TrackSource:
		low, high = 1, MaxSourceLevel
	}
	if n < low || n > high {
		return result{}, fmt.Errorf("%q: there is no such level, the track has %d to %d", clip(name), low, high)
	}
	return result{track, n}, nil
}

// Verifier is a root of trust for verification summaries: who may sign for a
// verifier.id, and the most that its word counts for.
type Verifier struct {
	ID         string        // verifier.id, compared byte by byte
	Key        attest.Digest // Key.ID of the signer, or
	Identity   *Identity     // whom the signer's certificate was issued to
	Window     Window        // when the key's signatures count; an Identity has its own
	Build      int           // highest Build level, 0 to MaxLevel
	Source     int           // highest Source level, 0 to MaxSourceLevel
	Properties []string      // verified properties it is believed about
	// PolicyURI, PolicyDigest and MaxAge are as in VSAOptions, of all that it
	// verifies, images and revisions of source.
	PolicyURI    string
	PolicyDigest attest.Digest
	MaxAge       time.Duration
}

// VSAOptions is what is expected of a verification summary. The zero value
// expects nothing beside a trusted verifier, and no summary meets it: a place
// must be given.
type VSAOptions struct {
	// Verifiers are the verifier.ids that count here; none: all that are
	// trusted.
	Verifiers []string
	// URIs, an image or a repository: what resourceUri must name.
	URIs []string
	// Image is "host/repository", and Digest the subject's: for package URLs.
	Image      string
	Digest     attest.Digest
	Repository string
	// PolicyURI and PolicyDigest are those of the one policy that counts; empty:
	// any.
	PolicyURI    string
	PolicyDigest attest.Digest
	// MaxAge is how old the verification may be; 0: any age.
	MaxAge time.Duration
	// Names must all stand in verifiedLevels.
	Names []string
	// At is the moment of the decision.
	At time.Time
}

// Word is what a summary that counts is believed to say: no more than its
// verifier is trusted for.
type Word struct {
	VerifierID string
	Build      int
	Source     int
	Properties []string
	// Until is when it grows too old to count; zero: never.
	Until time.Time
	// Notes are what it says beyond that, in words.
	Notes []string
}

// JudgeVSA weighs a summary whose signature and subject a Checker has accepted,
// by the steps of
// https://slsa.dev/spec/v1.2/verification_summary#how-to-verify; an error is
// always a *Rejection. Steps 1 to 3, signature, subject and predicateType, were
// Check's and ParseVSA's.
func JudgeVSA(v *VSA, signer Signer, trusted []Verifier, want VSAOptions) (*Word, error) {
	// Step 4: verifier.id matches the signer. #verifier: "Consumers MUST accept
	// only specific (signer, verifier) pairs."
	word, by, r := vouched(v.VerifierID, signer, trusted)
	if r != nil {
		return nil, r
	}
	if len(want.Verifiers) > 0 && !slices.Contains(want.Verifiers, v.VerifierID) {
		return nil, rejectf(CodeVerifier, "it is by verifier %q, and the policy wants one by %s", clip(v.VerifierID), oneOf(want.Verifiers))
	}
	// Step 5: resourceUri is what is expected.
	if !want.names(v.ResourceURI) {
		return nil, rejectf(CodeResource, "it was made for %q, not for %s", clip(v.ResourceURI), oneOf(want.places()))
	}
	for _, t := range by {
		if r := word.under(v, VSAOptions{PolicyURI: t.PolicyURI, PolicyDigest: t.PolicyDigest, MaxAge: t.MaxAge, At: want.At}); r != nil {
			return nil, r
		}
	}
	if r := word.under(v, want); r != nil {
		return nil, r
	}
	// Step 6: verificationResult is PASSED.
	if !v.Passed {
		return nil, rejectf(CodeFailed, "it says that verification FAILED")
	}
	// Step 7: verifiedLevels has what is expected. Levels are compared by whoever
	// asks for one; names must all be there.
	for _, name := range want.Names {
		if !slices.Contains(v.Custom, name) && !slices.Contains(v.Tracks, name) {
			return nil, rejectf(CodeName, "verifiedLevels lacks %q", clip(name))
		}
	}
	return word.say(v, want), nil
}

// under compares the policy that a summary was made under, and its age.
func (w *Word) under(v *VSA, want VSAOptions) *Rejection {
	// #policy: the exact version, where one is demanded.
	switch {
	case want.PolicyURI != "" && v.PolicyURI != want.PolicyURI:
		return rejectf(CodePolicy, "it was made under the policy %q, not %q", clip(v.PolicyURI), clip(want.PolicyURI))
	case want.PolicyDigest != "" && v.PolicyDigest["sha256"] == "":
		return rejectf(CodePolicy, "it does not say the sha256 digest of its policy, and %s is demanded", Short(want.PolicyDigest))
	case want.PolicyDigest != "" && v.PolicyDigest["sha256"] != want.PolicyDigest.Hex():
		return rejectf(CodePolicy, "it was made under a policy with digest sha256:%s, not %s", clip(v.PolicyDigest["sha256"]), want.PolicyDigest)
	}
	// #timeVerified
	switch {
	case v.TimeVerified.After(want.At.Add(ahead)):
		return rejectf(CodeAge, "it was verified at %s, which is still to come", v.TimeVerified.UTC().Format(time.RFC3339))
	case want.MaxAge > 0 && v.TimeVerified.IsZero():
		return rejectf(CodeAge, "it does not say when it was verified, and may be %s old at most", want.MaxAge)
	case want.MaxAge > 0 && want.At.Sub(v.TimeVerified) > want.MaxAge:
		return rejectf(CodeAge, "it was verified at %s, longer ago than the %s allowed", v.TimeVerified.UTC().Format(time.RFC3339), want.MaxAge)
	}
	if end := v.TimeVerified.Add(want.MaxAge); want.MaxAge > 0 && (w.Until.IsZero() || end.Before(w.Until)) {
		w.Until = end
	}
	return nil
}

// vouched returns what the signer may say in the name of a verifier.id, and by
// which entries.
func vouched(id string, signer Signer, trusted []Verifier) (*Word, []Verifier, *Rejection) {
	word, known, late, near := &Word{VerifierID: id}, false, false, ""
	var found []Verifier
	for _, t := range trusted {
		if t.ID != id {
			if canonicalID(t.ID) == canonicalID(id) {
				near = fmt.Sprintf(" (the policy has %q; ids are compared byte by byte)", clip(t.ID))
			}
			continue
		}
		known = true
		same, intime := Builder{Key: t.Key, Identity: t.Identity, Window: t.Window}.signed(signer)
		late = late || same && !intime
		if !same || !intime {
			continue
		}
		found = append(found, t)
		word.Build, word.Source = max(word.Build, t.Build), max(word.Source, t.Source)
		word.Properties = append(word.Properties, t.Properties...)
	}
	switch {
	case found != nil:
		return word, found, nil
	case late:
		return nil, nil, rejectf(CodeVerifier, "%s signed for verifier %q at a time when the policy does not trust it to", signer, clip(id))
	case known:
		return nil, nil, rejectf(CodeVerifier, "%s is not the one trusted for verifier %q", signer, clip(id))
	}
	return nil, nil, rejectf(CodeVerifier, "verifier %q is not a trusted verifier%s", clip(id), near)
}

// say cuts the summary down to what its verifier is trusted for.
func (w *Word) say(v *VSA, want VSAOptions) *Word {
	believed := w.Properties
	w.Properties = nil
	note := func(format string, args ...any) { w.Notes = append(w.Notes, fmt.Sprintf(format, args...)) }
	limit := func(track Track, most int) int {
		level, stated := v.Levels[track]
		switch {
		case stated && level == Unevaluated:
			note("%s was not evaluated", track)
		case level > most:
			note("trust in this verifier ends at %s L%d, it says L%d", track, most, level)
		}
		return min(max(level, 0), most)
	}
	w.Build, w.Source = limit(TrackBuild, w.Build), limit(TrackSource, w.Source)
	for _, p := range v.Properties {
		if slices.Contains(believed, p) {
			w.Properties = append(w.Properties, p)
		} else {
			note("this verifier is not trusted about %s", p)
		}
	}
	for _, t := range v.Tracks {
		note("%s is of a track that SLSA v1.2 does not have, and ignored", clip(t))
	}
	for _, c := range v.Custom {
		if !slices.Contains(want.Names, c) {
			note("%s is the verifier's own name, and ignored", clip(c))
		}
	}
	return w
}

// names reports whether a resourceUri is of the place that is expected.
func (o VSAOptions) names(uri string) bool {
	return slices.Contains(o.URIs, uri) || o.Image != "" && o.purl(uri) || o.Repository != "" && SameRepository(uri, o.Repository)
}

// purl reports whether a package URL names the image: by its repository, which
// must be stated, and by its digest if one is.
// https://github.com/package-url/purl-spec/blob/main/types-doc/oci-definition.md
func (o VSAOptions) purl(uri string) bool {
	u, err := url.Parse(uri)
	if err != nil || u.Scheme != "pkg" || u.Opaque == "" || u.Fragment != "" {
		return false
	}
	name, version, versioned := strings.Cut(strings.TrimPrefix(u.Opaque, "oci/"), "@")
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil || !strings.HasPrefix(u.Opaque, "oci/") || len(query["repository_url"]) != 1 {
		return false
	}
	if version, err = url.PathUnescape(version); err != nil || versioned && version != string(o.Digest) {
		return false
	}
	return query.Get("repository_url") == o.Image && name == strings.ToLower(path.Base(o.Image))
}

func (o VSAOptions) places() []string {
	out := slices.Clone(o.URIs)
	if o.Repository != "" {
		out = append(out, o.Repository)
	}
	return out
}

func oneOf(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = fmt.Sprintf("%q", clip(s))
	}
	return strings.Join(out, " or ")
}

// Delegates says what of a verdict may rest on somebody's verification summary.
type Delegates struct {
	Build, Source, Properties bool
	// Expects: something is expected of source, build type or parameters. That
	// is never delegated, so there must be provenance to show it.
	Expects bool
}

// Some reports whether anything is delegated.
func (d Delegates) Some() bool { return d.Build || d.Source || d.Properties }

// Summary is a verification summary of the image that counts.
type Summary struct {
	Bundle attest.Digest
	Word   Word
}

// Delegate puts a summary's word in the place of the rows that the evidence
// itself does not meet, as far as they are delegated. Of several the one that
// leaves least open of what is asked stands; they are not added up. It returns
// the bundle that the result rests on, "" where it rests on none. Without a
// summary, why says what there is instead.
func (r Result) Delegate(d Delegates, summaries []Summary, asked Demand, why string) (Result, attest.Digest) {
	if !d.Some() {
		return r, ""
	}
	best, bundle := r, attest.Digest("")
	for _, s := range summaries {
		n := r.stand(d, s)
		left, least := lacking(n.Rows, asked), lacking(best.Rows, asked)
		if left < least || left == least && bundle != "" && s.Bundle < bundle {
			best, bundle = n, s.Bundle
		}
	}
	if bundle == "" {
		best.Rows = slices.Clone(r.Rows)
		if len(summaries) > 0 {
			why = fmt.Sprintf("the verification summary of %s does not stand in for it", clip(summaries[0].Word.VerifierID))
		}
		for i, row := range best.Rows {
			if row.Status != Met && d.leaves(row) && why != "" {
				best.Rows[i].Reason += "; " + why
			}
		}
	}
	return best, bundle
}

// lacking counts the rows that are asked for and not met.
func lacking(rows []Row, asked Demand) int {
	n := 0
	for _, r := range rows {
		if r.Status != Met && r.AskedBy(asked) {
			n++
		}
	}
	return n
}

// leaves reports whether a row may be answered by a summary.
func (d Delegates) leaves(r Row) bool {
	switch r.Track {
	case TrackBuild:
		return d.Build && r.ID != RowExpectations
	case TrackSource:
		return d.Source
	}
	return d.Properties
}

func (r Result) stand(d Delegates, s Summary) Result {
	out := r
	out.Rows = slices.Clone(r.Rows)
	w := s.Word
	for i, row := range out.Rows {
		says := row.Track == TrackBuild && row.Level <= w.Build || row.Track == TrackSource && row.Level <= w.Source ||
			row.Track == TrackProperty && (slices.Contains(w.Properties, row.Property) || row.ID == RowTwoParty && w.Source >= 4)
		// Where nothing is expected of the source, the build type and the
		// parameters, their being unknown is nothing against the image.
		expectations := row.ID == RowExpectations && d.Build && r.Candidate == nil
		unexpected := expectations && !d.Expects
		if expectations && d.Expects {
			out.Rows[i].Reason = "no summary can show that source, build type and parameters are as expected, and there is no provenance that counts"
			out.Rows[i].Hint = "attach the provenance, and trust its builder in the policy"
		}
		if row.Status == Met || !says || !d.leaves(row) && !unexpected {
			continue
		}
		out.Rows[i].Status, out.Rows[i].Hint = Met, ""
		if out.Rows[i].Reason = "by VSA of " + clip(w.VerifierID); unexpected {
			out.Rows[i].Reason += "; the policy expects nothing of source, build type and parameters"
		}
		out.Rows[i].Evidence = []Evidence{{Bundle: s.Bundle, Pointer: "/predicate/verifiedLevels"}}
	}
	out.Build = max(r.Build, reached(out.Rows, TrackBuild, MaxLevel))
	out.Source = max(r.Source, reached(out.Rows, TrackSource, MaxSourceLevel))
	out.Properties = nil
	for _, row := range out.Rows {
		if row.Property != "" && row.Status == Met {
			out.Properties = append(out.Properties, row.Property)
		}
	}
	return out
}
