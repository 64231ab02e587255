package verify

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/digitorus/pkcs7"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"

	"github.com/waxseal/waxseal/pkg/attest"
)

// What a stranger's evidence may cost. Libraries check signatures with keys that
// come along with it, before anybody asks whose they are; and what an RSA key
// costs grows with the square of its size, to hours for one that fits into a
// bundle.

const (
	maxRSA   = 8192      // bits of an RSA key; tooLarge says so
	maxStamp = 64 << 10  // bytes of a time stamp, which may have many signatures
	maxEntry = 128 << 10 // bytes of a log entry's body
)

const tooLarge = "its certificate has an RSA key of more than 8192 bits"

// costly reports whether a certificate's key is larger than what signatures are
// checked with.
func costly(c *x509.Certificate) bool { return huge(c.PublicKey) }

func huge(key crypto.PublicKey) bool {
	k, ok := key.(*rsa.PublicKey)
	return ok && k.N.BitLen() > maxRSA
}

// lightStamp refuses a time stamp (RFC 3161, section 2.4.2) that is costly to
// check: the certificates in it are whosever.
func lightStamp(stamp []byte) error {
	if len(stamp) > maxStamp {
		return fmt.Errorf("the time stamp is larger than the %d bytes allowed", maxStamp)
	}
	var response struct{ Status, Token asn1.RawValue }
	if _, err := asn1.Unmarshal(stamp, &response); err != nil {
		return fmt.Errorf("reading a time stamp: %w", err)
	}
	// The library's own reader: another might overlook a certificate that it sees.
	token, err := pkcs7.Parse(response.Token.FullBytes)
	if err != nil {
		return fmt.Errorf("reading a time stamp: %w", err)
	}
	for _, c := range token.Certificates {
		if costly(c) {
			return errors.New("in the time stamp, " + tooLarge)
		}
	}
	return nil
}

// lightAnswer refuses an OCSP response (RFC 6960, section 4.2.1) that is costly to
// check: the certificate in it is whosever.
func lightAnswer(raw []byte) error {
	var response struct {
		Status asn1.Enumerated
		Bytes  struct {
			Type     asn1.ObjectIdentifier
			Response []byte
		} `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(raw, &response); err != nil {
		return err
	}
	if response.Bytes.Response == nil {
		return nil // an error's, with nothing in it
	}
	var basic struct {
		Data, Algorithm, Signature asn1.RawValue
		Certificates               []asn1.RawValue `asn1:"explicit,tag:0,optional"`
	}
	if _, err := asn1.Unmarshal(response.Bytes.Response, &basic); err != nil {
		return err
	}
	for _, raw := range basic.Certificates {
		c, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil {
			return err
		}
		if costly(c) {
			return errors.New(tooLarge)
		}
	}
	return nil
}

// lightEntries refuses log entries that are costly to read. The library's reader
// of Rekor v1 checks the signature of a hashedrekord, those of an envelope that is
// whole, and those in what is proposed to a log, each with every key.
func lightEntries(b *protobundle.Bundle) error {
	for _, e := range b.GetVerificationMaterial().GetTlogEntries() {
		if err := lightEntry(e.GetCanonicalizedBody()); err != nil {
			return err
		}
	}
	return nil
}

func lightEntry(body []byte) error {
	switch {
	case len(body) == 0:
		return nil // for the library to refuse
	case len(body) > maxEntry:
		return fmt.Errorf("it is larger than the %d bytes allowed", maxEntry)
	}
	// Most have none of that in them, escaped neither, and need not be read for it.
	if !slices.ContainsFunc([]string{`\`, `"hashedrekord"`, `"proposedContent"`, `"payload"`}, func(s string) bool { return bytes.Contains(body, []byte(s)) }) {
		return nil
	}
	var entry struct {
		Kind       any            `json:"kind"`
		APIVersion any            `json:"apiVersion"`
		Spec       map[string]any `json:"spec"`
	}
	if err := attest.UnmarshalStrict(body, &entry); err != nil {
		return err
	}
	// in looks where the library's reader does: by these very names.
	in := func(names ...string) any {
		var v any = entry.Spec
		for _, name := range names {
			m, _ := v.(map[string]any)
			v = m[name]
		}
		return v
	}
	if in("proposedContent") != nil {
		return errors.New("it holds what is proposed to a log, not what a log keeps")
	}
	keys := []any{in("signature", "publicKey", "content")}
	if payload, _ := in("content", "envelope", "payload").(string); payload != "" {
		signatures, _ := in("content", "envelope", "signatures").([]any)
		if len(signatures) > 1 {
			return fmt.Errorf("it holds an envelope with %d signatures; exactly one is accepted", len(signatures))
		}
		for _, s := range signatures {
			m, _ := s.(map[string]any)
			keys = append(keys, m["publicKey"])
		}
	}
	if slices.ContainsFunc(keys, hugeAmong) {
		return errors.New("in it, " + tooLarge)
	}
	return nil
}

// hugeAmong reports whether one of the keys and certificates in a member of an
// entry (base64 of PEM) is too large. What cannot be read is for the library to
// refuse.
func hugeAmong(member any) bool {
	text, _ := member.(string)
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return false
	}
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		key, err := x509.ParsePKIXPublicKey(block.Bytes)
		if c, cerr := x509.ParseCertificate(block.Bytes); cerr == nil {
			key, err = c.PublicKey, nil
		}
		if err == nil && huge(key) {
			return true
		}
	}
	return false
}
