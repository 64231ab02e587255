package build

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
)

// workFolder is a working folder at one moment: its files by digest, without
// git's own.
type workFolder struct {
	dir      string
	tree     *tree
	manifest attest.Digest
	files    int
	stamps   map[string]fileStamp // of regular files, by path
	at       map[string]int       // index into tree.entries, by path
	taken    time.Time
	blind    map[uint64]bool // devices whose files change without a stamp
}

// fileStamp changes with a file: the kernel sets the time of its last change,
// and nobody else can.
type fileStamp struct {
	dev, ino uint64
	ctime    syscall.Timespec
	size     int64
}

// fileNode is the device and the inode of a file.
type fileNode [2]uint64

// nodes are those of the regular files.
func (w *workFolder) nodes() []fileNode {
	out := make([]fileNode, 0, len(w.stamps))
	for _, s := range w.stamps {
		out = append(out, fileNode{s.dev, s.ino})
	}
	return out
}

// settled is how much older than a reading a file's time must be, so that no
// later change can have the same.
const settled = 2 * time.Second

// readWorkFolder lists and hashes a folder, several files at a time. Of a file
// that is as it was in earlier, which may be nil, the digest is taken from
// there. What lies at except, in absolute paths, is no part of it, nor what goes
// away while it is read, as another run's temporary files do.
func readWorkFolder(ctx context.Context, dir string, earlier *workFolder, except []string) (*workFolder, error) {
	w := &workFolder{dir: dir, tree: &tree{}, stamps: map[string]fileStamp{}, at: map[string]int{}, taken: time.Now(), blind: map[uint64]bool{}}
	if err := w.walk(ctx, dir, except); err != nil {
		return nil, fmt.Errorf("reading the working folder %q: %w", dir, plainPathError(err))
	}
	workers, ctx := errgroup.WithContext(ctx)
	workers.SetLimit(runtime.NumCPU())
	gone := make([]atomic.Bool, len(w.tree.entries))
	for i := range w.tree.entries {
		e := &w.tree.entries[i]
		if !e.mode.IsRegular() {
			continue
		}
		w.files++
		if sum, ok := earlier.known(e.path, w.stamps[e.path]); ok {
			e.sum = sum
			continue
		}
		if ctx.Err() != nil {
			break
		}
		workers.Go(func() error {
			err := hashInto(e, filepath.Join(dir, filepath.FromSlash(e.path)))
			if errors.Is(err, fs.ErrNotExist) {
				gone[i].Store(true)
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading %q: %w", e.path, plainPathError(err))
			}
			return nil
		})
	}
	if err := workers.Wait(); err != nil {
		return nil, err
	}
	w.drop(gone)
	sum := sha256.New()
	if err := w.tree.writeManifest(sum); err != nil {
		return nil, fmt.Errorf("listing the working folder: %w", err)
	}
	w.manifest = attest.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	return w, nil
}

// drop leaves out the files that are gone.
func (w *workFolder) drop(gone []atomic.Bool) {
	kept := w.tree.entries[:0]
	for i, e := range w.tree.entries {
		if gone[i].Load() {
			delete(w.stamps, e.path)
			delete(w.at, e.path)
			w.files--
			continue
		}
		w.at[e.path] = len(kept)
		kept = append(kept, e)
	}
	w.tree.entries = kept
}

func (w *workFolder) walk(ctx context.Context, dir string, except []string) error {
	return filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name != dir {
			return nil
		}
		if err != nil {
			return err
		}
		if name == dir {
			return ctx.Err()
		}
		skip := error(nil)
		if d.IsDir() {
			skip = fs.SkipDir
		}
		if d.Name() == ".git" || slices.Contains(except, name) || d.Type()&fs.ModeSocket != 0 {
			return skip
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(w.tree.entries) >= attest.MaxContextFiles {
			return fmt.Errorf("more than %d files", attest.MaxContextFiles)
		}
		e := entry{path: filepath.ToSlash(rel), mode: info.Mode(), mtime: info.ModTime()}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no file information for %q", rel)
		}
		switch {
		case e.mode.IsRegular():
			if _, asked := w.blind[st.Dev]; !asked {
				w.blind[st.Dev] = inMemory(name)
			}
			e.size = info.Size()
			w.stamps[e.path] = fileStamp{st.Dev, st.Ino, st.Ctim, st.Size}
		case e.mode&fs.ModeSymlink != 0:
			if e.link, err = os.Readlink(name); errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
		case e.mode&fs.ModeDevice != 0:
			e.major, e.minor = int64(st.Rdev>>8&0xfff), int64(st.Rdev&0xff|st.Rdev>>12&0xfff00)
		}
		w.at[e.path] = len(w.tree.entries)
		w.tree.entries = append(w.tree.entries, e)
		return nil
	})
}

// known is the digest of a file that has not changed since w was read.
func (w *workFolder) known(path string, now fileStamp) (sum [sha256.Size]byte, ok bool) {
	if w == nil {
		return sum, false
	}
	was, ok := w.stamps[path]
	if !ok || was != now || w.blind[now.dev] || time.Unix(now.ctime.Unix()).After(w.taken.Add(-settled)) {
		return sum, false
	}
	return w.tree.entries[w.at[path]].sum, true
}

// inMemory reports whether a file is on a file system in memory: who has mapped
// such a file and read it can write there without the kernel noting a time.
func inMemory(name string) bool {
	var st unix.Statfs_t
	return unix.Statfs(name, &st) != nil || st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC
}

