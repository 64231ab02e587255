package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// readKeyPEM reads the public key that name stands for: a file, or a key
// management service's.
func readKeyPEM(ctx context.Context, s *Streams, name string) ([]byte, error) {
	if !trust.IsKMS(name) {
		return readSmall(name, attest.MaxKey)
	}
	return fetchKey(ctx, s, name)
}

func fetchKey(ctx context.Context, s *Streams, ref string) ([]byte, error) {
	return trust.PublicKey(ctx, ref, trust.KeyOptions{Cache: xdgDir(s.Env, "XDG_CACHE_HOME", ".cache"), Environ: os.Environ()})
}

func readKey(ctx context.Context, s *Streams, name string) (verify.Key, error) {
	raw, err := readKeyPEM(ctx, s, name)
	switch {
	case err != nil && trust.IsKMS(name):
		return verify.Key{}, err // it says which key
	case err != nil:
		return verify.Key{}, fmt.Errorf("reading public key %q: %w", name, err)
	}
	return verify.ParseKey(name, raw)
}

// loadPolicy loads a policy with the keys that it names, wherever they are.
func loadPolicy(ctx context.Context, s *Streams, path string) (*policy.Policy, error) {
	return policy.LoadWith(path, loadOptions(ctx, s))
}

// loadOptions fetches each key of a policy once, however many builders it signs
// for.
func loadOptions(ctx context.Context, s *Streams) policy.LoadOptions {
	fetched := map[string][]byte{}
	return policy.LoadOptions{ReadKMS: func(ref string) ([]byte, error) {
		if raw, ok := fetched[ref]; ok {
			return raw, nil
		}
		raw, err := fetchKey(ctx, s, ref)
		if err == nil {
			fetched[ref] = raw
		}
		return raw, err
	}}
}

// policyError gives the error of a policy that cannot be loaded its exit code.
func policyError(err error) error {
	var missing *trust.UnavailableError
	if errors.As(err, &missing) {
		return exitError{ExitUndecided, err}
	}
	return exitError{ExitUsage, err}
}

// passwordVariable is cosign's, so that one pipeline serves both.
const passwordVariable = "COSIGN_PASSWORD"

// openSigner opens the private key that ref names, asking for its password
// only when it has one.
func openSigner(ctx context.Context, s *Streams, ref string) (sign.Signer, error) {
	if err := guard(); err != nil {
		return nil, err
	}
	return sign.Open(ctx, ref, sign.OpenOptions{Password: func() ([]byte, error) {
		return askPassword(s, fmt.Sprintf("Password of %s: ", ref))
	}})
}

// newPassword asks for the password of a key that is being made, twice where
// a person types it.
func newPassword(s *Streams) ([]byte, error) {
	first, err := askPassword(s, "Password for the new key (empty for none): ")
	if err != nil || s.has(passwordVariable) {
		return first, err
	}
	again, err := askPassword(s, "The same again: ")
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(first, again) {
		return nil, errors.New("reading the password: the two are not the same")
	}
	return first, nil
}

// askPassword takes the password from the environment, else from a person at
// a terminal. It never reads one from a pipe: stdin may be a build context.
func askPassword(s *Streams, prompt string) ([]byte, error) {
	if s.has(passwordVariable) {
		return []byte(s.Env(passwordVariable)), nil
	}
	in, ok := s.In.(*os.File)
	if !ok || !term.IsTerminal(int(in.Fd())) {
		return nil, hinted{
			errors.New("reading the key's password: there is no terminal to ask at"),
			"set " + passwordVariable + " in the environment (to nothing for a key without a password)",
		}
	}
	fmt.Fprint(s.Err, prompt)
	password, err := term.ReadPassword(int(in.Fd()))
	fmt.Fprintln(s.Err)
	if err != nil {
		return nil, fmt.Errorf("reading the key's password: %w", err)
	}
	return password, nil
}

// hinted is an error with the way out of it.
type hinted struct {
	error
	way string
}

func (h hinted) Hint() string  { return h.way }
func (h hinted) Unwrap() error { return h.error }
