package attest

// Limits on everything remote or untrusted, in one place. A value over its
// limit is refused before it is parsed.
const (
	MaxManifest     = 4 << 20   // bytes of an OCI manifest or index
	MaxBundle       = 32 << 20  // bytes of a signed bundle or DSSE envelope (an SBOM rides in one)
	MaxStatement    = 24 << 20  // bytes of a decoded in-toto statement
	MaxSBOM         = 20 << 20  // bytes of one SBOM document
	MaxSubjects     = 1024      // subjects of one statement
	MaxEvidence     = 1024      // pieces of evidence read for one digest
	MaxReferrers    = 2048      // referrer descriptors listed for one digest
	MaxEvidenceSum  = 256 << 20 // bytes of all evidence read for one digest
	MaxPlatforms    = 64        // manifests below one index
	MaxPolicy       = 1 << 20   // bytes of a policy file
	MaxKey          = 64 << 10  // bytes of a key file
	MaxJSONDepth    = 128       // nesting of any JSON document
	MaxContextFiles = 1 << 20   // files in a build context
	MaxLock         = 64 << 20  // bytes of a lock file
	MaxInputs       = 100_000   // requests recorded of one build
	MaxRefusals     = 1024      // different refusals recorded of one step
	MaxNames        = 4096      // different host names recorded of one step
	MaxURI          = 8 << 10   // bytes of a recorded URI
)

// maxSignatures bounds the signatures of one envelope.
const maxSignatures = 16
