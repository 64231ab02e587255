package engine

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/lock"
)

// sentFolders are the folders that clients sent from their machines, each by
// the digest of its context manifest, as it was received.
type sentFolders struct {
	mu    sync.Mutex
	by    map[string]*sentFolder // by sourceKey
	tasks sync.WaitGroup
}

// sentFolder is one of them: the rest is set before done is closed.
type sentFolder struct {
	name   string
	done   chan struct{}
	digest attest.Digest
	size   int64
	err    error
}

// sourceKey tells one source of a definition from another: what is asked for
// and of whom.
func sourceKey(src *pb.SourceOp) string {
	h := sha256.New()
	fmt.Fprintf(h, "%d:%s", len(src.Identifier), src.Identifier)
	for _, k := range slices.Sorted(maps.Keys(src.Attrs)) {
		fmt.Fprintf(h, "%d:%s%d:%s", len(k), k, len(src.Attrs[k]), src.Attrs[k])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// received begins to hash a folder. The build goes on meanwhile.
func (f *sentFolders) received(ctx context.Context, v solver.Vertex, ref cache.ImmutableRef, g session.Group, keep func() *lock.Store) {
	op, ok := v.Sys().(*pb.Op)
	if !ok || op.GetSource() == nil {
		return
	}
	name, local := strings.CutPrefix(op.GetSource().Identifier, "local://")
	if !local {
		return
	}
	key := sourceKey(op.GetSource())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.by == nil {
		f.by = map[string]*sentFolder{}
	}
	if f.by[key] != nil {
		return
	}
	s := &sentFolder{name: name, done: make(chan struct{})}
	f.by[key] = s
	own := ref.Clone()
	f.tasks.Go(func() {
		ctx := context.WithoutCancel(ctx)
		defer close(s.done)
		defer func() { _ = own.Release(ctx) }()
		s.digest, s.size, s.err = hashFolder(ctx, own, g, keep())
	})
}

// of waits for the folders of a definition and returns those that are in it;
// missing are the names of those that nobody hashed.
func (f *sentFolders) of(ctx context.Context, def *pb.Definition) (sent []*sentFolder, missing []string, err error) {
	if def == nil {
		return nil, nil, nil
	}
	for _, raw := range def.Def {
		op := &pb.Op{}
		if err := op.UnmarshalVT(raw); err != nil {
			return nil, nil, fmt.Errorf("reading the definition of a build: %w", err)
		}
		src := op.GetSource()
		name, local := strings.CutPrefix(src.GetIdentifier(), "local://")
		if !local {
			continue
		}
		f.mu.Lock()
		s := f.by[sourceKey(src)]
		f.mu.Unlock()
		if s == nil {
			missing = append(missing, name)
			continue
		}
		if err := wait(ctx, s.done); err != nil {
			return nil, nil, err
		}
		if s.err != nil {
			return nil, nil, fmt.Errorf("hashing the context %q: %w", name, s.err)
		}
		if !slices.Contains(sent, s) {
			sent = append(sent, s)
		}
	}
	return sent, missing, nil
}

func hashFolder(ctx context.Context, ref cache.ImmutableRef, g session.Group, keep *lock.Store) (attest.Digest, int64, error) {
	m, err := ref.Mount(ctx, true, g)
	if err != nil {
		return "", 0, err
	}
	lm := snapshot.LocalMounter(m)
	dir, err := lm.Mount()
	if err != nil {
		return "", 0, err
	}
	d, size, err := writeContext(dir, keep)
	return d, size, errors.Join(err, lm.Unmount())
}

// writeContext returns the digest of the context manifest of a folder, which it
// keeps in the store unless that is nil, and the bytes of all its files.
func writeContext(dir string, keep *lock.Store) (attest.Digest, int64, error) {
	sum := sha256.New()
	var out io.Writer = sum
	var kept *lock.Writer
	if keep != nil {
		var err error
		if kept, err = keep.NewWriter(); err != nil {
			return "", 0, err
		}
		defer kept.Abort()
		out = io.MultiWriter(sum, kept)
	}
	buf := bufio.NewWriterSize(out, 64<<10)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	var total int64
	files := 0
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		if files++; files > attest.MaxContextFiles {
			return fmt.Errorf("more than %d files", attest.MaxContextFiles)
		}
		line, err := contextFile(dir, name)
		if err != nil {
			return err
		}
		total += line.Size
		return enc.Encode(line)
	})
	if err == nil {
		err = buf.Flush()
	}
	if err == nil && kept != nil {
		_, err = kept.Commit()
	}
	return attest.Digest("sha256:" + hex.EncodeToString(sum.Sum(nil))), total, err
}

func contextFile(dir, name string) (attestations.ContextFile, error) {
	var line attestations.ContextFile
	rel, err := filepath.Rel(dir, name)
	if err != nil {
		return line, err
	}
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return line, err
	}
	line.Path, line.Mode = filepath.ToSlash(rel), fmt.Sprintf("%07o", st.Mode)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		line.Size = st.Size
		if line.SHA256, err = hashFile(name); err != nil {
			return line, err
		}
	case unix.S_IFLNK:
		if line.Link, err = os.Readlink(name); err != nil {
			return line, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		line.Device = fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	}
	line.Xattrs, err = xattrsOf(name)
	return line, err
}

func hashFile(name string) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// xattrsOf are the extended attributes that a client sent; those of the file
// system are not among them.
func xattrsOf(name string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string]string
	for key := range strings.SplitSeq(string(buf[:n]), "\x00") {
		if key == "" || strings.HasPrefix(key, "trusted.overlay.") {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, key, value)
		if err != nil {
			return nil, err
		}
		if out == nil {
			out = map[string]string{}
		}
		out[key] = hex.EncodeToString(value[:n])
	}
	return out, nil
}
