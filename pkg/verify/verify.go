// Package verify judges evidence and computes a SLSA level from it. It is
// pure: bytes and trust go in, findings come out, and nothing is fetched.
//
// Make a Checker of what is trusted, and call its Check on each piece of
// evidence: it returns the statement only when a trusted key or the holder of a
// trusted certificate made the signature, at a time when it counted, and the
// statement names the image's digest. Call ParseProvenance on an accepted provenance statement, and Assess to get
// one row for each of Requirements: the Build and the Source track of SLSA v1.2,
// and the verified properties. A row is met, not met, or cannot be told; what
// cannot be told never counts as met.
package verify

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Code says why a piece of evidence does not count, for programs.
type Code string

// The codes of a Rejection.
const (
	CodeUnreadable  Code = "unreadable"      // not a bundle, an envelope or a statement in a form we accept
	CodeUnsigned    Code = "unsigned"        // carries no signature at all
	CodePayloadType Code = "payload-type"    // the envelope does not hold an in-toto statement
	CodeSignatures  Code = "signature-count" // not exactly one signature
	CodeCertificate Code = "certificate"     // signed with a certificate, and no trusted root was given to check it with
	CodeNoKey       Code = "no-key"          // no key was given to check it with
	CodeSignature   Code = "signature"       // no trusted key, or not the certificate's, made this signature
	CodeLog         Code = "log"             // its entry in a transparency log is missing or does not hold
	CodeTime        Code = "time"            // nothing proves when it was signed, or it was at a time that does not count
	CodeChain       Code = "chain"           // its certificate does not lead to a trusted authority
	CodeIdentity    Code = "identity"        // its certificate is somebody else's
	CodeRevoked     Code = "revoked"         // its certificate was revoked before it was signed, or is not to be believed at all
	CodeRevocation  Code = "revocation"      // whether its certificate was revoked cannot be told: it may count
	CodeSubject     Code = "subject"         // speaks of another digest
	CodeBuilder     Code = "builder"         // this key is not trusted for this builder.id
	CodePredicate   Code = "predicate"       // the predicate is not what its type says
)

// Rejection is why one piece of evidence does not count. It is not a failure
// of the image: anyone may attach anything.
type Rejection struct {
	Code    Code
	Message string
}

func (r *Rejection) Error() string { return r.Message }

func rejectf(code Code, format string, args ...any) *Rejection {
	return &Rejection{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Signer is who made a verified signature: the holder of a key, or of a
// certificate that was issued to SAN on the word of Issuer.
type Signer struct {
	Key    attest.Digest `json:"key,omitempty"`    // Key.ID
	Name   string        `json:"name,omitempty"`   // Key.Name
	Issuer string        `json:"issuer,omitempty"` // OpenID Connect issuer; none for a private CA
	SAN    string        `json:"san,omitempty"`    // subject alternative name
	Root   string        `json:"root,omitempty"`   // name of the Root or CA that the certificate leads to
	// Time is the earliest time that a log or a time-stamping authority proves
	// for the signature; zero where nothing was asked to.
	Time time.Time `json:"time,omitzero"`
	// Unlogged is why the signature counts without an entry in a log of its
	// instance: the reason of an Outage. Empty where it has one.
	Unlogged string `json:"unlogged,omitempty"`
	// Run is what the certificate says of the CI run that it was issued to.
	Run Run `json:"run,omitzero"`

	anchor      attest.Digest // ID of the Root or CA
	first, last time.Time     // all times the signature is judged at lie between
	unlogged    bool          // it has no entry in a log, and its instance has logs
}

// during reports whether the signature counts in a window.
func (s Signer) during(w Window) bool {
	if w.IsZero() {
		return true
	}
	if !w.Revoked.IsZero() && s.Time.IsZero() {
		return false
	}
	return !s.first.IsZero() && w.Holds(s.first) && w.Holds(s.last)
}

// String names the signer for a message.
func (s Signer) String() string {
	switch {
	case s.SAN != "" && s.Issuer != "":
		return fmt.Sprintf("%q of %q", clip(s.SAN), clip(s.Issuer))
	case s.SAN != "":
		return fmt.Sprintf("%q", clip(s.SAN))
	}
	return "key " + Short(s.Key)
}

// Accepted is a statement whose signature held under what is trusted and which
// names the digest it was checked for. Only a Checker makes one.
type Accepted struct {
	bundle    attest.Digest
	statement *attest.Statement
	signer    Signer
}

// Bundle is the digest of the signed bundle, as it was found.
func (a *Accepted) Bundle() attest.Digest { return a.bundle }

// Statement is what was signed.
func (a *Accepted) Statement() *attest.Statement { return a.statement }

// Signer is who signed it.
func (a *Accepted) Signer() Signer { return a.signer }

func firstSubject(st *attest.Statement) string {
	for _, s := range st.Subject {
		if h, ok := s.Digest["sha256"]; ok {
			more := ""
			if n := len(st.Subject) - 1; n > 0 {
				more = fmt.Sprintf(" (and %d more)", n)
			}
			return "sha256:" + clip(h) + more
		}
	}
	return "named without a sha256 digest"
}

// clip keeps foreign text in a message to a readable length, without control
// characters: it ends up on a terminal.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > 200 {
		return strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}
