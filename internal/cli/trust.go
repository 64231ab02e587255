package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/verify"
)

// trustFlags are the flags of who is believed. Certificates have cosign's
// names.
type trustFlags struct {
	keys          []string
	identity      string
	regexp        string
	issuer        string
	roots         []string
	caRoots       string
	intermediates string
}

func (f *trustFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.keys, "key", nil, "public key `FILE` that signs the evidence; repeatable; with --policy, only these of its keys count")
	fl.StringVar(&f.identity, "certificate-identity", "", "the `NAME` (URI or mail address) that the certificate was issued to; with --policy, only such of its signers count")
	fl.StringVar(&f.regexp, "certificate-identity-regexp", "", "the same as a regular expression `RE` of the whole name, ^ to $")
	fl.StringVar(&f.issuer, "certificate-oidc-issuer", "", "the OpenID Connect issuer `URL` that the certificate names")
	fl.StringArrayVar(&f.roots, "trusted-root", nil, "Sigstore trusted root `FILE` (JSON) that certificates, log entries and time stamps must lead to; repeatable; no other is believed or fetched")
	fl.StringVar(&f.caRoots, "ca-roots", "", "`FILE` (PEM) with the root certificates of a private CA; the time is proved by a --trusted-root")
	fl.StringVar(&f.intermediates, "ca-intermediates", "", "`FILE` (PEM) with intermediate certificates of the --ca-roots")
}

// read puts what the flags name into req.
func (f *trustFlags) read(req *gate.Request) error {
	for _, path := range f.keys {
		raw, err := readSmall(path, attest.MaxKey)
		if err != nil {
			return fmt.Errorf("reading public key %q: %w", path, err)
		}
		k, err := verify.ParseKey(path, raw)
		if err != nil {
			return err
		}
		req.Keys = append(req.Keys, k)
	}
	for _, path := range f.roots {
		raw, err := readSmall(path, attest.MaxTrustedRoot)
		if err != nil {
			return fmt.Errorf("reading trusted root %q: %w", path, err)
		}
		r, err := verify.ParseRoot(path, raw)
		if err != nil {
			return err
		}
		req.Roots = append(req.Roots, r)
	}
	if err := f.readCA(req); err != nil {
		return err
	}
	return f.readIdentity(req)
}

func (f *trustFlags) readCA(req *gate.Request) error {
	if f.caRoots == "" {
		if f.intermediates != "" {
			return errors.New("--ca-intermediates: they lead nowhere without --ca-roots FILE")
		}
		return nil
	}
	roots, err := readSmall(f.caRoots, attest.MaxTrustedRoot)
	if err != nil {
		return fmt.Errorf("reading CA certificates %q: %w", f.caRoots, err)
	}
	var between []byte
	if f.intermediates != "" {
		if between, err = readSmall(f.intermediates, attest.MaxTrustedRoot); err != nil {
			return fmt.Errorf("reading CA certificates %q: %w", f.intermediates, err)
		}
	}
	ca, err := verify.ParseCA(f.caRoots, roots, between)
	if err != nil {
		return err
	}
	req.CAs = append(req.CAs, ca)
	return nil
}

func (f *trustFlags) readIdentity(req *gate.Request) error {
	if f.identity == "" && f.regexp == "" {
		switch {
		case f.issuer != "":
			return errors.New("--certificate-oidc-issuer: say whose certificate it must be, with --certificate-identity")
		case f.caRoots != "" && f.keys == nil && req.Policy == nil:
			return errors.New("--ca-roots: say whose certificate it must be, with --certificate-identity")
		}
		return nil
	}
	o := verify.IdentityOptions{Issuer: f.issuer, SAN: f.identity, Regexp: f.regexp}
	if f.issuer == "" {
		if f.caRoots == "" {
			return errors.New("--certificate-identity: say who vouches for the name, with --certificate-oidc-issuer")
		}
		o.Anchor, o.AnchorIsCA = req.CAs[0].ID(), true
	}
	id, err := verify.NewIdentity(o)
	if err != nil {
		return err
	}
	req.Identities = append(req.Identities, id)
	return nil
}
