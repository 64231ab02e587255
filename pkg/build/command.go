package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
)

// CommandRequest is one wrapped command, as a user asks for it.
type CommandRequest struct {
	Args    []string // the program and its arguments
	Env     []string // NAME or NAME=VALUE that the command gets besides the usual, see CommandEnv
	Require Grade    // less must not be seen; "" for any
	Allow   []string // "network.host", "security.insecure": what a RUN may ask for
	Key     string   // the reference of the key that signs; its provider's credentials are not the command's
	Tokens  []string // where identity tokens are: env:NAME is not the command's, a file is one of Seal.KeyFiles
	Seal    Seal
	Engine  EngineChoice
	Inputs  InputChoice
	// Artifacts are patterns of files that the command makes below the working
	// folder, or behind a link there that they spell, and Images references that it
	// pushes.
	Artifacts, Images []string
	Trace             bool // record which files elsewhere the command opens
	// StrictSecrets refuses a command that holds a secret, and statements that
	// would: else it is replaced.
	StrictSecrets bool
}

// CommandDeps is what RunCommand needs of its surroundings besides Deps, of
// which Stdin and Stdout are the command's.
type CommandDeps struct {
	Deps
	Stderr  io.Writer
	Environ []string    // ours, of which the command gets a part
	Tell    func(error) // is told what goes wrong of ours while the command runs
	Guard   []string    // the command line that calls Guard with one argument more; none leaves a killed run to the next

	whose   *attestations.CI // what CI answered
	clean   *cleaner
	started func() // from now on a signal is the command's
}

// startedBy is for the Started of the command's Process; l may be nil.
func (d *CommandDeps) startedBy(l *lead) func(pid int) {
	return func(pid int) {
		d.started()
		if l != nil {
			l.started(pid)
		}
	}
}

// CommandResult is what came of a wrapped command.
type CommandResult struct {
	Code     int // the command's exit code; where it is not 0 nothing was attested
	Observed Observed
	Builds   []*Result // the images that were built, in the order in which they were done
	Sealed   *Sealed   // what else was made; nil for nothing
	Notes    []string
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
	// A signal is the command's, once there is one.
	running, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	own := context.AfterFunc(ctx, func() { cancel(ctx.Err()) })
	deps.started = func() { own() }
	if deps.TrySigner != nil {
		go func() {
			if err := deps.TrySigner(running); err != nil {
				cancel(err)
			}
		}()
	}
	res, err := runCommand(ctx, running, req, deps)
	var late *CommandFailed
	if err != nil && running.Err() != nil && !errors.As(err, &late) {
		err = context.Cause(running)
	}
	return res, err
}

// runCommand is RunCommand with a request that was checked; running ends when
// what the command makes could not be signed, and with ctx before it starts.
func runCommand(ctx, running context.Context, req CommandRequest, deps CommandDeps) (*CommandResult, error) {
	env, err := CommandEnv(deps.Environ, req.Env, req.Key, req.Tokens...)
	if err != nil {
		return nil, UsageError{fmt.Errorf("--env: %w", err)}
	}
	if err := req.reachable(env); err != nil {
		return nil, err
	}
	if req.Seal.Out != "" {
		if err := CheckOut(req.Seal.Out); err != nil {
			return nil, err
		}
	}
	if err := makeHome(deps.Home); err != nil {
		return nil, err
	}
	looking, stop := context.WithCancel(running)
	defer stop()
	deps.clean = newCleaner(env, req.Env)
	deps.clean.strict = req.StrictSecrets
	if err := deps.clean.begin(looking, req.argumentTexts()); err != nil {
		return nil, err
	}
	defer deps.clean.close()
	if deps.CI != nil {
		// Tokens of a job do not live as long as some commands run.
		if deps.whose, err = deps.CI(ctx); err != nil {
			return nil, err
		}
	}
	res := &CommandResult{}
	defer func() { res.Notes = append(res.Notes, deps.clean.notes()...) }()
	if req.isDocker() {
		return res, req.lead(ctx, &deps, res, env, func(l *lead, environ []string) (err error) {
			if req.StrictSecrets {
				if err := deps.clean.ready(); err != nil {
					return err
				}
			}
			p := Process{Args: req.Args, Env: environ, Stdin: deps.Stdin, Stdout: deps.Stdout, Stderr: deps.Stderr, Started: deps.startedBy(l)}
			if res.Code, err = p.Run(running); err != nil || res.Code != 0 {
				res.Observed = Together()
			}
			return err
		})
	}
	w, err := newWatched(&req, &deps, env)
	if err != nil {
		return nil, err
	}
	defer w.intake.store.Close()
	if !req.leads(env) {
		return res, w.whole(running, nil, res)
	}
	return res, req.lead(ctx, &deps, res, env, func(l *lead, environ []string) error {
		w.env = environ
		return w.whole(running, l, res)
	})
}

