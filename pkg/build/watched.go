package build

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/buildkit/identity"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// commandLock is the name of the lock of what a command takes in.
const commandLock = "run." + lockName

// evidenceDir is where the evidence about files goes unless --out says
// otherwise.
const evidenceDir = "waxseal-evidence"

// watched is a command whose traffic and files are watched: it runs in a
// sandbox, where one can be had.
type watched struct {
	req    *CommandRequest
	deps   *CommandDeps
	dir    string // the working folder, free of links
	env    []string
	given  []string // names of env, but for what waxseal adds
	intake *intake
	notes  *notes
	images []imageFile
	pushes []store.Reference // by digest: images that the command wrote down, where it pushed them

	began         time.Time
	before, after *workFolder
	git           *GitState
	observed      Observed
	files         Observed // observed, but for what the record of the traffic says of itself
	done          *confineDone
}

// Sealed is what was said about files and images that a command made.
type Sealed struct {
	Subjects  []attest.Subject
	Images    []string // references to which evidence was attached
	Evidence  int      // signed statements
	Out       string   // the folder of the evidence
	Inputs    InputsResult
	BuilderID string
}

// newWatched prepares a command.
func newWatched(req *CommandRequest, deps *CommandDeps, env []string) (*watched, error) {
	w := &watched{req: req, deps: deps, env: env, given: variableNames(env), notes: &notes{}, began: time.Now()}
	return w, w.prepare()
}

