package corpus

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
)

// companySerial is that of every certificate that the company issues to a signer.
const companySerial = 4711

// told is what a company's CA says of its certificates, as files of the case.
type told struct {
	crls, ocsp []virtual.Revoking
}

// company is a case of a signature under a certificate of a company's own CA,
// which the bundle brings along with its chain; say is what tells of
// revocations.
func company(name, title, stands, code string, say told, changes ...func(*virtual.Options)) entry {
	return companyOf(name, title, stands, code, virtual.CAOptions{}, say, changes...)
}

func companyOf(name, title, stands, code string, o virtual.CAOptions, say told, changes ...func(*virtual.Options)) entry {
	return entry{"certificate/" + name, title, stands, func(d *draft) {
		o.Revokes = true
		ca, err := virtual.NewCA(o)
		must(d, err)
		private(d, ca, Identity{SAN: ciSAN})
		delete(d.files, "trust/between.pem")
		d.c.Trust.CABetween = ""
		for _, r := range say.crls {
			file := "trust/signers.crl"
			if r.Root {
				file = "trust/authorities.crl"
			}
			d.files[file], err = ca.CRL(whole(r))
			must(d, err)
			d.c.Trust.CRLs = append(d.c.Trust.CRLs, file)
		}
		for _, r := range say.ocsp {
			r.Serial = big.NewInt(companySerial)
			d.files["trust/signer.ocsp"], err = ca.OCSP(whole(r))
			must(d, err)
			d.c.Trust.OCSP = append(d.c.Trust.OCSP, "trust/signer.ocsp")
		}
		switch code {
		case Accepted:
		case "revocation":
			d.undecided("level " + reqExists)
		default:
			d.nothing()
		}
		d.file("provenance.json", d.certified(d.world.ours, d.provenance(), append([]func(*virtual.Options){unlogged, stamped, issuer(""), version("0.2"), func(o *virtual.Options) {
			o.CA, o.Change = ca, func(x *x509.Certificate) { x.SerialNumber = big.NewInt(companySerial) }
		}}, changes...)...), code)
	}}
}

// whole is what counts longer than the certificates that it is about, unless it
// says otherwise: there is nothing to be said of them later.
func whole(r virtual.Revoking) virtual.Revoking {
	if r.Until.IsZero() {
		r.Until = minted().Add(48 * time.Hour)
	}
	return r
}

// alter changes the signer's certificate, beside its number.
func alter(change func(*x509.Certificate)) func(*virtual.Options) {
	return func(o *virtual.Options) {
		before := o.Change
		o.Change = func(x *x509.Certificate) { before(x); change(x) }
	}
}

