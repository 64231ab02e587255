package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Facts is what is known of one manifest: its configuration, and evidence
// whose signatures held under keys that the policy trusts for it. What is not
// there is nil or empty, and a demand that rests on it denies.
type Facts struct {
	Reference  string // as it was asked for
	Name       string // what the policy knows the image as
	Digest     attest.Digest
	Platform   string // "linux/amd64"; empty for a single image
	Config     *ImageConfig
	Provenance *ProvenanceFacts
	Signer     *verify.Signer // who signed the provenance
	SBOMs      []SBOM
	Scans      []Scan
	VEX        []VEX
	Inputs     *attestations.Inputs
	// Unreadable says of a kind of evidence why a piece of it, signed by
	// somebody trusted for it, cannot be read.
	Unreadable map[Fact]string
}

// Fact is a kind of evidence that a demand can rest on.
type Fact string

// The kinds. All but FactConfig come as statements.
const (
	FactConfig     Fact = "config"
	FactProvenance Fact = "provenance"
	FactSBOM       Fact = "sbom"
	FactScan       Fact = "scan"
	FactVEX        Fact = "vex"
	FactInputs     Fact = "inputs"
)

// FactOf returns the kind of a predicate type, "" for one that no policy asks
// about.
func FactOf(predicateType string) Fact {
	switch {
	case verify.IsProvenance(predicateType):
		return FactProvenance
	case SBOMFormat(predicateType) != "":
		return FactSBOM
	case predicateType == attestations.CosignVuln:
		return FactScan
	case predicateType == attestations.OpenVEX || strings.HasPrefix(predicateType, attestations.OpenVEX+"/"):
		return FactVEX
	case predicateType == attestations.InputsV1:
		return FactInputs
	}
	return ""
}

// ProvenanceFacts is a provenance as rules see it.
type ProvenanceFacts struct {
	BuilderID          string         `json:"builderId"`
	BuildType          string         `json:"buildType"`
	ExternalParameters map[string]any `json:"externalParameters"`
	Dependencies       []Dependency   `json:"dependencies"`

	// What the provenance says of its source and its run; empty where it does
	// not.
	Repository string `json:"repository"`
	Commit     string `json:"commit"`
	Ref        string `json:"ref"`
	EntryPoint string `json:"entryPoint"`
	Runner     string `json:"runner"`
	Event      string `json:"event"`
	Issuer     string `json:"issuer"` // who signed the last three, where the platform's token says them
}

// Dependency is one resolved dependency (v0.2: material).
type Dependency struct {
	Name   string            `json:"name"`
	URI    string            `json:"uri"`
	Digest map[string]string `json:"digest"`
}

// ReadProvenance returns what rules see of an accepted provenance statement.
func ReadProvenance(p *verify.Provenance) (*ProvenanceFacts, error) {
	out := &ProvenanceFacts{
		BuilderID: p.BuilderID.Value, BuildType: p.BuildType.Value, ExternalParameters: map[string]any{},
		EntryPoint: p.EntryPoint.Value, Runner: p.Runner.Value, Event: p.Event.Value, Issuer: p.Issuer.Value,
	}
	if len(p.Sources) > 0 {
		s := p.Sources[0]
		out.Repository, out.Commit, out.Ref = s.Repository, s.Commit, s.Ref.Value
	}
	for _, d := range p.Dependencies {
		out.Dependencies = append(out.Dependencies, Dependency{Name: d.Name, URI: d.URI, Digest: d.Digest})
	}
	for name, raw := range p.External {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("reading build parameter %q: %w", clip(name), err)
		}
		out.ExternalParameters[name] = v
	}
	return out, nil
}

// ImageConfig is the part of an OCI image configuration that rules see.
type ImageConfig struct {
	User         string            `json:"user"`
	Env          []string          `json:"env"` // the names alone: values may be secret
	Entrypoint   []string          `json:"entrypoint"`
	Cmd          []string          `json:"cmd"`
	WorkingDir   string            `json:"workingDir"`
	Labels       map[string]string `json:"labels"`
	ExposedPorts []string          `json:"exposedPorts"`
	Volumes      []string          `json:"volumes"`
	Architecture string            `json:"architecture"`
	OS           string            `json:"os"`
	Layers       int64             `json:"layers"`
	// History holds the command that made each layer, the first layer first.
	History []string `json:"history"`

	values []string // NAME=value, for the search for secrets only
}

