package build

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/frontend/dockerfile/dfgitutil"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/tonistiigi/fsutil"
	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// contextStore is the name under which the engine asks for packed contexts.
const contextStore = "waxseal"

// inputs is everything that goes into a build, by content: what the engine is
// given, and what the provenance says of it.
type inputs struct {
	described attestations.ContainerContext
	main      *layer // nil when the engine fetches the context itself
	git       *GitState
	epoch     epoch
	syntax    string

	attrs  map[string]string
	states map[string]llb.State
	mounts map[string]fsutil.FS
	stores map[string]content.Store

	dependencies []dependency
	given        []given // what of it comes from this machine, for the store
	// ours maps the digest of an image that we made or opened to the name of
	// the dependency that already stands for it.
	ours map[string]string

	contexts *blobs
	cleanups []func()
}

// epoch is the time that everything in the image gets, and who chose it.
type epoch struct {
	value string // seconds, "context" for the time of a git context, "" for none
	from  string // "build-arg", "environment" or "commit"
}

// time is nil when there is no epoch or it is known only to the engine.
func (e epoch) time() *time.Time {
	n, err := strconv.ParseInt(e.value, 10, 64)
	if err != nil {
		return nil
	}
	t := time.Unix(n, 0).UTC()
	return &t
}

func (in *inputs) close() {
	for _, f := range in.cleanups {
		f()
	}
}

// preparer gathers inputs.
type preparer struct {
	req    *Request
	deps   *Deps
	shown  *progress
	in     *inputs
	notes  *notes
	tmpDir string
	lock   string // the lock file, which is part of no context
}

// prepare reads all inputs that lie on this machine.
func (p *preparer) prepare(ctx context.Context) (*inputs, error) {
	p.in = &inputs{
		attrs: map[string]string{}, states: map[string]llb.State{}, mounts: map[string]fsutil.FS{},
		stores: map[string]content.Store{}, ours: map[string]string{}, contexts: &blobs{},
	}
	p.in.stores[contextStore] = p.in.contexts
	if err := p.everything(ctx); err != nil {
		p.in.close()
		return nil, err
	}
	return p.in, nil
}

func (p *preparer) everything(ctx context.Context) error {
	if err := p.givenEpoch(); err != nil {
		return err
	}
	if v, ok := p.req.Source.Args["BUILDKIT_SYNTAX"]; ok {
		if err := checkSyntax(v); err != nil {
			return err
		}
	}
	if err := p.mainContext(ctx); err != nil {
		return err
	}
	for i, name := range sortedKeys(p.req.Source.Named) {
		if err := p.namedContext(ctx, i, name, p.req.Source.Named[name]); err != nil {
			return err
		}
	}
	return nil
}

// givenEpoch takes SOURCE_DATE_EPOCH from the build arguments or the
// environment. An empty build argument switches it off.
func (p *preparer) givenEpoch() error {
	v, ok := p.req.Source.Args["SOURCE_DATE_EPOCH"]
	from := "build-arg"
	if !ok {
		v, from = p.deps.env("SOURCE_DATE_EPOCH"), "environment"
		ok = v != ""
	}
	if !ok {
		return nil
	}
	if v != "" && v != "context" {
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			return UsageError{fmt.Errorf("SOURCE_DATE_EPOCH %q from the %s is no number of seconds since 1970", v, from)}
		}
	}
	p.in.epoch = epoch{v, from}
	return nil
}

func (p *preparer) mainContext(ctx context.Context) error {
	if p.req.Source.Sealed != nil {
		if done, err := p.sealedContext(ctx); done || err != nil {
			return err
		}
		return p.remoteContext(p.req.contextArg(), fmt.Errorf("context: %w", ErrNotKept))
	}
	arg := p.req.contextArg()
	if arg == "-" {
		return p.stdinContext(ctx)
	}
	fi, err := os.Stat(arg)
	switch {
	case err == nil && fi.IsDir():
		return p.folderContext(ctx, arg)
	case err == nil:
		err = hinted(fmt.Errorf("context %q is a file, not a folder", arg), "give the folder, and the Dockerfile with -f")
	default:
		err = hinted(fmt.Errorf("context %q: no such folder, and no git or http URL", arg), "give a folder, a git or tarball URL, or - for standard input")
	}
	return p.remoteContext(arg, err)
}

