package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/waxseal/waxseal/pkg/gate"
	"github.com/waxseal/waxseal/pkg/policy"
	"github.com/waxseal/waxseal/pkg/report"
	"github.com/waxseal/waxseal/pkg/store"
	"github.com/waxseal/waxseal/pkg/trust"
	"github.com/waxseal/waxseal/pkg/verify"
)

// judgeFlags are the flags of every command that weighs evidence.
type judgeFlags struct {
	policy     string
	policyKeys []string
	level      string
	trustFlags
	evidence []string
	insecure bool
	depth    int
	asked    []string                // registries of dependencies
	check    func(path string) error // of the policy's files; nil: any will do
}

func (f *judgeFlags) register(cmd *cobra.Command, withLevel bool) {
	fl := cmd.Flags()
	cmd.PreRunE = func(*cobra.Command, []string) error { return filled(fl) }
	fl.StringVar(&f.policy, "policy", "", "policy `FILE`: who is trusted, and what is expected of the image")
	fl.StringArrayVar(&f.policyKeys, "policy-key", nil, "public `KEY` that must have signed the policy (\"waxseal policy sign\"); repeatable, one of them is enough")
	f.trustFlags.register(cmd)
	fl.StringArrayVar(&f.evidence, "evidence", nil, "look for evidence in `PATH` too: a bundle, JSON lines, a folder, or git:DIR for the notes of a repository; repeatable")
	fl.BoolVar(&f.insecure, "insecure", false, "allow plain HTTP or an unverified certificate for the registry")
	fl.IntVar(&f.depth, "dependencies", 0, "judge the images that it was built from as well, and those that they were built from, down to depth `N`")
	fl.StringArrayVar(&f.asked, "dependency-registry", nil, "with --dependencies: images that may be asked about, as HOST/`PATTERN` with stars (default: those that the policy allows, else the image's own registry); repeatable")
	if withLevel {
		fl.StringVar(&f.level, "level", "", "`LEVEL` that is asked for: N or build=N, source=N, build=N,source=N, or 4 (default: what the policy declares, or build=1)")
		completeValues(cmd, map[string][]string{"level": {
			"1", "2", "3", "4\tBuild L3, inputs complete, hermetic, source reviewed by two", "source=1", "source=2", "source=3", "source=4",
		}})
	}
}

// filled refuses a flag that was given nothing, as by a variable that is not set:
// it would ask for less than somebody meant to. A deadline of no time is one too.
func filled(fl *pflag.FlagSet) (err error) {
	fl.Visit(func(f *pflag.Flag) {
		switch value := f.Value.String(); {
		case err != nil:
		case f.Value.Type() == "string" && value == "":
			err = usagef("--%s %q: give a value, or leave it out", f.Name, value)
		case f.Value.Type() == "duration" && (value == "0s" || strings.HasPrefix(value, "-")):
			err = usagef("--%s %s: give a time, or leave it out", f.Name, value)
		}
	})
	return err
}

// request reads the files that the flags name. Its errors are of usage: the
// command was given the wrong thing.
func (f *judgeFlags) request(ctx context.Context, s *Streams, ref string) (gate.Request, error) {
	req := gate.Request{Reference: ref, Store: store.Options{Insecure: f.insecure, Evidence: f.evidence, Images: imageHome(s.Env)}.ReadOnce()}
	level, err := parseLevel(f.level)
	if err != nil {
		return req, exitError{ExitUsage, err}
	}
	// One that cannot be read is told with the others, as it is now.
	for _, path := range f.evidence {
		if _, err := os.Stat(strings.TrimPrefix(path, store.GitPrefix)); errors.Is(err, fs.ErrNotExist) {
			return req, usagef("--evidence %q: there is no such file or folder", path)
		}
	}
	req.Level, req.Dependencies = level, f.depth
	for _, p := range f.asked {
		if p, err = policy.Registries(p); err != nil {
			return req, usagef("--dependency-registry: %w", err)
		}
		req.DependencyRegistries = append(req.DependencyRegistries, p)
	}
	var missing *trust.UnavailableError
	if req.Policy, err = signedPolicy(ctx, s, f.policy, f.policyKeys, f.check); errors.As(err, &missing) {
		req.Missing = err
	} else if err != nil {
		return req, exitError{ExitUsage, err}
	}
	if err := f.read(ctx, s, &req); err != nil {
		return req, exitError{ExitUsage, err}
	}
	return req, nil
}

