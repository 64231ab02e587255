package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Verifiers are those whose verification summaries count.
func (p *Policy) Verifiers() []verify.Verifier {
	var out []verify.Verifier
	for _, v := range p.verifiers {
		b := v.signer.builder(v.id, 1)
		out = append(out, verify.Verifier{
			ID: v.id, Key: b.Key, Identity: b.Identity, Window: b.Window,
			Build: v.levels.Build, Source: v.levels.Source, Properties: slices.Clone(v.properties),
			PolicyURI: v.policyURI, PolicyDigest: v.policyDigest, MaxAge: v.maxAge,
		})
	}
	return out
}

// Sources returns the highest Source level that a signer's source provenance
// counts for in a repository, and whether it is believed about two-party review;
// 0: it does not count, and why.
func (p *Policy) Sources(signer verify.Signer, repository string) (level int, twoParty bool, why string) {
	near := false
	for _, s := range p.systems {
		if !matches(s.repository, verify.RepositoryURL(repository)) {
			continue
		}
		near = true
		if (verify.Trust{Builders: []verify.Builder{s.signer.builder("", 1)}}).Cap(signer, "").Level > 0 {
			level, twoParty = max(level, s.maxLevel), twoParty || s.twoParty
		}
	}
	switch {
	case level > 0:
		return level, twoParty, ""
	case near:
		return 0, false, fmt.Sprintf("%s is not the one trusted about the source of %q at that time", signer, clip(repository))
	}
	return 0, false, fmt.Sprintf("trust.sources has nobody for the repository %q", clip(repository))
}

// Reviewer returns the trusted person that a signer is. Somebody who has several
// keys is one person, with the aliases of all entries, and builds if one of
// the keys does.
func (p *Policy) Reviewer(signer, builder verify.Signer) (verify.Reviewer, bool) {
	i := slices.IndexFunc(p.reviewers, func(r reviewer) bool { return r.signs(signer) })
	if i < 0 {
		return verify.Reviewer{}, false
	}
	out := verify.Reviewer{Name: p.reviewers[i].name}
	for _, r := range p.reviewers {
		if samePerson(r.name, out.Name) {
			out.Aliases = append(out.Aliases, r.aliases...)
			out.Builds = out.Builds || r.signer.is(builder)
		}
	}
	return out, true
}

// signs reports whether the signature is the reviewer's, and was made when
// theirs counted.
func (r reviewer) signs(by verify.Signer) bool {
	return (verify.Trust{Builders: []verify.Builder{r.signer.builder("", 1)}}).Cap(by, "").Level > 0
}

// samePerson reports whether two names are of one person, as a verdict counts
// them.
func samePerson(a, b string) bool {
	return strings.EqualFold(strings.TrimSpace(a), strings.TrimSpace(b))
}

// Summary says what the image's verification summaries must be like, an entry
// each; all must hold of one that counts. None: they are not asked about.
func (r Rule) Summary() []Summary {
	var out []Summary
	for _, e := range r.entries {
		if v := e.vsa; v != nil {
			out = append(out, Summary{Required: v.required, Options: verify.VSAOptions{
				Verifiers: slices.Clone(v.verifiers), PolicyURI: v.policyURI, PolicyDigest: v.policyDigest,
				MaxAge: v.maxAge, Names: slices.Clone(v.names),
			}, ResourceURI: v.resourceURI})
		}
	}
	return out
}

// Summary is what one entry says of verification summaries.
type Summary struct {
	// Required: without one the image is denied.
	Required bool
	// Options but for the place, the subject and the moment.
	Options verify.VSAOptions
	// ResourceURI is the place; empty: the image's own name.
	ResourceURI string
}

// Delegates says what a verification summary may stand in for: what every
// entry that asks for it leaves to one.
func (r Rule) Delegates() verify.Delegates {
	all := func(what string, asks func(verify.Demand) bool) bool {
		some := false
		for _, e := range r.entries {
			delegated := e.vsa != nil && slices.Contains(e.vsa.delegates, what)
			if some = some || delegated; asks(e.level) && !delegated {
				return false
			}
		}
		return some
	}
	return verify.Delegates{
		Build:      all(delegateBuild, func(d verify.Demand) bool { return d.Build > 0 }),
		Source:     all(delegateSource, func(d verify.Demand) bool { return d.Source > 0 }),
		Properties: all(delegateProperties, func(d verify.Demand) bool { return len(d.Properties) > 0 }),
		Expects: slices.ContainsFunc(r.entries, func(e image) bool {
			return e.repository != "" || e.ref != nil || e.workflow != nil || len(e.buildTypes) > 0 || len(e.parameters) > 0
		}),
	}
}

// OnRef reports whether one of a revision's named references is one that every
// entry expects. Where none is expected, any is and none is as well.
func (r Rule) OnRef(refs []string) bool {
	for _, e := range r.entries {
		if !e.onRef(refs) {
			return false
		}
	}
	return true
}

