package egress

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

const (
	caLife   = 12 * time.Hour // longer than a build takes
	caSkew   = 2 * time.Hour  // before now, for a step whose clock is behind
	maxLeafs = 4096
)

// authority is the certificate authority of one build. Its key is in this
// process's memory and nowhere else.
type authority struct {
	cert    *x509.Certificate
	pem     []byte
	key     *ecdsa.PrivateKey
	leafKey *ecdsa.PrivateKey
	config  *tls.Config // for connections from steps, without certificates

	mu    sync.Mutex
	leafs map[string]*tls.Certificate
}

func newAuthority() (*authority, error) {
	a := &authority{leafs: map[string]*tls.Certificate{}}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
		a.leafKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		return nil, fmt.Errorf("making the gateway's key: %w", err)
	}
	now := time.Now()
	serial := newSerial()
	t := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{Organization: []string{"waxseal"}, CommonName: fmt.Sprintf("waxseal gateway of one build %x", serial.Bytes()[:4])},
		NotBefore:    now.Add(-caSkew), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &a.key.PublicKey, a.key)
	if err == nil {
		a.cert, err = x509.ParseCertificate(der)
	}
	if err != nil {
		return nil, fmt.Errorf("making the gateway's authority: %w", err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	// Old images have old clients, and this TLS does not leave the machine. A
	// client that can do both gets HTTP/1.1, which carries large bodies with
	// half the work; one that asks for HTTP/2 alone gets that.
	//nolint:gosec // TLS 1.0 on purpose, as said above
	a.config = &tls.Config{MinVersion: tls.VersionTLS10, NextProtos: []string{"http/1.1", "h2", "http/1.0"}}
	// Connections have clones of this, and resume each other's sessions.
	var ticket [32]byte
	rand.Read(ticket[:])
	a.config.SetSessionTicketKeys([][32]byte{ticket})
	return a, nil
}

func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive, and always as long
	return new(big.Int).SetBytes(b)
}

// leaf returns the certificate for one host.
func (a *authority) leaf(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.leafs[host]; c != nil {
		return c, nil
	}
	t := &x509.Certificate{
		SerialNumber: newSerial(),
		NotBefore:    a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(host) <= 64 { // the bound of a common name
		t.Subject.CommonName = host
	} else {
		t.Subject.Organization = []string{"waxseal"}
	}
	if ip := net.ParseIP(host); ip != nil {
		t.IPAddresses = []net.IP{ip}
	} else {
		t.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, t, a.cert, &a.leafKey.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for %q: %w", host, err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a certificate for %q: %w", host, err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.leafKey, Leaf: parsed}
	if len(a.leafs) >= maxLeafs {
		clear(a.leafs)
	}
	a.leafs[host] = c
	return c, nil
}
