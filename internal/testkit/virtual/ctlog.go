package virtual

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"time"

	ct "github.com/google/certificate-transparency-go"
	cttls "github.com/google/certificate-transparency-go/tls"
	ctx509 "github.com/google/certificate-transparency-go/x509"
	"github.com/sigstore/sigstore-go/pkg/root"
)

// CTLog is a log of certificates. Options.CT has an instance's certificates
// promised by it, RootOptions.CT has it trusted.
type CTLog struct {
	key *ecdsa.PrivateKey
	id  [sha256.Size]byte
	// Other makes the log's promises for another certificate than the one that
	// they stand in.
	Other bool
	// Until is when the log's key ended; default: open.
	Until time.Time
}

// NewCTLog makes a log with a key of its own.
func NewCTLog() (*CTLog, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	return &CTLog{key: key, id: sha256.Sum256(der)}, err
}

// Impostor is a log that signs in the name of this one, with another key.
func (l *CTLog) Impostor() (*CTLog, error) {
	other, err := NewCTLog()
	if err != nil {
		return nil, err
	}
	other.id = l.id
	return other, nil
}

// promise is the extension by which a certificate says that it is in the log:
// signed over the certificate without it.
// https://www.rfc-editor.org/rfc/rfc6962#section-3.3
func (l *CTLog) promise(without, issuer *x509.Certificate) (pkix.Extension, error) {
	none := pkix.Extension{}
	at := uint64(time.Now().UnixMilli())
	tbs := without.RawTBSCertificate
	if l.Other {
		tbs = append([]byte{}, tbs...)
		tbs[len(tbs)-1] ^= 1
	}
	leaf := ct.MerkleTreeLeaf{Version: ct.V1, LeafType: ct.TimestampedEntryLeafType, TimestampedEntry: &ct.TimestampedEntry{
		EntryType: ct.PrecertLogEntryType, Timestamp: at,
		PrecertEntry: &ct.PreCert{IssuerKeyHash: sha256.Sum256(issuer.RawSubjectPublicKeyInfo), TBSCertificate: tbs},
	}}
	sct := ct.SignedCertificateTimestamp{SCTVersion: ct.V1, LogID: ct.LogID{KeyID: l.id}, Timestamp: at}
	input, err := ct.SerializeSCTSignatureInput(sct, ct.LogEntry{Leaf: leaf})
	if err != nil {
		return none, err
	}
	signed, err := cttls.CreateSignature(*l.key, cttls.SHA256, input)
	if err != nil {
		return none, err
	}
	sct.Signature = ct.DigitallySigned(signed)
	raw, err := cttls.Marshal(sct)
	if err != nil {
		return none, err
	}
	list, err := cttls.Marshal(ctx509.SignedCertificateTimestampList{SCTList: []ctx509.SerializedSCT{{Val: raw}}})
	if err != nil {
		return none, err
	}
	value, err := asn1.Marshal(list)
	return pkix.Extension{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 11129, 2, 4, 2}, Value: value}, err
}

// promised issues a certificate with the log's promise in it.
func (l *CTLog) promised(t, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	t.SerialNumber = big.NewInt(time.Now().UnixNano())
	without, err := issue(t, parent, public, key)
	if err != nil {
		return nil, err
	}
	ext, err := l.promise(without, parent)
	if err != nil {
		return nil, err
	}
	t.ExtraExtensions = append(t.ExtraExtensions, ext)
	return issue(t, parent, public, key)
}

// listed is the log as a trusted root lists it.
func (l *CTLog) listed() map[string]*root.TransparencyLog {
	if l == nil {
		return nil
	}
	return map[string]*root.TransparencyLog{hex.EncodeToString(l.id[:]): {
		BaseURL: "https://ct.virtual.example", ID: l.id[:], HashFunc: crypto.SHA256, SignatureHashFunc: crypto.SHA256, PublicKey: l.key.Public(),
		ValidityPeriodStart: time.Now().AddDate(-1, 0, 0), ValidityPeriodEnd: l.Until,
	}}
}
