package attestations

import (
	_ "embed"
	"time"
)

// RebuildV1 is the predicate type of what came of building an image again;
// rebuild/v1/spec.md says what its fields mean.
const RebuildV1 = "https://waxseal.dev/attestations/rebuild/v1"

//go:embed rebuild/v1/schema.json
var rebuildSchema []byte

// RebuildSchema returns the JSON Schema of the predicate RebuildV1.
func RebuildSchema() []byte { return append([]byte(nil), rebuildSchema...) }

// The verdicts of a rebuild, best first.
const (
	RebuildReproduced = "reproduced" // the same digest
	RebuildEquivalent = "equivalent" // equal once what the named normalisers cover is left out
	RebuildDifferent  = "different"
)

// The kinds of a RebuildDifference.
const (
	DifferentManifest    = "manifest"    // of the index or the manifest: a field, the number of layers
	DifferentConfig      = "config"      // a field of the image's configuration
	DifferentCompression = "compression" // of a layer: the same archive in other bytes
	DifferentArchive     = "archive"     // of a layer: the same files in another order or form of header
	DifferentMissing     = "missing"     // the rebuilt image lacks the file
	DifferentAdded       = "added"       // only the rebuilt image has the file
	DifferentType        = "type"        // file, folder, link, device
	DifferentContent     = "content"
	DifferentMode        = "mode"
	DifferentOwner       = "owner"
	DifferentTime        = "time"
	DifferentAttributes  = "attributes" // extended attributes and other fields of the archive's header
	DifferentLink        = "link"       // where a symbolic or hard link leads
	DifferentUnread      = "unread"     // more than is looked into: what differs there is not known
)

// Rebuild is the predicate RebuildV1: an image was built a second time from
// its own provenance and recorded inputs, and the two were compared. The
// subject is the original.
type Rebuild struct {
	RebuildComparison
	Build RebuildBuild `json:"build"`
}

// RebuildComparison is what comparing two images found.
type RebuildComparison struct {
	Verdict  string `json:"verdict"`
	Original string `json:"original"` // "sha256:…" of the manifest or index
	Rebuilt  string `json:"rebuilt"`
	// Platforms has an entry for each manifest below an index.
	Platforms []RebuildPlatform `json:"platforms,omitempty"`
	// Normalisers are those without which the two would not be equal.
	Normalisers []RebuildNormaliser `json:"normalisers"`
	Differences []RebuildDifference `json:"differences"`
	// MoreDifferences counts those that are not listed. The verdict covers them.
	MoreDifferences int `json:"moreDifferences,omitempty"`
}

// RebuildPlatform is one platform of an image with several.
type RebuildPlatform struct {
	Name     string `json:"name"`
	Original string `json:"original"`
	Rebuilt  string `json:"rebuilt"`
	Verdict  string `json:"verdict"`
}

// RebuildNormaliser is a rule by which bytes that mean the same are made the
// same.
type RebuildNormaliser struct {
	Name   string `json:"name"` // with its version: "gzip-header/v1"
	Reason string `json:"reason"`
	Uses   int    `json:"uses"` // differences that it covers
}

// RebuildDifference is one thing that is not the same in both images.
type RebuildDifference struct {
	Kind     string `json:"kind"`
	Platform string `json:"platform,omitempty"`
	Layer    int    `json:"layer,omitempty"` // from 1
	// Path is a file in the image, "!/" leading into archives; or a JSON
	// pointer into manifest or configuration.
	Path     string `json:"path,omitempty"`
	Cause    string `json:"cause"` // in words
	Original string `json:"original,omitempty"`
	Rebuilt  string `json:"rebuilt,omitempty"`
	// Normalisers that together make this equal; none means that it stays.
	Normalisers []string `json:"normalisers,omitempty"`
}

// RebuildBuild is how the second image came about, and what it rests on.
type RebuildBuild struct {
	Mode    string `json:"mode"` // of the inputs: "offline"
	Lock    string `json:"lock"` // "sha256:…" of the lock that was made from the inputs records
	Builder string `json:"builder"`
	Version string `json:"version,omitempty"` // of waxseal
	// Provenance is the digest of the second build's provenance statement.
	Provenance string                `json:"provenance"`
	Engine     ContainerEngine       `json:"engine"`
	Evidence   []RebuildEvidence     `json:"evidence"`
	Unverified bool                  `json:"unverified,omitempty"` // the evidence was used without checking who signed it
	Changed    []RebuildCircumstance `json:"changed,omitempty"`
	StartedOn  time.Time             `json:"startedOn"`
	FinishedOn time.Time             `json:"finishedOn"`
}

// RebuildEvidence is a statement about the original that said how to build it.
type RebuildEvidence struct {
	PredicateType string `json:"predicateType"`
	Statement     string `json:"statement"`        // "sha256:…" of its bytes
	Signer        string `json:"signer,omitempty"` // "sha256:…" of the public key; absent where unverified
	Builder       string `json:"builder,omitempty"`
}

// RebuildCircumstance is something about the second build that was not as in
// the first.
type RebuildCircumstance struct {
	Name     string `json:"name"` // "engine.buildkit", "engine.runc", "engine.kernel", "waxseal"
	Original string `json:"original,omitempty"`
	Rebuilt  string `json:"rebuilt,omitempty"`
}
