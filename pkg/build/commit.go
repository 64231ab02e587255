package build

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git's
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// maxPlaces bounds the places in which the repository of a command's builds is
// looked for.
const maxPlaces = 16

// repositories are the git repositories that what a command built can be from:
// that of its working folder, and those of the files and folders that it was
// given by name.
type repositories struct {
	list []*repository
	err  error // git would not answer for one of them
}

// repository is one of them, with the commit that is checked out.
type repository struct {
	root string // folder, free of links
	head GitState
	at   []string // places in it that the command has to do with
	tree func() (map[string]gitFile, error)
}

// gitFile is a file of a commit, or one in the same form.
type gitFile struct{ mode, id string }

func findRepositories(ctx context.Context, args []string) *repositories {
	out := &repositories{}
	places := []string{"."}
	for _, a := range args[1:] {
		_, value, _ := strings.Cut(a, "=")
		for _, name := range []string{a, value} {
			if st, err := os.Stat(name); err == nil && name != "" && len(places) < maxPlaces {
				if !st.IsDir() {
					name = filepath.Dir(name)
				}
				places = append(places, name)
			}
		}
	}
	for _, dir := range places {
		if err := out.add(ctx, dir); err != nil {
			out.err = errors.Join(out.err, err)
		}
	}
	return out
}

func (r *repositories) add(ctx context.Context, dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return err
	}
	for _, known := range r.list {
		// One in it would have a .git of its own.
		if rel, err := filepath.Rel(known.root, dir); err == nil && filepath.IsLocal(rel) && !hasOwnGit(dir, known.root) {
			known.at = append(known.at, slashed(rel))
			return nil
		}
	}
	head, err := gitHead(ctx, dir)
	if err != nil || head == nil {
		return err
	}
	repo := &repository{root: dir, head: *head, at: []string{head.Subdir}}
	for range strings.Count(head.Subdir, "/") + min(len(head.Subdir), 1) {
		repo.root = filepath.Dir(repo.root)
	}
	repo.head.Subdir = ""
	repo.tree = sync.OnceValues(func() (map[string]gitFile, error) { return listCommit(ctx, repo.root, head.Commit) })
	r.list = append(r.list, repo)
	return nil
}

// hasOwnGit reports whether there is a repository at dir or above it, below
// root.
func hasOwnGit(dir, root string) bool {
	for ; dir != root; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
	}
	return false
}

// slashed is a path in a repository, "" for its root.
func slashed(rel string) string {
	if rel = filepath.ToSlash(filepath.Clean(rel)); rel == "." {
		return ""
	}
	return rel
}

// gitModule is the mode of a submodule in a commit.
const gitModule = "160000"

// listCommit lists the files of a commit, and those of its submodules that are
// checked out.
func listCommit(ctx context.Context, dir, commit string) (map[string]gitFile, error) {
	out := map[string]gitFile{}
	return out, addCommit(ctx, out, dir, "", commit, 0)
}

