package attest

// Limits on everything remote or untrusted, in one place. A value over its
// limit is refused before it is parsed.
const (
	MaxManifest      = 4 << 20   // bytes of an OCI manifest or index
	MaxBundle        = 32 << 20  // bytes of a signed bundle or DSSE envelope (an SBOM rides in one)
	MaxStatement     = 24 << 20  // bytes of a decoded in-toto statement
	MaxSBOM          = 20 << 20  // bytes of one SBOM document
	MaxSubjects      = 16 << 10  // subjects of one statement
	MaxEvidence      = 1024      // pieces of evidence read for one digest
	MaxEvidenceFiles = 10_000    // files of evidence in folders that are named
	MaxEvidenceDocs  = 200_000   // documents looked at in such files
	MaxReferrers     = 2048      // referrer descriptors listed for one digest
	MaxGCB           = 64        // signatures in one description of an image by Google Cloud
	MaxEvidenceSum   = 256 << 20 // bytes of all evidence read for one digest
	MaxTrustFiles    = 256       // files of whom to trust in one archive
	MaxDependencies  = 256       // images below one image that are looked at
	MaxPlatforms     = 64        // manifests below one index
	MaxListed        = 1 << 20   // repositories of a registry, or tags of a repository, that are walked
	MaxPolicy        = 1 << 20   // bytes of a policy file
	MaxKey           = 64 << 10  // bytes of a key file
	MaxTrustedRoot   = 1 << 20   // bytes of a trusted root or a file of certificates
	MaxCRL           = 16 << 20  // bytes of a file of certificate revocation lists
	MaxOCSP          = 64 << 10  // bytes of an OCSP response
	MaxStapled       = 16        // OCSP responses beside one bundle
	MaxTUF           = 2 << 20   // bytes of one file of a TUF repository's metadata
	MaxJSONDepth     = 128       // nesting of any JSON document
	MaxContextFiles  = 1 << 20   // files in a build context
	MaxLock          = 64 << 20  // bytes of a lock file
	MaxInputs        = 100_000   // requests recorded of one build
	MaxInputBytes    = 20 << 20  // bytes of the requests recorded of one build, which stand in a statement
	MaxRefusals      = 1024      // different refusals recorded of one step
	MaxNames         = 4096      // different host names recorded of one step
	MaxURI           = 8 << 10   // bytes of a recorded URI
	MaxInputSteps    = 16 << 10  // steps, sources or gaps recorded of one build
	MaxInputText     = 64 << 10  // bytes of a step's name, or of one answer's headers
	MaxBlob          = 64 << 30  // bytes of one blob taken from an archive
	MaxBlobs         = 1 << 20   // blobs taken from one archive

	MaxConfig   = 4 << 20  // bytes of an image configuration
	MaxScan     = 20 << 20 // bytes of one attested vulnerability scan
	MaxFindings = 50_000   // findings of one scan
	MaxPackages = 50_000   // packages of one SBOM that rules look at
	MaxVEX      = 4 << 20  // bytes of one OpenVEX document
	MaxRuleText = 4096     // bytes of one rule's expression
	MaxSummary  = 1 << 20  // bytes of a verification summary, a source provenance or a review

	// Of comparing two images.
	MaxLayer        = 128 << 30 // bytes of one unpacked layer
	MaxLayerFiles   = 2 << 20   // entries of one layer
	MaxLayers       = 1024      // layers of one image
	MaxDiffering    = 20_000    // files of one layer that are looked into
	MaxSpool        = 4 << 30   // bytes of differing files kept on disk while they are looked into
	MaxLookInto     = 64 << 20  // bytes of a file that is looked into; of a larger one is said that it differs
	MaxUnpacked     = 192 << 20 // bytes unpacked from the archives in one file
	MaxUnpackedSum  = 16 << 30  // the same of all files of an image
	MaxArchiveDepth = 4         // archives within archives
	MaxDifferences  = 1000      // differences listed; the rest is counted
)

const (
	maxSignatures = 16   // signatures of one envelope
	maxEntries    = 1024 // log entries, time stamps or certificates of one bundle; fewer count
	maxHashes     = 64   // hashes of one inclusion proof
)
