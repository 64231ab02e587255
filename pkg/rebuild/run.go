package rebuild

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/build"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

// Request is one rebuild.
type Request struct {
	Image Image // the original
	// Provenance and Inputs are statements about the image and its platforms
	// that the caller believes: SLSA provenance, and records of inputs.
	Provenance []Claim
	Inputs     []Claim
	Unverified bool // nobody has checked who signed them

	Store     *lock.Store // of inputs
	Context   string      // folder to take the context from where the store lacks it
	Secrets   []build.Secret
	SSH       []build.SSH
	Allow     []string // entitlements that the build's steps had and may have again
	BuilderID string
	Out       string // folder for the rebuilt image, its statements and the report; "" for none
	// Attach is where the original takes what was found; nil attaches nothing.
	// Without Deps.Signer nothing is attached either.
	Attach store.Writable
	Deps   build.Deps
	// Program has the command CompareCommand; "" is this program itself.
	Program string
}

// Claim is a statement and who signed it.
type Claim struct {
	Statement *attest.Statement
	Signer    attest.Digest // of the key; "" where it was not verified
}

// Result is what came of a rebuild.
type Result struct {
	Rebuild   attestations.Rebuild
	Statement *attest.Statement // the predicate, about the original
	Attached  []string          // digests of the manifests that were attached
	Doubts    []string          // what the first build's record does not hold
	Out       string
}

// UndecidedError is a rebuild that could not be made, so that nothing can be
// said about the image.
type UndecidedError struct {
	err error
	way string
}

func (e UndecidedError) Error() string { return e.err.Error() }
func (e UndecidedError) Unwrap() error { return e.err }

// Hint is the way out.
func (e UndecidedError) Hint() string {
	var h interface{ Hint() string }
	if e.way == "" && errors.As(e.err, &h) {
		return h.Hint()
	}
	return e.way
}

