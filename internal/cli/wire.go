package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/sign"
)

// passwordVariable is cosign's, so that one pipeline serves both.
const passwordVariable = "COSIGN_PASSWORD"

// openSigner opens the private key that ref names, asking for its password
// only when it has one.
func openSigner(ctx context.Context, s *Streams, ref string) (sign.Signer, error) {
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
