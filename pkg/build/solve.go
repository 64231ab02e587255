package build

import (
	"context"
	"encoding/base64"
	"encoding/csv"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// frontendName is the only frontend there is: the one that is built in.
const frontendName = "dockerfile.v0"

// solveOptions turns a request and its inputs into what BuildKit is asked.
func solveOptions(r *Request, in *inputs, ref string, image content.Store, catalogs bool) (client.SolveOpt, error) {
	opt := client.SolveOpt{
		Ref: ref, Frontend: frontendName, FrontendAttrs: map[string]string{},
		FrontendInputs: in.states, LocalMounts: in.mounts, OCIStores: in.stores,
	}
	maps.Copy(opt.FrontendAttrs, in.attrs)
	a := opt.FrontendAttrs
	// The frontend takes this for a sign that it was called by a "# syntax="
	// line already, and pulls none.
	a["cmdline"] = frontendName
	if len(r.Seal.SBOM) > 0 && catalogs {
		a["waxseal:sbom"] = strings.Join(r.Seal.SBOM, ",")
	}
	if r.Source.Target != "" {
		a["target"] = r.Source.Target
	}
	if len(r.Source.Platforms) > 0 {
		a["platform"] = strings.Join(r.Source.Platforms, ",")
	}
	for k, v := range r.Source.Args {
		a["build-arg:"+k] = v
	}
	if in.epoch.value != "" {
		a["build-arg:SOURCE_DATE_EPOCH"] = in.epoch.value
	}
	for k, v := range r.Image.Labels {
		a["label:"+k] = v
	}
	if err := stepAttrs(r.Steps, a); err != nil {
		return opt, err
	}
	if r.Inputs.mode() == attestations.InputsNone {
		a["force-network-mode"] = "none"
	}
	switch {
	case r.Cache.None:
		a["no-cache"] = ""
	case len(r.Cache.Except) > 0:
		a["no-cache"] = strings.Join(r.Cache.Except, ",")
	}
	if r.Cache.Pull {
		a["image-resolve-mode"] = "pull"
	}
	opt.AllowedEntitlements = r.entitlements()
	for _, c := range r.Cache.From {
		opt.CacheImports = append(opt.CacheImports, c.option())
	}
	for _, c := range r.Cache.To {
		opt.CacheExports = append(opt.CacheExports, c.option())
	}
	opt.Exports = []client.ExportEntry{{Type: client.ExporterOCI, Attrs: imageAttrs(r, in), OutputStore: image}}
	var err error
	opt.Session, err = sessionParts(r)
	return opt, err
}

func stepAttrs(s Steps, a map[string]string) error {
	if s.Network == "none" || s.Network == "host" {
		a["force-network-mode"] = s.Network
	}
	if s.ShmSize > 0 {
		a["shm-size"] = strconv.FormatInt(s.ShmSize, 10)
	}
	for key, values := range map[string][]string{"add-hosts": s.AddHosts, "ulimit": s.Ulimits} {
		if len(values) == 0 {
			continue
		}
		line, err := csvLine(values)
		if err != nil {
			return err
		}
		a[key] = line
	}
	return nil
}

func csvLine(values []string) (string, error) {
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(values); err != nil {
		return "", err
	}
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// imageAttrs are the exporter's options of the one image that all outputs
// hold.
func imageAttrs(r *Request, in *inputs) map[string]string {
	attrs := map[string]string{"tar": "false"}
	if in.epoch.value != "" {
		attrs["rewrite-timestamp"] = "true"
	}
	maps.Copy(attrs, r.layerOptions())
	for _, a := range r.annotations() {
		key := "annotation"
		if a.Level != "" {
			key += "-" + a.Level
		}
		if a.Platform != "" {
			key += "[" + a.Platform + "]"
		}
		attrs[key+"."+a.Key] = a.Value
	}
	return attrs
}

// sessionParts is what the engine may ask of this machine during the build:
// registry credentials for pulls, and the secrets and agents that were named.
func sessionParts(r *Request) ([]session.Attachable, error) {
	parts := []session.Attachable{authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: authprovider.LoadAuthConfig(config.LoadDefaultConfigFile(io.Discard)),
	})}
	if len(r.Steps.Secrets) > 0 {
		var sources []secretsprovider.Source
		for _, s := range r.Steps.Secrets {
			sources = append(sources, secretsprovider.Source{ID: s.ID, FilePath: s.File, Env: s.Env})
		}
		store, err := secretsprovider.NewStore(sources)
		if err != nil {
			return nil, fmt.Errorf("opening secrets: %w", lastCause(err))
		}
		parts = append(parts, secretsprovider.NewSecretProvider(store))
	}
	if len(r.Steps.SSH) > 0 {
		var agents []sshprovider.AgentConfig
		for _, s := range r.Steps.SSH {
			agents = append(agents, sshprovider.AgentConfig{ID: s.ID, Paths: s.Paths, Raw: s.Raw})
		}
		p, err := sshprovider.NewSSHAgentProvider(agents)
		if err != nil {
			return nil, hinted(fmt.Errorf("opening ssh agents: %w", lastCause(err)), "start one with ssh-agent and add a key, or name a key file: --ssh default=FILE")
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// built is what came out of a solve.
type built struct {
	ref      string
	image    ocispec.Descriptor
	response map[string]string
}

// solve runs the build and returns the image's descriptor. The progress is
// shown, and to watch as well unless it is nil.
func solve(ctx context.Context, c *client.Client, opt client.SolveOpt, shown *progress, watch func(*client.SolveStatus)) (*built, error) {
	ch, done := shown.forward(watch)
	resp, err := c.Solve(ctx, nil, opt, ch)
	<-done
	if err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(resp.ExporterResponse["containerimage.descriptor"])
	if err != nil {
		return nil, fmt.Errorf("reading the engine's answer: image descriptor: %w", err)
	}
	b := &built{ref: opt.Ref, response: resp.ExporterResponse}
	if err := attest.UnmarshalStrict(raw, &b.image); err != nil {
		return nil, fmt.Errorf("reading the engine's answer: image descriptor: %w", err)
	}
	if _, err := attest.ParseDigest(b.image.Digest.String()); err != nil {
		return nil, fmt.Errorf("reading the engine's answer: image digest: %w", err)
	}
	b.image.Annotations = nil
	return b, nil
}

// fileOutputs adds the exports of the image's files. They are written beside
// their destination and moved there by finish, or removed by abandon.
type fileOutputs struct {
	moves []move
}

type move struct {
	from, to string
	merge    bool // a folder that joins what is there
}

func (f *fileOutputs) add(r *Request, deps *Deps, opt *client.SolveOpt) error {
	for _, o := range r.Outputs {
		switch o.Kind {
		case OutputLocal:
			if st, err := os.Stat(o.Dest); err == nil && !st.IsDir() {
				return fmt.Errorf("writing output %q: it is there and not a folder", o.Dest)
			}
			tmp, err := tempBeside(o.Dest, true)
			if err != nil {
				return err
			}
			f.moves = append(f.moves, move{tmp, o.Dest, true})
			if _, given := o.Attrs["platform-split"]; given { // which archives do not know
				opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterLocal, Attrs: o.Attrs, OutputDir: tmp})
				continue
			}
			open := func(map[string]string) (io.WriteCloser, error) { return newUnpacker(tmp), nil }
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterTar, Output: open})
		case OutputTar:
			open := func(map[string]string) (io.WriteCloser, error) { return nopWriteCloser{deps.Stdout}, nil }
			if o.Dest != "-" {
				tmp, err := tempBeside(o.Dest, false)
				if err != nil {
					return err
				}
				f.moves = append(f.moves, move{tmp, o.Dest, false})
				open = func(map[string]string) (io.WriteCloser, error) { return os.Create(tmp) }
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterTar, Attrs: o.Attrs, Output: open})
		}
	}
	return nil
}

