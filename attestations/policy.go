package attestations

import _ "embed"

// PolicyV1 is the predicate type of a signed policy: the statement's subject is
// the policy file; policy/v1/spec.md says what that means.
const PolicyV1 = "https://waxseal.dev/attestations/policy/v1"

//go:embed policy/v1/schema.json
var policySchema []byte

// PolicySchema returns the JSON Schema of the predicate PolicyV1.
func PolicySchema() []byte { return append([]byte(nil), policySchema...) }

// Policy is the predicate PolicyV1.
type Policy struct {
	APIVersion string   `json:"apiVersion"`        // of the policy
	Extends    []string `json:"extends,omitempty"` // "sha256:…" of the policies it extends, the nearest first
	// Files are those that it and the policies it extends name as keys and roots.
	Files []PolicyFile `json:"files,omitempty"`
}

// PolicyFile is a file that a policy names.
type PolicyFile struct {
	Policy string `json:"policy"` // "sha256:…" of the policy that names it
	Name   string `json:"name"`   // as it does
	Digest string `json:"digest"` // "sha256:…" of its bytes
}
