package verify

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// collection is what Witness signs of one step: what each attestor said.
type collection struct {
	Name         string `json:"name"`
	Attestations []struct {
		Type        string          `json:"type"`
		Attestation json.RawMessage `json:"attestation"`
	} `json:"attestations"`
}

// parseCollection reads the provenance in a collection; the other attestors
// are no provenance.
func parseCollection(raw []byte) (*Provenance, error) {
	var in collection
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	found := -1
	for i, a := range in.Attestations {
		if a.Type != attestations.WitnessProvenance && a.Type != attestations.ProvenanceV1 {
			continue
		}
		if found >= 0 {
			return nil, fmt.Errorf(`"/predicate/attestations" holds provenance twice, at %d and %d`, found, i)
		}
		found = i
	}
	if found < 0 {
		return nil, errors.New("the collection of Witness holds no provenance: its slsa attestor was not asked for")
	}
	return parseWitness(in.Attestations[found].Attestation, fmt.Sprintf("/predicate/attestations/%d/attestation", found))
}

// predicateWitness is SLSA provenance v1 as Witness writes it, with the names
// of the protocol buffers' fields.
type predicateWitness struct {
	Definition *struct {
		BuildType    string                     `json:"build_type"`
		External     map[string]json.RawMessage `json:"external_parameters"`
		Dependencies []descriptor               `json:"resolved_dependencies"`
	} `json:"build_definition"`
	Run *struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
		Metadata struct {
			StartedOn  *protoTime `json:"started_on"`
			FinishedOn *protoTime `json:"finished_on"`
			Invocation string     `json:"invocation_id"`
		} `json:"metadata"`
	} `json:"run_details"`
}

type protoTime struct {
	Seconds int64 `json:"seconds"`
	Nanos   int64 `json:"nanos"`
}

func (t *protoTime) String() string {
	if t == nil {
		return ""
	}
	return time.Unix(t.Seconds, t.Nanos).UTC().Format(time.RFC3339)
}

func parseWitness(raw []byte, at string) (*Provenance, error) {
	if within(raw, "buildDefinition") != nil {
		return parseV1(raw, at)
	}
	var in predicateWitness
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, err
	}
	switch {
	case in.Definition == nil || in.Definition.BuildType == "":
		return nil, fmt.Errorf("%q is missing", at+"/build_definition/build_type")
	case in.Definition.External == nil:
		return nil, fmt.Errorf("%q is missing", at+"/build_definition/external_parameters")
	case in.Run == nil || in.Run.Builder.ID == "":
		return nil, fmt.Errorf("%q is missing", at+"/run_details/builder/id")
	}
	p := &Provenance{
		Form:            FormWitness,
		BuilderID:       Field{in.Run.Builder.ID, at + "/run_details/builder/id"},
		BuildType:       Field{in.Definition.BuildType, at + "/build_definition/build_type"},
		External:        in.Definition.External,
		ExternalPointer: at + "/build_definition/external_parameters",
		StartedOn:       in.Run.Metadata.StartedOn.String(),
		FinishedOn:      in.Run.Metadata.FinishedOn.String(),
	}
	if in.Run.Metadata.Invocation != "" {
		p.Invocation = Field{in.Run.Metadata.Invocation, at + "/run_details/metadata/invocation_id"}
	}
	p.list(in.Definition.Dependencies, at+"/build_definition/resolved_dependencies")
	p.Sources = p.witnessSources()
	return p, nil
}

// witnessSources finds the remotes: the git attestor gives each as the name of
// a dependency.
func (p *Provenance) witnessSources() []Source {
	var sources []Source
	for _, d := range p.Dependencies {
		if c := d.Digest["sha1"]; c != "" && looksLikeRepository(d.Name) {
			sources = append(sources, sourceAt(d.Name, d.Pointer, map[string]string{"sha1": c}))
		}
	}
	return only(sources)
}
