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
	// stapled comes with the evidence: of the intermediate authority where Root has
	// it speak, by another CA where that is stranger, or as it stands.
	stapled  []virtual.Revoking
	stranger bool
	raw      []byte
	required bool
	// large has the intermediate authority have a key larger than a verifier
	// should bear, largeResponder a responder that answers.
	large, largeResponder bool
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
		if say.large {
			o.Key = d.large
		}
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
		staple(d, ca, say)
		d.c.Trust.Revocation = say.required
		d.file("provenance.json", d.certified(d.world.ours, d.provenance(), append([]func(*virtual.Options){unlogged, stamped, issuer(""), version("0.2"), func(o *virtual.Options) {
			o.CA, o.Change = ca, func(x *x509.Certificate) { x.SerialNumber = big.NewInt(companySerial) }
		}}, changes...)...), code)
	}}
}

// again is a case of a company in which a file of it is attached to the image,
// too, as what it is not.
func again(name, title, file, mediaType, code string, say told) entry {
	e := company(name, title, "", Accepted, say)
	with := e.make
	e.make = func(d *draft) {
		with(d)
		d.refer(d.top, d.files[file], func(m *manifest) {
			m.ArtifactType, m.Layers[0].MediaType = mediaType, mediaType
		})
		d.seen(d.files[file], "", code)
	}
	return e
}

