package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// MaxProvenance bounds the predicate of a provenance statement, in bytes: it
// is decoded whole, unlike an SBOM. That is room for some 40,000 inputs.
const MaxProvenance = 16 << 20

// IsProvenance reports whether ParseProvenance reads this predicate type.
func IsProvenance(predicateType string) bool {
	switch predicateType {
	case attestations.ProvenanceV1, attestations.ProvenanceV02, attestations.ProvenanceV01,
		attestations.WitnessProvenance, attestations.WitnessCollection:
		return true
	}
	return false
}

// Field is a value and the JSON pointer to it, from the statement's top.
type Field struct {
	Value   string
	Pointer string
}

// Source is one place that the provenance says the image was built from.
type Source struct {
	Repository string   // as stated, without "git+" and fragment
	Commit     string   // hex, empty when the provenance pins none
	Ref        Field    // a full git ref, "refs/tags/v1"; empty when none is stated
	Changed    []string // files that differed from the commit
	Dirty      bool     // the built tree was not the commit's
	Pointer    string
}

// Dependency is one input that the provenance lists as resolved (before v1: a
// material).
type Dependency struct {
	Name    string
	URI     string
	Digest  map[string]string // algorithm to hex; empty when it is not pinned
	Pointer string
}

// Provenance is what a provenance statement says, in one form for SLSA v1, v0.2
// and v0.1 and for all platforms. Nothing in it is more than the statement's
// word.
type Provenance struct {
	PredicateType string
	Form          Form // whose it is by its build type; "" for one that waxseal does not know
	BuilderID     Field
	BuildType     Field
	// External holds every external parameter, by name. For v0.2 these are
	// the members of "invocation" but for "environment", for v0.1 "entryPoint"
	// and "arguments" of "recipe".
	External        map[string]json.RawMessage
	ExternalPointer string
	// Sources are the places it may have been built from, the one that the
	// build type means first.
	Sources []Source
	// Echoes are the parts of External that only repeat others of these fields.
	Echoes Echoes
	// EntryPoint is the workflow, configuration or job that was started.
	EntryPoint Field
	// Runner is where the job ran: "github-hosted", "self-hosted".
	Runner Field
	// Issuer is who signed the platform's word for EntryPoint, Runner and Event: an
	// OpenID Connect issuer. It is empty where the provenance names none.
	Issuer Field
	// Event is what started the run, in the platform's words: "push".
	Event        Field
	Invocation   Field // the platform's id of the run
	Dependencies []Dependency
	Unpinned     int // of Dependencies, those without a digest
	StartedOn    string
	FinishedOn   string
	// Incomplete points to where the provenance itself says that its external
	// parameters are not fully enumerated; empty when it does not.
	Incomplete string
	// CacheImports points to where it says that a cache from elsewhere was
	// used; empty when it does not.
	CacheImports string
	// Claims points to where it says of itself that its inputs are complete or
	// that the build was hermetic. Nothing is believed of it.
	Claims []string
}

// Echoes names external parameters that a known Form also gives as another
// field, as paths with "/" between the keys. Whoever expects that field has
// checked the parameter.
type Echoes struct {
	Repository []string // of Sources[0], and its commit
	Ref        []string // of Sources[0]
	EntryPoint []string
}

// ParseProvenance reads a provenance predicate strictly: SLSA v1, v0.2 or v0.1,
// or that of Witness. An error is always a *Rejection that names the field.
func ParseProvenance(st *attest.Statement) (*Provenance, error) {
	if len(st.Predicate) > MaxProvenance {
		return nil, rejectf(CodePredicate, "its provenance has %d bytes, more than the %d allowed", len(st.Predicate), MaxProvenance)
	}
	var p *Provenance
	var err error
	switch st.PredicateType {
	case attestations.ProvenanceV1:
		p, err = parseV1(st.Predicate, "/predicate")
	case attestations.ProvenanceV02:
		p, err = parseV02(st.Predicate)
	case attestations.ProvenanceV01:
		p, err = parseV01(st.Predicate)
	case attestations.WitnessProvenance:
		p, err = parseWitness(st.Predicate, "/predicate")
	case attestations.WitnessCollection:
		p, err = parseCollection(st.Predicate)
	default:
		return nil, rejectf(CodePredicate, "%q is not SLSA provenance", clip(st.PredicateType))
	}
	if err != nil {
		return nil, rejectf(CodePredicate, "its provenance cannot be read: %v", clip(err.Error()))
	}
	p.PredicateType = st.PredicateType
	p.Claims = claims(st.Predicate)
	return p, nil
}

type descriptor struct {
	Name        string                     `json:"name"`
	URI         string                     `json:"uri"`
	Digest      map[string]string          `json:"digest"`
	Annotations map[string]json.RawMessage `json:"annotations"`
}

// list keeps the dependencies, with pointers below the list's own.
func (p *Provenance) list(deps []descriptor, at string) {
	for i, d := range deps {
		p.Dependencies = append(p.Dependencies, Dependency{Name: d.Name, URI: d.URI, Digest: d.Digest, Pointer: fmt.Sprintf("%s/%d", at, i)})
		if len(d.Digest) == 0 {
			p.Unpinned++
		}
	}
}

