// Package build makes an image with signed evidence. Call Run with a Request
// and Deps: it gathers the inputs by content, has an engine run the steps,
// asks for SBOMs, writes provenance from the engine's own record, signs, and
// puts image and evidence where they were asked for, evidence first and tags
// last. The Parse functions read the values of docker's flags into a Request.
//
// Run holds the signer and never gives it to the engine; what the engine sends
// back is bounded and checked by digest before it is signed. Nothing appears
// under a final name before the whole build has succeeded.
package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
	"golang.org/x/sync/errgroup"
)

// Signer signs statements. Package sign has one for every kind of key.
type Signer interface {
	Sign(ctx context.Context, st *attest.Statement) (*attest.Bundle, error)
	Close() error
}

// Deps is what Run needs of its surroundings. Home must be set; the rest may
// be left out.
type Deps struct {
	// Signer opens the signer, which may take a while: Run calls it as soon as
	// the request is known to be sound, ends the build at once when it fails,
	// and closes what it returned. Nil only with Seal.Unsigned.
	Signer func(context.Context) (Signer, error)
	// TrySigner, where set, is asked at once whether Signer will open, beside the
	// start, and ends the build or the wrapped command when not. Signer is then
	// called when there is something to sign: no key lies in memory while others'
	// commands run.
	TrySigner func(context.Context) error

	Home    string // folder of waxseal's own images
	Store   string // folder of the bytes that builds took in, unless the request names one; "": beside Home
	Stdin   io.Reader
	Stdout  io.Writer // for outputs to "-"
	Env     func(string) string
	Display Display
	Version string // of waxseal, for the provenance
	// CI says whose build it is, which may take a while; nil: nobody's. An error
	// ends the build.
	CI     func(context.Context) (*attestations.CI, error)
	Engine EngineOptions
}

func (d *Deps) env(name string) string {
	if d.Env == nil {
		return ""
	}
	return d.Env(name)
}

func (d *Deps) stdin() io.Reader {
	if d.Stdin == nil {
		return strings.NewReader("")
	}
	return d.Stdin
}

// Result is what a build made.
type Result struct {
	Digest    attest.Digest // of the manifest, or the index
	Index     bool
	ImageID   string // what docker calls the image: the config's digest, or the index's
	Platforms []PlatformResult
	Images    []string // references under which the image can be found, evidence beside it
	Loaded    []string // names in the Docker daemon
	Files     []string // files and folders written
	Out       string   // the --out folder
	Evidence  int      // signed statements
	BuilderID string
	Inputs    InputsResult
	Notes     []string // what the user should know
	Metadata  map[string]any
}

// PlatformResult is the image for one platform.
type PlatformResult struct {
	Name     string
	Digest   attest.Digest
	Packages map[string]int // by SBOM format
}

// notes collects remarks for the user; safe for concurrent use.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) add(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, fmt.Sprintf(format, args...))
}