// Run builds the image again from its evidence and the store, compares, and
// says what it found, match or not. A build.UsageError names what must be
// given again; an UndecidedError, why there is nothing to compare.
func Run(ctx context.Context, req Request) (*Result, error) {
	r := &rebuilding{req: &req, started: time.Now()}
	defer r.cleanup()
	res, err := r.do(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return res, err
}

type rebuilding struct {
	req     *Request
	started time.Time
	undo    []func()

	replay *build.Replay
	used   []attestations.RebuildEvidence
	name   string        // of the image, as the first build had it
	index  attest.Digest // that the original was taken from; "" for none
	lock   []byte
	tmp    string
	out    string
	signer build.Signer
}

func (r *rebuilding) cleanup() {
	for _, f := range slices.Backward(r.undo) {
		f()
	}
}

func (r *rebuilding) do(ctx context.Context) (*Result, error) {
	if err := r.chooseImage(ctx); err != nil {
		return nil, UndecidedError{err: err}
	}
	if err := r.chooseEvidence(); err != nil {
		return nil, UndecidedError{err: err}
	}
	if err := r.gather(ctx); err != nil {
		return nil, err
	}
	breq, err := r.prepare()
	if err != nil {
		return nil, err
	}
	// The signer is asked for before anything runs: a wrong password should
	// not cost a build. It signs what both say, the build and the comparison.
	if err := r.openSigner(ctx); err != nil {
		return nil, err
	}
	built, err := build.Run(ctx, breq, r.deps())
	if err != nil {
		return nil, buildError(err)
	}
	c, err := r.compare(ctx, breq.Outputs[0].Dest, built.Digest)
	if err != nil {
		return nil, UndecidedError{err: err}
	}
	return r.conclude(ctx, c)
}

// chooseImage takes the one image of an index that holds BuildKit's own
// attestations besides: those have times of their own, which no second build
// writes again.
func (r *rebuilding) chooseImage(ctx context.Context) error {
	place := r.req.Image.Place
	raw, top, err := place.Manifest(ctx, r.req.Image.Digest)
	if err != nil || !top.MediaType.IsIndex() {
		return err
	}
	platforms, err := store.Platforms(ctx, place, top)
	if err != nil {
		return err
	}
	var index struct {
		Manifests []json.RawMessage `json:"manifests"`
	}
	if err := attest.UnmarshalStrict(raw, &index); err != nil {
		return fmt.Errorf("reading index %s: %w", r.req.Image.Digest, err)
	}
	switch {
	case len(index.Manifests) <= len(platforms):
		return nil
	case len(platforms) != 1:
		return UndecidedError{
			err: fmt.Errorf("the image cannot be built again: its index holds BuildKit's own attestations of %d platforms, with times of their own", len(platforms)),
			way: "build it with --provenance=false, or BUILDX_NO_DEFAULT_ATTESTATIONS=1: waxseal's evidence stands beside the index, not in it",
		}
	}
	r.index = r.req.Image.Digest
	r.req.Image.Digest = attest.Digest(platforms[0].Descriptor.Digest.String())
	return nil
}

// chooseEvidence finds a provenance whose records of inputs are all there. One
// that can be repeated comes first, and one of a build from the network: others
// are rebuilds of it.
func (r *rebuilding) chooseEvidence() error {
	var inputs []*attest.Statement
	for _, c := range r.req.Inputs {
		inputs = append(inputs, c.Statement)
	}
	var first error
	for _, c := range r.req.Provenance {
		if !c.Statement.Binds(r.req.Image.Digest) {
			continue
		}
		replay, err := build.ReadReplay(c.Statement, inputs)
		if err != nil {
			if first == nil {
				first = err
			}
			continue
		}
		if r.replay == nil || worth(replay) > worth(r.replay) {
			r.replay = replay
			r.used = r.evidence(c, replay)
			r.name = c.Statement.Subject[0].Name
		}
	}
	switch {
	case r.replay != nil:
		return nil
	case first != nil:
		return first
	}
	return errors.New("there is no provenance of the image that is believed")
}

// worth is more for what can be repeated, and of that for what was built from
// the network.
func worth(r *build.Replay) int {
	n := 0
	if len(r.Unrepeatable()) == 0 {
		n += 2
	}
	if r.Records[0].Mode != attestations.InputsOffline {
		n++
	}
	return n
}

// evidence lists what the second build rests on.
func (r *rebuilding) evidence(prov Claim, replay *build.Replay) []attestations.RebuildEvidence {
	out := []attestations.RebuildEvidence{{
		PredicateType: prov.Statement.PredicateType, Statement: string(prov.Statement.Digest()),
		Signer: string(prov.Signer), Builder: replay.Builder,
	}}
	for _, c := range r.req.Inputs {
		if !slices.Contains(replay.Statements, c.Statement.Digest()) ||
			slices.ContainsFunc(out, func(e attestations.RebuildEvidence) bool { return e.Statement == string(c.Statement.Digest()) }) {
			continue
		}
		out = append(out, attestations.RebuildEvidence{PredicateType: c.Statement.PredicateType, Statement: string(c.Statement.Digest()), Signer: string(c.Signer)})
	}
	return out
}

// gather sees to it that the store has every byte, before anything runs.
func (r *rebuilding) gather(ctx context.Context) error {
	if reasons := r.replay.Unrepeatable(); len(reasons) > 0 {
		return UndecidedError{
			err: fmt.Errorf("the image cannot be built again:\n  %s", strings.Join(reasons, "\n  ")),
			way: "build it without that; attestations/container-build says what a rebuild needs",
		}
	}
	if withheld := r.replay.Withheld(); len(withheld) > 0 {
		return UndecidedError{
			err: fmt.Errorf("the image cannot be built again: steps were sent what holds a secret, and that was not kept:\n  %s", strings.Join(withheld, "\n  ")),
			way: "let the step fetch what holds no secret, or build the image where the secret is",
		}
	}
	missing, err := r.replay.Missing(r.req.Store)
	if err != nil {
		return UndecidedError{err: err}
	}
	if len(missing) > 0 && r.req.Context != "" {
		if err := r.replay.ImportContext(ctx, r.req.Store, r.req.Context); err != nil {
			return UndecidedError{err: fmt.Errorf("taking the context from %q: %w", r.req.Context, err)}
		}
		if missing, err = r.replay.Missing(r.req.Store); err != nil {
			return UndecidedError{err: err}
		}
	}
	// What an image consists of shows once its manifest is there.
	for range 4 {
		if len(missing) == 0 {
			break
		}
		before := missing
		if err := r.fetch(ctx, missing); err != nil {
			return UndecidedError{err: fmt.Errorf("fetching inputs from beside the image: %w", err)}
		}
		if missing, err = r.replay.Missing(r.req.Store); err != nil {
			return UndecidedError{err: err}
		}
		if slices.Equal(missing, before) {
			break
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return UndecidedError{
		err: missingError(missing),
		way: "bring them here with waxseal store export and import from where the image was built; or build with --push --push-inputs, which puts them beside the image; --context DIR gives the context from a folder",
	}
}

func (r *rebuilding) fetch(ctx context.Context, missing []build.NeededBlob) error {
	var want []store.WantedInput
	for _, m := range missing {
		want = append(want, store.WantedInput{Digest: m.Digest, Size: m.Size})
	}
	_, err := store.FetchInputs(ctx, r.req.Image.Place, want, func(w store.WantedInput, in io.Reader) error {
		out, err := r.req.Store.NewWriter()
		if err != nil {
			return err
		}
		defer out.Abort()
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		if out.Digest() != w.Digest {
			return fmt.Errorf("the bytes have the digest %s", out.Digest())
		}
		_, err = out.Commit()
		return err
	})
	return err
}

// missingError lists what cannot be replayed.
func missingError(missing []build.NeededBlob) error {
	const most = 10
	var b strings.Builder
	fmt.Fprintf(&b, "the image cannot be built again: %d of its inputs are neither in the store nor beside the image:", len(missing))
	for i, m := range missing {
		if i == most {
			fmt.Fprintf(&b, "\n  and %d more", len(missing)-most)
			break
		}
		fmt.Fprintf(&b, "\n  %s  %s", m.Digest, clip(m.What))
	}
	return errors.New(b.String())
}

// prepare makes the folders and the request of the second build.
func (r *rebuilding) prepare() (build.Request, error) {
	var err error
	if err := os.MkdirAll(r.req.Deps.Home, 0o755); err != nil {
		return build.Request{}, fmt.Errorf("making the image folder: %w", err)
	}
	if r.tmp, err = os.MkdirTemp(r.req.Deps.Home, ".tmp-rebuild-"); err != nil {
		return build.Request{}, fmt.Errorf("making a temporary folder: %w", err)
	}
	r.undo = append(r.undo, func() { removeAll(r.tmp) })
	if r.lock, err = r.replay.Lock(r.req.Store); err != nil {
		return build.Request{}, UndecidedError{err: err}
	}
	file := filepath.Join(r.tmp, "waxseal.lock")
	if err := os.WriteFile(file, r.lock, 0o600); err != nil {
		return build.Request{}, err
	}
	r.out = cmp.Or(r.req.Out, filepath.Join(r.tmp, "out"))
	return r.replay.Request(build.ReplayOptions{
		Store: r.req.Store, Lock: file, Name: r.name, Image: filepath.Join(r.tmp, "image"), Out: r.out, CacheDir: filepath.Join(r.tmp, "cache"),
		BuilderID: r.req.BuilderID, Unsigned: r.req.Deps.Signer == nil, Secrets: r.req.Secrets, SSH: r.req.SSH, Allow: r.req.Allow,
	})
}

// removeAll removes a folder in which an engine kept files of any mode.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	_ = os.Chmod(dir, 0o700)
	if root, err := os.OpenRoot(dir); err == nil {
		_ = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				_ = root.Chmod(p, 0o700)
			}
			return nil
		})
		root.Close()
	}
	_ = os.RemoveAll(dir)
}