func hashInto(e *entry, name string) error {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(f, e.size+1))
	if err != nil {
		return err
	}
	if n != e.size {
		return errors.New("it changed while it was read; nothing else must write to the working folder")
	}
	sum.Sum(e.sum[:0])
	return nil
}

// maxToldFiles bounds the lists of changed files.
const maxToldFiles = 1000

// compareFolders says which inputs a command has changed.
func compareFolders(before, after *workFolder) attestations.CommandFiles {
	out := attestations.CommandFiles{Before: before.files, After: after.files}
	add := func(list *[]string, path string) {
		if len(out.Changed)+len(out.Removed) >= maxToldFiles {
			out.More++
			return
		}
		*list = append(*list, path)
	}
	for i := range before.tree.entries {
		was := &before.tree.entries[i]
		i, there := after.at[was.path]
		if !there {
			add(&out.Removed, was.path)
			continue
		}
		if is := &after.tree.entries[i]; is.mode != was.mode || is.link != was.link || is.sum != was.sum {
			add(&out.Changed, was.path)
		}
	}
	return out
}

// artifact is a file that a command made.
type artifact struct {
	path string
	sum  [sha256.Size]byte
}

// artifacts are the regular files of after that patterns name, each once. A
// pattern that matches nothing, or what the command has not touched, is an
// error: nobody saw how that came about.
func artifacts(before, after *workFolder, patterns []string) ([]artifact, error) {
	taken := map[string]bool{}
	var out []artifact
	take := func(a artifact) {
		if !taken[a.path] {
			taken[a.path] = true
			out = append(out, a)
		}
	}
	for _, p := range patterns {
		m, err := newArtifactPattern(p)
		if err != nil {
			return nil, err
		}
		matched := false
		for i := range after.tree.entries {
			e := &after.tree.entries[i]
			if !e.mode.IsRegular() {
				continue
			}
			hit, err := m.MatchesOrParentMatches(e.path)
			if err != nil {
				return nil, fmt.Errorf("reading --artifact %q: %w", p, err)
			}
			if !hit {
				continue
			}
			matched = true
			if was, ok := before.stamps[e.path]; ok && was == after.stamps[e.path] {
				return nil, untouched(p, e.path)
			}
			take(artifact{e.path, e.sum})
		}
		if !matched {
			linked, err := throughLink(before, after, p, m)
			if err != nil {
				return nil, err
			}
			matched = len(linked) > 0
			for _, a := range linked {
				take(a)
			}
		}
		if !matched {
			return nil, hinted(fmt.Errorf("--artifact %q: there is no such file below the working folder", p), "patterns are those of .dockerignore, as 'dist/*' or '**/*.deb'; a folder stands for all files in it")
		}
	}
	slices.SortFunc(out, func(a, b artifact) int { return strings.Compare(a.path, b.path) })
	return out, nil
}

func untouched(pattern, path string) error {
	return hinted(fmt.Errorf("--artifact %q: %q was there before, and the command left it as it was: nobody saw how it was made", pattern, path),
		"remove what an earlier build left (make clean), or name what this command makes")
}

// throughLink are the files that a pattern names below a link to a folder, as
// Bazel's bazel-bin is one: the pattern must spell the link, and no other is
// followed. Nothing there was read before, so that the time of a file's last
// change says whether the command has touched it.
func throughLink(before, after *workFolder, pattern string, m *patternmatcher.PatternMatcher) ([]artifact, error) {
	link, rest := after.splitAtLink(filepath.ToSlash(filepath.Clean(pattern)))
	if link == "" {
		return nil, nil
	}
	folder, err := filepath.EvalSymlinks(filepath.Join(after.dir, link))
	if err != nil {
		return nil, nil // it leads nowhere
	}
	root := filepath.Join(folder, rest)
	if real, err := filepath.EvalSymlinks(root); err != nil || real != root {
		return nil, nil
	}
	if info, err := os.Stat(folder); err != nil || !info.IsDir() {
		return nil, nil
	}
	var out []artifact
	seen := 0
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if seen++; seen > attest.MaxContextFiles {
			return fmt.Errorf("more than %d files", attest.MaxContextFiles)
		}
		rel, err := filepath.Rel(folder, name)
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel = path.Join(link, filepath.ToSlash(rel))
		if hit, err := m.MatchesOrParentMatches(rel); err != nil || !hit {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return fmt.Errorf("no file information for %q", rel)
		}
		if time.Unix(st.Ctim.Unix()).Before(before.taken) {
			return untouched(pattern, rel)
		}
		e := entry{path: rel, size: info.Size()}
		if err := hashInto(&e, name); err != nil {
			return fmt.Errorf("reading %q: %w", rel, plainPathError(err))
		}
		out = append(out, artifact{e.path, e.sum})
		return nil
	})
	return out, err
}

// splitAtLink splits a pattern after the link that it spells, if it does; rest
// is what it spells of the way from there.
func (w *workFolder) splitAtLink(pattern string) (link, rest string) {
	spelled := ""
	for part := range strings.SplitSeq(pattern, "/") {
		if strings.ContainsAny(part, `*?[\`) {
			break
		}
		if link != "" {
			rest = path.Join(rest, part)
			continue
		}
		spelled = path.Join(spelled, part)
		if i, ok := w.at[spelled]; ok && w.tree.entries[i].mode&fs.ModeSymlink != 0 {
			link = spelled
		}
	}
	return link, rest
}
