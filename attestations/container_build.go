package attestations

import _ "embed"

// ContainerBuildType names the way in which `waxseal build` makes an image;
// container-build/v1/spec.md says what its parameters mean.
const ContainerBuildType = "https://waxseal.dev/attestations/container-build/v1"

//go:embed container-build/v1/schema.json
var containerBuildSchema []byte

// ContainerBuildSchema returns the JSON Schema of a SLSA provenance predicate
// whose buildType is ContainerBuildType.
func ContainerBuildSchema() []byte { return append([]byte(nil), containerBuildSchema...) }

// The names of the entries in resolvedDependencies and byproducts that a
// reader can look for. Base images and downloads have no name: they are known
// by URI.
const (
	DependencyContext      = "context"       // the build context, by the digest of its per-file manifest
	DependencySource       = "source"        // the git commit the context was taken from
	DependencyDockerfile   = "dockerfile"    // the Dockerfile, by its bytes
	DependencyDockerignore = "dockerignore"  // the ignore file that filtered the context
	DependencyNamedContext = "named-context" // prefix: "named-context:NAME"
	ByproductLog           = "log"
	ByproductSBOM          = "sbom" // prefix: "sbom:FORMAT"
	ByproductEngineRecord  = "engine-record"
	ByproductContextFiles  = "context-manifest"
)

// DockerDaemonURI begins the URI of a base image that the Docker daemon had, and
// no registry gave: "docker-daemon:NAME:TAG".
const DockerDaemonURI = "docker-daemon:"

// Media types of what the dependencies and byproducts point to.
const (
	ContextManifestMediaType = "application/vnd.waxseal.context.v1+jsonl"
)

// ContextFile is one line of a context manifest. The field order, and that
// nothing else is on the line, is the format: its digest names the context.
type ContextFile struct {
	Path   string            `json:"path"`
	Mode   string            `json:"mode"` // as "0100644": type and permission bits, octal
	Size   int64             `json:"size"`
	SHA256 string            `json:"sha256,omitempty"`
	Link   string            `json:"link,omitempty"`
	Device string            `json:"device,omitempty"`
	Xattrs map[string]string `json:"xattrs,omitempty"`
}

// How RUN steps could reach the network, as builds said it before they kept a
// record of their inputs. Since then it is the record's verdict.
const (
	NetworkUnobserved = VerdictUnobserved
	NetworkNone       = "none" // the whole build ran with --network=none
)

// ContainerBuild is the externalParameters of ContainerBuildType: everything
// the user could set. A field at its zero value was not set and is absent.
type ContainerBuild struct {
	Context         ContainerContext  `json:"context"`
	Dockerfile      string            `json:"dockerfile,omitempty"` // as asked for with --file; absent: "Dockerfile" of the context
	Target          string            `json:"target,omitempty"`
	Platforms       []string          `json:"platforms,omitempty"` // absent: the engine's own
	BuildArgs       map[string]string `json:"buildArgs,omitempty"`
	BuildContexts   map[string]string `json:"buildContexts,omitempty"` // NAME to what was asked for, credentials removed
	Labels          map[string]string `json:"labels,omitempty"`
	Annotations     map[string]string `json:"annotations,omitempty"` // the key keeps its level prefix, as "index:org.example.key"
	Secrets         []string          `json:"secrets,omitempty"`     // ids only
	SSH             []string          `json:"ssh,omitempty"`         // ids only
	Network         string            `json:"network,omitempty"`     // --network; absent: the default
	AddHosts        []string          `json:"addHosts,omitempty"`    // "NAME=IP"
	ShmSize         int64             `json:"shmSize,omitempty"`     // bytes
	Ulimits         []string          `json:"ulimits,omitempty"`     // "NAME=SOFT:HARD"
	Pull            bool              `json:"pull,omitempty"`
	NoCache         bool              `json:"noCache,omitempty"`
	NoCacheFilter   []string          `json:"noCacheFilter,omitempty"`
	CacheFrom       []string          `json:"cacheFrom,omitempty"`
	CacheTo         []string          `json:"cacheTo,omitempty"`
	Outputs         []string          `json:"outputs,omitempty"` // layer settings of --output that change the image's bytes, as "compression=zstd"
	SourceDateEpoch string            `json:"sourceDateEpoch,omitempty"`
	SBOM            []string          `json:"sbom,omitempty"`           // formats asked for
	KeepTimestamps  bool              `json:"keepTimestamps,omitempty"` // file times are left as the steps made them
	Allow           []string          `json:"allow,omitempty"`          // "network.host", "security.insecure": what a RUN may ask for
	Inputs          *ContainerInputs  `json:"inputs,omitempty"`         // absent in builds that kept no record of them
	Attrs           map[string]string `json:"attrs,omitempty"`          // what a program under `waxseal run` asked of the frontend beyond these
}

// ContainerInputs is what a build was allowed to take in.
type ContainerInputs struct {
	Mode       string   `json:"mode"`                 // InputsRecord and so on
	Lock       string   `json:"lock,omitempty"`       // "sha256:…" of the lock file that was enforced
	AllowHosts []string `json:"allowHosts,omitempty"` // patterns; absent: all
	Upstreams  []string `json:"upstreams,omitempty"`  // names that were reached at another address than theirs
	UpstreamCA string   `json:"upstreamCA,omitempty"` // "sha256:…" of the certificates trusted besides the system's
}

// ContainerContext says where the build context came from.
type ContainerContext struct {
	// Kind is "directory", "git", "url", "tar" (on stdin), "none" (only a
	// Dockerfile was given) or, under `waxseal run`, "definition" (the client
	// put it together).
	Kind string `json:"kind"`
	// URI is what was asked for, credentials removed. A directory has none: a
	// path on somebody's machine says nothing. Its content is in
	// resolvedDependencies.
	URI string `json:"uri,omitempty"`
}

// ContainerBuildInternal is the internalParameters of ContainerBuildType: what
// the platform chose.
type ContainerBuildInternal struct {
	Engine          ContainerEngine `json:"engine"`
	NetworkObserved string          `json:"network"`                   // the verdict of the record of inputs: VerdictIsolated and so on
	SourceDateEpoch string          `json:"sourceDateEpoch,omitempty"` // the seconds in force, whoever chose them
	EpochFrom       string          `json:"sourceDateEpochFrom,omitempty"`
	Frontend        string          `json:"frontend"`         // "dockerfile.v0", built in
	Syntax          string          `json:"syntax,omitempty"` // the "# syntax=" line as it stands in the Dockerfile
	BuilderPlatform string          `json:"builderPlatform,omitempty"`
	CacheHits       int32           `json:"cachedSteps"`
	Steps           int32           `json:"steps"`
	Grade           string          `json:"grade,omitempty"`      // under `waxseal run`: how much was seen, "full", "partial" or "record-only"
	Unobserved      []string        `json:"unobserved,omitempty"` // what was not, in words
	CI              *CI             `json:"ci,omitempty"`         // absent outside CI
}

// ContainerEngine is the engine that ran the steps, as it says itself.
type ContainerEngine struct {
	Name        string `json:"name"` // "embedded", "buildkit", or "docker" for its legacy builder
	Version     string `json:"version,omitempty"`
	BuildKit    string `json:"buildkit,omitempty"`
	Runc        string `json:"runc,omitempty"`
	Kernel      string `json:"kernel,omitempty"`
	Snapshotter string `json:"snapshotter,omitempty"`
	Isolation   string `json:"isolation,omitempty"`
}