// leads reports whether builds that the command asks of docker are led to our
// engine: that needs docker, root, and no lock of the command's own, in which
// they have no part.
func (r *CommandRequest) leads(env []string) bool {
	return os.Geteuid() == 0 && !r.Inputs.enforced() && slices.ContainsFunc(dockers(), func(name string) bool { return onPath(env, name) })
}

// dockers are the programs that ask an engine to build.
func dockers() []string { return []string{"docker", "docker-buildx", "buildx", "docker-compose"} }

// onPath reports whether a program is on the PATH of an environment.
func onPath(env []string, name string) bool {
	for _, kv := range env {
		path, ok := strings.CutPrefix(kv, "PATH=")
		if ok && slices.ContainsFunc(filepath.SplitList(path), func(dir string) bool {
			st, err := os.Stat(filepath.Join(dir, name))
			return err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0
		}) {
			return true
		}
	}
	return false
}

// lead runs something, given the environment for it, with an engine behind it
// for whoever asks docker to build, and seals what was built there.
func (r *CommandRequest) lead(ctx context.Context, deps *CommandDeps, res *CommandResult, env []string, run func(*lead, []string) error) error {
	in, err := openIntake(&Request{Source: Source{Context: "-"}, Inputs: r.Inputs}, &deps.Deps)
	if err != nil {
		return err
	}
	defer in.store.Close()
	meant, known := r.daemonEnv(deps.env)
	l, err := newLead(meant)
	if err != nil {
		return err
	}
	defer l.close()
	opts := deps.Engine
	opts.CacheDir = r.Engine.CacheDir
	opts.Entitlements = append(slices.Clone(opts.Entitlements), r.Allow...)
	opts.Inputs = in.plan()
	opts.Inputs.Clients = &clientsPlan{SBOM: r.Seal.SBOM}
	if daemon, err := findDaemon(meant); err == nil && known {
		l.images = &daemonImages{daemon: daemon, home: deps.Home}
		if l.given, err = l.images.serve(); err != nil {
			return err
		}
		opts.Inputs.Clients.Daemon = true
	}
	// What takes longest to start goes first.
	if err := l.watch(opts, r.isDocker() && !buildsItself(env), deps.Tell); err != nil {
		return err
	}
	if err := l.guarded(deps.Guard); err != nil {
		return err
	}
	legacy, environ, note, err := r.legacy(ctx, l, env, &deps.Deps, in.plan())
	if err != nil {
		return err
	}
	if note != "" {
		res.Notes = append(res.Notes, note)
	}
	if legacy != nil {
		defer legacy.close()
	}
	l.legacy = legacy
	if err := run(l, environ); err != nil || res.Code != 0 {
		return err
	}
	// A signal that the command took and lived on is not for us.
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	s := &sealer{req: r, deps: deps, intake: in, legacy: legacy}
	if err := s.sealAll(ctx, l, res); err != nil {
		return &CommandFailed{err}
	}
	return nil
}