// whole runs the command and seals what it made: the files that req.Artifacts
// names and the images that it wrote down or req.Images names. l, which may be
// nil, is where its builds by docker go. Signals do not end ctx: they are the
// command's.
func (w *watched) whole(ctx context.Context, l *lead, res *CommandResult) (err error) {
	defer func() { res.Notes = append(res.Notes, w.notes.list...) }()
	if res.Code, err = w.run(ctx, l); err != nil {
		return err
	}
	res.Observed = w.observed
	if res.Code != 0 {
		return nil
	}
	if l != nil {
		l.stopWatching()
		if l.legacy != nil && l.legacy.unseen() != "" {
			w.unseen(l.legacy.unseen())
		}
		if l.built() {
			w.unseen(unseenBuilds)
		}
	}
	w.unseen(w.elsewhere()...)
	res.Observed = w.observed
	if l != nil && l.built() && !w.names() {
		return nil // the images are what it made
	}
	ctx, stop := signal.NotifyContext(context.WithoutCancel(ctx), os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	if res.Sealed, err = w.seal(ctx); err != nil {
		return &CommandFailed{err}
	}
	res.Observed = w.observed
	return nil
}

// unseen lowers what was seen by what was not, in words.
func (w *watched) unseen(what ...string) {
	if len(what) > 0 {
		o := Observed{Grade: GradePartial, Unobserved: what}
		w.observed, w.files = Together(w.observed, o), Together(w.files, o)
	}
}

// names reports whether anything that the command makes was named.
func (w *watched) names() bool {
	return len(w.req.Artifacts)+len(w.req.Images)+len(w.images) > 0
}

// prepare finds out what can be known before anything runs.
func (w *watched) prepare() error {
	dir, err := syscall.Getwd() // the kernel's own answer has no links in it
	if err != nil {
		return fmt.Errorf("finding the working folder: %w", err)
	}
	w.dir = dir
	for _, p := range w.req.Artifacts {
		if _, err := newArtifactPattern(p); err != nil {
			return UsageError{err}
		}
	}
	for _, a := range w.req.Args {
		if opened, err := regexp.MatchString(`^/(dev|proc/self)/fd/([3-9]|\d\d+)$`, a); err == nil && opened {
			return UsageError{hinted(fmt.Errorf("%q: of the files that are open here the command has its three streams", a),
				"have a shell open it inside: waxseal run -- bash -c 'COMMAND <(…)'")}
		}
	}
	w.images = imageFiles(w.req.Args, dir)
	if err := CheckOut(w.out()); err != nil {
		return err
	}
	choice := w.req.Inputs
	choice.Lock = cmp.Or(choice.Lock, filepath.Join(dir, commandLock))
	w.intake, err = openIntake(&Request{Inputs: choice}, &w.deps.Deps)
	return err
}

// out is the folder of the evidence about what was named.
func (w *watched) out() string { return cmp.Or(w.req.Seal.Out, filepath.Join(w.dir, evidenceDir)) }

// except are files below the working folder that are ours: no input, and
// nothing that the command made.
func (w *watched) except() []string {
	var out []string
	for _, name := range append(w.hidden(), w.out(), w.intake.place) {
		if abs, err := filepath.Abs(name); err == nil {
			out = append(out, abs)
		}
		if real, err := filepath.EvalSymlinks(name); err == nil {
			out = append(out, real)
		}
	}
	return out
}

// hidden is what a command must not see: the key or token that signs, what
// opens it, and waxseal's own folders.
func (w *watched) hidden() []string {
	home := w.deps.env("HOME")
	out := []string{w.intake.storeDir, w.deps.Home, filepath.Join(home, ".sigstore"), filepath.Join(home, ".vault-token")}
	out = append(out, w.req.Seal.KeyFiles...)
	if w.req.Engine.CacheDir != "" {
		out = append(out, w.req.Engine.CacheDir)
	}
	for scheme, dirs := range map[string][]string{
		"awskms://": {".aws"}, "gcpkms://": {".config/gcloud"}, "azurekms://": {".azure"}, "k8s://": {".kube"}, "pkcs11:": {".config/softhsm2", ".tpm2_pkcs11"},
	} {
		if !strings.HasPrefix(w.req.Key, scheme) {
			continue
		}
		for _, d := range dirs {
			out = append(out, filepath.Join(home, d))
		}
	}
	if strings.HasPrefix(w.req.Key, "pkcs11:") {
		for _, conf := range []string{w.deps.env("SOFTHSM2_CONF"), filepath.Join(home, ".config/softhsm2/softhsm2.conf"), "/etc/softhsm/softhsm2.conf"} {
			out = append(out, softTokens(conf))
		}
	}
	if w.req.Key != "" {
		for _, name := range keyFileVariables() {
			switch {
			case slices.Contains(w.req.Env, name): // the command's own: CommandEnv refuses the signer's
			case name == "KUBECONFIG":
				out = append(out, filepath.SplitList(w.deps.env(name))...)
			default:
				out = append(out, w.deps.env(name))
			}
		}
	}
	var abs []string
	for _, name := range out {
		if name == "" {
			continue // else it were the working folder
		}
		if a, err := filepath.Abs(name); err == nil {
			abs = append(abs, a)
		}
	}
	return abs
}

// softTokens is the folder in which SoftHSM keeps its tokens, by its
// configuration; "" for none. Who has a copy may try PINs as often as they like.
func softTokens(conf string) string {
	raw, _ := os.ReadFile(conf) // mostly there is none
	for line := range strings.Lines(string(raw)) {
		if name, folder, _ := strings.Cut(line, "="); strings.TrimSpace(name) == "directories.tokendir" {
			return strings.TrimSpace(folder)
		}
	}
	return ""
}

// run runs the command, in the sandbox or, where there is none to be had and
// nothing asks for one, without.
func (w *watched) run(ctx context.Context, l *lead) (int, error) {
	read := make(chan error, 1)
	go func() { read <- w.readBefore(ctx) }()
	var readErr error
	waited := false
	wait := func() error {
		if !waited {
			readErr, waited = <-read, true
		}
		return readErr
	}
	defer func() { _ = wait() }()
	if dir := w.req.Engine.CacheDir; dir != "" {
		_ = os.MkdirAll(dir, 0o700) // what is not there cannot be hidden, and the command could make it
	}
	plain := Process{Args: w.req.Args, Env: w.env, Stdin: w.deps.Stdin, Stdout: w.deps.Stdout, Stderr: w.deps.Stderr}
	hide, expose := w.hidden(), append(registryLogins(w.deps.env), w.mountedImageFiles()...)
	if l != nil {
		hide = append(hide, otherContexts(w.deps.env)...)
		plain.Started = l.started
		names, err := os.ReadDir(l.dir)
		if err != nil {
			return 0, err
		}
		for _, n := range names {
			expose = append(expose, filepath.Join(l.dir, n.Name()))
		}
	}
	if w.req.StrictSecrets || w.req.Inputs.enforced() {
		// A lock knows the step by its name.
		if err := w.deps.clean.ready(); err != nil {
			return 0, err
		}
	}
	c := confined{process: plain, plan: confinePlan{
		Inputs: w.intake.plan(), Name: w.name(), Args: w.req.Args, Env: withoutJobserver(w.env), Dir: w.dir,
		Hide: hide, Expose: expose, Secrets: w.deps.clean.values, Trace: w.req.Trace, Unrecorded: w.except(),
	}}
	c.start = func(ready confineReady) (known []fileNode, err error) {
		w.observed = w.expect(ready)
		if err := wait(); err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := w.enough(); err != nil {
			return nil, err
		}
		if w.req.Trace {
			known = w.before.nodes()
		}
		w.deps.started()
		return known, nil
	}
	done, err := c.run(ctx)
	var none *noSandbox
	if errors.As(err, &none) {
		if err := w.without(none); err != nil {
			return 0, err
		}
		if err := wait(); err != nil {
			return 0, err
		}
		plain.Started = w.deps.startedBy(l)
		return plain.Run(ctx)
	}
	if err != nil {
		return 0, err
	}
	if done.NotStarted != "" {
		return 0, &StartError{errors.New(done.NotStarted), done.Exit}
	}
	w.done, w.files = done, w.observed
	if done.Trace != nil {
		w.files = Together(w.files, done.Trace.observed())
	}
	w.observed = Together(w.files, done.traffic())
	return done.Exit, nil
}

// traffic is how much of a command's traffic is in its record.
func (d *confineDone) traffic() Observed {
	o := Observed{Grade: GradeFull}
	if d.Inputs == nil {
		return o // which is refused once it is read
	}
	for _, st := range d.Inputs.Steps {
		for _, g := range st.Gaps {
			o = Together(o, Observed{Grade: GradePartial, Unobserved: []string{gapText(g)}})
		}
	}
	return o
}

// registryLogins are the files below /run in which podman, buildah and skopeo
// keep how they log in to registries. As those of docker are, they are the
// command's.
func registryLogins(env func(string) string) []string {
	names := []string{fmt.Sprintf("/run/containers/%d/auth.json", os.Geteuid())}
	if dir := env("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		names = append(names, filepath.Join(dir, "containers/auth.json"))
	}
	return slices.DeleteFunc(names, func(name string) bool {
		info, err := os.Lstat(name)
		return err != nil || !info.Mode().IsRegular()
	})
}

// name is what the record calls the command.
func (w *watched) name() string {
	name := attestations.CommandLine(w.deps.clean.args(w.req.Args))
	return name[:min(len(name), attest.MaxInputText/2)]
}

// readBefore reads the working folder as the command finds it.
func (w *watched) readBefore(ctx context.Context) error {
	both, ctx := errgroup.WithContext(ctx)
	if KanikoFolder(w.deps.env) != "" {
		both.Go(func() error {
			// Read once: who vouches for a registry is not for a base image to say, whose
			// files are going to be the machine's.
			_, _ = x509.SystemCertPool()
			return nil
		})
	}
	head, gitErr := gitHead(ctx, w.dir)
	both.Go(func() (err error) {
		w.before, err = readWorkFolder(ctx, w.dir, nil, w.except())
		return err
	})
	if head != nil {
		both.Go(func() error {
			except := map[string]bool{}
			for _, name := range w.except() {
				except[below(w.dir, name)] = true
			}
			if gitErr = head.details(ctx, w.dir, func(p string) bool { return !except[filepath.FromSlash(p)] }); gitErr == nil {
				w.git = head
			}
			return nil
		})
	}
	err := both.Wait()
	if gitErr != nil {
		w.notes.add("git state unknown: %v", gitErr)
	}
	return err
}

// What a watched command leaves unseen.
const (
	unseenFiles  = "files outside the working folder: not watched (--trace)"
	unseenStdin  = "what it is given on standard input: in no record (</dev/null)"
	unseenAll    = "traffic and files: nothing was watched: %s"
	unseenBuilds = "what its builds by docker brought back: see their own evidence"
)

// expect is what will be seen at best of a command in the sandbox.
func (w *watched) expect(ready confineReady) Observed {
	o := Observed{Grade: GradeFull}
	if !w.req.Trace {
		o.Unobserved = append(o.Unobserved, unseenFiles)
	}
	if givesInput(w.deps.Stdin) {
		o.Unobserved = append(o.Unobserved, unseenStdin)
	}
	for _, b := range ready.Blind {
		o.Unobserved = append(o.Unobserved, b+": not watched")
	}
	o.Unobserved = append(o.Unobserved, ready.Open...)
	o.Unobserved = append(o.Unobserved, w.elsewhere()...)
	if len(o.Unobserved) > 0 {
		o.Grade = GradePartial
	}
	return o
}

// enough refuses to start a command of which less would be seen than was asked
// for.
func (w *watched) enough() error {
	if w.observed.Grade.Reaches(w.req.Require) {
		return nil
	}
	err := fmt.Errorf("--require %s: this would not be seen: %s", w.req.Require, strings.Join(w.observed.Unobserved, "; "))
	var ways []string
	if !w.req.Trace {
		ways = append(ways, "add --trace (as root)")
	}
	if slices.Contains(w.observed.Unobserved, unseenStdin) {
		ways = append(ways, "have it read </dev/null")
	}
	if len(ways) == 0 {
		ways = append(ways, "take what is seen with --require partial")
	}
	return hinted(err, strings.Join(ways, ", and "))
}

// givesInput reports whether there is, or may come, something to read: not from
// a terminal, where somebody answers, nor where all has been said.
func givesInput(in io.Reader) bool {
	f, ok := in.(*os.File)
	if !ok {
		return in != nil
	}
	info, err := f.Stat()
	if err != nil || info.Mode()&fs.ModeCharDevice != 0 {
		return false
	}
	if info.Mode().IsRegular() {
		at, err := f.Seek(0, io.SeekCurrent)
		return err != nil || at < info.Size()
	}
	fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	_, err = unix.Poll(fds, 0)
	return err != nil || fds[0].Revents&unix.POLLIN != 0 || fds[0].Revents&unix.POLLHUP == 0
}

// without decides whether the command may run unwatched.
func (w *watched) without(none *noSandbox) error {
	mode := w.intake.choice.mode()
	switch {
	case w.req.Require != "":
		return hinted(fmt.Errorf("--require %s: no sandbox can be had here: %s", w.req.Require, none.Text), none.Way)
	case mode != attestations.InputsRecord:
		return hinted(fmt.Errorf("--inputs %s: no sandbox can be had here: %s", mode, none.Text), none.Way)
	case w.req.Trace:
		return hinted(fmt.Errorf("--trace: %s", none.Text), none.Way)
	}
	w.observed = Observed{Grade: GradeRecordOnly, Unobserved: []string{fmt.Sprintf(unseenAll, none.Text)}}
	w.notes.add("nothing of the command is watched here; so that it is, %s", none.Way)
	return nil
}

// observed is how much a trace has seen.
func (t *fileTrace) observed() Observed {
	o := Observed{Grade: GradeFull}
	if t.Lost > 0 {
		o.Unobserved = append(o.Unobserved, fmt.Sprintf("files outside the working folder: events were lost %s", count(t.Lost, "time")))
	}
	if t.Unread > 0 {
		o.Unobserved = append(o.Unobserved, fmt.Sprintf("files outside the working folder: %s could not be read back", count(t.Unread, "file")))
	}
	if t.Full {
		o.Unobserved = append(o.Unobserved, "files outside the working folder: more than a record lists")
	}
	if t.Untold {
		o.Unobserved = append(o.Unobserved, "what was moved into the working folder: nothing tells there which files the command has made")
	}
	if len(o.Unobserved) > 0 {
		o.Grade = GradePartial
	}
	return o
}

// record makes the record of inputs: one step, and the working folder.
func (w *watched) record() (*attestations.Inputs, error) {
	t := w.intake
	r := &attestations.Inputs{
		Mode: t.choice.mode(), Lock: t.lockDigest(), AllowHosts: t.choice.AllowHosts, Engine: w.engine(),
		Sources: []attestations.InputSource{{Kind: "context", URI: attestations.DependencyFiles, Digest: string(w.before.manifest), Tree: string(w.before.manifest)}},
	}
	if w.done == nil {
		finished := time.Now().UTC()
		began := w.began.UTC()
		r.Steps = []attestations.InputStep{{
			Name: w.name(), Verdict: attestations.VerdictUnobserved, StartedOn: &began, FinishedOn: &finished,
			Gaps: []attestations.InputGap{{Kind: attestations.GapNoRecord, Detail: "the command ran outside of a sandbox"}},
		}}
	} else {
		if w.done.Inputs == nil || len(w.done.Inputs.Steps) != 1 {
			return nil, errors.New("reading the engine's record: it has not one step")
		}
		r.Steps, r.Gateway = slices.Clone(w.done.Inputs.Steps), w.done.Inputs.Gateway
		r.Gaps = w.fileGaps()
		if tr := w.done.Trace; tr != nil {
			d := string(attest.DigestOf(tr.manifest()))
			r.Sources = append(r.Sources, attestations.InputSource{Kind: "named-context", URI: attestations.DependencyOpened, Digest: d, Tree: d})
		}
	}
	st := &r.Steps[0]
	st.Name = w.name() // without what was found since it began
	st.ID = string(attest.DigestOf(w.definition()))
	st.Verdict = attestations.WorstVerdict(r.Steps, nil)
	r.Verdict, r.Hermetic = r.Judge()
	return r, attest.CheckInputs(r)
}

// fileGaps are what of the machine's files came into the command and is in no
// record, or was not decided before. A lock lists what is fetched, and no file
// that lay there.
func (w *watched) fileGaps() []attestations.InputGap {
	gap := func(detail string) []attestations.InputGap {
		return []attestations.InputGap{{Kind: attestations.GapSource, Detail: detail}}
	}
	switch {
	case w.files.Grade != GradeFull:
		return gap(strings.Join(w.files.Unobserved, "; "))
	case w.intake.choice.mode() != attestations.InputsRecord:
		return gap("files outside the working folder are recorded, and no lock holds them")
	}
	return nil
}

// definition stands for the step: what was run on what.
func (w *watched) definition() []byte {
	raw, err := json.Marshal([]any{w.deps.clean.args(w.req.Args), w.given, w.before.manifest})
	if err != nil {
		return nil
	}
	return raw
}

func (w *watched) engine() attestations.ContainerEngine {
	e := attestations.ContainerEngine{Name: "embedded", Version: w.deps.Version, Isolation: "none"}
	if w.done != nil {
		e.Isolation = "namespaces"
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		e.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:])
	}
	return e
}

