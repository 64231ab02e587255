package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// What the record says of what the legacy builder does by itself.
const (
	unwatchedStep  = "docker's legacy builder ran it, where nobody watches"
	cachedStep     = "docker's legacy builder took its result from the cache: what it fetched when it ran is not known"
	fetchedByAdd   = "docker's legacy builder fetched it by itself, where nobody watches"
	confusedSteps  = "a step wrote what docker's legacy builder writes: which step fetched what, and which came from the cache, is not known"
	unwatchedBuild = "docker's legacy builder made it: what its steps fetched, and what it took from its cache, nobody saw"
	daemonsWord    = "docker's legacy builder made it: that each step ran where waxseal watches, and which base images it had, is the daemon's word, as is that nobody else with its socket had a hand in it"
)

// legacyEngine answers for a build of the legacy builder what an engine
// answers for its own.
type legacyEngine struct {
	version string
	seen    *EngineInputs
	watched bool // the steps that ran, or one of them
}

func (e *legacyEngine) Dial(context.Context) (*client.Client, error) {
	return nil, fmt.Errorf("docker's legacy builder is no BuildKit")
}
func (e *legacyEngine) describe(context.Context) (attestations.ContainerEngine, error) {
	return attestations.ContainerEngine{Name: "docker", Version: e.version}, nil
}
func (e *legacyEngine) sbom(ctx context.Context, q sbomQuery) (io.ReadCloser, error) {
	return catalogLayout(ctx, q)
}
func (e *legacyEngine) catalogs() bool { return false }
func (e *legacyEngine) adjust(*client.SolveOpt) (func(*client.SolveStatus), error) {
	return nil, nil
}
func (e *legacyEngine) inputs(context.Context, *built, *record, string) (*EngineInputs, error) {
	return e.seen, nil
}
func (e *legacyEngine) Explain(err error) error { return err }
func (e *legacyEngine) Close() error            { return nil }

// legacyImages brings the images of the legacy builder to where they are
// sealed: from the registry that the command pushed them to, else from the
// daemon. Those that the engine made are told where the daemon pushed them. The
// caller removes the layouts.
func (s *sealer) legacyImages(ctx context.Context, p *legacyProxy, engines []clientImage) (images []clientImage, notes []string, err error) {
	builds, notes := p.list()
	pushes := s.pushes(ctx, p)
	for _, b := range builds {
		seen, watched, err := p.observe(ctx, b)
		if err != nil {
			return images, notes, err
		}
		var info struct{ Version string }
		if err := p.daemon.get(ctx, "/version", &info); err != nil {
			return images, notes, err
		}
		solve := b.solve()
		img := clientImage{
			solve: &solve, engine: &legacyEngine{info.Version, seen, watched},
			records: &records{platforms: map[string]*record{"": b.record(seen)}, total: int32(len(b.steps))},
		}
		names := solve.Exports[0].names()
		pushed, to, err := pushesOf(b, names, pushes)
		if err != nil {
			return images, notes, err
		}
		if img.layout, err = os.MkdirTemp(s.deps.Home, ".tmp-"); err != nil {
			return images, notes, fmt.Errorf("making a temporary folder: %w", err)
		}
		images = append(images, img)
		at := &images[len(images)-1]
		at.exports = []clientEntry{{client.ExporterDocker, map[string]string{"name": strings.Join(names, ",")}}}
		if pushed != "" {
			at.exports = append(at.exports, clientEntry{client.ExporterImage, map[string]string{"name": strings.Join(to, ","), "push": "true"}})
			err = s.takeFromRegistry(ctx, at, b, to[0], pushed)
		} else {
			err = takeFromDocker(ctx, at, b)
		}
		if err != nil {
			return images, notes, err
		}
	}
	for _, push := range pushes {
		is := func(i clientImage) bool { return i.root.Digest.String() == string(push.digest) }
		if i := slices.IndexFunc(engines, is); i >= 0 && push.err == nil {
			engines[i].later = append(engines[i].later, familiar(push.name))
		} else if !slices.ContainsFunc(images, is) {
			notes = append(notes, fmt.Sprintf("what docker push put at %s has no evidence there, since no build that was seen made that manifest: docker buildx build --push gives it some", familiar(push.name)))
		}
	}
	return images, notes, nil
}

// seenPush is a push, and what image the registry has there.
type seenPush struct {
	legacyPush
	image string // the digest of its configuration; "" where err says why
	err   error
}

