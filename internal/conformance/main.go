// Command conformance speaks the command line of the Sigstore conformance suite
// and verifies through package verify, as waxseal does:
//
//	conformance verify-bundle --bundle FILE
//	    (--certificate-identity ID --certificate-oidc-issuer URL | --key PEM)
//	    --trusted-root FILE  FILE|sha256:HEX
//
// It exits with 0 when the bundle verifies and with 1 when it does not, saying
// the class of the reason first. It asks no network: without --trusted-root,
// WAXSEAL_CONFORMANCE_ROOT names the file. It does not sign.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/verify"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
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
)

func run(args []string, out io.Writer) error {
	if len(args) == 0 || args[0] != "verify-bundle" {
		return &refusal{classUsage, errors.New("verify-bundle is the one command here")}
	}
	flags := flag.NewFlagSet("verify-bundle", flag.ContinueOnError)
	flags.SetOutput(out)
	bundle := flags.String("bundle", "", "the bundle")
	identity := flags.String("certificate-identity", "", "the subject alternative name of the certificate")
	issuer := flags.String("certificate-oidc-issuer", "", "the issuer that the certificate names")
	key := flags.String("key", "", "the public key")
	trusted := flags.String("trusted-root", os.Getenv("WAXSEAL_CONFORMANCE_ROOT"), "the trusted root")
	staging := flags.Bool("staging", false, "Sigstore's staging instance (not known here)")
	if err := flags.Parse(args[1:]); err != nil {
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
	const most = 64 << 20
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
