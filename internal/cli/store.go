package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

func newStoreCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "Keep house in the store of recorded bytes",
		Long: `store lists, checks, clears out and moves the bytes that builds took in. The
store is a folder of files named by their sha256: --store, else WAXSEAL_STORE,
else the store beside waxseal's images.`,
		Args: noCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newStoreListCmd(s), newStoreVerifyCmd(s), newStoreGCCmd(s), newStoreExportCmd(s), newStoreImportCmd(s))
	return cmd
}

// storeHome is the folder of the bytes that builds took in: beside that of the
// images.
func storeHome(env func(string) string) string {
	if dir := env("WAXSEAL_STORE"); dir != "" {
		return dir
	}
	return filepath.Join(filepath.Dir(imageHome(env)), "store")
}

// storeFlag adds --store and returns where its value will be.
func storeFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("store", "", "`DIR` of the store (default WAXSEAL_STORE or the usual one)")
}

// openStore opens the store that --store or the environment names, which must
// be there: a mistyped folder is not an empty store.
func openStore(s *Streams, dir string) (*lock.Store, error) {
	if dir == "" {
		dir = storeHome(s.Env)
	}
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("opening store %q: there is none; waxseal build makes it", dir)
		}
		return nil, fmt.Errorf("opening store %q: %w", dir, errors.Unwrap(err))
	}
	return lock.OpenStore(dir)
}

// withStore runs f with the open store and closes it.
func withStore(s *Streams, dir string, f func(*lock.Store) error) error {
	st, err := openStore(s, dir)
	if err != nil {
		return err
	}
	return errors.Join(f(st), st.Close())
}

func readLocks(names []string) ([]*lock.File, error) {
	var files []*lock.File
	for _, name := range names {
		f, err := readLock(name)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func readLock(name string) (*lock.File, error) {
	raw, err := readSmall(name, attest.MaxLock)
	if err != nil {
		return nil, fmt.Errorf("reading the lock %q: %w", name, err)
	}
	f, err := lock.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// item is how one blob is written in JSON.
type item struct {
	Digest attest.Digest `json:"digest,omitempty"`
	Path   string        `json:"path"`
	Size   int64         `json:"size"`
	Used   time.Time     `json:"used"`
	Bad    string        `json:"bad,omitempty"`
}

func itemOf(it lock.Item) item {
	out := item{Digest: it.Digest, Path: it.Path, Size: it.Size, Used: it.Used.UTC().Truncate(time.Second)}
	if it.Bad != nil {
		out.Bad = it.Bad.Error()
	}
	return out
}

func newStoreListCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List the blobs of the store",
		Long:  `list prints digest, size and the day of last use of every blob. It reads none of them.`,
		Args:  cobra.NoArgs,
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		return withStore(s, *dir, func(st *lock.Store) error {
			enc := json.NewEncoder(s.Out)
			return st.List(cmd.Context(), func(it lock.Item) error {
				if *output == "json" {
					return enc.Encode(itemOf(it)) // one a line: there may be a million
				}
				name, note := string(it.Digest), ""
				if it.Bad != nil {
					name, note = strconv.Quote(it.Path), "  "+it.Bad.Error()
				}
				_, err := fmt.Fprintf(s.Out, "%s %12d  %s%s\n", name, it.Size, it.Used.UTC().Format(time.DateOnly), note)
				return err
			})
		})
	}
	return cmd
}

func newStoreVerifyCmd(s *Streams) *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "verify [flags]",
		Short: "Hash every blob of the store anew",
		Long: `verify reads every blob and compares it with the digest it is named by. What is
damaged is listed, and with --repair removed: the next build fetches it anew, or
says that it cannot. Exit code 1 when anything was damaged.`,
		Args: cobra.NoArgs,
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	cmd.Flags().BoolVar(&repair, "repair", false, "remove what is damaged")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		return withStore(s, *dir, func(st *lock.Store) error {
			return verifyStore(cmd, s, st, repair, *output)
		})
	}
	return cmd
}