// pushes asks the registries what image each push put there: names move from
// one image to another, and an image gets others after it was built.
func (s *sealer) pushes(ctx context.Context, p *legacyProxy) []seenPush {
	p.mu.Lock()
	all := slices.Clone(p.pushed)
	p.mu.Unlock()
	var out []seenPush
	for _, push := range all {
		image, err := s.configOf(ctx, push)
		out = append(out, seenPush{push, image, err})
	}
	return out
}

func (s *sealer) configOf(ctx context.Context, push legacyPush) (string, error) {
	place, _, err := registryPlace(push.name)
	if err != nil {
		return "", err
	}
	place.Digest = push.digest
	repo, err := store.Open(ctx, place, store.Options{Insecure: s.req.Seal.Insecure})
	if err != nil {
		return "", err
	}
	raw, _, err := repo.Manifest(ctx, push.digest)
	if err != nil {
		return "", err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return "", fmt.Errorf("reading image %s: %w", push.digest, err)
	}
	return m.Config.Digest.String(), nil
}

// pushesOf finds the manifest by which a build's image was pushed first, and
// under which names; none where it was not. An error is why nobody can tell of
// one of the names that the build gave it.
func pushesOf(b *legacyBuild, names []string, all []seenPush) (d attest.Digest, to []string, err error) {
	for _, p := range all {
		name := familiar(p.name)
		i := slices.IndexFunc(names, func(n string) bool { return fullName(n) == p.name })
		if i >= 0 {
			name = names[i]
		}
		switch {
		case p.err != nil && i >= 0:
			err = p.err
		case p.err == nil && b.made(p.image, p.digest) && (d == "" || d == p.digest):
			d, to = p.digest, append(to, name)
		}
	}
	if d != "" {
		err = nil
	}
	return d, to, err
}

// takeFromRegistry copies what the command pushed, which must be the image that
// was built.
func (s *sealer) takeFromRegistry(ctx context.Context, img *clientImage, b *legacyBuild, name string, d attest.Digest) error {
	place, _, err := registryPlace(name)
	if err != nil {
		return err
	}
	place.Digest = d
	repo, err := store.Open(ctx, place, store.Options{Insecure: s.req.Seal.Insecure})
	if err != nil {
		return err
	}
	if err := fetchImage(ctx, repo, d, img.layout); err != nil {
		return err
	}
	return b.check(img, d)
}

// takeFromDocker copies the image out of the daemon.
func takeFromDocker(ctx context.Context, img *clientImage, b *legacyBuild) error {
	if err := saveFromDocker(ctx, b.image, img.layout); err != nil {
		return err
	}
	raw, err := readSmall(filepath.Join(img.layout, "index.json"), attest.MaxManifest)
	if err != nil {
		return err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return err
	}
	if len(index.Manifests) != 1 {
		return errNoLegacyImage
	}
	return b.check(img, attest.Digest(index.Manifests[0].Digest))
}

// made reports whether the builder made the image of that configuration and
// manifest: its word is the digest of one or, where the daemon keeps its images in
// the store of containerd, of the other.
func (b *legacyBuild) made(config string, manifest attest.Digest) bool {
	return b.image != "" && (b.image == config || b.image == string(manifest))
}

// check makes the manifest the image's root, which must be what the builder said
// it made.
func (b *legacyBuild) check(img *clientImage, d attest.Digest) error {
	root := ocispec.Descriptor{Digest: digest.Digest(d)}
	var m ocispec.Manifest
	if err := readJSONBlob(img.layout, root, &m); err != nil {
		return err
	}
	if !b.made(m.Config.Digest.String(), d) {
		return fmt.Errorf("the image %s has the configuration %s, and the builder made %s", d, m.Config.Digest, b.image)
	}
	st, err := os.Stat(filepath.Join(img.layout, filepath.FromSlash(blobPath(root.Digest))))
	if err != nil {
		return err
	}
	root.MediaType, root.Size = m.MediaType, st.Size()
	if root.MediaType == "" {
		root.MediaType = ocispec.MediaTypeImageManifest
	}
	img.root = root
	return nil
}

// record is what is known of the build, in the form of BuildKit's record.
func (b *legacyBuild) record(seen *EngineInputs) *record {
	r := &record{Dockerfiles: b.files()}
	for _, src := range seen.Sources {
		if src.Kind == "image" {
			_, hex, _ := strings.Cut(src.Digest, ":")
			r.Dependencies = append(r.Dependencies, recordedInput{URI: src.URI, Digest: map[string]string{"sha256": hex}})
		}
	}
	return r
}

func (b *legacyBuild) files() []recordedFile {
	if b.dockerfile == nil {
		return nil
	}
	name := b.query.Get("dockerfile")
	if name == "" {
		name = "Dockerfile"
	}
	return []recordedFile{{Filename: name, Data: b.dockerfile}}
}

