package attest

import "encoding/json"

// Media types and statement types of the envelope formats.
const (
	PayloadType     = "application/vnd.in-toto+json"
	StatementTypeV1 = "https://in-toto.io/Statement/v1"
	BundleMediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
)

// Digest is an algorithm and lower-case hex, "sha256:…": the only form in
// which waxseal names content.
type Digest string

// Subject is one artifact a statement speaks of. Digest maps an algorithm
// name ("sha256") to lower-case hex.
type Subject struct {
	Name   string            `json:"name,omitempty"`
	Digest map[string]string `json:"digest"`
}

// Statement is an in-toto statement, v0.1 or v1.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate"`

	raw []byte
}

// Raw returns the bytes as they were received or will be signed.
func (s *Statement) Raw() []byte { return s.raw }

// Binds reports whether d is a subject of the statement.
func (s *Statement) Binds(d Digest) bool { panic("contract") }

// ParseStatement reads a statement strictly.
func ParseStatement(raw []byte) (*Statement, error) { panic("contract") }

// NewStatement makes a v1 statement; its raw bytes are fixed from here on.
func NewStatement(predicateType string, subjects []Subject, predicate any) (*Statement, error) {
	panic("contract")
}

// ParseDigest checks the form "sha256:" and 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) { panic("contract") }

// DigestOf returns the sha256 digest of b.
func DigestOf(b []byte) Digest { panic("contract") }

// Hex returns the digest's hex part.
func (d Digest) Hex() string { panic("contract") }

// UnmarshalStrict decodes exactly one JSON value into v (nil: only check):
// duplicate keys, keys of one object that differ only in case, trailing data,
// invalid UTF-8 and nesting beyond MaxJSONDepth are errors that name the place
// as a JSON pointer. Fields unknown to v are allowed.
func UnmarshalStrict(data []byte, v any) error { panic("contract") }