// Run builds one request. An error in the request itself is a UsageError; an
// error with a known way out has a method Hint.
func Run(ctx context.Context, req Request, deps Deps) (*Result, error) {
	if err := req.check(deps.Signer != nil); err != nil {
		return nil, err
	}
	places, err := publications(&req, deps.Home)
	if err != nil {
		return nil, err
	}
	intake, err := openIntake(&req, &deps)
	if err != nil {
		return nil, err
	}
	r := &run{req: &req, deps: &deps, places: places, intake: intake, notes: &notes{}, started: time.Now()}
	r.undo = append(r.undo, func() { intake.store.Close() })
	defer r.cleanup()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.openSigner(ctx, cancel)
	r.askCI(ctx, cancel)
	res, err := r.do(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return res, err
}

// run is one build on its way.
type run struct {
	req     *Request
	deps    *Deps
	places  []publication
	intake  *intake
	notes   *notes
	started time.Time

	// Asked for early, in the background; each waits for its answer.
	signer    func() (Signer, error) // a nil Signer for an unsigned build
	opening   bool                   // signer was called
	described func() (attestations.ContainerEngine, error)
	ci        func() (*attestations.CI, error)

	shown   *progress
	log     *buildLog
	out     *outFolder
	files   fileOutputs
	layout  string // where the image is exported to
	staging bool   // layout is a temporary folder
	undo    []func()
}

func (r *run) cleanup() {
	if r.shown != nil {
		r.shown.close()
	}
	for _, f := range slices.Backward(r.undo) {
		f()
	}
}

func (r *run) do(ctx context.Context) (*Result, error) {
	if err := r.prepareOutputs(ctx); err != nil {
		return nil, err
	}
	eng, in, err := r.startAndGather(ctx)
	if eng != nil {
		defer eng.Close()
	}
	if in != nil {
		defer in.close()
	}
	if err != nil {
		return nil, err
	}
	if err := r.intake.holdGiven(in); err != nil {
		return nil, err
	}
	c, err := eng.Dial(ctx)
	if err != nil {
		return nil, eng.Explain(err)
	}
	r.described = sync.OnceValues(func() (attestations.ContainerEngine, error) { return eng.describe(ctx) })
	go func() { _, _ = r.described() }()
	// What the engine gets from here goes into the store while it works.
	kept := make(chan error, 1)
	keeping, stop := context.WithCancel(ctx)
	defer stop()
	go func() { kept <- in.keep(keeping, r.intake.store) }()
	b, err := r.solve(ctx, c, eng, in)
	if err != nil {
		stop()
	}
	keptErr := <-kept
	if err != nil {
		return nil, err
	}
	r.callSigner()
	if keptErr != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		r.notes.add("this build cannot be repeated from the store: %v", keptErr)
	}
	s, err := r.seal(ctx, c, eng, in, b)
	if err != nil {
		return nil, err
	}
	// The engine has done its part; it ends while the result is put in place,
	// and the deferred Close waits for that.
	go eng.Close()
	return r.deliver(ctx, in, b, s)
}

// prepareOutputs makes the places that a build writes to on its way.
func (r *run) prepareOutputs(ctx context.Context) error {
	var err error
	if r.req.Seal.Out != "" {
		if r.out, err = newOutFolder(r.req.Seal.Out); err != nil {
			return err
		}
		r.undo = append(r.undo, r.out.abandon)
	}
	r.undo = append(r.undo, r.files.abandon)
	for _, o := range r.req.Outputs {
		if o.Kind == OutputDocker && o.Dest == "" {
			// Better now than after a long build.
			if err := reachDocker(ctx); err != nil {
				return err
			}
		}
	}
	if err := makeHome(r.deps.Home); err != nil {
		return err
	}
	// An image that stays in waxseal's own folder is exported right there: what
	// has not changed since the last build does not travel again.
	if len(r.places) > 0 && r.req.keepsImage() {
		r.layout = r.places[0].to.Place
		if _, err := store.OpenWritable(ctx, r.places[0].to, store.Options{}); err != nil {
			return err
		}
	} else {
		if r.layout, err = os.MkdirTemp(r.deps.Home, ".tmp-"); err != nil {
			return fmt.Errorf("making a temporary folder: %w", err)
		}
		r.staging = true
		r.undo = append(r.undo, func() { os.RemoveAll(r.layout) })
		if _, err := store.OpenWritable(ctx, store.Reference{Kind: store.Layout, Place: r.layout}, store.Options{}); err != nil {
			return err
		}
	}
	r.log = &buildLog{sum: sha256.New(), redact: r.req.redact()}
	if r.out != nil {
		f, err := os.Create(r.out.path("build.log"))
		if err != nil {
			return fmt.Errorf("writing --out folder: %w", err)
		}
		r.log.file = f
		r.undo = append(r.undo, func() { f.Close() })
	}
	r.shown, err = newProgress(r.deps.Display, r.log, r.req.redact())
	return err
}

// openSigner opens the signer while other things happen: an encrypted key costs
// more than a tenth of a second. Where it cannot be opened the build ends.
func (r *run) openSigner(ctx context.Context, cancel context.CancelCauseFunc) {
	r.signer = sync.OnceValues(func() (Signer, error) {
		if r.deps.Signer == nil {
			return nil, nil
		}
		s, err := r.deps.Signer(ctx)
		if err != nil {
			cancel(err)
		}
		return s, err
	})
	r.undo = append(r.undo, func() {
		if !r.opening {
			return
		}
		if s, err := r.signer(); err == nil && s != nil {
			s.Close()
		}
	})
	if r.deps.TrySigner == nil {
		r.callSigner()
		return
	}
	go func() {
		if err := r.deps.TrySigner(ctx); err != nil {
			cancel(err)
		}
	}()
}

