// Package engine is the other side of a build: BuildKit as a library, with
// runc from PATH, the Dockerfile frontend built in, and the SBOM service. Call
// Serve, once a process: it takes over the process's mounts and does not
// return before the work it was started for is over.
//
// The engine is started by waxseal and speaks to nobody else. It opens no
// socket: file descriptor 3 is one end of a socket pair that carries BuildKit's
// control API, 4 one that carries the side channel, 5 a pipe that never has
// data and whose end means that waxseal is gone, 6 the lock of the build
// cache, 7 a pipe with the plan of the inputs, and 8 and 9, where other programs
// ask for builds, the sockets that they connect to: who means a builder of their
// own, and who means docker's. 10 is where waxseal answers for the images of a
// Docker daemon. It expects to be process 1 of its own pid namespace with its own
// mounts, so that nothing it starts outlives it.
package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/cache/remotecache"
	inlineremotecache "github.com/moby/buildkit/cache/remotecache/inline"
	localremotecache "github.com/moby/buildkit/cache/remotecache/local"
	registryremotecache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/worker"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
)

// The file descriptors that waxseal hands over.
const (
	fdControl  = 3
	fdSide     = 4
	fdLifetime = 5
	fdLock     = 6
	fdPlan     = 7
	fdClients  = 8  // only with InputsPlan.Clients
	fdDocker   = 9  // only with InputsPlan.Clients
	fdDaemon   = 10 // only with ClientsPlan.Daemon
)

// stopGrace is how long a cancelled build may take to kill its containers and
// unmount; after it the process ends anyway and the kernel does the rest.
const stopGrace = 8 * time.Second

// cgroupGrace is how long the control groups of killed steps may stay busy. With
// stopGrace it is within the time after which waxseal kills the engine.
const cgroupGrace = 1500 * time.Millisecond

// catalogGrace is how long cataloguing may take to stop. Syft reads on to its own
// end, for as long as a large image takes; it only reads, and the mount that it reads
// through ends with this process.
const catalogGrace = 500 * time.Millisecond

// window is how many bytes may be on their way to waxseal and back.
const window = 8 << 20

// Config is what Serve needs to know.
type Config struct {
	// Root is the build cache's folder; whoever holds its lock owns it.
	Root string
	// Entitlements that builds may ask for: network.host, security.insecure.
	Entitlements []string
	// InsecureRegistries are hosts to which plain HTTP and unverified TLS are
	// allowed when base images are pulled.
	InsecureRegistries []string
	// Version is the engine's own, as reported by the side channel.
	Version string
}

