package build

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/urlutil"
	"github.com/waxseal/waxseal/attestations"
)

// Request is one build, as a user asks for it: the flags of docker build and
// what waxseal adds. Its zero value builds "." and is refused for want of a
// decision on signing.
type Request struct {
	Source  Source
	Image   Image
	Steps   Steps
	Cache   Cache
	Outputs []Output
	Seal    Seal
	Engine  EngineChoice
	Inputs  InputChoice
}

// Source is what is built.
type Source struct {
	Context    string            // a folder, a git or tarball URL, or "-" for standard input; "" is "."
	Dockerfile string            // as with --file: a path, or "-"; "" is Dockerfile in the context
	Named      map[string]string // NAME to a folder, URL, docker-image://, oci: or docker: reference
	Target     string
	Platforms  []string // "linux/arm64"; none: the engine's own
	Args       map[string]string
	Sealed     *Replay // an earlier build, whose inputs are taken from the store
}

// Image is what the image carries besides its files.
type Image struct {
	Tags        []string
	Labels      map[string]string
	Annotations []Annotation
}

// Annotation is one OCI annotation and the level it goes to.
type Annotation struct {
	Level    string // "", "manifest", "index", "manifest-descriptor" or "index-descriptor"
	Platform string // only the manifest of this platform; "" for all
	Key      string
	Value    string
}

// name is the annotation's key with its level, as --annotation takes it.
func (a Annotation) name() string {
	if a.Level == "" {
		return a.Key
	}
	if a.Platform != "" {
		return a.Level + "[" + a.Platform + "]:" + a.Key
	}
	return a.Level + ":" + a.Key
}

// Steps is what RUN steps get to see.
type Steps struct {
	Secrets  []Secret
	SSH      []SSH
	Network  string   // "", "default", "none" or "host"
	AddHosts []string // "NAME=IP"
	ShmSize  int64    // bytes
	Ulimits  []string // "NAME=SOFT:HARD"
	Allow    []string // "network.host", "security.insecure": what a RUN may ask for
}

// Secret is a secret a RUN step may mount. Only its ID leaves this machine.
type Secret struct {
	ID   string
	File string
	Env  string
}

// SSH is an agent socket, or keys, a RUN step may mount.
type SSH struct {
	ID    string
	Paths []string
	Raw   bool
}

// Cache is how the build cache is used.
type Cache struct {
	None   bool     // --no-cache
	Except []string // --no-cache-filter
	Pull   bool
	From   []CacheEntry
	To     []CacheEntry
}

// CacheEntry is one place a cache is taken from or written to.
type CacheEntry struct {
	Type  string
	Attrs map[string]string
}

// The kinds of Output.
const (
	OutputLocal  = "local"  // the image's files, into a folder
	OutputTar    = "tar"    // the image's files, as a tar archive
	OutputOCI    = "oci"    // an OCI layout, in a tar archive or (Tar false) a folder
	OutputDocker = "docker" // an archive that docker load reads; without Dest, docker load itself
	OutputImage  = "image"  // the image in waxseal's own store; with Push in its registry
)

// Output is one thing that is done with the result.
type Output struct {
	Kind         string
	Dest         string // a path, or "-" for standard output
	Tar          bool   // for OutputOCI: an archive rather than a folder
	Push         bool
	PushByDigest bool
	Names        []string          // names instead of Image.Tags
	Layers       map[string]string // what changes the image's bytes: compression, force-compression …
	Attrs        map[string]string // for OutputLocal and OutputTar: passed to the exporter
	Annotations  []Annotation
}

// Seal is what is said about the result, by whom, and where it is put.
type Seal struct {
	Unsigned  bool     // write evidence that nobody signs
	KeyFiles  []string // private keys and identity tokens that are files: they are part of no context
	BuilderID string   // "": the unhosted local builder
	SBOM      []string // "spdx", "cyclonedx"
	Out       string   // a folder for everything, "" for none
	Insecure  bool     // plain HTTP or unverified TLS towards registries
}

// EngineChoice is where steps run.
type EngineChoice struct {
	BuildKit string // address of a running BuildKit; "" for waxseal's own engine
	CacheDir string
}

