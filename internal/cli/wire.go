package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// readKeyPEM reads the public key that name stands for: a file, a variable, or a
// key that something else holds.
func readKeyPEM(ctx context.Context, s *Streams, name string) ([]byte, error) {
	variable, inEnv := strings.CutPrefix(name, "env://")
	switch {
	case inEnv && !s.has(variable):
		return nil, errors.New("the variable is not set")
	case inEnv:
		return []byte(s.Env(variable)), nil
	case keys.IsRef(name):
		return trust.PublicKey(ctx, name, publicKeyOptions(ctx, s))
	}
	return readSmall(name, attest.MaxKey)
}

// sharedMemory is where public keys are kept that nothing proves: see
// trust.KeyOptions.
const sharedMemory = "/dev/shm"

func publicKeyOptions(ctx context.Context, s *Streams) trust.KeyOptions {
	return trust.KeyOptions{Cache: xdgDir(s.Env, "XDG_CACHE_HOME", ".cache"), Memory: sharedMemory, Keys: keyOptions(ctx, s)}
}

// The variables about PKCS#11 are cosign's, too.
const (
	pinVariable    = "COSIGN_PKCS11_PIN"
	moduleVariable = "COSIGN_PKCS11_MODULE_PATH"
)

// keyOptions is how keys are asked for that something else holds.
func keyOptions(ctx context.Context, s *Streams) keys.Options {
	return keys.Options{
		Environ: os.Environ(),
		Module:  s.Env(moduleVariable),
		PIN:     func(token string) ([]byte, error) { return askPIN(ctx, s, token) },
		Tell:    func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) },
	}
}

func readKey(ctx context.Context, s *Streams, name string) (verify.Key, error) {
	raw, err := readKeyPEM(ctx, s, name)
	switch {
	case err != nil && keys.IsRef(name) && !strings.HasPrefix(name, "env://"):
		return verify.Key{}, err // it says which key
	case err != nil:
		return verify.Key{}, fmt.Errorf("reading public key %q: %w", name, err)
	}
	return verify.ParseKey(keys.Name(name), raw)
}

// loadPolicy loads a policy with the keys that it names, wherever they are.
func loadPolicy(ctx context.Context, s *Streams, path string) (*policy.Policy, error) {
	return policy.LoadWith(path, loadOptions(ctx, s))
}

// loadOptions fetches each key of a policy once, however many builders it signs
// for.
func loadOptions(ctx context.Context, s *Streams) policy.LoadOptions {
	fetched := map[string][]byte{}
	opts := publicKeyOptions(ctx, s)
	opts.InFile = true
	return policy.LoadOptions{ReadKMS: func(ref string) ([]byte, error) {
		if raw, ok := fetched[ref]; ok {
			return raw, nil
		}
		raw, err := trust.PublicKey(ctx, ref, opts)
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

// openSigner opens the private key that ref names, asking for its password or
// PIN only when it has one.
func openSigner(ctx context.Context, s *Streams, ref string) (sign.Signer, error) {
	if err := guard(); err != nil {
		return nil, err
	}
	return sign.Open(ctx, ref, openOptions(ctx, s, ref))
}

// openLate is openSigner for a key that signs much later. Whoever types a
// password or a PIN is told at once that it is wrong; everybody else is not kept
// waiting, see ready.
func openLate(ctx context.Context, s *Streams, ref string) (sign.Signer, error) {
	if err := guard(); err != nil {
		return nil, err
	}
	opts := openOptions(ctx, s, ref)
	if self, err := os.Executable(); err == nil {
		opts.Apart = []string{self, tryKeyName}
	}
	asks := strings.HasPrefix(ref, "pkcs11:") && s.asksPIN()
	password := opts.Password
	opts.Password = func() ([]byte, error) {
		asks = !s.hasSecret(passwordVariable)
		return password()
	}
	signer, err := sign.OpenLate(ctx, ref, opts)
	if err != nil || !asks {
		return signer, err
	}
	if err := ready(signer)(ctx); err != nil {
		return nil, errors.Join(err, signer.Close())
	}
	return signer, nil
}

func openOptions(ctx context.Context, s *Streams, ref string) sign.OpenOptions {
	return sign.OpenOptions{
		Password: func() ([]byte, error) { return askPassword(ctx, s, fmt.Sprintf("Password of %s: ", ref)) },
		Take:     s.take,
		Keys:     keyOptions(ctx, s),
	}
}

// asksPIN reports whether a person may be asked for the PIN of a token.
func (s *Streams) asksPIN() bool {
	_, there := s.terminal()
	return there && !s.hasSecret(pinVariable)
}

// askPIN takes the PIN of a token from the environment, else from a person at a
// terminal.
func askPIN(ctx context.Context, s *Streams, token string) ([]byte, error) {
	if pin, set := s.secret(pinVariable); set {
		return pin, nil
	}
	return askSecret(ctx, s, "the token's PIN", fmt.Sprintf("PIN of the token %s: ", token),
		"set "+pinVariable+" in the environment, or give a file that has it, with pin-source= in the URI")
}

// newPassword asks for the password of a key that is being made, twice where
// a person types it.
func newPassword(ctx context.Context, s *Streams) ([]byte, error) {
	if password, set := s.secret(passwordVariable); set {
		return password, nil
	}
	first, err := askPassword(ctx, s, "Password for the new key (empty for none): ")
	if err != nil {
		return nil, err
	}
	again, err := askPassword(ctx, s, "The same again: ")
	if err != nil {
		return nil, err
	}
	defer clear(again)
	if !bytes.Equal(first, again) {
		clear(first)
		return nil, errors.New("reading the password: the two are not the same")
	}
	return first, nil
}

// askPassword takes the password from the environment, else from a person at
// a terminal. It never reads one from a pipe: stdin may be a build context.
func askPassword(ctx context.Context, s *Streams, prompt string) ([]byte, error) {
	if password, set := s.secret(passwordVariable); set {
		return password, nil
	}
	return askSecret(ctx, s, "the key's password", prompt, "set "+passwordVariable+" in the environment (to nothing for a key without a password)")
}

// hinted is an error with the way out of it.
type hinted struct {
	error
	way string
}

func (h hinted) Hint() string  { return h.way }
func (h hinted) Unwrap() error { return h.error }
