package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	cosigntypes "github.com/sigstore/cosign/v2/pkg/types"

	"github.com/waxseal/waxseal/pkg/attest"
)

// Media types and annotations of evidence.
const (
	bundleMediaPrefix     = "application/vnd.dev.sigstore.bundle"
	bundleContent         = "dev.sigstore.bundle.content"
	bundlePredicateType   = "dev.sigstore.bundle.predicateType"
	contentDSSE           = "dsse-envelope"
	attPredicateType      = "predicateType"             // cosign's, on a layer of .att
	buildkitPredicateType = "in-toto.io/predicate-type" // BuildKit's, on a layer
	emptyMediaType        = "application/vnd.oci.empty.v1+json"
	imageConfigMediaType  = "application/vnd.oci.image.config.v1+json"
)

// parallelReads bounds the requests of one question.
const parallelReads = 8

// source is what a place must know so that evidence can be looked for in it.
type source interface {
	Repository
	tagged(ctx context.Context, tag string) ([]byte, v1.Descriptor, error)
	referrers(ctx context.Context, d attest.Digest) ([]v1.Descriptor, error)
}

func (r *registry) Evidence(ctx context.Context, d attest.Digest) ([]Piece, error) {
	if r.opts.Cache != nil {
		return collect(ctx, sharing{r}, r.opts, r.named, d)
	}
	return collect(ctx, r, r.opts, r.named, d)
}

func (r *registry) CommitEvidence(ctx context.Context, commit string) ([]Piece, error) {
	return r.named.commit(ctx, commit)
}

func (l *layout) Evidence(ctx context.Context, d attest.Digest) ([]Piece, error) {
	return collect(ctx, l, l.opts, l.named, d)
}

func (l *layout) CommitEvidence(ctx context.Context, commit string) ([]Piece, error) {
	return l.named.commit(ctx, commit)
}

// collector gathers the pieces about one digest.
type collector struct {
	source
	opts  Options
	named *named
	about attest.Digest
	bytes atomic.Int64

	mu     sync.Mutex
	pieces []Piece
	todo   []task
}

// task is a manifest whose layers are evidence.
type task struct {
	origin string
	desc   v1.Descriptor
}

func collect(ctx context.Context, s source, opts Options, n *named, about attest.Digest) ([]Piece, error) {
	c := &collector{source: s, opts: opts, named: n, about: about}
	err := parallel(ctx, parallelReads, []func(context.Context) error{
		c.listReferrers, c.readFallback, c.readAtt, c.readIndex, c.readFiles,
	})
	if err != nil {
		return nil, err
	}
	for _, next := range []func(context.Context) error{c.readTasks, c.readNotes, c.readSig} {
		if err := next(ctx); err != nil {
			return nil, err
		}
	}
	return c.sorted(), nil
}

// parallel runs all of work, at most limit at once, and returns the first
// error; the others' context is cancelled then.
func parallel(ctx context.Context, limit int, work []func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, limit)
	var wg sync.WaitGroup
	for _, f := range work {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			// Nobody else could catch it here, and it is foreign bytes that f reads.
			defer func() {
				if p := recover(); p != nil {
					cancel(fmt.Errorf("internal error while reading evidence: %v", p))
				}
			}()
			if ctx.Err() != nil {
				return
			}
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (c *collector) add(p Piece) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pieces = append(c.pieces, p)
}

// unreadable turns an error about a piece into the piece's own mark, so that a
// stranger's broken attachment does not stand in the way. What says nothing
// about the piece, such as a registry that fails, stays an error.
func (c *collector) unreadable(ctx context.Context, p Piece, err error) error {
	var many *tooMuch
	if ctx.Err() != nil || errors.As(err, &many) || errors.Is(err, ErrUnavailable) {
		return err
	}
	p.Raw, p.Skipped = nil, oneLine(err.Error())
	c.add(p)
	return nil
}

// tooMuch is more evidence than is read. It is no mark on one piece: which of
// them counts cannot be told.
type tooMuch struct{ about string }

func (e *tooMuch) Error() string {
	return fmt.Sprintf("reading evidence for %s: more than the %d pieces or %d MB that are read", e.about, attest.MaxEvidence, attest.MaxEvidenceSum>>20)
}

// Hint is the way out.
func (e *tooMuch) Hint() string {
	return "delete attachments that nobody needs, or promote the image to a clean repository"
}

func (c *collector) listReferrers(ctx context.Context) error {
	list, err := c.referrers(ctx, c.about)
	if err != nil {
		return err
	}
	c.enqueue(SourceReferrer, list)
	return nil
}

func (c *collector) enqueue(origin string, list []v1.Descriptor) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range list {
		c.todo = append(c.todo, task{origin, d})
	}
}

// readTag reads what a tag points to; nil when there is none, or when it
// cannot be read, which is then noted.
func (c *collector) readTag(ctx context.Context, origin, tag string) (*document, attest.Digest, error) {
	raw, desc, err := c.tagged(ctx, tag)
	if err != nil {
		if errors.Is(err, ErrNotFound) {
			return nil, "", nil
		}
		return nil, "", c.unreadable(ctx, Piece{Source: origin, Where: tag}, err)
	}
	doc, err := parseDocument(raw, desc.MediaType)
	if err != nil {
		return nil, "", c.unreadable(ctx, Piece{Source: origin, Where: tag}, err)
	}
	return doc, attest.DigestOf(raw), nil
}

