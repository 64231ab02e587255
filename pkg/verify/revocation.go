package verify

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/waxseal/waxseal/pkg/attest"
)

// revocations is what tells which certificates of a CA were revoked. It is
// immutable but for what it remembers.
type revocations struct {
	lists   []*crl
	answers []*ocspAnswer
	stapled []*ocspAnswer // to the signature in question, by whoever
	needed  bool          // what none of them tells of does not count
}

const (
	maxCRLs    = 64 // lists in all files
	maxAnswers = 64
)

func parseRevocations(crls, answers []File) (*revocations, error) {
	r := &revocations{needed: len(crls)+len(answers) > 0}
	for _, f := range crls {
		lists, err := parseCRLs(f.Raw)
		if err != nil {
			return nil, fmt.Errorf("reading certificate revocation list %q: %w", f.Name, err)
		}
		for _, l := range lists {
			l.name = f.Name
		}
		if r.lists = append(r.lists, lists...); len(r.lists) > maxCRLs {
			return nil, fmt.Errorf("reading certificate revocation list %q: more than %d of them", f.Name, maxCRLs)
		}
	}
	for _, f := range answers {
		a, err := parseAnswer(f.Raw)
		if err != nil {
			return nil, fmt.Errorf("reading OCSP response %q: %w", f.Name, err)
		}
		a.name = fmt.Sprintf("the OCSP response %q", clip(f.Name))
		if r.answers = append(r.answers, a); len(r.answers) > maxAnswers {
			return nil, fmt.Errorf("reading OCSP response %q: more than %d of them", f.Name, maxAnswers)
		}
	}
	return r, nil
}

// revoked is what a CA says of a certificate that it no longer stands for.
type revoked struct {
	at     time.Time
	reason int
	since  time.Time // when it ceased to be valid; zero: the CA does not say
}

// reasonName is the name of a reason in RFC 5280, section 5.3.1; "" for none.
func reasonName(reason int) string {
	switch reason {
	case ocsp.Unspecified:
		return "no reason given"
	case ocsp.KeyCompromise:
		return "keyCompromise"
	case ocsp.CACompromise:
		return "cACompromise"
	case ocsp.AffiliationChanged:
		return "affiliationChanged"
	case ocsp.Superseded:
		return "superseded"
	case ocsp.CessationOfOperation:
		return "cessationOfOperation"
	case ocsp.CertificateHold:
		return "certificateHold"
	case ocsp.PrivilegeWithdrawn:
		return "privilegeWithdrawn"
	case ocsp.AACompromise:
		return "aACompromise"
	}
	return ""
}

// revocation reads an entry, with the invalidity date of RFC 5280, section 5.3.2.
func revocation(at time.Time, reason int, extensions []pkix.Extension) (revoked, error) {
	r := revoked{at: at, reason: reason}
	if reasonName(reason) == "" {
		return r, fmt.Errorf("a certificate is revoked for the reason %d, which is none", reason)
	}
	for _, e := range extensions {
		if !e.Id.Equal(extension(24)) {
			continue
		}
		if rest, err := asn1.UnmarshalWithParams(e.Value, &r.since, "generalized"); err != nil || len(rest) > 0 {
			return r, errors.New("the invalidity date of an entry is no time")
		}
	}
	return r, nil
}

// from is the moment from which on its signatures do not count; zero: none
// counts.
func (r revoked) from() time.Time {
	switch {
	case !r.since.IsZero() && r.since.Before(r.at):
		return r.since
	case r.since.IsZero() && (r.reason == ocsp.KeyCompromise || r.reason == ocsp.CACompromise || r.reason == ocsp.AACompromise):
		// Somebody else may have signed at any time before.
		return time.Time{}
	}
	return r.at
}

// spares reports whether a signature counts all the same.
func (r revoked) spares(s Signer) bool {
	w := Window{Revoked: r.from()}
	return !w.Revoked.IsZero() && w.Holds(s.first) && w.Holds(s.last)
}

func (r revoked) String() string {
	text := fmt.Sprintf("revoked at %s (%s", r.at.UTC().Format(time.RFC3339), reasonName(r.reason))
	if !r.since.IsZero() {
		text += ", invalid since " + r.since.UTC().Format(time.RFC3339)
	}
	return text + ")"
}

