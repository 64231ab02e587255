package build

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

// maxLayer bounds one blob of an image that the engine built for another
// program.
const maxLayer = 64 << 30

// clientSolve is one build that another program asked the engine for, as the
// engine tells it.
type clientSolve struct {
	Ref        string            `json:"ref"`
	Attrs      map[string]string `json:"attrs"`
	Given      []string          `json:"given"`
	Exports    []clientEntry     `json:"exports"`
	CacheFrom  []clientEntry     `json:"cacheFrom"`
	CacheTo    []clientEntry     `json:"cacheTo"`
	Allow      []string          `json:"allow"`
	Policy     bool              `json:"policy"`
	Docker     bool              `json:"docker"`
	Error      string            `json:"error"`
	StartedOn  time.Time         `json:"startedOn"`
	FinishedOn time.Time         `json:"finishedOn"`
}

type clientEntry struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs"`
}

// names are those that an output gives the image.
func (e clientEntry) names() []string {
	if e.Attrs["name"] == "" {
		return nil
	}
	return strings.Split(e.Attrs["name"], ",")
}

func (e clientEntry) is(option string) bool {
	yes, _ := strconv.ParseBool(e.Attrs[option])
	return yes
}

// sealer seals the builds that other programs asked for, when the command has
// ended well.
type sealer struct {
	req    *CommandRequest
	deps   *CommandDeps
	engine *ownEngine
	client *client.Client       // of engine; both nil where nobody connected
	signer Signer               // nil: nothing is signed
	intake *intake              // where what came in is kept
	legacy *legacyProxy         // nil where docker has buildx
	repos  func() *repositories // where commits are looked for
	asked  bool                 // for builds that leave nothing, and no other: a check, or no output
	// aside names what was not seen of the command around the builds.
	aside []string
}

// image is one image of a build, and the outputs that hold it.
type clientImage struct {
	solve   *clientSolve
	root    ocispec.Descriptor
	exports []clientEntry
	records *records
	engine  engine   // that answers for it
	layout  string   // where it lies already; "" has it fetched from the engine
	later   []string // names by which the daemon pushed it, after it was loaded
}

// images lists what the solves of a command made: each image once, however
// many outputs of a build hold it.
func (s *sealer) images(ctx context.Context, solves []clientSolve) ([]clientImage, []string, error) {
	var out []clientImage
	var notes []string
	for i := range solves {
		sv := &solves[i]
		switch {
		case len(sv.Exports) == 0:
			continue
		case sv.FinishedOn.IsZero():
			notes = append(notes, fmt.Sprintf("the build %s had not ended when the command did, and is not sealed", sv.label()))
			continue
		case sv.Error != "":
			notes = append(notes, fmt.Sprintf("the build %s failed, and is not sealed: %s", sv.label(), clipLine(sv.Error)))
			continue
		}
		recs, err := fetchRecords(ctx, s.client, sv.Ref)
		if err != nil {
			return nil, nil, s.engine.Explain(err)
		}
		found := map[digest.Digest]int{}
		for j, e := range sv.Exports {
			root, ok := recs.exported[j]
			if !ok {
				continue // files
			}
			if _, err := attest.ParseDigest(root.Digest.String()); err != nil {
				return nil, nil, fmt.Errorf("reading the engine's build record: image digest: %w", err)
			}
			at, ok := found[root.Digest]
			if !ok {
				at = len(out)
				found[root.Digest] = at
				out = append(out, clientImage{solve: sv, root: root, records: recs.copy(), engine: s.engine})
			}
			out[at].exports = append(out[at].exports, e)
		}
		if len(found) == 0 {
			return nil, nil, fmt.Errorf("the engine kept no image of the build %s", sv.label())
		}
	}
	return out, notes, nil
}

// notLoaded says which images are not where docker's own builder leaves them, and
// nobody loaded them.
func notLoaded(images []clientImage) []string {
	var notes []string
	for _, img := range images {
		if img.solve.Docker && !slices.ContainsFunc(img.exports, func(e clientEntry) bool { return e.Type != client.ExporterImage }) {
			notes = append(notes, notInDocker(img.solve.label())+": -o type=docker loads it")
		}
	}
	return notes
}

