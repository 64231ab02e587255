package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/ci"
)

func newBuildCmd(s *Streams) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [flags] PATH | URL | -",
		Short: "Build an image as docker build does, with an SBOM and signed provenance",
		Long: `Build an image from a Dockerfile. Takes the flags of docker build and docker
buildx build, with the same meaning; one that is not supported is an error.

The context is a folder, a git URL (with #REF:SUBFOLDER), the URL of a tarball,
or - for a tar archive or a Dockerfile on standard input. Without an output the
image goes to waxseal's own OCI layouts below ${WAXSEAL_HOME:-~/.local/share/waxseal}.

Evidence is signed with --key (a cosign key; the password comes from
COSIGN_PASSWORD or the terminal) and attached to the image: provenance for every
platform and the index, a record of inputs and SBOMs for every platform. Or say
--unsigned.

Whatever comes from outside passes waxseal's gateway: it is recorded, kept in the
store, and listed in waxseal.lock beside the Dockerfile. Commit that file; then
--inputs locked builds from just that, and --inputs offline without any network.

Environment: WAXSEAL_KEY and WAXSEAL_BUILDER_ID stand for --key and --builder-id,
WAXSEAL_CACHE for --cache-dir, WAXSEAL_STORE for --store; BUILDKIT_PROGRESS,
DOCKER_DEFAULT_PLATFORM and SOURCE_DATE_EPOCH are read as docker reads them.`,
		Example: `  waxseal key generate
  waxseal build --key waxseal.key -t app:1.0 .
  waxseal build --key waxseal.key -t registry.example/app:1.0 --push .
  waxseal build --unsigned --build-context base=oci:./base -o type=local,dest=out .`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBuild(cmd.Context(), s, cmd, &f, args[0])
		},
	}
	f.register(cmd.Flags())
	completePublic(cmd)
	completeBuild(cmd)
	return cmd
}

// completeBuild tells shells what the values of flags can be.
func completeBuild(cmd *cobra.Command) {
	completeValues(cmd, map[string][]string{
		"inputs": {
			"record\tlet everything through and write the lock", "locked\tonly what the lock lists",
			"offline\tthe same, from the store alone", "none\tnothing but base images",
		},
		"allow": {"network.host", "security.insecure"}, "network": {"default", "none", "host"},
		"progress": {"auto", "plain", "tty", "quiet", "rawjson"},
		"sbom":     {"spdx", "cyclonedx", "none"}, "engine": {"embedded", "buildkit:"},
	})
	for _, flag := range []string{"store", "out", "cache-dir"} {
		_ = cmd.MarkFlagDirname(flag)
	}
}

// display shows progress on standard error, as plain lines where it was not asked
// for otherwise and the terminal cannot be drawn on.
func display(s *Streams, mode string) build.Display {
	if (mode == "" || mode == "auto") && s.Env("TERM") == "dumb" {
		mode = "plain"
	}
	return build.Display{Out: s.Err, Mode: mode}
}

// readyForEngine readies the process for BuildKit's client.
func readyForEngine(s *Streams) {
	// It logs through these to standard error; what matters of it comes as an error.
	logrus.SetOutput(io.Discard)
	log.SetOutput(io.Discard) // its HTTP/2 server
	// Blobs come from the engine in messages of just over 32 KiB, for each of which
	// gRPC's own pool clears a buffer of 1 MiB: between the two it has no size.
	if pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20); err == nil {
		experimental.SetDefaultBufferPool(pool)
	}
	// The heap is small beside what passes through it.
	if s.Env("GOGC") == "" {
		debug.SetGCPercent(200)
	}
}

func runBuild(ctx context.Context, s *Streams, cmd *cobra.Command, f *buildFlags, arg string) error {
	if err := refusedFlags(cmd.Flags()); err != nil {
		return err
	}
	readyForEngine(s)
	f.fromEnv(cmd.Flags(), s.Env)
	req, err := f.request(arg, s.LookupEnv)
	if err != nil {
		return exitError{ExitUsage, err}
	}
	deps := build.Deps{
		Home: imageHome(s.Env), Store: inputsHome(s.Env), Stdin: s.In, Stdout: s.Out, Env: s.Env, Version: Version(),
		Display: display(s, f.mode()),
		CI: func(ctx context.Context) (*attestations.CI, error) {
			return ci.Find(ctx, ci.Options{Env: s.Env, Token: f.ciToken})
		},
		Engine: build.EngineOptions{Notify: func(text string) { fmt.Fprintln(s.Err, "waxseal: "+text) }},
	}
	if f.sign.wanted() {
		if err := f.sign.alone(f.roots); err != nil {
			return err
		}
		// A password that is typed is asked for before the progress takes the
		// terminal; that there is no token is known before anything runs.
		signer, err := f.sign.openLate(ctx, s, f.roots)
		if err != nil {
			return err
		}
		defer signer.Close()
		deps.Signer, deps.TrySigner = func(context.Context) (build.Signer, error) { return signer, nil }, ready(signer)
	}
	res, err := build.Run(ctx, req, deps)
	if err != nil {
		var usage build.UsageError
		if errors.As(err, &usage) {
			return exitError{ExitUsage, err}
		}
		return err
	}
	return f.report(s, &req, res)
}