// parseLevel reads the value of --level; nothing gives nil.
func parseLevel(s string) (*verify.Demand, error) {
	if s == "" {
		return nil, nil
	}
	d, err := verify.ParseDemand(s)
	if err != nil {
		return nil, fmt.Errorf("--%w", err)
	}
	return &d, nil
}

// outputFlag adds --output text|json and returns where its value will be.
func outputFlag(cmd *cobra.Command) *string {
	format := cmd.Flags().String("output", "text", "`FORMAT` of the answer: text or json")
	completeValues(cmd, map[string][]string{"output": {"text", "json"}})
	return format
}

func checkOutput(format string) error {
	if format != "text" && format != "json" {
		return usagef("--output %q: give text or json", format)
	}
	return nil
}

// textOptions fits a rendering to the terminal, if there is one.
func textOptions(s *Streams) report.TextOptions {
	var o report.TextOptions
	f, ok := s.Out.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		o.Height = math.MaxInt // a file or a pipe has no screen to fit
		return o
	}
	if w, h, err := term.GetSize(int(f.Fd())); err == nil {
		o.Width, o.Height = w, h
	}
	o.Color = s.Env("NO_COLOR") == "" && s.Env("TERM") != "dumb"
	return o
}

// verifyFlags are what `waxseal verify` takes beside the judge's flags.
type verifyFlags struct {
	judge    judgeFlags
	archived archiveFlags
	output   string
	explain  bool
	deadline time.Duration
	at       string
	stream   bool
	jobs     int
	resume   string
}