// ErrNotKept is evidence that names no bytes for what lay on the machine of the
// first build. Whoever wrote it must not choose a folder of this one.
var ErrNotKept = errors.New("the record of inputs does not name it, and nothing of this machine takes its place")

// remoteContext takes a context that the engine fetches; what is none is the
// error other.
func (p *preparer) remoteContext(arg string, other error) error {
	if ref, isGit, gitErr := dfgitutil.ParseGitRef(arg); isGit {
		if gitErr != nil {
			return UsageError{fmt.Errorf("context %q: %w", cleanURL(arg), gitErr)}
		}
		return p.gitContext(arg, ref)
	}
	if strings.HasPrefix(arg, "https://") || strings.HasPrefix(arg, "http://") {
		p.in.described = attestations.ContainerContext{Kind: "url", URI: cleanURL(arg)}
		p.in.attrs["context"] = arg
		return p.remoteDockerfile()
	}
	return other
}

// folderContext packs a folder: its ignore file, its git state, its files.
func (p *preparer) folderContext(ctx context.Context, dir string) error {
	p.in.described = attestations.ContainerContext{Kind: "directory"}
	name, dockerfile, err := p.readDockerfile(dir)
	if err != nil {
		return err
	}
	if err := p.useDockerfile(filepath.Base(name), dockerfile); err != nil {
		return err
	}
	ignoreFor := name
	if p.req.Source.Dockerfile == "-" {
		ignoreFor = ""
	}
	type state struct {
		git *GitState
		err error
	}
	tree, err := p.walk(ctx, dir, ignoreFor)
	if err != nil {
		return err
	}
	head, err := gitHead(ctx, dir)
	if err != nil {
		p.notes.add("git state unknown: %v", err)
	}
	if head != nil && p.in.epoch == (epoch{}) {
		p.in.epoch = epoch{strconv.FormatInt(head.Time, 10), "commit"}
	}
	ready := make(chan state, 1)
	go func() {
		if head == nil {
			ready <- state{}
			return
		}
		err := head.details(ctx, dir, tree.has())
		ready <- state{head, err}
	}()
	l, err := p.pack(ctx, "[internal] read build context", tree)
	s := <-ready
	if err != nil {
		return err
	}
	p.in.main = l
	if s.err != nil {
		p.notes.add("git state unknown: %v", s.err)
		s.git = nil
	}
	p.in.git = s.git
	return p.useContext(l, tree)
}

func (p *preparer) walk(ctx context.Context, dir, dockerfile string) (*tree, error) {
	ignore, name, err := readIgnore(dir, dockerfile)
	if err != nil {
		return nil, err
	}
	except := []string{p.lock}
	for _, key := range p.req.Seal.KeyFiles {
		except = append(except, key)
		if real, err := filepath.EvalSymlinks(key); err == nil {
			except = append(except, real)
		}
	}
	t, err := walkFolder(ctx, dir, ignore, name, except...)
	if err != nil {
		return nil, err
	}
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	for _, left := range t.left {
		if left != below(root, p.lock) {
			p.notes.add("the private key %q lies in the build context and was left out of it; a place elsewhere is safer", left)
		}
	}
	for _, s := range t.skipped {
		p.notes.add("context file %q is a socket and was left out", s)
	}
	return t, nil
}

func (p *preparer) pack(ctx context.Context, name string, t *tree) (*layer, error) {
	s := p.shown.begin(name)
	l, err := newLayer(ctx, t, p.in.epoch.time(), s.count)
	if err != nil {
		return nil, s.end(err)
	}
	s.say("%d files, %d bytes", l.files, l.bytes)
	return l, s.end(nil)
}

// useContext hands l to the frontend as the main context.
func (p *preparer) useContext(l *layer, t *tree) error {
	st, err := p.state(l, attestations.DependencyContext, "[internal] load build context")
	if err != nil {
		return err
	}
	p.in.states["context"] = st
	if t != nil && t.ignore != nil {
		p.in.dependencies = append(p.in.dependencies, dependency{
			Name: attestations.DependencyDockerignore, Digest: sha256Of(t.ignore),
			Annotations: map[string]any{"path": t.ignoreName},
		})
	}
	return nil
}

