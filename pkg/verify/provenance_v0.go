package verify

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
)

type predicateV02 struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	BuildType       string                     `json:"buildType"`
	Invocation      map[string]json.RawMessage `json:"invocation"`
	Metadata        json.RawMessage            `json:"metadata"`
	Materials       []descriptor               `json:"materials"`
	BuildDefinition json.RawMessage            `json:"buildDefinition"`
}

// metadataV0 is that of v0.1 and v0.2.
type metadataV0 struct {
	BuildStartedOn  string `json:"buildStartedOn"`
	BuildFinishedOn string `json:"buildFinishedOn"`
	Completeness    *struct {
		Parameters bool  `json:"parameters"` // v0.2
		Arguments  *bool `json:"arguments"`  // v0.1
	} `json:"completeness"`
}

func (p *Provenance) metadataV0(raw json.RawMessage) (metadataV0, error) {
	const at = "/predicate/metadata"
	var meta metadataV0
	if len(raw) == 0 {
		return meta, nil
	}
	if err := attest.UnmarshalStrict(raw, &meta); err != nil {
		return meta, fmt.Errorf("%q: %w", at, err)
	}
	p.StartedOn, p.FinishedOn = meta.BuildStartedOn, meta.BuildFinishedOn
	p.Invocation = invocation(raw, at, "buildInvocationId", "buildInvocationID")
	return meta, nil
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
		Form:            formOf(in.BuildType),
		BuilderID:       Field{in.Builder.ID, "/predicate/builder/id"},
		BuildType:       Field{in.BuildType, "/predicate/buildType"},
		External:        maps.Clone(in.Invocation),
		ExternalPointer: "/predicate/invocation",
	}
	p.list(in.Materials, "/predicate/materials")
	// "environment" is what the platform says of itself, not what the user set.
	delete(p.External, "environment")
	meta, err := p.metadataV0(in.Metadata)
	if err != nil {
		return nil, err
	}
	if meta.Completeness == nil || !meta.Completeness.Parameters {
		p.Incomplete = "/predicate/metadata/completeness/parameters"
	}
	p.formV02(in.Invocation["environment"])
	return p, nil
}

func (p *Provenance) formV02(environment json.RawMessage) {
	const config, env = "/predicate/invocation/configSource", "/predicate/invocation/environment"
	var source struct {
		URI    string            `json:"uri"`
		Digest map[string]string `json:"digest"`
	}
	if raw, ok := p.External["configSource"]; ok && json.Unmarshal(raw, &source) == nil && looksLikeRepository(source.URI) {
		p.Sources = []Source{sourceAt(source.URI, config+"/uri", source.Digest)}
	}
	p.EntryPoint = field(p.External["configSource"], config, "entryPoint")
	switch p.Form {
	case FormGenerator, FormGitHub:
		p.Event = field(environment, env, "github_event_name")
		p.Runner = field(environment, env, "github_runner_environment")
		p.Echoes = Echoes{Repository: []string{"configSource/uri", "configSource/digest"}, EntryPoint: []string{"configSource/entryPoint"}}
	case FormGitLab:
		p.Echoes = Echoes{Repository: []string{"configSource/uri", "configSource/digest"}, EntryPoint: []string{"configSource/entryPoint"}}
	case FormTekton:
		// The config source is where the pipeline came from; what it built is
		// among the materials.
		var sources []Source
		for _, d := range p.Dependencies {
			if strings.HasPrefix(d.URI, "git+") && (source.URI == "" || !SameRepository(d.URI, source.URI)) {
				sources = append(sources, sourceAt(d.URI, d.Pointer, d.Digest))
			}
		}
		if len(sources) > 0 {
			p.Sources = only(sources)
		}
	}
}

// only is the source that all of them are; none when they differ, for then
// nothing says which was built.
func only(sources []Source) []Source {
	for _, s := range sources {
		if !SameRepository(s.Repository, sources[0].Repository) || s.Commit != sources[0].Commit {
			return nil
		}
	}
	if len(sources) == 0 {
		return nil
	}
	return sources[:1]
}

// https://slsa.dev/provenance/v0.1
type predicateV01 struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	Recipe *struct {
		Type string `json:"type"`
		// Cloud Build writes a text here, against the specification.
		DefinedInMaterial json.RawMessage `json:"definedInMaterial"`
		EntryPoint        string          `json:"entryPoint"`
		Arguments         json.RawMessage `json:"arguments"`
	} `json:"recipe"`
	Metadata  json.RawMessage `json:"metadata"`
	Materials []descriptor    `json:"materials"`
}

