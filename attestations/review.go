package attestations

import (
	_ "embed"
	"time"
)

// ReviewV1 is the predicate type of a review of a source revision;
// review/v1/spec.md says what its fields mean.
const ReviewV1 = "https://waxseal.dev/attestations/review/v1"

//go:embed review/v1/schema.json
var reviewSchema []byte

// ReviewSchema returns the JSON Schema of the predicate ReviewV1.
func ReviewSchema() []byte { return append([]byte(nil), reviewSchema...) }

// The decisions of a Review.
const (
	ReviewApproved = "approved"
	ReviewRejected = "rejected"
)

// Review is the predicate ReviewV1: a person looked at a revision of a source
// repository, and signs what they decided. The subject is the commit, an image
// that was built from it, or both.
type Review struct {
	Repository string    `json:"repository"`        // URL
	Commit     string    `json:"commit"`            // whole, in hex
	Base       string    `json:"base,omitempty"`    // the commit from which on the changes were looked at
	Authors    []string  `json:"authors,omitempty"` // who wrote what was looked at
	Decision   string    `json:"decision"`
	ReviewedOn time.Time `json:"reviewedOn"`
	Scope      []string  `json:"scope,omitempty"` // the files that were looked at; none: all of it
	Comment    string    `json:"comment,omitempty"`
	Link       string    `json:"link,omitempty"` // where the discussion is
}
