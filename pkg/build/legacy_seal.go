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

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// unwatched is what the record of every step of the legacy builder says.
const unwatched = "docker's legacy builder ran it, where nobody watches"

// legacyEngine answers for a build of the legacy builder what an engine
// answers for its own.
type legacyEngine struct {
	version string
	seen    *EngineInputs
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
// daemon. The caller removes the layouts.
func (s *sealer) legacyImages(ctx context.Context, p *legacyProxy) (images []clientImage, notes []string, err error) {
	builds, notes := p.list()
	for _, b := range builds {
		seen, err := p.observe(ctx, b)
		if err != nil {
			return images, notes, err
		}
		var info struct{ Version string }
		if err := p.get(ctx, "/version", &info); err != nil {
			return images, notes, err
		}
		solve := b.solve()
		img := clientImage{
			solve: &solve, engine: &legacyEngine{info.Version, seen},
			records: &records{platforms: map[string]*record{"": b.record(seen)}, total: int32(len(b.steps))},
		}
		names := solve.Exports[0].names()
		p.mu.Lock()
		var pushed attest.Digest
		for _, n := range names {
			if d, ok := p.pushed[fullName(n)]; ok {
				pushed = d
			}
		}
		p.mu.Unlock()
		if img.layout, err = os.MkdirTemp(s.deps.Home, ".tmp-"); err != nil {
			return images, notes, fmt.Errorf("making a temporary folder: %w", err)
		}
		images = append(images, img)
		at := &images[len(images)-1]
		if pushed != "" {
			at.exports = []clientEntry{{client.ExporterImage, map[string]string{"name": strings.Join(names, ","), "push": "true"}}}
			err = s.takeFromRegistry(ctx, at, b, names[0], pushed)
		} else {
			at.exports = []clientEntry{{client.ExporterDocker, map[string]string{"name": strings.Join(names, ",")}}}
			err = takeFromDocker(ctx, at, b)
		}
		if err != nil {
			return images, notes, err
		}
	}
	return images, notes, nil
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

// check makes the manifest the image's root; its configuration must be what the
// builder said it made.
func (b *legacyBuild) check(img *clientImage, d attest.Digest) error {
	root := ocispec.Descriptor{Digest: digest.Digest(d)}
	var m ocispec.Manifest
	if err := readJSONBlob(img.layout, root, &m); err != nil {
		return err
	}
	if m.Config.Digest.String() != b.image {
		return fmt.Errorf("the image has the configuration %s, and the builder made %s", m.Config.Digest, b.image)
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

// observe is what could be seen of a build: the context as it was sent, base
// images as the daemon had them, and that nobody watched the steps.
func (p *legacyProxy) observe(ctx context.Context, b *legacyBuild) (*EngineInputs, error) {
	seen := &EngineInputs{
		Sources: []attestations.InputSource{}, Steps: []attestations.InputStep{},
		Gaps: []attestations.InputGap{{Kind: attestations.GapForeignEngine, Detail: "docker's legacy builder made it: what its steps fetched, and what it took from its cache, nobody saw"}},
	}
	seen.Sources = append(seen.Sources, attestations.InputSource{Kind: "context", URI: attestations.DependencyContext, Digest: string(b.digest()), Size: b.size})
	stages := map[string]bool{}
	for _, f := range b.froms {
		words := strings.Fields(f.step)
		earlier := len(words) > 1 && stages[strings.ToLower(words[1])]
		if len(words) == 4 && strings.EqualFold(words[2], "as") {
			stages[strings.ToLower(words[3])] = true
		}
		if earlier {
			continue
		}
		var img inspected
		if err := p.get(ctx, "/images/"+f.id+"/json", &img); err != nil {
			return nil, err
		}
		src := attestations.InputSource{Kind: "image", URI: "pkg:docker/unknown", Digest: img.ID}
		if len(img.RepoTags) > 0 {
			src.URI, src.Ref = dockerPURL(img.RepoTags[0]), familiar(img.RepoTags[0])
		}
		if len(img.RepoDigests) > 0 {
			_, d, _ := strings.Cut(img.RepoDigests[0], "@")
			src.Digest = d
		}
		if _, err := attest.ParseDigest(src.Digest); err != nil {
			return nil, fmt.Errorf("reading the base image of %q: %w", clipLine(f.step), err)
		}
		seen.Sources = append(seen.Sources, src)
	}
	for i, step := range b.steps {
		verb, _, _ := strings.Cut(step, " ")
		if !slices.Contains([]string{"RUN", "ADD"}, strings.ToUpper(verb)) {
			continue
		}
		seen.Steps = append(seen.Steps, attestations.InputStep{
			ID: string(attest.DigestOf(fmt.Appendf(nil, "%s %d %s", b.id, i, step))), Name: clipLine(step), Verdict: attestations.VerdictUnobserved,
			Gaps: []attestations.InputGap{{Kind: attestations.GapForeignEngine, Detail: unwatched}},
		})
	}
	if b.dockerfile == nil {
		seen.Gaps = append(seen.Gaps, attestations.InputGap{Kind: attestations.GapSource, Detail: "the Dockerfile was not found in what was sent"})
	}
	if len(b.steps) == 0 {
		seen.Gaps = append(seen.Gaps, attestations.InputGap{Kind: attestations.GapSource, Detail: "the build was quiet: which base images it took is not known"})
	}
	return seen, nil
}