func (r *rebuilding) openSigner(ctx context.Context) error {
	if r.req.Deps.Signer == nil {
		return nil
	}
	s, err := r.req.Deps.Signer(ctx)
	if err != nil {
		return err
	}
	r.signer = s
	r.undo = append(r.undo, func() { s.Close() })
	return nil
}

// keptOpen is a signer that signs once more after the build.
type keptOpen struct{ build.Signer }

func (keptOpen) Close() error { return nil }

func (r *rebuilding) deps() build.Deps {
	d := r.req.Deps
	d.Stdin = nil
	env := d.Env
	d.Env = func(name string) string {
		// The time of the first build counts, whatever is set here.
		if name == "SOURCE_DATE_EPOCH" || env == nil {
			return ""
		}
		return env(name)
	}
	if r.signer != nil {
		d.Signer = func(context.Context) (build.Signer, error) { return keptOpen{r.signer}, nil }
	}
	return d
}

// buildError says whose fault a failed build is: the request's, or that the
// image cannot be built again here.
func buildError(err error) error {
	var usage build.UsageError
	if errors.As(err, &usage) {
		return err
	}
	if errors.Is(err, build.ErrNotKept) {
		return UndecidedError{
			err: fmt.Errorf("the image cannot be built again: %w", err),
			way: "no waxseal writes such evidence: waxseal inspect shows what is attached, and who signed it",
		}
	}
	return UndecidedError{
		err: fmt.Errorf("building the image again, offline: %w", err),
		way: "waxseal store verify says whether the bytes are whole; a step that asks for something else each time cannot be repeated",
	}
}