func parseV01(raw []byte) (*Provenance, error) {
	var in predicateV01
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	switch {
	case in.Builder.ID == "":
		return nil, fmt.Errorf(`"/predicate/builder/id" is missing; its type says SLSA provenance v0.1`)
	case in.Recipe == nil || in.Recipe.Type == "":
		return nil, fmt.Errorf(`"/predicate/recipe/type" is missing; its type says SLSA provenance v0.1`)
	}
	const recipe = "/predicate/recipe"
	p := &Provenance{
		Form:            formOf(in.Recipe.Type),
		BuilderID:       Field{in.Builder.ID, "/predicate/builder/id"},
		BuildType:       Field{in.Recipe.Type, recipe + "/type"},
		External:        map[string]json.RawMessage{},
		ExternalPointer: recipe,
	}
	p.list(in.Materials, "/predicate/materials")
	meta, err := p.metadataV0(in.Metadata)
	if err != nil {
		return nil, err
	}
	said := meta.Completeness != nil && meta.Completeness.Arguments != nil
	// Cloud Build states nothing of it: its arguments are the whole build.
	if said && !*meta.Completeness.Arguments || !said && p.Form != FormGCB {
		p.Incomplete = "/predicate/metadata/completeness/arguments"
	}
	if in.Recipe.EntryPoint != "" {
		p.EntryPoint = Field{in.Recipe.EntryPoint, recipe + "/entryPoint"}
		p.External["entryPoint"] = quoted(in.Recipe.EntryPoint)
		p.Echoes.EntryPoint = []string{"entryPoint"}
	}
	if len(in.Recipe.Arguments) > 0 {
		p.External["arguments"] = in.Recipe.Arguments
	}
	if p.Form == FormGCB {
		p.cloudBuildV01(in.Recipe.Arguments)
		return p, nil
	}
	var i int
	if json.Unmarshal(in.Recipe.DefinedInMaterial, &i) == nil && i >= 0 && i < len(in.Materials) && looksLikeRepository(in.Materials[i].URI) {
		p.Sources = []Source{sourceAt(in.Materials[i].URI, p.Dependencies[i].Pointer, in.Materials[i].Digest)}
	}
	return p, nil
}

// cloudBuildV01 tells what the user of Cloud Build set from what it wrote down
// itself in the same object, and finds the source: the first material.
func (p *Provenance) cloudBuildV01(arguments json.RawMessage) {
	const at = "/predicate/recipe/arguments/substitutions"
	if len(p.Dependencies) > 0 && looksLikeRepository(p.Dependencies[0].URI) {
		d := p.Dependencies[0]
		s := sourceAt(d.URI, d.Pointer, d.Digest)
		// Before v0.3 the commit stood in the address.
		if m := commitURL.FindStringSubmatch(s.Repository); m != nil {
			s.Repository, s.Commit = m[1], m[2]
		}
		substitutions := within(arguments, "substitutions")
		s.Ref = cloudBuildRef(substitutions, at, s.Ref)
		p.Sources = []Source{s}
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(arguments, &all) != nil || word(all["@type"]) != "type.googleapis.com/google.devtools.cloudbuild.v1.Build" {
		return // a form we do not know: all of it was set by somebody
	}
	given := map[string]json.RawMessage{}
	if p.EntryPoint.Value == "" || strings.HasPrefix(p.BuildType.Value, "https://cloudbuild.googleapis.com/CloudBuildSteps@") {
		// Not read from a file of the source, but sent with the request.
		for name, v := range all {
			switch name {
			case "@type", "id", "name", "projectId", "status", "createTime", "startTime", "finishTime", "results", "timing", "logUrl",
				"buildTriggerId", "sourceProvenance", "substitutions":
			default:
				given[name] = v
			}
		}
	}
	var substitutions map[string]json.RawMessage
	if json.Unmarshal(all["substitutions"], &substitutions) == nil {
		// Those of the platform have no underscore before their names.
		maps.DeleteFunc(substitutions, func(name string, _ json.RawMessage) bool { return !strings.HasPrefix(name, "_") })
		given["substitutions"] = object(substitutions)
	} else if set(all["substitutions"]) {
		given["substitutions"] = all["substitutions"]
	}
	p.External["arguments"] = object(given)
}

var commitURL = regexp.MustCompile(`^(https://.+)/commit/([0-9a-f]{40})$`)

// object is JSON of what was JSON.
func object(members map[string]json.RawMessage) json.RawMessage {
	raw, err := json.Marshal(members)
	if err != nil {
		return json.RawMessage("{}")
	}
	return raw
}

func quoted(s string) json.RawMessage {
	raw, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`)
	}
	return raw
}