// addCommit lists a commit of the repository at a place in dir.
func addCommit(ctx context.Context, out map[string]gitFile, dir, at, commit string, depth int) error {
	tree, err := listTree(ctx, filepath.Join(dir, filepath.FromSlash(at)), commit)
	if err != nil {
		return err
	}
	for name, f := range tree {
		name = path.Join(at, name)
		out[name] = f
		if f.mode != gitModule || depth >= maxSubmoduleDepth {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(name), ".git")); err != nil {
			continue
		}
		// It may be without that commit: then no file in it is as committed.
		if err := addCommit(ctx, out, dir, name, f.id, depth+1); ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// listTree lists the files of a commit of the repository that dir is in.
func listTree(ctx context.Context, dir, commit string) (map[string]gitFile, error) {
	raw, err := runGit(ctx, dir, "ls-tree", "-r", "-z", "--full-tree", commit)
	if err != nil {
		return nil, err
	}
	out := map[string]gitFile{}
	for rec := range strings.SplitSeq(string(raw), "\x00") {
		about, name, ok := strings.Cut(rec, "\t")
		if fields := strings.Fields(about); ok && len(fields) == 3 {
			out[name] = gitFile{fields[0], fields[2]}
		}
	}
	return out, nil
}

// moduleOf is the place of the repository that has a path: that of a submodule,
// or "".
func moduleOf(tree map[string]gitFile, at string) string {
	for at = path.Dir(at); at != "." && at != "/"; at = path.Dir(at) {
		if tree[at].mode == gitModule {
			return at
		}
	}
	return ""
}

// sentFiles are the files that a client sent for an image, as git would name
// them.
type sentFiles struct {
	context    map[string]gitFile
	folders    map[string]bool
	dockerfile map[string]gitFile // by the name that the frontend asked for
	buf        []byte
}

// beginSource finds out which commit an image was made of while other things
// happen; the function that it returns waits for it.
func (s *sealer) beginSource(ctx context.Context, img *clientImage, w *sealedImage) func() *GitState {
	if img.legacy() || w.in.described.Kind != "directory" {
		return func() *GitState { return nil }
	}
	ready := make(chan *GitState, 1)
	go func() {
		g, err := s.sourceOf(ctx, img, w)
		if err != nil {
			w.run.notes.add("git state unknown: %v", err)
			g = nil
		}
		ready <- g
	}()
	return func() *GitState { return <-ready }
}

// sourceOf compares what a client sent with the commits that are checked out,
// file by file. What the client says of its repository is no more than a hint
// where to look.
func (s *sealer) sourceOf(ctx context.Context, img *clientImage, w *sealedImage) (*GitState, error) {
	repos := s.repos()
	sent := map[int]*sentFiles{} // by the length of a name
	hint, hinted := localHint(img.solve.Attrs, attestations.DependencyContext)
	var likely *candidate
	for _, repo := range repos.list {
		files := sent[len(repo.head.Commit)]
		if files == nil {
			var err error
			if files, err = s.sentFiles(ctx, w, len(repo.head.Commit)); err != nil {
				return nil, err
			}
			sent[len(repo.head.Commit)] = files
		}
		tree, err := repo.tree()
		if err != nil {
			return nil, err
		}
		places := slices.Concat(repo.at, []string{""})
		if hinted {
			places = []string{hint}
		}
		for i, sub := range places {
			if slices.Contains(places[:i], sub) {
				continue
			}
			c := &candidate{repo: repo, sub: sub, sent: files}
			c.compare(tree, img.solve.Attrs)
			if len(c.differ) == 0 && c.same > 0 {
				return c.state(ctx, tree)
			}
			if likely == nil && c.there > 0 && (hinted || c.dockerfile) {
				likely = c
			}
		}
	}
	switch {
	case likely != nil:
		tree, err := likely.repo.tree()
		if err != nil {
			return nil, err
		}
		return likely.state(ctx, tree)
	case repos.err != nil:
		return nil, repos.err
	case img.solve.Attrs["vcs:revision"] != "":
		return nil, fmt.Errorf("what %s was made of is not from the repository of the working folder, nor from one that the command names", img.solve.label())
	}
	return nil, nil
}

// localHint is where a client says that one of its folders lies in its
// repository.
func localHint(attrs map[string]string, name string) (string, bool) {
	v, ok := attrs["vcs:localdir:"+name]
	if !ok || !filepath.IsLocal(v) {
		return "", false
	}
	return slashed(v), true
}

// candidate is a place in a repository that a context can be from.
type candidate struct {
	repo *repository
	sub  string
	sent *sentFiles

	same       int               // files that are as in the commit
	there      int               // files that the commit has, whatever is in them
	differ     map[string]bool   // paths of the context
	dockerfile bool              // the Dockerfile is the commit's
	others     map[string]string // by path of the context: the ids of Dockerfiles that are not
}

// compare holds what was sent against the commit.
func (c *candidate) compare(tree map[string]gitFile, attrs map[string]string) {
	c.differ, c.others = map[string]bool{}, map[string]string{}
	known := func(at string) gitFile {
		f, ok := tree[at]
		if ok {
			c.there++
		}
		return f
	}
	for p, f := range c.sent.context {
		if known(path.Join(c.sub, p)) == f {
			c.same++
		} else {
			c.differ[p] = true
		}
	}
	c.dockerfile = true
	dir, ok := localHint(attrs, "dockerfile")
	if !ok {
		dir = c.sub
	}
	for name, f := range c.sent.dockerfile {
		at := path.Join(dir, name)
		if known(at).id == f.id {
			c.same++
			continue
		}
		c.dockerfile = false
		rel, err := filepath.Rel(filepath.Join("/", c.sub), filepath.Join("/", at))
		if err != nil {
			rel = at
		}
		c.differ[filepath.ToSlash(rel)] = true
		c.others[filepath.ToSlash(rel)] = f.id
	}
}

// state is the commit, and which paths of the context are not as in it: those
// that differ, and those that git says are missing.
func (c *candidate) state(ctx context.Context, tree map[string]gitFile) (*GitState, error) {
	g := c.repo.head
	g.Subdir = c.sub
	dir := filepath.Join(c.repo.root, filepath.FromSlash(c.sub))
	has := func(p string) bool { return c.differ[p] || c.sent.folders[p] }
	if err := g.details(ctx, dir, has); err != nil {
		return nil, err
	}
	// What was sent counts, and not what has become of the folder since.
	g.Changed = slices.DeleteFunc(g.Changed, func(p string) bool {
		_, sent := c.sent.context[p]
		return sent && !c.differ[p]
	})
	told := map[string]bool{}
	for _, p := range g.Changed {
		told[strings.TrimSuffix(p, "/")] = true
	}
	filtered, err := c.filtered(ctx, tree)
	if err != nil {
		return nil, err
	}
	for _, p := range sortedKeys(c.differ) {
		if covered(told, p) || filtered[p] {
			continue
		}
		if len(g.Changed) >= maxChanged {
			g.More++
			continue
		}
		g.Changed = append(g.Changed, p)
	}
	slices.Sort(g.Changed)
	return &g, nil
}

// covered reports whether a path, or a folder above it, is in a set.
func covered(set map[string]bool, p string) bool {
	for ; p != "." && p != "/"; p = path.Dir(p) {
		if set[p] {
			return true
		}
	}
	return false
}

// filtered are the paths whose file in the folder is the one that was sent, and
// of which git makes the commit's: they differ from it by a filter alone, as
// that of git-lfs or of line ends. That git sees no change is not enough: it
// would believe its index, which is the folder's own. Git's own files, which
// are in no commit, are among them.
func (c *candidate) filtered(ctx context.Context, tree map[string]gitFile) (map[string]bool, error) {
	out := map[string]bool{}
	root, err := os.OpenRoot(filepath.Join(c.repo.root, filepath.FromSlash(c.sub)))
	if err != nil {
		return nil, plainPathError(err)
	}
	defer root.Close()
	modules := map[string][]string{} // paths of the context
	for _, p := range sortedKeys(c.differ) {
		at := path.Join(c.sub, p)
		module := moduleOf(tree, at)
		f, known := tree[at]
		own := covered(map[string]bool{path.Join(module, ".git"): true}, at)
		if !own && (!known || f.mode != c.sent.context[p].mode) || !c.asInFolder(root, p) {
			continue
		}
		if own {
			out[p] = true
			continue
		}
		modules[module] = append(modules[module], p)
	}
	for _, module := range sortedKeys(modules) {
		dir := filepath.Join(c.repo.root, filepath.FromSlash(module))
		filters, err := localFilters(ctx, dir)
		if err != nil {
			return nil, err
		}
		for some := range slices.Chunk(modules[module], 200) {
			args := append(slices.Clone(filters), "hash-object", "--")
			for _, p := range some {
				name, _ := strings.CutPrefix(path.Join(c.sub, p), module+"/")
				args = append(args, filepath.FromSlash(name))
			}
			raw, err := runGit(ctx, dir, args...)
			if err != nil {
				return nil, err
			}
			ids := strings.Fields(string(raw))
			if len(ids) != len(some) {
				return nil, fmt.Errorf("git hash-object named %d files of %d", len(ids), len(some))
			}
			for i, p := range some {
				out[p] = ids[i] == tree[path.Join(c.sub, p)].id
			}
		}
	}
	return out, nil
}

// asInFolder reports whether a file that was sent is that of the folder.
func (c *candidate) asInFolder(root *os.Root, p string) bool {
	f, ok := c.sent.context[p]
	if !ok {
		return false
	}
	if id, ok := c.others[p]; ok && id != f.id {
		return false // it came beside the context, which has one of that name
	}
	st, err := root.Lstat(p)
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	in, err := root.Open(p)
	if err != nil {
		return false
	}
	defer in.Close()
	id, err := blobID(in, st.Size(), len(f.id), c.sent.buf)
	return err == nil && id == f.id && gitMode(uint32(st.Mode().Perm())) == f.mode
}

// sentFiles reads the archives of the contexts that were sent for an image.
func (s *sealer) sentFiles(ctx context.Context, w *sealedImage, idLength int) (*sentFiles, error) {
	out := &sentFiles{context: map[string]gitFile{}, folders: map[string]bool{}, dockerfile: map[string]gitFile{}, buf: make([]byte, 128<<10)}
	read := map[string]bool{}
	for _, t := range w.sealed.taken {
		for _, src := range t.record.Sources {
			if src.Kind != "context" || read[src.Tree] {
				continue
			}
			if !src.Stored {
				return nil, errors.New("what was sent of the context is not in the store")
			}
			read[src.Tree] = true
			if err := out.read(ctx, s.intake.store, attest.Digest(src.Tree), idLength); err != nil {
				return nil, fmt.Errorf("reading the context in the store: %w", err)
			}
		}
		rec, err := w.sealed.recordOf(t.platform)
		if err != nil {
			return nil, err
		}
		for _, f := range rec.Dockerfiles {
			id, err := blobID(bytes.NewReader(f.Data), int64(len(f.Data)), idLength, out.buf)
			if err != nil {
				return nil, err
			}
			putSent(out.dockerfile, f.Filename, gitFile{id: id})
		}
	}
	return out, nil
}

func (f *sentFiles) read(ctx context.Context, st *lock.Store, d attest.Digest, idLength int) error {
	b, err := st.Open(d)
	if err != nil {
		return err
	}
	defer b.Close()
	sum := sha256.New()
	all := io.TeeReader(b, sum)
	for in := tar.NewReader(all); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(f.context)+len(f.folders) > attest.MaxContextFiles {
			return fmt.Errorf("more than %d files", attest.MaxContextFiles)
		}
		if err := f.add(h, in, idLength); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, all); err != nil {
		return err
	}
	if got := attest.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))); got != d {
		return fmt.Errorf("%w: its bytes are %s", lock.ErrCorrupt, got)
	}
	return nil
}

