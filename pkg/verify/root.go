package verify

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	sigverify "github.com/sigstore/sigstore-go/pkg/verify"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Root is one instance of Sigstore that is trusted: its certificate
// authorities, logs and time-stamping authorities, each with its window of
// validity. Make one with ParseRoot and share it: it remembers which chains it
// has proved. Safe for concurrent use.
type Root struct {
	name   string
	id     attest.Digest
	origin Origin
	material
}

// Origin is where and when a root was fetched; zero for one that was given.
type Origin struct {
	FetchedAt  time.Time
	ValidUntil time.Time // it must be fetched anew by then
}

// Fetched notes that the root was fetched. Call it before the root is shared.
func (r *Root) Fetched(o Origin) { r.origin = o }

// Origin is where the root was fetched, if it was.
func (r *Root) Origin() Origin { return r.origin }

// Name is what the user called the root, usually its file.
func (r *Root) Name() string { return r.name }

// Certifies reports whether the root has authorities that certificates can lead
// to; one that has none proves times.
func (r *Root) Certifies() bool { return len(r.authorities) > 0 }

// ID is the sha256 of the root's bytes.
func (r *Root) ID() attest.Digest { return r.id }

// ParseRoot reads a trusted root in Sigstore's JSON form, as `cosign
// trusted-root create` and Sigstore's TUF repositories give it. name is used in
// messages only.
func ParseRoot(name string, raw []byte) (*Root, error) {
	r, err := parseRoot(raw)
	if err != nil {
		return nil, fmt.Errorf("reading trusted root %q: %w", name, err)
	}
	r.name = name
	return r, nil
}

// ParseStamper reads the certificate chain (PEM) of a time-stamping authority, in
// any order, as its operator gives it: a root that proves times and nothing else.
// The stamping certificate itself may be left out, where stamps bring it along.
func ParseStamper(name string, raw []byte) (*Root, error) {
	fail := func(err error) (*Root, error) {
		return nil, fmt.Errorf("reading the certificates of a time-stamping authority %q: %w", name, err)
	}
	certs, err := certificates(raw)
	if err != nil {
		return fail(err)
	}
	tsa := &root.SigstoreTimestampingAuthority{URI: name}
	for _, c := range certs {
		// RFC 3161, section 2.3: a certificate that stamps is for nothing else.
		switch stamps := slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping}); {
		case c.IsCA && bytes.Equal(c.RawSubject, c.RawIssuer) && tsa.Root == nil:
			tsa.Root = c
		case c.IsCA && c.BasicConstraintsValid && !bytes.Equal(c.RawSubject, c.RawIssuer):
			tsa.Intermediates = append(tsa.Intermediates, c)
		case !c.IsCA && stamps && tsa.Leaf == nil:
			tsa.Leaf = c
		default:
			return fail(fmt.Errorf("%q is neither an authority nor the one certificate that stamps, or it is there twice", clip(c.Subject.String())))
		}
	}
	if tsa.Root == nil {
		return fail(errors.New("its root certificate is not among them"))
	}
	r := &Root{name: name, id: attest.DigestOf(raw)}
	r.stampers = []*stamper{{tsa: tsa}}
	return r, nil
}

