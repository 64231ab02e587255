package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// What errors.Is can tell about a place. Both mean that nothing is known.
var (
	ErrNotFound    = errors.New("not found")
	ErrUnavailable = errors.New("unavailable")
)

// Error is what went wrong at a place, in one line, with the way out.
type Error struct {
	Place  string // the reference, or the path
	Action string // "reading manifest v1"; may be empty
	Cause  string
	Way    string // what to do about it; may be empty
	Err    error  // ErrNotFound, ErrUnavailable, or what else may be matched
}

func (e *Error) Error() string {
	if e.Action == "" {
		return fmt.Sprintf("opening %q: %s", e.Place, e.Cause)
	}
	return fmt.Sprintf("%s of %q: %s", e.Action, e.Place, e.Cause)
}

// Hint is the way out.
func (e *Error) Hint() string { return e.Way }

func (e *Error) Unwrap() error { return e.Err }

// because keeps what errors.Is matched in err, under a class.
type because struct{ class, err error }

func (b because) Error() string   { return b.err.Error() }
func (b because) Unwrap() []error { return []error{b.class, b.err} }

// explain says what err means, for somebody who waits for an action at a
// registry. A cancelled context stays what it is.
func (r *registry) explain(ctx context.Context, action string, err error) error {
	return r.explainAt(ctx, r.ref.Place, action, err)
}

func (r *registry) explainAt(ctx context.Context, place, action string, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s of %q: %w", action, place, context.Cause(ctx))
	}
	e := &Error{Place: place, Action: action, Err: because{ErrUnavailable, err}}
	var te *transport.Error
	var wait *waitError
	var plainHTTP *plainHTTPError
	switch {
	// First, because at loopback plain HTTP is tried after it and fails in its
	// own way.
	case isCertificate(err):
		e.Cause = "its certificate is not accepted: " + oneLine(certificateCause(err))
		e.Way = "add the certificate of its authority to this system's (/usr/local/share/ca-certificates, then update-ca-certificates), or accept any with --insecure"
	case errors.As(err, &wait):
		e.Cause = fmt.Sprintf("the registry is busy (429 Too Many Requests) and asks to wait %s", wait.after.Round(time.Second))
		e.Way = "try again after that; a registry often allows more to who is logged in: docker login " + r.ref.host()
	case tokenServer(err) != "":
		r.explainToken(e, tokenServer(err), err)
	case errors.As(err, &te):
		r.explainStatus(e, te)
	case errors.As(err, &plainHTTP):
		e.Cause = plainHTTP.Error()
		e.Way = "--insecure allows plain HTTP for this registry; loopback needs no flag"
	default:
		r.explainNetwork(e, err)
	}
	return e
}

func (r *registry) explainStatus(e *Error, te *transport.Error) {
	status := fmt.Sprintf("%d %s", te.StatusCode, http.StatusText(te.StatusCode))
	said := ""
	for _, d := range te.Errors {
		if text := oneLine(d.Message); text != "" {
			said = ": " + text
			break
		}
	}
	e.Cause = "the registry answered " + status + said
	switch {
	case te.StatusCode == http.StatusUnauthorized:
		e.Way = "log in with: docker login " + r.ref.host() + " (some registries answer so for a repository that does not exist)"
		if r.opts.NoHelpers {
			e.Way = "no credential helper is started here: put a login for " + r.ref.host() + " into the \"auths\" of docker's config.json"
		}
	case te.StatusCode == http.StatusForbidden:
		e.Way = "the credentials in use may not do this here; ask for the right, or use others with: docker login " + r.ref.host()
	case te.StatusCode == http.StatusNotFound:
		e.Cause = "not found: the registry answered " + status + said
		e.Way = "check repository, tag and digest"
		e.Err = because{ErrNotFound, te}
	case te.StatusCode == http.StatusTooManyRequests:
		e.Way = "wait a little and try again; a registry often allows more to who is logged in: docker login " + r.ref.host()
	case te.StatusCode >= 500:
		e.Cause = fmt.Sprintf("the registry failed, tried %d times: %s%s", maxTries, status, said)
		e.Way = "try again later; the registry's own log says more"
	default:
		e.Err = te
	}
}

// tokenServer is the host that failed to give a token, "" where it was not asked
// for one. The request for one says for which service or scope.
// https://distribution.github.io/distribution/spec/auth/token/#requesting-a-token
func tokenServer(err error) string {
	var te *transport.Error
	var ue *url.Error
	var asked *url.URL
	if errors.As(err, &te) && te.Request != nil {
		asked = te.Request.URL
	} else if errors.As(err, &ue) {
		asked, _ = url.Parse(ue.URL)
	}
	if asked == nil || !asked.Query().Has("service") && !asked.Query().Has("scope") {
		return ""
	}
	return asked.Host
}

