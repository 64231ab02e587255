// Package policy says what is expected of an image: who may have built it,
// which SLSA level it must carry, and from what. Call Load on a file or Parse
// on bytes; the Policy that comes back is complete and consistent. Then ask
// For with an image's name, and the Rule for what is not as expected.
//
// A policy is YAML under schema.json. What the file does not say is refused:
// an unknown field, an image that no entry matches, a build parameter that no
// entry allows.
package policy

import (
	"cmp"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// The apiVersion and kind of a policy.
const (
	APIVersion = "waxseal.dev/v1"
	Kind       = "Policy"
)

//go:embed schema.json
var schema []byte

// Schema returns the JSON Schema of a policy.
func Schema() []byte { return slices.Clone(schema) }

// Policy is a checked policy.
type Policy struct {
	builders []builder
	images   []image
	signers  signers
	digest   attest.Digest
	// speakers says whose word counts for which kind of evidence: Builder.ID
	// is the Fact.
	speakers  []verify.Builder
	attesters []attester
	verifiers []verifier
	systems   []system
	reviewers []reviewer
	extends   []attest.Digest // the policies it extends, the nearest first
	path      string
	// files are the keys, roots and CAs that it and the policies it extends name.
	files []attestations.PolicyFile
}

type image struct {
	line       int // of its file
	match      string
	level      verify.Demand // levels and properties
	repository string
	// allowChanges accepts a tree that is not exactly the commit's.
	allowChanges bool
	ref          *verify.Pattern // what it may be built from; nil: any
	workflow     *verify.Pattern // what may have been started; nil: anything
	reviewAge    time.Duration   // how old a review of the source may be; 0: any age
	approvals    *Quorum         // how many must approve; nil: nobody
	signatures   *Quorum         // how many must sign the provenance; nil: one
	vsa          *summary        // nil: not asked about
	buildTypes   []string
	parameters   map[string]allowed
	sbom         bool
	formats      []string
	dependencies *dependencies
	demands
}

// allowed is what a build parameter may be set to.
type allowed struct {
	any    bool
	values []string
}

// ParseOptions configures Parse.
type ParseOptions struct {
	// Name is what messages call the policy; default "policy".
	Name string
	// ReadKey returns the bytes of a signer's key, trusted root, CA or revocation file, as
	// the policy names it. Nil: a policy that names a file is refused.
	ReadKey func(name string) ([]byte, error)
	// ReadPolicy returns the bytes of the policy that this one extends, as it
	// names it, and how to read that one. Nil: a policy that extends another
	// is refused.
	ReadPolicy func(name string) ([]byte, ParseOptions, error)

	// ReadKMS returns the public key (PEM) that a reference to a key management
	// service names. Nil: a policy with one is refused.
	ReadKMS func(ref string) ([]byte, error)

	chain []string // names of the policies that extend this one
}

// Load reads the policy file at path and the keys it names, relative to it.
func Load(path string) (*Policy, error) { return LoadWith(path, LoadOptions{}) }

// LoadOptions configures LoadWith.
type LoadOptions struct {
	// ReadKMS is that of ParseOptions.
	ReadKMS func(ref string) ([]byte, error)
	// Check, if given, is asked about every file before it is read; its error is
	// that of reading it.
	Check func(path string) error
}

// LoadWith is Load for a policy that may name keys which are in no file.
func LoadWith(path string, opts LoadOptions) (*Policy, error) {
	raw, err := opts.read(path, attest.MaxPolicy)
	if err != nil {
		return nil, fmt.Errorf("reading policy %q: %w", path, err)
	}
	p, err := Parse(raw, fileOptions(path, opts))
	if err != nil {
		return nil, err
	}
	p.path = path
	return p, nil
}

// fileOptions reads what a policy file names, relative to it.
func fileOptions(path string, opts LoadOptions) ParseOptions {
	beside := func(name string) string {
		if filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(filepath.Dir(path), name)
	}
	return ParseOptions{
		Name:    path,
		ReadKey: func(name string) ([]byte, error) { return opts.read(beside(name), attest.MaxCRL) }, // what reads them has limits of its own
		ReadPolicy: func(name string) ([]byte, ParseOptions, error) {
			raw, err := opts.read(beside(name), attest.MaxPolicy)
			return raw, fileOptions(beside(name), opts), err
		},
		ReadKMS: opts.ReadKMS,
	}
}

func (o LoadOptions) read(path string, limit int64) ([]byte, error) {
	if o.Check != nil {
		if err := o.Check(path); err != nil {
			return nil, err
		}
	}
	return readFile(path, limit)
}

// readFile reads a regular file of at most limit bytes: a device or a pipe
// under a policy's name would never end.
func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("%s is larger than the %d bytes allowed", path, limit)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s is larger than the %d bytes allowed", path, limit)
	}
	return raw, nil
}

