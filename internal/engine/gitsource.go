package engine

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/git"
	"github.com/moby/buildkit/util/gitutil"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// gitKeyRecord is the record in a kept tree's global header under which
// BuildKit's cache key of the checkout stands: with it a replay finds the same
// results in the cache.
const gitKeyRecord = "WAXSEAL.git.key"

// gitCommitRecord is where the commit stands, as git wrote it: a build that
// takes its time from there must have it without the repository.
const gitCommitRecord = "WAXSEAL.git.commit"

// maxCommit bounds a kept commit: an archive's header has room for a megabyte.
const maxCommit = 512 << 10

// maxTreeFiles bounds the files of a kept tree.
const maxTreeFiles = attest.MaxContextFiles

// gitSource is BuildKit's source of git repositories, but that it keeps what
// was checked out, and under a lock gives that back.
type gitSource struct {
	*git.Source
	rec   *recorder
	cache cache.Accessor

	mu   sync.Mutex
	seen map[string]gitCheckout // by name
}

// gitCheckout is what is known of a checkout.
type gitCheckout struct {
	Key  string `json:"key"`
	Pin  string `json:"pin"`
	Tree string `json:"tree,omitempty"`
}

func (r *recorder) newGitSource(s *git.Source, c cache.Accessor) *gitSource {
	r.git = &gitSource{Source: s, rec: r, cache: c, seen: map[string]gitCheckout{}}
	return r.git
}

// gitName names what is checked out as a URL of ADD would.
func gitName(id *git.GitIdentifier) string {
	name := id.Remote
	var opts []string
	if id.KeepGitDir {
		opts = append(opts, "keep-git-dir=true")
	}
	if id.SkipSubmodules {
		opts = append(opts, "submodules=false")
	}
	if id.MTime != "" && id.MTime != "checkout" {
		opts = append(opts, "mtime="+id.MTime)
	}
	if len(opts) > 0 {
		name += "?" + strings.Join(opts, "&")
	}
	if id.Ref != "" || id.Subdir != "" {
		name += "#" + id.Ref
		if id.Subdir != "" {
			name += ":" + id.Subdir
		}
	}
	return name
}

func (s *gitSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	inner, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	g, ok := id.(*git.GitIdentifier)
	if !ok || g.CheckoutBundle || g.Bundle != "" {
		return inner, nil
	}
	name, err := s.shape(g)
	if err != nil {
		return nil, err
	}
	return &gitInstance{SourceInstance: inner, source: s, id: g, name: name, sm: sm}, nil
}

// shape is the name of a checkout without credentials, as a lock has it.
func (s *gitSource) shape(id *git.GitIdentifier) (string, error) {
	w, err := s.rec.watch()
	if err != nil {
		return "", err
	}
	return lock.Shape(w.redactor.URI(gitName(id))), nil
}

type gitInstance struct {
	source.SourceInstance
	source *gitSource
	id     *git.GitIdentifier
	name   string
	sm     *session.Manager
	key    string
	pin    string
	tree   attest.Digest // that the lock lists and the store has
}

// locked finds what the lock has of a checkout; nil in mode record.
func (s *gitSource) locked(name string) (*lock.Source, *watch, error) {
	w, err := s.rec.watch()
	if err != nil || !s.rec.plan.Locked() {
		return nil, w, err
	}
	for i, l := range w.lock.Sources {
		if l.Kind == lock.KindGit && lock.Shape(l.Ref) == name {
			return &w.lock.Sources[i], w, nil
		}
	}
	return nil, w, lockViolation("git "+name, "", "")
}

