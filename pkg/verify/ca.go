package verify

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"

	"github.com/waxseal/waxseal/pkg/attest"
)

// CA is a certificate authority of one's own, outside of any Sigstore
// instance. It proves names, not times. Make one with ParseCA and share it.
type CA struct {
	name        string
	id          attest.Digest
	authorities []*authority
	revoked     *revocations
	below       cache[[]*authority] // by the certificates that come with a signature
	stapled     cache[*ocspAnswer]  // by their bytes; nil: it cannot be read
}

// CAOptions is what ParseCA makes a CA of.
type CAOptions struct {
	// Roots are its root certificates, PEM. Required.
	Roots []byte
	// Intermediates are certificates below them, PEM; a bundle may bring others
	// along. Nil: none.
	Intermediates []byte
	// CRLs are certificate revocation lists (RFC 5280, section 5; PEM or DER),
	// OCSP answers of an OCSP responder (RFC 6960; DER). Where any is given, a
	// certificate counts only when one of them, or an answer that is stapled to
	// what it signed, tells of it and of each between it and the root.
	CRLs, OCSP []File
	// Required asks for that where none is given, too.
	Required bool
}

// File is bytes, and what the user calls them.
type File struct {
	Name string
	Raw  []byte
}

// Name is what the user called the CA, usually its file.
func (c *CA) Name() string { return c.name }

// Revocable reports whether something is to tell which certificates count no more.
func (c *CA) Revocable() bool { return c.revoked.needed }

// ID is the sha256 of the certificates, and of what tells which are revoked.
func (c *CA) ID() attest.Digest { return c.id }

const (
	maxCertificates = 100
	// maxAlong is how many intermediate certificates of a bundle are looked at.
	maxAlong = 8
)

// ParseCA reads a CA. name is used in messages only.
func ParseCA(name string, o CAOptions) (*CA, error) {
	c := &CA{name: name}
	all := append(bytes.Clone(o.Roots), o.Intermediates...)
	tops, err := authorities(o.Roots)
	if err != nil {
		return nil, fmt.Errorf("reading CA certificates %q: %w", name, err)
	}
	var between []*x509.Certificate
	if o.Intermediates != nil {
		if between, err = authorities(o.Intermediates); err != nil {
			return nil, fmt.Errorf("reading intermediate certificates of %q: %w", name, err)
		}
	}
	for _, top := range tops {
		if !bytes.Equal(top.RawSubject, top.RawIssuer) {
			// Trusted for being there, it would make its own issuer's rules void.
			return nil, fmt.Errorf("reading CA certificates %q: %q is not a root certificate; give it as an intermediate one", name, clip(top.Subject.String()))
		}
		c.authorities = append(c.authorities, &authority{ca: &root.FulcioCertificateAuthority{Root: top, Intermediates: between, URI: name}})
	}
	if c.revoked, err = parseRevocations(o.CRLs, o.OCSP); err != nil {
		return nil, err
	}
	for _, told := range []struct {
		kind  string
		files []File
	}{{"crl", o.CRLs}, {"ocsp", o.OCSP}} {
		for _, f := range told.files {
			all = append(all, told.kind+string(attest.DigestOf(f.Raw))...)
		}
	}
	if o.Required {
		c.revoked.needed = true
		all = append(all, "revocation required"...)
	}
	c.id = attest.DigestOf(all)
	return c, nil
}

// authorities reads certificates of authorities, PEM.
func authorities(raw []byte) ([]*x509.Certificate, error) {
	certs, err := certificates(raw)
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return nil, fmt.Errorf("%q is not the certificate of an authority", clip(c.Subject.String()))
		}
	}
	return certs, nil
}

// certificates reads certificates, PEM.
func certificates(raw []byte) ([]*x509.Certificate, error) {
	if len(raw) > attest.MaxTrustedRoot {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", attest.MaxTrustedRoot)
	}
	var out []*x509.Certificate
	for rest := raw; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("data that is not PEM")
			}
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("PEM block is %q, want \"CERTIFICATE\"", clip(block.Type))
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if out = append(out, cert); len(out) > maxCertificates {
			return nil, fmt.Errorf("more than %d certificates", maxCertificates)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no certificate")
	}
	return out, nil
}

// Examine says whose a signature would be that is made at a moment with the key
// of leaf, when the bundle brings the certificates between along, and the OCSP
// responses are stapled to it: who it is, or the *Rejection that every such
// signature would get.
func (c *CA) Examine(leaf *x509.Certificate, between []*x509.Certificate, stapled [][]byte, at time.Time) (Signer, error) {
	names, err := certificate.SummarizeCertificate(leaf)
	if err != nil {
		return Signer{}, rejectf(CodeChain, "%s", namesNobody)
	}
	s := Signer{Issuer: names.Issuer, SAN: names.SubjectAlternativeName, Root: c.name, Time: at, anchor: c.id}
	s.at(at)
	m := &material{authorities: c.with(between)}
	if !(Window{}).with(leaf).Holds(at) {
		return s, rejectf(CodeTime, "its certificate is valid from %s to %s, and this is %s", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))
	}
	if why := m.broken(leaf, at); why != "" {
		return s, rejectf(CodeChain, "%s", why)
	}
	if r := m.standing(c.hearing(stapled), leaf, s, at); r != nil {
		return s, r
	}
	return s, nil
}

