package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"time"

	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// signFlags are the flags of how to sign: with a key, or keyless.
type signFlags struct {
	keyFlag string // what this command calls its flag for the key
	key     string
	keyless bool
	token   string
	config  string
	stampFlags
	// unlogged leaves the transparency log out.
	unlogged bool
}

// keyForms is what a key to sign with may be.
const keyForms = "; KEY is a file, env://NAME, or a key that something else holds: " + keys.Forms

// register defines the flags; keyFlag is "key", or "sign-key" where --key
// verifies.
func (f *signFlags) register(fl *pflag.FlagSet, keyFlag, keyUsage string) {
	f.keyFlag = keyFlag
	fl.StringVar(&f.key, keyFlag, "", keyUsage+keyForms)
	fl.BoolVar(&f.keyless, "keyless", false, "sign with a key that lives as long as this run, and a certificate for whoever the identity token names; with Sigstore's public services, which publish it, unless --signing-config or --sigstore names others")
	fl.StringVar(&f.token, "identity-token", "", "with --keyless: `TOKEN` in a file, env:NAME or - for standard input (default: asked of GitHub Actions, GitLab, Buildkite, a SPIFFE agent or Google Cloud, where this runs, or of you, at a terminal)")
	fl.StringVar(&f.config, "signing-config", "", "with --keyless: Sigstore signing config `FILE` (JSON) with the services to ask; what they sign must verify under --trusted-root")
	f.stampFlags.register(fl, keyFlag)
	fl.BoolVar(&f.unlogged, "unlogged", false, "with --keyless: leave out the transparency log, while it is down; a time stamp then proves the time, and only a policy with outages for the signer accepts it")
}

// wanted reports whether anything is to be signed.
func (f *signFlags) wanted() bool { return f.key != "" || f.keyless }

// check refuses what contradicts itself.
func (f *signFlags) check(roots anchorFlags) error {
	switch {
	case f.keyless && f.stampFlags.wanted():
		return usagef("--keyless gets its certificate and time stamps from the services of the signing config: it takes no --certificate and no --timestamp-server-url")
	case f.keyless && f.key != "":
		return usagef("--keyless and --%s exclude each other", f.keyFlag)
	case !f.keyless && (f.token != "" || f.config != "" || f.unlogged):
		return usagef("--identity-token, --signing-config and --unlogged are for --keyless")
	case f.keyless && f.config != "" && len(roots.roots) == 0 && roots.sigstore == "":
		return usagef("--signing-config: give the trusted root of the same instance, with --trusted-root FILE")
	case f.keyless && f.config == "" && len(roots.roots) > 0 && roots.sigstore == "":
		return usagef("--trusted-root: say which services of that instance sign, with --signing-config FILE")
	}
	return f.stampFlags.check(f.keyFlag, f.key, roots)
}

// secretFile is the file that must get into no build context, "" for none.
func (f *signFlags) secretFile() string {
	switch {
	case f.keyless:
		return f.token
	case keys.IsRef(f.key):
		return keys.PINFile(f.key)
	}
	return f.key
}

// open opens the signer. roots are what it must verify under.
func (f *signFlags) open(ctx context.Context, s *Streams, roots anchorFlags) (sign.Signer, error) {
	return f.openBy(ctx, s, roots, openSigner)
}

// openLate is open where the key is read when there is something to sign, see
// sign.OpenLate.
func (f *signFlags) openLate(ctx context.Context, s *Streams, roots anchorFlags) (sign.Signer, error) {
	return f.openBy(ctx, s, roots, openLate)
}

func (f *signFlags) openBy(ctx context.Context, s *Streams, roots anchorFlags, open openFunc) (sign.Signer, error) {
	if err := f.check(roots); err != nil {
		return nil, err
	}
	if f.stampFlags.wanted() {
		return f.openStamped(ctx, s, roots, open)
	}
	if !f.keyless {
		return open(ctx, s, f.key)
	}
	if err := guard(); err != nil {
		return nil, err
	}
	// First what needs no network.
	token, err := sign.FindToken(sign.TokenOptions{Ref: f.token, Stdin: s.In, Env: s.Env, Person: person(s)})
	if err != nil {
		return nil, err
	}
	trusted, config, err := f.instance(ctx, s, roots.rootFlags)
	if err != nil {
		return nil, err
	}
	if f.unlogged {
		fmt.Fprintln(s.Err, "waxseal: no transparency log will have what is signed, as --unlogged says; verdicts accept it by a policy with outages for the signer only")
	}
	return sign.OpenKeyless(sign.KeylessOptions{
		Token: token, Config: config, Unlogged: f.unlogged,
		Check: func(b *attest.Bundle, id sign.Identity) error { return checkMade(trusted, b, id, f.unlogged) },
		Tell:  func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) },
	})
}