func certificateCases() []entry {
	entryAt := func(at time.Duration, reason int, more ...pkix.Extension) []x509.RevocationListEntry {
		return []x509.RevocationListEntry{{SerialNumber: big.NewInt(companySerial), RevocationTime: minted().Add(at), ReasonCode: reason, ExtraExtensions: more}}
	}
	since := func(at time.Duration) pkix.Extension {
		raw, err := asn1.MarshalWithParams(minted().Add(at), "generalized")
		if err != nil {
			panic(err) // a time that is none
		}
		return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 24}, Value: raw}
	}
	authorities := virtual.Revoking{Root: true}
	list := func(r []x509.RevocationListEntry) told {
		return told{crls: []virtual.Revoking{{Revoked: r}, authorities}}
	}
	answer := func(r virtual.Revoking) told {
		return told{crls: []virtual.Revoking{authorities}, ocsp: []virtual.Revoking{r}}
	}
	permitted := func(domain string) virtual.CAOptions {
		return virtual.CAOptions{Change: func(x *x509.Certificate) {
			x.PermittedDNSDomainsCritical, x.PermittedURIDomains = true, []string{domain}
		}}
	}
	return []entry{
		company("chain-comes-along", "The bundle brings the intermediate certificate; the root alone is trusted.", "", Accepted, told{}),
		company("chain-is-missing", "Nobody has the intermediate certificate.", "", "chain", told{}, version("0.3")),
		company("no-key-usage", "A certificate without a key usage.", "RFC 5280 4.2.1.3", "chain", told{}, alter(func(x *x509.Certificate) { x.KeyUsage = 0 })),
		company("no-extended-key-usage", "A certificate that does not say what it is for, and so may be for anything.", "RFC 5280 4.2.1.12", "chain", told{}, alter(func(x *x509.Certificate) { x.ExtKeyUsage = nil })),
		company("any-extended-key-usage", "A certificate for anyExtendedKeyUsage.", "RFC 5280 4.2.1.12", "chain", told{}, alter(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })),
		company("an-authority-signs", "The certificate of an authority, with the name of the signer.", "RFC 5280 4.2.1.9", "chain", told{}, alter(func(x *x509.Certificate) { x.IsCA, x.BasicConstraintsValid = true, true })),
		company("name-for-dns", "The name is one for DNS, which no identity is.", "", "chain", told{}, alter(func(x *x509.Certificate) { x.URIs, x.DNSNames = nil, []string{"ci.example"} })),
		companyOf("name-permitted", "The authority may give names of ci.example only, and did.", "RFC 5280 4.2.1.10", Accepted, permitted("ci.example"), told{}),
		companyOf("name-not-permitted", "The authority may give names of other.example only.", "RFC 5280 4.2.1.10", "chain", permitted("other.example"), told{}),
		company("ended-before", "The certificate had ended an hour before the time stamp.", "", "time", told{}, from(-2*time.Hour)),

		company("not-revoked", "A list of each authority, and the certificate on neither.", "", Accepted, list(nil)),
		company("revoked-before", "Superseded an hour before it signed.", "RFC 5280 5.3.1", "revoked", list(entryAt(-time.Hour, 4))),
		company("revoked-after", "Superseded an hour after it signed: what is older counts on.", "RFC 5280 5.3.1", Accepted, list(entryAt(time.Hour, 4))),
		company("on-hold", "Put on hold before it signed.", "RFC 5280 5.3.1", "revoked", list(entryAt(-time.Hour, 6))),
		company("key-stolen", "The key was stolen; it was revoked an hour after it signed, and nobody knows since when somebody else has it.", "RFC 5280 5.3.1", "revoked", list(entryAt(time.Hour, 1))),
		company("key-stolen-before", "Revoked after it signed, because the key was stolen before.", "RFC 5280 5.3.2", "revoked", list(entryAt(time.Hour, 1, since(-time.Hour)))),
		company("key-stolen-after", "The key was stolen half an hour after it signed.", "RFC 5280 5.3.2", Accepted, list(entryAt(time.Hour, 1, since(time.Hour/2)))),
		company("authority-revoked", "The certificate of the authority that issued it was revoked.", "", "revoked", told{crls: []virtual.Revoking{{}, {Root: true, Revoked: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(minted().UnixNano()), RevocationTime: minted().Add(time.Hour), ReasonCode: 2}}}}}),
		company("no-list-of-authorities", "Nothing says whether the authority that issued it was revoked.", "", "revocation", told{crls: []virtual.Revoking{{}}}),
		company("list-ended", "The list counted until an hour before the certificate ended.", "RFC 5280 5.1.2.5", "revocation", told{crls: []virtual.Revoking{{From: minted().Add(-2 * time.Hour), Until: minted().Add(-time.Hour)}, authorities}}),
		company("list-too-new", "The list is of a day after the certificate ended, and need not name it any more.", "RFC 5280 3.3", "revocation", told{crls: []virtual.Revoking{{From: minted().Add(24 * time.Hour), Until: minted().AddDate(10, 0, 0)}, authorities}}),
		company("answered-good", "An OCSP responder says that it is good.", "RFC 6960 2.2", Accepted, answer(virtual.Revoking{})),
		company("answered-revoked", "An OCSP responder says that it was revoked before it signed.", "RFC 6960 2.2", "revoked", answer(virtual.Revoking{Revoked: entryAt(-time.Hour, 3)})),
		company("answered-by-a-signer", "The OCSP response is signed with a certificate for signing code.", "RFC 6960 4.2.2.2", "revocation", answer(virtual.Revoking{Responder: func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}})),
	}
}
