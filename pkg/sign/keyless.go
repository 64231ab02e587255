package sign

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/sigstore/sigstore-go/pkg/fulcio/certificate"
	"github.com/sigstore/sigstore-go/pkg/root"
	sgsign "github.com/sigstore/sigstore-go/pkg/sign"

	"github.com/waxseal/waxseal/pkg/attest"
)

// KeylessOptions configures OpenKeyless.
type KeylessOptions struct {
	// Token is where the identity token comes from. Required.
	Token TokenSource
	// Config is the signing config (JSON, v0.2): which Fulcio, which logs and
	// which time-stamping authorities. Required.
	Config []byte
	// Unlogged leaves out the transparency logs that Config names, for when they
	// are down. A time-stamping authority must be there.
	Unlogged bool
	// Check is asked about every bundle before Sign returns it: would the trusted
	// root accept it, as signed by whom its certificate names? Required.
	Check func(*attest.Bundle, Identity) error
	// Tell, where set, hears of what failed and is tried again.
	Tell func(text string)
	// Now is this machine's clock; default: time.Now.
	Now func() time.Time
	// Transport reaches the services; default: the usual one.
	Transport http.RoundTripper
}

// ArtifactSigner is a Signer that signs plain bytes as well. What OpenKeyless
// returns is one.
type ArtifactSigner interface {
	Signer
	// SignArtifact returns a Sigstore bundle v0.3 with a signature over content.
	SignArtifact(ctx context.Context, content []byte) (*attest.Bundle, error)
}

var _ ArtifactSigner = (*keyless)(nil)

// Identity is whom a certificate was issued to.
type Identity struct {
	Issuer string // of the identity token
	Name   string // the subject alternative name: a URI or a mail address
}

// KeylessError is the error of everything that keeps a keyless signer, or one of
// Stamp, from signing and that somebody can do something about.
type KeylessError struct {
	what string // "getting a certificate from …"
	err  error
	way  string
}

func (e *KeylessError) Error() string { return e.what + ": " + e.err.Error() }
func (e *KeylessError) Unwrap() error { return e.err }

// Hint is the way out.
func (e *KeylessError) Hint() string { return e.way }

// keyless signs with a key that lives in memory, and a certificate that names
// whose key it is. It makes the key and asks for the certificate when it signs
// first, so that a long build does not outlive it, and shares both among all that
// it signs.
type keyless struct {
	opts   KeylessOptions
	fulcio root.Service
	stamps []root.Service
	logs   []root.Service
	issuer string                     // of identity tokens, where a person is asked for one
	key    func() (*keySigner, error) // the same each time

	mu       sync.Mutex // one certificate, however many ask
	cert     []byte     // DER
	until    time.Time  // by our own clock
	identity Identity
}

// OpenKeyless returns a signer with a fresh key, whose owner a certificate
// authority (Fulcio) confirms by an identity token. Every bundle carries that
// certificate, a time stamp and a log entry, as the signing config says. No
// service is asked before the first Sign.
func OpenKeyless(opts KeylessOptions) (Signer, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Tell == nil {
		opts.Tell = func(string) {}
	}
	if opts.Transport == nil {
		opts.Transport = usualTransport()
	}
	s := &keyless{opts: opts}
	if err := s.services(); err != nil {
		return nil, fmt.Errorf("reading the signing config: %w", err)
	}
	s.key = sync.OnceValues(func() (*keySigner, error) {
		priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		return newKeySigner(priv)
	})
	return s, nil
}

