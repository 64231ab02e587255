package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/keys"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// rotateFlags are what `waxseal key rotate` takes.
type rotateFlags struct {
	policy string
	prefix string
	to     string
	until  string
	revoke string
	dry    bool
	output string
}

func newKeyRotateCmd(s *Streams) *cobra.Command {
	var f rotateFlags
	cmd := &cobra.Command{
		Use:   "rotate [flags] OLD",
		Short: "Make the key that follows another, and say so in a policy",
		Long: `rotate makes a new key pair, as key generate does, and writes into the policy that
the old key OLD (its public key, or a reference to a KMS) counts until now, and
the new one from now on: an until in every entry of the old key, and below each
the same entry with the new key. Comments and layout stay as they are. The keys
are written first and the policy last, all at once.

What the old key signed goes on to count where a log or a time stamp proves that
it was before the end; where nothing does, it counts no more. With --until the
old key counts longer, while pipelines change over.

--revoke is for a key that may be in other hands: give the moment from which on
with --until. Only what is proved to be older counts then.

Without --policy, the lines for the policy are printed.`,
		Example: `  waxseal key rotate --policy policy.yaml --output-prefix release-2027 release.pub
  waxseal key rotate --policy policy.yaml --to awskms:///alias/release release.pub
  waxseal key rotate --policy policy.yaml --output-prefix release-2027 \
    --revoke "in the log of a job" --until 2026-12-24T17:00:00Z release.pub`,
		Args: cobra.ExactArgs(1),
	}
	fl := cmd.Flags()
	fl.StringVar(&f.policy, "policy", "", "policy `FILE` to change")
	fl.StringVar(&f.prefix, "output-prefix", "", "write the new key to `PREFIX`.key and PREFIX.pub (default: OLD's name with the day)")
	fl.StringVar(&f.to, "to", "", "take the key whose public half is in `FILE|REF` for the new one, and make none")
	fl.StringVar(&f.until, "until", "", "`TIME` up to which the old key counts, as 2026-12-01 or 2026-12-01T12:00:00Z (default: now)")
	fl.StringVar(&f.revoke, "revoke", "", "the old key is revoked as of --until, for this `REASON`")
	fl.BoolVar(&f.dry, "dry-run", false, "print the policy as it would be, and write nothing")
	_ = cmd.MarkFlagFilename("policy", "yaml", "yml") // fails for flags that do not exist
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		raw, err := readSmall(f.policy, attest.MaxPolicy)
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		_, named := policy.Names(raw)
		for i, k := range named {
			if !keys.IsRef(k) && !filepath.IsAbs(k) {
				named[i] = filepath.Join(filepath.Dir(f.policy), k)
			}
		}
		return named, cobra.ShellCompDirectiveDefault
	}
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		f.output = *output
		return f.rotate(cmd.Context(), s, args[0])
	}
	return cmd
}

func (f *rotateFlags) check() error {
	switch {
	case f.to != "" && f.prefix != "":
		return usagef("--to names a key that is there, and --output-prefix makes one: give one of them")
	case f.dry && f.policy == "":
		return usagef("--dry-run prints the policy, and there is no --policy")
	case strings.ContainsAny(f.revoke, "\n\r"):
		return usagef("--revoke: the reason must be one line")
	}
	return checkOutput(f.output)
}

// rotated is what `waxseal key rotate` did; its JSON is the command's output.
type rotated struct {
	Old        attest.Digest `json:"old"`
	New        attest.Digest `json:"new"`
	PrivateKey string        `json:"privateKey,omitempty"` // files that were made
	PublicKey  string        `json:"publicKey,omitempty"`
	From       time.Time     `json:"from"`  // when the new key begins to count
	Until      time.Time     `json:"until"` // when the old one ends to
	Policy     string        `json:"policy,omitempty"`
	Digest     attest.Digest `json:"policyDigest,omitempty"` // that it has now
	Entries    int           `json:"entries"`                // of the old key in it
	OldSigner  string        `json:"oldSigner"`              // as YAML
	NewSigner  string        `json:"newSigner"`
}

