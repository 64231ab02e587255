// Package virtual is a Sigstore instance in memory, for tests that must not
// need the network or fixtures: an authority that issues certificates to
// anybody, a transparency log, a time-stamping authority, and the trusted root
// that lists them. Call New, Seal to make a bundle, Root for the trusted root.
// The log and the time-stamping authority are sigstore-go's.
package virtual

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"slices"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"github.com/sigstore/sigstore/pkg/signature"
	sigdsse "github.com/sigstore/sigstore/pkg/signature/dsse"
	"google.golang.org/protobuf/encoding/protojson"
)

const payloadType = "application/vnd.in-toto+json"

// Sigstore is one instance.
type Sigstore struct {
	*CA
	vs *ca.VirtualSigstore
}

// New makes an instance; no two have a key in common.
func New() (*Sigstore, error) {
	vs, err := ca.NewVirtualSigstore()
	if err != nil {
		return nil, err
	}
	authority, err := NewCA(CAOptions{})
	if err != nil {
		return nil, err
	}
	return &Sigstore{CA: authority, vs: vs}, nil
}

// CA is a certificate authority: a root and an intermediate certificate.
type CA struct {
	root, between *x509.Certificate
	rootKey, key  crypto.Signer
}

// CAOptions configures NewCA.
type CAOptions struct {
	// Until is when the intermediate certificate ends; default: in a day.
	Until time.Time
	// Revokes lets it sign what tells of revocations.
	Revokes bool
	// Change changes the intermediate certificate before it is issued.
	Change func(*x509.Certificate)
	// Key is the intermediate certificate's; default: a new one on P-256.
	Key crypto.Signer
}

// NewCA makes a CA whose certificates began to be valid a year ago.
func NewCA(o CAOptions) (*CA, error) {
	now := time.Now()
	if o.Until.IsZero() {
		o.Until = now.Add(24 * time.Hour)
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := func(name string, until time.Time) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-1, 0, 0), NotAfter: until,
			KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
		}
	}
	top := authority("virtual root", now.AddDate(1, 0, 0))
	below := authority("virtual intermediate", o.Until)
	if o.Revokes {
		top.KeyUsage |= x509.KeyUsageCRLSign
		below.KeyUsage |= x509.KeyUsageCRLSign
	}
	c := &CA{rootKey: rootKey, key: o.Key}
	if c.root, err = issue(top, top, rootKey.Public(), rootKey); err != nil {
		return nil, err
	}
	if c.key == nil {
		if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	below.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	if o.Change != nil {
		o.Change(below)
	}
	if c.between, err = issue(below, c.root, c.key.Public(), rootKey); err != nil {
		return nil, err
	}
	return c, nil
}

