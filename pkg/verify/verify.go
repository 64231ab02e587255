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
	"fmt"
	"strings"
	"time"
	"unicode"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"github.com/sigstore/sigstore-go/pkg/bundle"
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
	entity, err := stripped(b)
	if err != nil {
		return nil, rejectf(CodeUnreadable, "reading its envelope: %v", err)
	}
	for _, k := range inHintOrder(keys, b.KeyHint()) {
		if k.made(entity) {
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

// stripped is the bundle without what is not authenticated or not asked for:
// key ids and hints, which must not hide a good signature, and log entries,
// which a long-lived key does not need.
func stripped(b *attest.Bundle) (*bundle.Bundle, error) {
	e := b.Proto().GetDsseEnvelope()
	out := &protodsse.Envelope{PayloadType: e.GetPayloadType(), Payload: e.GetPayload()}
	for _, s := range e.GetSignatures() {
		out.Signatures = append(out.Signatures, &protodsse.Signature{Sig: s.GetSig()})
	}
	return bundle.NewBundle(&protobundle.Bundle{
		MediaType: attest.BundleMediaType,
		Content:   &protobundle.Bundle_DsseEnvelope{DsseEnvelope: out},
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
		},
	})
}

func (k Key) made(b *bundle.Bundle) bool {
	for _, v := range k.verifiers {
		// No log and no timestamp: this version accepts nothing but keys. The
		// subject was bound by Check.
		sv, err := sigverify.NewVerifier(&oneKey{Verifier: v}, sigverify.WithNoObserverTimestamps(), sigverify.WithoutStatementPredicate())
		if err != nil {
			return false
		}
		if _, err := sv.Verify(b, sigverify.NewPolicy(sigverify.WithoutArtifactUnsafe(), sigverify.WithKey())); err == nil {
			return true
		}
	}
	return false
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
