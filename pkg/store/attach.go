package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/sigstore/cosign/v2/pkg/oci/empty"
	"github.com/sigstore/cosign/v2/pkg/oci/static"
	cosigntypes "github.com/sigstore/cosign/v2/pkg/types"
	"golang.org/x/sync/errgroup"

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxEmbedded bounds a bundle that its manifest carries with it, for readers
// that can do without the blob: one request less for each.
const maxEmbedded = 64 << 10

// attachTries bounds how often an attachment is repeated that somebody else's
// write has undone: the fallback tag and .att are lists without a lock.
const attachTries = 4

// Attachment is a bundle and what it is about.
type Attachment struct {
	Subject v1.Descriptor // ByDigest is enough
	Bundle  *attest.Bundle
}

// ByDigest is a descriptor of which only the digest is known.
func ByDigest(d attest.Digest) Descriptor { return Descriptor{Digest: hash(d)} }

// Attach is AttachAll of one.
func Attach(ctx context.Context, w Writable, subject v1.Descriptor, b *attest.Bundle) (v1.Descriptor, error) {
	all, err := AttachAll(ctx, w, []Attachment{{subject, b}})
	if err != nil {
		return v1.Descriptor{}, err
	}
	return all[0], nil
}

// AttachAll stores bundles as referrers of their subjects, in the form that cosign
// gives its bundles: an OCI 1.1 manifest whose artifact type is the bundle's media
// type, listed under the fallback tag where a registry lacks the referrers API. It
// returns the manifests' descriptors, the same for the same bundles: attaching
// twice changes nothing. A subject must be there, and what its bundle's statement
// binds. What is stapled to a bundle goes before it, each as a referrer of its own.
func AttachAll(ctx context.Context, w Writable, all []Attachment) ([]v1.Descriptor, error) {
	var parts []referrer
	for _, a := range all {
		sd, err := digest(a.Subject)
		if err != nil {
			return nil, err
		}
		of := fmt.Sprintf("%s to %s", a.Bundle.Statement().PredicateType, sd)
		if a.Bundle.Bare() {
			return nil, fmt.Errorf("attaching %s: a bare DSSE envelope has no bundle form; attach it as cosign's .att", of)
		}
		if !a.Bundle.Statement().Binds(sd) {
			return nil, fmt.Errorf("attaching %s: the statement is about something else", of)
		}
		parts = append(parts, stapled(a.Subject, a.Bundle.Stapled(), of)...)
		parts = append(parts, referrer{
			subject: a.Subject, content: a.Bundle.Raw(), mediaType: a.Bundle.Proto().GetMediaType(), of: of, bundle: true,
			annotations: map[string]string{bundleContent: contentDSSE, bundlePredicateType: a.Bundle.Statement().PredicateType},
		})
	}
	descs, err := attachParts(ctx, w, parts)
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	for i, p := range parts {
		if p.bundle {
			out = append(out, descs[i])
		}
	}
	return out, nil
}

// attachStapled stores OCSP responses as referrers of their own. cosign reads no
// bundle from a manifest with a second layer, and passes over other referrers.
// What several bundles have in common is there once.
func attachStapled(ctx context.Context, w Writable, subject v1.Descriptor, answers [][]byte) error {
	_, err := attachParts(ctx, w, stapled(subject, answers, "an OCSP response to "+subject.Digest.String()))
	return err
}

func stapled(subject v1.Descriptor, answers [][]byte, of string) []referrer {
	var out []referrer
	for _, a := range answers {
		out = append(out, referrer{subject: subject, content: a, mediaType: attest.OCSPMediaType, of: of})
	}
	return out
}

// referrer is content that is stored as a referrer of subject, in a layer and as an
// artifact of that type.
type referrer struct {
	subject     v1.Descriptor
	content     []byte
	mediaType   string
	annotations map[string]string
	of          string // what is being attached to what, for errors
	bundle      bool
}

// atOnce is how many requests are on their way to a registry at the same time.
const atOnce = 6