// callSigner has the signer opened in the background.
func (r *run) callSigner() {
	r.opening = true
	go func() { _, _ = r.signer() }()
}

// askCI finds out whose build it is while other things happen. What was named
// for it and is no good ends the build.
func (r *run) askCI(ctx context.Context, cancel context.CancelCauseFunc) {
	r.ci = sync.OnceValues(func() (*attestations.CI, error) {
		if r.deps.CI == nil {
			return nil, nil
		}
		found, err := r.deps.CI(ctx)
		if err != nil {
			cancel(err)
		}
		return found, err
	})
	go func() { _, _ = r.ci() }()
}

// startAndGather starts the engine and reads the inputs at the same time. Both
// are returned even with an error, for the caller to close.
func (r *run) startAndGather(ctx context.Context) (engine, *inputs, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type started struct {
		e   engine
		err error
	}
	up := make(chan started, 1)
	go func() {
		opts := r.deps.Engine
		opts.Entitlements = append(slices.Clone(opts.Entitlements), r.req.entitlements()...)
		opts.Inputs = r.intake.plan()
		opts.Inputs.PlainLayers = r.req.Source.Sealed.byClient()
		if opts.Stderr == nil && r.log.file != nil {
			opts.Stderr = r.log.engine()
		}
		e, err := openEngine(ctx, r.req.Engine, opts, r.intake)
		if err != nil {
			cancel()
		}
		up <- started{e, err}
	}()
	p := &preparer{req: r.req, deps: r.deps, shown: r.shown, notes: r.notes, tmpDir: r.deps.Home, lock: r.intake.place}
	in, err := p.prepare(ctx)
	if err != nil {
		cancel()
	}
	s := <-up
	// Either failure cancels the other: the first is the cause.
	if s.err != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = s.err
	}
	return s.e, in, err
}

// solve has the engine build and export.
func (r *run) solve(ctx context.Context, c *client.Client, eng engine, in *inputs) (*built, error) {
	opt, err := solveOptions(r.req, in, identity.NewID(), newExportStore(r.layout, !r.staging), eng.catalogs())
	if err != nil {
		return nil, err
	}
	if err := r.files.add(r.req, r.deps, &opt); err != nil {
		return nil, err
	}
	watch, err := eng.adjust(&opt)
	if err != nil {
		return nil, err
	}
	b, err := solve(ctx, c, opt, r.shown, watch)
	if err != nil {
		return nil, explainSolve(eng.Explain(err), r.req, in.described)
	}
	return b, nil
}

// sealed is what is known and said about a built image.
type sealed struct {
	content    []ocispec.Descriptor
	platforms  []PlatformResult
	config     map[string]ocispec.Descriptor
	bare       []string // platforms without a layer
	statements []statement
	evidence   []evidence
	documents  []document
	records    *records
	epoch      string
	taken      []taken
}

type statement struct {
	file    string
	subject attest.Digest
	st      *attest.Statement
}

// seal reads the built image back, gets SBOMs and the engine's record, and
// writes and signs the statements.
func (r *run) seal(ctx context.Context, c *client.Client, eng engine, in *inputs, b *built) (*sealed, error) {
	s := &sealed{}
	var err error
	if s.content, err = contentOf(r.layout, b.image); err != nil {
		return nil, err
	}
	created, err := r.platforms(b.image, s)
	if err != nil {
		return nil, err
	}
	s.epoch = in.epoch.value
	if s.epoch == "context" {
		s.epoch = ""
		if created != nil {
			s.epoch = strconv.FormatInt(created.Unix(), 10)
		}
	}
	if s.records, err = fetchRecords(ctx, c, b.ref); err != nil {
		return nil, eng.Explain(err)
	}
	// A Dockerfile that the engine fetched itself is seen only now.
	for _, rec := range s.records.platforms {
		rec.redact(r.req.redact())
		for _, f := range rec.Dockerfiles {
			if syntax := syntaxOf(f.Data); syntax != "" {
				if err := checkSyntax(syntax); err != nil {
					return nil, err
				}
				in.syntax = syntax
			}
		}
	}
	described, err := r.described()
	if err != nil {
		return nil, eng.Explain(err)
	}
	if err := r.takeIn(ctx, eng, in, b, s, described); err != nil {
		return nil, err
	}
	if err := r.getSBOMs(ctx, eng, b, s); err != nil {
		return nil, err
	}
	whose, err := r.ci()
	if err != nil {
		return nil, err
	}
	r.shown.endLog()
	a := &account{
		req: r.req, in: in, engine: described, records: s.records, epoch: s.epoch, id: b.ref,
		started: r.started, finished: time.Now(), log: r.log.digest(), version: r.deps.Version,
		intake: r.intake, ci: whose,
	}
	if err := r.state(a, b, s); err != nil {
		return nil, err
	}
	return s, r.sign(ctx, s)
}

