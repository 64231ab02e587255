package verify

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Track is what a requirement is part of.
type Track string

// The tracks of SLSA v1.2, and what is verified beside them.
const (
	TrackBuild    Track = "build"
	TrackSource   Track = "source"
	TrackProperty Track = "property"
)

// The highest levels of the tracks of SLSA v1.2, and of the ladder of v0.1.
const (
	MaxLevel       = 3
	MaxSourceLevel = 4
	LadderLevel    = 4
)

// The verified properties: two of SLSA v1.2
// (https://slsa.dev/spec/v1.2/verified-properties), and two of our own, which
// for that reason do not begin with "SLSA_".
const (
	PropertyReproduced     = "SLSA_BUILD_REPRODUCED"
	PropertyTwoParty       = "SLSA_SOURCE_TWO_PARTY_REVIEWED"
	PropertyInputsComplete = "WAXSEAL_INPUTS_COMPLETE"
	PropertyHermetic       = "WAXSEAL_HERMETIC"
)

// The IDs of the requirements, TRACK.lN.NAME, in the order of Requirements.
const (
	RowExists       = "build.l1.provenance-exists"
	RowPlatform     = "build.l1.build-platform"
	RowProcess      = "build.l1.consistent-process"
	RowDistributed  = "build.l1.provenance-distributed"
	RowExpectations = "build.l1.expectations" // the verifier's own duty
	RowAuthentic    = "build.l2.provenance-authentic"
	RowHosted       = "build.l2.hosted"
	RowUnforgeable  = "build.l3.provenance-unforgeable"
	RowIsolated     = "build.l3.isolated"

	RowSourceSystem     = "source.l1.source-control-system"
	RowSourceRepository = "source.l1.repository-ids"
	RowSourceRevision   = "source.l1.revision-ids"
	RowSourceDiff       = "source.l1.human-readable-diff"
	RowSourceSummary    = "source.l1.source-summary"
	RowSourceAccess     = "source.l2.access-and-history"
	RowSourceExpunging  = "source.l2.safe-expunging-process"
	RowSourceHistory    = "source.l2.history"
	RowSourceContinuity = "source.l2.continuity"
	RowSourceIdentity   = "source.l2.identity-management"
	RowSourceProvenance = "source.l2.source-provenance"
	RowSourceControls   = "source.l3.technical-controls"
	RowSourceProtected  = "source.l3.protected-refs"
	RowSourceReview     = "source.l4.two-party-review"

	RowReproduced     = "property.reproduced"
	RowTwoParty       = "property.two-party-reviewed"
	RowInputsComplete = "property.inputs-complete"
	RowHermetic       = "property.hermetic"
)

const (
	specBuild      = "https://slsa.dev/spec/v1.2/build-requirements#"
	specVerifying  = "https://slsa.dev/spec/v1.2/verifying-artifacts#"
	specSource     = "https://slsa.dev/spec/v1.2/source-requirements#"
	specProperties = "https://slsa.dev/spec/v1.2/verified-properties#"
	specLadder     = "https://slsa.dev/spec/v0.1/requirements#"
	specInputs     = "https://waxseal.dev/attestations/inputs/v1#"
)

// Requirement is one line of what SLSA v1.2 and waxseal's own properties ask
// for. What it says is for people; a Row has the answer for one image.
type Requirement struct {
	ID       string `json:"id"` // stable, for programs
	Track    Track  `json:"track"`
	Level    int    `json:"level,omitempty"`    // the lowest of its track that asks for it; 0 for a property
	Property string `json:"property,omitempty"` // the name of a property in a VSA
	Title    string `json:"title"`              // the specification's name for it
	Clause   string `json:"clause"`             // URL into the specification
	// Ladder is the clause of SLSA v0.1 for what its level 4 asks for beyond
	// Build L3.
	Ladder   string `json:"ladder,omitempty"`
	Asks     string `json:"asks"`     // what it asks for
	Evidence string `json:"evidence"` // what would satisfy it
	Met      string `json:"met"`      // what each answer means
	NotMet   string `json:"notMet"`
	Unknown  string `json:"unknown"`
	Way      string `json:"way"` // the shortest way to get it

	// check answers for one candidate. Nil: the answer comes with the
	// candidate, as that of the source does.
	check func(*weighing) answer
}

