package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/digitorus/timestamp"
	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	"github.com/sigstore/sigstore/pkg/cryptoutils"
	"google.golang.org/protobuf/proto"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
)

// maxChain bounds the certificates of one file.
const maxChain = 100

// Chain is a signer's certificate, and those of the authorities above it.
type Chain struct {
	Leaf *x509.Certificate
	// Between leads from Leaf's issuer up to the last whose issuer is not there, or
	// is a root.
	Between []*x509.Certificate
	// Roots are the self-signed certificates among them, PEM; nil: none.
	Roots []byte
}

// ParseChain reads a signer's certificate (PEM), which may have others after it,
// and those of the authorities above it in any order, which may be nil. That they
// are whole, and to be believed, is not for it to say.
func ParseChain(certificate, above []byte) (*Chain, error) {
	certs, err := certificates(certificate)
	if err != nil {
		return nil, err
	}
	c := &Chain{Leaf: certs[0]}
	rest := certs[1:]
	if above != nil {
		more, err := certificates(above)
		if err != nil {
			return nil, fmt.Errorf("its chain: %w", err)
		}
		rest = append(rest, more...)
	}
	if c.Leaf.IsCA {
		return nil, fmt.Errorf("%q is an authority's certificate; the signer's own comes first", clip(c.Leaf.Subject.String()))
	}
	for _, r := range rest {
		if bytes.Equal(r.RawSubject, r.RawIssuer) {
			c.Roots = append(c.Roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Raw})...)
		}
	}
	for last := c.Leaf; ; last = c.Between[len(c.Between)-1] {
		i := slices.IndexFunc(rest, func(r *x509.Certificate) bool {
			return bytes.Equal(r.RawSubject, last.RawIssuer) && last.CheckSignatureFrom(r) == nil
		})
		if i < 0 || bytes.Equal(rest[i].RawSubject, rest[i].RawIssuer) || slices.Contains(c.Between, rest[i]) {
			return c, nil
		}
		c.Between = append(c.Between, rest[i])
	}
}

func certificates(raw []byte) ([]*x509.Certificate, error) {
	if len(raw) > attest.MaxTrustedRoot {
		return nil, fmt.Errorf("it is larger than the %d bytes allowed", attest.MaxTrustedRoot)
	}
	var out []*x509.Certificate
	for rest := raw; ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		switch {
		case block == nil && len(bytes.TrimSpace(rest)) > 0 && len(out) == 0:
			return nil, errors.New(`not PEM (want a file that starts with "-----BEGIN CERTIFICATE-----"; rewrite DER with: openssl x509 -inform DER -in FILE -out FILE.pem)`)
		case block == nil && len(bytes.TrimSpace(rest)) > 0:
			return nil, errors.New("data that is not PEM")
		case block == nil && len(out) == 0:
			return nil, errors.New("it has no certificate")
		case block == nil:
			return out, nil
		case block.Type != "CERTIFICATE":
			return nil, fmt.Errorf("PEM block is %q, want \"CERTIFICATE\"", clip(block.Type))
		case len(out) == maxChain:
			return nil, fmt.Errorf("more than %d certificates", maxChain)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, cert)
	}
}

// StampOptions configures Stamp.
type StampOptions struct {
	// Chain certifies the key; nil: the bundle names the key alone.
	Chain *Chain
	// Stampers are the addresses of time-stamping authorities (RFC 3161 over
	// HTTP). Each is asked; at least one is required.
	Stampers []string
	// Answers returns the OCSP responses that go beside what is signed now, as
	// Stapler.Answers does; nil: none.
	Answers func(context.Context) ([][]byte, error)
	// Check is asked about every bundle before Sign returns it: would those that
	// are given to verify it accept it? Required.
	Check func(*attest.Bundle) error
	// Tell, where set, hears of what failed and is tried again.
	Tell func(text string)
	// Now is this machine's clock; default: time.Now.
	Now func() time.Time
	// Transport reaches the authorities; default: the usual one.
	Transport http.RoundTripper
}

// stamped is a signer whose bundles say when, and by whose certificate.
type stamped struct {
	Signer
	opts      StampOptions
	certified []byte // the key of the certificate, PEM; nil: there is none
}

