package attest

import (
	"bytes"
	"encoding/asn1"
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"google.golang.org/protobuf/encoding/protojson"
)

// Bundle is a DSSE envelope with what is needed to verify it: a Sigstore
// bundle (v0.1 to v0.3), or a bare DSSE envelope as cosign keeps in ".att".
// Immutable; the raw bytes are kept as received.
type Bundle struct {
	raw       []byte
	proto     *protobundle.Bundle
	bare      bool
	statement *Statement
	stapled   [][]byte
}

// ParseBundle reads a Sigstore bundle or a bare DSSE envelope. It checks the
// form only: whose signature it is, and whether it holds, is for package
// verify. A bundle that carries no in-toto statement is an error.
func ParseBundle(raw []byte) (*Bundle, error) {
	b, err := parseBundle(raw, false)
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	return b, nil
}

// ParseAnyBundle is ParseBundle for files that are no images: it also reads a
// Sigstore bundle over plain bytes. Such a bundle has no statement.
func ParseAnyBundle(raw []byte) (*Bundle, error) {
	b, err := parseBundle(raw, true)
	if err != nil {
		return nil, fmt.Errorf("reading bundle: %w", err)
	}
	return b, nil
}

func parseBundle(raw []byte, plain bool) (*Bundle, error) {
	if len(raw) > MaxBundle {
		return nil, fmt.Errorf("%d bytes, more than the %d allowed", len(raw), MaxBundle)
	}
	members, err := scan(raw, reflect.TypeFor[shape]())
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, m := range members {
		has[m.key] = true
	}
	b := &Bundle{raw: raw}
	switch {
	case has["mediaType"] && has["payload"]:
		return nil, errors.New("both a Sigstore bundle and a DSSE envelope")
	case has["mediaType"]:
		b.proto, err = parseSigstore(raw, plain)
	case has["payload"]:
		b.bare = true
		b.proto, err = parseDSSE(raw)
	default:
		return nil, errors.New("neither a Sigstore bundle nor a DSSE envelope")
	}
	if err != nil {
		return nil, err
	}
	if b.proto.GetMessageSignature() != nil {
		return b, nil
	}
	env := b.proto.GetDsseEnvelope()
	if env.GetPayloadType() != PayloadType {
		return nil, fmt.Errorf("payload type %q, want %q", clip(env.GetPayloadType()), PayloadType)
	}
	if len(env.GetSignatures()) == 0 {
		return nil, errors.New("no signature")
	}
	if n := len(env.GetSignatures()); n > maxSignatures {
		return nil, fmt.Errorf("%d signatures, more than the %d allowed", n, maxSignatures)
	}
	for i, sig := range env.GetSignatures() {
		if len(sig.GetSig()) == 0 {
			return nil, fmt.Errorf("signature %d is empty", i)
		}
	}
	if b.statement, err = ParseStatement(env.GetPayload()); err != nil {
		return nil, err
	}
	return b, nil
}

// shape lists the keys whose spelling tells the two forms apart, and what there
// may be many of, under each name that protojson reads.
type shape struct {
	MediaType            any      `json:"mediaType"`
	VerificationMaterial material `json:"verificationMaterial"`
	Material             material `json:"verification_material"`
	DsseEnvelope         envelope `json:"dsseEnvelope"`
	Envelope             envelope `json:"dsse_envelope"`
	envelope
}

type envelope struct {
	Payload     any                `json:"payload"`
	PayloadType any                `json:"payloadType"`
	Signatures  [maxSignatures]any `json:"signatures"`
}

type (
	material struct {
		TlogEntries [maxEntries]logEntry `json:"tlogEntries"`
		Entries     [maxEntries]logEntry `json:"tlog_entries"`
		Data        stamps               `json:"timestampVerificationData"`
		Stamps      stamps               `json:"timestamp_verification_data"`
		X509        chain                `json:"x509CertificateChain"`
		Chain       chain                `json:"x509_certificate_chain"`
	}
	logEntry struct {
		InclusionProof proof `json:"inclusionProof"`
		Proof          proof `json:"inclusion_proof"`
	}
	proof struct {
		Hashes [maxHashes]any `json:"hashes"`
	}
	stamps struct {
		RFC3161 [maxEntries]any `json:"rfc3161Timestamps"`
		Stamps  [maxEntries]any `json:"rfc3161_timestamps"`
	}
	chain struct {
		Certificates [maxEntries]any `json:"certificates"`
	}
)

func parseSigstore(raw []byte, plain bool) (*protobundle.Bundle, error) {
	pb := new(protobundle.Bundle)
	if err := protojson.Unmarshal(raw, pb); err != nil {
		return nil, fmt.Errorf("as a Sigstore bundle: %w", err)
	}
	switch pb.GetMediaType() {
	case BundleMediaType,
		"application/vnd.dev.sigstore.bundle+json;version=0.1",
		BundleV02MediaType,
		"application/vnd.dev.sigstore.bundle+json;version=0.3":
	default:
		return nil, fmt.Errorf("media type %q, want a Sigstore bundle v0.1 to v0.3", clip(pb.GetMediaType()))
	}
	switch m := pb.GetMessageSignature(); {
	case m != nil && !plain:
		return nil, errors.New("it signs plain bytes, not an in-toto statement")
	case m != nil && (len(m.GetSignature()) == 0 || m.GetMessageDigest() == nil):
		return nil, errors.New("it signs plain bytes, and has no signature or no digest")
	case m == nil && pb.GetDsseEnvelope() == nil:
		return nil, errors.New("it has no DSSE envelope")
	}
	if pb.GetVerificationMaterial().GetContent() == nil {
		return nil, errors.New("it says neither a public key nor a certificate")
	}
	return pb, nil
}

