package verify

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	"github.com/sigstore/sigstore-go/pkg/bundle"
	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	sigverify "github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"github.com/waxseal/waxseal/pkg/attest"
)

// ahead is how far somebody else's clock may be ahead of ours.
const ahead = 5 * time.Minute

// Checker judges signatures under one trust, as of one moment. Make one with
// NewChecker. It is safe for concurrent use, and cheap: what is costly to prove
// is remembered by the Roots and CAs.
type Checker struct {
	trust     Trust
	now       time.Time
	instances []*instance
	clock     *material // what proves the time of a signature by a key; nil: nothing
}

// NewChecker makes a Checker. now is the time of the decision. Trust that could
// accept nothing by a certificate, although it speaks of certificates, is an
// error.
func NewChecker(trust Trust, now time.Time) (*Checker, error) {
	c := &Checker{trust: trust, now: now}
	for _, r := range trust.Roots {
		if len(r.authorities) == 0 {
			continue // a log or a clock only
		}
		i, err := newInstance(r.name, r.id, &r.material, len(r.logs) > 0)
		if err != nil {
			return nil, err
		}
		c.instances = append(c.instances, i)
	}
	for _, ca := range trust.CAs {
		m := union(ca, trust.Roots)
		if len(m.logs) == 0 && len(m.stampers) == 0 {
			return nil, fmt.Errorf("trusting the CA %q: nothing would prove when its certificates were used; give a trusted root with a time-stamping authority or a log as well", ca.name)
		}
		i, err := newInstance(ca.name, ca.id, m, false)
		if err != nil {
			return nil, err
		}
		i.ca = ca
		c.instances = append(c.instances, i)
	}
	if len(trust.Roots) > 0 {
		c.clock = union(&CA{}, trust.Roots)
	}
	return c, nil
}

// Check accepts b when it carries exactly one signature over an in-toto
// statement that has subject among its subjects, made by one of the trusted
// keys, or by the holder of a certificate that leads to a trusted root and
// names a trusted identity, at a proven time when all of it was valid. Any
// other error than a *Rejection does not occur. The key hint of the bundle is
// not trusted: it only says which key to try first.
func (c *Checker) Check(b *attest.Bundle, subject attest.Digest) (*Accepted, error) {
	return c.check(b, func(st *attest.Statement) *Rejection {
		if st.Binds(subject) {
			return nil
		}
		return rejectf(CodeSubject, "its subject is %s, not this digest", firstSubject(st))
	})
}

// CheckCommit is Check for a statement about a git commit, by the whole of its
// id in hex.
func (c *Checker) CheckCommit(b *attest.Bundle, commit string) (*Accepted, error) {
	return c.check(b, func(st *attest.Statement) *Rejection {
		if len(st.Commits(commit)) > 0 {
			return nil
		}
		return rejectf(CodeSubject, "its subject is not the commit %s", clip(commit))
	})
}

func (c *Checker) check(b *attest.Bundle, bound func(*attest.Statement) *Rejection) (*Accepted, error) {
	st := b.Statement()
	if st == nil {
		return nil, rejectf(CodePayloadType, "it signs plain bytes, not an in-toto statement")
	}
	if r := c.form(b); r != nil {
		return nil, r
	}
	// Cheap, and true whoever signed it: the signature need not be computed
	// for a statement that does not speak of this subject.
	if r := bound(st); r != nil {
		return nil, r
	}
	signer, r := c.signer(b, sigverify.WithoutArtifactUnsafe)
	if r != nil {
		return nil, r
	}
	return &Accepted{bundle: b.Digest(), statement: st, signer: signer}, nil
}

// Artifact is a file that a bundle may have been made for.
type Artifact struct {
	// Digest is its sha256.
	Digest attest.Digest
	// Content is its bytes; nil where only the digest is known.
	Content []byte
}

