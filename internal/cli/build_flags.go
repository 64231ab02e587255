package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/waxseal/waxseal/pkg/build"
)

// buildFlags are the flags of build as they stand on the command line.
type buildFlags struct {
	tags, args, contexts, labels, annotations []string
	file, target                              string
	platforms, secrets, ssh                   []string
	addHosts, ulimits                         []string
	network, shmSize                          string
	noCache, pull                             bool
	noCacheFilter, cacheFrom, cacheTo         []string
	outputs                                   []string
	push, load, quiet                         bool
	progress, iidFile, metadataFile           string

	sign                             signFlags
	roots                            anchorFlags
	builderID, out, engine, cacheDir string
	ciToken                          string
	unsigned, insecure               bool
	sbom                             []string

	inputs, lock, store, upstreamCA string
	allow, allowHosts, upstreams    []string
	pushInputs                      bool
}

// secretFiles are the files that must get into no build context. What is no
// file, as a key in a service, names none.
func (f *buildFlags) secretFiles() []string {
	var files []string
	for _, name := range []string{f.sign.secretFile(), f.ciToken} {
		if name != "" {
			files = append(files, name)
		}
	}
	return files
}

func (f *buildFlags) register(fs *pflag.FlagSet) {
	fs.SortFlags = false
	fs.StringArrayVarP(&f.tags, "tag", "t", nil, "`NAME[:TAG]` of the image; may be repeated")
	fs.StringVarP(&f.file, "file", "f", "", "`FILE` that is the Dockerfile, - for standard input (default: PATH/Dockerfile)")
	fs.StringArrayVar(&f.args, "build-arg", nil, "`NAME=VALUE` of an ARG, or NAME for the environment's value; recorded in the provenance with its value")
	fs.StringArrayVar(&f.contexts, "build-context", nil, "`NAME=PLACE`: what FROM NAME and COPY --from=NAME take, from a folder, a URL, docker-image://REF, oci:LAYOUT[:TAG] or docker:NAME")
	fs.StringVar(&f.target, "target", "", "`STAGE` to build (default: the last)")
	fs.StringArrayVar(&f.platforms, "platform", nil, "`OS/ARCH` to build for; several, with commas or repeated, make an index")
	fs.StringArrayVar(&f.labels, "label", nil, "`NAME=VALUE` in the image's config")
	fs.StringArrayVar(&f.annotations, "annotation", nil, "`NAME=VALUE` in the image's manifest, or LEVEL:NAME=VALUE with a LEVEL of manifest, index, manifest-descriptor or index-descriptor")
	fs.StringArrayVar(&f.secrets, "secret", nil, "`SECRET` that steps may mount: id=ID[,src=FILE] or id=ID,env=NAME; only the id is recorded")
	fs.StringArrayVar(&f.ssh, "ssh", nil, "`AGENT` that steps may use: default, ID, ID=SOCKET or ID=KEYFILE")
	fs.StringVar(&f.network, "network", "", "`MODE` of the RUN steps' network: default, none or host")
	fs.StringSliceVar(&f.allow, "allow", nil, "`WHAT` a RUN may ask for: network.host or security.insecure; what it does with that is a gap in the record")
	fs.StringArrayVar(&f.addHosts, "add-host", nil, "`NAME:IP` for steps' /etc/hosts")
	fs.StringVar(&f.shmSize, "shm-size", "", "`SIZE` of steps' /dev/shm, as 64m")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "`LIMIT` of steps: NAME=SOFT[:HARD], as nofile=1024:2048")
	fs.BoolVar(&f.noCache, "no-cache", false, "run every step")
	fs.StringSliceVar(&f.noCacheFilter, "no-cache-filter", nil, "`STAGE` to run every step of")
	fs.BoolVar(&f.pull, "pull", false, "look for newer base images even where a copy is there")
	fs.StringArrayVar(&f.cacheFrom, "cache-from", nil, "`CACHE` to take results from: REF, type=registry,ref=REF or type=local,src=DIR")
	fs.StringArrayVar(&f.cacheTo, "cache-to", nil, "`CACHE` to write results to: REF, type=registry,ref=REF, type=local,dest=DIR or type=inline")
	fs.StringArrayVarP(&f.outputs, "output", "o", nil, "`OUTPUT`: a folder, - for a tar archive on standard output, or type=TYPE,KEY=VALUE… with a TYPE of local, tar, oci, docker, image or registry, as type=oci,dest=image.tar")
	fs.BoolVar(&f.push, "push", false, "short for --output=type=registry")
	fs.BoolVar(&f.load, "load", false, "short for --output=type=docker")
	fs.StringVar(&f.progress, "progress", "", "`STYLE` of the progress: auto, plain, tty, quiet or rawjson (default: auto)")
	fs.StringVar(&f.iidFile, "iidfile", "", "write the image ID to `FILE`")
	fs.StringVar(&f.metadataFile, "metadata-file", "", "write what was built to `FILE`, as JSON")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "print nothing but the image's digest")

	f.registerSeal(fs)
	fs.StringVar(&f.engine, "engine", "embedded", "`ENGINE` that runs the steps: embedded, or buildkit:ADDRESS for a BuildKit that is running")
	fs.StringVar(&f.lock, "lock", "", "lock `FILE` (default: waxseal.lock beside the Dockerfile)")
	f.registerIntake(fs)

	for _, r := range dockerOnly() {
		if r.takesValue {
			fs.StringArrayP(r.name, r.short, nil, "not supported")
		} else {
			fs.BoolP(r.name, r.short, false, "not supported")
		}
		// Errors are only for flags that do not exist.
		_ = fs.MarkHidden(r.name)
	}
}