// extension is one of certificates or of lists (id-ce).
func extension(arc int) asn1.ObjectIdentifier { return asn1.ObjectIdentifier{2, 5, 29, arc} }

// crl is a certificate revocation list.
type crl struct {
	name    string
	list    *x509.RevocationList // without its entries
	entries map[string]revoked   // by serial number
	scope   scope
	keeps   time.Time       // certificates that ended after that stay listed
	signed  cache[struct{}] // by the authority whose signature holds
}

// scope is what an issuing distribution point says that a list is about (RFC
// 5280, section 5.2.5).
type scope struct {
	points             []string // nil: all; else the addresses of this part
	users, authorities bool     // about these alone
}

// parseCRLs reads lists, in PEM or one in DER.
func parseCRLs(raw []byte) ([]*crl, error) {
	if len(raw) > attest.MaxCRL {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", attest.MaxCRL)
	}
	if !bytes.Contains(raw, []byte("-----BEGIN")) {
		l, err := parseCRL(raw)
		if err != nil {
			return nil, err
		}
		return []*crl{l}, nil
	}
	var out []*crl
	for rest := raw; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("data that is not PEM")
			}
			break
		}
		if block.Type != "X509 CRL" {
			return nil, fmt.Errorf("PEM block is %q, want \"X509 CRL\"", clip(block.Type))
		}
		l, err := parseCRL(block.Bytes)
		if err != nil {
			return nil, err
		}
		if out = append(out, l); len(out) > maxCRLs {
			return nil, fmt.Errorf("more than %d lists", maxCRLs)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it has no list")
	}
	return out, nil
}

func parseCRL(der []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, fmt.Errorf("it is no list: %s", clip(err.Error()))
	}
	l := &crl{list: list, entries: make(map[string]revoked, len(list.RevokedCertificateEntries))}
	for _, e := range list.Extensions {
		switch {
		case e.Id.Equal(extension(27)):
			return nil, errors.New("it is a delta list, which says nothing alone; give the whole one")
		case e.Id.Equal(extension(28)):
			if l.scope, err = parseScope(e.Value); err != nil {
				return nil, err
			}
		case e.Id.Equal(extension(60)):
			if rest, err := asn1.UnmarshalWithParams(e.Value, &l.keeps, "generalized"); err != nil || len(rest) > 0 {
				return nil, errors.New("how long it keeps certificates that have ended is no time")
			}
		case e.Critical:
			// Section 5.2: then it must not be used to tell what is revoked.
			return nil, fmt.Errorf("it has a critical extension that is not known, %s", e.Id)
		}
	}
	for _, e := range list.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical && !x.Id.Equal(extension(21)) && !x.Id.Equal(extension(24)) {
				return nil, fmt.Errorf("an entry has a critical extension that is not known, %s", x.Id)
			}
		}
		r, err := revocation(e.RevocationTime, e.ReasonCode, e.Extensions)
		if err != nil {
			return nil, err
		}
		serial := string(e.SerialNumber.Bytes())
		if known, ok := l.entries[serial]; ok && !r.from().Before(known.from()) {
			continue
		}
		l.entries[serial] = r
	}
	list.RevokedCertificateEntries = nil
	return l, nil
}

func parseScope(der []byte) (scope, error) {
	var idp struct {
		Point struct {
			Full []asn1.RawValue `asn1:"optional,tag:0"`
			Name asn1.RawValue   `asn1:"optional,tag:1"`
		} `asn1:"optional,tag:0"`
		Users       bool           `asn1:"optional,tag:1"`
		Authorities bool           `asn1:"optional,tag:2"`
		Reasons     asn1.BitString `asn1:"optional,tag:3"`
		Indirect    bool           `asn1:"optional,tag:4"`
		Attributes  bool           `asn1:"optional,tag:5"`
	}
	rest, err := asn1.Unmarshal(der, &idp)
	switch {
	case err != nil || len(rest) > 0:
		return scope{}, errors.New("its issuing distribution point cannot be read")
	case idp.Indirect || idp.Attributes || idp.Reasons.BitLength > 0:
		return scope{}, errors.New("it is of another authority's certificates, of attributes, or of some reasons only; give one that says all")
	}
	s := scope{users: idp.Users, authorities: idp.Authorities}
	if len(idp.Point.Full) > 0 || len(idp.Point.Name.FullBytes) > 0 {
		s.points = []string{}
	}
	for _, name := range idp.Point.Full {
		if name.Class == asn1.ClassContextSpecific && name.Tag == 6 { // a URI
			s.points = append(s.points, string(name.Bytes))
		}
	}
	return s, nil
}