// openFunc opens the key that ref names.
type openFunc func(ctx context.Context, s *Streams, ref string) (sign.Signer, error)

// openStamped opens a key whose signatures bring a certificate or time stamps
// along.
func (f *signFlags) openStamped(ctx context.Context, s *Streams, roots anchorFlags, open openFunc) (sign.Signer, error) {
	by, err := f.prepare(ctx, s, roots)
	if err != nil {
		return nil, err
	}
	key, err := open(ctx, s, f.key)
	if err != nil {
		return nil, err
	}
	signer, err := by.around(s, key, f.servers)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("signing with %q: %w", keys.Name(f.key), err), key.Close())
	}
	return signer, nil
}

// person is who sits at the terminal, nil for nobody.
func person(s *Streams) *sign.Person {
	if _, there := s.terminal(); !there || s.Env("CI") != "" {
		return nil
	}
	return &sign.Person{Browse: browser(s), Say: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) }}
}

// browser opens an address as the system does, or by the program in BROWSER; nil
// where there is no screen.
func browser(s *Streams) func(address string) error {
	program := []string{s.Env("BROWSER")}
	switch {
	case program[0] != "":
	case s.Env("SSH_CONNECTION") != "":
		return nil
	case runtime.GOOS == "darwin":
		program = []string{"open"}
	case runtime.GOOS == "windows":
		program = []string{"rundll32", "url.dll,FileProtocolHandler"}
	case s.Env("DISPLAY") == "" && s.Env("WAYLAND_DISPLAY") == "":
		return nil
	default:
		program = []string{"xdg-open"}
	}
	return func(address string) error {
		cmd := exec.Command(program[0], append(program[1:], address)...)
		if err := cmd.Start(); err != nil {
			return err
		}
		go cmd.Wait()
		return nil
	}
}

// instance is whom to ask and what it must verify under: the public good
// instance, where no other is named.
func (f *signFlags) instance(ctx context.Context, s *Streams, roots rootFlags) (trusted []*verify.Root, config []byte, err error) {
	if f.config != "" {
		if config, err = readSmall(f.config, attest.MaxTrustedRoot); err != nil {
			return nil, nil, fmt.Errorf("reading signing config %q: %w", f.config, err)
		}
		var req gate.Request
		if err := roots.readRoots(ctx, s, &req); err != nil {
			return nil, nil, exitError{ExitUsage, err}
		}
		return req.Roots, config, req.Missing
	}
	if roots.sigstore == "" {
		roots.sigstore = "public"
	}
	instance, err := roots.instance()
	if err != nil {
		return nil, nil, exitError{ExitUsage, err}
	}
	r, got, err := fetchRoot(ctx, s, *instance, trust.FetchOptions{Offline: roots.offline, Signing: true})
	if err != nil {
		return nil, nil, err
	}
	return []*verify.Root{r}, got.Signing, nil
}

// checkMade judges what was just signed as verify will: under the roots, as
// signed by whom the certificate names, and unlogged as in an outage of now.
func checkMade(roots []*verify.Root, b *attest.Bundle, by sign.Identity, unlogged bool) error {
	now := time.Now()
	o := verify.IdentityOptions{Issuer: by.Issuer, SAN: by.Name}
	if unlogged {
		o.Outages = []verify.Outage{{From: now.Add(-time.Hour), Until: now.Add(time.Hour), Reason: "--unlogged"}}
	}
	id, err := verify.NewIdentity(o)
	if err != nil {
		return err
	}
	_, err = judgeMade(verify.Trust{Roots: roots, Identities: []verify.Identity{id}}, b, now)
	return err
}

// judgeMade judges what was just signed by its first subject.
func judgeMade(trust verify.Trust, b *attest.Bundle, now time.Time) (verify.Signer, error) {
	checker, err := verify.NewChecker(trust, now)
	if err != nil {
		return verify.Signer{}, err
	}
	err = errors.New("its subjects are neither files nor commits")
	var ok *verify.Accepted
	for _, sub := range b.Statement().Subject {
		if sum := sub.Digest["sha256"]; sum != "" {
			ok, err = checker.Check(b, attest.Digest("sha256:"+sum))
			break
		}
		if id := sub.Commit(); id != "" {
			ok, err = checker.CheckCommit(b, id)
			break
		}
	}
	if err != nil {
		return verify.Signer{}, err
	}
	return ok.Signer(), nil
}