func (i *gitInstance) CacheKey(ctx context.Context, jobCtx solver.JobContext, index int) (string, string, solver.CacheOpts, bool, error) {
	if i.source.rec.plan.Mode == attestations.InputsNone {
		return "", "", nil, false, &violationError{step: "git " + i.name, texts: []string{"with --inputs none the build may not use the network"}}
	}
	held, w, err := i.source.locked(i.name)
	if err != nil {
		return "", "", nil, false, err
	}
	if held != nil && held.Tree != "" && w.store != nil && w.store.Has(held.Tree) && i.id.VerifySignature == nil {
		head, err := treeHead(w.store, held.Tree)
		if err != nil {
			return "", "", nil, false, err
		}
		key := head[gitKeyRecord]
		i.key, i.pin, i.tree = key, strings.TrimPrefix(held.Digest, "gitCommit:"), held.Tree
		i.source.remember(i.name, gitCheckout{Key: key, Pin: i.pin, Tree: string(held.Tree)})
		return i.key, i.pin, nil, true, nil
	}
	if i.source.rec.plan.Offline() {
		return "", "", nil, false, fmt.Errorf("%s: git %s: the store does not have its files, and the build is offline", violationPrefix, i.name)
	}
	if err := i.source.hostAllowed(i.id, i.name); err != nil {
		return "", "", nil, false, err
	}
	key, pin, opts, done, err := i.SourceInstance.CacheKey(ctx, jobCtx, index)
	if err != nil {
		return key, pin, opts, done, err
	}
	if held != nil && held.Digest != "gitCommit:"+pin {
		return "", "", nil, false, lockViolation("git "+i.name, held.Digest, "gitCommit:"+pin)
	}
	i.key, i.pin = key, pin
	co := gitCheckout{Key: key, Pin: pin}
	if old, ok := i.source.known(i.name, key); ok {
		co.Tree = old.Tree
	}
	i.source.remember(i.name, co)
	return key, pin, opts, done, nil
}

// hostAllowed holds git, which does not pass the gateway, to its hosts.
func (s *gitSource) hostAllowed(id *git.GitIdentifier, name string) error {
	w, err := s.rec.watch()
	if err != nil {
		return err
	}
	u, err := gitutil.ParseURL(id.Remote)
	if err != nil {
		return fmt.Errorf("reading the git address %s: %w", name, err)
	}
	host, port := u.Host, map[string]int{gitutil.HTTPSProtocol: 443, gitutil.HTTPProtocol: 80, gitutil.SSHProtocol: 22, gitutil.GitProtocol: 9418}[u.Scheme]
	if h, p, err := net.SplitHostPort(u.Host); err == nil {
		host = h
		if port, err = strconv.Atoi(p); err != nil {
			return fmt.Errorf("reading the git address %s: port %q", name, p)
		}
	}
	if w.gateway.Allows(host, port) {
		return nil
	}
	return &violationError{step: "git " + name, texts: []string{fmt.Sprintf("%s is not an allowed host: add --allow-host %s if it should be", host, host)}}
}

func (i *gitInstance) Snapshot(ctx context.Context, jobCtx solver.JobContext) (cache.ImmutableRef, error) {
	if i.key == "" {
		if _, _, _, _, err := i.CacheKey(ctx, jobCtx, 0); err != nil {
			return nil, err
		}
	}
	w, err := i.source.rec.watch()
	if err != nil {
		return nil, err
	}
	if i.tree != "" {
		return i.source.restore(ctx, jobCtx, w.store, i.tree, i.name)
	}
	ref, err := i.SourceInstance.Snapshot(ctx, jobCtx)
	if err != nil || ref == nil || w.store == nil {
		return ref, err
	}
	tree, err := i.keep(ctx, jobCtx, ref, w.store)
	if err != nil {
		_ = ref.Release(context.WithoutCancel(ctx))
		return nil, fmt.Errorf("keeping the files of git %s: %w", i.name, err)
	}
	co := gitCheckout{Key: i.key, Pin: i.pin, Tree: string(tree)}
	i.source.remember(i.name, co)
	i.source.rec.lineage.keepNote("git "+i.name+" "+i.key, co)
	return ref, nil
}

func (s *gitSource) remember(name string, co gitCheckout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[name] = co
}

// known is what an earlier build kept of the same checkout.
func (s *gitSource) known(name, key string) (gitCheckout, bool) {
	var co gitCheckout
	ok := s.rec.lineage.note("git "+name+" "+key, &co)
	return co, ok && co.Key == key
}

