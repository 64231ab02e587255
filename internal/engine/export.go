package engine

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	commonexptypes "github.com/moby/buildkit/exporter/exptypes"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source/git"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/converter/tarconverter"
	"github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// rewrittenLabel is how BuildKit marks a layer whose times are clamped already.
const rewrittenLabel = "buildkit/rewritten-timestamp"

// Bounds of the layers that are kept for the next build.
const (
	keptLayers     = 256
	keptLayerBytes = 8 << 30
	layersLease    = "waxseal-layers"
)

// layerWorker is a worker whose image exports compress every new layer once.
//
// BuildKit compresses a layer when it is first exported, and where times are to
// be clamped it unpacks that, clamps, and compresses again, at each export. Here
// the layer is first an uncompressed archive, then clamped and compressed in
// one go, and what came of it is remembered: an export with nothing changed
// compresses nothing. The clamping is the same, but that what a step wrote when it
// ran before the epoch, and is reused, is clamped too.
type layerWorker struct {
	*base.Worker
	layers  *layerCache
	rec     *recorder
	clients *clients
}

// ResolveOp gives every result that a step makes a record of what went in.
func (w *layerWorker) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sm *session.Manager, proxy worker.ProxyOpt) (solver.Op, error) {
	op, err := w.Worker.ResolveOp(v, s, sm, proxy)
	if err != nil {
		return nil, err
	}
	return w.rec.recorded(op, v, sm), nil
}

// ResolveSourceMetadata answers for git repositories from the lock, where
// there is one, and for the images of the Docker daemon.
func (w *layerWorker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, jobCtx solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if w.rec.git != nil && w.rec.plan.Locked() {
		id, err := w.ParseSource(op, nil)
		if g, ok := id.(*git.GitIdentifier); err == nil && ok {
			if resp, err := w.rec.git.resolveGit(op, g, opt.GitOpt != nil && opt.GitOpt.ReturnObject); resp != nil || err != nil {
				return resp, err
			}
		}
	}
	if resp, err := w.rec.daemon.metadata(ctx, w.Worker, op, opt, sm, jobCtx); resp != nil || err != nil {
		return resp, err
	}
	return w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, jobCtx)
}

func (w *layerWorker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	e, err := w.Worker.Exporter(name, sm)
	if err == nil && name == client.ExporterLocal {
		e = &folderExporter{e, sm}
	}
	if err == nil && w.rec.plan.Clients != nil {
		return &heldExporter{e, w.ContentStore(), w.LeaseManager(), w.clients}, nil
	}
	if err != nil || (name != client.ExporterOCI && name != client.ExporterDocker) || w.rec.plan.plainLayers() {
		return e, err
	}
	return &layerExporter{Exporter: e, layers: w.layers, rec: w.rec}, nil
}

type layerExporter struct {
	exporter.Exporter
	layers *layerCache
	rec    *recorder
}

func (e *layerExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	comp := i.Config().Compression()
	if comp.Force || (comp.Type != compression.Gzip && comp.Type != compression.Zstd) {
		return i, nil
	}
	clamp, _ := strconv.ParseBool(attrs[string(exptypes.OptKeyRewriteTimestamp)])
	return &layerInstance{ExporterInstance: i, layers: e.layers, rec: e.rec, comp: comp, clamp: clamp, epoch: attrs[string(commonexptypes.OptKeySourceDateEpoch)]}, nil
}

type layerInstance struct {
	exporter.ExporterInstance
	layers *layerCache
	rec    *recorder
	comp   compression.Config
	clamp  bool
	epoch  string
}

// Config asks those who export the cache to compress: the blobs that they find
// there are uncompressed.
func (i *layerInstance) Config() *exporter.Config {
	return exporter.NewConfigWithCompression(i.comp.SetForce(true))
}

func (i *layerInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	ours, err := i.wrap(src)
	if err != nil {
		return nil, nil, nil, err
	}
	resp, finalize, ref, err := i.ExporterInstance.Export(ctx, ours, info)
	if err == nil {
		// Only a cache: an export that is done is done without it.
		_ = i.layers.save()
	}
	return resp, finalize, ref, err
}