// registerSeal defines the flags of what is said about a result, and by whom.
func (f *buildFlags) registerSeal(fs *pflag.FlagSet) {
	f.sign.register(fs, "key", "private `KEY` to sign the evidence with, part of no context")
	f.roots.register(fs)
	fs.BoolVar(&f.unsigned, "unsigned", false, "write evidence that nobody signs; it proves nothing")
	fs.StringVar(&f.builderID, "builder-id", "", "`URI` that names this builder in the provenance (default: an unhosted local one)")
	fs.StringVar(&f.ciToken, "ci-token", "", "identity `TOKEN` that says whose build this is, in a file or env:NAME; it is verified and told to nobody (default: asked of the CI platform that this runs on)")
	fs.StringVar(&f.out, "out", "", "write image, statements, bundles, SBOMs, metadata and log to `DIR`")
	fs.StringSliceVar(&f.sbom, "sbom", []string{"spdx", "cyclonedx"}, "`LIST` of spdx and cyclonedx, or none")
	fs.BoolVar(&f.insecure, "insecure-registry", false, "allow plain HTTP and unverified certificates when pushing")
}

// registerIntake defines the flags of what may reach the steps, and where it is
// kept.
func (f *buildFlags) registerIntake(fs *pflag.FlagSet) {
	fs.BoolVar(&f.pushInputs, "push-inputs", false, "with --push: put the bytes beside the image, for rebuild")
	fs.StringVar(&f.cacheDir, "cache-dir", "", "`DIR` of the engine's build cache (default: ~/.cache/waxseal)")
	fs.StringVar(&f.inputs, "inputs", "record", "`MODE` of what comes from outside: record all of it and write the lock; locked, only what the lock lists, byte for byte; offline, the same and all from the store; none, nothing but base images, which are pulled and recorded")
	fs.StringVar(&f.store, "store", "", "`DIR` of the bytes that builds took in (default: ~/.local/share/waxseal/store)")
	fs.StringArrayVar(&f.allowHosts, "allow-host", nil, "`PATTERN` of hosts that may be reached, as *.example.org; may be repeated (default: all)")
	fs.StringArrayVar(&f.upstreams, "upstream", nil, "`NAME=ADDRESS` to reach a NAME[:PORT] at, ADDRESS[:PORT]; the only way to this machine and its link")
	fs.StringVar(&f.upstreamCA, "upstream-ca", "", "`FILE` of certificates trusted besides the system's, PEM")
}

// refusedFlag is a flag of docker build or docker buildx build that is known
// and not supported.
type refusedFlag struct {
	name, short string
	takesValue  bool
	instead     string
}

