package cli

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/trust"
)

func newInspectCmd(s *Streams) *cobra.Command {
	var flags judgeFlags
	cmd := &cobra.Command{
		Use:   "inspect [flags] REF",
		Short: "Show the evidence attached to an image as a tree",
		Long: `inspect lists what is attached to an image and to each of its platforms: by
whom it is signed, whether the signature holds under the keys given, and what it
says. It decides nothing and ends with 0 whatever it finds.

REF is a registry reference, oci:PATH[:TAG][@DIGEST], docker:NAME or archive:FILE.`,
		Example: `  waxseal inspect --key waxseal.pub registry.example/app:1.0`,
		Args:    cobra.ExactArgs(1),
	}
	flags.register(cmd, false)
	output := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		req, err := flags.request(cmd.Context(), s, args[0])
		if err != nil {
			return err
		}
		in, err := gate.Gate{}.Inspect(cmd.Context(), req)
		if err != nil {
			return gateError(err)
		}
		if *output == "json" {
			return report.JSON(s.Out, in)
		}
		return report.Tree(s.Out, in, textOptions(s))
	}
	return cmd
}

// gateError gives the error of a request that cannot be served its exit code.
func gateError(err error) error {
	var usage *gate.UsageError
	if errors.As(err, &usage) {
		return exitError{ExitUsage, err}
	}
	var missing *trust.UnavailableError
	if errors.As(err, &missing) {
		return exitError{ExitUndecided, err}
	}
	return err
}