func (i image) onRef(refs []string) bool {
	return i.ref == nil || slices.ContainsFunc(refs, i.ref.Match)
}

// ReviewAge is how old a review may be; 0: any age.
func (r Rule) ReviewAge() time.Duration {
	var out time.Duration
	for _, e := range r.entries {
		if e.reviewAge > 0 && (out == 0 || e.reviewAge < out) {
			out = e.reviewAge
		}
	}
	return out
}

// Quorum is how many different people or systems an image asks for: who approve
// its source, or sign its provenance.
type Quorum struct {
	AtLeast int
	Of      []string // their names; none: any that are trusted

	kind string // what they are, where they have no names
}

// Counts reports whether somebody is one of those who are asked for.
func (a Quorum) Counts(name string) bool {
	return len(a.Of) == 0 || slices.ContainsFunc(a.Of, func(o string) bool { return samePerson(o, name) })
}

func (a Quorum) String() string {
	if len(a.Of) == 0 {
		return fmt.Sprintf("%d different trusted %s", a.AtLeast, a.kind)
	}
	names := make([]string, len(a.Of))
	for i, n := range a.Of {
		names[i] = strconv.Quote(n)
	}
	return fmt.Sprintf("%d of %s", a.AtLeast, strings.Join(names, ", "))
}

// Approvals is what each entry asks for; all must hold.
func (r Rule) Approvals() []Quorum {
	var out []Quorum
	for _, e := range r.entries {
		if e.approvals != nil {
			out = append(out, *e.approvals)
		}
	}
	return out
}

// Signatures is what each entry asks for; all must hold of one provenance.
func (r Rule) Signatures() []Quorum {
	var out []Quorum
	for _, e := range r.entries {
		if e.signatures != nil {
			out = append(out, *e.signatures)
		}
	}
	return out
}

// Signatory tells the signers of provenance apart: by the name that the policy
// gives one, else by the key, or by the issuer and name of the certificate: one
// workflow at two tags is one. Two signers with the same id are one.
func (p *Policy) Signatory(by verify.Signer) (id, name string) {
	if i := slices.IndexFunc(p.builders, func(b builder) bool { return b.name != "" && b.signer.is(by) }); i >= 0 {
		// As the first of their entries spells it.
		first := slices.IndexFunc(p.builders, func(b builder) bool { return samePerson(b.name, p.builders[i].name) })
		name = p.builders[first].name
		return strings.ToLower(strings.TrimSpace(name)), name
	}
	if by.SAN != "" {
		return fmt.Sprintf("certificate %q %q", by.Issuer, by.Unversioned()), ""
	}
	return "key " + string(by.Key), ""
}

// words says whose summaries, source provenance and reviews count, a line each.
func (p *Policy) words() []string {
	var out []string
	for _, v := range p.verifiers {
		out = append(out, fmt.Sprintf("trusts verifier %q, signed by %s, about %s", v.id, v.signer, v.about()))
	}
	for _, s := range p.systems {
		line := fmt.Sprintf("trusts %s about the source of %q, up to Source L%d", s.signer, s.repository, s.maxLevel)
		if s.twoParty {
			line += ", and about " + verify.PropertyTwoParty + " at any level"
		}
		out = append(out, line)
	}
	for _, r := range p.reviewers {
		line := fmt.Sprintf("trusts the reviews of %q, signed by %s", r.name, r.signer)
		if len(r.aliases) > 0 {
			line += ", who is also " + strings.Join(r.aliases, ", ")
		}
		out = append(out, line)
	}
	return out
}

func (v verifier) about() string {
	var parts []string
	if v.levels.Build > 0 {
		parts = append(parts, fmt.Sprintf("Build up to L%d", v.levels.Build))
	}
	if v.levels.Source > 0 {
		parts = append(parts, fmt.Sprintf("Source up to L%d", v.levels.Source))
	}
	line := strings.Join(append(parts, v.properties...), ", ") + v.under.words()
	if v.maxAge > 0 {
		line += ", not older than " + verify.Span(v.maxAge)
	}
	return line
}

// words are the rest of a sentence about a summary.
func (u under) words() string {
	if u.policyURI == "" {
		return ""
	}
	text := fmt.Sprintf(", under the policy %q", u.policyURI)
	if u.policyDigest != "" {
		text += " with digest " + string(u.policyDigest)
	}
	return text
}

// sentence says what the summary must be like and what it stands in for.
func (s *summary) sentence() string {
	by := "a trusted verifier"
	if len(s.verifiers) > 0 {
		by = list(s.verifiers)
	}
	text := "verification summary by " + by + s.under.words()
	if s.resourceURI != "" {
		text += fmt.Sprintf(", made for %q", s.resourceURI)
	}
	if s.maxAge > 0 {
		text += ", not older than " + verify.Span(s.maxAge)
	}
	if len(s.names) > 0 {
		text += ", that says " + strings.Join(s.names, " and ")
	}
	var what []string
	for _, d := range s.delegates {
		what = append(what, map[string]string{delegateBuild: "Build level", delegateSource: "Source level", delegateProperties: "properties"}[d])
	}
	shown := strings.Join(what, " and ")
	switch {
	case !s.required:
		return fmt.Sprintf("may have its %s shown by a %s", shown, text)
	case shown == "":
		return "must have a " + text
	}
	return fmt.Sprintf("must have a %s; it may show its %s", text, shown)
}

