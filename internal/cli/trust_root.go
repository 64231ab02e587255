package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

func newTrustCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trust",
		Short: "Show, fetch and pin the trusted roots of Sigstore instances",
		Long: `A trusted root names the certificate authorities, transparency logs and
time-stamping authorities of one Sigstore instance, each with its time of
validity. Certificates are checked against --trusted-root FILE, for which
nothing is fetched, or against the root of --sigstore public, which is fetched
through TUF: verified from the root that is built in, kept below
$XDG_CACHE_HOME/waxseal for a day, and never used past its expiry.`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newTrustShowCmd(s), newTrustFetchCmd(s), newTrustPinCmd(s))
	return cmd
}

// shownRoot is a root as show prints it.
type shownRoot struct {
	gate.Root
	SoonestExpiry time.Time     `json:"soonestExpiry,omitzero"`
	Parts         []verify.Part `json:"parts"`
}

func newTrustShowCmd(s *Streams) *cobra.Command {
	var flags rootFlags
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Say what a trusted root makes trusted, and until when",
		Example: `  waxseal trust show --trusted-root root.json
  waxseal trust show --sigstore public --output json`,
		Args: cobra.NoArgs,
	}
	flags.register(cmd.Flags())
	completePublic(cmd)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		var req gate.Request
		switch err := flags.readRoots(cmd.Context(), s, &req); {
		case err != nil:
			return exitError{ExitUsage, err}
		case req.Missing != nil:
			return exitError{ExitUndecided, req.Missing}
		case len(req.Roots) == 0:
			return usagef("there is nothing to show: give --trusted-root FILE or --sigstore public")
		}
		var all []shownRoot
		for _, r := range req.Roots {
			all = append(all, showRoot(r))
		}
		if *output == "json" {
			return printJSON(s, all)
		}
		return printRoots(s, all)
	}
	return cmd
}

func showRoot(r *verify.Root) shownRoot {
	o := r.Origin()
	out := shownRoot{Root: gate.Root{Name: r.Name(), Digest: r.ID(), FetchedAt: o.FetchedAt, ValidUntil: o.ValidUntil}, Parts: r.Parts()}
	now := time.Now()
	for _, p := range out.Parts {
		if p.Until.After(now) && (out.SoonestExpiry.IsZero() || p.Until.Before(out.SoonestExpiry)) {
			out.SoonestExpiry = p.Until
		}
	}
	return out
}

func printRoots(s *Streams, all []shownRoot) error {
	w := tabwriter.NewWriter(s.Out, 0, 0, 2, ' ', 0)
	for i, r := range all {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "%s\n  %s\n", r.Name, r.Digest)
		if !r.ValidUntil.IsZero() {
			fmt.Fprintf(w, "  fetched %s, valid until %s\n", r.FetchedAt.UTC().Format(time.RFC3339), r.ValidUntil.Format(time.RFC3339))
		}
		for _, p := range r.Parts {
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", p.Kind, day(p.From), day(p.Until), p.Name)
		}
		if !r.SoonestExpiry.IsZero() {
			fmt.Fprintf(w, "  the first of these ends on %s\n", r.SoonestExpiry.UTC().Format(time.DateOnly))
		}
	}
	return w.Flush()
}

func day(t time.Time) string {
	if t.IsZero() {
		return "open"
	}
	return t.UTC().Format(time.DateOnly)
}

func newTrustFetchCmd(s *Streams) *cobra.Command {
	var flags rootFlags
	var out string
	var replace bool
	cmd := &cobra.Command{
		Use:   "fetch --sigstore public|URL -o FILE",
		Short: "Fetch the trusted root of a Sigstore instance into a file",
		Long: `fetch asks the instance's TUF repository for its newest trusted root and writes
it to FILE, for --trusted-root where there is no network. It prints FILE with
its digest, the form of --trusted-root that takes no other bytes.

With --replace FILE may be there already; a root that trusts again, or for
longer, what FILE had ended the trust in is refused all the same.`,
		Example: `  waxseal trust fetch --sigstore public -o trusted_root.json
  waxseal trust fetch --sigstore https://tuf.acme.example \
    --sigstore-root root.json -o trusted_root.json`,
		Args: cobra.NoArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&flags.sigstore, "sigstore", "", "the instance: `public`, or the https address of its TUF repository")
	fl.StringVar(&flags.sigstoreRoot, "sigstore-root", "", "root.json `FILE` of that repository, that trust in it begins with")
	fl.StringVarP(&out, "out", "o", "", "write to `FILE`")
	fl.BoolVar(&replace, "replace", false, "let FILE be there already")
	for _, name := range []string{"sigstore", "out"} {
		// They were defined above, so this cannot fail.
		_ = cmd.MarkFlagRequired(name)
	}
	completePublic(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		instance, err := flags.instance()
		if err != nil {
			return exitError{ExitUsage, err}
		}
		if instance == nil {
			return usagef("--sigstore is empty: give public, or the address of a TUF repository")
		}
		old, err := oldRoot(out, replace)
		if err != nil {
			return err
		}
		r, got, err := fetchRoot(cmd.Context(), s, *instance, trust.FetchOptions{MaxAge: -1})
		if err != nil {
			return exitError{ExitUndecided, err}
		}
		if old != nil {
			if again := r.Weakens(old); len(again) > 0 {
				return fmt.Errorf("replacing %q: the new root trusts the %s %q until %s, which the old one had ended; look into it, and move the old file away if that is meant",
					out, again[0].Kind, again[0].Name, day(again[0].Until))
			}
		}
		write := func() error { return writeNew(out, got.Raw, 0o644) }
		if old != nil {
			write = func() error { return writeWhole(out, got.Raw) }
		}
		if err := write(); err != nil {
			return err
		}
		_, err = fmt.Fprintf(s.Out, "%s@%s\n", out, r.ID())
		return err
	}
	return cmd
}

// oldRoot is the root in the file that is to be replaced; nil: there is none.
func oldRoot(path string, replace bool) (*verify.Root, error) {
	if !replace {
		return nil, nil // writeNew refuses one
	}
	raw, err := readSmall(path, attest.MaxTrustedRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("replacing %q: %w", path, err)
	}
	r, err := verify.ParseRoot(path, raw)
	if err != nil {
		return nil, fmt.Errorf("replacing %q: it is no trusted root: %w", path, err)
	}
	return r, nil
}

func newTrustPinCmd(s *Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "pin FILE...",
		Short: "Print trusted roots with their digests, for --trusted-root",
		Long: `pin reads trusted roots and prints each as FILE@sha256:DIGEST. --trusted-root
takes that, and refuses FILE when its bytes are no longer the same.`,
		Example: `  waxseal trust pin trusted_root.json
  waxseal trust show --trusted-root trusted_root.json@sha256:9c1f…`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			for _, path := range args {
				_, pinned, err := readRoot(path)
				if err != nil {
					return exitError{ExitUsage, err}
				}
				if _, err := fmt.Fprintln(s.Out, pinned); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
