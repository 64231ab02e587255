package attestations

import "time"

// The two results of a VSA.
// https://slsa.dev/spec/v1.2/verification_summary#fields (verificationResult)
const (
	VSAPassed = "PASSED"
	VSAFailed = "FAILED"
)

// SLSAVersion is the version of the specification that VSAs refer to.
const SLSAVersion = "1.2"

// VSA is the predicate of a verification summary attestation. waxseal adds no
// field to it, so the text is SLSA's own:
// https://slsa.dev/spec/v1.2/verification_summary#schema
type VSA struct {
	Verifier     VSAVerifier `json:"verifier"`     // #verifier: who verified
	TimeVerified time.Time   `json:"timeVerified"` // #timeVerified
	// ResourceURI is the place the artifact is to be used from, which is
	// matched against the place a consumer got it from.
	// https://slsa.dev/spec/v1.2/verification_summary#resourceUri
	ResourceURI string      `json:"resourceUri"`
	Policy      VSAResource `json:"policy"` // #policy: by digest
	// InputAttestations lists every attestation that the result rests on.
	// https://slsa.dev/spec/v1.2/verification_summary#inputAttestations
	InputAttestations  []VSAResource `json:"inputAttestations,omitempty"`
	VerificationResult string        `json:"verificationResult"` // VSAPassed or VSAFailed
	// VerifiedLevels has at most one level of each track.
	// https://slsa.dev/spec/v1.2/verification_summary#verifiedLevels
	VerifiedLevels []string `json:"verifiedLevels"`
	// DependencyLevels counts the levels of the dependencies; left out when
	// they were not looked at.
	DependencyLevels map[string]uint64 `json:"dependencyLevels,omitzero"`
	SLSAVersion      string            `json:"slsaVersion,omitempty"`
}

// VSAVerifier names the verifier and the versions of its parts.
type VSAVerifier struct {
	ID      string            `json:"id"`
	Version map[string]string `json:"version,omitempty"`
}

// VSAResource names a document by digest and, where it has one, by address.
type VSAResource struct {
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest,omitempty"`
}