// state makes l an image that the engine can read, notes it as a dependency,
// and returns it as a source.
func (p *preparer) state(l *layer, name, shown string) (llb.State, error) {
	d, err := p.in.contexts.imageOf(l)
	if err != nil {
		return llb.State{}, err
	}
	p.in.ours[d.Encoded()] = name
	p.in.dependencies = append(p.in.dependencies, dependency{
		Name: name, MediaType: attestations.ContextManifestMediaType,
		Digest:      map[string]string{"sha256": l.manifest.Hex()},
		Annotations: map[string]any{"files": l.files, "bytes": l.bytes, "layer": string(l.digest)},
	})
	g := given{layer: l, source: attestations.InputSource{
		Kind: "context", URI: name, Digest: string(l.manifest), Tree: string(l.digest), Size: l.size,
	}}
	if strings.HasPrefix(name, attestations.DependencyNamedContext+":") {
		g.source.Kind = "named-context"
	}
	p.in.given = append(p.in.given, g)
	return llb.OCILayout("waxseal/context@"+d.String(),
		llb.OCIStore("", contextStore),
		llb.Platform(ocispec.Platform{OS: contextOS, Architecture: contextArch}),
		llb.WithCustomName(shown)), nil
}

func (p *preparer) gitContext(arg string, ref *dfgitutil.GitRef) error {
	p.in.described = attestations.ContainerContext{Kind: "git", URI: cleanURL(arg)}
	p.in.attrs["context"] = arg
	if ref.SubDir != "" && !p.req.Source.Sealed.byClient() {
		// BuildKit v0.33 cannot date the files of a git subfolder by their commit.
		// The whole repository as the context, narrowed afterwards, is the same.
		p.in.attrs["context"] = withoutSubdir(arg)
		p.in.attrs["contextsubdir"] = ref.SubDir
		if p.req.Source.Dockerfile != "-" {
			name := p.req.Source.Dockerfile
			if name == "" {
				name = "Dockerfile"
			}
			p.in.attrs["filename"] = path.Join(ref.SubDir, name)
		}
	}
	if p.in.epoch == (epoch{}) {
		// Only the engine sees the commit; it takes the time from there.
		p.in.epoch = epoch{"context", "commit"}
	}
	return p.remoteDockerfile()
}

// withoutSubdir is a git URL without its subfolder, in either way of giving one.
func withoutSubdir(arg string) string {
	base, fragment, _ := strings.Cut(arg, "#")
	if u, err := url.Parse(base); err == nil && u.RawQuery != "" {
		q := u.Query()
		q.Del("subdir")
		u.RawQuery = q.Encode()
		base = u.String()
	}
	if rev, _, _ := strings.Cut(fragment, ":"); rev != "" {
		return base + "#" + rev
	}
	return base
}

// remoteDockerfile is the Dockerfile of a context that the engine fetches: a
// path in that context, or standard input.
func (p *preparer) remoteDockerfile() error {
	f := p.req.Source.Dockerfile
	if f != "-" {
		if f != "" && p.in.attrs["filename"] == "" {
			p.in.attrs["filename"] = f
		}
		return nil
	}
	raw, err := readAtMost(p.deps.stdin(), maxDockerfile)
	if err != nil {
		return fmt.Errorf("reading the Dockerfile from standard input: %w", err)
	}
	dir, err := os.MkdirTemp(p.tmpDir, "dockerfile-")
	if err != nil {
		return err
	}
	p.in.cleanups = append(p.in.cleanups, func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), raw, 0o600); err != nil {
		return err
	}
	mount, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	// The frontend looks for it here rather than in the context it fetches.
	p.in.mounts["dockerfile"] = mount
	p.in.attrs["dockerfilekey"] = "dockerfile"
	return p.noteDockerfile("-", raw)
}

// noteDockerfile makes a Dockerfile part of the provenance, and refuses a
// frontend that is not built in.
func (p *preparer) noteDockerfile(name string, raw []byte) error {
	p.in.syntax = syntaxOf(raw)
	if err := checkSyntax(p.in.syntax); err != nil {
		return err
	}
	p.in.dependencies = append(p.in.dependencies, dependency{
		Name: attestations.DependencyDockerfile, Digest: sha256Of(raw), Annotations: map[string]any{"path": name},
	})
	p.in.given = append(p.in.given, given{raw: raw, source: attestations.InputSource{
		Kind: "dockerfile", URI: name,
		Digest: string(attest.DigestOf(raw)), Size: int64(len(raw)),
	}})
	return nil
}