// takeIn gets the record of inputs of every platform and holds it to the lock,
// or makes the lock of it.
func (r *run) takeIn(ctx context.Context, eng engine, in *inputs, b *built, s *sealed, described attestations.ContainerEngine) error {
	for _, p := range s.platforms {
		rec, err := s.recordOf(p.Name)
		if err != nil {
			return err
		}
		seen, err := eng.inputs(ctx, b, rec, p.Name)
		if err != nil {
			return eng.Explain(err)
		}
		took, err := r.intake.assemble(in, rec, seen, described)
		if err != nil {
			return fmt.Errorf("what the engine recorded of %s: %w", p.Name, err)
		}
		s.taken = append(s.taken, taken{platform: p.Name, record: took})
	}
	if err := r.intake.holdToLock(s.taken); err != nil {
		return err
	}
	if err := r.intake.makeLock(s.taken); err != nil {
		return err
	}
	if err := r.intake.store.Sync(ctx); err != nil {
		return fmt.Errorf("writing the store of inputs: %w", err)
	}
	return nil
}

// recordOf returns the engine's record of one platform.
func (s *sealed) recordOf(platform string) (*record, error) {
	rec, err := s.records.of(platform, len(s.platforms))
	if err != nil && slices.Contains(s.bare, platform) {
		// FROM scratch and no files: no input went into it, and the engine
		// keeps no record of nothing.
		return &record{}, nil
	}
	return rec, err
}

func (r *run) getSBOMs(ctx context.Context, eng engine, b *built, s *sealed) error {
	if len(r.req.Seal.SBOM) == 0 {
		return nil
	}
	var queries []sbomQuery
	for _, p := range s.platforms {
		queries = append(queries, sbomQuery{build: b.ref, platform: p.Name, layout: r.layout, digest: p.Digest, epoch: s.epoch})
	}
	step := r.shown.begin("[waxseal] catalogue the image (" + strings.Join(r.req.Seal.SBOM, ", ") + ")")
	docs, err := fetchSBOMs(ctx, eng, r.req.Seal.SBOM, queries)
	if err != nil {
		return step.end(eng.Explain(err))
	}
	s.documents = docs
	for _, d := range docs {
		for i := range s.platforms {
			if p := &s.platforms[i]; p.Name == d.platform {
				if p.Packages == nil {
					p.Packages = map[string]int{}
				}
				p.Packages[d.format] = d.packages
			}
		}
		if note := "the SBOM of " + d.platform + " lacks the packages of " + d.unread; d.unread != "" && !slices.Contains(r.notes.list, note) {
			r.notes.add("%s", note)
		}
	}
	return step.end(nil)
}

// platforms lists the image's manifests and returns the time its config
// states.
func (r *run) platforms(root ocispec.Descriptor, s *sealed) (*time.Time, error) {
	manifests := []ocispec.Descriptor{root}
	if isIndex(root.MediaType) {
		var index ocispec.Index
		if err := readJSONBlob(r.layout, root, &index); err != nil {
			return nil, err
		}
		// What BuildKit itself says of an image, unsigned, is no platform.
		manifests = slices.DeleteFunc(index.Manifests, func(d ocispec.Descriptor) bool {
			return d.Annotations["vnd.docker.reference.type"] != ""
		})
	}
	var created *time.Time
	s.config = map[string]ocispec.Descriptor{}
	for _, d := range manifests {
		m, err := readManifest(r.layout, d)
		if err != nil {
			return nil, err
		}
		var config ocispec.Image
		if err := readJSONBlob(r.layout, m.Config, &config); err != nil {
			return nil, err
		}
		name := platforms.Format(platforms.Normalize(config.Platform))
		s.config[name] = m.Config
		if len(m.Layers) == 0 {
			s.bare = append(s.bare, name)
		}
		s.platforms = append(s.platforms, PlatformResult{Name: name, Digest: attest.Digest(d.Digest)})
		if config.Created != nil {
			created = config.Created
		}
	}
	return created, nil
}