// Serve runs the engine until ctx ends or waxseal closes the lifetime pipe.
// An error of the start is answered on the side channel as well, so that the
// other side can show it.
func Serve(ctx context.Context, cfg Config) error {
	life, err := inherited(fdLifetime, "lifetime pipe")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Nothing is ever written: the read ends when the other side does.
		_, _ = io.Copy(io.Discard, life)
		cancel()
	}()
	if _, err := inherited(fdLock, "cache lock"); err != nil {
		return err
	}
	side, err := inheritedConn(fdSide, "side channel")
	if err != nil {
		return err
	}
	controlConn, err := inheritedConn(fdControl, "control channel")
	if err != nil {
		return err
	}

	plan, err := openPlan()
	if err != nil {
		return err
	}
	sboms := newSBOMs(ctx, cfg)
	rec := newRecorder(cfg, plan)
	others := newClients(cfg, plan)
	svc := newSideService(cfg, sboms, rec, others)
	go svc.serve(side)

	// The rest of BuildKit's words are no news to whoever builds.
	logrus.SetLevel(logrus.ErrorLevel)
	// As in waxseal: gRPC's own pool clears 1 MiB for each message of a blob, which
	// is just over 32 KiB.
	if pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20); err == nil {
		experimental.SetDefaultBufferPool(pool)
	}
	if err := isolate(); err != nil {
		return svc.fail(ctx, err)
	}
	if err := ownTemporary(cfg.Root); err != nil {
		return svc.fail(ctx, explain(cfg.Root, err))
	}
	// Beside the rest of the start. The first that a client asks is which platforms
	// can run here, and that is tried by running a program of each.
	go func() { _, _ = rec.watch() }()
	go archutil.SupportedPlatforms(true)
	// The cache is opened while it is found out whether it can be used: the kernel
	// takes tens of milliseconds to unmount what that takes. Until it is known
	// nobody's build begins.
	missing := make(chan error, 1)
	go func() { missing <- requirements(cfg.Root) }()
	c, err := newController(ctx, cfg, sboms, rec, others)
	if err != nil {
		if need := <-missing; need != nil {
			err = need
		}
		return svc.fail(ctx, explain(cfg.Root, err))
	}
	server := newServer(
		grpc.ChainUnaryInterceptor(grpcerrors.UnaryServerInterceptor, sboms.intercept, rec.intercept),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
	)
	c.Register(server)
	var forOthers []*grpc.Server
	if plan.Clients != nil {
		for _, fd := range []uintptr{fdClients, fdDocker} {
			l, err := clientsListener(fd)
			if err != nil {
				return svc.fail(ctx, err)
			}
			calls := []grpc.UnaryServerInterceptor{grpcerrors.UnaryServerInterceptor, svc.holdBuilds, others.intercept, sboms.intercept, rec.intercept}
			if fd == fdDocker {
				calls = slices.Insert(calls, 1, grpc.UnaryServerInterceptor(meantAsDockers))
			}
			server := newServer(
				grpc.ChainUnaryInterceptor(calls...),
				grpc.ChainStreamInterceptor(grpcerrors.StreamServerInterceptor, others.interceptStream),
			)
			c.Register(server)
			forOthers = append(forOthers, server)
			go serveClients(l, server)
		}
	}
	if err := <-missing; err != nil {
		return svc.fail(ctx, explain(cfg.Root, err)) // the process ends with this
	}
	served := make(chan error, 1)
	l := newOneConn(controlConn)
	go func() { served <- server.Serve(l) }()
	debug.SetGCPercent(100) // waxseal starts us with more, for the tables
	svc.setReady()
	go svc.runc() // every build ends by asking for it

	select {
	case <-ctx.Done():
	case err = <-served:
		return fmt.Errorf("serving the control channel: %w", err)
	}
	stopped := make(chan struct{})
	go func() {
		// This cancels what runs, and waits for it: containers are killed and
		// removed by the executor on the way out. The connection goes first,
		// because the server would wait for the greeting of a silent one.
		controlConn.Close()
		for _, s := range forOthers {
			s.Stop()
		}
		server.Stop()
		ended := sboms.wait(catalogGrace)
		rec.close()
		if ended {
			_ = c.Close()
		}
		removeCgroups(cgroupParent(cfg.Root), cgroupGrace)
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(stopGrace):
		// Process 1 of its own namespace: that is everything it started.
		_ = unix.Kill(-1, unix.SIGKILL)
		removeCgroups(cgroupParent(cfg.Root), cgroupGrace)
		return errors.New("stopping the build: still running after its time was up; killed")
	}
	return nil
}

// newServer makes a server of BuildKit's API.
func newServer(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts,
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		grpc.InitialWindowSize(window),
		grpc.InitialConnWindowSize(window),
		grpc.WriteBufferSize(256<<10),
		grpc.ReadBufferSize(256<<10),
		grpc.WaitForHandlers(true),
	)...)
}

// ownTemporary keeps temporary files in the cache, where the next engine finds
// and removes what a killed one could not. They are seen under a short name in
// the engine's own mounts: the sockets of ssh agents are made there, and the
// path of a socket ends at 107 bytes.
func ownTemporary(root string) error {
	tmp := filepath.Join(root, "tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return fmt.Errorf("clearing the engine's temporary files: %w", err)
	}
	for _, dir := range []string{tmp, shortTemporary} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making the engine's temporary folder: %w", err)
		}
	}
	if err := unix.Mount(tmp, shortTemporary, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mounting the engine's temporary folder: %w", err)
	}
	return os.Setenv("TMPDIR", shortTemporary)
}