// Requirements lists every requirement: the Build track, the Source track and
// the properties, the lowest level first.
func Requirements() []Requirement {
	return slices.Concat(buildRequirements(), sourceRequirements(), propertyRequirements())
}

func buildRequirements() []Requirement {
	const (
		trusted = "Signed provenance, and a policy that trusts its signer for its builder.id up to "
		hosted  = "build on a hosted builder (--builder-id URI) with maxLevel 2 in a policy"
		earned  = "name the builder in a policy with maxLevel 3, if it has earned that"
	)
	return []Requirement{
		{
			ID: RowExists, Track: TrackBuild, Level: 1, check: checkExists,
			Title: "Provenance exists", Clause: specBuild + "provenance-exists",
			Asks:     "There is provenance for exactly these bytes: who built them, how, and from what.",
			Evidence: "SLSA provenance whose subject is the image's digest and that can be read strictly. Build L1 alone needs no signature (--level 1); with a key or a policy only what is signed counts.",
			Met:      "provenance for this digest was found, and says how it was built",
			NotMet:   "none of what is attached is provenance for this digest that counts",
			Unknown:  "there is no provenance to tell it from",
			Way:      `build it with "waxseal build --key KEY"`,
		},
		{
			ID: RowPlatform, Track: TrackBuild, Level: 1, check: checkPlatform,
			Title: "Appropriate build platform", Clause: specBuild + "choose-an-appropriate-build-platform",
			Asks:     "It was built on a platform that is fit for the level that is asked for.",
			Evidence: "A builder.id that the trust knows: trust.builders of a policy, or any that a given key signs for.",
			Met:      "the builder is one that is trusted",
			NotMet:   "nobody trusted vouches for the builder",
			Unknown:  "there is no provenance to tell it from",
			Way:      "build on a builder that the policy trusts, or add this one to it",
		},
		{
			ID: RowProcess, Track: TrackBuild, Level: 1, check: checkProcess,
			Title: "Consistent build process", Clause: specBuild + "follow-a-consistent-build-process",
			Asks:     "The build follows a process that a verifier can have expectations of.",
			Evidence: "A buildType that is a URI, so that the parameters beside it have a meaning.",
			Met:      "the build type says what the parameters mean",
			NotMet:   "the build type is not a URI",
			Unknown:  "there is no provenance to tell it from",
			Way:      "have the builder name its build type by a URI",
		},
		{
			ID: RowDistributed, Track: TrackBuild, Level: 1, check: checkDistributed,
			Title: "Provenance distributed", Clause: specBuild + "distribute-provenance",
			Asks:     "Whoever gets the image can get the provenance.",
			Evidence: "Provenance that is attached to the image's digest in its registry, or given with --evidence.",
			Met:      "the provenance was found with the image",
			NotMet:   "none that counts is attached to this digest",
			Unknown:  "there is no provenance to tell it from",
			Way:      `attach it, as "waxseal build" does, or give it with --evidence`,
		},
		{
			ID: RowExpectations, Track: TrackBuild, Level: 1, check: checkExpectations,
			Title: "Expectations match", Clause: specVerifying + "step-2-check-expectations",
			Asks:     "Source, build type and parameters are those that are expected of this image.",
			Evidence: "Provenance that says what the policy expects (source, buildTypes, parameters). Without a policy nothing is expected.",
			Met:      "it is as expected",
			NotMet:   "something is not as the policy expects",
			Unknown:  "there is no provenance to tell it from",
			Way:      "build it as expected, or say in the policy that this is meant",
		},
		{
			ID: RowAuthentic, Track: TrackBuild, Level: 2, check: checkAuthentic,
			Title: "Provenance is authentic", Clause: specBuild + "provenance-authentic",
			Asks:     "The build platform itself signed the provenance, so that who received it can tell.",
			Evidence: trusted + "L2 or higher; or a given key that signs for a builder that is not a machine of somebody's own.",
			Met:      "signed by whom the trust names for this builder.id",
			NotMet:   "no signature of the platform on it was verified",
			Unknown:  "trust in this builder does not go that far",
			Way:      hosted,
		},
		{
			ID: RowHosted, Track: TrackBuild, Level: 2, check: checkHosted,
			Title: "Hosted", Clause: specBuild + "hosted",
			Asks:     "The build ran on a hosted platform, on shared or dedicated machines, and not on a workstation.",
			Evidence: "Nothing in a build can show it. " + trusted + "L2 or higher.",
			Met:      "the trust says that a hosted platform has this builder.id",
			NotMet:   "the builder.id says that nobody hosts the build",
			Unknown:  "trust in this builder does not go that far",
			Way:      hosted,
		},
		{
			ID: RowUnforgeable, Track: TrackBuild, Level: 3, check: checkUnforgeable,
			Title: "Provenance is unforgeable", Clause: specBuild + "provenance-unforgeable",
			Asks:     "No step of a build can reach the signing key, and the platform itself wrote down all external parameters.",
			Evidence: trusted + "L3, and that does not say itself that its parameters are incomplete.",
			Met:      "the trust says that the builder keeps the key from its builds",
			NotMet:   "the builds can reach the key, or the parameters are not all there",
			Unknown:  "trust in this builder does not go that far",
			Way:      earned,
		},
		{
			ID: RowIsolated, Track: TrackBuild, Level: 3, check: checkIsolated,
			Title: "Isolated", Clause: specBuild + "isolated",
			Asks:     "No build can influence another, at the same time or later, and none leaves behind what another uses.",
			Evidence: trusted + "L3, and that names no cache from elsewhere (cacheFrom).",
			Met:      "the trust says that the builder keeps its builds apart",
			NotMet:   "a build cache from elsewhere was used",
			Unknown:  "trust in this builder does not go that far",
			Way:      earned,
		},
	}
}