func (f *fileOutputs) finish() error {
	for _, m := range f.moves {
		if err := m.do(); err != nil {
			return fmt.Errorf("writing output %q: %w", m.to, err)
		}
	}
	f.moves = nil
	return nil
}

func (f *fileOutputs) abandon() {
	for _, m := range f.moves {
		os.RemoveAll(m.from)
	}
}

func (m move) do() error {
	if !m.merge {
		if err := os.Chmod(m.from, 0o644); err != nil {
			return err
		}
		return os.Rename(m.from, m.to)
	}
	if err := os.Chmod(m.from, 0o755); err != nil {
		return err
	}
	err := os.Rename(m.from, m.to)
	if err == nil || !isFolder(m.to) {
		return err
	}
	return mergeFolder(m.from, m.to)
}

// mergeFolder moves what is in from into to, replacing files that are there.
func mergeFolder(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		src, dst := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		old, err := os.Lstat(dst)
		if err == nil && e.IsDir() && old.IsDir() {
			if err := mergeFolder(src, dst); err != nil {
				return err
			}
			continue
		}
		if err == nil && (e.IsDir() || old.IsDir()) {
			if err := os.RemoveAll(dst); err != nil {
				return err
			}
		}
		if err := os.Rename(src, dst); err != nil {
			return err
		}
	}
	return os.Remove(from)
}

// tempBeside makes a name beside dest, so that a rename stays on one file
// system.
func tempBeside(dest string, dir bool) (string, error) {
	parent := filepath.Dir(dest)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", fmt.Errorf("writing output %q: %w", dest, err)
	}
	pattern := "." + filepath.Base(dest) + ".tmp-"
	if dir {
		tmp, err := os.MkdirTemp(parent, pattern)
		if err != nil {
			return "", fmt.Errorf("writing output %q: %w", dest, err)
		}
		return tmp, nil
	}
	f, err := os.CreateTemp(parent, pattern)
	if err != nil {
		return "", fmt.Errorf("writing output %q: %w", dest, err)
	}
	return f.Name(), f.Close()
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }
