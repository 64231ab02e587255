// Command conformance speaks the command line of the Sigstore conformance suite
// and verifies and signs through packages verify and sign, as waxseal does:
//
//	conformance verify-bundle --bundle FILE
//	    (--certificate-identity ID --certificate-oidc-issuer URL | --key PEM)
//	    --trusted-root FILE  FILE|sha256:HEX
//	conformance sign-bundle [--in-toto] --identity-token TOKEN --bundle FILE
//	    --trusted-root FILE --signing-config FILE  FILE
//
// It exits with 0 when the bundle verifies, or is made, and with 1 when not,
// saying the class of the reason first. It knows no instance by itself: without
// the flags, WAXSEAL_CONFORMANCE_ROOT and WAXSEAL_CONFORMANCE_CONFIG name the
// files.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// refusal is an error with its class.
type refusal struct {
	class string
	err   error
}

func (r *refusal) Error() string { return r.class + ": " + r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// The classes of refusals that come before verification.
const (
	classUsage  = "usage"
	classFormat = "format" // the bundle is none
	classTrust  = "trust"  // the trusted root or the key is none
	classSign   = "sign"   // of a bundle that could not be made
)

// most bounds a file that is signed or verified.
const most = 64 << 20

func run(ctx context.Context, args []string, out io.Writer) error {
	switch {
	case len(args) > 0 && args[0] == "verify-bundle":
		return verifyBundle(args[1:], out)
	case len(args) > 0 && args[0] == "sign-bundle":
		return signBundle(ctx, args[1:], out)
	}
	return &refusal{classUsage, errors.New("verify-bundle and sign-bundle are the commands here")}
}

func signBundle(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("sign-bundle", flag.ContinueOnError)
	flags.SetOutput(out)
	bundle := flags.String("bundle", "", "where the bundle goes")
	inToto := flags.Bool("in-toto", false, "FILE is an in-toto statement, signed as such")
	token := flags.String("identity-token", "", "the identity token")
	trusted := flags.String("trusted-root", os.Getenv("WAXSEAL_CONFORMANCE_ROOT"), "the trusted root that it must verify under")
	config := flags.String("signing-config", os.Getenv("WAXSEAL_CONFORMANCE_CONFIG"), "the services to ask")
	staging := flags.Bool("staging", false, "Sigstore's staging instance (not known here)")
	if err := flags.Parse(args); err != nil {
		return &refusal{classUsage, err}
	}
	switch {
	case *bundle == "" || *token == "" || flags.NArg() != 1:
		return &refusal{classUsage, errors.New("give --identity-token TOKEN, --bundle FILE and one FILE")}
	case *staging || *trusted == "" || *config == "":
		return &refusal{classUsage, errors.New("give the instance's --trusted-root and --signing-config")}
	}
	content, err := readFile(flags.Arg(0), most)
	if err != nil {
		return &refusal{classUsage, err}
	}
	services, err := readFile(*config, attest.MaxTrustedRoot)
	if err != nil {
		return &refusal{classUsage, err}
	}
	source, err := sign.FindToken(sign.TokenOptions{Ref: "-", Stdin: strings.NewReader(*token)})
	if err != nil {
		return &refusal{classSign, err}
	}
	signer, err := sign.OpenKeyless(sign.KeylessOptions{
		Token: source, Config: services,
		Check: func(b *attest.Bundle, by sign.Identity) error { return checkMade(*trusted, b, by, content) },
		Tell:  func(text string) { fmt.Fprintln(out, "conformance:", text) },
	})
	if err != nil {
		return &refusal{classSign, err}
	}
	defer signer.Close()
	b, err := sealed(ctx, signer, content, *inToto)
	if err != nil {
		return &refusal{classSign, err}
	}
	return os.WriteFile(*bundle, b.Raw(), 0o644)
}

func sealed(ctx context.Context, signer sign.Signer, content []byte, inToto bool) (*attest.Bundle, error) {
	if !inToto {
		return signer.(sign.ArtifactSigner).SignArtifact(ctx, content)
	}
	st, err := attest.ParseStatement(content)
	if err != nil {
		return nil, err
	}
	return signer.Sign(ctx, st)
}

// checkMade judges what was just signed as verify-bundle will. A statement has
// its own subjects; the first stands for all.
func checkMade(trusted string, b *attest.Bundle, by sign.Identity, content []byte) error {
	trust, err := readTrust(trusted, "", by.Name, by.Issuer)
	if err != nil {
		return err
	}
	checker, err := verify.NewChecker(trust, time.Now())
	if err != nil {
		return err
	}
	artifact := verify.Artifact{Digest: attest.DigestOf(content), Content: content}
	if st := b.Statement(); st != nil && len(st.Subject) > 0 {
		artifact = verify.Artifact{Digest: attest.Digest("sha256:" + st.Subject[0].Digest["sha256"])}
	}
	_, err = checker.CheckArtifact(b, artifact)
	return err
}

func verifyBundle(args []string, out io.Writer) error {
	flags := flag.NewFlagSet("verify-bundle", flag.ContinueOnError)
	flags.SetOutput(out)
	bundle := flags.String("bundle", "", "the bundle")
	identity := flags.String("certificate-identity", "", "the subject alternative name of the certificate")
	issuer := flags.String("certificate-oidc-issuer", "", "the issuer that the certificate names")
	key := flags.String("key", "", "the public key")
	trusted := flags.String("trusted-root", os.Getenv("WAXSEAL_CONFORMANCE_ROOT"), "the trusted root")
	staging := flags.Bool("staging", false, "Sigstore's staging instance (not known here)")
	if err := flags.Parse(args); err != nil {
		return &refusal{classUsage, err}
	}
	switch {
	case *bundle == "" || flags.NArg() != 1:
		return &refusal{classUsage, errors.New("give --bundle FILE and one FILE or sha256:DIGEST")}
	case *staging:
		return &refusal{classUsage, errors.New("--staging: give the instance's --trusted-root")}
	case (*key == "") == (*identity == "" || *issuer == ""):
		return &refusal{classUsage, errors.New("give --certificate-identity and --certificate-oidc-issuer, or --key")}
	}
	trust, err := readTrust(*trusted, *key, *identity, *issuer)
	if err != nil {
		return &refusal{classTrust, err}
	}
	checker, err := verify.NewChecker(trust, time.Now())
	if err != nil {
		return &refusal{classTrust, err}
	}
	artifact, err := readArtifact(flags.Arg(0))
	if err != nil {
		return &refusal{classUsage, err}
	}
	raw, err := readFile(*bundle, attest.MaxBundle)
	if err != nil {
		return &refusal{classUsage, err}
	}
	b, err := attest.ParseAnyBundle(raw)
	if err != nil {
		return &refusal{classFormat, err}
	}
	if _, err = checker.CheckArtifact(b, artifact); err != nil {
		var r *verify.Rejection
		if errors.As(err, &r) {
			return &refusal{string(r.Code), err}
		}
		return &refusal{classFormat, err}
	}
	return nil
}

func readTrust(trusted, key, identity, issuer string) (t verify.Trust, err error) {
	if trusted != "" {
		raw, err := readFile(trusted, attest.MaxTrustedRoot)
		if err != nil {
			return t, err
		}
		r, err := verify.ParseRoot(trusted, raw)
		if err != nil {
			return t, err
		}
		t.Roots = []*verify.Root{r}
	}
	if key != "" {
		raw, err := readFile(key, attest.MaxKey)
		if err != nil {
			return t, err
		}
		k, err := verify.ParseKey(key, raw)
		t.Keys = []verify.Key{k}
		return t, err
	}
	id, err := verify.NewIdentity(verify.IdentityOptions{Issuer: issuer, SAN: identity})
	t.Identities = []verify.Identity{id}
	return t, err
}

// readArtifact takes a path, or else a digest, as the suite says.
func readArtifact(arg string) (verify.Artifact, error) {
	if _, err := os.Stat(arg); err != nil {
		if d, derr := attest.ParseDigest(arg); derr == nil {
			return verify.Artifact{Digest: d}, nil
		}
		return verify.Artifact{}, err
	}
	raw, err := readFile(arg, most)
	if err != nil {
		return verify.Artifact{}, err
	}
	return verify.Artifact{Digest: attest.DigestOf(raw), Content: raw}, nil
}

func readFile(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(raw)) > most {
		err = fmt.Errorf("reading %q: larger than the %d bytes allowed", path, most)
	}
	return raw, err
}
