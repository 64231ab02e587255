package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/ci"
	"github.com/waxseal/waxseal/pkg/sign"
	"github.com/waxseal/waxseal/pkg/trust"
)

// ExitWrapper is the exit code of run where waxseal itself failed: before the
// command, or after a good one.
const ExitWrapper = 125

// runFlags are the flags of run: those of build that are not the command's
// business, and run's own.
type runFlags struct {
	buildFlags
	env     []string
	require string
	output  string
	result  string

	artifacts, images []string
	trace, strict     bool
}

func newRunCmd(s *Streams) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG]...",
		Short: "Run a command that builds, and seal what it made",
		Long: `Run a command as it stands in a pipeline, and give what it made the evidence that
build gives. The command's streams, terminal, signals and exit code are its own:
nothing of waxseal's shows on standard output.

docker build, docker buildx build and bake, and docker compose build, called by
the command itself or by its scripts, any number of times, are led to waxseal's
engine. Every image gets its record of inputs, SBOMs and provenance, signed once
the command has ended well, and attached where the image was pushed; with --out
everything is written to a folder as well. A base image that the Docker daemon has
is taken from there, as docker's own builder does, unless it came from its registry;
a note names it. For a script the Docker daemon builds, loads, pulls, tags, saves and
pushes images, which is named as not seen, and runs nothing; beside buildx it does
none of it where --require full, --allow-host or a lock asks for more.

Any other command runs in a sandbox whose only way out is waxseal's gateway. What
it makes is named by --artifact and --image, or found by its own --iidfile,
--digestfile, --digest-file, --metadata-file, --image-refs and their like; the
evidence goes to waxseal-evidence, or --out, and beside each image where it was
pushed. podman and buildah need root, and runc or crun; their steps go the same
way, and so do kaniko's, in its own container, if that is privileged: waxseal's
programs and key are put into /kaniko, and what it takes from its cache is named as
not seen. A registry on this machine is reached by an address that is not its
loopback's, which --upstream ADDRESS=ADDRESS allows.

How much was seen is computed, said at the end and in the provenance: full (all
traffic, and all files by digest), partial (but for the parts that are named) or
record-only. The command gets the usual environment and what --env names; it sees
no key, password or token that signs. What looks like a secret in its arguments,
build arguments, labels and names of steps and files stands as REMOVED in the
evidence, and a note says where it was.

Exit codes: the command's, 128+N where signal N ended it, 126 and 127 where it
could not be started, 125 where waxseal failed before it or after it had ended
well, 64 wrong usage.`,
		Example: `  waxseal run --key waxseal.key -- docker buildx build --push -t registry.example/app:1.0 .
  waxseal run --key waxseal.key --require full -- docker buildx bake --push
  waxseal run --key waxseal.key --artifact 'dist/*' -- make
  waxseal run --key waxseal.key --image registry.example/app:1.0 -- sh build-with-podman.sh
  waxseal run --keyless -- ko build --bare --image-refs refs .
  waxseal run --keyless -- apko publish --image-refs refs apko.yaml registry.example/app:1.0
  waxseal run --key /kaniko/k.key -- /kaniko/executor -d registry.example/app:1.0 --digest-file d
  waxseal run --keyless --env NPM_TOKEN --out evidence -- make image`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runRun(cmd.Context(), s, cmd, &f, args) },
	}
	// What comes after the command's name is the command's.
	cmd.Flags().SetInterspersed(false)
	f.register(cmd.Flags())
	completePublic(cmd)
	completeBuild(cmd)
	completeValues(cmd, map[string][]string{"require": {"full", "partial"}, "output": {"text", "json"}})
	return cmd
}

// guardName is the command by which run starts itself once more, see
// build.Guard.
const guardName = "guard-run"

func newGuardCmd(s *Streams) *cobra.Command {
	return &cobra.Command{
		Use:    guardName + " FOLDER",
		Short:  "Clean up after a run that was killed",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(_ *cobra.Command, args []string) error { return build.Guard(s.In, args[0]) },
	}
}