// parseDSSE gives a bare envelope the form of a bundle whose key has no hint,
// so that one code path verifies both.
func parseDSSE(raw []byte) (*protobundle.Bundle, error) {
	var env dsse.Envelope
	if err := UnmarshalStrict(raw, &env); err != nil {
		return nil, err
	}
	payload, err := decodeBase64(env.Payload)
	if err != nil {
		return nil, fmt.Errorf(`"/payload": %w`, err)
	}
	out := &protodsse.Envelope{PayloadType: env.PayloadType, Payload: payload}
	if len(env.Signatures) > maxSignatures {
		return nil, fmt.Errorf("%d signatures, more than the %d allowed", len(env.Signatures), maxSignatures)
	}
	for i, sig := range env.Signatures {
		b, err := decodeBase64(sig.Sig)
		if err != nil {
			return nil, fmt.Errorf(`"/signatures/%d/sig": %w`, i, err)
		}
		out.Signatures = append(out.Signatures, &protodsse.Signature{Sig: b, Keyid: sig.KeyID})
	}
	return &protobundle.Bundle{
		MediaType: BundleMediaType,
		Content:   &protobundle.Bundle_DsseEnvelope{DsseEnvelope: out},
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
		},
	}, nil
}

// decodeBase64 takes the standard and the URL-safe alphabet, as DSSE asks of
// readers, but no line breaks and no spare bits.
// https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md
func decodeBase64(s string) ([]byte, error) {
	if bytes.ContainsAny([]byte(s), "\r\n") {
		return nil, errors.New("line break in base64")
	}
	if b, err := base64.StdEncoding.Strict().DecodeString(s); err == nil {
		return b, nil
	}
	b, err := base64.URLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not base64")
	}
	return b, nil
}

// Raw returns the bytes as received.
func (b *Bundle) Raw() []byte { return b.raw }

// Digest is the sha256 of Raw.
func (b *Bundle) Digest() Digest { return DigestOf(b.raw) }

// Statement is what the envelope says, NOT verified. Nil where ParseAnyBundle
// read a bundle over plain bytes.
func (b *Bundle) Statement() *Statement { return b.statement }

// Bare reports whether Raw is a DSSE envelope without a bundle around it.
func (b *Bundle) Bare() bool { return b.bare }

// Proto is the bundle for sigstore's libraries; a bare envelope appears as a
// bundle whose public key has no hint. The caller must not change it.
func (b *Bundle) Proto() *protobundle.Bundle { return b.proto }

// KeyHint is what the bundle says about which public key verifies it: for
// cosign's and waxseal's keys the base64 sha256 of the PKIX form. Empty for a
// bare envelope or a certificate. NOT verified.
func (b *Bundle) KeyHint() string {
	return b.proto.GetVerificationMaterial().GetPublicKey().GetHint()
}

// OCSPMediaType is that of an OCSP response: RFC 6960, appendix C.2.
const OCSPMediaType = "application/ocsp-response"

// Staple returns the same bundle with OCSP responses (RFC 6960; DER) beside it, in
// place of those that it had: a Sigstore bundle has no place for them inside.
func (b *Bundle) Staple(answers ...[]byte) *Bundle {
	with := *b
	with.stapled = answers
	return &with
}

// Stapled are the OCSP responses beside the bundle, NOT verified. Its bytes never
// hold any: who read it from somewhere looks there for them as well.
func (b *Bundle) Stapled() [][]byte { return b.stapled }

// SplitOCSP takes a file of OCSP responses apart: DER, one after the other.
func SplitOCSP(raw []byte) ([][]byte, error) {
	var out [][]byte
	for rest := raw; ; {
		var one asn1.RawValue
		var err error
		rest, err = asn1.Unmarshal(rest, &one)
		switch {
		case err != nil || one.Class != asn1.ClassUniversal || one.Tag != asn1.TagSequence:
			return nil, errors.New("reading OCSP responses: not DER")
		case len(one.FullBytes) > MaxOCSP:
			return nil, fmt.Errorf("reading OCSP responses: one is larger than the %d bytes allowed", MaxOCSP)
		case len(out) == MaxStapled:
			return nil, fmt.Errorf("reading OCSP responses: more than %d of them", MaxStapled)
		}
		if out = append(out, one.FullBytes); len(rest) == 0 {
			return out, nil
		}
	}
}

// DSSE returns the bare envelope of the bundle, the form that cosign keeps in
// ".att". It is the same bytes for the same bundle.
func (b *Bundle) DSSE() ([]byte, error) {
	if b.bare {
		return b.raw, nil
	}
	if b.statement == nil {
		return nil, errors.New("the bundle signs plain bytes and has no envelope")
	}
	env := b.proto.GetDsseEnvelope()
	out := dsse.Envelope{PayloadType: env.GetPayloadType(), Payload: base64.StdEncoding.EncodeToString(env.GetPayload())}
	for _, sig := range env.GetSignatures() {
		out.Signatures = append(out.Signatures, dsse.Signature{KeyID: sig.GetKeyid(), Sig: base64.StdEncoding.EncodeToString(sig.GetSig())})
	}
	return marshal(out)
}