// state writes the statements: provenance for every manifest and the index,
// the record of inputs and SBOMs for every manifest.
func (r *run) state(a *account, b *built, s *sealed) error {
	name := "image"
	if names := r.allNames(); len(names) > 0 {
		name = familiar(names[0])
	}
	var whole subject
	for i, p := range s.platforms {
		file := strings.ReplaceAll(p.Name, "/", "-")
		rec, err := s.recordOf(p.Name)
		if err != nil {
			return err
		}
		t := &s.taken[i]
		st, err := attest.NewStatement(attestations.InputsV1, subjectsOf(name, p.Digest), t.record)
		if err != nil {
			return fmt.Errorf("writing the record of inputs: %w", err)
		}
		t.digest = st.Digest()
		inputs := statement{"inputs-" + file, p.Digest, st}
		var docs []document
		for _, d := range s.documents {
			if d.platform == p.Name {
				docs = append(docs, d)
			}
		}
		if st, err = a.statement(name, p.Digest, subject{[]*record{rec}, []taken{*t}, docs}); err != nil {
			return err
		}
		whole.recs, whole.taken = append(whole.recs, rec), append(whole.taken, *t)
		s.statements = append(s.statements, statement{"provenance-" + file, p.Digest, st}, inputs)
		for _, d := range docs {
			st, err := d.statement(name, p.Digest)
			if err != nil {
				return err
			}
			s.statements = append(s.statements, statement{d.format + "-" + file, p.Digest, st})
		}
	}
	if isIndex(b.image.MediaType) {
		whole.sboms = s.documents
		st, err := a.statement(name, attest.Digest(b.image.Digest), whole)
		if err != nil {
			return err
		}
		s.statements = append(s.statements, statement{"provenance-index", attest.Digest(b.image.Digest), st})
	}
	return nil
}

// isIndex reports whether a media type is that of an index, in OCI's words or
// Docker's.
func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == "application/vnd.docker.distribution.manifest.list.v2+json"
}

// of returns the record of one platform.
func (r *records) of(platform string, count int) (*record, error) {
	if rec, ok := r.platforms[platform]; ok {
		return rec, nil
	}
	if rec, ok := r.platforms[""]; ok && count == 1 {
		return rec, nil
	}
	if len(r.platforms) == 1 && count == 1 {
		for _, rec := range r.platforms {
			return rec, nil
		}
	}
	return nil, fmt.Errorf("reading the engine's build record: there is none for %s", platform)
}

func (r *run) allNames() []string {
	names := slices.Clone(r.req.Image.Tags)
	for _, o := range r.req.Outputs {
		names = append(names, o.Names...)
	}
	return names
}

func (r *run) sign(ctx context.Context, s *sealed) error {
	signer, err := r.signer()
	if err != nil || signer == nil {
		return err
	}
	step := r.shown.begin(fmt.Sprintf("[waxseal] sign %d statements", len(s.statements)))
	// All at once: a log takes a batch of entries in the time of one.
	made := make([]evidence, len(s.statements))
	all, ctx := errgroup.WithContext(ctx)
	for i, st := range s.statements {
		all.Go(func() error {
			b, err := signer.Sign(ctx, st.st)
			if err != nil {
				return fmt.Errorf("signing: %w", err)
			}
			made[i] = evidence{st.file, st.subject, b}
			return nil
		})
	}
	err = all.Wait()
	if err == nil {
		s.evidence = append(s.evidence, made...)
	}
	return step.end(err)
}

