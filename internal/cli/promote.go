package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/promote"
	"github.com/waxseal/waxseal/pkg/store"
)

// promoteFlags are what `waxseal promote` takes beside the judge's flags.
type promoteFlags struct {
	judge      judgeFlags
	sign       signFlags
	verifierID string
	dryRun     bool
}

func newPromoteCmd(s *Streams) *cobra.Command {
	var flags promoteFlags
	cmd := &cobra.Command{
		Use:   "promote [flags] (--sign-key FILE | --keyless) SRC DST",
		Short: "Verify an image, copy it with its evidence, sign the verdict, tag last",
		Long: `promote judges SRC as verify does, with the rules that a policy has for DST. If
it passes, the image, its platforms and the evidence are copied by digest and
read again, a signed verification summary (VSA) is attached for every digest,
and only then is DST tagged. Within a registry no layer travels. A run that is
broken off has moved no tag; the same command finishes it.

SRC is a registry reference, oci:PATH[:TAG][@DIGEST], docker:NAME or archive:FILE;
DST is HOST/REPO[:TAG] or oci:PATH[:TAG].

Exit codes: 0 promoted, 1 failed on the way, 3 denied, 4 could not decide,
64 wrong usage.`,
		Example: `  waxseal promote --policy policy.yaml --sign-key release.key \
    registry.example/staging/app:1.0 registry.example/prod/app:1.0
  waxseal promote --dry-run --key waxseal.pub oci:out/image:app registry.example/app:1.0`,
		Args: cobra.ExactArgs(2),
	}
	flags.judge.register(cmd, true)
	fl := cmd.Flags()
	flags.sign.register(fl, "sign-key", "private `KEY` that signs the verdict; this or --keyless is needed, but for --dry-run")
	fl.StringVar(&flags.verifierID, "verifier-id", "", "`URI` of whoever gives the verdict (default: an unhosted local verifier)")
	fl.BoolVar(&flags.dryRun, "dry-run", false, "judge and print the plan; write nothing")
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		return promoteImage(cmd.Context(), s, flags, args[0], args[1], *output)
	}
	return cmd
}

func promoteImage(ctx context.Context, s *Streams, flags promoteFlags, source, destination, output string) error {
	req, err := flags.request(ctx, s, source, destination)
	if err != nil {
		return err
	}
	if !flags.dryRun {
		signer, err := flags.sign.openLate(ctx, s, flags.judge.anchorFlags)
		if err != nil {
			return err
		}
		defer signer.Close()
		req.Signer, req.TrySigner = signer, ready(signer)
		if output == "text" {
			req.Progress = func(step promote.Step) { printStep(s.Err, "", step) }
		}
	}
	res, err := promote.Run(ctx, req)
	var usage *promote.UsageError
	if errors.As(err, &usage) {
		return exitError{ExitUsage, err}
	}
	if res != nil && res.Verdict.Decision != gate.Pass {
		if output == "json" {
			return errors.Join(printJSON(s, res), verdictError(res.Verdict))
		}
		return printVerdict(s, res.Verdict, output)
	}
	if err != nil {
		return err
	}
	if output == "json" {
		return printJSON(s, res)
	}
	return printPromotion(s.Out, res)
}

func (f promoteFlags) request(ctx context.Context, s *Streams, source, destination string) (promote.Request, error) {
	var req promote.Request
	if !f.sign.wanted() && !f.dryRun {
		return req, usagef("promote signs its verdict: give --sign-key FILE or --keyless (or --dry-run for the plan alone)")
	}
	judge, err := f.judge.request(ctx, s, source)
	if err != nil {
		return req, err
	}
	req = promote.Request{
		Judge: judge, VerifierID: f.verifierID, VerifierVersion: map[string]string{"waxseal": Version()},
		Store: store.Options{Insecure: f.judge.insecure}, DryRun: f.dryRun,
	}
	if req.Source, err = store.Parse(source); err != nil {
		return req, exitError{ExitUsage, err}
	}
	if req.Destination, err = store.Parse(destination); err != nil {
		return req, exitError{ExitUsage, err}
	}
	return req, nil
}

// verdictError carries the exit code of a verdict that has been printed.
func verdictError(v *gate.Verdict) error {
	if v.Decision == gate.Deny {
		return exitError{code: ExitDenied}
	}
	return exitError{code: ExitUndecided}
}

func printJSON(s *Streams, v any) error {
	enc := json.NewEncoder(s.Out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printStep is one line a step. A blob that was there, or that the registry
// took from another repository, did not travel.
func printStep(w io.Writer, prefix string, step promote.Step) {
	line := fmt.Sprintf("%s%-5s %-9s", prefix, step.Action, step.What)
	if step.Action == promote.ActionTag {
		line = fmt.Sprintf("%s%-5s %s", prefix, step.Action, step.What)
	}
	if step.Digest != "" {
		line += " " + string(step.Digest)
	}
	if step.Platform != "" {
		line += " " + step.Platform
	}
	if step.Detail != "" {
		line += " (" + step.Detail + ")"
	}
	if step.Unchanged && step.Action != promote.ActionTag {
		line += " not moved"
	}
	fmt.Fprintln(w, line)
}

func printPromotion(w io.Writer, res *promote.Result) error {
	if res.DryRun {
		fmt.Fprintf(w, "%s passes: Build L%d. With --sign-key and without --dry-run, this would be done:\n", res.Source, res.Verdict.Reached.Build)
		for _, step := range res.Steps {
			printStep(w, "  ", step)
		}
		return nil
	}
	_, err := fmt.Fprintf(w, "promoted  %s\nfrom      %s\ndigest    %s\nlevel     Build L%d, stated in a signed VSA for each digest\nnext      waxseal inspect %s\n",
		res.Destination, res.Source, res.Digest, res.Verdict.Reached.Build, res.Destination)
	return err
}
