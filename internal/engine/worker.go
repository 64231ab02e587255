package engine

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	ctdsnapshot "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/resolver"
	resolverconfig "github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/version"
	"github.com/moby/buildkit/worker/base"
	wlabel "github.com/moby/buildkit/worker/label"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/waxseal/waxseal/pkg/egress"
)

const (
	snapshotter = "overlayfs"
	networkName = "gateway"
)

// newWorker puts the runc worker together from BuildKit's parts. It does by
// hand what BuildKit's own constructor does, because that one also generates a
// certificate authority for a proxy that waxseal has no use for.
func newWorker(ctx context.Context, cfg Config, cgroupParent string, s *sboms, rec *recorder) (*base.Worker, error) {
	root := filepath.Join(cfg.Root, "runc-"+snapshotter)
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("making the build cache %q: %w", root, err)
	}
	monitor, err := resources.NewMonitor()
	if err != nil {
		return nil, fmt.Errorf("reading /proc: %w", err)
	}
	providers := rec.networks()
	oom := stepOOMAdjust
	opt := runcexecutor.Opt{
		Root:                filepath.Join(root, "executor"),
		CommandCandidates:   []string{"runc"},
		ProcessMode:         oci.ProcessSandbox,
		DefaultCgroupParent: cgroupParent,
		ResourceMonitor:     monitor,
		OOMScoreAdj:         &oom,
		DNS:                 &oci.DNSConfig{Nameservers: []string{egress.Resolver}, SearchDomains: []string{"."}},
	}
	steps := &stepExecutor{root: opt.Root, hostRoot: filepath.Join(root, "executor-host"), sboms: s}
	if steps.Executor, err = runcexecutor.New(opt, providers); err != nil {
		return nil, fmt.Errorf("preparing the executor: %w", err)
	}
	// A step with the machine's network has the machine's name servers.
	opt.Root, opt.DNS = steps.hostRoot, nil
	if steps.host, err = runcexecutor.New(opt, providers); err != nil {
		return nil, fmt.Errorf("preparing the executor: %w", err)
	}
	snaps, err := overlay.NewSnapshotter(filepath.Join(root, "snapshots"), overlay.AsynchronousRemove)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshots of the build cache: %w", err)
	}
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	if err != nil {
		return nil, fmt.Errorf("opening the contents of the build cache: %w", err)
	}
	db, err := bolt.Open(filepath.Join(root, "containerdmeta.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("opening the build cache's database: %w", err)
	}
	// The database is this process's alone from here on.
	if err := dropPartial(ctx, blobs); err != nil {
		return nil, fmt.Errorf("clearing what was left half-loaded in the build cache: %w", err)
	}
	mdb := ctdmetadata.NewDB(db, forgetful{blobs}, map[string]ctdsnapshot.Snapshotter{snapshotter: snaps})
	if err := mdb.Init(ctx); err != nil {
		return nil, fmt.Errorf("reading the build cache's database: %w", err)
	}
	id, err := base.ID(root)
	if err != nil {
		return nil, fmt.Errorf("naming the build cache: %w", err)
	}
	md, err := metadata.NewStore(filepath.Join(root, "metadata_v2.db"))
	if err != nil {
		return nil, fmt.Errorf("opening the build cache's records: %w", err)
	}
	store := containerdsnapshot.NewContentStore(mdb.ContentStore(), "buildkit")
	w, err := base.NewWorker(ctx, base.WorkerOpt{
		ID:   id,
		Root: root,
		// No host name: it would end in the build's provenance.
		Labels: map[string]string{
			wlabel.Executor:       "oci",
			wlabel.Snapshotter:    snapshotter,
			wlabel.Network:        networkName,
			wlabel.OCIProcessMode: oci.ProcessSandbox.String(),
		},
		Platforms:        []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())},
		GCPolicy:         gcPolicy(cfg.Root),
		BuildkitVersion:  client.BuildkitVersion{Package: version.Package, Version: moduleVersion(version.Package)},
		NetworkProviders: providers,
		Executor:         steps,
		Snapshotter:      containerdsnapshot.NewSnapshotter(snapshotter, mdb.Snapshotter(snapshotter), "buildkit", nil),
		ContentStore:     store,
		Applier:          apply.NewFileSystemApplier(store),
		Differ:           walking.NewWalkingDiff(store),
		RegistryHosts:    rec.registryHosts(resolver.NewRegistryConfig(registries(cfg.InsecureRegistries))),
		LeaseManager:     leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), "buildkit"),
		GarbageCollect:   mdb.GarbageCollect,
		MetadataStore:    md,
		MountPoolRoot:    filepath.Join(root, "cachemounts"),
		ResourceMonitor:  monitor,
	})
	if err != nil {
		return nil, err
	}
	rec.blobs = filepath.Join(root, "content", "blobs")
	rec.exists = func(ref string) bool {
		_, ok := md.Get(ref)
		return ok
	}
	return w, rec.watchSources(w)
}

// registries allows plain HTTP and unverified TLS for the named hosts only;
// BuildKit itself already speaks plain HTTP to loopback addresses.
func registries(insecure []string) map[string]resolverconfig.RegistryConfig {
	yes := true
	m := make(map[string]resolverconfig.RegistryConfig, len(insecure))
	for _, host := range insecure {
		m[host] = resolverconfig.RegistryConfig{PlainHTTP: &yes, Insecure: &yes}
	}
	return m
}

// gcPolicy bounds the cache by the disk it is on, as buildkitd does by
// default: at most 100 GB or 80 % of the disk, at least a fifth left free, and
// what nobody used for 60 days goes first.
func gcPolicy(root string) []client.PruneInfo {
	stat, err := disk.GetDiskStat(root)
	if err != nil {
		// Percentages of an unknown disk would be of nothing; the fixed bounds stay.
		stat = disk.DiskStat{}
	}
	var out []client.PruneInfo
	for _, r := range config.DefaultGCPolicy(config.GCConfig{}, stat) {
		out = append(out, client.PruneInfo{
			Filter:        r.Filters,
			All:           r.All,
			KeepDuration:  r.KeepDuration.Duration,
			ReservedSpace: r.ReservedSpace.AsBytes(stat),
			MaxUsedSpace:  r.MaxUsedSpace.AsBytes(stat),
			MinFreeSpace:  r.MinFreeSpace.AsBytes(stat),
		})
	}
	return out
}
