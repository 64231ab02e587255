package virtual

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"time"

	"golang.org/x/crypto/ocsp"
)

// Revoking is what a CA says of the certificates that it issued.
type Revoking struct {
	// Root has the root authority speak, of the intermediate one's certificate;
	// default: the intermediate authority, of what it issued.
	Root bool
	// From and Until is when it counts; default: an hour before and after now.
	From, Until time.Time
	// Revoked are those that no longer count. For OCSP the first one, or Serial.
	Revoked []x509.RevocationListEntry
	// Serial is of which certificate OCSP speaks, where none is revoked.
	Serial *big.Int
	// Unknown has OCSP say that it knows no such certificate; Endless leaves out
	// until when the answer counts.
	Unknown, Endless bool
	// Extensions are of the list.
	Extensions []pkix.Extension
	// Responder changes the certificate of an OCSP responder; default: the
	// authority answers itself.
	Responder func(*x509.Certificate)
	// Key is the responder's; default: any.
	Key crypto.Signer
	// Own has the authority that answers itself send its certificate along.
	Own bool
}

func (c *CA) speaker(r *Revoking) (*x509.Certificate, crypto.Signer) {
	if r.From.IsZero() {
		r.From = time.Now().Add(-time.Hour)
	}
	if r.Until.IsZero() {
		r.Until = time.Now().Add(time.Hour)
	}
	if r.Root {
		return c.root, c.rootKey
	}
	return c.between, c.key
}

// Between is the serial number of the intermediate certificate.
func (c *CA) Between() *big.Int { return c.between.SerialNumber }

// CRL returns a certificate revocation list, DER.
func (c *CA) CRL(r Revoking) ([]byte, error) {
	issuer, key := c.speaker(&r)
	return x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: r.From, NextUpdate: r.Until, RevokedCertificateEntries: r.Revoked, ExtraExtensions: r.Extensions,
	}, issuer, key)
}

// OCSP returns an OCSP response, DER.
func (c *CA) OCSP(r Revoking) ([]byte, error) {
	issuer, key := c.speaker(&r)
	t := ocsp.Response{Status: ocsp.Good, SerialNumber: r.Serial, ThisUpdate: r.From, NextUpdate: r.Until}
	for _, e := range r.Revoked {
		t.Status, t.SerialNumber, t.RevokedAt, t.RevocationReason, t.ExtraExtensions = ocsp.Revoked, e.SerialNumber, e.RevocationTime, e.ReasonCode, e.ExtraExtensions
	}
	if r.Unknown {
		t.Status = ocsp.Unknown
	}
	if r.Endless {
		t.NextUpdate = time.Time{}
	}
	if r.Own {
		t.Certificate = issuer
	}
	if r.Responder == nil {
		return ocsp.CreateResponse(issuer, issuer, t, key)
	}
	named := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "responder"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageOCSPSigning},
	}
	r.Responder(named)
	if r.Key == nil {
		r.Key = c.rootKey // whose it is does not matter here
	}
	cert, err := issue(named, issuer, r.Key.Public(), key)
	if err != nil {
		return nil, err
	}
	t.Certificate = cert
	return ocsp.CreateResponse(issuer, cert, t, r.Key)
}