// useDockerfile hands a Dockerfile's bytes to the frontend.
func (p *preparer) useDockerfile(name string, raw []byte) error {
	if err := p.noteDockerfile(name, raw); err != nil {
		return err
	}
	if name == "-" {
		name = "Dockerfile"
	}
	p.in.attrs["filename"] = name
	p.in.states["dockerfile"] = llb.Scratch().File(llb.Mkfile(name, 0o644, raw),
		llb.WithCustomName("[internal] load build definition from "+name))
	return nil
}

// readDockerfile finds the Dockerfile of a folder as docker does.
func (p *preparer) readDockerfile(dir string) (name string, raw []byte, err error) {
	f := p.req.Source.Dockerfile
	switch {
	case f == "-":
		raw, err := readAtMost(p.deps.stdin(), maxDockerfile)
		if err != nil {
			return "", nil, fmt.Errorf("reading the Dockerfile from standard input: %w", err)
		}
		return "-", raw, nil
	case strings.HasPrefix(f, "http://") || strings.HasPrefix(f, "https://"):
		return "", nil, UsageError{fmt.Errorf("reading Dockerfile %q: a URL is not supported; download it, or use the URL as the context", cleanURL(f))}
	}
	name = dockerfilePath(dir, f)
	raw, err = readSmall(name, maxDockerfile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && f != "":
		return "", nil, fmt.Errorf("reading Dockerfile %q: no such file", f)
	case errors.Is(err, fs.ErrNotExist):
		return "", nil, hinted(fmt.Errorf("there is no Dockerfile in %q", dir), "write one there, or name it with -f")
	case err != nil:
		return "", nil, fmt.Errorf("reading Dockerfile: %w", err)
	}
	return name, raw, nil
}

// stdinContext reads a context archive, or a Dockerfile without a context.
func (p *preparer) stdinContext(ctx context.Context) error {
	in := bufio.NewReaderSize(p.deps.stdin(), 64<<10)
	head, err := in.Peek(1024)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading standard input: %w", err)
	}
	if len(bytes.TrimSpace(head)) == 0 {
		return hinted(errors.New("standard input is empty"), "pipe a tar archive or a Dockerfile into waxseal build -")
	}
	if !isArchive(head) {
		raw, err := readAtMost(in, maxDockerfile)
		if err != nil {
			return fmt.Errorf("reading the Dockerfile from standard input: %w", err)
		}
		if p.req.Source.Dockerfile != "" {
			return UsageError{errors.New("standard input is a Dockerfile, and -f names another")}
		}
		p.in.described = attestations.ContainerContext{Kind: "none"}
		if err := p.useDockerfile("-", raw); err != nil {
			return err
		}
		l, err := newLayer(ctx, &tree{}, p.in.epoch.time(), nil)
		if err != nil {
			return err
		}
		p.in.main = l
		return p.useContext(l, nil)
	}
	p.in.described = attestations.ContainerContext{Kind: "tar"}
	spool, err := os.CreateTemp(p.tmpDir, "context-")
	if err != nil {
		return fmt.Errorf("spooling standard input: %w", err)
	}
	os.Remove(spool.Name())
	p.in.cleanups = append(p.in.cleanups, func() { spool.Close() })
	s := p.shown.begin("[internal] read build context from standard input")
	t, err := readArchive(ctx, in, spool, s.count)
	if s.end(err) != nil {
		return err
	}
	name, raw, err := p.archivedDockerfile(t)
	if err != nil {
		return err
	}
	if err := p.useDockerfile(name, raw); err != nil {
		return err
	}
	l, err := p.pack(ctx, "[internal] pack build context", t)
	if err != nil {
		return err
	}
	p.in.main = l
	return p.useContext(l, nil)
}

func (p *preparer) archivedDockerfile(t *tree) (string, []byte, error) {
	names := []string{"Dockerfile", "dockerfile"}
	if f := p.req.Source.Dockerfile; f != "" {
		names = []string{path.Clean(filepath.ToSlash(f))}
	}
	for _, n := range names {
		e := t.find(n)
		if e == nil || !e.mode.IsRegular() {
			continue
		}
		f, err := t.open(e)
		if err != nil {
			return "", nil, err
		}
		defer f.Close()
		raw, err := readAtMost(f, maxDockerfile)
		return path.Base(n), raw, err
	}
	return "", nil, hinted(fmt.Errorf("there is no %q in the archive on standard input", names[0]), "name the Dockerfile with -f, as a path in the archive")
}

