package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	cosigntypes "github.com/sigstore/cosign/v2/pkg/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// CopyOptions configures Copy; the zero value copies the image alone.
type CopyOptions struct {
	// Evidence copies what is attached to the image and to each of its
	// platforms: referrers, cosign's .att and .sig, and bundles among Options.Evidence
	// of the source. An index attestation is part of the index.
	Evidence bool
	// Progress is called after each thing copied, one call at a time.
	Progress func(Copied)
}

// Copied is one thing that is at the destination now.
type Copied struct {
	What   string // "blob", "manifest", "index", "evidence", "signature"
	Digest attest.Digest
	Size   int64
	// Moved reports that the bytes went through this process; otherwise they
	// were there, or the registry took them from another repository.
	Moved bool
}

// parallelCopies bounds the blobs that travel at once.
const parallelCopies = 4

// copier is one run of Copy.
type copier struct {
	src  Repo
	dst  Writable
	from Reference // for mounts; zero where src is no registry
	opts CopyOptions
	mu   sync.Mutex // around opts.Progress
	// archive takes the layers of the images, which are then not copied; and of
	// the evidence only what is attached is.
	archive *layersAside
}

// Copy brings d from src to dst by digest: blobs first, then manifests, an
// index last; then the evidence. It tags nothing. Everything is read again from
// dst and compared before Copy returns. A copy that was broken off is finished
// by repeating it.
func Copy(ctx context.Context, src Repo, dst Writable, d v1.Descriptor, opts CopyOptions) error {
	c := &copier{src: src, dst: dst, opts: opts}
	if r, ok := src.(*registry); ok {
		c.from = r.ref
	}
	return c.copy(ctx, d)
}

func (c *copier) copy(ctx context.Context, d v1.Descriptor) error {
	top, err := digest(d)
	if err != nil {
		return err
	}
	if err := c.image(ctx, top, true); err != nil {
		return fmt.Errorf("copying %s to %q: %w", top, c.dst.Reference().Place, err)
	}
	if !c.opts.Evidence {
		return nil
	}
	platforms, err := Platforms(ctx, c.src, d)
	if err != nil {
		return err
	}
	all := []v1.Descriptor{d}
	for _, p := range platforms {
		all = append(all, p.Descriptor)
	}
	for _, about := range all {
		if err := c.evidence(ctx, about); err != nil {
			return fmt.Errorf("copying evidence for %s to %q: %w", about.Digest, c.dst.Reference().Place, err)
		}
	}
	return nil
}

// image copies a manifest with all below it, and checks that it is there.
func (c *copier) image(ctx context.Context, d attest.Digest, top bool) error {
	raw, desc, err := c.src.Manifest(ctx, d)
	if err != nil {
		return err
	}
	doc, err := parseDocument(raw, desc.MediaType)
	if err != nil {
		return err
	}
	kind := "manifest"
	if doc.index {
		kind = "index"
		if !top {
			return fmt.Errorf("%s is an index within an index", d)
		}
		if len(doc.Manifests) > 2*attest.MaxPlatforms { // each with its attestations
			return fmt.Errorf("index %s has %d entries, more than the %d allowed", d, len(doc.Manifests), 2*attest.MaxPlatforms)
		}
		for _, m := range doc.Manifests {
			md, err := digest(m)
			if err != nil {
				return err
			}
			if err := c.image(ctx, md, false); err != nil {
				return err
			}
		}
	} else if err := c.blobs(ctx, c.lighter(doc)); err != nil {
		return err
	}
	if _, err := c.dst.PutManifest(ctx, doc.MediaType, raw); err != nil {
		return err
	}
	return c.compare(ctx, d, raw, kind)
}

// lighter is an image without the layers that an archive takes by itself.
// BuildKit's attestations are layers too, and evidence.
func (c *copier) lighter(doc *document) *document {
	if c.archive == nil {
		return doc
	}
	light := *doc
	light.Layers = nil
	for _, l := range doc.Layers {
		switch {
		case l.MediaType == cosigntypes.IntotoPayloadType || l.MediaType == cosigntypes.DssePayloadType:
			light.Layers = append(light.Layers, l)
		case stays(l):
		default:
			c.archive.layers = append(c.archive.layers, l)
		}
	}
	return &light
}

// stays reports whether a layer's owner does not want it copied: it is where
// its manifest says.
func stays(l v1.Descriptor) bool { return len(l.URLs) > 0 && !l.MediaType.IsDistributable() }

