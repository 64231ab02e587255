package cli

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
)

func newBuildersCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "builders",
		Short: "List the well-known builders that a policy can name",
		Long: `The library of well-known builders: who signs for each, what its provenance
looks like, the Build level it is credited and why, and what lowers it. A policy
takes an entry over with "use: NAME" below trust.builders and can narrow it, but
not widen it.`,
		Example: `  waxseal builders list
  waxseal builders show github-attestations`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newBuildersListCmd(s), newBuildersShowCmd(s))
	return cmd
}

func newBuildersListCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List them, with the level that each is credited at most",
		Args:  cobra.NoArgs,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		if *output == "json" {
			return report.JSON(s.Out, policy.Library())
		}
		return printBuilders(s.Out, policy.Library())
	}
	return cmd
}

func printBuilders(out io.Writer, all []policy.WellKnown) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, b := range all {
		fmt.Fprintf(w, "%s\tL%d\t%s\n", b.Name, b.Level, b.Title)
	}
	return w.Flush()
}

func newBuildersShowCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show [flags] NAME",
		Short:   "Show one, with an entry for a policy to start from",
		Example: `  waxseal builders show slsa-github-generator`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			for _, b := range policy.Library() {
				if len(args) == 0 && strings.HasPrefix(b.Name, begun) {
					names = append(names, cobra.CompletionWithDesc(b.Name, b.Title))
				}
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
	}
	output := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		b, err := policy.Known(args[0])
		if err != nil {
			return exitError{ExitUsage, err}
		}
		if *output == "json" {
			return report.JSON(s.Out, b)
		}
		_, err = io.WriteString(s.Out, b.Explain())
		return err
	}
	return cmd
}