func sourceRequirements() []Requirement {
	const (
		summary = "A source VSA for the commit that the provenance names, of SLSA_SOURCE_LEVEL_"
		by      = ", from a verifier that the policy trusts (trust.verifiers)"
		unknown = "no evidence about the source"
		want    = "have a verifier of the policy issue a source VSA for the commit"
	)
	higher := func(level int) string {
		if level == MaxSourceLevel {
			return ""
		}
		return " or higher"
	}
	system := func(level int, id, title, anchor, asks, evidence, way string) Requirement {
		q := Requirement{
			ID: id, Track: TrackSource, Level: level, Title: title, Clause: specSource + anchor, Asks: asks,
			Evidence: summary + strconv.Itoa(level) + higher(level) + by + evidence + ".",
			Met:      "the evidence about the source says so", NotMet: "the evidence about the source says that it is not so", Unknown: unknown,
			Way: want,
		}
		if way != "" {
			q.Way = way
		}
		return q
	}
	const attested = "; or source provenance that shows it, from whom the policy trusts for it"
	return []Requirement{
		system(1, RowSourceSystem, "Source control system", "choose-scs",
			"The source is kept in a source control system that can reach the level that is asked for.",
			attested, ""),
		system(1, RowSourceRepository, "Identifiable repositories", "repository-ids",
			"The repository has a stable address of its own.",
			"; or provenance that names the repository, and evidence about the source that names the same one", `build from a git checkout with a remote, so that the provenance names it`),
		system(1, RowSourceRevision, "Revisions are immutable", "revision-ids",
			"The revision has an identifier that never means anything else, as a git commit has.",
			"; or provenance that pins the commit, from a tree without changes", "build from a clean checkout, so that the provenance pins the commit"),
		system(1, RowSourceDiff, "Human readable changes", "human-readable-diff",
			"The system shows people what changed from one revision to another.",
			attested, ""),
		system(1, RowSourceSummary, "Source VSAs", "source-summary",
			"The system issues a verification summary for each revision and gives it to whoever may have the source.",
			"", ""),
		system(2, RowSourceAccess, "Access and history", "access-and-history",
			"Access to what is sensitive is restricted, history is kept reliably, and tags are not moved or deleted.",
			attested, "restrict who may write, and protect the tags"),
		system(2, RowSourceExpunging, "Safe expunging process", "safe-expunging-process",
			"Content is taken out of the history only for legal or privacy reasons, by a process that is written down.",
			attested, "write down how content is removed from the history, and by whom"),
		system(2, RowSourceHistory, "History", "history",
			"All changes of branches and tags are recorded, with when and by whom; a branch only ever moves to descendants.",
			attested, "forbid force pushes to the branch"),
		system(2, RowSourceContinuity, "Continuity", "continuity",
			"Each control that is claimed has been in force without a lapse since a revision that is named.",
			attested, "leave the protection on for everybody, administrators too"),
		system(2, RowSourceIdentity, "Identity management", "identity-management",
			"Those who act are identified and authenticated, and who may do what is configured.",
			attested, ""),
		system(2, RowSourceProvenance, "Source provenance", "source-provenance",
			"When a branch moves, the system attests how the revision came about: by whom, when, under which controls.",
			attested, "have source provenance written when the branch moves"),
		system(3, RowSourceControls, "Continuous controls", "technical-controls",
			"What the organisation claims of its process is enforced by controls whose meaning is written down.",
			attested, "enforce by protection rules what is claimed of the process"),
		system(3, RowSourceProtected, "Protected named references", "protected-refs",
			"The organisation says which branches and tags are protected, and the system enforces it for them.",
			attested, "protect the branch or tag that releases are built from"),
		system(4, RowSourceReview, "Two-party review", "two-party-review",
			"Two different trusted persons agreed to every change of a protected branch, its final form included, before it got there.",
			attested+". Reviews of one commit show property.two-party-reviewed; that every change is reviewed they do not show", "require the approval of a second person before a change is merged"),
	}
}