// compare reads a manifest again from the destination.
func (c *copier) compare(ctx context.Context, d attest.Digest, raw []byte, kind string) error {
	again, _, err := c.dst.Manifest(ctx, d)
	if err != nil {
		return err
	}
	if string(again) != string(raw) {
		return &mismatch{want: d}
	}
	c.progress(Copied{What: kind, Digest: d, Size: int64(len(raw)), Moved: true})
	return nil
}

func (c *copier) progress(p Copied) {
	if c.opts.Progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opts.Progress(p)
}

// blobs copies configuration and layers.
func (c *copier) blobs(ctx context.Context, doc *document) error {
	var all []v1.Descriptor
	if doc.Config != nil {
		all = append(all, *doc.Config)
	}
	for _, l := range doc.Layers {
		if !stays(l) {
			all = append(all, l)
		}
	}
	seen := map[v1.Hash]bool{}
	var work []func(context.Context) error
	for _, b := range all {
		if seen[b.Digest] {
			continue
		}
		seen[b.Digest] = true
		work = append(work, func(ctx context.Context) error { return c.blob(ctx, b) })
	}
	return parallel(ctx, parallelCopies, work)
}

func (c *copier) blob(ctx context.Context, b v1.Descriptor) error {
	bd, err := digest(b)
	if err != nil {
		return err
	}
	var moved atomic.Bool
	err = c.dst.PutBlob(ctx, Blob{Descriptor: b, From: c.from, Open: func() (io.ReadCloser, error) {
		moved.Store(true)
		return c.src.Blob(ctx, bd)
	}})
	if err != nil {
		return err
	}
	there, err := c.dst.hasBlob(ctx, b)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("blob %s was taken by %q but is not there, or has another size", bd, c.dst.Reference().Place)
	}
	c.progress(Copied{What: "blob", Digest: bd, Size: b.Size, Moved: moved.Load()})
	return nil
}

// evidence copies what is attached to one digest.
func (c *copier) evidence(ctx context.Context, about v1.Descriptor) error {
	ad, err := digest(about)
	if err != nil {
		return err
	}
	pieces, err := c.src.Evidence(ctx, ad)
	if err != nil {
		return err
	}
	want := map[attest.Digest]bool{}
	done := map[string]bool{}
	for _, p := range pieces {
		// Each content counts once; where it lies decides who reads it.
		counted := false
		for _, p := range p.everywhere() {
			if p.Source == SourceSig && !done[p.Where] {
				done[p.Where] = true
				if err := c.sig(ctx, ad, attest.Digest(p.Where)); err != nil {
					return err
				}
			}
			if p.Raw == nil || p.Source == SourceIndex {
				continue // not read means not copied; an index attestation came with the index
			}
			loose := p.Source == SourceFile || p.Source == SourceNotes
			switch {
			case loose && c.archive != nil:
			case loose:
				if err := c.file(ctx, about, p); err != nil {
					return err
				}
			case done[p.Where]:
			case p.Source == SourceAtt:
				if err := c.att(ctx, ad, attest.Digest(p.Where)); err != nil {
					return err
				}
			default:
				if err := c.referrer(ctx, ad, attest.Digest(p.Where)); err != nil {
					return err
				}
			}
			done[p.Where] = true
			want[p.Digest] = want[p.Digest] || !loose
			if !loose && c.archive != nil && !counted {
				c.archive.evidence++
				counted = true
			}
		}
	}
	return c.compareEvidence(ctx, ad, want)
}

// compareEvidence lists the evidence at the destination again.
func (c *copier) compareEvidence(ctx context.Context, about attest.Digest, want map[attest.Digest]bool) error {
	if len(want) == 0 {
		return nil
	}
	there, err := c.dst.Evidence(ctx, about)
	if err != nil {
		return err
	}
	for _, p := range there {
		if p.Raw != nil {
			delete(want, p.Digest)
		}
	}
	for d, must := range want {
		if must {
			return fmt.Errorf("%s was attached, but is not listed", d)
		}
	}
	return nil
}

func (c *copier) referrer(ctx context.Context, about, d attest.Digest) error {
	doc, desc, err := readDocument(ctx, c.src, d)
	if err != nil {
		return err
	}
	raw, _, err := c.src.Manifest(ctx, d)
	if err != nil {
		return err
	}
	if err := heavy(doc); err != nil && c.archive != nil {
		return fmt.Errorf("evidence %s: %w", d, err)
	}
	if err := c.blobs(ctx, doc); err != nil {
		return err
	}
	if _, err := putReferrer(ctx, c.dst, about, raw); err != nil {
		return err
	}
	return c.compare(ctx, attest.Digest(desc.Digest.String()), raw, "evidence")
}

