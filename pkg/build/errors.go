package build

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/waxseal/waxseal/attestations"
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
func explainSolve(err error, req *Request, from attestations.ContainerContext) error {
	var own *EngineError
	if errors.As(err, &own) {
		return own
	}
	text := req.redact().Replace(lastCause(err).Error())
	if i := strings.Index(text, signRefused); i > 0 {
		text = text[i:] // what comes before says the same in BuildKit's words
	}
	if from.URI != "" && !strings.Contains(text, from.URI) && regexp.MustCompile(signFetch).MatchString(text) {
		text = fmt.Sprintf("fetching context %q: %s", from.URI, text)
	}
	where := ""
	if sources := errdefs.Sources(err); len(sources) > 0 {
		s := sources[len(sources)-1]
		if s.Info != nil && len(s.Ranges) > 0 && s.Ranges[0].Start != nil {
			where = fmt.Sprintf("%s:%d: ", s.Info.Filename, s.Ranges[0].Start.Line)
		}
	}
	out := causeError{"building: " + where + text, err}
	for _, w := range waysOut() {
		if req.Source.Sealed != nil && (w[0] == signLacks || w[0] == signLock) {
			continue // a replay has another way out
		}
		if w[0] == signNoSpace && strings.HasPrefix(text, signRefused) {
			continue // the store's error has its own
		}
		if regexp.MustCompile(w[0]).MatchString(text) {
			return hinted(out, w[1])
		}
	}
	return out
}

// Signs of what most often goes wrong in a build.
const (
	signFetch   = `downloaded context|httpcontext|git stderr|git ls-remote|failed to fetch remote`
	signNoSpace = `no space left on device`
	signStep    = `did not complete successfully: exit code`
	signDenied  = `pull access denied|insufficient_scope|401 Unauthorized|authorization failed|no basic auth credentials`
	signHub     = `docker\.io/.*(i/o timeout|no such host|connection refused|not found|network is unreachable)`
	signTarget  = `target stage .* could not be found`
	signCopy    = `failed to (compute cache key|calculate checksum).*not found`
	signFormat  = `exec format error`
	signParse   = `dockerfile parse error|unknown instruction`
	signHost    = `network\.host`

	signRefused  = "inputs refused: "
	signDamaged  = `the store's copy is damaged`
	signLacks    = `the store (lacks|does not have)`
	signLock     = `(?s)` + signRefused + `.*(not in the lock|: expected )`
	signGateway  = `downloaded context.*invalid response status 403`
	signPolicy   = `(denied|not allowed) by policy`
	signInsecure = `security\.insecure`
)

// waysOut pairs each sign with the way out.
func waysOut() [][2]string {
	return [][2]string{
		{signDamaged, "waxseal store verify --repair removes what is damaged; then the same command with --inputs locked fetches it again, or waxseal store import brings it"},
		{signLacks, "waxseal store import brings it from where the lock was made; bodies are also fetched by the same command with --inputs locked"},
		{signLock, relock},
		{signGateway, "the server refused it, or the gateway did: it connects to this machine and its link only where --upstream NAME=ADDRESS says so, and only to hosts that --allow-host allows"},
		{signPolicy, "with --inputs none nothing is fetched; else the lock does not list it, and " + relock},
		{signNoSpace, "free some space, or choose another cache with --cache-dir"},
		{signStep, "the step's own output is above, or shown without --quiet"},
		{signDenied, "log in with docker login, or give the base image with --build-context NAME=oci:LAYOUT"},
		{signHub, "a base image that is not on Docker Hub is given with its registry, or with --build-context NAME=oci:LAYOUT or docker:NAME"},
		{signTarget, "--target takes the name of a stage: FROM … AS NAME"},
		{signCopy, "is the file in the context, and not left out by .dockerignore?"},
		{signFormat, "steps for another platform need its emulator: apt-get install qemu-user-static binfmt-support"},
		{signParse, "the reference is https://docs.docker.com/reference/dockerfile/"},
		{signHost, "allow it with --allow network.host, or give the host's network to all steps with --network=host; it is a gap in the record"},
		{signInsecure, "allow it with --allow security.insecure; it is a gap in the record"},
	}
}
