package verify_test

import (
	"errors"
	"testing"
	"time"

	"github.com/waxseal/waxseal/internal/testkit/virtual"
	"github.com/waxseal/waxseal/pkg/verify"
)

// Where an instance has a log of certificates, a certificate counts with that
// log's promise only, made for itself and while the log's key was good.
func TestCertificatesAreInTheLogOfCertificates(t *testing.T) {
	ours := newSigstore(t)
	log := must(virtual.NewCTLog())(t)
	impostor := must(log.Impostor())(t)
	other := must(virtual.NewCTLog())(t)
	forAnother, ended, begins := *log, *log, *log
	forAnother.Other = true
	ended.Until, begins.Until = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	for name, c := range map[string]struct {
		certificate, root *virtual.CTLog
		want              verify.Code
	}{
		"promised":                                {log, log, ""},
		"promised, where no log is trusted":       {log, nil, ""},
		"none, where no log is trusted":           {nil, nil, ""},
		"none":                                    {nil, log, verify.CodeChain},
		"of a log that is not trusted":            {other, log, verify.CodeChain},
		"signed by another in the log's name":     {impostor, log, verify.CodeChain},
		"for another certificate":                 {&forAnother, log, verify.CodeChain},
		"of a log that had ended":                 {log, &ended, verify.CodeChain},
		"of a log that ends later":                {log, &begins, ""},
		"of a log that the trusted root does not": {log, other, verify.CodeChain},
	} {
		t.Run(name, func(t *testing.T) {
			trust := verify.Trust{
				Roots:      []*verify.Root{trustedRoot(t, ours, virtual.RootOptions{CT: c.root})},
				Identities: []verify.Identity{identity(t, verify.IdentityOptions{Issuer: issuer, SAN: san})},
			}
			checker, err := verify.NewChecker(trust, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			b := seal(t, ours, virtual.Options{SAN: san, Issuer: issuer, CT: c.certificate})
			for range 2 { // the second time from what is remembered
				_, err = checker.Check(b, image)
				var r *verify.Rejection
				if got := verify.Code(""); errors.As(err, &r) {
					got = r.Code
					if got != c.want {
						t.Errorf("%v, want the code %q", err, c.want)
					}
				} else if err != nil || c.want != "" {
					t.Errorf("%v, want the code %q", err, c.want)
				}
			}
		})
	}
}
