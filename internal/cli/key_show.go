package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/verify"
)

func newKeyShowCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [flags] FILE|REF",
		Short: "Say what a key is, and how a policy names it",
		Long: `show says of a key file, or of a key that something else holds (a KMS, a token),
what kind of key it is, its id (the sha256 of its public half, by which policies
pin it and verdicts name it), the hint that bundles carry, and the lines of a
policy that trust it.

No password is asked for: of an encrypted private key, FILE.pub beside FILE.key
is shown. --unlock opens the key, and says whether the two belong together.`,
		Example: `  waxseal key show waxseal.key
  waxseal key show --unlock --output json release.key
  waxseal key show awskms:///alias/release`,
		Args: cobra.ExactArgs(1),
	}
	unlock := cmd.Flags().Bool("unlock", false, "open the private key, with its password, and compare it with the public one beside it")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		k, err := showKey(cmd.Context(), s, args[0], *unlock)
		if err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(s, k)
		}
		return k.print(s)
	}
	return cmd
}

// shownKey is what `waxseal key show` says; its JSON is the command's output.
type shownKey struct {
	Key       string `json:"key"`
	Kind      string `json:"kind"` // "private", "public" or "kms": something else holds it
	Encrypted bool   `json:"encrypted"`
	Mode      string `json:"mode,omitempty"` // of the file, in octal digits
	// Of the public half; empty where nothing shows it.
	Type          string        `json:"type,omitempty"`
	ID            attest.Digest `json:"id,omitempty"`
	Hint          string        `json:"hint,omitempty"`
	PublicKey     string        `json:"publicKey,omitempty"`     // PEM
	PublicKeyFrom string        `json:"publicKeyFrom,omitempty"` // "file", "beside", "unlocked", "kms" or "variable"
	Signer        string        `json:"signer,omitempty"`        // as YAML, of a policy
}

func showKey(ctx context.Context, s *Streams, name string, unlock bool) (*shownKey, error) {
	if keys.IsRef(name) {
		raw, err := readKeyPEM(ctx, s, name)
		if err != nil {
			return nil, err
		}
		ref := keys.Name(name)
		k := &shownKey{Key: ref, Kind: "kms"}
		if err := k.public(ref, raw, "kms"); err != nil {
			return nil, err
		}
		if strings.HasPrefix(ref, "env://") {
			k.Kind, k.PublicKeyFrom = "public", "variable"
			return k, nil
		}
		k.Signer = policy.SignerLine("kms", keys.InFile(ref, k.ID))
		return k, nil
	}
	if err := guard(); err != nil {
		return nil, err
	}
	file, err := sign.ReadKeyFile(name)
	if err != nil {
		return nil, err
	}
	k := &shownKey{Key: name, Kind: "public", Encrypted: file.Encrypted, Mode: fmt.Sprintf("%04o", file.Mode)}
	if !file.Private {
		k.Signer = policy.SignerLine("key", name)
		return k, k.public(name, file.Public, "file")
	}
	k.Kind = "private"
	pub := publicBeside(name)
	beside, err := readSmall(pub, attest.MaxKey)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("reading public key %q: %w", pub, err)
	default:
		if err := k.public(pub, beside, "beside"); err != nil {
			return nil, err
		}
		k.Signer = policy.SignerLine("key", pub)
	}
	return k, k.open(ctx, s, file, pub, unlock)
}

// open looks into the private key, where that needs no password or was asked
// for.
func (k *shownKey) open(ctx context.Context, s *Streams, file *sign.KeyFile, pub string, unlock bool) error {
	inside, from := file.Public, "file"
	if file.Encrypted {
		if !unlock {
			return nil
		}
		signer, err := openSigner(ctx, s, k.Key)
		if err != nil {
			return err
		}
		inside, from = signer.PublicKey(), "unlocked"
		if err := signer.Close(); err != nil {
			return err
		}
	}
	before := k.ID
	if err := k.public(k.Key, inside, from); err != nil {
		return err
	}
	if before != "" && before != k.ID {
		return hinted{fmt.Errorf("%q is not the public half of %q", pub, k.Key), "whoever verifies needs " + string(k.ID) + "; move the other file away"}
	}
	return nil
}

// public fills in what the public half shows.
func (k *shownKey) public(name string, raw []byte, from string) error {
	key, err := verify.ParseKey(name, raw)
	if err != nil {
		return err
	}
	k.Type, k.ID, k.Hint, k.PublicKey, k.PublicKeyFrom = key.Type(), key.ID(), key.Hint(), string(raw), from
	return nil
}

func (k *shownKey) print(s *Streams) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-8s"+format+"\n", append([]any{name}, args...)...)
	}
	what := map[string]string{"private": "private key", "public": "public key", "kms": "something else holds it"}[k.Kind]
	switch {
	case k.Encrypted:
		what += ", encrypted with a password"
	case k.Kind == "private":
		what += `, not encrypted: "waxseal key import" encrypts it`
	}
	line("key", "%s", k.Key)
	line("kind", "%s", what)
	if k.Mode != "" {
		line("mode", "%s", k.Mode)
	}
	if k.ID == "" {
		line("type", "not known: there is no public key beside it, and --unlock was not given")
		_, err := fmt.Fprint(s.Out, b.String())
		return err
	}
	line("type", "%s%s", k.Type, map[string]string{"beside": ", says the public key beside it"}[k.PublicKeyFrom])
	line("id", "%s", k.ID)
	line("hint", "%s", k.Hint)
	if k.Signer != "" {
		line("policy", "signer: %s", k.Signer)
	} else {
		line("policy", "signer:\n          pem: |\n            %s", strings.ReplaceAll(strings.TrimSpace(k.PublicKey), "\n", "\n            "))
	}
	_, err := fmt.Fprint(s.Out, b.String())
	return err
}

// keyNamed is a public key as a policy names one: in a file, in the one beside a
// private key, or in a KMS.
func keyNamed(ctx context.Context, s *Streams, name string) (*shownKey, error) {
	if strings.HasPrefix(name, "env://") {
		return nil, usagef("%s: a key in a variable has no place in a policy; give its file", name)
	}
	k, err := showKey(ctx, s, name, false)
	if err == nil && k.Kind == "private" {
		return showKey(ctx, s, publicBeside(name), false)
	}
	return k, err
}

// publicBeside is where key generate writes the public half of a private key.
func publicBeside(name string) string { return strings.TrimSuffix(name, ".key") + ".pub" }
