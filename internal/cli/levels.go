package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/verify"
)

func newLevelsCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "levels [flags]",
		Short: "List what each SLSA level and verified property asks for",
		Long: `levels lists every requirement that verify answers: those of the Build and the
Source track of SLSA v1.2, and the verified properties. A waiver of a policy
names one by its id. "waxseal levels explain" says more of one.

A level is reached when every requirement up to it is met. What cannot be told
is not met.`,
		Example: `  waxseal levels
  waxseal levels explain build.l3.isolated`,
		Args: noCommand,
	}
	output := outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		table := report.LevelTable{Requirements: verify.Requirements(), Ladder: verify.Ladder()}
		if *output == "json" {
			return report.JSON(s.Out, table)
		}
		return report.Levels(s.Out, table, textOptions(s))
	}
	cmd.AddCommand(newLevelsExplainCmd(s))
	return cmd
}

func newLevelsExplainCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain [flags] ID",
		Short: "Say what a requirement asks for, and what evidence satisfies it",
		Long: `explain prints one requirement: what it asks for, what evidence would satisfy
it, what each answer means, the shortest way to get it, and the clause of the
specification. ID is one that "waxseal levels" lists, or the name of a property.`,
		Example: `  waxseal levels explain property.hermetic`,
		Args:    cobra.ExactArgs(1),
		ValidArgsFunction: func(_ *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var ids []cobra.Completion
			for _, q := range verify.Requirements() {
				if len(args) == 0 && strings.HasPrefix(q.ID, begun) {
					ids = append(ids, cobra.CompletionWithDesc(q.ID, q.Title))
				}
			}
			return ids, cobra.ShellCompDirectiveNoFileComp
		},
	}
	output := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		q, err := verify.Find(args[0])
		if err != nil {
			return exitError{ExitUsage, hinted{fmt.Errorf("explaining a requirement: %w", err), "\"waxseal levels\" lists them all"}}
		}
		if *output == "json" {
			return report.JSON(s.Out, q)
		}
		return report.Requirement(s.Out, q, textOptions(s))
	}
	return cmd
}
