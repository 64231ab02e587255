package verify_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

// company is a CA of one's own with a signature under it, and how to trust it.
type company struct {
	*virtual.CA
	root   *verify.Root
	signed *attest.Bundle
	serial *big.Int
}

func newCompany(t testing.TB, ca virtual.CAOptions, o virtual.Options) *company {
	t.Helper()
	s := newSigstore(t)
	ca.Revokes = true
	c := &company{CA: must(virtual.NewCA(ca))(t), root: trustedRoot(t, s, virtual.RootOptions{NoLogs: true, NoAuthorities: true})}
	o.SAN, o.CA, o.Log, o.Stamp = san, c.CA, "none", true
	if o.Version == "" {
		o.Version = "0.2" // the one that brings its chain
	}
	c.signed = seal(t, s, o)
	if leaf := leafOf(t, c.signed); leaf != nil {
		c.serial = leaf.SerialNumber
	}
	return c
}

func leafOf(t testing.TB, b *attest.Bundle) *x509.Certificate {
	t.Helper()
	m := b.Proto().GetVerificationMaterial()
	raw := m.GetCertificate().GetRawBytes()
	if raw == nil {
		raw = m.GetX509CertificateChain().GetCertificates()[0].GetRawBytes()
	}
	return must(x509.ParseCertificate(raw))(t)
}

// check checks the company's signature at a moment under its root certificate
// and what tells of revocations.
func (c *company) check(t testing.TB, at time.Time, crls, ocsp [][]byte) error {
	t.Helper()
	o := verify.CAOptions{}
	o.Roots, _ = c.PEM()
	for _, raw := range crls {
		o.CRLs = append(o.CRLs, verify.File{Name: "ca.crl", Raw: raw})
	}
	for _, raw := range ocsp {
		o.OCSP = append(o.OCSP, verify.File{Name: "ca.ocsp", Raw: raw})
	}
	ca := must(verify.ParseCA("ca.pem", o))(t)
	checker := must(verify.NewChecker(verify.Trust{
		CAs: []*verify.CA{ca}, Roots: []*verify.Root{c.root},
		Identities: []verify.Identity{identity(t, verify.IdentityOptions{SAN: san, Anchor: ca.ID(), AnchorIsCA: true})},
	}, at))(t)
	_, err := checker.Check(c.signed, image)
	return err
}

func (c *company) crl(t testing.TB, r virtual.Revoking) []byte { return must(c.CRL(r))(t) }

func wantRejection(t testing.TB, err error, code verify.Code, says string) {
	t.Helper()
	var r *verify.Rejection
	switch errors.As(err, &r); {
	case code == "" && err != nil:
		t.Error(err)
	case code != "" && (r == nil || r.Code != code || !strings.Contains(r.Message, says)):
		t.Errorf("got %v, want code %q and %q", err, code, says)
	}
}