func newController(ctx context.Context, cfg Config, sboms *sboms, rec *recorder, others *clients) (*control.Controller, error) {
	parent := cgroupParent(cfg.Root)
	removeCgroups(parent, 0)
	w, err := newWorker(ctx, cfg, parent, sboms, rec)
	if err != nil {
		return nil, err
	}
	others.daemon = rec.daemon
	wc := &worker.Controller{}
	layers := newLayerCache(w, cfg.Root)
	if err := wc.Add(&layerWorker{Worker: w, layers: layers, rec: rec, clients: others}); err != nil {
		return nil, err
	}
	sessions, err := session.NewManager()
	if err != nil {
		return nil, err
	}
	cacheStorage, err := bboltcachestorage.NewStore(filepath.Join(cfg.Root, "cache.db"))
	if err != nil {
		return nil, fmt.Errorf("opening the build cache's index: %w", err)
	}
	history, err := boltutil.SafeOpen(filepath.Join(cfg.Root, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		return nil, fmt.Errorf("opening the build records: %w", err)
	}
	hosts := resolver.NewRegistryConfig(registries(cfg.InsecureRegistries))
	return control.NewController(control.Opt{
		SessionManager:   sessions,
		WorkerController: wc,
		// No gateway.v0: a "# syntax=" line must not run somebody's image as
		// a frontend beside the one that is built in.
		Frontends: map[string]frontend.Frontend{
			builtIn: &clientFrontend{
				Frontend: &recordedResults{
					Frontend: &catalogued{
						Frontend: forwarder.NewGatewayForwarder(wc.Infos(), dockerfile.Build),
						sboms:    sboms,
					},
					rec: rec,
				},
				clients: others,
			},
		},
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registryremotecache.ResolveCacheExporterFunc(sessions, hosts),
			"local":    localremotecache.ResolveCacheExporterFunc(sessions),
			"inline":   inlineremotecache.ResolveCacheExporterFunc(),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registryremotecache.ResolveCacheImporterFunc(sessions, w.ContentStore(), hosts),
			"local":    localremotecache.ResolveCacheImporterFunc(sessions),
		},
		CacheManager:   solver.NewCacheManager(ctx, "local", &watchedCache{cacheStorage, rec}, worker.NewCacheResultStorage(wc)),
		Entitlements:   cfg.Entitlements,
		HistoryDB:      history,
		CacheStore:     cacheStorage,
		LeaseManager:   w.LeaseManager(),
		ContentStore:   w.ContentStore(),
		GarbageCollect: w.GarbageCollect,
		GracefulStop:   ctx.Done(),
	})
}

func inherited(fd uintptr, what string) (*os.File, error) {
	f := os.NewFile(fd, what)
	if f == nil {
		return nil, fmt.Errorf("opening the %s: file descriptor %d is missing; waxseal starts this program itself", what, fd)
	}
	if _, err := f.Stat(); err != nil {
		return nil, fmt.Errorf("opening the %s: file descriptor %d is missing; waxseal starts this program itself", what, fd)
	}
	closeOnExec(fd)
	return f, nil
}

func inheritedConn(fd uintptr, what string) (net.Conn, error) {
	f, err := inherited(fd, what)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("opening the %s: %w", what, err)
	}
	return c, nil
}

// oneConn is a listener whose only connection is there already.
type oneConn struct {
	conn chan net.Conn
	addr net.Addr
	done chan struct{}
}

func newOneConn(c net.Conn) *oneConn {
	l := &oneConn{conn: make(chan net.Conn, 1), addr: c.LocalAddr(), done: make(chan struct{})}
	l.conn <- c
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.addr }
