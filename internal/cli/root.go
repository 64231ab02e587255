// Package cli is the command line: one file a command, each flags to request
// to call to print, and every composition in wire.go. Call Main.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/pkg/sign"
)

// Exit codes. Anything else is a death and means not decided.
const (
	ExitOK        = 0
	ExitFailed    = 1  // the work could not be done
	ExitDenied    = 3  // the evidence does not carry what was asked
	ExitUndecided = 4  // no answer: asking again may give one
	ExitUsage     = 64 // the command line is wrong
)

// Streams is what a command may read, print to and look up. Results go to
// Out, everything else to Err.
type Streams struct {
	In        io.Reader
	Out       io.Writer
	Err       io.Writer
	LookupEnv func(string) (string, bool)
	// Secret is LookupEnv for what opens a key, whose bytes the caller overwrites;
	// nil: LookupEnv has them.
	Secret func(name string) ([]byte, bool)

	// taken are keys that were taken out of the environment before they are
	// opened, by the variable, see signFlags.hold.
	taken map[string]*sign.Hidden
}

// Env is the variable's value, empty when it is not set.
func (s *Streams) Env(name string) string {
	v, _ := s.LookupEnv(name)
	return v
}

// has reports whether the variable is set, to nothing too.
func (s *Streams) has(name string) bool {
	_, ok := s.LookupEnv(name)
	return ok
}

// exitError carries the exit code of an error that is more than "failed".
// A nil err exits with the code and prints nothing: the command has spoken.
type exitError struct {
	code int
	err  error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// usagef is an error of the command line, exit code 64.
func usagef(format string, args ...any) error {
	return exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// hinter is an error that knows the way out.
type hinter interface{ Hint() string }

// Main runs one command and returns its exit code.
func Main(ctx context.Context, args []string, streams Streams) int {
	if slices.Equal(args, []string{"--version"}) { // alone; beside anything else it is no answer
		args = []string{"version"}
	}
	asked := ""
	if len(args) > 0 {
		asked = args[0]
	}
	root := newRoot(&streams, asked)
	strictOwn(root, args)
	root.SetArgs(args)
	aside := onHelp(root, &streams)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = aside()
	}
	if err == nil {
		return ExitOK
	}
	code := ExitFailed
	var coded exitError
	if errors.As(err, &coded) {
		code = coded.code
		if coded.err == nil {
			return code
		}
	}
	// After an interrupt most errors are its echo; one line says it best.
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(streams.Err, "waxseal: interrupted; nothing was tagged or left half-written")
		return 130
	}
	tellError(streams.Err, err)
	if ctx.Err() != nil && code == ExitFailed {
		// Its echo too, as what the engine or a server said is: only its text came.
		return 130
	}
	return code
}

// onHelp makes help that is asked for beside anything else an error of usage,
// which the function returned gives after the command: nothing else was done, and
// the code of a pass would be taken for that of whatever the rest asks. Help goes
// to where errors go then.
func onHelp(root *cobra.Command, s *Streams) func() error {
	var err error
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		// The words of the command but for waxseal, and the flag.
		if len(args) > len(strings.Fields(cmd.CommandPath())) {
			err = usagef("help was asked for, so nothing was done; alone it is %q", cmd.CommandPath()+" --help")
			root.SetOut(s.Err)
		}
		help(cmd, args)
	})
	return func() error { return err }
}

// tellError prints an error and the way out of it.
func tellError(w io.Writer, err error) {
	fmt.Fprintf(w, "waxseal: %v\n", err)
	var way hinter
	if errors.As(err, &way) && way.Hint() != "" {
		fmt.Fprintf(w, "  hint: %s\n", way.Hint())
	}
}