func variableNames(env []string) []string {
	out := []string{}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		out = append(out, name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// seal says what came of a command that ended well.
func (w *watched) seal(ctx context.Context) (*Sealed, error) {
	err := w.deps.clean.ready()
	if err != nil {
		return nil, err
	}
	if w.after, err = readWorkFolder(ctx, w.dir, w.before, w.except()); err != nil {
		return nil, err
	}
	if w.done != nil && len(w.done.Violations) > 0 {
		return nil, &LockError{Lock: w.intake.place, Problems: w.done.Violations}
	}
	subjects, err := w.subjects(ctx)
	if err != nil {
		return nil, err
	}
	if !w.observed.Grade.Reaches(w.req.Require) {
		// Before it ran, less was known to be unseen.
		return nil, hinted(fmt.Errorf("--require %s: what was seen is %s: %s", w.req.Require, w.observed.Grade, strings.Join(w.observed.Unobserved, "; ")),
			"take what is seen with --require partial, or leave --require out")
	}
	files := compareFolders(w.before, w.after)
	if err := w.withoutSecrets(ctx, subjects, &files); err != nil {
		return nil, err
	}
	record, err := w.record()
	if err != nil {
		return nil, fmt.Errorf("what the engine recorded: %w", err)
	}
	all := []taken{{record: record}}
	if err := w.intake.holdToLock(all); err != nil {
		return nil, err
	}
	if err := w.intake.makeLock(all); err != nil {
		return nil, err
	}
	if err := w.intake.store.Sync(ctx); err != nil {
		return nil, fmt.Errorf("writing the store of inputs: %w", err)
	}
	w.sayChanged(&files)
	statements, err := w.statements(subjects, record, files)
	if err != nil {
		return nil, err
	}
	signed, err := w.sign(ctx, statements)
	if err != nil {
		return nil, err
	}
	s := &Sealed{Subjects: subjects, Evidence: len(signed), BuilderID: (&Request{Seal: w.req.Seal}).builderID(), Out: w.out()}
	if err := w.write(s, statements, signed); err != nil {
		return nil, err
	}
	if s.Images, err = w.attach(ctx, signed); err != nil {
		return nil, err
	}
	s.Inputs = w.intake.result(all)
	s.Inputs.Written = w.intake.writeLock(w.notes)
	return s, nil
}

// withoutSecrets takes secrets out of the names of files that the statements
// list.
func (w *watched) withoutSecrets(ctx context.Context, subjects []attest.Subject, files *attestations.CommandFiles) error {
	var texts []placed
	for _, s := range subjects {
		texts = append(texts, placed{where: "the name of a file that the command made", text: s.Name})
	}
	for _, name := range slices.Concat(files.Changed, files.Removed) {
		texts = append(texts, placed{where: "the name of an input that the command changed", text: name})
	}
	c := w.deps.clean
	if err := c.look(ctx, texts); err != nil {
		return err
	}
	for i := range subjects {
		subjects[i].Name = c.hide(subjects[i].Name)
	}
	files.Changed, files.Removed = c.all(files.Changed), c.all(files.Removed)
	return nil
}

// sayChanged tells of inputs that the command changed: what they were is in
// the record, and what of it the command had read is not known.
func (w *watched) sayChanged(files *attestations.CommandFiles) {
	all := slices.Concat(files.Changed, files.Removed)
	if len(all) == 0 {
		return
	}
	shown := all[:min(len(all), 3)]
	w.notes.add("the command changed %s of the working folder: %s", count(len(all)+files.More, "input"), strings.Join(shown, ", ")+map[bool]string{true: " …"}[len(all) > len(shown)])
}

// statements are the record of inputs and the provenance that names it.
func (w *watched) statements(subjects []attest.Subject, record *attestations.Inputs, files attestations.CommandFiles) ([]statement, error) {
	inputs, err := attest.NewStatement(attestations.InputsV1, subjects, record)
	if err != nil {
		return nil, fmt.Errorf("writing the record of inputs: %w", err)
	}
	p := w.provenance(record, files)
	p.RunDetails.Byproducts = append([]dependency{{
		Name: attestations.ByproductInputs, Digest: sha256Hex(inputs.Digest()), MediaType: inTotoMediaType,
	}}, p.RunDetails.Byproducts...)
	st, err := attest.NewStatement(attestations.ProvenanceV1, subjects, p)
	if err != nil {
		return nil, fmt.Errorf("writing provenance: %w", err)
	}
	return []statement{{file: "provenance", st: st}, {file: "inputs", st: inputs}}, nil
}

func sha256Hex(d attest.Digest) map[string]string { return map[string]string{"sha256": d.Hex()} }

type commandProvenance = slsaOf[attestations.Command, attestations.CommandInternal]

func (w *watched) provenance(record *attestations.Inputs, files attestations.CommandFiles) *commandProvenance {
	p := &commandProvenance{}
	def, run := &p.BuildDefinition, &p.RunDetails
	def.BuildType = attestations.CommandType
	def.ExternalParameters = attestations.Command{
		Command: w.deps.clean.args(w.req.Args), Variables: w.given,
		Artifacts: w.deps.clean.all(w.req.Artifacts), Images: w.deps.clean.all(w.req.Images), Trace: w.req.Trace, Inputs: w.intake.external(),
	}
	def.InternalParameters = attestations.CommandInternal{
		Engine: record.Engine, Grade: string(w.observed.Grade), Unobserved: w.observed.Unobserved,
		NetworkObserved: record.Verdict, Files: files, CI: w.deps.whose,
	}
	def.ResolvedDependencies = []dependency{{
		Name: attestations.DependencyFiles, Digest: sha256Hex(w.before.manifest), MediaType: attestations.ContextManifestMediaType,
		Annotations: map[string]any{"files": w.before.files},
	}}
	if w.git != nil {
		def.ExternalParameters.Folder = w.git.Subdir
		def.ResolvedDependencies = append(def.ResolvedDependencies, gitDependency(w.git))
	}
	if w.done != nil && w.done.Trace != nil {
		t := w.done.Trace
		def.InternalParameters.Traced = &attestations.CommandTraced{Files: len(t.Files), Lost: t.Lost, Unread: t.Unread}
		def.ResolvedDependencies = append(def.ResolvedDependencies, dependency{
			Name: attestations.DependencyOpened, Digest: sha256Hex(attest.DigestOf(t.manifest())), MediaType: attestations.ContextManifestMediaType,
		})
	}
	def.ResolvedDependencies = append(def.ResolvedDependencies, requested([]taken{{record: record}})...)
	run.Builder.ID = (&Request{Seal: w.req.Seal}).builderID()
	if w.deps.Version != "" {
		run.Builder.Version = map[string]string{"waxseal": w.deps.Version}
	}
	run.Metadata.InvocationID = identity.NewID()
	run.Metadata.StartedOn, run.Metadata.FinishedOn = w.began.UTC().Truncate(time.Second), time.Now().UTC().Truncate(time.Second)
	run.Byproducts = []dependency{{Name: attestations.ByproductFiles, Digest: sha256Hex(w.after.manifest), MediaType: attestations.ContextManifestMediaType}}
	return p
}

func (w *watched) sign(ctx context.Context, statements []statement) ([]evidence, error) {
	if w.deps.Signer == nil {
		return nil, nil
	}
	signer, err := w.deps.Signer(ctx)
	if err != nil {
		return nil, err
	}
	made := make([]evidence, len(statements))
	all, ctx := errgroup.WithContext(ctx)
	for i, st := range statements {
		all.Go(func() error {
			b, err := signer.Sign(ctx, st.st)
			if err != nil {
				return fmt.Errorf("signing: %w", err)
			}
			made[i] = evidence{file: st.file, bundle: b}
			return nil
		})
	}
	return made, all.Wait()
}

// write fills the folder of the evidence: all bundles as JSON lines, and each
// thing in a file of its own.
func (w *watched) write(s *Sealed, statements []statement, signed []evidence) (err error) {
	o, err := newOutFolder(s.Out)
	if err != nil {
		return err
	}
	defer o.abandon()
	put := func(raw []byte, parts ...string) {
		if err == nil {
			err = o.write(raw, parts...)
		}
	}
	for _, st := range statements {
		put(st.st.Raw(), "statements", st.file+".json")
	}
	for _, e := range signed {
		if err == nil {
			err = o.bundle(e)
		}
	}
	if err == nil {
		err = errors.Join(o.stream(w.before.tree.writeManifest, "files-before.jsonl"), o.stream(w.after.tree.writeManifest, "files-after.jsonl"))
	}
	if w.done != nil && w.done.Trace != nil {
		put(w.done.Trace.manifest(), "opened.jsonl")
	}
	if raw := w.intake.inForce(); raw != nil && err == nil {
		if err = os.Mkdir(o.path("inputs"), 0o755); err == nil {
			put(raw, "inputs", lockName)
		}
	}
	meta, jsonErr := json.MarshalIndent(map[string]any{
		"waxseal.schema": folderSchema, "waxseal.builder": s.BuilderID, "waxseal.signed": w.deps.Signer != nil,
		"waxseal.subjects": s.Subjects, "waxseal.grade": w.observed.Grade,
	}, "", "  ")
	if err = errors.Join(err, jsonErr); err == nil {
		put(append(meta, '\n'), "metadata.json")
	}
	if err == nil {
		err = os.Remove(o.path("sboms"))
	}
	if err != nil {
		return fmt.Errorf("writing the evidence: %w", err)
	}
	return o.finish()
}
