package sign

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"github.com/waxseal/waxseal/pkg/attest"
)

const (
	// maxResponders bounds the responders of one certificate that are asked.
	maxResponders = 4
	// renewed is how long before its end an OCSP response is asked for again.
	renewed = time.Minute
)

// StapleOptions configures NewStapler.
type StapleOptions struct {
	// Chain is the signer's certificate, its issuer's, and so on to the root's.
	Chain []*x509.Certificate
	// Given are OCSP responses (DER) about certificates in Chain that somebody
	// asked for before.
	Given [][]byte
	// Ask asks the responders that the certificates in Chain name. The signer's
	// must name one; those above it may not.
	Ask bool
	// Check is asked about every response before it is used: would those who
	// verify take it, for what is signed now? Required.
	Check func(answer []byte) error
	// Tell, Now and Transport are those of StampOptions.
	Tell      func(text string)
	Now       func() time.Time
	Transport http.RoundTripper
}

// Stapler has the OCSP responses (RFC 6960) that go beside what a certificate's
// key signs: they say that it had not been revoked then. Safe for concurrent use.
type Stapler struct {
	opts StapleOptions

	mu    sync.Mutex
	asked map[int]response // by the certificate's place in the chain
}

type response struct {
	raw   []byte
	until time.Time
}

// NewStapler makes a Stapler; nothing is asked yet.
func NewStapler(opts StapleOptions) (*Stapler, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Tell == nil {
		opts.Tell = func(string) {}
	}
	if opts.Transport == nil {
		opts.Transport = usualTransport()
	}
	switch {
	case len(opts.Chain) < 2:
		return nil, errors.New("stapling OCSP responses: nobody but its own issuer can say that a certificate was not revoked, and that is not there")
	case opts.Ask && len(responders(opts.Chain[0])) == 0:
		return nil, &KeylessError{"stapling OCSP responses", fmt.Errorf("the certificate (serial number %x) names no responder", opts.Chain[0].SerialNumber),
			"have the CA name one (OCSP, in the authority information access), or ask the one that you know and give its answer with --ocsp-response"}
	}
	return &Stapler{opts: opts, asked: map[int]response{}}, nil
}

// Answers returns the responses for what is signed now. Responders are asked
// again when what they said before runs out.
func (s *Stapler) Answers(ctx context.Context) ([][]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, raw := range s.opts.Given {
		if err := s.opts.Check(raw); err != nil {
			return nil, &KeylessError{"stapling the OCSP response that was given", err, "get a new answer about the certificate from the CA's responder; nothing was signed"}
		}
	}
	out := slices.Clone(s.opts.Given)
	if !s.opts.Ask {
		return out, nil
	}
	for i, c := range s.opts.Chain[:len(s.opts.Chain)-1] {
		if len(responders(c)) == 0 {
			continue
		}
		if known, ok := s.asked[i]; !ok || s.opts.Now().After(known.until) {
			fresh, err := s.ask(ctx, c, s.opts.Chain[i+1])
			if err != nil {
				return nil, err
			}
			s.asked[i] = fresh
		}
		out = append(out, s.asked[i].raw)
	}
	return out, nil
}

// responders are the addresses in a certificate that can be asked over HTTP. What
// they say is signed: it need not be HTTPS.
func responders(c *x509.Certificate) []string {
	var out []string
	for _, address := range c.OCSPServer {
		if u, err := url.Parse(address); err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") && len(out) < maxResponders {
			out = append(out, address)
		}
	}
	return out
}

// ask asks the responders of a certificate until one has an answer that counts.
func (s *Stapler) ask(ctx context.Context, c, issuer *x509.Certificate) (response, error) {
	// RFC 5019, section 2.1.1: one certificate, named by SHA-1. It is no more than
	// a name here.
	query, err := ocsp.CreateRequest(c, issuer, nil)
	if err != nil {
		return response{}, fmt.Errorf("asking for an OCSP response: %w", err)
	}
	var first error
	for _, address := range responders(c) {
		raw, err := s.askAt(ctx, address, query)
		if err == nil {
			return raw, nil
		}
		if ctx.Err() != nil {
			return response{}, ctx.Err()
		}
		if first == nil {
			first = err
		}
	}
	return response{}, first
}

// askAt is RFC 6960, appendix A.1, by POST.
func (s *Stapler) askAt(ctx context.Context, address string, query []byte) (response, error) {
	w := &wire{ctx: ctx, base: busy{s.opts.Transport}, tell: s.opts.Tell, now: s.opts.Now}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(query))
	if err != nil {
		return response{}, err
	}
	fail := func(err error, way string) (response, error) {
		return response{}, &KeylessError{"asking the OCSP responder at " + req.URL.Redacted(), err, w.clock(way + "; nothing was signed")}
	}
	req.Header.Set("Content-Type", "application/ocsp-request")
	req.Header.Set("Accept", attest.OCSPMediaType)
	resp, err := w.to("the OCSP responder").RoundTrip(req)
	var refusal *answer
	switch {
	case errors.As(err, &refusal) && refusal.status != 0 && refusal.status < 500 && refusal.status != http.StatusTooManyRequests:
		return fail(refusal, "see that the CA's responder is at the address in the certificate")
	case errors.As(err, &refusal):
		return fail(refusal, "run it again when the responder is up, or give an answer that it gave before with --ocsp-response, in place of --ocsp")
	case err != nil:
		return response{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{}, err
	}
	if len(raw) > attest.MaxOCSP {
		return fail(fmt.Errorf("its answer is larger than the %d bytes allowed", attest.MaxOCSP), "see that the CA's responder is at the address in the certificate")
	}
	said, err := ocsp.ParseResponse(raw, nil)
	var status ocsp.ResponseError
	switch {
	case errors.As(err, &status):
		return fail(fmt.Errorf("it refused: %s", status.Status), "see that it is the responder of the CA that issued the certificate")
	case err != nil:
		return fail(fmt.Errorf("its answer is no OCSP response: %s", clip(strings.TrimPrefix(err.Error(), "OCSP: "))), "see that the CA's responder is at the address in the certificate")
	}
	if err := s.opts.Check(raw); err != nil {
		return fail(err, "what was signed with this answer beside it would not count")
	}
	return response{raw, said.NextUpdate.Add(-renewed)}, nil
}

// busy makes a failure of what a responder says that wants to be asked again:
// RFC 6960, section 2.3.
type busy struct{ http.RoundTripper }

func (b busy) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, attest.MaxOCSP+1))
	if err != nil {
		return nil, err
	}
	var status ocsp.ResponseError
	if _, err := ocsp.ParseResponse(raw, nil); errors.As(err, &status) && (status.Status == ocsp.TryLater || status.Status == ocsp.InternalError) {
		resp.StatusCode, raw = http.StatusServiceUnavailable, []byte(status.Status.String())
	}
	resp.Body = io.NopCloser(bytes.NewReader(raw))
	return resp, nil
}