// covers reports whether a list is about a certificate.
func (s scope) covers(c *x509.Certificate) bool {
	if s.users && c.IsCA || s.authorities && !c.IsCA {
		return false
	}
	return s.points == nil || slices.ContainsFunc(s.points, func(p string) bool { return slices.Contains(c.CRLDistributionPoints, p) })
}

// says is what the list tells of a certificate by issuer: nil where it is not
// about it; and why it does not tell all.
func (l *crl) says(c, issuer *x509.Certificate, now time.Time) (about bool, r *revoked, why string) {
	if !bytes.Equal(l.list.RawIssuer, issuer.RawSubject) || !l.scope.covers(c) {
		return false, nil, ""
	}
	key := cacheKey(issuer.Raw)
	if _, ok := l.signed.get(key); !ok {
		if err := l.list.CheckSignatureFrom(issuer); err != nil {
			return false, nil, fmt.Sprintf("the list %q is not signed by %q", clip(l.name), clip(nameOf(issuer)))
		}
		l.signed.put(key, struct{}{})
	}
	if e, ok := l.entries[string(c.SerialNumber.Bytes())]; ok {
		r = &e
	}
	if why = current(c, l.list.ThisUpdate, l.list.NextUpdate, l.keeps, now); why != "" {
		why = fmt.Sprintf("the list %q %s", clip(l.name), why)
	}
	return true, r, why
}

