package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// trustFlags are the flags of who is believed. Certificates have cosign's
// names.
type trustFlags struct {
	keys     []string
	identity string
	regexp   string
	issuer   string
	anchorFlags
}

// rootFlags are the flags of which Sigstore instances are believed.
type rootFlags struct {
	roots        []string
	sigstore     string
	sigstoreRoot string
	offline      bool
	stampChain   string
}

func (f *rootFlags) register(fl *pflag.FlagSet) {
	fl.StringArrayVar(&f.roots, "trusted-root", nil, "Sigstore trusted root `FILE` (JSON) that certificates, log entries and time stamps must lead to; FILE@sha256:… takes no other bytes; repeatable; nothing is fetched for it")
	fl.StringVar(&f.sigstore, "sigstore", "", "believe the Sigstore instance `public`, or that of the TUF repository at an https address, and fetch its trusted root, at most once a day")
	fl.StringVar(&f.sigstoreRoot, "sigstore-root", "", "root.json `FILE` of the TUF repository of --sigstore, that trust in it begins with")
	fl.BoolVar(&f.offline, "offline", false, "with --sigstore: use the copy that was fetched before, while it is valid, and ask nobody")
	fl.StringVar(&f.stampChain, "timestamp-certificate-chain", "", "`FILE` (PEM) with the certificates of a time-stamping authority, its root among them: its time stamps are believed, and nothing else")
}

// completePublic offers the one instance that has a name.
func completePublic(cmd *cobra.Command) {
	completeValues(cmd, map[string][]string{"sigstore": {"public"}})
}

func (f *trustFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringArrayVar(&f.keys, "key", nil, "public `KEY` that signs the evidence: a file, env://NAME, or a key that something else holds: "+keys.Forms+", each with @sha256:… to take no other; repeatable; with --policy, only these of its keys count")
	fl.StringVar(&f.identity, "certificate-identity", "", "the `NAME` (URI or mail address) that the certificate was issued to; with --policy, only such of its signers count")
	fl.StringVar(&f.regexp, "certificate-identity-regexp", "", "the same as a regular expression `RE` of the whole name, ^ to $, with the @ before the revision written out")
	fl.StringVar(&f.issuer, "certificate-oidc-issuer", "", "the OpenID Connect issuer `URL` that the certificate names")
	f.anchorFlags.register(fl)
	completePublic(cmd)
}

// read puts what the flags name into req. What is right and cannot be had goes
// to req.Missing.
func (f *trustFlags) read(ctx context.Context, s *Streams, req *gate.Request) error {
	for _, path := range f.keys {
		k, err := readKey(ctx, s, path)
		if errors.As(err, new(*trust.UnavailableError)) {
			req.Missing = err
			continue
		}
		if err != nil {
			return err
		}
		req.Keys = append(req.Keys, k)
	}
	if err := f.readRoots(ctx, s, req); err != nil {
		return err
	}
	if err := f.caFlags.check(); err != nil {
		return err
	}
	ca, err := f.caFlags.read("", nil)
	if err != nil {
		return err
	}
	if ca != nil {
		req.CAs = append(req.CAs, ca)
	}
	return f.readIdentity(req)
}

// readRoots puts the roots into req.
func (f *rootFlags) readRoots(ctx context.Context, s *Streams, req *gate.Request) error {
	for _, path := range f.roots {
		roots, _, err := readRoot(path)
		if err != nil {
			return err
		}
		req.Roots = append(req.Roots, roots...)
	}
	if f.stampChain != "" {
		raw, err := readSmall(f.stampChain, attest.MaxTrustedRoot)
		if err != nil {
			return fmt.Errorf("reading the certificates of a time-stamping authority %q: %w", f.stampChain, err)
		}
		r, err := verify.ParseStamper(f.stampChain, raw)
		if err != nil {
			return err
		}
		req.Roots = append(req.Roots, r)
	}
	instance, err := f.instance()
	if err != nil || instance == nil {
		return err
	}
	r, _, err := fetchRoot(ctx, s, *instance, trust.FetchOptions{Offline: f.offline})
	if err != nil {
		req.Missing = err
		return nil
	}
	req.Roots = append(req.Roots, r)
	return nil
}

// instance is the Sigstore instance that is to be fetched from; nil: none.
func (f *rootFlags) instance() (*trust.Sigstore, error) {
	switch {
	case f.sigstore == "" && f.sigstoreRoot != "":
		return nil, errors.New("--sigstore-root: say which repository it is of, with --sigstore URL")
	case f.sigstore == "" && f.offline:
		return nil, errors.New("--offline: only --sigstore fetches anything; there is none")
	case f.sigstore == "":
		return nil, nil
	case f.sigstore == "public" && f.sigstoreRoot != "":
		return nil, errors.New("--sigstore-root: the public instance's is built in")
	case f.sigstore == "public":
		instance := trust.Public()
		return &instance, nil
	case f.sigstoreRoot == "":
		return nil, fmt.Errorf("--sigstore %q: say what trust in this repository begins with, with --sigstore-root root.json (or write --sigstore public)", f.sigstore)
	}
	raw, err := readSmall(f.sigstoreRoot, attest.MaxTUF)
	if err != nil {
		return nil, fmt.Errorf("reading TUF root %q: %w", f.sigstoreRoot, err)
	}
	instance, err := trust.At(f.sigstore, raw)
	return &instance, err
}

// readRoot reads FILE or FILE@sha256:DIGEST, and pins it: FILE@sha256:DIGEST.
func readRoot(spec string) (roots []*verify.Root, pinned string, err error) {
	path, pin := spec, attest.Digest("")
	if i := strings.LastIndex(spec, "@sha256:"); i > 0 {
		if pin, err = attest.ParseDigest(spec[i+1:]); err != nil {
			return nil, "", fmt.Errorf("reading trusted root %q: %w", spec, err)
		}
		path = spec[:i]
	}
	raw, err := readSmall(path, attest.MaxTrustedRoot)
	if err != nil {
		return nil, "", fmt.Errorf("reading trusted root %q: %w", path, err)
	}
	is := attest.DigestOf(raw)
	if pin != "" && is != pin {
		return nil, "", fmt.Errorf("reading trusted root %q: it is %s, not what it was pinned to", path, is)
	}
	roots, err = verify.ParseRoots(path, raw)
	return roots, path + "@" + string(is), err
}

// fetchRoot fetches the root of an instance, and says on standard error how old
// it is. Any error is a *trust.UnavailableError.
func fetchRoot(ctx context.Context, s *Streams, instance trust.Sigstore, o trust.FetchOptions) (*verify.Root, *trust.Fetched, error) {
	o.Cache = xdgDir(s.Env, "XDG_CACHE_HOME", ".cache")
	got, err := instance.Fetch(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	r, err := verify.ParseRoot(got.Name, got.Raw)
	if err != nil {
		return nil, nil, trust.Unusable(instance, err)
	}
	r.Fetched(verify.Origin{FetchedAt: got.FetchedAt, ValidUntil: got.ValidUntil})
	fmt.Fprintf(s.Err, "waxseal: trusted root: %s, fetched %s, valid until %s\n", got.Name, ago(time.Since(got.FetchedAt)), got.ValidUntil.Format(time.RFC3339))
	return r, got, nil
}

func ago(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
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