// Stamp returns the signer that signs as key does and adds time stamps, and the
// certificate of the key where there is one. Its bundles are v0.3; but where
// certificates between the signer's and the root come along they are v0.2, the
// last version with a place for them that verifiers accept unasked. OCSP responses
// are stapled to them. Closing it closes key. Of a key of OpenLate's, Ready says
// whether it is the certificate's.
func Stamp(key Signer, opts StampOptions) (Signer, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Tell == nil {
		opts.Tell = func(string) {}
	}
	if opts.Transport == nil {
		opts.Transport = usualTransport()
	}
	if len(opts.Stampers) == 0 {
		return nil, errors.New("nothing would prove when was signed: no time-stamping authority is named")
	}
	for _, address := range opts.Stampers {
		// What it says is signed, and checked: http will do.
		if u, err := url.Parse(address); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
			return nil, fmt.Errorf("%q is no address of a time-stamping authority", clip(address))
		}
	}
	made := &stamped{Signer: key, opts: opts}
	if c := opts.Chain; c != nil {
		var err error
		if made.certified, err = cryptoutils.MarshalPublicKeyToPEM(c.Leaf.PublicKey); err != nil {
			return nil, fmt.Errorf("the certificate's key is of a kind that does not sign here: %w", err)
		}
	}
	if _, later := key.(*late); !later {
		if err := made.owns(key.PublicKey()); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// owns refuses a key that the certificate is not about.
func (s *stamped) owns(public []byte) error {
	if s.certified == nil || bytes.Equal(s.certified, public) {
		return nil
	}
	return fmt.Errorf("the certificate (serial number %x) is another key's: it certifies %s, and this is %s", s.opts.Chain.Leaf.SerialNumber, keyID(s.certified), keyID(public))
}

// Ready is that of OpenLate's signer.
func (s *stamped) Ready(ctx context.Context) error {
	l, ok := s.Signer.(*late)
	if !ok {
		return nil
	}
	if err := l.Ready(ctx); err != nil {
		return err
	}
	if err := s.owns(l.tried()); err != nil {
		return fmt.Errorf("signing with %q: %w", keys.Name(l.ref), err)
	}
	return nil
}

// keyID is the sha256 of a key's PKIX form, as verifiers name it, cut short.
func keyID(public []byte) string {
	block, _ := pem.Decode(public)
	if block == nil {
		return "no key"
	}
	return fmt.Sprintf("key sha256:%.6x…", sha256.Sum256(block.Bytes))
}

func (s *stamped) Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error) {
	if err := s.Ready(ctx); err != nil {
		return nil, err
	}
	b, err := s.Signer.Sign(ctx, st)
	if err != nil {
		return nil, err
	}
	if b, err = s.complete(ctx, b); err != nil {
		return nil, fmt.Errorf("signing statement %q: %w", st.PredicateType, err)
	}
	return b, nil
}

// complete adds to a signed bundle what proves whose it is, and of when.
func (s *stamped) complete(ctx context.Context, signed *attest.Bundle) (*attest.Bundle, error) {
	pb, ok := proto.Clone(signed.Proto()).(*protobundle.Bundle)
	if !ok || len(pb.GetDsseEnvelope().GetSignatures()) != 1 {
		return nil, errors.New("the key's bundle is not one signature")
	}
	material := pb.VerificationMaterial
	if c := s.opts.Chain; c != nil {
		leaf := &protocommon.X509Certificate{RawBytes: c.Leaf.Raw}
		material.Content = &protobundle.VerificationMaterial_Certificate{Certificate: leaf}
		if len(c.Between) > 0 {
			chain := &protocommon.X509CertificateChain{Certificates: []*protocommon.X509Certificate{leaf}}
			for _, b := range c.Between {
				chain.Certificates = append(chain.Certificates, &protocommon.X509Certificate{RawBytes: b.Raw})
			}
			material.Content = &protobundle.VerificationMaterial_X509CertificateChain{X509CertificateChain: chain}
			pb.MediaType = attest.BundleV02MediaType
		}
	}
	var stapled [][]byte
	if s.opts.Answers != nil {
		var err error
		if stapled, err = s.opts.Answers(ctx); err != nil {
			return nil, err
		}
	}
	w := &wire{ctx: ctx, base: s.opts.Transport, tell: s.opts.Tell, now: s.opts.Now, flag: "--timestamp-server-url"}
	material.TimestampVerificationData = &protobundle.TimestampVerificationData{}
	for _, address := range s.opts.Stampers {
		raw, err := w.stamp(address, pb.GetDsseEnvelope().GetSignatures()[0].GetSig())
		if err != nil {
			return nil, err
		}
		material.TimestampVerificationData.Rfc3161Timestamps = append(material.TimestampVerificationData.Rfc3161Timestamps,
			&protocommon.RFC3161SignedTimestamp{SignedTimestamp: raw})
	}
	b, err := parseMade(pb)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(b.Statement().Raw(), signed.Statement().Raw()) || !Made(s.PublicKey(), b) {
		return nil, errors.New("the fresh signature does not verify")
	}
	b = b.Staple(stapled...)
	if err := s.opts.Check(b); err != nil {
		return nil, &KeylessError{"checking what was just signed", err, w.clock("see that the roots are those of this certificate and of this time-stamping authority; nothing was written")}
	}
	return b, nil
}

// stamp has an authority say when a signature was there: RFC 3161, section 3.4.
// The answer brings the authority's certificate along; whether it is to be
// believed is for the check.
func (w *wire) stamp(address string, sig []byte) ([]byte, error) {
	sum := sha256.Sum256(sig)
	nonce, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 64))
	if err != nil {
		return nil, err
	}
	query, err := (&timestamp.Request{HashAlgorithm: crypto.SHA256, HashedMessage: sum[:], Certificates: true, Nonce: nonce}).Marshal()
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(w.ctx, http.MethodPost, address, bytes.NewReader(query))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/timestamp-query")
	resp, err := (&http.Client{Transport: w.to("the time-stamping authority")}).Do(req)
	if err != nil {
		return nil, w.explain(err, "see that this is the address that its operator names for RFC 3161; nothing was signed")
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	wrong := func(format string, args ...any) ([]byte, error) {
		return nil, &KeylessError{"asking the time-stamping authority at " + req.URL.Redacted(), fmt.Errorf(format, args...),
			"see that this is the address that its operator names for RFC 3161; nothing was signed"}
	}
	t, err := timestamp.ParseResponse(raw)
	switch {
	case err != nil:
		return wrong("its answer is no time stamp: %s", clip(err.Error()))
	case t.HashAlgorithm != crypto.SHA256 || !bytes.Equal(t.HashedMessage, sum[:]):
		return wrong("its time stamp is of something else")
	case t.Nonce == nil || t.Nonce.Cmp(nonce) != 0:
		return wrong("its time stamp was made for another request")
	}
	w.off = w.now().Sub(t.Time)
	return raw, nil
}
