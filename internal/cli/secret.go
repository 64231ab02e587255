package cli

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/sign"
)

// Environment is os.LookupEnv for a process that starts others: none of them
// inherits the password of a key, whichever way it is started.
func Environment() func(name string) (string, bool) {
	password, set := os.LookupEnv(passwordVariable)
	if !set {
		return os.LookupEnv
	}
	// It fails for a name that is none. What the process was started with stays
	// in its memory; guard keeps that to itself.
	_ = os.Unsetenv(passwordVariable)
	// openSigner says so where it fails.
	_ = guard()
	return func(name string) (string, bool) {
		if name == passwordVariable {
			return password, true
		}
		return os.LookupEnv(name)
	}
}

// guard closes this process to all others but root's, before it holds a key: its
// memory and environment in /proc, a debugger, a core dump. It stays so; what
// Close of a key cannot reach is still there. A child that runs another program
// is a process like any other, and keeps what limit of cores the user set.
func guard() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("closing this process to others before it holds a key: %w", err)
	}
	return nil
}

// try is how to tell at once whether a signer will open that is opened when there
// is something to sign; nil for one that is better opened at once: it asks a
// person, or somebody else has its key.
func (f *signFlags) try(s *Streams) func(context.Context) error {
	if f.early() || keys.IsRef(f.key) || !s.has(passwordVariable) {
		return nil
	}
	return func(context.Context) error {
		return sign.Try(f.key, sign.OpenOptions{Password: func() ([]byte, error) {
			return askPassword(s, fmt.Sprintf("Password of %s: ", f.key))
		}})
	}
}
