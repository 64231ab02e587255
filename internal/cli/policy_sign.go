package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/verify"
)

func newPolicySignCmd(s *Streams) *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use:   "sign --key KEY FILE",
		Short: "Sign a policy, so that it can be required to be signed",
		Long: `sign checks a policy and writes a signed statement about it as a Sigstore bundle
beside it, FILE.sigstore.json. It covers the policies that it extends, which the
file names by digest, and the files that they name as keys, roots and CAs. Where
--policy-key is given, a policy is used only when one
of those keys signed it as it is.`,
		Example: `  waxseal policy sign --key security.key policy.yaml
  waxseal verify --policy policy.yaml --policy-key security.pub registry.example/app:1.0`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().StringVar(&key, "key", "", "private `KEY` to sign with"+keyForms)
	// The flag was defined above, so this cannot fail.
	_ = cmd.MarkFlagRequired("key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p, err := loadPolicy(cmd.Context(), s, args[0])
		if err != nil {
			return policyError(err)
		}
		st, err := p.Statement()
		if err != nil {
			return err
		}
		signer, err := openSigner(cmd.Context(), s, key)
		if err != nil {
			return err
		}
		defer signer.Close()
		bundle, err := signer.Sign(cmd.Context(), st)
		if err != nil {
			return err
		}
		out := args[0] + policy.SignatureSuffix
		if err := writeNew(out, bundle.Raw(), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(s.Err, "Wrote %s for %s\n", out, p.Digest())
		return nil
	}
	return cmd
}

// signedPolicy loads a policy, which one of the keys must have signed where any
// are given.
func signedPolicy(ctx context.Context, s *Streams, path string, keyFiles []string, check func(path string) error) (*policy.Policy, error) {
	if path == "" {
		if len(keyFiles) > 0 {
			return nil, fmt.Errorf("--policy-key says who must have signed the policy, and there is no --policy")
		}
		return nil, nil
	}
	opts := loadOptions(ctx, s)
	opts.Check = check
	p, err := policy.LoadWith(path, opts)
	if err != nil || len(keyFiles) == 0 {
		return p, err
	}
	var keys []verify.Key
	for _, file := range keyFiles {
		k, err := readKey(ctx, s, file)
		if err != nil {
			return nil, err
		}
		keys = append(keys, k)
	}
	if _, err := p.CheckSigned(keys); err != nil {
		return nil, err
	}
	return p, nil
}