func verifyStore(cmd *cobra.Command, s *Streams, st *lock.Store, repair bool, output string) error {
	if repair {
		release, err := st.Alone(cmd.Context(), waitingNote(s))
		if err != nil {
			return err
		}
		defer release()
	}
	report := struct {
		Blobs    int    `json:"blobs"`
		Bytes    int64  `json:"bytes"`
		Bad      []item `json:"bad"`
		Repaired bool   `json:"repaired"`
	}{Bad: []item{}}
	shown := newCounter(s, "verified")
	defer shown.done()
	err := st.Verify(cmd.Context(), func(it lock.Item) error {
		report.Blobs++
		report.Bytes += it.Size
		shown.add(it.Size)
		if it.Bad == nil {
			return nil
		}
		report.Bad = append(report.Bad, itemOf(it))
		if output == "text" {
			shown.done()
			fmt.Fprintf(s.Out, "bad: %q: %v\n", it.Path, it.Bad)
		}
		if !repair {
			return nil
		}
		return st.Remove(it)
	})
	if err != nil {
		return err
	}
	shown.done()
	report.Repaired = repair && len(report.Bad) > 0
	if output == "json" {
		if err := printJSON(s, report); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(s.Out, "%d blobs, %s, %d bad\n", report.Blobs, bytesText(report.Bytes), len(report.Bad))
	}
	if len(report.Bad) == 0 {
		return nil
	}
	if repair {
		fmt.Fprintln(s.Err, "Removed what was bad.")
	} else {
		fmt.Fprintln(s.Err, "hint: --repair removes what is bad")
	}
	return exitError{code: ExitFailed}
}

func newStoreGCCmd(s *Streams) *cobra.Command {
	var keep []string
	var older string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc [flags]",
		Short: "Remove from the store what no lock needs",
		Long: `gc removes blobs, but for those that the locks named with --keep need to be
built offline, and with --older-than those that a build used since. It waits
for builds that are using the store, so that none loses what it has just fetched.`,
		Example: `  waxseal store gc --keep app/waxseal.lock --keep web/waxseal.lock
  waxseal store gc --older-than 30d --dry-run`,
		Args: cobra.NoArgs,
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	f := cmd.Flags()
	f.StringArrayVar(&keep, "keep", nil, "keep what the lock `FILE` needs (may be repeated)")
	f.StringVar(&older, "older-than", "", "remove only what no build used for `TIME`: 12h, 30d, 8w")
	f.BoolVar(&dryRun, "dry-run", false, "say what would go, and remove nothing")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		if len(keep) == 0 && older == "" {
			return usagef("gc without --keep or --older-than would remove everything; name what to keep, or give --older-than 0h to mean it")
		}
		opts := lock.GCOptions{DryRun: dryRun, Waiting: waitingNote(s)}
		if older != "" {
			age, err := parseAge(older)
			if err != nil {
				return usagef("--older-than %q: %w", older, err)
			}
			opts.Before = time.Now().Add(-age)
		}
		var err error
		if opts.Keep, err = readLocks(keep); err != nil {
			return err
		}
		return withStore(s, *dir, func(st *lock.Store) error {
			report, err := st.GC(cmd.Context(), opts)
			if err != nil {
				return err
			}
			if *output == "json" {
				return printJSON(s, report)
			}
			verb := "removed"
			if dryRun {
				verb = "would remove"
			}
			_, err = fmt.Fprintf(s.Out, "%s %d blobs, %s; kept %d, %s\n", verb, report.Removed, bytesText(report.RemovedBytes), report.Kept, bytesText(report.KeptBytes))
			return err
		})
	}
	return cmd
}

// parseAge reads a Go duration, or a number of days or weeks.
func parseAge(text string) (time.Duration, error) {
	unit := time.Duration(0)
	switch {
	case strings.HasSuffix(text, "d"):
		unit = 24 * time.Hour
	case strings.HasSuffix(text, "w"):
		unit = 7 * 24 * time.Hour
	}
	if unit > 0 {
		n, err := strconv.ParseUint(text[:len(text)-1], 10, 16)
		if err != nil {
			return 0, errors.New("want a number and d or w")
		}
		return time.Duration(n) * unit, nil
	}
	age, err := time.ParseDuration(text)
	if err != nil || age < 0 {
		return 0, errors.New("want a time such as 12h, 30d or 8w")
	}
	return age, nil
}

func newStoreExportCmd(s *Streams) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export [flags] LOCKFILE...",
		Short: "Write what locks need into an archive",
		Long: `export writes all blobs that the locks need to be built offline into a tar
archive: the same locks always give the same archive. What the store has not is
an error. waxseal store import reads it on another machine.`,
		Example: `  waxseal store export -o inputs.tar waxseal.lock`,
		Args:    cobra.MinimumNArgs(1),
	}
	dir := storeFlag(cmd)
	cmd.Flags().StringVarP(&file, "output-file", "o", "", "write to `FILE` (default: standard output)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		out, terminal := s.Out.(*os.File)
		if file == "" && terminal && term.IsTerminal(int(out.Fd())) {
			return usagef("an archive is not for the terminal; name a file with -o")
		}
		files, err := readLocks(args)
		if err != nil {
			return err
		}
		return withStore(s, *dir, func(st *lock.Store) error {
			return exportStore(cmd, s, st, files, file)
		})
	}
	return cmd
}