func (f *runFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringArrayVar(&f.env, "env", nil, "`NAME` of a variable that the command may see besides the usual, or NAME=VALUE; may be repeated")
	fs.StringVar(&f.require, "require", "", "`GRADE` that what is seen must have: full or partial; nothing is signed for less")
	fs.StringArrayVar(&f.artifacts, "artifact", nil, "`PATTERN` of files that the command makes below the working folder, or behind a link there that it spells, as 'dist/*'; may be repeated")
	fs.StringArrayVar(&f.images, "image", nil, "`REF` of an image that the command pushes; may be repeated")
	fs.BoolVar(&f.trace, "trace", false, "record by digest which files outside the working folder are opened (as root)")
	fs.BoolVar(&f.strict, "strict-secrets", false, "refuse a command whose arguments hold a secret, and sign nothing that would show one (default: replace it)")
	fs.StringVar(&f.output, "output", "text", "`FORMAT` of the summary on standard error: text or json")
	fs.StringVar(&f.result, "metadata-file", "", "write what was made to `FILE`, as JSON")
	f.registerSeal(fs)
	f.registerIntake(fs)
	fs.StringSliceVar(&f.allow, "allow", nil, "`WHAT` a RUN may ask for: network.host or security.insecure; what it does with that nobody sees")
}

func runRun(ctx context.Context, s *Streams, cmd *cobra.Command, f *runFlags, args []string) error {
	readyForEngine(s)
	f.fromEnv(cmd.Flags(), s.Env)
	req, err := f.request(args)
	if err != nil {
		return exitError{ExitUsage, err}
	}
	var signer sign.Signer
	if f.sign.wanted() {
		// Before the command has the terminal, and before the environment is read
		// that a key may be in.
		if signer, err = f.sign.openLate(ctx, s, f.roots); err != nil {
			return ownFailure(err)
		}
		defer signer.Close()
	}
	deps := build.CommandDeps{
		Deps: build.Deps{
			Home: imageHome(s.Env), Store: inputsHome(s.Env), Stdin: s.In, Stdout: s.Out, Env: s.Env, Version: Version(),
			CI: func(ctx context.Context) (*attestations.CI, error) {
				return ci.Find(ctx, ci.Options{Env: s.Env, Token: f.ciToken})
			},
			Engine: build.EngineOptions{Notify: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) }},
		},
		Stderr: s.Err, Environ: os.Environ(), Tell: func(err error) { tellError(s.Err, err) },
	}
	if self, err := os.Executable(); err == nil {
		deps.Guard = []string{self, guardName}
	}
	if signer != nil {
		deps.Signer, deps.TrySigner = func(context.Context) (build.Signer, error) { return signer, nil }, ready(signer)
	}
	res, err := build.RunCommand(ctx, req, deps)
	if err != nil {
		return ownFailure(err)
	}
	if err := f.tell(s, res); err != nil {
		return ownFailure(err)
	}
	if res.Code != 0 {
		return exitError{res.Code, nil}
	}
	return nil
}

// ownFailure gives an error of ours its exit code.
func ownFailure(err error) error {
	var coded exitError
	var usage build.UsageError
	var start *build.StartError
	switch {
	case errors.As(err, &coded):
		return err
	case errors.As(err, &usage):
		return exitError{ExitUsage, err}
	case errors.As(err, &start):
		return exitError{start.Code, err}
	}
	return exitError{ExitWrapper, err}
}

// request reads the flags' values. Its errors name the flag.
func (f *runFlags) request(args []string) (build.CommandRequest, error) {
	req := build.CommandRequest{
		Args: args, Env: f.env, Key: f.sign.key, Tokens: []string{f.sign.token, f.ciToken}, Allow: f.allow,
		Seal:   build.Seal{Unsigned: f.unsigned, KeyFiles: f.secretFiles(), BuilderID: f.builderID, Out: f.out, Insecure: f.insecure},
		Engine: build.EngineChoice{CacheDir: f.cacheDir},
		Inputs: f.choice(), Artifacts: f.artifacts, Images: f.images, Trace: f.trace, StrictSecrets: f.strict,
	}
	if kept := trust.OwnMemory(sharedMemory); kept != "" {
		req.Seal.KeyFiles = append(req.Seal.KeyFiles, kept) // nor may the command say which key verifies later
	}
	var errs flagErrors
	errs.read("require", func() (err error) { req.Require, err = build.ParseGrade(f.require); return })
	errs.read("output", func() error {
		if f.output != "text" && f.output != "json" {
			return fmt.Errorf("%q is neither text nor json", f.output)
		}
		return nil
	})
	errs.read("sbom", func() error { return f.chooseSBOM(&req.Seal) })
	errs.read("allow-host", func() error { return build.CheckHostPatterns(f.allowHosts) })
	errs.read("upstream", func() (err error) { req.Inputs.Upstreams, err = build.ParseUpstreams(f.upstreams); return })
	return req, errs.first
}