// sources lists the checkouts of a definition.
func (s *gitSource) sources(def *pb.Definition, w *watch) []attestations.InputSource {
	var out []attestations.InputSource
	if def == nil {
		return nil
	}
	for _, raw := range def.Def {
		op := &pb.Op{}
		if op.UnmarshalVT(raw) != nil {
			continue
		}
		src := op.GetSource()
		if src == nil {
			continue
		}
		scheme, ref, ok := strings.Cut(src.Identifier, "://")
		if !ok || !slices.Contains(s.Schemes(), scheme) {
			continue
		}
		id, err := s.Identifier(scheme, ref, src.Attrs, op.Platform)
		if err != nil {
			continue
		}
		g, ok := id.(*git.GitIdentifier)
		if !ok {
			continue
		}
		name, err := s.shape(g)
		if err != nil {
			continue
		}
		s.mu.Lock()
		co, ok := s.seen[name]
		s.mu.Unlock()
		if !ok {
			continue
		}
		is := attestations.InputSource{Kind: "git", URI: w.redactor.URI(gitName(g)), Digest: "gitCommit:" + co.Pin, Tree: co.Tree}
		is.Stored = w.store != nil && co.Tree != "" && w.has(co.Tree)
		if !slices.Contains(out, is) {
			out = append(out, is)
		}
	}
	return out
}

// keep puts the files of a checkout into the store, in one order and with the
// times that the commit gives them, if any: those of the checkout are chance.
func (i *gitInstance) keep(ctx context.Context, jobCtx solver.JobContext, ref cache.ImmutableRef, store *lock.Store) (_ attest.Digest, err error) {
	dir, done, err := mounted(ctx, jobCtx, ref, true)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, done()) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	out, err := store.NewWriter()
	if err != nil {
		return "", err
	}
	defer out.Abort()
	head := map[string]string{gitKeyRecord: i.key}
	if commit := i.commit(ctx, jobCtx); commit != "" {
		head[gitCommitRecord] = commit
	}
	if err := writeTree(out, root, head, i.id.MTime == "commit"); err != nil {
		return "", err
	}
	return out.Commit()
}

// commit is the commit that was checked out, from the repository that BuildKit
// has fetched by now; "" where that does not tell. A replay that would need it
// then says so.
func (i *gitInstance) commit(ctx context.Context, jobCtx solver.JobContext) string {
	id := *i.id
	id.Ref, id.Checksum, id.FetchByCommit, id.VerifySignature = i.pin, "", false, nil
	md, err := i.source.ResolveMetadata(ctx, &id, i.sm, jobCtx, git.MetadataOpts{ReturnObject: true})
	if err != nil || len(md.CommitObject) > maxCommit {
		return ""
	}
	return string(md.CommitObject)
}

// mounted mounts a reference for reading.
func mounted(ctx context.Context, jobCtx solver.JobContext, ref cache.Mountable, readonly bool) (string, func() error, error) {
	m, err := ref.Mount(ctx, readonly, groupOf(jobCtx))
	if err != nil {
		return "", nil, err
	}
	lm := snapshot.LocalMounter(m)
	dir, err := lm.Mount()
	if err != nil {
		return "", nil, err
	}
	return dir, lm.Unmount, nil
}

func groupOf(jobCtx solver.JobContext) session.Group {
	if jobCtx == nil {
		return nil
	}
	return jobCtx.Session()
}

