package verify

import (
	"encoding/json"
	"fmt"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

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

// parseV1 reads a predicate that stands at a pointer.
func parseV1(raw []byte, at string) (*Provenance, error) {
	var in predicateV1
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	// https://slsa.dev/spec/v1.2/build-provenance#schema: these are REQUIRED
	// for Build L1.
	switch {
	case in.BuildDefinition == nil:
		return nil, fmt.Errorf("%q is missing; its type says SLSA provenance v1", at+"/buildDefinition")
	case in.BuildDefinition.BuildType == "":
		return nil, fmt.Errorf("%q is missing", at+"/buildDefinition/buildType")
	case in.BuildDefinition.ExternalParameters == nil:
		return nil, fmt.Errorf("%q is missing", at+"/buildDefinition/externalParameters")
	case in.RunDetails == nil || in.RunDetails.Builder.ID == "":
		return nil, fmt.Errorf("%q is missing", at+"/runDetails/builder/id")
	}
	def := in.BuildDefinition
	p := &Provenance{
		Form:            formOf(def.BuildType),
		BuilderID:       Field{in.RunDetails.Builder.ID, at + "/runDetails/builder/id"},
		BuildType:       Field{def.BuildType, at + "/buildDefinition/buildType"},
		External:        def.ExternalParameters,
		ExternalPointer: at + "/buildDefinition/externalParameters",
	}
	p.list(def.ResolvedDependencies, at+"/buildDefinition/resolvedDependencies")
	if len(in.RunDetails.Metadata) > 0 {
		pointer := at + "/runDetails/metadata"
		var meta runMetadata
		if err := attest.UnmarshalStrict(in.RunDetails.Metadata, &meta); err != nil {
			return nil, fmt.Errorf("%q: %w", pointer, err)
		}
		p.StartedOn, p.FinishedOn = meta.StartedOn, meta.FinishedOn
		p.Invocation = invocation(in.RunDetails.Metadata, pointer, "invocationId", "invocationID")
		if meta.Completeness != nil && meta.Completeness.Request != nil && !*meta.Completeness.Request {
			p.Incomplete = pointer + "/buildkit_completeness/request"
		}
	}
	if set(def.ExternalParameters["cacheFrom"]) {
		p.CacheImports = p.ExternalPointer + "/cacheFrom"
	}
	p.formV1(def.InternalParameters, at+"/buildDefinition/internalParameters", def.ResolvedDependencies)
	return p, nil
}

// whose reads what a CI platform signed about the job. What the job only says
// of itself ("declared") counts for nothing. A branch or tag is that of the
// source only where the platform names the same repository and commit.
func (p *Provenance) whose(internal json.RawMessage, in string) {
	at := func(name string) Field { return field(internal, in, "ci", "verified", name) }
	p.EntryPoint, p.Runner, p.Event, p.Issuer = at("workflow"), at("runner"), at("event"), at("issuer")
	if len(p.Sources) == 0 || p.Sources[0].Ref.Value != "" {
		return
	}
	if s := &p.Sources[0]; s.Commit != "" && s.Commit == at("commit").Value && SameRepository(s.Repository, at("repository").Value) {
		s.Ref = at("ref")
	}
}

// formV1 reads what stands in another place for each platform.
func (p *Provenance) formV1(internal json.RawMessage, in string, deps []descriptor) {
	ext := func(names ...string) Field {
		return field(within(p.External[names[0]], names[1:]...), p.ExternalPointer+pathOf(names))
	}
	switch p.Form {
	case FormWaxseal:
		var named []Source
		for i, d := range deps {
			if d.Name == attestations.DependencySource {
				s := sourceAt(d.URI, p.Dependencies[i].Pointer, d.Digest)
				s.Changed, s.Dirty = changes(d.Annotations)
				named = append(named, s)
			}
		}
		switch len(named) {
		case 0:
			p.Sources = p.usualSources()
		case 1:
			p.Sources = named
		} // Of several, nothing says which was built.
		p.whose(internal, in)

	case FormGitHub:
		// https://actions.github.io/buildtypes/workflow/v1
		p.source(ext("workflow", "repository"), ext("workflow", "ref"))
		p.EntryPoint = ext("workflow", "path")
		p.Runner = firstOf(field(internal, in, "github", "runner_environment"), ext("runner_environment"))
		p.Event = field(internal, in, "github", "event_name")
		p.Echoes = Echoes{Repository: []string{"workflow/repository"}, Ref: []string{"workflow/ref"}, EntryPoint: []string{"workflow/path"}}

	case FormGenerator:
		// https://slsa.dev/container-based-build/v0.1?draft
		p.source(ext("source", "uri"), Field{})
		p.EntryPoint = ext("configPath")
		p.Event = field(internal, in, "GITHUB_EVENT_NAME")
		p.Echoes = Echoes{Repository: []string{"source/uri", "source/digest"}, EntryPoint: []string{"configPath"}}

	case FormGCB:
		p.cloudBuildV1(internal, in)

	case FormGitLab:
		// https://docs.gitlab.com/ci/pipeline_security/slsa/provenance_v1
		p.source(ext("source"), Field{})
		p.EntryPoint = ext("entryPoint")
		p.Echoes = Echoes{Repository: []string{"source"}, EntryPoint: []string{"entryPoint"}}

	case FormTekton:
		// "inputs/result" is what the run's type hints name as its source; the
		// config source is where the pipeline came from.
		var sources []Source
		for _, d := range p.Dependencies {
			if (d.Name == "inputs/result" || d.Name == "input/result") && looksLikeRepository(d.URI) {
				sources = append(sources, sourceAt(d.URI, d.Pointer, d.Digest))
			}
		}
		p.Sources = only(sources)
		p.EntryPoint = ext("buildConfigSource", "path")

	case FormWitness:
		p.Sources = p.witnessSources()

	default:
		p.Sources = p.usualSources()
	}
}

// usualSources looks in the fields in common use by build types that waxseal
// does not know.
func (p *Provenance) usualSources() []Source {
	var out []Source
	for _, path := range [][]string{
		{"context", "uri"}, {"source"}, {"source", "uri"}, {"configSource", "uri"}, {"workflow", "repository"},
	} {
		uri := word(within(p.External[path[0]], path[1:]...))
		if !looksLikeRepository(uri) {
			continue
		}
		s := sourceAt(uri, p.ExternalPointer+pathOf(path), nil)
		s.Commit = p.commitOf(s.Repository, s.Ref.Value)
		out = append(out, s)
	}
	return out
}

// source sets the one source that a build type means. A ref of its own field
// counts before one in the URI.
func (p *Provenance) source(uri, ref Field) {
	if !looksLikeRepository(uri.Value) {
		return
	}
	s := sourceAt(uri.Value, uri.Pointer, nil)
	if ref.Value != "" {
		s.Ref = ref
	}
	s.Commit = p.commitOf(s.Repository, s.Ref.Value)
	p.Sources = []Source{s}
}