func dockerOnly() []refusedFlag {
	return []refusedFlag{
		{"attest", "", true, "provenance is always written, SBOMs by --sbom"},
		{"builder", "", true, "give the address of a running BuildKit with --engine buildkit:ADDRESS"},
		{"call", "", true, "use docker build --call"},
		{"cgroup-parent", "", true, ""},
		{"check", "", false, "use docker build --check"},
		{"compress", "", false, ""},
		{"cpu-period", "", true, ""},
		{"cpu-quota", "", true, ""},
		{"cpu-shares", "c", true, ""},
		{"cpuset-cpus", "", true, ""},
		{"cpuset-mems", "", true, ""},
		{"debug", "D", false, ""},
		{"disable-content-trust", "", false, "evidence is signed with --key"},
		{"force-rm", "", false, "containers of steps never stay"},
		{"invoke", "", true, ""},
		{"isolation", "", true, ""},
		{"memory", "m", true, ""},
		{"memory-swap", "", true, ""},
		{"policy", "", true, "evidence is judged by waxseal verify --policy"},
		{"print", "", true, "use docker build --call"},
		{"provenance", "", true, "provenance is always written, in full; --builder-id names the builder"},
		{"rm", "", false, "containers of steps never stay"},
		{"root", "", true, "choose another cache with --cache-dir"},
		{"security-opt", "", true, ""},
		{"squash", "", false, ""},
		{"stream", "", false, ""},
	}
}

// refusedFlags is an error naming the first flag that was given and is not
// supported.
func refusedFlags(fs *pflag.FlagSet) error {
	for _, r := range dockerOnly() {
		if !fs.Changed(r.name) {
			continue
		}
		err := fmt.Errorf("--%s is a flag of docker build that waxseal build does not support", r.name)
		if r.instead != "" {
			err = fmt.Errorf("%w; %s", err, r.instead)
		}
		return exitError{ExitUsage, err}
	}
	return nil
}

// fromEnv fills flags that were not given from the environment.
func (f *buildFlags) fromEnv(fs *pflag.FlagSet, env func(string) string) {
	for _, e := range []struct {
		flag, name string
		to         *string
	}{
		{"key", "WAXSEAL_KEY", &f.sign.key}, {"builder-id", "WAXSEAL_BUILDER_ID", &f.builderID},
		{"cache-dir", "WAXSEAL_CACHE", &f.cacheDir}, {"store", "WAXSEAL_STORE", &f.store}, {"progress", "BUILDKIT_PROGRESS", &f.progress},
	} {
		if !fs.Changed(e.flag) && env(e.name) != "" && !(e.flag == "key" && (f.unsigned || f.sign.keyless)) {
			*e.to = env(e.name)
		}
	}
	if !fs.Changed("platform") && env("DOCKER_DEFAULT_PLATFORM") != "" {
		f.platforms = []string{env("DOCKER_DEFAULT_PLATFORM")}
	}
	if f.cacheDir == "" {
		f.cacheDir = xdgDir(env, "XDG_CACHE_HOME", ".cache")
	}
}

func (f *buildFlags) mode() string {
	if f.quiet {
		return "quiet"
	}
	return f.progress
}

// request reads the flags' values. Its errors name the flag.
func (f *buildFlags) request(arg string, lookup func(string) (string, bool)) (build.Request, error) {
	req := build.Request{
		Source: build.Source{Context: arg, Dockerfile: f.file, Target: f.target},
		Image:  build.Image{Tags: f.tags},
		Steps:  build.Steps{Network: f.network, Allow: f.allow},
		Cache:  build.Cache{None: f.noCache, Except: f.noCacheFilter, Pull: f.pull},
		Seal:   build.Seal{Unsigned: f.unsigned, KeyFiles: f.secretFiles(), BuilderID: f.builderID, Out: f.out, Insecure: f.insecure},
		Engine: build.EngineChoice{CacheDir: f.cacheDir},
		Inputs: f.choice(),
	}
	var errs flagErrors
	errs.read("build-arg", func() (err error) { req.Source.Args, err = build.ParseArgs(f.args, lookup); return })
	errs.read("build-context", func() (err error) { req.Source.Named, err = build.ParseNamedContexts(f.contexts); return })
	errs.read("platform", func() (err error) { req.Source.Platforms, err = build.ParsePlatforms(f.platforms); return })
	errs.read("label", func() (err error) { req.Image.Labels, err = build.ParseLabels(f.labels); return })
	errs.read("annotation", func() (err error) { req.Image.Annotations, err = build.ParseAnnotations(f.annotations); return })
	errs.read("secret", func() (err error) { req.Steps.Secrets, err = build.ParseSecrets(f.secrets); return })
	errs.read("ssh", func() (err error) { req.Steps.SSH, err = build.ParseSSH(f.ssh); return })
	errs.read("network", func() error { return build.CheckNetwork(f.network) })
	errs.read("add-host", func() (err error) { req.Steps.AddHosts, err = build.ParseAddHosts(f.addHosts); return })
	errs.read("shm-size", func() (err error) { req.Steps.ShmSize, err = build.ParseSize(f.shmSize); return })
	errs.read("ulimit", func() (err error) { req.Steps.Ulimits, err = build.ParseUlimits(f.ulimits); return })
	errs.read("cache-from", func() (err error) { req.Cache.From, err = build.ParseCacheEntries(f.cacheFrom, false); return })
	errs.read("cache-to", func() (err error) { req.Cache.To, err = build.ParseCacheEntries(f.cacheTo, true); return })
	errs.read("output", func() (err error) { req.Outputs, err = build.ParseOutputs(f.outputs); return })
	errs.read("progress", func() error { return build.CheckProgress(f.progress) })
	errs.read("engine", func() error { return f.chooseEngine(&req.Engine) })
	errs.read("sbom", func() error { return f.chooseSBOM(&req.Seal) })
	errs.read("allow-host", func() error { return build.CheckHostPatterns(f.allowHosts) })
	errs.read("upstream", func() (err error) { req.Inputs.Upstreams, err = build.ParseUpstreams(f.upstreams); return })
	f.shortOutputs(&req)
	return req, errs.first
}

