package cli

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

func newLockCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Read the lock files of builds",
		Long: `lock reads waxseal.lock, in which waxseal build writes what a build takes in: base
images, git sources, and for every step what it fetches, each by digest.`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newLockDiffCmd(s), newLockShowCmd(s), newLockCheckCmd(s))
	for _, sub := range cmd.Commands() {
		read := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			return untilInterrupted(cmd.Context(), func() error { return read(cmd, args) })
		}
	}
	return cmd
}

// untilInterrupted ends with ctx, at the latest: read only reads, and is left to
// the end of the process.
func untilInterrupted(ctx context.Context, read func() error) error {
	done := make(chan error, 1)
	broken := make(chan any, 1) // for main to tell of
	go func() {
		defer func() {
			if p := recover(); p != nil {
				broken <- p
			}
		}()
		done <- read()
	}()
	select {
	case err := <-done:
		return err
	case p := <-broken:
		panic(p)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func newLockDiffCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff [flags] OLD NEW",
		Short: "Say what changed between two locks",
		Long: `diff says in words what NEW takes in that OLD did not, with packages named where
their URLs tell. Exit code 0: nothing changed, 1: something did.`,
		Example: `  git show HEAD:waxseal.lock >/tmp/old.lock && waxseal lock diff /tmp/old.lock waxseal.lock`,
		Args:    cobra.ExactArgs(2),
	}
	output := outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		files, err := readLocks(args)
		if err != nil {
			return hinted{exitError{ExitUsage, err}, "give two lock files"}
		}
		changes := lock.Diff(files[0], files[1])
		if *output == "json" {
			if changes == nil {
				changes = []lock.Change{}
			}
			if err := printJSON(s, map[string]any{"changes": changes}); err != nil {
				return err
			}
		} else if err := printChanges(s, changes); err != nil {
			return err
		}
		if len(changes) > 0 {
			return exitError{code: ExitFailed}
		}
		return nil
	}
	return cmd
}

func printChanges(s *Streams, changes []lock.Change) error {
	step := ""
	for _, c := range changes {
		indent := ""
		if c.Step != "" {
			indent = "  "
			if c.Step != step {
				if _, err := fmt.Fprintf(s.Out, "%s\n", c.Step); err != nil {
					return err
				}
			}
		}
		step = c.Step
		if _, err := fmt.Fprintf(s.Out, "%s%s\n", indent, c.Text); err != nil {
			return err
		}
	}
	return nil
}

// lockReport is what show says.
type lockReport struct {
	lock.Summary
	Sources []lockSource `json:"sources"`
	Store   *lockStore   `json:"store,omitempty"`
}

type lockSource struct {
	Kind     string `json:"kind"`
	Ref      string `json:"ref"`
	Platform string `json:"platform,omitempty"`
	Digest   string `json:"digest"`
}

// lockStore is what a store has of what a lock needs.
type lockStore struct {
	Dir     string        `json:"dir"`
	Needed  int           `json:"needed"`
	Missing []missingBlob `json:"missing"`
}

type missingBlob struct {
	Digest attest.Digest `json:"digest"`
	For    string        `json:"for"`
}

func newLockShowCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "show [flags] FILE",
		Short: "Sum up a lock",
		Long: `show counts what a lock lists, and with a store says what of it the store lacks
to build offline: that of --store or WAXSEAL_STORE, else the usual one if it is
there. It ends with 0 whatever is missing; waxseal lock check does not.`,
		Args: cobra.ExactArgs(1),
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		f, err := readLock(args[0])
		if err != nil {
			return err
		}
		report := lockReport{Summary: f.Summary(), Sources: []lockSource{}}
		for _, src := range f.Sources {
			report.Sources = append(report.Sources, lockSource{src.Kind, src.Ref, src.Platform, src.Digest})
		}
		_, missing := os.Stat(storeHome(s.Env))
		if *dir != "" || s.Env("WAXSEAL_STORE") != "" || missing == nil {
			if report.Store, err = lookInStore(s, *dir, f); err != nil {
				return err
			}
		}
		if *output == "json" {
			return printJSON(s, report)
		}
		return report.print(s)
	}
	return cmd
}

func newLockCheckCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [flags] FILE",
		Short: "Check that the store has all that a lock needs",
		Long: `check reads a lock and looks whether the store has every blob that a build with
--inputs offline will ask for. Exit code 1 when one is missing. It reads no
blob; waxseal store verify does.`,
		Args: cobra.ExactArgs(1),
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		f, err := readLock(args[0])
		if err != nil {
			return err
		}
		found, err := lookInStore(s, *dir, f)
		if err != nil {
			return err
		}
		if *output == "json" {
			err = printJSON(s, found)
		} else {
			err = found.print(s)
		}
		if err == nil && len(found.Missing) > 0 {
			err = exitError{code: ExitFailed}
		}
		return err
	}
	return cmd
}

func lookInStore(s *Streams, dir string, f *lock.File) (*lockStore, error) {
	var found *lockStore
	err := withStore(s, dir, func(st *lock.Store) error {
		needs, err := st.Needs(f)
		if err != nil {
			return err
		}
		found = &lockStore{Dir: st.Dir(), Needed: len(needs), Missing: []missingBlob{}}
		for _, n := range needs {
			if !n.Has {
				found.Missing = append(found.Missing, missingBlob{n.Digest, n.For})
			}
		}
		return nil
	})
	return found, err
}

func (l *lockStore) print(s *Streams) error {
	var b strings.Builder
	if len(l.Missing) == 0 {
		fmt.Fprintf(&b, "store: has all %d blobs\n", l.Needed)
	} else {
		fmt.Fprintf(&b, "store: lacks %d of %d blobs\n", len(l.Missing), l.Needed)
		for _, m := range l.Missing {
			fmt.Fprintf(&b, "  %s of %s\n", m.Digest, m.For)
		}
	}
	_, err := s.Out.Write([]byte(b.String()))
	return err
}

func (r *lockReport) print(s *Streams) error {
	var b strings.Builder
	for _, src := range r.Sources {
		where := ""
		if src.Platform != "" {
			where = " (" + src.Platform + ")"
		}
		fmt.Fprintf(&b, "%s %q%s %s\n", src.Kind, src.Ref, where, src.Digest)
	}
	fmt.Fprintf(&b, "%s, %s, %s\n", countOf(r.Images, "base image"), countOf(r.Git, "git source"), countOf(r.Files, "remote file"))
	fmt.Fprintf(&b, "%s, %s, %s\n", countOf(r.Steps, "step"), countOf(r.Exchanges, "exchange"), bytesText(r.Bytes))
	if len(r.Packages) > 0 {
		var counts []string
		for _, kind := range slices.Sorted(maps.Keys(r.Packages)) {
			counts = append(counts, fmt.Sprintf("%d %s", r.Packages[kind], kind))
		}
		fmt.Fprintf(&b, "packages: %s\n", strings.Join(counts, ", "))
	}
	if _, err := s.Out.Write([]byte(b.String())); err != nil {
		return err
	}
	if r.Store == nil {
		return nil
	}
	return r.Store.print(s)
}

func countOf(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
