package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
)

// hintError is an error that knows the way out.
type hintError struct {
	error
	hint string
}

func (h hintError) Unwrap() error { return h.error }

// Hint says what to do about it.
func (h hintError) Hint() string { return h.hint }

func hinted(err error, hint string) error { return hintError{err, hint} }

// UsageError is an error in what was asked for, found before anything was
// done.
type UsageError struct{ Err error }

func (u UsageError) Error() string { return u.Err.Error() }
func (u UsageError) Unwrap() error { return u.Err }

// solveNoise is what BuildKit and gRPC put before a cause.
var solveNoise = regexp.MustCompile(`^(failed to solve: |failed to build: |rpc error: code = \w+ desc = |failed to load cache key: |failed to fetch \w+: )+`)

// lastCause drops the layers that say only where an error has been.
func lastCause(err error) error {
	if err == nil {
		return nil
	}
	text := strings.TrimSpace(err.Error())
	if plain := solveNoise.ReplaceAllString(text, ""); plain != text {
		return causeError{plain, err}
	}
	return err
}

type causeError struct {
	text string
	err  error
}

func (c causeError) Error() string { return c.text }
func (c causeError) Unwrap() error { return c.err }

// explainSolve turns the engine's error into one line that names the place in
// the Dockerfile, and the way out where there is one.
func explainSolve(err error, req *Request) error {
	var own *EngineError
	if errors.As(err, &own) {
		return own
	}
	cause := lastCause(err)
	text := cause.Error()
	where := ""
	if sources := errdefs.Sources(err); len(sources) > 0 {
		s := sources[len(sources)-1]
		if s.Info != nil && len(s.Ranges) > 0 && s.Ranges[0].Start != nil {
			where = fmt.Sprintf("%s:%d: ", s.Info.Filename, s.Ranges[0].Start.Line)
		}
	}
	out := causeError{"building: " + where + text, err}
	for _, h := range solveHints {
		if h.sign.MatchString(text) {
			return hinted(out, h.hint)
		}
	}
	if strings.Contains(text, "network.host") {
		return hinted(out, "allow it for the whole build with --network=host")
	}
	return out
}

// solveHints are ways out of what most often goes wrong in a build.
var solveHints = []struct {
	sign *regexp.Regexp
	hint string
}{
	{regexp.MustCompile(`no space left on device`), "free some space, or choose another cache with --cache-dir"},
	{regexp.MustCompile(`did not complete successfully: exit code`), "the step's own output is above"},
	{regexp.MustCompile(`pull access denied|insufficient_scope|401 Unauthorized|authorization failed|no basic auth credentials`), "log in with docker login, or give the base image with --build-context NAME=oci:LAYOUT"},
	{regexp.MustCompile(`docker\.io/.*(i/o timeout|no such host|connection refused|not found|network is unreachable)`), "a base image that is not on Docker Hub is given with its registry, or with --build-context NAME=oci:LAYOUT or docker:NAME"},
	{regexp.MustCompile(`target stage .* could not be found`), "--target takes the name of a stage: FROM … AS NAME"},
	{regexp.MustCompile(`failed to compute cache key.*not found|failed to calculate checksum.*not found`), "is the file in the context, and not left out by .dockerignore?"},
	{regexp.MustCompile(`exec format error`), "steps for another platform need its emulator: apt-get install qemu-user-static binfmt-support"},
	{regexp.MustCompile(`dockerfile parse error|unknown instruction`), "the reference is https://docs.docker.com/reference/dockerfile/"},
}