// deliver puts everything where it was asked for.
func (r *run) deliver(ctx context.Context, in *inputs, b *built, s *sealed) (*Result, error) {
	res := r.result(b, s)
	p := &publisher{
		layout: r.layout, link: r.staging, root: res.Digest, content: s.content, evidence: s.evidence,
		opts: store.Options{Insecure: r.req.Seal.Insecure},
	}
	if r.req.Inputs.Push {
		p.beside = func(ctx context.Context, dst store.Writable) error { return r.intake.push(ctx, dst, s, r.notes) }
	}
	if r.out != nil {
		step := r.shown.begin("[waxseal] write " + r.req.Seal.Out)
		if err := step.end(r.writeOut(ctx, p, in, s, res)); err != nil {
			return nil, err
		}
	}
	if err := r.writeFiles(b, res); err != nil {
		return nil, err
	}
	for _, place := range r.places {
		step := r.shown.begin("[waxseal] put image and evidence into " + place.to.String())
		if err := step.end(p.publish(ctx, place)); err != nil {
			return nil, err
		}
		res.Images = append(res.Images, imageReferences(place, res.Digest)...)
	}
	// Docker gives the image its name at once: after the evidence, as every tag.
	if err := r.load(ctx, b, res); err != nil {
		return nil, err
	}
	if r.out != nil {
		if err := r.out.finish(); err != nil {
			return nil, err
		}
		res.Out = r.req.Seal.Out
		if len(res.Images) == 0 {
			res.Images = append(res.Images, store.Reference{Kind: store.Layout, Place: filepath.Join(r.req.Seal.Out, "image"), Digest: res.Digest}.String())
		}
	}
	res.Inputs.Written = r.intake.writeLock(r.notes)
	r.intake.tell(s.taken, r.notes)
	if r.req.Inputs.Push && s.epoch == "" {
		r.notes.add("a rebuild will have other times, and so another digest: build from a git checkout, or set SOURCE_DATE_EPOCH")
	}
	res.Notes = r.notes.list
	return res, nil
}

func imageReferences(p publication, d attest.Digest) []string {
	ref := p.to
	ref.Digest = d
	if len(p.tags) == 0 {
		return []string{ref.String()}
	}
	var out []string
	for _, t := range p.tags {
		ref.Tag = t
		out = append(out, ref.String())
	}
	return out
}

// load puts the image into the Docker daemon where that was asked for.
func (r *run) load(ctx context.Context, b *built, res *Result) error {
	for _, o := range r.req.Outputs {
		if o.Kind != OutputDocker || o.Dest != "" {
			continue
		}
		names := r.req.names(o)
		step := r.shown.begin("[waxseal] load into Docker")
		if err := step.end(loadIntoDocker(ctx, func(w io.Writer) error {
			return writeArchive(w, r.layout, b.image, names, true)
		})); err != nil {
			return err
		}
		res.Loaded = append(res.Loaded, names...)
		if len(names) == 0 {
			res.Loaded = append(res.Loaded, res.ImageID)
		}
	}
	return nil
}

// writeFiles writes the outputs that are files.
func (r *run) writeFiles(b *built, res *Result) error {
	if err := r.files.finish(); err != nil {
		return err
	}
	for _, o := range r.req.Outputs {
		names := r.req.names(o)
		write := func(w io.Writer) error {
			return writeArchive(w, r.layout, b.image, names, o.Kind == OutputDocker)
		}
		switch {
		case o.Kind == OutputDocker && o.Dest == "": // see load
		case o.Kind != OutputDocker && (o.Kind != OutputOCI || !o.Tar):
			if o.Kind == OutputLocal || o.Kind == OutputTar && o.Dest != "-" {
				res.Files = append(res.Files, o.Dest)
			}
		case o.Dest == "-":
			if err := write(r.deps.Stdout); err != nil {
				return fmt.Errorf("writing image to standard output: %w", err)
			}
		default:
			if err := os.MkdirAll(filepath.Dir(o.Dest), 0o755); err != nil {
				return fmt.Errorf("writing output %q: %w", o.Dest, err)
			}
			if err := store.WriteWhole(o.Dest, write); err != nil {
				return fmt.Errorf("writing output %q: %w", o.Dest, err)
			}
			res.Files = append(res.Files, o.Dest)
		}
	}
	return nil
}

func (r *run) result(b *built, s *sealed) *Result {
	res := &Result{
		Digest: attest.Digest(b.image.Digest), Index: isIndex(b.image.MediaType),
		Platforms: s.platforms, Evidence: len(s.evidence), BuilderID: r.req.builderID(),
	}
	res.ImageID = string(res.Digest)
	res.Metadata = map[string]any{
		"buildx.build.ref":          "waxseal/" + b.ref,
		"containerimage.digest":     string(res.Digest),
		"containerimage.descriptor": b.image,
	}
	if !res.Index {
		config := s.config[s.platforms[0].Name].Digest.String()
		res.ImageID = config
		res.Metadata["containerimage.config.digest"] = config
	}
	var names []string
	for _, n := range r.allNames() {
		if full := fullName(n); !slices.Contains(names, full) {
			names = append(names, full)
		}
	}
	if len(names) > 0 {
		res.Metadata["image.name"] = strings.Join(names, ",")
	}
	platformDigests := map[string]string{}
	for _, p := range s.platforms {
		platformDigests[p.Name] = string(p.Digest)
	}
	res.Metadata["waxseal.schema"] = folderSchema
	res.Metadata["waxseal.platforms"] = platformDigests
	res.Metadata["waxseal.builder"] = res.BuilderID
	res.Metadata["waxseal.signed"] = r.deps.Signer != nil
	res.Inputs = r.intake.result(s.taken)
	res.Metadata["waxseal.inputs"] = res.Inputs
	return res
}