// runSummary is what --output json and --metadata-file hold.
type runSummary struct {
	Schema     string           `json:"schema"`
	ExitCode   int              `json:"exitCode"`
	Grade      build.Grade      `json:"grade"`
	Unobserved []string         `json:"unobserved,omitempty"`
	Builder    string           `json:"builder,omitempty"`
	Signed     bool             `json:"signed"`
	Images     []map[string]any `json:"images"`           // of builds
	Sealed     *sealedSummary   `json:"sealed,omitempty"` // what else was made and named
	Notes      []string         `json:"notes,omitempty"`
}

// sealedSummary is what was said about files and images that a command made.
type sealedSummary struct {
	Subjects []attest.Subject `json:"subjects"`
	Images   []string         `json:"images,omitempty"` // to which evidence was attached
	Evidence int              `json:"evidence"`         // signed statements
	Out      string           `json:"out"`              // the folder of the evidence
}

// tell says on standard error what was made. Of a command that failed there is
// nothing to say that it has not said.
func (f *runFlags) tell(s *Streams, res *build.CommandResult) error {
	sum := runSummary{
		Schema: "waxseal.run/v1", ExitCode: res.Code, Grade: res.Observed.Grade, Unobserved: res.Observed.Unobserved,
		Signed: f.sign.wanted() && res.Code == 0 && (len(res.Builds) > 0 || res.Sealed != nil), Images: []map[string]any{}, Notes: res.Notes,
	}
	for _, b := range res.Builds {
		sum.Builder = b.BuilderID
		sum.Images = append(sum.Images, b.Metadata)
	}
	if r := res.Sealed; r != nil {
		sum.Builder = r.BuilderID
		sum.Sealed = &sealedSummary{Subjects: r.Subjects, Images: r.Images, Evidence: r.Evidence, Out: r.Out}
	}
	raw, err := json.MarshalIndent(sum, "", "  ")
	if err != nil {
		return err
	}
	raw = append(raw, '\n')
	if f.result != "" {
		if err := build.WriteFile(f.result, raw); err != nil {
			return err
		}
	}
	if f.output == "json" {
		_, err := s.Err.Write(raw)
		return err
	}
	if res.Code != 0 {
		_, err := fmt.Fprintf(s.Err, "waxseal: the command failed (exit code %d); nothing was sealed\n", res.Code)
		return err
	}
	_, err = io.WriteString(s.Err, f.summaryOf(res))
	return err
}

func (f *runFlags) summaryOf(res *build.CommandResult) string {
	var b strings.Builder
	for _, n := range res.Notes {
		fmt.Fprintln(&b, "waxseal: note: "+n)
	}
	for _, r := range res.Builds {
		for _, text := range r.Inputs.Denied {
			fmt.Fprintln(&b, "waxseal: refused: "+text)
		}
		where := r.Images
		if len(where) == 0 {
			where = []string{string(r.Digest)}
		}
		how := fmt.Sprintf("%d signed statements", r.Evidence)
		if f.unsigned {
			how = "unsigned"
		}
		fmt.Fprintf(&b, "waxseal: sealed %s (%s; %s)\n", strings.Join(where, ", "), how, r.Inputs.Counts())
		if r.Out != "" {
			fmt.Fprintf(&b, "waxseal: wrote %s\n", r.Out)
		}
	}
	if f.unsigned {
		fmt.Fprintln(&b, "waxseal: unsigned: it earns no level")
	}
	if r := res.Sealed; r != nil {
		how := fmt.Sprintf("%d signed statements", r.Evidence)
		if f.unsigned {
			how = "unsigned"
		}
		for _, x := range r.Subjects {
			fmt.Fprintf(&b, "waxseal: sealed %s sha256:%s\n", oneLine(x.Name), x.Digest["sha256"])
		}
		fmt.Fprintf(&b, "waxseal: wrote %s (%s; inputs: %s)\n", r.Out, how, r.Inputs.Line())
	}
	if len(res.Builds) == 0 && res.Sealed == nil {
		return b.String()
	}
	fmt.Fprintf(&b, "waxseal: seen: %s\n", res.Observed.Grade)
	for _, u := range res.Observed.Unobserved {
		fmt.Fprintf(&b, "waxseal:   not seen: %s\n", u)
	}
	return b.String()
}
