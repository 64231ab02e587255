package cli

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

// anchorFlags are the flags of what certificates must lead to.
type anchorFlags struct {
	rootFlags
	caFlags
}

func (f *anchorFlags) register(fl *pflag.FlagSet) {
	f.rootFlags.register(fl)
	f.caFlags.register(fl)
}

// caFlags are the flags of a certificate authority of one's own.
type caFlags struct {
	caRoots       string
	intermediates string
	crls          []string
	ocsp          []string
	required      bool
}

func (f *caFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&f.caRoots, "ca-roots", "", "`FILE` (PEM) with the root certificates of a private CA; the time is proved by a --trusted-root or --timestamp-certificate-chain")
	fl.StringVar(&f.intermediates, "ca-intermediates", "", "`FILE` (PEM) with intermediate certificates of the --ca-roots, where evidence does not bring them along")
	fl.StringArrayVar(&f.crls, "ca-crl", nil, "`FILE` (PEM or DER) with certificate revocation lists of the CA: what was signed after its certificate was revoked does not count, nor does what no list and no OCSP response tells of; repeatable")
	fl.StringArrayVar(&f.ocsp, "ocsp-response", nil, "`FILE` (DER) with an OCSP responder's answer about one certificate of the CA, beside or in place of --ca-crl; beside --certificate it is stapled to what is signed; repeatable")
	fl.BoolVar(&f.required, "require-revocation", false, "let a certificate of the CA count only when a --ca-crl, an --ocsp-response, or an OCSP response stapled to the evidence tells that it and each between it and the root had not been revoked; so it is anyway where one of the first two is given")
}

// given reports whether any of them was.
func (f *caFlags) given() bool {
	return f.caRoots != "" || f.intermediates != "" || len(f.crls)+len(f.ocsp) > 0 || f.required
}

// check refuses what leads nowhere.
func (f *caFlags) check() error {
	for flag, given := range map[string]bool{"--ca-intermediates": f.intermediates != "", "--ca-crl": len(f.crls) > 0, "--ocsp-response": len(f.ocsp) > 0, "--require-revocation": f.required} {
		if given && f.caRoots == "" {
			return fmt.Errorf("%s: it is about the certificates of a CA; give that with --ca-roots FILE", flag)
		}
	}
	return nil
}

// read reads the CA; roots (PEM) stand in where --ca-roots names none. Nil: there
// is none.
func (f *caFlags) read(name string, roots []byte) (*verify.CA, error) {
	o := verify.CAOptions{Roots: roots, Required: f.required}
	var err error
	if f.caRoots != "" {
		name = f.caRoots
		if o.Roots, err = readSmall(f.caRoots, attest.MaxTrustedRoot); err != nil {
			return nil, fmt.Errorf("reading CA certificates %q: %w", f.caRoots, err)
		}
	}
	if o.Roots == nil {
		return nil, nil
	}
	if f.intermediates != "" {
		if o.Intermediates, err = readSmall(f.intermediates, attest.MaxTrustedRoot); err != nil {
			return nil, fmt.Errorf("reading CA certificates %q: %w", f.intermediates, err)
		}
	}
	for _, path := range f.crls {
		raw, err := readSmall(path, attest.MaxCRL)
		if err != nil {
			return nil, fmt.Errorf("reading certificate revocation list %q: %w", path, err)
		}
		o.CRLs = append(o.CRLs, verify.File{Name: path, Raw: raw})
	}
	if o.OCSP, err = f.readOCSP(); err != nil {
		return nil, err
	}
	return verify.ParseCA(name, o)
}

func (f *caFlags) readOCSP() ([]verify.File, error) {
	var out []verify.File
	for _, path := range f.ocsp {
		raw, err := readSmall(path, attest.MaxOCSP)
		if err != nil {
			return nil, fmt.Errorf("reading OCSP response %q: %w", path, err)
		}
		out = append(out, verify.File{Name: path, Raw: raw})
	}
	return out, nil
}

// stampFlags are the flags of what a signature by a key brings along: whose the
// key is, and when it signed.
type stampFlags struct {
	certificate string
	chain       string
	servers     []string
	ask         bool
	both        bool // the command judges under the same --ca-roots, too
}