// The rules for a certificate of one's own CA, and for what is above it.
func TestCertificatesOfACompany(t *testing.T) {
	site := func(host string) []*url.URL { return []*url.URL{{Scheme: "https", Host: host, Path: "/release"}} }
	for _, c := range []struct {
		name string
		ca   virtual.CAOptions
		o    virtual.Options
		want verify.Code
		says string
	}{
		{name: "the chain comes along"},
		{name: "no chain", o: virtual.Options{Version: "0.3"}, want: verify.CodeChain, says: `no certificate of the issuer of that, "CN=virtual intermediate"`},
		{name: "no key usage", o: virtual.Options{Change: func(x *x509.Certificate) { x.KeyUsage = 0 }}, want: verify.CodeChain, says: `"digitalSignature" is missing`},
		{name: "a key usage for other things", o: virtual.Options{Change: func(x *x509.Certificate) { x.KeyUsage = x509.KeyUsageKeyEncipherment }}, want: verify.CodeChain, says: `"digitalSignature" is missing`},
		{name: "no extended key usage", o: virtual.Options{Change: func(x *x509.Certificate) { x.ExtKeyUsage = nil }}, want: verify.CodeChain, says: `"codeSigning" is missing`},
		{name: "any extended key usage", o: virtual.Options{Usage: x509.ExtKeyUsageClientAuth, Change: func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }}, want: verify.CodeChain, says: `"codeSigning" is missing`},
		{name: "an authority's own certificate", o: virtual.Options{Change: func(x *x509.Certificate) { x.IsCA, x.BasicConstraintsValid = true, true }}, want: verify.CodeChain, says: "an authority's own"},
		{name: "a name for DNS only", o: virtual.Options{Change: func(x *x509.Certificate) { x.URIs, x.EmailAddresses, x.DNSNames = nil, nil, []string{"ci.example"} }}, want: verify.CodeChain, says: "subject alternative name"},
		{name: "an authority for servers", ca: virtual.CAOptions{Change: func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }}, want: verify.CodeChain, says: "key usage"},
		{name: "an authority for this name", ca: virtual.CAOptions{Change: func(x *x509.Certificate) {
			x.PermittedDNSDomainsCritical, x.PermittedURIDomains = true, []string{"ci.example"}
		}}},
		{name: "an authority for other names", ca: virtual.CAOptions{Change: func(x *x509.Certificate) {
			x.PermittedDNSDomainsCritical, x.PermittedURIDomains = true, []string{"other.example"}
		}}, want: verify.CodeChain, says: "not authorized to sign for this name"},
		{name: "a second name that the authority may not give", ca: virtual.CAOptions{Change: func(x *x509.Certificate) {
			x.PermittedDNSDomainsCritical, x.PermittedURIDomains = true, []string{"ci.example"}
		}}, o: virtual.Options{Change: func(x *x509.Certificate) { x.URIs = append(x.URIs, site("other.example")...) }}, want: verify.CodeChain, says: "not authorized to sign for this name"},
		{name: "an authority that had ended", ca: virtual.CAOptions{Until: time.Now().Add(-time.Hour)}, want: verify.CodeChain, says: "expired"},
		{name: "a certificate that had ended", o: virtual.Options{From: time.Now().Add(-time.Hour)}, want: verify.CodeTime, says: "is valid from"},
		{name: "a critical extension that nobody knows", o: virtual.Options{Change: func(x *x509.Certificate) {
			x.ExtraExtensions = append(x.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
		}}, want: verify.CodeChain, says: "critical extension"},
	} {
		t.Run(c.name, func(t *testing.T) {
			co := newCompany(t, c.ca, c.o)
			for range 2 { // what is remembered must not change the answer
				wantRejection(t, co.check(t, time.Now(), nil, nil), c.want, c.says)
			}
			// Asked before anything is signed, the answer is the same.
			o := verify.CAOptions{}
			var between []byte
			o.Roots, between = co.PEM()
			var along []*x509.Certificate
			if c.o.Version == "" {
				block, _ := pem.Decode(between)
				along = append(along, must(x509.ParseCertificate(block.Bytes))(t))
			}
			who, err := must(verify.ParseCA("ca.pem", o))(t).Examine(leafOf(t, co.signed), along, nil, time.Now())
			if (err == nil) != (c.want == "") || err == nil && who.SAN != san {
				t.Errorf("examined: %+v, %v", who, err)
			}
		})
	}
}