// ReadConfig reads an OCI image configuration, strictly.
// https://github.com/opencontainers/image-spec/blob/v1.1.1/config.md
func ReadConfig(raw []byte) (*ImageConfig, error) {
	if len(raw) > attest.MaxConfig {
		return nil, fmt.Errorf("reading an image configuration: %d bytes, more than the %d allowed", len(raw), attest.MaxConfig)
	}
	var in struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Config       *struct {
			User         string                     `json:"User"`
			Env          []string                   `json:"Env"`
			Entrypoint   []string                   `json:"Entrypoint"`
			Cmd          []string                   `json:"Cmd"`
			WorkingDir   string                     `json:"WorkingDir"`
			Labels       map[string]string          `json:"Labels"`
			ExposedPorts map[string]json.RawMessage `json:"ExposedPorts"`
			Volumes      map[string]json.RawMessage `json:"Volumes"`
		} `json:"config"`
		RootFS *struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
		History []struct {
			CreatedBy string `json:"created_by"`
			Comment   string `json:"comment"`
		} `json:"history"`
	}
	if err := attest.UnmarshalStrict(raw, &in); err != nil {
		return nil, fmt.Errorf("reading an image configuration: %w", err)
	}
	if in.RootFS == nil && in.Config == nil && in.OS == "" {
		return nil, errors.New("reading an image configuration: it has neither os, config nor rootfs, so it is none")
	}
	out := &ImageConfig{Architecture: in.Architecture, OS: in.OS, Labels: map[string]string{}}
	if in.RootFS != nil {
		out.Layers = int64(len(in.RootFS.DiffIDs))
	}
	for _, h := range in.History {
		out.History = append(out.History, strings.TrimSpace(h.CreatedBy+" "+h.Comment))
	}
	if c := in.Config; c != nil {
		out.User, out.Entrypoint, out.Cmd, out.WorkingDir = c.User, c.Entrypoint, c.Cmd, c.WorkingDir
		out.values = c.Env
		for _, e := range c.Env {
			name, _, _ := strings.Cut(e, "=")
			out.Env = append(out.Env, name)
		}
		if c.Labels != nil {
			out.Labels = c.Labels
		}
		out.ExposedPorts, out.Volumes = keys(c.ExposedPorts), keys(c.Volumes)
	}
	return out, nil
}

// ReadInputs reads a record of inputs. Whether it belongs to the provenance is
// for the caller to check: see InputsDigest.
func ReadInputs(predicate json.RawMessage) (*attestations.Inputs, error) {
	if len(predicate) > attest.MaxStatement {
		return nil, fmt.Errorf("reading a record of inputs: %d bytes, more than the %d allowed", len(predicate), attest.MaxStatement)
	}
	var in attestations.Inputs
	if err := attest.UnmarshalStrict(predicate, &in); err != nil {
		return nil, fmt.Errorf("reading a record of inputs: %w", err)
	}
	switch in.Verdict {
	case attestations.VerdictIsolated, attestations.VerdictRecorded, attestations.VerdictGaps, attestations.VerdictUnobserved:
	default:
		return nil, fmt.Errorf(`reading a record of inputs: "/predicate/verdict" is %q`, clip(in.Verdict))
	}
	return &in, nil
}

// InputsDigest is the digest of the record of inputs that a provenance
// predicate (v1) names among its byproducts, "" when it names none.
func InputsDigest(predicate json.RawMessage) attest.Digest {
	var in struct {
		RunDetails struct {
			Byproducts []struct {
				Name   string            `json:"name"`
				Digest map[string]string `json:"digest"`
			} `json:"byproducts"`
		} `json:"runDetails"`
	}
	if attest.UnmarshalStrict(predicate, &in) != nil {
		return ""
	}
	for _, b := range in.RunDetails.Byproducts {
		if d, err := attest.ParseDigest("sha256:" + b.Digest["sha256"]); err == nil && b.Name == attestations.ByproductInputs {
			return d
		}
	}
	return ""
}

// skew is how far clocks may differ: evidence dated later than that does not
// exist yet.
const skew = 5 * time.Minute

func later(t, at time.Time) bool { return t.After(at.Add(skew)) }

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