// services picks whom to ask, of the newest API version that we speak.
func (s *keyless) services() error {
	if len(s.opts.Config) > attest.MaxTrustedRoot {
		return fmt.Errorf("it is larger than the %d bytes allowed", attest.MaxTrustedRoot)
	}
	if err := attest.UnmarshalStrict(s.opts.Config, nil); err != nil {
		return err
	}
	pb, err := root.NewSigningConfigProtobuf(s.opts.Config)
	if err != nil {
		return err
	}
	// The library takes both for granted.
	if len(pb.GetTsaUrls()) > 0 && pb.GetTsaConfig() == nil || len(pb.GetRekorTlogUrls()) > 0 && pb.GetRekorTlogConfig() == nil {
		return errors.New("it does not say how many of its logs or time-stamping authorities to ask (tsaConfig, rekorTlogConfig)")
	}
	c, err := root.NewSigningConfigFromProtobuf(pb)
	if err != nil {
		return err
	}
	now := s.opts.Now()
	if s.fulcio, err = root.SelectService(c.FulcioCertificateAuthorityURLs(), sgsign.FulcioAPIVersions, now); err != nil {
		return fmt.Errorf("certificate authorities: %w", err)
	}
	if all := c.TimestampAuthorityURLs(); len(all) > 0 {
		if s.stamps, err = root.SelectServices(all, c.TimestampAuthorityURLsConfig(), sgsign.TimestampAuthorityAPIVersions, now); err != nil {
			return fmt.Errorf("time-stamping authorities: %w", err)
		}
	}
	if all := c.RekorLogURLs(); len(all) > 0 && !s.opts.Unlogged {
		if s.logs, err = root.SelectServices(all, c.RekorLogURLsConfig(), sgsign.RekorAPIVersions, now); err != nil {
			return fmt.Errorf("transparency logs: %w", err)
		}
	}
	proves := len(s.stamps) > 0
	for _, l := range s.logs {
		proves = proves || l.MajorAPIVersion == 1
	}
	if !proves && s.opts.Unlogged {
		return errors.New("it names no time-stamping authority, so without a log nothing would prove when was signed")
	}
	if !proves {
		return errors.New("it names neither a time-stamping authority nor a Rekor v1 log, so nothing would prove when was signed")
	}
	asked := [][]root.Service{{s.fulcio}, s.stamps, s.logs}
	if all := c.OIDCProviderURLs(); len(all) > 0 && s.opts.Token.ask != nil {
		provider, err := root.SelectService(all, []uint32{1}, now)
		if err != nil {
			return fmt.Errorf("identity providers: %w", err)
		}
		s.issuer, asked = provider.URL, append(asked, []root.Service{provider})
	}
	for _, list := range asked {
		for _, one := range list {
			if err := checkAddress(one.URL); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *keyless) PublicKey() []byte {
	key, err := s.key()
	if err != nil {
		return nil
	}
	return key.PublicKey()
}

func (s *keyless) Close() error {
	key, err := s.key()
	if err != nil {
		return err
	}
	return key.Close()
}

func (s *keyless) Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error) {
	b, err := s.again(ctx, &sgsign.DSSEData{Data: st.Raw(), PayloadType: attest.PayloadType})
	if err == nil {
		err = s.made(b, st)
	}
	if err != nil {
		return nil, fmt.Errorf("signing statement %q: %w", st.PredicateType, err)
	}
	return b, nil
}

func (s *keyless) made(b *attest.Bundle, st *attest.Statement) error {
	key, err := s.key()
	if err != nil {
		return err
	}
	return key.verify(b, st)
}

// SignArtifact implements ArtifactSigner.
func (s *keyless) SignArtifact(ctx context.Context, content []byte) (*attest.Bundle, error) {
	b, err := s.again(ctx, &sgsign.PlainData{Data: content})
	if err != nil {
		return nil, fmt.Errorf("signing %d bytes: %w", len(content), err)
	}
	return b, nil
}

// again signs once more where a log has the signature already: a try that was
// thought lost had reached it. The next signature is another one.
func (s *keyless) again(ctx context.Context, content sgsign.Content) (*attest.Bundle, error) {
	b, err := s.sign(ctx, content)
	var other *answer
	if errors.As(err, &other) && other.status == http.StatusConflict {
		b, err = s.sign(ctx, content)
	}
	return b, err
}

func (s *keyless) sign(ctx context.Context, content sgsign.Content) (*attest.Bundle, error) {
	cert, identity, err := s.certificate(ctx)
	if err != nil {
		return nil, err
	}
	key, err := s.key()
	if err != nil {
		return nil, err
	}
	key.mu.RLock()
	defer key.mu.RUnlock()
	if key.priv == nil {
		return nil, errClosed
	}
	w := &wire{ctx: ctx, base: s.opts.Transport, tell: s.opts.Tell, now: s.opts.Now}
	opts := sgsign.BundleOptions{Context: ctx, CertificateProvider: held(cert)}
	for _, tsa := range s.stamps {
		opts.TimestampAuthorities = append(opts.TimestampAuthorities, sgsign.NewTimestampAuthority(&sgsign.TimestampAuthorityOptions{
			URL: tsa.URL, Timeout: -1, Transport: w.to("the time-stamping authority"),
		}))
	}
	for _, log := range s.logs {
		writer := &logWriter{ctx: ctx, address: log.URL, http: &http.Client{Transport: w.to(theLog)}}
		opts.TransparencyLogs = append(opts.TransparencyLogs, sgsign.NewRekor(&sgsign.RekorOptions{Version: log.MajorAPIVersion, Client: writer, ClientV2: writer}))
	}
	pb, err := sgsign.Bundle(content, fresh{keypair{key}}, opts)
	if err != nil {
		return nil, w.explain(err, "")
	}
	b, err := parseMade(pb)
	if err != nil {
		return nil, err
	}
	if err := s.opts.Check(b, identity); err != nil {
		return nil, &KeylessError{"checking what was just signed", err,
			w.clock("give the trusted root of the instance that the signing config names; nothing was written")}
	}
	return b, nil
}

// certificate returns the one that all signatures share, and gets another when
// it is about to end.
func (s *keyless) certificate(ctx context.Context) ([]byte, Identity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, Identity{}, err
	}
	if s.cert != nil && s.opts.Now().Before(s.until) {
		return s.cert, s.identity, nil
	}
	token, said, err := s.opts.Token.fetch(ctx, s.issuer, s.opts.Now())
	if err != nil {
		return nil, Identity{}, err
	}
	key, err := s.key()
	if err != nil {
		return nil, Identity{}, err
	}
	key.mu.RLock()
	defer key.mu.RUnlock()
	if key.priv == nil {
		return nil, Identity{}, errClosed
	}
	w := &wire{ctx: ctx, base: s.opts.Transport, tell: s.opts.Tell, now: s.opts.Now}
	fulcio := sgsign.NewFulcio(&sgsign.FulcioOptions{BaseURL: s.fulcio.URL, Timeout: -1, Transport: w.to("the certificate authority")})
	der, err := fulcio.GetCertificate(ctx, fresh{keypair{key}}, &sgsign.CertificateProviderOptions{IDToken: token})
	if err != nil {
		return nil, Identity{}, w.explain(err, s.opts.Token.refused(said))
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("reading the certificate from %s: %w", s.fulcio.URL, err)
	}
	names, err := certificate.SummarizeCertificate(cert)
	if err != nil {
		return nil, Identity{}, fmt.Errorf("reading the certificate from %s: %w", s.fulcio.URL, err)
	}
	s.cert, s.identity = der, Identity{Issuer: names.Issuer, Name: names.SubjectAlternativeName}
	// How long it lasts is told by its own two times: our clock may be off.
	s.until = s.opts.Now().Add(cert.NotAfter.Sub(cert.NotBefore) * 3 / 4)
	return s.cert, s.identity, nil
}

// held is a certificate as sigstore-go asks for one.
type held []byte

func (h held) GetCertificate(context.Context, sgsign.Keypair, *sgsign.CertificateProviderOptions) ([]byte, error) {
	return h, nil
}

// fresh makes another signature every time: a log takes each only once.
type fresh struct{ keypair }

func (f fresh) SignData(_ context.Context, data []byte) (sig, digest []byte, err error) {
	sum := sha256.Sum256(data)
	sig, err = f.s.priv.Sign(rand.Reader, sum[:], crypto.SHA256)
	return sig, sum[:], err
}
