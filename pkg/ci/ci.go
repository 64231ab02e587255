// Package ci says whose build it is.
//
// Call Find: it recognises the platform that runs this process, and where the
// platform signs identity tokens it gets one, verifies it with the keys that
// the issuer publishes, and takes the job's facts from there. What only the
// job's variables say is kept apart as declared: whoever can set variables can
// write it, and nothing rests on it.
//
// A token is told to nobody but its issuer's own service that made it.
package ci

import (
	"context"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
)

// Audience is whom the tokens are made for that Find asks a platform for.
const Audience = "waxseal"

// Options configures Find.
type Options struct {
	// Env is the environment.
	Env func(string) string
	// Token is where an identity token is: a file or env:NAME. "" asks the
	// platform, where it has a service for that.
	Token string
	// Transport reaches the platform and the issuer; default: the usual one.
	Transport http.RoundTripper
	// Now is the time; default: this machine's.
	Now func() time.Time
	// Tekton is the folder that Tekton mounts into every step; default:
	// /tekton.
	Tekton string
}

// Find says whose build it is; nil where no CI platform runs this process and
// no token is named. It never fails because of the platform: what could not be
// verified says why. An error is that of the context, or of a Token that was
// named and is no good: who names one wants it used.
func Find(ctx context.Context, o Options) (*attestations.CI, error) {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Transport == nil {
		o.Transport = usualTransport()
	}
	if o.Tekton == "" {
		o.Tekton = "/tekton"
	}
	p := o.recognise()
	if p == nil && o.Token == "" {
		return nil, nil
	}
	found := &attestations.CI{}
	if p != nil {
		found.Platform = p.name
		if job := p.declared(o.Env); job != (attestations.CIJob{}) {
			found.Declared = &job
		}
	}
	token, err := o.token(ctx, p)
	var verified *verified
	if err == nil {
		verified, err = o.verify(ctx, token, p)
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil && o.Token != "":
		return nil, err
	case err != nil:
		found.Unverified = clip(err.Error())
		return found, nil
	}
	found.Verified = &attestations.CIIdentity{Issuer: verified.issuer, Subject: clip(verified.subject), CIJob: verified.job()}
	if verified.platform != "" {
		found.Platform = verified.platform
	}
	return found, nil
}

// clip keeps what others wrote at a length that a statement can carry, in one
// line.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
	if len(s) > 512 {
		s = s[:512]
	}
	return strings.ToValidUTF8(s, "")
}
