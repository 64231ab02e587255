package gate

import (
	"errors"
	"fmt"
	"net/url"
	"slices"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// VSAOptions says in whose name a VSA speaks, and for which place.
type VSAOptions struct {
	VerifierID      string            // required: a URI bound to the key that signs
	VerifierVersion map[string]string // name of a part to its version
	// ResourceURI is where the artifact is to be used from: the destination
	// of a promotion. Required.
	ResourceURI string
	// PolicyURI identifies the policy. Default: a URI made of its digest, or
	// of what was asked for when there was no policy.
	PolicyURI string
}

// SubjectVSA is the verification summary for one digest.
type SubjectVSA struct {
	Digest    attest.Digest
	Platform  string // "" for the image itself
	Predicate attestations.VSA
}

// VSA returns one verification summary for the image and one for each
// platform, under SLSA v1.2 (https://slsa.dev/spec/v1.2/verification_summary).
// A denied image gives FAILED summaries; an undecided one is an error.
func (v *Verdict) VSA(opts VSAOptions) ([]SubjectVSA, error) {
	switch {
	case v.Decision == Undecided:
		return nil, errors.New("summarising a verdict: there is none, the image is undecided")
	case !v.AsOf.IsZero():
		return nil, errAsOf
	case len(v.used) != len(v.Platforms)+1:
		return nil, errors.New("summarising a verdict: it was not given by a gate")
	}
	for name, uri := range map[string]string{"verifier id": opts.VerifierID, "resource URI": opts.ResourceURI} {
		if uri == "" {
			return nil, fmt.Errorf("summarising a verdict: no %s", name)
		}
	}
	if u, err := url.Parse(opts.VerifierID); err != nil || u.Scheme == "" {
		return nil, fmt.Errorf("summarising a verdict: verifier id %q is not a URI", opts.VerifierID)
	}
	pol := attestations.VSAResource{URI: opts.PolicyURI}
	if v.PolicyDigest != "" {
		pol.Digest = map[string]string{"sha256": v.PolicyDigest.Hex()}
		if pol.URI == "" {
			pol.URI = "urn:waxseal:policy:" + string(v.PolicyDigest)
		}
	} else if pol.URI == "" {
		pol.URI = fmt.Sprintf("urn:waxseal:trust:%s:build-level:%d:%s", v.TrustedBy, v.Declared.Build, v.TrustDigest) // the digest covers all that was asked
	}
	parts := append([]Subject{v.Subject}, v.Platforms...)
	var out []SubjectVSA
	for i, s := range parts {
		reached, properties, inputs := s.Reached, s.Properties, v.used[i]
		if i == 0 {
			// The index is what its platforms are, and rests on their
			// evidence as well.
			reached, properties = v.Reached, v.Properties
			s.dependencyLevels = v.DependencyLevels
			inputs = slices.Concat(v.used...)
		}
		p := attestations.VSA{
			Verifier:           attestations.VSAVerifier{ID: opts.VerifierID, Version: opts.VerifierVersion},
			TimeVerified:       v.DecidedAt,
			ResourceURI:        opts.ResourceURI,
			Policy:             pol,
			InputAttestations:  resources(inputs),
			VerificationResult: attestations.VSAFailed,
			// #verifiedLevels: "FAILED" when the policy was not fulfilled.
			VerifiedLevels:   []string{attestations.VSAFailed},
			DependencyLevels: s.dependencyLevels,
			SLSAVersion:      attestations.SLSAVersion,
		}
		// The policy speaks of the image as a whole: a good platform of a
		// denied image has not passed.
		if v.Decision == Pass && s.decided(v, i) == Pass {
			p.VerificationResult = attestations.VSAPassed
			p.VerifiedLevels = verifiedLevels(reached, properties)
		}
		out = append(out, SubjectVSA{Digest: s.Digest, Platform: s.Platform, Predicate: p})
	}
	return out, nil
}

// verifiedLevels names what was reached: at most one level of each track, and
// the properties that hold. A track on which nothing is known is left out. Names
// that the specification does not define may not begin with "SLSA_".
// https://slsa.dev/spec/v1.2/verification_summary#verifiedLevels
func verifiedLevels(reached Levels, properties []string) []string {
	out := []string{fmt.Sprintf("SLSA_BUILD_LEVEL_%d", reached.Build)}
	if reached.Source > 0 {
		out = append(out, fmt.Sprintf("SLSA_SOURCE_LEVEL_%d", reached.Source))
	}
	return append(out, properties...)
}

func (s Subject) decided(v *Verdict, i int) Decision {
	if i == 0 {
		return v.Decision
	}
	return s.Decision
}

func resources(digests []attest.Digest) []attestations.VSAResource {
	digests = slices.Clone(digests)
	slices.Sort(digests)
	var out []attestations.VSAResource
	for _, d := range slices.Compact(digests) {
		out = append(out, attestations.VSAResource{Digest: map[string]string{"sha256": d.Hex()}})
	}
	return out
}