// InputChoice is what may reach the build from outside, and where what did is
// kept. The zero value records everything, in the default places.
type InputChoice struct {
	Mode       string            // attestations.InputsRecord and so on; "" records
	Lock       string            // the lock file; "" is the one beside the Dockerfile
	Store      string            // folder of the bytes; "" is Deps.Store
	AllowHosts []string          // patterns of hosts that may be reached; none: all
	UpstreamCA string            // a PEM file of certificates trusted besides the system's
	Upstreams  map[string]string // NAME[:PORT] to the ADDRESS[:PORT] to connect to instead
	Push       bool              // the bytes go beside a pushed image, too
}

// mode is the mode in force.
func (c InputChoice) mode() string { return cmp.Or(c.Mode, attestations.InputsRecord) }

// enforced reports whether a lock is held against the build.
func (c InputChoice) enforced() bool {
	return c.mode() == attestations.InputsLocked || c.mode() == attestations.InputsOffline
}

// check refuses what cannot be done, before anything is done.
func (r *Request) check(signed bool) error {
	if !signed && !r.Seal.Unsigned {
		return UsageError{hinted(errors.New("nothing to sign with: give --key FILE or --keyless to sign the evidence, or --unsigned to write it unsigned (it then proves nothing)"),
			"\"waxseal key generate\" makes a key pair")}
	}
	if signed && r.Seal.Unsigned {
		return UsageError{errors.New("--key or --keyless and --unsigned exclude each other")}
	}
	if r.Cache.None && len(r.Cache.Except) > 0 {
		return UsageError{errors.New("--no-cache and --no-cache-filter cannot be used together")}
	}
	if r.Source.Context == "-" && r.Source.Dockerfile == "-" {
		return UsageError{errors.New("standard input cannot be both the context and the Dockerfile")}
	}
	for _, t := range r.Image.Tags {
		if err := checkTag(t); err != nil {
			return UsageError{err}
		}
	}
	for _, f := range r.Seal.SBOM {
		if f != "spdx" && f != "cyclonedx" {
			return UsageError{fmt.Errorf("SBOM format %q is not supported: spdx, cyclonedx or none", f)}
		}
	}
	for _, a := range r.annotations() {
		switch {
		case a.Level == "index-descriptor":
			return UsageError{fmt.Errorf("annotation %q: index-descriptor is not supported, what points to the index stands outside of what is signed; use index", a.name())}
		case a.Level == "index" && len(r.Source.Platforms) < 2:
			return UsageError{fmt.Errorf("annotation %q is for an index, and an image for one platform has none", a.name())}
		case a.Level == "manifest-descriptor" && len(r.Source.Platforms) < 2:
			return UsageError{fmt.Errorf("annotation %q is for the manifest's entry in an index, and an image for one platform has none", a.name())}
		}
	}
	if err := r.checkInputs(); err != nil {
		return UsageError{err}
	}
	return r.checkOutputs()
}

func (r *Request) checkInputs() error {
	c := r.Inputs
	switch c.mode() {
	case attestations.InputsRecord, attestations.InputsLocked, attestations.InputsOffline, attestations.InputsNone:
	default:
		return fmt.Errorf("--inputs %q is not supported: record, locked, offline or none", c.Mode)
	}
	for _, e := range r.Steps.Allow {
		if e != entitlementHost && e != entitlementInsecure {
			return fmt.Errorf("--allow %q is not offered: network.host or security.insecure", e)
		}
	}
	if c.mode() == attestations.InputsNone {
		if r.Steps.Network == "host" || slices.Contains(r.Steps.Allow, entitlementHost) {
			return errors.New("--inputs none and a host network exclude each other")
		}
		if len(c.AllowHosts) > 0 {
			return errors.New("--inputs none reaches no host: --allow-host has nothing to allow")
		}
	}
	if c.Push && !slices.ContainsFunc(r.Outputs, func(o Output) bool { return o.Push }) {
		return hinted(errors.New("--push-inputs puts the bytes beside a pushed image, and none is pushed"), "give --push as well; without it they stay in the store, see \"waxseal store export\"")
	}
	if len(r.Cache.From) > 0 && (c.enforced() || c.mode() == attestations.InputsNone) {
		return fmt.Errorf("results of an imported build cache have no record of what went into them: leave out --cache-from with --inputs %s", c.mode())
	}
	if r.Engine.BuildKit == "" {
		return nil
	}
	// A BuildKit that runs elsewhere fetches by itself.
	switch {
	case c.mode() == attestations.InputsOffline:
		return hinted(errors.New("--inputs offline needs waxseal's own engine: another BuildKit cannot be kept from fetching, nor be given what the store has"),
			"leave --engine out, or use --inputs locked, which compares every digest afterwards")
	case len(c.AllowHosts) > 0 || c.UpstreamCA != "" || len(c.Upstreams) > 0:
		return errors.New("--allow-host, --upstream and --upstream-ca are for waxseal's own engine: another BuildKit has its own network and its own trust")
	case c.Push:
		return errors.New("--push-inputs needs waxseal's own engine: another BuildKit keeps no bytes")
	}
	return nil
}