func (f *stampFlags) register(fl *pflag.FlagSet, keyFlag string) {
	fl.StringVar(&f.certificate, "certificate", "", "`FILE` (PEM) with the certificate that a CA issued for the --"+keyFlag+"; takes --timestamp-server-url")
	fl.StringVar(&f.chain, "certificate-chain", "", "`FILE` (PEM) with the certificates of the authorities above it; those between it and the root go into the bundle, which is v0.2 then: cosign takes such from files only, so leave this out for it and give --ca-roots and --ca-intermediates")
	fl.StringArrayVar(&f.servers, "timestamp-server-url", nil, "`URL` of a time-stamping authority (RFC 3161) that proves when was signed; checked with --timestamp-certificate-chain or --trusted-root; repeatable, each is asked")
	fl.BoolVar(&f.ask, "ocsp", false, "with --certificate: ask the OCSP responder that it names, and those that the certificates above it name, and staple the answers to what is signed; they say to whoever verifies it later that the certificates had not been revoked")
	f.both = keyFlag != "key"
}

// wanted reports whether signatures bring anything along.
func (f *stampFlags) wanted() bool { return f.certificate != "" || len(f.servers) > 0 || f.ask }

// alone refuses a CA where nothing but a --certificate could lead to it.
func (f *stampFlags) alone(under anchorFlags) error {
	if f.certificate == "" && under.caFlags.given() {
		return usagef("--ca-roots, --ca-intermediates, --ca-crl, --ocsp-response and --require-revocation are for --certificate")
	}
	return nil
}

// check refuses what contradicts itself. key is what to sign with.
func (f *stampFlags) check(keyFlag, key string, under anchorFlags) error {
	switch {
	case f.chain != "" && f.certificate == "":
		return usagef("--certificate-chain: give the signer's own certificate with --certificate")
	case f.ask && f.certificate == "":
		return usagef("--ocsp: it asks about the signer's certificate; give that with --certificate")
	case !f.wanted():
		return nil
	case key == "":
		return usagef("--certificate and --timestamp-server-url are for a key: give it with --%s", keyFlag)
	case len(f.servers) == 0:
		return usagef("--certificate: it ends one day, and what it signed counts only with proof of when that was; give --timestamp-server-url URL")
	case len(under.roots) == 0 && under.stampChain == "" && under.sigstore == "":
		return usagef("--timestamp-server-url: give what its time stamps are checked with: --timestamp-certificate-chain FILE or --trusted-root FILE")
	}
	return nil
}

// stampedBy is the signer that a key becomes with what it brings along.
type stampedBy struct {
	chain   *sign.Chain
	ca      *verify.CA
	roots   []*verify.Root
	stapler *sign.Stapler // nil: nothing is stapled
}

// prepare reads all but the key, and refuses a certificate whose signatures would
// not count.
func (f *stampFlags) prepare(ctx context.Context, s *Streams, under anchorFlags) (*stampedBy, error) {
	var req gate.Request
	if err := under.readRoots(ctx, s, &req); err != nil {
		return nil, exitError{ExitUsage, err}
	}
	if req.Missing != nil {
		return nil, req.Missing
	}
	out := &stampedBy{roots: req.Roots}
	if f.certificate == "" {
		return out, nil
	}
	raw, err := readSmall(f.certificate, attest.MaxTrustedRoot)
	var above []byte
	if err == nil && f.chain != "" {
		above, err = readSmall(f.chain, attest.MaxTrustedRoot)
	}
	if err == nil {
		out.chain, err = sign.ParseChain(raw, above)
	}
	if err != nil {
		return nil, exitError{ExitUsage, fmt.Errorf("reading certificate %q: %w", f.certificate, err)}
	}
	// An answer goes along: it is judged as a verifier will.
	listed := under.caFlags
	listed.ocsp = nil
	if out.ca, err = listed.read(f.chain, out.chain.Roots); err != nil {
		return nil, exitError{ExitUsage, err}
	}
	if out.ca == nil {
		return nil, usagef("--certificate: what it signs is checked before it is written: give the CA's root certificate with --ca-roots FILE, or at the end of --certificate-chain")
	}
	var answers [][]byte
	if out.stapler, err = f.staples(s, out, under); err == nil && out.stapler != nil {
		answers, err = out.stapler.Answers(ctx)
	}
	if err != nil {
		return nil, err
	}
	if _, err := out.ca.Examine(out.chain.Leaf, out.chain.Between, answers, time.Now()); err != nil {
		return nil, hinted{fmt.Errorf("signing with the certificate %q: %w", f.certificate, err), unusable(err, out.chain.Leaf)}
	}
	return out, nil
}