func propertyRequirements() []Requirement {
	const record = "A record of inputs (https://waxseal.dev/attestations/inputs/v1) that the provenance names by digest and that the same signer signed"
	return []Requirement{
		{
			ID: RowReproduced, Track: TrackProperty, Property: PropertyReproduced, check: checkReproduced,
			Title: "Build reproduced", Clause: specProperties + "slsa_build_reproduced",
			Asks:     "Two or more build platforms, operated independently and each of them trusted, built exactly these bytes.",
			Evidence: "Provenance of two trusted builders for the same digest, both as it is expected and of the same source, or provenance of one and a rebuild (https://waxseal.dev/attestations/rebuild/v1) of the other that says \"reproduced\". Those with the same builder.id, name in the policy, key, identity or issuer of identities count once; what is only equivalent does not count.",
			Met:      "builders independent of each other agree on the digest",
			NotMet:   "who else says so is no second, independent builder, or came to other bytes",
			Unknown:  "only one builder says that it built this digest",
			Way:      `have another trusted builder run "waxseal rebuild --sign-key KEY"`,
		},
		{
			ID: RowTwoParty, Track: TrackProperty, Property: PropertyTwoParty, Ladder: specLadder + "two-person-reviewed", check: checkTwoParty,
			Title: "Source reviewed by two", Clause: specProperties + "slsa_source_two_party_reviewed",
			Asks:     "Two trusted persons reviewed the source that the image was built from, at whatever Source level.",
			Evidence: "A source VSA that lists SLSA_SOURCE_TWO_PARTY_REVIEWED or Source L4, source provenance that shows it, or reviews of the commit (https://waxseal.dev/attestations/review/v1) by two trusted reviewers, none of them an author of it.",
			Met:      "two trusted persons reviewed the source",
			NotMet:   "the evidence about the source does not show that two reviewed it",
			Unknown:  "no evidence about the source",
			Way:      `have two reviewers of the policy run "waxseal approve"`,
		},
		{
			ID: RowInputsComplete, Track: TrackProperty, Property: PropertyInputsComplete, Ladder: specLadder + "dependencies-complete", check: checkInputsComplete,
			Title: "Inputs complete", Clause: specInputs + "verdicts",
			Asks:     "Every byte that reached a build step from outside is in the record, by digest.",
			Evidence: record + ", and whose every step was isolated or recorded without a gap. It is computed from the steps; no flag in a provenance counts, BuildKit's neither.",
			Met:      "every step was isolated or recorded, without a gap",
			NotMet:   "the record has gaps, or nobody watched",
			Unknown:  "the provenance names no record of inputs",
			Way:      `build with "waxseal build", without host network and cache mounts`,
		},
		{
			ID: RowHermetic, Track: TrackProperty, Property: PropertyHermetic, Ladder: specLadder + "hermetic", check: checkHermetic,
			Title: "Hermetic", Clause: specInputs + "verdicts",
			Asks:     "What the build steps could reach was decided before the build: a lock, or no network at all; and every byte is recorded.",
			Evidence: record + ", in mode none, or locked or offline under a lock, without a gap. It is computed from the steps; no flag in a provenance counts, BuildKit's neither.",
			Met:      "every step was held to a lock or had no network",
			NotMet:   "the build could reach what nobody had decided on",
			Unknown:  "the provenance names no record of inputs",
			Way:      "build again with --inputs locked, or with --inputs none",
		},
	}
}