// putSent adds a file. Two of one name, of builds that are one image, are as in no
// commit.
func putSent(files map[string]gitFile, name string, f gitFile) {
	if had, ok := files[name]; ok && had != f {
		f = gitFile{mode: "several"}
	}
	files[name] = f
}

func (f *sentFiles) add(h *tar.Header, in io.Reader, idLength int) error {
	name := strings.TrimSuffix(h.Name, "/")
	if h.Typeflag == tar.TypeDir {
		f.folders[name] = true
		return nil
	}
	g := gitFile{mode: gitMode(uint32(h.Mode))}
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		g.id, err = blobID(in, h.Size, idLength, f.buf)
	case tar.TypeLink:
		g = f.context[h.Linkname]
	case tar.TypeSymlink:
		g.mode = "120000"
		g.id, err = blobID(strings.NewReader(h.Linkname), int64(len(h.Linkname)), idLength, f.buf)
	default:
		g.mode = "none of git's"
	}
	putSent(f.context, name, g)
	return err
}

// gitMode is the mode of a regular file in a commit.
func gitMode(perm uint32) string {
	if perm&0o100 != 0 {
		return "100755"
	}
	return "100644"
}

// blobID is the name that git gives to the content of a file, in a repository
// whose names have that length.
func blobID(in io.Reader, size int64, length int, buf []byte) (string, error) {
	var h hash.Hash
	switch length {
	case 2 * sha1.Size:
		h = sha1.New() //nolint:gosec // git's
	case 2 * sha256.Size:
		h = sha256.New()
	default:
		return "", fmt.Errorf("git names its objects by %d digits", length)
	}
	fmt.Fprintf(h, "blob %d\x00", size)
	n, err := io.CopyBuffer(h, struct{ io.Reader }{in}, buf)
	if err == nil && n != size {
		err = fmt.Errorf("%w: %d bytes, not %d", fs.ErrInvalid, n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), err
}