// CheckArtifact is Check for any file: by a statement that names its digest, or
// by a signature over its bytes. An image is judged by statements only.
func (c *Checker) CheckArtifact(b *attest.Bundle, a Artifact) (Signer, error) {
	if b.Statement() != nil {
		ok, err := c.Check(b, a.Digest)
		if err != nil {
			return Signer{}, err
		}
		return ok.Signer(), nil
	}
	if r := c.form(b); r != nil {
		return Signer{}, r
	}
	sum, err := hex.DecodeString(a.Digest.Hex())
	if err != nil || len(sum) != sha256.Size {
		return Signer{}, rejectf(CodeSubject, "%q is not a sha256 digest", clip(string(a.Digest)))
	}
	said := b.Proto().GetMessageSignature().GetMessageDigest()
	if said.GetAlgorithm() == protocommon.HashAlgorithm_SHA2_256 && !bytes.Equal(said.GetDigest(), sum) {
		return Signer{}, rejectf(CodeSubject, "it was made for sha256:%x, not for this file", said.GetDigest())
	}
	artifact := func() sigverify.ArtifactPolicyOption {
		if a.Content != nil {
			return sigverify.WithArtifact(bytes.NewReader(a.Content))
		}
		return sigverify.WithArtifactDigest("sha256", sum)
	}
	signer, r := c.signer(b, artifact)
	if r != nil {
		return Signer{}, r
	}
	return signer, nil
}

// toArtifact binds one verification to what was signed; each takes its own, for
// it reads the content.
type toArtifact func() sigverify.ArtifactPolicyOption

// form refuses what no trust could accept.
func (c *Checker) form(b *attest.Bundle) *Rejection {
	if e := b.Proto().GetDsseEnvelope(); e != nil {
		// DSSE v1.0.2, protocol: the payload type is authenticated, and must be
		// what the reader expects before the payload is believed.
		if t := e.GetPayloadType(); t != attest.PayloadType {
			return rejectf(CodePayloadType, "the envelope's payloadType is %q, not %q", clip(t), attest.PayloadType)
		}
		if n := len(e.GetSignatures()); n != 1 {
			return rejectf(CodeSignatures, "the envelope carries %d signatures; exactly one is accepted", n)
		}
	}
	if signedByKey(b) {
		if len(c.trust.Keys) == 0 {
			return rejectf(CodeNoKey, "no key was given to check its signature with")
		}
		return nil
	}
	switch {
	case len(c.instances) == 0:
		return rejectf(CodeCertificate, "signed with a certificate, and no trusted root was given to check it with")
	case len(c.trust.Identities) == 0:
		return rejectf(CodeIdentity, "signed with a certificate, and nobody's certificates are trusted")
	}
	return nil
}

func signedByKey(b *attest.Bundle) bool {
	return b.Proto().GetVerificationMaterial().GetPublicKey() != nil
}

// signer contains what the libraries do with a stranger's bytes: a bundle that
// makes one of them panic is rejected like any other that cannot be read, and
// does not keep the rest from being judged.
func (c *Checker) signer(b *attest.Bundle, artifact toArtifact) (s Signer, r *Rejection) {
	defer func() {
		if p := recover(); p != nil {
			s, r = Signer{}, rejectf(CodeUnreadable, "reading it ended in a panic: %s", clip(fmt.Sprint(p)))
		}
	}()
	if signedByKey(b) {
		return c.byKey(b, artifact)
	}
	return c.byCertificate(b, artifact)
}

// byCertificate tries each instance on its own: a certificate of one with a log
// entry of another proves nothing.
func (c *Checker) byCertificate(b *attest.Bundle, artifact toArtifact) (Signer, *Rejection) {
	if err := lightEntries(b.Proto()); err != nil {
		return Signer{}, rejectf(CodeLog, "reading its log entry: %s", clip(err.Error()))
	}
	parsed, err := bundle.NewBundle(b.Proto())
	if err != nil {
		return Signer{}, rejectf(unreadable(b), "reading its verification material: %s", clip(err.Error()))
	}
	e := &entity{Bundle: parsed, along: along(b.Proto()), stapled: b.Stapled()}
	if content, err := e.VerificationContent(); err == nil && content.Certificate() != nil && costly(content.Certificate()) {
		return Signer{}, rejectf(CodeChain, "%s", tooLarge)
	}
	var best *Rejection
	for _, i := range c.instances {
		signer, r := i.verify(e, artifact)
		if r != nil && r.Code == CodeLog && c.outages() {
			signer, r = i.unlogged(e, artifact, r)
		}
		if r == nil {
			r = c.judge(&signer)
		}
		if r == nil {
			r = i.standing(e, signer, c.now)
		}
		if r == nil {
			return signer, nil
		}
		if best == nil || reach(r.Code) > reach(best.Code) {
			best = r
		}
	}
	return Signer{}, best
}