func exportStore(cmd *cobra.Command, s *Streams, st *lock.Store, files []*lock.File, file string) error {
	needs, err := st.Needs(files...)
	if err != nil {
		return err
	}
	var digests []attest.Digest
	var missing []lock.Need
	sum := int64(0)
	for _, n := range needs {
		digests = append(digests, n.Digest)
		sum += n.Size
		if !n.Has {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		return hinted{
			fmt.Errorf("exporting from the store %q: it lacks %s", st.Dir(), missingText(missing)),
			"build with --inputs record and the same --store, and then export the lock that this writes",
		}
	}
	shown := newCounter(s, "exported")
	defer shown.done()
	write := func(w io.Writer) error {
		return st.Export(cmd.Context(), io.MultiWriter(w, shown), digests)
	}
	if file == "" {
		return write(s.Out)
	}
	if err := store.WriteWhole(file, write); err != nil {
		return fmt.Errorf("writing %q: %w", file, err)
	}
	shown.done()
	fmt.Fprintf(s.Err, "Wrote %s: %d blobs, %s.\n", file, len(digests), bytesText(sum))
	return nil
}

// missingText names a few of what is missing.
func missingText(missing []lock.Need) string {
	const most = 10
	var b strings.Builder
	fmt.Fprintf(&b, "%d of the blobs needed:", len(missing))
	for i, n := range missing {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more", len(missing)-most)
			break
		}
		fmt.Fprintf(&b, "\n  %s of %s", n.Digest, n.For)
	}
	return b.String()
}

func newStoreImportCmd(s *Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import [flags] FILE",
		Short: "Take the blobs of an archive into the store",
		Long: `import reads what waxseal store export wrote. Every blob is taken only if its
bytes are those of its digest, so that an archive need not be trusted. FILE "-"
is standard input.`,
		Args: cobra.ExactArgs(1),
	}
	dir, output := storeFlag(cmd), outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(*output); err != nil {
			return err
		}
		in := s.In
		if args[0] != "-" {
			f, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("opening the archive %q: %w", args[0], errors.Unwrap(err))
			}
			defer f.Close()
			in = f
		}
		path := *dir
		if path == "" {
			path = storeHome(s.Env)
		}
		st, err := lock.OpenStore(path)
		if err != nil {
			return err
		}
		shown := newCounter(s, "read")
		report, err := st.Import(cmd.Context(), io.TeeReader(in, shown))
		shown.done()
		if err := errors.Join(err, st.Close()); err != nil {
			return err
		}
		if *output == "json" {
			return printJSON(s, report)
		}
		_, err = fmt.Fprintf(s.Out, "%d blobs, %d of them new, %s\n", report.Blobs, report.New, bytesText(report.NewBytes))
		return err
	}
	return cmd
}

// waitingNote says why nothing happens.
func waitingNote(s *Streams) func() {
	return func() { fmt.Fprintln(s.Err, "Waiting for builds that use the store.") }
}

// bytesText is a number of bytes for people.
func bytesText(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, 0
	for v >= 1024 && unit < 4 {
		v, unit = v/1024, unit+1
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[unit])
}

// counter shows on a terminal how far something long has come.
type counter struct {
	w     io.Writer // nil: nobody watches
	verb  string
	bytes int64
	next  time.Time
	drawn bool
}

func newCounter(s *Streams, verb string) *counter {
	c := &counter{verb: verb, next: time.Now().Add(time.Second)}
	if f, ok := s.Err.(*os.File); ok && term.IsTerminal(int(f.Fd())) && s.Env("TERM") != "dumb" {
		c.w = f
	}
	return c
}

func (c *counter) Write(p []byte) (int, error) {
	c.add(int64(len(p)))
	return len(p), nil
}

func (c *counter) add(n int64) {
	c.bytes += n
	if c.w == nil || time.Now().Before(c.next) {
		return
	}
	c.next, c.drawn = time.Now().Add(200*time.Millisecond), true
	fmt.Fprintf(c.w, "\r\x1b[K%s %s", c.verb, bytesText(c.bytes))
}

// done clears the line.
func (c *counter) done() {
	if c.drawn {
		fmt.Fprint(c.w, "\r\x1b[K")
		c.drawn = false
	}
}