// Levels holds one level for each SLSA track.
type Levels struct {
	Build  int `json:"build"`
	Source int `json:"source"`
}

// Demand is what an image is asked to carry: a level of each track, and
// properties by their names in a VSA. The zero Demand asks for nothing.
type Demand struct {
	Levels
	Properties []string `json:"properties,omitempty"` // in the order of Requirements
}

// AskedBy reports whether a demand rests on the requirement.
func (q Requirement) AskedBy(d Demand) bool { return d.asks(q.Track, q.Level, q.Property) }

// AskedBy reports whether a demand rests on the row.
func (r Row) AskedBy(d Demand) bool { return d.asks(r.Track, r.Level, r.Property) }

func (d Demand) asks(track Track, level int, property string) bool {
	switch track {
	case TrackBuild:
		return level <= d.Build
	case TrackSource:
		return level <= d.Source
	}
	return slices.Contains(d.Properties, property)
}

// Check refuses a demand for nothing, or for what does not exist.
func (d Demand) Check() error {
	for _, name := range d.Properties {
		if !slices.Contains(Properties(), name) {
			return fmt.Errorf("property %q does not exist", clip(name))
		}
	}
	switch {
	case d.Build < 0 || d.Build > MaxLevel:
		return fmt.Errorf("level %d does not exist: SLSA v1.2 has Build L1 to L%d", d.Build, MaxLevel)
	case d.Source < 0 || d.Source > MaxSourceLevel:
		return fmt.Errorf("level %d does not exist: SLSA v1.2 has Source L1 to L%d", d.Source, MaxSourceLevel)
	case d.Levels == Levels{} && len(d.Properties) == 0:
		return errors.New("level 0 is no demand")
	}
	return nil
}

// Records reports whether the demand rests on a record of inputs.
func (d Demand) Records() bool {
	return slices.Contains(d.Properties, PropertyInputsComplete) || slices.Contains(d.Properties, PropertyHermetic)
}

// And is what both demands ask for together.
func (d Demand) And(o Demand) Demand {
	out := Demand{Levels: Levels{Build: max(d.Build, o.Build), Source: max(d.Source, o.Source)}}
	for _, name := range Properties() {
		if slices.Contains(d.Properties, name) || slices.Contains(o.Properties, name) {
			out.Properties = append(out.Properties, name)
		}
	}
	return out
}

// Fulfilled reports whether levels and properties that were reached are enough.
func (d Demand) Fulfilled(reached Levels, properties []string) bool {
	for _, name := range d.Properties {
		if !slices.Contains(properties, name) {
			return false
		}
	}
	return reached.Build >= d.Build && reached.Source >= d.Source
}