// attachParts stores referrers. Contents go side by side, since each takes several
// requests, and beside them goes the question for what is known of a subject by its
// digest alone. So do manifests in a registry, but for those of one subject: its
// fallback tag is a list without a lock.
func attachParts(ctx context.Context, w Writable, parts []referrer) ([]v1.Descriptor, error) {
	if len(parts) == 0 {
		return nil, nil
	}
	fail := func(p referrer, err error) error { return fmt.Errorf("attaching %s: %w", p.of, err) }
	groups := bySubject(parts)
	subjects := lookUp(ctx, w, groups)
	config := []byte("{}")
	uploads, uploading := errgroup.WithContext(ctx)
	uploads.SetLimit(atOnce)
	upload := func(of referrer, content []byte, mediaType types.MediaType) {
		uploads.Go(func() error {
			if err := w.PutBlob(uploading, bytesBlob(content, mediaType)); err != nil {
				return fail(of, err)
			}
			return nil
		})
	}
	upload(parts[0], config, emptyMediaType)
	for _, p := range parts {
		upload(p, p.content, types.MediaType(p.mediaType))
	}
	uploaded := uploads.Wait()
	about, err := subjects()
	if err := cmp.Or(err, uploaded); err != nil {
		return nil, err
	}
	out := make([]v1.Descriptor, len(parts))
	puts, putting := errgroup.WithContext(ctx)
	puts.SetLimit(1) // in a folder the order stays
	if w.Reference().Kind == Registry {
		puts.SetLimit(atOnce)
	}
	at := 0
	for i, group := range groups {
		descs := out[at : at+len(group)]
		at += len(group)
		puts.Go(func() error {
			var raws [][]byte
			for _, p := range group {
				raw, err := p.manifest(about[i], config)
				if err != nil {
					return fail(p, err)
				}
				raws = append(raws, raw)
			}
			sd, err := digest(about[i])
			if err != nil {
				return fail(group[0], err)
			}
			done, k, err := putReferrers(putting, w, sd, raws)
			if err != nil {
				return fail(group[k], err)
			}
			copy(descs, done)
			return nil
		})
	}
	return out, puts.Wait()
}

// bySubject is parts cut where the subject changes.
func bySubject(parts []referrer) [][]referrer {
	var out [][]referrer
	for from := 0; from < len(parts); {
		to := from + 1
		for to < len(parts) && parts[to].subject.Digest == parts[from].subject.Digest {
			to++
		}
		out = append(out, parts[from:to])
		from = to
	}
	return out
}

// lookUp begins to ask for the subjects of which only the digest is known. What it
// returns waits for the answers: the subject of each group.
func lookUp(ctx context.Context, w Writable, groups [][]referrer) func() ([]v1.Descriptor, error) {
	out := make([]v1.Descriptor, len(groups))
	g, asking := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for i, group := range groups {
		if out[i] = group[0].subject; out[i].MediaType != "" {
			continue
		}
		g.Go(func() error {
			sd, err := digest(out[i])
			if err == nil {
				_, out[i], err = w.Manifest(asking, sd)
			}
			return err
		})
	}
	return func() ([]v1.Descriptor, error) { return out, g.Wait() }
}

func (p *referrer) manifest(subject v1.Descriptor, config []byte) ([]byte, error) {
	layer := bytesBlob(p.content, types.MediaType(p.mediaType)).Descriptor
	if len(p.content) <= maxEmbedded {
		// https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#embedded-content
		layer.Data = p.content
	}
	return json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  p.mediaType,
		Config:        bytesBlob(config, emptyMediaType).Descriptor,
		Layers:        []v1.Descriptor{layer},
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
		Annotations:   p.annotations,
	})
}

// bytesBlob is a blob in memory.
func bytesBlob(data []byte, mediaType types.MediaType) Blob {
	return Blob{
		Descriptor: describe(data, mediaType),
		Open:       func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}
}