func (c *collector) readFallback(ctx context.Context) error {
	tag := fallbackTag(c.about)
	doc, _, err := c.readTag(ctx, SourceTag, tag)
	if doc == nil || err != nil {
		return err
	}
	if !doc.index {
		c.add(Piece{Source: SourceTag, Where: tag, Skipped: "it is no list of referrers"})
		return nil
	}
	if len(doc.Manifests) > attest.MaxReferrers {
		return &tooMuch{string(c.about)}
	}
	c.enqueue(SourceTag, doc.Manifests)
	return nil
}

func (c *collector) readAtt(ctx context.Context) error {
	tag := fallbackTag(c.about) + ".att"
	doc, d, err := c.readTag(ctx, SourceAtt, tag)
	if doc == nil || err != nil {
		return err
	}
	return c.readLayers(ctx, Piece{Source: SourceAtt, Where: string(d)}, doc)
}

// aSignature and theInputs say what there is in place of evidence.
const (
	aSignature = "a signature, not an attestation: it says nothing of how the image was built"
	theInputs  = "the bytes of the image's inputs, for waxseal rebuild; no evidence"
)

// readSig lists what is under cosign's tag for signatures, which is evidence of
// nothing that is judged here. So it is asked for only by who wants everything,
// and where there is nothing else to show.
func (c *collector) readSig(ctx context.Context) error {
	wanted := c.opts.Want == nil || c.opts.Want(cosigntypes.SimpleSigningMediaType)
	if !wanted && len(c.pieces) > 0 {
		return nil
	}
	doc, d, err := c.readTag(ctx, SourceSig, fallbackTag(c.about)+".sig")
	if doc == nil || err != nil {
		return err
	}
	for i, layer := range doc.Layers {
		if i == attest.MaxEvidence {
			break // which of them counts is no question: none does
		}
		c.add(Piece{Source: SourceSig, Where: string(d), Digest: attest.Digest(layer.Digest.String()), Skipped: aSignature})
	}
	return nil
}