// newRoot makes the command line, or what of it the command named asked needs.
func newRoot(s *Streams, asked string) *cobra.Command {
	root := &cobra.Command{
		Use:   "waxseal",
		Short: "Seal container builds: record what goes in, sign what comes out, let nothing unproven ship",
		Long: `waxseal builds container images as docker build does, records their inputs,
writes SBOMs, signs SLSA provenance, and verifies that evidence against a
declared SLSA level before an image is promoted or admitted.

Exit codes: 0 passed, 1 failed, 3 denied, 4 could not decide, 64 wrong usage.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	// Long names of flags leave little room beside them.
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages ", ".FlagUsagesWrapped 100 "))
	root.SetIn(s.In)
	root.SetOut(s.Out)
	root.SetErr(s.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w%s; see %q", err, nearFlags(cmd, err), cmd.CommandPath()+" --help")
	})
	addCommands(root, s, asked)
	root.SetHelpCommandGroupID("Other")
	root.SetCompletionCommandGroupID("Other")
	usageArgs(root)
	return root
}

// addCommands adds the commands below headings of their own in the help. When
// the first word on the command line is the name of one, only that one is made:
// the flags of all of them take longer to make than many a command to run.
func addCommands(root *cobra.Command, s *Streams, asked string) {
	type maker struct {
		name string
		make func(*Streams) *cobra.Command
	}
	groups := []struct {
		title  string
		makers []maker
	}{
		{"Make", []maker{{"build", newBuildCmd}, {"run", newRunCmd}, {"rebuild", newRebuildCmd}, {"attest", newAttestCmd}, {"sbom", newSBOMCmd}, {"key", newKeyCmd}, {"approve", newApproveCmd}}},
		{"Judge", []maker{{"verify", newVerifyCmd}, {"audit", newAuditCmd}, {"inspect", newInspectCmd}, {"levels", newLevelsCmd}, {"policy", newPolicyCmd},
			{"builders", newBuildersCmd}, {"promote", newPromoteCmd}, {"trust", newTrustCmd}}},
		{"Keep", []maker{{"lock", newLockCmd}, {"store", newStoreCmd}, {"bundle", newBundleCmd}}},
		{"Other", []maker{{"version", newVersionCmd}}},
	}
	one := false
	for _, g := range groups {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		one = one || slices.ContainsFunc(g.makers, func(m maker) bool { return m.name == asked })
	}
	for _, g := range groups {
		for _, m := range g.makers {
			if !one || m.name == asked {
				cmd := m.make(s)
				cmd.GroupID = g.title
				root.AddCommand(cmd)
			}
		}
	}
	if !one {
		root.AddCommand(newManCmd(), newCompareLayoutsCmd(s), newGuardCmd(s), newTryKeyCmd(s))
	}
}

// noCommand refuses a word that is no command, with the nearest ones.
func noCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	return usagef("unknown command %q%s; see %q", args[0], near(cmd, args[0], ""), cmd.CommandPath()+" --help")
}

// near asks for the commands below cmd that word may mean, each behind prefix.
func near(cmd *cobra.Command, word, prefix string) string {
	cmd.SuggestionsMinimumDistance = 2
	found := cmd.SuggestionsFor(word)
	if len(found) == 0 {
		return ""
	}
	for i := range found {
		found[i] = strconv.Quote(prefix + found[i])
	}
	return fmt.Sprintf("; did you mean %s?", strings.Join(found, ", "))
}

// nearFlags asks for the flags of cmd that the one err does not know may mean.
func nearFlags(cmd *cobra.Command, err error) string {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) || unknown.GetSpecifiedShortnames() != "" {
		return ""
	}
	names := &cobra.Command{}
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		}
	})
	return near(names, unknown.GetSpecifiedName(), "--")
}

// strictOwn has cobra's own commands, help and completion, refuse what they do
// not know: they answer it with help, and exit code 0.
func strictOwn(root *cobra.Command, args []string) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd(args...)
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				found, rest, err := root.Find(args)
				if err != nil {
					return err
				}
				return noCommand(found, rest)
			}
		case "completion":
			cmd.Args = noCommand
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
			usageArgs(cmd)
		}
	}
}

// usageArgs makes a wrong number of arguments, or a missing flag, an error of
// usage, everywhere.
func usageArgs(cmd *cobra.Command) {
	// Nobody needs "[flags]" where there are none.
	cmd.DisableFlagsInUseLine = !cmd.HasAvailableLocalFlags()
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil {
				err = cmd.ValidateRequiredFlags()
			}
			var coded exitError
			if err == nil || errors.As(err, &coded) {
				return err
			}
			return usagef("%w; usage: %s", err, cmd.UseLine())
		}
	}
	for _, c := range cmd.Commands() {
		usageArgs(c)
	}
}

// completeValues tells shells what the values of flags can be.
func completeValues(cmd *cobra.Command, flags map[string][]cobra.Completion) {
	for flag, values := range flags {
		// Errors are only for flags that do not exist.
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
}

func newVersionCmd(s *Streams) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintf(s.Out, "waxseal %s %s %s/%s\n", Version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// Version is the module's version as Go recorded it, "devel" for a checkout.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}