// sealAll seals what was built while the command ran.
func (s *sealer) sealAll(ctx context.Context, l *lead, res *CommandResult) error {
	l.stopWatching()
	way := "name what it makes with --artifact 'dist/*' or --image REF; builds are seen that docker build, buildx, bake or compose ask for, not those of another tool or of a builder that it made itself where no Docker daemon is"
	if s.legacy != nil {
		way += ", nor, without buildx, those of a daemon that -H or --context names: set DOCKER_HOST or DOCKER_CONTEXT for waxseal run"
	}
	nothing := hinted(errors.New("there is nothing to seal: it built no image that waxseal saw, and neither a file nor an image is named"), way)
	s.engine, s.client = l.running()
	around := res.Observed
	s.aside = around.Unobserved // of the command
	if s.deps.Signer != nil {
		var err error
		if s.signer, err = s.deps.Signer(ctx); err != nil {
			return err
		}
	}
	res.Notes = append(res.Notes, l.images.notes()...)
	images, notes, err := s.seen(ctx)
	defer func() {
		for _, img := range images {
			if img.layout != "" {
				os.RemoveAll(img.layout)
			}
		}
	}()
	res.Notes = append(res.Notes, notes...)
	if err != nil {
		return err
	}
	if l.images == nil {
		res.Notes = append(res.Notes, notLoaded(images)...)
	}
	if len(images) == 0 && res.Sealed != nil {
		return nil
	}
	if len(images) == 0 && s.req.isDocker() && (s.asked || s.req.prints()) {
		res.Notes = append(res.Notes, "nothing is sealed: docker was asked for nothing that stays")
		res.Observed = Together()
		return nil
	}
	if what := s.req.makesNothing(); len(images) == 0 && what != "" {
		res.Notes = append(res.Notes, fmt.Sprintf("nothing is sealed: %s makes no image", what))
		res.Observed = Together()
		return nil
	}
	if len(images) == 0 {
		return nothing
	}
	res.Builds, res.Observed, err = s.seal(ctx, images)
	for _, b := range res.Builds {
		for _, n := range b.Notes {
			if !slices.Contains(res.Notes, n) {
				res.Notes = append(res.Notes, n)
			}
		}
	}
	if !s.req.isDocker() {
		res.Observed = Together(around, res.Observed)
	}
	return err
}

// seen lists the images that the engine built, and docker's legacy builder.
func (s *sealer) seen(ctx context.Context) (images []clientImage, notes []string, err error) {
	if s.engine != nil {
		solves, err := s.engine.solves(ctx)
		if err != nil {
			return nil, nil, err
		}
		leaves := func(sv clientSolve) bool { return len(sv.Exports) > 0 }
		s.asked = len(solves) > 0 && !slices.ContainsFunc(solves, leaves)
		if images, notes, err = s.images(ctx, solves); err != nil {
			return nil, notes, err
		}
	}
	if s.legacy == nil {
		return images, notes, nil
	}
	more, said, err := s.legacyImages(ctx, s.legacy, images)
	return append(images, more...), append(notes, said...), err
}

// isDocker reports whether the command is docker's own and does nothing beside
// what it asks the engine for: not a script of that name, which whoever wrote
// the working folder could have put there.
func (r *CommandRequest) isDocker() bool { return r.isOneOf(dockers()) }

// isOneOf reports whether the command is a program of one of these names, and
// not from the working folder.
func (r *CommandRequest) isOneOf(names []string) bool {
	name := r.Args[0]
	if !slices.Contains(names, filepath.Base(name)) || filepath.Base(name) != name && !filepath.IsAbs(name) {
		return false
	}
	program, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return true // and nothing will run
	}
	if err != nil || !filepath.IsAbs(program) { // below a relative folder of PATH
		return false
	}
	dir, err := syscall.Getwd()
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(program)
	return err == nil && !isBelow(program, dir) && !isBelow(real, dir)
}

// daemonEnv is the environment by which docker's client finds the daemon that the
// command means, whose own flags go before it. It is not known where they say more
// than which daemon that is.
func (r *CommandRequest) daemonEnv(env func(string) string) (meant func(string) string, known bool) {
	if !r.isDocker() {
		return env, true
	}
	known = true
	said := map[string]string{}
	args := r.Args[1:]
	if i := slices.IndexFunc(args, func(a string) bool {
		return slices.Contains([]string{"build", "buildx", "builder", "image", "compose", "bake"}, a)
	}); i >= 0 {
		args = args[:i]
	}
	for i := 0; i < len(args); i++ {
		name, value, given := strings.Cut(args[i], "=")
		if len(name) > 2 && (strings.HasPrefix(name, "-c") || strings.HasPrefix(name, "-H")) {
			name, value, given = args[i][:2], strings.TrimPrefix(args[i][2:], "="), true
		}
		variable := map[string]string{
			"-c": "DOCKER_CONTEXT", "--context": "DOCKER_CONTEXT", "-H": "DOCKER_HOST", "--host": "DOCKER_HOST", "--config": "DOCKER_CONFIG",
		}[name]
		switch {
		case variable != "" && !given && i+1 < len(args):
			i++
			said[variable] = args[i]
		case variable != "":
			said[variable] = value
		case strings.HasPrefix(name, "--tls"):
			known = false
		}
	}
	if name := said["DOCKER_CONTEXT"]; name != "" && name != "default" {
		said["DOCKER_HOST"] = ""
	}
	return func(name string) string {
		if value, ok := said[name]; ok {
			return value
		}
		return env(name)
	}, known
}