func newVerifyCmd(s *Streams) *cobra.Command {
	var flags verifyFlags
	cmd := &cobra.Command{
		Use:   "verify [flags] REF|-",
		Short: "Say which SLSA level an image's evidence carries, and whether that is enough",
		Long: `verify finds the evidence attached to an image, checks the signatures, and
computes the SLSA v1.2 Build and Source levels and the verified properties with
a row for each requirement ("waxseal levels" lists them). An index is judged
with every platform below it, and is as good as the worst of them.

REF is a registry reference, oci:PATH[:TAG][@DIGEST], docker:NAME, file:PATH for
a plain file, whose evidence --evidence names, or archive:FILE for what "waxseal
bundle export" wrote; then --as says which image the policy is to take it for,
and --bundled-trust whom of those inside to trust.

With --policy, only builders that the policy names count, up to the level it
gives them, and source, parameters and SBOMs must be as it expects. With --key
alone, or --certificate-identity, provenance signed by that key or under that
certificate carries Build L1 for an unhosted builder and L2 for another; Build
L3 needs a policy. With neither, --level 1 asks only whether there is
provenance, whoever wrote it.

--level raises what a policy declares, and never lowers it: N or build=N,
source=N, both with a comma between them, or 4, the fourth level of SLSA v0.1:
Build L3, inputs complete, hermetic, and the source reviewed by two.

A certificate counts when it leads to a --trusted-root or to --ca-roots, names
the identity, and a log or a time-stamping authority of a --trusted-root proves
that it was used while it was valid. Nothing is fetched but the image's
evidence, unless --sigstore asks for a root, --dependencies for the images it
was built from, or something else holds a key: waxseal-kms, a child, asks it.
One that its reference pins (@sha256:…), or names the version of, is kept and
asked for once.

With "-", references are read from standard input, one a line, or requests as
{"id":"1","image":"REF","namespace":"prod","labels":{},"use":"volume"}, and each
is answered with one line of JSON as soon as it is decided, in any order. The
last line counts them: {"done":N,...,"complete":true}. With --resume, what was
answered is kept in FILE, and the same command with the same list goes on from
there after it was broken off; what is older than 12 hours, or was undecided, is
asked again. --stream keeps verify as
a co-process: requests for images of registries only, no progress, and no
credential helper is started.
The end of standard input ends it; SIGTERM answers what is in flight as
undecided and ends it within a second. A caller's --deadline is best some 300 ms
below its own; of a stream it runs from when a request was read, so that none
waits longer for others.

Exit codes: 0 passed, 3 denied, 4 could not decide, 64 wrong usage; of several
images 3 when one is denied, else 4 when one is undecided. Believe a code only
together with a complete answer that says the same: anything else is a death.`,
		Example: `  waxseal verify --key waxseal.pub registry.example/app:1.0
  waxseal verify --trusted-root root.json --certificate-identity ci@acme.example \
    --certificate-oidc-issuer https://accounts.acme.example registry.example/app:1.0
  waxseal verify --ca-roots root.pem --ca-crl root.crl --ca-crl issuing.crl \
    --timestamp-certificate-chain tsa.pem \
    --certificate-identity https://ci.acme.example/release registry.example/app:1.0
  waxseal verify --policy policy.yaml --output sarif oci:out/image:app
  waxseal verify --policy policy.yaml - < references.txt`,
		Args: cobra.ExactArgs(1),
	}
	flags.judge.register(cmd, true)
	fl := cmd.Flags()
	fl.StringVar(&flags.output, "output", "text", "`FORMAT` of the answer: "+strings.Join(verdictFormats(), ", ")+"; for \"-\" json (the default) or text")
	completeValues(cmd, map[string][]string{"output": verdictFormats()})
	fl.BoolVar(&flags.explain, "explain", false, "print the full chain of reasoning: who is believed, what is demanded, each piece of\nevidence, each requirement, and how the decision follows")
	fl.DurationVar(&flags.deadline, "deadline", 0, "give up on an image after `TIME`, as 30s, and say undecided (default: never)")
	fl.StringVar(&flags.at, "at", "", "judge as of `TIME`, as 2026-12-01 or 2026-12-01T12:00:00Z: what\nhas expired or come into effect by then (default: now)")
	fl.BoolVar(&flags.stream, "stream", false, "stay and answer requests from standard input until it ends; REF is \"-\"")
	fl.IntVar(&flags.jobs, "jobs", 8, "with \"-\": judge `N` images at the same time")
	fl.StringVar(&flags.resume, "resume", "", "with \"-\": journal `FILE` of what was answered: made where there is none, else gone on from")
	flags.archived.register(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if args[0] == "-" {
			if !fl.Changed("output") {
				flags.output = "json"
			}
			return flags.verifyMany(cmd.Context(), s)
		}
		return flags.verifyOne(cmd.Context(), s, args[0])
	}
	return cmd
}

// verdictFormats are the forms of one verdict.
func verdictFormats() []string { return []string{"text", "json", "sarif", "junit", "markdown"} }

func (f *verifyFlags) verifyOne(ctx context.Context, s *Streams, ref string) error {
	switch {
	case !slices.Contains(verdictFormats(), f.output):
		return usagef("--output %q: give one of %s", f.output, strings.Join(verdictFormats(), ", "))
	case f.explain && f.output != "text" && f.output != "json":
		return usagef("--explain is for --output text or json")
	case f.stream || f.resume != "":
		return usagef("--stream and --resume are for requests from standard input: give \"-\" and no reference")
	}
	req, err := f.request(ctx, s, ref)
	if err != nil {
		return err
	}
	if err := f.archived.read(ctx, &req); err != nil {
		return exitError{ExitUsage, err}
	}
	req.Explain = f.explain
	if f.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.deadline)
		defer cancel()
	}
	v, err := gate.Gate{}.Judge(ctx, req)
	if err != nil {
		return exitError{ExitUsage, err}
	}
	output := f.output
	if f.explain && output == "text" {
		output = "explain"
	}
	return printVerdict(s, v, output)
}