// conclude signs, attaches and writes down what was found.
func (r *rebuilding) conclude(ctx context.Context, c *attestations.RebuildComparison) (*Result, error) {
	second, err := r.second(c.Rebuilt)
	if err != nil {
		return nil, err
	}
	res := &Result{Doubts: r.replay.Doubts(), Out: r.req.Out}
	res.Rebuild = attestations.Rebuild{RebuildComparison: *c, Build: attestations.RebuildBuild{
		Mode: attestations.InputsOffline, Lock: string(attest.DigestOf(r.lock)),
		Builder: cmp.Or(r.req.BuilderID, attestations.UnhostedBuilderID), Version: r.req.Deps.Version,
		Provenance: string(second.provenance.Digest()), Engine: second.engine, Evidence: r.used, Unverified: r.req.Unverified,
		Changed:   r.changed(second.engine),
		StartedOn: r.started.UTC().Truncate(time.Second), FinishedOn: time.Now().UTC().Truncate(time.Second),
	}}
	res.Statement, err = attest.NewStatement(attestations.RebuildV1,
		[]attest.Subject{{Name: clip(cmp.Or(r.name, "image")), Digest: map[string]string{"sha256": r.req.Image.Digest.Hex()}}}, res.Rebuild)
	if err != nil {
		return nil, err
	}
	bundles := second.bundles
	if r.signer != nil {
		b, err := r.signer.Sign(ctx, res.Statement)
		if err != nil {
			return nil, fmt.Errorf("signing: %w", err)
		}
		if r.req.Out != "" {
			name := filepath.Join(r.out, "bundles", "rebuild.sigstore.json")
			if stapled := bytes.Join(b.Stapled(), nil); len(stapled) > 0 {
				if err := writeFile(store.StapleFile(name), stapled); err != nil {
					return nil, err
				}
			}
			if err := writeFile(name, b.Raw()); err != nil {
				return nil, err
			}
		}
		bundles = append(bundles, b)
	}
	if r.req.Out != "" {
		if err := writeFile(filepath.Join(r.out, "statements", "rebuild.json"), res.Statement.Raw()); err != nil {
			return nil, err
		}
		report, err := json.MarshalIndent(res.Rebuild, "", "  ")
		if err != nil {
			return nil, err
		}
		if err := writeFile(filepath.Join(r.out, "rebuild.json"), append(report, '\n')); err != nil {
			return nil, err
		}
	}
	if r.req.Attach == nil || r.signer == nil {
		return res, nil
	}
	for _, b := range bundles {
		desc, err := r.attach(ctx, b)
		if err != nil {
			return nil, err
		}
		res.Attached = append(res.Attached, desc...)
	}
	return res, nil
}

func writeFile(name string, raw []byte) error {
	err := store.WriteWhole(name, func(w io.Writer) error {
		_, err := w.Write(raw)
		return err
	})
	if err != nil {
		return fmt.Errorf("writing %q: %w", name, err)
	}
	return nil
}

