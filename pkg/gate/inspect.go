package gate

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

// InspectionSchema names the form of an Inspection in JSON; package report has
// its JSON Schema.
const InspectionSchema = "https://waxseal.dev/schemas/inspection/v1.json"

// Inspection is what is attached to an image. It decides nothing.
type Inspection struct {
	Schema    string        `json:"schema"`
	Image     string        `json:"image"`
	Digest    attest.Digest `json:"digest"`
	Kind      string        `json:"kind"`      // "index" or "manifest"
	TrustedBy string        `json:"trustedBy"` // where the trust came from
	Evidence  []Evidence    `json:"evidence"`
	Platforms []Attached    `json:"platforms"`
}

// Attached is the evidence of one platform.
type Attached struct {
	Digest   attest.Digest `json:"digest"`
	Platform string        `json:"platform"`
	Evidence []Evidence    `json:"evidence"`
}

// Inspect lists the evidence of an image and its platforms. Without keys and
// policy nothing is verified, and every piece says so.
func (g Gate) Inspect(ctx context.Context, req Request) (*Inspection, error) {
	c, all, err := g.inspect(ctx, req)
	if err != nil {
		return nil, err
	}
	out := &Inspection{
		Schema: InspectionSchema, Image: c.ref.String(), Digest: all[0].digest, Kind: "manifest",
		TrustedBy: c.trustedBy, Evidence: all[0].evidence, Platforms: []Attached{},
	}
	if all[0].index {
		out.Kind = "index"
	}
	for _, f := range all[1:] {
		out.Platforms = append(out.Platforms, Attached{Digest: f.digest, Platform: f.platform, Evidence: f.evidence})
	}
	return out, nil
}

func (g Gate) inspect(ctx context.Context, req Request) (*check, []*found, error) {
	req.Level = nil
	c, err := prepareAt(req, g.now(), false)
	if err != nil {
		return nil, nil, err
	}
	var all []*found
	err = contain(func() (err error) {
		all, err = g.find(ctx, c, look{rule: c.rule, source: c.asksSource(), all: true})
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("inspecting %q: %w", c.ref, err)
	}
	return c, all, nil
}

// DraftRequest is what to draft a policy from.
type DraftRequest struct {
	Request
	// KeyFiles names the keys as the policy is to name them, by Key.ID; a key
	// without a name is written into the policy itself.
	KeyFiles map[attest.Digest]string
	// KeyPEM holds the keys themselves, by Key.ID.
	KeyPEM map[attest.Digest][]byte
	// Match are the image patterns; default: the image's own name.
	Match []string
}

// Draft writes a policy that the image's own evidence, verified with the keys
// of the request, fulfils.
func (g Gate) Draft(ctx context.Context, req DraftRequest) ([]byte, error) {
	if len(req.Keys) == 0 {
		return nil, usagef("no key to verify the evidence with: a policy drafted from evidence that nobody checked would trust anybody")
	}
	req.Policy = nil
	c, all, err := g.inspect(ctx, req.Request)
	if err != nil {
		return nil, err
	}
	in := policy.DraftInput{Image: c.ref.String(), Match: req.Match, SBOM: []string{policy.FormatSPDX, policy.FormatCycloneDX}}
	if len(in.Match) == 0 {
		in.Match = []string{Name(c.ref)}
	}
	in.Level = verify.Demand{Levels: Levels{Build: verify.MaxLevel}, Properties: []string{verify.PropertyInputsComplete, verify.PropertyHermetic}}
	for _, f := range all {
		res := verify.Assess(c.trust, f.findings(c, nil))
		if res.Candidate == nil {
			return nil, fmt.Errorf("drafting a policy from %q: %w", c.ref, errors.New(subjectName(f)+": "+f.why()))
		}
		in.Level.Build = min(in.Level.Build, res.Build)
		in.Provenance = append(in.Provenance, res.Candidate.Provenance)
		// The one that was taken comes first; who signed the same is one as well.
		for _, by := range append([]verify.Candidate{*res.Candidate}, f.candidates...) {
			if by.Signer == nil || by.Claim != res.Candidate.Claim {
				continue
			}
			b := policy.DraftBuilder{ID: by.Provenance.BuilderID.Value, KeyFile: req.KeyFiles[by.Signer.Key], PEM: req.KeyPEM[by.Signer.Key]}
			if !slices.ContainsFunc(in.Builders, func(o policy.DraftBuilder) bool { return o.ID == b.ID && string(o.PEM) == string(b.PEM) }) {
				in.Builders = append(in.Builders, b)
			}
		}
		if !f.index {
			// Of the properties only those that the builders drafted here are
			// enough for.
			in.Level.Properties = slices.DeleteFunc(in.Level.Properties, func(name string) bool { return !slices.Contains(res.Properties, name) })
			in.SBOM = slices.DeleteFunc(in.SBOM, func(format string) bool {
				return !slices.ContainsFunc(f.sboms, func(s sbom) bool { return s.format == format })
			})
		}
	}
	return policy.Draft(in)
}

func subjectName(f *found) string {
	switch {
	case f.platform != "":
		return f.platform
	case f.index:
		return "the index"
	}
	return "the image"
}