// unreadable tells a log entry that is none from a bundle that is none.
func unreadable(b *attest.Bundle) Code {
	p := b.Proto()
	without := &protobundle.Bundle{MediaType: p.GetMediaType(), Content: p.GetContent(), VerificationMaterial: &protobundle.VerificationMaterial{
		Content: p.GetVerificationMaterial().GetContent(), TimestampVerificationData: p.GetVerificationMaterial().GetTimestampVerificationData(),
	}}
	if _, err := bundle.NewBundle(without); err == nil {
		return CodeLog
	}
	return CodeUnreadable
}

// outages reports whether anybody's signatures may be in no log.
func (c *Checker) outages() bool {
	return slices.ContainsFunc(c.trust.Identities, func(id Identity) bool { return len(id.outages) > 0 })
}

// judge says whether a verified certificate counts.
func (c *Checker) judge(s *Signer) *Rejection {
	if s.last.After(c.now.Add(ahead)) {
		return rejectf(CodeTime, "it was signed at %s, which is still to come", s.last.UTC().Format(time.RFC3339))
	}
	var late *Rejection
	for _, id := range c.trust.Identities {
		if !id.names(*s) || c.trust.Only != nil && !slices.ContainsFunc(c.trust.Only, func(o Identity) bool { return o.names(*s) }) {
			continue
		}
		reason, logged := id.logs(*s)
		switch {
		case !logged:
			late = rejectf(CodeLog, "it has no entry in a transparency log, and was signed at %s, in no outage that the policy makes allowance for", s.first.UTC().Format(time.RFC3339))
		case s.during(id.window):
			s.Unlogged = reason
			return nil
		case !id.window.Revoked.IsZero():
			late = s.revoked(id.window)
		default:
			late = rejectf(CodeTime, "%s signed it at %s, when that identity's signatures do not count", s, s.first.UTC().Format(time.RFC3339))
		}
	}
	if late != nil {
		return late
	}
	return rejectf(CodeIdentity, "its certificate was issued to %s, who is not trusted", s)
}

// revoked says why a signature by a revoked signer does not count.
func (s Signer) revoked(w Window) *Rejection {
	when := "it was signed at " + s.Time.UTC().Format(time.RFC3339)
	if s.Time.IsZero() {
		when = "nothing that is trusted proves that it was signed before"
	}
	return rejectf(CodeTime, "%s was %s, and %s", s, w.revocation(), when)
}

// reach orders rejections by how far the certificate got.
func reach(code Code) int {
	return slices.Index([]Code{CodeUnreadable, CodeLog, CodeTime, CodeChain, CodeSignature, CodeIdentity, CodeRevoked, CodeRevocation}, code)
}

// entity is a bundle whose parts are parsed once.
type entity struct {
	*bundle.Bundle
	along   []*x509.Certificate // certificates that came with the signer's; nobody vouches for them
	stapled [][]byte            // OCSP responses, likewise
	entries []*tlog.Entry
	content sigverify.VerificationContent
	signed  sigverify.SignatureContent
}

func (e *entity) TlogEntries() (_ []*tlog.Entry, err error) {
	if e.entries == nil {
		e.entries, err = e.Bundle.TlogEntries()
	}
	return e.entries, err
}

func (e *entity) VerificationContent() (_ sigverify.VerificationContent, err error) {
	if e.content == nil {
		e.content, err = e.Bundle.VerificationContent()
	}
	return e.content, err
}

func (e *entity) SignatureContent() (_ sigverify.SignatureContent, err error) {
	if e.signed == nil {
		e.signed, err = e.Bundle.SignatureContent()
	}
	return e.signed, err
}

// instance verifies certificates under one root.
type instance struct {
	name     string
	id       attest.Digest
	material *material
	logged   bool // an entry in one of its logs is required
	ca       *CA  // of one's own; nil: Sigstore's
}

func newInstance(name string, id attest.Digest, m *material, logged bool) (*instance, error) {
	i := &instance{name: name, id: id, material: m, logged: logged}
	if _, err := i.verifier(m, logged); err != nil {
		return nil, fmt.Errorf("trusting %q: %w", name, err)
	}
	return i, nil
}