func TestRevocation(t *testing.T) {
	co := newCompany(t, virtual.CAOptions{}, virtual.Options{Change: func(x *x509.Certificate) { x.CRLDistributionPoints = []string{"http://crl.acme.example/1.crl"} }})
	now := time.Now()
	before, after := now.Add(-10*time.Minute), now.Add(10*time.Minute)
	entry := func(at time.Time, reason int, more ...pkix.Extension) x509.RevocationListEntry {
		return x509.RevocationListEntry{SerialNumber: co.serial, RevocationTime: at, ReasonCode: reason, ExtraExtensions: more}
	}
	since := func(at time.Time) pkix.Extension {
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: must(asn1.MarshalWithParams(at.UTC().Truncate(time.Second), "generalized"))(t)}
	}
	critical := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{5, 0}}
	scope := func(name string, value ...byte) []pkix.Extension {
		var points []byte
		if name != "" {
			// distributionPoint [0] { fullName [0] { uniformResourceIdentifier [6] } }
			uri := append([]byte{0x86, byte(len(name))}, name...)
			full := append([]byte{0xa0, byte(len(uri))}, uri...)
			points = append([]byte{0xa0, byte(len(full))}, full...)
		}
		body := append(points, value...)
		return []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: append([]byte{0x30, byte(len(body))}, body...)}}
	}
	list := func(entries ...x509.RevocationListEntry) []byte { return co.crl(t, virtual.Revoking{Revoked: entries}) }
	above := co.crl(t, virtual.Revoking{Root: true})
	good := list()
	text := func(ders ...[]byte) (out []byte) {
		for _, der := range ders {
			out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})...)
		}
		return out
	}
	stranger := newCompany(t, virtual.CAOptions{}, virtual.Options{})
	year := now.AddDate(1, 0, 0)
	keeps := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 60}, Value: must(asn1.MarshalWithParams(now.AddDate(-1, 0, 0).UTC(), "generalized"))(t)}
	fresh := virtual.Revoking{From: year.Add(-time.Hour), Until: year.Add(time.Hour)}
	freshAbove, freshKeeping := fresh, fresh
	freshAbove.Root, freshKeeping.Extensions = true, []pkix.Extension{keeps}
	freshAboveKeeping := freshAbove
	freshAboveKeeping.Extensions = freshKeeping.Extensions
	answer := func(r virtual.Revoking) []byte {
		if r.Serial == nil {
			r.Serial = co.serial
		}
		return must(co.OCSP(r))(t)
	}

	for _, c := range []struct {
		name       string
		crls, ocsp [][]byte
		at         time.Time // default: now
		want       verify.Code
		says       string
	}{
		{name: "nobody asked"},
		{name: "not revoked", crls: [][]byte{good, above}},
		{name: "not revoked, in PEM", crls: [][]byte{text(good, above)}},
		{name: "somebody else revoked", crls: [][]byte{list(x509.RevocationListEntry{SerialNumber: big.NewInt(7), RevocationTime: before}), above}},
		{name: "revoked before", crls: [][]byte{list(entry(before, 4)), above}, want: verify.CodeRevoked, says: "(superseded), and it was signed at"},
		{name: "revoked after", crls: [][]byte{list(entry(after, 4)), above}},
		{name: "on hold", crls: [][]byte{list(entry(before, 6)), above}, want: verify.CodeRevoked, says: "certificateHold"},
		{name: "the key was stolen, nobody knows when", crls: [][]byte{list(entry(after, 1)), above}, want: verify.CodeRevoked, says: "(keyCompromise)"},
		{name: "the key was stolen before", crls: [][]byte{list(entry(after, 1, since(before))), above}, want: verify.CodeRevoked, says: "(keyCompromise, invalid since"},
		{name: "the key was stolen after", crls: [][]byte{list(entry(year, 1, since(after))), above}},
		{name: "another reason, and invalid since before", crls: [][]byte{list(entry(after, 5, since(before))), above}, want: verify.CodeRevoked, says: "cessationOfOperation"},
		{name: "one list says stolen, a later one superseded", crls: [][]byte{list(entry(after, 1)), list(entry(after, 4)), above}, want: verify.CodeRevoked, says: "keyCompromise"},
		{name: "one list says superseded, a later one stolen", crls: [][]byte{list(entry(after, 4)), list(entry(after, 1)), above}, want: verify.CodeRevoked, says: "keyCompromise"},
		{name: "the authority revoked before", crls: [][]byte{good, co.crl(t, virtual.Revoking{Root: true, Revoked: []x509.RevocationListEntry{{SerialNumber: co.Between(), RevocationTime: before, ReasonCode: 2}}})}, want: verify.CodeRevoked, says: "cACompromise"},
		{name: "the authority closed after", crls: [][]byte{good, co.crl(t, virtual.Revoking{Root: true, Revoked: []x509.RevocationListEntry{{SerialNumber: co.Between(), RevocationTime: after, ReasonCode: 5}}})}},

		{name: "no list of the root", crls: [][]byte{good}, want: verify.CodeRevocation, says: `no list and no answer by "CN=virtual root"`},
		{name: "no list of the authority", crls: [][]byte{above}, want: verify.CodeRevocation, says: `no list and no answer by "CN=virtual intermediate"`},
		{name: "somebody else's list of the same name", crls: [][]byte{stranger.crl(t, virtual.Revoking{}), above}, want: verify.CodeRevocation, says: "is not signed by"},
		{name: "a list that has ended", crls: [][]byte{co.crl(t, virtual.Revoking{Until: now.Add(-time.Minute)}), above}, want: verify.CodeRevocation, says: "counted until"},
		{name: "a list that has ended, and one that has not", crls: [][]byte{co.crl(t, virtual.Revoking{Until: now.Add(-time.Minute)}), good, above}},
		{name: "revoked in a list that has ended", crls: [][]byte{co.crl(t, virtual.Revoking{Until: now.Add(-time.Minute), Revoked: []x509.RevocationListEntry{entry(before, 4)}}), good, above}, want: verify.CodeRevoked},
		{name: "a list of the future", crls: [][]byte{co.crl(t, virtual.Revoking{From: now.Add(time.Hour), Until: year}), above}, want: verify.CodeRevocation, says: "still to come"},

		// A year later the certificate is over, and new lists need not name it.
		{name: "a year later, the lists of then", crls: [][]byte{good, above}, at: year, want: verify.CodeRevocation, says: `the certificate of "CN=virtual intermediate"`},
		{name: "a year later, the lists of today", crls: [][]byte{co.crl(t, fresh), co.crl(t, freshAbove)}, at: year, want: verify.CodeRevocation, says: "one of before is wanted"},
		{name: "a year later, lists of today that keep all", crls: [][]byte{co.crl(t, freshKeeping), co.crl(t, freshAboveKeeping)}, at: year},
		{name: "a year later, the list of then for the signer's, that lasted longer than it", crls: [][]byte{good, co.crl(t, freshAboveKeeping)}, at: year},

		{name: "a list of this part", crls: [][]byte{co.crl(t, virtual.Revoking{Extensions: scope("http://crl.acme.example/1.crl")}), above}},
		{name: "a list of another part", crls: [][]byte{co.crl(t, virtual.Revoking{Extensions: scope("http://crl.acme.example/2.crl")}), above}, want: verify.CodeRevocation, says: "no list"},
		{name: "a list of users", crls: [][]byte{co.crl(t, virtual.Revoking{Extensions: scope("", 0x81, 1, 0xff)}), above}},
		{name: "a list of authorities", crls: [][]byte{co.crl(t, virtual.Revoking{Extensions: scope("", 0x82, 1, 0xff)}), above}, want: verify.CodeRevocation, says: "no list"},

		{name: "an answer", ocsp: [][]byte{answer(virtual.Revoking{})}, crls: [][]byte{above}},
		{name: "two answers", ocsp: [][]byte{answer(virtual.Revoking{}), answer(virtual.Revoking{Root: true, Serial: co.Between()})}},
		{name: "an answer: revoked before", ocsp: [][]byte{answer(virtual.Revoking{Revoked: []x509.RevocationListEntry{entry(before, 3)}})}, crls: [][]byte{above}, want: verify.CodeRevoked, says: "affiliationChanged"},
		{name: "an answer: revoked after", ocsp: [][]byte{answer(virtual.Revoking{Revoked: []x509.RevocationListEntry{entry(after, 3)}})}, crls: [][]byte{above}},
		{name: "an answer: stolen", ocsp: [][]byte{answer(virtual.Revoking{Revoked: []x509.RevocationListEntry{entry(after, 1)}})}, crls: [][]byte{above}, want: verify.CodeRevoked},
		{name: "an answer: stolen since", ocsp: [][]byte{answer(virtual.Revoking{Revoked: []x509.RevocationListEntry{entry(year, 1, since(after))}})}, crls: [][]byte{above}},
		{name: "the list is content, the answer is not", ocsp: [][]byte{answer(virtual.Revoking{Revoked: []x509.RevocationListEntry{entry(before, 4)}})}, crls: [][]byte{good, above}, want: verify.CodeRevoked},
		{name: "an answer about another", ocsp: [][]byte{answer(virtual.Revoking{Serial: big.NewInt(7)})}, crls: [][]byte{above}, want: verify.CodeRevocation, says: "no list and no answer"},
		{name: "an answer that has ended", ocsp: [][]byte{answer(virtual.Revoking{Until: now.Add(-time.Minute)})}, crls: [][]byte{above}, want: verify.CodeRevocation, says: "counted until"},
		{name: "somebody else's answer", ocsp: [][]byte{must(stranger.OCSP(virtual.Revoking{Serial: co.serial}))(t)}, crls: [][]byte{above}, want: verify.CodeRevocation, says: "no list and no answer"},
		{name: "a responder that the authority named", ocsp: [][]byte{answer(virtual.Revoking{Responder: func(*x509.Certificate) {}})}, crls: [][]byte{above}},
		{name: "a signer's certificate answers", ocsp: [][]byte{answer(virtual.Revoking{Responder: func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning} }})}, crls: [][]byte{above}, want: verify.CodeRevocation, says: "not for OCSP"},
		{name: "a responder that had ended", ocsp: [][]byte{answer(virtual.Revoking{Responder: func(x *x509.Certificate) { x.NotAfter = now.Add(-30 * time.Minute) }})}, crls: [][]byte{above}, want: verify.CodeRevocation, says: "was not valid"},
		{name: "a responder that was revoked", ocsp: [][]byte{answer(virtual.Revoking{Responder: func(x *x509.Certificate) { x.SerialNumber = big.NewInt(99) }})},
			crls: [][]byte{above, co.crl(t, virtual.Revoking{Extensions: scope("", 0x81, 1, 0xff), Until: now.Add(-time.Minute), Revoked: []x509.RevocationListEntry{{SerialNumber: big.NewInt(99), RevocationTime: before}}})}, want: verify.CodeRevocation, says: "signed with a certificate that was revoked"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.at.IsZero() {
				c.at = now
			}
			wantRejection(t, co.check(t, c.at, c.crls, c.ocsp), c.want, c.says)
		})
	}

	for _, c := range []struct {
		name string
		crl  []byte
		want string
	}{
		{"nothing", nil, "no list"},
		{"a certificate", first(co.PEM()), `PEM block is "CERTIFICATE"`},
		{"text after it", append(text(good), "hello"...), "not PEM"},
		{"too many", bytes.Repeat(text(good), 65), "more than 64"},
		{"too large", make([]byte, attest.MaxCRL+1), "larger"},
		{"a delta", co.crl(t, virtual.Revoking{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 27}, Critical: true, Value: []byte{2, 1, 1}}}}), "delta"},
		{"indirect", co.crl(t, virtual.Revoking{Extensions: scope("", 0x84, 1, 0xff)}), "another authority's"},
		{"some reasons", co.crl(t, virtual.Revoking{Extensions: scope("", 0x83, 2, 1, 0x80)}), "some reasons"},
		{"a scope that is none", co.crl(t, virtual.Revoking{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{5, 0}}}}), "cannot be read"},
		{"a critical extension", co.crl(t, virtual.Revoking{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}}), "critical extension that is not known, 1.2.3"},
		{"an entry of another authority's", list(x509.RevocationListEntry{SerialNumber: big.NewInt(7), RevocationTime: before, ExtraExtensions: []pkix.Extension{critical}}), "an entry has a critical extension"},
		{"a reason that is none", list(entry(before, 7)), "reason 7"},
		{"an invalidity date that is none", list(entry(before, 1, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: []byte{5, 0}})), "is no time"},
	} {
		t.Run("refused: "+c.name, func(t *testing.T) {
			roots, _ := co.PEM()
			_, err := verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, CRLs: []verify.File{{Name: "ca.crl", Raw: c.crl}}})
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"ca.crl"`) {
				t.Errorf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}

// A verdict is kept for no longer than what it rests on.
func TestRevocationEndsAVerdict(t *testing.T) {
	co := newCompany(t, virtual.CAOptions{}, virtual.Options{})
	roots, _ := co.PEM()
	until := time.Now().Add(time.Hour).Truncate(time.Second)
	plain := must(verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots}))(t)
	listed := must(verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, CRLs: []verify.File{{Name: "a", Raw: co.crl(t, virtual.Revoking{Until: until})}}}))(t)
	if plain.ID() == listed.ID() {
		t.Error("what is revoked is no part of the CA's ID")
	}
	if at := (verify.Trust{CAs: []*verify.CA{plain, listed}}).Changes(time.Now()); !at.Equal(until) {
		t.Errorf("changes at %s, want %s", at, until)
	}
	if slices.Equal((verify.Trust{CAs: []*verify.CA{plain}}).Lines(), (verify.Trust{CAs: []*verify.CA{listed}}).Lines()) {
		t.Error("two trusts have the same lines")
	}
}

func TestParseStamper(t *testing.T) {
	roots, between := must(virtual.NewCA(virtual.CAOptions{Change: func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping} }}))(t).PEM()
	r, err := verify.ParseStamper("tsa.pem", append(bytes.Clone(between), roots...))
	if err != nil {
		t.Fatal(err)
	}
	if p := r.Parts(); len(p) != 1 || p[0].Kind != verify.PartStamper {
		t.Errorf("parts %+v", p)
	}
	for name, c := range map[string]struct {
		raw  []byte
		want string
	}{
		"no root":   {between, "its root certificate is not among them"},
		"two roots": {append(bytes.Clone(roots), roots...), "there twice"},
		"no PEM":    {[]byte("hello"), "not PEM"},
		"a signer's": {append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafOf(t, newCompany(t, virtual.CAOptions{}, virtual.Options{}).signed).Raw}), roots...),
			"neither an authority nor"},
	} {
		if _, err := verify.ParseStamper("tsa.pem", c.raw); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "tsa.pem") {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func first(a, _ []byte) []byte { return a }

// FuzzParseCRL: no list panics, and none but the CA's own has a say.
func FuzzParseCRL(f *testing.F) {
	co := newCompany(f, virtual.CAOptions{}, virtual.Options{})
	roots, _ := co.PEM()
	good := co.crl(f, virtual.Revoking{Revoked: []x509.RevocationListEntry{{SerialNumber: big.NewInt(7), RevocationTime: time.Now(), ReasonCode: 1}}})
	f.Add(good)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: good}))
	f.Add([]byte("-----BEGIN"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, CRLs: []verify.File{{Name: "ca.crl", Raw: raw}}}); err != nil {
			return
		}
		if err := co.check(t, time.Now(), [][]byte{raw}, nil); err == nil {
			t.Error("a list of the intermediate authority stood for one of the root")
		}
	})
}

// FuzzParseOCSP: the same of an OCSP response.
func FuzzParseOCSP(f *testing.F) {
	co := newCompany(f, virtual.CAOptions{}, virtual.Options{})
	roots, _ := co.PEM()
	f.Add(must(co.OCSP(virtual.Revoking{Serial: co.serial}))(f))
	f.Add(must(co.OCSP(virtual.Revoking{Serial: co.serial, Responder: func(*x509.Certificate) {}}))(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, OCSP: []verify.File{{Name: "ca.ocsp", Raw: raw}}}); err != nil {
			return
		}
		if err := co.check(t, time.Now(), nil, [][]byte{raw}); err == nil {
			t.Error("an answer of the intermediate authority stood for one of the root")
		}
	})
}

// FuzzParseStaple: what is stapled neither panics nor stands for what the root
// alone can say.
func FuzzParseStaple(f *testing.F) {
	co := newCompany(f, virtual.CAOptions{}, virtual.Options{})
	roots, _ := co.PEM()
	ca := must(verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, Required: true}))(f)
	checker := must(verify.NewChecker(verify.Trust{
		CAs: []*verify.CA{ca}, Roots: []*verify.Root{co.root},
		Identities: []verify.Identity{identity(f, verify.IdentityOptions{SAN: san, Anchor: ca.ID(), AnchorIsCA: true})},
	}, time.Now()))(f)
	good := must(co.OCSP(virtual.Revoking{Serial: co.serial}))(f)
	above := must(co.OCSP(virtual.Revoking{Root: true, Serial: co.Between()}))(f)
	if _, err := checker.Check(co.signed.Staple(good, above), image); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(above)
	f.Add(must(co.OCSP(virtual.Revoking{Serial: co.serial, Responder: func(*x509.Certificate) {}}))(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := checker.Check(co.signed.Staple(raw), image); err == nil {
			t.Error("one answer stood for two certificates")
		}
	})
}

// What is to be stapled is looked at before.
func TestCheckStaple(t *testing.T) {
	co := newCompany(t, virtual.CAOptions{}, virtual.Options{})
	roots, between := co.PEM()
	ca := must(verify.ParseCA("ca.pem", verify.CAOptions{Roots: roots, Intermediates: between}))(t)
	now := time.Now()
	chains := ca.Chains(leafOf(t, co.signed), nil, now)
	if len(chains) != 1 || len(chains[0]) != 3 {
		t.Fatalf("chains: %v", chains)
	}
	if other := ca.Chains(leafOf(t, newCompany(t, virtual.CAOptions{}, virtual.Options{}).signed), nil, now); other != nil {
		t.Errorf("chains of a stranger: %v", other)
	}
	entry := []x509.RevocationListEntry{{SerialNumber: co.serial, RevocationTime: now.Add(time.Hour), ReasonCode: 4}}
	for _, c := range []struct {
		name  string
		r     virtual.Revoking
		about bool
		code  verify.Code
		says  string
	}{
		{"the signer's", virtual.Revoking{Serial: co.serial}, true, "", ""},
		{"the authority's", virtual.Revoking{Root: true, Serial: co.Between()}, true, "", ""},
		{"by the wrong one", virtual.Revoking{Root: true, Serial: co.serial}, false, "", ""},
		{"another's", virtual.Revoking{Serial: big.NewInt(7)}, false, "", ""},
		{"to come", virtual.Revoking{Serial: co.serial, From: now.Add(10 * time.Minute)}, true, verify.CodeRevocation, "counted from"},
		{"by a clock that is a little ahead", virtual.Revoking{Serial: co.serial, From: now.Add(time.Minute)}, true, "", ""},
		{"ended", virtual.Revoking{Serial: co.serial, From: now.Add(-time.Hour), Until: now.Add(-time.Minute)}, true, verify.CodeRevocation, "counted from"},
		{"endless", virtual.Revoking{Serial: co.serial, Endless: true}, true, verify.CodeRevocation, "until when"},
		{"unknown", virtual.Revoking{Serial: co.serial, Unknown: true}, true, verify.CodeRevocation, "does not know"},
		{"to be revoked", virtual.Revoking{Revoked: entry}, true, verify.CodeRevoked, "superseded"},
	} {
		about, err := verify.CheckStaple(must(co.OCSP(c.r))(t), chains[0], now)
		if about != c.about {
			t.Errorf("%s: about %t", c.name, about)
		}
		t.Run(c.name, func(t *testing.T) { wantRejection(t, err, c.code, c.says) })
	}
	if _, err := verify.CheckStaple([]byte("no"), chains[0], now); err == nil || !strings.Contains(err.Error(), "no answer about one certificate") {
		t.Errorf("garbage: %v", err)
	}
}