// current is why a word of a CA about a certificate is not its last; "": it is.
// A CA need not name a certificate for longer than that would have been valid
// (RFC 5280, section 3.3), so that the last word on one that has ended is what
// counted at its end.
func current(c *x509.Certificate, from, until, keeps, now time.Time) string {
	switch {
	case from.After(now.Add(ahead)):
		return fmt.Sprintf("is of %s, which is still to come", from.UTC().Format(time.RFC3339))
	case until.IsZero():
		return "does not say until when it counts"
	case until.Before(now) && until.Before(c.NotAfter):
		return fmt.Sprintf("counted until %s only", until.UTC().Format(time.RFC3339))
	case from.After(c.NotAfter) && (keeps.IsZero() || keeps.After(c.NotAfter)):
		return fmt.Sprintf("is newer than the end of the certificate at %s, and need not name it any more; one of before is wanted", c.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

// ocspAnswer is that of an OCSP responder about one certificate.
type ocspAnswer struct {
	name string // what messages call it
	raw  []byte
	id   certID
	said *ocsp.Response // not verified
	held cache[error]   // whose word it is, by the authority
}

// certID is whose certificate an answer is about: RFC 6960, section 4.1.1.
type certID struct {
	Hash      pkix.AlgorithmIdentifier
	Name, Key []byte
	Serial    asn1.RawValue
}

func parseAnswer(raw []byte) (*ocspAnswer, error) {
	if len(raw) > attest.MaxOCSP {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", attest.MaxOCSP)
	}
	if err := lightAnswer(raw); err != nil {
		return nil, fmt.Errorf("it is no answer about one certificate: %s", clip(err.Error()))
	}
	said, err := ocsp.ParseResponse(raw, nil)
	if err != nil {
		return nil, fmt.Errorf("it is no answer about one certificate: %s", clip(err.Error()))
	}
	// The library does not say whose certificates it speaks of.
	var data struct {
		Version   int `asn1:"optional,default:0,explicit,tag:0"`
		Responder asn1.RawValue
		At        time.Time `asn1:"generalized"`
		Answers   []struct{ ID certID }
	}
	if _, err := asn1.Unmarshal(said.TBSResponseData, &data); err != nil || len(data.Answers) != 1 {
		return nil, errors.New("it is no answer about one certificate")
	}
	return &ocspAnswer{name: "the stapled OCSP response", raw: raw, id: data.Answers[0].ID, said: said}, nil
}

// is reports whether the answer is about a certificate.
func (a *ocspAnswer) is(c, issuer *x509.Certificate) bool {
	if a.said.SerialNumber.Cmp(c.SerialNumber) != 0 || !a.said.IssuerHash.Available() {
		return false
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &info); err != nil {
		return false
	}
	sum := func(b []byte) []byte {
		h := a.said.IssuerHash.New()
		h.Write(b)
		return h.Sum(nil)
	}
	return bytes.Equal(a.id.Name, sum(issuer.RawSubject)) && bytes.Equal(a.id.Key, sum(info.Key.RightAlign()))
}

// by checks whose word the answer is: the issuer's, or that of a responder that
// the issuer named itself (RFC 6960, section 4.2.2.2).
func (a *ocspAnswer) by(issuer *x509.Certificate) error {
	key := cacheKey(issuer.Raw)
	err, known := a.held.get(key)
	if !known {
		err = a.signedBy(issuer)
		a.held.put(key, err)
	}
	return err
}

func (a *ocspAnswer) signedBy(issuer *x509.Certificate) error {
	r := a.said.Certificate
	if r != nil && bytes.Equal(r.Raw, issuer.Raw) {
		// The issuer's own, which came along: reading the answer proved that its
		// key made the signature. The library would ask for a responder's.
		return nil
	}
	if _, err := ocsp.ParseResponse(a.raw, issuer); err != nil {
		return errors.New("is not signed by the issuer of the certificate, or one that it named")
	}
	switch {
	case r == nil:
	case !bytes.Equal(r.RawIssuer, issuer.RawSubject) || !slices.Contains(r.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning):
		return errors.New("is signed with a certificate that is not for OCSP")
	case !(Window{}).with(r).Holds(a.said.ProducedAt):
		return errors.New("was signed when the responder's certificate was not valid")
	}
	return nil
}

// says is what the answer tells of a certificate by issuer: see crl.says. stale is
// why what it tells does not tell all; "": it does.
func (a *ocspAnswer) says(c, issuer *x509.Certificate, stale string) (about bool, r *revoked, why string) {
	if !a.is(c, issuer) {
		return false, nil, ""
	}
	if err := a.by(issuer); err != nil {
		return false, nil, fmt.Sprintf("%s %v", a.name, err)
	}
	why = stale
	switch a.said.Status {
	case ocsp.Good:
	case ocsp.Revoked:
		one, err := revocation(a.said.RevokedAt, a.said.RevocationReason, a.said.Extensions)
		if err != nil {
			return true, nil, fmt.Sprintf("%s: %v", a.name, err)
		}
		r = &one
	default:
		why = "says that it does not know the certificate"
	}
	if why != "" {
		why = a.name + " " + why
	}
	return true, r, why
}

// current is why the answer is not the last word on a certificate as of now; "":
// it is.
func (a *ocspAnswer) current(c *x509.Certificate, now time.Time) string {
	var keeps time.Time
	for _, e := range a.said.Extensions {
		// RFC 6960, section 4.4.4, the archive cutoff.
		if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 6}) {
			if rest, err := asn1.UnmarshalWithParams(e.Value, &keeps, "generalized"); err != nil || len(rest) > 0 {
				keeps = time.Time{}
			}
		}
	}
	return current(c, a.said.ThisUpdate, a.said.NextUpdate, keeps, now)
}

// spans is why the answer does not tell of the moment at which s signed; "": it
// does. What it tells of that stays true, however old it becomes; and one of
// another time tells nothing, however new.
func (a *ocspAnswer) spans(s Signer) string {
	switch from, until := a.said.ThisUpdate, a.said.NextUpdate; {
	case until.IsZero():
		return "does not say until when it counts"
	case from.After(s.first.Add(ahead)), until.Before(s.last):
		return fmt.Sprintf("counted from %s until %s only, and it was signed at %s",
			from.UTC().Format(time.RFC3339), until.UTC().Format(time.RFC3339), s.first.UTC().Format(time.RFC3339))
	}
	return ""
}

// before reports whether all that the answer tells of was over when s signed.
func (a *ocspAnswer) before(s Signer) bool {
	until := a.said.NextUpdate
	if until.IsZero() {
		until = a.said.ThisUpdate
	}
	return until.Before(s.first)
}

// status is what is known of one certificate, for what s signed. All that is given
// is listened to: one that says revoked is believed before any that do not. A
// stapled answer comes from the signer, or whoever may attach one: that nothing was
// revoked it tells only where the verifier was given nothing about the certificate,
// and that it was on hold, which can end, only where it is no older than the
// signature.
func (r *revocations) status(c, issuer *x509.Certificate, s Signer, now time.Time) (worst *revoked, why string) {
	known, own := false, false
	why = fmt.Sprintf("no list and no answer by %q was given", clip(nameOf(issuer)))
	hear := func(about bool, said *revoked, lacks string) {
		if said != nil && (worst == nil || said.from().Before(worst.from())) {
			worst = said
		}
		known = known || about && lacks == ""
		if lacks != "" {
			why = lacks
		}
	}
	for _, l := range r.lists {
		about, said, lacks := l.says(c, issuer, now)
		own = own || about
		hear(about, said, lacks)
	}
	ask := func(a *ocspAnswer, stale string) (about bool, said *revoked, lacks string) {
		if by := a.said.Certificate; by != nil && r.listed(by, issuer) {
			return false, nil, a.name + " is signed with a certificate that was revoked"
		}
		return a.says(c, issuer, stale)
	}
	for _, a := range r.answers {
		about, said, lacks := ask(a, a.current(c, now))
		own = own || about
		hear(about, said, lacks)
	}
	for _, a := range r.stapled {
		about, said, lacks := ask(a, a.spans(s))
		if said != nil && said.reason == ocsp.CertificateHold && a.before(s) {
			said = nil // it may have been let go since
		}
		if own {
			about, lacks = false, ""
		}
		hear(about, said, lacks)
	}
	if known {
		why = ""
	}
	return worst, why
}

// listed reports whether a list of the issuer names a certificate.
func (r *revocations) listed(c, issuer *x509.Certificate) bool {
	return slices.ContainsFunc(r.lists, func(l *crl) bool {
		_, said, _ := l.says(c, issuer, c.NotAfter)
		return said != nil
	})
}

// judge says whether a chain counts for a signature, as far as its certificates
// were not revoked before it was made.
func (r *revocations) judge(chain []*x509.Certificate, s Signer, now time.Time) *Rejection {
	var unknown *Rejection
	for i, c := range chain[:len(chain)-1] {
		said, why := r.status(c, chain[i+1], s, now)
		what := fmt.Sprintf("its certificate (serial number %x)", c.SerialNumber)
		if i > 0 {
			what = fmt.Sprintf("the certificate of %q above it", clip(nameOf(c)))
		}
		if said != nil && !said.spares(s) {
			return rejectf(CodeRevoked, "%s was %s, and it was signed at %s", what, said, s.first.UTC().Format(time.RFC3339))
		}
		if why != "" && r.needed && unknown == nil {
			unknown = rejectf(CodeRevocation, "whether %s was revoked cannot be told: %s", what, why)
		}
	}
	return unknown
}

// standing says whether a verified certificate was revoked before it signed. Of
// several chains one is enough.
func (m *material) standing(r *revocations, leaf *x509.Certificate, s Signer, now time.Time) *Rejection {
	if !r.needed && len(r.stapled) == 0 {
		return nil
	}
	worst := rejectf(CodeChain, "its certificate does not lead to a trusted authority")
	for _, a := range m.authorities {
		chains, err := a.Verify(leaf, s.first)
		if err != nil {
			continue
		}
		for _, chain := range chains {
			no := r.judge(chain, s, now)
			if no == nil {
				return nil
			}
			if worst.Code != CodeRevocation {
				worst = no
			}
		}
	}
	return worst
}

// ends lists when what tells of revocations ends to count.
func (r *revocations) ends() []time.Time {
	var out []time.Time
	for _, l := range r.lists {
		out = append(out, l.list.NextUpdate)
	}
	for _, a := range r.answers {
		out = append(out, a.said.NextUpdate)
	}
	return out
}
