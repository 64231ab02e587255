package store

import (
	"bytes"
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

	"github.com/waxseal/waxseal/pkg/attest"
)

// maxEmbedded bounds a bundle that its manifest carries with it, for readers
// that can do without the blob: one request less for each.
const maxEmbedded = 64 << 10

// attachTries bounds how often an attachment is repeated that somebody else's
// write has undone: the fallback tag and .att are lists without a lock.
const attachTries = 4

// Attach stores b as a referrer of subject, in the form that cosign gives its
// bundles: an OCI 1.1 manifest whose artifact type is the bundle's media type,
// listed under the fallback tag where a registry lacks the referrers API. It
// returns the manifest's descriptor, the same for the same bundle: attaching
// twice changes nothing. The subject must be what the bundle's statement binds.
// What is stapled to it goes first, each as a referrer of its own.
func Attach(ctx context.Context, w Writable, subject v1.Descriptor, b *attest.Bundle) (v1.Descriptor, error) {
	sd, err := digest(subject)
	if err != nil {
		return v1.Descriptor{}, err
	}
	fail := func(err error) (v1.Descriptor, error) {
		return v1.Descriptor{}, fmt.Errorf("attaching %s to %s: %w", b.Statement().PredicateType, sd, err)
	}
	if b.Bare() {
		return fail(errors.New("a bare DSSE envelope has no bundle form; attach it as cosign's .att"))
	}
	if !b.Statement().Binds(sd) {
		return fail(errors.New("the statement is about something else"))
	}
	if err := attachStapled(ctx, w, subject, b.Stapled()); err != nil {
		return fail(err)
	}
	desc, err := attachBytes(ctx, w, subject, b.Raw(), b.Proto().GetMediaType(),
		map[string]string{bundleContent: contentDSSE, bundlePredicateType: b.Statement().PredicateType})
	if err != nil {
		return fail(err)
	}
	return desc, nil
}

// attachStapled stores OCSP responses as referrers of their own. cosign reads no
// bundle from a manifest with a second layer, and passes over other referrers.
// What several bundles have in common is there once.
func attachStapled(ctx context.Context, w Writable, subject v1.Descriptor, answers [][]byte) error {
	for _, a := range answers {
		if _, err := attachBytes(ctx, w, subject, a, attest.OCSPMediaType, nil); err != nil {
			return err
		}
	}
	return nil
}

// attachBytes stores content as a referrer of subject, in a layer and as an
// artifact of that type.
func attachBytes(ctx context.Context, w Writable, subject v1.Descriptor, content []byte, mediaType string, annotations map[string]string) (v1.Descriptor, error) {
	sd, err := digest(subject)
	if err != nil {
		return v1.Descriptor{}, err
	}
	config := []byte("{}")
	for _, blob := range []Blob{bytesBlob(config, emptyMediaType), bytesBlob(content, types.MediaType(mediaType))} {
		if err := w.PutBlob(ctx, blob); err != nil {
			return v1.Descriptor{}, err
		}
	}
	layer := bytesBlob(content, types.MediaType(mediaType)).Descriptor
	if len(content) <= maxEmbedded {
		// https://github.com/opencontainers/image-spec/blob/v1.1.1/descriptor.md#embedded-content
		layer.Data = content
	}
	raw, err := json.Marshal(v1.Manifest{
		SchemaVersion: 2,
		MediaType:     types.OCIManifestSchema1,
		ArtifactType:  mediaType,
		Config:        bytesBlob(config, emptyMediaType).Descriptor,
		Layers:        []v1.Descriptor{layer},
		Subject:       &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
		Annotations:   annotations,
	})
	if err != nil {
		return v1.Descriptor{}, err
	}
	return putReferrer(ctx, w, sd, raw)
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
	for try := 1; ; try++ {
		desc, err := w.PutManifest(ctx, types.OCIManifestSchema1, raw)
		if err != nil {
			return desc, err
		}
		listed, err := isListed(ctx, w, subject, desc.Digest)
		if listed || err != nil {
			return desc, err
		}
		if try == attachTries {
			return desc, fmt.Errorf("the place took the manifest %s but does not list it", desc.Digest)
		}
		if err := sleep(ctx, time.Duration(try)*50*time.Millisecond); err != nil {
			return desc, err
		}
	}
}

func isListed(ctx context.Context, w Writable, subject attest.Digest, want v1.Hash) (bool, error) {
	is := func(d v1.Descriptor) bool { return d.Digest == want }
	list, err := w.referrers(ctx, subject)
	if err != nil || slices.ContainsFunc(list, is) {
		return err == nil, err
	}
	raw, desc, err := w.tagged(ctx, fallbackTag(subject))
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	doc, err := parseDocument(raw, desc.MediaType)
	return err == nil && slices.ContainsFunc(doc.Manifests, is), err
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
