package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sys/unix"

	"github.com/waxseal/waxseal/pkg/lock"
)

// sentFolders are the folders that clients sent from their machines, each by
// the digest of its context manifest, as it was received.
type sentFolders struct {
	mu    sync.Mutex
	by    map[string]*sentFolder // by sourceKey
	tasks sync.WaitGroup
}

// dockerfileLocal is the name under which clients send the Dockerfile.
const dockerfileLocal = "dockerfile"

// sentFolder is one of them: the rest is set before done is closed.
type sentFolder struct {
	name string
	done chan struct{}
	packed
	err error
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
		store := keep()
		if name == dockerfileLocal {
			store = nil // its bytes are kept by themselves
		}
		s.packed, s.err = hashFolder(ctx, own, g, store)
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

func hashFolder(ctx context.Context, ref cache.ImmutableRef, g session.Group, keep *lock.Store) (p packed, err error) {
	m, err := ref.Mount(ctx, true, g)
	if err != nil {
		return p, err
	}
	lm := snapshot.LocalMounter(m)
	dir, err := lm.Mount()
	if err != nil {
		return p, err
	}
	p, err = packFolder(dir, keep)
	return p, errors.Join(err, lm.Unmount())
}

// xattrsOf are the extended attributes that a client sent; those of the file
// system are not among them.
func xattrsOf(name string) (map[string][]byte, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out map[string][]byte
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
			out = map[string][]byte{}
		}
		out[key] = value[:n]
	}
	return out, nil
}
