package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/sign"
)

func newKeyCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Make, import, show and rotate signing keys",
		Args:  noCommand,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKeyGenerateCmd(s), newKeyImportCmd(s), newKeyShowCmd(s), newKeyRotateCmd(s))
	return cmd
}

func newKeyGenerateCmd(s *Streams) *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:   "generate",
		Short: "Make a key pair that waxseal and cosign both read",
		Long: `generate makes an ECDSA P-256 key pair and writes PREFIX.key, encrypted with a
password and readable by you alone, and PREFIX.pub, which verifies. The password
is asked for, or taken from COSIGN_PASSWORD. Nothing is overwritten.`,
		Example: `  waxseal key generate
  COSIGN_PASSWORD= waxseal key generate --output-prefix release`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().StringVar(&prefix, "output-prefix", "waxseal", "write `PREFIX`.key and PREFIX.pub")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return makeKey(cmd.Context(), s, prefix, sign.GenerateKeyPair)
	}
	return cmd
}

func newKeyImportCmd(s *Streams) *cobra.Command {
	var prefix string
	cmd := &cobra.Command{
		Use:   "import [flags] FILE",
		Short: "Encrypt a private key that is there already",
		Long: `import reads a plain PEM private key (PKCS#8, SEC1 or PKCS#1; ECDSA, Ed25519,
RSA of 2048 bits and more) that nobody but you may read, and writes it as key
generate does: PREFIX.key, encrypted with a password, and PREFIX.pub. Nothing is
overwritten, and FILE stays as it is: remove it once the new one works.`,
		Example: `  openssl ecparam -name prime256v1 -genkey -noout -out plain.pem && chmod 600 plain.pem
  waxseal key import --output-prefix release plain.pem`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&prefix, "output-prefix", "waxseal", "write `PREFIX`.key and PREFIX.pub")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return makeKey(cmd.Context(), s, prefix, func(password []byte) (private, public []byte, err error) {
			return sign.ImportKeyPair(args[0], password)
		})
	}
	return cmd
}

// makeKey writes the pair that pair returns for a password.
func makeKey(ctx context.Context, s *Streams, prefix string, pair func(password []byte) (private, public []byte, err error)) error {
	made, err := newPair(ctx, s, prefix, pair)
	if err != nil {
		return err
	}
	if err := uninterrupted(ctx, made.write); err != nil {
		return err
	}
	made.tell(s)
	return nil
}

// keyPair is a pair that is in no file yet.
type keyPair struct {
	private, public       string // files
	privatePEM, publicPEM []byte
	open                  bool // the password is empty
}

// newPair makes a pair for files that are not there.
func newPair(ctx context.Context, s *Streams, prefix string, pair func(password []byte) (private, public []byte, err error)) (*keyPair, error) {
	made := &keyPair{private: prefix + ".key", public: prefix + ".pub"}
	// Said before the password is asked for; writeNew is what holds.
	for _, path := range []string{made.private, made.public} {
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("writing %q: it is there already; move it away or give another --output-prefix", path)
		}
	}
	if err := guard(); err != nil {
		return nil, err
	}
	password, err := newPassword(ctx, s)
	if err != nil {
		return nil, err
	}
	defer clear(password)
	made.open = len(password) == 0
	made.privatePEM, made.publicPEM, err = pair(password)
	return made, err
}

func (k *keyPair) write() error {
	if err := writeNew(k.private, k.privatePEM, 0o600); err != nil {
		return err
	}
	if err := writeNew(k.public, k.publicPEM, 0o644); err != nil {
		// Half a pair is worse than none: the next try would refuse it.
		return errors.Join(err, os.Remove(k.private))
	}
	return nil
}

// remove takes back what write wrote.
func (k *keyPair) remove() error {
	return errors.Join(os.Remove(k.private), os.Remove(k.public))
}

func (k *keyPair) tell(s *Streams) {
	how := "encrypted; keep it secret"
	if k.open {
		how = "no password protects it; keep it secret"
	}
	fmt.Fprintf(s.Out, "private key  %s (%s)\npublic key   %s (give it to whoever verifies)\n", k.private, how, k.public)
	if k.open {
		fmt.Fprintln(s.Err, "waxseal: the password is empty: whoever reads the private key file can sign")
	}
}