func (f *verifyFlags) request(ctx context.Context, s *Streams, ref string) (gate.Request, error) {
	req, err := f.judge.request(ctx, s, ref)
	if err == nil {
		req.At, err = parseMoment("--at", f.at)
	}
	return req, err
}

// verifyMany answers what standard input asks.
func (f *verifyFlags) verifyMany(ctx context.Context, s *Streams) error {
	switch {
	case f.output != "text" && f.output != "json":
		return usagef("--output %q: many images are answered as json or text, a line each", f.output)
	case f.stream && f.output != "json":
		return usagef("--output %q: --stream speaks json", f.output)
	case f.stream && f.resume != "":
		return usagef("--resume goes on with a list, and --stream has none")
	case f.explain || f.archived != archiveFlags{}:
		return usagef("--explain, --as and --bundled-trust are for one image")
	}
	// The reference is a stand-in: what is wrong with the rest of the command
	// line is said before anything is read.
	req, err := f.request(ctx, s, "registry.invalid/any")
	if err != nil {
		return err
	}
	req.Store.NoHelpers, req.Store.Cache = f.stream, new(store.Cache)
	if !f.stream {
		req.Store.Since = time.Now() // a list is judged as of its start, or later
	}
	p := newPrinter(s, f.output == "text", !f.stream)
	b, err := newBatch(req, f.jobs, f.deadline)
	if err != nil {
		return err
	}
	if f.stream {
		b.ahead = maxAhead
	}
	j := &journal{}
	if f.resume != "" {
		if j, err = openJournal(f.resume, auditOf("-", req), time.Now()); err != nil {
			return err
		}
		defer j.close()
	}
	asked := false
	b.remember(j, p)
	err = b.run(ctx, func(ctx context.Context, yield func(question) bool) error {
		return readQuestions(ctx, s.In, !f.stream, func(q question) bool {
			asked = true
			if f.stream {
				q = remote(q)
			}
			return q.err == nil && j.has(q) || yield(q)
		})
	})
	if err == nil && !asked && !f.stream {
		// "All passed" would be true, and not what anybody wanted to know.
		return usagef("standard input names no image")
	}
	return err
}

// printVerdict writes the verdict and returns the error that carries its exit
// code. A verdict that could not be written whole is no answer. No answer is no
// result either: as text it is the error alone.
func printVerdict(s *Streams, v *gate.Verdict, output string) error {
	var err error
	switch output {
	case "json":
		err = report.JSON(s.Out, v)
	case "sarif":
		err = report.SARIF(s.Out, v, Version())
	case "junit":
		err = report.JUnit(s.Out, v)
	case "markdown":
		err = report.Markdown(s.Out, v)
	case "explain":
		err = report.Explain(s.Out, v, textOptions(s))
	default:
		if v.Decision != gate.Undecided {
			err = report.Verdict(s.Out, v, textOptions(s))
		}
	}
	if err != nil {
		return exitError{ExitUndecided, fmt.Errorf("writing the verdict: %w", err)}
	}
	switch v.Decision {
	case gate.Pass:
		return nil
	case gate.Deny:
		return exitError{code: ExitDenied}
	}
	if len(v.Reasons) == 0 {
		return exitError{code: ExitUndecided}
	}
	return exitError{ExitUndecided, undecidedError{v.Reasons[0]}}
}

// undecidedError is the reason for no answer, with the way out.
type undecidedError struct{ reason gate.Reason }

func (e undecidedError) Error() string { return "undecided: " + e.reason.Message }
func (e undecidedError) Hint() string  { return e.reason.Hint }