// label names a build for people.
func (s *clientSolve) label() string {
	for _, e := range s.Exports {
		if names := e.names(); len(names) > 0 {
			return strconv.Quote(familiar(names[0]))
		}
	}
	if t := s.Attrs["target"]; t != "" {
		return strconv.Quote(t)
	}
	return s.Ref
}

// seal writes and signs the evidence of all images, and puts it where they
// are. Nothing is attached before all of it is signed.
func (s *sealer) seal(ctx context.Context, images []clientImage) ([]*Result, Observed, error) {
	work := make([]*sealedImage, len(images))
	defer func() {
		for _, w := range work {
			if w != nil {
				w.run.cleanup()
			}
		}
	}()
	folders := s.outFolders(images)
	s.repos = sync.OnceValue(func() *repositories { return findRepositories(ctx, s.req.Args) })
	all, gctx := errgroup.WithContext(ctx)
	all.SetLimit(4)
	var mu sync.Mutex
	for i := range images {
		all.Go(func() error {
			w, err := s.prepare(gctx, &images[i], folders[i])
			mu.Lock()
			work[i] = w
			mu.Unlock()
			if err != nil {
				return fmt.Errorf("sealing %s: %w", images[i].solve.label(), err)
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		return nil, Observed{}, err
	}
	if err := s.state(ctx, images, work); err != nil {
		return nil, Observed{}, err
	}
	var parts []Observed
	for _, w := range work {
		parts = append(parts, w.observed)
	}
	seen := Together(parts...)
	if !seen.Grade.Reaches(s.req.Require) {
		return nil, seen, hinted(fmt.Errorf("--require %s: what was seen is %s: %s", s.req.Require, seen.Grade, strings.Join(seen.Unobserved, "; ")),
			"the images are built and, where the command pushed them, pushed, without evidence; take less with --require partial, or leave --require out")
	}
	var out []*Result
	for _, w := range work {
		if err := w.run.sign(ctx, w.sealed); err != nil {
			return nil, seen, err
		}
	}
	// What is left is the registry's business. The two end while that is written to.
	s.deps.clean.end()
	if s.engine != nil {
		s.engine.end()
	}
	for i, w := range work {
		res, err := s.deliver(ctx, &images[i], w)
		if err != nil {
			return out, seen, fmt.Errorf("sealing %s: %w", images[i].solve.label(), err)
		}
		out = append(out, res)
	}
	return out, seen, nil
}

// sealedImage is an image with its statements.
type sealedImage struct {
	run       *run
	in        *inputs
	built     *built
	sealed    *sealed
	described attestations.ContainerEngine
	observed  Observed
	layers    bool // the layers of the image are here, too
	log       *clientLog
}

// outFolders names the --out folder of each image: the one that was asked for
// where there is one image, else one in it for each.
func (s *sealer) outFolders(images []clientImage) []string {
	out := make([]string, len(images))
	if s.req.Seal.Out == "" {
		return out
	}
	taken := map[string]bool{}
	for i := range images {
		out[i] = s.req.Seal.Out
		if len(images) == 1 {
			break
		}
		base := "image"
		if names := images[i].names(); len(names) > 0 {
			if named, err := reference.ParseNormalizedNamed(names[0]); err == nil {
				base = filepath.Base(named.Name())
			}
		} else if t := images[i].solve.Attrs["target"]; t != "" {
			base = strings.Map(func(r rune) rune {
				if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", r) {
					return r
				}
				return '-'
			}, t)
		}
		name := base
		for n := 2; taken[name]; n++ {
			name = fmt.Sprintf("%s-%d", base, n)
		}
		taken[name] = true
		out[i] = filepath.Join(s.req.Seal.Out, name)
	}
	return out
}

func (i *clientImage) names() []string {
	var out []string
	for _, e := range i.exports {
		for _, n := range e.names() {
			if !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// pushed reports whether an output put the image into a registry.
func (i *clientImage) pushed() bool {
	return slices.ContainsFunc(i.exports, func(e clientEntry) bool { return e.Type == client.ExporterImage && e.is("push") })
}

// prepare reads an image back from the engine, with all that its statements
// say.
func (s *sealer) prepare(ctx context.Context, img *clientImage, out string) (*sealedImage, error) {
	req := s.request(img)
	w := &sealedImage{
		run: &run{
			req: req, deps: &s.deps.Deps, intake: s.intake, notes: &notes{}, started: img.solve.StartedOn, staging: true,
			signer: func() (Signer, error) { return s.signer, nil },
		},
		built:  &built{ref: img.solve.Ref, image: img.root},
		sealed: &sealed{records: img.records},
		layers: out != "" || !img.pushed(),
	}
	r := w.run
	var err error
	if r.shown, err = newProgress(Display{}, nil, req.redact()); err != nil {
		return w, err
	}
	if out != "" {
		if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
			return w, fmt.Errorf("writing --out folder: %w", err)
		}
		if r.out, err = newOutFolder(out); err != nil {
			return w, err
		}
		r.req.Seal.Out = out
		r.undo = append(r.undo, r.out.abandon)
	}
	log := s.beginLog(ctx, img, w)
	defer func() { w.log = log() }()
	if w.described, err = img.engine.describe(ctx); err != nil {
		return w, img.engine.Explain(err)
	}
	if r.layout, err = s.layout(ctx, img, w); err != nil {
		return w, img.engine.Explain(err)
	}
	created, err := r.platforms(img.root, w.sealed)
	if err != nil {
		return w, err
	}
	w.sealed.epoch = img.solve.epoch(created)
	if err := s.takeIn(ctx, img, w); err != nil {
		return w, err
	}
	git := s.beginSource(ctx, img, w)
	err = r.getSBOMs(ctx, img.engine, w.built, w.sealed)
	w.in.git = git()
	return w, err
}

// state writes the statements of all images, without secrets.
func (s *sealer) state(ctx context.Context, images []clientImage, work []*sealedImage) error {
	clean := s.deps.clean
	if err := clean.ready(); err != nil {
		return err
	}
	solves := map[*clientSolve]bool{}
	var texts []placed
	for i, w := range work {
		if sv := images[i].solve; !solves[sv] {
			solves[sv] = true
			texts = append(texts, sv.texts()...)
		}
		for _, t := range w.sealed.taken {
			texts = append(texts, stepTexts(t.record)...)
		}
	}
	if err := clean.look(ctx, texts); err != nil {
		return err
	}
	for i, w := range work {
		if err := clean.look(ctx, w.log.texts(images[i].solve)); err != nil {
			return err
		}
	}
	for sv := range solves {
		sv.clean(clean)
	}
	for i, w := range work {
		if err := s.stateOne(&images[i], w); err != nil {
			return fmt.Errorf("sealing %s: %w", images[i].solve.label(), err)
		}
	}
	return nil
}

func (s *sealer) stateOne(img *clientImage, w *sealedImage) error {
	req := w.run.req
	again := s.request(img) // of what the client asked for without secrets
	again.Seal, again.Steps.Secrets, again.Steps.SSH = req.Seal, req.Steps.Secrets, req.Steps.SSH
	*req = *again
	w.in.described = contextOf(img.solve)
	for _, p := range w.sealed.platforms {
		rec, err := w.sealed.recordOf(p.Name)
		if err != nil {
			return err
		}
		s.deps.clean.record(rec)
	}
	for _, t := range w.sealed.taken {
		s.deps.clean.steps(t.record)
	}
	w.observed = s.observed(img, w)
	log, err := w.log.clean(s.deps.clean, w.run.out)
	if err != nil {
		return err
	}
	a := &account{
		req: req, in: w.in, engine: w.described, records: w.sealed.records, epoch: w.sealed.epoch, id: img.solve.Ref,
		started: img.solve.StartedOn, finished: img.solve.FinishedOn, version: s.deps.Version, intake: s.intake, ci: s.deps.whose,
		attrs: img.solve.otherAttrs(), observed: &w.observed, log: log,
	}
	return w.run.state(a, w.built, w.sealed)
}

// layout is the folder that the image is in.
func (s *sealer) layout(ctx context.Context, img *clientImage, w *sealedImage) (string, error) {
	if img.layout != "" {
		w.layers = true
		return img.layout, nil
	}
	dir, err := os.MkdirTemp(s.deps.Home, ".tmp-")
	if err != nil {
		return "", fmt.Errorf("making a temporary folder: %w", err)
	}
	w.run.undo = append(w.run.undo, func() { os.RemoveAll(dir) })
	if _, err := store.OpenWritable(ctx, store.Reference{Kind: store.Layout, Place: dir}, store.Options{}); err != nil {
		return "", err
	}
	return dir, s.fetch(ctx, w, dir)
}

// epoch is the time that the image was given, "" for none.
func (s *clientSolve) epoch(created *time.Time) string {
	v := s.Attrs["build-arg:SOURCE_DATE_EPOCH"]
	for _, e := range s.Exports {
		if x := e.Attrs["source-date-epoch"]; x != "" {
			v = x
		}
	}
	if v == "context" && created != nil {
		return strconv.FormatInt(created.Unix(), 10)
	}
	if _, err := strconv.ParseInt(v, 10, 64); err != nil {
		return ""
	}
	return v
}

// takeIn gets the record of inputs of every platform.
func (s *sealer) takeIn(ctx context.Context, img *clientImage, w *sealedImage) error {
	form := attestations.ContextManifestMediaType
	if img.legacy() {
		form = "application/x-tar"
	}
	w.in = &inputs{described: contextOf(img.solve), ours: map[string]string{}}
	if w.sealed.epoch != "" {
		w.in.epoch = epoch{w.sealed.epoch, "build-arg"}
	}
	for _, p := range w.sealed.platforms {
		rec, err := w.sealed.recordOf(p.Name)
		if err != nil {
			return err
		}
		rec.redact(w.run.req.redact())
		seen, err := img.engine.inputs(ctx, w.built, rec, p.Name)
		if err != nil {
			return img.engine.Explain(err)
		}
		for _, u := range seen.Unkept {
			w.run.notes.add("the image cannot be rebuilt: what the command sent is not in the store: %s", clipLine(u))
		}
		if err := w.in.describeSent(rec, seen, form, s.intake.store); err != nil {
			return err
		}
		for _, id := range rec.Secrets {
			if !slices.ContainsFunc(w.run.req.Steps.Secrets, func(x Secret) bool { return x.ID == id }) {
				w.run.req.Steps.Secrets = append(w.run.req.Steps.Secrets, Secret{ID: id})
			}
		}
		for _, id := range rec.SSH {
			if !slices.ContainsFunc(w.run.req.Steps.SSH, func(x SSH) bool { return x.ID == id }) {
				w.run.req.Steps.SSH = append(w.run.req.Steps.SSH, SSH{ID: id})
			}
		}
		took, err := s.intake.assemble(w.in, rec, seen, w.described)
		if err != nil {
			return fmt.Errorf("what the engine recorded of %s: %w", p.Name, err)
		}
		w.sealed.taken = append(w.sealed.taken, taken{platform: p.Name, record: took})
	}
	if err := w.in.keep(ctx, s.intake.store); err != nil {
		return err
	}
	return s.intake.store.Sync(ctx)
}

// describeSent makes dependencies of what a client sent: its folders by the
// digest of what the engine received, and the Dockerfile by its bytes.
func (in *inputs) describeSent(rec *record, seen *EngineInputs, form string, kept *lock.Store) error {
	add := func(d dependency) {
		if !slices.ContainsFunc(in.dependencies, func(x dependency) bool { return x.Name == d.Name && maps.Equal(x.Digest, d.Digest) }) {
			in.dependencies = append(in.dependencies, d)
		}
	}
	for _, f := range rec.Dockerfiles {
		syntax := syntaxOf(f.Data)
		if err := checkSyntax(syntax); err != nil {
			return err
		}
		if syntax != "" {
			in.syntax = syntax
		}
		d := dependency{Name: attestations.DependencyDockerfile, Digest: sha256Of(f.Data), Annotations: map[string]any{"path": f.Filename}}
		if !slices.ContainsFunc(in.given, func(g given) bool { return g.raw != nil && g.source.URI == f.Filename }) {
			in.given = append(in.given, given{raw: f.Data, source: attestations.InputSource{
				Kind: "dockerfile", URI: f.Filename, Digest: string(attest.DigestOf(f.Data)), Size: int64(len(f.Data)),
			}})
		}
		add(d)
	}
	for i := range seen.Sources {
		src := &seen.Sources[i]
		if src.Kind != "context" && src.Kind != "named-context" {
			continue
		}
		d, err := attest.ParseDigest(src.Digest)
		if err != nil {
			return fmt.Errorf("what the engine recorded of the context: %w", err)
		}
		if src.Kind == "named-context" && src.Tree == "" {
			add(dependency{Name: src.URI, Digest: map[string]string{"sha256": d.Hex()}}) // an OCI layout
			continue
		}
		about, err := keptContext(kept, src)
		if err != nil {
			return fmt.Errorf("what the engine kept of the context: %w", err)
		}
		add(dependency{Name: src.URI, MediaType: form, Digest: map[string]string{"sha256": d.Hex()}, Annotations: about})
		name := strings.TrimPrefix(src.URI, attestations.DependencyNamedContext+":")
		rec.Locals = slices.DeleteFunc(rec.Locals, func(l string) bool { return l == name })
	}
	// Without a step that took anything of it the context brought nothing in.
	rec.Locals = slices.DeleteFunc(rec.Locals, func(l string) bool {
		return l == attestations.DependencyContext && !rec.usesLocal(l)
	})
	return nil
}

// contextOf says where a client's context came from.
func contextOf(s *clientSolve) attestations.ContainerContext {
	v := s.Attrs["context"]
	if _, isGit, err := dfgitutil.ParseGitRef(v); isGit && err == nil {
		return attestations.ContainerContext{Kind: "git", URI: cleanURL(v)}
	}
	if strings.HasPrefix(v, "https://") || strings.HasPrefix(v, "http://") {
		// buildx serves an archive from standard input to the engine like that.
		if isUpload(v) {
			return attestations.ContainerContext{Kind: "tar"}
		}
		return attestations.ContainerContext{Kind: "url", URI: cleanURL(v)}
	}
	if slices.Contains(s.Given, attestations.DependencyContext) {
		// What the client put together, as bake does of a repository that it was
		// given; that it is what it calls it is its word.
		return attestations.ContainerContext{Kind: contextDefinition}
	}
	return attestations.ContainerContext{Kind: "directory"}
}

// observed is the grade of one image.
func (s *sealer) observed(img *clientImage, w *sealedImage) Observed {
	o := Observed{Grade: GradeFull}
	miss := func(text string) {
		o.Grade = GradePartial
		if !slices.Contains(o.Unobserved, text) {
			o.Unobserved = append(o.Unobserved, text)
		}
	}
	for _, text := range s.aside {
		miss(text)
	}
	for _, t := range w.sealed.taken {
		for _, g := range t.record.Gaps {
			miss(gapText(g))
		}
		for _, st := range t.record.Steps {
			for _, g := range st.Gaps {
				miss(clipLine(st.Name) + ": " + gapText(g))
			}
			if st.Verdict == attestations.VerdictUnobserved && len(st.Gaps) == 0 {
				miss(clipLine(st.Name) + ": nobody watched this step")
			}
		}
		if v := t.record.Verdict; v != attestations.VerdictIsolated && v != attestations.VerdictRecorded && o.Grade == GradeFull {
			miss("the inputs of " + t.platform)
		}
	}
	if img.solve.Policy {
		miss(unknownPolicy)
	}
	if e, ok := img.engine.(*legacyEngine); ok && !e.watched {
		o.Grade = GradeRecordOnly
	}
	return o
}

// legacy reports whether docker's legacy builder made the image.
func (i *clientImage) legacy() bool {
	_, yes := i.engine.(*legacyEngine)
	return yes
}

// request is what a client asked for, in the form of our own requests.
func (s *sealer) request(img *clientImage) *Request {
	a := img.solve.Attrs
	r := &Request{
		Source: Source{Context: a["context"], Dockerfile: a["filename"], Target: a["target"], Args: map[string]string{}, Named: map[string]string{}},
		Image:  Image{Tags: img.names(), Labels: map[string]string{}},
		Steps:  Steps{Network: a["force-network-mode"], Allow: img.solve.Allow},
		Cache:  Cache{Pull: a["image-resolve-mode"] == "pull"},
		Seal:   s.req.Seal,
		Inputs: s.req.Inputs,
	}
	if r.Source.Dockerfile == "Dockerfile" {
		r.Source.Dockerfile = "" // buildx names the default, too
	}
	if _, beside := a["dockerfilekey"]; beside {
		r.Source.Dockerfile = "-" // it is not the context's, whatever its name is
	}
	if a["platform"] != "" {
		r.Source.Platforms = strings.Split(a["platform"], ",")
	}
	for k, v := range a {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			r.Source.Args[name] = v
		}
		if name, ok := strings.CutPrefix(k, "label:"); ok {
			r.Image.Labels[name] = v
		}
		if name, ok := strings.CutPrefix(k, "context:"); ok {
			r.Source.Named[name] = namedOf(v)
		}
	}
	if v, ok := a["no-cache"]; ok {
		r.Cache.None = v == ""
		if v != "" {
			r.Cache.Except = strings.Split(v, ",")
		}
	}
	// What the client wrote wrong the frontend has refused.
	r.Steps.ShmSize, _ = strconv.ParseInt(a["shm-size"], 10, 64)
	r.Steps.AddHosts, r.Steps.Ulimits = csvValues(a["add-hosts"]), csvValues(a["ulimit"])
	for _, e := range img.solve.CacheFrom {
		r.Cache.From = append(r.Cache.From, CacheEntry(e))
	}
	for _, e := range img.solve.CacheTo {
		r.Cache.To = append(r.Cache.To, CacheEntry(e))
	}
	o := Output{Kind: OutputImage, Layers: map[string]string{"rewrite-timestamp": "false"}}
	for _, e := range img.exports {
		for _, k := range layerKeys() {
			if v, ok := e.Attrs[k]; ok {
				o.Layers[k] = cmp.Or(v, "true") // what the engine takes "" for
			}
		}
		for k, v := range e.Attrs {
			if name, ok := strings.CutPrefix(k, "annotation"); ok {
				level, key, _ := strings.Cut(name, ".")
				an := Annotation{Level: strings.TrimPrefix(level, "-"), Key: key, Value: v}
				if level, platform, ok := strings.Cut(an.Level, "["); ok {
					an.Level, an.Platform = level, strings.TrimSuffix(platform, "]")
				}
				o.Annotations = append(o.Annotations, an)
			}
		}
	}
	if o.Layers["oci-mediatypes"] == "" && strings.HasPrefix(img.root.MediaType, "application/vnd.docker.") {
		o.Layers["oci-mediatypes"] = "false" // what the engine does for some outputs
	}
	r.Outputs = []Output{o}
	return r
}

// namedOf is what a named context was, without what stands for a session.
func namedOf(v string) string {
	switch scheme, _, _ := strings.Cut(v, ":"); scheme {
	case "local":
		return "directory"
	case "input":
		return otherTarget
	case "oci-layout":
		return "oci:"
	}
	return v
}

func csvValues(line string) []string {
	if line == "" {
		return nil
	}
	values, err := csv.NewReader(strings.NewReader(line)).Read()
	if err != nil {
		return []string{line}
	}
	return values
}

// defaultAttest is how buildx asks for BuildKit's own provenance where its user
// says nothing of it.
const defaultAttest = "mode=min,inline-only=true"

// otherAttrs are what a client asked of the frontend beyond what has a place of
// its own, but for names of sessions and what buildx asks for by itself.
func (s *clientSolve) otherAttrs() map[string]string {
	out := map[string]string{}
	for k, v := range s.Attrs {
		if k == "attest:provenance" && v == defaultAttest {
			continue
		}
		head, _, _ := strings.Cut(k, ":")
		switch head {
		case "build-arg", "label", "context", "filename", "target", "platform", "no-cache", "image-resolve-mode",
			"force-network-mode", "add-hosts", "shm-size", "ulimit",
			"local-sessionid", "local-sharedkeyhint", "sharedkey", "legacy-builder", "input-metadata", "frontend.caps", "cmdline", "vcs", "dockerfilekey":
		default:
			out[k] = cleanURL(v)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// fetch copies an image from the engine into the layout: manifests and
// configurations, and the layers where they are needed.
func (s *sealer) fetch(ctx context.Context, w *sealedImage, dir string) error {
	from := proxy.NewContentStore(s.client.ContentClient())
	root := w.built.image
	if err := fetchBlob(ctx, from, dir, root, attest.MaxManifest); err != nil {
		return err
	}
	manifests := []ocispec.Descriptor{root}
	if isIndex(root.MediaType) {
		var index ocispec.Index
		if err := readJSONBlob(dir, root, &index); err != nil {
			return err
		}
		if len(index.Manifests) > 2*attest.MaxPlatforms {
			return fmt.Errorf("index %s has %d manifests, more than %d", root.Digest, len(index.Manifests), 2*attest.MaxPlatforms)
		}
		manifests = index.Manifests
		for _, d := range manifests {
			if err := fetchBlob(ctx, from, dir, d, attest.MaxManifest); err != nil {
				return err
			}
		}
	}
	for _, d := range manifests {
		m, err := readManifest(dir, d)
		if err != nil {
			return err
		}
		if err := fetchBlob(ctx, from, dir, m.Config, attest.MaxManifest); err != nil {
			return err
		}
		if !w.layers {
			continue
		}
		for _, l := range m.Layers {
			if err := fetchBlob(ctx, from, dir, l, maxLayer); err != nil {
				return err
			}
		}
	}
	return nil
}

// fetchBlob copies one blob, checked by size and digest.
func fetchBlob(ctx context.Context, from content.Provider, layout string, d ocispec.Descriptor, limit int64) error {
	if err := d.Digest.Validate(); err != nil {
		return err
	}
	if d.Size < 0 || d.Size > limit {
		return fmt.Errorf("blob %s: %d bytes, more than %d", d.Digest, d.Size, limit)
	}
	name := filepath.Join(layout, filepath.FromSlash(blobPath(d.Digest)))
	if _, err := os.Stat(name); err == nil {
		return nil
	}
	r, err := from.ReaderAt(ctx, d)
	if err != nil {
		return fmt.Errorf("reading blob %s from the engine: %w", d.Digest, err)
	}
	defer r.Close()
	return store.WriteWhole(name, func(to io.Writer) error {
		v := d.Digest.Verifier()
		n, err := io.Copy(io.MultiWriter(to, v), io.NewSectionReader(r, 0, d.Size))
		if err == nil && (n != d.Size || !v.Verified()) {
			err = errors.New("its bytes do not have that digest")
		}
		if err != nil {
			return fmt.Errorf("reading blob %s from the engine: %w", d.Digest, err)
		}
		return nil
	})
}

// deliver attaches the evidence to the image wherever it was pushed, and writes
// it to --out; an image that is in no registry is kept in waxseal's own folder,
// evidence beside it.
func (s *sealer) deliver(ctx context.Context, img *clientImage, w *sealedImage) (*Result, error) {
	r := w.run
	res := r.result(w.built, w.sealed)
	res.Metadata["waxseal.grade"] = string(w.observed.Grade)
	res.Metadata["waxseal.unobserved"] = w.observed.Unobserved
	p := &publisher{layout: r.layout, link: true, root: res.Digest, evidence: w.sealed.evidence, opts: store.Options{Insecure: s.req.Seal.Insecure}}
	if w.layers {
		var err error
		if p.content, err = contentOf(r.layout, img.root); err != nil {
			return nil, err
		}
	}
	if r.out != nil {
		if err := r.writeOut(ctx, p, w.in, w.sealed, res); err != nil {
			return nil, err
		}
	}
	done := map[store.Reference]bool{}
	attach := func(name string, opts store.Options, tagged bool) error {
		to, tag, err := registryPlace(name)
		if err != nil {
			return err
		}
		if !done[to] {
			if err := attachAll(ctx, to, opts, w.sealed.evidence); err != nil {
				return err
			}
			if err := s.pushInputs(ctx, to, opts, w); err != nil {
				return err
			}
		}
		done[to] = true
		ref := to
		ref.Digest = res.Digest
		if tagged {
			ref.Tag = tag
		}
		if !slices.Contains(res.Images, ref.String()) {
			res.Images = append(res.Images, ref.String())
		}
		return nil
	}
	for _, e := range img.exports {
		if e.Type != client.ExporterImage || !e.is("push") {
			continue
		}
		opts := store.Options{Insecure: s.req.Seal.Insecure || e.is("registry.insecure")}
		for _, n := range e.names() {
			if err := attach(n, opts, !e.is("push-by-digest")); err != nil {
				return nil, err
			}
		}
	}
	if len(res.Images) == 0 && r.out == nil && len(w.sealed.evidence) > 0 {
		if err := s.keepAtHome(ctx, img, p, res); err != nil {
			return nil, err
		}
	}
	for _, n := range img.later {
		if err := attach(n, store.Options{Insecure: s.req.Seal.Insecure}, true); err != nil {
			return nil, err
		}
	}
	if r.out != nil {
		if err := r.out.finish(); err != nil {
			return nil, err
		}
		res.Out = r.req.Seal.Out
		if len(res.Images) == 0 {
			res.Images = append(res.Images, store.Reference{Kind: store.Layout, Place: filepath.Join(res.Out, "image"), Digest: res.Digest}.String())
		}
	}
	res.Notes = r.notes.list
	return res, nil
}

func (s *sealer) keepAtHome(ctx context.Context, img *clientImage, p *publisher, res *Result) error {
	names := img.names()
	if len(names) == 0 {
		names = []string{""}
	}
	for _, n := range names {
		to := publication{to: store.Reference{Kind: store.Layout, Place: filepath.Join(s.deps.Home, "untagged")}}
		if n != "" {
			to = publication{store.Reference{Kind: store.Layout, Place: homeLayout(s.deps.Home, n)}, []string{tagOf(n)}}
		}
		if err := p.publish(ctx, to); err != nil {
			return err
		}
		res.Images = append(res.Images, imageReferences(to, res.Digest)...)
	}
	return nil
}

// attachAll attaches evidence to an image that is in a registry already.
func attachAll(ctx context.Context, to store.Reference, opts store.Options, all []evidence) error {
	dst, err := store.OpenWritable(ctx, to, opts)
	if err != nil {
		return err
	}
	return attachEvidence(ctx, dst, all)
}

// attachEvidence attaches evidence to what it is about, which is there.
func attachEvidence(ctx context.Context, dst store.Writable, all []evidence) error {
	var parts []store.Attachment
	for _, e := range all {
		parts = append(parts, store.Attachment{Subject: store.ByDigest(e.subject), Bundle: e.bundle})
	}
	_, err := store.AttachAll(ctx, dst, parts)
	return err
}