// wrap replaces the references of src by ones that give finished layers.
func (i *layerInstance) wrap(src *exporter.Source) (*exporter.Source, error) {
	src = src.Clone()
	if src.Ref == nil && len(src.Refs) == 0 {
		return src, nil
	}
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, fmt.Errorf("reading the result's platforms: %w", err)
	}
	for _, p := range ps.Platforms {
		ref, ok := src.FindRef(p.ID)
		if !ok || ref == nil {
			continue
		}
		l := &layerRef{ImmutableRef: ref, layers: i.layers, comp: i.comp}
		if i.clamp {
			if l.epoch, err = i.epochOf(src, &p); err != nil {
				return nil, err
			}
			if l.epoch != nil {
				l.ran = i.rec.ranBefore(*l.epoch, ref.ID())
			}
		}
		if raw := exptypes.ParseKey(src.Metadata, exptypes.ExporterImageBaseConfigKey, &p); len(raw) > 0 {
			var img ocispecs.Image
			if err := json.Unmarshal(raw, &img); err != nil {
				return nil, fmt.Errorf("reading the base image's configuration: %w", err)
			}
			l.base = img.RootFS.DiffIDs
		}
		if len(src.Refs) == 0 {
			src.Ref = l
		} else {
			src.Refs[p.ID] = l
		}
	}
	return src, nil
}

// epochOf finds the time of a platform as BuildKit's own export does.
func (i *layerInstance) epochOf(src *exporter.Source, p *exptypes.Platform) (*time.Time, error) {
	if i.epoch == "" {
		return epoch.ParseSource(src, p)
	}
	sec, err := strconv.ParseInt(i.epoch, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("reading source-date-epoch %q: %w", i.epoch, err)
	}
	t := time.Unix(sec, 0).UTC()
	return &t, nil
}

// layerRef is a reference whose new layers come clamped and compressed.
type layerRef struct {
	cache.ImmutableRef
	layers *layerCache
	comp   compression.Config
	epoch  *time.Time      // nil leaves times alone
	ran    []interval      // when steps ran that are older than epoch
	base   []digest.Digest // layers of the base image stay as they are
}

// interval is a time in which a step ran, in whole seconds as layers have them.
type interval struct{ from, to int64 }

// ranBefore lists when the steps behind a result ran that began before t. What
// they wrote has the time of a run, as what a later step writes: a step that is
// reused from before a commit must give the layer that running it anew gives.
func (r *recorder) ranBefore(t time.Time, ref string) []interval {
	var out []interval
	r.lineage.walk(edge{Ref: ref}, func(_ edge, res result, _ bool) {
		if st := r.lineage.step(res.Step); res.Step != "" && st != nil && st.StartedOn != nil && st.FinishedOn != nil && st.StartedOn.Before(t) {
			out = append(out, interval{st.StartedOn.Unix(), st.FinishedOn.Unix()})
		}
	})
	slices.SortFunc(out, func(a, b interval) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to)) })
	return slices.Compact(out)
}

