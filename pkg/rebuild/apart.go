package rebuild

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/waxseal/waxseal/attestations"
	"github.com/waxseal/waxseal/pkg/attest"
	"github.com/waxseal/waxseal/pkg/store"
)

// CompareCommand is the command of the program that compares two images in OCI
// layouts, given as LAYOUT DIGEST LAYOUT DIGEST, and writes a
// RebuildComparison as JSON. Run starts it in a process of its own.
const CompareCommand = "compare-layouts"

const (
	// ownProgram is this program, even when its file was replaced meanwhile.
	ownProgram = "/proc/self/exe"
	// maxComparison bounds what the process writes: MaxDifferences entries.
	maxComparison = 64 << 20
	maxComplaint  = 4 << 10
	// maxSaid bounds one text of it; the predicate's schema does, too.
	maxSaid = 4096
)

// apart compares two images in one layout in a process of its own: what is in
// an image is hostile, and this process may hold a key. The child gets no
// environment but a folder for temporary files, no open files, and ends with
// this process. Whatever becomes of it, only a whole answer that agrees with
// the digests counts.
func apart(ctx context.Context, program, layout, tmp string, original, rebuilt attest.Digest) (*attestations.RebuildComparison, error) {
	fail := func(err error) (*attestations.RebuildComparison, error) {
		return nil, fmt.Errorf("comparing %s with %s: %w", original, rebuilt, err)
	}
	out := &atMost{left: maxComparison}
	said := &atMost{left: maxComplaint, drop: true}
	cmd := exec.CommandContext(ctx, program, CompareCommand, layout, string(original), layout, string(rebuilt)) //nolint:gosec // this program itself or the caller's; no shell reads the arguments
	cmd.Env = []string{"TMPDIR=" + tmp}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, said
	cmd.WaitDelay = 5 * time.Second
	// A Ctrl-C on the terminal is this process's to answer.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// The signal comes when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return fail(context.Cause(ctx))
		}
		if out.left < 0 {
			return fail(errors.New("the process that compares wrote more than any answer has"))
		}
		var ended *exec.ExitError
		if errors.As(err, &ended) && !ended.Exited() {
			return fail(fmt.Errorf("the process that compares died: %w", err))
		}
		if text := strings.TrimPrefix(strings.TrimSpace(said.buf.String()), "waxseal: "); text != "" {
			err = errors.New(clip(text))
		}
		return fail(fmt.Errorf("the process that compares failed: %w", err))
	}
	c, err := readComparison(out.buf.Bytes(), original, rebuilt)
	if err != nil {
		return fail(fmt.Errorf("reading what the process that compares says: %w", err))
	}
	return c, nil
}

// atMost keeps what is written up to a limit, and fails after it, or drops.
type atMost struct {
	buf  bytes.Buffer // not embedded: its ReadFrom knows no limit
	left int
	drop bool
}

func (a *atMost) Write(p []byte) (int, error) {
	if a.drop {
		n := min(len(p), a.left)
		a.left -= n
		a.buf.Write(p[:n])
		return len(p), nil
	}
	if a.left -= len(p); a.left < 0 {
		return 0, io.ErrShortWrite
	}
	return a.buf.Write(p)
}

