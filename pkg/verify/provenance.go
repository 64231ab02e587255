package verify

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// MaxProvenance bounds the predicate of a provenance statement, in bytes: it
// is decoded whole, unlike an SBOM. That is room for some 40,000 inputs.
const MaxProvenance = 16 << 20

// IsProvenance reports whether ParseProvenance reads this predicate type.
func IsProvenance(predicateType string) bool {
	return predicateType == attestations.ProvenanceV1 || predicateType == attestations.ProvenanceV02
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
	Changed    []string // files that differed from the commit
	Dirty      bool     // the built tree was not the commit's
	Pointer    string
}

// Provenance is what a provenance statement says, in one form for SLSA v1 and
// v0.2.
type Provenance struct {
	PredicateType string
	BuilderID     Field
	BuildType     Field
	// External holds every external parameter, by name. For v0.2 these are
	// the members of "invocation" but for "environment".
	External        map[string]json.RawMessage
	ExternalPointer string
	Sources         []Source
	Dependencies    int // resolved dependencies (v0.2: materials)
	Unpinned        int // of those, without a digest
	StartedOn       string
	FinishedOn      string
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

// ParseProvenance reads a SLSA provenance predicate, v1 or v0.2, strictly. An
// error is always a *Rejection that names the field.
func ParseProvenance(st *attest.Statement) (*Provenance, error) {
	if len(st.Predicate) > MaxProvenance {
		return nil, rejectf(CodePredicate, "its provenance has %d bytes, more than the %d allowed", len(st.Predicate), MaxProvenance)
	}
	var p *Provenance
	var err error
	switch st.PredicateType {
	case attestations.ProvenanceV1:
		p, err = parseV1(st.Predicate)
	case attestations.ProvenanceV02:
		p, err = parseV02(st.Predicate)
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

type predicateV1 struct {
	BuildDefinition *struct {
		BuildType            string                     `json:"buildType"`
		ExternalParameters   map[string]json.RawMessage `json:"externalParameters"`
		InternalParameters   json.RawMessage            `json:"internalParameters"`
		ResolvedDependencies []descriptor               `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails *struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata json.RawMessage `json:"metadata"`
	} `json:"runDetails"`
}

type runMetadata struct {
	StartedOn    string `json:"startedOn"`
	FinishedOn   string `json:"finishedOn"`
	Completeness *struct {
		Request *bool `json:"request"`
	} `json:"buildkit_completeness"`
}

func parseV1(raw []byte) (*Provenance, error) {
	var in predicateV1
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	// https://slsa.dev/spec/v1.2/build-provenance#schema: these are REQUIRED
	// for Build L1.
	switch {
	case in.BuildDefinition == nil:
		return nil, fmt.Errorf(`"/predicate/buildDefinition" is missing; its type says SLSA provenance v1`)
	case in.BuildDefinition.BuildType == "":
		return nil, fmt.Errorf(`"/predicate/buildDefinition/buildType" is missing`)
	case in.BuildDefinition.ExternalParameters == nil:
		return nil, fmt.Errorf(`"/predicate/buildDefinition/externalParameters" is missing`)
	case in.RunDetails == nil || in.RunDetails.Builder.ID == "":
		return nil, fmt.Errorf(`"/predicate/runDetails/builder/id" is missing`)
	}
	def := in.BuildDefinition
	p := &Provenance{
		BuilderID:       Field{in.RunDetails.Builder.ID, "/predicate/runDetails/builder/id"},
		BuildType:       Field{def.BuildType, "/predicate/buildDefinition/buildType"},
		External:        def.ExternalParameters,
		ExternalPointer: "/predicate/buildDefinition/externalParameters",
		Dependencies:    len(def.ResolvedDependencies),
		Unpinned:        unpinned(def.ResolvedDependencies),
	}
	if len(in.RunDetails.Metadata) > 0 {
		var meta runMetadata
		if err := attest.UnmarshalStrict(in.RunDetails.Metadata, &meta); err != nil {
			return nil, fmt.Errorf(`"/predicate/runDetails/metadata": %w`, err)
		}
		p.StartedOn, p.FinishedOn = meta.StartedOn, meta.FinishedOn
		if meta.Completeness != nil && meta.Completeness.Request != nil && !*meta.Completeness.Request {
			p.Incomplete = "/predicate/runDetails/metadata/buildkit_completeness/request"
		}
	}
	if set(def.ExternalParameters["cacheFrom"]) {
		p.CacheImports = p.ExternalPointer + "/cacheFrom"
	}
	p.Sources = sourcesV1(p, def.ResolvedDependencies)
	return p, nil
}

// sourcesV1 collects the sources, the one most surely meant first: a build
// type that waxseal knows says exactly where it stands, for the others these
// are the fields in common use.
func sourcesV1(p *Provenance, deps []descriptor) []Source {
	const at = "/predicate/buildDefinition/resolvedDependencies/"
	if p.BuildType.Value == attestations.ContainerBuildType {
		for i, d := range deps {
			if d.Name == attestations.DependencySource {
				s := Source{Repository: repository(d.URI), Commit: commit(d.Digest), Pointer: at + strconv.Itoa(i)}
				s.Changed, s.Dirty = changes(d.Annotations)
				return []Source{s}
			}
		}
	}
	ptr := p.ExternalPointer
	stated := func(v json.RawMessage, pointer string, names ...string) (Source, bool) {
		for _, n := range names {
			obj := map[string]json.RawMessage{}
			if json.Unmarshal(v, &obj) != nil {
				return Source{}, false
			}
			v, pointer = obj[n], pointer+"/"+n
		}
		var s string
		if json.Unmarshal(v, &s) != nil || !looksLikeRepository(s) {
			return Source{}, false
		}
		src := Source{Repository: repository(s), Pointer: pointer}
		for _, d := range deps {
			if SameRepository(repository(d.URI), src.Repository) && commit(d.Digest) != "" {
				src.Commit = commit(d.Digest)
				break
			}
		}
		return src, true
	}
	var out []Source
	for _, path := range [][]string{
		{"context", "uri"}, {"source"}, {"source", "uri"}, {"configSource", "uri"}, {"workflow", "repository"},
	} {
		if s, ok := stated(p.External[path[0]], ptr+"/"+path[0], path[1:]...); ok {
			out = append(out, s)
		}
	}
	return out
}

type predicateV02 struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	BuildType  string                     `json:"buildType"`
	Invocation map[string]json.RawMessage `json:"invocation"`
	Metadata   struct {
		BuildStartedOn  string `json:"buildStartedOn"`
		BuildFinishedOn string `json:"buildFinishedOn"`
		Completeness    struct {
			Parameters bool `json:"parameters"`
		} `json:"completeness"`
	} `json:"metadata"`
	Materials       []descriptor    `json:"materials"`
	BuildDefinition json.RawMessage `json:"buildDefinition"`
}

func parseV02(raw []byte) (*Provenance, error) {
	var in predicateV02
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	switch {
	case in.Builder.ID == "" && len(in.BuildDefinition) > 0:
		return nil, fmt.Errorf(`"/predicate/builder/id" is missing: the type says SLSA provenance v0.2 and the body is v1`)
	case in.Builder.ID == "":
		return nil, fmt.Errorf(`"/predicate/builder/id" is missing; its type says SLSA provenance v0.2`)
	case in.BuildType == "":
		return nil, fmt.Errorf(`"/predicate/buildType" is missing`)
	}
	p := &Provenance{
		BuilderID:       Field{in.Builder.ID, "/predicate/builder/id"},
		BuildType:       Field{in.BuildType, "/predicate/buildType"},
		External:        maps.Clone(in.Invocation),
		ExternalPointer: "/predicate/invocation",
		Dependencies:    len(in.Materials),
		Unpinned:        unpinned(in.Materials),
		StartedOn:       in.Metadata.BuildStartedOn,
		FinishedOn:      in.Metadata.BuildFinishedOn,
	}
	// "environment" is what the platform says of itself, not what the user set.
	delete(p.External, "environment")
	if !in.Metadata.Completeness.Parameters {
		p.Incomplete = "/predicate/metadata/completeness/parameters"
	}
	var config struct {
		URI    string            `json:"uri"`
		Digest map[string]string `json:"digest"`
	}
	if raw, ok := in.Invocation["configSource"]; ok && json.Unmarshal(raw, &config) == nil && looksLikeRepository(config.URI) {
		s := Source{Repository: repository(config.URI), Commit: commit(config.Digest), Pointer: "/predicate/invocation/configSource/uri"}
		p.Sources = append(p.Sources, s)
	}
	return p, nil
}

func unpinned(deps []descriptor) int {
	n := 0
	for _, d := range deps {
		if len(d.Digest) == 0 {
			n++
		}
	}
	return n
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
	s = strings.TrimPrefix(s, "git+")
	// SPDX download locations and GitHub's provenance put the ref after "@";
	// the "@" of user information stands before the path.
	if i := strings.LastIndexByte(s, '@'); i > 0 && strings.Contains(s[:i], "://") && strings.Count(s[:i], "/") > 2 {
		s = s[:i]
	}
	return s
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