// verifier asks for what the instance is able to give: an entry in its log, and
// a time from its log or its time-stamping authority.
func (i *instance) verifier(m *material, logged bool) (*sigverify.Verifier, error) {
	opts := []sigverify.VerifierOption{sigverify.WithObserverTimestamps(1), sigverify.WithoutStatementPredicate()}
	if logged {
		opts = append(opts, sigverify.WithTransparencyLog(1))
	}
	return sigverify.NewVerifier(m, opts...)
}

func (i *instance) verify(e *entity, artifact toArtifact) (Signer, *Rejection) {
	// A CA of one's own has no log of its own: an entry in a log is one way to
	// prove the time, a time stamp the other.
	logged := i.logged || i.knows(e)
	m := i.with(e)
	s, r := i.under(m, e, artifact, logged)
	if r != nil {
		return Signer{}, r
	}
	// The library asks whether a log was in use only where the log itself
	// proves the time.
	if idle := m.idle(e, s); len(idle) > 0 {
		if _, r = i.under(m.without(idle), e, artifact, logged); r != nil {
			return Signer{}, rejectf(CodeTime, "it was signed at %s, when the key of its log was not in use", s.first.UTC().Format(time.RFC3339))
		}
	}
	return s, nil
}

// with is the material with the links of the chain that the entity brings along.
// A Sigstore instance's trusted root has them all.
func (i *instance) with(e *entity) *material {
	if i.ca == nil || len(e.along) == 0 {
		return i.material
	}
	return &material{authorities: i.ca.with(e.along), stampers: i.material.stampers, logs: i.material.logs, ctlogs: i.material.ctlogs}
}

// standing says whether a certificate that was verified had been revoked.
func (i *instance) standing(e *entity, s Signer, now time.Time) *Rejection {
	if i.ca == nil {
		return nil
	}
	r := i.ca.hearing(e.stapled)
	if !r.needed && len(r.stapled) == 0 {
		return nil
	}
	leaf, err := e.VerificationContent()
	if err != nil {
		return rejectf(CodeUnreadable, "reading its certificate: %v", err)
	}
	return i.with(e).standing(r, leaf.Certificate(), s, now)
}

// unlogged judges what has no entry in a log as if the instance had none. What
// was refused for the entry that it has stays so.
func (i *instance) unlogged(e *entity, artifact toArtifact, refused *Rejection) (Signer, *Rejection) {
	if entries, err := e.TlogEntries(); err != nil || len(entries) > 0 {
		return Signer{}, refused
	}
	s, r := i.under(i.material, e, artifact, false)
	s.unlogged = true
	return s, r
}

// knows reports whether the entity has an entry in a log of the instance.
func (i *instance) knows(e *entity) bool {
	entries, err := e.TlogEntries()
	return err == nil && slices.ContainsFunc(entries, func(t *tlog.Entry) bool { return i.material.logs[logID(t.LogKeyID())] != nil })
}

// idle lists the logs of the entity's entries that were not in use when it was
// signed.
func (m *material) idle(e *entity, s Signer) []string {
	var out []string
	entries, err := e.TlogEntries()
	if err != nil {
		return nil // they were read before
	}
	for _, t := range entries {
		id := logID(t.LogKeyID())
		l := m.logs[id]
		if l == nil || t.HasInclusionPromise() {
			continue
		}
		if w := (Window{From: l.ValidityPeriodStart, Until: l.ValidityPeriodEnd}); !w.Holds(s.first) || !w.Holds(s.last) {
			out = append(out, id)
		}
	}
	return out
}

func (i *instance) under(m *material, e *entity, artifact toArtifact, logged bool) (Signer, *Rejection) {
	v, err := i.verifier(m, logged)
	if err != nil {
		return Signer{}, rejectf(CodeUnreadable, "%v", err)
	}
	// Who signed is compared by Checker.judge, under identities that have more
	// to say than the library's.
	res, err := v.Verify(e, sigverify.NewPolicy(artifact(), sigverify.WithoutIdentitiesUnsafe()))
	if err != nil {
		return Signer{}, m.diagnose(v, e, err)
	}
	cert := res.Signature.Certificate
	if cert == nil || len(res.VerifiedTimestamps) == 0 {
		return Signer{}, rejectf(CodeUnreadable, "no certificate, or no time, was verified")
	}
	s := Signer{Issuer: cert.Issuer, SAN: cert.SubjectAlternativeName, Root: i.name, Run: runOf(cert), anchor: i.id}
	for _, t := range res.VerifiedTimestamps {
		s.at(t.Timestamp)
	}
	s.Time = s.first
	leaf, err := e.VerificationContent()
	if err != nil {
		return Signer{}, rejectf(CodeUnreadable, "reading its certificate: %v", err)
	}
	if why := unfit(leaf.Certificate()); why != "" {
		return Signer{}, rejectf(CodeChain, "%s", why)
	}
	if err := m.transparent(leaf.Certificate(), s.first); err != nil {
		return Signer{}, rejectf(CodeChain, "its certificate is not proved to stand in a certificate transparency log: %s", clip(err.Error()))
	}
	return s, nil
}