// readComparison reads a comparison that another process made. It cannot know
// what is in the images, but that the verdicts agree with the digests and
// with what is listed, and that the texts are no more than texts.
func readComparison(raw []byte, original, rebuilt attest.Digest) (*attestations.RebuildComparison, error) {
	c := &attestations.RebuildComparison{}
	if err := attest.UnmarshalStrict(raw, c); err != nil {
		return nil, err
	}
	*c = attestations.RebuildComparison{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		return nil, err
	}
	if c.Original != string(original) || c.Rebuilt != string(rebuilt) {
		return nil, errors.New("it is about other images")
	}
	if len(c.Differences) > attest.MaxDifferences || len(c.Platforms) > attest.MaxPlatforms || c.MoreDifferences < 0 || c.MoreDifferences > 0 && len(c.Differences) < attest.MaxDifferences || c.Differences == nil || c.Normalisers == nil {
		return nil, errors.New("its lists are not those of a comparison")
	}
	uses, open := map[string]bool{}, 0
	for i := range c.Differences {
		x := &c.Differences[i]
		for _, text := range []*string{&x.Kind, &x.Platform, &x.Path, &x.Cause, &x.Original, &x.Rebuilt} {
			*text = clipTo(*text, maxSaid/2)
		}
		if x.Layer < 0 || x.Cause == "" || !slices.Contains(kinds(), x.Kind) {
			return nil, fmt.Errorf("difference %d is none", i+1)
		}
		if len(x.Normalisers) == 0 {
			open++
		}
		for _, n := range x.Normalisers {
			uses[n] = true
		}
	}
	for i := range c.Normalisers {
		n := &c.Normalisers[i]
		if n.Reason = normaliser(n.Name).reason(); n.Reason == "" || n.Uses < 1 {
			return nil, errors.New("a normaliser is not known")
		}
		delete(uses, n.Name)
	}
	if len(uses) > 0 {
		return nil, errors.New("a normaliser is used and not listed")
	}
	if err := agrees(c.Verdict, c.Original, c.Rebuilt, open, len(c.Differences)); err != nil {
		return nil, err
	}
	for i := range c.Platforms {
		p := &c.Platforms[i]
		p.Name = clipTo(p.Name, maxSaid/2)
		for _, d := range []string{p.Original, p.Rebuilt} {
			if _, err := attest.ParseDigest(d); err != nil {
				return nil, err
			}
		}
		open, all := 0, 0
		for _, d := range c.Differences {
			if d.Platform == p.Name {
				all++
				if len(d.Normalisers) == 0 {
					open++
				}
			}
		}
		if c.MoreDifferences > 0 && p.Original != p.Rebuilt {
			all++ // among those that are not listed
		}
		if err := agrees(p.Verdict, p.Original, p.Rebuilt, open, all); err != nil {
			return nil, fmt.Errorf("platform %s: %w", p.Name, err)
		}
	}
	return c, nil
}

// agrees holds a verdict against what is known of it: the digests, and how
// many differences are listed and how many of them nothing covers.
func agrees(verdict, original, rebuilt string, open, all int) error {
	switch {
	case verdict == attestations.RebuildReproduced && original == rebuilt && all == 0,
		verdict == attestations.RebuildEquivalent && original != rebuilt && open == 0 && all > 0,
		verdict == attestations.RebuildDifferent && original != rebuilt && all > 0:
		return nil
	}
	return fmt.Errorf("the verdict %q is not what is listed", clip(verdict))
}

func kinds() []string {
	return []string{
		attestations.DifferentManifest, attestations.DifferentConfig, attestations.DifferentCompression, attestations.DifferentArchive,
		attestations.DifferentMissing, attestations.DifferentAdded, attestations.DifferentType, attestations.DifferentContent,
		attestations.DifferentMode, attestations.DifferentOwner, attestations.DifferentTime, attestations.DifferentAttributes,
		attestations.DifferentLink, attestations.DifferentUnread,
	}
}

// compare brings the original beside the rebuilt image, which shares most
// blobs with it, and has the two compared.
func (r *rebuilding) compare(ctx context.Context, layout string, rebuilt attest.Digest) (*attestations.RebuildComparison, error) {
	dst, err := store.OpenWritable(ctx, store.Reference{Kind: store.Layout, Place: layout}, store.Options{})
	if err != nil {
		return nil, err
	}
	_, top, err := r.req.Image.Place.Manifest(ctx, r.req.Image.Digest)
	if err != nil {
		return nil, err
	}
	if err := store.Copy(ctx, alone{r.req.Image.Place}, dst, top, store.CopyOptions{}); err != nil {
		return nil, err
	}
	program := r.req.Program
	if program == "" {
		program = ownProgram
	}
	return apart(ctx, program, layout, r.tmp, r.req.Image.Digest, rebuilt)
}

// alone is a place without what is attached to its images.
type alone struct{ store.Repository }

func (alone) Evidence(context.Context, attest.Digest) ([]store.Piece, error) { return nil, nil }