// report writes the files that were asked for about the result, and says what
// was made and what comes next.
func (f *buildFlags) report(s *Streams, req *build.Request, res *build.Result) error {
	if f.iidFile != "" {
		if err := res.WriteImageID(f.iidFile); err != nil {
			return err
		}
	}
	if f.metadataFile != "" {
		if err := res.WriteMetadata(f.metadataFile); err != nil {
			return err
		}
	}
	for _, n := range res.Notes {
		fmt.Fprintln(s.Err, "note: "+n)
	}
	out := s.Out
	for _, o := range req.Outputs {
		if o.Dest == "-" {
			out = s.Err // standard output holds the image
		}
	}
	if f.quiet {
		_, err := fmt.Fprintln(out, res.QuietID())
		return err
	}
	_, err := fmt.Fprint(out, f.summary(res))
	return err
}

func (f *buildFlags) summary(res *build.Result) string {
	var b strings.Builder
	line := func(key, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s"+format+"\n", append([]any{key}, args...)...)
	}
	kind := "image"
	if res.Index {
		kind = "index"
	}
	line(kind, "%s", res.Digest)
	for _, p := range res.Platforms {
		packages := ""
		for _, format := range []string{"spdx", "cyclonedx"} {
			if n, ok := p.Packages[format]; ok {
				packages = fmt.Sprintf("  %d packages in its SBOM", n)
				break
			}
		}
		line("platform", "%s  %s%s", p.Digest, p.Name, packages)
	}
	for _, i := range res.Images {
		line("is", "%s", i)
	}
	for _, n := range res.Loaded {
		line("is", "docker:%s", n)
	}
	for _, n := range res.Files {
		line("wrote", "%s", n)
	}
	if res.Out != "" {
		line("wrote", "%s", res.Out)
	}
	if f.unsigned {
		line("evidence", "unsigned: it earns no level")
	} else {
		line("evidence", "%d signed statements", res.Evidence)
		line("earns", "%s", f.earns(res.BuilderID))
	}
	if res.Inputs.Written {
		line("wrote", "%s", res.Inputs.LockFile)
	}
	if next := f.next(res); next != "" {
		line("next", "%s", next)
	}
	for _, text := range res.Inputs.Denied {
		line("refused", "%s", text)
	}
	if res.Inputs.Refused > 0 {
		line("refused", "%s", f.refusals(res))
	}
	fmt.Fprintf(&b, "inputs: %s\n", res.Inputs.Line())
	return b.String()
}

// refusals says where to read what was denied.
func (f *buildFlags) refusals(res *build.Result) string {
	switch {
	case res.Out != "":
		return "see " + filepath.Join(res.Out, "statements") + ", inputs-*.json, \"refusals\""
	}
	return "by which step stands in the record of inputs, which --out DIR writes out"
}

// earns says in one line what the evidence can carry.
func (f *buildFlags) earns(builder string) string {
	if builder == attestations.UnhostedBuilderID {
		return "at most SLSA Build L1: an unhosted builder vouches for no more (see --builder-id)"
	}
	signer := "key"
	if f.sign.keyless || f.sign.certificate != "" {
		signer = "identity"
	}
	return "at most what a policy trusts this " + signer + " for as " + builder
}

// next is the command that a reader will want.
func (f *buildFlags) next(res *build.Result) string {
	switch {
	case len(res.Images) == 0 && len(res.Loaded) > 0 && res.Out == "":
		return "docker run " + res.Loaded[0]
	case len(res.Images) == 0:
		return ""
	case f.unsigned || f.sign.keyless || f.sign.certificate != "":
		return "waxseal inspect " + shellWord(res.Images[0])
	}
	pub := "PUBLIC-KEY"
	if p := strings.TrimSuffix(f.sign.key, ".key") + ".pub"; p != f.sign.key {
		if _, err := os.Stat(p); err == nil {
			pub = p
		}
	}
	return "waxseal verify --key " + shellWord(pub) + " --level 1 " + shellWord(res.Images[0])
}

// shellWord quotes s where a shell would take it apart.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%_+=:,./-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