// solve is the build in the form of BuildKit's.
func (b *legacyBuild) solve() clientSolve {
	q := b.query
	a := map[string]string{"legacy-builder": "docker"}
	for from, to := range map[string]string{"dockerfile": "filename", "target": "target", "platform": "platform"} {
		if v := q.Get(from); v != "" {
			a[to] = v
		}
	}
	if q.Get("nocache") == "1" || q.Get("nocache") == "true" {
		a["no-cache"] = ""
	}
	if n := q.Get("networkmode"); n == "none" || n == "host" {
		a["force-network-mode"] = n
	}
	for from, prefix := range map[string]string{"buildargs": "build-arg:", "labels": "label:"} {
		values := map[string]*string{}
		if json.Unmarshal([]byte(q.Get(from)), &values) != nil {
			continue // the daemon has refused it
		}
		for k, v := range values {
			if v != nil {
				a[prefix+k] = *v
			}
		}
	}
	return clientSolve{
		Ref: b.id, Attrs: a, StartedOn: b.started, FinishedOn: b.finished,
		Exports: []clientEntry{{client.ExporterDocker, map[string]string{"name": strings.Join(q["t"], ",")}}},
	}
}

// inspected is what the daemon knows of an image.
type inspected struct {
	ID          string   `json:"Id"`          //nolint:tagliatelle // Docker's own
	RepoDigests []string `json:"RepoDigests"` //nolint:tagliatelle // Docker's own
}

// observe is what could be seen of a build: the context as it was sent, base
// images as the daemon had them, and what reached the steps; watched where one
// of them ran in a network of ours, or there was none to run.
func (p *legacyProxy) observe(ctx context.Context, b *legacyBuild) (seen *EngineInputs, watched bool, err error) {
	seen = &EngineInputs{Sources: []attestations.InputSource{}, Steps: []attestations.InputStep{}}
	seen.Sources = append(seen.Sources, attestations.InputSource{Kind: "context", URI: attestations.DependencyContext, Digest: string(b.digest()), Size: b.size})
	bases, err := p.bases(ctx, b)
	if err != nil {
		return nil, false, err
	}
	seen.Sources = append(seen.Sources, bases...)
	gap := func(kind, detail string) {
		seen.Gaps = append(seen.Gaps, attestations.InputGap{Kind: kind, Detail: detail})
	}
	var net *legacySeen
	why := b.unwatched
	if b.network != nil {
		if net, err = b.network.wait(ctx); err != nil {
			why = err.Error()
		} else if len(net.Steps) != len(b.steps)+1 {
			net, why = nil, "the gateway's record has other steps"
		}
	}
	if net == nil {
		gap(attestations.GapForeignEngine, unwatchedBuild+" ("+why+")")
	} else {
		seen.Gateway = net.Gateway
		gap(attestations.GapSource, daemonsWord)
	}
	seen.Steps = b.judge(net)
	watched = net != nil && (len(seen.Steps) == 0 || slices.ContainsFunc(seen.Steps, func(st attestations.InputStep) bool { return st.Verdict != attestations.VerdictUnobserved }))
	if b.query.Get("remote") != "" {
		gap(attestations.GapSource, "the daemon fetched the context itself, from "+cleanURL(b.query.Get("remote")))
	}
	if b.dockerfile == nil {
		gap(attestations.GapSource, "the Dockerfile is not known: it is not the one plain file of its name in what was sent")
	}
	if len(b.steps) == 0 {
		gap(attestations.GapSource, "the build was quiet: which base images it took, and which results of its cache, is not known")
	}
	return seen, watched, nil
}

// bases are the base images, by the digest that their registry has for them.
func (p *legacyProxy) bases(ctx context.Context, b *legacyBuild) ([]attestations.InputSource, error) {
	var out []attestations.InputSource
	stages := map[string]bool{}
	for _, f := range b.froms {
		base, name := b.stage(f.step)
		earlier := base != "" && stages[strings.ToLower(base)]
		if name != "" {
			stages[strings.ToLower(name)] = true
		}
		if earlier {
			continue
		}
		var img inspected
		if err := p.daemon.get(ctx, "/images/"+f.id+"/json", &img); err != nil {
			return nil, err
		}
		src := img.source(base)
		if _, err := attest.ParseDigest(src.Digest); err != nil {
			return nil, fmt.Errorf("reading the base image of %q: %w", clipLine(f.step), err)
		}
		out = append(out, src)
	}
	return out, nil
}