// brief is the summary in a few words, with a comma before it.
func (s *summary) brief() string {
	switch {
	case s == nil:
		return ""
	case len(s.delegates) == 0:
		return ", a VSA"
	case s.required:
		return ", a VSA, which can show " + strings.Join(s.delegates, " and ")
	}
	return ", " + strings.Join(s.delegates, " and ") + " by VSA"
}

// warnings says what of an entry nothing can fulfil, and where it may ask for less
// than it seems to.
func (p *Policy) warnings(i image) []string {
	var out []string
	if !nameable(i.match) {
		out = append(out, fmt.Sprintf("no image is called %q: a name begins with the host of its registry, as docker.io/library/app", i.match))
	}
	if i.vulns != nil && i.vulns.silent() != "" {
		out = append(out, fmt.Sprintf("nothing is said of %s vulnerabilities, which are worse than those that are limited", i.vulns.silent()))
	}
	build := i.level.Build == 0 || p.reaches(i.level.Build)
	source := i.level.Source == 0 || slices.ContainsFunc(p.systems, func(s system) bool { return s.maxLevel >= i.level.Source })
	for _, v := range p.verifiers {
		build = build || i.vsa != nil && slices.Contains(i.vsa.delegates, delegateBuild) && v.levels.Build >= i.level.Build
		source = source || v.levels.Source >= i.level.Source
	}
	if !build {
		out = append(out, fmt.Sprintf("no builder is trusted up to Build L%d, so nothing can fulfil this", i.level.Build))
	}
	if !source {
		out = append(out, fmt.Sprintf("nobody is trusted about the source up to Source L%d, so nothing can fulfil this", i.level.Source))
	}
	if slices.Contains(i.level.Properties, verify.PropertyTwoParty) && !p.reviewed() {
		out = append(out, fmt.Sprintf("nobody is believed about %s, so nothing can fulfil this: name two reviewers, or list it in the properties of a verifier or of who is trusted about the source", verify.PropertyTwoParty))
	}
	for _, k := range []Fact{FactSBOM, FactScan, FactInputs} {
		if i.asks(k) && !p.hears(k) {
			out = append(out, fmt.Sprintf("nobody is believed about %s, so nothing can fulfil this: name an attester, or a builder by its id alone", k.plural()))
		}
	}
	return out
}

// reviewed reports whether anything could show that two people reviewed a source.
func (p *Policy) reviewed() bool {
	return slices.ContainsFunc(p.systems, func(s system) bool { return s.twoParty }) ||
		slices.ContainsFunc(p.verifiers, func(v verifier) bool {
			return v.levels.Source >= verify.MaxSourceLevel || slices.Contains(v.properties, verify.PropertyTwoParty)
		}) ||
		slices.ContainsFunc(p.reviewers, func(r reviewer) bool { return !samePerson(r.name, p.reviewers[0].name) })
}

// asks reports whether an entry cannot be fulfilled without a kind of evidence.
func (i image) asks(k Fact) bool {
	return slices.ContainsFunc(i.rules, func(r rule) bool { return slices.Contains(r.needs, k) }) ||
		k == FactSBOM && (i.sbom || i.packages != nil) || k == FactScan && i.vulns != nil ||
		k == FactInputs && i.level.Records() && (i.vsa == nil || !slices.Contains(i.vsa.delegates, delegateProperties))
}

// hears reports whether there is anybody who is believed about it.
func (p *Policy) hears(k Fact) bool {
	return len(p.speaking()) > 0 || slices.ContainsFunc(p.attesters, func(a attester) bool { return a.fact == k })
}

// Names are whom a policy's text calls a reviewer, and the keys that it names:
// files, as it names them, and references to a KMS. For who helps to write a
// command: nothing of the text is checked.
func Names(raw []byte) (reviewers, keys []string) {
	var doc struct {
		Trust map[string][]struct {
			Name, Key, KMS string
			Signer         struct{ Key, KMS string }
		}
	}
	if len(raw) > attest.MaxPolicy || shallow(raw) != nil || yaml.Unmarshal(raw, &doc) != nil {
		return nil, nil
	}
	for list, entries := range doc.Trust {
		for _, e := range entries {
			if list == "reviewers" {
				reviewers = append(reviewers, e.Name)
			}
			keys = append(keys, e.Key, e.KMS, e.Signer.Key, e.Signer.KMS)
		}
	}
	once := func(names []string) []string {
		names = slices.DeleteFunc(names, func(n string) bool { return n == "" })
		slices.Sort(names)
		return slices.Compact(names)
	}
	return once(reviewers), once(keys)
}