// prints reports whether docker by its flags says what it would build.
func (r *CommandRequest) prints() bool {
	flags := slices.IndexFunc(r.Args, func(a string) bool { return a == "bake" || a == "build" })
	return flags > 0 && slices.ContainsFunc(r.Args[flags:], func(a string) bool {
		return a == "--print" || a == "--list" || strings.HasPrefix(a, "--list=")
	})
}

// makesNothing returns the words of a docker command that makes no image, whatever
// becomes of it: docker may be called through waxseal run for everything. It is ""
// for one that could.
func (r *CommandRequest) makesNothing() string {
	if !r.isDocker() {
		return ""
	}
	program := filepath.Base(r.Args[0])
	words := []string{}
	switch program {
	case "docker-buildx", "buildx":
		words = append(words, "buildx")
	case "docker-compose":
		words = append(words, "compose")
	}
	given := len(words)
	valued := []string{
		"-c", "--context", "-H", "--host", "--config", "-l", "--log-level", "--tlscacert", "--tlscert", "--tlskey", "--builder",
		"-f", "--file", "-p", "--project-name", "--profile", "--env-file", "--project-directory", "--ansi", "--progress", "--parallel",
	}
	help := ""
	for i := 1; i < len(r.Args) && r.Args[i] != "--"; i++ {
		switch a := r.Args[i]; {
		case len(words) == given && (a == "--help" || a == "--version" || a == "-v"): // later it may be a flag's value
			help = " " + a
		case slices.Contains(valued, a) && len(words) < 3:
			i++
		case !strings.HasPrefix(a, "-") && len(words) < 3:
			words = append(words, a)
		}
	}
	said := func(n int) string { return strings.Join(append([]string{program}, words[given:n]...), " ") }
	if help != "" || len(words) == given {
		return said(len(words)) + help
	}
	for n := 1; n <= len(words); n++ {
		if slices.Contains(asking(), strings.Join(words[:n], " ")) {
			return said(max(n, given))
		}
	}
	return ""
}

// asking are the docker commands that make no image.
func asking() []string {
	return []string{
		"container inspect", "container logs", "container ls", "container prune", "container rm", "container stats", "context", "events", "help",
		"history", "image history", "image inspect", "image ls", "image prune", "image rm", "images", "info", "inspect", "kill", "login", "logout",
		"logs", "network", "port", "ps", "pull", "rm", "rmi", "search", "stats", "stop", "system", "top", "version", "volume", "wait",
		"buildx create", "buildx du", "buildx history", "buildx imagetools inspect", "buildx inspect", "buildx ls", "buildx prune", "buildx rm",
		"buildx stop", "buildx use", "buildx version",
		"compose config", "compose down", "compose events", "compose images", "compose kill", "compose logs", "compose ls", "compose pause",
		"compose port", "compose ps", "compose pull", "compose rm", "compose stats", "compose stop", "compose top", "compose unpause",
		"compose version", "compose volumes",
	}
}