// att copies the attestations under cosign's tag into those at the
// destination.
func (c *copier) att(ctx context.Context, about, d attest.Digest) error {
	doc, _, err := readDocument(ctx, c.src, d)
	if err != nil {
		return err
	}
	if err := heavy(doc); err != nil && c.archive != nil {
		return fmt.Errorf("evidence %s: %w", d, err)
	}
	var adds []mutate.Addendum
	for _, l := range doc.Layers {
		ld, err := digest(l)
		if err != nil {
			return err
		}
		open := func() (io.ReadCloser, error) { return c.src.Blob(ctx, ld) }
		adds = append(adds, mutate.Addendum{
			Layer:       &blobLayer{Blob{Descriptor: l, Open: open, From: c.from}},
			Annotations: l.Annotations,
		})
	}
	if err := appendAtt(ctx, c.dst, about, adds); err != nil {
		return err
	}
	c.progress(Copied{What: "evidence", Digest: d, Moved: true})
	return nil
}

// heavy is the error of a manifest with more in it than evidence has: whoever
// can attach one could fill a disk.
func heavy(doc *document) error {
	for _, l := range doc.Layers {
		if l.Size > attest.MaxBundle {
			return &oversize{l.Size, attest.MaxBundle}
		}
	}
	return nil
}

// sig copies cosign's signatures as they are. Who has others at the destination
// keeps those: two signatures may differ in their annotations alone, so that
// lists of them cannot be joined as attestations can.
func (c *copier) sig(ctx context.Context, about, d attest.Digest) error {
	tag := fallbackTag(about) + ".sig"
	if _, _, err := c.dst.tagged(ctx, tag); !errors.Is(err, ErrNotFound) {
		return err
	}
	doc, desc, err := readDocument(ctx, c.src, d)
	if err != nil {
		return err
	}
	if doc.index || heavy(doc) != nil {
		return nil // cosign writes none
	}
	raw, _, err := c.src.Manifest(ctx, d)
	if err != nil {
		return err
	}
	if err := c.blobs(ctx, doc); err != nil {
		return err
	}
	if _, err := c.dst.PutManifest(ctx, desc.MediaType, raw); err != nil {
		return err
	}
	if err := c.dst.PutTag(ctx, tag, desc); err != nil {
		return err
	}
	return c.compare(ctx, d, raw, "signature")
}

// file attaches evidence that so far is a file only.
func (c *copier) file(ctx context.Context, about v1.Descriptor, p Piece) error {
	if p.Stapled {
		return attachStapled(ctx, c.dst, about, [][]byte{p.Raw})
	}
	b, err := attest.ParseBundle(p.Raw)
	if err != nil || !b.Statement().Binds(attest.Digest(about.Digest.String())) {
		return nil //nolint:nilerr // unsigned, or about something else: it has no place at the destination
	}
	if b.Bare() {
		err = AttachCosign(ctx, c.dst, about, b)
	} else {
		_, err = Attach(ctx, c.dst, about, b)
	}
	if err == nil {
		c.progress(Copied{What: "evidence", Digest: p.Digest, Size: int64(len(p.Raw)), Moved: true})
	}
	return err
}

// Tag points tag at d, which is in w already, and reads it again. It is the
// last step of every write. Without a tag nothing is done in a registry, and a
// layout lists d without a name.
func Tag(ctx context.Context, w Writable, tag string, d v1.Descriptor) error {
	if tag == "" && w.Reference().Kind == Registry {
		return nil
	}
	if err := w.PutTag(ctx, tag, d); err != nil {
		return err
	}
	if tag == "" {
		return nil
	}
	_, now, err := w.tagged(ctx, tag)
	if err != nil {
		return err
	}
	if now.Digest != d.Digest {
		return fmt.Errorf("writing tag %q of %q: it now points to %s, not to %s; somebody else wrote it at the same time", tag, w.Reference().Place, now.Digest, d.Digest)
	}
	return nil
}

// Current returns what ref points to now, nil when there is nothing.
func Current(ctx context.Context, ref Reference, opts Options) (*v1.Descriptor, error) {
	place, err := Open(ctx, ref, opts)
	if err == nil {
		var desc v1.Descriptor
		if desc, err = place.Resolve(ctx); err == nil {
			return &desc, nil
		}
	}
	if errors.Is(err, ErrNotFound) {
		return nil, nil //nolint:nilnil // nothing there is an answer
	}
	return nil, err
}