// hearing is what is known of revocations together with what came stapled to a
// signature. What cannot be read says nothing.
func (c *CA) hearing(stapled [][]byte) *revocations {
	if len(stapled) == 0 {
		return c.revoked
	}
	r := *c.revoked
	for _, raw := range stapled {
		key := cacheKey(raw)
		a, ok := c.stapled.get(key)
		if !ok {
			a, _ = parseAnswer(raw)
			c.stapled.put(key, a)
		}
		if a != nil {
			r.stapled = append(r.stapled, a)
		}
	}
	return &r
}

// Chains are the ways from leaf to a root, both in them, at a moment; along are
// the certificates that may stand between.
func (c *CA) Chains(leaf *x509.Certificate, along []*x509.Certificate, at time.Time) [][]*x509.Certificate {
	var out [][]*x509.Certificate
	for _, a := range c.with(along) {
		if chains, err := a.Verify(leaf, at); err == nil {
			out = append(out, chains...)
		}
	}
	return out
}

// CheckStaple reads an OCSP response that is to be stapled to what is signed at a
// moment. about is whether it speaks of a certificate in chain, which goes from the
// signer's to the root's; err why it tells nobody that this was not revoked then.
func CheckStaple(raw []byte, chain []*x509.Certificate, at time.Time) (about bool, err error) {
	a, err := parseAnswer(raw)
	if err != nil {
		return false, err
	}
	var s Signer
	s.at(at)
	for i, c := range chain[:len(chain)-1] {
		if !a.is(c, chain[i+1]) {
			continue
		}
		switch _, said, why := a.says(c, chain[i+1], a.spans(s)); {
		case said != nil:
			return true, rejectf(CodeRevoked, "the certificate of %q was %s", clip(nameOf(c)), said)
		case why != "":
			return true, rejectf(CodeRevocation, "%s", why)
		}
		return true, nil
	}
	return false, nil
}

const namesNobody = "its certificate names nobody: the subject alternative name has no URI, no mail address and no name of Sigstore's own kind"

// with is the CA's authorities with certificates that nobody vouches for: they
// are links of a chain, or nothing.
func (c *CA) with(along []*x509.Certificate) []*authority {
	if len(along) == 0 {
		return c.authorities
	}
	parts := make([][]byte, 0, len(along))
	for _, a := range along {
		parts = append(parts, a.Raw)
	}
	along = slices.DeleteFunc(slices.Clone(along), costly)
	key := cacheKey(parts...)
	if known, ok := c.below.get(key); ok {
		return known
	}
	out := make([]*authority, 0, len(c.authorities))
	for _, a := range c.authorities {
		ca := *a.ca
		ca.Intermediates = slices.Concat(ca.Intermediates, along)
		out = append(out, &authority{ca: &ca})
	}
	c.below.put(key, out)
	return out
}

// along is the certificates of authorities that a bundle brings with its
// signer's. A root among them is nobody's but the bundle's.
func along(b *protobundle.Bundle) []*x509.Certificate {
	chain := b.GetVerificationMaterial().GetX509CertificateChain().GetCertificates()
	var out []*x509.Certificate
	for i, c := range chain {
		if i == 0 || len(out) == maxAlong {
			continue
		}
		if cert, err := x509.ParseCertificate(c.GetRawBytes()); err == nil && cert.IsCA && !bytes.Equal(cert.RawSubject, cert.RawIssuer) {
			out = append(out, cert)
		}
	}
	return out
}

// unfit is what keeps a certificate from being one that signs code; "" nothing.
// RFC 5280, sections 4.2.1.3 and 4.2.1.12, have one that does not say what it is
// for be for anything; here it must say so.
func unfit(leaf *x509.Certificate) string {
	switch {
	case leaf.IsCA:
		return "its certificate is an authority's own"
	case costly(leaf):
		return tooLarge
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return `its certificate is not for signing: the key usage "digitalSignature" is missing`
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageCodeSigning):
		return `its certificate is not for signing code: the extended key usage "codeSigning" is missing`
	}
	return ""
}

// broken is why a certificate leads to none of the authorities; "": it does.
func (m *material) broken(leaf *x509.Certificate, at time.Time) string {
	if why := unfit(leaf); why != "" {
		return why
	}
	when := at.UTC().Format(time.RFC3339)
	why := fmt.Sprintf("its certificate does not lead to a trusted authority that was valid at %s", when)
	for _, a := range m.authorities {
		_, err := a.Verify(leaf, at)
		if err == nil {
			return ""
		}
		switch orphan, whole := a.orphan(leaf); {
		case whole:
			// The one authority that it does lead to says why not.
			return fmt.Sprintf("its certificate leads to a trusted authority, and does not hold at %s: %s", when, clip(err.Error()))
		case orphan != leaf || len(m.authorities) == 1:
			why = fmt.Sprintf("its chain of certificates ends at %q: no certificate of the issuer of that, %q, is trusted or came along", clip(nameOf(orphan)), clip(orphan.Issuer.String()))
		}
	}
	return why
}

// orphan follows the signatures up from a certificate, to the first whose issuer
// is not known, or to the root.
func (a *authority) orphan(c *x509.Certificate) (last *x509.Certificate, whole bool) {
	known := append([]*x509.Certificate{a.ca.Root}, a.ca.Intermediates...)
	for range maxAlong + 2 {
		i := slices.IndexFunc(known, func(k *x509.Certificate) bool {
			return bytes.Equal(k.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(k) == nil
		})
		if i <= 0 {
			return c, i == 0
		}
		c = known[i]
	}
	return c, false
}

// nameOf is what to call a certificate by.
func nameOf(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return s
	}
	return fmt.Sprintf("serial number %x", c.SerialNumber)
}