// source is the image as a base that was called so: by the digest that the
// registry of that name has for it, else by its own under no name.
func (i *inspected) source(base string) attestations.InputSource {
	unknown := attestations.InputSource{Kind: "image", URI: "pkg:docker/unknown", Digest: i.ID}
	want, err := reference.ParseDockerRef(base)
	if err != nil {
		return unknown
	}
	for _, name := range i.RepoDigests {
		has, err := reference.ParseDockerRef(name)
		if err != nil || has.Name() != want.Name() {
			continue
		}
		d, ok := has.(reference.Digested)
		if asked, exact := want.(reference.Digested); ok && (!exact || asked.Digest() == d.Digest()) {
			return attestations.InputSource{Kind: "image", URI: dockerPURL(base), Ref: reference.FamiliarString(want), Digest: d.Digest().String()}
		}
	}
	return unknown
}

// stage reads a FROM as the builder does: which image it names, with the
// arguments that stand before all stages, and what the stage is called. Where
// the image cannot be told, base is "".
func (b *legacyBuild) stage(step string) (base, name string) {
	given := map[string]*string{}
	_ = json.Unmarshal([]byte(b.query.Get("buildargs")), &given) // the daemon has read it
	lex, env := shell.NewLex('\\'), []string(nil)
	expand := func(word string) (string, error) {
		v, _, err := lex.ProcessWord(word, shell.EnvsFromSlice(env))
		return v, err
	}
	for i := range b.steps {
		if !b.steps[i].is("ARG") {
			break
		}
		arg, ok := instructionOf(b.steps[i].text).(*instructions.ArgCommand)
		if !ok || arg.Expand(expand) != nil {
			return "", ""
		}
		for _, a := range arg.Args {
			if v := given[a.Key]; v != nil {
				a.Value = v
			}
			if a.Value != nil {
				env = append(env, a.Key+"="+*a.Value)
			}
		}
	}
	from, ok := instructionOf(step).(*instructions.Stage)
	if !ok {
		return "", ""
	}
	base, err := expand(from.BaseName)
	if err != nil {
		return "", from.Name
	}
	return base, from.Name
}

// instructionOf reads one line of a Dockerfile, nil where it is none.
func instructionOf(line string) any {
	read, err := parser.Parse(strings.NewReader(line))
	if err != nil || len(read.AST.Children) != 1 {
		return nil
	}
	in, err := instructions.ParseInstruction(read.AST.Children[0])
	if err != nil {
		return nil
	}
	return in
}

// judge is the record of the steps; net is nil where nobody watched.
func (b *legacyBuild) judge(net *legacySeen) []attestations.InputStep {
	out := []attestations.InputStep{}
	add := func(i int, name string, st attestations.InputStep, gaps ...string) {
		st.ID, st.Name = string(attest.DigestOf(fmt.Appendf(nil, "%s %d %s", b.id, i, name))), clipLine(name)
		st.Gaps = slices.Clone(st.Gaps)
		for _, g := range gaps {
			st.Gaps = append(st.Gaps, attestations.InputGap{Kind: attestations.GapForeignEngine, Detail: g})
		}
		st.Verdict = attestations.WorstVerdict([]attestations.InputStep{st}, nil)
		out = append(out, st)
	}
	if net != nil {
		if first := net.Steps[0]; len(b.steps) == 0 {
			add(0, "all steps of a quiet build", first)
		} else if !silent(&first) {
			add(0, "before the first step", first, confusedSteps)
		}
	}
	for i := range b.steps {
		st := &b.steps[i]
		fetches := st.is("ADD") && (strings.Contains(st.text, "://") || strings.Contains(st.text, "$"))
		runs := st.is("RUN") || st.is("FROM") && (st.ran || st.cached) // a base image can have steps for those who use it
		var rec attestations.InputStep
		if net != nil {
			rec = net.Steps[i+1]
		}
		if !runs && !fetches && silent(&rec) {
			continue
		}
		var gaps []string
		switch {
		case fetches:
			gaps = append(gaps, fetchedByAdd)
		case net == nil:
			gaps = append(gaps, unwatchedStep)
		case st.cached:
			gaps = append(gaps, cachedStep)
		}
		if b.confused && net != nil {
			gaps = append(gaps, confusedSteps)
		}
		add(i+1, st.text, rec, gaps...)
	}
	return out
}

// silent reports whether nothing came from a step, nor was tried by it.
func silent(st *attestations.InputStep) bool {
	return len(st.Requests)+len(st.Refusals)+len(st.Names)+len(st.Gaps) == 0
}
