package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// CommandRequest is one wrapped command, as a user asks for it.
type CommandRequest struct {
	Args    []string // the program and its arguments
	Env     []string // NAME or NAME=VALUE that the command gets besides the usual, see CommandEnv
	Require Grade    // less must not be seen; "" for any
	Allow   []string // "network.host", "security.insecure": what a RUN may ask for
	Key     string   // the reference of the key that signs; its provider's credentials are not the command's
	Seal    Seal
	Engine  EngineChoice
	Inputs  InputChoice
	// Artifacts are patterns of files below the working folder that the command
	// makes, and Images references that it pushes.
	Artifacts, Images []string
	Trace             bool // record which files elsewhere the command opens
}

// CommandDeps is what RunCommand needs of its surroundings besides Deps, of
// which Stdin and Stdout are the command's.
type CommandDeps struct {
	Deps
	Stderr  io.Writer
	Environ []string // ours, of which the command gets a part
}

// CommandResult is what came of a wrapped command.
type CommandResult struct {
	Code     int // the command's exit code; where it is not 0 nothing was attested
	Observed Observed
	Builds   []*Result // the images that were built, in the order in which they were done
	Sealed   *Sealed   // what else was made; nil for nothing
	Notes    []string
	Duration time.Duration
}

// CommandFailed is a failure of ours after a command that was good.
type CommandFailed struct{ cause error }

func (e *CommandFailed) Error() string {
	return fmt.Sprintf("the command was good, but what it made is not sealed: %v", e.cause)
}
func (e *CommandFailed) Unwrap() error { return e.cause }

// Hint is the cause's.
func (e *CommandFailed) Hint() string {
	var h interface{ Hint() string }
	if errors.As(e.cause, &h) {
		return h.Hint()
	}
	return ""
}

// RunCommand runs a command and seals what it made, once it has ended well. A
// command that fails is no error: its exit code is in the result. An error in
// the request is a UsageError, a command that cannot be started a StartError,
// and what goes wrong after a good command a CommandFailed.
func RunCommand(ctx context.Context, req CommandRequest, deps CommandDeps) (*CommandResult, error) {
	if err := req.check(deps.Signer != nil); err != nil {
		return nil, err
	}
	env, err := CommandEnv(deps.Environ, req.Env, req.Key)
	if err != nil {
		return nil, UsageError{fmt.Errorf("--env: %w", err)}
	}
	if err := req.reachable(); err != nil {
		return nil, err
	}
	if !callsDocker(req.Args) {
		return runWatched(ctx, &req, &deps, env, nil)
	}
	res := &CommandResult{}
	began := time.Now()
	p := Process{Args: req.Args, Env: env, Stdin: deps.Stdin, Stdout: deps.Stdout, Stderr: deps.Stderr}
	if res.Code, err = p.Run(context.WithoutCancel(ctx)); err != nil {
		return nil, err
	}
	res.Duration = time.Since(began)
	res.Observed = Together()
	return res, nil
}

func (r *CommandRequest) check(signed bool) error {
	if len(r.Args) == 0 || r.Args[0] == "" {
		return UsageError{errors.New("no command: it stands after --, as in waxseal run --key waxseal.key -- docker build .")}
	}
	whole := Request{Seal: r.Seal, Steps: Steps{Allow: r.Allow}, Inputs: r.Inputs}
	return whole.check(signed)
}

// callsDocker reports whether a command is docker's own, which does its work
// outside of any sandbox.
func callsDocker(args []string) bool { return filepath.Base(args[0]) == "docker" }

// reachable refuses a demand that cannot be met, before anything runs.
func (r *CommandRequest) reachable() error {
	if r.Require == GradeFull && len(r.Allow) > 0 {
		return hinted(fmt.Errorf("--require full: a step that asks for %s could not be watched", strings.Join(slices.Sorted(slices.Values(r.Allow)), " or ")),
			"leave out --allow, or take what is seen with --require partial")
	}
	return nil
}