// writeOut fills the --out folder.
func (r *run) writeOut(ctx context.Context, p *publisher, in *inputs, s *sealed, res *Result) error {
	var tags []string
	for _, n := range r.allNames() {
		if t := tagOf(n); !slices.Contains(tags, t) {
			tags = append(tags, t)
		}
	}
	if err := p.publish(ctx, publication{store.Reference{Kind: store.Layout, Place: r.out.path("image")}, tags}); err != nil {
		return err
	}
	for _, st := range s.statements {
		if err := r.out.write(st.st.Raw(), "statements", st.file+".json"); err != nil {
			return err
		}
	}
	for _, e := range s.evidence {
		if err := r.out.bundle(e); err != nil {
			return err
		}
	}
	for _, d := range s.documents {
		if err := r.out.write(d.raw, "sboms", strings.ReplaceAll(d.platform, "/", "-")+"."+d.format+".json"); err != nil {
			return err
		}
	}
	for name, rec := range s.records.platforms {
		file := strings.TrimSuffix("engine-record-"+strings.ReplaceAll(name, "/", "-"), "-") + ".json"
		if err := r.out.write(rec.raw, file); err != nil {
			return err
		}
	}
	if raw := r.intake.inForce(); raw != nil {
		if err := os.Mkdir(r.out.path("inputs"), 0o755); err != nil {
			return err
		}
		if err := r.out.write(raw, "inputs", lockName); err != nil {
			return err
		}
	}
	if in.main != nil {
		if err := r.out.stream(in.main.tree.writeManifest, "context.jsonl"); err != nil {
			return err
		}
	}
	raw, err := json.MarshalIndent(res.Metadata, "", "  ")
	if err != nil {
		return err
	}
	return r.out.write(append(raw, '\n'), "metadata.json")
}

// WriteMetadata writes --metadata-file as buildx does, and WriteImageID
// --iidfile.
func (res *Result) WriteMetadata(name string) error {
	raw, err := json.MarshalIndent(res.Metadata, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(name, append(raw, '\n'))
}

// WriteImageID writes the image's ID into a file.
func (res *Result) WriteImageID(name string) error { return WriteFile(name, []byte(res.ImageID)) }

// WriteFile writes a file that a flag named, whole or not at all.
func WriteFile(name string, raw []byte) error {
	err := store.WriteWhole(name, func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	return nil
}

// buildLog is the plain text of a build: hashed, and kept with --out.
type buildLog struct {
	mu   sync.Mutex
	sum  hash.Hash
	file *os.File
	done bool

	redact *strings.Replacer
}

func (l *buildLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return len(p), nil
	}
	clean := l.redact.Replace(string(p))
	_, _ = io.WriteString(l.sum, clean)
	if l.file != nil {
		if _, err := l.file.WriteString(clean); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// engine returns a writer for the engine's own words, marked as such.
func (l *buildLog) engine() io.Writer { return prefixed{l} }

type prefixed struct{ w io.Writer }

func (p prefixed) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		if _, err := io.WriteString(p.w, "engine: "+strings.TrimSuffix(line, "\n")+"\n"); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

// digest closes the log: what comes after is not part of the build.
func (l *buildLog) digest() attest.Digest {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
	return attest.Digest("sha256:" + hex.EncodeToString(l.sum.Sum(nil)))
}

// QuietID is what --quiet prints: the digest of what was made, or after
// loading into Docker the ID it has there.
func (res *Result) QuietID() string {
	if len(res.Loaded) > 0 {
		return res.ImageID
	}
	return string(res.Digest)
}

// makeHome makes waxseal's own image folder.
func makeHome(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return hinted(fmt.Errorf("making the image folder: %w", err), "set WAXSEAL_HOME to a folder that can be written to")
	}
	return nil
}