// putReferrer stores a manifest with a subject and sees to it that the place
// lists it.
func putReferrer(ctx context.Context, w Writable, subject attest.Digest, raw []byte) (v1.Descriptor, error) {
	descs, _, err := putReferrers(ctx, w, subject, [][]byte{raw})
	return descs[0], err
}

// putReferrers stores manifests with one subject, and those again that the place
// does not list then. With an error it says of which.
func putReferrers(ctx context.Context, w Writable, subject attest.Digest, raws [][]byte) (descs []v1.Descriptor, at int, err error) {
	descs = make([]v1.Descriptor, len(raws))
	var left []int
	for i := range raws {
		left = append(left, i)
	}
	for try := 1; ; try++ {
		for _, i := range left {
			if descs[i], err = w.PutManifest(ctx, types.OCIManifestSchema1, raws[i]); err != nil {
				return descs, i, err
			}
		}
		listed, err := listing(ctx, w, subject, descs)
		if err != nil {
			return descs, left[0], err
		}
		left = slices.DeleteFunc(left, func(i int) bool { return listed[descs[i].Digest] })
		if len(left) == 0 {
			return descs, 0, nil
		}
		if try == attachTries {
			return descs, left[0], fmt.Errorf("the place took the manifest %s but does not list it", descs[left[0]].Digest)
		}
		if err := sleep(ctx, time.Duration(try)*50*time.Millisecond); err != nil {
			return descs, left[0], err
		}
	}
}

// listing says which manifests a place lists as referrers of subject. Where the API
// for that has not got them all, the fallback tag is asked, too.
func listing(ctx context.Context, w Writable, subject attest.Digest, want []v1.Descriptor) (map[v1.Hash]bool, error) {
	listed := map[v1.Hash]bool{}
	list, err := w.referrers(ctx, subject)
	if err != nil {
		return nil, err
	}
	for _, d := range list {
		listed[d.Digest] = true
	}
	if !slices.ContainsFunc(want, func(d v1.Descriptor) bool { return !listed[d.Digest] }) {
		return listed, nil
	}
	raw, desc, err := w.tagged(ctx, fallbackTag(subject))
	if errors.Is(err, ErrNotFound) {
		return listed, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := parseDocument(raw, desc.MediaType)
	if err != nil {
		return nil, err
	}
	for _, d := range doc.Manifests {
		listed[d.Digest] = true
	}
	return listed, nil
}

// AttachCosign stores b's DSSE envelope under cosign's tag for attestations,
// beside what is there, and what is stapled to it as referrers. Attaching twice
// changes nothing.
func AttachCosign(ctx context.Context, w Writable, subject v1.Descriptor, b *attest.Bundle) error {
	sd, err := digest(subject)
	if err != nil {
		return err
	}
	fail := func(err error) error {
		return fmt.Errorf("attaching %s to %s as cosign's .att: %w", b.Statement().PredicateType, sd, err)
	}
	if !b.Statement().Binds(sd) {
		return fail(errors.New("the statement is about something else"))
	}
	envelope, err := b.DSSE()
	if err != nil {
		return fail(err)
	}
	if err := attachStapled(ctx, w, subject, b.Stapled()); err != nil {
		return fail(err)
	}
	att, err := static.NewAttestation(envelope,
		static.WithLayerMediaType(cosigntypes.DssePayloadType),
		static.WithAnnotations(map[string]string{attPredicateType: b.Statement().PredicateType}))
	if err != nil {
		return fail(err)
	}
	annotations, err := att.Annotations()
	if err != nil {
		return fail(err)
	}
	if err := appendAtt(ctx, w, sd, []mutate.Addendum{{Layer: att, Annotations: annotations}}); err != nil {
		return fail(err)
	}
	return nil
}

// appendAtt adds layers to the image under cosign's tag, those that are not
// there yet.
func appendAtt(ctx context.Context, w Writable, subject attest.Digest, adds []mutate.Addendum) error {
	tag := fallbackTag(subject) + ".att"
	for try := 1; ; try++ {
		image, missing, err := withAtt(ctx, w, tag, adds)
		if err != nil || len(missing) == 0 {
			return err
		}
		if try > attachTries {
			return fmt.Errorf("tag %q was written by somebody else %d times", tag, attachTries)
		}
		if err := putImage(ctx, w, image, missing, tag); err != nil {
			return err
		}
	}
}

// withAtt returns the image under tag with adds in it, and those that it had
// not.
func withAtt(ctx context.Context, w Writable, tag string, adds []mutate.Addendum) (v1.Image, []mutate.Addendum, error) {
	base, layers := v1.Image(empty.Signatures()), []v1.Descriptor(nil)
	raw, desc, err := w.tagged(ctx, tag)
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil:
		return nil, nil, err
	default:
		doc, err := parseDocument(raw, desc.MediaType)
		if err != nil {
			return nil, nil, err
		}
		if doc.index || doc.Config == nil {
			return nil, nil, fmt.Errorf("tag %q is no image with attestations", tag)
		}
		if len(doc.Layers)+len(adds) > attest.MaxEvidence {
			return nil, nil, fmt.Errorf("tag %q would have more than the %d attestations that are read", tag, attest.MaxEvidence)
		}
		config, err := readBlob(ctx, w, *doc.Config, attest.MaxManifest)
		if err != nil {
			return nil, nil, err
		}
		core := &imageCore{ctx: ctx, place: w, raw: raw, mediaType: desc.MediaType, config: config, layers: doc.Layers}
		if base, err = partial.CompressedToImage(core); err != nil {
			return nil, nil, err
		}
		layers = doc.Layers
	}
	var missing []mutate.Addendum
	for _, a := range adds {
		d, err := a.Layer.Digest()
		if err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(layers, func(l v1.Descriptor) bool { return l.Digest == d }) {
			missing = append(missing, a)
		}
	}
	image, err := mutate.Append(base, missing...)
	return image, missing, err
}

