package build

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
	"github.com/waxseal/waxseal/pkg/store"
)

// Replay is how an image was built, as its evidence tells: enough to build it
// again from the store of inputs. ReadReplay makes one.
type Replay struct {
	Asked   attestations.ContainerBuild         // what the user asked for
	Chosen  attestations.ContainerBuildInternal // what the platform chose
	Builder string
	Version string                 // of waxseal
	Records []*attestations.Inputs // of each platform
	// Statements are the digests of the statements that held Records.
	Statements []attest.Digest

	deps  []dependency
	store *lock.Store // set by Request
}

// ReadReplay reads the provenance of an image or index, and the records of
// inputs that it names by digest: all of them must be given. The caller has
// made sure that the provenance is to be believed; the records are bound to it.
func ReadReplay(prov *attest.Statement, inputs []*attest.Statement) (*Replay, error) {
	if prov.PredicateType != attestations.ProvenanceV1 {
		return nil, fmt.Errorf("reading provenance: predicate type %q, not %q", prov.PredicateType, attestations.ProvenanceV1)
	}
	var p struct {
		BuildDefinition struct {
			BuildType            string                              `json:"buildType"`
			ExternalParameters   json.RawMessage                     `json:"externalParameters"`
			InternalParameters   attestations.ContainerBuildInternal `json:"internalParameters"`
			ResolvedDependencies []dependency                        `json:"resolvedDependencies"`
		} `json:"buildDefinition"`
		RunDetails struct {
			Builder struct {
				ID      string            `json:"id"`
				Version map[string]string `json:"version"`
			} `json:"builder"`
			Byproducts []dependency `json:"byproducts"`
		} `json:"runDetails"`
	}
	if err := attest.UnmarshalStrict(prov.Predicate, &p); err != nil {
		return nil, fmt.Errorf("reading provenance: %w", err)
	}
	if p.BuildDefinition.BuildType != attestations.ContainerBuildType {
		return nil, fmt.Errorf("reading provenance: its build type is %q: only images that waxseal built can be built again by it", clipLine(p.BuildDefinition.BuildType))
	}
	r := &Replay{
		Chosen: p.BuildDefinition.InternalParameters, Builder: p.RunDetails.Builder.ID,
		Version: p.RunDetails.Builder.Version["waxseal"], deps: p.BuildDefinition.ResolvedDependencies,
	}
	// A parameter that this version does not know would be left out of the
	// second build.
	d := json.NewDecoder(bytes.NewReader(p.BuildDefinition.ExternalParameters))
	d.DisallowUnknownFields()
	if err := d.Decode(&r.Asked); err != nil {
		return nil, fmt.Errorf("reading provenance: external parameters: %w (is waxseal %s newer?)", err, cmp.Or(r.Version, "that made it"))
	}
	for _, b := range p.RunDetails.Byproducts {
		if b.Name != attestations.ByproductInputs {
			continue
		}
		i := slices.IndexFunc(inputs, func(st *attest.Statement) bool { return st.Digest().Hex() == b.Digest["sha256"] })
		if i < 0 {
			return nil, fmt.Errorf("reading provenance: the record of inputs sha256:%s that it names is not attached, or not believed", clipLine(b.Digest["sha256"]))
		}
		rec := &attestations.Inputs{}
		if err := attest.UnmarshalStrict(inputs[i].Predicate, rec); err != nil {
			return nil, fmt.Errorf("reading the record of inputs: %w", err)
		}
		r.Records = append(r.Records, rec)
		r.Statements = append(r.Statements, inputs[i].Digest())
	}
	if len(r.Records) == 0 {
		return nil, errors.New("reading provenance: it names no record of inputs: the image was built before waxseal kept one")
	}
	return r, nil
}

// Lock is the lock that the second build is held to: of all that the first
// took in. What a replay needs of headers goes into st.
func (r *Replay) Lock(st *lock.Store) ([]byte, error) {
	f, err := lock.FromInputs(st, r.Records...)
	if err != nil {
		return nil, fmt.Errorf("making a lock of the record of inputs: %w", err)
	}
	return f.Marshal(), nil
}