func (f *rotateFlags) rotate(ctx context.Context, s *Streams, name string) error {
	if err := f.check(); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	until, err := parseMoment("--until", f.until)
	if err != nil {
		return err
	}
	if until.IsZero() {
		until = now
	}
	old, err := keyNamed(ctx, s, name)
	if err != nil {
		return err
	}
	pair, r, err := f.successor(ctx, s, old, now)
	if err != nil {
		return err
	}
	r.Old, r.From, r.Until, r.Reason = old.ID, now, until, f.revoke
	next, err := verify.ParseKey(r.New, r.PEM)
	if err != nil {
		return err
	}
	out := &rotated{Old: old.ID, New: next.ID(), From: now, Until: until, Policy: f.policy, NewSigner: "{" + r.NewFields() + "}"}
	out.OldSigner = strings.TrimSuffix(old.Signer, "}") + ", " + r.OldFields() + "}"
	var text []byte
	if f.policy != "" {
		if text, out.Entries, err = f.rewrite(ctx, s, *r); err != nil {
			return err
		}
		out.Digest = attest.DigestOf(text)
	}
	if f.dry {
		_, err := s.Out.Write(text)
		return err
	}
	// An interrupt finds all of it done or nothing.
	if err := uninterrupted(ctx, func() error { return f.write(pair, text) }); err != nil {
		return err
	}
	if pair != nil {
		out.PrivateKey, out.PublicKey = pair.private, pair.public
	}
	if f.output == "json" {
		return printJSON(s, out)
	}
	if pair != nil {
		pair.tell(s)
	}
	return out.print(s)
}

// write writes the new pair, where there is one, and then the policy, where one was
// given; an error leaves neither.
func (f *rotateFlags) write(pair *keyPair, text []byte) error {
	if pair != nil {
		if err := pair.write(); err != nil {
			return err
		}
	}
	if f.policy == "" {
		return nil
	}
	err := replaceFile(f.policy, text)
	if err != nil && pair != nil {
		err = errors.Join(err, pair.remove())
	}
	return err
}

// print says what is different now, and what is left to do.
func (r *rotated) print(s *Streams) error {
	var b strings.Builder
	if r.Policy != "" {
		fmt.Fprintf(&b, "policy       %s (%s; now %s)\n", r.Policy, entries(r.Entries), r.Digest)
	}
	fmt.Fprintf(&b, "old          signer: %s\nnew          signer: %s\n", r.OldSigner, r.NewSigner)
	_, err := s.Out.Write([]byte(b.String()))
	if signature := r.Policy + policy.SignatureSuffix; r.Policy != "" && err == nil {
		if _, gone := os.Stat(signature); gone == nil {
			fmt.Fprintf(s.Err, "waxseal: %s signs the policy as it was: move it away and sign anew with \"waxseal policy sign\"\n", signature)
		}
	}
	return err
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

// successor is the new key: one that is there, or a pair that is in no file yet.
func (f *rotateFlags) successor(ctx context.Context, s *Streams, old *shownKey, now time.Time) (*keyPair, *policy.Rotation, error) {
	if f.to != "" {
		k, err := keyNamed(ctx, s, f.to)
		if err != nil {
			return nil, nil, err
		}
		r := &policy.Rotation{New: k.Key, KMS: k.Kind == "kms", PEM: []byte(k.PublicKey)}
		switch {
		case !r.KMS:
			r.New = f.beside(k.Key)
		case strings.HasPrefix(k.Key, "pkcs11:"): // others as they are named: an alias may follow its key
			r.New = keys.InFile(k.Key, k.ID)
		}
		return nil, r, nil
	}
	prefix := f.prefix
	if prefix == "" {
		if old.Kind == "kms" {
			return nil, nil, usagef("say where the new key is, with --to REF, or where to write one, with --output-prefix")
		}
		prefix = strings.TrimSuffix(strings.TrimSuffix(old.Key, ".key"), ".pub") + "-" + now.Format("20060102")
	}
	if f.dry {
		// Nobody will have this key.
		_, public, err := sign.GenerateKeyPair(nil)
		return nil, &policy.Rotation{New: f.beside(prefix + ".pub"), PEM: public}, err
	}
	pair, err := newPair(ctx, s, prefix, sign.GenerateKeyPair)
	if err != nil {
		return nil, nil, err
	}
	return pair, &policy.Rotation{New: f.beside(pair.public), PEM: pair.publicPEM}, nil
}

// beside is a file as the policy names it.
func (f *rotateFlags) beside(file string) string {
	if f.policy == "" {
		return file
	}
	return relativeTo(filepath.Dir(f.policy), file)
}

// rewrite is the policy with the rotation in it.
func (f *rotateFlags) rewrite(ctx context.Context, s *Streams, r policy.Rotation) ([]byte, int, error) {
	text, n, err := policy.RotateFile(f.policy, r, loadOptions(ctx, s))
	if err != nil {
		var missing *trust.UnavailableError
		if errors.As(err, &missing) {
			return nil, 0, err
		}
		return nil, 0, hinted{err, "nothing was written"}
	}
	return text, n, nil
}

// replaceFile puts other text in the place of a file's, all at once, with its
// permissions, wherever a link leads.
func replaceFile(path string, text []byte) error {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, errors.Unwrap(err))
	}
	return writeBeside(real, text, 0o600, func(f *os.File) error {
		if err := f.Chmod(info.Mode().Perm()); err != nil {
			return err
		}
		return os.Rename(f.Name(), real)
	})
}
