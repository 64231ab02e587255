package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerimage"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/http2"

	"github.com/waxseal/waxseal/attestations"
)

// daemonHost is the registry as which waxseal answers for the images of the
// Docker daemon. No other host has a name like it: RFC 6761, 6.4.
const daemonHost = "docker-daemon.invalid"

// daemonImages are images of the Docker daemon, with which builds begin that mean
// docker's own builder. waxseal, which speaks with the daemon, answers for them
// over a socket pair: which of them is meant, and then as a registry. A nil one
// has none.
type daemonImages struct {
	client  *http.Client
	images  *containerimage.Source
	used    sync.Map // "NAME:TAG" and "NAME:TAG@DIGEST" of what builds began with
	brought sync.Map // by "NAME:TAG", the ID that the daemon has for what was pushed, too
}

// newDaemonImages opens the socket pair, where the plan has one.
func newDaemonImages(p *ClientsPlan, w *base.Worker) (*daemonImages, error) {
	if p == nil || !p.Daemon {
		return nil, nil
	}
	conn, err := inheritedConn(fdDaemon, "channel of the daemon's images")
	if err != nil {
		return nil, err
	}
	// There is one connection, which must not be dialled twice.
	one, err := (&http2.Transport{AllowHTTP: true}).NewClientConn(conn)
	if err != nil {
		return nil, fmt.Errorf("opening the channel of the daemon's images: %w", err)
	}
	d := &daemonImages{client: &http.Client{Transport: one}}
	d.images, err = containerimage.NewSource(containerimage.SourceOpt{
		Snapshotter: w.WorkerOpt.Snapshotter, ContentStore: w.WorkerOpt.ContentStore, Applier: w.WorkerOpt.Applier, CacheAccessor: w.CacheMgr,
		RegistryHosts: func(string) ([]docker.RegistryHost, error) {
			return []docker.RegistryHost{{
				Client: d.client, Host: daemonHost, Scheme: "http", Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			}}, nil
		},
		ResolverType: containerimage.ResolverTypeRegistry, LeaseManager: w.WorkerOpt.LeaseManager,
	})
	return d, err
}

// find returns where the daemon's image of a name is read; nil where the daemon
// has none for the platform, or a registry is to be asked.
func (d *daemonImages) find(ctx context.Context, id *containerimage.ImageIdentifier, mode resolver.ResolveMode, p *ocispecs.Platform) (*containerimage.ImageIdentifier, error) {
	if d == nil || mode != resolver.ResolveModePreferLocal {
		return nil, nil
	}
	platform := platforms.DefaultSpec()
	if p != nil {
		platform = *p
	}
	name := id.Reference.String()
	ask := url.Values{"ref": {name}, "platform": {platforms.Format(platform)}}
	if id, ok := d.brought.Load(imageRef(name)); ok {
		ask.Set("registry", id.(digest.Digest).String())
	}
	at := "http://" + daemonHost + "/image?" + ask.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("asking for the Docker daemon's image %q: %w", name, err)
	}
	defer resp.Body.Close()
	var said struct{ Repository, Error string }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&said); err != nil {
		return nil, fmt.Errorf("asking for the Docker daemon's image %q: %w", name, err)
	}
	switch {
	case said.Error != "":
		return nil, fmt.Errorf("taking the image %q from the Docker daemon: %s", name, said.Error)
	case said.Repository == "":
		return nil, nil
	}
	found := *id
	found.Reference.Locator = daemonHost + "/" + said.Repository
	return &found, nil
}

// metadata answers the frontend's question about one of the images; nil where it
// is not one.
func (d *daemonImages) metadata(ctx context.Context, w *base.Worker, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, jobCtx solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if d == nil {
		return nil, nil
	}
	id, err := w.ParseSource(op, nil)
	if err != nil {
		return nil, err
	}
	image, ok := id.(*containerimage.ImageIdentifier)
	if !ok {
		return nil, nil
	}
	if opt.ImageOpt == nil {
		opt.ImageOpt = &sourceresolver.ResolveImageOpt{}
	}
	mode, err := resolver.ParseImageResolveMode(opt.ImageOpt.ResolveMode)
	if err != nil {
		return nil, err
	}
	found, err := d.find(ctx, image, mode, opt.ImageOpt.Platform)
	if found == nil || err != nil {
		return nil, err
	}
	var g session.Group
	if jobCtx != nil {
		g = jobCtx.Session()
	}
	resp, err := d.images.ResolveImageMetadata(ctx, found, opt.ImageOpt, sm, g)
	if err != nil {
		return nil, err
	}
	d.use(image.Reference.String(), resp.Digest)
	return &sourceresolver.MetaResponse{Op: op, Image: resp}, nil
}

