// Package verify judges evidence and computes a SLSA level from it. It is
// pure: bytes and trust go in, findings come out, and nothing is fetched.
//
// Call Check on each piece of evidence: it returns the statement only when a
// trusted key made the signature and the statement names the image's digest.
// Call ParseProvenance on an accepted provenance statement, and Assess to get
// one row for each requirement of SLSA v1.2 Build L1 to L3. A row is met, not
// met, or cannot be told; what cannot be told never counts as met.
package verify

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"github.com/sigstore/sigstore-go/pkg/root"
	sigverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

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
	CodeCertificate Code = "certificate"     // signed with a certificate, which this version does not trust
	CodeNoKey       Code = "no-key"          // no key was given to check it with
	CodeSignature   Code = "signature"       // no trusted key made this signature
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

// Signer is who made a verified signature.
type Signer struct {
	Key  attest.Digest `json:"key"`            // Key.ID
	Name string        `json:"name,omitempty"` // Key.Name
}

// Accepted is a statement whose signature held under a trusted key and which
// names the digest it was checked for. Only Check makes one.
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

// Check accepts b when it carries exactly one signature, made by one of keys,
// over an in-toto statement that has subject among its subjects. Any other
// error than a *Rejection does not occur. The key hint of the bundle is not
// trusted: it only says which key to try first.
func Check(b *attest.Bundle, keys []Key, subject attest.Digest) (*Accepted, error) {
	e := b.Proto().GetDsseEnvelope()
	// DSSE v1.0.2, protocol: the payload type is authenticated, and must be
	// what the reader expects before the payload is believed.
	if t := e.GetPayloadType(); t != attest.PayloadType {
		return nil, rejectf(CodePayloadType, "the envelope's payloadType is %q, not %q", clip(t), attest.PayloadType)
	}
	if n := len(e.GetSignatures()); n != 1 {
		return nil, rejectf(CodeSignatures, "the envelope carries %d signatures; exactly one is accepted", n)
	}
	if b.Proto().GetVerificationMaterial().GetPublicKey() == nil {
		return nil, rejectf(CodeCertificate, "signed with a certificate; this version trusts public keys only")
	}
	if len(keys) == 0 {
		return nil, rejectf(CodeNoKey, "no key was given to check its signature with")
	}
	st := b.Statement()
	// Cheap, and true whoever signed it: the signature need not be computed
	// for a statement that does not speak of this image.
	if !st.Binds(subject) {
		return nil, rejectf(CodeSubject, "its subject is %s, not this digest", firstSubject(st))
	}
	entity := &signed{envelope: envelope(e), hint: b.KeyHint()}
	for _, k := range inHintOrder(keys, b.KeyHint()) {
		if entity.verifies(k) {
			return &Accepted{bundle: b.Digest(), statement: st, signer: Signer{Key: k.id, Name: k.name}}, nil
		}
	}
	return nil, rejectf(CodeSignature, "no trusted key made its signature, or it was changed after it was signed")
}

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

// inHintOrder tries the key that the bundle hints at first. cosign's hint is
// the base64 of the same sha256 that is Key.ID.
func inHintOrder(keys []Key, hint string) []Key {
	if hint == "" {
		return keys
	}
	for i, k := range keys {
		if k.Hint() == hint && i > 0 {
			out := append([]Key{k}, keys[:i]...)
			return append(out, keys[i+1:]...)
		}
	}
	return keys
}

// envelope gives sigstore-go the envelope without its key ids: they are not
// authenticated, and a wrong one must not hide a good signature.
func envelope(e *protodsse.Envelope) *dsse.Envelope {
	out := &dsse.Envelope{PayloadType: e.GetPayloadType(), Payload: base64.StdEncoding.EncodeToString(e.GetPayload())}
	for _, s := range e.GetSignatures() {
		out.Signatures = append(out.Signatures, dsse.Signature{Sig: base64.StdEncoding.EncodeToString(s.GetSig())})
	}
	return out
}

// signed is one envelope in the form sigstore-go verifies.
type signed struct {
	sigverify.BaseSignedEntity
	envelope *dsse.Envelope
	hint     string
}

func (s *signed) verifies(k Key) bool {
	for _, v := range k.verifiers {
		// No log and no timestamp: a long-lived key needs neither, and this
		// version accepts nothing but keys. The subject was bound by Check.
		sv, err := sigverify.NewVerifier(&oneKey{Verifier: v}, sigverify.WithNoObserverTimestamps(), sigverify.WithoutStatementPredicate())
		if err != nil {
			return false
		}
		if _, err := sv.Verify(s, sigverify.NewPolicy(sigverify.WithoutArtifactUnsafe(), sigverify.WithKey())); err == nil {
			return true
		}
	}
	return false
}

func (s *signed) Version() (string, error) { return "v0.3", nil }

func (s *signed) SignatureContent() (sigverify.SignatureContent, error) {
	return content{s.envelope}, nil
}

func (s *signed) VerificationContent() (sigverify.VerificationContent, error) {
	return keyContent{hint: s.hint}, nil
}

// keyContent says that the verification material is a public key.
type keyContent struct{ hint string }

func (k keyContent) Hint() string                                     { return k.hint }
func (k keyContent) PublicKey() sigverify.PublicKeyProvider           { return k }
func (k keyContent) Certificate() *x509.Certificate                   { return nil }
func (k keyContent) Intermediates() []*x509.Certificate               { return nil }
func (k keyContent) ValidAtTime(time.Time, root.TrustedMaterial) bool { return true }
func (k keyContent) CompareKey(any, root.TrustedMaterial) bool        { return false }

// content is sigstore-go's view of a DSSE envelope.
type content struct{ env *dsse.Envelope }

func (c content) Signature() []byte {
	sig, err := base64.StdEncoding.DecodeString(c.env.Signatures[0].Sig)
	if err != nil {
		return nil
	}
	return sig
}

func (c content) EnvelopeContent() sigverify.EnvelopeContent                 { return c }
func (c content) MessageSignatureContent() sigverify.MessageSignatureContent { return nil }
func (c content) RawEnvelope() *dsse.Envelope                                { return c.env }

// Statement is not asked for: the statement was parsed strictly before.
func (c content) Statement() (*intoto.Statement, error) {
	return nil, errors.New("the statement is read by package attest")
}

// oneKey is trusted material that is a single public key.
type oneKey struct {
	root.BaseTrustedMaterial
	signature.Verifier
}

func (k *oneKey) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	return root.NewExpiringKey(k.Verifier, time.Time{}, time.Time{}), nil
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