// Digest is the sha256 of the policy's bytes.
func (p *Policy) Digest() attest.Digest { return p.digest }

// Path is the file that the policy was loaded from, or "".
func (p *Policy) Path() string { return p.path }

// Trust is the policy's roots of trust.
func (p *Policy) Trust() verify.Trust {
	t := p.signers.trust()
	for _, b := range p.builders {
		t.Builders = append(t.Builders, b.trust)
	}
	return t
}

// Patterns lists the image patterns, in the order of the file.
func (p *Policy) Patterns() []string {
	var out []string
	for _, i := range p.images {
		out = append(out, i.match)
	}
	return out
}

// Rule is what the policy expects of one image: every entry that matches it,
// together. The strictest of each holds.
type Rule struct {
	entries  []image
	builders []builder
}

// For returns the rule for an image, named without tag and digest, as
// "host/repository" or "oci:PATH". False: no entry matches, which denies.
func (p *Policy) For(name string) (Rule, bool) {
	r := Rule{builders: p.builders}
	name = canonical(name)
	for _, i := range p.images {
		if matches(canonical(i.match), name) {
			r.entries = append(r.entries, i)
		}
	}
	return r, len(r.entries) > 0
}

// Level is what is declared for the image: a level of each track, and the
// properties.
func (r Rule) Level() verify.Demand {
	var level verify.Demand
	for _, e := range r.entries {
		level = level.And(e.level)
	}
	return level
}

// SBOM reports whether an SBOM is required, and in which formats; none named
// means any.
func (r Rule) SBOM() (required bool, formats []string) {
	for _, e := range r.entries {
		if e.later() {
			continue // Judge demands it, and says from when
		}
		required = required || e.sbom
		for _, f := range e.formats {
			if e.sbom && !slices.Contains(formats, f) {
				formats = append(formats, f)
			}
		}
	}
	slices.Sort(formats)
	return required, formats
}

// The codes of the problems that Expect returns.
const (
	CodeSource    = "source"
	CodeBuildType = "build-type"
	CodeParameter = "parameter"
)

// Expect compares provenance with what the rule expects of it, and of whoever
// signed it, and returns what is different. None: all is as expected.
func (r Rule) Expect(p *verify.Provenance, by verify.Signer) []verify.Problem {
	// What a builder's users may set is known of the builders that vouch for
	// this; where several do, all of them have to know it.
	known := []map[string]allowed{}
	for _, b := range r.builders {
		if b.trust.Admits(by, p) {
			known = append(known, b.parameters)
		}
	}
	if len(known) == 0 {
		known = append(known, nil)
	}
	echoes := r.echoes(p)
	var out []verify.Problem
	for _, e := range r.entries {
		problems := e.expect(p, by)
		for _, k := range known {
			problems = append(problems, e.unexpected(p, echoes, k)...)
		}
		for _, b := range problems {
			if !slices.Contains(out, b) {
				out = append(out, b)
			}
		}
	}
	return out
}

// echoes lists the parameters that only say again what the rule checks as
// source: whichever of its entries does, all entries hold together.
func (r Rule) echoes(p *verify.Provenance) []string {
	var out []string
	for _, e := range r.entries {
		if e.repository != "" {
			out = append(out, p.Echoes.Repository...)
		}
		if e.ref != nil {
			out = append(out, p.Echoes.Ref...)
		}
		if e.workflow != nil {
			out = append(out, p.Echoes.EntryPoint...)
		}
	}
	return out
}

func (e image) expect(p *verify.Provenance, by verify.Signer) []verify.Problem {
	var out []verify.Problem
	if e.repository != "" {
		if b, bad := e.source(p); bad {
			out = append(out, b)
		} else if b, bad := e.sourceRef(p.Sources[0], by); bad {
			out = append(out, b)
		}
	}
	if e.workflow != nil && !e.workflow.Match(p.EntryPoint.Value) {
		out = append(out, verify.Problem{Code: CodeSource, Pointer: cmp.Or(p.EntryPoint.Pointer, p.ExternalPointer),
			Message: fmt.Sprintf("%q was started, expected %q", clip(p.EntryPoint.Value), e.workflow)})
	}
	if len(e.buildTypes) > 0 && !slices.Contains(e.buildTypes, p.BuildType.Value) {
		out = append(out, verify.Problem{Code: CodeBuildType, Pointer: p.BuildType.Pointer,
			Message: fmt.Sprintf("buildType is %q, expected %s", clip(p.BuildType.Value), list(e.buildTypes))})
	}
	return out
}

// sourceRef compares the git ref: the provenance's, or where it has none, the
// one that the certificate proves for the same commit of the same repository.
func (e image) sourceRef(s verify.Source, by verify.Signer) (verify.Problem, bool) {
	ref, pointer := s.Ref.Value, cmp.Or(s.Ref.Pointer, s.Pointer)
	if ref == "" && by.Run.Commit == s.Commit && verify.SameRepository(by.Run.Repository, s.Repository) {
		ref = by.Run.Ref
	}
	switch {
	case e.ref == nil || e.ref.Match(ref):
		return verify.Problem{}, false
	case ref == "":
		return verify.Problem{Code: CodeSource, Pointer: pointer, Unsaid: true, Message: fmt.Sprintf("nothing says from which branch or tag it was built, expected %q", e.ref)}, true
	}
	return verify.Problem{Code: CodeSource, Pointer: pointer, Message: fmt.Sprintf("built from %q, expected %q", clip(ref), e.ref)}, true
}

func (e image) source(p *verify.Provenance) (verify.Problem, bool) {
	bad := func(pointer, format string, args ...any) (verify.Problem, bool) {
		return verify.Problem{Code: CodeSource, Pointer: pointer, Message: fmt.Sprintf(format, args...)}, true
	}
	if len(p.Sources) == 0 {
		return bad(p.ExternalPointer, "the provenance names no source repository, expected %q", e.repository)
	}
	// The first is the one that the build type means; a dependency that
	// happens to have the right address is not what was built.
	s := p.Sources[0]
	switch {
	case !verify.SameRepository(s.Repository, e.repository):
		return bad(s.Pointer, "built from %q, expected %q", clip(s.Repository), e.repository)
	case s.Commit == "":
		return bad(s.Pointer, "built from %q, and no commit is recorded", clip(s.Repository))
	case s.Dirty && !e.allowChanges:
		return bad(s.Pointer, "built from %q with %s", clip(s.Repository), changed(s.Changed))
	}
	return verify.Problem{}, false
}

func changed(files []string) string {
	switch len(files) {
	case 0:
		return "files that are not the commit's"
	case 1:
		return fmt.Sprintf("a file that is not the commit's: %s", clip(files[0]))
	}
	return fmt.Sprintf("%d files that are not the commit's, %s first", len(files), clip(files[0]))
}

// known lists the parameters of a build type that need no entry of their own,
// because "source" checks them, or because they cannot bring anything into the
// image that was not there. A Dockerfile asked for by name is not among them:
// it may lie outside of the context. Where no "source" is expected (sourced is
// false), a context that is fetched has to be listed like anything else.
func known(buildType string, sourced bool) map[string]allowed {
	out := map[string]allowed{}
	switch buildType {
	default:
		return nil
	case attestations.CommandType:
		// What of all that it makes is named, and how closely it is watched.
		for _, n := range []string{"artifacts", "images", "trace"} {
			out[n] = allowed{any: true}
		}
		out["folder"] = allowed{any: sourced}
		knownInputs(out)
		return out
	case attestations.ContainerBuildType:
	}
	for _, n := range []string{
		"platforms",       // the platforms are judged one by one
		"sbom",            // what was asked for is not what is there: see "sbom"
		"pull", "noCache", // only ever make the build fresher
		"noCacheFilter",   //
		"sourceDateEpoch", // file times
		"keepTimestamps",  //
		"outputs",         // compression of the layers
		"cacheTo",         // leaves the build
	} {
		out[n] = allowed{any: true}
	}
	out["network"] = allowed{values: []string{"none", "default"}}
	knownInputs(out)
	out["context/kind"] = allowed{values: []string{"directory", "tar", "none"}}
	if sourced {
		out["context"] = allowed{any: true}
	}
	return out
}

// knownInputs adds how inputs are taken: each mode lets in less than a build
// without one. Where a lock or hosts were given they only narrowed it further;
// other upstreams than the names' own do not.
func knownInputs(out map[string]allowed) {
	out["inputs/mode"] = allowed{values: []string{attestations.InputsRecord, attestations.InputsLocked, attestations.InputsOffline, attestations.InputsNone}}
	out["inputs/lock"] = allowed{any: true}
	out["inputs/allowHosts"] = allowed{any: true}
}

func list(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = fmt.Sprintf("%q", v)
	}
	return strings.Join(quoted, " or ")
}

// trusts says whom the policy trusts, a line each.
func (p *Policy) trusts() []string {
	var out []string
	for _, d := range p.builders {
		out = append(out, fmt.Sprintf("trusts %s", d))
	}
	return append(out, p.words()...)
}

// Brief is a policy in a few lines.
type Brief struct {
	Trusts []string     `json:"trusts"`
	Images []BriefImage `json:"images"`
}

// BriefImage is an entry of a policy in a line, and what of it nothing can
// fulfil.
type BriefImage struct {
	Match    string   `json:"match"`
	Expects  string   `json:"expects"`
	Warnings []string `json:"warnings"`
}

// Summary says in a few lines what the policy means.
func (p *Policy) Summary() string {
	s := p.Brief()
	var b strings.Builder
	for _, line := range s.Trusts {
		b.WriteString(line + "\n")
	}
	for _, i := range s.Images {
		fmt.Fprintf(&b, "expects of %q: %s\n", i.Match, i.Expects)
		for _, line := range i.Warnings {
			b.WriteString("  warning: " + line + "\n")
		}
	}
	return b.String()
}

// Brief is what Summary says.
func (p *Policy) Brief() *Brief {
	out := &Brief{Trusts: p.trusts(), Images: []BriefImage{}}
	for _, i := range p.images {
		var b strings.Builder
		fmt.Fprintf(&b, "%s", i.level)
		if i.repository != "" {
			fmt.Fprintf(&b, ", source %q", i.repository)
			if i.ref != nil {
				fmt.Fprintf(&b, " at %q", i.ref)
			}
		}
		if len(i.buildTypes) > 0 {
			fmt.Fprintf(&b, ", %d build types", len(i.buildTypes))
		}
		if i.sbom {
			fmt.Fprintf(&b, ", an SBOM")
			if len(i.formats) > 0 {
				fmt.Fprintf(&b, " (%s)", strings.Join(i.formats, ", "))
			}
		}
		if i.signatures != nil {
			fmt.Fprintf(&b, ", %s", count(i.signatures.AtLeast, "signature"))
		}
		if i.approvals != nil {
			fmt.Fprintf(&b, ", %s", count(i.approvals.AtLeast, "approval"))
		}
		b.WriteString(i.vsa.brief() + i.summary())
		warnings := append([]string{}, p.warnings(i)...)
		if slices.Contains(i.level.Properties, verify.PropertyReproduced) && len(p.builders) < 2 {
			warnings = append(warnings, fmt.Sprintf("one builder alone is trusted, so nothing can be %s", verify.PropertyReproduced))
		}
		out.Images = append(out.Images, BriefImage{i.match, b.String(), warnings})
	}
	return out
}

func (p *Policy) reaches(level int) bool {
	return slices.ContainsFunc(p.builders, func(b builder) bool { return b.trust.MaxLevel >= level })
}