// namedContext takes one --build-context.
func (p *preparer) namedContext(ctx context.Context, i int, name, value string) error {
	key := "context:" + name
	dependencyName := attestations.DependencyNamedContext + ":" + name
	sealed := p.req.Source.Sealed != nil
	if sealed {
		if done, err := p.sealedNamed(i, name); done || err != nil {
			return err
		}
	}
	if remote, err := isFetched(value); remote && (sealed || !isFolder(value)) {
		if err != nil {
			return UsageError{fmt.Errorf("build context %s=%s: %w", name, cleanURL(value), err)}
		}
		p.in.attrs[key] = value
		return nil
	}
	if sealed {
		return fmt.Errorf("build context %q: %w", name, ErrNotKept)
	}
	scheme, rest, _ := strings.Cut(value, ":")
	switch scheme {
	case "oci", "oci-layout":
		return p.layoutContext(i, name, strings.TrimPrefix(rest, "//"))
	case "docker":
		return p.dockerContext(ctx, i, name, rest)
	case "target":
		return UsageError{fmt.Errorf("build context %s=%s: target: is a thing of bake files only", name, value)}
	}
	if !isFolder(value) {
		return hinted(fmt.Errorf("build context %s=%s: no such folder", name, value), "give a folder, a URL, docker-image://REF, oci:LAYOUT[:TAG] or docker:NAME")
	}
	t, err := p.walk(ctx, value, "")
	if err != nil {
		return fmt.Errorf("build context %q: %w", name, err)
	}
	l, err := p.pack(ctx, "[internal] read build context "+name, t)
	if err != nil {
		return fmt.Errorf("build context %q: %w", name, err)
	}
	st, err := p.state(l, dependencyName, "[context "+name+"] load from client")
	if err != nil {
		return err
	}
	input := "named-" + strconv.Itoa(i)
	p.in.states[input] = st
	p.in.attrs[key] = "input:" + input
	return nil
}

// isFetched reports whether the engine fetches a named context by itself.
func isFetched(value string) (bool, error) {
	switch scheme, _, _ := strings.Cut(value, ":"); scheme {
	case "docker-image", "http", "https", "git", "ssh":
		return true, nil
	}
	_, isGit, err := dfgitutil.ParseGitRef(value)
	return isGit, err
}

// layoutContext takes PATH[:TAG][@DIGEST] of an OCI layout.
func (p *preparer) layoutContext(i int, name, ref string) error {
	dir, tag, d, err := splitLayout(ref)
	if err != nil {
		return fmt.Errorf("build context %q: %w", name, err)
	}
	if d == "" {
		root, err := layoutRoot(dir, tag)
		if err != nil {
			return fmt.Errorf("build context %q: %w", name, err)
		}
		d = root.Digest
	}
	if err := p.useLayout(i, name, dir, d, dependency{
		URI: "pkg:oci/" + path.Base(filepath.ToSlash(filepath.Clean(dir))) + "@" + strings.Replace(d.String(), ":", "%3A", 1),
	}); err != nil {
		return fmt.Errorf("build context %q: OCI layout %q has no image %s", name, dir, d)
	}
	return nil
}

// dockerContext takes an image of the Docker daemon. The provenance names it
// as the daemon does, by its ID: the manifest may have been made just now.
func (p *preparer) dockerContext(ctx context.Context, i int, name, image string) error {
	dir, err := os.MkdirTemp(p.tmpDir, ".tmp-")
	if err != nil {
		return err
	}
	p.in.cleanups = append(p.in.cleanups, func() { os.RemoveAll(dir) })
	s := p.shown.begin("[internal] take " + image + " from Docker")
	if err := s.end(saveFromDocker(ctx, image, dir)); err != nil {
		return fmt.Errorf("build context %q: %w", name, err)
	}
	root, err := layoutRoot(dir, "")
	if err != nil {
		return fmt.Errorf("build context %q: taking image %q from Docker: %w", name, image, err)
	}
	dep := dependency{URI: dockerPURL(image)}
	if root.MediaType == ocispec.MediaTypeImageManifest {
		m, err := readManifest(dir, root)
		if err != nil {
			return fmt.Errorf("build context %q: taking image %q from Docker: %w", name, image, err)
		}
		dep.Annotations = map[string]any{"imageID": m.Config.Digest.String()}
	}
	if err := p.useLayout(i, name, dir, root.Digest, dep); err != nil {
		return fmt.Errorf("build context %q: taking image %q from Docker: it has no manifest %s", name, image, root.Digest)
	}
	return nil
}