// readIndex looks for BuildKit's attestation manifests in the index that was
// asked for.
func (c *collector) readIndex(ctx context.Context) error {
	top, err := c.Resolve(ctx)
	if err != nil {
		// Evidence may be asked for without an image of that name.
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	td, err := digest(top)
	if err != nil || !top.MediaType.IsIndex() {
		return err
	}
	doc, _, err := readDocument(ctx, c.source, td)
	if err != nil {
		return err
	}
	var list []v1.Descriptor
	for _, m := range doc.Manifests {
		if isAttestation(m) && m.Annotations[dockerReferenceDigest] == string(c.about) {
			list = append(list, m)
		}
	}
	c.enqueue(SourceIndex, list)
	return nil
}

// readTasks reads the manifests that were listed, each once.
func (c *collector) readTasks(ctx context.Context) error {
	seen := map[v1.Hash]bool{}
	var work []func(context.Context) error
	slices.SortStableFunc(c.todo, func(a, b task) int { return cmp.Compare(order(a.origin), order(b.origin)) })
	for _, t := range c.todo {
		if seen[t.desc.Digest] {
			continue
		}
		seen[t.desc.Digest] = true
		p := Piece{Source: t.origin, Where: t.desc.Digest.String(), Digest: attest.Digest(t.desc.Digest.String())}
		if t.origin != SourceIndex {
			if c.decline(&p, t.desc.ArtifactType, t.desc.Annotations) {
				c.add(p)
				continue
			}
		}
		work = append(work, func(ctx context.Context) error { return c.readTask(ctx, p, t.desc) })
	}
	if len(work) > attest.MaxEvidence {
		return &tooMuch{string(c.about)}
	}
	return parallel(ctx, parallelReads, work)
}

// decline fills in what a referrer's descriptor or manifest says of it, and
// reports whether that is enough to leave it unread.
func (c *collector) decline(p *Piece, artifactType string, annotations map[string]string) bool {
	switch {
	case strings.HasPrefix(artifactType, bundleMediaPrefix):
	case artifactType == attest.OCSPMediaType:
		p.Stapled = true
		return c.unwanted(p, artifactType)
	case slices.Contains([]string{
		// Some registries report nothing, or the configuration's type.
		"", emptyMediaType, imageConfigMediaType,
		cosigntypes.DssePayloadType, cosigntypes.IntotoPayloadType, "application/vnd.dev.cosign.artifact.att.v1+json",
	}, artifactType):
	case artifactType == cosigntypes.SimpleSigningMediaType || strings.HasPrefix(artifactType, "application/vnd.dev.cosign.artifact.sig."):
		p.Skipped = aSignature
		return true
	case artifactType == InputsArtifactType:
		p.Skipped = theInputs
		return true
	default:
		p.Skipped = fmt.Sprintf("artifact type %q is no evidence that waxseal reads", oneLine(artifactType))
		return true
	}
	if content := annotations[bundleContent]; content != "" && content != contentDSSE {
		p.Skipped = fmt.Sprintf("a bundle with a %s, not with an attestation", oneLine(content))
		return true
	}
	return c.unwanted(p, annotations[bundlePredicateType])
}

// unwanted applies Options.Want. cosign states its own predicate type for
// attestations of any type at times, so that one says nothing.
func (c *collector) unwanted(p *Piece, predicateType string) bool {
	if predicateType == cosigntypes.CosignSignPredicateType {
		predicateType = ""
	}
	if predicateType != "" {
		p.PredicateType = predicateType
	}
	p.Unwanted = c.opts.Want != nil && !c.opts.Want(p.PredicateType)
	return p.Unwanted
}

func (c *collector) readTask(ctx context.Context, p Piece, desc v1.Descriptor) error {
	d, err := digest(desc)
	if err != nil {
		return c.unreadable(ctx, p, err)
	}
	if desc.Size > attest.MaxManifest {
		return c.unreadable(ctx, p, &oversize{desc.Size, attest.MaxManifest})
	}
	doc, _, err := readDocument(ctx, c.source, d)
	if err != nil {
		return c.unreadable(ctx, p, err)
	}
	if p.Source != SourceIndex {
		if doc.Subject == nil || doc.Subject.Digest != hash(c.about) {
			return c.unreadable(ctx, p, errors.New("its manifest does not name this digest as its subject"))
		}
		artifactType := doc.ArtifactType
		if artifactType == "" && doc.Config != nil {
			artifactType = string(doc.Config.MediaType)
		}
		if c.decline(&p, artifactType, doc.Annotations) {
			c.add(p)
			return nil
		}
	}
	return c.readLayers(ctx, p, doc)
}

// readLayers takes every layer of an evidence manifest as a piece.
func (c *collector) readLayers(ctx context.Context, p Piece, doc *document) error {
	if len(doc.Layers) > attest.MaxEvidence {
		return &tooMuch{string(c.about)}
	}
	for _, layer := range doc.Layers {
		p := p
		p.Digest = attest.Digest(layer.Digest.String())
		mediaType := string(layer.MediaType)
		signed := strings.HasPrefix(mediaType, bundleMediaPrefix) || mediaType == cosigntypes.DssePayloadType
		limit := int64(attest.MaxBundle)
		if mediaType == cosigntypes.SimpleSigningMediaType {
			p.Skipped = aSignature
			c.add(p)
			continue
		}
		if p.Stapled = mediaType == attest.OCSPMediaType; p.Stapled {
			p.PredicateType, limit = mediaType, attest.MaxOCSP
		} else if !signed && mediaType != cosigntypes.IntotoPayloadType {
			p.Skipped = fmt.Sprintf("a layer of type %q is no evidence that waxseal reads", oneLine(mediaType))
			c.add(p)
			continue
		}
		if c.unwanted(&p, cmp.Or(layer.Annotations[attPredicateType], layer.Annotations[buildkitPredicateType], p.PredicateType)) {
			c.add(p)
			continue
		}
		if layer.Size >= 0 && layer.Size <= limit && c.bytes.Add(layer.Size) > attest.MaxEvidenceSum {
			return &tooMuch{string(c.about)}
		}
		raw, err := readBlob(ctx, c, layer, limit)
		if err != nil {
			if err := c.unreadable(ctx, p, err); err != nil {
				return err
			}
			continue
		}
		if p.Source == SourceAtt {
			// What verifies a keyless one stands beside it.
			whole, err := attest.AssembleCosign(raw, layer.Annotations)
			if err != nil {
				if err := c.unreadable(ctx, p, err); err != nil {
					return err
				}
				continue
			}
			if whole != nil {
				raw, p.Digest = whole, attest.DigestOf(whole)
			}
		}
		p.Raw = raw
		c.add(p)
	}
	return nil
}

// sorted returns the pieces in a stable order, each content once. Who attaches
// the content of another piece as something else hides neither: an OCSP response
// is never the same as what is no response, and a copy takes both manifests.
func (c *collector) sorted() []Piece {
	slices.SortStableFunc(c.pieces, func(a, b Piece) int {
		return cmp.Or(cmp.Compare(order(a.Source), order(b.Source)), cmp.Compare(a.Where, b.Where), cmp.Compare(a.Digest, b.Digest))
	})
	type content struct {
		digest  attest.Digest
		stapled bool
	}
	first := map[content]int{}
	out := c.pieces[:0]
	for _, p := range c.pieces {
		if p.Raw != nil {
			k := content{p.Digest, p.Stapled}
			if i, ok := first[k]; ok {
				p.Raw = nil
				out[i].again = append(out[i].again, p)
				continue
			}
			first[k] = len(out)
		}
		out = append(out, p)
	}
	return out
}

func order(origin string) int {
	return slices.Index([]string{SourceReferrer, SourceTag, SourceAtt, SourceIndex, SourceFile, SourceNotes, SourceSig}, origin)
}