// ParseRoots reads a file of one trusted root, or of JSON lines with one a line,
// as `gh attestation trusted-root` prints them. The last line needs no newline.
func ParseRoots(name string, raw []byte) ([]*Root, error) {
	r, err := ParseRoot(name, raw)
	if err == nil {
		return []*Root{r}, nil
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	if len(raw) > attest.MaxTrustedRoot || len(lines) < 2 || !rooted(lines[0]) {
		return nil, err
	}
	var out []*Root
	for i, line := range lines {
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		if len(out) == maxRoots {
			return nil, fmt.Errorf("reading trusted roots %q: more than %d", name, maxRoots)
		}
		r, err := ParseRoot(fmt.Sprintf("%s:%d", name, i+1), line)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

const maxRoots = 16

// rooted reports whether a line could be a whole root.
func rooted(line []byte) bool { return attest.UnmarshalStrict(line, nil) == nil }

func parseRoot(raw []byte) (*Root, error) {
	if len(raw) > attest.MaxTrustedRoot {
		return nil, fmt.Errorf("it is larger than the %d bytes a trusted root may have", attest.MaxTrustedRoot)
	}
	// The library's parser takes one object with known fields; that none
	// stands twice is for ours.
	if err := attest.UnmarshalStrict(raw, nil); err != nil {
		return nil, err
	}
	tr, err := root.NewTrustedRootFromJSON(raw)
	if err != nil {
		return nil, err
	}
	r := &Root{id: attest.DigestOf(raw)}
	r.logs, r.ctlogs = tr.RekorLogs(), tr.CTLogs()
	for _, ca := range tr.FulcioCertificateAuthorities() {
		fulcio, ok := ca.(*root.FulcioCertificateAuthority)
		if !ok {
			return nil, fmt.Errorf("certificate authority of type %T", ca)
		}
		r.authorities = append(r.authorities, &authority{ca: fulcio})
	}
	for _, tsa := range tr.TimestampingAuthorities() {
		r.stampers = append(r.stampers, &stamper{tsa: tsa})
	}
	if len(r.logs) == 0 && len(r.stampers) == 0 {
		return nil, errors.New("it has neither a log nor a time-stamping authority, so it could prove no time")
	}
	return r, nil
}

// Part is one thing that a root makes trusted.
type Part struct {
	Kind PartKind `json:"kind"`
	// Name is the subject of an authority's certificate, or a log's address.
	Name string `json:"name"`
	// ID is the sha256 of the authority's certificates or of the log's key.
	ID attest.Digest `json:"id"`
	// Window is when what it vouches for counts. An authority's ends with the
	// first of its certificates.
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// PartKind is what a part vouches for.
type PartKind string

// The kinds of part.
const (
	PartAuthority PartKind = "certificate authority"
	PartLog       PartKind = "transparency log"
	PartCTLog     PartKind = "certificate transparency log"
	PartStamper   PartKind = "time-stamping authority"
)

// Parts lists what the root makes trusted, in an order that does not change.
func (r *Root) Parts() []Part {
	var out []Part
	for _, a := range r.authorities {
		out = append(out, authorityPart(PartAuthority, Window{From: a.ca.ValidityPeriodStart, Until: a.ca.ValidityPeriodEnd}, append([]*x509.Certificate{a.ca.Root}, a.ca.Intermediates...)))
	}
	for _, s := range r.stampers {
		if t, ok := s.tsa.(*root.SigstoreTimestampingAuthority); ok {
			out = append(out, authorityPart(PartStamper, Window{From: t.ValidityPeriodStart, Until: t.ValidityPeriodEnd}, slices.Concat([]*x509.Certificate{t.Root}, t.Intermediates, []*x509.Certificate{t.Leaf})))
		}
	}
	for kind, logs := range map[PartKind]map[string]*root.TransparencyLog{PartLog: r.logs, PartCTLog: r.ctlogs} {
		for _, l := range logs {
			der, err := x509.MarshalPKIXPublicKey(l.PublicKey)
			if err != nil {
				der = l.ID // a kind of key that has no such form
			}
			out = append(out, Part{Kind: kind, Name: clip(l.BaseURL), ID: attest.DigestOf(der), From: l.ValidityPeriodStart, Until: l.ValidityPeriodEnd})
		}
	}
	slices.SortFunc(out, func(a, b Part) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), a.From.Compare(b.From), cmp.Compare(a.ID, b.ID))
	})
	return out
}

func authorityPart(kind PartKind, w Window, certs []*x509.Certificate) Part {
	certs = slices.DeleteFunc(certs, func(c *x509.Certificate) bool { return c == nil })
	p := Part{Kind: kind}
	var all []byte
	for _, c := range certs {
		all = append(all, c.Raw...)
	}
	p.ID = attest.DigestOf(all)
	if len(certs) > 0 {
		p.Name = clip(certs[0].Subject.String())
	}
	w = w.with(certs...)
	p.From, p.Until = w.From.UTC(), w.Until.UTC()
	return p
}

// Weakens lists what r trusts that before had ended the trust in: a part whose
// window was closed, and is open again or for longer.
func (r *Root) Weakens(before *Root) []Part {
	var out []Part
	for _, p := range r.Parts() {
		known, open := false, false
		for _, b := range before.Parts() {
			if b.Kind == p.Kind && b.ID == p.ID {
				known = true
				open = open || b.Until.IsZero() || !p.Until.IsZero() && !p.Until.After(b.Until)
			}
		}
		if known && !open {
			out = append(out, p)
		}
	}
	return out
}

// material is trusted material whose chains are proved once. It is immutable
// but for what it remembers.
type material struct {
	root.BaseTrustedMaterial
	authorities []*authority
	stampers    []*stamper
	logs        map[string]*root.TransparencyLog
	ctlogs      map[string]*root.TransparencyLog
	listed      cache[struct{}] // certificates whose place in a CT log was proved
}

func (m *material) FulcioCertificateAuthorities() []root.CertificateAuthority {
	out := make([]root.CertificateAuthority, len(m.authorities))
	for i, a := range m.authorities {
		out[i] = a
	}
	return out
}

func (m *material) TimestampingAuthorities() []root.TimestampingAuthority {
	out := make([]root.TimestampingAuthority, len(m.stampers))
	for i, s := range m.stampers {
		out[i] = s
	}
	return out
}

func (m *material) RekorLogs() map[string]*root.TransparencyLog { return m.logs }
func (m *material) CTLogs() map[string]*root.TransparencyLog    { return m.ctlogs }

// without is the material that knows nothing of some of its logs.
func (m *material) without(logs []string) *material {
	out := &material{authorities: m.authorities, stampers: m.stampers, ctlogs: m.ctlogs, logs: maps.Clone(m.logs)}
	for _, id := range logs {
		delete(out.logs, id)
	}
	return out
}

// union is the logs and time-stamping authorities of all roots, under the
// authorities of a CA.
func union(ca *CA, roots []*Root) *material {
	m := &material{authorities: ca.authorities, logs: map[string]*root.TransparencyLog{}}
	for _, r := range roots {
		maps.Copy(m.logs, r.logs)
		m.stampers = append(m.stampers, r.stampers...)
	}
	return m
}

// authority proves the chain of a certificate once, and that of the certificate
// that issued it once for all that it issued. A proof holds for every moment at
// which all of the chain was valid, and for no other.
type authority struct {
	ca      *root.FulcioCertificateAuthority
	proved  cache[proof]    // by certificate
	issuers cache[shortcut] // by issuing certificate
}

type proof struct {
	chains [][]*x509.Certificate
	window Window
}

// shortcut is an authority whose root is an issuing certificate that was proved
// to lead to the real root. It holds for what is within the window of all that
// is above it.
type shortcut struct {
	ca     *root.FulcioCertificateAuthority
	window Window
}

func (a *authority) Verify(cert *x509.Certificate, t time.Time) ([][]*x509.Certificate, error) {
	key := cacheKey(cert.Raw)
	if p, ok := a.proved.get(key); ok && p.window.Holds(t) {
		return p.chains, nil
	}
	chains, above, err := a.verify(cert, t)
	if err != nil {
		return nil, err
	}
	a.proved.put(key, proof{chains: chains, window: above.with(slices.Concat(chains...)...)})
	return chains, nil
}

// verify returns the chains of a certificate, and when what they do not show
// was valid.
func (a *authority) verify(cert *x509.Certificate, t time.Time) ([][]*x509.Certificate, Window, error) {
	for _, i := range a.ca.Intermediates {
		if !bytes.Equal(i.RawSubject, cert.RawIssuer) {
			continue
		}
		if s, ok := a.issuers.get(cacheKey(i.Raw)); ok && s.window.Holds(t) {
			// What it refuses is for the whole chain to refuse.
			if chains, err := s.ca.Verify(cert, t); err == nil {
				return chains, s.window, nil
			}
		}
	}
	own := Window{From: a.ca.ValidityPeriodStart, Until: a.ca.ValidityPeriodEnd}
	chains, err := a.ca.Verify(cert, t)
	if err != nil {
		return nil, own, err
	}
	if len(chains) == 1 && len(chains[0]) > 2 && !slices.ContainsFunc(chains[0][2:], constrains) {
		issuer := chains[0][1]
		a.issuers.put(cacheKey(issuer.Raw), shortcut{ca: &root.FulcioCertificateAuthority{Root: issuer, URI: a.ca.URI}, window: own.with(chains[0][2:]...)})
	}
	return chains, own, nil
}

// with is the window cut down to when all of the certificates were valid.
func (w Window) with(certs ...*x509.Certificate) Window {
	for _, c := range certs {
		if w.From.Before(c.NotBefore) {
			w.From = c.NotBefore
		}
		if w.Until.IsZero() || c.NotAfter.Before(w.Until) {
			w.Until = c.NotAfter
		}
	}
	return w
}

// constrains reports whether a certificate says something of the names or the
// policies of those below it: then each has to be asked with it in the chain.
// How long the chain is, and what it is used for, is the same for all.
func constrains(c *x509.Certificate) bool {
	names := len(c.PermittedDNSDomains) + len(c.ExcludedDNSDomains) + len(c.PermittedIPRanges) + len(c.ExcludedIPRanges) +
		len(c.PermittedEmailAddresses) + len(c.ExcludedEmailAddresses) + len(c.PermittedURIDomains) + len(c.ExcludedURIDomains)
	policies := c.InhibitAnyPolicy > 0 || c.InhibitAnyPolicyZero || c.InhibitPolicyMapping > 0 || c.InhibitPolicyMappingZero ||
		c.RequireExplicitPolicy > 0 || c.RequireExplicitPolicyZero || len(c.PolicyMappings) > 0
	return names > 0 || policies || len(c.UnhandledCriticalExtensions) > 0
}

// stamper proves a time stamp once, and the chain of the certificate that makes
// the stamps once: what a stamp says depends on no clock but its own.
type stamper struct {
	tsa    root.TimestampingAuthority
	proved cache[root.Timestamp]
	short  cache[stamping] // by the stamping certificate
}

// stamping is an authority whose root is the stamping certificate itself, which
// was proved to lead to the real root.
type stamping struct {
	tsa    root.TimestampingAuthority
	window Window
}

func (s *stamper) Verify(stamp, signature []byte) (*root.Timestamp, error) {
	key := cacheKey(stamp, signature)
	if t, ok := s.proved.get(key); ok {
		return &t, nil
	}
	if err := lightStamp(stamp); err != nil {
		return nil, err
	}
	t, err := s.verify(stamp, signature)
	if err != nil {
		return nil, err
	}
	s.proved.put(key, *t)
	return t, nil
}

func (s *stamper) verify(stamp, signature []byte) (*root.Timestamp, error) {
	whole, ok := s.tsa.(*root.SigstoreTimestampingAuthority)
	if !ok || whole.Leaf == nil || whole.Root == nil {
		return s.tsa.Verify(stamp, signature)
	}
	key := cacheKey(whole.Leaf.Raw)
	if short, ok := s.short.get(key); ok {
		if t, err := short.tsa.Verify(stamp, signature); err == nil && short.window.Holds(t.Time) {
			return t, nil
		}
	}
	t, err := whole.Verify(stamp, signature)
	if err != nil {
		return nil, err
	}
	// A stamp may bring certificates of its own: the shortcut stands on the
	// root's alone.
	pool := func(certs ...*x509.Certificate) *x509.CertPool {
		p := x509.NewCertPool()
		for _, c := range certs {
			p.AddCert(c)
		}
		return p
	}
	chains, cerr := whole.Leaf.Verify(x509.VerifyOptions{
		Roots: pool(whole.Root), Intermediates: pool(whole.Intermediates...), CurrentTime: t.Time, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageTimeStamping},
	})
	if cerr == nil && len(chains) == 1 && !slices.ContainsFunc(chains[0][1:], constrains) {
		alone := *whole
		alone.Root, alone.Intermediates = whole.Leaf, nil
		s.short.put(key, stamping{tsa: &alone, window: (Window{}).with(chains[0]...)})
	}
	return t, nil
}

// transparent proves that a certificate stands in a CT log, where the instance
// has one.
func (m *material) transparent(leaf *x509.Certificate, t time.Time) error {
	if len(m.ctlogs) == 0 {
		return nil
	}
	var chains [][]*x509.Certificate
	for _, a := range m.authorities {
		// Proved before: this finds it again.
		if c, err := a.Verify(leaf, t); err == nil {
			chains = c
			break
		}
	}
	if len(chains) == 0 || len(chains[0]) < 2 {
		return errors.New("no chain to an authority")
	}
	key := cacheKey(leaf.Raw, chains[0][1].Raw)
	if _, ok := m.listed.get(key); ok {
		return nil
	}
	if err := sigverify.VerifySignedCertificateTimestamp(chains, 1, m); err != nil {
		return err
	}
	m.listed.put(key, struct{}{})
	return nil
}

// logID is how the library names a log.
func logID(keyID string) string { return hex.EncodeToString([]byte(keyID)) }
