// Package attestations is the vocabulary: the URIs that name what waxseal
// writes and reads, and Go structs for the predicates. Where waxseal defines a
// form of its own, a folder NAME/vN beside this file holds its text, JSON
// Schema and example. Nothing here does I/O or decides anything.
package attestations

import (
	"github.com/in-toto/in-toto-golang/in_toto"
	slsa01 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v0.1"
	slsa02 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v0.2"
	slsa1 "github.com/in-toto/in-toto-golang/in_toto/slsa_provenance/v1"
)

// Predicate types.
const (
	ProvenanceV1  = slsa1.PredicateSLSAProvenance
	ProvenanceV02 = slsa02.PredicateSLSAProvenance
	ProvenanceV01 = slsa01.PredicateSLSAProvenance
	SPDX          = in_toto.PredicateSPDX
	CycloneDX     = in_toto.PredicateCycloneDX
	VSAV1         = "https://slsa.dev/verification_summary/v1"
	OpenVEX       = "https://openvex.dev/ns"
	// CosignVuln and CosignCustom are cosign's own names for a vulnerability
	// report and for anything else.
	CosignVuln   = "https://cosign.sigstore.dev/attestation/vuln/v1"
	CosignCustom = "https://cosign.sigstore.dev/attestation/v1"
	// WitnessCollection holds what several attestors of Witness said of one
	// step; WitnessProvenance is the type that its SLSA attestor gives its own
	// part, and the statement in which that part stands alone.
	WitnessCollection = "https://witness.testifysec.com/attestation-collection/v0.1"
	WitnessProvenance = "https://slsa.dev/provenance/v1.0"
)

// What SLSA's source-tool writes about the moves of branches and tags; the
// drafts have the same fields.
const (
	SourceProvenanceV1    = "https://github.com/slsa-framework/source-tool/source-provenance/v1"
	SourceProvenanceDraft = "https://github.com/slsa-framework/slsa-source-poc/source-provenance/v1-draft"
	TagProvenanceV1       = "https://github.com/slsa-framework/source-tool/tag-provenance/v1"
	TagProvenanceDraft    = "https://github.com/slsa-framework/slsa-source-poc/tag-provenance/v1-draft"
)

// UnhostedBuilderID is the builder.id of a build that ran wherever somebody
// typed the command. Nothing vouches for that place, so it never carries more
// than Build L1, whoever signs.
const UnhostedBuilderID = "https://waxseal.dev/builders/unhosted-local"

// UnhostedVerifierID is the verifier.id of a verdict given wherever somebody
// typed the command. It means no more than the key that signed it.
const UnhostedVerifierID = "https://waxseal.dev/verifiers/unhosted-local"