func (r *layerRef) GetRemotes(ctx context.Context, create bool, cfg cacheconfig.RefConfig, all bool, g session.Group) ([]*solver.Remote, error) {
	cfg.Compression = compression.New(compression.Uncompressed)
	remotes, err := r.ImmutableRef.GetRemotes(ctx, create, cfg, all, g)
	if err != nil || !create || len(remotes) == 0 {
		return remotes, err
	}
	remote := remotes[0]
	descs := slices.Clone(remote.Descriptors)
	provider := contentutil.NewMultiProvider(remote.Provider)
	cs := contentutil.NewStoreWithProvider(r.layers.store, remote.Provider)
	eg, egctx := errgroup.WithContext(ctx)
	inBase := true
	for i, d := range descs {
		diffID := digest.Digest(d.Annotations[labels.LabelUncompressed])
		if info, err := cs.Info(ctx, d.Digest); diffID == "" && err == nil {
			diffID = digest.Digest(info.Labels[labels.LabelUncompressed])
		}
		if inBase = inBase && i < len(r.base) && r.base[i] == diffID; inBase {
			continue
		}
		if r.epoch == nil && !compression.IsMediaType(compression.Uncompressed, d.MediaType) {
			continue
		}
		eg.Go(func() error {
			finished, err := r.layers.finish(egctx, cs, d, r.comp, r.epoch, r.ran)
			if err != nil {
				return fmt.Errorf("compressing layer %s: %w", d.Digest, err)
			}
			descs[i] = finished
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	for i, d := range descs {
		if d.Digest != remote.Descriptors[i].Digest {
			provider.Add(d.Digest, r.layers.store)
		}
	}
	return []*solver.Remote{{Descriptors: descs, Provider: provider}}, nil
}

// layerCache remembers what became of layers. Its contents are only ever
// found again by the digest of what they were made of.
type layerCache struct {
	store  content.Store
	leases leases.Manager
	file   string

	mu    sync.Mutex
	known map[string]keptLayer
	dirty bool // known differs from the file
}

type keptLayer struct {
	Digest digest.Digest `json:"digest"`
	DiffID digest.Digest `json:"diffID"`
	Size   int64         `json:"size"`
	Used   int64         `json:"used"`
}

func newLayerCache(w *base.Worker, root string) *layerCache {
	c := &layerCache{store: w.ContentStore(), leases: w.LeaseManager(), file: filepath.Join(root, "layers.json"), known: map[string]keptLayer{}}
	if raw, err := os.ReadFile(c.file); err == nil && json.Unmarshal(raw, &c.known) != nil {
		c.known = map[string]keptLayer{} // a cache: what cannot be read is made again
	}
	return c
}

// finish returns the clamped and compressed form of a layer.
func (c *layerCache) finish(ctx context.Context, cs content.Store, d ocispecs.Descriptor, comp compression.Config, epoch *time.Time, ran []interval) (ocispecs.Descriptor, error) {
	key := fmt.Sprintf("%s %s %s", d.Digest, comp.Type, levelOf(comp))
	if epoch != nil {
		key += fmt.Sprintf(" %d", epoch.Unix())
		if len(ran) > 0 {
			key += " " + digest.FromString(fmt.Sprint(ran)).Encoded()
		}
	}
	l, ok := c.find(ctx, key)
	if !ok {
		var err error
		if l, err = c.make(ctx, cs, d, comp, epoch, ran); err != nil {
			return d, err
		}
		c.keep(ctx, key, l)
	}
	annotations := map[string]string{labels.LabelUncompressed: l.DiffID.String()}
	if epoch != nil {
		annotations[rewrittenLabel] = strconv.FormatInt(epoch.Unix(), 10)
	}
	d.MediaType, d.Digest, d.Size, d.Annotations, d.URLs = comp.Type.MediaType(), l.Digest, l.Size, annotations, nil
	return d, nil
}

func levelOf(comp compression.Config) string {
	if comp.Level == nil {
		return "default"
	}
	return strconv.Itoa(*comp.Level)
}

func (c *layerCache) find(ctx context.Context, key string) (keptLayer, bool) {
	c.mu.Lock()
	l, ok := c.known[key]
	c.mu.Unlock()
	if !ok {
		return l, false
	}
	if info, err := c.store.Info(ctx, l.Digest); err != nil || info.Size != l.Size {
		return l, false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	l.Used = time.Now().Unix()
	c.known[key], c.dirty = l, true
	return l, true
}

func (c *layerCache) make(ctx context.Context, cs content.Store, d ocispecs.Descriptor, comp compression.Config, epoch *time.Time, ran []interval) (l keptLayer, err error) {
	from, err := compression.FromMediaType(d.MediaType)
	if err != nil {
		return l, err
	}
	w, err := cs.Writer(ctx, content.WithRef("waxseal-layer-"+identity.NewID()))
	if err != nil {
		return l, err
	}
	defer w.Close()
	in, err := from.Decompress(ctx, cs, d)
	if err != nil {
		return l, err
	}
	defer in.Close()
	plain := in
	if epoch != nil {
		plain = tarconverter.NewReader(in, clampTo(*epoch, ran))
		defer plain.Close()
	}
	out := bufio.NewWriterSize(w, 128<<10)
	z, err := compressor(ctx, comp, out)
	if err != nil {
		return l, err
	}
	diffID := digest.Canonical.Digester()
	if _, err := io.Copy(z, io.TeeReader(plain, diffID.Hash())); err != nil {
		z.Close()
		return l, err
	}
	if err := z.Close(); err != nil {
		return l, err
	}
	if err := out.Flush(); err != nil {
		return l, err
	}
	l.DiffID = diffID.Digest()
	kept := map[string]string{labels.LabelUncompressed: l.DiffID.String()}
	if epoch != nil {
		kept[rewrittenLabel] = strconv.FormatInt(epoch.Unix(), 10)
	}
	l.Digest = w.Digest()
	if err := w.Commit(ctx, 0, "", content.WithLabels(kept)); err != nil && !errdefs.IsAlreadyExists(err) {
		return l, err
	}
	info, err := cs.Info(ctx, l.Digest)
	if err != nil {
		return l, err
	}
	l.Size, l.Used = info.Size, time.Now().Unix()
	return l, nil
}

// compressor is BuildKit's own, but for gzip, where another implementation
// takes half the time.
func compressor(ctx context.Context, comp compression.Config, out io.Writer) (io.WriteCloser, error) {
	if comp.Type == compression.Gzip {
		level := gzip.DefaultCompression
		if comp.Level != nil {
			level = *comp.Level
		}
		return gzip.NewWriterLevel(out, level)
	}
	compress, _ := comp.Type.Compress(ctx, comp)
	return compress(nopCloser{out}, comp.Type.MediaType())
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func clampTo(t time.Time, ran []interval) tarconverter.HeaderConverter {
	return func(h *tar.Header) {
		for _, at := range []*time.Time{&h.ModTime, &h.AccessTime, &h.ChangeTime} {
			during := func(i interval) bool { return i.from <= at.Unix() && at.Unix() <= i.to }
			if at.After(t) || slices.ContainsFunc(ran, during) {
				*at = t
			}
		}
	}
}

// keep makes a layer outlive the build, within bounds. What goes wrong here
// only costs the next build time.
func (c *layerCache) keep(ctx context.Context, key string, l keptLayer) {
	lease := leases.Lease{ID: layersLease}
	if _, err := c.leases.Create(ctx, leases.WithID(layersLease)); err != nil && !errdefs.IsAlreadyExists(err) {
		return
	}
	resource := func(l keptLayer) leases.Resource {
		return leases.Resource{ID: l.Digest.String(), Type: "content"}
	}
	if c.leases.AddResource(ctx, lease, resource(l)) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known[key], c.dirty = l, true
	for _, old := range c.excess() {
		gone := c.known[old]
		delete(c.known, old)
		if !slices.ContainsFunc(slices.Collect(maps.Values(c.known)), func(k keptLayer) bool { return k.Digest == gone.Digest }) {
			_ = c.leases.DeleteResource(ctx, lease, resource(gone))
		}
	}
}

// excess lists the longest unused entries beyond the bounds.
func (c *layerCache) excess() []string {
	keys := slices.SortedFunc(maps.Keys(c.known), func(a, b string) int { return int(c.known[b].Used - c.known[a].Used) })
	var total int64
	for i, k := range keys {
		if total += c.known[k].Size; i == keptLayers || total > keptLayerBytes {
			return keys[i:]
		}
	}
	return nil
}

// save writes what is known for the next engine.
func (c *layerCache) save() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.dirty {
		return nil
	}
	raw, err := json.Marshal(c.known)
	if err != nil {
		return err
	}
	tmp := c.file + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	c.dirty = false
	return os.Rename(tmp, c.file)
}