// keepsNoIndex reports whether there is a daemon whose store knows images only: its
// own builder makes no index.
func (d *daemonImages) keepsNoIndex(ctx context.Context) bool {
	if d == nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+daemonHost+"/store", nil)
	if err != nil {
		return false
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	var said struct{ Index, Absent bool }
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&said)
	return err == nil && !said.Index && !said.Absent
}

// load has waxseal load an image into the daemon under its names, and returns the ID
// that it has there; "" where no daemon is. The archive is one for every daemon: for
// what keeps no index, one image of it.
func (d *daemonImages) load(ctx context.Context, from content.InfoReaderProvider, image ocispecs.Descriptor, names []string) (id digest.Digest, err error) {
	fail := func(err error) (digest.Digest, error) {
		return "", fmt.Errorf("loading the image into the Docker daemon, as docker's own builder does: %w", err)
	}
	one, opts := image, []archive.ExportOpt{archive.WithManifest(image, names...), archive.WithAllPlatforms()}
	if images.IsIndexType(image.MediaType) {
		if one, err = oneOf(ctx, from, image); err != nil {
			return fail(err)
		}
		opts = append(opts, archive.WithPlatform(platforms.OnlyStrict(*one.Platform)))
	}
	var manifest ocispecs.Manifest
	raw, err := content.ReadBlob(ctx, from, one)
	if err == nil {
		err = json.Unmarshal(raw, &manifest)
	}
	if err != nil {
		return fail(err)
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(archive.Export(ctx, from, w, opts...)) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+daemonHost+"/load?"+url.Values{"name": names}.Encode(), r)
	if err != nil {
		return fail(err)
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	var said struct {
		Index, Absent bool
		Error         string
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&said)
	switch {
	case err != nil:
		return fail(err)
	case said.Error != "":
		return fail(errors.New(said.Error))
	case said.Absent:
		return "", nil
	case said.Index:
		return image.Digest, nil
	}
	return manifest.Config.Digest, nil
}

// oneOf is the image of an index for this machine, or the first there is.
func oneOf(ctx context.Context, from content.Provider, at ocispecs.Descriptor) (ocispecs.Descriptor, error) {
	var index ocispecs.Index
	raw, err := content.ReadBlob(ctx, from, at)
	if err == nil {
		err = json.Unmarshal(raw, &index)
	}
	if err != nil {
		return at, err
	}
	var all []ocispecs.Descriptor
	for _, m := range index.Manifests {
		switch {
		case m.Platform == nil || m.Platform.OS == "unknown": // an attestation
		case platforms.Default().Match(*m.Platform):
			return m, nil
		default:
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return at, fmt.Errorf("index %s has no image", at.Digest)
	}
	return all[0], nil
}

// pushed remembers that a registry has an image that the daemon has, too: builds
// begin with the registry's.
func (d *daemonImages) pushed(names []string, id digest.Digest) {
	for _, name := range names {
		d.brought.Store(imageRef(name), id)
	}
}

// use remembers that an image was the daemon's: its name alone would say that it
// was a registry's.
func (d *daemonImages) use(ref string, digest digest.Digest) {
	d.used.Store(imageRef(ref), true)
	d.used.Store(imageRef(ref)+"@"+digest.String(), true)
}

func (d *daemonImages) has(ref string, digest digest.Digest) bool {
	if d == nil {
		return false
	}
	_, ok := d.used.Load(imageRef(ref) + "@" + digest.String())
	return ok
}

// mode is where an image is looked for. The frontend does not say it again of a
// build context, once it has asked about it.
func (d *daemonImages) mode(id *containerimage.ImageIdentifier) resolver.ResolveMode {
	if d != nil && id.ResolveMode == resolver.ResolveModeDefault {
		if _, ok := d.used.Load(imageRef(id.Reference.String())); ok {
			return resolver.ResolveModePreferLocal
		}
	}
	return id.ResolveMode
}

// daemonURI names an image of the daemon.
func daemonURI(ref string) string {
	if named, err := reference.ParseNormalizedNamed(ref); err == nil {
		ref = reference.FamiliarString(named)
	}
	return attestations.DockerDaemonURI + ref
}

// daemonSource reads images from the daemon, where it has them.
type daemonSource struct {
	source.Source
	daemon *daemonImages
}

func (s *daemonSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	if image, ok := id.(*containerimage.ImageIdentifier); ok {
		found, err := s.daemon.find(ctx, image, s.daemon.mode(image), image.Platform)
		if err != nil {
			return nil, err
		}
		if found != nil {
			s.daemon.use(image.Reference.String(), image.Reference.Digest())
			return s.daemon.images.Resolve(ctx, found, sm, v)
		}
	}
	return s.Source.Resolve(ctx, id, sm, v)
}