// within returns what stands in nested objects under names; nil when nothing
// does.
func within(raw json.RawMessage, names ...string) json.RawMessage {
	for _, n := range names {
		var obj map[string]json.RawMessage
		if json.Unmarshal(raw, &obj) != nil {
			return nil
		}
		raw = obj[n]
	}
	return raw
}

// word is a text or a number as text; "" for anything else.
func word(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(raw, &n) == nil {
		return n.String()
	}
	return ""
}

// field is the text in nested objects under names, with its pointer.
func field(raw json.RawMessage, pointer string, names ...string) Field {
	v := word(within(raw, names...))
	if v == "" {
		return Field{}
	}
	return Field{v, pointer + pathOf(names)}
}

// firstOf is the first field that says something.
func firstOf(fields ...Field) Field {
	for _, f := range fields {
		if f.Value != "" {
			return f
		}
	}
	return Field{}
}

// invocation reads the id of the run, which platforms spell in more than one
// way: a struct's field would refuse the other one.
func invocation(metadata json.RawMessage, pointer string, names ...string) Field {
	for _, n := range names {
		if f := field(metadata, pointer, n); f.Value != "" {
			return f
		}
	}
	return Field{}
}

// set reports whether a parameter holds something: a platform that writes out
// its defaults has set nothing.
func set(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "null", "false", `""`, "[]", "{}":
		return false
	}
	return true
}

func changes(annotations map[string]json.RawMessage) (files []string, dirty bool) {
	raw := annotations["changedFiles"]
	// A form we do not know still says that something was changed.
	if set(raw) && json.Unmarshal(raw, &files) != nil {
		files = nil
	}
	return files, set(raw) || set(annotations["moreChangedFiles"])
}

func commit(digest map[string]string) string {
	for _, alg := range []string{"gitCommit", "sha1", "sha256"} {
		if v := digest[alg]; v != "" {
			return v
		}
	}
	return ""
}

func looksLikeRepository(s string) bool {
	if strings.HasPrefix(s, "git+") || strings.HasPrefix(s, "git@") {
		return true
	}
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && slices.Contains([]string{"https", "http", "ssh", "git"}, u.Scheme)
}

// repository strips what says how, or which revision, from a source URI.
func repository(uri string) string {
	s, _, _ := strings.Cut(uri, "#")
	s, _, _ = cutRevision(strings.TrimPrefix(s, "git+"))
	return s
}

// cutRevision cuts off what SPDX download locations and GitHub's provenance put
// after "@"; the "@" of user information stands before the path.
func cutRevision(s string) (repo, rev string, found bool) {
	at := 0
	if i := strings.Index(s, "://"); i >= 0 {
		if at = i + 3 + strings.IndexByte(s[i+3:], '/'); at < i+3 {
			return s, "", false
		}
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		at = i
	}
	repo, rev, found = strings.Cut(s[at:], "@")
	return s[:at] + repo, rev, found
}

// refOf is the full git ref in a source URI, after "@" or "#"; "" for a short
// one, which may be a branch or a tag.
func refOf(uri string) string {
	base, fragment, _ := strings.Cut(uri, "#")
	_, ref, ok := cutRevision(base)
	if !ok {
		ref, _, _ = strings.Cut(fragment, ":")
	}
	if strings.HasPrefix(ref, "refs/") {
		return ref
	}
	return ""
}

// sourceAt is the source that a URI of a repository names.
func sourceAt(uri, pointer string, digest map[string]string) Source {
	s := Source{Repository: repository(uri), Commit: commit(digest), Pointer: pointer}
	if ref := refOf(uri); ref != "" {
		s.Ref = Field{ref, pointer}
	}
	return s
}

// commitOf is the commit that the dependencies pin for a repository, and for a
// ref of it where they tell refs apart; "" where they pin several.
func (p *Provenance) commitOf(repo, ref string) string {
	var exact, all []string
	for _, d := range p.Dependencies {
		c := commit(d.Digest)
		if c == "" || !SameRepository(repository(d.URI), repo) {
			continue
		}
		all = append(all, c)
		if ref != "" && refOf(d.URI) == ref {
			exact = append(exact, c)
		}
	}
	if exact != nil {
		all = exact
	}
	slices.Sort(all)
	if all = slices.Compact(all); len(all) != 1 {
		return ""
	}
	return all[0]
}

// SameRepository reports whether two repository URLs name one repository: a
// final slash or ".git", "git+" and the host's letter case make no difference;
// everything else does.
func SameRepository(a, b string) bool {
	ca, cb := canonicalRepository(a), canonicalRepository(b)
	return ca != "" && ca == cb
}

func canonicalRepository(s string) string {
	s = repository(s)
	// git's short form: git@host:path
	if user, rest, ok := strings.Cut(s, "@"); ok && !strings.Contains(s, "://") {
		if host, path, ok := strings.Cut(rest, ":"); ok {
			s = "ssh://" + user + "@" + host + "/" + path
		}
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.RawQuery != "" {
		return ""
	}
	path := strings.TrimSuffix(strings.TrimRight(u.EscapedPath(), "/"), ".git")
	user := ""
	if u.User != nil {
		user = u.User.Username() + "@"
	}
	return strings.ToLower(u.Scheme) + "://" + user + strings.ToLower(u.Host) + path
}