// staple puts what is stapled beside provenance.json.
func staple(d *draft, ca *virtual.CA, say told) {
	const file = "evidence/provenance.ocsp"
	if say.stranger {
		var err error
		ca, err = virtual.NewCA(virtual.CAOptions{Revokes: true})
		must(d, err)
	}
	all := say.raw
	for _, r := range say.stapled {
		switch {
		case r.Root:
			r.Serial = ca.Between()
		case r.Serial == nil:
			r.Serial = big.NewInt(companySerial)
		}
		if say.largeResponder {
			r.Key = d.large
		}
		one, err := ca.OCSP(whole(r))
		must(d, err)
		all = append(all, one...)
		d.seen(one, file, "stapled")
	}
	if all != nil {
		d.files[file] = all
		d.c.Question.Evidence = append(d.c.Question.Evidence, file)
	}
	if say.raw != nil {
		d.seen(nil, file, "unreadable")
	}
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
	keeps := since(-24 * time.Hour)
	keeps.Id = asn1.ObjectIdentifier{2, 5, 29, 60} // expiredCertsOnCRL
	authorities := virtual.Revoking{Root: true}
	list := func(r []x509.RevocationListEntry) told {
		return told{crls: []virtual.Revoking{{Revoked: r}, authorities}}
	}
	answer := func(r virtual.Revoking) told {
		return told{crls: []virtual.Revoking{authorities}, ocsp: []virtual.Revoking{r}}
	}
	stapled := func(r ...virtual.Revoking) told { return told{crls: []virtual.Revoking{authorities}, stapled: r} }
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
		company("authority-with-a-large-key", "The intermediate certificate that the bundle brings has an RSA key of 9216 bits; one of some millions would take hours.", "", "chain", told{large: true}),
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
		company("authority-closed-after", "The authority that issued it ceased to operate an hour after.", "", Accepted, told{crls: []virtual.Revoking{{}, {Root: true, Revoked: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(minted().UnixNano()), RevocationTime: minted().Add(time.Hour), ReasonCode: 5}}}}}),
		company("no-list-of-authorities", "Nothing says whether the authority that issued it was revoked.", "", "revocation", told{crls: []virtual.Revoking{{}}}),
		company("list-ended", "The list counted until an hour before the certificate ended.", "RFC 5280 5.1.2.5", "revocation", told{crls: []virtual.Revoking{{From: minted().Add(-2 * time.Hour), Until: minted().Add(-time.Hour)}, authorities}}),
		company("list-too-new", "The list is of a day after the certificate ended, and need not name it any more.", "RFC 5280 3.3", "revocation", told{crls: []virtual.Revoking{{From: minted().Add(24 * time.Hour), Until: minted().AddDate(10, 0, 0)}, authorities}}),
		company("list-keeps-all", "The list is of a day after the certificate ended, and names those that ended, too.", "X.509 9.5.2.9", Accepted, told{crls: []virtual.Revoking{{From: minted().Add(24 * time.Hour), Until: minted().AddDate(10, 0, 0), Extensions: []pkix.Extension{keeps}}, authorities}}),
		company("answered-good", "An OCSP responder says that it is good.", "RFC 6960 2.2", Accepted, answer(virtual.Revoking{})),
		company("answered-by-a-responder", "A responder that the authority named for OCSP says that it is good.", "RFC 6960 4.2.2.2", Accepted, answer(virtual.Revoking{Responder: func(*x509.Certificate) {}})),
		company("answered-with-its-certificate", "The authority answers itself, and sends its own certificate along.", "RFC 6960 4.2.2.2", Accepted, answer(virtual.Revoking{Own: true})),
		company("answered-revoked", "An OCSP responder says that it was revoked before it signed.", "RFC 6960 2.2", "revoked", answer(virtual.Revoking{Revoked: entryAt(-time.Hour, 3)})),
		company("answered-by-a-signer", "The OCSP response is signed with a certificate for signing code.", "RFC 6960 4.2.2.2", "revocation", answer(virtual.Revoking{Responder: func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}})),

		company("stapled-good", "OCSP responses about the certificate and its authority's are stapled, and required.", "RFC 6960 2.2", Accepted, told{stapled: []virtual.Revoking{{}, authorities}, required: true}),
		again("provenance-attached-as-a-response", "A stranger attached the provenance once more, as an OCSP response.", "evidence/provenance.json", "application/ocsp-response", "stapled", stapled(virtual.Revoking{})),
		again("response-attached-as-a-bundle", "A stranger attached the OCSP response once more, as a bundle.", "evidence/provenance.ocsp", "application/vnd.dev.sigstore.bundle.v0.3+json", "unreadable", stapled(virtual.Revoking{})),
		company("stapled-none", "It is required, and none is stapled.", "", "revocation", told{required: true}),
		company("stapled-for-the-signer-alone", "It is required, and the one that is stapled does not speak of the authority.", "", "revocation", told{stapled: []virtual.Revoking{{}}, required: true}),
		company("stapled-beside-a-list", "The root's list tells of the authority, what is stapled of the signer's certificate.", "", Accepted, stapled(virtual.Revoking{})),
		company("stapled-by-a-responder", "A responder that the authority named for OCSP answered.", "RFC 6960 4.2.2.2", Accepted, stapled(virtual.Revoking{Responder: func(*x509.Certificate) {}})),
		company("stapled-with-its-certificate", "The authorities answered themselves, each with its own certificate in the response.", "RFC 6960 4.2.2.2", Accepted, told{stapled: []virtual.Revoking{{Own: true}, {Root: true, Own: true}}, required: true}),
		company("stapled-by-a-large-key", "A responder answered whose RSA key has 9216 bits; one of some hundred thousand would take long.", "", "revocation", told{crls: []virtual.Revoking{authorities}, stapled: []virtual.Revoking{{Responder: func(*x509.Certificate) {}}}, largeResponder: true}),
		company("stapled-by-a-signer", "The response is signed with a certificate for signing code.", "RFC 6960 4.2.2.2", "revocation", stapled(virtual.Revoking{Responder: func(x *x509.Certificate) {
			x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
		}})),
		company("stapled-by-another-authority", "The response is about a certificate of that number by another CA.", "RFC 6960 4.1.1", "revocation", told{crls: []virtual.Revoking{authorities}, stapled: []virtual.Revoking{{}}, stranger: true}),
		company("stapled-for-another", "The response is about another certificate of the CA.", "RFC 6960 4.1.1", "revocation", stapled(virtual.Revoking{Serial: big.NewInt(companySerial + 1)})),
		company("stapled-before", "The response had ended an hour before it signed.", "RFC 6960 2.4", "revocation", stapled(virtual.Revoking{From: minted().Add(-2 * time.Hour), Until: minted().Add(-time.Hour)})),
		company("stapled-after", "The response is of an hour after it signed.", "RFC 6960 2.4", "revocation", stapled(virtual.Revoking{From: minted().Add(time.Hour)})),
		company("stapled-without-end", "The response does not say until when it counts.", "RFC 6960 2.4", "revocation", stapled(virtual.Revoking{Endless: true})),
		company("stapled-unknown", "The responder does not know the certificate.", "RFC 6960 2.2", "revocation", stapled(virtual.Revoking{Unknown: true})),
		company("stapled-unknown-unasked", "The responder does not know the certificate, and nobody asks.", "", Accepted, told{stapled: []virtual.Revoking{{Unknown: true}}}),
		company("stapled-garbage", "What is stapled is no OCSP response.", "", "revocation", told{crls: []virtual.Revoking{authorities}, raw: []byte("0\x82good")}),
		company("stapled-revoked", "Superseded an hour before it signed, as a stapled response says; nobody asked.", "RFC 6960 2.2", "revoked", told{stapled: []virtual.Revoking{{Revoked: entryAt(-time.Hour, 4)}}}),
		company("stapled-revoked-later", "Revoked before it signed, says a response of after it, which somebody attached.", "RFC 6960 2.2", "revoked", told{stapled: []virtual.Revoking{{From: minted().Add(2 * time.Hour), Revoked: entryAt(-time.Hour, 4)}}}),
		company("stapled-on-hold", "A response of when it signed says that it was on hold.", "RFC 5280 5.3.1", "revoked", told{stapled: []virtual.Revoking{{Revoked: entryAt(-time.Hour, 6)}}}),
		company("stapled-on-hold-later", "A response of after it signed says that it has been on hold since before.", "RFC 5280 5.3.1", "revoked", told{stapled: []virtual.Revoking{{From: minted().Add(2 * time.Hour), Revoked: entryAt(-time.Hour, 6)}}}),
		company("stapled-on-hold-before", "It was on hold, says a response that had ended an hour before it signed, which somebody attached; what the verifier was given says that it was let go.", "RFC 5280 5.3.1", Accepted, told{
			crls: []virtual.Revoking{{}, authorities}, stapled: []virtual.Revoking{{From: minted().Add(-3 * time.Hour), Until: minted().Add(-time.Hour), Revoked: entryAt(-2*time.Hour, 6)}}}),
		company("stapled-revoked-after", "Superseded an hour after it signed: what is older counts on.", "RFC 5280 5.3.1", Accepted, stapled(virtual.Revoking{Revoked: entryAt(time.Hour, 4)})),
		company("stapled-key-stolen", "Revoked an hour after it signed, for the key was stolen, nobody knows when.", "RFC 5280 5.3.1", "revoked", told{stapled: []virtual.Revoking{{Revoked: entryAt(time.Hour, 1)}}}),
		company("stapled-key-stolen-after", "The key was stolen half an hour after it signed.", "RFC 5280 5.3.2", Accepted, told{stapled: []virtual.Revoking{{Revoked: entryAt(time.Hour, 1, since(time.Hour/2))}}}),
		company("stapled-differ", "One response says that it is good, another that it was revoked before.", "", "revoked", stapled(virtual.Revoking{}, virtual.Revoking{Revoked: entryAt(-time.Hour, 4)})),
		company("stapled-good-listed-revoked", "A stapled response says that it is good, the verifier's list that the key was stolen.", "", "revoked", told{crls: []virtual.Revoking{{Revoked: entryAt(time.Hour, 1)}, authorities}, stapled: []virtual.Revoking{{}}}),
		company("stapled-good-list-ended", "A stapled response says that it is good; the verifier's own list of the authority has ended, and what is stapled does not stand in for it.", "", "revocation", told{
			crls: []virtual.Revoking{{From: minted().Add(-2 * time.Hour), Until: minted().Add(-time.Hour)}, authorities}, stapled: []virtual.Revoking{{}}}),
	}
}
