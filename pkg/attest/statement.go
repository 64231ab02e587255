package attest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	intoto "github.com/in-toto/attestation/go/v1"
	intotogo "github.com/in-toto/in-toto-golang/in_toto"
)

// Media types and statement types of the envelope formats.
const (
	PayloadType      = intotogo.PayloadType
	StatementTypeV1  = intoto.StatementTypeUri
	StatementTypeV01 = intotogo.StatementInTotoV01
	BundleMediaType  = "application/vnd.dev.sigstore.bundle.v0.3+json"
	// BundleV02MediaType is of the last version whose bundles may bring a chain of
	// certificates along.
	BundleV02MediaType = "application/vnd.dev.sigstore.bundle+json;version=0.2"
)

// Subject is one artifact a statement speaks of. Digest maps an algorithm
// name ("sha256") to lower-case hex.
type Subject struct {
	Name        string            `json:"name,omitempty"`
	Digest      map[string]string `json:"digest"`
	Annotations json.RawMessage   `json:"annotations,omitempty"`
}

// Statement is an in-toto statement, v0.1 or v1.
type Statement struct {
	Type          string          `json:"_type"`
	Subject       []Subject       `json:"subject"`
	PredicateType string          `json:"predicateType"`
	Predicate     json.RawMessage `json:"predicate,omitempty"`

	raw []byte
}

// Raw returns the bytes as they were received or will be signed.
func (s *Statement) Raw() []byte { return s.raw }

// Digest is the sha256 of Raw.
func (s *Statement) Digest() Digest { return DigestOf(s.raw) }

// Binds reports whether d is a subject of the statement.
func (s *Statement) Binds(d Digest) bool {
	hex := d.Hex()
	if !isHex(hex, 64) {
		return false
	}
	for _, sub := range s.Subject {
		if sub.Digest["sha256"] == hex {
			return true
		}
	}
	return false
}

// IsCommit reports whether s is the whole id of a git commit, in lower-case
// hex: the SHA-1 of one, or the SHA-256 in a repository that uses that.
func IsCommit(s string) bool { return isHex(s, 40) || isHex(s, 64) }

// Commit returns the id of the git commit that the subject is, "" when it is
// none. "gitCommit" is its name in
// https://github.com/in-toto/attestation/blob/v1.2.0/spec/v1/digest_set.md,
// "sha1" the older one that SLSA provenance still has.
func (s Subject) Commit() string {
	id, named := s.Digest["gitCommit"]
	old, alias := s.Digest["sha1"]
	switch {
	case !named:
		id = old
	case alias && old != id:
		return "" // two commits are none
	}
	if !IsCommit(id) {
		return ""
	}
	return id
}

// Commits returns the subjects that are the git commit with that id.
func (s *Statement) Commits(id string) []Subject {
	var out []Subject
	for _, sub := range s.Subject {
		if IsCommit(id) && sub.Commit() == id {
			out = append(out, sub)
		}
	}
	return out
}

// ParseStatement reads a statement strictly. It refuses one without a subject,
// a subject without a digest, and a sha2 digest that is not lower-case hex.
// https://github.com/in-toto/attestation/blob/v1.2.0/spec/v1/statement.md
func ParseStatement(raw []byte) (*Statement, error) {
	st, err := parseStatement(raw)
	if err != nil {
		return nil, fmt.Errorf("reading in-toto statement: %w", err)
	}
	return st, nil
}

// outline is the form of a Statement.
type outline struct {
	Type    any `json:"_type"`
	Subject [MaxSubjects]struct {
		Name        any       `json:"name"`
		Digest      digestSet `json:"digest"`
		Annotations any       `json:"annotations"`
	} `json:"subject"`
	PredicateType any `json:"predicateType"`
	Predicate     any `json:"predicate"`
}

// digestSet has at most maxDigests members.
type digestSet map[string]any

func parseStatement(raw []byte) (*Statement, error) {
	if len(raw) > MaxStatement {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(raw), MaxStatement)
	}
	// The type of the scan says where spelling matters and how many there may be;
	// the predicate, the bulk of the bytes, is taken as a slice of raw and not
	// decoded here.
	members, err := scan(raw, reflect.TypeFor[outline]())
	if err != nil {
		return nil, err
	}
	if members == nil {
		return nil, errors.New("not a JSON object with members")
	}
	st := &Statement{raw: raw}
	for _, m := range members {
		var into any
		switch m.key {
		case "_type":
			into = &st.Type
		case "subject":
			into = &st.Subject
		case "predicateType":
			into = &st.PredicateType
		case "predicate":
			if m.value[0] != '{' {
				return nil, errors.New(`"/predicate" is not an object`)
			}
			st.Predicate = m.value
			continue
		default:
			continue
		}
		if err := json.Unmarshal(m.value, into); err != nil {
			return nil, fmt.Errorf("at %q: %w", "/"+m.key, err)
		}
	}
	return st, st.check()
}

func (s *Statement) check() error {
	switch s.Type {
	case StatementTypeV1, StatementTypeV01:
	case "":
		return errors.New(`"/_type" is missing`)
	default:
		return fmt.Errorf(`"/_type" is %q, want %q or %q`, clip(s.Type), StatementTypeV1, StatementTypeV01)
	}
	if s.PredicateType == "" {
		return errors.New(`"/predicateType" is missing`)
	}
	if len(s.Subject) == 0 {
		return errors.New(`"/subject" names nothing`)
	}
	if len(s.Subject) > MaxSubjects {
		return fmt.Errorf(`"/subject" names %d artifacts, more than the %d allowed`, len(s.Subject), MaxSubjects)
	}
	for i, sub := range s.Subject {
		if len(sub.Digest) == 0 {
			return fmt.Errorf(`"/subject/%d/digest" is missing`, i)
		}
		for alg, n := range map[string]int{"sha256": 64, "sha384": 96, "sha512": 128} {
			if v, ok := sub.Digest[alg]; ok && !isHex(v, n) {
				return fmt.Errorf(`"/subject/%d/digest/%s" is not %d lower-case hex digits`, i, alg, n)
			}
		}
	}
	return nil
}

// NewStatement makes a v1 statement; its raw bytes are fixed from here on.
// predicate is marshalled, or taken as it is when it is a json.RawMessage.
func NewStatement(predicateType string, subjects []Subject, predicate any) (*Statement, error) {
	body, ok := predicate.(json.RawMessage)
	if !ok {
		var err error
		if body, err = marshal(predicate); err != nil {
			return nil, fmt.Errorf("writing predicate %q: %w", predicateType, err)
		}
	}
	if err := UnmarshalStrict(body, nil); err != nil {
		return nil, fmt.Errorf("writing predicate %q: %w", predicateType, err)
	}
	raw, err := marshal(Statement{Type: StatementTypeV1, Subject: subjects, PredicateType: predicateType, Predicate: body})
	if err != nil {
		return nil, fmt.Errorf("writing statement %q: %w", predicateType, err)
	}
	// What was written is read back under the rules for foreign bytes: a
	// statement that no one could accept must not be signed.
	st, err := parseStatement(raw)
	if err != nil {
		return nil, fmt.Errorf("writing statement %q: %w", predicateType, err)
	}
	return st, nil
}

// marshal writes JSON in one line without escaping what only HTML minds.
func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}