func issue(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// PEM returns the CA's root and intermediate certificates.
func (c *CA) PEM() (roots, intermediates []byte) {
	text := func(cert *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	}
	return text(c.root), text(c.between)
}

// Options says how Seal signs.
type Options struct {
	SAN    string // a URI or a mail address
	Issuer string // "" leaves the certificate without one
	// Run is what else the certificate says of a CI run: the values of Fulcio's
	// extensions, by the last number of their OID (11 is the runner).
	Run map[int]string
	// From is when the certificate begins to be valid, for ten minutes; default:
	// a minute ago.
	From time.Time
	// Logged is the log's time of the entry; default: now.
	Logged time.Time
	// Log is the log's kind: "" for a Rekor v1 entry, "v2", or "none".
	Log string
	// NoPromise leaves a v1 entry without its inclusion promise, so that it
	// proves no time.
	NoPromise bool
	// Stamp adds a time stamp, of now.
	Stamp bool
	// Beside is a certificate that somebody put into the time stamp.
	Beside *x509.Certificate
	// Version is the bundle's: "0.1", "0.2" or "0.3"; default 0.3.
	Version string
	// Usage is what the certificate may be used for; default: code signing.
	Usage x509.ExtKeyUsage
	// Change changes the certificate before it is issued.
	Change func(*x509.Certificate)
	// CA issues the certificate; default: the instance's own.
	CA *CA
	// CT, if given, is the log whose promise the certificate carries.
	CT *CTLog
	// Key signs, without a certificate. Then there is no log entry.
	Key *ecdsa.PrivateKey
	// Certified is the key of the certificate; default: a new one on P-256.
	Certified crypto.Signer
}

// Seal signs an in-toto statement and returns the bundle.
func (s *Sigstore) Seal(statement []byte, o Options) ([]byte, error) {
	b, err := s.Bundle(statement, o)
	if err != nil {
		return nil, err
	}
	return protojson.Marshal(b)
}

// Bundle is Seal for a caller who wants to change something in it.
func (s *Sigstore) Bundle(statement []byte, o Options) (*protobundle.Bundle, error) {
	now := time.Now()
	if o.From.IsZero() {
		o.From = now.Add(-time.Minute)
	}
	if o.Logged.IsZero() {
		o.Logged = now
	}
	if o.CA == nil {
		o.CA = s.CA
	}
	if o.Log == "v2" {
		return s.second(statement, o)
	}
	out := &protobundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: &protobundle.VerificationMaterial{}}
	if o.Version == "0.1" || o.Version == "0.2" {
		out.MediaType = "application/vnd.dev.sigstore.bundle+json;version=" + o.Version
	}
	key := o.Certified
	if o.Key != nil {
		key = o.Key
	}
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	env, sig, err := envelope(statement, key)
	if err != nil {
		return nil, err
	}
	if out.Content, err = content(env, sig); err != nil {
		return nil, err
	}
	m := out.VerificationMaterial
	if o.Key != nil {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(der)
		m.Content = &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{Hint: base64.StdEncoding.EncodeToString(sum[:])}}
	} else {
		leaf, err := o.leaf(key.Public())
		if err != nil {
			return nil, err
		}
		m.Content = &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: leaf.Raw}}
		if o.Version == "0.1" || o.Version == "0.2" {
			m.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: &protocommon.X509CertificateChain{
				Certificates: []*protocommon.X509Certificate{{RawBytes: leaf.Raw}, {RawBytes: o.CA.between.Raw}},
			}}
		}
		if o.Log == "" {
			entry, err := s.entry(leaf, env, sig, o)
			if err != nil {
				return nil, err
			}
			m.TlogEntries = []*protorekor.TransparencyLogEntry{entry}
		}
	}
	if o.Stamp {
		if err := s.stamp(m, sig, o.Beside); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// leaf issues a certificate.
func (o Options) leaf(public crypto.PublicKey) (*x509.Certificate, error) {
	if o.Usage == x509.ExtKeyUsageAny {
		o.Usage = x509.ExtKeyUsageCodeSigning
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: o.From, NotAfter: o.From.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{o.Usage},
	}
	if u, err := url.Parse(o.SAN); err == nil && u.Scheme != "" {
		t.URIs = []*url.URL{u}
	} else {
		t.EmailAddresses = []string{o.SAN}
	}
	// https://github.com/sigstore/fulcio/blob/v1.8.7/docs/oid-info.md
	extensions := map[int]string{}
	maps.Copy(extensions, o.Run)
	if o.Issuer != "" {
		extensions[8] = o.Issuer
	}
	for _, last := range slices.Sorted(maps.Keys(extensions)) {
		text := extensions[last]
		value, err := asn1.MarshalWithParams(text, "utf8")
		if err != nil {
			return nil, err
		}
		if last < 7 { // the old ones are plain text
			value = []byte(text)
		}
		t.ExtraExtensions = append(t.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57264, 1, last}, Value: value})
	}
	if o.Change != nil {
		o.Change(t)
	}
	if o.CT != nil {
		return o.CT.promised(t, o.CA.between, public, o.CA.key)
	}
	return issue(t, o.CA.between, public, o.CA.key)
}

func envelope(statement []byte, key crypto.Signer) (*dsse.Envelope, []byte, error) {
	signer, err := signature.LoadSigner(key, crypto.SHA256)
	if err != nil {
		return nil, nil, err
	}
	es, err := dsse.NewEnvelopeSigner(&sigdsse.SignerAdapter{SignatureSigner: signer, Pub: key.Public()})
	if err != nil {
		return nil, nil, err
	}
	env, err := es.SignPayload(context.Background(), payloadType, statement)
	if err != nil {
		return nil, nil, err
	}
	sig, err := base64.StdEncoding.DecodeString(env.Signatures[0].Sig)
	return env, sig, err
}

func content(env *dsse.Envelope, sig []byte) (*protobundle.Bundle_DsseEnvelope, error) {
	payload, err := base64.StdEncoding.DecodeString(env.Payload)
	if err != nil {
		return nil, err
	}
	return &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
		Payload: payload, PayloadType: env.PayloadType, Signatures: []*protodsse.Signature{{Sig: sig}},
	}}, nil
}

// entry puts the signature into the log.
func (s *Sigstore) entry(leaf *x509.Certificate, env *dsse.Envelope, sig []byte, o Options) (*protorekor.TransparencyLogEntry, error) {
	e, err := s.vs.GenerateTlogEntry(leaf, env, sig, o.Logged.Unix(), true)
	if err != nil {
		return nil, err
	}
	out := e.TransparencyLogEntry()
	out.KindVersion = &protorekor.KindVersion{Kind: "dsse", Version: "0.0.1"}
	if o.NoPromise {
		return out, nil
	}
	set, err := s.vs.RekorSignPayload(tlog.RekorPayload{
		Body: e.Body(), IntegratedTime: out.IntegratedTime, LogIndex: out.LogIndex, LogID: hex.EncodeToString(out.LogId.KeyId),
	})
	if err != nil {
		return nil, err
	}
	out.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: set}
	return out, nil
}