// Doubts says in words what of the first build its record does not hold, so
// that a replay may not be able to give it to the steps.
func (r *Replay) Doubts() []string {
	var out []string
	add := func(s string) {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, rec := range r.Records {
		for _, g := range rec.Gaps {
			add(gapText(g))
		}
		for _, st := range rec.Steps {
			for _, g := range st.Gaps {
				add(clipLine(st.Name) + ": " + gapText(g))
			}
			if st.Verdict == attestations.VerdictUnobserved && len(st.Gaps) == 0 {
				add(clipLine(st.Name) + ": nobody watched this step")
			}
		}
	}
	if len(r.Asked.CacheFrom) > 0 {
		add("results came from the caches " + strings.Join(r.Asked.CacheFrom, ", ") + "; the second build runs every step")
	}
	return out
}

// Withheld lists what steps were sent and nobody kept, because a secret stood
// in it: a replay cannot give it to them.
func (r *Replay) Withheld() []string {
	var out []string
	for _, rec := range r.Records {
		for _, st := range rec.Steps {
			for _, q := range st.Requests {
				if line := clipLine(st.Name) + ": " + q.Method + " " + q.URI; q.Withheld && !slices.Contains(out, line) {
					out = append(out, line)
				}
			}
		}
	}
	return out
}

// NeededBlob is bytes that a replay takes from the store.
type NeededBlob struct {
	Digest attest.Digest
	Size   int64  // 0 where it is not known
	What   string // for people
}

// Missing lists what a replay needs and st has not. What an image consists of
// is known only once its manifest is there: after fetching, ask again.
func (r *Replay) Missing(st *lock.Store) ([]NeededBlob, error) {
	n, err := needs(st, r.Records...)
	if err != nil {
		return nil, err
	}
	return n.missing, nil
}

// needs looks in st for everything that a replay of records needs.
func needs(st *lock.Store, records ...*attestations.Inputs) (*need, error) {
	n := &need{store: st, seen: map[attest.Digest]bool{}, images: map[attest.Digest]string{}}
	for _, rec := range records {
		for _, s := range rec.Sources {
			if err := n.source(s); err != nil {
				return nil, err
			}
		}
		for _, step := range rec.Steps {
			for _, q := range step.Requests {
				if q.Size > 0 {
					n.add(q.Digest, q.Size, q.Method+" "+q.URI)
				}
			}
		}
	}
	return n, nil
}

type need struct {
	store   *lock.Store
	seen    map[attest.Digest]bool
	missing []NeededBlob
	there   []attest.Digest
	images  map[attest.Digest]string // the base image that a blob is of, as it was asked for
}

// add notes a digest, and reports whether the store has it. A keyed hash
// stands for bytes that nobody kept; Doubts speaks of those.
func (n *need) add(d string, size int64, what string) bool {
	digest, err := attest.ParseDigest(d)
	if err != nil {
		return false
	}
	there := n.store.Has(digest)
	switch {
	case n.seen[digest]:
	case there:
		n.there = append(n.there, digest)
	default:
		n.missing = append(n.missing, NeededBlob{digest, size, clipLine(what)})
	}
	n.seen[digest] = true
	return there
}

// from is where a blob of a base image lies, too: a registry that has it need
// not be sent it again. The zero value is nowhere.
func (n *need) from(d attest.Digest) store.Reference {
	ref, err := store.Parse(n.images[d])
	if err != nil || ref.Kind != store.Registry {
		return store.Reference{}
	}
	return ref
}

func (n *need) source(s attestations.InputSource) error {
	switch {
	case s.Kind == "image", s.Kind == "named-context" && s.Tree == "":
		what := "image " + cmp.Or(s.Ref, s.URI)
		return eachOfImage(n.store, s.Digest, s.Platform, func(d string, size int64) bool {
			if s.Kind == "image" && size > 0 { // no manifest
				n.images[attest.Digest(d)] = s.Ref
			}
			return n.add(d, size, what)
		})
	case s.Kind == "git":
		if s.Tree != "" {
			n.add(s.Tree, 0, "git "+s.URI)
		}
	case s.Tree != "":
		n.add(s.Digest, 0, "list of files of the "+s.Kind)
		n.add(s.Tree, s.Size, s.Kind+" "+s.URI)
	default:
		n.add(s.Digest, s.Size, s.Kind+" "+s.URI)
	}
	return nil
}

// eachOfImage shows every blob of an image in the store to visit, which says
// whether it is there; of an index only what a platform needs. With no
// platform, of an index all that is there.
func eachOfImage(st *lock.Store, d, platform string, visit func(d string, size int64) bool) error {
	if !visit(d, 0) {
		return nil
	}
	raw, err := readStored(st, attest.Digest(d), attest.MaxManifest)
	if err != nil {
		return err
	}
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := attest.UnmarshalStrict(raw, &m); err != nil {
		return fmt.Errorf("reading image %s in the store: %w", d, err)
	}
	for _, child := range m.Manifests {
		if strings.Contains(child.MediaType, ".index.") || strings.Contains(child.MediaType, "manifest.list") {
			continue // no image has an index in its index
		}
		wanted := platform != "" && child.Platform != nil && sameArchitecture(*child.Platform, platform)
		if platform == "" {
			wanted = st.Has(attest.Digest(child.Digest))
		}
		if !wanted {
			continue
		}
		if err := eachOfImage(st, child.Digest.String(), "", visit); err != nil {
			return err
		}
	}
	if m.Config != nil {
		visit(m.Config.Digest.String(), m.Config.Size)
	}
	for _, l := range m.Layers {
		visit(l.Digest.String(), l.Size)
	}
	return nil
}

func sameArchitecture(p ocispec.Platform, name string) bool {
	want, err := platforms.Parse(name)
	return err == nil && platforms.NewMatcher(want).Match(p)
}

func readStored(st *lock.Store, d attest.Digest, limit int64) ([]byte, error) {
	b, err := st.Open(d)
	if err != nil {
		return nil, fmt.Errorf("reading %s in the store: %w", d, err)
	}
	defer b.Close()
	raw, err := readAtMost(b, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s in the store: %w", d, err)
	}
	if attest.DigestOf(raw) != d {
		return nil, hinted(fmt.Errorf("reading %s in the store: its bytes have another digest", d), "waxseal store verify says what else is damaged")
	}
	return raw, nil
}

// ReplayOptions is what a second build needs that the evidence does not hold.
type ReplayOptions struct {
	Store     *lock.Store
	Lock      string // file with what Lock returned
	Name      string // of the image, as the first build had it; "" for none
	Image     string // folder of the OCI layout that the image goes to
	Out       string // folder for statements and the rest, "" for none
	CacheDir  string // must be empty, so that nothing is reused
	BuilderID string
	Unsigned  bool
	Secrets   []Secret
	SSH       []SSH
	Allow     []string // what steps may have beyond the usual: evidence cannot give itself that
}

// Request is the request for the second build: offline, held to the lock, and
// with the inputs of the first. What must be given again is an error that
// names it.
func (r *Replay) Request(o ReplayOptions) (Request, error) {
	if err := r.checkSecrets(o); err != nil {
		return Request{}, err
	}
	if err := r.checkAllow(o); err != nil {
		return Request{}, err
	}
	annotations, err := r.annotations()
	if err != nil {
		return Request{}, err
	}
	a := r.Asked
	again := *r
	again.store = o.Store
	out := Output{Kind: OutputOCI, Dest: o.Image}
	if o.Name != "" && checkTag(o.Name) == nil {
		out.Names = []string{o.Name}
	}
	for _, v := range a.Outputs {
		k, v, _ := strings.Cut(v, "=")
		if out.Layers == nil {
			out.Layers = map[string]string{}
		}
		out.Layers[k] = v
	}
	if a.KeepTimestamps {
		if out.Layers == nil {
			out.Layers = map[string]string{}
		}
		out.Layers["rewrite-timestamp"] = "false"
	}
	req := Request{
		Source: Source{
			Context: a.Context.URI, Dockerfile: a.Dockerfile, Named: r.named(), Target: a.Target,
			Platforms: a.Platforms, Args: a.BuildArgs, Sealed: &again,
		},
		Image:   Image{Labels: a.Labels, Annotations: annotations},
		Steps:   Steps{Secrets: o.Secrets, SSH: o.SSH, Network: a.Network, AddHosts: a.AddHosts, ShmSize: a.ShmSize, Ulimits: a.Ulimits, Allow: a.Allow},
		Cache:   Cache{None: a.NoCache, Except: a.NoCacheFilter},
		Outputs: []Output{out},
		Seal:    Seal{Unsigned: o.Unsigned, BuilderID: o.BuilderID, SBOM: a.SBOM, Out: o.Out},
		Engine:  EngineChoice{CacheDir: o.CacheDir},
		Inputs:  InputChoice{Mode: attestations.InputsOffline, Lock: o.Lock, Store: o.Store.Dir()},
	}
	// The engine's own platform was another one on another machine.
	if own := platforms.Format(platforms.Normalize(platforms.DefaultSpec())); len(a.Platforms) == 0 && r.Chosen.BuilderPlatform != "" && r.Chosen.BuilderPlatform != own {
		req.Source.Platforms = []string{r.Chosen.BuilderPlatform}
	}
	return req, nil
}

func (r *Replay) checkSecrets(o ReplayOptions) error {
	var lacking []string
	fetched := r.source("git", "") != nil
	for _, id := range r.Asked.Secrets {
		if fetched && strings.HasPrefix(id, "GIT_AUTH_") {
			continue // it was for fetching, which nobody does again
		}
		if !slices.ContainsFunc(o.Secrets, func(s Secret) bool { return s.ID == id }) {
			lacking = append(lacking, "--secret id="+id)
		}
	}
	for _, id := range r.Asked.SSH {
		if !slices.ContainsFunc(o.SSH, func(s SSH) bool { return s.ID == id }) {
			lacking = append(lacking, "--ssh "+id)
		}
	}
	if len(lacking) > 0 {
		return UsageError{hinted(fmt.Errorf("the build used secrets, and nobody keeps those: it cannot be repeated without %s", strings.Join(lacking, ", ")),
			"give them again, as to waxseal build")}
	}
	return nil
}

// checkAllow sees to it that whoever rebuilds grants what leads out of a step.
func (r *Replay) checkAllow(o ReplayOptions) error {
	first := Request{Steps: Steps{Network: r.Asked.Network, Allow: r.Asked.Allow}}
	var lacking []string
	for _, e := range first.entitlements() {
		if !slices.Contains(o.Allow, e) {
			lacking = append(lacking, "--allow "+clipLine(e))
		}
	}
	if len(lacking) > 0 {
		return UsageError{hinted(fmt.Errorf("the build let its steps have what is not kept from this machine: it is not repeated without %s", strings.Join(lacking, ", ")),
			"look at its Dockerfile first; a machine of its own is safer")}
	}
	return nil
}

func (r *Replay) annotations() ([]Annotation, error) {
	var given []string
	for _, name := range sortedKeys(r.Asked.Annotations) {
		given = append(given, name+"="+r.Asked.Annotations[name])
	}
	out, err := ParseAnnotations(given)
	if err != nil {
		return nil, fmt.Errorf("reading provenance: annotations: %w", err)
	}
	return out, nil
}

// source finds an input that lay on the machine of the first build.
func (r *Replay) source(kind, uri string) *attestations.InputSource {
	for _, rec := range r.Records {
		for i := range rec.Sources {
			if s := &rec.Sources[i]; s.Kind == kind && (uri == "" || s.URI == uri) {
				return s
			}
		}
	}
	return nil
}

func (r *Replay) dependency(name string) (dependency, bool) {
	i := slices.IndexFunc(r.deps, func(d dependency) bool { return d.Name == name })
	if i < 0 {
		return dependency{}, false
	}
	return r.deps[i], true
}

// ImportContext reads the context from a folder into st, where the store lacks
// it, and refuses one that is not the context of the first build, byte for
// byte.
func (r *Replay) ImportContext(ctx context.Context, st *lock.Store, dir string) error {
	src := r.source("context", "")
	if src == nil {
		return fmt.Errorf("the context was %q, not a folder", cmp.Or(r.Asked.Context.URI, r.Asked.Context.Kind))
	}
	if r.byClient() {
		return errors.New("the build was given a part of its folder, by another program, with the times that it had: only the store has that")
	}
	name := dockerfilePath(dir, strings.TrimPrefix(r.Asked.Dockerfile, "-"))
	l, err := r.pack(ctx, dir, lockPlace(&Request{Source: Source{Context: dir, Dockerfile: r.Asked.Dockerfile}}))
	if err == nil && string(l.manifest) != src.Digest {
		l, err = r.pack(ctx, dir, "") // with --lock another file was the lock
	}
	if err != nil {
		return err
	}
	if string(l.manifest) != src.Digest {
		return hinted(fmt.Errorf("the folder %q is not the context of the build: its files have the digest %s, the build's had %s", dir, l.manifest, src.Digest),
			"check out the commit that the provenance names, without other changes, and without a lock or a key that the build left out")
	}
	if string(l.digest) != src.Tree {
		return fmt.Errorf("the folder %q has the files of the context, with other times: the build had no SOURCE_DATE_EPOCH, so they are part of it", dir)
	}
	g := given{layer: l}
	if err := g.keep(ctx, st); err != nil {
		return fmt.Errorf("keeping the context in the store: %w", err)
	}
	file := r.source("dockerfile", "")
	if file == nil || st.Has(attest.Digest(file.Digest)) {
		return st.Sync(ctx)
	}
	raw, err := readSmall(name, maxDockerfile)
	if err != nil {
		return fmt.Errorf("reading Dockerfile: %w", err)
	}
	if string(attest.DigestOf(raw)) != file.Digest {
		return fmt.Errorf("the Dockerfile %q is not that of the build", name)
	}
	if err := putOnce(ctx, st, attest.Digest(file.Digest), bytes.NewReader(raw)); err != nil {
		return err
	}
	return st.Sync(ctx)
}

// pack packs a folder as a build's context that the file left is no part of.
func (r *Replay) pack(ctx context.Context, dir, left string) (*layer, error) {
	name := "" // of a Dockerfile that has an ignore file of its own
	if r.Asked.Dockerfile != "-" {
		name = dockerfilePath(dir, r.Asked.Dockerfile)
	}
	ignore, ignoreName, err := readIgnore(dir, name)
	if err != nil {
		return nil, err
	}
	t, err := walkFolder(ctx, dir, ignore, ignoreName, left)
	if err != nil {
		return nil, err
	}
	return newLayer(ctx, t, epoch{value: r.Chosen.SourceDateEpoch}.time(), nil)
}

// sealedContext gives the engine the context of an earlier build. It reports
// false for one that the engine fetches itself, as it did then.
func (p *preparer) sealedContext(ctx context.Context) (done bool, err error) {
	r := p.req.Source.Sealed
	src := r.source("context", "")
	nothing := src == nil && r.byClient() && r.Asked.Context.Kind == "directory" // was taken of it, and so nothing was sent
	fetched := src == nil && !nothing
	// An epoch among the arguments was read with them. That of a commit is
	// known by now, where the engine had to find it out.
	if r.Chosen.EpochFrom != "build-arg" {
		p.in.epoch = epoch{r.Chosen.SourceDateEpoch, r.Chosen.EpochFrom}
	}
	if r.byClient() && p.in.epoch == (epoch{}) {
		p.in.epoch.from = "build-arg" // another program chose none
	}
	file := r.source("dockerfile", "")
	if file == nil && fetched {
		return false, nil // the Dockerfile is in the context
	}
	if file == nil {
		return true, errors.New("the record of inputs names no Dockerfile")
	}
	raw, err := readStored(r.store, attest.Digest(file.Digest), maxDockerfile)
	if err != nil {
		return true, err
	}
	if fetched {
		p.deps.Stdin = bytes.NewReader(raw) // where it came from then
		return false, nil
	}
	p.in.described = r.Asked.Context
	if err := p.useDockerfile(cmp.Or(file.Ref, "Dockerfile"), raw); err != nil {
		return true, err
	}
	if d, ok := r.dependency(attestations.DependencyDockerignore); ok {
		p.in.dependencies = append(p.in.dependencies, d)
	}
	if nothing {
		l, err := newLayer(ctx, &tree{}, p.in.epoch.time(), nil)
		if err != nil {
			return true, err
		}
		return true, p.useContext(l, nil)
	}
	l, err := r.layer(src, attestations.DependencyContext)
	if err != nil {
		return true, err
	}
	if err := p.useContext(l, nil); err != nil {
		return true, err
	}
	p.in.contexts.known[digest.Digest(l.digest)] = storedBlob{r.store, l.digest}
	return true, nil
}

// layer is a packed context that lies in the store.
func (r *Replay) layer(src *attestations.InputSource, name string) (*layer, error) {
	manifest, err := attest.ParseDigest(src.Digest)
	if err != nil {
		return nil, err
	}
	packed, err := attest.ParseDigest(src.Tree)
	if err != nil {
		return nil, err
	}
	size, err := storedBlob{r.store, packed}.length()
	if err != nil {
		return nil, fmt.Errorf("reading %s in the store: %w", name, err)
	}
	l := &layer{tree: &tree{}, size: size, digest: packed, manifest: manifest}
	if d, ok := r.dependency(name); ok {
		l.files, l.bytes = int(number(d.Annotations["files"])), number(d.Annotations["bytes"])
	}
	return l, nil
}

func number(v any) int64 {
	f, _ := v.(float64)
	return int64(f)
}

// sealedNamed gives the engine a named context of an earlier build; false for
// one that the engine fetches itself.
func (p *preparer) sealedNamed(i int, name string) (done bool, err error) {
	r := p.req.Source.Sealed
	full := attestations.DependencyNamedContext + ":" + name
	src := r.source("named-context", full)
	if src == nil {
		return false, nil
	}
	if src.Tree != "" {
		l, err := r.layer(src, full)
		if err != nil {
			return true, err
		}
		st, err := p.state(l, full, "[context "+name+"] load from client")
		if err != nil {
			return true, err
		}
		p.in.contexts.known[digest.Digest(l.digest)] = storedBlob{r.store, l.digest}
		input := fmt.Sprintf("named-%d", i)
		p.in.states[input] = st
		p.in.attrs["context:"+name] = "input:" + input
		return true, nil
	}
	images := &blobs{known: map[digest.Digest]blob{}}
	err = eachOfImage(r.store, src.Digest, src.Platform, func(d string, _ int64) bool {
		parsed, err := attest.ParseDigest(d)
		if err != nil || !r.store.Has(parsed) {
			return false
		}
		images.known[digest.Digest(parsed)] = storedBlob{r.store, parsed}
		return true
	})
	if err != nil {
		return true, err
	}
	id := fmt.Sprintf("layout-%d", i)
	p.in.stores[id] = images
	p.in.attrs["context:"+name] = "oci-layout://" + id + "@" + src.Digest
	dep, ok := r.dependency(full)
	if !ok {
		dep = dependency{Name: full, URI: src.Ref, Digest: map[string]string{"sha256": attest.Digest(src.Digest).Hex()}}
	}
	p.in.ours[attest.Digest(src.Digest).Hex()] = full
	p.in.dependencies = append(p.in.dependencies, dep)
	p.in.given = append(p.in.given, given{source: *src})
	return true, nil
}

// storedBlob is a blob in the store of inputs, as the engine reads it.
type storedBlob struct {
	store *lock.Store
	d     attest.Digest
}

func (b storedBlob) length() (int64, error) {
	f, err := b.store.Open(b.d)
	if err != nil {
		return 0, err
	}
	return f.Size, f.Close()
}

func (b storedBlob) open() (content.ReaderAt, error) {
	f, err := b.store.OpenVerified(b.d)
	if err != nil {
		return nil, err
	}
	at, ok := f.ReadSeekCloser.(io.ReaderAt)
	if !ok {
		f.Close()
		return nil, fmt.Errorf("reading %s in the store: %w", b.d, fs.ErrInvalid)
	}
	return storedReader{f, at}, nil
}

type storedReader struct {
	*lock.Blob
	io.ReaderAt
}

func (r storedReader) Size() int64 { return r.Blob.Size }