// explainToken says what a token server did.
func (r *registry) explainToken(e *Error, host string, err error) {
	login := "docker login " + r.ref.host()
	var te *transport.Error
	switch {
	case !errors.As(err, &te):
		r.explainNetwork(e, err)
		e.Cause = "failed: " + e.Cause
		e.Way = "see whether this machine reaches it, and its proxy settings"
	case te.StatusCode >= 500 || te.StatusCode == http.StatusTooManyRequests:
		r.explainStatus(e, te)
		e.Cause = fmt.Sprintf("answered %d %s", te.StatusCode, http.StatusText(te.StatusCode))
		e.Way = "try again later"
	default:
		r.explainStatus(e, te)
		_, after, _ := strings.Cut(e.Cause, "the registry answered ")
		e.Cause, e.Err = "answered "+after, because{ErrUnavailable, te}
		e.Way = "the login that docker keeps for " + r.ref.host() + " is not accepted: " + login
		if te.StatusCode != http.StatusUnauthorized && te.StatusCode != http.StatusForbidden {
			e.Way = "log in anew with: " + login
		}
	}
	e.Cause = fmt.Sprintf("the token server %s, to which the registry sends its clients, %s", oneLine(host), e.Cause)
}

func (r *registry) explainNetwork(e *Error, err error) {
	var dns *net.DNSError
	var record tls.RecordHeaderError
	var timeout net.Error
	var corrupt *mismatch
	var large *oversize
	switch {
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		e.Cause = "the registry speaks plain HTTP, not TLS"
		e.Way = "--insecure allows plain HTTP for this registry; loopback needs no flag"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Cause = fmt.Sprintf("connection refused: nothing listens at %s", r.ref.host())
		e.Way = "check the host and port, and that the registry runs"
	case errors.As(err, &dns):
		e.Cause = fmt.Sprintf("the name %q cannot be resolved: %s", dns.Name, dns.Err)
		e.Way = "check the registry's name and this machine's network"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), isCut(err):
		e.Cause = "the transfer broke off: " + oneLine(err.Error())
		e.Way = "try again; if it stays so, the registry or a proxy before it is at fault"
	case errors.As(err, &timeout) && timeout.Timeout():
		e.Cause = "the registry did not answer in time"
		e.Way = "try again, and check this machine's network and proxy settings"
	case errors.As(err, &corrupt):
		e.Cause = corrupt.Error()
		e.Way = "the registry, or something before it, delivers other bytes than were asked for; do not use them"
		e.Err = err
	case errors.As(err, &large):
		e.Cause = large.Error()
		e.Err = err
	default:
		e.Cause = oneLine(err.Error())
	}
}

// isCut knows the library's words for a body that is shorter than stated, or
// whose digest does not hold.
func isCut(err error) bool {
	text := err.Error()
	return strings.Contains(text, "error verifying size") || strings.Contains(text, "error verifying sha256") ||
		strings.Contains(text, "does not match requested digest")
}

// isCertificate reports whether a TLS handshake ended over the certificate.
func isCertificate(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification)
}

func certificateCause(err error) string {
	var verification *tls.CertificateVerificationError
	if errors.As(err, &verification) && verification.Err != nil {
		return verification.Err.Error()
	}
	return err.Error()
}

// oneLine makes foreign text fit for one line of a terminal.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > 300 {
		s = strings.ToValidUTF8(s[:300], "") + "…"
	}
	return s
}

// pathError says what went wrong with a file, with the way out where one is
// known.
func pathError(action, path string, err error) error {
	e := &Error{Place: path, Action: action, Cause: oneLine(err.Error()), Err: err}
	var pe *os.PathError
	var le *os.LinkError
	var se *os.SyscallError
	switch {
	case errors.As(err, &pe):
		e.Cause = pe.Err.Error()
	case errors.As(err, &le):
		e.Cause = le.Err.Error()
	case errors.As(err, &se):
		e.Cause = se.Err.Error()
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		e.Cause, e.Err = "not found: no such file", because{ErrNotFound, err}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Way = "make room on that disk and repeat; nothing was left half-written"
	case errors.Is(err, os.ErrPermission):
		e.Way = "check who owns the folder and its mode"
	}
	return e
}