func (s *Sigstore) stamp(m *protobundle.VerificationMaterial, sig []byte, beside *x509.Certificate) error {
	raw, err := s.vs.TimestampResponse(sig)
	if err == nil && beside != nil {
		raw, err = s.accompany(raw, beside)
	}
	if err != nil {
		return err
	}
	m.TimestampVerificationData = &protobundle.TimestampVerificationData{
		Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: raw}},
	}
	return nil
}

// accompany puts the certificate of the time-stamping authority and another into
// the response, whose signature is not over them.
// https://www.rfc-editor.org/rfc/rfc5652#section-5.1
func (s *Sigstore) accompany(response []byte, beside *x509.Certificate) ([]byte, error) {
	tsa, ok := s.vs.TimestampingAuthorities()[0].(*root.SigstoreTimestampingAuthority)
	if !ok {
		return nil, errors.New("a time-stamping authority of another kind")
	}
	type token struct {
		Type    asn1.ObjectIdentifier
		Content struct {
			Version      int
			Algorithms   asn1.RawValue
			Content      asn1.RawValue
			Certificates []asn1.RawValue `asn1:"tag:0,set,optional,omitempty"`
			Signers      asn1.RawValue
		} `asn1:"explicit,tag:0"`
	}
	var whole struct {
		Status asn1.RawValue
		Token  token
	}
	if _, err := asn1.Unmarshal(response, &whole); err != nil {
		return nil, fmt.Errorf("reading a time stamp: %w", err)
	}
	whole.Token.Content.Certificates = []asn1.RawValue{{FullBytes: tsa.Leaf.Raw}, {FullBytes: beside.Raw}}
	return asn1.Marshal(whole)
}

// second signs with an entry in a Rekor v2 log, which proves no time itself.
func (s *Sigstore) second(statement []byte, o Options) (*protobundle.Bundle, error) {
	e, err := s.vs.AttestHashedRekordV2(o.SAN, o.Issuer, statement)
	if err != nil {
		return nil, err
	}
	signed, err := e.SignatureContent()
	if err != nil {
		return nil, err
	}
	held, err := e.VerificationContent()
	if err != nil {
		return nil, err
	}
	entries, err := e.TlogEntries()
	if err != nil {
		return nil, err
	}
	out := &protobundle.Bundle{MediaType: "application/vnd.dev.sigstore.bundle.v0.3+json", VerificationMaterial: &protobundle.VerificationMaterial{
		Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: held.Certificate().Raw}},
		TlogEntries: []*protorekor.TransparencyLogEntry{entries[0].TransparencyLogEntry()},
	}}
	if out.Content, err = content(signed.EnvelopeContent().RawEnvelope(), signed.Signature()); err != nil {
		return nil, err
	}
	if o.Stamp {
		if err := s.stamp(out.VerificationMaterial, signed.Signature(), o.Beside); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RootOptions says what a trusted root lists.
type RootOptions struct {
	NoAuthorities, NoLogs, NoStamps bool
	// LogFrom and LogUntil are the window of the log's key; default: open.
	LogFrom, LogUntil time.Time
	// Until is when the authority ends; default: open.
	Until time.Time
	// Stamps is when the time-stamping authority ends; default: open.
	Stamps time.Time
	// CT is the log that certificates must be in; nil: none need be.
	CT *CTLog
}

// Root returns the trusted root of the instance, as JSON.
func (s *Sigstore) Root(o RootOptions) ([]byte, error) {
	var cas []root.CertificateAuthority
	var tsas []root.TimestampingAuthority
	logs := map[string]*root.TransparencyLog{}
	if !o.NoAuthorities {
		cas = append(s.vs.FulcioCertificateAuthorities(), &root.FulcioCertificateAuthority{
			Root: s.root, Intermediates: []*x509.Certificate{s.between}, URI: "https://ca.virtual.example", ValidityPeriodStart: s.root.NotBefore, ValidityPeriodEnd: o.Until,
		})
	}
	for _, t := range s.vs.TimestampingAuthorities() {
		known, ok := t.(*root.SigstoreTimestampingAuthority)
		if !ok {
			return nil, errors.New("a time-stamping authority of another kind")
		}
		tsa := *known
		tsa.ValidityPeriodStart, tsa.ValidityPeriodEnd = time.Now().AddDate(-1, 0, 0), o.Stamps
		if !o.NoStamps {
			tsas = append(tsas, &tsa)
		}
	}
	for id, l := range s.vs.RekorLogs() {
		var err error
		if l.ID, err = hex.DecodeString(id); err != nil {
			return nil, err
		}
		l.ValidityPeriodStart, l.ValidityPeriodEnd = o.LogFrom, o.LogUntil
		if o.LogFrom.IsZero() {
			l.ValidityPeriodStart = time.Now().AddDate(-1, 0, 0)
		}
		if !o.NoLogs {
			logs[id] = l
		}
	}
	tr, err := root.NewTrustedRoot(root.TrustedRootMediaType01, cas, o.CT.listed(), tsas, logs)
	if err != nil {
		return nil, fmt.Errorf("writing a trusted root: %w", err)
	}
	return tr.MarshalJSON()
}