// dockerPURL names an image of the daemon; an image ID is its own name.
func dockerPURL(image string) string {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return "pkg:docker/" + url.PathEscape(image)
	}
	version := ""
	switch n := named.(type) {
	case reference.Digested:
		version = "@" + strings.Replace(n.Digest().String(), ":", "%3A", 1)
	case reference.Tagged:
		version = "@" + n.Tag()
	}
	return "pkg:docker/" + reference.FamiliarName(named) + version
}

// useLayout hands the image d of an OCI layout to the frontend and notes it as
// dep.
func (p *preparer) useLayout(i int, name, dir string, d digest.Digest, dep dependency) error {
	store := &blobs{layout: dir}
	if _, err := store.Info(context.Background(), d); err != nil {
		return err
	}
	id := "layout-" + strconv.Itoa(i)
	p.in.stores[id] = store
	p.in.attrs["context:"+name] = "oci-layout://" + id + "@" + d.String()
	dep.Name = attestations.DependencyNamedContext + ":" + name
	dep.Digest = map[string]string{d.Algorithm().String(): d.Encoded()}
	p.in.ours[d.Encoded()] = dep.Name
	p.in.dependencies = append(p.in.dependencies, dep)
	p.in.given = append(p.in.given, given{images: dir, source: attestations.InputSource{
		Kind: "named-context", URI: dep.Name, Ref: dep.URI, Digest: d.String(),
	}})
	return nil
}

// splitLayout reads PATH[:TAG][@DIGEST].
func splitLayout(ref string) (dir, tag string, d digest.Digest, err error) {
	dir = ref
	if i := strings.LastIndex(dir, "@"); i >= 0 {
		d = digest.Digest(dir[i+1:])
		if _, err := attest.ParseDigest(string(d)); err != nil {
			return "", "", "", fmt.Errorf("OCI layout %q: %w", ref, err)
		}
		dir = dir[:i]
	}
	if i := strings.LastIndex(dir, ":"); i >= 0 && !strings.Contains(dir[i:], "/") && !isFolder(dir) {
		dir, tag = dir[:i], dir[i+1:]
	}
	if dir == "" {
		return "", "", "", fmt.Errorf("OCI layout %q has no path", ref)
	}
	return dir, tag, d, nil
}

// cleanNamed is a --build-context value without credentials, and without the
// path of a folder, which says nothing elsewhere.
func cleanNamed(v string) string {
	scheme, rest, ok := strings.Cut(v, ":")
	switch {
	case ok && (scheme == "oci" || scheme == "oci-layout"):
		dir, tag, d, err := splitLayout(strings.TrimPrefix(rest, "//"))
		if err != nil {
			return "oci"
		}
		out := "oci:" + filepath.Base(dir)
		if tag != "" {
			out += ":" + tag
		}
		if d != "" {
			out += "@" + d.String()
		}
		return out
	case ok && (scheme == "docker" || scheme == "docker-image"), v == otherTarget:
		return v
	case strings.Contains(v, "://") || strings.HasPrefix(v, "git@"):
		return cleanURL(v)
	}
	if _, isGit, err := dfgitutil.ParseGitRef(v); isGit && err == nil && !isFolder(v) {
		return cleanURL(v)
	}
	return "directory"
}

func isFolder(name string) bool {
	fi, err := os.Stat(name)
	return err == nil && fi.IsDir()
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return raw, nil
}

func sha256Of(b []byte) map[string]string {
	return map[string]string{"sha256": digest.FromBytes(b).Encoded()}
}

// has returns a test for the paths of t, and for folders above them.
func (t *tree) has() func(string) bool {
	paths := make(map[string]struct{}, len(t.entries))
	for i := range t.entries {
		paths[t.entries[i].path] = struct{}{}
	}
	return func(p string) bool {
		_, ok := paths[p]
		return ok
	}
}

// familiar is a tag as docker shows it.
func familiar(tag string) string {
	named, err := reference.ParseNormalizedNamed(tag)
	if err != nil {
		return tag
	}
	return reference.FamiliarString(reference.TagNameOnly(named))
}