// isBelow reports whether an absolute path lies in a folder.
func isBelow(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// legacy puts a proxy before the Docker daemon where docker would build by
// itself, and where a script builds, whose images it loads, tags and pushes. It
// returns the environment of the command.
func (r *CommandRequest) legacy(ctx context.Context, l *lead, env []string, deps *Deps, plan InputsPlan) (_ *legacyProxy, environ []string, note string, err error) {
	environ = l.env(env)
	itself := buildsItself(env)
	if !itself && (r.isDocker() || r.Require == GradeFull || len(r.Inputs.AllowHosts) > 0) {
		// docker gets there by itself; of a script, what the daemon fetches and
		// sends does not pass the gateway.
		return nil, environ, "", nil
	}
	daemon, err := findDaemon(deps.env)
	if err != nil && !itself {
		return nil, environ, fmt.Sprintf("its scripts cannot load, tag or push by docker: %v", err), nil
	}
	if err != nil {
		if r.Require != "" && r.isDocker() {
			return nil, nil, "", fmt.Errorf("--require %s: %w", r.Require, err)
		}
		return nil, environ, fmt.Sprintf("builds by docker itself are not seen: %v", err), nil
	}
	p, host, err := newLegacyProxy(l.dir, daemon, plan, !r.isDocker())
	if err != nil {
		return nil, nil, "", err
	}
	p.redirect = l.redirect
	if r.Require != "" && r.isDocker() {
		if err := p.gateway.try(ctx); err != nil {
			p.close()
			return nil, nil, "", hinted(fmt.Errorf("--require %s: docker builds by itself here, and its steps cannot be watched: %w", r.Require, err), wayToBuildx(env))
		}
	}
	environ = slices.DeleteFunc(environ, func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.Contains([]string{"DOCKER_HOST", "DOCKER_BUILDKIT", "DOCKER_CONTEXT", "DOCKER_TLS", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"}, name)
	})
	buildKit := map[bool]string{true: "0", false: "1"}[itself]
	return p, append(environ, "DOCKER_HOST="+host, "DOCKER_BUILDKIT="+buildKit), "", nil
}

// buildsItself reports whether docker would build with its daemon's legacy
// builder: it has no buildx, or was told so.
func buildsItself(env []string) bool { return !hasBuildx(env) || toldToBuild(env) }

func toldToBuild(env []string) bool {
	i := slices.IndexFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "DOCKER_BUILDKIT=") })
	if i < 0 {
		return false
	}
	buildKit, err := strconv.ParseBool(strings.TrimPrefix(env[i], "DOCKER_BUILDKIT="))
	return err == nil && !buildKit
}

// wayToBuildx is how all of docker's builds would be seen.
func wayToBuildx(env []string) string {
	if hasBuildx(env) {
		return "unset DOCKER_BUILDKIT"
	}
	return "install the plugin: docker-buildx in /usr/libexec/docker/cli-plugins"
}

func (r *CommandRequest) check(signed bool) error {
	if len(r.Args) == 0 || r.Args[0] == "" {
		return UsageError{errors.New("no command: it stands after --, as in waxseal run --key waxseal.key -- docker build .")}
	}
	if r.Inputs.enforced() && r.isDocker() {
		return UsageError{hinted(fmt.Errorf("--inputs %s is for waxseal build: docker can build several Dockerfiles, and each has a lock of its own", r.Inputs.Mode),
			"use --inputs record or none here")}
	}
	whole := Request{Seal: r.Seal, Steps: Steps{Allow: r.Allow}, Inputs: r.Inputs}
	whole.Inputs.Push = false // who pushes is the command's business
	return whole.check(signed)
}

// reachable refuses a demand that cannot be met, before anything runs.
func (r *CommandRequest) reachable(env []string) error {
	if os.Geteuid() != 0 && r.isDocker() {
		return hinted(errors.New("builds need root"), "run waxseal run with sudo")
	}
	if program := filepath.Base(r.Args[0]); os.Geteuid() != 0 && (program == "podman" || program == "buildah") &&
		slices.ContainsFunc(r.Args, func(a string) bool { return a == "build" || a == "bud" }) {
		return hinted(fmt.Errorf("%s build needs root here: images have files of several users, and in the sandbox you are the only one", program), "run waxseal run with sudo")
	}
	if filepath.Base(r.Args[0]) == "docker" && r.Require == GradeFull && buildsItself(env) {
		return hinted(errors.New("--require full: docker builds by itself here, and what its daemon does with a step is its own word"),
			wayToBuildx(env)+", or take what is seen with --require partial")
	}
	if r.Require == GradeFull && len(r.Allow) > 0 {
		return hinted(fmt.Errorf("--require full: a step that asks for %s could not be watched", strings.Join(slices.Sorted(slices.Values(r.Allow)), " or ")),
			"leave out --allow, or take what is seen with --require partial")
	}
	return nil
}