// String is the demand in words: "Build L3, Source L2, WAXSEAL_HERMETIC".
func (d Demand) String() string {
	parts := []string{fmt.Sprintf("Build L%d", d.Build)}
	if d.Source > 0 {
		parts = append(parts, fmt.Sprintf("Source L%d", d.Source))
	}
	return strings.Join(append(parts, d.Properties...), ", ")
}

// Properties lists the names of the verified properties, in the order of
// Requirements.
func Properties() []string {
	return []string{PropertyReproduced, PropertyTwoParty, PropertyInputsComplete, PropertyHermetic}
}

// Ladder is level 4 of SLSA v0.1, spelled out in what there is today:
// https://slsa.dev/spec/v0.1/levels
func Ladder() Demand {
	d := Demand{Levels: Levels{Build: MaxLevel}}
	for _, q := range Requirements() {
		if q.Ladder != "" {
			d.Properties = append(d.Properties, q.Property)
		}
	}
	return d
}

// ParseDemand reads "N", "build=N", "source=N" or several of the latter with
// commas between them. "4" alone is the Ladder.
func ParseDemand(s string) (Demand, error) {
	d, err := parseDemand(s)
	if err != nil {
		return Demand{}, fmt.Errorf("level %q: %w", clip(s), err)
	}
	return d, nil
}

func parseDemand(s string) (Demand, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n == LadderLevel {
			return Ladder(), nil
		}
		s = "build=" + s
	}
	var d Demand
	for _, part := range strings.Split(s, ",") {
		track, number, _ := strings.Cut(part, "=")
		to, most := &d.Build, MaxLevel
		switch Track(track) {
		case TrackBuild:
		case TrackSource:
			to, most = &d.Source, MaxSourceLevel
		default:
			return d, errors.New("give N, build=N, source=N, or build=N,source=N")
		}
		n, err := strconv.Atoi(number)
		switch {
		case *to != 0:
			return d, fmt.Errorf("the %s track stands twice", track)
		case Track(track) == TrackBuild && n == LadderLevel && err == nil:
			return d, fmt.Errorf("SLSA v1.2 has Build L1 to L%d; %d alone is the ladder of SLSA v0.1", MaxLevel, LadderLevel)
		case err != nil || n < 1 || n > most:
			return d, fmt.Errorf("the %s level is a number from 1 to %d", track, most)
		}
		*to = n
	}
	return d, nil
}

// Find returns the requirement with an ID, or the property of that name. The error names the one that was
// most likely meant.
func Find(id string) (Requirement, error) {
	for _, q := range Requirements() {
		if q.ID == id || q.Property == id && id != "" {
			return q, nil
		}
	}
	near := Nearest(id)
	if near == "" {
		return Requirement{}, fmt.Errorf("there is no requirement %q", clip(id))
	}
	return Requirement{}, fmt.Errorf("there is no requirement %q; did you mean %q?", clip(id), near)
}

// Nearest is the ID that somebody who wrote id most likely meant: one that ends
// in it, as all did before tracks were part of them, the property of that
// name, or one that is only a few letters away. "" when none is near.
func Nearest(id string) string {
	if id = clip(strings.TrimSpace(id)); id == "" {
		return ""
	}
	best, least := "", 6
	for _, q := range Requirements() {
		_, name, _ := strings.Cut(q.ID, ".")
		if q.Track != TrackProperty {
			_, name, _ = strings.Cut(name, ".")
		}
		if strings.EqualFold(name, id) || strings.EqualFold(q.Property, id) || strings.EqualFold(q.ID, id) {
			return q.ID
		}
		if n := min(distance(q.ID, strings.ToLower(id)), distance(name, strings.ToLower(id))); n < least && 3*n < len(id) {
			best, least = q.ID, n
		}
	}
	return best
}

// distance is the number of letters to change, add or take away to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := diagonal
			if a[i-1] != b[j-1] {
				change++
			}
			diagonal = row[j]
			row[j] = min(change, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