// writeTree writes the files below root as an archive that depends on nothing
// but them.
func writeTree(out io.Writer, root *os.Root, head map[string]string, times bool) error {
	tw := tar.NewWriter(out)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: head, Format: tar.FormatPAX}); err != nil {
		return err
	}
	files := 0
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name == "." {
			return nil
		}
		if files++; files > maxTreeFiles {
			return fmt.Errorf("more than %d files", maxTreeFiles)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if link, err = root.Readlink(name); err != nil {
				return err
			}
		case !info.Mode().IsRegular() && !info.IsDir():
			return fmt.Errorf("%s is no file, folder or link", name)
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		h.Name = name
		if info.IsDir() {
			h.Name += "/"
		}
		h.Format, h.Uname, h.Gname, h.AccessTime, h.ChangeTime = tar.FormatPAX, "", "", time.Time{}, time.Time{}
		if !times {
			h.ModTime = time.Unix(0, 0)
		}
		if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := root.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// treeHead reads what is kept with a tree: its cache key, and the commit.
func treeHead(store *lock.Store, d attest.Digest) (map[string]string, error) {
	b, err := store.OpenVerified(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	h, err := tar.NewReader(b).Next()
	if err != nil || h.Typeflag != tar.TypeXGlobalHeader || h.PAXRecords[gitKeyRecord] == "" {
		return nil, fmt.Errorf("reading the kept files %s: not an archive of a git checkout", d)
	}
	return h.PAXRecords, nil
}

// restore makes a checkout of a kept tree.
func (s *gitSource) restore(ctx context.Context, jobCtx solver.JobContext, store *lock.Store, d attest.Digest, name string) (_ cache.ImmutableRef, err error) {
	g := groupOf(jobCtx)
	b, err := store.OpenVerified(d)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	ref, err := s.cache.New(ctx, nil, g, cache.WithRecordType(client.UsageRecordTypeGitCheckout), cache.WithDescription("git snapshot from the store"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = ref.Release(context.WithoutCancel(ctx))
		}
	}()
	dir, done, err := mounted(ctx, jobCtx, ref, false)
	if err != nil {
		return nil, err
	}
	err = readTree(b, dir)
	if uerr := done(); err == nil {
		err = uerr
	}
	if err != nil {
		return nil, fmt.Errorf("giving back the files of git %s: %w", name, err)
	}
	return ref.Commit(ctx)
}

// readTree unpacks a kept tree into dir, and nowhere else.
func readTree(in io.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	type stamp struct {
		name string
		at   time.Time
	}
	var stamps []stamp
	r := tar.NewReader(in)
	for files := 0; ; files++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if files > maxTreeFiles {
			return fmt.Errorf("more than %d files", maxTreeFiles)
		}
		name := strings.TrimSuffix(h.Name, "/")
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if !filepath.IsLocal(name) || path.Clean(name) != name {
			return fmt.Errorf("the name %q leads elsewhere", h.Name)
		}
		mode := h.FileInfo().Mode()
		switch h.Typeflag {
		case tar.TypeDir:
			if err := root.Mkdir(name, mode.Perm()); err != nil {
				return err
			}
		case tar.TypeSymlink:
			if err := root.Symlink(h.Linkname, name); err != nil {
				return err
			}
			continue
		case tar.TypeReg:
			f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode.Perm())
			if err != nil {
				return err
			}
			_, err = io.CopyN(f, r, h.Size)
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is no file, folder or link", h.Name)
		}
		if err := root.Chmod(name, mode.Perm()); err != nil {
			return err
		}
		if h.ModTime.Unix() != 0 {
			stamps = append(stamps, stamp{name, h.ModTime})
		}
	}
	for _, s := range slices.Backward(stamps) {
		if err := root.Chtimes(s.name, s.at, s.at); err != nil {
			return err
		}
	}
	return nil
}

// resolveGit answers what a git URL stands for from the lock, where the store
// has the files. object asks for the commit as well: for its time.
func (s *gitSource) resolveGit(op *pb.SourceOp, id *git.GitIdentifier, object bool) (*sourceresolver.MetaResponse, error) {
	name, err := s.shape(id)
	if err != nil {
		return nil, err
	}
	held, w, err := s.locked(name)
	if err != nil {
		return nil, err
	}
	if held == nil {
		return nil, s.hostAllowed(id, name)
	}
	if held.Tree == "" || w.store == nil || !w.store.Has(held.Tree) {
		if s.rec.plan.Offline() {
			return nil, fmt.Errorf("%s: git %s: the store does not have its files, and the build is offline", violationPrefix, name)
		}
		return nil, nil
	}
	pin := strings.TrimPrefix(held.Digest, "gitCommit:")
	answer := &sourceresolver.ResolveGitResponse{Checksum: pin, CommitChecksum: pin, Ref: id.Ref}
	if object {
		head, err := treeHead(w.store, held.Tree)
		if err != nil {
			return nil, err
		}
		if answer.CommitObject = []byte(head[gitCommitRecord]); len(answer.CommitObject) == 0 {
			if s.rec.plan.Offline() {
				return nil, fmt.Errorf("%s: git %s: the store does not have its commit, whose time is asked for, and the build is offline", violationPrefix, name)
			}
			return nil, s.hostAllowed(id, name)
		}
	}
	return &sourceresolver.MetaResponse{Op: op, Git: answer}, nil
}