// staples is what gets the OCSP responses that are stapled to what is signed; nil
// for none.
func (f *stampFlags) staples(s *Streams, by *stampedBy, under anchorFlags) (*sign.Stapler, error) {
	given, err := under.readOCSP()
	if err != nil {
		return nil, exitError{ExitUsage, err}
	}
	chains := by.ca.Chains(by.chain.Leaf, by.chain.Between, time.Now())
	if len(chains) == 0 {
		return nil, nil //nolint:nilnil // what it signed would not count: Examine says why
	}
	o := sign.StapleOptions{
		Chain: chains[0], Ask: f.ask, Check: func(raw []byte) error { return by.checkStaple(raw, time.Now()) },
		Tell: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) },
	}
	for _, file := range given {
		switch about, err := verify.CheckStaple(file.Raw, o.Chain, time.Now()); {
		case about:
			o.Given = append(o.Given, file.Raw)
		case err != nil:
			return nil, exitError{ExitUsage, fmt.Errorf("reading OCSP response %q: %w", file.Name, err)}
		case !f.both:
			return nil, usagef("--ocsp-response %q: it is about another certificate than the --certificate and those above that", file.Name)
		}
	}
	if !o.Ask && len(o.Given) == 0 {
		return nil, nil //nolint:nilnil // nothing is stapled
	}
	return sign.NewStapler(o)
}

// checkStaple says why an OCSP response, stapled to what was signed at a moment,
// would tell a verifier nothing.
func (b *stampedBy) checkStaple(raw []byte, at time.Time) error {
	for _, chain := range b.ca.Chains(b.chain.Leaf, b.chain.Between, at) {
		if about, err := verify.CheckStaple(raw, chain, at); about || err != nil {
			return err
		}
	}
	return errors.New("it is about another certificate")
}

// unusable is the way out where a certificate cannot be signed with.
func unusable(err error, leaf *x509.Certificate) string {
	var r *verify.Rejection
	if !errors.As(err, &r) {
		return "nothing was signed"
	}
	switch now := time.Now(); {
	case r.Code == verify.CodeTime && now.After(leaf.NotAfter):
		return "have the CA issue a new one; if it should still count, set this machine's clock"
	case r.Code == verify.CodeTime:
		return "set this machine's clock, or wait until the certificate begins"
	case r.Code == verify.CodeRevoked:
		return "have the CA issue a new one, for a new key"
	case r.Code == verify.CodeRevocation:
		return "give the CA's newest certificate revocation lists with --ca-crl, or have its OCSP responder asked with --ocsp"
	}
	return "have the CA issue one that has a URI or a mail address as subject alternative name, the key usage digitalSignature and the extended key usage codeSigning, and give all certificates between it and the root with --certificate-chain"
}

// around decorates the signer with what it brings along.
func (b *stampedBy) around(s *Streams, key sign.Signer, servers []string) (sign.Signer, error) {
	var answers func(context.Context) ([][]byte, error)
	if b.stapler != nil {
		answers = b.stapler.Answers
	}
	check := func(made *attest.Bundle) error { return b.checkKey(key.PublicKey(), made) }
	if b.ca != nil {
		check = b.checkCertificate
	}
	return sign.Stamp(key, sign.StampOptions{
		Chain: b.chain, Stampers: servers, Answers: answers, Check: check,
		Tell: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) },
	})
}

// checkCertificate judges what was just signed as verify will, with nothing but
// the roots.
func (b *stampedBy) checkCertificate(made *attest.Bundle) error {
	who, err := b.ca.Examine(b.chain.Leaf, b.chain.Between, made.Stapled(), time.Now())
	if err != nil {
		return err
	}
	id, err := verify.NewIdentity(verify.IdentityOptions{SAN: who.SAN, Anchor: b.ca.ID(), AnchorIsCA: true})
	if err != nil {
		return err
	}
	by, err := judgeMade(verify.Trust{CAs: []*verify.CA{b.ca}, Roots: b.roots, Identities: []verify.Identity{id}}, made, time.Now())
	if err != nil {
		return err
	}
	for _, raw := range made.Stapled() {
		if err := b.checkStaple(raw, by.Time); err != nil {
			return err
		}
	}
	return nil
}

// checkKey sees that the roots prove the time of what was just signed.
func (b *stampedBy) checkKey(public []byte, made *attest.Bundle) error {
	key, err := verify.ParseKey("the key", public)
	if err != nil {
		return err
	}
	// A key that ends one day counts by proven times.
	by, err := judgeMade(verify.Trust{Roots: b.roots, Keys: []verify.Key{key.During(verify.Window{Until: time.Now().AddDate(100, 0, 0)})}}, made, time.Now())
	if err == nil && by.Time.IsZero() {
		err = errors.New("its time stamp does not lead to a trusted time-stamping authority")
	}
	return err
}