func (s *Signer) at(t time.Time) {
	t = t.UTC() // what is printed depends on no machine
	if s.first.IsZero() || t.Before(s.first) {
		s.first = t
	}
	if t.After(s.last) {
		s.last = t
	}
}

// diagnose takes the steps of a refused verification one by one, for the class
// of the reason. It never makes an acceptance of it.
func (m *material) diagnose(v *sigverify.Verifier, e *entity, refused error) *Rejection {
	content, err := e.VerificationContent()
	if err != nil || content.Certificate() == nil {
		return rejectf(CodeUnreadable, "reading its certificate: %s", clip(refused.Error()))
	}
	leaf := content.Certificate()
	logged, err := v.VerifyTransparencyLogInclusion(e)
	if err != nil {
		entries, _ := e.TlogEntries()
		for _, t := range entries {
			at := t.IntegratedTime()
			if l := m.logs[logID(t.LogKeyID())]; l == nil || at.IsZero() {
				continue
			} else if !content.ValidAtTime(at, m) || !(Window{From: l.ValidityPeriodStart, Until: l.ValidityPeriodEnd}).Holds(at) {
				return rejectf(CodeTime, "its log entry is of %s, when its certificate or the log's key was not valid: %s", at.UTC().Format(time.RFC3339), clip(err.Error()))
			}
		}
		return rejectf(CodeLog, "its entry in a transparency log does not hold: %s", clip(err.Error()))
	}
	times, err := v.VerifyObserverTimestamps(e, logged)
	if err != nil {
		return rejectf(CodeTime, "nothing that is trusted proves when it was signed: %s", clip(err.Error()))
	}
	if _, err := certificate.SummarizeCertificate(leaf); err != nil {
		return rejectf(CodeChain, "%s", namesNobody)
	}
	for _, t := range times {
		if !content.ValidAtTime(t.Timestamp, m) {
			return rejectf(CodeTime, "it was signed at %s, and its certificate is valid from %s to %s only", t.Timestamp.UTC().Format(time.RFC3339),
				leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
		}
		if why := m.broken(leaf, t.Timestamp); why != "" {
			return rejectf(CodeChain, "%s", why)
		}
	}
	return rejectf(CodeSignature, "its certificate's key did not make its signature, or it was changed after it was signed")
}

// byKey tries the keys. What a long-lived key signed needs no log; where a
// key's window has an end, a log or a time stamp proves what it signed before.
func (c *Checker) byKey(b *attest.Bundle, artifact toArtifact) (Signer, *Rejection) {
	e, err := stripped(b)
	if err != nil {
		return Signer{}, rejectf(CodeUnreadable, "reading its envelope: %v", err)
	}
	var late *Rejection
	for _, k := range inHintOrder(c.trust.Keys, b.KeyHint()) {
		if !k.made(e, artifact) {
			continue
		}
		s := Signer{Key: k.id, Name: k.name}
		for _, t := range c.proved(k, b) {
			s.at(t)
		}
		s.Time = s.first
		if s.first.IsZero() {
			s.first, s.last = c.now, c.now
		}
		switch {
		case s.last.After(c.now.Add(ahead)):
			late = rejectf(CodeTime, "it was signed at %s, which is still to come", s.last.UTC().Format(time.RFC3339))
		case s.during(k.window):
			return s, nil
		case !k.window.Revoked.IsZero():
			late = s.revoked(k.window)
		case s.Time.IsZero():
			late = rejectf(CodeTime, "%s counts%s only, and nothing that is trusted proves that it was signed in that time", s, k.window)
		default:
			late = rejectf(CodeTime, "%s counts%s only, and it was signed at %s", s, k.window, s.Time.UTC().Format(time.RFC3339))
		}
	}
	if late != nil {
		return Signer{}, late
	}
	return Signer{}, rejectf(CodeSignature, "no trusted key made its signature, or it was changed after it was signed")
}

// proved returns the times that the trusted logs and time-stamping authorities
// prove for a signature that k made. Only a key with a window is asked about.
func (c *Checker) proved(k Key, b *attest.Bundle) []time.Time {
	if k.window.IsZero() || c.clock == nil {
		return nil
	}
	if lightEntries(b.Proto()) != nil {
		return nil
	}
	parsed, err := bundle.NewBundle(b.Proto())
	if err != nil {
		return nil
	}
	e := &entity{Bundle: parsed}
	var out []time.Time
	for _, v := range k.verifiers {
		m := root.TrustedMaterialCollection{&oneKey{Verifier: v}, c.clock}
		logged := (&instance{material: c.clock}).knows(e)
		opts := []sigverify.VerifierOption{sigverify.WithObserverTimestamps(1)}
		if logged {
			opts = append(opts, sigverify.WithTransparencyLog(1))
		}
		sv, err := sigverify.NewVerifier(m, opts...)
		if err != nil {
			continue
		}
		// An entry that does not hold proves nothing; a stamp beside it may.
		inLog, err := sv.VerifyTransparencyLogInclusion(e)
		if err != nil {
			inLog = nil
		}
		times, err := sv.VerifyObserverTimestamps(e, inLog)
		if err != nil {
			continue
		}
		for _, t := range times {
			out = append(out, t.Timestamp)
		}
		break
	}
	return out
}

// inHintOrder tries the key that the bundle hints at first. cosign's hint is
// the base64 of the same sha256 that is Key.ID.
func inHintOrder(keys []Key, hint string) []Key {
	if hint == "" {
		return keys
	}
	for i, k := range keys {
		if k.Hint() == hint && i > 0 {
			out := append([]Key{k}, keys[:i]...)
			return append(out, keys[i+1:]...)
		}
	}
	return keys
}

// stripped is the bundle without what is not authenticated or not asked for:
// key ids and hints, which must not hide a good signature, and log entries,
// which a long-lived key does not need.
func stripped(b *attest.Bundle) (*bundle.Bundle, error) {
	out := &protobundle.Bundle{
		MediaType: attest.BundleMediaType,
		VerificationMaterial: &protobundle.VerificationMaterial{
			Content: &protobundle.VerificationMaterial_PublicKey{PublicKey: &protocommon.PublicKeyIdentifier{}},
		},
	}
	if m := b.Proto().GetMessageSignature(); m != nil {
		out.Content = &protobundle.Bundle_MessageSignature{MessageSignature: m}
		return bundle.NewBundle(out)
	}
	e := b.Proto().GetDsseEnvelope()
	env := &protodsse.Envelope{PayloadType: e.GetPayloadType(), Payload: e.GetPayload()}
	for _, s := range e.GetSignatures() {
		env.Signatures = append(env.Signatures, &protodsse.Signature{Sig: s.GetSig()})
	}
	out.Content = &protobundle.Bundle_DsseEnvelope{DsseEnvelope: env}
	return bundle.NewBundle(out)
}

func (k Key) made(b *bundle.Bundle, artifact toArtifact) bool {
	for _, v := range k.verifiers {
		// No log and no time stamp: whether the key counted at the time is for
		// the caller. A statement's subject was bound by Check.
		sv, err := sigverify.NewVerifier(&oneKey{Verifier: v}, sigverify.WithNoObserverTimestamps(), sigverify.WithoutStatementPredicate())
		if err != nil {
			return false
		}
		if _, err := sv.Verify(b, sigverify.NewPolicy(artifact(), sigverify.WithKey())); err == nil {
			return true
		}
	}
	return false
}

// oneKey is trusted material that is a single public key.
type oneKey struct {
	root.BaseTrustedMaterial
	signature.Verifier
}

func (k *oneKey) PublicKeyVerifier(string) (root.TimeConstrainedVerifier, error) {
	return root.NewExpiringKey(k.Verifier, time.Time{}, time.Time{}), nil
}