// choice is what may reach the build, but for upstreams.
func (f *buildFlags) choice() build.InputChoice {
	return build.InputChoice{
		Mode: f.inputs, Lock: f.lock, Store: f.store, AllowHosts: f.allowHosts, UpstreamCA: f.upstreamCA, Push: f.pushInputs,
	}
}

type flagErrors struct{ first error }

func (e *flagErrors) read(flag string, parse func() error) {
	if e.first != nil {
		return
	}
	if err := parse(); err != nil {
		e.first = fmt.Errorf("--%s %w", flag, err)
	}
}

func (f *buildFlags) chooseEngine(c *build.EngineChoice) error {
	kind, address, has := strings.Cut(f.engine, ":")
	switch {
	case f.engine == "embedded":
		return nil
	case kind == "buildkit" && has && address != "":
		c.BuildKit = address
		return nil
	}
	return fmt.Errorf("%q is neither embedded nor buildkit:ADDRESS", f.engine)
}

func (f *buildFlags) chooseSBOM(s *build.Seal) error {
	for _, v := range f.sbom {
		switch v {
		case "none", "":
			if len(f.sbom) > 1 {
				return fmt.Errorf("%q: none stands alone", strings.Join(f.sbom, ","))
			}
		case "spdx", "cyclonedx":
			if !slices.Contains(s.SBOM, v) {
				s.SBOM = append(s.SBOM, v)
			}
		case "true", "false":
			return fmt.Errorf("%q: SBOMs are written without being asked for; choose with --sbom=spdx,cyclonedx or --sbom=none", v)
		default:
			return fmt.Errorf("%q is not supported: spdx, cyclonedx or none (there is no generator image to choose)", v)
		}
	}
	return nil
}

// shortOutputs adds what --push and --load stand for.
func (f *buildFlags) shortOutputs(req *build.Request) {
	if f.push {
		pushed := false
		for i := range req.Outputs {
			if o := &req.Outputs[i]; o.Kind == build.OutputImage {
				o.Push, pushed = true, true
			}
		}
		if !pushed {
			req.Outputs = append(req.Outputs, build.Output{Kind: build.OutputImage, Push: true})
		}
	}
	if f.load {
		req.Outputs = append(req.Outputs, build.Output{Kind: build.OutputDocker, Tar: true})
	}
}

// imageHome is the folder of waxseal's own images.
func imageHome(env func(string) string) string {
	if home := env("WAXSEAL_HOME"); home != "" {
		return filepath.Join(home, "images")
	}
	return filepath.Join(xdgDir(env, "XDG_DATA_HOME", ".local/share"), "images")
}

// inputsHome is the folder of the bytes that builds took in.
func inputsHome(env func(string) string) string {
	if home := env("WAXSEAL_HOME"); home != "" {
		return filepath.Join(home, "store")
	}
	return filepath.Join(xdgDir(env, "XDG_DATA_HOME", ".local/share"), "store")
}

// xdgDir is waxseal's folder below an XDG base directory, which falls back to
// one in HOME, but where HOME comes into an image.
func xdgDir(env func(string) string, name, fallback string) string {
	base := env(name)
	if base == "" {
		home := env("HOME")
		if home == "" {
			home = "/root"
		}
		if dir := build.KanikoFolder(env); dir != "" {
			home = dir
		}
		base = filepath.Join(home, fallback)
	}
	return filepath.Join(base, "waxseal")
}