// attach puts a bundle beside each digest of the original that it speaks of.
// What the second build says of other digests has no place there.
func (r *rebuilding) attach(ctx context.Context, b *attest.Bundle) ([]string, error) {
	_, top, err := r.req.Image.Place.Manifest(ctx, r.req.Image.Digest)
	if err != nil {
		return nil, err
	}
	subjects := []store.Descriptor{top}
	platforms, err := store.Platforms(ctx, r.req.Image.Place, top)
	if err != nil {
		return nil, err
	}
	for _, p := range platforms {
		subjects = append(subjects, p.Descriptor)
	}
	var out []string
	for _, s := range subjects {
		if !b.Statement().Binds(attest.Digest(s.Digest.String())) {
			continue
		}
		desc, err := store.Attach(ctx, r.req.Attach, store.Descriptor{MediaType: s.MediaType, Size: s.Size, Digest: s.Digest}, b)
		if err != nil {
			return nil, err
		}
		out = append(out, desc.Digest.String())
	}
	return out, nil
}

// secondBuild is what the second build says of itself.
type secondBuild struct {
	provenance *attest.Statement
	engine     attestations.ContainerEngine
	bundles    []*attest.Bundle // provenance and records of inputs
}

// second reads the statements that the second build wrote.
func (r *rebuilding) second(digest string) (*secondBuild, error) {
	s := &secondBuild{}
	files, err := filepath.Glob(filepath.Join(r.out, "statements", "*.json"))
	if err != nil {
		return nil, err
	}
	for _, name := range files {
		kind, _, _ := strings.Cut(filepath.Base(name), "-")
		if kind != "provenance" && kind != "inputs" {
			continue
		}
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		st, err := attest.ParseStatement(raw)
		if err != nil {
			return nil, err
		}
		if kind == "provenance" && st.Binds(attest.Digest(digest)) {
			s.provenance = st
		}
		path := filepath.Join(r.out, "bundles", strings.TrimSuffix(filepath.Base(name), ".json")+".sigstore.json")
		bundle, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		b, err := attest.ParseBundle(bundle)
		if err != nil {
			return nil, err
		}
		switch stapled, err := os.ReadFile(store.StapleFile(path)); {
		case err == nil:
			answers, err := attest.SplitOCSP(stapled)
			if err != nil {
				return nil, err
			}
			b = b.Staple(answers...)
		case !errors.Is(err, os.ErrNotExist):
			return nil, err
		}
		s.bundles = append(s.bundles, b)
	}
	if s.provenance == nil {
		return nil, errors.New("reading the second build's statements: there is no provenance of the image")
	}
	var p struct {
		BuildDefinition struct {
			InternalParameters attestations.ContainerBuildInternal `json:"internalParameters"`
		} `json:"buildDefinition"`
	}
	if err := attest.UnmarshalStrict(s.provenance.Predicate, &p); err != nil {
		return nil, err
	}
	s.engine = p.BuildDefinition.InternalParameters.Engine
	return s, nil
}

// changed lists what was not the same for the second build.
func (r *rebuilding) changed(now attestations.ContainerEngine) []attestations.RebuildCircumstance {
	then := r.replay.Chosen.Engine
	var out []attestations.RebuildCircumstance
	for _, c := range []attestations.RebuildCircumstance{
		{Name: "index", Original: string(r.index)},
		{Name: "waxseal", Original: r.replay.Version, Rebuilt: r.req.Deps.Version},
		{Name: "engine.name", Original: then.Name, Rebuilt: now.Name},
		{Name: "engine.buildkit", Original: then.BuildKit, Rebuilt: now.BuildKit},
		{Name: "engine.runc", Original: then.Runc, Rebuilt: now.Runc},
		{Name: "engine.kernel", Original: then.Kernel, Rebuilt: now.Kernel},
		{Name: "engine.snapshotter", Original: then.Snapshotter, Rebuilt: now.Snapshotter},
		{Name: "engine.isolation", Original: then.Isolation, Rebuilt: now.Isolation},
	} {
		if c.Original != c.Rebuilt {
			out = append(out, c)
		}
	}
	return out
}