// What a RUN may ask for beyond the usual, as BuildKit names it.
const (
	entitlementHost     = "network.host"
	entitlementInsecure = "security.insecure"
)

// entitlements are those that this build gives its steps.
func (r *Request) entitlements() []string {
	out := slices.Clone(r.Steps.Allow)
	if r.Steps.Network == "host" {
		out = append(out, entitlementHost)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (r *Request) checkOutputs() error {
	stdout := 0
	var layers map[string]string
	for _, o := range r.Outputs {
		if o.Dest == "-" {
			stdout++
		}
		if o.Push && len(r.names(o)) == 0 {
			return UsageError{hinted(errors.New("pushing needs a name to push to"), "give one with -t REGISTRY/REPOSITORY:TAG")}
		}
		if o.PushByDigest {
			for _, n := range r.names(o) {
				if named, err := reference.ParseNormalizedNamed(n); err == nil && !reference.IsNameOnly(named) {
					return UsageError{fmt.Errorf("push-by-digest takes a name without a tag, not %q", n)}
				}
			}
		}
		if o.Kind == OutputDocker && len(r.Source.Platforms) > 1 {
			return UsageError{hinted(errors.New("docker load takes an image for one platform"), "ask for one with --platform, or use -o type=oci,dest=FILE")}
		}
		if len(o.Layers) > 0 {
			if layers != nil && !sameMap(layers, o.Layers) {
				return UsageError{errors.New("outputs of one build hold the same image: their compression and timestamp options must agree")}
			}
			layers = o.Layers
		}
	}
	if stdout > 1 {
		return UsageError{errors.New("only one output can go to standard output")}
	}
	return nil
}

// names are the names an output is given: its own, or the build's tags.
func (r *Request) names(o Output) []string {
	if len(o.Names) > 0 {
		return o.Names
	}
	return r.Image.Tags
}

// annotations are those of the image and of all its outputs.
func (r *Request) annotations() []Annotation {
	out := slices.Clone(r.Image.Annotations)
	for _, o := range r.Outputs {
		out = append(out, o.Annotations...)
	}
	return out
}

// layerOptions are the exporter options that change the image's bytes.
func (r *Request) layerOptions() map[string]string {
	for _, o := range r.Outputs {
		if len(o.Layers) > 0 {
			return o.Layers
		}
	}
	return nil
}

// keepsImage reports whether the image goes to waxseal's own store: when asked
// for, and when nothing else would hold the evidence. Files and the Docker
// daemon take the image alone.
func (r *Request) keepsImage() bool {
	elsewhere := false
	for _, o := range r.Outputs {
		switch {
		case o.Kind == OutputImage && !o.Push:
			return true
		case o.Push, o.Kind == OutputOCI && !o.Tar:
			elsewhere = true
		case o.Kind == OutputDocker, o.Kind == OutputOCI:
			elsewhere = elsewhere || r.Seal.Unsigned || r.Seal.Out != ""
		}
	}
	return !elsewhere
}

func (r *Request) builderID() string {
	if r.Seal.BuilderID != "" {
		return r.Seal.BuilderID
	}
	return attestations.UnhostedBuilderID
}

func (r *Request) contextArg() string {
	if r.Source.Context == "" {
		return "."
	}
	return r.Source.Context
}

// redact replaces the URLs of the request that hold what can be a credential
// by their clean form, in what the engine wrote.
func (r *Request) redact() *strings.Replacer {
	var pairs []string
	urls := slices.Concat([]string{r.Source.Context}, slices.Collect(maps.Values(r.Source.Named)))
	for name, v := range publicArgs(r.Source.Args) {
		if whole := r.Source.Args[name]; whole != v {
			urls = append(urls, whole)
		}
	}
	for _, v := range urls {
		if !strings.Contains(v, "://") {
			continue
		}
		// The engine shows a URL whole, or without its fragment.
		for _, u := range []string{v, strings.SplitN(v, "#", 2)[0]} {
			clean := cleanURL(u)
			if clean != u {
				pairs = append(pairs, u, clean)
			}
			// In its record it has taken out the password already, and no more.
			if half := urlutil.RedactCredentials(u); half != u && half != clean {
				pairs = append(pairs, half, clean)
			}
		}
	}
	return strings.NewReplacer(pairs...)
}

// publicArgs are the build arguments as the provenance holds them: whole, but
// for the proxies, whose URLs commonly carry a password and bring nothing into
// the image.
func publicArgs(args map[string]string) map[string]string {
	out := maps.Clone(args)
	for name, v := range args {
		if isProxy(name) {
			out[name] = cleanURL(v)
		}
	}
	return out
}

// isProxy reports whether a build argument names a proxy.
func isProxy(name string) bool {
	return slices.Contains([]string{"http_proxy", "https_proxy", "ftp_proxy", "all_proxy"}, strings.ToLower(name))
}

// external is what the provenance says was asked for.
func (r *Request) external(c attestations.ContainerContext) attestations.ContainerBuild {
	p := attestations.ContainerBuild{
		Context: c, Target: r.Source.Target, Platforms: r.Source.Platforms,
		BuildArgs: publicArgs(r.Source.Args), Labels: r.Image.Labels,
		AddHosts: r.Steps.AddHosts, ShmSize: r.Steps.ShmSize, Ulimits: r.Steps.Ulimits,
		Pull: r.Cache.Pull, NoCache: r.Cache.None, NoCacheFilter: r.Cache.Except,
		SBOM: r.Seal.SBOM, Allow: r.Steps.Allow,
	}
	if r.Steps.Network != "default" {
		p.Network = r.Steps.Network
	}
	switch f := r.Source.Dockerfile; {
	case f == "-":
		p.Dockerfile = "-"
	case f != "" && filepath.IsAbs(f):
		p.Dockerfile = filepath.Base(f) // a path on somebody's machine says nothing
	case f != "":
		p.Dockerfile = filepath.ToSlash(filepath.Clean(f))
	}
	for name, v := range r.Source.Named {
		if p.BuildContexts == nil {
			p.BuildContexts = map[string]string{}
		}
		p.BuildContexts[name] = cleanNamed(v)
	}
	for _, a := range r.annotations() {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[a.name()] = a.Value
	}
	for _, s := range r.Steps.Secrets {
		p.Secrets = append(p.Secrets, s.ID)
	}
	for _, s := range r.Steps.SSH {
		p.SSH = append(p.SSH, s.ID)
	}
	for _, c := range r.Cache.From {
		p.CacheFrom = append(p.CacheFrom, c.public())
	}
	for _, c := range r.Cache.To {
		p.CacheTo = append(p.CacheTo, c.public())
	}
	layers := r.layerOptions()
	for _, k := range sortedKeys(layers) {
		if k == "rewrite-timestamp" {
			p.KeepTimestamps = layers[k] == "false"
			continue
		}
		p.Outputs = append(p.Outputs, k+"="+layers[k])
	}
	p.SourceDateEpoch = p.BuildArgs["SOURCE_DATE_EPOCH"]
	return p
}

// public is a cache entry without what can be a credential.
func (c CacheEntry) public() string {
	parts := []string{"type=" + c.Type}
	for _, k := range sortedKeys(c.Attrs) {
		switch k {
		case "ref", "src", "dest", "mode", "scope", "name", "bucket", "region", "prefix", "digest", "tag",
			"compression", "compression-level", "force-compression", "oci-mediatypes", "image-manifest", "ignore-error":
			parts = append(parts, k+"="+c.Attrs[k])
		}
	}
	return strings.Join(parts, ",")
}

func (c CacheEntry) option() client.CacheOptionsEntry {
	return client.CacheOptionsEntry{Type: c.Type, Attrs: maps.Clone(c.Attrs)} // the client adds to them
}

func checkTag(t string) error {
	named, err := reference.ParseNormalizedNamed(t)
	if err != nil {
		return fmt.Errorf("tag %q: %w", t, err)
	}
	if _, ok := named.(reference.Digested); ok {
		return fmt.Errorf("tag %q: a build cannot choose its digest", t)
	}
	return nil
}

func sameMap(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