// putImage stores an image whose other layers are there already.
func putImage(ctx context.Context, w Writable, image v1.Image, layers []mutate.Addendum, tag string) error {
	for _, l := range layers {
		desc, err := partial.Descriptor(l.Layer)
		if err != nil {
			return err
		}
		blob := Blob{Descriptor: *desc, Open: l.Layer.Compressed}
		if known, ok := l.Layer.(*blobLayer); ok {
			blob.From = known.b.From
		}
		if err := w.PutBlob(ctx, blob); err != nil {
			return err
		}
	}
	config, err := image.RawConfigFile()
	if err != nil {
		return err
	}
	manifest, err := image.Manifest()
	if err != nil {
		return err
	}
	if err := w.PutBlob(ctx, bytesBlob(config, manifest.Config.MediaType)); err != nil {
		return err
	}
	raw, err := image.RawManifest()
	if err != nil {
		return err
	}
	desc, err := w.PutManifest(ctx, manifest.MediaType, raw)
	if err != nil {
		return err
	}
	return w.PutTag(ctx, tag, desc)
}

// imageCore shows an image in a place to the library.
type imageCore struct {
	ctx       context.Context // of the one call that made it
	place     Repository
	raw       []byte
	mediaType types.MediaType
	config    []byte
	layers    []v1.Descriptor
}

func (c *imageCore) RawManifest() ([]byte, error)        { return c.raw, nil }
func (c *imageCore) MediaType() (types.MediaType, error) { return c.mediaType, nil }
func (c *imageCore) RawConfigFile() ([]byte, error)      { return c.config, nil }

func (c *imageCore) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, l := range c.layers {
		if l.Digest == h {
			return placeLayer{c.ctx, c.place, l}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

type placeLayer struct {
	ctx   context.Context
	place Repository
	desc  v1.Descriptor
}

func (l placeLayer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l placeLayer) Size() (int64, error)                { return l.desc.Size, nil }
func (l placeLayer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l placeLayer) Compressed() (io.ReadCloser, error) {
	d, err := digest(l.desc)
	if err != nil {
		return nil, err
	}
	return l.place.Blob(l.ctx, d)
}
